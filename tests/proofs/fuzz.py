"""Fuzzes the ledger with faults: many actors, one real DynamoDB engine, and everything that can go wrong.

    python tests/proofs/fuzz.py --seeds 20 --escrows 1000 --engine ministack      # what `make fuzz-ledger` does
    python tests/proofs/fuzz.py --first 17 --seeds 1 --engine dynoxide            # one seed, another engine

The real use cases run (`tasks.execute`, `tasks.result`, `sweeping.sweep`) over a client that crashes, loses answers,
meets conflicts and throttles, stalls, and shows an old index (faults.py). Pairs of clients send the same tasks, one
pair in ten with another body; most go to one agent and one payer; clocks differ; two sweeps run; money comes and goes
meanwhile. Then time is moved past every expiry, a sweep without faults ends what is open, and everything is checked
(checks.py). A seed repeats the faults, not the order of the threads. Exit status 1 if anything is violated.

The platform's clock runs `SPEED` times as fast as real time, so leases and expiries keep their true lengths.
"""

import argparse
import hashlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from quittance.api.identity import Caller
from quittance.ledger import escrow as escrows
from quittance.usecases import execute, result, settle

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "layers" / "runtime"))


from quittance.api.models import TaskResult
from quittance.errors import (
    BondTooLowError,
    InsufficientFundsError,
    NotFoundError,
    PlatformUnavailableError,
    QuittanceError,
    TaskConflictError,
)
from quittance.ledger.balances import bond_account
from quittance.ledger.journal import PayoutState
from quittance.limits import CALL_MS_MAX, ESCROW_GRACE_MS
from quittance.run import Job, Run
from quittance.usecases.sweep import sweep
from tests import clouds
from tests.proofs.checks import Answer, Sent, violations
from tests.proofs.engines import ENGINES, client_of, engine, new_table
from tests.proofs.faults import Crash, Faulty, Journal, Rates
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
RATES = Rates(lease_s=LEASE_MS / SPEED / 1_000, expiry_s=EXPIRY_MS / SPEED / 1_000)

NO_FAULTS = Rates(**dict.fromkeys((rate.name for rate in fields(Rates)), 0.0))


def _left_ms() -> int:
    """How long the ledger tries again, in real time: a tenth of a second."""
    return CALL_MS_MAX + 100


class Clock:
    """Time as the platform sees it: faster than real, and movable."""

    def __init__(self) -> None:
        self._began, self._jumped = time.monotonic(), 0

    def now_ms(self) -> int:
        return START_MS + self._jumped + int((time.monotonic() - self._began) * 1_000 * SPEED)

    def jump(self, ms: int) -> None:
        self._jumped += ms


@dataclass(frozen=True)
class Task:
    """What a pair of clients will send."""

    payer: str
    sent: tuple[Sent, Sent]
    texts: tuple[str, str]
    judge: bool


@dataclass
class Round:
    """One seed's actors and what they saw."""

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

    def actor(self, name: str) -> tuple[World, Faulty, Random]:
        """An environment of its own: client, clock, keys."""
        random = Random(f"{self.seed} {name}")
        faulty = Faulty(self.client, self.rates, self.journal, random)
        skew_ms = random.choice(SKEW_MS)

        def run(job: Job) -> Run:
            faulty.may_crash_running()
            return instant_run(job)

        world = World(
            faulty,
            now_ms=lambda: self.clock.now_ms() + skew_ms,
            run=run,
            keys=new_keys(),
            shards=SHARDS,
            left_ms=_left_ms,
            tiles=self.shelf,
        )
        return world, faulty, random


