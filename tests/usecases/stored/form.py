"""Reads and writes the stored platform, and calls the Lambda functions as AWS calls them.

The stored platform is the content of all tables, buckets and queues of a platform at one moment, in the JSON files
beside this module. make.py makes them.

    platform.json   settings, time, root keys, agents by name, and the report of the audit
    ledger.json     the items of the ledger's table, as DynamoDB JSON; bytes in base64
    registry.json   the items of the registry's table, likewise
    objects.json    the objects of the buckets: all their bytes, packed, then a line for each object
    tokens.json     the receipts and checkpoints, packed
    calls.json      repeatable calls of the API with their answers, packed
    reports.json    which checks of each receipt passed, packed
    messages.json   messages of the queues, deliveries to webhooks, and events of the bus, packed

Packed data is compressed (LZMA) and encoded in base64. `PYTHONPATH=layers/runtime:. python -m
tests.usecases.stored.form calls` prints a file. Only tokens.json holds receipts and checkpoints: in the other files
"@ESC#<id>" stands for the receipt of that escrow, and "@checkpoint/<size>" for that checkpoint.
"""

import base64
import hashlib
import importlib.util
import io
import json
import lzma
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quittance import platform as bootstrap
from tests.support import ROOT, Cloud

FOLDER = Path(__file__).parent
PREFIX = "/api/v1/economic"
BUCKETS = ("uploads", "binaries", "outputs", "log")
DECIDED = ("active", "rejected", "failed")
KEPT_HEADERS = ("Location", "Retry-After")
_NAME = re.compile(r"@(ESC#[a-z2-7]{26}|checkpoint/[0-9]+)")
Item = dict[str, dict[str, Any]]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Object:
    """An object of a bucket."""

    bucket: str
    key: str
    version: str
    data: bytes


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms

    def wait(self, seconds: float) -> None:
        self.ms += int(seconds * 1_000)


