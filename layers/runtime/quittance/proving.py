"""Proofs: that a receipt is in the log, and that the log has only grown."""

from quittance import log, receipt, tasks
from quittance.bootstrap import Platform
from quittance.errors import InvalidRequestError, NotFoundError, NotLoggedError
from quittance.log import HASH_BYTES, ConsistencyProof, Proof, Tile
from quittance.models import LogTile
from quittance.store.blobs import BlobMissingError


def proof(platform: Platform, caller: str, task_id: str, *, user: str | None = None, since: int | None = None) -> Proof:
    """That the receipt of a task is in the published log, and that the log of `since` entries is its beginning.

    Raises NotFoundError, NotLoggedError, InvalidRequestError if the log is not as long as `since`,
    PlatformUnavailableError.
    """
    escrow = tasks.find(platform, caller, task_id, user=user)
    place, size = platform.ledger.log_place(escrow), platform.ledger.log_head().published
    if place is None or place >= size:
        raise NotLoggedError
    if since is not None and since > size:
        raise InvalidRequestError(("since", f"must be at most {size}, the size of the published log"))
    return Proof(
        leaf_index=place,
        tree_size=size,
        path=[hashed.hex() for hashed in log.inclusion_proof(place, size, platform.tiles.read)],
        checkpoint=platform.tiles.checkpoint(size),
        consistency=None if since is None else _consistency(platform, since, size),
    )


def _consistency(platform: Platform, since: int, size: int) -> ConsistencyProof:
    path = log.consistency_proof(since, size, platform.tiles.read)
    return ConsistencyProof(tree_size=since, path=[hashed.hex() for hashed in path])


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
