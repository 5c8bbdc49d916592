"""The steps of real tasks as X-Ray's daemon receives them; a listener on 127.0.0.1 replaces the daemon."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from quittance import tracing
from quittance.errors import PlatformUnavailableError, TaskInProgressError
from quittance.ledger.escrow import escrow_id
from quittance.limits import TRACE_STEPS_MAX
from tests.functions.test_handlers import _raise, load, task
from tests.support import Cloud, wasm

TRACE, PARENT = "1-5759e988-bd862e3fe1be46a994272793", "53995c3f42cd8ad8"
SAMPLED = f"Root={TRACE};Parent={PARENT};Sampled=1;Lineage=a87bd80c:1"
Documents = Callable[[], list[dict[str, Any]]]
PAYLOAD = "marked-payload"


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Documents]:
    """The documents that functions send to the daemon; all have arrived when a function returns."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setblocking(False)
        monkeypatch.setenv("AWS_XRAY_DAEMON_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("_X_AMZN_TRACE_ID", SAMPLED)

        def received() -> list[dict[str, Any]]:
            found = []
            while True:
                try:
                    header, document = listener.recv(65_536).split(b"\n", 1)
                except BlockingIOError:
                    return sorted(found, key=lambda step: step["start_time"])
                assert json.loads(header) == {"format": "json", "version": 1}
                found.append(json.loads(document))

        yield received
    if tracing._socket:
        tracing._socket.close()
        tracing._socket = None


def names(steps: list[dict[str, Any]]) -> list[str]:
    return [step["name"] for step in steps]


def test_task_is_traced_step_by_step(platform: Cloud, context: Any, daemon: Documents) -> None:
    agent = platform.publish(wasm("echo"))
    done = load("execute").handler(task(agent) | {"user_id": "alice"}, context)
    assert done["success"]
    steps = daemon()
    assert names(steps) == ["check", "fund", "load", "run", "accept", "settle"]
    assert {(step["trace_id"], step["parent_id"], step["type"]) for step in steps} == {(TRACE, PARENT, "subsegment")}
    assert len({step["id"] for step in steps}) == len(steps)
    assert all(re.fullmatch("[0-9a-f]{16}", step["id"]) for step in steps)
    assert all(one["end_time"] <= other["start_time"] for one, other in pairwise(steps))
    ids = {"task_id": "t-1", "escrow_id": escrow_id("alice", "t-1"), "agent_id": agent}
    assert steps[0]["annotations"] == {}
    assert [step["annotations"] for step in steps[1:-1]] == [ids] * 4
    assert steps[-1]["annotations"] == ids | {"outcome": "succeeded"}


def test_nested_steps_have_their_parent(platform: Cloud, context: Any, daemon: Documents) -> None:
    with tracing.invocation():
        platform.publish(wasm("echo"))
    steps = daemon()
    assert names(steps) == ["read", "compile", "examples", "keep"]
    assert {step["parent_id"] for step in steps} == {PARENT}
    with tracing.invocation(), tracing.step("outer"), tracing.step("inner"):
        pass
    outer, inner = sorted(daemon(), key=lambda step: step["name"], reverse=True)
    assert (outer["parent_id"], inner["parent_id"]) == (PARENT, outer["id"])
    assert load("sweep").handler({}, context)["complete"]
    assert names(daemon()) == ["publish"]


def test_sweep_is_traced_step_by_step(
    platform: Cloud, context: Any, daemon: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, agent = load("execute").handler, platform.publish(wasm("echo"))
    execute(task(agent) | {"user_id": "alice"}, context)
    with monkeypatch.context() as patch:
        patch.setattr(platform.ledger, "settle", _raise(PlatformUnavailableError))
        with pytest.raises(TaskInProgressError):
            execute(task(agent, task_id="stuck") | {"user_id": "alice"}, context)
    stuck = platform.ledger.find(escrow_id("alice", "stuck"))
    assert stuck is not None
    platform.skew_ms = stuck.expires_ms - platform.now_ms() + 1
    daemon()
    load("sweep").handler({}, context)
    steps = daemon()
    assert set(names(steps)) == {"refund", "credit", "log", "publish"}
    assert all(step["annotations"] == {} for step in steps), "the steps of a sweep name no task"


def test_trace_of_a_failure_has_only_the_exception_class(
    platform: Cloud, context: Any, daemon: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, agent = load("execute").handler, platform.publish(wasm("echo"))
    with pytest.raises(Exception, match="budget"):
        execute(task(agent, budget="0.000001", input=PAYLOAD) | {"user_id": "alice"}, context)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError(PAYLOAD)

    (refused,) = daemon()
    assert (refused["name"], refused["error"], "fault" in refused) == ("check", True, False)
    with monkeypatch.context() as patch:
        patch.setattr(platform.ledger, "fund", refuse)
        with pytest.raises(ValueError, match=PAYLOAD):
            execute(task(agent, input=PAYLOAD) | {"user_id": "alice"}, context)
    _, failed = daemon()
    assert (failed["name"], failed["fault"]) == ("fund", True)
    (cause,) = failed["cause"]["exceptions"]
    assert (cause.keys(), cause["type"]) == ({"id", "type"}, "ValueError")


def test_trace_contains_no_payload_receipt_or_stderr(platform: Cloud, context: Any, daemon: Documents) -> None:
    agent = platform.publish(wasm("echo"))
    done = load("execute").handler(task(agent, input=PAYLOAD) | {"user_id": "alice"}, context)
    assert done["output"] == PAYLOAD
    sent = json.dumps(daemon())
    assert "settle" in sent
    assert PAYLOAD not in sent
    assert done["receipt"] not in sent
    assert "eyJ" not in sent


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("_X_AMZN_TRACE_ID", None),
        ("_X_AMZN_TRACE_ID", SAMPLED.replace("Sampled=1", "Sampled=0")),
        ("_X_AMZN_TRACE_ID", f"Root={TRACE};Sampled=1"),
        ("_X_AMZN_TRACE_ID", "=;;=;Sampled"),
        ("AWS_XRAY_DAEMON_ADDRESS", None),
        ("AWS_XRAY_DAEMON_ADDRESS", "nowhere"),
        ("AWS_XRAY_DAEMON_ADDRESS", "127.0.0.1:9"),
        ("AWS_XRAY_DAEMON_ADDRESS", "127.0.0.1:123456"),
        ("AWS_XRAY_DAEMON_ADDRESS", "localhost:2000"),
    ],
)
def test_task_needs_neither_trace_nor_daemon(
    platform: Cloud, context: Any, daemon: Documents, monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    for number in range(2):
        done = load("execute").handler(
            task(platform.publish(wasm("echo")), task_id=f"t-{number}") | {"user_id": "alice"}, context
        )
        assert done["success"]
    assert daemon() == []


@pytest.mark.parametrize("steps", [TRACE_STEPS_MAX, TRACE_STEPS_MAX + 1])
def test_trace_has_at_most_the_limit_of_steps(daemon: Documents, steps: int) -> None:
    received = []
    with tracing.invocation():
        for _ in range(steps):
            with tracing.step("credit"):
                pass
            received += daemon()
    assert len(received) == TRACE_STEPS_MAX


def test_steps_never_appear_in_another_invocations_trace(daemon: Documents) -> None:
    with tracing.invocation():
        tracing.about("one", task_id="one")
    with tracing.invocation(), tracing.step("check"):
        tracing.note("one", outcome="succeeded")
    with tracing.step("outside"):
        pass
    (step,) = daemon()
    assert (step["name"], step["annotations"]) == ("check", {})
