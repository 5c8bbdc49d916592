"""Recomputes the ledger's invariants: called by a schedule, every day, and by `make audit`."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.observability import Metric, logger, measure, observed
from quittance.platform import platform
from quittance.usecases.audit import audit, report, standings


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry: the report, the number of differences, and with `{"standings": true}` all standings."""
    result = audit(platform(context))
    measure(Metric.AUDIT_DIFFERENCES, result.count)
    measure(Metric.PAYOUTS_WAITING, result.payouts_waiting)
    measure(Metric.OLDEST_PAYOUT, result.oldest_payout_age_ms)
    for difference in result.differences:
        logger.error("audit difference", invariant=difference.invariant, at=difference.at)
    answer = {"differences": result.count, "report": report(result)}
    return answer | ({"standings": standings(result)} if event.get("standings") else {})
