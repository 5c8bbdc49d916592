"""All interleavings of the actors on one payment channel: each step is checked, each table must close in time.

A step is one store call or the agent's run, and each actor has its own clock, as in test_interleavings.py. So a runner
may be late by any time between any two steps: its ticket must then be refused by what closing has stored, because its
own clock may still show the time of the first step.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import count
from typing import Any, Final

import pytest

from quittance.api.identity import Caller
from quittance.api.models import ChannelRequest, TaskRequest, TopUpRequest
from quittance.ledger.channels import Channel, ChannelState, channel_id, ticket_escrow_id, ticket_task_id
from quittance.ledger.credits import format_credits
from quittance.limits import CHANNEL_CLOSE_MS, ESCROW_GRACE_MS, VERDICT_MS_MAX
from quittance.proof import receipt
from quittance.usecases import audit, channels, execute, judges, launch
from quittance.usecases.sweep import sweep
from tests import tickets
from tests.depth import LONG
from tests.proofs.channel_model import ISSUER, KEY, KEY_X
from tests.proofs.checks import Sent, step, unlisted
from tests.proofs.explore import FOREVER_MS, Actor, DerivedBucket, Table, Walk, Walked
from tests.proofs.memory import Memory
from tests.proofs.test_interleavings import credit, expire_overdue
from tests.proofs.world import (
    FLAT,
    FLAT_MICRO,
    JUDGE_MICRO,
    JUDGED,
    LEASE_MS,
    START_MS,
    TIMEOUT_S,
    World,
    ask,
    drawn_run,
    expected,
    fill_bonds,
    instant_run,
    judge_seed,
    one_key,
)

PAYER: Final = "alice"
FUNDS: Final = 10**7
BUDGET: Final = 2 * FLAT_MICRO
BONDS: Final = 10**6
LEASE = START_MS + LEASE_MS
EXPIRY = START_MS + TIMEOUT_S * 1_000 + ESCROW_GRACE_MS
CLOSE = START_MS + CHANNEL_CLOSE_MS
CHANNEL_EXPIRY = START_MS + 10 * CHANNEL_CLOSE_MS
COUNTED: list[tuple[Any, ...]] = []


def channel_named(salt: str, ticket_micro: int) -> str:
    return channel_id(issuer=ISSUER, payer=PAYER, salt=salt, key=KEY_X, ticket_micro=ticket_micro)


@cache
def salt_for(ticket_micro: int, state: str) -> str:
    """A salt of a channel whose first ticket pays a task that ends in `state`."""
    salts = (str(number) for number in count())
    return next(
        salt
        for salt in salts
        if expected("channel " + channel_named(salt, ticket_micro), "1", FLAT, BUDGET).state == state
    )


class Shop:
    """One channel, with the requests and tickets that its key signs. Each task takes `numbers` numbers."""

    def __init__(
        self,
        *,
        state: str = "released",
        numbers: int = 1,
        tickets: int = 3,
        expires_ms: int = CHANNEL_EXPIRY,
        contested: bool = False,
        closing: bool = False,
        salt: str | None = None,
        budget: int = BUDGET,
        agents: Sequence[str] = (),
        max_per_task: int | None = None,
    ) -> None:
        self.ticket_micro = -(-budget // numbers)
        self.salt = salt_for(self.ticket_micro, state) if salt is None else salt
        self.channel_id = channel_named(self.salt, self.ticket_micro)
        self.tickets, self.expires_ms, self.contested, self.closing = tickets, expires_ms, contested, closing
        self.budget = budget
        self.agents, self.max_per_task = list(agents), max_per_task

    def request(self, number: int = 1, *, agent: str = FLAT, text: str = "in", judge: bool = False) -> TaskRequest:
        return ask(ticket_task_id(self.channel_id, number), agent, budget=self.budget, text=text, judge=judge)

    def signed(self, request: TaskRequest) -> str:
        return tickets.signed(tickets.claims_for(request, exp=START_MS // 1_000 + 3_600), KEY)

    def client(self, name: str, number: int = 1, **asked: Any) -> Actor:
        request = self.request(number, **asked)
        token = self.signed(request)
        sent = Sent(PAYER, request.task_id, request.agent_id, self.budget, request.stdin.sha256)
        return Actor(name, lambda world: execute.redeem(world, self.channel_id, request, token), sent)

    def start(self) -> Table:
        """A ledger with the open channel, and alice's other credits."""
        memory = Memory()
        world = World(memory, now_ms=lambda: START_MS)
        world.ledger.deposit(PAYER, "start", FUNDS, now_ms=START_MS)
        fill_bonds(world, BONDS)
        asked: dict[str, Any] = {
            "agents": self.agents or None,
            "max_per_task": self.max_per_task and format_credits(self.max_per_task),
            "salt": self.salt,
            "key": {"kty": "OKP", "crv": "Ed25519", "x": KEY_X},
            "ticket_value": format_credits(self.ticket_micro),
            "tickets": self.tickets,
            "expires_at": datetime.fromtimestamp(self.expires_ms // 1_000, UTC).isoformat(),
        }
        opened = channels.open_channel(world, Caller(PAYER), ChannelRequest.model_validate(asked))
        assert opened.channel_id == self.channel_id
        if self.contested:
            world.channels.contest(world.channels.get(self.channel_id), now_ms=START_MS)
        if self.closing:
            channels.close(world, Caller(PAYER), self.channel_id)
        return memory.items

    def close_and_count(self, world: World) -> list[Channel]:
        """The payer closes the channel, and then, perhaps at once, a sweep counts it."""
        channels.close(world, Caller(PAYER), self.channel_id)
        return closing(world)

    def cast(self) -> dict[str, Actor]:
        top_up = TopUpRequest.model_validate({"topup_id": "more", "tickets": 2})
        actors = [
            self.client("runner"),
            self.client("retry"),
            self.client("other body", text="other"),
            self.client("overlap", 2),
            Actor("close", lambda world: channels.close(world, Caller(PAYER), self.channel_id)),
            Actor("closing", closing),
            Actor("second closing", closing),
            Actor("close and count", self.close_and_count),
            Actor("top up", lambda world: channels.top_up(world, Caller(PAYER), self.channel_id, top_up)),
            Actor("grant", lambda world: world.channels.grant(world.channels.get(self.channel_id), 9)),
            Actor("credit", credit),
            Actor("second credit", credit),
            Actor("expiry", expire_overdue),
            Actor("sweep", sweep),
        ]  # fmt: skip
        return {actor.name: actor for actor in actors}


def closing(world: World) -> list[Channel]:
    """What one sweep does with the channels that are due."""
    ended = []
    for due in world.channels.due(now_ms=world.now_ms()):
        channel = world.channels.get(due)
        while (advanced := channels.advance_closing(world, channel)) != channel:
            channel = advanced
        ended.append(channel)
    return ended


class ChannelWalk(Walk):
    """A walk whose tables have channels."""

    def _check(self, before: Table, after: Table, fence: int | None, actor: Actor) -> None:
        found: list[str] = []
        changed = {pk: item for pk, item in after.items() if item is not before.get(pk)}
        for pk, item in changed.items():
            old = before.get(pk)
            if pk.startswith("ESC#"):
                found += wrong_number(old, item, fence, before)
            if pk.startswith("CHAN#") and old is not None:
                found += wrong_change(_plain(old), _plain(item))
        if changed:
            found += wrong_tables(after)
        self._wrong += [f"{actor.name}: {what}" for what in found]

    def _recover(self, table: Table) -> None:
        """Checks that, after all actors have crashed, time and sweeps credit every task and close every channel."""
        memory = Memory(table)
        now = [self._times[-1] + FOREVER_MS]
        world = World(memory, now_ms=lambda: now[0], tiles=DerivedBucket(memory))
        for _ in range(3):  # settles and begins to close; counts; closes
            while (swept := sweep(world)).expired or swept.credited or swept.logged:
                pass
            now[0] += CHANNEL_CLOSE_MS
        self._wrong += unclosed(memory.items)
        self._wrong += [f"the auditor: {found}" for found in audit.audit(world).differences]


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: int(value) if kind == "N" else value for name, typed in item.items() for kind, value in typed.items()}


