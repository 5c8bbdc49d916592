"""What `template.yaml` promises: who may do what, which routes are open, and that code and template name the same."""

import json
import subprocess
import sys
from typing import Any

import pytest

from quittance import tasks
from quittance.config import Settings
from quittance.limits import CALL_MS_MAX, TIMEOUT_S_SYNC_MAX, VERDICT_MS_MAX
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
        assert not any("*" in action or "Delete" in action for action in allowed), name
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
    defaulted = {"TOKEN_ALGORITHMS", "SCRATCH_DIR", "PUBLISH_FUNCTION"}
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


def test_a_request_that_the_gateway_refuses_is_told_so_in_our_words(template: dict[str, Any]) -> None:
    refusals = template["Resources"]["Api"]["Properties"]["GatewayResponses"]
    for kind, status in (("REQUEST_TOO_LARGE", 413), ("THROTTLED", 429)):
        assert refusals[kind]["StatusCode"] == status
        assert json.loads(refusals[kind]["ResponseTemplates"]["application/json"])["status"] == status
    assert "StageArn" in template["Outputs"], "what a firewall's rules are attached to"
