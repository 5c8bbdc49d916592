"""Makes posted modules active agents: called by S3 for each new object, and by `execute` after an engine upgrade."""

from typing import Any

from aws_lambda_powertools.utilities.data_classes import S3Event
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance import publishing
from quittance.bootstrap import platform
from quittance.observability import entry


@entry
def handler(event: dict[str, Any], context: LambdaContext) -> list[str]:
    """Lambda's entry. Lambda repeats an event whose handling raised; both are safe to repeat."""
    if "recompile" in event:
        publishing.recompile(platform(context), event["recompile"])
        return []
    return [publishing.publish(platform(context), record.s3.get_object.key) for record in S3Event(event).records]
