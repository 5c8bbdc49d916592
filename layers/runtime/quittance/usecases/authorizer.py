"""Authorizer: verifies the token of a request, and returns the IAM policy that API Gateway expects."""

from collections.abc import Mapping
from typing import Any

from quittance.api.identity import authenticate
from quittance.config import Settings
from quittance.errors import UnauthenticatedError, challenge


def policy(headers: Mapping[str, str] | None, method_arn: str, config: Settings) -> dict[str, Any]:
    """An IAM policy for the whole API, because API Gateway caches it for all routes of a token.

    The use cases check scopes. An invalid token gets a Deny policy, a missing one the exception "Unauthorized": both
    become a 401 response, but only the response to a denial can say what is wrong. Raises PlatformUnavailableError.
    """
    try:
        caller = authenticate(headers, config)
    except UnauthenticatedError as exc:
        if exc.refused is None:
            msg = "Unauthorized"
            raise Exception(msg) from exc  # noqa: TRY002 - API Gateway looks only at the exception's text
        return _policy(method_arn, "Deny", "nobody", {"challenge": challenge(exc), "refused": exc.refused})
    context = {"sub": caller.account, "scope": " ".join(sorted(caller.scopes))}
    return _policy(method_arn, "Allow", caller.account, context)


def _policy(method_arn: str, effect: str, principal: str, context: dict[str, str]) -> dict[str, Any]:
    api, stage, *_ = method_arn.split("/")
    statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": f"{api}/{stage}/*"}
    document = {"Version": "2012-10-17", "Statement": [statement]}
    return {"principalId": principal, "policyDocument": document, "context": context}
