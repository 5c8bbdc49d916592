"""Every operation on an escrow in every state, by every fence, at every time, against a pure model; nothing is sampled.

The model says what a write may do from the rules alone; the ledger does it over the stand-in (see test_memory.py).
After each step the whole table is compared, so a write that should change nothing changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
from botocore.exceptions import ClientError

from quittance import escrow as escrows
from quittance import tasks
from quittance.errors import InsufficientFundsError, MovementConflictError
from quittance.escrow import Escrow, Settlement, State, StoredBytes
from quittance.run import Meter, Outcome, Run
from tests.ledger.checks import violations
from tests.ledger.memory import Memory
from tests.ledger.world import FEE_BPS, FLAT, FLAT_MICRO, START_MS, World

LEASE, EXPIRY = START_MS + 1_000, START_MS + 5_000
BUDGET = 2 * FLAT_MICRO
DEPOSIT = 5 * FLAT_MICRO
FENCE = 3
TIMES = (START_MS, LEASE - 1, LEASE, LEASE + 1, EXPIRY - 1, EXPIRY, EXPIRY + 1)
FENCES = (FENCE - 1, FENCE, FENCE + 1)
STATES = ("funded", "partly", "fully", "refunded", "expired", "partly swept", "refunded swept", "expired swept")
DONE, FAILED = Run(Outcome.SUCCEEDED, "", Meter(fuel=1, wall_ms=5)), Run(Outcome.EXIT_CODE, "", Meter(wall_ms=5))
FEE = FLAT_MICRO * FEE_BPS // 10_000
SPLITS = {"partly": (FLAT_MICRO - FEE, FEE, FLAT_MICRO), "refunded": (0, 0, BUDGET), "expired": (0, 0, BUDGET)}


@dataclass
class Case:
    """A ledger with one escrow in one state, held by the fence FENCE."""

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
    if settlement.outcome is Outcome.SUCCEEDED:
        settlement = replace(settlement, output=StoredBytes("dd" * 32, 0, b""))
    return tasks._signed(case_world, escrow, settlement, Meter(), version=None)


def ended(world: World, escrow: Escrow, run: Run | None, now_ms: int) -> Settlement:
    """The settlement of a run; of an expiry for None."""
    plain = escrows.expire(escrow, now_ms=now_ms) if run is None else escrows.decide(escrow, run, now_ms=now_ms)
    return signed(world, escrow, plain)


def case(state: str) -> Case:
    """A ledger that came into this state by the ledger's own writes."""
    memory = Memory()
    world = World(memory, now_ms=lambda: EXPIRY + 1_000, left_ms=lambda: 10_000)
    world.ledger.deposit("alice", "start", DEPOSIT, now_ms=START_MS)
    escrow = world.ledger.fund(hold(budget=FLAT_MICRO if state == "fully" else BUDGET))
    first = state.split(maxsplit=1)[0]
    if first in ("partly", "fully"):
        world.ledger.settle(escrow, ended(world, escrow, DONE, START_MS + 1))
    elif first == "refunded":
        world.ledger.settle(escrow, ended(world, escrow, FAILED, START_MS + 1))
    elif first == "expired":
        world.ledger.expire(escrow, ended(world, escrow, None, EXPIRY))
    if state.endswith("swept"):
        (batch,) = world.ledger.credits()
        assert world.ledger.credit(batch, now_ms=EXPIRY) == 1
    return Case(memory, world, escrow, state)


def refused(this: Case, operate: Callable[[], Escrow]) -> None:
    """The operation changes nothing, and returns what stands."""
    before, standing = dict(this.memory.items), this.world.ledger.find(this.escrow.escrow_id)
    assert operate() == standing
    assert this.memory.items == before


