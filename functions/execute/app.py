"""Runs a task and settles its escrow: `POST /tasks/execute`, or a direct invocation with `user_id` in the payload."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.http import Api, direct_answer
from quittance.api.models import DirectTaskRequest
from quittance.api.requests import read_direct
from quittance.observability import observed
from quittance.platform import platform
from quittance.usecases import execute

app = Api("tasks", "ledger", "registry", "binaries", "outputs", "keys", "sandbox")
app.serve("POST /tasks/execute", execute.request, "Run an agent and pay it if it succeeds", name="execute_task")
app.serve(
    "POST /channels/<channel_id>/tasks", execute.redeem, "Run an agent by a ticket", name="redeem_ticket", anyone=True
)


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. A direct invocation gets the plain answer; a refusal raises, so that workflows can catch it."""
    if "httpMethod" in event:
        return app.resolve(event, context)
    request = read_direct(DirectTaskRequest, event)
    parts = platform(context)
    done = execute.execute(parts, execute.payer_of(parts, request), request)
    return direct_answer(done, inline_bytes_max=request.inline_bytes_max)
