"""The log of receipts in the ledger's table: one order of all credited escrows.

    LOG               size: the number of receipts in the log; published: the size of the newest checkpoint;
                      archived_size: the position from which on escrows are not archived yet, where a batch begins
    LOG#<first>       the batch that begins at this position of the log
    BATCH#<id>        escrows that were credited together; `first`: their position in the log
    REP#<agent>       standing: the fold of the agent's receipts in log order (see ledger/reputation.py)

The head `LOG` is the one item of the sweep that is global. An append writes it once for as many batches as fit one
transaction, so the number of appends follows from the number of batches and agents, not from the number of receipts.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from quittance.ledger import reputation
from quittance.ledger.reputation import Rating, Standing
from quittance.limits import APPEND_BYTES_MAX, BATCH_GET_ITEMS_MAX, TRANSACTION_ITEMS_MAX
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

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

WORK_INDEX: Final = "work"
"""The index of what the sweep has to do, see ledger.py."""

UNLOGGED: Final = "BATCH"
"""The partition of the index `work` that lists the batches that are not in the log."""

BATCHES_MAX: Final = (TRANSACTION_ITEMS_MAX - 2) // 2
"""The batches of one append: each has two items, and with them are the head and at least one standing."""

Appended = Mapping[int, Sequence[str]]
"""The receipts of appended batches, by the position of each batch."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch that is not in the log: its receipts in order, the ratings in them by agent, and its item's size."""

    batch_id: str
    receipts: Sequence[str]
    ratings: Mapping[str, Sequence[Rating]]
    size: int


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
        """Ids of batches that the index lists as not in the log, oldest first, in lists for one append."""
        query = listing(self._table, WORK_INDEX, "work", UNLOGGED)
        items = paged(self._client.query, query, self._left_ms)
        while ids := [item["pk"]["S"].removeprefix("BATCH#") for item in islice(items, BATCHES_MAX)]:
            yield ids

    def append(self, batch_ids: Sequence[str]) -> Appended:
        """Appends batches in this order, as many in one write as fit, and folds their receipts into the standings.

        Every append updates the log's head, so the log has one order, in which the standings are folded. Batches that
        are in the log already are left out. The result has what this call appended. At most BATCHES_MAX at once.
        """
        patience, known, appended = Patience(self._left_ms()), dict[str, _Batch](), dict[int, Sequence[str]]()
        while True:
            # Read the standings after the head: if a standing is stale, so is the head, and the write is rejected.
            found = self._get_all(["LOG", *(f"BATCH#{batch_id}" for batch_id in batch_ids)])
            waiting = [
                item
                for batch_id in batch_ids
                if (item := found.get(f"BATCH#{batch_id}")) is not None and "first" not in item
            ]
            if not waiting:
                return appended
            self._learn(waiting, known)
            chosen = _fitting([known[item["pk"]["S"]] for item in waiting])
            head = _head(found.get("LOG"))
            chosen, standings = self._folded(chosen)
            places = dict(zip(_places(head.size, chosen), chosen, strict=True))
            try:
                attempt(partial(self._send, self._actions(head, places, standings)))
            except RefusedError:  # another batch was appended first
                patience.wait(ConflictError())
            except BusyError as busy:
                patience.wait(busy)
            else:
                appended |= {first: batch.receipts for first, batch in places.items()}
                batch_ids = [batch_id for batch_id in batch_ids if batch_id not in {each.batch_id for each in chosen}]

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

    def _folded(self, chosen: Sequence[_Batch]) -> tuple[Sequence[_Batch], Mapping[str, str]]:
        """The first batches whose write is not too large, and the standings of their agents after them."""
        kept = self._standings({agent_id for batch in chosen for agent_id in batch.ratings})
        while True:
            standings: dict[str, Standing] = {}
            for batch in chosen:
                for agent_id, ratings in batch.ratings.items():
                    standing = standings.get(agent_id, kept[agent_id])
                    standings[agent_id] = reputation.fold(standing, ratings)
            written = {agent_id: reputation.serialise(standing) for agent_id, standing in standings.items()}
            size = sum(map(len, written.values())) + sum(batch.size for batch in chosen)
            if size <= APPEND_BYTES_MAX or len(chosen) == 1:
                return chosen, written
            chosen = chosen[: len(chosen) // 2]

    def _actions(
        self, head: LogHead, places: Mapping[int, _Batch], standings: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        size = head.size + sum(len(batch.receipts) for batch in places.values())
        actions = [
            {
                "Update": update(
                    self._table,
                    "LOG",
                    set_={"size": size} | ({} if head.size else {"published": 0}),
                    condition="#size = :seen" if head.size else "attribute_not_exists(#size)",
                    values={":seen": head.size} if head.size else {},
                )
            }
        ]
        for first, batch in places.items():
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
        # The head's condition protects these puts too: a stale standing was read together with a stale head.
        for agent_id, standing in standings.items():
            item = to_item({"pk": f"REP#{agent_id}", "standing": standing})
            actions.append({"Put": {"TableName": self._table, "Item": item}})
        return actions

    def _standings(self, agent_ids: Collection[str]) -> Mapping[str, Standing]:
        found = self._get_all([f"REP#{agent_id}" for agent_id in agent_ids])
        return {
            agent_id: reputation.parse(found[pk]["standing"]["S"]) if (pk := f"REP#{agent_id}") in found else Standing()
            for agent_id in agent_ids
        }

    def _signed(self, pks: Iterable[str]) -> Iterator[str]:
        """The receipts of escrows, in order."""
        keys = iter(pks)
        while page := list(islice(keys, BATCH_GET_ITEMS_MAX)):
            found = self._get_all(page, only=("pk", "receipt", ARCHIVED, DIGEST))
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
    """The longest prefix that one transaction can append: the head, two items a batch, and a standing an agent."""
    agents: set[str] = set()
    for count, batch in enumerate(waiting):
        agents |= batch.ratings.keys()
        if count and 1 + 2 * (count + 1) + len(agents) > TRANSACTION_ITEMS_MAX:
            return waiting[:count]
    return waiting


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
