"""Moves old escrows from the ledger's table to S3: called by a schedule, every hour."""

from dataclasses import asdict
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.observability import observed
from quittance.platform import platform
from quittance.usecases.archive import archive


@observed
def handler(_event: object, context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. Without ArchiveAfterDays it does nothing."""
    return asdict(archive(platform(context)))
