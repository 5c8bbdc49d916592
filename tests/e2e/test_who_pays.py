"""Who pays for what, on the deployed stack with the template's default prices, exact to the micro-credit."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from local import client
from local.paths import Stack
from quittance.proof import receipt
from tests.e2e.people import Ledger, User, changed_environment, micro, sweep_until_credited
from tests.support import wasm
from tests.template import template
from tests.waiting import until

FUNCTIONS = ("ExecuteFunction", "AgentsFunction", "PublishFunction")
PRICES = {
    "COMPUTE_RUN_MICRO": "ComputePerRunMicro",
    "COMPUTE_PER_BILLION_FUEL_MICRO": "ComputePerBillionFuelMicro",
    "PUBLISH_PER_MIB_MICRO": "PublishPerMibMicro",
    "PUBLISH_PER_CPU_SECOND_MICRO": "PublishPerCpuSecondMicro",
}
PRICE, FEE = 10_000, 250


@pytest.fixture(scope="module")
def prices() -> dict[str, int]:
    """The template's default prices."""
    parameters = template()["Parameters"]
    return {variable: int(parameters[name]["Default"]) for variable, name in PRICES.items()}


@pytest.fixture(scope="module", autouse=True)
def priced(stack: Stack, aws: Callable[[str], Any], prices: dict[str, int]) -> Iterator[None]:
    """Set these prices for the tests of this file."""
    changed = {variable: str(price) for variable, price in prices.items()}
    with ExitStack() as undo:
        for name in FUNCTIONS:
            undo.enter_context(changed_environment(aws("lambda"), stack.functions[name], changed))
        yield


