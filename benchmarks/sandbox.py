"""The cost of the sandbox: ratios to the same work without it, measured in the same run.

    python benchmarks/sandbox.py

Exit status 1 if a value exceeds its limit. The absolute numbers depend on the machine and on its other work; the ratio
and the memory hardly do.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from quittance import limits

sys.path.insert(0, str(Path(__file__).parents[1] / "layers" / "runtime"))

import wasmtime
from scale import scaled, status

from quittance.run import Job, Outcome
from quittance.sandbox import Sandbox, compile_module
from quittance.sandbox.execution import Executor

TRIVIAL = '(module (memory (export "memory") 1) (func (export "_start")))'
ENDLESS = '(module (memory (export "memory") 1) (func (export "_start") (loop $again (br $again))))'
RATIO_MAX = 3.0
START_MS_MAX = 150.0
LATE_MS_MAX = 300.0
DEADLINE_MS = 200
RSS_GROWTH_BYTES_MAX = 4 * limits.MIB
WARM_RUNS = scaled(500, 20)
BLOCKS, RUNS_PER_BLOCK = scaled(20, 2), scaled(200, 20)
STARTS = scaled(15, 3)
MANY_RUNS = scaled(10_000, 200)


def measured(action: Callable[[], object]) -> float:
    """Return how many milliseconds an action takes."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1_000


def print_times(name: str, times: list[float]) -> float:
    """Print a distribution; return its median."""
    times = sorted(times)
    middle = statistics.median(times)
    print(f"{name:36} p50 {middle:8.3f} ms   p95 {times[len(times) * 95 // 100]:8.3f} ms   least {times[0]:8.3f} ms")
    return middle


def check(name: str, value: float, limit: float, unit: str = "") -> bool:
    """Print a value with its limit; return whether it is within the limit."""
    within = value <= limit
    print(f"{name:36} {value:.2f}{unit}, at most {limit:g}{unit}: {'ok' if within else 'OVER ITS LIMIT'}")
    return within


def warm_run(job: Job, artefact: bytes) -> bool:
    """Compare a run through the worker with the same run in this process, in turn."""
    executor = Executor()
    program = executor.load(artefact)
    times: dict[str, list[float]] = {"in process": [], "worker": []}

    def in_process() -> None:
        executor.run(program, job, lambda _: None)

    with Sandbox() as sandbox:

        def through_worker() -> None:
            sandbox.run(job)

        for _ in range(WARM_RUNS):
            in_process()
            through_worker()
        for _ in range(BLOCKS):
            times["in process"] += [measured(in_process) for _ in range(RUNS_PER_BLOCK)]
            times["worker"] += [measured(through_worker) for _ in range(RUNS_PER_BLOCK)]
    alone = print_times("trivial run in this process", times["in process"])
    through = print_times("trivial run through the worker", times["worker"])
    return check("  ratio of the medians", through / alone, RATIO_MAX, "x")


def start(job: Job) -> bool:
    """Measure the start of a worker and its first run, which includes loading the artefact."""

    def once() -> None:
        with Sandbox() as sandbox:
            sandbox.run(job)

    python = [sys.executable, "-S", "-c", "pass"]
    bare = print_times("start of a bare Python", [measured(lambda: _run_to_end(python)) for _ in range(STARTS)])
    middle = print_times("start of a worker and a first run", [measured(once) for _ in range(STARTS)])
    print(f"{'  ratio of the medians':36} {middle / bare:.2f}x")
    return check("  start and first run", middle, START_MS_MAX, " ms")


def _run_to_end(arguments: list[str]) -> None:
    subprocess.run(arguments, check=True)


def deadline() -> bool:
    """Measure how long after an endless guest's deadline the caller receives the result."""
    artefact = compile_module(bytes(wasmtime.wat2wasm(ENDLESS)))
    with tempfile.NamedTemporaryFile() as file, Sandbox() as sandbox:
        file.write(artefact.data)
        file.flush()
        job = Job(file.name, artefact.sha256, b"", limits.FUEL_MAX, limits.MIB, DEADLINE_MS, 0, b"")
        late = [measured(lambda: sandbox.run(job)) - DEADLINE_MS for _ in range(STARTS)]
    return check("  answer after the deadline", print_times("answer after the deadline", late), LATE_MS_MAX, " ms")


def many_runs(job: Job) -> bool:
    """Let one worker make many runs, more than in production, and measure how its memory grows."""
    with mock.patch.object(limits, "WORKER_RUNS_MAX", 10 * MANY_RUNS), Sandbox() as sandbox:
        for _ in range(WARM_RUNS):
            sandbox.run(job)
        worker = sandbox._worker  # noqa: SLF001 - its memory is measured
        number = worker._process.pid if worker else 0  # noqa: SLF001 - as above
        before, parent_before = _resident_bytes(str(number)), _resident_bytes("self")
        began = time.monotonic()
        for _ in range(MANY_RUNS):
            last = sandbox.run(job)
        took = time.monotonic() - began
        if last.outcome is not Outcome.SUCCEEDED or sandbox._worker is not worker:  # noqa: SLF001 - as above
            message = "the worker was replaced during the runs"
            raise RuntimeError(message)
        after, parent_after = _resident_bytes(str(number)), _resident_bytes("self")
    print(f"{MANY_RUNS} runs in {took:.1f} s")
    print(f"  worker RSS {before / limits.MIB:.1f} MiB before, {after / limits.MIB:.1f} MiB after")
    print(f"  parent RSS {parent_before / limits.MIB:.1f} MiB before, {parent_after / limits.MIB:.1f} MiB after")
    growth = max(after - before, parent_after - parent_before)
    return check("  growth", growth / limits.MIB, RSS_GROWTH_BYTES_MAX / limits.MIB, " MiB")


def _resident_bytes(process: str) -> int:
    pages = int(Path("/proc", process, "statm").read_text().split()[1])
    return pages * 4_096


def main() -> int:
    """Measure everything."""
    artefact = compile_module(bytes(wasmtime.wat2wasm(TRIVIAL)))
    with tempfile.NamedTemporaryFile() as file:
        file.write(artefact.data)
        file.flush()
        job = Job(file.name, artefact.sha256, b"", 10**6, limits.MIB, 5_000, 0, b"")
        kept = [warm_run(job, artefact.data), start(job), deadline(), many_runs(job)]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(status(main()))
