"""Every refusal of the API over HTTP: its status, and a problem that names what is wrong but no internals.

No refusal moves credits. None is a 5xx, because the client can correct whatever it sent.
"""

import base64
import hashlib
import hmac
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from local import issuer
from local.paths import Stack
from quittance.api import identity
from tests.e2e.people import CREDIT, Ledger, User, task

MIB = 2**20
JSON = {"Content-Type": "application/json"}
INTERNALS = re.compile(
    r"traceback|exception|\.py\b|botocore|boto3|pydantic|dynamodb|arn:aws|ministack|/tmp/|ACCT#|ESC#", re.I
)


@pytest.fixture(autouse=True)
def _nothing_moved(alice: User, echo: str, ledger: Ledger) -> Iterator[None]:
    """No refusal moves credits: alice has her whole deposit and never had an escrow."""
    yield
    hers = [
        item
        for item in ledger.items()
        if alice.name in {item["pk"].partition("#")[2], item.get("account")} and not item["pk"].startswith("IN#")
    ]
    assert [(item["pk"], item["available"]) for item in hers] == [(f"ACCT#{alice.name}", CREDIT)]


def assert_refused(answer: httpx.Response, status: int, code: str, *named: str) -> dict[str, Any]:
    """Assert that the answer is this problem (RFC 9457) and that its `errors` name these fields; return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert (problem["type"], problem["status"]) == (f"urn:quittance:problem:{code}", status)
    assert problem["title"]
    assert problem["detail"]
    assert not INTERNALS.search(answer.text), answer.text
    errors = problem.get("errors", [])
    for name in named:
        assert any(name in {error["field"], *re.findall(r"\w+", error["message"])} for error in errors), (name, errors)
    return problem


# 401: the gateway's authorizer.


def hs256(stack: Stack, token: Callable[..., str]) -> str:
    """A token signed by HMAC with the public key as the shared secret (algorithm confusion)."""
    header, body, _ = token("alice").split(".")
    fields = json.loads(base64.urlsafe_b64decode(header + "==")) | {"alg": "HS256"}
    message = base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=") + b"." + body.encode()
    public = issuer.load_key(Path(stack.issuer_key)).public_key()
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = base64.urlsafe_b64encode(hmac.digest(secret, message, hashlib.sha256)).rstrip(b"=")
    return (message + b"." + signature).decode()


def other_subject(stack: Stack, token: Callable[..., str]) -> str:
    """A token with the claims of another user and a signature that does not cover them."""
    header, _, signature = token("mallory").split(".")
    return ".".join((header, token("alice").split(".")[1], signature))


TOKENS: dict[str, Callable[[Stack, Callable[..., str]], str | None]] = {
    "no header": lambda _stack, _token: None,
    "no token": lambda _stack, _token: "Bearer",
    "other scheme": lambda _stack, token: f"Basic {token('alice')}",
    "no scheme": lambda _stack, token: token("alice"),
    "garbage": lambda _stack, _token: "Bearer garbage",
    "garbage in three parts": lambda _stack, _token: "Bearer a.b.c",
    "expired": lambda _stack, token: f"Bearer {token('alice', exp=int(time.time()) - 60)}",
    "never expires": lambda _stack, token: f"Bearer {token('alice', exp=None)}",
    "not yet": lambda _stack, token: f"Bearer {token('alice', nbf=int(time.time()) + 600)}",
    "wrong audience": lambda _stack, token: f"Bearer {token('alice', aud='another')}",
    "no audience": lambda _stack, token: f"Bearer {token('alice', aud=None)}",
    "wrong issuer": lambda _stack, token: f"Bearer {token('alice', iss='https://issuer.example')}",
    "no subject": lambda _stack, token: f"Bearer {token('alice', sub=None)}",
    "subject with the separator of keys": lambda _stack, token: f"Bearer {token('alice#1')}",
    "subject that is a word of the paths": lambda _stack, token: f"Bearer {token('me')}",
    "platform's subject without the operator's scope": lambda stack, token: f"Bearer {token(stack.platform_account)}",
    "subject too long": lambda _stack, token: f"Bearer {token('a' * 256)}",
    "algorithm none": lambda _stack, token: f"Bearer {token('alice', alg='none', key=None)}",
    "HS256 with the public key": lambda stack, token: f"Bearer {hs256(stack, token)}",
    "foreign key under our key id": lambda _s, token: (
        f"Bearer {token('a', key=ec.generate_private_key(ec.SECP256R1()))}"
    ),
    "claims of another user": lambda stack, token: f"Bearer {other_subject(stack, token)}",
    "ID token": lambda _stack, token: f"Bearer {token('alice', nonce='n', at_hash='x')}",
}


@pytest.mark.parametrize(
    "kind",
    [
        "no header", "expired", "wrong audience", "wrong issuer", "algorithm none",
        "HS256 with the public key", "foreign key under our key id", "ID token",
    ],
)  # fmt: skip
def test_401_from_the_gateways_authorizer(
    stack: Stack, token: Callable[..., str], api: Callable[..., httpx.Client], echo: str, ledger: Ledger, kind: str
) -> None:
    """Only some kinds of token; the test of the health check has the others."""
    header, before = TOKENS[kind](stack, token), len(ledger.items("ESC#"))
    headers = {} if header is None else {"Authorization": header}
    answer = api(None).post("/tasks/execute", json=task(echo), headers=headers)
    assert_refused(answer, 401, "unauthenticated")
    assert len(ledger.items("ESC#")) == before


@pytest.mark.parametrize("kind", [kind for kind in TOKENS if kind != "no header"])
def test_401_for_every_invalid_token(
    stack: Stack, token: Callable[..., str], api: Callable[..., httpx.Client], kind: str
) -> None:
    """Through the deep health check, which verifies tokens with the authorizer's code and answers itself."""
    answer = api(None).get("/health", headers={"Authorization": TOKENS[kind](stack, token) or ""})
    assert_refused(answer, 401, "unauthenticated")


