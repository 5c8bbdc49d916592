"""A pure model of payment channels, and the same operations on the real store: tests compare the two.

The model `Book` has the rules of the design and no storage. `Desk` makes each operation on the store, on the in-memory
DynamoDB. Both have the same methods, with the same arguments and results, so a test is a list of operations. A result
is the name of the refusal, or what the operation returned.

The actors keep what they have read, as crashed and late ones do: `look` remembers the channel as it is now, and the
operations that get a `seen` use it. Clocks differ: every operation that has a time gets it as an argument.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final
from unittest import mock

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from quittance.errors import QuittanceError
from quittance.ledger import escrow as escrows
from quittance.ledger.balances import bond_account
from quittance.ledger.channels import Channel, ChannelState, channel_id, ticket_escrow_id, ticket_task_id
from quittance.ledger.escrow import Escrow, JudgeHold, Ticket, TicketProof
from quittance.proof.ticket import TICKET_TYPE
from quittance.run import Side
from quittance.usecases import channels, judges
from tests.proofs.memory import Memory
from tests.proofs.test_matrix import DONE, FAILED, hold, signed
from tests.proofs.world import FEE_BPS, PLATFORM_ACCOUNT, START_MS, World, micro

ISSUER: Final = "urn:quittance:test"
KEY: Final = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"channel").digest())
KEY_X: Final = str(OKPAlgorithm.to_jwk(KEY.public_key(), as_dict=True)["x"])
TICKET: Final = 12_000  # what one number is worth at most
CHANNEL: Final = channel_id(issuer=ISSUER, payer="alice", salt="salt", key=KEY_X, ticket_micro=TICKET)
TICKETS: Final = 20  # at opening
GRANT_FIRST, GRANT_MAX, NUMBER_MAX = 8, 100, 10**6  # the design's numbers
CLOSE_MS: Final = 90_000  # from the request to close to the count
CHANNEL_EXPIRY: Final = START_MS + 1_000_000
LEASE_MS, LIFE_MS = 1_000, 5_000
JUDGE_BUDGET, JUDGE_PRICE = 11_000, 9_001
BOND: Final = bond_account("oskar")
ACCOUNTS: Final = ("alice", "oskar", "judith", BOND, PLATFORM_ACCOUNT)
_OWN_RULES: Final = "dd" * 32
_NUMBERS: Final = {ticket_escrow_id(CHANNEL, number): number for number in range(1, 300)}
_SIDES: Final = {"agent": Side.AGENT, "task": Side.TASK}
Outcomes = Any


def commission(price: int) -> int:
    """The platform's part of a price."""
    return price * FEE_BPS // 10_000


# The model.


@dataclass
class Judging:
    """A judge's escrow in the model."""

    side: str
    state: str = "funded"
    cost: int = 0
    swept: bool = False


@dataclass
class Task:
    """A task that a ticket pays, under its first number, in the model."""

    number: int
    count: int
    request: str
    price: int
    lease: int
    expires: int
    fence: int = 1
    state: str = "funded"
    cost: int = 0
    paid: int = 0
    fee: int = 0
    judging: int = 0
    swept: bool = False
    judges: list[Judging] = field(default_factory=list)


