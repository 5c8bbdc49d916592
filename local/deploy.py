"""From the template to a running stack: `sam build`, `sam deploy`, and a replacement for an identity provider."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from typing import TYPE_CHECKING, Any

from boto3.session import Session
from botocore.exceptions import ClientError

from local import issuer, release, venvs
from local.cloud import CREDENTIALS, REGION, Cloud, client_env
from local.console import CommandError, run, step
from local.paths import BUILDS, ROOT, Stack, State, locked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STACK_NAME = "quittance"
STAGE = "local"
_ARTIFACTS_BUCKET = "quittance-artifacts"
_ISSUER_BUCKET = "quittance-issuer"
_ALIAS = "Aliaslive"  # what SAM appends to a function's logical id for its alias `live`
_LOG_PAGE = 10_000  # lines: the most that one FilterLogEvents answer has
_SOURCES = ("template.yaml", "samconfig.toml", "functions", "layers", "workflows", "requirements/sam.txt")
_SOUND = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")


def machine() -> str:
    """Return this machine's processor by its name in template.yaml."""
    return "arm64" if platform.machine().lower() in ("arm64", "aarch64") else "x86_64"


def build(python_version: str = venvs.PYTHON_VERSION, architecture: str = "") -> Path:
    """Run `sam build` for a runtime and a processor; return the directory with the built template."""
    architecture = architecture or machine()
    home = BUILDS / f"python{python_version}-{architecture}"
    digest, done = release.sources_digest(_SOURCES), home / "sources.sha256"
    sam = venvs.ensure("sam") / "sam"
    with locked(BUILDS / f"{home.name}.lock"):
        if done.is_file() and done.read_text() == digest:
            return home
        done.unlink(missing_ok=True)
        env = {
            **venvs.tools_env(),
            "AWS_DEFAULT_REGION": REGION,
            "LAYER_PYTHON": python_version,
            "LAYER_ARCH": architecture,
            "UV": str(venvs.python("uv").with_name("uv")),
            "PYTHON": str(venvs.BASE_PYTHON),
        }
        overrides = f"PythonRuntime=python{python_version} Architecture={architecture}"
        command = [
            str(sam),
            "build",
            "--config-env",
            "local",
            "--template-file",
            "template.yaml",
            "--build-dir",
            str(home),
            "--parameter-overrides",
            overrides,
        ]
        with step(f"sam build (python{python_version}, {architecture})"):
            run(command, _log("build"), env)
        # Edited sources are deployed, too, before `make release` has named them.
        template = home / "template.yaml"
        template.write_text(release.written(template.read_text("utf-8")), "utf-8")
        done.write_text(digest)
    return home


def layer(built: Path) -> Path:
    """Return the directory of the layer's packages in a build."""
    return built / "RuntimeLayer" / "python"


def _parameters_from_environment() -> dict[str, str]:
    """Return the template parameters in `QUITTANCE_PARAMETERS`, such as `FeeBps=100 ComputePerRunMicro=0`."""
    words = os.environ.get("QUITTANCE_PARAMETERS", "").split()
    if odd := [word for word in words if "=" not in word]:
        msg = f"QUITTANCE_PARAMETERS: {odd[0]!r} must be Name=value, for example FeeBps=100"
        raise CommandError(msg)
    return dict(word.split("=", 1) for word in words)


