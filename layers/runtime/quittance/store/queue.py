"""SQS: the queues of tasks, of messages that nobody could work on, and of events that wait for webhooks."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from quittance.errors import PlatformUnavailableError
from quittance.observability import logger

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient


@dataclass(frozen=True, slots=True)
class Delivery:
    """One receive of a message. `receipt_handle` is valid for this delivery only; `number` counts deliveries from 1."""

    message_id: str
    body: str
    receipt_handle: str
    number: int


class NotDoneError(Exception):
    """The message is not done with: the queue keeps it. Whoever raises this has logged why."""


class Queue:
    """A queue by its URL."""

    def __init__(self, client: "SQSClient", *, url: str) -> None:
        self._client = client
        self._url = url

    def send(self, body: str, *, of: str, delay_s: int = 0) -> None:
        """Puts a message of somebody's into the queue: one account's many do not delay others' (SQS fair queues).

        It is seen after `delay_s` seconds. Raises PlatformUnavailableError: it may be there nevertheless.
        """
        group = hashlib.sha256(of.encode()).hexdigest()  # a group's name has fewer characters than an account's
        try:
            self._client.send_message(QueueUrl=self._url, MessageBody=body, MessageGroupId=group, DelaySeconds=delay_s)
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc

    def hide(self, receipt_handle: str, *, seconds: int) -> None:
        """Lets the message come back in so many seconds, unless it is deleted by then.

        If that fails, it comes back when the queue's own time is over: later, but it comes.
        """
        try:
            self._client.change_message_visibility(
                QueueUrl=self._url, ReceiptHandle=receipt_handle, VisibilityTimeout=seconds
            )
        except (ClientError, BotoCoreError):
            logger.warning("visibility not changed")
