"""The ledger's writes one by one: what each rejects, and that a rejection changes nothing. Single-threaded (moto)."""

import random
from dataclasses import replace
from typing import Any

import jwt
import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError, NoCredentialsError, ReadTimeoutError

from quittance.errors import InsufficientFundsError, MovementConflictError, PlatformUnavailableError
from quittance.ledger import escrow as escrows
from quittance.ledger.escrow import Escrow, Settlement, State
from quittance.ledger.journal import Line, LineKind, Payout, PayoutState
from quittance.limits import BALANCE_SHARDS, BATCH_GET_ITEMS_MAX, CALL_MS_MAX, LOGGED_AGENTS_MAX, TRANSACTION_ITEMS_MAX
from quittance.proof.log import LogHead
from quittance.run import Meter, Outcome, Run
from quittance.store import dynamo
from tests.proof import receipts
from tests.proofs.world import append_to_log
from tests.support import Cloud

BUDGET = 1_000_000
LEASE, EXPIRY = 1_000, 5_000
DONE = Run(Outcome.SUCCEEDED, "", Meter(fuel=1, wall_ms=5))
FAILED = Run(Outcome.EXIT_CODE, "exit code 3", Meter(fuel=1, wall_ms=5))


def hold(task_id: str = "t-1", **changes: Any) -> Escrow:
    escrow = Escrow(
        escrow_id=escrows.escrow_id("alice", task_id),
        payer="alice",
        task_id=task_id,
        request_sha256="r" * 64,
        agent_id="agt_1",
        owner="owner",
        module_sha256="m" * 64,
        input_sha256="i" * 64,
        tariff='{"type":"flat","price":"0.4"}',
        budget_micro=BUDGET,
        fee_bps=250,
        timeout_ms=1_000,
        runner="runner-1",
        fence=1,
        funded_ms=0,
        lease_ms=LEASE,
        expires_ms=EXPIRY,
    )
    return replace(escrow, **changes)


def end(escrow: Escrow, run: Run = DONE, *, now_ms: int = 10) -> Settlement:
    return stated(escrow, escrows.decide(escrow, run, now_ms=now_ms))


def settled(escrow: Escrow, run: Run = DONE, *, now_ms: int = 10) -> Escrow:
    return replace(escrow, settlement=end(escrow, run, now_ms=now_ms))


def stated(escrow: Escrow, settlement: Settlement) -> Settlement:
    """The settlement with a readable receipt. The ledger does not verify it."""
    run = Run(settlement.outcome, settlement.message, Meter())
    claims = receipts.claims_of(escrow, settlement, issuer="t", run=run, engine="", config_sha256="")
    return replace(settlement, receipt=jwt.encode(claims, "k" * 32))


@pytest.fixture
def rich(cloud: Cloud) -> Cloud:
    cloud.deposit("alice", 10 * BUDGET)
    return cloud


def test_stored_values_are_read_back(rich: Cloud) -> None:
    escrow = hold()
    rich.ledger.fund(escrow)
    assert rich.ledger.find(escrow.escrow_id) == escrow
    settlement = replace(end(escrow), output=rich.outputs.keep(b"out"), stderr=rich.outputs.keep(b""))
    stored = rich.ledger.settle(replace(escrow, settlement=settlement))
    assert rich.ledger.find(escrow.escrow_id) == stored


def test_fund_holds_the_budget_once(rich: Cloud) -> None:
    escrow = hold()
    assert rich.ledger.fund(escrow) == escrow
    assert rich.ledger.fund(replace(escrow, runner="runner-2", fence=1)) == escrow
    assert rich.ledger.available_micro("alice") == 9 * BUDGET


