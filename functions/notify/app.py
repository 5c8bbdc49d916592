"""Emits events for settled tasks, moved payouts and ended uploads: called by the tables' streams."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.batches import each_record
from quittance.observability import observed
from quittance.platform import platform
from quittance.usecases.notify import emit_change


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. Returns the records that Lambda is to deliver again."""
    return each_record(event, context, lambda record: emit_change(platform(context), record))
