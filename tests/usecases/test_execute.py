"""One task on a whole platform: who is paid, who is refunded, and the effect of a repeated request."""

import base64
import hashlib
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from quittance.api.identity import Caller
from quittance.api.models import TaskPending, TaskRequest, TaskResult
from quittance.errors import (
    AgentNotReadyError,
    BudgetTooLowError,
    InsufficientFundsError,
    NotFoundError,
    PlatformUnavailableError,
    TaskConflictError,
    TaskInProgressError,
    TimeoutTooLongError,
)
from quittance.limits import OUTPUT_INLINE_BYTES_MAX
from quittance.proof import receipt
from quittance.run import Job, Run
from quittance.usecases import execute, launch, result
from quittance.usecases.agents import describe, retire
from quittance.usecases.publish import recompile
from quittance.usecases.sweep import sweep
from tests.support import Cloud, wasm

START = 10_000_000


def ask(agent_id: str, **changes: Any) -> TaskRequest:
    fields = {"task_id": "t-1", "agent_id": agent_id, "input": "hello", "budget": "0.05"} | changes
    return TaskRequest.model_validate({name: value for name, value in fields.items() if value is not None})


def run(cloud: Cloud, agent_id: str, *, user: str = "alice", **changes: Any) -> TaskResult:
    done = execute.execute(cloud, user, ask(agent_id, **changes))
    assert isinstance(done, TaskResult)
    return done


@pytest.fixture
def rich(cloud: Cloud) -> Cloud:
    cloud.deposit("alice", START)
    return cloud