@cache
def load(function: str) -> ModuleType:
    """A function's code."""
    spec = importlib.util.spec_from_file_location(f"stored_{function}", ROOT / "functions" / function / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve(cloud: Cloud, patch: pytest.MonkeyPatch) -> None:
    """Makes the functions use this platform."""
    bootstrap._platform.cache_clear()
    patch.setattr(bootstrap, "settings", lambda: cloud.settings)
    patch.setattr(bootstrap, "Platform", lambda _: cloud)


class Functions:
    """Calls the functions, so that a test needs no name of the code behind them."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def invoke(self, function: str, event: Any) -> Any:
        return load(function).handler(event, self._context)

    def http(self, row: Row) -> Row:
        """Makes the call of a row; returns status, answer, and the headers that say where to look and when."""
        headers = {"Content-Type": "application/json", **row.get("headers", {})}
        query = row.get("query")
        event = {
            "resource": row["path"],
            "path": PREFIX + row["path"],
            "httpMethod": row["method"],
            "headers": headers,
            "multiValueHeaders": {name: [value] for name, value in headers.items()},
            "queryStringParameters": query,
            "multiValueQueryStringParameters": {name: [value] for name, value in query.items()} if query else None,
            "requestContext": {
                "requestId": "r",
                "authorizer": {"sub": row.get("user", "alice"), "scope": row.get("scope", "")},
                "httpMethod": row["method"],
            },
            "body": json.dumps(row["body"]) if "body" in row else None,
            "isBase64Encoded": False,
        }
        answer = self.invoke(row["function"], event)
        found = {name: values[0] for name, values in answer["multiValueHeaders"].items()}
        is_json = found["Content-Type"].endswith("json")
        return {
            "status": answer["statusCode"],
            "answer": json.loads(answer["body"]) if is_json else answer["body"],
            "found": {name: found[name] for name in KEPT_HEADERS if name in found},
        }

    def publish(self, agent_id: str, number: int, version: str) -> list[str]:
        """Tells the publisher of a posted module, as S3 does."""
        posted = {"key": f"uploads/{agent_id}/{number}", "versionId": version}
        record = {"eventSource": "aws:s3", "s3": {"bucket": {"name": "uploads"}, "object": posted}}
        answer: list[str] = self.invoke("publish", {"Records": [record]})
        return answer

    def messages(self, function: str, *bodies: str) -> list[str]:
        """Hands messages of a queue to its function; returns the numbers of those that the queue is to keep."""
        records = [
            {
                "messageId": str(number),
                "receiptHandle": "of-a-queue-of-before",
                "body": body,
                "attributes": {"ApproximateReceiveCount": "1"},
                "messageAttributes": {},
                "eventSource": "aws:sqs",
            }
            for number, body in enumerate(bodies)
        ]
        failures = self.invoke(function, {"Records": records})["batchItemFailures"]
        return [failure["itemIdentifier"] for failure in failures]


def write(name: str, rows: list[Any], *, packed: bool = False) -> None:
    """Writes rows, one a line, or packed."""
    lines = ",\n".join(json.dumps(row, separators=(",", ":"), sort_keys=True) for row in rows)
    text = f"[\n{lines}\n]\n"
    (FOLDER / f"{name}.json").write_text(json.dumps(pack(text.encode())) + "\n" if packed else text)


def read(name: str) -> list[Any]:
    """The rows of a file."""
    content = json.loads((FOLDER / f"{name}.json").read_text())
    rows: list[Any] = json.loads(unpack(content)) if isinstance(content, str) else content
    return rows


def encode(item: Item) -> Item:
    """An item whose bytes are in base64."""
    return {name: _typed(value, lambda data: base64.b64encode(data).decode()) for name, value in item.items()}


def decode(item: Item) -> Item:
    """The item that was encoded."""
    return {name: _typed(value, base64.b64decode) for name, value in item.items()}


def _typed(value: dict[str, Any], change: Any) -> dict[str, Any]:
    return {kind: change(inner) if kind == "B" else inner for kind, inner in value.items()}


def pack(data: bytes) -> str:
    """Bytes, compressed, in base64."""
    return base64.b64encode(lzma.compress(data, format=lzma.FORMAT_ALONE, preset=9)).decode()


def unpack(text: str) -> bytes:
    """The bytes that were packed."""
    return lzma.decompress(base64.b64decode(text), format=lzma.FORMAT_ALONE)


def tokens(ledger: list[Item], objects: list[Object]) -> dict[str, str]:
    """Receipts and checkpoints by their names."""
    named = {f"@{item['pk']['S']}": item["receipt"]["S"] for item in ledger if "receipt" in item}
    checkpoints = {f"@{one.key}": one.data.decode() for one in objects if one.key.startswith("checkpoint/")}
    return named | checkpoints


def shortened(value: Any, names: dict[str, str]) -> Any:
    """A JSON value whose receipts and checkpoints are replaced by their names."""
    text = json.dumps(value)
    for name, token in names.items():
        text = text.replace(token, name)
    return json.loads(text)


def whole(value: Any, names: dict[str, str]) -> Any:
    """The JSON value that was shortened."""
    return json.loads(_NAME.sub(lambda found: names[found[0]], json.dumps(value)))


def write_objects(objects: list[Object]) -> None:
    """Writes the bytes of all objects, packed together, and a line for each."""
    rows = [{"bucket": one.bucket, "key": one.key, "version": one.version, "bytes": len(one.data)} for one in objects]
    write("objects", [pack(b"".join(one.data for one in objects)), *rows])


def read_objects() -> list[Object]:
    """The objects that were written."""
    packed, *rows = read("objects")
    data = io.BytesIO(unpack(packed))
    return [Object(row["bucket"], row["key"], row["version"], data.read(row["bytes"])) for row in rows]


def scan(client: Any, table: str) -> list[Item]:
    """All items of a table, by their keys."""
    items = [item for page in client.get_paginator("scan").paginate(TableName=table) for item in page["Items"]]
    return sorted(items, key=lambda item: item["pk"]["S"])


def objects(client: Any) -> list[Object]:
    """Every object of the buckets, at its newest version."""
    found = []
    for bucket in BUCKETS:
        for listed in client.list_objects_v2(Bucket=bucket).get("Contents", []):
            answer = client.get_object(Bucket=bucket, Key=listed["Key"])
            found.append(Object(bucket, listed["Key"], answer["VersionId"], answer["Body"].read()))
    return found


def stdin(body: Row) -> bytes:
    """The bytes that an agent reads for the body of an execute request whose input is text or in base64."""
    return base64.b64decode(body["input_base64"]) if "input_base64" in body else body["input"].encode()


def output(answer: Row) -> bytes | None:
    """The bytes of the output that an answer holds."""
    if answer["output_base64"] is not None:
        return base64.b64decode(answer["output_base64"])
    return None if answer["output"] is None else answer["output"].encode()


class EventQueue:
    """A queue that receives every event of the platform's bus."""

    def __init__(self, functions: Functions, *, sqs: Any, events: Any) -> None:
        self._functions, self._sqs = functions, sqs
        self._url = sqs.create_queue(QueueName="events")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        events.put_rule(Name="all", EventBusName="bus", EventPattern=json.dumps({"source": ["quittance"]}))
        events.put_targets(Rule="all", EventBusName="bus", Targets=[{"Id": "q", "Arn": arn}])

    def of(self, item: Item, at_s: int) -> list[Row]:
        """The events that the last change of an item publishes, sent through `notify` as a stream record."""
        change = {
            "ApproximateCreationDateTime": at_s,
            "Keys": {"pk": item["pk"]},
            "NewImage": encode(item),
            "OldImage": encode(_image_before(item)),
            "SequenceNumber": "1",
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        }
        record = {"eventID": "1", "eventName": "MODIFY", "eventSource": "aws:dynamodb", "dynamodb": change}
        assert self._functions.invoke("notify", {"Records": [record]}) == {"batchItemFailures": []}
        published = [json.loads(body) for body in taken(self._sqs, self._url)]
        return [{name: one[name] for name in ("source", "detail-type", "detail")} for one in published]


def _image_before(item: Item) -> Item:
    """The old image of the change that publishes an event, as far as `notify` reads it."""
    if item["pk"]["S"].startswith("ESC#"):
        return item | {"state": {"S": "funded"}}
    if item["pk"]["S"].startswith("OUT#"):
        return {} if item["payout"]["S"] == "requested" else item | {"payout": {"S": "requested"}}
    return item | {"upload_state": {"S": "publishing"}}


def has_event(item: Item) -> bool:
    """Whether the last change of an item publishes an event."""
    kind = item["pk"]["S"].partition("#")[0]
    return kind == "OUT" or "receipt" in item or (kind == "AGENT" and item["upload_state"]["S"] in DECIDED)


def taken(sqs: Any, url: str) -> list[str]:
    """The bodies of all messages that wait in a queue, which are deleted."""
    bodies = []
    while found := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        for message in found:
            bodies.append(message["Body"])
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return bodies


@dataclass(frozen=True, slots=True)
class Stored:
    """The files, as far as receipts need them."""

    ledger: list[Item]
    registry: list[Item]
    objects: list[Object]
    calls: list[Row]

    @classmethod
    def read(cls) -> "Stored":
        (names,) = read("tokens")
        ledger = [decode(whole(item, names)) for item in read("ledger")]
        checkpoints = [
            Object("log", name.removeprefix("@"), "", token.encode())
            for name, token in names.items()
            if name.startswith("@checkpoint/")
        ]
        registry = [decode(item) for item in read("registry")]
        return cls(ledger, registry, [*read_objects(), *checkpoints], whole(read("calls"), names))

    def settled(self) -> list[Item]:
        """The escrows that have a receipt."""
        return [item for item in self.ledger if "receipt" in item]

    def evidence(self, escrow: Item) -> dict[str, Any]:
        """All that is known beside a receipt, by the names that the verifier has for it."""
        receipts = {item["pk"]["S"]: item["receipt"]["S"] for item in self.settled()}
        modules = {one.key: one.data for one in self.objects}
        known: dict[str, Any] = {
            "module": modules[f"modules/{escrow['module_sha256']['S']}.wasm"],
            "tariff": escrow["tariff"]["S"].encode(),
        }
        for item in self.registry:
            rules = item.get("rules", {}).get("S", "").encode()
            if sha256(rules) == escrow.get("agent_rules_sha256", {}).get("S"):
                known["agent_rules"] = rules
        for side, _, _, escrow_id in json.loads(escrow.get("judges", {}).get("S", "[]")):
            known[f"{side}_judge"] = receipts[f"ESC#{escrow_id}"]
        for row in self.calls:
            if row["function"] == "execute" and f"ESC#{row['answer'].get('escrow_id')}" == escrow["pk"]["S"]:
                known["input"] = stdin(row["body"])
                known["output"] = output(row["answer"])
                if "acceptance" in row["body"]:
                    known["task_rules"] = json.dumps(row["body"]["acceptance"]).encode()
        return known


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.stdout.writelines(json.dumps(row, indent=1) + "\n" for row in read(sys.argv[1]))
