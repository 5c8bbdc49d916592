"""Sends each file in `events/` to the deployed function. A file is an event as AWS sends it to one entry point.

tests/sam_local sends them to the functions in containers. A file's name starts with its function's name. What differs
by stack is a placeholder: the user `alice`, the agents `agt_aaaaaaaaaaaaaaaa` (another owner's, active) and
`agt_bbbbbbbbbbbbbbbb` (owned by alice), the bucket of uploads, and `TOKEN`; of the payment channel that `channels-open`
opens its expiry and its id `chn_aaaaaaaaaaaaaaaaaaaaaaaaaa`, `TICKET-1`, `TICKET-2` and `CLOSING-ORDER`, which
`tests/tickets.py` signs with the channel's key.
"""

import json
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from local.paths import Stack
from quittance.api.models import TaskRequest
from quittance.ledger.escrow import escrow_id
from quittance.ledger.journal import Payout, PayoutState
from tests import tickets
from tests.e2e.people import User, invoke
from tests.support import ROOT, wasm
from tests.template import template

FILES = {path.stem: path.read_text() for path in sorted((ROOT / "events").glob("*.json"))}

CHANNEL = "chn_" + "a" * 26
EXPIRY = "2027-01-01T00:00:00Z"
EXPIRES_AT = tickets.timestamp(time.time_ns() // 1_000_000 + 24 * 60 * 60 * 1_000)

HTTP: dict[str, tuple[int, dict[str, Any]]] = {
    "execute-http": (
        200,
        {"task_id": "task-1", "success": True, "escrow_status": "released", "amount_paid": "0.00975"},
    ),
    "execute-async": (202, {"task_id": "task-3", "escrow_status": "funded"}),
    "result-http": (200, {"task_id": "task-1", "output": '{"words":6,"unique":4,"top":[["be",2]]}\n'}),
    "result-input": (200, {"task_id": "task-1", "input": '{"text":"to be or not to be","top":1}'}),
    "result-tasks": (200, {"next": None}),
    "result-runs": (200, {"runs": [], "next": None}),
    "result-run": (200, {"success": True, "outcome": "succeeded", "payer": None, "log_shared": False, "log": None}),
    "health-http": (200, {"status": "ok"}),
    "agents-register": (201, {"state": "awaiting_upload"}),
    "agents-list": (200, {"next": None}),
    "agents-search": (200, {"agents": [], "next": None}),
    "agents-describe": (200, {"state": "active", "agent_id": "agt_aaaaaaaaaaaaaaaa"}),
    "agents-card": (200, {"agent_id": "agt_aaaaaaaaaaaaaaaa", "contract": None}),
    "agents-estimate": (200, {"agent_id": "agt_aaaaaaaaaaaaaaaa", "least_price": "0.01"}),
    "agents-open-version": (201, {"state": "awaiting_upload", "agent_id": "agt_bbbbbbbbbbbbbbbb"}),
    "agents-versions": (200, {"next": None}),
    "agents-activate": (200, {"state": "active", "version": 1, "agent_id": "agt_bbbbbbbbbbbbbbbb"}),
    "agents-change": (200, {"tariff": {"type": "flat", "price": "0.02"}, "version": 1}),
    "agents-retire": (200, {"state": "retired", "agent_id": "agt_bbbbbbbbbbbbbbbb"}),
    "accounts-me": (200, {"account_id": "alice"}),
    "accounts-statement": (200, {"account_id": "alice"}),
    "accounts-statement-csv": (200, {}),
    "accounts-bond": (200, {"account_id": "alice", "held": "0", "charged": "0"}),
    "accounts-move-bond": (201, {"account_id": "alice", "bond_id": "bond-1", "amount": "0.5"}),
    "accounts-bond-statement": (200, {"next": None}),
    "accounts-deposit": (201, {"account_id": "alice", "amount": "2.5"}),
    "accounts-deposit-encoded": (201, {"account_id": "auth0|dave", "amount": "2.5"}),
    "accounts-withdraw": (201, {"account_id": "alice", "amount": "0.25", "state": "requested"}),
    "accounts-payouts": (200, {}),
    "accounts-decide-payout": (200, {"account_id": "alice", "amount": "0.25", "state": "failed"}),
    "channels-open": (201, {"payer": "alice", "state": "open", "deposit": "0.1", "numbers": 5, "used": 0}),
    "execute-redeem": (200, {"task_id": f"{CHANNEL}.1", "success": True, "payment_method": "ticket"}),
    "channels-top-up": (201, {"channel_id": CHANNEL, "topup_id": "topup-1", "amount": "0.1"}),
    "channels-read": (200, {"channel_id": CHANNEL, "state": "open", "deposit": "0.2", "numbers": 10}),
    "channels-list": (200, {"next": None}),
    "channels-tickets": (200, {"channel_id": CHANNEL, "free": [[2, 10]], "next": None}),
    "operations-freeze": (200, {"action": "freeze", "target": "alice", "by": "operator"}),
    "operations-unfreeze": (200, {"action": "unfreeze", "target": "alice", "by": "operator"}),
    "operations-pause": (200, {"action": "pause", "target": "funding", "by": "operator"}),
    "operations-resume": (200, {"action": "resume", "target": "funding", "by": "operator"}),
    "operations-retire": (200, {"action": "retire", "target": "agt_bbbbbbbbbbbbbbbb", "by": "operator"}),
    "operations-journal": (200, {}),
    "public-a2a-card": (200, {"supportedInterfaces": []}),
    "public-jwks": (200, {}),
    "public-openapi": (200, {"openapi": "3.1.0"}),
    "public-docs": (200, {}),
}
# These routes have something to return only after the sweep; a closing channel takes no tickets.
LOGGED: dict[str, tuple[int, dict[str, Any]]] = {
    "channels-close": (200, {"channel_id": CHANNEL, "state": "closing"}),
    "channels-signed-close": (200, {"channel_id": CHANNEL, "state": "closing"}),
    "result-proof": (200, {"consistency": {"tree_size": 0, "path": []}}),
    "public-checkpoint": (200, {}),
    "public-tile": (200, {}),
}
NO_JSON = {"public-docs": "<!DOCTYPE html", "public-checkpoint": "ey", "accounts-statement-csv": "at,kind,id"}
# No message may stay in its queue: the tasks are settled, the dead letter's task was refused before money moved, and
# the upload is published.
MESSAGES = ("work-sqs", "work-eventbridge", "deadletter-sqs", "publish-sqs")
OTHERS = {"audit-begin", "audit-now", "authorizer-request", "execute-direct", "execute-ticket", "publish-s3", *MESSAGES}
OTHERS |= {
    "archive-schedule",  # test_archive.py sends it: it alone stores tasks that are old enough
    "drain-shard",
    "sweep-schedule",
    "listings-backfill",
    "listings-stream",
    "notify-stream",
    "plan-run",
    "webhook-sqs",
}
NOTHING_FAILED: dict[str, Any] = {"batchItemFailures": []}
# The receiver's host name never resolves (RFC 6761), so the message must stay in the queue.
UNREACHABLE = {"batchItemFailures": [{"itemIdentifier": "19dd0b57-b21e-4ac1-bd88-01bbb068cb78"}]}


def payout_of(account: str) -> str:
    """The id of the payout that `accounts-withdraw` requests for this account."""
    return Payout(account, "withdrawal-1", 250_000, 1, PayoutState.REQUESTED).payout_id


def run_of(account: str) -> str:
    """The id of the run of `execute-http` for this account."""
    return escrow_id(account, "task-1")


def channel_placeholders(opened: dict[str, Any], hired: str) -> dict[str, str]:
    """What stands for the placeholders of a channel that is open: its id, its tickets and its closing order."""
    clock: Any = SimpleNamespace(now_ms=lambda: time.time_ns() // 1_000_000)
    found = {CHANNEL: opened["channel_id"]}
    for name, placeholder in (("execute-redeem", "TICKET-1"), ("execute-ticket", "TICKET-2")):
        event = json.loads(FILES[name].replace(CHANNEL, opened["channel_id"]).replace("agt_aaaaaaaaaaaaaaaa", hired))
        body = json.loads(event["body"]) if "body" in event else event
        task = TaskRequest.model_validate({field: body[field] for field in body if field != "ticket"})
        found[placeholder] = tickets.ticket(clock, task, iss=opened["issuer"])
    return found | {"CLOSING-ORDER": tickets.order(clock, opened["channel_id"], iss=opened["issuer"])}


def function_of(name: str) -> str:
    """The function that gets this event."""
    return f"{name.partition('-')[0].capitalize()}Function"


class Scene:
    """A user, an agent that she runs and one that she owns; fills them into events and sends these."""

    def __init__(
        self, alice: User, hired: str, own: str, bucket: str, token: Callable[[], str], client: Any, stack: Stack
    ) -> None:
        self.alice, self.own, self.bucket = alice, own, bucket
        self._real = {
            '"alice"': f'"{alice.name}"',
            '\\"alice\\"': f'\\"{alice.name}\\"',
            "/alice/": f"/{alice.name}/",
            payout_of("alice"): payout_of(alice.name),
            run_of("alice"): run_of(alice.name),
            "agt_aaaaaaaaaaaaaaaa": hired,
            "agt_bbbbbbbbbbbbbbbb": own,
            "quittance-uploads-123456789012-eu-central-1": bucket,
        }
        self._client, self._stack, self._token = client, stack, token

    def fill_in(self, text: str) -> Any:
        """Parse JSON after replacing the placeholders."""
        for placeholder, real in {**self._real, EXPIRY: EXPIRES_AT, "TOKEN": self._token()}.items():
            text = text.replace(placeholder, real)
        return json.loads(text)

    def send(self, name: str, event: Any) -> Any:
        """Send an event to its function; return the answer."""
        answer = self.invoke(name, event)
        if name == "channels-open" and answer["statusCode"] == 201:
            self._real |= channel_placeholders(json.loads(answer["body"]), self._real["agt_aaaaaaaaaaaaaaaa"])
        return answer

    def invoke(self, name: str, event: Any) -> Any:
        """Invoke the function of an event."""
        answer, failed = invoke(self._client, self._stack.functions[function_of(name)], event)
        assert not failed, answer
        return answer


@pytest.fixture(scope="module")
def scene(
    stack: Stack,
    api: Callable[..., httpx.Client],
    aws: Callable[[str], Any],
    token: Callable[..., str],
    deposit: Callable[..., None],
    publish: Callable[..., str],
    bond: Callable[..., None],
) -> Scene:
    alice = User.new(api, deposit)
    bond(alice.name)
    own = alice.http.post("/agents", json={"name": "own", "tariff": {"type": "flat", "price": "0.01"}}).json()
    hired = publish(wasm("wordcount"))
    return Scene(
        alice, hired, own["agent_id"], stack.buckets["uploads"], lambda: token(alice.name), aws("lambda"), stack
    )


@pytest.fixture(scope="module")
def routes() -> dict[tuple[str, str], bool]:
    """The template's routes, and whether each requires a token."""
    events = [
        event["Properties"]
        for resource in template()["Resources"].values()
        for event in resource.get("Properties", {}).get("Events", {}).values()
        if resource["Type"] == "AWS::Serverless::Function" and event["Type"] == "Api"
    ]
    return {
        (event["Method"].upper(), event["Path"]): event.get("Auth", {}).get("Authorizer") != "NONE" for event in events
    }


def test_every_file_is_used_and_every_route_has_a_file(routes: dict[tuple[str, str], bool]) -> None:
    assert set(FILES) == HTTP.keys() | LOGGED.keys() | OTHERS
    assert {name.partition("-")[0] for name in MESSAGES} == {"work", "deadletter", "publish"}
    events = {name: json.loads(FILES[name]) for name in HTTP | LOGGED}
    assert {(event["httpMethod"], event["resource"]) for event in events.values()} == routes.keys()
    for event in events.values():
        assert ("authorizer" in event["requestContext"]) == routes[event["httpMethod"], event["resource"]]
        assert re.fullmatch(re.sub(r"{\w+}", "[^/]+", event["resource"]), event["path"])


def test_publish_s3(scene: Scene, aws: Callable[[str], Any]) -> None:
    event = scene.fill_in(FILES["publish-s3"])
    posted = event["Records"][0]["s3"]["object"]
    posted["versionId"] = aws("s3").put_object(Bucket=scene.bucket, Key=posted["key"], Body=wasm("echo"))["VersionId"]
    assert [scene.send("publish-s3", event) for _ in range(2)] == [["active"]] * 2, "S3 may deliver an event twice"
    assert scene.alice.http.get(f"/agents/{scene.own}").json()["state"] == "active"


@pytest.mark.parametrize("name", HTTP)
def test_http(scene: Scene, name: str) -> None:
    """In the order of the table, so that a task runs before its result is read and the agent retires last."""
    body = check_answer(scene, name, *HTTP[name])
    if name == "accounts-payouts":
        assert payout_of(scene.alice.name) in {payout["payout_id"] for payout in body["payouts"]}
    if name == "agents-list":
        assert scene.own in {agent["agent_id"] for agent in body["agents"]}


def check_answer(scene: Scene, name: str, status: int, fields: dict[str, Any]) -> Any:
    """Send an event; check the answer's status and these fields, and return its body."""
    answer = scene.send(name, scene.fill_in(FILES[name]))
    assert answer["statusCode"] == status, answer
    if name in NO_JSON:
        assert answer["body"].startswith(NO_JSON[name])
        return None
    body, expected = json.loads(answer["body"]), scene.fill_in(json.dumps(fields))
    assert {field: body[field] for field in expected} == expected
    return body


def test_execute_direct(scene: Scene) -> None:
    done = scene.send("execute-direct", scene.fill_in(FILES["execute-direct"]))
    assert (done["task_id"], done["success"], done["escrow_status"]) == ("task-2", True, "released")


def test_execute_ticket(scene: Scene) -> None:
    done = scene.send("execute-ticket", scene.fill_in(FILES["execute-ticket"]))
    assert (done["task_id"], done["success"], done["payment_method"]) == (
        scene.fill_in(f'"{CHANNEL}.2"'),
        True,
        "ticket",
    )


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(scene: Scene, name: str) -> None:
    assert scene.send(name, scene.fill_in(FILES[name])) == {"batchItemFailures": []}
    if name == "publish-sqs":
        return  # its upload is already published, so nothing changes
    sent = json.loads(json.loads(FILES[name])["Records"][0]["body"])
    found = scene.alice.http.get(f"/tasks/{sent.get('detail', sent)['task_id']}/result")
    assert found.status_code == (404 if name == "deadletter-sqs" else 200)


def test_plan_run(scene: Scene) -> None:
    """The workflow passes its input on unchanged; test_workflows.py starts executions with this event."""
    planned = scene.send("plan-run", scene.fill_in(FILES["plan-run"]))
    tasks = [line["tasks"][0] for line in planned["lines"]]
    assert [(task["task_id"], task["budget"]) for task in tasks] == [("run-1.0.0", "0.05"), ("run-1.1.0", "0.05")]


def test_sweep_schedule(scene: Scene) -> None:
    swept = scene.send("sweep-schedule", scene.fill_in(FILES["sweep-schedule"]))
    assert set(swept) >= {"expired", "credited", "logged", "published", "failed", "complete"}
    assert (swept["failed"], swept["complete"]) == (0, True)


def test_drain_shard(scene: Scene) -> None:
    drained = scene.send("drain-shard", scene.fill_in(FILES["drain-shard"]))
    assert (drained["failed"], drained["logged"], drained["complete"]) == (0, 0, True)


@pytest.mark.parametrize("name", LOGGED)
def test_answers_after_the_sweep(scene: Scene, name: str) -> None:
    check_answer(scene, name, *LOGGED[name])


def test_audit_now(scene: Scene) -> None:
    audited = scene.send("audit-now", scene.fill_in(FILES["audit-now"]))
    assert (set(audited), audited["differences"]) == ({"differences", "report"}, 0)


def test_audit_begin(scene: Scene) -> None:
    state = scene.send("audit-begin", scene.fill_in(FILES["audit-begin"]))
    assert (state["phase"], [part["kind"] for part in state["parts"]]) == ("read", ["log", "scan"])


def test_notify_stream(scene: Scene) -> None:
    assert scene.send("notify-stream", scene.fill_in(FILES["notify-stream"])) == NOTHING_FAILED


def test_listings_stream(scene: Scene) -> None:
    assert scene.send("listings-stream", scene.fill_in(FILES["listings-stream"])) == NOTHING_FAILED


def test_listings_backfill(scene: Scene) -> None:
    answer = scene.send("listings-backfill", scene.fill_in(FILES["listings-backfill"]))
    assert (answer["backfill"], answer["failed"]) == (None, 0)
    assert answer["listed"] > 0


def test_webhook_sqs(scene: Scene) -> None:
    assert scene.send("webhook-sqs", scene.fill_in(FILES["webhook-sqs"])) == UNREACHABLE


def test_authorizer_request(scene: Scene) -> None:
    event = scene.fill_in(FILES["authorizer-request"])
    answer = scene.send("authorizer-request", event)
    assert (answer["principalId"], answer["context"]["sub"]) == (scene.alice.name, scene.alice.name)
    (statement,) = answer["policyDocument"]["Statement"]
    api = event["methodArn"].partition("/GET/")[0]
    assert statement == {"Action": "execute-api:Invoke", "Effect": "Allow", "Resource": f"{api}/*"}


@pytest.mark.parametrize("name", [name for name in HTTP if '"authorizer"' in FILES[name]])
def test_a_function_refuses_requests_without_identity(scene: Scene, balance: Callable[[str], int], name: str) -> None:
    before = balance(scene.alice.name)
    event = scene.fill_in(FILES[name])
    for context in ({}, {"authorizer": None}, {"authorizer": {"principalId": scene.alice.name}}):
        event["requestContext"] = {k: v for k, v in event["requestContext"].items() if k != "authorizer"} | context
        answer = scene.send(name, event)
        assert (answer["statusCode"], json.loads(answer["body"])["code"]) == (401, "unauthenticated")
    assert balance(scene.alice.name) == before
