"""The form of bundles: what is read is what was written, byte for byte, and nothing else is accepted."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance.limits import BUNDLE_BYTES_MAX
from quittance.store.archive import Archive, ArchiveDamagedError, Record, read, written
from quittance.store.blobs import BlobMissingError

NUMBERS = st.integers(-(10**37), 10**37).map(str)
VALUES = st.one_of(
    st.text(max_size=20).map(lambda text: {"S": text}),
    NUMBERS.map(lambda number: {"N": number}),
    st.binary(max_size=20).map(lambda data: {"B": data}),
)
NAMES = st.text(st.characters(codec="ascii"), min_size=1, max_size=8)
ITEMS = st.builds(lambda item, pk: {**item, "pk": {"S": pk}}, st.dictionaries(NAMES, VALUES, max_size=6), st.text())


class Bucket:
    """A bucket with one bundle, which counts its reads."""

    def __init__(self, data: bytes) -> None:
        self.data, self.reads = data, list[tuple[int, int, int | None]]()

    def read(self, first: int, offset: int = 0, length: int | None = None) -> bytes:
        self.reads.append((first, offset, length))
        if first != 7:
            raise BlobMissingError
        return self.data[offset : None if length is None else offset + length]


def archive_of(data: bytes) -> tuple[Archive, Bucket]:
    bucket = Bucket(data)
    return Archive(lambda: bucket), bucket  # type: ignore[arg-type,return-value]  # reads only


def item(number: int) -> dict[str, Any]:
    return {"pk": {"S": f"ESC#{number}"}, "state": {"S": "released"}, "receipt": {"S": "r" * number}}


@given(st.lists(ITEMS, max_size=5), st.integers(0, 2**53))
def test_a_bundle_returns_what_was_written(items: list[Any], first: int) -> None:
    data = written(first, items)
    records = read(first, data)
    assert [record.item for record in records] == items
    for record in records:
        at, offset, length = map(int, record.where.split("/"))
        line = data[offset : offset + length]
        assert (at, hashlib.sha256(line).digest()) == (first, record.digest)
        assert set(json.loads(line)) == set(record.item)


@given(st.data())
def test_any_changed_byte_of_a_bundle_is_noticed(data: st.DataObject) -> None:
    """Every escrow that is read is one that was written, in its place."""
    whole = written(7, [item(number) for number in range(1, 4)])
    at = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    changed = whole[:at] + bytes([other]) + whole[at + 1 :]
    try:
        records = read(7, changed)
    except ArchiveDamagedError:
        return
    assert [record.item for record in records] == [item(number) for number in range(1, 4)]


@given(st.data())
def test_any_changed_byte_of_an_escrow_is_noticed(data: st.DataObject) -> None:
    whole = written(7, [item(number) for number in range(1, 4)])
    record = data.draw(st.sampled_from(read(7, whole)))
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    archive, _ = archive_of(changed)
    _, offset, length = map(int, record.where.split("/"))
    if offset <= at < offset + length:
        with pytest.raises(ArchiveDamagedError, match=record.item["pk"]["S"]):
            archive.whole(record.tombstone)
    else:
        assert archive.whole(record.tombstone) == record.item


@pytest.mark.parametrize(
    "where",
    [
        "", "7", "7/1", "7/1/1/1", "a/1/1", "-1/1/1", "7/-1/1", "7/1/0", "7/1/-1",
        f"7/1/{BUNDLE_BYTES_MAX}", f"7/1/{BUNDLE_BYTES_MAX + 1}", "8/1/1",
    ],
)  # fmt: skip
def test_a_tombstone_that_names_no_escrow_is_damage(where: str) -> None:
    archive, bucket = archive_of(written(7, [item(1)]))
    tombstone = {**Record(item(1), b"d" * 32, where).tombstone}
    with pytest.raises(ArchiveDamagedError):
        archive.whole(tombstone)
    assert archive.wholes([tombstone]) == {}
    asked = [length for *_, length in bucket.reads if length]
    assert max(asked, default=0) <= BUNDLE_BYTES_MAX
    assert bool(asked) == (where in {f"7/1/{BUNDLE_BYTES_MAX}", "8/1/1"}), "the limit, and one beyond"


@pytest.mark.parametrize("line", [b"", b"null\n", b"[]\n", b'{"pk":1}\n', b'{"pk":{"B":"*"}}\n', b"\xff\n"])
def test_a_line_that_is_no_item_is_damage(line: bytes) -> None:
    header = {"v": 1, "first": 7, "escrows": 1, "sha256": hashlib.sha256(line).hexdigest()}
    with pytest.raises(ArchiveDamagedError):
        read(7, json.dumps(header).encode() + b"\n" + line)
    archive, _ = archive_of(line)
    tombstone = Record(item(1), hashlib.sha256(line).digest(), f"7/0/{max(len(line), 1)}").tombstone
    with pytest.raises(ArchiveDamagedError):
        archive.whole(tombstone)


@pytest.mark.parametrize("count", [4, 5])
def test_many_escrows_of_a_bundle_are_read_at_once(count: int) -> None:
    data = written(7, [item(number) for number in range(1, 7)])
    records = read(7, data)[:count]
    archive, bucket = archive_of(data)
    assert archive.wholes([record.tombstone for record in records]) == {
        record.item["pk"]["S"]: record.item for record in records
    }
    assert len(bucket.reads) == (count if count == 4 else 1)
    reads = len(bucket.reads)
    archive.wholes([records[0].tombstone])
    assert len(bucket.reads) == reads + (count == 4), "the bundle that was read last is remembered"
    archive.forget()
    archive.wholes([records[0].tombstone])
    assert len(bucket.reads) > reads


def test_an_item_that_would_not_come_back_is_not_archived() -> None:
    archive, bucket = archive_of(b"")
    with pytest.raises(ValueError, match="without loss"):
        archive.keep(7, [{"pk": {"S": "ESC#1"}, "set": {"SS": ("a", "b")}}])
    assert bucket.reads == []
