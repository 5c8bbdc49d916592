"""Runs a task and settles its escrow: `POST /tasks/execute`, or a direct invocation with `user_id` in the payload."""

from http import HTTPStatus
from typing import Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance import tasks
from quittance.bootstrap import platform
from quittance.http import PREFIX, api, caller, direct_answer, read_direct, responses, task_answer
from quittance.models import DirectTaskRequest, TaskPending, TaskRequest, TaskResult
from quittance.observability import entry

app = api()


@app.post(
    f"{PREFIX}/tasks/execute",
    summary="Run an agent and pay it if it succeeds",
    tags=["tasks"],
    responses=responses((HTTPStatus.OK, TaskResult), (HTTPStatus.ACCEPTED, TaskPending)),
)
def execute(request: TaskRequest) -> Response[str]:
    """Runs one task. An agent that fails is an answered request: 200 with `success: false`, refunded in full."""
    return task_answer(tasks.execute(platform(app.lambda_context), caller(app).account, request))


@entry
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. A direct invocation gets the plain answer; a refusal raises, so that workflows can catch it."""
    if "httpMethod" in event:
        return app.resolve(event, context)
    request = read_direct(DirectTaskRequest, event)
    done = tasks.execute(platform(context), request.user_id, request)
    return direct_answer(done, inline_bytes_max=request.inline_bytes_max)
