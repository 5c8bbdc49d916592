"""`quittance run` states what the platform charges: fuel, memory and money are equal to the last micro-credit."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quittance.api.models import TaskRequest, TaskResult
from quittance.cli import execution
from quittance.cli.main import main
from quittance.ledger.credits import format_credits
from quittance.proof import receipt as receipts
from quittance.usecases import execute
from tests.support import AGENTS, Cloud, wasm

FLAT = {"type": "flat", "price": "0.0123"}
METERED = {
    "type": "metered",
    "base": "0.000101",
    "per_million_fuel": "0.0137",
    "per_mib_memory": "0.000213",
    "per_kib_output": "0.000031",
    "minimum": "0.0005",
}
# Every committed example agent, on inputs with which it succeeds and fails in all its ways.
RUNS = [
    ("wordcount", b'{"text": "to be or not to be", "top": 3}'),
    ("wordcount", b"[1"),
    ("sieve", b"30000"),
    ("sieve", b"none"),
    ("echo", "grüße".encode()),
    ("echo", bytes(range(256))),
    ("coverage", b'{"input": "a b c", "output": "a c"}'),
    ("failing", b""),
    *(("misbehave", line) for line in (b"exit 7", b"trap", b"oob", b"div0", b"memory", b"flood", b"recurse")),
    *(("misbehave", line) for line in (b"sleep 3", b"echo ok", b"binary", b"size 5000", b"time", b"random")),
    ("misbehave", b"stderr-flood"),
]


@pytest.fixture
def paid(cloud: Cloud) -> Cloud:
    """A platform with the prices of the template's defaults, and a rich user."""
    prices = {"compute_run_micro": 10, "compute_per_billion_fuel_micro": 40, "fee_bps": 250}
    cloud.settings = cloud.settings.model_copy(update=prices)
    cloud.deposit("alice", 10**12)
    cloud.bond("owner", 10**9)
    return cloud


def on_platform(cloud: Cloud, agent_id: str, data: bytes, **task: Any) -> TaskResult:
    fields = {"task_id": f"t-{len(cloud.items('ESC#'))}", "agent_id": agent_id, **task}
    request = TaskRequest.model_validate({**fields, "input_base64": base64.b64encode(data).decode()})
    done = execute.execute(cloud, "alice", request)
    assert isinstance(done, TaskResult)
    return done


def on_this_machine(capsys: Any, module: Path, data: bytes, *words: str) -> dict[str, Any]:
    file = module.with_name("input")
    file.write_bytes(data)
    code = main(["run", str(module), "--json", "--input", str(file), *words])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if answer["success"] else 1)
    return answer


def same(stated: dict[str, Any], charged: TaskResult) -> None:
    """What the command line stated must be what the platform charged."""
    claims = receipts.read(receipts.read_claims(charged.receipt))
    meter, usage = claims.meter, stated["resource_usage"]
    assert stated["outcome"] == claims.outcome
    assert (usage["fuel_used"], usage["fuel_exact"]) == (meter.fuel, meter.fuel_exact)
    assert (usage["memory_bytes"], usage["output_bytes"]) == (meter.memory_bytes, meter.output_bytes)
    assert (usage["input_bytes"], usage["log_bytes"]) == (meter.input_bytes, meter.stderr_bytes)
    assert stated["fault"] == claims.fault
    assert stated["module_sha256"] == claims.module_sha256
    assert stated["input_sha256"] == claims.input_sha256
    assert stated["tariff_sha256"] == claims.tariff_sha256
    assert stated["amount_paid"] == format_credits(charged.amount_paid_micro)
    assert stated["fee"] == format_credits(charged.fee_micro)
    assert stated["compute"] == format_credits(charged.compute_micro)
    assert stated["amount_refunded"] == format_credits(charged.amount_refunded_micro)
    assert stated["charged_to_bond"] == format_credits(int(claims.charge))
    assert stated["message"] == (charged.error.message if charged.error else stated["message"])
    if charged.success:
        assert stated["output"] == charged.output
        assert stated.get("output_base64") == charged.output_base64


def conditions(charged: TaskResult) -> list[str]:
    """The clock and the seed of a task, as its receipt has them."""
    claims = receipts.read(receipts.read_claims(charged.receipt))
    return ["--clock", claims.epoch_ns, "--seed", claims.seed]


