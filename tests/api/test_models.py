import base64
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from quittance.acceptance.rules import Rules, rules_json
from quittance.api import models
from quittance.api.models import (
    AccountAnswer,
    AgentRequest,
    DepositRequest,
    DirectTaskRequest,
    ResourceUsage,
    TaskPending,
    TaskRequest,
    TaskResult,
)
from quittance.api.requests import read_json
from quittance.errors import InvalidRequestError, PayloadTooLargeError
from quittance.ledger.escrow import State, judge_task_id
from quittance.ledger.pricing import parse_tariff
from quittance.limits import BUDGET_MICRO_MAX, INPUT_BYTES_MAX
from quittance.run import Fault, Side

PLAIN: dict[str, Any] = {"task_id": "t-1", "agent_id": "agt_1", "budget": "1"}
JSON_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(JSON_TEXT, inner, max_size=4),
    max_leaves=12,
)


def task(**members: Any) -> TaskRequest:
    """The request as it arrives: through JSON."""
    members = {"input": "x"} | members if "input_base64" not in members else members
    return TaskRequest.model_validate(read_json(json.dumps(PLAIN | members)))


@pytest.mark.parametrize(
    ("number", "tenths"), [("0", 0), ("100", 1_000), ("45.1", 451), ("4.51e1", 451), ("1e2", 1_000)]
)
def test_a_least_reputation_has_one_decimal(number: str, tenths: int) -> None:
    assert _least_reputation(number) == tenths


@pytest.mark.parametrize(
    "number",
    [
        "-1",
        "100.1",
        "45.11",
        "1e-2",
        "1e999999999",
        "1e-999999999",
        "50." + "0" * 40 + "1",
        "9" * 4_000,
        '"50"',
        "true",
    ],
)
def test_any_other_least_reputation_is_refused(number: str) -> None:
    """None is rounded to one that was not asked for."""
    with pytest.raises(ValidationError, match="from 0 to 100"):
        _least_reputation(number)


def _least_reputation(number: str) -> int | None:
    body = json.dumps(PLAIN | {"input": "x"})[:-1] + f', "min_reputation": {number}}}'
    return TaskRequest.model_validate(read_json(body)).min_reputation


# Rules for outputs.


def agent(acceptance: str) -> AgentRequest:
    body = f'{{"name":"a","tariff":{{"type":"flat","price":"0.01"}},"acceptance":{acceptance}}}'
    return AgentRequest.model_validate(read_json(body))


HOSTILE = [
    ('{"judge": {"agent_id": "agt_1", "threshold": "1.1", "budget": "0.05"}}', "acceptance.judge.threshold"),
    ('{"min_bytes": 1.5}', "acceptance.min_bytes"),
    ('{"min_bytes": 3, "max_bytes": 2}', "acceptance.max_bytes"),
    ('{"sha256": "00"}', "acceptance.sha256"),
    ('{"media_type": "text/html"}', "acceptance.media_type"),
    ('{"json_schema": {"pattern": "(?=a)"}}', "acceptance.json_schema"),
    ('{"json_schema": {"$ref": "#"}}', "acceptance.json_schema"),
    ('{"json_schema": {"$ref": "https://example.com/"}}', "acceptance.json_schema"),
    ('{"json_schema": {"type": "thing"}}', "acceptance.json_schema"),
    (f'{{"json_schema": {{"title": "{"x" * 17_000}"}}}}', "acceptance.json_schema"),
    ('{"json_schema": "{}"}', "acceptance.json_schema"),
    ("[]", "acceptance"),
]


@pytest.mark.parametrize(("rules", "field"), HOSTILE)
def test_rules_that_nothing_can_be_held_to_are_refused_by_name(rules: str, field: str) -> None:
    for sent in (lambda: agent(rules), lambda: task(acceptance=json.loads(rules))):
        with pytest.raises(ValidationError) as refused:
            sent()
        (error,) = refused.value.errors()
        assert ".".join(map(str, error["loc"])) == field


def test_published_rules_are_shown_as_they_were_sent() -> None:
    sent = '{"max_bytes":9,"json_schema":{"multipleOf":0.01,"maximum":12345678901234567890,"const":1e2}}'
    rules = agent(sent).acceptance
    shown = json.loads(AgentRequest.model_dump_json(agent(sent), include={"acceptance"}))["acceptance"]
    assert shown == json.loads(sent)
    assert rules_json(Rules.model_validate(shown)) == rules_json(rules or Rules())


@pytest.mark.parametrize("number", ["0.12345678901234567891", "12345678901234567890.5", "1e350"])
def test_published_rules_have_no_number_that_most_readers_change(number: str) -> None:
    with pytest.raises(ValidationError, match="must"):
        agent(f'{{"json_schema":{{"maximum":{number}}}}}')
    body = json.dumps(PLAIN | {"input": ""})[:-1] + f', "acceptance": {{"json_schema": {{"maximum": {number}}}}}}}'
    assert TaskRequest.model_validate(read_json(body)).acceptance, "nobody else reads a task's"


