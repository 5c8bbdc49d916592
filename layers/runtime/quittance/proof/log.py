"""The log of receipts: an append-only Merkle tree (RFC 9162 §2.1, SHA-256), stored as tiles. Pure: callers read tiles.

An entry is the ASCII of a receipt. Hashes are stored as tiles of 256 (c2sp.org/tlog-tiles): tile n of level l contains
the roots of 256 subtrees of height 8·l. A full tile never changes. The last tile of a level is partial; its name
includes its width, so it does not change either. Everything that was published stays, byte for byte.

    growth = grow(size, leaf_hashes, read_tile)             # a publisher: write growth.tiles, then the new checkpoint
    path = inclusion_proof(index, size, read_tile)          # a prover: reads O(log size) tiles
    check_inclusion(leaf, index, size, path, root)          # a verifier: needs no tile
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final

from pydantic import Field

from quittance.limits import LOG_SIZE_MAX, TOKEN_CHARS_MAX
from quittance.proof import statement
from quittance.proof.statement import Flaw, ProofError, Purpose, SigningKey, StatementType, StrictModel

CHECKPOINT: Final = StatementType("quittance-checkpoint+jwt", "checkpoint", Purpose.CHECKPOINT)
HASH_BYTES: Final = 32
TILE_HASHES: Final = 256
LOG_LEVEL_MAX: Final = LOG_SIZE_MAX.bit_length() // 8  # of tiles
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
_TILE_HEIGHT: Final = 8
_VERSION: Final = 1
_PATH_HASHES_MAX: Final = 2 * LOG_SIZE_MAX.bit_length()


@dataclass(frozen=True, slots=True)
class LogHead:
    """The number of receipts in the log, how many the newest checkpoint covers, and how many escrows are archived."""

    size: int = 0
    published: int = 0
    archived: int = 0


@dataclass(frozen=True, slots=True)
class Tile:
    """The name of a tile: hashes `256·index` to `256·index + width` of a level."""

    level: int
    index: int
    width: int

    @property
    def path(self) -> str:
        """Where the tile is published: `tile/<level>/<index>[.p/<width>]`, three digits of the index per element."""
        groups = f"{self.index:,d}".split(",")
        groups[0] = groups[0].zfill(3)
        number = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
        return f"tile/{self.level}/{number}" + (f".p/{self.width}" if self.width < TILE_HASHES else "")


ReadTile = Callable[[Tile], bytes]
"""Reads a tile, or a wider one of the same level and index, because that begins with the same hashes."""

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Path = Annotated[list[Hash], Field(max_length=_PATH_HASHES_MAX)]
_Size = Annotated[int, Field(ge=0, le=LOG_SIZE_MAX)]


@dataclass(frozen=True, slots=True)
class Growth:
    """A log after more entries: its size, its root, and the tiles that are new."""

    size: int
    root: bytes
    tiles: Mapping[Tile, bytes]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The commitment of a log: at `at_ms` it had `size` entries under `root`. `issuer` is that of its receipts."""

    issuer: str
    size: int
    root: bytes
    at_ms: int


class ConsistencyProof(StrictModel):
    """That the log of `tree_size` entries is the beginning of the log that it comes with."""

    tree_size: _Size
    path: _Path


class Proof(StrictModel):
    """The proof document of one receipt (`GET /tasks/{task_id}/proof`). Hashes are in hexadecimal.

    `consistency` is there if the caller named the size of an older checkpoint.
    """

    leaf_index: _Size
    tree_size: _Size
    path: _Path
    checkpoint: Annotated[str, Field(max_length=TOKEN_CHARS_MAX)]
    consistency: ConsistencyProof | None = None


class _CheckpointClaims(StrictModel):
    v: Annotated[int, Field(ge=_VERSION, le=_VERSION)]
    iss: Annotated[str, Field(max_length=1_000)]
    size: _Size
    root: Hash
    at: Annotated[int, Field(ge=0, le=2**53)]


