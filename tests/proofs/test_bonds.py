"""Bonds, judges of both sides, and charges: every rule of who pays, and that rejections change nothing."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quittance.api.identity import Caller
from quittance.api.models import BondRequest
from quittance.errors import BondInUseError, BondTooLowError, InsufficientFundsError, MovementConflictError
from quittance.ledger import balances, earnings
from quittance.ledger import escrow as escrows
from quittance.ledger.balances import bond_account
from quittance.ledger.escrow import Escrow, JudgeHold, Settlement, Split, State
from quittance.ledger.journal import LineKind
from quittance.ledger.pricing import ComputePrices
from quittance.limits import (
    AGENT_AGE_MS_MAX,
    BALANCE_SHARDS,
    BOND_NOTICE_MS,
    ESCROW_GRACE_MS,
    LOGGED_AGENTS_MAX,
    QUEUE_WAIT_MS_MAX,
    TIMEOUT_S_ASYNC_MAX,
    TRANSACTION_ITEMS_MAX,
)
from quittance.run import Fault, Outcome, Run, Side
from quittance.store.registry import OwnedAgents
from quittance.usecases import accounts, audit
from tests.proofs.memory import Memory
from tests.proofs.test_matrix import DONE, EXPIRY, FAILED, FENCE, TIMES, hold, overtaken, signed
from tests.proofs.world import BOND_MINIMUM, PLATFORM_ACCOUNT, START_MS, World, append_to_log

BUDGET, JUDGING = 50_000, 20_011  # of the task, and of each judge
BOND = bond_account("oskar")
COMPUTE = ComputePrices(run_micro=1_009)
CHARGE = 1_009
SPARE = 5  # oskar's balance besides the bond


def judged(*, sides: Sequence[Side] = tuple(Side), task_id: str = "t", **changes: Any) -> tuple[Escrow, list[Escrow]]:
    """A task and the escrows of its judges."""
    task = hold(task_id=task_id, budget=BUDGET, **({"fence": 1, "compute": COMPUTE} | changes))
    judges = []
    for side in sides:
        payer, name = escrows.judge_account(task, side)
        judges.append(
            replace(
                task,
                escrow_id=escrows.escrow_id(payer, name),
                payer=payer,
                task_id=name,
                agent_id="agt_" + "j" * 26,
                owner="judith",
                budget_micro=JUDGING,
                seed="ab" * 32,
            )
        )
    holds = tuple(
        JudgeHold(side, judge.agent_id, JUDGING, judge.escrow_id) for side, judge in zip(sides, judges, strict=True)
    )
    return replace(task, judges=holds), judges


def world_of(*, alice: int = 10 * BUDGET, bond: int = 10 * BUDGET) -> tuple[Memory, World]:
    memory = Memory()
    world = World(memory, now_ms=lambda: EXPIRY + 1_000, left_ms=lambda: 10_000)
    world.ledger.deposit("alice", "start", alice, now_ms=START_MS)
    world.ledger.deposit("oskar", "spare", SPARE, now_ms=START_MS)
    if bond:
        world.ledger.deposit("oskar", "start", bond, now_ms=START_MS)
        world.ledger.move_bond("oskar", "start", bond, now_ms=START_MS)
    return memory, world


def settled(world: World, escrow: Escrow, plain: Settlement) -> Escrow:
    return replace(escrow, settlement=signed(world, escrow, plain))


def ended(world: World, task: Escrow, judges: Sequence[Escrow], run: Run, *, now_ms: int) -> list[Escrow]:
    """A task and its judges, each with a settlement."""
    ends = [settled(world, judge, escrows.decide_judge(judge, DONE, now_ms=now_ms, released=True)) for judge in judges]
    paid = {
        hold.side: JUDGING - end.settlement.split.refunded_micro
        for hold, end in zip(task.judges, ends, strict=True)
        if end.settlement
    }
    return [settled(world, task, escrows.decide(task, run, now_ms=now_ms, judging_micro=paid)), *ends]


def differences(world: World) -> list[str]:
    return [line for line in audit.report(audit.audit(world)) if " at " in line]


@pytest.mark.parametrize("sides", [(Side.AGENT,), (Side.TASK,), tuple(Side)])
@pytest.mark.parametrize("alice", [-1, 0, 1])
@pytest.mark.parametrize("bond", [-1, 0, 1])
def test_a_task_and_its_judges_are_funded_together_or_not(sides: tuple[Side, ...], alice: int, bond: int) -> None:
    task, judges = judged(sides=sides)
    of_alice = BUDGET + JUDGING * (Side.TASK in sides)
    of_bond = JUDGING * (Side.AGENT in sides)
    memory, world = world_of(alice=of_alice + alice, bond=JUDGING + bond)
    before = dict(memory.items)
    if alice < 0 or (of_bond and bond < 0):
        refusal = InsufficientFundsError if alice < 0 else BondTooLowError
        with pytest.raises(refusal):
            world.ledger.fund(task, *judges)
        assert memory.items == before
        return
    assert world.ledger.fund(task, *judges) == task
    assert world.ledger.available_micro("alice") == alice
    assert world.ledger.available_micro(BOND) == JUDGING + bond - of_bond
    assert [world.ledger.find(judge.escrow_id) for judge in judges] == judges
    before = dict(memory.items)
    assert world.ledger.fund(replace(task, runner="another"), *judges) == task
    assert memory.items == before


@pytest.mark.parametrize("gone", [None, "judge expired", "task expired", "settled"])
@pytest.mark.parametrize("run", [DONE, FAILED], ids=["done", "failed"])
def test_a_task_and_its_judges_leave_funded_together(gone: str | None, run: Run) -> None:
    """I5 to I8: with the task's fence, before expiry, and while all of them are funded."""
    for fence, now_ms in product((FENCE - 1, FENCE, FENCE + 1), TIMES):
        memory, world = world_of()
        task, judges = judged(fence=FENCE)
        world.ledger.fund(task, *judges)
        if gone and gone.endswith("expired"):
            late = judges[0] if gone.startswith("judge") else task
            world.ledger.expire(late, signed(world, late, escrows.expire(late, now_ms=EXPIRY)))
        elif gone:
            world.ledger.settle(*ended(world, task, judges, FAILED, now_ms=START_MS))
        before = dict(memory.items)
        attempt = replace(task, fence=fence)
        stored = world.ledger.settle(*ended(world, attempt, judges, run, now_ms=now_ms))
        if gone is None and fence == FENCE and now_ms < EXPIRY:
            assert stored.state is (State.RELEASED if run is DONE else State.REFUNDED)
            assert {world.ledger.find(judge.escrow_id).state for judge in judges} == {State.RELEASED}  # type: ignore[union-attr]
            used = 0 if stored.settlement is None else BUDGET - stored.settlement.split.refunded_micro
            cost = judges[0].budget_micro - _left(world, judges[0])
            assert world.ledger.available_micro("alice") == 10 * BUDGET - used - cost
            assert world.ledger.available_micro(BOND) == 10 * BUDGET - cost
        else:
            assert stored == world.ledger.find(task.escrow_id)
            assert memory.items == before


def _left(world: World, judge: Escrow) -> int:
    found = world.ledger.find(judge.escrow_id)
    assert found
    assert found.settlement
    return found.settlement.split.refunded_micro


def test_a_task_does_not_settle_without_its_judges() -> None:
    memory, world = world_of()
    task, judges = judged()
    world.ledger.fund(task, *judges)
    before = dict(memory.items)
    ends = ended(world, task, judges, DONE, now_ms=START_MS)
    for some in (ends[:1], ends[:2], [*ends, ends[-1]]):
        with pytest.raises(ValueError, match="together"):
            world.ledger.settle(*some)
    assert memory.items == before


def test_an_expired_judge_prevents_settlement() -> None:
    """A judge whose own expiry has passed may be refunded at the same time, so its task must not settle."""
    memory, world = world_of()
    task, judges = judged(sides=(Side.AGENT,))
    early = replace(judges[0], expires_ms=EXPIRY - 10)
    world.ledger.fund(task, early)
    before = dict(memory.items)
    assert world.ledger.settle(*ended(world, task, [early], DONE, now_ms=EXPIRY - 10)).state is State.FUNDED
    assert memory.items == before
    assert world.ledger.settle(*ended(world, task, [early], DONE, now_ms=EXPIRY - 11)).state is State.RELEASED


def test_an_expired_judges_budget_returns_to_the_bond() -> None:
    _, world = world_of()
    task, judges = judged()
    world.ledger.fund(task, *judges)
    for each in (task, *judges):
        world.ledger.expire(each, signed(world, each, escrows.expire(each, now_ms=EXPIRY)))
    assert world.ledger.available_micro("alice") == 10 * BUDGET == world.ledger.available_micro(BOND)