# What the agent reads.


@given(st.text(st.characters(codec="utf-8")))
def test_a_string_reaches_stdin_as_its_utf8_bytes(text: str) -> None:
    assert task(input=text).stdin.data == text.encode()


@given(JSON_VALUES.filter(lambda value: not isinstance(value, str)))
def test_any_other_value_reaches_stdin_as_the_same_json(value: object) -> None:
    stdin = task(input=value).stdin.data
    assert json.loads(stdin) == value


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("null", b"null"),
        ("true", b"true"),
        ("0", b"0"),
        ('""', b""),
        ('{ "b" : [1, 2.50, {}],\n"a" : "\\u00e9" }', '{"b":[1,2.50,{}],"a":"é"}'.encode()),
        ("1e2", b"1e2"),
        ("12345678901234567890", b"12345678901234567890"),
    ],
)
def test_stdin_is_compact_and_keeps_the_order(sent: str, read: bytes) -> None:
    body = f'{{"task_id":"t","agent_id":"a","budget":1,"input":{sent}}}'
    assert TaskRequest.model_validate(read_json(body)).stdin.data == read


@given(st.binary())
def test_base64_reaches_stdin_as_its_bytes(data: bytes) -> None:
    assert task(input_base64=base64.b64encode(data).decode()).stdin.data == data


@pytest.mark.parametrize("text", ["a", "YQ", "YQ=", "Y Q==", "YQ==\n", "-_-_", "YQ==YQ==", "é"])
def test_base64_is_strict(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="input_base64: must be valid base64"):
        task(input_base64=text)


@pytest.mark.parametrize(
    "given_input",
    [{}, {"input": "x", "input_base64": "eA=="}, {"input": None, "input_base64": "eA=="}, {"input_base64": None}],
)
def test_exactly_one_input_is_sent(given_input: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one"):
        TaskRequest.model_validate(PLAIN | given_input)


@pytest.mark.parametrize("sent", ['"\\ud800"', '{"\\udfff":1}'])
def test_an_input_that_no_stdin_can_hold_is_refused(sent: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^input: must"):
        TaskRequest.model_validate(read_json(f'{{"task_id":"t","agent_id":"a","budget":1,"input":{sent}}}'))


@pytest.mark.parametrize(
    ("field", "at_limit", "beyond"),
    [
        ("input", "a" * INPUT_BYTES_MAX, "a" * (INPUT_BYTES_MAX + 1)),
        ("input", "é" * (INPUT_BYTES_MAX // 2), "é" * (INPUT_BYTES_MAX // 2) + "a"),
        ("input", ["a" * (INPUT_BYTES_MAX - 4)], ["a" * (INPUT_BYTES_MAX - 3)]),
        (
            "input_base64",
            base64.b64encode(bytes(INPUT_BYTES_MAX)).decode(),
            base64.b64encode(bytes(INPUT_BYTES_MAX + 1)).decode(),
        ),
    ],
    ids=["ascii", "two bytes a letter", "json", "base64"],
)
def test_the_input_at_its_limit_and_one_byte_beyond(field: str, at_limit: object, beyond: object) -> None:
    assert len(task(**{field: at_limit}).stdin.data) == INPUT_BYTES_MAX
    with pytest.raises(PayloadTooLargeError, match=f"^{field} has more than 1048576 bytes"):
        task(**{field: beyond})


# The other fields, at their limits and one beyond.


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        (
            "task_id",
            ["a", "a" * 128, "A.z_0~-9", "..."],
            [".", "..", "", "a" * 129, "a/b", "a#b", "a b", "a\n", "é", 5, None],
        ),
        ("agent_id", ["a", "a" * 64, "agt_-9"], ["", "a" * 65, "a.b", "a#b", "a\n", 5, None]),
        ("timeout", [1, 25, 600, 1.0, None], [0, 601, -1, 601.0, "5", True, 1.5, 10**30]),
    ],
)
def test_a_field_at_its_limits_and_beyond(field: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        assert getattr(task(**{field: value}), field) == value
    for value in bad:
        with pytest.raises(ValidationError) as refused:
            task(**{field: value})
        assert [error["loc"] for error in refused.value.errors()] == [(field,)], value


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            models.StatedTaskId,
            ["a", "...", "a" * 128, judge_task_id("a" * 128, Side.AGENT), judge_task_id("a", Side.TASK)],
            ["", ".", "..", "a/b", "a:b", "a:judge-", ":judge-task", judge_task_id("a" * 129, Side.AGENT), "é"],
        ),
        (models.AccountId, ["a", "a" * 255, "auth0|d", "a/b", '"', "ME", "..."], ["", "a" * 256, "me", ".", "..", "#"]),
        (models.AccountInPath, ["a", "a" * 255, "me", "a/b"], ["", "a" * 256, ".", "..", "a b", "é"]),
    ],
)
def test_an_id_at_its_limits_and_beyond(kind: Any, good: list[str], bad: list[str]) -> None:
    for value in good:
        assert TypeAdapter(kind).validate_python(value) == value
    for value in bad:
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize(
    ("sent", "micro"),
    [
        ('"0.000001"', 1),
        ("1000000", BUDGET_MICRO_MAX),
        ('"1000000.0"', BUDGET_MICRO_MAX),
        ("0.1", 100_000),
        ("1e1", 10**7),
    ],
)
def test_a_budget_is_a_string_or_a_number_and_exact(sent: str, micro: int) -> None:
    body = f'{{"task_id":"t","agent_id":"a","input":"","budget":{sent}}}'
    assert TaskRequest.model_validate(read_json(body)).budget_micro == micro


