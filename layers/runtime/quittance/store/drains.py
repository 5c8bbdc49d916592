"""Asynchronous invocation of the drain function, which does one step of the sweep."""

from typing import TYPE_CHECKING

from quittance.store.clients import invoke_later

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient


class Drains:
    """Starts invocations. One that is lost or doubled does no harm: the ledger decides, and the next sweep repeats."""

    def __init__(self, client: "LambdaClient", *, function: str) -> None:
        self._client = client
        self._function = function

    def start(self, step: str, shard: int | None) -> None:
        """Starts a step, of one work shard if it has any. Raises PlatformUnavailableError; it may run nevertheless."""
        invoke_later(self._client, self._function, {"step": step, "shard": shard})
