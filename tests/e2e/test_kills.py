"""Kills and stalls Lambda environments, at random and at chosen moments; afterwards no credit is lost or held.

Tickets of a channel that each client has pay a third of the tasks, three numbers a task. Clients follow the API:
without an answer they repeat the same request. Some that lose an answer early give up and only read the result, so that
escrows expire as well. QUITTANCE_FUZZ_SEED repeats the choices but not their timing.

The short test moves an escrow's times into the past instead of waiting for leases and expiries. The long one
(`make proofs`) waits for them.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals
from threading import Event
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

from local import cloud as clouds
from local import processes
from local.client import RefusedError
from local.paths import ROOT, Stack, State
from local.processes import Process
from quittance.proof import receipt
from quittance.run import Fault, Outcome
from tests.depth import LONG, SEED
from tests.e2e.people import CREDIT, Item, Ledger, User, assert_claims_match, micro, sweep_until_credited, task
from tests.e2e.spending import Spender
from tests.support import wasm
from tests.waiting import GENEROUS_S, until

REPEATERS, SWEEPERS = 4, 2
END_S = 1_800.0  # every task is answered by then, on any machine
LEASE_OVER_MS = 20_000  # longer than the lease of any task here, shorter than its expiry
EXPIRY_OVER_MS = 120_000  # longer than the expiry of any task here
GAP_S = 0.4  # mean time between two faults
CALM_GAP_S = 5.0  # the same once runners are spared and only the sweep and results are hit
BUSY_SHARE = 0.7  # share of faults in runners that choose one whose agent is computing
STALL_S = (1.0, 30.0)  # a long stall outlasts the lease, so that the runner wakes after its task was taken over
PATIENCE_S = 12.0  # how long a client waits for an answer
LOSS_WAIT_S_MAX = 8  # the longest wait after a lost answer; the wait starts at one second and doubles
TICKET_SHARE = 3  # every third task is paid by a ticket
TICKET_VALUE, TICKETS_PER_TASK = "0.02", 3  # a task's budget of 0.05 takes three numbers
WAIT_S_MAX = 3.0  # a client retries after this, even if Retry-After is longer

FLAT_PRICE = {"type": "flat", "price": "0.05"}
METERED = {"type": "metered", "base": "0.001", "per_million_fuel": "0.00001", "per_kib_output": "0.0001"}


@dataclass(frozen=True)
class Scale:
    """How many tasks and clients there are, and how long faults are injected."""

    tasks: int
    clients: int
    arrival_s: float  # all tasks are sent for the first time within this time
    injection_s: float  # how long runners are hit
    giving_up_s: float  # a client that loses an answer within this time may give up


SHORT_SCALE = Scale(tasks=60, clients=8, arrival_s=6, injection_s=8, giving_up_s=30)
LONG_SCALE = Scale(tasks=300, clients=16, arrival_s=40, injection_s=50, giving_up_s=20)
SCALE = LONG_SCALE if LONG else SHORT_SCALE
HITS_MIN = 10  # of the long test: tasks that lost their runner; usually about thirty, fewer on a busy machine


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of task: its share in tenths, and its outcome without faults."""

    tenths: int
    agent: str
    tariff: dict[str, str]
    input: str
    outcome: Outcome = Outcome.SUCCEEDED
    output: str | None = None
    timeout: int = 3


KINDS = [
    Kind(5, "sieve", METERED, "60000000", output='{"limit":60000000,"primes":3562115,"largest":59999999}\n'),
    Kind(2, "echo", FLAT_PRICE, "given back", output="given back"),
    Kind(1, "misbehave", METERED, "size 5000", output="x" * 5_000, timeout=2),  # its output is stored in S3
    Kind(1, "misbehave", FLAT_PRICE, "loop", Outcome.TIMEOUT, timeout=1),
    Kind(1, "failing", FLAT_PRICE, "", Outcome.EXIT_CODE),
]


@dataclass(frozen=True)
class Injection:
    """A signal to a function's environment or to its sandbox worker; `weight` is its relative frequency."""

    weight: int
    function: str
    signal: Signals
    sandbox: bool = False

    def __str__(self) -> str:
        return f"{self.signal.name} {self.function}{' sandbox' if self.sandbox else ''}"


