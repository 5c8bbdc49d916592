"""Refunds what expired and credits what settled: called by the schedule, every minute."""

from dataclasses import asdict
from typing import Any

from quittance.bootstrap import platform
from quittance.observability import entry, logger
from quittance.sweeping import sweep


@entry
def handler(_event: object, context: Any) -> dict[str, Any]:  # noqa: ANN401 - Lambda's context has no public type
    """Lambda's entry."""
    swept = asdict(sweep(platform(), remaining_ms=context.get_remaining_time_in_millis))
    logger.info("swept", **swept)
    return swept
