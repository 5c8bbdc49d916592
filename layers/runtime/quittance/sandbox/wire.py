"""The protocol between the parent and its worker: small frames on a socket, and the bytes of a run in shared memory.

The worker sends one greeting, then one report for each job, so at most one frame is in transit. Each side limits what
it reads. The parent checks everything that a worker sends or shares: a guest that broke out could have written it.
"""

import mmap
import operator
import os
import struct
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Final

from quittance import limits
from quittance.run import Job, Meter, Outcome, Run

_LENGTH: Final = struct.Struct("<I")
_FRAME_BYTES_MAX: Final = 16 * limits.KIB

_GREETING: Final = struct.Struct("<?")
# Lengths of the path, digest and seed that follow, and of the input in shared memory; the job's numbers.
_JOB: Final = struct.Struct("<IIIIQQQQQB")
_NO_EXIT_CODE: Final = -1
_EXIT_CODE_MAX: Final = 2**32 - 1
_OUTCOMES: Final = tuple(Outcome)
_OUTCOME_NUMBERS: Final = {outcome: number for number, outcome in enumerate(_OUTCOMES)}
_METER_FIELDS: Final = tuple(field.name for field in fields(Meter))
_METER_FORM: Final = "".join("?" if name == "fuel_exact" else "Q" for name in _METER_FIELDS)
_meter_of: Final = operator.attrgetter(*_METER_FIELDS)
_REPORT: Final = struct.Struct(f"<BqQ{_METER_FORM}")  # outcome, exit code, resident bytes, meter; the message follows

_BEGAN: Final = struct.Struct("=QQ")  # when the guest began, and the CPU time that the worker had used by then
_COUNT: Final = struct.Struct("=I")  # bytes of standard error that follow
_STDERR_START: Final = _BEGAN.size + _COUNT.size


