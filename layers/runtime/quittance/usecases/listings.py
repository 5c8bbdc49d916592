"""Listings: each funded or settled escrow and each channel gets its rows, each active agent those of the index.

This runs after a task, never during it. Streams deliver records at least once, and those of two tables in any order, so
every write here gives the same rows for any order and repetition of records.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from quittance.acceptance.rules import without_output
from quittance.agent import AgentState
from quittance.api.models import BackfillRequest
from quittance.api.requests import read_direct
from quittance.errors import NotFoundError, PlatformUnavailableError
from quittance.ledger import pricing, reputation
from quittance.ledger.channels import Channel
from quittance.ledger.escrow import Escrow, State, TaskState, is_judge
from quittance.ledger.reputation import Standing
from quittance.limits import (
    AGENT_TAGS_MAX,
    AGENT_WORDS_MAX,
    BACKFILL_PIECE_ITEMS,
    BACKFILL_PIECES_MAX,
    BUDGET_MICRO_MAX,
)
from quittance.observability import Metric, count, logger
from quittance.platform import Platform
from quittance.proof import receipt
from quittance.run import Outcome
from quittance.store.channels import channel_change
from quittance.store.ledger import listed_change, standing_change
from quittance.store.listings import AGENT_SLOTS, Ended, IndexRow, ListedAgent, ListedRun, ListedTask, words
from quittance.store.registry import changed_agent

_PASSES_MAX: Final = 10  # a pass is repeated only if the agent, its standing or its rows changed meanwhile
_PIECE_MS_MAX: Final = 15_000  # of one piece of a backfill: no piece is begun with less time left


def list_change(platform: Platform, record: Mapping[str, Any], listed: set[str]) -> None:
    """Lists what one record of a table's stream changed, if anything listed. Safe to repeat, in any order.

    `listed` are the agents that were listed for earlier records of the same batch: it gets this one. They are not
    listed again, because what was read for them is at least as new as the whole batch. So an owner who changes an agent
    again and again does not delay the others. Raises PlatformUnavailableError: Lambda must deliver the record again.
    """
    change = record["dynamodb"]
    before, after = change.get("OldImage", {}), change.get("NewImage", {})
    if escrow := listed_change(before, after):
        with logger.append_context_keys(task_id=escrow.task_id, escrow_id=escrow.escrow_id, agent_id=escrow.agent_id):
            list_escrow(platform, escrow)
    elif channel := channel_change(after):
        list_channel(platform, channel)
    elif moved := standing_change(before, after):
        agent_id, earlier, standing = moved
        if earlier is None or _shown(platform, earlier) != _shown(platform, standing):
            _list_once(platform, agent_id, listed)
    elif changed := changed_agent(after):
        _list_once(platform, changed, listed)


def _list_once(platform: Platform, agent_id: str, listed: set[str]) -> None:
    if agent_id not in listed:
        list_agent(platform, agent_id)
        listed.add(agent_id)


def list_escrow(platform: Platform, escrow: Escrow) -> None:
    """Lists a task under its payer, and its run, if there was one, under its agent.

    A judge's run is a run of the judge's agent, but not a task of its payer: it belongs to the task that it judged.
    """
    if not is_judge(escrow):
        platform.listings.add_task(_task(escrow))
        count(Metric.LISTED)
    run = listed_run(escrow)
    if run is not None:
        platform.listings.add_run(run)
        count(Metric.LISTED)


def list_channel(platform: Platform, channel: Channel) -> None:
    """Lists a channel under its payer."""
    platform.listings.add_channel(channel.channel_id, payer=channel.payer, opened_ms=channel.opened_ms)
    count(Metric.LISTED)


def list_agent(platform: Platform, agent_id: str) -> None:
    """Makes the rows of an agent in the index those of the agent and its standing as they are stored now.

    Several invocations may do so at once, each having read another state. So each one repeats its pass until it finds
    nothing to write: whoever wrote last has then read the agent, its standing and its rows after its last write.
    """
    for _ in range(_PASSES_MAX):
        listed = _agent(platform, agent_id)
        rows = platform.listings.rows_of(agent_id)
        wanted = _placed(listed, rows) if listed else {}
        missing = [slot for slot, row in wanted.items() if rows.get(slot) != row]
        stale = rows.keys() - wanted.keys()
        for slot in missing:
            platform.listings.put_agent(wanted[slot].agent, wanted[slot].term, slot)
        for slot in stale:
            platform.listings.hide_agent(agent_id, slot)
        count(Metric.LISTED, len(missing) + len(stale))
        if not missing and not stale:
            return
    raise PlatformUnavailableError


def _placed(listed: ListedAgent, rows: Mapping[str, IndexRow]) -> dict[str, IndexRow]:
    """The rows that an agent must have, by slot: a term that has a slot keeps it, the others get free ones."""
    taken: dict[str, str] = {}
    for slot in AGENT_SLOTS:
        if slot in rows and rows[slot].term in listed.terms:
            taken.setdefault(rows[slot].term, slot)
    free = [slot for slot in AGENT_SLOTS if slot not in taken.values()]
    new = [term for term in dict.fromkeys(listed.terms) if term not in taken]
    taken |= zip(new, free, strict=False)
    return {slot: IndexRow(term, listed) for term, slot in taken.items()}


def backfill(platform: Platform, request: object) -> dict[str, Any]:
    """Lists what the tables held before their streams were read, piece by piece while the invocation has time.

    The answer's `backfill` is the request that continues, null at the end. What cannot be read is logged, counted and
    left out. Repeating is harmless. Raises InvalidRequestError, PlatformUnavailableError.
    """
    read = read_direct(BackfillRequest, request)
    of, after = read.of, read.after
    listed = failed = 0
    for _ in range(BACKFILL_PIECES_MAX):
        if platform.left_ms() < _PIECE_MS_MAX:
            break
        done, wrong, after = _piece(platform, of, after)
        listed, failed = listed + done, failed + wrong
        if after is None:
            if of == "registry":
                return {"backfill": None, "listed": listed, "failed": failed}
            of = "registry"
    return {"backfill": {"of": of, "after": after}, "listed": listed, "failed": failed}


def _piece(platform: Platform, of: str, after: str | None) -> tuple[int, int, str | None]:
    """Lists one piece of a table: the number of items listed, of those that failed, and where the next one begins."""
    source = platform.ledger if of == "ledger" else platform.registry
    items, following = source.piece(after=after, limit=BACKFILL_PIECE_ITEMS)
    done = wrong = 0
    for item in items:
        try:
            done += _list_item(platform, item)
        except PlatformUnavailableError:
            raise
        except Exception:  # noqa: BLE001 - an item that the audit reports must not stop the backfill of all others
            logger.exception("item not listed", key=item["pk"]["S"])
            wrong += 1
    return done, wrong, following


def _list_item(platform: Platform, item: Mapping[str, Any]) -> bool:
    """Whether a stored item was listed. The standings are read with the agents, which the registry has."""
    if escrow := listed_change({}, platform.ledger.whole(item)):
        list_escrow(platform, escrow)
    elif channel := channel_change(item):
        list_channel(platform, channel)
    elif agent_id := changed_agent(item):
        list_agent(platform, agent_id)
    else:
        return False
    return True


def listed_run(escrow: Escrow) -> ListedRun | None:
    """The row of a settled escrow; None while it is funded, and for a judge that was not needed: nothing ran."""
    settlement = escrow.settlement
    if settlement is None or settlement.outcome is Outcome.NOT_NEEDED:
        return None
    meter = receipt.read_claims(settlement.receipt)["meter"]
    return ListedRun(
        run_id=escrow.escrow_id,
        agent_id=escrow.agent_id,
        settled_ms=settlement.settled_ms,
        ended=Ended.SUCCEEDED if settlement.state is State.RELEASED else Ended.FAILED,
        outcome=settlement.outcome,
        fault=settlement.fault,
        module_sha256=escrow.module_sha256,
        fuel=meter["fuel"],
        wall_ms=meter["wall_ms"],
        memory_bytes=meter["memory_bytes"],
        paid_micro=settlement.split.paid_micro,
        fee_micro=settlement.split.fee_micro,
        message="" if settlement.outcome is Outcome.SUCCEEDED else without_output(settlement.message),
        payer=escrow.payer if escrow.share_payer else None,
        log_shared=escrow.share_log,
    )


def _task(escrow: Escrow) -> ListedTask:
    settlement = escrow.settlement
    pending = ListedTask(
        escrow_id=escrow.escrow_id,
        payer=escrow.payer,
        task_id=escrow.task_id,
        agent_id=escrow.agent_id,
        state=TaskState.PENDING,
        funded_ms=escrow.funded_ms,
    )
    if settlement is None:
        return pending
    return replace(
        pending,
        state=TaskState.SUCCEEDED if settlement.state is State.RELEASED else TaskState.FAILED,
        settled_ms=settlement.settled_ms,
        outcome=settlement.outcome,
        paid_micro=settlement.split.paid_micro,
        fee_micro=settlement.split.fee_micro,
        refunded_micro=settlement.split.refunded_micro,
    )


def _agent(platform: Platform, agent_id: str) -> ListedAgent | None:
    """What the index must hold of an agent; None if it takes no tasks."""
    try:
        agent, tags = platform.registry.described(agent_id)
    except NotFoundError:
        return None
    if agent.state is not AgentState.ACTIVE:
        return None
    score_tenths, success_rank = _shown(platform, platform.ledger.standing(agent_id))
    least_micro = pricing.least_budget_micro(pricing.parse_tariff(agent.terms.tariff), pricing.FREE)
    return ListedAgent(
        agent_id=agent_id,
        owner=agent.owner,
        created_ms=agent.created_ms,
        price_micro=min(least_micro, BUDGET_MICRO_MAX + 1),  # with more no task can be funded
        score_tenths=score_tenths,
        success_rank=success_rank,
        words=words(agent.name, *tags, agent.description)[:AGENT_WORDS_MAX],
        tags=tags[:AGENT_TAGS_MAX],
    )


def _shown(platform: Platform, standing: Standing) -> tuple[int, int]:
    """What the index shows of a standing: the score in tenths and the rank by success."""
    permille = standing.success_permille
    score_tenths = reputation.score_tenths(standing, platform.settings.reputation)
    return score_tenths, 0 if permille is None else permille + 1
