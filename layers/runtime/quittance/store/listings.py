"""Listings: what owners, payers and searchers page through, derived from the ledger and the registry by their streams.

    pk                                          sk
    RUNS#<agent>#<succeeded|failed>#<shard>     <settled_ms>#<escrow id>   a settled run of an agent
    TASKS#<payer>#<shard>                       <funded_ms>#<escrow id>    a task of an account, with its state
    CHANNELS#<payer>#<shard>                    <opened_ms>#<channel id>   a payment channel of an account
    AGENT#<agent id>                            <slot>                     an agent under one of its search terms

Times in keys have 13 digits, so that their order as text is their order in time. The rows of one agent or account are
spread over LISTING_SHARDS partitions, so that a hot one is not limited by one partition; a page merges them.

A search term is `*`, `tag:<tag>`, `word:<word>` or `owner:<account>`. The rows of active agents have the attributes of
the indexes `newest`, `price`, `score` and `success_rate`, which list the agents of a term. A row without these
attributes is in no index: so a term is taken back, because no function may delete an item. An agent has as many slots
as it may have terms, and a slot is used again: so its rows stay few, however often its words change.

Nothing here decides about money. All rows can be written again from the ledger and the registry (see
`usecases/listings.py`).
"""

import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from quittance.ledger.escrow import TaskState
from quittance.limits import (
    AGENT_TAGS_MAX,
    AGENT_WORDS_MAX,
    LISTING_MS_MAX,
    LISTING_READ_MAX,
    LISTING_SHARDS,
    WORD_CHARS_MAX,
)
from quittance.run import Fault, Outcome
from quittance.store.dynamo import Patience, RefusedError, Value, from_item, paged, retried, to_item

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

NO_END: Final = LISTING_MS_MAX
AGENT_SLOTS: Final = tuple(f"{slot:02}" for slot in range(2 + AGENT_TAGS_MAX + AGENT_WORDS_MAX))
"""The keys of an agent's rows: enough for all, its owner, its tags and its words."""
_AFTER_ALL: Final = "~"  # greater than every character of an escrow id, and of a channel's


def words(*texts: str) -> tuple[str, ...]:
    """The different words of some texts, in order: letters and digits, in one form for all cases and widths."""
    folded = unicodedata.normalize("NFKC", " ".join(texts)).casefold()
    parts = "".join(char if char.isalnum() else " " for char in folded).split()
    return tuple(dict.fromkeys(part[:WORD_CHARS_MAX] for part in parts))


class Ended(StrEnum):
    """Whether an agent was paid. The values are part of keys, and shown."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Sort(StrEnum):
    """The order of a search. Each is the name of an index, and of its range attribute in `_RANGES`."""

    NEWEST = "newest"
    PRICE = "price"
    SCORE = "score"
    SUCCESS_RATE = "success_rate"


_RANGES: Final = {
    Sort.NEWEST: "created_ms",
    Sort.PRICE: "price_micro",
    Sort.SCORE: "score_tenths",
    Sort.SUCCESS_RATE: "success_rank",
}

Place = tuple[int, str]
"""The position at which a page ends: time and id of the last row that was read."""


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A settled run as its agent's owner may see it. `payer` and `log` are None unless the payer shares them."""

    run_id: str
    agent_id: str
    settled_ms: int
    ended: Ended
    outcome: Outcome
    fault: Fault
    module_sha256: str
    fuel: int
    wall_ms: int
    memory_bytes: int
    paid_micro: int
    fee_micro: int
    message: str
    payer: str | None = None
    log_shared: bool = False


@dataclass(frozen=True, slots=True)
class ListedTask:
    """A task as its payer sees it. Amounts, outcome and `settled_ms` are None while it is pending."""

    escrow_id: str
    payer: str
    task_id: str
    agent_id: str
    state: TaskState
    funded_ms: int
    settled_ms: int | None = None
    outcome: Outcome | None = None
    paid_micro: int | None = None
    fee_micro: int | None = None
    refunded_micro: int | None = None


