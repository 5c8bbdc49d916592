"""No log line has a secret or a payload. These tests run after all others and search the logs of the whole session."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import wasmtime

from local.deploy import log_events
from local.paths import Stack
from quittance.ledger.escrow import escrow_id
from tests.e2e.people import User, task
from tests.e2e.spending import Spender
from tests.e2e.test_workflows import Workflow
from tests.e2e.test_workflows import body as run
from tests.sandbox.wat import call, program
from tests.tickets import OTHER_KEY
from tests.waiting import until

# Copies its input to stdout and stderr; traps if the input starts with "!".
TALKATIVE = program(
    f"""(i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 60000))
        (drop {call("fd_read", 0, 0, 1, 8)})
        (i32.store (i32.const 4) (i32.load (i32.const 8)))
        (drop {call("fd_write", 1, 0, 1, 12)}) (drop {call("fd_write", 2, 0, 1, 12)})
        (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 33)) (then unreachable))""",
    "fd_read",
    "fd_write",
)
PAYLOAD = "marked-payload"
CLAIM = "marked-claim"
PAGE_LINES = 10_000  # the most that one request for log lines returns
LARGE = 4_096  # bytes: more than an escrow stores inline
JWT = re.compile(r"eyJ[\w-]{8,}\.[\w-]*\.?")
KEYS = re.compile(r"PRIVATE KEY|\"d\": ?\"[\w-]{40,}|X-Amz-Signature|Bearer ")


@pytest.fixture(scope="module")
def lines(
    stack: Stack,
    aws: Callable[[str], Any],
    api: Callable[..., httpx.Client],
    token: Callable[..., str],
    deposit: Callable[..., None],
    publish: Callable[..., str],
) -> list[str]:
    """All log lines, after valid and invalid requests with marked words at every entry point."""
    user = User.new(api, deposit)
    agent = publish(bytes(wasmtime.wat2wasm(TALKATIVE)))
    done = user.run(agent, task_id="good", input=PAYLOAD)
    assert done["output"] == PAYLOAD
    assert done["log"] == PAYLOAD
    assert JWT.search(done["receipt"]), "the pattern must match a receipt"
    assert JWT.search(f"Bearer {token(user.name)}"), "the pattern must match a token"
    assert not user.run(agent, input=f"!{PAYLOAD}")["success"]
    user.run(agent, input="a", webhook=f"http://127.0.0.1:1/{PAYLOAD}")
    user.run(agent, input=PAYLOAD * (LARGE // len(PAYLOAD)))
    user.execute(agent, task_id="good", input=f"{PAYLOAD} again")
    user.execute(agent, input=PAYLOAD, budget=PAYLOAD)
    user.execute(agent, input=PAYLOAD, **{PAYLOAD: PAYLOAD})
    user.http.post("/tasks/execute", content=f'{{"input": "{PAYLOAD}', headers={"Content-Type": "application/json"})
    user.http.get("/tasks/good/result")
    user.http.post("/accounts/me/withdrawals", json={"withdrawal_id": PAYLOAD, "amount": PAYLOAD})
    for body in ({"user_id": user.name, **task(agent, input=PAYLOAD)}, {"input": PAYLOAD, "budget": PAYLOAD}):
        aws("lambda").invoke(FunctionName=stack.functions["ExecuteFunction"], Payload=json.dumps(body).encode())
    workflow = Workflow(aws("stepfunctions"), stack.workflow)
    assert workflow.run(run(user, agent, agent, inputs=[PAYLOAD])).output["results"][0]["output"] == PAYLOAD
    assert workflow.run(run(user, agent, inputs=[f"!{PAYLOAD}", PAYLOAD])).tasks[0]["error"]
    assert workflow.run(run(user, agent, inputs=[PAYLOAD], budget=PAYLOAD)).output["refused"]
    for claims in ({"aud": CLAIM}, {"exp": 1, "jti": CLAIM}):
        refused = {"Authorization": f"Bearer {token(user.name, CLAIM, **claims)}"}
        assert httpx.get(f"{user.http.base_url}accounts/me", headers=refused, trust_env=False).status_code == 401
    spender = Spender.opened(api, User.new(api, deposit), tickets=4)
    assert JWT.search(spender.ticket(spender.body(1, agent))), "the pattern must match a ticket"
    assert spender.run(1, agent, input=PAYLOAD)["output"] == PAYLOAD
    refused_tickets = {
        "another request's": spender.send(spender.body(1, agent, input=f"{PAYLOAD} again")),
        "another key's": spender.send(
            body := spender.body(2, agent, input=PAYLOAD), spender.ticket(body, key=OTHER_KEY)
        ),
        "a marked one": spender.send(body, spender.ticket(body, iss=CLAIM)),
    }
    assert {name: answer.status_code for name, answer in refused_tickets.items()} == {
        "another request's": 409, "another key's": 401, "a marked one": 401,
    }  # fmt: skip
    direct = {**body, "ticket": spender.ticket(body)}
    done = aws("lambda").invoke(FunctionName=stack.functions["ExecuteFunction"], Payload=json.dumps(direct).encode())
    assert json.loads(done["Payload"].read())["output"] == PAYLOAD
    closed = spender.http.post(f"/channels/{spender.id}/signed-close", json={"order": spender.order()})
    assert closed.status_code == 200, closed.text
    last, since_ms = escrow_id(user.name, "last"), time.time_ns() // 1_000_000
    user.run(agent, task_id="last", input=PAYLOAD)
    settled = (f'"escrow_id":"{last}"', '"message":"settled"')
    until(
        lambda: any(all(part in text for part in settled) for _, _, text in log_events(aws("logs"), since_ms)),
        "the last task is not in the logs",
        pause_s=0.2,
    )
    return [text for _, _, text in log_events(aws("logs"))]


def test_no_line_is_missed_however_many_there_are(aws: Callable[[str], Any]) -> None:
    logs, began_ms = aws("logs"), time.time_ns() // 1_000_000 - 60_000
    written = [f"line {number}" for number in range(PAGE_LINES + 1)]
    # Three lines a millisecond, so that a page ends between lines of the same time.
    events = [{"timestamp": began_ms + number // 3, "message": line} for number, line in enumerate(written)]
    logs.create_log_group(logGroupName="many")
    logs.create_log_stream(logGroupName="many", logStreamName="lines")
    for part in (events[:5_000], events[5_000:]):
        logs.put_log_events(logGroupName="many", logStreamName="lines", logEvents=part)
    try:
        assert Counter(text for _, group, text in log_events(logs) if group == "many") == Counter(written)
    finally:
        logs.delete_log_group(logGroupName="many")


def test_a_settlement_is_logged_with_its_ids(lines: list[str]) -> None:
    settled = [json.loads(line) for line in lines if '"message":"settled"' in line]
    line = next(line for line in settled if line["task_id"] == "last")
    assert {"escrow_id", "agent_id", "outcome", "paid_micro", "correlation_id"} <= line.keys()


@pytest.mark.parametrize("word", [PAYLOAD, CLAIM])
def test_no_payload_is_in_any_log(lines: list[str], word: str) -> None:
    assert [line for line in lines if word in line] == []


def test_no_token_receipt_or_key_is_in_any_log(lines: list[str], stack: Stack) -> None:
    secret = [line for line in Path(stack.issuer_key).read_text().splitlines() if "-----" not in line]
    assert [line for line in lines if JWT.search(line) or KEYS.search(line)] == []
    assert [line for line in lines if any(part in line for part in secret)] == []
