"""The payment channels of the fault fuzz: how each is opened, used, topped up and closed, and what was asked of it."""

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quittance.api.identity import Caller
from quittance.api.models import ChannelRequest, SignedClose, TaskRequest, TopUpRequest
from quittance.errors import ChannelClosedError, MovementConflictError, PlatformUnavailableError
from quittance.ledger.channels import ChannelState
from quittance.limits import CHANNEL_TICKETS_MAX
from quittance.proof.ticket import CLOSE_TYPE
from quittance.usecases import channels
from tests.proofs.faults import Crash
from tests.proofs.world import HOT, JUDGED, START_MS, World, micro
from tests.tickets import ISSUER, claims_for, jwk, signed

LONG_MS = 100 * 60 * 60 * 1_000  # longer than any round
EXP_S = START_MS // 1_000 + 2 * LONG_MS // 1_000
TRIES_MAX = 60  # of a movement whose outcome must become known


@dataclass(frozen=True)
class Kind:
    """How a channel is set up; `weight` is its share of the tasks that tickets pay. It closes once the share
    `closes` of its tasks was sent.
    """

    name: str
    payer: str
    weight: int
    ticket_micro: int
    tickets: int
    agents: tuple[str, ...] = ()
    max_per_task_micro: int | None = None
    closes: float = 0.0
    expires: bool = False
    topped: bool = False


def kinds(tasks: int) -> list[Kind]:
    """The channels of a round with this number of tasks."""
    return [
        Kind("hot", "hot", 36, 45_001, tasks),  # the account whose balance every other task needs
        Kind("small", "payer-1", 14, 7_001, min(6 * tasks, CHANNEL_TICKETS_MAX)),  # a task takes several numbers
        Kind("dry", "payer-2", 10, 40_000, 6),  # cheap and failed tasks replace its numbers, until they do not
        Kind("few", "payer-3", 4, 95_000, 3),
        Kind("closed early", "payer-4", 8, 45_001, tasks, closes=0.3),
        Kind("closed late", "payer-8", 10, 45_001, tasks, closes=0.6),
        Kind("expired", "payer-5", 8, 45_001, tasks, expires=True),
        Kind("topped", "payer-6", 10, 30_000, 4, topped=True),
        Kind("bound", "payer-7", 4, 45_001, tasks, agents=(HOT, JUDGED), max_per_task_micro=60_000),
    ]


@dataclass(frozen=True)
class Asked:
    """A request for which a client sent a ticket: its first number, how many it takes, and what the task is."""

    first: int
    count: int
    agent_id: str
    budget: int
    input_sha256: str

    @property
    def numbers(self) -> range:
        """The numbers that it takes."""
        return range(self.first, self.first + self.count)


