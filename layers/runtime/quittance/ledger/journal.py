"""The journal: every movement of an account's credits. The account statement lists it, the auditor sums it. Pure.

A line is written once and its amount never changes. There are two exceptions. A task's line is derived from the escrow:
its amount is what the task has cost so far, the whole budget while it is held and then the part that was used. The line
of a channel is derived from the channel: its amount is what was paid in so far, and then what was not returned.

A withdrawal takes the credits at once. The payout outside the platform follows:

    requested ──> paid      the money was paid out
        └───────> failed    the payout failed: the same transaction returns the credits, with a journal line of its own

A payout leaves `requested` once.
"""

import base64
import binascii
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from quittance.ledger.escrow import State

_SEPARATOR: Final = "#"  # no account id contains it


class LineKind(StrEnum):
    """Why credits moved. The values are shown."""

    DEPOSIT = "deposit"
    WITHDRAWAL = "withdrawal"
    RETURNED = "returned"
    TASK = "task"
    EARNINGS = "earnings"
    FEES = "fees"
    BOND = "bond"
    CHARGE = "charge"
    JUDGING = "judging"
    CHANNEL = "channel"


class PayoutState(StrEnum):
    """Where the payout of a withdrawal stands. The values are shown."""

    REQUESTED = "requested"
    PAID = "paid"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Line:
    """One movement: the change of the account's available credits in micro-credits, negative if credits were taken.

    `reference` is unique within the account and the kind: the id of the deposit, withdrawal, bond movement or task; for
    a line of the sweep, the id of the first escrow of the batch. The line of a returned withdrawal has the id of the
    withdrawal. `agent_id` is set if one agent ran all `tasks`. `due_micro` is what a charge should have taken; the
    bond's balance may have been less. `depositor` made a deposit; it is None for deposits older than this attribute.
    `payout` is the state of a withdrawal's payout.
    """

    account: str
    kind: LineKind
    reference: str
    at_ms: int
    amount_micro: int
    agent_id: str | None = None
    tasks: int | None = None
    state: State | None = None
    due_micro: int | None = None
    depositor: str | None = None
    payout: PayoutState | None = None


@dataclass(frozen=True, slots=True)
class Payout:
    """A withdrawal from the operator's point of view: what is to be paid out, to whom, and whether it was.

    `waits` is True if the index of requested payouts contains it. `recorded` is True if the stored item has a state;
    old withdrawals have none.
    """

    account: str
    withdrawal_id: str
    amount_micro: int
    requested_ms: int
    state: PayoutState
    decided_ms: int | None = None
    decided_by: str | None = None
    waits: bool = False
    recorded: bool = True

    @property
    def payout_id(self) -> str:
        """The id of the payout for operators."""
        return payout_id(self.account, self.withdrawal_id)


def payout_id(account: str, withdrawal_id: str) -> str:
    """The id of a withdrawal's payout. It includes the account: withdrawal ids are unique only within an account."""
    named = f"{account}{_SEPARATOR}{withdrawal_id}".encode()
    return base64.urlsafe_b64encode(named).decode().rstrip("=")


def parse_payout_id(payout_id: str) -> tuple[str, str]:
    """The account and the withdrawal id in a payout id. Raises ValueError if it is not a payout id."""
    try:
        named = base64.b64decode(payout_id + "=" * (-len(payout_id) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError) as exc:
        msg = "not base64url of ASCII"
        raise ValueError(msg) from exc
    account, separator, withdrawal_id = named.partition(_SEPARATOR)
    if not (account and separator and withdrawal_id):
        msg = "names no account and withdrawal"
        raise ValueError(msg)
    return account, withdrawal_id
