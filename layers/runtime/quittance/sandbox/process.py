"""Starting and confining the sandbox's child processes: the worker and the compiler.

A child inherits no environment variables except those in `environment`, no descriptors except those passed to it, and
no import path except that of this package and of the engine. It confines itself before it reads any untrusted byte.
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
    """Return a child's command line. Its import path has no site packages, user directory or current directory."""
    flags = "-BsSP" if sys.dont_write_bytecode else "-sSP"
    return [python, flags, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Return a child's whole environment: its import path, and where the loader finds Python's library."""
    engine = importlib.util.find_spec("wasmtime")
    if engine is None or not engine.submodule_search_locations:
        message = "wasmtime is not installed beside quittance"
        raise EngineMissingError(message)
    roots = dict.fromkeys((Path(__file__).parents[2], Path(engine.submodule_search_locations[0]).parent))
    variables = {"PYTHONPATH": os.pathsep.join(map(str, roots))}
    if libraries := os.environ.get("LD_LIBRARY_PATH"):
        variables["LD_LIBRARY_PATH"] = libraries  # without it, Python on AWS Lambda does not find libpython
    return variables


def hide() -> None:
    """Stop other processes of the same user from reading this process's memory and environment.

    A process that is not dumpable cannot be traced, and its files in /proc belong to root (see proc(5)).
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def confine(*, data_bytes: int, file_bytes: int, open_files: int, cpu_seconds: int | None = None) -> None:
    """Irrevocably limit this process's resources and drop its privileges.

    Call it after the last import and after the last thread has started: RLIMIT_NPROC = 0 forbids new processes and
    threads. The kernel does not apply that limit to root, for whom only the seccomp filter forbids them.
    `PR_SET_NO_NEW_PRIVS` is also the condition for installing that filter without privileges.
    """
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_NOFILE, open_files)
    _limit(resource.RLIMIT_DATA, data_bytes)
    if cpu_seconds is not None:
        # At the soft limit SIGXCPU ends the process and states the reason; the hard limit's SIGKILL states none.
        _limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _drop_capabilities()
    hide()


def exit_with_parent(parent: int) -> None:
    """Make the kernel kill this process when the thread that started it ends; exit now if the parent has ended."""
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
    """Drop all capabilities. Without them even root cannot read the memory of a process that called `hide`."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    with contextlib.suppress(AttributeError):  # a C library without capset; an ordinary user has no capabilities
        ctypes.CDLL(None).capset(header, bytes(_CAPABILITY_SETS_BYTES))