RUNNER = "ExecuteFunction"
INJECTIONS = [
    Injection(6, RUNNER, SIGKILL),
    Injection(4, RUNNER, SIGKILL, sandbox=True),
    Injection(3, RUNNER, SIGSTOP),
    Injection(2, "SweepFunction", SIGKILL),
    Injection(1, "SweepFunction", SIGSTOP),
    Injection(1, "ResultFunction", SIGKILL),
]


class FaultInjector:
    """Sends signals to the environments of one stack, which are child processes of its cloud, and to no others."""

    def __init__(
        self,
        cloud: Process,
        functions: dict[str, str],
        random: Random,
        *,
        runner: str = RUNNER,
        lasts_s: float = SCALE.injection_s,
    ) -> None:
        self._runner = runner
        self._lasts_s = lasts_s
        self._injections = [
            replace(injection, function=runner) if injection.function == RUNNER else injection
            for injection in INJECTIONS
        ]
        self.injected: Counter[str] = Counter()
        self._cloud = cloud
        self._functions = functions
        self._random = random
        self._stalled: list[tuple[float, Process]] = []

    def run(self, stop: Event) -> None:
        """Inject faults at random moments until `stop` is set; leave no process stalled."""
        runners_spared = monotonic() + self._lasts_s
        injections, gap_s = self._injections, GAP_S
        try:
            while not stop.wait(self._random.expovariate(1 / gap_s)):
                if monotonic() > runners_spared:
                    injections, gap_s = (
                        [injection for injection in injections if injection.function != self._runner],
                        CALM_GAP_S,
                    )
                self._wake(monotonic())
                self._inject(self._random.choices(injections, [injection.weight for injection in injections])[0])
        finally:
            self._wake(float("inf"))

    def busy_runner(self) -> Process:
        """Wait for an environment whose agent is computing, and return it."""
        return until(lambda: next(self._busy_runners(), None), "no agent is computing", pause_s=0.01)

    def _busy_runners(self) -> Iterator[Process]:
        return (runner for worker, runner in self.workers().items() if _is_computing(worker))

    def _inject(self, injection: Injection) -> None:
        targets = self._targets(injection)
        if not targets:
            return
        target = self._random.choice(targets)
        self.injected[str(injection)] += 1
        processes.send(target, injection.signal)
        if injection.signal is SIGSTOP:
            self._stalled.append((monotonic() + self._random.uniform(*STALL_S), target))

    def _targets(self, injection: Injection) -> list[Process]:
        if injection.function != self._runner:
            return self._environments(injection.function)
        # Only environments that have run something: when a cold start fails, ministack ends the function's others too.
        workers = self.workers()
        if self._random.random() < BUSY_SHARE:
            workers = {worker: runner for worker, runner in workers.items() if _is_computing(worker)} or workers
        return list(workers if injection.sandbox else workers.values())

    def workers(self) -> dict[Process, Process]:
        """The sandbox workers and their runners, except stalled ones."""
        runners = {process.pid: process for process in self._environments(self._runner)}
        return {process: runners[parent] for process, parent in processes.table().items() if parent in runners}

    def _environments(self, function: str) -> list[Process]:
        # Found by command line: a runner's environment variables and directory are hidden from its user's processes.
        name, stalled = self._functions[function].split(":")[-2], {process for _, process in self._stalled}
        children = {process for process, parent in processes.table().items() if parent == self._cloud.pid} - stalled
        return [process for process in children if name in _command(process)]

    def _wake(self, until: float) -> None:
        for moment, process in list(self._stalled):
            if moment <= until:
                processes.send(process, SIGCONT)
                self._stalled.remove((moment, process))


@dataclass
class ClientTask:
    """One task of a client: the request, when to send it next, and the answers."""

    kind: Kind
    body: dict[str, Any]
    due: float
    by_ticket: bool = False
    given_up: bool = False
    losses: int = 0
    answers: list[bytes] = field(default_factory=list)


