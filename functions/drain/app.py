"""Does one step of the sweep, of one work shard: called by the sweep for a large backlog."""

from dataclasses import asdict
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.observability import observed
from quittance.platform import platform
from quittance.usecases.drain import drain


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. After an exception nothing is retried: the next sweep looks again."""
    return asdict(drain(platform(context), event))
