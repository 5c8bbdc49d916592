"""The log of receipts in the ledger's table: one order of all credited escrows.

    LOG               size: the number of receipts in the log; published: the size of the newest checkpoint;
                      archived_size: the position from which on escrows are not archived yet, where a batch begins
    LOG#<first>       the batch that begins at this position of the log
    BATCH#<id>        escrows that were credited together; `first`: their position in the log
    REP#<agent>       standing: the fold of the agent's receipts in log order (see ledger/reputation.py)

The head `LOG` is the one item of the sweep that is global. An append writes it once for as many batches as fit one
transaction: two items for each batch, and one for each agent. So the number of appends follows from the number of
batches and agents, not from the number of receipts, and an append takes batches that have agents in common.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from quittance.ledger import reputation
from quittance.ledger.reputation import Rating, Standing
from quittance.limits import (
    APPEND_BYTES_MAX,
    BATCH_GET_ITEMS_MAX,
    LOGGED_AT_ONCE_MAX,
    STANDINGS_KEPT_BYTES_MAX,
    TRANSACTION_ITEMS_MAX,
)
from quittance.proof import receipt
from quittance.proof.log import LogHead
from quittance.store.archive import ARCHIVED, DIGEST, is_tombstone
from quittance.store.dynamo import (
    BusyError,
    ConflictError,
    Patience,
    RefusedError,
    attempt,
    from_item,
    listing,
    paged,
    put_new,
    read_item,
    read_items,
    retried,
    to_item,
    update,
)
from quittance.store.parallel import at_once

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

WORK_INDEX: Final = "work"
"""The index of what the sweep has to do, see ledger.py."""

UNLOGGED: Final = "BATCH"
"""The partition of the index `work` that lists the batches that are not in the log."""

Appended = Mapping[int, Sequence[str]]
"""The receipts of the batches of one append, by the position of each batch."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch that is not in the log: its receipts in order, the ratings in them by agent, and its item's size."""

    batch_id: str
    receipts: Sequence[str]
    ratings: Mapping[str, Sequence[Rating]]
    size: int


@dataclass(frozen=True, slots=True)
class _Append:
    """One write: the size of the log before and after it, its batches by position, and its agents' standings."""

    before: int
    size: int
    places: Mapping[int, _Batch]
    standings: Mapping[str, tuple[Standing, str]]

    @property
    def batch_ids(self) -> Collection[str]:
        return {batch.batch_id for batch in self.places.values()}


@dataclass(slots=True)
class Latest:
    """The log as a sweep left it with its last append: its size, and standings, so that it need not read them again.

    Each append makes the log larger. If the log still has this size, nobody else appended, and the standings are the
    stored ones. Up to STANDINGS_KEPT_BYTES_MAX are kept, those that were written last, and always those of the last
    append: the next one is prepared while it is written, and must not read what it replaces.
    """

    size: int | None = None
    standings: dict[str, tuple[Standing, int]] = field(default_factory=dict)
    standings_bytes: int = 0

    def forget(self) -> None:
        """Forgets everything: another sweep appended, or may have."""
        self.size, self.standings_bytes = None, 0
        self.standings.clear()

    def appended(self, this: _Append) -> None:
        """Remembers what an append writes."""
        self.size = this.size
        for agent_id, (standing, text) in this.standings.items():
            _, before = self.standings.pop(agent_id, (None, 0))
            self.standings[agent_id] = standing, len(text)
            self.standings_bytes += len(text) - before
        while self.standings_bytes > STANDINGS_KEPT_BYTES_MAX and len(self.standings) > len(this.standings):
            _, forgotten = self.standings.pop(next(iter(self.standings)))
            self.standings_bytes -= forgotten


