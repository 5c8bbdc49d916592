"""What an operator stops on the deployed stack, and how many tasks of one account run at once."""

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.cloud import CREDENTIALS
from local.paths import Stack
from quittance.limits import SLOTS_MAX
from tests.e2e.people import User
from tests.support import ROOT, wasm
from tests.template import template
from tests.waiting import until

SLOTS = template()["Parameters"]["AccountConcurrency"]["Default"]
BATCH = 25  # of BatchWriteItem


@pytest.fixture(scope="module")
def operate(api: Callable[..., httpx.Client]) -> Callable[[str], dict[str, Any]]:
    operator = api(f"operator-{uuid.uuid4().hex[:12]}", "platform:operate")

    def perform(path: str) -> dict[str, Any]:
        answer = operator.post(f"/operations/{path}", json={"reason": f"test of {path}"})
        assert answer.status_code == 200, answer.text
        line: dict[str, Any] = answer.json()
        until(lambda: line in operator.get("/operations").json()["operations"], "it is not in the journal")
        return line

    return perform


def tried(user: User, agent_id: str) -> tuple[int, str]:
    """Status of a new task, and the code of its refusal or its escrow's status."""
    body = {"task_id": uuid.uuid4().hex, "agent_id": agent_id, "input": "hi", "budget": "0.01"}
    answer = user.http.post("/tasks/execute", json=body)
    return answer.status_code, answer.json().get("code") or answer.json()["escrow_status"]


RUNS = (200, "released")


def test_a_freeze_stops_an_account_until_it_ends(
    alice: User, echo: str, operate: Callable[[str], dict[str, Any]]
) -> None:
    assert tried(alice, echo) == RUNS
    operate(f"accounts/{alice.name}/freeze")
    until(lambda: tried(alice, echo) == (403, "account_frozen"), "it is not frozen", pause_s=0.5)
    withdrawal = {"withdrawal_id": "w", "amount": "0.01"}
    assert alice.http.post("/accounts/me/withdrawals", json=withdrawal).json()["code"] == "account_frozen"
    agent = {"name": "new", "tariff": {"type": "flat", "price": "0.01"}}
    until(lambda: alice.http.post("/agents", json=agent).status_code == 403, "it may still publish", pause_s=0.5)
    operate(f"accounts/{alice.name}/unfreeze")
    assert tried(alice, echo) == RUNS, "at once"
    assert alice.http.post("/accounts/me/withdrawals", json=withdrawal).status_code == 201


def test_a_pause_stops_everybody_until_it_ends(
    alice: User, echo: str, operate: Callable[[str], dict[str, Any]]
) -> None:
    try:
        operate("funding/pause")
        until(lambda: tried(alice, echo) == (503, "funding_paused"), "funding is not paused", pause_s=0.5)
    finally:
        operate("funding/resume")
    assert tried(alice, echo) == RUNS, "at once"


def test_an_operator_retires_an_agent(
    alice: User, publish: Callable[..., str], operate: Callable[[str], dict[str, Any]]
) -> None:
    agent_id = publish(wasm("echo"), owner=f"retired-{uuid.uuid4().hex[:12]}")
    assert operate(f"agents/{agent_id}/retire")["target"] == agent_id
    assert alice.http.get(f"/agents/{agent_id}").json()["state"] == "retired"
    until(lambda: tried(alice, agent_id) == (409, "agent_not_ready"), "it still takes tasks", pause_s=0.5)


def test_without_a_slot_a_task_waits_in_the_queue(
    stack: Stack, aws: Callable[[str], Any], alice: User, echo: str
) -> None:
    """All slots are held, by nobody: the lease of each ends soon, unless it is renewed."""
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
        name = "ApproximateNumberOfMessagesDelayed"
        found = sqs.get_queue_attributes(QueueUrl=stack.queues["tasks"], AttributeNames=[name])
        return int(found["Attributes"][name]) > 0

    hold(60_000)
    assert tried(alice, echo) == (429, "too_many_running")
    body = {"task_id": "queued", "agent_id": echo, "input": "hi", "budget": "0.01"}
    submitted = alice.http.post("/tasks/execute", json=body, headers={"Prefer": "respond-async"})
    assert submitted.status_code == 202
    until(waits, "it did not go to the end of the queue")
    assert alice.http.get("/tasks/queued/result").status_code == 202
    hold(0)
    until(lambda: alice.http.get("/tasks/queued/result").status_code == 200, "its turn never came")
    assert alice.http.get("/tasks/queued/result").json()["escrow_status"] == "released"
    assert tried(alice, echo) == RUNS


# The runbooks.

PHYSICAL = re.findall(r"```\n(STACK=.*?)```", (ROOT / "docs" / "runbooks.md").read_text(), re.DOTALL)


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_the_runbooks_command_prints_physical_names(stack: Stack, tmp_path: Path) -> None:
    """As it stands there; `aws` is aws_command.py."""
    (commands,) = PHYSICAL
    (tmp_path / "aws").write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.e2e.aws_command "$@"\n')
    (tmp_path / "aws").chmod(0o700)
    env = CREDENTIALS | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "AWS_ENDPOINT_URL": stack.endpoint_url,
        "AWS_DEFAULT_REGION": stack.region,
    }
    done = subprocess.run(["bash", "-euc", commands], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    queue, alias, function = (line for line in re.split(r"\s+", done.stdout) if line)
    assert (queue, alias) == (stack.queues["dead_letters"], stack.functions["AuditFunction"])
    assert stack.functions["ExecuteFunction"].endswith(f":function:{function}:live")
