"""Audit rules that the ledger of the other tests cannot violate."""

from collections.abc import Mapping
from typing import Any

import pytest

from quittance.ledger.channels import ticket_escrow_id
from quittance.limits import TICKET_NUMBER_MAX, UNCLOSED_MS_MAX
from quittance.proof.invariants import Audit, Books, Context, Numbers, Sums, check, check_numbers, is_between
from quittance.proof.seal import sealed

CHANNEL = "chn_" + "a" * 26
EXPIRES_MS = 1_000
CLOSE_MS = 500
TERMS = {
    "pk": f"CHAN#{CHANNEL}",
    "account": "alice",
    "at": 1,
    "salt": "s",
    "key": "k",
    "ticket_value": 10,
    "tickets": 20,
    "expires_ms": EXPIRES_MS,
}
OPEN = {
    "state": "open", "deposit": 220, "spent": 25, "swept": 4, "granted": 8, "work": "CHANNEL", "work_at": EXPIRES_MS
}  # fmt: skip
CLOSING = OPEN | {"state": "closing", "work_at": CLOSE_MS, "close_ms": CLOSE_MS, "counted": 8, "used": 4}
CLOSED = {name: value for name, value in CLOSING.items() if not name.startswith("work")} | {
    "state": "closed", "returned": 195, "closed_ms": 600
}  # fmt: skip
SUMS = Numbers(spent_micro=25, swept=4, used=5, void=0, swept_ms=400, topped_micro=20)
COUNTED = Numbers(spent_micro=25, swept=4, used=4, void=4, swept_ms=400, topped_micro=20)


def at(now_ms: int = EXPIRES_MS) -> Context:
    return Context({}, "quittance:platform", 4, now_ms)


def channel(book: Mapping[str, Any] = OPEN, **changes: Any) -> dict[str, Any]:
    """A channel's item whose seal fits."""
    values = {**TERMS, **book, **changes}
    terms = {name: value for name, value in values.items() if name in {*TERMS, "agents", "max_per_task"}}
    return values | {"seal": sealed(terms)["seal"]}


def mark(number: int, **values: Any) -> dict[str, Any]:
    return sealed({"pk": f"ESC#{ticket_escrow_id(CHANNEL, number)}", "channel": CHANNEL, "number": number, **values})


def names(found: list[Any]) -> list[str]:
    return [difference.invariant for difference in found]


@pytest.mark.parametrize(("amount", "right"), [(-11, False), (-10, True), (-1, True), (0, True), (5, False)])
def test_a_charge_takes_at_most_what_is_due_and_never_adds(amount: int, right: bool) -> None:
    values = {"pk": "CHARGE#bond o#b", "account": "bond o", "at": 1, "amount": amount, "due": 10, "tasks": 1}
    found = check(sealed(values), {}, Context({}, "quittance:platform", 4, 2))
    assert ([difference.invariant for difference in found] == []) is right, found


@pytest.mark.parametrize(("amount", "right"), [(-1, False), (0, False), (1, True)])
def test_earnings_must_be_above_zero(amount: int, right: bool) -> None:
    values = {"pk": "EARN#o#b", "account": "o", "at": 1, "amount": amount, "tasks": 1}
    assert (check(sealed(values), {}, Context({}, "quittance:platform", 4, 2)) == []) is right


@pytest.mark.parametrize("book", [OPEN, CLOSING, CLOSED], ids=["open", "closing", "closed"])
@pytest.mark.parametrize("optional", [{}, {"agents": '["agt_1"]', "max_per_task": 1, "contested": 1}])
def test_a_channel_as_it_should_be_has_no_difference(book: dict[str, Any], optional: dict[str, Any]) -> None:
    assert check(channel(book, **optional), {}, at()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"ticket_value": 0},
        {"tickets": 0},
        {"spent": -1},
        {"spent": 221},
        {"spent": 181},  # the four numbers that are not swept must be covered
        {"swept": -1},
        {"swept": 9},
        {"granted": 24},
        {"granted": TICKET_NUMBER_MAX + 1, "deposit": 10**9},
        {"expires_ms": 1, "work_at": 1},
        {"max_per_task": 0},
        {"contested": 2},
        {"agents": "agt_1"},
        {"agents": "7"},
    ],
    ids=repr,
)
def test_a_channel_that_cannot_be_is_a_difference(changes: dict[str, Any]) -> None:
    assert "I14" in names(check(channel(**changes), {}, at(1)))


