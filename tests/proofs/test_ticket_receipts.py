"""Receipts of tasks that tickets pay, by the use cases on the in-memory ledger, and what a stranger's ticket costs."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from quittance.acceptance.rules import rules_json
from quittance.api.identity import Caller
from quittance.api.models import ChannelRequest, DirectTaskRequest, SignedClose, TaskRequest, TaskResult
from quittance.errors import (
    InvalidRequestError,
    NotFoundError,
    QuittanceError,
    TicketInvalidError,
    TicketTooSmallError,
)
from quittance.ledger.channels import Channel
from quittance.limits import BUDGET_MICRO_MAX, TICKETS_PER_TASK_MAX
from quittance.proof import receipt
from quittance.proof.verify import CheckResult, Evidence, examine
from quittance.usecases import channels, execute, result
from tests.proof import second_checker, ticketing
from tests.proof.ticketing import CLOSE_HEADER, KEY, OTHER_KEY, jwk, jws
from tests.proofs.memory import Memory
from tests.proofs.world import (
    FLAT,
    FLAT_MICRO,
    JUDGE_MICRO,
    JUDGED,
    START_MS,
    World,
    ask,
    fill_bonds,
    micro,
    quiet,
)
from tests.tickets import claims_for

ALICE = Caller("alice")
VALUE = 10_000


class Counting(Memory):
    """The in-memory table, which counts the items that were read."""

    reads = 0

    def get_item(self, **call: Any) -> dict[str, Any]:
        self.reads += 1
        return super().get_item(**call)

    def batch_get_item(self, **call: Any) -> dict[str, Any]:
        self.reads += sum(len(keys["Keys"]) for keys in call["RequestItems"].values())
        return super().batch_get_item(**call)

    def transact_get_items(self, **call: Any) -> dict[str, Any]:
        self.reads += len(call["TransactItems"])
        return super().transact_get_items(**call)


class Stage:
    """A world with one payer, who opens channels and signs tickets."""

    def __init__(self) -> None:
        self.table = Counting()
        self.world = World(self.table, now_ms=lambda: START_MS, left_ms=lambda: 5_000)
        fill_bonds(self.world)
        self.world.ledger.deposit("alice", "d", 10**9, now_ms=START_MS)

    def open(self, *, value: int = VALUE, tickets: int = 200, salt: str = "s", **terms: Any) -> Channel:
        asked = {"salt": salt, "key": jwk(KEY), "ticket_value": micro(value), "tickets": tickets}
        request = ChannelRequest.model_validate({**asked, "expires_at": "2027-02-01T00:00:00Z", **terms})
        return self.world.channels.get(channels.open_channel(self.world, ALICE, request).channel_id)

    def ticket(self, request: TaskRequest, key: Any = KEY, **changes: Any) -> str:
        named = {"iss": self.world.settings.receipt_issuer, "exp": START_MS // 1_000 + 600}
        return jws(claims_for(request, **(named | changes)), key=key)

    def pay(self, request: TaskRequest) -> TaskResult:
        channel_id = request.task_id.partition(".")[0]
        answered = execute.redeem(self.world, channel_id, request, self.ticket(request))
        assert isinstance(answered, TaskResult)
        return answered

    def refused(self, request: TaskRequest, token: str) -> QuittanceError:
        channel_id = request.task_id.partition(".")[0]
        with pytest.raises(QuittanceError) as caught:
            execute.redeem(self.world, channel_id, request, token)
        return caught.value


@pytest.fixture
def stage() -> Iterator[Stage]:
    with quiet():
        yield Stage()


def evidence(stage: Stage, done: TaskResult, **given: Any) -> Evidence:
    return Evidence(receipt=done.receipt, keys=json.dumps(stage.world.keys.jwks()).encode(), **given)


def test_both_checkers_accept_the_receipts_of_tickets(stage: Stage) -> None:
    """Whatever the outcome, with one number or several; the platform's answer and the receipt agree."""
    channel = stage.open()
    states = set()
    for number in range(1, 40, 3):
        done = stage.pay(ask(f"{channel.channel_id}.{number}"))
        claims = receipt.verify(done.receipt, stage.world.keys.jwks())
        assert second_checker.check(done.receipt, stage.world.keys.jwks()) == claims
        assert (claims["v"], claims["user"], claims["task"]) == (3, "alice", f"{channel.channel_id}.{number}")
        assert (claims["ticket"]["n"], claims["ticket"]["tickets"]) == (number, 3)
        states.add(claims["outcome"])
        report = examine(evidence(stage, done, input=b"in", channel_key=json.dumps(jwk(KEY)).encode()))
        checked = {check.name: check.result for check in report.checks}
        assert (checked["ticket"], checked["key"], report.exit_status) == (CheckResult.PASSED, CheckResult.PASSED, 0)
    assert len(states) >= 3


