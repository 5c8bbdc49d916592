"""An in-memory cache of what a function's environment has read, for some seconds."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

ENTRIES_MAX: Final = 1_000
_Entry = TypeVar("_Entry")


class Cache(Generic[_Entry]):
    """A cache of the most recently read entries, each for a fixed number of seconds."""

    def __init__(self, *, seconds: float, entries_max: int = ENTRIES_MAX) -> None:
        self._seconds = seconds
        self._entries_max = entries_max
        self._entries: OrderedDict[str, tuple[float, _Entry]] = OrderedDict()

    def get(self, key: str, read: Callable[[str], _Entry]) -> _Entry:
        """The entry of a key, read again if it is missing or too old. Exceptions of `read` pass through uncached."""
        now = time.monotonic()
        cached = self._entries.get(key)
        if cached and cached[0] > now:
            return cached[1]
        entry = read(key)
        self._entries[key] = (now + self._seconds, entry)
        self._entries.move_to_end(key)
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)
        return entry

    def clear(self) -> None:
        """Drops all entries."""
        self._entries.clear()

    def drop(self, key: str) -> None:
        """Drops one entry, so that the next `get` of its key reads it again."""
        self._entries.pop(key, None)
