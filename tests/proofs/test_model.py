"""Random programs of all operations, by several actors, on the real store and on a pure model of the ledger.

The store uses the in-memory DynamoDB, which is exact (test_memory.py) and fast enough for many programs.

The actors keep what they have read, as crashed and late runners do: stale fences, stale escrows, batches that another
sweep has credited. After every step both sides must agree on every balance, and the auditor must find no difference.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from quittance.errors import InsufficientFundsError, MovementConflictError
from quittance.ledger import escrow as escrows
from quittance.ledger.balances import bond_account
from quittance.ledger.escrow import Escrow, State
from quittance.ledger.journal import PayoutState
from quittance.ledger.pricing import ComputePrices
from quittance.run import Limits, Meter, Outcome, Run
from quittance.usecases import audit
from tests.depth import LONG
from tests.proof import receipts
from tests.proofs.memory import Memory
from tests.proofs.world import START_MS, World, append_to_log

USERS = st.sampled_from(["alice", "bob"])
ALL_OWNERS = ("olga", "alice", "quittance:platform")
OWNERS = st.sampled_from(ALL_OWNERS)
AMOUNTS = st.integers(1, 3_000_000)
BUDGETS = st.integers(1, 300_000)
LEASE_MS, LIFE_MS = 1_000, 3_000
PROGRAMS = 5_000 if LONG else 300
COMPUTE, LIMITS = ComputePrices(run_micro=30_011), Limits(fuel=9, memory_bytes=1, timeout_ms=1_000)
OUTCOMES = st.sampled_from([Outcome.SUCCEEDED, Outcome.SUCCEEDED, Outcome.EXIT_CODE, Outcome.WORKER_LOST])


@dataclass
class Held:
    """The model's escrow: the rules of the design, without storage."""

    payer: str
    owner: str
    budget: int
    fence: int
    lease: int
    expires: int
    state: State = State.FUNDED
    paid: int = 0
    fee: int = 0
    refunded: int = 0
    charge: int = 0
    swept: bool = False


