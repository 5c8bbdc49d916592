"""How one definition of a method serves both clients: it blocks in one, and is awaited in the other.

    class _Methods:
        @Operation
        def balance(self) -> Flow[AccountAnswer]: ...

    class Client(_Methods, Sync): ...          # client.balance() -> AccountAnswer
    class AsyncClient(_Methods, Async): ...    # await client.balance()

Type checkers read the arguments and the result from the flow.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from quittance.client._calls import Core
from quittance.client._errors import UnexpectedAnswerError
from quittance.client._wire import Awaiting, Blocking, Flow

_P = ParamSpec("_P")
_T = TypeVar("_T")

Pages = Callable[[str | None], Flow[tuple[list[_T], str | None]]]
"""Reads the page behind a cursor: its items, and the next page's cursor."""


class Bound:
    """What every object with methods of the API has."""

    _core: Core


class Sync(Bound):
    """Objects whose methods block."""

    _driver: Blocking


class Async(Bound):
    """Objects whose methods are awaited."""

    _driver: Awaiting


class Operation(Generic[_P, _T]):
    """A method of both clients, defined by its flow."""

    def __init__(self, flow: Callable[Concatenate[Any, _P], Flow[_T]]) -> None:
        self._flow = flow
        self.__wrapped__ = flow
        self.__doc__ = flow.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Sync, owner: type) -> Callable[_P, _T]: ...
    @overload
    def __get__(self, instance: Async, owner: type) -> Callable[_P, Coroutine[Any, Any, _T]]: ...
    def __get__(self, instance: Sync | Async | None, owner: type) -> Any:
        """The method of an object."""
        if instance is None:
            return self
        if isinstance(instance, Sync):
            blocking = instance

            @wraps(self._flow)
            def call(*args: _P.args, **named: _P.kwargs) -> _T:
                return blocking._driver.run(self._flow(blocking, *args, **named))  # noqa: SLF001 - of this module

            return call
        awaiting = instance

        @wraps(self._flow)
        async def call_async(*args: _P.args, **named: _P.kwargs) -> _T:
            return await awaiting._driver.run(self._flow(awaiting, *args, **named))  # noqa: SLF001 - of this module

        return call_async


class Listing(Generic[_P, _T]):
    """A method of both clients that iterates over the items of all pages, and reads each page when it is needed."""

    def __init__(self, pages: Callable[Concatenate[Any, _P], Pages[_T]]) -> None:
        self._pages = pages
        self.__wrapped__ = pages
        self.__doc__ = pages.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Sync, owner: type) -> Callable[_P, Iterator[_T]]: ...
    @overload
    def __get__(self, instance: Async, owner: type) -> Callable[_P, AsyncIterator[_T]]: ...
    def __get__(self, instance: Sync | Async | None, owner: type) -> Any:
        """The method of an object."""
        if instance is None:
            return self
        if isinstance(instance, Sync):
            blocking = instance

            @wraps(self._pages)
            def items(*args: _P.args, **named: _P.kwargs) -> Iterator[_T]:
                pages, after = self._pages(blocking, *args, **named), _Cursor()
                while after.more:
                    found, cursor = blocking._driver.run(pages(after.at))  # noqa: SLF001 - of this module
                    yield from found
                    after.move(cursor)

            return items
        awaiting = instance

        @wraps(self._pages)
        async def items_async(*args: _P.args, **named: _P.kwargs) -> AsyncIterator[_T]:
            pages, after = self._pages(awaiting, *args, **named), _Cursor()
            while after.more:
                found, cursor = await awaiting._driver.run(pages(after.at))  # noqa: SLF001 - of this module
                for item in found:
                    yield item
                after.move(cursor)

        return items_async


class _Cursor:
    """The place in a list, and an earlier place: a list that comes back to it would never end."""

    def __init__(self) -> None:
        self.at: str | None = None
        self.more = True
        self._earlier: str | None = None
        self._moves = 0

    def move(self, cursor: str | None) -> None:
        """To the next page. Raises UnexpectedAnswerError if the list leads back.

        The earlier place is renewed after 1, 2, 4, 8, … moves, so it is in any circle before long (Brent's algorithm).
        """
        if cursor is not None and cursor in {self.at, self._earlier}:
            msg = "The API answers with the same page again. Nothing more can be read."
            raise UnexpectedAnswerError(msg)
        self._moves += 1
        if not self._moves & (self._moves - 1):
            self._earlier = cursor
        self.at, self.more = cursor, cursor is not None
