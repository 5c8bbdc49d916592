"""Measures everything that docs/performance.md states, and writes it.

    python benchmarks/report.py              # minutes; writes docs/performance.md and its plots
    python benchmarks/report.py growth       # measures this part again, and takes the others from the last run
    QUITTANCE_QUICK=1 python benchmarks/report.py    # proves that it runs; writes to .local/performance

Each part is a script of its own and runs alone. What one prints stays what the document shows; nothing is rounded or
chosen here.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from cost import PRICES, PRICES_DATE
from scale import QUICK

from local import venvs
from local.paths import LOCAL, ROOT

HOME: Final = LOCAL / "performance"
DOCUMENT: Final = HOME / "performance.md" if QUICK else ROOT / "docs" / "performance.md"
PLOTS: Final = DOCUMENT.parent / "performance"


@dataclass(frozen=True)
class Part:
    """A benchmark and what the document says of it. `shows` are the names of its plots."""

    script: str
    title: str
    about: str
    shows: tuple[str, ...]


PARTS: Final = (
    Part(
        "path",
        "The path of a task",
        "Everything of a task but its guest and its storage. `boto3` is the same task in the same run with boto3's"
        " client of DynamoDB in place of ours ([ADR 42](adr/0042-our-own-last-mile-to-dynamodb.md)). A task makes two"
        " calls of DynamoDB; `with a slot`, as `AccountConcurrency` has it by default, two more"
        " ([ADR 24](adr/0024-an-account-has-slots.md)).",
        ("processor", "path"),
    ),
    Part(
        "cost",
        "Cost",
        "Counted from the calls of real tasks. The saga is a standard workflow of Step Functions with a function for"
        " each step; the reference design has three SQL transactions, without the instances of its database."
        " Below is what a billion old escrows cost a month: all in the table, or with tombstones in the table and"
        " the rest in S3 ([ADR 44](adr/0044-an-archive-of-old-escrows.md)). The rows of the listings stay either way.",
        ("cost",),
    ),
    Part(
        "sandbox",
        "The sandbox",
        "A run through the sandbox beside the same module without it. What the figures consist of:"
        " [sandbox.md](sandbox.md#what-a-run-costs).",
        ("sandbox",),
    ),
    Part(
        "throughput",
        "Throughput of the local cloud",
        "Gateway, database, functions, sandboxes and clients share the machine, so this is no forecast for AWS."
        " It shows that nothing collapses as clients are added, and what a task costs beside a read of one item.",
        ("throughput",),
    ),
    Part(
        "cold_start",
        "Cold starts",
        "Processor time of a new environment before its first request: imports, and the parts that the first request"
        " needs. With SnapStart, `restored` takes their place. In units of a Python process that imports `json` and"
        " `logging`.",
        ("cold_start",),
    ),
    Part(
        "audit",
        "The audit",
        "What an audit of a table of a million escrows takes, from real audits of small tables, and the plan for ten"
        " million ([ADR 43](adr/0043-the-audit-runs-in-parts.md)).",
        (),
    ),
    Part(
        "growth",
        "Growth",
        "A simulation, with measured steps and the limits that AWS documents. It shows what bends first.",
        ("growth",),
    ),
)

_ABOUT: Final = "Other work on the machine changes the times; the ratios to what ran in the same run hardly change."


def main() -> int:
    """Measure and write; return 1 if a part exceeds one of its limits."""
    HOME.mkdir(parents=True, exist_ok=True)
    chosen = sys.argv[1:] or [part.script for part in PARTS]
    missed = [part.script for part in PARTS if part.script in chosen and _run(part)]
    figures = {part.script: json.loads(_figures(part).read_text()) for part in PARTS}
    collected = HOME / "figures.json"
    collected.write_text(json.dumps({"prices": PRICES, **figures}))
    python = venvs.ensure("plots") / "python"
    subprocess.run([python, ROOT / "benchmarks" / "plots.py", collected, PLOTS], check=True)
    DOCUMENT.write_text(_document())
    print(f"✓ {DOCUMENT.relative_to(ROOT)}")
    return int(bool(missed))


def _run(part: Part) -> bool:
    """Run a part and keep what it prints and measures; return whether it exceeds a limit."""
    print(f"▸ {part.title}: python benchmarks/{part.script}.py", flush=True)
    began = time.monotonic()
    _figures(part).unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "benchmarks" / f"{part.script}.py"), "--json", str(_figures(part))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT, env=os.environ)
    if not _figures(part).exists():
        message = f"benchmarks/{part.script}.py wrote no figures"
        raise SystemExit(message)
    _printed(part).write_text(done.stdout)
    print(f"{'✗' if done.returncode else '✓'} {part.title:<32}{time.monotonic() - began:8.0f} s", flush=True)
    return done.returncode != 0


def _figures(part: Part) -> Path:
    return HOME / f"{part.script}{'-quick' if QUICK else ''}.json"


def _printed(part: Part) -> Path:
    return _figures(part).with_suffix(".txt")


def _document() -> str:
    """The document: what each part printed, under its title, with its plots."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("wasmtime", "botocore", "pydantic")]
    packages = ", ".join([f"Python {platform.python_version()}", *versions])
    measured = f"Measured on {datetime.datetime.now(datetime.UTC).date()}: {_machine()}, {packages}."
    lines = ["# Performance", "", f"`make bench` writes this page. {measured}", _ABOUT, f"Prices are of {PRICES_DATE}."]
    for part in PARTS:
        lines += ["", f"## {part.title}", "", f"`python benchmarks/{part.script}.py`. {part.about}", ""]
        lines += [f"![{part.title}](performance/{name}.svg)" for name in part.shows]
        lines += ["", "```text", _printed(part).read_text().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _machine() -> str:
    """The processor and the number of cores."""
    about = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in about.splitlines() if line.startswith("model name")), "")
    return f"{len(os.sched_getaffinity(0))} cores of {model or platform.machine()}"


if __name__ == "__main__":
    sys.exit(main())
