"""How many tasks one payer can run at once, with one balance item and with shards, at given rates and all at once.

    python benchmarks/hot_wallet.py

DynamoDB permits one transaction at a time for an item. The model here holds the items of each write transaction for 6
to 12 ms and rejects another transaction on any of them at once with TransactionConflict, as the service does; plain
reads pass. It wraps the in-memory DynamoDB of the tests, so the ledger's code runs: each task funds with a budget, runs
for 50 ms, and settles in part, so the wallet is written twice. Environments are reused as by Lambda, the most recently
used first. A task that is still rejected when its time is up counts as failed (503).

Printed for each rate: tasks, failed tasks, write transactions sent for each task (at least 2), and the time of the two
operations on money together. Exit status 1 if a task failed although the wallet was sharded.
"""

import heapq
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from botocore.exceptions import ClientError
from scale import QUICK, scaled, status

from quittance.errors import PlatformUnavailableError
from quittance.limits import BALANCE_SHARDS, CALL_MS_MAX
from quittance.run import Meter, Outcome, Run
from tests.proofs.memory import Memory
from tests.proofs.test_matrix import done, hold
from tests.proofs.world import FLAT_MICRO, START_MS, World

BUDGET = 2 * FLAT_MICRO
RUN_S = 0.05
PATIENCE_MS = CALL_MS_MAX + 5_800  # what `tasks.execute` leaves to funding before a run of 25 s
SECONDS = scaled(10, 1)
BURST = scaled(200, 20)
DONE = Run(Outcome.SUCCEEDED, "", Meter(fuel=1, wall_ms=5))


@dataclass
class Contended:
    """The in-memory DynamoDB, with items that a transaction can hold."""

    memory: Memory
    random: Random = field(default_factory=lambda: Random(1))
    sent: int = 0
    _held: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __getattr__(self, name: str) -> Any:
        def call(**arguments: Any) -> Any:
            with self._lock:
                return getattr(self.memory, name)(**arguments)

        return call

    def transact_write_items(self, *, TransactItems: list[Any]) -> Any:  # noqa: N803 - boto's names
        keys = [(c.get("Item") or c["Key"])["pk"]["S"] for action in TransactItems for c in action.values()]
        with self._lock:
            self.sent += 1
            if self._held.intersection(keys):
                reasons = [{"Code": "TransactionConflict" if key in self._held else "None"} for key in keys]
                answer: Any = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
                raise ClientError(answer, "TransactWriteItems")
            self._held.update(keys)
            held_s = self.random.uniform(0.006, 0.012)
        time.sleep(held_s)
        with self._lock:
            self._held.difference_update(keys)
            return self.memory.transact_write_items(TransactItems=TransactItems)


class Environments:
    """Execution environments as Lambda's: one for each concurrent task, reused afterwards. `new` makes one."""

    def __init__(self, new: Callable[[], World]) -> None:
        self._new, self._made = new, 0
        self._free: list[tuple[int, World]] = []
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[World]:
        with self._lock:
            if self._free:
                number, world = heapq.heappop(self._free)
            else:
                self._made += 1
                number = -self._made
                world = self._new()
        try:
            yield world
        finally:
            with self._lock:
                heapq.heappush(self._free, (number, world))


def task(environments: Environments, number: int, took_s: list[float], failed: list[int]) -> None:
    with environments.one() as world:
        escrow = hold(task_id=f"t{number}", budget=BUDGET)
        began = time.monotonic()
        try:
            world.ledger.fund(escrow)
            funded = time.monotonic()
            time.sleep(RUN_S)
            ran = time.monotonic()
            world.ledger.settle(done(world, escrow, DONE, START_MS + 1))
        except PlatformUnavailableError:
            failed.append(number)
        else:
            took_s.append(time.monotonic() - ran + funded - began)


def measure(rate: int | None) -> tuple[str, int]:
    """Measure `rate` tasks a second, or BURST at once; return a row and the number of failed tasks."""
    memory = Memory()
    client = Contended(memory)
    count = BURST if rate is None else rate * SECONDS
    World(memory, now_ms=lambda: START_MS).ledger.deposit("alice", "start", 2 * count * BUDGET, now_ms=START_MS)
    environments = Environments(lambda: World(client, now_ms=lambda: START_MS, left_ms=lambda: PATIENCE_MS))
    took_s, failed = list[float](), list[int]()
    with ThreadPoolExecutor(max_workers=400) as pool:
        began = time.monotonic()
        for number in range(count):
            if rate is not None:
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
            pool.submit(task, environments, number, took_s, failed)
    settled = sum(item["state"]["S"] == "released" for pk, item in memory.items.items() if pk.startswith("ESC#"))
    assert settled == len(took_s) == count - len(failed), "a task was lost"
    took_s.sort()
    middle, slow = (took_s[int(len(took_s) * part)] * 1_000 for part in (0.5, 0.99)) if took_s else (0, 0)
    name = f"{count} at once" if rate is None else f"{rate}/s"
    row = f"{name:>12} {count:6} {len(failed):7} {client.sent / count:9.2f} {middle:8.0f} {slow:8.0f}"
    return row, len(failed)


def main() -> int:
    failures = 0
    for shards in (1, BALANCE_SHARDS):
        sys.stdout.write(f"\nshards: {shards}\n        rate  tasks  failed  sent/task  p50 ms   p99 ms\n")
        with (
            mock.patch("quittance.ledger.balances.BALANCE_SHARDS", shards),
            mock.patch("quittance.store.ledger.BALANCE_SHARDS", shards),
        ):
            for rate in (10, None) if QUICK else (10, 25, 50, 100, 200, None):
                row, failed = measure(rate)
                failures += failed if shards > 1 else 0
                sys.stdout.write(row + "\n")
                sys.stdout.flush()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(status(main()))
