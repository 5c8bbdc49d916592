"""The ledger's writes one by one: what each refuses, and that a refusal changes nothing. (Single-threaded: moto.)"""

from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError

from quittance import escrow as escrows
from quittance.errors import InsufficientFundsError, MovementConflictError, PlatformUnavailableError
from quittance.escrow import Escrow, Settlement, State
from quittance.limits import TRANSACTION_TRIES_MAX
from quittance.run import Meter, Outcome, Run
from quittance.store import dynamo
from quittance.store.ledger import CREDITED_ESCROWS_MAX
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
        input_bytes=0,
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
    return replace(escrows.decide(escrow, run, now_ms=now_ms), receipt="a.b.c")


@pytest.fixture
def rich(cloud: Cloud) -> Cloud:
    cloud.deposit("alice", 10 * BUDGET)
    return cloud


def test_what_is_stored_is_what_is_read(rich: Cloud) -> None:
    escrow = hold()
    rich.ledger.fund(escrow)
    assert rich.ledger.find(escrow.escrow_id) == escrow
    settled = rich.ledger.settle(
        escrow, replace(end(escrow), output=rich.outputs.keep(b"out"), log=rich.outputs.keep(b""))
    )
    assert rich.ledger.find(escrow.escrow_id) == settled


def test_fund_holds_the_budget_once(rich: Cloud) -> None:
    escrow = hold()
    assert rich.ledger.fund(escrow) == escrow
    assert rich.ledger.fund(replace(escrow, runner="runner-2", fence=1)) == escrow
    assert rich.ledger.available_micro("alice") == 9 * BUDGET


