"""A filter on system calls, for a worker that has all it needs: what it still may do is run guests and answer.

No library for this is at hand on AWS Lambda, so the filter is put together here, in the kernel's classic BPF (see
seccomp(2)). It is a second wall, behind rlimits and dropped privileges: some kernels refuse it, and all holds without.
"""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

# Numbers of the calls on x86_64 and aarch64.
_ALLOWED: Final[Mapping[str, tuple[int | None, int | None]]] = MappingProxyType(
    {
        # Jobs and reports; artefacts are read by path.
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
        # Memory, of Python and of guests; code becomes executable.
        "brk": (12, 214),
        "mmap": (9, 222),
        "munmap": (11, 215),
        "mremap": (25, 216),
        "mprotect": (10, 226),
        "madvise": (28, 233),
        "memfd_create": (319, 279),
        "membarrier": (324, 283),
        # Waiting and time.
        "futex": (202, 98),
        "poll": (7, None),
        "ppoll": (271, 73),
        "restart_syscall": (219, 128),
        "clock_gettime": (228, 113),
        "clock_nanosleep": (230, 115),
        "sched_yield": (24, 124),
        # Traps of guests are signals.
        "rt_sigaction": (13, 134),
        "rt_sigprocmask": (14, 135),
        "rt_sigreturn": (15, 139),
        "sigaltstack": (131, 132),
        # About itself.
        "getpid": (39, 172),
        "gettid": (186, 178),
        "getrusage": (98, 165),
        "sched_getaffinity": (204, 123),
        "getrandom": (318, 278),
        # The end.
        "exit": (60, 93),
        "exit_group": (231, 94),
    }
)
_OPENAT: Final = (257, 56)  # to read only
_FCNTL: Final = (72, 25)  # to seal a memory file only

# What nothing of ours ever does. A process that tries is not ours any more: it ends there. All other calls are refused.
_DEADLY: Final[Mapping[str, tuple[int | None, int | None]]] = MappingProxyType(
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

# The kernel's virtual machine and what its programs see.
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_INSTRUCTION: Final = struct.Struct("=HBBI")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict() -> bool:
    """Put all threads of this process under the filter, for good; false where the kernel does not allow it.

    The process must have given up gaining privileges (`process.confine`), and can start no thread any more.
    """
    return install(_filter())


def install(instructions: bytes) -> bool:
    """Hand a program to the kernel; false if it does not take it."""
    program = _Program(len(instructions) // _INSTRUCTION.size, instructions)
    arguments = map(ctypes.c_long, (_SECCOMP[_COLUMN], _SET_MODE_FILTER, _ALL_THREADS))
    return bool(ctypes.CDLL(None).syscall(*arguments, ctypes.byref(program)) == 0)


def _filter() -> bytes:
    unwritten = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
    return b"".join(
        (
            _load(_ARCHITECTURE_AT),
            _step(_JUMP_IF_EQUAL, _ARCHITECTURE[_COLUMN], if_true=1),
            _step(_RETURN, _KILL),
            _load(_NUMBER_AT),
            *_each(_ALLOWED, _ALLOW),
            *_each(_DEADLY, _KILL),
            # openat's third argument is its flags
            _step(_JUMP_IF_EQUAL, _OPENAT[_COLUMN], if_false=4),
            _load(_ARGUMENTS_AT + 2 * 8),
            _step(_JUMP_IF_ANY_BIT, unwritten, if_true=1),
            _step(_RETURN, _ALLOW),
            _step(_RETURN, _REFUSE),
            # fcntl's second argument is its command
            _step(_JUMP_IF_EQUAL, _FCNTL[_COLUMN], if_false=3),
            _load(_ARGUMENTS_AT + 1 * 8),
            _step(_JUMP_IF_EQUAL, fcntl.F_ADD_SEALS, if_false=1),
            _step(_RETURN, _ALLOW),
            _step(_RETURN, _REFUSE),
        )
    )


def _each(calls: Mapping[str, tuple[int | None, int | None]], verdict: int) -> Iterable[bytes]:
    for numbers in calls.values():
        if (number := numbers[_COLUMN]) is not None:
            yield _step(_JUMP_IF_EQUAL, number, if_false=1)
            yield _step(_RETURN, verdict)


def _load(offset: int) -> bytes:
    return _step(_LOAD, offset)


def _step(code: int, operand: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """Make one instruction; a jump passes over so many others."""
    return _INSTRUCTION.pack(code, if_true, if_false, operand)
