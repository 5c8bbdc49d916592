"""A server, a clock and both clients for the tests of the client."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quittance.client import AsyncClient, Client, Retries
from tests.client.servers import Clock, Server

TRIES = Retries(tries=4)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().running() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Awaited:
    """An AsyncClient whose methods block, so that one test serves both clients."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "agents":
            return Awaited(found, self._loop)

        def call(*args: Any, **named: Any) -> Any:
            result = found(*args, **named)
            if inspect.isasyncgen(result):
                return iter(self._loop.run_until_complete(_all(result)))
            return self._loop.run_until_complete(result)

        return call

    def __repr__(self) -> str:
        return repr(self._inner)


async def _all(items: Any) -> list[Any]:
    return [item async for item in items]


@pytest.fixture(params=["threads", "asyncio"])
def make(request: pytest.FixtureRequest, server: Server, clock: Clock) -> Iterator[Callable[..., Any]]:
    """`make(**arguments)`: a client of the test's server, once blocking and once on an event loop."""
    made: list[Any] = []
    loop = asyncio.new_event_loop()

    def client(**arguments: Any) -> Any:
        given = {"token": "secret-token", "retries": TRIES, "timing": clock.timing(), **arguments}
        kind = Client if request.param == "threads" else AsyncClient
        made.append(kind(given.pop("api", server.url), **given))
        return made[-1] if request.param == "threads" else Awaited(made[-1], loop)

    yield client
    for each in made:
        each.close() if isinstance(each, Client) else loop.run_until_complete(each.close())
    loop.close()


@pytest.fixture
def client(make: Callable[..., Any]) -> Any:
    return make()
