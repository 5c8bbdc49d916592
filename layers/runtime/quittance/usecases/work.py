"""The worker of the task queue: runs and settles the task of a message like any other task, but with more time.

Messages may be delivered twice, late, or never: the ledger alone decides what is done. A message stays in the queue
until its task is settled. One that fails every time goes to the dead-letter queue (see deadletter.py). If the account
has no free slot, the message goes to the end of the queue, until its escrow expires.
"""

from quittance.api import messages
from quittance.api.messages import Message
from quittance.api.models import DirectTaskRequest, TaskPending
from quittance.errors import QuittanceError, TaskInProgressError, TooManyRunningError
from quittance.ledger.escrow import Escrow
from quittance.limits import TIMEOUT_S_ASYNC_MAX
from quittance.observability import Metric, count, logger
from quittance.platform import Platform
from quittance.store.blobs import BlobMissingError, BlobTamperedError
from quittance.store.queue import Delivery, NotDoneError
from quittance.usecases.execute import account_of, execute, payer_of


def work(platform: Platform, delivery: Delivery) -> None:
    """Runs and settles the task of a message, unless it is settled already. Raises NotDoneError.

    While the task runs, its message is hidden until the lease ends: if this worker crashes, SQS redelivers the message
    at the moment when another worker may take the task over.
    """

    def hide_until_it_lapses(escrow: Escrow) -> None:
        lease_ms = escrow.lease_ms - platform.now_ms()
        platform.queue.hide(delivery.receipt_handle, seconds=max(-(-lease_ms // 1_000), 0))

    try:
        request = _whole(platform, messages.read(delivery.body))
        payer = payer_of(platform, request)
        try:
            done = execute(platform, payer, request, timeout_s_max=TIMEOUT_S_ASYNC_MAX, leased=hide_until_it_lapses)
        except TooManyRunningError as busy:
            # Sent as a new message: waiting is no failure, and this message's deliveries count towards the dead-letter
            # queue.
            platform.queue.send(delivery.body, of=account_of(payer), delay_s=busy.retry_after_s or 0)
            count(Metric.POSTPONED)
            logger.info("waits for a slot", message_id=delivery.message_id, again_s=busy.retry_after_s)
            return
    except (QuittanceError, BlobMissingError, BlobTamperedError) as exc:
        again_s = wait_s(exc, delivery)
        count(Metric.POSTPONED)
        logger.warning("not done", message_id=delivery.message_id, reason=type(exc).__name__, again_s=again_s)
        platform.queue.hide(delivery.receipt_handle, seconds=again_s or 0)
        raise NotDoneError from exc
    if isinstance(done, TaskPending):
        count(Metric.POSTPONED)
        raise NotDoneError  # hidden until the lease lapses: then the task is settled or can be taken over


def wait_s(reason: Exception, delivery: Delivery) -> int | None:
    """After how many seconds to try a message again; None if trying again cannot help.

    The end of a lease is known. How long a part of the platform stays unavailable is not: the wait grows fourfold with
    each delivery, up to the fifth.
    """
    if not isinstance(reason, QuittanceError) or reason.retry_after_s is None:
        return None
    if isinstance(reason, TaskInProgressError):
        return reason.retry_after_s
    return reason.retry_after_s << 2 * min(delivery.number - 1, 4)


def _whole(platform: Platform, message: Message) -> DirectTaskRequest:
    """The request with its input. Raises BlobMissingError, BlobTamperedError, PlatformUnavailableError."""
    if not message.by_digest:
        return message.request
    return message.request.with_stdin(platform.outputs.load_input(message.input_sha256))