def wrong_number(old: Mapping[str, Any] | None, new: Mapping[str, Any], fence: int | None, table: Table) -> list[str]:
    """The violations in one change of an item of a number, or of another escrow."""
    item = _plain(new)
    if "channel" not in item or item.get("tickets") == 0:
        return step(old, new, fence=fence, table=table.values())
    if old is None:
        right = "void_ms" in item or "part_of" in item or item["fence"] == 1
        wrong = unlisted(item) if right and "state" in item else "" if right else f"was created with {item}"
        return [f"{item['pk']}: {wrong}"] if wrong else []
    if "state" not in old:
        return [f"{item['pk']}: a number that is out of use, or a part of a task, changed"]
    kept = old.get("ticket") if item["state"] == "funded" else None  # afterwards the receipt has it
    wrong = [] if new.get("ticket") == kept else [f"{item['pk']}: the signed ticket changed"]
    bare = [{name: value for name, value in each.items() if name != "ticket"} for each in (old, new)]
    return wrong + step(*bare, fence=fence, table=table.values())


def wrong_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The violations in one change of a channel."""
    wrong = []
    if old["state"] == "closed":
        wrong.append("a closed channel changed")
    if ("open", "closing", "closed").index(new["state"]) < ("open", "closing", "closed").index(old["state"]):
        wrong.append(f"went from {old['state']} to {new['state']}")
    wrong += [f"{name} fell" for name in ("deposit", "spent", "swept", "granted") if new[name] < old[name]]
    if covered(new) < covered(old):
        wrong.append(f"the numbers fell from {covered(old)} to {covered(new)}")
    if new["state"] != "open" and (new["deposit"], new["granted"]) != (old["deposit"], old["granted"]):
        wrong.append("a closing channel took more")
    return wrong


def covered(channel: Mapping[str, Any]) -> int:
    return int(channel["swept"] + (channel["deposit"] - channel["spent"]) // channel["ticket_value"])


def wrong_tables(table: Table) -> list[str]:
    """What must hold in every table: no balance below zero, every credit in one place, no number in two tasks."""
    items = {pk: _plain(item) for pk, item in table.items()}
    wrong = []
    balances = [item["available"] for pk, item in items.items() if pk.startswith("ACCT#")]
    if min(balances) < 0:
        wrong.append("a balance is below zero")
    for pk, channel in items.items():
        if pk.startswith("CHAN#"):
            wrong += _wrong_channel(pk[5:], channel, items)
    due = sum(item["amount"] for pk, item in items.items() if pk.startswith("IN#"))
    if (found := sum(balances) + sum(map(sum, _elsewhere(items)))) != due:
        wrong.append(f"{found} credits are there, {due} were paid in")
    return wrong


def _wrong_channel(name: str, channel: Mapping[str, Any], items: Mapping[str, Mapping[str, Any]]) -> list[str]:
    wrong = []
    if (covered(channel) - channel["swept"]) * channel["ticket_value"] > channel["deposit"] - channel["spent"]:
        wrong.append("I14: the deposit does not cover the numbers")
    if channel["granted"] > covered(channel):
        wrong.append("more numbers are granted than the deposit covers")
    tasks = [item for item in items.values() if item.get("channel") == name and item.get("tickets")]
    costs = {
        task["pk"]: task["budget"] - task["refunded"] + task.get("task_judging", 0)
        for task in tasks
        if "refunded" in task
    }
    swept = [task for task in tasks if "swept_ms" in task]
    if (sum(costs[task["pk"]] for task in swept), sum(task["tickets"] for task in swept)) != (
        channel["spent"],
        channel["swept"],
    ):
        wrong.append("spent and swept are not the sums of the swept tasks")
    if sum(costs.values()) > channel["deposit"]:
        wrong.append("the tasks cost more than the deposit")
    if any(costs[task["pk"]] > task["tickets"] * channel["ticket_value"] for task in tasks if task["pk"] in costs):
        wrong.append("a task cost more than its tickets")
    parts = {
        item["pk"]: item["part_of"] for item in items.values() if item.get("channel") == name and "part_of" in item
    }
    due = {
        f"ESC#{ticket_escrow_id(name, number)}": task["pk"][4:]
        for task in tasks
        for number in range(task["number"] + 1, task["number"] + task["tickets"])
    }
    if parts != due:
        wrong.append("a task does not have its numbers to itself")
    if any(task["number"] + task["tickets"] - 1 > channel["granted"] for task in tasks):
        wrong.append("a number was used that is not granted")
    if channel["state"] == "closed" and len(swept) != len(tasks):
        wrong.append("closed with a task that is not swept")
    return wrong  # fmt: skip


def _elsewhere(items: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[int, ...]]:
    """The credits that are on no balance, item by item."""
    swept = {pk[4:] for pk, item in items.items() if "swept_ms" in item}
    tasks = {pk: item for pk, item in items.items() if pk.startswith("ESC#") and item.get("tickets")}
    firsts = {(item["channel"], item["number"]): pk[4:] for pk, item in tasks.items()}
    for pk, item in items.items():
        if pk.startswith("CHAN#"):
            yield (item["deposit"] - item["spent"] - item.get("returned", 0),)
        if not pk.startswith("ESC#") or "state" not in item:
            continue
        earned = item["paid"] + item["fee"] if "paid" in item else 0
        if "channel" not in item:  # the agent's judge, which the bond pays
            yield (item["budget"] if item["state"] == "funded" else earned * (pk[4:] not in swept),)
        elif not item["tickets"]:  # the task's judge: the channel pays it when the task is swept
            task_swept = firsts[item["channel"], item["number"]] in swept
            yield (earned * (task_swept - (pk[4:] in swept)),)


def unclosed(table: Table) -> list[str]:
    """What is not as it must be once time and sweeps have brought a channel to its end."""
    items = {pk: _plain(item) for pk, item in table.items()}
    wrong = [f"{pk} is still in the queue {item['work']}" for pk, item in items.items() if "work" in item]
    for pk, channel in items.items():
        if not pk.startswith("CHAN#"):
            continue
        name = pk[5:]
        if channel["state"] != "closed" or channel.get("returned", -1) != channel["deposit"] - channel["spent"]:
            wrong.append(f"{name} is {channel['state']}")
            continue
        numbers = {
            number: items.get(f"ESC#{ticket_escrow_id(name, number)}") for number in range(1, channel["granted"] + 1)
        }
        wrong += [f"{name}: the number {number} is free" for number, item in numbers.items() if item is None]
        used = sum("void_ms" not in item for item in numbers.values() if item)
        if (channel["counted"], channel["used"], channel["swept"]) != (channel["granted"], used, used):
            wrong.append(
                f"{name}: counted {channel['counted']}, used {channel['used']}, swept {channel['swept']}, due {used}"
            )
        wrong += [what for item in numbers.values() if item and item.get("tickets") for what in _wrong_task(name, item)]
        topped = sum(item["amount"] for key, item in items.items() if key.startswith(f"TOPUP#{name}#"))
        opened = channel["tickets"] * channel["ticket_value"]
        if channel["deposit"] != opened + topped:
            wrong.append(f"{name}: the deposit is {channel['deposit']}, due was {opened + topped}")
        left = sum(
            item["available"]
            for key, item in items.items()
            if key.partition("#")[2].split("#")[0] == PAYER and key.startswith("ACCT#")
        )
        if left != FUNDS - channel["spent"]:
            wrong.append(f"{name}: its payer has {left}, due was {FUNDS - channel['spent']}")
    return wrong  # fmt: skip


def _wrong_task(name: str, task: Mapping[str, Any]) -> Iterable[str]:
    _verify(task["receipt"])
    split = tuple(task[each] for each in ("paid", "fee", "refunded"))
    if task["state"] == "expired" or task["outcome"] in {"superseded", "out_of_time"}:
        due: tuple[int, ...] = (0, 0, task["budget"])
    elif "judges" in task:
        return  # who pays judges is checked by the test that has them
    else:
        found = expected("channel " + name, str(task["number"]), task["agent_id"], task["budget"])
        due = found.paid, found.fee, found.refunded
    if split != due:
        yield f"{task['task_id']}: split into {split}, due was {due}"


@cache
def _verify(signed: str) -> None:
    """A receipt verifies without the platform, its ticket included."""
    receipt.verify(signed, one_key().jwks())


def walk(shop: Shop, names: Sequence[str], times: Sequence[int], *, losses: int = 0, **more: Actor) -> Walked:
    cast = shop.cast() | more
    walked = ChannelWalk(shop.start(), [cast[name] for name in names], times, losses=losses).all()
    assert walked.wrong == []
    COUNTED.append((*names, walked.states, walked.interleavings))
    return walked


RIVALS = ("retry", "other body", "overlap", "close", "close and count", "top up", "grant", "credit")
LONG_RIVALS = ("sweep",) if LONG else ()
NUMBERS = [1, 2] if LONG else [1]
STATES = ["released", "refunded"] if LONG else ["released"]


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("rival", [*RIVALS, *LONG_RIVALS])
def test_a_ticket_and_a_rival_with_one_lost_response(rival: str, state: str, numbers: int) -> None:
    """The runner is late wherever its clock, or that of its rival, jumps."""
    walked = walk(Shop(state=state, numbers=numbers), ("runner", rival), [START_MS, CLOSE], losses=1)
    assert walked.interleavings > walked.states > 1
    assert ("runner", state) in walked.results
    if rival == "close and count":
        assert ("runner", "ChannelClosedError") in walked.results


PAIRS = [
    ("close", "closing"),
    ("retry", "other body"),
    ("top up", "credit"),
    ("credit", "second credit"),
    ("overlap", "close and count"),
]
LONG_PAIRS = [
    ("close and count", "credit"),
    ("close and count", "retry"),
    ("close and count", "other body"),
    ("close and count", "second closing"),
    ("close and count", "top up"),
    ("close and count", "grant"),
    ("close", "sweep"),
    ("retry", "credit"),
]


@pytest.mark.parametrize("rivals", PAIRS + LONG_PAIRS * LONG, ids="+".join)
@pytest.mark.parametrize("numbers", [2, *NUMBERS[:-1]])
def test_a_ticket_and_two_rivals(rivals: tuple[str, str], numbers: int) -> None:
    walked = walk(Shop(numbers=numbers), ("runner", *rivals), [START_MS, CLOSE])
    assert walked.interleavings > walked.states
    assert ("runner", "released") in walked.results


HELD = ("other body", "expiry", "credit")
LONG_HELD = ("retry", "close and count", "sweep") if LONG else ()


@pytest.mark.parametrize("rival", [*HELD, *LONG_HELD])
@pytest.mark.parametrize("state", STATES)
def test_a_held_ticket_and_a_rival_with_one_lost_response(rival: str, state: str) -> None:
    """In a contested channel a ticket is held before it runs, and settled, taken over or expired as any escrow."""
    shop = Shop(state=state, numbers=2, contested=True)
    walked = walk(shop, ("runner", rival), [START_MS, LEASE, CLOSE], losses=1)
    assert ("runner", state) in walked.results


HELD_PAIRS = [("close and count", "expiry")]
LONG_HELD_PAIRS = [
    ("retry", "expiry"),
    ("close and count", "credit"),
    ("close and count", "retry"),
    ("close and count", "second closing"),
]


@pytest.mark.parametrize("rivals", HELD_PAIRS + LONG_HELD_PAIRS * LONG, ids="+".join)
def test_a_held_ticket_and_two_rivals(rivals: tuple[str, str]) -> None:
    shop = Shop(contested=True)
    walked = walk(shop, ("runner", *rivals), [START_MS, LEASE, CLOSE] if "retry" in rivals else [START_MS, CLOSE])
    assert ("runner", "released") in walked.results


AT_EXPIRY = [("closing",), ("closing", "top up")]
LONG_AT_EXPIRY = [("closing", "second closing")]


@pytest.mark.parametrize("rivals", AT_EXPIRY + LONG_AT_EXPIRY * LONG, ids="+".join)
def test_an_expired_channel_closes_by_itself(rivals: tuple[str, ...]) -> None:
    """Whatever the runner was doing when the channel expired."""
    shop = Shop(expires_ms=CLOSE)
    times = [START_MS, CLOSE, CLOSE + CHANNEL_CLOSE_MS]
    walked = walk(shop, ("runner", *rivals), times, losses=len(rivals) == 1)
    assert {
        ("runner", "released"),
        ("runner", "ChannelExpiredError"),
        ("runner", "ChannelClosedError"),
    } <= walked.results


@pytest.mark.parametrize("rival", ["closing", "close and count"] if LONG else ["close and count"])
@pytest.mark.parametrize(
    ("own", "judge", "score", "state"),
    [(True, True, "0.5", "released"), (True, True, "0.4", "refunded"), (False, True, "0.5", "refunded")],
)
@pytest.mark.parametrize("both", [False, True], ids=["agent's judge", "judges on both sides"])
def test_a_judged_ticket_and_a_channel_that_closes(
    rival: str, own: bool, judge: bool, score: str, state: str, both: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ticket with judges is held first. The bond pays the agent's judge, the ticket pays the task's."""
    budget = FLAT_MICRO + 7_500 + JUDGE_MICRO * both
    salts = (str(number) for number in count())
    salt = next(salt for salt in salts if _success(channel_named(salt, budget)) is own)
    seed = judge_seed(succeeds=judge, score=score)
    monkeypatch.setattr(judges.secrets, "token_bytes", lambda _: seed)
    shop = Shop(salt=salt, budget=budget, closing=rival == "closing")
    spans = (1 + both) * (TIMEOUT_S * 1_000 + launch.RUN_RESERVE_MS + VERDICT_MS_MAX)
    runner = shop.client("runner", agent=JUDGED, judge=both)
    times = [START_MS, CLOSE + spans]
    walked = walk(shop, ("runner", rival), times, runner=runner)
    if rival != "closing":
        assert ("runner", state) in walked.results


