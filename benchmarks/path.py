"""What one task costs beside its guest and its storage: processor time, wall time by step, and memory.

    python benchmarks/path.py                # prints the tables; exit status 1 if a limit is exceeded
    python benchmarks/path.py --json FILE    # also writes the figures

The execute function's handler runs in this process, as in a Lambda environment: it gets an API Gateway event and its
answer is written as JSON. Reading the event and writing the answer are Lambda's work and are not counted. AWS answers
over HTTP from another process (the local cloud's engine), so writing, signing and sending requests and reading answers
count; waiting for answers does not. The sandbox's worker is a process of its own, and its processor time is counted
with the guest, which is trivial: it copies its input.

The baseline of the same run is boto3's client of DynamoDB in place of ours. Blocks of tasks alternate between the two,
and each figure is the median of the blocks, so other work on the machine changes both in the same way.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPResponse
from itertools import count
from pathlib import Path
from select import POLLIN, poll
from types import SimpleNamespace
from typing import IO, Any, Final
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from scale import scaled, status

from local.cloud import CREDENTIALS, REGION
from quittance import platform as bootstrap
from quittance.api.models import TaskRequest
from quittance.api.routes import PREFIX
from quittance.limits import KIB, MIB
from quittance.proof import receipt
from quittance.sandbox import Sandbox, supervisor
from quittance.store import clients
from quittance.store.dynamo_client import DynamoDB
from quittance.usecases import execute, launch, settle
from tests import fixtures, template, tickets
from tests.proofs.engines import engine
from tests.support import ROOT, Cloud, wasm

BLOCKS: Final = scaled(15, 2)
BLOCK_TASKS: Final = scaled(50, 2)
LARGE_BLOCK_TASKS: Final = scaled(10, 1)
OWN_CPU_MS_MAX: Final = 3.0
MIB_MORE_MS_MAX: Final = 12.0
BUDGET: Final = "0.05"
TICKETS: Final = 10_000
SLOTS: Final = 25  # the template's default of AccountConcurrency

Body = dict[str, Any]


@dataclass
class Kind:
    """A kind of task: `send` prepares the event of the next one. `slots` is AccountConcurrency; 0 takes no slots."""

    name: str
    send: Callable[[], Body]
    tasks: int = BLOCK_TASKS
    slots: int = 0


@dataclass
class Measured:
    """Per task, in ms: processor time of the handler's process and of the worker, wall time; `by_step` is wall time.

    `wall_ms` and `by_step` are without the time in which the process waited for AWS or for the worker.
    """

    name: str
    client: str
    cpu_ms: list[float] = field(default_factory=list)
    worker_cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    by_step: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    peak_kib: float = 0.0


class Clock:
    """The time of each step, without the steps inside it and without waiting."""

    def __init__(self) -> None:
        self.steps: defaultdict[str, float] = defaultdict(float)
        self.waited = 0.0
        self._open: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """This function, whose own time counts for a step."""

        def call(*args: Any, **kwargs: Any) -> Any:
            began, waited = time.perf_counter(), self.waited
            self._open.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - began - (self.waited - waited)
                self.steps[name] += took - self._open.pop()
                if self._open:
                    self._open[-1] += took

        return call

    def waiting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """This function, whose whole time is waiting."""

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.waited += time.perf_counter() - began

        return call


@contextmanager
def observed(clock: Clock, app: Any) -> Iterator[None]:
    """Inside, the clock takes the time of each step."""
    begin = HTTPResponse.begin

    def begun(response: HTTPResponse) -> None:
        ready = poll()
        ready.register(response.fp.fileno(), POLLIN)
        clock.waiting(ready.poll)()
        begin(response)

    steps: list[tuple[Any, str, str]] = [
        (app, "handler", "handler, logs and metrics"),
        (app.app, "resolve", "route and request"),
        (execute, "execute", "execute, the rest"),
        (execute, "_check_or_join", "check"),
        (execute, "_holds", "check"),
        (launch, "run", "prepare the run"),
        (settle, "settle", "settle"),
        (receipt, "sign", "sign the receipt"),
        (execute, "answer", "answer"),
        (DynamoDB, "_call", "DynamoDB client"),
    ]
    with (
        mock.patch.object(HTTPResponse, "begin", begun),
        mock.patch.object(Sandbox, "run", clock.timed("sandbox, parent", Sandbox.run)),
        mock.patch.object(supervisor._Worker, "_read", clock.waiting(supervisor._Worker._read)),
    ):
        patches = [
            mock.patch.object(owner, name, clock.timed(step, getattr(owner, name))) for owner, name, step in steps
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


class Bench:
    """The execute function's environment, and the kinds of tasks that it runs."""

    def __init__(self, cloud: Cloud, app: Any) -> None:
        self.cloud, self.app = cloud, app
        self.numbers, self.ticket_numbers = count(1), count(1)
        cloud.deposit("alice", 10**12)
        self.echo = cloud.publish(wasm("echo"))
        judge = cloud.publish(wasm("coverage"), owner="judith")
        rules = {"media_type": "application/json", "json_schema": {"type": "object", "required": ["text"]}}
        strict = cloud.publish(wasm("echo"), acceptance=rules)
        judged = cloud.publish(
            wasm("echo"), acceptance={"judge": {"agent_id": judge, "threshold": "0", "budget": "0.02"}}
        )
        cloud.bond("owner", 10**11)
        self.channel = tickets.opened(cloud, tickets=TICKETS).channel_id
        self.kinds = [
            Kind("trivial", lambda: self._event(self.echo, "hi")),
            Kind("with a slot", lambda: self._event(self.echo, "hi"), slots=SLOTS),
            Kind("64 KiB in and out", lambda: self._event(self.echo, "x" * 64 * KIB)),
            Kind("1 MiB in and out", lambda: self._event(self.echo, "x" * MIB), LARGE_BLOCK_TASKS),
            Kind("with rules", lambda: self._event(strict, {"text": "hi"})),
            Kind("with a judge", lambda: self._event(judged, "to be or not")),
            Kind("by a ticket", self._ticket_event),
        ]

    def configure(self, kind: Kind) -> None:
        """Give the environment the settings of a kind."""
        self.cloud.settings = self.cloud.settings.model_copy(update={"account_concurrency": kind.slots})

    def measure(self, kind: Kind) -> Iterator[Measured]:
        """The figures of a kind with our client and with boto3's, in alternating blocks."""
        self.configure(kind)
        session = clients._session()
        boto3 = session.client("dynamodb", config=clients._ONE_TRY)
        rows = {"ours": Measured(kind.name, "ours"), "boto3": Measured(kind.name, "boto3")}
        made = {"ours": self.cloud.ledger._client, "boto3": boto3}
        stores = (self.cloud.ledger, self.cloud.registry, self.cloud.channels)
        for block in range(-1, BLOCKS):
            for name, row in rows.items():
                for store in stores:
                    store._client = made[name]
                self._block(kind, row, warming=block < 0)
        for store in stores:
            store._client = made["ours"]
        rows["ours"].peak_kib = self._peak_kib(kind)
        yield from rows.values()

    def _block(self, kind: Kind, row: Measured, *, warming: bool) -> None:
        events = [kind.send() for _ in range(kind.tasks)]
        worker = self._worker_cpu_ms()
        began = time.process_time()
        answers = [self.app.handler(event, CONTEXT) for event in events]
        cpu_ms = (time.process_time() - began) * 1_000 / len(events)
        worker_cpu_ms = (self._worker_cpu_ms() - worker) / len(events)
        if failed := [answer for answer in answers if answer["statusCode"] != 200]:
            message = f"{kind.name}: {failed[0]['body']}"
            raise SystemExit(message)
        clock, events = Clock(), [kind.send() for _ in range(kind.tasks)]
        with observed(clock, self.app):
            for event in events:
                began, clock.waited = time.perf_counter(), 0.0
                self.app.handler(event, CONTEXT)
                if not warming:
                    row.wall_ms.append((time.perf_counter() - began - clock.waited) * 1_000)
        if not warming:
            row.cpu_ms.append(cpu_ms)
            row.worker_cpu_ms.append(worker_cpu_ms)
            for step, took in clock.steps.items():
                row.by_step[step].append(took * 1_000 / len(events))

    def _worker_cpu_ms(self) -> float:
        worker = self.cloud.sandbox._worker
        if worker is None:
            return 0.0
        # Field 1 of schedstat is the time on a processor, in ns (Linux, Documentation/scheduler/sched-stats.rst).
        return int(Path(f"/proc/{worker._process.pid}/schedstat").read_text().split()[0]) / 1e6

    def _peak_kib(self, kind: Kind) -> float:
        event = kind.send()
        tracemalloc.start()
        try:
            self.app.handler(event, CONTEXT)
            return tracemalloc.get_traced_memory()[1] / KIB
        finally:
            tracemalloc.stop()

    def _event(self, agent_id: str, stdin: object) -> Body:
        body = {"task_id": f"t-{next(self.numbers)}", "agent_id": agent_id, "input": stdin, "budget": BUDGET}
        return _event("/tasks/execute", body, authorizer={"sub": "alice", "scope": ""})

    def _ticket_event(self) -> Body:
        body = {
            "task_id": f"{self.channel}.{next(self.ticket_numbers)}",
            "agent_id": self.echo,
            "input": "hi",
            "budget": BUDGET,
        }
        ticket = tickets.ticket(self.cloud, TaskRequest.model_validate(body))
        return _event("/channels/{channel_id}/tasks", body, channel=self.channel, headers={"Payment-Ticket": ticket})


