"""What the sweep credits and charges for settled escrows: earnings, fees, charges to bonds and returns to them. Pure.

The cost of the agent's own judge is deducted from the owner's price and returned to the owner's bond. The cost of an
agent's failure is charged to the bond as far as its balance goes. The platform bears the rest, because that rest is its
own compute and is owed to nobody else.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from quittance.ledger import balances
from quittance.ledger.balances import bond_account, is_bond, owner_of
from quittance.ledger.escrow import Escrow
from quittance.ledger.journal import Line, LineKind
from quittance.limits import LOGGED_AGENTS_MAX, TRANSACTION_ITEMS_MAX

BondShards = Mapping[str, Sequence[int]]
"""The shard balances of bonds, by owner; only the home shard where its balance is enough."""


@dataclass(slots=True)
class _Part:
    """The sum over several escrows, of one owner or of all: it becomes one journal line."""

    amount_micro: int = 0
    tasks: int = 0
    agents: set[str] = field(default_factory=set)

    def add(self, escrow: Escrow, amount_micro: int) -> None:
        self.amount_micro += amount_micro
        self.tasks += 1
        self.agents.add(escrow.agent_id)

    @property
    def agent_id(self) -> str | None:
        """The agent, if all escrows have the same one."""
        return next(iter(self.agents)) if len(self.agents) == 1 else None


@dataclass(slots=True)
class _Share:
    """The sums over one owner's escrows in a batch."""

    earned: _Part = field(default_factory=_Part)
    returned: _Part = field(default_factory=_Part)
    charged: _Part = field(default_factory=_Part)

    def add(self, escrow: Escrow) -> None:
        if (settlement := escrow.settlement) is None:
            return
        paid_micro = settlement.split.paid_micro
        returned_micro = min(settlement.judging_micro, paid_micro)
        self.earned.add(escrow, paid_micro - returned_micro)
        if returned_micro:
            self.returned.add(escrow, returned_micro)
        if settlement.charge_micro:
            self.charged.add(escrow, settlement.charge_micro)

    def taken_micro(self, shards: Sequence[int]) -> int:
        """The part of the charge that the bond can pay from its balance and its returns."""
        return min(self.charged.amount_micro, sum(shards) + self.returned.amount_micro)

    def bond_moves(self, shards: Sequence[int]) -> Mapping[int, int]:
        """The change of each shard of the bond. It is 0 for a shard that only records what was charged."""
        taken_micro = self.taken_micro(shards)
        change_micro = self.returned.amount_micro - taken_micro
        if change_micro < 0:
            return balances.taking(shards, -change_micro, contended=False) or {}
        return {balances.HOME: change_micro} if change_micro or taken_micro else {}

    def items(self, shards: Sequence[int] | None) -> int:
        """How many items a transaction writes for this owner, not counting the escrows."""
        earned, charged, returned = self.earned.amount_micro, self.charged.amount_micro, self.returned.amount_micro
        moves = bool(charged or returned) if shards is None else len(self.bond_moves(shards))
        return 2 * bool(earned) + bool(charged) + bool(returned) + moves


@dataclass(frozen=True, slots=True)
class Batch:
    """Escrows that are credited in one transaction, in the order in which they are appended to the log.

    `credits` are amounts by account, `bond_moves` the changes of shards by bond, and `charged` the charges by bond.
    `bonds_left` is the least balance that each affected bond has afterwards, by owner. It is None if the balance rose
    or the bond paid a judge: the bond may then cover the minimum again.
    """

    escrows: Sequence[Escrow]
    lines: Sequence[Line]
    credits: Mapping[str, int]
    bond_moves: Mapping[str, Mapping[int, int]]
    charged: Mapping[str, int]
    bonds_left: Mapping[str, int | None]

    @property
    def written_off_micro(self) -> int:
        """What was due from bonds and exceeded their balances."""
        return sum((line.due_micro or 0) + line.amount_micro for line in self.lines if line.kind is LineKind.CHARGE)


def due_by_owner(waiting: Iterable[Escrow]) -> Mapping[str, int]:
    """The amounts that are due from bonds for settled escrows, by owner."""
    due = {owner: share.charged.amount_micro for owner, share in _shares(waiting).items()}
    return {owner: due_micro for owner, due_micro in due.items() if due_micro}


