"""The other entry points: direct invocation, the sweep's event, and the public routes."""

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from local.client import PREFIX
from local.cloud import CREDENTIALS
from local.paths import Stack
from quittance.proof import receipt, statement
from tests.e2e import people
from tests.e2e.people import CREDIT, Ledger, User, sweep_until_credited, task
from tests.support import ROOT, wasm

PAYLOAD = (ROOT / "events" / "execute-direct.json").read_text()


@pytest.fixture
def alice(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> User:
    return User.new(api, deposit)


@pytest.fixture(scope="module")
def invoke(stack: Stack, aws: Callable[[str], Any]) -> Callable[[str, Any], tuple[Any, bool]]:
    """`invoke(function, payload)`: the function's answer, and whether that is an error."""
    return lambda function, payload: people.invoke(aws("lambda"), stack.functions[function], payload)


Invoke = Callable[[str, Any], tuple[Any, bool]]


def test_a_direct_task_equals_the_same_task_over_http(
    alice: User, invoke: Invoke, publish: Callable[..., str], balance: Callable[[str], int], ledger: Ledger
) -> None:
    total, agent = ledger.total(), publish(wasm("wordcount"))
    payload = PAYLOAD.replace('"alice"', f'"{alice.name}"').replace("agt_aaaaaaaaaaaaaaaa", agent)
    done, failed = invoke("ExecuteFunction", payload)
    assert not failed
    assert (done["success"], done["escrow_status"], json.loads(done["output"])["words"]) == (True, "released", 6)
    assert balance(alice.name) == CREDIT - 10_000
    body = {name: value for name, value in json.loads(payload).items() if name != "user_id"}
    assert alice.http.post("/tasks/execute", json=body).json() == done
    assert alice.http.get(f"/tasks/{body['task_id']}/result").json() == done
    assert invoke("ExecuteFunction", payload) == (done, False)
    assert (balance(alice.name), ledger.total()) == (CREDIT - 10_000, total)


def test_a_direct_agent_failure_is_an_answer_not_an_error(
    alice: User, invoke: Invoke, publish: Callable[..., str], balance: Callable[[str], int]
) -> None:
    done, failed = invoke("ExecuteFunction", {"user_id": alice.name, **task(publish(wasm("failing")))})
    assert (failed, done["success"], done["error"]["code"], done["escrow_status"]) == (
        False, False, "exit_code", "refunded",
    )  # fmt: skip
    assert balance(alice.name) == CREDIT


@pytest.mark.parametrize(
    "change",
    [{"user_id": None}, {"user_id": "a#b", "budget": "0"}, {"budget": "1.000001"}, {"agent_id": "agt_unknown"}],
    ids=lambda change: str(change)[:40],
)
def test_a_direct_refusal_is_an_error_and_moves_no_credits(  # few cases: the local cloud ends a function that raises
    alice: User,
    invoke: Invoke,
    publish: Callable[..., str],
    balance: Callable[[str], int],
    ledger: Ledger,
    change: dict[str, Any],
) -> None:
    total, payload = ledger.total(), {"user_id": alice.name, **task(publish(wasm("echo")), **change)} | change
    answer, failed = invoke("ExecuteFunction", {name: value for name, value in payload.items() if value is not None})
    assert failed, answer
    assert (balance(alice.name), ledger.total()) == (CREDIT, total)
    assert ledger.escrow(alice.name, payload["task_id"]) is None


# The functions that the stack's outputs name.

SDK = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "howto" / "sdk.md").read_text(), re.DOTALL)


def test_the_output_names_an_alias_and_its_version_runs(
    alice: User, publish: Callable[..., str], outputs: dict[str, str], aws: Callable[[str], Any], stack: Stack
) -> None:
    """The alias's version runs and not `$LATEST`, which has no rollback and no snapshot."""
    assert {f"{path.name.capitalize()}Function" for path in (ROOT / "functions").iterdir()} == stack.functions.keys()
    for name, called in stack.functions.items():
        assert re.fullmatch(r"arn:aws:lambda:[\w-]+:\d{12}:function:[\w-]+:live", called), name
    arn = outputs["ExecuteFunction"]
    assert arn == stack.functions["ExecuteFunction"]
    payload = json.dumps({"user_id": alice.name, **task(publish(wasm("echo")))}).encode()
    answer = aws("lambda").invoke(FunctionName=arn, Payload=payload)
    assert json.loads(answer["Payload"].read())["success"] is True
    version = aws("lambda").get_alias(FunctionName=arn.removesuffix(":live"), Name="live")["FunctionVersion"]
    assert answer["ExecutedVersion"] == version != "$LATEST"


