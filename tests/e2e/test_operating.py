"""What an operator can stop on the deployed stack, and the limit on one account's concurrent tasks."""

import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.paths import Stack
from quittance.limits import SLOTS_MAX
from tests.documents.blocks import blocks
from tests.e2e.people import User, command_environment, message_count
from tests.support import ROOT, wasm
from tests.template import template
from tests.waiting import until

SLOTS = template()["Parameters"]["AccountConcurrency"]["Default"]
BATCH = 25  # the largest BatchWriteItem


@pytest.fixture(scope="module")
def operate(api: Callable[..., httpx.Client]) -> Callable[[str], dict[str, Any]]:
    operator = api(f"operator-{uuid.uuid4().hex[:12]}", "platform:operate")

    def perform(path: str) -> dict[str, Any]:
        answer = operator.post(f"/operations/{path}", json={"reason": f"test of {path}"})
        assert answer.status_code == 200, answer.text
        line: dict[str, Any] = answer.json()
        until(lambda: line in operator.get("/operations").json()["operations"], "the action is not in the journal")
        return line

    return perform


def attempt(user: User, agent_id: str) -> tuple[int, str]:
    """Send a new task; return its HTTP status, and its problem code or escrow status."""
    body = {"task_id": uuid.uuid4().hex, "agent_id": agent_id, "input": "hi", "budget": "0.01"}
    answer = user.http.post("/tasks/execute", json=body)
    return answer.status_code, answer.json().get("code") or answer.json()["escrow_status"]


RUNS = (200, "released")


def test_a_freeze_stops_an_account_until_it_ends(
    alice: User, echo: str, operate: Callable[[str], dict[str, Any]]
) -> None:
    assert attempt(alice, echo) == RUNS
    operate(f"accounts/{alice.name}/freeze")
    until(lambda: attempt(alice, echo) == (403, "account_frozen"), "the account is not frozen", pause_s=0.5)
    withdrawal = {"withdrawal_id": "w", "amount": "0.01"}
    assert alice.http.post("/accounts/me/withdrawals", json=withdrawal).json()["code"] == "account_frozen"
    agent = {"name": "new", "tariff": {"type": "flat", "price": "0.01"}}
    until(
        lambda: alice.http.post("/agents", json=agent).status_code == 403,
        "a frozen account may still publish",
        pause_s=0.5,
    )
    operate(f"accounts/{alice.name}/unfreeze")
    assert attempt(alice, echo) == RUNS, "it takes effect at once"
    assert alice.http.post("/accounts/me/withdrawals", json=withdrawal).status_code == 201


def test_a_pause_stops_everybody_until_it_ends(
    alice: User, echo: str, operate: Callable[[str], dict[str, Any]]
) -> None:
    try:
        operate("funding/pause")
        until(lambda: attempt(alice, echo) == (503, "funding_paused"), "funding is not paused", pause_s=0.5)
    finally:
        operate("funding/resume")
    assert attempt(alice, echo) == RUNS, "it takes effect at once"


def test_an_operator_retires_an_agent(
    alice: User, publish: Callable[..., str], operate: Callable[[str], dict[str, Any]]
) -> None:
    agent_id = publish(wasm("echo"), owner=f"retired-{uuid.uuid4().hex[:12]}")
    assert operate(f"agents/{agent_id}/retire")["target"] == agent_id
    assert alice.http.get(f"/agents/{agent_id}").json()["state"] == "retired"
    until(lambda: attempt(alice, agent_id) == (409, "agent_not_ready"), "the agent still accepts tasks", pause_s=0.5)


def test_a_task_without_a_slot_waits_in_the_queue(
    stack: Stack, aws: Callable[[str], Any], alice: User, echo: str
) -> None:
    """The test holds all slots; each lease ends soon unless it is renewed."""
    assert SLOTS <= BATCH <= SLOTS_MAX
    dynamodb, sqs, table = aws("dynamodb"), aws("sqs"), stack.table

    def hold(ms: int) -> None:
        lease = {"N": str(time.time_ns() // 1_000_000 + ms)}
        slots = [
            {"pk": {"S": f"SLOT#{alice.name}#{number}"}, "holder": {"S": "test"}, "lease_ms": lease}
            for number in range(SLOTS)
        ]
        dynamodb.batch_write_item(RequestItems={table: [{"PutRequest": {"Item": slot}} for slot in slots]})

    def waits() -> bool:
        hold(4_000)
        return message_count(sqs, stack.queues["tasks"], "Delayed") > 0

    hold(60_000)
    assert attempt(alice, echo) == (429, "too_many_running")
    body = {"task_id": "queued", "agent_id": echo, "input": "hi", "budget": "0.01"}
    submitted = alice.http.post("/tasks/execute", json=body, headers={"Prefer": "respond-async"})
    assert submitted.status_code == 202
    until(waits, "the message is not delayed")
    assert alice.http.get("/tasks/queued/result").status_code == 202
    hold(0)
    until(
        lambda: alice.http.get("/tasks/queued/result").status_code == 200,
        "the task does not run after the slots are free",
    )
    assert alice.http.get("/tasks/queued/result").json()["escrow_status"] == "released"
    assert attempt(alice, echo) == RUNS


# The runbooks.

PHYSICAL = [
    block.text
    for block in blocks(ROOT / "docs" / "runbooks.md")
    if block.not_run == "tests/e2e/test_operating.py runs it"
]


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_the_runbooks_command_prints_physical_names(stack: Stack, tmp_path: Path) -> None:
    """The unchanged commands of docs/runbooks.md; `aws` is aws_command.py."""
    (commands,) = PHYSICAL
    env = command_environment(stack, tmp_path)
    done = subprocess.run(["bash", "-euc", commands], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    queue, alias, function = (line for line in re.split(r"\s+", done.stdout) if line)
    assert (queue, alias) == (stack.queues["dead_letters"], stack.functions["AuditFunction"])
    assert stack.functions["ExecuteFunction"].endswith(f":function:{function}:live")
