"""Refunds expired escrows and credits settled ones: called by a schedule, every minute."""

from dataclasses import asdict
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.observability import observed
from quittance.platform import platform
from quittance.usecases.sweep import sweep


@observed
def handler(_event: object, context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry."""
    return asdict(sweep(platform(context)))