@pytest.mark.parametrize("amount", [-BUDGET - 1, -BUDGET, -1, 1, BUDGET, BUDGET + 1])
@pytest.mark.parametrize("recorded", [None, -1, 1, BUDGET])
def test_movements_of_a_bond(amount: int, recorded: int | None) -> None:
    """Once per id; neither side falls below zero; another amount with the same id is rejected."""
    memory = Memory()
    world = World(memory, now_ms=lambda: START_MS)
    world.ledger.deposit("oskar", "start", 2 * BUDGET, now_ms=START_MS)
    world.ledger.move_bond("oskar", "first", BUDGET, now_ms=START_MS)
    if recorded is not None:
        world.ledger.move_bond("oskar", "m", recorded, now_ms=START_MS + 1)
    before = dict(memory.items)
    free, bond = world.ledger.available_micro("oskar"), world.ledger.available_micro(BOND)
    if recorded == amount:
        assert world.ledger.move_bond("oskar", "m", amount, now_ms=START_MS + 2) == START_MS + 1
        assert world.ledger.bond_moved_ms("oskar", "m", amount) == START_MS + 1
    elif recorded is not None:
        with pytest.raises(MovementConflictError):
            world.ledger.move_bond("oskar", "m", amount, now_ms=START_MS + 2)
    elif amount > free or -amount > bond:
        with pytest.raises(InsufficientFundsError):
            world.ledger.move_bond("oskar", "m", amount, now_ms=START_MS + 2)
        assert world.ledger.bond_moved_ms("oskar", "m", amount) is None
    else:
        assert world.ledger.move_bond("oskar", "m", amount, now_ms=START_MS + 2) == START_MS + 2
        assert world.ledger.available_micro("oskar") == free - amount
        assert world.ledger.available_micro(BOND) == bond + amount
        assert differences(world) == []
        return
    assert memory.items == before


def spread(world: World, memory: Memory, parts: Sequence[int]) -> None:
    """Spreads the bond over several shards."""
    for shard, part in enumerate(parts):
        pk = f"ACCT#{BOND}" + (f"#{shard}" if shard else "")
        memory.items[pk] = {"pk": {"S": pk}, "available": {"N": str(part)}}


@pytest.mark.parametrize("parts", [[0], [CHARGE - 1], [CHARGE], [CHARGE + 1], [1] * 16, [100] * 16, [0, 0, 2 * CHARGE]])
@pytest.mark.parametrize("failures", [1, 2])
def test_a_failure_is_charged_up_to_the_bonds_balance(parts: list[int], failures: int) -> None:
    """From any shards. The line states what was due and what was taken, and the platform receives what was taken."""
    memory, world = world_of(bond=sum(parts))
    if sum(parts):
        spread(world, memory, parts)
    for number in range(failures):
        task, _ = judged(sides=(), task_id=f"t{number}")
        world.ledger.fund(task)
        world.ledger.settle(*ended(world, task, (), FAILED, now_ms=START_MS))
    (names,) = world.ledger.settled()
    credited = world.ledger.credit(names, now_ms=EXPIRY)
    due = failures * CHARGE
    taken = min(due, sum(parts))
    assert (credited.escrows, credited.written_off_micro) == (failures, due - taken)
    assert world.ledger.bond("oskar").available_micro == sum(parts) - taken
    assert world.ledger.bond("oskar").charged_micro == taken
    assert world.ledger.available_micro(PLATFORM_ACCOUNT) == taken
    lines = [line for line in world.ledger.statement(BOND, limit=9)[0] if line.kind is LineKind.CHARGE]
    assert [(line.amount_micro, line.due_micro, line.tasks) for line in lines] == [(-taken, due, failures)]
    assert append_to_log(world.ledger) == failures
    assert differences(world) == []
    before = dict(memory.items)
    assert world.ledger.credit(names, now_ms=EXPIRY + 1).escrows == 0
    assert memory.items == before