REASONS = {
    "garbage": identity.MALFORMED,
    "expired": identity.EXPIRED,
    "never expires": "The token has no claim exp.",
    "not yet": identity.EARLY,
    "wrong audience": identity.OTHER_AUDIENCE,
    "wrong issuer": identity.OTHER_ISSUER,
    "subject that is a word of the paths": identity.NO_ACCOUNT,
    "platform's subject without the operator's scope": identity.NO_ACCOUNT,
    "algorithm none": identity.UNSIGNED,
    "foreign key under our key id": identity.UNSIGNED,
    "ID token": identity.NO_ACCESS_TOKEN,
}


@pytest.mark.parametrize("kind", REASONS)
def test_401_says_which_check_failed(
    stack: Stack, token: Callable[..., str], api: Callable[..., httpx.Client], kind: str
) -> None:
    """RFC 6750 §3.1, also from the gateway's cache, and from the health check, whose header a REST API renames."""
    challenge = f'Bearer error="invalid_token", error_description="{REASONS[kind]}"'
    headers = {"Authorization": TOKENS[kind](stack, token) or ""}
    for _ in range(2):
        answer = api(None).get("/accounts/me", headers=headers)
        assert assert_refused(answer, 401, "unauthenticated")["detail"].startswith(REASONS[kind])
        assert answer.headers.get("WWW-Authenticate") == challenge
    deep = api(None).get("/health", headers=headers)
    assert deep.json() == answer.json()
    assert deep.headers.get("x-amzn-Remapped-WWW-Authenticate") == challenge
    assert "WWW-Authenticate" not in deep.headers


@pytest.mark.parametrize("kind", ["no header", "no token", "other scheme", "no scheme"])
def test_401_without_a_token_names_only_the_scheme(
    stack: Stack, token: Callable[..., str], api: Callable[..., httpx.Client], kind: str
) -> None:
    """RFC 6750 §3.1: no error code if the request has no token."""
    header = TOKENS[kind](stack, token)
    answer = api(None).get("/accounts/me", headers={} if header is None else {"Authorization": header})
    assert_refused(answer, 401, "unauthenticated")
    assert answer.headers.get("WWW-Authenticate") == "Bearer"