def _next_page(end: int) -> int:
    return -(-end // mmap.PAGESIZE) * mmap.PAGESIZE


_STDIN_START: Final = _next_page(_STDERR_START + limits.STDERR_BYTES_MAX)
_STDOUT_START: Final = _next_page(_STDIN_START + limits.STDIN_BYTES_MAX)
SHARED_BYTES: Final = _next_page(_STDOUT_START + limits.OUTPUT_BYTES_MAX)
_ZEROS: Final = bytes(64 * limits.KIB)

Read = Callable[[int], bytes]
"""Reads at most the given number of bytes; returns none at the end of the stream."""


class SharedMemory:
    """Memory shared by both sides: a run's input and output, and what the parent needs if the worker ends in a run.

    That is when the guest began, and what it wrote to standard error. The kernel provides a page when it is first used,
    so a short input costs one page, not the longest input's.

    The worker may write to the memory at any time. So the parent reads nothing twice: it bounds a length, copies that
    many bytes once, and uses only the copy. It erases what a run left there, so that no later run finds it.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, SHARED_BYTES)
        self._used = 0  # of the area for standard error
        self._stdout_end = _STDOUT_START

    # The parent's side.

    def put_job(self, stdin: bytes) -> None:
        """Clear the record of the beginning, and store the input of the next run."""
        self.clear()
        self._memory[_STDIN_START : _STDIN_START + len(stdin)] = stdin

    def began(self) -> tuple[int, int]:
        """Return when the guest began and the CPU time used before, both in ns; zeros if it has not begun."""
        began_ns, cpu_ns = _BEGAN.unpack_from(self._memory)
        return began_ns, cpu_ns

    def stderr(self) -> bytes:
        """Copy the standard error that is stored, whichever side wrote it."""
        (used,) = _COUNT.unpack_from(self._memory, _BEGAN.size)
        return self._memory[_STDERR_START : _STDERR_START + min(used, limits.STDERR_BYTES_MAX)] if used else b""

    def stdout(self, length: int) -> bytes:
        """Copy the output; the caller has checked its length against the job's limit."""
        return self._memory[_STDOUT_START : _STDOUT_START + min(length, limits.OUTPUT_BYTES_MAX)] if length else b""

    def erase(self, *, stdin_bytes: int, stdout_bytes: int, stderr_bytes: int) -> None:
        """Erase the bytes of a run, so that a guest that breaks out in a later run does not find them."""
        areas = ((_STDIN_START, stdin_bytes), (_STDOUT_START, stdout_bytes), (_STDERR_START, stderr_bytes))
        for start, length in areas:
            for at in range(start, start + length, len(_ZEROS)):
                piece = min(start + length - at, len(_ZEROS))
                self._memory[at : at + piece] = _ZEROS[:piece]

    # The worker's side.

    def begin(self) -> None:
        """Record that the guest begins now."""
        self.clear()
        self._memory[: _BEGAN.size] = _BEGAN.pack(time.monotonic_ns(), time.process_time_ns())

    def stdin(self, length: int) -> memoryview:
        """Return the input, without a copy: the parent does not change it during the run."""
        return memoryview(self._memory)[_STDIN_START : _STDIN_START + length]

    def append_stdout(self, data: bytes) -> None:
        """Append output; the caller keeps its limit."""
        end = self._stdout_end + len(data)
        self._memory[self._stdout_end : end] = data
        self._stdout_end = end

    def append_stderr(self, data: bytes) -> None:
        """Append standard error, up to its limit."""
        start = _STDERR_START + self._used
        data = data[: _STDERR_START + limits.STDERR_BYTES_MAX - start]
        self._memory[start : start + len(data)] = data
        self._used += len(data)
        self._memory[_BEGAN.size : _STDERR_START] = _COUNT.pack(self._used)

    # Both sides.

    def clear(self) -> None:
        """Forget the previous run's beginning and the length of its standard error."""
        self._used = 0
        self._stdout_end = _STDOUT_START
        self._memory[:_STDERR_START] = bytes(_STDERR_START)

    def close(self) -> None:
        """Unmap the memory."""
        self._memory.close()


class CorruptFrameError(Exception):
    """The other side broke the protocol."""


def encode(content: bytes) -> bytes:
    """Encode a frame."""
    return _LENGTH.pack(len(content)) + content


def receive(read: Read) -> bytes:
    """Read a frame; raises `EOFError` if the other side has closed, `CorruptFrameError` if the frame is invalid."""
    data = read(_FRAME_BYTES_MAX)
    if len(data) >= _LENGTH.size and len(data) == _LENGTH.size + _content_bytes(data):
        return data[_LENGTH.size :]  # as good as always
    pieces = bytearray(data)
    while data:
        if len(pieces) >= _LENGTH.size and len(pieces) >= (end := _LENGTH.size + _content_bytes(pieces)):
            if len(pieces) > end:
                message = "more than one frame arrived"
                raise CorruptFrameError(message)
            return bytes(pieces[_LENGTH.size :])
        data = read(_FRAME_BYTES_MAX)
        pieces += data
    raise EOFError


def _content_bytes(data: bytes | bytearray) -> int:
    """Return the length that a frame states, if it is possible."""
    length: int = _LENGTH.unpack_from(data)[0]
    if length > _FRAME_BYTES_MAX:
        message = f"a frame of {length} bytes is too long"
        raise CorruptFrameError(message)
    return length


def encode_greeting(*, seccomp: bool) -> bytes:
    """Encode the worker's greeting: it is ready for jobs, and the seccomp filter is active or not."""
    return encode(_GREETING.pack(seccomp))


def decode_greeting(content: bytes) -> bool:
    """Decode the greeting: whether the worker's seccomp filter is active."""
    try:
        (seccomp,) = _GREETING.unpack(content)
    except struct.error as error:
        message = "the frame is not a greeting"
        raise CorruptFrameError(message) from error
    return bool(seccomp)


def encode_job(job: Job) -> bytes:
    """Encode a job. Its input is not part of the frame: `SharedMemory.put_job` stores it."""
    path, digest = os.fsencode(job.artefact_path), job.artefact_sha256.encode()
    lengths = len(path), len(digest), len(job.seed), len(job.stdin)
    numbers = job.fuel, job.memory_bytes, job.timeout_ms, job.epoch_ns, job.output_bytes, job.host_rules
    return encode(b"".join((_JOB.pack(*lengths, *numbers), path, digest, job.seed)))


def decode_job(content: bytes, shared: SharedMemory) -> Job:
    """Decode a job, with its input in the shared memory."""
    numbers = _JOB.unpack_from(content)
    path_bytes, digest_bytes, _, stdin_bytes, fuel, memory_bytes, timeout_ms, epoch_ns, output_bytes, host_rules = (
        numbers
    )
    digest = _JOB.size + path_bytes
    seed = digest + digest_bytes
    return Job(
        artefact_path=os.fsdecode(content[_JOB.size : digest]),
        artefact_sha256=content[digest:seed].decode(),
        stdin=shared.stdin(stdin_bytes),  # type: ignore[arg-type]  # a view: the executor reads the input in place
        fuel=fuel,
        memory_bytes=memory_bytes,
        timeout_ms=timeout_ms,
        epoch_ns=epoch_ns,
        seed=content[seed:],
        output_bytes=output_bytes,
        host_rules=host_rules,
    )


def encode_run(run: Run, resident_bytes: int) -> bytes:
    """Encode the report of a run. Output and standard error are not part of it: they are in the shared memory."""
    exit_code = _NO_EXIT_CODE if run.exit_code is None else run.exit_code
    numbers = _REPORT.pack(_OUTCOME_NUMBERS[run.outcome], exit_code, resident_bytes, *_meter_of(run.meter))
    return encode(numbers + run.message.encode())


def decode_run(content: bytes, shared: SharedMemory, output_bytes_max: int) -> tuple[Run, int]:
    """Decode the report of a run; return it with the worker's resident memory in bytes.

    The output is copied from the shared memory once its length has been checked, and so is standard error.
    """
    try:
        outcome, exit_code, resident_bytes, *numbers = _REPORT.unpack_from(content)
        meter = Meter(*numbers)
        message = _bounded_text(content[_REPORT.size :])
        ended = _OUTCOMES[outcome]
    except (struct.error, IndexError, ValueError) as error:
        message = "the frame is not a report"
        raise CorruptFrameError(message) from error
    if max(resident_bytes, *numbers) > limits.COUNT_MAX or not _NO_EXIT_CODE <= exit_code <= _EXIT_CODE_MAX:
        message = "the report has a number out of range"
        raise CorruptFrameError(message)
    if meter.output_bytes > output_bytes_max:
        message = f"the report states {meter.output_bytes} bytes of output, and the job allows {output_bytes_max}"
        raise CorruptFrameError(message)
    run = Run(
        outcome=ended,
        message=message,
        meter=meter,
        exit_code=None if exit_code == _NO_EXIT_CODE else exit_code,
        stdout=shared.stdout(meter.output_bytes),
        stderr=shared.stderr(),
    )
    return run, resident_bytes


def _bounded_text(data: bytes) -> str:
    text = data.decode()
    if len(text) > limits.MESSAGE_CHARS_MAX:
        raise ValueError
    return text
