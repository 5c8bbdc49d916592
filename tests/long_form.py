"""The proofs in their long form, one after the other, each with its figure: what `make proofs` runs.

    python -m tests.long_form             # all; those that have passed on these very sources are not run again
    python -m tests.long_form fuzz        # those whose name holds a word
    python -m tests.long_form --again     # those that have passed, too
    python -m tests.long_form --short     # minutes instead of hours: what CI runs beside `make test`

A proof is a list of commands. Each that has passed is noted under .local/proofs with its figure, so a run that was
interrupted goes on where it was. Their output is in .local/logs/proofs.log. Exit status 1 if one fails.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from local.paths import LOCAL, ROOT, write
from tests import clouds

SOURCES = ("layers", "functions", "template.yaml", "tests", "local", "benchmarks", "examples", "requirements")
DONE, LOG = LOCAL / "proofs", LOCAL / "logs" / "proofs.log"
SEEDS, MODULES, MODULES_AT_ONCE = 20, 20_000, 2_000
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "scale")


@dataclass(frozen=True)
class Proof:
    """What is proved, and by which commands; a word for how its figure is found in their output."""

    name: str
    says: str
    commands: tuple[tuple[str, ...], ...]
    figure: str

    def key(self, command: tuple[str, ...]) -> Path:
        """Where it is noted that a command has passed."""
        return DONE / f"{self.name}-{hashlib.sha256(repr(command).encode()).hexdigest()[:12]}.json"


def pytest(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", *words)


def script(path: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, path, *words)


def ledger_fuzz(engine: str, seed: int, escrows: int) -> tuple[str, ...]:
    words = ("--engine", engine, "--first", str(seed), "--seeds", "1", "--escrows", str(escrows))
    return script("tests/ledger/fuzz.py", *words)


def sandbox_fuzz(first: int) -> tuple[str, ...]:
    words = ("--seed", "1", "--first", str(first), "--modules", str(MODULES_AT_ONCE))
    return script("tests/fuzz/fuzz.py", *words)


def proofs(*, short: bool) -> list[Proof]:
    """All proofs. The short ones hold only what `make test` does not."""
    memory = pytest("tests/ledger/test_memory.py")
    containers = Proof("containers", "the functions in containers answer alike", (pytest("tests/sam_local"),), "passed")
    mutants = Proof("mutants", "each guard of the ledger is missed when it is removed", (), "mutants caught")
    benchmarks = [
        Proof(f"benchmark-{name}", "it runs" if short else "its bounds hold", (script(f"benchmarks/{name}.py"),), "")
        for name in BENCHMARKS
    ]
    if short:
        fuzz = tuple(ledger_fuzz(engine, 1, 200) for engine in ("dynoxide",))
        return [
            Proof("ledger-fuzz", "faults lose, double and strand nothing", fuzz, "escrows"),
            Proof("stand-in", "the stand-in answers as DynamoDB engines do", (memory,), "passed"),
            with_commands(mutants, script("tests/ledger/mutants.py", "take over")),
            containers,
            *benchmarks,
        ]
    modules = tuple(sandbox_fuzz(first) for first in range(0, MODULES, MODULES_AT_ONCE))
    return [
        Proof("kills", "killed and stalled runners lose nothing", (pytest("tests/e2e/test_kills.py"),), "kills:"),
        Proof("batch", "killed workers of the queue lose nothing", (pytest("tests/e2e/test_async.py"),), "batch:"),
        Proof("model", "random programs agree with the model", (pytest("tests/ledger/test_model.py"),), "passed"),
        Proof("interleavings", "all orders of store calls", (pytest("tests/ledger/test_interleavings.py"),), "walks"),
        Proof("stand-in", "the stand-in answers as DynamoDB engines do", (memory,), "passed"),
        *(
            Proof(
                f"ledger-fuzz-{engine}",
                f"faults lose, double and strand nothing on {engine}",
                tuple(ledger_fuzz(engine, seed, 1_000) for seed in range(1, SEEDS + 1)),
                "escrows",
            )
            for engine in ("ministack", "dynoxide")
        ),
        Proof("sandbox-fuzz", "no mutated module harms the host", modules, "modules in"),
        Proof("determinism", "agents repeat", (pytest("tests/hostile/test_determinism.py"),), "passed"),
        with_commands(mutants, script("tests/ledger/mutants.py")),
        containers,
        *benchmarks,
    ]


def with_commands(proof: Proof, *commands: tuple[str, ...]) -> Proof:
    return Proof(proof.name, proof.says, commands, proof.figure)


def sources() -> str:
    """A digest of all that a proof depends on."""
    digest = hashlib.sha256()
    for name in SOURCES:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def prove(proof: Proof, digest: str, environment: dict[str, str], *, again: bool) -> list[str]:
    """Runs what has not passed yet; the complaints."""
    _say(f"▸ {proof.name}: {proof.says}")
    for number, command in enumerate(proof.commands, 1):
        note = proof.key(command)
        if not again and note.is_file() and (done := json.loads(note.read_text()))["sources"] == digest:
            _say(f"  ✓ {done['figure']} ({done['seconds']:.0f} s, earlier)")
            continue
        began = time.monotonic()
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        said, seconds = ran.stdout + ran.stderr, time.monotonic() - began
        with LOG.open("a") as sink:
            sink.write(f"\n$ {' '.join(command)}\n{said}")
        if ran.returncode:
            words = " ".join(Path(word).name if word == sys.executable else word for word in command)
            _say(f"  ✗ {_figure(said, 'rror')} ({seconds:.0f} s)")
            return [f"{proof.name} failed: {words} (all of it: {LOG.relative_to(ROOT)})"]
        figure = _figure(said, proof.figure)
        write(note, json.dumps({"sources": digest, "figure": figure, "seconds": seconds}))
        _say(f"  ✓ {figure} ({seconds:.0f} s, {number} of {len(proof.commands)})")
    return []


def _figure(said: str, word: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith('{"_aws"')]
    return next((line for line in reversed(lines) if word in line), lines[-1] if lines else "nothing")[:200]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the proofs in their long form.")
    parser.add_argument("word", nargs="?", default="", help="those whose name holds it")
    parser.add_argument("--short", action="store_true", help="minutes instead of hours")
    parser.add_argument("--again", action="store_true", help="also those that have passed on these sources")
    asked = parser.parse_args()
    clouds.hold_lifeline()
    LOG.parent.mkdir(parents=True, exist_ok=True)
    engines = {"QUITTANCE_ENGINES": "ministack,dynoxide"}
    environment = {**os.environ, **engines, "PYTHONPATH": f"{ROOT}:{ROOT / 'layers/runtime'}"}
    environment |= {"QUITTANCE_QUICK": "1"} if asked.short else {"QUITTANCE_LONG": "1", "QUITTANCE_SAM_LOCAL": "1"}
    digest = sources()
    chosen = [proof for proof in proofs(short=asked.short) if asked.word in proof.name]
    failed = []
    for proof in chosen:
        failed += prove(proof, digest, environment, again=asked.again)
    _say(f"{len(chosen) - len(failed)} of {len(chosen)} proofs hold")
    for complaint in failed:
        _say(f"✗ {complaint}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
