"""Ids in paths, on every route of `template.yaml`, percent-encoded as a REST API on AWS passes them on.

docs/errors.md describes the rules. `call` passes its path on unchanged.
"""

import re
from typing import Any
from urllib.parse import quote

import pytest

from quittance.ledger.journal import Payout, PayoutState
from tests.described import operations
from tests.functions import test_handlers
from tests.functions.test_handlers import PREFIX, Call, task
from tests.support import FLAT, Cloud, wasm
from tests.template import template
from tests.tickets import jwk

call = test_handlers.call  # the fixture
PLATFORM = "quittance:platform"
DEPOSIT = {"deposit_id": "d-1", "amount": "2"}
WITHDRAWAL = {"withdrawal_id": "w-1", "amount": "0.5"}
REASON = {"reason": "a test"}
CHANNEL = {"salt": "s", "key": jwk(), "ticket_value": "1", "tickets": 1, "expires_at": "2027-01-01T00:00:00Z"}
TASK = {"task_id": "t-1", "agent_id": "agt_x", "input": "", "budget": "1"}

# Each route with its function and a valid body, so that only the path can be wrong.
ROUTES: dict[tuple[str, str], tuple[str, Any]] = {
    ("POST", "/tasks/execute"): ("execute", TASK),
    ("GET", "/tasks/{task_id}/result"): ("result", None),
    ("GET", "/tasks/{task_id}/input"): ("result", None),
    ("GET", "/tasks/{task_id}/proof"): ("result", None),
    ("GET", "/tasks"): ("result", None),
    ("GET", "/agents/{agent_id}/runs"): ("result", None),
    ("GET", "/agents/{agent_id}/runs/{run_id}"): ("result", None),
    ("GET", "/agents/{agent_id}/versions"): ("agents", None),
    ("POST", "/agents/{agent_id}/versions/{number}/activate"): ("agents", None),
    ("PATCH", "/agents/{agent_id}"): ("agents", {"name": "b"}),
    ("GET", "/agents/{agent_id}/card"): ("agents", None),
    ("GET", "/agents/{agent_id}/.well-known/agent-card.json"): ("public", None),
    ("GET", "/accounts/me/statement.csv"): ("accounts", None),
    ("POST", "/agents"): ("agents", {"name": "a", "tariff": FLAT}),
    ("GET", "/agents"): ("agents", None),
    ("GET", "/agents/{agent_id}"): ("agents", None),
    ("GET", "/agents/{agent_id}/estimate"): ("agents", None),
    ("POST", "/agents/{agent_id}/versions"): ("agents", {}),
    ("DELETE", "/agents/{agent_id}"): ("agents", None),
    ("GET", "/accounts/me"): ("accounts", None),
    ("GET", "/accounts/me/statement"): ("accounts", None),
    ("GET", "/accounts/me/bond"): ("accounts", None),
    ("POST", "/accounts/me/bond"): ("accounts", {"bond_id": "b-1", "amount": "0.5"}),
    ("GET", "/accounts/me/bond/statement"): ("accounts", None),
    ("POST", "/accounts/{account_id}/deposits"): ("accounts", DEPOSIT),
    ("POST", "/accounts/{account_id}/withdrawals"): ("accounts", WITHDRAWAL),
    ("GET", "/payouts"): ("accounts", None),
    ("POST", "/payouts/{payout_id}"): ("accounts", {"state": "paid"}),
    ("POST", "/channels"): ("channels", CHANNEL),
    ("GET", "/channels"): ("channels", None),
    ("GET", "/channels/{channel_id}"): ("channels", None),
    ("POST", "/channels/{channel_id}/topups"): ("channels", {"topup_id": "u-1", "tickets": 1}),
    ("POST", "/channels/{channel_id}/close"): ("channels", None),
    ("POST", "/channels/{channel_id}/signed-close"): ("channels", {"order": "a.b.c"}),
    ("GET", "/channels/{channel_id}/tickets"): ("channels", None),
    ("POST", "/channels/{channel_id}/tasks"): ("execute", TASK),
    ("GET", "/operations"): ("operations", None),
    ("POST", "/operations/agents/{agent_id}/retire"): ("operations", REASON),
    ("POST", "/operations/accounts/{account_id}/freeze"): ("operations", REASON),
    ("POST", "/operations/accounts/{account_id}/unfreeze"): ("operations", REASON),
    ("POST", "/operations/funding/pause"): ("operations", REASON),
    ("POST", "/operations/funding/resume"): ("operations", REASON),
    ("GET", "/log/tile/{level}/{index}/{width}"): ("public", None),
    ("GET", "/log/checkpoint"): ("public", None),
    ("GET", "/.well-known/jwks.json"): ("public", None),
    ("GET", "/openapi.json"): ("public", None),
    ("GET", "/docs"): ("public", None),
    ("GET", "/health"): ("health", None),
}
BY_KEY = {("POST", "/channels/{channel_id}/signed-close"), ("POST", "/channels/{channel_id}/tasks")}
PRIVATE = [
    route for route, (function, _) in ROUTES.items() if function not in {"public", "health"} and route not in BY_KEY
]
TICKET = {"Payment-Ticket": "a.b.c"}  # other routes ignore it
SCOPES = "ledger:deposit ledger:payout platform:operate"  # all scopes that a route may need
PARAMETERS = [(*route, name) for route in ROUTES for name in re.findall(r"{(\w+)}", route[1])]
IDS = ["-".join(words) for words in PARAMETERS]
GOOD = {"task_id": "t-1", "agent_id": "agt_x", "account_id": "alice", "level": "0", "index": "0", "width": "1"}
GOOD |= {"run_id": "a" * 26, "number": "1", "channel_id": "chn_" + "a" * 26}
GOOD["payout_id"] = Payout("alice", "w-1", 1, 1, PayoutState.REQUESTED).payout_id

