"""Changes every attribute of every kind of item in turn: the audit must find each change, or FREE says why not.

The real use cases make the items, and the test reads their attributes from the table: a new attribute fails this test
until `audit.py` compares it or FREE names it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, Final

import pytest

from quittance.api.identity import Caller
from quittance.api.models import TaskRequest, TopUpRequest
from quittance.ledger.journal import PayoutState
from quittance.limits import ARCHIVE_AFTER_DAYS_MIN, CHANNEL_CLOSE_MS, OUTPUT_INLINE_BYTES_MAX
from quittance.proof import invariants, receipt
from quittance.store.archive import Archive
from quittance.store.ledger import Ledger
from quittance.usecases import archive, audit, channels, launch, result
from quittance.usecases import execute as tasks
from quittance.usecases.sweep import sweep
from tests.depth import LONG
from tests.proofs.memory import Memory
from tests.proofs.world import OpenedChannel, open_channel, ticket_for
from tests.support import Cloud, wasm

Item = dict[str, Any]

FREE: Final[Mapping[tuple[str, str, str], str]] = {
    ("ESC", "runner", "changed"): "a random name that only its own attempt compares; the fence decides",
    (
        "ESC",
        "fence",
        "changed",
    ): "takeovers are not counted; with a wrong fence no runner can settle, and the escrow expires",
    ("ESC", "lease_ms", "changed"): "only says when another attempt may take over; the fence decides who settles",
    ("ESC", "message", "changed"): "text for people; no receipt states it, and no rule reads it",
    ("OUT", "decided_by", "changed"): "who decided on a payout; the journal of operations is not in the ledger",
    ("OUT", "decided_ms", "changed"): "when a payout was paid; for a failed one the returning line has the time too",
    ("SLOT", "holder", "changed"): "a slot holds no money; a wrong one is free again when its lease lapses",
    ("SLOT", "holder", "deleted"): "as above",
    ("SLOT", "lease_ms", "changed"): "as above",
    ("SLOT", "lease_ms", "deleted"): "as above",
    ("any", "seal", "deleted"): "items written before seals existed have none; those of channels must have one",
    ("CHAN", "granted", "changed"): "how many numbers may be used; I14 limits it to what the deposit covers",
    ("CHAN", "contested", "deleted"): "only says whether later tickets are held before they run",
    ("CHAN", "close_ms", "changed"): "of a closed channel: when it was counted; nothing depends on it any more",
    ("CHAN", "work_at", "changed"): "of a closing channel: when the sweep last counted some of its numbers",
    ("CONTEST", "at", "changed"): "only says until when a payer's tickets are held before they run",
    ("CONTEST", "contests", "changed"): "only says whether a payer's tickets are held before they run",
    (
        "LOG",
        "archived_size",
        "deleted",
    ): "then the archive begins again, and finds each bundle and each tombstone there",
    ("CHAN", "closed_ms", "changed"): "when a channel returned its rest; no sum and no other item has the time",
}
"""Changes that the audit may miss: kind of item, attribute and change, with the reason."""


@dataclass(frozen=True)
class Mutation:
    """A change of one attribute of one item."""

    item: Item
    name: str
    how: str
    value: Any

    @property
    def mutated(self) -> Item:
        """The item with the change."""
        rest = {name: value for name, value in self.item.items() if name != self.name}
        return rest if self.value is None else {**rest, self.name: self.value}

    @property
    def key(self) -> tuple[str, str, str]:
        """The key of this change in FREE."""
        any_kind = ("any", self.name, self.how)
        return (
            any_kind
            if any_kind in FREE and not is_of_channel(self.item)
            else (self.item["pk"]["S"].partition("#")[0], self.name, self.how)
        )

    def __str__(self) -> str:
        state = self.item.get("state", {}).get("S", "")
        return f"{self.item['pk']['S']} {state}: {self.name} {self.how} from {self.item[self.name]} to {self.value}"


def is_of_channel(item: Item) -> bool:
    """Whether an item is a channel, a top-up, or one of a channel's numbers."""
    return item["pk"]["S"].startswith(("CHAN#", "TOPUP#")) or "channel" in item


