"""Appends to the log: many batches in one write, in one order, each once, whatever happens meanwhile."""

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from hypothesis import given
from hypothesis import strategies as st

from quittance.ledger.reputation import serialise
from quittance.limits import LOGGED_AGENTS_MAX, LOGGED_AT_ONCE_MAX, TRANSACTION_ITEMS_MAX
from quittance.proof.log import LogHead, Tile, leaf_hash
from quittance.store import log, parallel
from quittance.store.log import Latest
from quittance.usecases.sweep import Steps, publish_log, sweep
from tests.proofs.checks import violations
from tests.proofs.memory import Memory
from tests.proofs.test_matrix import DONE, EXPIRY, done, hold, overtaken
from tests.proofs.world import START_MS, World, append_to_log, quiet


class Counting(Memory):
    """An in-memory DynamoDB that notes its calls and the sizes of its transactions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.items_written: list[int] = []

    def __getattribute__(self, name: str) -> Any:
        if name in {"get_item", "batch_get_item", "query", "update_item", "transact_write_items"}:
            object.__getattribute__(self, "calls").append(name)
        return super().__getattribute__(name)

    def transact_write_items(self, *, TransactItems: list[Any], ClientRequestToken: str = "") -> dict[str, Any]:  # noqa: N803
        self.items_written.append(len(TransactItems))
        return super().transact_write_items(TransactItems=TransactItems)


def credited(*agents: str) -> tuple[Counting, World, list[str]]:
    """A ledger with a credited batch for each of some agents, each with the agents that its name lists."""
    memory = Counting()
    world = World(memory, now_ms=lambda: EXPIRY, left_ms=lambda: 10_000)
    world.ledger.deposit("alice", "start", 10**9, now_ms=START_MS)
    batch_ids = []
    for number, names in enumerate(agents):
        ids = []
        for name in names.split():
            escrow = world.ledger.fund(hold(task_id=f"t{number}{name}", agent_id=f"agt_{name}"))
            ids.append(world.ledger.settle(done(world, escrow, DONE, START_MS)).escrow_id)
        assert world.ledger.credit(ids, now_ms=START_MS + number).escrows == len(ids)
        batch_ids.append(memory.items[f"ESC#{ids[0]}"]["batch"]["S"])
    memory.calls.clear()
    memory.items_written.clear()
    return memory, world, batch_ids


def order(memory: Memory) -> list[str]:
    """The batches in the order of the log, found by following its pointers."""
    found, at = [], 0
    while pointer := memory.items.get(f"LOG#{at}"):
        batch = memory.items["BATCH#" + pointer["batch"]["S"]]
        assert batch["first"] == {"N": str(at)}
        assert "work" not in batch
        found.append(pointer["batch"]["S"])
        at += len(batch["escrows"]["S"].split(","))
    assert memory.items["LOG"]["size"] == {"N": str(at)}
    assert len(found) == sum(pk.startswith("LOG#") for pk in memory.items)
    return found


def outcomes(world: World, *names: str) -> list[int]:
    return [world.ledger.standing(f"agt_{name}").outcomes for name in names]


def exact(memory: Memory, world: World) -> bool:
    return [line for line in violations(world, memory.items.values()) if ", due was Due" not in line] == []


def reads_of_standings(memory: Memory) -> list[str]:
    """The standings that are read from now on."""
    read: list[str] = []
    honest = Memory.batch_get_item

    def batch_get_item(**call: Any) -> Any:
        keys = [key["pk"]["S"] for asked in call["RequestItems"].values() for key in asked["Keys"]]
        read.extend(pk for pk in keys if pk.startswith("REP#"))
        return honest(memory, **call)

    memory.batch_get_item = batch_get_item  # type: ignore[method-assign]
    return read


@contextmanager
def faulty(memory: Memory, world: World, faults: Sequence[str]) -> Iterator[None]:
    """Appends meet these faults, one at each write, in order."""
    left, honest = list(faults), memory.transact_write_items

    def send(*, TransactItems: list[Any], ClientRequestToken: str = "") -> Any:  # noqa: N803
        fault = left.pop(0) if left else "none"
        if fault.startswith("rival"):
            left[:0], kept = ["none"] * 20, len(left)
            waiting = [batch_id for ids in world.ledger.log.waiting() for batch_id in ids]
            append_to_log(world.ledger, *(waiting if fault == "rival of all" else waiting[:1])[:LOGGED_AT_ONCE_MAX])
            left[:] = left[len(left) - kept :] if kept else []
        answers: Mapping[str, Any] = {
            "conflict": {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": [CONFLICT]},
            "refused": {"Error": {"Code": "ValidationException"}},
        }
        if fault in answers:
            raise ClientError(answers[fault], "TransactWriteItems")
        if fault == "lost before":
            raise ReadTimeoutError(endpoint_url="-")
        answer = honest(TransactItems=TransactItems)
        if fault == "lost":
            raise ReadTimeoutError(endpoint_url="-")
        return answer

    with mock.patch.object(memory, "transact_write_items", send), mock.patch("quittance.store.dynamo.time.sleep"):
        yield


CONFLICT = {"Code": "TransactionConflict"}


def test_one_append_takes_all_waiting_batches_in_order() -> None:
    """I15, I16: the calls do not grow with the batches, the pointers and the standings are those of single appends."""
    memory, world, batch_ids = credited("a b", "b", "c a", "b c a", "d")
    (waiting,) = world.ledger.log.waiting()
    assert waiting == batch_ids
    memory.calls.clear()
    (appended,) = world.ledger.log.append(waiting)
    assert [(first, len(receipts)) for first, receipts in appended.items()] == [(0, 2), (2, 1), (3, 2), (5, 3), (8, 1)]
    # The batches with the head, the receipts, the standings, and the write.
    assert memory.calls == ["batch_get_item"] * 3 + ["transact_write_items"]
    assert order(memory) == batch_ids
    assert outcomes(world, "a", "b", "c", "d") == [3, 3, 2, 1]
    one_by_one, other, same_ids = credited("a b", "b", "c a", "b c a", "d")
    assert sum(append_to_log(other.ledger, batch_id) for batch_id in same_ids) == 9
    assert one_by_one.items == memory.items
    assert exact(memory, world)


@pytest.mark.parametrize("spare", [0, 1])
def test_an_append_fills_one_transaction(spare: int) -> None:
    """The head, two items a batch, a standing an agent: a hundred items, and one batch beyond them."""
    batches = (TRANSACTION_ITEMS_MAX - 2) // 2 + spare
    memory, world, batch_ids = credited(*["a"] * batches)
    assert append_to_log(world.ledger) == batches
    assert memory.items_written == [TRANSACTION_ITEMS_MAX, 4][: 1 + spare]
    assert order(memory) == batch_ids
    assert outcomes(world, "a") == [batches]


@pytest.mark.parametrize("agents", [30, 31])
def test_many_agents_need_several_appends(agents: int) -> None:
    """Three batches of different agents and one of known agents fit; with three more standings only the oldest do."""
    names = [" ".join(f"{number}-{agent}" for agent in range(agents)) for number in range(3)]
    memory, world, batch_ids = credited(*names, "0-0")
    assert append_to_log(world.ledger) == 3 * agents + 1
    first, second, third, known = batch_ids
    if agents == 30:
        assert memory.items_written == [1 + 2 * 4 + 90]
        assert order(memory) == batch_ids
    else:
        assert memory.items_written == [1 + 2 * 3 + 62, 1 + 2 + 31]
        assert order(memory) == [first, second, known, third]


def test_batches_with_agents_in_common_are_appended_together() -> None:
    """The oldest batch comes first, and each standing is written as rarely as possible."""
    names = [" ".join(f"{number}-{agent}" for agent in range(48)) for number in range(3)]
    memory, world, batch_ids = credited(*names, *names, *names)
    assert append_to_log(world.ledger) == 9 * 48
    assert memory.items_written == [1 + 2 * 3 + 48] * 3
    assert order(memory) == [batch_ids[place] for place in (0, 3, 6, 1, 4, 7, 2, 5, 8)]
    assert exact(memory, world)


@pytest.mark.parametrize("spare", [0, 1])
def test_so_many_batches_are_read_before_an_append(spare: int) -> None:
    memory, world, batch_ids = credited(*["a"] * (LOGGED_AT_ONCE_MAX + spare))
    assert [len(ids) for ids in world.ledger.log.waiting()] == [LOGGED_AT_ONCE_MAX, 1][: 1 + spare]
    memory.calls.clear()
    assert sweep(world).logged == LOGGED_AT_ONCE_MAX + spare
    # The batches with the head, their receipts, the first standing; what is one too many needs two more reads.
    assert memory.calls.count("batch_get_item") == 3 + 2 * spare
    assert memory.items_written == ([100, 100, 4] if not spare else [100, 100, 4, 4])
    assert order(memory) == batch_ids
    assert exact(memory, world)


def test_an_append_has_at_most_the_bytes_of_one_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standings are measured as they are written. One batch is always appended: crediting limits its agents."""
    memory, world, batch_ids = credited("a", "b", "c", "d", "e")
    append_to_log(world.ledger, batch_ids[0])
    size = len(memory.items["REP#agt_a"]["standing"]["S"]) + log._bytes(memory.items[f"BATCH#{batch_ids[1]}"])
    monkeypatch.setattr(log, "APPEND_BYTES_MAX", 2 * size)
    memory.items_written.clear()
    assert append_to_log(world.ledger) == 4
    assert memory.items_written == [7, 7]
    monkeypatch.setattr(log, "APPEND_BYTES_MAX", 1)
    _, small, ids = credited("a", "b")
    assert append_to_log(small.ledger, *ids) == 2


