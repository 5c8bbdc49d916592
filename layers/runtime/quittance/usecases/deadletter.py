"""Dead letters: messages of the task queue that failed repeatedly. Each one has a defined end; none is dropped.

its task is funded        → taken over as soon as its lease has lapsed, and refunded
its task is settled       → nothing to do
its task does not exist   → the request was refused before money moved: TaskRefused is emitted
it cannot be parsed       → it stays in the dead-letter queue, and an alarm calls an operator
"""

from typing import Final

from quittance import observability
from quittance.api import events, messages
from quittance.api.messages import Message
from quittance.api.models import DirectTaskRequest
from quittance.errors import QuittanceError, RequestError
from quittance.ledger.channels import escrow_id_of
from quittance.ledger.escrow import Escrow
from quittance.limits import DEAD_LETTER_HIDDEN_S
from quittance.observability import Metric, count, logger
from quittance.platform import Platform
from quittance.proof import ticket as tickets
from quittance.proof.statement import ProofError
from quittance.run import Outcome
from quittance.store.queue import Delivery, NotDoneError
from quittance.usecases import notify, settle
from quittance.usecases.work import wait_s

_REFUSED: Final = "not_taken"
_UNDELIVERED: Final = "The platform could not run the task. The budget was refunded."


def handle(platform: Platform, delivery: Delivery) -> None:
    """Refunds the task of a dead letter, or emits its refusal.

    Raises NotDoneError if the message must stay in the dead-letter queue: for a later attempt, or for an operator.
    """
    try:
        message = messages.read(delivery.body)
    except RequestError as exc:
        count(Metric.DEAD_UNREADABLE)
        logger.error("dead letter unreadable", message_id=delivery.message_id)
        platform.dead_letters.hide(delivery.receipt_handle, seconds=DEAD_LETTER_HIDDEN_S)
        raise NotDoneError from exc
    try:
        _resolve(platform, message, delivery)
    except QuittanceError as exc:  # a runner may still hold the task, or a part of the platform is unavailable
        again_s = wait_s(exc, delivery) or DEAD_LETTER_HIDDEN_S
        logger.warning(
            "dead letter not resolved", message_id=delivery.message_id, reason=type(exc).__name__, again_s=again_s
        )
        platform.dead_letters.hide(delivery.receipt_handle, seconds=again_s)
        raise NotDoneError from exc


def _resolve(platform: Platform, message: Message, delivery: Delivery) -> None:
    request = message.request
    escrow = platform.ledger.find(escrow_id_of(request.user_id or "", request.task_id))
    same = escrow and request.as_funded(escrow.request_sha256, input_sha256=message.input_sha256)
    if escrow is None or not same or not _is_payers(request, escrow):
        _emit_refused(platform, request, delivery)
        return
    observability.about(escrow)
    if escrow.settlement is None:
        settle.refund(platform, escrow, Outcome.UNDELIVERED, _UNDELIVERED)
        count(Metric.DEAD_REFUNDED)


def _is_payers(request: DirectTaskRequest, escrow: Escrow) -> bool:
    """Whether the payer of a task sent this request. The task_id of a ticket's task alone shows that of nobody."""
    if escrow.ticket is None or request.ticket is None:
        return escrow.ticket is None and request.ticket is None
    if escrow.ticket.proof is None:  # the task is settled: nothing can happen to it
        return True
    try:
        claims, jws = tickets.read(request.ticket)
        tickets.check_signed(jws, escrow.ticket.proof.key)
    except ProofError:
        return False
    return (claims.channel, claims.n) == (escrow.ticket.channel_id, escrow.ticket.number)


def _emit_refused(platform: Platform, request: DirectTaskRequest, delivery: Delivery) -> None:
    """Emits that a request never became a task: no money moved, and no caller is waiting for an answer."""
    refused = events.task_refused(
        code=_REFUSED,
        detail="Every attempt from the queue was refused. Send the task as a direct request to see why.",
        request_id=delivery.message_id,
        user=request.user_id,
        task_id=request.task_id,
        agent_id=request.agent_id,
        at_ms=platform.now_ms(),
    )
    notify.emit(platform, refused)
    count(Metric.DEAD_REFUSED)
    logger.warning("task refused", user_id=request.user_id, task_id=request.task_id, agent_id=request.agent_id)
