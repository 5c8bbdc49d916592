"""Delivers the events that wait for webhooks: called by their queue."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.batches import each_message
from quittance.bootstrap import platform
from quittance.delivering import deliver
from quittance.observability import entry


@entry
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry: the messages that the queue is to keep."""
    return each_message(event, context, lambda delivery: deliver(platform(context), delivery))
