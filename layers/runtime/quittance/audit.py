"""The auditor's equations: the invariants of the ledger, recomputed from every item of the table. Pure.

I1 conservation, I2 no debt, I3 split, I4 fee, I6 states, I8 expiry, I10 and I11 balances, I12 receipts, I15 the log,
I16 standings, and the payouts of withdrawals. The code shares nothing with the writes that it audits but the items.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jwt

from quittance import log, reputation
from quittance.bond import bond_account, is_bond, owner_of
from quittance.certified import ProofError
from quittance.escrow import Escrow, State
from quittance.journal import Kind, Line, Payout, PayoutState
from quittance.limits import EXPIRY_REFUND_MS_MAX
from quittance.receipt import read_claims, verify
from quittance.reputation import Standing
from quittance.run import Fault

_BPS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account has available, or one of the purses that its credits lie in."""

    account: str
    available_micro: int
    charged_micro: int = 0
    """What was taken from a bond for failures."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An escrow; and in which batch, and where in it, the sweep has credited it."""

    escrow: Escrow
    batch: str | None
    place: int | None

    @property
    def swept(self) -> bool:
        """Whether the sweep has credited it."""
        return self.batch is not None


@dataclass(frozen=True, slots=True)
class Batch:
    """Escrows that were credited together, in order; and their place in the log, once they have one."""

    batch_id: str
    escrow_ids: tuple[str, ...]
    first: int | None


@dataclass(frozen=True, slots=True)
class LogHead:
    """How many receipts the log has, and of how many the newest checkpoint tells."""

    size: int = 0
    published: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """An agent's standing as the sweep left it."""

    agent_id: str
    standing: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item that does not even have the form of what it should be."""

    at: str
    reason: str


Item = Line | Payout | Balance | Entry | Batch | LogHead | Kept | Unreadable


@dataclass(frozen=True, slots=True)
class Difference:
    """What does not hold: which invariant, at which item or account, and the two sides."""

    invariant: str
    at: str
    expected: object
    found: object

    @property
    def gap(self) -> object:
        """How far apart the sides are: what stays the same while money moves on both."""
        if isinstance(self.expected, int) and isinstance(self.found, int):
            return self.found - self.expected
        return self.expected, self.found


@dataclass(slots=True)
class Audit:
    """The sums of the conservation equation, how many items there were, and every difference."""

    escrows: int = 0
    deposited_micro: int = 0
    withdrawn_micro: int = 0
    """Without what was returned because it could not be paid out."""
    payouts_waiting: int = 0
    waiting_micro: int = 0
    """Of what is withdrawn, how much is not known to be paid out."""
    oldest_payout_age_ms: int = 0
    available_micro: int = 0
    held_micro: int = 0
    uncredited_micro: int = 0
    charged_micro: int = 0
    written_off_micro: int = 0
    differences: list[Difference] = field(default_factory=list)
    log: LogHead = LogHead()
    leaves: list[bytes] = field(default_factory=list)
    """Hashes of the log's entries, in order."""
    standings: dict[str, Standing] = field(default_factory=dict)
    """Of each agent, folded from its receipts in the log's order."""

    def check(self, invariant: str, at: str, expected: object, found: object) -> None:
        """Records a difference unless both sides are equal."""
        if expected != found:
            self.differences.append(Difference(invariant, at, expected, found))


def audit(items: Iterable[Item], *, jwks: Mapping[str, Any], platform_account: str, now_ms: int) -> Audit:
    """Recomputes every balance and checks every escrow."""
    result = Audit()
    expected: Counter[str] = Counter()
    available: Counter[str] = Counter()
    credited: Counter[tuple[str, Kind]] = Counter()
    journalled: Counter[tuple[str, Kind]] = Counter()
    due: Counter[str] = Counter()
    charged: Counter[str] = Counter()
    returned: Counter[tuple[str, str]] = Counter()
    logged = _Logged()
    for item in items:
        match item:
            case Line(account, kind):
                expected[account] += item.amount_micro
                journalled[account, kind] += item.amount_micro
                _note(result, item, due, charged, returned)
            case Payout():
                _check_payout(result, item, returned, now_ms)
            case Balance(account, available_micro):
                available[account] += available_micro
                charged[account] -= item.charged_micro
                result.available_micro += available_micro
                result.check("I2", account, expected=True, found=available_micro >= 0)
            case Entry(escrow):
                result.escrows += 1
                _check_escrow(result, escrow, swept=item.swept, jwks=jwks, now_ms=now_ms)
                _post(result, expected, escrow, swept=item.swept)
                logged.add(item)
                if item.swept:
                    _credit(credited, escrow, platform_account=platform_account)
            case Batch() | LogHead() | Kept():
                logged.add(item)
            case Unreadable(at, reason):
                result.check("form", at, "readable", reason)
    _check_balances(result, expected, available)
    for account in sorted(charged):
        result.check("I10", f"{account} charged", 0, charged[account])
    _check_returned(result, returned)
    _check_journal(result, credited, journalled, due)
    _check_log(result, logged)
    outside = result.deposited_micro - result.withdrawn_micro
    result.check("I1", "all", outside, result.available_micro + result.held_micro + result.uncredited_micro)
    return result


