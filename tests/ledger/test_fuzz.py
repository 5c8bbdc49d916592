"""A short round of fault fuzzing on a real engine. The long one is `make fuzz-ledger`."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.ledger.engines import client_of, engine
from tests.ledger.fuzz import rounds

SEED = int(os.environ.get("QUITTANCE_FUZZ_SEED", "7"))
ESCROWS = 300


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with engine("ministack") as url:
        yield client_of(url)


def test_faults_lose_double_and_strand_nothing(client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    this, found, count = rounds(client, SEED, ESCROWS)
    with capsys.disabled():
        sys.stdout.write(f"\n  ledger fuzz: seed {SEED}, {count} escrows, {sum(this.journal.faults.values())} faults")
    assert found == [], f"seed {SEED}"
    assert count >= ESCROWS
    assert {"released", "refunded", "expired", "taken over", "crashed", "no funds"} <= this.ends.keys()
    assert {"conflict", "throttle", "lost_answer", "crash_after", "old_index"} <= this.journal.faults.keys()
