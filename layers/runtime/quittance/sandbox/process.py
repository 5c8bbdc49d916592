"""How a child process of the sandbox is started and confined. Both the worker and the compiler are such children.

A child inherits no variable, no descriptor that was not named, and no import path but that of this package and of the
engine. It confines itself before it touches a byte that a stranger wrote.
"""

import contextlib
import ctypes
import importlib.util
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAPABILITY_SETS_BYTES: Final = 24  # effective, permitted and inheritable, twice 32 bits of each


class EngineMissingError(RuntimeError):
    """This interpreter has no wasmtime."""


def command(python: str, module: str, *arguments: str) -> list[str]:
    """Give the command line of a child: no site packages, no user directory, no current directory in its path."""
    flags = "-BsSP" if sys.dont_write_bytecode else "-sSP"
    return [python, flags, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Give the whole environment of a child: where to import from, and where the loader finds Python's library."""
    engine = importlib.util.find_spec("wasmtime")
    if engine is None or not engine.submodule_search_locations:
        message = "wasmtime is not installed beside quittance"
        raise EngineMissingError(message)
    roots = dict.fromkeys((Path(__file__).parents[2], Path(engine.submodule_search_locations[0]).parent))
    variables = {"PYTHONPATH": os.pathsep.join(map(str, roots))}
    if libraries := os.environ.get("LD_LIBRARY_PATH"):
        variables["LD_LIBRARY_PATH"] = libraries  # AWS Lambda's Python finds its own library only so
    return variables


def hide() -> None:
    """Close this process's memory and environment to other processes of the same user (see proc(5))."""
    _prctl(_PR_SET_DUMPABLE, 0)


def confine(*, data_bytes: int, file_bytes: int, open_files: int, cpu_seconds: int | None = None) -> None:
    """Give up, for good, whatever this process can give up. Call it after the last import and the last thread."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_NOFILE, open_files)
    _limit(resource.RLIMIT_DATA, data_bytes)
    if cpu_seconds is not None:
        _limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)  # SIGXCPU says why it ends, SIGKILL does not
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _drop_capabilities()
    hide()


def die_with_parent(parent: int) -> None:
    """Ask the kernel to end this process when the thread that started it ends, and end now if that is past."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    _, most = resource.getrlimit(kind)
    bounds = [value if most == resource.RLIM_INFINITY else min(value, most) for value in (soft, hard or soft)]
    resource.setrlimit(kind, (bounds[0], bounds[1]))


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _drop_capabilities() -> None:
    """Without capabilities even root is an ordinary user: it cannot read the memory of a hidden process."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    with contextlib.suppress(AttributeError):  # a C library without capset leaves an ordinary user as it is
        ctypes.CDLL(None).capset(header, bytes(_CAPABILITY_SETS_BYTES))
