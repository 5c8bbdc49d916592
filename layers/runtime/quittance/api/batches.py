"""A batch of a queue's messages, each taken by itself: one that is not done with is kept, and holds up no other."""

from collections.abc import Callable
from typing import Any, Final

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.observability import logger
from quittance.store.queue import Delivery, NotDoneError

# A message that failed is an answer, not an exception: raised, it would keep SQS from hearing which one it was.
_PROCESSOR: Final = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)


def each_message(event: dict[str, Any], context: LambdaContext, take: Callable[[Delivery], None]) -> dict[str, Any]:
    """Takes all messages of an event; the answer tells SQS which ones to keep."""

    def take_one(record: SQSRecord) -> None:
        number = int(record.attributes.approximate_receive_count)
        try:
            take(Delivery(record.message_id, record.body, record.receipt_handle, number))
        except NotDoneError:
            raise
        except Exception:
            logger.exception("message failed", message_id=record.message_id)
            raise

    return dict(process_partial_response(event, take_one, _PROCESSOR, context))
