"""Attacks on payment channels, by payers, by holders of a key, and by crashes, on the in-memory ledger."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quittance.api.identity import Caller
from quittance.api.models import (
    ChannelAnswer,
    ChannelRequest,
    DirectTaskRequest,
    TaskPending,
    TaskRequest,
    TaskResult,
    TopUpRequest,
)
from quittance.errors import (
    AgentNotAllowedError,
    ChannelClosedError,
    ChannelExpiredError,
    InvalidRequestError,
    PlatformUnavailableError,
    TicketInvalidError,
    TicketTooSmallError,
    TicketUsedError,
)
from quittance.ledger.channels import Channel, ChannelState, ticket_escrow_id
from quittance.limits import (
    CHANNEL_CLOSE_MS,
    CHANNEL_GRANT_MAX,
    CONTEST_MS,
    CONTESTS_MAX,
    TICKET_CHARS_MAX,
    TICKET_NUMBER_MAX,
    TICKETS_PER_JUDGED_TASK_MAX,
    TICKETS_PER_TASK_MAX,
)
from quittance.proof import receipt, ticket
from quittance.run import Job, Meter, Outcome, Run
from quittance.store.ledger import left_funded, listed_change
from quittance.store.queue import Delivery, NotDoneError
from quittance.usecases import channels, deadletter, execute, result, sweep, work
from tests.proofs.memory import Memory
from tests.proofs.world import (
    FLAT,
    FLAT_MICRO,
    JUDGE,
    JUDGE_MICRO,
    JUDGED,
    LIFE_MS,
    START_MS,
    World,
    ask,
    fill_bonds,
    micro,
    quiet,
)
from tests.tickets import claims_for, jwk, signed

PAYER, RICH = "alice", 10**12
TICKET = 2 * FLAT_MICRO
KEY = Ed25519PrivateKey.generate()


def succeed(job: Job) -> Run:
    """A run that succeeds; a judge accepts."""
    output = b"0.9" if job.artefact_sha256 == "judge" else b"done"
    meter = Meter(fuel=1_000, wall_ms=5, input_bytes=len(job.stdin), output_bytes=len(output))
    return Run(Outcome.SUCCEEDED, "", meter, 0, output)


def fail_with(outcome: Outcome) -> Callable[[Job], Run]:
    """A run that ends without an output."""

    def run(job: Job) -> Run:
        code = 3 if outcome is Outcome.EXIT_CODE else None
        wall_ms = job.timeout_ms if outcome is Outcome.TIMEOUT else 5
        return Run(outcome, "It failed.", Meter(fuel=1_000, wall_ms=wall_ms, input_bytes=len(job.stdin)), code)

    return run


class Table(Memory):
    """The in-memory table, with the conditional put of a single item."""

    def put_item(self, **call: Any) -> dict[str, Any]:
        item, holds = self._changed(call)
        if not holds:
            response: Any = {
                "Error": {"Code": "ConditionalCheckFailedException"},
                "Item": dict(self.items[item["pk"]["S"]]),
            }
            raise ClientError(response, "PutItem")
        self.items[item["pk"]["S"]] = item
        return {}


@dataclass
class Stage:
    """A ledger with a clock, and environments that share them."""

    memory: Table = field(default_factory=Table)
    now_ms: int = START_MS
    runs: int = 0
    during: Callable[[], object] | None = None
    outcome: Callable[[Job], Run] = succeed
    client: Any = None

    def world(self, client: Any = None) -> World:
        """A new environment."""
        return World(client or self.memory, now_ms=lambda: self.now_ms, run=self._run, left_ms=lambda: 5_000)

    def _run(self, job: Job) -> Run:
        self.runs += 1
        during, self.during = self.during, None
        if during:
            during()
        return self.outcome(job)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with quiet():
        made = Stage()
        world = made.world()
        fill_bonds(world)
        world.ledger.deposit(PAYER, "deposit", RICH, now_ms=START_MS)
        yield made


def opened(stage: Stage, *, tickets: int = 200, value: int = TICKET, salt: str = "s", **more: Any) -> ChannelAnswer:
    """A channel of the payer."""
    asked = {
        "salt": salt,
        "key": jwk(KEY),
        "ticket_value": micro(value),
        "tickets": tickets,
        "expires_at": "2027-02-01T00:00:00Z",
    }
    return channels.open_channel(stage.world(), Caller(PAYER), ChannelRequest.model_validate(asked | more))


def sign(of: ChannelAnswer, request: TaskRequest, *, now_ms: int = START_MS, **over: Any) -> str:
    """The ticket for a request."""
    named = {"iss": of.issuer, "channel": of.channel_id, "exp": now_ms // 1_000 + 600}
    return signed(claims_for(request, **(named | over)), KEY)


def pay(
    world: World, channel: ChannelAnswer, number: int, *, agent: str = FLAT, now_ms: int = START_MS, **more: Any
) -> TaskResult | TaskPending:
    """Redeems a ticket for a task."""
    request = ask(f"{channel.channel_id}.{number}", agent, **more)
    return execute.redeem(world, channel.channel_id, request, sign(channel, request, now_ms=now_ms))


def stored(stage: Stage, channel: ChannelAnswer) -> Channel:
    return stage.world().channels.get(channel.channel_id)


def closed(stage: Stage, channel: ChannelAnswer) -> Channel:
    """The channel after it was closed and its tickets were counted."""
    channels.close(stage.world(), Caller(PAYER), channel.channel_id)
    for _ in range(3):
        stage.now_ms += CHANNEL_CLOSE_MS + 1
        sweep.sweep(stage.world())
    return stored(stage, channel)


# What an honest user needs.


def test_first_task_of_a_channel_may_take_many_tickets(stage: Stage) -> None:
    channel = opened(stage, value=FLAT_MICRO // 30)
    done = pay(stage.world(), channel, 1, budget=80 * (FLAT_MICRO // 30))
    assert isinstance(done, TaskResult)
    assert done.success


@pytest.mark.parametrize("count", [TICKETS_PER_TASK_MAX, TICKETS_PER_TASK_MAX - 1])
def test_new_channel_takes_the_largest_task(stage: Stage, count: int) -> None:
    channel = opened(stage, value=FLAT_MICRO // 30)
    assert pay(stage.world(), channel, 1, budget=count * (FLAT_MICRO // 30)).agent_id == FLAT


def test_parallel_tickets_of_a_new_channel_may_arrive_in_any_order(stage: Stage) -> None:
    channel = opened(stage)
    for number in range(CHANNEL_GRANT_MAX, 0, -9):
        assert isinstance(pay(stage.world(), channel, number), TaskResult)


class Rivals:
    """A client before each of whose grants another environment grants some numbers."""

    def __init__(self, table: Table, pk: str) -> None:
        self._table, self._pk, self.rivals = table, pk, 6

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def update_item(self, **call: Any) -> dict[str, Any]:
        if self.rivals and "granted" in call["ExpressionAttributeNames"].values():
            self.rivals -= 1
            item = self._table.items[self._pk]
            granted = int(item["granted"]["N"]) + 9
            self._table.items[self._pk] = {**item, "granted": {"N": str(granted)}}
        return self._table.update_item(**call)


def test_rival_grants_refuse_no_ticket(stage: Stage) -> None:
    channel = opened(stage)
    rivals = Rivals(stage.memory, f"CHAN#{channel.channel_id}")
    assert isinstance(pay(stage.world(rivals), channel, CHANNEL_GRANT_MAX), TaskResult)
    assert rivals.rivals == 0


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome.SUCCEEDED,
        Outcome.EXIT_CODE,
        Outcome.TRAP_UNREACHABLE,
        Outcome.TIMEOUT,
        Outcome.FUEL_EXHAUSTED,
        Outcome.OUTPUT_LIMIT,
        Outcome.WORKER_LOST,
    ],
)
@pytest.mark.parametrize("rules", [None, {"min_bytes": 1}, {"min_bytes": 100}])
@pytest.mark.parametrize("agent", [FLAT, JUDGED])
def test_every_outcome_has_a_valid_receipt(
    stage: Stage, outcome: Outcome, rules: dict[str, Any] | None, agent: str
) -> None:
    channel = opened(stage, value=10 * FLAT_MICRO)
    asked: dict[str, Any] = {
        "task_id": f"{channel.channel_id}.1",
        "agent_id": agent,
        "input": "in",
        "budget": micro(TICKET),
        "timeout": 2,
    }
    request = TaskRequest.model_validate(asked | ({"acceptance": rules} if rules else {}))
    if outcome is not Outcome.SUCCEEDED:
        stage.outcome = fail_with(outcome)
    world = stage.world()
    done = execute.redeem(world, channel.channel_id, request, sign(channel, request))
    assert isinstance(done, TaskResult)
    claims = receipt.verify(done.receipt, world.keys.jwks())
    due = outcome if outcome is not Outcome.SUCCEEDED or not rules or rules["min_bytes"] == 1 else Outcome.REJECTED
    assert (claims["v"], claims["outcome"]) == (3, due)


# A payer who wants computing for nothing.


def test_a_used_ticket_runs_nothing_again(stage: Stage) -> None:
    channel = opened(stage)
    first = pay(stage.world(), channel, 1)
    for _ in range(5):
        assert pay(stage.world(), channel, 1) == first
    with pytest.raises(TicketUsedError):
        pay(stage.world(), channel, 1, text="other")
    assert stage.runs == 1


def test_overlapping_numbers_pay_one_task(stage: Stage) -> None:
    channel = opened(stage, value=FLAT_MICRO)
    pay(stage.world(), channel, 2)  # takes 2 and 3
    for number in (1, 3):
        with pytest.raises(TicketUsedError):
            pay(stage.world(), channel, number)
    assert stage.runs == 1


def test_rival_request_gets_no_output_and_contests_the_channel(stage: Stage) -> None:
    channel = opened(stage)
    stage.during = lambda: pay(stage.world(), channel, 1, text="rival")
    with pytest.raises(TicketUsedError):
        pay(stage.world(), channel, 1)
    assert stored(stage, channel).contested

    def refused() -> None:
        with pytest.raises(TicketUsedError):
            pay(stage.world(), channel, 2, text="rival")

    stage.during = refused
    pay(stage.world(), channel, 2)
    assert stage.runs == 3


def test_rival_of_a_later_number_contests_the_channel(stage: Stage) -> None:
    channel = opened(stage, value=FLAT_MICRO)
    stage.during = lambda: pay(stage.world(), channel, 2)
    with pytest.raises(TicketUsedError):
        pay(stage.world(), channel, 1)
    assert stored(stage, channel).contested


def test_new_channels_of_a_payer_give_no_new_unpaid_runs(stage: Stage) -> None:
    def attack(salt: str) -> None:
        channel = opened(stage, salt=salt)
        pay_now = partial(pay, channel=channel, number=1, now_ms=stage.now_ms)

        def rival() -> None:
            with suppress(TicketUsedError):
                pay_now(stage.world(), text="rival")

        stage.during = rival
        with suppress(TicketUsedError):
            pay_now(stage.world())

    for number in range(CONTESTS_MAX + 1):
        attack(f"first-{number}")
    before = stage.runs
    for salt in ("second", "third"):
        attack(salt)
    assert stage.runs == before + 2, "every further channel runs one task that nobody pays"
    stage.now_ms += CONTEST_MS
    attack("the-next-day")
    assert stage.runs == before + 4


# A thief with the channel's key, which is limited to some agents.


def test_a_key_limited_to_agents_cannot_pay_another_judge(stage: Stage) -> None:
    channel = opened(stage, value=10 * FLAT_MICRO, agents=[JUDGED])
    budget = 2 * FLAT_MICRO + JUDGE_MICRO
    with pytest.raises(AgentNotAllowedError):
        pay(stage.world(), channel, 1, agent=JUDGED, budget=budget, judge=True)
    assert stage.runs == 0
    both = opened(stage, value=10 * FLAT_MICRO, salt="both", agents=[JUDGED, JUDGE])
    assert pay(stage.world(), both, 1, agent=JUDGED, budget=budget, judge=True).agent_id == JUDGED


def test_agents_own_judge_needs_no_permission(stage: Stage) -> None:
    channel = opened(stage, value=10 * FLAT_MICRO, agents=[JUDGED])
    assert isinstance(pay(stage.world(), channel, 1, agent=JUDGED), TaskResult)


# A holder of the key who makes closing dear.


def test_refused_tasks_grant_no_numbers(stage: Stage) -> None:
    channel = opened(stage)
    before = stored(stage, channel).granted
    stage.now_ms = stored(stage, channel).expires_ms - 1_000
    for number in (before + 1, 2 * before):
        with pytest.raises(ChannelExpiredError):
            pay(stage.world(), channel, number, now_ms=stage.now_ms)
    assert stored(stage, channel).granted == before


def test_a_number_far_ahead_is_refused_and_grants_nothing(stage: Stage) -> None:
    channel = opened(stage, tickets=10_000)
    before = stored(stage, channel).granted
    with pytest.raises(TicketInvalidError, match="far beyond"):
        pay(stage.world(), channel, before + CHANNEL_GRANT_MAX + 1)
    assert stored(stage, channel).granted == before


class Slow:
    """A client each of whose calls takes some of the invocation's time."""

    def __init__(self, table: Table) -> None:
        self._table, self.left_ms = table, LIFE_MS

    def __getattr__(self, name: str) -> Any:
        self.left_ms -= 200
        return getattr(self._table, name)


