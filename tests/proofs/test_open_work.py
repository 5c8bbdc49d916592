"""The index `open`: it lists what each account has open, and balances and releases read nothing else."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from quittance.api.identity import Caller
from quittance.api.models import BondRequest
from quittance.errors import BondInUseError
from quittance.ledger import escrow as escrows
from quittance.ledger.channels import ticket_escrow_id, ticket_task_id
from quittance.ledger.escrow import Ticket
from quittance.limits import PARTY_SHARDS
from quittance.proof import invariants
from quittance.proof.seal import SEAL, sealed
from quittance.run import Side
from quittance.store.dynamo import from_item, to_item
from quittance.usecases import accounts, audit
from tests.proofs.engines import client_of, engine, new_table
from tests.proofs.memory import Memory
from tests.proofs.test_bonds import BOND, BUDGET, JUDGING, ended, judged, world_of
from tests.proofs.test_matrix import BUDGET as HELD
from tests.proofs.test_matrix import DONE, EXPIRY, FAILED, LEASE, Case, case, done, hold, signed
from tests.proofs.world import FEE_BPS, FLAT_MICRO, START_MS, TABLE, World

CHANNEL = "chn_" + "a" * 26
OTHERS = 3_000  # tasks of others, each with a judge: as many are held as are settled and not credited
SHARDS = 4
PAID = FLAT_MICRO - FLAT_MICRO * FEE_BPS // 10_000
KINDS = ("Query", "GetItem", "BatchGetItem", "TransactGetItems", "Scan")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with engine("ministack") as url:
        new_table(client_of(url))
        yield url


class Meter:
    """What a client reads: its calls, and the items that DynamoDB read for them, before any filter."""

    def __init__(self, url: str) -> None:
        self.client = client_of(url)
        self.read: Counter[str] = Counter()
        for kind in KINDS:
            self.client.meta.events.register(f"after-call.dynamodb.{kind}", self._add)

    def _add(self, parsed: dict[str, Any], model: Any, **_: Any) -> None:
        self.read["calls"] += 1
        self.read["items"] += parsed.get("ScannedCount", 0)
        self.read[model.name] += 1


def filled(client: Any, numbers: range, *, payer: str, owner: str) -> None:
    """Stores tasks of an agent of `owner`, each with a judge that its bond pays, as the ledger writes them."""
    memory = Memory()
    world = World(memory, now_ms=lambda: START_MS, work_shards=SHARDS)
    world.ledger.deposit(payer, "start", len(numbers) * BUDGET, now_ms=START_MS)
    world.ledger.deposit(owner, "start", len(numbers) * BUDGET, now_ms=START_MS)
    world.ledger.move_bond(owner, "start", len(numbers) * BUDGET, now_ms=START_MS)
    for number in numbers:
        task, judges = judged_task(number, payer=payer, owner=owner)
        world.ledger.fund(task, *judges)
        if number % 2:
            world.ledger.settle(*ended(world, task, judges, DONE, now_ms=START_MS))
    stored = [item for item in memory.items.values() if item["pk"]["S"].startswith("ESC#")]
    for begin in range(0, len(stored), 25):
        puts = [{"PutRequest": {"Item": item}} for item in stored[begin : begin + 25]]
        assert not client.batch_write_item(RequestItems={TABLE: puts})["UnprocessedItems"]


def judged_task(number: int, *, payer: str, owner: str) -> Any:
    """A task and the judge of its agent's rules, of accounts of these names."""
    task, (judge,) = judged(sides=(Side.AGENT,))
    task = replace(
        task,
        escrow_id=escrows.escrow_id(payer, f"t{number}"),
        payer=payer,
        task_id=f"t{number}",
        owner=owner,
    )
    account, task_id = escrows.judge_account(task, Side.AGENT)
    judge = replace(judge, escrow_id=escrows.escrow_id(account, task_id), payer=account, task_id=task_id)
    return replace(task, judges=(replace(task.judges[0], escrow_id=judge.escrow_id),)), [judge]


def costs(url: str) -> dict[str, Counter[str]]:
    """What each call reads; the answers are those of the account alone."""
    found = {}
    for name, call in CALLS.items():
        meter = Meter(url)
        call(World(meter.client, now_ms=lambda: EXPIRY, work_shards=SHARDS))
        found[name] = meter.read
    return found


def balance_of_a_payer(world: World) -> None:
    found = accounts.balance(world, Caller("alice"))
    assert (found.held_micro, found.earned_micro) == (2 * BUDGET, 0)


