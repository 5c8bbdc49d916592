"""Helpers of the end-to-end tests: users with their requests, the ledger read from its table, and calls of AWS.

Sums are computed from the items alone, by code that shares nothing with the platform.
"""

import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from time import sleep, time
from typing import Any
from zlib import crc32

import httpx
from boto3.dynamodb.types import Binary, TypeDeserializer

from local.cloud import CREDENTIALS
from local.paths import Stack
from quittance.ledger.channels import escrow_id_of
from quittance.ledger.escrow import escrow_id
from tests.support import ROOT

Item = dict[str, Any]
CREDIT = 1_000_000
# Attributes that an escrow's item has only once it is settled or swept.
CLOSING_ATTRIBUTES = (
    {"paid", "fee", "refunded", "outcome", "message", "reputation_tenths", "settled_ms", "receipt"}
    | {"output", "output_sha256", "output_bytes", "log", "log_sha256", "log_bytes"}
    | {"swept_ms", "batch", "place"}
    | {"fault", "compute", "charge", "judging", "task_judging"}
)


class Ledger:
    """The ledger's table, read directly and never through the API."""

    def __init__(self, dynamodb: Any, table: str) -> None:
        self._dynamodb = dynamodb
        self._table = table

    def items(self, prefix: str = "") -> list[Item]:
        """The items whose key starts with `prefix`, after a check that the whole ledger conserves money (I1).

        A scan is not a snapshot, so it is repeated if the scheduled sweep wrote meanwhile.
        """
        for _ in range(20):
            items = self._scan()
            if _total(items) == _net_deposits(items):
                return [item for item in items if item["pk"].startswith(prefix)]
            sleep(0.1)
        raise AssertionError(
            f"the ledger holds {_total(items)}, but deposits less withdrawals are {_net_deposits(items)}"
        )

    def tasks(self) -> list[Item]:
        """The escrows of tasks and judges. A ticket's task has its payer as `account`, too."""
        return [{"account": item.get("payer"), **item} for item in self.items("ESC#") if "state" in item]

    def channel(self, channel_id: str) -> Item:
        """The item of a payment channel."""
        key = {"pk": {"S": f"CHAN#{channel_id}"}}
        return _plain(self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True)["Item"])

    def age_channel(self, channel_id: str, by_ms: int) -> None:
        """Move the end of a closing channel's window into the past; this saves waiting for it."""
        self._dynamodb.update_item(
            TableName=self._table,
            Key={"pk": {"S": f"CHAN#{channel_id}"}},
            UpdateExpression="SET close_ms = close_ms - :by, work_at = work_at - :by",
            ConditionExpression="#state = :closing",
            ExpressionAttributeNames={"#state": "state"},
            ExpressionAttributeValues={":by": {"N": str(by_ms)}, ":closing": {"S": "closing"}},
        )

    def escrow(self, user: str, task_id: str) -> Item | None:
        """The escrow of a task, or None."""
        key = {"pk": {"S": f"ESC#{escrow_id_of(user, task_id)}"}}
        found = self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        return _plain(found["Item"]) if "Item" in found else None

    def age(self, user: str, task_id: str, by_ms: int) -> bool:
        """Move the times of a task's escrow into the past; return False if the task is not funded."""
        moved = ("at", "lease_ms", "expires_ms", "work_at")
        names = {f"#{name}": name for name in (*moved, "state")}
        try:
            self._dynamodb.update_item(
                TableName=self._table,
                Key={"pk": {"S": f"ESC#{escrow_id_of(user, task_id)}"}},
                # The seal covers these times, so the auditor would report the change. Older items have no seal.
                UpdateExpression="SET " + ", ".join(f"#{name} = #{name} - :by" for name in moved) + " REMOVE seal",
                ConditionExpression="#state = :funded",
                ExpressionAttributeNames=names,
                ExpressionAttributeValues={":by": {"N": str(by_ms)}, ":funded": {"S": "funded"}},
            )
        except self._dynamodb.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def put_overdue(self, done: Mapping[str, Any], *, task_id: str, shards: int = 1) -> str:
        """Add an overdue funded escrow, copied from the settled task `done`; return its id.

        This saves waiting for a real escrow to expire. The payer is debited, so that the ledger's equation still holds.
        """
        key = {"pk": {"S": f"ESC#{done['escrow_id']}"}}
        item = self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True)["Item"]
        payer = item["account"]["S"]
        eid, now_ms = escrow_id(payer, task_id), int(time() * 1_000)
        overdue = {name: value for name, value in item.items() if name not in CLOSING_ATTRIBUTES | {"seal"}} | {
            "pk": {"S": f"ESC#{eid}"},
            "task_id": {"S": task_id},
            "state": {"S": "funded"},
            "work": {"S": f"OPEN#{crc32(eid.encode()) % shards}"},
            "party": {"S": f"HELD#{payer}#0"},
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
        """All credits that the ledger holds, which must be conserved."""
        return _total(self.items())

    def _scan(self) -> list[Item]:
        pages = self._dynamodb.get_paginator("scan").paginate(TableName=self._table, ConsistentRead=True)
        return [_plain(item) for page in pages for item in page["Items"]]


def _total(items: list[Item]) -> int:
    """All credits that are available, held, in channels, or earned but not yet credited."""
    total = 0
    for item in items:
        if item["pk"].startswith("ACCT#"):
            total += item["available"]
        elif item["pk"].startswith("CHAN#"):
            total += item["deposit"] - item["spent"] if item["state"] != "closed" else 0
        elif item["pk"].startswith("ESC#") and item.get("state") == "funded":
            total += 0 if "channel" in item else item["budget"]  # a ticket's budget is still in its channel
        elif item["pk"].startswith("ESC#") and "work" in item:
            total += item["paid"] + item["fee"] - _drawn(item)
    return total


def _drawn(item: Item) -> int:
    """What a settled task takes from its channel once the sweep credits it. Its judge's cost is part of the task's."""
    return item["paid"] + item["fee"] + item.get("task_judging", 0) if item.get("tickets") else 0


def _net_deposits(items: list[Item]) -> int:
    """All deposits less withdrawals, with returned withdrawals added back."""
    return sum(item["amount"] for item in items if item["pk"].startswith(("IN#", "OUT#", "BACK#")))


@dataclass(frozen=True)
class User:
    """An account and an HTTP client that sends its token."""

    name: str
    http: httpx.Client

    @classmethod
    def new(cls, api: Callable[..., httpx.Client], deposit: Callable[..., None] | None = None) -> "User":
        """A new user, with one credit if `deposit` is given."""
        name = f"user-{uuid.uuid4().hex[:12]}"
        if deposit:
            deposit(name, "1")
        return cls(name, api(name))

    def execute(self, agent_id: str, /, **changes: Any) -> httpx.Response:
        """Send `task(agent_id, **changes)`; return the response."""
        return self.http.post("/tasks/execute", json=task(agent_id, **changes))

    def run(self, agent_id: str, /, **changes: Any) -> dict[str, Any]:
        """Send a task that must be answered with 200; return the answer."""
        response = self.execute(agent_id, **changes)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


def task(agent_id: str, /, **changes: Any) -> dict[str, Any]:
    """A valid task request with these changes; a field changed to None is left out."""
    body = {"task_id": uuid.uuid4().hex, "agent_id": agent_id, "input": "hello", "budget": "0.05"} | changes
    return {name: value for name, value in body.items() if value is not None}


def sweep_until_credited(sweep: Callable[[], None], ledger: Ledger) -> None:
    """Sweep until every settled escrow is credited: the scheduled sweep may hold some of them for a moment."""
    for _ in range(100):
        sweep()
        if not any("work" in item and item["state"] != "funded" for item in ledger.tasks()):
            return
    raise AssertionError("the sweep does not credit every settled escrow")


def _plain(item: dict[str, Any]) -> Item:
    def plain(value: Any) -> Any:
        if isinstance(value, Binary):
            return bytes(value)
        return value if isinstance(value, str | bool | bytes) else int(value)

    deserialize = TypeDeserializer().deserialize
    return {name: plain(deserialize(value)) for name, value in item.items()}


def assert_claims_match(claims: dict[str, Any], item: Item) -> None:
    """Assert that a receipt's claims equal the ledger's item."""
    same = {
        "eid": item["pk"].removeprefix("ESC#"),
        "task": item["task_id"],
        "user": item.get("account") or item["payer"],
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


def micro(amount: str) -> int:
    """An amount of the API in micro-credits."""
    return int(Decimal(amount) * CREDIT)


def invoke(client: Any, function: str, payload: Any) -> tuple[Any, bool]:
    """Invoke a function with JSON; return its answer, and whether that is an error."""
    body = payload if isinstance(payload, str) else json.dumps(payload)
    answer = client.invoke(FunctionName=function, Payload=body.encode())
    return json.loads(answer["Payload"].read()), "FunctionError" in answer


def message_count(sqs: Any, queue: str, *kinds: str) -> int:
    """The number of messages in a queue of these kinds: "", "NotVisible" or "Delayed"."""
    names = [f"ApproximateNumberOfMessages{kind}" for kind in kinds]
    found = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
    return sum(int(found[name]) for name in names)


@contextmanager
def changed_environment(client: Any, alias_arn: str, changed: Mapping[str, str]) -> Iterator[None]:
    """Point a function's alias to a version with these environment variables, and afterwards back to the old one."""
    function = alias_arn.removesuffix(":live")
    alias = {"FunctionName": function, "Name": "live"}
    former = client.get_alias(**alias)["FunctionVersion"]
    own = client.get_function_configuration(FunctionName=function)["Environment"]
    client.update_function_configuration(
        FunctionName=function, Environment={"Variables": {**own["Variables"], **changed}}
    )
    client.update_alias(**alias, FunctionVersion=client.publish_version(FunctionName=function)["Version"])
    try:
        yield
    finally:
        client.update_function_configuration(FunctionName=function, Environment=own)
        client.update_alias(**alias, FunctionVersion=former)


def command_environment(stack: Stack, folder: Path) -> dict[str, str]:
    """The environment for commands of the documents; `aws` is aws_command.py, and `python3` is this Python."""
    for name, command in {"aws": ("-m", "tests.e2e.aws_command"), "python3": ()}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {" ".join([sys.executable, *command])} "$@"\n')
        (folder / name).chmod(0o700)
    return CREDENTIALS | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "AWS_ENDPOINT_URL": stack.endpoint_url,
        "AWS_DEFAULT_REGION": stack.region,
    }
