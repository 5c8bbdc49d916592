"""The archive loses and changes nothing: in every order of calls, after every crash, and in every answer."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
from pydantic import BaseModel

from quittance.api.identity import Caller
from quittance.errors import PlatformUnavailableError, QuittanceError
from quittance.ledger.balances import bond_account
from quittance.limits import ARCHIVE_AFTER_DAYS_MIN, CHANNEL_CLOSE_MS
from quittance.proof import parts
from quittance.store.archive import ArchiveDamagedError
from quittance.store.audit_results import Spool
from quittance.store.channels import channel_change
from quittance.store.ledger import left_funded, listed_change, payout_moved, standing_change
from quittance.usecases import archive as archiving
from quittance.usecases import audit, channels, execute, launch, result, runs
from quittance.usecases.archive import archive
from quittance.usecases.sweep import sweep
from tests.depth import LONG
from tests.proofs import explore
from tests.proofs.archives import DAY_MS, LATER_MS, OBJECT, Archiving, ArchivingWorld, resolved
from tests.proofs.explore import Actor, DerivedBucket, Table, Walk
from tests.proofs.memory import Item, Memory
from tests.proofs.world import (
    FLAT,
    FLAT_MICRO,
    JUDGED,
    START_MS,
    Shelf,
    World,
    ask,
    fill_bonds,
    open_channel,
    quiet,
    table_properties,
    task_named,
    ticket_for,
)
from tests.template import template

WINS = task_named("t", payer="alice", state="released")
FAILS = task_named("t", payer="alice", state="refunded")
OTHERS = [f"o{number}" for number in range(5)]
BUNDLE: Final = 3
COUNTED: list[tuple[int, int]] = []


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "BUNDLE_ESCROWS_MIN", BUNDLE)


class Old:
    """A ledger with tasks of every kind, all published long ago, and a world to read it at any time."""

    def __init__(self) -> None:
        self.memory, self.shelf, self.now_ms = Archiving(), Shelf(), START_MS
        world = self.world()
        fill_bonds(world)
        world.ledger.deposit("alice", "start", 10**9, now_ms=START_MS)
        world.ledger.deposit("carol", "start", 10**9, now_ms=START_MS)
        for task_id in (WINS, FAILS, *OTHERS):
            execute.execute(world, "alice", ask(task_id))
            if task_id == OTHERS[1]:
                sweep(world)
        sweep(world)
        execute.execute(world, "alice", ask("judged", JUDGED, budget=4 * FLAT_MICRO, judge=True))
        self.open = open_channel(world, "carol", "open", days=100)
        self.closed = open_channel(world, "carol", "closed", days=2)
        for channel in (self.open, self.closed):
            for number in (1, 2):
                self.redeem(world, channel, number)
            sweep(world)
        self.redeem(world, self.open, 3, budget=5 * FLAT_MICRO)  # three numbers
        self.redeem(world, self.open, 6, JUDGED, budget=4 * FLAT_MICRO, judge=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "run", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
            with pytest.raises(InterruptedError):
                execute.execute(world, "alice", ask("expired"))
        for days in (0.01, 0.02, 2, 2.01, 2.02):
            self.now_ms = START_MS + int(days * DAY_MS) + CHANNEL_CLOSE_MS
            sweep(self.world())
        self.now_ms = LATER_MS
        self.channels = (self.open, self.closed)
        self.tasks = {item["task_id"]["S"]: item for item in self.escrows().values() if "task_id" in item}

    def world(self) -> World:
        return ArchivingWorld(self.memory, now_ms=lambda: self.now_ms, tiles=self.shelf, left_ms=lambda: 10_000)

    def request(self, channel: Any, number: int, agent: str = FLAT, **asked: Any) -> Any:
        return ask(f"{channel.channel_id}.{number}", agent, **asked)

    def redeem(self, world: World, channel: Any, number: int, agent: str = FLAT, **asked: Any) -> Any:
        request = self.request(channel, number, agent, **asked)
        return execute.redeem(world, channel.channel_id, request, ticket_for(channel, request))

    def escrows(self) -> dict[str, Item]:
        return {pk: item for pk, item in resolved(self.memory.items).items() if pk.startswith("ESC#")}

    def tombstones(self) -> int:
        return sum("archived" in item for item in self.memory.items.values())

    def answers(self) -> dict[str, Any]:
        """What every reader gets, by its name."""
        world, found = self.world(), dict[str, Any]()
        for task_id, item in self.tasks.items():
            payer = item.get("payer", item.get("account", {}))["S"]
            found[f"result of {task_id}"] = got(result.read, world, Caller(payer), task_id)
            found[f"proof of {task_id}"] = got(result.prove, world, Caller(payer), task_id)
            found[f"input of {task_id}"] = got(result.read_input, world, Caller(payer), task_id)
            owner = item["owner"]["S"]
            found[f"{task_id} for its owner"] = got(result.read, world, Caller(owner), task_id, payer)
            name = item["pk"]["S"].removeprefix("ESC#")
            found[f"run {task_id}"] = got(runs.read, world, Caller(owner), item["agent_id"]["S"], name)
            found[f"escrow {task_id}"] = got(world.ledger.find, name)
            found[f"place of {task_id}"] = world.ledger.log.place(name)
        for task_id in (WINS, FAILS, *OTHERS, "expired"):
            found[f"replay of {task_id}"] = got(execute.execute, world, "alice", ask(task_id))
            found[f"other {task_id}"] = got(execute.execute, world, "alice", ask(task_id, text="other"))
        for account in ("alice", "carol", "olga", "oskar", bond_account("olga")):
            found[f"statement of {account}"] = world.ledger.statement(account, limit=100)
            found[f"credits of {account}"] = world.ledger.available_micro(account), world.ledger.held_micro(account)
        for channel in self.channels:
            found[f"tickets of {channel.channel_id}"] = got(
                channels.used_tickets, world, Caller("carol"), channel.channel_id
            )
            found[f"channel {channel.channel_id}"] = got(channels.read, world, Caller("carol"), channel.channel_id)
            for number in (1, 2, 3, 4):
                for text in ("in", "other"):
                    found[f"ticket {number} of {channel.channel_id}, {text}"] = got(
                        self.redeem, world, channel, number, text=text
                    )
        size = world.ledger.log.head().size
        found["receipts"] = got(world.ledger.log.receipts, 0, at_least=size)
        found["head"] = (world.ledger.log.head().size, world.ledger.log.head().published)
        return found


def got(read: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    try:
        answer = read(*arguments, **named)
    except QuittanceError as error:
        return type(error).__name__, vars(error)
    return answer.model_dump_json() if isinstance(answer, BaseModel) else answer


@pytest.fixture
def old() -> Old:
    return Old()


def differences(world: World) -> list[str]:
    return [f"{found.invariant} {found.at}: {found.expected} {found.found}" for found in audit.audit(world).differences]


def test_every_answer_is_the_same_before_and_after(old: Old) -> None:
    before, stored = old.answers(), old.escrows()
    done = archive(old.world())
    assert done.complete
    assert done.escrows == done.until == old.tombstones() > 15
    assert done.bundles >= 4
    after = old.answers()
    assert [name for name in before if before[name] != after[name]] == []
    assert before.keys() == after.keys()
    assert old.escrows() == stored
    assert differences(old.world()) == []
    kinds = {type_ for answer in before.values() if isinstance(answer, tuple) and isinstance(type_ := answer[0], str)}
    assert {"TaskConflictError", "TicketUsedError", "ChannelClosedError"} <= kinds


def test_nothing_is_archived_early_or_unpublished(old: Old) -> None:
    """Not a moment before the time is over, not with the archive switched off, and not what no checkpoint covers."""
    swept = max(int(item["swept_ms"]["N"]) for item in old.escrows().values() if "swept_ms" in item)
    first = min(int(item["swept_ms"]["N"]) for item in old.escrows().values() if "swept_ms" in item)
    due_ms = ARCHIVE_AFTER_DAYS_MIN * DAY_MS
    old.now_ms = first + due_ms - 1
    assert archive(old.world()) == archiving.Archived(complete=True)
    off = old.world()
    off.settings = off.settings.model_copy(update={"archive_after_days": 0})
    old.now_ms = LATER_MS
    assert archive(off) == archiving.Archived()
    assert old.tombstones() == 0
    head = old.memory.items["LOG"]
    batch = len(old.world().ledger.log.escrow_keys(0, at_least=1))
    assert batch > BUNDLE
    for published in (BUNDLE - 1, batch - 1):  # too few, and not the whole batch
        old.memory.items["LOG"] = head | {"published": {"N": str(published)}}
        assert archive(old.world()).escrows == old.tombstones() == 0
    old.memory.items["LOG"] = head
    old.now_ms = swept + due_ms - 1
    assert archive(old.world()).complete
    assert not [
        item for item in old.memory.items.values() if "digest" in item and item["swept_ms"] == {"N": str(swept)}
    ]
    old.now_ms = swept + due_ms
    assert archive(old.world()).until == old.world().ledger.log.head().published


@pytest.mark.parametrize("left", range(BUNDLE))
def test_a_bundle_is_full_and_has_whole_batches(left: int, old: Old) -> None:
    """The escrows at the end of the log stay in the table until there are enough: at the limit and below it."""
    world = old.world()
    archive(world)
    for number in range(left):
        execute.execute(world, "alice", ask(f"new{number}"))
    sweep(world)
    old.now_ms += LATER_MS - START_MS
    assert archive(old.world()).escrows == 0
    execute.execute(world, "alice", ask("last"))
    sweep(world)
    old.now_ms += LATER_MS - START_MS
    done = archive(old.world())
    assert (done.escrows, done.bundles) == ((left + 1, 1) if left + 1 == BUNDLE else (0, 0))


# Crashes.


class Crashing:
    """A client whose call number `at` crashes: before it has an effect, or after."""

    def __init__(self, memory: Archiving, at: int, *, after: bool) -> None:
        self._memory, self._left, self._after = memory, at, after

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise KeyboardInterrupt
            answer = getattr(self._memory, name)(**arguments)
            if self._left == 0:
                raise KeyboardInterrupt
            return answer

        return call


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_call_loses_nothing(after: bool, old: Old) -> None:
    """Whatever the table is then, all answers are the same, and a repeat ends as if there had been no crash."""
    start, stored, answers = dict(old.memory.items), old.escrows(), old.answers()
    archive(old.world())
    end, crashes = dict(old.memory.items), 0
    while True:
        old.memory.items = dict(start)
        crashes += 1
        world = ArchivingWorld(
            Crashing(old.memory, crashes, after=after), now_ms=lambda: LATER_MS, tiles=old.shelf, left_ms=lambda: 10_000
        )
        try:
            archive(world)
            break
        except KeyboardInterrupt:
            assert old.escrows() == stored
            if crashes % 5 == 0:
                assert old.answers() == answers
                assert differences(old.world()) == []
        assert archive(old.world()).complete
        assert old.memory.items == end
    assert crashes > old.tombstones()


# Damage.


def bundles(old: Old) -> list[str]:
    return sorted(pk for pk in old.memory.items if pk.startswith(OBJECT))


def rewritten(old: Old, pk: str, change: Callable[[bytes], bytes]) -> None:
    old.memory.items[pk] = {"pk": {"S": pk}, "body": {"B": change(old.memory.items[pk]["body"]["B"])}}


def flipped(data: bytes) -> bytes:
    """With one letter of a receipt changed, in the middle."""
    at = data.index(b'"receipt":{"S":"') + 100
    return data[:at] + (b"A" if data[at : at + 1] != b"A" else b"B") + data[at + 1 :]


DAMAGES: Final[Mapping[str, Callable[[Old], Any]]] = {
    "missing": lambda old: [old.memory.items.pop(pk) for pk in bundles(old)],
    "changed": lambda old: [rewritten(old, pk, flipped) for pk in bundles(old)],
    "empty": lambda old: [rewritten(old, pk, lambda _: b"") for pk in bundles(old)],
    "cut off": lambda old: [rewritten(old, pk, lambda data: data[:200]) for pk in bundles(old)],
    "shifted": lambda old: [rewritten(old, pk, lambda data: b" " + data) for pk in bundles(old)],
    "exchanged": lambda old: [
        rewritten(old, pk, lambda _, other=other: other)  # type: ignore[misc]  # the default binds it
        for pk, other in zip(
            bundles(old), [old.memory.items[pk]["body"]["B"] for pk in reversed(bundles(old))], strict=True
        )
    ],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_never_runs_a_task_again(damage: str, old: Old) -> None:
    """Repeats and readers get 503 or the answer of before; sums and statements stay; the audit names the escrows."""
    before = old.answers()
    archive(old.world())
    DAMAGES[damage](old)
    table = dict(old.memory.items)
    with quiet():
        after = old.answers()
        found = {difference.at for difference in audit.audit(old.world()).differences if difference.invariant == "I12"}
    assert old.memory.items == table
    different = {name: after[name] for name in after if after[name] != before[name]}
    assert {answer[0] for answer in different.values()} == {"PlatformUnavailableError"}
    assert not [name for name in different if name.startswith(("statement", "credits", "tickets", "channel", "place"))]
    archived = {pk for pk, item in old.memory.items.items() if "digest" in item}
    if damage == "changed":
        assert len(found) == len(bundles(old))
    else:
        assert found == archived
        assert {f"replay of {name}" for name in (WINS, FAILS, *OTHERS, "expired")} <= different.keys()


@pytest.mark.parametrize("damage", DAMAGES)
def test_nothing_of_a_damaged_bundle_is_replaced(damage: str, old: Old) -> None:
    """As if another archiver had stored bundles and crashed, and then somebody had damaged them."""
    table = dict(old.memory.items)
    archive(old.world())
    old.memory.items = table | {pk: old.memory.items[pk] for pk in bundles(old)}
    DAMAGES[damage](old)
    before = dict(old.memory.items)
    if damage == "missing":
        assert archive(old.world()).complete
        return
    if damage == "shifted":  # its lines are sound, and the tombstones say where they really are
        assert archive(old.world()).complete
        assert resolved(old.memory.items) | {"LOG": {}} == table | {"LOG": {}}
        return
    with pytest.raises(ArchiveDamagedError):
        archive(old.world())
    assert old.memory.items == before


def test_a_lost_bundle_is_not_replaced_by_tombstones(old: Old) -> None:
    """A bundle that is deleted after some of its escrows were replaced: nothing may be stored in its place."""
    crashing = Crashing(old.memory, 8, after=True)  # the second of the first bundle's tombstones
    with pytest.raises(KeyboardInterrupt):
        archive(ArchivingWorld(crashing, now_ms=lambda: LATER_MS, tiles=old.shelf, left_ms=lambda: 10_000))
    assert (old.tombstones(), old.world().ledger.log.head().archived) == (2, 0)
    for pk in bundles(old):
        del old.memory.items[pk]
    before = dict(old.memory.items)
    with pytest.raises(ArchiveDamagedError, match="missing"):
        archive(old.world())
    assert old.memory.items == before


@pytest.mark.parametrize("name", ["receipt", "refunded", "request_sha256", "seal", "webhook"])
def test_a_bundle_that_differs_from_the_table_replaces_nothing(name: str, old: Old) -> None:
    """A sound bundle with one attribute that is changed, missing, or more than the table has."""
    pk = next(pk for pk, item in old.memory.items.items() if "swept_ms" in item)
    old.memory.items[pk] = (item := dict(old.memory.items[pk])) | {"webhook": {"S": "https://a.test"}}
    table = dict(old.memory.items)
    archive(old.world())
    stored = {each: old.memory.items[each] for each in bundles(old)}
    whole = table[pk]
    others: list[Item] = [item, whole | {"extra": {"S": "a"}}, whole | {name: {"S": "other"}}]
    for other in others:
        old.memory.items = table | stored | {pk: other}
        before = dict(old.memory.items)
        with pytest.raises(ArchiveDamagedError):
            archive(old.world())
        assert old.memory.items[pk] == other
        changed = {each for each in before if before[each] != old.memory.items[each] and each != "LOG"}
        assert all("archived" in old.memory.items[each] for each in changed)
        assert resolved(old.memory.items) | {"LOG": {}} == resolved(before) | {"LOG": {}}


class Meddling:
    """A client that changes an escrow when the archiver has checked everything and begins to write."""

    def __init__(self, memory: Archiving, change: Callable[[Item], Item]) -> None:
        self._memory, self._change = memory, change

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            if name == "put_item":
                pk = arguments["Item"]["pk"]["S"]
                self._memory.items[pk] = self._change(self._memory.items[pk])
            return getattr(self._memory, name)(**arguments)

        return call


@pytest.mark.parametrize("name", ["receipt", "refunded", "seal", "swept_ms", "state"])
def test_a_change_between_check_and_write_is_never_lost(name: str, old: Old) -> None:
    """Nobody changes a swept escrow; if a repair by hand does, the archiver must not overwrite it."""
    for change in ({name: {"S": "repaired"}}, None):
        changed: list[Item] = []

        def meddle(item: Item, change: Any = change, changed: list[Item] = changed) -> Item:
            changed.append({**item, **change} if change else {each: item[each] for each in item if each != name})
            return changed[-1]

        memory = Archiving(old.memory.items)
        world = ArchivingWorld(
            Meddling(memory, meddle), now_ms=lambda: LATER_MS, tiles=old.shelf, left_ms=lambda: 10_000
        )
        with pytest.raises(ArchiveDamagedError):
            archive(world)
        assert memory.items[changed[0]["pk"]["S"]] == changed[0]
        assert not [item for item in memory.items.values() if "digest" in item]


def test_a_log_without_its_escrow_is_not_archived(old: Old) -> None:
    pk = old.world().ledger.log.escrow_keys(0, at_least=1)[0]
    whole = old.memory.items[pk]
    for wrong in (None, {name: whole[name] for name in whole if name != "swept_ms"}):
        old.memory.items = {each: item for each, item in old.memory.items.items() if each != pk}
        old.memory.items |= {pk: wrong} if wrong else {}
        with pytest.raises(ArchiveDamagedError, match=pk):
            archive(old.world())
        assert old.tombstones() == 0
        assert not bundles(old)


def test_a_bundle_of_another_size_is_used_as_it_is(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release may have stored the bundle and crashed before it replaced anything, or in the middle."""
    table = dict(old.memory.items)
    for at in (6, 8):
        for smaller, larger in ((1, 5), (5, 1)):
            old.memory.items = dict(table)
            crashing = Crashing(old.memory, at if smaller == 1 else at + 2, after=True)
            world = ArchivingWorld(crashing, now_ms=lambda: LATER_MS, tiles=old.shelf, left_ms=lambda: 10_000)
            monkeypatch.setattr(archiving, "BUNDLE_ESCROWS_MIN", smaller)
            with pytest.raises(KeyboardInterrupt):
                archive(world)
            assert (len(bundles(old)), old.world().ledger.log.head().archived) == (1, 0)
            monkeypatch.setattr(archiving, "BUNDLE_ESCROWS_MIN", larger)
            done = archive(old.world())
            assert done.complete
            assert resolved(old.memory.items) | {"LOG": {}} == table | {"LOG": {}}
            assert differences(old.world()) == []
            assert done.until > 10


