"""Every operation on a channel and on its numbers in every state, against a pure model, exhaustively.

`Both` compares the whole store with the model after each operation, and a rejected one must change no byte. The
sequences of states are made by the store's own writes. See channel_model.py.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from quittance.store import channels as channels_store
from tests.depth import LONG
from tests.proofs.channel_model import (
    BOND,
    CHANNEL_EXPIRY,
    CLOSE_MS,
    JUDGE_BUDGET,
    LEASE_MS,
    LIFE_MS,
    TICKET,
    TICKETS,
    Both,
)
from tests.proofs.world import START_MS

CHUNK = 4  # numbers that one count reads here, so that a channel with eight is counted in two steps
PRICE = 10_007
FUNDS = 60 * TICKET
LATE = CHANNEL_EXPIRY + 1
CLOSING_AT = START_MS + 10
COUNTED_AT = CLOSING_AT + CLOSE_MS
Program = tuple[tuple[Any, ...], ...]

FUNDED: Program = (("fill", "alice", FUNDS), ("fill", BOND, 3 * JUDGE_BUDGET))
OPENED: Program = (*FUNDED, ("open", TICKETS, CHANNEL_EXPIRY), ("top_up", "first", 5 * TICKET, START_MS))
# Numbers: 1 is used, 2 to 4 by one task, 5 is held, 6 and 7 are held together with both judges, 8 is free.
USED: Program = (
    *OPENED,
    ("redeem", 1, 1, "r", PRICE, True, START_MS),
    ("redeem", 2, 3, "r", PRICE, False, START_MS),
    ("hold", 5, 1, "r", PRICE, "", START_MS),
    ("hold", 6, 2, "r", PRICE, "agent,task", START_MS),
)
SWEEP_USED = ("credit", ((1, "itself"), (2, "itself")))
SETTLED: Program = (("settle", 5, 1, True, START_MS), ("settle", 6, 1, True, START_MS))
SWEEP_ALL = ("credit", ((1, "itself"), (2, "itself"), (5, "itself"), (6, "itself"), (6, "agent"), (6, "task")))
CLOSING: Program = (*USED, ("look",), ("begin_closing", -1, COUNTED_AT))
COUNT = (("look",), ("count_out", -1, COUNTED_AT))
COUNTED: Program = (*CLOSING, *SETTLED, *COUNT, *COUNT)
UNSPENT: Program = (*FUNDED, OPENED[len(FUNDED)], ("look",), OPENED[-1], ("look",), ("begin_closing", -1, COUNTED_AT))
STATES: dict[str, Program] = {
    "absent": FUNDED,
    "open": OPENED,
    "open, used": USED,
    "open, partly swept": (*USED, SWEEP_USED),
    "open, all swept": (*USED, *SETTLED, SWEEP_ALL),
    "open, contested": (*USED, ("contest",)),
    "open, granted": (*USED, ("look",), ("grant", -1, 16)),
    "closing": CLOSING,
    "closing, partly counted": (*CLOSING, *COUNT),
    "closing, counted": (*CLOSING, *COUNT, *COUNT),
    "closing, counted, settled": COUNTED,
    "closing, counted, partly swept": (*COUNTED, SWEEP_USED),
    "closing, counted, swept": (*COUNTED, SWEEP_ALL),
    "closing, counted, nothing spent": (*UNSPENT, *COUNT, *COUNT),
    "closed": (*COUNTED, SWEEP_ALL, ("look",), ("close", -1, COUNTED_AT)),
    "closed, contested before": (*USED, ("contest",), *CLOSING[len(USED) :], *SETTLED, *COUNT, *COUNT, SWEEP_ALL,
                                 ("look",), ("close", -1, COUNTED_AT)),
}  # fmt: skip
MADE: dict[str, Both] = {}
TIMES = (START_MS, CHANNEL_EXPIRY - 1, CHANNEL_EXPIRY, COUNTED_AT - 1, COUNTED_AT)


@pytest.fixture(autouse=True)
def short_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels_store, "TRANSACTION_ITEMS_MAX", CHUNK)


def made(state: str) -> Both:
    """Both sides, brought into a state."""
    if state not in MADE:
        MADE[state] = Both(chunk=CHUNK)
        for operation in STATES[state]:
            MADE[state].do(*operation)
    return MADE[state].copy()


IN_STATES = pytest.mark.parametrize("state", [state for state in STATES if state != "absent"])


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("tickets", [TICKETS, TICKETS + 1])
@pytest.mark.parametrize("poor", [False, True], ids=["", "nothing left"])
def test_open(state: str, tickets: int, poor: bool) -> None:
    """The same terms give the stored channel, others are refused, whatever the balance; the deposit is taken once."""
    both = made(state)
    if poor and state.startswith("open"):
        both.do("top_up", "all", both.book.money["alice"], START_MS)
    for expires in (CHANNEL_EXPIRY, CHANNEL_EXPIRY + 1):
        both.do("open", tickets, expires)
        both.do("open", tickets, expires)


@pytest.mark.parametrize("missing", [-1, 0, 1])
def test_open_takes_the_deposit_or_nothing(missing: int) -> None:
    both = Both()
    both.do("fill", "alice", TICKETS * TICKET - missing)
    assert both.do("open", TICKETS, CHANNEL_EXPIRY) == ("InsufficientFundsError" if missing > 0 else "open")


@IN_STATES
def test_top_up(state: str) -> None:
    """Once per id, only while the channel is open; the recorded one is answered in every state."""
    for topup_id, amount in product(("first", "second"), (5 * TICKET, 6 * TICKET, FUNDS)):
        both = made(state)
        first = both.do("top_up", topup_id, amount, START_MS + 1)
        assert both.do("top_up", topup_id, amount, START_MS + 2) == first
        both.do("top_up", topup_id, amount + TICKET, START_MS + 2)


@IN_STATES
def test_grant(state: str) -> None:
    """Only in an open channel, only what the deposit covers, at most twice as many, from the newest reading only."""
    for last in (1, 8, 9, 16, 17, 22, 23, 24, 25, 26, 32, 33):
        both = made(state)
        both.do("look")
        both.do("grant", -1, last)
        both.do("grant", -1, last)  # by another environment that had read the same
        both.do("look")
        both.do("grant", -1, last + 8)


def test_a_grant_from_an_old_reading_changes_nothing() -> None:
    both = made("open, used")
    both.do("look")
    both.do("look")
    assert both.do("grant", 0, 16) == 16
    assert both.do("grant", 1, 9) == 16
    both.do("look")
    assert both.do("grant", 2, 17) == 25  # all that the deposit covers
    assert both.do("grant", 2, 17) == 25
    assert both.do("grant", 1, 9) == 25, "a number that was granted stays granted"
    both.do("begin_closing", 2, COUNTED_AT)


@IN_STATES
def test_contest(state: str) -> None:
    """An open channel is marked, once; a closing or closed one takes no more tickets and never changes by it."""
    both = made(state)
    both.do("contest")
    both.do("contest")


@IN_STATES
@pytest.mark.parametrize("old", [False, True], ids=["read now", "read before"])
def test_close_in_every_state(state: str, old: bool) -> None:
    """Begin closing, count and close, from what was read now and from what was read in each earlier state."""
    readings = [made(state)]
    readings[0].do("look")
    for place in range(len(readings[0].desk.seen) - 1) if old else [-1]:
        for operation, now in product(("begin_closing", "count_out", "close", "advance"), (COUNTED_AT, LATE)):
            both = made(state)
            both.do("look")
            seen = place if old else len(both.desk.seen) - 1
            both.do(operation, seen, now)
            both.do(operation, seen, now + 1)


@IN_STATES
def test_the_sweep_closes_no_channel_too_early(state: str) -> None:
    """An open channel until it expires, a closing one until its time is over; then step by step to the end."""
    for now in TIMES:
        both = made(state)
        for _ in range(4):
            both.do("look")
            both.do("advance", -1, now)


SPENDS = [
    (operation, number, count, request)
    for operation, number, count, request in product(("redeem", "hold"), range(1, 9), (1, 2, 3), ("r", "other"))
    if number + count <= 9
]


@IN_STATES
@pytest.mark.parametrize("operation", ["redeem", "hold"])
def test_each_number_pays_one_task(state: str, operation: str) -> None:
    """The first number returns its task, whatever is asked; a part and a number out of use refuse; a free one pays."""
    for named, number, count, request in SPENDS:
        if named != operation:
            continue
        both = made(state)
        now = START_MS + 1
        both.do("find", number, count)
        terms = (PRICE, True, now) if operation == "redeem" else (PRICE, "", now)
        both.do(operation, number, count, request, *terms)
        both.do(operation, number, count, request, *terms)
        both.do("find", number, count)
        both.do("credit", ((number, "itself"),))


def test_a_judges_bond_is_taken_with_the_numbers_or_not_at_all() -> None:
    """The agent's judge is paid by its owner's bond, also if a ticket pays the task."""
    for sides, bond in product(("agent", "task", "agent,task"), (-1, 0, 1)):
        both = Both(chunk=CHUNK)
        for operation in (("fill", "alice", FUNDS), ("fill", BOND, JUDGE_BUDGET + bond), OPENED[2]):
            both.do(*operation)
        due = ("r", "funded", 1) if bond >= 0 or "agent" not in sides else "BondTooLowError"
        assert both.do("hold", 1, 2, "r", PRICE, sides, START_MS) == due
        assert both.do("hold", 1, 2, "r", PRICE, sides, START_MS) == due


HELD = {
    "funded": (),
    "taken over": (("take_over", 5, 1, START_MS + LEASE_MS), ("take_over", 6, 1, START_MS + LEASE_MS)),
    "settled": SETTLED,
    "failed": (("settle", 5, 1, False, START_MS), ("settle", 6, 1, False, START_MS)),
    "expired": (("expire", 5, "itself", START_MS + LIFE_MS), ("expire", 6, "itself", START_MS + LIFE_MS)),
    "judge expired": (("expire", 6, "agent", START_MS + LIFE_MS),),
    "own judge expired": (("expire", 6, "task", START_MS + LIFE_MS),),
    "swept": (*SETTLED, SWEEP_ALL),
    "expired, swept": (("expire", 5, "itself", START_MS + LIFE_MS), ("credit", ((5, "itself"),))),
}
CHANNEL_STATES = ("open, used", "closing, counted", *(("closing", "closing, partly counted") if LONG else ()))


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("state", CHANNEL_STATES)
def test_a_held_ticket_ends_as_any_escrow(state: str, held: str) -> None:
    """I5 to I8 and I10: nothing goes to an account; what is not used stays in the channel."""
    lease, expiry = START_MS + LEASE_MS, START_MS + LIFE_MS
    times = (START_MS, lease - 1, lease, expiry - 1, expiry)
    operations: list[tuple[Any, ...]] = [
        *(("settle", number, fence, success, now)
          for number, fence, success, now in product((5, 6, 7), (1, 2), (True, False), times)),
        *(("expire", number, who, now) for number, who, now in product((5, 6), ("itself", "agent", "task"), times)),
        *(("take_over", number, fence, now) for number, fence, now in product((5, 6), (1, 2), times)),
        *(("credit", ((number, who),)) for number, who in product((5, 6), ("itself", "agent", "task"))),
    ]  # fmt: skip
    for operation in operations:
        both = made(state)
        for earlier in HELD[held]:
            both.do(*earlier)
        both.do(*operation)
        both.do(*operation)


@IN_STATES
def test_the_sweep_adds_each_task_to_its_channel_once(state: str) -> None:
    for names in (SWEEP_USED[1], SWEEP_ALL[1], ((6, "task"),), ((6, "itself"), (6, "agent"))):
        both = made(state)
        both.do("credit", names)
        both.do("credit", names)
        both.do("credit", SWEEP_ALL[1])


def test_a_long_channel_is_counted_a_hundred_numbers_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real size of a step: every number that was granted is used or out of use, and the rest returns."""
    monkeypatch.undo()
    both = Both()
    both.do("fill", "alice", 500 * TICKET)
    both.do("open", 250, CHANNEL_EXPIRY)
    while both.book.granted < 250:
        both.do("look")
        both.do("grant", -1, both.book.granted + 1)
    for number in (1, 2, 99, 100, 101, 200, 201, 250):
        both.do("redeem", number, 1, "r", PRICE, True, START_MS)
    both.do("redeem", 102, 90, "r", 90 * TICKET, True, START_MS)
    both.do("look")
    both.do("begin_closing", -1, COUNTED_AT)
    counted = []
    while both.book.counted < 250:
        both.do("look")
        both.do("advance", -1, COUNTED_AT)
        counted.append(both.book.counted)
    assert counted == [100, 200, 250]
    both.do("look")
    assert both.do("advance", -1, COUNTED_AT) == "closing"
    both.do("credit", tuple((number, "itself") for number in (1, 2, 99, 100, 101, 102, 200, 201, 250)))
    both.do("look")
    assert both.do("advance", -1, COUNTED_AT) == "closed"
    assert both.book.money["alice"] == 500 * TICKET - 8 * PRICE - 90 * TICKET


def test_the_number_of_cases_is_reported(record_property: Callable[[str, str], None]) -> None:
    record_property("figure", f"{len(STATES)} states of a channel, {len(HELD)} of a held ticket")