@pytest.mark.parametrize("changes", [{"spent": 180}, {"granted": 23}, {"swept": 8}, {"spent": 0}], ids=repr)
def test_a_channel_at_its_limits_is_no_difference(changes: dict[str, Any]) -> None:
    assert check(channel(**changes), {}, at()) == []


@pytest.mark.parametrize(
    ("book", "changes"),
    [
        (OPEN, {"work": "OPEN#1"}),
        (OPEN, {"work_at": CLOSE_MS}),
        (CLOSING, {"work_at": CLOSE_MS - 1}),
        (CLOSING, {"work_at": 10**15}),
    ],
)
def test_a_channel_that_the_sweep_cannot_find_is_a_difference(book: dict[str, Any], changes: dict[str, Any]) -> None:
    assert names(check(channel(book, **changes), {}, at())) == ["I6"]


@pytest.mark.parametrize(
    "changes",
    [{"used": 9}, {"counted": 9}, {"used": -1}, {"counted": 3}],
    ids=repr,
)
def test_a_closing_channel_counts_its_granted_numbers(changes: dict[str, Any]) -> None:
    assert "I14" in names(check(channel(CLOSING, **changes), {}, at()))


@pytest.mark.parametrize(
    "changes",
    [{"counted": 7}, {"used": 5}, {"swept": 3}, {"returned": 194}, {"closed_ms": CLOSE_MS - 1}],
    ids=repr,
)
def test_a_closed_channel_is_counted_swept_and_returned(changes: dict[str, Any]) -> None:
    assert "I14" in names(check(channel(CLOSED, **changes), {}, at()))


@pytest.mark.parametrize("over_ms", [0, 1])
@pytest.mark.parametrize(
    ("book", "due_ms"), [(OPEN, EXPIRES_MS), (CLOSING | {"counted": 0, "used": 0}, CLOSE_MS), (CLOSED, 600)]
)
def test_a_channel_may_be_late_by_a_limit(book: dict[str, Any], due_ms: int, over_ms: int) -> None:
    found = check(channel(book), {}, at(due_ms + UNCLOSED_MS_MAX + over_ms))
    assert names(found) == ["I8"] * (over_ms if book is not CLOSED else 0)


@pytest.mark.parametrize("over_ms", [0, 1])
@pytest.mark.parametrize("swept_ms", [0, CLOSE_MS - 1, CLOSE_MS + 10**9])
def test_the_rest_is_due_once_all_tickets_are_swept(swept_ms: int, over_ms: int) -> None:
    sums = COUNTED + Numbers(swept_ms=swept_ms)
    now_ms = max(CLOSE_MS, swept_ms) + UNCLOSED_MS_MAX + over_ms
    assert names(check_numbers(channel(CLOSING), sums, at(now_ms))) == ["I8"] * over_ms
    assert check_numbers(channel(CLOSING, swept=3), sums + Numbers(swept=-1), at(now_ms)) == []


@pytest.mark.parametrize(
    ("book", "sums"),
    [
        (OPEN, Numbers(spent_micro=1)),
        (OPEN, Numbers(swept=1)),
        (OPEN, Numbers(topped_micro=10)),
        (OPEN, Numbers(void=1)),
        (CLOSING, Numbers(used=1)),
        (CLOSING, Numbers(void=-1)),
        (CLOSED, Numbers(used=-1, void=1)),
        (CLOSED, Numbers(spent_micro=-1)),
    ],
)
def test_sums_of_tickets_that_differ_from_their_channel(book: dict[str, Any], sums: Numbers) -> None:
    right = SUMS if book is OPEN else COUNTED
    assert check_numbers(channel(book), right, at()) == []
    assert names(check_numbers(channel(book), right + sums, at())) == ["I14"]


