"""Payment channels: one deposit, spent by tickets that the channel's key signs, each of them once. Pure.

    OPEN ──> CLOSING ──> CLOSED

A ticket is a number of the channel, worth at most `ticket_micro`. A task takes as many consecutive numbers as its
budget needs. Its escrow is stored under its first number, so the number is the guard against double spending, and the
permanent record of the task, at once.

The sweep adds up what tickets cost (`spent_micro`) and how many numbers they took (`swept`). A number costs its worth
or less, so the rest of the deposit always covers all numbers up to `numbers` that are not swept:

    (numbers - swept) · ticket_micro ≤ deposit_micro - spent_micro                                               (I14)

Numbers of cheap and failed tasks are thus replaced by new ones. A number can be used only if it is `granted`: the first
task beyond the granted numbers raises them. So a channel that closes has few numbers to take out of use, each of which
gets a mark that no late runner can overwrite. After that its sum is final, whatever crashed or was delayed.
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from quittance.ledger import escrow as escrows
from quittance.ledger.pricing import divide_up
from quittance.limits import (
    CHANNEL_GRANT_FIRST,
    CHANNEL_GRANT_MAX,
    TICKET_NUMBER_MAX,
    TICKETS_PER_JUDGED_TASK_MAX,
    TICKETS_PER_TASK_MAX,
)

_ACCOUNT: Final = "channel "  # no account has such an id: the ids of accounts contain no spaces
_TASK_ID: Final = re.compile(r"(chn_[a-z2-7]{26})\.([1-9][0-9]{0,8})")


class ChannelState(StrEnum):
    """Where a channel stands. The values are stored and shown."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel: its terms, which never change, and what was paid in, spent and returned.

    `key` is the `x` of an Ed25519 public key (RFC 8037). `agents` are the agents that tickets may pay, all if empty.
    `tickets` is the count at opening. `granted` is the highest number that may be used, `swept` the count of numbers
    whose tasks are credited, `spent_micro` what those tasks cost. A channel is `contested` once two runs of one ticket
    overlapped: from then on its tickets are held before they run. Closing sets `close_ms`, counts the numbers up to
    `counted`, of which `used` are tickets, and finally returns `returned_micro`. Times are milliseconds since 1970.
    """

    channel_id: str
    payer: str
    salt: str
    key: str
    ticket_micro: int
    tickets: int
    deposit_micro: int
    opened_ms: int
    expires_ms: int
    agents: tuple[str, ...] = ()
    max_per_task_micro: int | None = None
    state: ChannelState = ChannelState.OPEN
    spent_micro: int = 0
    swept: int = 0
    granted: int = 0
    contested: bool = False
    close_ms: int | None = None
    counted: int = 0
    used: int = 0
    returned_micro: int = 0
    closed_ms: int | None = None

    @property
    def numbers(self) -> int:
        """The highest number that the deposit covers. It never falls."""
        affordable = (self.deposit_micro - self.spent_micro) // self.ticket_micro
        return min(self.swept + affordable, TICKET_NUMBER_MAX)

    @property
    def held_micro(self) -> int:
        """What the tickets that are not swept may cost."""
        return (self.numbers - self.swept) * self.ticket_micro if self.state is not ChannelState.CLOSED else 0

    def most_micro(self, *, judged: bool) -> int:
        """The most that one task may cost. Judges need room in the transaction that holds its tickets."""
        by_tickets = (TICKETS_PER_JUDGED_TASK_MAX if judged else TICKETS_PER_TASK_MAX) * self.ticket_micro
        return min(by_tickets, self.max_per_task_micro or by_tickets)

    @property
    def same_terms(self) -> tuple[object, ...]:
        """What a repeated request to open the channel must have in common with it, beside the id."""
        return self.tickets, self.expires_ms, self.agents, self.max_per_task_micro


def channel_id(*, issuer: str, payer: str, salt: str, key: str, ticket_micro: int) -> str:
    """The id of a channel. It commits to its stack, payer, salt, key and ticket value, so a receipt proves all of them.

    Length prefixes keep different lists of parts apart.
    """
    named = "".join(f"{len(part)}:{part}" for part in (issuer, payer, salt, key, str(ticket_micro)))
    return "chn_" + base64.b32encode(hashlib.sha256(named.encode()).digest()).decode().lower()[:26]


def tickets_needed(budget_micro: int, ticket_micro: int) -> int:
    """How many consecutive tickets a budget takes: the least number whose worth covers it."""
    return divide_up(budget_micro, ticket_micro)


def granted_for(channel: Channel, last: int) -> int | None:
    """The highest granted number after a task that uses the numbers up to `last`; None if it cannot be granted.

    Grants double up to CHANNEL_GRANT_MAX at a time, so closing marks few numbers for each task that was paid. A task
    may use any of the next CHANNEL_GRANT_MAX numbers, so a task of TICKETS_PER_TASK_MAX tickets may be the first, and
    parallel tasks may arrive in any order. A number further ahead grants nothing.
    """
    if last > min(channel.granted + CHANNEL_GRANT_MAX, channel.numbers):
        return None
    step = min(max(channel.granted, CHANNEL_GRANT_FIRST), CHANNEL_GRANT_MAX)
    return max(last, min(channel.granted + step, channel.numbers))


def ticket_escrow_id(channel_id: str, number: int) -> str:
    """The id of the escrow that a ticket pays."""
    return escrows.escrow_id(channel_account(channel_id), str(number))


def channel_account(channel_id: str) -> str:
    """The name that a channel has in place of an account: in the ids of its tickets' escrows, and for its top-ups."""
    return _ACCOUNT + channel_id


def ticket_task_id(channel_id: str, number: int) -> str:
    """The task_id of a task that a ticket pays: `<channel id>.<number>`."""
    return f"{channel_id}.{number}"


def parse_task_id(task_id: str) -> tuple[str, int] | None:
    """The channel and the number that a task_id names; None for a task that an account's balance pays."""
    match = _TASK_ID.fullmatch(task_id)
    return (match[1], int(match[2])) if match else None


def escrow_id_of(payer: str, task_id: str) -> str:
    """The id of a task's escrow, whether a balance or a ticket pays it."""
    named = parse_task_id(task_id)
    return ticket_escrow_id(*named) if named else escrows.escrow_id(payer, task_id)
