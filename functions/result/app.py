"""Tells the outcome of a task, and proves it: `GET /tasks/{task_id}/result`, `GET /tasks/{task_id}/proof`."""

from http import HTTPStatus
from typing import Annotated, Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Query
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.http import PREFIX, answer, api, caller, responses, task_answer
from quittance.api.models import AccountId, StatedTaskId, TaskPending, TaskResult
from quittance.limits import LOG_SIZE_MAX
from quittance.observability import observed
from quittance.platform import platform, prepare
from quittance.proof.log import Proof
from quittance.usecases import result as tasks

app = api()
prepare("ledger", "outputs", "tiles", "keys")


@app.get(
    f"{PREFIX}/tasks/<task_id>/result",
    summary="Read the outcome of a task",
    tags=["tasks"],
    responses=responses((HTTPStatus.OK, TaskResult), (HTTPStatus.ACCEPTED, TaskPending)),
)
def result(
    task_id: StatedTaskId,
    user: Annotated[AccountId | None, Query(description="For the agent's owner: whose task it is.")] = None,
) -> Response[str]:
    """The outcome: whole for the user, without output and log for the agent's owner; 202 while it is not known."""
    return task_answer(tasks.read(platform(app.lambda_context), caller(app).account, task_id, user=user))


@app.get(
    f"{PREFIX}/tasks/<task_id>/proof",
    summary="Prove that a task's receipt is in the log",
    tags=["tasks"],
    responses=responses((HTTPStatus.OK, Proof)),
)
def proof(
    task_id: StatedTaskId,
    user: Annotated[AccountId | None, Query(description="For the agent's owner: whose task it is.")] = None,
    since: Annotated[
        int | None, Query(ge=0, le=LOG_SIZE_MAX, description="Also prove that the log of this size is its beginning.")
    ] = None,
) -> Response[str]:
    """An inclusion proof (RFC 9162) under a signed checkpoint, for `quittance-verify --proof`."""
    return answer(tasks.prove(platform(app.lambda_context), caller(app).account, task_id, user=user, since=since))


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry."""
    return app.resolve(event, context)