def deploy(state: State, cloud: Cloud, built: Path) -> Stack:
    """Deploy the stack if anything has changed since it was deployed to this cloud."""
    key = issuer.load_key(state.key)
    parameters = {
        "Stage": STAGE,
        "PythonRuntime": f"python{venvs.PYTHON_VERSION}",
        "Architecture": machine(),
        "EndpointUrl": cloud.url,
        "IssuerUrl": issuer.ISSUER,
        "JwksUrl": f"{cloud.url}/{_ISSUER_BUCKET}/jwks.json",
        "Audience": issuer.AUDIENCE,
        "DeletionProtection": "false",
        "WorkConcurrency": "6",
        "QueueVisibility": "20",  # AWS requires more; here a redelivery should come soon
        "WebhookLoopbackTargets": "true",
        "SnapStart": "None",  # Lambda does not offer it for Python before 3.12
    } | _parameters_from_environment()
    inputs = json.dumps([release.sources_digest(_SOURCES), parameters, issuer.jwk(key), cloud.process.began])
    deployed = hashlib.sha256(inputs.encode()).hexdigest()
    if state.stack.is_file() and (stack := Stack.read(state.stack)).deployed == deployed:
        return stack
    state.stack.unlink(missing_ok=True)
    _publish_keys(cloud, {"keys": [issuer.jwk(key)]})
    aws(cloud, "s3").create_bucket(Bucket=_ARTIFACTS_BUCKET)
    command = [
        str(venvs.ensure("sam") / "sam"), "deploy", "--config-env", "local",
        "--template-file", str(built / "template.yaml"),
        "--stack-name", STACK_NAME, "--s3-bucket", _ARTIFACTS_BUCKET, "--region", REGION,
        "--capabilities", "CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND",
        "--no-confirm-changeset", "--no-fail-on-empty-changeset", "--no-progressbar",
        "--parameter-overrides", *(f"{name}={value}" for name, value in parameters.items()),
    ]  # fmt: skip
    with step("sam deploy (template.yaml, to the local cloud)"):
        try:
            run(command, _log("deploy", state), client_env(cloud))
        except CommandError as error:
            raise CommandError(_refusal(cloud) or str(error)) from error
        ids = _ids(cloud)
        _gateway_responses(cloud, ids["Api"])
        _concurrency(cloud, ids[f"WorkFunction{_ALIAS}"], int(parameters["WorkConcurrency"]))
    stack = _stack(cloud, ids, parameters["JwksUrl"], state, deployed)
    stack.write(state.stack)
    return stack


def is_broken(cloud: Cloud) -> bool:
    """Return whether a deployment left the stack in a state from which no other can start."""
    stacks = aws(cloud, "cloudformation").list_stacks()["StackSummaries"]
    return any(
        stack["StackName"] == STACK_NAME and stack["StackStatus"] not in (*_SOUND, "DELETE_COMPLETE")
        for stack in stacks
    )


def aws(cloud: Cloud, service: str) -> Any:  # noqa: ANN401 - boto3 makes its clients at run time
    """Return a client of the local cloud."""
    session = Session(
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=REGION,
    )
    return session.client(service, endpoint_url=cloud.url)  # type: ignore[call-overload]


def functions_log(cloud: Cloud) -> list[str]:
    """Return the functions' log lines, sorted by time."""
    platform_lines = ("START ", "END ", "REPORT ")
    return [
        f"{group.rpartition('/')[2]} {text.rstrip()}"
        for _, group, text in sorted(log_events(aws(cloud, "logs")), key=lambda event: event[0])
        if not text.startswith(platform_lines)
    ]


def log_events(client: Any, since_ms: int = 0) -> Iterator[tuple[int, str, str]]:  # noqa: ANN401 - as made by boto3
    """The time in ms, the log group and the text of each log line since this time, group by group.

    The local cloud answers with the first _LOG_PAGE lines and no token for the others. So the last millisecond of a
    full answer, which may be incomplete, is asked for again.
    """
    pages = client.get_paginator("filter_log_events")
    for group in client.describe_log_groups()["logGroups"]:
        name, start_ms, is_full = group["logGroupName"], since_ms, True
        while is_full:
            answers = pages.paginate(logGroupName=name, startTime=start_ms)
            events = [(event["timestamp"], name, event["message"]) for answer in answers for event in answer["events"]]
            is_full = len(events) >= _LOG_PAGE
            if is_full:
                start_ms = events[-1][0]
                events = [event for event in events if event[0] < start_ms]
            yield from events


