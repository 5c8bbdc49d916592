"""Asynchronous invocation of the publish function. Tasks never wait for the compiler."""

from typing import TYPE_CHECKING, Final

from quittance.store.cache import Cache
from quittance.store.clients import invoke_later

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient

_AGAIN_SECONDS: Final = 5.0


class Publisher:
    """Sends requests to the publish function."""

    def __init__(self, client: "LambdaClient", *, function: str) -> None:
        self._client = client
        self._function = function
        self._requested = Cache[None](seconds=_AGAIN_SECONDS)

    def recompile(self, agent_id: str) -> None:
        """Requests compilation of the agent's active module for the current engine. Raises PlatformUnavailableError.

        An environment sends at most one request for an agent every five seconds, because each invocation costs money
        and many tasks may arrive during one compilation.
        """
        self._requested.get(agent_id, self._request)

    def _request(self, agent_id: str) -> None:
        invoke_later(self._client, self._function, {"recompile": agent_id})
