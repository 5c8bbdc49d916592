"""How long the sweep takes for a large backlog of settled escrows, alone and with drains.

    python benchmarks/backlog.py            # 100,000 escrows; QUITTANCE_QUICK=1 for 2,500

The real sweep and drains run on a model of DynamoDB and Lambda in simulated time. Each call of DynamoDB is made by
the real client, which serialises, signs and parses it. The processor time that this and the platform's code take is
added to the invocation's clock, divided by the share of a processor that Lambda gives to its memory (1,769 MB have
one). The model answers: a read takes 3 ms and 0.1 ms for each item, a query 4 ms and more for its page of at most 1 MB.
A transaction holds its items for 6 to 12 ms and 0.1 ms for each item; another write of one of them is rejected at once
with TransactionConflict. An object of S3 takes 30 ms. A drain starts 1.5 s after its invocation. The sweep is invoked
every minute; all invocations end after a minute.

Then the log's writer alone appends and publishes receipts that drains have credited: how many in a second of simulated
time, with the sweep's memory and with that of a whole processor.

Printed: the simulated time until all escrows are credited, and until all receipts are in a published checkpoint; calls
of DynamoDB, transactions that conflicted, and processor seconds of this machine. Exit status 1 if a row of 100,000
takes longer than the goal, or the writer alone is slower than its goal.
"""

import base64
import heapq
import json
import sys
import threading
import time
from bisect import bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import boto3
from botocore.exceptions import ClientError
from scale import scaled, status

from quittance.limits import CALL_MS_MAX, CALLS_AT_ONCE_MAX
from quittance.store.dynamo_client import DynamoDB
from quittance.usecases import drain as drains
from quittance.usecases import sweep as sweeps
from quittance.usecases.sweep import Steps
from tests.proofs.memory import Memory
from tests.proofs.test_matrix import DONE, FAILED, done, hold
from tests.proofs.world import START_MS, Shelf, World, quiet

BACKLOG = scaled(100_000, 2_500)
GOAL_S = 300
WRITER_GOAL_PER_S = 1_500  # receipts, with any number of agents: half as many again as 1,000 tasks a second need
LIFE_S = 60.0
CPU = 1_024 / 1_769  # of the sweep and of the drains
DRAINS = 4
WRITTEN = scaled(40_000, 2_500)  # receipts that the log's writer appends alone, in less than its invocation's time
COLD_START_S = 1.5
PAGE_ITEMS = 4_000  # of the index, in 1 MB
NOW_MS = START_MS + 600_000


class Items(dict[str, Any]):
    """The items of the table, with the entries of the index `work` in order."""

    def __init__(self) -> None:
        super().__init__()
        self.queues: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)

    def __setitem__(self, pk: str, item: Any) -> None:
        before, after = _entry(self.get(pk)), _entry(item)
        if before != after:
            if before:
                queue = self.queues[before[0]]
                del queue[bisect_right(queue, before[1]) - 1]
            if after:
                insort(self.queues[after[0]], after[1])
        super().__setitem__(pk, item)

    def update(self, items: Iterable[tuple[str, Any]]) -> None:  # type: ignore[override]  # as the model calls it
        for pk, item in items:
            self[pk] = item


def _entry(item: Mapping[str, Any] | None) -> tuple[str, tuple[int, str]] | None:
    if item is None or "work" not in item:
        return None
    return item["work"]["S"], (int(item["work_at"]["N"]), item["pk"]["S"])


class Indexed(Memory):
    """The in-memory DynamoDB, whose queries of the index `work` take as long as their answer and have pages."""

    def __init__(self) -> None:
        super().__init__()
        self.items: Items = Items()

    def query(self, **call: Any) -> dict[str, Any]:
        values = call["ExpressionAttributeValues"]
        (name,) = (value["S"] for value in values.values() if "S" in value)
        queue = self.items.queues[name]
        first = 0
        if start := call.get("ExclusiveStartKey"):
            first = bisect_right(queue, (int(start["work_at"]["N"]), start["pk"]["S"]))
        bounds = [int(value["N"]) for value in values.values() if "N" in value]
        last = bisect_right(queue, (min(bounds), "~")) if bounds else len(queue)
        page = queue[first : min(last, first + PAGE_ITEMS)]
        items = [{"pk": {"S": pk}, "work": {"S": name}, "work_at": {"N": str(at)}} for at, pk in page]
        return {"Items": items} | ({"LastEvaluatedKey": items[-1]} if first + len(page) < last else {})


