"""Sets right what the messages left behind that could not be worked on."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.batches import each_message
from quittance.observability import entry
from quittance.platform import platform
from quittance.usecases.deadletter import bury


@entry
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry: the messages that the queue is to keep."""
    return each_message(event, context, lambda delivery: bury(platform(context), delivery))
