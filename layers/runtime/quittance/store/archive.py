"""The archive: old escrows as they were, many in one object, each replaced in the ledger's table by its tombstone.

    escrows/<first>.jsonl    a bundle: the escrows of whole batches, in the order of the log, from a position on

A bundle is a line of JSON about the bundle, and then one line for each escrow: its item in DynamoDB's own JSON, so that
a read returns the same item, byte for byte. It is written once and never changed.

A tombstone is the item that stays in the table. It has what other code uses without the whole item: what conditions
and sums need, the line of a statement, and the escrow's place in its batch. `archived` says where the whole item is,
and `digest` is the SHA-256 of its line. See docs/adr/0044-an-archive-of-old-escrows.md.
"""

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from quittance.limits import BUNDLE_BYTES_MAX

if TYPE_CHECKING:
    from quittance.store.blobs import Bundles

Item = Mapping[str, Any]

ARCHIVED: Final = "archived"
DIGEST: Final = "digest"
_KEPT: Final = (
    "pk",
    "state",  # conditions, and what a stream's record says
    "account",  # the index `statement`
    "at",
    "channel",  # which numbers of a channel are used
    "number",
    "tickets",
    "task_id",  # the line of a statement or of a channel's tickets
    "agent_id",
    "budget",  # sums
    "paid",
    "fee",
    "refunded",
    "task_judging",
    "swept_ms",  # the sweep's condition
    "batch",  # the place in the log
    "place",
)
_FORM: Final = 1
_FEW: Final = 4  # of one bundle: so many are read one by one


class ArchiveDamagedError(Exception):
    """A bundle, or an escrow in it, is missing or is not what was archived. The text says which, for operators."""


@dataclass(frozen=True, slots=True)
class Record:
    """An escrow in a bundle: its whole item, and where its line is."""

    item: Item
    digest: bytes
    where: str

    @property
    def tombstone(self) -> dict[str, Any]:
        """The item that stays in the table."""
        kept = {name: self.item[name] for name in _KEPT if name in self.item}
        return {**kept, ARCHIVED: {"S": self.where}, DIGEST: {"B": self.digest}}


def is_tombstone(item: Item) -> bool:
    """Whether an item is that of an archived escrow."""
    return ARCHIVED in item