def test_large_channels_do_not_keep_others_open(stage: Stage) -> None:
    large = [opened(stage, tickets=10_000, value=1, salt=f"large-{number}") for number in range(3)]
    for channel in large:  # as if tasks had used a number in a hundred
        pk = f"CHAN#{channel.channel_id}"
        stage.memory.items[pk] = {**stage.memory.items[pk], "granted": {"N": "10000"}}
        channels.close(stage.world(), Caller(PAYER), channel.channel_id)
        stage.now_ms += 1
    small = opened(stage, salt="small")
    channels.close(stage.world(), Caller(PAYER), small.channel_id)
    stage.now_ms += CHANNEL_CLOSE_MS
    for _ in range(2):
        client = Slow(stage.memory)
        world = stage.world(client)
        world.begin(partial(getattr, client, "left_ms"))
        sweep.sweep(world)
        stage.now_ms += 60_000
    assert stored(stage, small).state is ChannelState.CLOSED
    assert stored(stage, large[0]).state is ChannelState.CLOSING
    for _ in range(3):
        sweep.sweep(stage.world())
    assert {stored(stage, channel).state for channel in large} == {ChannelState.CLOSED}
    assert stage.world().ledger.available_micro(PAYER) == RICH


@pytest.mark.parametrize("damage", ["missing", "closed"])
def test_a_damaged_channel_delays_no_other_credits(stage: Stage, damage: str) -> None:
    damaged, sound = opened(stage, salt="damaged"), opened(stage, salt="sound")
    for channel in (damaged, sound):
        pay(stage.world(), channel, 1)
    pk = f"CHAN#{damaged.channel_id}"
    if damage == "missing":
        del stage.memory.items[pk]
    else:
        stage.memory.items[pk] = {**stage.memory.items[pk], "closed_ms": {"N": "1"}}
    done = sweep.sweep(stage.world())
    assert (done.credited, done.failed) == (1, 1)
    assert stored(stage, sound).swept == 1


