"""What an operator can stop, and start again; each deed is journaled with who, when and why.

    retire     an agent takes no tasks any more, for good
    freeze     an account funds no tasks, withdraws nothing and publishes nothing, and its agents take no tasks
    pause      nobody funds tasks

What runs already settles normally, and earnings, refunds and deposits go on. All functions see a deed within ten
seconds, and at once when it is undone.
"""

import re
from typing import Final

from quittance.api.models import OperationAnswer, OperationPage, OperationRequest
from quittance.api.requests import read_cursor
from quittance.limits import PAGE_ITEMS_MAX
from quittance.observability import logger
from quittance.platform import Platform
from quittance.store.operations import Action, Operation

FUNDING: Final = "funding"
"""The target of a pause."""
_CURSOR: Final = re.compile(r"(?P<at_ms>[0-9]{1,15})~(?P<operation_id>[0-9a-f-]{1,40})")


def perform(
    platform: Platform, action: Action, target: str, request: OperationRequest, *, operator: str
) -> OperationAnswer:
    """Does what an operator asks for; repeating changes nothing but the journal.

    Raises NotFoundError for an agent that there is not, PlatformUnavailableError: repeat it.
    """
    asked = Operation(action, target, operator, request.reason, platform.now_ms())
    done = platform.operations.perform(asked)
    logger.warning("operation", action=action, target=target, operator=operator, operation_id=done.operation_id)
    return _answer(done)


def page(platform: Platform, *, limit: int, after: str | None) -> OperationPage:
    """A page of what operators did, newest first.

    Raises InvalidRequestError for a cursor that is not ours, PlatformUnavailableError.
    """
    done, more = platform.operations.page(
        limit=min(limit, PAGE_ITEMS_MAX), after=_read_cursor(after) if after else None
    )
    last = done[-1] if more and done else None
    cursor = f"{last.at_ms}~{last.operation_id}" if last else None
    return OperationPage(operations=[_answer(one) for one in done], next=cursor)


def _answer(operation: Operation) -> OperationAnswer:
    return OperationAnswer(
        operation_id=operation.operation_id,
        action=operation.action,
        target=operation.target,
        by=operation.by,
        at=operation.at_ms,
        reason=operation.reason,
    )


def _read_cursor(cursor: str) -> tuple[int, str]:
    match = read_cursor(_CURSOR, cursor)
    return int(match["at_ms"]), match["operation_id"]
