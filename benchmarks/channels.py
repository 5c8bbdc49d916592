"""Write units, calls and wall time of tasks that tickets pay, against tasks that one account's balance pays.

    python benchmarks/channels.py

Both run in the same model of DynamoDB as hot_wallet.py: a transaction holds its items for 6 to 12 ms, and any other
write of one of them is rejected at once. A plain write takes 3 to 6 ms, a consistent read 2 to 4 ms. The ledger's code
makes the calls of one task each: `fund` and `settle` for an escrow, `find_ticket` and `redeem` for a ticket, with a run
of 50 ms between them and items of the sizes that real tasks have.

Write units are those that DynamoDB bills for writes that are made: each begun KB of an item before or after the write,
whichever is larger, twice in a transaction; and for each index one entry written, removed, or both if its key changes.
The last column adds the sweep's share, which credits and logs all tasks of a row. Exit status 1 if a ticket's task
failed, took more than one write, or costs more than two fifths of an escrow's units before the sweep.
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from botocore.exceptions import ClientError
from hot_wallet import BUDGET, BURST, PATIENCE_MS, RUN_S, SECONDS, Environments
from scale import QUICK, status

from quittance.api.identity import Caller
from quittance.api.models import ChannelRequest
from quittance.errors import PlatformUnavailableError
from quittance.ledger import escrow as escrows
from quittance.ledger.channels import ticket_escrow_id, ticket_task_id
from quittance.ledger.escrow import Escrow
from quittance.limits import KIB
from quittance.usecases import channels, execute
from quittance.usecases.sweep import sweep
from tests.proofs.memory import Memory
from tests.proofs.world import (
    FLAT,
    LIFE_MS,
    START_MS,
    Shelf,
    World,
    ask,
    expected,
    fill_bonds,
    micro,
    quiet,
    table_properties,
)
from tests.tickets import claims_for, jwk, signed

SHARE_MAX = 0.4
READ_S, PUT_S, TRANSACTION_S = (0.002, 0.004), (0.003, 0.006), (0.006, 0.012)
INDEXES = table_properties()["GlobalSecondaryIndexes"]
WRITES = {"put_item", "update_item", "transact_write_items"}


@dataclass
class Billed:
    """The in-memory DynamoDB with the time that calls take, items that a write holds, and what writes are billed."""

    memory: Memory
    timed: bool = False
    calls: Counter[str] = field(default_factory=Counter)
    units: int = 0
    shelf: Shelf = field(default_factory=Shelf)
    _random: Random = field(default_factory=lambda: Random(1))
    _held: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __getattr__(self, name: str) -> Any:
        def call(**arguments: Any) -> Any:
            self._wait(READ_S)
            with self._lock:
                self.calls[name] += 1
                return getattr(self.memory, name)(**arguments)

        return call

    def put_item(self, **call: Any) -> Any:
        return self._write("put_item", [{"Put": call}], PUT_S, times=1)

    def update_item(self, **call: Any) -> Any:
        return self._write("update_item", [{"Update": call}], PUT_S, times=1)

    def transact_write_items(self, *, TransactItems: list[Any]) -> Any:  # noqa: N803 - boto's names
        return self._write("transact_write_items", TransactItems, TRANSACTION_S, times=2)

    def _write(self, name: str, actions: list[Any], takes_s: tuple[float, float], *, times: int) -> Any:
        keys = [(change.get("Item") or change["Key"])["pk"]["S"] for action in actions for change in action.values()]
        with self._lock:
            self.calls[name] += 1
            if self._held.intersection(keys):
                raise _conflict(name, [key in self._held for key in keys])
            self._held.update(keys)
        self._wait(takes_s)
        with self._lock:
            self._held.difference_update(keys)
            before = [self.memory.items.get(key, {}) for key in keys]
            answer = self.memory.transact_write_items(TransactItems=actions)  # a plain write is one of one item
            for key, old in zip(keys, before, strict=True):
                self.units += _billed(old, self.memory.items[key], times)
            return answer

    def _wait(self, takes_s: tuple[float, float]) -> None:
        if self.timed:
            time.sleep(self._random.uniform(*takes_s))


def _conflict(name: str, held: list[bool]) -> ClientError:
    if name != "transact_write_items":
        return ClientError({"Error": {"Code": "TransactionConflictException"}}, name)
    reasons = [{"Code": "TransactionConflict" if each else "None"} for each in held]
    answer: Any = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
    return ClientError(answer, name)


def _billed(before: Mapping[str, Any], after: Mapping[str, Any], times: int) -> int:
    """The write units of one item's change: its own, and those of its entries in the indexes."""
    return times * _units(max(size_of(before), size_of(after))) + entry_units(INDEXES, before, after)


