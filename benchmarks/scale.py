"""How much a benchmark does: with QUITTANCE_QUICK it only shows that it runs, and its bounds are not held."""

import os

QUICK = "QUITTANCE_QUICK" in os.environ


def scaled(full: int, quick: int) -> int:
    """The one number or the other."""
    return quick if QUICK else full


def status(missed: int) -> int:
    """A benchmark's exit status: whether it missed a bound, in a full run."""
    return 0 if QUICK else missed