class Client:
    """A user who finishes every task, one request at a time; `age` makes the escrow of an abandoned task expire."""

    def __init__(
        self, spender: Spender, client_tasks: list[ClientTask], random: Random, age: Callable[..., bool] | None
    ) -> None:
        self.user = spender.payer
        self.spender = spender
        self._age = age
        self.client_tasks = client_tasks
        self.responses: Counter[str] = Counter()
        self._random = random

    def work(self, began: float) -> None:
        """Send requests, the earliest due first, until every task is answered."""
        while waiting := [client_task for client_task in self.client_tasks if not client_task.answers]:
            client_task = min(waiting, key=lambda client_task: client_task.due)
            sleep(max(client_task.due - monotonic(), 0))
            assert monotonic() < began + END_S, [
                (client_task.body["task_id"], client_task.losses) for client_task in waiting
            ]
            self._ask(client_task, may_give_up=monotonic() < began + SCALE.giving_up_s)

    def repeat(self) -> None:
        """Send every request again, and read every result."""
        for client_task in self.client_tasks:
            for answer in (self._execute(client_task, GENEROUS_S), self._result(client_task, GENEROUS_S)):
                assert answer.status_code == 200, answer.text
                client_task.answers.append(answer.content)

    def _ask(self, client_task: ClientTask, *, may_give_up: bool) -> None:
        if client_task.given_up and self._age:
            self._age(self.user.name, client_task.body["task_id"], EXPIRY_OVER_MS)
        try:
            answer = self._result(client_task) if client_task.given_up else self._execute(client_task)
        except httpx.TransportError:
            self.responses["no answer"] += 1
            self._lose(client_task, may_give_up=may_give_up)
            return
        self.responses[str(answer.status_code)] += 1
        if answer.status_code == 200:
            client_task.answers.append(answer.content)
        elif answer.status_code >= 500:
            self._lose(client_task, may_give_up=may_give_up)
        elif answer.status_code == 404 and client_task.given_up:
            client_task.given_up = False  # it was never funded, so it can be sent again
        else:
            later = {"task_in_progress", "too_many_running"}  # slots of killed runners are free when their leases end
            assert answer.status_code == 202 or answer.json()["code"] in later, answer.text
            client_task.due = monotonic() + min(float(answer.headers["Retry-After"]), WAIT_S_MAX)

    def _lose(self, client_task: ClientTask, *, may_give_up: bool) -> None:
        client_task.losses += 1
        client_task.given_up |= may_give_up and self._random.random() < 0.7
        client_task.due = monotonic() + self._random.uniform(0.5, 1.0) * min(2**client_task.losses, LOSS_WAIT_S_MAX)

    def _execute(self, client_task: ClientTask, patience_s: float = PATIENCE_S) -> httpx.Response:
        if client_task.by_ticket:
            return self.spender.send(client_task.body, patience_s=patience_s)
        return self.user.http.post("/tasks/execute", json=client_task.body, timeout=patience_s)

    def _result(self, client_task: ClientTask, patience_s: float = PATIENCE_S) -> httpx.Response:
        return self.user.http.get(f"/tasks/{client_task.body['task_id']}/result", timeout=patience_s)


@pytest.fixture
def injector(stack: Stack) -> FaultInjector:
    return injector_for(stack, Random(f"{SEED} faults"))


def injector_for(stack: Stack, random: Random, **options: Any) -> FaultInjector:
    """A fault injector for the stack; skips the test without a local cloud on Linux."""
    cloud = clouds.running(state_of(stack))
    if cloud is None or not Path("/proc/self/cmdline").exists():
        pytest.skip("environments can be identified and killed only in a local cloud on Linux")
    return FaultInjector(cloud.process, stack.functions, random, **options)


@pytest.fixture
def clients(
    api: Callable[..., httpx.Client], deposit: Callable[..., None], alice: User, echo: str, ledger: Ledger
) -> list[Client]:
    """Clients without tasks, each with two credits, a channel and a warm environment: this is not about cold starts."""
    numbers, age = range(SCALE.clients), None if LONG else ledger.age
    with ThreadPoolExecutor(SCALE.clients) as pool:
        list(pool.map(lambda _: alice.run(echo), numbers))
    users = [User.new(api, deposit) for _ in numbers]
    for user in users:
        deposit(user.name, 1)
    tickets = TICKETS_PER_TASK * SCALE.tasks // SCALE.clients
    spenders = [Spender.opened(api, user, ticket_value=TICKET_VALUE, tickets=tickets) for user in users]
    return [Client(spender, [], Random(f"{SEED} {number}"), age) for number, spender in enumerate(spenders)]


def test_killed_runners_lose_double_and_strand_no_credits(  # noqa: PLR0917 - fixtures are arguments
    stack: Stack,
    injector: FaultInjector,
    clients: list[Client],
    api: Callable[..., httpx.Client],
    jwks: dict[str, Any],
    publish: Callable[..., str],
    sweep: Callable[[], None],
    ledger: Ledger,
    record_property: Callable[[str, Any], None],
) -> None:
    random, olga = Random(SEED), User.new(api)
    agents = {kind: publish(wasm(kind.agent), tariff=kind.tariff, owner=olga.name) for kind in KINDS}
    sweep_until_credited(sweep, ledger)
    platform_before = available(api, stack.platform_account)

    began = monotonic()
    for number in range(SCALE.tasks):
        (kind,) = random.choices(KINDS, [kind.tenths for kind in KINDS])
        client = clients[number % SCALE.clients]
        by_ticket = len(client.client_tasks) % TICKET_SHARE == 0
        name = f"{client.spender.id}.{len(client.client_tasks) + 1}" if by_ticket else f"t{number}"  # three numbers
        body = task(agents[kind], task_id=name, input=kind.input, timeout=kind.timeout)
        due = began + random.uniform(0, SCALE.arrival_s)
        client.client_tasks.append(ClientTask(kind, body, due, by_ticket))
    lost_sweeps = under_faults(injector, sweep, lambda: in_parallel(clients, lambda client: client.work(began)))
    in_parallel(clients, Client.repeat, REPEATERS)
    sweep_until_credited(sweep, ledger)

    escrows = {(item["account"], item["task_id"]): item for item in ledger.tasks()}
    mine = [
        (client_task, escrows[client.user.name, client_task.body["task_id"]])
        for client in clients
        for client_task in client.client_tasks
    ]
    summary = summarize(clients, mine, injector, lost_sweeps) + f", {monotonic() - began:.0f} s"
    record_property("figure", f"kills: {summary}")

    for client_task, item in mine:
        assert_settled_once(client_task, item, jwks)
    assert available(api, olga.name) == sum(item["paid"] for _, item in mine)
    assert available(api, stack.platform_account) == platform_before + sum(item["fee"] for _, item in mine)
    for client in clients:
        spent = sum(item["budget"] - item["refunded"] for _, item in mine if item["account"] == client.user.name)
        assert_closed(client, [item for _, item in mine if item.get("channel") == client.spender.id], ledger, sweep)
        assert available(api, client.user.name) == 2 * CREDIT - spent
    assert "differences  0\n" in audit(stack)

    assert sum(injector.injected.values()) > SCALE.injection_s / 2, summary
    if LONG:  # the tests below cause one of each on purpose
        hit = [item for _, item in mine if item["fence"] > 1 or item["outcome"] in {"worker_lost", "expired"}]
        assert len(hit) >= HITS_MIN, summary
        assert {"released", "refunded", "expired"} == {item["state"] for _, item in mine}, summary
        assert any(item["fence"] > 1 for _, item in mine), summary
        assert any(item["outcome"] == "worker_lost" for _, item in mine), summary


@dataclass
class RunningTask:
    """A task whose agent is computing, its pending request, and the runner process."""

    user: User
    agent: str
    runner: Process
    waiting: Future[httpx.Response]

    def repeat(self) -> httpx.Response:
        """Repeat the request until the task is no longer in progress; return the answer."""
        while (answer := self.user.execute(self.agent, **LATE)).status_code == 409:
            sleep(min(float(answer.headers["Retry-After"]), 0.5))
        return answer


WARM_UP = CREDIT // 100
LATE = {"task_id": "late", "input": "loop"}


@pytest.fixture
def running(
    injector: FaultInjector,
    api: Callable[..., httpx.Client],
    deposit: Callable[..., None],
    publish: Callable[..., str],
    echo: str,
) -> Iterator[RunningTask]:
    user, agent = User.new(api, deposit), publish(wasm("misbehave"), limits={"timeout": 3})
    user.run(echo)  # so that the next request gets a warm environment with a started sandbox
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(user.execute, agent, **LATE)
        runner = injector.busy_runner()
        try:
            yield RunningTask(user, agent, runner, waiting)
        finally:
            processes.send(runner, SIGCONT)


def settled(stack: Stack, api: Callable[..., httpx.Client], ledger: Ledger, running: RunningTask) -> Item:
    """The escrow of the failed task, after a check that the user has the budget back and the audit is clean."""
    item = ledger.escrow(running.user.name, LATE["task_id"])
    assert item is not None
    assert available(api, running.user.name) == CREDIT - WARM_UP
    assert "differences  0\n" in audit(stack)
    return item


def test_a_runner_that_wakes_too_late_settles_nothing(
    stack: Stack, api: Callable[..., httpx.Client], ledger: Ledger, running: RunningTask
) -> None:
    """Its task was taken over and settled meanwhile, so it returns the stored outcome."""
    processes.send(running.runner, SIGSTOP)
    assert ledger.age(running.user.name, LATE["task_id"], LEASE_OVER_MS)
    answer = running.repeat()
    processes.send(running.runner, SIGCONT)
    late = running.waiting.result()
    assert answer.status_code == 200, answer.text
    assert late.content == answer.content
    item = settled(stack, api, ledger, running)
    assert (item["state"], item["fence"], item["receipt"]) == ("refunded", 2, answer.json()["receipt"])


def test_a_killed_runners_task_is_taken_over(
    stack: Stack, api: Callable[..., httpx.Client], ledger: Ledger, running: RunningTask
) -> None:
    processes.send(running.runner, SIGKILL)
    assert running.waiting.result().status_code >= 500
    assert running.user.execute(running.agent, **LATE).json()["code"] == "task_in_progress", "the lease is not over"
    assert ledger.age(running.user.name, LATE["task_id"], LEASE_OVER_MS)
    answer = running.repeat()
    item = settled(stack, api, ledger, running)
    assert (item["fence"], item["outcome"], item["receipt"]) == (2, "timeout", answer.json()["receipt"])


def test_a_killed_runners_task_expires_without_a_takeover(
    stack: Stack, api: Callable[..., httpx.Client], ledger: Ledger, running: RunningTask
) -> None:
    processes.send(running.runner, SIGKILL)
    assert running.waiting.result().status_code >= 500
    assert ledger.age(running.user.name, LATE["task_id"], EXPIRY_OVER_MS)
    answer = running.user.http.get(f"/tasks/{LATE['task_id']}/result")
    assert answer.json()["escrow_status"] == "expired", answer.text
    item = settled(stack, api, ledger, running)
    assert (item["state"], item["fence"], item["outcome"]) == ("expired", 1, "expired")


def test_a_killed_sandbox_is_the_platforms_fault(
    stack: Stack, injector: FaultInjector, api: Callable[..., httpx.Client], ledger: Ledger, running: RunningTask
) -> None:
    (worker,) = [worker for worker, runner in injector.workers().items() if runner == running.runner]
    processes.send(worker, SIGKILL)
    answer = running.waiting.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (200, "worker_lost"), answer.text
    item = settled(stack, api, ledger, running)
    assert (item["state"], item["outcome"], item["reputation_tenths"]) == ("refunded", "worker_lost", 0)


def state_of(stack: Stack) -> State:
    """The state folder of the local cloud that the stack is deployed to."""
    return State(Path(stack.issuer_key).parent)


