"""Keeps the listings: called by the tables' streams, and by an operator to list what was stored before."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.batches import each_record
from quittance.observability import observed
from quittance.platform import platform
from quittance.usecases.listings import backfill, list_change


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. Returns the records that Lambda is to deliver again, or where the backfill continues."""
    if "backfill" in event:
        return backfill(platform(context), event["backfill"])
    listed: set[str] = set()
    return each_record(event, context, lambda record: list_change(platform(context), record, listed))
