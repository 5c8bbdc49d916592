"""What the use cases of channels decide before money moves, at each limit and one beyond.

The ledger's conditions decide who gets a number. These checks keep numbers that nobody granted, and runs that nobody
would pay, from happening at all.
"""

from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quittance.api.identity import Caller
from quittance.api.models import TaskRequest, TaskResult, TopUpRequest
from quittance.errors import QuittanceError
from quittance.ledger import channels as channel_rules
from quittance.ledger.channels import Channel, ticket_escrow_id
from quittance.limits import CHANNEL_CLOSE_MS, CHANNEL_GRANT_FIRST, CHANNEL_GRANT_MAX
from quittance.run import Job, Run
from quittance.usecases import channels, execute, launch
from quittance.usecases.sweep import sweep
from tests.proofs import test_channel_interleavings
from tests.proofs.memory import Memory
from tests.proofs.test_channel_interleavings import (
    BUDGET,
    CHANNEL_EXPIRY,
    LEASE,
    PAYER,
    Shop,
    closing,
    unclosed,
    wrong_tables,
)
from tests.proofs.world import (
    FLAT,
    FLAT_MICRO,
    HOT,
    JUDGE,
    JUDGE_MICRO,
    JUDGED,
    START_MS,
    TIMEOUT_S,
    World,
    instant_run,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SPAN_MS = TIMEOUT_S * 1_000 + launch.RUN_RESERVE_MS


class Desk:
    """A world on a channel, whose runs are counted, and may be preceded by what another actor does meanwhile."""

    def __init__(self, shop: Shop) -> None:
        self.shop, self.memory = shop, Memory(shop.start())
        self.now, self.runs = START_MS, 0
        self.meanwhile: Callable[[], Any] = lambda: None
        self.world = self.other()

    def other(self) -> World:
        """Another environment: its cache of channels is empty."""
        return World(self.memory, now_ms=lambda: self.now, run=self.run, left_ms=lambda: 5_000)

    def run(self, job: Job) -> Run:
        self.runs += 1
        self.meanwhile()
        return instant_run(job)

    def send(self, number: int = 1, *, world: World | None = None, **asked: Any) -> Any:
        """The result of a ticket, or the name of its refusal."""
        try:
            return self.shop.client("client", number, **asked).story(world or self.world)
        except QuittanceError as exc:
            return type(exc).__name__

    @property
    def channel(self) -> Channel:
        return self.other().channels.get(self.shop.channel_id)

    def item(self, number: int = 1) -> Any:
        return self.memory.items.get(f"ESC#{ticket_escrow_id(self.shop.channel_id, number)}")


@pytest.mark.parametrize("tickets", [3, CHANNEL_GRANT_FIRST, CHANNEL_GRANT_MAX, 20, 300])
def test_only_granted_numbers_are_used_and_grants_double(tickets: int) -> None:
    granted = min(CHANNEL_GRANT_FIRST, tickets)
    doubled, ahead = min(2 * granted, tickets), min(granted + CHANNEL_GRANT_MAX, tickets)
    for number in (1, granted, granted + 1, doubled, doubled + 1, ahead, ahead + 1, tickets + 1, 10**6):
        desk = Desk(Shop(tickets=tickets))
        before = dict(desk.memory.items)
        answer = desk.send(number)
        if number <= ahead:
            assert isinstance(answer, TaskResult)
            assert desk.channel.granted == (granted if number <= granted else max(doubled, number))
        else:
            assert answer == "TicketInvalidError"
            assert desk.runs == 0
            assert desk.memory.items == before
        assert wrong_tables(desk.memory.items) == []


@pytest.mark.parametrize("stale", [False, True], ids=["read now", "read before"])
@pytest.mark.parametrize("number", [1, CHANNEL_GRANT_FIRST, CHANNEL_GRANT_FIRST + 1])
def test_a_closing_channel_takes_no_ticket(number: int, stale: bool) -> None:
    """A stale reading may still allow a granted number until the count, but never grants another one."""
    desk = Desk(Shop(tickets=20))
    if stale:
        desk.world.channels.get_cached(desk.shop.channel_id)
    channels.close(desk.other(), Caller(PAYER), desk.shop.channel_id)
    allowed = stale and number <= CHANNEL_GRANT_FIRST
    answer = desk.send(number)
    assert isinstance(answer, TaskResult) if allowed else answer == "ChannelClosedError"
    assert desk.runs == allowed
    desk.now += CHANNEL_CLOSE_MS
    sweep(desk.other())
    assert unclosed(desk.memory.items) == []
    assert desk.send(2) == "ChannelClosedError"


def test_a_ticket_needs_time_until_its_channel_expires() -> None:
    for early_ms, allowed in ((SPAN_MS, True), (SPAN_MS - 1, False), (0, False), (-1, False)):
        desk = Desk(Shop())
        desk.shop.expires_ms = CHANNEL_EXPIRY
        desk.now = CHANNEL_EXPIRY - early_ms
        answer = desk.send()
        assert isinstance(answer, TaskResult) if allowed else answer == "ChannelExpiredError"
        assert desk.runs == allowed


@pytest.mark.parametrize("numbers", [1, 2])
def test_a_used_ticket_never_runs_again(numbers: int) -> None:
    """Its answer is the stored one, in every state of the channel; what asks for something else is refused."""
    desk = Desk(Shop(numbers=numbers))
    first = desk.send()
    assert isinstance(first, TaskResult)
    for _ in range(3):
        before = dict(desk.memory.items)
        assert desk.send(world=desk.other()).receipt == first.receipt
        assert desk.send(text="other", world=desk.other()) == "TicketUsedError"
        if numbers > 1:
            assert desk.send(2, world=desk.other()) == "TicketUsedError"
        assert desk.memory.items == before
        assert desk.runs == 1
        channels.close(desk.other(), Caller(PAYER), desk.shop.channel_id)
        desk.now += CHANNEL_CLOSE_MS
        sweep(desk.other())
    assert desk.channel.state == "closed"


def test_overlapping_runs_of_one_ticket_happen_once() -> None:
    """The loser is answered, or refused, by what is stored; from then on each ticket is held before it runs."""
    for text in ("in", "other"):
        desk = Desk(Shop(tickets=8))

        def rival(desk: Desk = desk) -> None:
            desk.meanwhile = lambda: None
            assert isinstance(desk.send(world=desk.other()), TaskResult)

        desk.meanwhile = rival
        answer = desk.send(text=text)
        assert answer == "TicketUsedError" if text == "other" else isinstance(answer, TaskResult)
        assert desk.runs == 2
        assert desk.channel.contested == (text == "other")  # equal runs at the same time have equal receipts here
        held: list[str] = []
        desk.meanwhile = lambda desk=desk, held=held: held.append(
            (desk.item(2) or {}).get("state", {}).get("S", "absent")
        )  # type: ignore[misc]
        assert isinstance(desk.send(2, world=desk.other()), TaskResult)
        assert held == ["funded" if text == "other" else "absent"]
        assert wrong_tables(desk.memory.items) == []


@pytest.mark.parametrize("both", [False, True])
def test_a_ticket_with_judges_is_held_before_it_runs(both: bool) -> None:
    """Otherwise a judge could run that no bond, or no ticket, pays."""
    desk = Desk(Shop(budget=FLAT_MICRO + 7_500 + JUDGE_MICRO * both))
    held: list[str] = []
    desk.meanwhile = lambda: held.append((desk.item() or {}).get("state", {}).get("S", "absent"))
    assert isinstance(desk.send(agent=JUDGED, judge=both), TaskResult)
    assert set(held) == {"funded"}
    assert wrong_tables(desk.memory.items) == []


def test_a_queued_ticket_is_held_and_expires_as_any_escrow(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(Shop())
    sent: list[Any] = []
    monkeypatch.setattr(execute.messages, "send", lambda *_, **named: sent.append(named["ticket"]))
    request = desk.shop.request()
    token = desk.shop.signed(request)
    execute.redeem(desk.world, desk.shop.channel_id, request, token, ["respond-async"])
    assert sent == [token]
    assert desk.item()["state"] == {"S": "funded"}
    channels.close(desk.world, Caller(PAYER), desk.shop.channel_id)
    desk.now = CHANNEL_EXPIRY
    closing(desk.world)
    assert desk.channel.state == "closing"  # its held ticket is not swept
    desk.now += CHANNEL_EXPIRY - START_MS
    sweep(desk.other())
    assert unclosed(desk.memory.items) == []
    assert desk.channel.spent_micro == 0


@pytest.mark.parametrize(("allowed", "refused"), [((FLAT,), HOT), ((JUDGED,), FLAT)])
def test_a_mandate_pays_only_its_agents(allowed: tuple[str, ...], refused: str) -> None:
    desk = Desk(Shop(agents=allowed))
    assert desk.send(agent=refused) == "AgentNotAllowedError"
    assert desk.runs == 0


@pytest.mark.parametrize("allowed", [(JUDGED,), (JUDGED, JUDGE)])
def test_a_mandate_pays_no_judge_that_it_does_not_name(allowed: tuple[str, ...]) -> None:
    """The task's own judge is an agent that the ticket pays: whoever has the key could pay any agent as its judge."""
    desk = Desk(Shop(agents=allowed, budget=FLAT_MICRO + 7_500 + JUDGE_MICRO))
    answer = desk.send(agent=JUDGED, judge=True)
    assert isinstance(answer, TaskResult) if JUDGE in allowed else answer == "AgentNotAllowedError"
    assert isinstance(desk.send(2, agent=JUDGED), TaskResult), "the agent's own judge is paid by its owner"


def test_no_task_costs_more_than_the_mandate_allows() -> None:
    for most, allowed in ((BUDGET, True), (BUDGET - 1, False)):
        desk = Desk(Shop(numbers=2, max_per_task=most))
        answer = desk.send()
        assert isinstance(answer, TaskResult) if allowed else answer == "TicketTooSmallError"
        assert desk.runs == allowed


@pytest.mark.parametrize("numbers", [90, 91, 101, 10_000])
def test_a_task_takes_at_most_ninety_numbers(numbers: int) -> None:
    """More do not fit one transaction, and nothing that grows with their number may be done for them."""
    desk = Desk(Shop(budget=225 * numbers, numbers=numbers, tickets=180, salt="s"))
    while desk.channel.granted < 90:
        desk.world.channels.grant(desk.channel, desk.channel.granted + 1)
    desk.world.channels.get_again(desk.shop.channel_id)
    before = dict(desk.memory.items)
    answer = desk.send()
    if numbers <= 90:
        assert isinstance(answer, TaskResult)
    else:
        assert answer == "TicketTooSmallError"
        assert (desk.memory.items, desk.runs) == (before, 0)


def test_a_repeated_top_up_is_answered_at_the_numbers_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel gets numbers up to the limit, and not beyond; a recorded top-up is not refused when it is repeated."""
    for module in (channels, channel_rules):
        monkeypatch.setattr(module, "TICKET_NUMBER_MAX", 6)

    def top_up(name: str, tickets: int) -> Any:
        request = TopUpRequest.model_validate({"topup_id": name, "tickets": tickets})
        try:
            return channels.top_up(desk.world, Caller(PAYER), desk.shop.channel_id, request).recorded_at
        except QuittanceError as exc:
            return type(exc).__name__

    desk = Desk(Shop(tickets=3))
    assert top_up("too-many", 4) == "InvalidRequestError"
    assert top_up("all", 3) == START_MS
    desk.now = LEASE
    assert top_up("all", 3) == START_MS
    assert top_up("all", 2) == "MovementConflictError"
    assert top_up("one-more", 1) == "InvalidRequestError"
    assert (desk.channel.numbers, desk.channel.deposit_micro) == (6, 6 * desk.shop.ticket_micro)


def test_a_repeated_top_up_of_a_frozen_account_is_answered() -> None:
    desk = Desk(Shop())
    request = TopUpRequest.model_validate({"topup_id": "more", "tickets": 1})
    first = channels.top_up(desk.world, Caller(PAYER), desk.shop.channel_id, request)
    desk.world.registry.is_frozen = lambda _: True  # type: ignore[method-assign]
    assert channels.top_up(desk.world, Caller(PAYER), desk.shop.channel_id, request) == first
    again = TopUpRequest.model_validate({"topup_id": "again", "tickets": 1})
    with pytest.raises(execute.AccountFrozenError):
        channels.top_up(desk.world, Caller(PAYER), desk.shop.channel_id, again)


@pytest.mark.parametrize("changed", ["agent", "text", "budget", "timeout", "judge", "share"])
def test_a_ticket_pays_only_the_request_that_was_signed(changed: str) -> None:
    desk = Desk(Shop(numbers=2))
    token = desk.shop.signed(desk.shop.request())
    sent = desk.shop.request().model_dump(mode="json", by_alias=True, exclude_unset=True)
    sent |= {
        "agent": {"agent_id": HOT},
        "text": {"input": "other"},
        "budget": {"budget": "0.01"},
        "timeout": {"timeout": 5},
        "judge": {"acceptance": {"judge": {"agent_id": JUDGE, "budget": "0.03", "threshold": "0.5"}}},
        "share": {"share": {"payer": True}},
    }[changed]
    before = dict(desk.memory.items)
    with pytest.raises(execute.RequestError) as refused:
        execute.redeem(desk.world, desk.shop.channel_id, TaskRequest.model_validate(sent), token)
    assert type(refused.value).__name__ == "TicketInvalidError"
    assert (desk.memory.items, desk.runs) == (before, 0)


def test_a_ticket_of_another_key_pays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(Shop())
    monkeypatch.setattr(test_channel_interleavings, "KEY", Ed25519PrivateKey.generate())
    assert desk.send() == "TicketInvalidError"
    assert desk.runs == 0


def test_an_account_pays_no_task_with_the_id_of_a_ticket() -> None:
    """Its escrow would take the number, and the channel could neither use nor count it."""
    desk = Desk(Shop())
    before = dict(desk.memory.items)
    with pytest.raises(execute.InvalidRequestError):
        execute.execute(desk.world, PAYER, desk.shop.request())
    assert (desk.memory.items, desk.runs) == (before, 0)
