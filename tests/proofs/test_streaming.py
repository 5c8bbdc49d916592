"""Audits of a large ledger and of a changing one: bounded memory, and no differences due to concurrent changes."""

import gc
import tracemalloc
import zlib
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import pytest

from quittance import limits
from quittance.api.identity import Caller
from quittance.api.models import TopUpRequest
from quittance.ledger.channels import ticket_escrow_id
from quittance.proof.invariants import Audit
from quittance.store import audit_results
from quittance.usecases import audit as auditing
from quittance.usecases import channels, execute
from quittance.usecases.sweep import sweep
from tests.proofs.memory import Item, Memory, segment_of
from tests.proofs.world import (
    FLAT_MICRO,
    JUDGE_MICRO,
    JUDGED,
    START_MS,
    OpenedChannel,
    World,
    ask,
    fill_bonds,
    open_channel,
    ticket_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BYTES_PER_ESCROW_MAX = 200
PAGE_ITEMS = 50
HOUR_MS = 60 * 60_000


class Paged(Memory):
    """A table whose scan has many pages; `between` is called before each page."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[int, list[str]] = {}
        self.between: Callable[[], object] = lambda: None
        self.before_snapshot: Callable[[], object] = lambda: None

    def scan(  # type: ignore[override]  # with a start
        self,
        *,
        TableName: str,  # noqa: N803
        ConsistentRead: bool = True,  # noqa: N803
        Segment: int = 0,  # noqa: N803
        TotalSegments: int = 1,  # noqa: N803
        **start: Any,
    ) -> dict[str, Any]:
        self.between()
        after = start.get("ExclusiveStartKey", {})
        first = int(after.get("page", 0))
        if "pk" in after:  # any key of the segment
            first = self.keys[Segment].index(after["pk"]["S"]) + 1
        if not first:
            # The order is arbitrary, except that balances come last: concurrent movements then look like differences.
            keys = segment_of(self.items, Segment, TotalSegments)
            self.keys[Segment] = sorted(keys, key=lambda pk: zlib.crc32(pk.encode()) + (pk.startswith("ACCT#") << 32))
        keys = self.keys[Segment]
        page: list[Item] = [self.items[pk] for pk in islice(keys, first, first + PAGE_ITEMS)]
        rest = {"LastEvaluatedKey": {"page": first + PAGE_ITEMS}} if first + PAGE_ITEMS < len(keys) else {}
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
        self.numbers, self.sweeps = count(), count()
        self.world.ledger.deposit("alice", "start", 10**12, now_ms=START_MS)
        self.channel: OpenedChannel | None = None

    def run(self, tasks_count: int) -> None:
        """Executes tasks and sweeps until all receipts are in the log and published."""
        for _ in range(tasks_count):
            execute.execute(self.world, "alice", ask(f"t{next(self.numbers)}"))
        sweep(self.world)

    def open(self, salt: str = "salt", **fields: Any) -> OpenedChannel:
        return open_channel(self.world, "alice", salt, **fields)

    def pay(self, channel: OpenedChannel, number: int, *, count: int = 1, judge: bool = False) -> None:
        """Executes one task that a channel pays, from a number on."""
        budget = 2 * FLAT_MICRO * count
        agent = {"agent_id": JUDGED} if judge else {}
        request = ask(f"{channel.channel_id}.{number}", budget=budget, judge=judge, **agent)
        assert budget > JUDGE_MICRO or not judge
        execute.redeem(self.world, channel.channel_id, request, ticket_for(channel, request))

    def run_tickets(self, tasks_count: int) -> None:
        """As `run`, paid by one channel."""
        self.channel = self.channel or self.open(tickets=10_000)
        for _ in range(tasks_count):
            self.pay(self.channel, next(self.numbers) + 1)
            if next(self.sweeps) % 50 == 0:
                sweep(self.world)
        sweep(self.world)

    def live(self) -> None:
        """What happens to channels all the time: opening, topping up, tickets of each kind, sweeps, closing."""
        self.channel = self.channel or self.open(tickets=10_000)
        for count_, judge in ((1, False), (3, False), (2, True)):
            self.pay(self.channel, next(self.numbers) + 1, count=count_, judge=judge)
            for _ in range(count_ - 1):
                next(self.numbers)
        self.top_up(self.channel)
        sweep(self.world)
        other = self.open(f"salt-{next(self.numbers)}")
        self.pay(other, 1, count=2)
        self.close(other)
        self.now_ms += limits.CHANNEL_CLOSE_MS
        self.pay(self.channel, next(self.numbers) + 1)

    def top_up(self, channel: OpenedChannel) -> None:
        request = TopUpRequest(topup_id=f"top-{next(self.numbers)}", tickets=2)
        channels.top_up(self.world, Caller("alice"), channel.channel_id, request)

    def close(self, channel: OpenedChannel) -> None:
        channels.close(self.world, Caller("alice"), channel.channel_id)

    def change(self, pk: str, **changes: Any) -> None:
        """Changes attributes of an item, or removes those whose new value is None."""
        changed = {**self.table.items[pk], **changes}
        self.table.items[pk] = {name: value for name, value in changed.items() if value is not None}

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


@pytest.fixture(params=[1, 3], ids=["one-part", "three-parts"])
def ledger(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger that is audited in one part of each kind, or in three of many steps, between which it also changes."""
    monkeypatch.setattr(auditing, "_INDEX_LAG_S", 0)
    made = Ledger()
    if request.param > 1:
        monkeypatch.setattr(auditing, "_PARTS_MIN", request.param)
        monkeypatch.setattr(audit_results, "_IN_MEMORY_BYTES_MAX", 1)
        limit_steps(monkeypatch, receipts=40)
    for name in ("step", "advance"):
        changes = made.table if request.param > 1 else None
        monkeypatch.setattr(auditing, name, partial(after_changes, changes, getattr(auditing, name)))
    return made


def limit_steps(monkeypatch: pytest.MonkeyPatch, *, receipts: int) -> None:
    """Ends each step of an audit after so many receipts, or twice as many items and the rest of their page."""
    monkeypatch.setattr(auditing, "AUDIT_STEP_RECEIPTS_MAX", receipts)
    monkeypatch.setattr(auditing, "AUDIT_STEP_ITEMS_MAX", 2 * receipts)


def after_changes(table: Paged | None, do: "Callable[..., object]", *given: object) -> object:
    """What a step does, after changes of a table."""
    if table:
        table.between()
    gc.collect()  # garbage of the step before would be counted as memory of this one
    return do(*given)


@pytest.mark.parametrize("age_ms", [0, HOUR_MS], ids=["recent", "old"])
def test_audit_memory_does_not_grow_with_the_escrows(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, age_ms: int
) -> None:
    """900 more escrows cost less than 200 bytes each; an earlier auditor kept 1.5 KB of each."""
    limit_steps(monkeypatch, receipts=limits.AUDIT_STEP_RECEIPTS_MAX)
    ledger.run(300)
    ledger.now_ms += age_ms
    ledger.peak_bytes()  # fills the caches
    few = ledger.peak_bytes()
    ledger.now_ms -= age_ms
    ledger.run(900)
    ledger.now_ms += age_ms
    assert (ledger.peak_bytes() - few) / 900 < BYTES_PER_ESCROW_MAX


@pytest.mark.parametrize("age_ms", [0, HOUR_MS], ids=["recent", "old"])
def test_audit_memory_does_not_grow_with_the_tickets(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, age_ms: int
) -> None:
    """Neither with those of a channel that is still, nor while the numbers of one that differs are read again."""
    limit_steps(monkeypatch, receipts=limits.AUDIT_STEP_RECEIPTS_MAX)
    ledger.run_tickets(200)
    ledger.now_ms += age_ms
    few = ledger.peak_bytes()
    ledger.now_ms -= age_ms
    ledger.run_tickets(400)
    ledger.now_ms += age_ms
    assert ledger.channel
    one_more = partial(ledger.run_tickets, 1)
    ledger.table.between = in_turn(one_more)
    assert (ledger.peak_bytes() - few) / 400 < BYTES_PER_ESCROW_MAX


def test_a_steps_memory_does_not_grow_with_the_escrows(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step has in memory depends on its limits only; between steps, results are in a file or in a bucket."""
    limit_steps(monkeypatch, receipts=40)
    step, peaks = auditing.step, list[int]()

    def traced(*given: Any) -> Any:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        done = step(*given)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        return done

    monkeypatch.setattr(auditing, "step", traced)
    ledger.run(200)
    ledger.peak_bytes()  # fills the caches
    peaks.clear()
    ledger.peak_bytes()
    few, steps = max(peaks), len(peaks)
    ledger.run(600)
    peaks.clear()
    ledger.peak_bytes()
    assert (max(peaks) < 1.25 * few, len(peaks) > 1.5 * steps) == (True, True), (few, max(peaks), steps, len(peaks))


@pytest.mark.parametrize("age_ms", [0, HOUR_MS], ids=["recent", "old"])
def test_movements_of_channels_during_an_audit_are_no_differences(ledger: Ledger, age_ms: int) -> None:
    """Channels are opened, topped up, used and closed, and their tickets swept, between all pages of the scan."""
    fill_bonds(ledger.world)
    ledger.run_tickets(150)
    for _ in range(5):
        ledger.live()
    ledger.now_ms += age_ms
    ledger.table.between = ledger.live
    result = ledger.audit()
    assert (result.differences, result.unsettled, result.unsettled_channels) == ([], 0, 0)
    assert (result.moved_channels >= 1, result.channels >= 6) == (True, True)


@pytest.mark.parametrize("state", ["still", "moving"])
@pytest.mark.parametrize("name", ["spent", "swept", "deposit"])
def test_a_sum_of_a_channel_that_is_wrong_is_found(ledger: Ledger, name: str, state: str) -> None:
    fill_bonds(ledger.world)
    ledger.run_tickets(150)
    ledger.live()
    if state == "moving":
        ledger.table.between = ledger.live
    assert ledger.channel
    pk = f"CHAN#{ledger.channel.channel_id}"
    ledger.change(pk, **{name: {"N": str(int(ledger.table.items[pk][name]["N"]) + 1)}})
    assert ("I14", pk) in {(found.invariant, found.at) for found in ledger.audit().differences}


@pytest.mark.parametrize("kind", ["ticket", "part", "top-up"])
def test_what_a_moving_channel_has_lost_is_found(ledger: Ledger, kind: str) -> None:
    fill_bonds(ledger.world)
    ledger.run_tickets(150)
    ledger.live()
    ledger.table.between = ledger.live
    assert ledger.channel
    kept = ledger.table.items
    pk = {
        "ticket": f"ESC#{ticket_escrow_id(ledger.channel.channel_id, 1)}",
        "part": next(pk for pk, item in kept.items() if "part_of" in item),
        "top-up": next(pk for pk in kept if pk.startswith("TOPUP#")),
    }[kind]
    del kept[pk]
    assert "I14" in {found.invariant for found in ledger.audit().differences}


def test_a_channel_that_always_moves_is_counted(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no difference: its tickets cannot be compared with it; the report states that."""
    ledger.run_tickets(60)
    assert ledger.channel
    read = type(ledger.world.ledger).read

    def moving(platform_ledger: Any, pks: "Iterable[str]", **asked: Any) -> Any:
        if ledger.table.keys and (pks := list(pks)) == [f"CHAN#{ledger.channel.channel_id}"]:  # type: ignore[union-attr]
            ledger.run_tickets(1)
        return read(platform_ledger, pks, **asked)

    ledger.table.between = lambda: ledger.run_tickets(1)
    monkeypatch.setattr(type(ledger.world.ledger), "read", moving)
    result = ledger.audit()
    assert (result.differences, result.unsettled_channels) == ([], 1)
    assert "channels that moved meanwhile 1, of them not settled 1" in auditing.report(result)


@pytest.mark.parametrize("over_ms", [0, 1])
@pytest.mark.parametrize("step", ["begin", "count", "close"])
def test_channels_that_do_not_close_are_differences(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, step: str, over_ms: int
) -> None:
    """I8: an expired channel that stays open, and a closing one that is not counted, or not closed after its sweep."""
    channel = ledger.open()
    ledger.pay(channel, 1)
    sweep(ledger.world)
    if step == "begin":
        ledger.now_ms = channel.expires_ms
    else:
        ledger.close(channel)
        ledger.now_ms += limits.CHANNEL_CLOSE_MS
    if step == "close":
        monkeypatch.setattr(type(ledger.world.channels), "close", lambda _, channel, **__: channel)
        sweep(ledger.world)
    ledger.now_ms += limits.UNCLOSED_MS_MAX + over_ms
    assert [found.invariant for found in ledger.audit().differences] == ["I8"] * over_ms


def test_a_closing_channel_may_wait_for_its_held_tickets(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its age counts from when its last ticket was swept, which a queued task may delay for hours."""
    channel = ledger.open()
    ledger.pay(channel, 1)
    ledger.close(channel)
    ledger.now_ms += limits.CHANNEL_CLOSE_MS
    monkeypatch.setattr(type(ledger.world.channels), "close", lambda _, channel, **__: channel)
    ledger.now_ms += limits.UNSWEPT_MS_MAX + limits.UNCLOSED_MS_MAX
    sweep(ledger.world)
    assert ledger.audit().differences == []
    ledger.now_ms += limits.UNCLOSED_MS_MAX + 1
    assert [found.invariant for found in ledger.audit().differences] == ["I8"]


def test_a_half_counted_channel_is_compared(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing stopped after its first hundred numbers: each of them is used or void, the others may be free."""
    ledger.run_tickets(150)
    assert ledger.channel
    ledger.close(ledger.channel)
    ledger.now_ms += limits.CHANNEL_CLOSE_MS
    found = ledger.world.channels.get(ledger.channel.channel_id)
    counted = ledger.world.channels.count_out(found, now_ms=ledger.now_ms)
    assert (counted.counted, counted.granted > 100) == (100, True)
    assert ledger.audit().differences == []
    pk = f"CHAN#{ledger.channel.channel_id}"
    ledger.change(pk, used={"N": "99"})
    assert [(found.invariant, found.at) for found in ledger.audit().differences] == [("I14", pk)]


def in_turn(*steps: "Callable[[], object]") -> "Callable[[], None]":
    """Makes one of the steps at each call, and nothing when all are made."""
    rest = iter(steps)
    return lambda: next((step() for step in rest), None) and None


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
    of = ledger.world.ledger if stopped == "credit" else ledger.world.ledger.log
    monkeypatch.setattr(of, stopped, lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
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
