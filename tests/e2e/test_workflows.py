"""Executions of the workflow of template.yaml on the local cloud: their outputs and costs."""

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import pytest
import wasmtime

from local.paths import Stack
from quittance.limits import WORKFLOW_STATE_BYTES_MAX
from quittance.proof import receipt
from tests.e2e.people import CREDIT, Ledger, User, invoke, micro, task
from tests.sandbox.wat import call, iovecs, memory, program
from tests.support import ROOT, wasm
from tests.waiting import until

EVENT = (ROOT / "events" / "plan-run.json").read_text()
PRICE = 10_000  # of each agent here, in micro-credits, with the fee
# Counts for about a second, then writes one word.
SLOW = program(
    f"""(local $n i64) (loop $again (local.set $n (i64.add (local.get $n) (i64.const 1)))
        (br_if $again (i64.lt_u (local.get $n) (i64.const 1000000000)))) (drop {call("fd_write", 1, 0, 1, 8)})""",
    "fd_write",
    more=memory(0, iovecs((32, 4))) + memory(32, b"done"),
)
# Writes two bytes that are not UTF-8.
BINARY = program(
    f"(drop {call('fd_write', 1, 0, 1, 8)})", "fd_write", more=memory(0, iovecs((32, 2))) + memory(32, b"\xff\xfe")
)


@dataclass(frozen=True)
class Execution:
    """An execution that has ended."""

    status: str
    output: Any
    text: str
    failures: list[str]

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """All tasks that were started."""
        return [task for result in self.output["results"] for task in result["tasks"]]


class Workflow:
    """Starts executions and waits until they end."""

    def __init__(self, client: Any, arn: str) -> None:
        self._client, self._arn = client, arn

    def start(self, body: Any, name: str | None = None) -> str:
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        started = self._client.start_execution(stateMachineArn=self._arn, name=name or uuid.uuid4().hex, input=text)
        arn: str = started["executionArn"]
        return arn

    def failures(self, arn: str) -> list[str]:
        """The names of the errors of all attempts so far."""
        pages = self._client.get_paginator("get_execution_history").paginate(executionArn=arn)
        events = [event for page in pages for event in page["events"] if event["type"] == "TaskFailed"]
        return [event["taskFailedEventDetails"]["error"] for event in events]

    def end(self, arn: str) -> Execution:
        def ended() -> dict[str, Any] | None:
            found: dict[str, Any] = self._client.describe_execution(executionArn=arn)
            return found if found["status"] != "RUNNING" else None

        found = until(ended, "the execution does not end", pause_s=0.1)
        text = found.get("output") or "null"
        return Execution(found["status"], json.loads(text), text, self.failures(arn))

    def run(self, body: Any, name: str | None = None) -> Execution:
        """Run an execution that must succeed, that is, record the outcome of every task."""
        ended = self.end(self.start(body, name))
        assert ended.status == "SUCCEEDED", ended
        return ended


@pytest.fixture(scope="module")
def workflow(stack: Stack, aws: Callable[[str], Any]) -> Workflow:
    return Workflow(aws("stepfunctions"), stack.workflow)