def _publish_keys(cloud: Cloud, jwks: dict[str, Any]) -> None:
    """Publish the issuer's keys for everyone to read, as an issuer's web site does."""
    s3 = aws(cloud, "s3")
    s3.create_bucket(Bucket=_ISSUER_BUCKET)
    s3.delete_public_access_block(Bucket=_ISSUER_BUCKET)
    anyone = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{_ISSUER_BUCKET}/*",
    }
    s3.put_bucket_policy(Bucket=_ISSUER_BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [anyone]}))
    s3.put_object(Bucket=_ISSUER_BUCKET, Key="jwks.json", Body=json.dumps(jwks), ContentType="application/json")


def _ids(cloud: Cloud) -> dict[str, str]:
    """The physical ids of the stack's resources by their logical ones: outputs are for its users."""
    pages = aws(cloud, "cloudformation").get_paginator("list_stack_resources").paginate(StackName=STACK_NAME)
    resources = [resource for page in pages for resource in page["StackResourceSummaries"]]
    return {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in resources}


def _parameter(cloud: Cloud, name: str) -> str:
    """The value that a parameter of the stack has, given or by default."""
    (stack,) = aws(cloud, "cloudformation").describe_stacks(StackName=STACK_NAME)["Stacks"]
    values: dict[str, str] = {given["ParameterKey"]: given["ParameterValue"] for given in stack["Parameters"]}
    return values[name]


def _refusal(cloud: Cloud) -> str:
    """Return which resource the cloud refused, and why: `sam deploy` prints it in the middle of its log."""
    try:
        events = aws(cloud, "cloudformation").describe_stack_events(StackName=STACK_NAME)["StackEvents"]
    except ClientError:
        return ""
    refused = [
        f"template.yaml: {event['LogicalResourceId']}: {event['ResourceStatusReason']}"
        for event in events
        if event["ResourceStatus"].endswith("_FAILED") and event.get("ResourceStatusReason")
    ]
    return refused[-1] if refused else ""


def _gateway_responses(cloud: Cloud, api_id: str) -> None:
    """Set the gateway responses: API Gateway reads them from the API's definition, ministack needs separate calls."""
    client = aws(cloud, "cloudformation")
    template = client.get_template(StackName=STACK_NAME, TemplateStage="Processed")["TemplateBody"]
    if isinstance(template, str):
        template = json.loads(template)
    definition = template["Resources"]["Api"]["Properties"]["Body"]
    gateway = aws(cloud, "apigateway")
    for kind, response in definition.get("x-amazon-apigateway-gateway-responses", {}).items():
        known = ("statusCode", "responseParameters", "responseTemplates")
        told = {name: response[name] for name in known if name in response}
        gateway.put_gateway_response(restApiId=api_id, responseType=kind, **told)
    gateway.create_deployment(restApiId=api_id, stageName=STAGE)


def _concurrency(cloud: Cloud, function: str, number: int) -> None:
    """Set a concurrency as a number. CloudFormation parameters are text; AWS converts them, ministack does not."""
    client = aws(cloud, "lambda")
    for source in client.list_event_source_mappings(FunctionName=function)["EventSourceMappings"]:
        client.update_event_source_mapping(UUID=source["UUID"], ScalingConfig={"MaximumConcurrency": number})


def _stack(cloud: Cloud, ids: dict[str, str], jwks_url: str, state: State, deployed: str) -> Stack:
    try:
        return Stack(
            api_url=f"{cloud.url}/restapis/{ids['Api']}/{STAGE}/_user_request_",
            endpoint_url=cloud.url,
            region=REGION,
            table=ids["LedgerTable"],
            registry_table=ids["RegistryTable"],
            buckets={name.lower(): ids[f"{name}Bucket"] for name in ("Uploads", "Binaries", "Outputs", "Log")},
            queues={"tasks": ids["TaskQueue"], "dead_letters": ids["TaskDeadLetters"]},
            functions={name.removesuffix(_ALIAS): arn for name, arn in ids.items() if name.endswith(_ALIAS)},
            workflow=ids["RunWorkflow"],
            platform_account=_parameter(cloud, "PlatformAccount"),
            issuer=issuer.ISSUER,
            audience=issuer.AUDIENCE,
            jwks_url=jwks_url,
            issuer_key=str(state.key),
            deployed=deployed,
        )
    except KeyError as missing:
        msg = f"the stack has no resource {missing}, which template.yaml must have"
        raise CommandError(msg) from missing


def _log(name: str, state: State | None = None) -> Path:
    return (state or State(ROOT / ".local")).log(name)