class Log:
    """The log. Each operation is safe to repeat. Raises PlatformUnavailableError as the ledger does."""

    def __init__(
        self,
        client: "DynamoDBClient",
        *,
        table: str,
        left_ms: Callable[[], int],
        whole: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        """`whole` returns the item that a tombstone replaced."""
        self._client = client
        self._table = table
        self._left_ms = left_ms
        self._whole = whole

    def head(self) -> LogHead:
        """The size of the log, and the size of its newest checkpoint (consistent read)."""
        return _head(self._get("LOG"))

    def waiting(self) -> Iterator[list[str]]:
        """Ids of batches that the index lists as not in the log, oldest first, in lists as long as `append` takes."""
        query = listing(self._table, WORK_INDEX, "work", UNLOGGED)
        items = paged(self._client.query, query, self._left_ms)
        while ids := [item["pk"]["S"].removeprefix("BATCH#") for item in islice(items, LOGGED_AT_ONCE_MAX)]:
            yield ids

    def append(self, batch_ids: Sequence[str], latest: Latest | None = None) -> Iterator[Appended]:
        """Appends batches, as many in each write as fit, and folds their receipts into the standings.

        Yields what each write appended. Batches that have agents in common go together, the oldest first. Batches that
        are in the log already are left out. At most LOGGED_AT_ONCE_MAX at once. `latest` is from this sweep's last
        append.

        Every append updates the log's head, so the log has one order, in which the standings are folded.
        """
        patience, known, latest = Patience(self._left_ms()), dict[str, _Batch](), latest or Latest()
        waiting = self._unlogged(batch_ids, known, latest)
        while waiting:
            this: _Append | None = self._next(waiting, latest)
            while this is not None:
                rest = [batch for batch in waiting if batch.batch_id not in this.batch_ids]
                try:
                    following = self._write(this, rest, latest)
                except (RefusedError, BusyError) as failed:
                    # Another sweep appended first. After a lost response, it may be this append that is found.
                    patience.wait(failed if isinstance(failed, BusyError) else ConflictError())
                    waiting = self._unlogged([batch.batch_id for batch in waiting], known, latest)
                    break
                patience, waiting = Patience(self._left_ms()), rest
                yield {first: batch.receipts for first, batch in this.places.items()}
                this = following

    def receipts(self, first: int, *, at_least: int) -> Sequence[str]:
        """Receipts from the position of a batch on, in order: of whole batches, until there are enough."""
        return list(self._signed(self.escrow_keys(first, at_least=at_least)))

    def escrow_keys(self, first: int, *, at_least: int) -> list[str]:
        """Keys of escrows from the position of a batch on, in order: of whole batches, until there are enough."""
        pks: list[str] = []
        while len(pks) < at_least:
            pointer = self._get(f"LOG#{first + len(pks)}")
            batch = self._get(f"BATCH#{pointer['batch']['S']}") if pointer else None
            if batch is None:
                msg = f"no batch of the log begins at position {first + len(pks)}"
                raise LookupError(msg)
            pks += _escrow_keys(batch)
        return pks

    def set_published(self, size: int) -> None:
        """Records that the checkpoint of this size is published; one that is not larger changes nothing."""
        write = update(
            self._table,
            "LOG",
            set_={"published": size},
            condition="#published < :size",
            values={":size": size},
        )
        with suppress(RefusedError):
            retried(lambda: self._client.update_item(**write), Patience(self._left_ms()))

    def set_archived(self, first: int, end: int) -> None:
        """Records that the escrows between two positions are archived, unless another archiver has recorded it."""
        write = update(
            self._table,
            "LOG",
            set_={"archived_size": end},
            condition="#published >= :end AND "
            + ("#archived_size = :first" if first else "attribute_not_exists(#archived_size)"),
            values={":end": end} | ({":first": first} if first else {}),
        )
        with suppress(RefusedError):
            retried(lambda: self._client.update_item(**write), Patience(self._left_ms()))

    def place(self, escrow_id: str) -> int | None:
        """The position of an escrow's receipt in the log; None if it is not in the log yet."""
        item = self._get(f"ESC#{escrow_id}")
        if item is None or "batch" not in item:
            return None
        batch = self._get(f"BATCH#{item['batch']['S']}")
        if batch is None or "first" not in batch:
            return None
        return int(batch["first"]["N"]) + int(item["place"]["N"])

    def _write(self, this: _Append, rest: Sequence[_Batch], latest: Latest) -> _Append | None:
        """Writes an append, and meanwhile prepares the next one, which follows it. Raises as `attempt` does.

        Returns None if nothing is left, or if it could not be prepared: then it is prepared again.
        """

        def write() -> None:
            attempt(partial(self._send, self._actions(this)))

        def prepare() -> _Append | None:
            with suppress(Exception):  # raised again when it is not beside a write, which may have succeeded
                return self._next(rest, latest)
            return None

        latest.appended(this)
        try:
            _, *following = at_once(lambda call: call(), [write, *([prepare] if rest else [])])
        except BaseException:
            latest.forget()
            raise
        return following[0] if following else None

    def _next(self, waiting: Sequence[_Batch], latest: Latest) -> _Append:
        """The append of as many batches as fit one transaction, after that of `latest`."""
        before = latest.size or 0
        chosen, standings = self._folded(_fitting(waiting), latest)
        places = dict(zip(_places(before, chosen), chosen, strict=True))
        return _Append(before, before + sum(len(batch.receipts) for batch in chosen), places, standings)

    def _unlogged(self, batch_ids: Sequence[str], known: dict[str, _Batch], latest: Latest) -> list[_Batch]:
        """The batches that are not in the log, with their receipts; `latest` gets the size of the log.

        Standings must be read after this: if one is stale then, so is the size, and the write is rejected.
        """
        found = self._get_all(["LOG", *(f"BATCH#{batch_id}" for batch_id in batch_ids)])
        size = _head(found.get("LOG")).size
        if latest.size != size:
            latest.forget()
            latest.size = size
        items = [found[pk] for batch_id in batch_ids if (pk := f"BATCH#{batch_id}") in found]
        waiting = [item for item in items if "first" not in item]
        self._learn(waiting, known)
        return [known[item["pk"]["S"]] for item in waiting]

    def _learn(self, waiting: Sequence[Mapping[str, Any]], known: dict[str, _Batch]) -> None:
        """Reads the receipts of batches whose receipts are not known yet: a hundred with each call."""
        new = [item for item in waiting if item["pk"]["S"] not in known]
        signed = self._signed(pk for item in new for pk in _escrow_keys(item))
        for item in new:
            receipts = [next(signed) for _ in _escrow_keys(item)]
            ratings: dict[str, list[Rating]] = defaultdict(list)
            for each in receipts:
                rating = reputation.rating(receipt.read_claims(each))
                ratings[rating.agent].append(rating)
            pk = item["pk"]["S"]
            known[pk] = _Batch(pk.removeprefix("BATCH#"), receipts, ratings, _bytes(item))

    def _folded(
        self, chosen: Sequence[_Batch], latest: Latest
    ) -> tuple[Sequence[_Batch], Mapping[str, tuple[Standing, str]]]:
        """The first batches whose write is not too large, and the standings of their agents after them, serialised."""
        kept = self._standings({agent_id for batch in chosen for agent_id in batch.ratings}, latest)
        while True:
            standings: dict[str, Standing] = {}
            for batch in chosen:
                for agent_id, ratings in batch.ratings.items():
                    standing = standings.get(agent_id, kept[agent_id])
                    standings[agent_id] = reputation.fold(standing, ratings)
            written = {agent_id: (standing, reputation.serialise(standing)) for agent_id, standing in standings.items()}
            size = sum(len(text) for _, text in written.values()) + sum(batch.size for batch in chosen)
            if size <= APPEND_BYTES_MAX or len(chosen) == 1:
                return chosen, written
            chosen = chosen[: len(chosen) // 2]

    def _actions(self, this: _Append) -> list[dict[str, Any]]:
        before = this.before
        actions = [
            {
                "Update": update(
                    self._table,
                    "LOG",
                    set_={"size": this.size} | ({} if before else {"published": 0}),
                    condition="#size = :seen" if before else "attribute_not_exists(#size)",
                    values={":seen": before} if before else {},
                )
            }
        ]
        for first, batch in this.places.items():
            placed = update(
                self._table,
                f"BATCH#{batch.batch_id}",
                set_={"first": first},
                remove=("work", "work_at"),
                condition="attribute_not_exists(#first)",
                values={},
            )
            pointer = put_new(self._table, {"pk": f"LOG#{first}", "batch": batch.batch_id})
            actions += [{"Update": placed}, {"Put": pointer}]
        # The head's condition protects these puts too: a stale standing was read after a stale size.
        for agent_id, (_, text) in this.standings.items():
            item = to_item({"pk": f"REP#{agent_id}", "standing": text})
            actions.append({"Put": {"TableName": self._table, "Item": item}})
        return actions

    def _standings(self, agent_ids: Collection[str], latest: Latest) -> Mapping[str, Standing]:
        """The standings of agents at the size of `latest`."""
        kept = {agent_id: latest.standings[agent_id][0] for agent_id in agent_ids if agent_id in latest.standings}
        if not (missing := [agent_id for agent_id in agent_ids if agent_id not in kept]):
            return kept
        found = self._get_all([f"REP#{agent_id}" for agent_id in missing])
        return kept | {
            agent_id: reputation.parse(found[pk]["standing"]["S"]) if (pk := f"REP#{agent_id}") in found else Standing()
            for agent_id in missing
        }

    def _signed(self, pks: Iterable[str]) -> Iterator[str]:
        """The receipts of escrows, in order."""
        keys = iter(pks)
        pages = iter(lambda: list(islice(keys, BATCH_GET_ITEMS_MAX)), [])
        only = ("pk", "receipt", ARCHIVED, DIGEST)
        for page, found in at_once(lambda page: (page, self._get_all(page, only=only)), pages):
            yield from (self._receipt(found[pk]) for pk in page)

    def _receipt(self, item: Mapping[str, Any]) -> str:
        receipt: str = (self._whole(item) if is_tombstone(item) else item)["receipt"]["S"]
        return receipt

    def _send(self, actions: list[dict[str, Any]]) -> None:
        self._client.transact_write_items(TransactItems=actions)  # type: ignore[arg-type]  # built as plain dicts

    def _get(self, pk: str) -> Mapping[str, Any] | None:
        return read_item(self._client.get_item, self._table, pk, Patience(self._left_ms()))

    def _get_all(self, pks: Sequence[str], *, only: Sequence[str] = ()) -> dict[str, Mapping[str, Any]]:
        patience = Patience(self._left_ms())
        return read_items(self._client.batch_get_item, self._table, pks, patience, consistent=True, only=only)


def _fitting(waiting: Sequence[_Batch]) -> Sequence[_Batch]:
    """Batches that one transaction can append: the oldest, and those that add the fewest agents to it, in order.

    The transaction has the head, two items a batch, and a standing an agent.
    """
    agents = set(waiting[0].ratings)
    chosen, others = [0], set(range(1, len(waiting)))
    while others:
        new, place = min((len(waiting[place].ratings.keys() - agents), place) for place in others)
        if 1 + 2 * (len(chosen) + 1) + len(agents) + new > TRANSACTION_ITEMS_MAX:
            break
        agents |= waiting[place].ratings.keys()
        chosen.append(place)
        others.remove(place)
    return [waiting[place] for place in sorted(chosen)]


def _places(first: int, batches: Sequence[_Batch]) -> Iterator[int]:
    """The position of each batch, of which the first one begins at a position."""
    for batch in batches:
        yield first
        first += len(batch.receipts)


def _escrow_keys(batch: Mapping[str, Any]) -> list[str]:
    return [f"ESC#{escrow_id}" for escrow_id in batch["escrows"]["S"].split(",")]


def _head(item: Mapping[str, Any] | None) -> LogHead:
    if item is None:
        return LogHead()
    values = from_item(item)
    return LogHead(values["size"], values["published"], values.get("archived_size", 0))


def _bytes(item: Mapping[str, Any]) -> int:
    """About the size of an item: names and values."""
    return sum(len(name) + len(str(value)) for name, value in item.items())
