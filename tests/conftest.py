"""What all suites share: progress output, how two processes divide the tests, and which suites may open sockets."""

import os
import signal
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import pytest_socket
from xdist.scheduler import LoadScopeScheduling

from quittance import observability
from quittance.ledger.escrow import Escrow, escrow_id
from tests import clouds, progress

PROCESSES_MAX = 2
# The longest suites first, so that no process starts a long one at the end.
SUITES = (
    *("e2e", "documents", "sam_local", "proofs", "hostile", "usecases", "store", "functions", "sandbox", "fuzz"),
    *("local", "cli", "client", "project", "proof", "acceptance", "api", "ledger"),
)
WITHOUT_SOCKETS = {"ledger", "acceptance", "proof", "api"}
# One process runs all tests of a file, because they share its fixtures. A suite named here runs in one process as a
# whole, because its files share one local cloud.
ONE_PROCESS_SUITES = {"e2e", "documents", "sam_local"}


# No deadline: a busy machine is not a bug. No database: a run leaves no files.
hypothesis.settings.register_profile("quittance", deadline=None, database=None)
hypothesis.settings.load_profile("quittance")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Prepare each process of a run. The first one also writes to the terminal and ends the others."""
    clouds.hold_lifeline()
    config.pluginmanager.register(progress, "processor-time")
    if hasattr(config, "workerinput"):
        return
    # SIGTERM ends the run as Ctrl-C does, so that fixtures stop what they started.
    signal.signal(signal.SIGTERM, lambda number, _frame: pytest.exit(f"ended by signal {number}", 128 + number))
    if config.get_verbosity() <= 0:
        terminal = config.pluginmanager.getplugin("terminalreporter")
        config.pluginmanager.register(progress.Progress(terminal), "progress")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: one process if single tests are selected or there is only one core, otherwise PROCESSES_MAX."""
    chosen = config.option.keyword or any("::" in word for word in config.args)
    cores = min(PROCESSES_MAX, len(os.sched_getaffinity(0)))
    return 0 if chosen or cores == 1 else cores


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Assigns tests in groups, in order; the next group goes to the first free process."""

    def _split_scope(self, nodeid: str) -> str:
        suite = progress.suite_of(nodeid)
        return suite if suite in ONE_PROCESS_SUITES else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    return GroupScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by suite, in the order of SUITES."""
    items.sort(key=lambda item: SUITES.index(progress.suite_of(item.nodeid)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Drop the metrics of earlier tests; block sockets in the suites that need none, except with `enable_socket`.

    An invocation ends by writing its metrics. A test that calls a use case has no invocation, so they would collect
    until the hundredth value of one metric writes them all to the output of some other test.
    """
    observability.forget_metrics()
    if progress.suite_of(item.nodeid) in WITHOUT_SOCKETS and not item.get_closest_marker("enable_socket"):
        pytest_socket.disable_socket(allow_unix_socket=True)  # the plugin enables them again after each test


@pytest.fixture(scope="session")
def new_escrow() -> Callable[..., Escrow]:
    """`new_escrow(**changed)`: a funded escrow of one credit at a flat price of 0.4, with these fields changed."""

    def new(**changed: Any) -> Escrow:
        plain: dict[str, Any] = {
            "escrow_id": escrow_id("user-1", "task-1"),
            "payer": "user-1",
            "task_id": "task-1",
            "request_sha256": "aa" * 32,
            "agent_id": "agt_1",
            "owner": "owner-1",
            "module_sha256": "bb" * 32,
            "input_sha256": "cc" * 32,
            "tariff": '{"type":"flat","price":"0.4"}',
            "budget_micro": 1_000_000,
            "fee_bps": 250,
            "timeout_ms": 10_000,
            "runner": "runner-1",
            "fence": 1,
            "funded_ms": 1_800_000_000_000,
            "lease_ms": 1_800_000_020_000,
            "expires_ms": 1_800_000_100_000,
        }
        return Escrow(**(plain | changed))

    return new
