"""What several test suites share: the example agents, and a platform whose state a test can read and set."""

import base64
import json
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest import mock

from quittance import sandbox
from quittance.api.identity import Caller
from quittance.api.models import AgentLimits, AgentRequest
from quittance.ledger.balances import bond_account
from quittance.platform import Platform
from quittance.store import clients
from quittance.usecases import agents
from quittance.usecases import publish as publishing

ROOT = Path(__file__).parents[1]
AGENTS = ROOT / "examples" / "agents"
REGION = "eu-central-1"
CONSENT = {"rejected_share": "0"}
FLAT = {"type": "flat", "price": "0.01"}
UNSCORED = {"agent_score": None, "task_score": None, "rejected_by": None}
"""The claims about judges in the receipt of a task without judges."""


def wasm(name: str) -> bytes:
    """The module of a committed example agent."""
    (module,) = AGENTS.glob(f"*/{name}.wasm")
    return module.read_bytes()


compiled_once = cache(sandbox.compile_module)
"""Equal modules compile to equal artefacts (tests/fuzz proves it), so tests share one compilation of a module."""


def remaining() -> int:
    """Milliseconds left in a Lambda invocation that has just started."""
    return 60_000


class Cloud(Platform):
    """A platform for tests: its clock can be moved, its ledger read, and agents published in one call."""

    skew_ms = 0

    @cached_property
    def dynamodb(self) -> Any:
        """Boto3's client, for what the platform never does: deleting an item, and scanning page by page."""
        return clients._session().client("dynamodb")

    def left_ms(self) -> int:
        return remaining() - self._reserved_ms

    def now_ms(self) -> int:
        return super().now_ms() + self.skew_ms

    def publish(
        self,
        module: bytes,
        *,
        tariff: dict[str, Any] = FLAT,
        owner: str = "owner",
        acceptance: dict[str, Any] | None = None,
        task_judges: dict[str, Any] | None = CONSENT,
        **limits: Any,
    ) -> str:
        """Publish an agent through the use cases; return its id."""
        terms = {
            "tariff": tariff,
            "limits": AgentLimits(**limits),
            "acceptance": acceptance,
            "task_judges": task_judges,
        }
        request = AgentRequest.model_validate({"name": "test", **terms})
        agent_id = agents.register(self, Caller(owner), request).agent_id
        self.post(agent_id, 1, module)
        with mock.patch.object(sandbox, "compile_module", compiled_once):
            assert publishing.publish(self, f"uploads/{agent_id}/1") == "active"
        return agent_id

    def post(self, agent_id: str, number: int, module: bytes) -> str:
        """Upload a module as its author would; return the object's version."""
        key = f"uploads/{agent_id}/{number}"
        return self._s3.put_object(Bucket=self.settings.uploads_bucket, Key=key, Body=module)["VersionId"]

    def deposit(self, account: str, amount_micro: int) -> None:
        """Add credits to an account."""
        self.ledger.deposit(account, f"start-{amount_micro}", amount_micro, now_ms=self.now_ms())

    def bond(self, owner: str, amount_micro: int) -> None:
        """Add credits to an owner's bond."""
        self.deposit(bond_account(owner), amount_micro)

    def items(self, prefix: str = "") -> list[dict[str, Any]]:
        """The ledger's items whose key starts with `prefix`."""
        pages = self.dynamodb.get_paginator("scan").paginate(TableName=self.settings.ledger_table)
        return [item for page in pages for item in page["Items"] if item["pk"]["S"].startswith(prefix)]

    def wipe(self) -> None:
        """Delete all items of the ledger."""
        for item in self.items():
            self.dynamodb.delete_item(TableName=self.settings.ledger_table, Key={"pk": item["pk"]})

    def total_micro(self) -> int:
        """All credits that the ledger holds: available, held, settled but not swept, and in channels."""
        number = lambda item, name: int(item[name]["N"])  # noqa: E731 - used only in the lines below
        total = sum(number(item, "available") for item in self.items("ACCT#"))
        for item in self.items("CHAN#"):
            total += number(item, "deposit") - number(item, "spent") - int(item.get("returned", {"N": "0"})["N"])
        for item in self.items("ESC#"):
            if "channel" in item:  # what it costs is in its channel until the sweep
                continue
            if item["state"]["S"] == "funded":
                total += number(item, "budget")
            elif "work" in item:
                total += number(item, "paid") + number(item, "fee")
        return total


def stream_record(number: int, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A DynamoDB stream record of a changed item, as Lambda receives it."""
    change = {
        "ApproximateCreationDateTime": 1_800_000_000,
        "Keys": {"pk": after["pk"]},
        "NewImage": after,
        "OldImage": before,
        "SequenceNumber": str(number),
        "StreamViewType": "NEW_AND_OLD_IMAGES",
    }
    record = {"eventID": str(number), "eventName": "MODIFY", "eventSource": "aws:dynamodb", "dynamodb": change}
    plain: dict[str, Any] = json.loads(json.dumps(record, default=lambda data: base64.b64encode(data).decode()))
    return plain
