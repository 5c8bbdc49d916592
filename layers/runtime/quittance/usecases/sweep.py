"""The sweep: periodic work on the ledger that no request does.

    refund expired escrows → charge bonds for publications → credit owners, bonds and the platform
    → close channels → append receipts to the log → publish the log

Every step is idempotent, and concurrent sweeps are harmless: the ledger's conditions decide. Each step has its share of
the invocation's time, so that a backlog in one step does not stop the others; unused time goes to the steps that were
not finished. An item that fails does not block the rest: it is logged and counted, and the next sweep tries it again.

A backlog that is too large for one invocation goes to drains (drain.py), one for each work shard that has some. The
sweep then writes the log and watches the backlog. If it does not change, no drain runs: the sweep does the step itself.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Final, Generic, TypeVar

from quittance import tracing
from quittance.errors import PlatformUnavailableError
from quittance.ledger.channels import ChannelState
from quittance.limits import DRAIN_START_MS_MAX, REFUNDED_ALONE_MAX, SWEPT_ALONE_MAX
from quittance.observability import Metric, count, logger, measure
from quittance.platform import Platform
from quittance.proof import log
from quittance.proof.log import Checkpoint, LogHead
from quittance.proof.statement import Purpose
from quittance.store.ledger import Credited
from quittance.store.log import Latest
from quittance.store.parallel import at_once
from quittance.store.registry import Due
from quittance.usecases import accounts, channels
from quittance.usecases.settle import expire_if_overdue

_T = TypeVar("_T")
_REFUND, _CHARGE, _CREDIT, _CLOSE = "refund", "charge", "credit", "close"  # steps that drains do
_STOP_BEFORE_MS: Final = 5_000
_WATCH_S: Final = 1.0  # between two rounds of a sweep that drains help
_CLOSING_STEPS: Final = 10  # of one channel, each of which counts up to 100 numbers
_READ_AT_ONCE: Final = 1_000  # receipts of the log, about
_PUBLISHED_AT_ONCE: Final = 10_000  # receipts, about: what one checkpoint adds must fit in memory and in the time left


@dataclass(slots=True)
class Swept:
    """How many escrows one sweep refunded as expired, credited, logged and failed at, and whether it completed.

    `charged` counts publications charged to bonds, `closed` channels whose rest was returned. `published` is the size
    of the log in the newest checkpoint, if the sweep made one. `written_off_micro` is what bonds owed but did not have.
    `oldest_overdue_ms` is how far past its expiry the oldest funded escrow was, `lag_ms` how long the oldest settled
    escrow had waited for its credit; each is 0 if there was none.
    """

    expired: int = 0
    credited: int = 0
    logged: int = 0
    published: int | None = None
    failed: int = 0
    complete: bool = False
    written_off_micro: int = 0
    charged: int = 0
    oldest_overdue_ms: int = 0
    lag_ms: int = 0
    closed: int = 0


def sweep(platform: Platform) -> Swept:
    """Runs rounds of all steps until no work is left or the invocation's time runs out.

    Raises PlatformUnavailableError if an index cannot be read; the other steps of the round still run first.
    """
    this = Steps(platform)
    while not this.done.complete and platform.left_ms() >= _STOP_BEFORE_MS:
        this.done.complete = this.round()
        if not this.done.complete and this.drained.keys() - this.alone:
            time.sleep(_WATCH_S)
    count_work(this.done)
    count(Metric.SWEPT_LOGGED, this.done.logged)
    measure(Metric.SWEEP_COMPLETE, int(this.done.complete))
    measure(Metric.SWEEP_LAG, this.done.lag_ms)
    if this.done.published is not None:
        measure(Metric.LOG_SIZE, this.done.published)
    logger.info("swept", **asdict(this.done))
    return this.done


def count_work(swept: Swept) -> None:
    """Counts the work of a sweep or a drain. The counts add up; of the ages the largest counts."""
    count(Metric.SWEPT_EXPIRED, swept.expired)
    count(Metric.SWEPT_CREDITED, swept.credited)
    count(Metric.WRITTEN_OFF, swept.written_off_micro)
    count(Metric.SWEEP_FAILURES, swept.failed)
    count(Metric.CHANNELS_CLOSED, swept.closed)
    measure(Metric.OLDEST_OVERDUE, swept.oldest_overdue_ms)


Oldest = Mapping[int, Sequence[object]] | Mapping[None, Sequence[object]]
"""The oldest items of a backlog, by work shard; by None if the step has no shards."""


@dataclass(slots=True)
class _Drained:
    """A backlog that drains process: its oldest items, and since when they are the oldest."""

    oldest: Oldest
    since_ms: int


@dataclass(slots=True)
class Steps:
    """The steps of one invocation, of a sweep or a drain. It does not retry an item that has failed in it.

    `shard` is the work shard of a drain. `drained` has the backlogs that drains process, by step; `alone` the steps
    that this sweep does itself because no drain does.

    `closing` says whether a channel has more numbers to count than one step of the round did. `latest` is the log after
    this invocation's last append; `appended` has hashes of receipts that were appended and not published, by the
    position of their batch.
    """

    platform: Platform
    done: Swept = field(default_factory=Swept)
    shard: int | None = None
    is_drain: bool = False
    failed: set[str] = field(default_factory=set)
    drained: dict[str, _Drained] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    began_ms: int = 0
    closing: bool = False
    latest: Latest = field(default_factory=Latest)
    appended: dict[int, list[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.began_ms = self.platform.now_ms()

    def named(self, name: object) -> Callable[[], bool]:
        """The step that drains call by this name. Raises ValueError."""
        steps: dict[object, Callable[[], bool]] = {
            _REFUND: self._refund,
            _CHARGE: self._charge,
            _CREDIT: self._credit,
            _CLOSE: self._close,
        }
        if name not in steps:
            msg = f"the sweep has no step {name!r} for drains"
            raise ValueError(msg)
        return steps[name]

    def round(self) -> bool:
        """Runs each step for its share of the time that is left. Returns whether all steps finished their work."""
        shares: Sequence[tuple[Callable[[], bool], int]] = (
            (self._refund, 3),
            (self._charge, 1),
            (self._credit, 4),
            (self._close, 2),
            (self._log, 2),
            (self._publish, 1),
        )
        complete, unavailable = True, None
        for place, (step, share) in enumerate(shares):
            spare_ms = max(self.platform.left_ms() - _STOP_BEFORE_MS, 0)
            following = sum(share for _, share in shares[place + 1 :])
            try:
                with self.platform.reserving(spare_ms * following // (share + following)):
                    complete = step() and complete
            except PlatformUnavailableError as exc:
                logger.exception("step not done", step=step.__name__)
                unavailable = exc
        if unavailable:
            raise unavailable
        return complete

    def _until_ms(self, step: str) -> int:
        """Once drains help, a step is complete if the work is done that waited when the sweep began."""
        return self.began_ms if step in self.drained else self.platform.now_ms()

    def _page_items(self, alone_max: int) -> int | None:
        """How much of a work shard to read at once: a drain reads all of it, a sweep perhaps only looks."""
        if self.is_drain or not self.platform.settings.drain_function:
            return None
        return max(alone_max // self.platform.settings.ledger_shards, 1) + 1

    def _is_drained(self, step: str, oldest: Callable[[int], Oldest], page_items: int | None) -> bool:
        """Whether drains do a step now. They are started once, if a work shard fills a page.

        `oldest` returns up to a number of the oldest items of each work shard.
        """
        if page_items is None or step in self.alone:
            return False
        seen, now_ms = oldest(page_items), self.platform.now_ms()
        if all(len(some) < page_items for some in seen.values()):
            return False
        before = self.drained.get(step)
        if before is None:
            try:
                for shard in seen:
                    self.platform.drains.start(step, shard)
            except PlatformUnavailableError:
                logger.exception("drains not started", step=step)
                self.alone.add(step)
                return False
        if before is None or seen != before.oldest:
            self.drained[step] = _Drained(seen, now_ms)
        elif now_ms - before.since_ms >= DRAIN_START_MS_MAX:
            logger.warning("not drained", step=step)
            self.alone.add(step)
        return step not in self.alone

    def _refund(self) -> bool:
        page_items = self._page_items(REFUNDED_ALONE_MAX)
        overdue = self.platform.ledger.overdue(now_ms=self._until_ms(_REFUND), shard=self.shard, page_items=page_items)
        if self._is_drained(_REFUND, overdue.first, page_items):
            return False
        return self._each(chain.from_iterable(overdue), self._expire)

    def _log(self) -> bool:
        for batch_ids in self.platform.ledger.log.waiting():
            if self.platform.left_ms() < _STOP_BEFORE_MS:
                return False
            waiting = [batch_id for batch_id in batch_ids if batch_id not in self.failed]
            if waiting and not self._each_half(waiting, self._append, "not logged"):
                return False
        return True

    def _credit(self) -> bool:
        before_ms = self.began_ms if _CREDIT in self.drained else None
        page_items = self._page_items(SWEPT_ALONE_MAX)
        settled = self.platform.ledger.settled(before_ms=before_ms, shard=self.shard, page_items=page_items)
        oldest_ms = min((some[0][0] for some in settled.first(1).values()), default=None)
        self.done.lag_ms = max(self.done.lag_ms, _age_ms(self.platform, oldest_ms))
        if self._is_drained(_CREDIT, settled.first, page_items):
            return False
        for escrow_ids in settled:
            if self.platform.left_ms() < _STOP_BEFORE_MS:
                return False
            waiting = [escrow_id for escrow_id in escrow_ids if escrow_id not in self.failed]
            if waiting and not self._each_half(waiting, self._credit_all, "not credited"):
                return False
        return True

    def _close(self) -> bool:
        self.closing = False
        due = _Peeked(self.platform.channels.due(now_ms=self._until_ms(_CLOSE)))
        if self._is_drained(_CLOSE, due.first, self._page_items(SWEPT_ALONE_MAX)):
            return False
        done = self._each(due, self._close_one)
        return done and not self.closing

    def _charge(self) -> bool:
        """Charges bonds for publications: the publisher has stored in the registry what is due."""
        dues = _Peeked(self.platform.registry.dues())
        if self._is_drained(_CHARGE, dues.first, self._page_items(SWEPT_ALONE_MAX)):
            return False
        for due in dues:
            if self.platform.left_ms() < _STOP_BEFORE_MS:
                return False
            if due.agent_id not in self.failed:
                self._charge_one(due)
        return True

    def _publish(self) -> bool:
        while head := publish_log(self.platform, self.appended):
            self.done.published = head.published
            if head.published == head.size:
                return True
            if self.platform.left_ms() < _STOP_BEFORE_MS:
                return False
        return True

    def _each(self, ids: Iterable[str], do: Callable[[str], None]) -> bool:
        for each in ids:
            if self.platform.left_ms() < _STOP_BEFORE_MS:
                return False
            if each not in self.failed:
                do(each)
        return True

    @tracing.step("refund")
    def _expire(self, escrow_id: str) -> None:
        platform, done = self.platform, self.done
        try:
            escrow = platform.ledger.find(escrow_id)
            if escrow is not None and escrow.settlement is None:
                done.oldest_overdue_ms = max(done.oldest_overdue_ms, _age_ms(platform, escrow.expires_ms))
                done.expired += expire_if_overdue(platform, escrow).settlement is not None
        except Exception:  # noqa: BLE001 - a fault in one escrow must not delay the refunds of others
            self._fail("not refunded", escrow_id)

    @tracing.step("credit")
    def _credit_all(self, escrow_ids: Sequence[str]) -> bool:
        credited = self.platform.ledger.credit(escrow_ids, now_ms=self.platform.now_ms(), contended=self.is_drain)
        self.done.credited += credited.escrows
        self.done.written_off_micro += credited.written_off_micro
        self._note_bonds(credited)
        return True

    @tracing.step("close")
    def _close_one(self, channel_id: str) -> None:
        """Takes a channel some steps towards its end, so that the others have their turn; a later round goes on."""
        try:
            channel = self.platform.channels.get(channel_id)
            for _ in range(_CLOSING_STEPS):
                if self.platform.left_ms() < _STOP_BEFORE_MS:
                    return
                advanced = channels.advance_closing(self.platform, channel)
                self.done.closed += advanced.state is ChannelState.CLOSED and channel.state is not advanced.state
                if advanced == channel:
                    return
                channel = advanced
            self.closing = True
        except Exception:  # noqa: BLE001 - a fault in one channel must not keep the others open
            self._fail("channel not closed", channel_id)

    @tracing.step("charge")
    def _charge_one(self, due: Due) -> None:
        platform = self.platform
        try:
            charged = platform.ledger.charge(
                due.owner, due.agent_id, str(due.upload), due.amount_micro, now_ms=platform.now_ms()
            )
            platform.registry.take_off_due(due)
        except Exception:  # noqa: BLE001 - a fault in one publication must not delay the charges of others
            self._fail("publication not charged", due.agent_id)
        else:
            self.done.charged += 1
            self.done.written_off_micro += charged.written_off_micro
            self._note_bonds(charged)

    def _note_bonds(self, credited: Credited) -> None:
        """Updates the registry's mark of each bond that is, or may be, below the minimum."""
        for owner, left_micro in credited.bonds_left.items():
            if left_micro is None or left_micro < self.platform.settings.bond_minimum_micro:
                try:
                    accounts.note_bond(self.platform, owner)
                except Exception:  # noqa: BLE001 - the next charge notes it again; other work must not wait for it
                    self._fail("bond not noted", owner)

    @tracing.step("log")
    def _append(self, batch_ids: Sequence[str]) -> bool:
        """Appends batches; False if the time ended before."""
        waiting = len(batch_ids)
        for appended in self.platform.ledger.log.append(batch_ids, self.latest):
            for first, receipts in appended.items():
                self.appended[first] = [log.leaf_hash(receipt.encode()) for receipt in receipts]
                self.done.logged += len(receipts)
            waiting -= len(appended)
            if waiting and self.platform.left_ms() < _STOP_BEFORE_MS:
                return False
        return True

    def _each_half(self, ids: Sequence[str], do: Callable[[Sequence[str]], bool], failed: str) -> bool:
        """Does something for all ids. If that fails, does it for each half, down to the one that is faulty.

        Returns False if the time ended before all of them were done or have failed.
        """
        if self.platform.left_ms() < _STOP_BEFORE_MS:
            return False
        try:
            return do(ids)
        except PlatformUnavailableError:
            self._fail(failed, *ids)
        except Exception:  # noqa: BLE001 - a fault in one of them must not delay the others
            if half := len(ids) // 2:
                return self._each_half(ids[:half], do, failed) and self._each_half(ids[half:], do, failed)
            self._fail(failed, *ids)
        return True

    def _fail(self, what: str, *ids: str) -> None:
        logger.exception(what, ids=list(ids))
        self.done.failed += len(ids)
        self.failed.update(ids)


