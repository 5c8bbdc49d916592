"""A sweep with drains: when it starts them, what it does while they run, and what if they are lost, doubled or late."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from quittance.errors import PlatformUnavailableError
from quittance.ledger.escrow import Escrow
from quittance.limits import DRAIN_START_MS_MAX
from quittance.observability import Metric
from quittance.store.ledger import Ledger
from quittance.usecases import sweep as sweeps
from quittance.usecases.drain import drain
from quittance.usecases.sweep import Swept, publish_log, sweep
from tests.proofs.checks import violations
from tests.proofs.explore import Actor, Walk
from tests.proofs.memory import Memory
from tests.proofs.test_appends import Counting
from tests.proofs.test_matrix import DONE, EXPIRY, FAILED, done, hold
from tests.proofs.world import START_MS, Shelf, World, append_to_log, quiet

SHARDS = 4
ALONE_MAX = 8
TASKS = 40
NOW = EXPIRY + 60_000
SECONDS = 50  # of one invocation


@dataclass
class Stack:
    """A ledger, its sweep and its drains. A drain runs when `deliver` says so, in an invocation of its own."""

    deliver: Callable[["Stack", dict[str, Any]], None]
    memory: Memory = field(default_factory=Memory)
    now_ms: int = NOW
    started: list[tuple[str, int | None]] = field(default_factory=list)
    drained: list[Swept] = field(default_factory=list)
    shelf: Shelf = field(default_factory=Shelf)

    def world(self) -> World:
        left = [SECONDS * 1_000]
        began_ms = self.now_ms
        world = World(
            self.memory, now_ms=lambda: self.now_ms, work_shards=SHARDS, left_ms=lambda: 10_000, tiles=self.shelf
        )
        world.settings = world.settings.model_copy(update={"drain_function": "drain"})
        world.begin(lambda: left[0] - (self.now_ms - began_ms))
        vars(world)["drains"] = self
        return world

    def start(self, step: str, shard: int | None) -> None:
        self.started.append((step, shard))
        self.deliver(self, {"step": step, "shard": shard})

    def run(self, event: Mapping[str, Any]) -> None:
        self.drained.append(drain(self.world(), event))

    def settle(self, count: int, *, first: int = 0, at_ms: int = START_MS) -> list[str]:
        """Settles tasks of one owner, every third one a failure."""
        world, ids = self.world(), []
        world.ledger.deposit("alice", f"d{first}", 10**9, now_ms=START_MS)
        for number in range(first, first + count):
            escrow = world.ledger.fund(hold(task_id=f"t{number}"))
            settled = done(world, escrow, DONE if number % 3 else FAILED, min(at_ms + number, EXPIRY - 1))
            ids.append(world.ledger.settle(settled).escrow_id)
        return ids

    def left(self) -> int:
        return sum("work" in item for item in self.memory.items.values())

    def exact(self) -> bool:
        found = violations(self.world(), self.memory.items.values())
        return [line for line in found if ", due was Due" not in line] == []


def at_once(stack: Stack, event: dict[str, Any]) -> None:
    stack.run(event)


def lost(_stack: Stack, _event: dict[str, Any]) -> None:
    pass


def doubled(stack: Stack, event: dict[str, Any]) -> None:
    stack.run(event)
    stack.run(event)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "SWEPT_ALONE_MAX", ALONE_MAX)
    monkeypatch.setattr(sweeps, "REFUNDED_ALONE_MAX", ALONE_MAX)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens while the sweep waits; the fixture's user appends to it."""
    happens: list[Callable[[], None]] = []

    def sleep(_seconds: float) -> None:
        waits.append(1)
        assert len(waits) <= 2 * SECONDS, "the sweep does not end"
        for each in happens:
            each()

    waits: list[int] = []
    monkeypatch.setattr(sweeps.time, "sleep", sleep)
    return happens


def passing(stack: Stack, pauses: list[Callable[[], None]]) -> None:
    def second() -> None:
        stack.now_ms += 1_000

    pauses.append(second)


