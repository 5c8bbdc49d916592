"""Recomputes the ledger's invariants: called by the schedule, every day, and by `make audit`."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.observability import Metric, entry, logger, measure
from quittance.platform import platform
from quittance.usecases import audit


@entry
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry: the equations with both sides, every difference, and on `{"standings": true}` every standing."""
    result = audit.run(platform(context))
    measure(Metric.AUDIT_DIFFERENCES, result.count)
    measure(Metric.PAYOUTS_WAITING, result.payouts_waiting)
    measure(Metric.OLDEST_PAYOUT, result.oldest_payout_age_ms)
    for difference in result.differences:
        logger.error("audit difference", invariant=difference.invariant, at=difference.at)
    answer = {"differences": result.count, "report": audit.report(result)}
    return answer | ({"standings": audit.standings(result)} if event.get("standings") else {})
