"""Batches of SQS messages and of stream records: processed item by item, and a failed one does not block the rest."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response

from quittance.observability import logger
from quittance.store.queue import Delivery, NotDoneError

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.data_classes.dynamo_db_stream_event import DynamoDBRecord
    from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
    from aws_lambda_powertools.utilities.typing import LambdaContext

# The handler returns the failed items and never raises: an exception would not say which of them failed.
# Powertools passes each item by the parameter name `record`.
_MESSAGES: Final = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)
_RECORDS: Final = BatchProcessor(EventType.DynamoDBStreams, raise_on_entire_batch_failure=False)


def each_message(
    event: dict[str, Any], context: "LambdaContext", process: Callable[[Delivery], None]
) -> dict[str, Any]:
    """Processes each message of an SQS event. The response lists the messages that stay in the queue."""

    def process_message(record: "SQSRecord") -> None:
        number = int(record.attributes.approximate_receive_count)
        delivery = Delivery(record.message_id, record.body, record.receipt_handle, number)
        _logged(process, delivery, "message failed", message_id=record.message_id)

    return dict(process_partial_response(event, process_message, _MESSAGES, context))


def each_record(
    event: dict[str, Any], context: "LambdaContext", process: Callable[[Mapping[str, Any]], object]
) -> dict[str, Any]:
    """Processes each record of a DynamoDB stream event. The response lists the failed records.

    Lambda resumes at the first record listed, so records after it may be delivered again.
    """

    def process_record(record: "DynamoDBRecord") -> None:
        _logged(process, record.raw_event, "record failed", event_id=record.event_id)

    return dict(process_partial_response(event, process_record, _RECORDS, context))


def _logged(process: Callable[[Any], object], item: object, failed: str, **ids: object) -> None:
    try:
        process(item)
    except NotDoneError:  # whoever raised it has logged why
        raise
    except Exception:
        logger.exception(failed, extra=ids)
        raise
