"""Fuzzes validation, compilation and runs with mutated and generated modules.

    python tests/fuzz/fuzz.py --modules 20000 --seed 1          # as `make fuzz`
    python tests/fuzz/fuzz.py --modules 1 --seed 1 --first 4711  # repeats that one module

Module N of seed S is always the same. A module that causes a fault is stored under .local/fuzz, and the command exits
with status 1.

Every module takes the production path: `compile_module` (which validates first), then `Sandbox.run`. One thing differs:
the compiling child is forked from this process, because starting a new Python takes 20 times as long as compiling. The
forked child runs the same `_main` of the compiler, with the same confinement. One module in `REAL_COMPILER_EVERY` is
also compiled by a child that is started as in production, and must give the same artefact or refusal.
"""

import argparse
import contextlib
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NoReturn
from unittest import mock

from quittance import limits

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "layers" / "runtime"))

import quittance.sandbox.compile as compiler
from quittance.run import Job, Outcome, Run
from quittance.sandbox import ModuleRejectedError, Sandbox, compile_module
from tests.fuzz.generate import generated
from tests.fuzz.mutate import mutant
from tests.hostile.corpus import CASES
from tests.hostile.generated import command
from tests.hostile.harness import EPOCH_NS, LATE_MS_MAX, without_times

ROOT = Path(__file__).parents[2]

REAL_COMPILER_EVERY = 200
GENERATED_SHARE = 0.3
SEED_BYTES_MAX = 64 * limits.KIB

FUEL = 1_000_000  # a hundred host calls
MEMORY_BYTES = 4 * limits.MIB
TIMEOUT_MS = 200
STDIN = b"wordcount 10\n" * 8
COMPILE_SECONDS = 20  # production permits six times as much, which would only lengthen this test
COMPILE_MEMORY_BYTES = 1024 * limits.MIB

PLATFORM_FAULTS = {Outcome.WORKER_LOST, Outcome.ARTEFACT_MISSING, Outcome.ARTEFACT_TAMPERED}


def seeds() -> list[bytes]:
    """Return the modules that are mutated: the hostile corpus and the example agents, without the large ones."""
    agents = [path.read_bytes() for path in sorted((ROOT / "examples" / "agents").glob("*/*.wasm"))]
    corpus = [case.binary() for case in CASES if case.module != "generated"]
    odd = [case.binary() for case in CASES if case.module == "generated" and case.group != "compile bombs"]
    return [module for module in agents * 8 + corpus + odd if len(module) <= SEED_BYTES_MAX]


@dataclass
class Tally:
    """How the modules ended."""

    modules: int = 0
    compiled_as_in_production: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    latest_ms: float = 0.0
    faults: list[str] = field(default_factory=list)


class Fuzzer:
    """Makes the modules of a seed; validates, compiles and runs them."""

    def __init__(self, seed: int, folder: Path, keep: Path) -> None:
        self._seed = seed
        self._path = folder / "artefact"
        self._keep = keep
        self._seeds = seeds()
        self._sandbox = Sandbox()
        self._trivial = folder / "trivial"
        artefact = compile_module(command())
        self._trivial.write_bytes(artefact.data)
        self._trivial_job = _job(self._trivial, artefact.sha256)
        self._reference = without_times(self._sandbox.run(self._trivial_job))
        self.tally = Tally()

    def close(self) -> None:
        self._sandbox.close()

    def module(self, number: int) -> bytes:
        """Make the module with that number."""
        random = Random(f"{self._seed}:{number}")
        if random.random() >= GENERATED_SHARE:
            return mutant(random, self._seeds)
        made = generated(random)
        return made if random.random() < 0.7 else mutant(random, [made])

    def one(self, number: int) -> None:
        """Validate, compile and run one module; record its end and its faults."""
        module = self.module(number)
        try:
            end = self._end(module, number)
        except Exception as error:  # noqa: BLE001 - the test is that no unexpected exception is raised
            end = "crash"
            self._fault(number, module, f"the parent raised {error!r}")
        self.tally.modules += 1
        self.tally.ends[end] += 1

    def _end(self, module: bytes, number: int) -> str:
        try:
            with _forking():
                artefact = compile_module(module)
        except ModuleRejectedError as refused:
            if number % REAL_COMPILER_EVERY == 0:
                self._compile_as_in_production(number, module, refused.code)
            return refused.code
        if number % REAL_COMPILER_EVERY == 0:
            self._compile_as_in_production(number, module, artefact.sha256)
        self._path.write_bytes(artefact.data)
        job = _job(self._path, artefact.sha256)
        began = time.monotonic()
        run = self._sandbox.run(job)
        self.tally.latest_ms = max(self.tally.latest_ms, (time.monotonic() - began) * 1_000 - TIMEOUT_MS)
        for wrong in self._faults_of(job, run):
            self._fault(number, module, wrong)
        return run.outcome

    def _compile_as_in_production(self, number: int, module: bytes, expected: str) -> None:
        try:
            result = compile_module(module).sha256
        except ModuleRejectedError as refused:
            result = refused.code
        self.tally.compiled_as_in_production += 1
        if result != expected:
            self._fault(number, module, f"a new child gave {result}, a forked one {expected}")

    def _faults_of(self, job: Job, run: Run) -> Iterator[str]:
        if run.outcome in PLATFORM_FAULTS:
            yield f"the platform failed: {run.outcome} {run.message}"
        if run.meter.cpu_ms > TIMEOUT_MS + LATE_MS_MAX:
            yield f"it used {run.meter.cpu_ms} ms of processor time"
        if run.meter.fuel > FUEL or run.meter.memory_bytes > MEMORY_BYTES:
            yield f"it exceeded its limits: {run.meter}"
        if len(run.stdout) > limits.OUTPUT_BYTES_MAX or len(run.stderr) > limits.STDERR_BYTES_MAX:
            yield "it wrote more than its limit"
        if run.outcome is Outcome.TIMEOUT:
            if without_times(self._sandbox.run(self._trivial_job)) != self._reference:
                yield "the next run of the trivial agent differed"
            return
        again = self._sandbox.run(job)
        if again.outcome is not Outcome.TIMEOUT and without_times(again) != without_times(run):
            yield f"its second run differed: {run!r:.500} {again!r:.500}"

    def _fault(self, number: int, module: bytes, what: str) -> None:
        self._keep.mkdir(parents=True, exist_ok=True)
        (self._keep / f"{self._seed}-{number}.wasm").write_bytes(module)
        self.tally.faults.append(f"seed {self._seed}, module {number}: {what}")


