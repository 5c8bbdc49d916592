"""Asynchronous tasks: funded at once, run from the queue, and settled once even if messages or workers are lost."""

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from time import sleep
from typing import Any

import httpx
import pytest

from local.paths import Stack
from quittance.proof import receipt
from tests.depth import LONG, SEED
from tests.e2e.people import (
    CREDIT,
    Item,
    Ledger,
    User,
    assert_claims_match,
    message_count,
    micro,
    sweep_until_credited,
    task,
)
from tests.e2e.test_kills import METERED, FaultInjector, audit, available, injector_for, under_faults
from tests.support import wasm
from tests.waiting import Stopwatch, until

PREFER = {"Prefer": "respond-async"}
TASKS = 200 if LONG else 60
TAMPERED, POISON, REFUSED, SENDERS = 6, 5, 5, 8
INJECTION_S = 30.0 if LONG else 8.0


class Queues:
    """The task queue and its dead-letter queue, as a client of SQS observes them."""

    def __init__(self, stack: Stack, aws: Callable[[str], Any]) -> None:
        self._sqs, self._lambda, self._urls = aws("sqs"), aws("lambda"), stack.queues
        self._worker = stack.functions["WorkFunction"]

    def send(self, body: str) -> None:
        self._sqs.send_message(QueueUrl=self._urls["tasks"], MessageBody=body)

    def held(self, queue: str) -> int:
        """The number of messages in a queue, including those in flight."""
        return message_count(self._sqs, self._urls[queue], "", "NotVisible")

    def purge_dead_letters(self) -> None:
        self._sqs.purge_queue(QueueUrl=self._urls["dead_letters"])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Disable the worker's event source for a while."""
        (source,) = self._lambda.list_event_source_mappings(FunctionName=self._worker)["EventSourceMappings"]
        self._lambda.update_event_source_mapping(UUID=source["UUID"], Enabled=False)
        try:
            yield
        finally:
            self._lambda.update_event_source_mapping(UUID=source["UUID"], Enabled=True)


@pytest.fixture
def queues(stack: Stack, aws: Callable[[str], Any]) -> Iterator[Queues]:
    queues = Queues(stack, aws)
    yield queues
    queues.purge_dead_letters()


def submit(user: User, body: dict[str, Any]) -> httpx.Response:
    return user.http.post("/tasks/execute", json=body, headers=PREFER)


def settled(user: User, task_id: str) -> dict[str, Any]:
    """The result of a task, once it is settled. Errors are retried, because faults hit the result function too."""

    def known() -> httpx.Response | None:
        found = user.http.get(f"/tasks/{task_id}/result")
        return None if found.status_code in {202, 500, 502, 503} else found

    answer = until(known, f"{task_id} is not settled", pause_s=0.1)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_a_task_is_accepted_and_run_and_its_result_served(alice: User, echo: str) -> None:
    body = task(echo)
    accepted = submit(alice, body)
    assert accepted.status_code == 202, accepted.text
    assert accepted.headers["Preference-Applied"] == "respond-async"
    assert int(accepted.headers["Retry-After"]) > 0
    assert accepted.headers["Location"].endswith(f"/tasks/{body['task_id']}/result")
    done = settled(alice, body["task_id"])
    assert (done["output"], done["amount_paid"], done["amount_refunded"]) == ("hello", "0.00975", "0.04")
    again = submit(alice, body)
    assert (again.status_code, again.json()) == (200, done)
    assert "Preference-Applied" not in again.headers
    assert alice.execute(echo, **body).json() == done, "the same answer without Prefer"


def test_refusals_are_immediate(alice: User, echo: str) -> None:
    for changes, code in (({"budget": "5"}, "insufficient_funds"), ({"budget": "0.001"}, "budget_too_low")):
        answer = submit(alice, task(echo, **changes))
        assert answer.json()["code"] == code
    assert alice.http.get("/tasks/never/result").status_code == 404


def test_a_large_input_is_passed_in_the_bucket(stack: Stack, alice: User, echo: str, aws: Callable[[str], Any]) -> None:
    data = Random(SEED).randbytes(600_000)
    body = task(echo, input=None, input_base64=base64.b64encode(data).decode())
    assert submit(alice, body).status_code == 202
    done = settled(alice, body["task_id"])
    assert base64.b64decode(done["output_base64"]) == data
    aws("s3").head_object(Bucket=stack.buckets["outputs"], Key=f"inputs/{sha256(data).hexdigest()}")


