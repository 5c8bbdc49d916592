import base64
import json
import re
from collections.abc import Callable
from decimal import Decimal
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, quote_from_bytes, urljoin, urlsplit

import pytest
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from hypothesis import example, given
from hypothesis import strategies as st

from quittance.api.http import PREFIX, Api, answer, caller, root, task_answer
from quittance.api.models import AgentRequest, DirectTaskRequest, TaskPending, TaskRequest
from quittance.api.requests import encoded_path, read_direct, read_json, read_path
from quittance.errors import InvalidRequestError, PlatformUnavailableError, TaskInProgressError
from quittance.ledger.escrow import State
from quittance.limits import FAULTS_NAMED_MAX, FIELD_NAME_CHARS_MAX

TASK = {"task_id": "t-1", "agent_id": "agt_1", "input": "x", "budget": "1"}
PENDING = TaskPending(task_id="t-1", agent_id="a", escrow_id="e", escrow_status=State.FUNDED, expires_at=0)
SECRET = "postgres://internal"
FAILURES = {
    "/broken": RuntimeError(SECRET),
    "/busy": TaskInProgressError("t-1", retry_after_s=7),
    "/down": PlatformUnavailableError(),
}
Call = Callable[..., tuple[int, dict[str, str], Any]]


def event(method: str, path: str, body: str | None = None, **changed: Any) -> dict[str, Any]:
    """What API Gateway (REST, payload 1.0) hands to a function; `headers` and `authorizer` can be given."""
    headers = changed.pop("headers", {"Content-Type": "application/json"})
    authorizer = changed.pop("authorizer", None)
    context = {"requestId": "r-1", "stage": "v1", "resourcePath": path, "httpMethod": method, "identity": {}}
    return {
        "resource": path,
        "path": path,
        "httpMethod": method,
        "headers": headers,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": context if authorizer is None else context | {"authorizer": authorizer},
        "body": body,
        "isBase64Encoded": False,
    } | changed


@pytest.fixture(scope="session")
def call() -> Call:
    """Calls an app with a few routes as a function has them: status, headers, JSON."""
    app = _app()

    def through(method: str, path: str, body: str | None = None, **changed: Any) -> tuple[int, dict[str, str], Any]:
        answered = app.resolve(event(method, path, body, **changed), None)
        headers = {name: values[0] for name, values in answered["multiValueHeaders"].items()}
        return answered["statusCode"], headers, json.loads(answered["body"])

    return through


def _app() -> APIGatewayRestResolver:
    app = Api()

    @app.post("/tasks")
    def execute(request: TaskRequest) -> Response[str]:
        return Response(200, "application/json", json.dumps([request.stdin.data.decode(), request.budget_micro]))

    @app.post("/agents")
    def register(request: AgentRequest) -> Response[str]:
        return answer(request, HTTPStatus.CREATED)

    @app.get("/me")
    def me() -> Response[str]:
        found = caller(app)
        return Response(200, "application/json", json.dumps([found.account, sorted(found.scopes)]))

    @app.get("/pending")
    def pending() -> Response[str]:
        return task_answer(PENDING)

    for path, error in FAILURES.items():
        app.get(path)(_raising(error))
    return app


def _raising(error: Exception) -> Callable[[], Response[str]]:
    def fail() -> Response[str]:
        raise error from ConnectionError(SECRET)

    return fail


def _problem(answered: tuple[int, dict[str, str], Any], status: int, code: str) -> Any:
    found, headers, body = answered
    assert (found, body["status"], body["code"]) == (status, status, code), body
    assert headers["Content-Type"] == "application/problem+json"
    assert {"type", "title", "detail"} <= body.keys()
    return body


def _fields(answered: tuple[int, dict[str, str], Any]) -> list[str]:
    return [wrong["field"] for wrong in _problem(answered, 400, "invalid_request")["errors"]]


# Reading JSON.


@given(st.decimals(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_numbers_are_exact(number: Decimal | int) -> None:
    found = read_json(f'{{"n": {number}}}')["n"]
    assert not isinstance(found, float)
    assert found == number


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "[Infinity]", '{"a": -Infinity}', "nan", "", " ", "{", '{"a":}', "[1,]", "{'a': 1}", "1 2", "\ufeff1"),
        *("01", "+1", ".5", "0x1", '"\n"', "tru", "//", "9" * 5_000, "\x00"),
    ],
    ids=lambda text: repr(text[:24]),
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="body: must be valid JSON"):
        read_json(text)


