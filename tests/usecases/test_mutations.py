"""Every attribute of every kind of item is changed in turn: the auditor must notice each change, or FREE says why not.

The items are made by the real use cases, and their attributes are found, not listed: a new attribute fails this test
until `audit.py` compares it or FREE names it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, Final

import pytest

from quittance.api.identity import Caller
from quittance.api.models import TaskRequest
from quittance.ledger.journal import PayoutState
from quittance.limits import OUTPUT_INLINE_BYTES_MAX
from quittance.proof import invariants, receipt
from quittance.store.ledger import Ledger
from quittance.usecases import audit, launch, result
from quittance.usecases import execute as tasks
from quittance.usecases.sweep import sweep
from tests.proofs.memory import Memory
from tests.support import Cloud, wasm

Item = dict[str, Any]

FREE: Final[Mapping[tuple[str, str, str], str]] = {
    ("ESC", "runner", "changed"): "a random name that only its own attempt compares; the fence decides",
    ("ESC", "fence", "changed"): "nothing counts takeovers; with a wrong one nobody settles, and the escrow expires",
    ("ESC", "lease_ms", "changed"): "only tells when another attempt may take over; the fence decides who settles",
    ("ESC", "message", "changed"): "a sentence for people; no receipt states it, and no rule reads it",
    ("OUT", "decided_by", "changed"): "who decided on a payout; the journal of operations is not in the ledger",
    ("OUT", "decided_ms", "changed"): "when a payout was paid; of one that failed, its return says it too",
    ("SLOT", "holder", "changed"): "a slot holds no money; a wrong one is free again when its lease lapses",
    ("SLOT", "holder", "deleted"): "as above",
    ("SLOT", "lease_ms", "changed"): "as above",
    ("SLOT", "lease_ms", "deleted"): "as above",
    ("any", "seal", "deleted"): "an item that was written before there were seals has none",
}
"""What nobody compares: kind of item, attribute, and what is done to it; and why that is so."""


@dataclass(frozen=True)
class Mutation:
    """A change of one attribute of one item."""

    item: Item
    name: str
    how: str
    value: Any

    @property
    def mutated(self) -> Item:
        """The item with the change."""
        rest = {name: value for name, value in self.item.items() if name != self.name}
        return rest if self.value is None else {**rest, self.name: self.value}

    @property
    def key(self) -> tuple[str, str, str]:
        """How FREE names it."""
        any_kind = ("any", self.name, self.how)
        return any_kind if any_kind in FREE else (self.item["pk"]["S"].partition("#")[0], self.name, self.how)

    def __str__(self) -> str:
        state = self.item.get("state", {}).get("S", "")
        return f"{self.item['pk']['S']} {state}: {self.name} {self.how} from {self.item[self.name]} to {self.value}"


def kind_of(item: Item) -> str:
    """Items of one kind have the same attributes."""
    prefix, _, rest = item["pk"]["S"].partition("#")
    return " ".join([prefix, "with" if rest else "alone", *sorted(item), item.get("state", {}).get("S", "")])


def mutations(item: Item) -> Iterator[Mutation]:
    """Each attribute but the key: deleted, changed within its type, and changed to another type."""
    for name, typed in item.items():
        if name == "pk":
            continue
        ((kind, value),) = typed.items()
        yield Mutation(item, name, "deleted", None)
        for other in OTHERS[kind](value):
            yield Mutation(item, name, "changed", {kind: other})
        yield Mutation(item, name, "of another type", {"S": str(value)} if kind != "S" else {"N": "7"})


OTHERS: Final[Mapping[str, Callable[[Any], list[Any]]]] = {
    "N": lambda value: [str(int(value) + 1), str(10**15)],
    "S": lambda value: [_other_letter(value)],
    "B": lambda value: [bytes([value[0] ^ 1]) + value[1:]],
}


def _other_letter(value: str) -> str:
    return ("b" if value.startswith("a") else "a") + value[1:]


@pytest.fixture
def busy(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A ledger with items of every kind and in every state, made by the use cases."""
    monkeypatch.setattr(audit, "_INDEX_LAG_S", 0)
    movements(cloud)
    tasks_of_all_kinds(cloud, "logged")
    sweep(cloud)
    execute(cloud, cloud.publish(wasm("echo")), "unlogged")
    for ids in cloud.ledger.settled():
        assert cloud.ledger.credit(ids, now_ms=cloud.now_ms())
    tasks_of_all_kinds(cloud, "settled")
    judge = cloud.publish(wasm("coverage"), owner="judith")
    judged = cloud.publish(wasm("echo"), acceptance=judged_by(judge))
    execute(cloud, judged, "held", dies=True, webhook=HOOK, acceptance={"min_bytes": 1})
    return cloud


