"""What the unit tests share: no sockets, a known Hypothesis profile, and one plain escrow to start from."""

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import pytest_socket

from quittance.escrow import Escrow, escrow_id

# No deadline: a busy machine is no bug. No database: a run leaves nothing behind.
hypothesis.settings.register_profile("unit", deadline=None, database=None)
hypothesis.settings.load_profile("unit")


def pytest_runtest_setup(item: pytest.Item) -> None:
    pytest_socket.disable_socket(allow_unix_socket=True)  # the plugin itself lifts it after each test


@pytest.fixture(scope="session")
def new_escrow() -> Callable[..., Escrow]:
    """A funded escrow of one credit at a flat price of 0.4, with whatever a test wants otherwise."""

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
