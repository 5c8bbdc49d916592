"""The ledger: every movement of money, as conditional writes on one DynamoDB table.

    pk                        attributes
    ACCT#<account>            available: the account's home shard (see ledger/balances.py); a bond also has `charged`
    ACCT#<account>#<shard>    available: another balance shard of the account
    ESC#<escrow id>           an escrow; `work` and `work_at` while the sweep still has to process it, and `party`: in
                              whose balance it is until then. If a channel pays, it is the item of the ticket's first
                              number; those of the others name it in `part_of`. `void_ms` in place of an escrow:
                              closing took the number out of use. `archived`: a tombstone, see store/archive.py
    CHAN#<channel id>         a channel, see store/channels.py
    TOPUP#<channel id>#<id>   an amount added to a channel
    IN#<account>#<id>         a deposit: amount, depositor
    OUT#<account>#<id>        a withdrawal: amount, payout; decided_ms and decided_by once it is paid or failed
    BACK#<account>#<id>       a withdrawal whose payout failed: the amount that was returned
    BOND#<account>#<id>       a movement between an owner's account and its bond: amount; one line for each account
    EARN#<account>#<id>       an owner's earnings from a batch: amount, tasks, agent_id if all have the same agent
    JUDGING#<account>#<id>    the part of an owner's price that was returned to its bond, for the agent's own judges
    CHARGE#<account>#<id>     a charge to a bond for failures: amount, and the amount that was due
    FEE#<account>#<id>        the platform's fees from the same batch
    BATCH#<id>                escrows that were credited together
    LOG, LOG#<first>, REP#<agent>   the log of receipts, see store/log.py

The `seal` of an escrow, a movement or a batch is a digest of the attributes that never change after its creation (see
proof/seal.py).

The sparse index `work` lists the work of the sweep: `OPEN#<shard>` by expiry while an escrow is funded,
`SETTLED#<shard>` by time until its owner and the platform are credited, and `BATCH` until a batch is in the log. It
also lists the work of operators: `PAYOUT` until a withdrawal is paid out or returned. The entries `OPEN` and
`SETTLED` are spread over several *work shards*, by escrow id. The sparse index `open` lists what one account has open,
by `party`: `HELD#<payer>#<shard>` while an account's or a bond's credits are in a funded escrow, then
`EARNED#<owner>#<shard>` until the escrow is credited. An escrow that a ticket pays holds no account's credits. The
index `statement` orders the movements of an account by `account` and `at`. An index only finds candidates for a write:
the items are read again, and the write tests its condition.

The state machine is in the condition expressions. A rejected write returns the stored item, so a replay, a lost race
and a lost response can be distinguished without a read. Each write makes its own condition false, so a retry after a
lost response is rejected instead of applied twice.
"""

import heapq
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

from quittance.errors import (
    BondTooLowError,
    ChannelClosedError,
    InsufficientFundsError,
    MovementConflictError,
    PlatformUnavailableError,
    TicketUsedError,
)
from quittance.ledger import balances, earnings, reputation
from quittance.ledger.balances import bond_account, is_bond
from quittance.ledger.channels import ChannelState, ticket_escrow_id
from quittance.ledger.escrow import (
    Escrow,
    JudgeHold,
    Settlement,
    Split,
    State,
    StoredBytes,
    Ticket,
    TicketProof,
    escrow_id,
    is_judge,
    judge_task_id,
)
from quittance.ledger.journal import Line, LineKind, Payout, PayoutState
from quittance.ledger.pricing import ComputePrices
from quittance.ledger.reputation import Standing
from quittance.limits import BALANCE_SHARDS, BATCH_GET_ITEMS_MAX, CREDITED_AT_ONCE_MAX, PARTY_SHARDS
from quittance.observability import logger
from quittance.proof.seal import WITH_PARTY, sealed
from quittance.run import Fault, Limits, Outcome, Side
from quittance.store.archive import Archive, ArchiveDamagedError, Record, is_tombstone
from quittance.store.dynamo import (
    BusyError,
    ConflictError,
    Patience,
    RefusedError,
    Value,
    attempt,
    attribute,
    from_item,
    listing,
    paged,
    plain,
    put_new,
    read_item,
    read_items,
    retried,
    scan_piece,
    to_item,
    update,
)
from quittance.store.log import UNLOGGED, WORK_INDEX, Log

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

OPEN_INDEX: Final = "open"
STATEMENT_INDEX: Final = "statement"
_PREFIXES: Final = {
    LineKind.DEPOSIT: "IN",
    LineKind.WITHDRAWAL: "OUT",
    LineKind.RETURNED: "BACK",
    LineKind.BOND: "BOND",
    LineKind.EARNINGS: "EARN",
    LineKind.JUDGING: "JUDGING",
    LineKind.CHARGE: "CHARGE",
    LineKind.FEES: "FEE",
}
_KINDS: Final = {prefix: kind for kind, prefix in _PREFIXES.items()}
_PAYOUT: Final = "PAYOUT"
_WALLETS_REMEMBERED_MAX: Final = 1_000


@dataclass(slots=True)
class Credited:
    """The result of crediting: the number of escrows, the amount written off, and the bonds affected.

    `bonds_left` is the least balance of each affected bond, by owner; None if the bond may cover the minimum again.
    """

    escrows: int = 0
    written_off_micro: int = 0
    bonds_left: dict[str, int | None] = field(default_factory=dict)

    def add(self, batch: earnings.Batch) -> None:
        """Adds the batch of one transaction."""
        self.escrows += len(batch.escrows)
        self.written_off_micro += batch.written_off_micro
        self.bonds_left.update(batch.bonds_left)


class Backlog:
    """The escrows that the index lists for one step of the sweep, by work shard. Each shard is read at most once."""

    def __init__(self, shards: Mapping[int, Iterator[tuple[int, str]]], *, at_once: int) -> None:
        """`shards` have the time and the id of each escrow, the oldest first."""
        self._shards = dict(shards)
        self._at_once = at_once

    def __iter__(self) -> Iterator[list[str]]:
        """Ids of escrows, the oldest of all shards first, in lists as long as the step processes at once."""
        ids = (escrow_id for _, escrow_id in heapq.merge(*self._shards.values()))
        while some := list(islice(ids, self._at_once)):
            yield some

    def first(self, limit: int) -> Mapping[int, Sequence[tuple[int, str]]]:
        """Times and ids of up to `limit` of the oldest escrows of each shard that has any, without removing them."""
        first = {shard: list(islice(escrows, limit)) for shard, escrows in self._shards.items()}
        self._shards |= {shard: chain(some, self._shards[shard]) for shard, some in first.items()}
        return {shard: some for shard, some in first.items() if some}


@dataclass(frozen=True, slots=True)
class Bond:
    """The balance of a bond, and the total ever charged to it for failures."""

    available_micro: int
    charged_micro: int


class InsufficientBalanceError(Exception):
    """An account's balance is less than the amount to take."""

    def __init__(self, account: str, *, available_micro: int, required_micro: int) -> None:
        super().__init__(account)
        self.account = account
        self._available_micro = available_micro
        self._required_micro = required_micro

    def for_holder(self) -> InsufficientFundsError:
        """The error for the holder of the account."""
        return InsufficientFundsError(available_micro=self._available_micro, required_micro=self._required_micro)


