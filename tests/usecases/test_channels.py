"""Channels: opening, topping up, listing numbers and closing, on real stores; each refusal changes nothing."""

from typing import Any

import pytest

from quittance.api.identity import Caller
from quittance.api.models import ChannelAnswer, ChannelRequest, SignedClose, TicketPage, TopUpRequest
from quittance.api.requests import validated
from quittance.errors import (
    AccountFrozenError,
    ChannelClosedError,
    ChannelConflictError,
    FundingPausedError,
    InsufficientFundsError,
    InvalidRequestError,
    MovementConflictError,
    NotFoundError,
    QuittanceError,
    TicketInvalidError,
)
from quittance.ledger.credits import format_credits, parse_credits
from quittance.limits import (
    AMOUNT_MICRO_MAX,
    BUDGET_MICRO_MAX,
    CHANNEL_AGENTS_MAX,
    CHANNEL_CLOSE_MS,
    CHANNEL_DAYS_MAX,
    CHANNEL_SALT_CHARS_MAX,
    CHANNEL_TICKETS_MAX,
    TICKET_AHEAD_S_MAX,
    TICKET_CHARS_MAX,
    TICKET_NUMBER_MAX,
)
from quittance.operation import Action, Operation
from quittance.usecases import accounts, channels, execute, operations, sweep, tickets
from tests import tickets as signing
from tests.support import Cloud, wasm

ALICE, BOB = Caller("alice"), Caller("bob")
DAY_MS = 24 * 60 * 60 * 1_000
DEPOSIT = 250_000


def available(platform: Cloud, account: str = "alice") -> int:
    return platform.ledger.available_micro(account)


def topped_up(platform: Cloud, channel_id: str, topup_id: str, tickets: int = 1, caller: Caller = ALICE) -> Any:
    request = TopUpRequest.model_validate({"topup_id": topup_id, "tickets": tickets})
    return channels.top_up(platform, caller, channel_id, request)


def used(platform: Cloud, channel_id: str, n: int, agent_id: str, **more: Any) -> Any:
    """Runs a task that the channel pays."""
    task = signing.task(channel_id, n, agent_id, **more)
    return execute.redeem(platform, channel_id, task, signing.ticket(platform, task))


def pages(platform: Cloud, channel_id: str, limit: int) -> list[TicketPage]:
    found: list[TicketPage] = []
    after: int | None = 0
    while after is not None:
        found.append(channels.used_tickets(platform, ALICE, channel_id, limit, after))
        after = found[-1].next
    return found


def closed(platform: Cloud, channel_id: str) -> ChannelAnswer:
    """The channel after the time to close it, and a sweep."""
    platform.skew_ms += CHANNEL_CLOSE_MS + 1
    assert sweep.sweep(platform).failed == 0
    return channels.read(platform, ALICE, channel_id)


def refused(platform: Cloud, error: type[QuittanceError], call: Any, match: str | None = None) -> None:
    """Asserts that a call is refused and changes nothing in the ledger."""
    before = platform.items()
    with pytest.raises(error, match=match):
        call()
    assert platform.items() == before


# Opening.


def test_opening_takes_the_deposit_once(platform: Cloud) -> None:
    total = platform.total_micro()
    first = signing.opened(platform, expires_at=(at := signing.timestamp(platform.now_ms() + 60_000)))
    assert (first.payer, first.state, first.issuer) == ("alice", "open", signing.ISSUER)
    assert (first.deposit_micro, first.held_micro, first.spent_micro, first.numbers) == (DEPOSIT, DEPOSIT, 0, 5)
    assert available(platform) == 1_000_000 - DEPOSIT
    platform.skew_ms += 1_000
    assert signing.opened(platform, expires_at=at) == first
    assert available(platform) == 1_000_000 - DEPOSIT
    assert platform.total_micro() == total
    assert channels.read(platform, ALICE, first.channel_id) == first


