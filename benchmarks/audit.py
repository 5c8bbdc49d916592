"""What an audit costs for each million escrows, and a plan for ten million.

    python benchmarks/audit.py               # 3,000 tasks; QUITTANCE_QUICK=1 for 120
    python benchmarks/audit.py --json FILE   # also writes the figures

The audit runs on an in-memory DynamoDB as the state machine runs it: every step has its own auditor, and what passes
between parts is JSON and stored objects. The real client serialises, signs, parses and checks; only the connection is
replaced. Half of the tasks are paid by accounts, half by tickets of channels; a quarter have a judge of their own. All
are swept, logged and published, and older than the 20 minutes in which items may still change.

Counted: calls and read units. Measured: processor time of this process, without what the replaced service takes; and
the peak memory of a step, in a run of its own. Computed: the time that Lambda bills, which is the processor time at the
share of a processor that the function's memory has, and the latencies of LATENCY_MS in cost.py. Prices are those of
cost.py.
"""

import argparse
import base64
import json
import sys
import time
import tracemalloc
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))

from boto3.session import Session
from channels import size_of
from cost import LATENCY_MS, MILLION, PRICES, _read_units
from path import logs_dropped
from scale import scaled, status

from quittance import limits
from quittance.proof.parts import Part, Phase, State, digest_of
from quittance.store.dynamo_client import DynamoDB
from quittance.usecases import audit as auditing
from quittance.usecases import execute
from quittance.usecases.sweep import sweep
from tests.proofs.memory import Item, Memory, segment_of
from tests.proofs.world import (
    FLAT,
    FLAT_MICRO,
    HOT,
    JUDGED,
    START_MS,
    Shelf,
    World,
    ask,
    fill_bonds,
    open_channel,
    quiet,
    ticket_for,
)

_T = TypeVar("_T")

TASKS: Final = scaled(3_000, 120)
PAYERS: Final = 40
SWEEP_EVERY: Final = 100
PAGE_BYTES: Final = limits.MIB
CPU: Final = 1_024 / 1_769  # of the function's memory
GIGABYTES: Final = 1.0
SCAN_PAGE_MS: Final = 40.0  # an assumption, as those of LATENCY_MS
TARGET: Final = 10 * MILLION
AT_ONCE: Final = (1, 10, 40)
TABLE_UNITS_A_SECOND: Final = 40_000  # read units that AWS allows a table on demand by default
TRANSITIONS_OF_STEP: Final = 2
HOURS_MAX: Final = 1.0  # for ten million escrows, 40 parts at once


class Table(Memory):
    """The in-memory DynamoDB, whose scans have pages of 1 MB."""

    def scan(self, **call: Any) -> dict[str, Any]:
        keys = segment_of(self.items, call.get("Segment", 0), call.get("TotalSegments", 1))
        first = int(call.get("ExclusiveStartKey", {}).get("page", 0))
        page: list[Item] = []
        size, at = 0, first
        while at < len(keys) and size < PAGE_BYTES:
            page.append(self.items[keys[at]])
            size += size_of(page[-1])
            at += 1
        return {"Items": page} | ({"LastEvaluatedKey": {"page": at}} if at < len(keys) else {})


@dataclass
class Spent:
    """What the steps of one kind of part took."""

    steps: int = 0
    cpu_s: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    read_units: float = 0.0
    peak_bytes: int = 0

    def waits_s(self) -> float:
        """How long the calls of DynamoDB take. Their number grows with the escrows."""
        waits = {**LATENCY_MS, "Scan": SCAN_PAGE_MS}
        return sum(count * waits[name] for name, count in self.calls.items() if not name.startswith("S3")) / 1_000


def _base64(data: object) -> str:
    assert isinstance(data, bytes)
    return base64.b64encode(data).decode()


class Connection:
    """Answers requests from the table, and counts them. Its own time is not the audit's."""

    host = "dynamodb.us-east-1.amazonaws.com"

    bench: "Bench"

    def __init__(self, table: Table) -> None:
        self._table = table

    def post(self, headers: Mapping[str, str], body: bytes) -> tuple[int, str | None, bytes]:
        began_s = time.process_time()
        name = next(value for key, value in headers.items() if key.lower() == "x-amz-target").rpartition(".")[2]
        operation = "".join("_" + letter.lower() if letter.isupper() else letter for letter in name).lstrip("_")
        request = json.loads(body)
        answer = getattr(self._table, operation)(**request)
        spent = self.bench.spent
        spent.calls[name] += 1
        spent.read_units += _read_units(name, request, answer)
        if name == "BatchGetItem":  # a key without an item costs a unit, too
            asked = sum(len(each["Keys"]) for each in request["RequestItems"].values())
            spent.read_units += asked - sum(map(len, answer["Responses"].values()))
        content = json.dumps(answer, default=_base64, separators=(",", ":")).encode()
        checksum = str(zlib.crc32(content))
        self.bench.excluded_s += time.process_time() - began_s
        return 200, checksum, content

    def close(self) -> None:
        """Nothing is open."""


