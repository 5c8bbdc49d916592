"""The parent's side of the sandbox: it keeps one warm worker, kills it at a run's deadline and replaces it.

The worker runs untrusted guests, so the parent assumes that a guest may control it. The parent alone keeps the
deadline, bounds every read, and rejects every report that no run of the job could produce.
"""

import contextlib
import fcntl
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from quittance import limits
from quittance.run import HOST_RULES, Fault, Job, Meter, Outcome, Run
from quittance.sandbox import process, wire
from quittance.sandbox.wasi import CLOCK_NS_MAX

_logger = logging.getLogger(__name__)

_REAP_POLL_S: Final = 0.001
_STDERR_BYTES_MAX: Final = 16 * limits.KIB
_WORKERS_MAX: Final = 2  # for one run: a worker that ends before the guest begins is replaced once

# The outcomes that a worker may report. A timeout is not among them: only the parent decides that.
_WORKER_OUTCOMES: Final = frozenset(
    {
        Outcome.SUCCEEDED,
        Outcome.EXIT_CODE,
        Outcome.TRAP_UNREACHABLE,
        Outcome.TRAP_MEMORY,
        Outcome.TRAP_ARITHMETIC,
        Outcome.TRAP_STACK,
        Outcome.TRAP_TABLE,
        Outcome.FUEL_EXHAUSTED,
        Outcome.MEMORY_LIMIT,
        Outcome.OUTPUT_LIMIT,
        Outcome.WORKER_LOST,
        Outcome.ARTEFACT_MISSING,
        Outcome.ARTEFACT_TAMPERED,
    }
)

# The failures after which a second run can find out whether the lower memory limit caused them. After a timeout no time
# is left for a second run.
_AGENT_FAILURES: Final = frozenset(outcome for outcome in _WORKER_OUTCOMES if outcome.fault is Fault.AGENT)


class _NotStartedError(Exception):
    """The worker ended before the guest began, so another worker may run the job."""


class _GuestOverdueError(Exception):
    """The guest did not end by its deadline."""


class _StartOverdueError(Exception):
    """The guest did not begin by its deadline."""