def test_a_replay_is_told_before_the_empty_account(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both conditions failed: the first attempt took the last credit. (moto reports the first reason alone.)"""
    escrow = rich.ledger.fund(hold())
    (standing,), (account,) = rich.items("ESC#"), rich.items("ACCT#alice")

    def refuse(_: Any) -> None:
        raise dynamo.RefusedError([standing, account])

    monkeypatch.setattr(rich.ledger, "_transact", refuse)
    assert rich.ledger.fund(replace(escrow, runner="runner-2")) == escrow


def test_funding_without_funds_leaves_no_trace(cloud: Cloud) -> None:
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
def test_only_the_newest_fence_settles_and_only_before_expiry(
    rich: Cloud, run: Run, fence: int, now_ms: int, settles: bool
) -> None:
    """I7, I8."""
    escrow = rich.ledger.fund(hold())
    attempt = replace(escrow, fence=fence)
    standing = rich.ledger.settle(attempt, end(attempt, run, now_ms=now_ms))
    assert (standing.state is not State.FUNDED) == settles
    assert rich.total_micro() == 10 * BUDGET


@pytest.mark.parametrize(("now_ms", "expires"), [(EXPIRY - 1, False), (EXPIRY, True)])
def test_expiry_refunds_at_its_time_and_not_before(rich: Cloud, now_ms: int, expires: bool) -> None:
    """I8."""
    escrow = rich.ledger.fund(hold())
    standing = rich.ledger.expire(escrow, replace(escrows.expire(escrow, now_ms=now_ms), receipt="a.b.c"))
    assert (standing.state is State.EXPIRED) == expires
    assert rich.ledger.available_micro("alice") == (10 if expires else 9) * BUDGET


@pytest.mark.parametrize("first", [DONE, FAILED, None])
@pytest.mark.parametrize("second", [DONE, FAILED, None])
def test_an_escrow_leaves_funded_once(rich: Cloud, first: Run | None, second: Run | None) -> None:
    """I5, I6. None stands for expiry."""
    escrow = rich.ledger.fund(hold())

    def leave(run: Run | None) -> Escrow:
        if run is None:
            return rich.ledger.expire(escrow, replace(escrows.expire(escrow, now_ms=EXPIRY), receipt="e.e.e"))
        return rich.ledger.settle(escrow, end(escrow, run))

    stands = leave(first)
    balance = rich.ledger.available_micro("alice")
    assert leave(second) == stands
    assert rich.ledger.available_micro("alice") == balance


@pytest.mark.parametrize(
    ("fence", "now_ms", "taken"),
    [(1, LEASE - 1, False), (1, LEASE, True), (1, EXPIRY - 1, True), (1, EXPIRY, False), (2, LEASE, False)],
)
def test_takeover_needs_a_lapsed_lease_and_the_fence_that_was_seen(
    rich: Cloud, fence: int, now_ms: int, taken: bool
) -> None:
    escrow = rich.ledger.fund(hold())
    seen = replace(escrow, fence=fence)
    standing = rich.ledger.take_over(seen, runner="runner-2", now_ms=now_ms, lease_ms=now_ms + LEASE)
    assert (standing.runner == "runner-2") == taken
    if taken:
        late = rich.ledger.settle(escrow, end(escrow))
        assert late.state is State.FUNDED, "the runner that lost its lease cannot settle"
        assert rich.ledger.settle(standing, end(standing)).state is State.RELEASED


def test_movements_count_once_by_their_id(cloud: Cloud) -> None:
    assert cloud.ledger.deposit("alice", "d", 5, now_ms=1) == 1
    assert cloud.ledger.deposit("alice", "d", 5, now_ms=2) == 1
    with pytest.raises(MovementConflictError):
        cloud.ledger.deposit("alice", "d", 6, now_ms=3)
    assert cloud.ledger.withdraw("alice", "w", 5, now_ms=4) == 4
    assert cloud.ledger.withdraw("alice", "w", 5, now_ms=5) == 4
    with pytest.raises(InsufficientFundsError):
        cloud.ledger.withdraw("alice", "w2", 1, now_ms=6)
    assert cloud.ledger.available_micro("alice") == 0


def test_sweep_credits_each_escrow_once_in_batches(cloud: Cloud) -> None:
    """I10: more than fits one transaction, by two sweeps that saw the same index."""
    count = CREDITED_ESCROWS_MAX + 3
    cloud.deposit("alice", count * BUDGET)
    for number in range(count):
        escrow = cloud.ledger.fund(hold(f"t-{number}"))
        cloud.ledger.settle(escrow, end(escrow, DONE if number % 2 else FAILED, now_ms=number))
    batches = list(cloud.ledger.credits())
    assert [len(batch) for batch in batches] == [CREDITED_ESCROWS_MAX, 3]
    credited = [cloud.ledger.credit(batch, now_ms=1) for batch in [*batches, *batches]]
    assert credited == [CREDITED_ESCROWS_MAX, 3, 0, 0]
    successes = count // 2
    assert cloud.ledger.available_micro("owner") == successes * 390_000
    assert cloud.ledger.available_micro("quittance:platform") == successes * 10_000
    standing = cloud.ledger.reputation("agt_1")
    assert (standing.outcomes, standing.successes, standing.failures) == (count, successes, count - successes)
    assert list(cloud.ledger.credits()) == []
    assert cloud.total_micro() == count * BUDGET


def test_sweep_drops_what_another_sweep_took_and_credits_the_rest(rich: Cloud) -> None:
    for number in range(3):
        escrow = rich.ledger.fund(hold(f"t-{number}"))
        rich.ledger.settle(escrow, end(escrow, now_ms=number))
    (batch,) = rich.ledger.credits()
    assert rich.ledger.credit(batch[:1], now_ms=1) == 1
    assert rich.ledger.credit(batch, now_ms=2) == 2
    assert rich.ledger.available_micro("owner") == 3 * 390_000


def test_platform_as_owner_is_credited_in_one_action(rich: Cloud) -> None:
    escrow = rich.ledger.fund(hold(owner="quittance:platform"))
    rich.ledger.settle(escrow, end(escrow))
    (batch,) = rich.ledger.credits()
    assert rich.ledger.credit(batch, now_ms=1) == 1
    assert rich.ledger.available_micro("quittance:platform") == 400_000


def _cancelled(*codes: str) -> ClientError:
    reasons = [{"Code": code, "Item": {"pk": {"S": "x"}}} if code != "None" else {"Code": code} for code in codes]
    response: Any = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
    return ClientError(response, "TransactWriteItems")


@pytest.mark.parametrize(
    ("failure", "tries", "error"),
    [
        (_cancelled("ConditionalCheckFailed", "None"), 1, dynamo.RefusedError),
        (_cancelled("ConditionalCheckFailed", "TransactionConflict"), 1, dynamo.RefusedError),
        (_cancelled("None", "ConditionalCheckFailed"), 1, dynamo.RefusedError),
        (_cancelled("TransactionConflict", "ConditionalCheckFailed"), TRANSACTION_TRIES_MAX, PlatformUnavailableError),
        (_cancelled("TransactionConflict", "None"), TRANSACTION_TRIES_MAX, PlatformUnavailableError),
        (_cancelled("ValidationError", "None"), 1, ClientError),
        (ClientError({"Error": {"Code": "ThrottlingException"}}, "x"), TRANSACTION_TRIES_MAX, PlatformUnavailableError),
        (ClientError({"Error": {"Code": "ResourceNotFoundException"}}, "x"), 1, ClientError),
        (ConnectTimeoutError(endpoint_url="x"), 1, PlatformUnavailableError),
    ],
)
def test_conflicts_are_tried_again_and_refusals_are_not(
    failure: Exception, tries: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamo.time, "sleep", lambda _: None)
    sent = 0

    def send() -> None:
        nonlocal sent
        sent += 1
        raise failure

    with pytest.raises(error):
        dynamo.answered(send)
    assert sent == tries


def test_passing_conflict_is_not_seen_by_the_caller(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamo.time, "sleep", lambda _: None)
    honest = rich._dynamodb.transact_write_items
    failures = [_cancelled("TransactionConflict", "None"), _cancelled("None", "ThrottlingError")]
    tokens = []

    def contended(**call: Any) -> Any:
        tokens.append(call["ClientRequestToken"])
        if failures:
            raise failures.pop()
        return honest(**call)

    monkeypatch.setattr(rich._dynamodb, "transact_write_items", contended)
    rich.ledger.fund(hold())
    assert rich.ledger.available_micro("alice") == 9 * BUDGET
    assert len(tokens) == 3
    assert len(set(tokens)) == 1, "a repeat with another token could fund twice"
