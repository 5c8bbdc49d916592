"""`GET /health`: whether the platform works. Anyone may read the status; the parts need the scope `health:read`."""

import json
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.observability import observed


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry. Without a token it imports nothing heavy: load balancers call it often, and must not wait."""
    if not any(name.lower() == "authorization" for name in event.get("headers") or {}):
        return _answer(200, {"status": "ok"}, {})
    from quittance.platform import platform
    from quittance.usecases import health

    return _answer(*health.examine(platform(context), event["headers"]))


def _answer(status: int, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    kind = "application/problem+json" if "type" in body else "application/json"
    all_headers = {"Content-Type": kind, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", **headers}
    return {"statusCode": status, "headers": all_headers, "body": json.dumps(body)}
