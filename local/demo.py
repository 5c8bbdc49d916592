"""The demo for newcomers: real agents, real escrows, and receipts that prove them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from boto3.session import Session

from local import issuer
from local.client import PREFIX, Api, RefusedError, publish
from local.cloud import CREDENTIALS
from local.console import CommandError, relative, say, step
from local.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from local.paths import Stack, State

USER, OWNER = "alice", "olga"
DEPOSIT_SCOPE = "ledger:deposit"
_SEED_CREDITS = "10"
_BOND = "2"
_BUDGET = "0.05"
_TARIFF = {"type": "metered", "base": "0.01", "per_million_fuel": "0.001"}
_CREDIT_SECONDS = 10.0
_TEXT = (
    "Pay an agent only for work that it did, and prove it. The budget is held in escrow, the agent "
    "runs in a sandbox, and the escrow settles by itself: paid on success, returned on failure."
)


@dataclass(frozen=True)
class Example:
    """An example agent whose module is committed."""

    name: str
    module: Path
    example: str


SEED_AGENT = Example(
    "wordcount",
    ROOT / "examples/agents/wordcount-c/wordcount.wasm",
    json.dumps({"text": "to be or not to be", "top": 2}),
)
_FAILING_AGENT = Example("failing", ROOT / "examples/agents/failing-c/failing.wasm", "null")


def api(stack: Stack, state: State, subject: str, scope: str = "") -> Api:
    """Return an API client for a subject of the local issuer."""
    token = issuer.sign(issuer.load_key(state.key), issuer.claims(subject, scope))
    return Api(stack.api_url, token)


def seed(stack: Stack, state: State) -> str:
    """Publish an example agent and deposit credits to pay it, once per cloud; return the agent's id."""
    agents = api(stack, state, OWNER).get(f"/agents?owner={OWNER}")["agents"]
    for agent in agents:
        if agent["name"] == SEED_AGENT.name and agent["state"] == "active":
            return str(agent["agent_id"])
    with step("seeding: an example agent, and credits to pay it"):
        _deposit(stack, state, USER, _SEED_CREDITS, "seed")
        _bond(stack, state)
        return _publish(stack, state, SEED_AGENT)


def sweep(stack: Stack) -> None:
    """Credit settled escrows now; otherwise the schedule does it every minute."""
    invoke(stack, "SweepFunction")


