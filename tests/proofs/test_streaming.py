"""Audits of a large ledger and of a changing one: bounded memory, and no differences due to concurrent changes."""

import tracemalloc
import zlib
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import pytest

from quittance import limits
from quittance.proof.invariants import Audit
from quittance.usecases import audit as auditing
from quittance.usecases import execute
from quittance.usecases.sweep import sweep
from tests.proofs.memory import Item, Memory
from tests.proofs.world import START_MS, World, ask

if TYPE_CHECKING:
    from collections.abc import Callable

BYTES_PER_ESCROW_MAX = 200
PAGE_ITEMS = 50
HOUR_MS = 60 * 60_000


class Paged(Memory):
    """A table whose scan has many pages; `between` is called before each page."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []
        self.between: Callable[[], object] = lambda: None
        self.before_snapshot: Callable[[], object] = lambda: None

    def scan(self, *, TableName: str, ConsistentRead: bool = True, **start: Any) -> dict[str, Any]:  # noqa: N803
        self.between()
        first = int(start.get("ExclusiveStartKey", {}).get("page", 0))
        if not first:
            # The order is arbitrary, except that balances come last: concurrent movements then look like differences.
            self.keys = sorted(self.items, key=lambda pk: (pk.startswith("ACCT#"), zlib.crc32(pk.encode())))
        page: list[Item] = [self.items[pk] for pk in islice(self.keys, first, first + PAGE_ITEMS)]
        rest = {"LastEvaluatedKey": {"page": first + PAGE_ITEMS}} if first + PAGE_ITEMS < len(self.keys) else {}
        return {"Items": page, **rest}

    def transact_get_items(self, *, TransactItems: list[Any]) -> dict[str, Any]:  # noqa: N803
        self.before_snapshot()
        return super().transact_get_items(TransactItems=TransactItems)


class Ledger:
    """A ledger filled by the real use cases, and a clock."""

    def __init__(self) -> None:
        self.table = Paged()
        self.now_ms = START_MS
        self.world = World(self.table, now_ms=lambda: self.now_ms, work_shards=3, left_ms=lambda: 60_000)
        self.numbers = count()
        self.world.ledger.deposit("alice", "start", 10**12, now_ms=START_MS)

    def run(self, tasks_count: int) -> None:
        """Executes tasks and sweeps until all receipts are in the log and published."""
        for _ in range(tasks_count):
            execute.execute(self.world, "alice", ask(f"t{next(self.numbers)}"))
        sweep(self.world)

    def audit(self) -> Audit:
        return auditing.audit(self.world)

    def peak_bytes(self) -> int:
        """The peak memory of an audit, without the table."""
        tracemalloc.start()
        try:
            assert not self.audit().differences
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setattr(auditing, "_INDEX_LAG_S", 0)
    return Ledger()


@pytest.mark.parametrize("age_ms", [0, HOUR_MS], ids=["recent", "old"])
def test_audit_memory_does_not_grow_with_the_escrows(ledger: Ledger, age_ms: int) -> None:
    """900 more escrows cost less than 200 bytes each; an earlier auditor kept 1.5 KB of each."""
    ledger.run(300)
    ledger.now_ms += age_ms
    ledger.peak_bytes()  # fills the caches
    few = ledger.peak_bytes()
    ledger.now_ms -= age_ms
    ledger.run(900)
    ledger.now_ms += age_ms
    assert (ledger.peak_bytes() - few) / 900 < BYTES_PER_ESCROW_MAX


@pytest.mark.parametrize("age_ms", [0, HOUR_MS], ids=["recent", "old"])
def test_movements_during_an_audit_are_no_differences(ledger: Ledger, age_ms: int) -> None:
    """Tasks are funded, settled, credited, logged and published between all pages of the scan."""
    ledger.run(150)
    ledger.now_ms += age_ms
    ledger.table.between = lambda: ledger.run(3)
    result = ledger.audit()
    assert (result.differences, result.unsettled) == ([], 0)
    assert result.moved >= 3  # alice, the owner, the platform


def test_a_difference_is_found_in_a_moving_ledger(ledger: Ledger) -> None:
    """An unexplained credit in an account that changes all the time, and a journal line without a task."""
    ledger.run(150)
    ledger.now_ms += HOUR_MS
    ledger.table.between = lambda: ledger.run(3)
    shard = ledger.table.items["ACCT#alice"]
    richer = str(int(shard["available"]["N"]) + 1)
    ledger.table.items["ACCT#alice"] = {**shard, "available": {"N": richer}}
    line = next(item for pk, item in ledger.table.items.items() if pk.startswith("EARN#"))
    stray = "EARN#mallory#" + line["pk"]["S"].rpartition("#")[2]
    unsealed = {name: value for name, value in line.items() if name != "seal"}
    ledger.table.items[stray] = {**unsealed, "pk": {"S": stray}, "account": {"S": "mallory"}}
    ledger.table.items["ACCT#mallory"] = {"pk": {"S": "ACCT#mallory"}, "available": line["amount"]}
    result = ledger.audit()
    assert {(found.invariant, found.at) for found in result.differences} == {
        ("I10", "lines"), ("I10", stray), ("I10/I11", "alice"), ("I1", "all"),
    }  # fmt: skip


def test_accounts_that_always_move_are_counted(ledger: Ledger) -> None:
    """It is not a difference, because its balance cannot be compared; the report states that."""
    ledger.run(60)
    ledger.table.between = lambda: ledger.run(1)

    def move() -> None:
        name = f"d{next(ledger.numbers)}"
        ledger.world.ledger.deposit("alice", name, 1, now_ms=ledger.now_ms)

    ledger.table.before_snapshot = move
    result = ledger.audit()
    assert (result.differences, result.unsettled) == ([], 1)
    assert any("not settled 1" in line for line in auditing.report(result))


@pytest.mark.parametrize("over_ms", [0, 1])
@pytest.mark.parametrize(
    ("stopped", "most_ms"),
    [
        ("credit", limits.UNSWEPT_MS_MAX),
        ("append", limits.UNLOGGED_MS_MAX),
        ("set_published", limits.UNPUBLISHED_MS_MAX),
    ],
)
def test_delays_beyond_their_limits_are_differences(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, stopped: str, most_ms: int, over_ms: int
) -> None:
    """I8: a step that the sweep has not done is a difference once it is older than its limit."""
    monkeypatch.setattr(type(ledger.world.ledger), stopped, lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
    execute.execute(ledger.world, "alice", ask("t"))
    try:
        sweep(ledger.world)
    except InterruptedError:
        assert stopped == "set_published"
    ledger.now_ms += most_ms + over_ms
    assert [found.invariant for found in ledger.audit().differences] == ["I8"] * over_ms


def test_differences_beyond_the_limit_are_counted(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.run(6)
    monkeypatch.setattr("quittance.proof.invariants.AUDIT_DIFFERENCES_SHOWN_MAX", 2)
    monkeypatch.setattr(auditing, "AUDIT_DIFFERENCES_SHOWN_MAX", 2)
    for pk, item in ledger.table.items.items():
        if pk.startswith("ESC#"):
            ledger.table.items[pk] = {**item, "unheard_of": {"S": "a"}}
    result = ledger.audit()
    assert (len(result.differences), result.count > 5) == (2, True)
    assert auditing.report(result)[-1] == f"{result.unnamed} more differences: fix these first"
