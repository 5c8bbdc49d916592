"""Recomputes the ledger's invariants: in one invocation, or as the parts of a state machine."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.observability import Metric, logger, measure, observed
from quittance.platform import platform
from quittance.usecases.audit import serve


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry: a part of an audit for the state machine, otherwise a whole audit with its report."""
    answer, result = serve(platform(context), event)
    if result is not None:
        measure(Metric.AUDIT_DIFFERENCES, result.count)
        measure(Metric.PAYOUTS_WAITING, result.payouts_waiting)
        measure(Metric.OLDEST_PAYOUT, result.oldest_payout_age_ms)
        for difference in result.differences:
            logger.error("audit difference", invariant=difference.invariant, at=difference.at)
    return answer