@pytest.fixture
def alice(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> User:
    return User.new(api, deposit)


def body(user: User, *agents: str, **changes: Any) -> dict[str, Any]:
    """A valid input of the workflow with these changes."""
    steps = [{"agent_id": agent} for agent in agents]
    return {"user_id": user.name, "budget": "0.1", "steps": steps, "inputs": ["hello"]} | changes


def verified_claims(task: dict[str, Any], jwks: dict[str, Any], user: User) -> dict[str, Any]:
    """The claims of a task's receipt, after a check that it verifies and agrees with the execution's output."""
    claims = receipt.verify(task["receipt"], jwks)
    assert (claims["task"], claims["user"], claims["agent"]) == (task["task_id"], user.name, task["agent_id"])
    assert (claims["eid"], claims["state"]) == (task["escrow_id"], task["escrow_status"])
    amounts = [micro(task[name]) for name in ("amount_paid", "fee", "amount_refunded")]
    assert [int(claims[name]) for name in ("paid", "fee", "refunded")] == amounts
    assert sum(amounts) == int(claims["budget"])
    return claims


def test_a_run_from_an_event_file_succeeds_with_receipts(
    workflow: Workflow,
    alice: User,
    publish: Callable[..., str],
    jwks: dict[str, Any],
    balance: Callable[[str], int],
) -> None:
    text = EVENT.replace('"alice"', f'"{alice.name}"').replace("agt_aaaaaaaaaaaaaaaa", publish(wasm("wordcount")))
    done = workflow.run(text)
    assert (done.output["run_id"], done.output["success"], done.failures) == ("run-1", True, [])
    words = [json.loads(result["output"])["words"] for result in done.output["results"]]
    assert words == [6, 4], "in the order of the inputs"
    assert [task["task_id"] for task in done.tasks] == ["run-1.0.0", "run-1.1.0"]
    for reported in done.tasks:
        assert verified_claims(reported, jwks, alice)["outcome"] == "succeeded"
        answer = alice.http.get(f"/tasks/{reported['task_id']}/result").json()
        assert {name: answer[name] for name in reported.keys() - {"output_bytes"}} == {
            name: value for name, value in reported.items() if name != "output_bytes"
        }
    assert balance(alice.name) == CREDIT - 2 * PRICE


def test_a_failed_agent_is_an_output_and_costs_nothing(
    workflow: Workflow,
    alice: User,
    publish: Callable[..., str],
    jwks: dict[str, Any],
    balance: Callable[[str], int],
) -> None:
    done = workflow.run(body(alice, publish(wasm("failing"))))
    (result,), (reported,) = done.output["results"], done.tasks
    assert (done.output["success"], result["success"], result["output"]) == (False, False, None)
    assert (result["stopped"], reported["error"]["code"], reported["escrow_status"]) == (
        "exit_code",
        "exit_code",
        "refunded",
    )
    assert verified_claims(reported, jwks, alice)["outcome"] == "exit_code"
    assert (done.failures, balance(alice.name)) == ([], CREDIT)


@pytest.mark.parametrize(
    ("error", "change", "says"),
    [
        ("InsufficientFundsError", {"budget": "1.000001"}, "1.000001 credits are required, 1 are available"),
        ("NotFoundError", {"steps": [{"agent_id": "agt_unknown"}]}, "agt_unknown"),
        ("BudgetTooLowError", {"budget": "0.009999"}, "below 0.01, the least"),
    ],
)
def test_a_refused_task_is_caught_by_name_and_moves_no_credits(
    workflow: Workflow,
    alice: User,
    echo: str,
    balance: Callable[[str], int],
    error: str,
    change: dict[str, Any],
    says: str,
) -> None:
    done = workflow.run(body(alice, echo) | change)
    (result,), (reported,) = done.output["results"], done.tasks
    assert (done.output["success"], result["success"], result["stopped"]) == (False, False, error)
    assert reported["refused"]["error"] == error
    assert says in reported["refused"]["message"]
    assert "receipt" not in reported
    assert (done.failures, balance(alice.name)) == ([error], CREDIT), "a refusal is not retried"


@pytest.mark.parametrize(
    ("error", "change", "says"),
    [
        ("InvalidRequestError", {"budget": "1.0000001", "more": 1}, "budget: .*more: is not a known field"),
        ("InvalidRequestError", {"inputs": ["x"] * 49}, "inputs: must have at most 48 items"),
        ("InvalidRequestError", {"inputs": ["x"] * 20, "budget": "0.000019"}, "too small to be divided"),
        ("InvalidRequestError", {"run_id": "a#b"}, "run_id: must match"),
        ("PayloadTooLargeError", {"inputs": ["é" * 100_000, "x" * 60_000]}, "inputs has more than 257536 bytes"),
    ],
    ids=["fields", "inputs", "budget", "run_id", "size"],
)
def test_a_refused_run_is_caught_by_name_and_starts_no_task(
    workflow: Workflow, alice: User, echo: str, ledger: Ledger, error: str, change: dict[str, Any], says: str
) -> None:
    done = workflow.run(body(alice, echo) | change)
    assert (done.output["success"], done.output["results"], done.failures) == (False, [], [error])
    assert done.output["refused"]["error"] == error
    assert re.search(says, done.output["refused"]["message"])
    assert [item for item in ledger.tasks() if item["account"] == alice.name] == []


@pytest.fixture
def unqualified(stack: Stack, aws: Callable[[str], Any]) -> Iterator[Workflow]:
    """The same definition without the functions' alias, because the local cloud does not throttle calls of an alias."""
    client = aws("stepfunctions")
    deployed = client.describe_state_machine(stateMachineArn=stack.workflow)
    copy = client.create_state_machine(
        name=f"copy-{uuid.uuid4().hex}",
        definition=deployed["definition"].replace(":live", ""),
        roleArn=deployed["roleArn"],
    )["stateMachineArn"]
    yield Workflow(client, copy)
    client.delete_state_machine(stateMachineArn=copy)


def test_a_throttled_task_is_retried(
    unqualified: Workflow,
    stack: Stack,
    aws: Callable[[str], Any],
    alice: User,
    echo: str,
    balance: Callable[[str], int],
) -> None:
    function = {"FunctionName": stack.functions["ExecuteFunction"].removesuffix(":live")}
    aws("lambda").put_function_concurrency(**function, ReservedConcurrentExecutions=0)
    try:
        arn = unqualified.start(body(alice, echo))
        throttled = until(lambda: unqualified.failures(arn), "no call is throttled", pause_s=0.1)
    finally:
        aws("lambda").delete_function_concurrency(**function)
    done = unqualified.end(arn)
    # The local cloud's name; on AWS it is Lambda.TooManyRequestsException. The workflow handles both.
    assert set(throttled) == {"Lambda.Unknown"}
    assert (done.status, done.output["success"], balance(alice.name)) == ("SUCCEEDED", True, CREDIT - PRICE)


def test_a_task_in_progress_is_retried(
    workflow: Workflow,
    stack: Stack,
    aws: Callable[[str], Any],
    alice: User,
    publish: Callable[..., str],
    ledger: Ledger,
    balance: Callable[[str], int],
) -> None:
    """As after a lost answer: the first attempt is still running when the workflow sends the task."""
    agent = publish(bytes(wasmtime.wat2wasm(SLOW)))
    run_id = uuid.uuid4().hex
    first = {"user_id": alice.name, **task(agent, task_id=f"{run_id}.0.0", budget="0.1")}
    answers: list[Any] = []

    def attempt() -> None:
        answers.append(invoke(aws("lambda"), stack.functions["ExecuteFunction"], first)[0])

    runner = threading.Thread(target=attempt)
    runner.start()
    until(lambda: ledger.escrow(alice.name, first["task_id"]), "the first attempt is not funded", pause_s=0.02)
    done = workflow.run(body(alice, agent, run_id=run_id))
    runner.join()
    assert set(done.failures) == {"TaskInProgressError"}
    assert done.tasks[0]["receipt"] == answers[0]["receipt"], "one task, one outcome"
    assert balance(alice.name) == CREDIT - PRICE


def test_many_inputs_share_one_budget(
    workflow: Workflow,
    alice: User,
    publish: Callable[..., str],
    jwks: dict[str, Any],
    balance: Callable[[str], int],
    ledger: Ledger,
) -> None:
    """One input fails without effect on the others. The budget does not divide evenly and is never exceeded."""
    tariff = {"type": "metered", "base": "0.001", "per_million_fuel": "0.05", "minimum": "0.001"}
    agent, total = publish(wasm("wordcount"), tariff=tariff), ledger.total()
    inputs: list[Any] = [{"text": "word " * number} for number in range(48)]
    inputs[7] = ["no text"]
    done = workflow.run(body(alice, agent, inputs=inputs, budget="0.480047"))
    assert len(done.text.encode()) < WORKFLOW_STATE_BYTES_MAX
    results = done.output["results"]
    assert [number for number, result in enumerate(results) if not result["success"]] == [7]
    assert [json.loads(result["output"])["words"] for result in results if result["success"]] == [
        number for number in range(48) if number != 7
    ]
    claims = [verified_claims(reported, jwks, alice) for reported in done.tasks]
    assert {int(claim["budget"]) for claim in claims} == {10_000}
    assert sum(int(claim["budget"]) for claim in claims) <= 480_047
    assert len({claim["eid"] for claim in claims}) == 48
    spent = [int(claim["paid"]) + int(claim["fee"]) for claim in claims]
    assert (spent[7], results[7]["tasks"][0]["escrow_status"]) == (0, "refunded")
    assert balance(alice.name) == CREDIT - sum(spent)
    assert ledger.total() == total


def test_a_chain_passes_outputs_to_the_next_agent(
    workflow: Workflow,
    alice: User,
    publish: Callable[..., str],
    jwks: dict[str, Any],
    balance: Callable[[str], int],
) -> None:
    """Each agent reads the output of the one before, as the digests in the receipts show."""
    chain = [publish(wasm("echo")), publish(wasm("wordcount")), publish(wasm("echo"), owner="another")]
    done = workflow.run(body(alice, *chain, inputs=[{"text": "to be or not to be", "top": 1}]))
    assert done.output["success"]
    assert done.output["results"][0]["output"] == '{"words":6,"unique":4,"top":[["be",2]]}\n'
    claims = [verified_claims(reported, jwks, alice) for reported in done.tasks]
    assert [claim["agent"] for claim in claims] == chain
    for before, after in pairwise(claims):
        assert before["output_sha256"] == after["input_sha256"]
    assert {int(claim["budget"]) for claim in claims} == {33_333}
    assert balance(alice.name) == CREDIT - 3 * PRICE


def test_a_chain_stops_at_a_failure_and_costs_finished_tasks(
    workflow: Workflow, alice: User, publish: Callable[..., str], jwks: dict[str, Any], balance: Callable[[str], int]
) -> None:
    echo, failing = publish(wasm("echo")), publish(wasm("failing"))
    chained = body(alice, echo, failing, echo, inputs=["a", "b"])
    chained["steps"][0]["share"] = 3
    done = workflow.run(chained)
    for result in done.output["results"]:
        assert (result["success"], result["stopped"], len(result["tasks"])) == (False, "exit_code", 2)
        claims = [verified_claims(reported, jwks, alice) for reported in result["tasks"]]
        assert [(claim["state"], int(claim["budget"])) for claim in claims] == [
            ("released", 30_000), ("refunded", 10_000),
        ]  # fmt: skip
    assert balance(alice.name) == CREDIT - 2 * PRICE


def test_binary_outputs_are_passed_on(workflow: Workflow, alice: User, publish: Callable[..., str]) -> None:
    done = workflow.run(body(alice, publish(bytes(wasmtime.wat2wasm(BINARY))), publish(wasm("echo"))))
    assert (done.output["results"][0]["output"], done.output["results"][0]["output_base64"]) == (None, "//4=")


def test_a_large_output_is_only_referenced_by_its_receipt(
    workflow: Workflow, alice: User, echo: str, jwks: dict[str, Any]
) -> None:
    """At the end of a chain it is paid and readable over HTTP. Earlier it cannot be passed on, so the chain ends."""
    large = "x" * 130_000
    alone = workflow.run(body(alice, echo, inputs=[large]))
    (result,), (reported,) = alone.output["results"], alone.tasks
    assert (result["success"], result["output"], result["output_base64"]) == (True, None, None)
    assert reported["output_bytes"] == len(large)
    assert verified_claims(reported, jwks, alice)["output_sha256"]
    assert alice.http.get(f"/tasks/{reported['task_id']}/result").json()["output"] == large
    chained = workflow.run(body(alice, echo, echo, inputs=[large]))
    (result,), (reported,) = chained.output["results"], chained.tasks
    assert (result["success"], result["stopped"], reported["escrow_status"]) == (False, "output_too_large", "released")


def test_a_repeated_run_pays_once(workflow: Workflow, alice: User, echo: str, balance: Callable[[str], int]) -> None:
    name = uuid.uuid4().hex
    once = workflow.run(body(alice, echo, inputs=["a", "b"]), name)
    again = workflow.run(body(alice, echo, inputs=["a", "b"], run_id=name))
    assert (once.output["run_id"], again.output) == (name, once.output), "the execution's name is the run id"
    assert balance(alice.name) == CREDIT - 2 * PRICE
    other = workflow.run(body(alice, echo, inputs=["a", "other"], run_id=name))
    same, refused = other.tasks
    assert same == once.tasks[0]
    assert (refused["refused"]["error"], balance(alice.name)) == ("TaskConflictError", CREDIT - 2 * PRICE)
