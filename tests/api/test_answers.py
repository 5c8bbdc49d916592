"""Every answer can be delivered: it is within Lambda's limit, whatever is in it (issue C21)."""

import base64
import json
from decimal import Decimal
from http import HTTPStatus
from typing import Any
from unittest import mock

import pytest
from aws_lambda_powertools.event_handler import Response
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quittance import limits
from quittance.agent import AgentState
from quittance.api import documentation
from quittance.api.batches import each_message
from quittance.api.http import Api, answer, direct_answer, task_answer
from quittance.api.models import (
    AgentAnswer,
    AgentLimits,
    AgentPage,
    AgentRejection,
    AgentRequest,
    ChannelAnswer,
    ChannelKey,
    ChannelPage,
    ChannelRequest,
    DirectTaskRequest,
    JudgeAnswer,
    ResourceUsage,
    RunRequest,
    SignedClose,
    TaskError,
    TaskRequest,
    TaskResult,
    TicketLine,
    TicketPage,
    TopUpRequest,
    VersionRequest,
    as_text,
)
from quittance.api.requests import read_json, validated
from quittance.canonical_json import canonical, is_surely_longer
from quittance.errors import InvalidRequestError, NotFoundError, QuittanceError, problem
from quittance.ledger.channels import ChannelState
from quittance.ledger.escrow import State
from quittance.ledger.pricing import MeteredTariff
from quittance.limits import (
    AUDIT_DIFFERENCES_SHOWN_MAX,
    FAULTS_NAMED_MAX,
    LAMBDA_SYNC_BYTES_MAX,
    MIB,
    OUTPUT_BYTES_MAX,
    STDERR_BYTES_MAX,
)
from quittance.proof.invariants import Audit, Difference
from quittance.run import Fault, Outcome, Side
from quittance.store.queue import Delivery, NotDoneError
from quittance.usecases.audit import report, standings
from tests.api.test_http import TASK, _app, event
from tests.api.test_models import JSON_VALUES
from tests.tickets import jwk

EXAMPLE = {"contract": {"examples": [{"name": "e", "input": 1}]}}
AGENT = {"name": "n", "tariff": {"type": "flat", "price": "1"}}
RUN = {"run_id": "r", "user_id": "u", "budget": "1", "steps": [{"agent_id": "a"}], "inputs": ["x"]}
DIRECT = TASK | {"user_id": "u"}
CHANNEL = {"salt": "s", "key": jwk(), "ticket_value": "1", "tickets": 1, "expires_at": "2027-01-01T00:00:00Z"}
TOP_UP = {"topup_id": "u", "tickets": 1}
CHARACTERS = ["\0", "\x01", "\n", '"', "\\", "\x7f", "\x80", "é", "\u2028", "世", "\ufffd", "😀", "a", "</"]


def result(output: bytes, log: bytes = b"") -> TaskResult:
    """An answer with everything in it as large as it can be, beside an output and a log."""
    text, encoded = as_text(output)
    judge = JudgeAnswer(
        side=Side.TASK,
        agent_id="a" * 64,
        task_id="t" * limits.STATED_TASK_CHARS_MAX,
        budget_micro=1,
        cost_micro=1,
        score="0.123456",
    )
    usage = dict.fromkeys(ResourceUsage.model_fields, 10**18)
    return TaskResult(
        task_id="t" * limits.STATED_TASK_CHARS_MAX,
        agent_id="a" * 64,
        success=True,
        input_sha256="a" * 64,
        output=text,
        output_base64=encoded,
        log=log.decode(errors="replace"),
        error=TaskError(code=Outcome.REJECTED, message="😀" * limits.MESSAGE_CHARS_MAX),
        execution_time_ms=10**18,
        resource_usage=ResourceUsage(**usage | {"fuel_exact": True}),
        escrow_id="e" * 64,
        escrow_status=State.RELEASED,
        amount_paid_micro=10**15,
        amount_refunded_micro=10**15,
        fee_micro=10**15,
        compute_micro=10**15,
        judging_micro=10**15,
        fault=Fault.PLATFORM,
        judges=[judge, judge],
        reputation_delta=1_000,
        timestamp=0,
        receipt="r" * limits.TOKEN_CHARS_MAX,
    )


