"""The deployed stack at the limits of AWS, which the local cloud also enforces (docs/local-cloud.md)."""

import base64
import json
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from local.paths import Stack
from quittance.api.models import RunRequest
from quittance.api.requests import read_direct
from quittance.limits import FAULTS_NAMED_MAX, LAMBDA_SYNC_BYTES_MAX, MIB, RUN_PLAN_BYTES_MAX
from quittance.usecases.plan import plan
from tests.e2e.people import User, invoke, task
from tests.waiting import until

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("character", "is_text"),
    [("\x01", False), ("\x7f", False), ('"', True), ("\n", True), ("世", True), ("x", True)],
    ids=ascii,
)
def test_an_output_of_1_mib_of_any_character_is_returned(
    stack: Stack, alice: User, echo: str, aws: Callable[[str], Any], character: str, *, is_text: bool
) -> None:
    """Over HTTP, as a stored result, and directly: 1 MiB of control characters was once charged but got a 502."""
    full = character.encode() * (MIB // len(character.encode()))
    encoded = base64.b64encode(full).decode()
    body = task(echo, input=None, input_base64=encoded)
    answers = [alice.http.post("/tasks/execute", json=body), alice.http.get(f"/tasks/{body['task_id']}/result")]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text[:200]
    direct, failed = invoke(aws("lambda"), stack.functions["ExecuteFunction"], body | {"user_id": alice.name})
    assert not failed
    for done in (*(answer.json() for answer in answers), direct):
        assert (done["output"], done["output_base64"]) == ((full.decode(), None) if is_text else (None, encoded))


def test_400_000_unknown_fields_get_a_short_answer(alice: User, echo: str) -> None:
    body = json.dumps(task(echo) | {f"x{number}": 0 for number in range(400_000)})
    assert MIB < len(body) < LAMBDA_SYNC_BYTES_MAX
    answer = alice.http.post("/tasks/execute", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert len(answer.json()["errors"]) == FAULTS_NAMED_MAX + 1
    assert len(answer.content) < 100_000


def test_a_request_too_large_for_lambda_holds_no_credits(alice: User, echo: str, balance: Callable[[str], int]) -> None:
    """An input of 1 MiB may be too large as escaped JSON, but never as base64."""
    before, text = balance(alice.name), "\x01" * MIB
    answer = alice.execute(echo, input=text)
    assert (answer.status_code, answer.json()) == (413, {"message": "Request Too Long"})
    assert balance(alice.name) == before
    done = alice.run(echo, input=None, input_base64=base64.b64encode(text.encode()).decode())
    assert done["success"]


def test_every_route_has_the_gateways_29_seconds(stack: Stack, aws: Callable[[str], Any]) -> None:
    api_id = stack.api_url.split("/restapis/")[1].split("/")[0]
    resources = aws("apigateway").get_resources(restApiId=api_id, embed=["methods"], limit=500)["items"]
    integrations = [
        method["methodIntegration"]
        for resource in resources
        for method in resource.get("resourceMethods", {}).values()
        if method.get("methodIntegration", {}).get("type") == "AWS_PROXY"
    ]
    assert len(integrations) > 10
    assert {integration.get("timeoutInMillis", 29_000) for integration in integrations} == {29_000}


def test_a_rule_with_another_name_cannot_send_tasks(
    stack: Stack, alice: User, echo: str, aws: Callable[[str], Any]
) -> None:
    """The queue's policy allows only rules whose name starts with the stack's name (`aws:SourceArn`)."""
    events, url = aws("events"), stack.queues["tasks"]
    arn = aws("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    tasks = {}
    for rule in ("foreign", "quittance-own"):
        name = f"{rule}-{uuid.uuid4().hex[:8]}"
        events.put_rule(Name=name, EventPattern=json.dumps({"source": [name]}))
        events.put_targets(Rule=name, Targets=[{"Id": "1", "Arn": arn}])
        tasks[rule] = task(echo, user_id=alice.name)
        entry = {"Source": name, "DetailType": "Order", "Detail": json.dumps(tasks[rule])}
        assert events.put_events(Entries=[entry])["FailedEntryCount"] == 0
        if rule == "quittance-own":
            events.remove_targets(Rule=name, Ids=["1"])
            events.delete_rule(Name=name)

    def status(rule: str) -> int:
        return alice.http.get(f"/tasks/{tasks[rule]['task_id']}/result").status_code

    until(lambda: status("quittance-own") == 200, "no worker receives the task of the allowed rule")
    assert status("foreign") == 404


def test_a_plan_of_the_maximum_size_runs(
    stack: Stack, alice: User, echo: str, aws: Callable[[str], Any], api: Callable[..., httpx.Client]
) -> None:
    """Step Functions counts the headers of Lambda's response too: a plan of 256 KiB would end the execution."""
    steps, client = {"user_id": alice.name, "budget": "0.1", "steps": [{"agent_id": echo}]}, aws("stepfunctions")

    def body(size: int) -> dict[str, Any]:
        return steps | {"run_id": "r", "inputs": ["x" * size]}

    def planned(size: int) -> int:
        return len(plan(read_direct(RunRequest, body(size))).model_dump_json())

    most = RUN_PLAN_BYTES_MAX - planned(0)
    assert planned(most) == RUN_PLAN_BYTES_MAX
    for size, refused in ((most, None), (most + 1, "PayloadTooLargeError")):
        run = body(size) | {"run_id": uuid.uuid4().hex[:1]}
        arn = client.start_execution(stateMachineArn=stack.workflow, name=uuid.uuid4().hex, input=json.dumps(run))
        execution: dict[str, Any] = {}

        def ended(arn: str = arn["executionArn"], execution: dict[str, Any] = execution) -> bool:
            execution.update(client.describe_execution(executionArn=arn))
            return execution["status"] != "RUNNING"

        until(ended, "the execution does not end")
        assert execution["status"] == "SUCCEEDED", execution.get("error")
        assert json.loads(execution["output"]).get("refused", {}).get("error") == refused
