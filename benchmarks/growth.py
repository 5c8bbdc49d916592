"""How the system behaves as it grows: a simulation of 10 to 10,000 tasks a second, and what must be raised for them.

    python benchmarks/growth.py              # prints the tables; exit status 1 if a goal is missed
    python benchmarks/growth.py --json FILE  # also writes the figures

Simulated are the two writes of a task and the limits that AWS documents. What they are made of was measured: the
processor time of a task by path.py, its write units by cost.py, the speed of sweep and log by backlog.py.

- A transaction holds its items for 6 to 12 ms. Another write of one of them is rejected at once; the ledger waits with
  full jitter and takes another of the account's 16 balance shards, as `store/ledger.py` does. A task whose patience
  ends has failed (503, nothing is lost).
- A ticket's task makes one plain write of an item of its own.
- A key of a table or an index takes 1,000 write units a second. Each task writes its keys: the balance shards, the
  account's statement, the work shards, the shards of the index `open`, and for a ticket only its own.
- Lambda runs 1,000 environments at once, the REST API passes 10,000 requests a second, and a table takes 40,000 write
  units a second, unless the account's quotas are raised. A new table begins at 4,000 and doubles in half an hour.
- The drains of the sweep credit, and one writer appends to the log, as fast as measured. What comes in faster waits.

Mixes: "all alike" has as many payers and agents as the tasks need; "Zipf" has 10,000 of each with exponent 1;
"hot agent" has one agent and many payers; "hot payer" one payer and many agents; "hot channel" is a hot payer who pays
by tickets.
"""

import argparse
import heapq
import json
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import accumulate, count
from pathlib import Path
from random import Random
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from scale import scaled, status

from quittance.limits import BALANCE_SHARDS, CALL_MS_MAX, PARTY_SHARDS

# Measured: see docs/performance.md.
OWN_MS: Final = 3.0  # python benchmarks/path.py: processor time of a task, at one core
TASK_UNITS: Final = 34.7  # python benchmarks/cost.py: write units of a task, its sweep and its listings
TICKET_UNITS: Final = 21.6
CREDITS_PER_DRAIN_S: Final = 800.0  # python benchmarks/backlog.py: escrows that one drain credits in a second
LOGGED_PER_S: Final = 8_000.0  # the same: receipts of one agent that the log's writer alone appends and publishes
LOGGED_PER_S_OF_MANY: Final = 2_000.0  # the same of 10,000 agents, whose standings it reads and writes; of 1,000: 4,100

# Assumed: a run, and the times of DynamoDB inside a region.
RUN_MS: Final = 50.0
HOLD_MS: Final = (6.0, 12.0)
PUT_MS: Final = (3.0, 6.0)
PATIENCE_MS: Final = CALL_MS_MAX + 5_800  # what a task of 25 s leaves to funding
BACKOFF_MS, BACKOFF_MS_MAX = 25.0, 1_000.0

# Documented by AWS, as the defaults of an account.
KEY_UNITS_PER_S: Final = 1_000
ENVIRONMENTS: Final = 1_000
API_PER_S: Final = 10_000
TABLE_UNITS_PER_S: Final = 40_000

RATES: Final = (10, 100, 1_000, 10_000)
SECONDS: Final = scaled(10, 1)
TASKS_MAX: Final = scaled(30_000, 500)
NAMES: Final = 10_000
WORK_SHARDS: Final = 4
WORK_SHARDS_MAX: Final = 64
GOAL_RATE: Final = 1_000
SWEEP_EVERY_S, HOUR_S = 60.0, 3_600.0
CONFLICTS_MAX: Final = 0.1


@dataclass(frozen=True)
class Mix:
    """Who pays whom."""

    name: str
    payers: int
    agents: int
    zipf: bool = False
    by_ticket: bool = False


MIXES: Final = (
    Mix("all alike", NAMES, NAMES),
    Mix("Zipf", NAMES, NAMES, zipf=True),
    Mix("hot agent", NAMES, 1),
    Mix("hot payer", 1, NAMES),
    Mix("hot channel", 1, NAMES, by_ticket=True),
)


