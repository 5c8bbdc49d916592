"""The parent's side of the sandbox: one warm worker, which is watched, killed at the deadline and replaced."""

import contextlib
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
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
_WORDS_BYTES_MAX: Final = 16 * limits.KIB
_ATTEMPTS: Final = 2

# How a run can end as its worker sees it; that a guest was late is for the parent to say.
_ENDS_OF_A_WORKER: Final = frozenset(
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

# The failures of which a second run can tell whether a lower memory limit led to them: it has the time for it.
_ENDS_BY_ITSELF: Final = frozenset(outcome for outcome in _ENDS_OF_A_WORKER if outcome.fault is Fault.AGENT)


class _NotStartedError(Exception):
    """The worker was gone before it began the run, so that another one may try."""


class _OverdueError(Exception):
    """The guest did not end in time."""


class _TooLateError(Exception):
    """The guest did not even begin in time."""


class Sandbox:
    """Runs jobs in a process of their own. Safe to use from many threads; the jobs run one after the other.

    `started` is called for each worker that was started, `killed` for each that died or had to be killed.
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
        """Whether workers are under a system-call filter; not known before one has taken a job."""
        return self._seccomp

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def warm(self) -> None:
        """Start the worker now, without waiting for it, so that the first run finds it ready."""
        with self._lock:
            self._ready()

    def run(self, job: Job) -> Run:
        """Run a job to its end, whatever that is. It takes at most LOAD_MS_MAX + its timeout + KILL_MARGIN_MS."""
        _check(job)
        with self._lock:
            begin_by = _deadline(limits.LOAD_MS_MAX)
            run = self._run(job, begin_by)
            if job.memory_bytes_own <= job.memory_bytes:
                return run
            if run.outcome in _ENDS_BY_ITSELF:
                return replace(run, memory_refused=self._wanted_more_memory(job, run, begin_by))
            if run.outcome is Outcome.TIMEOUT:
                return replace(run, memory_refused=True)  # there is no time to find out
            return run

    def wanted_more_memory(self, job: Job, run: Run) -> bool:
        """Whether a run of a job, which ended well, takes more memory where its agent's own limit allows it.

        For a run whose output is not accepted. The job is run once more, within its own timeout.
        """
        with self._lock:
            return self._wanted_more_memory(job, run, _deadline(limits.KILL_MARGIN_MS))

    def close(self) -> None:
        """End the worker. The sandbox can still be used; a new worker is then started."""
        with self._lock:
            self._discard()

    def _run(self, job: Job, begin_by: float) -> Run:
        for _ in range(_ATTEMPTS):
            try:
                return self._attempt(job, begin_by)
            except _NotStartedError:
                continue
        return _lost(job, "No worker could begin the run.")

    def _wanted_more_memory(self, job: Job, run: Run, begin_by: float) -> bool:
        """Whether a run takes more memory where its agent's own limit allows it.

        The engine leaves no trace of a refused `memory.grow`. But runs repeat: with the higher limit the guest does
        the same until it is given what it was refused. The fuel of the first run, and what is left of the time that
        `run` may take, bound this second run.
        """
        left_ms = round((begin_by - time.monotonic()) * 1_000) + job.timeout_ms - limits.KILL_MARGIN_MS
        if left_ms <= 0:
            return True
        freer = replace(
            job,
            memory_bytes=job.memory_bytes_own,
            fuel=max(run.meter.fuel, 1) if run.meter.fuel_exact else job.fuel,
            timeout_ms=min(left_ms, job.timeout_ms),
        )
        second = self._run(freer, max(begin_by, _deadline(limits.KILL_MARGIN_MS)))
        unknown = second.outcome is Outcome.TIMEOUT or second.outcome.fault is Fault.PLATFORM
        return unknown or second.meter.memory_bytes > job.memory_bytes

    def _attempt(self, job: Job, begin_by: float) -> Run:
        try:
            worker = self._ready()
        except (OSError, process.EngineMissingError) as error:
            _logger.exception("no worker can be started")
            raise _NotStartedError from error
        try:
            return worker.run(job, begin_by)
        finally:
            if worker.seccomp is not None:
                self._seccomp = worker.seccomp
            if worker.spent:
                self._discard()
                if not worker.worn:
                    self._killed()

    def _ready(self) -> "_Worker":
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


class _GuestTime:
    """How long to wait for a guest. Its time begins when it begins, which its worker notes in the log.

    A message would have both processes wake each other once more: that costs more than many a run.
    """

    def __init__(self, log: wire.Log, timeout: float, begin_by: float) -> None:
        self._log = log
        self._timeout = timeout
        self._begin_by = begin_by
        self._ordered = time.monotonic()
        self._began: float | None = None

    @property
    def began(self) -> bool:
        """Whether the guest has begun. The note counts as far as it can be true, and once: no later one gains time."""
        if self._began is None and (noted_ns := self._log.began()[0]):
            self._began = min(max(noted_ns / 1e9, self._ordered), time.monotonic())
        return self._began is not None

    def next_look(self) -> float:
        """Give the deadline, or when to look for one; raises `_OverdueError` or `_TooLateError` when time is up."""
        now = time.monotonic()
        if self.began and self._began is not None:
            deadline = self._began + self._timeout
            if now >= deadline:
                raise _OverdueError
            return deadline
        if now >= self._begin_by:
            raise _TooLateError
        return min(now + self._timeout, self._begin_by)


class _Worker:
    """One worker process and the channel to it. It is `spent` when it must not be used again: worn, or not in order."""

    def __init__(self, python: str) -> None:
        self.spent = False
        self.worn = False
        self.seccomp: bool | None = None  # until it has greeted
        self._runs = 0
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            self._channel, their_channel = map(ours.enter_context, socket.socketpair())
            self._channel.setblocking(False)  # noqa: FBT003 - socket takes it so
            words, complaints = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # a full pipe loses words, but never blocks
            self._words = ours.enter_context(os.fdopen(words, "rb", buffering=0))
            theirs.callback(os.close, complaints)
            shared = theirs.enter_context(tempfile.TemporaryFile())
            os.posix_fallocate(shared.fileno(), 0, wire.LOG_BYTES)  # a full disk must fail here, not at a later write
            self._log = ours.enter_context(contextlib.closing(wire.Log(shared.fileno())))
            self._process = _spawn(python, theirs.enter_context(their_channel), shared.fileno(), complaints)
            self._resources = ours.pop_all()

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def run(self, job: Job, begin_by: float) -> Run:
        """Run a job; raises `_NotStartedError` if the worker was gone before the guest could begin."""
        self.spent = True  # until the run has ended in good order
        try:
            self._order(job, begin_by)
            header, body = self._report(job, begin_by)
            run, resident_bytes = wire.decode_run(header, body, self._log.read())
            late = run.meter.wall_ms > job.timeout_ms  # this process was kept from looking when the time was up
            if late and run.outcome is not Outcome.WORKER_LOST:
                raise _OverdueError  # noqa: TRY301 - as if it had looked
            _check_report(run, job)
        except _OverdueError:
            return self._timed_out(job)
        except (wire.CorruptFrameError, _TooLateError, EOFError, OSError) as error:
            _logger.warning("the worker was lost: %r; it said: %s", error, self._last_words())
            return _lost(job, "The sandbox failed during the run; the agent is not to blame.", self._log.read())
        if run.outcome is Outcome.WORKER_LOST:
            _logger.warning("the worker gave up; it said: %s", self._last_words())
        self._runs += 1
        self.worn = self._runs >= limits.WORKER_RUNS_MAX or resident_bytes > limits.WORKER_RSS_BYTES_MAX
        self.spent = self.worn or run.outcome is Outcome.WORKER_LOST
        return run

    def kill(self) -> resource.struct_rusage | None:
        """End the process, give what it used, and let go of everything that belongs to it."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        usage = self._reap()
        self._resources.close()
        return usage

    def _order(self, job: Job, begin_by: float) -> None:
        """Hear the worker's greeting, if it is new, and send it the job."""
        self._log.clear()
        try:
            if self.seccomp is None:
                header, _ = wire.receive(lambda count: self._read(count, begin_by), 0)
                self.seccomp = wire.decode_greeting(header)
            rest = memoryview(wire.encode_job(job))
            while rest:
                try:
                    rest = rest[self._channel.send(rest) :]
                except BlockingIOError:
                    self._wait(select.POLLOUT, begin_by)
        except (ConnectionError, EOFError) as error:
            raise self._not_started() from error

    def _report(self, job: Job, begin_by: float) -> wire.Frame:
        """Wait for the end of the run."""
        time_left = _GuestTime(self._log, job.timeout_ms / 1_000, begin_by)

        def read(count: int) -> bytes:
            while True:
                try:
                    return self._read(count, time_left.next_look())
                except TimeoutError:
                    continue

        try:
            return wire.receive(read, job.output_bytes)
        except (ConnectionError, EOFError) as error:
            if time_left.began:
                raise
            raise self._not_started() from error

    def _read(self, count: int, deadline: float) -> bytes:
        self._wait(select.POLLIN, deadline)
        return self._channel.recv(min(count, limits.MIB))

    def _wait(self, event: int, deadline: float) -> None:
        """Wait until the channel is ready; raises `TimeoutError` at the deadline."""
        poll = select.poll()
        poll.register(self._channel, event)
        if not poll.poll(_until(deadline) * 1_000):
            raise TimeoutError

    def _not_started(self) -> _NotStartedError:
        _logger.warning("the worker was gone before the run; it said: %s", self._last_words())
        return _NotStartedError()

    def _timed_out(self, job: Job) -> Run:
        stderr, (_, cpu_ns) = self._log.read(), self._log.began()
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
        message = f"The agent did not end within its {job.timeout_ms} ms."
        return Run(Outcome.TIMEOUT, message, meter, stderr=stderr)

    def _reap(self) -> resource.struct_rusage | None:
        """Collect the ended process; gives up, rather than hang, on one that the kernel cannot end."""
        deadline = _deadline(limits.KILL_MARGIN_MS)
        while self._process.returncode is None:
            try:
                pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            except ChildProcessError:  # collected by somebody else
                self._process.returncode = 0
                return None
            if pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                return usage
            if time.monotonic() > deadline:
                _logger.error("worker %d does not end", self._process.pid)
                _ENDING.append(self._process)
                return None
            time.sleep(_REAP_POLL_S)
        return None

    def _last_words(self) -> str:
        return (self._words.read(_WORDS_BYTES_MAX) or b"").decode(errors="replace")


_ENDING: Final[list[subprocess.Popen[bytes]]] = []
"""Killed workers that a busy kernel has not ended yet: collected when the next one is started."""


def _spawn(python: str, channel: socket.socket, log: int, complaints: int) -> subprocess.Popen[bytes]:
    _ENDING[:] = [ended for ended in _ENDING if ended.poll() is None]
    tied = threading.current_thread() is threading.main_thread()
    numbers = (channel.fileno(), log, os.getpid(), int(tied))
    return subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
        process.command(python, "quittance.sandbox.worker", *map(str, numbers)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=complaints,
        pass_fds=(channel.fileno(), log),
        env=process.environment(),
        cwd="/",
        start_new_session=True,
    )


def _check(job: Job) -> None:
    sane = (
        len(job.stdin) <= limits.STDIN_BYTES_MAX
        and 0 < job.fuel <= limits.FUEL_MAX
        and 0 < job.memory_bytes <= limits.MEMORY_BYTES_MAX
        and 0 <= job.memory_bytes_own <= limits.MEMORY_BYTES_MAX
        and 0 <= job.output_bytes <= limits.OUTPUT_BYTES_MAX
        and 0 < job.timeout_ms <= limits.TIMEOUT_S_ASYNC_MAX * 1_000
        and 0 <= job.epoch_ns <= CLOCK_NS_MAX
        and 1 <= job.host_rules <= HOST_RULES
    )
    if not sane:
        message = f"a job beyond the platform's limits: {replace(job, stdin=b'')!r:.500}"  # logs hold no input
        raise ValueError(message)


def _check_report(run: Run, job: Job) -> None:
    """Refuse what no run of the job can have come to: a guest that broke out may have written it."""
    meter = run.meter
    possible = (
        run.outcome in _ENDS_OF_A_WORKER
        and meter.fuel <= job.fuel
        and meter.memory_bytes <= job.memory_bytes
        and meter.input_bytes == len(job.stdin)
        and meter.output_bytes == len(run.stdout)
        and meter.stderr_bytes >= len(run.stderr)
    )
    if not possible:
        message = f"a report that cannot be true: {run.outcome}, {meter}"
        raise wire.CorruptFrameError(message)


def _lost(job: Job, message: str, stderr: bytes = b"") -> Run:
    return Run(Outcome.WORKER_LOST, message, Meter(fuel_exact=False, input_bytes=len(job.stdin)), stderr=stderr)


def _deadline(milliseconds: int) -> float:
    return time.monotonic() + milliseconds / 1_000


def _until(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
