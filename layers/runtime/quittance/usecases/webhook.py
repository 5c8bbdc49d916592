"""Delivery of an event to its task's webhook: one attempt, and what happens to the message afterwards.

    2xx   delivered
    410   given up: the receiver wants no more of these events
    else  retried after a delay that doubles, until the queue has delivered the message WEBHOOK_TRIES_MAX times

An event that could never be delivered is counted but raises no alarm: the fault is the receiver's, and the task's
result can still be read.
"""

import random
from enum import StrEnum
from http import HTTPStatus
from typing import Final, Self

from pydantic import BaseModel, ConfigDict

from quittance.api import outbound
from quittance.api.events import Event
from quittance.api.outbound import UndeliveredError
from quittance.limits import WEBHOOK_TRIES_MAX, WEBHOOK_WAIT_S_MAX, WEBHOOK_WAIT_S_MIN
from quittance.observability import Metric, count, logger
from quittance.platform import Platform
from quittance.proof import webhook
from quittance.proof.statement import Purpose
from quittance.store.queue import Delivery, NotDoneError

_USER_AGENT: Final = "Quittance-Webhook/1"


class Notice(BaseModel):
    """The body of a message in the webhook queue: the exact bytes to send, and the URL."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    url: str
    event_id: str
    body: str

    @classmethod
    def of(cls, event: Event, url: str) -> Self:
        """The notice that sends an event to a URL."""
        return cls(url=url, event_id=event.event_id, body=event.json_text())


class Ended(StrEnum):
    """How one attempt ended."""

    DELIVERED = "delivered"
    GONE = "gone"
    TO_REPEAT = "to repeat"
    GIVEN_UP = "given up"


def deliver(platform: Platform, delivery: Delivery) -> None:
    """Sends a message's event to its webhook once.

    Raises NotDoneError if the attempt failed: SQS redelivers the message or moves it to the dead-letter queue. Raises
    PlatformUnavailableError if the event could not be signed.
    """
    notice, tries = Notice.model_validate_json(delivery.body), delivery.number
    ended, why = _try(platform, notice)
    if ended is Ended.TO_REPEAT:
        count(Metric.WEBHOOKS_FAILED)
        last = tries >= WEBHOOK_TRIES_MAX
        ended = Ended.GIVEN_UP if last else Ended.TO_REPEAT
        # After the last attempt do not hide it: SQS moves it to the dead-letter queue at the next receive.
        platform.webhooks.hide(delivery.receipt_handle, seconds=0 if last else delay_s(tries))
    count(Metric.WEBHOOKS_DELIVERED, ended is Ended.DELIVERED)
    count(Metric.WEBHOOKS_GIVEN_UP, ended in {Ended.GIVEN_UP, Ended.GONE})
    # Never log the URL: its path or query may contain a secret.
    logger.info("webhook", event_id=notice.event_id, ended=ended, why=why, tries=tries)
    if ended in {Ended.TO_REPEAT, Ended.GIVEN_UP}:
        raise NotDoneError


def delay_s(tries: int) -> int:
    """The delay after a number of attempts: doubles each time, is capped, and has random jitter in its upper half."""
    most = min(WEBHOOK_WAIT_S_MAX, WEBHOOK_WAIT_S_MIN * 2 ** (tries - 1))
    return random.randint(-(-most // 2), most)  # noqa: S311 - jitter, not a secret


def _try(platform: Platform, notice: Notice) -> tuple[Ended, str]:
    body, now_ms = notice.body.encode(), platform.now_ms()
    signature = webhook.sign(
        body,
        url=notice.url,
        event_id=notice.event_id,
        issuer=platform.settings.receipt_issuer,
        now_ms=now_ms,
        key=platform.signing_key(Purpose.WEBHOOK, at_ms=now_ms),
    )
    headers = {
        "Content-Type": "application/json",
        "User-Agent": _USER_AGENT,
        webhook.EVENT_ID_HEADER: notice.event_id,
        webhook.SIGNATURE_HEADER: signature,
    }
    try:
        status = outbound.post(notice.url, body, headers, loopback=platform.settings.webhook_loopback_targets)
    except UndeliveredError as error:
        return Ended.TO_REPEAT, str(error)
    if status // 100 == HTTPStatus.OK // 100:
        return Ended.DELIVERED, str(status)
    return Ended.GONE if status == HTTPStatus.GONE else Ended.TO_REPEAT, str(status)