class Sandbox:
    """Runs jobs in a worker process. Threads may share a sandbox; their jobs run one after the other.

    `started` is called for each worker that is started, `killed` for each that ended by itself or had to be killed.
    """

    def __init__(
        self,
        *,
        python: str = sys.executable,
        started: Callable[[], None] = lambda: None,
        killed: Callable[[], None] = lambda: None,
    ) -> None:
        self._python = python
        self._started = started
        self._killed = killed
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._seccomp: bool | None = None

    @property
    def seccomp(self) -> bool | None:
        """Whether the seccomp filter is active in workers; None until the first job was sent."""
        return self._seccomp

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def warm(self) -> None:
        """Start the worker without waiting for it, so that it is ready for the first run."""
        with self._lock:
            self._ready_worker()

    def run(self, job: Job) -> Run:
        """Run a job to its end. This takes at most LOAD_MS_MAX + the job's timeout + KILL_MARGIN_MS."""
        _check_job(job)
        with self._lock:
            begin_by = _deadline(limits.LOAD_MS_MAX)
            run = self._run(job, begin_by)
            if job.memory_bytes_own <= job.memory_bytes:
                return run
            if run.outcome in _AGENT_FAILURES:
                return replace(run, memory_refused=self._needs_more_memory(job, run, begin_by))
            if run.outcome is Outcome.TIMEOUT:
                return replace(run, memory_refused=True)  # no time is left to find out
            return run

    def needs_more_memory(self, job: Job, run: Run) -> bool:
        """Return whether a successful run of a job uses more memory under its agent's own limit.

        Call it for a run whose output was not accepted. It runs the job once more, within the job's timeout.
        """
        with self._lock:
            return self._needs_more_memory(job, run, _deadline(limits.KILL_MARGIN_MS))

    def close(self) -> None:
        """End the worker. The sandbox remains usable; the next run starts a new worker."""
        with self._lock:
            self._discard()

    def _run(self, job: Job, begin_by: float) -> Run:
        for _ in range(_WORKERS_MAX):
            try:
                return self._run_once(job, begin_by)
            except _NotStartedError:
                continue
        return _lost(job, "No worker could begin the run.")

    def _needs_more_memory(self, job: Job, run: Run, begin_by: float) -> bool:
        """Return whether the run uses more memory under its agent's own limit.

        The engine leaves no trace of a refused `memory.grow`. But runs are deterministic: under the higher limit the
        guest does the same until it receives the memory that the first run was refused. The second run is bounded by
        the fuel of the first and by what is left of the time that `run` may take.
        """
        left_ms = round((begin_by - time.monotonic()) * 1_000) + job.timeout_ms - limits.KILL_MARGIN_MS
        if left_ms <= 0:
            return True
        under_own_limit = replace(
            job,
            memory_bytes=job.memory_bytes_own,
            fuel=max(run.meter.fuel, 1) if run.meter.fuel_exact else job.fuel,
            timeout_ms=min(left_ms, job.timeout_ms),
        )
        second = self._run(under_own_limit, max(begin_by, _deadline(limits.KILL_MARGIN_MS)))
        unknown = second.outcome is Outcome.TIMEOUT or second.outcome.fault is Fault.PLATFORM
        return unknown or second.meter.memory_bytes > job.memory_bytes

    def _run_once(self, job: Job, begin_by: float) -> Run:
        try:
            worker = self._ready_worker()
        except (OSError, process.EngineMissingError) as error:
            _logger.exception("no worker could be started")
            raise _NotStartedError from error
        try:
            return worker.run(job, begin_by)
        finally:
            if worker.seccomp is not None:
                self._seccomp = worker.seccomp
            if worker.must_be_replaced:
                self._discard()
                if not worker.worn:
                    self._killed()

    def _ready_worker(self) -> "_Worker":
        if self._worker and not self._worker.alive:
            self._discard()
            self._killed()
        if not self._worker:
            process.hide()
            self._worker = _Worker(self._python)
            self._started()
        return self._worker

    def _discard(self) -> None:
        if self._worker:
            self._worker.kill()
        self._worker = None


class _GuestClock:
    """How long to wait for a guest. Its time starts when the guest begins; the worker records that in shared memory.

    A message instead would cost one more switch between the processes, which is more than a short run costs.
    """

    def __init__(self, shared: wire.SharedMemory, timeout: float, begin_by: float) -> None:
        self._shared = shared
        self._timeout = timeout
        self._begin_by = begin_by
        self._job_sent = time.monotonic()
        self._began: float | None = None

    @property
    def began(self) -> bool:
        """Whether the guest has begun.

        Only the first recorded time counts, and it is clamped between sending the job and now: a worker that lies
        about it cannot gain time again and again.
        """
        if self._began is None and (recorded_ns := self._shared.began()[0]):
            self._began = min(max(recorded_ns / 1e9, self._job_sent), time.monotonic())
        return self._began is not None

    def wait_until(self) -> float:
        """Return the guest's deadline, or when to check again whether it has begun.

        Raises `_GuestOverdueError` or `_StartOverdueError` when the time is up.
        """
        now = time.monotonic()
        if self.began and self._began is not None:
            deadline = self._began + self._timeout
            if now >= deadline:
                raise _GuestOverdueError
            return deadline
        if now >= self._begin_by:
            raise _StartOverdueError
        return min(now + self._timeout, self._begin_by)


