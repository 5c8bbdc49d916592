"""The command line on the deployed stack: the whole life of an agent, and the prices that `quittance run` states."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local import screens
from local.paths import LOCAL, ROOT, Stack
from tests.waiting import until

AGENTS = ROOT / "examples" / "agents"
INPUTS = {
    "wordcount": [b'{"text": "to be or not to be"}', b"not JSON"],
    "sieve": [b"100", b"-1"],
    "echo": [b"", b"\x00\xff" * 600],
    "coverage": [b'{"input": "a b", "output": "a"}', b"{}"],
    "failing": [b"anything"],
    "misbehave": [b"trap", b"flood"],
}
"""For each committed example agent inputs that succeed and that fail."""
PRICES = ["--commission-bps", "250", "--compute-run", "0", "--compute-fuel", "0"]  # as the tests' stack has them
TARIFF = {"type": "metered", "base": "0.001", "per_million_fuel": "0.003", "per_kib_output": "0.0005"}
Quittance = Callable[..., Any]


@pytest.fixture
def quittance(stack: Stack, token: Callable[..., str], tmp_path: Path) -> Quittance:
    """`quittance("call", "hello", code=0)`: the JSON document that a command prints, for a user of its own."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    screens.write_profile(home, stack.api_url, token(f"cli-{uuid.uuid4().hex[:8]}", "ledger:deposit"))
    env = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(str(ROOT / name) for name in ("layers/runtime", "client", "cli")),
        "QUITTANCE_TOOLS": str(LOCAL),
        "NO_PROXY": "127.0.0.1",
    }

    def run(*words: str, code: int = 0, stdin: bytes = b"") -> Any:
        command = [sys.executable, "-m", "quittance.cli", *words, "--json"]
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


@pytest.mark.parametrize("name", INPUTS)
def test_run_states_the_fuel_and_price_that_are_charged(
    name: str, quittance: Quittance, stack: Stack, publish: Callable[..., str], tmp_path: Path
) -> None:
    """Equal to the micro-credit, for success and for failure."""
    (module,) = AGENTS.glob(f"{name}-*/{name}.wasm")
    agent_id = publish(module.read_bytes(), tariff=TARIFF)
    quittance("deposit", "5")
    for data in INPUTS[name]:
        words = ("--input", "-", "--budget", "0.5", "--tariff", json.dumps(TARIFF), *PRICES)
        status = 0 if _succeeds(name, data) else 1
        stated = quittance("run", str(module), *words, code=status, stdin=data)
        charged = quittance("call", agent_id, "--input", "-", "--budget", "0.5", code=status, stdin=data)
        assert stated["resource_usage"]["fuel_used"] == charged["resource_usage"]["fuel_used"]
        assert _amounts(stated) == _amounts(charged)


def _succeeds(name: str, data: bytes) -> bool:
    return name not in {"failing", "misbehave"} and (name == "echo" or data == INPUTS[name][0])


def _amounts(answer: dict[str, Any]) -> list[str]:
    return [answer[member] for member in ("amount_paid", "fee", "amount_refunded")]
