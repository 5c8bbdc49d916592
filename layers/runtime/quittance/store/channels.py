"""Payment channels in the ledger's table: opening, topping up, granting numbers, closing. See ledger/channels.py.

    pk                    attributes
    CHAN#<channel id>     account: the payer; the terms; deposit, spent, swept, granted; state; `work` and `work_at`
                          until it is closed: the queue CHANNEL of the index `work`, by expiry or by `close_ms`
    TOPUP#<channel>#<id>  amount, at; account: `channel <id>`, under which the index `statement` lists its top-ups
    CONTEST#<payer>       contests: how many runs since `at` nobody paid, because another run used the ticket

A task does not write its channel: only the sweep does, many tasks at a time. So the channel is no hot item, and any
number of tasks may run in parallel. What they may spend is limited by the numbers, each of which is an item of its own.

Closing is safe against runners that were delayed for any time: each granted number that no task has used gets an item
of its own (`void_ms`), under which no later task can be stored. Then the numbers are counted, and the rest is returned
once all of them are swept.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from quittance.errors import ChannelClosedError, ChannelConflictError, MovementConflictError, NotFoundError
from quittance.ledger.channels import Channel, ChannelState, channel_account, granted_for, ticket_escrow_id
from quittance.ledger.escrow import State
from quittance.limits import CHANNEL_AGE_S_MAX, CONTEST_MS, CONTESTS_MAX, TRANSACTION_ITEMS_MAX
from quittance.proof.seal import sealed
from quittance.store.cache import Cache
from quittance.store.dynamo import (
    BusyError,
    Patience,
    RefusedError,
    Value,
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
from quittance.store.ledger import InsufficientBalanceError
from quittance.store.log import WORK_INDEX

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

    from quittance.store.ledger import Ledger

QUEUE: Final = "CHANNEL"
_CHANGING: Final = ("deposit", "spent", "swept", "granted")
"""Attributes of a new channel that change later, beside those of every item."""


@dataclass(frozen=True, slots=True)
class UsedTicket:
    """A number that is used: by the task that begins with it, as another of a task's numbers, or by closing.

    `count` is how many numbers the task takes from this one on; 1 for another of them, 0 for one that closing took.
    `cost_micro` is None while the task runs.
    """

    number: int
    count: int
    task_id: str | None = None
    agent_id: str | None = None
    state: State | None = None
    cost_micro: int | None = None


class Channels:
    """The operations on channels. Each is safe to repeat.

    Every method raises PlatformUnavailableError if DynamoDB does not answer or conflicts persist.
    """

    def __init__(self, client: "DynamoDBClient", *, table: str, ledger: "Ledger", left_ms: Callable[[], int]) -> None:
        self._client = client
        self._table = table
        self._ledger = ledger
        self._left_ms = left_ms
        self._cache: Cache[Channel] = Cache(seconds=CHANNEL_AGE_S_MAX)
        self._contesting: Cache[Mapping[str, Any]] = Cache(seconds=CHANNEL_AGE_S_MAX)

    def open(self, channel: Channel) -> Channel:
        """Opens a channel: takes its deposit from the payer's account, once per channel id; returns the stored channel.

        Raises ChannelConflictError if the channel was opened with other terms, InsufficientFundsError.
        """
        try:
            stored = self._ledger.take({channel.payer: channel.deposit_micro}, _values(channel))
        except InsufficientBalanceError as insufficient:
            raise insufficient.for_holder() from insufficient
        if stored is None:
            return channel
        found = read(stored)
        if found.same_terms != channel.same_terms:
            raise ChannelConflictError(channel.channel_id)
        return found

    def top_up(self, channel: Channel, topup_id: str, amount_micro: int, *, now_ms: int) -> int:
        """Adds an amount to an open channel from its payer's account, once per id; returns the time.

        Raises ChannelClosedError, InsufficientFundsError, MovementConflictError if the id had another amount.
        """
        record: dict[str, Value | None] = {
            "pk": _topup_pk(channel.channel_id, topup_id),
            "channel": channel.channel_id,
            "amount": amount_micro,
            "at": now_ms,
            "account": channel_account(channel.channel_id),
        }
        added: dict[str, Any] = {
            "TableName": self._table,
            "Key": to_item({"pk": _pk(channel.channel_id)}),
            "UpdateExpression": "ADD deposit :amount",
            "ConditionExpression": "#state = :open",
            "ExpressionAttributeNames": {"#state": "state"},
            "ExpressionAttributeValues": to_item({":amount": amount_micro, ":open": ChannelState.OPEN}),
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        try:
            stored = self._ledger.take({channel.payer: amount_micro}, sealed(record), updating=added)
        except InsufficientBalanceError as insufficient:
            raise insufficient.for_holder() from insufficient
        self._cache.drop(channel.channel_id)
        if stored is None:
            return now_ms
        values = from_item(stored)
        if values["pk"] == _pk(channel.channel_id):
            raise ChannelClosedError(channel.channel_id, state=values["state"])
        return _topped_up_ms(values, topup_id, amount_micro)

    def topped_up_ms(self, channel_id: str, topup_id: str, amount_micro: int) -> int | None:
        """The time at which a top-up was recorded, or None. Raises MovementConflictError if it had another amount."""
        item = self._item(_topup_pk(channel_id, topup_id))
        return None if item is None else _topped_up_ms(from_item(item), topup_id, amount_micro)

    def get(self, channel_id: str) -> Channel:
        """A channel (consistent read). Raises NotFoundError."""
        item = self._item(_pk(channel_id))
        if item is None:
            msg = f"There is no channel {channel_id!r}."
            raise NotFoundError(msg)
        return read(item)

    def get_cached(self, channel_id: str) -> Channel:
        """A channel as it was at most CHANNEL_AGE_S_MAX ago. Raises NotFoundError."""
        return self._cache.get(channel_id, self.get)

    def get_again(self, channel_id: str) -> Channel:
        """A channel as it is now, also for `get_cached`. Raises NotFoundError."""
        self._cache.drop(channel_id)
        return self._cache.get(channel_id, self.get)

    def get_all(self, channel_ids: list[str]) -> list[Channel]:
        """The channels of up to 100 ids that exist, in this order (consistent reads)."""
        pks = [_pk(channel_id) for channel_id in channel_ids]
        found = read_items(self._client.batch_get_item, self._table, pks, self._patience(), consistent=True)
        return [read(found[pk]) for pk in pks if pk in found]

    def grant(self, channel: Channel, last: int) -> Channel:
        """Grants the numbers up to `last`, if the channel is open and they can be granted; returns the stored channel.

        Another environment may grant at the same time: then the stored channel has what it granted.
        """
        granted = granted_for(channel, last)
        if granted is None or granted <= channel.granted:
            return channel
        write = update(
            self._table,
            _pk(channel.channel_id),
            set_={"granted": granted},
            condition="#state = :open AND #granted = :seen",
            values={":open": ChannelState.OPEN, ":seen": channel.granted},
        )
        with_grant = self._write(write)
        self._cache.drop(channel.channel_id)
        return self.get_cached(channel.channel_id) if with_grant is None else with_grant

    def contest(self, channel: Channel, *, now_ms: int) -> None:
        """Records that two runs of one ticket have overlapped: from now on tickets are held before they run.

        That holds for this channel. It holds for all channels of a payer that has more than CONTESTS_MAX such runs in
        CONTEST_MS: otherwise a new channel would bring new ones. A repeat after a lost response counts twice. A channel
        that closes takes no new tickets, and a closed one never changes.
        """
        condition = "#state = :open AND attribute_not_exists(#contested)"
        of_channel = update(
            self._table,
            _pk(channel.channel_id),
            set_={"contested": 1},
            condition=condition,
            values={":open": ChannelState.OPEN},
        )
        self._write(of_channel)
        self._cache.drop(channel.channel_id)
        pk = f"CONTEST#{channel.payer}"
        one_more: dict[str, Any] = {
            "TableName": self._table,
            "Key": to_item({"pk": pk}),
            "UpdateExpression": "ADD contests :one",
            "ConditionExpression": "#at > :since",
            "ExpressionAttributeNames": {"#at": "at"},
            "ExpressionAttributeValues": to_item({":one": 1, ":since": now_ms - CONTEST_MS}),
        }
        first = update(self._table, pk, set_={"contests": 1, "at": now_ms})
        try:
            retried(lambda: self._client.update_item(**one_more), self._patience())
        except RefusedError:
            retried(lambda: self._client.update_item(**first), self._patience())
        self._contesting.drop(channel.payer)

    def is_contesting(self, payer: str, *, now_ms: int) -> bool:
        """Whether a payer had many runs that nobody paid, as it was at most CHANNEL_AGE_S_MAX ago."""
        values = self._contesting.get(payer, self._contests)
        return int(values.get("contests", 0)) > CONTESTS_MAX and int(values["at"]) > now_ms - CONTEST_MS

    def _contests(self, payer: str) -> Mapping[str, Any]:
        return from_item(self._item(f"CONTEST#{payer}") or {})

    def begin_closing(self, channel: Channel, *, close_ms: int) -> Channel:
        """Makes an open channel refuse new tickets from now on, to be counted at `close_ms`; returns the stored one."""
        write = update(
            self._table,
            _pk(channel.channel_id),
            set_={"state": ChannelState.CLOSING, "close_ms": close_ms, "work_at": close_ms, "counted": 0, "used": 0},
            condition="#state = :open",
            values={":open": ChannelState.OPEN},
        )
        stored = self._write(write)
        self._cache.drop(channel.channel_id)
        return self.get(channel.channel_id) if stored is None else stored

    # The sweep.

    def due(self, *, now_ms: int) -> Iterator[str]:
        """Ids of channels that the index lists as expired, or as closing with their time over, the oldest first."""
        query = listing(self._table, WORK_INDEX, "work", QUEUE)
        query["KeyConditionExpression"] += " AND work_at <= :now"
        query["ExpressionAttributeValues"] |= to_item({":now": now_ms})
        for item in paged(self._client.query, query, self._left_ms):
            yield item["pk"]["S"].removeprefix("CHAN#")

    def count_out(self, channel: Channel, *, now_ms: int) -> Channel:
        """Counts the next numbers of a closing channel, and takes those that no task has used out of use for ever.

        Returns the stored channel. `counted` has not changed if another sweep counted the same numbers first.
        """
        last = min(channel.counted + TRANSACTION_ITEMS_MAX, channel.granted)
        pks = {number: _number_pk(channel.channel_id, number) for number in range(channel.counted + 1, last + 1)}
        patience = self._patience()
        while True:
            found = read_items(self._client.batch_get_item, self._table, pks.values(), patience, consistent=True)
            free = [number for number, pk in pks.items() if pk not in found]
            marks: Any = [{"Put": put_new(self._table, _void(channel.channel_id, number, now_ms))} for number in free]
            try:
                if marks:
                    attempt(partial(self._client.transact_write_items, TransactItems=marks))
            except RefusedError:  # a task took one of them meanwhile: it counts
                patience.wait(BusyError())
            except BusyError as busy:
                patience.wait(busy)
            else:
                break
        used = sum("void_ms" not in item for item in found.values())
        write = update(
            self._table,
            _pk(channel.channel_id),
            # Behind the other channels that are due: a large one must not keep them open.
            set_={"counted": last, "used": channel.used + used, "work_at": now_ms},
            condition="#state = :closing AND #counted = :seen",
            values={":closing": ChannelState.CLOSING, ":seen": channel.counted},
        )
        stored = self._write(write)
        return self.get(channel.channel_id) if stored is None else stored

    def close(self, channel: Channel, *, now_ms: int) -> Channel:
        """Credits the rest of a counted channel to its payer, if all its tickets are swept; returns the stored one."""
        rest_micro = channel.deposit_micro - channel.spent_micro
        write = update(
            self._table,
            _pk(channel.channel_id),
            set_={"state": ChannelState.CLOSED, "returned": rest_micro, "closed_ms": now_ms},
            remove=("work", "work_at"),
            condition="#state = :closing AND #counted = #granted AND #swept = #used AND #spent = :spent"
            " AND #deposit = :deposit",
            values={
                ":closing": ChannelState.CLOSING,
                ":spent": channel.spent_micro,
                ":deposit": channel.deposit_micro,
            },
        )
        try:
            self._ledger.give({channel.payer: rest_micro} if rest_micro else {}, [{"Update": write}])
        except RefusedError as refused:
            return _stored(refused)
        finally:
            self._cache.drop(channel.channel_id)
        return self.get(channel.channel_id)

    def used(self, channel: Channel, *, after: int, limit: int) -> Iterator[UsedTicket]:
        """The used numbers among the next `limit` granted ones, in order (consistent reads); `limit` is at most 100."""
        last = min(after + limit, channel.granted)
        pks = {number: _number_pk(channel.channel_id, number) for number in range(after + 1, last + 1)}
        if not pks:
            return
        found = read_items(self._client.batch_get_item, self._table, pks.values(), self._patience(), consistent=True)
        for number, pk in pks.items():
            if (item := found.get(pk)) is not None:
                yield _used(number, from_item(item))

    def _item(self, pk: str) -> Mapping[str, Any] | None:
        return read_item(self._client.get_item, self._table, pk, self._patience())

    def _write(self, write: dict[str, Any]) -> Channel | None:
        """None if an update of a channel was made; otherwise the stored channel. Raises LookupError without one."""
        try:
            retried(lambda: self._client.update_item(**write), self._patience())
        except RefusedError as refused:
            return _stored(refused)
        return None

    def _patience(self) -> Patience:
        return Patience(self._left_ms())


def read(item: Mapping[str, Any]) -> Channel:
    """The channel of an item, or of a stream record's image."""
    values = from_item(item)
    return Channel(
        channel_id=values["pk"].removeprefix("CHAN#"),
        payer=values["account"],
        salt=values["salt"],
        key=values["key"],
        ticket_micro=values["ticket_value"],
        tickets=values["tickets"],
        deposit_micro=values["deposit"],
        opened_ms=values["at"],
        expires_ms=values["expires_ms"],
        agents=tuple(json.loads(values.get("agents", "[]"))),
        max_per_task_micro=values.get("max_per_task"),
        state=ChannelState(values["state"]),
        spent_micro=values["spent"],
        swept=values["swept"],
        granted=values["granted"],
        contested="contested" in values,
        close_ms=values.get("close_ms"),
        counted=values.get("counted", 0),
        used=values.get("used", 0),
        returned_micro=values.get("returned", 0),
        closed_ms=values.get("closed_ms"),
    )


