"""SAM's expansion of template.yaml with guarded rollouts. `make check` and the local cloud use only the default."""

import json
import re
import subprocess
from copy import deepcopy
from typing import Any

import pytest

from local import release, venvs
from local.paths import ROOT
from tests.template import template

GUARD = '  GuardedRollout:\n    <<: [*switch, {Default: "false"}]\n'
TRANSFORM = """
import json, logging, sys
from types import SimpleNamespace
from samtranslator.translator.transform import transform
logging.disable()
parameters = {"GuardedRollout": "true"}
print(json.dumps(transform(json.load(sys.stdin), parameters, SimpleNamespace(load=dict))["Resources"]))
"""
FUNCTIONS = sorted(path.name for path in (ROOT / "functions").iterdir() if path.is_dir())


def built() -> dict[str, Any]:
    """The template as `sam package` leaves it."""
    source = deepcopy(template())
    for resource in source["Resources"].values():
        for uri in {"CodeUri", "ContentUri", "DefinitionUri"} & resource.get("Properties", {}).keys():
            resource["Properties"][uri] = "s3://bucket/built.zip"
    return source


def translated(source: dict[str, Any]) -> dict[str, Any]:
    """Return CloudFormation's resources. The translator is pinned in the local cloud's environment and runs there."""
    translator = [venvs.ensure("cloud") / "python", "-c", TRANSFORM]
    env = {"AWS_DEFAULT_REGION": "eu-central-1"}
    done = subprocess.run(translator, input=json.dumps(source), env=env, stdout=subprocess.PIPE, text=True, check=True)
    resources: dict[str, Any] = json.loads(done.stdout)
    return resources


@pytest.fixture(scope="module")
def guarded() -> dict[str, Any]:
    """The resources of guarded rollouts."""
    return translated(built())


def of_type(guarded: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {name: found for name, found in guarded.items() if found["Type"] == kind}


def test_functions_are_called_only_by_their_alias(guarded: dict[str, Any]) -> None:
    aliases = {f"{name}Aliaslive" for name in of_type(guarded, "AWS::Lambda::Function")}
    assert aliases == of_type(guarded, "AWS::Lambda::Alias").keys()
    callers = of_type(guarded, "AWS::Lambda::Permission") | of_type(guarded, "AWS::Lambda::EventSourceMapping")
    permitted = [found["Properties"]["FunctionName"] for found in callers.values()]
    # Permitted by the roles of the workflows and of the sweep.
    by_role = {f"{name}FunctionAliaslive" for name in ("Plan", "Execute", "Drain", "Audit")}
    assert {name["Ref"] for name in permitted} | by_role == aliases
    for name, rule in of_type(guarded, "AWS::Events::Rule").items():
        (target,) = rule["Properties"]["Targets"]
        starts_a_workflow = name in {"TaskRequested", "AuditWorkflowEveryDay"}
        assert starts_a_workflow or target["Arn"]["Ref"] in aliases
    (notified,) = guarded["UploadsBucket"]["Properties"]["NotificationConfiguration"]["LambdaConfigurations"]
    assert notified["Function"]["Ref"] in aliases
    body = json.dumps(guarded["Api"]["Properties"]["Body"])
    invoked = set(re.findall(r"/functions/\$\{(\w+)\}/invocations", body))
    assert invoked - aliases == {"__FunctionArn__"}, "only the authorizer's ARN may be another"
    assert '{"__FunctionArn__": {"Fn::Sub": "${AuthorizerFunction.Arn}:live"}}' in body
    execute = guarded["ExecuteFunction"]["Properties"]["Environment"]["Variables"]
    assert execute["PUBLISH_FUNCTION"] == {"Ref": "PublishFunctionAliaslive"}
    sweep = guarded["SweepFunction"]["Properties"]["Environment"]["Variables"]
    assert sweep["DRAIN_FUNCTION"] == {"Ref": "DrainFunctionAliaslive"}


def test_alarms_roll_back_a_guarded_rollout(guarded: dict[str, Any]) -> None:
    groups = of_type(guarded, "AWS::CodeDeploy::DeploymentGroup")
    assert len(groups) == len(FUNCTIONS)
    for group in groups.values():
        alarms = group["Properties"]["AlarmConfiguration"]
        assert alarms["Enabled"] is True
        assert [alarm["Name"] for alarm in alarms["Alarms"]] == [
            {"Fn::If": ["IsGuarded", {"Ref": "ReleaseErrorsAlarm"}, {"Ref": "AWS::NoValue"}]},
            {"Fn::If": ["IsGuarded", {"Ref": "ReleaseErrorsBehindAlarm"}, {"Ref": "AWS::NoValue"}]},
            {"Fn::If": ["IsGuarded", {"Ref": "ReleaseErrorsScheduledAlarm"}, {"Ref": "AWS::NoValue"}]},
            {"Ref": "ApiErrorsAlarm"}, {"Ref": "PlatformFaultsAlarm"}, {"Ref": "AuditAlarm"},
        ]  # fmt: skip
        assert "DEPLOYMENT_STOP_ON_ALARM" in group["Properties"]["AutoRollbackConfiguration"]["Events"]
        assert "Canary10Percent5Minutes" in json.dumps(group["Properties"]["DeploymentConfigName"])
    for alias in of_type(guarded, "AWS::Lambda::Alias").values():
        assert alias["UpdatePolicy"]["CodeDeployLambdaAliasUpdate"]["DeploymentGroupName"]["Ref"] in groups
    names = ("ReleaseErrorsAlarm", "ReleaseErrorsBehindAlarm", "ReleaseErrorsScheduledAlarm")
    parts = [guarded[name]["Properties"]["Metrics"][1:] for name in names]
    assert max(map(len, parts)) < 10, "one alarm can add up at most ten metrics"
    watched = [metric for part in parts for metric in part]
    assert sorted(metric["Id"] for metric in watched) == sorted(set(FUNCTIONS) - {"authorizer"})


def test_guarded_template_passes_cfn_lint(tmp_path) -> None:
    """`make check` uses only the default parameters."""
    text = (ROOT / "template.yaml").read_text()
    assert text.count(GUARD) == 1
    (tmp_path / "template.yaml").write_text(text.replace(GUARD, GUARD.replace("false", "true")))
    checked = subprocess.run(
        [venvs.ensure("dev") / "cfn-lint", tmp_path / "template.yaml"], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, "")


def versions(layer: str, named: str = "layer-0000000000000000", code: str = "") -> set[str]:
    """The logical ids of the functions' versions, for these contents of the layer and of `execute`."""
    source = built()
    source["Resources"]["RuntimeLayer"]["Properties"]["ContentUri"] = f"s3://bucket/{layer}.zip"
    source["Resources"]["ExecuteFunction"]["Properties"]["CodeUri"] = f"s3://bucket/execute{code}.zip"
    source["Globals"]["Function"]["Environment"]["Variables"]["RELEASE"] = named
    return set(of_type(translated(source), "AWS::Lambda::Version"))


def test_a_changed_layer_publishes_every_function() -> None:
    """An alias keeps the version, and with it the layer, that it has until a new version is published."""
    before = versions("one", release.digest())
    changed = versions("two", "layer-1111111111111111")
    assert len(before) == len(FUNCTIONS)
    assert not before & changed
    assert len(before - versions("one", release.digest(), code="-changed")) == 1


def test_sam_does_not_see_that_a_layer_has_changed() -> None:
    """Why the template names the layer's digest: without it, callers would keep the old code."""
    assert versions("one") == versions("two")
