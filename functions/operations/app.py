"""What operators can stop: retires agents, freezes accounts, pauses funding; and the journal of it: `/operations`."""

from http import HTTPStatus
from typing import Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.http import PREFIX, PageAfter, PageLimit, answer, api, caller, responses
from quittance.api.identity import OPERATE_SCOPE
from quittance.api.models import AccountInPath, AgentId, OperationAnswer, OperationPage, OperationRequest
from quittance.observability import observed
from quittance.platform import platform
from quittance.store.operations import Action
from quittance.usecases import operations

app = api()
_OPERATIONS = f"{PREFIX}/operations"
_TAGS = ["operations"]
_DONE = responses((HTTPStatus.OK, OperationAnswer))


@app.get(_OPERATIONS, summary="List operations", tags=_TAGS, responses=responses((HTTPStatus.OK, OperationPage)))
def journal(
    limit: PageLimit = 50,
    after: PageAfter = None,
) -> Response[str]:
    """Who did what, when and why, newest first; needs the scope `platform:operate`, as all operations do."""
    caller(app).need(OPERATE_SCOPE)
    return answer(operations.page(platform(app.lambda_context), limit=limit, after=after))


@app.post(f"{_OPERATIONS}/agents/<agent_id>/retire", summary="Retire any agent", tags=_TAGS, responses=_DONE)
def retire(agent_id: AgentId, request: OperationRequest) -> Response[str]:
    """Takes an agent out of service for good, whoever its owner is."""
    return _perform(Action.RETIRE, agent_id, request)


@app.post(f"{_OPERATIONS}/accounts/<account_id>/freeze", summary="Freeze an account", tags=_TAGS, responses=_DONE)
def freeze(account_id: AccountInPath, request: OperationRequest) -> Response[str]:
    """From now on the account funds, withdraws and publishes nothing, and its agents take no tasks."""
    return _perform(Action.FREEZE, caller(app).named(account_id), request)


@app.post(f"{_OPERATIONS}/accounts/<account_id>/unfreeze", summary="Unfreeze an account", tags=_TAGS, responses=_DONE)
def unfreeze(account_id: AccountInPath, request: OperationRequest) -> Response[str]:
    """Ends a freeze."""
    return _perform(Action.UNFREEZE, caller(app).named(account_id), request)


@app.post(f"{_OPERATIONS}/funding/pause", summary="Pause new tasks", tags=_TAGS, responses=_DONE)
def pause(request: OperationRequest) -> Response[str]:
    """From now on nobody funds tasks; those that are funded go on."""
    return _perform(Action.PAUSE, operations.FUNDING, request)


@app.post(f"{_OPERATIONS}/funding/resume", summary="Resume new tasks", tags=_TAGS, responses=_DONE)
def resume(request: OperationRequest) -> Response[str]:
    """Ends a pause."""
    return _perform(Action.RESUME, operations.FUNDING, request)


def _perform(action: Action, target: str, request: OperationRequest) -> Response[str]:
    operator = caller(app)
    operator.need(OPERATE_SCOPE)
    return answer(operations.perform(platform(app.lambda_context), action, target, request, operator=operator.account))


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry."""
    return app.resolve(event, context)
