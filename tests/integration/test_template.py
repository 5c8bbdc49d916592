"""What `template.yaml` promises: who may do what, which routes are open, and that code and template name the same."""

import json
import subprocess
import sys
from typing import Any

import pytest

from quittance import tasks
from quittance.config import Settings
from quittance.escrow import State
from quittance.limits import (
    CALL_MS_MAX,
    TIMEOUT_S_SYNC_MAX,
    VERDICT_MS_MAX,
    WEBHOOK_CONNECT_MS_MAX,
    WEBHOOK_MS_MAX,
    WEBHOOK_TRIES_MAX,
    WEBHOOK_WAIT_S_MAX,
    WEBHOOK_WAIT_S_MIN,
)
from quittance.store.registry import AgentState
from tests.support import ROOT

FUNCTIONS = sorted(path.name for path in (ROOT / "functions").iterdir() if path.is_dir())


def resources(template: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: found["Properties"] for name, found in template["Resources"].items() if found["Type"] == kind}


def actions(properties: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for policy in properties.get("Policies", []):
        for statement in policy["Statement"]:
            named = statement["Action"]
            found.update([named] if isinstance(named, str) else named)
    return found


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


def test_roles_hold_apart_who_runs_who_publishes_and_who_pays(template: dict[str, Any]) -> None:
    functions = resources(template, "AWS::Serverless::Function")
    for name, properties in functions.items():
        allowed = actions(properties)
        assert not any("*" in action or "Delete" in action for action in allowed - {"sqs:DeleteMessage"}), name
    execute = functions["ExecuteFunction"]["Policies"][0]["Statement"]
    writes = [statement["Resource"] for statement in execute if "s3:PutObject" in statement["Action"]]
    assert [str(resource) for resource in writes] == ["{'Fn::Sub': '${OutputsBucket.Arn}/outputs/*'}"]
    assert "LedgerTable" not in str(functions["PublishFunction"]["Policies"])
    assert actions(functions["AuthorizerFunction"]) == set()


def test_the_longest_task_fits_into_one_invocation(template: dict[str, Any]) -> None:
    """Agent and two judges share the time that a caller waits; each is loaded, judged and settled at its slowest."""
    runs = 3
    longest_ms = TIMEOUT_S_SYNC_MAX * 1_000 + runs * (tasks._RUN_RESERVE_MS + VERDICT_MS_MAX)
    assert template["Resources"]["ExecuteFunction"]["Properties"]["Timeout"] * 1_000 >= longest_ms + CALL_MS_MAX


def test_settings_are_declared_in_the_template(template: dict[str, Any]) -> None:
    declared = set(template["Globals"]["Function"]["Environment"]["Variables"])
    defaulted = {"TOKEN_ALGORITHMS", "SCRATCH_DIR", "PUBLISH_FUNCTION", "EVENT_BUS", "WEBHOOK_QUEUE_URL"}
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


def test_shallow_health_and_the_authorizer_import_nothing_heavy() -> None:
    heavy = {
        "health": ("pydantic", "botocore.client", "wasmtime", "jwt"),
        "authorizer": ("botocore.client", "wasmtime"),
    }
    for function, modules in heavy.items():
        code = f"import sys, app; found = {modules} & sys.modules.keys(); sys.exit(str(found) if found else None)"
        found = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT / "functions" / function,
            env={"PYTHONPATH": f"{ROOT}/layers/runtime:."},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, f"{function} imports {found.stderr}"


def test_neither_who_tells_nor_who_delivers_can_touch_money(template: dict[str, Any]) -> None:
    functions = resources(template, "AWS::Serverless::Function")
    notify, deliver = functions["NotifyFunction"], functions["WebhookFunction"]
    assert {action for action in actions(notify) if action.startswith("dynamodb:")} == {
        "dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator", "dynamodb:ListStreams",
    }  # fmt: skip
    assert "Table" not in str(deliver["Policies"])
    assert {action.partition(":")[0] for action in actions(deliver)} == {"sqs", "kms"}
    assert actions(notify) >= {"events:PutEvents", "sqs:SendMessage"}


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
    (settled,) = ledger
    assert settled["OldImage"]["state"]["S"] == [State.FUNDED]
    assert {*settled["NewImage"]["state"]["S"]} == {*State} - {State.FUNDED}
    for pattern, state in zip(registry, (AgentState.ACTIVE, AgentState.REJECTED), strict=True):
        assert pattern["NewImage"]["upload_state"]["S"] == [state]
        assert pattern["OldImage"]["upload_state"]["S"] == [{"anything-but": [state]}]
    for name in ("NotifyOfLedger", "NotifyOfRegistry"):
        assert mappings[name]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert mappings[name]["BisectBatchOnFunctionError"]
        assert mappings[name]["DestinationConfig"]["OnFailure"]["Destination"]


def test_webhooks_are_public_unless_the_operator_says_otherwise(template: dict[str, Any]) -> None:
    assert template["Parameters"]["WebhookPrivateTargets"]["Default"] == "false"
    assert not Settings.model_fields["webhook_private_targets"].default
