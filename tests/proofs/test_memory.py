"""The in-memory DynamoDB responds as real engines do: random programs of the ledger's calls, compared call by call.

`ministack` is a real engine over HTTP; QUITTANCE_ENGINES=ministack,dynoxide compares with more of them. The comparison
covers every response, every rejection with its reasons and items, the index, and the whole table at the end.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

import pytest
from botocore.exceptions import ClientError

from quittance.errors import QuittanceError
from quittance.ledger.escrow import Escrow
from quittance.ledger.journal import PayoutState
from quittance.run import Run
from quittance.store import dynamo
from quittance.store.ledger import Ledger
from tests.proofs import test_bonds as bonds
from tests.proofs.channel_model import BOND, CHANNEL_EXPIRY, LEASE_MS, TICKET, Desk
from tests.proofs.engines import client_of, engine, new_table
from tests.proofs.memory import Memory
from tests.proofs.test_bonds import BUDGET, COMPUTE, judged
from tests.proofs.test_matrix import DONE, EXPIRY, FAILED, LEASE, TIMES, done, ended, hold
from tests.proofs.world import FLAT_MICRO, START_MS, TABLE, World, append_to_log

ENGINES = os.environ.get("QUITTANCE_ENGINES", "ministack").split(",")
PROGRAMS, STEPS = 6, 40


class Both:
    """Two clients that must agree on every call."""

    def __init__(self, memory: Memory, client: Any) -> None:
        self.memory, self.client, self.calls = memory, client, 0

    def __getattr__(self, name: str) -> Any:
        def call(**arguments: Any) -> Any:
            self.calls += 1
            ours, theirs = _outcome(self.memory, name, arguments), _outcome(self.client, name, arguments)
            assert ours == theirs, f"{name} {arguments}"
            if ours[0] == "refused":
                raise ClientError(ours[1], name)
            return ours[1]

        return call


def _outcome(client: Any, name: str, arguments: dict[str, Any]) -> tuple[str, Any]:
    try:
        answer = getattr(client, name)(**arguments)
    except ClientError as refused:
        response: Any = refused.response
        code = response["Error"]["Code"]
        if code == "TransactionCanceledException":
            reasons = [
                {key: value for key, value in reason.items() if key in ("Code", "Item") and value}
                for reason in response["CancellationReasons"]
            ]
            return "refused", {"Error": {"Code": code}, "CancellationReasons": reasons}
        item = {"Item": response["Item"]} if response.get("Item") else {}
        return "refused", {"Error": {"Code": code}, **item}
    kept = {key: value for key, value in answer.items() if key in ("Item", "Items") and value}
    if "Items" in answer:  # the order of items with equal times is undefined
        kept["Items"] = sorted(answer["Items"], key=lambda item: item["pk"]["S"])
    if "Responses" in answer and isinstance(answer["Responses"], dict):  # the order of a batch is undefined, too
        kept["Responses"] = {TABLE: sorted(answer["Responses"][TABLE], key=lambda item: item["pk"]["S"])}
    elif "Responses" in answer:
        kept["Responses"] = [{"Item": each["Item"]} if each.get("Item") else {} for each in answer["Responses"]]
    return "answer", kept


@pytest.fixture(scope="module", params=ENGINES)
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    with engine(request.param) as url:
        yield client_of(url)


def _judged(world: World, task_id: str, run: Run, now_ms: int) -> None:
    """A task with judges of both sides, funded and possibly settled."""
    task, judges = judged(task_id=task_id)
    if world.ledger.fund(task, *judges).settlement is None and now_ms < EXPIRY:
        world.ledger.settle(*bonds.ended(world, task, judges, run, now_ms=now_ms))


def _operate(world: World, random: Random, seen: list[Escrow]) -> None:
    ledger, number, now_ms = world.ledger, random.randrange(4), random.choice(TIMES)
    amount, run = random.choice((FLAT_MICRO, 2 * FLAT_MICRO)), random.choice((DONE, FAILED))
    old = random.choice(seen) if seen else hold()
    operations: list[Callable[[], Any]] = [
        lambda: ledger.deposit("alice", f"m{number}", amount, now_ms=now_ms),
        lambda: ledger.withdraw("alice", f"m{number}", FLAT_MICRO, now_ms=now_ms),
        lambda: _decide(ledger, f"m{number}", random.choice((PayoutState.PAID, PayoutState.FAILED)), now_ms),
        lambda: ledger.payouts(limit=100),
        lambda: seen.append(ledger.fund(hold(task_id=f"t{number}", budget=amount, compute=COMPUTE))),
        lambda: ledger.move_bond("oskar", f"m{number}", amount - FLAT_MICRO // 2, now_ms=now_ms),
        lambda: ledger.move_bond("oskar", f"m{number}", -FLAT_MICRO // 2, now_ms=now_ms),
        lambda: _judged(world, f"j{number}", run, now_ms),
    ]
    if seen:
        operations += [
            lambda: seen.append(ledger.take_over(old, runner="x", now_ms=now_ms, lease_ms=LEASE + now_ms % 7)),
            lambda: ledger.settle(done(world, old, run, now_ms)),
            lambda: ledger.expire(old, ended(world, old, None, now_ms)),
            lambda: list(ledger.overdue(now_ms=now_ms)),
            lambda: (ledger.held_micro("oskar"), ledger.earned_micro("oskar")),
            lambda: ledger.available_micro("alice"),
            lambda: ledger.bond("oskar"),
            lambda: ledger.has_open_work("oskar"),
            lambda: ledger.statement("alice", limit=100),
            lambda: [ledger.credit(batch, now_ms=now_ms) for batch in ledger.settled()],
            lambda: append_to_log(ledger),
            lambda: ledger.log.set_published(ledger.log.head().size),
        ]
    random.choice(operations)()


def _decide(ledger: Ledger, withdrawal_id: str, state: PayoutState, now_ms: int) -> None:
    payout = ledger.payout("alice", withdrawal_id)
    if payout:
        ledger.decide_payout(payout, state, by="bank", now_ms=now_ms)


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_random_ledger_programs_agree(client: Any, seed: int) -> None:
    random, memory = Random(seed), Memory()
    new_table(client)
    both = Both(memory, client)
    world = World(both, now_ms=lambda: EXPIRY, work_shards=2)
    seen: list[Escrow] = []
    world.ledger.deposit("alice", "much", 10 * BUDGET, now_ms=EXPIRY)
    world.ledger.deposit("oskar", "much", 10 * BUDGET, now_ms=EXPIRY)
    for _ in range(STEPS):
        with suppress(QuittanceError):  # rejections are expected; both clients rejected the same
            _operate(world, random, seen)
    theirs = {item["pk"]["S"]: item for item in client.scan(TableName=TABLE, ConsistentRead=True)["Items"]}
    assert theirs == memory.items
    assert both.calls > STEPS / 2


@pytest.mark.parametrize(
    ("condition", "item", "holds"),
    [
        ("#a = :n", {"a": 5}, True),
        ("#a = :n", {"a": 4}, False),
        ("#a = :n", {}, False),
        ("#a = :s", {"a": 5}, False),
        ("#a <= :n", {"a": 5}, True),
        ("#a <= :n", {"a": 6}, False),
        ("#a <= :n", {}, False),
        ("#a > :n", {"a": 5}, False),
        ("#a > :n", {"a": 6}, True),
        ("#a > :n", {"a": 10}, True),
        ("#a > :n", {}, False),
        ("#a >= :n", {"a": 5}, True),
        ("#a >= :n", {"a": "5"}, False),
        ("attribute_exists(#a)", {"a": 0}, True),
        ("attribute_exists(#a)", {}, False),
        ("attribute_not_exists(#a)", {}, True),
        ("attribute_not_exists(#a)", {"a": ""}, False),
        ("#a = :n AND attribute_exists(#a)", {"a": 5}, True),
        ("#a = :n AND attribute_not_exists(#a)", {"a": 5}, False),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_conditions_evaluate_alike(
    client: Any, condition: str, item: dict[str, Any], holds: bool, exists: bool
) -> None:
    new_table(client)
    memory, stored = Memory(), dynamo.to_item({"pk": "x", **item})
    if exists:
        memory.items["x"] = stored
        client.put_item(TableName=TABLE, Item=stored)
    values = {name: value for name, value in {":n": 5, ":s": "5"}.items() if name in condition}
    write = dynamo.update(TABLE, "x", set_={"b": 1}, condition=condition, values=values)
    ours, theirs = _outcome(memory, "update_item", write), _outcome(client, "update_item", write)
    assert ours == theirs
    if exists:
        assert (ours[0] == "answer") == holds


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_random_channel_programs_agree(client: Any, seed: int) -> None:
    random, memory = Random(seed), Memory()
    new_table(client)
    both = Both(memory, client)
    desk = Desk(World(both, now_ms=lambda: EXPIRY))
    desk.memory = memory
    desk.fill("alice", 60 * TICKET)
    desk.fill(BOND, BUDGET)
    desk.open(20, CHANNEL_EXPIRY)
    desk.look()
    for _ in range(2 * STEPS):
        number, size, now_ms = random.randint(1, 8), random.choice((1, 1, 2, 3)), random.choice((START_MS, EXPIRY))
        seen = random.randrange(len(desk.seen))
        operations: list[Callable[[], Any]] = [
            desk.look,
            partial(desk.open, random.choice((20, 21)), CHANNEL_EXPIRY),
            partial(desk.top_up, str(number % 3), random.choice((TICKET, 2 * TICKET)), now_ms),
            partial(desk.grant, seen, 2 * number),
            desk.contest,
            partial(desk.find, number, size),
            partial(desk.redeem, number, size, random.choice(("r", "other")), 10_007, bool(seed % 2), now_ms),
            partial(desk.hold, number, size + 1, "r", 10_007, random.choice(("", "agent", "agent,task")), now_ms),
            partial(desk.settle, number, random.choice((1, 2)), True, now_ms),
            partial(desk.expire, number, random.choice(("itself", "agent", "task")), now_ms),
            partial(desk.take_over, number, 1, START_MS + LEASE_MS),
            partial(desk.credit, [(number, who) for who in ("itself", "agent", "task")]),
            lambda: list(desk.channels.due(now_ms=CHANNEL_EXPIRY)),
        ]
        if len(desk.seen) > STEPS // 10:
            operations += [
                partial(desk.begin_closing, seen, now_ms),
                partial(desk.count_out, seen, now_ms),
                partial(desk.close, -1, now_ms),
            ]
        with suppress(QuittanceError):  # rejections are expected; both clients rejected the same
            random.choice(operations)()
    theirs = {item["pk"]["S"]: item for item in client.scan(TableName=TABLE, ConsistentRead=True)["Items"]}
    assert theirs == memory.items
