"""The story's steps as segments of the trace that X-Ray keeps of an invocation. Never in them: what logs may not hold.

Lambda makes the segment of the function and says in the environment whether it is sampled. Each step adds one
subsegment document, sent to the daemon beside the function in one datagram that nobody waits for. So a trace cannot
fail a task, nor hold it up; without a daemon, or in an invocation that is not sampled, a step does nothing.

Format: AWS X-Ray segment documents. Why not the SDK: docs/adr/0018-traces-without-an-sdk.md.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from quittance.limits import TRACE_STEPS_MAX

_HEADER: Final = b'{"format": "json", "version": 1}\n'
_ID_BYTES: Final = 8


@dataclass(slots=True)
class _Trace:
    """The trace of one invocation. `open` are the ids of the steps that are under way, outermost first."""

    trace_id: str
    daemon: tuple[str, int]
    open: list[str]
    steps_left: int = TRACE_STEPS_MAX
    subject: str = ""
    annotations: dict[str, str] = field(default_factory=dict)


_trace: _Trace | None = None
_socket: socket.socket | None = None


@contextmanager
def invocation() -> Iterator[None]:
    """Until it ends, steps belong to the invocation that Lambda's environment tells of."""
    global _trace  # noqa: PLW0603 - an environment serves one invocation at a time
    _trace = _told(os.environ)
    try:
        yield
    finally:
        _trace = None


@contextmanager
def step(name: str) -> Iterator[None]:
    """One step of a story, within the one that is under way. Serves as a decorator too.

    An exception that passes through marks it: a refusal of the request as an error, all others as a fault, by the name
    of its class alone.
    """
    trace = _trace
    if trace is None or not trace.steps_left:
        yield
        return
    trace.steps_left -= 1
    step_id, parent_id, began = _new_id(), trace.open[-1], time.time()
    trace.open.append(step_id)
    failure: dict[str, Any] = {}
    try:
        yield
    except Exception as exc:
        failure = _failure(exc)
        raise
    finally:
        trace.open.pop()
        document = {
            "name": name, "id": step_id, "trace_id": trace.trace_id, "parent_id": parent_id, "type": "subsegment",
            "start_time": began, "end_time": time.time(), "annotations": trace.annotations, **failure,
        }  # fmt: skip
        _send(_HEADER + json.dumps(document).encode(), trace.daemon)


def about(subject: str, **annotations: str) -> None:
    """From now on steps carry these annotations, by which traces are found: they are of this subject."""
    if _trace is not None:
        _trace.subject, _trace.annotations = subject, annotations


def note(subject: str, **annotations: str) -> None:
    """Adds annotations, if the steps are about this subject."""
    if _trace is not None and _trace.subject == subject:
        _trace.annotations |= annotations


def _told(environment: Mapping[str, str]) -> _Trace | None:
    """The trace by Lambda's variables; none if it is not sampled, or if they are not as expected."""
    fields = dict(part.partition("=")[::2] for part in environment.get("_X_AMZN_TRACE_ID", "").split(";"))
    host, _, port = environment.get("AWS_XRAY_DAEMON_ADDRESS", "").rpartition(":")
    root, parent = fields.get("Root"), fields.get("Parent")
    if fields.get("Sampled") != "1" or not (root and parent and _is_address(host) and port.isdecimal()):
        return None
    return _Trace(root, (host, int(port)), [parent])


def _is_address(host: str) -> bool:
    """Whether a host is one by its number: a name would have to be looked up, and that could take its time."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError):
        return False
    return True


def _failure(exc: Exception) -> dict[str, Any]:
    from quittance.errors import RequestError

    kind = "error" if isinstance(exc, RequestError) else "fault"
    cause = {"id": _new_id(), "type": type(exc).__name__}
    return {kind: True, "cause": {"exceptions": [cause]}}


def _new_id() -> str:
    return os.urandom(_ID_BYTES).hex()


def _send(datagram: bytes, daemon: tuple[str, int]) -> None:
    global _socket  # noqa: PLW0603 - one for all invocations, made in the first and so in no snapshot
    with suppress(OSError, OverflowError):  # nobody listens, or not quickly enough; no such port
        if _socket is None:
            _socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            _socket.setblocking(False)  # noqa: FBT003 - socket takes it so
        _socket.sendto(datagram, daemon)