@pytest.mark.parametrize(
    "text", ["1e99999999999999999999", '[{"a":-1E+99999999999999999999}]', "1e-99999999999999999999"]
)
def test_a_number_that_no_decimal_holds_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="body: "):
        read_json(text)


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
@pytest.mark.parametrize("leaf", ["", "1"])
def test_nesting_at_its_limit_and_one_beyond(opened: str, closed: str, leaf: str) -> None:
    leaf = leaf or ("[]" if closed[-1] == "]" else "{}")
    innermost = 0 if leaf == "1" else 1
    levels = 1 if len(closed) == 1 else 2
    within = (64 - innermost) // levels
    assert read_json(opened * within + leaf + closed * within) is not None
    with pytest.raises(InvalidRequestError, match="deeper than 64 levels"):
        read_json(opened * (within + 1) + "[1]" + closed * (within + 1))


@pytest.mark.parametrize("opened", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [500, 2_000, 100_000])
@pytest.mark.parametrize("closed", [True, False])
def test_no_nesting_exhausts_the_stack(opened: str, depth: int, closed: bool) -> None:
    text = opened * depth + ("1" + ("]" if opened == "[" else "}") * depth if closed else "")
    with pytest.raises(InvalidRequestError, match=r"deeper than 64 levels|valid JSON"):
        read_json(text)


@example("}")
@example(" } ")
@given(st.text() | st.text(st.sampled_from('[]{}",:0-9.eE+tfn \\u')))
def test_any_text_is_json_or_refused(text: str) -> None:
    try:
        found = read_json(text)
    except InvalidRequestError:
        return
    assert found == json.loads(text, parse_float=Decimal)


# Answers.


def test_a_good_request_is_answered(call: Call) -> None:
    status, headers, body = call("POST", "/tasks", '{"task_id":"t","agent_id":"a","input":[0.10],"budget":0.000001}')
    assert (status, headers["Content-Type"], body) == (200, "application/json", ["[0.10]", 1])
    encoded = base64.b64encode(json.dumps(TASK | {"input": "é"}).encode()).decode()
    assert call("POST", "/tasks", encoded, isBase64Encoded=True)[2] == ["é", 1_000_000]


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_the_name_of_json_has_no_case(call: Call, kind: str) -> None:
    """RFC 9110 §8.3.1."""
    assert call("POST", "/tasks", json.dumps(TASK), headers={"content-type": kind})[0] == 200


@pytest.mark.parametrize(
    "kind",
    [
        *("text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data"),
        *("multipart/form-data; boundary=x", "application/jsonx"),
    ],
)
def test_another_media_type_is_refused(call: Call, kind: str) -> None:
    body = _problem(
        call("POST", "/tasks", json.dumps(TASK), headers={"Content-Type": kind}), 415, "unsupported_media_type"
    )
    assert "application/json" in body["detail"]


def test_every_wrong_field_is_named_at_once(call: Call) -> None:
    wrong = {"task_id": "", "agent_id": 5, "input": "x", "budget": "-1", "timeout": "3", "colour": 1}
    answered = call("POST", "/tasks", json.dumps(wrong))
    assert _fields(answered) == ["task_id", "agent_id", "budget", "timeout", "colour"]
    said = {found["field"]: found["message"] for found in answered[2]["errors"]}
    assert said["colour"] == "is not a known field"
    assert said["budget"].startswith("must be a decimal")
    assert not re.search(r"pydantic|Value error|Input should", answered[2]["detail"])
    assert sorted(_fields(call("POST", "/tasks", "{}"))) == ["agent_id", "budget", "input", "task_id"]


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("/tasks", TASK | {"path": 1, "query": 2}, ["path", "query"]),
        ("/tasks", TASK | {"body": 1}, ["body"]),
        ("/agents", {"name": "n", "tariff": {"type": "flat", "price": "-1"}}, ["tariff.price"]),
        ("/agents", {"name": "n", "tariff": {"type": "metered", "price": "1"}}, ["tariff.price"]),
        ("/agents", {"name": "n", "tariff": {"type": "free"}}, ["tariff"]),
        ("/agents", {"name": "n", "tariff": {"price": "1"}}, ["tariff"]),
        (
            "/agents",
            {"name": "n", "tariff": {"type": "flat", "price": "1"}, "limits": {"timeout": 0, "x": 1}},
            ["limits.timeout", "limits.x"],
        ),
    ],
)
def test_a_wrong_field_is_named_as_the_client_wrote_it(call: Call, path: str, body: object, fields: list[str]) -> None:
    assert _fields(call("POST", path, json.dumps(body))) == fields


