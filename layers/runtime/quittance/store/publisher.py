"""The publisher as other functions reach it: asynchronously, because no task waits for a compiler."""

import json
from typing import TYPE_CHECKING, Final

from botocore.exceptions import BotoCoreError, ClientError

from quittance.errors import PlatformUnavailableError
from quittance.store.cache import Cache

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient

_AGAIN_SECONDS: Final = 5.0


class Publisher:
    """Asks the publish function for work."""

    def __init__(self, client: "LambdaClient", *, function: str) -> None:
        self._client = client
        self._function = function
        self._asked = Cache[None](seconds=_AGAIN_SECONDS)

    def recompile(self, agent_id: str) -> None:
        """Has the agent's active module compiled for the engine of today. Raises PlatformUnavailableError.

        An environment asks for the same agent every five seconds at most: each call of the function costs, and many
        tasks may come while one compiles.
        """
        self._asked.get(agent_id, self._ask)

    def _ask(self, agent_id: str) -> None:
        payload = json.dumps({"recompile": agent_id})
        try:
            self._client.invoke(FunctionName=self._function, InvocationType="Event", Payload=payload)
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc
