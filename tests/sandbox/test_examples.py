"""The example agents, built by real compilers: they pass the checks, and their runs are equal in fresh processes."""

from pathlib import Path

import pytest

from quittance.run import Outcome
from quittance.sandbox import Sandbox, validate_module

AGENTS = sorted((Path(__file__).parents[2] / "examples" / "agents").rglob("*.wasm"))


@pytest.mark.parametrize("path", AGENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("stdin", [b"time", b'{"text": "one two two"}', b"print(1)"])
def test_example_agents_are_deterministic(make, path, stdin):
    module = path.read_bytes()
    assert "fd_write" in validate_module(module).imports
    seen = set()
    for _ in range(2):
        with Sandbox() as fresh:
            run = fresh.run(make(module, stdin=stdin, fuel=10**11, memory_bytes=2**28))
        assert run.outcome in {Outcome.SUCCEEDED, Outcome.EXIT_CODE, Outcome.TRAP_UNREACHABLE}, run.message
        assert run.meter.fuel_exact
        seen.add((run.outcome, run.exit_code, run.stdout, run.stderr, run.meter.fuel, run.meter.memory_bytes))
    assert len(seen) == 1