def test_success_pays_owner_and_platform_and_returns_the_rest(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"), tariff={"type": "flat", "price": "0.04"})
    done = run(rich, agent, input="hello wörld")
    assert (done.success, done.output, done.error) == (True, "hello wörld", None)
    assert (done.amount_paid_micro, done.fee_micro, done.amount_refunded_micro) == (39_000, 1_000, 10_000)
    assert rich.ledger.available_micro("alice") == START - 40_000
    assert rich.ledger.earned_micro("owner") == 39_000
    assert rich.total_micro() == START
    assert sweep(rich).credited == 1
    assert rich.ledger.available_micro("owner") == 39_000
    assert rich.ledger.available_micro("quittance:platform") == 1_000
    assert rich.total_micro() == START
    standing = describe(rich, agent).reputation
    assert standing is not None
    assert (standing.outcomes, standing.successes, standing.score) == (1, 1, 500 + done.reputation_delta)


def test_full_budget_settles_in_one_write_without_the_payer(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"), tariff={"type": "flat", "price": "0.05"})
    done = run(rich, agent)
    assert (done.amount_refunded_micro, done.amount_paid_micro + done.fee_micro) == (0, 50_000)
    assert rich.ledger.available_micro("alice") == START - 50_000


@pytest.mark.parametrize(
    ("command", "code", "limits"),
    [
        ("exit 3", "exit_code", {}),
        ("trap", "trap_unreachable", {}),
        ("oob", "trap_memory", {}),
        ("div0", "trap_arithmetic", {}),
        ("recurse", "trap_stack", {}),
        ("loop", "timeout", {"timeout": 1}),
        ("loop", "fuel_exhausted", {"fuel": 10**6}),
        ("memory", "memory_limit", {"memory_mib": 4}),
        ("flood", "output_limit", {}),
    ],
)
def test_failure_refunds_everything_and_lowers_the_reputation(
    rich: Cloud, command: str, code: str, limits: dict[str, int]
) -> None:
    agent = rich.publish(wasm("misbehave"), **limits)
    done = run(rich, agent, input=command)
    assert (done.success, done.escrow_status, done.output) == (False, "refunded", None)
    assert done.error is not None
    assert (done.error.code, done.reputation_delta) == (code, -50)
    assert done.error.message
    assert rich.ledger.available_micro("alice") == START
    sweep(rich)
    assert rich.ledger.available_micro("owner") == 0
    assert rich.ledger.standing(agent).reference_tenths == 450


def test_failing_agent_returns_its_stderr(rich: Cloud) -> None:
    done = run(rich, rich.publish(wasm("failing")))
    assert done.log == "failing: this agent always fails, so the budget goes back\n"
    assert done.error is not None
    assert "3" in done.error.message


def test_repeat_returns_the_same_result_and_charges_once(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"))
    first = run(rich, agent)
    assert run(rich, agent) == first
    retire(rich, Caller("owner"), agent)
    assert run(rich, agent) == first, "the result of a settled task stays available after its agent is retired"
    assert rich.ledger.available_micro("alice") == START - 10_000


@pytest.mark.parametrize("change", [{"input": "other"}, {"budget": "0.06"}, {"timeout": 3}])
def test_other_request_with_the_same_task_id_is_refused(rich: Cloud, change: dict[str, Any]) -> None:
    agent = rich.publish(wasm("echo"))
    run(rich, agent)
    with pytest.raises(TaskConflictError):
        run(rich, agent, **change)


def test_two_users_may_use_the_same_task_id(rich: Cloud) -> None:
    rich.deposit("bob", START)
    agent = rich.publish(wasm("echo"))
    assert run(rich, agent, input="a").escrow_id != run(rich, agent, user="bob", input="b").escrow_id
    assert rich.ledger.available_micro("bob") == START - 10_000


def test_replay_is_recognised_after_the_last_credit_is_spent(cloud: Cloud) -> None:
    cloud.deposit("alice", 50_000)
    agent = cloud.publish(wasm("echo"), tariff={"type": "flat", "price": "0.05"})
    first = run(cloud, agent)
    assert cloud.ledger.available_micro("alice") == 0
    assert run(cloud, agent) == first


def test_receipt_states_what_the_ledger_states_and_verifies(rich: Cloud) -> None:
    module = wasm("echo")
    done = run(rich, rich.publish(module), input="hello")
    claims = receipt.verify(done.receipt, rich.keys.jwks())
    assert claims["module_sha256"] == hashlib.sha256(module).hexdigest()
    assert claims["input_sha256"] == claims["output_sha256"] == hashlib.sha256(b"hello").hexdigest()
    assert (claims["user"], claims["task"], claims["outcome"]) == ("alice", "t-1", "succeeded")
    assert [claims[name] for name in ("budget", "paid", "fee", "refunded")] == ["50000", "9750", "250", "40000"]
    assert claims["eid"] == done.escrow_id
    assert claims["meter"]["fuel"] == done.resource_usage.fuel_used > 0


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 2**20])
def test_output_of_any_size_is_returned_complete(rich: Cloud, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    agent = rich.publish(wasm("echo"))
    encoded = base64.b64encode(data[:size]).decode()
    done = run(rich, agent, input=None, input_base64=encoded)
    again = result.read(rich, Caller("alice"), "t-1")
    for answer in (done, again):
        assert isinstance(answer, TaskResult)
        got = base64.b64decode(answer.output_base64) if answer.output_base64 else (answer.output or "").encode()
        assert got == data[:size]


def test_metered_price_follows_fuel_and_budget_limits_fuel(rich: Cloud) -> None:
    tariff = {"type": "metered", "base": "0.001", "per_million_fuel": "0.01", "minimum": "0.002"}
    agent = rich.publish(wasm("sieve"), tariff=tariff)
    done = run(rich, agent, input="1000000", budget="1")
    used = done.amount_paid_micro + done.fee_micro
    assert used == 1_000 + -(-done.resource_usage.fuel_used * 10_000 // 10**6)
    starved = run(rich, agent, task_id="t-2", input="1000000", budget="0.1")
    assert starved.error is not None
    assert starved.error.code == "fuel_exhausted"
    assert starved.resource_usage.fuel_used * 10_000 // 10**6 <= 99_000


def test_refusals_move_no_money(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"))
    with pytest.raises(InsufficientFundsError) as poor:
        run(rich, agent, budget="10.000001")
    assert poor.value.members == {"available": "10", "required": "10.000001"}
    with pytest.raises(InsufficientFundsError):
        run(rich, agent, user="nobody")
    with pytest.raises(BudgetTooLowError):
        run(rich, agent, budget="0.009999")
    with pytest.raises(TimeoutTooLongError):
        run(rich, agent, timeout=26)
    with pytest.raises(NotFoundError):
        run(rich, "agt_unknown")
    with pytest.raises(NotFoundError):
        result.read(rich, Caller("alice"), "t-1")
    retire(rich, Caller("owner"), agent)
    with pytest.raises(AgentNotReadyError):
        run(rich, agent)
    assert rich.items("ESC#") == []
    assert rich.ledger.available_micro("alice") == START


def test_owner_reads_the_result_without_the_output(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"))
    done = run(rich, agent)
    assert result.read(rich, Caller("alice"), "t-1") == done
    observed = result.read(rich, Caller("owner"), "t-1", user="alice")
    assert isinstance(observed, TaskResult)
    assert (observed.output, observed.log, observed.receipt) == (None, None, done.receipt)
    for stranger, user in (("bob", None), ("bob", "alice"), ("owner", None)):
        with pytest.raises(NotFoundError):
            result.read(rich, Caller(stranger), "t-1", user=user)


def count_calls(cloud: Cloud, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the calls of DynamoDB and S3 by operation."""
    send = cloud._dynamodb._call
    monkeypatch.setattr(cloud._dynamodb, "_call", lambda name, asked: calls.update([name]) or send(name, asked))
    cloud._s3.meta.events.register("before-call", lambda model, **_: calls.update([model.name]))


def test_warm_task_takes_two_writes_and_no_read(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"))
    calls: Counter[str] = Counter()
    count_calls(rich, calls, monkeypatch)
    run(rich, agent, task_id="cold")
    # Reads of the agent, of the payer's frozen flag and of the pause flag; the owner is cached from publication.
    assert calls == {"GetItem": 3, "TransactWriteItems": 2, "GetObject": 1}
    calls.clear()
    run(rich, agent, task_id="warm")
    assert calls == {"TransactWriteItems": 2}
    calls.clear()
    run(rich, agent, task_id="exact", budget="0.01")
    assert calls == {"TransactWriteItems": 1, "UpdateItem": 1}


class _CrashedError(Exception):
    """A crash of the runner."""


def test_crash_after_funding_is_taken_over_after_the_lease(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"))
    with monkeypatch.context() as patch:
        patch.setattr(launch, "run", _raise(_CrashedError))
        with pytest.raises(_CrashedError):
            run(rich, agent)
    assert rich.ledger.available_micro("alice") == START - 50_000
    assert isinstance(result.read(rich, Caller("alice"), "t-1"), TaskPending)
    with pytest.raises(TaskInProgressError) as running:
        run(rich, agent)
    # The agent's 10 s and the time reserved to load and settle, less the time that has passed.
    assert running.value.retry_after_s in {16, 17, 18}
    rich.skew_ms = 18_001
    assert run(rich, agent).success
    assert rich.ledger.available_micro("alice") == START - 10_000
    assert rich.total_micro() == START


def test_crash_after_funding_is_refunded_when_the_escrow_expires(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"))
    with monkeypatch.context() as patch:
        patch.setattr(launch, "run", _raise(_CrashedError))
        for task_id in ("t-1", "t-2", "t-3"):
            with pytest.raises(_CrashedError):
                run(rich, agent, task_id=task_id)
    rich.skew_ms = 200_000
    looked = result.read(rich, Caller("alice"), "t-1")
    assert isinstance(looked, TaskResult)
    assert (looked.escrow_status, looked.amount_refunded_micro, looked.reputation_delta) == ("expired", 50_000, 0)
    assert run(rich, agent, task_id="t-2").escrow_status == "expired"
    assert sweep(rich).expired == 1
    assert rich.ledger.available_micro("alice") == START
    assert receipt.verify(looked.receipt, rich.keys.jwks())["outcome"] == "expired"
    assert sweep(rich) == sweep(rich)
    assert rich.ledger.standing(agent).reference_tenths == 500


def test_escrow_that_cannot_be_swept_blocks_no_other(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"))
    with monkeypatch.context() as patch:
        patch.setattr(launch, "run", _raise(_CrashedError))
        for task_id in ("t-1", "t-2", "t-3"):
            with pytest.raises(_CrashedError):
                run(rich, agent, task_id=task_id)
    run(rich, agent, task_id="paid")
    poison = next(item for item in rich.items("ESC#") if item["state"]["S"] == "funded")
    del poison["tariff"]
    rich._dynamodb.put_item(TableName=rich.settings.ledger_table, Item=poison)
    rich.skew_ms = 200_000
    swept = sweep(rich)
    assert (swept.expired, swept.credited, swept.failed, swept.complete) == (2, 3, 1, True)


def test_late_runner_cannot_settle(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run outlasts the escrow: its work is lost, and the answer reports the stored escrow."""
    agent = rich.publish(wasm("echo"))
    honest = launch.run

    def sleepy(*args: Any, **named: Any) -> Any:
        ended = honest(*args, **named)
        rich.skew_ms = 200_000
        return ended

    monkeypatch.setattr(launch, "run", sleepy)
    done = run(rich, agent)
    assert (done.success, done.escrow_status, done.output) == (False, "expired", None)
    assert rich.ledger.available_micro("alice") == START


def test_settlement_with_lost_response_is_found_in_the_ledger(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"))
    settle = rich.ledger.settle

    def lossy(*args: Any) -> Any:
        settle(*args)
        raise PlatformUnavailableError

    monkeypatch.setattr(rich.ledger, "settle", lossy)
    assert run(rich, agent).success


def test_unknown_settlement_is_pending_never_failed(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"))
    monkeypatch.setattr(rich.ledger, "settle", _raise(PlatformUnavailableError))
    done = execute.execute(rich, "alice", ask(agent))
    assert isinstance(done, TaskPending)
    assert done.escrow_status == "funded"


def test_platform_faults_refund_and_keep_the_reputation(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"))
    version = rich.registry.get(agent).version
    assert version is not None
    bucket, key = rich.settings.binaries_bucket, f"artefacts/{version.artefact_key}"
    good = rich._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    rich._s3.put_object(Bucket=bucket, Key=key, Body=good[:-1] + b"x")
    tampered = run(rich, agent, task_id="tampered")
    rich._s3.delete_object(Bucket=bucket, Key=key)
    missing = run(rich, agent, task_id="missing")
    assert [done.error and done.error.code for done in (tampered, missing)] == ["artefact_tampered", "artefact_missing"]
    assert [done.reputation_delta for done in (tampered, missing)] == [0, 0]
    assert rich.ledger.available_micro("alice") == START
    rich._s3.put_object(Bucket=bucket, Key=key, Body=good)
    assert run(rich, agent, task_id="mended").success


def test_engine_upgrade_recompiles_outside_of_tasks(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"))
    current = rich.registry.get(agent)
    assert current.version is not None
    old = replace(current.version, artefact_key=current.version.artefact_key.replace("wasmtime-", "wasmtime-49."))
    rich.registry.replace_artefact(current, old)
    asked: list[str] = []
    monkeypatch.setattr(rich.publisher, "recompile", asked.append)
    with pytest.raises(AgentNotReadyError) as waiting:
        run(rich, agent)
    assert (asked, waiting.value.retry_after_s) == ([agent], 5)
    assert rich.ledger.available_micro("alice") == START
    recompile(rich, agent)
    assert run(rich, agent).success
    recompile(rich, agent)
    assert rich.registry.get(agent) == current


@pytest.mark.parametrize("wrong", [{"fuel": 2 * 10**12}, {"fuel": 2**60}, {"memory_bytes": -1}, {"wall_ms": 10**6}])
def test_run_that_no_receipt_can_state_costs_nobody(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, int]
) -> None:
    """Claims are validated before they are signed, so no receipt is stored that a verifier would reject."""
    agent, honest = rich.publish(wasm("echo")), rich.sandbox.run

    def lying(job: Job) -> Run:
        ended = honest(job)
        return replace(ended, meter=replace(ended.meter, **wrong))

    monkeypatch.setattr(rich.sandbox, "run", lying)
    before = rich.ledger.available_micro("alice")
    done = run(rich, agent)
    assert (done.error.code, done.fault, rich.ledger.available_micro("alice")) == ("worker_lost", "platform", before)  # type: ignore[union-attr]
    receipt.verify(done.receipt, rich.keys.jwks())


def test_no_money_moves_without_a_signing_key(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"))
    monkeypatch.setattr(rich.keys, "_root_sign", _raise(PlatformUnavailableError))
    with pytest.raises(PlatformUnavailableError):
        run(rich, agent)
    assert rich.items("ESC#") == []


def _raise(error: type[Exception]) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_answer_does_not_load_what_was_just_stored(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, text = rich.publish(wasm("echo")), "x" * (OUTPUT_INLINE_BYTES_MAX + 1)
    with monkeypatch.context() as patch:
        patch.setattr(rich.outputs, "load", lambda stored: pytest.fail(f"loaded {stored.sha256}"))
        assert run(rich, agent, input=text).output == text
    assert run(rich, agent, input=text).output == text, "a repeated request loads it"
