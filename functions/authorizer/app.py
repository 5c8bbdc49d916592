"""Verifies bearer tokens for API Gateway (Lambda REQUEST authorizer)."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.identity import authenticate
from quittance.config import settings
from quittance.errors import UnauthenticatedError, challenge
from quittance.observability import observed


@observed
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. Returns an IAM policy for the whole API, because API Gateway caches it for all routes of a token.

    The functions check scopes. An invalid token gets a Deny policy instead of the exception "Unauthorized": both become
    a 401 response, but only the response to a denial can say what is wrong.
    """
    try:
        caller = authenticate(event.get("headers"), settings())
    except UnauthenticatedError as exc:
        if exc.refused is None:
            msg = "Unauthorized"
            raise Exception(msg) from exc  # noqa: TRY002 - API Gateway looks only at the exception's text
        context = {"challenge": challenge(exc), "refused": exc.refused}
        return _policy(event, "Deny", "nobody", context)
    return _policy(event, "Allow", caller.account, {"sub": caller.account, "scope": " ".join(sorted(caller.scopes))})


def _policy(event: dict[str, Any], effect: str, principal: str, context: dict[str, str]) -> dict[str, Any]:
    api, stage, *_ = event["methodArn"].split("/")
    statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": f"{api}/{stage}/*"}
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    return {"principalId": principal, "policyDocument": policy, "context": context}
