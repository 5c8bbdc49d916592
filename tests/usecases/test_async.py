"""Asynchronous tasks on a whole platform: submission, the queue, the worker and dead letters."""

import base64
import json
import sys
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from botocore.exceptions import ClientError

from quittance.api import messages
from quittance.api.identity import Caller
from quittance.api.models import AgentChange, TaskPending, TaskRequest, TaskResult, VersionRequest
from quittance.errors import (
    AgentNotReadyError,
    BudgetTooLowError,
    InsufficientFundsError,
    NotFoundError,
    PlatformUnavailableError,
    TaskConflictError,
    TaskInProgressError,
    TermsChangedError,
    TimeoutTooLongError,
)
from quittance.ledger.escrow import Escrow, escrow_id
from quittance.limits import (
    ESCROW_GRACE_MS,
    INPUT_BYTES_MAX,
    QUEUE_MESSAGE_BYTES_MAX,
    QUEUE_WAIT_MS_MAX,
    STDIN_BYTES_MAX,
    TIMEOUT_S_ASYNC_MAX,
    VERDICT_MS_MAX,
    WORK_SECONDS_MAX,
)
from quittance.observability import logger
from quittance.proof import receipt
from quittance.run import Input, Job, Outcome, Run
from quittance.store.queue import Delivery, NotDoneError, Queue
from quittance.usecases import deadletter, execute, launch, result
from quittance.usecases.agents import change as change_agent
from quittance.usecases.agents import describe, open_version, retire
from quittance.usecases.publish import publish
from quittance.usecases.work import work
from tests.functions.test_handlers import load
from tests.support import Cloud, wasm
from tests.usecases.test_execute import START, _CrashedError, _raise, ask, run
from tests.usecases.test_judges import LOOP, judge, judged_by, saying


class Bench:
    """A queue as a consumer sees it: messages are received, hidden and deleted by hand."""

    def __init__(self, cloud: Cloud, queue: Queue) -> None:
        self._cloud, self._client, self._url = cloud, queue._client, queue._url
        self.hidden: list[int] = []
        hide = queue.hide

        def note(receipt_handle: str, *, seconds: int) -> None:
            self.hidden.append(seconds)
            hide(receipt_handle, seconds=seconds)

        queue.hide = note  # type: ignore[method-assign]

    def receive(self) -> list[Delivery]:
        """All visible messages."""
        found = []
        while got := self._client.receive_message(
            QueueUrl=self._url, MaxNumberOfMessages=10, MessageSystemAttributeNames=["ApproximateReceiveCount"]
        ).get("Messages"):
            found += [
                Delivery(
                    one["MessageId"],
                    one["Body"],
                    one["ReceiptHandle"],
                    int(one["Attributes"]["ApproximateReceiveCount"]),
                )
                for one in got
            ]
        return found

    def one(self) -> Delivery:
        (delivery,) = self.receive()
        return delivery


@pytest.fixture
def rich(cloud: Cloud) -> Cloud:
    cloud.deposit("alice", START)
    return cloud


@pytest.fixture
def bench(rich: Cloud) -> Bench:
    return Bench(rich, rich.queue)


@pytest.fixture
def dead_letters(rich: Cloud) -> Bench:
    return Bench(rich, rich.dead_letters)


def submit(cloud: Cloud, agent_id: str, **changes: Any) -> TaskPending:
    pending = execute.submit(cloud, "alice", ask(agent_id, **changes))
    assert isinstance(pending, TaskPending)
    return pending


def stored_escrow(cloud: Cloud, task_id: str = "t-1") -> Escrow:
    escrow = cloud.ledger.find(escrow_id("alice", task_id))
    assert escrow is not None
    return escrow


def outcome(cloud: Cloud, task_id: str = "t-1") -> str | None:
    settlement = stored_escrow(cloud, task_id).settlement
    return settlement and settlement.outcome


def letter(request: TaskRequest, user: str = "alice", number: int = 1) -> Delivery:
    stdin = base64.b64encode(request.stdin.data).decode()
    return Delivery("m", messages.write(user, request, input_base64=stdin), "gone", number)


# Submission.


