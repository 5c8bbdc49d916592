"""What the parent and its worker say to each other: frames with a small JSON header and a body of raw bytes.

Each side limits what it reads. The parent trusts nothing that a worker says: guests run in there.
"""

import json
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

from quittance import limits
from quittance.run import Job, Meter, Outcome, Run

_LENGTHS: Final = struct.Struct("<II")
_COUNT: Final = struct.Struct("<I")
LOG_BYTES: Final = _COUNT.size + limits.STDERR_BYTES_MAX
_HEADER_BYTES_MAX: Final = 16 * limits.KIB
_NUMBER_MAX: Final = 2**63 - 1

_JOB_FIELDS: Final = tuple(field.name for field in fields(Job) if field.name not in {"stdin", "seed"})
_METER_FIELDS: Final = tuple(field.name for field in fields(Meter))

STARTED: Final = "started"
ENDED: Final = "ended"

Read = Callable[[int], bytes]
"""Reads up to so many bytes; none at the end of the stream."""


class Log:
    """What the guest wrote to standard error, in memory that the parent sees too, even after the worker's end."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, LOG_BYTES)
        self._used = 0

    def clear(self) -> None:
        """Forget everything."""
        self._used = 0
        self._memory[: _COUNT.size] = _COUNT.pack(0)

    def append(self, data: bytes) -> None:
        """Keep what fits."""
        start = _COUNT.size + self._used
        data = data[: LOG_BYTES - start]
        self._memory[start : start + len(data)] = data
        self._used += len(data)
        self._memory[: _COUNT.size] = _COUNT.pack(self._used)

    def read(self) -> bytes:
        """Give what is there, whoever wrote it."""
        (used,) = _COUNT.unpack(self._memory[: _COUNT.size])
        return self._memory[_COUNT.size : _COUNT.size + min(used, limits.STDERR_BYTES_MAX)]

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()


class CorruptFrameError(Exception):
    """The other side does not keep to the protocol."""


def encode(header: Mapping[str, Any], body: bytes | bytearray = b"") -> bytes:
    """Make a frame."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join((_LENGTHS.pack(len(text), len(body)), text, body))


def receive(read: Read, body_bytes_max: int) -> tuple[dict[str, Any], bytes]:
    """Read a frame; raises `EOFError` if the other side is gone and `CorruptFrameError` if it is not sane."""
    header_bytes, body_bytes = _LENGTHS.unpack(_exactly(read, _LENGTHS.size))
    if header_bytes > _HEADER_BYTES_MAX or body_bytes > body_bytes_max:
        message = f"a frame of {header_bytes} + {body_bytes} bytes"
        raise CorruptFrameError(message)
    text, body = _exactly(read, header_bytes), _exactly(read, body_bytes)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = "a frame whose header is not JSON"
        raise CorruptFrameError(message) from error
    if not isinstance(header, dict):
        message = "a frame whose header is not an object"
        raise CorruptFrameError(message)
    return header, body


def encode_job(job: Job) -> bytes:
    """Make the frame that orders a run."""
    header = {name: getattr(job, name) for name in _JOB_FIELDS}
    return encode(header | {"seed": job.seed.hex()}, job.stdin)


def decode_job(header: Mapping[str, Any], body: bytes) -> Job:
    """Read the frame that orders a run."""
    return Job(**{**header, "seed": bytes.fromhex(header["seed"]), "stdin": body})


def encode_run(run: Run, resident_bytes: int) -> bytes:
    """Make the frame that reports a run. Standard error is not in it: both sides see it in shared memory."""
    header = {
        "kind": ENDED,
        "outcome": run.outcome,
        "message": run.message,
        "exit_code": run.exit_code,
        "meter": {name: getattr(run.meter, name) for name in _METER_FIELDS},
        "resident_bytes": resident_bytes,
    }
    return encode(header, run.stdout)


def decode_run(header: Mapping[str, Any], body: bytes, stderr: bytes) -> tuple[Run, int]:
    """Read the frame that reports a run; also gives the worker's resident memory."""
    if header.get("kind") != ENDED:
        message = "a frame that is no report"
        raise CorruptFrameError(message)
    try:
        run = Run(
            outcome=Outcome(header["outcome"]),
            message=_text(header["message"]),
            meter=_meter(header["meter"]),
            exit_code=None if header["exit_code"] is None else number(header["exit_code"]),
            stdout=body,
            stderr=stderr,
        )
        return run, number(header["resident_bytes"])
    except (KeyError, TypeError, ValueError) as error:
        message = "a report that is none"
        raise CorruptFrameError(message) from error


def _meter(given: Mapping[str, Any]) -> Meter:
    exact = given["fuel_exact"]
    if not isinstance(exact, bool):
        raise TypeError
    numbers = {name: number(value) for name, value in given.items() if name != "fuel_exact"}
    return Meter(fuel_exact=exact, **numbers)


def number(value: object) -> int:
    """Accept a count, and nothing else."""
    if type(value) is not int or not 0 <= value <= _NUMBER_MAX:
        message = "not a count"
        raise CorruptFrameError(message)
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > limits.MESSAGE_CHARS_MAX:
        raise ValueError
    return value


def _exactly(read: Read, count: int) -> bytes:
    pieces: list[bytes] = []
    while count:
        piece = read(count)
        if not piece:
            raise EOFError
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)