def _job(path: Path, sha256: str) -> Job:
    return Job(str(path), sha256, STDIN, FUEL, MEMORY_BYTES, TIMEOUT_MS, EPOCH_NS, b"fuzz")


@contextlib.contextmanager
def _forking() -> Iterator[None]:
    """Fork the compiler's child from this process, with lower limits, to save time."""
    with (
        mock.patch.object(compiler, "_run_child", _run_forked),
        mock.patch.object(limits, "COMPILE_SECONDS_MAX", COMPILE_SECONDS),
        mock.patch.object(limits, "COMPILE_MEMORY_BYTES_MAX", COMPILE_MEMORY_BYTES),
    ):
        yield


def _run_forked(_python: str, binary: bytes) -> compiler._ChildResult:
    """Replace the compiler's `_run_child`: the same program, but forked."""
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as module:
        module.write(binary)
        module.seek(0)
        child = os.fork()
        if child == 0:
            _run_compiler(module.fileno(), writer)
    os.close(writer)
    try:
        output = _read_all(reader, time.monotonic() + limits.COMPILE_WALL_SECONDS_MAX)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # safe even if it has ended: until it is reaped, its id is not used again
        _, status, usage = os.wait4(child, 0)
    ended = None if output is None else os.waitstatus_to_exitcode(status)
    return compiler._ChildResult(ended, output or b"", b"", compiler.cpu_ms_of(usage))


def _run_compiler(module: int, answer: int) -> NoReturn:
    try:
        os.setsid()
        os.dup2(module, 0)
        os.dup2(answer, 1)
        sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 - descriptors, and this process ends soon
        compiler._main(COMPILE_SECONDS, COMPILE_MEMORY_BYTES + _data_bytes())
    except BaseException:  # noqa: BLE001 - on any error the child must exit and not continue as its parent
        traceback.print_exc()
    finally:
        os._exit(70)


def _data_bytes() -> int:
    """Return how much data a forked child inherits, which the memory limit of a new process would not count."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) * limits.KIB


def _read_all(descriptor: int, deadline: float) -> bytes | None:
    """Read to the end; return None if it does not come by the deadline."""
    pieces: list[bytes] = []
    while select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
        piece = os.read(descriptor, limits.MIB)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
    return None


def fuzz(*, modules: int, seed: int, first: int = 0, seconds: float, keep: Path, every: int = 0) -> Tally:
    """Validate, compile and run this many modules, or as many as the time permits."""
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Fuzzer(seed, Path(folder), keep)) as fuzzer:
        for number in range(first, first + modules):
            if time.monotonic() > until:
                break
            fuzzer.one(number)
            if every and fuzzer.tally.modules % every == 0:
                _print(f"{fuzzer.tally.modules} modules, {len(fuzzer.tally.faults)} faults")
        return fuzzer.tally


def report(tally: Tally, seed: int, seconds: float) -> str:
    """Return a summary of a tally."""
    runs = sum(count for end, count in tally.ends.items() if end in set(Outcome))
    lines = [
        f"seed {seed}: {tally.modules} modules in {seconds:.0f} s; {runs} were run",
        f"{tally.compiled_as_in_production} were also compiled by a new child",
        f"the latest run ended {tally.latest_ms:+.0f} ms from its deadline (at most {LATE_MS_MAX} ms after it)",
        *(f"{count:8} {end}" for end, count in tally.ends.most_common()),
        *tally.faults,
        f"{len(tally.faults)} faults",
    ]
    return "\n".join(lines)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Fuzz the sandbox with mutated and generated modules.")
    parser.add_argument("--modules", type=int, default=20_000, help="how many modules")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="default: a different one each time")
    parser.add_argument("--first", type=int, default=0, help="number of the first module")
    parser.add_argument("--seconds", type=float, default=3_600, help="stop after this many seconds")
    options = parser.parse_args()
    _print(f"seed {options.seed}")
    began = time.monotonic()
    tally = fuzz(
        modules=options.modules,
        seed=options.seed,
        first=options.first,
        seconds=options.seconds,
        keep=ROOT / ".local" / "fuzz",
        every=1_000,
    )
    _print(report(tally, options.seed, time.monotonic() - began))
    if tally.modules < options.modules:
        _print(f"stopped after {options.seconds:.0f} s, before the end")
    return int(bool(tally.faults) or tally.modules < options.modules)


if __name__ == "__main__":
    sys.exit(main())
