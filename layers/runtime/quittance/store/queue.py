"""SQS: the queue of tasks, the dead-letter queues, and the queue of webhook deliveries."""

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
    """The message was not processed and stays in the queue. The raiser has logged the reason."""


class Queue:
    """A queue by its URL."""

    def __init__(self, client: "SQSClient", *, url: str) -> None:
        self._client = client
        self._url = url

    def send(self, body: str, *, of: str, delay_s: int = 0) -> None:
        """Sends a message in the group of the account `of`, so that no account delays the others (SQS fair queues).

        The message is visible after `delay_s` seconds. Raises PlatformUnavailableError; it may have been sent
        nevertheless.
        """
        group = hashlib.sha256(of.encode()).hexdigest()  # a group id is shorter than an account id may be
        try:
            self._client.send_message(QueueUrl=self._url, MessageBody=body, MessageGroupId=group, DelaySeconds=delay_s)
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc

    def hide(self, receipt_handle: str, *, seconds: int) -> None:
        """Lets the message come back in so many seconds, unless it is deleted by then.

        If the call fails, the message becomes visible after the queue's visibility timeout: later, but not never.
        """
        try:
            self._client.change_message_visibility(
                QueueUrl=self._url, ReceiptHandle=receipt_handle, VisibilityTimeout=seconds
            )
        except (ClientError, BotoCoreError):
            logger.warning("visibility not changed")
