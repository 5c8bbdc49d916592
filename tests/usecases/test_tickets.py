"""Tasks that tickets pay, on a whole platform: each refusal runs and changes nothing, and no number pays twice."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from quittance.api import messages
from quittance.api.identity import Caller
from quittance.api.models import DirectTaskRequest, TaskPending, TaskResult
from quittance.api.requests import validated
from quittance.errors import (
    AccountFrozenError,
    AgentNotAllowedError,
    AgentNotReadyError,
    BudgetTooLowError,
    ChannelClosedError,
    ChannelExpiredError,
    FundingPausedError,
    InvalidRequestError,
    NotFoundError,
    PlatformUnavailableError,
    QuittanceError,
    TicketInvalidError,
    TicketTooSmallError,
    TicketUsedError,
    TooManyRunningError,
)
from quittance.ledger.channels import ticket_escrow_id
from quittance.ledger.escrow import State
from quittance.limits import (
    TICKET_AHEAD_S_MAX,
    TICKET_CHARS_MAX,
    TICKET_NUMBER_MAX,
    TICKETS_PER_TASK_MAX,
)
from quittance.operation import Action
from quittance.proof import receipt
from quittance.store.queue import Delivery, NotDoneError
from quittance.usecases import agents, channels, deadletter, execute, launch, result, sweep, tickets
from quittance.usecases.work import work
from tests import tickets as signing
from tests.support import Cloud, wasm
from tests.usecases.test_async import Bench
from tests.usecases.test_channels import available, closed, stop, topped_up
from tests.usecases.test_judges import judged_by, saying

ALICE, OWNER = Caller("alice"), Caller("owner")


@pytest.fixture
def echo(platform: Cloud) -> str:
    return platform.publish(wasm("echo"))


@pytest.fixture
def channel(platform: Cloud) -> str:
    """A channel of five tickets of 0.05 credits."""
    return signing.opened(platform).channel_id


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the tasks that ran."""
    ran: list[str] = []
    run = launch.run

    def noted(platform: Any, escrow: Any, *rest: Any, **more: Any) -> Any:
        ran.append(escrow.task_id)
        return run(platform, escrow, *rest, **more)

    monkeypatch.setattr(launch, "run", noted)
    return ran


def spend(platform: Cloud, channel_id: str, n: int, agent_id: str, **more: Any) -> TaskResult | TaskPending:
    task = signing.task(channel_id, n, agent_id, **more)
    return execute.redeem(platform, channel_id, task, signing.ticket(platform, task))


def paid(platform: Cloud, channel_id: str, n: int, agent_id: str, **more: Any) -> TaskResult:
    done = spend(platform, channel_id, n, agent_id, **more)
    assert isinstance(done, TaskResult)
    assert done.success
    return done


def refused(
    platform: Cloud, runs: list[str], error: type[QuittanceError], call: Callable[[], object], match: str | None = None
) -> QuittanceError:
    """Asserts that a call is refused, changes nothing in the ledger, and runs nothing."""
    before, ran = platform.items(), list(runs)
    with pytest.raises(error, match=match) as refusal:
        call()
    assert (platform.items(), runs) == (before, ran)
    return refusal.value


# What a ticket pays.


def test_task_costs_one_write_and_answers_again(platform: Cloud, channel: str, echo: str, runs: list[str]) -> None:
    total, before = platform.total_micro(), available(platform)
    done = paid(platform, channel, 1, echo)
    assert (done.payment_method, done.escrow_status, done.amount_paid_micro, done.fee_micro) == (
        "ticket", "released", 9_750, 250,
    )  # fmt: skip
    assert done.amount_refunded_micro == 40_000
    assert spend(platform, channel, 1, echo) == done
    assert runs == [f"{channel}.1"], "a repeated request runs nothing"
    assert (available(platform), platform.total_micro()) == (before, total)
    claims = receipt.verify(done.receipt, platform.keys.jwks())
    assert (claims["v"], claims["user"], claims["ticket"]["channel"], claims["ticket"]["n"]) == (3, "alice", channel, 1)
    assert [item["number"]["N"] for item in platform.items("ESC#")] == ["1"]


def test_ticket_of_a_failed_task_costs_nothing(platform: Cloud, channel: str) -> None:
    failing = platform.publish(wasm("echo"), acceptance={"max_bytes": 0})
    done = spend(platform, channel, 1, failing)
    assert isinstance(done, TaskResult)
    assert (done.success, done.amount_paid_micro, done.escrow_status) == (False, 0, "refunded")
    assert spend(platform, channel, 1, failing) == done
    sweep.sweep(platform)
    found = channels.read(platform, ALICE, channel)
    assert (found.spent_micro, found.used, found.numbers) == (0, 1, 6)


def test_task_of_several_tickets_takes_consecutive_numbers(
    platform: Cloud, channel: str, echo: str, runs: list[str]
) -> None:
    done = paid(platform, channel, 2, echo, budget="0.100001")
    assert spend(platform, channel, 2, echo, budget="0.100001") == done
    assert {item["number"]["N"] for item in platform.items("ESC#")} == {"2", "3", "4"}
    for n in (3, 4):
        refusal = refused(platform, runs, TicketUsedError, lambda n=n: spend(platform, channel, n, echo))
        assert refusal.members["number"] == n  # type: ignore[attr-defined]  # a refusal's
    refused(platform, runs, TicketUsedError, lambda: spend(platform, channel, 1, echo, budget="0.1"))
    refused(platform, runs, TicketUsedError, lambda: spend(platform, channel, 2, echo, budget="0.05"))
    assert paid(platform, channel, 1, echo).success
    assert paid(platform, channel, 5, echo).success
    sweep.sweep(platform)
    found = channels.read(platform, ALICE, channel)
    assert (found.used, found.spent_micro) == (5, 30_000)


def test_most_tickets_of_one_task(platform: Cloud, echo: str, runs: list[str]) -> None:
    """90 in one transaction; one more is refused with the most that is possible."""
    channel = signing.opened(platform, tickets=200, ticket_value="0.001").channel_id
    refusal = refused(platform, runs, TicketTooSmallError, lambda: spend(platform, channel, 1, echo, budget="0.090001"))
    assert refusal.members["most"] == "0.09"  # type: ignore[attr-defined]  # a refusal's
    refused(platform, runs, TicketInvalidError, lambda: spend(platform, channel, 20, echo, budget="0.09"), "far beyond")
    done = paid(platform, channel, 1, echo, budget="0.09")
    assert len(platform.items("ESC#")) == TICKETS_PER_TASK_MAX
    assert spend(platform, channel, 1, echo, budget="0.09") == done


def test_max_per_task_is_a_cap(platform: Cloud, echo: str, runs: list[str]) -> None:
    channel = signing.opened(platform, max_per_task="0.06").channel_id
    refused(platform, runs, TicketTooSmallError, lambda: spend(platform, channel, 1, echo, budget="0.060001"), "0.06")
    assert paid(platform, channel, 1, echo, budget="0.06")


def test_only_allowed_agents_are_paid(platform: Cloud, echo: str, runs: list[str]) -> None:
    other = platform.publish(wasm("echo"))
    channel = signing.opened(platform, agents=[echo]).channel_id
    refused(platform, runs, AgentNotAllowedError, lambda: spend(platform, channel, 1, other), other)
    assert paid(platform, channel, 1, echo)


def test_judged_task_is_paid_by_its_tickets(platform: Cloud, echo: str, runs: list[str]) -> None:
    platform.deposit("alice", 9_000_000)
    channel = signing.opened(platform, ticket_value="0.5").channel_id
    judge = platform.publish(saying("1"), owner="judge-owner")
    more = {"budget": "0.5", "acceptance": judged_by(judge)}
    total, before = platform.total_micro(), available(platform)
    done = paid(platform, channel, 1, echo, **more)
    assert done.judging_micro > 0
    assert spend(platform, channel, 1, echo, **more) == done
    assert runs == [f"{channel}.1", f"{channel}.1:judge-task"]
    assert sweep.sweep(platform).failed == 0
    assert (platform.total_micro(), available(platform)) == (total, before)
    assert channels.read(platform, ALICE, channel).spent_micro == 10_000 + done.judging_micro
    channels.close(platform, ALICE, channel)
    assert closed(platform, channel).returned_micro == 2_500_000 - 10_000 - done.judging_micro


# What a ticket must be.


