"""Calls against a server that misbehaves: what is repeated, what is not, and what the errors say."""

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance import errors as server_errors
from quittance.client import (
    AgentNotReadyError,
    ApiError,
    BudgetTooLowError,
    Client,
    ConfigurationError,
    ConnectionFailedError,
    InsufficientFundsError,
    InvalidRequestError,
    PlatformError,
    RegistrationConflictError,
    Retries,
    StillRunningError,
    TaskConflictError,
    Timing,
    TokenExpiredError,
    TooManyRequestsError,
    UnexpectedAnswerError,
)
from quittance.client._calls import json_text
from quittance.client._errors import _Table
from quittance.client._wire import ANSWER_BYTES_MAX, checked_url
from tests.client.servers import Reply, Seen, Server, problem

BALANCE = {"account_id": "alice", "available": "4.98", "held": "0", "earned": "0.000001"}
FLAT = {"type": "flat", "price": "0.01"}
PENDING = {
    "task_id": "t", "agent_id": "agt_a", "escrow_id": "e", "escrow_status": "funded",
    "expires_at": "2026-01-01T00:00:00.000Z",
}  # fmt: skip
RESULT = {
    "task_id": "t", "agent_id": "agt_a", "success": True, "output": "hello", "error": None, "execution_time_ms": 3,
    "input_sha256": hashlib.sha256(b"hello").hexdigest(),
    "resource_usage": {
        "memory_used_mb": 1.5, "cpu_time_ms": 1, "execution_time_ms": 3, "storage_used_kb": 0.1, "fuel_used": 10,
        "fuel_exact": True, "input_bytes": 5, "output_bytes": 5,
    },
    "escrow_id": "e", "escrow_status": "released", "amount_paid": "0.00975", "amount_refunded": "0.04",
    "fee": "0.00025", "compute": "0", "judging": "0", "fault": "none", "judges": [], "payment_method": "escrow",
    "reputation_delta": 0.1,
    "timestamp": "2026-01-01T00:00:00.000Z", "receipt": "e30.e30.e30",
}  # fmt: skip
UNAVAILABLE = problem(503, "platform_unavailable")


def test_answers_are_the_models_of_the_api(server: Server, client: Any) -> None:
    server.api("GET /accounts/me", Reply(body=BALANCE))
    found = client.balance()
    assert (found.account_id, found.available_micro, found.earned_micro) == ("alice", 4_980_000, 1)
    assert server.seen[0].headers["authorization"] == "Bearer secret-token"


@pytest.mark.parametrize(
    "failure",
    [
        Reply(500, b"<html>oops</html>"), problem(502, "platform_unavailable"), UNAVAILABLE, problem(504, "x"),
        Reply(408, b""), problem(429, "throttled"), Reply(body=BALANCE, cut=5), Reply(drop=True),
    ],
)  # fmt: skip
def test_calls_are_repeated_after_failures_that_may_pass(server: Server, client: Any, failure: Reply) -> None:
    server.api("GET /accounts/me", failure, failure, Reply(body=BALANCE))
    assert client.balance().account_id == "alice"
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 415, 422, 501])
def test_refusals_are_not_repeated(server: Server, client: Any, status: int) -> None:
    server.api("GET /accounts/me", problem(status, "some_code"))
    with pytest.raises(ApiError) as caught:
        client.balance()
    assert (caught.value.status, caught.value.code, len(server.seen)) == (status, "some_code", 1)


def test_calls_give_up_after_the_last_try(server: Server, client: Any, clock: Any) -> None:
    server.api("GET /accounts/me", UNAVAILABLE)
    with pytest.raises(PlatformError, match=r"^No\.$"):
        client.balance()
    assert len(server.seen) == 4
    assert clock.pauses == [0.5, 1.0, 2.0]


def test_calls_end_at_their_deadline(server: Server, make: Any, clock: Any) -> None:
    server.api("GET /accounts/me", UNAVAILABLE)
    with pytest.raises(PlatformError):
        make(retries=Retries(tries=1_000), timeout=60).balance()
    assert sum(clock.pauses) < 60
    assert len(server.seen) > 4