@pytest.mark.parametrize("path", ["/agents", "/tasks/t/result", "/agents/agt_x"])
def test_401_on_routes_that_need_a_token(api: Callable[..., httpx.Client], path: str) -> None:
    assert_refused(api(None).get(path), 401, "unauthenticated")


# 403: a scope is missing.


def test_403_without_the_scope(alice: User) -> None:
    deposit = alice.http.post(f"/accounts/{alice.name}/deposits", json={"deposit_id": "d", "amount": "1"})
    assert assert_refused(deposit, 403, "missing_scope")["required_scope"] == "ledger:deposit"
    assert assert_refused(alice.http.get("/health"), 403, "missing_scope")["required_scope"] == "health:read"


# 400, 413, 422: the body of a task. Each budget is the JSON text in the body.

BUDGETS = [
    '"-0.01"', "-0.01", '"0"', "0", "-0", '"0.000000"', '"0.0000001"', "0.0000001", "1e-7", '"1.0000000"',
    '"1000000.000001"', "1000000.000001", "99999999999999999999", "1e300", "1e999999999", '"1e3"', '"NaN"',
    '"Infinity"', '""', '" 1"', '"1 "', '"+1"', '"1,5"', '".5"', '"1."', '"0x10"', '"\u0661"', "null", "true", "[]",
    "{}",
]  # fmt: skip


@pytest.mark.parametrize("budget", BUDGETS)
def test_400_for_a_budget_that_is_not_an_amount(alice: User, echo: str, budget: str) -> None:
    body = json.dumps(task(echo)).replace('"0.05"', budget)
    assert_refused(alice.http.post("/tasks/execute", content=body, headers=JSON), 400, "invalid_request", "budget")


@pytest.mark.parametrize("budget", ["NaN", "Infinity", "-Infinity", "1.", "01", "+1"])
def test_400_for_a_budget_that_is_not_json(alice: User, echo: str, budget: str) -> None:
    body = json.dumps(task(echo)).replace('"0.05"', budget)
    assert_refused(alice.http.post("/tasks/execute", content=body, headers=JSON), 400, "invalid_request", "body")


FIELDS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"task_id": None}, ("task_id",)),
    ({"agent_id": None}, ("agent_id",)),
    ({"budget": None}, ("budget",)),
    ({"input": None}, ("input",)),
    ({"task_id": None, "agent_id": None, "budget": None, "input": None}, ("task_id", "agent_id", "budget", "input")),
    ({"task_id": "", "agent_id": "", "budget": "", "timeout": 0}, ("task_id", "agent_id", "budget", "timeout")),
    ({"user_id": "bob"}, ("user_id",)),
    ({"Budget": "1", "fee": "0"}, ("Budget", "fee")),
    ({"task_id": "a b"}, ("task_id",)),
    ({"task_id": "a/b"}, ("task_id",)),
    ({"task_id": "ü"}, ("task_id",)),
    ({"task_id": "t" * 129}, ("task_id",)),
    ({"task_id": 7}, ("task_id",)),
    ({"agent_id": "a#b"}, ("agent_id",)),
    ({"agent_id": "a" * 65}, ("agent_id",)),
    ({"timeout": 0}, ("timeout",)),
    ({"timeout": -1}, ("timeout",)),
    ({"timeout": 601}, ("timeout",)),
    ({"timeout": 1.5}, ("timeout",)),
    ({"timeout": "5"}, ("timeout",)),
    ({"timeout": True}, ("timeout",)),
    ({"input_base64": "aGVsbG8="}, ("input", "input_base64")),
    ({"input": None, "input_base64": "*"}, ("input_base64",)),
    ({"input": None, "input_base64": "aGVsbG8"}, ("input_base64",)),
    ({"input": None, "input_base64": 5}, ("input_base64",)),
    ({"input": "\ud800"}, ("input",)),
    ({"input": {"deep": "\ud800"}}, ("input",)),
]


