"""Verifies bearer tokens for the gateway (Lambda REQUEST authorizer)."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.config import settings
from quittance.errors import UnauthenticatedError
from quittance.identity import bearer_token, verify
from quittance.observability import entry


@entry
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry: an IAM policy for the whole API, because the gateway caches it for all routes of a token.

    Scopes are checked by the functions. The gateway answers 401 to the exception's text "Unauthorized", and only to it.
    """
    try:
        caller = verify(bearer_token(event.get("headers")) or "", settings())
    except UnauthenticatedError as exc:
        msg = "Unauthorized"
        raise Exception(msg) from exc  # noqa: TRY002 - the gateway matches this text of any exception
    api, stage, *_ = event["methodArn"].split("/")
    statement = {"Action": "execute-api:Invoke", "Effect": "Allow", "Resource": f"{api}/{stage}/*"}
    return {
        "principalId": caller.account,
        "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
        "context": {"sub": caller.account, "scope": " ".join(sorted(caller.scopes))},
    }
