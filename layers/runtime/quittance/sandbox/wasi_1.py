"""Version 1 of the host rules, for replays of receipts that state it.

This module holds only the differences from the current rules. `tests/sandbox/receipts/rules-1` is a receipt from then.
"""

from typing import Final

from quittance import limits
from quittance.sandbox import wasi
from quittance.sandbox.wasi import CLOCK_STEP_NS, IOVEC, CallFailedError, Errno, Memory

_RANDOM_BYTES_MAX: Final = 64 * limits.KIB


class Guest(wasi.Guest):
    """A guest under version 1: host calls cost no fuel, and every reading advances the clock by the same step."""

    def _spend(self, fuel: int) -> None:
        pass

    def _advance_for_read(self) -> None:
        self._advance(CLOCK_STEP_NS)

    def random_get(self, memory: Memory, address: int, length: int) -> int:
        """One call returns at most 64 KiB."""
        return Errno.INVAL if length > _RANDOM_BYTES_MAX else super().random_get(memory, address, length)

    def _spans(self, memory: Memory, iovecs: int, count: int) -> list[tuple[int, int]]:
        """Empty buffers stay in the list, where they end a read, and must also lie inside the memory."""
        if count > limits.IOVECS_MAX:
            raise CallFailedError(Errno.INVAL)
        spans = list(IOVEC.iter_unpack(memory.read(iovecs, count * IOVEC.size)))
        for address, length in spans:
            memory.check(address, length)
        return spans
