"""What all suites share: how a run is shown (progress.py), and how its tests are dealt to two processes."""

import os
import signal
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests import clouds, progress

PROCESSES_MAX = 2
# Long ones first, so that no process is left with one at the end.
SUITES = ("e2e", "sam_local", "ledger", "hostile", "integration", "sandbox", "fuzz", "local", "unit")
# Tests of one file share what its fixtures make, so one process runs them; these share a cloud, or nothing at all.
TOGETHER = {"e2e", "sam_local"}


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Prepares each process of a run; the first also talks to the terminal, and ends the others."""
    clouds.hold_lifeline()
    config.pluginmanager.register(progress, "processor-time")
    if hasattr(config, "workerinput"):
        return
    # A polite end from outside unwinds as Ctrl-C does, so that fixtures end what they started.
    signal.signal(signal.SIGTERM, lambda number, _frame: pytest.exit(f"ended by signal {number}", 128 + number))
    if config.get_verbosity() <= 0:
        terminal = config.pluginmanager.getplugin("terminalreporter")
        config.pluginmanager.register(progress.Progress(terminal), "progress")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: one process where a few tests are chosen, or where there is one core."""
    chosen = config.option.keyword or any("::" in word for word in config.args)
    cores = min(PROCESSES_MAX, len(os.sched_getaffinity(0)))
    return 0 if chosen or cores == 1 else cores


class Together(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Deals tests in groups, in their order; the next group goes to the process that is done first."""

    def _split_scope(self, nodeid: str) -> str:
        suite = progress.suite_of(nodeid)
        return suite if suite in TOGETHER else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the suites in order."""
    items.sort(key=lambda item: SUITES.index(progress.suite_of(item.nodeid)))
