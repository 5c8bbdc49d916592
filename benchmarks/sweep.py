"""The cost of a sweep: store calls for a hundred settled tasks, by the number of their agents and owners.

    python benchmarks/sweep.py            # prints the table; exit status 1 if a goal is missed

The platform's code runs on the proofs' in-memory DynamoDB, with the template's number of shards. A hundred tasks of a
hundred agents took 1,025 calls when a batch had one agent (before ADR 26), and 49 when an append had one batch.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from quittance.usecases import execute

sys.path.insert(0, str(Path(__file__).parents[1] / "layers" / "runtime"))
sys.path.insert(0, str(Path(__file__).parents[1]))


from quittance.ledger.balances import bond_account
from quittance.ledger.credits import format_credits
from quittance.run import Job, Meter, Outcome, Run
from quittance.usecases.sweep import sweep
from tests.proofs import world as worlds
from tests.proofs.memory import Memory

TASKS = 100
SHARDS = 4
BEFORE = {(1, 1): 33, (100, 1): 33, (100, 100): 49}
CALLS_MAX = {(1, 1): 21, (100, 1): 24, (100, 100): 26}
FAILING_CALLS_MAX = 30
TARIFF = f'{{"type":"flat","price":"{format_credits(worlds.FLAT_MICRO)}"}}'


class Counting:
    """The in-memory DynamoDB, with its calls counted."""

    def __init__(self) -> None:
        self.memory, self.calls = Memory(), Counter[str]()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.memory, name)

        def counted(**arguments: Any) -> Any:
            self.calls[name] += 1
            return call(**arguments)

        return counted


def swept(agents: int, owners: int, *, fails: bool) -> Counter[str]:
    """Settle TASKS tasks of this many agents and owners, sweep once, and return the sweep's calls."""

    def run(job: Job) -> Run:
        meter = Meter(fuel=1_000, wall_ms=1, input_bytes=len(job.stdin), output_bytes=4)
        return Run(Outcome.EXIT_CODE, "", meter, 3) if fails else Run(Outcome.SUCCEEDED, "", meter, 0, b"done")

    client = Counting()
    now_ms = worlds.START_MS
    world = worlds.World(client, now_ms=lambda: now_ms, run=run, work_shards=SHARDS, left_ms=lambda: 30_000)
    world.ledger.deposit("alice", "start", 10**9, now_ms=now_ms)
    names = [f"agt_{number:026}" for number in range(agents)]
    for number, name in enumerate(names):
        owner = f"owner-{number % owners}"
        worlds.AGENTS[name] = worlds._agent(name, owner, TARIFF)  # noqa: SLF001 - as in the proofs
        world.ledger.deposit(bond_account(owner), name, 10**6, now_ms=now_ms)
    for number in range(TASKS):
        execute.execute(world, "alice", worlds.ask(f"t{number}", names[number % agents], budget=10**5))
    client.calls.clear()
    done = sweep(world)
    if (done.credited, done.logged, done.published) != (TASKS, TASKS, TASKS):
        msg = f"the sweep did not process all tasks: {done}"
        raise RuntimeError(msg)
    return client.calls


def main() -> int:
    """Print a line for each number of agents and owners; return the exit status."""
    failed = False
    sys.stdout.write(f"| {TASKS} tasks of | calls before | calls | most of them |\n|---|---|---|---|\n")
    for (agents, owners), most in CALLS_MAX.items():
        for fails in (False, True):
            calls = swept(agents, owners, fails=fails)
            named = f"{agents} agents, {owners} owners" + (", all failing" if fails else "")
            before = "-" if fails else BEFORE.get((agents, owners), "-")
            often = ", ".join(f"{name} {count}" for name, count in calls.most_common(4))
            sys.stdout.write(f"| {named} | {before} | {calls.total()} | {often} |\n")
            failed = failed or calls.total() > (FAILING_CALLS_MAX if fails else most)
    return int(failed)


if __name__ == "__main__":
    with worlds.quiet(), mock.patch("quittance.observability.measure"):  # print only the results
        sys.exit(main())