def left(this: Case, settlement: Settlement, split: tuple[int, int, int], funds: int) -> None:
    """The escrow stands settled so, and the payer has got back what was not used, once."""
    standing = this.world.ledger.find(this.escrow.escrow_id)
    assert standing is not None
    assert standing.settlement == settlement
    parts = settlement.split
    assert (parts.paid_micro, parts.fee_micro, parts.refunded_micro) == split
    assert this.balances()["alice"] == funds + split[2]
    item = this.memory.items[f"ESC#{this.escrow.escrow_id}"]
    assert item["work"] == {"S": "SETTLED#0"}
    assert item["work_at"] == {"N": str(settlement.settled_ms)}


def test_each_state_is_what_it_says_and_its_sums_are_right() -> None:
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
    return [line for line in found if "due was" not in line]  # the runs here are not those that `expected` draws


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
            this.world.ledger.settle(attempt, settlement)
            left(this, settlement, SPLITS["partly" if run is DONE else "refunded"], funds)
        else:
            refused(this, lambda: this.world.ledger.settle(attempt, settlement))  # noqa: B023 - called here


@pytest.mark.parametrize("fence", FENCES)
def test_settle_in_full(fence: int) -> None:
    """The one write without a transaction has the same conditions."""
    for now_ms in TIMES:
        this = case("funded")
        memory = Memory()
        this = Case(memory, World(memory, now_ms=lambda: EXPIRY), hold(budget=FLAT_MICRO), "funded")
        this.world.ledger.deposit("alice", "start", DEPOSIT, now_ms=START_MS)
        this.world.ledger.fund(this.escrow)
        attempt = replace(this.escrow, fence=fence)
        settlement = ended(this.world, attempt, DONE, now_ms)
        if fence == FENCE and now_ms < EXPIRY:
            this.world.ledger.settle(attempt, settlement)
            left(this, settlement, (FLAT_MICRO - FEE, FEE, 0), DEPOSIT - FLAT_MICRO)
        else:
            refused(this, lambda: this.world.ledger.settle(attempt, settlement))  # noqa: B023 - called here


@pytest.mark.parametrize("state", STATES)
def test_expire(state: str) -> None:
    """I8: whoever holds it."""
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
    """I7: one step of the fence, by whoever saw the newest one, between lease and expiry."""
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
    """I9: whatever the balance, and whoever asks, the escrow that stands is what is returned."""
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
        assert [*world.ledger.overdue(now_ms=EXPIRY)] == [hold().escrow_id]
        assert [*world.ledger.overdue(now_ms=EXPIRY - 1)] == []
    else:
        with pytest.raises(InsufficientFundsError):
            world.ledger.fund(hold())
        assert memory.items == before


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("seen", ["partly", "fully", "refunded", "expired"])
def test_credit(state: str, seen: str) -> None:
    """I10: a sweep credits what it saw in the index only if that is what still stands, and once."""
    shown = case(seen)
    ((credit,),) = shown.world.ledger.credits()
    this = case(state)
    before, balances = dict(this.memory.items), this.balances()
    credited = this.world.ledger.credit([credit], now_ms=EXPIRY + 1)
    same = credit.state is (State.FUNDED if state == "funded" else state_of(state))
    if same and not state.endswith("swept"):
        assert credited == 1
        assert this.balances() == {
            "alice": balances["alice"],
            "oskar": credit.paid_micro,
            "quittance:platform": credit.fee_micro,
        }
        item = this.memory.items[f"ESC#{this.escrow.escrow_id}"]
        assert (item["seq"], item["swept_ms"]) == ({"N": "1"}, {"N": str(EXPIRY + 1)})
        assert "work" not in item
        assert "work_at" not in item
        delta = {"succeeded": 25, "exit_code": -50, "expired": 0}[credit.outcome]
        standing = this.world.ledger.reputation(FLAT)
        assert (standing.score_tenths, standing.outcomes) == (500 + delta, 1)
        assert (standing.successes, standing.failures) == (int(delta > 0), int(delta < 0))
        before_again = dict(this.memory.items)
        assert this.world.ledger.credit([credit], now_ms=EXPIRY + 2) == 0
        assert this.memory.items == before_again
    else:
        assert credited == 0
        assert this.memory.items == before