@pytest.fixture
def old(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A ledger in which all is swept, logged and published, a day ago."""
    monkeypatch.setattr(audit, "_INDEX_LAG_S", 0)
    movements(cloud)
    tasks_of_all_kinds(cloud, "logged")
    sweep(cloud)
    cloud.skew_ms = 24 * 60 * 60 * 1_000
    return cloud


HOOK: Final = "https://example.com/hook"


def movements(cloud: Cloud) -> None:
    prices = {"compute_run_micro": 100, "compute_per_billion_fuel_micro": 100}
    cloud.settings = cloud.settings.model_copy(update=prices)
    cloud.deposit("alice", 9_000_000)
    for name, state in (("w-1", None), ("w-2", PayoutState.PAID), ("w-3", PayoutState.FAILED)):
        payout = cloud.ledger.withdraw("alice", name, 1_000_000, now_ms=cloud.now_ms())
        if state:
            cloud.ledger.decide_payout(payout, state, by="operator", now_ms=cloud.now_ms())
    cloud.ledger._purse_in_use["alice"] = 3  # as after a collision in the home purse
    cloud.deposit("alice", 3)
    cloud.ledger._purse_in_use.clear()
    for owner, amount_micro in (("owner", 5_000_000), ("judith", 1_000_000), ("poor", 1)):
        cloud.deposit(owner, amount_micro)
        cloud.ledger.move_bond(owner, "b-1", amount_micro, now_ms=cloud.now_ms())
    cloud.ledger.move_bond("owner", "b-2", -1_000_000, now_ms=cloud.now_ms())
    cloud.ledger.charge("owner", "agt_1", "1", 500, now_ms=cloud.now_ms())


def judged_by(judge: str, threshold: str = "0.5") -> dict[str, Any]:
    return {"judge": {"agent_id": judge, "threshold": threshold, "budget": "0.3"}}


def tasks_of_all_kinds(cloud: Cloud, name: str) -> None:
    """Tasks that end in every state, with all that an escrow may carry."""
    echo, judge = cloud.publish(wasm("echo")), cloud.publish(wasm("coverage"), owner="judith")
    judged = cloud.publish(wasm("echo"), acceptance=judged_by(judge))
    strict = cloud.publish(wasm("echo"), acceptance=judged_by(judge, "1"))
    consenting = cloud.publish(wasm("echo"), task_judges={"rejected_share": "0.5"})
    execute(cloud, judged, f"{name}-judged", webhook=HOOK, acceptance={"min_bytes": 1})
    execute(cloud, strict, f"{name}-rejected", input="\n")
    execute(cloud, consenting, f"{name}-own-judge", acceptance=judged_by(judge))
    execute(cloud, echo, f"{name}-long", input="x" * (OUTPUT_INLINE_BYTES_MAX + 1))
    execute(cloud, echo, f"{name}-refused", acceptance={"min_bytes": 1_000})
    execute(cloud, cloud.publish(wasm("failing")), f"{name}-failed")
    execute(cloud, cloud.publish(wasm("failing"), owner="poor"), f"{name}-failed-poor")
    execute(cloud, echo, f"{name}-expired", dies=True)
    now_ms = cloud.skew_ms
    cloud.skew_ms += 150_000
    result.read(cloud, Caller("alice"), f"{name}-expired")
    cloud.skew_ms = now_ms


def execute(cloud: Cloud, agent: str, task_id: str, *, dies: bool = False, **fields: Any) -> None:
    request = {"task_id": task_id, "agent_id": agent, "input": "to be or not", "budget": "1", **fields}
    with pytest.MonkeyPatch.context() as patch:
        if dies:
            patch.setattr(launch, "run", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
        try:
            tasks.execute(cloud, "alice", TaskRequest.model_validate(request))
        except InterruptedError:
            assert dies


class Copy:
    """The ledger's items in memory, where an audit takes milliseconds."""

    def __init__(self, cloud: Cloud) -> None:
        self.memory = Memory({item["pk"]["S"]: item for item in cloud.items()})
        self.items = dict(self.memory.items)
        self._cloud = cloud
        settings, newest = cloud.settings, cloud.tiles.checkpoint()
        vars(cloud)["tiles"] = SimpleNamespace(checkpoint=lambda _: newest)
        vars(cloud)["ledger"] = Ledger(
            self.memory,  # type: ignore[arg-type]  # the calls that the ledger makes
            table=settings.ledger_table,
            shards=settings.ledger_shards,
            platform_account=settings.platform_account,
            left_ms=cloud.left_ms,
        )

    def kinds(self) -> list[Item]:
        """One item of each kind."""
        return list({kind_of(item): item for item in self.items.values()}.values())

    def is_noticed(self, **changed: Item | None) -> bool:
        """Whether the auditor finds a difference after some items were replaced, or removed for None."""
        changes = {pk: item for pk, item in {**self.items, **changed}.items() if item is not None}
        self.memory.items = changes
        return bool(audit.run(self._cloud).count)


@pytest.fixture(autouse=True)
def verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same receipt is verified once: the audits of this module differ in one item."""
    jwks: list[dict[str, Any]] = []

    def again(text: str, keys: dict[str, Any]) -> Any:
        jwks[:] = jwks or [keys]
        return verified(text)

    verified = cache(lambda text: receipt.verify(text, jwks[0]))
    monkeypatch.setattr(invariants, "verify", again)


@pytest.mark.parametrize("ledger", ["busy", "old"])
def test_the_audit_notices_a_change_of_any_attribute(ledger: str, request: pytest.FixtureRequest) -> None:
    copy = Copy(request.getfixturevalue(ledger))
    assert not copy.is_noticed()
    missed, stale = [], set()
    for mutation in (mutation for item in copy.kinds() for mutation in mutations(item)):
        noticed = copy.is_noticed(**{mutation.item["pk"]["S"]: mutation.mutated})
        if not noticed and mutation.key not in FREE:
            missed.append(str(mutation))
        if noticed and mutation.key in FREE:
            stale.add(mutation.key)
    assert not missed, "\n".join(missed)
    assert {key for key in stale if key[2] == "deleted"} == set()


@pytest.mark.parametrize("ledger", ["busy", "old"])
def test_the_audit_notices_an_item_that_is_gone_or_elsewhere(ledger: str, request: pytest.FixtureRequest) -> None:
    copy = Copy(request.getfixturevalue(ledger))
    missed = []
    for item in copy.kinds():
        pk = item["pk"]["S"]
        elsewhere = pk[:-1] + ("b" if pk.endswith("a") else "a")
        if not copy.is_noticed(**{pk: None}) and not is_without_trace(item):
            missed.append(f"{kind_of(item)}: erased")
        if not copy.is_noticed(**{pk: None, elsewhere: {**item, "pk": {"S": elsewhere}}}):
            missed.append(f"{kind_of(item)}: moved")
        if not copy.is_noticed(**{pk: {**item, "unheard_of": {"S": "a"}}}):
            missed.append(f"{kind_of(item)}: with an unknown attribute")
        if not copy.is_noticed(**{elsewhere: {**item, "pk": {"S": elsewhere}}}):
            missed.append(f"{kind_of(item)}: copied")
    assert not missed, "\n".join(missed)


def is_without_trace(item: Item) -> bool:
    """Whether nothing else names an item and no sum needs it: a full refund, until the sweep gives it a place."""
    if item["pk"]["S"].startswith("SLOT#"):
        return True
    whole = item.get("refunded", {}).get("N") == item.get("budget", {}).get("N")
    return item["pk"]["S"].startswith("ESC#") and whole and "swept_ms" not in item
