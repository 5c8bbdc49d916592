"""A whole platform in one process: the tables and buckets of `template.yaml` in moto, and the real sandbox."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest
from botocore.compat import HTTPHeaders
from moto import mock_aws
from moto.core.models import botocore_stubber

from quittance import platform as bootstrap
from quittance.config import Settings
from quittance.sandbox import Sandbox
from quittance.store import clients, dynamo_client, parallel
from tests import template as templates
from tests.support import REGION, Cloud, remaining


@pytest.fixture(scope="session")
def template() -> dict[str, Any]:
    return templates.template()


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def aws() -> Iterator[None]:
    """Moto in place of AWS, and not by the test's `monkeypatch`: the test may undo that, which must also end first."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.setattr(dynamo_client._Connections, "post", _post_to_moto)
        patch.setattr(parallel, "CALLS_AT_ONCE_MAX", 1)  # moto takes one call at a time
        with mock_aws():
            yield


def _post_to_moto(
    connections: dynamo_client._Connections, headers: Mapping[str, str], body: bytes
) -> tuple[int, str | None, bytes]:
    """What moto answers to a request of the ledger's client. Moto intercepts boto3's clients by itself."""
    request = AWSPreparedRequest("POST", connections.endpoint, HTTPHeaders.from_dict(headers), body, False)
    answered = botocore_stubber.process_request(request)
    assert answered
    status, _, content = answered
    return status, None, content.encode() if isinstance(content, str) else content


@pytest.fixture
def cloud(template: dict[str, Any], sandbox: Sandbox, tmp_path: Path) -> Cloud:
    return cloud_in(template, sandbox, tmp_path)


def cloud_in(template: dict[str, Any], sandbox: Sandbox, scratch: Path) -> Cloud:
    """A platform with new tables, buckets, queues and keys, on the AWS that the environment variables name."""
    session = clients._session()
    # One client of each service: making one takes longer than its call.
    dynamodb, s3, sqs, kms = map(session.client, ("dynamodb", "s3", "sqs", "kms"))
    for name in ("LedgerTable", "RegistryTable", "ListingsTable"):
        properties = {
            key: value
            for key, value in template["Resources"][name]["Properties"].items()
            if key in {"AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode"}
        }
        dynamodb.create_table(TableName=name, **json.loads(json.dumps(properties)))
    for name in ("uploads", "binaries", "outputs", "log", "archive"):
        s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    session.client("events").create_event_bus(Name="bus")
    webhooks = sqs.create_queue(QueueName="webhooks")["QueueUrl"]
    keys = [kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"] for _ in range(4)]
    cloud = Cloud(
        Settings(
            ledger_table="LedgerTable",
            registry_table="RegistryTable",
            listings_table="ListingsTable",
            uploads_bucket="uploads",
            binaries_bucket="binaries",
            outputs_bucket="outputs",
            log_bucket="log",
            archive_bucket="archive",
            task_queue_url=sqs.create_queue(QueueName="tasks")["QueueUrl"],
            dead_letters_url=sqs.create_queue(QueueName="dead-letters")["QueueUrl"],
            ledger_shards=3,
            fee_bps=250,
            platform_account="quittance:platform",
            receipt_key_ids=keys[0],
            checkpoint_key_ids=keys[1],
            webhook_key_ids=keys[2],
            card_key_ids=keys[3],
            receipt_issuer="urn:quittance:test",
            issuer_url="https://issuer.test",
            jwks_url="https://issuer.test/jwks.json",
            audience="quittance",
            scratch_dir=scratch,
            event_bus="bus",
            webhook_queue_url=webhooks,
        )
    )
    cloud.sandbox = sandbox
    return cloud


@pytest.fixture
def platform(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """The platform that the functions' handlers use; alice has one credit."""
    bootstrap._platform.cache_clear()
    monkeypatch.setattr(bootstrap, "settings", lambda: cloud.settings)
    monkeypatch.setattr(bootstrap, "Platform", lambda _: cloud)
    cloud.deposit("alice", 1_000_000)
    return cloud


@pytest.fixture
def context() -> Any:
    return SimpleNamespace(
        function_name="test",
        memory_limit_in_mb=512,
        invoked_function_arn="arn:aws:lambda:eu-central-1:123456789012:function:test",
        aws_request_id="00000000-0000-0000-0000-000000000000",
        get_remaining_time_in_millis=remaining,
    )
