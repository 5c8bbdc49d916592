"""Takes a hostile module through validate, compile and run, and measures what it did to the host.

Time. A guest may use the processor for 300 ms more than its deadline allows; processor time, because other work on the
machine adds to what a clock shows (benchmarks/sandbox.py measures what a caller waits). A case that must end otherwise
than by its deadline has a deadline that no machine comes near.

Memory. The kernel's own high-water marks (`VmHWM`) of this process and of the worker. That of a worker which is killed
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
"""How much this process may grow by one run: it holds the output (1 MiB) and the frames around it, no more."""

WORKER_OVERHEAD_BYTES_MAX = 96 * limits.MIB
"""The worker beyond the guest's memory and the artefacts that it keeps: interpreter and engine (about 40 MiB)."""

EPOCH_NS = 1_767_225_600_000_000_000
SEED = b"hostile"


@dataclass(frozen=True)
class Ending:
    """How a case ended, and what it cost the host."""

    code: str
    message: str
    run: Run | None = None
    took_ms: float = 0.0
    compile_ms: float = 0.0
    host_growth_bytes: int = 0
    worker_peak_bytes: int = 0


class Environment:
    """One warm sandbox that every case runs in, as in one execution environment."""

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

    def attempt(self, case: Case) -> Ending:
        """Validate, compile and run."""
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
        """Whether a trivial agent runs as it did before everything else."""
        return lasting(self.sandbox.run(self._trivial)) == lasting(self._reference)

    def worker_bound_bytes(self, case: Case) -> int:
        """How large the worker may become by a case."""
        kept = min(self._artefact_bytes, limits.WORKER_MODULE_BYTES_MAX)
        return case.memory_mib * limits.MIB + 2 * kept + WORKER_OVERHEAD_BYTES_MAX

    def _measured(self, job: Job) -> Ending:
        self._peak_of_killed = 0
        before = _forget_peak()
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
        """Compile a module, each only once, and make the job that runs it."""
        digest = hashlib.sha256(module).hexdigest()
        if digest not in self._artefacts:
            artefact = compile_module(module)
            path = self._folder / artefact.key
            path.write_bytes(artefact.data)
            self._artefact_bytes += len(artefact.data)
            self._artefacts[digest] = Job(str(path), artefact.sha256, b"", 10**6, limits.MIB, 5_000, EPOCH_NS, SEED)
        return self._artefacts[digest]


def shortcomings(case: Case, ending: Ending, environment: Environment) -> list[str]:
    """Say everything in which an ending is not as it must be."""
    found = [f"it ended with {ending.code}, not {case.ends}: {ending.message}"] if ending.code != case.ends else []
    if ending.run is None:
        return found
    run = ending.run
    late_ms = run.meter.cpu_ms - case.timeout_ms if case.ends == Outcome.TIMEOUT else 0
    bound = environment.worker_bound_bytes(case)
    claims = [
        (late_ms <= LATE_MS_MAX, f"it computed for {late_ms:.0f} ms after its deadline"),
        (ending.host_growth_bytes <= HOST_GROWTH_BYTES_MAX, f"the host grew by {ending.host_growth_bytes} bytes"),
        (ending.worker_peak_bytes <= bound, f"the worker grew to {ending.worker_peak_bytes} bytes of {bound}"),
        (run.meter.fuel <= case.fuel, f"{run.meter.fuel} fuel were counted"),
        (run.meter.memory_bytes <= case.memory_mib * limits.MIB, f"it had {run.meter.memory_bytes} bytes"),
        (len(run.stdout) <= limits.OUTPUT_BYTES_MAX, "its output is over the limit"),
        (len(run.stderr) <= limits.STDERR_BYTES_MAX, "its log is over the limit"),
        (run.message.isascii() and len(run.message) <= limits.MESSAGE_CHARS_MAX, "the message is too long or odd"),
        (case.exit_code in {None, run.exit_code}, f"its exit code is {run.exit_code}"),
        (case.stdout in {None, run.stdout.decode("latin-1")}, f"its output is {run.stdout[:80]!r}"),
        (case.stderr_bytes in {None, len(run.stderr)}, f"its log has {len(run.stderr)} bytes"),
    ]
    return found + [complaint for holds, complaint in claims if not holds]


@contextlib.contextmanager
def _compile_limits(case: Case) -> Iterator[None]:
    """Lower the compiler's limits as the case wants it."""
    with (
        mock.patch.object(limits, "COMPILE_SECONDS_MAX", case.compile_seconds),
        mock.patch.object(limits, "COMPILE_MEMORY_BYTES_MAX", case.compile_mib * limits.MIB),
    ):
        yield


def lasting(run: Run) -> Run:
    """What must be equal between two runs of the same job: all but the times."""
    meter = dataclasses.replace(run.meter, cpu_ms=0, wall_ms=0)
    assert isinstance(meter, Meter)
    return dataclasses.replace(run, meter=meter)


def _forget_peak() -> int:
    """Start this process's high-water mark anew, where the kernel lets us, and give it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak("self")


def _peak(process_id: str) -> int:
    status = Path("/proc", process_id, "status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
