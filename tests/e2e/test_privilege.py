"""Each role allows what its function does and no more: tested with the roles and against the recorded AWS calls.

These tests run last (conftest.py). The local cloud, which enforces the roles (local/launch.py), has recorded the calls
of all other tests. The calls and the rights of the template must match in both directions.
"""

import json
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from boto3.session import Session
from botocore.exceptions import ClientError

from local.deploy import STACK_NAME
from local.paths import Stack, State
from tests.e2e.conftest import STATE
from tests.roles import FUNCTION, Call, Deployed, read_calls, unused_rights, violations
from tests.support import ROOT
from tests.template import template

TEMPLATE = template()
FUNCTIONS = [name for name, found in TEMPLATE["Resources"].items() if found["Type"] == FUNCTION]
BUCKETS = [name for name, found in TEMPLATE["Resources"].items() if found["Type"] == "AWS::S3::Bucket"]
TABLES = [name for name, found in TEMPLATE["Resources"].items() if found["Type"] == "AWS::DynamoDB::Table"]
KEY = {"pk": {"S": "ESC#x"}}
SIGNERS = {
    "ExecuteFunction": {"ReceiptRoot"},
    "WorkFunction": {"ReceiptRoot"},
    "DeadletterFunction": {"ReceiptRoot"},
    "ResultFunction": {"ReceiptRoot"},
    "SweepFunction": {"ReceiptRoot", "CheckpointRoot"},
    "DrainFunction": {"ReceiptRoot"},
    "WebhookFunction": {"WebhookRoot"},
    "PublicFunction": {"CardRoot"},
}
OWN_EVENTS = {"NotifyFunction": "AgentRejected", "DeadletterFunction": "TaskRefused"}

# Rights that these tests need not use: function, action, and resource as template.yaml writes it; and the reason.
_AS_EXECUTE = "it runs the same use case as execute, where this right is tested"
NOT_TESTED: dict[tuple[str, str, str], str] = {
    ("WorkFunction", "lambda:InvokeFunction", "PublishFunction.Alias"): _AS_EXECUTE,
    ("WorkFunction", "s3:GetObject", "${OutputsBucket.Arn}/outputs/*"): _AS_EXECUTE,
    ("WorkFunction", "s3:ListBucket", "BinariesBucket.Arn"): _AS_EXECUTE,
    ("WorkFunction", "s3:GetObject", "${ArchiveBucket.Arn}/escrows/*"): _AS_EXECUTE,
    ("DeadletterFunction", "s3:GetObject", "${ArchiveBucket.Arn}/escrows/*"): _AS_EXECUTE,
    ("DrainFunction", "dynamodb:GetItem", "RegistryTable.Arn"): "it runs the sweep's steps, where this right is tested",
    (
        "DrainFunction",
        "dynamodb:UpdateItem",
        "RegistryTable.Arn",
    ): "it runs the sweep's steps, where this right is tested",
    # Used only if an account changes while the table is read (tests/proofs/test_streaming.py).
    (
        "AuditFunction",
        "dynamodb:Query",
        "${LedgerTable.Arn}/index/statement",
    ): "the ledger does not change during these audits",
}

AsRole = Callable[[str, str], Any]


@pytest.fixture(scope="module")
def deployed(aws: Callable[[str], Any]) -> Deployed:
    """The deployed template."""
    cloudformation = aws("cloudformation")
    (stack,) = cloudformation.describe_stacks(StackName=STACK_NAME)["Stacks"]
    pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=STACK_NAME)
    resources = [resource for page in pages for resource in page["StackResourceSummaries"]]
    _, partition, _, region, account, _ = stack["StackId"].split(":", 5)
    parameters = {given["ParameterKey"]: given["ParameterValue"] for given in stack["Parameters"]} | {
        "AWS::Partition": partition,
        "AWS::Region": region,
        "AWS::AccountId": account,
        "AWS::StackName": STACK_NAME,
    }
    ids = {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in resources}
    return Deployed(TEMPLATE, parameters, ids)


