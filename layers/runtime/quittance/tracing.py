"""Steps of a task as subsegments of the invocation's X-Ray trace. They never contain what logs may not contain.

Lambda creates the function's segment and says in environment variables whether it is sampled. Each step sends one
subsegment document to the local X-Ray daemon, in one UDP datagram without waiting. So tracing cannot fail or delay a
task. Without a daemon, or in an invocation that is not sampled, a step does nothing.

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
    """The trace of one invocation. `open` has the ids of the steps in progress, outermost first."""

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
    """Inside it, steps belong to the trace that Lambda's environment variables name."""
    global _trace  # noqa: PLW0603 - an environment serves one invocation at a time
    _trace = _from_environment(os.environ)
    try:
        yield
    finally:
        _trace = None


@contextmanager
def step(name: str) -> Iterator[None]:
    """One step, nested in the step in progress. Works as a decorator too.

    An exception marks the step: a RequestError as an error, any other as a fault. Only the name of its class is sent.
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
    """Sets the subject and the annotations, by which traces can be searched, of all later steps."""
    if _trace is not None:
        _trace.subject, _trace.annotations = subject, annotations


def note(subject: str, **annotations: str) -> None:
    """Adds annotations if this is the subject of the current steps."""
    if _trace is not None and _trace.subject == subject:
        _trace.annotations |= annotations


def _from_environment(environment: Mapping[str, str]) -> _Trace | None:
    """The trace that Lambda's variables name; None if it is not sampled or the variables are not as expected."""
    fields = dict(part.partition("=")[::2] for part in environment.get("_X_AMZN_TRACE_ID", "").split(";"))
    host, _, port = environment.get("AWS_XRAY_DAEMON_ADDRESS", "").rpartition(":")
    root, parent = fields.get("Root"), fields.get("Parent")
    if fields.get("Sampled") != "1" or not (root and parent and _is_address(host) and port.isdecimal()):
        return None
    return _Trace(root, (host, int(port)), [parent])


def _is_address(host: str) -> bool:
    """Whether a host is an IPv4 address. Names are not used: resolving one could delay the task."""
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
    global _socket  # noqa: PLW0603 - one for all invocations; made in the first one, so that no snapshot contains it
    with suppress(OSError, OverflowError):  # no daemon, a full buffer, or an invalid port
        if _socket is None:
            _socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            _socket.setblocking(False)  # noqa: FBT003 - the parameter is positional only
        _socket.sendto(datagram, daemon)
