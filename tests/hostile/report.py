"""Runs the hostile corpus and writes its table into docs/hostile.md.

    python tests/hostile/report.py

Ends with status 1 if a module did not end as it must; the table then says how it ended.
"""

import contextlib
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "layers" / "runtime"))

from quittance import limits
from quittance.run import Outcome
from tests.hostile.corpus import CASES, FUEL, MEMORY_MIB, TIMEOUT_MS, Case
from tests.hostile.harness import Ending, Environment, shortcomings

PAGE = Path(__file__).parents[2] / "docs" / "hostile.md"
BEGIN, END = "<!-- the table: python tests/hostile/report.py -->\n", "<!-- end of the table -->\n"


def rows(folder: Path) -> tuple[list[str], int]:
    """Run every case; give the lines of the table, and how many cases fell short."""
    lines: list[str] = []
    short = 0
    group = ""
    with contextlib.closing(Environment(folder)) as environment:
        for case in CASES:
            if case.group != group:
                group = case.group
                lines += ["", f"### {group.capitalize()}", "", *_HEAD]
            ending = environment.attempt(case)
            found = shortcomings(case, ending, environment)
            if not environment.is_unharmed():
                found.append("the next run was harmed")
            short += bool(found)
            lines.append(_row(case, ending, found))
    return lines, short


_HEAD = ["| module | what it does | limits | ends with | in ms | worker MiB |", "|---|---|---|---|---|---|"]


def _row(case: Case, ending: Ending, found: list[str]) -> str:
    code = f"`{case.ends}`" + (f" {case.exit_code}" if case.exit_code is not None else "")
    if found:
        code += f" **but {'; '.join(found)}**".replace("|", "/").replace("\n", " ")
    took = f"{ending.took_ms:.0f}" if ending.run else ""
    worker = f"{ending.worker_peak_bytes // limits.MIB}" if ending.run else ""
    name = f"[`{case.name}`](../tests/hostile/{case.source})"
    return f"| {name} | {case.does} | {_limits(case)} | {code} | {took} | {worker} |"


def _limits(case: Case) -> str:
    told = [
        (case.ends == Outcome.TIMEOUT and case.timeout_ms != TIMEOUT_MS, f"{case.timeout_ms} ms"),
        (case.fuel != FUEL, f"{case.fuel:,} fuel"),
        (case.memory_mib != MEMORY_MIB, f"{case.memory_mib} MiB"),
        (case.compile_seconds != limits.COMPILE_SECONDS_MAX, f"{case.compile_seconds} s to compile"),
        (case.compile_mib * limits.MIB != limits.COMPILE_MEMORY_BYTES_MAX, f"{case.compile_mib} MiB to compile"),
    ]
    return ", ".join(text for is_told, text in told if is_told)


def main() -> int:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        lines, short = rows(Path(folder))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text("".join((before, BEGIN, "\n".join(lines), "\n\n", END, after)), encoding="utf-8")
    sys.stdout.write(f"{len(CASES)} modules, {short} did not end as they must; {PAGE.name} is written\n")
    return int(short > 0)


if __name__ == "__main__":
    sys.exit(main())