@pytest.mark.parametrize("over", [0, 1])
def test_a_small_backlog_takes_one_invocation(over: int) -> None:
    """The limit of what one sweep does alone, its part of each work shard, and one item beyond it."""
    stack = Stack(at_once)
    ledger = stack.world().ledger
    ledger.deposit("alice", "d", 10**9, now_ms=START_MS)
    for escrow in on_each_shard(ledger, SHARDS, each=ALONE_MAX // SHARDS) + _spare(ledger)[:over]:
        ledger.settle(done(stack.world(), ledger.fund(escrow), DONE, START_MS))
    swept = sweep(stack.world())
    assert bool(stack.started) == bool(over)
    assert (swept.complete, swept.logged, swept.published) == (True, ALONE_MAX + over, ALONE_MAX + over)
    assert (stack.left(), stack.exact()) == (0, True)


def test_an_idle_sweep_reads_each_queue_once() -> None:
    """Two queues for each work shard, the closing channels and the batches; and the log's head."""
    memory = Counting()
    stack = Stack(lost, memory)
    assert sweep(stack.world()).complete
    assert sorted(memory.calls) == ["get_item"] + ["query"] * (2 * SHARDS + 2)
    assert stack.started == []


def test_each_shard_with_work_gets_one_drain() -> None:
    stack = Stack(at_once)
    ids = [name for name in stack.settle(TASKS) if _shard(stack, name) != 2]
    for name, item in list(stack.memory.items.items()):
        if item.get("work") == {"S": "SETTLED#2"}:
            del stack.memory.items[name]
    with quiet():
        swept = sweep(stack.world())
    assert sorted(stack.started) == [("credit", 0), ("credit", 1), ("credit", 3)]
    assert sum(each.credited for each in stack.drained) == len(ids) == swept.logged
    assert (swept.credited, swept.complete, stack.left()) == (0, True, 0)


def _shard(stack: Stack, escrow_id: str) -> int:
    return int(stack.memory.items[f"ESC#{escrow_id}"]["work"]["S"].rpartition("#")[2])


@pytest.mark.parametrize("deliver", [at_once, doubled, lost], ids=lambda deliver: deliver.__name__)
def test_lost_and_doubled_drains_do_no_harm(deliver: Callable[..., None], pauses: list[Callable[[], None]]) -> None:
    """Without drains, the sweep waits for their start, then does all of it itself."""
    stack = Stack(deliver)
    passing(stack, pauses)
    stack.settle(TASKS)
    swept = sweep(stack.world())
    assert len(stack.started) == SHARDS, "each is started once in one sweep"
    assert (swept.complete, swept.logged, swept.published, stack.left()) == (True, TASKS, TASKS, 0)
    assert swept.credited == (TASKS if deliver is lost else 0)
    waited_ms = stack.now_ms - NOW
    assert waited_ms == DRAIN_START_MS_MAX if deliver is lost else waited_ms <= 1_000
    assert stack.exact()


def test_a_sweep_that_cannot_start_drains_works_alone() -> None:
    def fail(_stack: Stack, _event: dict[str, Any]) -> None:
        raise PlatformUnavailableError

    stack = Stack(fail)
    stack.settle(TASKS)
    with quiet():
        swept = sweep(stack.world())
    assert (swept.complete, swept.credited, swept.logged, len(stack.started)) == (True, TASKS, TASKS, 1)


def test_overdue_escrows_are_refunded_by_drains() -> None:
    stack = Stack(at_once)
    world = stack.world()
    world.ledger.deposit("alice", "d", 10**9, now_ms=START_MS)
    for number in range(TASKS):
        world.ledger.fund(hold(task_id=f"t{number}"))
    swept = sweep(stack.world())
    assert {step for step, _ in stack.started} == {"refund", "credit"}
    assert (sum(each.expired for each in stack.drained), swept.expired) == (TASKS, 0)
    assert max(each.oldest_overdue_ms for each in stack.drained) == NOW - EXPIRY
    assert (swept.complete, swept.logged, stack.left(), stack.exact()) == (True, TASKS, 0, True)


def test_new_work_does_not_keep_the_sweep_incomplete(pauses: list[Callable[[], None]]) -> None:
    """Under steady load, a sweep is complete when the work is done that waited when it began."""
    waiting: list[dict[str, Any]] = []
    stack = Stack(lambda _stack, event: waiting.append(event))
    stack.now_ms = START_MS + 100
    passing(stack, pauses)
    stack.settle(TASKS)
    fresh: list[str] = []

    def second() -> None:
        fresh.extend(stack.settle(TASKS, first=TASKS * (1 + len(fresh)), at_ms=stack.now_ms))
        if waiting:
            for _ in range(2):
                first = waiting.pop()
                for ids in stack.world().ledger.settled(before_ms=START_MS + 100, shard=first["shard"]):
                    stack.world().ledger.credit(ids, now_ms=stack.now_ms)

    pauses.append(second)
    swept = sweep(stack.world())
    assert (swept.complete, swept.logged, stack.left() > TASKS) == (True, TASKS, True)
    assert len(stack.started) == SHARDS


def test_a_sweep_is_incomplete_while_drains_have_work_left(pauses: list[Callable[[], None]]) -> None:
    """The drains do one escrow a second, of fifty seconds."""
    stack = Stack(lambda *_: None)
    passing(stack, pauses)
    ids = stack.settle(2 * SECONDS)
    pauses.append(lambda: bool(stack.world().ledger.credit([ids.pop(0)], now_ms=stack.now_ms)))
    swept = sweep(stack.world())
    assert (swept.complete, swept.credited) == (False, 0)
    assert swept.logged >= SECONDS - 10, "the log is written meanwhile"
    assert swept.lag_ms >= NOW - START_MS


@pytest.mark.parametrize("poisoned", [1, ALONE_MAX])
def test_escrows_that_cannot_be_credited_block_no_shard(poisoned: int, pauses: list[Callable[[], None]]) -> None:
    """If many are left, the sweep looks at them itself, as no drain seems to run."""
    stack = Stack(at_once)
    passing(stack, pauses)
    ids = stack.settle(TASKS)
    for name in ids[:poisoned]:
        item = stack.memory.items[f"ESC#{name}"]
        stack.memory.items[f"ESC#{name}"] = {each: value for each, value in item.items() if each != "tariff"}
    with quiet():
        swept = sweep(stack.world())
    assert sum(each.credited for each in stack.drained) == TASKS - poisoned == swept.logged
    assert sum(each.failed for each in stack.drained) == poisoned
    assert (swept.failed, swept.complete, stack.left()) == (poisoned, True, poisoned)


def test_channels_and_charges_have_drains_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(lost)
    world = stack.world()
    queues = {"due": [f"c{number}" for number in range(ALONE_MAX + 1)], "dues": [*range(ALONE_MAX + 1)]}
    monkeypatch.setattr(world, "channels", type("Channels", (), {"due": lambda _, **__: iter(queues["due"])})(), False)
    monkeypatch.setattr(world.registry, "dues", lambda: iter(queues["dues"]))
    monkeypatch.setattr(sweeps.time, "sleep", lambda _: (queues["due"].clear(), queues["dues"].clear()))
    assert sweep(world).complete
    assert stack.started == [("charge", None), ("close", None)]


def test_a_drain_does_one_step_of_one_shard() -> None:
    stack = Stack(lost)
    stack.settle(TASKS)
    of_shard = [name for name, item in stack.memory.items.items() if item.get("work") == {"S": "SETTLED#1"}]
    before = drain(stack.world(), {"step": "refund", "shard": 1})
    assert (before.complete, before.credited, before.expired) == (True, 0, 0)
    done_ = drain(stack.world(), {"step": "credit", "shard": 1})
    assert (done_.complete, done_.credited, done_.logged, done_.published) == (True, len(of_shard), 0, None)
    for event in ({}, {"step": "log"}, {"step": None, "shard": 1}, {"step": ["credit"]}):
        with pytest.raises((ValueError, TypeError)):
            drain(stack.world(), event)
    assert stack.started == [], "a drain starts no other"


def test_only_the_sweep_says_whether_the_work_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarms take the largest value of a minute, so a drain that is finished must not hide others that are not."""
    seen: list[tuple[str, Metric, int]] = []
    monkeypatch.setattr(sweeps, "measure", lambda metric, value: seen.append(("measure", metric, value)))
    monkeypatch.setattr(sweeps, "count", lambda metric, value: seen.append(("count", metric, value)))
    stack = Stack(lost)
    stack.settle(3)
    drain(stack.world(), {"step": "credit", "shard": 1})
    assert {metric for _, metric, _ in seen}.isdisjoint({Metric.SWEEP_COMPLETE, Metric.SWEEP_LAG, Metric.LOG_SIZE})
    seen.clear()
    sweep(stack.world())
    assert {Metric.SWEEP_COMPLETE, Metric.SWEEP_LAG, Metric.LOG_SIZE} <= {metric for _, metric, _ in seen}


# All interleavings of drains and the log's writer.

SHARDS_WALKED = 2
COUNTED: list[tuple[int, int]] = []


def write_log(world: World) -> None:
    append_to_log(world.ledger)
    publish_log(world, {})


def cast(name: str) -> Actor:
    kind, _, shard = name.partition(" ")
    if kind == "log":
        return Actor(name, write_log)
    if kind == "sweep":
        return Actor(name, sweep)
    return Actor(name, lambda world: drain(world, {"step": kind, "shard": int(shard)}))


def _spare(ledger: Ledger) -> list[Escrow]:
    """Escrows that `on_each_shard` has not for two of each shard."""
    return on_each_shard(ledger, SHARDS, each=ALONE_MAX // SHARDS + 1)[ALONE_MAX // SHARDS :: ALONE_MAX // SHARDS + 1]


def on_each_shard(ledger: Ledger, shards: int, *, each: int) -> list[Escrow]:
    """Escrows of one owner, on every work shard as many, shard by shard."""
    counts = dict.fromkeys(range(shards), 0)
    found = []
    for number in range(1_000):
        escrow = hold(task_id=f"t{number}")
        shard = ledger._work_shard(escrow.escrow_id)
        if counts[shard] < each:
            counts[shard] += 1
            found.append(escrow)
    return sorted(found, key=lambda escrow: ledger._work_shard(escrow.escrow_id))


ACTORS = [
    ("credit 0", "credit 1"),
    ("credit 0", "credit 0 again"),
    ("credit 0", "log"),
    ("log", "log again"),
    ("credit 0", "credit 1", "log"),
    ("credit 0", "log", "log again"),
    ("credit 0", "sweep"),
    ("refund 0", "refund 0 again", "credit 0"),
]


@pytest.mark.parametrize("names", ACTORS, ids="+".join)
def test_drains_in_every_order_with_one_lost_response(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """All credits and charges are made once, each receipt is in the log once, and every table recovers."""
    monkeypatch.setattr("quittance.store.ledger.random.randrange", lambda _: 3)
    memory = Memory()
    world = World(memory, now_ms=lambda: START_MS, work_shards=SHARDS_WALKED, left_ms=lambda: 10_000)
    world.ledger.deposit("alice", "start", 10**9, now_ms=START_MS)
    world.ledger.deposit("oskar", "start", 150, now_ms=START_MS)
    world.ledger.move_bond("oskar", "bond", 150, now_ms=START_MS)  # less than the failures cost
    escrows = on_each_shard(world.ledger, SHARDS_WALKED, each=1 if len(names) > 2 else 2)
    for number, escrow in enumerate(escrows):
        funded = world.ledger.fund(escrow)
        if not names[0].startswith("refund"):
            world.ledger.settle(done(world, funded, FAILED if number % 2 == 0 else DONE, START_MS + number))
    if names[0] == "log":
        for escrow in escrows[:3]:
            world.ledger.credit([escrow.escrow_id], now_ms=START_MS)
    actors = [cast(name.removesuffix(" again")) for name in names]
    actors = [Actor(name, actor.story) for name, actor in zip(names, actors, strict=True)]
    with quiet():
        walked = Walk(memory.items, actors, [EXPIRY], losses=1, work_shards=SHARDS_WALKED).all()
    assert [line for line in walked.wrong if ", due was Due" not in line] == []
    assert walked.interleavings > walked.states > 1
    COUNTED.append((walked.states, walked.interleavings))


def test_the_number_of_interleavings_is_reported(record_property: Callable[[str, str], None]) -> None:
    states, interleavings = map(sum, zip(*COUNTED, strict=True))
    record_property("figure", f"{len(COUNTED)} walks, {states:,} states, {interleavings:,} interleavings, all in order")
