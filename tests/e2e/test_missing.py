"""Objects missing from S3. S3 says so only to roles that may list the bucket; for others it denies access."""

import hashlib
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import wasmtime

from local.paths import Stack
from tests.e2e.people import CREDIT, Ledger, User, invoke, sweep_until_credited
from tests.sandbox.wat import program
from tests.support import ROOT

LARGE = 4_096  # bytes: more than an escrow stores inline


@pytest.fixture
def alice(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> User:
    return User.new(api, deposit)


def test_a_result_outlives_its_output(alice: User, echo: str, stack: Stack, aws: Callable[[str], Any]) -> None:
    """Outputs expire, but answers do not. The receipt has the digest of the missing output."""
    text = (uuid.uuid4().hex * LARGE)[:LARGE]
    done = alice.run(echo, task_id="long-ago", input=text)
    assert done["output"] == text
    kept = f"outputs/{hashlib.sha256(text.encode()).hexdigest()}"
    aws("s3").delete_object(Bucket=stack.buckets["outputs"], Key=kept)

    result = alice.http.get("/tasks/long-ago/result")
    assert result.status_code == 200, result.text
    assert result.json() == {**done, "output": None}
    assert alice.run(echo, task_id="long-ago", input=text) == {**done, "output": None}


def test_a_missing_artefact_is_refunded(
    alice: User, publish: Callable[..., str], stack: Stack, aws: Callable[[str], Any], balance: Callable[[str], int]
) -> None:
    module = bytes(wasmtime.wat2wasm(program(f"(drop (i32.const {uuid.uuid4().int % 2**31}))")))
    agent = publish(module)
    bucket, prefix = stack.buckets["binaries"], f"artefacts/{hashlib.sha256(module).hexdigest()}"
    (artefact,) = aws("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    aws("s3").delete_object(Bucket=bucket, Key=artefact["Key"])

    done = alice.run(agent)
    assert (done["error"]["code"], done["escrow_status"]) == ("artefact_missing", "refunded")
    assert balance(alice.name) == CREDIT


def test_a_missing_upload_fails_the_publication(
    alice: User, bond: Callable[..., None], stack: Stack, aws: Callable[[str], Any]
) -> None:
    bond(alice.name)
    agent = alice.http.post("/agents", json={"name": "late", "tariff": {"type": "flat", "price": "0.01"}}).json()
    event = (ROOT / "events" / "publish-s3.json").read_text().replace("agt_bbbbbbbbbbbbbbbb", agent["agent_id"])
    assert invoke(aws("lambda"), stack.functions["PublishFunction"], event) == (["failed"], False)


def test_the_audit_reports_a_missing_checkpoint(
    alice: User, echo: str, stack: Stack, aws: Callable[[str], Any], sweep: Callable[[], None], ledger: Ledger
) -> None:
    alice.run(echo)
    sweep_until_credited(sweep, ledger)
    s3, bucket = aws("s3"), stack.buckets["log"]
    newest = max(int(found["Key"].partition("/")[2]) for found in _listed(s3, bucket, "checkpoint/"))
    kept = {"Bucket": bucket, "Key": f"checkpoint/{newest}"}
    body = s3.get_object(**kept)["Body"].read()
    s3.delete_object(**kept)
    try:
        audited, failed = invoke(aws("lambda"), stack.functions["AuditFunction"], {})
    finally:
        s3.put_object(**kept, Body=body)
    assert (failed, audited["differences"]) == (False, 1)
    assert "BlobMissingError" in "\n".join(audited["report"])
    audited, failed = invoke(aws("lambda"), stack.functions["AuditFunction"], {})
    assert (failed, audited["differences"]) == (False, 0)


def _listed(s3: Any, bucket: str, prefix: str) -> list[dict[str, Any]]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [found for page in pages for found in page.get("Contents", [])]