@pytest.mark.parametrize("name", ["refunded", "budget", "paid", "at", "task_id", "agent_id", "state", "number"])
def test_the_audit_compares_tombstones_with_the_archive(name: str, old: Old) -> None:
    """A changed tombstone is named, also if sums over it still hold."""
    archive(old.world())
    pk, tombstone = next((pk, item) for pk, item in old.memory.items.items() if "digest" in item and name in item)
    ((kind, value),) = tombstone[name].items()
    other = str(int(value) + 1) if kind == "N" else "expired" if value != "expired" else "released"
    old.memory.items[pk] = {**tombstone, name: {kind: other}}
    assert ("I12", pk) in {(found.invariant, found.at) for found in audit.audit(old.world()).differences}


class Interrupting:
    """A client before whose call number `at` something else happens."""

    def __init__(self, memory: Archiving, at: int, happens: Callable[[], Any]) -> None:
        self._memory, self._left, self._happens = memory, at, happens

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self._happens()
            return getattr(self._memory, name)(**arguments)

        return call

    @property
    def is_over(self) -> bool:
        return self._left > 0


@pytest.mark.parametrize("parts", [1, 3])
def test_an_audit_during_which_escrows_are_archived_is_right(
    old: Old, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """Between any two of its calls; and a damaged escrow that is archived meanwhile is still found."""
    monkeypatch.setattr(audit, "_INDEX_LAG_S", 0)
    monkeypatch.setattr(audit, "_PARTS_MIN", parts)
    table, calls = dict(old.memory.items), 0
    pk = old.world().ledger.log.escrow_keys(0, at_least=1)[0]
    wrong = {pk: table[pk] | {"input_sha256": {"S": "0" * 64}}}
    while True:
        calls += 1
        for damage in ({}, wrong):
            old.memory.items = table | damage
            client = Interrupting(old.memory, calls, lambda: archive(old.world()))
            world = ArchivingWorld(client, now_ms=lambda: LATER_MS, tiles=old.shelf, left_ms=lambda: 10_000)
            found = {difference.at for difference in audit.audit(world).differences}
            assert found == damage.keys(), calls
        if client.is_over:
            break
    assert calls > 20


class Counted:
    """A client that counts its calls by name."""

    def __init__(self, memory: Archiving) -> None:
        self._memory, self.calls = memory, Counter[str]()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        self.calls[name] += 1
        return getattr(self._memory, name)


def test_the_scan_reads_no_archive(old: Old) -> None:
    """The walk has read each bundle. In the scan's order, nearly every item would be another read of S3."""
    archive(old.world())
    client = Counted(old.memory)
    world = ArchivingWorld(client, now_ms=lambda: LATER_MS, tiles=old.shelf, left_ms=lambda: 600_000)
    with Spool() as results:
        (scan,) = [part for part in audit.begin(world, results, run="").parts if part.kind == parts.SCAN]
        assert audit.step(world, results, scan).done
    assert client.calls["scan"]
    assert not client.calls["get_object"]


@pytest.mark.parametrize("first", [{"S": "0"}, {"N": "1.5"}, {"N": "-1"}])
def test_a_damaged_batch_of_archived_escrows_is_named(first: dict[str, str], old: Old) -> None:
    archive(old.world())
    pk = next(pk for pk in old.memory.items if pk.startswith("BATCH#"))
    old.memory.items[pk] = {**old.memory.items[pk], "first": first}
    assert any(pk in found for found in differences(old.world()))


# What sees the table change.


def test_no_stream_reader_sees_a_tombstone_written(old: Old) -> None:
    """No event, no webhook, no row of a listing: neither by the filters nor by what the functions read."""
    before = dict(old.memory.items)
    archive(old.world())
    mappings = template()["Resources"]
    patterns = [
        json.loads(one["Pattern"])
        for name in ("NotifyOfLedger", "ListingsOfLedger")
        for one in mappings[name]["Properties"]["FilterCriteria"]["Filters"]
    ]
    changed = {pk: item for pk, item in old.memory.items.items() if pk in before and item != before[pk]}
    assert len(changed) > 15
    for pk, after in changed.items():
        record = {"eventName": "MODIFY", "dynamodb": {"OldImage": before[pk], "NewImage": after}}
        assert not any(passes(pattern, record) for pattern in patterns), pk
        for seen in (listed_change, left_funded, payout_moved, standing_change):
            assert seen(before[pk], after) is None, seen.__name__
        assert channel_change(after) is None
    pk = next(pk for pk in changed if pk != "LOG")
    funded = {"eventName": "MODIFY", "dynamodb": {"OldImage": {"state": {"S": "funded"}}, "NewImage": before[pk]}}
    assert sum(passes(pattern, funded) for pattern in patterns) == 2, "the test's own reading of filters"


def passes(pattern: Any, value: Any) -> bool:
    """Whether a record passes a filter of Lambda, as far as our filters go."""
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(passes(wanted, value.get(name)) for name, wanted in pattern.items())
    return any(
        (value is not None) if one == {"exists": True}
        else str(value).startswith(one["prefix"]) if isinstance(one, dict)
        else value == one
        for one in pattern
    )  # fmt: skip


def test_a_tombstone_is_small_and_leaves_the_indexes_alone(old: Old) -> None:
    before = dict(old.memory.items)
    archive(old.world())
    indexes = [
        [key["AttributeName"] for key in index["KeySchema"]] for index in table_properties()["GlobalSecondaryIndexes"]
    ]
    for pk, item in old.memory.items.items():
        if "digest" not in item:
            continue
        for keys in indexes:
            listed = [before[pk].get(key) for key in keys]
            assert [item.get(key) for key in keys] == listed or None in listed
        size = sum(len(name) + len(str(*value.values())) for name, value in item.items() if name != "digest")
        assert size + len("digest") + 32 < 480


# Every order of calls.


class ArchivedBucket(DerivedBucket):
    def _leaves(self) -> list[bytes]:
        whole = DerivedBucket(Memory(resolved(self._memory.items)))
        return whole._leaves()


class ArchiveWalk(Walk):
    """A walk in which only the archivers write, and every answer is known before."""

    def __init__(self, table: Table, actors: list[Actor], answers: Mapping[str, Any], *, losses: int) -> None:
        self._whole, self._answers = resolved(table), answers
        super().__init__(table, actors, [LATER_MS], losses=losses)

    def _check(self, before: Table, after: Table, fence: int | None, actor: Actor) -> None:
        now = resolved(after)
        self._wrong += [
            f"{actor.name}: {pk} changed"
            for pk in now.keys() | self._whole.keys()
            if now.get(pk) != self._whole.get(pk) and pk != "LOG"
        ]
        gone = [pk for pk, item in before.items() if pk.startswith(OBJECT) and after.get(pk) != item]
        self._wrong += [f"{actor.name}: {pk} was replaced" for pk in gone]
        archived = int(after["LOG"].get("archived_size", {"N": "0"})["N"])
        if archived < int(before["LOG"].get("archived_size", {"N": "0"})["N"]):
            self._wrong.append(f"{actor.name}: the position went back")
        whole = sum("archived" not in item for item in after.values() if "swept_ms" in item)
        if whole < len([pk for pk, item in self._whole.items() if "swept_ms" in item]) - archived - _largest(after):
            self._wrong.append(f"{actor.name}: escrows behind the bundle were archived")

    def _check_result(self, actor: Actor, result: Any, table: Table) -> None:
        self._results.add((actor.name, type(result).__name__))
        if actor.name in self._answers and not isinstance(result, PlatformUnavailableError):
            found = got(raised, result)
            if found != self._answers[actor.name]:
                self._wrong.append(f"{actor.name}: {found}")

    def _recover(self, table: Table) -> None:
        memory = Archiving(table)
        world = ArchivingWorld(memory, now_ms=lambda: LATER_MS, tiles=ArchivedBucket(memory), left_ms=lambda: 10_000)
        archive(world)
        size = world.ledger.log.head().archived
        if size != sum("digest" in item for item in memory.items.values()) or size < BUNDLE:
            self._wrong.append(f"the archive does not recover: {size}")
        if resolved(memory.items) | {"LOG": {}} != self._whole | {"LOG": {}}:
            self._wrong.append("the recovered table differs")
        self._wrong += differences(world)


def raised(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result


def _largest(table: Table) -> int:
    return max((item["body"]["B"].count(b"\n") for pk, item in table.items() if pk.startswith(OBJECT)), default=1) - 1


def few() -> Old:
    """Four tasks in two bundles of two, one of them with a judge."""
    old = Old.__new__(Old)
    old.memory, old.shelf, old.now_ms, old.channels = Archiving(), Shelf(), START_MS, ()
    world = old.world()
    fill_bonds(world)
    world.ledger.deposit("alice", "start", 10**9, now_ms=START_MS)
    for task_id in (WINS, FAILS):
        execute.execute(world, "alice", ask(task_id))
    sweep(world)
    execute.execute(world, "alice", ask("judged", JUDGED, budget=4 * FLAT_MICRO))
    sweep(world)
    old.now_ms = LATER_MS
    return old


STORIES: Final[Mapping[str, Callable[[World], Any]]] = {
    "archiver": archive,
    "another": archive,
    "replay": lambda world: execute.execute(world, "alice", ask(WINS)),
    "replay of the judged": lambda world: execute.execute(world, "alice", ask("judged", JUDGED, budget=4 * FLAT_MICRO)),
    "other body": lambda world: execute.execute(world, "alice", ask(WINS, text="other")),
    "reader": lambda world: result.read(world, Caller("alice"), WINS),
}


@pytest.mark.parametrize(
    "names",
    [
        ("archiver", "another"),
        *(("archiver", name) for name in STORIES if name not in {"archiver", "another"}),
        ("archiver", "another", "replay"),
    ],
    ids="+".join,
)
def test_archivers_and_readers_in_every_order(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each escrow stays what it was, each answer is the one of before, each table recovers; with lost responses."""
    monkeypatch.setattr(archiving, "BUNDLE_ESCROWS_MIN", 2)
    monkeypatch.setattr(explore, "Memory", Archiving)
    monkeypatch.setattr(explore, "World", ArchivingWorld)
    monkeypatch.setattr(explore, "DerivedBucket", ArchivedBucket)
    monkeypatch.setattr(explore, "_WRITES", explore._WRITES | {"put_object", "get_object"})
    old = few()
    answers = {name: got(STORIES[name], old.world()) for name in names if not name.startswith("a")}
    actors = [Actor(name, STORIES[name]) for name in names]
    with quiet():
        walked = ArchiveWalk(old.memory.items, actors, answers, losses=(len(names) == 2) + LONG).all()
    assert walked.wrong == []
    assert walked.interleavings > walked.states > 100
    COUNTED.append((walked.states, walked.interleavings))


def test_the_number_of_orders_is_reported(record_property: Callable[[str, str], None]) -> None:
    states, interleavings = map(sum, zip(*COUNTED, strict=True))
    record_property("figure", f"{len(COUNTED)} walks, {states:,} states, {interleavings:,} interleavings, all in order")
