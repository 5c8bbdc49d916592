"""Replay of receipts of real runs: it accepts equal runs and names each difference."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import wasmtime

from quittance.ledger.escrow import Escrow, StoredBytes, decide, escrow_id, task_seed
from quittance.limits import MIB
from quittance.proof import receipt, replay, verify
from quittance.proof.statement import Flaw, ProofError
from quittance.proof.verify import EXITS, Evidence, examine
from quittance.run import HOST_RULES, Limits, Outcome, Run
from quittance.sandbox import (
    CONFIG_DIGEST,
    CPU_TARGET,
    ENGINE_DIGEST,
    ENGINE_VERSION,
    artefact_key,
    config_digest,
    host_rules_of,
)
from tests.proof import receipts
from tests.proof.roots import NOW_S, Root
from tests.support import ROOT as PROJECT
from tests.support import wasm

ROOT = Root()
KEY = ROOT.certify()
EID = escrow_id("user", "task")
LIMITS = Limits(fuel=10**9, memory_bytes=16 * MIB, timeout_ms=5_000)
WORDS = b'{"text": "one two two"}'


def wat(body: str, memory: str = '(memory (export "memory") 1)') -> bytes:
    imports = (
        '(import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))'
        '(import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))'
        '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))'
        '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
    )
    return bytes(wasmtime.wat2wasm(f'(module {imports} {memory} (func (export "_start") {body}))'))


# Writes the clock and eight random bytes to standard output and standard error.
DICE = wat("""
    (drop (call $clock (i32.const 0) (i64.const 1) (i32.const 16)))
    (drop (call $random (i32.const 24) (i32.const 8)))
    (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const 16))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