@dataclass
class Purse:
    """One channel of a round, and what clients know of it."""

    kind: Kind
    expires_ms: int
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    channel_id: str = ""
    claimed: dict[tuple[int, int], int] = field(default_factory=dict)
    planned: int = 0
    topped_micro: int = 0
    asked: set[Asked] = field(default_factory=set)
    refused: list[Asked] = field(default_factory=list)
    _next: int = 1
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def request(self) -> ChannelRequest:
        """The request that opens the channel."""
        expires = datetime.fromtimestamp(self.expires_ms / 1_000, UTC).isoformat().replace("+00:00", "Z")
        asked: dict[str, Any] = {
            "salt": self.kind.name.replace(" ", "-"),
            "key": jwk(self.key),
            "ticket_value": micro(self.kind.ticket_micro),
            "tickets": self.kind.tickets,
            "expires_at": expires,
            "agents": list(self.kind.agents) or None,
        }
        if self.kind.max_per_task_micro:
            asked["max_per_task"] = micro(self.kind.max_per_task_micro)
        return ChannelRequest.model_validate(asked)

    def count(self, budget: int) -> int:
        """How many numbers a budget takes."""
        return -(-budget // self.kind.ticket_micro)

    def claim(self, pair: int, number: int, budget: int, random: Random) -> int:
        """The first number of a pair's task. Both clients of the pair get the same one; numbers sometimes overlap."""
        with self._lock:
            if (pair, number) not in self.claimed:
                back = random.choice((0,) * 14 + (1, 2))  # a program that has forgotten what it used
                self.claimed[pair, number] = max(self._next - back, 1)
                self._next = max(self._next, self.claimed[pair, number] + self.count(budget))
            return self.claimed[pair, number]

    def forget(self, first: int) -> None:
        """Has later claims begin at a number again that was refused as too high."""
        with self._lock:
            self._next = min(self._next, first)

    def ticket(self, request: TaskRequest, asked: Asked) -> str:
        """The signed ticket of a request, which is recorded first."""
        with self._lock:
            self.asked.add(asked)
        return signed(claims_for(request, exp=EXP_S), self.key)

    def refuse(self, asked: Asked) -> None:
        """Records that a client was told that a number of its ticket was used for another task."""
        with self._lock:
            self.refused.append(asked)


def open_purse(world: World, purse: Purse) -> str | None:
    """Opens a channel, repeated until the outcome is known; returns what is wrong."""
    for _ in range(TRIES_MAX):
        try:
            answer = channels.open_channel(world, Caller(purse.kind.payer), purse.request)
        except (Crash, PlatformUnavailableError):
            continue
        purse.channel_id = purse.channel_id or answer.channel_id
        known = (purse.channel_id, purse.kind.tickets * purse.kind.ticket_micro)
        found = (answer.channel_id, answer.deposit_micro)
        return None if found == known else f"{purse.kind.name}: opened as {found}, expected {known}"
    return f"{purse.kind.name}: the outcome of opening is unknown"


def top_up(world: World, purse: Purse, number: int, random: Random) -> str | None:
    """Tops a channel up once, with repeats, until the outcome is known; returns what is wrong."""
    tickets, known = random.randrange(1, 6), None
    for _ in range(TRIES_MAX):
        request = TopUpRequest(topup_id=f"t{number}", tickets=tickets)
        try:
            answer = channels.top_up(world, Caller(purse.kind.payer), purse.channel_id, request)
        except (Crash, PlatformUnavailableError):
            continue
        except ChannelClosedError:
            return None if purse.kind.closes else f"{purse.kind.name}: a top-up was refused as closed"
        amount = tickets * purse.kind.ticket_micro
        if known is None:
            known = answer.recorded_at
            purse.topped_micro += amount
        if (answer.amount_micro, answer.recorded_at) != (amount, known):
            return f"{purse.kind.name}: the repeat of the top-up t{number} was answered with {answer}"
        if random.random() < 0.5:
            return _other_amount(world, purse, number, tickets + 1) if random.random() < 0.3 else None
    return f"{purse.kind.name}: the outcome of the top-up t{number} is unknown"


def _other_amount(world: World, purse: Purse, number: int, tickets: int) -> str | None:
    request = TopUpRequest(topup_id=f"t{number}", tickets=tickets)
    try:
        channels.top_up(world, Caller(purse.kind.payer), purse.channel_id, request)
    except (Crash, PlatformUnavailableError, MovementConflictError):
        return None
    except ChannelClosedError:
        return None if purse.kind.closes else f"{purse.kind.name}: a top-up was refused as closed"
    return f"{purse.kind.name}: the top-up t{number} was accepted with two amounts"


def close(world: World, purse: Purse, *, by_key: bool) -> str | None:
    """Closes a channel for its payer or by its key, repeated until the outcome is known; returns what is wrong."""
    claims = {"iss": ISSUER, "channel": purse.channel_id, "exp": EXP_S}
    order = SignedClose(order=signed(claims, purse.key, typ=CLOSE_TYPE))
    for _ in range(TRIES_MAX):
        try:
            if by_key:
                answer = channels.close_by_key(world, purse.channel_id, order)
            else:
                answer = channels.close(world, Caller(purse.kind.payer), purse.channel_id)
        except (Crash, PlatformUnavailableError):
            continue
        return None if answer.state is not ChannelState.OPEN else f"{purse.kind.name}: still open after closing"
    return f"{purse.kind.name}: the outcome of closing is unknown"


def contradictions(purse: Purse, items: dict[str, dict[str, Any]]) -> list[str]:
    """Clients that were told that another task has the ticket, though the ledger has theirs, or nobody else asked.

    `items` are the plain items of the channel's numbers, by number.
    """
    by_number: dict[int, set[Asked]] = defaultdict(set)
    for asked in purse.asked:
        for number in asked.numbers:
            by_number[number].add(asked)
    found = []
    for asked in purse.refused:
        rivals = set().union(*(by_number[number] for number in asked.numbers)) - {asked}
        stored = items.get(asked.first, {})
        is_mine = all(
            stored.get(name) == value
            for name, value in (
                ("agent_id", asked.agent_id),
                ("input_sha256", asked.input_sha256),
                ("tickets", asked.count),
            )
        )
        if not rivals or (is_mine and all(rival.first != asked.first for rival in rivals)):
            found.append(f"{purse.kind.name}: {asked} was refused as used; stored is {stored.get('state')}")
    return found
