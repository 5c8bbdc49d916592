"""Fuzzes the ledger with faults: many actors on one real DynamoDB engine.

    python tests/proofs/fuzz.py --seeds 20 --escrows 1000 --engine ministack      # as `make fuzz-ledger` does
    python tests/proofs/fuzz.py --first 17 --seeds 1 --engine dynoxide            # one seed, another engine

The real use cases (execute, result, sweep, drain) run over a client with crashes, lost responses, conflicts,
throttling, pauses and stale indexes (faults.py). Pairs of clients send the same tasks, one task in ten with different
bodies; most tasks have the same agent and the same payer. Tickets of several channels (purses.py) pay half of the
tasks; channels run dry, expire, are topped up and closed meanwhile. Clocks differ, three sweeps, two drains for each
step and work shard, and a writer of the log run, and deposits and withdrawals are made at the same time. Then the
clock moves past every expiry, a sweep without faults settles what is open, and everything is checked (checks.py,
channel_checks.py). A seed repeats the faults, but not the order of the threads. Exit status 1 if an invariant is
violated.

The platform's clock runs `SPEED` times as fast as real time, so leases and expiries keep their real lengths.
"""

import argparse
import hashlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from quittance.api.identity import Caller
from quittance.ledger import channels
from quittance.ledger import escrow as escrows
from quittance.store.log import Latest
from quittance.usecases import execute, result, settle, tickets

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "layers" / "runtime"))


from quittance.api.models import TaskResult
from quittance.errors import (
    AgentNotAllowedError,
    BondTooLowError,
    ChannelClosedError,
    ChannelExpiredError,
    InsufficientFundsError,
    NotFoundError,
    PlatformUnavailableError,
    QuittanceError,
    TaskConflictError,
    TicketInvalidError,
    TicketTooSmallError,
    TicketUsedError,
)
from quittance.ledger.balances import bond_account
from quittance.ledger.journal import PayoutState
from quittance.limits import CALL_MS_MAX, CHANNEL_CLOSE_MS, ESCROW_GRACE_MS, TIMEOUT_S_ASYNC_MAX, TIMEOUT_S_SYNC_MAX
from quittance.proof.log import leaf_hash
from quittance.run import Job, Run
from quittance.usecases.drain import drain
from quittance.usecases.sweep import publish_log, sweep
from tests import clouds
from tests.proofs import purses
from tests.proofs.channel_checks import channel_violations
from tests.proofs.checks import Answer, Sent, plain_items, violations
from tests.proofs.engines import ENGINES, client_of, engine, new_table
from tests.proofs.faults import Crash, Faulty, Journal, Rates
from tests.proofs.purses import Asked, Purse
from tests.proofs.world import (
    FLAT,
    FLAT_MICRO,
    HOT,
    JUDGE_MICRO,
    JUDGED,
    LEASE_MS,
    LIFE_MS,
    OWN,
    PLATFORM_ACCOUNT,
    START_MS,
    TABLE,
    TIMEOUT_S,
    Shelf,
    World,
    ask,
    instant_run,
    new_keys,
    quiet,
)

SPEED = 100
EXPIRY_MS = TIMEOUT_S * 1_000 + ESCROW_GRACE_MS
SHARDS = 2
PAIRS = 12
TRIES_MAX = 6
SKEW_MS = (-20_000, -3_000, 0, 0, 500, 3_000, 20_000)
TICKET_SHARE = 0.5
EXPIRES_MS_A_TASK = 600  # when one of the channels expires, for each task of the round: about in its middle
RATES = Rates(
    lease_s=LEASE_MS / SPEED / 1_000, expiry_s=EXPIRY_MS / SPEED / 1_000, close_s=CHANNEL_CLOSE_MS / SPEED / 1_000
)

NO_FAULTS = Rates(**dict.fromkeys((rate.name for rate in fields(Rates)), 0.0))


