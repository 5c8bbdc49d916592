"""Tells whether the platform works: `GET /health`. Anyone sees the status; the scope `health:read` sees the parts."""

import json
from typing import Any

from quittance.observability import entry


@entry
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Lambda's entry. The shallow path imports nothing heavy: load balancers call it often and cold."""
    headers = {name.lower(): value for name, value in (event.get("headers") or {}).items()}
    if "authorization" not in headers:
        return _answer(200, {"status": "ok"})
    from quittance import health

    status, body = health.examine(headers["authorization"])
    return _answer(status, body)


def _answer(status: int, body: dict[str, Any]) -> dict[str, Any]:
    kind = "application/problem+json" if "type" in body else "application/json"
    headers = {"Content-Type": kind, "Cache-Control": "no-store"}
    return {"statusCode": status, "headers": headers, "body": json.dumps(body)}
