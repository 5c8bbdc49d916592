"""Inputs on stdin and outputs, byte for byte up to the limits, through HTTP and real agents."""

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from local.paths import LOCAL, Stack
from quittance.proof import receipt, statement
from tests.e2e.people import Ledger, User, assert_claims_match
from tests.support import AGENTS, ROOT, wasm
from tests.waiting import until

KIB, MIB = 2**10, 2**20


@pytest.fixture(scope="session")
def built() -> Callable[[str], bytes]:
    """`built(name)`: an example agent that is too large to commit, so a script builds or downloads it."""

    def build(name: str) -> bytes:
        script = [sys.executable, str(AGENTS / "build.py"), name]
        done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(done.stderr.strip().rpartition("\n")[2], pytrace=False)
        return (LOCAL / "agents" / f"{name}.wasm").read_bytes()

    return build


@pytest.mark.parametrize("size", [0, 1, KIB, KIB + 1, MIB - 1, MIB])
def test_an_echo_returns_the_same_bytes(alice: User, echo: str, ledger: Ledger, size: int) -> None:
    """Around two limits: what the escrow may hold instead of S3, and the largest input."""
    data = (bytes(range(255, -1, -1)) * (size // 256 + 1))[:size]
    done = alice.run(echo, task_id=f"b{size}", input=None, input_base64=base64.b64encode(data).decode())
    assert (done["output"], done["output_base64"]) == (
        (None, base64.b64encode(data).decode()) if data else ("", None)
    )  # fmt: skip
    assert (done["resource_usage"]["input_bytes"], done["resource_usage"]["output_bytes"]) == (size, size)
    assert alice.http.get(f"/tasks/b{size}/result").json() == done
    item = ledger.escrow(alice.name, f"b{size}")
    assert item is not None
    assert item["input_sha256"] == item["output_sha256"] == hashlib.sha256(data).hexdigest()
    assert (item.get("output"), item["output_bytes"]) == (data if 0 < size <= KIB else None, size)


@pytest.mark.parametrize(
    ("given", "stdin"),
    [
        ("", ""),
        ("plain", "plain"),
        ('{"not": "touched" }\n', '{"not": "touched" }\n'),
        ("grüße, 世界, 👋🏽, \u0000, \u2028", "grüße, 世界, 👋🏽, \u0000, \u2028"),
        ("x" * MIB, "x" * MIB),
        ("ü" * (MIB // 2), "ü" * (MIB // 2)),
        ({"a": [1, 2.50, None, True], "ü": {"": "\u0000"}}, '{"a":[1,2.5,null,true],"ü":{"":"\\u0000"}}'),
        ([], "[]"),
        (7, "7"),
        (False, "false"),
        (["x" * (MIB - 4)], json.dumps(["x" * (MIB - 4)])),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_text_and_json_reach_stdin_as_documented(alice: User, echo: str, given: Any, stdin: str) -> None:
    done = alice.run(echo, input=given)
    assert (done["output"], done["output_base64"]) == (stdin, None)
    assert receipt.read_claims(done["receipt"])["input_sha256"] == hashlib.sha256(stdin.encode()).hexdigest()


NUMBERS = "[12345678901234567.25,1e3,1E+2,-0,0.10,1e999999999]"


def test_numbers_reach_stdin_as_they_were_sent(
    alice: User, echo: str, olga: User, api: Callable[..., httpx.Client], stack: Stack, aws: Callable[[str], Any]
) -> None:
    """Over HTTP at once and from the queue, and in a message; and the payer, nobody else, reads the input again."""

    def body(task_id: str, **more: Any) -> str:
        fields = {"task_id": task_id, "agent_id": echo, "budget": "0.05", "keep_input": True, **more}
        return f'{json.dumps(fields)[:-1]},\n "input": {{ "n" : {NUMBERS.replace(",", " , ")} }} }}'

    def result(task_id: str) -> httpx.Response:
        return alice.http.get(f"/tasks/{task_id}/result")

    headers, stdin = {"Content-Type": "application/json"}, f'{{"n":{NUMBERS}}}'
    digest = hashlib.sha256(stdin.encode()).hexdigest()
    assert alice.http.post("/tasks/execute", content=body("now"), headers=headers).status_code == 200
    queued = alice.http.post("/tasks/execute", content=body("later"), headers=headers | {"Prefer": "respond-async"})
    assert queued.status_code == 202
    aws("sqs").send_message(QueueUrl=stack.queues["tasks"], MessageBody=body("message", user_id=alice.name))
    for task_id in ("now", "later", "message"):
        until(lambda task_id=task_id: result(task_id).status_code == 200, f"no result of {task_id}")
        done = result(task_id).json()
        assert (done["output"], done["input_sha256"]) == (stdin, digest)
        kept = alice.http.get(f"/tasks/{task_id}/input").json()
        assert kept == {"task_id": task_id, "input_sha256": digest, "input": stdin, "input_base64": None}
        assert olga.http.get(f"/tasks/{task_id}/input").status_code == 404
    assert alice.http.post("/tasks/execute", content=body("now"), headers=headers).json() == result("now").json()


def test_a_large_kept_input_is_read_again(alice: User, publish: Callable[..., str]) -> None:
    data = base64.b64encode(bytes(MIB)).decode()
    done = alice.run(publish(wasm("failing")), task_id="large", input=None, input_base64=data, keep_input=True)
    kept = alice.http.get("/tasks/large/input").json()
    assert (done["success"], kept["input_base64"], kept["input"]) == (False, data, None)
    alice.run(publish(wasm("echo")), task_id="not-kept")
    assert alice.http.get("/tasks/not-kept/input").json()["code"] == "not_found"


def test_an_owner_reads_the_log_that_a_task_shares(
    alice: User, api: Callable[..., httpx.Client], publish: Callable[..., str]
) -> None:
    agent = publish(wasm("failing"))
    owner = api(alice.http.get(f"/agents/{agent}").json()["owner"])
    for task_id, share in (("shared", {"log": True}), ("private", {"payer": True})):
        done = alice.run(agent, task_id=task_id, share=share)
        seen = owner.get(f"/tasks/{task_id}/result", params={"user": alice.name}).json()
        assert done["log"]
        assert seen["log"] == (done["log"] if share.get("log") else None)


def test_null_is_an_input(alice: User, echo: str) -> None:
    body = {"task_id": "null", "agent_id": echo, "input": None, "budget": "0.05"}
    assert alice.http.post("/tasks/execute", json=body).json()["output"] == "null"


def test_output_and_stderr_may_reach_their_limits(alice: User, publish: Callable[..., str]) -> None:
    misbehave = publish(wasm("misbehave"))
    assert alice.run(misbehave, input=f"size {MIB}")["output"] == "x" * MIB
    every_byte = base64.b64encode(bytes(range(256))).decode()
    assert alice.run(misbehave, input="binary")["output_base64"] == every_byte
    assert alice.run(misbehave, input="stderr-flood", timeout=1)["log"] == "x" * 64 * KIB


def test_a_receipt_verifies_and_equals_the_ledgers_item(
    alice: User, jwks: dict[str, Any], publish: Callable[..., str], ledger: Ledger
) -> None:
    tariff = {"type": "metered", "base": "0.001", "per_million_fuel": "0.01", "per_kib_output": "0.0001"}
    done = alice.run(publish(wasm("wordcount"), tariff=tariff), task_id="r", input={"text": "to be or not to be"})
    assert json.loads(done["output"])["words"] == 6
    claims, item = receipt.verify(done["receipt"], jwks), ledger.escrow(alice.name, "r")
    assert item is not None
    assert item["receipt"] == done["receipt"]
    assert_claims_match(claims, item)
    assert claims["eid"] == done["escrow_id"]
    assert claims["output_sha256"] == hashlib.sha256(done["output"].encode()).hexdigest()
    assert claims["module_sha256"] == hashlib.sha256(wasm("wordcount")).hexdigest()
    used = 1_000 + -(-claims["meter"]["fuel"] * 10_000 // 10**6) + -(-claims["meter"]["output_bytes"] // KIB) * 100
    assert (item["paid"] + item["fee"], item["fee"]) == (used, used * 250 // 10_000)
    forged = done["receipt"][:-4] + ("AAAA" if done["receipt"][-4:] != "AAAA" else "BBBB")
    with pytest.raises(statement.ProofError):
        receipt.verify(forged, jwks)


def test_equal_inputs_use_equal_fuel_and_give_equal_outputs(alice: User, publish: Callable[..., str]) -> None:
    sieve = publish(wasm("sieve"))
    runs = [alice.run(sieve, input="1000000") for _ in range(3)]
    assert {json.loads(run["output"])["primes"] for run in runs} == {78_498}
    assert len({run["resource_usage"]["fuel_used"] for run in runs}) == 1


def test_the_go_agent_totals_an_invoice(
    alice: User, publish: Callable[..., str], built: Callable[[str], bytes]
) -> None:
    lines = [
        {"description": "Chair", "quantity": 2, "unit_price": "49.90", "tax_rate": "19"},
        {"description": "Bücher", "quantity": 1, "unit_price": "10.00", "tax_rate": "7"},
    ]
    invoice = publish(built("invoice"))
    done = alice.run(invoice, input={"currency": "EUR", "lines": lines})
    totals = json.loads(done["output"])
    assert (totals["net"], totals["tax"], totals["gross"]) == ("109.80", "19.66", "129.46")
    wrong = alice.run(invoice, input={"currency": "EUR", "lines": [lines[0] | {"quantity": 0}]})
    assert (wrong["success"], wrong["escrow_status"]) == (False, "refunded")
    assert "line 1" in wrong["log"]


def test_the_python_agent_runs_the_script_in_its_input(
    alice: User, publish: Callable[..., str], built: Callable[[str], bytes]
) -> None:
    python = publish(built("python"), limits={"timeout": 25})
    done = alice.run(python, input=(AGENTS / "python-wasi" / "report.py").read_text())
    assert done["success"], done
    report = json.loads(done["output"])
    assert (report["total"], report["slept_seconds"], report["third"]) == ("593.35", 60, 1 / 3)
    assert set(report["set_order"]) == {"red", "green", "blue", "yellow"}
    assert done["execution_time_ms"] < 25_000, "a sleep of a minute takes no real time"
    binary = alice.run(python, input="import sys; sys.stdout.buffer.write(bytes(range(256)))")
    assert base64.b64decode(binary["output_base64"]) == bytes(range(256))
    raised = alice.run(python, input="print('discarded'); 1 / 0")
    assert (raised["success"], raised["output"], raised["amount_refunded"]) == (False, None, "0.05")
    assert "ZeroDivisionError" in raised["log"]