def judged_task(stage: Stage, channel: Channel, number: int, *, judge: bool) -> tuple[TaskRequest, TaskResult]:
    budget = 4 * FLAT_MICRO + (JUDGE_MICRO if judge else 0)
    request = ask(f"{channel.channel_id}.{number}", JUDGED, budget=budget, judge=judge)
    return request, stage.pay(request)


@pytest.mark.parametrize("judge", [False, True])
def test_receipts_of_judges_verify_with_the_tasks(stage: Stage, judge: bool) -> None:
    """The task's own judge is paid from the task's tickets, so its user is the payer; the agent's by the bond."""
    channel = stage.open()
    ends = set()
    for number in range(1, 180, 10):
        request, done = judged_task(stage, channel, number, judge=judge)
        given: dict[str, Any] = {"task_rules": rules_json(request.acceptance).encode()} if request.acceptance else {}
        for line in done.judges:
            stored = result.find(stage.world, ALICE, f"{request.task_id}:judge-{line.side}")
            assert stored.settlement
            claims = receipt.verify(stored.settlement.receipt, stage.world.keys.jwks())
            assert second_checker.check(stored.settlement.receipt, stage.world.keys.jwks()) == claims
            assert claims["v"] == 2
            assert claims["user"] == ("alice" if line.side == "task" else "bond olga")
            given[f"{line.side}_judge"] = stored.settlement.receipt
        report = examine(evidence(stage, done, **given))
        assert report.exit_status == 0, [check for check in report.checks if check.flaw]
        checked = {check.name: check.result for check in report.checks}
        assert checked["agent judge"] is CheckResult.PASSED
        assert report.claims
        assert report.claims.ticket
        if judge:
            assert checked["task judge"] is checked["budget"] is CheckResult.PASSED
            drawn = int(report.claims.budget) - int(report.claims.refunded) + int(report.claims.task_judging)
            assert drawn <= request.budget_micro
        ends.add((report.claims.outcome, report.claims.rejected_by))
    assert len(ends) >= 3


def test_a_judges_receipt_of_another_task_is_noticed(stage: Stage) -> None:
    channel = stage.open()
    receipts = []
    for number in (1, 11):
        request, done = judged_task(stage, channel, number, judge=True)
        stored = result.find(stage.world, ALICE, f"{request.task_id}:judge-task")
        assert stored.settlement
        receipts.append((done, stored.settlement.receipt))
    (one, _), (_, other) = receipts
    report = examine(evidence(stage, one, task_judge=other))
    assert report.exit_status == 7
    assert "task of the judge's receipt" in next(check.sentence for check in report.checks if check.flaw)


