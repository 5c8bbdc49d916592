"""Every operation on an escrow in every state, with every fence, at every time, against a pure model, exhaustively.

The model computes from the rules what a write may do. The ledger runs on the in-memory DynamoDB (see test_memory.py).
The whole table is compared after each step, so a rejected write must change nothing.
"""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from quittance.errors import InsufficientFundsError, MovementConflictError
from quittance.ledger import escrow as escrows
from quittance.ledger.escrow import Escrow, Settlement, StoredBytes
from quittance.ledger.journal import PayoutState
from quittance.limits import PARTY_SHARDS
from quittance.proof.log import LogHead
from quittance.run import Limits, Meter, Outcome, Run
from quittance.sandbox import CONFIG_DIGEST, ENGINE_VERSION
from quittance.usecases import audit, settle
from tests.proof import receipts
from tests.proofs.checks import violations
from tests.proofs.memory import Memory
from tests.proofs.world import FEE_BPS, FLAT, FLAT_MICRO, START_MS, World, append_to_log

LEASE, EXPIRY = START_MS + 1_000, START_MS + 5_000
BUDGET = 2 * FLAT_MICRO
DEPOSIT = 5 * FLAT_MICRO
FENCE = 3
TIMES = (START_MS, LEASE - 1, LEASE, LEASE + 1, EXPIRY - 1, EXPIRY, EXPIRY + 1)
FENCES = (FENCE - 1, FENCE, FENCE + 1)
STATES = ("funded", "partly", "fully", "refunded", "expired", "partly swept", "refunded swept", "expired swept")
DONE, FAILED = Run(Outcome.SUCCEEDED, "", Meter(fuel=1, wall_ms=5)), Run(Outcome.EXIT_CODE, "", Meter(wall_ms=5))
LIMITS = Limits(fuel=10**6, memory_bytes=1 << 20, timeout_ms=1_000)
FEE = FLAT_MICRO * FEE_BPS // 10_000
SPLITS = {"partly": (FLAT_MICRO - FEE, FEE, FLAT_MICRO), "refunded": (0, 0, BUDGET), "expired": (0, 0, BUDGET)}


@dataclass
class Case:
    """A ledger with one escrow in one state, with the fence FENCE."""

    memory: Memory
    world: World
    escrow: Escrow
    state: str

    @property
    def budget(self) -> int:
        return self.escrow.budget_micro

    def balances(self) -> dict[str, int]:
        names = ("alice", "oskar", "quittance:platform")
        return {name: self.world.ledger.available_micro(name) for name in names}


def hold(*, task_id: str = "t", budget: int = BUDGET, **changes: Any) -> Escrow:
    escrow = Escrow(
        escrow_id=escrows.escrow_id("alice", task_id),
        payer="alice",
        task_id=task_id,
        request_sha256="r",
        agent_id=FLAT,
        owner="oskar",
        module_sha256="bb" * 32,
        input_sha256="cc" * 32,
        tariff=f'{{"type":"flat","price":"0.{FLAT_MICRO:06}"}}',
        budget_micro=budget,
        fee_bps=FEE_BPS,
        timeout_ms=1_000,
        runner="runner",
        fence=FENCE,
        funded_ms=START_MS,
        lease_ms=LEASE,
        expires_ms=EXPIRY,
    )
    return replace(escrow, **changes)


