"""What a million tasks cost on AWS, counted from real calls, beside two other designs of the same steps.

    python benchmarks/cost.py                # prints the tables; exit status 1 if the saga is less than 3 times as dear
    python benchmarks/cost.py --json FILE    # also writes the figures

Tasks run through the handler of the execute function, as in path.py. Each call is counted; a write of DynamoDB is
billed by the items before and after it and by their entries in the indexes. Then the sweep runs over all tasks of the
kind, and the functions of the table's stream get its changes. Everything is divided by the tasks.

Counted: units, calls, bytes of logs. Computed: the time that Lambda bills, which is this process's own time and the
latencies of LATENCY_MS, which are assumptions. PRICES are those of us-east-1, on demand, first tier, without the free
tier, in US dollars. Storage and traffic to the internet are not included.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from channels import entry, entry_units, size_of
from path import CONTEXT, Bench, Kind, environment, logs_dropped, stdout_to
from scale import scaled, status

from quittance.limits import ARCHIVE_AFTER_DAYS_MIN, KIB
from quittance.store.dynamo_client import DynamoDB
from quittance.usecases import archive as archiving
from quittance.usecases.listings import list_change
from quittance.usecases.notify import emit_change
from quittance.usecases.sweep import sweep
from tests import template
from tests.support import stream_record

TASKS: Final = scaled(100, 4)
BATCH: Final = 10  # records that one invocation of a stream's function gets, at a moderate rate
SAGA_RATIO_MIN: Final = 3.0
MILLION: Final = 1_000_000
RUNNER_GB, SMALL_GB, STREAM_GB = 1.75, 0.5, 0.5  # memory of the functions, as the template sets it

PRICES_DATE: Final = "November 2026"
CALL: Final = "DynamoDB call"
PRICES: Final[Mapping[str, float]] = {
    CALL: 0.0,  # its units are billed
    "write unit": 0.625 / MILLION,
    "read unit": 0.125 / MILLION,
    "S3 put": 5.0 / MILLION,
    "S3 get": 0.4 / MILLION,
    "KMS signature": 15.0 / MILLION,
    "SQS request": 0.4 / MILLION,
    "event": 1.0 / MILLION,
    "Lambda request": 0.2 / MILLION,
    "Lambda GB-second": 0.0000166667,
    "REST API call": 3.5 / MILLION,
    "log byte": 0.5 / 10**9,
    "state transition": 25.0 / MILLION,
    "Aurora I/O": 0.2 / MILLION,
}
# Assumed medians of calls inside a region, in ms.
LATENCY_MS: Final[Mapping[str, float]] = {
    "TransactWriteItems": 10.0,
    "PutItem": 5.0,
    "UpdateItem": 5.0,
    "GetItem": 3.0,
    "BatchGetItem": 8.0,
    "Query": 5.0,
    "TransactGetItems": 8.0,
    "S3 put": 30.0,
    "S3 get": 20.0,
    "event": 10.0,
    "SQS request": 8.0,
    "KMS signature": 10.0,
}
# What stays, for a GB and month: the table, its continuous backup, and S3. The audit reads the archive every day, so
# colder classes of S3, which charge for what is read, would cost more.
TABLE_GB, BACKUP_GB, S3_GB = 0.25, 0.20, 0.023
ENTRY_OVERHEAD_BYTES: Final = 100  # that DynamoDB bills for each item and each entry of an index
PLATFORM_LOG_BYTES: Final = 400  # Lambda's own lines START, END and REPORT of one invocation
_WRITES: Final = {"PutItem", "UpdateItem", "TransactWriteItems", "DeleteItem"}
_SERVICES: Final = {
    "PutObject": "S3 put",
    "GetObject": "S3 get",
    "Sign": "KMS signature",
    "GetPublicKey": "KMS signature",
    "PutEvents": "event",
    "SendMessage": "SQS request",
}


class Used(defaultdict[str, float]):
    """Amounts, by name of the price."""

    def __init__(self) -> None:
        super().__init__(float)

    def adding(self, more: Mapping[str, float]) -> "Used":
        """These amounts and more."""
        for name, amount in more.items():
            self[name] += amount
        return self


@dataclass
class Cost:
    """What one task uses, by the part of a task that uses it."""

    name: str
    used: dict[str, Used] = field(default_factory=dict)
    stored_bytes: dict[str, float] = field(default_factory=dict)
    archived: Used = field(default_factory=Used)

    def dollars(self, part: str | None = None) -> float:
        """The dollars of a million tasks, of one part or of all."""
        parts = self.used.values() if part is None else [self.used[part]]
        return sum(PRICES[name] * amount * MILLION for used in parts for name, amount in used.items())


class Meter:
    """Counts the calls of this process to AWS, with what DynamoDB bills, and keeps the changes of the ledger."""

    def __init__(self, bench: Bench) -> None:
        self.used = Used()
        self.waited_ms = 0.0
        self.changes: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
        self.tables = {
            name: found["Properties"].get("GlobalSecondaryIndexes", [])
            for name, found in template.template()["Resources"].items()
            if found["Type"] == "AWS::DynamoDB::Table"
        }
        self._send = DynamoDB._call
        self.bench = bench

    @contextmanager
    def counting(self) -> Iterator[Used]:
        """What is used inside, by name of the price; Lambda's time is that of this process and of assumed latencies."""
        self.used, self.waited_ms = Used(), 0.0
        cloud = self.bench.cloud
        clients = (cloud._s3, cloud.keys._client, cloud.bus._client)
        for client in clients:
            client.meta.events.register("before-call", self._note_service, unique_id="cost")
        try:
            with mock.patch.object(DynamoDB, "_call", self._called), tempfile.TemporaryFile() as log, stdout_to(log):
                yield self.used
                sys.stdout.flush()
                self.used["log byte"] += os.fstat(log.fileno()).st_size
        finally:
            for client in clients:
                client.meta.events.unregister("before-call", unique_id="cost")

    @property
    def _called(self) -> Callable[..., Any]:
        def call(client: DynamoDB, operation: str, request: Mapping[str, Any]) -> Any:
            self.waited_ms += LATENCY_MS[operation]
            self.used[CALL] += 1
            if operation not in _WRITES:
                answer = self._send(client, operation, request)
                self.used["read unit"] += _read_units(operation, request, answer)
                return answer
            actions = (
                [change for action in request["TransactItems"] for change in action.values()]
                if operation == "TransactWriteItems"
                else [request]
            )
            before = [self._item(client, change) for change in actions]
            answer = self._send(client, operation, request)
            times = 2 if operation == "TransactWriteItems" else 1
            for change, old in zip(actions, before, strict=True):
                new = self._item(client, change)
                self.used["write unit"] += times * max(1, -(-max(size_of(old), size_of(new)) // KIB))
                self.used["write unit"] += entry_units(self.tables[change["TableName"]], old, new)
                if change["TableName"] == "LedgerTable" and old != new:
                    self.changes.append((old, new))
            return answer

        return call

    def _item(self, client: DynamoDB, change: Mapping[str, Any]) -> Mapping[str, Any]:
        source = change.get("Key") or change["Item"]
        key = {name: source[name] for name in ("pk", "sk") if name in source}
        request = {"TableName": change["TableName"], "Key": key, "ConsistentRead": True}
        item: Mapping[str, Any] = self._send(client, "GetItem", request).get("Item", {})
        return item

    def _note_service(self, model: Any, **_: Any) -> None:
        name = _SERVICES[model.name]
        self.used[name] += 1
        self.waited_ms += LATENCY_MS[name]


def _read_units(operation: str, request: Mapping[str, Any], answer: Mapping[str, Any]) -> float:
    """The units of a read: 4 KB each, half of it if the read is eventually consistent, twice in a transaction."""
    if operation == "GetItem":
        return _quarters([answer.get("Item", {})]) * (1 if request.get("ConsistentRead") else 0.5)
    if operation == "TransactGetItems":
        return sum(2 * _quarters([found.get("Item", {})]) for found in answer["Responses"])
    if operation == "BatchGetItem":
        found = [item for items in answer["Responses"].values() for item in items]
        consistent = any(each.get("ConsistentRead") for each in request["RequestItems"].values())
        return sum(_quarters([item]) for item in found) * (1 if consistent else 0.5)
    return _quarters(answer["Items"]) * (1 if request.get("ConsistentRead") else 0.5)


def _quarters(items: list[Mapping[str, Any]]) -> int:
    return max(1, -(-sum(map(size_of, items)) // (4 * KIB)))


def cost_of(bench: Bench, kind: Kind) -> Cost:
    """What one task of a kind uses, by part: the task, the sweep, and the functions of the table's stream."""
    cloud, meter, cost = bench.cloud, Meter(bench), Cost(kind.name)
    bench.configure(kind)
    with meter.counting():  # a warm environment; the sweep takes the tasks of earlier kinds
        bench.app.handler(kind.send(), CONTEXT)
        sweep(cloud)
        _archive(bench)
    meter.changes.clear()
    before = {name: _stored_bytes(meter, name) for name in ("LedgerTable", "ListingsTable")}
    events = [kind.send() for _ in range(TASKS)]
    with meter.counting() as used:
        began = time.process_time()
        for event in events:
            answer = bench.app.handler(event, CONTEXT)
            assert answer["statusCode"] == 200, answer["body"]
        own_ms = (time.process_time() - began) * 1_000
    cost.used["task"] = _each(used, own_ms + meter.waited_ms, TASKS, gigabytes=RUNNER_GB).adding(
        {"REST API call": 1, "Lambda request": 1, "log byte": PLATFORM_LOG_BYTES}
    )
    with meter.counting() as used:
        began = time.process_time()
        sweep(cloud)
        own_ms = (time.process_time() - began) * 1_000
    cost.used["sweep"] = _each(used, own_ms + meter.waited_ms, TASKS, gigabytes=SMALL_GB)
    changes = [stream_record(number, dict(old), dict(new)) for number, (old, new) in enumerate(meter.changes)]
    with meter.counting() as used:
        began, listed = time.process_time(), set[str]()
        for record in changes:
            list_change(cloud, record, listed)
            emit_change(cloud, record)
        own_ms = (time.process_time() - began) * 1_000
    cost.used["listings and events"] = _each(used, own_ms + meter.waited_ms, TASKS, gigabytes=STREAM_GB).adding(
        {"Lambda request": 2 * len(changes) / TASKS / BATCH, "log byte": 2 * PLATFORM_LOG_BYTES / BATCH}
    )
    cost.stored_bytes = {name: (_stored_bytes(meter, name) - already) / TASKS for name, already in before.items()}
    with meter.counting() as used:
        began = time.process_time()
        in_s3 = _archive(bench)
        own_ms = (time.process_time() - began) * 1_000
    cost.archived = _each(used, own_ms + meter.waited_ms, TASKS, gigabytes=SMALL_GB)
    cost.stored_bytes["left"] = (_stored_bytes(meter, "LedgerTable") - before["LedgerTable"]) / TASKS
    cost.stored_bytes["S3"] = in_s3 / TASKS
    return cost


def _archive(bench: Bench) -> int:
    """Archives all tasks until now as one bundle, as if they were old; returns the bytes of the bundle."""
    cloud = bench.cloud
    head = cloud.ledger.log.head()
    waiting, skew_ms, settings = head.published - head.archived, cloud.skew_ms, cloud.settings
    cloud.skew_ms += (ARCHIVE_AFTER_DAYS_MIN + 1) * 24 * 60 * 60 * 1_000
    cloud.settings = settings.model_copy(update={"archive_after_days": ARCHIVE_AFTER_DAYS_MIN})
    try:
        with mock.patch.object(archiving, "BUNDLE_ESCROWS_MIN", waiting):
            done = archiving.archive(cloud)
    finally:
        cloud.skew_ms, cloud.settings = skew_ms, settings
    assert (done.escrows, done.bundles) == (waiting, 1)
    return len(cloud.bundles.read(head.archived))


def _stored_bytes(meter: Meter, table: str) -> int:
    """The bytes that DynamoDB bills for all items of a table and their entries in the indexes."""
    dynamodb = meter.bench.cloud.dynamodb
    total = 0
    for page in dynamodb.get_paginator("scan").paginate(TableName=table):
        for item in page["Items"]:
            entries = [item, *filter(None, (entry(index, item) for index in meter.tables[table]))]
            total += sum(size_of(each) + ENTRY_OVERHEAD_BYTES for each in entries)
    return total


def _each(used: Mapping[str, float], took_ms: float, tasks: int, *, gigabytes: float) -> Used:
    """The share of one task."""
    share = Used().adding({name: amount / tasks for name, amount in used.items()})
    share["Lambda GB-second"] += took_ms / 1_000 * gigabytes / tasks
    return share


def reference() -> Cost:
    """The reference design: three transactions of a relational database, and a compilation at every call.

    Its own figures: a run of a small module with its compilation takes about 100 ms more, and each transaction reads
    and writes about eight pages. The instances of the database, which run all the time, are not counted.
    """
    used = Used().adding({"REST API call": 1, "Lambda request": 1, "log byte": 1_500, "Aurora I/O": 3 * 8})
    used["Lambda GB-second"] = (3 * 10.0 + 100.0 + 10.0) / 1_000 * RUNNER_GB
    return Cost("reference: three SQL transactions", {"task": used})


def saga(task: Cost) -> Cost:
    """A standard workflow of Step Functions with one state for each step, each a function with the same writes.

    Its states: start, check, fund, run, choice, settle, credit the owner, credit the platform, record the outcome,
    answer, end, and on the way a wait for the callback. Each of the seven functions is invoked and logs by itself, and
    writes its own item where we write several in one transaction.
    """
    states, functions = 12, 7
    used = Used().adding({"state transition": states, "REST API call": 1, "Lambda request": functions})
    used["log byte"] = functions * (PLATFORM_LOG_BYTES + 300)
    used["write unit"] = task.used["task"]["write unit"]
    used["Lambda GB-second"] = functions * 15.0 / 1_000 * SMALL_GB + 0.02 * RUNNER_GB
    return Cost("saga of Step Functions", {"task": used})


def report(costs: list[Cost], others: list[Cost]) -> int:
    """Print the tables; return 1 if the saga is too cheap."""
    names = [name for name in PRICES if any(used[name] for cost in costs for used in cost.used.values())]
    print(f"used by one task; prices of {PRICES_DATE}")
    for cost in costs:
        print(f"\n{cost.name}\n{'':<28}" + "".join(f"{part:>22}" for part in cost.used) + f"{'$ per million':>16}")
        for name in names:
            amounts = [used[name] for used in cost.used.values()]
            dollars = sum(amounts) * PRICES[name] * MILLION
            if any(amounts):
                print(f"{name:<28}" + "".join(f"{amount:22.4g}" for amount in amounts) + f"{dollars:16.2f}")
        print(
            f"{'$ per million':<28}"
            + "".join(f"{cost.dollars(part):22.2f}" for part in cost.used)
            + f"{cost.dollars():16.2f}"
        )
    _report_stored(costs)
    print(f"\n{'$ per million tasks':<40}{'':>10}")
    least = min(other.dollars() for other in others if other.name.startswith("saga"))
    for cost in [*costs, *others]:
        print(f"{cost.name:<40}{cost.dollars():10.2f}")
    ratio = least / costs[0].dollars()
    verdict = "ok" if ratio >= SAGA_RATIO_MIN else "TOO LOW"
    print(f"\nsaga / trivial task: {ratio:.1f}, at least {SAGA_RATIO_MIN:g}: {verdict}")
    return int(ratio < SAGA_RATIO_MIN)


def _report_stored(costs: list[Cost]) -> None:
    print(f"\n{'stored for one task, bytes, with indexes':<66}{'$ a month for a billion tasks':>29}{'to archive':>13}")
    print(
        f"{'':<24}{'table':>8}{'archived: table':>17}{'S3':>6}{'listings':>11}"
        f"{'table':>9}{'archived':>10}{'listings':>10}{'$ a million':>13}"
    )
    for cost in costs:
        table, listings = cost.stored_bytes["LedgerTable"], cost.stored_bytes["ListingsTable"]
        left, in_s3 = cost.stored_bytes["left"], cost.stored_bytes["S3"]
        kept = TABLE_GB + BACKUP_GB  # a billion bytes are a GB: a byte of each of a billion tasks
        once = sum(PRICES[name] * amount * MILLION for name, amount in cost.archived.items())
        print(
            f"{cost.name:<24}{table:8.0f}{left:17.0f}{in_s3:6.0f}{listings:11.0f}"
            f"{table * kept:9,.0f}{left * kept + in_s3 * S3_GB:10,.0f}{listings * kept:10,.0f}{once:13.2f}"
        )
    units = ", ".join(f"{costs[0].archived[name]:.2f} {name}s" for name in ("write unit", "read unit"))
    print(f"\narchiving the first one takes {units}, and for a bundle of 256 one put and one get")


def main() -> int:
    """Count and print; return 1 if the ratio to the saga is too small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with logs_dropped(), environment() as bench:
        costs = [cost_of(bench, kind) for kind in bench.kinds]
    others = [reference(), saga(costs[0])]
    if options.json:
        options.json.write_text(json.dumps([vars(cost) for cost in [*costs, *others]]))
    return report(costs, others)


if __name__ == "__main__":
    sys.exit(status(main()))
