"""Notifications of the deployed stack: events on its bus, and signed webhooks."""

import json
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from time import time
from typing import Any, NamedTuple

import httpx
import pytest

from local import client
from local.deploy import STACK_NAME
from local.paths import Stack
from quittance.limits import WEBHOOK_WAIT_S_MIN
from quittance.proof import receipt, webhook
from tests.e2e.people import Ledger, User, message_count
from tests.support import FLAT, wasm
from tests.waiting import GENEROUS_S, Stopwatch, until

FindEvents = Callable[..., list[dict[str, Any]]]


class Received(NamedTuple):
    """One request to a receiver."""

    at: float
    headers: dict[str, str]
    body: bytes


class Receiver(ThreadingHTTPServer):
    """A server on 127.0.0.1: each path answers with its list of statuses, and then with 200."""

    daemon_threads = True

    def __init__(self, waiting: Callable[[], int]) -> None:
        """`waiting()` is the number of messages in the webhook queue."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self._waiting = waiting
        self.received: dict[str, list[Received]] = defaultdict(list)
        self.statuses: dict[str, list[int]] = {}

    def url(self, *statuses: int) -> str:
        """A new URL that answers with these statuses."""
        path = f"/{uuid.uuid4().hex}?key=secret"
        self.statuses[path] = list(statuses)
        return f"http://127.0.0.1:{self.server_port}{path}"

    def wait_for(self, url: str, number: int = 1) -> list[Received]:
        """The requests to a URL, once there are `number` of them and the webhook queue is empty."""
        path = url.removeprefix(f"http://127.0.0.1:{self.server_port}")
        until(
            lambda: len(self.received[path]) >= number and not self._waiting(),
            f"the receiver did not get {number} requests",
        )
        return self.received[path]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received[self.path].append(Received(time(), dict(self.headers), body))
        statuses = self.server.statuses.get(self.path, [])
        self.send_response(statuses.pop(0) if statuses else 200)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/redirected")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.received[self.path].append(Received(time(), dict(self.headers), b""))
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def receiver(aws: Callable[[str], Any]) -> Iterator[Receiver]:
    found = aws("cloudformation").describe_stack_resource(StackName=STACK_NAME, LogicalResourceId="WebhookQueue")
    queue = found["StackResourceDetail"]["PhysicalResourceId"]
    with Receiver(lambda: message_count(aws("sqs"), queue, "", "NotVisible", "Delayed")) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def find_events(outputs: dict[str, str], aws: Callable[[str], Any]) -> Iterator[FindEvents]:
    """`find_events(**detail)` waits for an event with these details; returns all of them, once no more arrive."""
    sqs, events, name = aws("sqs"), aws("events"), f"listener-{uuid.uuid4().hex}"
    queue = sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    allowed = {"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"}, "Action": "sqs:SendMessage",
               "Resource": arn}  # fmt: skip
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": policy})
    rule = {"Name": name, "EventBusName": outputs["EventBus"]}
    events.put_rule(**rule, EventPattern=json.dumps({"source": ["quittance"]}))
    events.put_targets(Rule=name, EventBusName=outputs["EventBus"], Targets=[{"Id": "q", "Arn": arn}])
    events_received: list[dict[str, Any]] = []

    def listen(**detail: str) -> list[dict[str, Any]]:
        watch = Stopwatch()
        while True:
            batch = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=1).get("Messages", [])
            for message in batch:
                events_received.append(json.loads(message["Body"]))
                sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            found = [event for event in events_received if detail.items() <= event["detail"].items()]
            if found and not batch:
                return found
            assert watch.seconds() < GENEROUS_S, f"no event has {detail}"

    yield listen
    events.remove_targets(Rule=name, EventBusName=outputs["EventBus"], Ids=["q"])
    events.delete_rule(**rule)
    sqs.delete_queue(QueueUrl=queue)


@pytest.fixture(scope="module")
def user(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> User:
    return User.new(api, deposit)


# The bus.


def test_each_settled_task_emits_one_event(
    user: User,
    echo: str,
    publish: Callable[..., str],
    find_events: FindEvents,
    jwks: dict[str, Any],
    sweep: Callable[[], None],
) -> None:
    paid = user.run(echo, task_id="paid", input="the secret input")
    refunded = user.run(publish(wasm("failing")), task_id="refunded")
    sweep()  # it changes the escrows again, which must not emit a second event
    for done in (paid, refunded):
        (event,) = find_events(escrow_id=done["escrow_id"])
        detail = event["detail"]
        assert (event["source"], event["detail-type"]) == ("quittance", "TaskSettled")
        same = ("task_id", "agent_id", "success", "escrow_status", "amount_paid", "amount_refunded", "fee", "receipt")
        assert {name: detail[name] for name in same} == {name: done[name] for name in same}
        assert (detail["user"], detail["at"]) == (user.name, done["timestamp"])
        assert receipt.verify(detail["receipt"], jwks)["eid"] == done["escrow_id"]
        assert "the secret input" not in json.dumps(event)


def test_a_task_that_the_sweep_refunds_emits_an_event(
    user: User,
    echo: str,
    find_events: FindEvents,
    sweep: Callable[[], None],
    ledger: Ledger,
) -> None:
    eid = ledger.put_overdue(user.run(echo), task_id="overdue")
    sweep()
    (event,) = find_events(escrow_id=eid)
    assert (event["detail"]["escrow_status"], event["detail"]["outcome"]) == ("expired", "expired")
    assert event["detail"]["event_id"] == f"task.{eid}.expired"
    ledger.total()


def test_published_changed_and_rejected_agents_emit_events(
    stack: Stack,
    token: Callable[..., str],
    api: Callable[..., httpx.Client],
    bond: Callable[..., None],
    find_events: FindEvents,
) -> None:
    caller, owner = client.Api(stack.api_url, token("notify-owner")), "notify-owner"
    bond(owner)
    active = client.publish(caller, "published", wasm("echo"), {"tariff": FLAT})
    (event,) = find_events(agent_id=active)
    assert (event["detail-type"], event["detail"]["owner"]) == ("AgentPublished", owner)
    assert api(owner).patch(f"/agents/{active}", json={"name": "renamed"}).json()["name"] == "renamed"
    (event,) = find_events(event="AgentChanged", agent_id=active)
    assert (event["detail"]["name"], event["detail"]["version"], event["detail"]["revision"]) == ("renamed", 1, 2)
    with pytest.raises(Exception, match="rejected"):
        client.publish(caller, "refused", b"\0asm\1\0\0\0", {"tariff": FLAT})
    (event,) = find_events(event="AgentRejected", owner=owner)
    assert event["detail"]["message"]


# Webhooks.


def test_a_webhook_is_sent_once_and_its_signature_verifies(
    user: User, echo: str, receiver: Receiver, jwks: dict[str, Any], find_events: FindEvents
) -> None:
    url = receiver.url()
    done = user.run(echo, webhook=url)
    (received,) = receiver.wait_for(url)
    stated = webhook.verify(
        received.body, received.headers["Quittance-Signature"], url=url, jwks=jwks, now_ms=int(received.at * 1_000)
    )
    assert stated.event_id == received.headers["Quittance-Event-Id"] == f"task.{done['escrow_id']}.released"
    (event,) = find_events(escrow_id=done["escrow_id"])
    assert json.loads(received.body) == event["detail"]
    assert received.headers["Content-Type"] == "application/json"
    assert "webhook" not in json.dumps(done)


def test_a_webhook_is_retried_until_the_receiver_accepts(user: User, echo: str, receiver: Receiver) -> None:
    url = receiver.url(500, 429)
    user.run(echo, webhook=url)
    received = receiver.wait_for(url, 3)
    assert len(received) == 3
    assert len({one.body for one in received}) == len({one.headers["Quittance-Event-Id"] for one in received}) == 1
    assert len({one.headers["Quittance-Signature"] for one in received}) == 3, "each attempt is signed at its time"
    first, second = (later.at - earlier.at for earlier, later in pairwise(received))
    assert first >= WEBHOOK_WAIT_S_MIN / 2
    assert second >= WEBHOOK_WAIT_S_MIN


def test_a_410_ends_the_retries(user: User, echo: str, receiver: Receiver) -> None:
    url = receiver.url(410)
    user.run(echo, webhook=url)
    assert len(receiver.wait_for(url)) == 1


def test_a_redirect_is_not_followed_but_retried(user: User, echo: str, receiver: Receiver) -> None:
    url = receiver.url(307)
    user.run(echo, webhook=url)
    assert len(receiver.wait_for(url, 2)) == 2
    assert not receiver.received["/redirected"]


def test_the_webhook_is_part_of_the_request(user: User, echo: str, receiver: Receiver) -> None:
    url = receiver.url()
    first = user.run(echo, task_id="hooked", webhook=url)
    assert user.run(echo, task_id="hooked", webhook=url) == first
    assert user.execute(echo, task_id="hooked", webhook=receiver.url()).json()["code"] == "task_conflict"
    assert user.execute(echo, task_id="hooked").json()["code"] == "task_conflict"
    assert len(receiver.wait_for(url)) == 1


@pytest.mark.parametrize("url", ["", "example.com", "ftp://example.com", "https://a@example.com/", 7])
def test_an_invalid_webhook_url_is_refused(user: User, echo: str, url: object) -> None:
    refused = user.execute(echo, webhook=url)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "webhook")


def test_requested_and_decided_payouts_emit_events(
    find_events: FindEvents, api: Callable[..., httpx.Client], deposit: Callable[..., None]
) -> None:
    """The stream's filters pass both a new withdrawal and a decided one."""
    alice = User.new(api, deposit)
    cashier = api(f"cashier-{uuid.uuid4().hex[:12]}", "ledger:payout")
    body = {"withdrawal_id": "w-1", "amount": "0.25"}
    assert alice.http.post("/accounts/me/withdrawals", json=body).status_code == 201
    (requested,) = find_events(account=alice.name)
    payout_id = requested["detail"]["payout_id"]
    assert (requested["detail-type"], requested["detail"]["amount"]) == ("PayoutRequested", "0.25")
    assert cashier.post(f"/payouts/{payout_id}", json={"state": "failed"}).status_code == 200
    (decided,) = find_events(event="PayoutDecided", payout_id=payout_id)
    assert (decided["detail"]["state"], decided["detail"]["account"]) == ("failed", alice.name)