@dataclass
class Book:
    """One channel, its numbers and the balances that it moves. `numbers` has None for one that closing took out."""

    money: Counter[str] = field(default_factory=Counter)
    state: str | None = None
    terms: Any = None
    deposit: int = 0
    spent: int = 0
    swept: int = 0
    granted: int = 0
    contested: bool = False
    contests: int = 0
    close_ms: int | None = None
    counted: int = 0
    used: int = 0
    returned: int = 0
    work_at: int | None = None
    topups: dict[str, tuple[int, int]] = field(default_factory=dict)
    numbers: dict[int, Task | None] = field(default_factory=dict)
    chunk: int = 100
    seen: list["Book"] = field(default_factory=list)
    paid_in: int = 0

    @property
    def covered(self) -> int:
        """The highest number that the deposit covers."""
        return min(self.swept + (self.deposit - self.spent) // TICKET, NUMBER_MAX)

    def fill(self, account: str, amount: int) -> None:
        self.money[account] += amount
        self.paid_in += amount

    def look(self) -> None:
        if self.state:
            self.seen.append(replace(self, seen=[], numbers={}, topups={}, money=Counter()))

    def open(self, tickets: int, expires: int) -> Outcomes:
        if self.state:
            return self.state if self.terms == (tickets, expires) else "ChannelConflictError"
        if self.money["alice"] < tickets * TICKET:
            return "InsufficientFundsError"
        self.money["alice"] -= tickets * TICKET
        self.state, self.terms, self.deposit = "open", (tickets, expires), tickets * TICKET
        self.granted, self.work_at = min(GRANT_FIRST, tickets), expires
        return "open"

    def top_up(self, topup_id: str, amount: int, now: int) -> Outcomes:
        if topup_id in self.topups:
            recorded, at = self.topups[topup_id]
            return at if recorded == amount else "MovementConflictError"
        if self.state != "open":
            return "ChannelClosedError"
        if self.money["alice"] < amount:
            return "InsufficientFundsError"
        self.money["alice"] -= amount
        self.deposit += amount
        self.topups[topup_id] = amount, now
        return now

    def grant(self, seen: int, last: int) -> Outcomes:
        old = self.seen[seen]
        most = max(last, min(old.granted + min(max(old.granted, GRANT_FIRST), GRANT_MAX), old.covered))
        if last > min(old.granted + GRANT_MAX, old.covered) or most <= old.granted:
            return old.granted
        if self.state == "open" and self.granted == old.granted:
            self.granted = most
        return self.granted

    def contest(self) -> None:
        self.contested = self.contested or self.state == "open"
        self.contests += 1

    def begin_closing(self, seen: int, close_ms: int) -> Outcomes:
        _ = seen  # it only names the channel
        if self.state == "open":
            self.state, self.close_ms, self.work_at = "closing", close_ms, close_ms
        return self.state, self.close_ms

    def count_out(self, seen: int, now: int) -> Outcomes:
        old = self.seen[seen]
        if old.state == "open":
            return None  # `advance` never counts such a channel
        last = min(old.counted + self.chunk, old.granted)
        span = range(old.counted + 1, last + 1)
        self.numbers.update({number: None for number in span if number not in self.numbers})
        if self.state == "closing" and self.counted == old.counted:
            self.used = old.used + sum(self.numbers[number] is not None for number in span)
            self.counted, self.work_at = last, now
        return self.state, self.counted, self.used

    def close(self, seen: int, now: int) -> Outcomes:
        old = self.seen[seen]
        if (
            self.state == "closing"
            and self.counted == self.granted
            and self.swept == self.used
            and (old.spent, old.deposit) == (self.spent, self.deposit)
        ):
            self.state, self.returned, self.work_at = "closed", self.deposit - self.spent, None
            self.money["alice"] += self.returned
        return self.state, self.returned

    def advance(self, seen: int, now: int) -> Outcomes:
        """What the sweep does with a channel that it has read."""
        old = self.seen[seen]
        if old.state == "open":
            if old.terms[1] <= now:
                self.begin_closing(seen, now + CLOSE_MS)
                return self.state
            return old.state
        if old.state == "closed" or (old.close_ms or 0) > now:
            return old.state
        if old.counted < old.granted:
            self.count_out(seen, now)
            return self.state
        if old.swept == old.used:
            self.close(seen, now)
            return self.state
        return old.state

    def _occupied(self, number: int, count: int) -> Outcomes:
        """What keeps a task from taking some numbers: a stored task, or a refusal; None if they are free."""
        first = self.numbers.get(number)
        if first and first.number == number:
            return first.request, first.state, first.fence
        for each in range(number, number + count):
            if each in self.numbers:
                return "ChannelClosedError" if self.numbers[each] is None else "TicketUsedError"
        return None

    def find(self, number: int, count: int) -> Outcomes:
        return self._occupied(number, count)

    def _take(self, task: Task) -> Task:
        self.numbers.update(dict.fromkeys(range(task.number, task.number + task.count), task))
        return task

    def _pay(self, task: Task, *, success: bool) -> None:
        cost = JUDGE_PRICE if success else 0  # the judges of a failure are not asked
        for judge in task.judges:
            judge.state, judge.cost = "released" if success else "refunded", cost
            if judge.side == "agent":
                self.money[BOND] += JUDGE_BUDGET - cost
                task.judging = cost
            else:
                task.cost += cost
        task.state = "released" if success else "refunded"
        if success:
            task.fee, task.paid = commission(task.price), task.price - commission(task.price)
            task.cost += task.price

    def redeem(self, number: int, count: int, request: str, price: int, success: bool, now: int) -> Outcomes:
        if (found := self._occupied(number, count)) is not None:
            return found
        task = self._take(Task(number, count, request, price, now + LEASE_MS, now + LIFE_MS))
        self._pay(task, success=success)
        return request, task.state, 1

    def hold(self, number: int, count: int, request: str, price: int, sides: str, now: int) -> Outcomes:
        """Stores a task that runs later. `sides` names its judges; the bond pays the agent's."""
        if (found := self._occupied(number, count)) is not None:
            return found
        if "agent" in sides and self.money[BOND] < JUDGE_BUDGET:
            return "BondTooLowError"
        self.money[BOND] -= JUDGE_BUDGET * ("agent" in sides)
        price = min(price, count * TICKET - JUDGE_BUDGET * ("task" in sides))
        task = self._take(Task(number, count, request, price, now + LEASE_MS, now + LIFE_MS))
        task.judges = [Judging(side) for side in _SIDES if side in sides]
        return request, "funded", 1

    def task(self, number: int) -> Task | None:
        task = self.numbers.get(number)
        return task if task and task.number == number else None

    def settle(self, number: int, fence: int, success: bool, now: int) -> Outcomes:
        if (task := self.task(number)) is None:
            return None
        together = all(judge.state == "funded" for judge in task.judges)
        if task.state == "funded" and task.fence == fence and now < task.expires and together:
            self._pay(task, success=success)
        return task.state, task.fence

    def expire(self, number: int, who: str, now: int) -> Outcomes:
        if (task := self.task(number)) is None:
            return None
        if who == "itself":
            if task.state == "funded" and now >= task.expires:
                task.state = "expired"
            return task.state
        judge = next((judge for judge in task.judges if judge.side == who), None)
        if judge is None:
            return None
        if judge.state == "funded" and now >= task.expires:
            judge.state = "expired"
            self.money[BOND] += JUDGE_BUDGET * (who == "agent")
        return judge.state

    def take_over(self, number: int, fence: int, now: int) -> Outcomes:
        if (task := self.task(number)) is None:
            return None
        if task.state == "funded" and task.fence == fence and task.lease <= now < task.expires:
            task.fence, task.lease = fence + 1, now + LEASE_MS
        return task.state, task.fence

    def credit(self, names: Iterable[tuple[int, str]]) -> int:
        """Credits settled escrows, named by the task's number and `itself` or a judge's side."""
        credited = 0
        for number, who in dict.fromkeys(names):
            if (task := self.task(number)) is None:
                continue
            for judge in (judge for judge in task.judges if judge.side == who):
                if judge.state != "funded" and not judge.swept:
                    judge.swept, credited = True, credited + 1
                    self.money["judith"] += judge.cost - commission(judge.cost)
                    self.money[PLATFORM_ACCOUNT] += commission(judge.cost)
            if who == "itself" and task.state != "funded" and not task.swept:
                task.swept, credited = True, credited + 1
                returned = min(task.judging, task.paid)
                self.money["oskar"] += task.paid - returned
                self.money[BOND] += returned
                self.money[PLATFORM_ACCOUNT] += task.fee
                self.spent += task.cost
                self.swept += task.count
        return credited

    @property
    def tasks(self) -> list[Task]:
        return [task for number, task in self.numbers.items() if task and task.number == number]

    def broken(self) -> list[str]:
        """The invariants of channels that do not hold."""
        wrong = []
        if (self.covered - self.swept) * TICKET > self.deposit - self.spent:
            wrong.append("I14: the deposit does not cover the numbers that are not swept")
        done = [task for task in self.tasks if task.swept]
        if (sum(task.cost for task in done), sum(task.count for task in done)) != (self.spent, self.swept):
            wrong.append("the channel's spent and swept are not the sums of its swept tasks")
        if any(task.cost > task.count * TICKET for task in self.tasks):
            wrong.append("a task cost more than its numbers")
        if sum(task.cost for task in self.tasks) > self.deposit:
            wrong.append("the tasks cost more than the deposit")
        taken = Counter(number for task in self.tasks for number in range(task.number, task.number + task.count))
        if any(times > 1 for times in taken.values()):
            wrong.append("a number pays two tasks")
        unswept = sum(task.cost for task in self.tasks if not task.swept)
        if self.state == "closed" and (unswept or self.returned != self.deposit - self.spent):
            wrong.append("closed with a task that is not swept, or with another rest")
        if min(self.money.values(), default=0) < 0:
            wrong.append("a balance is below zero")
        return wrong

    def elsewhere(self) -> int:
        """The credits on no balance: the rest of the channel, what is held for judges, what is not credited yet."""
        held = credited_later = 0
        for task in self.tasks:
            for judge in task.judges:
                of_bond = judge.side == "agent"
                held += JUDGE_BUDGET * (of_bond and judge.state == "funded")
                # The bond has paid its judge since the settlement, the channel since the task was swept.
                credited_later += judge.cost * ((of_bond or task.swept) - judge.swept)
        return self.deposit - self.spent - self.returned + held + credited_later

    def shown(self) -> dict[str, Any]:
        """Everything that the store must have, in the format of `Desk.shown`."""
        numbers: dict[int, Any] = {}
        for number, task in self.numbers.items():
            if task is None:
                numbers[number] = "void"
            elif task.number != number:
                numbers[number] = "part", task.number
            else:
                judged = [(judge.side, judge.state, judge.cost, judge.swept) for judge in task.judges]
                cost = None if task.state == "funded" else task.cost
                numbers[number] = (
                    task.request, task.count, task.state, task.fence, task.lease, cost, task.swept, judged,
                )  # fmt: skip
        channel = None
        if self.state:
            channel = (
                self.state, self.deposit, self.spent, self.swept, self.granted, self.contested, self.contests,
                self.close_ms, self.counted, self.used, self.returned, self.work_at,
            )  # fmt: skip
        money = {name: self.money[name] for name in ACCOUNTS}
        return {"channel": channel, "numbers": numbers, "money": money, "topups": self.topups}

    def copy(self) -> "Book":
        tasks = {id(task): replace(task, judges=[replace(judge) for judge in task.judges]) for task in self.tasks}
        numbers = {number: task and tasks[id(task)] for number, task in self.numbers.items()}
        money, topups = Counter(self.money), dict(self.topups)
        return replace(self, money=money, topups=topups, numbers=numbers, seen=list(self.seen))


# The store.


class Desk:
    """The same operations on the real store."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World(Memory(), now_ms=lambda: START_MS, left_ms=lambda: 5_000)
        self.memory: Memory = self.world._dynamodb
        self.seen: list[Channel] = []

    @property
    def channels(self) -> Any:
        return self.world.channels

    def fill(self, account: str, amount: int) -> None:
        ledger = self.world.ledger
        owner = "oskar" if account == BOND else account
        ledger.deposit(owner, f"{account}-{len(self.memory.items)}", amount, now_ms=START_MS)
        if account == BOND:
            ledger.move_bond(owner, f"b-{len(self.memory.items)}", amount, now_ms=START_MS)

    def look(self) -> None:
        if f"CHAN#{CHANNEL}" in self.memory.items:
            self.seen.append(self.channels.get(CHANNEL))

    def open(self, tickets: int, expires: int) -> Outcomes:
        wanted = Channel(
            channel_id=CHANNEL, payer="alice", salt="salt", key=KEY_X, ticket_micro=TICKET, tickets=tickets,
            deposit_micro=tickets * TICKET, opened_ms=START_MS, expires_ms=expires, granted=min(GRANT_FIRST, tickets),
        )  # fmt: skip
        return str(self.channels.open(wanted).state)

    def top_up(self, topup_id: str, amount: int, now: int) -> Outcomes:
        named = Channel(CHANNEL, "alice", "salt", KEY_X, TICKET, 1, TICKET, START_MS, CHANNEL_EXPIRY)
        return self.channels.top_up(named, topup_id, amount, now_ms=now)

    def grant(self, seen: int, last: int) -> Outcomes:
        return self.channels.grant(self.seen[seen], last).granted

    def contest(self) -> None:
        named = Channel(CHANNEL, "alice", "salt", KEY_X, TICKET, 1, TICKET, START_MS, CHANNEL_EXPIRY)
        self.channels.contest(named, now_ms=START_MS)

    def begin_closing(self, seen: int, close_ms: int) -> Outcomes:
        stored = self.channels.begin_closing(self.seen[seen], close_ms=close_ms)
        return stored.state, stored.close_ms

    def count_out(self, seen: int, now: int) -> Outcomes:
        if self.seen[seen].state is ChannelState.OPEN:
            return None
        stored = self.channels.count_out(self.seen[seen], now_ms=now)
        return stored.state, stored.counted, stored.used

    def close(self, seen: int, now: int) -> Outcomes:
        stored = self.channels.close(self.seen[seen], now_ms=now)
        return stored.state, stored.returned_micro

    def advance(self, seen: int, now: int) -> Outcomes:
        with mock.patch.object(self.world, "_now_ms", return_value=now):
            return str(channels.advance_closing(self.world, self.seen[seen]).state)

    def find(self, number: int, count: int) -> Outcomes:
        stored = self.world.ledger.find_ticket(Ticket(CHANNEL, number, count))
        return None if stored is None else (stored.request_sha256, stored.state, stored.fence)

    def redeem(self, number: int, count: int, request: str, price: int, success: bool, now: int) -> Outcomes:
        task = _task(number, count, request, price, now)
        stored = self.world.ledger.redeem(self._ended(task, (), now, success=success)[0])
        return stored.request_sha256, stored.state, stored.fence

    def hold(self, number: int, count: int, request: str, price: int, sides: str, now: int) -> Outcomes:
        task = _task(number, count, request, price, now)
        held = [_judge(task, side) for name, side in _SIDES.items() if name in sides]
        task = replace(
            _task(number, count, request, price, now, own_rules=_OWN_RULES) if "task" in sides else task,
            budget_micro=task.budget_micro - JUDGE_BUDGET * ("task" in sides),
            judges=tuple(
                JudgeHold(side, each.agent_id, JUDGE_BUDGET, each.escrow_id)
                for side, each in zip((side for name, side in _SIDES.items() if name in sides), held, strict=True)
            ),
        )
        stored = self.world.ledger.fund(task, *held)
        return stored.request_sha256, stored.state, stored.fence

    def settle(self, number: int, fence: int, success: bool, now: int) -> Outcomes:
        if (stored := self._stored(number)) is None:
            return None
        held = [self.world.ledger.find(each.escrow_id) for each in stored.judges]
        bare = [replace(each, settlement=None) for each in held if each]
        ended = self._ended(replace(stored, settlement=None, fence=fence), bare, now, success=success)
        stored = self.world.ledger.settle(*ended)
        return stored.state, self._fence(number)

    def expire(self, number: int, who: str, now: int) -> Outcomes:
        if (stored := self._stored(number)) is None:
            return None
        if who != "itself":
            name = next((each.escrow_id for each in stored.judges if each.side == who), None)
            found = self.world.ledger.find(name) if name else None
            if found is None:
                return None
            stored = found
        bare = replace(stored, settlement=None)
        return self.world.ledger.expire(bare, signed(self.world, bare, escrows.expire(bare, now_ms=now))).state

    def take_over(self, number: int, fence: int, now: int) -> Outcomes:
        if (stored := self._stored(number)) is None:
            return None
        stale = replace(stored, fence=fence)
        taken = self.world.ledger.take_over(stale, runner="taker", now_ms=now, lease_ms=now + LEASE_MS)
        return taken.state, taken.fence

    def credit(self, names: Iterable[tuple[int, str]]) -> int:
        ids = []
        for number, who in dict.fromkeys(names):
            if (stored := self._stored(number)) is not None:
                ids += [stored.escrow_id] if who == "itself" else []
                ids += [each.escrow_id for each in stored.judges if each.side == who]
        return self.world.ledger.credit(ids, now_ms=START_MS).escrows

    def names(self) -> dict[str, tuple[int, str]]:
        """The escrows of the channel's tasks and their judges, by id, as `credit` names them."""
        found: dict[str, tuple[int, str]] = {}
        for name, number in _NUMBERS.items():
            item = self.memory.items.get(f"ESC#{name}", {})
            if "state" in item:
                found[name] = number, "itself"
                judged = json.loads(item["judges"]["S"]) if "judges" in item else []
                found |= {judge: (number, side) for side, _, _, judge in judged}
        return found

    def _stored(self, number: int) -> Escrow | None:
        return self.world.ledger.find(ticket_escrow_id(CHANNEL, number))

    def _fence(self, number: int) -> int | None:
        stored = self._stored(number)
        return stored.fence if stored else None

    def _ended(self, task: Escrow, held: Iterable[Escrow], now: int, *, success: bool) -> list[Escrow]:
        run = DONE if success else FAILED
        ended = [
            replace(
                each,
                settlement=signed(self.world, each, judges.settlement(each, run if success else None, run, now_ms=now)),
            )
            for each in held
        ]
        settlement = escrows.decide(task, run, now_ms=now, judging_micro=judges.costs_micro(task, ended))
        return [replace(task, settlement=signed(self.world, task, settlement)), *ended]

    def shown(self) -> dict[str, Any]:
        """Everything that the store has, read from the raw items."""
        items = {pk: _plain(item) for pk, item in self.memory.items.items()}
        money = dict.fromkeys(ACCOUNTS, 0)
        for pk, item in items.items():
            if pk.startswith("ACCT#") and pk.split("#")[1] in money:
                money[pk.split("#")[1]] += item["available"]
        channel = items.get(f"CHAN#{CHANNEL}")
        shown = channel and (
            channel["state"], channel["deposit"], channel["spent"], channel["swept"], channel["granted"],
            "contested" in channel, items.get("CONTEST#alice", {}).get("contests", 0), channel.get("close_ms"),
            channel.get("counted", 0), channel.get("used", 0), channel.get("returned", 0), channel.get("work_at"),
        )  # fmt: skip
        numbers = {}
        for name, number in _NUMBERS.items():
            if item := items.get(f"ESC#{name}"):
                assert (item["channel"], item["number"]) == (CHANNEL, number)
                if "void_ms" in item:
                    numbers[number] = "void"
                elif "part_of" in item:
                    numbers[number] = "part", _NUMBERS[item["part_of"]]
                else:
                    numbers[number] = _shown_task(item, items)
        prefix = f"TOPUP#{CHANNEL}#"
        topups = {
            pk.removeprefix(prefix): (item["amount"], item["at"]) for pk, item in items.items() if pk.startswith(prefix)
        }
        return {"channel": shown, "numbers": numbers, "money": money, "topups": topups}


def _shown_task(item: Mapping[str, Any], items: Mapping[str, Mapping[str, Any]]) -> Any:
    funded = item["state"] == "funded"
    assert ("ticket" in item) == funded, "the signed ticket is kept until the receipt has it"
    assert ("receipt" in item) == (not funded)
    assert "account" not in item, "a ticket's task is no line of an account"
    cost = None if funded else item["budget"] - item["refunded"] + item.get("task_judging", 0)
    judged = []
    for side, _, _, name in json.loads(item.get("judges", "[]")):
        judge = items[f"ESC#{name}"]
        spent = 0 if judge["state"] == "funded" else judge["budget"] - judge["refunded"]
        judged.append((side, judge["state"], spent, "swept_ms" in judge))
        assert judge.get("tickets", 0) == 0
    return (
        item["request_sha256"], item["tickets"], item["state"], item["fence"], item["lease_ms"], cost,
        "swept_ms" in item, judged,
    )  # fmt: skip


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: int(value) if kind == "N" else value for name, typed in item.items() for kind, value in typed.items()}


