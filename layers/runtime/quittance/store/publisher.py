"""The publisher as other functions reach it: asynchronously, because no task waits for a compiler."""

import json
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from quittance.errors import PlatformUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient


class Publisher:
    """Asks the publish function for work."""

    def __init__(self, client: "LambdaClient", *, function: str) -> None:
        self._client = client
        self._function = function

    def recompile(self, agent_id: str) -> None:
        """Has the agent's active module compiled for the engine of today. Raises PlatformUnavailableError."""
        payload = json.dumps({"recompile": agent_id})
        try:
            self._client.invoke(FunctionName=self._function, InvocationType="Event", Payload=payload)
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc
