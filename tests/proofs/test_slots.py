"""Slots: never more holders than slots, with lost responses, lapsed leases and races; each write in every state."""

import random
import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError
from hypothesis import given
from hypothesis import strategies as st

from quittance.limits import SLOT_TRIES_MAX
from quittance.store import slots as module
from quittance.store.slots import Busy, Slots
from tests.proofs.engines import client_of, engine, new_table
from tests.proofs.memory import Memory
from tests.proofs.world import START_MS, TABLE

LEASE_MS = 1_000
SLOTS, RUNNERS, ROUNDS = 3, 8, 12


def of(client: Any, left_ms: int = 0) -> Slots:
    return Slots(client, table=TABLE, left_ms=lambda: left_ms)


def take(slots: Slots, holder: str, now_ms: int, *, number: int = 1) -> int | Busy:
    return slots.take("alice", holder, of=number, now_ms=now_ms, lease_ms=now_ms + LEASE_MS)


@pytest.mark.parametrize("state", ["never taken", "given back", "held", "held by myself"])
@pytest.mark.parametrize("later_ms", [0, LEASE_MS - 1, LEASE_MS, LEASE_MS + 1])
def test_only_a_free_slot_is_taken(state: str, later_ms: int) -> None:
    memory = Memory()
    slots = of(memory)
    if state != "never taken":
        assert take(slots, "me" if state == "held by myself" else "other", START_MS) == 0
    if state == "given back":
        slots.give_back("alice", 0, "other")
    now_ms = START_MS + later_ms
    before = dict(memory.items)
    taken = take(slots, "me", now_ms)
    if state == "held" and later_ms < LEASE_MS:
        assert taken == Busy(START_MS + LEASE_MS)
        assert memory.items == before
    else:
        assert taken == 0
    assert slots.take("bob", "me", of=1, now_ms=now_ms, lease_ms=now_ms + 1) == 0, "the slots of accounts are separate"


@pytest.mark.parametrize("holder", ["me", "other"])
def test_only_the_holder_releases_a_slot(holder: str) -> None:
    memory = Memory()
    slots = of(memory)
    take(slots, "other", START_MS)
    slots.give_back("alice", 0, holder)
    assert (take(slots, "me", START_MS) == 0) == (holder == "other")


def test_a_late_holder_does_not_release_anothers_slot() -> None:
    slots = of(Memory())
    take(slots, "late", START_MS)
    assert take(slots, "next", START_MS + LEASE_MS) == 0
    slots.give_back("alice", 0, "late")
    assert isinstance(take(slots, "third", START_MS + LEASE_MS), Busy)


def test_a_lost_response_takes_one_slot() -> None:
    memory = Memory()
    honest, lost = memory.update_item, 0

    def lose_the_first(**asked: Any) -> Any:
        nonlocal lost
        lost += 1
        answer = honest(**asked)
        if lost == 1:
            raise ReadTimeoutError(endpoint_url="dynamodb")
        return answer

    memory.update_item = lose_the_first  # type: ignore[method-assign]
    assert isinstance(take(of(memory, 30_000), "me", START_MS, number=SLOTS), int)
    assert (lost, len(memory.items)) == (2, 1)


def test_a_failed_release_does_not_fail_the_task() -> None:
    memory = Memory()
    slots = of(memory)
    take(slots, "me", START_MS)

    def fail(**_: Any) -> Any:
        raise ReadTimeoutError(endpoint_url="dynamodb")

    memory.update_item = fail  # type: ignore[method-assign]
    slots.give_back("alice", 0, "me")


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(0, LEASE_MS)), max_size=40),
    st.integers(1, SLOTS),
)
def test_there_are_never_more_holders_than_slots(program: list[tuple[str, bool, int]], number: int) -> None:
    """A model of holders and leases. Without concurrent runners, a free slot is always found."""
    slots, now_ms = of(Memory()), START_MS
    held: dict[str, tuple[int, int]] = {}
    for holder, takes, later_ms in program:
        now_ms += later_ms
        held = {name: (slot, until) for name, (slot, until) in held.items() if until > now_ms}
        if not takes:
            if holder in held:
                slots.give_back("alice", held.pop(holder)[0], holder)
        elif holder not in held:
            taken = take(slots, holder, now_ms, number=number)
            if isinstance(taken, Busy):
                assert len(held) == number
                assert taken.until_ms == min(until for _, until in held.values())
            else:
                assert taken not in {slot for slot, _ in held.values()}
                held[holder] = (taken, now_ms + LEASE_MS)
        assert len(held) <= number