class Ledger:
    """The operations on money. Each is safe to repeat.

    Every method raises PlatformUnavailableError if DynamoDB does not answer or conflicts persist. The outcome is then
    unknown; repeating the call determines it.
    """

    def __init__(
        self,
        client: "DynamoDBClient",
        *,
        table: str,
        work_shards: int,
        platform_account: str,
        left_ms: Callable[[], int],
        archive: Archive | None = None,
    ) -> None:
        """`archive` has the escrows that are not in the table any more; without one there must be none."""
        self._client = client
        self._table = table
        self._work_shards = work_shards
        self._platform_account = platform_account
        self._left_ms = left_ms
        self._archive = archive
        self.log = Log(client, table=table, left_ms=left_ms, whole=self.whole)
        # By account, the balance shard that this environment took from last, unless it is the home shard.
        self._shard_in_use: dict[str, int] = {}

    # One task.

    def fund(self, escrow: Escrow, *judges: Escrow, reserve_ms: int = 0) -> Escrow:
        """Funds the escrows of a task and its judges from their payers' accounts; returns the task's stored escrow.

        The result is `escrow` if it was funded by this call. If the task was funded before, the result is that earlier
        escrow, and no money moved. `reserve_ms` is the time to keep for the run. Raises InsufficientFundsError for the
        task's payer, and BondTooLowError for the bond that pays the agent's own judge. No money moved then either.
        """
        held: Counter[str] = Counter()
        for hold in (escrow, *judges):
            if hold.ticket is None:
                held[hold.payer] += hold.budget_micro
        records = [self._escrow_values(hold) for hold in (escrow, *judges)] + _part_values(escrow)
        try:
            stored = self.take(held, *records, reserve_ms=reserve_ms)
        except InsufficientBalanceError as insufficient:
            if is_bond(insufficient.account):
                raise BondTooLowError(escrow.agent_id) from insufficient
            raise insufficient.for_holder() from insufficient
        return escrow if stored is None else _stored_first(self.whole(stored), escrow)

    def find_ticket(self, ticket: Ticket) -> Escrow | None:
        """The stored escrow that a ticket pays, or None (consistent reads).

        That the numbers are free now does not keep them free: the write of the escrow decides. Raises TicketUsedError,
        and ChannelClosedError for a number that closing took out of use.
        """
        numbers = range(ticket.number, ticket.number + ticket.count)
        pks = {number: f"ESC#{ticket_escrow_id(ticket.channel_id, number)}" for number in numbers}
        found = self._get_all(list(pks.values()))
        for number, pk in pks.items():
            if pk in found and number == ticket.number and "state" in found[pk]:
                return read_escrow(self.whole(found[pk]))
            if pk in found:
                raise _taken(found[pk])
        return None

    def redeem(self, settled: Escrow) -> Escrow:
        """Stores a settled escrow that a ticket pays, if its numbers are free; returns the stored escrow.

        The whole life of a task in one write: it takes the numbers, settles and stores receipt and output. If the first
        number was used, the result is the escrow that it paid, perhaps for another request. Raises as
        `find_ticket` does if a number is taken otherwise.
        """
        settlement = _settlement_of(settled)
        values = self._escrow_values(settled) | _settlement_values(settlement)
        values |= self._settled_work(settled)
        first, *parts = [put_new(self._table, each) for each in (values, *_part_values(settled))]
        try:
            if parts:
                actions = [{"Put": put} for put in (first, *parts)]
                retried(partial(self._send, actions), self._patience())
            else:
                retried(lambda: self._client.put_item(**first), self._patience())
        except RefusedError as refused:
            return _stored_first(self.whole(next(item for item in refused.items if item is not None)), settled)
        return settled

    def take_over(self, stale: Escrow, *, runner: str, now_ms: int, lease_ms: int) -> Escrow:
        """Makes `runner` the holder of a funded escrow whose lease has lapsed; returns the stored escrow."""
        taken = replace(stale, runner=runner, fence=stale.fence + 1, lease_ms=lease_ms)
        write = update(
            self._table,
            f"ESC#{stale.escrow_id}",
            set_={"runner": taken.runner, "fence": taken.fence, "lease_ms": taken.lease_ms},
            condition="#state = :funded AND #fence = :seen_fence AND #lease_ms <= :now AND #expires_ms > :now",
            values={":funded": State.FUNDED, ":seen_fence": stale.fence, ":now": now_ms},
        )
        return self._write(write, taken)

    def settle(self, settled: Escrow, *judges: Escrow) -> Escrow:
        """Settles a funded escrow that has this fence and has not expired; returns the stored escrow.

        Each escrow that is passed carries its settlement. The escrows of the task's judges settle in the same
        transaction, so no judge is paid for an undecided task. The task's fence protects them: they leave FUNDED
        together with the task, or by expiring. If one of them has expired, nothing settles, and the task will expire
        too. State, receipt and output change in one write, and the refunds are credited in the same transaction.
        """
        settlement = _settlement_of(settled)
        if sorted(judge.escrow_id for judge in judges) != sorted(hold.escrow_id for hold in settled.judges):
            msg = "a task must settle together with all of its judges"
            raise ValueError(msg)
        now: Mapping[str, Value] = {":funded": State.FUNDED, ":now": settlement.settled_ms}
        task = self._settling_update(
            settled,
            condition="#state = :funded AND #fence = :my_fence AND #expires_ms > :now",
            values={**now, ":my_fence": settled.fence},
        )
        in_time = "#state = :funded AND #expires_ms > :now"
        held = [self._settling_update(judge, condition=in_time, values=now) for judge in judges]
        return self._send_settlements(settled, *judges, writes=[task, *held])

    def expire(self, escrow: Escrow, settlement: Settlement) -> Escrow:
        """Refunds a funded escrow that has expired, whatever its fence; returns the stored escrow."""
        expired = replace(escrow, settlement=settlement)
        write = self._settling_update(
            expired,
            condition="#state = :funded AND #expires_ms <= :now",
            values={":funded": State.FUNDED, ":now": settlement.settled_ms},
        )
        return self._send_settlements(expired, writes=[write])

    def find(self, escrow_id: str) -> Escrow | None:
        """The stored escrow (consistent read), or None, also for a number that is not the first of its ticket."""
        item = self._get(f"ESC#{escrow_id}")
        return read_escrow(self.whole(item)) if item and "state" in item else None

    # Accounts.

    def deposit(
        self, account: str, deposit_id: str, amount_micro: int, *, now_ms: int, depositor: str | None = None
    ) -> int:
        """Credits an account, once per `deposit_id`; returns the time of the deposit.

        Raises MovementConflictError if the id was used with another amount or by another depositor: the same id from
        two depositors identifies two payments, and neither may count as a repeat of the other. An old deposit without a
        recorded depositor may be repeated by any.
        """
        line = Line(account, LineKind.DEPOSIT, deposit_id, now_ms, amount_micro, depositor=depositor)
        try:
            self.give({account: amount_micro}, [{"Put": put_new(self._table, self._line_values(line))}])
        except RefusedError as refused:
            return _recorded(refused.items[0], line).at_ms
        return now_ms

    def withdraw(self, account: str, withdrawal_id: str, amount_micro: int, *, now_ms: int) -> Payout:
        """Takes an amount from an account, once per `withdrawal_id`; returns the stored payout, initially requested.

        Raises MovementConflictError if the id was used with another amount, InsufficientFundsError.
        """
        line = Line(account, LineKind.WITHDRAWAL, withdrawal_id, now_ms, -amount_micro, payout=PayoutState.REQUESTED)
        record = to_item(values := {**self._line_values(line), "work": _PAYOUT, "work_at": now_ms})
        try:
            recorded = self.take({account: amount_micro}, values)
        except InsufficientBalanceError as insufficient:
            raise insufficient.for_holder() from insufficient
        if recorded is not None:
            _recorded(recorded, line)
        return _payout(recorded or record)

    def payout(self, account: str, withdrawal_id: str) -> Payout | None:
        """The stored payout of a withdrawal (consistent read), or None."""
        item = self._get(_pk(account, LineKind.WITHDRAWAL, withdrawal_id))
        return _payout(item) if item else None

    def payouts(
        self, *, limit: int, after: tuple[int, str, str] | None = None
    ) -> tuple[list[Payout], tuple[int, str, str] | None]:
        """A page of requested payouts, oldest first, and the position after which the next page begins, if any.

        `after` (requested_ms, account, withdrawal id) is the position returned with the previous page. The index may
        lag by a second. Each payout is read from its item, and those that have been decided are left out, so a page may
        have fewer than `limit` payouts.
        """
        start: Mapping[str, Value] | None = None
        if after is not None:
            at_ms, account, withdrawal_id = after
            start = {"pk": _pk(account, LineKind.WITHDRAWAL, withdrawal_id), "work_at": at_ms}
        query = listing(self._table, WORK_INDEX, "work", _PAYOUT, after=start, limit=limit + 1)
        listed = [from_item(item) for item in islice(paged(self._client.query, query, self._left_ms), limit + 1)]
        found = self._get_all([item["pk"] for item in listed[:limit]])
        payouts = [_payout(found[item["pk"]]) for item in listed[:limit] if item["pk"] in found]
        last = None
        if len(listed) > limit:
            _, account, withdrawal_id = listed[limit - 1]["pk"].split("#", 2)
            last = listed[limit - 1]["work_at"], account, withdrawal_id
        return [payout for payout in payouts if payout.state is PayoutState.REQUESTED], last

    def decide_payout(self, payout: Payout, state: PayoutState, *, by: str, now_ms: int) -> Payout:
        """Marks a requested payout as paid or failed, once; returns the stored payout.

        A failed payout is credited to the account in the same transaction, with its own journal line. An old withdrawal
        without a state counts as requested.
        """
        decided = replace(payout, state=state, decided_ms=now_ms, decided_by=by, waits=False)
        write = update(
            self._table,
            _pk(payout.account, LineKind.WITHDRAWAL, payout.withdrawal_id),
            set_={"payout": state, "decided_ms": now_ms, "decided_by": by},
            remove=("work", "work_at"),
            condition="attribute_exists(#amount) AND attribute_not_exists(#decided_ms)",
            values={},
        )
        try:
            if state is PayoutState.FAILED:
                line = Line(payout.account, LineKind.RETURNED, payout.withdrawal_id, now_ms, payout.amount_micro)
                returned = {"Put": put_new(self._table, self._line_values(line))}
                self.give({payout.account: payout.amount_micro}, [{"Update": write}, returned])
            else:
                retried(lambda: self._client.update_item(**write), self._patience())
        except RefusedError as refused:
            if refused.items[0] is None:
                msg = f"the withdrawal {payout.withdrawal_id!r} does not exist, or was returned without having failed"
                raise LookupError(msg) from refused
            return _payout(refused.items[0])
        return decided

    def move_bond(self, owner: str, bond_id: str, amount_micro: int, *, now_ms: int) -> int:
        """Moves credits from an owner's account to its bond, or back if negative, once per `bond_id`; returns the time.

        Raises MovementConflictError if the id was used with another amount, InsufficientFundsError.
        """
        bond = bond_account(owner)
        line = Line(owner, LineKind.BOND, bond_id, now_ms, -amount_micro)
        records = [self._line_values(each) for each in (line, replace(line, account=bond, amount_micro=amount_micro))]
        source, target = (owner, bond) if amount_micro > 0 else (bond, owner)
        try:
            recorded = self.take({source: abs(amount_micro)}, *records, to=target)
        except InsufficientBalanceError as insufficient:
            raise insufficient.for_holder() from insufficient
        return now_ms if recorded is None else _recorded(recorded, line).at_ms

    def bond_moved_ms(self, owner: str, bond_id: str, amount_micro: int) -> int | None:
        """The time at which a movement of a bond was recorded, or None. Raises MovementConflictError."""
        item = self._get(_pk(owner, LineKind.BOND, bond_id))
        return None if item is None else _recorded(item, Line(owner, LineKind.BOND, bond_id, 0, -amount_micro)).at_ms

    def bond(self, owner: str) -> Bond:
        """The balance and the charges of an owner's bond: a snapshot."""
        shards = self._shard_items(bond_account(owner))
        return Bond(sum(map(_available_micro, shards)), sum(map(_charged_micro, shards)))

    def has_open_work(self, owner: str) -> bool:
        """Whether the index lists settled and unswept escrows of the owner's agents, or judges that its bond pays.

        It does not list the funded escrows of the owner's agents, which are among those of their payers: BOND_NOTICE_MS
        after the retirement of all agents there are none that can still charge the bond.
        """
        listed = chain(self._open("EARNED", owner, page_items=1), self._open("HELD", bond_account(owner), page_items=1))
        return any(True for _ in listed)

    def available_micro(self, account: str) -> int:
        """What an account can spend now: a snapshot of all its shards. 0 for an unknown account."""
        return sum(self._balances(account))

    def statement(
        self, account: str, *, limit: int, after: tuple[int, LineKind, str] | None = None
    ) -> tuple[list[Line], bool]:
        """Up to `limit` movements of an account, newest first, and whether more follow.

        The page begins behind the line `after` (at_ms, kind, reference). The index may lag by a second; each line is
        read from its item.
        """
        start: Mapping[str, Value] | None = None
        if after is not None:
            at_ms, kind, reference = after
            start = {"pk": _pk(account, kind, reference), "at": at_ms}
        query = listing(
            self._table, STATEMENT_INDEX, "account", account, after=start, newest_first=True, limit=limit + 1
        )
        keys = [item["pk"]["S"] for item in islice(paged(self._client.query, query, self._left_ms), limit + 1)]
        found = self._get_all(keys[:limit])
        return [_line(found[pk]) for pk in keys[:limit] if pk in found], len(keys) > limit

    def held_micro(self, account: str) -> int:
        """The sum that an account's open tasks hold, from the index, which may lag by a second."""
        return sum(item["budget"] for item in self._open("HELD", account))

    def earned_micro(self, owner: str) -> int:
        """What an owner earned that is not credited yet, from the index, which may lag by a second."""
        return sum(item["paid"] for item in self._open("EARNED", owner))

    def standing(self, agent_id: str) -> Standing:
        """An agent's standing (consistent read)."""
        item = self._get(f"REP#{agent_id}")
        return reputation.parse(item["standing"]["S"]) if item else Standing()

    def piece(self, *, after: str | None, limit: int) -> tuple[list[Mapping[str, Any]], str | None]:
        """A piece of the table: up to `limit` items, and the key behind which the next piece begins, None at the end.

        The read is not consistent: whatever changes while it runs has a record in the table's stream.
        """
        return scan_piece(self._client.scan, self._table, after=after, limit=limit, patience=self._patience())

    # The sweep.

    def overdue(self, *, now_ms: int, shard: int | None = None, page_items: int | None = None) -> Backlog:
        """Escrows that the index lists as funded and expired, oldest first; of one work shard or of all.

        The index is read in pages of `page_items`, by default as large as they can be.
        """
        return self._backlog("OPEN", shard, now_ms, page_items, at_once=BATCH_GET_ITEMS_MAX)

    def settled(
        self, *, before_ms: int | None = None, shard: int | None = None, page_items: int | None = None
    ) -> Backlog:
        """Settled escrows that are not credited yet, as `overdue` has those that are not refunded."""
        return self._backlog("SETTLED", shard, before_ms, page_items, at_once=CREDITED_AT_ONCE_MAX)

    def credit(self, escrow_ids: Sequence[str], *, now_ms: int, contended: bool = False) -> Credited:
        """Credits owners, bonds and the platform for settled escrows, in as few transactions as possible.

        Each transaction creates a batch for the log. Each escrow is credited once, however many sweeps run at the same
        time: escrows that are already credited are left out. `contended` says that other sweeps credit the same
        accounts now, so that each uses random balance shards.
        """
        credited, patience = Credited(), self._patience()
        waiting = self._uncredited(escrow_ids)
        while waiting:
            batch = self._batch(waiting, now_ms)
            try:
                attempt(partial(self._send, self._credit_actions(batch, now_ms, contended=contended)))
            except (RefusedError, BusyError) as failed:
                # Another sweep has credited some of them, or the balance of a bond's shard has fallen.
                self._check_channels(batch)
                contended = contended or isinstance(failed, ConflictError)
                patience.wait(ConflictError() if isinstance(failed, RefusedError) else failed)
                # Another sweep may have credited any of them; a lost response concerns those of this batch only.
                doubtful = len(waiting) if isinstance(failed, RefusedError) else len(batch.escrows)
                again = self._uncredited([escrow.escrow_id for escrow in waiting[:doubtful]])
                waiting = [*again, *waiting[doubtful:]]
            else:
                credited.add(batch)
                waiting = waiting[len(batch.escrows) :]
                patience = self._patience()
        return credited

    def charge(self, owner: str, agent_id: str, reference: str, due_micro: int, *, now_ms: int) -> Credited:
        """Charges an owner's bond for a publication, in favour of the platform, once per agent and reference.

        A bond with a lower balance pays its balance; the rest is written off.
        """
        patience, named = self._patience(), f"{agent_id}.{reference}"
        while True:
            shards = self._bond_shards({owner: due_micro})[owner]
            charge = earnings.publication(
                owner,
                named,
                due_micro,
                shards,
                agent_id=agent_id,
                platform_account=self._platform_account,
                now_ms=now_ms,
            )
            try:
                attempt(partial(self._send, self._charge_actions(charge)))
            except RefusedError as refused:
                if refused.items[0] is not None:  # already charged
                    return Credited(bonds_left={owner: None})
                patience.wait(ConflictError())
            except BusyError as busy:
                patience.wait(busy)
            else:
                return Credited(0, charge.written_off_micro, dict(charge.bonds_left))

    # The archive.

    def whole(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """The item, or the one that it replaced if it is a tombstone.

        Raises PlatformUnavailableError if the archive is damaged: the task has an outcome, but nobody may guess it.
        """
        if not is_tombstone(item):
            return item
        try:
            return self.archive.whole(item)
        except ArchiveDamagedError as damaged:
            logger.error("archived escrow cannot be read", reason=str(damaged))
            raise PlatformUnavailableError from damaged

    @property
    def archive(self) -> Archive:
        """The archive. Raises LookupError without one."""
        if self._archive is None:
            msg = "an escrow is archived, but this ledger has no archive"
            raise LookupError(msg)
        return self._archive

    def forget_archive(self) -> None:
        """Drops what was read of the archive, so that it is read again."""
        if self._archive is not None:
            self._archive.forget()

    def items(self, pks: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """Those items that exist, as they are stored, by key (consistent reads, not a snapshot)."""
        wanted = iter(dict.fromkeys(pks))
        found: dict[str, Mapping[str, Any]] = {}
        while page := list(islice(wanted, BATCH_GET_ITEMS_MAX)):
            found |= self._get_all(page)
        return found

    def leave_tombstone(self, record: Record) -> bool:
        """Replaces a whole escrow by its tombstone; False if it was replaced before.

        The condition names every attribute, so nothing is lost that the archive does not have. Raises
        ArchiveDamagedError if the stored item is neither what was archived nor its tombstone.
        """
        names = {f"#a{number}": name for number, name in enumerate(record.item)}
        same = [f"{name} = {name.replace('#', ':')}" for name in names]
        whole = ["attribute_not_exists(archived)", "attribute_exists(swept_ms)", *same]
        write: Any = {
            "TableName": self._table,
            "Item": record.tombstone,
            "ConditionExpression": " AND ".join(whole),
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": {name.replace("#", ":"): record.item[names[name]] for name in names},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        try:
            retried(lambda: self._client.put_item(**write), self._patience())
        except RefusedError as refused:
            if refused.items[0] == record.tombstone:
                return False
            msg = f"{record.item['pk']['S']} is not as it was archived at {record.where}"
            raise ArchiveDamagedError(msg) from refused
        return True

    # The audit.

    def scan_page(
        self, segment: int, segments: int, *, after: Mapping[str, Any] | None = None
    ) -> tuple[list[dict[str, Any]], Mapping[str, Any] | None]:
        """The attributes of a page of a segment of the table, and the key after which the next page begins, if any.

        All segments together have each item once (consistent reads, not a snapshot).
        """
        scan: dict[str, Any] = {"TableName": self._table, "ConsistentRead": True}
        if segments > 1:
            scan |= {"Segment": segment, "TotalSegments": segments}
        if after is not None:
            scan["ExclusiveStartKey"] = after
        page = retried(partial(self._client.scan, **scan), Patience(self._left_ms()))
        return [plain(item) for item in page["Items"]], page.get("LastEvaluatedKey")

    def read(self, pks: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The attributes of those items that exist, by key (consistent reads, not a snapshot).

        Archived escrows are whole. One that the archive does not have as it was is left out.
        """
        return self.read_with_tombstones(pks)[0]

    def read_with_tombstones(self, pks: Iterable[str]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """As `read`, and the tombstones of all archived escrows among them."""
        found = self.items(pks)
        if tombstones := {pk: item for pk, item in found.items() if is_tombstone(item)}:
            found = {pk: item for pk, item in found.items() if pk not in tombstones}
            found |= self.archive.wholes(tombstones.values())
        return {pk: plain(item) for pk, item in found.items()}, {pk: plain(item) for pk, item in tombstones.items()}

    def stored(self, pks: Iterable[str]) -> dict[str, dict[str, Any]]:
        """As `read`, but without a look into the archive: a tombstone for an archived escrow."""
        return {pk: plain(item) for pk, item in self.items(pks).items()}

    def movements_since(self, account: str, at_ms: int) -> Iterator[str]:
        """The keys of an account's movements since a time, from the index, which may lag by a second."""
        query = {
            "TableName": self._table,
            "IndexName": STATEMENT_INDEX,
            "KeyConditionExpression": "#account = :account AND #at >= :since",
            "ExpressionAttributeNames": {"#account": "account", "#at": "at"},
            "ExpressionAttributeValues": to_item({":account": account, ":since": at_ms}),
        }
        for item in paged(self._client.query, query, self._left_ms):
            yield item["pk"]["S"]

    def balance_shards(self, account: str) -> list[dict[str, Any]]:
        """The attributes of each balance shard of an account: a snapshot."""
        return [plain(shard or {}) for shard in self._shard_items(account)]

    def standings(self, agent_ids: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The attributes of the log's head and of the standings of some agents: a snapshot."""
        head, *kept = self._read_snapshot(["LOG", *(f"REP#{agent_id}" for agent_id in agent_ids)])
        return plain(head or {}), [plain(item or {}) for item in kept]

    # Writes.

    def _settling_update(self, settled: Escrow, *, condition: str, values: Mapping[str, Value]) -> dict[str, Any]:
        """The update by which an escrow leaves FUNDED."""
        settlement = _settlement_of(settled)
        return update(
            self._table,
            f"ESC#{settled.escrow_id}",
            set_=_settlement_values(settlement) | {"input_sha256": settled.input_sha256} | self._settled_work(settled),
            remove=("ticket",) if settled.ticket else (),  # the receipt has it
            condition=condition,
            values=values,
        )

    def _send_settlements(self, settled: Escrow, *judges: Escrow, writes: Sequence[dict[str, Any]]) -> Escrow:
        """Sends the updates of escrows that settle together, with the refunds of their payers."""
        refunds: Counter[str] = Counter()
        for ended in (settled, *judges):
            if ended.ticket is None:  # otherwise what is not used stays in the channel
                refunds[ended.payer] += _settlement_of(ended).split.refunded_micro
        refunds = +refunds  # drops payers without a refund
        if not refunds and not judges:
            return self._write(writes[0], settled)
        try:
            self.give(refunds, [{"Update": write} for write in writes])
        except RefusedError as refused:
            if refused.items[0] is None and judges:  # the condition of a judge's escrow failed
                return self.find(settled.escrow_id) or self._stored_escrow(refused)
            return self._stored_escrow(refused)
        return settled

    def _write(self, write: dict[str, Any], written: Escrow) -> Escrow:
        try:
            retried(lambda: self._client.update_item(**write), self._patience())
        except RefusedError as refused:
            return self._stored_escrow(refused)
        return written

    def _stored_escrow(self, refused: RefusedError) -> Escrow:
        """The stored escrow of a rejected write. If it is absent, it was never funded: a bug, not a race."""
        item = refused.items[0]
        if item is None:
            msg = "the escrow is not in the ledger"
            raise LookupError(msg) from refused
        return read_escrow(self.whole(item))

    # Balances.

    def take(
        self,
        amounts: Mapping[str, int],
        *records: Mapping[str, Value | None],
        to: str | None = None,
        updating: dict[str, Any] | None = None,
        reserve_ms: int = 0,
    ) -> Mapping[str, Any] | None:
        """Puts records and takes their amounts from accounts, in one transaction; `to`, if any, receives the total.

        `updating` is a conditional update of the same transaction. If a record already exists, or the update's
        condition fails, nothing is taken, and the stored item of the first such action is returned. Raises
        InsufficientBalanceError for the first account whose balance is too low.
        """
        puts = [{"Put": put_new(self._table, record)} for record in records]
        puts += [{"Update": updating}] if updating else []
        patience = self._patience(reserve_ms=reserve_ms)
        moves: Mapping[str, Mapping[int, int]] = {
            account: {self._shard_in_use.get(account, balances.HOME): -amount_micro}
            for account, amount_micro in amounts.items()
        }
        planned = contended = False
        while True:
            received = {to: sum(amounts.values())} if to else {}
            actions = puts + self._balance_updates(moves) + self._credit_updates(received, contended=contended)
            try:
                attempt(partial(self._send, actions))
            except RefusedError as refused:
                # Check the record's condition before the balance's: on a replay the balance may be too low only
                # because the first attempt took the amount.
                if (taken := next(filter(None, refused.items[: len(puts)]), None)) is not None:
                    return taken
                if planned:  # a balance has fallen since it was read
                    patience.wait(ConflictError())
                contended = planned
            except ConflictError as busy:
                patience.wait(busy)
                contended = True
            except BusyError as busy:
                patience.wait(busy)
                continue
            else:
                self._remember(moves)
                return None
            try:
                moves, planned = self._plans(amounts, contended=contended), True
            except InsufficientBalanceError:
                # A concurrent repeat may have put the record, and taken the amount, since ours was rejected.
                stored = self._get(str(records[0]["pk"]))
                if stored is None:
                    raise
                return stored

    def _plans(self, amounts: Mapping[str, int], *, contended: bool) -> Mapping[str, Mapping[int, int]]:
        return {
            account: self._plan(account, amount_micro, contended=contended) for account, amount_micro in amounts.items()
        }

    def _plan(self, account: str, amount_micro: int, *, contended: bool) -> Mapping[int, int]:
        found = self._get_all([_shard_pk(account, shard) for shard in range(BALANCE_SHARDS)])
        shards = [_available_micro(found.get(_shard_pk(account, shard))) for shard in range(BALANCE_SHARDS)]
        moves = balances.taking(shards, amount_micro, contended=contended)
        if moves is None:  # reads of single shards can miss credits that move between them
            shards = self._balances(account)
            moves = balances.taking(shards, amount_micro, contended=contended)
        if moves is None:
            raise InsufficientBalanceError(account, available_micro=sum(shards), required_micro=amount_micro)
        return moves

    def give(self, amounts: Mapping[str, int], actions: list[dict[str, Any]]) -> None:
        """Sends actions together with credits to accounts; after a conflict, the credits go to a random shard."""
        patience, contended = self._patience(), False
        while True:
            try:
                return attempt(partial(self._send, actions + self._credit_updates(amounts, contended=contended)))
            except BusyError as busy:
                patience.wait(busy)
                contended = contended or isinstance(busy, ConflictError)

    def _credit_updates(self, amounts: Mapping[str, int], *, contended: bool) -> list[dict[str, Any]]:
        """Credits to accounts: to the shard in use, or to a random one if there is contention."""
        return [
            self._balance_update(
                account,
                random.randrange(BALANCE_SHARDS)  # noqa: S311 - spreads load, hides nothing
                if contended
                else self._shard_in_use.get(account, balances.HOME),
                amount_micro,
            )
            for account, amount_micro in amounts.items()
        ]

    def _balance_update(self, account: str, shard: int, change_micro: int, *, charged_micro: int = 0) -> dict[str, Any]:
        change: dict[str, Any] = {
            "TableName": self._table,
            "Key": to_item({"pk": _shard_pk(account, shard)}),
            "UpdateExpression": "ADD available :change",
            "ExpressionAttributeValues": {":change": attribute(change_micro)},
        }
        if change_micro < 0:
            change["ConditionExpression"] = "available >= :taken"
            change["ExpressionAttributeValues"][":taken"] = attribute(-change_micro)
        if charged_micro:
            change["UpdateExpression"] += ", charged :charged"
            change["ExpressionAttributeValues"][":charged"] = attribute(charged_micro)
        return {"Update": change}

    def _balance_updates(self, moves: Mapping[str, Mapping[int, int]]) -> list[dict[str, Any]]:
        return [
            self._balance_update(account, shard, change_micro)
            for account, changes in moves.items()
            for shard, change_micro in changes.items()
        ]

    def _remember(self, moves: Mapping[str, Mapping[int, int]]) -> None:
        """Remembers the shards that were taken from, to try them first next time."""
        for account, changes in moves.items():
            shard = min(changes, key=changes.__getitem__)
            self._shard_in_use.pop(account, None)
            if shard != balances.HOME:
                if len(self._shard_in_use) >= _WALLETS_REMEMBERED_MAX:
                    self._shard_in_use.clear()
                self._shard_in_use[account] = shard

    def _balances(self, account: str) -> list[int]:
        """The balance of each shard of an account: a snapshot."""
        return [_available_micro(shard) for shard in self._shard_items(account)]

    def _shard_items(self, account: str) -> list[Mapping[str, Any] | None]:
        """The items of an account's balance shards: a snapshot."""
        return self._read_snapshot([_shard_pk(account, shard) for shard in range(BALANCE_SHARDS)])

    # The sweep's actions.

    def _batch(self, waiting: Sequence[Escrow], now_ms: int) -> earnings.Batch:
        """The batch of the first uncredited escrows, as many as one transaction can credit."""
        chosen = earnings.fitting(waiting)
        shards = self._bond_shards(earnings.due_by_owner(chosen))
        chosen = earnings.fitting(chosen, shards)
        return earnings.batch(chosen, shards, platform_account=self._platform_account, now_ms=now_ms)

    def _bond_shards(self, due_micro: Mapping[str, int]) -> earnings.BondShards:
        """The balances of bonds that are charged: the home shard, or a snapshot of all if that is too low."""
        homes = {owner: _shard_pk(bond_account(owner), balances.HOME) for owner in due_micro}
        found = self._get_all(list(homes.values()))
        shards = {owner: [_available_micro(found.get(pk))] for owner, pk in homes.items()}
        for owner, balances_micro in shards.items():
            if balances_micro[balances.HOME] < due_micro[owner]:
                shards[owner] = self._balances(bond_account(owner))
        return shards

    def _credit_actions(self, batch: earnings.Batch, now_ms: int, *, contended: bool) -> list[dict[str, Any]]:
        first = batch.escrows[0]
        actions = [self._mark_swept(escrow, first, place, now_ms) for place, escrow in enumerate(batch.escrows)]
        actions.append({"Put": put_new(self._table, _batch_values(batch.escrows, now_ms))})
        actions += [{"Update": self._spent_update(*spent)} for spent in earnings.spent_by_channel(batch.escrows)]
        return actions + self._charge_actions(batch, contended=contended)

    def _check_channels(self, batch: earnings.Batch) -> None:
        """Raises LookupError for a damaged channel, which no repetition helps, so that it delays no other credits."""
        pks = [f"CHAN#{channel_id}" for channel_id, *_ in earnings.spent_by_channel(batch.escrows)]
        found = self._get_all(pks) if pks else {}
        if damaged := [pk for pk in pks if "closed_ms" in found.get(pk, {"closed_ms": None})]:
            msg = f"{damaged[0]} is missing or closed, and a task that it pays is not credited"
            raise LookupError(msg)

    def _spent_update(self, channel_id: str, spent_micro: int, swept: int) -> dict[str, Any]:
        """Adds to a channel what some of its tasks cost, and the numbers that they took."""
        return {
            "TableName": self._table,
            "Key": to_item({"pk": f"CHAN#{channel_id}"}),
            "UpdateExpression": "ADD spent :spent, swept :swept",
            "ConditionExpression": "attribute_exists(pk) AND attribute_not_exists(closed_ms)",
            "ExpressionAttributeValues": to_item({":spent": spent_micro, ":swept": swept}),
        }

    def _charge_actions(self, batch: earnings.Batch, *, contended: bool = False) -> list[dict[str, Any]]:
        """The movements of a batch: the journal lines, the changes of the bonds' shards, and the credits."""
        actions: list[dict[str, Any]] = [{"Put": put_new(self._table, self._line_values(line))} for line in batch.lines]
        for bond, moves in batch.bond_moves.items():
            charged_micro = batch.charged[bond]  # recorded in the first shard that changes
            for shard, change_micro in moves.items():
                actions.append(self._balance_update(bond, shard, change_micro, charged_micro=charged_micro))
                charged_micro = 0
        return actions + self._credit_updates(batch.credits, contended=contended)

    def _uncredited(self, escrow_ids: Sequence[str]) -> list[Escrow]:
        """The escrows that are settled and not credited, grouped by owner and agent: that saves lines and standings."""
        found: dict[str, Mapping[str, Any]] = {}
        for at in range(0, len(escrow_ids), BATCH_GET_ITEMS_MAX):
            found |= self._get_all([f"ESC#{escrow_id}" for escrow_id in escrow_ids[at : at + BATCH_GET_ITEMS_MAX]])
        items = [found[pk] for escrow_id in escrow_ids if (pk := f"ESC#{escrow_id}") in found]
        waiting = [escrow for item in items if "swept_ms" not in item and (escrow := read_escrow(item)).settlement]
        return sorted(waiting, key=lambda escrow: (escrow.owner, escrow.agent_id))

    def _mark_swept(self, escrow: Escrow, first: Escrow, place: int, now_ms: int) -> dict[str, Any]:
        write = update(
            self._table,
            f"ESC#{escrow.escrow_id}",
            set_={"swept_ms": now_ms, "batch": first.escrow_id, "place": place},
            remove=("work", "work_at", "party"),
            condition="attribute_not_exists(#swept_ms)",
            values={},
        )
        return {"Update": write}

    def _send(self, actions: list[dict[str, Any]]) -> None:
        self._client.transact_write_items(TransactItems=actions)  # type: ignore[arg-type]  # built as plain dicts

    def _patience(self, *, reserve_ms: int = 0) -> Patience:
        return Patience(self._left_ms(), reserve_ms=reserve_ms)

    # Reads.

    def _get(self, pk: str) -> Mapping[str, Any] | None:
        return read_item(self._client.get_item, self._table, pk, self._patience())

    def _backlog(
        self, queue: str, shard: int | None, before_ms: int | None, page_items: int | None, *, at_once: int
    ) -> Backlog:
        shards = range(self._work_shards) if shard is None else (shard,)
        listed = {each: self._work(f"{queue}#{each}", before_ms=before_ms, page_items=page_items) for each in shards}
        return Backlog(
            {
                each: ((item["work_at"], item["pk"].removeprefix("ESC#")) for item in items)
                for each, items in listed.items()
            },
            at_once=at_once,
        )

    def _read_snapshot(self, pks: Sequence[str]) -> list[Mapping[str, Any] | None]:
        """A snapshot of at most 100 items, in order; None for an item that does not exist."""
        gets: Any = [{"Get": {"TableName": self._table, "Key": to_item({"pk": pk})}} for pk in pks]
        answer = retried(lambda: self._client.transact_get_items(TransactItems=gets), self._patience())
        return [response.get("Item") for response in answer["Responses"]]

    def _get_all(self, pks: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """The items that exist, by key (consistent reads, not a snapshot)."""
        return read_items(self._client.batch_get_item, self._table, pks, self._patience(), consistent=True)

    def _work(
        self, queue: str, *, before_ms: int | None = None, page_items: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """The index items of a queue, oldest first."""
        query = listing(self._table, WORK_INDEX, "work", queue, limit=page_items)
        if before_ms is not None:
            query["KeyConditionExpression"] += " AND work_at <= :before"
            query["ExpressionAttributeValues"] |= to_item({":before": before_ms})
        return map(from_item, paged(self._client.query, query, self._left_ms))

    def _open(self, side: str, account: str, *, page_items: int | None = None) -> Iterator[dict[str, Any]]:
        """What the index lists as held of an account, or as earned by it."""
        for shard in range(PARTY_SHARDS):
            query = listing(self._table, OPEN_INDEX, "party", f"{side}#{account}#{shard}", limit=page_items)
            yield from map(from_item, paged(self._client.query, query, self._left_ms))

    # Items.

    def _work_shard(self, escrow_id: str) -> int:
        return zlib.crc32(escrow_id.encode()) % self._work_shards

    def _settled_work(self, settled: Escrow) -> dict[str, Value | None]:
        """The index attributes of an escrow from its settlement until it is credited."""
        return {
            "work": f"SETTLED#{self._work_shard(settled.escrow_id)}",
            "work_at": _settlement_of(settled).settled_ms,
            "party": _party("EARNED", settled.owner, settled.escrow_id),
        }

    def _escrow_values(self, escrow: Escrow) -> dict[str, Value | None]:
        values: dict[str, Value | None] = {
            "pk": f"ESC#{escrow.escrow_id}",
            "state": escrow.state,
            # A ticket is a movement of its channel, not of its payer's account, so it is not in the index `statement`.
            "account": None if escrow.ticket else escrow.payer,
            **_ticket_values(escrow),
            "at": escrow.funded_ms,
            "task_id": escrow.task_id,
            "request_sha256": escrow.request_sha256,
            "agent_id": escrow.agent_id,
            "owner": escrow.owner,
            "module_sha256": escrow.module_sha256,
            "input_sha256": escrow.input_sha256,
            "tariff": escrow.tariff,
            "budget": escrow.budget_micro,
            "fee_bps": escrow.fee_bps,
            "timeout_ms": escrow.timeout_ms,
            "runner": escrow.runner,
            "fence": escrow.fence,
            "lease_ms": escrow.lease_ms,
            "expires_ms": escrow.expires_ms,
            "agent_rules_sha256": escrow.agent_rules_sha256,
            "task_rules_sha256": escrow.task_rules_sha256,
            "compute_prices": _numbers_json(escrow.compute),
            "own_limits": _numbers_json(escrow.own_limits),
            "task_judge_bps": escrow.task_judge_bps or None,
            "judges": _judges_json(escrow.judges),
            "seed": escrow.seed,
            "webhook": escrow.webhook,
            "keep_input": 1 if escrow.keep_input else None,
            "share": _share(escrow),
            "work": f"OPEN#{self._work_shard(escrow.escrow_id)}",
            "work_at": escrow.expires_ms,
            "party": None if escrow.ticket else _party("HELD", escrow.payer, escrow.escrow_id),
        }
        # What a judge reads is not known at funding.
        return sealed(values, unsealed=("input_sha256",) if is_judge(escrow) else (), beside=WITH_PARTY)

    def _line_values(self, line: Line) -> dict[str, Value | None]:
        values: dict[str, Value | None] = {
            "pk": _pk(line.account, line.kind, line.reference),
            "account": line.account,
            "at": line.at_ms,
            "amount": line.amount_micro,
            "agent_id": line.agent_id,
            "tasks": line.tasks,
            "due": line.due_micro,
            "depositor": line.depositor,
            "payout": line.payout,
        }
        return sealed(values)


def payout_moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> Payout | None:
    """The payout that a change of the table requested or decided; None for any other change.

    The images are those of a stream record.
    """
    moved = "payout" in after and before.get("payout") != after["payout"]
    return _payout(after) if moved else None


def listed_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> Escrow | None:
    """The escrow that a change of the table funded or settled; None for any other change.

    The images are those of a stream record. An escrow that was already funded before the change is not returned again.
    """
    if not _is_escrow(after) or before.get("state") == after["state"]:
        return None
    return read_escrow({name: value for name, value in after.items() if "B" not in value})


def standing_change(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[str, Standing | None, Standing] | None:
    """The agent whose standing a change of the table moved, its standing before and after; None for any other change.

    The images are those of a stream record.
    """
    if "standing" not in after:
        return None
    earlier = reputation.parse(before["standing"]["S"]) if "standing" in before else None
    return after["pk"]["S"].removeprefix("REP#"), earlier, reputation.parse(after["standing"]["S"])


def left_funded(before: Mapping[str, Any], after: Mapping[str, Any]) -> Escrow | None:
    """The escrow that a change of the table settled; None for any other change, such as the mark of the sweep.

    A ticket's task may be settled by the write that stores it first. The images are those of a stream record. Of output
    and stderr only the digests are read.
    """
    was_funded = before.get("state") == {"S": State.FUNDED}
    is_first_write_by_ticket = not before and "channel" in after
    if not _is_escrow(after) or not (was_funded or is_first_write_by_ticket) or after["state"] == {"S": State.FUNDED}:
        return None
    return read_escrow({name: value for name, value in after.items() if "B" not in value})


def _is_escrow(image: Mapping[str, Any]) -> bool:
    """Whether a stream's image is that of an escrow: a channel has a state too, other numbers of a ticket have none."""
    return "state" in image and str(image["pk"]["S"]).startswith("ESC#")


def _pk(account: str, kind: LineKind, reference: str) -> str:
    if kind is LineKind.TASK:
        return f"ESC#{escrow_id(account, reference)}"
    if kind is LineKind.CHANNEL:
        return f"CHAN#{reference}"
    return f"{_PREFIXES[kind]}#{account}#{reference}"


def _shard_pk(account: str, shard: int) -> str:
    return f"ACCT#{account}#{shard}" if shard != balances.HOME else f"ACCT#{account}"


def _party(side: str, account: str, escrow_id: str) -> str:
    """The key of an escrow in the index `open`: spread, because one account may have as many tasks as the system."""
    return f"{side}#{account}#{zlib.crc32(escrow_id.encode()) % PARTY_SHARDS}"


def _available_micro(shard: Mapping[str, Any] | None) -> int:
    return int(shard["available"]["N"]) if shard else 0


def _charged_micro(shard: Mapping[str, Any] | None) -> int:
    return int(shard["charged"]["N"]) if shard and "charged" in shard else 0


def _line(item: Mapping[str, Any]) -> Line:
    values = from_item(item)
    prefix, _, rest = values["pk"].partition("#")
    if prefix == "ESC":  # as a tombstone has it too
        return Line(
            account=values["account"],
            kind=LineKind.TASK,
            reference=values["task_id"],
            at_ms=values["at"],
            amount_micro=values.get("refunded", 0) - values["budget"],
            agent_id=values["agent_id"],
            tasks=1,
            state=State(values["state"]),
        )
    if prefix == "CHAN":  # what the channel has taken from the account so far
        amount_micro = values.get("returned", 0) - values["deposit"]
        return Line(values["account"], LineKind.CHANNEL, rest, values["at"], amount_micro)
    return Line(
        account=values["account"],
        kind=_KINDS[prefix],
        reference=rest.removeprefix(values["account"] + "#"),
        at_ms=values["at"],
        amount_micro=values["amount"],
        agent_id=values.get("agent_id"),
        tasks=values.get("tasks"),
        due_micro=values.get("due"),
        depositor=values.get("depositor"),
        payout=_payout(item).state if prefix == _PREFIXES[LineKind.WITHDRAWAL] else None,
    )


def _payout(item: Mapping[str, Any]) -> Payout:
    """The payout of a withdrawal. An old one without a state counts as requested, but is not in the index."""
    values = from_item(item)
    _, account, withdrawal_id = values["pk"].split("#", 2)
    return Payout(
        account=account,
        withdrawal_id=withdrawal_id,
        amount_micro=-values["amount"],
        requested_ms=values["at"],
        state=PayoutState(values.get("payout", PayoutState.REQUESTED)),
        decided_ms=values.get("decided_ms"),
        decided_by=values.get("decided_by"),
        waits=values.get("work") == _PAYOUT,
        recorded="payout" in values,
    )


def _recorded(item: Mapping[str, Any] | None, line: Line) -> Line:
    """The stored line of a repeated movement.

    Raises MovementConflictError if it has another amount or another depositor.
    """
    if item is None:
        msg = "a movement was rejected although its record does not exist"
        raise LookupError(msg)
    recorded = _line(item)
    recorded_micro = abs(recorded.amount_micro)
    if recorded.depositor not in {None, line.depositor}:
        raise MovementConflictError(line.reference, recorded_micro=recorded_micro, by_another=True)
    if recorded.amount_micro != line.amount_micro:
        raise MovementConflictError(line.reference, recorded_micro=recorded_micro)
    return recorded


def _settlement_values(settlement: Settlement) -> dict[str, Value | None]:
    return {
        "state": settlement.state,
        "paid": settlement.split.paid_micro,
        "fee": settlement.split.fee_micro,
        "refunded": settlement.split.refunded_micro,
        "outcome": settlement.outcome,
        "message": settlement.message,
        "fault": settlement.fault,
        "compute": settlement.compute_micro or None,
        "charge": settlement.charge_micro or None,
        "judging": settlement.judging_micro or None,
        "task_judging": settlement.task_judging_micro or None,
        "reputation_tenths": settlement.reputation_tenths,
        "settled_ms": settlement.settled_ms,
        "receipt": settlement.receipt,
        **_stored_bytes_values("output", settlement.output),
        **_stored_bytes_values("log", settlement.stderr),
        **_stored_bytes_values("stdin", settlement.stdin),
    }


def _stored_bytes_values(name: str, stored: StoredBytes | None) -> dict[str, Value | None]:
    if stored is None:
        return {}
    return {f"{name}_sha256": stored.sha256, f"{name}_bytes": stored.size, name: stored.inline or None}


def read_escrow(item: Mapping[str, Any]) -> Escrow:
    """The escrow of an item, or of a stream record's image."""
    values = from_item(item)
    return Escrow(
        escrow_id=values["pk"].removeprefix("ESC#"),
        payer=values["payer"] if "channel" in values else values["account"],
        task_id=values["task_id"],
        request_sha256=values["request_sha256"],
        agent_id=values["agent_id"],
        owner=values["owner"],
        module_sha256=values["module_sha256"],
        input_sha256=values["input_sha256"],
        tariff=values["tariff"],
        budget_micro=values["budget"],
        fee_bps=values["fee_bps"],
        timeout_ms=values["timeout_ms"],
        runner=values["runner"],
        fence=values["fence"],
        funded_ms=values["at"],
        lease_ms=values["lease_ms"],
        expires_ms=values["expires_ms"],
        agent_rules_sha256=values.get("agent_rules_sha256"),
        task_rules_sha256=values.get("task_rules_sha256"),
        compute=ComputePrices(*json.loads(values.get("compute_prices", "[]"))),
        own_limits=Limits(*json.loads(values["own_limits"])) if "own_limits" in values else None,
        task_judge_bps=values.get("task_judge_bps", 0),
        judges=tuple(_judge_holds(values)),
        seed=values.get("seed"),
        webhook=values.get("webhook"),
        keep_input="keep_input" in values,
        share_payer="payer" in values.get("share", "").split(","),
        share_log="log" in values.get("share", "").split(","),
        ticket=_ticket(values),
        settlement=_settlement(values) if values["state"] != State.FUNDED else None,
    )


def _ticket_values(escrow: Escrow) -> dict[str, Value | None]:
    """The attributes of the ticket that pays. While the escrow is funded, they include what its receipt will state."""
    if (ticket := escrow.ticket) is None:
        return {}
    proof = ticket.proof if escrow.settlement is None else None
    return {
        "payer": escrow.payer,
        "channel": ticket.channel_id,
        "number": ticket.number,
        "tickets": ticket.count,
        "ticket": json.dumps(astuple(proof), separators=(",", ":")) if proof else None,
    }


def _part_values(escrow: Escrow) -> list[dict[str, Value | None]]:
    """The items of the numbers that an escrow takes beside its first."""
    if (ticket := escrow.ticket) is None:
        return []
    return [
        sealed(
            {
                "pk": f"ESC#{ticket_escrow_id(ticket.channel_id, number)}",
                "channel": ticket.channel_id,
                "number": number,
                "part_of": escrow.escrow_id,
            }
        )
        for number in range(ticket.number + 1, ticket.number + ticket.count)
    ]


def _ticket(values: Mapping[str, Any]) -> Ticket | None:
    if "channel" not in values:
        return None
    proof = TicketProof(*json.loads(values["ticket"])) if "ticket" in values else None
    return Ticket(values["channel"], values["number"], values["tickets"], proof)


def _stored_first(stored: Mapping[str, Any], wanted: Escrow) -> Escrow:
    """The escrow that is stored in place of a new one. Raises as `find_ticket` does if a number is taken otherwise."""
    if stored["pk"]["S"] == f"ESC#{wanted.escrow_id}" and "state" in stored:
        return read_escrow(stored)
    raise _taken(stored)


def _taken(stored: Mapping[str, Any]) -> TicketUsedError | ChannelClosedError:
    """Why the number of a stored item pays no other task."""
    channel_id = stored["channel"]["S"]
    if "void_ms" in stored:
        return ChannelClosedError(channel_id, state=ChannelState.CLOSED)
    return TicketUsedError(channel_id, int(stored["number"]["N"]))


def _share(escrow: Escrow) -> str | None:
    """The names of what the agent's owner may see of a task; None if there is nothing."""
    shared = {"payer": escrow.share_payer, "log": escrow.share_log}
    return ",".join(name for name, is_shared in shared.items() if is_shared) or None


def _judges_json(judges: Sequence[JudgeHold]) -> str | None:
    return json.dumps([astuple(hold) for hold in judges]) if judges else None


def _judge_holds(values: Mapping[str, Any]) -> Iterator[JudgeHold]:
    for side, agent_id, budget_micro, *named in json.loads(values.get("judges", "[]")):
        # Old escrows: the payer paid both judges, and their escrow ids were derived from the task's.
        of_payer = escrow_id(values.get("payer") or values["account"], judge_task_id(values["task_id"], Side(side)))
        yield JudgeHold(Side(side), agent_id, budget_micro, *(named or [of_payer]))


def _numbers_json(numbers: ComputePrices | Limits | None) -> str | None:
    return json.dumps(astuple(numbers), separators=(",", ":")) if numbers else None


def _settlement(values: Mapping[str, Any]) -> Settlement:
    return Settlement(
        state=State(values["state"]),
        split=Split(values["budget"], values["paid"], values["fee"], values["refunded"]),
        outcome=Outcome(values["outcome"]),
        message=values["message"],
        reputation_tenths=values["reputation_tenths"],
        settled_ms=values["settled_ms"],
        fault=Fault(values["fault"]) if "fault" in values else Outcome(values["outcome"]).fault,
        compute_micro=values.get("compute", 0),
        charge_micro=values.get("charge", 0),
        judging_micro=values.get("judging", 0),
        task_judging_micro=values.get("task_judging", 0),
        receipt=values["receipt"],
        output=_stored_bytes(values, "output"),
        stderr=_stored_bytes(values, "log"),
        stdin=_stored_bytes(values, "stdin"),
    )


def _stored_bytes(values: Mapping[str, Any], name: str) -> StoredBytes | None:
    if f"{name}_sha256" not in values:
        return None
    size = values[f"{name}_bytes"]
    return StoredBytes(values[f"{name}_sha256"], size, values.get(name, None if size else b""))


def _batch_values(batch: Sequence[Escrow], now_ms: int) -> dict[str, Value | None]:
    first = batch[0]
    values: dict[str, Value | None] = {
        "pk": f"BATCH#{first.escrow_id}",
        "escrows": ",".join(escrow.escrow_id for escrow in batch),
        "at": now_ms,
        "work": UNLOGGED,
        "work_at": now_ms,
    }
    return sealed(values)


def _settlement_of(settled: Escrow) -> Settlement:
    if settled.settlement is None:
        msg = "an escrow cannot end without a settlement"
        raise ValueError(msg)
    return settled.settlement
