"""What it costs to refuse an input by an agent's contract, beside what any refused request of the same size costs.

    python benchmarks/contract.py            # the slowest schemas first

The inputs and schemas are those of benchmarks/acceptance.py, each about a megabyte, and the same schemas with an input
of some bytes. `request` is the CPU time to read and check the body of the request, which every refusal takes. `check`
is that of the input's check, with the schema compiled already, as it is in a warm environment; `compile` is what the
first check by an environment takes more. The least CPU time of three counts.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import acceptance
from scale import scaled

from quittance.acceptance.contract import refused
from quittance.acceptance.json_schema import Schema
from quittance.api.models import TaskRequest
from quittance.api.requests import read_json
from quittance.canonical_json import exact
from quittance.errors import QuittanceError

ROUNDS: Final = scaled(3, 1)
SHOWN: Final = 8
SMALL: Final = b"[1,1,1,1]"


def least_ms(work: Callable[[], object]) -> float:
    """Return the least CPU time of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        began_ns = time.process_time_ns()
        work()
        best = min(best, (time.process_time_ns() - began_ns) / 1e6)
    return best


def request_ms(stdin: bytes) -> float:
    """Return what reading a request with this input takes, or refusing it while it is read."""
    body = {"task_id": "t", "agent_id": "a", "budget": "0.01"}
    text = json.dumps(body | {"input": 0}).replace(": 0}", f": {stdin.decode()}}}")

    def read() -> None:
        with suppress(QuittanceError):
            TaskRequest.model_validate(read_json(text))

    return least_ms(read)


def main() -> None:
    """Print the table."""
    rows = []
    cases = [
        case
        for group in ("honest", "branching", "comparing", "matching", "reading")
        for case in getattr(acceptance, group)()
    ]
    for case in cases:
        source = exact(case.schema)
        schema = Schema(source)
        compile_ms = least_ms(partial(Schema, source))
        for size, stdin in (("1 MB", case.output), ("small", SMALL)):
            check_ms = least_ms(partial(refused, schema, stdin))
            verdict = refused(schema, stdin)
            said = verdict[1][:60] if verdict else "accepted"
            rows.append((size, case.name, request_ms(stdin), check_ms, compile_ms, said))
    print(f"{'input':6} {'schema':46} {'request':>8} {'check':>8} {'compile':>8}  ms")
    for size in ("1 MB", "small"):
        chosen = sorted((row for row in rows if row[0] == size), key=lambda row: -row[3])[:SHOWN]
        for _, name, base_ms, check_ms, compile_ms, said in chosen:
            print(f"{size:6} {name:46} {base_ms:8.1f} {check_ms:8.1f} {compile_ms:8.1f}  {said}")


if __name__ == "__main__":
    main()