CONTEXT: Final = SimpleNamespace(
    function_name="execute",
    memory_limit_in_mb=1_024,
    invoked_function_arn=f"arn:aws:lambda:{REGION}:123456789012:function:execute",
    aws_request_id="00000000-0000-0000-0000-000000000000",
    get_remaining_time_in_millis=lambda: 60_000,
)


def _event(
    route: str, body: Body, *, authorizer: Body | None = None, channel: str = "", headers: dict[str, str] | None = None
) -> Body:
    path = route.replace("{channel_id}", channel)
    return {
        "httpMethod": "POST",
        "resource": f"{PREFIX}{route}",
        "path": f"{PREFIX}{path}",
        "headers": {"Content-Type": "application/json", **(headers or {})},
        "queryStringParameters": None,
        "requestContext": {"path": f"/local{PREFIX}{path}", "requestId": "r", "authorizer": authorizer},
        "body": json.dumps(body),
        "isBase64Encoded": False,
    }


@contextmanager
def environment() -> Iterator[Bench]:
    """The execute function's environment on an AWS of its own."""
    with engine("ministack") as url, tempfile.TemporaryDirectory() as scratch, Sandbox() as sandbox:
        os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=url, AWS_DEFAULT_REGION=REGION, AWS_REGION=REGION)
        cloud = fixtures.cloud_in(template.template(), sandbox, Path(scratch))
        spec = importlib.util.spec_from_file_location("execute_app", ROOT / "functions/execute/app.py")
        assert spec
        assert spec.loader
        app = importlib.util.module_from_spec(spec)
        with (
            mock.patch.object(bootstrap, "settings", return_value=cloud.settings),
            mock.patch.object(bootstrap, "Platform", return_value=cloud),
        ):
            spec.loader.exec_module(app)
            yield Bench(cloud, app)


