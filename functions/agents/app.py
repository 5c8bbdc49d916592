"""Registers, lists, describes and retires agents: `/agents`."""

from http import HTTPStatus
from typing import Annotated, Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Query
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.http import PREFIX, PageAfter, PageLimit, answer, api, caller, responses
from quittance.api.models import (
    AccountId,
    AgentAnswer,
    AgentId,
    AgentPage,
    AgentRequest,
    AgentUpload,
    PriceEstimate,
    VersionRequest,
)
from quittance.observability import observed
from quittance.platform import platform, prepare
from quittance.usecases import agents

app = api()
prepare("ledger", "registry", "uploads")
_TAGS = ["agents"]


@app.post(
    f"{PREFIX}/agents",
    summary="Register an agent",
    tags=_TAGS,
    responses=responses((HTTPStatus.CREATED, AgentUpload)),
    status_code=HTTPStatus.CREATED,
)
def register(request: AgentRequest) -> Response[str]:
    """Registers an agent of the caller's and answers with the form to post its module with."""
    return answer(agents.register(platform(app.lambda_context), caller(app).account, request), HTTPStatus.CREATED)


@app.get(f"{PREFIX}/agents", summary="List agents", tags=_TAGS, responses=responses((HTTPStatus.OK, AgentPage)))
def page(
    owner: Annotated[AccountId | None, Query(description="All agents of this account, active or not.")] = None,
    limit: PageLimit = 20,
    after: PageAfter = None,
) -> Response[str]:
    """Agents that take tasks, newest first."""
    caller(app)
    return answer(agents.page(platform(app.lambda_context), owner=owner, limit=limit, after=after))


@app.get(
    f"{PREFIX}/agents/<agent_id>",
    summary="Describe an agent",
    tags=_TAGS,
    responses=responses((HTTPStatus.OK, AgentAnswer)),
)
def describe(agent_id: AgentId) -> Response[str]:
    """One agent with its terms and reputation."""
    caller(app)
    return answer(agents.describe(platform(app.lambda_context), agent_id))


@app.get(
    f"{PREFIX}/agents/<agent_id>/estimate",
    summary="Estimate the price of a task",
    tags=_TAGS,
    responses=responses((HTTPStatus.OK, PriceEstimate)),
)
def estimate(agent_id: AgentId) -> Response[str]:
    """The least price by the agent's tariff, and what its paid runs of late cost and took."""
    caller(app)
    return answer(agents.estimate(platform(app.lambda_context), agent_id))


@app.post(
    f"{PREFIX}/agents/<agent_id>/versions",
    summary="Upload a new version",
    tags=_TAGS,
    responses=responses((HTTPStatus.CREATED, AgentUpload)),
    status_code=HTTPStatus.CREATED,
)
def open_version(agent_id: AgentId, request: VersionRequest) -> Response[str]:
    """Opens the upload of a new version, with new terms if there are any."""
    return answer(
        agents.open_version(platform(app.lambda_context), caller(app).account, agent_id, request),
        HTTPStatus.CREATED,
    )


@app.delete(
    f"{PREFIX}/agents/<agent_id>",
    summary="Retire an agent",
    tags=_TAGS,
    responses=responses((HTTPStatus.OK, AgentAnswer)),
)
def retire(agent_id: AgentId) -> Response[str]:
    """Takes an agent out of service for good; tasks that are settled stay answered."""
    agents.retire(platform(app.lambda_context), caller(app).account, agent_id)
    return answer(agents.describe(platform(app.lambda_context), agent_id))


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry."""
    return app.resolve(event, context)
