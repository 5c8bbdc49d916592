"""Ahead-of-time compilation of a module, in a child process with limits on memory, time and other resources.

    python -m quittance.sandbox.compile <CPU seconds> <bytes of memory> < module > answer

The answer is one byte for its kind, then the artefact or the reason for the refusal. A module that needs too much
processor time is its author's fault; a compilation that takes too long by the clock is the platform's.
"""

import contextlib
import hashlib
import importlib.metadata
import math
import os
import resource
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Final

from quittance import limits
from quittance.sandbox import process
from quittance.sandbox.target import ENGINE_VERSION, artefact_key
from quittance.sandbox.validate import ModuleRejectedError, Refusal, validate_module

_ARTEFACT: Final = b"A"
_REJECTED: Final = b"R"
_DIAGNOSIS_CHARS: Final = 2_000
_STDERR_BYTES_MAX: Final = 16 * limits.KIB
_REASON_CHARS: Final = 500
_OPEN_FILES_MAX: Final = 16

# Exit statuses of a child whose module exceeded the compiler's limits: processor time, memory or recursion depth.
_OUT_OF_MEMORY: Final = 3
_OVER_LIMIT_STATUSES: Final = frozenset(
    {_OUT_OF_MEMORY, -signal.SIGXCPU, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS}
)

_READ_BYTES: Final = limits.MIB
_REAP_POLL_S: Final = 0.002
_MS_PER_S: Final = 1_000


class CompileFailedError(Exception):
    """The platform could not compile a module. The module may be valid: try again."""

    cpu_ms = 0  # processor time spent on the failed attempt


@dataclass(frozen=True, slots=True)
class Artefact:
    """A compiled module: native code. It is stored under `key`, and its digest is checked before it is loaded.

    `cpu_ms` is the processor time that checking and compiling took.
    """

    data: bytes
    sha256: str
    key: str
    cpu_ms: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class _ChildResult:
    """How a child ended: exit status (None if it was killed at the deadline), answer, stderr and processor time."""

    status: int | None
    answer: bytes
    stderr: bytes
    cpu_ms: int


def compile_module(module: bytes, *, python: str = sys.executable) -> Artefact:
    """Check a module and compile it.

    Raises `ModuleRejectedError` if the author must change the module, and `CompileFailedError` if the platform could
    not compile it and the caller should try again. Both errors state the processor time used in `cpu_ms`.
    """
    began_ns, child_ms = time.thread_time_ns(), 0
    try:
        validate_module(module)
        result = _run_child(python, module)
        child_ms = result.cpu_ms
        data = _artefact_of(result)
    except (ModuleRejectedError, CompileFailedError) as error:
        error.cpu_ms = child_ms + _own_ms(began_ns)
        raise
    key = artefact_key(hashlib.sha256(module).hexdigest())
    return Artefact(data, hashlib.sha256(data).hexdigest(), key, child_ms + _own_ms(began_ns))


