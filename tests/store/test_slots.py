"""The limit on an account's concurrent tasks, over HTTP and from the queue."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from quittance.api.models import TaskResult
from quittance.config import Settings
from quittance.errors import TaskInProgressError, TooManyRunningError
from quittance.limits import SLOT_RETRY_S_MAX, SLOT_RETRY_S_MIN, SLOTS_MAX
from quittance.usecases import execute, launch
from quittance.usecases.work import work
from tests.functions import test_handlers
from tests.functions.test_handlers import Call, task
from tests.support import Cloud, wasm
from tests.usecases.test_async import Bench, outcome, submit
from tests.usecases.test_execute import START, _CrashedError, _raise, ask, run

call = test_handlers.call  # the fixture
Within = Callable[[Callable[[], Any]], TaskResult]


@pytest.fixture
def rich(cloud: Cloud) -> Cloud:
    for user in ("alice", "bob"):
        cloud.deposit(user, START)
    return cloud


@pytest.fixture
def echo(rich: Cloud) -> str:
    return rich.publish(wasm("echo"))


@pytest.fixture
def within(rich: Cloud, echo: str, monkeypatch: pytest.MonkeyPatch) -> Within:
    """Calls a function while a task of alice's is in the sandbox."""
    number = 0

    def during(act: Callable[[], Any]) -> TaskResult:
        nonlocal number
        number += 1
        honest = rich.sandbox.run

        def meanwhile(job: Any) -> Any:
            monkeypatch.setattr(rich.sandbox, "run", honest)
            act()
            return honest(job)

        monkeypatch.setattr(rich.sandbox, "run", meanwhile)
        return run(rich, echo, task_id=f"outer-{number}")

    return during


def limit(cloud: Cloud, slots: int) -> None:
    cloud.settings = cloud.settings.model_copy(update={"account_concurrency": slots})


def held(cloud: Cloud) -> int:
    return sum(int(item["lease_ms"]["N"]) > cloud.now_ms() for item in cloud.items("SLOT#"))


@pytest.mark.parametrize("slots", [1, 2])
def test_concurrent_tasks_are_limited_by_the_slots(rich: Cloud, echo: str, within: Within, slots: int) -> None:
    limit(rich, slots)
    refused: list[TooManyRunningError] = []

    def at_the_limit() -> None:
        with pytest.raises(TooManyRunningError) as refusal:
            run(rich, echo, task_id="one-more")
        refused.append(refusal.value)
        assert run(rich, echo, user="bob").success, "other accounts are not affected"

    innermost: Callable[[], Any] = at_the_limit
    for _ in range(slots - 1):
        innermost = lambda inner=innermost: within(inner)  # type: ignore[misc]  # noqa: E731 - bound now
    assert within(innermost).success
    assert SLOT_RETRY_S_MIN <= (refused[0].retry_after_s or 0) <= SLOT_RETRY_S_MAX
    assert held(rich) == 0
    assert run(rich, echo, task_id="one-more").success, "its slot is free again"
    assert rich.ledger.available_micro("alice") == START - (slots + 1) * 10_000


def test_no_free_slot_is_a_429_and_moves_no_money(platform: Cloud, call: Call) -> None:
    limit(platform, 1)
    agent = platform.publish(wasm("echo"))
    now_ms = platform.now_ms()
    platform.slots.take("alice", "another", of=1, now_ms=now_ms, lease_ms=now_ms + 5_000)
    status, problem, headers = call("execute", "POST", "/tasks/execute", task(agent))
    assert (status, problem["code"], problem["running_max"]) == (429, "too_many_running", 1)
    assert int(headers["Retry-After"]) in {4, 5}
    assert platform.ledger.available_micro("alice") == 1_000_000


@pytest.mark.parametrize(
    ("lapses_ms", "again_s"),
    [
        (1, SLOT_RETRY_S_MIN),
        (SLOT_RETRY_S_MIN * 1_000 + 1, SLOT_RETRY_S_MIN + 1),
        (SLOT_RETRY_S_MAX * 1_000, SLOT_RETRY_S_MAX),
        (SLOT_RETRY_S_MAX * 1_000 + 1, SLOT_RETRY_S_MAX),
    ],
)
def test_the_429_states_when_the_first_slot_lapses(
    rich: Cloud, echo: str, monkeypatch: pytest.MonkeyPatch, lapses_ms: int, again_s: int
) -> None:
    limit(rich, 1)
    now_ms = rich.now_ms()
    monkeypatch.setattr(rich, "now_ms", lambda: now_ms)
    rich.slots.take("alice", "another", of=1, now_ms=now_ms, lease_ms=now_ms + lapses_ms)
    with pytest.raises(TooManyRunningError) as refusal:
        run(rich, echo)
    assert refusal.value.retry_after_s == again_s


