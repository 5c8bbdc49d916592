"""Lambda environments killed and stalled: first at chosen moments, then at random ones, and all in order afterwards.

Clients do what the API tells them: without an answer they repeat the same request. Some that lose one early give up and
only ask for the result, so that escrows expire as well. QUITTANCE_FUZZ_SEED repeats the choices, not the moments.

The short storm makes leases and expiries pass by moving an escrow's times into the past. The long one (`make proofs`)
waits for them.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from decimal import Decimal
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
from tests.e2e.people import Item, Ledger, User, assert_states, credited, task
from tests.support import wasm
from tests.waiting import GENEROUS_S, until

CREDIT = 1_000_000
REPEATERS, SWEEPERS = 4, 2
END_S = 1_800.0  # no task is without an answer by then, on any machine
LEASE_OVER_MS = 20_000  # the lease of any task here is over, its escrow has not expired
EXPIRY_OVER_MS = 120_000  # it has
GAP_S = 0.4  # between two blows in the storm, on average
CALM_GAP_S = 5.0  # and after it, when only what expires and credits is hit
BUSY_SHARE = 0.7  # of the blows at runners that look for one whose agent is computing
STALL_S = (1.0, 30.0)  # the longer ones outlast a lease, so that a runner wakes whose task is another's
PATIENCE_S = 12.0  # of a client with a request that is not answered
LOSS_WAIT_S_MAX = 8  # and after a lost answer, doubling from one second
WAIT_S_MAX = 3.0  # a client asks again this soon, even if it is told to wait for longer

IN_FULL = {"type": "flat", "price": "0.05"}
IN_PART = {"type": "metered", "base": "0.001", "per_million_fuel": "0.00001", "per_kib_output": "0.0001"}


@dataclass(frozen=True)
class Scale:
    """How much happens, and for how long."""

    tasks: int
    clients: int
    arrival_s: float  # the tasks begin within this time
    storm_s: float  # for this long runners are killed
    giving_up_s: float  # a loss within this time may end in giving up


SHORT_SCALE = Scale(tasks=60, clients=8, arrival_s=6, storm_s=8, giving_up_s=30)
LONG_SCALE = Scale(tasks=300, clients=16, arrival_s=40, storm_s=50, giving_up_s=20)
SCALE = LONG_SCALE if LONG else SHORT_SCALE
HITS_MIN = 10  # of the long storm: tasks whose runner was lost; about thirty are, fewer where the machine is busy


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of task: how many of ten there are, and how one ends if nothing goes wrong."""

    tenths: int
    agent: str
    tariff: dict[str, str]
    input: str
    outcome: Outcome = Outcome.SUCCEEDED
    output: str | None = None
    timeout: int = 3


KINDS = [
    Kind(5, "sieve", IN_PART, "60000000", output='{"limit":60000000,"primes":3562115,"largest":59999999}\n'),
    Kind(2, "echo", IN_FULL, "given back", output="given back"),
    Kind(1, "misbehave", IN_PART, "size 5000", output="x" * 5_000, timeout=2),  # kept in S3
    Kind(1, "misbehave", IN_FULL, "loop", Outcome.TIMEOUT, timeout=1),
    Kind(1, "failing", IN_FULL, "", Outcome.EXIT_CODE),
]


@dataclass(frozen=True)
class Blow:
    """What is done to a function's environment, or to the sandbox worker under it; the more often the heavier."""

    weight: int
    function: str
    signal: Signals
    sandbox: bool = False

    def __str__(self) -> str:
        return f"{self.signal.name} {self.function}{' sandbox' if self.sandbox else ''}"


RUNNER = "ExecuteFunction"
BLOWS = [
    Blow(6, RUNNER, SIGKILL),
    Blow(4, RUNNER, SIGKILL, sandbox=True),
    Blow(3, RUNNER, SIGSTOP),
    Blow(2, "SweepFunction", SIGKILL),
    Blow(1, "SweepFunction", SIGSTOP),
    Blow(1, "ResultFunction", SIGKILL),
]