def test_retry_after_is_honoured(server: Server, client: Any, clock: Any) -> None:
    busy = problem(429, "too_many_running", headers={"Retry-After": "7"})
    dated = {"Retry-After": "Thu, 01 Jan 2026 00:00:09 GMT", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
    server.api("GET /accounts/me", busy, problem(503, "funding_paused", headers=dated), Reply(body=BALANCE))
    client.balance()
    assert clock.pauses == [7, 9]


def test_too_long_a_retry_after_is_an_error_that_names_it(server: Server, client: Any, clock: Any) -> None:
    server.api("GET /accounts/me", problem(429, "throttled", headers={"Retry-After": "3600"}))
    with pytest.raises(TooManyRequestsError) as caught:
        client.balance()
    assert (caught.value.retry_after_s, clock.pauses, len(server.seen)) == (3_600, [], 1)


def test_hanging_servers_do_not_hold_a_call(server: Server, make: Any) -> None:
    server.api("GET /accounts/me", Reply(hang=True), Reply(body=BALANCE))
    assert make(retries=Retries(tries=1_000, answer_s_max=0.5)).balance().account_id == "alice"


def test_a_body_that_never_ends_does_not_hold_a_call(server: Server, make: Any) -> None:
    server.api("GET /accounts/me", Reply(drip=True))
    with pytest.raises(ConnectionFailedError, match="did not complete its answer in time"):
        make(timeout=0.5, timing=Timing(), retries=Retries(tries=1)).balance()


def test_a_closed_client_says_so(server: Server) -> None:
    client = Client(server.url, token="t")
    server.api("GET /accounts/me", Reply(body=BALANCE))
    with client:
        client.balance()
    with pytest.raises(ConfigurationError, match="closed"):
        client.balance()


def test_server_that_is_down_is_a_sentence(make: Any, clock: Any) -> None:
    with Server().running() as gone:
        url = gone.url
    with pytest.raises(ConnectionFailedError, match=r"Nothing answers at 127\.0\.0\.1:\d+: the connection was refused"):
        make(api=url).balance()
    assert len(clock.pauses) == 3


def test_unknown_hosts_are_a_sentence(make: Any) -> None:
    with pytest.raises(ConnectionFailedError, match=r"quittance\.invalid cannot be resolved|No connection to"):
        make(api="https://quittance.invalid").balance()


@pytest.mark.parametrize(
    "body", [b"<html>sign in</html>", b"", b"[]", b"null", b'{"account_id": 5}', b"[" * 100_000, b"\xff", b"1e999999"]
)
def test_wrong_json_is_an_error_that_does_not_quote_it(server: Server, client: Any, body: bytes) -> None:
    server.api("GET /accounts/me", Reply(body=body))
    with pytest.raises(UnexpectedAnswerError, match="no AccountAnswer of this API") as caught:
        client.balance()
    assert "sign in" not in str(caught.value)
    assert len(server.seen) == 1


def test_unknown_members_of_answers_are_ignored(server: Server, client: Any) -> None:
    server.api("GET /accounts/me", Reply(body={**BALANCE, "new": {"of": "a later version"}}))
    assert client.balance().held_micro == 0


def test_answers_are_bounded(server: Server, client: Any) -> None:
    server.api("GET /accounts/me", Reply(body=b" " * (ANSWER_BYTES_MAX + 1)))
    with pytest.raises(UnexpectedAnswerError, match=f"more than {ANSWER_BYTES_MAX} bytes"):
        client.balance()
    full = json.dumps(BALANCE).encode()
    server.api("GET /accounts/me", Reply(body=b" " * (ANSWER_BYTES_MAX - len(full)) + full))
    assert client.balance().account_id == "alice"


def test_compressed_answers_are_refused(server: Server, client: Any) -> None:
    server.api("GET /accounts/me", Reply(body=BALANCE, headers={"Content-Encoding": "gzip"}))
    with pytest.raises(UnexpectedAnswerError, match="compressed"):
        client.balance()
    assert server.seen[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_never_carry_the_token_elsewhere(server: Server, client: Any, status: int) -> None:
    with Server().running() as other:
        for route in ("GET", "POST"):
            server.api(f"{route} /accounts/me/bond", Reply(status, headers={"Location": f"{other.url}/stolen"}))
        for call in (client.bond, lambda: client.move_bond("1")):
            with pytest.raises(UnexpectedAnswerError, match="Redirects are not followed"):
                call()
        assert other.seen == []


def test_problems_become_typed_errors(server: Server, client: Any) -> None:
    short = problem(402, "insufficient_funds", "5 credits are required.", available="0.5", required="5")
    server.api("POST /tasks/execute", short)
    with pytest.raises(InsufficientFundsError) as caught:
        client.execute("agt_a", "x", budget="5", task_id="t-1")
    error = caught.value
    assert (error.available_micro, error.required_micro, error.call_id) == (500_000, 5_000_000, "t-1")
    assert (str(error), error.type) == ("5 credits are required.", "urn:quittance:problem:insufficient_funds")
    faults = [{"field": "budget", "message": "must be at least 0.02"}]
    server.api("POST /tasks/execute", problem(422, "budget_too_low", errors=faults, least_price="0.02"))
    with pytest.raises(BudgetTooLowError) as low:
        client.execute("agt_a", "x", budget="0.01")
    assert (low.value.errors, low.value.least_price_micro) == (faults, 20_000)
    server.api("POST /tasks/execute", problem(409, "agent_not_ready", state="out_of_bond"))
    with pytest.raises(AgentNotReadyError) as not_ready:
        client.execute("agt_a", "x", budget="0.01")
    assert not_ready.value.state == "out_of_bond"


def test_every_problem_of_the_platform_has_its_error() -> None:
    codes = {code for _, code, _ in server_errors._PROBLEMS.values()}
    operators = {"payout_conflict", "unsupported_media_type"}  # no call of this client gets them
    assert codes - operators <= _Table.BY_CODE.keys()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"\x00", b"{", b'{"detail": {"a": 1}, "errors": [1, {"field": 2}], "code": []}', b"9" * 5_000]
)
def test_refusals_without_a_problem_document_are_errors_too(server: Server, client: Any, body: bytes) -> None:
    server.api("GET /accounts/me", Reply(404, body))
    with pytest.raises(ApiError) as caught:
        client.balance()
    assert (caught.value.status, caught.value.title) == (404, "Not Found")