@cache
def _signed(number: int, count: int, own_rules: str | None) -> TicketProof:
    """The ticket of a task, as the channel's key signs it."""
    task = hold()
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "channel": CHANNEL,
        "n": number,
        "exp": START_MS // 1_000 + 3_600,
        "agent_id": task.agent_id,
        "input_sha256": task.input_sha256,
        "budget": micro(count * TICKET),
    } | ({"acceptance_sha256": own_rules} if own_rules else {})
    return TicketProof("salt", KEY_X, TICKET, jwt.encode(claims, KEY, algorithm="EdDSA", headers={"typ": TICKET_TYPE}))


def _task(number: int, count: int, request: str, price: int, now: int, own_rules: str | None = None) -> Escrow:
    return hold(
        escrow_id=ticket_escrow_id(CHANNEL, number),
        task_id=ticket_task_id(CHANNEL, number),
        budget=count * TICKET,
        request_sha256=request,
        tariff=f'{{"type":"flat","price":"{micro(price)}"}}',
        fence=1,
        funded_ms=now,
        lease_ms=now + LEASE_MS,
        expires_ms=now + LIFE_MS,
        task_rules_sha256=own_rules,
        ticket=Ticket(CHANNEL, number, count, _signed(number, count, own_rules)),
    )


def _judge(task: Escrow, side: Side) -> Escrow:
    payer, task_id = escrows.judge_account(task, side)
    return replace(
        task,
        escrow_id=escrows.escrow_id(payer, task_id),
        payer=payer,
        task_id=task_id,
        owner="judith",
        budget_micro=JUDGE_BUDGET,
        tariff=f'{{"type":"flat","price":"0.{JUDGE_PRICE:06}"}}',
        ticket=Ticket(CHANNEL, task.ticket.number, 0) if task.ticket and side is Side.TASK else None,
        seed="ab" * 32,
    )