def audit(stack: Stack) -> str:
    """The output of `make audit`, which must succeed."""
    command = [sys.executable, "-m", "local", "--state", str(state_of(stack).root), "audit"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def under_faults(injector: FaultInjector, sweep: Callable[[], None], work: Callable[[], None]) -> int:
    """Do the work while faults are injected and sweeps run; return how many sweeps failed."""
    stop = Event()

    def sweeping() -> int:
        lost = 0
        while not stop.wait(1):
            try:
                sweep()
            except RefusedError:
                lost += 1
        return lost

    with ThreadPoolExecutor(1 + SWEEPERS) as pool:
        injecting = pool.submit(injector.run, stop)
        sweepers = [pool.submit(sweeping) for _ in range(SWEEPERS)]
        try:
            work()
        finally:
            stop.set()
        injecting.result()
        return sum(sweeper.result() for sweeper in sweepers)


def in_parallel(clients: list[Client], work: Callable[[Client], None], threads: int = SCALE.clients) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, clients))


def assert_settled_once(client_task: ClientTask, item: Item, jwks: dict[str, Any]) -> None:
    """Assert that the escrow is settled and credited, and that every answer agrees with it."""
    assert item["state"] != "funded"
    assert "work" not in item
    assert "swept_ms" in item
    assert_claims_match(receipt.verify(item["receipt"], jwks), item)
    assert len(set(client_task.answers)) == 1, client_task.answers
    answer = httpx.Response(200, content=client_task.answers[0]).json()
    assert answer["receipt"] == item["receipt"]
    assert (answer["escrow_status"], answer["reputation_delta"]) == (item["state"], item["reputation_tenths"] / 10)
    amounts = {"amount_paid": "paid", "fee": "fee", "amount_refunded": "refunded"}
    assert [micro(answer[name]) for name in amounts] == [item[name] for name in amounts.values()]
    assert item["paid"] + item["fee"] + item["refunded"] == item["budget"]
    outcome = Outcome(item["outcome"])
    # On a busy machine a good agent may exceed its timeout.
    assert outcome in {client_task.kind.outcome, Outcome.TIMEOUT} or outcome.fault is Fault.PLATFORM
    assert answer["output"] == (client_task.kind.output if outcome is Outcome.SUCCEEDED else None)


def assert_closed(client: Client, items: list[Item], ledger: Ledger, sweep: Callable[[], None]) -> None:
    """Assert that the client's channel closes, and that it spent exactly what its tasks cost."""
    closed = client.spender.finish(ledger, sweep)
    by_ticket = [client_task for client_task in client.client_tasks if client_task.by_ticket]
    assert sorted(item["task_id"] for item in items) == sorted(each.body["task_id"] for each in by_ticket)
    assert closed["spent"] == sum(item["paid"] + item["fee"] for item in items)
    assert closed["swept"] == closed["used"] == TICKETS_PER_TASK * len(items)
    assert closed["returned"] == closed["deposit"] - closed["spent"]


def summarize(
    clients: list[Client], mine: list[tuple[ClientTask, Item]], injector: FaultInjector, lost_sweeps: int
) -> str:
    """What happened during the test, in one line."""
    responses = sum((client.responses for client in clients), Counter[str]())
    ends = Counter(item["outcome"] for _, item in mine)
    taken_over = sum(item["fence"] > 1 for _, item in mine)
    given_up = sum(client_task.given_up for client_task, _ in mine)
    by_ticket = sum(client_task.by_ticket for client_task, _ in mine)
    lost = sum(client_task.losses > 0 for client_task, _ in mine)
    return (
        f"seed {SEED}, {len(mine)} tasks, {by_ticket} by ticket; {dict(injector.injected)}; answers {dict(responses)}; "
        f"lost sweeps {lost_sweeps}; "
        f"tasks that lost an answer {lost}, taken over {taken_over}, given up {given_up}; ends {dict(ends)}"
    )


def available(api: Callable[..., httpx.Client], account: str) -> int:
    """The available micro-credits of any account; only an operator's scope can read the platform's account."""
    return micro(api(account, "ledger:deposit").get("/accounts/me").json()["available"])


def _command(process: Process) -> str:
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:  # it has ended
        return ""


def _is_computing(process: Process) -> bool:
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:
        return False
