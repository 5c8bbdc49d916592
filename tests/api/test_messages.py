"""A message of the queue is the payload of a direct invocation, and names the same task as the request it is of."""

import base64
import json
from decimal import Decimal
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance.api import events, messages
from quittance.api.models import DirectTaskRequest, TaskRequest
from quittance.api.requests import read_json
from quittance.errors import InvalidRequestError, PayloadTooLargeError
from quittance.limits import INPUT_BYTES_MAX

SCHEMAS = st.fixed_dictionaries(
    {},
    optional={"type": st.sampled_from(["string", "number"]), "title": st.text(max_size=20), "minimum": st.integers()},
)
JUDGES = st.fixed_dictionaries(
    {
        "agent_id": st.just("agt_bbbbbbbbbbbbbbbb"),
        "threshold": st.integers(0, 10**6 - 1).map(lambda micro: f"0.{micro:06}"),
        "budget": st.integers(1, 10**6).map(lambda micro: f"0.{micro:06}" if micro < 10**6 else "1"),
    }
)
RULES = st.fixed_dictionaries(
    {},
    optional={"min_bytes": st.integers(0, 9), "max_bytes": st.integers(9, 99), "json_schema": SCHEMAS, "judge": JUDGES},
)
REQUESTS = st.fixed_dictionaries(
    {
        "task_id": st.text("abcXYZ0._~-", min_size=1, max_size=128),
        "agent_id": st.just("agt_aaaaaaaaaaaaaaaa"),
        "input_base64": st.binary(max_size=200).map(lambda data: base64.b64encode(data).decode()),
        "budget": st.integers(1, 10**12).map(lambda micro: f"{micro // 10**6}.{micro % 10**6:06}"),
    },
    optional={
        "timeout": st.integers(1, 600),
        "min_reputation": st.integers(0, 1_000).map(lambda tenths: Decimal(tenths) / 10),
        "acceptance": RULES,
        "keep_input": st.booleans(),
        "share": st.fixed_dictionaries({}, optional={"payer": st.booleans(), "log": st.booleans()}),
    },
)
TASK = {"user_id": "alice", "task_id": "t", "agent_id": "a", "input": "hello", "budget": "0.05"}
DIGEST = sha256(b"hello").hexdigest()


@given(REQUESTS, st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), min_size=1))
def test_a_message_names_the_task_it_was_written_for(fields: dict[str, Any], user: str) -> None:
    try:
        request = TaskRequest.model_validate(fields)
    except ValueError:  # a schema that is none
        return
    stdin = request.stdin.data
    digest = sha256(stdin).hexdigest()
    body = messages.write(user, request, input_base64=base64.b64encode(stdin).decode())
    by_digest = messages.write(user, request, input_sha256=digest)
    assert body.isascii(), "SQS refuses some characters"
    direct = DirectTaskRequest.model_validate(read_json(body))
    assert (direct.user_id, direct.task_id, direct.stdin.data) == (user, request.task_id, stdin)
    expected = request.sha256(digest)
    for text, named in ((body, False), (by_digest, True)):
        message = messages.read(text)
        assert (message.input_sha256, message.by_digest) == (digest, named)
        assert message.request.sha256(message.input_sha256) == expected


def test_every_field_of_a_request_is_carried() -> None:
    request = TaskRequest.model_validate(
        {key: value for key, value in TASK.items() if key != "user_id"}
        | {"timeout": 1, "min_reputation": 50, "acceptance": {"max_bytes": 1}, "webhook": "https://example.com/"}
        | {"module_sha256": "ab" * 32, "tariff_sha256": "ab" * 32, "rules_sha256": "ab" * 32, "max_judging": "1"}
        | {"keep_input": True, "share": {"payer": True, "log": False}}
    )
    names = {field.alias or name for name, field in TaskRequest.model_fields.items()} - {"input"}
    assert json.loads(messages.write("alice", request, input_base64="")).keys() == names | {"user_id"}


@pytest.mark.parametrize("around", [lambda task: task, lambda task: {"detail-type": "Order", "detail": task}])
def test_a_message_is_a_payload_or_an_event(around: Any) -> None:
    message = messages.read(json.dumps(around(TASK)))
    assert (message.request.user_id, message.input_sha256, message.by_digest) == ("alice", DIGEST, False)


@pytest.mark.parametrize(
    "body",
    [
        "", "{", "[1]", "7", "null", '"text"', "{}", json.dumps(TASK | {"user_id": "#"}),
        json.dumps({"detail-type": "x"}), json.dumps({"detail-type": "x", "detail": [TASK]}),
        json.dumps(TASK | {"input_sha256": DIGEST}),
        json.dumps({k: v for k, v in TASK.items() if k != "input"} | {"input_sha256": DIGEST.upper()}),
        json.dumps({k: v for k, v in TASK.items() if k != "input"} | {"input_sha256": DIGEST + "\n"}),
        json.dumps({k: v for k, v in TASK.items() if k != "input"} | {"input_sha256": 7}),
        "[" * 5_000, '{"task_id": "t", "task_id": "t"}',
    ],
)  # fmt: skip
def test_what_is_no_task_is_told_from_one(body: str) -> None:
    with pytest.raises(InvalidRequestError):
        messages.read(body)


@pytest.mark.parametrize("event_type", ["TaskRequested", "TaskSettled", "Order", None])
def test_an_event_of_the_platforms_own_is_no_task(event_type: str | None) -> None:
    """Whatever rule it came by: who may put the platform's events on the bus may not spend anybody's credits."""
    event = {"source": events.SOURCE, "detail-type": event_type, "detail": TASK}
    with pytest.raises(InvalidRequestError, match="source"):
        messages.read(json.dumps(event))
    assert messages.read(json.dumps({**event, "source": "com.example.shop"})).request.user_id == "alice"


def test_an_input_over_the_limit_is_refused() -> None:
    messages.read(json.dumps(TASK | {"input": "x" * INPUT_BYTES_MAX}))
    with pytest.raises(PayloadTooLargeError):
        messages.read(json.dumps(TASK | {"input": "x" * (INPUT_BYTES_MAX + 1)}))


def test_only_the_queue_may_name_an_input_by_its_digest() -> None:
    with pytest.raises(ValueError, match="input_sha256"):
        TaskRequest.model_validate(
            {k: v for k, v in TASK.items() if k not in {"user_id", "input"}} | {"input_sha256": DIGEST}
        )