def test_the_largest_single_batch_fits_one_transaction() -> None:
    assert 1 + 2 + LOGGED_AGENTS_MAX <= TRANSACTION_ITEMS_MAX
    assert LOGGED_AGENTS_MAX * (64 * 1024 + 100) + 10_000 < 4_000_000


RIVALS: dict[str, Callable[[World, list[str]], int]] = {
    "the same batches": lambda world, ids: append_to_log(world.ledger, *ids),
    "the first batch": lambda world, ids: append_to_log(world.ledger, ids[0]),
    "the last batch": lambda world, ids: append_to_log(world.ledger, ids[-1]),
    "the batches in another order": lambda world, ids: append_to_log(world.ledger, *reversed(ids)),
    "a checkpoint": lambda world, _: 0 * bool(publish_log(world, {})),
}


@pytest.mark.parametrize("logged_before", [0, 1])
@pytest.mark.parametrize("rival", RIVALS)
def test_an_overtaken_append_places_each_batch_once(rival: str, logged_before: int) -> None:
    """I15, I16: another writer is faster between this one's reads and its write."""
    memory, world, batch_ids = credited("a b", "b", "a", "c")
    if logged_before:
        append_to_log(world.ledger, batch_ids[0])
    met = overtaken(memory, lambda: RIVALS[rival](world, batch_ids[logged_before:]))
    assert append_to_log(world.ledger, *batch_ids) + met[0] == (3 if logged_before else 5)
    assert sorted(order(memory)) == sorted(batch_ids)
    assert outcomes(world, "a", "b", "c") == [2, 2, 1]
    assert exact(memory, world)
    before = dict(memory.items)
    assert append_to_log(world.ledger, *batch_ids) == 0
    assert memory.items == before


def test_a_damaged_batch_keeps_no_other_out_of_the_log() -> None:
    memory, world, batch_ids = credited("a", "b", "c", "d", "e")
    memory.items["REP#agt_c"] = {"pk": {"S": "REP#agt_c"}, "standing": {"S": "damaged"}}
    with quiet():
        swept = sweep(world)
    assert (swept.logged, swept.failed, swept.published) == (4, 1, 4)
    assert set(order(memory)) == set(batch_ids) - {batch_ids[2]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda signed: signed[:-41],
        lambda signed: signed[: len(signed) // 2],
        lambda signed: "",
        lambda signed: signed.replace(".", ".!", 1),
        lambda signed: signed.replace(".", ".=", 1),
        lambda signed: signed[::-1],
        lambda signed: signed.replace(".", ".W10.", 1),
        lambda signed: ".".join([signed.split(".")[0], "e30", signed.split(".")[2]]),
    ],
)
def test_a_damaged_receipt_never_enters_the_log(damage: Callable[[str], str]) -> None:
    memory, world, batch_ids = credited("a", "b", "c")
    pk = f"ESC#{batch_ids[1]}"
    memory.items[pk] = {**memory.items[pk], "receipt": {"S": damage(memory.items[pk]["receipt"]["S"])}}
    with quiet():
        swept = sweep(world)
    assert (swept.logged, swept.failed, swept.published) == (2, 1, 2)
    assert order(memory) == [batch_ids[0], batch_ids[2]]


@pytest.mark.parametrize("appends", [1, 2])
def test_a_sweep_whose_time_ends_says_that_batches_are_left(appends: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next sweep appends the rest."""
    memory, world, batch_ids = credited("a", "b", "c")
    with monkeypatch.context() as patch:
        patch.setattr(log, "TRANSACTION_ITEMS_MAX", 4)
        patch.setattr(world, "left_ms", lambda: 0 if len(memory.items_written) >= appends else 60_000)
        steps = Steps(world)
        assert not steps._log()
    assert (steps.done.logged, steps.done.failed) == (appends, 0)
    assert sweep(world).logged == len(batch_ids) - appends
    assert exact(memory, world)


def test_a_sweep_whose_time_ends_while_it_looks_for_a_damaged_batch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, world, batch_ids = credited("a", "b", "c")
    pk = f"ESC#{batch_ids[1]}"
    memory.items[pk] = {**memory.items[pk], "receipt": {"S": "damaged"}}
    with monkeypatch.context() as patch:
        patch.setattr(world, "left_ms", iter([60_000, 60_000, *[0] * 9]).__next__)
        steps = Steps(world)
        assert not steps._log()
    assert (steps.done.logged, steps.done.failed) == (0, 0)
    with quiet():
        swept = sweep(world)
    assert (swept.logged, swept.failed) == (2, 1)


def test_a_damaged_batch_hides_no_earlier_append() -> None:
    """The append beside which its standing was read is noted; then the batch is met again, alone."""
    names = [" ".join(f"{number}-{agent}" for agent in range(60)) for number in range(3)]
    memory, world, batch_ids = credited(*names)
    memory.items["REP#agt_1-7"] = {"pk": {"S": "REP#agt_1-7"}, "standing": {"S": "damaged"}}
    with quiet():
        swept = sweep(world)
    assert (swept.logged, swept.failed, swept.published) == (120, 1, 120)
    assert order(memory) == [batch_ids[0], batch_ids[2]]
    assert memory.items_written == [63, 63]
    assert "get_item" not in memory.calls[:-2], "what was appended is published without being read again"


def test_a_sweep_reads_a_standing_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LOGGED_AT_ONCE_MAX", 1)
    memory, world, _ = credited("a", "a b", "b a", "a")
    read = reads_of_standings(memory)
    assert sweep(world).logged == 6
    assert read == ["REP#agt_a", "REP#agt_b"]
    assert exact(memory, world)


@pytest.mark.parametrize("kept", [0, 1_000, 10**6])
def test_kept_standings_are_bounded(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the last append always stay, because the next one is prepared before they are stored."""
    monkeypatch.setattr(log, "STANDINGS_KEPT_BYTES_MAX", kept)
    latest = Latest()
    memory, world, batch_ids = credited("a b", "b c", "c d", "d a", "a b c d e")
    for batch_id in batch_ids:
        (appended,) = world.ledger.log.append([batch_id], latest)
        agents = {name for name in memory.items if name.startswith("REP#")}
        sizes = {pk: len(memory.items[pk]["standing"]["S"]) for pk in agents}
        found = {f"REP#{agent_id}": serialise(standing) for agent_id, (standing, _) in latest.standings.items()}
        assert found == {pk: memory.items[pk]["standing"]["S"] for pk in found}
        assert latest.standings_bytes == sum(sizes[pk] for pk in found)
        assert latest.standings_bytes <= kept or len(found) == len(next(iter(appended.values())))
    assert exact(memory, world)


def backwards(do: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """As `at_once`, but the last call ends before the first begins: the next append is prepared before the write."""
    return [do(each) for each in reversed(list(items))][::-1]


@pytest.mark.parametrize("kept", [0, 10**6])
def test_the_next_append_follows_one_that_is_not_stored_yet(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "STANDINGS_KEPT_BYTES_MAX", kept)
    monkeypatch.setattr(log, "TRANSACTION_ITEMS_MAX", 6)
    monkeypatch.setattr(log, "at_once", backwards)
    memory, world, batch_ids = credited("a b", "a b", "a b", "b c")
    assert append_to_log(world.ledger) == 8
    assert memory.items_written == [5, 5, 5, 5]
    assert order(memory) == batch_ids
    assert outcomes(world, "a", "b", "c") == [3, 4, 1]
    assert exact(memory, world)


def test_a_rival_between_two_appends_makes_a_sweep_read_again() -> None:
    memory, world, batch_ids = credited("a", "a", "a")
    latest = Latest()
    for place, batch_id in enumerate(batch_ids):
        if place == 1:
            append_to_log(world.ledger, batch_id)
        else:
            assert len(list(world.ledger.log.append([batch_id], latest))) == 1
    assert outcomes(world, "a") == [3]
    assert exact(memory, world)


def test_what_a_failed_write_would_have_stored_is_forgotten() -> None:
    """Even if another sweep makes the log as large as the failed append would have made it."""
    memory, world, batch_ids = credited("a", "b", "a b")
    latest = Latest()

    def refuse(**_: Any) -> Any:
        raise ClientError({"Error": {"Code": "ValidationException"}}, "TransactWriteItems")

    with mock.patch.object(memory, "transact_write_items", refuse), pytest.raises(ClientError):
        list(world.ledger.log.append([batch_ids[0]], latest))
    assert append_to_log(world.ledger, batch_ids[1]) == 1
    list(world.ledger.log.append([batch_ids[2]], latest))
    assert outcomes(world, "a", "b") == [1, 2]
    assert append_to_log(world.ledger, batch_ids[0]) == 1
    assert exact(memory, world)


FAULTS = ["none", "none", "rival", "rival of all", "lost", "lost before", "conflict", "refused"]


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True), min_size=1, max_size=12),
    st.lists(st.sampled_from(FAULTS), max_size=12),
    st.integers(1, 5),
    st.sampled_from([0, 700, 10**6]),
    st.sampled_from([parallel.at_once, backwards]),
)
def test_batches_are_logged_once_whatever_happens(
    batches: list[list[str]], faults: list[str], read: int, kept: int, at_once: Callable[..., Any]
) -> None:
    """I15, I16: rivals, lost answers and failures at any write; small transactions, so that each list takes several."""
    memory, world, batch_ids = credited(*map(" ".join, batches))
    sizes = {"LOGGED_AT_ONCE_MAX": read, "STANDINGS_KEPT_BYTES_MAX": kept, "TRANSACTION_ITEMS_MAX": 9}
    with mock.patch.multiple(log, **sizes, at_once=at_once), quiet(), faulty(memory, world, faults):
        for _ in range(2 + len(faults)):
            swept = sweep(world)
            if swept.complete and not swept.failed:
                break
    assert sorted(order(memory)) == sorted(batch_ids)
    counts = [sum(name in batch for batch in batches) for name in "abcdef"]
    assert outcomes(world, *"abcdef") == counts
    assert memory.items["LOG"]["published"] == memory.items["LOG"]["size"]
    assert exact(memory, world)


@pytest.mark.parametrize("known", [(), (0,), (0, 2), (2,), (3,), (5,), (0, 2, 3, 5)])
@pytest.mark.parametrize("published", [0, 2, 5])
def test_the_log_is_published_from_what_was_appended_and_what_is_stored(known: tuple[int, ...], published: int) -> None:
    """A crash between append and publication loses only what need not be read again."""
    memory, world, batch_ids = credited("a b", "b", "c a", "b c a")
    appended: dict[int, Sequence[str]] = {}
    for end, ids in ((2, batch_ids[:1]), (5, batch_ids[1:3]), (8, batch_ids[3:])):
        appended |= ChainMap(*world.ledger.log.append(ids))
        if published == end:
            assert publish_log(world, {}) == LogHead(end, end)
    hashes = {first: [leaf_hash(one.encode()) for one in appended[first]] for first in known}
    assert publish_log(world, hashes) == LogHead(8, 8)
    whole = b"".join(leaf_hash(one.encode()) for receipts in appended.values() for one in receipts)
    assert world.tiles.tiles[Tile(0, 0, 8)] == whole  # type: ignore[attr-defined]  # a shelf
    assert publish_log(world, hashes) is None
    assert hashes == {}
    assert exact(memory, world)


def test_publishing_what_was_just_appended_reads_no_receipt() -> None:
    memory, world, _ = credited("a b", "b", "c a")
    memory.calls.clear()
    swept = sweep(world)
    assert (swept.logged, swept.published) == (5, 5)
    assert memory.calls.count("get_item") == 1, "the head"


def test_a_large_log_is_published_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quittance.usecases.sweep._PUBLISHED_AT_ONCE", 2)
    memory, world, _ = credited("a", "b", "c", "d", "e")
    assert sweep(world).published == 5
    assert memory.items["LOG"]["published"] == {"N": "5"}
    assert sorted(world.tiles.checkpoints) == [2, 4, 5]  # type: ignore[attr-defined]
