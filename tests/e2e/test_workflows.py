"""The workflow of template.yaml, as executions on the local cloud: what it answers, and what it costs."""

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
from tests.e2e.people import Ledger, User, task
from tests.sandbox.wat import call, iovecs, memory, program
from tests.support import ROOT, wasm
from tests.waiting import until

CREDIT = 1_000_000
EVENT = (ROOT / "events" / "plan-run.json").read_text()
PRICE = 10_000  # of each agent here, in micro-credits, fee included
# Counts for about a second, then writes its one word.
SLOW = program(
    f"""(local $n i64) (loop $again (local.set $n (i64.add (local.get $n) (i64.const 1)))
        (br_if $again (i64.lt_u (local.get $n) (i64.const 1000000000)))) (drop {call("fd_write", 1, 0, 1, 8)})""",
    "fd_write",
    more=memory(0, iovecs((32, 4))) + memory(32, b"done"),
)
# Writes two bytes that are no UTF-8.
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
        """All tasks that were begun."""
        return [task for result in self.output["results"] for task in result["tasks"]]


class Workflow:
    """Starts executions and waits for their ends."""

    def __init__(self, client: Any, arn: str) -> None:
        self._client, self._arn = client, arn

    def start(self, body: Any, name: str | None = None) -> str:
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        started = self._client.start_execution(stateMachineArn=self._arn, name=name or uuid.uuid4().hex, input=text)
        arn: str = started["executionArn"]
        return arn

    def failures(self, arn: str) -> list[str]:
        """The errors of attempts so far, by name."""
        pages = self._client.get_paginator("get_execution_history").paginate(executionArn=arn)
        events = [event for page in pages for event in page["events"] if event["type"] == "TaskFailed"]
        return [event["taskFailedEventDetails"]["error"] for event in events]

    def end(self, arn: str) -> Execution:
        def ended() -> dict[str, Any] | None:
            told: dict[str, Any] = self._client.describe_execution(executionArn=arn)
            return told if told["status"] != "RUNNING" else None

        told = until(ended, "the execution does not end", pause_s=0.1)
        text = told.get("output") or "null"
        return Execution(told["status"], json.loads(text), text, self.failures(arn))

    def run(self, body: Any, name: str | None = None) -> Execution:
        """An execution that must succeed, which is: know every outcome."""
        ended = self.end(self.start(body, name))
        assert ended.status == "SUCCEEDED", ended
        return ended


@pytest.fixture(scope="module")
def workflow(stack: Stack, aws: Callable[[str], Any]) -> Workflow:
    return Workflow(aws("stepfunctions"), stack.workflow)