def _left_ms() -> int:
    """The time for which the ledger retries: a tenth of a second of real time."""
    return CALL_MS_MAX + 100


class Clock:
    """The platform's clock: faster than real time, and it can be moved forward."""

    def __init__(self) -> None:
        self._began, self._jumped = time.monotonic(), 0

    def now_ms(self) -> int:
        return START_MS + self._jumped + int((time.monotonic() - self._began) * 1_000 * SPEED)

    def jump(self, ms: int) -> None:
        self._jumped += ms


@dataclass(frozen=True)
class Task:
    """A task that a pair of clients sends. The ticket of a `purse` pays it, or the account `payer`."""

    payer: str
    sent: tuple[Sent, Sent]
    texts: tuple[str, str]
    judge: bool
    purse: Purse | None = None

    def asked(self, side: int) -> Asked:
        """What a client's ticket asks for."""
        sent = self.sent[side]
        count = self.purse.count(sent.budget) if self.purse else 0
        _, first = channels.parse_task_id(sent.task_id) or ("", 0)
        return Asked(first, count, sent.agent_id, sent.budget, sent.input_sha256)


@dataclass
class Round:
    """The actors of one seed and their results."""

    client: Any
    seed: int
    rates: Rates = RATES
    clock: Clock = field(default_factory=Clock)
    journal: Journal = field(default_factory=Journal)
    answers: list[Answer] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    moved: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)
    shelf: Shelf = field(default_factory=Shelf)
    purses: list[Purse] = field(default_factory=list)

    def actor(self, name: str, **rates: float) -> tuple[World, Faulty, Random]:
        """A separate environment for an actor: client, clock and keys; `rates` replace those of some faults."""
        random = Random(f"{self.seed} {name}")
        faulty = Faulty(self.client, replace(self.rates, **rates), self.journal, random)
        skew_ms = random.choice(SKEW_MS)

        def run(job: Job) -> Run:
            faulty.may_crash_running()
            return instant_run(job)

        world = World(
            faulty,
            now_ms=lambda: self.clock.now_ms() + skew_ms,
            run=run,
            keys=new_keys(),
            work_shards=SHARDS,
            left_ms=_left_ms,
            tiles=self.shelf,
        )
        return world, faulty, random


