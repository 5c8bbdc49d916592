"""Messages that could not be worked on: whoever paid gets the budget back at once, and nothing is forgotten.

its task is funded        → taken over as soon as its lease has lapsed, and refunded
its task is settled       → nothing is left to do
there is no such task     → the request was refused before money moved: told on the bus
nobody can read it        → it stays in the queue of the dead letters, and wakes a person
"""

from typing import Final

from quittance import observability
from quittance.api import events, messages
from quittance.api.messages import Message
from quittance.api.models import DirectTaskRequest
from quittance.errors import QuittanceError, RequestError
from quittance.ledger import escrow as escrows
from quittance.limits import DEAD_LETTER_HIDDEN_S
from quittance.observability import Metric, count, logger
from quittance.platform import Platform
from quittance.run import Outcome
from quittance.store.queue import Delivery, NotDoneError
from quittance.usecases import notify, settle
from quittance.usecases.work import wait_s

_REFUSED: Final = "not_taken"
_UNDELIVERED: Final = "The platform could not get the task done; the budget was refunded."


def bury(platform: Platform, delivery: Delivery) -> None:
    """Sets right what a dead letter left behind. Raises NotDoneError: it comes again, or waits for a person."""
    try:
        message = messages.read(delivery.body)
    except RequestError as exc:
        count(Metric.DEAD_UNREADABLE)
        logger.error("dead letter unreadable", message_id=delivery.message_id)
        platform.dead_letters.hide(delivery.receipt, seconds=DEAD_LETTER_HIDDEN_S)
        raise NotDoneError from exc
    try:
        _set_right(platform, message, delivery)
    except QuittanceError as exc:  # its runner may still be alive, or the platform is away
        again_s = wait_s(exc, delivery) or DEAD_LETTER_HIDDEN_S
        logger.warning("not set right", message_id=delivery.message_id, reason=type(exc).__name__, again_s=again_s)
        platform.dead_letters.hide(delivery.receipt, seconds=again_s)
        raise NotDoneError from exc


def _set_right(platform: Platform, message: Message, delivery: Delivery) -> None:
    escrow = platform.ledger.find(escrows.escrow_id(message.request.user_id, message.request.task_id))
    if escrow is None or escrow.request_sha256 != message.request.sha256(message.input_sha256):
        _tell_refused(platform, message.request, delivery)
        return
    observability.about(escrow)
    if escrow.settlement is None:
        settle.refund(platform, escrow, Outcome.UNDELIVERED, _UNDELIVERED)
        count(Metric.DEAD_REFUNDED)


def _tell_refused(platform: Platform, request: DirectTaskRequest, delivery: Delivery) -> None:
    """Tells that a request never became a task: no money moved, and nobody waits for an answer."""
    refused = events.task_refused(
        code=_REFUSED,
        detail="Every try of the queue was refused. Ask for the task directly to learn why.",
        request_id=delivery.message_id,
        user=request.user_id,
        task_id=request.task_id,
        agent_id=request.agent_id,
        at_ms=platform.now_ms(),
    )
    notify.put(platform, refused)
    count(Metric.DEAD_REFUSED)
    logger.warning("task refused", user_id=request.user_id, task_id=request.task_id, agent_id=request.agent_id)
