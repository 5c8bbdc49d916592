"""Tests of `tests/roles.py`: it reads the roles in a template and compares them with recorded calls."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.roles import SOURCE, Call, Deployed, Right, read_calls, unused_rights, violations

TABLE = "arn:aws:dynamodb:eu-central-1:123456789012:table/stack-Table-1"
BUCKET = "arn:aws:s3:::stack-bucket-2"
QUEUE = "arn:aws:sqs:eu-central-1:123456789012:stack-Queue-3"
KEY = "arn:aws:kms:eu-central-1:123456789012:key/4"


def deployed(*statements: dict[str, Any], former: str = "") -> Deployed:
    kinds = {"Table": "DynamoDB::Table", "Bucket": "S3::Bucket", "Queue": "SQS::Queue", "Key": "KMS::Key"}
    function = {"Type": "AWS::Serverless::Function", "Properties": {"Policies": [{"Statement": list(statements)}]}}
    resources: dict[str, Any] = {name: {"Type": f"AWS::{kind}"} for name, kind in kinds.items()}
    template = {
        "Conditions": {"HasFormer": {"Fn::Not": [{"Fn::Equals": [{"Ref": "Former"}, ""]}]}},
        "Resources": {**resources, "Worker": function, "Idle": {"Type": function["Type"], "Properties": {}}},
    }
    parameters = {
        "Former": former,
        "AWS::Partition": "aws",
        "AWS::Region": "eu-central-1",
        "AWS::AccountId": "123456789012",
    }
    ids = {
        "Table": "stack-Table-1",
        "Bucket": "stack-bucket-2",
        "Queue": "https://sqs.eu-central-1.amazonaws.com/123456789012/stack-Queue-3",
        "Key": "4",
        "Worker": "stack-Worker-5",
        "Idle": "stack-Idle-6",
    }
    return Deployed(template, parameters, ids)


def allow(action: Any, resource: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource}


def call(action: str, resource: str, *, function: str = "Worker", allowed: bool = True) -> Call:
    return Call(function, action, resource, allowed)


def patterns(found: Deployed) -> list[str]:
    return [right.resource for right in found.rights()]


def test_resources_are_resolved_as_cloudformation_does() -> None:
    written = [
        {"Fn::GetAtt": ["Table", "Arn"]},
        {"Fn::GetAtt": "Queue.Arn"},
        {"Fn::Sub": "${Table.Arn}/index/*"},
        {"Fn::Sub": "arn:${AWS::Partition}:s3:::${Bucket}/x"},
    ]
    found = deployed(allow(["a:One", "a:Two"], written))
    assert patterns(found) == [
        resource for one in (TABLE, QUEUE, f"{TABLE}/index/*", f"{BUCKET}/x") for resource in [one] * 2
    ]
    assert {right.action for right in found.rights()} == {"a:One", "a:Two"}
    assert [right.written for right in found.rights()][::2] == [
        "Table.Arn", "Queue.Arn", "${Table.Arn}/index/*", "arn:${AWS::Partition}:s3:::${Bucket}/x",
    ]  # fmt: skip


def test_conditions_are_evaluated_with_the_parameters() -> None:
    keys = {
        "Fn::If": [
            "HasFormer",
            {"Fn::Split": [",", {"Fn::Sub": "${Key.Arn},${Former}"}]},
            {"Fn::GetAtt": ["Key", "Arn"]},
        ]
    }
    assert patterns(deployed(allow("kms:Sign", keys))) == [KEY]
    assert patterns(deployed(allow("kms:Sign", keys), former="arn:old")) == [KEY, "arn:old"]


def test_join_omits_elements_without_a_value() -> None:
    former = {"Fn::If": ["HasFormer", {"Ref": "Former"}, {"Ref": "AWS::NoValue"}]}
    keys = {"Fn::Split": [",", {"Fn::Join": [",", [{"Fn::GetAtt": ["Key", "Arn"]}, former]]}]}
    assert patterns(deployed(allow("kms:GetPublicKey", keys))) == [KEY]
    assert patterns(deployed(allow("kms:GetPublicKey", keys), former="arn:a,arn:b")) == [KEY, "arn:a", "arn:b"]


def test_permissions_of_event_sources_are_recognised() -> None:
    queue, stream = {"Fn::GetAtt": ["Queue", "Arn"]}, {"Fn::GetAtt": ["Table", "StreamArn"]}
    found = deployed(
        allow(["sqs:ReceiveMessage", "sqs:SendMessage"], queue),
        allow("dynamodb:GetRecords", stream),
        allow("dynamodb:ListStreams", "*"),
        allow(["sqs:DeleteMessage", "sqs:SendMessage"], "arn:other"),
    )
    assert not any(map(found.used_by_lambda, found.rights()))
    aside = {"OnFailure": {"Destination": "arn:other"}}
    for name, function, source in (("Due", "Worker", queue), ("Changed", "Worker.Alias", stream)):
        properties = {"FunctionName": {"Ref": function}, "EventSourceArn": source, "DestinationConfig": aside}
        found.template["Resources"][name] = {"Type": SOURCE, "Properties": properties}
    feeding = [(right.action, right.resource) for right in found.rights() if found.used_by_lambda(right)]
    assert [action for action, _ in feeding] == [
        "sqs:ReceiveMessage", "dynamodb:GetRecords", "dynamodb:ListStreams", "sqs:SendMessage",
    ]  # fmt: skip
    assert feeding[-1][1] == "arn:other", "failed messages go to that queue, not to the one that is read"


def test_alias_resolves_to_the_published_alias() -> None:
    found = deployed(allow("lambda:InvokeFunction", {"Ref": "Idle.Alias"}))
    found.template["Globals"] = {"Function": {"AutoPublishAlias": "live"}}
    named = Deployed(found.template, found.parameters, {**found.ids, "IdleAliaslive": "arn:alias"})
    assert patterns(named) == ["arn:alias"]


def test_unsupported_statements_raise_an_error() -> None:
    table = {"Fn::GetAtt": ["Table", "Arn"]}
    for statement in (
        {**allow("a:One", table), "Effect": "Deny"},
        {"Effect": "Allow", "NotAction": "a:One", "Resource": table},
        allow("a:One", {"Fn::GetAtt": ["Queue", "QueueName"]}),
        allow("a:One", {"Fn::ImportValue": "x"}),
    ):
        with pytest.raises(ValueError, match="does not support"):
            deployed(statement).rights()
    ready_made = deployed()
    ready_made.template["Resources"]["Worker"]["Properties"]["Policies"] = ["AmazonS3FullAccess"]
    with pytest.raises(ValueError, match="Worker: write its rights"):
        ready_made.rights()


def test_calls_that_no_role_allows_are_reported() -> None:
    rights = deployed(
        allow("s3:GetObject", [{"Fn::Sub": "${Bucket.Arn}/out?uts/*"}, {"Fn::Sub": "${Bucket.Arn}/one.p"}]),
    ).rights()
    lawful = call("s3:GetObject", f"{BUCKET}/outputs/a/b")
    others = [
        call("s3:GetObject", f"{BUCKET}/outputs"),
        call("s3:GetObject", f"{BUCKET}x/outputs/a"),
        call("s3:GetObject", f"{BUCKET}/one.p/more"),
        call("s3:GetObject", f"{BUCKET}/one-p"),
        call("s3:PutObject", f"{BUCKET}/outputs/a"),
        call("s3:GetObject", f"{BUCKET}/outputs/a", function="Idle"),
        call("s3:GetObject", f"{BUCKET}/outputs/a", allowed=False),
    ]
    assert violations(rights, [lawful, *others]) == others


def test_permissions_that_no_call_used_are_reported() -> None:
    rights = deployed(
        allow(["dynamodb:GetItem", "dynamodb:PutItem"], {"Fn::GetAtt": ["Table", "Arn"]}),
        allow("dynamodb:Query", [{"Fn::Sub": "${Table.Arn}/index/a"}, {"Fn::Sub": "${Table.Arn}/index/b"}]),
    ).rights()
    calls = [
        call("dynamodb:GetItem", TABLE),
        call("dynamodb:PutItem", TABLE, function="Idle"),
        call("dynamodb:Query", f"{TABLE}/index/b"),
    ]
    assert unused_rights(rights, calls) == [
        Right("Worker", "dynamodb:PutItem", "Table.Arn", TABLE),
        Right("Worker", "dynamodb:Query", "${Table.Arn}/index/a", f"{TABLE}/index/a"),
    ]


def test_calls_are_matched_to_functions_by_session_name(tmp_path: Path) -> None:
    callers = ["stack-Role/stack-Worker-5", "stack-Role/test", "stack-Worker-5/other"]
    told = [
        {"caller": f"arn:aws:sts::1:assumed-role/{caller}", "action": "a:One", "resource": "*", "allowed": True}
        for caller in callers
    ]
    (tmp_path / "calls").write_text("".join(f"{json.dumps(line)}\n" for line in told))
    assert read_calls(tmp_path / "calls", deployed().functions) == [call("a:One", "*")]
