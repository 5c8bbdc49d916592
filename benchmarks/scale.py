"""The size of a benchmark. With QUITTANCE_QUICK a benchmark only proves that it runs; its limits are not enforced."""

import os

QUICK = "QUITTANCE_QUICK" in os.environ


def scaled(full: int, quick: int) -> int:
    """Return the number for a full or for a quick run."""
    return quick if QUICK else full


def status(missed: int) -> int:
    """Return a benchmark's exit status: 1 if a limit was exceeded in a full run."""
    return 0 if QUICK else missed
