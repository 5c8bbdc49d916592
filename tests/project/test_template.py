"""`template.yaml`: permissions of roles, public routes, and agreement with the code."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from local import dashboard, release
from quittance.agent import AgentState
from quittance.api import events
from quittance.api.documentation import openapi_json
from quittance.api.events import TaskRefused
from quittance.api.identity import EXPIRED, SCOPES, is_account_id
from quittance.config import Settings
from quittance.errors import PlatformUnavailableError, UnauthenticatedError, problem
from quittance.ledger.channels import ChannelState
from quittance.ledger.escrow import State
from quittance.ledger.journal import PayoutState
from quittance.limits import (
    ARCHIVE_AFTER_DAYS_MAX,
    ARCHIVE_AFTER_DAYS_MIN,
    CALL_MS_MAX,
    COMPILE_WALL_SECONDS_MAX,
    EXAMPLES_SECONDS_MAX,
    KILL_MARGIN_MS,
    LOAD_MS_MAX,
    PUBLISH_SECONDS_MAX,
    SLOTS_MAX,
    TIMEOUT_S_SYNC_MAX,
    VERDICT_MS_MAX,
    WEBHOOK_CONNECT_MS_MAX,
    WEBHOOK_MS_MAX,
    WEBHOOK_TRIES_MAX,
    WEBHOOK_WAIT_S_MAX,
    WEBHOOK_WAIT_S_MIN,
)
from quittance.proof.statement import Purpose
from quittance.usecases import launch
from tests.roles import statements
from tests.support import ROOT
from tests.template import PATH

CONSUME = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ChangeMessageVisibility"]
FUNCTIONS = sorted(path.name for path in (ROOT / "functions").iterdir() if path.is_dir())


def resources(template: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: found["Properties"] for name, found in template["Resources"].items() if found["Type"] == kind}


def allowing(node: Any) -> Iterator[dict[str, Any]]:
    """Every statement with the effect Allow in a part of the template."""
    if isinstance(node, dict) and node.get("Effect") == "Allow":
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from allowing(part)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def functions_allowed(template: dict[str, Any], resource: str, *actions: str) -> set[str]:
    """The functions that may perform one of these actions, or any if none is given, on a resource or a part of it."""
    return {
        function
        for function, statement in statements(template)
        if resource in str(statement["Resource"]) and (not actions or {*actions} & {*listed(statement["Action"])})
    }


def test_functions_of_the_template_match_the_folders(template: dict[str, Any]) -> None:
    functions = resources(template, "AWS::Serverless::Function")
    assert sorted(properties["CodeUri"].removeprefix("functions/") for properties in functions.values()) == FUNCTIONS


def test_only_public_routes_need_no_token(template: dict[str, Any]) -> None:
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
        "/log/tile/{level}/{index}/{width}", "/agents/{agent_id}/.well-known/agent-card.json",
        # A ticket, or an order that the channel's key signed, is verified by the function.
        "/channels/{channel_id}/tasks", "/channels/{channel_id}/signed-close",
    }  # fmt: skip
    described = json.loads(openapi_json())["paths"].items()
    assert {
        path.removeprefix("/api/v1/economic")
        for path, calls in described
        for call in calls.values()
        if not call["security"] or {} in call["security"]
    } == open_routes, "the OpenAPI description agrees"


def test_platform_account_parameter_accepts_only_valid_accounts(template: dict[str, Any]) -> None:
    pattern = re.compile(template["Parameters"]["PlatformAccount"]["AllowedPattern"])
    for name in ("quittance:platform", "auth0|op", "a", "a" * 255, "...", "mean", ".me"):
        assert pattern.fullmatch(name), name
        assert is_account_id(name), name
    for name in ("", "me", ".", "..", "a#b", "a b", "é", "a" * 256):
        assert not pattern.fullmatch(name), name


# Actions for which AWS supports no resource.
UNSCOPED = re.compile(
    r"dynamodb:ListStreams|xray:Put\w+|logs:\w+(LogDelivery|LogDeliveries|ResourcePolicy|ResourcePolicies|LogGroups)"
)
# Resources whose statements allow all actions or all resources, with the reason.
OWN_POLICY = "a key's policy concerns only the key, and makes the account's IAM policies apply to it"
ROOT_KEYS = {"ReceiptRoot", "CheckpointRoot", "WebhookRoot", "CardRoot"}
BROAD_RESOURCES = dict.fromkeys(ROOT_KEYS, OWN_POLICY)


def test_every_role_names_its_actions_and_resources(template: dict[str, Any]) -> None:
    for name, resource in template["Resources"].items():
        for statement in allowing(resource):
            if name in BROAD_RESOURCES or statement.get("Action") == "sts:AssumeRole":
                continue
            assert {"Action", "Resource"} <= statement.keys(), name
            assert not [action for action in listed(statement["Action"]) if "*" in action], name
            unscoped = all(UNSCOPED.fullmatch(action) for action in listed(statement["Action"]))
            assert unscoped or "*" not in listed(statement["Resource"]), name


def test_no_role_may_delete_data_or_change_a_policy(template: dict[str, Any]) -> None:
    """Nothing of the ledger or the log is ever deleted; versions of overwritten objects stay."""
    changing = re.compile(
        r"(?!s3:GetObjectVersion$)(dynamodb|s3|kms):.*(Delete|Policy|Batch(Write|Execute)|PartiQL|Restore|Disable|Version)|iam:"
    )
    for name, resource in template["Resources"].items():
        if name not in BROAD_RESOURCES:
            for statement in allowing(resource):
                assert not [action for action in listed(statement["Action"]) if changing.match(action)], name


BOND_FUNCTIONS = {"AccountsFunction", "SweepFunction", "DrainFunction"}


def test_running_publishing_and_paying_have_separate_roles(template: dict[str, Any]) -> None:
    writes = ("dynamodb:PutItem", "dynamodb:UpdateItem")
    assert functions_allowed(template, "BinariesBucket", "s3:PutObject") == {"PublishFunction"}
    assert functions_allowed(template, "LogBucket", "s3:PutObject") == {"SweepFunction"}
    assert functions_allowed(template, "ArchiveBucket", "s3:PutObject") == {"ArchiveFunction"}
    assert functions_allowed(template, "RegistryTable", *writes) == {
        "AgentsFunction",
        "PublishFunction",
        "OperationsFunction",
        *BOND_FUNCTIONS,
    }
    assert functions_allowed(template, "LedgerTable", "dynamodb:Scan") == {"AuditFunction", "ListingsFunction"}
    assert functions_allowed(template, "ListingsTable", *writes) == {"ListingsFunction"}
    assert not functions_allowed(template, "LedgerTable", *writes) & {
        "AgentsFunction",
        "AuditFunction",
        "HealthFunction",
        "ListingsFunction",
    }
    assert not functions_allowed(template, "LedgerTable") & {"PublicFunction", "PublishFunction", "OperationsFunction"}
    assert not functions_allowed(template, "") & {"AuthorizerFunction"}


def test_only_functions_that_need_a_root_key_may_sign_with_it(template: dict[str, Any]) -> None:
    settling = {f"{name}Function" for name in ("Execute", "Work", "Deadletter", "Result", "Sweep", "Drain")}
    assert functions_allowed(template, "ReceiptRoot", "kms:Sign") == settling
    assert functions_allowed(template, "CheckpointRoot", "kms:Sign") == {"SweepFunction"}
    assert functions_allowed(template, "WebhookRoot", "kms:Sign") == {"WebhookFunction"}
    roots = {name for name, found in template["Resources"].items() if found["Type"] == "AWS::KMS::Key"}
    assert functions_allowed(template, "CardRoot", "kms:Sign") == {"PublicFunction"}
    assert roots == ROOT_KEYS
    for function, statement in statements(template):
        if "kms:Sign" in listed(statement["Action"]):
            named = {found["Fn::GetAtt"][0] for found in listed(statement["Resource"])}
            assert named <= roots, f"{function}: no former root signs"


def test_every_root_key_is_published_even_former_ones(template: dict[str, Any]) -> None:
    lists = {*ROOT_KEYS, "KeysWithoutPurpose"}
    lists |= {f"Former{purpose.capitalize()}Keys" for purpose in Purpose}
    for name in lists:
        readers = functions_allowed(template, f"'{name}'", "kms:GetPublicKey")
        assert readers == {"AuditFunction", "HealthFunction", "PublicFunction"}, name
    variables = str(template["Globals"]["Function"]["Environment"]["Variables"])
    assert all(name in variables for name in lists)


def test_functions_may_emit_only_their_own_events(template: dict[str, Any]) -> None:
    """Otherwise it could request tasks with any user's credits. The condition applies to every entry of a call."""
    may_put = {
        "NotifyFunction": {*events.ALL} - {TaskRefused},
        "DeadletterFunction": {TaskRefused},
    }
    assert set().union(*may_put.values()) == {*events.ALL}
    putting = [(name, found) for name, found in statements(template) if "events:PutEvents" in listed(found["Action"])]
    assert sorted(name for name, _ in putting) == sorted(may_put)
    for function, statement in putting:
        types = sorted(event.__name__ for event in may_put[function])
        assert statement == {
            "Effect": "Allow",
            "Action": "events:PutEvents",
            "Resource": {"Fn::GetAtt": ["EventBus", "Arn"]},
            "Condition": {
                "ForAllValues:StringEquals": {"events:source": [events.SOURCE], "events:detail-type": types},
                "Null": {"events:source": "false", "events:detail-type": "false"},
            },
        }


