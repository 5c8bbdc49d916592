"""Public: what anyone may read: root keys, the log of receipts, agents' signed cards, the OpenAPI description."""

import json
from dataclasses import replace
from typing import Annotated, Final

from pydantic import Field

from quittance.api import a2a, documentation
from quittance.api.documentation import Document, MediaType
from quittance.api.models import AgentId, JwkSet, LogTile
from quittance.errors import NotFoundError
from quittance.limits import JWKS_AGE_S_MAX, LOG_SIZE_MAX
from quittance.platform import Platform
from quittance.proof import card, log, receipt
from quittance.proof.log import HASH_BYTES, LOG_LEVEL_MAX, TILE_HASHES
from quittance.proof.statement import Purpose
from quittance.store.blobs import BlobMissingError
from quittance.usecases import contracts

FOR_EVER: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
_SOME_TIME: Final = {"Cache-Control": f"public, max-age={JWKS_AGE_S_MAX}"}
_A_MINUTE: Final = {"Cache-Control": "public, max-age=60"}  # the sweep publishes a checkpoint a minute
_JSON: Final = "application/json"
_JOSE: Final = "application/jose"
_HTML: Final = "text/html; charset=utf-8"

LogSize = Annotated[int | None, Field(ge=0, le=LOG_SIZE_MAX, description="That of this size, if there was one.")]
Level = Annotated[int, Field(ge=0, le=LOG_LEVEL_MAX)]
Index = Annotated[int, Field(ge=0, le=LOG_SIZE_MAX)]
Width = Annotated[int, Field(ge=1, le=TILE_HASHES)]


def jwks(platform: Platform) -> Annotated[Document, MediaType(_JSON, JwkSet)]:
    """The root keys under which receipts, checkpoints, webhook signatures and agent cards verify, for ever (RFC 7517).

    Raises PlatformUnavailableError.
    """
    return Document(json.dumps(platform.keys.jwks()), _JSON, _SOME_TIME)


def checkpoint(platform: Platform, size: LogSize = None) -> Annotated[Document, MediaType(_JOSE)]:
    """The signed size and root of the log of receipts (compact JWS): the newest, or that of a size.

    Raises NotFoundError, PlatformUnavailableError.
    """
    return Document(_checkpoint(platform, size), _JOSE, _A_MINUTE if size is None else FOR_EVER)


def tile(platform: Platform, level: Level, index: Index, width: Width) -> LogTile:
    """The first `width` hashes of a tile of the log, for those who monitor it.

    Raises NotFoundError, PlatformUnavailableError.
    """
    size = receipt.read_claims(_checkpoint(platform, None))["size"]
    try:
        hashes = platform.tiles.read(log.tile_at(level, index, size))
    except BlobMissingError:
        hashes = b""
    if len(hashes) < width * HASH_BYTES:
        msg = "The log has no such tile."
        raise NotFoundError(msg)
    return LogTile(hashes=[hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES].hex() for at in range(width)])


def a2a_card(platform: Platform, root: str, agent_id: AgentId) -> Annotated[Document, MediaType(_JSON)]:
    """The agent's card for the Agent2Agent protocol, version 1.0, signed. It states truly that it is called otherwise.

    Raises NotFoundError for an agent without an active version, PlatformUnavailableError.
    """
    agent = platform.registry.get_cached(agent_id)
    version = contracts.carded_version(agent)
    unsigned = a2a.agent_card(
        agent,
        version,
        contracts.stored(platform, version.contract_sha256),
        root=root,
        issuer=platform.settings.receipt_issuer,
        token_issuer=platform.settings.issuer_url,
        now_ms=platform.now_ms(),
    )
    signed = card.sign(unsigned, platform.signing_key(Purpose.CARD))
    return Document(json.dumps(signed), _JSON, _A_MINUTE)


def openapi(root: str) -> Annotated[Document, MediaType(_JSON)]:
    """The OpenAPI 3.1 description, for clients that find the API at the path `root`."""
    return Document(documentation.openapi_json(root), _JSON, _SOME_TIME)


def docs(root: str) -> Annotated[Document, MediaType(_HTML)]:
    """The description as a page."""
    page = documentation.page(root)
    return replace(page, headers={**_SOME_TIME, **page.headers})


def _checkpoint(platform: Platform, size: int | None) -> str:
    try:
        return platform.tiles.checkpoint(size)
    except BlobMissingError as exc:
        msg = "The log has no such checkpoint."
        raise NotFoundError(msg) from exc
