"""Recomputes the ledger's invariants: called by the schedule, every day, and by `make audit`."""

from typing import Any

from quittance import auditing
from quittance.bootstrap import platform
from quittance.observability import entry, logger, metrics


@entry
@metrics.log_metrics
def handler(_event: object, _context: object) -> dict[str, Any]:
    """Lambda's entry: the equations with both sides, and every difference by its item."""
    result = auditing.run(platform())
    metrics.add_metric(name="AuditDifferences", unit="Count", value=len(result.differences))
    for difference in result.differences:
        logger.error("audit difference", invariant=difference.invariant, at=difference.at)
    return {"differences": len(result.differences), "report": auditing.report(result)}
