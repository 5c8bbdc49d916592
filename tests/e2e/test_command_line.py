"""The command line on the deployed stack: the whole life of an agent, and the prices that `quittance run` states."""

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from local import screens
from local.paths import LOCAL, ROOT, Stack
from quittance.cli.toolchains import LANGUAGES
from quittance.proof import receipt
from tests.waiting import until

AGENTS = ROOT / "examples" / "agents"
LINE = {"description": "a", "quantity": 2, "unit_price": "1.50", "tax_rate": "19"}
INPUTS = {
    "wordcount": [b'{"text": "to be or not to be"}', b"not JSON"],
    "sieve": [b"100", b"-1"],
    "echo": [b"", b"\x00\xff" * 600],
    "coverage": [b'{"input": "a b", "output": "a"}', b"{}"],
    "failing": [b"anything"],
    "misbehave": [b"trap", b"flood"],
    "invoice": [
        b'{"currency": "EUR", "lines": [{"description": "a", "quantity": 2, "unit_price": "1.50", "tax_rate": "19"}]}',
        b"{}",
    ],
    "python": [b"import random, time; print(random.random(), time.time())", b"raise SystemExit(3)"],
}
"""For each example agent inputs that succeed and that fail."""
PRICES = ["--commission-bps", "250", "--compute-run", "0", "--compute-fuel", "0"]  # as the tests' stack has them
TARIFF = {"type": "metered", "base": "0.001", "per_million_fuel": "0.003", "per_kib_output": "0.0005"}
Quittance = Callable[..., Any]


@pytest.fixture
def quittance(stack: Stack, token: Callable[..., str], tmp_path: Path) -> Quittance:
    """`quittance("call", "hello", code=0)`: the JSON document that a command prints, for a user of its own."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    env = screens.environment(home, stack.api_url, token(f"cli-{uuid.uuid4().hex[:8]}", "ledger:deposit"))

    def run(*words: str, code: int = 0, stdin: bytes = b"") -> Any:
        command = ["quittance", *words, "--json"]
        done = subprocess.run(command, env=env, cwd=work, input=stdin, capture_output=True, check=False)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return json.loads(done.stdout)

    return run


def test_an_agent_lives_from_nothing_to_retirement(quittance: Quittance) -> None:
    quittance("deposit", "5")
    quittance("new", "hello", "--lang", "c")
    first = quittance("publish", "hello", "--bond", "2")
    agent_id = first["agent_id"]
    called = quittance("call", "hello", "--text", "to be or not to be", "--budget", "0.05", "--share", "payer,log")
    assert called["success"] is True
    assert json.loads(called["output"])["words"] == 6
    refused = quittance("call", "hello", "--input", "-", code=3, stdin=b'{"txt": 1}')
    assert refused["error"]["exit_code"] == 3
    assert "text" in refused["error"]["message"]

    changed = quittance("price", "hello", "--flat", "0.02")
    assert agent_id in json.dumps(changed)
    second = quittance("publish", "hello")
    assert second["agent_id"] == agent_id
    listed = quittance("versions", "hello")
    assert [version["state"] for version in listed["versions"]] == ["active", "inactive"]
    quittance("rollback", "hello")
    back = quittance("versions", "hello")["versions"]
    assert [version["state"] for version in back] == ["inactive", "active"]
    quittance("rollback", "hello", "2")
    assert quittance("versions", "hello")["versions"][0]["state"] == "active"

    runs = until(lambda: quittance("runs", "hello")["runs"], "the run is not listed", pause_s=1)
    assert runs[0]["outcome"] == "succeeded"
    assert any(line["kind"] == "bond" for line in quittance("statement")["lines"])
    quittance("retire", "hello", "--yes")
    assert quittance("call", "hello", "--text", "x", code=3)["error"]["exit_code"] == 3


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_languages_template_is_published_and_paid(language: str, quittance: Quittance) -> None:
    """As a new user does it: new, publish (which builds and tests), call."""
    quittance("deposit", "5")
    quittance("new", "hello", "--lang", language)
    quittance("publish", "hello", "--bond", "2")
    done = quittance("call", "hello", "--text", "to be or not to be", "--save-receipt", "receipt.jws")
    assert (done["success"], json.loads(done["output"])["words"]) == (True, 6)
    assert Decimal(done["amount_paid"]) > 0
    quittance("result", done["task_id"], "--verify")


@pytest.mark.parametrize("name", INPUTS)
def test_run_states_the_fuel_and_price_that_are_charged(
    name: str, quittance: Quittance, publish: Callable[..., str], tmp_path: Path
) -> None:
    """Equal to the micro-credit, for success and for failure; with the task's own clock and seed, which some read."""
    module = module_of(name)
    agent_id = publish(module.read_bytes(), tariff=TARIFF, limits={"timeout": 25})
    quittance("deposit", "50")
    for data in INPUTS[name]:
        status = 0 if _succeeds(name, data) else 1
        words = ("--input", "-", "--budget", "5")
        charged = quittance("call", agent_id, *words, "--save-receipt", "receipt.jws", code=status, stdin=data)
        claims = receipt.read_claims((tmp_path / "work" / "receipt.jws").read_text().strip())
        start = ("--clock", claims["epoch_ns"], "--seed", claims["seed"])
        limits = ("--tariff", json.dumps(TARIFF), "--agent-timeout", "25", *PRICES)
        stated = quittance("run", str(module), *words, *start, *limits, code=status, stdin=data)
        assert stated["resource_usage"]["fuel_used"] == charged["resource_usage"]["fuel_used"]
        assert _amounts(stated) == _amounts(charged)


def module_of(name: str) -> Path:
    """The module of an example agent; one that is too large to commit is built."""
    committed = [*AGENTS.glob(f"{name}-*/{name}.wasm")]
    if committed:
        return committed[0]
    done = subprocess.run([sys.executable, AGENTS / "build.py", name], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return LOCAL / "agents" / f"{name}.wasm"


def _succeeds(name: str, data: bytes) -> bool:
    return name not in {"failing", "misbehave"} and (name == "echo" or data == INPUTS[name][0])


def _amounts(answer: dict[str, Any]) -> list[str]:
    return [answer[member] for member in ("amount_paid", "fee", "amount_refunded")]
