"""The audit: finds no difference in an honest ledger, and names tampered items."""

from collections.abc import Callable
from typing import Any

import pytest

from quittance.api.identity import Caller
from quittance.api.models import TaskRequest
from quittance.ledger import reputation
from quittance.ledger.reputation import Standing
from quittance.usecases import audit, execute, launch
from quittance.usecases import result as tasks
from quittance.usecases.sweep import sweep
from tests.support import Cloud, wasm


@pytest.fixture
def busy(cloud: Cloud) -> Cloud:
    """A ledger with every kind of item: paid and swept, paid, refunded, expired, held; deposits and withdrawals."""
    cloud.deposit("alice", 5_000_000)
    cloud.ledger.withdraw("alice", "w-1", 1_000_000, now_ms=1)
    echo, failing = cloud.publish(wasm("echo")), cloud.publish(wasm("failing"))
    ask(cloud, echo, "swept")
    sweep(cloud)
    ask(cloud, echo, "paid")
    ask(cloud, failing, "refunded")
    ask(cloud, echo, "expired", crashes=True)
    cloud.skew_ms = 150_000
    tasks.read(cloud, Caller("alice"), "expired")
    cloud.skew_ms = 0
    ask(cloud, echo, "held", crashes=True)
    return cloud


def ask(cloud: Cloud, agent: str, task_id: str, *, crashes: bool = False) -> None:
    fields = {"task_id": task_id, "agent_id": agent, "input": "", "budget": "0.05"}
    with pytest.MonkeyPatch.context() as patch:
        if crashes:
            patch.setattr(launch, "run", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
        try:
            execute.execute(cloud, "alice", TaskRequest.model_validate(fields))
        except InterruptedError:
            assert crashes


def damage(cloud: Cloud, prefix: str, **changes: Any) -> str:
    """Changes the first item of a kind directly in the table. Returns its key."""
    item = next(item for item in cloud.items(prefix) if item.get("state", {}).get("S") in {None, "released"})
    for name, value in changes.items():
        item[name] = value
    cloud._dynamodb.put_item(TableName=cloud.settings.ledger_table, Item=item)
    return str(item["pk"]["S"])


def test_honest_ledger_has_no_difference(busy: Cloud) -> None:
    result = audit.audit(busy)
    assert result.differences == []
    assert result.escrows == 5
    assert result.available_micro + result.held_micro + result.uncredited_micro == 4_000_000
    assert (result.held_micro, result.uncredited_micro) == (50_000, 10_000)
    assert "differences  0" in audit.report(result)


@pytest.mark.parametrize(
    ("prefix", "changes", "invariants"),
    [
        ("ACCT#alice", {"available": {"N": "3899999"}}, {"I1", "I10/I11"}),
        ("ACCT#alice", {"available": {"N": "-1"}}, {"I1", "I2", "I10/I11"}),
        ("ESC#", {"fee": {"N": "0"}, "paid": {"N": "10000"}}, {"I4", "I12", "I10", "I10/I11"}),
        ("ESC#", {"paid": {"N": "10000"}}, {"I3", "I4", "I10", "I12"}),
        ("ESC#", {"receipt": {"S": "e30.e30.e30"}}, {"I12", "I15", "I16"}),
        ("ESC#", {"place": {"N": "7"}}, {"I15"}),
        ("BATCH#", {"first": {"N": "1"}}, {"I15"}),
        ("REP#", {"standing": {"S": reputation.serialise(Standing(outcomes=9))}}, {"I16"}),
        ("LOG", {"size": {"N": "9"}}, {"I15"}),
        ("ESC#", {"settled_ms": {"N": "99999999999999"}}, {"I8", "I12"}),
        ("IN#", {"amount": {"N": "5000001"}}, {"I1", "I10/I11", "form"}),
        ("EARN#", {"amount": {"N": "1"}}, {"I10", "I10/I11", "form"}),
    ],
)
def test_audit_names_the_tampered_item(busy: Cloud, prefix: str, changes: dict[str, Any], invariants: set[str]) -> None:
    pk = damage(busy, prefix, **changes)
    result = audit.audit(busy)
    assert {difference.invariant for difference in result.differences} <= invariants
    assert any(difference.at in pk for difference in result.differences)


def test_overdue_escrow_is_a_difference(busy: Cloud) -> None:
    """I8: an escrow that is still funded long after its expiry means that the sweep does not run."""
    busy.skew_ms = 40_000 + 90_000 + 90_000
    assert [difference.invariant for difference in audit.audit(busy).differences] == ["I8"]


def put(cloud: Cloud, item: Any) -> None:
    cloud._dynamodb.put_item(TableName=cloud.settings.ledger_table, Item=item)


def erase(cloud: Cloud, item: Any) -> None:
    cloud.dynamodb.delete_item(TableName=cloud.settings.ledger_table, Key={"pk": item["pk"]})


def without(item: Any, *names: str) -> Any:
    return {name: value for name, value in item.items() if name not in names}


def plus(item: Any, name: str, amount: int) -> Any:
    return {**item, name: {"N": str(int(item[name]["N"]) + amount)}}


def hide_credits(cloud: Cloud) -> None:
    (shard,) = cloud.items("ACCT#alice")
    put(cloud, plus(shard, "available", -7))
    put(cloud, {"pk": {"S": "ACCT#alice#16"}, "available": {"N": "7"}})


def withdraw_less_than_nothing(cloud: Cloud) -> None:
    (line,), (shard,) = cloud.items("OUT#"), cloud.items("ACCT#alice")
    put(cloud, plus(without(line, "seal"), "amount", 1_000_007))
    put(cloud, plus(shard, "available", 1_000_007))


def forget_to_credit(cloud: Cloud) -> None:
    put(cloud, without(of_task(cloud, "paid"), "work", "work_at"))


def erase_what_waits_for_the_sweep(cloud: Cloud) -> None:
    erase(cloud, of_task(cloud, "paid"))


def forget_to_log(cloud: Cloud) -> None:
    for ids in cloud.ledger.settled():
        assert cloud.ledger.credit(ids, now_ms=cloud.now_ms())
    (batch,) = (item for item in cloud.items("BATCH#") if "first" not in item)
    put(cloud, without(batch, "work", "work_at"))


def credit_twice(cloud: Cloud) -> None:
    """Adds a second line to a batch, which credits another account, and takes the amount from the platform."""
    (line,), (platform,) = cloud.items("EARN#"), cloud.items("ACCT#quittance:platform")
    stray = {**without(line, "seal"), "pk": {"S": line["pk"]["S"].replace("#owner#", "#mallory#")}}
    put(cloud, {**stray, "account": {"S": "mallory"}})
    put(cloud, {"pk": {"S": "ACCT#mallory"}, "available": line["amount"]})
    put(cloud, plus(platform, "available", -int(line["amount"]["N"])))


def swap_receipts(cloud: Cloud) -> None:
    first, second = of_task(cloud, "paid"), of_task(cloud, "refunded")
    put(cloud, {**first, "receipt": second["receipt"]})
    put(cloud, {**second, "receipt": first["receipt"]})


def put_a_batch_beside_the_log(cloud: Cloud) -> None:
    (batch,), (pointer,) = cloud.items("BATCH#"), cloud.items("LOG#")
    put(cloud, {**without(batch, "seal"), "pk": {"S": "BATCH#" + "a" * 26}, "first": {"N": "7"}})
    put(cloud, {**pointer, "pk": {"S": "LOG#7"}, "batch": {"S": "a" * 26}})


def leave_something_unknown(cloud: Cloud) -> None:
    put(cloud, {"pk": {"S": "NEW#1"}, "amount": {"N": "1"}})


def of_task(cloud: Cloud, task_id: str) -> Any:
    return next(item for item in cloud.items("ESC#") if item["task_id"]["S"] == task_id)


@pytest.mark.parametrize(
    ("corrupt", "named"),
    [
        (hide_credits, "ACCT#alice#16"),
        (withdraw_less_than_nothing, "OUT#alice#w-1"),
        (forget_to_credit, "ESC#"),
        (erase_what_waits_for_the_sweep, "alice"),
        (forget_to_log, "BATCH#"),
        (credit_twice, "EARN#mallory#"),
        (swap_receipts, "ESC#"),
        (put_a_batch_beside_the_log, "LOG#7"),
        (leave_something_unknown, "NEW#1"),
    ],
)
def test_tampering_that_keeps_the_sums_is_found(
    busy: Cloud, corrupt: Callable[[Cloud], None], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_INDEX_LAG_S", 0)
    corrupt(busy)
    assert any(difference.at.startswith(named) for difference in audit.audit(busy).differences)
