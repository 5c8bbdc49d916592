"""Who pays when: each fault with prices for compute, by whom it is borne, and what a cheat gets for it."""

from typing import Any

import pytest
from wasmtime import wat2wasm

from quittance.api.identity import Caller
from quittance.api.models import AgentRequest, BondRequest, TaskRequest, TaskResult, VersionRequest
from quittance.errors import AgentNotReadyError, BondRequiredError, BudgetTooLowError, TermsChangedError
from quittance.ledger.balances import bond_account
from quittance.proof import receipt
from quittance.usecases import accounts, agents, execute, publish
from quittance.usecases.sweep import sweep
from tests.support import FLAT, Cloud, wasm

START, BOND, PRICE, FEE = 10**10, 2_000_000, 10_000, 250
RUN, PER_BILLION = 100, 50_000_000  # dear enough to show in every run: 5 micro-credits for 100 units of fuel
OWNER = "owner"


@pytest.fixture
def dear(cloud: Cloud) -> Cloud:
    """A platform on which computing costs something. alice has credits, the owner has a bond."""
    prices = {"compute_run_micro": RUN, "compute_per_billion_fuel_micro": PER_BILLION, "bond_minimum_micro": 1_000_000}
    cloud.settings = cloud.settings.model_copy(update=prices)
    cloud.deposit("alice", START)
    cloud.bond(OWNER, BOND)
    return cloud


def module(body: str, *, pages: int = 1) -> bytes:
    return bytes(wat2wasm(f'(module (memory (export "memory") {pages}) (func (export "_start") {body}))'))


LOOP = module("(loop (br 0))")
TRAP = module("unreachable")
GREEDY = module("(if (i32.eq (memory.grow (i32.const 300)) (i32.const -1)) (then unreachable))")
STUBBORN = module("(loop (br_if 0 (i32.eq (memory.grow (i32.const 300)) (i32.const -1))))")
MODEST = module("(drop (memory.grow (i32.const 300)))")
IDLE = module("")


def ask(agent: str, **changes: Any) -> TaskRequest:
    return TaskRequest.model_validate({"task_id": "t-1", "agent_id": agent, "input": "hello", "budget": "1"} | changes)


def run(cloud: Cloud, agent: str, **changes: Any) -> TaskResult:
    done = execute.execute(cloud, "alice", ask(agent, **changes))
    assert isinstance(done, TaskResult)
    return done


