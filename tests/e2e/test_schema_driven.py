"""Requests that schemathesis makes from the served description: valid ones, odd ones, and ones that break the schemas.

No answer may be a fault of the server, or have a status, media type, header or body that the description does not say.
What is requested is chosen from ids that exist, so that requests also succeed; answers are held to the description as
it is served.
"""

import json
import re
import subprocess
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from local import client, venvs
from local.paths import Stack
from tests import tickets
from tests.e2e.people import User
from tests.support import ROOT, wasm
from tests.waiting import until

SEED = 20261130
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance"
)
EXAMPLE_AGENT = re.compile("agt_[a-z2-7]{16}")
OPERATORS = "^/api/v1/economic/(operations|payouts|health|accounts/.account_id.)"
# These succeed only after a sweep has appended receipts to the log.
NEVER_DONE = {"GET /tasks/{task_id}/proof", "GET /log/tile/{level}/{index}/{width}"}
# No generator signs; and the channel may be closed before it is topped up.
NEVER_DONE |= {"POST /channels/{channel_id}/tasks", "POST /channels/{channel_id}/signed-close"}
NEVER_DONE |= {"POST /channels/{channel_id}/topups"}

Statuses = dict[str, Counter[int]]
"""How often each operation was answered with each status."""


@pytest.fixture(scope="module")
def description(api: Callable[..., httpx.Client], ids: Mapping[str, list[Any]], folder: Path) -> Path:
    """The served description, in which requests name what exists."""
    served = api(None).get("/openapi.json").json()
    text = EXAMPLE_AGENT.sub(ids["agent_id"][0], json.dumps(served))
    document = json.loads(text)
    for operation in (each for methods in document["paths"].values() for each in methods.values()):
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path" and parameter["name"] in ids:
                parameter["schema"] = {"enum": ids[parameter["name"]]}
    task = document["components"]["schemas"]["TaskRequest"]["properties"]
    task["agent_id"]["enum"] = ids["agent_id"][:1]
    task["budget"]["enum"] = ["0.05"]
    task["webhook"] = {"type": "null"}  # nobody else's server is called
    channel = document["components"]["schemas"]["ChannelRequest"]["properties"]
    channel["expires_at"]["enum"] = [tickets.timestamp(time.time_ns() // 1_000_000 + 24 * 60 * 60 * 1_000)]
    channel["ticket_value"]["enum"], channel["key"]["enum"] = ["0.01"], [tickets.jwk()]
    path = folder / "openapi.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where schemathesis works."""
    return tmp_path_factory.mktemp("schema-driven")


@pytest.fixture(scope="module")
def user(api: Callable[..., httpx.Client], deposit: Callable[..., None], bond: Callable[..., None]) -> User:
    """A user with money and a bond."""
    made = User.new(api)
    deposit(made.name, "900000")
    bond(made.name)
    return made


@pytest.fixture(scope="module")
def ids(user: User, echo: str, api: Callable[..., httpx.Client], publish: Callable[..., str]) -> dict[str, list[Any]]:
    """What exists: by parameter."""
    done = user.run(echo, keep_input=True)
    own = publish(wasm("echo"), owner=user.name, limits={"timeout": 3})
    user.run(own)
    runs = until(lambda: user.http.get(f"/agents/{own}/runs").json()["runs"], "the run is not listed")
    clock: Any = SimpleNamespace(now_ms=lambda: time.time_ns() // 1_000_000)
    channels = [user.http.post("/channels", json=tickets.asked(clock, salt=salt)).json() for salt in "abc"]
    moved = {"withdrawal_id": uuid.uuid4().hex, "amount": "1"}
    assert user.http.post("/accounts/me/withdrawals", json=moved).status_code == 201
    waiting = api("treasurer", "ledger:payout").get("/payouts", params={"limit": 100}).json()["payouts"]
    return {
        "agent_id": [echo, own],
        "run_id": [runs[0]["run_id"]],
        "number": [1],
        "channel_id": [channel["channel_id"] for channel in channels],
        "task_id": [done["task_id"]],
        "account_id": ["me"],
        "payout_id": [each["payout_id"] for each in waiting if each["account_id"] == user.name],
    }


def start(stack: Stack, description: Path, report: Path, token: str | None, *words: str) -> subprocess.Popen[str]:
    """Schemathesis, started in an environment of its own. Its threads would hit a fault of Python 3.11 (gh-106905)."""
    command = [venvs.ensure("generators") / "schemathesis", "run", description, f"--url={stack.api_url}"]
    command += [f"--checks={CHECKS}", f"--seed={SEED}", "--no-shrink", "--no-color", "--continue-on-failure"]
    command += ["--workers=1", "--report=ndjson", f"--report-ndjson-path={report}", "--warnings=off", *words]
    command += [f"--header=Authorization: Bearer {token}"] if token else []
    environment = {"PATH": "/usr/bin:/bin", "NO_PROXY": "127.0.0.1", "HOME": str(report.parent), "COLUMNS": "120"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=environment, cwd=report.parent, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def finish(running: subprocess.Popen[str], report: Path) -> Statuses:
    """The statuses by operation, if every answer was as described."""
    said, _ = running.communicate()
    assert running.returncode == 0, f"seed {SEED}\n{said[-6_000:]}"
    found: Statuses = defaultdict(Counter)
    for line in report.read_text().splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for interaction in recorder.get("interactions", {}).values():
            found[recorder["label"].replace(client.PREFIX, "")][interaction["response"]["status_code"]] += 1
    return found


@contextmanager
def resumed(operator: httpx.Client) -> Iterator[None]:
    """Afterwards, tasks are funded again, whatever was requested."""
    try:
        yield
    finally:
        assert operator.post("/operations/funding/resume", json={"reason": "the test is over"}).status_code == 200


@pytest.fixture(scope="module")
def by_users(
    stack: Stack, description: Path, folder: Path, user: User, token: Callable[..., str]
) -> tuple[Statuses, Statuses]:
    """What a user with money was answered, and what nobody was, at the same time."""
    reports = folder / "user.ndjson", folder / "nobody.ndjson"
    rich = start(stack, description, reports[0], token(user.name), "--phases=examples,coverage,fuzzing", "-n3")
    nobody = start(stack, description, reports[1], None, "--phases=examples,fuzzing", "-n3")
    return finish(rich, reports[0]), finish(nobody, reports[1])


def test_a_users_requests_get_described_answers(by_users: tuple[Statuses, Statuses]) -> None:
    """And each operation that needs no scope succeeds at least once: else little would have been tried."""
    answered, _ = by_users
    described = json.loads((ROOT / "layers/runtime/quittance/openapi.json").read_text())["paths"]
    open_to_users = {
        f"{method.upper()} {path.removeprefix(client.PREFIX)}"
        for path, methods in described.items()
        for method, operation in methods.items()
        if not any(scopes for each in operation["security"] for scopes in each.values())
    }
    assert open_to_users <= {*answered}
    never = {name for name in open_to_users if not any(status < 300 for status in answered[name])}
    assert never <= NEVER_DONE


def test_nobodys_requests_get_described_answers(by_users: tuple[Statuses, Statuses]) -> None:
    """Without a token, locked operations answer nothing but 401."""
    _, answered = by_users
    described = json.loads((ROOT / "layers/runtime/quittance/openapi.json").read_text())["paths"]
    for path, methods in described.items():
        for method, operation in methods.items():
            if operation["security"] and {} not in operation["security"]:
                statuses = answered[f"{method.upper()} {path.removeprefix(client.PREFIX)}"]
                assert {*statuses} == {401}, (path, statuses)


def test_an_operators_requests_get_described_answers(
    stack: Stack,
    description: Path,
    folder: Path,
    by_users: tuple[Statuses, Statuses],
    token: Callable[..., str],
    api: Callable[..., httpx.Client],
    ids: dict[str, list[Any]],
) -> None:
    scopes = "ledger:deposit ledger:payout platform:operate health:read"
    text = description.read_text().replace(ids["agent_id"][0], ids["agent_id"][1])  # nobody else's agent is retired
    (folder / "operators.json").write_text(text)
    with resumed(api("operator", "platform:operate")):
        secret, report = token("operator-by-schema", scopes), folder / "operator.ndjson"
        words = (f"--include-path-regex={OPERATORS}", "--phases=examples,coverage", "-n3")
        answered = finish(start(stack, folder / "operators.json", report, secret, *words), report)
    never = {name for name, statuses in answered.items() if not any(status < 300 for status in statuses)}
    assert not never - {"POST /accounts/{account_id}/withdrawals"}, "the operator has no money"
