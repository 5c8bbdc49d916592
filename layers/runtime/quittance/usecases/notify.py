"""Events: each relevant change in a table's stream is emitted on the bus, and queued for the task's webhook.

This runs after a task, never during it. The table's stream is the transactional outbox: it has a record of a settlement
if and only if the settlement was stored. Money moves whether or not anybody receives the event.
"""

from collections.abc import Mapping
from typing import Any

from quittance.api import events
from quittance.api.events import Event
from quittance.observability import Metric, count, logger
from quittance.platform import Platform
from quittance.store.ledger import left_funded, payout_moved
from quittance.store.registry import revised, upload_moved
from quittance.usecases.webhook import Notice


def emit_change(platform: Platform, record: Mapping[str, Any]) -> Event | None:
    """Emits the event of one record of a table's stream, if the change has one. Safe to repeat.

    Raises PlatformUnavailableError if the event may not have been accepted: Lambda must deliver the record again.
    """
    change = record["dynamodb"]
    before, after = change.get("OldImage", {}), change.get("NewImage", {})
    escrow = left_funded(before, after)
    if escrow and escrow.settlement:
        settled = events.task_settled(escrow, escrow.settlement)
        with logger.append_context_keys(task_id=escrow.task_id, escrow_id=escrow.escrow_id, agent_id=escrow.agent_id):
            emit(platform, settled)
        if escrow.webhook:
            platform.webhooks.send(Notice.of(settled, escrow.webhook).model_dump_json(), of=escrow.payer)
        return settled
    if payout := payout_moved(before, after):
        moved = events.payout_moved(payout)
        emit(platform, moved)
        return moved
    at_ms = int(change["ApproximateCreationDateTime"] * 1_000)
    of_agent: Event | None = None
    if agent := upload_moved(before, after):
        of_agent = events.upload_ended(agent, at_ms=at_ms)
    elif agent := revised(before, after):
        of_agent = events.agent_changed(agent, at_ms=at_ms)
    if of_agent:
        emit(platform, of_agent)
    return of_agent


def emit(platform: Platform, event: Event) -> None:
    """Puts an event on the bus. Raises PlatformUnavailableError."""
    platform.bus.put(source=events.SOURCE, type_=event.type, detail=event.json_text())
    count(Metric.EVENTS_EMITTED)
    logger.info("emitted", event_type=event.type, event_id=event.event_id)
