"""The ledger: every movement of money, as conditional writes on one DynamoDB table.

    pk                        attributes
    ACCT#<account>            available
    ESC#<escrow id>           the escrow; `work` and `work_at` while something is still to be done with it
    IN#<account>#<id>         a deposit: amount, at
    OUT#<account>#<id>        a withdrawal: amount, at
    REP#<agent>               score_tenths, outcomes, successes, failures

The sparse index `work` finds what the sweep has to do: `OPEN#<shard>` by expiry while an escrow is funded, then
`SETTLED#<shard>` by time until its owner and the platform are credited. The index only finds candidates: each
condition is tested again on the item itself.

The state machine is in the condition expressions. A refused write returns the item that refused it, so a replay, a
lost race and a lost answer are told apart without a read.
"""

import uuid
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from quittance import reputation
from quittance.audit import Balance, Entry, Item, Movement, Unreadable, Way
from quittance.errors import InsufficientFundsError, MovementConflictError, PlatformUnavailableError
from quittance.escrow import Escrow, Settlement, Split, State, StoredBytes
from quittance.limits import TRANSACTION_ITEMS_MAX, TRANSACTION_TRIES_MAX
from quittance.run import Outcome
from quittance.store.dynamo import (
    RefusedError,
    Value,
    answered,
    attribute,
    from_item,
    items,
    put_new,
    scanned,
    to_item,
    update,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

WORK_INDEX: Final = "work"
_WAYS: Final = {"IN": Way.IN, "OUT": Way.OUT}
CREDITED_ESCROWS_MAX: Final = TRANSACTION_ITEMS_MAX - 3  # the owner, the platform and the reputation go along


@dataclass(frozen=True, slots=True)
class Credit:
    """A settled escrow that waits for the sweep, as the index shows it."""

    escrow_id: str
    state: State
    owner: str
    agent_id: str
    paid_micro: int
    fee_micro: int
    outcome: Outcome
    reputation_tenths: int


@dataclass(frozen=True, slots=True)
class Reputation:
    """An agent's standing as the sweep left it."""

    score_tenths: int = reputation.START_TENTHS
    outcomes: int = 0
    successes: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Pending:
    """What the index shows of an account: held in funded escrows, earned in settled ones that are not swept yet."""

    held_micro: int
    earned_micro: int


class Ledger:
    """The operations on money; each is safe to repeat.

    Every method raises PlatformUnavailableError when DynamoDB does not answer or stays in conflict: the outcome is
    then unknown, and repeating the call finds it out.
    """

    def __init__(self, client: "DynamoDBClient", *, table: str, shards: int, platform_account: str) -> None:
        self._client = client
        self._table = table
        self._shards = shards
        self._platform_account = platform_account

    # One task.

    def fund(self, escrow: Escrow) -> Escrow:
        """Takes the budget from the payer into a new escrow; returns the escrow that stands.

        That is `escrow` if its runner holds it now. If the task was funded before, it is that earlier escrow, and no
        money moved. Raises InsufficientFundsError.
        """
        put = put_new(self._table, self._escrow_values(escrow))
        try:
            self._transact([{"Put": put}, self._take(escrow.payer, escrow.budget_micro)])
        except RefusedError as refused:
            # The escrow's reason comes first: on a replay, the first attempt may have taken the payer's last credit.
            standing, account = refused.items
            if standing is None:
                raise _insufficient(account, escrow.budget_micro) from refused
            return _escrow(standing)
        return escrow

    def take_over(self, stale: Escrow, *, runner: str, now_ms: int, lease_ms: int) -> Escrow:
        """Makes `runner` the holder of a funded escrow whose lease has lapsed; returns the escrow that stands."""
        taken = replace(stale, runner=runner, fence=stale.fence + 1, lease_ms=lease_ms)
        write = update(
            self._table,
            f"ESC#{stale.escrow_id}",
            set_={"runner": taken.runner, "fence": taken.fence, "lease_ms": taken.lease_ms},
            condition="#state = :funded AND #fence = :seen_fence AND #lease_ms <= :now AND #expires_ms > :now",
            values={":funded": State.FUNDED, ":seen_fence": stale.fence, ":now": now_ms},
        )
        return self._write(write, taken)

    def settle(self, escrow: Escrow, settlement: Settlement) -> Escrow:
        """Ends a funded escrow that this fence holds and that has not expired; returns the escrow that stands.

        State, receipt and output change in one write; what goes back to the payer goes in the same transaction.
        """
        return self._leave_funded(
            replace(escrow, settlement=settlement),
            condition="#state = :funded AND #fence = :my_fence AND #expires_ms > :now",
            values={":funded": State.FUNDED, ":my_fence": escrow.fence, ":now": settlement.settled_ms},
        )

    def expire(self, escrow: Escrow, settlement: Settlement) -> Escrow:
        """Refunds a funded escrow that has expired, whoever holds it; returns the escrow that stands."""
        return self._leave_funded(
            replace(escrow, settlement=settlement),
            condition="#state = :funded AND #expires_ms <= :now",
            values={":funded": State.FUNDED, ":now": settlement.settled_ms},
        )

    def find(self, escrow_id: str) -> Escrow | None:
        """The escrow as it stands now (consistent read), or None."""
        item = self._get(f"ESC#{escrow_id}")
        return _escrow(item) if item else None

    # Accounts.

    def deposit(self, account: str, deposit_id: str, amount_micro: int, *, now_ms: int) -> int:
        """Adds to an account, once per `deposit_id`; returns when that was. Raises MovementConflictError."""
        give = self._give(account, amount_micro)
        return self._move(f"IN#{account}#{deposit_id}", deposit_id, amount_micro, now_ms, give)

    def withdraw(self, account: str, withdrawal_id: str, amount_micro: int, *, now_ms: int) -> int:
        """Takes from an account, once per `withdrawal_id`; returns when that was.

        Raises MovementConflictError if the id has another amount, InsufficientFundsError.
        """
        take = self._take(account, amount_micro)
        return self._move(f"OUT#{account}#{withdrawal_id}", withdrawal_id, amount_micro, now_ms, take)

    def available_micro(self, account: str) -> int:
        """What an account can spend now (consistent read); 0 for an account that never had anything."""
        item = self._get(f"ACCT#{account}")
        return from_item(item)["available"] if item else 0

    def pending(self, account: str) -> Pending:
        """What the index shows of an account; may lag by a second."""
        held = sum(item["budget"] for item in self._work("OPEN", of=("payer", account)))
        earned = sum(item["paid"] for item in self._work("SETTLED", of=("owner", account)))
        return Pending(held, earned)

    def reputation(self, agent_id: str) -> Reputation:
        """An agent's standing (consistent read)."""
        item = self._get(f"REP#{agent_id}")
        if not item:
            return Reputation()
        values = from_item(item)
        return Reputation(values["score_tenths"], values["outcomes"], values["successes"], values["failures"])

    # The sweep.

    def overdue(self, *, now_ms: int) -> Iterator[str]:
        """Ids of escrows that the index shows as funded and expired, the longest overdue first in each shard."""
        for item in self._work("OPEN", before_ms=now_ms):
            yield item["pk"].removeprefix("ESC#")

    def credits(self) -> Iterator[list[Credit]]:
        """Settled escrows that wait to be credited, in batches of one agent each that fit one transaction."""
        batches: dict[str, list[Credit]] = defaultdict(list)
        for item in self._work("SETTLED"):
            batch = batches[item["agent_id"]]
            batch.append(_credit(item))
            if len(batch) == CREDITED_ESCROWS_MAX:
                yield batches.pop(item["agent_id"])
        yield from batches.values()

    def credit(self, batch: Sequence[Credit], *, now_ms: int) -> int:
        """Credits owner, platform and reputation for settled escrows of one agent, and marks them as swept.

        Each escrow is credited once, however many sweeps run: those that another sweep took are dropped, and the rest
        is tried again. Returns how many were credited.
        """
        for _ in range(TRANSACTION_TRIES_MAX):
            if not batch:
                return 0
            standing = self.reputation(batch[0].agent_id)
            amounts = Counter({batch[0].owner: sum(credit.paid_micro for credit in batch)})
            amounts[self._platform_account] += sum(credit.fee_micro for credit in batch)
            actions = [self._mark_swept(credit, standing.outcomes + n, now_ms) for n, credit in enumerate(batch, 1)]
            actions.append(self._fold_reputation(standing, batch))
            actions += [self._give(account, amount) for account, amount in amounts.items() if amount]
            try:
                self._transact(actions)
            except RefusedError as refused:
                # If the reputation alone refused, another sweep moved it: all of the batch is tried again.
                marks = refused.items[: len(batch)]
                batch = [credit for credit, taken in zip(batch, marks, strict=True) if taken is None]
            else:
                return len(batch)
        raise PlatformUnavailableError

    # The audit.

    def everything(self) -> Iterator[Item]:
        """Every movement, balance and escrow of the table (consistent reads, but no snapshot)."""
        scan = {"TableName": self._table, "ConsistentRead": True}
        for item in scanned(self._client, scan):
            try:
                yield from _audited(item)
            except (KeyError, TypeError, ValueError) as exc:
                yield Unreadable(item["pk"]["S"], repr(exc))

    # Writes.

    def _leave_funded(self, settled: Escrow, *, condition: str, values: Mapping[str, Value]) -> Escrow:
        settlement = settled.settlement
        if settlement is None:
            msg = "only a settlement ends an escrow"
            raise ValueError(msg)
        write = update(
            self._table,
            f"ESC#{settled.escrow_id}",
            set_=_settlement_values(settlement)
            | {"work": f"SETTLED#{self._shard(settled.escrow_id)}", "work_at": settlement.settled_ms},
            condition=condition,
            values=values,
        )
        refunded_micro = settlement.split.refunded_micro
        if not refunded_micro:
            return self._write(write, settled)
        try:
            self._transact([{"Update": write}, self._give(settled.payer, refunded_micro)])
        except RefusedError as refused:
            return _standing(refused)
        return settled

    def _write(self, write: dict[str, Any], written: Escrow) -> Escrow:
        try:
            answered(lambda: self._client.update_item(**write))
        except RefusedError as refused:
            return _standing(refused)
        return written

    def _move(self, pk: str, movement_id: str, amount_micro: int, now_ms: int, change: dict[str, Any]) -> int:
        record = put_new(self._table, {"pk": pk, "amount": amount_micro, "at": now_ms})
        try:
            self._transact([{"Put": record}, change])
        except RefusedError as refused:
            recorded, account = refused.items
            if recorded is None:
                raise _insufficient(account, amount_micro) from refused
            earlier = from_item(recorded)
            if earlier["amount"] != amount_micro:
                raise MovementConflictError(movement_id, recorded_micro=earlier["amount"]) from refused
            return int(earlier["at"])
        return now_ms

    def _take(self, account: str, amount_micro: int) -> dict[str, Any]:
        change = {
            "TableName": self._table,
            "Key": to_item({"pk": f"ACCT#{account}"}),
            "UpdateExpression": "SET available = available - :amount",
            "ConditionExpression": "available >= :amount",
            "ExpressionAttributeValues": {":amount": attribute(amount_micro)},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        return {"Update": change}

    def _give(self, account: str, amount_micro: int) -> dict[str, Any]:
        change = {
            "TableName": self._table,
            "Key": to_item({"pk": f"ACCT#{account}"}),
            "UpdateExpression": "ADD available :amount",
            "ExpressionAttributeValues": {":amount": attribute(amount_micro)},
        }
        return {"Update": change}

    def _mark_swept(self, credit: Credit, seq: int, now_ms: int) -> dict[str, Any]:
        write = update(
            self._table,
            f"ESC#{credit.escrow_id}",
            set_={"swept_ms": now_ms, "seq": seq},
            remove=("work", "work_at"),
            condition="#state = :seen_state AND attribute_exists(#work) AND attribute_not_exists(#swept_ms)",
            values={":seen_state": credit.state},
        )
        return {"Update": write}

    def _fold_reputation(self, standing: Reputation, batch: Sequence[Credit]) -> dict[str, Any]:
        score = standing.score_tenths
        for credit in batch:
            score = reputation.moved_tenths(score, credit.reputation_tenths)
        write = update(
            self._table,
            f"REP#{batch[0].agent_id}",
            set_={
                "score_tenths": score,
                "outcomes": standing.outcomes + len(batch),
                "successes": standing.successes + sum(credit.outcome is Outcome.SUCCEEDED for credit in batch),
                "failures": standing.failures + sum(credit.reputation_tenths < 0 for credit in batch),
            },
            condition="#outcomes = :seen" if standing.outcomes else "attribute_not_exists(#outcomes)",
            values={":seen": standing.outcomes} if standing.outcomes else {},
        )
        return {"Update": write}

    def _transact(self, actions: list[dict[str, Any]]) -> None:
        # Repeats carry the same token: a lost answer does not become a second transaction.
        token = str(uuid.uuid4())
        answered(lambda: self._client.transact_write_items(TransactItems=actions, ClientRequestToken=token))  # type: ignore[arg-type]  # built as plain dicts

    # Reads.

    def _get(self, pk: str) -> Mapping[str, Any] | None:
        key = to_item({"pk": pk})
        return answered(lambda: self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True)).get("Item")

    def _work(
        self, queue: str, *, before_ms: int | None = None, of: tuple[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """What the index holds of one queue, shard by shard, oldest first; `of` keeps one attribute's value only."""
        name, wanted = of or ("", "")
        query: dict[str, Any] = {
            "TableName": self._table,
            "IndexName": WORK_INDEX,
            "KeyConditionExpression": "#work = :queue" + ("" if before_ms is None else " AND work_at <= :before"),
            "ExpressionAttributeNames": {"#work": "work"} | ({"#of": name} if of else {}),
        } | ({"FilterExpression": "#of = :of"} if of else {})
        values = {":before": before_ms, ":of": wanted if of else None}
        for shard in range(self._shards):
            query["ExpressionAttributeValues"] = to_item({":queue": f"{queue}#{shard}", **values})
            yield from map(from_item, items(self._client, query))

    # Items.

    def _shard(self, escrow_id: str) -> int:
        return zlib.crc32(escrow_id.encode()) % self._shards

    def _escrow_values(self, escrow: Escrow) -> dict[str, Value | None]:
        return {
            "pk": f"ESC#{escrow.escrow_id}",
            "state": escrow.state,
            "payer": escrow.payer,
            "task_id": escrow.task_id,
            "request_sha256": escrow.request_sha256,
            "agent_id": escrow.agent_id,
            "owner": escrow.owner,
            "module_sha256": escrow.module_sha256,
            "input_sha256": escrow.input_sha256,
            "input_bytes": escrow.input_bytes,
            "tariff": escrow.tariff,
            "budget": escrow.budget_micro,
            "fee_bps": escrow.fee_bps,
            "timeout_ms": escrow.timeout_ms,
            "runner": escrow.runner,
            "fence": escrow.fence,
            "funded_ms": escrow.funded_ms,
            "lease_ms": escrow.lease_ms,
            "expires_ms": escrow.expires_ms,
            "work": f"OPEN#{self._shard(escrow.escrow_id)}",
            "work_at": escrow.expires_ms,
        }


def _settlement_values(settlement: Settlement) -> dict[str, Value | None]:
    return {
        "state": settlement.state,
        "paid": settlement.split.paid_micro,
        "fee": settlement.split.fee_micro,
        "refunded": settlement.split.refunded_micro,
        "outcome": settlement.outcome,
        "message": settlement.message,
        "reputation_tenths": settlement.reputation_tenths,
        "settled_ms": settlement.settled_ms,
        "receipt": settlement.receipt,
        **_stored_values("output", settlement.output),
        **_stored_values("log", settlement.log),
    }


def _stored_values(name: str, stored: StoredBytes | None) -> dict[str, Value | None]:
    if stored is None:
        return {}
    return {f"{name}_sha256": stored.sha256, f"{name}_bytes": stored.size, name: stored.inline or None}


def _escrow(item: Mapping[str, Any]) -> Escrow:
    values = from_item(item)
    return Escrow(
        escrow_id=values["pk"].removeprefix("ESC#"),
        payer=values["payer"],
        task_id=values["task_id"],
        request_sha256=values["request_sha256"],
        agent_id=values["agent_id"],
        owner=values["owner"],
        module_sha256=values["module_sha256"],
        input_sha256=values["input_sha256"],
        input_bytes=values["input_bytes"],
        tariff=values["tariff"],
        budget_micro=values["budget"],
        fee_bps=values["fee_bps"],
        timeout_ms=values["timeout_ms"],
        runner=values["runner"],
        fence=values["fence"],
        funded_ms=values["funded_ms"],
        lease_ms=values["lease_ms"],
        expires_ms=values["expires_ms"],
        settlement=_settlement(values) if values["state"] != State.FUNDED else None,
    )


def _settlement(values: Mapping[str, Any]) -> Settlement:
    return Settlement(
        state=State(values["state"]),
        split=Split(values["budget"], values["paid"], values["fee"], values["refunded"]),
        outcome=Outcome(values["outcome"]),
        message=values["message"],
        reputation_tenths=values["reputation_tenths"],
        settled_ms=values["settled_ms"],
        receipt=values["receipt"],
        output=_stored(values, "output"),
        log=_stored(values, "log"),
    )


def _stored(values: Mapping[str, Any], name: str) -> StoredBytes | None:
    if f"{name}_sha256" not in values:
        return None
    size = values[f"{name}_bytes"]
    return StoredBytes(values[f"{name}_sha256"], size, values.get(name, None if size else b""))


def _audited(item: Mapping[str, Any]) -> Iterator[Item]:
    kind, _, rest = item["pk"]["S"].partition("#")
    if kind == "ESC":
        yield Entry(_escrow(item), swept="swept_ms" in item)
    elif kind == "ACCT":
        yield Balance(rest, from_item(item)["available"])
    elif kind in _WAYS:
        yield Movement(_WAYS[kind], rest.partition("#")[0], from_item(item)["amount"])


def _credit(item: Mapping[str, Any]) -> Credit:
    return Credit(
        escrow_id=item["pk"].removeprefix("ESC#"),
        state=State(item["state"]),
        owner=item["owner"],
        agent_id=item["agent_id"],
        paid_micro=item["paid"],
        fee_micro=item["fee"],
        outcome=Outcome(item["outcome"]),
        reputation_tenths=item["reputation_tenths"],
    )


def _standing(refused: RefusedError) -> Escrow:
    """The escrow that refused a write. One that is absent was never funded: a bug, not a race."""
    item = refused.items[0]
    if item is None:
        msg = "the escrow is not in the ledger"
        raise LookupError(msg) from refused
    return _escrow(item)


def _insufficient(account: Mapping[str, Any] | None, required_micro: int) -> InsufficientFundsError:
    available_micro = from_item(account)["available"] if account else 0
    return InsufficientFundsError(available_micro=available_micro, required_micro=required_micro)