def measure() -> list[Measured]:
    """The figures of all kinds of tasks, with our client and with boto3's."""
    with environment() as bench:
        return [row for kind in bench.kinds for row in bench.measure(kind)]


@contextmanager
def logs_dropped() -> Iterator[None]:
    """Inside, what is written to standard output goes nowhere: log lines and metrics, whose writing is measured."""
    with Path(os.devnull).open("w") as nowhere, stdout_to(nowhere):
        yield


@contextmanager
def stdout_to(file: IO[Any]) -> Iterator[None]:
    """Inside, what this process writes to standard output goes to a file."""
    sys.stdout.flush()
    terminal = os.dup(1)
    os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(terminal, 1)
        os.close(terminal)


def report(rows: list[Measured]) -> int:
    """Print the tables; return 1 if a limit is exceeded."""
    print("                                    processor time, ms           wall time without waiting, ms    memory")
    print("kind of task        client    handler   worker  together        p50       p99                  peak KiB")
    for row in rows:
        cpu, worker, (p50, p99) = median(row.cpu_ms), median(row.worker_cpu_ms), percentiles(row.wall_ms)
        peak = f"{row.peak_kib:20.0f}" if row.peak_kib else ""
        print(f"{row.name:<20}{row.client:<10}{cpu:7.2f}{worker:9.2f}{cpu + worker:10.2f}{p50:11.2f}{p99:10.2f}{peak}")
    print("\nwall time of each step, median, ms; our client")
    ours = {row.name: row for row in rows if row.client == "ours"}
    print(f"{'':<28}" + "".join(f"{name:>18}" for name in ours))
    for step in dict.fromkeys(step for row in ours.values() for step in row.by_step):
        figures = (
            f"{median(row.by_step[step]):18.3f}" if row.by_step.get(step) else f"{'':18}" for row in ours.values()
        )
        print(f"{step:<28}" + "".join(figures))
    trivial, large = ours["trivial"], ours["1 MiB in and out"]
    checks = [
        (
            "processor time of a trivial task, ms",
            median(trivial.cpu_ms) + median(trivial.worker_cpu_ms),
            OWN_CPU_MS_MAX,
        ),
        ("wall time of 1 MiB more than trivial, ms", median(large.wall_ms) - median(trivial.wall_ms), MIB_MORE_MS_MAX),
    ]
    print()
    for name, found, limit in checks:
        print(f"{name:<44}{found:8.2f}, at most {limit:g}: {'ok' if found <= limit else 'OVER ITS LIMIT'}")
    return int(any(found > limit for _, found, limit in checks))


def median(figures: list[float]) -> float:
    """The median; 0 without figures."""
    return statistics.median(figures) if figures else 0.0


def percentiles(figures: list[float]) -> tuple[float, float]:
    """The 50th and the 99th percentile."""
    ordered = sorted(figures)
    return median(ordered), ordered[len(ordered) * 99 // 100]


def main() -> int:
    """Measure and print; return 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with logs_dropped():
        rows = measure()
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in rows]))
    return report(rows)


if __name__ == "__main__":
    sys.exit(status(main()))