def state_of(name: str) -> State:
    first = name.split(maxsplit=1)[0]
    return State.RELEASED if first in ("partly", "fully") else State(first)


def test_two_sweeps_fold_the_reputation_one_after_the_other() -> None:
    """I16: between a sweep's read of the standing and its write, another sweep credits another escrow."""
    for first_outcomes in (0, 1):
        memory = Memory()
        world = World(memory, now_ms=lambda: EXPIRY, left_ms=lambda: 10_000)
        world.ledger.deposit("alice", "start", 9 * BUDGET, now_ms=START_MS)
        for number, run in enumerate((FAILED, DONE, FAILED)[: 2 + first_outcomes]):
            escrow = world.ledger.fund(hold(task_id=f"t{number}"))
            world.ledger.settle(escrow, ended(world, escrow, run, START_MS + number))
        (batch,) = world.ledger.credits()
        if first_outcomes:
            world.ledger.credit([batch.pop()], now_ms=EXPIRY)
        honest, met = memory.transact_write_items, []

        def overtaken(
            honest: Any = honest, met: list[int] = met, world: World = world, other: Any = batch[1], **call: Any
        ) -> Any:
            if not met:
                met.append(1)
                assert world.ledger.credit([other], now_ms=EXPIRY) == 1
            return honest(**call)

        memory.transact_write_items = overtaken  # type: ignore[method-assign]
        assert world.ledger.credit(batch[:1], now_ms=EXPIRY) == 1
        assert violations_of_form(Case(memory, world, escrow, "")) == []
        assert world.ledger.reputation(FLAT).outcomes == 2 + first_outcomes


@pytest.mark.parametrize("kind", ["deposit", "withdraw"])
@pytest.mark.parametrize("amount", [1, BUDGET - 1, BUDGET, BUDGET + 1])
@pytest.mark.parametrize("recorded", [None, 1, BUDGET])
def test_movements(kind: str, amount: int, recorded: int | None) -> None:
    """Once by their id; never into debt; another amount under the same id is refused."""
    memory = Memory()
    world = World(memory, now_ms=lambda: START_MS)
    move = getattr(world.ledger, kind)
    world.ledger.deposit("alice", "start", BUDGET, now_ms=START_MS)
    if recorded is not None:
        move("alice", "m", recorded, now_ms=START_MS + 1)
    before = dict(memory.items)
    have = world.ledger.available_micro("alice")
    sign = 1 if kind == "deposit" else -1
    if recorded == amount:
        assert move("alice", "m", amount, now_ms=START_MS + 2) == START_MS + 1
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
        assert move("alice", "m", amount, now_ms=START_MS + 2) == START_MS + 2
        assert world.ledger.available_micro("alice") == have + sign * amount


@pytest.mark.parametrize("second", ["TransactionConflict", "ThrottlingError", "ConditionalCheckFailed", "None"])
@pytest.mark.parametrize("first", ["TransactionConflict", "ThrottlingError", "ConditionalCheckFailed", "None"])
@pytest.mark.parametrize("poor", [True, False])
def test_reasons_of_a_refusal(*, first: str, second: str, poor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The escrow's own refusal is final; the account's is believed only if the escrow, looked for, is not there."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    this = case("funded")
    if poor:
        this.world.ledger.withdraw("alice", "w", this.balances()["alice"], now_ms=START_MS)
    standing = this.memory.items[f"ESC#{this.escrow.escrow_id}"]
    honest, reasons = this.memory.transact_write_items, [{"Code": first}, {"Code": second}]
    if first == "ConditionalCheckFailed":
        reasons[0]["Item"] = standing  # type: ignore[assignment]  # as ALL_OLD shows it
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