def test_options_of_a_request_are_proven_by_their_digest(stage: Stage) -> None:
    """The names and values by which a request's options are hashed are those that docs/howto/channels.md states."""
    channel = stage.open()
    plain = ask(f"{channel.channel_id}.1")
    sent = {"task_id": plain.task_id, "agent_id": FLAT, "input": "in", "budget": micro(2 * FLAT_MICRO)}
    request = TaskRequest.model_validate(
        {**sent, "keep_input": True, "max_judging": "0.5", "min_reputation": Decimal("40.5")}
    )
    options = {"keep_input": True, "max_judging": 500_000, "min_reputation": 405}
    token = stage.ticket(request)
    accepted = execute.tickets.accept(stage.world, token, request)
    assert accepted.token == token
    assert second_checker.unpack(token, "ticket")[1]["options_sha256"] == execute.tickets.tickets.options_sha256(
        options
    )
    for name in options:
        less = {key: value for key, value in {**sent, "keep_input": True, "max_judging": "0.5"}.items() if key != name}
        assert isinstance(stage.refused(TaskRequest.model_validate(less), token), TicketInvalidError)


# What a stranger can make the platform do.


def test_a_budget_of_countless_tickets_is_refused_before_any_is_read(stage: Stage) -> None:
    """Regression: a channel of tickets of one micro-credit, and a budget of a million credits, listed 10^12 numbers."""
    channel = stage.open(value=1, tickets=100)
    before = stage.table.reads
    for budget in (TICKETS_PER_TASK_MAX + 1, BUDGET_MICRO_MAX):
        request = ask(f"{channel.channel_id}.1", budget=budget)
        refusal = stage.refused(request, stage.ticket(request))
        assert isinstance(refusal, TicketTooSmallError)
        assert "at most" in str(refusal.members["errors"])
    assert stage.table.reads - before <= 1, "the channel itself"
    at_limit = ask(f"{channel.channel_id}.1", budget=TICKETS_PER_TASK_MAX)
    assert execute.tickets.accept(stage.world, stage.ticket(at_limit), at_limit).ticket.count == TICKETS_PER_TASK_MAX


def test_garbage_tickets_cost_no_reads(stage: Stage) -> None:
    """Only a ticket for exactly this request makes the platform look for its channel; a known one is cached."""
    channel = stage.open()
    request = ask(f"{channel.channel_id}.1")
    good = stage.ticket(request)
    stage.world.channels.get_again(channel.channel_id)
    before, written = stage.table.reads, dict(stage.table.items)
    garbage = ["", "a.b.c", good + "=", good[:-2], good * 3, "a" * 10**6, ticketing.jws({}), "\ud800", "\0"]
    garbage += [stage.ticket(request, key=OTHER_KEY), jws({}, {"alg": "none"})]
    changes: list[dict[str, Any]] = [
        *({"iss": "urn:other"}, {"n": 2}, {"agent_id": "a"}, {"input_sha256": "ab" * 32}, {"budget": "1"}),
        *(
            {"timeout": 5},
            {"acceptance_sha256": "ab" * 32},
            {"options_sha256": "ab" * 32},
            {"channel": "chn_" + "a" * 26},
        ),
    ]
    garbage += [stage.ticket(request, **change) for change in changes]
    for token in garbage:
        assert isinstance(stage.refused(request, token), TicketInvalidError | InvalidRequestError), token[:80]
    assert stage.table.reads == before
    assert stage.table.items == written
    for number in range(3):
        unknown = ask("chn_" + "abc"[number] * 26 + ".1")
        assert "there is no channel" in str(stage.refused(unknown, stage.ticket(unknown)))
    assert stage.table.reads == before + 3, "one for each channel that does not exist"
    assert stage.table.items == written
    assert stage.pay(request).receipt


