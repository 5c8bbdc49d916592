"""Runs the proofs in their long form, one after another, and prints a figure for each: `make proofs`.

    python -m tests.long_form             # all, except those that have passed on the same sources
    python -m tests.long_form fuzz        # only those whose name contains this word
    python -m tests.long_form --again     # also those that have passed
    python -m tests.long_form --short     # minutes instead of hours: what CI runs beside `make test`

A proof is a list of commands. Each command that passes is recorded with its figure under .local/proofs, so that an
interrupted run continues where it stopped. Their output goes to .local/logs/proofs.log. The exit status is 1 if a
command fails.
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

from local import processes, release
from local.paths import LOCAL, ROOT, write
from tests.proofs.engines import ENGINES

SOURCES = (
    "pyproject.toml",
    "layers",
    "functions",
    "template.yaml",
    "tests",
    "local",
    "benchmarks",
    "examples",
    "requirements",
    "samconfig.toml",
    "workflows",
    "events",
)
DONE, LOG = LOCAL / "proofs", LOCAL / "logs" / "proofs.log"
SEEDS, ESCROWS, MODULES, MODULES_AT_ONCE = 20, 1_000, 20_000, 2_000
# `report` runs those that write docs/performance.md.
REPORTED = {"audit", "cold_start", "cost", "growth", "path", "plots", "sandbox", "throughput"}
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in {"scale", *REPORTED})


@dataclass(frozen=True)
class Proof:
    """What is proved, and by which commands. `figure` is a word of the output line that states how much was tried."""

    name: str
    summary: str
    commands: tuple[tuple[str, ...], ...]
    figure: str

    def key(self, command: tuple[str, ...]) -> Path:
        """The file that records that a command has passed."""
        return DONE / f"{self.name}-{hashlib.sha256(repr(command).encode()).hexdigest()[:12]}.json"


def suite(name: str, summary: str, tests: str, figure: str = "passed") -> Proof:
    """A proof by tests that try more under QUITTANCE_LONG."""
    return Proof(name, summary, ((sys.executable, "-m", "pytest", f"tests/{tests}"),), figure)


def script(path: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, path, *words)


def ledger_fuzz(engine: str, seed: int, escrows: int) -> tuple[str, ...]:
    words = ("--engine", engine, "--first", str(seed), "--seeds", "1", "--escrows", str(escrows))
    return script("tests/proofs/fuzz.py", *words)


def sandbox_fuzz(first: int) -> tuple[str, ...]:
    words = ("--seed", "1", "--first", str(first), "--modules", str(MODULES_AT_ONCE))
    return script("tests/fuzz/fuzz.py", *words)


def proofs(*, short: bool) -> list[Proof]:
    """All proofs. The short form leaves out what `make test` already covers."""
    faults = "faults lose, double and strand nothing"
    if short:
        chosen = [Proof("ledger-fuzz-dynoxide", faults, (ledger_fuzz("dynoxide", 1, 200),), "escrows")]
        removed, bounds = ("take over",), "it runs"
    else:
        modules = tuple(sandbox_fuzz(first) for first in range(0, MODULES, MODULES_AT_ONCE))
        chosen = [
            suite("kills", "killed and stalled runners lose nothing", "e2e/test_kills.py", "kills:"),
            suite("batch", "killed workers of the queue lose nothing", "e2e/test_async.py", "batch:"),
            suite("channels", "32 clients use one channel", "e2e/test_channel_load.py", "channels:"),
            suite("model", "random programs agree with the model", "proofs/test_model.py", "programs agree"),
            suite("receipts", "two checkers of receipts agree", "proof/test_second_checker.py", "checkers agree"),
            suite("interleavings", "all orders of store calls", "proofs/test_interleavings.py", "walks"),
            suite("channels", "every operation on channels in every state", "proofs/test_channels.py", "states of a"),
            suite("channel-model", "programs of channels agree", "proofs/test_channel_programs.py", "programs with"),
            suite(
                "channel-interleavings",
                "all orders of store calls on a channel",
                "proofs/test_channel_interleavings.py",
                "walks",
            ),
            suite("determinism", "agents repeat", "hostile/test_determinism.py", "are the same"),
            Proof("sandbox-fuzz", "no mutated module harms the host", modules, "modules in"),
        ]
        for engine in ENGINES:
            rounds = tuple(ledger_fuzz(engine, seed, ESCROWS) for seed in range(1, SEEDS + 1))
            chosen.append(Proof(f"ledger-fuzz-{engine}", faults, rounds, "escrows"))
        removed, bounds = (), "its bounds hold"
    mutants = (script("tests/proofs/mutants.py", *removed),)
    return [
        *chosen,
        suite("stand-in", "the stand-in answers as DynamoDB engines do", "proofs/test_memory.py"),
        Proof("mutants", "the tests catch the removal of each guard of the ledger", mutants, "mutants caught"),
        suite("containers", "the functions in containers answer alike", "sam_local"),
        *(Proof(f"benchmark-{name}", bounds, (script(f"benchmarks/{name}.py"),), "") for name in BENCHMARKS),
    ]


def prove(proof: Proof, digest: str, environment: dict[str, str], *, again: bool) -> list[str]:
    """Run the commands that have not passed yet; return the errors."""
    _print(f"▸ {proof.name}: {proof.summary}")
    for number, command in enumerate(proof.commands, 1):
        note = proof.key(command)
        if not again and note.is_file() and (done := json.loads(note.read_text()))["sources"] == digest:
            _print(f"  ✓ {done['figure']} ({done['seconds']:.0f} s, earlier)")
            continue
        began = time.monotonic()
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=processes.end_with_parent,
        )
        output, seconds = ran.stdout + ran.stderr, time.monotonic() - began
        with LOG.open("a") as sink:
            sink.write(f"\n$ {' '.join(command)}\n{output}")
        if ran.returncode:
            words = " ".join(Path(word).name if word == sys.executable else word for word in command)
            _print(f"  ✗ {_figure(output, 'rror')} ({seconds:.0f} s)")
            return [f"{proof.name} failed: {words} (full output: {LOG.relative_to(ROOT)})"]
        figure = _figure(output, proof.figure)
        write(note, json.dumps({"sources": digest, "figure": figure, "seconds": seconds}))
        _print(f"  ✓ {figure} ({seconds:.0f} s, {number} of {len(proof.commands)})")
    return []


def _figure(output: str, word: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith('{"_aws"')]
    return next((line for line in reversed(lines) if word in line), lines[-1] if lines else "nothing")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the proofs in their long form.")
    parser.add_argument("word", nargs="?", default="", help="run only the proofs whose name contains this word")
    parser.add_argument("--short", action="store_true", help="run the short form: minutes instead of hours")
    parser.add_argument("--again", action="store_true", help="also run proofs that have passed on these sources")
    options = parser.parse_args()
    LOG.parent.mkdir(parents=True, exist_ok=True)
    engines = {"QUITTANCE_ENGINES": ",".join(ENGINES)}
    environment = {**os.environ, **engines, "PYTHONPATH": f"{ROOT}:{ROOT / 'layers/runtime'}"}
    environment |= {"QUITTANCE_QUICK": "1"} if options.short else {"QUITTANCE_LONG": "1", "QUITTANCE_SAM_LOCAL": "1"}
    digest = release.sources_digest(SOURCES)
    chosen = [proof for proof in proofs(short=options.short) if options.word in proof.name]
    failed = []
    for proof in chosen:
        failed += prove(proof, digest, environment, again=options.again)
    _print(f"{len(chosen) - len(failed)} of {len(chosen)} proofs hold")
    for error in failed:
        _print(f"✗ {error}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