@pytest.mark.parametrize(
    "sent", ['"0"', "0", "1000000.000001", '"1000001"', '"-1"', "-1", '"1e3"', "0.0000001", "true", "null", "[]", '""']
)
def test_a_budget_that_is_none_is_refused_by_its_name(sent: str) -> None:
    body = f'{{"task_id":"t","agent_id":"a","input":"","budget":{sent}}}'
    with pytest.raises(ValidationError) as refused:
        TaskRequest.model_validate(read_json(body))
    assert [error["loc"] for error in refused.value.errors()] == [("budget",)]


@pytest.mark.parametrize("extra", ["user_id", "price", "Budget", "", "stdin"])
def test_an_unknown_field_is_refused(extra: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        task(**{extra: "1"})


@pytest.mark.parametrize(
    ("model", "members", "inner"),
    [
        (TaskRequest, {"task_id": "t", "agent_id": "a", "input": "x"}, "budget_micro"),
        (DepositRequest, {"deposit_id": "d"}, "amount_micro"),
    ],
)
def test_a_field_that_says_micro_is_unknown_to_clients(
    model: type[BaseModel], members: dict[str, str], inner: str
) -> None:
    """It would be counted as credits: a million times what its name says."""
    with pytest.raises(ValidationError):
        model.model_validate(members | {inner: "1000000"})


@pytest.mark.parametrize(
    ("user_id", "good"),
    [("a", True), ("a" * 255, True), ("!~", True), ("", False), ("a" * 256, False), ("a#b", False), ("a b", False)],
)
def test_a_direct_invocation_names_its_user(user_id: str, good: bool) -> None:
    payload = PLAIN | {"input": "x", "user_id": user_id}
    if good:
        assert DirectTaskRequest.model_validate(payload).user_id == user_id
    else:
        with pytest.raises(ValidationError, match="user_id"):
            DirectTaskRequest.model_validate(payload)


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        ({}, True),
        ({"memory_mib": 1, "timeout": 1, "fuel": 1}, True),
        ({"memory_mib": 1_024, "timeout": 600, "fuel": 10**12}, True),
        ({"memory_mib": 0}, False),
        ({"memory_mib": 1_025}, False),
        ({"timeout": 0}, False),
        ({"timeout": 601}, False),
        ({"fuel": 0}, False),
        ({"fuel": 10**12 + 1}, False),
        ({"memory_mib": "256"}, False),
        ({"memory_mb": 256}, False),
    ],
)
def test_the_limits_of_an_agent_at_the_platforms_limits(limits: dict[str, Any], good: bool) -> None:
    body = {"name": " n ", "tariff": {"type": "flat", "price": "0"}, "limits": limits}
    if good:
        agent = AgentRequest.model_validate(body)
        plain = {"memory_mib": 256, "timeout": 10, "fuel": 10**12}
        assert (agent.name, agent.limits.model_dump()) == ("n", plain | limits)
    else:
        with pytest.raises(ValidationError, match=r"limits\."):
            AgentRequest.model_validate(body)


@pytest.mark.parametrize(
    ("members", "good"),
    [
        ({"name": "n" * 100, "description": "d" * 2_000}, True),
        ({"name": "n" * 101}, False),
        ({"name": " \t"}, False),
        ({"description": "d" * 2_001}, False),
        ({"owner": "me"}, False),
        ({"tariff": {"type": "flat"}}, False),
    ],
)
def test_the_description_of_an_agent_at_its_limits(members: dict[str, Any], good: bool) -> None:
    body = {"name": "n", "tariff": {"type": "flat", "price": "0"}} | members
    if good:
        assert AgentRequest.model_validate(body)
    else:
        with pytest.raises(ValidationError):
            AgentRequest.model_validate(body)