@pytest.mark.parametrize(
    "body", [None, "", "null", "[]", '"x"', "5", "{", "[" * 100_000, '{"budget": NaN}', "1e" + "9" * 20]
)
def test_a_body_that_is_no_object_is_refused(call: Call, body: str | None) -> None:
    assert _fields(call("POST", "/tasks", body)) == ["body"]


def test_a_body_that_is_not_utf8_is_refused(call: Call) -> None:
    for broken in (b"\xff\xfe", b'{"task_id": "\xc3"}', "{}".encode("utf-16")):
        body = base64.b64encode(broken).decode()
        assert _fields(call("POST", "/tasks", body, isBase64Encoded=True)) == ["body"]


def test_an_input_over_its_limit_is_too_large(call: Call) -> None:
    answered = call("POST", "/tasks", json.dumps(TASK | {"input": "x" * (2**20 + 1)}))
    body = _problem(answered, 413, "payload_too_large")
    assert body["errors"] == [{"field": "input", "message": "must have at most 1048576 bytes"}]


@pytest.mark.parametrize(("method", "path"), [("GET", "/nowhere"), ("PUT", "/tasks"), ("GET", "/")])
def test_a_path_that_is_unknown_is_not_found(call: Call, method: str, path: str) -> None:
    _problem(call(method, path), 404, "not_found")


def test_the_unexpected_is_answered_without_its_text(call: Call) -> None:
    answered = call("GET", "/broken")
    _problem(answered, 500, "internal_error")
    assert not re.search(f"{SECRET}|Traceback|RuntimeError|broken", str(answered))


def test_an_outage_is_answered_without_its_text_and_with_a_time(call: Call) -> None:
    answered = call("GET", "/down")
    _problem(answered, 503, "platform_unavailable")
    assert answered[1]["Retry-After"] == "2"
    assert SECRET not in str(answered)


def test_a_refusal_keeps_its_headers_and_nobody_caches_it(call: Call) -> None:
    _, headers, _ = call("GET", "/busy")
    assert (headers["Retry-After"], headers["Cache-Control"]) == ("7", "no-store")


@pytest.mark.parametrize("task_id", ["t-1:judge-agent", "a b/c?d#e", "50%25", "é"])
def test_a_location_is_encoded_exactly_once(task_id: str) -> None:
    location = str(task_answer(PENDING.model_copy(update={"task_id": task_id})).headers["Location"])
    match = re.fullmatch(r"/api/v1/economic/tasks/([A-Za-z0-9._~%-]+)/result", location)
    assert match is not None, location
    assert read_path({"task_id": match[1]}) == {"task_id": task_id}


def test_a_task_that_is_not_settled_says_where_to_look_again(call: Call) -> None:
    status, headers, body = call("GET", "/pending")
    assert (status, body["escrow_status"], headers["Cache-Control"]) == (202, "funded", "no-store")
    assert headers["Location"] == "/api/v1/economic/tasks/t-1/result"
    assert int(headers["Retry-After"]) > 0


# Where the API is.

RESULT = f"{PREFIX}/tasks/{{task_id}}/result"
OWN = f"{PREFIX}/tasks/t-1%3Ajudge/result"
# How a client may find the API: the path before ours, and whether AWS leaves it in `path` too.
ROOTS = {
    "stage": ("/prod", False),
    "custom domain": ("", False),
    "base path": ("/pay", True),
    "nested base path": ("/pay/v1", True),
    "mapping without a stage": ("/pay/prod", True),
    "base path like our prefix": (PREFIX, True),
    "base path like a route": (f"{PREFIX}/tasks/a/result", True),
    "stage of the local cloud": ("/restapis/abc/local/_user_request_", False),
}