@dataclass(slots=True)
class _Logged:
    """What the log and the standings are recomputed from."""

    entries: dict[str, Entry] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    head: LogHead = LogHead()

    def add(self, item: Entry | Batch | LogHead | Kept) -> None:
        match item:
            case Entry(escrow):
                self.entries[escrow.escrow_id] = item
            case Batch():
                self.batches.append(item)
            case LogHead():
                self.head = item
            case Kept(agent_id, standing):
                self.kept[agent_id] = standing


def _check_log(result: Audit, logged: _Logged) -> None:
    """I15: each credited escrow has one place in one batch, each logged batch its own in the log. I16: standings."""
    result.log = logged.head
    places = {
        escrow_id: (batch.batch_id, place)
        for batch in logged.batches
        for place, escrow_id in enumerate(batch.escrow_ids)
    }
    result.check("I15", "batches", len(places), sum(len(batch.escrow_ids) for batch in logged.batches))
    for escrow_id, entry in logged.entries.items():
        result.check("I15", escrow_id, places.get(escrow_id, (None, None)), (entry.batch, entry.place))
    for batch in sorted((batch for batch in logged.batches if batch.first is not None), key=lambda b: b.first or 0):
        result.check("I15", batch.batch_id, len(result.leaves), batch.first)
        _append(result, batch, logged)
    result.check("I15", "LOG", len(result.leaves), result.log.size)
    for agent_id in sorted(result.standings.keys() | logged.kept.keys()):
        due = reputation.serialise(result.standings.get(agent_id, Standing()))
        result.check("I16", agent_id, due, logged.kept.get(agent_id))


def _append(result: Audit, batch: Batch, logged: _Logged) -> None:
    receipts = []
    for escrow_id in batch.escrow_ids:
        entry = logged.entries.get(escrow_id)
        settlement = entry.escrow.settlement if entry else None
        result.check("I15", escrow_id, expected=True, found=settlement is not None)
        receipts.append(settlement.receipt if settlement else "")
    result.leaves += [log.leaf_hash(receipt.encode()) for receipt in receipts]
    entries: dict[str, list[reputation.Entry]] = defaultdict(list)
    try:
        for receipt in receipts:
            stated = reputation.entry(read_claims(receipt))
            entries[stated.agent].append(stated)
    except (KeyError, TypeError, ValueError, jwt.InvalidTokenError) as exc:
        result.check("I16", batch.batch_id, "receipts", repr(exc))
        return
    for agent_id, new in entries.items():
        result.standings[agent_id] = reputation.fold(result.standings.get(agent_id, Standing()), new)


def _note(
    result: Audit, line: Line, due: Counter[str], charged: Counter[str], returned: Counter[tuple[str, str]]
) -> None:
    """Of a charge: a bond pays no more than is due, and its purses note what they have paid. Of a return: how much."""
    if line.kind is Kind.RETURNED:
        returned[line.account, line.reference] += line.amount_micro
    if line.kind is not Kind.CHARGE:
        return
    due_micro, taken_micro = line.due_micro or 0, -line.amount_micro
    result.check("I10", f"{line.account} {line.reference}", expected=True, found=0 <= taken_micro <= due_micro)
    if line.tasks:  # a publication's is known to the registry alone
        due[line.account] += due_micro
    charged[line.account] += taken_micro
    result.charged_micro += taken_micro
    result.written_off_micro += due_micro - taken_micro


def _credit(credited: Counter[tuple[str, Kind]], escrow: Escrow, *, platform_account: str) -> None:
    """What the sweep must have written to the journals for an escrow that it has credited."""
    if (settlement := escrow.settlement) is None:
        return
    returned_micro = min(settlement.judging_micro, settlement.split.paid_micro)
    credited[escrow.owner, Kind.EARNINGS] += settlement.split.paid_micro - returned_micro
    credited[bond_account(escrow.owner), Kind.JUDGING] += returned_micro
    credited[bond_account(escrow.owner), Kind.CHARGE] += settlement.charge_micro
    credited[platform_account, Kind.FEES] += settlement.split.fee_micro


def _check_balances(result: Audit, expected: Counter[str], available: Counter[str]) -> None:
    for account in sorted(expected.keys() | available.keys()):
        result.check("I10/I11", account, expected[account], available[account])


