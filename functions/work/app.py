"""Works on the queue of tasks: one message at a time, because one run may take all the time that there is."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.batches import each_message
from quittance.observability import entry
from quittance.platform import platform
from quittance.usecases.work import work


@entry
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry: the messages that the queue is to keep."""
    return each_message(event, context, lambda delivery: work(platform(context), delivery))