def compute(prices: dict[str, int], fuel: int) -> int:
    """The compute price of a run, in micro-credits."""
    return prices["COMPUTE_RUN_MICRO"] - (-fuel * prices["COMPUTE_PER_BILLION_FUEL_MICRO"] // 10**9)


def test_default_prices_are_positive(prices: dict[str, int]) -> None:
    assert min(prices.values()) > 0


def test_a_quote_includes_every_price(
    alice: User, olga: User, publish: Callable[..., str], prices: dict[str, int]
) -> None:
    agent = publish(wasm("echo"), owner=olga.name)
    quote = alice.http.get(f"/agents/{agent}/estimate").json()
    assert micro(quote["compute"]["run"]) == prices["COMPUTE_RUN_MICRO"]
    assert micro(quote["least_price"]) == PRICE + compute(prices, 1)
    pins = {name: quote[name] for name in ("module_sha256", "tariff_sha256", "rules_sha256")}
    assert alice.run(agent, **pins)["success"]
    refused = alice.execute(agent, **pins | {"tariff_sha256": "0" * 64})
    assert (refused.status_code, refused.json()["code"]) == (409, "terms_changed")


def test_a_success_costs_price_and_compute(
    alice: User, olga: User, publish: Callable[..., str], prices: dict[str, int], balance: Callable[[str], int]
) -> None:
    before = balance(alice.name)
    done = alice.run(publish(wasm("echo"), owner=olga.name))
    due = compute(prices, done["resource_usage"]["fuel_used"])
    assert (micro(done["compute"]), micro(done["fee"])) == (due, FEE + due)
    assert before - balance(alice.name) == PRICE + due


def test_the_owners_bond_pays_for_an_agent_failure(
    alice: User,
    olga: User,
    publish: Callable[..., str],
    prices: dict[str, int],
    balance: Callable[[str], int],
    sweep: Callable[[], None],
    ledger: Ledger,
) -> None:
    agent = publish(wasm("failing"), owner=olga.name)
    sweep_until_credited(sweep, ledger)
    published = charged(olga)
    before = balance(alice.name)
    done = alice.run(agent)
    assert (done["fault"], done["escrow_status"], balance(alice.name)) == ("agent", "refunded", before)
    charge = compute(prices, done["resource_usage"]["fuel_used"])
    assert int(receipt.read_claims(done["receipt"])["charge"]) == charge > 0
    sweep_until_credited(sweep, ledger)
    assert charged(olga) == published + charge
    assert micro(olga.http.get("/accounts/me/bond").json()["available"]) == 100 * 10**6 - published - charge
    ledger.total()


def charged(owner: User) -> int:
    """The total of charges to an owner's bond, in micro-credits."""
    return micro(owner.http.get("/accounts/me/bond").json()["charged"])


def test_the_bond_pays_for_publishing(
    olga: User, publish: Callable[..., str], sweep: Callable[[], None], ledger: Ledger, prices: dict[str, int]
) -> None:
    module = wasm("echo")
    publish(module, owner=olga.name)
    sweep_until_credited(sweep, ledger)
    assert charged(olga) > -(-len(module) * prices["PUBLISH_PER_MIB_MICRO"] // 2**20)
    (line, *_) = olga.http.get("/accounts/me/bond/statement").json()["lines"]
    assert (line["kind"], line["tasks"], micro(line["due"])) == ("charge", None, charged(olga))
    ledger.total()


def test_a_low_bond_stops_the_agents_until_a_top_up(
    alice: User,
    api: Callable[..., httpx.Client],
    bond: Callable[..., None],
    deposit: Callable[..., None],
    publish: Callable[..., str],
    sweep: Callable[[], None],
    ledger: Ledger,
) -> None:
    owner = User.new(api)
    bond(owner.name, "1")
    agent = publish(wasm("echo"), owner=owner.name)
    sweep_until_credited(sweep, ledger)

    def refused() -> bool:
        answer = alice.execute(agent)
        return answer.status_code == 409 and answer.json()["state"] == "out_of_bond"

    until(refused, "the agent still accepts tasks", pause_s=0.5)
    deposit(owner.name, "1")
    assert owner.http.post("/accounts/me/bond", json={"bond_id": "more", "amount": "1"}).status_code == 201
    assert alice.run(agent)["success"], "a top-up takes effect at once"


def test_the_bond_pays_the_agents_own_judge(
    alice: User,
    olga: User,
    publish: Callable[..., str],
    balance: Callable[[str], int],
    stack: Stack,
    token: Callable[..., str],
    sweep: Callable[[], None],
    ledger: Ledger,
) -> None:
    judge = publish(wasm("coverage"), owner="judith", limits={"fuel": 10**8, "timeout": 5})
    rule = {"judge": {"agent_id": judge, "threshold": "1", "budget": "0.02"}}
    terms = {"tariff": {"type": "flat", "price": "0.01"}, "acceptance": rule}
    agent = client.publish(client.Api(stack.api_url, token(olga.name)), uuid.uuid4().hex, wasm("failing"), terms)
    before = balance(alice.name)
    assert alice.run(agent)["error"]["code"] == "exit_code"
    strict = client.publish(client.Api(stack.api_url, token(olga.name)), uuid.uuid4().hex, wasm("wordcount"), terms)
    done = alice.run(strict, input={"text": "to be"})
    assert (done["error"]["code"], done["fault"], balance(alice.name)) == ("rejected", "agent", before)
    own = alice.http.get(f"/tasks/{done['task_id']}/result").json()["judges"]
    assert [(found["side"], found["score"]) for found in own] == [("agent", None)]
    assert micro(own[0]["cost"]) > PRICE
    sweep_until_credited(sweep, ledger)
    bond = olga.http.get("/accounts/me/bond").json()
    assert micro(bond["available"]) == 100 * 10**6 - charged(olga) - micro(own[0]["cost"])
    ledger.total()


def test_the_payer_pays_when_the_budget_is_too_small(
    alice: User, olga: User, publish: Callable[..., str], prices: dict[str, int], balance: Callable[[str], int]
) -> None:
    before = balance(alice.name)
    needs_more = publish(wasm("sieve"), owner=olga.name)
    done = alice.run(needs_more, input="10000000", budget=f"0.0{PRICE + compute(prices, 1_000_000)}")
    assert (done["error"]["code"], done["fault"], done["reputation_delta"]) == ("fuel_exhausted", "payer", 0)
    spent = before - balance(alice.name)
    assert spent == micro(done["compute"]) == compute(prices, done["resource_usage"]["fuel_used"])


def test_a_task_with_a_judge_needs_the_agents_consent(
    alice: User, olga: User, publish: Callable[..., str], stack: Stack, token: Callable[..., str]
) -> None:
    judge = publish(wasm("coverage"), owner="judith", limits={"fuel": 10**8, "timeout": 5})
    caller = client.Api(stack.api_url, token(olga.name))
    closed = client.publish(caller, uuid.uuid4().hex, wasm("echo"), {"tariff": {"type": "flat", "price": "0.01"}})
    rule = {"judge": {"agent_id": judge, "threshold": "0.9", "budget": "0.02"}}
    refused = alice.execute(closed, acceptance=rule)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "acceptance.judge")