@dataclass
class Row:
    """What the simulation shows for a mix at a rate."""

    mix: str
    rate: int
    tasks: int = 0
    failed: int = 0
    conflicts: int = 0
    money_ms: list[float] = field(default_factory=list)
    environments: int = 0
    units_per_s: float = 0.0
    hottest: dict[str, float] = field(default_factory=dict)
    work_shards: int = WORK_SHARDS
    sweep_lag_s: float = 0.0
    logged_per_s: float = 0.0
    log_lag_s: float = 0.0

    @property
    def limits(self) -> list[str]:
        """What must be raised, or what bends, first the worst."""
        over = [
            (self.environments / ENVIRONMENTS, f"Lambda: {self.environments} environments"),
            (self.rate / API_PER_S, "REST API: requests a second"),
            (self.units_per_s / TABLE_UNITS_PER_S, f"table: {self.units_per_s:,.0f} write units a second"),
            (self.work_shards / WORK_SHARDS, f"LedgerShards: {self.work_shards}"),
            (self.log_lag_s / SWEEP_EVERY_S, f"log: its writer appends {self.logged_per_s:,.0f} a second, see ADR 45"),
            *(
                (units / KEY_UNITS_PER_S, f"key of {name}: {units:,.0f} a second")
                for name, units in self.hottest.items()
            ),
        ]
        return [what for ratio, what in sorted(over, reverse=True) if ratio > 1]


Task = Generator[float, float, None]
"""A task in simulated time: it yields the moment, in ms, at which it goes on, and is sent that moment."""


