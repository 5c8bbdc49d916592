"""Where events go: the stack's event bus, and the queue of what waits to be delivered to webhooks."""

import hashlib
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from quittance.errors import PlatformUnavailableError
from quittance.limits import EVENT_BYTES_MAX

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_sqs import SQSClient


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


class WebhookQueue:
    """The deliveries that wait: each message stays until it is done, or was tried too often."""

    def __init__(self, client: "SQSClient", *, url: str) -> None:
        self._client = client
        self._url = url

    def send(self, body: str, *, of: str) -> None:
        """Adds a message of somebody's, whose many do not delay others' (SQS fair queues).

        Raises PlatformUnavailableError.
        """
        group = hashlib.sha256(of.encode()).hexdigest()  # a group's name has fewer characters than an account's
        try:
            self._client.send_message(QueueUrl=self._url, MessageBody=body, MessageGroupId=group)
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc

    def postpone(self, receipt_handle: str, *, seconds: int) -> None:
        """Hides a received message for so long. Raises PlatformUnavailableError."""
        try:
            self._client.change_message_visibility(
                QueueUrl=self._url, ReceiptHandle=receipt_handle, VisibilityTimeout=seconds
            )
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc
