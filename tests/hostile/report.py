"""Runs the hostile corpus and writes its table into docs/hostile.md.

    python tests/hostile/report.py

Exits with status 1 if a module did not end as expected; the table then states how it ended.
"""

import contextlib
import hashlib
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from quittance import limits
from quittance.sandbox import target

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "layers" / "runtime"))


from quittance.run import HOST_RULES, Outcome
from tests.hostile.corpus import CASES, FOLDER, FUEL, MEMORY_MIB, TIMEOUT_MS, Case
from tests.hostile.harness import Ending, Environment, failures

PAGE = Path(__file__).parents[2] / "docs" / "hostile.md"
BEGIN = re.compile(r"^<!-- the table: python tests/hostile/report.py, of ([0-9a-f]{64}) -->\n", re.MULTILINE)
END = "<!-- end of the table -->\n"


_SANDBOX_LIMIT_PREFIXES = (
    *("ARTEFACT_", "COMPILE_", "FUEL_", "HOST_", "IOVECS_", "KILL_", "LOAD_", "MEMORY_", "MODULE_", "OUTPUT_BYTES_"),
    *("POLL_", "RANDOM_", "STDERR_", "STDIN_", "TABLE_", "WORKER_"),
)


def sources_digest() -> str:
    """Return the digest of the table's sources: modules, their limits, the sandbox's limits, engine, configuration."""
    files = [FOLDER / "corpus.toml", FOLDER / "generated.py", *sorted((FOLDER / "modules").iterdir())]
    parts = [path.name.encode() + b"\0" + path.read_bytes() for path in files]
    bounds = sorted((name, value) for name, value in vars(limits).items() if name.startswith(_SANDBOX_LIMIT_PREFIXES))
    parts.append(repr((target.ENGINE_VERSION, sorted(target.CONFIG.items()), HOST_RULES, bounds)).encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def why_stale() -> list[str]:
    """Return why the page does not match its sources. Measured columns are not compared."""
    page = PAGE.read_text(encoding="utf-8")
    begin = BEGIN.search(page)
    if begin is None or begin[1] != sources_digest():
        return ["its table was made from other sources"]
    lines = page[begin.end() : page.index(END)].splitlines()
    written = [line.rsplit("|", 3)[0].rstrip() for line in lines if line.startswith("| [")]
    return [] if written == [_row(case).rstrip() for case in CASES] else ["its table was changed by hand"]


def rows(folder: Path) -> tuple[list[str], int]:
    """Run every case; return the lines of the table and the number of cases that failed."""
    lines: list[str] = []
    failed = 0
    group = ""
    with contextlib.closing(Environment(folder)) as environment:
        for case in CASES:
            if case.group != group:
                group = case.group
                lines += ["", f"### {group.capitalize()}", "", *_HEAD]
            ending = environment.run_case(case)
            found = failures(case, ending, environment)
            if not environment.is_unharmed():
                found.append("the next run was harmed")
            failed += bool(found)
            lines.append(_row(case, found) + _measured(ending))
    return lines, failed


_HEAD = ["| module | what it does | limits | ends with | in ms | worker MiB |", "|---|---|---|---|---|---|"]


def _row(case: Case, found: Sequence[str] = ()) -> str:
    """Return the part of a line that is the same in each run."""
    code = f"`{case.ends}`" + (f" {case.exit_code}" if case.exit_code is not None else "")
    if found:
        code += f" **but {'; '.join(found)}**".replace("|", "/").replace("\n", " ")
    name = f"[`{case.name}`](../tests/hostile/{case.source})"
    return f"| {name} | {case.does} | {_limits(case)} | {code} "


def _measured(ending: Ending) -> str:
    took = f"{ending.took_ms:.0f}" if ending.run else ""
    worker = f"{ending.worker_peak_bytes // limits.MIB}" if ending.run else ""
    return f"| {took} | {worker} |"


def _limits(case: Case) -> str:
    stated = [
        (case.ends == Outcome.TIMEOUT and case.timeout_ms != TIMEOUT_MS, f"{case.timeout_ms} ms"),
        (case.fuel != FUEL, f"{case.fuel:,} fuel"),
        (case.memory_mib != MEMORY_MIB, f"{case.memory_mib} MiB"),
        (case.compile_seconds != limits.COMPILE_SECONDS_MAX, f"{case.compile_seconds} s to compile"),
        (case.compile_mib * limits.MIB != limits.COMPILE_MEMORY_BYTES_MAX, f"{case.compile_mib} MiB to compile"),
    ]
    return ", ".join(text for is_stated, text in stated if is_stated)


def main() -> int:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        lines, failed = rows(Path(folder))
    page = PAGE.read_text(encoding="utf-8")
    before, after = BEGIN.split(page)[0], page.partition(END)[2]
    begin = f"<!-- the table: python tests/hostile/report.py, of {sources_digest()} -->\n"
    PAGE.write_text("".join((before, begin, "\n".join(lines), "\n\n", END, after)), encoding="utf-8")
    sys.stdout.write(f"{len(CASES)} modules, {failed} did not end as expected; {PAGE.name} was written\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