def test_texts_of_servers_cannot_control_a_terminal(server: Server, client: Any) -> None:
    server.api("GET /accounts/me", problem(400, "invalid_request", "a\x1b[31m\r\nb\u202e" + "c" * 10_000))
    with pytest.raises(InvalidRequestError) as caught:
        client.balance()
    assert str(caught.value).startswith("a [31m b c")
    assert len(str(caught.value)) < 2_100


def test_expired_tokens_have_an_error_of_their_own(server: Server, client: Any) -> None:
    server.api("GET /accounts/me", problem(401, "unauthenticated", "The token has expired. Send a valid bearer token."))
    with pytest.raises(TokenExpiredError):
        client.balance()
    assert len(server.seen) == 1, "a static token is not tried again"


# Tasks.


def answered(seen: Seen) -> Reply:
    return Reply(body=RESULT | {"task_id": seen.json["task_id"]})


def test_a_lost_answer_is_asked_for_again_with_the_same_id(server: Server, client: Any) -> None:
    server.api("POST /tasks/execute", Reply(drop=True), Reply(body=RESULT, cut=3), UNAVAILABLE, answered)
    done = client.execute("agt_a", "hello", budget="0.05")
    sent = [seen.json for seen in server.seen]
    assert done.output == "hello"
    assert len(sent) == 4
    assert all(body == sent[0] for body in sent)
    assert sent[0]["task_id"]


def test_errors_name_the_id_that_the_client_chose(server: Server, client: Any) -> None:
    server.api("POST /tasks/execute", Reply(drop=True))
    with pytest.raises(ConnectionFailedError) as caught:
        client.execute("agt_a", "hello", budget="0.05")
    assert caught.value.call_id == server.seen[0].json["task_id"]
    assert caught.value.sent
    assert caught.value.call_id in caught.value.__notes__[0]


def test_pending_tasks_are_waited_for(server: Server, client: Any, clock: Any) -> None:
    server.api("POST /tasks/execute", Reply(202, PENDING, {"Retry-After": "2"}))
    pending = Reply(202, PENDING, {"Retry-After": "2"})
    server.api("GET /tasks/t/result", pending, pending, UNAVAILABLE, Reply(body=RESULT))
    assert client.execute("agt_a", "hello", budget="0.05", task_id="t").success
    assert all(pause >= 0.5 for pause in clock.pauses)
    assert clock.pauses[:2] == [2, 2]


def test_a_running_task_with_this_id_is_joined(server: Server, client: Any) -> None:
    server.api("POST /tasks/execute", Reply(drop=True), problem(409, "task_in_progress", headers={"Retry-After": "2"}))
    server.api("GET /tasks/t/result", Reply(202, PENDING), Reply(body=RESULT))
    assert client.execute("agt_a", "hello", budget="0.05", task_id="t").success


def test_an_id_used_for_another_task_is_refused(server: Server, client: Any) -> None:
    server.api("POST /tasks/execute", problem(409, "task_conflict"))
    with pytest.raises(TaskConflictError):
        client.execute("agt_a", "hello", budget="0.05", task_id="t")