class Bench:
    """One audit in so many parts, and what each kind of part takes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.objects: dict[str, bytes] = {}
        self.by_kind: defaultdict[str, Spent] = defaultdict(Spent)
        self.spent = Spent()
        self.excluded_s = 0.0

    def keep(self, data: bytes) -> str:
        self.spent.calls["S3 put"] += 1
        self.objects[digest := digest_of(data)] = data
        return digest

    def load(self, digest: str) -> bytes:
        self.spent.calls["S3 get"] += 1
        return self.objects[digest]

    def load_range(self, digest: str, first: int, size: int) -> bytes:
        return self.load(digest)[first : first + size]

    def audit(self, parts: int) -> "Bench":
        """Runs the audit, which must find nothing."""
        here: Any = self
        state = self._timed("plan", lambda: auditing.begin(self.world, here, run="bench", at_least=parts))
        while state.phase != Phase.DONE:
            done = [self._finish(part) for part in state.parts]
            reached = State.received(state.sent(self.keep)["state"], self.load)
            state = self._timed("plan", partial(auditing.advance, self.world, here, reached, done))
        result = auditing.verdict(here, state)
        assert not result.count, auditing.report(result)
        return self

    def _finish(self, part: Part) -> Part:
        here: Any = self
        while not part.done:
            read = Part.read(json.loads(json.dumps(part.json())))
            part = self._timed(part.kind, partial(auditing.step, self.world, here, read))
        return part

    def _timed(self, kind: str, do: Callable[[], _T]) -> _T:
        self.spent = spent = self.by_kind[kind]
        tracing = tracemalloc.is_tracing()
        if tracing:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
        began_s, excluded_s = time.process_time(), self.excluded_s
        result = do()
        spent.cpu_s += time.process_time() - began_s - (self.excluded_s - excluded_s)
        spent.steps += 1
        if tracing:
            spent.peak_bytes = max(spent.peak_bytes, tracemalloc.get_traced_memory()[1] - before)
        return result


def filled() -> tuple[Table, Connection, World, int]:
    """A table with tasks of all kinds that are over, and the number of escrows."""
    table, shelf, now_ms = Table(), Shelf(), START_MS
    world = World(table, now_ms=lambda: now_ms, work_shards=4, left_ms=lambda: 60_000, tiles=shelf)
    with quiet():
        fill_bonds(world)
        payers = [f"payer-{number}" for number in range(PAYERS)]
        for payer in payers:
            world.ledger.deposit(payer, "start", 10**12, now_ms=now_ms)
        opened = {payer: open_channel(world, payer, payer, tickets=10_000) for payer in payers[:: PAYERS // 4]}
        used: Counter[str] = Counter()
        channels = list(opened.values())
        for number in range(TASKS):
            agent = (FLAT, HOT, JUDGED, FLAT)[number % 4]
            if number % 2:
                channel = channels[number % len(channels)]
                used[channel.channel_id] += 1
                named = f"{channel.channel_id}.{used[channel.channel_id]}"
                request = ask(named, FLAT if agent == HOT else agent, budget=2 * FLAT_MICRO)
                execute.redeem(world, channel.channel_id, request, ticket_for(channel, request))
            else:
                execute.execute(world, payers[number % PAYERS], ask(f"t{number}", agent, budget=8 * FLAT_MICRO))
            if number % SWEEP_EVERY == SWEEP_EVERY - 1:
                sweep(world)
        sweep(world)
    connection, later_ms = Connection(table), now_ms + 60 * 60_000
    client = _client(connection)
    aged = World(client, now_ms=lambda: later_ms, work_shards=4, left_ms=lambda: 600_000, tiles=shelf)
    escrows = sum("state" in item and pk.startswith("ESC#") for pk, item in table.items.items())
    return table, connection, aged, escrows


def _client(connection: Connection) -> Any:
    session = Session(aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1")
    client = DynamoDB(session, endpoint=f"https://{connection.host}", connect_s=1, read_s=1)
    vars(client)["_connections"] = connection
    return client


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also writes the figures to this file")
    options = parser.parse_args()
    with logs_dropped():
        table, connection, world, escrows = filled()
    items, size = len(table.items), sum(map(size_of, table.items.values()))
    print(f"{TASKS:,} tasks, {escrows:,} escrows, {items:,} items of {size // items} bytes")

    def audited(parts: int) -> Bench:
        connection.bench = Bench(world)
        return connection.bench.audit(parts)

    audited(1)  # fills the caches
    figures: dict[str, Any] = {"escrows": escrows, "items": items}
    for parts in (1, 4):
        figures[f"{parts} parts"] = _table(audited(parts), parts, escrows)
    tracemalloc.start()
    traced = audited(1)
    tracemalloc.stop()
    peaks = {kind: each.peak_bytes / limits.MIB for kind, each in traced.by_kind.items()}
    print("\npeak memory of a step, MiB: " + ", ".join(f"{kind} {mib:.1f}" for kind, mib in peaks.items()))
    figures["peak MiB of a step"] = peaks
    figures["plan"] = plan = _plan(audited(4).by_kind, escrows, items)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))
    return status(int(plan[f"hours at {AT_ONCE[-1]}"] > HOURS_MAX))


def _table(bench: Bench, parts: int, escrows: int) -> dict[str, Any]:
    """Prints what each kind of part takes for a million escrows.

    Only what grows with the escrows: the steps, objects and transitions of so small a table are not those of a million.
    """
    million = MILLION / escrows
    print(f"\n{parts} parts of each kind; for a million escrows:\n")
    print(f"{'part':10}{'steps':>7}{'processor s':>13}{'calls':>12}{'read units':>12}{'waits s':>10}")
    rows: dict[str, dict[str, float]] = {}
    for kind, each in bench.by_kind.items():
        row = {
            "processor s": each.cpu_s * million,
            "calls": sum(count for name, count in each.calls.items() if not name.startswith("S3")) * million,
            "read units": each.read_units * million,
            "waits s": each.waits_s() * million,
        }
        print(f"{kind:10}{each.steps:7}" + _cells(row))
        rows[kind] = row
    total = {name: sum(row[name] for row in rows.values()) for name in rows["plan"]}
    billed_s = total["processor s"] / CPU + total["waits s"]
    database = total["read units"] * PRICES["read unit"]
    computing = billed_s * GIGABYTES * PRICES["Lambda GB-second"]
    print("all".ljust(17) + _cells(total))
    print(f"billed {billed_s:,.0f} s; DynamoDB ${database:.2f}, Lambda ${computing:.2f}")
    return {"parts": rows, "all": total, "billed s": billed_s, "dollars": database + computing}


def _cells(row: Mapping[str, float]) -> str:
    return "".join(f"{value:{width},.0f}" for value, width in zip(row.values(), (13, 12, 12, 10), strict=True))


def _plan(by_kind: Mapping[str, Spent], escrows: int, items: int) -> dict[str, float]:
    """Ten million escrows: parts, steps, time and dollars."""
    factor = TARGET / escrows
    parts = min(-(-TARGET // limits.AUDIT_PART_RECEIPTS), limits.AUDIT_PARTS_MAX)
    partitions = -(-TARGET // limits.AUDIT_PARTITION_RECEIPTS)
    read_steps = TARGET / limits.AUDIT_STEP_RECEIPTS_MAX + items * factor / limits.AUDIT_STEP_ITEMS_MAX
    compared = 4 * partitions
    steps = read_steps + compared + 4
    # A step writes two objects. A comparison reads its section of each step; two phases read each header.
    puts, gets = 2 * read_steps + 2 * compared, read_steps * (2 + compared) + 2 * steps
    units = sum(each.read_units for each in by_kind.values()) * factor
    waits_s = sum(each.waits_s() for each in by_kind.values()) * factor
    waits_s += (puts * LATENCY_MS["S3 put"] + gets * LATENCY_MS["S3 get"]) / 1_000
    billed_s = sum(each.cpu_s for each in by_kind.values()) / CPU * factor + waits_s
    prices = {
        "DynamoDB": units * PRICES["read unit"],
        "Lambda": billed_s * GIGABYTES * PRICES["Lambda GB-second"] + steps * PRICES["Lambda request"],
        "S3": puts * PRICES["S3 put"] + gets * PRICES["S3 get"],
        "Step Functions": steps * TRANSITIONS_OF_STEP * PRICES["state transition"],
    }
    print(f"\n{TARGET:,} escrows: {parts} parts of log and table, {partitions} partitions, {steps:,.0f} steps\n")
    print(f"{'at once':>8}{'hours':>8}{'read units a second':>21}")
    plan = {"parts": parts, "partitions": partitions, "steps": steps, "dollars": sum(prices.values())}
    for at_once in AT_ONCE:
        took_s = max(billed_s / at_once, units / TABLE_UNITS_A_SECOND)
        print(f"{at_once:8}{took_s / 3_600:8.1f}{units / took_s:21,.0f}")
        plan[f"hours at {at_once}"] = took_s / 3_600
    print(", ".join(f"{name} ${price:,.2f}" for name, price in prices.items()) + f": ${plan['dollars']:,.2f}")
    return plan


if __name__ == "__main__":
    raise SystemExit(main())