""")
LOOPS = wat("(loop (br 0))")
FAILS = wat("(call $exit (i32.const 3))")
DIVIDES = wat("(drop (i32.div_s (i32.const 1) (i32.load (i32.const 0))))")
GROWS = wat(
    "(if (i32.eq (memory.grow (i32.const 230)) (i32.const -1)) (then (unreachable)))"
    "(if (i32.eq (memory.grow (i32.const 230)) (i32.const -1)) (then (unreachable)))"
)


@pytest.fixture(scope="module")
def settled(make, sandbox):
    """Do what the platform does for a task: run it and decide; return the claims of its receipt."""

    def settle(module: bytes, stdin: bytes = b"", limits: Limits = LIMITS, **changes):
        job = make(module, stdin=stdin, fuel=limits.fuel, memory_bytes=limits.memory_bytes, seed=task_seed(EID))
        more = {"timeout_ms": limits.timeout_ms, "output_bytes": limits.output_bytes, "epoch_ns": NOW_S * 10**9}
        run = sandbox.run(replace(job, **more))
        escrow = Escrow(
            escrow_id=EID, payer="user", task_id="task", request_sha256="", agent_id="agt", owner="owner",
            module_sha256=hashlib.sha256(module).hexdigest(), input_sha256=hashlib.sha256(stdin).hexdigest(),
            tariff='{"type":"flat","price":"0.4"}', budget_micro=10**6, fee_bps=250,
            timeout_ms=limits.timeout_ms, runner="r", fence=1, funded_ms=NOW_S * 1_000, lease_ms=NOW_S * 1_000 + 1,
            expires_ms=NOW_S * 1_000 + 90_000,
        )  # fmt: skip
        kept = lambda data: StoredBytes(hashlib.sha256(data).hexdigest(), len(data), data)  # noqa: E731 - used here only
        done = decide(escrow, run, now_ms=NOW_S * 1_000 + 9)
        done = replace(done, stderr=kept(run.stderr), output=kept(run.stdout) if done.state == "released" else None)
        engine = {"engine": ENGINE_VERSION, "config_sha256": CONFIG_DIGEST}
        stated = receipts.claims_of(
            escrow, done, issuer="i", run=Run(Outcome.SUCCEEDED, "", run.meter, limits=limits), **engine
        )
        return json.loads(json.dumps(stated)) | changes

    return settle


def replayed(claims, module: bytes, stdin: bytes = b""):
    """Replay; return the exit status, the sentence of the check, and the report."""
    given = Evidence(receipts.sign(claims, KEY), json.dumps(ROOT.jwks()).encode(), module, stdin)
    report = examine(given)
    assert report.exit_status == 0
    verify._replay(report, given)
    return report.exit_status, {check.name: check.sentence for check in report.checks}["replay"], report


@pytest.mark.parametrize(
    ("module", "stdin", "limits", "outcome", "exact"),
    [
        (wasm("wordcount"), WORDS, LIMITS, Outcome.SUCCEEDED, True),
        (wasm("echo"), b"hello", LIMITS, Outcome.SUCCEEDED, True),
        (wasm("sieve"), b"1000", LIMITS, None, True),
        (wasm("failing"), b"", LIMITS, Outcome.EXIT_CODE, True),
        (DICE, b"", LIMITS, Outcome.SUCCEEDED, True),
        (FAILS, b"", LIMITS, Outcome.EXIT_CODE, True),
        (LOOPS, b"", replace(LIMITS, fuel=12_345), Outcome.FUEL_EXHAUSTED, True),
        (DIVIDES, b"", LIMITS, Outcome.TRAP_ARITHMETIC, False),
        (GROWS, b"", LIMITS, Outcome.MEMORY_LIMIT, True),
        (DICE, b"", replace(LIMITS, output_bytes=15), Outcome.OUTPUT_LIMIT, True),
        (DICE, b"", replace(LIMITS, output_bytes=16), Outcome.SUCCEEDED, True),
        (GROWS, b"", replace(LIMITS, memory_bytes=32 * MIB), Outcome.SUCCEEDED, True),
    ],
)  # fmt: skip
def test_replay_reproduces_the_run_to_the_unit_of_fuel(settled, module, stdin, limits, outcome, exact):
    claims = settled(module, stdin, limits)
    assert outcome in (None, claims["outcome"])
    assert claims["meter"]["fuel_exact"] is exact
    status, said, _ = replayed(claims, module, stdin)
    assert status == 0, said
    assert said.endswith(f"{claims['meter']['fuel']} fuel" if exact else "the fuel not compared, it is not exact")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output_sha256": "00" * 32}, "the output's SHA-256 of the replay is .*, the receipt states 0000"),
        ({"stderr_sha256": "00" * 32}, "the log's SHA-256 of the replay is"),
        ({"meter": {"fuel": 7}}, "the fuel of the replay is [0-9]+, the receipt states 7"),
        ({"meter": {"memory_bytes": 0}}, "the memory_bytes of the replay is 65536, the receipt states 0"),
        ({"meter": {"output_bytes": 15}}, "the output_bytes of the replay is 16, the receipt states 15"),
        ({"meter": {"fuel_exact": False}}, "the fuel_exact of the replay is True, the receipt states False"),
        ({"limits": {"fuel": 10}, "meter": {"fuel": 10}}, "the outcome of the replay is fuel_exhausted, the"),
    ],
    ids=str,
)  # fmt: skip
def test_replay_detects_each_altered_claim(settled, change, said):
    claims = settled(DICE)
    assert claims["meter"]["fuel"] > 10
    for name, value in change.items():
        claims[name] = claims[name] | value if isinstance(value, dict) else value
    status, sentence, _ = replayed(claims, DICE)
    assert status == EXITS[Flaw.REPLAY][0]
    assert re.search(said, sentence)


def test_replay_detects_a_success_reported_as_failure(settled):
    """A platform could keep the output and report that the agent failed."""
    honest = settled(DICE)
    lie = settled(FAILS, module_sha256=honest["module_sha256"])
    status, sentence, _ = replayed(lie, DICE)
    assert status == EXITS[Flaw.REPLAY][0]
    assert "the outcome of the replay is succeeded, the receipt states exit_code" in sentence


def test_replay_on_another_engine_compares_output_but_not_counts(settled):
    claims = settled(DICE, engine="49.0.0")
    claims["meter"]["fuel"] = 7
    status, said, report = replayed(claims, DICE)
    assert (status, said.endswith("counts were not compared")) == (0, True)
    assert [check.name for check in report.checks if check.result == "noted"] == ["engine"]
    status, said, _ = replayed(claims | {"output_sha256": "00" * 32}, DICE)
    assert status == EXITS[Flaw.REPLAY][0]
    starved = settled(LOOPS, b"", replace(LIMITS, fuel=99), config_sha256="00" * 32)
    assert replayed(starved, LOOPS)[0] == 0
    claims["limits"]["fuel"] = 10
    status, said, _ = replayed(claims, DICE)
    assert status == EXITS[Flaw.UNREPEATABLE][0]
    assert said.startswith(
        "the receipt is of another engine, so this proves nothing: the outcome of the replay is fuel_"
    )


RULES = sorted((Path(__file__).parent / "receipts").glob("rules-*"))


@pytest.mark.parametrize("folder", RULES, ids=lambda folder: folder.name)
def test_receipts_of_every_host_rules_version_replay(folder: Path):
    """Each replays under its own rules: see receipts/make.py.

    Counts are compared where this machine can make the artefact.
    """
    jwks, text = (folder / "jwks.json").read_bytes(), (folder / "receipt.jws").read_text()
    module, stdin = (folder / "module.wasm").read_bytes(), (folder / "input").read_bytes()
    report = examine(Evidence(text, jwks, module, stdin, output=(folder / "output").read_bytes()))
    assert report.exit_status == 0
    claims = receipt.verify(text, json.loads(jwks))
    rules = host_rules_of(claims["config_sha256"])
    assert folder.name == f"rules-{rules}"
    stated = receipt.authenticate(text, json.loads(jwks))[0]
    done = replay.replay(stated, module, stdin)
    assert done.run.stdout == (folder / "output").read_bytes()
    assert done.same_engine or CPU_TARGET != "x86_64-avx2"
    if done.same_engine:
        assert done.run.meter.fuel == claims["meter"]["fuel"]
    for others in set(range(1, HOST_RULES + 1)) - {rules}:
        other = config_digest(others)
        with pytest.raises(ProofError):
            replay.replay(stated.model_copy(update={"config_sha256": other}), module, stdin)


def test_each_host_rules_version_has_a_stored_receipt():
    assert [folder.name for folder in RULES] == [f"rules-{rules}" for rules in range(1, HOST_RULES + 1)]
    assert host_rules_of(CONFIG_DIGEST) == HOST_RULES
    assert host_rules_of("00" * 32) is None


def test_new_host_rules_need_no_new_artefact():
    """Artefacts are named with the digest of version 1, so nothing published before is recompiled."""
    stated = receipt.read_claims((RULES[0] / "receipt.jws").read_text())
    assert (stated["engine"], stated["config_sha256"]) == (ENGINE_VERSION, config_digest(1))
    assert ENGINE_DIGEST == config_digest(1) != CONFIG_DIGEST
    assert ENGINE_DIGEST[:16] in artefact_key("module")


def test_timeouts_and_platform_faults_are_not_replayed(settled):
    timeout = settled(LOOPS, b"", Limits(fuel=10**12, memory_bytes=MIB, timeout_ms=1_000))
    assert timeout["outcome"] == "timeout"
    nothing = dict.fromkeys(timeout["meter"], 0) | {"fuel_exact": True}
    unrun = timeout | {"outcome": "superseded", "fault": "none", "reputation_tenths": 0, "meter": nothing}
    unrun |= {"limits": None, "engine": "", "config_sha256": "", "stderr_sha256": None}
    lost = timeout | {"outcome": "worker_lost", "fault": "platform", "reputation_tenths": 0}
    for claims, module, said in (
        (timeout, LOOPS, "ended by the clock"),
        (lost, LOOPS, r"the platform's fault (worker_lost)"),
        (unrun, LOOPS, "does not state the limits"),
    ):
        status, sentence, _ = replayed(claims, module)
        assert status == EXITS[Flaw.UNREPEATABLE][0]
        assert said in sentence


def test_replay_without_a_usable_sandbox_is_inconclusive(settled, monkeypatch):
    junk = b"no module"
    claims = settled(DICE, module_sha256=hashlib.sha256(junk).hexdigest())
    status, said, _ = replayed(claims, junk)
    assert (status, said.startswith("the sandbox rejects the module")) == (EXITS[Flaw.NO_SANDBOX][0], True)
    beyond = settled(DICE)
    beyond["limits"]["memory_bytes"] = 2**50
    status, said, _ = replayed(beyond, DICE)
    assert (status, "beyond the platform's limits" in said) == (EXITS[Flaw.NO_SANDBOX][0], True)
    monkeypatch.setitem(sys.modules, "quittance.proof.replay", None)
    monkeypatch.delattr("quittance.proof.replay")
    status, said, _ = replayed(settled(DICE), DICE)
    assert (status, said.startswith("the sandbox cannot be loaded")) == (EXITS[Flaw.NO_SANDBOX][0], True)


def test_verify_command_replays_a_receipt(settled, tmp_path: Path):
    files = {"keys": json.dumps(ROOT.jwks()).encode(), "module": wasm("wordcount"), "input": WORDS}
    (tmp_path / "receipt").write_text(receipts.sign(settled(wasm("wordcount"), WORDS), KEY))
    options = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        options += [f"--{name}", str(tmp_path / name)]
    command = [sys.executable, "-m", "quittance.proof.verify", str(tmp_path / "receipt"), *options, "--replay"]
    env = {"PYTHONPATH": str(PROJECT / "layers/runtime")}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok        replay     the module ran again: succeeded, the same output and log," in done.stdout
