"""The terminal output of a test run: each suite as it starts, its progress, and one screen at the end.

A suite is a folder of tests/. The last screen lists each failure with the command that runs only that test, the skips
with their reasons, the slowest tests, and the wall-clock and processor time of each suite. A test reports a figure with
`record_property("figure", …)`, which is printed at once. `-v` gives pytest's usual output instead.
"""

import os
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

SLOWEST = 10
FAILURES_SHOWN = 25
SHOWN_EVERY_S = 20.0
LINE_CHARS = 160
PLAIN_ID = re.compile(r"[\w./:\[\]=+,-]+")


@dataclass
class Suite:
    """The tests of one folder and their results."""

    name: str
    tests: int
    began: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)
    clock_s: float = 0.0
    processor_s: float = 0.0

    @property
    def done(self) -> int:
        return self.ended.total()

    def line(self) -> str:
        """A line with the progress of this suite."""
        failed = f", {self.ended['failed']} failed" if self.ended["failed"] else ""
        return f"{self.name:<12} {self.done:>5} of {self.tests:<5} {time.monotonic() - self.began:6.0f} s{failed}"


class Progress:
    """Receives the events of a run, in the process that writes to the terminal."""

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal
        self._suites: dict[str, Suite] = {}
        self._took: Counter[str] = Counter()
        self._failures: list[pytest.TestReport] = []
        self._outcomes: dict[str, str] = {}
        self._skips: Counter[str] = Counter()
        self._clouds_s = 0.0
        self._shown = time.monotonic()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """A run in one process has collected its tests."""
        self._count(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """A run in several processes has collected its tests; each process reports the same list."""
        self._count(iter(ids))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """One of several processes has ended."""
        self._clouds_s += getattr(node, "workeroutput", {}).get("clouds_s", 0.0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str]:
        """Count each test once, and print no letter for it."""
        if report.passed:
            return ("passed" if report.when == "call" else "", "", "")
        return ("error" if report.failed and report.when != "call" else report.outcome, "", "")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        suite = self._suites[suite_of(nodeid)]
        if not suite.began:
            suite.began = time.monotonic()
            self._say(f"▸ {suite.name}: {suite.tests} tests")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid
        suite = self._suites[suite_of(report.nodeid)]
        self._took[name] += report.duration
        suite.clock_s += report.duration
        suite.processor_s += sum(value for key, value in report.user_properties if key == "processor_s")
        for key, value in report.user_properties:
            if key == "figure" and report.when == "call":
                self._say(f"  {value}")
        if report.failed:
            self._failures.append(report)
            self._say(_short(f"✗ {name}: {_reason(report)}"))
        elif report.skipped:
            self._skips[_skip_reason(report)] += 1
        if self._outcomes.get(name) != "failed" and (not report.passed or report.when == "call"):
            self._outcomes[name] = report.outcome

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        suite = self._suites[suite_of(nodeid)]
        suite.ended[self._outcomes.get(nodeid, "failed")] += 1
        if suite.done == suite.tests:
            self._say(f"{'✗' if suite.ended['failed'] else '✓'} {suite.line()}")
        elif time.monotonic() - self._shown > SHOWN_EVERY_S:
            self._shown = time.monotonic()
            for running in self._suites.values():
                if running.began and running.done < running.tests:
                    self._say(f"  {running.line()}")

    def pytest_terminal_summary(self, config: pytest.Config) -> None:
        self._clouds_s += config.stash.get(CLOUDS_S, 0.0)
        write = self._terminal.write_line
        write("")
        if self._skips:
            write("skipped:")
            for reason, count in self._skips.most_common():
                write(f"  {count:>5}  {_short(reason)}")
        write(f"slowest {SLOWEST}:")
        for name, took in self._took.most_common(SLOWEST):
            write(f"  {took:5.1f} s  {_short(name)}")
        write(f"{'suite':<12} {'tests':>6} {'passed':>7} {'failed':>7} {'skipped':>8} {'clock':>8} {'processor':>10}")
        for suite in self._suites.values():
            counts = "{passed:>7} {failed:>7} {skipped:>8}".format_map(suite.ended)
            write(f"{suite.name:<12} {suite.tests:>6} {counts} {suite.clock_s:>6.0f} s {suite.processor_s:>8.0f} s")
        write(f"{'local clouds':<47} {self._clouds_s:>16.0f} s")
        for report in self._failures[:FAILURES_SHOWN]:
            write(f"✗ {_short(report.nodeid)}: {_reason(report)}")
            write(f"    {command(report.nodeid)}")
        if len(self._failures) > FAILURES_SHOWN:
            write(f"  and {len(self._failures) - FAILURES_SHOWN} more, see above")

    def _count(self, ids: Iterator[str]) -> None:
        if not self._suites:
            self._suites = {name: Suite(name, tests) for name, tests in Counter(map(suite_of, ids)).items()}

    def _say(self, text: str) -> None:
        self._terminal.ensure_newline()
        self._terminal.write_line(text)
        self._terminal.flush()  # so that a pipe receives each line at once


CLOUDS_S = pytest.StashKey[float]()
"""Processor time of the local clouds that a test process has started and stopped."""


def add_cloud(config: pytest.Config, processor_s: float) -> None:
    """Add the processor time of a local cloud, in any process of the run."""
    config.stash[CLOUDS_S] = config.stash.get(CLOUDS_S, 0.0) + processor_s
    if (output := getattr(config, "workeroutput", None)) is not None:
        output["clouds_s"] = config.stash[CLOUDS_S]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Add the processor time of the whole test, with ended child processes, to its last report."""
    yield
    item.user_properties.append(("processor_s", processor_s() - item.stash[_BEGAN]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_BEGAN] = processor_s()


def processor_s() -> float:
    """Processor seconds of this process and of its ended children."""
    return sum(os.times()[:4])


_BEGAN = pytest.StashKey[float]()


def command(nodeid: str) -> str:
    """The command that runs only this test, or all its cases if the case's name cannot pass make and a shell."""
    chosen = nodeid if PLAIN_ID.fullmatch(nodeid) else nodeid.partition("[")[0]
    return f"make test ARGS={shlex.quote(chosen)}"


def suite_of(nodeid: str) -> str:
    """The suite of a test: its folder in tests/."""
    return nodeid.split("/")[1]


def _reason(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr).strip().rpartition("\n")[2]
    where = f" ({crash.path.rpartition('/')[2]}:{crash.lineno})" if crash else ""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return f"{first[:LINE_CHARS]}{where}"


def _skip_reason(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def _short(text: str) -> str:
    return text if len(text) <= LINE_CHARS else f"{text[: LINE_CHARS - 1]}…"