def found_at(at: str, in_path: bool, own: str = OWN, resource: str = RESULT) -> dict[str, Any]:
    made = event("GET", (at if in_path else "") + own, authorizer={"sub": "u"})
    return made | {"resource": resource, "requestContext": made["requestContext"] | {"path": at + own}}


@pytest.fixture(scope="session")
def located() -> Callable[[dict[str, Any]], tuple[int, dict[str, list[str]]]]:
    """Calls an app that answers with a link, as a result that is not there yet does."""
    app = Api()

    @app.get(f"{PREFIX}/tasks/<task_id>/result")
    def result(task_id: str) -> Response[str]:
        return task_answer(PENDING.model_copy(update={"task_id": task_id}))

    def through(request: dict[str, Any]) -> tuple[int, dict[str, list[str]]]:
        answered = app.resolve(request, None)
        return answered["statusCode"], answered["multiValueHeaders"]

    return through


Located = Callable[[dict[str, Any]], tuple[int, dict[str, list[str]]]]


@pytest.mark.parametrize(("at", "in_path"), ROOTS.values(), ids=ROOTS)
@pytest.mark.parametrize("end", ["", "/"])
def test_a_location_is_where_the_client_found_us(located: Located, at: str, in_path: bool, end: str) -> None:
    request = found_at(at, in_path, OWN + end)
    assert root(request) == at
    status, headers = located(request)
    assert (status, headers["Location"]) == (202, [at + OWN])
    asked = f"https://api.example{at}{OWN}{end}"
    assert urljoin(asked, headers["Location"][0]) == f"https://api.example{at}{OWN}"


@given(st.lists(st.text(min_size=1).map(lambda part: quote(part, safe="")), max_size=4), st.booleans())
def test_any_base_path_is_given_back(parts: list[str], in_path: bool) -> None:
    at = "".join(f"/{part}" for part in parts)
    assert root(found_at(at, in_path)) == at


@given(st.text(), st.text(), st.text())
def test_a_link_never_leads_to_another_host(at: str, own: str, resource: str) -> None:
    found = root(found_at(at, True, own, resource)), root(found_at(at, True, OWN, RESULT))
    for path in found:
        assert re.fullmatch(r"(/[A-Za-z0-9._~%:@!$&'()*+,;=-][A-Za-z0-9._~%:@!$&'()*+,;=/-]*)?", path)
        assert urlsplit(path + OWN).netloc == ""


@pytest.mark.parametrize(
    ("own", "resource"),
    [
        (OWN, ""),
        (OWN, "/{proxy+}"),
        (OWN, f"{PREFIX}/{{proxy+}}"),
        (f"{PREFIX}/tasks/a/b/result", RESULT),  # decoded on its way by `sam local`
        ("/tasks/t/result", RESULT),
        ("", RESULT),
    ],
)
def test_a_path_that_does_not_fit_its_route_is_left_alone(own: str, resource: str) -> None:
    assert root(found_at("/prod", False, own, resource)) == ""


def test_events_without_a_context_have_no_root() -> None:
    made = event("GET", OWN)
    assert root({"path": OWN, "resource": RESULT}) == root(made | {"resource": RESULT}) == ""


# Path parameters.

_TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)


@given(_TEXT, st.sampled_from(["", "/:@!$&'()*+,;=", "é|"]))
def test_a_path_parameter_is_decoded_exactly_once(text: str, left_plain: str) -> None:
    once = quote(text, safe=left_plain)
    assert read_path({"id": once}) == {"id": text}
    assert read_path({"id": quote(once, safe="")}) == {"id": once}


@given(_TEXT.filter(lambda text: "%" not in text and "/" not in text))
def test_a_path_that_was_decoded_on_its_way_is_read_alike(text: str) -> None:
    """By `sam local start-api`."""
    assert read_path({"id": encoded_path(text)}) == read_path({"id": quote(text, safe="")}) == {"id": text}


@given(st.text())
def test_a_path_is_encoded_again_only_where_it_was_not(path: str) -> None:
    encoded = encoded_path(path)
    assert encoded_path(encoded) == encoded
    assert re.fullmatch(r"[A-Za-z0-9._~%/:@!$&'()*+,;=-]*", encoded), "what Powertools' routes match"