def signed(case_world: World, escrow: Escrow, settlement: Settlement) -> Settlement:
    """The settlement with a receipt of unchecked claims: no run of the platform makes some of these settlements."""
    if settlement.outcome is Outcome.SUCCEEDED:
        settlement = replace(settlement, output=StoredBytes(hashlib.sha256(b"").hexdigest(), 0, b""))
    if settlement.outcome is Outcome.EXPIRED:
        return settle.signed_expiry(case_world, escrow, settlement)
    claims = receipts.claims_of(
        escrow,
        settlement,
        issuer=case_world.settings.receipt_issuer,
        run=Run(settlement.outcome, settlement.message, Meter(wall_ms=5), limits=LIMITS),
        engine=ENGINE_VERSION,
        config_sha256=CONFIG_DIGEST,
    )
    key = case_world.keys.signing_key(now_s=settlement.settled_ms // 1_000)
    return replace(settlement, receipt=receipts.sign(claims, key))


def done(world: World, escrow: Escrow, run: Run | None, now_ms: int) -> Escrow:
    return replace(escrow, settlement=ended(world, escrow, run, now_ms))


def ended(world: World, escrow: Escrow, run: Run | None, now_ms: int) -> Settlement:
    """The settlement of a run, or of an expiry for None."""
    plain = escrows.expire(escrow, now_ms=now_ms) if run is None else escrows.decide(escrow, run, now_ms=now_ms)
    return signed(world, escrow, plain)


def case(state: str) -> Case:
    """A ledger brought into this state by its own writes."""
    memory = Memory()
    world = World(memory, now_ms=lambda: EXPIRY + 1_000, left_ms=lambda: 10_000)
    world.ledger.deposit("alice", "start", DEPOSIT, now_ms=START_MS)
    escrow = world.ledger.fund(hold(budget=FLAT_MICRO if state == "fully" else BUDGET))
    first = state.split(maxsplit=1)[0]
    if first in ("partly", "fully"):
        world.ledger.settle(done(world, escrow, DONE, START_MS + 1))
    elif first == "refunded":
        world.ledger.settle(done(world, escrow, FAILED, START_MS + 1))
    elif first == "expired":
        world.ledger.expire(escrow, ended(world, escrow, None, EXPIRY))
    if state.endswith("swept"):
        (batch,) = world.ledger.settled()
        assert world.ledger.credit(batch, now_ms=EXPIRY).escrows == 1
        assert append_to_log(world.ledger) == 1
    return Case(memory, world, escrow, state)


def refused(this: Case, operate: Callable[[], Escrow]) -> None:
    """Checks that the operation changes nothing and returns the stored escrow."""
    before, stored = dict(this.memory.items), this.world.ledger.find(this.escrow.escrow_id)
    assert operate() == stored
    assert this.memory.items == before


def left(this: Case, settlement: Settlement, split: tuple[int, int, int], funds: int) -> None:
    """Checks that the escrow is stored with this settlement, and that the payer was refunded once."""
    stored = this.world.ledger.find(this.escrow.escrow_id)
    assert stored is not None
    assert stored.settlement == settlement
    parts = settlement.split
    assert (parts.paid_micro, parts.fee_micro, parts.refunded_micro) == split
    assert this.balances()["alice"] == funds + split[2]
    item = this.memory.items[f"ESC#{this.escrow.escrow_id}"]
    assert item["work"] == {"S": "SETTLED#0"}
    shard = zlib.crc32(stored.escrow_id.encode()) % PARTY_SHARDS
    assert item["party"] == {"S": f"EARNED#oskar#{shard}"}
    assert item["work_at"] == {"N": str(settlement.settled_ms)}


def test_each_state_is_consistent() -> None:
    for state in STATES:
        this = case(state)
        name = state.split()[0]
        paid, fee, refunded_micro = SPLITS.get(name, (FLAT_MICRO - FEE, FEE, 0) if name == "fully" else (0, 0, 0))
        swept = state.endswith("swept")
        assert this.balances() == {
            "alice": DEPOSIT - this.budget + refunded_micro,
            "oskar": paid * swept,
            "quittance:platform": fee * swept,
        }
        if swept:
            assert violations_of_form(this) == []


def violations_of_form(this: Case) -> list[str]:
    found = violations(this.world, this.memory.items.values())
    return [line for line in found if ", due was Due" not in line]  # the runs here are not those of `expected`


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("run", [DONE, FAILED], ids=["done", "failed"])
def test_settle(state: str, run: Run) -> None:
    """I4 to I8."""
    for fence, now_ms in product(FENCES, TIMES):
        this = case(state)
        attempt = replace(this.escrow, fence=fence)
        settlement = ended(this.world, attempt, run, now_ms)
        funds = this.balances()["alice"]
        if state == "funded" and fence == FENCE and now_ms < EXPIRY:
            this.world.ledger.settle(replace(attempt, settlement=settlement))
            left(this, settlement, SPLITS["partly" if run is DONE else "refunded"], funds)
        else:
            refused(this, lambda: this.world.ledger.settle(replace(attempt, settlement=settlement)))  # noqa: B023 - called here


@pytest.mark.parametrize("fence", FENCES)
def test_settle_in_full(fence: int) -> None:
    """The only settling write without a transaction has the same conditions."""
    for now_ms in TIMES:
        this = case("funded")
        memory = Memory()
        this = Case(memory, World(memory, now_ms=lambda: EXPIRY), hold(budget=FLAT_MICRO), "funded")
        this.world.ledger.deposit("alice", "start", DEPOSIT, now_ms=START_MS)
        this.world.ledger.fund(this.escrow)
        attempt = replace(this.escrow, fence=fence)
        settlement = ended(this.world, attempt, DONE, now_ms)
        if fence == FENCE and now_ms < EXPIRY:
            this.world.ledger.settle(replace(attempt, settlement=settlement))
            left(this, settlement, (FLAT_MICRO - FEE, FEE, 0), DEPOSIT - FLAT_MICRO)
        else:
            refused(this, lambda: this.world.ledger.settle(replace(attempt, settlement=settlement)))  # noqa: B023 - called here


@pytest.mark.parametrize("state", STATES)
def test_expire(state: str) -> None:
    """I8: whatever the fence."""
    for fence, now_ms in product(FENCES, TIMES):
        this = case(state)
        attempt = replace(this.escrow, fence=fence)
        settlement = ended(this.world, attempt, None, now_ms)
        funds = this.balances()["alice"]
        if state == "funded" and now_ms >= EXPIRY:
            this.world.ledger.expire(attempt, settlement)
            left(this, settlement, (0, 0, BUDGET), funds)
        else:
            refused(this, lambda: this.world.ledger.expire(attempt, settlement))  # noqa: B023 - called here


@pytest.mark.parametrize("state", STATES)
def test_take_over(state: str) -> None:
    """I7: the fence increases by one, if the newest one was read, between lease and expiry."""
    for fence, now_ms in product(FENCES, TIMES):
        this = case(state)
        stale = replace(this.escrow, fence=fence)
        before = dict(this.memory.items)

        def take(stale: Escrow = stale, now_ms: int = now_ms, this: Case = this) -> Escrow:
            return this.world.ledger.take_over(stale, runner="taker", now_ms=now_ms, lease_ms=now_ms + 500)

        if state == "funded" and fence == FENCE and LEASE <= now_ms < EXPIRY:
            wanted = replace(this.escrow, runner="taker", fence=FENCE + 1, lease_ms=now_ms + 500)
            assert take() == wanted
            assert this.world.ledger.find(this.escrow.escrow_id) == wanted
            before.pop(pk := f"ESC#{this.escrow.escrow_id}")
            assert {name: item for name, item in this.memory.items.items() if name != pk} == before
        else:
            refused(this, take)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("funds", [0, BUDGET - 1, BUDGET, BUDGET + 1])
def test_fund_again(state: str, funds: int) -> None:
    """I9: whatever the balance and the request, the stored escrow is returned."""
    for request, runner in product(("r", "other"), ("runner", "other")):
        this = case(state)
        have = this.balances()["alice"]
        if have > funds:
            this.world.ledger.withdraw("alice", "w", have - funds, now_ms=START_MS)
        elif have < funds:
            this.world.ledger.deposit("alice", "more", funds - have, now_ms=START_MS)
        again = replace(this.escrow, request_sha256=request, runner=runner, fence=1)
        refused(this, lambda: this.world.ledger.fund(again))  # noqa: B023 - called here


@pytest.mark.parametrize("funds", [None, 0, 1, BUDGET - 1, BUDGET, BUDGET + 1])
def test_fund(funds: int | None) -> None:
    """I2."""
    memory = Memory()
    world = World(memory, now_ms=lambda: START_MS)
    if funds is not None:
        world.ledger.deposit("alice", "start", funds, now_ms=START_MS)
    before = dict(memory.items)
    if funds is not None and funds >= BUDGET:
        assert world.ledger.fund(hold()) == hold() == world.ledger.find(hold().escrow_id)
        assert world.ledger.available_micro("alice") == funds - BUDGET
        assert [*world.ledger.overdue(now_ms=EXPIRY)] == [[hold().escrow_id]]
        assert [*world.ledger.overdue(now_ms=EXPIRY - 1)] == []
    else:
        with pytest.raises(InsufficientFundsError):
            world.ledger.fund(hold())
        assert memory.items == before


@pytest.mark.parametrize("state", STATES)
def test_credit(state: str) -> None:
    """I10: a settled escrow is credited once, whatever a sweep has read in the index."""
    this = case(state)
    before, balances = dict(this.memory.items), this.balances()
    credited = this.world.ledger.credit([this.escrow.escrow_id], now_ms=EXPIRY + 1).escrows
    if state == "funded" or state.endswith("swept"):
        assert credited == 0
        assert this.memory.items == before
        return
    assert credited == 1
    paid, fee, _ = SPLITS.get(state, (FLAT_MICRO - FEE, FEE, 0))
    assert this.balances() == {"alice": balances["alice"], "oskar": paid, "quittance:platform": fee}
    item = this.memory.items[f"ESC#{this.escrow.escrow_id}"]
    assert (item["batch"], item["place"]) == ({"S": this.escrow.escrow_id}, {"N": "0"})
    assert item["swept_ms"] == {"N": str(EXPIRY + 1)}
    assert "work" not in item
    assert "work_at" not in item
    assert "party" not in item
    before = dict(this.memory.items)
    assert this.world.ledger.credit([this.escrow.escrow_id], now_ms=EXPIRY + 2).escrows == 0
    assert this.memory.items == before


def settled_tasks(count: int) -> tuple[Memory, World]:
    """A ledger with a number of settled tasks of one agent, every second one a failure."""
    memory = Memory()
    world = World(memory, now_ms=lambda: EXPIRY, left_ms=lambda: 10_000)
    world.ledger.deposit("alice", "start", 2 * count * BUDGET, now_ms=START_MS)
    for number in range(count):
        escrow = world.ledger.fund(hold(task_id=f"t{number}"))
        world.ledger.settle(done(world, escrow, DONE if number % 2 else FAILED, START_MS + number))
    return memory, world


def overtaken(memory: Memory, operate: Callable[[], int]) -> list[int]:
    """Calls a function between the creation of the next write and its arrival; returns its results."""
    honest, met = memory.transact_write_items, list[int]()

    def send(**call: Any) -> Any:
        if not met:
            met.append(0)
            met[0] = operate()
        return honest(**call)

    memory.transact_write_items = send  # type: ignore[method-assign]
    return met


@pytest.mark.parametrize("first_credited", [0, 1])
def test_an_overtaken_sweep_credits_the_rest(first_credited: int) -> None:
    """I10: the other sweep credits all of it, or a part, in its own batch."""
    memory, world = settled_tasks(2)
    (names,) = world.ledger.settled()
    met = overtaken(memory, lambda: world.ledger.credit(names[first_credited:], now_ms=EXPIRY).escrows)
    assert world.ledger.credit(names, now_ms=EXPIRY).escrows == first_credited
    assert met == [2 - first_credited]
    assert append_to_log(world.ledger) == 2
    escrow = world.ledger.find(names[0])
    assert escrow
    assert violations_of_form(Case(memory, world, escrow, "")) == []


def test_a_batch_is_appended_once() -> None:
    """I15: by two sweeps, one after the other and one during the other."""
    memory, world = settled_tasks(2)
    (names,) = world.ledger.settled()
    world.ledger.credit(names, now_ms=EXPIRY)
    met = overtaken(memory, lambda: append_to_log(world.ledger, names[0]))
    assert append_to_log(world.ledger, names[0]) == 0
    assert met == [2]
    before = dict(memory.items)
    assert append_to_log(world.ledger, names[0]) == 0
    assert memory.items == before
    assert list(world.ledger.log.waiting()) == []


@pytest.mark.parametrize("logged_before", [0, 1])
def test_concurrent_batches_fold_a_standing_in_order(logged_before: int) -> None:
    """I15, I16: another sweep appends a batch between a sweep's read of the log's head and its write."""
    memory, world = settled_tasks(2 + logged_before)
    (names,) = world.ledger.settled()
    for name in names:
        world.ledger.credit([name], now_ms=EXPIRY)
    if logged_before:
        append_to_log(world.ledger, names[2])
    met = overtaken(memory, lambda: append_to_log(world.ledger, names[1]))
    assert append_to_log(world.ledger, names[0]) == 1
    assert met == [1]
    escrow = world.ledger.find(names[0])
    assert escrow
    assert violations_of_form(Case(memory, world, escrow, "")) == []
    assert world.ledger.standing(FLAT).outcomes == 2 + logged_before


def test_the_published_size_never_decreases() -> None:
    memory, world = settled_tasks(3)
    (names,) = world.ledger.settled()
    for size, name in enumerate(names, 1):
        world.ledger.credit([name], now_ms=EXPIRY)
        append_to_log(world.ledger, name)
        world.ledger.log.set_published(size)
    before = dict(memory.items)
    for size in (3, 2, 1, 0):
        world.ledger.log.set_published(size)
    assert memory.items == before
    assert world.ledger.log.head() == LogHead(3, 3)


@pytest.mark.parametrize("kind", ["deposit", "withdraw"])
@pytest.mark.parametrize("amount", [1, BUDGET - 1, BUDGET, BUDGET + 1])
@pytest.mark.parametrize("recorded", [None, 1, BUDGET])
def test_movements(kind: str, amount: int, recorded: int | None) -> None:
    """Once per id; never below zero; another amount with the same id is rejected."""
    memory = Memory()
    world = World(memory, now_ms=lambda: START_MS)
    move = getattr(world.ledger, kind)

    def at(moved: Any) -> int:
        return moved if kind == "deposit" else moved.requested_ms

    world.ledger.deposit("alice", "start", BUDGET, now_ms=START_MS)
    if recorded is not None:
        move("alice", "m", recorded, now_ms=START_MS + 1)
    before = dict(memory.items)
    have = world.ledger.available_micro("alice")
    sign = 1 if kind == "deposit" else -1
    if recorded == amount:
        assert at(move("alice", "m", amount, now_ms=START_MS + 2)) == START_MS + 1
        assert memory.items == before
    elif recorded is not None:
        with pytest.raises(MovementConflictError):
            move("alice", "m", amount, now_ms=START_MS + 2)
        assert memory.items == before
    elif sign < 0 and amount > have:
        with pytest.raises(InsufficientFundsError):
            move("alice", "m", amount, now_ms=START_MS + 2)
        assert memory.items == before
    else:
        assert at(move("alice", "m", amount, now_ms=START_MS + 2)) == START_MS + 2
        assert world.ledger.available_micro("alice") == have + sign * amount


DECISIONS = (PayoutState.PAID, PayoutState.FAILED)


@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("state", ["requested", "without state", *DECISIONS])
def test_a_payout_is_decided_once_in_every_state(state: str, decision: PayoutState) -> None:
    memory = Memory()
    world = World(memory, now_ms=lambda: START_MS)
    world.ledger.deposit("alice", "start", BUDGET, now_ms=START_MS)
    payout = world.ledger.withdraw("alice", "w", FLAT_MICRO, now_ms=START_MS)
    pk = "OUT#alice#w"
    if state in DECISIONS:
        world.ledger.decide_payout(payout, PayoutState(state), by="first", now_ms=START_MS + 1)
    elif state == "without state":
        kept = {name: value for name, value in memory.items[pk].items() if name not in {"payout", "work", "work_at"}}
        memory.items[pk] = kept
    before, have = dict(memory.items), world.ledger.available_micro("alice")
    stored = world.ledger.decide_payout(payout, decision, by="bank", now_ms=START_MS + 2)
    assert world.ledger.payout("alice", "w") == stored
    if state in DECISIONS:
        assert (stored.state, stored.decided_by, stored.decided_ms) == (state, "first", START_MS + 1)
        assert memory.items == before
        return
    assert (stored.state, stored.decided_by, stored.waits) == (decision, "bank", False)
    assert world.ledger.available_micro("alice") == have + (FLAT_MICRO if decision is PayoutState.FAILED else 0)
    assert not {"work", "work_at"} & memory.items[pk].keys()
    assert ("BACK#alice#w" in memory.items) == (decision is PayoutState.FAILED)
    assert audit.audit(world).differences == []


@pytest.mark.parametrize("first", [None, "bank-1"])
@pytest.mark.parametrize("second", [None, "bank-1", "bank-2"])
@pytest.mark.parametrize("amount", [BUDGET, BUDGET + 1])
def test_only_the_depositor_can_repeat_a_deposit(first: str | None, second: str | None, amount: int) -> None:
    """A deposit without a recorded depositor may be repeated by any depositor."""
    memory = Memory()
    world = World(memory, now_ms=lambda: START_MS)
    world.ledger.deposit("alice", "d", BUDGET, now_ms=START_MS, depositor=first)
    before = dict(memory.items)
    if amount == BUDGET and first in {None, second}:
        assert world.ledger.deposit("alice", "d", amount, now_ms=START_MS + 1, depositor=second) == START_MS
    else:
        with pytest.raises(MovementConflictError):
            world.ledger.deposit("alice", "d", amount, now_ms=START_MS + 1, depositor=second)
    assert memory.items == before


@pytest.mark.parametrize("second", ["TransactionConflict", "ThrottlingError", "ConditionalCheckFailed", "None"])
@pytest.mark.parametrize("first", ["TransactionConflict", "ThrottlingError", "ConditionalCheckFailed", "None"])
@pytest.mark.parametrize("poor", [True, False])
def test_cancellation_reasons(*, first: str, second: str, poor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The condition on the escrow is final; the one on the balance counts only if the escrow does not exist."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    this = case("funded")
    if poor:
        this.world.ledger.withdraw("alice", "w", this.balances()["alice"], now_ms=START_MS)
    standing = this.memory.items[f"ESC#{this.escrow.escrow_id}"]
    honest, reasons = this.memory.transact_write_items, [{"Code": first}, {"Code": second}]
    if first == "ConditionalCheckFailed":
        reasons[0]["Item"] = standing  # type: ignore[assignment]  # as ALL_OLD returns it
    sent = 0

    def once(**call: Any) -> Any:
        nonlocal sent
        sent += 1
        if sent > 1:
            return honest(**call)
        response: Any = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
        raise ClientError(response, "TransactWriteItems")

    monkeypatch.setattr(this.memory, "transact_write_items", once)
    if (first, second) == ("None", "None"):
        with pytest.raises(ClientError):
            this.world.ledger.fund(this.escrow)
    else:
        assert this.world.ledger.fund(this.escrow) == this.escrow
    known = poor or first == "ConditionalCheckFailed" or (first, second) == ("None", "None")
    assert sent == (1 if known else 2)


def test_credits_of_one_owner_are_grouped_over_several_reads() -> None:
    """Escrows of forty owners and eighty agents in turn: fewer transactions and lines than in their order of time."""
    memory = Memory()
    world = World(memory, now_ms=lambda: EXPIRY, left_ms=lambda: 10_000)
    world.ledger.deposit("alice", "start", 10**9, now_ms=START_MS)
    for number in range(240):
        agent, owner = f"agt_{number % 80}", f"owner-{number % 40}"
        escrow = world.ledger.fund(hold(task_id=f"t{number}", agent_id=agent, owner=owner))
        world.ledger.settle(done(world, escrow, DONE, START_MS + number))
    (names,) = world.ledger.settled()
    assert world.ledger.credit(names, now_ms=EXPIRY).escrows == 240
    batches = [item["escrows"]["S"].split(",") for pk, item in memory.items.items() if pk.startswith("BATCH#")]
    lines = sum(pk.startswith("EARN#") for pk in memory.items)
    assert len(batches) == 4, "240 marks and two items for each owner"
    assert lines <= 40 + len(batches) - 1, "an owner is in two batches only where one batch ends"
    assert append_to_log(world.ledger) == 240
    assert violations_of_form(Case(memory, world, hold(), "")) == []


@pytest.mark.parametrize("lost", [False, True])
def test_an_overtaken_credit_of_several_batches(lost: bool) -> None:
    """Another sweep has credited all escrows of the second batch and one of the first, or one response is lost."""
    memory, world = settled_tasks(2 * 95)
    (names,) = world.ledger.settled()
    others = [] if lost else [names[0], *names[95:]]
    met = overtaken(memory, lambda: world.ledger.credit(others, now_ms=EXPIRY).escrows)
    if lost:
        honest, losses = memory.transact_write_items, [ReadTimeoutError(endpoint_url="-")]

        def send(**call: Any) -> Any:
            answer = honest(**call)
            if losses:
                raise losses.pop()
            return answer

        memory.transact_write_items = send  # type: ignore[method-assign]
    assert world.ledger.credit(names, now_ms=EXPIRY).escrows == (95 if lost else 94), "a lost response is not counted"
    assert met == [len(others)]
    assert sum(pk.startswith("BATCH#") for pk in memory.items) == 2 + (not lost)
    escrow = world.ledger.find(names[0])
    assert escrow
    append_to_log(world.ledger)
    assert violations_of_form(Case(memory, world, escrow, "")) == []