def test_channel_id_depends_on_payer_salt_key_and_value(platform: Cloud) -> None:
    platform.deposit("bob", 1_000_000)
    ids = {
        signing.opened(platform, tickets=1).channel_id,
        signing.opened(platform, tickets=1, payer="bob").channel_id,
        signing.opened(platform, tickets=1, salt="other").channel_id,
        signing.opened(platform, tickets=1, key=signing.jwk(signing.OTHER_KEY)).channel_id,
        signing.opened(platform, tickets=1, ticket_value="0.04").channel_id,
    }
    assert len(ids) == 5


@pytest.mark.parametrize(
    "changed", [{"tickets": 4}, {"agents": ["agt_a"]}, {"max_per_task": "0.01"}, {"expires_at": "2027-01-01T00:00:00Z"}]
)
def test_same_channel_with_other_terms_is_a_conflict(platform: Cloud, changed: dict[str, Any]) -> None:
    terms = {"expires_at": signing.timestamp(platform.now_ms() + 60_000)}
    signing.opened(platform, **terms)
    refused(platform, ChannelConflictError, lambda: signing.opened(platform, **(terms | changed)))


def test_opening_needs_the_whole_deposit(platform: Cloud) -> None:
    refused(platform, InsufficientFundsError, lambda: signing.opened(platform, tickets=21))
    assert signing.opened(platform, tickets=20).deposit_micro == 1_000_000
    assert available(platform) == 0


@pytest.mark.parametrize(("action", "error"), [(Action.FREEZE, AccountFrozenError), (Action.PAUSE, FundingPausedError)])
def test_stopped_accounts_open_and_top_up_nothing(platform: Cloud, action: Action, error: type[QuittanceError]) -> None:
    terms = {"expires_at": signing.timestamp(platform.now_ms() + 60_000)}
    before = signing.opened(platform, **terms)
    topped_up(platform, before.channel_id, "earlier")
    stop(platform, action)
    refused(platform, error, lambda: signing.opened(platform, salt="another", **terms))
    refused(platform, error, lambda: topped_up(platform, before.channel_id, "later"))
    assert signing.opened(platform, **terms).deposit_micro == DEPOSIT + 50_000, "a repeated request is answered"
    assert topped_up(platform, before.channel_id, "earlier").amount_micro == 50_000
    assert channels.close(platform, ALICE, before.channel_id).state == "closing"


def stop(platform: Cloud, action: Action) -> None:
    """An operator's stop, noticed at once."""
    target = "alice" if action is Action.FREEZE else operations.FUNDING
    platform.operations.perform(Operation(action, target, "operator", "a test", platform.now_ms()))
    platform.registry._owners.clear()
    platform.registry._funding.clear()


