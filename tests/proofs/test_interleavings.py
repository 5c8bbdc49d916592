"""All interleavings of two and three actors on one escrow: each state is checked, each table must recover."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from quittance.api.identity import PAYOUT_SCOPE, Caller
from quittance.api.models import PayoutDecision
from quittance.ledger import escrow as escrows
from quittance.ledger.journal import Payout, PayoutState
from quittance.limits import ESCROW_GRACE_MS, VERDICT_MS_MAX
from quittance.usecases import accounts, execute, judges, launch, result, settle
from quittance.usecases.sweep import sweep
from tests.depth import LONG
from tests.proofs.checks import Sent
from tests.proofs.explore import Actor, Table, Walk, Walked
from tests.proofs.memory import Memory
from tests.proofs.world import (
    FLAT,
    FLAT_MICRO,
    JUDGE_MICRO,
    JUDGED,
    LEASE_MS,
    START_MS,
    TIMEOUT_S,
    World,
    append_to_log,
    ask,
    compute,
    drawn_run,
    judge_seed,
    successful_task_named,
    task_named,
)

LEASE = START_MS + LEASE_MS
EXPIRY = START_MS + TIMEOUT_S * 1_000 + ESCROW_GRACE_MS
WINS = task_named("t", payer="alice", state="released")
FAILS = task_named("t", payer="alice", state="refunded")
_FUEL = drawn_run(escrows.task_seed(escrows.escrow_id("alice", WINS))).meter.fuel
PARTLY, FULLY = 2 * FLAT_MICRO, FLAT_MICRO + compute(_FUEL)
BOND = 2 * JUDGE_MICRO  # of olga, whose agent is judged; oskar's bond is smaller than a failure's charge
COUNTED: list[tuple[Any, ...]] = []
RIVALS = ("retry", "other body", "sweep", "expiry", "credit", "reader", "stray expiry", "withdrawal")
BOND_LEFT = 100  # of oskar's bond: less than a failure's charge
TRIOS = (
    ("retry", "expiry"),
    ("retry", "credit"),
    ("retry", "withdrawal"),
    ("retry", "reader"),
    ("expiry", "credit"),
    ("expiry", "reader"),
    ("expiry", "withdrawal"),
    ("expiry", "second expiry"),
    ("credit", "second credit"),
    ("credit", "withdrawal"),
    ("credit", "release"),
    ("stray expiry", "expiry"),
    ("sweep", "withdrawal"),
)
JUDGED_RIVALS = ("reader", "retry", "sweep") if LONG else ("reader",)  # judges with another writer take the most time


def client(name: str, task_id: str, budget: int, text: str = "in", *, agent: str = FLAT, judge: bool = False) -> Actor:
    request = ask(task_id, agent, budget=budget, text=text, judge=judge)
    sent = Sent("alice", task_id, agent, budget, hashlib.sha256(text.encode()).hexdigest())
    return Actor(name, lambda world: execute.execute(world, "alice", request), sent)


def stray_expiry(world: World, escrow_id: str) -> Any:
    """Tries to expire the escrow at any time; only the ledger's condition prevents it before the expiry."""
    escrow = world.ledger.find(escrow_id)
    if escrow is None:
        return None
    bare = replace(escrow, settlement=None)
    end = escrows.expire(bare, now_ms=world.now_ms())
    return world.ledger.expire(bare, settle.signed_expiry(world, bare, end))


def withdraw(world: World) -> Payout:
    return world.ledger.withdraw("alice", "w-1", 2 * FLAT_MICRO + JUDGE_MICRO, now_ms=world.now_ms())


def swept(world: World) -> Any:
    return sweep(world)


def expire_overdue(world: World) -> None:
    for overdue in chain.from_iterable(world.ledger.overdue(now_ms=world.now_ms())):
        escrow = world.ledger.find(overdue)
        assert escrow
        settle.expire_if_overdue(world, escrow)


def credit(world: World) -> None:
    for batch in world.ledger.settled():
        world.ledger.credit(batch, now_ms=world.now_ms())
    append_to_log(world.ledger)


def release(world: World) -> int:
    """The agent's owner takes the whole bond back without the check whether it may be released."""
    return world.ledger.move_bond("oskar", "out", -BOND_LEFT, now_ms=world.now_ms())


def cast(task_id: str, budget: int) -> dict[str, Actor]:
    """The actors on one escrow. The runner is late wherever its clock jumps before it settles."""
    escrow_id = escrows.escrow_id("alice", task_id)
    actors = [
        client("runner", task_id, budget),
        client("retry", task_id, budget),
        client("other body", task_id, budget, "other"),
        Actor("sweep", swept),
        Actor("expiry", expire_overdue),  # the two parts of a sweep
        Actor("second expiry", expire_overdue),
        Actor("credit", credit),
        Actor("second credit", credit),
        Actor("reader", lambda world: result.read(world, Caller("alice"), task_id)),
        Actor("stray expiry", lambda world: stray_expiry(world, escrow_id)),
        Actor("withdrawal", withdraw),
        Actor("release", release),
    ]
    return {actor.name: actor for actor in actors}