def test_a_repeated_event_on_the_bus_starts_one_task(
    stack: Stack, alice: User, echo: str, aws: Callable[[str], Any], balance: Callable[[str], int]
) -> None:
    """EventBridge delivers at least once; the rule TaskRequested, the queue and the ledger together pay once."""
    body, before = task(echo) | {"user_id": alice.name}, balance(alice.name)
    entry = {"EventBusName": "quittance", "Source": "com.example.shop", "DetailType": "TaskRequested"}
    entries = [entry | {"Detail": json.dumps(body)}] * 3
    assert aws("events").put_events(Entries=entries)["FailedEntryCount"] == 0
    done = settled_from_queue(alice, body["task_id"])
    assert (done["output"], done["amount_paid"]) == ("hello", "0.00975")
    refused = task(echo, task_id=f"{body['task_id']}-2", budget="0.001") | {"user_id": alice.name}
    aws("events").put_events(Entries=[entry | {"Detail": json.dumps(refused)}])
    sleep(3)
    assert balance(alice.name) == before - CREDIT // 100


def test_events_of_the_platforms_source_start_no_task(alice: User, echo: str, aws: Callable[[str], Any]) -> None:
    """`notify` and `deadletter` may only put events of this source, so they cannot spend anybody's credits."""
    forged, later = task(echo) | {"user_id": alice.name}, task(echo) | {"user_id": alice.name}
    for source, body in (("quittance", forged), ("com.example.shop", later)):
        entry = {"EventBusName": "quittance", "Source": source, "DetailType": "TaskRequested"}
        assert aws("events").put_events(Entries=[entry | {"Detail": json.dumps(body)}])["FailedEntryCount"] == 0
    assert settled_from_queue(alice, later["task_id"])["success"]
    sleep(3)
    assert alice.http.get(f"/tasks/{forged['task_id']}/result").status_code == 404


def settled_from_queue(user: User, task_id: str) -> dict[str, Any]:
    """The result of a task that is funded only when a worker receives its message."""
    until(lambda: user.http.get(f"/tasks/{task_id}/result").status_code != 404, f"no worker receives {task_id}")
    return settled(user, task_id)


def test_only_asynchronous_tasks_may_take_ten_minutes(alice: User, publish: Callable[..., str], ledger: Ledger) -> None:
    slow = publish(wasm("echo"), limits={"timeout": 600})
    for timeout in (600, None):
        body = task(slow, timeout=timeout)
        assert submit(alice, body).status_code == 202
        assert settled(alice, body["task_id"])["success"]
        item = ledger.escrow(alice.name, body["task_id"])
        assert item is not None
        assert item["timeout_ms"] == 600_000
    assert alice.execute(slow, timeout=600).json()["code"] == "timeout_too_long"


def test_other_systems_can_send_tasks_to_the_queue(alice: User, echo: str, queues: Queues) -> None:
    direct = task(echo, user_id=alice.name)
    queues.send(json.dumps(direct))
    assert settled_from_queue(alice, direct["task_id"])["success"]
    event = task(echo, user_id=alice.name)
    queues.send(json.dumps({"version": "0", "detail-type": "Order", "source": "shop", "detail": event}))
    assert settled_from_queue(alice, event["task_id"])["success"]


