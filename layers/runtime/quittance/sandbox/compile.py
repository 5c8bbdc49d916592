"""Ahead-of-time compilation of a module, in a child process with limits on memory, time and everything else.

    python -m quittance.sandbox.compile < module > answer

The answer is one byte that tells its kind, then the artefact or the reason of a refusal.
"""

import hashlib
import importlib.metadata
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

from quittance import limits
from quittance.sandbox import process
from quittance.sandbox.target import ENGINE_VERSION, artefact_key
from quittance.sandbox.validate import ModuleRejectedError, Refusal, validate_module

_ARTEFACT: Final = b"A"
_REJECTED: Final = b"R"
_DIAGNOSIS_CHARS: Final = 2_000
_REASON_CHARS: Final = 500
_OPEN_FILES_MAX: Final = 16

# What ends a child whose module asks too much of the compiler: its CPU time, a failed allocation, a deep recursion.
_OUT_OF_MEMORY: Final = 3
_OVERLOADED: Final = frozenset({_OUT_OF_MEMORY, -signal.SIGXCPU, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS})


class CompileFailedError(Exception):
    """The platform could not compile a module. The module may be good: try again."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A compiled module: native code, to be stored and loaded under its key and checked by its digest."""

    data: bytes
    sha256: str
    key: str


def compile_module(module: bytes, *, python: str = sys.executable) -> Artefact:
    """Check a module and compile it; raises `ModuleRejectedError` if its author must change it."""
    validate_module(module)
    answer = _ask_child(module, python)
    if answer[:1] == _REJECTED:
        raise ModuleRejectedError(Refusal.INVALID_MODULE, answer[1:].decode())
    data = answer[1:]
    if len(data) > limits.ARTEFACT_BYTES_MAX:
        sentence = f"Compiled, the module has more than {limits.ARTEFACT_BYTES_MAX} bytes; make it smaller."
        raise ModuleRejectedError(Refusal.ARTEFACT_TOO_LARGE, sentence)
    return Artefact(data, hashlib.sha256(data).hexdigest(), artefact_key(hashlib.sha256(module).hexdigest()))


def _ask_child(module: bytes, python: str) -> bytes:
    try:
        child = subprocess.run(  # noqa: S603 - our own interpreter and our own module
            process.command(python, "quittance.sandbox.compile"),
            input=module,
            capture_output=True,
            timeout=limits.COMPILE_SECONDS_MAX,
            check=False,
            env=process.environment(),
            cwd="/",
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise _overloaded() from error
    except (OSError, process.EngineMissingError) as error:
        message = "the compiler cannot be started"
        raise CompileFailedError(message) from error
    if child.returncode in _OVERLOADED:
        raise _overloaded()
    if child.returncode or child.stdout[:1] not in {_ARTEFACT, _REJECTED}:
        said = child.stderr.decode(errors="replace")[-_DIAGNOSIS_CHARS:]
        message = f"the compiler ended with status {child.returncode}: {said}"
        raise CompileFailedError(message)
    return child.stdout


def _overloaded() -> ModuleRejectedError:
    seconds, mebibytes = limits.COMPILE_SECONDS_MAX, limits.COMPILE_MEMORY_BYTES_MAX // limits.MIB
    sentence = f"Compiling takes more than {seconds} s or {mebibytes} MiB; split large functions and strip the module."
    return ModuleRejectedError(Refusal.COMPILE_LIMIT, sentence)


def _main() -> None:
    """Be the child: read a module, write the answer, and end without running any destructor."""
    from quittance.sandbox import engine  # only the child loads the engine

    installed = importlib.metadata.version("wasmtime")
    if installed != ENGINE_VERSION:
        sys.exit(f"wasmtime is {installed}, but artefacts are named for {ENGINE_VERSION}")
    process.confine(
        data_bytes=limits.COMPILE_MEMORY_BYTES_MAX,
        file_bytes=0,
        open_files=_OPEN_FILES_MAX,
        cpu_seconds=limits.COMPILE_SECONDS_MAX,
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
    _main()
