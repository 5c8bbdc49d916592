import threading
from functools import partial

import pytest

from quittance.limits import CALLS_AT_ONCE_MAX
from quittance.store import parallel
from quittance.store.parallel import at_once
from tests.waiting import GENEROUS_S


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this folder call moto, one call at a time."""
    monkeypatch.setattr(parallel, "CALLS_AT_ONCE_MAX", CALLS_AT_ONCE_MAX)


@pytest.mark.parametrize("count", [0, 1, 2, CALLS_AT_ONCE_MAX + 1])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    """The first call ends last."""
    over = threading.Barrier(min(count, CALLS_AT_ONCE_MAX) or 1)

    def call(item: int) -> int:
        if item < CALLS_AT_ONCE_MAX:
            over.wait(GENEROUS_S)
        return -item

    assert at_once(call, iter(range(count))) == [-item for item in range(count)]


def test_no_more_calls_run_than_the_limit() -> None:
    """As many as the limit meet at the barrier; one more would wait in vain."""
    running, most, lock = 0, 0, threading.Lock()
    meet = threading.Barrier(CALLS_AT_ONCE_MAX)

    def call(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        meet.wait(GENEROUS_S)
        with lock:
            running -= 1

    at_once(call, range(2 * CALLS_AT_ONCE_MAX))
    assert most == CALLS_AT_ONCE_MAX


def test_a_single_call_needs_no_thread() -> None:
    assert at_once(lambda _: threading.current_thread(), [1]) == [threading.current_thread()]


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
def test_all_calls_have_ended_when_one_has_failed(failure: BaseException) -> None:
    """A caller that repeats a failed write must not compete with its own other call."""
    begun, failed, ended = threading.Event(), threading.Event(), list[str]()

    def fail() -> None:
        assert begun.wait(GENEROUS_S)
        failed.set()
        raise failure

    def last() -> None:
        begun.set()
        assert failed.wait(GENEROUS_S)
        ended.append("last")

    with pytest.raises(type(failure)):
        at_once(lambda call: call(), [fail, last])
    assert ended == ["last"]
    with pytest.raises(type(failure)):
        at_once(lambda call: call(), [partial(ended.append, "first"), fail])
    assert ended == ["last", "first"]