def _used(number: int, values: Mapping[str, Any]) -> UsedTicket:
    """A number by the attributes of its item, of which a tombstone has all that are needed."""
    if "state" not in values:
        return UsedTicket(number, 0 if "void_ms" in values else 1)
    state = State(values["state"])
    cost_micro = None
    if state is not State.FUNDED:
        cost_micro = values["budget"] - values["refunded"] + values.get("task_judging", 0)
    return UsedTicket(number, values["tickets"], values["task_id"], values["agent_id"], state, cost_micro)


def channel_change(after: Mapping[str, Any]) -> Channel | None:
    """The channel that a change of the table left; None if it changed something else. `after` is a stream's image."""
    return read(after) if after.get("pk", {}).get("S", "").startswith("CHAN#") else None


def _values(channel: Channel) -> dict[str, Value | None]:
    values: dict[str, Value | None] = {
        "pk": _pk(channel.channel_id),
        "state": channel.state,
        "account": channel.payer,
        "at": channel.opened_ms,
        "salt": channel.salt,
        "key": channel.key,
        "ticket_value": channel.ticket_micro,
        "tickets": channel.tickets,
        "agents": json.dumps(channel.agents, separators=(",", ":")) if channel.agents else None,
        "max_per_task": channel.max_per_task_micro,
        "expires_ms": channel.expires_ms,
        "deposit": channel.deposit_micro,
        "spent": channel.spent_micro,
        "swept": channel.swept,
        "granted": channel.granted,
        "work": QUEUE,
        "work_at": channel.expires_ms,
    }
    return sealed(values, unsealed=_CHANGING)


def _void(channel_id: str, number: int, now_ms: int) -> dict[str, Value | None]:
    return sealed({"pk": _number_pk(channel_id, number), "channel": channel_id, "number": number, "void_ms": now_ms})


def _pk(channel_id: str) -> str:
    return f"CHAN#{channel_id}"


def _topup_pk(channel_id: str, topup_id: str) -> str:
    return f"TOPUP#{channel_id}#{topup_id}"


def _topped_up_ms(values: Mapping[str, Any], topup_id: str, amount_micro: int) -> int:
    """When a top-up was recorded. Raises MovementConflictError if its id had another amount."""
    if values["amount"] != amount_micro:
        raise MovementConflictError(topup_id, recorded_micro=values["amount"])
    return int(values["at"])


def _number_pk(channel_id: str, number: int) -> str:
    return f"ESC#{ticket_escrow_id(channel_id, number)}"


def _stored(refused: RefusedError) -> Channel:
    item = refused.items[0]
    if item is None:
        msg = "the channel is not in the ledger"
        raise LookupError(msg) from refused
    return read(item)
