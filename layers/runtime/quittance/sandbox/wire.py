"""The protocol between the parent and its worker: frames with a small binary header and a body of raw bytes.

The worker sends one greeting, then one report for each job, so at most one frame is in transit. Each side limits what
it reads. The parent checks everything that a worker sends: a guest that broke out could have written it.
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

_LENGTHS: Final = struct.Struct("<II")
_HEADER_BYTES_MAX: Final = 16 * limits.KIB
_READ_BYTES: Final = 16 * limits.KIB  # large enough to read most frames with one call

_GREETING: Final = struct.Struct("<?")
_JOB: Final = struct.Struct("<IIIQQQQQB")  # lengths of the path, digest and seed that follow; the job's numbers
_NO_EXIT_CODE: Final = -1
_EXIT_CODE_MAX: Final = 2**32 - 1
_OUTCOMES: Final = tuple(Outcome)
_METER_FIELDS: Final = tuple(field.name for field in fields(Meter))
_METER_FORM: Final = "".join("?" if name == "fuel_exact" else "Q" for name in _METER_FIELDS)
_meter_of: Final = operator.attrgetter(*_METER_FIELDS)
_REPORT: Final = struct.Struct(f"<BqQ{_METER_FORM}")  # outcome, exit code, resident bytes, meter; the message follows

_BEGAN: Final = struct.Struct("=QQ")  # when the guest began, and the CPU time that the worker had used by then
_COUNT: Final = struct.Struct("=I")  # bytes of standard error that follow
_STDERR_START: Final = _BEGAN.size + _COUNT.size
SHARED_BYTES: Final = _STDERR_START + limits.STDERR_BYTES_MAX

Read = Callable[[int], bytes]
"""Reads at most the given number of bytes; returns none at the end of the stream."""

Frame = tuple[bytes, bytes]
"""Header and body."""


class SharedMemory:
    """Memory shared by both sides. It holds what the parent needs even if the worker ends in the middle of a run.

    That is when the guest began, and what it wrote to standard error.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, SHARED_BYTES)
        self._used = 0

    def clear(self) -> None:
        """Erase the previous run's beginning and standard error."""
        self._used = 0
        self._memory[:_STDERR_START] = bytes(_STDERR_START)

    def begin(self) -> None:
        """Record that the guest begins now."""
        self.clear()
        self._memory[: _BEGAN.size] = _BEGAN.pack(time.monotonic_ns(), time.process_time_ns())

    def append_stderr(self, data: bytes) -> None:
        """Append standard error, up to its limit."""
        start = _STDERR_START + self._used
        data = data[: SHARED_BYTES - start]
        self._memory[start : start + len(data)] = data
        self._used += len(data)
        self._memory[_BEGAN.size : _STDERR_START] = _COUNT.pack(self._used)

    def began(self) -> tuple[int, int]:
        """Return when the guest began and the CPU time used before, both in ns; zeros if it has not begun."""
        began_ns, cpu_ns = _BEGAN.unpack_from(self._memory)
        return began_ns, cpu_ns

    def stderr(self) -> bytes:
        """Return the standard error that is stored, whichever side wrote it."""
        (used,) = _COUNT.unpack_from(self._memory, _BEGAN.size)
        return self._memory[_STDERR_START : _STDERR_START + min(used, limits.STDERR_BYTES_MAX)] if used else b""

    def close(self) -> None:
        """Unmap the memory."""
        self._memory.close()


class CorruptFrameError(Exception):
    """The other side broke the protocol."""


def encode(header: bytes, body: bytes = b"") -> bytes:
    """Encode a frame."""
    return b"".join((_LENGTHS.pack(len(header), len(body)), header, body))


