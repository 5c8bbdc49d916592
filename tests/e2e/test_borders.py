"""The deployed stack at the limits of AWS, which the local cloud enforces too (docs/local-cloud.md)."""

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
from tests.e2e.people import User, task
from tests.waiting import until

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("character", "is_text"),
    [("\x01", False), ("\x7f", False), ('"', True), ("\n", True), ("世", True), ("x", True)],
    ids=ascii,
)
def test_a_full_output_of_any_character_is_delivered(
    stack: Stack, alice: User, echo: str, aws: Callable[[str], Any], character: str, *, is_text: bool
) -> None:
    """1 MiB of control characters was paid for, and answered with 502: the same over HTTP, again, and directly."""
    full = character.encode() * (MIB // len(character.encode()))
    encoded = base64.b64encode(full).decode()
    body = task(echo, input=None, input_base64=encoded)
    answers = [alice.http.post("/tasks/execute", json=body), alice.http.get(f"/tasks/{body['task_id']}/result")]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text[:200]
    payload = json.dumps(body | {"user_id": alice.name}).encode()
    direct = aws("lambda").invoke(FunctionName=stack.functions["ExecuteFunction"], Payload=payload)
    assert "FunctionError" not in direct
    for done in (*(answer.json() for answer in answers), json.loads(direct["Payload"].read())):
        assert (done["output"], done["output_base64"]) == ((full.decode(), None) if is_text else (None, encoded))


def test_half_a_million_unknown_fields_get_a_short_answer(alice: User, echo: str) -> None:
    body = json.dumps(task(echo) | {f"x{number}": 0 for number in range(400_000)})
    assert MIB < len(body) < LAMBDA_SYNC_BYTES_MAX
    answer = alice.http.post("/tasks/execute", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert len(answer.json()["errors"]) == FAULTS_NAMED_MAX + 1
    assert len(answer.content) < 100_000


def test_a_request_that_lambda_does_not_take_holds_nothing(
    alice: User, echo: str, balance: Callable[[str], int]
) -> None:
    """An input of 1 MiB may be too large as JSON; as base64 it is not."""
    before, text = balance(alice.name), "\x01" * MIB
    answer = alice.execute(echo, input=text)
    assert (answer.status_code, answer.json()) == (413, {"message": "Request Too Long"})
    assert balance(alice.name) == before
    done = alice.run(echo, input=None, input_base64=base64.b64encode(text.encode()).decode())
    assert done["success"]


def test_every_route_is_given_the_gateways_29_seconds(stack: Stack, aws: Callable[[str], Any]) -> None:
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


def test_a_rule_of_another_name_cannot_send_tasks(
    stack: Stack, alice: User, echo: str, aws: Callable[[str], Any]
) -> None:
    """The queue's policy lets in rules that bear the stack's name: `aws:SourceArn`."""
    events, url = aws("events"), stack.queues["tasks"]
    arn = aws("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    asked = {}
    for rule in ("foreign", "quittance-own"):
        name = f"{rule}-{uuid.uuid4().hex[:8]}"
        events.put_rule(Name=name, EventPattern=json.dumps({"source": [name]}))
        events.put_targets(Rule=name, Targets=[{"Id": "1", "Arn": arn}])
        asked[rule] = task(echo, user_id=alice.name)
        entry = {"Source": name, "DetailType": "Order", "Detail": json.dumps(asked[rule])}
        assert events.put_events(Entries=[entry])["FailedEntryCount"] == 0
        if rule == "quittance-own":
            events.remove_targets(Rule=name, Ids=["1"])
            events.delete_rule(Name=name)

    def status(rule: str) -> int:
        return alice.http.get(f"/tasks/{asked[rule]['task_id']}/result").status_code

    until(lambda: status("quittance-own") == 200, "nobody takes the task of a rule that may send")
    assert status("foreign") == 404


def test_a_plan_of_the_largest_size_runs(
    stack: Stack, alice: User, echo: str, aws: Callable[[str], Any], api: Callable[..., httpx.Client]
) -> None:
    """Step Functions counts the headers of Lambda's answer too: a plan of 256 KiB ended the execution."""
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
        told: dict[str, Any] = {}

        def ended(arn: str = arn["executionArn"], told: dict[str, Any] = told) -> bool:
            told.update(client.describe_execution(executionArn=arn))
            return told["status"] != "RUNNING"

        until(ended, "the execution does not end")
        assert told["status"] == "SUCCEEDED", told.get("error")
        assert json.loads(told["output"]).get("refused", {}).get("error") == refused