def test_events_of_the_platform_never_request_tasks(template: dict[str, Any]) -> None:
    pattern = template["Resources"]["TaskRequested"]["Properties"]["EventPattern"]
    assert pattern == {"source": [{"anything-but": [events.SOURCE]}], "detail-type": ["TaskRequested"]}
    assert "TaskRequested" not in {event.__name__ for event in events.ALL}


# The conditions of the template's policies: operator and key, and the tests that try it on the local cloud.
CONDITIONS = {
    ("ForAllValues:StringEquals", "dynamodb:LeadingKeys"): "tests/local/test_cloud.py, tests/e2e/test_privilege.py",
    ("ForAllValues:StringLike", "dynamodb:LeadingKeys"): "tests/local/test_cloud.py, tests/e2e/test_privilege.py",
    ("ForAllValues:StringEquals", "events:source"): "tests/local/test_cloud.py, tests/e2e/test_privilege.py",
    ("ForAllValues:StringEquals", "events:detail-type"): "tests/local/test_cloud.py, tests/e2e/test_privilege.py",
    ("Null", "events:source"): "tests/local/test_cloud.py, tests/e2e/test_privilege.py",
    ("Null", "events:detail-type"): "tests/local/test_cloud.py, tests/e2e/test_privilege.py",
    ("ArnLike", "aws:SourceArn"): "tests/local/test_borders.py, tests/e2e/test_borders.py",
    ("Bool", "aws:SecureTransport"): "nothing: the loopback counts as TLS there, see docs/local-cloud.md",
}


