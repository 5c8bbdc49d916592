"""`python -m quittance.cli`: the same as the command `quittance`."""

from quittance.cli.main import console_script

if __name__ == "__main__":
    console_script()