def test_submitted_task_is_funded_queued_and_run(rich: Cloud, bench: Bench) -> None:
    agent = rich.publish(wasm("echo"))
    pending = submit(rich, agent)
    held = stored_escrow(rich)
    assert (pending.escrow_status, pending.expires_at) == ("funded", held.expires_ms)
    assert held.lease_ms == held.funded_ms
    assert held.expires_ms == held.funded_ms + held.timeout_ms + ESCROW_GRACE_MS + QUEUE_WAIT_MS_MAX
    assert rich.ledger.available_micro("alice") == START - 50_000
    work(rich, bench.one())
    done = result.read(rich, Caller("alice"), "t-1")
    assert isinstance(done, TaskResult)
    assert (done.success, done.output) == (True, "hello")
    assert bench.hidden == [18], "as long as the lease: the agent's 10 s and the reserved time"
    assert execute.submit(rich, "alice", ask(agent)) == done
    assert bench.receive() == []
    assert rich.total_micro() == START


def test_refused_submission_sends_no_message(rich: Cloud, bench: Bench) -> None:
    agent = rich.publish(wasm("echo"))
    for changes, refusal in (
        ({"budget": "10.000001"}, InsufficientFundsError),
        ({"budget": "0.001"}, BudgetTooLowError),
    ):
        with pytest.raises(refusal):
            submit(rich, agent, **changes)
    with pytest.raises(NotFoundError):
        submit(rich, "agt_unknown")
    retire(rich, Caller("owner"), agent)
    with pytest.raises(AgentNotReadyError):
        submit(rich, agent)
    assert (rich.items("ESC#"), bench.receive()) == ([], [])


def test_repeated_request_is_queued_until_a_runner_holds_it(
    rich: Cloud, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = rich.publish(wasm("echo"))
    submit(rich, agent)
    rich.skew_ms = -5_000  # another environment, whose clock is behind
    submit(rich, agent)
    rich.skew_ms = 0
    first, second = bench.receive()
    with pytest.raises(TaskConflictError):
        submit(rich, agent, input="other")
    with monkeypatch.context() as patch:
        patch.setattr(launch, "run", _raise(_CrashedError))
        with pytest.raises(_CrashedError):
            work(rich, first)
    submit(rich, agent)
    assert bench.receive() == [], "the lease says that it is running"
    with pytest.raises(NotDoneError):
        work(rich, replace(second, number=3))
    assert bench.hidden[-1] in {15, 16, 17, 18}, (
        "until the other runner's lease lapses, whatever the delivery number is"
    )
    rich.skew_ms = 18_001
    submit(rich, agent)
    for delivery in (*bench.receive(), second, first):
        work(rich, delivery)
    assert outcome(rich) == "succeeded"
    assert stored_escrow(rich).fence == 3
    assert rich.ledger.available_micro("alice") == START - 10_000


def test_task_lost_before_the_queue_is_resent_or_refunded(
    rich: Cloud, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = rich.publish(wasm("echo"))
    broken = _raise(ClientError({"Error": {"Code": "InternalError"}}, "any"))
    for part, name in ((rich.queue._client, "send_message"), (rich.outputs._client, "put_object")):
        with monkeypatch.context() as patch:
            patch.setattr(part, name, broken)
            with pytest.raises(PlatformUnavailableError):
                submit(rich, agent, task_id=name, input="x" * 200_000 if name == "put_object" else "x")
        assert bench.receive() == []
    submit(rich, agent, task_id="send_message", input="x")
    work(rich, bench.one())
    assert outcome(rich, "send_message") == "succeeded"
    rich.skew_ms = stored_escrow(rich, "put_object").expires_ms - rich.now_ms()
    assert isinstance(result.read(rich, Caller("alice"), "put_object"), TaskResult)
    assert rich.ledger.available_micro("alice") == START - 10_000


@pytest.mark.parametrize("beyond", [0, 1])
def test_input_too_large_for_a_message_is_sent_by_digest(rich: Cloud, bench: Bench, beyond: int) -> None:
    agent = rich.publish(wasm("echo"))
    room = QUEUE_MESSAGE_BYTES_MAX - len(messages.write("alice", ask(agent), input_base64=""))
    data = b"x" * (room // 4 * 3 + 3 * beyond)
    submit(rich, agent, input=None, input_base64=base64.b64encode(data).decode())
    delivery = bench.one()
    assert len(delivery.body) <= QUEUE_MESSAGE_BYTES_MAX
    payload = json.loads(delivery.body)
    assert payload.get("input_sha256") == (sha256(data).hexdigest() if beyond else None)
    work(rich, delivery)
    done = result.read(rich, Caller("alice"), "t-1")
    assert isinstance(done, TaskResult)
    assert done.output == data.decode()


@pytest.mark.parametrize("size", [INPUT_BYTES_MAX + 1, STDIN_BYTES_MAX + 1])
def test_stored_input_beyond_the_limit_is_never_funded(rich: Cloud, size: int) -> None:
    """Whoever may write to the queue and to the bucket is held to the limit of every other entry point."""
    agent = rich.publish(wasm("echo"))
    stdin, before_micro = Input.of(b"x" * size), rich.ledger.available_micro("alice")
    rich.outputs.keep_input(stdin)
    body = messages.write("alice", ask(agent), input_sha256=stdin.sha256)
    with pytest.raises(NotDoneError):
        work(rich, Delivery("m", body, "gone", 1))
    assert rich.ledger.find(escrow_id("alice", "t-1")) is None
    assert rich.ledger.available_micro("alice") == before_micro


# Time limits.


def test_long_timeouts_run_only_from_the_queue(rich: Cloud, bench: Bench) -> None:
    agent = rich.publish(wasm("echo"), timeout=TIMEOUT_S_ASYNC_MAX)
    with pytest.raises(TimeoutTooLongError):
        run(rich, agent, timeout=TIMEOUT_S_ASYNC_MAX)
    submit(rich, agent, timeout=TIMEOUT_S_ASYNC_MAX)
    with pytest.raises(TaskInProgressError):
        run(rich, agent, timeout=TIMEOUT_S_ASYNC_MAX)
    submit(rich, agent, task_id="t-2")
    with pytest.raises(TaskInProgressError):
        run(rich, agent, task_id="t-2")
    assert stored_escrow(rich, "t-2").timeout_ms == TIMEOUT_S_ASYNC_MAX * 1_000
    for delivery in bench.receive():
        work(rich, delivery)
    assert [outcome(rich, task_id) for task_id in ("t-1", "t-2")] == ["succeeded"] * 2


def test_synchronous_request_runs_a_short_queued_task(rich: Cloud, bench: Bench) -> None:
    agent = rich.publish(wasm("echo"))
    submit(rich, agent)
    done = run(rich, agent)
    work(rich, bench.one())
    assert result.read(rich, Caller("alice"), "t-1") == done


def test_worker_timeout_covers_the_longest_run(template: dict[str, Any]) -> None:
    resources = template["Resources"]
    worker = resources["WorkFunction"]["Properties"]
    assert worker["Timeout"] == WORK_SECONDS_MAX
    assert WORK_SECONDS_MAX >= TIMEOUT_S_ASYNC_MAX + 3 * (launch.RUN_RESERVE_MS + VERDICT_MS_MAX) / 1_000 + 25, (
        "judges too"
    )
    assert template["Parameters"]["QueueVisibility"]["Default"] >= WORK_SECONDS_MAX, "AWS requires it"
    assert resources["TaskQueue"]["Properties"]["VisibilityTimeout"] == {"Ref": "QueueVisibility"}
    assert resources["TaskQueueAgeAlarm"]["Properties"]["Threshold"] > WORK_SECONDS_MAX
    assert (
        resources["TaskDeadLetters"]["Properties"]["VisibilityTimeout"]
        >= resources["DeadletterFunction"]["Properties"]["Timeout"]
    )
    for name, batch in (("WorkSource", 1), ("DeadletterSource", 10)):
        source = resources[name]["Properties"]
        assert (source["BatchSize"], source["FunctionResponseTypes"]) == (batch, ["ReportBatchItemFailures"])


# The worker.


def test_worker_funds_a_message_sent_by_others(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"))
    work(rich, letter(ask(agent)))
    assert outcome(rich) == "succeeded"
    assert run(rich, agent).success, "the same task through another entry point"


@pytest.mark.parametrize(("number", "again_s"), [(1, 2), (2, 8), (3, 32), (4, 128)])
def test_retry_delay_grows_while_a_part_is_unavailable(
    rich: Cloud, bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int, again_s: int
) -> None:
    agent = rich.publish(wasm("echo"))
    monkeypatch.setattr(rich.ledger, "fund", _raise(PlatformUnavailableError))
    with pytest.raises(NotDoneError):
        work(rich, letter(ask(agent), number=number))
    assert bench.hidden == [again_s]


def test_permanent_failure_is_redelivered_without_delay(rich: Cloud, bench: Bench) -> None:
    agent = rich.publish(wasm("echo"))
    for delivery in (letter(ask(agent), user="poor"), Delivery("m", "{", "gone", 1), letter(ask("agt_unknown"))):
        with pytest.raises(NotDoneError):
            work(rich, delivery)
    assert bench.hidden == [0, 0, 0]
    assert rich.items("ESC#") == []


def test_unknown_settlement_is_retried_after_its_lease(
    rich: Cloud, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = rich.publish(wasm("echo"))
    submit(rich, agent)
    delivery = bench.one()
    with monkeypatch.context() as patch:
        patch.setattr(rich.ledger, "settle", _raise(PlatformUnavailableError))
        with pytest.raises(NotDoneError):
            work(rich, delivery)
    assert bench.hidden == [18]
    rich.skew_ms = 18_001
    work(rich, delivery)
    assert outcome(rich) == "succeeded"


def test_unavailable_queue_fails_no_task(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"))
    broken = _raise(ClientError({"Error": {"Code": "ReceiptHandleIsInvalid"}}, "any"))
    monkeypatch.setattr(rich.queue._client, "change_message_visibility", broken)
    work(rich, letter(ask(agent)))
    assert outcome(rich) == "succeeded"


# The agent changes while the task waits.


@pytest.mark.parametrize("way", ["queue", "repetition"])
@pytest.mark.parametrize("change", ["version", "retired", "rules"])
def test_task_whose_agent_changed_is_refunded(rich: Cloud, bench: Bench, way: str, change: str) -> None:
    agent = rich.publish(wasm("echo"))
    submit(rich, agent, budget="0.02")
    if change == "retired":
        retire(rich, Caller("owner"), agent)
    else:
        terms = {"acceptance": {"max_bytes": 1_000}} if change == "rules" else {}
        open_version(rich, Caller("owner"), agent, VersionRequest.model_validate(terms))
        rich.post(agent, 2, wasm("wordcount") if change == "version" else wasm("echo"))
        assert publish(rich, f"uploads/{agent}/2") == "active"
    if way == "queue":
        work(rich, bench.one())
    else:
        assert not run(rich, agent, budget="0.02").success
    done = result.read(rich, Caller("alice"), "t-1")
    assert isinstance(done, TaskResult)
    assert done.error is not None
    assert (done.error.code, done.escrow_status, done.reputation_delta) == ("superseded", "refunded", 0)
    claims = receipt.verify(done.receipt, rich.keys.jwks())
    assert (claims["fault"], claims["limits"], claims["engine"], claims["stderr_sha256"]) == ("none", None, "", None)
    assert rich.ledger.available_micro("alice") == START


@pytest.mark.parametrize("way", ["queue", "repetition"])
@pytest.mark.parametrize("pinned", [False, True])
def test_a_funded_task_keeps_its_price(rich: Cloud, bench: Bench, way: str, pinned: bool) -> None:
    agent = rich.publish(wasm("echo"))
    pins = {"tariff_sha256": describe(rich, agent).tariff_sha256} if pinned else {}
    submit(rich, agent, budget="0.02", **pins)
    dearer = AgentChange.model_validate({"tariff": {"type": "flat", "price": "1"}, "limits": {"timeout": 1}})
    change_agent(rich, Caller("owner"), agent, dearer)
    with pytest.raises(TermsChangedError if pinned else BudgetTooLowError):
        run(rich, agent, task_id="new", budget="0.02", **pins)
    if way == "queue":
        work(rich, bench.one())
    else:
        assert run(rich, agent, budget="0.02", **pins).success
    done = result.read(rich, Caller("alice"), "t-1")
    assert isinstance(done, TaskResult)
    claims = receipt.verify(done.receipt, rich.keys.jwks())
    taken = [int(claims[name]) for name in ("paid", "fee", "compute")]
    assert (done.success, taken[0] + taken[1] - taken[2]) == (True, 10_000)
    assert execute.submit(rich, "alice", ask(agent, budget="0.02", **pins)) == done, "a repeat gets the same answer"


def test_task_waits_while_its_agent_is_recompiled(rich: Cloud, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"))
    submit(rich, agent)
    delivery = bench.one()
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_is_current", lambda _: False)
        patch.setattr(rich.publisher, "recompile", lambda _: None)
        with pytest.raises(NotDoneError):
            work(rich, delivery)
    assert bench.hidden == [5]
    work(rich, delivery)
    assert outcome(rich) == "succeeded"


# Dead letters.


def test_dead_letter_is_refunded_at_once(rich: Cloud, bench: Bench, dead_letters: Bench) -> None:
    agent = rich.publish(wasm("echo"))
    submit(rich, agent)
    delivery = bench.one()
    for _ in range(2):
        deadletter.handle(rich, delivery)
    done = result.read(rich, Caller("alice"), "t-1")
    assert isinstance(done, TaskResult)
    assert done.error is not None
    assert (done.error.code, done.escrow_status, done.reputation_delta) == ("undelivered", "refunded", 0)
    assert receipt.verify(done.receipt, rich.keys.jwks())["fault"] == "platform"
    assert rich.ledger.available_micro("alice") == START
    assert dead_letters.hidden == []
    work(rich, delivery)
    assert outcome(rich) == "undelivered", "a late message changes nothing"


@pytest.mark.parametrize("spoilt", ["missing", "tampered"])
def test_lost_input_is_the_platforms_fault(rich: Cloud, bench: Bench, spoilt: str) -> None:
    agent = rich.publish(wasm("echo"))
    submit(rich, agent, input="x" * 200_000)
    (key,) = (found["Key"] for found in rich._s3.list_objects_v2(Bucket="outputs", Prefix="inputs/")["Contents"])
    if spoilt == "missing":
        rich._s3.delete_object(Bucket="outputs", Key=key)
    else:
        rich._s3.put_object(Bucket="outputs", Key=key, Body=b"y" * 200_000)
    delivery = bench.one()
    with pytest.raises(NotDoneError):
        work(rich, delivery)
    assert bench.hidden == [0]
    deadletter.handle(rich, delivery)
    settlement = stored_escrow(rich).settlement
    assert settlement is not None
    assert settlement.outcome is Outcome.UNDELIVERED
    assert rich.ledger.available_micro("alice") == START


def test_dead_letter_waits_for_the_runners_lease(
    rich: Cloud, bench: Bench, dead_letters: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = rich.publish(wasm("echo"))
    submit(rich, agent)
    delivery = bench.one()
    with monkeypatch.context() as patch:
        patch.setattr(launch, "run", _raise(_CrashedError))
        with pytest.raises(_CrashedError):
            work(rich, delivery)
    with pytest.raises(NotDoneError):
        deadletter.handle(rich, delivery)
    assert dead_letters.hidden[0] in {17, 18}
    rich.skew_ms = 18_001
    deadletter.handle(rich, delivery)
    assert outcome(rich) == "undelivered"


def test_queued_judges_are_paid_and_refunded_with_dead_letters(rich: Cloud, bench: Bench) -> None:
    agent, judge = rich.publish(wasm("echo")), rich.publish(wasm("coverage"), owner="judith")
    wanted = {"judge": {"agent_id": judge, "threshold": "0.5", "budget": "0.05"}}
    for task_id in ("t-1", "t-2"):
        submit(rich, agent, task_id=task_id, budget="0.5", acceptance=wanted)
    assert rich.ledger.available_micro("alice") == START - 1_000_000
    done, dead = bench.receive()
    work(rich, done)
    assert [outcome(rich, task_id) for task_id in ("t-1", "t-1:judge-task")] == ["succeeded", "succeeded"]
    deadletter.handle(rich, dead)
    assert [outcome(rich, task_id) for task_id in ("t-2", "t-2:judge-task")] == ["undelivered", "not_needed"]
    assert rich.ledger.available_micro("alice") == START - 2 * 10_000
    assert rich.total_micro() == START


def test_overdue_dead_letter_expires(rich: Cloud, bench: Bench) -> None:
    submit(rich, rich.publish(wasm("echo")))
    rich.skew_ms = stored_escrow(rich).expires_ms - rich.now_ms()
    deadletter.handle(rich, bench.one())
    assert outcome(rich) == "expired"


def test_dead_letter_leaves_another_task_of_its_id_alone(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"))
    submit(rich, agent)
    deadletter.handle(rich, letter(ask(agent, input="other")))
    assert outcome(rich) is None
    assert rich.ledger.available_micro("alice") == START - 50_000


def test_unreadable_dead_letter_stays_in_the_queue(rich: Cloud, dead_letters: Bench) -> None:
    with pytest.raises(NotDoneError):
        deadletter.handle(rich, Delivery("m", "no JSON", "gone", 1))
    assert dead_letters.hidden == [900]


def test_dead_letter_stays_while_the_platform_is_unavailable(
    rich: Cloud, dead_letters: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    agent = rich.publish(wasm("echo"))
    submit(rich, agent)
    for method in ("find", "take_over", "settle"):
        with monkeypatch.context() as patch:
            patch.setattr(rich.ledger, method, _raise(PlatformUnavailableError))
            with pytest.raises(NotDoneError):
                deadletter.handle(rich, letter(ask(agent)))
    assert [record.message for record in caplog.records].count("dead letter not resolved") == 3
    assert dead_letters.hidden[:2] == [2, 2]
    assert dead_letters.hidden[2] in {7, 8}, "the handler holds a short lease after its takeover"
    rich.skew_ms = 18_001
    deadletter.handle(rich, letter(ask(agent)))
    assert outcome(rich) == "undelivered"
    assert rich.total_micro() == START


# The functions.


def batch(*bodies: str) -> dict[str, Any]:
    return {
        "Records": [
            {
                "messageId": f"m-{number}",
                "receiptHandle": "gone",
                "body": body,
                "attributes": {"ApproximateReceiveCount": "1"},
                "eventSource": "aws:sqs",
            }
            for number, body in enumerate(bodies)
        ]
    }


def test_only_failed_messages_of_a_batch_stay(rich: Cloud, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"))
    event = batch(letter(ask(agent)).body, "no JSON", letter(ask(agent), user="poor").body)
    for name, kept in (("work", ["m-1", "m-2"]), ("deadletter", ["m-1"])):
        function = load(name)
        monkeypatch.setattr(function, "platform", lambda _: rich)
        failures = function.handler(event, context)["batchItemFailures"]
        assert [failure["itemIdentifier"] for failure in failures] == kept
    assert outcome(rich) == "succeeded"


def test_unexpected_fault_keeps_the_message_and_is_logged(
    rich: Cloud, context: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The response to a batch only lists failed messages, so an exception that is not logged would be lost."""
    monkeypatch.setattr(logger.registered_handler, "stream", sys.stdout)
    function, event = load("work"), batch(letter(ask(rich.publish(wasm("echo")))).body)
    monkeypatch.setattr(function, "platform", lambda _: rich)
    monkeypatch.setattr(rich.registry, "get_cached", lambda _: 1 // 0)
    assert function.handler(event, context)["batchItemFailures"] == [{"itemIdentifier": "m-0"}]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    (logged,) = (line for line in lines if line.get("level") == "ERROR")
    assert (logged["message_id"], logged["exception_name"]) == ("m-0", "ZeroDivisionError")
    assert "aGVsbG8" not in json.dumps(logged), "logs never contain an input"


@pytest.mark.parametrize(("late_ms", "code"), [(-10_000, "timeout"), (1, "out_of_time")])
def test_task_too_late_for_its_timeout_is_not_started(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch, late_ms: int, code: str
) -> None:
    """Regression: payers who delayed the queue got runs of up to ten minutes for free, as platform failures."""
    agent = rich.publish(LOOP, timeout=2)
    assert isinstance(execute.submit(rich, "alice", ask(agent)), TaskPending)
    began: list[object] = []
    honest = rich.sandbox.run
    monkeypatch.setattr(rich.sandbox, "run", lambda job: began.append(job) or honest(job))
    rich.skew_ms = QUEUE_WAIT_MS_MAX + ESCROW_GRACE_MS - launch.RUN_RESERVE_MS + late_ms
    done = execute.execute(rich, "alice", ask(agent), timeout_s_max=TIMEOUT_S_ASYNC_MAX)
    assert isinstance(done, TaskResult)
    assert done.error is not None
    assert (done.error.code, len(began)) == (code, code == "timeout")


def test_judge_uses_the_time_that_a_late_run_leaves(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's run must be paid, so a judge is not refused because time is short."""
    agent = rich.publish(wasm("echo"), timeout=1)
    request = ask(agent, acceptance=judged_by(judge(rich, saying("1")), budget="0.01"))
    assert isinstance(execute.submit(rich, "alice", request), TaskPending)
    honest = rich.sandbox.run

    def slow(job: Job) -> Run:
        rich.skew_ms += 3_000 * (b"output" not in job.stdin)
        return honest(job)

    monkeypatch.setattr(rich.sandbox, "run", slow)
    kept_ms = 2 * (launch.RUN_RESERVE_MS + VERDICT_MS_MAX)
    rich.skew_ms = QUEUE_WAIT_MS_MAX + ESCROW_GRACE_MS - kept_ms - 1_000
    done = execute.execute(rich, "alice", request, timeout_s_max=TIMEOUT_S_ASYNC_MAX)
    assert isinstance(done, TaskResult)
    assert done.success