class Storm:
    """Strikes the environments of one stack: children of its cloud's process, and nothing else on this machine."""

    def __init__(
        self,
        cloud: Process,
        functions: dict[str, str],
        random: Random,
        *,
        runner: str = RUNNER,
        lasts_s: float = SCALE.storm_s,
    ) -> None:
        self._runner = runner
        self._lasts_s = lasts_s
        self._blows = [replace(blow, function=runner) if blow.function == RUNNER else blow for blow in BLOWS]
        self.struck: Counter[str] = Counter()
        self._cloud = cloud
        self._functions = functions
        self._random = random
        self._stalled: list[tuple[float, Process]] = []

    def rage(self, stop: Event) -> None:
        """Strikes at random moments until told to stop, and leaves nothing stalled."""
        calm = monotonic() + self._lasts_s
        blows, gap_s = self._blows, GAP_S
        try:
            while not stop.wait(self._random.expovariate(1 / gap_s)):
                if monotonic() > calm:
                    blows, gap_s = [blow for blow in blows if blow.function != self._runner], CALM_GAP_S
                self._wake(monotonic())
                self._strike(self._random.choices(blows, [blow.weight for blow in blows])[0])
        finally:
            self._wake(float("inf"))

    def busy_runner(self) -> Process:
        """An environment whose agent computes; waits for one."""
        return until(lambda: next(self._busy_runners(), None), "no agent computes", pause_s=0.01)

    def _busy_runners(self) -> Iterator[Process]:
        return (runner for worker, runner in self.workers().items() if _computes(worker))

    def _strike(self, blow: Blow) -> None:
        victims = self._victims(blow)
        if not victims:
            return
        victim = self._random.choice(victims)
        self.struck[str(blow)] += 1
        processes.send(victim, blow.signal)
        if blow.signal is SIGSTOP:
            self._stalled.append((monotonic() + self._random.uniform(*STALL_S), victim))

    def _victims(self, blow: Blow) -> list[Process]:
        if blow.function != self._runner:
            return self._environments(blow.function)
        # Not before it has run something: where one cold start fails, ministack ends all the function's others.
        workers = self.workers()
        if self._random.random() < BUSY_SHARE:
            workers = {worker: runner for worker, runner in workers.items() if _computes(worker)} or workers
        return list(workers if blow.sandbox else workers.values())

    def workers(self) -> dict[Process, Process]:
        """The sandbox workers with their runners, but for stalled ones."""
        runners = {process.pid: process for process in self._environments(self._runner)}
        return {process: runners[parent] for process, parent in processes.table().items() if parent in runners}

    def _environments(self, function: str) -> list[Process]:
        # Told by the command line: a runner's environment and directory are hidden from other processes of its user.
        name, stalled = self._functions[function].split(":")[-2], {process for _, process in self._stalled}
        children = {process for process, parent in processes.table().items() if parent == self._cloud.pid} - stalled
        return [process for process in children if name in _command(process)]

    def _wake(self, until: float) -> None:
        for moment, process in list(self._stalled):
            if moment <= until:
                processes.send(process, SIGCONT)
                self._stalled.remove((moment, process))


@dataclass
class Errand:
    """One task as its client sees it: the request, when to ask next, and what was answered."""

    kind: Kind
    body: dict[str, Any]
    due: float
    given_up: bool = False
    losses: int = 0
    answers: list[bytes] = field(default_factory=list)


