"""Sets right what the messages left behind that could not be worked on."""

from typing import Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.bootstrap import platform
from quittance.dead_letters import bury
from quittance.observability import entry
from quittance.store.queue import Delivery

# A message that failed is an answer, not an exception: raised, it would keep SQS from hearing which one it was.
_processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)


@entry
def handler(event: dict[str, Any], context: LambdaContext) -> Any:  # noqa: ANN401 - Powertools' TypedDict
    """Lambda's entry: the messages that the queue is to keep."""

    def bury_one(record: SQSRecord) -> None:
        number = int(record.attributes.approximate_receive_count)
        bury(platform(context), Delivery(record.message_id, record.body, record.receipt_handle, number))

    return process_partial_response(event, bury_one, _processor, context)