def rounds(
    client: Any, seed: int, escrow_count: int, *, rates: Rates = RATES, by_ticket: float = TICKET_SHARE
) -> tuple[Round, list[str], int]:
    """Runs one seed with at least `escrow_count` tasks; returns the round, the violations, and the escrow count."""
    new_table(client)
    this = Round(client, seed, rates)
    honest = World(
        Faulty(client, NO_FAULTS, this.journal, Random(seed)),
        now_ms=this.clock.now_ms,
        work_shards=SHARDS,
        keys=new_keys(),
        left_ms=_left_ms,
        tiles=this.shelf,
    )
    _deposits(honest, escrow_count)
    this.purses = _purses(this, escrow_count)
    plans = [
        _plan(Random(f"{seed} plan {pair}"), pair, -(-escrow_count // PAIRS), this.purses, by_ticket)
        for pair in range(PAIRS)
    ]
    for purse in this.purses:
        purse.planned = sum(task.purse is purse for plan in plans for task in plan)
    clients = [
        threading.Thread(target=_guarded(this, _client_story), args=(this, pair, side, plan))
        for pair, plan in enumerate(plans)
        for side in (0, 1)
    ]
    with quiet():
        _in_threads(this, [(_open_story, this, purse, side) for purse in this.purses for side in (0, 1)])
        helpers = [threading.Thread(target=_guarded(this, _sweep_story), args=(this, *each)) for each in _sweepers()]
        helpers += [
            threading.Thread(target=_guarded(this, story), args=(this,)) for story in (_teller_story, _top_up_story)
        ]
        helpers += [
            threading.Thread(target=_guarded(this, _close_story), args=(this, by_key)) for by_key in (False, True)
        ]
        for thread in clients + helpers:
            thread.start()
        for thread in clients:
            thread.join()
        this.over.set()
        for thread in helpers:
            thread.join()
    this.clock.jump(EXPIRY_MS + 2 * max(SKEW_MS))
    _sweep_all(honest)
    items = _items(client)
    found = [
        f"with open channels: {line}"
        for line in _checked(lambda: _channel_violations(this, honest, items, closed=False))
    ]
    this.clock.jump(purses.LONG_MS)
    _sweep_all(honest)
    this.clock.jump(CHANNEL_CLOSE_MS)
    _sweep_all(honest)
    items = _items(client)
    found += _checked(lambda: _channel_violations(this, honest, items, closed=True))
    found += _checked(lambda: violations(honest, items, this.journal.writes, this.answers))
    found += _statements(honest)
    for account, amount in this.moved.items():
        prefixes = tuple(f"{kind}#{account}#teller" for kind in ("IN", "OUT", "BACK"))
        moved = sum(int(item["amount"]["N"]) for item in items if item["pk"]["S"].startswith(prefixes))
        if moved != amount:
            found.append(f"{account}: movements of {amount} were confirmed, {moved} is recorded")
    settled = [item for item in items if item["pk"]["S"].startswith("ESC#") and "state" in item]
    this.ends.update(item["state"]["S"] for item in settled)
    this.ends["taken over"] = sum(int(item["fence"]["N"]) > 1 for item in settled)
    by_ticket = [item for item in settled if int(item.get("tickets", {"N": "0"})["N"])]
    this.ends["tasks by ticket"] = len(by_ticket)
    this.ends["paid judges of tickets"] = sum(
        "tickets" in item and item not in by_ticket and int(item["paid"]["N"]) > 0 for item in settled
    )
    this.ends["tickets used"] = sum(int(item["tickets"]["N"]) for item in by_ticket)
    this.ends["numbers taken out"] = sum("void_ms" in item for item in items)
    return this, this.wrong + found, len(settled)


def _checked(check: Callable[[], list[str]]) -> list[str]:
    """The violations that a check finds. A ledger that it cannot even read is one."""
    try:
        return check()
    except Exception as exc:  # noqa: BLE001 - it is reported as a violation
        return [f"the check failed: {exc!r}"]


def _items(client: Any) -> list[dict[str, Any]]:
    return [item for page in client.get_paginator("scan").paginate(TableName=TABLE) for item in page["Items"]]


def _sweep_all(world: World) -> None:
    while True:
        swept = sweep(world)
        if swept.complete and not (swept.expired or swept.credited or swept.logged or swept.closed):
            return


def _channel_violations(this: Round, world: World, items: list[dict[str, Any]], *, closed: bool) -> list[str]:
    topped = {purse.channel_id: purse.topped_micro for purse in this.purses}
    found = channel_violations(items, this.journal.writes, jwks=world.keys.jwks(), topped=topped, closed=closed)
    found += [
        line
        for purse in this.purses
        for line in purses.contradictions(purse, plain_items(items, channel_id=purse.channel_id))
    ]
    if {item["pk"]["S"] for item in items if item["pk"]["S"].startswith("CHAN#")} != {
        f"CHAN#{purse.channel_id}" for purse in this.purses
    }:
        found.append("the channels are not those that were opened")
    return found


def _in_threads(this: Round, stories: Sequence[tuple[Any, ...]]) -> None:
    threads = [threading.Thread(target=_guarded(this, story), args=args) for story, *args in stories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _statements(world: World) -> list[str]:
    """The accounts whose balance is not the sum of their statement."""
    pairs = [f"{kind}-{pair}" for pair in range(PAIRS) for kind in ("payer", "poor")]
    found = []
    owners = ("olga", "oskar", "judith", PLATFORM_ACCOUNT)
    for account in ("hot", *owners, *map(bond_account, owners), *pairs):
        total, after, more = 0, None, True
        while more:
            lines, more = world.ledger.statement(account, limit=100, after=after)
            total += sum(line.amount_micro for line in lines)
            after = (lines[-1].at_ms, lines[-1].kind, lines[-1].reference) if lines else None
        if total != (available := world.ledger.available_micro(account)):
            found.append(f"{account}: the balance is {available}, the sum of the statement is {total}")
    return found


def _deposits(world: World, escrow_count: int) -> None:
    for pair in range(PAIRS):
        world.ledger.deposit(f"payer-{pair}", "start", escrow_count * 10**5, now_ms=START_MS)
        world.ledger.deposit(f"poor-{pair}", "start", 2 * FLAT_MICRO, now_ms=START_MS)
    world.ledger.deposit("hot", "start", escrow_count * 10**5, now_ms=START_MS)
    for owner, bond in (("olga", escrow_count * 10**5), ("oskar", 3_000)):  # oskar's bond is soon used up
        world.ledger.deposit(owner, "bond", bond, now_ms=START_MS)
        world.ledger.move_bond(owner, "bond", bond, now_ms=START_MS)


def _purses(this: Round, escrow_count: int) -> list[Purse]:
    soon_ms = this.clock.now_ms() + escrow_count * EXPIRES_MS_A_TASK
    return [
        Purse(kind, soon_ms if kind.expires else START_MS + purses.LONG_MS // 2) for kind in purses.kinds(escrow_count)
    ]


def _plan(random: Random, pair: int, count: int, purses_: Sequence[Purse], by_ticket: float) -> list[Task]:
    plan = []
    for number in range(count + count // 8):  # some will have insufficient funds
        payer = random.choices((f"payer-{pair}", "hot", f"poor-{pair}"), (45, 40, 15))[0]
        agent = random.choices((HOT, FLAT, OWN, JUDGED), (64, 12, 4, 20))[0]
        budget = FLAT_MICRO + random.choice((210, 211, 4_999, FLAT_MICRO, 80_000))
        if agent == HOT and random.random() < 0.2:
            budget = 6_000 + random.randrange(20_000)  # less than some runs cost, which is the payer's fault
        judge = agent == JUDGED and random.random() < 0.5
        budget += JUDGE_MICRO * judge
        purse = None
        if random.random() < by_ticket:
            (purse,) = random.choices(purses_, [purse.kind.weight for purse in purses_])
            payer = purse.kind.payer
            budget += random.choice((0, 0, 60_000))  # several numbers of most channels
        texts = ("in", "other" if random.random() < 0.1 else "in")
        sent = [
            Sent(payer, f"p{pair}-t{number}", agent, budget, hashlib.sha256(text.encode()).hexdigest())
            for text in texts
        ]
        plan.append(Task(payer, (sent[0], sent[1]), texts, judge, purse))
    return plan


def _client_story(this: Round, pair: int, side: int, plan: Sequence[Task]) -> None:
    world, faulty, random = this.actor(f"client {pair} {side}")
    for number, planned in enumerate(plan):
        task = _numbered(planned, pair, number, random)
        if random.random() < 0.05:
            continue  # this client never sends it
        if side and random.random() < 0.3:
            time.sleep(random.uniform(0, 0.02))
        for _ in range(TRIES_MAX):
            if _try(this, world, faulty, random, task, side):
                break
        if random.random() < 0.2:
            _stray_expiry(world, task)


def _numbered(task: Task, pair: int, number: int, random: Random) -> Task:
    """A task with the number of its ticket, which depends on those that other clients have taken."""
    if task.purse is None:
        return task
    first = task.purse.claim(pair, number, task.sent[0].budget, random)
    task_id = channels.ticket_task_id(task.purse.channel_id, first)
    one, other = (replace(sent, payer=task.payer, task_id=task_id) for sent in task.sent)
    return replace(task, sent=(one, other))


def _send(world: World, random: Random, task: Task, side: int) -> Any:
    sent = task.sent[side]
    request = ask(sent.task_id, sent.agent_id, budget=sent.budget, text=task.texts[side], judge=task.judge)
    if task.purse is None:
        return execute.execute(world, task.payer, request)
    token = task.purse.ticket(request, task.asked(side))
    if random.random() < (0.4 if task.purse.kind.closes else 0.8):
        return execute.redeem(world, task.purse.channel_id, request, token)
    longest_s = random.choice(
        (TIMEOUT_S_SYNC_MAX, TIMEOUT_S_ASYNC_MAX)
    )  # as for the queue, which holds each task first
    return execute.execute(world, tickets.accept(world, token, request), request, timeout_s_max=longest_s)


def _refused(this: Round, task: Task, side: int, refusal: QuittanceError) -> bool:
    """Notes why a channel did not pay; True if the client will not repeat its request."""
    purse, asked = task.purse, task.asked(side)
    name = type(refusal).__name__.removesuffix("Error")
    this.ends[name] += 1
    if purse is None:
        this.wrong.append(f"{task.sent[side]}: {refusal!r} without a channel")
        return True
    kind = purse.kind
    may = {
        "TicketUsed": True,
        "ChannelClosed": kind.closes or kind.expires,
        "ChannelExpired": kind.expires,
        "AgentNotAllowed": bool(kind.agents) and (asked.agent_id not in kind.agents or task.judge),
        "TicketTooSmall": kind.max_per_task_micro is not None and asked.budget > kind.max_per_task_micro,
        "TicketInvalid": "far beyond" in str(refusal) or ("covers" in str(refusal) and kind.tickets < 10),
    }
    if not may[name]:
        this.wrong.append(f"{kind.name}: {asked} was refused: {refusal}")
    if isinstance(refusal, TicketUsedError):
        purse.refuse(asked)
    if isinstance(refusal, TicketInvalidError):
        time.sleep(this.rates.lease_s / 4)  # a sweep may replace numbers, another task may grant some
        purse.forget(asked.first)
        return False
    return True


def _try(this: Round, world: World, faulty: Faulty, random: Random, task: Task, side: int) -> bool:
    """Sends one request of a client; True if the client will not repeat it."""
    sent = task.sent[side]
    begun = world.now_ms()
    faulty.fence = None
    world.begin(lambda: LIFE_MS - (world.now_ms() - begun))
    try:
        answer = _send(world, random, task, side)
    except Crash:
        this.ends["crashed"] += 1
        return random.random() < 0.5
    except TaskConflictError:
        if task.texts[0] == task.texts[1]:
            this.wrong.append(f"{sent}: a conflict was reported for equal bodies")
        return True
    except (InsufficientFundsError, BondTooLowError) as exc:
        this.ends["no funds" if isinstance(exc, InsufficientFundsError) else "no bond"] += 1
        if task.purse and isinstance(exc, InsufficientFundsError):
            this.wrong.append(f"{sent}: the payer's balance was asked for, though a ticket pays")
        return True
    except (
        TicketUsedError,
        ChannelClosedError,
        ChannelExpiredError,
        AgentNotAllowedError,
        TicketTooSmallError,
        TicketInvalidError,
    ) as refusal:
        return _refused(this, task, side, refusal)
    except QuittanceError as exc:  # in progress, or unavailable
        patience = this.rates.lease_s * 1.1 if random.random() < 0.4 else (exc.retry_after_s or 1) / SPEED
        time.sleep(min(patience, this.rates.lease_s * 1.1))
        return random.random() < 0.1
    if not isinstance(answer, TaskResult):
        answer = _poll(world, task) or answer
    if isinstance(answer, TaskResult):
        this.answers.append(Answer(sent, answer))
    return True


def _poll(world: World, task: Task) -> TaskResult | None:
    try:
        answer = result.read(world, Caller(task.payer), task.sent[0].task_id)
    except (Crash, NotFoundError, PlatformUnavailableError):
        return None
    return answer if isinstance(answer, TaskResult) else None


def _stray_expiry(world: World, task: Task) -> None:
    """Tries to expire an escrow at any time; only the ledger's condition prevents it before the expiry."""
    try:
        escrow = world.ledger.find(channels.escrow_id_of(task.payer, task.sent[0].task_id))
        if escrow is not None and (task.purse is None or escrow.settlement is None):  # its receipt needs the ticket
            bare = replace(escrow, settlement=None)
            settlement = escrows.expire(bare, now_ms=world.now_ms())
            world.ledger.expire(bare, settle.signed_expiry(world, bare, settlement))
    except (Crash, PlatformUnavailableError):
        pass


def _log(world: World) -> None:
    """Writes the log, as a sweep does while drains run."""
    appended: dict[int, list[bytes]] = {}
    latest = Latest()
    for batch_ids in world.ledger.log.waiting():
        for each in world.ledger.log.append(batch_ids, latest):
            appended |= {first: [leaf_hash(one.encode()) for one in receipts] for first, receipts in each.items()}
    publish_log(world, appended)


def _sweepers() -> Iterator[tuple[str, Callable[[World], object]]]:
    """Whatever sweeps at the same time: whole sweeps, drains of different work shards and of the same, and the log."""
    for number in range(2):
        yield f"sweep {number}", sweep
        for step, shard in (*product(("refund", "credit"), range(SHARDS)), ("close", None)):
            yield f"{step} {shard} {number}", partial(drain, event={"step": step, "shard": shard})
    yield "log", _log
    yield "sweep that stalls", sweep


def _sweep_story(this: Round, name: str, work: Callable[[World], object]) -> None:
    """Sweeps, drains or logs again and again."""
    world, _, random = this.actor(name, pause=0.04 if name.endswith("stalls") else this.rates.pause)
    while not this.over.wait(random.uniform(0.05, 0.4)):
        begun = world.now_ms()
        try:
            world.begin(lambda begun=begun: 60_000 - (world.now_ms() - begun))  # type: ignore[misc]  # bound now
            work(world)
        except Crash:
            this.ends["sweep crashed"] += 1
        except PlatformUnavailableError:
            this.ends["sweep unavailable"] += 1


def _teller_story(this: Round) -> None:
    """Deposits and withdrawals, each repeated under its id until its outcome is known."""
    world, _, random = this.actor("teller")
    number = 0
    while not this.over.wait(random.uniform(0.02, 0.1)):
        number += 1
        account = random.choice(("hot", "payer-0", "olga", PLATFORM_ACCOUNT))
        amount, kind = random.randrange(1, 5 * FLAT_MICRO), random.choice(("deposit", "withdraw", "fill", "release"))
        for _ in range(20):
            try:
                _move(world, kind, account, f"teller-{number}", amount)
            except (Crash, PlatformUnavailableError):
                continue
            except InsufficientFundsError:
                break
            this.moved[account] += {"deposit": amount, "withdraw": -amount}.get(kind, 0)
            if kind == "withdraw" and random.random() < 0.7:
                this.moved[account] += _decided(this, world, account, f"teller-{number}", amount, random)
            break
        else:
            this.wrong.append(f"teller-{number}: the outcome of the movement is unknown")


def _open_story(this: Round, purse: Purse, side: int) -> None:
    world, _, _ = this.actor(f"opener {purse.kind.name} {side}")
    if wrong := purses.open_purse(world, purse):
        this.wrong.append(wrong)


def _top_up_story(this: Round) -> None:
    """Tops channels up, those that can be closed meanwhile too."""
    world, _, random = this.actor("topper")
    number = 0
    while not this.over.wait(random.uniform(0.02, 0.2)):
        number += 1
        purse = random.choice([purse for purse in this.purses if purse.kind.topped or purse.kind.closes])
        if wrong := purses.top_up(world, purse, number, random):
            this.wrong.append(wrong)


def _close_story(this: Round, by_key: bool) -> None:
    """Closes channels once a share of their tasks was sent: payer and key at about the same time."""
    world, _, random = this.actor(f"closer {by_key}")
    for purse in this.purses:
        if purse.kind.closes:
            while len(purse.claimed) < purse.planned * purse.kind.closes and not this.over.wait(
                random.uniform(0.01, 0.05)
            ):
                pass
            if wrong := purses.close(world, purse, by_key=by_key):
                this.wrong.append(wrong)


def _decided(this: Round, world: World, account: str, name: str, amount: int, random: Random) -> int:
    """Decides the payout of a withdrawal until the outcome is known; returns the amount that comes back."""
    state = random.choice((PayoutState.PAID, PayoutState.FAILED))
    for _ in range(20):
        try:
            payout = world.ledger.payout(account, name)
            if payout and payout.state is PayoutState.REQUESTED:
                payout = world.ledger.decide_payout(payout, state, by="teller", now_ms=world.now_ms())
        except (Crash, PlatformUnavailableError):
            continue
        if payout is None or payout.state is not state:
            this.wrong.append(f"{name}: {state} was decided, {payout} is stored")
        return amount if state is PayoutState.FAILED else 0
    this.wrong.append(f"{name}: the outcome of the payout is unknown")
    return 0


def _move(world: World, kind: str, account: str, name: str, amount: int) -> None:
    """Makes one movement of an account or of olga's bond, without checking whether the bond may be released."""
    if kind in {"deposit", "withdraw"}:
        getattr(world.ledger, kind)(account, name, amount, now_ms=world.now_ms())
    else:
        world.ledger.move_bond("olga", name, amount if kind == "fill" else -amount, now_ms=world.now_ms())


def _guarded(this: Round, story: Callable[..., None]) -> Callable[..., None]:
    """Records every unexpected exception as a violation: it is a bug of the ledger or of the harness."""

    def guarded(*args: Any) -> None:
        try:
            story(*args)
        except BaseException as exc:  # noqa: BLE001 - it is reported as a violation
            this.wrong.append(f"{story.__name__}{args[1:3]!s:.60}: {exc!r}")

    return guarded


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the ledger with faults.")
    parser.add_argument("--engine", choices=ENGINES, default="ministack")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--escrows", type=int, default=1_000, help="of each seed")
    parser.add_argument("--by-ticket", type=float, default=TICKET_SHARE, help="share of the tasks that tickets pay")
    asked = parser.parse_args()
    escrow_count, faults, ends, failed = 0, Counter[str](), Counter[str](), 0
    begun = time.monotonic()
    clouds.hold_lifeline()
    with engine(asked.engine) as url:
        client = client_of(url)
        for seed in range(asked.first, asked.first + asked.seeds):
            began = time.monotonic()
            measures = ("quittance.observability.measure", "quittance.usecases.sweep.measure")
            with quiet(), mock.patch(measures[0]), mock.patch(measures[1]):  # no lines between the results
                this, found, count = rounds(client, seed, asked.escrows, by_ticket=asked.by_ticket)
            escrow_count += count
            faults += this.journal.faults
            ends += this.ends
            failed += bool(found)
            _say(f"seed {seed}: {count} escrows, {len(found)} violations, {time.monotonic() - began:.0f} s")
            for line in found[:20]:
                _say(f"  {line}")
    _say(f"{asked.engine}: {asked.seeds} seeds, {escrow_count} escrows, {time.monotonic() - begun:.0f} s")
    for name, counted in (("ends", ends), ("faults", faults)):
        _say(f"{name}: " + ", ".join(f"{what} {count}" for what, count in sorted(counted.items())))
    _say(f"violations in {failed} seeds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