def invoke(stack: Stack, name: str, event: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - whatever the function answers
    """Call a function by its logical name, with an empty event if there is none."""
    session = Session(
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=stack.region,
    )
    client = session.client("lambda", endpoint_url=stack.endpoint_url)
    answer = client.invoke(FunctionName=stack.functions[name], Payload=json.dumps(event or {}).encode())
    payload = answer["Payload"].read().decode()
    if answer.get("FunctionError"):
        msg = f"{name} failed: {payload}"
        raise RefusedError(msg)
    return json.loads(payload)


def run_demo(stack: Stack, state: State, layer: Path) -> None:
    """Run a task from the upload of its agent to a verified receipt; then run one that fails, which costs nothing."""
    # The demo may have run before on this cloud, so its ids must be new.
    now = str(time.time_ns() // 1_000_000)
    number = _numbers()
    say("\nPay an agent only for work that it did, and prove it.\n")

    _bond(stack, state)
    say(f"{number()} {OWNER} deposits a bond of {_BOND} credits: it pays the cost of failed runs of the agents")

    size = SEED_AGENT.module.stat().st_size
    begin = time.monotonic()
    agent_id = _publish(stack, state, SEED_AGENT)
    say(f"{number()} {OWNER} publishes an agent: {SEED_AGENT.name}, {size:,} bytes of WebAssembly")
    say(f"     uploaded, validated and compiled in {time.monotonic() - begin:.1f} s, now {agent_id}")
    say(f"     its price: {_TARIFF['base']} and {_TARIFF['per_million_fuel']} per million units of fuel")

    _deposit(stack, state, USER, _SEED_CREDITS, f"demo-{now}")
    say(f"{number()} {USER} gets {_SEED_CREDITS} credits")
    sweep(stack)  # earlier earnings are not part of the demo
    before = _balances(stack, state)

    say(f"{number()} {USER} offers up to {_BUDGET} credits for one task, over HTTP:")
    say(f"     POST {PREFIX}/tasks/execute")
    result = _execute(stack, state, f"demo-{now}", agent_id, {"text": _TEXT, "top": 5})
    usage = result["resource_usage"]
    say(f"     output    {str(result['output']).strip()}")
    say(
        f"     measured  {usage['fuel_used']:,} fuel, {usage['cpu_time_ms']} ms of CPU, {usage['memory_used_mb']:g} MiB"
    )
    say(
        f"     escrow    {result['escrow_status']}: paid {result['amount_paid']} to {OWNER}, "
        f"fee {result['fee']} (of it computing {result['compute']}), returned {result['amount_refunded']}"
    )

    sweep(stack)
    after = _balances(stack, state)
    deadline = time.monotonic() + _CREDIT_SECONDS
    while sum(after.values()) != sum(before.values()) and time.monotonic() < deadline:
        time.sleep(0.2)  # the scheduled sweep took the escrow first and is about to write
        after = _balances(stack, state)
    say(f"{number()} The sweep credits the owner and the platform (scheduled every minute; here it was run at once)")
    _show_balances(before, after)

    claims = _verified(stack, state, layer, str(result["receipt"]))
    say(f"{number()} The receipt, verified offline with the platform's public key:")
    for name in ("task", "user", "agent", "module_sha256", "input_sha256", "output_sha256",
                 "budget", "paid", "fee", "refunded", "state"):  # fmt: skip
        say(f"     {name:<14} {claims[name]}")
    say(f"     {'meter':<14} {json.dumps(claims['meter'])}")
    say("     (amounts in millionths of a credit)")

    _run_failure(stack, state, layer, number, f"demo-{now}-failing", after)


def _run_failure(
    stack: Stack, state: State, layer: Path, number: Callable[[], str], task_id: str, before: dict[str, Decimal]
) -> None:
    """Run an agent that fails. It costs the user nothing, and the owner's bond the computing."""
    failing_id = _publish(stack, state, _FAILING_AGENT)
    say(f"{number()} {USER} calls an agent that fails: {failing_id}")
    result = _execute(stack, state, task_id, failing_id, None)
    error = result["error"]
    say(f"     output    none; {error['code']}: {error['message']}")
    say(f"     log       {str(result['log']).strip()}")
    say(f"     escrow    {result['escrow_status']}: returned {result['amount_refunded']} of {_BUDGET}")
    sweep(stack)
    end = _balances(stack, state)
    say(f"     {USER} has {end[USER]}, as before" if end[USER] == before[USER] else "     BALANCES CHANGED")
    claims = _verified(stack, state, layer, str(result["receipt"]))
    say(f"     a receipt states it; computing cost {OWNER}'s bond {claims['charge']} millionths of a credit\n")
    if sum(before.values()) != sum(end.values()) or end[USER] != before[USER]:
        msg = "the balances do not add up: this is a bug, please report it"
        raise CommandError(msg)


def _numbers() -> Callable[[], str]:
    def count() -> Iterator[str]:
        for number in range(1, 100):
            yield f"  {number}."

    steps = count()
    return lambda: next(steps)


def _publish(stack: Stack, state: State, agent: Example) -> str:
    if not agent.module.is_file():
        msg = f"{relative(agent.module)} is missing: git checkout -- examples/agents"
        raise CommandError(msg)
    terms = {"tariff": _TARIFF, "limits": {"timeout": 10}}
    return publish(api(stack, state, OWNER), agent.name, agent.module.read_bytes(), terms)


def _deposit(stack: Stack, state: State, account: str, amount: str, name: str) -> None:
    bank = api(stack, state, "bank", DEPOSIT_SCOPE)
    bank.post(f"/accounts/{account}/deposits", {"deposit_id": name, "amount": amount})


def _bond(stack: Stack, state: State) -> None:
    """Deposit the owner's bond, once per cloud: publishing requires one."""
    _deposit(stack, state, OWNER, _BOND, "bond")
    api(stack, state, OWNER).post("/accounts/me/bond", {"bond_id": "bond", "amount": _BOND})


def _execute(stack: Stack, state: State, task_id: str, agent_id: str, given: object) -> Any:  # noqa: ANN401 - JSON
    task = {"task_id": task_id, "agent_id": agent_id, "budget": _BUDGET, "input": given}
    return api(stack, state, USER).post("/tasks/execute", task)


def _balances(stack: Stack, state: State) -> dict[str, Decimal]:
    balances = {
        account: Decimal(api(stack, state, account, DEPOSIT_SCOPE).get("/accounts/me")["available"])
        for account in (USER, OWNER, stack.platform_account)
    }
    return balances | {f"{OWNER}'s bond": Decimal(api(stack, state, OWNER).get("/accounts/me/bond")["available"])}


def _show_balances(before: dict[str, Decimal], after: dict[str, Decimal]) -> None:
    say(f"     {'':<20} {'before':>12} {'after':>12} {'change':>12}")
    for account, was in before.items():
        now = after[account]
        say(f"     {account:<20} {_plain(was):>12} {_plain(now):>12} {_plain(now - was, '+'):>12}")
    total = sum(after.values(), Decimal()) - sum(before.values(), Decimal())
    say(f"     {'sum':<20} {'':>12} {'':>12} {_plain(total, '+'):>12}")


def _plain(amount: Decimal, sign: str = "") -> str:
    return f"{amount.quantize(Decimal('0.000001')):{sign}f}" if amount else "0"


def _verified(stack: Stack, state: State, layer: Path, receipt: str) -> Any:  # noqa: ANN401 - JSON
    jwks = api(stack, state, USER).get("/.well-known/jwks.json")
    checked = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "local" / "verify.py"), str(layer)],
        input=json.dumps({"receipt": receipt, "jwks": jwks}),
        capture_output=True,
        text=True,
        check=False,
    )
    if checked.returncode:
        msg = f"the receipt does not verify: {checked.stderr.strip()[-300:]}"
        raise CommandError(msg)
    return json.loads(checked.stdout)