def test_forged_and_foreign_tickets_are_refused(platform: Cloud, channel: str, echo: str, runs: list[str]) -> None:
    task = signing.task(channel, 1, echo)
    now_s = platform.now_ms() // 1_000
    good = signing.ticket(platform, task)
    head, claims, signature = good.split(".")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"quittance-ticket+jwt"}').rstrip(b"=").decode()
    wrong = [
        signing.ticket(platform, task, signing.OTHER_KEY),
        signing.ticket(platform, task, iss="urn:quittance:other"),
        signing.ticket(platform, task, agent_id="agt_other"),
        signing.ticket(platform, task, input_sha256="0" * 64),
        signing.ticket(platform, task, budget="0.050001"),
        signing.ticket(platform, task, budget="5e-2"),
        signing.ticket(platform, task, budget=0.05),
        signing.ticket(platform, task, timeout=5),
        signing.ticket(platform, task, acceptance_sha256="0" * 64),
        signing.ticket(platform, task, options_sha256="0" * 64),
        signing.ticket(platform, task, exp=now_s - tickets.LEEWAY_S),
        signing.ticket(platform, task, exp=now_s * 1_000),
        signing.ticket(platform, task, exp=now_s + TICKET_AHEAD_S_MAX + 60),
        signing.ticket(platform, task, exp=None),
        signing.ticket(platform, task, n=0),
        signing.ticket(platform, task, n=-1),
        signing.ticket(platform, task, n=TICKET_NUMBER_MAX + 1),
        signing.ticket(platform, task, n="1"),
        signing.ticket(platform, task, n=1.0),
        signing.ticket(platform, task, n=True),
        signing.ticket(platform, task, more=1),
        signing.order(platform, channel),
        signing.signed(signing.claims_of(platform, task), typ="JWT"),
        f"{unsigned}.{claims}.",
        f"{unsigned}.{claims}.{signature}",
        f"{head}.{claims}.{signature[:-2]}",
        f"{head}.{claims}",
        f"{good}.{good}",
        f" {good}",
        f"Bearer {good}",
        *("", ".", "..", "é", "\x00", "[]", "x" * TICKET_CHARS_MAX, "x" * (TICKET_CHARS_MAX + 1)),
    ]
    for number, token in enumerate(wrong):
        before = platform.items()
        with pytest.raises(TicketInvalidError):
            pytest.fail(f"{number}: {execute.redeem(platform, channel, task, token)}")
        assert platform.items() == before, number
    assert runs == []
    assert execute.redeem(platform, channel, task, good)


def test_ticket_pays_only_its_own_number_and_channel(platform: Cloud, channel: str, echo: str, runs: list[str]) -> None:
    other = signing.opened(platform, salt="other").channel_id
    task = signing.task(channel, 1, echo)
    good = signing.ticket(platform, task)
    for another in (signing.task(channel, 2, echo), signing.task(other, 1, echo), signing.task("t-1", 1, echo)):
        refused(
            platform, runs, InvalidRequestError, lambda t=another: execute.redeem(platform, channel, t, good), "task_id"
        )
    refused(platform, runs, InvalidRequestError, lambda: execute.redeem(platform, other, task, good), "channel_id")


@pytest.mark.parametrize(
    "more",
    [
        {"timeout": 3},
        {"keep_input": True},
        {"webhook": "https://receiver.example/hook"},
        {"acceptance": {"max_bytes": 10}},
        {"min_reputation": 10},
        {"share": {"payer": True}},
        {"max_judging": "0.01"},
    ],
    ids=str,
)
def test_every_member_of_the_request_is_signed(
    platform: Cloud, channel: str, echo: str, runs: list[str], more: dict[str, Any]
) -> None:
    """A ticket for the plain request pays none with this member, and the other way round."""
    plain, changed = signing.task(channel, 1, echo), signing.task(channel, 1, echo, **more)
    for signed, sent in ((plain, changed), (changed, plain)):
        token = signing.ticket(platform, signed)
        refused(
            platform,
            runs,
            TicketInvalidError,
            lambda sent=sent, token=token: execute.redeem(platform, channel, sent, token),
        )
    assert isinstance(execute.redeem(platform, channel, changed, signing.ticket(platform, changed)), TaskResult)