@pytest.fixture
def alice(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> User:
    return User.new(api, deposit)


@pytest.fixture(scope="module")
def keys(api: Callable[..., httpx.Client]) -> dict[str, Any]:
    found: dict[str, Any] = api(None).get("/.well-known/jwks.json").json()
    return found


def body(user: User, *agents: str, **changes: Any) -> dict[str, Any]:
    """A good input for the workflow, changed."""
    steps = [{"agent_id": agent} for agent in agents]
    return {"user_id": user.name, "budget": "0.1", "steps": steps, "inputs": ["hello"]} | changes


def micro(amount: str) -> int:
    whole, _, fraction = amount.partition(".")
    return int(whole) * CREDIT + int(fraction.ljust(6, "0") or 0)


def proved(task: dict[str, Any], keys: dict[str, Any], user: User) -> dict[str, Any]:
    """The claims of a task's receipt, which verifies and says what the execution's output says."""
    claims = receipt.verify(task["receipt"], keys)
    assert (claims["task"], claims["user"], claims["agent"]) == (task["task_id"], user.name, task["agent_id"])
    assert (claims["eid"], claims["state"]) == (task["escrow_id"], task["escrow_status"])
    told = [micro(task[name]) for name in ("amount_paid", "fee", "amount_refunded")]
    assert [int(claims[name]) for name in ("paid", "fee", "refunded")] == told
    assert sum(told) == int(claims["budget"])
    return claims


def test_an_input_from_a_file_is_run_and_proved(
    workflow: Workflow,
    alice: User,
    publish: Callable[..., str],
    keys: dict[str, Any],
    balance: Callable[[str], int],
) -> None:
    text = EVENT.replace('"alice"', f'"{alice.name}"').replace("agt_aaaaaaaaaaaaaaaa", publish(wasm("wordcount")))
    done = workflow.run(text)
    assert (done.output["run_id"], done.output["success"], done.failures) == ("run-1", True, [])
    words = [json.loads(result["output"])["words"] for result in done.output["results"]]
    assert words == [6, 4], "in the order of the inputs"
    assert [task["task_id"] for task in done.tasks] == ["run-1.0.0", "run-1.1.0"]
    for told in done.tasks:
        assert proved(told, keys, alice)["outcome"] == "succeeded"
        answer = alice.http.get(f"/tasks/{told['task_id']}/result").json()
        assert {name: answer[name] for name in told.keys() - {"output_bytes"}} == {
            name: value for name, value in told.items() if name != "output_bytes"
        }
    assert balance(alice.name) == CREDIT - 2 * PRICE


def test_an_agent_that_fails_is_an_answer_and_costs_nothing(
    workflow: Workflow,
    alice: User,
    publish: Callable[..., str],
    keys: dict[str, Any],
    balance: Callable[[str], int],
) -> None:
    done = workflow.run(body(alice, publish(wasm("failing"))))
    (result,), (told,) = done.output["results"], done.tasks
    assert (done.output["success"], result["success"], result["output"]) == (False, False, None)
    assert (result["stopped"], told["error"]["code"], told["escrow_status"]) == ("exit_code", "exit_code", "refunded")
    assert proved(told, keys, alice)["outcome"] == "exit_code"
    assert (done.failures, balance(alice.name)) == ([], CREDIT)


@pytest.mark.parametrize(
    ("error", "change", "says"),
    [
        ("InsufficientFundsError", {"budget": "1.000001"}, "1.000001 credits are required, 1 are available"),
        ("NotFoundError", {"steps": [{"agent_id": "agt_unknown"}]}, "agt_unknown"),
        ("BudgetTooLowError", {"budget": "0.009999"}, "below 0.01, the least"),
    ],
)
def test_a_refusal_of_a_task_is_caught_by_its_name_and_moves_nothing(
    workflow: Workflow,
    alice: User,
    echo: str,
    balance: Callable[[str], int],
    error: str,
    change: dict[str, Any],
    says: str,
) -> None:
    done = workflow.run(body(alice, echo) | change)
    (result,), (told,) = done.output["results"], done.tasks
    assert (done.output["success"], result["success"], result["stopped"]) == (False, False, error)
    assert told["refused"]["error"] == error
    assert says in told["refused"]["message"]
    assert "receipt" not in told
    assert (done.failures, balance(alice.name)) == ([error], CREDIT), "refused once, not tried again"


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
def test_a_refusal_of_a_run_is_caught_by_its_name_before_anything_is_begun(
    workflow: Workflow, alice: User, echo: str, ledger: Ledger, error: str, change: dict[str, Any], says: str
) -> None:
    done = workflow.run(body(alice, echo) | change)
    assert (done.output["success"], done.output["results"], done.failures) == (False, [], [error])
    assert done.output["refused"]["error"] == error
    assert re.search(says, done.output["refused"]["message"])
    assert [item for item in ledger.items("ESC#") if item["account"] == alice.name] == []


@pytest.fixture
def unqualified(stack: Stack, aws: Callable[[str], Any]) -> Iterator[Workflow]:
    """The same definition, calling the functions past their alias: the local cloud throttles no calls of an alias."""
    client = aws("stepfunctions")
    deployed = client.describe_state_machine(stateMachineArn=stack.workflow)
    copy = client.create_state_machine(
        name=f"copy-{uuid.uuid4().hex}",
        definition=deployed["definition"].replace(":live", ""),
        roleArn=deployed["roleArn"],
    )["stateMachineArn"]
    yield Workflow(client, copy)
    client.delete_state_machine(stateMachineArn=copy)


def test_a_throttled_task_is_tried_again(
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
        turned_away = until(lambda: unqualified.failures(arn), "nothing is turned away", pause_s=0.1)
    finally:
        aws("lambda").delete_function_concurrency(**function)
    done = unqualified.end(arn)
    # The local cloud's name for it; AWS says Lambda.TooManyRequestsException. The workflow knows both.
    assert set(turned_away) == {"Lambda.Unknown"}
    assert (done.status, done.output["success"], balance(alice.name)) == ("SUCCEEDED", True, CREDIT - PRICE)


def test_a_task_that_is_running_is_asked_for_again(
    workflow: Workflow,
    stack: Stack,
    aws: Callable[[str], Any],
    alice: User,
    publish: Callable[..., str],
    ledger: Ledger,
    balance: Callable[[str], int],
) -> None:
    """As after an answer that was lost: the first attempt is still at work when the task is repeated."""
    agent = publish(bytes(wasmtime.wat2wasm(SLOW)))
    run_id, payload = uuid.uuid4().hex, json.dumps
    first = {"user_id": alice.name, **task(agent, task_id=f"{run_id}.0.0", budget="0.1")}
    answers: list[Any] = []

    def invoke() -> None:
        sent = {"FunctionName": stack.functions["ExecuteFunction"], "Payload": payload(first).encode()}
        answers.append(json.loads(aws("lambda").invoke(**sent)["Payload"].read()))

    runner = threading.Thread(target=invoke)
    runner.start()
    until(lambda: ledger.escrow(alice.name, first["task_id"]), "the first attempt is not funded", pause_s=0.02)
    done = workflow.run(body(alice, agent, run_id=run_id))
    runner.join()
    assert set(done.failures) == {"TaskInProgressError"}
    assert done.tasks[0]["receipt"] == answers[0]["receipt"], "one task, one outcome"
    assert balance(alice.name) == CREDIT - PRICE


def test_many_inputs_under_one_budget(
    workflow: Workflow,
    alice: User,
    publish: Callable[..., str],
    keys: dict[str, Any],
    balance: Callable[[str], int],
    ledger: Ledger,
) -> None:
    """One of them fails, and fails nobody else; the budget does not divide, and is never overspent."""
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
    claims = [proved(told, keys, alice) for told in done.tasks]
    assert {int(claim["budget"]) for claim in claims} == {10_000}
    assert sum(int(claim["budget"]) for claim in claims) <= 480_047
    assert len({claim["eid"] for claim in claims}) == 48
    spent = [int(claim["paid"]) + int(claim["fee"]) for claim in claims]
    assert (spent[7], results[7]["tasks"][0]["escrow_status"]) == (0, "refunded")
    assert balance(alice.name) == CREDIT - sum(spent)
    assert ledger.total() == total


def test_a_chain_of_three_agents(
    workflow: Workflow,
    alice: User,
    publish: Callable[..., str],
    keys: dict[str, Any],
    balance: Callable[[str], int],
) -> None:
    """Each reads what the one before wrote: the receipts' digests say so."""
    chain = [publish(wasm("echo")), publish(wasm("wordcount")), publish(wasm("echo"), owner="another")]
    done = workflow.run(body(alice, *chain, inputs=[{"text": "to be or not to be", "top": 1}]))
    assert done.output["success"]
    assert done.output["results"][0]["output"] == '{"words":6,"unique":4,"top":[["be",2]]}\n'
    claims = [proved(told, keys, alice) for told in done.tasks]
    assert [claim["agent"] for claim in claims] == chain
    for before, after in pairwise(claims):
        assert before["output_sha256"] == after["input_sha256"]
    assert {int(claim["budget"]) for claim in claims} == {33_333}
    assert balance(alice.name) == CREDIT - 3 * PRICE


def test_a_chain_stops_at_the_first_that_fails_and_costs_what_was_done(
    workflow: Workflow, alice: User, publish: Callable[..., str], keys: dict[str, Any], balance: Callable[[str], int]
) -> None:
    echo, failing = publish(wasm("echo")), publish(wasm("failing"))
    chained = body(alice, echo, failing, echo, inputs=["a", "b"])
    chained["steps"][0]["share"] = 3
    done = workflow.run(chained)
    for result in done.output["results"]:
        assert (result["success"], result["stopped"], len(result["tasks"])) == (False, "exit_code", 2)
        claims = [proved(told, keys, alice) for told in result["tasks"]]
        assert [(claim["state"], int(claim["budget"])) for claim in claims] == [
            ("released", 30_000), ("refunded", 10_000),
        ]  # fmt: skip
    assert balance(alice.name) == CREDIT - 2 * PRICE


def test_bytes_that_are_no_text_are_passed_on(workflow: Workflow, alice: User, publish: Callable[..., str]) -> None:
    done = workflow.run(body(alice, publish(bytes(wasmtime.wat2wasm(BINARY))), publish(wasm("echo"))))
    assert (done.output["results"][0]["output"], done.output["results"][0]["output_base64"]) == (None, "//4=")


def test_an_output_too_large_for_the_workflow_is_named_by_its_receipt(
    workflow: Workflow, alice: User, echo: str, keys: dict[str, Any]
) -> None:
    """At the end of a chain it is paid, and read over HTTP; within one it cannot be passed on, and the chain ends."""
    large = "x" * 130_000
    alone = workflow.run(body(alice, echo, inputs=[large]))
    (result,), (told,) = alone.output["results"], alone.tasks
    assert (result["success"], result["output"], result["output_base64"]) == (True, None, None)
    assert told["output_bytes"] == len(large)
    assert proved(told, keys, alice)["output_sha256"]
    assert alice.http.get(f"/tasks/{told['task_id']}/result").json()["output"] == large
    chained = workflow.run(body(alice, echo, echo, inputs=[large]))
    (result,), (told,) = chained.output["results"], chained.tasks
    assert (result["success"], result["stopped"], told["escrow_status"]) == (False, "output_too_large", "released")


def test_a_repeated_run_is_the_same_run_and_pays_once(
    workflow: Workflow, alice: User, echo: str, balance: Callable[[str], int]
) -> None:
    name = uuid.uuid4().hex
    once = workflow.run(body(alice, echo, inputs=["a", "b"]), name)
    again = workflow.run(body(alice, echo, inputs=["a", "b"], run_id=name))
    assert (once.output["run_id"], again.output) == (name, once.output), "the execution's name is the run's id"
    assert balance(alice.name) == CREDIT - 2 * PRICE
    other = workflow.run(body(alice, echo, inputs=["a", "other"], run_id=name))
    same, refused = other.tasks
    assert same == once.tasks[0]
    assert (refused["refused"]["error"], balance(alice.name)) == ("TaskConflictError", CREDIT - 2 * PRICE)