MALFORMED = [
    "%",
    "a%",
    "%4",
    "%zz",
    "%u0041",
    "%FF",
    "%C0%AF",
    "%ED%A0%80",
    "%C3",
    "%00",
    "a%0A",
    "%7F",
    "%C2%85",
    "\n",
]
# Valid encodings of text that is no id of any kind. The last two are as `sam local` sends them.
NO_ID = ["%2E", "%2e%2e", ".", "..", "a%20b", "%C3%A9", "%23", "a%23b", "x" * 3_000, "a b", "é"]
# Valid only as account ids: slashes, quotes, other punctuation, and one id that is encoded twice.
ACCOUNTS = {
    "a%2Fb": "a/b",
    "%2E%2E%2Fme": "../me",
    "%22": '"',
    "'": "'",
    "auth0%7Cdave": "auth0|dave",
    "auth0%7cdave": "auth0|dave",
    "auth0|dave": "auth0|dave",
    "%61lice": "alice",
    "auth0%257Cdave": "auth0%7Cdave",
    "a%2Bb+c": "a+b+c",
    "..a": "..a",
    "ME": "ME",
    "quittance%3Aplatform": PLATFORM,
    PLATFORM: PLATFORM,
    "x" * 255: "x" * 255,
}
NO_TASK = ACCOUNTS.keys() - {"%61lice", "ME", "..a"}
NO_AGENT = ACCOUNTS.keys() - {"%61lice", "ME"} | {"t-1%3Ajudge-agent"}
NO_PAYOUT = NO_AGENT - {"x" * 255}


def filled(path: str, **changed: str) -> str:
    return path.format_map(GOOD | changed)


def errors(answer: tuple[int, dict[str, Any], dict[str, str]]) -> list[str]:
    status, problem, headers = answer
    assert (status, headers["Content-Type"]) == (400, "application/problem+json"), problem
    assert problem["code"] == "invalid_request"
    return [error["field"] for error in problem["errors"]]


def test_table_has_every_route_of_the_template() -> None:
    events = [
        event["Properties"]
        for resource in template()["Resources"].values()
        for event in resource.get("Properties", {}).get("Events", {}).values()
        if resource["Type"] == "AWS::Serverless::Function" and event["Type"] == "Api"
    ]
    assert {(event["Method"], event["Path"].removeprefix(PREFIX)) for event in events} == ROUTES.keys()


@pytest.mark.parametrize(("method", "path", "name"), PARAMETERS, ids=IDS)
def test_malformed_encoding_is_named_in_the_error(
    platform: Cloud, call: Call, method: str, path: str, name: str
) -> None:
    function, body = ROUTES[method, path]
    before = platform.items()
    for raw in MALFORMED:
        answer = call(function, method, filled(path, **{name: raw}), body, scope=SCOPES, headers=TICKET)
        assert errors(answer) == [name], raw
    assert platform.items() == before


