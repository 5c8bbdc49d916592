"""Fixtures of the ledger proofs."""

from collections.abc import Iterator

import pytest

from tests.proofs.world import quiet


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield
