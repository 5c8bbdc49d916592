"""Appends to the log: many batches in one write, in one order, each once, whatever happens meanwhile."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from quittance.limits import LOGGED_AGENTS_MAX, TRANSACTION_ITEMS_MAX
from quittance.proof.log import LogHead, Tile, leaf_hash
from quittance.store import log
from quittance.usecases.sweep import publish_log, sweep
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


def test_one_append_takes_all_waiting_batches_in_order() -> None:
    """I15, I16: the calls do not grow with the batches, the pointers and the standings are those of single appends."""
    memory, world, batch_ids = credited("a b", "b", "c a", "b c a", "d")
    (waiting,) = world.ledger.log.waiting()
    assert waiting == batch_ids
    memory.calls.clear()
    appended = world.ledger.log.append(waiting)
    assert [(first, len(receipts)) for first, receipts in appended.items()] == [(0, 2), (2, 1), (3, 2), (5, 3), (8, 1)]
    # The batches with the head, the receipts, the standings, the write, and a read that finds nothing more to do.
    assert memory.calls == ["batch_get_item"] * 3 + ["transact_write_items"] + ["batch_get_item"]
    assert order(memory) == batch_ids
    assert outcomes(world, "a", "b", "c", "d") == [3, 3, 2, 1]
    one_by_one, other, same_ids = credited("a b", "b", "c a", "b c a", "d")
    assert sum(append_to_log(other.ledger, batch_id) for batch_id in same_ids) == 9
    assert one_by_one.items == memory.items
    assert exact(memory, world)


@pytest.mark.parametrize("spare", [0, 1])
def test_an_append_fills_one_transaction(spare: int) -> None:
    """The head, two items a batch, a standing an agent: a hundred items, and one batch beyond them."""
    batches = log.BATCHES_MAX + spare
    memory, world, batch_ids = credited(*["a"] * batches)
    lists = list(world.ledger.log.waiting())
    assert [len(ids) for ids in lists] == [log.BATCHES_MAX, 1][: 1 + spare]
    assert append_to_log(world.ledger) == batches
    assert memory.items_written == [TRANSACTION_ITEMS_MAX, 4][: 1 + spare]
    assert order(memory) == batch_ids
    assert outcomes(world, "a") == [batches]


@pytest.mark.parametrize("agents", [30, 31])
def test_many_agents_need_several_appends(agents: int) -> None:
    """Three batches of different agents fit with one more batch of a known agent, or without it."""
    names = [" ".join(f"{number}-{agent}" for agent in range(agents)) for number in range(3)]
    memory, world, batch_ids = credited(*names, "0-0", "0-0")
    assert append_to_log(world.ledger) == 3 * agents + 2
    assert memory.items_written == ([1 + 2 * 4 + 90, 4] if agents == 30 else [1 + 2 * 3 + 93, 1 + 2 * 2 + 1])
    assert order(memory) == batch_ids


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


@pytest.mark.parametrize("known", [(), (0,), (0, 2), (2,), (3,), (5,), (0, 2, 3, 5)])
@pytest.mark.parametrize("published", [0, 2, 5])
def test_the_log_is_published_from_what_was_appended_and_what_is_stored(known: tuple[int, ...], published: int) -> None:
    """A crash between append and publication loses only what need not be read again."""
    memory, world, batch_ids = credited("a b", "b", "c a", "b c a")
    appended: dict[int, Sequence[str]] = {}
    for end, ids in ((2, batch_ids[:1]), (5, batch_ids[1:3]), (8, batch_ids[3:])):
        appended |= world.ledger.log.append(ids)
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