@pytest.mark.parametrize(("slots", "taken"), [(0, True), (SLOTS_MAX, True), (SLOTS_MAX + 1, False), (-1, False)])
def test_the_slot_limit_is_the_size_of_one_read(cloud: Cloud, slots: int, taken: bool) -> None:
    fields = cloud.settings.model_dump() | {"account_concurrency": slots}
    if taken:
        assert Settings.model_validate(fields).account_concurrency == slots
    else:
        with pytest.raises(ValidationError):
            Settings.model_validate(fields)


def test_all_slots_of_the_largest_account_can_be_used(rich: Cloud, echo: str) -> None:
    limit(rich, SLOTS_MAX)
    now_ms = rich.now_ms()
    for number in range(SLOTS_MAX):
        rich.slots.take("alice", f"other-{number}", of=SLOTS_MAX, now_ms=now_ms, lease_ms=now_ms + 600_000)
    while held(rich) < SLOTS_MAX:  # a free slot may be missed if the read finds more than are tried
        rich.slots.take("alice", f"more-{held(rich)}", of=SLOTS_MAX, now_ms=now_ms, lease_ms=now_ms + 600_000)
    with pytest.raises(TooManyRunningError):
        run(rich, echo)


def test_without_a_slot_limit_nothing_is_written(rich: Cloud, echo: str) -> None:
    limit(rich, 0)
    assert run(rich, echo).success
    assert rich.items("SLOT#") == []


def test_repeats_need_no_free_slot(rich: Cloud, echo: str, within: Within) -> None:
    limit(rich, 1)
    done = run(rich, echo)

    def repeat() -> None:
        assert run(rich, echo) == done
        with pytest.raises(TaskInProgressError):
            run(rich, echo, task_id="outer-1")

    within(repeat)


def test_every_end_of_a_task_releases_its_slot(rich: Cloud, echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(rich, 1)
    assert not run(rich, rich.publish(wasm("failing")), task_id="failed").success
    with monkeypatch.context() as patch:
        patch.setattr(launch, "run", _raise(_CrashedError))
        with pytest.raises(_CrashedError):
            run(rich, echo, task_id="crashed")
    assert held(rich) == 0
    assert run(rich, echo).success


def test_the_slot_of_a_killed_runner_lapses(rich: Cloud, echo: str) -> None:
    limit(rich, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rich.slots, "give_back", lambda *_: None)
        assert run(rich, echo, task_id="killed").success
    with pytest.raises(TooManyRunningError):
        run(rich, echo)
    rich.skew_ms = 18_000  # the agent's 10 s, and the reserve of the lease
    assert run(rich, echo).success


# The queue.


def test_a_queued_task_without_a_slot_is_sent_again(
    rich: Cloud, echo: str, within: Within, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five and more attempts use up no delivery, and the message stays in its user's group."""
    limit(rich, 1)
    bench = Bench(rich, rich.queue)
    sent: list[dict[str, Any]] = []
    honest = rich.queue._client.send_message

    def send(**asked: Any) -> Any:
        sent.append(asked)
        return honest(**asked | {"DelaySeconds": 0})  # no delay in the test

    def try_in_vain() -> None:
        for _ in range(6):
            delivery = bench.one()
            assert delivery.number == 1
            work(rich, delivery)
            assert outcome(rich, "waiting") is None
            rich.queue._client.delete_message(
                QueueUrl=rich.settings.task_queue_url, ReceiptHandle=delivery.receipt_handle
            )

    monkeypatch.setattr(rich.queue._client, "send_message", send)
    submit(rich, echo, task_id="waiting")
    within(try_in_vain)
    work(rich, bench.one())
    assert [SLOT_RETRY_S_MIN <= one["DelaySeconds"] <= SLOT_RETRY_S_MAX for one in sent] == [False] + [True] * 6
    assert {one["MessageGroupId"] for one in sent} == {sent[0]["MessageGroupId"]}
    assert {one["MessageBody"] for one in sent} == {sent[0]["MessageBody"]}
    assert outcome(rich, "waiting") == "succeeded"


def test_the_queue_groups_messages_by_user(rich: Cloud, echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQS distributes its consumers by MessageGroupId, which is shorter than an account id may be."""
    groups: list[str] = []
    monkeypatch.setattr(rich.queue._client, "send_message", lambda **asked: groups.append(asked["MessageGroupId"]))
    longest = "u" * 255
    rich.deposit(longest, START)
    for user in ("alice", "bob", "alice", longest):
        execute.submit(rich, user, ask(echo, task_id=f"t-{len(groups)}"))
    assert groups[0] == groups[2]
    assert len(set(groups)) == 3
    assert max(map(len, groups)) <= 128