class Frontier:
    """The roots of a range of the log that is built leaf by leaf, in memory for two hashes per level.

    The range need not begin at 0: ranges that adjoin each other join to the range of both, so several readers can each
    build one part of the log.
    """

    def __init__(self, begin: int = 0, nodes: Iterable[tuple[int, bytes]] = ()) -> None:
        """An empty range from an entry on; or the range that these perfect subtrees cover: their levels and roots."""
        self.size = self._begin = begin
        self._nodes: list[tuple[int, bytes]] = []
        """The levels and roots of the largest perfect subtrees of the log that cover the range, from left to right."""
        for level, root in nodes:
            self._push(level, root)

    @property
    def begin(self) -> int:
        """The first entry of the range. `size` is the first entry after it."""
        return self._begin

    @property
    def nodes(self) -> list[tuple[int, bytes]]:
        """The levels and roots of the subtrees that cover the range, from left to right."""
        return list(self._nodes)

    def append(self, leaf: bytes) -> None:
        """Adds the hash of the next entry."""
        self._push(0, leaf)

    def join(self, following: "Frontier") -> None:
        """Adds the range that begins where this one ends. Raises ValueError for any other."""
        if following.begin != self.size:
            msg = f"a range from {following.begin} does not continue one to {self.size}"
            raise ValueError(msg)
        for level, root in following.nodes:
            self._push(level, root)

    def root(self) -> bytes:
        """The root of all entries so far. Raises ValueError if the range does not begin at 0."""
        if self._begin:
            msg = f"the range begins at {self._begin}, so its entries have no root of the log"
            raise ValueError(msg)
        if not self._nodes:
            return EMPTY_ROOT
        *before, (_, root) = self._nodes
        for _, left in reversed(before):
            root = _node(left, root)
        return root

    def _push(self, level: int, root: bytes) -> None:
        """Adds a subtree at the right, and joins pairs of siblings as long as the last two are one."""
        if self.size % (1 << level):
            msg = f"a subtree of level {level} cannot begin at entry {self.size}"
            raise ValueError(msg)
        self.size += 1 << level
        self._nodes.append((level, root))
        while len(self._nodes) > 1 and self._nodes[-2][0] == self._nodes[-1][0] == level:
            if self.size % (2 << level):
                return
            _, right = self._nodes.pop()
            _, left = self._nodes.pop()
            level += 1
            self._nodes.append((level, _node(left, right)))


def tile_at(level: int, index: int, size: int) -> Tile:
    """A tile as it is in a log of `size` entries; its width is 0 if that log does not reach it."""
    width = (size >> (level * _TILE_HEIGHT)) - index * TILE_HASHES
    return Tile(level, index, max(0, min(width, TILE_HASHES)))


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry."""
    return hashlib.sha256(b"\0" + entry).digest()


def grow(size: int, leaf_hashes: Sequence[bytes], read_tile: ReadTile) -> Growth:
    """The log of `size` entries after more entries are appended.

    It reads only the stored partial tiles at the right edge. The caller must write all returned tiles before a
    checkpoint names the new size; writing a tile twice is harmless.
    """
    tiles: dict[Tile, bytes] = {}
    level, before, hashes = 0, size, list(leaf_hashes)
    while hashes:
        index, kept = divmod(before, TILE_HASHES)
        if kept:
            hashes = _hashes(read_tile, Tile(level, index, kept)) + hashes
        full: list[bytes] = []
        for at in range(0, len(hashes), TILE_HASHES):
            chunk = hashes[at : at + TILE_HASHES]
            tiles[Tile(level, index + at // TILE_HASHES, len(chunk))] = b"".join(chunk)
            if len(chunk) == TILE_HASHES:
                full.append(_root(chunk))
        level, before, hashes = level + 1, index, full
    grown = size + len(leaf_hashes)
    return Growth(grown, tree_root(grown, lambda tile: tiles.get(tile) or read_tile(tile)), tiles)


def tree_root(size: int, read_tile: ReadTile) -> bytes:
    """The root of the log's first `size` entries."""
    return _Tree(size, read_tile).root(0, size) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, read_tile: ReadTile) -> list[bytes]:
    """PATH(index, D[size]) of RFC 9162 §2.1.3.1: proves that entry `index` is in the log of `size` entries."""
    if not 0 <= index < size:
        message = f"there is no entry {index} in a log of {size}"
        raise ValueError(message)
    tree, path = _Tree(size, read_tile), []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(tree.root(middle, high))
            high = middle
        else:
            path.append(tree.root(low, middle))
            low = middle
    return path[::-1]


def consistency_proof(old: int, size: int, read_tile: ReadTile) -> list[bytes]:
    """PROOF(old, D[size]) of RFC 9162 §2.1.4.1: proves that the log of `old` entries is the beginning of the other."""
    if not 0 <= old <= size:
        message = f"a log of {old} entries cannot be the beginning of a log of {size}"
        raise ValueError(message)
    if old in {0, size}:
        return []
    tree, path = _Tree(size, read_tile), []
    low, high = 0, size
    while high != old:
        middle = low + _split(high - low)
        if old <= middle:
            path.append(tree.root(middle, high))
            high = middle
        else:
            path.append(tree.root(low, middle))
            low = middle
    if low:
        path.append(tree.root(low, high))
    return path[::-1]


def check_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """RFC 9162 §2.1.3.2. Raises ProofError unless the path leads from the leaf's hash to the root."""
    if not 0 <= index < size:
        raise ProofError(Flaw.LOG, f"the proof names entry {index} of a log of {size} entries")
    place, last, found = index, size - 1, leaf
    for hashed in path:
        if last == 0:
            raise ProofError(Flaw.LOG, f"the inclusion proof is too long for a log of {size} entries")
        if place & 1 or place == last:
            found = _node(hashed, found)
            place, last = _rise(place, last)
        else:
            found = _node(found, hashed)
        place, last = place >> 1, last >> 1
    if last:
        raise ProofError(Flaw.LOG, f"the inclusion proof is too short for a log of {size} entries")
    if found != root:
        sentence = f"entry {index} leads to the root {found.hex()}, the checkpoint states {root.hex()}"
        raise ProofError(Flaw.LOG, sentence)