class _Worker:
    """One worker process and the channel to it.

    It must be replaced when it is `worn` (many runs or much resident memory), or when a run did not end in good order.
    """

    def __init__(self, python: str) -> None:
        self.must_be_replaced = False
        self.worn = False
        self.seccomp: bool | None = None  # until the greeting arrives
        self._runs = 0
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            self._channel, their_channel = map(ours.enter_context, socket.socketpair())
            self._channel.setblocking(False)  # noqa: FBT003 - the socket module takes it by position
            # The pipe never blocks the worker: when it is full, further text is dropped.
            stderr, their_stderr = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._stderr = ours.enter_context(os.fdopen(stderr, "rb", buffering=0))
            theirs.callback(os.close, their_stderr)
            shared = _shared_file()
            theirs.callback(os.close, shared)
            self._shared = ours.enter_context(contextlib.closing(wire.SharedMemory(shared)))
            self._process = _spawn(python, theirs.enter_context(their_channel), shared, their_stderr)
            self._resources = ours.pop_all()
        self._readable = select.poll()
        self._readable.register(self._channel, select.POLLIN)

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def run(self, job: Job, begin_by: float) -> Run:
        """Run a job; raises `_NotStartedError` if the worker ended before the guest began."""
        self.must_be_replaced = True  # until the run has ended in good order
        try:
            self._send_job(job, begin_by)
            report = self._receive_report(job, begin_by)
            run, resident_bytes = wire.decode_run(report, self._shared, job.output_bytes)
            # A report may be there although the guest was late, if this process was not running at the deadline.
            late = run.meter.wall_ms > job.timeout_ms
            if late and run.outcome is not Outcome.WORKER_LOST:
                raise _GuestOverdueError  # noqa: TRY301 - the same end as at the deadline
            _check_report(run, job)
        except _GuestOverdueError:
            return self._timed_out(job)
        except (wire.CorruptFrameError, _StartOverdueError, EOFError, OSError) as error:
            _logger.warning("the worker was lost: %r; its stderr: %s", error, self._read_stderr())
            return _lost(job, "The sandbox failed during the run; the agent is not to blame.", self._shared.stderr())
        if run.outcome is Outcome.WORKER_LOST:
            _logger.warning("the worker failed; its stderr: %s", self._read_stderr())
        self._shared.erase(stdin_bytes=len(job.stdin), stdout_bytes=len(run.stdout), stderr_bytes=len(run.stderr))
        self._runs += 1
        self.worn = self._runs >= limits.WORKER_RUNS_MAX or resident_bytes > limits.WORKER_RSS_BYTES_MAX
        self.must_be_replaced = self.worn or run.outcome is Outcome.WORKER_LOST
        return run

    def kill(self) -> resource.struct_rusage | None:
        """Kill the process, release its resources, and return what it used."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        usage = self._reap()
        self._resources.close()
        return usage

    def _send_job(self, job: Job, begin_by: float) -> None:
        """Read the greeting of a new worker, then send the job."""
        self._shared.put_job(job.stdin)
        try:
            if self.seccomp is None:
                self.seccomp = wire.decode_greeting(wire.receive(lambda count: self._read(count, begin_by)))
            rest = wire.encode_job(job)
            while rest:
                try:
                    rest = rest[self._channel.send(rest) :]
                except BlockingIOError:
                    self._wait_to_send(begin_by)
        except (ConnectionError, EOFError) as error:
            raise self._not_started() from error

    def _receive_report(self, job: Job, begin_by: float) -> bytes:
        """Wait for the report of the run."""
        clock = _GuestClock(self._shared, job.timeout_ms / 1_000, begin_by)

        def read(count: int) -> bytes:
            while True:
                try:
                    return self._read(count, clock.wait_until())
                except TimeoutError:
                    continue

        try:
            return wire.receive(read)
        except (ConnectionError, EOFError) as error:
            if clock.began:
                raise
            raise self._not_started() from error

    def _read(self, count: int, deadline: float) -> bytes:
        """Read what has arrived; raises `TimeoutError` at the deadline."""
        if not self._readable.poll(_seconds_until(deadline) * 1_000):
            raise TimeoutError
        return self._channel.recv(count)

    def _wait_to_send(self, deadline: float) -> None:
        """Wait until the channel takes more bytes; raises `TimeoutError` at the deadline."""
        poll = select.poll()
        poll.register(self._channel, select.POLLOUT)
        if not poll.poll(_seconds_until(deadline) * 1_000):
            raise TimeoutError

    def _not_started(self) -> _NotStartedError:
        _logger.warning("the worker ended before the run began; its stderr: %s", self._read_stderr())
        return _NotStartedError()

    def _timed_out(self, job: Job) -> Run:
        stderr, (_, cpu_ns) = self._shared.stderr(), self._shared.began()
        usage = self.kill()
        cpu_ms = max(round((usage.ru_utime + usage.ru_stime) * 1_000 - cpu_ns / 1_000_000), 0) if usage else 0
        meter = Meter(
            fuel=min(cpu_ms * limits.FUEL_PER_CPU_MS, job.fuel),
            fuel_exact=False,
            cpu_ms=cpu_ms,
            wall_ms=job.timeout_ms,
            input_bytes=len(job.stdin),
            stderr_bytes=len(stderr),
        )
        message = f"The agent did not end within its timeout of {job.timeout_ms} ms."
        return Run(Outcome.TIMEOUT, message, meter, stderr=stderr)

    def _reap(self) -> resource.struct_rusage | None:
        """Reap the killed process and return what it used; give up after a while if the kernel does not end it."""
        deadline = _deadline(limits.KILL_MARGIN_MS)
        while self._process.returncode is None:
            try:
                pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            except ChildProcessError:  # something else in this process reaped it
                self._process.returncode = 0
                return None
            if pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                return usage
            if time.monotonic() > deadline:
                _logger.error("worker %d was killed but has not ended", self._process.pid)
                _NOT_REAPED.append(self._process)
                return None
            time.sleep(_REAP_POLL_S)
        return None

    def _read_stderr(self) -> str:
        return (self._stderr.read(_STDERR_BYTES_MAX) or b"").decode(errors="replace")


_NOT_REAPED: Final[list[subprocess.Popen[bytes]]] = []
"""Killed workers that a busy kernel has not ended yet. They are reaped when the next worker is started."""


def _shared_file() -> int:
    """Make the memory file behind the shared memory; return its descriptor.

    Its length is sealed. The worker has a descriptor of it, and reading a page that no longer exists would end this
    process.
    """
    descriptor = os.memfd_create("quittance", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, wire.SHARED_BYTES)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


def _spawn(python: str, channel: socket.socket, shared: int, stderr: int) -> subprocess.Popen[bytes]:
    _NOT_REAPED[:] = [worker for worker in _NOT_REAPED if worker.poll() is None]
    tied = threading.current_thread() is threading.main_thread()
    numbers = (channel.fileno(), shared, os.getpid(), int(tied))
    return subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
        process.command(python, "quittance.sandbox.worker", *map(str, numbers)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=(channel.fileno(), shared),
        env=process.environment(),
        cwd="/",
        start_new_session=True,
    )


def _check_job(job: Job) -> None:
    within_limits = (
        len(job.stdin) <= limits.STDIN_BYTES_MAX
        and 0 < job.fuel <= limits.FUEL_MAX
        and 0 < job.memory_bytes <= limits.MEMORY_BYTES_MAX
        and 0 <= job.memory_bytes_own <= limits.MEMORY_BYTES_MAX
        and 0 <= job.output_bytes <= limits.OUTPUT_BYTES_MAX
        and 0 < job.timeout_ms <= limits.TIMEOUT_S_ASYNC_MAX * 1_000
        and 0 <= job.epoch_ns <= CLOCK_NS_MAX
        and 1 <= job.host_rules <= HOST_RULES
    )
    if not within_limits:
        message = f"the job is beyond the platform's limits: {replace(job, stdin=b'')!r:.500}"  # input is never logged
        raise ValueError(message)


def _check_report(run: Run, job: Job) -> None:
    """Reject a report that no run of the job can produce: a guest that broke out may have written it."""
    meter = run.meter
    possible = (
        run.outcome in _WORKER_OUTCOMES
        and meter.fuel <= job.fuel
        and meter.memory_bytes <= job.memory_bytes
        and meter.input_bytes == len(job.stdin)
        and meter.output_bytes == len(run.stdout)
        and meter.stderr_bytes >= len(run.stderr)
    )
    if not possible:
        message = f"no run of the job can produce this report: {run.outcome}, {meter}"
        raise wire.CorruptFrameError(message)


def _lost(job: Job, message: str, stderr: bytes = b"") -> Run:
    return Run(Outcome.WORKER_LOST, message, Meter(fuel_exact=False, input_bytes=len(job.stdin)), stderr=stderr)


def _deadline(milliseconds: int) -> float:
    return time.monotonic() + milliseconds / 1_000


def _seconds_until(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
