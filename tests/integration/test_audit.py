"""The auditor: clean on every honest ledger, and it names what was tampered with."""

from typing import Any

import pytest

from quittance import auditing, reputation, tasks
from quittance.models import TaskRequest
from quittance.reputation import Standing
from quittance.sweeping import sweep
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
    ask(cloud, echo, "expired", dies=True)
    cloud.skew_ms = 150_000
    tasks.result(cloud, "alice", "expired")
    cloud.skew_ms = 0
    ask(cloud, echo, "held", dies=True)
    return cloud


def ask(cloud: Cloud, agent: str, task_id: str, *, dies: bool = False) -> None:
    fields = {"task_id": task_id, "agent_id": agent, "input": "", "budget": "0.05"}
    with pytest.MonkeyPatch.context() as patch:
        if dies:
            patch.setattr(tasks, "_run", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
        try:
            tasks.execute(cloud, "alice", TaskRequest.model_validate(fields))
        except InterruptedError:
            assert dies


def damage(cloud: Cloud, prefix: str, **changes: Any) -> str:
    """Changes the first item of a kind behind the ledger's back; returns its key."""
    item = next(item for item in cloud.items(prefix) if item.get("state", {}).get("S") in {None, "released"})
    for name, value in changes.items():
        item[name] = value
    cloud._dynamodb.put_item(TableName=cloud.settings.ledger_table, Item=item)
    return str(item["pk"]["S"])


def test_an_honest_ledger_has_no_difference(busy: Cloud) -> None:
    result = auditing.run(busy)
    assert result.differences == []
    assert result.escrows == 5
    assert result.available_micro + result.held_micro + result.uncredited_micro == 4_000_000
    assert (result.held_micro, result.uncredited_micro) == (50_000, 10_000)
    assert "differences  0" in auditing.report(result)


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
def test_what_was_tampered_with_is_named(
    busy: Cloud, prefix: str, changes: dict[str, Any], invariants: set[str]
) -> None:
    pk = damage(busy, prefix, **changes)
    result = auditing.run(busy)
    assert {difference.invariant for difference in result.differences} <= invariants
    assert any(difference.at in pk for difference in result.differences)


def test_stuck_money_is_a_difference(busy: Cloud) -> None:
    """I8: an escrow that is funded long after its expiry means that the sweep is dead."""
    busy.skew_ms = 40_000 + 90_000 + 90_000
    assert [difference.invariant for difference in auditing.run(busy).differences] == ["I8"]