# Top-ups.


def test_top_up_cannot_pass_the_highest_number(stage: Stage) -> None:
    channel = opened(stage, tickets=10_000, value=1)
    for topup in range(98):
        channels.top_up(
            stage.world(), Caller(PAYER), channel.channel_id, TopUpRequest(topup_id=f"t{topup}", tickets=10_000)
        )
    last = TopUpRequest(topup_id="last", tickets=9_999)
    one_more, fits = TopUpRequest(topup_id="more", tickets=2), TopUpRequest(topup_id="fits", tickets=1)
    channels.top_up(stage.world(), Caller(PAYER), channel.channel_id, last)
    with pytest.raises(InvalidRequestError):
        channels.top_up(stage.world(), Caller(PAYER), channel.channel_id, one_more)
    recorded = channels.top_up(stage.world(), Caller(PAYER), channel.channel_id, fits)
    assert stored(stage, channel).numbers == TICKET_NUMBER_MAX
    assert stored(stage, channel).deposit_micro == TICKET_NUMBER_MAX
    assert channels.top_up(stage.world(), Caller(PAYER), channel.channel_id, fits) == recorded


def test_a_repeated_top_up_is_answered_after_the_close(stage: Stage) -> None:
    channel = opened(stage)
    more = TopUpRequest(topup_id="t", tickets=5)
    first = channels.top_up(stage.world(), Caller(PAYER), channel.channel_id, more)
    closed(stage, channel)
    assert channels.top_up(stage.world(), Caller(PAYER), channel.channel_id, more) == first
    with pytest.raises(ChannelClosedError):
        channels.top_up(stage.world(), Caller(PAYER), channel.channel_id, TopUpRequest(topup_id="u", tickets=5))
    assert stage.world().ledger.available_micro(PAYER) == RICH


