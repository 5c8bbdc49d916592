"""Ahead-of-time compilation of a module, in a child process with limits on memory, time and everything else.

    python -m quittance.sandbox.compile <CPU seconds> <bytes of memory> < module > answer

The answer is one byte that tells its kind, then the artefact or the reason of a refusal. The author answers for the
processor time that a module takes to compile, the platform for how long that lasts on a busy machine.
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
_COMPLAINTS_BYTES_MAX: Final = 16 * limits.KIB
_REASON_CHARS: Final = 500
_OPEN_FILES_MAX: Final = 16

# What ends a child whose module asks too much of the compiler: its CPU time, a failed allocation, a deep recursion.
_OUT_OF_MEMORY: Final = 3
_OVERLOADED: Final = frozenset({_OUT_OF_MEMORY, -signal.SIGXCPU, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS})


_READ_BYTES: Final = limits.MIB
_REAP_POLL_S: Final = 0.002
_MS_PER_S: Final = 1_000


class CompileFailedError(Exception):
    """The platform could not compile a module. The module may be good: try again."""

    cpu_ms = 0  # that were spent in vain


@dataclass(frozen=True, slots=True)
class Artefact:
    """A compiled module: native code, to be stored and loaded under its key and checked by its digest.

    `cpu_ms` is the processor time that it took to check and compile the module.
    """

    data: bytes
    sha256: str
    key: str
    cpu_ms: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a child ended: its status, None if it was overdue; what it answered; its complaints; its processor time."""

    status: int | None
    answer: bytes
    complaints: bytes
    cpu_ms: int


def compile_module(module: bytes, *, python: str = sys.executable) -> Artefact:
    """Check a module and compile it.

    Raises `ModuleRejectedError` if its author must change it, `CompileFailedError` if the platform could not compile
    it: try again. Both have the processor time that was used as `cpu_ms`, as the artefact has.
    """
    began_ns, child_ms = time.thread_time_ns(), 0
    try:
        validate_module(module)
        ended = _run_child(python, module)
        child_ms = ended.cpu_ms
        data = _artefact_of(ended)
    except (ModuleRejectedError, CompileFailedError) as error:
        error.cpu_ms = child_ms + _own_ms(began_ns)
        raise
    key = artefact_key(hashlib.sha256(module).hexdigest())
    return Artefact(data, hashlib.sha256(data).hexdigest(), key, child_ms + _own_ms(began_ns))


def _own_ms(began_ns: int) -> int:
    return -(-(time.thread_time_ns() - began_ns) // 1_000_000)


def _artefact_of(ended: _Ended) -> bytes:
    """The artefact that a child has made, or whose fault it is that there is none."""
    if ended.answer[:1] == _ARTEFACT and len(ended.answer) > len(_ARTEFACT) + limits.ARTEFACT_BYTES_MAX:
        sentence = f"Compiled, the module has more than {limits.ARTEFACT_BYTES_MAX} bytes; make it smaller."
        raise ModuleRejectedError(Refusal.ARTEFACT_TOO_LARGE, sentence)
    used_up = ended.status != 0 and ended.cpu_ms >= limits.COMPILE_SECONDS_MAX * _MS_PER_S
    if used_up or ended.status in _OVERLOADED:
        raise _overloaded()
    if ended.status is None:
        message = f"compiling did not end within {limits.COMPILE_WALL_SECONDS_MAX} s; it took {ended.cpu_ms} ms of CPU"
        raise CompileFailedError(message)
    if ended.status or ended.answer[:1] not in {_ARTEFACT, _REJECTED}:
        said = ended.complaints.decode(errors="replace")[-_DIAGNOSIS_CHARS:]
        message = f"the compiler ended with status {ended.status}: {said}"
        raise CompileFailedError(message)
    if ended.answer[:1] == _REJECTED:
        raise ModuleRejectedError(Refusal.INVALID_MODULE, ended.answer[1:].decode())
    return ended.answer[1:]


def _run_child(python: str, module: bytes) -> _Ended:
    """Have a child compile a module, and wait for its end or its deadline."""
    deadline = time.monotonic() + limits.COMPILE_WALL_SECONDS_MAX
    bounds = (limits.COMPILE_SECONDS_MAX, limits.COMPILE_MEMORY_BYTES_MAX)
    with contextlib.ExitStack() as held:
        try:
            source = held.enter_context(os.fdopen(os.memfd_create("module", os.MFD_CLOEXEC), "r+b"))
            source.write(module)
            source.seek(0)
            reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # a full pipe loses words, but never blocks
            words = held.enter_context(os.fdopen(reader, "rb", buffering=0))
            complaints = held.enter_context(os.fdopen(writer, "wb", buffering=0))
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
                process.command(python, "quittance.sandbox.compile", *map(str, bounds)),
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=complaints,
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
        return _Ended(status, answer, words.read(_COMPLAINTS_BYTES_MAX) or b"", cpu_ms_of(usage))


def cpu_ms_of(usage: resource.struct_rusage) -> int:
    """The processor time that an ended child used."""
    return math.ceil((usage.ru_utime + usage.ru_stime) * _MS_PER_S)


def _read(child: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool]:
    """What a child answers, and whether it has said all: not if it is overdue or says more than an artefact may be."""
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
    """Wait for a child's end, kill it at the deadline; give its status, None if it was killed, and what it used."""
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


def _overloaded() -> ModuleRejectedError:
    seconds, mebibytes = limits.COMPILE_SECONDS_MAX, limits.COMPILE_MEMORY_BYTES_MAX // limits.MIB
    bounds = f"{seconds} s of processor time or {mebibytes} MiB"
    sentence = f"Compiling takes more than {bounds}; split large functions and strip the module."
    return ModuleRejectedError(Refusal.COMPILE_LIMIT, sentence)


def _main(cpu_seconds: int, memory_bytes: int) -> None:
    """Be the child: read a module, write the answer, and end without running any destructor."""
    from quittance.sandbox import engine  # only the child loads the engine

    installed = importlib.metadata.version("wasmtime")
    if installed != ENGINE_VERSION:
        sys.exit(f"wasmtime is {installed}, but artefacts are named for {ENGINE_VERSION}")
    process.confine(
        data_bytes=memory_bytes,
        file_bytes=0,
        open_files=_OPEN_FILES_MAX,
        cpu_seconds=cpu_seconds,
    )
    try:
        answer = _ARTEFACT + engine.compile_to_artefact(sys.stdin.buffer.read())
    except engine.InvalidModuleError as error:
        answer = _REJECTED + f"The engine refuses the module: {error}"[:_REASON_CHARS].encode()
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    os._exit(0)


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
