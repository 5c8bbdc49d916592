"""From a change in a table's stream to the bus and a webhook: which events are emitted, and what is redelivered."""

import itertools
import json
import re
import threading
from typing import Any

import pytest

from quittance.api import outbound
from quittance.api.models import TaskRequest
from quittance.api.outbound import UndeliveredError
from quittance.errors import InvalidRequestError
from quittance.ledger.escrow import escrow_id
from quittance.ledger.journal import PayoutState
from quittance.limits import EVENT_BYTES_MAX, WEBHOOK_TRIES_MAX, WEBHOOK_WAIT_S_MAX
from quittance.proof import webhook
from quittance.proof.statement import Purpose
from quittance.store import clients
from quittance.store.ledger import left_funded
from quittance.usecases import execute, publish
from quittance.usecases import webhook as delivering
from tests import tickets
from tests.functions.test_handlers import load
from tests.support import ROOT, Cloud, stream_record, wasm
from tests.usecases.test_judges import judged_by, saying

HOOK = "https://receiver.example/hook?key=secret"
SQS_MESSAGE = {"messageId": "m", "receiptHandle": "r", "eventSource": "aws:sqs", "messageAttributes": {}}


def waiting(platform: Cloud) -> dict[str, Any]:
    """The only message in the webhook queue, as Lambda receives it."""
    got = platform.webhooks._client.receive_message(QueueUrl=platform.settings.webhook_queue_url)
    (message,) = got["Messages"]
    return SQS_MESSAGE | {"body": message["Body"], "receiptHandle": message["ReceiptHandle"]}