@pytest.mark.parametrize("tariff", [FLAT, METERED], ids=["flat", "metered"])
def test_run_states_what_the_platform_charges(paid: Cloud, capsys: Any, tmp_path: Path, tariff: dict[str, Any]) -> None:
    words = ["--tariff", json.dumps(tariff), "--memory-mib", "16", "--fuel", "500000000", "--budget", "100"]
    names = dict.fromkeys(name for name, _ in RUNS)
    agents = {name: paid.publish(wasm(name), tariff=tariff, memory_mib=16, fuel=500_000_000) for name in names}
    outcomes = set()
    for name, data in RUNS:
        module = tmp_path / f"{name}.wasm"
        module.write_bytes(wasm(name))
        charged = on_platform(paid, agents[name], data, budget="100")
        stated = on_this_machine(capsys, module, data, *words, *conditions(charged))
        same(stated, charged)
        outcomes.add(stated["outcome"])
    assert {"succeeded", "exit_code", "output_limit", "memory_limit", "trap_stack", "trap_memory"} <= outcomes


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_budget_and_tariff_is_charged_as_stated(
    paid: Cloud, capsys: Any, tmp_path: Path, data: st.DataObject
) -> None:
    """Small budgets buy less fuel, memory and output: the run then ends otherwise, and the payer is at fault."""
    rate = st.integers(0, 30_000).map(format_credits)
    names = ("base", "per_million_fuel", "per_mib_memory", "per_kib_output", "minimum")
    tariff = {"type": "metered", **{name: data.draw(rate, label=name) for name in names}}
    lines = [b"exit 7", b"size 9000", b"recurse", b"memory", b"echo x", b"time", b"stderr-flood"]
    name, line = data.draw(st.sampled_from([("misbehave", line) for line in lines] + RUNS[:6]))
    budget = format_credits(data.draw(st.integers(100_000, 2_000_000)))
    agent = paid.publish(wasm(name), tariff=tariff, memory_mib=8, fuel=50_000_000)
    module = tmp_path / "agent.wasm"
    module.write_bytes(wasm(name))
    charged = on_platform(paid, agent, line, budget=budget)
    words = ["--tariff", json.dumps(tariff), "--memory-mib", "8", "--fuel", "50000000", "--budget", budget]
    same(on_this_machine(capsys, module, line, *words, *conditions(charged)), charged)


def test_the_total_is_a_budget_that_suffices(paid: Cloud, capsys: Any, tmp_path: Path) -> None:
    module = tmp_path / "agent.wasm"
    module.write_bytes(wasm("wordcount"))
    line = RUNS[0][1]
    words = ["--tariff", json.dumps(METERED)]
    due = on_this_machine(capsys, module, line, *words)["amount_due"]
    agent = paid.publish(wasm("wordcount"), tariff=METERED)
    charged = on_platform(paid, agent, line, budget=due)
    assert charged.success
    assert charged.amount_refunded_micro == 0
    one_less = format_credits(charged.amount_paid_micro + charged.fee_micro - 1)
    assert not on_platform(paid, agent, line, budget=one_less).success
    assert on_this_machine(capsys, module, line, *words, "--budget", one_less)["fault"] == "payer"


def test_output_that_breaks_the_rules_is_charged_as_stated(paid: Cloud, capsys: Any, tmp_path: Path) -> None:
    rules = {"media_type": "application/json"}
    agent = paid.publish(wasm("echo"), tariff=FLAT, acceptance=rules)
    (tmp_path / "agent.wasm").write_bytes(wasm("echo"))
    (tmp_path / "quittance.toml").write_text(
        '[agent]\nname = "echo"\n[build]\nmodule = "agent.wasm"\n[tariff]\ntype = "flat"\nprice = 0.0123\n'
        '[acceptance]\nmedia_type = "application/json"\n'
    )
    for line in (b"no json", b"[1]"):
        charged = on_platform(paid, agent, line, budget="1")
        (tmp_path / "input").write_bytes(line)
        code = main(
            ["run", str(tmp_path), "--json", "-i", str(tmp_path / "input"), "--budget", "1", *conditions(charged)]
        )
        assert code == (0 if charged.success else 1)
        same(json.loads(capsys.readouterr().out), charged)


def test_default_prices_are_those_of_the_template(template: dict[str, Any]) -> None:
    defaults = {name: value.get("Default") for name, value in template["Parameters"].items()}
    assert defaults["FeeBps"] == execution.PLATFORM_FEE_BPS
    assert defaults["ComputePerRunMicro"] == execution.PLATFORM_COMPUTE.run_micro
    assert defaults["ComputePerBillionFuelMicro"] == execution.PLATFORM_COMPUTE.per_billion_fuel_micro


def test_every_committed_example_is_compared() -> None:
    assert {path.stem for path in AGENTS.glob("*/*.wasm")} == {name for name, _ in RUNS}
