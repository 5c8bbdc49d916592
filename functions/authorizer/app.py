"""Verifies bearer tokens for the gateway (Lambda REQUEST authorizer)."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.identity import authenticate
from quittance.config import settings
from quittance.errors import UnauthenticatedError, challenge
from quittance.observability import entry


@entry
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry: an IAM policy for the whole API, because the gateway caches it for all routes of a token.

    Scopes are checked by the functions. A token that is refused is denied, because the gateway's answer to a denial can
    say why, and to the text "Unauthorized" of an exception (which is 401 as well) it cannot.
    """
    try:
        caller = authenticate(event.get("headers"), settings())
    except UnauthenticatedError as exc:
        if exc.refused is None:
            msg = "Unauthorized"
            raise Exception(msg) from exc  # noqa: TRY002 - the gateway matches this text of any exception
        context = {"challenge": challenge(exc), "refused": exc.refused}
        return _policy(event, "Deny", "nobody", context)
    return _policy(event, "Allow", caller.account, {"sub": caller.account, "scope": " ".join(sorted(caller.scopes))})


def _policy(event: dict[str, Any], effect: str, principal: str, context: dict[str, str]) -> dict[str, Any]:
    api, stage, *_ = event["methodArn"].split("/")
    statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": f"{api}/{stage}/*"}
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    return {"principalId": principal, "policyDocument": policy, "context": context}