class LedgerMachine(RuleBasedStateMachine):
    seen: Bundle[Escrow] = Bundle("seen")
    batches: Bundle[list[str]] = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.now = START_MS
        self.world = World(Memory(), now_ms=lambda: self.now, left_ms=lambda: 30_000)
        self.key = self.world.keys.signing_key(now_s=START_MS // 1_000)
        self.balances: dict[str, int] = {}
        self.held: dict[str, Held] = {}
        self.moved: dict[tuple[str, str, str], int] = {}
        self.decided: dict[tuple[str, str], PayoutState] = {}
        self.unlogged: list[tuple[str, int]] = []
        self.written_off = self.written_off_before = 0
        for account in ("alice", "bob"):
            self.deposit(account, 0, 1_000_000)

    def add(self, account: str, amount: int) -> None:
        self.balances[account] = self.balances.get(account, 0) + amount

    @rule(account=USERS, number=st.integers(0, 3), amount=AMOUNTS)
    def deposit(self, account: str, number: int, amount: int) -> None:
        recorded = self.moved.get(("in", account, str(number)))
        if recorded is not None and recorded != amount:
            with pytest.raises(MovementConflictError):
                self.world.ledger.deposit(account, str(number), amount, now_ms=self.now)
            return
        self.world.ledger.deposit(account, str(number), amount, now_ms=self.now)
        if recorded is None:
            self.moved["in", account, str(number)] = amount
            self.add(account, amount)

    @rule(account=USERS, number=st.integers(0, 3), amount=AMOUNTS)
    def withdraw(self, account: str, number: int, amount: int) -> None:
        recorded = self.moved.get(("out", account, str(number)))
        if recorded is not None and recorded != amount:
            with pytest.raises(MovementConflictError):
                self.world.ledger.withdraw(account, str(number), amount, now_ms=self.now)
        elif recorded is None and self.balances.get(account, 0) < amount:
            with pytest.raises(InsufficientFundsError):
                self.world.ledger.withdraw(account, str(number), amount, now_ms=self.now)
        else:
            self.world.ledger.withdraw(account, str(number), amount, now_ms=self.now)
            if recorded is None:
                self.moved["out", account, str(number)] = amount
                self.add(account, -amount)

    @rule(account=USERS, number=st.integers(0, 3), state=st.sampled_from((PayoutState.PAID, PayoutState.FAILED)))
    def decide_payout(self, account: str, number: int, state: PayoutState) -> None:
        payout = self.world.ledger.payout(account, str(number))
        amount = self.moved.get(("out", account, str(number)))
        assert (payout and payout.amount_micro) == amount
        if payout is None or amount is None:
            return
        stood = self.world.ledger.decide_payout(payout, state, by="bank", now_ms=self.now)
        due = self.decided.setdefault((account, str(number)), state)
        assert stood.state == due
        if payout.state is PayoutState.REQUESTED and due is PayoutState.FAILED:
            self.add(account, amount)

    @rule(owner=OWNERS, number=st.integers(0, 3), amount=st.one_of(AMOUNTS, AMOUNTS.map(lambda amount: -amount)))
    def move_bond(self, owner: str, number: int, amount: int) -> None:
        """Moves credits into a bond or out of it, possibly as a repeat of an earlier movement."""
        recorded = self.moved.get(("bond", owner, str(number)))
        source = owner if amount > 0 else bond_account(owner)
        if recorded is not None and recorded != amount:
            with pytest.raises(MovementConflictError):
                self.world.ledger.move_bond(owner, str(number), amount, now_ms=self.now)
        elif recorded is None and self.balances.get(source, 0) < abs(amount):
            with pytest.raises(InsufficientFundsError):
                self.world.ledger.move_bond(owner, str(number), amount, now_ms=self.now)
        else:
            self.world.ledger.move_bond(owner, str(number), amount, now_ms=self.now)
            if recorded is None:
                self.moved["bond", owner, str(number)] = amount
                self.add(owner, -amount)
                self.add(bond_account(owner), amount)

    @rule(target=seen, payer=USERS, owner=OWNERS, number=st.integers(0, 2), budget=BUDGETS, price=BUDGETS)
    def fund(self, payer: str, owner: str, number: int, budget: int, price: int) -> Any:
        name = escrows.escrow_id(payer, str(number))
        wanted = Escrow(
            escrow_id=name, payer=payer, task_id=str(number), request_sha256="r", agent_id=f"agt_{owner}",
            owner=owner, module_sha256="bb" * 32, input_sha256="cc" * 32,
            tariff=f'{{"type":"flat","price":"0.{price % 10**6:06}"}}', budget_micro=budget, fee_bps=250,
            timeout_ms=1_000, runner=f"runner-{self.now}", fence=1, funded_ms=self.now,
            lease_ms=self.now + LEASE_MS, expires_ms=self.now + LIFE_MS, compute=COMPUTE, own_limits=LIMITS,
        )  # fmt: skip
        if name not in self.held and self.balances.get(payer, 0) < budget:
            with pytest.raises(InsufficientFundsError):
                self.world.ledger.fund(wanted)
            return multiple()
        standing = self.world.ledger.fund(wanted)
        if name not in self.held:
            self.held[name] = Held(payer, owner, budget, 1, wanted.lease_ms, wanted.expires_ms)
            self.add(payer, -budget)
            assert standing == wanted
        self.agree(standing)
        return standing

    @rule(target=seen, stale=seen)
    def take_over(self, stale: Escrow) -> Escrow:
        held = self.held[stale.escrow_id]
        allowed = held.state is State.FUNDED and held.fence == stale.fence and held.lease <= self.now < held.expires
        lease = self.now + LEASE_MS
        standing = self.world.ledger.take_over(stale, runner=f"taker-{self.now}", now_ms=self.now, lease_ms=lease)
        if allowed:
            held.fence, held.lease = held.fence + 1, lease
        self.agree(standing)
        return standing

    @rule(attempt=seen, outcome=OUTCOMES)
    def settle(self, attempt: Escrow, outcome: Outcome) -> None:
        held = self.held[attempt.escrow_id]
        allowed = held.state is State.FUNDED and held.fence == attempt.fence and self.now < held.expires
        bare = replace(attempt, settlement=None)
        settlement = escrows.decide(bare, Run(outcome, "", Meter(wall_ms=1)), now_ms=self.now)
        if outcome is Outcome.SUCCEEDED:
            settlement = replace(settlement, output=escrows.StoredBytes(hashlib.sha256(b"").hexdigest(), 0, b""))
        standing = self.world.ledger.settle(replace(bare, settlement=self.signed(bare, settlement)))
        if allowed:
            split = settlement.split
            held.state = settlement.state
            held.paid, held.fee, held.refunded = split.paid_micro, split.fee_micro, split.refunded_micro
            held.charge = settlement.charge_micro
            self.add(held.payer, held.refunded)
        self.agree(standing)

    @rule(attempt=seen)
    def expire(self, attempt: Escrow) -> None:
        held = self.held[attempt.escrow_id]
        allowed = held.state is State.FUNDED and self.now >= held.expires
        bare = replace(attempt, settlement=None)
        standing = self.world.ledger.expire(bare, self.signed(bare, escrows.expire(bare, now_ms=self.now)))
        if allowed:
            held.state, held.refunded = State.EXPIRED, held.budget
            self.add(held.payer, held.budget)
            # An expiry does not need to know the newest runner of the escrow.
            standing = replace(standing, fence=held.fence, lease_ms=held.lease)
        self.agree(standing)

    @rule(target=batches)
    def look_for_credits(self) -> Any:
        return multiple(*self.world.ledger.settled())

    @rule(batch=batches)
    def credit(self, batch: list[str]) -> None:
        """Credits escrows as a sweep that may be late: several sweeps may credit the same ones."""
        fresh = sorted((name for name in batch if not self.held[name].swept), key=lambda name: self.held[name].owner)
        before = {owner: self.balances.get(bond_account(owner), 0) for owner in ALL_OWNERS}
        credited = self.world.ledger.credit(batch, now_ms=self.now)
        assert credited.escrows == len(fresh)
        if fresh:
            self.unlogged.append((fresh[0], len(fresh)))
        self.credit_held(fresh, before)
        assert credited.written_off_micro == self.written_off - self.written_off_before
        self.written_off_before = self.written_off

    def credit_held(self, names: list[str], bonds: Mapping[str, int]) -> None:
        """What a sweep of these escrows moves; `bonds` are those of all owners before it."""
        due: Counter[str] = Counter()
        for name in names:
            held = self.held[name]
            held.swept = True
            due[held.owner] += held.charge
            self.add(held.owner, held.paid)
            self.add("quittance:platform", held.fee)
        for owner, micro in due.items():
            taken = min(micro, bonds[owner])
            self.add(bond_account(owner), -taken)
            self.add("quittance:platform", taken)
            self.written_off += micro - taken

    @rule()
    def append(self) -> None:
        """Appends the batches that the index lists, once."""
        shown = [name for names in self.world.ledger.log.waiting() for name in names]
        assert sorted(shown) == sorted(name for name, _ in self.unlogged)
        for name in shown[:1] * 2:
            size = self.world.ledger.log.head().size
            count = dict(self.unlogged).get(name, 0)
            assert append_to_log(self.world.ledger, name) == count
            assert self.world.ledger.log.head().size == size + count
            self.unlogged = [batch for batch in self.unlogged if batch[0] != name]

    @rule(step=st.sampled_from([1, LEASE_MS - 1, LEASE_MS, LEASE_MS, LIFE_MS - 1]))
    def time_passes(self, step: int) -> None:
        self.now += step

    @rule(old=consumes(seen))
    def forget(self, old: Escrow) -> None:
        """A runner crashes and loses what it has read."""

    @invariant()
    def balances_agree(self) -> None:
        for account in ("alice", "bob", "olga", "quittance:platform", *map(bond_account, ALL_OWNERS)):
            assert self.world.ledger.available_micro(account) == self.balances.get(account, 0), account
            settled = [held for held in self.held.values() if held.state is not State.FUNDED]
            mine = [held for held in self.held.values() if held.state is State.FUNDED and held.payer == account]
            assert self.world.ledger.held_micro(account) == sum(held.budget for held in mine)
            earned = [held for held in self.held.values() if held.owner == account and not held.swept]
            assert self.world.ledger.earned_micro(account) == sum(held.paid for held in earned)
            is_open = any(held.owner == account and not held.swept for held in settled)
            assert self.world.ledger.has_open_work(account) == is_open

    def agree(self, standing: Escrow) -> None:
        held = self.held[standing.escrow_id]
        assert (standing.state, standing.fence, standing.lease_ms) == (held.state, held.fence, held.lease)
        if standing.settlement:
            split = standing.settlement.split
            assert (split.paid_micro, split.fee_micro, split.refunded_micro) == (held.paid, held.fee, held.refunded)

    def signed(self, escrow: Escrow, settlement: escrows.Settlement) -> escrows.Settlement:
        ran = settlement.outcome is not Outcome.EXPIRED
        run = Run(settlement.outcome, settlement.message, Meter(), limits=LIMITS if ran else None)
        named = {"engine": "engine", "config_sha256": "c0" * 32} if ran else {"engine": "", "config_sha256": ""}
        stated = receipts.claims_of(escrow, settlement, issuer="t", run=run, **named)
        return replace(settlement, receipt=receipts.sign(stated, self.key))

    def teardown(self) -> None:
        overdue = {found.at for found in audit.audit(self.world).differences if found.invariant == "I8"}
        stuck = {f"ESC#{name}" for name, held in self.held.items() if not held.swept}
        assert overdue <= stuck
        assert [found for found in audit.audit(self.world).differences if found.at not in overdue] == []


def test_random_programs_agree_with_the_model(record_property: Callable[[str, str], None]) -> None:
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=PROGRAMS,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    record_property("figure", f"{PROGRAMS:,} random programs agree with the model")