def balance_of_an_owner(world: World) -> None:
    found = accounts.balance(world, Caller("oskar"))
    assert (found.held_micro, found.earned_micro) == (0, 2 * PAID)


def balance_of_nobody(world: World) -> None:
    found = accounts.balance(world, Caller("nobody"))
    assert (found.held_micro, found.earned_micro) == (0, 0)


def bond(world: World) -> None:
    found = accounts.bond(world, Caller("oskar"))
    assert (found.held_micro, found.releasable_micro) == (2 * JUDGING, 0)


def refused_release(world: World) -> None:
    with pytest.raises(BondInUseError):
        accounts.move_bond(world, Caller("oskar"), release("in-use"))


def release_of_an_idle_bond(world: World) -> None:
    accounts.move_bond(world, Caller("idle"), release(f"out-{next(NUMBERS)}"))


def release(bond_id: str) -> BondRequest:
    return BondRequest.model_validate({"bond_id": bond_id, "amount": "-0.000001"})


NUMBERS = count()
CALLS: dict[str, Callable[[World], None]] = {
    "balance of a payer": balance_of_a_payer,
    "balance of an owner": balance_of_an_owner,
    "balance of an account without tasks": balance_of_nobody,
    "bond": bond,
    "refused release": refused_release,
    "release": release_of_an_idle_bond,
}


def test_open_tasks_of_others_cost_an_account_nothing(url: str) -> None:
    """Not one call and not one item more with thousands of open tasks of other accounts than with none."""
    client = client_of(url)
    world = World(client, now_ms=lambda: START_MS, work_shards=SHARDS)
    for account in ("oskar", "idle"):
        world.ledger.deposit(account, "bond", 100, now_ms=START_MS)
        world.ledger.move_bond(account, "bond", 100, now_ms=START_MS)
    filled(client, range(4), payer="alice", owner="oskar")
    alone = costs(url)
    filled(client, range(OTHERS), payer="bob", owner="olga")
    assert costs(url) == alone
    assert alone["balance of an account without tasks"]["items"] == 0
    assert alone["balance of a payer"]["items"] == 2
    assert alone["balance of an owner"]["items"] == 2


# What is listed.


def parties(memory: Memory, *, of: str) -> Counter[str]:
    """How many entries of each side and account the index has for one account."""
    found = [item["party"]["S"] for item in memory.items.values() if "party" in item and "work_at" in item]
    return Counter(party.rpartition("#")[0] for party in found if party.split("#")[1] == of)


def open_of(world: World, account: str) -> tuple[int, int, bool]:
    return world.ledger.held_micro(account), world.ledger.earned_micro(account), world.ledger.has_open_work(account)


def test_a_task_is_its_payers_then_its_owners_then_nobodys() -> None:
    """With a judge of each side: the task's payer pays one, the bond of the agent's owner the other."""
    memory, world = world_of()
    task, judges = judged()
    world.ledger.fund(task, *judges)
    assert open_of(world, "alice") == (BUDGET + JUDGING, 0, False)
    assert open_of(world, BOND) == (JUDGING, 0, False)
    assert open_of(world, "oskar") == (0, 0, True), "its bond pays a judge"
    assert open_of(world, "judith") == (0, 0, False), "until the judges have settled"
    taken = world.ledger.take_over(task, runner="another", now_ms=LEASE, lease_ms=LEASE + 1)
    assert open_of(world, "alice") == (BUDGET + JUDGING, 0, False)
    ends = ended(world, taken, judges, DONE, now_ms=LEASE)
    world.ledger.settle(*ends)
    paid = [end.settlement.split.paid_micro for end in ends if end.settlement]
    assert open_of(world, "alice") == open_of(world, BOND) == (0, 0, False)
    assert open_of(world, "oskar") == (0, paid[0], True)
    assert open_of(world, "judith") == (0, sum(paid[1:]), True)
    for names in world.ledger.settled():
        world.ledger.credit(names, now_ms=EXPIRY)
    for account in ("alice", BOND, "oskar", "judith"):
        assert open_of(world, account) == (0, 0, False)
    assert not any("party" in item for item in memory.items.values())