def test_expiry_must_be_within_its_bounds(platform: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ms = platform.now_ms() // 1_000 * 1_000
    monkeypatch.setattr(platform, "now_ms", lambda: now_ms)
    for wrong in (now_ms, now_ms - 1_000, now_ms + CHANNEL_DAYS_MAX * DAY_MS + 1_000):
        expires_at = signing.timestamp(wrong)
        refused(platform, InvalidRequestError, lambda at=expires_at: signing.opened(platform, expires_at=at), "expires")
    for number, right in enumerate((now_ms + 1_000, now_ms + CHANNEL_DAYS_MAX * DAY_MS)):
        opened = signing.opened(platform, salt=f"s{number}", expires_at=signing.timestamp(right))
        assert opened.expires_at == right


def test_repeated_opening_is_answered_after_expiry_and_closing(platform: Cloud) -> None:
    terms = {"expires_at": signing.timestamp(platform.now_ms() + 60_000)}
    first = signing.opened(platform, **terms)
    platform.skew_ms = 120_000
    assert signing.opened(platform, **terms) == first
    sweep.sweep(platform)
    assert signing.opened(platform, **terms).state == "closing"
    assert closed(platform, first.channel_id).state == "closed"
    again = signing.opened(platform, **terms)
    assert (again.state, again.returned_micro, available(platform)) == ("closed", DEPOSIT, 1_000_000)


# Request bodies at their limits.

WHOLE = format_credits(BUDGET_MICRO_MAX)
AGENTS = [f"agt_{number}" for number in range(CHANNEL_AGENTS_MAX + 1)]
RIGHT: list[dict[str, Any]] = [
    {"salt": "s" * CHANNEL_SALT_CHARS_MAX},
    {"tickets": CHANNEL_TICKETS_MAX, "ticket_value": "0.000001"},
    {"tickets": 1, "ticket_value": WHOLE},
    {"agents": AGENTS[:-1]},
    {"max_per_task": "0.000001"},
    {"max_per_task": WHOLE},
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"salt": "s" * (CHANNEL_SALT_CHARS_MAX + 1)}, "salt"),
    ({"salt": ""}, "salt"),
    ({"salt": "a b"}, "salt"),
    ({"tickets": 0}, "tickets"),
    ({"tickets": -1}, "tickets"),
    ({"tickets": CHANNEL_TICKETS_MAX + 1}, "tickets"),
    ({"tickets": "5"}, "tickets"),
    ({"ticket_value": "0"}, "ticket_value"),
    ({"ticket_value": "0.0000001"}, "ticket_value"),
    ({"tickets": 1, "ticket_value": format_credits(BUDGET_MICRO_MAX + 1)}, "ticket_value"),
    ({"agents": AGENTS}, "agents"),
    ({"agents": []}, "agents"),
    ({"agents": ["agt_a", "agt_a"]}, "agents"),
    ({"agents": "agt_a"}, "agents"),
    ({"max_per_task": "0"}, "max_per_task"),
    ({"max_per_task": format_credits(BUDGET_MICRO_MAX + 1)}, "max_per_task"),
    ({"expires_at": "tomorrow"}, "expires_at"),
    ({"expires_at": 1_900_000_000}, "expires_at"),
    ({"key": "x"}, "key"),
    ({"key": {}}, "key"),
    ({"key": {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}}, "key"),
    ({"key": signing.jwk() | {"crv": "X25519"}}, "key"),
    ({"key": signing.jwk() | {"d": "secret"}}, "key"),
    ({"key": signing.jwk() | {"x": "A" * 43}}, "key"),
    ({"key": signing.jwk() | {"x": signing.jwk()["x"][:-1]}}, "key"),
    ({"key": signing.jwk() | {"x": signing.jwk()["x"] + "="}}, "key"),
    ({"key": signing.jwk() | {"x": 7}}, "key"),
    ({"key": {"kty": "OKP", "crv": "Ed25519"}}, "key"),
    ({"more": 1}, "more"),
]  # fmt: skip


@pytest.mark.parametrize("changed", RIGHT, ids=str)
def test_request_at_its_limits_is_read(cloud: Cloud, changed: dict[str, Any]) -> None:
    assert validated(ChannelRequest, signing.asked(cloud, **changed)).deposit_micro <= AMOUNT_MICRO_MAX