def _check_returned(result: Audit, returned: Counter[tuple[str, str]]) -> None:
    for (account, withdrawal_id), difference_micro in sorted(returned.items()):
        result.check("payouts", f"{account} {withdrawal_id}", 0, difference_micro)


def _check_payout(result: Audit, payout: Payout, returned: Counter[tuple[str, str]], now_ms: int) -> None:
    """What failed to be paid out was returned, to the same account and in full, and nothing else was.

    A payout that waits is in the index, where the operator finds it; one that is decided is not, and says by whom and
    when. A withdrawal of before has no state and is in no index: it waits, and `returned` learns nothing of it.
    """
    at = f"{payout.account} {payout.withdrawal_id}"
    waits = payout.state is PayoutState.REQUESTED
    if payout.state is PayoutState.FAILED:
        returned[payout.account, payout.withdrawal_id] -= payout.amount_micro
    if waits:
        result.payouts_waiting += 1
        result.waiting_micro += payout.amount_micro
        result.oldest_payout_age_ms = max(result.oldest_payout_age_ms, now_ms - payout.requested_ms)
    decided = (payout.decided_ms is not None, payout.decided_by is not None)
    result.check("payouts", at, (not waits, not waits), decided)
    result.check("payouts", at, waits and payout.recorded, payout.waits)


def _check_journal(
    result: Audit, credited: Counter[tuple[str, Kind]], journalled: Counter[tuple[str, Kind]], due: Counter[str]
) -> None:
    """What the journal says of owners, bonds and platform is what the swept escrows come to.

    A charge is `due` in full and taken as far as the bond had it; the platform's fees have what was taken.
    """
    for account, kind in sorted(credited.keys() | journalled.keys()):
        at, noted_micro = f"{account} {kind}", journalled[account, kind]
        if kind in {Kind.EARNINGS, Kind.JUDGING}:
            result.check("I10", at, credited[account, kind], noted_micro)
        elif kind is Kind.FEES:
            result.check("I10", at, credited[account, kind] + result.charged_micro, noted_micro)
        elif kind is Kind.CHARGE:
            result.check("I10", at, credited[account, kind], due[account])
        elif kind is Kind.BOND and not is_bond(account):
            result.check("I10", at, -noted_micro, journalled[bond_account(account), kind])
        elif kind is Kind.BOND:
            result.check("I10", at, -noted_micro, journalled[owner_of(account), kind])
        elif kind is Kind.DEPOSIT:
            result.deposited_micro += noted_micro
        else:
            result.withdrawn_micro -= noted_micro


def _post(result: Audit, expected: Counter[str], escrow: Escrow, *, swept: bool) -> None:
    """What an escrow has moved out of its payer's account, and what still waits for the sweep."""
    expected[escrow.payer] -= escrow.budget_micro
    if escrow.settlement is None:
        result.held_micro += escrow.budget_micro
        return
    split = escrow.settlement.split
    expected[escrow.payer] += split.refunded_micro
    if not swept:
        result.uncredited_micro += split.paid_micro + split.fee_micro


def _check_escrow(result: Audit, escrow: Escrow, *, swept: bool, jwks: Mapping[str, Any], now_ms: int) -> None:
    at = escrow.escrow_id
    settlement = escrow.settlement
    if settlement is None:
        result.check("I6", at, expected=False, found=swept)
        result.check("I8", at, expected=True, found=now_ms <= escrow.expires_ms + EXPIRY_REFUND_MS_MAX)
        return
    split, used_micro = settlement.split, settlement.split.paid_micro + settlement.split.fee_micro
    result.check("I3", at, escrow.budget_micro, used_micro + split.refunded_micro)
    price_micro = used_micro - settlement.compute_micro
    result.check("I4", at, price_micro * escrow.fee_bps // _BPS, split.fee_micro - settlement.compute_micro)
    if settlement.state is State.EXPIRED or settlement.fault in {Fault.AGENT, Fault.PLATFORM}:
        result.check("I3", at, escrow.budget_micro, split.refunded_micro)
    in_time = settlement.settled_ms < escrow.expires_ms
    result.check("I8", at, settlement.state is not State.EXPIRED, in_time)
    try:
        stated = verify(settlement.receipt, jwks)
    except ProofError as exc:
        result.check("I12", at, "a valid receipt", str(exc))
        return
    written = {
        "eid": escrow.escrow_id,
        "user": escrow.payer,
        "owner": escrow.owner,
        "agent": escrow.agent_id,
        "state": settlement.state,
        "outcome": settlement.outcome,
        "budget": str(escrow.budget_micro),
        "paid": str(split.paid_micro),
        "fee": str(split.fee_micro),
        "refunded": str(split.refunded_micro),
        "settled_at": settlement.settled_ms,
    }
    result.check("I12", at, written, {name: stated.get(name) for name in written})