@dataclass(frozen=True, slots=True)
class ListedAgent:
    """What the index holds of an active agent, in the row of each of its terms.

    `price_micro` is the least price by its tariff, without the platform's compute. `success_rank` is 1 plus the success
    rate in thousandths, and 0 without any result.
    """

    agent_id: str
    owner: str
    created_ms: int
    price_micro: int
    score_tenths: int
    success_rank: int
    words: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms under which the agent is found."""
        return ("*", f"owner:{self.owner}", *(f"tag:{tag}" for tag in self.tags), *(f"word:{w}" for w in self.words))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a search asks for. An agent must have all `words`, the tag and the owner, and be within the bounds."""

    words: tuple[str, ...] = ()
    tag: str | None = None
    owner: str | None = None
    price_micro_max: int | None = None
    score_tenths_min: int | None = None
    success_rank_min: int | None = None

    @property
    def term(self) -> str:
        """The term that probably has the fewest agents: the search reads its rows, and filters them by the others."""
        if self.owner is not None:
            return f"owner:{self.owner}"
        if self.tag is not None:
            return f"tag:{self.tag}"
        return f"word:{max(self.words, key=len)}" if self.words else "*"

    def filters(self) -> tuple[str, dict[str, Value]]:
        """The filter expression for everything that the term does not ensure, and its values; empty if nothing is."""
        parts: list[str] = []
        values: dict[str, Value] = {}

        def demand(part: str, value: Value) -> None:
            name = f":v{len(values)}"
            parts.append(part.format(name))
            values[name] = value

        for word in self.words:
            if f"word:{word}" != self.term:
                demand("contains(words, {})", _spaced([word]))
        if self.tag is not None and f"tag:{self.tag}" != self.term:
            demand("contains(tags, {})", _spaced([self.tag]))
        if self.price_micro_max is not None:
            demand("price_micro <= {}", self.price_micro_max)
        if self.score_tenths_min is not None:
            demand("score_tenths >= {}", self.score_tenths_min)
        if self.success_rank_min is not None:
            demand("success_rank >= {}", self.success_rank_min)
        return " AND ".join(parts), values


