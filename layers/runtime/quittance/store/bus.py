"""The stack's event bus (EventBridge)."""

from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from quittance.errors import PlatformUnavailableError
from quittance.limits import EVENT_BYTES_MAX

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient


class Bus:
    """The stack's event bus. Each consumer has its own rule."""

    def __init__(self, client: "EventBridgeClient", *, name: str) -> None:
        self._client = client
        self._name = name

    def put(self, *, source: str, type_: str, detail: str) -> None:
        """Puts one event on the bus; `detail` is a JSON object.

        Raises PlatformUnavailableError if the bus did not accept the event; the API call can succeed even then. Raises
        ValueError for an event that is too large for any bus.
        """
        if len(source) + len(type_) + len(detail.encode()) > EVENT_BYTES_MAX:
            msg = f"an event must have at most {EVENT_BYTES_MAX} bytes"
            raise ValueError(msg)
        entry = {"EventBusName": self._name, "Source": source, "DetailType": type_, "Detail": detail}
        try:
            answer = self._client.put_events(Entries=[entry])  # type: ignore[list-item]  # built as a plain dict
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc
        if answer["FailedEntryCount"]:
            raise PlatformUnavailableError
