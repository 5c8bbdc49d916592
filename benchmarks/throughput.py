"""How many tasks a second the local cloud runs, by the number of clients at once.

    python benchmarks/throughput.py                # starts a local cloud of its own; exit status 1 if a task fails
    python benchmarks/throughput.py --json FILE    # also writes the figures

Each client has an account and a connection of its own. It sends the next trivial task when it has the answer to the
last, for some seconds; then all clients do the same with `GET /agents/ID`, which costs the gateway and a function that
reads one item, but no escrow and no run. Environments are warm. The cloud's gateway, database and functions, the
sandboxes and the clients share this machine, so the figures are no forecast for AWS: they show that nothing collapses
as clients are added, and what a task costs beside a call that only reads. `processor` is the time that all processes of
the cloud use for one call. In the end the audit must find no difference.
"""

import argparse
import http.client
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

import wasmtime
from scale import scaled, status

from local import commands, demo, issuer
from local.client import PREFIX, publish
from local.paths import LOCAL, Stack, State
from tests import clouds

STATE: Final = State(LOCAL / "bench-cloud")
CLIENTS: Final = (1, 2, 4, 8, 16, 32) if scaled(1, 0) else (1, 2)
SECONDS: Final = scaled(10, 1)
WARM_CALLS: Final = 3
TRIVIAL: Final = '(module (memory (export "memory") 1) (func (export "_start")))'


@dataclass(frozen=True)
class Row:
    """The calls of some clients at once: how many a second, their times in ms, and the cloud's processor time."""

    call: str
    clients: int
    per_s: float
    p50_ms: float
    p99_ms: float
    processor_ms: float
    failed: int


class Client:
    """One account with one connection. Its calls return whether they succeeded."""

    def __init__(self, stack: Stack, state: State, number: int, agent_id: str) -> None:
        self._account = f"client-{number}"
        token = issuer.sign(issuer.load_key(state.key), issuer.claims(self._account))
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        url = urlsplit(stack.api_url)
        self._path = f"{url.path}{PREFIX}"
        self._connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        self._agent_id = agent_id
        self._sent = 0
        bank = demo.api(stack, state, "bank", demo.DEPOSIT_SCOPE)
        bank.post(f"/accounts/{self._account}/deposits", {"deposit_id": "bench", "amount": "1000"})

    def task(self) -> bool:
        """Execute a task."""
        self._sent += 1
        offer = {"task_id": f"{self._sent}", "agent_id": self._agent_id, "input": "", "budget": "0.05"}
        answer = self._call("POST", "/tasks/execute", json.dumps(offer).encode())
        return bool(answer) and json.loads(answer)["success"] is True

    def read(self) -> bool:
        """Read the agent's terms."""
        return bool(self._call("GET", f"/agents/{self._agent_id}", None))

    def _call(self, method: str, path: str, body: bytes | None) -> bytes:
        """The answer's body; empty if the call did not succeed."""
        self._connection.request(method, f"{self._path}{path}", body, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != http.HTTPStatus.OK:
            print(answer.status, content, file=sys.stderr)
            return b""
        return content


@contextmanager
def cloud() -> Iterator[Stack]:
    """A local cloud with the stack, which ends with this process."""
    clouds.hold_lifeline()
    if clouds.run(STATE, "up", "--no-seed"):
        sys.exit("the local cloud did not start")
    try:
        yield Stack.read(STATE.stack)
    finally:
        commands.down(STATE)


def publish_trivial(stack: Stack) -> str:
    """Publish the agent; return its id."""
    bank = demo.api(stack, STATE, "bank", demo.DEPOSIT_SCOPE)
    bank.post(f"/accounts/{demo.OWNER}/deposits", {"deposit_id": "bench", "amount": "100"})
    owner = demo.api(stack, STATE, demo.OWNER)
    owner.post("/accounts/me/bond", {"bond_id": "bench", "amount": "50"})
    terms = {"tariff": {"type": "flat", "price": "0.01"}}
    return publish(owner, "trivial", bytes(wasmtime.wat2wasm(TRIVIAL)), terms)


def measured(name: str, calls: list[Callable[[], bool]]) -> Row:
    """Let all clients call for some seconds."""
    with ThreadPoolExecutor(len(calls)) as pool:
        list(pool.map(lambda call: [call() for _ in range(WARM_CALLS)], calls))
        used_s, began = clouds.processor_s(STATE), time.monotonic()
        each = list(pool.map(lambda call: _until(began + SECONDS, call), calls))
        took_s = time.monotonic() - began
    used_s = clouds.processor_s(STATE) - used_s
    times = sorted(ms for some, _ in each for ms in some)
    return Row(
        name,
        len(calls),
        len(times) / took_s,
        statistics.median(times),
        times[len(times) * 99 // 100],
        used_s * 1_000 / len(times),
        sum(failed for _, failed in each),
    )


def _until(end: float, call: Callable[[], bool]) -> tuple[list[float], int]:
    """The time of each call in ms, and how many failed."""
    times, failed = list[float](), 0
    while time.monotonic() < end:
        began = time.perf_counter()
        failed += not call()
        times.append((time.perf_counter() - began) * 1_000)
    return times, failed


def measure() -> tuple[list[Row], int]:
    """All rows, and the differences that the audit found."""
    with cloud() as stack:
        agent_id = publish_trivial(stack)
        clients = [Client(stack, STATE, number, agent_id) for number in range(max(CLIENTS))]
        rows: list[Row] = []
        for count in CLIENTS:
            rows.append(measured("task", [client.task for client in clients[:count]]))
            rows.append(measured("read", [client.read for client in clients[:count]]))
        demo.sweep(stack)
        differences: Any = demo.invoke(stack, "AuditFunction")["differences"]
    return rows, int(differences)


def report(rows: list[Row], differences: int) -> int:
    """Print the table; return 1 if a call failed or the ledger differs."""
    print(f"{'clients':>8}{'tasks/s':>10}{'p50 ms':>9}{'p99 ms':>9}{'processor':>11}{'failed':>8}", end="")
    print(f"{'reads/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'processor':>11}{'reads ÷ tasks':>15}")
    for task, read in zip(rows[::2], rows[1::2], strict=True):
        print(f"{task.clients:>8}{_cells(task)}{task.failed:>8}  {_cells(read)}", end="")
        print(f"{read.per_s / task.per_s:>15.1f}")
    tasks = [row for row in rows if row.call == "task"]
    print(f"\ntasks a second with {tasks[-1].clients} clients, to one client: {tasks[-1].per_s / tasks[0].per_s:.1f}")
    failed = sum(row.failed for row in rows)
    print(f"failed calls: {failed}; differences in the audit: {differences}")
    return int(bool(failed or differences))


def _cells(row: Row) -> str:
    return f"{row.per_s:>10.1f}{row.p50_ms:>9.1f}{row.p99_ms:>9.1f}{row.processor_ms:>11.1f}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    rows, differences = measure()
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows]))
    return report(rows, differences)


if __name__ == "__main__":
    sys.exit(status(main()))
