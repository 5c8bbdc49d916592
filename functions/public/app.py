"""What anyone may read: the receipt keys, the OpenAPI description and its page."""

import json
from typing import Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance import documentation
from quittance.bootstrap import platform
from quittance.http import PREFIX, api
from quittance.observability import entry

app = api()
_CACHED = {"Cache-Control": "public, max-age=300"}
_TAGS = ["public"]


@app.get(f"{PREFIX}/.well-known/jwks.json", summary="Read the receipt keys", tags=_TAGS)
def jwks() -> Response[str]:
    """The root keys under which receipts verify, for ever (RFC 7517)."""
    return Response(200, "application/json", json.dumps(platform(app.lambda_context).keys.jwks()), headers=_CACHED)


@app.get(f"{PREFIX}/openapi.json", summary="Read the API description", tags=_TAGS)
def openapi() -> Response[str]:
    """The OpenAPI 3.1 description."""
    return Response(200, "application/json", documentation.openapi_json(), headers=_CACHED)


@app.get(f"{PREFIX}/docs", summary="Read the API's page", tags=_TAGS)
def docs() -> Response[str]:
    """The description as a page."""
    return Response(200, "text/html; charset=utf-8", documentation.page(), headers=_CACHED)


@entry
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry."""
    return app.resolve(event, context)