@given(st.binary(min_size=1))
def test_bytes_in_a_path_are_text_or_refused(data: bytes) -> None:
    try:
        wanted: str | None = data.decode()
    except UnicodeDecodeError:
        wanted = None
    if wanted is not None and not re.search(r"[\x00-\x1f\x7f-\x9f]", wanted):
        assert read_path({"id": quote_from_bytes(data, safe="")}) == {"id": wanted}
    else:
        with pytest.raises(InvalidRequestError, match=r"^id: must "):
            read_path({"id": quote_from_bytes(data, safe="")})


@pytest.mark.parametrize("raw", ["%", "a%", "%4", "%zz", "%-1", "% 41", "%u0041", "%%41", "100%"])
def test_a_broken_escape_names_its_parameter(raw: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_path({"fine": "x", "id": raw})
    assert [wrong["field"] for wrong in refused.value.members["errors"]] == ["id"]
    assert "itself written %25" in refused.value.detail


# Who calls.


@pytest.mark.parametrize("authorizer", [None, {}, {"sub": ""}, {"sub": None}, {"principalId": "u"}, {"scope": "a"}])
def test_without_a_verified_identity_there_is_no_caller(call: Call, authorizer: dict[str, Any] | None) -> None:
    answered = call("GET", "/me", authorizer=authorizer, headers={"Authorization": "Bearer x", "sub": "u"})
    _problem(answered, 401, "unauthenticated")
    assert answered[1]["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(("scope", "scopes"), [("", []), ("b  a b", ["a", "b"])])
def test_the_caller_is_who_the_authorizer_says(call: Call, scope: str, scopes: list[str]) -> None:
    assert call("GET", "/me", authorizer={"sub": "u", "scope": scope})[2] == ["u", scopes]


@pytest.mark.parametrize(("unknown", "named", "more"), [(0, 100, False), (1, 101, True), (20_000, 101, True)])
def test_a_refusal_names_a_hundred_faults(call: Call, unknown: int, named: int, *, more: bool) -> None:
    """A body of 6 MB can have half a million faults; an answer of 6 MB could not name them."""
    body = TASK | {f"x{number}": 1 for number in range(FAULTS_NAMED_MAX + unknown)}
    errors = _problem(call("POST", "/tasks", json.dumps(body)), 400, "invalid_request")["errors"]
    assert len(errors) == named
    assert errors[0] == {"field": "x0", "message": "is not a known field"}
    assert (errors[-1]["message"] == "has more faults than are listed here: correct these first") == more


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(("length", "shown"), [(0, ""), (1, "…"), (1_000_000, "…")])
def test_a_refusal_quotes_the_start_of_a_long_name(call: Call, length: int, shown: str, *, twice: bool) -> None:
    name = "n" * (FIELD_NAME_CHARS_MAX + length)
    body = f'{{"{name}":1,"{name}":1}}' if twice else json.dumps(TASK | {name: 1})
    assert _fields(call("POST", "/tasks", body)) == [name[:FIELD_NAME_CHARS_MAX] + shown]


# Direct invocations.


def test_a_direct_request_is_read_or_refused_like_an_http_request() -> None:
    read = read_direct(DirectTaskRequest, TASK | {"user_id": "u", "budget": 0.07})
    assert (read.user_id, read.budget_micro) == ("u", 70_000)
    with pytest.raises(InvalidRequestError) as refused:
        read_direct(DirectTaskRequest, TASK | {"user_id": "a#b", "budget": -0.5, "x": 1})
    assert [wrong["field"] for wrong in refused.value.members["errors"]] == ["budget", "user_id", "x"]
    for payload in (None, [], "x", 5):
        with pytest.raises(InvalidRequestError, match="body"):
            read_direct(DirectTaskRequest, payload)


def test_a_direct_request_that_is_too_deep_is_refused() -> None:
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(InvalidRequestError, match="body: must not be nested deeper"):
        read_direct(DirectTaskRequest, TASK | {"user_id": "u", "input": deep})


def test_a_name_given_twice_is_refused() -> None:
    """Two readers could take two different budgets from it."""
    with pytest.raises(InvalidRequestError, match="budget: must not be given twice"):
        read_json('{"budget": "0.05", "input": {}, "budget": "1000"}')
