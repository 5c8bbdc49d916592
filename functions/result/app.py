"""Tells the outcome of a task: `GET /tasks/{task_id}/result`."""

from http import HTTPStatus
from typing import Annotated, Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Query
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance import tasks
from quittance.bootstrap import platform
from quittance.http import PREFIX, api, caller, responses, task_answer
from quittance.models import AccountId, TaskPending, TaskResult
from quittance.observability import entry

app = api()


@app.get(
    f"{PREFIX}/tasks/<task_id>/result",
    summary="Read the outcome of a task",
    tags=["tasks"],
    responses=responses((HTTPStatus.OK, TaskResult), (HTTPStatus.ACCEPTED, TaskPending)),
)
def result(
    task_id: str,
    user: Annotated[AccountId | None, Query(description="For the agent's owner: whose task it is.")] = None,
) -> Response[str]:
    """The outcome: whole for the user, without output and log for the agent's owner; 202 while it is not known."""
    return task_answer(tasks.result(platform(app.lambda_context), caller(app).account, task_id, user=user))


@entry
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry."""
    return app.resolve(event, context)