SearchPlace = tuple[int, str, str]
"""The position at which a page of a search ends: value, agent id and slot of its last row."""


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A row of the index: an agent under one of its terms."""

    term: str
    agent: ListedAgent


@dataclass(frozen=True, slots=True)
class Found:
    """Some agents of the index in order, and the position at which the next page begins."""

    agents: list[ListedAgent]
    after: SearchPlace | None


class Listings:
    """Reads and idempotent writes of rows. Methods raise PlatformUnavailableError if DynamoDB does not answer."""

    def __init__(self, client: "DynamoDBClient", *, table: str, left_ms: Callable[[], int]) -> None:
        self._client = client
        self._table = table
        self._left_ms = left_ms

    # Runs and tasks.

    def add_run(self, run: ListedRun) -> None:
        """Adds the row of a run. A run settles once, so a repeated row is the same one."""
        values: dict[str, Value | None] = {
            "pk": _runs_pk(run.agent_id, run.ended, _shard(run.run_id)),
            "sk": _sk(run.settled_ms, run.run_id),
            "outcome": run.outcome,
            "fault": run.fault,
            "module_sha256": run.module_sha256,
            "fuel": run.fuel,
            "wall_ms": run.wall_ms,
            "memory_bytes": run.memory_bytes,
            "paid": run.paid_micro,
            "fee": run.fee_micro,
            "message": run.message or None,
            "payer": run.payer,
            "log_shared": int(run.log_shared) or None,
        }
        self._put(values, condition="attribute_not_exists(pk)")

    def add_task(self, task: ListedTask) -> None:
        """Adds the row of a task, or its end. A task that has ended never becomes pending again."""
        values: dict[str, Value | None] = {
            "pk": _tasks_pk(task.payer, _shard(task.escrow_id)),
            "sk": _sk(task.funded_ms, task.escrow_id),
            "task_id": task.task_id,
            "agent_id": task.agent_id,
            "state": task.state,
            "settled_ms": task.settled_ms,
            "outcome": task.outcome,
            "paid": task.paid_micro,
            "fee": task.fee_micro,
            "refunded": task.refunded_micro,
        }
        if task.state is TaskState.PENDING:
            self._put(values, condition="attribute_not_exists(pk)")
        else:
            self._put(values, condition="attribute_not_exists(pk) OR #state = :pending")

    def runs(
        self,
        agent_id: str,
        *,
        ended: Ended | None,
        since_ms: int = 0,
        until_ms: int = NO_END,
        limit: int,
        after: Place | None,
    ) -> tuple[list[ListedRun], Place | None]:
        """Up to `limit` runs of an agent, newest first, settled from `since_ms` and before `until_ms`."""
        kinds = (ended,) if ended else tuple(Ended)
        pks = [_runs_pk(agent_id, kind, shard) for kind in kinds for shard in range(LISTING_SHARDS)]
        items, place = self._merged(pks, since_ms, until_ms, limit=limit, after=after)
        return [_run(item) for item in items], place

    def tasks(
        self,
        payer: str,
        *,
        agent_id: str | None = None,
        state: TaskState | None = None,
        since_ms: int = 0,
        until_ms: int = NO_END,
        limit: int,
        after: Place | None,
    ) -> tuple[list[ListedTask], Place | None]:
        """Up to `limit` tasks of an account, newest first, funded from `since_ms` and before `until_ms`.

        With a filter a page may have fewer tasks, or none, although more follow: its reads are bounded.
        """
        pks = [_tasks_pk(payer, shard) for shard in range(LISTING_SHARDS)]
        of = {name: value for name, value in (("agent_id", agent_id), ("state", state)) if value is not None}
        items, place = self._merged(pks, since_ms, until_ms, limit=limit, after=after, of=of)
        return [_task(item) for item in items], place

    def add_channel(self, channel_id: str, *, payer: str, opened_ms: int) -> None:
        """Adds the row of a channel. It names the channel only: what changes is read from the ledger."""
        pk = _channels_pk(payer, _shard(channel_id))
        self._put({"pk": pk, "sk": _sk(opened_ms, channel_id)}, condition="attribute_not_exists(pk)")

    def channels(self, payer: str, *, limit: int, after: Place | None) -> tuple[list[str], Place | None]:
        """The ids of up to `limit` channels of an account, newest first."""
        pks = [_channels_pk(payer, shard) for shard in range(LISTING_SHARDS)]
        items, place = self._merged(pks, 0, NO_END, limit=limit, after=after)
        return [_place(item["sk"])[1] for item in items], place

    # The index of agents.

    def rows_of(self, agent_id: str) -> dict[str, IndexRow]:
        """The rows of an agent that are in the index, by slot (consistent read)."""
        query = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": to_item({":pk": _agent_pk(agent_id)}),
            "ConsistentRead": True,
        }
        rows = paged(self._client.query, query, self._left_ms)
        return {row["sk"]["S"]: IndexRow(row["term"]["S"], _listed(row)) for row in rows if "term" in row}

    def put_agent(self, agent: ListedAgent, term: str, slot: str) -> None:
        """Writes the row of an agent under one of its terms into a slot."""
        self._put(
            {
                "pk": _agent_pk(agent.agent_id),
                "sk": slot,
                "term": term,
                "owner": agent.owner,
                "created_ms": agent.created_ms,
                "price_micro": agent.price_micro,
                "score_tenths": agent.score_tenths,
                "success_rank": agent.success_rank,
                "words": _spaced(agent.words),
                "tags": _spaced(agent.tags),
            }
        )

    def hide_agent(self, agent_id: str, slot: str) -> None:
        """Takes the row in a slot of an agent out of the index."""
        self._put({"pk": _agent_pk(agent_id), "sk": slot})

    def search(self, wanted: Wanted, *, sort: Sort, limit: int, after: SearchPlace | None) -> Found:
        """Up to `limit` active agents in order, behind the position `after`.

        One read of at most LISTING_READ_MAX rows of one term. With filters a page may therefore have fewer agents, or
        none, although more follow. An agent whose row moves between two pages may be missed or returned twice; in the
        order `newest` no row moves.
        """
        condition, values = wanted.filters()
        ordered = _RANGES[sort]
        query: dict[str, Any] = {
            "TableName": self._table,
            "IndexName": sort.value,
            "KeyConditionExpression": "term = :term",
            "ExpressionAttributeValues": to_item({":term": wanted.term, **values}),
            "ScanIndexForward": sort is Sort.PRICE,
            "Limit": LISTING_READ_MAX if condition else limit + 1,
        }
        if condition:
            query["FilterExpression"] = condition
        if after is not None:
            value, agent_id, slot = after
            key: dict[str, Value] = {"pk": _agent_pk(agent_id), "sk": slot, "term": wanted.term, ordered: value}
            query["ExclusiveStartKey"] = to_item(key)
        answer = retried(partial(self._client.query, **query), self._patience())
        agents = [_listed(item) for item in answer["Items"]]
        if len(agents) > limit:
            return Found(agents[:limit], _search_place(answer["Items"][limit - 1], ordered))
        end = answer.get("LastEvaluatedKey")
        if end is None or _is_past(wanted, sort, int(end[ordered]["N"])):
            return Found(agents, None)
        return Found(agents, _search_place(end, ordered))

    # Parts.

    def _merged(
        self,
        pks: Sequence[str],
        since_ms: int,
        until_ms: int,
        *,
        limit: int,
        after: Place | None,
        of: Mapping[str, str] | None = None,
    ) -> tuple[list[dict[str, Any]], Place | None]:
        """Up to `limit` rows of some partitions with these values, newest first, and where the next page begins.

        Each partition is read once, from its newest row. A partition that was not read to its end is known only down to
        its last row that was read. Rows older than that may have newer neighbours there, so the next page has them.
        """
        low = f"{since_ms:013}"
        high = f"{until_ms:013}" if after is None else min(f"{until_ms:013}", _sk(*after))
        query: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND sk BETWEEN :low AND :high",
            "ScanIndexForward": False,
            "Limit": (LISTING_READ_MAX if of else limit) + 2,  # the row of the cursor itself, and one of the next page
        }
        if of:
            query |= {
                "FilterExpression": " AND ".join(f"#{name} = :{name}" for name in of),
                "ExpressionAttributeNames": {f"#{name}": name for name in of},
            }
        if low > high:
            return [], None
        rows: list[dict[str, Any]] = []
        known_to = ""
        for pk in pks:
            values = {
                ":pk": pk,
                ":low": low,
                ":high": high,
                **{f":{name}": value for name, value in (of or {}).items()},
            }
            query["ExpressionAttributeValues"] = to_item(values)
            answer = retried(partial(self._client.query, **query), self._patience())
            rows += map(from_item, answer["Items"])
            if "LastEvaluatedKey" in answer:
                known_to = max(known_to, answer["LastEvaluatedKey"]["sk"]["S"])
        behind = _sk(*after) if after else _AFTER_ALL
        found = sorted((row for row in rows if known_to <= row["sk"] < behind), key=lambda row: row["sk"], reverse=True)
        if len(found) > limit:
            return found[:limit], _place(found[limit - 1]["sk"])
        return found, _place(known_to) if known_to else None

    def _put(self, values: Mapping[str, Value | None], *, condition: str | None = None) -> None:
        write: dict[str, Any] = {"TableName": self._table, "Item": to_item(values)}
        if condition is not None:
            write["ConditionExpression"] = condition
            if "#state" in condition:
                write["ExpressionAttributeNames"] = {"#state": "state"}
                write["ExpressionAttributeValues"] = to_item({":pending": TaskState.PENDING})
        with suppress(RefusedError):  # the row is there, and says as much or more
            retried(lambda: self._client.put_item(**write), self._patience())

    def _patience(self) -> Patience:
        return Patience(self._left_ms())


def _search_place(key: Mapping[str, Any], ordered: str) -> SearchPlace:
    return int(key[ordered]["N"]), key["pk"]["S"].removeprefix("AGENT#"), key["sk"]["S"]


def _is_past(wanted: Wanted, sort: Sort, value: int) -> bool:
    """Whether all rows behind one with this value are out of the bounds of the attribute that orders them."""
    match sort:
        case Sort.PRICE:
            return wanted.price_micro_max is not None and value > wanted.price_micro_max
        case Sort.SCORE:
            return wanted.score_tenths_min is not None and value < wanted.score_tenths_min
        case Sort.SUCCESS_RATE:
            return wanted.success_rank_min is not None and value < wanted.success_rank_min
        case Sort.NEWEST:
            return False


def _shard(row_id: str) -> int:
    return zlib.crc32(row_id.encode()) % LISTING_SHARDS


def _runs_pk(agent_id: str, ended: Ended, shard: int) -> str:
    return f"RUNS#{agent_id}#{ended}#{shard}"


def _tasks_pk(payer: str, shard: int) -> str:
    return f"TASKS#{payer}#{shard}"


def _channels_pk(payer: str, shard: int) -> str:
    return f"CHANNELS#{payer}#{shard}"


def _agent_pk(agent_id: str) -> str:
    return f"AGENT#{agent_id}"


def _sk(at_ms: int, row_id: str) -> str:
    return f"{at_ms:013}#{row_id}"


def _place(sk: str) -> Place:
    at_ms, _, row_id = sk.partition("#")
    return int(at_ms), row_id


def _spaced(names: Iterable[str]) -> str:
    """Names with a space around each, so that `contains` finds whole names only: no name has a space."""
    return f" {' '.join(names)} "


def _run(values: Mapping[str, Any]) -> ListedRun:
    _, agent_id, ended, _ = values["pk"].split("#")
    settled_ms, run_id = _place(values["sk"])
    return ListedRun(
        run_id=run_id,
        agent_id=agent_id,
        settled_ms=settled_ms,
        ended=Ended(ended),
        outcome=Outcome(values["outcome"]),
        fault=Fault(values["fault"]),
        module_sha256=values["module_sha256"],
        fuel=values["fuel"],
        wall_ms=values["wall_ms"],
        memory_bytes=values["memory_bytes"],
        paid_micro=values["paid"],
        fee_micro=values["fee"],
        message=values.get("message", ""),
        payer=values.get("payer"),
        log_shared=bool(values.get("log_shared")),
    )


def _task(values: Mapping[str, Any]) -> ListedTask:
    funded_ms, escrow_id = _place(values["sk"])
    return ListedTask(
        escrow_id=escrow_id,
        payer=values["pk"].split("#")[1],
        task_id=values["task_id"],
        agent_id=values["agent_id"],
        state=TaskState(values["state"]),
        funded_ms=funded_ms,
        settled_ms=values.get("settled_ms"),
        outcome=Outcome(values["outcome"]) if "outcome" in values else None,
        paid_micro=values.get("paid"),
        fee_micro=values.get("fee"),
        refunded_micro=values.get("refunded"),
    )


def _listed(item: Mapping[str, Any]) -> ListedAgent:
    values = from_item(item)
    return ListedAgent(
        agent_id=values["pk"].removeprefix("AGENT#"),
        owner=values["owner"],
        created_ms=values["created_ms"],
        price_micro=values["price_micro"],
        score_tenths=values["score_tenths"],
        success_rank=values["success_rank"],
        words=tuple(values["words"].split()),
        tags=tuple(values["tags"].split()),
    )