@pytest.mark.parametrize(("method", "path", "name"), PARAMETERS, ids=IDS)
def test_invalid_id_is_named_in_the_error(platform: Cloud, call: Call, method: str, path: str, name: str) -> None:
    function, body = ROUTES[method, path]
    before = platform.items()
    others = {"account_id": (), "task_id": NO_TASK, "agent_id": NO_AGENT, "payout_id": NO_PAYOUT}
    for raw in [*NO_ID, *others.get(name, ACCOUNTS)]:
        answer = call(function, method, filled(path, **{name: raw}), body, scope=SCOPES, headers=TICKET)
        assert errors(answer) == [name], raw
    assert platform.items() == before


def test_every_malformed_parameter_is_named(call: Call) -> None:
    assert errors(call("public", "GET", "/log/tile/%/%FF/%00")) == ["level", "index", "width"]


@pytest.mark.parametrize("raw", ACCOUNTS, ids=lambda raw: raw[:20])
def test_deposit_goes_to_the_account_id_decoded_once(platform: Cloud, call: Call, raw: str) -> None:
    account, before = ACCOUNTS[raw], platform.ledger.available_micro(ACCOUNTS[raw])
    total = platform.total_micro()
    path = f"/accounts/{raw}/deposits"
    status, deposited, _ = call("accounts", "POST", path, DEPOSIT, user="bank", scope="ledger:deposit")
    assert (status, deposited["account_id"]) == (201, account)
    assert platform.ledger.available_micro(account) == before + 2_000_000
    assert platform.total_micro() == total + 2_000_000


@pytest.mark.parametrize("raw", ACCOUNTS, ids=lambda raw: raw[:20])
def test_withdrawal_needs_the_callers_own_decoded_id(platform: Cloud, call: Call, raw: str) -> None:
    account, path = ACCOUNTS[raw], f"/accounts/{raw}/withdrawals"
    platform.deposit(account, 1_000_000)
    platform.deposit("mallory", 1_000_000)
    before = platform.ledger.available_micro(account)
    assert call("accounts", "POST", path, WITHDRAWAL, user="mallory")[0] == 404
    status, withdrawn, _ = call("accounts", "POST", path, WITHDRAWAL, user=account)
    assert (status, withdrawn["account_id"]) == (201, account)
    assert platform.ledger.available_micro(account) == before - 500_000
    assert platform.ledger.available_micro("mallory") == 1_000_000


@pytest.mark.parametrize("raw", ["me", "%6De", "m%65"])
def test_me_is_the_callers_own_account(platform: Cloud, call: Call, raw: str) -> None:
    path = f"/accounts/{raw}"
    deposited = call("accounts", "POST", f"{path}/deposits", DEPOSIT, user="bank", scope="ledger:deposit")
    assert (deposited[0], deposited[1]["account_id"]) == (201, "bank")
    withdrawn = call("accounts", "POST", f"{path}/withdrawals", WITHDRAWAL, user="bank")
    assert (withdrawn[0], withdrawn[1]["account_id"]) == (201, "bank")
    assert platform.ledger.available_micro("bank") == 1_500_000
    assert platform.ledger.available_micro("me") == 0


@pytest.mark.parametrize("path", ["/agents", "/tasks/t-1/result", "/tasks/t-1/proof"])
@pytest.mark.parametrize("account", ["me", ".", ".."])
def test_reserved_name_is_no_account_in_a_query(call: Call, path: str, account: str) -> None:
    name = "owner" if path == "/agents" else "user"
    assert errors(call(path.split("/")[1].replace("tasks", "result"), "GET", path, query={name: account})) == [name]


@pytest.mark.parametrize(("method", "path"), PRIVATE, ids=lambda word: word)
def test_subject_that_is_no_account_id_is_unauthenticated(platform: Cloud, call: Call, method: str, path: str) -> None:
    """Above all `me`: `GET /accounts/me` must be the caller's own account, whoever calls."""
    function, body = ROUTES[method, path]
    before = platform.items()
    for subject in ("me", ".", "..", "a b", "é", "a#b", "a\n", "x" * 256):
        status, problem, _ = call(function, method, filled(path), body, user=subject, scope=SCOPES)
        assert (status, problem["code"]) == (401, "unauthenticated"), subject
    assert platform.items() == before