def test_every_condition_of_a_policy_is_listed_with_its_test(template: dict[str, Any]) -> None:
    """A new condition needs a test, and a row in docs/local-cloud.md."""
    found = set()
    for statement in every_statement(template):
        for operator, keys in statement.get("Condition", {}).items():
            found |= {(operator, key) for key in keys}
            if "dynamodb:LeadingKeys" in keys:  # the local cloud does not read keys of queries
                verbs = ("Get", "BatchGet", "Put", "Update")
                assert {*listed(statement["Action"])} <= {f"dynamodb:{verb}Item" for verb in verbs}
    assert found == CONDITIONS.keys()


def every_statement(value: Any) -> Iterator[dict[str, Any]]:
    """All statements of policies in the template."""
    if isinstance(value, dict):
        if "Effect" in value:
            yield value
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from every_statement(inner)


def test_functions_that_move_bonds_may_not_write_agents(template: dict[str, Any]) -> None:
    """A function that moves money must not be able to change agents."""
    for function in BOND_FUNCTIONS:
        keys = [
            statement["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]
            for name, statement in statements(template)
            if name == function and statement["Resource"] == {"Fn::GetAtt": ["RegistryTable", "Arn"]}
        ]
        assert keys in ([["OWNER#*"]], [["OWNER#*", "DUE#*"]])


def actions(template: dict[str, Any], function: str) -> set[str]:
    return {action for name, stated in statements(template) if name == function for action in listed(stated["Action"])}


def test_work_role_is_the_execute_role_plus_the_queue(template: dict[str, Any]) -> None:
    functions = resources(template, "AWS::Serverless::Function")
    execute = functions["ExecuteFunction"]["Policies"][0]["Statement"]
    work = functions["WorkFunction"]["Policies"][0]["Statement"]
    assert [statement["Action"] for statement in execute if statement not in work] == ["s3:PutObject"]
    assert [statement for statement in work if statement not in execute] == [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": {"Fn::Sub": "${OutputsBucket.Arn}/inputs/*"}},
        {"Effect": "Allow", "Action": CONSUME, "Resource": {"Fn::GetAtt": ["TaskQueue", "Arn"]}},
    ]


def test_longest_task_fits_into_one_invocation(template: dict[str, Any]) -> None:
    """Agent and two judges share the synchronous timeout; each may take the longest loading, rules and settling."""
    runs = 3
    longest_ms = TIMEOUT_S_SYNC_MAX * 1_000 + runs * (launch.RUN_RESERVE_MS + VERDICT_MS_MAX)
    assert template["Resources"]["ExecuteFunction"]["Properties"]["Timeout"] * 1_000 >= longest_ms + CALL_MS_MAX


def test_longest_publication_fits_into_one_invocation(template: dict[str, Any]) -> None:
    """Compilation, examples, the last one's loading and rules, and half a minute to read and to store."""
    example_ms = LOAD_MS_MAX + KILL_MARGIN_MS + 2 * VERDICT_MS_MAX  # it may begin just before the time is up
    longest_ms = (COMPILE_WALL_SECONDS_MAX + EXAMPLES_SECONDS_MAX + 30) * 1_000 + example_ms
    timeout_s = template["Resources"]["PublishFunction"]["Properties"]["Timeout"]
    assert timeout_s == PUBLISH_SECONDS_MAX
    assert timeout_s * 1_000 >= longest_ms
    queue = template["Resources"]["PublishFailures"]["Properties"]
    assert queue["VisibilityTimeout"] >= 6 * timeout_s


def test_every_setting_is_declared_in_the_template(template: dict[str, Any]) -> None:
    declared = set(template["Globals"]["Function"]["Environment"]["Variables"])
    defaulted = {"TOKEN_ALGORITHMS", "SCRATCH_DIR", "PUBLISH_FUNCTION", "TASK_QUEUE_URL", "DEAD_LETTERS_URL"}
    defaulted |= {"EVENT_BUS", "WEBHOOK_QUEUE_URL", "DRAIN_FUNCTION", "ARCHIVE_AFTER_DAYS"}
    assert {name.upper() for name in Settings.model_fields} - defaulted <= declared


@pytest.mark.parametrize("table", ["LedgerTable", "RegistryTable"])
def test_tables_are_protected(template: dict[str, Any], table: str) -> None:
    resource = template["Resources"][table]
    properties = resource["Properties"]
    assert properties["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert properties["SSESpecification"] == {"SSEEnabled": True}
    assert resource["DeletionPolicy"] == "RetainExceptOnCreate"
    assert "TimeToLiveSpecification" not in properties, "items of the ledger never expire"


@pytest.mark.parametrize("bucket", ["UploadsBucket", "BinariesBucket", "OutputsBucket"])
def test_buckets_are_private_and_versioned(template: dict[str, Any], bucket: str) -> None:
    properties = template["Resources"][bucket]["Properties"]
    assert set(properties["PublicAccessBlockConfiguration"].values()) == {True}
    assert properties["VersioningConfiguration"] == {"Status": "Enabled"}


def test_committed_openapi_description_is_current() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "local.openapi", "--check"], cwd=ROOT, env={"PYTHONPATH": "layers/runtime"}, check=False
    )
    assert checked.returncode == 0, "run make openapi"


def test_committed_dashboard_is_current() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "local.dashboard", "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": "layers/runtime"},
        check=False,
    )
    assert checked.returncode == 0, "run make dashboard"


def test_template_names_the_layer_of_these_sources() -> None:
    assert release.written(PATH.read_text("utf-8")) == PATH.read_text("utf-8"), "run make release"


@pytest.mark.parametrize(
    "edit", [("SettlementMs", "SandboxMs"), ('"x": 16', '"x": 8'), ("        ]}\n", "        ]}\n\n")]
)
def test_check_rejects_a_dashboard_edited_by_hand(
    edit: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = PATH.read_text("utf-8")
    head, _, generated = committed.partition(dashboard.BEGIN)
    edited = tmp_path / "template.yaml"
    edited.write_text(head + dashboard.BEGIN + generated.replace(*edit, 1), "utf-8")
    monkeypatch.setattr(dashboard, "TEMPLATE", edited)
    monkeypatch.setattr(sys, "argv", ["dashboard", "--check"])
    assert dashboard.main() == 1
    assert "make dashboard" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["dashboard"])
    assert dashboard.main() == 0
    assert edited.read_text("utf-8") == committed, "only the dashboard is generated again"


def test_template_without_the_markers_is_rejected() -> None:
    for text in ("", dashboard.BEGIN, dashboard.END, 2 * (dashboard.BEGIN + dashboard.END)):
        with pytest.raises(ValueError, match="each of these two lines once"):
            dashboard.written(text)


# Anchors and merge keys.


def test_yaml_aliases_share_no_metadata_or_whole_resource(template: dict[str, Any]) -> None:
    """SAM writes each resource's logical id into its `Metadata`: if they shared it, all would have the last id."""
    assert len({id(resource) for resource in template["Resources"].values()}) == len(template["Resources"])
    shared = [resource["Metadata"] for resource in template["Resources"].values() if "Metadata" in resource]
    assert len({id(metadata) for metadata in shared}) == len(shared)


def test_every_yaml_anchor_is_used() -> None:
    tokens = list(yaml.scan(PATH.read_text("utf-8")))
    anchors = [token.value for token in tokens if isinstance(token, yaml.AnchorToken)]
    assert len(anchors) == len({*anchors}), "anchor names are unique"
    assert {*anchors} == {token.value for token in tokens if isinstance(token, yaml.AliasToken)}


# Identity.


def clients(template: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The client for users and the operator's; there is no other."""
    found = resources(template, "AWS::Cognito::UserPoolClient")
    assert found.keys() == {"UserPoolClient", "OperatorClient"}
    return found["UserPoolClient"], found["OperatorClient"]


def test_only_the_operators_client_has_our_scopes(template: dict[str, Any]) -> None:
    """Otherwise any user could mint credits."""
    people, operator = clients(template)
    (server,) = resources(template, "AWS::Cognito::UserPoolResourceServer").values()
    assert {scope["ScopeName"] for scope in server["Scopes"]} == {*SCOPES}
    assert {*operator["AllowedOAuthScopes"]} == {f"{server['Identifier']}/{scope}" for scope in SCOPES}
    assert people["AllowedOAuthScopes"] == ["openid"]


def test_users_sign_in_by_code_and_the_operator_by_secret(template: dict[str, Any]) -> None:
    people, operator = clients(template)
    assert (people["GenerateSecret"], people["AllowedOAuthFlows"]) == (False, ["code"])
    assert (operator["GenerateSecret"], operator["AllowedOAuthFlows"]) == (True, ["client_credentials"])
    for client in (people, operator):
        assert client["AllowedOAuthFlowsUserPoolClient"] is True, "otherwise the flows and scopes are ignored"
        assert client["PreventUserExistenceErrors"] == "ENABLED"
    assert people["CallbackURLs"] == {"Ref": "CallbackUrls"}
    assert not [flow for flow in people["ExplicitAuthFlows"] if "PASSWORD" in flow]
    assert operator["ExplicitAuthFlows"] == ["ALLOW_REFRESH_TOKEN_AUTH"], "an empty list would allow passwords"
    assert template["Resources"]["OperatorClient"]["DependsOn"] == "UserPoolScopes"


def test_functions_accept_both_clients_of_the_pool(template: dict[str, Any]) -> None:
    variables = template["Globals"]["Function"]["Environment"]["Variables"]
    pools, others = {"Fn::Sub": "${UserPoolClient},${OperatorClient}"}, {"Fn::Join": [",", {"Ref": "Audience"}]}
    assert variables["AUDIENCE"] == {"Fn::If": ["CreatesPool", pools, others]}
    assert variables["AUDIENCE_CLAIM"] == {"Fn::If": ["CreatesPool", "client_id", {"Ref": "AudienceClaim"}]}
    assert template["Parameters"]["Audience"]["Type"] == "CommaDelimitedList"
    assert {*template["Parameters"]["AudienceClaim"]["AllowedValues"]} == {
        *get_args(Settings.model_fields["audience_claim"].annotation)
    }


def test_outputs_name_the_clients_and_the_login_url(template: dict[str, Any]) -> None:
    """As on AWS; the local cloud serves the domain's pages at its own address (tests/e2e/test_identity.py)."""
    (domain,) = resources(template, "AWS::Cognito::UserPoolDomain").values()
    assert domain["Domain"]["Fn::If"][1:] == [
        {"Ref": "LoginDomain"},
        {"Fn::Sub": "${AWS::StackName}-${AWS::AccountId}"},
    ]
    outputs = {name: found["Value"] for name, found in template["Outputs"].items() if "Condition" in found}
    assert outputs == {
        "UserPoolId": {"Ref": "UserPool"},
        "UserClientId": {"Ref": "UserPoolClient"},
        "OperatorClientId": {"Ref": "OperatorClient"},
        "LoginUrl": {"Fn::Sub": "https://${UserPoolDomain}.auth.${AWS::Region}.amazoncognito.com"},
    }
    assert "Secret" not in json.dumps(template["Outputs"]), "whoever may describe the stack can read its outputs"


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        ("LoginDomain", ["", "a", "quittance-7", "a" * 63], ["-a", "a-", "A", "a.b", "a" * 64, "a_b"]),
        ("JwksUrl", ["", "https://a/b", "http://127.0.0.1:1/x"], ["file:///x", "ftp://x", "https://", "a/https://b"]),
    ],
)
def test_identity_parameters_reject_malformed_values(
    template: dict[str, Any], parameter: str, good: list[str], bad: list[str]
) -> None:
    pattern = re.compile(template["Parameters"][parameter]["AllowedPattern"])
    assert [word for word in good if not pattern.fullmatch(word)] == []
    assert [word for word in bad if pattern.fullmatch(word)] == []


def test_issuer_and_jwks_url_must_be_given_together(template: dict[str, Any]) -> None:
    """CloudFormation refuses other parameters before it deploys; without keys every call would get 503."""
    no_issuer, no_keys = ({"Fn::Equals": [{"Ref": name}, ""]} for name in ("IssuerUrl", "JwksUrl"))
    rules = {json.dumps(rule["RuleCondition"]): rule["Assertions"][0]["Assert"] for rule in template["Rules"].values()}
    assert rules == {json.dumps({"Fn::Not": [no_issuer]}): {"Fn::Not": [no_keys]}, json.dumps(no_issuer): no_keys}


def test_gateway_answers_a_refused_token_with_the_reason(template: dict[str, Any]) -> None:
    """By a denial: the gateway's answer to a denial may quote the authorizer, its answer to an exception may not."""
    refusals = template["Resources"]["Api"]["Properties"]["GatewayResponses"]
    denied, anonymous = refusals["ACCESS_DENIED"], refusals["UNAUTHORIZED"]
    assert denied["StatusCode"] == anonymous["StatusCode"] == 401
    assert denied["ResponseParameters"]["Headers"]["WWW-Authenticate"] == "context.authorizer.challenge"
    assert anonymous["ResponseParameters"]["Headers"]["WWW-Authenticate"] == "'Bearer'"
    error = UnauthenticatedError(EXPIRED)
    body = denied["ResponseTemplates"]["application/json"].replace("$context.authorizer.refused", EXPIRED)
    assert json.loads(body) == problem(error)[1]
    assert json.loads(anonymous["ResponseTemplates"]["application/json"]) == problem(UnauthenticatedError())[1]


def test_gateway_answers_503_if_the_issuer_does_not_answer(template: dict[str, Any]) -> None:
    refusals = template["Resources"]["Api"]["Properties"]["GatewayResponses"]
    failed = refusals["AUTHORIZER_FAILURE"]
    assert refusals["AUTHORIZER_CONFIGURATION_ERROR"] == failed
    status, body, headers = problem(PlatformUnavailableError())
    assert failed["StatusCode"] == status == 503
    assert json.loads(failed["ResponseTemplates"]["application/json"]) == body
    assert failed["ResponseParameters"]["Headers"]["Retry-After"] == f"'{headers['Retry-After']}'"


# Versions and snapshots.


def test_outputs_are_what_clients_and_operators_connect_to(template: dict[str, Any]) -> None:
    """CloudFormation gives physical names of other resources by their logical ids (docs/runbooks.md)."""
    entry_points = {
        "ApiUrl",
        "StageArn",
        "ExecuteFunction",
        "TaskQueue",
        "RunWorkflow",
        "AuditWorkflow",
        "EventBus",
        "AlarmTopic",
    }
    identity = {"Issuer", "UserPoolId", "UserClientId", "OperatorClientId", "LoginUrl"}
    assert template["Outputs"].keys() == entry_points | identity


def test_outputs_name_functions_by_their_alias(template: dict[str, Any]) -> None:
    """Without the alias AWS runs the newest code, even if its rollout was rolled back, and without SnapStart."""
    functions = resources(template, "AWS::Serverless::Function")
    named = {name: found["Value"] for name, found in template["Outputs"].items() if "Function" in str(found["Value"])}
    assert named == {"ExecuteFunction": {"Ref": "ExecuteFunction.Alias"}}
    assert named.keys() <= functions.keys()


def test_any_change_of_a_function_publishes_a_version(template: dict[str, Any]) -> None:
    shared = template["Globals"]["Function"]
    assert (shared["AutoPublishAlias"], shared["AutoPublishAliasAllProperties"]) == ("live", True)
    for name, function in resources(template, "AWS::Serverless::Function").items():
        own = {"AutoPublishAlias", "AutoPublishAliasAllProperties", "IgnoreGlobals"} & function.keys()
        assert not own, f"{name}: a new environment must be a new version"


def test_only_functions_that_callers_wait_for_use_snapstart(template: dict[str, Any]) -> None:
    snapped = {
        name: function["SnapStart"]
        for name, function in resources(template, "AWS::Serverless::Function").items()
        if "SnapStart" in function
    }
    assert snapped == {
        f"{name}Function": {"ApplyOn": {"Ref": "SnapStart"}}
        for name in ("Execute", "Result", "Agents", "Accounts", "Channels", "Authorizer", "Public")
    }
    assert template["Parameters"]["SnapStart"]["Default"] == "PublishedVersions"


def test_notify_and_webhook_roles_cannot_access_tables(template: dict[str, Any]) -> None:
    deliver = resources(template, "AWS::Serverless::Function")["WebhookFunction"]
    assert {action for action in actions(template, "NotifyFunction") if action.startswith("dynamodb:")} == {
        "dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator", "dynamodb:ListStreams",
    }  # fmt: skip
    assert "Table" not in str(deliver["Policies"])
    assert {action.partition(":")[0] for action in actions(template, "WebhookFunction")} == {"sqs", "kms"}
    assert actions(template, "NotifyFunction") >= {"events:PutEvents", "sqs:SendMessage"}


def test_webhook_queue_matches_the_retries_of_the_code(template: dict[str, Any]) -> None:
    queue, failures = (template["Resources"][name]["Properties"] for name in ("WebhookQueue", "WebhookFailures"))
    assert queue["RedrivePolicy"]["maxReceiveCount"] == WEBHOOK_TRIES_MAX
    waits_s = sum(min(WEBHOOK_WAIT_S_MAX, WEBHOOK_WAIT_S_MIN * 2**number) for number in range(WEBHOOK_TRIES_MAX))
    assert waits_s < queue["MessageRetentionPeriod"] < failures["MessageRetentionPeriod"]
    function = template["Resources"]["WebhookFunction"]["Properties"]
    assert queue["VisibilityTimeout"] >= 6 * function["Timeout"]
    assert function["Timeout"] * 1_000 > WEBHOOK_CONNECT_MS_MAX + WEBHOOK_MS_MAX + 10_000, "time for the resolver"


def test_stream_filters_pass_exactly_what_notify_handles(template: dict[str, Any]) -> None:
    mappings = resources(template, "AWS::Lambda::EventSourceMapping")
    ledger, registry = (
        [json.loads(one["Pattern"])["dynamodb"] for one in mappings[name]["FilterCriteria"]["Filters"]]
        for name in ("NotifyOfLedger", "NotifyOfRegistry")
    )
    redeemed, settled, *payouts = ledger
    assert {*redeemed["NewImage"]["state"]["S"]} == {State.RELEASED, State.REFUNDED}, "no ticket's task begins expired"
    assert redeemed["NewImage"]["channel"] == {"S": [{"exists": True}]}
    assert [pattern["NewImage"]["payout"]["S"] for pattern in payouts] == [
        [PayoutState.REQUESTED], [PayoutState.PAID, PayoutState.FAILED],
    ]  # fmt: skip
    assert settled["OldImage"]["state"]["S"] == [State.FUNDED]
    assert {*settled["NewImage"]["state"]["S"]} == {*State} - {State.FUNDED}
    *ends, revised = registry
    assert revised == {"NewImage": {"revision": {"N": [{"exists": True}]}}}
    for pattern, state in zip(ends, (AgentState.ACTIVE, AgentState.REJECTED, AgentState.FAILED), strict=True):
        assert pattern["NewImage"]["upload_state"]["S"] == [state]
        assert pattern["OldImage"]["upload_state"]["S"] == [{"anything-but": [state]}]
    for name in ("NotifyOfLedger", "NotifyOfRegistry"):
        assert mappings[name]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert mappings[name]["BisectBatchOnFunctionError"]
        assert mappings[name]["DestinationConfig"]["OnFailure"]["Destination"]


def test_ledger_stream_filters_pass_what_listings_handle(template: dict[str, Any]) -> None:
    mapping = resources(template, "AWS::Lambda::EventSourceMapping")["ListingsOfLedger"]
    inserted, changed, standing = (json.loads(one["Pattern"]) for one in mapping["FilterCriteria"]["Filters"])
    assert inserted["eventName"] == ["INSERT"]
    states = inserted["dynamodb"]["NewImage"]["state"]["S"]
    assert {*states} == {*State} - {State.EXPIRED} | {ChannelState.OPEN}, "a channel begins open"
    assert {*changed["dynamodb"]["NewImage"]["state"]["S"]} == {*State} - {State.FUNDED}
    assert standing["dynamodb"]["NewImage"] == {"pk": {"S": [{"prefix": "REP#"}]}}


def test_the_archive_is_off_and_never_too_early(template: dict[str, Any]) -> None:
    """CloudFormation refuses what the functions would refuse, and nothing else."""
    parameter = template["Parameters"]["ArchiveAfterDays"]
    assert parameter["Default"] == "0"
    allowed = [days for days in range(20_000) if re.fullmatch(parameter["AllowedPattern"], str(days))]
    assert allowed == [0, *range(ARCHIVE_AFTER_DAYS_MIN, ARCHIVE_AFTER_DAYS_MAX + 1)]
    given = {name: "-" for name, field in Settings.model_fields.items() if field.is_required()}
    given |= {"ledger_shards": "1", "fee_bps": "0"}
    for days in (0, ARCHIVE_AFTER_DAYS_MIN, ARCHIVE_AFTER_DAYS_MAX):
        assert Settings.model_validate({**given, "archive_after_days": str(days)}).archive_after_days == days
    for days in (-1, 1, ARCHIVE_AFTER_DAYS_MIN - 1, ARCHIVE_AFTER_DAYS_MAX + 1):
        with pytest.raises(ValueError, match="archive_after_days"):
            Settings.model_validate({**given, "archive_after_days": str(days)})


def test_webhooks_go_only_to_public_addresses_by_default(template: dict[str, Any]) -> None:
    assert template["Parameters"]["WebhookLoopbackTargets"]["Default"] == "false"
    assert not Settings.model_fields["webhook_loopback_targets"].default


# Limits of the gateway and of concurrency.


def test_stage_and_execute_function_have_limits(template: dict[str, Any]) -> None:
    (every,) = template["Resources"]["Api"]["Properties"]["MethodSettings"]
    assert (every["ResourcePath"], every["HttpMethod"]) == ("/*", "*")
    assert every["ThrottlingRateLimit"] == {"Ref": "ThrottleRate"}
    assert every["ThrottlingBurstLimit"] == {"Ref": "ThrottleBurst"}
    for name in ("ThrottleRate", "ThrottleBurst"):
        assert template["Parameters"][name]["Default"] > 0
    reserved = template["Resources"]["ExecuteFunction"]["Properties"]["ReservedConcurrentExecutions"]
    assert reserved == {"Fn::If": ["HasExecuteConcurrency", {"Ref": "ExecuteConcurrency"}, {"Ref": "AWS::NoValue"}]}


@pytest.mark.parametrize("name", ["Execute", "Publish", "Sweep", "Audit", "Authorizer"])
def test_concurrency_is_reserved_only_if_a_parameter_is_set(template: dict[str, Any], name: str) -> None:
    """New AWS accounts can reserve no concurrency, and a reservation of 0 would stop the function."""
    parameter = template["Parameters"][f"{name}Concurrency"]
    assert (parameter["Type"], parameter["Default"], parameter["MinValue"]) == ("Number", 0, 0)
    condition = {"Fn::Not": [{"Fn::Equals": [{"Ref": f"{name}Concurrency"}, 0]}]}
    assert template["Conditions"][f"Has{name}Concurrency"] == condition
    reserved = template["Resources"][f"{name}Function"]["Properties"]["ReservedConcurrentExecutions"]
    asked, none = {"Ref": f"{name}Concurrency"}, {"Ref": "AWS::NoValue"}
    assert reserved == {"Fn::If": [f"Has{name}Concurrency", asked, none]}


def test_one_account_cannot_use_all_workers_of_the_queue(template: dict[str, Any]) -> None:
    of_one, of_all = (template["Parameters"][f"{name}Concurrency"] for name in ("Account", "Work"))
    assert 0 < of_one["Default"] <= of_all["Default"] // 2
    assert (of_one["MinValue"], of_one["MaxValue"]) == (0, SLOTS_MAX)
    declared = template["Globals"]["Function"]["Environment"]["Variables"]["ACCOUNT_CONCURRENCY"]
    assert declared == {"Ref": "AccountConcurrency"}


def test_gateway_refusals_have_our_problem_bodies(template: dict[str, Any]) -> None:
    refusals = template["Resources"]["Api"]["Properties"]["GatewayResponses"]
    for kind, status in (
        ("REQUEST_TOO_LARGE", 413),
        ("THROTTLED", 429),
        ("INTEGRATION_TIMEOUT", 504),
        ("INTEGRATION_FAILURE", 504),
    ):
        assert refusals[kind]["StatusCode"] == status
        assert json.loads(refusals[kind]["ResponseTemplates"]["application/json"])["status"] == status
    assert "StageArn" in template["Outputs"], "a web ACL is associated with it"


def test_gateway_answers_forbid_content_sniffing(template: dict[str, Any]) -> None:
    refusals = template["Resources"]["Api"]["Properties"]["GatewayResponses"]
    assert {"DEFAULT_4XX", "DEFAULT_5XX"} <= refusals.keys(), "responses that are not listed inherit these"
    for kind, refusal in refusals.items():
        assert refusal["ResponseParameters"]["Headers"]["X-Content-Type-Options"] == "'nosniff'", kind