def receive(read: Read, body_bytes_max: int) -> Frame:
    """Read a frame; raises `EOFError` if the other side has closed, `CorruptFrameError` if the frame is invalid."""
    data = _at_least(_LENGTHS.size, b"", read)
    header_bytes, body_bytes = _LENGTHS.unpack_from(data)
    if header_bytes > _HEADER_BYTES_MAX or body_bytes > body_bytes_max:
        message = f"a frame of {header_bytes} + {body_bytes} bytes is too long"
        raise CorruptFrameError(message)
    split = _LENGTHS.size + header_bytes
    data = _at_least(split, data, read)
    body = _at_least(body_bytes, data[split:], read)
    if len(body) > body_bytes:
        message = "more than one frame arrived"
        raise CorruptFrameError(message)
    return data[_LENGTHS.size : split], body


def encode_greeting(*, seccomp: bool) -> bytes:
    """Encode the worker's greeting: it is ready for jobs, and the seccomp filter is active or not."""
    return encode(_GREETING.pack(seccomp))


def decode_greeting(header: bytes) -> bool:
    """Decode the greeting: whether the worker's seccomp filter is active."""
    try:
        (seccomp,) = _GREETING.unpack(header)
    except struct.error as error:
        message = "the frame is not a greeting"
        raise CorruptFrameError(message) from error
    return bool(seccomp)


def encode_job(job: Job) -> bytes:
    """Encode a job."""
    path, digest = os.fsencode(job.artefact_path), job.artefact_sha256.encode()
    numbers = job.fuel, job.memory_bytes, job.timeout_ms, job.epoch_ns, job.output_bytes, job.host_rules
    return encode(
        b"".join((_JOB.pack(len(path), len(digest), len(job.seed), *numbers), path, digest, job.seed)), job.stdin
    )


def decode_job(header: bytes, body: bytes) -> Job:
    """Decode a job."""
    path_bytes, digest_bytes, _, fuel, memory_bytes, timeout_ms, epoch_ns, output_bytes, host_rules = _JOB.unpack_from(
        header
    )
    digest = _JOB.size + path_bytes
    seed = digest + digest_bytes
    return Job(
        artefact_path=os.fsdecode(header[_JOB.size : digest]),
        artefact_sha256=header[digest:seed].decode(),
        stdin=body,
        fuel=fuel,
        memory_bytes=memory_bytes,
        timeout_ms=timeout_ms,
        epoch_ns=epoch_ns,
        seed=header[seed:],
        output_bytes=output_bytes,
        host_rules=host_rules,
    )


def encode_run(run: Run, resident_bytes: int) -> bytes:
    """Encode the report of a run. Standard error is not part of it: the parent reads it from shared memory."""
    exit_code = _NO_EXIT_CODE if run.exit_code is None else run.exit_code
    numbers = _REPORT.pack(_OUTCOMES.index(run.outcome), exit_code, resident_bytes, *_meter_of(run.meter))
    return encode(numbers + run.message.encode(), run.stdout)


def decode_run(header: bytes, body: bytes, stderr: bytes) -> tuple[Run, int]:
    """Decode the report of a run; return it with the worker's resident memory in bytes."""
    try:
        outcome, exit_code, resident_bytes, *meter = _REPORT.unpack_from(header)
        run = Run(
            outcome=_OUTCOMES[outcome],
            message=_bounded_text(header[_REPORT.size :]),
            meter=Meter(*meter),
            exit_code=None if exit_code == _NO_EXIT_CODE else exit_code,
            stdout=body,
            stderr=stderr,
        )
    except (struct.error, IndexError, ValueError) as error:
        message = "the frame is not a report"
        raise CorruptFrameError(message) from error
    if max(resident_bytes, *meter) > limits.COUNT_MAX or not _NO_EXIT_CODE <= exit_code <= _EXIT_CODE_MAX:
        message = "the report has a number out of range"
        raise CorruptFrameError(message)
    return run, resident_bytes


def _bounded_text(data: bytes) -> str:
    text = data.decode()
    if len(text) > limits.MESSAGE_CHARS_MAX:
        raise ValueError
    return text


def _at_least(count: int, data: bytes, read: Read) -> bytes:
    """Read until there are at least `count` bytes."""
    if len(data) >= count:
        return data
    pieces, missing = [data], count - len(data)
    while missing > 0:
        piece = read(max(missing, _READ_BYTES))
        if not piece:
            raise EOFError
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