class Client:
    """A user who gets every task done, one request at a time; `age` makes time pass for a task that was given up."""

    def __init__(self, user: User, errands: list[Errand], random: Random, age: Callable[..., bool] | None) -> None:
        self.user = user
        self._age = age
        self.errands = errands
        self.met: Counter[str] = Counter()
        self._random = random

    def work(self, began: float) -> None:
        """Asks until every task has been answered, whichever is due."""
        while waiting := [errand for errand in self.errands if not errand.answers]:
            errand = min(waiting, key=lambda errand: errand.due)
            sleep(max(errand.due - monotonic(), 0))
            assert monotonic() < began + END_S, [(errand.body["task_id"], errand.losses) for errand in waiting]
            self._ask(errand, may_give_up=monotonic() < began + SCALE.giving_up_s)

    def repeat(self) -> None:
        """Sends every request again, and reads every result."""
        for errand in self.errands:
            for answer in (self._execute(errand, GENEROUS_S), self._result(errand, GENEROUS_S)):
                assert answer.status_code == 200, answer.text
                errand.answers.append(answer.content)

    def _ask(self, errand: Errand, *, may_give_up: bool) -> None:
        if errand.given_up and self._age:
            self._age(self.user.name, errand.body["task_id"], EXPIRY_OVER_MS)
        try:
            answer = self._result(errand) if errand.given_up else self._execute(errand)
        except httpx.TransportError:
            self.met["no answer"] += 1
            self._lose(errand, may_give_up=may_give_up)
            return
        self.met[str(answer.status_code)] += 1
        if answer.status_code == 200:
            errand.answers.append(answer.content)
        elif answer.status_code >= 500:
            self._lose(errand, may_give_up=may_give_up)
        elif answer.status_code == 404 and errand.given_up:
            errand.given_up = False  # it never began, so it can be sent as if for the first time
        else:
            later = {"task_in_progress", "too_many_running"}  # slots of killed runners lapse with their leases
            assert answer.status_code == 202 or answer.json()["code"] in later, answer.text
            errand.due = monotonic() + min(float(answer.headers["Retry-After"]), WAIT_S_MAX)

    def _lose(self, errand: Errand, *, may_give_up: bool) -> None:
        errand.losses += 1
        errand.given_up |= may_give_up and self._random.random() < 0.7
        errand.due = monotonic() + self._random.uniform(0.5, 1.0) * min(2**errand.losses, LOSS_WAIT_S_MAX)

    def _execute(self, errand: Errand, patience_s: float = PATIENCE_S) -> httpx.Response:
        return self.user.http.post("/tasks/execute", json=errand.body, timeout=patience_s)

    def _result(self, errand: Errand, patience_s: float = PATIENCE_S) -> httpx.Response:
        return self.user.http.get(f"/tasks/{errand.body['task_id']}/result", timeout=patience_s)


@pytest.fixture
def storm(stack: Stack) -> Storm:
    cloud = clouds.running(state_of(stack))
    if cloud is None or not Path("/proc/self/cmdline").exists():
        pytest.skip("environments can be told apart and killed only in a local cloud on Linux")
    return Storm(cloud.process, stack.functions, Random(f"{SEED} storm"))


@pytest.fixture
def clients(
    api: Callable[..., httpx.Client], deposit: Callable[..., None], alice: User, echo: str, ledger: Ledger
) -> list[Client]:
    """Clients with nothing to do yet, and an environment for each: cold starts are not what is tried here."""
    numbers, age = range(SCALE.clients), None if LONG else ledger.age
    with ThreadPoolExecutor(SCALE.clients) as pool:
        list(pool.map(lambda _: alice.run(echo), numbers))
    return [Client(User.new(api, deposit), [], Random(f"{SEED} {number}"), age) for number in numbers]


def test_killed_runners_lose_double_and_strand_nothing(
    stack: Stack,
    storm: Storm,
    clients: list[Client],
    api: Callable[..., httpx.Client],
    publish: Callable[..., str],
    sweep: Callable[[], None],
    ledger: Ledger,
    record_property: Callable[[str, Any], None],
) -> None:
    random, olga = Random(SEED), User.new(api)
    agents = {kind: publish(wasm(kind.agent), tariff=kind.tariff, owner=olga.name) for kind in KINDS}
    credited(sweep, ledger)
    platform_before = available(api, stack.platform_account)

    began = monotonic()
    for number in range(SCALE.tasks):
        (kind,) = random.choices(KINDS, [kind.tenths for kind in KINDS])
        body = task(agents[kind], task_id=f"t{number}", input=kind.input, timeout=kind.timeout)
        clients[number % SCALE.clients].errands.append(Errand(kind, body, began + random.uniform(0, SCALE.arrival_s)))
    lost_sweeps = weather(storm, sweep, lambda: together(clients, lambda client: client.work(began)))
    together(clients, Client.repeat, REPEATERS)
    credited(sweep, ledger)

    escrows = {(item["account"], item["task_id"]): item for item in ledger.items("ESC#")}
    mine = [
        (errand, escrows[client.user.name, errand.body["task_id"]]) for client in clients for errand in client.errands
    ]
    told = tell(clients, mine, storm, lost_sweeps) + f", {monotonic() - began:.0f} s"
    record_property("figure", f"kills: {told}")

    jwks = api(None).get("/.well-known/jwks.json").json()
    for errand, item in mine:
        assert_settled_once(errand, item, jwks)
    assert available(api, olga.name) == sum(item["paid"] for _, item in mine)
    assert available(api, stack.platform_account) == platform_before + sum(item["fee"] for _, item in mine)
    for client in clients:
        spent = sum(item["budget"] - item["refunded"] for _, item in mine if item["account"] == client.user.name)
        assert available(api, client.user.name) == CREDIT - spent
    assert "differences  0\n" in audit(stack)

    assert sum(storm.struck.values()) > SCALE.storm_s / 2, told
    if LONG:  # one of each is brought about on purpose below
        hit = [item for _, item in mine if item["fence"] > 1 or item["outcome"] in {"worker_lost", "expired"}]
        assert len(hit) >= HITS_MIN, told
        assert {"released", "refunded", "expired"} == {item["state"] for _, item in mine}, told
        assert any(item["fence"] > 1 for _, item in mine), told
        assert any(item["outcome"] == "worker_lost" for _, item in mine), told


