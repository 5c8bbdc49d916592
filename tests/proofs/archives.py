"""A world with an archive: its bucket is in memory beside the table, so that both are one state."""

import base64
import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

from botocore.exceptions import ClientError

from quittance.limits import ARCHIVE_AFTER_DAYS_MIN
from quittance.store.archive import Archive
from quittance.store.blobs import Bundles
from tests.proofs.memory import Item, Memory
from tests.proofs.world import START_MS, World

DAY_MS: Final = 24 * 60 * 60 * 1_000
LATER_MS: Final = START_MS + (ARCHIVE_AFTER_DAYS_MIN + 1) * DAY_MS
OBJECT: Final = "S3#"


class Archiving(Memory):
    """A table, and the objects of a bucket among its items, under keys that no scan returns."""

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, IfNoneMatch: str) -> dict[str, Any]:  # noqa: N803
        assert IfNoneMatch == "*", "a bundle is never replaced"
        if OBJECT + Key in self.items:
            raise ClientError({"Error": {"Code": "PreconditionFailed"}}, "PutObject")
        self.items[OBJECT + Key] = {"pk": {"S": OBJECT + Key}, "body": {"B": Body}}
        return {}

    def get_object(self, *, Bucket: str, Key: str, Range: str = "") -> dict[str, Any]:  # noqa: N803
        if OBJECT + Key not in self.items:
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        data = self.items[OBJECT + Key]["body"]["B"]
        if Range:
            first, last = map(int, Range.removeprefix("bytes=").split("-"))
            if first >= len(data):
                raise ClientError({"Error": {"Code": "InvalidRange"}}, "GetObject")
            data = data[first : last + 1]
        return {"data": data}

    def scan(self, **call: Any) -> dict[str, Any]:
        found = super().scan(**call)["Items"]
        return {"Items": [item for item in found if not item["pk"]["S"].startswith(OBJECT)]}


class _S3:
    """The client of the bucket, by a client of the memory or by one that stands in front of it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def put_object(self, **call: Any) -> Any:
        return self._client.put_object(**call)

    def get_object(self, **call: Any) -> Any:
        return {"Body": BytesIO(self._client.get_object(**call)["data"])}


class ArchivingWorld(World):
    """A world whose old escrows may be archived; `client` serves its table and its bucket."""

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self.settings = self.settings.model_copy(update={"archive_after_days": ARCHIVE_AFTER_DAYS_MIN})
        bundles = Bundles(_S3(client), bucket="archive")  # type: ignore[arg-type]  # the two calls that it makes
        self.ledger._archive = Archive(lambda: bundles)


def resolved(table: Mapping[str, Item]) -> dict[str, Item]:
    """The table with whole escrows, read from the objects without the code under test."""
    return {pk: _whole(table, item) for pk, item in table.items() if not pk.startswith(OBJECT)}


def _whole(table: Mapping[str, Item], item: Item) -> Item:
    if "archived" not in item:
        return item
    first, offset, length = map(int, item["archived"]["S"].split("/"))
    data = table[f"{OBJECT}escrows/{first:016}.jsonl"]["body"]["B"]
    typed = json.loads(data[offset : offset + length])
    return {name: {"B": base64.b64decode(value["B"])} if "B" in value else value for name, value in typed.items()}
