"""Delivering an event to the webhook of its task: one try, and what becomes of the message after it.

    2xx   done
    410   done: the receiver wants no more of it
    else  again, after a pause that doubles, until the queue has given it out WEBHOOK_TRIES_MAX times

A receiver that is never reached is counted, and wakes nobody: the fault is the receiver's, and the result can be read.
"""

import random
from enum import StrEnum
from http import HTTPStatus
from typing import Final, Self

from pydantic import BaseModel, ConfigDict

from quittance import outbound, webhook
from quittance.bootstrap import Platform
from quittance.events import Event
from quittance.limits import WEBHOOK_TRIES_MAX, WEBHOOK_WAIT_S_MAX, WEBHOOK_WAIT_S_MIN
from quittance.observability import Metric, count, logger
from quittance.outbound import UndeliveredError

_USER_AGENT: Final = "Quittance-Webhook/1"


class Delivery(BaseModel):
    """A message of the webhook queue: what is to be sent, byte for byte, and where to."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    url: str
    event_id: str
    body: str

    @classmethod
    def of(cls, event: Event, url: str) -> Self:
        """The delivery of an event to a URL."""
        return cls(url=url, event_id=event.event_id, body=event.json_text())


class Ended(StrEnum):
    """How one try ended."""

    DELIVERED = "delivered"
    GONE = "gone"
    TO_REPEAT = "to repeat"
    GIVEN_UP = "given up"


def deliver(platform: Platform, delivery: Delivery, *, receipt_handle: str, tries: int) -> Ended:
    """Sends an event to a webhook once. A message that is not done yet is put off: its queue must keep it.

    `tries` counts this one. Raises PlatformUnavailableError if nothing could be signed; the message then comes again.
    """
    ended, why = _try(platform, delivery)
    if ended is Ended.TO_REPEAT:
        count(Metric.WEBHOOKS_FAILED)
        last = tries >= WEBHOOK_TRIES_MAX
        ended = Ended.GIVEN_UP if last else Ended.TO_REPEAT
        # The last one at once: the queue moves it to the dead ones when it is asked for it again.
        platform.webhooks.hide(receipt_handle, seconds=0 if last else pause_s(tries))
    count(Metric.WEBHOOKS_DELIVERED, ended is Ended.DELIVERED)
    count(Metric.WEBHOOKS_GIVEN_UP, ended in {Ended.GIVEN_UP, Ended.GONE})
    # Never the URL: its path or query may be somebody's secret.
    logger.info("webhook", event_id=delivery.event_id, ended=ended, why=why, tries=tries)
    return ended


def pause_s(tries: int) -> int:
    """How long to wait after so many tries: doubling, capped, and spread over the upper half against coming in step."""
    most = min(WEBHOOK_WAIT_S_MAX, WEBHOOK_WAIT_S_MIN * 2 ** (tries - 1))
    return random.randint(-(-most // 2), most)  # noqa: S311 - spreads load, hides nothing


def _try(platform: Platform, delivery: Delivery) -> tuple[Ended, str]:
    body, now_ms = delivery.body.encode(), platform.now_ms()
    signature = webhook.sign(
        body,
        url=delivery.url,
        event_id=delivery.event_id,
        issuer=platform.settings.receipt_issuer,
        now_ms=now_ms,
        key=platform.keys.signing_key(now_s=now_ms // 1_000),
    )
    headers = {
        "Content-Type": "application/json",
        "User-Agent": _USER_AGENT,
        webhook.EVENT_ID_HEADER: delivery.event_id,
        webhook.SIGNATURE_HEADER: signature,
    }
    try:
        status = outbound.post(delivery.url, body, headers, private=platform.settings.webhook_private_targets)
    except UndeliveredError as error:
        return Ended.TO_REPEAT, str(error)
    if status // 100 == HTTPStatus.OK // 100:
        return Ended.DELIVERED, str(status)
    return Ended.GONE if status == HTTPStatus.GONE else Ended.TO_REPEAT, str(status)
