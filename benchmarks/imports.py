"""How long it takes to import the AWS SDK, and the functions that stand for the most and the least of it.

    python benchmarks/imports.py                    # this checkout
    python benchmarks/imports.py --beside CHECKOUT  # and another checkout of this project, whose layer is built

Each row is measured in fresh processes on the built layer with its bytecode, without site packages, as on Lambda. The
results are medians of the time by the clock and by the processor. Each round starts one process for every row, so that
a busy moment of the machine affects all rows alike. Budgets that hold on any machine are in cold_start.py.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from cold_start import SETTINGS
from scale import scaled

from local import deploy, venvs
from local.paths import ROOT

ROUNDS: Final = scaled(41, 1)
_CLIENTS: Final = "clients.without_credentials()\nfor make in (clients.dynamodb, clients.kms, clients.s3): make()"
_LOADED: Final = "import app\nfrom quittance.store import clients"
# For each row: what runs first and is not measured, and what is measured.
ROWS: Final = {
    "botocore.session": ("", "import botocore.session"),
    "boto3.session": ("", "import boto3.session"),
    "boto3.session after botocore.session": ("import botocore.session", "import boto3.session"),
    "s3transfer.manager after botocore.session": ("import botocore.session", "import s3transfer.manager"),
    "health": ("", "import app"),
    "execute": ("", "import app"),
    "execute: clients of DynamoDB, KMS and S3": (_LOADED, _CLIENTS),
    "execute: the same after a restore": (f"{_LOADED}\n{_CLIENTS}\nclients.forget()", _CLIENTS),
}
_TIMED: Final = """
import sys, time
sys.path[:0] = {path!r}
{before}
clock, processor = time.perf_counter(), time.process_time()
{measured}
print(time.perf_counter() - clock, time.process_time() - processor)
"""


def main() -> None:
    """Measures and prints a table for each checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout, whose layer is built")
    beside: Path | None = parser.parse_args().beside
    built = deploy.build().relative_to(ROOT)
    checkouts = {"": ROOT} if beside is None else {"before": beside.resolve(), "now": ROOT}
    codes: dict[tuple[str, str], str] = {}
    for name, checkout in checkouts.items():
        layer = deploy.layer(checkout / built)
        if not layer.is_dir():
            sys.exit(f"{layer} does not exist: build it with `python3 -m local build` in {checkout}")
        for row, (before, measured) in ROWS.items():
            path = [str(checkout / "functions" / row.split(":")[0]), str(layer)]
            codes[name, row] = _TIMED.format(path=path, before=before, measured=measured)
    times: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in codes}
    for _ in range(ROUNDS):
        for key, code in codes.items():
            if (taken := _times_s(code)) is not None:
                times[key].append(taken)
    print(f"medians of {ROUNDS} fresh processes on Python {venvs.PYTHON_VERSION}, in ms: clock (processor)")
    print(f"{'':<44}" + "".join(f"{name:>16}" for name in checkouts))
    for row in ROWS:
        print(f"{row:<44}" + "".join(f"{_shown(times[name, row]):>16}" for name in checkouts))


def _times_s(code: str) -> tuple[float, float] | None:
    """The times that a fresh process prints. None if its layer does not hold the package."""
    done = subprocess.run(
        [venvs.BASE_PYTHON, "-I", "-S", "-c", code], env=SETTINGS, capture_output=True, text=True, check=False
    )
    if done.returncode:
        if "No module named 'boto3'" in done.stderr or "No module named 's3transfer'" in done.stderr:
            return None
        sys.exit(f"the code could not be run from the layer: {done.stderr}")
    clock, processor = done.stdout.split()
    return float(clock), float(processor)


def _shown(times: list[tuple[float, float]]) -> str:
    if not times:
        return "-"
    clock, processor = (median(column) * 1_000 for column in zip(*times, strict=True))
    return f"{clock:.0f} ({processor:.0f})"


if __name__ == "__main__":
    main()