def test_waiting_is_bounded(server: Server, client: Any, clock: Any) -> None:
    server.api("POST /tasks/execute", Reply(202, PENDING))
    server.api("GET /tasks/t/result", Reply(202, PENDING, {"Retry-After": "999999"}))
    with pytest.raises(StillRunningError) as caught:
        client.execute("agt_a", "hello", budget="0.05", task_id="t", within=30)
    assert (caught.value.task_id, sum(clock.pauses)) == ("t", 30)
    with pytest.raises(StillRunningError):
        client.wait("t")


def test_long_tasks_are_queued(server: Server, client: Any) -> None:
    server.api("POST /tasks/execute", Reply(202, PENDING))
    server.api("GET /tasks/t/result", Reply(body=RESULT))
    client.execute("agt_a", "hello", budget="0.05", task_id="t", timeout=26)
    assert server.seen[0].headers["prefer"] == "respond-async"
    too_long = problem(422, "timeout_too_long")
    server.api("POST /tasks/execute", too_long, Reply(202, PENDING))
    client.execute("agt_a", "hello", budget="0.05", task_id="t", timeout=20)
    assert [seen.headers.get("prefer") for seen in server.calls("/execute")[1:]] == [None, "respond-async"]


def test_submit_returns_at_once(server: Server, client: Any) -> None:
    server.api("POST /tasks/execute", Reply(202, PENDING))
    assert client.submit("agt_a", "hello", budget="0.05", task_id="t").expires_at == 1_767_225_600_000
    assert server.seen[0].headers["prefer"] == "respond-async"


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("hello", {"input": "hello"}),
        ("", {"input": ""}),
        (b"\xff\x00", {"input_base64": "/wA="}),
        (b'{"a": 1e3}', {"input": '{"a": 1e3}'}),
        ("\x00" * 10, {"input_base64": "AAAAAAAAAAAAAA=="}),
        ({"b": 1, "a": [1.5, None, True, "ü\n"]}, {"input": '{"b":1,"a":[1.5,null,true,"ü\\n"]}'}),
        (None, {"input": "null"}),
        (0, {"input": "0"}),
    ],
)
def test_inputs_are_sent_byte_for_byte(server: Server, client: Any, value: object, sent: dict[str, str]) -> None:
    server.api("POST /tasks/execute", Reply(body=RESULT))
    client.execute("agt_a", value, budget="0.05", task_id="t")
    assert server.seen[0].json == {"task_id": "t", "agent_id": "agt_a", "budget": "0.05", **sent}


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: 2}, object(), "\ud800", {"a": "\ud800"}, [set()]])
def test_inputs_that_are_no_json_are_refused_before_they_are_sent(server: Server, client: Any, value: object) -> None:
    with pytest.raises(InvalidRequestError, match="input: must"):
        client.execute("agt_a", value, budget="0.05")
    assert server.seen == []


@pytest.mark.parametrize("amount", [0.1, "-1", "1e3", "0.0000001", "", None, True])
def test_amounts_that_are_not_exact_are_refused(server: Server, client: Any, amount: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"(budget|amount): must be a decimal"):
        client.execute("agt_a", "x", budget=amount)
    with pytest.raises(InvalidRequestError, match="amount: must be a decimal"):
        client.withdraw(amount)
    assert server.seen == []


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_ids_that_would_leave_the_path_are_refused(server: Server, client: Any, name: str) -> None:
    for call in (lambda: client.wait(name), lambda: client.agents.get(name), lambda: client.deposit("1", account=name)):
        with pytest.raises(InvalidRequestError, match="must not be empty"):
            call()
    assert server.seen == []


def test_ids_are_encoded_in_paths(server: Server, client: Any) -> None:
    client_id = "auth0|a/b?c#d%e"
    with pytest.raises(ApiError):
        client.deposit("1", account=client_id)
    assert server.seen[0].path.endswith("/accounts/auth0%7Ca%2Fb%3Fc%23d%25e/deposits")


# Lists.


def page(*ids: str, cursor: str | None) -> Reply:
    lines = [{"at": "2026-01-01T00:00:00.000Z", "kind": "deposit", "id": name, "amount": "1"} for name in ids]
    return Reply(body={"account_id": "alice", "lines": lines, "next": cursor})