def test_a_race_for_the_last_slot_has_one_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runners have read the same slot as free. The second write is rejected, and no other slot was free."""
    for first, second in product(range(SLOTS), repeat=2):
        memory = Memory()
        slots = of(memory)
        for number in range(SLOTS):
            if number != second:
                memory.items[f"SLOT#alice#{number}"] = {
                    "pk": {"S": f"SLOT#alice#{number}"}, "holder": {"S": "old"}, "lease_ms": {"N": str(START_MS + 9)},
                }  # fmt: skip
        monkeypatch.setattr(module.random, "randrange", lambda _, first=first: first)
        honest, met = memory.batch_get_item, list[int | Busy]()

        def read(*, honest: Callable[..., Any] = honest, met: list[int | Busy] = met, **asked: Any) -> Any:
            seen = honest(**asked)
            if not met:
                met.append(-1)
                met[0] = take(of(memory), "rival", START_MS, number=SLOTS)  # noqa: B023 - called in this round
            return seen

        memory.batch_get_item = read  # type: ignore[method-assign]
        mine = take(slots, "me", START_MS, number=SLOTS)
        winners = [one for one in (mine, *met) if not isinstance(one, Busy)]
        assert winners == [second]


def test_a_runner_gives_up_after_the_limit_of_lost_races() -> None:
    """All slots are read as free, and a rival takes each before our write arrives."""
    memory, number = Memory(), 2 * SLOT_TRIES_MAX
    honest, tried = memory.update_item, list[str]()

    def overtaken(**asked: Any) -> Any:
        pk = asked["Key"]["pk"]["S"]
        tried.append(pk)
        memory.items[pk] = {
            "pk": {"S": pk}, "holder": {"S": "rival"}, "lease_ms": {"N": str(START_MS + LEASE_MS)},
        }  # fmt: skip
        return honest(**asked)

    memory.update_item = overtaken  # type: ignore[method-assign]
    assert isinstance(take(of(memory), "me", START_MS, number=number), Busy)
    assert len(tried) == len(set(tried)) == 1 + SLOT_TRIES_MAX


def test_threads_on_a_real_engine_never_exceed_the_slots() -> None:
    with engine("ministack") as url:
        new_table(client_of(url))
        inside, most, wrong = set[str](), 0, list[BaseException]()
        lock = threading.Lock()
        began = threading.Barrier(RUNNERS)

        def run(name: str) -> None:
            nonlocal most
            slots = of(client_of(url), 30_000)
            rest = random.Random(name)
            began.wait()
            for number in range(ROUNDS):
                holder = f"{name}-{number}"
                taken = slots.take("alice", holder, of=SLOTS, now_ms=START_MS, lease_ms=START_MS + LEASE_MS)
                if isinstance(taken, Busy):
                    continue
                with lock:
                    inside.add(holder)
                    most = max(most, len(inside))
                threading.Event().wait(rest.uniform(0, 0.01))
                with lock:
                    inside.remove(holder)
                slots.give_back("alice", taken, holder)

        def guarded(name: str) -> None:
            try:
                run(name)
            except BaseException as exc:  # noqa: BLE001 - it is what the test shows
                wrong.append(exc)

        threads = [threading.Thread(target=guarded, args=(f"runner-{number}",)) for number in range(RUNNERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert 0 < most <= SLOTS
