"""Refunds what expired and credits what settled: called by the schedule, every minute."""

from dataclasses import asdict
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.bootstrap import platform
from quittance.observability import entry, logger
from quittance.sweeping import sweep


@entry
def handler(_event: object, context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry."""
    swept = asdict(sweep(platform(context)))
    logger.info("swept", **swept)
    return swept
