"""The two clients: `Client` for threads, `AsyncClient` for asyncio."""

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import httpx

from quittance.client._binding import Async, Sync
from quittance.client._calls import PREFIX, Core
from quittance.client._channels import ChannelMethods
from quittance.client._errors import ConfigurationError
from quittance.client._methods import AccountMethods, AgentMethods
from quittance.client._retry import Retries, Sender
from quittance.client._tokens import TokenSource, source_of
from quittance.client._verify import Verifier
from quittance.client._wire import Awaiting, Blocking, Timing, checked_url

TIMEOUT_S_DEFAULT: Final = 60.0
Token = str | TokenSource | Callable[[], str] | None


class Agents(AgentMethods, Sync):
    """Agents, for `Client`."""

    def __init__(self, core: Core, driver: Blocking, verifier: Verifier | None) -> None:
        self._core = core
        self._driver = driver
        self._verifier = verifier


class AsyncAgents(AgentMethods, Async):
    """Agents, for `AsyncClient`."""

    def __init__(self, core: Core, driver: Awaiting, verifier: Verifier | None) -> None:
        self._core = core
        self._driver = driver
        self._verifier = verifier


class Client(ChannelMethods, AccountMethods, Sync):
    """The API of one stack, as one caller. Threads may share it.

    `api` is the stack's URL (output `ApiUrl`, such as https://abc.execute-api.eu-central-1.amazonaws.com/prod). `token`
    is a bearer token or a source of tokens; None is enough for public routes. `timeout` limits one call with all its
    retries, in seconds; waiting for a task's outcome has a limit of its own (`within`). With `verify`, each receipt is
    checked as it arrives. `http` replaces the HTTP client, for example to set a proxy or certificates.

    Example:
        >>> with Client(api, token=token) as client:
        ...     client.execute(agent, "hello", budget="0.05").output
        'hello'
    """

    def __init__(
        self,
        api: str,
        *,
        token: Token = None,
        timeout: float = TIMEOUT_S_DEFAULT,
        retries: Retries | None = None,
        verify: Verifier | bool = False,
        http: httpx.Client | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._core = _core(api, token, timeout, retries, timing)
        self._verifier = _verifier(verify)
        self._driver = Blocking(http, self._core.sender.timing)
        self.agents = Agents(self._core, self._driver, self._verifier)

    def __repr__(self) -> str:
        return f"Client({self._core.root.removesuffix(PREFIX)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. A client that was passed as `http` stays open."""
        self._driver.close()


class AsyncClient(ChannelMethods, AccountMethods, Async):
    """The API of one stack, as one caller, with methods that are awaited. Its arguments are those of `Client`.

    Example:
        >>> async def greet():
        ...     async with AsyncClient(api, token=token) as client:
        ...         return (await client.execute(agent, "hello", budget="0.05")).output
        >>> asyncio.run(greet())
        'hello'
    """

    def __init__(
        self,
        api: str,
        *,
        token: Token = None,
        timeout: float = TIMEOUT_S_DEFAULT,
        retries: Retries | None = None,
        verify: Verifier | bool = False,
        http: httpx.AsyncClient | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._core = _core(api, token, timeout, retries, timing)
        self._verifier = _verifier(verify)
        self._driver = Awaiting(http, self._core.sender.timing)
        self.agents = AsyncAgents(self._core, self._driver, self._verifier)

    def __repr__(self) -> str:
        return f"AsyncClient({self._core.root.removesuffix(PREFIX)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. A client that was passed as `http` stays open."""
        await self._driver.close()


def _core(api: str, token: Token, timeout: float, retries: Retries | None, timing: Timing | None) -> Core:
    root = checked_url(api, "The address of the API").rstrip("/")
    if timeout <= 0:
        msg = "timeout must be more than 0 seconds."
        raise ConfigurationError(msg)
    root = root if root.endswith(PREFIX) else f"{root}{PREFIX}"
    return Core(root, source_of(token), Sender(retries or Retries(), timing or Timing(), timeout))


def _verifier(verify: Verifier | bool) -> Verifier | None:  # noqa: FBT001 - as the argument of the clients
    if isinstance(verify, Verifier):
        return verify
    return Verifier() if verify else None