def _success(name: str) -> bool:
    run = drawn_run(hashlib.sha256(b"quittance seed " + ticket_escrow_id(name, 1).encode()).digest())
    return run.outcome == "succeeded"


def test_a_runner_that_is_late_by_any_time_is_refused_by_what_closing_stored() -> None:
    """After the run, the channel is closed to its end before the ticket is stored; the runner's clock stands still."""
    shop = Shop()
    memory = Memory(shop.start())
    late = [CLOSE]

    def run_until_closed(job: Any) -> Any:
        world = World(memory, now_ms=lambda: late[0])
        channels.begin_closing(world, world.channels.get(shop.channel_id))
        late[0] += CHANNEL_CLOSE_MS
        assert sweep(world).closed == 1
        return instant_run(job)

    runner = World(memory, now_ms=lambda: START_MS, run=run_until_closed)
    with pytest.raises(execute.RequestError) as refused:
        shop.client("runner").story(runner)
    assert type(refused.value).__name__ == "ChannelClosedError"
    closed = World(memory, now_ms=lambda: late[0]).channels.get(shop.channel_id)
    assert (closed.state, closed.spent_micro, closed.contested) == (ChannelState.CLOSED, 0, False)
    assert unclosed(memory.items) == []


def test_the_number_of_interleavings_is_reported(record_property: Callable[[str, str], None]) -> None:
    states, interleavings = sum(walked[-2] for walked in COUNTED), sum(walked[-1] for walked in COUNTED)
    record_property(
        "figure", f"{len(COUNTED)} walks of channels, {states:,} states, {interleavings:,} interleavings, all in order"
    )
