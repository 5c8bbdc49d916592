"""Delivers the events that wait for webhooks: called by their queue."""

from typing import Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance import delivering
from quittance.bootstrap import platform
from quittance.delivering import Delivery, Ended
from quittance.observability import entry

processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)


class _NotDoneError(Exception):
    """The queue must keep the message."""


@entry
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry: the messages that are not done are reported, and stay in the queue."""

    def deliver(record: SQSRecord) -> None:
        delivery, tries = Delivery.model_validate_json(record.body), int(record.attributes.approximate_receive_count)
        ended = delivering.deliver(platform(context), delivery, receipt_handle=record.receipt_handle, tries=tries)
        if ended in {Ended.TO_REPEAT, Ended.GIVEN_UP}:
            raise _NotDoneError

    return dict(process_partial_response(event, deliver, processor, context))
