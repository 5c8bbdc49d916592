"""The audit of tickets, each rule by itself: items are changed, and get the seal that fits the change."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from quittance.ledger.channels import ticket_escrow_id
from quittance.limits import TICKETS_PER_TASK_MAX
from quittance.proof import invariants
from quittance.proof.seal import SEAL, UNSEALED, sealed
from quittance.store.dynamo import from_item, to_item
from quittance.usecases import audit as auditing
from quittance.usecases import execute, launch
from quittance.usecases.sweep import sweep
from tests.proofs.memory import Memory
from tests.proofs.world import (
    FLAT,
    FLAT_MICRO,
    JUDGE,
    JUDGED,
    OWN,
    START_MS,
    World,
    ask,
    fill_bonds,
    open_channel,
    ticket_for,
)

Values = dict[str, Any]
OTHER = "f" * 64


class Stage:
    """A channel with swept tasks of one, two and three tickets, and two held ones; each is known by its number."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.world = World(self.memory, now_ms=lambda: START_MS, left_ms=lambda: 60_000)
        self.world.ledger.deposit("alice", "start", 10**9, now_ms=START_MS)
        fill_bonds(self.world)
        agents = [FLAT, JUDGED, JUDGE]
        self.channel = open_channel(self.world, "alice", agents=agents, max_per_task="0.07", tickets=50)
        self.pay(1)
        self.pay(2, count=3)
        self.world.channels.contest(self.world.channels.get(self.channel.channel_id), now_ms=START_MS)
        self.pay(5, JUDGED, count=2, judge=True)
        sweep(self.world)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "run", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
            for number, agent, count, judge in ((7, FLAT, 1, False), (8, JUDGED, 2, True)):
                with pytest.raises(InterruptedError):
                    self.pay(number, agent, count=count, judge=judge)

    def pay(self, number: int, agent: str = FLAT, *, count: int = 1, judge: bool = False) -> None:
        budget = 2 * FLAT_MICRO * count
        request = ask(f"{self.channel.channel_id}.{number}", agent, budget=budget, judge=judge)
        request = request.model_copy(update={"timeout": 5})
        execute.redeem(self.world, self.channel.channel_id, request, ticket_for(self.channel, request))

    def pk(self, number: int) -> str:
        return f"ESC#{ticket_escrow_id(self.channel.channel_id, number)}"

    def judge(self, number: int) -> str:
        """The key of the task's own judge."""
        item = from_item(self.memory.items[self.pk(number)])
        return next(f"ESC#{escrow_id}" for side, _, _, escrow_id in json.loads(item["judges"]) if side == "task")

    def change(self, pk: str, *, removed: str = "", **changes: Any) -> None:
        """Changes an item, and seals it again."""
        values = {**from_item(self.memory.items[pk]), **changes}
        values.pop(removed, None)
        form = invariants._WRITTEN_FIRST[invariants.item_type(values)]
        if invariants.is_mark(values):
            first = {name: value for name, value in values.items() if name != SEAL}
        else:
            names = (form.required.keys() | form.optional.keys()) - UNSEALED - {SEAL}
            first = {name: value for name, value in values.items() if name in names}
        if "task_id" in values and invariants.is_judge_escrow(values):
            first.pop("input_sha256")
        self.memory.items[pk] = to_item({**values, SEAL: sealed(first)[SEAL]})

    def found(self) -> list[tuple[str, str]]:
        return [(difference.invariant, difference.at) for difference in auditing.audit(self.world).differences]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(auditing, "_INDEX_LAG_S", 0)
    return Stage()


def test_stage_has_no_difference_also_when_it_is_sealed_again(stage: Stage) -> None:
    assert stage.found() == []
    for pk in stage.memory.items:
        if pk.startswith(("ESC#", "CHAN#")):
            stage.change(pk)
    assert stage.found() == []


@pytest.mark.parametrize(
    ("changes", "invariant"),
    [
        ({"payer": "bob"}, "I14"),
        ({"agent_id": OWN}, "I14"),
        ({"budget": 2 * FLAT_MICRO + 1}, "I14"),
        ({"budget": 1}, "I14"),
        ({"tickets": 2}, "I14"),
        ({"tickets": -1}, "I14"),
        ({"tickets": 10**15}, "I14"),
        ({"tickets": TICKETS_PER_TASK_MAX + 1}, "I14"),
        ({"number": 6}, "I9"),
        ({"task_id": "t"}, "I9"),
        ({"channel": "chn_" + "a" * 26}, "I9"),
        ({"at": START_MS + 31 * 24 * 60 * 60 * 1_000}, "I14"),
        ({"timeout_ms": 5_001}, "I14"),
        ({"input_sha256": OTHER}, "I14"),
        ({"task_rules_sha256": OTHER}, "I14"),
        ({"ticket": "{"}, "I14"),
        ({"ticket": "[]"}, "I14"),
        ({"ticket": "7"}, "I14"),
        ({"ticket": '["s","k",1,"x"]'}, "I14"),
        ({"ticket": "[null,null,null,null]"}, "I14"),
    ],
    ids=repr,
)
def test_a_held_ticket_that_its_channel_does_not_allow(stage: Stage, changes: Values, invariant: str) -> None:
    stage.change(stage.pk(7), **changes)
    assert (invariant, stage.pk(7)) in stage.found()


