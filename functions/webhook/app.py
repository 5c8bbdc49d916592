"""Delivers events to webhooks: called by the webhook queue."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.batches import each_message
from quittance.observability import observed
from quittance.platform import platform
from quittance.usecases.webhook import deliver


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. Returns the messages that stay in the queue."""
    return each_message(event, context, lambda delivery: deliver(platform(context), delivery))
