"""The handlers of the functions in process: translation, refusals without identity, and no internal text."""

import base64
import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from types import ModuleType
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from quittance.api.models import TaskRequest
from quittance.errors import InsufficientFundsError, InvalidRequestError, PlatformUnavailableError, TicketInvalidError
from quittance.proof.statement import Purpose
from quittance.usecases import execute as tasks
from quittance.usecases.sweep import sweep
from tests import tickets
from tests.described import why_undescribed
from tests.support import FLAT, ROOT, Cloud, wasm
from tests.tickets import jwk

PREFIX = "/api/v1/economic"
Call = Callable[..., tuple[int, Any, dict[str, str]]]
CHANNEL = "chn_" + "a" * 26


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"functions_{name}", ROOT / "functions" / name / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(platform: Cloud, context: Any) -> Call:
    def send(
        function: str,
        method: str,
        path: str,
        body: object = None,
        *,
        user: str | None = "alice",
        scope: str = "",
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        authorizer = {"sub": user, "scope": scope} if user else None
        sent = {"Content-Type": content_type} | (headers or {})
        event = {
            "resource": path,
            "path": PREFIX + path,
            "httpMethod": method,
            "headers": sent,
            "multiValueHeaders": {name: [value] for name, value in sent.items()},
            "queryStringParameters": query,
            "multiValueQueryStringParameters": {name: [value] for name, value in query.items()} if query else None,
            "requestContext": {"requestId": "r", "authorizer": authorizer, "httpMethod": method},
            "body": body if isinstance(body, str) else json.dumps(body) if body is not None else None,
            "isBase64Encoded": False,
        }
        answer = load(function).handler(event, context)
        got = {name: values[0] for name, values in answer["multiValueHeaders"].items()}
        assert got["X-Content-Type-Options"] == "nosniff"
        told = answer["statusCode"], got["Content-Type"], answer["body"].encode()
        assert not (flaw := why_undescribed(method, path, *told)), flaw
        plain = json.loads(answer["body"]) if got["Content-Type"].endswith("json") else answer["body"]
        return answer["statusCode"], plain, got

    return send


def task(agent_id: str, **changes: Any) -> dict[str, Any]:
    return {"task_id": "t-1", "agent_id": agent_id, "input": {"a": [1, "é", 0.5]}, "budget": "0.05"} | changes


def test_execute_and_result_give_the_same_answer(platform: Cloud, call: Call) -> None:
    agent_id = platform.publish(wasm("echo"))
    status, done, headers = call("execute", "POST", "/tasks/execute", task(agent_id))
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", "no-store")
    assert done["output"] == '{"a":[1,"é",0.5]}'
    assert (done["amount_paid"], done["fee"], done["amount_refunded"]) == ("0.00975", "0.00025", "0.04")
    assert (done["escrow_status"], done["payment_method"], done["reputation_delta"]) == ("released", "escrow", 2.5)
    assert call("result", "GET", "/tasks/t-1/result")[:2] == (200, done)


def test_budget_may_be_a_number_and_is_read_exactly(platform: Cloud, call: Call) -> None:
    agent_id = platform.publish(wasm("echo"))
    body = json.dumps(task(agent_id, budget=0)).replace('"budget": 0', '"budget": 0.010001')
    assert call("execute", "POST", "/tasks/execute", body)[1]["amount_refunded"] == "0.000001"


def test_pending_task_links_to_its_result(platform: Cloud, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    agent_id = platform.publish(wasm("echo"))
    with monkeypatch.context() as patch:
        patch.setattr(platform.ledger, "settle", _raise(PlatformUnavailableError))
        status, pending, headers = call("execute", "POST", "/tasks/execute", task(agent_id))
    assert (status, pending["escrow_status"]) == (202, "funded")
    assert (headers["Location"], headers["Retry-After"]) == (f"{PREFIX}/tasks/t-1/result", "2")
    assert call("result", "GET", "/tasks/t-1/result")[0] == 202
    status, problem, headers = call("execute", "POST", "/tasks/execute", task(agent_id))
    assert (status, problem["code"]) == (409, "task_in_progress")
    assert headers["Retry-After"] in {"16", "17", "18"}, "the rest of the lease"


def test_direct_invocation_returns_json_and_raises_errors(platform: Cloud, context: Any) -> None:
    execute = load("execute").handler
    agent_id = platform.publish(wasm("echo"))
    done = execute(task(agent_id) | {"user_id": "alice"}, context)
    assert (done["success"], done["amount_paid"]) == (True, "0.00975")
    assert json.loads(json.dumps(done)) == done
    with pytest.raises(InsufficientFundsError):
        execute(task(agent_id, task_id="t-2") | {"user_id": "poor"}, context)
    with pytest.raises(InvalidRequestError) as wrong:
        execute({"budget": "-1"}, context)
    fields = {error["field"] for error in wrong.value.members["errors"]}  # type: ignore[attr-defined]  # a member
    assert fields == {"task_id", "agent_id", "input", "budget"}
    with pytest.raises(InvalidRequestError, match="exactly one of user_id"):
        execute(task(agent_id, task_id="t-3"), context)


@pytest.mark.parametrize(
    ("function", "method", "path", "body"),
    [
        ("execute", "POST", "/tasks/execute", {"task_id": "t", "agent_id": "a", "input": "", "budget": "1"}),
        ("result", "GET", "/tasks/t/result", None),
        ("agents", "GET", "/agents", None),
        ("agents", "GET", "/agents/a", None),
        ("agents", "POST", "/agents", {"name": "a", "tariff": FLAT}),
        ("agents", "POST", "/agents/a/versions", {}),
        ("agents", "DELETE", "/agents/a", None),
        ("accounts", "GET", "/accounts/me", None),
        ("accounts", "GET", "/accounts/me/statement", None),
        ("accounts", "POST", "/accounts/alice/deposits", {"deposit_id": "d", "amount": "1"}),
        ("accounts", "POST", "/accounts/me/withdrawals", {"withdrawal_id": "w", "amount": "1"}),
        ("accounts", "GET", "/payouts", None),
        ("operations", "GET", "/operations", None),
        ("operations", "POST", "/operations/agents/a/retire", {"reason": "r"}),
        ("operations", "POST", "/operations/accounts/me/freeze", {"reason": "r"}),
        ("operations", "POST", "/operations/accounts/alice/unfreeze", {"reason": "r"}),
        ("operations", "POST", "/operations/funding/pause", {"reason": "r"}),
        ("operations", "POST", "/operations/funding/resume", {"reason": "r"}),
        ("accounts", "POST", "/payouts/p", {"state": "paid"}),
        ("channels", "GET", "/channels", None),
        ("channels", "GET", f"/channels/{CHANNEL}", None),
        ("channels", "GET", f"/channels/{CHANNEL}/tickets", None),
        ("channels", "POST", f"/channels/{CHANNEL}/topups", {"topup_id": "u", "tickets": 1}),
        ("channels", "POST", f"/channels/{CHANNEL}/close", None),
        ("channels", "POST", "/channels", {"salt": "s", "key": jwk(), "ticket_value": "1", "tickets": 1,
                                           "expires_at": "2026-12-31T00:00:00Z"}),
    ],
)  # fmt: skip
def test_request_without_identity_is_refused_by_the_function(
    call: Call, function: str, method: str, path: str, body: object
) -> None:
    status, problem, headers = call(function, method, path, body, user=None)
    assert (status, problem["code"]) == (401, "unauthenticated")
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["WWW-Authenticate"] == "Bearer"


def test_accounts_are_credited_and_read(platform: Cloud, call: Call) -> None:
    deposit = {"deposit_id": "d-1", "amount": "2.5"}
    status, problem, _ = call("accounts", "POST", "/accounts/bob/deposits", deposit)
    assert (status, problem["required_scope"]) == (403, "ledger:deposit")
    first = call("accounts", "POST", "/accounts/bob/deposits", deposit, scope="x ledger:deposit")
    assert first[0] == 201
    assert call("accounts", "POST", "/accounts/bob/deposits", deposit, scope="ledger:deposit") == first
    assert call("accounts", "GET", "/accounts/me", user="bob")[1] == {
        "account_id": "bob",
        "available": "2.5",
        "held": "0",
        "earned": "0",
    }
    withdrawal = {"withdrawal_id": "w-1", "amount": "3"}
    assert call("accounts", "POST", "/accounts/alice/withdrawals", withdrawal, user="bob")[0] == 404
    status, problem, _ = call("accounts", "POST", "/accounts/me/withdrawals", withdrawal, user="bob")
    assert (status, problem["available"], problem["required"]) == (402, "2.5", "3")


def test_agents_are_registered_and_read(call: Call) -> None:
    status, registered, _ = call(
        "agents", "POST", "/agents", {"name": " mine ", "tariff": FLAT, "limits": {"timeout": 5}}
    )
    assert (status, registered["state"], registered["upload"]["method"]) == (201, "awaiting_upload", "POST")
    status, agent, _ = call("agents", "GET", f"/agents/{registered['agent_id']}")
    assert (agent["name"], agent["owner"], agent["tariff"]) == ("mine", "alice", FLAT)
    assert agent["limits"] == {"memory_mib": 256, "timeout": 5, "fuel": 10**12}
    assert agent["reputation"] == {
        "score": 50.0, "algorithm": "reference", "scores": {"reference": 50.0, "robust": 0.0}, "outcomes": 0,
        "successes": 0, "failures": 0, "success_rate": None, "distinct_payers": 0, "recent": None,
    }  # fmt: skip
    listed = call("agents", "GET", "/agents", query={"owner": "alice", "limit": "1"})[1]
    assert [entry["agent_id"] for entry in listed["agents"]] == [registered["agent_id"]]
    assert call("agents", "GET", "/agents", query={"limit": "101"})[1]["errors"][0]["field"] == "limit"
    assert call("agents", "DELETE", f"/agents/{registered['agent_id']}")[1]["state"] == "retired"


def test_unexpected_failure_reveals_no_internals(platform: Cloud, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform.ledger, "find", _raise(RuntimeError, "the secret of alice"))
    status, problem, headers = call("result", "GET", "/tasks/t-1/result")
    assert (status, problem["code"], headers["Content-Type"]) == (500, "internal_error", "application/problem+json")
    assert "secret" not in json.dumps(problem)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_answers_forbid_sniffing_and_errors_forbid_caching(
    platform: Cloud, call: Call, monkeypatch: pytest.MonkeyPatch, content_type: str
) -> None:
    monkeypatch.setattr(platform.ledger, "find", _raise(RuntimeError))
    for function, path in (("result", "/tasks/t/result"), ("agents", "/nowhere"), ("public", "/log/checkpoint")):
        body = "x" if content_type == "text/plain" else None  # without meaning in a GET, so it is no reason to refuse
        status, _, headers = call(function, "GET", path, body, content_type=content_type)
        assert status == {"result": 500}.get(function, 404)
        assert headers["Cache-Control"] == "no-store"
    status, _, headers = call("execute", "POST", "/tasks/execute", "x", content_type=content_type)
    assert (status, headers["Cache-Control"]) == (400 if content_type == "application/json" else 415, "no-store")


def test_root_keys_are_fetched_once_for_many_readers(platform: Cloud, call: Call) -> None:
    calls: Counter[str] = Counter()
    platform.keys._client.meta.events.register("before-call", lambda model, **_: calls.update([model.name]))
    answers = [call("public", "GET", "/.well-known/jwks.json", user=None) for _ in range(5)]
    assert {status for status, _, _ in answers} == {200}
    assert {headers["Cache-Control"] for _, _, headers in answers} == {"public, max-age=300"}
    assert calls == {"GetPublicKey": len(Purpose)}, "one call per root key"


def test_unreadable_root_keys_are_an_uncached_503(platform: Cloud, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform.keys._client, "get_public_key", _raise(EndpointConnectionError, endpoint_url="kms"))
    status, problem, headers = call("public", "GET", "/.well-known/jwks.json", user=None)
    assert (status, problem["code"]) == (503, "platform_unavailable")
    assert (headers["Cache-Control"], headers["Retry-After"]) == ("no-store", "2")


def test_checkpoints_are_cached_as_long_as_they_are_valid(platform: Cloud, call: Call) -> None:
    tasks.execute(platform, "alice", TaskRequest.model_validate(task(platform.publish(wasm("echo")))))
    sweep(platform)
    newest = call("public", "GET", "/log/checkpoint", user=None)
    stated = call("public", "GET", "/log/checkpoint", query={"size": "1"}, user=None)
    assert newest[1] == stated[1]
    assert newest[2]["Cache-Control"] == "public, max-age=60"
    assert stated[2]["Cache-Control"] == "public, max-age=31536000, immutable"


def test_page_policy_allows_only_its_own_content(call: Call) -> None:
    status, html, headers = call("public", "GET", "/docs", user=None)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["Referrer-Policy"] == "no-referrer"
    policy = {name: sources for name, *sources in map(str.split, headers["Content-Security-Policy"].split(";"))}
    inline = Inline()
    inline.feed(html)
    assert inline.forbidden == [], "attributes that run or load something"
    for kind, number in (("script", 2), ("style", 1)):
        digests = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in inline.texts[kind]]
        assert policy.pop(f"{kind}-src") == [f"'sha256-{digest}'" for digest in digests]
        assert len(digests) == number
    assert policy == {
        "default-src": ["'none'"], "img-src": ["data:"], "connect-src": ["'self'"], "base-uri": ["'none'"],
        "form-action": ["'none'"], "frame-ancestors": ["'none'"],
    }  # fmt: skip


class Inline(HTMLParser):
    """The inline scripts and styles of a page, and the attributes that its policy would block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.forbidden: list[tuple[str, str]] = []
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag
        if tag in self.texts:
            self.texts[tag].append("")
        loads = ("style", "src", "href", "action")
        self.forbidden += [(tag, name) for name, _ in attrs if name in loads or name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within in self.texts:
            self.texts[self._within][-1] += data


def test_shallow_health_uses_and_names_no_part(context: Any) -> None:
    answer = load("health").handler({"headers": None, "httpMethod": "GET"}, context)
    assert answer["headers"]["X-Content-Type-Options"] == "nosniff"
    assert (answer["statusCode"], json.loads(answer["body"])) == (200, {"status": "ok"})


def test_deep_health_uses_every_part(platform: Cloud) -> None:
    from quittance.usecases import health

    parts = {name: health._works(platform, name, check) for name, check in health._CHECKS.items()}
    assert all(parts.values()), parts
    platform._s3.delete_bucket(Bucket=platform.settings.outputs_bucket)
    assert not health._works(platform, "outputs", health._outputs)


def _raise(error: type[Exception], *args: str, **named: str) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error(*args, **named)

    return fail


# Tickets.


def test_ticket_in_its_header_pays_without_a_token(platform: Cloud, call: Call) -> None:
    channel_id, agent_id = tickets.opened(platform).channel_id, platform.publish(wasm("echo"))
    path, body = f"/channels/{channel_id}/tasks", task(agent_id, task_id=f"{channel_id}.1")
    signed = tickets.ticket(platform, TaskRequest.model_validate(body))
    for name in ("Payment-Ticket", "payment-ticket", "PAYMENT-TICKET"):
        status, done, headers = call("execute", "POST", path, body, user=None, headers={name: signed})
        assert (status, done["payment_method"], done["success"]) == (200, "ticket", True)
        assert headers["Cache-Control"] == "no-store"
    assert call("result", "GET", f"/tasks/{channel_id}.1/result")[1] == done
    body = task(agent_id, task_id=f"{channel_id}.2")
    signed = tickets.ticket(platform, TaskRequest.model_validate(body))
    later = {"Payment-Ticket": signed, "Prefer": "respond-async"}
    status, pending, headers = call("execute", "POST", path, body, user=None, headers=later)
    assert (status, pending["escrow_status"], headers["Preference-Applied"]) == (202, "funded", "respond-async")
    assert headers["Location"] == f"{PREFIX}/tasks/{channel_id}.2/result"


def test_request_without_exactly_one_ticket_names_the_header(
    platform: Cloud, call: Call, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel_id, agent_id = tickets.opened(platform).channel_id, platform.publish(wasm("echo"))
    path, body = f"/channels/{channel_id}/tasks", task(agent_id, task_id=f"{channel_id}.1")
    before = platform.items()
    status, problem, _ = call("execute", "POST", path, body)
    assert (status, [error["field"] for error in problem["errors"]]) == (400, ["payment-ticket"])
    assert "required" in problem["detail"]
    both = call("execute", "POST", path, body | {"budget": "x"}, user=None)[1]
    assert {error["field"] for error in both["errors"]} == {"payment-ticket", "budget"}
    signed = tickets.ticket(platform, TaskRequest.model_validate(body))
    event = {
        "resource": path,
        "path": PREFIX + path,
        "httpMethod": "POST",
        "headers": {"Payment-Ticket": signed},  # API Gateway hands the last one on, and all of them beside
        "multiValueHeaders": {"Payment-Ticket": ["a.b.c", signed], "Content-Type": ["application/json"]},
        "requestContext": {"requestId": "r", "httpMethod": "POST"},
        "body": json.dumps(body),
    }
    answer = load("execute").handler(event, context)
    problem = json.loads(answer["body"])
    assert (answer["statusCode"], [error["field"] for error in problem["errors"]]) == (400, ["payment-ticket"])
    assert platform.items() == before


@pytest.mark.parametrize("header", ["a.b.c", "x", "Bearer a.b.c", "é", "x" * 10_000, '"'])
def test_header_that_is_no_ticket_gets_a_challenge(platform: Cloud, call: Call, header: str) -> None:
    channel_id = tickets.opened(platform).channel_id
    body = task("agt_a", task_id=f"{channel_id}.1")
    answer = call("execute", "POST", f"/channels/{channel_id}/tasks", body, headers={"Payment-Ticket": header})
    status, problem, headers = answer
    assert (status, problem["code"], headers["WWW-Authenticate"]) == (401, "ticket_invalid", "Payment-Ticket")
    assert len(problem["detail"]) < 500


def test_refusals_of_channels_are_described_problems(platform: Cloud, call: Call) -> None:
    agent_id = platform.publish(wasm("echo"))
    body = tickets.asked(platform)
    status, opened, _ = call("channels", "POST", "/channels", body)
    assert (status, opened["deposit"], opened["key"]) == (201, "0.25", tickets.jwk())
    path = f"/channels/{opened['channel_id']}"
    assert call("channels", "POST", "/channels", body)[:2] == (201, opened)
    assert call("channels", "POST", "/channels", body | {"tickets": 6})[1]["code"] == "channel_conflict"
    assert call("channels", "POST", "/channels", body | {"salt": "t", "tickets": 99})[1]["code"] == "insufficient_funds"
    assert call("channels", "GET", path)[:2] == (200, opened)
    assert call("channels", "GET", path, user="mallory")[1]["code"] == "not_found"
    assert call("channels", "POST", f"{path}/topups", {"topup_id": "u", "tickets": 1})[1]["amount"] == "0.05"
    assert call("channels", "POST", f"{path}/topups", {"topup_id": "u", "tickets": 2})[1]["code"] == "movement_conflict"
    for query in ({"limit": "101"}, {"limit": "0"}, {"after": "-1"}, {"after": "x"}, {"after": "1000001"}):
        assert call("channels", "GET", f"{path}/tickets", query=query)[0] == 400, query
    assert call("channels", "GET", f"{path}/tickets", query={"after": "1000000"})[0] == 200
    wrong = call("channels", "POST", f"{path}/signed-close", {"order": "a.b.c"}, user=None)
    assert (wrong[0], wrong[2]["WWW-Authenticate"]) == (401, "Payment-Ticket")
    assert call("channels", "POST", f"{path}/close")[1]["state"] == "closing"
    assert call("channels", "POST", f"{path}/topups", {"topup_id": "v", "tickets": 1})[1]["code"] == "channel_closed"
    request = task(agent_id, task_id=f"{opened['channel_id']}.1")
    header = {"Payment-Ticket": tickets.ticket(platform, TaskRequest.model_validate(request))}
    assert call("execute", "POST", f"{path}/tasks", request, headers=header)[1]["code"] == "channel_closed"


def test_direct_payload_may_have_a_ticket(platform: Cloud, context: Any) -> None:
    channel_id, agent_id = tickets.opened(platform).channel_id, platform.publish(wasm("echo"))
    body = task(agent_id, task_id=f"{channel_id}.1")
    signed = tickets.ticket(platform, TaskRequest.model_validate(body))
    done = load("execute").handler(body | {"ticket": signed}, context)
    assert (done["success"], done["payment_method"]) == (True, "ticket")
    for wrong in ("a.b.c", ""):
        with pytest.raises(TicketInvalidError):
            load("execute").handler(body | {"ticket": wrong}, context)