@pytest.mark.parametrize(
    ("amount", "good"), [("0.000001", 1), ("1000000000", 10**15), ("0", 0), ("1000000000.000001", 0)]
)
def test_a_deposit_at_its_limits(amount: str, good: int) -> None:
    body = {"deposit_id": "d", "amount": amount}
    if good:
        assert DepositRequest.model_validate(body).amount_micro == good
    else:
        with pytest.raises(ValidationError, match="amount"):
            DepositRequest.model_validate(body)


# What clients are answered.


def _result(**changed: Any) -> TaskResult:
    usage = ResourceUsage(
        memory_used_mb=1.5,
        cpu_time_ms=1,
        execution_time_ms=2,
        storage_used_kb=0.5,
        fuel_used=3,
        fuel_exact=True,
        input_bytes=4,
        output_bytes=5,
    )
    plain: dict[str, Any] = {
        "task_id": "t",
        "agent_id": "a",
        "success": True,
        "input_sha256": "ab" * 32,
        "output": "out",
        "error": None,
        "execution_time_ms": 2,
        "resource_usage": usage,
        "escrow_id": "e",
        "escrow_status": State.RELEASED,
        "amount_paid_micro": 390_000,
        "amount_refunded_micro": 600_000,
        "fee_micro": 10_000,
        "compute_micro": 0,
        "judging_micro": 0,
        "fault": Fault.NONE,
        "reputation_delta": 25,
        "timestamp": 1_800_000_000_005,
        "receipt": "r",
    }
    return TaskResult(**(plain | changed))


def test_a_result_in_json_is_what_the_contract_lists() -> None:
    answer = json.loads(_result().model_dump_json(by_alias=True))
    assert answer["resource_usage"]["memory_used_mb"] == 1.5
    assert set(answer) >= {
        *("task_id", "agent_id", "success", "output", "error", "execution_time_ms", "resource_usage", "escrow_id"),
        *("escrow_status", "amount_paid", "amount_refunded", "fee", "payment_method", "reputation_delta", "timestamp"),
        "receipt",
    }
    assert not [name for name in answer if name.endswith("_micro")]
    assert (answer["amount_paid"], answer["amount_refunded"], answer["fee"]) == ("0.39", "0.6", "0.01")
    assert (answer["escrow_status"], answer["payment_method"]) == ("released", "escrow")
    assert answer["timestamp"] == "2027-01-15T08:00:00.005Z"


@pytest.mark.parametrize(("tenths", "shown"), [(25, "2.5"), (20, "2.0"), (-50, "-5.0"), (0, "0.0")])
def test_a_reputation_delta_is_a_number(tenths: int, shown: str) -> None:
    assert f'"reputation_delta":{shown},' in _result(reputation_delta=tenths).model_dump_json(by_alias=True)


@given(st.integers(0, 2**32 * 1_000))
def test_a_timestamp_keeps_every_millisecond(ms: int) -> None:
    pending = TaskPending(task_id="t", agent_id="a", escrow_id="e", escrow_status=State.FUNDED, expires_at=ms)
    text = json.loads(pending.model_dump_json())["expires_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert (datetime.fromisoformat(text) - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1) == ms


def test_an_account_shows_decimal_strings_and_a_tariff_its_terms() -> None:
    account = AccountAnswer(account_id="u", available_micro=1, held_micro=0, earned_micro=10**12)
    assert account.model_dump_json(by_alias=True) == (
        '{"account_id":"u","available":"0.000001","held":"0","earned":"1000000"}'
    )
    asked = AgentRequest.model_validate({"name": "n", "tariff": {"type": "flat", "price": "0.10"}})
    assert asked.tariff == parse_tariff('{"type":"flat","price":"0.1"}')


def test_every_amount_of_the_api_is_described_as_a_decimal_string() -> None:
    """A client that is generated from the description must not read an amount as a float."""
    for model in vars(models).values():
        if not (isinstance(model, type) and issubclass(model, BaseModel) and model.__module__ == models.__name__):
            continue
        schema = model.model_json_schema(mode="serialization")
        for name, field in model.model_fields.items():
            if name.endswith("_micro"):
                shown = schema["properties"][field.alias or name]
                kinds = [kind["type"] for kind in shown.get("anyOf", [shown]) if kind["type"] != "null"]
                assert kinds == ["string"], (model, name)


def test_what_a_client_sends_is_in_no_printed_form() -> None:
    """Powertools prints each request for its debug log: that would reveal an input, and cost as much as it is long."""
    request = DirectTaskRequest.model_validate(
        {"task_id": "t", "agent_id": "agt_aaaaaaaaaaaaaaaa", "input": "secret", "budget": "1", "user_id": "alice"}
    )
    assert (repr(request), str(request)) == ("DirectTaskRequest()", "")
