"""Divides one budget among the tasks of a workflow run: the workflow's first step."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.models import RunRequest
from quittance.api.requests import read_direct
from quittance.observability import observed
from quittance.usecases.plan import plan


@observed
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. Raises for an invalid request, so that the workflow can catch the error by its name."""
    return plan(read_direct(RunRequest, event)).model_dump(mode="json", by_alias=True)
