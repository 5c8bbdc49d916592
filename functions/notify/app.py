"""Tells what the tables' streams say: settled tasks, published and rejected agents."""

from typing import Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.dynamo_db_stream_event import DynamoDBRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.observability import entry, logger
from quittance.platform import platform
from quittance.usecases import notify

processor = BatchProcessor(
    EventType.DynamoDBStreams,
    raise_on_entire_batch_failure=False,
    logger=logger,  # type: ignore[arg-type]  # Powertools' own passes all calls on to a logging.Logger
)


@entry
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. Lambda goes on from the first record that is reported, so those behind it may come again."""

    def tell(record: DynamoDBRecord) -> None:
        notify.tell(platform(context), record.raw_event)

    return dict(process_partial_response(event, tell, processor, context))
