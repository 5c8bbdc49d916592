"""Drains one queue of the sweep: one step, of one work shard, until nothing is left or the invocation's time runs out.

The sweep starts drains for a backlog that is too large for itself (see sweep.py). A drain that is lost, doubled or cut
off does no harm: every step is idempotent, the ledger's conditions decide, and the sweep looks again every minute.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from quittance.observability import logger
from quittance.platform import Platform
from quittance.usecases.sweep import Steps, Swept, count_work


def drain(platform: Platform, event: Mapping[str, Any]) -> Swept:
    """Does the step that an event names. Raises ValueError for an unknown step, and PlatformUnavailableError.

    Its metrics say what it did, not whether the sweep is complete: only the sweep sees all queues.
    """
    steps = Steps(platform, shard=event.get("shard"), is_drain=True)
    step = steps.named(event.get("step"))
    try:
        steps.done.complete = step()
    finally:
        count_work(steps.done)
    logger.info("drained", step=event.get("step"), shard=steps.shard, **asdict(steps.done))
    return steps.done
