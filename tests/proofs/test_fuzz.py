"""A short round of fault fuzzing on a real engine. `make proofs` runs the long one."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.depth import SEED
from tests.proofs.engines import client_of, engine
from tests.proofs.fuzz import rounds

ESCROWS = 300
TICKET_TASKS = 80


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with engine("ministack") as url:
        yield client_of(url)


def test_faults_neither_lose_double_nor_strand_credits(
    client: Any, record_property: Callable[[str, str], None]
) -> None:
    this, found, count = rounds(client, SEED, ESCROWS)
    faults = sum(this.journal.faults.values())
    record_property(
        "figure",
        f"ledger fuzz: seed {SEED}, {count} escrows, {this.ends['tasks by ticket']} of them by ticket, {faults} faults,"
        f" {len(found)} violations",
    )
    assert found == [], f"seed {SEED}"
    assert count >= ESCROWS
    assert this.ends["tasks by ticket"] >= TICKET_TASKS
    assert this.ends["tickets used"] > this.ends["tasks by ticket"]
    assert {"TicketUsed", "ChannelClosed", "numbers taken out"} <= this.ends.keys()
    assert {"released", "refunded", "expired", "taken over", "crashed", "no funds"} <= this.ends.keys()
    assert {"conflict", "throttle", "lost_answer", "crash_after", "old_index"} <= this.journal.faults.keys()