def _own_ms(began_ns: int) -> int:
    return -(-(time.thread_time_ns() - began_ns) // 1_000_000)


def _artefact_of(result: _ChildResult) -> bytes:
    """Return the child's artefact; raise `ModuleRejectedError` or `CompileFailedError` if it made none."""
    if result.answer[:1] == _ARTEFACT and len(result.answer) > len(_ARTEFACT) + limits.ARTEFACT_BYTES_MAX:
        sentence = f"The compiled module has more than {limits.ARTEFACT_BYTES_MAX} bytes; make the module smaller."
        raise ModuleRejectedError(Refusal.ARTEFACT_TOO_LARGE, sentence)
    used_up = result.status != 0 and result.cpu_ms >= limits.COMPILE_SECONDS_MAX * _MS_PER_S
    if used_up or result.status in _OVER_LIMIT_STATUSES:
        raise _compile_limit()
    if result.status is None:
        took = f"it took {result.cpu_ms} ms of CPU"
        message = f"compiling did not end within {limits.COMPILE_WALL_SECONDS_MAX} s; {took}"
        raise CompileFailedError(message)
    if result.status or result.answer[:1] not in {_ARTEFACT, _REJECTED}:
        stderr = result.stderr.decode(errors="replace")[-_DIAGNOSIS_CHARS:]
        message = f"the compiler ended with status {result.status}: {stderr}"
        raise CompileFailedError(message)
    if result.answer[:1] == _REJECTED:
        raise ModuleRejectedError(Refusal.INVALID_MODULE, result.answer[1:].decode())
    return result.answer[1:]


def _run_child(python: str, module: bytes) -> _ChildResult:
    """Start a child that compiles the module; wait until it ends or its deadline passes."""
    deadline = time.monotonic() + limits.COMPILE_WALL_SECONDS_MAX
    bounds = (limits.COMPILE_SECONDS_MAX, limits.COMPILE_MEMORY_BYTES_MAX)
    with contextlib.ExitStack() as held:
        try:
            source = held.enter_context(os.fdopen(os.memfd_create("module", os.MFD_CLOEXEC), "r+b"))
            source.write(module)
            source.seek(0)
            reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # a full pipe drops text, but never blocks
            stderr = held.enter_context(os.fdopen(reader, "rb", buffering=0))
            child_stderr = held.enter_context(os.fdopen(writer, "wb", buffering=0))
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
                process.command(python, "quittance.sandbox.compile", *map(str, bounds)),
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=child_stderr,
                env=process.environment(),
                cwd="/",
                start_new_session=True,
            )
        except (OSError, process.EngineMissingError) as error:
            message = "the compiler cannot be started"
            raise CompileFailedError(message) from error
        try:
            answer, whole = _read(child, deadline)
            status, usage = _collect(child, deadline if whole else 0)
        except BaseException:
            _collect(child, 0)
            raise
        return _ChildResult(status, answer, stderr.read(_STDERR_BYTES_MAX) or b"", cpu_ms_of(usage))


def cpu_ms_of(usage: resource.struct_rusage) -> int:
    """Return the processor time that an ended child used, in milliseconds."""
    return math.ceil((usage.ru_utime + usage.ru_stime) * _MS_PER_S)


def _read(child: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool]:
    """Read a child's answer, and whether it is complete: not if the deadline passed or the answer is too long."""
    answer = bytearray()
    with child.stdout as pipe:  # type: ignore[union-attr]  # it is a pipe
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while len(answer) <= len(_ARTEFACT) + limits.ARTEFACT_BYTES_MAX:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * _MS_PER_S):
                break
            piece = os.read(pipe.fileno(), _READ_BYTES)
            if not piece:
                return bytes(answer), True
            answer += piece
    return bytes(answer), False


def _collect(child: subprocess.Popen[bytes], deadline: float) -> tuple[int | None, resource.struct_rusage]:
    """Wait until a child ends; kill it at the deadline. Return its status (None if killed) and its resource usage."""
    killed = False
    while True:
        pid, status, usage = os.wait4(child.pid, 0 if killed else os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return None if killed else child.returncode, usage
        if time.monotonic() >= deadline:
            os.kill(child.pid, signal.SIGKILL)
            killed = True
        else:
            time.sleep(_REAP_POLL_S)


def _compile_limit() -> ModuleRejectedError:
    seconds, mebibytes = limits.COMPILE_SECONDS_MAX, limits.COMPILE_MEMORY_BYTES_MAX // limits.MIB
    bounds = f"{seconds} s of processor time or {mebibytes} MiB"
    sentence = f"Compiling the module takes more than {bounds}; split large functions and strip the module."
    return ModuleRejectedError(Refusal.COMPILE_LIMIT, sentence)


def _main(cpu_seconds: int, memory_bytes: int) -> None:
    """Run as the child: read the module, write the answer, and exit without running destructors."""
    from quittance.sandbox import engine  # only the child loads the engine

    installed = importlib.metadata.version("wasmtime")
    if installed != ENGINE_VERSION:
        sys.exit(f"wasmtime {installed} is installed, but artefacts are named for {ENGINE_VERSION}")
    process.confine(
        data_bytes=memory_bytes,
        file_bytes=0,
        open_files=_OPEN_FILES_MAX,
        cpu_seconds=cpu_seconds,
    )
    try:
        answer = _ARTEFACT + engine.compile_to_artefact(sys.stdin.buffer.read())
    except engine.InvalidModuleError as error:
        answer = _REJECTED + f"The engine rejects the module: {error}"[:_REASON_CHARS].encode()
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    os._exit(0)


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