def start() -> Table:
    """A ledger in which alice's balance covers the task or the withdrawal, but not both."""
    memory = Memory()
    world = World(memory, now_ms=lambda: START_MS)
    world.ledger.deposit("alice", "start", 3 * FLAT_MICRO + JUDGE_MICRO, now_ms=START_MS)
    for owner, bond in (("oskar", BOND_LEFT), ("olga", BOND)):
        world.ledger.deposit(owner, "bond", bond, now_ms=START_MS)
        world.ledger.move_bond(owner, "bond", bond, now_ms=START_MS)
    return memory.items


def walk(names: tuple[str, ...], *, task_id: str = WINS, budget: int = PARTLY, losses: int = 0) -> Walked:
    actors = [cast(task_id, budget)[name] for name in names]
    walked = Walk(start(), actors, [START_MS, LEASE, EXPIRY], losses=losses).all()
    assert walked.wrong == []
    assert ("runner", "released" if task_id == WINS else "refunded") in walked.results
    COUNTED.append((*names, walked.states, walked.interleavings))
    return walked


@pytest.mark.parametrize(("task_id", "budget"), [(WINS, PARTLY), (WINS, FULLY), (FAILS, PARTLY)])
@pytest.mark.parametrize("rival", RIVALS)
def test_two_actors_with_one_lost_response(rival: str, task_id: str, budget: int) -> None:
    walked = walk(("runner", rival), task_id=task_id, budget=budget, losses=1)
    assert walked.interleavings > walked.states > 1


@pytest.mark.parametrize("rival", ["second credit", "release"])
def test_a_failure_with_an_insufficient_bond(rival: str) -> None:
    """The sweep charges the bond's balance once, whatever moves the bond at the same time."""
    walked = walk(("runner", "credit", rival), task_id=FAILS)
    assert walked.interleavings > walked.states


@pytest.mark.parametrize("rivals", TRIOS, ids="+".join)
def test_three_actors(rivals: tuple[str, str]) -> None:
    walked = walk(("runner", *rivals))
    assert walked.interleavings > walked.states


JUDGING_MS = TIMEOUT_S * 1_000 + launch.RUN_RESERVE_MS + VERDICT_MS_MAX
JUDGED_LEASE = LEASE + JUDGING_MS + VERDICT_MS_MAX
JUDGED_EXPIRY = EXPIRY + TIMEOUT_S * 1_000


@pytest.mark.parametrize("rival", JUDGED_RIVALS)
@pytest.mark.parametrize(
    ("own", "judge", "score", "state"),
    [(True, True, "0.5", "released"), (True, True, "0.4", "refunded"), (False, True, "0.5", "refunded")],
)
@pytest.mark.parametrize("both", [False, True], ids=["agent's judge", "judges on both sides"])
def test_a_task_with_judges_and_a_rival(
    rival: str, own: bool, judge: bool, score: str, state: str, both: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = successful_task_named("t", payer="alice", success=own)
    seed = judge_seed(succeeds=judge, score=score)
    monkeypatch.setattr(judges.secrets, "token_bytes", lambda _: seed)
    budget = FLAT_MICRO + 500 + JUDGE_MICRO * both
    actors = cast(task_id, budget) | {
        name: client(name, task_id, budget, agent=JUDGED, judge=both) for name in ("runner", "retry")
    }
    times = [START_MS, JUDGED_LEASE + JUDGING_MS * both, JUDGED_EXPIRY + TIMEOUT_S * 1_000 * both]
    walked = Walk(start(), [actors["runner"], actors[rival]], times).all()
    assert walked.wrong == []
    assert ("runner", state) in walked.results
    COUNTED.append(("runner", rival, walked.states, walked.interleavings))


def decision(state: str) -> Actor:
    """An operator that decides the payout of alice's withdrawal."""
    payout_id = Payout("alice", "w-1", 2 * FLAT_MICRO, START_MS, PayoutState.REQUESTED).payout_id
    request = PayoutDecision.model_validate({"state": state})
    return Actor(
        state, lambda world: accounts.decide_payout(world, Caller(state, frozenset({PAYOUT_SCOPE})), payout_id, request)
    )


@pytest.mark.parametrize("decisions", [("paid", "failed"), ("failed", "failed"), ("paid", "paid")], ids="+".join)
def test_two_operators_and_the_owner_decide_a_payout(decisions: tuple[str, str]) -> None:
    """With one lost response anywhere and in every order, the credits are paid out or returned, once."""
    begun = Memory(start())
    withdraw(World(begun, now_ms=lambda: START_MS))
    actors = [*map(decision, decisions), cast(WINS, PARTLY)["withdrawal"]]
    walked = Walk(begun.items, actors, [START_MS, EXPIRY], losses=1).all()
    assert walked.wrong == []
    assert walked.interleavings > walked.states
    answers = {name: {what for who, what in walked.results if who == name} for name in decisions}
    for state in decisions:
        other = {"PayoutConflictError"} if len(answers) > 1 else set()
        assert answers[state] - {"PlatformUnavailableError"} == {"PayoutAnswer"} | other
    COUNTED.append((*decisions, walked.states, walked.interleavings))


def test_the_number_of_interleavings_is_reported(record_property: Callable[[str, str], None]) -> None:
    states, interleavings = sum(walked[-2] for walked in COUNTED), sum(walked[-1] for walked in COUNTED)
    record_property("figure", f"{len(COUNTED)} walks, {states:,} states, {interleavings:,} interleavings, all in order")