@pytest.fixture(scope="module")
def as_role(stack: Stack, aws: Callable[[str], Any], deployed: Deployed) -> AsRole:
    """`as_role(function, service)`: a client with a function's role, in a session of another name."""

    @cache
    def keys(function: str) -> dict[str, str]:
        role = aws("lambda").get_function_configuration(FunctionName=deployed.functions[function])["Role"]
        given: dict[str, str] = aws("sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
        return given

    @cache
    def client(function: str, service: str) -> Any:
        given = keys(function)
        session = Session(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], stack.region)
        return session.client(service, endpoint_url=stack.endpoint_url)  # type: ignore[call-overload]

    return client


@pytest.fixture(scope="module")
def calls(deployed: Deployed) -> list[Call]:
    """All AWS calls of the functions in this session."""
    named = os.environ.get("QUITTANCE_STACK")
    recorded = (State((ROOT / named).parent) if named else STATE).calls
    if not recorded.is_file():
        pytest.skip("only the local cloud records calls")
    return read_calls(recorded, deployed.functions)


def assert_denied(call: Callable[..., Any], **arguments: Any) -> None:
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    assert refused.value.response["Error"]["Code"] in {"AccessDenied", "AccessDeniedException"}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_function_may_delete(function: str, as_role: AsRole, deployed: Deployed) -> None:
    dynamodb, s3 = as_role(function, "dynamodb"), as_role(function, "s3")
    for table in (deployed.ids[name] for name in TABLES):
        assert_denied(dynamodb.delete_item, TableName=table, Key=KEY)
        assert_denied(dynamodb.batch_write_item, RequestItems={table: [{"DeleteRequest": {"Key": KEY}}]})
        assert_denied(dynamodb.transact_write_items, TransactItems=[{"Delete": {"TableName": table, "Key": KEY}}])
        assert_denied(dynamodb.delete_table, TableName=table)
    for bucket in (deployed.ids[name] for name in BUCKETS):
        assert_denied(s3.delete_object, Bucket=bucket, Key="outputs/x")
        assert_denied(s3.delete_bucket, Bucket=bucket)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_only_publish_writes_binaries_and_only_sweep_the_log(
    function: str, as_role: AsRole, deployed: Deployed
) -> None:
    s3 = as_role(function, "s3")
    for key in ("artefacts/x", "modules/x") if function != "PublishFunction" else ("health", "x"):
        assert_denied(s3.put_object, Bucket=deployed.ids["BinariesBucket"], Key=key, Body=b"")
    if function != "SweepFunction":
        assert_denied(s3.put_object, Bucket=deployed.ids["LogBucket"], Key="checkpoint", Body=b"")
    for key in ("escrows/x", "x") if function != "ArchiveFunction" else ("x",):
        assert_denied(s3.put_object, Bucket=deployed.ids["ArchiveBucket"], Key=key, Body=b"")


def test_the_publisher_cannot_access_the_ledger(as_role: AsRole, deployed: Deployed) -> None:
    dynamodb, ledger = as_role("PublishFunction", "dynamodb"), deployed.ids["LedgerTable"]
    for call in (dynamodb.get_item, dynamodb.update_item):
        assert_denied(call, TableName=ledger, Key=KEY)
    assert_denied(dynamodb.put_item, TableName=ledger, Item=KEY)
    assert_denied(dynamodb.scan, TableName=ledger)
    assert_denied(dynamodb.batch_get_item, RequestItems={ledger: {"Keys": [KEY]}})
    assert_denied(dynamodb.transact_get_items, TransactItems=[{"Get": {"TableName": ledger, "Key": KEY}}])
    assert_denied(dynamodb.transact_write_items, TransactItems=[{"Put": {"TableName": ledger, "Item": KEY}}])
    for index in ("work", "open", "statement"):
        assert_denied(dynamodb.query, TableName=ledger, IndexName=index, KeyConditionExpression="work = :x",
               ExpressionAttributeValues={":x": {"S": "x"}})  # fmt: skip
    assert "Item" not in dynamodb.get_item(TableName=deployed.ids["RegistryTable"], Key=KEY), "the role works otherwise"


@pytest.mark.parametrize(
    ("function", "own"), [("AgentsFunction", "REP#agt_x"), ("HealthFunction", "ESC#nobody's")]
)  # fmt: skip
def test_agents_and_health_read_no_accounts_or_escrows(
    function: str, own: str, as_role: AsRole, deployed: Deployed
) -> None:
    dynamodb, ledger = as_role(function, "dynamodb"), deployed.ids["LedgerTable"]
    assert "Item" not in dynamodb.get_item(TableName=ledger, Key={"pk": {"S": own}})
    for other in ("ACCT#alice", "ESC#x", "LOG", "REP", f"x{own}"):
        assert_denied(dynamodb.get_item, TableName=ledger, Key={"pk": {"S": other}})