def entry_units(indexes: Iterable[Mapping[str, Any]], before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    """The write units of an item's entries in some indexes, as a change of the item writes them."""
    units = 0
    for index in indexes:
        old, new = entry(index, before), entry(index, after)
        keys = [key["AttributeName"] for key in index["KeySchema"]]
        if old is not None and new is not None and all(old[key] == new[key] for key in keys):
            units += _units(max(size_of(old), size_of(new))) if old != new else 0
        else:
            units += sum(_units(size_of(each)) for each in (old, new) if each is not None)
    return units


def entry(index: Mapping[str, Any], item: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The entry of an item in an index; None if it has none."""
    keys = [key["AttributeName"] for key in index["KeySchema"]]
    if not all(key in item for key in keys):
        return None
    if index["Projection"]["ProjectionType"] == "ALL":
        return item
    shown = {"pk", "sk", *keys, *index["Projection"].get("NonKeyAttributes", ())}
    return {name: value for name, value in item.items() if name in shown}


def _units(size: int) -> int:
    return -(-size // KIB)


def size_of(item: Mapping[str, Any]) -> int:
    """The bytes of an item: names and values; a number takes one byte, and one for two digits."""
    total = 0
    for name, typed in item.items():
        ((kind, value),) = typed.items()
        total += len(name.encode()) + (1 + -(-len(value) // 2) if kind == "N" else len(value))
    return total


def _world(client: Billed) -> World:
    return World(client, now_ms=lambda: START_MS, left_ms=lambda: PATIENCE_MS, tiles=client.shelf)


@dataclass(frozen=True)
class Payment:
    """A way to pay: a real task as it was stored, and the two operations of another one like it."""

    name: str
    sample: Escrow

    def numbered(self, number: int) -> Escrow:
        """The settled escrow of another task."""
        if self.sample.ticket is None:
            name = f"t{number}"
            return replace(self.sample, escrow_id=escrows.escrow_id("alice", name), task_id=name)
        channel_id = self.sample.ticket.channel_id
        return replace(
            self.sample,
            escrow_id=ticket_escrow_id(channel_id, number),
            task_id=ticket_task_id(channel_id, number),
            ticket=replace(self.sample.ticket, number=number),
        )

    def begin(self, world: World, settled: Escrow) -> None:
        """What the ledger does before the run."""
        if settled.ticket:
            world.ledger.find_ticket(settled.ticket)
        else:
            world.ledger.fund(replace(settled, settlement=None))

    def end(self, world: World, settled: Escrow) -> None:
        """What the ledger does after the run."""
        stored = world.ledger.redeem(settled) if settled.ticket else world.ledger.settle(settled)
        assert stored is settled, "another task was stored"


@dataclass
class Row:
    """The measurements of one path at one rate."""

    tasks: int
    failed: list[int] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    calls: float = 0
    writes: float = 0
    units: float = 0
    with_sweep: float = 0

    def line(self, rate: str, name: str) -> str:
        """The printed row."""
        self.took_s.sort()
        middle, slow = (self.took_s[int(len(self.took_s) * part)] * 1_000 for part in (0.5, 0.99))
        figures = f"{self.calls:6.2f} {self.writes:7.2f} {self.units:6.2f} {self.with_sweep:11.2f}"
        return f"{rate:>12} {name:7} {self.tasks:5} {len(self.failed):6} {figures} {middle:7.0f} {slow:7.0f}"


def _paths(count: int) -> list[tuple[Payment, Billed]]:
    """Both paths with a table of its own: the account has its credits, and the channel its numbers."""
    made = []
    for name in ("escrow", "ticket"):
        client = Billed(Memory())
        world = _world(client)
        fill_bonds(world)
        world.ledger.deposit("alice", "start", 4 * (count + 1_000) * BUDGET, now_ms=START_MS)
        with quiet():
            sample = _by_account(world) if name == "escrow" else _by_ticket(world, count)
        made.append((Payment(name, sample), client))
    return made


def _by_account(world: World) -> Escrow:
    name = next(f"s{n}" for n in range(1_000) if expected("alice", f"s{n}", FLAT, BUDGET).state == "released")
    execute.execute(world, "alice", ask(name))
    return _stored(world, escrows.escrow_id("alice", name))


def _by_ticket(world: World, count: int) -> Escrow:
    """A task of the first number that succeeds. All numbers are granted."""
    request = ChannelRequest.model_validate(
        {"salt": "s", "key": jwk(), "ticket_value": micro(BUDGET), "tickets": count + 1_000}
        | {"expires_at": "2027-02-01T00:00:00Z"}
    )
    opened = channels.open_channel(world, Caller("alice"), request).channel_id
    while (channel := world.channels.get(opened)).granted < count + 500:
        world.channels.grant(channel, channel.granted + 1)
    numbers = range(count + 1, count + 500)
    number = next(n for n in numbers if expected("alice", f"{opened}.{n}", FLAT, BUDGET).state == "released")
    task = ask(ticket_task_id(opened, number), budget=BUDGET)
    claims = claims_for(task, exp=(START_MS + LIFE_MS) // 1_000)
    execute.redeem(world, opened, task, signed(claims))
    return _stored(world, ticket_escrow_id(opened, number))


def _stored(world: World, escrow_id: str) -> Escrow:
    stored = world.ledger.find(escrow_id)
    if stored is None or stored.settlement is None:
        msg = "the sample task was not settled"
        raise LookupError(msg)
    return stored


def _task(path: Payment, environments: Environments, number: int, row: Row) -> None:
    settled = path.numbered(number)
    with environments.one() as world:
        began = time.monotonic()
        try:
            path.begin(world, settled)
            begun = time.monotonic()
            time.sleep(RUN_S)
            ran = time.monotonic()
            path.end(world, settled)
        except PlatformUnavailableError:
            row.failed.append(number)
        else:
            row.took_s.append(time.monotonic() - ran + begun - began)


def _measured(path: Payment, client: Billed, rate: int | None, count: int) -> Row:
    """Pays `count` tasks at a rate, or all at once, and then sweeps them."""
    row, environments = Row(count), Environments(partial(_world, client))
    with quiet():
        sweep(_world(client))  # the sample task
    client.calls.clear()
    client.units, client.timed = 0, True
    with ThreadPoolExecutor(max_workers=400) as pool:
        began = time.monotonic()
        for number in range(1, count + 1):
            if rate is not None:
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
            pool.submit(_task, path, environments, number, row)
    client.timed = False
    assert len(row.took_s) == count - len(row.failed), "a task was lost"
    paid = len(row.took_s)
    row.calls, row.units = client.calls.total() / count, client.units / paid
    row.writes = sum(client.calls[name] for name in WRITES) / count
    with quiet():
        while (swept := sweep(_world(client))).credited or swept.logged:
            pass
    row.with_sweep = client.units / paid
    return row


def main() -> int:
    missed = 0
    say: Callable[[str], Any] = sys.stdout.write
    say("        rate path    tasks failed  calls  writes  units  with sweep  p50 ms  p99 ms\n")
    for rate in (10, None) if QUICK else (10, 50, 100, 200, 400, None):
        count = BURST if rate is None else rate * SECONDS
        rows = {}
        for path, client in _paths(count):
            rows[path.name] = _measured(path, client, rate, count)
            say(rows[path.name].line(f"{count} at once" if rate is None else f"{rate}/s", path.name) + "\n")
            sys.stdout.flush()
        escrow, ticket = rows["escrow"], rows["ticket"]
        missed += bool(ticket.failed) or ticket.writes > 1 or ticket.units > escrow.units * SHARE_MAX
        shares = [ticket.units / escrow.units, ticket.with_sweep / escrow.with_sweep, ticket.writes / escrow.writes]
        say("{:>20} units {:.2f}, with the sweep {:.2f}, writes {:.2f}\n".format("ticket / escrow:", *shares))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(status(main()))