@pytest.mark.parametrize("end", ["failed", "expired"])
def test_an_unpaid_task_is_its_owners_until_it_is_credited(end: str) -> None:
    """Its failure is still to be charged to the bond, and folded into the reputation."""
    _, world = world_of()
    task, _ = judged(sides=())
    world.ledger.fund(task)
    if end == "failed":
        world.ledger.settle(*ended(world, task, (), FAILED, now_ms=START_MS))
    else:
        world.ledger.expire(task, signed(world, task, escrows.expire(task, now_ms=EXPIRY)))
    assert open_of(world, "alice") == (0, 0, False)
    assert open_of(world, "oskar") == (0, 0, True)
    for names in world.ledger.settled():
        world.ledger.credit(names, now_ms=EXPIRY)
    assert open_of(world, "oskar") == (0, 0, False)


def test_a_tickets_task_holds_nothing_of_an_account() -> None:
    """Its channel has the credits. Once settled, held before or not, it is its owner's as any other."""
    memory, world = world_of()
    held, redeemed = (hold(ticket=Ticket(CHANNEL, number, 1), fence=1) for number in (1, 2))
    held, redeemed = (
        replace(each, escrow_id=ticket_escrow_id(CHANNEL, number), task_id=ticket_task_id(CHANNEL, number))
        for number, each in ((1, held), (2, redeemed))
    )
    world.ledger.fund(held)
    assert parties(memory, of="alice") == parties(memory, of="oskar") == {}
    world.ledger.settle(done(world, held, DONE, START_MS))
    world.ledger.redeem(done(world, redeemed, DONE, START_MS))
    assert parties(memory, of="oskar") == {"EARNED#oskar": 2}
    assert open_of(world, "oskar") == (0, 2 * PAID, True)
    assert open_of(world, "alice") == (0, 0, False)


def test_the_tasks_of_one_account_are_spread_over_all_keys() -> None:
    """DynamoDB takes 1,000 writes a second of one key. All pages of all keys are read."""
    memory, world = world_of(alice=10**9)
    for number in range(40 * PARTY_SHARDS):
        world.ledger.fund(hold(task_id=f"t{number}"))
    listed = Counter(item["party"]["S"] for item in memory.items.values() if "party" in item)
    assert sorted(listed) == [f"HELD#alice#{shard}" for shard in range(PARTY_SHARDS)]
    assert min(listed.values()) >= 20
    assert open_of(world, "alice") == (40 * PARTY_SHARDS * HELD, 0, False)


def test_a_sweep_that_does_not_know_the_index_ends_its_entries() -> None:
    """As while an update replaces the functions one by one, or after it is rolled back."""
    this = case("partly")
    pk = f"ESC#{this.escrow.escrow_id}"
    party = this.memory.items[pk]["party"]
    (names,) = this.world.ledger.settled()
    this.world.ledger.credit(names, now_ms=EXPIRY)
    this.memory.items[pk] = {**this.memory.items[pk], "party": party}
    assert open_of(this.world, "oskar") == (0, 0, False)
    assert wrongly_listed(this) == []


# What the audit finds.


def wrongly_listed(this: Case) -> list[str]:
    found = audit.audit(this.world).differences
    return [difference.at for difference in found if difference.invariant in {"I6", "form"}]


SEALS = ("new", "old", "none")
MISSING, RIGHT = "", "right"
FOUND = ("HELD#alice#0", "EARNED#oskar#0", "HELD#oskar#0", "EARNED#alice#0", f"HELD#alice#{PARTY_SHARDS}", "HELD#alice")


@pytest.mark.parametrize("state", ["funded", "partly", "refunded", "expired", "partly swept"])
@pytest.mark.parametrize("party", [MISSING, RIGHT, *FOUND])
@pytest.mark.parametrize("seal", SEALS)
def test_the_audit_finds_what_is_not_listed_as_it_must_be(state: str, party: str, seal: str) -> None:
    """An escrow from before the index may be missing from it: its seal says so. A credited one is not listed."""
    this = case(state)
    assert wrongly_listed(this) == []
    pk = f"ESC#{this.escrow.escrow_id}"
    values = from_item(this.memory.items[pk])
    if party != RIGHT:
        values.pop("party", None)
        values |= {"party": party} if party else {}
    if seal != "new":
        values.pop(SEAL)
    if seal == "old":
        values[SEAL] = sealed(dict(invariants._written_first(values)))[SEAL]
    this.memory.items[pk] = to_item(values)
    due = {"funded": {FOUND[0]}, "partly swept": {*FOUND[:2], MISSING}}.get(state, {FOUND[1]})
    if party == RIGHT or party in due or (party == MISSING and seal != "new"):
        assert wrongly_listed(this) == []
    else:
        assert wrongly_listed(this) == [pk]
