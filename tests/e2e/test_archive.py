"""The archive on the deployed template: old tasks move to S3, and every answer about them stays the same.

This module runs first, and brings everything back at its end, so that the other modules find the table as they expect.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Final

import httpx
import pytest

from local.cloud import CREDENTIALS
from local.paths import ROOT, Stack
from quittance.api.models import TaskRequest
from quittance.config import Settings
from quittance.ledger.escrow import escrow_id
from quittance.limits import BUNDLE_ESCROWS_MIN
from quittance.platform import Platform
from quittance.store import archive, clients
from quittance.usecases import execute, settle
from quittance.usecases.sweep import publish_log
from tests.e2e.people import Ledger, User, invoke, task

AGE_MS: Final = 60 * 24 * 60 * 60 * 1_000
HOUR_MS: Final = 60 * 60 * 1_000
KEY: Final = "escrows/0000000000000000.jsonl"


class Past(Platform):
    """The deployed platform as it was some time ago; it sends nothing to the queue."""

    age_ms = AGE_MS

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 - self.age_ms


@pytest.fixture(scope="module")
def past(stack: Stack, aws: Callable[[str], Any]) -> Iterator[Past]:
    deployed = aws("lambda").get_function_configuration(FunctionName=stack.functions["SweepFunction"])
    variables = {name.lower(): value for name, value in deployed["Environment"]["Variables"].items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": stack.endpoint_url, "AWS_REGION": stack.region}).items():
            patch.setenv(name, value)
        patch.setenv("AWS_DEFAULT_REGION", stack.region)
        clients.forget()
        made = Past(Settings.model_validate(variables))
        vars(made)["queue"] = SimpleNamespace(send=lambda *_, **__: None)
        yield made
        made._dynamodb.close()
    clients.forget()


@pytest.fixture(scope="module")
def old(
    past: Past, api: Callable[..., httpx.Client], deposit: Callable[..., None], echo: str, ledger: Ledger
) -> Iterator[User]:
    """A user whose tasks of two months ago expired, were credited, logged and published."""
    if past.ledger.log.head().size:
        pytest.skip("needs an empty log, because escrows are archived in its order")
    user = User.new(api, deposit)
    deposit(user.name, 100)
    ids = []
    for number in range(BUNDLE_ESCROWS_MIN):
        past.age_ms = AGE_MS
        request = TaskRequest.model_validate(task(echo, task_id=f"old-{number}"))
        execute.submit(past, user.name, request)
        ids.append(escrow_id(user.name, request.task_id))
        past.age_ms = AGE_MS - HOUR_MS
        funded = past.ledger.find(ids[-1])
        assert funded
        assert settle.expire_if_overdue(past, funded).settlement
    past.ledger.credit(ids, now_ms=past.now_ms())
    for batches in past.ledger.log.waiting():
        assert list(past.ledger.log.append(batches))
    publish_log(past, {})
    assert past.ledger.log.head().published >= BUNDLE_ESCROWS_MIN
    yield user
    bring_back(past)
    assert not [item for item in ledger.items("ESC#") if "archived" in item]


def bring_back(past: Past) -> None:
    """What ADR 44 says to undo the archive: whole items in place of tombstones, and no position."""
    table = past.settings.ledger_table
    for record in past.ledger.archive.bundle(0):
        past._dynamodb.put_item(TableName=table, Item=record.item)
    past._dynamodb.update_item(TableName=table, Key={"pk": {"S": "LOG"}}, UpdateExpression="REMOVE archived_size")


def answers(user: User, echo: str, number: int) -> Mapping[str, Any]:
    """What the API answers about a task."""
    name = f"old-{number}"
    proof = user.http.get(f"/tasks/{name}/proof").json()
    return {
        "result": user.http.get(f"/tasks/{name}/result").json(),
        "replay": user.execute(echo, task_id=name).json(),
        "other": user.execute(echo, task_id=name, input="other").json()["type"],
        "place": proof["leaf_index"],
        "statement": user.http.get("/accounts/me/statement", params={"limit": 100}).json(),
        "account": user.http.get("/accounts/me").json(),
    }


def audited(stack: Stack, aws: Callable[[str], Any]) -> int:
    answer, failed = invoke(aws("lambda"), stack.functions["AuditFunction"], {})
    assert not failed, answer
    differences: int = answer["differences"]
    return differences


def test_old_tasks_are_archived_and_answered_as_before(
    stack: Stack, aws: Callable[[str], Any], past: Past, old: User, echo: str, ledger: Ledger
) -> None:
    numbers = (0, 1, BUNDLE_ESCROWS_MIN - 1)
    before = [answers(old, echo, number) for number in numbers]
    assert before[0]["replay"]["escrow_status"] == "expired"
    assert before[0]["replay"]["receipt"]
    assert audited(stack, aws) == 0
    total = ledger.total()
    scheduled = json.loads((ROOT / "events/archive-schedule.json").read_text())
    done, failed = invoke(aws("lambda"), stack.functions["ArchiveFunction"], scheduled)
    assert (failed, done["escrows"], done["bundles"]) == (False, BUNDLE_ESCROWS_MIN, 1), done
    stored = {item["pk"]: item for item in ledger.items("ESC#")}
    names = {f"ESC#{escrow_id(old.name, f'old-{number}')}" for number in range(BUNDLE_ESCROWS_MIN)}
    assert all("archived" in stored[name] and "receipt" not in stored[name] for name in names)
    assert [answers(old, echo, number) for number in numbers] == before
    assert ledger.total() == total
    assert audited(stack, aws) == 0
    again, failed = invoke(aws("lambda"), stack.functions["ArchiveFunction"], {})
    assert (failed, again["escrows"], again["bundles"]) == (False, 0, 0), again
    filled, failed = invoke(aws("lambda"), stack.functions["ListingsFunction"], {"backfill": {"of": "ledger"}})
    assert (failed, filled["failed"]) == (False, 0), filled


def test_a_damaged_bundle_is_a_503_and_named_by_the_audit(
    stack: Stack, aws: Callable[[str], Any], past: Past, old: User, echo: str
) -> None:
    bucket, s3 = past.settings.archive_bucket, aws("s3")
    data = s3.get_object(Bucket=bucket, Key=KEY)["Body"].read()
    assert len(archive.read(0, data)) == BUNDLE_ESCROWS_MIN
    assert json.loads(data.partition(b"\n")[0])["escrows"] == BUNDLE_ESCROWS_MIN
    try:
        s3.put_object(Bucket=bucket, Key=KEY, Body=data.replace(b'"receipt"', b'"receipT"'))
        assert old.execute(echo, task_id="old-0").status_code == 503
        assert old.http.get("/tasks/old-0/result").status_code == 503
        assert old.http.get("/accounts/me/statement").status_code == 200
        assert audited(stack, aws) >= BUNDLE_ESCROWS_MIN
        s3.delete_object(Bucket=bucket, Key=KEY)
        assert audited(stack, aws) >= BUNDLE_ESCROWS_MIN
    finally:
        s3.put_object(Bucket=bucket, Key=KEY, Body=data)
    assert audited(stack, aws) == 0
