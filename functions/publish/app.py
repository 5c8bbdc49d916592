"""Publishes uploaded modules: called by S3 for each object, by `execute` after an engine upgrade, and by the queue of
S3 events that failed three times.
"""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.observability import observed
from quittance.platform import platform
from quittance.usecases import publish


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any] | list[str]:
    """Lambda's entry. Lambda retries an event after an exception; handling it again is safe."""
    if "recompile" in event:
        publish.recompile(platform(context), event["recompile"])
        return []
    if event["Records"][0]["eventSource"] == "aws:sqs":
        from quittance.api.batches import each_message  # rarely needed, and it loads asyncio

        return each_message(event, context, lambda delivery: publish.give_up_all(platform(context), delivery.body))
    return publish.publish_all(platform(context), event)
