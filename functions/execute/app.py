"""Runs a task and settles its escrow: `POST /tasks/execute`, or a direct invocation with `user_id` in the payload."""

from http import HTTPStatus
from typing import Annotated, Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Header
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.http import PREFIX, api, caller, direct_answer, responses, task_answer
from quittance.api.models import DirectTaskRequest, TaskPending, TaskRequest, TaskResult
from quittance.api.requests import read_direct, wants_async
from quittance.observability import observed
from quittance.platform import platform, prepare
from quittance.usecases import execute as tasks

app = api()
prepare("ledger", "registry", "binaries", "outputs", "keys", "sandbox")


@app.post(
    f"{PREFIX}/tasks/execute",
    summary="Run an agent and pay it if it succeeds",
    tags=["tasks"],
    responses=responses((HTTPStatus.OK, TaskResult), (HTTPStatus.ACCEPTED, TaskPending)),
)
def execute(
    request: TaskRequest,
    prefer: Annotated[
        list[str] | None, Header(description="`respond-async`: 202 as soon as the task is funded (RFC 7240).")
    ] = None,
) -> Response[str]:
    """Runs one task. An agent that fails is an answered request: 200 with `success: false`, refunded in full.

    With `Prefer: respond-async` it is only checked and funded, then queued, and may run for up to ten minutes.
    """
    user = caller(app).account
    if wants_async(prefer or []):
        return task_answer(tasks.submit(platform(app.lambda_context), user, request), queued=True)
    return task_answer(tasks.execute(platform(app.lambda_context), user, request))


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. A direct invocation gets the plain answer; a refusal raises, so that workflows can catch it."""
    if "httpMethod" in event:
        return app.resolve(event, context)
    request = read_direct(DirectTaskRequest, event)
    done = tasks.execute(platform(context), request.user_id, request)
    return direct_answer(done, inline_bytes_max=request.inline_bytes_max)