@pytest.mark.parametrize("place", range(4), ids=["salt", "key", "value", "signed"])
def test_a_held_ticket_whose_proof_is_anothers(stage: Stage, place: int) -> None:
    """The ticket of the other held task, or other terms of the channel."""
    proof, other = (json.loads(stage.memory.items[stage.pk(number)]["ticket"]["S"]) for number in (7, 8))
    proof[place] = other[3] if place == 3 else 1 if place == 2 else "A" * 43
    stage.change(stage.pk(7), ticket=json.dumps(proof))
    assert ("I14", stage.pk(7)) in stage.found()


@pytest.mark.parametrize("changes", [{"salt": "other"}, {"key": "A" * 43}, {"ticket_value": 2}], ids=repr)
def test_tickets_are_signed_for_the_terms_of_their_channel(stage: Stage, changes: Values) -> None:
    stage.change(f"CHAN#{stage.channel.channel_id}", **changes)
    assert {("I14", stage.pk(number)) for number in (1, 2, 5, 7, 8)} <= set(stage.found())


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_receipt_states_the_numbers_of_its_ticket(stage: Stage, number: int) -> None:
    stage.change(stage.pk(number), tickets=4)
    assert {("I12", stage.pk(number)), ("I14", stage.pk(number))} <= set(stage.found())


@pytest.mark.parametrize(
    "break_it",
    [
        lambda stage: stage.change(stage.pk(3), part_of=stage.pk(7)[4:]),
        lambda stage: stage.change(stage.pk(3), part_of=stage.pk(4)[4:]),
        lambda stage: stage.change(stage.pk(4), part_of=stage.pk(1)[4:]),
        lambda stage: stage.memory.items.pop(stage.pk(4)),
        lambda stage: stage.memory.items.pop(stage.pk(2)),
        lambda stage: stage.change(stage.pk(4), number=5),
        lambda stage: stage.change(f"CHAN#{stage.channel.channel_id}", granted=3),
    ],
)
def test_parts_and_their_task_belong_together(stage: Stage, break_it: Callable[[Stage], object]) -> None:
    break_it(stage)
    assert {"I9", "I14"} & {invariant for invariant, _ in stage.found()}


@pytest.mark.parametrize("number", [5, 8], ids=["swept", "held"])
@pytest.mark.parametrize(
    "changes",
    [
        {"tickets": 1},
        {"number": 1},
        {"channel": "chn_" + "a" * 26},
        {"payer": "bob"},
        {"budget": 1},
    ],
    ids=repr,
)
def test_a_tasks_own_judge_is_part_of_its_tickets(stage: Stage, number: int, changes: Values) -> None:
    pk = stage.judge(number)
    stage.change(pk, **changes)
    assert {("I9", pk), ("form", pk)} & set(stage.found())


def test_a_judge_without_its_task_is_found(stage: Stage) -> None:
    judge = stage.judge(8)
    for number in (8, 9):
        del stage.memory.items[stage.pk(number)]
    assert stage.found() == [("I9", judge)]


def test_what_a_judge_cost_is_part_of_what_the_task_cost(stage: Stage) -> None:
    """Both are in the receipts, each in its own: only their sum shows that the channel paid the judge."""
    judge = from_item(stage.memory.items[stage.judge(5)])
    stage.change(stage.judge(5), refunded=judge["refunded"] + 1)
    assert ("I14", stage.pk(5)) in stage.found()


def test_an_account_cannot_pay_what_a_ticket_pays(stage: Stage) -> None:
    """A task of a channel whose escrow names an account would be paid twice."""
    stage.change(stage.pk(7), account="alice")
    assert ("form", stage.pk(7)) in stage.found()


def test_most_of_a_task_is_the_channels_limit(stage: Stage) -> None:
    pk = f"CHAN#{stage.channel.channel_id}"
    stage.change(pk, max_per_task=6 * FLAT_MICRO)
    assert stage.found() == []
    stage.change(pk, max_per_task=6 * FLAT_MICRO - 1)
    assert stage.found() == [("I14", stage.pk(2))]
