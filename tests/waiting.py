"""Waiting for what must come, on a machine of any speed: no test fails because other work goes on beside it.

A test asserts that things come in the right order, or what they cost the processor; how many milliseconds they take is
measured in benchmarks/. Where something must end by itself, what would happen otherwise lasts longer than GENEROUS_S.
"""

from collections.abc import Callable
from time import monotonic, sleep
from typing import Final, TypeVar

Found = TypeVar("Found")

GENEROUS_S: Final = 300.0
"""Nothing that is waited for takes as long, however busy the machine is."""
GENEROUS_MS: Final = int(GENEROUS_S * 1_000)


def until(look: Callable[[], Found | None], what: str, *, pause_s: float = 0.05) -> Found:
    """Looks until something is found that counts as true, and gives it; `what` is the complaint if nothing ever is."""
    deadline = monotonic() + GENEROUS_S
    while not (found := look()):
        if monotonic() > deadline:
            msg = f"{what} (after {GENEROUS_S:.0f} s)"
            raise AssertionError(msg)
        sleep(pause_s)
    return found


class Stopwatch:
    """How long something took, for comparisons with what it would have taken otherwise."""

    def __init__(self) -> None:
        self._began = monotonic()

    def seconds(self) -> float:
        return monotonic() - self._began
