"""Refunds expired escrows and credits settled ones: called by a schedule, every minute."""

from dataclasses import asdict
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.observability import Metric, count, logger, measure, observed
from quittance.platform import platform
from quittance.usecases.sweep import Swept, sweep


@observed
def handler(_event: object, context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry."""
    swept = sweep(platform(context))
    _count(swept)
    logger.info("swept", **asdict(swept))
    return asdict(swept)


def _count(swept: Swept) -> None:
    count(Metric.SWEPT_EXPIRED, swept.expired)
    count(Metric.SWEPT_CREDITED, swept.credited)
    count(Metric.SWEPT_LOGGED, swept.logged)
    count(Metric.WRITTEN_OFF, swept.written_off_micro)
    count(Metric.SWEEP_FAILURES, swept.failed)
    measure(Metric.SWEEP_COMPLETE, int(swept.complete))
    measure(Metric.SWEEP_LAG, swept.lag_ms)
    measure(Metric.OLDEST_OVERDUE, swept.oldest_overdue_ms)
    if swept.published is not None:
        measure(Metric.LOG_SIZE, swept.published)