def test_a_replay_is_recognised_before_an_empty_account(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both conditions fail, because the first attempt took the last credit. (moto reports only the first reason.)"""
    escrow = rich.ledger.fund(hold())
    (standing,), (account,) = rich.items("ESC#"), rich.items("ACCT#alice")

    def refuse(_: Any) -> None:
        raise dynamo.RefusedError([standing, account])

    monkeypatch.setattr(rich.ledger, "_send", refuse)
    assert rich.ledger.fund(replace(escrow, runner="runner-2")) == escrow


def test_funding_without_funds_writes_nothing(cloud: Cloud) -> None:
    cloud.deposit("alice", BUDGET - 1)
    with pytest.raises(InsufficientFundsError):
        cloud.ledger.fund(hold())
    assert cloud.items("ESC#") == []
    assert cloud.ledger.available_micro("alice") == BUDGET - 1


@pytest.mark.parametrize("run", [DONE, FAILED])
@pytest.mark.parametrize(
    ("fence", "now_ms", "settles"),
    [(1, 10, True), (1, EXPIRY - 1, True), (1, EXPIRY, False), (0, 10, False), (2, 10, False)],
)
def test_only_the_newest_fence_settles_before_expiry(
    rich: Cloud, run: Run, fence: int, now_ms: int, settles: bool
) -> None:
    """I7, I8."""
    escrow = rich.ledger.fund(hold())
    attempt = replace(escrow, fence=fence)
    standing = rich.ledger.settle(settled(attempt, run, now_ms=now_ms))
    assert (standing.state is not State.FUNDED) == settles
    assert rich.total_micro() == 10 * BUDGET


@pytest.mark.parametrize(("now_ms", "expires"), [(EXPIRY - 1, False), (EXPIRY, True)])
def test_expiry_refunds_only_from_its_time_on(rich: Cloud, now_ms: int, expires: bool) -> None:
    """I8."""
    escrow = rich.ledger.fund(hold())
    standing = rich.ledger.expire(escrow, stated(escrow, escrows.expire(escrow, now_ms=now_ms)))
    assert (standing.state is State.EXPIRED) == expires
    assert rich.ledger.available_micro("alice") == (10 if expires else 9) * BUDGET


@pytest.mark.parametrize("first", [DONE, FAILED, None])
@pytest.mark.parametrize("second", [DONE, FAILED, None])
def test_an_escrow_leaves_funded_once(rich: Cloud, first: Run | None, second: Run | None) -> None:
    """I5, I6. None means expiry."""
    escrow = rich.ledger.fund(hold())

    def leave(run: Run | None) -> Escrow:
        if run is None:
            return rich.ledger.expire(escrow, stated(escrow, escrows.expire(escrow, now_ms=EXPIRY)))
        return rich.ledger.settle(settled(escrow, run))

    stands = leave(first)
    balance = rich.ledger.available_micro("alice")
    assert leave(second) == stands
    assert rich.ledger.available_micro("alice") == balance


@pytest.mark.parametrize(
    ("fence", "now_ms", "taken"),
    [(1, LEASE - 1, False), (1, LEASE, True), (1, EXPIRY - 1, True), (1, EXPIRY, False), (2, LEASE, False)],
)
def test_takeover_needs_a_lapsed_lease_and_the_current_fence(rich: Cloud, fence: int, now_ms: int, taken: bool) -> None:
    escrow = rich.ledger.fund(hold())
    seen = replace(escrow, fence=fence)
    standing = rich.ledger.take_over(seen, runner="runner-2", now_ms=now_ms, lease_ms=now_ms + LEASE)
    assert (standing.runner == "runner-2") == taken
    if taken:
        late = rich.ledger.settle(settled(escrow))
        assert late.state is State.FUNDED, "the runner that lost its lease cannot settle"
        assert rich.ledger.settle(settled(standing)).state is State.RELEASED


def test_movements_are_applied_once_per_id(cloud: Cloud) -> None:
    assert cloud.ledger.deposit("alice", "d", 5, now_ms=1) == 1
    assert cloud.ledger.deposit("alice", "d", 5, now_ms=2) == 1
    with pytest.raises(MovementConflictError):
        cloud.ledger.deposit("alice", "d", 6, now_ms=3)
    first = cloud.ledger.withdraw("alice", "w", 5, now_ms=4)
    assert first == Payout("alice", "w", 5, 4, PayoutState.REQUESTED, waits=True)
    assert cloud.ledger.withdraw("alice", "w", 5, now_ms=5) == first
    with pytest.raises(InsufficientFundsError):
        cloud.ledger.withdraw("alice", "w2", 1, now_ms=6)
    assert cloud.ledger.available_micro("alice") == 0


ONE_OWNER_MAX = TRANSACTION_ITEMS_MAX - 5  # the balance and journal line of owner and platform, and the batch
MANY_OWNERS_MAX = (TRANSACTION_ITEMS_MAX - 3) // 3


def test_sweep_credits_each_escrow_once_in_batches(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """I10, I15: more escrows than one read and one transaction take, by two sweeps that read the same index."""
    count = BATCH_GET_ITEMS_MAX + 3
    cloud.deposit("alice", count * BUDGET)
    for number in range(count):
        escrow = cloud.ledger.fund(hold(f"t-{number}"))
        cloud.ledger.settle(settled(escrow, DONE if number % 2 else FAILED, now_ms=number))
    monkeypatch.setattr("quittance.store.ledger.CREDITED_AT_ONCE_MAX", BATCH_GET_ITEMS_MAX + 1)
    batches = list(cloud.ledger.settled())
    assert [len(batch) for batch in batches] == [BATCH_GET_ITEMS_MAX + 1, 2]
    credited = [cloud.ledger.credit(batch, now_ms=now).escrows for now, batch in enumerate([*batches, *batches])]
    assert credited == [BATCH_GET_ITEMS_MAX + 1, 2, 0, 0]
    successes = count // 2
    assert cloud.ledger.available_micro("owner") == successes * 390_000
    assert cloud.ledger.available_micro("quittance:platform") == successes * 10_000
    assert list(cloud.ledger.settled()) == []
    assert cloud.total_micro() == count * BUDGET
    sizes = [ONE_OWNER_MAX, BATCH_GET_ITEMS_MAX + 1 - ONE_OWNER_MAX, 2]
    unlogged = [batches[0][0], batches[0][ONE_OWNER_MAX], batches[1][0]]
    (waiting,) = cloud.ledger.log.waiting()
    assert sorted(waiting) == sorted(unlogged)
    assert [append_to_log(cloud.ledger, name) for name in [*unlogged, *unlogged]] == [*sizes, 0, 0, 0]
    standing = cloud.ledger.standing("agt_1")
    assert (standing.outcomes, standing.successes, standing.failures) == (count, successes, count - successes)
    assert cloud.ledger.log.head() == LogHead(count, 0)
    logged = cloud.ledger.log.receipts(0, at_least=count)
    found = [escrow for batch in batches for name in batch if (escrow := cloud.ledger.find(name))]
    assert [cloud.ledger.log.place(escrow.escrow_id) for escrow in found] == list(range(count))
    assert logged == [escrow.settlement.receipt for escrow in found if escrow.settlement]


def test_agents_of_many_owners_share_a_batch(cloud: Cloud) -> None:
    """I10, I15, I16: one escrow each of one owner more than fit one transaction."""
    count = MANY_OWNERS_MAX + 1
    cloud.deposit("alice", count * BUDGET)
    for number in range(count):
        escrow = cloud.ledger.fund(hold(f"t-{number}", agent_id=f"agt_{number:03}", owner=f"owner-{number:03}"))
        cloud.ledger.settle(settled(escrow, now_ms=number))
    (names,) = cloud.ledger.settled()
    assert cloud.ledger.credit(names, now_ms=9).escrows == count
    assert [cloud.ledger.available_micro(f"owner-{number:03}") for number in range(count)] == [390_000] * count
    assert cloud.ledger.available_micro("quittance:platform") == count * 10_000
    fees, _ = cloud.ledger.statement("quittance:platform", limit=9)
    assert sorted((line.tasks, line.agent_id) for line in fees) == [(1, f"agt_{count - 1:03}"), (MANY_OWNERS_MAX, None)]
    assert append_to_log(cloud.ledger) == count
    assert {cloud.ledger.standing(f"agt_{number:03}").outcomes for number in range(count)} == {1}
    assert cloud.ledger.log.head().size == count


def test_a_batch_has_at_most_the_agents_of_one_append(cloud: Cloud) -> None:
    count = LOGGED_AGENTS_MAX + 1
    cloud.deposit("alice", count * BUDGET)
    for number in range(count):
        escrow = cloud.ledger.fund(hold(f"t-{number}", agent_id=f"agt_{number:03}"))
        cloud.ledger.settle(settled(escrow, now_ms=number))
    (names,) = cloud.ledger.settled()
    assert cloud.ledger.credit(names, now_ms=9).escrows == count
    (waiting,) = cloud.ledger.log.waiting()
    assert sorted(append_to_log(cloud.ledger, name) for name in waiting) == [1, LOGGED_AGENTS_MAX]


def test_batches_of_older_code_are_logged(cloud: Cloud) -> None:
    """A batch that older code credited: it has one agent, which the batch names."""
    cloud.deposit("alice", 2 * BUDGET)
    for number in range(2):
        escrow = cloud.ledger.fund(hold(f"t-{number}"))
        cloud.ledger.settle(settled(escrow, now_ms=number))
    (names,) = cloud.ledger.settled()
    cloud.ledger.credit(names, now_ms=9)
    (batch,) = cloud.items("BATCH#")
    cloud._dynamodb.put_item(TableName=cloud.settings.ledger_table, Item=batch | {"agent_id": {"S": "agt_1"}})
    assert append_to_log(cloud.ledger, names[0]) == 2
    assert cloud.ledger.standing("agt_1").outcomes == 2


def test_a_sweep_skips_what_another_sweep_credited(rich: Cloud) -> None:
    for number in range(3):
        escrow = rich.ledger.fund(hold(f"t-{number}"))
        rich.ledger.settle(settled(escrow, now_ms=number))
    (batch,) = rich.ledger.settled()
    assert rich.ledger.credit(batch[:1], now_ms=1).escrows == 1
    assert rich.ledger.credit(batch, now_ms=2).escrows == 2
    assert rich.ledger.available_micro("owner") == 3 * 390_000


def test_the_platform_as_owner_is_credited_in_one_update(rich: Cloud) -> None:
    escrow = rich.ledger.fund(hold(owner="quittance:platform"))
    rich.ledger.settle(settled(escrow))
    (batch,) = rich.ledger.settled()
    assert rich.ledger.credit(batch, now_ms=1).escrows == 1
    assert rich.ledger.available_micro("quittance:platform") == 400_000


def _cancelled(*codes: str) -> ClientError:
    reasons = [{"Code": code, "Item": {"pk": {"S": "x"}}} if code != "None" else {"Code": code} for code in codes]
    response: Any = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
    return ClientError(response, "TransactWriteItems")


class Time:
    """A clock that advances only by sleeping."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(dynamo, "time", clock)
    return clock


CONFLICT = _cancelled("None", "TransactionConflict")
THROTTLED = ClientError({"Error": {"Code": "ThrottlingException"}}, "x")


@pytest.mark.parametrize(
    "failure",
    [
        _cancelled("TransactionConflict", "None"),
        _cancelled("None", "ThrottlingError"),
        ClientError({"Error": {"Code": "TransactionConflictException"}}, "x"),
        ClientError({"Error": {"Code": "TransactionInProgressException"}}, "x"),
        ClientError({"Error": {"Code": "InternalServerError"}}, "x"),
        THROTTLED,
        ConnectTimeoutError(endpoint_url="x"),
        ReadTimeoutError(endpoint_url="x"),
    ],
)
def test_transient_failures_are_retried_while_time_is_left(failure: Exception, time: Time) -> None:
    began_s, sent_s = time.now_s, []

    def send() -> None:
        sent_s.append(time.now_s)
        raise failure

    with pytest.raises(PlatformUnavailableError) as refused:
        dynamo.retried(send, dynamo.Patience(12_000, reserve_ms=3_000))
    assert refused.value.retry_after_s
    assert len(sent_s) > 5
    assert 5 < sent_s[-1] - began_s <= 9 - CALL_MS_MAX / 1_000, "the last call ends in time, too"


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (_cancelled("ConditionalCheckFailed", "None"), dynamo.RefusedError),
        (_cancelled("ConditionalCheckFailed", "TransactionConflict"), dynamo.RefusedError),
        (_cancelled("TransactionConflict", "ConditionalCheckFailed"), dynamo.RefusedError),
        (_cancelled("None", "ConditionalCheckFailed"), dynamo.RefusedError),
        (_cancelled("ValidationError", "None"), ClientError),
        (ClientError({"Error": {"Code": "ResourceNotFoundException"}}, "x"), ClientError),
        (NoCredentialsError(), PlatformUnavailableError),
    ],
)
def test_permanent_failures_are_not_retried(failure: Exception, error: type[Exception], time: Time) -> None:
    sent = 0

    def send() -> None:
        nonlocal sent
        sent += 1
        raise failure

    with pytest.raises(error):
        dynamo.retried(send, dynamo.Patience(12_000))
    assert sent == 1


