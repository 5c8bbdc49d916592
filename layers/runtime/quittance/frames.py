"""Keeps the calls of a function within one chunk of the interpreter's stack of frames. Pure.

CPython keeps the frames of Python functions in chunks of 16 KiB. A call whose frame does not fit maps a new chunk, and
the return from it unmaps the chunk again, about 5 µs instead of 0.05. A function that happens to stand at the end of a
chunk pays this for every call that it makes, so the same work takes up to ten times as long at some depths of the
caller (python/cpython#142183). See docs/adr/0029.
"""

from collections.abc import Callable
from functools import update_wrapper
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

ROOM_BYTES: Final = 256 * 1024
"""What is left for the calls: as many small frames as the interpreter's recursion limit allows."""

_WORD_BYTES: Final = 8
_FRAME_WORDS: Final = ROOM_BYTES // _WORD_BYTES


def in_one_chunk(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function whose caller may be at any depth. Costs some microseconds a call: not for calls in a loop.

    The frame around the function is declared to be just larger than half of the chunk that it needs. So it fits into no
    chunk that another function has begun, and the other half of its own chunk is free for the calls of the function.
    What is declared and not used is never touched: the system provides no memory for it.
    """

    def with_room(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    with_room.__code__ = with_room.__code__.replace(co_stacksize=_FRAME_WORDS)
    return update_wrapper(with_room, function)
