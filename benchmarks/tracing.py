"""The additional cost of a traced task: its six steps, sent to a fake X-Ray daemon on 127.0.0.1.

python benchmarks/tracing.py             # prints the table; exit status 1 if the goal is missed
"""

import os
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Final

from quittance import tracing

sys.path.insert(0, str(Path(__file__).parents[1] / "layers" / "runtime"))

from scale import scaled, status

STEPS: Final = ("check", "fund", "load", "run", "accept", "settle")
TASKS: Final = scaled(2_000, 50)
TASK_MS_MAX: Final = 1.0
SAMPLED: Final = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled="


def main() -> int:
    """Measure and print; return 1 if the goal is missed."""
    with socket.socket(
        socket.AF_INET, socket.SOCK_DGRAM
    ) as daemon:  # never read: when it is full, datagrams are dropped
        daemon.bind(("127.0.0.1", 0))
        os.environ["AWS_XRAY_DAEMON_ADDRESS"] = f"127.0.0.1:{daemon.getsockname()[1]}"
        costs = {}
        for name, sampled in (("not sampled", "0"), ("sampled", "1")):
            os.environ["_X_AMZN_TRACE_ID"] = SAMPLED + sampled
            costs[name] = statistics.median(task_ms() for _ in range(TASKS))
            print(f"{name:<12} {costs[name]:.3f} ms a task of {len(STEPS)} steps")
    return 0 if costs["sampled"] <= TASK_MS_MAX else 1


def task_ms() -> float:
    """Time the empty steps of one task."""
    began = time.perf_counter()
    with tracing.invocation():
        tracing.about("e" * 52, task_id="t" * 36, escrow_id="e" * 52, agent_id="agt_k5x2mfq7w3nzt4ab")
        for name in STEPS:
            with tracing.step(name):
                pass
    return (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    sys.exit(status(main()))
