"""What `template.yaml` promises: who may do what, which routes are open, and that code and template name the same."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from quittance import tasks
from quittance.config import Settings
from quittance.escrow import State
from quittance.identity import is_account_id
from quittance.journal import PayoutState
from quittance.limits import (
    CALL_MS_MAX,
    SLOTS_MAX,
    TIMEOUT_S_SYNC_MAX,
    VERDICT_MS_MAX,
    WEBHOOK_CONNECT_MS_MAX,
    WEBHOOK_MS_MAX,
    WEBHOOK_TRIES_MAX,
    WEBHOOK_WAIT_S_MAX,
    WEBHOOK_WAIT_S_MIN,
)
from quittance.store.registry import AgentState
from tests.roles import statements
from tests.support import ROOT

CONSUME = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ChangeMessageVisibility"]
FUNCTIONS = sorted(path.name for path in (ROOT / "functions").iterdir() if path.is_dir())


def resources(template: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: found["Properties"] for name, found in template["Resources"].items() if found["Type"] == kind}


def allowing(node: Any) -> Iterator[dict[str, Any]]:
    """Every statement that allows something, wherever it is in a part of the template."""
    if isinstance(node, dict) and node.get("Effect") == "Allow":
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from allowing(part)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def holders(template: dict[str, Any], resource: str, *actions: str) -> set[str]:
    """The functions that may do one of these to a resource or a part of it; without actions, anything."""
    return {
        function
        for function, statement in statements(template)
        if resource in str(statement["Resource"]) and (not actions or {*actions} & {*listed(statement["Action"])})
    }


def test_every_folder_is_a_function_and_every_function_a_folder(template: dict[str, Any]) -> None:
    functions = resources(template, "AWS::Serverless::Function")
    assert sorted(properties["CodeUri"].removeprefix("functions/") for properties in functions.values()) == FUNCTIONS


def test_every_route_needs_a_token_but_health_keys_and_documentation(template: dict[str, Any]) -> None:
    api = template["Resources"]["Api"]["Properties"]
    assert api["Auth"]["DefaultAuthorizer"] == "Jwt"
    open_routes = {
        event["Properties"]["Path"].removeprefix("/api/v1/economic")
        for properties in resources(template, "AWS::Serverless::Function").values()
        for event in properties.get("Events", {}).values()
        if event["Type"] == "Api" and event["Properties"].get("Auth", {}).get("Authorizer") == "NONE"
    }
    assert open_routes == {
        "/health", "/.well-known/jwks.json", "/openapi.json", "/docs", "/log/checkpoint",
        "/log/tile/{level}/{index}/{width}",
    }  # fmt: skip


def test_the_platforms_account_can_be_any_account_and_no_other(template: dict[str, Any]) -> None:
    pattern = re.compile(template["Parameters"]["PlatformAccount"]["AllowedPattern"])
    for name in ("quittance:platform", "auth0|op", "a", "a" * 255, "...", "mean", ".me"):
        assert pattern.fullmatch(name), name
        assert is_account_id(name), name
    for name in ("", "me", ".", "..", "a#b", "a b", "é", "a" * 256):
        assert not pattern.fullmatch(name), name


# Actions for which AWS knows no resource to name.
UNSCOPED = re.compile(
    r"dynamodb:ListStreams|xray:Put\w+|logs:\w+(LogDelivery|LogDeliveries|ResourcePolicy|ResourcePolicies|LogGroups)"
)
# Statements that allow all actions or all resources: where, and why that must be.
BROAD = {"ReceiptKey": "a key's policy speaks of the key alone, and makes the account's own policies hold for it"}


def test_no_role_allows_more_than_it_names(template: dict[str, Any]) -> None:
    for name, resource in template["Resources"].items():
        for statement in allowing(resource):
            if name in BROAD or statement.get("Action") == "sts:AssumeRole":
                continue
            assert {"Action", "Resource"} <= statement.keys(), name
            assert not [action for action in listed(statement["Action"]) if "*" in action], name
            unscoped = all(UNSCOPED.fullmatch(action) for action in listed(statement["Action"]))
            assert unscoped or "*" not in listed(statement["Resource"]), name


def test_no_role_deletes_anything_or_changes_a_policy(template: dict[str, Any]) -> None:
    """Nothing of the ledger or the log is ever deleted; a version of an object that is overwritten stays."""
    changing = re.compile(
        r"(?!s3:GetObjectVersion$)(dynamodb|s3|kms):.*(Delete|Policy|Batch(Write|Execute)|PartiQL|Restore|Disable|Version)|iam:"
    )
    for name, resource in template["Resources"].items():
        if name not in BROAD:
            for statement in allowing(resource):
                assert not [action for action in listed(statement["Action"]) if changing.match(action)], name


NOTE_OWNERS = {"AccountsFunction", "SweepFunction"}


def test_roles_hold_apart_who_runs_who_publishes_and_who_pays(template: dict[str, Any]) -> None:
    writes = ("dynamodb:PutItem", "dynamodb:UpdateItem")
    assert holders(template, "BinariesBucket", "s3:PutObject") == {"PublishFunction"}
    assert holders(template, "LogBucket", "s3:PutObject") == {"SweepFunction"}
    assert holders(template, "RegistryTable", *writes) == {
        "AgentsFunction",
        "PublishFunction",
        "OperationsFunction",
        *NOTE_OWNERS,
    }
    assert holders(template, "LedgerTable", "dynamodb:Scan") == {"AuditFunction"}
    assert not holders(template, "LedgerTable", *writes) & {"AgentsFunction", "AuditFunction", "HealthFunction"}
    assert not holders(template, "LedgerTable") & {"PublicFunction", "PublishFunction", "OperationsFunction"}
    assert not holders(template, "") & {"AuthorizerFunction"}


def test_who_moves_bonds_may_write_owners_and_no_agents(template: dict[str, Any]) -> None:
    """Whoever holds money must not be able to change what runs."""
    for function in NOTE_OWNERS:
        (noted,) = [
            statement
            for name, statement in statements(template)
            if name == function and statement["Resource"] == {"Fn::GetAtt": ["RegistryTable", "Arn"]}
        ]
        assert noted["Condition"] == {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": ["OWNER#*"]}}


def test_conditions_are_those_that_the_local_cloud_enforces_too(template: dict[str, Any]) -> None:
    """`dynamodb:LeadingKeys`, where a request names one key: local/launch.py tells it, tests/e2e tries it."""
    for function, statement in statements(template):
        if "Condition" in statement:
            keys = [key for test in statement["Condition"].values() for key in test]
            assert keys == ["dynamodb:LeadingKeys"], function
            assert {*listed(statement["Action"])} <= {"dynamodb:GetItem", "dynamodb:UpdateItem"}, function


def actions(template: dict[str, Any], function: str) -> set[str]:
    return {action for name, stated in statements(template) if name == function for action in listed(stated["Action"])}


def test_whoever_works_on_the_queue_may_do_what_execute_may_and_read_the_queue(template: dict[str, Any]) -> None:
    functions = resources(template, "AWS::Serverless::Function")
    execute = functions["ExecuteFunction"]["Policies"][0]["Statement"]
    work = functions["WorkFunction"]["Policies"][0]["Statement"]
    assert [statement["Action"] for statement in execute if statement not in work] == ["s3:PutObject"]
    assert [statement for statement in work if statement not in execute] == [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": {"Fn::Sub": "${OutputsBucket.Arn}/inputs/*"}},
        {"Effect": "Allow", "Action": CONSUME, "Resource": {"Fn::GetAtt": ["TaskQueue", "Arn"]}},
    ]


def test_the_longest_task_fits_into_one_invocation(template: dict[str, Any]) -> None:
    """Agent and two judges share the time that a caller waits; each is loaded, judged and settled at its slowest."""
    runs = 3
    longest_ms = TIMEOUT_S_SYNC_MAX * 1_000 + runs * (tasks._RUN_RESERVE_MS + VERDICT_MS_MAX)
    assert template["Resources"]["ExecuteFunction"]["Properties"]["Timeout"] * 1_000 >= longest_ms + CALL_MS_MAX


def test_settings_are_declared_in_the_template(template: dict[str, Any]) -> None:
    declared = set(template["Globals"]["Function"]["Environment"]["Variables"])
    defaulted = {"TOKEN_ALGORITHMS", "SCRATCH_DIR", "PUBLISH_FUNCTION", "TASK_QUEUE_URL", "DEAD_LETTERS_URL"}
    defaulted |= {"EVENT_BUS", "WEBHOOK_QUEUE_URL"}
    assert {name.upper() for name in Settings.model_fields} - defaulted <= declared


@pytest.mark.parametrize("table", ["LedgerTable", "RegistryTable"])
def test_tables_are_protected(template: dict[str, Any], table: str) -> None:
    resource = template["Resources"][table]
    properties = resource["Properties"]
    assert properties["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert properties["SSESpecification"] == {"SSEEnabled": True}
    assert resource["DeletionPolicy"] == "RetainExceptOnCreate"
    assert "TimeToLiveSpecification" not in properties, "money has no time to live"


@pytest.mark.parametrize("bucket", ["UploadsBucket", "BinariesBucket", "OutputsBucket"])
def test_buckets_are_private_and_versioned(template: dict[str, Any], bucket: str) -> None:
    properties = template["Resources"][bucket]["Properties"]
    assert set(properties["PublicAccessBlockConfiguration"].values()) == {True}
    assert properties["VersioningConfiguration"] == {"Status": "Enabled"}


def test_the_committed_description_is_what_the_code_says() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "local.openapi", "--check"], cwd=ROOT, env={"PYTHONPATH": "layers/runtime"}, check=False
    )
    assert checked.returncode == 0, "run make openapi"


# Versions and snapshots.


def test_every_function_has_versions_of_all_that_it_is(template: dict[str, Any]) -> None:
    assert template["Globals"]["Function"]["AutoPublishAlias"] == "live"
    for name, function in resources(template, "AWS::Serverless::Function").items():
        assert function["AutoPublishAliasAllProperties"] is True, f"{name}: a new environment must be a new version"


def test_functions_that_somebody_waits_for_start_from_snapshots(template: dict[str, Any]) -> None:
    snapped = {
        name: function["SnapStart"]
        for name, function in resources(template, "AWS::Serverless::Function").items()
        if "SnapStart" in function
    }
    assert snapped == {
        f"{name}Function": {"ApplyOn": {"Ref": "SnapStart"}}
        for name in ("Execute", "Result", "Agents", "Accounts", "Authorizer", "Public")
    }
    assert template["Parameters"]["SnapStart"]["Default"] == "PublishedVersions"


def test_neither_who_tells_nor_who_delivers_can_touch_money(template: dict[str, Any]) -> None:
    deliver = resources(template, "AWS::Serverless::Function")["WebhookFunction"]
    assert {action for action in actions(template, "NotifyFunction") if action.startswith("dynamodb:")} == {
        "dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator", "dynamodb:ListStreams",
    }  # fmt: skip
    assert "Table" not in str(deliver["Policies"])
    assert {action.partition(":")[0] for action in actions(template, "WebhookFunction")} == {"sqs", "kms"}
    assert actions(template, "NotifyFunction") >= {"events:PutEvents", "sqs:SendMessage"}


def test_a_webhook_is_tried_as_often_as_the_code_counts(template: dict[str, Any]) -> None:
    queue, failures = (template["Resources"][name]["Properties"] for name in ("WebhookQueue", "WebhookFailures"))
    assert queue["RedrivePolicy"]["maxReceiveCount"] == WEBHOOK_TRIES_MAX
    waits_s = sum(min(WEBHOOK_WAIT_S_MAX, WEBHOOK_WAIT_S_MIN * 2**number) for number in range(WEBHOOK_TRIES_MAX))
    assert waits_s < queue["MessageRetentionPeriod"] < failures["MessageRetentionPeriod"]
    function = template["Resources"]["WebhookFunction"]["Properties"]
    assert queue["VisibilityTimeout"] >= 6 * function["Timeout"]
    assert function["Timeout"] * 1_000 > WEBHOOK_CONNECT_MS_MAX + WEBHOOK_MS_MAX + 10_000, "and a slow resolver"


def test_filters_let_through_what_the_code_tells_of_and_nothing_else(template: dict[str, Any]) -> None:
    mappings = resources(template, "AWS::Lambda::EventSourceMapping")
    ledger, registry = (
        [json.loads(one["Pattern"])["dynamodb"] for one in mappings[name]["FilterCriteria"]["Filters"]]
        for name in ("NotifyOfLedger", "NotifyOfRegistry")
    )
    settled, *payouts = ledger
    assert [pattern["NewImage"]["payout"]["S"] for pattern in payouts] == [
        [PayoutState.REQUESTED], [PayoutState.PAID, PayoutState.FAILED],
    ]  # fmt: skip
    assert settled["OldImage"]["state"]["S"] == [State.FUNDED]
    assert {*settled["NewImage"]["state"]["S"]} == {*State} - {State.FUNDED}
    for pattern, state in zip(registry, (AgentState.ACTIVE, AgentState.REJECTED, AgentState.FAILED), strict=True):
        assert pattern["NewImage"]["upload_state"]["S"] == [state]
        assert pattern["OldImage"]["upload_state"]["S"] == [{"anything-but": [state]}]
    for name in ("NotifyOfLedger", "NotifyOfRegistry"):
        assert mappings[name]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert mappings[name]["BisectBatchOnFunctionError"]
        assert mappings[name]["DestinationConfig"]["OnFailure"]["Destination"]


def test_webhooks_are_public_unless_the_operator_says_otherwise(template: dict[str, Any]) -> None:
    assert template["Parameters"]["WebhookLoopbackTargets"]["Default"] == "false"
    assert not Settings.model_fields["webhook_loopback_targets"].default


# Limits at the door.


def test_the_stage_and_the_executor_are_bounded(template: dict[str, Any]) -> None:
    (every,) = template["Resources"]["Api"]["Properties"]["MethodSettings"]
    assert (every["ResourcePath"], every["HttpMethod"]) == ("/*", "*")
    assert every["ThrottlingRateLimit"] == {"Ref": "ThrottleRate"}
    assert every["ThrottlingBurstLimit"] == {"Ref": "ThrottleBurst"}
    for name in ("ThrottleRate", "ThrottleBurst"):
        assert template["Parameters"][name]["Default"] > 0
    reserved = template["Resources"]["ExecuteFunction"]["Properties"]["ReservedConcurrentExecutions"]
    assert reserved == {"Fn::If": ["HasExecuteConcurrency", {"Ref": "ExecuteConcurrency"}, {"Ref": "AWS::NoValue"}]}


@pytest.mark.parametrize("name", ["Execute", "Publish", "Sweep", "Audit", "Authorizer"])
def test_concurrency_is_reserved_only_where_the_operator_asks(template: dict[str, Any], name: str) -> None:
    """New AWS accounts can reserve none, and a reservation of 0 would stop the function."""
    parameter = template["Parameters"][f"{name}Concurrency"]
    assert (parameter["Type"], parameter["Default"], parameter["MinValue"]) == ("Number", 0, 0)
    condition = {"Fn::Not": [{"Fn::Equals": [{"Ref": f"{name}Concurrency"}, 0]}]}
    assert template["Conditions"][f"Has{name}Concurrency"] == condition
    reserved = template["Resources"][f"{name}Function"]["Properties"]["ReservedConcurrentExecutions"]
    asked, none = {"Ref": f"{name}Concurrency"}, {"Ref": "AWS::NoValue"}
    assert reserved == {"Fn::If": [f"Has{name}Concurrency", asked, none]}


def test_one_account_cannot_take_the_whole_queue(template: dict[str, Any]) -> None:
    of_one, of_all = (template["Parameters"][f"{name}Concurrency"] for name in ("Account", "Work"))
    assert 0 < of_one["Default"] <= of_all["Default"] // 2
    assert (of_one["MinValue"], of_one["MaxValue"]) == (0, SLOTS_MAX)
    declared = template["Globals"]["Function"]["Environment"]["Variables"]["ACCOUNT_CONCURRENCY"]
    assert declared == {"Ref": "AccountConcurrency"}


def test_a_request_that_the_gateway_refuses_is_told_so_in_our_words(template: dict[str, Any]) -> None:
    refusals = template["Resources"]["Api"]["Properties"]["GatewayResponses"]
    for kind, status in (("REQUEST_TOO_LARGE", 413), ("THROTTLED", 429)):
        assert refusals[kind]["StatusCode"] == status
        assert json.loads(refusals[kind]["ResponseTemplates"]["application/json"])["status"] == status
    assert "StageArn" in template["Outputs"], "what a firewall's rules are attached to"


def test_no_browser_sniffs_what_the_gateway_answers(template: dict[str, Any]) -> None:
    refusals = template["Resources"]["Api"]["Properties"]["GatewayResponses"]
    assert {"DEFAULT_4XX", "DEFAULT_5XX"} <= refusals.keys(), "those that are not named are like these"
    for kind, refusal in refusals.items():
        assert refusal["ResponseParameters"]["Headers"]["X-Content-Type-Options"] == "'nosniff'", kind
