"""The ledger as its table tells it, and an audit of all that the other tests did to it (hence last by name).

`Ledger`, `User` and `task` are shared by the other modules here. The numbers are worked out again from the items
alone, by code that shares nothing with the platform but the receipts' verification.
"""

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from time import sleep
from typing import Any

import httpx
import pytest
from boto3.dynamodb.types import Binary, TypeDeserializer

from local.paths import Stack
from quittance import receipt
from quittance.escrow import escrow_id
from tests.support import wasm

Item = dict[str, Any]


class Ledger:
    """Reads the table itself, never the API."""

    def __init__(self, dynamodb: Any, table: str) -> None:
        self._dynamodb = dynamodb
        self._table = table

    def items(self, prefix: str = "") -> list[Item]:
        """Items whose key begins so, after checking that all of them conserve money (I1).

        A scan is no snapshot: where the scheduled sweep was writing meanwhile, it is repeated.
        """
        for _ in range(20):
            items = self._scan()
            if _total(items) == _entered(items):
                return [item for item in items if item["pk"].startswith(prefix)]
            sleep(0.1)
        raise AssertionError(f"the ledger holds {_total(items)}, and {_entered(items)} came in and stayed")

    def escrow(self, user: str, task_id: str) -> Item | None:
        """The escrow of one task, if there is one."""
        key = {"pk": {"S": f"ESC#{escrow_id(user, task_id)}"}}
        found = self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        return _plain(found["Item"]) if "Item" in found else None

    def total(self) -> int:
        """The conservation sum: all credits that the ledger holds."""
        return _total(self.items())

    def _scan(self) -> list[Item]:
        pages = self._dynamodb.get_paginator("scan").paginate(TableName=self._table, ConsistentRead=True)
        return [_plain(item) for page in pages for item in page["Items"]]


def _total(items: list[Item]) -> int:
    """All that is available, held, or earned and not credited yet."""
    total = 0
    for item in items:
        if item["pk"].startswith("ACCT#"):
            total += item["available"]
        elif item["pk"].startswith("ESC#") and item["state"] == "funded":
            total += item["budget"]
        elif item["pk"].startswith("ESC#") and "work" in item:
            total += item["paid"] + item["fee"]
    return total


def _entered(items: list[Item]) -> int:
    """All that ever came in, less what went out."""
    return sum(
        item["amount"] * {"IN": 1, "OUT": -1}.get(item["pk"].partition("#")[0], 0) for item in items if "amount" in item
    )


@dataclass(frozen=True)
class User:
    """Somebody with an account of their own and a connection that carries their token."""

    name: str
    http: httpx.Client

    @classmethod
    def new(cls, api: Callable[..., httpx.Client], deposit: Callable[..., None] | None = None) -> "User":
        """A user that nobody else is, with one credit if there is a `deposit`."""
        name = f"user-{uuid.uuid4().hex[:12]}"
        if deposit:
            deposit(name, "1")
        return cls(name, api(name))

    def execute(self, agent_id: str, /, **changes: Any) -> httpx.Response:
        """Posts `task(agent_id, **changes)`."""
        return self.http.post("/tasks/execute", json=task(agent_id, **changes))

    def run(self, agent_id: str, /, **changes: Any) -> dict[str, Any]:
        """Posts a task that is answered: the answer."""
        response = self.execute(agent_id, **changes)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


def task(agent_id: str, /, **changes: Any) -> dict[str, Any]:
    """A good request, changed; a change to None leaves the field out."""
    body = {"task_id": uuid.uuid4().hex, "agent_id": agent_id, "input": "hello", "budget": "0.05"} | changes
    return {name: value for name, value in body.items() if value is not None}


def credited(sweep: Callable[[], None], ledger: Ledger) -> None:
    """Sweeps until nothing settled waits: the schedule's own sweep may hold some of it for a moment."""
    for _ in range(100):
        sweep()
        if not any("work" in item and item["state"] != "funded" for item in ledger.items("ESC#")):
            return
    raise AssertionError("the sweep leaves something")


def _plain(item: dict[str, Any]) -> Item:
    def plain(value: Any) -> Any:
        if isinstance(value, Binary):
            return bytes(value)
        return value if isinstance(value, str | bool | bytes) else int(value)

    deserialize = TypeDeserializer().deserialize
    return {name: plain(deserialize(value)) for name, value in item.items()}


@pytest.fixture(scope="module")
def ledger(stack: Stack, aws: Callable[[str], Any]) -> Ledger:
    return Ledger(aws("dynamodb"), stack.table)