def fitting(waiting: Sequence[Escrow], shards: BondShards | None = None) -> Sequence[Escrow]:
    """The longest prefix of settled escrows that fits one transaction and, later, one append to the log.

    Without `shards`, the calculation assumes that one shard of each bond pays the whole charge.
    """
    shares: dict[str, _Share] = {}
    agents: set[str] = set()
    costs: Counter[str] = Counter()
    channels: set[str] = set()
    for count, escrow in enumerate(waiting):
        agents.add(escrow.agent_id)
        channels |= {escrow.ticket.channel_id} if escrow.ticket and escrow.ticket.count else set()
        share = shares.setdefault(escrow.owner, _Share())
        share.add(escrow)
        costs[escrow.owner] = share.items(None if shards is None else shards.get(escrow.owner, ()))
        # Three more items: the platform's balance shard, its journal line, and the batch.
        if count + 1 + costs.total() + len(channels) + 3 > TRANSACTION_ITEMS_MAX or len(agents) > LOGGED_AGENTS_MAX:
            return waiting[:count]
    return waiting


def spent_by_channel(escrows: Iterable[Escrow]) -> Iterator[tuple[str, int, int]]:
    """For each channel that paid some of the escrows: its id, what they cost it, and how many numbers they took."""
    spent: Counter[str] = Counter()
    swept: Counter[str] = Counter()
    for escrow in escrows:
        if escrow.ticket and escrow.ticket.count:
            spent[escrow.ticket.channel_id] += escrow.drawn_micro
            swept[escrow.ticket.channel_id] += escrow.ticket.count
    return ((channel_id, spent[channel_id], swept[channel_id]) for channel_id in swept)


def batch(escrows: Sequence[Escrow], shards: BondShards, *, platform_account: str, now_ms: int) -> Batch:
    """The batch that credits some settled escrows. `shards` are the balances of the bonds that are charged."""
    batch_id, fees = escrows[0].escrow_id, _Part()
    for escrow in escrows:
        fees.add(escrow, escrow.settlement.split.fee_micro if escrow.settlement else 0)
    credited: Counter[str] = Counter()
    lines: list[Line] = []
    moves: dict[str, Mapping[int, int]] = {}
    charged: dict[str, int] = {}
    bonds_left: dict[str, int | None] = dict.fromkeys(_judging_owners(escrows))

    def note(account: str, kind: LineKind, part: _Part, amount_micro: int, due_micro: int | None = None) -> None:
        if amount_micro or due_micro:
            lines.append(
                Line(account, kind, batch_id, now_ms, amount_micro, part.agent_id, part.tasks, due_micro=due_micro)
            )

    for owner, share in _shares(escrows).items():
        bond, bond_shards = bond_account(owner), shards.get(owner, ())
        taken_micro = share.taken_micro(bond_shards)
        note(owner, LineKind.EARNINGS, share.earned, share.earned.amount_micro)
        note(bond, LineKind.JUDGING, share.returned, share.returned.amount_micro)
        note(bond, LineKind.CHARGE, share.charged, -taken_micro, share.charged.amount_micro or None)
        credited[owner] += share.earned.amount_micro
        fees.amount_micro += taken_micro
        if changes := share.bond_moves(bond_shards):
            moves[bond], charged[bond] = changes, taken_micro
        if share.returned.amount_micro:
            bonds_left[owner] = None
        elif share.charged.amount_micro:
            bonds_left.setdefault(owner, sum(bond_shards) - taken_micro)
    note(platform_account, LineKind.FEES, fees, fees.amount_micro)
    credited[platform_account] += fees.amount_micro
    return Batch(escrows, lines, +credited, moves, charged, bonds_left)


def publication(
    owner: str,
    reference: str,
    due_micro: int,
    shards: Sequence[int],
    *,
    agent_id: str,
    platform_account: str,
    now_ms: int,
) -> Batch:
    """The batch that charges a bond for a publication. It has no escrows, so its lines count no tasks."""
    bond, taken_micro = bond_account(owner), min(due_micro, sum(shards))
    lines = [Line(bond, LineKind.CHARGE, reference, now_ms, -taken_micro, agent_id, due_micro=due_micro)]
    if taken_micro:
        lines.append(Line(platform_account, LineKind.FEES, reference, now_ms, taken_micro, agent_id))
    return Batch(
        escrows=(),
        lines=lines,
        credits={platform_account: taken_micro} if taken_micro else {},
        bond_moves={bond: balances.taking(shards, taken_micro, contended=False) or {}} if taken_micro else {},
        charged={bond: taken_micro},
        bonds_left={owner: sum(shards) - taken_micro},
    )


def _shares(escrows: Iterable[Escrow]) -> Mapping[str, _Share]:
    shares: dict[str, _Share] = {}
    for escrow in escrows:
        shares.setdefault(escrow.owner, _Share()).add(escrow)
    return shares


def _judging_owners(escrows: Iterable[Escrow]) -> Iterable[str]:
    """The owners whose bonds paid for some of the escrows."""
    return {owner_of(escrow.payer) for escrow in escrows if is_bond(escrow.payer)}
