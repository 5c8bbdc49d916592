"""What anyone may read: the root keys, the log of receipts, the OpenAPI description and its page."""

import json
from http import HTTPStatus
from typing import Annotated, Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Path, Query
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api import documentation
from quittance.api.http import PREFIX, answer, api, responses, root
from quittance.api.models import LogTile
from quittance.limits import JWKS_AGE_S_MAX, LOG_SIZE_MAX
from quittance.observability import observed
from quittance.platform import platform, prepare
from quittance.proof.log import LOG_LEVEL_MAX, TILE_HASHES, Tile
from quittance.usecases import public

app = api()
prepare("tiles", "keys")
_CACHED = {"Cache-Control": f"public, max-age={JWKS_AGE_S_MAX}"}
_A_MINUTE = {"Cache-Control": "public, max-age=60"}  # the sweep publishes a checkpoint a minute
_FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}
_TAGS = ["public"]


@app.get(
    f"{PREFIX}/.well-known/jwks.json", summary="Read the root keys of receipts, checkpoints and webhooks", tags=_TAGS
)
def jwks() -> Response[str]:
    """The root keys under which receipts verify, for ever (RFC 7517)."""
    return Response(200, "application/json", json.dumps(platform(app.lambda_context).keys.jwks()), headers=_CACHED)


@app.get(f"{PREFIX}/log/checkpoint", summary="Read the log's newest checkpoint", tags=_TAGS)
def checkpoint(
    size: Annotated[
        int | None, Query(ge=0, le=LOG_SIZE_MAX, description="That of this size, if there was one.")
    ] = None,
) -> Response[str]:
    """What the log of receipts commits itself to: its size and root, signed (compact JWS)."""
    found = public.checkpoint(platform(app.lambda_context), size)
    return Response(200, "application/jose", found, headers=_A_MINUTE if size is None else _FOR_EVER)


@app.get(
    f"{PREFIX}/log/tile/<level>/<index>/<width>",
    summary="Read a tile of the log",
    tags=_TAGS,
    responses=responses((HTTPStatus.OK, LogTile)),
)
def tile(
    level: Annotated[int, Path(ge=0, le=LOG_LEVEL_MAX)],
    index: Annotated[int, Path(ge=0, le=LOG_SIZE_MAX)],
    width: Annotated[int, Path(ge=1, le=TILE_HASHES)],
) -> Response[str]:
    """Hashes of a level of the tree, for whoever watches the log."""
    found = public.tile(platform(app.lambda_context), Tile(level, index, width))
    return answer(found, headers=_FOR_EVER)


@app.get(f"{PREFIX}/openapi.json", summary="Read the API description", tags=_TAGS)
def openapi() -> Response[str]:
    """The OpenAPI 3.1 description."""
    return Response(200, "application/json", documentation.openapi_json(_root()), headers=_CACHED)


@app.get(f"{PREFIX}/docs", summary="Read the API's page", tags=_TAGS)
def docs() -> Response[str]:
    """The description as a page."""
    page = documentation.page(_root())
    return Response(200, "text/html; charset=utf-8", page.html, headers={**_CACHED, **page.headers})


def _root() -> str:
    return root(app.current_event.raw_event)


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry."""
    return app.resolve(event, context)