def sent_bytes(answer: Any) -> int:
    """How many bytes Lambda sends: its runtime for Python escapes what is beyond ASCII, or does not."""
    return max(len(json.dumps(answer, ensure_ascii=ascii_only).encode()) for ascii_only in (True, False))


def over_http(answer: TaskResult) -> dict[str, Any]:
    app = Api()
    app.get("/result")(lambda: task_answer(answer))
    return app.resolve(event("GET", "/result"), None)


@pytest.mark.parametrize("character", CHARACTERS, ids=ascii)
def test_an_answer_full_of_one_character_can_be_sent(character: str) -> None:
    """1 MiB of control characters was an answer of 7.3 MB."""
    full = character.encode() * (OUTPUT_BYTES_MAX // len(character.encode()))
    log = character.encode() * (STDERR_BYTES_MAX // len(character.encode()))
    answered = over_http(result(full, log))
    assert answered["statusCode"] == HTTPStatus.OK
    assert sent_bytes(answered) <= LAMBDA_SYNC_BYTES_MAX
    assert sent_bytes(direct_answer(result(full, log), inline_bytes_max=None)) <= LAMBDA_SYNC_BYTES_MAX
    body = json.loads(answered["body"])
    assert (body["output"] is None) != (body["output_base64"] is None)
    assert (base64.b64decode(body["output_base64"]) if body["output"] is None else body["output"].encode()) == full


@pytest.mark.parametrize("byte", [b"\xff", b"\xc0", b"\xf0"])
def test_an_answer_with_bytes_that_are_no_text_can_be_sent(byte: bytes) -> None:
    answered = over_http(result(byte * OUTPUT_BYTES_MAX, byte * STDERR_BYTES_MAX))
    assert sent_bytes(answered) <= LAMBDA_SYNC_BYTES_MAX
    assert base64.b64decode(json.loads(answered["body"])["output_base64"]) == byte * OUTPUT_BYTES_MAX


@given(st.lists(st.sampled_from(CHARACTERS) | st.characters(codec="utf-8"), min_size=1, max_size=12), st.integers(0, 3))
def test_a_full_answer_of_any_mixture_can_be_sent(mixture: list[str], cut: int) -> None:
    piece = "".join(mixture).encode()
    full = (piece * (OUTPUT_BYTES_MAX // len(piece) + 1))[: OUTPUT_BYTES_MAX - cut]
    answer = result(full, full[:STDERR_BYTES_MAX])
    assert sent_bytes(over_http(answer)) <= LAMBDA_SYNC_BYTES_MAX
    assert sent_bytes(direct_answer(answer, inline_bytes_max=None)) <= LAMBDA_SYNC_BYTES_MAX


@given(st.text(st.characters(codec="utf-8")) | st.binary().map(lambda data: data.decode(errors="ignore")))
def test_a_text_of_usual_size_stays_text(text: str) -> None:
    """Clients rely on `output`; base64 is for what could not be delivered otherwise."""
    assert as_text(text.encode()) == (text, None)


def test_output_text_has_a_limit_and_base64_is_shorter_beyond() -> None:
    """A control character takes 7 bytes in the JSON of the gateway's JSON, the two quotation marks 4."""
    most = (limits.OUTPUT_TEXT_WIRE_BYTES_MAX - 6) // 7
    rest = "x" * (limits.OUTPUT_TEXT_WIRE_BYTES_MAX - 6 - 7 * most)
    at_limit = "\x01" * most + rest
    assert as_text(at_limit.encode()) == (at_limit, None)
    beyond = at_limit + "x"
    assert as_text(beyond.encode()) == (None, base64.b64encode(beyond.encode()).decode())
    assert 4 * OUTPUT_BYTES_MAX // 3 + 4 < limits.OUTPUT_TEXT_WIRE_BYTES_MAX
    assert as_text(None) == (None, None)


@pytest.mark.parametrize(("size", "text", "encoded"), [(100, True, False), (599, False, True), (100_000, False, False)])
def test_a_bounded_answer_takes_base64_where_that_fits(size: int, *, text: bool, encoded: bool) -> None:
    """A workflow can pass on 599 control characters in 1,000 bytes as base64, not as text."""
    answer = result(b"\x01" * size).within(1_000)
    assert (answer.output is not None, answer.output_base64 is not None) == (text, encoded)


# Refusals.


def hostile_bodies() -> list[Any]:
    """Requests that are wrong in as many places, and with as long texts, as a request of 6 MB can be."""
    long = ["\x01" * 900_000, "😀" * 450_000, '"' * 2_000_000, "[" * 5_000_000]
    bodies: list[Any] = [TASK | {f"{n}\x01": 0 for n in range(300_000)}, [0] * 1_000_000, "\x01" * 900_000]
    bodies += [
        TASK | {name: text} for text in long for name in [*(TaskRequest.model_fields.keys() - {"input"}), "budget"]
    ]
    bodies += [TASK | {text: 1} for text in long]
    rules = ["media_type", "min_bytes", "sha256", "json_schema", "judge"]
    bodies += [TASK | {"acceptance": {name: text}} for text in long for name in rules]
    words = ["type", "pattern", "$ref", "$schema", "required", "format", "enum", "minimum", "$id", "$anchor"]
    for text in ("\x01" * 15_000, "😀" * 4_000, "(" * 15_000, "\\" * 7_000, "a" * 15_000):
        bodies += [TASK | {"acceptance": {"json_schema": {word: text}}} for word in words]
        bodies += [TASK | {"acceptance": {"json_schema": {text: 1, "properties": {text: 1}}}}]
        bodies += [TASK | {"acceptance": {"json_schema": {"properties": {text: {word: text}}}}} for word in words]
    return bodies


def direct_refusal(body: Any) -> str:
    """What a direct invocation raises."""
    try:
        validated(DirectTaskRequest, read_json(json.dumps(body)))
    except QuittanceError as refusal:
        return str(refusal)
    return ""


def test_a_refusal_is_small_whatever_was_sent() -> None:
    app = _app()
    for body in hostile_bodies():
        answered = app.resolve(event("POST", "/tasks", json.dumps(body)), None)
        assert sent_bytes(answered) < MIB, str(body)[:99]
        assert sent_bytes(direct_refusal(body)) < MIB, str(body)[:99]


@pytest.mark.parametrize("length", [limits.DETAIL_CHARS_MAX, limits.DETAIL_CHARS_MAX + 1, 6_000_000])
def test_the_text_of_any_refusal_is_bounded(length: int) -> None:
    text = "😀" * length
    for error in (NotFoundError(text), InvalidRequestError(*[(text, text)] * 1_000)):
        body = problem(error)[1]
        assert len(body["detail"]) <= limits.DETAIL_CHARS_MAX + 1
        assert sent_bytes(json.dumps(body)) < 2 * MIB
    assert NotFoundError(text[: limits.DETAIL_CHARS_MAX]).detail == text[: limits.DETAIL_CHARS_MAX]


@pytest.mark.parametrize("length", [limits.FAULT_CHARS_MAX, limits.FAULT_CHARS_MAX + 1])
def test_the_sentence_of_a_fault_is_bounded(length: int) -> None:
    (fault,) = InvalidRequestError(("f", "x" * length)).members["errors"]  # type: ignore[misc]  # a list of one
    assert fault["message"] == "x" * limits.FAULT_CHARS_MAX + ("" if length == limits.FAULT_CHARS_MAX else "…")


@pytest.mark.parametrize("filler", ["x", "\x01", "😀", '"'])
def test_an_answer_that_cannot_be_sent_is_a_problem_that_can(filler: str) -> None:
    """The gateway would answer 502 with a text that helps nobody."""
    app = Api()
    app.get("/large")(lambda: Response(200, "application/json", filler * LAMBDA_SYNC_BYTES_MAX))
    answered = app.resolve(event("GET", "/large"), None)
    assert (answered["statusCode"], sent_bytes(answered) < MIB) == (500, True)
    assert json.loads(answered["body"])["code"] == "answer_too_large"
    assert answered["multiValueHeaders"]["Content-Type"] == ["application/problem+json"]


@pytest.mark.parametrize("over", [0, 1])
def test_an_answer_is_sent_up_to_lambdas_limit(over: int) -> None:
    app, size = Api(), 0
    app.get("/large")(lambda: Response(200, "application/json", "x" * size))
    size = LAMBDA_SYNC_BYTES_MAX - sent_bytes(app.resolve(event("GET", "/large"), None)) + over
    answered = app.resolve(event("GET", "/large"), None)
    assert answered["statusCode"] == (500 if over else 200)
    assert over or sent_bytes(answered) == LAMBDA_SYNC_BYTES_MAX


def test_the_audits_answer_is_bounded() -> None:
    result = Audit()
    result.add([Difference("I1", "😀" * 500, "\x01" * 10_000, "x")] * 50_000)
    answer = {"differences": result.count, "report": report(result), "standings": standings(result)}
    assert sent_bytes(answer) <= LAMBDA_SYNC_BYTES_MAX
    assert any(f"{50_000 - AUDIT_DIFFERENCES_SHOWN_MAX} more" in line for line in answer["report"])


# What unknown names cost.


@pytest.mark.parametrize("unknown", [FAULTS_NAMED_MAX, FAULTS_NAMED_MAX + 1, 100_000])
@pytest.mark.parametrize(
    ("model", "valid", "place"),
    [
        (DirectTaskRequest, DIRECT, ()),
        (DirectTaskRequest, DIRECT | {"acceptance": {}}, ("acceptance",)),
        (
            DirectTaskRequest,
            DIRECT | {"acceptance": {"judge": {"agent_id": "a", "threshold": "1", "budget": "1"}}},
            ("acceptance", "judge"),
        ),
        (RunRequest, RUN, ("steps", 0)),
        (AgentRequest, AGENT, ("tariff",)),
        (AgentRequest, AGENT | {"tariff": {"type": "metered"}}, ("tariff",)),
        (VersionRequest, {"limits": {}}, ("limits",)),
        (ChannelRequest, CHANNEL, ()),
        (TopUpRequest, TOP_UP, ()),
        (SignedClose, {"order": "x"}, ()),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_only_so_many_unknown_names_are_looked_at(
    model: Any, valid: Any, place: tuple[str | int, ...], unknown: int
) -> None:
    """A megabyte of them cost half a second: each was made a fault of its own."""
    body = json.loads(json.dumps(valid))
    inner = body
    for step in place:
        inner = inner[step]
    inner.update({f"x{number}": 0 for number in range(unknown)})
    with pytest.raises(ValidationError) as found:
        model.model_validate(read_json(json.dumps(body)))
    assert found.value.error_count() == min(unknown, FAULTS_NAMED_MAX + 1)
    with pytest.raises(InvalidRequestError) as refused:
        validated(model, body)
    assert "x0: is not a known field" in refused.value.detail
    assert ("more faults" in str(refused.value.members["errors"])) == (unknown > FAULTS_NAMED_MAX)


def test_unknown_names_hide_no_wrong_field() -> None:
    body = {f"x{number}": 0 for number in range(1_000)} | DIRECT | {"budget": "-1"}
    with pytest.raises(InvalidRequestError, match="budget: must be a decimal"):
        validated(DirectTaskRequest, body)


@pytest.mark.parametrize("schema", [[0] * 20_000, {str(n): 0 for n in range(20_000)}, [[]] * 9_000, ["x" * 16_400]])
def test_a_schema_that_is_too_long_is_not_read_in_whole(schema: Any) -> None:
    """A megabyte of it cost half a second."""
    assert is_surely_longer(schema, limits.SCHEMA_BYTES_MAX)
    with pytest.raises(ValidationError, match=f"must have at most {limits.SCHEMA_BYTES_MAX} bytes"):
        TaskRequest.model_validate(TASK | {"acceptance": {"json_schema": schema}})


@given(JSON_VALUES, st.integers(0, 60))
def test_no_value_that_fits_is_called_longer(value: Any, chars_max: int) -> None:
    assert not (is_surely_longer(value, chars_max) and len(canonical(value)) <= chars_max)


# Whole numbers.

WHOLE: dict[Any, tuple[dict[str, Any], dict[str, int]]] = {
    DirectTaskRequest: (
        DIRECT,
        {"timeout": 5, "inline_bytes_max": 7, "acceptance.min_bytes": 3, "acceptance.max_bytes": 4},
    ),
    RunRequest: (RUN, {"steps.0.share": 2, "steps.0.timeout": 5} | {
        f"steps.0.acceptance.{name}": 3 for name in ("min_bytes", "max_bytes")
    }),
    AgentRequest: (AGENT | EXAMPLE, {"limits.memory_mib": 64, "limits.timeout": 5, "limits.fuel": 10**12} | {
        f"acceptance.{name}": 3 for name in ("min_bytes", "max_bytes")
    } | {f"contract.examples.0.{name}": 3 for name in ("fuel_max", "exit_code")}),
    VersionRequest: (EXAMPLE, {"limits.memory_mib": 64, "limits.timeout": 5, "limits.fuel": 10**12} | {
        f"acceptance.{name}": 3 for name in ("min_bytes", "max_bytes")
    } | {f"contract.examples.0.{name}": 3 for name in ("fuel_max", "exit_code")}),
    ChannelRequest: (CHANNEL, {"tickets": 5}),
    TopUpRequest: (TOP_UP, {"tickets": 5}),
}  # fmt: skip
SPELT = ["{}", "{}.0", "{}.000", "{}e0", "{}0e-1", "{}.0E+0", "0.{}e{digits}"]


def with_number(valid: dict[str, Any], path: str, number: str) -> str:
    """The JSON of a request with one number, spelt like this, at a path."""
    body = json.loads(json.dumps(valid))
    *outer, last = path.split(".")
    inner = body
    for step in outer:
        inner = inner[int(step)] if step.isdecimal() else inner.setdefault(step, {})
    inner[last] = "NUMBER"
    return json.dumps(body).replace('"NUMBER"', number)


@pytest.mark.parametrize("spelt", SPELT)
@pytest.mark.parametrize(("model", "path"), [(model, path) for model, (_, paths) in WHOLE.items() for path in paths])
def test_a_whole_number_may_be_spelt_in_any_way(model: Any, path: str, spelt: str) -> None:
    """JSON Schema 2020-12 §6.1.1, which OpenAPI 3.1 uses: any number with no fractional part is an integer."""
    valid, paths = WHOLE[model]
    number = spelt.format(paths[path], digits=len(str(paths[path])))
    read = validated(model, read_json(with_number(valid, path, number)))
    assert read == validated(model, read_json(with_number(valid, path, str(paths[path]))))
    dumped = read.model_dump()
    for step in path.split("."):
        dumped = dumped[int(step) if step.isdecimal() else step]
    assert (type(dumped), dumped) == (int, paths[path])


@pytest.mark.parametrize(
    "number",
    [
        *("5.5", "5.0000000000000000000000000000001", "5." + "0" * 5_000 + "1", "5e-1", "5e99"),
        *("1e999999999", "1e-999999999", "-1e99999", "true", '"5"', '"5.0"', "[5]"),
    ],
    ids=lambda number: number[:20],
)
@pytest.mark.parametrize(("model", "path"), [(model, path) for model, (_, paths) in WHOLE.items() for path in paths])
def test_any_other_number_is_refused_where_whole_ones_are_asked_for(model: Any, path: str, number: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        validated(model, read_json(with_number(WHOLE[model][0], path, number)))
    assert [fault["field"] for fault in refused.value.members["errors"]] == [path]  # type: ignore[attr-defined]


def test_every_whole_number_of_a_request_is_tested() -> None:
    """The description says `integer` of exactly these."""
    for model, (_, paths) in WHOLE.items():
        schema = model.model_json_schema()
        assert set(_integers(schema, schema.get("$defs", {}), "")) == set(paths), model


def _integers(schema: dict[str, Any], defs: dict[str, Any], path: str) -> list[str]:
    if "$ref" in schema:
        return _integers(defs[schema["$ref"].rpartition("/")[2]], defs, path)
    found = [path] if schema.get("type") == "integer" else []
    for inner in schema.get("anyOf", []):
        found += _integers(inner, defs, path)
    for name, inner in schema.get("properties", {}).items():
        found += _integers(inner, defs, f"{path}.{name}" if path else name)
    return found + (_integers(schema["items"], defs, f"{path}.0") if schema.get("items") else [])


def test_direct_numbers_are_whole_though_lambda_read_them_as_doubles() -> None:
    assert validated(DirectTaskRequest, DIRECT | {"timeout": Decimal("5.0")}).timeout == 5


# Answers whose size nothing else bounds.


@pytest.mark.parametrize("character", ["😀", "\x01", '"'], ids=ascii)
def test_a_full_page_of_agents_can_be_sent(character: str) -> None:
    agent = AgentAnswer(
        agent_id="a" * 64,
        owner="\\" * limits.ACCOUNT_ID_CHARS_MAX,
        name=character * limits.AGENT_NAME_CHARS_MAX,
        description=character * limits.AGENT_DESCRIPTION_CHARS_MAX,
        state=AgentState.REJECTED,
        module_sha256="f" * 64,
        rejection=AgentRejection(code="x" * 64, message=character * limits.MESSAGE_CHARS_MAX),
        tariff=MeteredTariff(type="metered", base="1", minimum="1"),
        tariff_sha256="f" * 64,
        rules_sha256="f" * 64,
        task_judges=None,
        limits=AgentLimits(),
        created_at=0,
    )
    app = Api()
    app.get("/agents")(lambda: answer(AgentPage(agents=[agent] * limits.PAGE_ITEMS_MAX, next="n" * 1_000)))
    answered = app.resolve(event("GET", "/agents"), None)
    assert (answered["statusCode"], sent_bytes(answered) <= LAMBDA_SYNC_BYTES_MAX) == (200, True)


def test_a_full_page_of_channels_can_be_sent() -> None:
    channel = ChannelAnswer(
        channel_id="chn_" + "a" * 26,
        issuer="i" * 1_000,
        payer="\\" * limits.ACCOUNT_ID_CHARS_MAX,
        state=ChannelState.CLOSED,
        salt="s" * limits.CHANNEL_SALT_CHARS_MAX,
        key=ChannelKey(x="x" * 43),
        agents=["a" * 64] * limits.CHANNEL_AGENTS_MAX,
        **dict.fromkeys(("ticket_micro", "max_per_task_micro", "deposit_micro", "spent_micro"), 10**15),
        **dict.fromkeys(("held_micro", "returned_micro"), 10**15),
        **dict.fromkeys(("numbers", "used"), limits.TICKET_NUMBER_MAX),
        **dict.fromkeys(("opened_at", "expires_at", "closes_at", "closed_at"), 0),
    )
    ticket = TicketLine(number=10**6, tickets=90, task_id="t" * 40, agent_id="a" * 64, cost_micro=10**15)
    app = Api()
    app.get("/channels")(lambda: answer(ChannelPage(channels=[channel] * limits.PAGE_ITEMS_MAX, next="n" * 1_000)))
    app.get("/tickets")(
        lambda: answer(
            TicketPage(
                channel_id="chn_" + "a" * 26,
                tickets=[ticket] * limits.PAGE_ITEMS_MAX,
                free=[(10**6, 10**6)] * limits.PAGE_ITEMS_MAX,
                next=10**6,
            )
        )
    )
    for path in ("/channels", "/tickets"):
        answered = app.resolve(event("GET", path), None)
        assert (answered["statusCode"], sent_bytes(answered) <= MIB) == (200, True)


def test_the_page_and_the_description_can_be_sent() -> None:
    assert sent_bytes(documentation.page().text) < LAMBDA_SYNC_BYTES_MAX // 2
    assert sent_bytes(documentation.openapi_json()) < LAMBDA_SYNC_BYTES_MAX // 2


def test_the_answer_to_a_batch_names_messages_and_nothing_of_them() -> None:
    """Ten messages of a megabyte, each of which fails with a long sentence."""
    record = {"body": "\x01" * MIB, "receiptHandle": "h" * 1_024, "attributes": {"ApproximateReceiveCount": "1"}}
    records = [record | {"messageId": f"m-{number}", "eventSource": "aws:sqs"} for number in range(10)]

    def fail(delivery: Delivery) -> None:
        raise NotDoneError(delivery.body)

    answered = each_message({"Records": records}, mock.Mock(), fail)
    assert len(answered["batchItemFailures"]) == 10
    assert sent_bytes(answered) < 2_000