def kind_of(item: Item) -> str:
    """The kind of an item: its prefix, its attributes and its state."""
    prefix, _, rest = item["pk"]["S"].partition("#")
    counted = [f"counted {item['counted']['N']}"] if "counted" in item else []
    return " ".join([prefix, "with" if rest else "alone", *sorted(item), item.get("state", {}).get("S", ""), *counted])


def mutations(item: Item) -> Iterator[Mutation]:
    """The changes of each attribute except the key: deleted, changed within its type, changed to another type."""
    for name, typed in item.items():
        if name == "pk":
            continue
        ((kind, value),) = typed.items()
        yield Mutation(item, name, "deleted", None)
        for other in OTHERS[kind](value):
            yield Mutation(item, name, "changed", {kind: other})
        yield Mutation(item, name, "of another type", {"S": str(value)} if kind != "S" else {"N": "7"})


OTHERS: Final[Mapping[str, Callable[[Any], list[Any]]]] = {
    "N": lambda value: [str(int(value) + 1), str(10**15)],
    "S": lambda value: [_other_letter(value)],
    "B": lambda value: [bytes([value[0] ^ 1]) + value[1:]],
}


def _other_letter(value: str) -> str:
    return ("b" if value.startswith("a") else "a") + value[1:]


@pytest.fixture
def busy(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A ledger with items of every kind and in every state, made by the use cases."""
    monkeypatch.setattr(audit, "_INDEX_LAG_S", 0)
    movements(cloud)
    closing_channels(cloud)
    tickets = tickets_of_all_kinds(cloud, "open")
    tasks_of_all_kinds(cloud, "logged")
    sweep(cloud)
    execute(cloud, cloud.publish(wasm("echo")), "unlogged")
    for ids in cloud.ledger.settled():
        assert cloud.ledger.credit(ids, now_ms=cloud.now_ms())
    tasks_of_all_kinds(cloud, "settled")
    judge = cloud.publish(wasm("coverage"), owner="judith")
    judged = cloud.publish(wasm("echo"), acceptance=judged_by(judge))
    execute(cloud, judged, "held", crashes=True, webhook=HOOK, acceptance={"min_bytes": 1})
    execute(cloud, judged, "kept", crashes=True, keep_input=True, share={"log": True})
    pay(cloud, tickets, 7)
    pay(cloud, tickets, 8, judged=True)
    pay(cloud, tickets, 10, judged=True, crashes=True)
    pay(cloud, tickets, 12, crashes=True)
    return cloud


@pytest.fixture
def old(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A ledger in which everything was swept, logged and published a day ago."""
    monkeypatch.setattr(audit, "_INDEX_LAG_S", 0)
    movements(cloud)
    tickets_of_all_kinds(cloud, "open")
    closed = new_channel(cloud, "closed")
    tasks_of_all_kinds(cloud, "logged")
    sweep(cloud)
    close(cloud, closed, counts=True)
    cloud.skew_ms = 24 * 60 * 60 * 1_000
    return cloud


@pytest.fixture
def archived(old: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """The old ledger forty days later: its escrows are archived in bundles, except for the newest."""
    monkeypatch.setattr(archive, "BUNDLE_ESCROWS_MIN", 5)
    old.settings = old.settings.model_copy(update={"archive_after_days": ARCHIVE_AFTER_DAYS_MIN})
    old.skew_ms = (ARCHIVE_AFTER_DAYS_MIN + 1) * 24 * 60 * 60 * 1_000
    for _ in range(3):  # the open channel expires, is counted, and closes
        sweep(old)
        old.skew_ms += CHANNEL_CLOSE_MS
    done = archive.archive(old)
    assert done.complete
    assert done.escrows == done.until > 10
    execute(old, old.publish(wasm("echo")), "new")
    sweep(old)
    return old


HOOK: Final = "https://example.com/hook"


def movements(cloud: Cloud) -> None:
    prices = {"compute_run_micro": 100, "compute_per_billion_fuel_micro": 100}
    cloud.settings = cloud.settings.model_copy(update=prices)
    cloud.deposit("alice", 9_000_000)
    for name, state in (("w-1", None), ("w-2", PayoutState.PAID), ("w-3", PayoutState.FAILED)):
        payout = cloud.ledger.withdraw("alice", name, 1_000_000, now_ms=cloud.now_ms())
        if state:
            cloud.ledger.decide_payout(payout, state, by="operator", now_ms=cloud.now_ms())
    cloud.ledger._shard_in_use["alice"] = 3  # as after a collision in the home shard
    cloud.deposit("alice", 3)
    cloud.ledger._shard_in_use.clear()
    for owner, amount_micro in (("owner", 5_000_000), ("judith", 1_000_000), ("poor", 1)):
        cloud.deposit(owner, amount_micro)
        cloud.ledger.move_bond(owner, "b-1", amount_micro, now_ms=cloud.now_ms())
    cloud.ledger.move_bond("owner", "b-2", -1_000_000, now_ms=cloud.now_ms())
    cloud.ledger.charge("owner", "agt_1", "1", 500, now_ms=cloud.now_ms())


def judged_by(judge: str, threshold: str = "0.5") -> dict[str, Any]:
    return {"judge": {"agent_id": judge, "threshold": threshold, "budget": "0.3"}}


def tasks_of_all_kinds(cloud: Cloud, name: str) -> None:
    """Tasks that end in every state, with every attribute that an escrow may have."""
    echo, judge = cloud.publish(wasm("echo")), cloud.publish(wasm("coverage"), owner="judith")
    judged = cloud.publish(wasm("echo"), acceptance=judged_by(judge))
    strict = cloud.publish(wasm("echo"), acceptance=judged_by(judge, "1"))
    consenting = cloud.publish(wasm("echo"), task_judges={"rejected_share": "0.5"})
    execute(cloud, judged, f"{name}-judged", webhook=HOOK, acceptance={"min_bytes": 1})
    execute(cloud, strict, f"{name}-rejected", input="\n")
    execute(cloud, consenting, f"{name}-own-judge", acceptance=judged_by(judge))
    execute(cloud, echo, f"{name}-long", input="x" * (OUTPUT_INLINE_BYTES_MAX + 1), keep_input=True)
    execute(cloud, echo, f"{name}-kept", keep_input=True, share={"payer": True, "log": True})
    execute(cloud, echo, f"{name}-refused", acceptance={"min_bytes": 1_000})
    execute(cloud, cloud.publish(wasm("failing")), f"{name}-failed")
    execute(cloud, cloud.publish(wasm("failing"), owner="poor"), f"{name}-failed-poor")
    execute(cloud, echo, f"{name}-expired", crashes=True)
    now_ms = cloud.skew_ms
    cloud.skew_ms += 150_000
    result.read(cloud, Caller("alice"), f"{name}-expired")
    cloud.skew_ms = now_ms


def execute(cloud: Cloud, agent: str, task_id: str, *, crashes: bool = False, **fields: Any) -> None:
    request = {"task_id": task_id, "agent_id": agent, "input": "to be or not", "budget": "1", **fields}
    run_or_crash(lambda: tasks.execute(cloud, "alice", TaskRequest.model_validate(request)), crashes=crashes)


def new_channel(cloud: Cloud, name: str) -> OpenedChannel:
    """A channel with every attribute that an open one may have, a top-up, and a task of it."""
    echo, judge = cloud.publish(wasm("echo")), cloud.publish(wasm("coverage"), owner="judith")
    judged = cloud.publish(wasm("echo"), acceptance=judged_by(judge))
    cloud.deposit(payer := f"carol-{name}", 30_000_000)
    agents = {"agents": [echo, judge, judged], "max_per_task": "1.9"}
    channel = open_channel(cloud, payer, ticket=1_000_000, tickets=20, **agents)
    top_up = TopUpRequest(topup_id="top-1", tickets=2)
    channels.top_up(cloud, Caller(payer), channel.channel_id, top_up)
    cloud.channels.contest(cloud.channels.get(channel.channel_id), now_ms=cloud.now_ms())
    pay(cloud, channel, 1)
    return channel


def tickets_of_all_kinds(cloud: Cloud, name: str) -> OpenedChannel:
    """A channel, and tasks of one and of two of its tickets that end in every state."""
    channel = new_channel(cloud, name)
    pay(cloud, channel, 2, judged=True)
    pay(cloud, channel, 4, acceptance={"min_bytes": 1_000})
    pay(cloud, channel, 5, budget="1.5", crashes=True)
    now_ms = cloud.skew_ms
    cloud.skew_ms += 150_000
    result.read(cloud, Caller(f"carol-{name}"), f"{channel.channel_id}.5")
    cloud.skew_ms = now_ms
    return channel


def closing_channels(cloud: Cloud) -> None:
    """A closed channel, one that waits for a held task before it closes, and one that is not counted yet."""
    closed, waiting = (new_channel(cloud, name) for name in ("closed", "waiting"))
    sweep(cloud)
    close(cloud, closed, counts=False)
    pay(cloud, waiting, 2, crashes=True)
    close(cloud, waiting, counts=True)
    close(cloud, new_channel(cloud, "closing"), counts=False)


def close(cloud: Cloud, channel: OpenedChannel, *, counts: bool) -> None:
    """Begins to close a channel; `counts` lets the sweep count its numbers."""
    channels.close(cloud, Caller(cloud.channels.get(channel.channel_id).payer), channel.channel_id)
    if counts:
        cloud.skew_ms += CHANNEL_CLOSE_MS
        sweep(cloud)


def pay(
    cloud: Cloud, channel: OpenedChannel, number: int, *, judged: bool = False, crashes: bool = False, **fields: Any
) -> None:
    """Executes a task that a channel pays; a judged one has a judge of each side, and takes two tickets."""
    echo, judge, judged_agent = cloud.channels.get(channel.channel_id).agents
    asked = {"task_id": f"{channel.channel_id}.{number}", "agent_id": echo, "input": "to be or not", "budget": "1"}
    if judged:
        asked |= {"agent_id": judged_agent, "budget": "1.5", "acceptance": judged_by(judge)}
    request = TaskRequest.model_validate({**asked, **fields})
    run_or_crash(
        lambda: tasks.redeem(cloud, channel.channel_id, request, ticket_for(channel, request)), crashes=crashes
    )


def run_or_crash(run: Callable[[], object], *, crashes: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if crashes:
            patch.setattr(launch, "run", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
        try:
            run()
        except InterruptedError:
            assert crashes


class Copy:
    """The ledger's items in memory, so that an audit takes only milliseconds."""

    def __init__(self, cloud: Cloud) -> None:
        self.memory = Memory({item["pk"]["S"]: item for item in cloud.items()})
        self.items = dict(self.memory.items)
        self._cloud = cloud
        self._bundles: dict[int, bytes] = {}
        settings, newest, now_ms = cloud.settings, cloud.tiles.checkpoint(), cloud.now_ms()
        vars(cloud)["now_ms"] = lambda: now_ms  # nothing becomes overdue while the mutations are tried
        vars(cloud)["tiles"] = SimpleNamespace(checkpoint=lambda _: newest)
        vars(cloud)["ledger"] = Ledger(
            self.memory,  # type: ignore[arg-type]  # the calls that the ledger makes
            table=settings.ledger_table,
            work_shards=settings.ledger_shards,
            platform_account=settings.platform_account,
            left_ms=cloud.left_ms,
            archive=Archive(lambda: self),  # type: ignore[arg-type,return-value]  # reads of bundles
        )

    def read(self, first: int, offset: int, length: int | None) -> bytes:
        """A bundle or a part of it, as the bucket returns it."""
        if first not in self._bundles:
            self._bundles[first] = self._cloud.bundles.read(first)
        return self._bundles[first][offset : None if length is None else offset + length]

    def kinds(self) -> list[Item]:
        """One item of each kind."""
        return list({kind_of(item): item for item in self.items.values()}.values())

    def is_found(self, **changed: Item | None) -> bool:
        """Whether the audit finds a difference after items were replaced, or removed where the value is None."""
        changes = {pk: item for pk, item in {**self.items, **changed}.items() if item is not None}
        self.memory.items = changes
        return bool(audit.audit(self._cloud).count)


@pytest.fixture(autouse=True)
def verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and verifies each receipt only once, because the audits of this module differ in a single item."""
    jwks: list[dict[str, Any]] = []

    def again(text: str, keys: dict[str, Any]) -> Any:
        jwks[:] = jwks or [keys]
        return verified(text)

    verified = cache(lambda text: receipt.verify(text, jwks[0]))
    monkeypatch.setattr(invariants, "verify", again)
    monkeypatch.setattr(audit, "read_claims", cache(receipt.read_claims))


# An audit in three parts checks all that one in one part does, and how the parts are joined.
CASES = [("busy", 3), ("old", 1), ("archived", 3)] + ([("busy", 1), ("old", 3), ("archived", 1)] if LONG else [])


@pytest.fixture(autouse=True, params=[1, 3], ids=["one-part", "three-parts"])
def in_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits in one part of each kind, or in three of them with several steps each."""
    monkeypatch.setattr(audit, "_PARTS_MIN", request.param)
    if request.param > 1:
        monkeypatch.setattr(audit, "AUDIT_STEP_RECEIPTS_MAX", 10)


@pytest.mark.parametrize(("ledger", "in_parts"), CASES, indirect=["in_parts"])
def test_audit_finds_a_change_of_any_attribute(ledger: str, request: pytest.FixtureRequest) -> None:
    copy = Copy(request.getfixturevalue(ledger))
    assert not copy.is_found()
    missed, stale = [], set()
    for mutation in (mutation for item in copy.kinds() for mutation in mutations(item)):
        found = copy.is_found(**{mutation.item["pk"]["S"]: mutation.mutated})
        if not found and mutation.key not in FREE:
            missed.append(str(mutation))
        if found and mutation.key in FREE:
            stale.add(mutation.key)
    assert not missed, "\n".join(missed)
    assert {key for key in stale if key[2] == "deleted"} == set()


@pytest.mark.parametrize(("ledger", "in_parts"), CASES, indirect=["in_parts"])
def test_audit_finds_a_missing_or_moved_item(ledger: str, request: pytest.FixtureRequest) -> None:
    copy = Copy(request.getfixturevalue(ledger))
    missed = []
    for item in copy.kinds():
        pk = item["pk"]["S"]
        elsewhere = pk[:-1] + ("b" if pk.endswith("a") else "a")
        if not copy.is_found(**{pk: None}) and not is_without_trace(item):
            missed.append(f"{kind_of(item)}: erased")
        if pk.startswith("CONTEST#"):  # whosever it is, it moves no credits
            continue
        if not copy.is_found(**{pk: None, elsewhere: {**item, "pk": {"S": elsewhere}}}):
            missed.append(f"{kind_of(item)}: moved")
        if not copy.is_found(**{pk: {**item, "unheard_of": {"S": "a"}}}):
            missed.append(f"{kind_of(item)}: with an unknown attribute")
        if not copy.is_found(**{elsewhere: {**item, "pk": {"S": elsewhere}}}):
            missed.append(f"{kind_of(item)}: copied")
    assert not missed, "\n".join(missed)


def is_without_trace(item: Item) -> bool:
    """Whether no other item and no sum depends on an item: slots, contests, or a full refund that was not swept yet."""
    if item["pk"]["S"].startswith(("SLOT#", "CONTEST#")):
        return True
    if is_of_channel(item) and item["pk"]["S"].startswith("ESC#"):  # it moves no account: its channel is not swept yet
        return "state" in item and "swept_ms" not in item
    whole = item.get("refunded", {}).get("N") == item.get("budget", {}).get("N")
    return item["pk"]["S"].startswith("ESC#") and whole and "swept_ms" not in item
