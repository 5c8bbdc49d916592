"""Everything outside the guest: WASI preview 1 without files, network, real time or real randomness.

This module answers all 46 calls in Python; the engine answers none. So a guest can reach only what this module
provides (`docs/sandbox.md` has the table), and output, time and randomness depend on the job alone. Each run has its
own `Guest`.

The behaviour that a guest can observe is numbered (`run.HOST_RULES`). Receipts state the number through the
configuration's digest. For replays, earlier rules are kept as their differences from these: `wasi_1.py`.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Final, Protocol

from quittance import limits

MODULE: Final = "wasi_snapshot_preview1"

CALLS: Final[Mapping[str, str]] = {
    "args_get": "ii",
    "args_sizes_get": "ii",
    "clock_res_get": "ii",
    "clock_time_get": "iIi",
    "environ_get": "ii",
    "environ_sizes_get": "ii",
    "fd_advise": "iIIi",
    "fd_allocate": "iII",
    "fd_close": "i",
    "fd_datasync": "i",
    "fd_fdstat_get": "ii",
    "fd_fdstat_set_flags": "ii",
    "fd_fdstat_set_rights": "iII",
    "fd_filestat_get": "ii",
    "fd_filestat_set_size": "iI",
    "fd_filestat_set_times": "iIIi",
    "fd_pread": "iiiIi",
    "fd_prestat_dir_name": "iii",
    "fd_prestat_get": "ii",
    "fd_pwrite": "iiiIi",
    "fd_read": "iiii",
    "fd_readdir": "iiiIi",
    "fd_renumber": "ii",
    "fd_seek": "iIii",
    "fd_sync": "i",
    "fd_tell": "ii",
    "fd_write": "iiii",
    "path_create_directory": "iii",
    "path_filestat_get": "iiiii",
    "path_filestat_set_times": "iiiiIIi",
    "path_link": "iiiiiii",
    "path_open": "iiiiiIIii",
    "path_readlink": "iiiiii",
    "path_remove_directory": "iii",
    "path_rename": "iiiiii",
    "path_symlink": "iiiii",
    "path_unlink_file": "iii",
    "poll_oneoff": "iiii",
    "proc_exit": "i",
    "proc_raise": "i",
    "random_get": "ii",
    "sched_yield": "",
    "sock_accept": "iii",
    "sock_recv": "iiiiii",
    "sock_send": "iiiii",
    "sock_shutdown": "ii",
}
"""Every preview-1 call with its parameters: i is i32, I is i64. All except `proc_exit` return an errno (i32)."""

NO_RESULT: Final = frozenset({"proc_exit"})

ARGV: Final = (b"agent\0",)  # not empty: many runtimes expect argv[0]
CLOCK_STEP_NS: Final = 10_000  # how far one reading of the clock advances it
CLOCK_READS_PER_STEP: Final = 64  # a guest that only waits gets one more step per reading after every 64 readings
CLOCK_NS_MAX: Final = 2**63 - 1

_REALTIME, _MONOTONIC = 0, 1
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_WRITABLE = frozenset({_STDOUT, _STDERR})
_RIGHT_READ, _RIGHT_WRITE, _RIGHT_POLL = 1 << 1, 1 << 6, 1 << 27
_ABSOLUTE = 1
_HANGUP = 1
_U32_MAX = 2**32 - 1
IOVEC = struct.Struct("<II")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_FDSTAT = struct.Struct("<BxHxxxxQQ")
_SUBSCRIPTION = struct.Struct("<QB7x32s")  # userdata, tag, the part that depends on the tag
_CLOCK = struct.Struct("<I4xQ8xH")  # clock id, timeout, (precision,) flags
_EVENT = struct.Struct("<QHB5xQH6x")  # userdata, errno, type, bytes, flags
_FILESTAT_BYTES = 64


class Errno(IntEnum):
    """The preview-1 error numbers that host calls return."""

    SUCCESS = 0
    BADF = 8
    FAULT = 21
    INVAL = 28
    NOTDIR = 54
    NOTSOCK = 57
    NOTSUP = 58
    SPIPE = 70


class CallFailedError(Exception):
    """The host call fails; the guest receives the error number."""

    def __init__(self, errno: Errno) -> None:
        super().__init__(errno)
        self.errno = errno


class ExitedError(Exception):
    """The guest called `proc_exit`."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class FuelLimitError(Exception):
    """The guest's host calls used more fuel than its limit."""


