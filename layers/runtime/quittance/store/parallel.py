"""Calls of AWS that are made at the same time, because each of them mostly waits."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from quittance.limits import CALLS_AT_ONCE_MAX

_T = TypeVar("_T")
_R = TypeVar("_R")


def at_once(do: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """The results of a call for each item, in order, with up to CALLS_AT_ONCE_MAX calls at a time.

    All calls have ended when it returns or raises the first exception in the order of the items. Calls may begin until
    that is reached. A single call is made by the thread that asks for it.
    """
    waiting = list(items)
    if len(waiting) < 2:
        return [do(each) for each in waiting]
    from concurrent.futures import ThreadPoolExecutor  # only the sweep needs it, and it takes a cold start's time

    with ThreadPoolExecutor(min(len(waiting), CALLS_AT_ONCE_MAX)) as pool:
        return list(pool.map(do, waiting))