@pytest.mark.parametrize("subject", sorted({*ACCOUNTS.values()}), ids=lambda subject: subject[:20])
def test_every_route_serves_unusual_subjects(platform: Cloud, call: Call, subject: str) -> None:
    """Callers whose subject has quotes, slashes or percent signs, and the platform's own account."""
    raw, user = quote(subject, safe=""), {"user": subject}
    assert call("accounts", "POST", f"/accounts/{raw}/deposits", DEPOSIT, scope="ledger:deposit")[0] == 201
    agent_id = platform.publish(wasm("echo"), owner=subject)
    done = call("execute", "POST", "/tasks/execute", task(agent_id), **user)
    assert (done[0], done[1]["success"]) == (200, True)
    assert call("result", "GET", "/tasks/t-1/result", **user)[:2] == done[:2]
    assert call("result", "GET", "/tasks/t-1/result", user="mallory", query={"user": subject})[0] == 404
    assert call("result", "GET", "/tasks/t-1/proof", **user)[1]["code"] == "not_logged"
    me = call("accounts", "GET", "/accounts/me", **user)[1]
    assert (me["account_id"], call("accounts", "GET", "/accounts/me/statement", **user)[1]["account_id"]) == (
        subject,
        subject,
    )
    assert call("agents", "GET", f"/agents/{agent_id}", **user)[1]["owner"] == subject
    listed = call("agents", "GET", "/agents", query={"owner": subject}, **user)[1]["agents"]
    assert [agent["agent_id"] for agent in listed] == [agent_id]
    assert call("agents", "GET", f"/agents/{agent_id}/estimate", **user)[0] == 200
    assert call("agents", "POST", f"/agents/{agent_id}/versions", {}, **user)[0] == 201
    assert call("agents", "POST", f"/agents/{agent_id}/versions", {}, user="mallory")[0] == 404
    assert call("agents", "DELETE", f"/agents/{agent_id}", **user)[1]["state"] == "retired"
    assert call("accounts", "POST", f"/accounts/{raw}/withdrawals", WITHDRAWAL, **user)[0] == 201


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/accounts/me%2Fstatement"),
        ("GET", "/accounts%2Fme"),
        ("POST", "/accounts/a/b/deposits"),
        ("POST", "/accounts//deposits"),
        ("POST", "/accounts/x%2Fdeposits"),
        ("GET", "/accounts/auth0%7Cdave"),
    ],
)
def test_encoded_slash_matches_no_route(call: Call, method: str, path: str) -> None:
    status, problem, _ = call("accounts", method, path, DEPOSIT if method == "POST" else None, scope="ledger:deposit")
    assert (status, problem["code"]) == (404, "not_found")


@pytest.mark.parametrize("raw", ["t%2D1", "%74-1", "t-%31"])
def test_task_is_found_by_any_encoding_of_its_id(platform: Cloud, call: Call, raw: str) -> None:
    agent_id = platform.publish(wasm("echo"))
    done = call("execute", "POST", "/tasks/execute", task(agent_id))
    assert call("result", "GET", f"/tasks/{raw}/result")[:2] == done[:2]


def test_agent_and_tile_are_found_by_encoded_paths(platform: Cloud, call: Call) -> None:
    agent_id = platform.publish(wasm("echo"))
    assert call("agents", "GET", f"/agents/{agent_id.replace('_', '%5F')}")[1]["agent_id"] == agent_id
    encoded, plain = call("public", "GET", "/log/tile/%30/%30/%31"), call("public", "GET", "/log/tile/0/0/1")
    assert encoded == plain
    assert plain[0] == 404, "the log is empty"


@pytest.mark.parametrize(("method", "path"), PRIVATE)
def test_described_scopes_are_the_ones_that_routes_demand(call: Call, method: str, path: str) -> None:
    function, body = ROUTES[method, path]
    described = next(each for its, where, each in operations() if (its, where) == (method, path))
    (scopes,) = (scopes for each in described["security"] for scopes in each.values())
    status, answer, _ = call(function, method, re.sub(r"{\w+}", "agt_x", path), body)
    assert (status == 403) is bool(scopes)
    assert [answer["required_scope"]] == scopes if scopes else "required_scope" not in answer