@dataclass
class Batch:
    """All tasks of the batch with their users. The inputs of `lost` tasks are damaged before a worker reads them."""

    users: list[User]
    mine: list[tuple[User, dict[str, Any]]]
    lost: list[tuple[User, dict[str, Any]]]
    owner: User

    @property
    def all(self) -> list[tuple[User, dict[str, Any]]]:
        return self.mine + self.lost

    def send(self, queues: Queues, random: Random) -> None:
        """Send each task, many of them again over HTTP or the queue, and messages without a task or without credits."""
        with ThreadPoolExecutor(SENDERS) as pool:
            twice = self.all + random.sample(self.mine, TASKS // 4)
            for answer in pool.map(lambda one: submit(*one), twice):
                assert answer.status_code == 202, answer.text
        for user, body in random.choices(self.mine, k=TASKS // 2):
            queues.send(json.dumps(body | {"user_id": user.name}))
        for number in range(POISON):
            queues.send(["no JSON", "{", "[1]", '{"user_id": 7}', "\ud7ff"][number % 5])
        for _ in range(REFUSED):
            queues.send(json.dumps(self.mine[0][1] | {"user_id": "nobody-with-money"}))


@pytest.fixture
def batch(
    stack: Stack,
    api: Callable[..., httpx.Client],
    deposit: Callable[..., None],
    publish: Callable[..., str],
) -> Batch:
    random, owner = Random(SEED), User.new(api)
    users = [User.new(api, deposit) for _ in range(SENDERS)]
    sieve = publish(wasm("sieve"), tariff=METERED, owner=owner.name)
    echo = publish(wasm("echo"), owner=owner.name)
    mine = []
    for number in range(TASKS):
        agent, data = (sieve, "30000000") if random.random() < 0.5 else (echo, "hello")
        body = task(agent, task_id=f"t{number}", input=data, timeout=3, budget="0.03")
        mine.append((users[number % SENDERS], body))
    lost = [(users[number % SENDERS], large(echo, number)) for number in range(TAMPERED)]
    return Batch(users, mine, lost, owner)


@pytest.fixture
def injector(stack: Stack) -> FaultInjector:
    return injector_for(stack, Random(SEED), runner="WorkFunction", lasts_s=INJECTION_S)


def test_a_batch_survives_bad_messages_and_killed_workers(  # noqa: PLR0917 - fixtures are arguments
    stack: Stack,
    queues: Queues,
    injector: FaultInjector,
    batch: Batch,
    api: Callable[..., httpx.Client],
    jwks: dict[str, Any],
    aws: Callable[[str], Any],
    sweep: Callable[[], None],
    ledger: Ledger,
    record_property: Callable[[str, Any], None],
) -> None:
    sweep_until_credited(sweep, ledger)
    platform_before, watch = available(api, stack.platform_account), Stopwatch()
    with queues.paused():
        batch.send(queues, Random(SEED))
        damage(batch.lost, aws("s3"), stack.buckets["outputs"])
        assert len([item for item in ledger.tasks() if item["state"] == "funded"]) >= TASKS + TAMPERED

    def finish() -> None:
        for user, body in batch.all:
            settled(user, body["task_id"])
        until(lambda: queues.held("tasks") == 0, "the task queue is not emptied")
        until(lambda: queues.held("dead_letters") == POISON, "an unreadable message is not in the dead-letter queue")

    lost_sweeps = under_faults(injector, sweep, finish)
    took_s = watch.seconds()
    sweep_until_credited(sweep, ledger)

    items = {(item["account"], item["task_id"]): item for item in ledger.tasks()}
    ours = [items[user.name, body["task_id"]] for user, body in batch.all]
    ends, fences = (Counter(item[name] for item in ours) for name in ("outcome", "fence"))
    summary = (
        f"seed {SEED}, {dict(injector.injected)}, lost sweeps {lost_sweeps}, ends {dict(ends)}, fences {dict(fences)}"
    )
    record_property("figure", f"batch: {summary}, {took_s:.0f} s")

    for (user, body), item in zip(batch.all, ours, strict=True):
        assert_settled_once(submit(user, body), item, jwks)
    assert {items[user.name, body["task_id"]]["outcome"] for user, body in batch.lost} == {"undelivered"}
    assert any(item["fence"] > 2 for item in ours), f"no worker was killed during a task: {summary}"
    assert ends["succeeded"] > TASKS // 2, summary
    assert "nobody-with-money" not in {account for account, _ in items}

    for user in batch.users:
        spent = sum(item["budget"] - item["refunded"] for item in ours if item["account"] == user.name)
        assert available(api, user.name) == CREDIT - spent
    assert available(api, batch.owner.name) == sum(item["paid"] for item in ours)
    assert available(api, stack.platform_account) == platform_before + sum(item["fee"] for item in ours)
    assert "differences  0\n" in audit(stack)


def assert_settled_once(answer: httpx.Response, item: Item, jwks: dict[str, Any]) -> None:
    """Assert that the escrow is settled and credited, and that a repeat returns its receipt."""
    assert item["state"] != "funded"
    assert "swept_ms" in item
    assert_claims_match(receipt.verify(item["receipt"], jwks), item)
    assert (answer.status_code, answer.json()["receipt"]) == (200, item["receipt"])
    assert micro(answer.json()["amount_refunded"]) == item["refunded"]


def large(agent: str, number: int) -> dict[str, Any]:
    """A task with a unique input that is too large for a message."""
    return task(agent, task_id=f"large{number}", input=f"{number:03}" + "x" * 200_000, timeout=3, budget="0.02")


def damage(tasks: list[tuple[User, dict[str, Any]]], s3: Any, bucket: str) -> None:
    """Delete every second input and overwrite the others."""
    for number, (_, body) in enumerate(tasks):
        key = f"inputs/{sha256(body['input'].encode()).hexdigest()}"
        if number % 2:
            s3.delete_object(Bucket=bucket, Key=key)
        else:
            s3.put_object(Bucket=bucket, Key=key, Body=b"another")
