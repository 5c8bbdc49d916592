#!/usr/bin/env python3
"""An example script for the CPython agent: a small report as JSON.

It uses the time, random numbers, a sleep, the order of a set and float
formatting, which differ from run to run on an ordinary machine. In the sandbox
all of these are deterministic, so the report is always the same for one receipt.
"""

import json
import random
import sys
import time

ORDERS = {"chairs": 129.90, "tables": 349.00, "lamps": 24.95, "shelves": 89.50}


def mean_interval(values: list[float], rounds: int = 1000) -> tuple[float, float]:
    """Estimate the 90 % interval of the mean by drawing samples (bootstrap)."""
    means = sorted(sum(random.choices(values, k=len(values))) / len(values) for _ in range(rounds))  # noqa: S311
    return means[rounds * 5 // 100], means[rounds * 95 // 100]


def main() -> None:
    """Write the report to stdout."""
    started = time.monotonic()
    time.sleep(60)  # returns at once: the clock is virtual
    low, high = mean_interval(list(ORDERS.values()))
    report = {
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "slept_seconds": round(time.monotonic() - started),
        "orders": ORDERS,
        "set_order": list({"red", "green", "blue", "yellow"}),
        "total": f"{sum(ORDERS.values()):.2f}",
        "third": 1 / 3,
        "mean_interval": [round(low, 2), round(high, 2)],
    }
    sys.stdout.write(json.dumps(report) + "\n")


main()
