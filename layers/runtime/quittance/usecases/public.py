"""Proofs: that a receipt is in the log, and that the log has only grown."""

from quittance.api.models import LogTile
from quittance.errors import NotFoundError
from quittance.platform import Platform
from quittance.proof import log, receipt
from quittance.proof.log import HASH_BYTES, Tile
from quittance.store.blobs import BlobMissingError


def checkpoint(platform: Platform, size: int | None) -> str:
    """The newest checkpoint, or that of a size. Raises NotFoundError, PlatformUnavailableError."""
    try:
        return platform.tiles.checkpoint(size)
    except BlobMissingError as exc:
        msg = "The log has no such checkpoint."
        raise NotFoundError(msg) from exc


def tile(platform: Platform, asked: Tile) -> LogTile:
    """The first hashes of a tile, as many as are asked for. Raises NotFoundError, PlatformUnavailableError."""
    size = receipt.read_claims(checkpoint(platform, None))["size"]
    try:
        hashes = platform.tiles.read(log.tile_at(asked.level, asked.index, size))
    except BlobMissingError:
        hashes = b""
    if len(hashes) < asked.width * HASH_BYTES:
        msg = "The log has no such tile."
        raise NotFoundError(msg)
    return LogTile(hashes=[hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES].hex() for at in range(asked.width)])
