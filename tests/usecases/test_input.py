"""The input of a task: how it reaches the agent, whether it is kept, and repeats of requests of earlier commits.

An escrow of an earlier commit is made with the bytes that it passed to the agent: numbers as doubles. Its digests are
the same, because they are of the bytes.
"""

import base64
import hashlib
import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from quittance.api.identity import Caller
from quittance.api.models import DirectTaskRequest, TaskInput, TaskPending, TaskRequest, TaskResult
from quittance.api.requests import read_json
from quittance.errors import NotFoundError, TaskConflictError, TaskInProgressError
from quittance.ledger.escrow import escrow_id
from quittance.limits import INPUT_BYTES_MAX, KIB, OUTPUT_INLINE_BYTES_MAX
from quittance.proof import receipt
from quittance.store.queue import Delivery
from quittance.usecases import audit, deadletter, execute, launch, result
from quittance.usecases.agents import retire
from quittance.usecases.sweep import sweep
from quittance.usecases.work import work
from tests.support import Cloud, wasm
from tests.usecases.test_async import Bench
from tests.usecases.test_execute import START, _CrashedError, _raise
from tests.usecases.test_judges import judge, judged_by, saying

NUMBERS = "[12345678901234567.25,1e3,1E+2,-0,0.10]"
DOUBLES = "[1.2345678901234568e+16,1000.0,100.0,0,0.1]"
ALICE, OWNER = Caller("alice"), Caller("owner")


@pytest.fixture
def rich(cloud: Cloud) -> Cloud:
    cloud.deposit("alice", START)
    return cloud


@pytest.fixture
def bench(rich: Cloud) -> Bench:
    return Bench(rich, rich.queue)


def text_of(agent_id: str, sent: str, **members: Any) -> str:
    """A message for the queue, or a body if it is without `user_id`."""
    fields = {"task_id": "t-1", "agent_id": agent_id, "budget": "0.05", **members}
    return f'{json.dumps(fields)[:-1]}, "input": {sent}}}'


def ask(agent_id: str, sent: str, **members: Any) -> TaskRequest:
    return TaskRequest.model_validate(read_json(text_of(agent_id, sent, **members)))


def old(agent_id: str, stdin: str, **members: Any) -> TaskRequest:
    """The request as an earlier commit funded it."""
    encoded = base64.b64encode(stdin.encode()).decode()
    fields = {"task_id": "t-1", "agent_id": agent_id, "budget": "0.05", "input_base64": encoded, **members}
    return TaskRequest.model_validate(fields)


def run(cloud: Cloud, request: TaskRequest) -> TaskResult:
    done = execute.execute(cloud, "alice", request)
    assert isinstance(done, TaskResult)
    return done


def differences(cloud: Cloud) -> int:
    return audit.audit(cloud).count


def item(cloud: Cloud, task_id: str = "t-1") -> dict[str, Any]:
    (found,) = cloud.items(f"ESC#{escrow_id('alice', task_id)}")
    return found


# The agent reads what was sent.


def test_an_agent_reads_the_numbers_that_were_sent(rich: Cloud) -> None:
    sent = f' {{ "b" : {NUMBERS.replace(",", " , ")},\n"a" : "\\u00e9\\/" }} '
    done = run(rich, ask(rich.publish(wasm("echo")), sent))
    assert done.output == f'{{"b":{NUMBERS},"a":"é/"}}'
    assert done.input_sha256 == hashlib.sha256(done.output.encode()).hexdigest()
    assert receipt.verify(done.receipt, rich.keys.jwks())["input_sha256"] == done.input_sha256


@pytest.mark.parametrize("event", [False, True])
def test_an_agent_reads_the_numbers_of_a_message(rich: Cloud, event: bool) -> None:
    body = text_of(rich.publish(wasm("echo")), NUMBERS, user_id="alice")
    body = f'{{"detail-type":"TaskRequested","source":"a","detail":{body}}}' if event else body
    work(rich, Delivery("m", body, "gone", 1))
    done = result.read(rich, ALICE, "t-1")
    assert isinstance(done, TaskResult)
    assert done.output == NUMBERS


