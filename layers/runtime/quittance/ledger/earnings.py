"""What the sweep moves for settled escrows: earnings, fees, and what bonds are charged or get back. Pure.

Of what a task pays its owner, what the agent's own judge has cost goes back to the owner's bond. Of what an agent's
failure has cost the platform, the bond pays what it has, and the platform bears the rest: nobody else is owed it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from quittance.ledger import balances
from quittance.ledger.balances import bond_account, is_bond, owner_of
from quittance.ledger.escrow import Escrow
from quittance.ledger.journal import Kind, Line
from quittance.limits import LOGGED_AGENTS_MAX, TRANSACTION_ITEMS_MAX

Purses = Mapping[str, Sequence[int]]
"""What the purses of some owners' bonds have; the home purse alone where that is enough."""


@dataclass(slots=True)
class _Part:
    """What some escrows of one owner, or of all, come to: one line of a journal."""

    amount_micro: int = 0
    tasks: int = 0
    agents: set[str] = field(default_factory=set)

    def add(self, escrow: Escrow, amount_micro: int) -> None:
        self.amount_micro += amount_micro
        self.tasks += 1
        self.agents.add(escrow.agent_id)

    @property
    def agent_id(self) -> str | None:
        """The agent, if it is one."""
        return next(iter(self.agents)) if len(self.agents) == 1 else None


@dataclass(slots=True)
class _Share:
    """What one owner's escrows of a batch come to."""

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

    def taken_micro(self, purses: Sequence[int]) -> int:
        """What the bond really pays of the charge, out of what it has and gets back."""
        return min(self.charged.amount_micro, sum(purses) + self.returned.amount_micro)

    def bond_moves(self, purses: Sequence[int]) -> Mapping[int, int]:
        """How the bond's purses change; one that only notes what was charged changes by 0."""
        taken_micro = self.taken_micro(purses)
        change_micro = self.returned.amount_micro - taken_micro
        if change_micro < 0:
            return balances.taking(purses, -change_micro, contended=False) or {}
        return {balances.HOME: change_micro} if change_micro or taken_micro else {}

    def items(self, purses: Sequence[int] | None) -> int:
        """How many items a transaction writes for this owner, beside the escrows."""
        earned, charged, returned = self.earned.amount_micro, self.charged.amount_micro, self.returned.amount_micro
        moves = bool(charged or returned) if purses is None else len(self.bond_moves(purses))
        return 2 * bool(earned) + bool(charged) + bool(returned) + moves


@dataclass(frozen=True, slots=True)
class Batch:
    """Escrows that are credited in one transaction, in the order in which they come into the log.

    `gifts` are amounts by account, `bond_moves` changes of purses by bond, and `charged` what is taken of bonds.
    `bonds_left` says of each owner's bond that this touches what it has at least afterwards; None if it has more than
    before, or pays a judge: then it may have become enough again.
    """

    escrows: Sequence[Escrow]
    lines: Sequence[Line]
    gifts: Mapping[str, int]
    bond_moves: Mapping[str, Mapping[int, int]]
    charged: Mapping[str, int]
    bonds_left: Mapping[str, int | None]

    @property
    def written_off_micro(self) -> int:
        """What was due from bonds that did not have it."""
        return sum((line.due_micro or 0) + line.amount_micro for line in self.lines if line.kind is Kind.CHARGE)


def charged_owners(waiting: Iterable[Escrow]) -> Mapping[str, int]:
    """From whose bonds something is due for settled escrows, and how much."""
    due = {owner: share.charged.amount_micro for owner, share in _shares(waiting).items()}
    return {owner: due_micro for owner, due_micro in due.items() if due_micro}