class _Peeked(Generic[_T]):
    """Items of which the first ones can be seen before they are taken."""

    def __init__(self, items: Iterator[_T]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[_T]:
        return self._items

    def first(self, limit: int) -> Mapping[None, Sequence[_T]]:
        first = list(islice(self._items, limit))
        self._items = chain(first, self._items)
        return {None: first}


@tracing.step("publish")
def publish_log(platform: Platform, appended: dict[int, list[bytes]]) -> LogHead | None:
    """Publishes the tiles and a signed checkpoint for the next receipts of the log; returns the log's head afterwards.

    `appended` has hashes of receipts by the position of their batch, which need not be read again; those that were
    published are removed. Returns None if all receipts are published. The order is tiles, checkpoint, then the
    published size in the ledger: a checkpoint never refers to a missing tile. Safe to repeat, because a tile's content
    follows from the log. Raises PlatformUnavailableError.
    """
    head = platform.ledger.log.head()
    for first in [first for first in appended if first < head.published]:
        del appended[first]
    leaves: list[bytes] = []
    while len(leaves) < _PUBLISHED_AT_ONCE and (place := head.published + len(leaves)) < head.size:
        end = min([head.size, *(at for at in appended if at > place)])
        leaves += appended.get(place) or _leaves(platform, place, end)
    if not leaves:
        return None
    growth = log.grow(head.published, leaves, platform.tiles.read)
    keep = platform.tiles.keep
    at_once(lambda each: keep(*each), growth.tiles.items())
    now_ms = platform.now_ms()
    checkpoint = Checkpoint(platform.settings.receipt_issuer, growth.size, growth.root, now_ms)
    key = platform.signing_key(Purpose.CHECKPOINT, at_ms=now_ms)
    platform.tiles.keep_checkpoint(growth.size, log.sign_checkpoint(checkpoint, key))
    platform.ledger.log.set_published(growth.size)
    return LogHead(head.size, growth.size)


def _leaves(platform: Platform, first: int, end: int) -> list[bytes]:
    """The hashes of the next receipts between the positions of two batches, of as many as are read at once."""
    receipts = platform.ledger.log.receipts(first, at_least=min(end - first, _READ_AT_ONCE))
    return [log.leaf_hash(receipt.encode()) for receipt in receipts]


def _age_ms(platform: Platform, since_ms: int | None) -> int:
    return 0 if since_ms is None else max(platform.now_ms() - since_ms, 0)