# Money.


def test_closing_returns_the_rest_once(stage: Stage) -> None:
    channel = opened(stage, value=FLAT_MICRO)
    for number, budget in ((1, TICKET), (4, 5 * FLAT_MICRO), (12, TICKET)):
        stage.outcome = succeed if number != 4 else fail_with(Outcome.FUEL_EXHAUSTED)
        pay(stage.world(), channel, number, budget=budget)
    stage.outcome = succeed
    pay(stage.world(), channel, 20, agent=JUDGED, budget=2 * FLAT_MICRO + JUDGE_MICRO, judge=True)
    done = closed(stage, channel)
    sweep.sweep(stage.world())
    assert done.state is ChannelState.CLOSED
    assert done.spent_micro > 0
    assert stage.world().ledger.available_micro(PAYER) == RICH - done.spent_micro
    total = sum(int(item["available"]["N"]) for pk, item in stage.memory.items.items() if "available" in item)
    bonds = 10**9 * len({"judith", "olga", "oskar", "quittance:platform"})
    assert total == RICH + bonds
    for number in range(1, done.granted + 1):
        with pytest.raises((ChannelClosedError, TicketUsedError)):
            pay(stage.world(), channel, number, text="late", now_ms=stage.now_ms)


def test_a_runner_frozen_beyond_the_close_is_not_paid(stage: Stage) -> None:
    channel = opened(stage)
    stage.during = lambda: closed(stage, channel)
    with pytest.raises((ChannelClosedError, PlatformUnavailableError)):
        pay(stage.world(), channel, 1)
    done = stored(stage, channel)
    assert (done.state, done.spent_micro) == (ChannelState.CLOSED, 0)
    assert stage.world().ledger.available_micro(PAYER) == RICH