def test_a_queued_task_reads_the_numbers_that_were_sent(rich: Cloud, bench: Bench) -> None:
    execute.submit(rich, "alice", ask(rich.publish(wasm("echo")), NUMBERS))
    work(rich, bench.one())
    assert run(rich, ask(item(rich)["agent_id"]["S"], NUMBERS)).output == NUMBERS


def test_another_spelling_of_a_number_is_another_request(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"))
    run(rich, ask(agent, "1e3"))
    for other in ("1000.0", "1000", "1E3"):
        with pytest.raises(TaskConflictError):
            run(rich, ask(agent, other))
    assert run(rich, ask(agent, " 1e3\n")).output == "1e3", "white space does not count"


# A repeat of a request that an earlier commit funded.


def test_a_settled_task_of_an_earlier_commit_is_answered(rich: Cloud, bench: Bench) -> None:
    agent = rich.publish(wasm("echo"))
    first = run(rich, old(agent, DOUBLES))
    assert run(rich, ask(agent, NUMBERS)) == first
    assert execute.submit(rich, "alice", ask(agent, NUMBERS)) == first
    work(rich, Delivery("m", text_of(agent, NUMBERS, user_id="alice"), "gone", 1))
    retire(rich, OWNER, agent)
    assert run(rich, ask(agent, NUMBERS)) == first
    assert first.output == DOUBLES
    assert bench.receive() == []
    assert rich.ledger.available_micro("alice") == START - 10_000
    with pytest.raises(TaskConflictError):
        run(rich, ask(agent, NUMBERS.replace("3", "4")))
    with pytest.raises(TaskConflictError):
        run(rich, ask(agent, NUMBERS, keep_input=True))


def test_a_funded_task_of_an_earlier_commit_reads_its_own_bytes(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its escrow states their digest, and the receipt must name what ran."""
    agent = rich.publish(wasm("echo"))
    with monkeypatch.context() as patch:
        patch.setattr(launch, "run", _raise(_CrashedError))
        with pytest.raises(_CrashedError):
            run(rich, old(agent, DOUBLES))
    with pytest.raises(TaskInProgressError):
        run(rich, ask(agent, NUMBERS))
    rich.skew_ms = 18_001
    assert run(rich, ask(agent, NUMBERS)).output == DOUBLES
    sweep(rich)
    assert differences(rich) == 0


def test_a_queued_task_of_an_earlier_commit_reads_its_own_bytes(rich: Cloud, bench: Bench) -> None:
    agent = rich.publish(wasm("echo"))
    execute.submit(rich, "alice", old(agent, DOUBLES))
    lost, _ = bench.one(), execute.submit(rich, "alice", ask(agent, NUMBERS))
    again = bench.one()
    assert json.loads(again.body) == json.loads(lost.body)
    work(rich, again)
    assert run(rich, ask(agent, NUMBERS)).output == DOUBLES


def test_a_dead_letter_of_an_earlier_commit_is_refunded(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"))
    execute.submit(rich, "alice", old(agent, DOUBLES))
    deadletter.handle(rich, Delivery("m", text_of(agent, NUMBERS, user_id="alice"), "gone", 1))
    assert rich.ledger.available_micro("alice") == START
    assert item(rich)["outcome"]["S"] == "undelivered"


# Kept inputs.


@pytest.mark.parametrize(
    "stdin",
    [
        *(b"", b"hello", b"\xff\0", b"a" * OUTPUT_INLINE_BYTES_MAX, b"a" * (OUTPUT_INLINE_BYTES_MAX + 1)),
        b"\0" * INPUT_BYTES_MAX,
    ],
    ids=lambda stdin: f"{stdin[:5]!r} {len(stdin)}",
)
def test_a_kept_input_is_returned_to_the_byte(rich: Cloud, stdin: bytes) -> None:
    agent = rich.publish(wasm("wordcount"))
    encoded = base64.b64encode(stdin).decode()
    request = TaskRequest.model_validate(
        {"task_id": "t-1", "agent_id": agent, "budget": "0.05", "input_base64": encoded, "keep_input": True}
    )
    done = run(rich, request)
    kept = result.read_input(rich, ALICE, "t-1")
    data = (
        base64.b64decode(kept.input_base64) if kept.input is None and kept.input_base64 else (kept.input or "").encode()
    )
    assert data == stdin
    assert kept.input_sha256 == done.input_sha256 == hashlib.sha256(stdin).hexdigest()
    stored = item(rich)
    assert ("stdin" in stored) is (0 < len(stdin) <= OUTPUT_INLINE_BYTES_MAX)
    assert stored["stdin_bytes"]["N"] == str(len(stdin))
    sweep(rich)
    assert differences(rich) == 0
    assert run(rich, request) == done
    assert result.read_input(rich, ALICE, "t-1") == kept


def test_a_kept_json_input_is_what_the_agent_read(rich: Cloud) -> None:
    run(rich, ask(rich.publish(wasm("echo")), NUMBERS, keep_input=True))
    assert result.read_input(rich, ALICE, "t-1").input == NUMBERS


def test_a_failed_task_keeps_its_input(rich: Cloud) -> None:
    done = run(rich, ask(rich.publish(wasm("failing")), '"why"', keep_input=True))
    assert not done.success
    assert result.read_input(rich, ALICE, "t-1").input == "why"


def test_a_queued_task_keeps_its_input(rich: Cloud, bench: Bench) -> None:
    large = json.dumps("x" * 200 * KIB)
    execute.submit(rich, "alice", ask(rich.publish(wasm("echo")), large, keep_input=True))
    with pytest.raises(TaskInProgressError):
        result.read_input(rich, ALICE, "t-1")
    work(rich, bench.one())
    assert result.read_input(rich, ALICE, "t-1").input == json.loads(large)


def test_only_the_payer_reads_a_kept_input(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"))
    run(rich, ask(agent, '"secret"', keep_input=True, share={"payer": True, "log": True}))
    for caller in (OWNER, Caller("eve"), Caller("bob")):
        with pytest.raises(NotFoundError, match="no task"):
            result.read_input(rich, caller, "t-1")
    assert isinstance(result.read_input(rich, ALICE, "t-1"), TaskInput)
    with pytest.raises(NotFoundError, match="no task"):
        result.read_input(rich, ALICE, "t-2")


def test_an_input_that_was_not_kept_is_not_found(rich: Cloud) -> None:
    run(rich, ask(rich.publish(wasm("echo")), '"x"'))
    with pytest.raises(NotFoundError, match="`keep_input: true`"):
        result.read_input(rich, ALICE, "t-1")
    assert not [name for name in item(rich) if name.startswith(("stdin", "keep", "share"))], "items do not grow"


def test_a_kept_input_past_its_retention_is_not_found(rich: Cloud) -> None:
    done = run(rich, ask(rich.publish(wasm("echo")), json.dumps("x" * 2_000), keep_input=True))
    rich._s3.delete_object(Bucket=rich.settings.outputs_bucket, Key=f"outputs/{done.input_sha256}")
    with pytest.raises(NotFoundError, match="the time for which it is kept is over"):
        result.read_input(rich, ALICE, "t-1")


def test_a_crash_before_the_settlement_keeps_nothing(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ask(rich.publish(wasm("echo")), '"x"', keep_input=True)
    with monkeypatch.context() as patch:
        patch.setattr(launch, "run", _raise(_CrashedError))
        with pytest.raises(_CrashedError):
            run(rich, request)
    with pytest.raises(TaskInProgressError):
        result.read_input(rich, ALICE, "t-1")
    rich.skew_ms = 200_000
    with pytest.raises(NotFoundError, match="no run read it"):
        result.read_input(rich, ALICE, "t-1")
    assert item(rich)["state"]["S"] == "expired"
    sweep(rich)
    assert differences(rich) == 0


def test_an_input_that_cannot_be_stored_costs_nothing(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ask(rich.publish(wasm("wordcount")), json.dumps("x" * 2_000), keep_input=True)
    with monkeypatch.context() as patch:
        patch.setattr(rich.outputs._client, "put_object", _raise(ClientError({"Error": {"Code": "SlowDown"}}, "put")))
        done = run(rich, request)
    assert (done.error and done.error.code, done.fault) == ("storage_down", "platform")
    assert rich.ledger.available_micro("alice") == START
    with pytest.raises(NotFoundError, match="is not stored"):
        result.read_input(rich, ALICE, "t-1")
    assert differences(rich) == 0


@pytest.mark.parametrize("name", ["keep_input", "share", "stdin_sha256", "stdin_bytes", "stdin"])
def test_the_audit_finds_a_changed_attribute_of_an_input(rich: Cloud, name: str) -> None:
    run(rich, ask(rich.publish(wasm("echo")), '"x"', keep_input=True, share={"log": True}))
    assert differences(rich) == 0
    spoilt, wrong = item(rich), {"S": {"S": "payer"}, "N": {"N": "7"}, "B": {"B": b"y"}}
    spoilt[name] = wrong[next(iter(spoilt[name]))]
    rich._dynamodb.put_item(TableName=rich.settings.ledger_table, Item=spoilt)
    assert differences(rich) > 0


# What the agent's owner may see.


@pytest.mark.parametrize(
    ("share", "stored"),
    [
        *((None, None), ({}, None), ({"log": False}, None), ({"payer": True}, "payer"), ({"log": True}, "log")),
        ({"payer": True, "log": True}, "payer,log"),
    ],
)
def test_an_owner_sees_the_log_only_if_it_is_shared(
    rich: Cloud, share: dict[str, bool] | None, stored: str | None
) -> None:
    run(rich, ask(rich.publish(wasm("failing")), '"x"', **({} if share is None else {"share": share})))
    mine, owners = result.read(rich, ALICE, "t-1"), result.read(rich, OWNER, "t-1", user="alice")
    assert isinstance(mine, TaskResult)
    assert isinstance(owners, TaskResult)
    log = "failing: this agent always fails, so the budget goes back\n"
    assert (mine.log, owners.log) == (log, log if share and share.get("log") else None)
    assert item(rich).get("share", {}).get("S") == stored
    escrow = rich.ledger.find(escrow_id("alice", "t-1"))
    assert escrow is not None
    assert (escrow.share_payer, escrow.share_log) == ("payer" in (stored or ""), "log" in (stored or ""))
    assert differences(rich) == 0


def test_an_owner_never_sees_the_output(rich: Cloud) -> None:
    agent = rich.publish(saying("out", stderr="err"))
    run(rich, ask(agent, '"x"', share={"payer": True, "log": True}, keep_input=True))
    owners = result.read(rich, OWNER, "t-1", user="alice")
    assert isinstance(owners, TaskResult)
    assert (owners.output, owners.output_base64, owners.log) == (None, None, "err")


def test_a_shared_log_shares_nothing_of_a_judge(rich: Cloud) -> None:
    rich.bond("owner", START)
    judged = judged_by(judge(rich, saying("0.9", stderr="the judge's")))
    agent = rich.publish(saying("out", stderr="the agent's"), acceptance=judged)
    run(rich, ask(agent, '"x"', budget="0.5", acceptance=judged, share={"payer": True, "log": True}, keep_input=True))
    for name in ("t-1:judge-agent", "t-1:judge-task"):
        seen = result.read(rich, Caller("judith"), name, user="alice")
        assert isinstance(seen, TaskResult)
        assert seen.log is None
        with pytest.raises(NotFoundError):
            result.read_input(rich, ALICE, name)
    stored = [found for found in rich.items("ESC#") if "keep_input" in found or "share" in found]
    assert [found["task_id"]["S"] for found in stored] == ["t-1"]


def test_a_direct_task_has_the_same_options(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"))
    body = text_of(agent, NUMBERS, user_id="alice", keep_input=True, share={"payer": True})
    request = DirectTaskRequest.model_validate(read_json(body))
    done = execute.execute(rich, request.user_id, request)
    assert not isinstance(done, TaskPending)
    assert result.read_input(rich, ALICE, "t-1").input == NUMBERS
    assert item(rich)["share"]["S"] == "payer"