def test_garbage_closing_orders_cost_no_reads(stage: Stage) -> None:
    """Regression: the channel was read before the order was looked at."""
    channel = stage.open()
    before, written = stage.table.reads, dict(stage.table.items)
    claims = {"iss": stage.world.settings.receipt_issuer, "channel": channel.channel_id, "exp": START_MS // 1_000 + 5}
    request = ask(f"{channel.channel_id}.1")
    orders = ["", "a.b.c", stage.ticket(request), jws(claims), jws({**claims, "iss": "urn:other"}, CLOSE_HEADER)]
    orders.append(jws({**claims, "channel": "chn_" + "a" * 26}, CLOSE_HEADER))
    for order in orders:
        with pytest.raises(TicketInvalidError):
            channels.close_by_key(stage.world, channel.channel_id, SignedClose(order=order))
    assert stage.table.reads == before
    with pytest.raises(TicketInvalidError):
        channels.close_by_key(
            stage.world, channel.channel_id, SignedClose(order=jws(claims, CLOSE_HEADER, key=OTHER_KEY))
        )
    assert stage.table.items == written
    unknown = {**claims, "channel": "chn_" + "a" * 26}
    with pytest.raises(NotFoundError):
        channels.close_by_key(stage.world, "chn_" + "a" * 26, SignedClose(order=jws(unknown, CLOSE_HEADER)))
    assert (
        channels.close_by_key(stage.world, channel.channel_id, SignedClose(order=jws(claims, CLOSE_HEADER))).state
        == "closing"
    )


def test_a_ticket_is_of_one_stack_and_one_channel(stage: Stage) -> None:
    """Two channels with the same key and payer, and another stack with the same channel."""
    one, two = stage.open(), stage.open(salt="other")
    request = ask(f"{one.channel_id}.1")
    elsewhere = ask(f"{two.channel_id}.1")
    token = stage.ticket(request)
    assert isinstance(stage.refused(elsewhere, token), InvalidRequestError)
    with pytest.raises(InvalidRequestError):
        execute.redeem(stage.world, two.channel_id, request, token)
    other = Stage()
    issuer = "urn:quittance:other"
    other.world.settings = other.world.settings.model_copy(update={"receipt_issuer": issuer})
    channel = other.open()
    assert channel.channel_id != one.channel_id, "the id commits to the stack"
    there = ask(f"{channel.channel_id}.1")
    assert "its iss is" in str(other.refused(there, other.ticket(there, iss=stage.world.settings.receipt_issuer)))
    assert "its iss is" in str(other.refused(request, token))
    assert other.pay(there).receipt


def test_another_users_request_with_a_ticket_is_no_one_elses(stage: Stage) -> None:
    """A direct payload has a ticket or a user, never both; the payer is always the channel's."""
    channel = stage.open()
    request = ask(f"{channel.channel_id}.1")
    sent = {"task_id": request.task_id, "agent_id": FLAT, "input": "in", "budget": micro(2 * FLAT_MICRO)}
    for more in ({}, {"ticket": stage.ticket(request), "user_id": "mallory"}):
        with pytest.raises(InvalidRequestError):
            DirectTaskRequest.model_validate({**sent, **more})
    direct = DirectTaskRequest.model_validate({**sent, "ticket": stage.ticket(request)})
    payer = execute.payer_of(stage.world, direct)
    assert execute.account_of(payer) == "alice"
    done = execute.execute(stage.world, payer, direct)
    assert isinstance(done, TaskResult)
    assert receipt.verify(done.receipt, stage.world.keys.jwks())["user"] == "alice"
    with pytest.raises(NotFoundError):
        result.find(stage.world, Caller("mallory"), request.task_id)


@pytest.mark.parametrize("spelling", ["0.020014", "0.0200140", "00.020014"])
def test_a_budget_has_one_amount_in_any_spelling(stage: Stage, spelling: str) -> None:
    """The ticket's spelling and the request's may differ, the amount may not."""
    channel = stage.open()
    request = ask(f"{channel.channel_id}.1")
    good = len(spelling.partition(".")[2]) <= 6
    token = stage.ticket(request, budget=spelling)
    if not good:
        assert isinstance(stage.refused(request, token), TicketInvalidError)
    else:
        answered = execute.redeem(stage.world, channel.channel_id, request, token)
        assert isinstance(answered, TaskResult)
        assert second_checker.check(answered.receipt, stage.world.keys.jwks())["budget"] == "20014"