@pytest.mark.parametrize(("change", "named"), FIELDS, ids=lambda value: json.dumps(value)[:60])
def test_400_names_every_invalid_field(alice: User, echo: str, change: dict[str, Any], named: tuple[str, ...]) -> None:
    body = json.dumps(task(echo, **change))
    assert_refused(alice.http.post("/tasks/execute", content=body, headers=JSON), 400, "invalid_request", *named)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"}", b"[]", b"null", b'"text"', b"1", b"{'task_id': 't'}", b'{"task_id": "t",}', b"\xff\xfe{}",
        b"[" * 65 + b"]" * 65, b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000, b'{"input": 1e400}', b"task_id=t",
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_400_for_a_body_that_is_not_an_object(alice: User, body: bytes) -> None:
    answer = alice.http.post("/tasks/execute", content=body, headers=JSON)
    assert_refused(answer, 400, "invalid_request")
    assert answer.json()["errors"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input": "x" * (MIB + 1)}, "input"),
        ({"input": "ü" * (MIB // 2 + 1)}, "input"),
        ({"input": ["x" * (MIB - 3)]}, "input"),
        ({"input": None, "input_base64": base64.b64encode(bytes(MIB + 1)).decode()}, "input_base64"),
    ],
    ids=["text", "bytes of text", "JSON", "base64"],
)
def test_413_one_byte_over_the_limit(alice: User, echo: str, change: dict[str, Any], field: str) -> None:
    problem = assert_refused(alice.execute(echo, **change), 413, "payload_too_large", field)
    assert problem["bytes_max"] == MIB


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", "json"],
)
def test_415_for_a_content_type_other_than_json(alice: User, echo: str, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    answer = alice.http.post("/tasks/execute", content=json.dumps(task(echo)), headers=headers)
    assert_refused(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_content_type_may_have_case_and_parameters(alice: User, content_type: str) -> None:
    """Media types are case-insensitive and may have parameters (RFC 9110 §8.3.1)."""
    answer = alice.http.post("/tasks/execute", content=b"{}", headers={"Content-Type": content_type})
    assert_refused(answer, 400, "invalid_request", "task_id")


def test_422_for_a_low_budget_or_a_long_timeout(alice: User, echo: str) -> None:
    low = assert_refused(alice.execute(echo, budget="0.009999"), 422, "budget_too_low", "budget")
    assert low["least_price"] == "0.01"
    assert_refused(alice.execute(echo, timeout=26), 422, "timeout_too_long", "timeout")


# 402, 404, 409: the request is valid, but cannot be carried out.


@pytest.mark.parametrize("budget", ["1.000001", "1000000"])
def test_402_names_available_and_required_credits(alice: User, echo: str, budget: str) -> None:
    problem = assert_refused(alice.execute(echo, budget=budget), 402, "insufficient_funds")
    assert (problem["available"], problem["required"]) == ("1", budget)


def test_402_for_an_account_without_any_deposit(api: Callable[..., httpx.Client], echo: str) -> None:
    problem = assert_refused(User.new(api).execute(echo), 402, "insufficient_funds")
    assert (problem["available"], problem["required"]) == ("0", "0.05")


def test_402_for_publishing_without_a_bond(api: Callable[..., httpx.Client]) -> None:
    agent = {"name": "x", "tariff": {"type": "flat", "price": "0"}}
    problem = assert_refused(User.new(api).http.post("/agents", json=agent), 402, "bond_required")
    assert (problem["bond"], problem["required"]) == ("0", "1")


def test_409_while_the_agent_has_no_module(
    alice: User, api: Callable[..., httpx.Client], bond: Callable[..., None]
) -> None:
    owner = User.new(api)
    bond(owner.name)
    registered = owner.http.post("/agents", json={"name": "x", "tariff": {"type": "flat", "price": "0"}})
    problem = assert_refused(alice.execute(registered.json()["agent_id"]), 409, "agent_not_ready")
    assert problem["state"] == "awaiting_upload"


def test_404_for_another_users_task(
    alice: User, api: Callable[..., httpx.Client], deposit: Callable[..., None], echo: str
) -> None:
    bob = User.new(api, deposit)
    bob.run(echo, task_id="t")
    for path in ("/tasks/t/result", f"/tasks/t/result?user={bob.name}", "/tasks/never/result"):
        assert bob.name not in assert_refused(alice.http.get(path), 404, "not_found")["detail"]


# The other routes.

LONG, FLAT = "x" * 3_000, {"type": "flat", "price": "1"}
OTHERS: list[tuple[str, str, Any, int, str, tuple[str, ...]]] = [
    ("GET", "/nothing", None, 404, "not_found", ()),
    ("GET", "/../../etc/passwd", None, 404, "not_found", ()),
    ("PUT", "/accounts/me", {}, 404, "not_found", ()),
    ("GET", "/tasks/execute", None, 404, "not_found", ()),
    ("GET", "/tasks//result", None, 404, "not_found", ()),
    ("GET", "/tasks/a%20b/result", None, 400, "invalid_request", ("task_id",)),
    ("GET", "/tasks/%23%00/result", None, 400, "invalid_request", ("task_id",)),
    ("GET", "/tasks/%FF/proof", None, 400, "invalid_request", ("task_id",)),
    ("GET", "/tasks/a%2Fb/result", None, 400, "invalid_request", ("task_id",)),
    ("GET", f"/tasks/{LONG}/result", None, 400, "invalid_request", ("task_id",)),
    ("GET", "/tasks/t/result?user=", None, 400, "invalid_request", ("user",)),
    ("GET", "/tasks/t/result?user=a%23b", None, 400, "invalid_request", ("user",)),
    ("GET", f"/tasks/t/result?user={LONG}", None, 400, "invalid_request", ("user",)),
    ("GET", "/agents/agt_unknown", None, 404, "not_found", ()),
    ("GET", "/agents/%23", None, 400, "invalid_request", ("agent_id",)),
    ("GET", f"/agents/{LONG}", None, 400, "invalid_request", ("agent_id",)),
    ("DELETE", "/agents/agt_unknown", None, 404, "not_found", ()),
    ("DELETE", f"/agents/{LONG}", None, 400, "invalid_request", ("agent_id",)),
    ("POST", "/agents/agt_unknown/versions", {}, 404, "not_found", ()),
    ("POST", f"/agents/{LONG}/versions", {}, 400, "invalid_request", ("agent_id",)),
    ("GET", "/agents?limit=0", None, 400, "invalid_request", ("limit",)),
    ("GET", "/agents?limit=101", None, 400, "invalid_request", ("limit",)),
    ("GET", "/agents?limit=ten", None, 400, "invalid_request", ("limit",)),
    ("GET", "/agents?limit=1&limit=2", None, 400, "invalid_request", ("limit",)),
    ("GET", "/agents?owner=", None, 400, "invalid_request", ("owner",)),
    ("GET", "/agents?owner=me", None, 400, "invalid_request", ("owner",)),
    ("GET", "/agents?after=junk", None, 400, "invalid_request", ("after",)),
    ("GET", "/agents?after=-1~agt_x", None, 400, "invalid_request", ("after",)),
    ("GET", f"/agents?after={'9' * 50}~agt_x", None, 400, "invalid_request", ("after",)),
    ("GET", f"/agents?after={'9' * 5_000}~agt_x", None, 400, "invalid_request", ("after",)),
    ("POST", "/agents", {}, 400, "invalid_request", ("name", "tariff")),
    ("POST", "/agents", [], 400, "invalid_request", ()),
    ("POST", "/agents", {"name": " ", "tariff": FLAT}, 400, "invalid_request", ("name",)),
    ("POST", "/agents", {"name": "x" * 101, "tariff": FLAT}, 400, "invalid_request", ("name",)),
    ("POST", "/agents", {"name": "x", "tariff": FLAT, "owner": "bob"}, 400, "invalid_request", ("owner",)),
    ("POST", "/agents", {"name": "x", "tariff": {}}, 400, "invalid_request", ("tariff",)),
    ("POST", "/agents", {"name": "x", "tariff": {"type": "free"}}, 400, "invalid_request", ("tariff",)),
    ("POST", "/agents", {"name": "x", "tariff": {"type": "flat"}}, 400, "invalid_request", ("tariff.price",)),
    (
        "POST", "/agents", {"name": "x", "tariff": FLAT | {"price": "-1", "base": "1"}},
        400, "invalid_request", ("tariff.price", "tariff.base"),
    ),
    (
        "POST", "/agents", {"name": "x", "tariff": FLAT, "limits": {"memory_mib": 1025, "timeout": 0, "fuel": 0}},
        400, "invalid_request", ("limits.memory_mib", "limits.timeout", "limits.fuel"),
    ),
    ("GET", "/accounts/me/statement?limit=0", None, 400, "invalid_request", ("limit",)),
    ("GET", "/accounts/me/statement?limit=101", None, 400, "invalid_request", ("limit",)),
    ("GET", "/accounts/me/statement?after=yesterday", None, 400, "invalid_request", ("after",)),
    ("GET", f"/accounts/me/statement?after=1~task~{LONG}", None, 400, "invalid_request", ("after",)),
    ("POST", "/accounts/me/withdrawals", {}, 400, "invalid_request", ("withdrawal_id", "amount")),
    ("POST", "/accounts/me/withdrawals", {"withdrawal_id": "w", "amount": "-1"}, 400, "invalid_request", ("amount",)),
    ("POST", "/accounts/me/withdrawals", {"withdrawal_id": "w", "amount": "0"}, 400, "invalid_request", ("amount",)),
    ("POST", "/accounts/me/withdrawals", {"withdrawal_id": "w", "amount": "2"}, 402, "insufficient_funds", ()),
    ("POST", "/accounts/bank/withdrawals", {"withdrawal_id": "w", "amount": "1"}, 404, "not_found", ()),
    ("POST", "/accounts/x/deposits", {"deposit_id": "d", "amount": "1"}, 403, "missing_scope", ()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "named"),
    OTHERS,
    ids=[f"{method} {path[:40]} {json.dumps(body)[:60]}" for method, path, body, *_ in OTHERS],
)
def test_refusals_of_other_routes(
    alice: User, method: str, path: str, body: Any, status: int, code: str, named: tuple[str, ...]
) -> None:
    assert_refused(alice.http.request(method, path, json=body), status, code, *named)


@pytest.mark.parametrize(
    ("account", "body", "named"),
    [
        ("x" * 256, {"deposit_id": "d", "amount": "1"}, ("account_id",)),
        ("%C3%A9", {"deposit_id": "d", "amount": "1"}, ("account_id",)),
        ("a%00", {"deposit_id": "d", "amount": "1"}, ("account_id",)),
        ("x", {}, ("deposit_id", "amount")),
        ("x", {"deposit_id": "a#b", "amount": "1"}, ("deposit_id",)),
        ("x", {"deposit_id": "d" * 129, "amount": "1"}, ("deposit_id",)),
        ("x", {"deposit_id": "d", "amount": "1000000000.000001"}, ("amount",)),
        ("x", {"deposit_id": "d", "amount": True}, ("amount",)),
        ("x", {"deposit_id": "d", "amount": "1", "currency": "EUR"}, ("currency",)),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_400_for_an_invalid_deposit(
    api: Callable[..., httpx.Client], ledger: Ledger, account: str, body: dict[str, Any], named: tuple[str, ...]
) -> None:
    total = ledger.total()
    answer = api("bank", "ledger:deposit").post(f"/accounts/{account}/deposits", json=body)
    assert_refused(answer, 400, "invalid_request", *named)
    assert ledger.total() == total


def test_an_unknown_agent_is_not_found(alice: User) -> None:
    problem = assert_refused(alice.execute(f"agt_{uuid.uuid4().hex[:16]}"), 404, "not_found")
    assert "agt_" in problem["detail"]
