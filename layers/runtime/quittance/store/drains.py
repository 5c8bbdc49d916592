"""Asynchronous invocation of the drain function, which does one step of the sweep."""

import json
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from quittance.errors import PlatformUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient


class Drains:
    """Starts invocations. One that is lost or doubled does no harm: the ledger decides, and the next sweep repeats."""

    def __init__(self, client: "LambdaClient", *, function: str) -> None:
        self._client = client
        self._function = function

    def start(self, step: str, shard: int | None) -> None:
        """Starts a step, of one work shard if it has any. Raises PlatformUnavailableError; it may run nevertheless."""
        payload = json.dumps({"step": step, "shard": shard})
        try:
            self._client.invoke(FunctionName=self._function, InvocationType="Event", Payload=payload)
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc
