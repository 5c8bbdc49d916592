"""What `template.yaml` promises: who may do what, which routes are open, and that code and template name the same."""

import subprocess
import sys
from typing import Any

import pytest

from quittance import tasks
from quittance.config import Settings
from quittance.limits import CALL_MS_MAX, TIMEOUT_S_SYNC_MAX, VERDICT_MS_MAX
from tests.support import ROOT

CONSUME = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ChangeMessageVisibility"]
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
        deletes = {action for action in allowed if "Delete" in action} - {"sqs:DeleteMessage"}
        assert not deletes | {action for action in allowed if "*" in action}, name
    execute = functions["ExecuteFunction"]["Policies"][0]["Statement"]
    writes = [statement["Resource"] for statement in execute if "s3:PutObject" in statement["Action"]]
    assert writes == [{"Fn::Sub": f"${{OutputsBucket.Arn}}/{folder}/*"} for folder in ("outputs", "inputs")]
    assert {action for action in actions(functions["ExecuteFunction"]) if action.startswith("sqs:")} == {
        "sqs:SendMessage"
    }
    work = functions["WorkFunction"]["Policies"][0]["Statement"]
    shared = [statement for statement in execute if statement in work]
    ours = [statement for statement in work if statement not in execute]
    assert [statement["Action"] for statement in execute if statement not in shared] == [
        "s3:PutObject",
        "sqs:SendMessage",
    ]
    assert ours == [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": {"Fn::Sub": "${OutputsBucket.Arn}/inputs/*"}},
        {"Effect": "Allow", "Action": CONSUME, "Resource": {"Fn::GetAtt": ["TaskQueue", "Arn"]}},
    ]
    assert "LedgerTable" not in str(functions["PublishFunction"]["Policies"])
    assert actions(functions["AuthorizerFunction"]) == set()


def test_the_longest_task_fits_into_one_invocation(template: dict[str, Any]) -> None:
    """Agent and two judges share the time that a caller waits; each is loaded, judged and settled at its slowest."""
    runs = 3
    longest_ms = TIMEOUT_S_SYNC_MAX * 1_000 + runs * (tasks._RUN_RESERVE_MS + VERDICT_MS_MAX)
    assert template["Resources"]["ExecuteFunction"]["Properties"]["Timeout"] * 1_000 >= longest_ms + CALL_MS_MAX


def test_settings_are_declared_in_the_template(template: dict[str, Any]) -> None:
    declared = set(template["Globals"]["Function"]["Environment"]["Variables"])
    defaulted = {"TOKEN_ALGORITHMS", "SCRATCH_DIR", "PUBLISH_FUNCTION", "TASK_QUEUE_URL", "DEAD_LETTERS_URL"}
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