def test_a_thawed_environment_with_an_old_cache_spends_nothing_after_the_close(stage: Stage) -> None:
    channel = opened(stage)
    frozen = stage.world()
    pay(frozen, channel, 1)
    done = closed(stage, channel)
    runs = stage.runs
    with pytest.raises((ChannelClosedError, TicketInvalidError)):
        pay(frozen, channel, 2, now_ms=stage.now_ms)
    with pytest.raises((ChannelClosedError, TicketInvalidError)):
        pay(frozen, channel, done.granted + 1, now_ms=stage.now_ms)
    assert stage.runs == runs


def test_an_expired_held_task_with_judges_costs_nothing(stage: Stage) -> None:
    channel = opened(stage, value=10 * FLAT_MICRO)
    request = ask(f"{channel.channel_id}.1", JUDGED, budget=2 * FLAT_MICRO + JUDGE_MICRO, judge=True)

    def crash() -> None:
        raise SystemExit

    stage.during = crash
    with pytest.raises(SystemExit):
        execute.redeem(stage.world(), channel.channel_id, request, sign(channel, request))
    done = closed(stage, channel)
    assert (done.state, done.spent_micro, done.swept) == (ChannelState.CLOSED, 0, 1)
    assert stage.world().ledger.available_micro(PAYER) == RICH
    escrow = stage.world().ledger.find(ticket_escrow_id(channel.channel_id, 1))
    assert escrow
    assert escrow.settlement
    claims = receipt.verify(escrow.settlement.receipt, stage.world().keys.jwks())
    assert (claims["v"], claims["outcome"]) == (3, "expired")


