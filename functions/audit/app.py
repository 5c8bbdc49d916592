"""Recomputes the ledger's invariants: called by the schedule, every day, and by `make audit`."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance import auditing
from quittance.bootstrap import platform
from quittance.observability import entry, logger, metrics


@entry
@metrics.log_metrics
def handler(_event: object, context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry: the equations with both sides, and every difference by its item."""
    result = auditing.run(platform(context))
    metrics.add_metric(name="AuditDifferences", unit="Count", value=len(result.differences))
    for difference in result.differences:
        logger.error("audit difference", invariant=difference.invariant, at=difference.at)
    return {"differences": len(result.differences), "report": auditing.report(result)}
