"""Makes posted modules active agents: called by S3 for each new object, by `execute` after an engine upgrade, and by
the queue of those events that failed three times.
"""

import json
from typing import Any

from aws_lambda_powertools.utilities.data_classes import S3Event
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.observability import observed
from quittance.platform import platform
from quittance.usecases import publish


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any] | list[str]:
    """Lambda's entry. Lambda repeats an event whose handling raised; all are safe to repeat."""
    if "recompile" in event:
        publish.recompile(platform(context), event["recompile"])
        return []
    if event["Records"][0]["eventSource"] == "aws:sqs":
        from quittance.api.batches import each_message  # seldom needed, and it loads asyncio

        return each_message(event, context, lambda delivery: _give_up(context, delivery.body))
    return [publish.publish(platform(context), *posted) for posted in _posted(event)]


def _give_up(context: LambdaContext, body: str) -> None:
    for posted in _posted(json.loads(body)["requestPayload"]):
        publish.give_up(platform(context), *posted)


def _posted(event: dict[str, Any]) -> list[tuple[str, str]]:
    """Key and version of each object; none in an event that is not S3's."""
    objects = [record.s3.get_object for record in S3Event(event).records] if "Records" in event else []
    return [(found.key, found.version_id or "") for found in objects]