@dataclass
class Struck:
    """A task that computes, whose request waits for an answer, and whose runner is in our hands."""

    user: User
    agent: str
    runner: Process
    waiting: Future[httpx.Response]

    def repeat(self) -> httpx.Response:
        """The same request until it is not answered by "in progress"."""
        while (answer := self.user.execute(self.agent, **LATE)).status_code == 409:
            sleep(min(float(answer.headers["Retry-After"]), 0.5))
        return answer


WARM_UP = CREDIT // 100
LATE = {"task_id": "late", "input": "loop"}


@pytest.fixture
def struck(
    storm: Storm, api: Callable[..., httpx.Client], deposit: Callable[..., None], publish: Callable[..., str], echo: str
) -> Iterator[Struck]:
    user, agent = User.new(api, deposit), publish(wasm("misbehave"), limits={"timeout": 3})
    user.run(echo)  # the next request finds this environment, and a sandbox that has started
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(user.execute, agent, **LATE)
        runner = storm.busy_runner()
        try:
            yield Struck(user, agent, runner, waiting)
        finally:
            processes.send(runner, SIGCONT)


def settled(stack: Stack, api: Callable[..., httpx.Client], ledger: Ledger, struck: Struck) -> Item:
    """The escrow of a task that failed: the user has everything back, and all sums are right."""
    item = ledger.escrow(struck.user.name, LATE["task_id"])
    assert item is not None
    assert available(api, struck.user.name) == CREDIT - WARM_UP
    assert "differences  0\n" in audit(stack)
    return item


def test_stalled_runner_that_wakes_too_late_settles_nothing(
    stack: Stack, api: Callable[..., httpx.Client], ledger: Ledger, struck: Struck
) -> None:
    """Its task has been taken over and settled meanwhile: it tells what the other one stored."""
    processes.send(struck.runner, SIGSTOP)
    assert ledger.age(struck.user.name, LATE["task_id"], LEASE_OVER_MS)
    answer = struck.repeat()
    processes.send(struck.runner, SIGCONT)
    late = struck.waiting.result()
    assert answer.status_code == 200, answer.text
    assert late.content == answer.content
    item = settled(stack, api, ledger, struck)
    assert (item["state"], item["fence"], item["receipt"]) == ("refunded", 2, answer.json()["receipt"])


def test_the_task_of_a_killed_runner_is_taken_over(
    stack: Stack, api: Callable[..., httpx.Client], ledger: Ledger, struck: Struck
) -> None:
    processes.send(struck.runner, SIGKILL)
    assert struck.waiting.result().status_code >= 500
    assert struck.user.execute(struck.agent, **LATE).json()["code"] == "task_in_progress", "the lease is not over"
    assert ledger.age(struck.user.name, LATE["task_id"], LEASE_OVER_MS)
    answer = struck.repeat()
    item = settled(stack, api, ledger, struck)
    assert (item["fence"], item["outcome"], item["receipt"]) == (2, "timeout", answer.json()["receipt"])


