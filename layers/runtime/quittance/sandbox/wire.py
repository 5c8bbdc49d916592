"""What the parent and its worker say to each other: frames with a small header of fixed form and a body of raw bytes.

The worker greets once, then answers each job with one report: never do two frames wait on the channel. Each side limits
what it reads. The parent trusts nothing that a worker says: guests run in there.
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
_READ_BYTES: Final = 16 * limits.KIB  # enough for most frames to come in one piece

_GREETING: Final = struct.Struct("<?")
_JOB: Final = struct.Struct("<IIIQQQQQB")  # bytes of the path, digest and seed that follow; the job's numbers
_NO_EXIT_CODE: Final = -1
_EXIT_CODE_MAX: Final = 2**32 - 1
_OUTCOMES: Final = tuple(Outcome)
_METER_FIELDS: Final = tuple(field.name for field in fields(Meter))
_METER_FORM: Final = "".join("?" if name == "fuel_exact" else "Q" for name in _METER_FIELDS)
_meter_of: Final = operator.attrgetter(*_METER_FIELDS)
_REPORT: Final = struct.Struct(f"<BqQ{_METER_FORM}")  # outcome, exit code, resident bytes, meter; then the message

_BEGAN: Final = struct.Struct("=QQ")  # when the guest began, and the CPU time that the worker had used by then
_COUNT: Final = struct.Struct("=I")
_TEXT: Final = _BEGAN.size + _COUNT.size
LOG_BYTES: Final = _TEXT + limits.STDERR_BYTES_MAX

Read = Callable[[int], bytes]
"""Reads up to so many bytes; none at the end of the stream."""

Frame = tuple[bytes, bytes]
"""Header and body."""


class Log:
    """Memory that both sides see, for what the parent must know of a run even if the worker ends in its middle.

    That is when the guest began, and what it wrote to standard error.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, LOG_BYTES)
        self._used = 0

    def clear(self) -> None:
        """Forget everything."""
        self._used = 0
        self._memory[:_TEXT] = bytes(_TEXT)

    def begin(self) -> None:
        """Note that the guest begins now."""
        self.clear()
        self._memory[: _BEGAN.size] = _BEGAN.pack(time.monotonic_ns(), time.process_time_ns())

    def append(self, data: bytes) -> None:
        """Keep what fits."""
        start = _TEXT + self._used
        data = data[: LOG_BYTES - start]
        self._memory[start : start + len(data)] = data
        self._used += len(data)
        self._memory[_BEGAN.size : _TEXT] = _COUNT.pack(self._used)

    def began(self) -> tuple[int, int]:
        """Give the time at which the guest began and the CPU time used before it, in ns; zero if it has not begun."""
        began_ns, cpu_ns = _BEGAN.unpack_from(self._memory)
        return began_ns, cpu_ns

    def read(self) -> bytes:
        """Give what is there, whoever wrote it."""
        (used,) = _COUNT.unpack_from(self._memory, _BEGAN.size)
        return self._memory[_TEXT : _TEXT + min(used, limits.STDERR_BYTES_MAX)] if used else b""

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()


class CorruptFrameError(Exception):
    """The other side does not keep to the protocol."""


def encode(header: bytes, body: bytes = b"") -> bytes:
    """Make a frame."""
    return b"".join((_LENGTHS.pack(len(header), len(body)), header, body))


def receive(read: Read, body_bytes_max: int) -> Frame:
    """Read a frame; raises `EOFError` if the other side is gone and `CorruptFrameError` if it is not sane."""
    data = _at_least(_LENGTHS.size, b"", read)
    header_bytes, body_bytes = _LENGTHS.unpack_from(data)
    if header_bytes > _HEADER_BYTES_MAX or body_bytes > body_bytes_max:
        message = f"a frame of {header_bytes} + {body_bytes} bytes"
        raise CorruptFrameError(message)
    split = _LENGTHS.size + header_bytes
    data = _at_least(split, data, read)
    body = _at_least(body_bytes, data[split:], read)
    if len(body) > body_bytes:
        message = "more than one frame"
        raise CorruptFrameError(message)
    return data[_LENGTHS.size : split], body


def encode_greeting(*, seccomp: bool) -> bytes:
    """Make the frame by which a worker says that it takes jobs, and whether it is under a system-call filter."""
    return encode(_GREETING.pack(seccomp))


def decode_greeting(header: bytes) -> bool:
    """Read whether the worker is under a system-call filter."""
    try:
        (seccomp,) = _GREETING.unpack(header)
    except struct.error as error:
        message = "a frame that is no greeting"
        raise CorruptFrameError(message) from error
    return bool(seccomp)


def encode_job(job: Job) -> bytes:
    """Make the frame that orders a run."""
    path, digest = os.fsencode(job.artefact_path), job.artefact_sha256.encode()
    numbers = job.fuel, job.memory_bytes, job.timeout_ms, job.epoch_ns, job.output_bytes, job.host_rules
    return encode(
        b"".join((_JOB.pack(len(path), len(digest), len(job.seed), *numbers), path, digest, job.seed)), job.stdin
    )


def decode_job(header: bytes, body: bytes) -> Job:
    """Read the frame that orders a run."""
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
    """Make the frame that reports a run. Standard error is not in it: both sides see it in shared memory."""
    exit_code = _NO_EXIT_CODE if run.exit_code is None else run.exit_code
    numbers = _REPORT.pack(_OUTCOMES.index(run.outcome), exit_code, resident_bytes, *_meter_of(run.meter))
    return encode(numbers + run.message.encode(), run.stdout)


def decode_run(header: bytes, body: bytes, stderr: bytes) -> tuple[Run, int]:
    """Read the frame that reports a run; also gives the worker's resident memory."""
    try:
        outcome, exit_code, resident_bytes, *meter = _REPORT.unpack_from(header)
        run = Run(
            outcome=_OUTCOMES[outcome],
            message=_sane_text(header[_REPORT.size :]),
            meter=Meter(*meter),
            exit_code=None if exit_code == _NO_EXIT_CODE else exit_code,
            stdout=body,
            stderr=stderr,
        )
    except (struct.error, IndexError, ValueError) as error:
        message = "a report that is none"
        raise CorruptFrameError(message) from error
    if max(resident_bytes, *meter) > limits.COUNT_MAX or not _NO_EXIT_CODE <= exit_code <= _EXIT_CODE_MAX:
        message = "a report of numbers that are no counts"
        raise CorruptFrameError(message)
    return run, resident_bytes


def _sane_text(data: bytes) -> str:
    text = data.decode()
    if len(text) > limits.MESSAGE_CHARS_MAX:
        raise ValueError
    return text


def _at_least(count: int, data: bytes, read: Read) -> bytes:
    """Read on until there are so many bytes, or a little more."""
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
