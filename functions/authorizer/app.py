"""Verifies bearer tokens for API Gateway (Lambda REQUEST authorizer)."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.config import settings
from quittance.observability import observed
from quittance.usecases import authorizer


@observed
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry."""
    return authorizer.policy(event.get("headers"), event["methodArn"], settings())
