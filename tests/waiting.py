"""Waiting for a condition on a machine of any speed, so that no test fails because the machine is busy.

A test asserts order or processor time; benchmarks/ measure wall-clock time. Where something must end by itself, choose
an alternative that lasts longer than GENEROUS_S.
"""

from collections.abc import Callable
from time import monotonic, sleep
from typing import Final, TypeVar

Found = TypeVar("Found")

GENEROUS_S: Final = 300.0
"""Longer than anything that a test waits for, even on a busy machine."""
GENEROUS_MS: Final = int(GENEROUS_S * 1_000)


def until(look: Callable[[], Found | None], what: str, *, pause_s: float = 0.05) -> Found:
    """Call `look` until it returns something true, and return that. `what` is the error if it never does."""
    deadline = monotonic() + GENEROUS_S
    while not (found := look()):
        if monotonic() > deadline:
            msg = f"{what} (after {GENEROUS_S:.0f} s)"
            raise AssertionError(msg)
        sleep(pause_s)
    return found


class Stopwatch:
    """How long something took, to compare it with the time of the alternative."""

    def __init__(self) -> None:
        self._began = monotonic()

    def seconds(self) -> float:
        return monotonic() - self._began