def test_clock_of_the_signer_may_differ(platform: Cloud, channel: str, echo: str) -> None:
    task = signing.task(channel, 1, echo)
    late = signing.ticket(platform, task, exp=platform.now_ms() // 1_000 - tickets.LEEWAY_S + 5)
    assert execute.redeem(platform, channel, task, late)


# Numbers.


def test_numbers_beyond_the_deposit_are_refused(platform: Cloud, channel: str, echo: str, runs: list[str]) -> None:
    for n in (6, 7, 1_000, TICKET_NUMBER_MAX):
        refused(platform, runs, TicketInvalidError, lambda n=n: spend(platform, channel, n, echo), "covers the numbers")
    refused(platform, runs, TicketInvalidError, lambda: spend(platform, channel, 5, echo, budget="0.1"), "5 to 6")
    assert paid(platform, channel, 5, echo)


def test_numbers_far_beyond_those_in_use_are_refused(platform: Cloud, echo: str, runs: list[str]) -> None:
    platform.deposit("alice", 10_000_000)
    channel = signing.opened(platform, tickets=300, ticket_value="0.01").channel_id
    refused(platform, runs, TicketInvalidError, lambda: spend(platform, channel, 109, echo, budget="0.01"), "up to 108")
    for number in (108, 208, 1):
        assert paid(platform, channel, number, echo, budget="0.01")
    refused(platform, runs, TicketInvalidError, lambda: spend(platform, channel, 309, echo, budget="0.01"), "up to 300")


def test_topped_up_numbers_work_at_once_everywhere(platform: Cloud, channel: str, echo: str, runs: list[str]) -> None:
    """Another environment topped up: this one has the channel in its cache, and must not refuse by it."""
    assert paid(platform, channel, 1, echo)
    cached = platform.channels.get_cached(channel)
    topped_up(platform, channel, "u", 5)
    platform.channels._cache.get(channel, lambda _: cached)
    assert platform.channels.get_cached(channel).numbers == 5
    assert paid(platform, channel, 10, echo)
    refused(platform, runs, TicketInvalidError, lambda: spend(platform, channel, 11, echo))


# Closed and expired channels.


def test_closing_channel_takes_no_task_but_answers_earlier_ones(
    platform: Cloud, channel: str, echo: str, runs: list[str]
) -> None:
    done = paid(platform, channel, 1, echo)
    channels.close(platform, ALICE, channel)
    for _ in range(2):
        assert spend(platform, channel, 1, echo) == done
        refused(platform, runs, TicketUsedError, lambda: spend(platform, channel, 1, echo, input="other"))
        refused(platform, runs, ChannelClosedError, lambda: spend(platform, channel, 2, echo))
        assert closed(platform, channel).state == "closed"
    assert result.read(platform, ALICE, f"{channel}.1") == done


def test_stale_cache_cannot_spend_a_closed_channel(platform: Cloud, channel: str, echo: str, runs: list[str]) -> None:
    """An environment whose cache still has the channel as open: the number was taken out of use, and nothing runs."""
    assert paid(platform, channel, 1, echo)
    stale = platform.channels.get_cached(channel)
    channels.close(platform, ALICE, channel)
    done = closed(platform, channel)
    platform.channels._cache.drop(channel)
    platform.channels._cache.get(channel, lambda _: stale)
    refused(platform, runs, ChannelClosedError, lambda: spend(platform, channel, 2, echo))
    assert channels.read(platform, ALICE, channel) == done


def test_runner_that_closing_overtook_is_not_paid(platform: Cloud, channel: str, echo: str) -> None:
    """The channel is counted and closed while a task runs: its write is refused, and the cap holds."""
    total, run = platform.total_micro(), launch.run

    def slow(*args: Any, **more: Any) -> Any:
        channels.close(platform, ALICE, channel)
        skew_ms = platform.skew_ms
        assert closed(platform, channel).state == "closed"
        platform.skew_ms = skew_ms
        return run(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", slow)
        with pytest.raises(ChannelClosedError):
            spend(platform, channel, 1, echo)
    assert (available(platform), platform.total_micro()) == (1_000_000, total)
    with pytest.raises(NotFoundError):
        result.read(platform, ALICE, f"{channel}.1")


def test_channel_pays_nothing_that_outlasts_it(platform: Cloud, channel: str, echo: str, runs: list[str]) -> None:
    done = paid(platform, channel, 1, echo)
    platform.skew_ms += signing.HOUR_S * 1_000 - 10_000
    refused(platform, runs, ChannelExpiredError, lambda: spend(platform, channel, 2, echo))
    assert spend(platform, channel, 1, echo) == done
    platform.skew_ms += 60_000
    refused(platform, runs, ChannelExpiredError, lambda: spend(platform, channel, 2, echo))
    assert spend(platform, channel, 1, echo) == done, "after the expiry of channel and ticket"


# Accounts and agents that are stopped.


@pytest.mark.parametrize(("action", "error"), [(Action.FREEZE, AccountFrozenError), (Action.PAUSE, FundingPausedError)])
def test_stopped_payers_tickets_pay_nothing_new(
    platform: Cloud, channel: str, echo: str, runs: list[str], action: Action, error: type[QuittanceError]
) -> None:
    done = paid(platform, channel, 1, echo)
    stop(platform, action)
    refused(platform, runs, error, lambda: spend(platform, channel, 2, echo))
    assert spend(platform, channel, 1, echo) == done


def test_unfit_agents_and_budgets_are_refused(platform: Cloud, channel: str, echo: str, runs: list[str]) -> None:
    refused(platform, runs, NotFoundError, lambda: spend(platform, channel, 1, "agt_unknown"))
    refused(platform, runs, BudgetTooLowError, lambda: spend(platform, channel, 1, echo, budget="0.009"))
    done = paid(platform, channel, 1, echo)
    agents.retire(platform, OWNER, echo)
    platform.registry._cache.clear()
    refused(platform, runs, AgentNotReadyError, lambda: spend(platform, channel, 2, echo))
    assert spend(platform, channel, 1, echo) == done


# Ids, results.


def test_plain_task_cannot_have_a_tickets_id(platform: Cloud, channel: str, echo: str, runs: list[str]) -> None:
    task = signing.task(channel, 1, echo)
    refused(platform, runs, InvalidRequestError, lambda: execute.execute(platform, "alice", task), "task_id")
    refused(platform, runs, InvalidRequestError, lambda: execute.submit(platform, "alice", task), "task_id")
    near = signing.task(channel, 1, echo).model_copy(update={"task_id": f"{channel}.01"})
    assert isinstance(execute.execute(platform, "alice", near), TaskResult), "no number is written so"


def test_result_is_for_payer_and_owner(platform: Cloud, channel: str, echo: str) -> None:
    done = paid(platform, channel, 1, echo)
    task_id = f"{channel}.1"
    assert result.read(platform, ALICE, task_id) == done
    owners = result.read(platform, OWNER, task_id, user="alice")
    assert isinstance(owners, TaskResult)
    assert (owners.output, owners.receipt) == (None, done.receipt)
    for caller, user in ((Caller("mallory"), None), (Caller("mallory"), "alice"), (OWNER, None), (OWNER, "bob")):
        with pytest.raises(NotFoundError):
            result.read(platform, caller, task_id, user=user)
    for missing in (2, 6):
        with pytest.raises(NotFoundError):
            result.read(platform, ALICE, f"{channel}.{missing}")


def test_numbers_that_are_no_task_have_no_result(platform: Cloud, channel: str, echo: str) -> None:
    paid(platform, channel, 1, echo, budget="0.1")
    channels.close(platform, ALICE, channel)
    closed(platform, channel)
    for n in (2, 3):
        with pytest.raises(NotFoundError):
            result.read(platform, ALICE, f"{channel}.{n}")
        with pytest.raises(NotFoundError):
            result.prove(platform, ALICE, f"{channel}.{n}")


# Slots.


def limited(platform: Cloud, *, take_slots: bool) -> None:
    """The only slot of the account is taken."""
    settings = platform.settings.model_copy(update={"account_concurrency": 1, "tickets_take_slots": take_slots})
    platform.settings = settings
    now_ms = platform.now_ms()
    platform.slots.take("alice", "another", of=1, now_ms=now_ms, lease_ms=now_ms + 60_000)


def test_tickets_take_slots_only_if_the_operator_wants(
    platform: Cloud, channel: str, echo: str, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "settings", platform.settings)
    limited(platform, take_slots=False)
    done = paid(platform, channel, 1, echo)
    limited(platform, take_slots=True)
    refused(platform, runs, TooManyRunningError, lambda: spend(platform, channel, 2, echo))
    with monkeypatch.context() as patch:
        patch.setattr(platform.slots, "take", lambda *_, **__: pytest.fail("a replay needs no slot"))
        assert spend(platform, channel, 1, echo) == done


# Overlapping attempts.


def test_overlapping_attempts_contest_the_channel(
    platform: Cloud, channel: str, echo: str, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ran and one is paid; later tickets of the channel are held before they run."""
    run = launch.run
    nested: list[TaskResult] = []

    def twice(*args: Any, **more: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "run", run)
            nested.append(paid(platform, channel, 1, echo))
        return run(*args, **more)

    total = platform.total_micro()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", twice)
        assert spend(platform, channel, 1, echo) == nested[0]
    assert len(runs) == 2
    assert platform.channels.get(channel).contested
    funded: list[str] = []
    fund = platform.ledger.fund

    def noted(escrow: Any, *rest: Any, **more: Any) -> Any:
        funded.append(escrow.task_id)
        return fund(escrow, *rest, **more)

    monkeypatch.setattr(platform.ledger, "fund", noted)
    done = paid(platform, channel, 2, echo)
    assert funded == [f"{channel}.2"]
    assert spend(platform, channel, 2, echo) == done
    assert sweep.sweep(platform).failed == 0
    assert platform.total_micro() == total
    channels.close(platform, ALICE, channel)
    assert closed(platform, channel).returned_micro == 250_000 - 20_000


def test_rival_request_for_a_running_number_is_not_paid(platform: Cloud, channel: str, echo: str) -> None:
    run = launch.run

    def rival(*args: Any, **more: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "run", run)
            paid(platform, channel, 1, echo, input="rival")
        return run(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", rival)
        with pytest.raises(TicketUsedError):
            spend(platform, channel, 1, echo)
    assert platform.channels.get(channel).contested
    assert paid(platform, channel, 1, echo, input="rival").output == "rival"


# The queue and direct invocations.


def test_queued_ticket_is_held_then_paid(platform: Cloud, channel: str, echo: str, runs: list[str]) -> None:
    task = signing.task(channel, 2, echo, budget="0.1")
    token, total = signing.ticket(platform, task), platform.total_micro()
    pending = execute.redeem(platform, channel, task, token, ["respond-async"])
    assert isinstance(pending, TaskPending)
    assert runs == []
    line = channels.used_tickets(platform, ALICE, channel).tickets[0]
    assert (line.number, line.tickets, line.escrow_status, line.cost_micro) == (2, 2, State.FUNDED, None)
    refused(platform, runs, TicketUsedError, lambda: spend(platform, channel, 3, echo))
    (delivery,) = Bench(platform, platform.queue).receive()
    sent = json.loads(delivery.body)
    assert (sent["ticket"], sent.get("user_id")) == (token, None)
    work(platform, delivery)
    assert runs == [task.task_id]
    done = result.read(platform, ALICE, task.task_id)
    assert isinstance(done, TaskResult)
    assert execute.redeem(platform, channel, task, token) == done
    work(platform, delivery)
    assert runs == [task.task_id], "a repeated delivery runs nothing"
    assert sweep.sweep(platform).failed == 0
    assert platform.total_micro() == total
    assert "ticket" not in platform.items(f"ESC#{ticket_escrow_id(channel, 2)}")[0], "the receipt has it"
    assert receipt.verify(done.receipt, platform.keys.jwks())["ticket"]["signed"] == token


def test_queued_ticket_runs_after_its_channel_began_to_close(platform: Cloud, channel: str, echo: str) -> None:
    task = signing.task(channel, 1, echo)
    execute.redeem(platform, channel, task, signing.ticket(platform, task), ["respond-async"])
    channels.close(platform, ALICE, channel)
    assert closed(platform, channel).state == "closing", "a held task keeps it"
    (delivery,) = Bench(platform, platform.queue).receive()
    work(platform, delivery)
    sweep.sweep(platform)
    assert closed(platform, channel).returned_micro == 240_000
    assert available(platform) == 990_000


def test_held_ticket_that_expires_costs_nothing(platform: Cloud, channel: str, echo: str) -> None:
    task = signing.task(channel, 1, echo)
    execute.redeem(platform, channel, task, signing.ticket(platform, task), ["respond-async"])
    (item,) = platform.items("ESC#")
    platform.skew_ms = int(item["expires_ms"]["N"]) - platform.now_ms() + 1
    assert sweep.sweep(platform).expired == 1
    sweep.sweep(platform)
    found = channels.read(platform, ALICE, channel)
    assert (found.spent_micro, found.used, found.numbers) == (0, 1, 6)
    assert available(platform) == 750_000


def test_message_with_a_ticket_alone_is_run(platform: Cloud, channel: str, echo: str, runs: list[str]) -> None:
    """A program sends it to the queue: nothing was held before."""
    task = signing.task(channel, 1, echo)
    body = messages.write(None, task, ticket=signing.ticket(platform, task), input_base64="eA==")
    work(platform, Delivery("m", body, "r", 1))
    assert runs == [task.task_id]
    assert isinstance(result.read(platform, ALICE, task.task_id), TaskResult)


def test_dead_letter_gives_a_held_tickets_money_back(platform: Cloud, channel: str, echo: str) -> None:
    task = signing.task(channel, 1, echo)
    execute.redeem(platform, channel, task, signing.ticket(platform, task), ["respond-async"])
    (delivery,) = Bench(platform, platform.queue).receive()
    deadletter.handle(platform, delivery)
    done = result.read(platform, ALICE, task.task_id)
    assert isinstance(done, TaskResult)
    assert (done.escrow_status, done.amount_refunded_micro, done.error and done.error.code) == (
        "refunded", 50_000, "undelivered",
    )  # fmt: skip
    deadletter.handle(platform, delivery)
    sweep.sweep(platform)
    assert channels.read(platform, ALICE, channel).spent_micro == 0
    assert available(platform) == 750_000


@pytest.mark.parametrize("change", [{}, {"exp": 1}, {"budget": "0.06"}])
def test_dead_letter_with_an_unused_ticket_is_refused(
    platform: Cloud, channel: str, echo: str, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    emitted: list[dict[str, Any]] = []
    monkeypatch.setattr(platform.bus, "put", lambda **entry: emitted.append(json.loads(entry["detail"])))
    task = signing.task(channel, 1, echo)
    body = messages.write(None, task, ticket=signing.ticket(platform, task, **change), input_base64="eA==")
    before = platform.items()
    deadletter.handle(platform, Delivery("m", body, "r", 5))
    assert platform.items() == before
    assert [(event["event"], event["task_id"], event["user"]) for event in emitted] == [
        ("TaskRefused", task.task_id, None)
    ]


def test_forged_ticket_in_the_queue_never_runs(platform: Cloud, channel: str, echo: str, runs: list[str]) -> None:
    task = signing.task(channel, 1, echo)
    forged = signing.ticket(platform, task, signing.OTHER_KEY)
    body = messages.write(None, task, ticket=forged, input_base64="eA==")
    with pytest.raises(NotDoneError):
        work(platform, Delivery("m", body, "r", 1))
    assert runs == []


def test_direct_payload_has_a_user_or_a_ticket(cloud: Cloud) -> None:
    task = {"task_id": "t", "agent_id": "agt_a", "input": "x", "budget": "1"}
    assert validated(DirectTaskRequest, task | {"ticket": "x" * TICKET_CHARS_MAX}).user_id is None
    for wrong in ({}, {"user_id": "alice", "ticket": "x"}):
        with pytest.raises(InvalidRequestError, match="exactly one of user_id"):
            validated(DirectTaskRequest, task | wrong)
    with pytest.raises(InvalidRequestError, match="ticket"):
        validated(DirectTaskRequest, task | {"ticket": "x" * (TICKET_CHARS_MAX + 1)})


# A crash.


def test_lost_answer_of_the_write_is_the_same_answer_again(
    platform: Cloud, channel: str, echo: str, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    redeem = platform.ledger.redeem

    def lost(escrow: Any) -> Any:
        redeem(escrow)
        raise PlatformUnavailableError

    with monkeypatch.context() as patch:
        patch.setattr(platform.ledger, "redeem", lost)
        with pytest.raises(PlatformUnavailableError):
            spend(platform, channel, 1, echo)
    assert paid(platform, channel, 1, echo)
    assert runs == [f"{channel}.1"]
