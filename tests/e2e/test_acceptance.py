"""Acceptance rules over HTTP: published with an agent or sent with a task, met, not met, and refused."""

import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from local import client
from local.paths import Stack
from quittance.proof import receipt
from tests.e2e.people import Ledger, User
from tests.support import UNSCORED, wasm

CENTS = {"json_schema": {"type": "object", "required": ["total"], "properties": {"total": {"multipleOf": 0.01}}}}


@pytest.fixture(scope="module")
def strict(stack: Stack, token: Callable[..., str], bond: Callable[..., None]) -> str:
    """An echo agent that is paid only for totals in whole cents."""
    bond("owner")
    terms = {"tariff": {"type": "flat", "price": "0.01"}, "acceptance": CENTS, "task_judges": {"rejected_share": "0"}}
    return client.publish(client.Api(stack.api_url, token("owner")), "strict", wasm("echo"), terms)


def test_anybody_can_read_published_rules(strict: str, echo: str, alice: User) -> None:
    assert alice.http.get(f"/agents/{strict}").json()["acceptance"] == CENTS
    assert alice.http.get(f"/agents/{echo}").json()["acceptance"] == {}


def test_an_output_that_meets_the_rules_is_paid(strict: str, alice: User) -> None:
    done = alice.run(strict, input={"total": 19.99}, acceptance={"max_bytes": 100})
    assert (done["success"], done["output"], done["escrow_status"]) == (True, '{"total":19.99}', "released")
    rules = receipt.read_claims(done["receipt"])["acceptance"]
    assert rules["accepted"] is True
    assert len(rules["agent_sha256"]) == len(rules["task_sha256"]) == 64


@pytest.mark.parametrize(
    ("task", "side", "reason"),
    [
        ({"input": {"total": 0.005}}, "agent", "at /total it must be a multiple of 0.01 (json_schema)"),
        ({"input": "no JSON"}, "agent", "it must be JSON in UTF-8 (RFC 8259) (json_schema)"),
        ({"input": {"total": 1}, "acceptance": {"max_bytes": 3}}, "task", "see max_bytes"),
    ],
)
def test_an_output_that_breaks_the_rules_is_unpaid_and_withheld(
    strict: str,
    alice: User,
    ledger: Ledger,
    balance: Callable[[str], int],
    task: dict[str, Any],
    side: str,
    reason: str,
) -> None:
    before = balance(alice.name)
    done = alice.run(strict, task_id=(name := uuid.uuid4().hex), **task)
    assert (done["success"], done["output"], done["output_base64"]) == (False, None, None)
    assert (done["escrow_status"], done["amount_paid"], done["amount_refunded"]) == ("refunded", "0", "0.05")
    sentence = f"The output does not meet the {side}'s rules: {reason}."
    assert done["error"] == {"code": "rejected", "message": sentence}
    assert (done["fault"], done["reputation_delta"]) == (("agent", -5) if side == "agent" else ("payer", 0))
    assert balance(alice.name) == before
    item = ledger.escrow(alice.name, name)
    assert item is not None
    rules = receipt.read_claims(done["receipt"])["acceptance"]
    assert rules == {
        "agent_sha256": item["agent_rules_sha256"],
        "task_sha256": item.get("task_rules_sha256"),
        **UNSCORED,
        "accepted": False,
        "rejected_by": f"{side}_rules",
    }
    assert alice.http.get(f"/tasks/{name}/result").json() == done


def test_a_repeat_with_other_rules_is_a_conflict(strict: str, alice: User) -> None:
    name = uuid.uuid4().hex
    alice.run(strict, task_id=name, input={"total": 1}, acceptance={"min_bytes": 1})
    again = alice.execute(strict, task_id=name, input={"total": 1}, acceptance={"min_bytes": 2})
    assert (again.status_code, again.json()["type"]) == (409, "urn:quittance:problem:task_conflict")


@pytest.mark.parametrize(
    ("rules", "field", "words"),
    [
        (
            {"judge": {"agent_id": "agt_1", "threshold": "1.1", "budget": "0.01"}},
            "acceptance.judge.threshold",
            "at most",
        ),
        ({"judge": {"agent_id": "agt_1", "threshold": "1", "budget": "0.01"}}, "acceptance.judge.agent_id", "an agent"),
        ({"json_schema": {"properties": {"a": {"type": "money"}}}}, "acceptance.json_schema", "/properties/a/type"),
        ({"json_schema": {"pattern": "(?=a)"}}, "acceptance.json_schema", "/pattern"),
        ({"json_schema": {"allOf": [{"$ref": "#"}]}}, "acceptance.json_schema", "leads back to itself"),
        ({"json_schema": {"$ref": "https://example.com/s"}}, "acceptance.json_schema", "in the same schema"),
        ({"json_schema": {"title": "x" * 17_000}}, "acceptance.json_schema", "16384"),
        ({"min_bytes": 2, "max_bytes": 1}, "acceptance.max_bytes", "min_bytes"),
        ({"sha256": "ABC"}, "acceptance.sha256", "pattern"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_rules_are_refused_for_agents_and_tasks(
    strict: str, alice: User, bond: Callable[..., None], rules: dict[str, Any], field: str, words: str
) -> None:
    bond(alice.name)
    before = alice.http.get("/accounts/me").json()["available"]
    agent = {"name": "a", "tariff": {"type": "flat", "price": "0.01"}, "acceptance": rules}
    for answer in (alice.http.post("/agents", json=agent), alice.execute(strict, acceptance=rules)):
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (400, "urn:quittance:problem:invalid_request"), answer.text
        (error,) = problem["errors"]
        assert error["field"] == field
        assert words in error["message"]
    assert alice.http.get("/accounts/me").json()["available"] == before


def test_a_judge_decides_and_is_paid(
    echo: str, alice: User, token: Callable[..., str], publish: Callable[..., str], balance: Callable[[str], int]
) -> None:
    """Through the gateway: one budget pays for both tasks, and each has a result and a receipt."""
    judge = publish(wasm("coverage"), owner="judith")
    rule = {"judge": {"agent_id": judge, "threshold": "0.75", "budget": "0.02"}}
    before = balance(alice.name)
    done = alice.run(echo, task_id=(name := uuid.uuid4().hex), input="to be or not", acceptance=rule)
    assert (done["success"], done["output"]) == (True, "to be or not")
    task_id = f"{name}:judge-task"
    assert done["judges"] == [
        {"side": "task", "agent_id": judge, "task_id": task_id, "budget": "0.02", "cost": "0.01", "score": "1"}
    ]  # fmt: skip
    own = alice.http.get(f"/tasks/{task_id}/result").json()
    assert (own["output"], own["escrow_status"]) == ("1.000000\n", "released")
    spent = sum(Decimal(found[part]) for found in (done, own) for part in ("amount_paid", "fee"))
    assert balance(alice.name) == before - spent * 10**6
    assert receipt.read_claims(done["receipt"])["acceptance"]["task_score"] == "1"
    assert alice.http.get("/accounts/me/statement").json()["lines"][0]["id"] in {name, task_id}