@pytest.mark.parametrize(
    ("found", "right"),
    [
        (Numbers(10, 2), True),
        (Numbers(15, 3), True),
        (Numbers(20, 4), True),
        (Numbers(9, 2), False),
        (Numbers(21, 4), False),
        (Numbers(15, 1), False),
        (Numbers(15, 5), False),
    ],
)
def test_sums_lie_between_two_reads_of_their_channel(found: Numbers, right: bool) -> None:
    before, after = channel(spent=10, swept=2), channel(spent=20, swept=4)
    assert is_between(before, found, after) is right


def ticket(count: int = 1, **values: Any) -> dict[str, Any]:
    """What the sums need of an escrow that a ticket pays."""
    paid = {"budget": 30, "refunded": 12, "task_judging": 4, "paid": 15, "fee": 3, "swept_ms": 7, "state": "released"}
    return {"pk": "ESC#e", "channel": CHANNEL, "number": 1, "tickets": count, **paid, **values}


def test_numbers_sum_up_what_tickets_cost() -> None:
    total = Numbers()
    unswept = {name: value for name, value in ticket().items() if name != "swept_ms"}
    topup = {"pk": f"TOPUP#{CHANNEL}#t", "channel": CHANNEL, "amount": 40}
    items = [ticket(3), ticket(swept_ms=9), ticket(0), unswept, mark(2, part_of="e"), mark(3, void_ms=8), topup]
    for values in items:
        total.add(values)
    assert total == Numbers(spent_micro=2 * 22, swept=4, used=4, void=1, swept_ms=9, topped_micro=40)


def test_a_channel_moves_its_payers_account_and_its_tickets_do_not() -> None:
    """The credits of a channel are in it until a settled task's part is uncredited; a judge's cost is its own part."""
    books, result = Books(recent_ms=0), Audit()
    held = ticket(state="funded")
    unswept = {name: value for name, value in ticket().items() if name != "swept_ms"}
    for values in (channel(), channel(CLOSED, pk="CHAN#b"), held, unswept, ticket(0)):
        books.post(result, values)
    assert dict(books.gaps) == {"alice": Sums(220 + (220 - 195))}
    assert (result.held_micro, result.uncredited_micro, result.credited_micro) == (0, 18, 18)
    assert (result.in_channels_micro, result.channels, result.escrows) == (220 + 25 - 2 * 18, 2, 3)


@pytest.mark.parametrize(
    ("values", "book", "right"),
    [
        (mark(8, void_ms=1), CLOSING, True),
        (mark(8, void_ms=1), CLOSED, True),
        (mark(8, void_ms=1), OPEN, False),
        (mark(9, void_ms=1), CLOSING, False),
        (mark(0, void_ms=1), CLOSING, False),
        (mark(8, void_ms=1, channel="chn_b"), CLOSING, False),
        (mark(8, void_ms=1) | {"pk": "ESC#elsewhere"}, CLOSING, False),
        (mark(8, void_ms=1), {}, False),
        (mark(2, part_of="no task"), OPEN, False),
    ],
)
def test_marks_of_numbers_fit_their_channel(values: dict[str, Any], book: dict[str, Any], right: bool) -> None:
    assert (check(values, {f"CHAN#{CHANNEL}": channel(book)} if book else {}, at()) == []) is right


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({}, True),
        ({"amount": 5}, False),
        ({"amount": 0}, False),
        ({"amount": -10}, False),
        ({"channel": "chn_b"}, False),
        ({"account": "alice"}, False),
        ({"pk": "TOPUP#chn_b#t"}, False),
    ],
)
def test_top_ups_fit_their_channel(changes: dict[str, Any], right: bool) -> None:
    topup = {"pk": f"TOPUP#{CHANNEL}#t", "channel": CHANNEL, "account": f"channel {CHANNEL}", "at": 1, "amount": 20}
    found = check(sealed({**topup, **changes}), {f"CHAN#{CHANNEL}": channel()}, at())
    assert (found == []) is right


@pytest.mark.parametrize(
    "values",
    [channel(), channel(CLOSED), mark(8, void_ms=1), mark(8, part_of="e")],
    ids=["open", "closed", "void", "part"],
)
def test_items_of_channels_need_their_seals(values: dict[str, Any]) -> None:
    del values["seal"]
    assert names(check(values, {f"CHAN#{CHANNEL}": channel(CLOSING)}, at())) == ["form"]