def check_consistency(old: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]) -> None:
    """RFC 9162 §2.1.4.2. Raises ProofError unless the older log is the beginning of the newer one."""
    if not 0 <= old <= size:
        raise ProofError(Flaw.HISTORY, f"the older log has {old} entries, the newer one {size}")
    if old in {0, size}:
        if path:
            raise ProofError(
                Flaw.HISTORY, f"from {old} to {size} entries there is nothing to prove, but a path is given"
            )
        _check_root(EMPTY_ROOT if old == 0 else root, old_root, f"the newer log at {old} entries")
        return
    if not path:
        raise ProofError(Flaw.HISTORY, f"the consistency proof from {old} to {size} entries is empty")
    found_old, found = _old_and_new_root(old, size, path if old & (old - 1) else [old_root, *path])
    _check_root(found_old, old_root, f"the newer log at {old} entries")
    _check_root(root, found, f"the newer checkpoint of {size} entries")


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> str:
    """The checkpoint as a compact JWS under an environment's key."""
    claims = _CheckpointClaims.model_construct(
        v=_VERSION,
        iss=checkpoint.issuer,
        size=checkpoint.size,
        root=checkpoint.root.hex(),
        at=checkpoint.at_ms,
    )
    return statement.sign(claims.model_dump(), key, CHECKPOINT)


def verify_checkpoint(token: str, jwks: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of a token whose certificate chain leads to a root key of `jwks`. Raises ProofError."""
    signed = statement.verify(token, jwks, CHECKPOINT)
    claims = statement.read(_CheckpointClaims, signed.claims, CHECKPOINT.name)
    signed.check_time(claims.at, "the checkpoint's at")
    return Checkpoint(claims.iss, claims.size, bytes.fromhex(claims.root), claims.at)


class _Tree:
    """The first `size` entries of a log, read from its tiles, each tile once."""

    def __init__(self, size: int, read_tile: ReadTile) -> None:
        self._size = size
        self._tile = lru_cache(maxsize=None)(lambda tile: _hashes(read_tile, tile))

    def root(self, low: int, high: int) -> bytes:
        """The root of D[low:high], a subtree as the RFC splits them."""
        count = high - low
        if count & (count - 1):
            middle = low + _split(count)
            return _node(self.root(low, middle), self.root(middle, high))
        level, rise = divmod(count.bit_length() - 1, _TILE_HEIGHT)
        index, at = divmod(low >> (level * _TILE_HEIGHT), TILE_HASHES)
        return _root(self._tile(tile_at(level, index, self._size))[at : at + (1 << rise)])


def _hashes(read_tile: ReadTile, tile: Tile) -> list[bytes]:
    data = read_tile(tile)
    if not tile.width * HASH_BYTES <= len(data) <= TILE_HASHES * HASH_BYTES or len(data) % HASH_BYTES:
        message = f"{tile.path} has {len(data)} bytes"
        raise ValueError(message)
    return [data[at * HASH_BYTES : (at + 1) * HASH_BYTES] for at in range(tile.width)]


def _root(hashes: list[bytes]) -> bytes:
    """The root of a perfect subtree."""
    while len(hashes) > 1:
        hashes = [_node(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)]
    return hashes[0]


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _split(count: int) -> int:
    """The largest power of two below a count of at least 2."""
    return 1 << ((count - 1).bit_length() - 1)


def _rise(place: int, last: int) -> tuple[int, int]:
    """Skips the levels at which a node at the right edge has no sibling."""
    while place and not place & 1:
        place, last = place >> 1, last >> 1
    return place, last


def _old_and_new_root(old: int, size: int, hashes: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The roots to which a consistency proof leads. Its first hash is that of the subtree which both roots contain."""
    place, last = old - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    found_old = found = hashes[0]
    for hashed in hashes[1:]:
        if last == 0:
            raise ProofError(Flaw.HISTORY, f"the consistency proof is too long for {old} to {size} entries")
        if place & 1 or place == last:
            found_old, found = _node(hashed, found_old), _node(hashed, found)
            place, last = _rise(place, last)
        else:
            found = _node(found, hashed)
        place, last = place >> 1, last >> 1
    if last:
        raise ProofError(Flaw.HISTORY, f"the consistency proof is too short for {old} to {size} entries")
    return found_old, found


def _check_root(stated: bytes, found: bytes, name: str) -> None:
    if stated != found:
        raise ProofError(Flaw.HISTORY, f"history was changed: {name} has the root {stated.hex()}, not {found.hex()}")
