"""What the end-to-end tests look through: users with their calls, and the ledger as its table tells it.

The numbers are worked out again from the items alone, by code that shares nothing with the platform.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import sleep, time
from typing import Any

import httpx
from boto3.dynamodb.types import Binary, TypeDeserializer

from quittance.ledger.escrow import escrow_id

Item = dict[str, Any]
# What an escrow's item has only once it is settled or swept.
OF_THE_END = (
    {"paid", "fee", "refunded", "outcome", "message", "reputation_tenths", "settled_ms", "receipt"}
    | {"output", "output_sha256", "output_bytes", "log", "log_sha256", "log_bytes"}
    | {"swept_ms", "batch", "place"}
    | {"fault", "compute", "charge", "judging", "task_judging"}
)


class Ledger:
    """The table itself, never the API."""

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

    def age(self, user: str, task_id: str, by_ms: int) -> bool:
        """Makes time pass for one task that is funded: its times go back by so much. False if it is none (any more)."""
        moved = ("at", "lease_ms", "expires_ms", "work_at")
        names = {f"#{name}": name for name in (*moved, "state")}
        try:
            self._dynamodb.update_item(
                TableName=self._table,
                Key={"pk": {"S": f"ESC#{escrow_id(user, task_id)}"}},
                # An item of before seals has none: the auditor would see that these times are not the first ones.
                UpdateExpression="SET " + ", ".join(f"#{name} = #{name} - :by" for name in moved) + " REMOVE seal",
                ConditionExpression="#state = :funded",
                ExpressionAttributeNames=names,
                ExpressionAttributeValues={":by": {"N": str(by_ms)}, ":funded": {"S": "funded"}},
            )
        except self._dynamodb.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def put_overdue(self, done: Mapping[str, Any], *, task_id: str) -> str:
        """Puts an escrow that should have been settled a moment ago, like that of a task which is; gives its id.

        Nobody waits here until a real one has expired. The hold is paid for, so that the ledger's equation stands.
        """
        key = {"pk": {"S": f"ESC#{done['escrow_id']}"}}
        item = self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True)["Item"]
        payer = item["account"]["S"]
        eid, now_ms = escrow_id(payer, task_id), int(time() * 1_000)
        overdue = {name: value for name, value in item.items() if name not in OF_THE_END | {"seal"}} | {
            "pk": {"S": f"ESC#{eid}"},
            "task_id": {"S": task_id},
            "state": {"S": "funded"},
            "work": {"S": "OPEN#0"},
            "work_at": {"N": str(now_ms - 1)},
            "expires_ms": {"N": str(now_ms - 1)},
            "lease_ms": {"N": str(now_ms - 2)},
        }
        debit = {
            "TableName": self._table,
            "Key": {"pk": {"S": f"ACCT#{payer}"}},
            "UpdateExpression": "ADD available :change",
            "ExpressionAttributeValues": {":change": {"N": f"-{item['budget']['N']}"}},
        }
        self._dynamodb.transact_write_items(
            TransactItems=[{"Put": {"TableName": self._table, "Item": overdue}}, {"Update": debit}]
        )
        return eid

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
    return sum(item["amount"] for item in items if item["pk"].startswith(("IN#", "OUT#", "BACK#")))


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


def assert_states(claims: dict[str, Any], item: Item) -> None:
    """A receipt's claims are the ledger's item."""
    same = {
        "eid": item["pk"].removeprefix("ESC#"),
        "task": item["task_id"],
        "user": item["account"],
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
        "funded_at": item["at"],
        "expires_at": item["expires_ms"],
        "settled_at": item["settled_ms"],
    } | {name: str(item[name]) for name in ("budget", "paid", "fee", "refunded")}
    assert {name: claims[name] for name in same} == same