class Both:
    """The model and the store. Each operation is made on both; `do` raises AssertionError where they disagree."""

    def __init__(self, *, chunk: int = 100, world: World | None = None, money: Counter[str] | None = None) -> None:
        """`world` and `money` are those of a test that also moves other credits."""
        self.book, self.desk = Book(chunk=chunk), Desk(world)
        self.alone = money is None
        if money is not None:
            self.book.money = money

    def copy(self) -> "Both":
        """Both sides in the same state, independent of this one."""
        other = Both()
        other.book = self.book.copy()
        other.desk.memory.items, other.desk.seen = dict(self.desk.memory.items), list(self.desk.seen)
        return other

    def do(self, name: str, *arguments: Any) -> Outcomes:
        """The result of an operation; a refused one must change no byte."""
        before, items = self.book.shown(), dict(self.desk.memory.items)
        due = getattr(self.book, name)(*arguments)
        try:
            found = getattr(self.desk, name)(*arguments)
        except QuittanceError as exc:
            found = type(exc).__name__
        assert found == due, f"{name}{arguments}: is {found}, due was {due}"
        assert self.desk.shown() == self.book.shown(), f"{name}{arguments}"
        if self.book.shown() == before:
            assert self.desk.memory.items == items, f"{name}{arguments} changed something"
        assert self.book.broken() == []
        assert not self.alone or self.book.money.total() + self.book.elsewhere() == self.book.paid_in
        return due
