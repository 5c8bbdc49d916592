"""The worker of the queue: a message's task is run and settled as any other, with more time.

Messages may come twice, late, or never: the ledger alone decides what is done. A message stays in the queue until its
task is settled; one that no repetition mends goes to the dead letters (see dead_letters.py). One whose account has no
slot free goes to the end of the queue, until its escrow expires.
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
from quittance.usecases.execute import execute


def work(platform: Platform, delivery: Delivery) -> None:
    """Runs and settles the task of a message, unless it is settled already. Raises NotDoneError.

    While the task runs, its message is hidden for as long as its lease: if this worker dies, the message comes back at
    the moment when another one may take the task over.
    """

    def hide_until_it_lapses(escrow: Escrow) -> None:
        lease_ms = escrow.lease_ms - platform.now_ms()
        platform.queue.hide(delivery.receipt, seconds=max(-(-lease_ms // 1_000), 0))

    try:
        request = _whole(platform, messages.read(delivery.body))
        try:
            done = execute(
                platform, request.user_id, request, timeout_s_max=TIMEOUT_S_ASYNC_MAX, leased=hide_until_it_lapses
            )
        except TooManyRunningError as busy:
            # As a new message: it has done nothing wrong, and its deliveries are counted.
            platform.queue.send(delivery.body, of=request.user_id, delay_s=busy.retry_after_s or 0)
            count(Metric.POSTPONED)
            logger.info("waits for a slot", message_id=delivery.message_id, again_s=busy.retry_after_s)
            return
    except (QuittanceError, BlobMissingError, BlobTamperedError) as exc:
        again_s = wait_s(exc, delivery)
        count(Metric.POSTPONED)
        logger.warning("not done", message_id=delivery.message_id, reason=type(exc).__name__, again_s=again_s)
        platform.queue.hide(delivery.receipt, seconds=again_s or 0)
        raise NotDoneError from exc
    if isinstance(done, TaskPending):
        count(Metric.POSTPONED)
        raise NotDoneError  # hidden until the lease lapses: then it is settled, or free to be taken over


def wait_s(reason: Exception, delivery: Delivery) -> int | None:
    """In how many seconds a message is worth another try; None if it never is.

    A lease tells its end. How long a part of the platform is away is not known: from try to try four times as long.
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