def test_the_task_of_a_killed_runner_expires_where_nobody_takes_it_over(
    stack: Stack, api: Callable[..., httpx.Client], ledger: Ledger, struck: Struck
) -> None:
    processes.send(struck.runner, SIGKILL)
    assert struck.waiting.result().status_code >= 500
    assert ledger.age(struck.user.name, LATE["task_id"], EXPIRY_OVER_MS)
    answer = struck.user.http.get(f"/tasks/{LATE['task_id']}/result")
    assert answer.json()["escrow_status"] == "expired", answer.text
    item = settled(stack, api, ledger, struck)
    assert (item["state"], item["fence"], item["outcome"]) == ("expired", 1, "expired")


def test_a_killed_sandbox_is_the_platforms_fault(
    stack: Stack, storm: Storm, api: Callable[..., httpx.Client], ledger: Ledger, struck: Struck
) -> None:
    (worker,) = [worker for worker, runner in storm.workers().items() if runner == struck.runner]
    processes.send(worker, SIGKILL)
    answer = struck.waiting.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (200, "worker_lost"), answer.text
    item = settled(stack, api, ledger, struck)
    assert (item["state"], item["outcome"], item["reputation_tenths"]) == ("refunded", "worker_lost", 0)


def state_of(stack: Stack) -> State:
    """The local cloud that the stack is deployed to."""
    return State(Path(stack.issuer_key).parent)


def audit(stack: Stack) -> str:
    """What `make audit` says."""
    command = [sys.executable, "-m", "local", "--state", str(state_of(stack).root), "audit"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def weather(storm: Storm, sweep: Callable[[], None], work: Callable[[], None]) -> int:
    """Does the work while the storm rages and sweeps go on; returns how many sweeps were lost."""
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
        raging = pool.submit(storm.rage, stop)
        sweepers = [pool.submit(sweeping) for _ in range(SWEEPERS)]
        try:
            work()
        finally:
            stop.set()
        raging.result()
        return sum(sweeper.result() for sweeper in sweepers)


def together(clients: list[Client], work: Callable[[Client], None], threads: int = SCALE.clients) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, clients))


def assert_settled_once(errand: Errand, item: Item, jwks: dict[str, Any]) -> None:
    """The escrow is closed and credited, and every answer ever given is what it says."""
    assert item["state"] != "funded"
    assert "work" not in item
    assert "swept_ms" in item
    assert_states(receipt.verify(item["receipt"], jwks), item)
    assert len(set(errand.answers)) == 1, errand.answers
    answer = httpx.Response(200, content=errand.answers[0]).json()
    assert answer["receipt"] == item["receipt"]
    assert (answer["escrow_status"], answer["reputation_delta"]) == (item["state"], item["reputation_tenths"] / 10)
    amounts = {"amount_paid": "paid", "fee": "fee", "amount_refunded": "refunded"}
    assert [micro(answer[name]) for name in amounts] == [item[name] for name in amounts.values()]
    assert item["paid"] + item["fee"] + item["refunded"] == item["budget"]
    outcome = Outcome(item["outcome"])
    # A machine with its hands full may let a good agent run into its timeout.
    assert outcome in {errand.kind.outcome, Outcome.TIMEOUT} or outcome.fault is Fault.PLATFORM
    assert answer["output"] == (errand.kind.output if outcome is Outcome.SUCCEEDED else None)


def tell(clients: list[Client], mine: list[tuple[Errand, Item]], storm: Storm, lost_sweeps: int) -> str:
    """What the test has been through, in one line."""
    met = sum((client.met for client in clients), Counter[str]())
    ends = Counter(item["outcome"] for _, item in mine)
    taken_over = sum(item["fence"] > 1 for _, item in mine)
    given_up = sum(errand.given_up for errand, _ in mine)
    lost = sum(errand.losses > 0 for errand, _ in mine)
    return (
        f"seed {SEED}, {len(mine)} tasks; {dict(storm.struck)}; answers {dict(met)}; lost sweeps {lost_sweeps}; "
        f"tasks that lost an answer {lost}, taken over {taken_over}, given up {given_up}; ends {dict(ends)}"
    )


def available(api: Callable[..., httpx.Client], account: str) -> int:
    """Anybody's; the platform's account shows itself to the operator's scope alone."""
    return micro(api(account, "ledger:deposit").get("/accounts/me").json()["available"])


def micro(amount: str) -> int:
    return int(Decimal(amount) * CREDIT)


def _command(process: Process) -> str:
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:  # it has ended
        return ""


def _computes(process: Process) -> bool:
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:
        return False
