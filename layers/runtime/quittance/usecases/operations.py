"""Operations: what an operator can stop. A journal records who did each, when and why.

    retire     an agent takes no tasks any more, for good
    freeze     an account funds no tasks, withdraws nothing and publishes nothing, and its agents take no tasks
    pause      nobody funds tasks

Running tasks settle normally, and earnings, refunds and deposits continue. All functions apply an operation within ten
seconds, and its reversal at once. The caller needs the scope `platform:operate`.
"""

from typing import Final

from quittance.api.identity import OPERATE_SCOPE, Caller
from quittance.api.models import AccountInPath, AgentId, OperationAnswer, OperationPage, OperationRequest
from quittance.api.requests import Cursor, PageAfter, PageLimit
from quittance.observability import logger
from quittance.operation import Action, Operation
from quittance.platform import Platform

FUNDING: Final = "funding"
"""The target of a pause."""
_CURSOR: Final = Cursor("[0-9a-f-]{1,40}")


def journal(platform: Platform, caller: Caller, limit: PageLimit = 50, after: PageAfter = None) -> OperationPage:
    """A page of what operators did, newest first.

    Raises MissingScopeError, InvalidRequestError for an invalid cursor, PlatformUnavailableError.
    """
    caller.need(OPERATE_SCOPE)
    done, more = platform.operations.page(limit=limit, after=_CURSOR.read(after))
    last = done[-1] if more and done else None
    cursor = _CURSOR.write(last.at_ms, last.operation_id) if last else None
    return OperationPage(operations=[_answer(one) for one in done], next=cursor)


def retire(platform: Platform, caller: Caller, agent_id: AgentId, request: OperationRequest) -> OperationAnswer:
    """Takes an agent out of service for good, whoever its owner is."""
    return _perform(platform, caller, Action.RETIRE, agent_id, request)


def freeze(platform: Platform, caller: Caller, account_id: AccountInPath, request: OperationRequest) -> OperationAnswer:
    """Freezes an account: it funds, withdraws and publishes nothing, and its agents take no tasks."""
    return _perform(platform, caller, Action.FREEZE, caller.named(account_id), request)


def unfreeze(
    platform: Platform, caller: Caller, account_id: AccountInPath, request: OperationRequest
) -> OperationAnswer:
    """Ends a freeze."""
    return _perform(platform, caller, Action.UNFREEZE, caller.named(account_id), request)


def pause(platform: Platform, caller: Caller, request: OperationRequest) -> OperationAnswer:
    """Pauses funding: no new tasks are funded; funded tasks continue."""
    return _perform(platform, caller, Action.PAUSE, FUNDING, request)


def resume(platform: Platform, caller: Caller, request: OperationRequest) -> OperationAnswer:
    """Ends a pause."""
    return _perform(platform, caller, Action.RESUME, FUNDING, request)


def _perform(
    platform: Platform, caller: Caller, action: Action, target: str, request: OperationRequest
) -> OperationAnswer:
    """Performs an operation; repeating it changes nothing but the journal.

    Raises MissingScopeError, NotFoundError for an agent that does not exist, PlatformUnavailableError (repeat it).
    """
    caller.need(OPERATE_SCOPE)
    done = platform.operations.perform(Operation(action, target, caller.account, request.reason, platform.now_ms()))
    logger.warning("operation", action=action, target=target, operator=caller.account, operation_id=done.operation_id)
    return _answer(done)


def _answer(operation: Operation) -> OperationAnswer:
    return OperationAnswer(
        operation_id=operation.operation_id,
        action=operation.action,
        target=operation.target,
        by=operation.by,
        at=operation.at_ms,
        reason=operation.reason,
    )
