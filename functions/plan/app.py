"""Divides one budget among the tasks of a run: the workflow's first step."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.models import RunRequest
from quittance.api.requests import read_direct
from quittance.observability import entry
from quittance.usecases.plan import plan


@entry
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. A refusal raises, so that the workflow can catch it by its name."""
    return plan(read_direct(RunRequest, event)).model_dump(mode="json", by_alias=True)