def rounds(client: Any, seed: int, escrow_count: int, *, rates: Rates = RATES) -> tuple[Round, list[str], int]:
    """One seed of at least `escrow_count` tasks: the round, what was violated, and how many escrows there were."""
    new_table(client)
    this = Round(client, seed, rates)
    honest = World(
        Faulty(client, NO_FAULTS, this.journal, Random(seed)),
        now_ms=this.clock.now_ms,
        shards=SHARDS,
        keys=new_keys(),
        left_ms=_left_ms,
        tiles=this.shelf,
    )
    _deposits(honest, escrow_count)
    plans = [_plan(Random(f"{seed} plan {pair}"), pair, -(-escrow_count // PAIRS)) for pair in range(PAIRS)]
    clients = [
        threading.Thread(target=_guarded(this, _client_story), args=(this, pair, side, plan))
        for pair, plan in enumerate(plans)
        for side in (0, 1)
    ]
    helpers = [threading.Thread(target=_guarded(this, _sweep_story), args=(this, number)) for number in range(2)]
    helpers.append(threading.Thread(target=_guarded(this, _teller_story), args=(this,)))
    with quiet():
        for thread in clients + helpers:
            thread.start()
        for thread in clients:
            thread.join()
        this.over.set()
        for thread in helpers:
            thread.join()
    this.clock.jump(EXPIRY_MS + 2 * max(SKEW_MS))
    while not (swept := sweep(honest)).complete or swept.expired or swept.credited or swept.logged:
        pass
    items = [item for page in client.get_paginator("scan").paginate(TableName=TABLE) for item in page["Items"]]
    found = violations(honest, items, this.journal.writes, this.answers)
    found += _statements(honest)
    for account, amount in this.moved.items():
        told = tuple(f"{kind}#{account}#teller" for kind in ("IN", "OUT", "BACK"))
        moved = sum(int(item["amount"]["N"]) for item in items if item["pk"]["S"].startswith(told))
        if moved != amount:
            found.append(f"{account}: {amount} were told to be moved, {moved} are recorded")
    settled = [item for item in items if item["pk"]["S"].startswith("ESC#")]
    this.ends.update(item["state"]["S"] for item in settled)
    this.ends["taken over"] = sum(int(item["fence"]["N"]) > 1 for item in settled)
    return this, this.wrong + found, len(settled)


def _statements(world: World) -> list[str]:
    """Who has what the lines of the statement do not add up to."""
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
            found.append(f"{account}: has {available}, its statement says {total}")
    return found


def _deposits(world: World, escrow_count: int) -> None:
    for pair in range(PAIRS):
        world.ledger.deposit(f"payer-{pair}", "start", escrow_count * 10**5, now_ms=START_MS)
        world.ledger.deposit(f"poor-{pair}", "start", 5 * FLAT_MICRO, now_ms=START_MS)
    world.ledger.deposit("hot", "start", escrow_count * 10**5, now_ms=START_MS)
    for owner, bond in (("olga", escrow_count * 10**5), ("oskar", 3_000)):  # oskar's is soon used up
        world.ledger.deposit(owner, "bond", bond, now_ms=START_MS)
        world.ledger.move_bond(owner, "bond", bond, now_ms=START_MS)


def _plan(random: Random, pair: int, count: int) -> list[Task]:
    plan = []
    for number in range(count + count // 8):  # some will not find the money
        payer = random.choices((f"payer-{pair}", "hot", f"poor-{pair}"), (45, 45, 10))[0]
        agent = random.choices((HOT, FLAT, OWN, JUDGED), (64, 12, 4, 20))[0]
        budget = FLAT_MICRO + random.choice((210, 211, 4_999, FLAT_MICRO, 80_000))
        if agent == HOT and random.random() < 0.2:
            budget = 6_000 + random.randrange(20_000)  # less than what some runs cost: the payer's fault
        judge = agent == JUDGED and random.random() < 0.5
        budget += JUDGE_MICRO * judge
        texts = ("in", "other" if random.random() < 0.1 else "in")
        sent = [
            Sent(payer, f"p{pair}-t{number}", agent, budget, hashlib.sha256(text.encode()).hexdigest())
            for text in texts
        ]
        plan.append(Task(payer, (sent[0], sent[1]), texts, judge))
    return plan


def _client_story(this: Round, pair: int, side: int, plan: Sequence[Task]) -> None:
    world, faulty, random = this.actor(f"client {pair} {side}")
    for task in plan:
        if random.random() < 0.05:
            continue  # this side never sends it
        if side and random.random() < 0.3:
            time.sleep(random.uniform(0, 0.02))
        for _ in range(TRIES_MAX):
            if _try(this, world, faulty, random, task, side):
                break
        if random.random() < 0.2:
            _stray_expiry(world, task)


def _try(this: Round, world: World, faulty: Faulty, random: Random, task: Task, side: int) -> bool:
    """One request of a client; True if the client asks no more."""
    sent = task.sent[side]
    request = ask(sent.task_id, sent.agent_id, budget=sent.budget, text=task.texts[side], judge=task.judge)
    begun = world.now_ms()
    faulty.fence = None
    world.begin(lambda: LIFE_MS - (world.now_ms() - begun))
    try:
        answer = execute.execute(world, task.payer, request)
    except Crash:
        this.ends["crashed"] += 1
        return random.random() < 0.5
    except TaskConflictError:
        if task.texts[0] == task.texts[1]:
            this.wrong.append(f"{sent}: told of a conflict that was none")
        return True
    except InsufficientFundsError:
        this.ends["no funds"] += 1
        return True
    except BondTooLowError:
        this.ends["no bond"] += 1
        return True
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
    """Somebody who would expire an escrow before its time, were it not for the ledger's condition."""
    try:
        escrow = world.ledger.find(escrows.escrow_id(task.payer, task.sent[0].task_id))
        if escrow is not None:
            bare = replace(escrow, settlement=None)
            settlement = escrows.expire(bare, now_ms=world.now_ms())
            world.ledger.expire(bare, settle.signed_expiry(world, bare, settlement))
    except (Crash, PlatformUnavailableError):
        pass


def _sweep_story(this: Round, number: int) -> None:
    world, _, random = this.actor(f"sweep {number}")
    while not this.over.wait(random.uniform(0.05, 0.4)):
        begun = world.now_ms()
        try:
            world.begin(lambda begun=begun: 60_000 - (world.now_ms() - begun))  # type: ignore[misc]  # bound now
            sweep(world)
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
                _tell(world, kind, account, f"teller-{number}", amount)
            except (Crash, PlatformUnavailableError):
                continue
            except InsufficientFundsError:
                break
            this.moved[account] += {"deposit": amount, "withdraw": -amount}.get(kind, 0)
            if kind == "withdraw" and random.random() < 0.7:
                this.moved[account] += _decided(this, world, account, f"teller-{number}", amount, random)
            break
        else:
            this.wrong.append(f"teller-{number}: never known")


def _decided(this: Round, world: World, account: str, name: str, amount: int, random: Random) -> int:
    """What comes back of a withdrawal whose payout is decided, until that is known."""
    state = random.choice((PayoutState.PAID, PayoutState.FAILED))
    for _ in range(20):
        try:
            payout = world.ledger.payout(account, name)
            if payout and payout.state is PayoutState.REQUESTED:
                payout = world.ledger.decide_payout(payout, state, by="teller", now_ms=world.now_ms())
        except (Crash, PlatformUnavailableError):
            continue
        if payout is None or payout.state is not state:
            this.wrong.append(f"{name}: {state} was decided, {payout} stands")
        return amount if state is PayoutState.FAILED else 0
    this.wrong.append(f"{name}: its payout is never known")
    return 0


def _tell(world: World, kind: str, account: str, name: str, amount: int) -> None:
    """One movement, of an account or of olga's bond; the bond is moved whatever it is needed for."""
    if kind in {"deposit", "withdraw"}:
        getattr(world.ledger, kind)(account, name, amount, now_ms=world.now_ms())
    else:
        world.ledger.move_bond("olga", name, amount if kind == "fill" else -amount, now_ms=world.now_ms())


def _guarded(this: Round, story: Callable[..., None]) -> Callable[..., None]:
    """Whatever else a story raises is a bug, of the ledger or of the harness."""

    def tell(*args: Any) -> None:
        try:
            story(*args)
        except BaseException as exc:  # noqa: BLE001 - it ends up among the violations
            this.wrong.append(f"{story.__name__}{args[1:3]}: {exc!r}")

    return tell


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the ledger with faults.")
    parser.add_argument("--engine", choices=ENGINES, default="ministack")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--escrows", type=int, default=1_000, help="of each seed")
    asked = parser.parse_args()
    escrow_count, faults, ends, failed = 0, Counter[str](), Counter[str](), 0
    begun = time.monotonic()
    clouds.hold_lifeline()
    with engine(asked.engine) as url:
        client = client_of(url)
        for seed in range(asked.first, asked.first + asked.seeds):
            began = time.monotonic()
            with quiet(), mock.patch("quittance.observability.measure"):  # nothing among the results but results
                this, found, count = rounds(client, seed, asked.escrows)
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