@pytest.fixture(scope="module")
def items(
    ledger: Ledger,
    api: Callable[..., httpx.Client],
    deposit: Callable[..., None],
    publish: Callable[..., str],
    sweep: Callable[[], None],
) -> list[Item]:
    """All items after a few tasks more, so that there is something to audit when this module runs alone."""
    alice, owner = User.new(api, deposit), User.new(api)
    good, bad = (publish(wasm(name), owner=owner.name) for name in ("echo", "failing"))
    for number in range(3):
        alice.run(good, input=str(number))
        alice.run(bad)
    body = {"withdrawal_id": "w", "amount": "0.5"}
    assert alice.http.post("/accounts/me/withdrawals", json=body).status_code == 201
    credited(sweep, ledger)
    ledger.total()
    return ledger.items()


@pytest.fixture(scope="module")
def escrows(items: list[Item]) -> list[Item]:
    return [item for item in items if item["pk"].startswith("ESC#")]


def test_nothing_is_left_open(escrows: list[Item]) -> None:
    """I8: what the tests began has ended, and all of it is swept."""
    assert {item["state"] for item in escrows} == {"released", "refunded"}
    assert not [item["task_id"] for item in escrows if "work" in item or "swept_ms" not in item]


def test_every_split_adds_up_and_every_fee_is_right(escrows: list[Item]) -> None:
    """I3 and I4."""
    for item in escrows:
        used = item["paid"] + item["fee"]
        assert used + item["refunded"] == item["budget"]
        assert item["fee"] == used * item["fee_bps"] // 10_000
        assert (item["state"] == "released") == (item["outcome"] == "succeeded")
        assert item["state"] == "released" or used == 0


def test_every_balance_follows_from_movements_and_tasks(stack: Stack, items: list[Item], escrows: list[Item]) -> None:
    """I2, I10 and I11: each account's balance, worked out anew."""
    expected: Counter[str] = Counter()
    for item in items:
        kind, _, rest = item["pk"].partition("#")
        if kind in {"IN", "OUT"}:
            expected[rest.partition("#")[0]] += item["amount"] if kind == "IN" else -item["amount"]
    for item in escrows:
        expected[item["payer"]] -= item["budget"] - item["refunded"]
        expected[item["owner"]] += item["paid"]
        expected[stack.platform_account] += item["fee"]
    stored = {item["pk"].removeprefix("ACCT#"): item["available"] for item in items if item["pk"].startswith("ACCT#")}
    assert stored == {account: balance for account, balance in expected.items() if balance or account in stored}
    assert min(stored.values()) >= 0


def test_every_escrow_has_a_receipt_that_verifies_and_says_the_same(
    escrows: list[Item], api: Callable[..., httpx.Client]
) -> None:
    """I12."""
    jwks = api(None).get("/.well-known/jwks.json").json()
    for item in escrows:
        assert_states(receipt.verify(item["receipt"], jwks), item)


def assert_states(claims: dict[str, Any], item: Item) -> None:
    """A receipt's claims are the ledger's item."""
    same = {
        "eid": item["pk"].removeprefix("ESC#"),
        "task": item["task_id"],
        "user": item["payer"],
        "agent": item["agent_id"],
        "owner": item["owner"],
        "module_sha256": item["module_sha256"],
        "input_sha256": item["input_sha256"],
        "output_sha256": item.get("output_sha256"),
        "stderr_sha256": item.get("log_sha256"),
        "state": item["state"],
        "outcome": item["outcome"],
        "fee_bps": item["fee_bps"],
        "reputation_tenths": item["reputation_tenths"],
        "funded_at": item["funded_ms"],
        "expires_at": item["expires_ms"],
        "settled_at": item["settled_ms"],
    } | {name: str(item[name]) for name in ("budget", "paid", "fee", "refunded")}
    assert {name: claims[name] for name in same} == same


def test_every_reputation_is_the_fold_of_the_agents_tasks(items: list[Item], escrows: list[Item]) -> None:
    """I16: start at 50, add each outcome in the order of the sweep, stay within 0 and 100."""
    histories = defaultdict(list)
    for item in sorted(escrows, key=lambda item: item["seq"]):
        histories[item["agent_id"]].append(item)
    stored = {item["pk"].removeprefix("REP#"): item for item in items if item["pk"].startswith("REP#")}
    assert stored.keys() == histories.keys()
    for agent_id, history in histories.items():
        score = 500
        for item in history:
            score = min(max(score + item["reputation_tenths"], 0), 1_000)
        found = stored[agent_id]
        assert [item["seq"] for item in history] == list(range(1, len(history) + 1))
        assert (found["score_tenths"], found["outcomes"]) == (score, len(history))
        assert found["successes"] == sum(item["outcome"] == "succeeded" for item in history)
