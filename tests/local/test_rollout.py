"""SAM's expansion of template.yaml with guarded rollouts. `make check` and the local cloud use only the default."""

import json
import re
import subprocess
from copy import deepcopy
from typing import Any

import pytest

from local import venvs
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


@pytest.fixture(scope="module")
def guarded() -> dict[str, Any]:
    """Return CloudFormation's resources. The translator is pinned in the local cloud's environment and runs there."""
    source = deepcopy(template())
    for resource in source["Resources"].values():
        for uri in {"CodeUri", "ContentUri", "DefinitionUri"} & resource.get("Properties", {}).keys():
            resource["Properties"][uri] = "s3://bucket/built.zip"
    translator = [venvs.ensure("cloud") / "python", "-c", TRANSFORM]
    env = {"AWS_DEFAULT_REGION": "eu-central-1"}
    done = subprocess.run(translator, input=json.dumps(source), env=env, stdout=subprocess.PIPE, text=True, check=True)
    resources: dict[str, Any] = json.loads(done.stdout)
    return resources


def of_type(guarded: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {name: found for name, found in guarded.items() if found["Type"] == kind}


def test_functions_are_called_only_by_their_alias(guarded: dict[str, Any]) -> None:
    aliases = {f"{name}Aliaslive" for name in of_type(guarded, "AWS::Lambda::Function")}
    assert aliases == of_type(guarded, "AWS::Lambda::Alias").keys()
    callers = of_type(guarded, "AWS::Lambda::Permission") | of_type(guarded, "AWS::Lambda::EventSourceMapping")
    permitted = [found["Properties"]["FunctionName"] for found in callers.values()]
    workflow = {f"{name}FunctionAliaslive" for name in ("Plan", "Execute")}  # permitted by the workflow's role
    assert {name["Ref"] for name in permitted} | workflow == aliases
    for name, rule in of_type(guarded, "AWS::Events::Rule").items():
        (target,) = rule["Properties"]["Targets"]
        assert name == "TaskRequested" or target["Arn"]["Ref"] in aliases
    (notified,) = guarded["UploadsBucket"]["Properties"]["NotificationConfiguration"]["LambdaConfigurations"]
    assert notified["Function"]["Ref"] in aliases
    body = json.dumps(guarded["Api"]["Properties"]["Body"])
    invoked = set(re.findall(r"/functions/\$\{(\w+)\}/invocations", body))
    assert invoked - aliases == {"__FunctionArn__"}, "only the authorizer's ARN may be another"
    assert '{"__FunctionArn__": {"Fn::Sub": "${AuthorizerFunction.Arn}:live"}}' in body
    execute = guarded["ExecuteFunction"]["Properties"]["Environment"]["Variables"]
    assert execute["PUBLISH_FUNCTION"] == {"Ref": "PublishFunctionAliaslive"}


def test_alarms_roll_back_a_guarded_rollout(guarded: dict[str, Any]) -> None:
    groups = of_type(guarded, "AWS::CodeDeploy::DeploymentGroup")
    assert len(groups) == len(FUNCTIONS)
    for group in groups.values():
        alarms = group["Properties"]["AlarmConfiguration"]
        assert alarms["Enabled"] is True
        assert [alarm["Name"] for alarm in alarms["Alarms"]] == [
            {"Fn::If": ["IsGuarded", {"Ref": "ReleaseErrorsAlarm"}, {"Ref": "AWS::NoValue"}]},
            {"Fn::If": ["IsGuarded", {"Ref": "ReleaseErrorsBehindAlarm"}, {"Ref": "AWS::NoValue"}]},
            {"Ref": "ApiErrorsAlarm"}, {"Ref": "PlatformFaultsAlarm"}, {"Ref": "AuditAlarm"},
        ]  # fmt: skip
        assert "DEPLOYMENT_STOP_ON_ALARM" in group["Properties"]["AutoRollbackConfiguration"]["Events"]
        assert "Canary10Percent5Minutes" in json.dumps(group["Properties"]["DeploymentConfigName"])
    for alias in of_type(guarded, "AWS::Lambda::Alias").values():
        assert alias["UpdatePolicy"]["CodeDeployLambdaAliasUpdate"]["DeploymentGroupName"]["Ref"] in groups
    parts = [guarded[name]["Properties"]["Metrics"][1:] for name in ("ReleaseErrorsAlarm", "ReleaseErrorsBehindAlarm")]
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