@dataclass
class Core:
    """The part of a processor that an invocation has, which its threads share, and until when it is busy."""

    speed: float
    busy_s: float = 0.0


@dataclass
class Invocation:
    """One invocation, or one thread of it, in simulated time. It runs only while no other does."""

    core: Core
    began_s: float
    now_s: float
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    resumed_s: float = 0.0


class Simulation:
    """Runs invocations in threads, one at a time: the one whose next event is the earliest."""

    def __init__(self) -> None:
        self.memory, self.random = Indexed(), Random(1)
        self.calls: Counter[str] = Counter()
        self.conflicts = 0
        self.cpu_s = 0.0
        self.credited_s = self.published_s = 0.0
        self.shelf = _Bucket(self)
        self._held: dict[str, float] = {}
        self._waiting: list[tuple[float, int, Invocation]] = []
        self._count = 0
        self._here = threading.local()
        self._parked = threading.Semaphore(0)
        self._failed: list[BaseException] = []

    @property
    def here(self) -> Invocation:
        found: Invocation = self._here.invocation
        return found

    def start(self, at_s: float, cpu: float, run: Callable[[], object]) -> None:
        """Starts an invocation at a time."""
        self._begin(Invocation(Core(cpu), at_s, at_s), run)

    def _begin(self, invocation: Invocation, run: Callable[[], object]) -> None:
        def body() -> None:
            invocation.turn.acquire()
            self._here.invocation = invocation
            invocation.resumed_s = time.thread_time()
            try:
                run()
            except BaseException as exc:  # noqa: BLE001 - raised again by `run`
                self._failed.append(exc)
            self._spend()
            self._parked.release()

        threading.Thread(target=body, daemon=True).start()
        self._push(invocation)

    def at_once(self, do: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """The platform's `at_once`, with threads in simulated time that share the invocation's processor."""
        waiting = list(items)
        if len(waiting) < 2:
            return [do(each) for each in waiting]
        self._spend()
        here, left = self.here, iter(list(enumerate(waiting)))
        results: dict[int, Any] = {}
        failed: list[BaseException] = []
        running = min(len(waiting), CALLS_AT_ONCE_MAX)

        def work() -> None:
            nonlocal running
            for place, each in left:
                try:
                    results[place] = do(each)
                except BaseException as exc:  # noqa: BLE001 - raised again by `at_once`
                    failed.append(exc)
            self._spend()
            here.now_s = max(here.now_s, self.here.now_s)
            running -= 1
            if not running:
                self._push(here)

        for _ in range(running):
            self._begin(Invocation(here.core, here.began_s, here.now_s), work)
        self._parked.release()
        here.turn.acquire()
        here.resumed_s = time.thread_time()
        if failed:
            raise failed[0]
        return [results[place] for place in range(len(waiting))]

    def run(self) -> None:
        """Runs everything to its end."""
        while self._waiting:
            _, _, invocation = heapq.heappop(self._waiting)
            invocation.turn.release()
            self._parked.acquire()
            if self._failed:
                raise self._failed[0]

    def wait(self, seconds: float) -> None:
        """Lets simulated time pass for the invocation that calls, and others run meanwhile."""
        self._spend()
        here = self.here
        here.now_s += seconds
        self._push(here)
        self._parked.release()
        here.turn.acquire()
        here.resumed_s = time.thread_time()

    def _spend(self) -> None:
        """Adds the processor time since the invocation was resumed to its clock."""
        here = self.here
        spent_s = time.thread_time() - here.resumed_s
        self.cpu_s += spent_s
        if spent_s:
            here.core.busy_s = here.now_s = max(here.now_s, here.core.busy_s) + spent_s / here.core.speed
        here.resumed_s = time.thread_time()

    def _push(self, invocation: Invocation) -> None:
        self._count += 1
        heapq.heappush(self._waiting, (invocation.now_s, self._count, invocation))

    def now_ms(self) -> int:
        self._spend()
        return NOW_MS + int(self.here.now_s * 1_000)

    def left_ms(self) -> int:
        self._spend()
        return int((self.here.began_s + LIFE_S - self.here.now_s) * 1_000)

    def monotonic(self) -> float:
        self._spend()
        return self.here.now_s

    # DynamoDB.

    def client(self) -> Any:
        """A real client whose requests the model answers."""
        session = boto3.Session("x", "x", region_name="eu-central-1")
        made = DynamoDB(session, endpoint="http://dynamodb", connect_s=1, read_s=1)
        vars(made)["_connections"] = SimpleNamespace(host="dynamodb", post=self._answer)
        return made

    def _answer(self, headers: Mapping[str, str], body: bytes) -> tuple[int, None, bytes]:
        """What the client makes of the answer of its connection: status, no checksum, content."""
        self._spend()
        name = headers["x-amz-target"].rpartition(".")[2]
        operation = "".join("_" + letter.lower() if letter.isupper() else letter for letter in name).lstrip("_")
        call = _decoded(json.loads(body))
        call.pop("ClientRequestToken", None)
        self.calls[operation] += 1
        self.here.resumed_s = time.thread_time()
        code, answer = 200, {}
        try:
            answer = self._called(operation, call)
        except ClientError as refused:
            details = {name: value for name, value in refused.response.items() if name != "Error"}
            answer = {"__type": f"x#{refused.response['Error']['Code']}", **details}
            code = 400
        content = json.dumps(_encoded(answer), separators=(",", ":")).encode()
        self.here.resumed_s = time.thread_time()  # the model's own time does not count
        return code, None, content

    def _called(self, operation: str, call: dict[str, Any]) -> Any:
        if operation == "transact_write_items":
            return self._transact(call["TransactItems"])
        answer = getattr(self.memory, operation)(**call)
        count = len(answer.get("Items", ())) / 40 or sum(map(len, answer.get("Responses", {}).values()))
        self._pause(0.003 + count * 0.0001)
        return answer

    def _transact(self, actions: list[Any]) -> Any:
        keys = [(change.get("Item") or change["Key"])["pk"]["S"] for each in actions for change in each.values()]
        self._pause(0.002)
        now_s = self.here.now_s
        if any(self._held.get(key, 0.0) > now_s for key in keys):
            self.conflicts += 1
            reasons = [{"Code": "TransactionConflict" if self._held.get(key, 0) > now_s else "None"} for key in keys]
            error: Any = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
            raise ClientError(error, "TransactWriteItems")
        held_s = self.random.uniform(0.006, 0.012) + len(keys) * 0.0001
        self._held |= dict.fromkeys(keys, now_s + held_s)
        self._pause(held_s)
        answer = self.memory.transact_write_items(TransactItems=actions)
        self.look()
        return answer

    def _pause(self, seconds: float) -> None:
        """Lets time pass during a call, whose own processor time does not count."""
        self.here.resumed_s = time.thread_time()
        self.wait(seconds)

    # The platform.

    def world(self, *, with_drains: bool, shards: int) -> World:
        world = World(
            self._local_client(),
            now_ms=self.now_ms,
            work_shards=shards,
            left_ms=lambda: max(self.left_ms(), CALL_MS_MAX + 100),
            tiles=self.shelf,
        )
        if with_drains:
            world.settings = world.settings.model_copy(update={"drain_function": "drain"})
        vars(world)["drains"] = SimpleNamespace(start=lambda step, shard: self._drain(step, shard, shards))
        world.begin(self.left_ms)
        return world

    def _local_client(self) -> Any:
        before_s = time.thread_time()
        made = self.client()  # a warm environment has one
        self.here.resumed_s += time.thread_time() - before_s
        return made

    def _drain(self, step: str, shard: int | None, shards: int) -> None:
        self._spend()
        event = {"step": step, "shard": shard}
        self.start(
            self.here.now_s + COLD_START_S,
            CPU,
            lambda: drains.drain(self.world(with_drains=False, shards=shards), event),
        )

    def sweep(self, minute: int, *, with_drains: bool, shards: int) -> None:
        """Runs a sweep, and the next one a minute later if work is left then."""
        sweeps.sweep(self.world(with_drains=with_drains, shards=shards))
        self.look()
        if not self.is_done():
            at_s = (minute + 1) * 60.0
            self.start(at_s, CPU, lambda: self.sweep(minute + 1, with_drains=with_drains, shards=shards))

    def is_done(self) -> bool:
        return not any(self.memory.items.queues.values())

    def look(self) -> None:
        """Notes when the last escrow was credited and the last receipt was published."""
        if not self.credited_s and not any(queue for name, queue in self.memory.items.queues.items() if "#" in name):
            self.credited_s = self.here.now_s
        head = self.memory.items.get("LOG")
        if not self.published_s and head and head["published"]["N"] == str(BACKLOG):
            self.published_s = self.here.now_s


class _Bucket(Shelf):
    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation

    def keep(self, tile: Any, hashes: bytes) -> None:
        self._simulation.wait(0.03)
        super().keep(tile, hashes)

    def keep_checkpoint(self, size: int, checkpoint: str) -> None:
        self._simulation.wait(0.03)
        super().keep_checkpoint(size, checkpoint)


def _decoded(value: Any) -> Any:
    """A request's JSON with bytes for binary values."""
    if isinstance(value, dict):
        if value.keys() == {"B"} and isinstance(value["B"], str):
            return {"B": base64.b64decode(value["B"])}
        return {name: _decoded(each) for name, each in value.items()}
    return [_decoded(each) for each in value] if isinstance(value, list) else value


def _encoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {name: _encoded(each) for name, each in value.items()}
    return [_encoded(each) for each in value] if isinstance(value, list) else value


def fill(memory: Indexed, *, agents: int, owners: int, shards: int, escrows: int = BACKLOG) -> None:
    """Puts settled escrows: copies of one for each agent, every tenth of a failure, over the work shards."""
    model = Memory()
    world = World(model, now_ms=lambda: START_MS, left_ms=lambda: 10_000, work_shards=shards)
    world.ledger.deposit("alice", "start", 10**12, now_ms=START_MS)
    models = []
    for number in range(agents):
        agent, owner = f"agt_{number:026}", f"owner-{number % owners}"
        for run in (DONE, FAILED):
            escrow = world.ledger.fund(hold(task_id=f"t{number}{run.outcome}", agent_id=agent, owner=owner))
            world.ledger.settle(done(world, escrow, run, START_MS + 1))
            models.append(model.items[f"ESC#{escrow.escrow_id}"])
    for name, item in model.items.items():
        if not name.startswith("ESC#"):
            memory.items[name] = item
    for number in range(owners):
        bond = {"pk": {"S": f"ACCT#bond owner-{number}"}, "available": {"N": str(10**9)}}
        memory.items[bond["pk"]["S"]] = bond
    for number in range(escrows):
        of = models[2 * (number % agents) + (number % 10 == 0)]
        escrow_id = f"{number:026}"
        work = {"S": f"SETTLED#{world.ledger._work_shard(escrow_id)}"}  # noqa: SLF001 - as in the proofs
        memory.items[f"ESC#{escrow_id}"] = {
            **of,
            "pk": {"S": f"ESC#{escrow_id}"},
            "work": work,
            "work_at": {"N": str(START_MS + number)},
        }


def measure(agents: int, owners: int, shards: int, *, with_drains: bool) -> Simulation:
    """Sweeps one backlog to its end."""
    simulation = Simulation()
    fill(simulation.memory, agents=agents, owners=owners, shards=shards)
    simulation.start(0.0, CPU, lambda: simulation.sweep(0, with_drains=with_drains, shards=shards))
    with simulated(simulation):
        simulation.run()
    assert simulation.is_done()
    assert simulation.memory.items["LOG"]["published"] == {"N": str(BACKLOG)}
    return simulation


@contextmanager
def simulated(simulation: Simulation) -> Iterator[None]:
    """Inside it, the platform's clock, pauses and threads are those of the simulation."""
    publish = sweeps.publish_log

    def published(*arguments: Any) -> Any:
        answer = publish(*arguments)
        simulation.look()
        return answer

    clock = SimpleNamespace(monotonic=simulation.monotonic, sleep=simulation.wait)
    with ExitStack() as patches:
        patches.enter_context(mock.patch("quittance.store.dynamo.time", clock))
        patches.enter_context(mock.patch("quittance.usecases.sweep.time", clock))
        for name in ("quittance.store.log.at_once", "quittance.usecases.sweep.at_once"):
            patches.enter_context(mock.patch(name, simulation.at_once))
        patches.enter_context(mock.patch("quittance.usecases.sweep.publish_log", published))
        patches.enter_context(mock.patch("quittance.usecases.sweep.measure"))
        patches.enter_context(quiet())
        yield


@dataclass
class Written:
    """What the log's writer does alone with receipts that drains have credited before."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    appends: int = 0


def credited(agents: int, owners: int) -> Indexed:
    """A table with WRITTEN escrows that drains have credited."""
    simulation = Simulation()
    fill(simulation.memory, agents=agents, owners=owners, shards=DRAINS, escrows=WRITTEN)

    def credit(shard: int) -> None:
        Steps(simulation.world(with_drains=False, shards=DRAINS), shard=shard, is_drain=True).named("credit")()

    with simulated(simulation):
        for shard in range(DRAINS):
            simulation.start(0.0, CPU, partial(credit, shard))
        simulation.run()
    return simulation.memory


def write_log(table: Indexed, cpu: float) -> Written:
    """Appends and publishes what is credited, with a share of a processor."""
    simulation, written = Simulation(), Written()
    simulation.memory.items.update(table.items.items())

    def log() -> None:
        steps = Steps(simulation.world(with_drains=False, shards=DRAINS))
        for step in (steps._log, steps._publish):  # noqa: SLF001 - as in a round of the sweep
            assert step()
        written.seconds, written.cpu_s = simulation.monotonic(), simulation.cpu_s
        written.appends = simulation.calls["transact_write_items"]

    with simulated(simulation):
        simulation.start(0.0, cpu, log)
        simulation.run()
    assert simulation.memory.items["LOG"]["published"] == {"N": str(WRITTEN)}
    return written


def main() -> int:
    failed = False
    sys.stdout.write(
        f"{BACKLOG:,} settled escrows\n"
        "agents owners  drains  credited s  published s   calls  of a task  conflicts  processor s\n"
    )
    rows = [(1, 1, 4, False), (1, 1, 4, True), (1_000, 200, 4, False), (1_000, 200, 4, True), (1_000, 200, 16, True)]
    for agents, owners, shards, with_drains in rows:
        found = measure(
            scaled(agents, min(agents, 20)), scaled(owners, min(owners, 10)), shards, with_drains=with_drains
        )
        calls = found.calls.total()
        sys.stdout.write(
            f"{agents:6,} {owners:6} {shards if with_drains else 0:7} {found.credited_s:11.0f}"
            f" {found.published_s:12.0f} {calls:7,} {calls / BACKLOG:10.3f} {found.conflicts:10,}"
            f" {found.cpu_s:12.0f}\n"
        )
        sys.stdout.flush()
        failed = failed or (with_drains and found.published_s > GOAL_S)
    sys.stdout.write("\nthe log's writer alone\nagents owners  memory MB  receipts/s  processor us  appends\n")
    for agents, owners in ((1, 1), (1_000, 200), (10_000, 2_000)):
        table = credited(scaled(agents, min(agents, 20)), scaled(owners, min(owners, 10)))
        for memory_mb in (1_024, 1_769):
            wrote = write_log(table, memory_mb / 1_769)
            per_s = WRITTEN / wrote.seconds
            failed = failed or per_s < WRITER_GOAL_PER_S
            sys.stdout.write(
                f"{agents:6,} {owners:6,} {memory_mb:10,} {per_s:11,.0f}"
                f" {1e6 * wrote.cpu_s / WRITTEN:13.0f} {wrote.appends:8,}\n"
            )
            sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(status(main()))
