"""Validates, compiles and runs a hostile module, and measures its effect on the host.

Time: a guest may use at most 300 ms of processor time beyond its deadline. Processor time is compared, because other
work on the machine lengthens the time by the clock (benchmarks/sandbox.py measures that). A case that must not end by
its deadline has a deadline that no machine reaches.

Memory: the kernel's high-water marks (`VmHWM`) of this process and of the worker. For a worker that is killed, the mark
is read just before the kill.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from quittance import limits
from quittance.run import Job, Meter, Outcome, Run
from quittance.sandbox import ModuleRejectedError, Sandbox, compile_module, supervisor
from tests.hostile.corpus import Case
from tests.hostile.generated import command
from tests.waiting import GENEROUS_MS, Stopwatch

LATE_MS_MAX = 300

HOST_GROWTH_BYTES_MAX = 32 * limits.MIB
"""How much this process may grow during one run: it holds the output (1 MiB) and its frames."""

WORKER_OVERHEAD_BYTES_MAX = 96 * limits.MIB
"""The worker's memory beyond the guest's and the cached artefacts: interpreter and engine (about 40 MiB)."""

EPOCH_NS = 1_767_225_600_000_000_000
SEED = b"hostile"


@dataclass(frozen=True)
class Ending:
    """How a case ended, and what was measured."""

    code: str
    message: str
    run: Run | None = None
    took_ms: float = 0.0
    compile_ms: float = 0.0
    host_growth_bytes: int = 0
    worker_peak_bytes: int = 0


class Environment:
    """One warm sandbox in which all cases run, as in one execution environment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._artefacts = {}
        self._peak_of_killed = 0
        self._artefact_bytes = 0
        self.sandbox = Sandbox()
        self._trivial = self._job(command())
        self._reference = self.sandbox.run(self._trivial)

    def close(self) -> None:
        self.sandbox.close()

    def run_case(self, case: Case) -> Ending:
        """Validate, compile and run a case."""
        watch = Stopwatch()
        try:
            with _compile_limits(case):
                job = self._job(case.binary())
        except ModuleRejectedError as refused:
            return Ending(refused.code, refused.message, compile_ms=watch.seconds() * 1_000)
        compile_ms = watch.seconds() * 1_000
        job = dataclasses.replace(
            job,
            stdin=b"x" * case.stdin_bytes,
            fuel=case.fuel,
            memory_bytes=case.memory_mib * limits.MIB,
            timeout_ms=case.timeout_ms if case.ends == Outcome.TIMEOUT else GENEROUS_MS,
        )
        return dataclasses.replace(self._measured(job), compile_ms=compile_ms)

    def is_unharmed(self) -> bool:
        """Whether a trivial agent still runs as it did before all cases."""
        return without_times(self.sandbox.run(self._trivial)) == without_times(self._reference)

    def worker_bound_bytes(self, case: Case) -> int:
        """Return how large the worker may become during a case."""
        kept = min(self._artefact_bytes, limits.WORKER_MODULE_BYTES_MAX)
        return case.memory_mib * limits.MIB + 2 * kept + WORKER_OVERHEAD_BYTES_MAX

    def _measured(self, job: Job) -> Ending:
        self._peak_of_killed = 0
        before = _reset_peak()
        watch = Stopwatch()
        with mock.patch.object(supervisor._Worker, "kill", self._watched(supervisor._Worker.kill)):
            run = self.sandbox.run(job)
        took_ms = watch.seconds() * 1_000
        return Ending(
            code=run.outcome,
            message=run.message,
            run=run,
            took_ms=took_ms,
            host_growth_bytes=_peak("self") - before,
            worker_peak_bytes=max(self._peak_of_worker(), self._peak_of_killed),
        )

    def _watched(self, kill):
        def watched(worker):
            with contextlib.suppress(OSError, StopIteration):
                self._peak_of_killed = _peak(str(worker._process.pid))
            return kill(worker)

        return watched

    def _peak_of_worker(self) -> int:
        return _peak(str(self.sandbox._worker._process.pid)) if self.sandbox._worker else 0

    def _job(self, module: bytes) -> Job:
        """Compile each module once, and make the job that runs it."""
        digest = hashlib.sha256(module).hexdigest()
        if digest not in self._artefacts:
            artefact = compile_module(module)
            path = self._folder / artefact.key
            path.write_bytes(artefact.data)
            self._artefact_bytes += len(artefact.data)
            self._artefacts[digest] = Job(str(path), artefact.sha256, b"", 10**6, limits.MIB, 5_000, EPOCH_NS, SEED)
        return self._artefacts[digest]


def failures(case: Case, ending: Ending, environment: Environment) -> list[str]:
    """Return every way in which an ending differs from the expected one."""
    found = [f"it ended with {ending.code}, not {case.ends}: {ending.message}"] if ending.code != case.ends else []
    if ending.run is None:
        return found
    run = ending.run
    late_ms = run.meter.cpu_ms - case.timeout_ms if case.ends == Outcome.TIMEOUT else 0
    bound = environment.worker_bound_bytes(case)
    expectations = [
        (late_ms <= LATE_MS_MAX, f"it used {late_ms:.0f} ms of processor time beyond its deadline"),
        (ending.host_growth_bytes <= HOST_GROWTH_BYTES_MAX, f"the host grew by {ending.host_growth_bytes} bytes"),
        (ending.worker_peak_bytes <= bound, f"the worker grew to {ending.worker_peak_bytes} bytes, over {bound}"),
        (run.meter.fuel <= case.fuel, f"its meter states {run.meter.fuel} fuel"),
        (run.meter.memory_bytes <= case.memory_mib * limits.MIB, f"it used {run.meter.memory_bytes} bytes of memory"),
        (len(run.stdout) <= limits.OUTPUT_BYTES_MAX, "its output is over the limit"),
        (len(run.stderr) <= limits.STDERR_BYTES_MAX, "its stderr is over the limit"),
        (run.message.isascii() and len(run.message) <= limits.MESSAGE_CHARS_MAX, "its message is too long or odd"),
        (case.exit_code in {None, run.exit_code}, f"its exit code is {run.exit_code}"),
        (case.stdout in {None, run.stdout.decode("latin-1")}, f"its output is {run.stdout[:80]!r}"),
        (case.stderr_bytes in {None, len(run.stderr)}, f"its stderr has {len(run.stderr)} bytes"),
    ]
    return found + [failure for holds, failure in expectations if not holds]


@contextlib.contextmanager
def _compile_limits(case: Case) -> Iterator[None]:
    """Set the compiler's limits to those of the case."""
    with (
        mock.patch.object(limits, "COMPILE_SECONDS_MAX", case.compile_seconds),
        mock.patch.object(limits, "COMPILE_MEMORY_BYTES_MAX", case.compile_mib * limits.MIB),
    ):
        yield


def without_times(run: Run) -> Run:
    """Return what must be equal in two runs of the same job: everything except the times."""
    meter = dataclasses.replace(run.meter, cpu_ms=0, wall_ms=0)
    assert isinstance(meter, Meter)
    return dataclasses.replace(run, meter=meter)


def _reset_peak() -> int:
    """Reset this process's high-water mark, where the kernel permits it, and return it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak("self")


def _peak(process_id: str) -> int:
    status = Path("/proc", process_id, "status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
