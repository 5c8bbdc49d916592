"""The journal: every movement of an account's credits. The statement shows it, the auditor sums it. Pure.

A line is written once and its amount never changes, except a task's: that one is the escrow itself, whose line says
what the task has cost until now: the whole budget while it is held, then what was used.

A withdrawal takes credits out at once; its payout outside of the platform follows:

    requested ──> paid      the money has left
        └───────> failed    it came back: the credits are returned in the same transaction, by a line of their own

A payout leaves `requested` once.
"""

import base64
import binascii
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from quittance.ledger.escrow import Escrow, State

_SEPARATOR: Final = "#"  # no account's id has it


class Kind(StrEnum):
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


class PayoutState(StrEnum):
    """Where the payout of a withdrawal stands. The values are shown."""

    REQUESTED = "requested"
    PAID = "paid"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Line:
    """One movement: by how much the account's available credits changed, in micro-credits, negative for less.

    `reference` is unique for the account and the kind: the id of a deposit, a withdrawal or a movement of the bond, a
    task's id, or for what the sweep moves the id of the first of the escrows that were credited together. `agent_id` is
    set if one agent did all `tasks`. `due_micro` is what a charge should have taken: a bond pays no more than it has.
    A returned withdrawal has the id of the withdrawal. `depositor` is who made a deposit, None for deposits that were
    made before this was recorded. `payout` is where a withdrawal stands.
    """

    account: str
    kind: Kind
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
    """A withdrawal as the operator sees it: what is to be paid out, to whom, and whether it was.

    `waits` tells whether the index of payouts that wait shows it, and `recorded` whether the state is written down:
    that of a withdrawal of before is not.
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
        """Names the payout for the operator."""
        return payout_id(self.account, self.withdrawal_id)


def payout_id(account: str, withdrawal_id: str) -> str:
    """The id of a withdrawal's payout: ids of withdrawals are unique within their account only."""
    named = f"{account}{_SEPARATOR}{withdrawal_id}".encode()
    return base64.urlsafe_b64encode(named).decode().rstrip("=")


def parse_payout_id(payout_id: str) -> tuple[str, str]:
    """Account and withdrawal id of a payout's id. Raises ValueError for what is not the id of any payout."""
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


def task_line(escrow: Escrow) -> Line:
    """What a task has cost its payer until now."""
    refunded_micro = escrow.settlement.split.refunded_micro if escrow.settlement else 0
    return Line(
        account=escrow.payer,
        kind=Kind.TASK,
        reference=escrow.task_id,
        at_ms=escrow.funded_ms,
        amount_micro=refunded_micro - escrow.budget_micro,
        agent_id=escrow.agent_id,
        tasks=1,
        state=escrow.state,
    )