class OutputLimitError(Exception):
    """The guest wrote more to standard output than its limit."""


class Memory(Protocol):
    """The guest's linear memory; an address out of bounds raises `CallFailedError(Errno.FAULT)`."""

    def read(self, address: int, length: int) -> bytes:
        """Copy bytes out of the guest."""

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Copy bytes into the guest."""

    def check(self, address: int, length: int) -> None:
        """Check that bytes are inside the guest's memory, without reading them."""


class Guest:
    """The state behind the host calls of one run: input, output, virtual clock and virtual randomness.

    Each method named after a preview-1 call implements that call. It takes the guest's memory and the arguments as
    unsigned integers, and returns an error number. `fuel` is what the calls have cost; the engine counts the rest.
    """

    def __init__(
        self,
        *,
        stdin: bytes | memoryview,
        epoch_ns: int,
        seed: bytes,
        write_stderr: Callable[[bytes], None],
        write_stdout: Callable[[bytes], None] | None = None,
        output_bytes_max: int = limits.OUTPUT_BYTES_MAX,
        fuel: int = limits.FUEL_MAX,
        engine_fuel: Callable[[], int] = lambda: 0,
    ) -> None:
        self.fuel = 0
        self._fuel_max = fuel
        self._engine_fuel = engine_fuel  # returns what the engine has counted so far
        self.stdout = bytearray()  # stays empty if `write_stdout` takes the output
        self.stdout_bytes = 0
        self._write_stdout = write_stdout or self.stdout.extend
        self._output_bytes_max = output_bytes_max
        self._stdin = memoryview(stdin)
        self._write_stderr = write_stderr
        self._stderr_left = limits.STDERR_BYTES_MAX
        self.stderr_bytes = 0
        self._open = {_STDIN, _STDOUT, _STDERR}
        self._epoch_ns = epoch_ns
        self._elapsed_ns = 0
        self._clock_reads = 0  # since the guest last moved bytes or computed
        self._fuel_at_clock_read = 0
        self._random = _Random(seed)

    def answer(self, name: str, memory: Memory, arguments: Sequence[int]) -> int:
        """Answer a host call by its name."""
        self._spend(limits.HOST_CALL_FUEL)
        answer: int = getattr(self, name)(memory, *arguments)
        return answer

    def _spend(self, fuel: int) -> None:
        """Charge fuel for work before it is done. The engine's count is added when the run has ended."""
        self.fuel += fuel
        if self.fuel > self._fuel_max:
            raise FuelLimitError

    # Arguments and environment.

    def args_sizes_get(self, memory: Memory, count: int, size: int) -> int:
        """The only argument is the program's name."""
        memory.write(count, _U32.pack(len(ARGV)))
        memory.write(size, _U32.pack(sum(map(len, ARGV))))
        return Errno.SUCCESS

    def args_get(self, memory: Memory, pointers: int, text: int) -> int:
        """The only argument is the program's name."""
        memory.write(pointers, _U32.pack(text))
        memory.write(text, ARGV[0])
        return Errno.SUCCESS

    def environ_sizes_get(self, memory: Memory, count: int, size: int) -> int:
        """There are no environment variables."""
        memory.write(count, _U32.pack(0))
        memory.write(size, _U32.pack(0))
        return Errno.SUCCESS

    def environ_get(self, _memory: Memory, _pointers: int, _text: int) -> int:
        """There are no environment variables."""
        return Errno.SUCCESS

    # Time and randomness.

    def clock_res_get(self, memory: Memory, clock: int, result: int) -> int:
        """The resolution is the step by which a reading advances the clock."""
        if clock not in {_REALTIME, _MONOTONIC}:
            return Errno.INVAL
        memory.write(result, _U64.pack(CLOCK_STEP_NS))
        return Errno.SUCCESS

    def clock_time_get(self, memory: Memory, clock: int, _precision: int, result: int) -> int:
        """Each reading advances the clock, by more the longer the guest only reads it: so waiting in a loop ends."""
        if clock not in {_REALTIME, _MONOTONIC}:
            return Errno.INVAL
        self._advance_for_read()
        memory.write(result, _U64.pack(self._now(clock)))
        return Errno.SUCCESS

    def _advance_for_read(self) -> None:
        fuel = self._engine_fuel()
        if fuel - self._fuel_at_clock_read > limits.WAIT_FUEL_MAX:
            self._clock_reads = 0
        self._fuel_at_clock_read = fuel
        self._advance(CLOCK_STEP_NS * (1 + self._clock_reads // CLOCK_READS_PER_STEP))
        self._clock_reads += 1

    def random_get(self, memory: Memory, address: int, length: int) -> int:
        """The bytes are the next ones of a stream that depends on the job's seed alone."""
        memory.check(address, length)  # a bad pointer must not consume any of the stream
        self._spend(length * limits.RANDOM_BYTE_FUEL)
        for start in range(0, length, limits.RANDOM_PIECE_BYTES):
            piece = self._random.take(min(limits.RANDOM_PIECE_BYTES, length - start))
            memory.write(address + start, piece)
        return Errno.SUCCESS

    def sched_yield(self, _memory: Memory) -> int:
        """Yielding has no effect: there is only one thread."""
        return Errno.SUCCESS

    def poll_oneoff(self, memory: Memory, subscriptions: int, events: int, count: int, result: int) -> int:
        """Report the streams that are ready; if there are only clocks, advance time to the earliest of them."""
        if not 1 <= count <= limits.POLL_SUBSCRIPTIONS_MAX:
            return Errno.INVAL
        self._spend(count * limits.HOST_BUFFER_FUEL)
        subscribed = memory.read(subscriptions, count * _SUBSCRIPTION.size)
        memory.check(events, count * _EVENT.size)  # a bad pointer must fail before time advances
        ready = self._poll(subscribed)
        memory.write(events, b"".join(ready))
        memory.write(result, _U32.pack(len(ready)))
        return Errno.SUCCESS

    def _poll(self, subscribed: bytes) -> list[bytes]:
        ready: list[bytes] = []
        waits: list[tuple[int, bytes]] = []
        for userdata, tag, part in _SUBSCRIPTION.iter_unpack(subscribed):
            if tag > 2:
                raise CallFailedError(Errno.INVAL)
            if tag:
                ready.append(self._poll_descriptor(userdata, tag, _U32.unpack_from(part)[0]))
                continue
            clock, timeout, flags = _CLOCK.unpack_from(part)
            if clock not in {_REALTIME, _MONOTONIC}:
                ready.append(_EVENT.pack(userdata, Errno.INVAL, tag, 0, 0))
                continue
            wait = max(timeout - self._now(clock), 0) if flags & _ABSOLUTE else timeout
            waits.append((wait, _EVENT.pack(userdata, Errno.SUCCESS, tag, 0, 0)))
        shortest = 0 if ready else min(wait for wait, _ in waits)
        self._advance(shortest)
        return ready + [event for wait, event in waits if wait <= shortest]

    def _poll_descriptor(self, userdata: int, tag: int, fd: int) -> bytes:
        readable = tag == 1 and fd == _STDIN
        writable = tag == 2 and fd in _WRITABLE
        if fd not in self._open or not (readable or writable):
            return _EVENT.pack(userdata, Errno.BADF, tag, 0, 0)
        if writable:
            return _EVENT.pack(userdata, Errno.SUCCESS, tag, limits.KIB, 0)
        return _EVENT.pack(userdata, Errno.SUCCESS, tag, len(self._stdin), 0 if self._stdin else _HANGUP)

    def _advance(self, nanoseconds: int) -> None:
        self._elapsed_ns = min(self._elapsed_ns + nanoseconds, CLOCK_NS_MAX - self._epoch_ns)

    def _now(self, clock: int) -> int:
        return self._elapsed_ns + (self._epoch_ns if clock == _REALTIME else 0)

    # The three standard streams.

    def fd_read(self, memory: Memory, fd: int, iovecs: int, count: int, result: int) -> int:
        """Standard input is the job's input."""
        if fd != _STDIN or fd not in self._open:
            raise CallFailedError(Errno.BADF)
        spans = self._spans(memory, iovecs, count)
        memory.check(result, _U32.size)  # a bad pointer must fail before any input is consumed
        total = 0
        for address, length in spans:
            piece = self._stdin[:length]
            if not piece:
                break
            memory.write(address, piece)
            self._stdin = self._stdin[length:]
            total += len(piece)
        self._note_transfer(total)
        memory.write(result, _U32.pack(total))
        return Errno.SUCCESS

    def fd_write(self, memory: Memory, fd: int, iovecs: int, count: int, result: int) -> int:
        """Standard output ends the run beyond its limit; standard error is cut off at its limit."""
        if fd not in _WRITABLE or fd not in self._open:
            raise CallFailedError(Errno.BADF)
        spans = self._spans(memory, iovecs, count)
        total = spans[0][1] if len(spans) == 1 else sum(length for _, length in spans)
        if total > _U32_MAX:
            return Errno.INVAL
        memory.check(result, _U32.size)  # a bad pointer must fail before anything is written
        if fd == _STDERR:
            self._keep_stderr(memory, spans, total)
        elif self.stdout_bytes + total > self._output_bytes_max:
            raise OutputLimitError
        else:
            for address, length in spans:
                self._write_stdout(memory.read(address, length))
            self.stdout_bytes += total
        self._note_transfer(total)
        memory.write(result, _U32.pack(total))
        return Errno.SUCCESS

    def _keep_stderr(self, memory: Memory, spans: list[tuple[int, int]], total: int) -> None:
        self.stderr_bytes = min(self.stderr_bytes + total, limits.COUNT_MAX)
        for address, length in spans:
            if not self._stderr_left:
                return
            kept = min(length, self._stderr_left)
            self._write_stderr(memory.read(address, kept))
            self._stderr_left -= kept

    def _spans(self, memory: Memory, iovecs: int, count: int) -> list[tuple[int, int]]:
        """Read a list of buffers and check that each lies inside the guest's memory.

        Empty buffers are skipped, wherever they are in the list and wherever they point, as in readv and writev.
        """
        if count > limits.IOVECS_MAX:
            raise CallFailedError(Errno.INVAL)
        self._spend(count * limits.HOST_BUFFER_FUEL)
        spans = [span for span in IOVEC.iter_unpack(memory.read(iovecs, count * IOVEC.size)) if span[1]]
        for address, length in spans:
            memory.check(address, length)
        return spans

    def _note_transfer(self, count: int) -> None:
        """Note the number of bytes read or written: a guest that moves bytes does not only wait."""
        if count:
            self._clock_reads = 0

    def fd_close(self, _memory: Memory, fd: int) -> int:
        """A closed stream stays closed for the rest of the run."""
        self._require_open(fd)
        self._open.remove(fd)
        return Errno.SUCCESS

    def fd_fdstat_get(self, memory: Memory, fd: int, result: int) -> int:
        """The streams' file type is unknown: they are not terminals, so C libraries buffer their output."""
        self._require_open(fd)
        rights = _RIGHT_POLL | (_RIGHT_READ if fd == _STDIN else _RIGHT_WRITE)
        memory.write(result, _FDSTAT.pack(0, 0, rights, 0))
        return Errno.SUCCESS

    def fd_filestat_get(self, memory: Memory, fd: int, result: int) -> int:
        """All fields are zero, as for a pipe."""
        self._require_open(fd)
        memory.write(result, bytes(_FILESTAT_BYTES))
        return Errno.SUCCESS

    def proc_exit(self, _memory: Memory, code: int) -> int:
        """End the run."""
        raise ExitedError(code)

    def proc_raise(self, _memory: Memory, _signal: int) -> int:
        """There are no signals."""
        return Errno.NOTSUP

    def _require_open(self, fd: int) -> None:
        if fd not in self._open:
            raise CallFailedError(Errno.BADF)


def _unsupported(errno: Errno, *descriptors: int) -> Callable[..., int]:
    """Make a host call that always fails: with BADF if a descriptor is not open, else with `errno`.

    `descriptors` are the positions of the descriptors among the arguments.
    """

    def fail(guest: Guest, _memory: Memory, *arguments: int) -> int:
        for position in descriptors:
            guest._require_open(arguments[position])  # noqa: SLF001 - this function becomes a method of the class
        return errno

    return fail


# The calls that a stream does not support, and those that need files or sockets.
_UNSUPPORTED: Final[Mapping[str, Callable[..., int]]] = {
    # A stream has no position and no size.
    "fd_advise": _unsupported(Errno.SPIPE, 0),
    "fd_allocate": _unsupported(Errno.SPIPE, 0),
    "fd_pread": _unsupported(Errno.SPIPE, 0),
    "fd_pwrite": _unsupported(Errno.SPIPE, 0),
    "fd_seek": _unsupported(Errno.SPIPE, 0),
    "fd_tell": _unsupported(Errno.SPIPE, 0),
    # POSIX returns EINVAL for a descriptor that cannot be synchronised or resized.
    "fd_datasync": _unsupported(Errno.INVAL, 0),
    "fd_filestat_set_size": _unsupported(Errno.INVAL, 0),
    "fd_sync": _unsupported(Errno.INVAL, 0),
    # The streams' properties cannot be changed.
    "fd_fdstat_set_flags": _unsupported(Errno.NOTSUP, 0),
    "fd_fdstat_set_rights": _unsupported(Errno.NOTSUP, 0),
    "fd_filestat_set_times": _unsupported(Errno.NOTSUP, 0),
    "fd_renumber": _unsupported(Errno.NOTSUP, 0, 1),
    # No descriptor is preopened; BADF ends the C library's search for preopened directories.
    "fd_prestat_dir_name": _unsupported(Errno.BADF),
    "fd_prestat_get": _unsupported(Errno.BADF),
    # No descriptor is a directory.
    "fd_readdir": _unsupported(Errno.NOTDIR, 0),
    "path_create_directory": _unsupported(Errno.NOTDIR, 0),
    "path_filestat_get": _unsupported(Errno.NOTDIR, 0),
    "path_filestat_set_times": _unsupported(Errno.NOTDIR, 0),
    "path_link": _unsupported(Errno.NOTDIR, 0, 4),
    "path_open": _unsupported(Errno.NOTDIR, 0),
    "path_readlink": _unsupported(Errno.NOTDIR, 0),
    "path_remove_directory": _unsupported(Errno.NOTDIR, 0),
    "path_rename": _unsupported(Errno.NOTDIR, 0, 3),
    "path_symlink": _unsupported(Errno.NOTDIR, 2),
    "path_unlink_file": _unsupported(Errno.NOTDIR, 0),
    # No descriptor is a socket.
    "sock_accept": _unsupported(Errno.NOTSOCK, 0),
    "sock_recv": _unsupported(Errno.NOTSOCK, 0),
    "sock_send": _unsupported(Errno.NOTSOCK, 0),
    "sock_shutdown": _unsupported(Errno.NOTSOCK, 0),
}


for _name, _function in _UNSUPPORTED.items():
    setattr(Guest, _name, _function)


class _Random:
    """SHA-256 in counter mode: a stream of bytes that depends on the seed alone."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._key: hashlib._Hash | None = None  # until the first draw: most runs draw nothing
        self._counter = 0
        self._rest = b""

    def take(self, length: int) -> bytes:
        missing = max(length - len(self._rest), 0)
        blocks = -(-missing // 32)
        self._key = key = self._key or hashlib.sha256(self._seed)
        fresh = b"".join(_block(key, self._counter + index) for index in range(blocks))
        self._counter += blocks
        stream = self._rest + fresh
        self._rest = stream[length:]
        return stream[:length]


def _block(key: "hashlib._Hash", number: int) -> bytes:
    block = key.copy()
    block.update(number.to_bytes(8, "little"))
    return block.digest()
