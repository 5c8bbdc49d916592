"""Where events go: the stack's event bus."""

from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from quittance.errors import PlatformUnavailableError
from quittance.limits import EVENT_BYTES_MAX

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient


class Bus:
    """The stack's event bus. Whoever reads it reads through a rule of their own."""

    def __init__(self, client: "EventBridgeClient", *, name: str) -> None:
        self._client = client
        self._name = name

    def put(self, *, source: str, type_: str, detail: str) -> None:
        """Puts one event on the bus; `detail` is a JSON object.

        Raises PlatformUnavailableError if the bus did not take it: the call can succeed although an entry was refused.
        Raises ValueError for a detail that no bus takes.
        """
        if len(source) + len(type_) + len(detail.encode()) > EVENT_BYTES_MAX:
            msg = f"an event has at most {EVENT_BYTES_MAX} bytes"
            raise ValueError(msg)
        entry = {"EventBusName": self._name, "Source": source, "DetailType": type_, "Detail": detail}
        try:
            answer = self._client.put_events(Entries=[entry])  # type: ignore[list-item]  # built as a plain dict
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc
        if answer["FailedEntryCount"]:
            raise PlatformUnavailableError