@pytest.mark.parametrize("budget", [BUDGET, 15_000])
def test_the_judges_cost_returns_from_the_price_to_the_bond(budget: int) -> None:
    """At most the price."""
    _, world = world_of()
    task, judges = judged(sides=(Side.AGENT,))
    task = replace(task, budget_micro=budget, tariff=f'{{"type":"flat","price":"0.0{budget - 2_000:05}"}}')
    world.ledger.fund(task, *judges)
    stored = world.ledger.settle(*ended(world, task, judges, DONE, now_ms=START_MS))
    assert stored.settlement
    paid, cost = stored.settlement.split.paid_micro, stored.settlement.judging_micro
    for names in world.ledger.settled():
        credited = world.ledger.credit(names, now_ms=EXPIRY)
        assert credited.bonds_left == {"oskar": None}, "the bond may cover the minimum again"
    assert world.ledger.available_micro("oskar") == max(paid - cost, 0) + SPARE
    assert world.ledger.available_micro(BOND) == 10 * BUDGET - cost + min(paid, cost)
    append_to_log(world.ledger)
    found = differences(world)
    assert [line for line in found if "names no rules" not in line] == []  # this escrow has a judge but no rules


def test_returns_to_a_bond_pay_charges_of_the_same_batch() -> None:
    _, world = world_of(bond=JUDGING)
    task, judges = judged(sides=(Side.AGENT,))
    world.ledger.fund(task, *judges)
    stored = world.ledger.settle(*ended(world, task, judges, DONE, now_ms=START_MS))
    assert stored.settlement
    cost, back = stored.settlement.judging_micro, stored.settlement.split.paid_micro
    assert back < cost
    failures = (JUDGING - cost) // CHARGE + 1  # more than the bond's balance
    for number in range(failures):
        failing, _ = judged(sides=(), task_id=f"t{number}")
        world.ledger.fund(failing)
        world.ledger.settle(*ended(world, failing, (), FAILED, now_ms=START_MS))
    for names in world.ledger.settled():
        assert world.ledger.credit(names, now_ms=EXPIRY).written_off_micro == 0
    assert world.ledger.bond("oskar").available_micro == JUDGING - cost + back - failures * CHARGE


def test_a_charge_handles_a_bond_emptied_meanwhile() -> None:
    """The bond is released between the sweep's read and its write: the charge takes what is left."""
    memory, world = world_of(bond=2 * CHARGE)
    task, _ = judged(sides=())
    world.ledger.fund(task)
    world.ledger.settle(*ended(world, task, (), FAILED, now_ms=START_MS))
    (names,) = world.ledger.settled()
    overtaken(memory, lambda: world.ledger.move_bond("oskar", "out", -2 * CHARGE + 9, now_ms=EXPIRY))
    assert world.ledger.credit(names, now_ms=EXPIRY).written_off_micro == CHARGE - 9
    assert world.ledger.bond("oskar").available_micro == 0


NOW = EXPIRY + 1_000
OPEN = ("", "funded", "settled", "judge of another", "swept")


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("retired_ms", [None, 0, NOW - BOND_NOTICE_MS, NOW - BOND_NOTICE_MS + 1, NOW, NOW + 1])
@pytest.mark.parametrize("work", OPEN)
def test_a_bond_is_released_only_if_nothing_needs_it(*, active: bool, retired_ms: int | None, work: str) -> None:
    """No agent active for the notice period, nothing settled and uncredited. Repeats need no check.

    The funded task has expired: it can only be refunded as the platform's fault, and charges nothing.
    """
    memory, world = world_of()
    world.registry.owned = OwnedAgents(unretired=active, retired_ms=retired_ms)  # type: ignore[attr-defined]  # the stub's
    out = BondRequest.model_validate({"bond_id": "out", "amount": "-0.000007"})
    task, judges = judged(sides=(Side.AGENT,))
    if work == "judge of another":  # the only open work is a judge that the owner's bond pays
        world.ledger.fund(task, *judges)
        world.ledger.expire(task, signed(world, task, escrows.expire(task, now_ms=EXPIRY)))
    elif work:
        task = replace(task, judges=())
        world.ledger.fund(task)
    if work in {"settled", "swept"}:
        world.ledger.settle(*ended(world, task, (), DONE, now_ms=START_MS))
    if work in {"swept", "judge of another"}:
        for names in world.ledger.settled():
            world.ledger.credit(names, now_ms=EXPIRY)
    before = dict(memory.items)
    free = not active and (retired_ms or 0) <= NOW - BOND_NOTICE_MS and work in {"", "funded", "swept"}
    shown = accounts.bond(world, Caller("oskar"))
    assert shown.releasable_micro == (shown.available_micro if free else 0)
    if free:
        accounts.move_bond(world, Caller("oskar"), out)
        world.registry.owned = OwnedAgents(unretired=True, retired_ms=None)  # type: ignore[attr-defined]  # the stub's
        moved = dict(memory.items)
        accounts.move_bond(world, Caller("oskar"), out)
        assert memory.items == moved != before
    else:
        with pytest.raises(BondInUseError):
            accounts.move_bond(world, Caller("oskar"), out)
        assert memory.items == before
    accounts.move_bond(world, Caller("oskar"), BondRequest.model_validate({"bond_id": "in", "amount": "0.000001"}))


def test_a_release_waits_for_the_longest_escrow() -> None:
    """The last task before a retirement may fail in the last instant of the longest life, and the bond is charged."""
    retired_ms = START_MS - AGENT_AGE_MS_MAX
    expires_ms = START_MS + TIMEOUT_S_ASYNC_MAX * 1_000 + ESCROW_GRACE_MS + QUEUE_WAIT_MS_MAX
    _, world = world_of()
    world.registry.owned = OwnedAgents(unretired=False, retired_ms=retired_ms)  # type: ignore[attr-defined]  # the stub's
    task, _ = judged(sides=(), expires_ms=expires_ms)
    world.ledger.fund(task)
    out = BondRequest.model_validate({"bond_id": "out", "amount": "-0.000007"})
    for now_ms in (START_MS, expires_ms - 1):
        world._now_ms = lambda now_ms=now_ms: now_ms  # type: ignore[misc]
        with pytest.raises(BondInUseError):
            accounts.move_bond(world, Caller("oskar"), out)
    world.ledger.settle(*ended(world, task, (), FAILED, now_ms=expires_ms - 1))
    world._now_ms = lambda: expires_ms
    with pytest.raises(BondInUseError, match="not settled and credited"):
        accounts.move_bond(world, Caller("oskar"), out)
    (names,) = world.ledger.settled()
    assert world.ledger.credit(names, now_ms=expires_ms).written_off_micro == 0
    accounts.move_bond(world, Caller("oskar"), out)
    assert world.ledger.bond("oskar").charged_micro == CHARGE


@pytest.mark.parametrize("before_note", [0, 1])
def test_the_last_recorded_bond_state_is_current(before_note: int) -> None:
    """A top-up between a sweep's read of a bond and its record, and the other way round."""
    _, world = world_of(bond=BOND_MINIMUM - 1)
    noted = world.registry.set_bond_short
    moved: list[int] = []

    def overtaken_note(owner: str, short: bool) -> None:
        if not moved:
            moved.append(1)
            amount = 1 if before_note else -1
            world.ledger.deposit("oskar", "more", 1, now_ms=START_MS)
            world.ledger.move_bond("oskar", "more", amount, now_ms=START_MS)
            accounts.note_bond(world, owner)
        noted(owner, short)

    world.registry.set_bond_short = overtaken_note  # type: ignore[method-assign]
    accounts.note_bond(world, "oskar")
    assert world.registry.owner("oskar").bonded is (world.ledger.available_micro(BOND) >= BOND_MINIMUM)


ENDS = st.sampled_from(
    [(Outcome.SUCCEEDED, Fault.NONE), (Outcome.EXIT_CODE, Fault.AGENT), (Outcome.EXPIRED, Fault.PLATFORM)]
)


@st.composite
def settled_escrows(draw: st.DrawFn) -> list[Escrow]:
    """Settled escrows of few owners with few agents, or of many owners with many agents."""
    owners, agents = draw(st.sampled_from([(1, 1), (3, 5), (2, 90), (90, 90)]))
    found = []
    for number in range(draw(st.integers(1, 97))):
        outcome, fault = draw(ENDS)
        paid = draw(st.integers(0, 100)) if outcome is Outcome.SUCCEEDED else 0
        fee = draw(st.integers(0, 9)) if outcome is Outcome.SUCCEEDED else 0
        settlement = Settlement(
            state=State.RELEASED if outcome is Outcome.SUCCEEDED else State.REFUNDED,
            split=Split(200, paid, fee, 200 - paid - fee),
            outcome=outcome,
            message="",
            reputation_tenths=0,
            settled_ms=START_MS,
            fault=fault,
            charge_micro=draw(st.integers(0, 50)) if fault is Fault.AGENT else 0,
            judging_micro=draw(st.sampled_from([0, 0, 7, 60])),
        )
        named = {"agent_id": f"agt_{draw(st.integers(1, agents))}", "owner": f"owner-{draw(st.integers(1, owners))}"}
        found.append(hold(task_id=f"t{number}", budget=200, settlement=settlement, **named))
    return sorted(found, key=lambda escrow: escrow.owner)


@settings(max_examples=150, deadline=None)
@given(waiting=settled_escrows(), data=st.data())
def test_a_batch_moves_the_sums_of_its_escrows(waiting: list[Escrow], data: st.DataObject) -> None:
    """No credit appears or is lost, no bond falls below zero, and batch and append each fit one transaction."""
    owners = sorted({escrow.owner for escrow in waiting})
    shard = st.integers(0, 60)
    shards = {
        owner: data.draw(st.one_of(st.lists(shard, min_size=1, max_size=1), st.lists(shard, min_size=16, max_size=16)))
        for owner in earnings.due_by_owner(waiting)
    }
    chosen = earnings.fitting(waiting, shards)
    assert chosen == waiting[: len(chosen)]
    batch = earnings.batch(chosen, shards, platform_account=PLATFORM_ACCOUNT, now_ms=EXPIRY)
    moves = {account: sum(changes.values()) for account, changes in batch.bond_moves.items()}
    items = len(chosen) + len(batch.lines) + 1 + len(batch.credits) + sum(map(len, batch.bond_moves.values()))
    assert len(chosen) > 0
    assert items <= TRANSACTION_ITEMS_MAX
    assert len({escrow.agent_id for escrow in chosen}) <= LOGGED_AGENTS_MAX
    ends = [escrow.settlement for escrow in chosen if escrow.settlement]
    came_in = sum(end.split.paid_micro + end.split.fee_micro for end in ends)
    assert sum(batch.credits.values()) + sum(moves.values()) == came_in
    noted = {(line.account, line.kind): line for line in batch.lines}
    for owner in owners:
        mine = [escrow.settlement for escrow in chosen if escrow.owner == owner and escrow.settlement]
        has, bond = shards.get(owner, ()), bond_account(owner)
        back = sum(min(end.judging_micro, end.split.paid_micro) for end in mine)
        due = sum(end.charge_micro for end in mine)
        taken = min(due, sum(has) + back)
        assert batch.credits.get(owner, 0) == sum(end.split.paid_micro for end in mine) - back
        assert moves.get(bond, 0) == back - taken
        assert batch.charged.get(bond, 0) == taken
        charge = noted.get((bond, LineKind.CHARGE))
        assert (charge.amount_micro, charge.due_micro) == (-taken, due) if charge else due == 0
        after = {shard: has[shard] + change for shard, change in batch.bond_moves.get(bond, {}).items() if change < 0}
        assert min(after.values(), default=0) >= 0
    if len(chosen) < len(waiting):
        more = waiting[: len(chosen) + 1]
        one_more = earnings.batch(more, shards, platform_account=PLATFORM_ACCOUNT, now_ms=EXPIRY)
        items = (
            len(more) + len(one_more.lines) + 1 + len(one_more.credits) + sum(map(len, one_more.bond_moves.values()))
        )
        agents = len({escrow.agent_id for escrow in more})
        assert items > TRANSACTION_ITEMS_MAX - 4 or agents > LOGGED_AGENTS_MAX, "the batch could have been larger"


@pytest.mark.parametrize(
    ("owners", "agents", "fit"),
    [(1, 1, TRANSACTION_ITEMS_MAX - 5), (97, 97, (TRANSACTION_ITEMS_MAX - 3) // 3), (1, 97, LOGGED_AGENTS_MAX)],
)
def test_a_batch_fills_one_write_and_one_append(owners: int, agents: int, fit: int) -> None:
    end = Settlement(State.RELEASED, Split(200, 90, 10, 100), Outcome.SUCCEEDED, "", 0, START_MS)
    waiting = [
        hold(task_id=f"t{n}", budget=200, settlement=end, agent_id=f"agt_{n % agents}", owner=f"owner-{n % owners}")
        for n in range(97)
    ]
    assert len(earnings.fitting(waiting)) == len(earnings.fitting(waiting, {})) == fit


def test_a_bond_spread_over_all_shards_is_charged() -> None:
    assert balances.taking([1] * BALANCE_SHARDS, BALANCE_SHARDS, contended=False) == dict.fromkeys(
        range(BALANCE_SHARDS), -1
    )