@pytest.mark.parametrize(("changed", "field"), WRONG, ids=str)
def test_wrong_field_of_a_request_is_named(cloud: Cloud, changed: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        validated(ChannelRequest, signing.asked(cloud, **changed))
    errors: Any = refusal.value.members["errors"]
    assert {error["field"].partition(".")[0] for error in errors} == {field}
    assert "secret" not in str(refusal.value)


def test_deposit_is_at_most_the_largest_amount(cloud: Cloud) -> None:
    value = format_credits(AMOUNT_MICRO_MAX // 1_000) if AMOUNT_MICRO_MAX // 1_000 <= BUDGET_MICRO_MAX else WHOLE
    most = AMOUNT_MICRO_MAX // parse_credits(value)
    if most > CHANNEL_TICKETS_MAX:
        pytest.skip("no request can exceed it")
    assert validated(ChannelRequest, signing.asked(cloud, ticket_value=value, tickets=most))
    with pytest.raises(InvalidRequestError, match="times ticket_value"):
        validated(ChannelRequest, signing.asked(cloud, ticket_value=value, tickets=most + 1))


# Reading.


def test_only_the_payer_sees_and_uses_a_channel(platform: Cloud) -> None:
    channel_id = signing.opened(platform).channel_id
    platform.deposit("bob", 1_000_000)
    for call in (
        lambda: channels.read(platform, BOB, channel_id),
        lambda: channels.close(platform, BOB, channel_id),
        lambda: topped_up(platform, channel_id, "u", caller=BOB),
        lambda: channels.used_tickets(platform, BOB, channel_id),
        lambda: channels.read(platform, ALICE, "chn_" + "a" * 26),
    ):
        refused(platform, NotFoundError, call)


# Topping up.


def test_top_up_adds_numbers_once_per_id(platform: Cloud) -> None:
    channel_id = signing.opened(platform).channel_id
    first = topped_up(platform, channel_id, "u", 3)
    platform.skew_ms += 1_000
    assert topped_up(platform, channel_id, "u", 3) == first
    found = channels.read(platform, ALICE, channel_id)
    assert (found.deposit_micro, found.numbers, available(platform)) == (DEPOSIT + 150_000, 8, 1_000_000 - 400_000)
    refused(platform, MovementConflictError, lambda: topped_up(platform, channel_id, "u", 4))
    refused(platform, InsufficientFundsError, lambda: topped_up(platform, channel_id, "v", 100))
    other = signing.opened(platform, salt="other", tickets=1).channel_id
    assert topped_up(platform, other, "u", 2).amount_micro == 100_000, "another channel's ids are its own"


def test_closing_channel_is_not_topped_up_but_answers_again(platform: Cloud) -> None:
    channel_id = signing.opened(platform).channel_id
    first = topped_up(platform, channel_id, "u")
    channels.close(platform, ALICE, channel_id)
    refused(platform, ChannelClosedError, lambda: topped_up(platform, channel_id, "v"), "closing")
    assert topped_up(platform, channel_id, "u") == first
    assert closed(platform, channel_id).state == "closed"
    refused(platform, ChannelClosedError, lambda: topped_up(platform, channel_id, "v"), "closed")
    assert topped_up(platform, channel_id, "u") == first


def test_numbers_of_a_channel_are_limited(platform: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit, one beyond, and again the request that reached it."""
    monkeypatch.setattr(channels, "TICKET_NUMBER_MAX", 7)
    channel_id = signing.opened(platform).channel_id
    refused(platform, InvalidRequestError, lambda: topped_up(platform, channel_id, "v", 3), "tickets")
    first = topped_up(platform, channel_id, "u", 2)
    refused(platform, InvalidRequestError, lambda: topped_up(platform, channel_id, "w", 1), "tickets")
    assert topped_up(platform, channel_id, "u", 2) == first


@pytest.mark.parametrize("tickets", [0, -1, CHANNEL_TICKETS_MAX + 1, "1"])
def test_top_up_of_wrong_size_is_refused(tickets: object) -> None:
    with pytest.raises(InvalidRequestError, match="tickets"):
        validated(TopUpRequest, {"topup_id": "u", "tickets": tickets})
    assert validated(TopUpRequest, {"topup_id": "u", "tickets": CHANNEL_TICKETS_MAX}).tickets == CHANNEL_TICKETS_MAX


# Closing.


def test_closing_returns_what_tickets_did_not_spend(platform: Cloud) -> None:
    channel_id, agent_id = signing.opened(platform).channel_id, platform.publish(wasm("echo"))
    total = platform.total_micro()
    used(platform, channel_id, 1, agent_id)
    asked = channels.close(platform, ALICE, channel_id)
    assert asked.state == "closing"
    assert asked.closes_at is not None
    assert asked.closes_at - platform.now_ms() <= CHANNEL_CLOSE_MS
    assert channels.close(platform, ALICE, channel_id).closes_at == asked.closes_at, "asking again changes nothing"
    sweep.sweep(platform)
    assert channels.read(platform, ALICE, channel_id).state == "closing", "it is not time yet"
    done = closed(platform, channel_id)
    assert (done.state, done.spent_micro, done.returned_micro, done.held_micro) == ("closed", 10_000, 240_000, 0)
    assert (available(platform), platform.total_micro()) == (990_000, total)
    assert channels.close(platform, ALICE, channel_id) == done
    assert closed(platform, channel_id) == done
    lines = accounts.statement(platform, ALICE).lines
    assert [(line.kind, line.id, line.amount_micro) for line in lines if line.kind == "channel"] == [
        ("channel", channel_id, -10_000)
    ]


def test_channel_of_one_payer_closes_before_any_use(platform: Cloud) -> None:
    channel_id = signing.opened(platform).channel_id
    channels.close(platform, ALICE, channel_id)
    done = closed(platform, channel_id)
    assert (done.state, done.returned_micro, available(platform)) == ("closed", DEPOSIT, 1_000_000)


def test_expired_channel_closes_by_itself(platform: Cloud) -> None:
    channel_id, agent_id = signing.opened(platform).channel_id, platform.publish(wasm("echo"))
    used(platform, channel_id, 1, agent_id)
    platform.skew_ms += signing.HOUR_S * 1_000 + 1_000
    sweep.sweep(platform)
    assert channels.read(platform, ALICE, channel_id).state == "closing"
    assert (closed(platform, channel_id).returned_micro, available(platform)) == (240_000, 990_000)


def order(platform: Cloud, channel_id: str, key: Any = signing.KEY, **changed: Any) -> SignedClose:
    return SignedClose(order=signing.order(platform, channel_id, key, **changed))


def test_the_key_closes_without_a_token_and_may_repeat_it(platform: Cloud) -> None:
    channel_id = signing.opened(platform).channel_id
    signed = order(platform, channel_id)
    asked = channels.close_by_key(platform, channel_id, signed)
    assert asked.state == "closing"
    platform.skew_ms += 1_000
    assert channels.close_by_key(platform, channel_id, signed) == asked
    done = closed(platform, channel_id)
    assert (done.returned_micro, available(platform)) == (DEPOSIT, 1_000_000), "to the payer"
    assert channels.close_by_key(platform, channel_id, signed) == done


def test_wrong_orders_close_nothing(platform: Cloud) -> None:
    platform.deposit("alice", 1_000_000_000)
    channel_id = signing.opened(platform).channel_id
    other, unknown = signing.opened(platform, salt="other").channel_id, "chn_" + "a" * 26
    now_s = platform.now_ms() // 1_000
    task = signing.task(channel_id, 1, "agt_a")
    wrong = [
        order(platform, channel_id, signing.OTHER_KEY),
        order(platform, other),
        order(platform, channel_id, iss="urn:quittance:other"),
        order(platform, channel_id, exp=now_s - 30),
        order(platform, channel_id, exp=now_s + TICKET_AHEAD_S_MAX + 60),
        order(platform, channel_id, exp="soon"),
        order(platform, channel_id, more=1),
        SignedClose(order=signing.ticket(platform, task)),
        SignedClose(order=signing.order(platform, channel_id)[:-4] + "AAAA"),
        SignedClose(order=signing.signed(signing.claims_of(platform, task))),
        *(SignedClose(order=text) for text in ("", "a.b.c", "...", "\x00", "é", "x" * TICKET_CHARS_MAX)),
    ]
    for number, signed in enumerate(wrong):
        with pytest.raises(TicketInvalidError):
            pytest.fail(f"{number}: {channels.close_by_key(platform, channel_id, signed)}")
    assert channels.read(platform, ALICE, channel_id).state == "open"
    with pytest.raises(NotFoundError):
        channels.close_by_key(platform, unknown, order(platform, unknown))
    with pytest.raises(InvalidRequestError):
        validated(SignedClose, {"order": "x" * (TICKET_CHARS_MAX + 1)})
    assert channels.close_by_key(platform, channel_id, order(platform, channel_id)).state == "closing"


def test_an_order_expires_after_some_leeway(platform: Cloud) -> None:
    channel_id = signing.opened(platform).channel_id
    now_s = platform.now_ms() // 1_000
    assert channels.close_by_key(platform, channel_id, order(platform, channel_id, exp=now_s - tickets.LEEWAY_S + 5))
    far = order(platform, channel_id, exp=now_s + TICKET_AHEAD_S_MAX - 5)
    assert channels.close_by_key(platform, channel_id, far).state == "closing"


# The list of tickets.


def test_tickets_are_listed_with_parts_and_free_numbers(platform: Cloud) -> None:
    channel_id, agent_id = signing.opened(platform, tickets=8).channel_id, platform.publish(wasm("echo"))
    used(platform, channel_id, 2, agent_id)
    used(platform, channel_id, 5, agent_id, budget="0.15")
    (page,) = pages(platform, channel_id, 100)
    assert [(line.number, line.tickets, line.task_id, line.cost_micro) for line in page.tickets] == [
        (2, 1, f"{channel_id}.2", 10_000), (5, 3, f"{channel_id}.5", 10_000), (6, 1, None, None), (7, 1, None, None),
    ]  # fmt: skip
    assert page.tickets[1].escrow_status == "released"
    assert page.free == [(1, 1), (3, 4), (8, 8)]
    assert page.next is None


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_of_tickets_have_every_number_once(platform: Cloud, limit: int) -> None:
    channel_id, agent_id = signing.opened(platform, tickets=8).channel_id, platform.publish(wasm("echo"))
    used(platform, channel_id, 2, agent_id)
    used(platform, channel_id, 4, agent_id, budget="0.15")
    found = pages(platform, channel_id, limit)
    assert [line.number for page in found for line in page.tickets] == [2, 4, 5, 6]
    free = [number for page in found for first, last in page.free for number in range(first, last + 1)]
    assert free == [1, 3, 7, 8]
    assert channels.used_tickets(platform, ALICE, channel_id, 100, 8).free == []
    beyond = channels.used_tickets(platform, ALICE, channel_id, 100, TICKET_NUMBER_MAX)
    assert (beyond.tickets, beyond.free, beyond.next) == ([], [], None)


def test_closed_channel_lists_what_was_used_and_taken_out(platform: Cloud) -> None:
    channel_id, agent_id = signing.opened(platform).channel_id, platform.publish(wasm("echo"))
    used(platform, channel_id, 2, agent_id)
    channels.close(platform, ALICE, channel_id)
    assert closed(platform, channel_id).state == "closed"
    lines = [line for page in pages(platform, channel_id, 2) for line in page.tickets]
    assert [(line.number, line.tickets) for line in lines][:3] == [(1, 0), (2, 1), (3, 0)]
    assert all(page.free == [] for page in pages(platform, channel_id, 2))


def test_swept_tasks_raise_the_highest_number(platform: Cloud) -> None:
    """What a cheap task did not cost pays later tickets: the numbers never fall."""
    channel_id, agent_id = signing.opened(platform).channel_id, platform.publish(wasm("echo"))
    for n in range(1, 6):
        used(platform, channel_id, n, agent_id)
    assert channels.read(platform, ALICE, channel_id).numbers == 5
    sweep.sweep(platform)
    found = channels.read(platform, ALICE, channel_id)
    assert (found.used, found.spent_micro, found.numbers, found.held_micro) == (5, 50_000, 9, 200_000)