def written(first: int, items: Iterable[Item]) -> bytes:
    """The bundle of whole items from a position of the log on."""
    lines = [_line(item) for item in items]
    body = b"".join(lines)
    header = {"v": _FORM, "first": first, "escrows": len(lines), "sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(header, separators=(",", ":")).encode() + b"\n" + body


def read(first: int, data: bytes) -> list[Record]:
    """The escrows of a bundle, in order. Raises ArchiveDamagedError."""
    line, _, body = data.partition(b"\n")
    lines = body.splitlines(keepends=True)
    due = {"v": _FORM, "first": first, "escrows": len(lines), "sha256": hashlib.sha256(body).hexdigest()}
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if header != due:
        msg = f"the bundle {first} is damaged: its first line is {line[:200]!r}, due is {due}"
        raise ArchiveDamagedError(msg)
    records, offset = [], len(line) + 1
    for each in lines:
        where = f"{first}/{offset}/{len(each)}"
        records.append(Record(_item(each), hashlib.sha256(each).digest(), where))
        offset += len(each)
    return records


class Archive:
    """The bundles. Every method raises PlatformUnavailableError if S3 does not answer."""

    def __init__(self, connect: "Callable[[], Bundles]") -> None:
        """`connect` returns the bucket; it is called when a tombstone is read first."""
        self._connect = connect
        self._last: tuple[int, Sequence[Record]] = -1, ()

    def keep(self, first: int, items: Sequence[Item]) -> None:
        """Stores the bundle of whole items, unless there is one: the stored one wins, so read it back."""
        data = written(first, items)
        if [record.item for record in read(first, data)] != list(items):
            msg = f"the escrows from position {first} on cannot be archived without loss"
            raise ValueError(msg)
        self._connect().keep(first, data)

    def bundle(self, first: int) -> Sequence[Record]:
        """The escrows of the bundle that begins at a position. Raises ArchiveDamagedError."""
        last = self._last
        if last[0] != first:
            self._last = last = first, read(first, self._load(first))
        return last[1]

    def forget(self) -> None:
        """Drops the bundle that was read last, so that it is read again."""
        self._last = -1, ()

    def whole(self, tombstone: Item) -> Item:
        """The item that a tombstone replaced. Raises ArchiveDamagedError."""
        (first, offset, length), digest = _where(tombstone)
        last = self._last
        if last[0] == first:
            record = next((each for each in last[1] if each.where == tombstone[ARCHIVED]["S"]), None)
            found, item = (record.digest, record.item) if record else (b"", {})
        else:
            line = self._load(first, offset, length)
            found = hashlib.sha256(line).digest()
            item = _item(line) if found == digest else {}
        if found != digest or item.get("pk") != tombstone["pk"]:
            msg = f"{tombstone['pk']['S']} is not at {tombstone[ARCHIVED]['S']} of the archive as it was archived"
            raise ArchiveDamagedError(msg)
        return item

    def wholes(self, tombstones: Iterable[Item]) -> dict[str, Item]:
        """The whole items by key, without those that are damaged. If many are of one bundle, it is read once."""
        found: dict[str, Item] = {}
        by_bundle: dict[int, list[Item]] = defaultdict(list)
        for tombstone in tombstones:
            try:
                by_bundle[_where(tombstone)[0][0]].append(tombstone)
            except ArchiveDamagedError:
                continue
        for first, wanted in by_bundle.items():
            try:
                if len(wanted) > _FEW:
                    self.bundle(first)
            except ArchiveDamagedError:
                pass  # an undamaged escrow of it may still be read by itself
            for tombstone in wanted:
                try:
                    found[tombstone["pk"]["S"]] = self.whole(tombstone)
                except ArchiveDamagedError:
                    continue
        return found

    def _load(self, first: int, offset: int = 0, length: int | None = None) -> bytes:
        from quittance.store.blobs import BlobMissingError

        try:
            return self._connect().read(first, offset, length)
        except BlobMissingError as exc:
            msg = f"the bundle {first} is missing, or shorter than {offset + (length or 1)} bytes"
            raise ArchiveDamagedError(msg) from exc


def _where(tombstone: Item) -> tuple[tuple[int, int, int], bytes]:
    """The bundle, the offset and the length of the line that a tombstone names, and the line's digest."""
    try:
        first, offset, length = map(int, tombstone[ARCHIVED]["S"].split("/"))
        digest: bytes = tombstone[DIGEST]["B"]
    except (KeyError, ValueError) as exc:
        msg = f"the tombstone {tombstone['pk']['S']} does not say where its escrow is"
        raise ArchiveDamagedError(msg) from exc
    if not (first >= 0 <= offset and 0 < length <= BUNDLE_BYTES_MAX):
        msg = f"the tombstone {tombstone['pk']['S']} names an impossible place"
        raise ArchiveDamagedError(msg)
    return (first, offset, length), digest


def _line(item: Item) -> bytes:
    """The line of an item: DynamoDB's own JSON, with bytes in base64, in ASCII."""
    typed = {
        name: {kind: base64.b64encode(value).decode() if kind == "B" else value for kind, value in each.items()}
        for name, each in item.items()
    }
    return json.dumps(typed, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _item(line: bytes) -> Item:
    try:
        return {
            name: {
                kind: base64.b64decode(value, validate=True) if kind == "B" else value for kind, value in each.items()
            }
            for name, each in json.loads(line).items()
        }
    except (AttributeError, TypeError, ValueError) as exc:
        msg = f"a line of a bundle is not an item: {line[:200]!r}"
        raise ArchiveDamagedError(msg) from exc
