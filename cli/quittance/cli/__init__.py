"""The command `quittance`."""

import sys


def main() -> int:
    """The entry point of the console script; returns the exit status."""
    sys.stderr.write("quittance: there are no commands yet\n")
    return 2