class Simulation:
    """Tasks that arrive at random, and the balance shards that they write."""

    def __init__(self, mix: Mix, rate: int) -> None:
        self.mix, self.row, self.random = mix, Row(mix.name, rate), Random(f"{mix.name} {rate}")
        self._free: list[dict[int, int]] = []  # environments, the last used last: the shards that they remember
        self._running = 0
        self._held_until: defaultdict[tuple[int, int], float] = defaultdict(float)
        self._weights = list(accumulate(1 / rank for rank in range(1, NAMES + 1)))

    def run(self) -> Row:
        """Run to the end of the last task."""
        row, at_ms, order = self.row, 0.0, count()
        events: list[tuple[float, int, Task]] = []
        for _ in range(min(TASKS_MAX, row.rate * SECONDS)):
            at_ms += self.random.expovariate(row.rate) * 1_000
            heapq.heappush(events, (at_ms, next(order), self._task(at_ms)))
        row.tasks = len(events)
        for _, _, task in events:
            next(task)
        while events:
            at_ms, _, task = heapq.heappop(events)
            try:
                heapq.heappush(events, (task.send(at_ms), next(order), task))
            except StopIteration:
                continue
        self._sum_up()
        return row

    def _task(self, begins_ms: float) -> Task:
        now_ms = yield begins_ms
        self._running += 1
        self.row.environments = max(self.row.environments, self._running)
        environment = self._free.pop() if self._free else {}
        now_ms = yield now_ms + OWN_MS / 2
        if self.mix.by_ticket:
            money_ms = self.random.uniform(*PUT_MS)
            now_ms = yield now_ms + RUN_MS + money_ms
        else:
            payer = self._payer()
            funding_ms = now_ms
            now_ms = yield from self._transaction(payer, environment, now_ms)
            if now_ms < 0:
                self.row.failed += 1
                self._end(environment)
                return
            money_ms = now_ms - funding_ms
            settling_ms = now_ms = yield now_ms + RUN_MS
            now_ms = yield from self._transaction(payer, environment, now_ms)
            money_ms += abs(now_ms) - settling_ms
        self.row.money_ms.append(money_ms)
        yield abs(now_ms) + OWN_MS / 2
        self._end(environment)

    def _transaction(self, payer: int, environment: dict[int, int], began_ms: float) -> Generator[float, float, float]:
        """Writes one of a payer's balance shards; returns when it is done, or below zero when its patience ended."""
        now_ms, attempts, shard = began_ms, 0, environment.get(payer, 0)
        while self._held_until[payer, shard] > now_ms:
            self.row.conflicts += 1
            attempts += 1
            now_ms = yield now_ms + self.random.uniform(0, min(BACKOFF_MS_MAX, BACKOFF_MS * 2**attempts))
            if now_ms - began_ms > PATIENCE_MS:
                return -now_ms
            shard = self.random.randrange(BALANCE_SHARDS)
        environment[payer] = shard
        self._held_until[payer, shard] = now_ms + self.random.uniform(*HOLD_MS)
        return (yield self._held_until[payer, shard])

    def _end(self, environment: dict[int, int]) -> None:
        self._running -= 1
        self._free.append(environment)

    def _payer(self) -> int:
        if not self.mix.zipf:
            return self.random.randrange(self.mix.payers)
        return bisect_left(self._weights, self.random.random() * self._weights[-1])

    def _sum_up(self) -> None:
        """The load of keys, functions and sweep, which follows from the rate."""
        row, mix = self.row, self.mix
        most = 1 / self._weights[-1] if mix.zipf else 0.0
        of_payer, of_agent = (row.rate * max(most, 1 / names) for names in (mix.payers, mix.agents))
        needed = max(-(-4 * row.rate // KEY_UNITS_PER_S), -(-row.rate // CREDITS_PER_DRAIN_S))
        row.work_shards = min(max(WORK_SHARDS, int(needed)), WORK_SHARDS_MAX)
        row.hottest = {
            "a work shard": 2 * row.rate / row.work_shards,
            "what an owner earned": 2 * of_agent / PARTY_SHARDS,
        }
        if not mix.by_ticket:
            row.hottest |= {
                "a balance shard": 4 * of_payer / BALANCE_SHARDS,
                "what a payer has open": 2 * of_payer / PARTY_SHARDS,
                "a payer's statement": of_payer,
            }
        row.units_per_s = row.rate * (TICKET_UNITS if mix.by_ticket else TASK_UNITS)
        row.sweep_lag_s = _lag_s(row.rate, row.work_shards * CREDITS_PER_DRAIN_S)
        row.logged_per_s = LOGGED_PER_S if mix.agents == 1 else LOGGED_PER_S_OF_MANY
        row.log_lag_s = _lag_s(row.rate, row.logged_per_s)


def _lag_s(rate: float, served_per_s: float) -> float:
    """How long an entry waits at most: for the next sweep, or after an hour at a rate that is not served."""
    return SWEEP_EVERY_S if rate <= served_per_s else HOUR_S * (rate / served_per_s - 1)


def report(rows: list[Row]) -> int:
    """Print the table and what must be raised; return 1 if a goal is missed."""
    print("mix          tasks/s   failed  conflicts   money p50   p99 ms  environments  sweep lag    log lag  shards")
    for row in rows:
        took = sorted(row.money_ms) or [0.0]
        p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
        failed, conflicts = row.failed / row.tasks, row.conflicts / row.tasks
        print(
            f"{row.mix:<12}{row.rate:8,}{failed:9.1%}{conflicts:11.2f}{p50:12.0f}{p99:9.0f}{row.environments:14,}"
            f"{row.sweep_lag_s:9,.0f} s{row.log_lag_s:9,.0f} s{row.work_shards:8}"
        )
    print("\nwhat bends, or must be raised, the worst first")
    for row in rows:
        if row.limits:
            print(f"{row.mix:<12}{row.rate:8,}  {'; '.join(row.limits)}")
    goal = next(row for row in rows if (row.mix, row.rate) == ("hot agent", GOAL_RATE))
    missed = goal.failed or goal.conflicts > CONFLICTS_MAX * goal.tasks or goal.log_lag_s > SWEEP_EVERY_S
    print(f"\nlinear to {GOAL_RATE:,} tasks a second on one hot agent: {'MISSED' if missed else 'ok'}")
    behind = [row.mix for row in rows if row.rate == GOAL_RATE and row.log_lag_s > SWEEP_EVERY_S]
    print(f"the log keeps up with {GOAL_RATE:,} tasks a second in each mix: {'MISSED' if behind else 'ok'}")
    return int(bool(missed or behind))


def main() -> int:
    """Simulate and print; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    rows = [Simulation(mix, rate).run() for mix in MIXES for rate in RATES]
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in rows]))
    return report(rows)


if __name__ == "__main__":
    sys.exit(status(main()))
