"""Runs and tasks: the runs of one's agents, and the tasks of one's account, from the listings."""

from typing import Annotated, Final, Literal

from pydantic import Field

from quittance import observability
from quittance.api.identity import Caller
from quittance.api.models import (
    AgentId,
    Moment,
    RunAnswer,
    RunId,
    RunPage,
    RunWithLog,
    TaskLine,
    TaskPage,
)
from quittance.api.requests import Cursor, PageAfter, PageLimit
from quittance.errors import NotFoundError
from quittance.ledger.escrow import TaskState
from quittance.limits import MIB
from quittance.platform import Platform
from quittance.store.listings import NO_END, Ended, ListedRun, ListedTask
from quittance.usecases.listings import listed_run
from quittance.usecases.result import load

_CURSOR: Final = Cursor("[a-z2-7]{26}")
_Outcome = Annotated[
    Literal["succeeded", "failed"] | None,
    Field(description="Only runs that were paid, or only those that were not; both if absent."),
]
_State = Annotated[Literal["pending", "succeeded", "failed"] | None, Field(description="Only tasks in this state.")]
_OfAgent = Annotated[AgentId | None, Field(description="Only tasks of this agent.")]
_SettledSince = Annotated[Moment | None, Field(description="Only runs settled at this time or later.")]
_SettledUntil = Annotated[Moment | None, Field(description="Only runs settled before this time.")]
_FundedSince = Annotated[Moment | None, Field(description="Only tasks funded at this time or later.")]
_FundedUntil = Annotated[Moment | None, Field(description="Only tasks funded before this time.")]


def page(
    platform: Platform,
    caller: Caller,
    agent_id: AgentId,
    outcome: _Outcome = None,
    since: _SettledSince = None,
    until: _SettledUntil = None,
    limit: PageLimit = 20,
    after: PageAfter = None,
) -> RunPage:
    """A page of the settled runs of an agent of the caller, newest first. A run is listed some seconds after it.

    Raises NotFoundError, InvalidRequestError for an invalid cursor, PlatformUnavailableError.
    """
    place = _CURSOR.read(after)
    _check_owner(platform, caller, agent_id)
    runs, following = platform.listings.runs(
        agent_id,
        ended=Ended(outcome) if outcome else None,
        since_ms=since or 0,
        until_ms=NO_END if until is None else until,
        limit=limit,
        after=(place[0], place[1]) if place else None,
    )
    return RunPage(runs=[_run(run) for run in runs], next=_CURSOR.write(*following) if following else None)


def read(platform: Platform, caller: Caller, agent_id: AgentId, run_id: RunId) -> RunWithLog:
    """One settled run of an agent of the caller, with its log if the payer shares that.

    Raises NotFoundError, PlatformUnavailableError.
    """
    _check_owner(platform, caller, agent_id)
    escrow = platform.ledger.find(run_id)
    run = listed_run(escrow) if escrow and escrow.agent_id == agent_id else None
    if escrow is None or escrow.settlement is None or run is None:
        msg = f"Your agent has no settled run {run_id!r}."
        raise NotFoundError(msg)
    observability.about(escrow)
    stderr = load(platform, escrow.settlement.stderr) if run.log_shared else None
    log = None if stderr is None else stderr.decode(errors="replace")
    return RunWithLog(**dict(_run(run)), log=log)


def tasks(
    platform: Platform,
    caller: Caller,
    agent_id: _OfAgent = None,
    state: _State = None,
    since: _FundedSince = None,
    until: _FundedUntil = None,
    limit: PageLimit = 20,
    after: PageAfter = None,
) -> TaskPage:
    """A page of the caller's tasks, newest first. A task is listed some seconds after it is funded or settled.

    Raises InvalidRequestError for an invalid cursor, PlatformUnavailableError.
    """
    place = _CURSOR.read(after)
    found, following = platform.listings.tasks(
        caller.account,
        agent_id=agent_id,
        state=TaskState(state) if state else None,
        since_ms=since or 0,
        until_ms=NO_END if until is None else until,
        limit=limit,
        after=(place[0], place[1]) if place else None,
    )
    return TaskPage(tasks=[_task(task) for task in found], next=_CURSOR.write(*following) if following else None)


def _check_owner(platform: Platform, caller: Caller, agent_id: str) -> None:
    """Raises NotFoundError unless the agent is the caller's. Its owner never changes, so a cached agent will do."""
    if platform.registry.get_cached(agent_id).owner != caller.account:
        msg = f"You have no agent {agent_id!r}."
        raise NotFoundError(msg)


def _run(run: ListedRun) -> RunAnswer:
    return RunAnswer(
        run_id=run.run_id,
        settled_at=run.settled_ms,
        module_sha256=run.module_sha256,
        success=run.ended is Ended.SUCCEEDED,
        outcome=run.outcome,
        fault=run.fault,
        fuel_used=run.fuel,
        execution_time_ms=run.wall_ms,
        memory_used_mb=round(run.memory_bytes / MIB, 3),
        amount_paid_micro=run.paid_micro,
        fee_micro=run.fee_micro,
        message=run.message or None,
        payer=run.payer,
        log_shared=run.log_shared,
    )


def _task(task: ListedTask) -> TaskLine:
    return TaskLine(
        task_id=task.task_id,
        agent_id=task.agent_id,
        state=task.state,
        outcome=task.outcome,
        amount_paid_micro=task.paid_micro,
        amount_refunded_micro=task.refunded_micro,
        fee_micro=task.fee_micro,
        funded_at=task.funded_ms,
        settled_at=task.settled_ms,
    )
