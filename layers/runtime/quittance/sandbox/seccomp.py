"""The worker's seccomp filter: which system calls a worker may still make once it is ready to run guests.

A guest that breaks out of the engine can do no more than the worker process can. So the worker keeps only the calls
that it needs to read jobs, load artefacts, run guests and send reports:

- `_ALLOWED` calls pass.
- `openat` passes only for reading, and `fcntl` only for sealing a memory file.
- `_FATAL` calls kill the process: they start programs or processes, read or control another process, open connections,
  mount file systems, or load code into the kernel. The worker never makes them, so an attempt means that a guest took
  it over.
- Every other call fails with EPERM. Among these are all calls that open a file for writing, create or delete a file,
  signal another process, or start a thread or process by `clone`.
- A call in another architecture's convention (32-bit calls on x86_64) kills the process, because call numbers mean
  something else there and would pass the filter.

AWS Lambda's Python has no seccomp library, so this module assembles the filter in the kernel's classic BPF (see
seccomp(2)). The filter is a second line of defence behind resource limits and dropped privileges. Some kernels refuse
it, among them AWS Lambda's; the worker then runs without it.
"""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

# Call numbers on x86_64 and aarch64; None where the architecture has no such call.
_ALLOWED: Final[Mapping[str, tuple[int | None, int | None]]] = MappingProxyType(
    {
        # Read jobs and artefacts, write reports. Artefacts are opened by path: see `openat` below.
        "read": (0, 63),
        "write": (1, 64),
        "writev": (20, 66),
        "pread64": (17, 67),
        "close": (3, 57),
        "lseek": (8, 62),
        "fstat": (5, 80),
        "newfstatat": (262, 79),
        "statx": (332, 291),
        "getdents64": (217, 61),
        # Memory of Python and of guests. `mprotect` makes an artefact's code executable; the engine keeps a module's
        # initial memory in a memory file (`memfd_create`).
        "brk": (12, 214),
        "mmap": (9, 222),
        "munmap": (11, 215),
        "mremap": (25, 216),
        "mprotect": (10, 226),
        "madvise": (28, 233),
        "memfd_create": (319, 279),
        "membarrier": (324, 283),
        # Locks, waiting for the channel, and time.
        "futex": (202, 98),
        "poll": (7, None),
        "ppoll": (271, 73),
        "restart_syscall": (219, 128),
        "clock_gettime": (228, 113),
        "clock_nanosleep": (230, 115),
        "sched_yield": (24, 124),
        # The engine turns a guest's hardware traps into signals and handles them.
        "rt_sigaction": (13, 134),
        "rt_sigprocmask": (14, 135),
        "rt_sigreturn": (15, 139),
        "sigaltstack": (131, 132),
        # Facts about this process, and random bytes for Python.
        "getpid": (39, 172),
        "gettid": (186, 178),
        "getrusage": (98, 165),
        "sched_getaffinity": (204, 123),
        "getrandom": (318, 278),
        # Exit.
        "exit": (60, 93),
        "exit_group": (231, 94),
    }
)
_OPENAT: Final = (257, 56)  # for reading only: the worker must load artefacts, and must not change any file
_FCNTL: Final = (72, 25)  # for F_ADD_SEALS only: the engine seals its memory files

# The worker never makes these calls. An attempt proves that its code was taken over, so the kernel kills the process.
_FATAL: Final[Mapping[str, tuple[int | None, int | None]]] = MappingProxyType(
    {
        "execve": (59, 221),
        "execveat": (322, 281),
        "fork": (57, None),
        "vfork": (58, None),
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "socket": (41, 198),
        "connect": (42, 203),
        "mount": (165, 40),
        "bpf": (321, 280),
        "io_uring_setup": (425, 425),
    }
)

_SECCOMP: Final = (317, 277)
_COLUMN: Final = ("x86_64", "aarch64").index(os.uname().machine)
_ARCHITECTURE: Final = (0xC000003E, 0xC00000B7)  # AUDIT_ARCH_*
_SET_MODE_FILTER: Final = 1
_ALL_THREADS: Final = 1  # SECCOMP_FILTER_FLAG_TSYNC

# Instructions of classic BPF, offsets in `struct seccomp_data`, and the filter's return values.
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000  # SECCOMP_RET_ALLOW, _ERRNO, _KILL_PROCESS
_INSTRUCTION: Final = struct.Struct("=HBBI")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict() -> bool:
    """Apply the filter to all threads of this process, irrevocably; return False if the kernel refuses it.

    Call `process.confine` first: the kernel accepts a filter only from a process that cannot gain privileges. The
    process cannot start a thread afterwards.
    """
    return install(_filter())


def install(instructions: bytes) -> bool:
    """Install a BPF program as this process's filter; return False if the kernel refuses it."""
    program = _Program(len(instructions) // _INSTRUCTION.size, instructions)
    arguments = map(ctypes.c_long, (_SECCOMP[_COLUMN], _SET_MODE_FILTER, _ALL_THREADS))
    return bool(ctypes.CDLL(None).syscall(*arguments, ctypes.byref(program)) == 0)


def _filter() -> bytes:
    writing = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC  # O_RDONLY is 0, so any of these bits means more than reading
    return b"".join(
        (
            _load(_ARCHITECTURE_AT),
            _instruction(_JUMP_IF_EQUAL, _ARCHITECTURE[_COLUMN], if_true=1),
            _instruction(_RETURN, _KILL),
            _load(_NUMBER_AT),
            *_rules(_ALLOWED, _ALLOW),
            *_rules(_FATAL, _KILL),
            # openat: the third argument holds the flags
            _instruction(_JUMP_IF_EQUAL, _OPENAT[_COLUMN], if_false=4),
            _load(_ARGUMENTS_AT + 2 * 8),
            _instruction(_JUMP_IF_ANY_BIT, writing, if_true=1),
            _instruction(_RETURN, _ALLOW),
            _instruction(_RETURN, _DENY),
            # fcntl: the second argument is the command
            _instruction(_JUMP_IF_EQUAL, _FCNTL[_COLUMN], if_false=3),
            _load(_ARGUMENTS_AT + 1 * 8),
            _instruction(_JUMP_IF_EQUAL, fcntl.F_ADD_SEALS, if_false=1),
            _instruction(_RETURN, _ALLOW),
            _instruction(_RETURN, _DENY),
        )
    )


def _rules(calls: Mapping[str, tuple[int | None, int | None]], action: int) -> Iterable[bytes]:
    for numbers in calls.values():
        if (number := numbers[_COLUMN]) is not None:
            yield _instruction(_JUMP_IF_EQUAL, number, if_false=1)
            yield _instruction(_RETURN, action)


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _instruction(code: int, operand: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """Encode one instruction. `if_true` and `if_false` are the numbers of instructions that a jump skips."""
    return _INSTRUCTION.pack(code, if_true, if_false, operand)