def test_the_documented_program_runs_a_task(
    alice: User, publish: Callable[..., str], stack: Stack, balance: Callable[[str], int]
) -> None:
    """The program of docs/howto/sdk.md, changed only in its user and agent."""
    (program,) = SDK
    for placeholder, real in {'"alice"': f'"{alice.name}"', "agt_aaaaaaaaaaaaaaaa": publish(wasm("wordcount"))}.items():
        assert placeholder in program
        program = program.replace(placeholder, real)
    env = CREDENTIALS | {"AWS_ENDPOINT_URL": stack.endpoint_url, "AWS_DEFAULT_REGION": stack.region}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True ")
    assert balance(alice.name) == CREDIT - 10_000


# The sweep.


def test_the_sweep_credits_tasks_of_several_owners_once(
    alice: User,
    api: Callable[..., httpx.Client],
    publish: Callable[..., str],
    balance: Callable[[str], int],
    sweep: Callable[[], None],
    ledger: Ledger,
    invoke: Invoke,
    stack: Stack,
) -> None:
    owners = [User.new(api) for _ in range(2)]
    agents = [publish(wasm("echo"), owner=owner.name) for owner in owners]
    sweep_until_credited(sweep, ledger)
    platform, total = balance(stack.platform_account), ledger.total()
    for agent in agents:
        for _ in range(3):
            alice.run(agent)
    swept, failed = invoke("SweepFunction", {})
    assert (failed, swept["complete"], swept["expired"]) == (False, True, 0)
    sweep_until_credited(sweep, ledger)
    assert [balance(owner.name) for owner in owners] == [3 * 9_750] * 2
    assert balance(stack.platform_account) == platform + 6 * 250
    assert (balance(alice.name), ledger.total()) == (CREDIT - 60_000, total)
    mine = [item for item in ledger.tasks() if item["account"] == alice.name]
    assert [item["state"] for item in mine] == ["released"] * 6, "a swept escrow keeps its state"


# The public routes.


def test_health_is_shallow_without_the_scope_and_deep_with_it(api: Callable[..., httpx.Client]) -> None:
    shallow = api(None).get("/health")
    assert (shallow.status_code, shallow.json()) == (200, {"status": "ok"})
    deep = api("operator", "health:read").get("/health")
    assert deep.json() == {
        "status": "ok",
        "parts": dict.fromkeys(["ledger", "registry", "binaries", "outputs", "keys", "sandbox"], "ok"),
        "seccomp": deep.json()["seccomp"],  # depends on the kernel
    }
    assert isinstance(deep.json()["seccomp"], bool)
    assert deep.status_code == 200
    assert api("operator").get("/health").status_code == 403
    assert {answer.headers["Cache-Control"] for answer in (shallow, deep)} == {"no-store"}


def test_the_published_keys_verify_receipts(
    alice: User, api: Callable[..., httpx.Client], publish: Callable[..., str]
) -> None:
    answer = api(None).get("/.well-known/jwks.json")
    assert answer.status_code == 200
    for key in answer.json()["keys"]:
        assert (key["kty"], key["crv"], key["alg"], key["use"]) == ("EC", "P-256", "ES256", "sig")
        assert "d" not in key
    done = alice.run(publish(wasm("echo")))
    assert receipt.verify(done["receipt"], answer.json())["user"] == alice.name
    with pytest.raises(statement.ProofError, match="unknown root key"):
        receipt.verify(done["receipt"], {"keys": [key | {"kid": uuid.uuid4().hex} for key in answer.json()["keys"]]})


def test_the_openapi_document_and_its_page_are_served(api: Callable[..., httpx.Client]) -> None:
    described = api(None).get("/openapi.json")
    assert (described.status_code, described.headers["Content-Type"]) == (200, "application/json")
    assert described.json()["openapi"].startswith("3.1")
    assert f"{PREFIX}/tasks/execute" in described.json()["paths"]
    page = api(None).get("/docs")
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "swagger" in page.text.lower()
    assert not [source for source in ("src=", "href=") if f'{source}"http' in page.text], (
        "the page loads nothing from other hosts"
    )
