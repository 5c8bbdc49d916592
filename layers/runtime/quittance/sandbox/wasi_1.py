"""The first rules of host calls: only replays of receipts that name them use them.

What is here is their difference from the rules of now. `tests/sandbox/receipts/rules-1` is a receipt of that time.
"""

from typing import Final

from quittance import limits
from quittance.sandbox import wasi
from quittance.sandbox.wasi import CLOCK_STEP_NS, IOVEC, CallFailedError, Errno, Memory

_RANDOM_BYTES_MAX: Final = 64 * limits.KIB


class Guest(wasi.Guest):
    """A guest as it was: host calls cost nothing of their own, and the clock's steps are equal."""

    def _spend(self, fuel: int) -> None:
        pass

    def _look(self) -> None:
        self._advance(CLOCK_STEP_NS)

    def random_get(self, memory: Memory, address: int, length: int) -> int:
        """Randomness comes in pieces of 64 KiB at most."""
        return Errno.INVAL if length > _RANDOM_BYTES_MAX else super().random_get(memory, address, length)

    def _spans(self, memory: Memory, iovecs: int, count: int) -> list[tuple[int, int]]:
        """Empty buffers stay in the list, where they end a read, and must lie inside the memory."""
        if count > limits.IOVECS_MAX:
            raise CallFailedError(Errno.INVAL)
        spans = list(IOVEC.iter_unpack(memory.read(iovecs, count * IOVEC.size)))
        for address, length in spans:
            memory.read(address + length, 0)
        return spans