class Crash(BaseException):
    """The process ends."""


class Lossy:
    """A client of the ledger that ends the process at one call: before or after the call took effect."""

    def __init__(self, memory: Memory, at: int, *, after: bool) -> None:
        self._memory, self._at, self._after, self.calls = memory, at, after, 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._memory, name)

        def made(**arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self._at and not self._after:
                raise Crash
            answer = call(**arguments)
            if self.calls == self._at:
                raise Crash
            return answer

        return made


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("judge", [False, True])
def test_a_crash_at_any_call_loses_no_money(*, after: bool, judge: bool) -> None:
    with quiet():
        for at in range(1, 80):
            stage = Stage()
            world = stage.world()
            fill_bonds(world)
            world.ledger.deposit(PAYER, "deposit", RICH, now_ms=START_MS)
            client = Lossy(stage.memory, at, after=after)
            budget = 2 * FLAT_MICRO + judge * JUDGE_MICRO

            def story(client: Any, stage: Stage = stage, budget: int = budget) -> None:
                asked = {
                    "salt": "s",
                    "key": jwk(KEY),
                    "ticket_value": micro(FLAT_MICRO),
                    "tickets": 30,
                    "expires_at": "2027-02-01T00:00:00Z",
                }
                opening = ChannelRequest.model_validate(asked)
                channel = channels.open_channel(stage.world(client), Caller(PAYER), opening)
                more = TopUpRequest(topup_id="t", tickets=5)
                try:
                    channels.top_up(stage.world(client), Caller(PAYER), channel.channel_id, more)
                    for number in (1, 11):
                        request = ask(f"{channel.channel_id}.{number}", JUDGED, budget=budget, judge=judge)
                        token = sign(channel, request, now_ms=stage.now_ms)
                        done = execute.redeem(stage.world(client), channel.channel_id, request, token)
                        assert isinstance(done, TaskResult)
                except ChannelClosedError:
                    pass
                channels.close(stage.world(client), Caller(PAYER), channel.channel_id)
                for _ in range(4):
                    stage.now_ms += CHANNEL_CLOSE_MS + 1
                    sweep.sweep(stage.world(client))

            try:
                story(client)
            except Crash:
                stage.now_ms += 120_000  # until every lease has lapsed
                story(stage.memory)
            (channel,) = [item for pk, item in stage.memory.items.items() if pk.startswith("CHAN#")]
            assert channel["state"]["S"] == "closed", at
            spent = int(channel["spent"]["N"])
            assert stage.world().ledger.available_micro(PAYER) == RICH - spent, at
            total = sum(int(item["available"]["N"]) for item in stage.memory.items.values() if "available" in item)
            assert total == RICH + 4 * 10**9, at
        assert client.calls < 79, "every call was tried"


# The streams, the queue, and who may see what.


def test_changes_of_a_channel_are_no_changes_of_escrows(stage: Stage) -> None:
    channel = opened(stage, value=FLAT_MICRO)
    pay(stage.world(), channel, 1)
    images = [dict(item) for pk, item in stage.memory.items.items() if pk.startswith(("CHAN#", "ESC#", "TOPUP#"))]
    found = [(listed_change({}, image), left_funded({}, image)) for image in images]
    assert sorted(escrow is not None for escrow, _ in found) == [False, False, True]
    assert sorted(escrow is not None for _, escrow in found) == [False, False, True]


@pytest.mark.parametrize("caller", ["mallory", "bob"])
def test_a_task_id_shows_strangers_nothing(stage: Stage, caller: str) -> None:
    channel = opened(stage)
    pay(stage.world(), channel, 1)
    for user in (None, PAYER, "mallory"):
        with pytest.raises(result.NotFoundError):
            result.find(stage.world(), Caller(caller), f"{channel.channel_id}.1", user=user)
    assert result.find(stage.world(), Caller("oskar"), f"{channel.channel_id}.1", user=PAYER)
    with pytest.raises(result.NotFoundError):
        result.find(stage.world(), Caller("oskar"), f"{channel.channel_id}.1")


def test_plain_requests_cannot_take_a_tickets_task_id(stage: Stage) -> None:
    channel = opened(stage)
    asked = {
        "user_id": PAYER,
        "task_id": f"{channel.channel_id}.1",
        "agent_id": FLAT,
        "input": "in",
        "budget": micro(TICKET),
    }
    request = DirectTaskRequest.model_validate(asked)
    with pytest.raises(InvalidRequestError):
        execute.execute(stage.world(), execute.payer_of(stage.world(), request), request)


@pytest.mark.parametrize(
    "over",
    [
        {"channel": "chn_" + "a" * 26},
        {"iss": "urn:other"},
        {"exp": START_MS // 1_000 - 31},
        {"exp": START_MS // 1_000 + 400 * 86_400},
        {"budget": "0.000001"},
        {"budget": "nan"},
        {"budget": "-1"},
        {"agent_id": JUDGE},
        {"timeout": 3},
        {"acceptance_sha256": "0" * 64},
        {"options_sha256": "0" * 64},
        {"input_sha256": "0" * 64},
        {"n": True},
        {"n": 1.0},
        {"n": 0},
        {"sum": "1"},
    ],
)
def test_a_changed_ticket_is_refused(stage: Stage, over: dict[str, Any]) -> None:
    channel = opened(stage)
    request = ask(f"{channel.channel_id}.1")
    with pytest.raises((TicketInvalidError, InvalidRequestError)):
        execute.redeem(stage.world(), channel.channel_id, request, sign(channel, request, **over))
    assert stage.runs == 0


@pytest.mark.parametrize("version", [[], {}, 1.5, 2.0, 3.0, True, "3", None])
def test_receipts_of_odd_versions_are_refused(version: object) -> None:
    with pytest.raises(receipt.ProofError):
        receipt.read({"v": version})


def test_a_ticket_of_the_greatest_length_still_has_a_receipt(stage: Stage) -> None:
    channel = opened(stage)
    request = ask(f"{channel.channel_id}.1")
    plain = jwt.decode(sign(channel, request), options={"verify_signature": False})
    jws = jwt.PyJWS()
    padded = json.dumps(plain)
    while True:
        longer = jws.encode((padded + " ").encode(), KEY, algorithm="EdDSA", headers={"typ": ticket.TICKET_TYPE})
        if len(longer) > TICKET_CHARS_MAX:
            break
        padded += " "
    token = jws.encode(padded.encode(), KEY, algorithm="EdDSA", headers={"typ": ticket.TICKET_TYPE})
    done = execute.redeem(stage.world(), channel.channel_id, request, token)
    assert isinstance(done, TaskResult)
    assert done.success
    assert receipt.verify(done.receipt, stage.world().keys.jwks())["ticket"]["signed"] == token


# The queue.


class Sent:
    """A fake queue that records its messages."""

    def __init__(self) -> None:
        self.bodies: list[str] = []

    def send(self, body: str, *, of: str, delay_s: int = 0) -> None:
        self.bodies.append(body)

    def hide(self, _receipt: str, *, seconds: int) -> None:
        """Messages are redelivered by the test."""


def queueing(stage: Stage) -> tuple[World, Sent]:
    """A new environment with a queue."""
    world, queue = stage.world(), Sent()
    vars(world).update(queue=queue, dead_letters=queue, bus=SimpleNamespace(put=lambda *_, **__: None))
    return world, queue


def delivered(world: World, body: str) -> bool:
    """Whether the task of a message is done."""
    try:
        work.work(world, Delivery("id", body, "handle", 1))
    except NotDoneError:
        return False
    return True


def test_a_message_delivered_twice_runs_and_charges_once(stage: Stage) -> None:
    channel = opened(stage)
    world, queue = queueing(stage)
    request = ask(f"{channel.channel_id}.1")
    token = sign(channel, request)
    assert isinstance(execute.redeem(world, channel.channel_id, request, token, ["respond-async"]), TaskPending)
    (body,) = queue.bodies
    stage.during = lambda: delivered(queueing(stage)[0], body)
    assert delivered(world, body)
    assert delivered(queueing(stage)[0], body)
    done = execute.redeem(stage.world(), channel.channel_id, request, token)
    assert isinstance(done, TaskResult)
    assert (stage.runs, done.success) == (1, True)


def test_a_message_with_a_ticket_needs_no_submission(stage: Stage) -> None:
    channel = opened(stage)
    world, queue = queueing(stage)
    request = ask(f"{channel.channel_id}.1")
    execute.redeem(world, channel.channel_id, request, sign(channel, request), ["respond-async"])
    forged = json.loads(queue.bodies[0]) | {"task_id": f"{channel.channel_id}.2"}
    assert not delivered(world, json.dumps(forged))
    other = ask(f"{channel.channel_id}.3")
    unsent = json.loads(queue.bodies[0]) | {"task_id": other.task_id, "ticket": sign(channel, other)}
    assert delivered(world, json.dumps(unsent))
    assert stage.runs == 1


def test_a_forged_dead_letter_refunds_no_ones_task(stage: Stage) -> None:
    channel = opened(stage)
    world, queue = queueing(stage)
    request = ask(f"{channel.channel_id}.1")
    execute.redeem(world, channel.channel_id, request, sign(channel, request), ["respond-async"])
    body = json.loads(queue.bodies[0])
    plain = {name: value for name, value in body.items() if name != "ticket"} | {"user_id": "mallory"}
    for forged in (plain, body | {"ticket": "e30.e30.AA"}):
        with suppress(NotDoneError):
            deadletter.handle(world, Delivery("id", json.dumps(forged), "handle", 1))
        escrow = world.ledger.find(ticket_escrow_id(channel.channel_id, 1))
        assert escrow
        assert escrow.settlement is None, forged
    deadletter.handle(world, Delivery("id", json.dumps(body), "handle", 1))
    escrow = world.ledger.find(ticket_escrow_id(channel.channel_id, 1))
    assert escrow
    assert escrow.settlement
    assert receipt.verify(escrow.settlement.receipt, world.keys.jwks())["v"] == 3


def test_the_largest_judged_task_fits_one_transaction(stage: Stage) -> None:
    share = JUDGE_MICRO // 16 + 1
    for shard in range(16):  # a bond that is spread over all of its shards
        pk = "ACCT#bond olga" + (f"#{shard}" if shard else "")
        stage.memory.items[pk] = {"pk": {"S": pk}, "available": {"N": str(share)}}
    value = (2 * FLAT_MICRO + JUDGE_MICRO) // TICKETS_PER_TASK_MAX + 1
    channel = opened(stage, value=value)
    most = TICKETS_PER_JUDGED_TASK_MAX * value
    with pytest.raises(TicketTooSmallError):
        pay(stage.world(), channel, 1, agent=JUDGED, budget=most + 1, judge=True)
    assert isinstance(pay(stage.world(), channel, 1, agent=JUDGED, budget=most, judge=True), TaskResult)
    assert isinstance(pay(stage.world(), channel, 91, budget=TICKETS_PER_TASK_MAX * value), TaskResult)