def fitting(waiting: Sequence[Escrow], purses: Purses | None = None) -> Sequence[Escrow]:
    """As many of the first settled escrows as fit one transaction, and later one append to the log.

    Without the `purses` of the bonds that pay, it is taken that one purse of each pays all.
    """
    shares: dict[str, _Share] = {}
    agents: set[str] = set()
    costs: Counter[str] = Counter()
    for count, escrow in enumerate(waiting):
        agents.add(escrow.agent_id)
        share = shares.setdefault(escrow.owner, _Share())
        share.add(escrow)
        costs[escrow.owner] = share.items(None if purses is None else purses.get(escrow.owner, ()))
        # The platform's wallet and line, and the batch, go along.
        if count + 1 + costs.total() + 3 > TRANSACTION_ITEMS_MAX or len(agents) > LOGGED_AGENTS_MAX:
            return waiting[:count]
    return waiting


def batch(escrows: Sequence[Escrow], purses: Purses, *, platform_account: str, now_ms: int) -> Batch:
    """What crediting some settled escrows moves, all at once. `purses` are those of the bonds that are charged."""
    batch_id, fees = escrows[0].escrow_id, _Part()
    for escrow in escrows:
        fees.add(escrow, escrow.settlement.split.fee_micro if escrow.settlement else 0)
    gifts: Counter[str] = Counter()
    lines: list[Line] = []
    moves: dict[str, Mapping[int, int]] = {}
    charged: dict[str, int] = {}
    left: dict[str, int | None] = dict.fromkeys(_judging_owners(escrows))

    def note(account: str, kind: Kind, part: _Part, amount_micro: int, due_micro: int | None = None) -> None:
        if amount_micro or due_micro:
            lines.append(
                Line(account, kind, batch_id, now_ms, amount_micro, part.agent_id, part.tasks, due_micro=due_micro)
            )

    for owner, share in _shares(escrows).items():
        bond, has = bond_account(owner), purses.get(owner, ())
        taken_micro = share.taken_micro(has)
        note(owner, Kind.EARNINGS, share.earned, share.earned.amount_micro)
        note(bond, Kind.JUDGING, share.returned, share.returned.amount_micro)
        note(bond, Kind.CHARGE, share.charged, -taken_micro, share.charged.amount_micro or None)
        gifts[owner] += share.earned.amount_micro
        fees.amount_micro += taken_micro
        if changes := share.bond_moves(has):
            moves[bond], charged[bond] = changes, taken_micro
        if share.returned.amount_micro:
            left[owner] = None
        elif share.charged.amount_micro:
            left.setdefault(owner, sum(has) - taken_micro)
    note(platform_account, Kind.FEES, fees, fees.amount_micro)
    gifts[platform_account] += fees.amount_micro
    return Batch(escrows, lines, +gifts, moves, charged, left)


def publication(
    owner: str,
    reference: str,
    due_micro: int,
    purses: Sequence[int],
    *,
    agent_id: str,
    platform_account: str,
    now_ms: int,
) -> Batch:
    """What charging a bond for a publication moves: a batch without escrows, so its lines count no tasks."""
    bond, taken_micro = bond_account(owner), min(due_micro, sum(purses))
    lines = [Line(bond, Kind.CHARGE, reference, now_ms, -taken_micro, agent_id, due_micro=due_micro)]
    if taken_micro:
        lines.append(Line(platform_account, Kind.FEES, reference, now_ms, taken_micro, agent_id))
    return Batch(
        escrows=(),
        lines=lines,
        gifts={platform_account: taken_micro} if taken_micro else {},
        bond_moves={bond: balances.taking(purses, taken_micro, contended=False) or {}} if taken_micro else {},
        charged={bond: taken_micro},
        bonds_left={owner: sum(purses) - taken_micro},
    )


def _shares(escrows: Iterable[Escrow]) -> Mapping[str, _Share]:
    shares: dict[str, _Share] = {}
    for escrow in escrows:
        shares.setdefault(escrow.owner, _Share()).add(escrow)
    return shares


def _judging_owners(escrows: Iterable[Escrow]) -> Iterable[str]:
    """The owners whose bonds have paid for some of the escrows."""
    return {owner_of(escrow.payer) for escrow in escrows if is_bond(escrow.payer)}