def test_the_channels_function_writes_no_task(as_role: AsRole, deployed: Deployed) -> None:
    dynamodb, ledger = as_role("ChannelsFunction", "dynamodb"), deployed.ids["LedgerTable"]
    for own in ("CHAN#x", "TOPUP#x#y", "ACCT#nobody"):
        assert "Item" not in dynamodb.get_item(TableName=ledger, Key={"pk": {"S": own}}), "the role works otherwise"
    for other in ("ESC#x", "LOG", "IN#alice#d", "SWEPT#x"):
        item = {"pk": {"S": other}}
        assert_denied(dynamodb.put_item, TableName=ledger, Item=item)
        assert_denied(dynamodb.update_item, TableName=ledger, Key=item)
        assert_denied(dynamodb.get_item, TableName=ledger, Key=item)
        put = {"Put": {"TableName": ledger, "Item": item}}
        assert_denied(dynamodb.transact_write_items, TransactItems=[put])
    registry = deployed.ids["RegistryTable"]
    assert_denied(dynamodb.get_item, TableName=registry, Key={"pk": {"S": "AGENT#x"}})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_only_the_listed_functions_sign_with_each_root_key(function: str, as_role: AsRole, deployed: Deployed) -> None:
    kms, may_sign = as_role(function, "kms"), SIGNERS.get(function, set())
    for root in ("ReceiptRoot", "CheckpointRoot", "WebhookRoot", "CardRoot"):
        named = {"KeyId": deployed.ids[root], "MessageType": "RAW", "SigningAlgorithm": "ECDSA_SHA_256"}
        if root in may_sign:
            assert kms.sign(Message=b"x", **named)["Signature"], "the role works otherwise"
        else:
            assert_denied(kms.sign, Message=b"x", **named)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_function_can_request_a_task_on_the_bus(function: str, as_role: AsRole, deployed: Deployed) -> None:
    client, detail = as_role(function, "events"), json.dumps({"user_id": "nobody", "task_id": "t"})
    own = OWN_EVENTS.get(function)
    bus = deployed.ids["EventBus"]

    def entry(source: str, event_type: str) -> dict[str, str]:
        return {"EventBusName": bus, "Source": source, "DetailType": event_type, "Detail": detail}

    task = entry("com.example.shop", "TaskRequested")
    others = [task, entry("quittance", "TaskRequested"), entry("com.example.shop", own or "TaskSettled")]
    for other in others:
        assert_denied(client.put_events, Entries=[other])
        if own:
            assert_denied(client.put_events, Entries=[entry("quittance", own), other])
            assert_denied(client.put_events, Entries=[other, entry("quittance", own)])
    if own:
        assert client.put_events(Entries=[entry("quittance", own)])["FailedEntryCount"] == 0, "the role works otherwise"


def test_every_call_is_allowed_by_the_template(calls: list[Call], deployed: Deployed) -> None:
    wrong = [f"{call.function} calls {call.action} on {call.resource}" for call in violations(deployed.rights(), calls)]
    assert not wrong, "the role in template.yaml does not allow this:\n  " + "\n  ".join(wrong)


def test_every_right_is_used(calls: list[Call], deployed: Deployed, incomplete: str) -> None:
    if incomplete:
        pytest.skip(f"{incomplete}: only the whole suite can tell which rights are unused")
    rights = deployed.rights()
    known = {(right.function, right.action, right.written) for right in rights}
    assert NOT_TESTED.keys() <= known, "no longer in template.yaml: remove it from NOT_TESTED"
    superfluous = [
        f"{right.function}: {right.action} on {right.written}"
        for right in unused_rights(rights, calls)
        if not deployed.used_by_lambda(right) and (right.function, right.action, right.written) not in NOT_TESTED
    ]
    assert not superfluous, (
        "no test uses this right. Remove it from the role in template.yaml, test what needs it, or add it to "
        "NOT_TESTED (tests/e2e/test_privilege.py) with the reason:\n  " + "\n  ".join(superfluous)
    )