def compute(done: TaskResult) -> int:
    return RUN - (-done.resource_usage.fuel_used * PER_BILLION // 10**9)


def spent(cloud: Cloud) -> int:
    return START - cloud.ledger.available_micro("alice")


def swept(cloud: Cloud) -> tuple[int, int, int]:
    """What the owner has earned, the bond has lost and the platform has got; everything adds up."""
    while (done := sweep(cloud)).credited or done.logged:
        pass
    assert cloud.total_micro() == START + BOND
    available = cloud.ledger.available_micro
    return available(OWNER), BOND - available(bond_account(OWNER)), available("quittance:platform")


def stated(cloud: Cloud, done: TaskResult) -> Any:
    return receipt.verify(done.receipt, cloud.keys.jwks())


def test_success_pays_the_price_and_the_compute(dear: Cloud) -> None:
    done = run(dear, dear.publish(wasm("echo")))
    due = compute(done)
    assert (done.amount_paid_micro, done.fee_micro, done.compute_micro) == (PRICE - FEE, FEE + due, due)
    assert spent(dear) == PRICE + due
    assert swept(dear) == (PRICE - FEE, 0, FEE + due)


@pytest.mark.parametrize(
    ("code", "body", "limits"),
    [("trap_unreachable", TRAP, {}), ("fuel_exhausted", LOOP, {"fuel": 10**6}), ("exit_code", wasm("failing"), {}),
     ("timeout", LOOP, {"timeout": 1}), ("output_limit", wasm("misbehave"), {})],
)  # fmt: skip
def test_the_agents_failure_costs_its_owners_bond(dear: Cloud, code: str, body: bytes, limits: Any) -> None:
    done = run(dear, dear.publish(body, **limits), budget="9000", input="flood")
    assert done.error is not None
    assert (done.error.code, done.fault, done.reputation_delta) == (code, "agent", -50)
    assert (done.amount_paid_micro, done.fee_micro, spent(dear)) == (0, 0, 0)
    charge = int(stated(dear, done)["charge"])
    assert charge == compute(done) > RUN
    assert swept(dear) == (0, min(charge, BOND), min(charge, BOND))


def test_fuel_that_a_small_budget_does_not_buy_is_the_payers_fault(dear: Cloud) -> None:
    """Seen before: a low budget cost an agent its reputation, and the payer nothing."""
    done = run(dear, dear.publish(LOOP), budget="0.02")
    assert done.error is not None
    assert (done.error.code, done.fault, done.reputation_delta) == ("fuel_exhausted", "payer", 0)
    assert done.fee_micro == done.compute_micro == compute(done) == spent(dear)
    assert stated(dear, done)["charge"] == "0"
    assert swept(dear) == (0, 0, done.fee_micro)


def test_a_shorter_timeout_is_the_payers_fault(dear: Cloud) -> None:
    dear.settings = dear.settings.model_copy(update={"compute_per_billion_fuel_micro": 40})
    done = run(dear, dear.publish(LOOP, timeout=2), timeout=1)
    assert done.error is not None
    assert (done.error.code, done.fault, done.reputation_delta) == ("timeout", "payer", 0)
    assert RUN < done.fee_micro == done.compute_micro == spent(dear), "a run that was killed is paid for too"
    assert swept(dear) == (0, 0, done.fee_micro)


def test_memory_and_output_that_a_budget_does_not_buy_are_the_payers_fault(dear: Cloud) -> None:
    memory = dear.publish(GREEDY, tariff={"type": "metered", "per_mib_memory": "0.01"})
    done = run(dear, memory, budget="0.05")
    assert done.error is not None
    assert (done.error.code, done.fault) == ("trap_unreachable", "payer")
    assert stated(dear, done)["memory_refused"] is True
    assert run(dear, memory, budget="5", task_id="t-2").success
    output = dear.publish(wasm("echo"), tariff={"type": "metered", "per_kib_output": "1"})
    done = run(dear, output, budget="0.5", input="x" * 2_000, task_id="t-3")
    assert done.error is not None
    assert (done.error.code, done.fault, done.output) == ("output_limit", "payer", None)
    assert dear.ledger.standing(output).failures == dear.ledger.standing(memory).failures == 0


@pytest.mark.parametrize(
    ("code", "body", "terms"),
    [("fuel_exhausted", STUBBORN, {"fuel": 10**6}), ("timeout", STUBBORN, {"timeout": 1}),
     ("rejected", MODEST, {"acceptance": {"min_bytes": 1}})],
)  # fmt: skip
def test_whatever_a_guest_does_without_the_memory_it_wanted_is_the_payers_fault(
    dear: Cloud, code: str, body: bytes, terms: Any
) -> None:
    """Seen before: a payer who bought too little memory ruined agents that did not end at once, and paid nothing."""
    dear.settings = dear.settings.model_copy(update={"compute_per_billion_fuel_micro": 40})
    agent = dear.publish(body, tariff={"type": "metered", "per_mib_memory": "0.01"}, **terms)
    done = run(dear, agent, budget="0.05")
    assert done.error is not None
    assert (done.error.code, done.fault, done.reputation_delta) == (code, "payer", 0)
    assert stated(dear, done)["memory_refused"] is True
    assert swept(dear) == (0, 0, done.fee_micro)
    assert RUN < done.fee_micro == spent(dear)


@pytest.mark.parametrize(
    ("code", "body", "terms"),
    [("fuel_exhausted", LOOP, {"fuel": 10**6}), ("rejected", IDLE, {"acceptance": {"min_bytes": 1}})],
)
def test_a_failure_that_had_all_the_memory_it_wanted_stays_the_agents(
    dear: Cloud, code: str, body: bytes, terms: Any
) -> None:
    agent = dear.publish(body, tariff={"type": "metered", "per_mib_memory": "0.01"}, **terms)
    done = run(dear, agent, budget="0.05" if code == "rejected" else "0.08")
    assert done.error is not None
    assert (done.error.code, done.fault, stated(dear, done)["memory_refused"]) == (code, "agent", False)


def test_a_budget_that_no_single_limit_exceeds_may_still_not_cover_the_sum(dear: Cloud) -> None:
    agent = dear.publish(wasm("echo"), tariff={"type": "metered", "per_kib_output": "0.2", "per_mib_memory": "0.1"})
    needed = run(dear, agent, budget="10", input="x" * 2_000)
    memory_mib = -(-needed.resource_usage.memory_used_mb // 1)
    due = 400_000 + int(memory_mib) * 100_000 + needed.compute_micro
    assert run(dear, agent, budget=f"{due / 10**6:.6f}", input="x" * 2_000, task_id="t-2").success
    done = run(dear, agent, budget=f"{(due - 1) / 10**6:.6f}", input="x" * 2_000, task_id="t-3")
    assert done.error is not None
    assert (done.error.code, done.fault, done.output, done.amount_paid_micro) == ("budget_exhausted", "payer", None, 0)
    assert done.fee_micro == compute(done)


def test_a_millionth_of_a_credit_buys_nothing(dear: Cloud) -> None:
    """Seen before: with a price for output alone, 0.000001 bought 100 KiB of it."""
    agent = dear.publish(wasm("echo"), tariff={"type": "metered", "per_kib_output": "1"})
    with pytest.raises(BudgetTooLowError) as low:
        run(dear, agent, budget="0.000001", input="x" * 100_000)
    assert low.value.members["least_price"] == "0.000101"
    done = run(dear, agent, budget="0.000101", input="x" * 100_000)
    assert not done.success
    assert spent(dear) == done.fee_micro == 101


def test_impossible_rules_are_paid_by_who_made_them(dear: Cloud) -> None:
    """Seen before: a payer's rule that no output meets cost the agent its reputation and the payer nothing."""
    done = run(dear, dear.publish(wasm("echo")), acceptance={"max_bytes": 0})
    assert (done.fault, done.reputation_delta, done.amount_paid_micro) == ("payer", 0, 0)
    assert done.fee_micro == compute(done) == spent(dear)
    own = run(dear, dear.publish(wasm("echo"), acceptance={"max_bytes": 0}), task_id="t-2")
    assert (own.fault, own.reputation_delta, own.amount_refunded_micro) == ("agent", -50, 1_000_000)


def test_the_platforms_fault_costs_nobody(dear: Cloud) -> None:
    agent = dear.publish(wasm("echo"))
    version = dear.registry.get(agent).version
    assert version is not None
    for found in dear._s3.list_objects_v2(Bucket="binaries", Prefix="artefacts/")["Contents"]:
        dear._s3.delete_object(Bucket="binaries", Key=found["Key"])
    dear.binaries.forget(version.artefact_sha256)
    done = run(dear, agent)
    assert (done.fault, spent(dear), stated(dear, done)["charge"]) == ("platform", 0, "0")
    assert swept(dear) == (0, 0, 0)


def test_prices_of_zero_turn_it_off(cloud: Cloud) -> None:
    cloud.deposit("alice", START)
    done = run(cloud, cloud.publish(TRAP))
    assert (done.fault, done.compute_micro, spent(cloud)) == ("agent", 0, 0)
    assert run(cloud, cloud.publish(wasm("echo")), task_id="t-2").fee_micro == FEE


def test_a_bond_that_is_used_up_ends_its_agents_tasks_until_a_top_up(dear: Cloud) -> None:
    agent, other = dear.publish(LOOP, fuel=10**8), dear.publish(wasm("echo"))
    run(dear, agent, budget="100")
    assert swept(dear)[1] == BOND
    for stopped in (agent, other):
        dear.registry._owners.clear()
        with pytest.raises(AgentNotReadyError, match="bond"):
            run(dear, stopped, task_id="t-2")
    dear.deposit(OWNER, 1_000_000)
    accounts.move_bond(dear, Caller(OWNER), BondRequest.model_validate({"bond_id": "b-1", "amount": "1"}))
    dear.registry._owners.clear()
    assert run(dear, other, task_id="t-3").success


# Publishing.


def priced(cloud: Cloud) -> Cloud:
    prices = {"publish_per_mib_micro": 1_000_000, "publish_per_cpu_second_micro": 1_000_000}
    cloud.settings = cloud.settings.model_copy(update=prices)
    return cloud


def test_publishing_is_charged_to_the_bond_once(dear: Cloud) -> None:
    module = wasm("echo")
    agent = priced(dear).publish(module)
    (due,) = dear.registry.dues()
    assert (due.owner, due.agent_id, due.upload) == (OWNER, agent, 1)
    assert due.amount_micro >= -(-len(module) * 1_000_000 // 2**20)
    assert swept(dear) == (0, due.amount_micro, due.amount_micro)
    dear.registry.owe(dear.registry.get(agent), 999_999, now_ms=dear.now_ms())  # the publisher's event came again
    assert swept(dear) == (0, due.amount_micro, due.amount_micro)
    assert not [*dear.registry.dues()]
    (line,) = accounts.statement(dear, Caller(bond_account(OWNER)), limit=1, after=None).lines
    assert (line.kind, line.amount_micro, line.due_micro, line.tasks) == (
        "charge",
        -due.amount_micro,
        due.amount_micro,
        None,
    )


def test_a_refused_module_is_charged_for_what_it_took(dear: Cloud) -> None:
    """Seen before: a module that compiles for 95 seconds cost nobody anything."""
    priced(dear)
    request = AgentRequest.model_validate({"name": "bad", "tariff": FLAT})
    agent = agents.register(dear, Caller(OWNER), request).agent_id
    dear.post(agent, 1, b"\0asm\1\0\0\0" + b"\xff" * 10**5)
    assert publish.publish(dear, f"uploads/{agent}/1") == "rejected"
    assert swept(dear)[1] >= 10**5 * 1_000_000 // 2**20


def test_without_a_bond_nothing_is_registered_or_published(dear: Cloud) -> None:
    agent = agents.register(dear, Caller(OWNER), AgentRequest.model_validate({"name": "a", "tariff": FLAT})).agent_id
    with pytest.raises(BondRequiredError) as needed:
        agents.register(dear, Caller("poor"), AgentRequest.model_validate({"name": "a", "tariff": FLAT}))
    assert needed.value.members == {"bond": "0", "required": "1"}
    dear.ledger.charge(OWNER, agent, "9", 1_500_000, now_ms=dear.now_ms())
    accounts.note_bond(dear, OWNER)
    dear.registry._owners.clear()
    with pytest.raises(BondRequiredError):
        agents.open_version(dear, Caller(OWNER), agent, VersionRequest())
    dear.post(agent, 1, wasm("echo"))
    assert publish.publish(dear, f"uploads/{agent}/1") == "rejected"
    assert agents.describe(dear, agent).rejection.code == "bond_required"  # type: ignore[union-attr]
    assert not [*dear.registry.dues()], "nothing was read, so nothing is due"


# What was quoted is what runs.


def test_a_task_pins_module_tariff_and_rules(dear: Cloud) -> None:
    agent = dear.publish(wasm("echo"), acceptance={"min_bytes": 1})
    quote = agents.estimate(dear, agent)
    pins = {
        "module_sha256": quote.module_sha256,
        "tariff_sha256": quote.tariff_sha256,
        "rules_sha256": quote.rules_sha256,
    }
    assert run(dear, agent, **pins).success
    assert run(dear, agent, task_id="t-2", rules_sha256=agents.describe(dear, agent).rules_sha256).success
    for field, pinned in pins.items():
        with pytest.raises(TermsChangedError) as changed:
            run(dear, agent, task_id="t-3", **pins | {field: "00" * 32})
        assert changed.value.members["errors"] == [{"field": field, "message": f"must be {pinned}, or absent"}]
    agents.open_version(
        dear, Caller(OWNER), agent, VersionRequest.model_validate({"tariff": {"type": "flat", "price": "0.9"}})
    )
    dear.post(agent, 2, wasm("echo"))
    publish.publish(dear, f"uploads/{agent}/2")
    dear.registry._cache.clear()
    with pytest.raises(TermsChangedError, match="tariff_sha256"):
        run(dear, agent, task_id="t-4", **pins)
    assert run(dear, agent, **pins).success, "what is settled is answered"
    assert spent(dear) < 3 * PRICE
