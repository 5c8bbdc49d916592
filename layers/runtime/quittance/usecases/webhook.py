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
    """The body of a message of the webhook queue: what is to be sent, byte for byte, and where to."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    url: str
    event_id: str
    body: str

    @classmethod
    def of(cls, event: Event, url: str) -> Self:
        """The notice of an event to a URL."""
        return cls(url=url, event_id=event.event_id, body=event.json_text())


class Ended(StrEnum):
    """How one try ended."""

    DELIVERED = "delivered"
    GONE = "gone"
    TO_REPEAT = "to repeat"
    GIVEN_UP = "given up"


def deliver(platform: Platform, delivery: Delivery) -> None:
    """Sends the event of a message to its webhook once. Raises NotDoneError: it comes again, or goes to the dead ones.

    Raises PlatformUnavailableError if nothing could be signed.
    """
    notice, tries = Notice.model_validate_json(delivery.body), delivery.number
    ended, why = _try(platform, notice)
    if ended is Ended.TO_REPEAT:
        count(Metric.WEBHOOKS_FAILED)
        last = tries >= WEBHOOK_TRIES_MAX
        ended = Ended.GIVEN_UP if last else Ended.TO_REPEAT
        # The last one at once: the queue moves it to the dead ones when it is asked for it again.
        platform.webhooks.hide(delivery.receipt, seconds=0 if last else pause_s(tries))
    count(Metric.WEBHOOKS_DELIVERED, ended is Ended.DELIVERED)
    count(Metric.WEBHOOKS_GIVEN_UP, ended in {Ended.GIVEN_UP, Ended.GONE})
    # Never the URL: its path or query may be somebody's secret.
    logger.info("webhook", event_id=notice.event_id, ended=ended, why=why, tries=tries)
    if ended in {Ended.TO_REPEAT, Ended.GIVEN_UP}:
        raise NotDoneError


def pause_s(tries: int) -> int:
    """How long to wait after so many tries: doubling, capped, and spread over the upper half against coming in step."""
    most = min(WEBHOOK_WAIT_S_MAX, WEBHOOK_WAIT_S_MIN * 2 ** (tries - 1))
    return random.randint(-(-most // 2), most)  # noqa: S311 - spreads load, hides nothing


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