class Bus:
    """Records what is put on the bus. Refuses the entries whose numbers are in `refused`."""

    def __init__(self) -> None:
        self.details: list[dict[str, Any]] = []
        self.entries: list[dict[str, Any]] = []
        self.refused: set[int] = set()
        self._numbers = itertools.count()

    def put_events(self, *, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803 - as EventBridge names them
        if next(self._numbers) in self.refused:
            return {"FailedEntryCount": 1, "Entries": [{"ErrorCode": "InternalFailure"}]}
        self.entries += Entries
        self.details += [json.loads(entry["Detail"]) for entry in Entries]
        return {"FailedEntryCount": 0, "Entries": [{"EventId": "e"}]}


@pytest.fixture
def bus(platform: Cloud, monkeypatch: pytest.MonkeyPatch) -> Bus:
    bus = Bus()
    monkeypatch.setattr(platform.bus, "_client", bus)
    return bus


def run(platform: Cloud, agent_id: str, task_id: str, **more: Any) -> list[dict[str, Any]]:
    """Runs a task. Returns its item in both states: funded and settled."""
    items: list[dict[str, Any]] = []
    settle = platform.ledger.settle

    def watched(*args: Any) -> Any:
        items.append(item(platform, task_id))
        return settle(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform.ledger, "settle", watched)
        body = {"task_id": task_id, "agent_id": agent_id, "input": "secret input", "budget": "0.05"} | more
        execute.execute(platform, "alice", TaskRequest.model_validate(body))
    return [*items, item(platform, task_id)]


def item(platform: Cloud, task_id: str) -> dict[str, Any]:
    (found,) = platform.items(f"ESC#{escrow_id('alice', task_id)}")
    return found


def notify(context: Any, *records: dict[str, Any]) -> list[str]:
    answer = load("notify").handler({"Records": [*records]}, context)
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def test_only_an_escrow_that_leaves_funded_emits_an_event(platform: Cloud, bus: Bus, context: Any) -> None:
    agent_id = platform.publish(wasm("echo"))
    funded, settled = run(platform, agent_id, "t")
    taken_over = funded | {"fence": {"N": "2"}, "runner": {"S": "other"}}
    assert platform.ledger.credit([escrow_id("alice", "t")], now_ms=platform.now_ms()).escrows == 1
    swept = item(platform, "t")
    assert swept != settled
    silent = [(funded, taken_over), (settled, swept), (settled, settled), ({}, funded)]
    shards = platform.items("ACCT#")
    silent += [(shard, shard | {"available": {"N": "1"}}) for shard in shards]
    assert notify(context, *(stream_record(number, *change) for number, change in enumerate(silent))) == []
    assert bus.details == []
    assert left_funded(funded, taken_over) is None
    assert notify(context, stream_record(7, taken_over, settled)) == []
    (detail,) = bus.details
    assert (detail["task_id"], detail["amount_paid"], detail["owner"]) == ("t", "0.00975", "owner")
    assert detail["receipt"] == settled["receipt"]["S"]
    assert "secret input" not in json.dumps(bus.entries)
    assert (bus.entries[0]["EventBusName"], bus.entries[0]["DetailType"]) == ("bus", "TaskSettled")


def test_ticket_settled_by_its_first_write_emits_one_event(platform: Cloud, bus: Bus, context: Any) -> None:
    channel = tickets.opened(platform)
    agent_id = platform.publish(wasm("echo"))
    task = tickets.task(channel.channel_id, 2, agent_id, budget="0.1", webhook=HOOK)
    execute.redeem(platform, channel.channel_id, task, tickets.ticket(platform, task))
    inserted = platform.items("ESC#")
    platform.channels.begin_closing(platform.channels.get(channel.channel_id), close_ms=0)
    platform.channels.count_out(platform.channels.get(channel.channel_id), now_ms=1)
    items = platform.items()
    assert sum("part_of" in each for each in items) == 1
    assert any("void_ms" in each for each in items)
    assert notify(context, *(stream_record(n, {}, each) for n, each in enumerate(items))) == []
    (detail,) = bus.details
    assert (detail["event"], detail["task_id"], detail["amount_paid"], detail["owner"], detail["user"]) == (
        "TaskSettled", task.task_id, "0.00975", "owner", "alice",
    )  # fmt: skip
    assert json.loads(waiting(platform)["body"])["url"] == HOOK
    (stored,) = (each for each in inserted if "state" in each)
    swept = stored | {"swept_ms": {"N": "1"}}
    assert notify(context, stream_record(99, stored, swept)) == []
    assert len(bus.details) == 1, "the sweep's mark emits nothing"


def test_held_ticket_emits_its_event_when_it_settles(platform: Cloud, bus: Bus, context: Any) -> None:
    platform.deposit("alice", 9_000_000)
    channel = tickets.opened(platform, ticket_value="0.5")
    judge = platform.publish(saying("1"), owner="judge-owner")
    echo = platform.publish(wasm("echo"))
    task = tickets.task(channel.channel_id, 1, echo, budget="0.5", acceptance=judged_by(judge))
    execute.redeem(platform, channel.channel_id, task, tickets.ticket(platform, task))
    items = platform.items("ESC#")
    funded = [each | {"state": {"S": "funded"}} for each in items]
    assert notify(context, *(stream_record(n, {}, each) for n, each in enumerate(funded))) == []
    assert bus.details == []
    changes = zip(funded, items, strict=True)
    assert notify(context, *(stream_record(9 + n, *change) for n, change in enumerate(changes))) == []
    assert sorted(detail["agent_id"] for detail in bus.details) == sorted([echo, judge])


def test_event_refused_by_the_bus_is_emitted_again_unchanged(platform: Cloud, bus: Bus, context: Any) -> None:
    agent_id = platform.publish(wasm("echo"))
    records = [stream_record(n, *run(platform, agent_id, f"t-{n}", webhook=HOOK)) for n in range(3)]
    bus.refused = {1}
    assert notify(context, *records) == ["1"]
    assert [detail["task_id"] for detail in bus.details] == ["t-0", "t-2"]
    assert notify(context, *records[1:]) == []
    ids = [detail["event_id"] for detail in bus.details]
    assert (len(ids), len(set(ids))) == (4, 3)


def test_unreadable_record_is_logged_and_blocks_no_other(
    platform: Cloud, bus: Bus, context: Any, caplog: pytest.LogCaptureFixture
) -> None:
    agent_id = platform.publish(wasm("echo"))
    funded, settled = run(platform, agent_id, "t")
    broken = {name: value for name, value in settled.items() if name != "paid"}
    assert notify(context, stream_record(1, funded, broken), stream_record(2, funded, settled)) == ["1"]
    assert len(bus.details) == 1
    (logged,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert (logged.message, logged.event_id) == ("record failed", "1")  # type: ignore[attr-defined]  # an extra field


def test_record_is_redelivered_while_the_queue_is_down(
    platform: Cloud, bus: Bus, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_id = platform.publish(wasm("echo"))
    record = stream_record(1, *run(platform, agent_id, "t", webhook=HOOK))
    with monkeypatch.context() as patch:
        patch.setattr(platform.webhooks, "_url", platform.settings.webhook_queue_url + "-gone")
        assert notify(context, record) == ["1"]
    assert notify(context, record) == []
    assert waiting(platform)


def test_real_clients_carry_an_event_from_table_to_bus(platform: Cloud, context: Any) -> None:
    """Uses the real clients: a rule of the bus sends each event to a queue."""
    session = clients._session()
    sqs, events = session.client("sqs"), session.client("events")
    queue = sqs.create_queue(QueueName="listener")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_rule(Name="all", EventBusName="bus", EventPattern=json.dumps({"source": ["quittance"]}))
    events.put_targets(Rule="all", EventBusName="bus", Targets=[{"Id": "q", "Arn": arn}])
    agent_id = platform.publish(wasm("echo"))
    assert notify(context, stream_record(1, *run(platform, agent_id, "t"))) == []
    (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
    assert json.loads(message["Body"])["detail"]["task_id"] == "t"


def test_event_over_the_bus_limit_is_never_sent(platform: Cloud, bus: Bus) -> None:
    detail = json.dumps({"a": "é"}, ensure_ascii=False)
    room = EVENT_BYTES_MAX - len("s" + "t") - len(detail.encode())
    platform.bus.put(source="s", type_="t", detail=detail.replace("é", "é" + " " * room))
    with pytest.raises(ValueError, match="at most"):
        platform.bus.put(source="s", type_="t", detail=detail.replace("é", "é" + " " * (room + 1)))
    assert len(bus.entries) == 1


def test_decided_uploads_emit_events(platform: Cloud, bus: Bus, context: Any) -> None:
    scan = platform.dynamodb.get_paginator("scan").paginate

    def agent() -> dict[str, Any]:
        (found,) = (
            i for page in scan(TableName="RegistryTable") for i in page["Items"] if i["pk"]["S"].startswith("AGENT#")
        )
        return found

    agent_id = platform.publish(wasm("echo"))
    active = agent()
    publishing_now = active | {"upload_state": {"S": "publishing"}}
    recompiled = active | {"engine": {"S": "next"}}
    assert notify(context, stream_record(1, publishing_now, active), stream_record(2, active, recompiled)) == []
    platform.registry.open_upload(platform.registry.get(agent_id), platform.registry.get(agent_id).terms)
    opened = agent()
    platform.post(agent_id, 2, b"\0asm\1\0\0\0")
    assert publish.publish(platform, f"uploads/{agent_id}/2") == "rejected"
    rejected = agent()
    assert notify(context, stream_record(3, active, opened), stream_record(4, opened, rejected)) == []
    assert [(one["event"], one["upload"]) for one in bus.details] == [("AgentPublished", 1), ("AgentRejected", 2)]
    again = rejected | {"upload_number": {"N": "3"}}
    assert notify(context, stream_record(5, rejected, again)) == []
    assert bus.details[-1]["upload"] == 3


def test_requested_and_decided_payouts_emit_events(platform: Cloud, bus: Bus, context: Any) -> None:
    payout = platform.ledger.withdraw("alice", "w-1", 500_000, now_ms=platform.now_ms())
    (requested,) = platform.items("OUT#")
    platform.ledger.decide_payout(payout, PayoutState.FAILED, by="bank", now_ms=platform.now_ms())
    (failed,), (returned,) = platform.items("OUT#"), platform.items("BACK#")
    older = {name: value for name, value in requested.items() if name not in {"payout", "work", "work_at"}}
    silent = [(requested, requested), (failed, failed), ({}, returned), ({}, older)]
    assert notify(context, *(stream_record(number, *change) for number, change in enumerate(silent))) == []
    assert bus.details == []
    emitting = [({}, requested), (requested, failed), (older, failed)]
    assert notify(context, *(stream_record(number, *change) for number, change in enumerate(emitting))) == []
    assert [one["event"] for one in bus.details] == ["PayoutRequested", "PayoutDecided", "PayoutDecided"]
    assert [one["event_id"].rpartition(".")[2] for one in bus.details] == ["requested", "failed", "failed"]
    assert {one["amount"] for one in bus.details} == {"0.5"}


def test_judges_escrow_emits_an_event_but_calls_no_webhook(platform: Cloud, bus: Bus, context: Any) -> None:
    judge, agent_id = platform.publish(saying("1")), platform.publish(wasm("echo"))
    run(platform, agent_id, "t", webhook=HOOK, acceptance=judged_by(judge, budget="0.02"))
    escrows = sorted(platform.items("ESC#"), key=lambda one: one["task_id"]["S"])
    assert [("webhook" in one, one["task_id"]["S"]) for one in escrows] == [(True, "t"), (False, "t:judge-task")]
    funded = [one | {"state": {"S": "funded"}} for one in escrows]
    assert notify(context, *(stream_record(n, *pair) for n, pair in enumerate(zip(funded, escrows, strict=True)))) == []
    assert [detail["task_id"] for detail in bus.details] == ["t", "t:judge-task"]
    assert json.loads(json.loads(waiting(platform)["body"])["body"])["task_id"] == "t"


# Deliveries.


class Receiver:
    """A stand-in for receivers: responds with the given statuses, then with 200."""

    def __init__(self, *statuses: int | None) -> None:
        self.statuses, self.got = [*statuses], []  # type: ignore[var-annotated]  # filled below

    def post(self, url: str, body: bytes, headers: dict[str, str], *, loopback: bool) -> int:
        self.got.append((url, body, headers, loopback))
        status = self.statuses.pop(0) if self.statuses else 200
        if status is None:
            raise UndeliveredError("no response")
        return status


def deliver(context: Any, message: dict[str, Any], tries: int = 1) -> bool:
    """Delivers a message. Returns whether it may leave the queue."""
    message = message | {"attributes": {"ApproximateReceiveCount": str(tries)}}
    return not load("webhook").handler({"Records": [message]}, context)["batchItemFailures"]


@pytest.fixture
def message(platform: Cloud, bus: Bus, context: Any) -> dict[str, Any]:
    agent_id = platform.publish(wasm("echo"))
    assert notify(context, stream_record(1, *run(platform, agent_id, "t", webhook=HOOK))) == []
    return waiting(platform)


@pytest.fixture
def delays(platform: Cloud, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    monkeypatch.setattr(platform.webhooks, "hide", lambda _, seconds: made.append(seconds))
    return made


def test_webhook_delivers_the_event_signed_for_its_receiver(
    platform: Cloud, bus: Bus, context: Any, message: dict[str, Any], delays: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver()
    monkeypatch.setattr(outbound, "post", receiver.post)
    assert deliver(context, message)
    ((url, body, headers, loopback),) = receiver.got
    assert (url, loopback, delays) == (HOOK, False, [])
    assert json.loads(body) == bus.details[0]
    stated = webhook.verify(
        body, headers["Quittance-Signature"], url=HOOK, jwks=platform.keys.jwks(), now_ms=platform.now_ms()
    )
    assert stated.event_id == headers["Quittance-Event-Id"] == bus.details[0]["event_id"]
    assert all(len(value) < 8_000 for value in headers.values()), "most servers accept no longer header"


@pytest.mark.parametrize("status", [None, 199, 300, 301, 400, 404, 429, 500, 503])
def test_delivery_is_retried_unless_success_or_gone(
    context: Any, message: dict[str, Any], delays: list[int], monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    monkeypatch.setattr(outbound, "post", Receiver(status).post)
    assert not deliver(context, message)
    assert 3 <= delays[0] <= 5


@pytest.mark.parametrize("status", [200, 204, 299, 410])
def test_success_and_gone_end_the_delivery(
    context: Any, message: dict[str, Any], delays: list[int], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(outbound, "post", Receiver(status).post)
    assert deliver(context, message)
    assert delays == []


def test_last_attempt_sends_the_message_to_the_dead_letters(
    context: Any, message: dict[str, Any], delays: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "post", Receiver(500, 500).post)
    for tries in (WEBHOOK_TRIES_MAX - 1, WEBHOOK_TRIES_MAX):
        assert not deliver(context, message, tries)
    assert delays[0] >= WEBHOOK_WAIT_S_MAX // 2
    assert delays[1] == 0


def test_retry_delays_double_and_are_capped() -> None:
    for tries in range(1, 3 * WEBHOOK_TRIES_MAX):
        most = min(WEBHOOK_WAIT_S_MAX, 5 * 2 ** (tries - 1))
        assert all(most / 2 <= delivering.delay_s(tries) <= most for _ in range(20))


def test_message_that_cannot_be_hidden_or_signed_stays(
    platform: Cloud, context: Any, message: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "post", Receiver(500).post)
    assert not deliver(context, message | {"receiptHandle": "forged"})
    none = {Purpose.WEBHOOK: "arn:aws:kms:eu-central-1:123456789012:key/none"}
    monkeypatch.setattr(platform.keys, "_signing_keys", {})
    monkeypatch.setattr(platform.keys, "_first", none)
    assert not deliver(context, message)


def test_webhook_url_and_signature_are_never_logged(
    context: Any, message: dict[str, Any], delays: list[int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(outbound, "post", Receiver(None).post)
    deliver(context, message)
    deliver(context, message | {"body": json.dumps({"url": HOOK})})
    text = "".join(capsys.readouterr())
    assert "secret" not in text
    assert "eyJ" not in text


def test_howto_receiver_accepts_only_its_own_events(platform: Cloud) -> None:
    page = (ROOT / "docs" / "howto" / "webhooks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    jwks, serve = (re.search(line, code, re.MULTILINE) for line in ("^JWKS = .*$", "^HTTPServer.*$"))
    assert jwks
    assert serve
    names: dict[str, Any] = {"given": platform.keys.jwks()}
    exec(code.replace(jwks[0], "JWKS = given").replace(serve[0], ""), names)
    with names["HTTPServer"](("127.0.0.1", 0), names["Receiver"]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def sent(body: bytes, signed: bytes, url: str) -> int:
            now_ms = platform.now_ms()
            key = platform.keys.signing_key(now_s=now_ms // 1_000, purpose=Purpose.WEBHOOK)
            signature = webhook.sign(signed, url=url, event_id="e", issuer="i", now_ms=now_ms, key=key)
            headers = {"Quittance-Signature": signature}
            return outbound.post(f"http://127.0.0.1:{server.server_port}/", body, headers, loopback=True)

        try:
            body = b'{"outcome":"succeeded"}'
            assert sent(body, body, names["URL"]) == 204
            assert sent(body + b" ", body, names["URL"]) == 401
            assert sent(body, body, "https://elsewhere.example/") == 401
        finally:
            server.shutdown()
            thread.join()


# Webhook URLs in requests.


@pytest.mark.parametrize(
    ("url", "sentence"),
    [("http://receiver.example/", "https"), ("https://10.0.0.1/", "private"), ("https://a:8443/", "443")],
)
def test_forbidden_webhook_target_is_refused_before_funding(platform: Cloud, url: str, sentence: str) -> None:
    agent_id = platform.publish(wasm("echo"))
    before = platform.ledger.available_micro("alice")
    with pytest.raises(InvalidRequestError, match=sentence) as refused:
        run(platform, agent_id, "t", webhook=url)
    assert [error["field"] for error in refused.value.members["errors"]] == ["webhook"]  # type: ignore[attr-defined]  # a member
    assert platform.ledger.available_micro("alice") == before


def test_loopback_option_allows_loopback_targets_only(platform: Cloud) -> None:
    agent_id = platform.publish(wasm("echo"))
    platform.settings = platform.settings.model_copy(update={"webhook_loopback_targets": True})
    for number, url in enumerate(("http://127.0.0.1:8000/", "http://localhost/", "https://[::1]:8443/")):
        assert run(platform, agent_id, f"t{number}", webhook=url)[-1]["webhook"]["S"] == url
    before = platform.ledger.available_micro("alice")
    for url in ("http://10.0.0.1/", "https://192.168.0.1/", "http://169.254.169.254/", "http://[::ffff:127.0.0.1]/"):
        with pytest.raises(InvalidRequestError, match="private"):
            run(platform, agent_id, "u", webhook=url)
    assert platform.ledger.available_micro("alice") == before