def test_lists_read_all_pages(server: Server, client: Any) -> None:
    server.api("GET /accounts/me/statement", page("a", "b", cursor="1~x"), page(cursor="2"), page("c", cursor=None))
    assert [line.id for line in client.statement(page_size=2)] == ["a", "b", "c"]
    assert [seen.query for seen in server.seen] == [
        {"limit": "2"}, {"limit": "2", "after": "1~x"}, {"limit": "2", "after": "2"},
    ]  # fmt: skip


def test_lists_end_if_a_page_comes_again(server: Server, client: Any) -> None:
    server.api("GET /accounts/me/statement", page("a", cursor="1"))
    with pytest.raises(UnexpectedAnswerError, match="the same page again"):
        list(client.statement())


# Registration.


def test_registrations_are_repeated_with_their_id(server: Server, client: Any) -> None:
    form = {"url": f"{server.url}/bucket", "fields": {}, "expires_at": "2026-01-01T00:00:00.000Z"}
    done = Reply(201, {"agent_id": "agt_a", "state": "awaiting_upload", "version": 1, "upload": form})
    for failure in (Reply(drop=True), UNAVAILABLE, Reply(500, b""), problem(429, "throttled")):
        server.api("POST /agents", failure, done)
        server.seen.clear()
        assert client.agents.register("a", tariff=FLAT).agent_id == "agt_a"
        lost, repeated = (seen.json for seen in server.seen)
        assert lost == repeated
        assert len(lost["registration_id"]) >= 32


def test_each_registration_has_an_id_of_its_own(server: Server, client: Any) -> None:
    server.api("POST /agents", problem(409, "registration_conflict"))
    for _ in range(2):
        with pytest.raises(RegistrationConflictError):
            client.agents.register("a", tariff=FLAT)
    first, second = (seen.json["registration_id"] for seen in server.seen)
    assert first != second


# Secrets and addresses.


def test_no_text_of_the_client_contains_the_token(server: Server, make: Any) -> None:
    client = make(token="secret-token")
    server.api("GET /accounts/me", problem(401, "unauthenticated", "The token is not a well-formed signed JWT."))
    with pytest.raises(ApiError) as caught:
        client.balance()
    assert "secret" not in f"{caught.value!r} {caught.value} {client!r}"
    inner: Any = Client(server.url, token="secret-token")
    assert "secret" not in f"{inner!r} {inner._core!r} {inner._core.tokens!r} {vars(inner)!r}"


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com", "http://127.0.0.1.example.com", "http://localhost.example.com", "ftp://127.0.0.1",
        "https://user:pass@api.example.com", "https://", "api.example.com", "", "https://a b", "https://a#b", "https://a?b",
        "http://[::1", "http://10.0.0.1", "http://0.0.0.0", "https://api.example.com:port", "//127.0.0.1",
        "https://api.example.com\\@evil.example",
    ],
)  # fmt: skip
def test_addresses_without_https_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Client(url, token="t")
    assert "pass" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1", "http://localhost", "http://[::1]:8", "http://api.localhost", "https://api.example.com/x"],
)
def test_https_and_this_machine_are_accepted(url: str) -> None:
    assert checked_url(url, "It") == url


def test_proxies_do_not_get_requests_to_this_machine(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server().running() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        server.api("GET /accounts/me", Reply(body=BALANCE))
        make().balance()
        assert proxy.seen == []


# Properties.


@given(
    st.integers(1, 10**6), st.floats(0, 1), st.none() | st.floats(0, 10**9), st.floats(0.01, 10), st.floats(0.01, 100)
)
def test_pauses_stay_within_their_bounds(
    attempt: int, chance: float, after: float | None, low: float, high: float
) -> None:
    retries = Retries(wait_s_min=low, wait_s_max=high)
    pause = retries.wait_s(attempt, chance=chance, retry_after_s=after)
    assert pause >= (after or 0)
    assert pause >= min(low, high) / 2
    assert pause <= max(high, after or 0)
    assert retries.wait_s(attempt + 1, chance=chance) >= retries.wait_s(attempt, chance=chance)


NUMBERS = (
    st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.decimals(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_json_text_is_the_value_again(value: object) -> None:
    from decimal import Decimal

    def exact(found: object) -> object:
        if isinstance(found, dict):
            return {name: exact(member) for name, member in found.items()}
        if isinstance(found, list):
            return [exact(item) for item in found]
        if isinstance(found, float):
            return Decimal(repr(found))
        return found

    assert json.loads(json_text(value), parse_float=Decimal) == exact(value)
    assert " " not in json_text(value).replace(" ", "", sum(text.count(" ") for text in _texts(value)))


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for name, member in value.items() for text in [name, *_texts(member)]]
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []
