"""Telling what has happened: from a change in a table's stream to an event on the bus, and to the task's webhook.

Nothing here is on the path of a task. The table's own stream is the outbox: a settlement that is written is in it, one
that is not is not, and the money moves whether anybody listens or not.
"""

from collections.abc import Mapping
from typing import Any

from quittance.api import events
from quittance.api.events import Event
from quittance.observability import Metric, count, logger
from quittance.platform import Platform
from quittance.store.ledger import left_funded, payout_moved
from quittance.store.registry import upload_moved
from quittance.usecases.webhook import Notice


def tell(platform: Platform, record: Mapping[str, Any]) -> Event | None:
    """Tells of one record of a table's stream, if there is anything to tell; safe to repeat.

    Raises PlatformUnavailableError if the event may not have been taken: the record must come again.
    """
    change = record["dynamodb"]
    before, after = change.get("OldImage", {}), change.get("NewImage", {})
    escrow = left_funded(before, after)
    if escrow and escrow.settlement:
        settled = events.task_settled(escrow, escrow.settlement)
        with logger.append_context_keys(task_id=escrow.task_id, escrow_id=escrow.escrow_id, agent_id=escrow.agent_id):
            put(platform, settled)
        if escrow.webhook:
            platform.webhooks.send(Notice.of(settled, escrow.webhook).model_dump_json(), of=escrow.payer)
        return settled
    if payout := payout_moved(before, after):
        moved = events.payout_moved(payout)
        put(platform, moved)
        return moved
    agent = upload_moved(before, after)
    ended = events.upload_ended(agent, at_ms=int(change["ApproximateCreationDateTime"] * 1_000)) if agent else None
    if ended:
        put(platform, ended)
    return ended


def put(platform: Platform, event: Event) -> None:
    """Puts an event on the bus. Raises PlatformUnavailableError."""
    platform.bus.put(source=events.SOURCE, type_=event.type, detail=event.json_text())
    count(Metric.EVENTS_TOLD)
    logger.info("told", event_type=event.type, event_id=event.event_id)