def fails_first(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, *failures: Exception) -> list[set[str]]:
    """Makes the first transactions fail; returns the keys in each transaction that is sent."""
    honest, left, sent = cloud._dynamodb.transact_write_items, list(failures), []

    def send(**call: Any) -> Any:
        changes = [change for action in call["TransactItems"] for change in action.values()]
        sent.append({(change.get("Item") or change["Key"])["pk"]["S"] for change in changes})
        if left:
            raise left.pop(0)
        return honest(**call)

    monkeypatch.setattr(cloud._dynamodb, "transact_write_items", send)
    return sent


def shards(cloud: Cloud, account: str) -> list[int]:
    return [int(item["available"]["N"]) for item in cloud.items(f"ACCT#{account}")]


def test_throttling_is_hidden_from_the_caller(rich: Cloud, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = fails_first(rich, monkeypatch, THROTTLED, THROTTLED)
    rich.ledger.fund(hold())
    assert rich.ledger.available_micro("alice") == 9 * BUDGET
    assert sent == [{f"ESC#{hold().escrow_id}", "ACCT#alice"}] * 3, "an account without contention uses one shard"


def test_a_lost_response_is_resolved_by_a_retry(rich: Cloud, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, lost = rich._dynamodb.transact_write_items, []

    def loses_the_first(**call: Any) -> Any:
        answer = honest(**call)
        if not lost:
            lost.append(1)
            raise ReadTimeoutError(endpoint_url="x")
        return answer

    for operate in (
        lambda: rich.ledger.deposit("alice", "d", 5, now_ms=1),
        lambda: rich.ledger.withdraw("alice", "w", 5, now_ms=1),
        lambda: rich.ledger.fund(hold()),
        lambda: rich.ledger.settle(settled(hold(), FAILED)),
    ):
        lost.clear()
        monkeypatch.setattr(rich._dynamodb, "transact_write_items", loses_the_first)
        operate()
        assert lost
    assert rich.ledger.available_micro("alice") == 10 * BUDGET


def test_a_collision_spreads_a_large_balance(cloud: Cloud, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.deposit("alice", 100 * BUDGET)
    fails_first(cloud, monkeypatch, CONFLICT)
    cloud.ledger.fund(hold())
    assert len(shards(cloud, "alice")) == BALANCE_SHARDS
    assert min(shards(cloud, "alice")) >= BUDGET
    assert cloud.ledger.available_micro("alice") == 99 * BUDGET


def test_a_collision_moves_on_to_another_shard(cloud: Cloud, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both holds and refunds; the environment then stays with the shard that worked."""
    cloud.deposit("alice", 100 * BUDGET)
    with monkeypatch.context() as patch:
        fails_first(cloud, patch, CONFLICT)
        cloud.ledger.fund(hold("spreads"))
    monkeypatch.setattr(random, "choice", lambda able: able[7])
    monkeypatch.setattr(random, "randrange", lambda _: 9)
    sent = fails_first(cloud, monkeypatch, CONFLICT)
    escrow = cloud.ledger.fund(hold())
    assert "ACCT#alice#7" in sent[-1]
    cloud.ledger.fund(hold("next"))
    assert "ACCT#alice#7" in sent[-1]
    sent = fails_first(cloud, monkeypatch, CONFLICT)
    cloud.ledger.settle(settled(escrow, FAILED))
    assert ["ACCT#alice#7" in sent[0], "ACCT#alice#9" in sent[-1]] == [True, True]
    assert cloud.ledger.available_micro("alice") == 98 * BUDGET


def test_a_spread_balance_can_be_spent_completely(cloud: Cloud, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task larger than any shard, then a withdrawal of everything, then insufficient funds for both."""
    cloud.deposit("alice", 40 * BUDGET)
    fails_first(cloud, monkeypatch, CONFLICT)
    cloud.ledger.fund(hold("spreads"))
    cloud.ledger.fund(hold("large", budget_micro=10 * BUDGET))
    assert cloud.ledger.available_micro("alice") == 29 * BUDGET
    with pytest.raises(InsufficientFundsError) as refused:
        cloud.ledger.withdraw("alice", "w", 29 * BUDGET + 1, now_ms=1)
    assert refused.value.members == {"available": "29", "required": "29.000001"}
    cloud.ledger.withdraw("alice", "w", 29 * BUDGET, now_ms=1)
    assert set(shards(cloud, "alice")) == {0}
    with pytest.raises(InsufficientFundsError):
        cloud.ledger.fund(hold("one more"))
    assert [item["pk"]["S"] for item in cloud.items("OUT#")] == ["OUT#alice#w"]


def test_a_concurrent_repeat_is_not_insufficient_funds(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The concurrent repeat commits after our write was rejected and before we read the shards."""
    cloud.deposit("alice", BUDGET)
    honest, met = cloud.ledger._plan, []

    def overtaken(*asked: Any, **how: Any) -> Any:
        if not met:
            met.append(1)
            cloud.ledger.deposit("alice", "more", BUDGET, now_ms=1)
            cloud.ledger.withdraw("alice", "w", 2 * BUDGET, now_ms=2)
        return honest(*asked, **how)

    monkeypatch.setattr(cloud.ledger, "_plan", overtaken)
    assert cloud.ledger.withdraw("alice", "w", 2 * BUDGET, now_ms=3).requested_ms == 2
    assert cloud.ledger.available_micro("alice") == 0


def test_the_statement_pages_all_movements_newest_first(cloud: Cloud) -> None:
    cloud.ledger.deposit("alice", "d", 10 * BUDGET, now_ms=1)
    paid = cloud.ledger.fund(hold("paid", funded_ms=2))
    cloud.ledger.settle(settled(paid))
    failed = cloud.ledger.fund(hold("failed", funded_ms=3))
    cloud.ledger.settle(settled(failed, FAILED))
    cloud.ledger.fund(hold("open", funded_ms=4))
    cloud.ledger.withdraw("alice", "w", 7, now_ms=4)
    (batch,) = cloud.ledger.settled()
    cloud.ledger.credit(batch, now_ms=9)

    def task(name: str, at_ms: int, amount: int, state: State) -> Line:
        return Line("alice", LineKind.TASK, name, at_ms, amount, "agt_1", 1, state)

    lines, more = cloud.ledger.statement("alice", limit=10)
    assert not more
    assert sorted(lines, key=lambda line: (-line.at_ms, line.reference)) == [
        task("open", 4, -BUDGET, State.FUNDED),
        Line("alice", LineKind.WITHDRAWAL, "w", 4, -7, payout=PayoutState.REQUESTED),
        task("failed", 3, 0, State.REFUNDED),
        task("paid", 2, -400_000, State.RELEASED),
        Line("alice", LineKind.DEPOSIT, "d", 1, 10 * BUDGET),
    ]
    assert sum(line.amount_micro for line in lines) == cloud.ledger.available_micro("alice")
    first, after = batch[0], None
    assert cloud.ledger.statement("owner", limit=9) == (
        [Line("owner", LineKind.EARNINGS, first, 9, 390_000, "agt_1", 2)],
        False,
    )
    platform = Line("quittance:platform", LineKind.FEES, first, 9, 10_000, "agt_1", 2)
    assert cloud.ledger.statement("quittance:platform", limit=9) == ([platform], False)
    pages = []
    for _ in lines:
        (line,), more = cloud.ledger.statement("alice", limit=1, after=after)
        pages.append(line)
        after = (line.at_ms, line.kind, line.reference)
    assert (pages, more) == (lines, False)
