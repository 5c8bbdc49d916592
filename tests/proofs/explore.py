"""Every interleaving of several actors, at the level of single store calls.

An actor is a function over a `World`. It is stepped without threads: for each step it runs from the beginning, gets the
same responses as before, makes one more call, and is stopped at the next one. So the state of the system is a value
(the table, and the responses that each actor has seen), and a walk visits each state once, however many interleavings
lead to it.

Each actor has its own clock. Between two calls, and while its agent runs, the clock may jump to any later time of the
walk. So actors pause at any point, continue late, and disagree about the time as much as possible.

A response to an actor may be lost, and an actor may crash at any step: some interleavings continue without it, and
every table that was ever reached must recover if all actors crash there.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from unittest import mock

from botocore.exceptions import ClientError, ReadTimeoutError

from quittance.api.models import TaskResult
from quittance.errors import QuittanceError
from quittance.proof import log, receipt
from quittance.proof.log import Tile
from quittance.proof.statement import Purpose
from quittance.run import Job, Run
from quittance.usecases.sweep import sweep
from tests.proofs.checks import Answer, Sent, step, violations, wrong_answers
from tests.proofs.memory import Item, Memory
from tests.proofs.world import START_MS, Shelf, World, instant_run, one_key

FOREVER_MS: Final = 60 * 60 * 1_000
_WRITES: Final = frozenset({"transact_write_items", "update_item", "put_item"})
Table = Mapping[str, Item]


@dataclass(frozen=True)
class Actor:
    """An actor: what it does, and the task that it sends if it is a client."""

    name: str
    story: Callable[[World], Any]
    sent: Sent | None = None


class DerivedBucket(Shelf):
    """A log bucket whose contents are derived from the table, so that the table alone is the stored state."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._memory = memory

    def keep(self, tile: Tile, hashes: bytes) -> None:
        assert hashes == self.read(tile), f"{tile.path} was published with hashes that differ from the log"

    def read(self, tile: Tile) -> bytes:
        assert (tile.level, tile.index) == (0, 0), "logs in these tests fit one tile"
        return b"".join(self._leaves()[: tile.width])

    def keep_checkpoint(self, size: int, checkpoint: str) -> None:
        stated = log.verify_checkpoint(checkpoint, one_key().jwks())
        assert (stated.size, stated.root) == (size, self._root(size)), "the checkpoint belongs to another log"

    def checkpoint(self, size: int | None = None) -> str:
        assert size is not None
        key = one_key().signing_key(now_s=START_MS // 1_000, purpose=Purpose.CHECKPOINT)
        return log.sign_checkpoint(log.Checkpoint("urn:quittance:test", size, self._root(size), START_MS), key)

    def _root(self, size: int) -> bytes:
        return log.grow(0, self._leaves()[:size], self.read).root

    def _leaves(self) -> list[bytes]:
        items = self._memory.items
        batches = [item for pk, item in items.items() if pk.startswith("BATCH#") and "first" in item]
        batches.sort(key=lambda batch: int(batch["first"]["N"]))
        names = [name for batch in batches for name in batch["escrows"]["S"].split(",")]
        return [log.leaf_hash(items[f"ESC#{name}"]["receipt"]["S"].encode()) for name in names]


@dataclass(frozen=True)
class State:
    """A system state: the table, what each actor has seen (both by number), and how many losses are left."""

    table: int
    seen: tuple[tuple[int, ...], ...]
    done: tuple[bool, ...]
    losses: int


@dataclass(frozen=True)
class Step:
    """The result of one step of an actor. It depends only on what the actor has seen, the table, and its clock."""

    table: int
    seen: tuple[int, ...]
    done: bool
    lost: bool
    timed: bool


@dataclass
class Walked:
    """The size of a walk, and the violations found."""

    states: int
    tables: int
    interleavings: int
    wrong: list[str]
    results: set[tuple[str, ...]]


class Paused(BaseException):
    """Stops an actor that has reached its next step."""


class _Numbered:
    """Numbers values; equal values have equal numbers."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[str, int] = {}

    def number(self, value: Any) -> int:
        name = repr(sorted(value.items()) if isinstance(value, dict) else value)
        if name not in self._numbers:
            self._numbers[name] = len(self.values)
            self.values.append(value)
        return self._numbers[name]


class _Stepper:
    """An actor's client, clock and sandbox: repeats the past, makes one step, then pauses.

    A step is a call or the agent's run. Each records the time of the actor's clock after it.
    """

    def __init__(self, memory: Memory, past: Sequence[Any], now_ms: int, *, loses: bool) -> None:
        self.memory, self.loses = memory, loses
        self.past, self.at, self.fresh = list(past), 0, True
        self.fence: int | None = None
        self.lost = False
        self.timed = False  # whether the actor read the clock after the new step
        self._next_ms = now_ms
        self._now_ms = 0
        self._event(lambda: ("begin", None))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            kind, answer = self._event(lambda: self._call(name, arguments))
            if kind == "refused":
                raise ClientError(answer, name)
            if kind == "lost":
                raise ReadTimeoutError(endpoint_url="-")
            return answer

        return call

    def now_ms(self) -> int:
        self.timed = self.timed or not self.fresh
        return self._now_ms

    def run(self, job: Job) -> Run:
        self._event(lambda: ("run", None))
        return instant_run(job)

    def _call(self, name: str, arguments: dict[str, Any]) -> tuple[str, Any]:
        try:
            answer = ("answer", getattr(self.memory, name)(**arguments))
        except ClientError as refused:
            answer = ("refused", refused.response)
        if self.loses and name in _WRITES:
            self.lost = True
            return "lost", None
        return answer

    def _event(self, make: Callable[[], tuple[str, Any]]) -> tuple[str, Any]:
        if self.at == len(self.past):
            if not self.fresh:
                raise Paused
            self.fresh = False
            self.past.append((*make(), self._next_ms))
        kind, answer, self._now_ms = self.past[self.at]
        self.at += 1
        return kind, answer


class Walk:
    """Walks every state that the actors can reach from a table, while their clocks move through `times`."""

    def __init__(
        self, table: Table, actors: Sequence[Actor], times: Sequence[int], *, losses: int = 0, work_shards: int = 1
    ) -> None:
        self._actors, self._times, self._work_shards = actors, times, work_shards
        self._tables, self._events = _Numbered(), _Numbered()
        self._wrong: list[str] = []
        self._results: set[tuple[str, ...]] = set()
        self._taken: dict[tuple[int, tuple[int, ...], int, int, bool], Step] = {}
        nobody = tuple(() for _ in actors)
        self._start = State(self._tables.number(dict(table)), nobody, tuple(False for _ in actors), losses)

    def all(self) -> Walked:
        """Walks all states, then checks that every table reached recovers."""
        paths: dict[State, int] = {}
        stack: list[tuple[State, list[State] | None]] = [(self._start, None)]
        reads = mock.patch.object(
            receipt, "read_claims", cache(receipt.read_claims)
        )  # there are few receipts, read often
        with mock.patch("uuid.uuid4", self._uuid), reads:
            while stack:
                state, following = stack.pop()
                if following is not None:
                    paths[state] = sum(paths[after] for after in following) or 1
                elif state not in paths:
                    following = list(self._following(state))
                    stack.append((state, following))
                    stack += [(after, None) for after in following if after not in paths]
            for table in self._tables.values:
                self._recover(table)
        return Walked(len(paths), len(self._tables.values), paths[self._start], self._wrong, self._results)

    def _uuid(self) -> uuid.UUID:
        self._drawn += 1
        return uuid.UUID(int=self._drawn)

    def _following(self, state: State) -> Iterator[State]:
        if all(state.done):
            return
        for number, done in enumerate(state.done):
            if not done:
                yield from self._steps(state, number)

    def _steps(self, state: State, number: int) -> Iterator[State]:
        seen = state.seen[number]
        now_ms = self._events.values[seen[-1]][-1] if seen else self._times[0]
        for loses in (False, True)[: 1 + bool(state.losses)]:
            for later_ms in self._times:
                if later_ms < now_ms:
                    continue
                step = self._step(number, seen, state.table, later_ms, loses=loses)
                if loses and not step.lost:
                    break
                yield State(
                    step.table,
                    _put(state.seen, number, step.seen),
                    _put(state.done, number, step.done),
                    state.losses - loses,
                )
                if not step.timed:
                    break  # the clock was not read: another time leads to the same state

    def _step(self, number: int, seen: tuple[int, ...], table: int, now_ms: int, *, loses: bool) -> Step:
        """One step, computed once for all states of the other actors in which it is possible."""
        key = number, seen, table, now_ms, loses
        if key not in self._taken:
            self._taken[key] = self._take(number, seen, table, now_ms, loses=loses)
        return self._taken[key]

    def _take(self, number: int, seen: tuple[int, ...], table_number: int, now_ms: int, *, loses: bool) -> Step:
        actor, before = self._actors[number], self._tables.values[table_number]
        past = [self._events.values[event] for event in seen]
        stepper = _Stepper(Memory(before), past, now_ms, loses=loses)
        self._drawn = (number + 1) * 1_000
        done = False
        try:
            world = World(
                stepper,
                now_ms=stepper.now_ms,
                run=stepper.run,
                tiles=DerivedBucket(stepper.memory),
                work_shards=self._work_shards,
            )
            result = actor.story(world)
        except Paused:
            pass
        except QuittanceError as exc:
            done, result = True, exc
        else:
            done = True
        table = stepper.memory.items
        self._check(before, table, stepper.fence, actor)
        if done:
            self._check_result(actor, result, table)
        now_seen = () if done else tuple(map(self._events.number, stepper.past))
        return Step(self._tables.number(table), now_seen, done, stepper.lost, stepper.timed)

    def _check(self, before: Table, after: Table, fence: int | None, actor: Actor) -> None:
        for pk, item in after.items():
            if pk.startswith("ESC#") and item is not before.get(pk):
                found = step(before.get(pk), item, fence=fence, table=before.values())
                self._wrong += [f"{actor.name}: {what}" for what in found]
        balances = [int(item["available"]["N"]) for pk, item in after.items() if pk.startswith("ACCT#")]
        if min(balances, default=0) < 0:
            self._wrong.append(f"{actor.name}: a balance is below zero")

    def _check_result(self, actor: Actor, result: Any, table: Table) -> None:
        what = result.escrow_status if isinstance(result, TaskResult) else type(result).__name__
        self._results.add((actor.name, what))
        if isinstance(result, TaskResult) and actor.sent:
            self._wrong += [
                f"{actor.name}: {what}" for what in wrong_answers(table.values(), [Answer(actor.sent, result)])
            ]

    def _recover(self, table: Table) -> None:
        """Checks that, after all actors have crashed, the sweep settles and credits everything in time."""
        memory = Memory(table)
        world = World(
            memory,
            now_ms=lambda: self._times[-1] + FOREVER_MS,
            tiles=DerivedBucket(memory),
            work_shards=self._work_shards,
        )
        while (swept := sweep(world)).expired or swept.credited or swept.logged:
            pass
        self._wrong += violations(world, memory.items.values())


def _put(values: tuple[Any, ...], number: int, value: Any) -> tuple[Any, ...]:
    return (*values[:number], value, *values[number + 1 :])
