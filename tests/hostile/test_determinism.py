"""The same agent with the same input and start values gives the same result in several fresh processes."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quittance import limits
from quittance.run import Job, Outcome, Run
from quittance.sandbox import Sandbox, compile_module
from tests.depth import LONG
from tests.hostile.harness import EPOCH_NS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "agents"
BUILT = ROOT / ".local" / "agents"
PROCESSES = 20 if LONG else 5  # one after the other
BUILD_SECONDS_MAX = 300
TEXT = b'{"text": "the quick brown fox jumps over the lazy dog, the end", "top": 3}'
INVOICE = (
    b'{"currency": "EUR", "lines": [{"description": "x", "quantity": 3, "unit_price": "19.99", "tax_rate": "19"}]}'
)
EVERYTHING = b"""
import hashlib, json, random, sys, time
began = time.monotonic()
time.sleep(3600)
floats = [1 / 3, 2 ** 0.5, 1e300 * 10, -0.0, 0.1 + 0.2, float("nan"), 1e22, 5e-324]
print(time.time(), time.monotonic() - began, time.strftime("%c"))
print(random.random(), random.SystemRandom().random(), random.sample(range(1000), 5))
print({"b": 1, "a": 2}, set("determinism"), hash("text"), list({"red", "green", "blue"}))
print(floats, ["%.17g" % number for number in floats], sum(floats[:3]))
print(id(object()), hashlib.sha256(repr(sys.flags).encode()).hexdigest(), json.dumps({"x": 0.1}))
print(sys.version, file=sys.stderr)
"""

COMMITTED = {
    "wordcount": [TEXT, b'"one two two"', b"no JSON"],
    "echo": [b"", bytes(range(256)) * 100],
    "sieve": [b"100000", b"many"],
    "failing": [b"anything"],
    "coverage": [b'{"input": "a b c", "output": "b C d"}', b"no JSON"],
    "misbehave": [
        b"time",
        b"random",
        b"sleep 86400",
        b"exit 7",
        b"trap",
        b"memory",
        b"recurse",
        b"oob",
        b"div0",
        b"loop",
        b"flood",
        b"binary",
    ],
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, bytes], Job]:
    folder = tmp_path_factory.mktemp("artefacts")
    made: dict[Path, Job] = {}

    def job(module: Path, stdin: bytes) -> Job:
        if module not in made:
            artefact = compile_module(module.read_bytes())
            path = folder / artefact.key
            path.write_bytes(artefact.data)
            made[module] = Job(str(path), artefact.sha256, b"", 10**8, 64 * limits.MIB, 20_000, EPOCH_NS, b"seed")
        return dataclasses.replace(made[module], stdin=stdin)

    return job


def built(agent: str) -> Path:
    """Return the module of an agent that is too large to be committed; build it if it is missing."""
    module = BUILT / f"{agent}.wasm"
    if not module.exists():
        command = [sys.executable, str(EXAMPLES / "build.py"), agent]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS_MAX)
        if done.returncode:
            pytest.skip(f"examples/agents/build.py {agent}: {done.stderr[-200:]}")
    return module


def deterministic_part(run: Run) -> tuple[object, ...]:
    """Return everything that must be equal. The fuel must be equal even where the engine under-reports it."""
    meter = run.meter
    return (
        run.outcome,
        run.message,
        run.exit_code,
        run.stdout,
        run.stderr,
        meter.fuel,
        meter.fuel_exact,
        meter.memory_bytes,
        meter.output_bytes,
        meter.stderr_bytes,
    )


def runs_of(jobs: list[Job], processes: int) -> list[list[Run]]:
    """Run the jobs in fresh processes, every second time in reverse order, so that none can depend on the previous."""
    everything = []
    for index in range(processes):
        with Sandbox() as fresh:
            ordered = jobs[::-1] if index % 2 else jobs
            runs = [fresh.run(job) for job in ordered]
        everything.append(runs[::-1] if index % 2 else runs)
    return everything


def assert_equal(jobs: list[Job]) -> list[Run]:
    first, *others = runs_of(jobs, PROCESSES)
    for other in others:
        assert [deterministic_part(run) for run in other] == [deterministic_part(run) for run in first]
    assert not {Outcome.TIMEOUT, Outcome.WORKER_LOST} & {run.outcome for run in first}
    return first


def test_committed_agents_are_deterministic(compiled, record_property):
    assert {path.stem for path in EXAMPLES.glob("*/*.wasm")} == set(COMMITTED), "an agent has no inputs here"
    modules = {path.stem: path for path in EXAMPLES.glob("*/*.wasm")}
    jobs = [compiled(modules[name], stdin) for name, inputs in COMMITTED.items() for stdin in inputs]
    first = assert_equal(jobs)
    assert len({run.outcome for run in first}) >= 8, "the inputs no longer cover many outcomes"
    record_property("figure", f"{len(jobs)} runs of the committed agents are equal in {PROCESSES} processes")


def test_go_agent_is_deterministic(compiled):
    (run,) = assert_equal([compiled(built("invoice"), INVOICE)])
    assert run.outcome in {Outcome.SUCCEEDED, Outcome.EXIT_CODE}


def test_cpython_depends_on_seed_and_clock_alone(compiled):
    module = built("python")
    more = {"fuel": 10**10, "memory_bytes": limits.MEMORY_BYTES_DEFAULT}
    script = (EXAMPLES / "python-wasi" / "report.py").read_bytes()
    jobs = [dataclasses.replace(compiled(module, stdin), **more) for stdin in (EVERYTHING, script)]
    everything, report = assert_equal(jobs)
    assert {everything.outcome, report.outcome} == {Outcome.SUCCEEDED}, everything.stderr
    with Sandbox() as fresh:
        for other in ({"seed": b"other"}, {"epoch_ns": EPOCH_NS + 10**12}):
            changed = fresh.run(dataclasses.replace(jobs[0], **other))
            assert changed.outcome is Outcome.SUCCEEDED
            assert changed.stdout != everything.stdout
