"""What the deployed stack tells when something has happened: events by a rule on its bus, and signed webhooks."""

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
from local.openapi import PREFIX
from local.paths import Stack
from quittance.limits import WEBHOOK_WAIT_S_MIN
from quittance.proof import receipt, webhook
from tests.e2e.people import Ledger, User
from tests.support import FLAT, wasm
from tests.waiting import GENEROUS_S, Stopwatch, until

Told = Callable[..., list[dict[str, Any]]]


class Came(NamedTuple):
    """One request that a receiver got."""

    at: float
    headers: dict[str, str]
    body: bytes


class Receiver(ThreadingHTTPServer):
    """A server of somebody's on 127.0.0.1: each path answers with the statuses that it was told to, then with 200."""

    daemon_threads = True

    def __init__(self, waiting: Callable[[], int]) -> None:
        """`waiting()`: how many messages for receivers the stack still holds."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self._waiting = waiting
        self.came: dict[str, list[Came]] = defaultdict(list)
        self.statuses: dict[str, list[int]] = {}

    def url(self, *statuses: int) -> str:
        """A URL that nobody else has, and its answers."""
        path = f"/{uuid.uuid4().hex}?key=secret"
        self.statuses[path] = list(statuses)
        return f"http://127.0.0.1:{self.server_port}{path}"

    def got(self, url: str, number: int = 1) -> list[Came]:
        """What came to a URL, once it is so many requests, and nothing is on its way any more."""
        path = url.removeprefix(f"http://127.0.0.1:{self.server_port}")
        until(lambda: len(self.came[path]) >= number and not self._waiting(), f"not {number} requests came")
        return self.came[path]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.came[self.path].append(Came(time(), dict(self.headers), body))
        statuses = self.server.statuses.get(self.path, [])
        self.send_response(statuses.pop(0) if statuses else 200)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/redirected")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.came[self.path].append(Came(time(), dict(self.headers), b""))
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def receiver(aws: Callable[[str], Any]) -> Iterator[Receiver]:
    found = aws("cloudformation").describe_stack_resource(StackName=STACK_NAME, LogicalResourceId="WebhookQueue")
    queue = found["StackResourceDetail"]["PhysicalResourceId"]
    names = [
        "ApproximateNumberOfMessages",
        "ApproximateNumberOfMessagesNotVisible",
        "ApproximateNumberOfMessagesDelayed",
    ]

    def waiting() -> int:
        held = aws("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
        return sum(int(held[name]) for name in names)

    with Receiver(waiting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def outputs(aws: Callable[[str], Any]) -> dict[str, str]:
    described = aws("cloudformation").describe_stacks(StackName=STACK_NAME)["Stacks"][0]
    return {output["OutputKey"]: output["OutputValue"] for output in described["Outputs"]}


@pytest.fixture(scope="module")
def told(outputs: dict[str, str], aws: Callable[[str], Any]) -> Iterator[Told]:
    """`told(**detail)` gives the events whose details are so, once there is one, and some time after that."""
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
    seen: list[dict[str, Any]] = []

    def listen(**detail: str) -> list[dict[str, Any]]:
        watch = Stopwatch()
        while True:
            got = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=1).get("Messages", [])
            for message in got:
                seen.append(json.loads(message["Body"]))
                sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            found = [event for event in seen if detail.items() <= event["detail"].items()]
            if found and not got:
                return found
            assert watch.seconds() < GENEROUS_S, f"of {detail} nothing was told"

    yield listen
    events.remove_targets(Rule=name, EventBusName=outputs["EventBus"], Ids=["q"])
    events.delete_rule(**rule)
    sqs.delete_queue(QueueUrl=queue)


@pytest.fixture(scope="module")
def jwks(stack: Stack) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{stack.api_url}{PREFIX}/.well-known/jwks.json", trust_env=False).json()
    return found


@pytest.fixture(scope="module")
def user(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> User:
    return User.new(api, deposit)


# The bus.


def test_a_paid_and_a_refunded_task_are_told_once_each(
    user: User, echo: str, publish: Callable[..., str], told: Told, jwks: dict[str, Any], sweep: Callable[[], None]
) -> None:
    paid = user.run(echo, task_id="paid", input="the secret input")
    refunded = user.run(publish(wasm("failing")), task_id="refunded")
    sweep()  # whose mark changes the escrows again
    for done in (paid, refunded):
        (event,) = told(escrow_id=done["escrow_id"])
        detail = event["detail"]
        assert (event["source"], event["detail-type"]) == ("quittance", "TaskSettled")
        same = ("task_id", "agent_id", "success", "escrow_status", "amount_paid", "amount_refunded", "fee", "receipt")
        assert {name: detail[name] for name in same} == {name: done[name] for name in same}
        assert (detail["user"], detail["at"]) == (user.name, done["timestamp"])
        assert receipt.verify(detail["receipt"], jwks)["eid"] == done["escrow_id"]
        assert "the secret input" not in json.dumps(event)


def test_a_task_that_the_sweep_refunds_is_told(
    user: User,
    echo: str,
    told: Told,
    sweep: Callable[[], None],
    ledger: Ledger,
) -> None:
    eid = ledger.put_overdue(user.run(echo), task_id="overdue")
    sweep()
    (event,) = told(escrow_id=eid)
    assert (event["detail"]["escrow_status"], event["detail"]["outcome"]) == ("expired", "expired")
    assert event["detail"]["event_id"] == f"task.{eid}.expired"
    ledger.total()


def test_published_and_rejected_agents_are_told(
    stack: Stack, token: Callable[..., str], bond: Callable[..., None], told: Told
) -> None:
    caller, owner = client.Api(stack.api_url, token("teller")), "teller"
    bond(owner)
    active = client.publish(caller, "told", wasm("echo"), {"tariff": FLAT})
    (event,) = told(agent_id=active)
    assert (event["detail-type"], event["detail"]["owner"]) == ("AgentPublished", owner)
    with pytest.raises(Exception, match="rejected"):
        client.publish(caller, "refused", b"\0asm\1\0\0\0", {"tariff": FLAT})
    (event,) = told(event="AgentRejected", owner=owner)
    assert event["detail"]["message"]


# Webhooks.


def test_a_webhook_comes_once_and_proves_itself(
    user: User, echo: str, receiver: Receiver, jwks: dict[str, Any], told: Told
) -> None:
    url = receiver.url()
    done = user.run(echo, webhook=url)
    (came,) = receiver.got(url)
    stated = webhook.verify(
        came.body, came.headers["Quittance-Signature"], url=url, jwks=jwks, now_ms=int(came.at * 1_000)
    )
    assert stated.event_id == came.headers["Quittance-Event-Id"] == f"task.{done['escrow_id']}.released"
    (event,) = told(escrow_id=done["escrow_id"])
    assert json.loads(came.body) == event["detail"]
    assert came.headers["Content-Type"] == "application/json"
    assert "webhook" not in json.dumps(done)


def test_a_receiver_that_fails_twice_is_tried_three_times(user: User, echo: str, receiver: Receiver) -> None:
    url = receiver.url(500, 429)
    user.run(echo, webhook=url)
    came = receiver.got(url, 3)
    assert len(came) == 3
    assert len({one.body for one in came}) == len({one.headers["Quittance-Event-Id"] for one in came}) == 1
    assert len({one.headers["Quittance-Signature"] for one in came}) == 3, "each is signed at its own time"
    first, second = (later.at - earlier.at for earlier, later in pairwise(came))
    assert first >= WEBHOOK_WAIT_S_MIN / 2
    assert second >= WEBHOOK_WAIT_S_MIN


def test_a_receiver_that_is_gone_is_left_alone(user: User, echo: str, receiver: Receiver) -> None:
    url = receiver.url(410)
    user.run(echo, webhook=url)
    assert len(receiver.got(url)) == 1


def test_a_redirect_is_not_followed_and_tried_again(user: User, echo: str, receiver: Receiver) -> None:
    url = receiver.url(307)
    user.run(echo, webhook=url)
    assert len(receiver.got(url, 2)) == 2
    assert not receiver.came["/redirected"]


def test_the_webhook_is_part_of_the_request(user: User, echo: str, receiver: Receiver) -> None:
    url = receiver.url()
    first = user.run(echo, task_id="hooked", webhook=url)
    assert user.run(echo, task_id="hooked", webhook=url) == first
    assert user.execute(echo, task_id="hooked", webhook=receiver.url()).json()["code"] == "task_conflict"
    assert user.execute(echo, task_id="hooked").json()["code"] == "task_conflict"
    assert len(receiver.got(url)) == 1


@pytest.mark.parametrize("url", ["", "example.com", "ftp://example.com", "https://a@example.com/", 7])
def test_a_url_that_cannot_be_told_is_refused(user: User, echo: str, url: object) -> None:
    refused = user.execute(echo, webhook=url)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "webhook")


def test_payouts_are_told_when_requested_and_when_decided(
    told: Told, api: Callable[..., httpx.Client], deposit: Callable[..., None]
) -> None:
    """By the stream's filters, which let a new withdrawal through and a decided one."""
    alice = User.new(api, deposit)
    cashier = api(f"cashier-{uuid.uuid4().hex[:12]}", "ledger:payout")
    body = {"withdrawal_id": "w-1", "amount": "0.25"}
    assert alice.http.post("/accounts/me/withdrawals", json=body).status_code == 201
    (requested,) = told(account=alice.name)
    payout_id = requested["detail"]["payout_id"]
    assert (requested["detail-type"], requested["detail"]["amount"]) == ("PayoutRequested", "0.25")
    assert cashier.post(f"/payouts/{payout_id}", json={"state": "failed"}).status_code == 200
    (decided,) = told(event="PayoutDecided", payout_id=payout_id)
    assert (decided["detail"]["state"], decided["detail"]["account"]) == ("failed", alice.name)
