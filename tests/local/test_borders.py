"""The local cloud rejects what AWS rejects: each limit in local/borders.py, at the limit and one beyond.

The last tests cover limits that ministack itself enforces: they fail if a release stops doing so.
"""

import io
import json
import uuid
import zipfile
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError

from local import cloud, deploy, venvs
from local.paths import State
from quittance import limits
from tests.waiting import until

KIB, MIB = 2**10, 2**20
LAMBDA_SYNC, LAMBDA_ASYNC, GATEWAY = 6_291_556, MIB, 10 * MIB
EVENT, MESSAGE, STATE, ITEM, TRANSACTION = MIB, MIB, 256 * KIB, 400 * KIB, 4 * MIB
ACCOUNT = "000000000000"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/border"
# Returns the requested number of characters, or the size of its event; waits for a file; fails.
CODE = """
import json, os, time
def handler(event, context):
    asked = json.loads(event["body"] or "{}") if "httpMethod" in event else event
    while asked.get("wait") and not os.path.exists(asked["wait"]):
        time.sleep(0.02)
    if "mark" in asked:
        open(asked["mark"], "w").close()
    if asked.get("raise"):
        raise ValueError("an inner secret")
    if "measure" in asked:
        compact = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        return {"statusCode": 200, "body": str(len(compact.encode()))}
    text = asked.get("character", "x") * asked.get("answer", 0)
    if "httpMethod" not in event:
        return text
    return {"statusCode": 200, "body": text}
"""
Cloud = dict[str, Any]


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """Clients of a cloud with the function `border`."""
    venvs.ensure("cloud")
    state = State(tmp_path_factory.mktemp("borders"))
    running = cloud.start(state)
    names = ("iam", "lambda", "apigateway", "sqs", "events", "stepfunctions", "dynamodb", "sts")
    own: Cloud = {name: deploy.aws(running, name) for name in names} | {"url": running.url, "state": state}
    trust = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    own["iam"].create_role(RoleName="border", AssumeRolePolicyDocument=policy(trust))
    own["lambda"].create_function(
        FunctionName="border", Runtime=f"python{venvs.PYTHON_VERSION}", Handler="app.handler", Timeout=60,
        Role=ROLE, Code={"ZipFile": zipped(CODE)},
    )  # fmt: skip
    own["dynamodb"].create_table(
        TableName="border", KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}], BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
    )  # fmt: skip
    yield own
    cloud.stop(state)


def policy(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def zipped(code):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("app.py", code)
    return buffer.getvalue()


def refusal(call, **arguments):
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    return refused.value.response["Error"]["Code"]


def test_limits_in_the_code_equal_those_of_aws():
    """limits.py has the numbers that the functions use; this file has those of AWS."""
    assert limits.LAMBDA_SYNC_BYTES_MAX == LAMBDA_SYNC
    assert limits.EVENT_BYTES_MAX == EVENT
    assert limits.WORKFLOW_STATE_BYTES_MAX == STATE
    assert limits.TRANSACTION_ITEMS_MAX == 100
    assert limits.QUEUE_MESSAGE_BYTES_MAX <= MESSAGE


# Lambda.


def test_synchronous_invocations_have_a_size_limit(clients):
    event = {"answer": 1, "filler": ""}
    event["filler"] = "x" * (LAMBDA_SYNC - len(json.dumps(event)))
    invoke = clients["lambda"].invoke
    assert json.loads(invoke(FunctionName="border", Payload=json.dumps(event))["Payload"].read()) == "x"
    beyond = json.dumps(event) + " "
    assert refusal(invoke, FunctionName="border", Payload=beyond) == "RequestEntityTooLargeException"


def test_asynchronous_invocations_have_a_size_limit(clients, tmp_path):
    event = {"answer": 0, "mark": str(tmp_path / "mark"), "filler": ""}
    event["filler"] = "x" * (LAMBDA_ASYNC - len(json.dumps(event)))
    called = {"FunctionName": "border", "InvocationType": "Event"}
    assert clients["lambda"].invoke(**called, Payload=json.dumps(event))["StatusCode"] == 202
    until((tmp_path / "mark").exists, "the function was not called")
    beyond = json.dumps(event) + " "
    assert refusal(clients["lambda"].invoke, **called, Payload=beyond) == "RequestEntityTooLargeException"


@pytest.mark.parametrize(("character", "size"), [("x", 1), ("\x01", 6)])
def test_function_responses_have_a_size_limit(clients, character, size):
    def answer(number):
        event = json.dumps({"answer": number, "character": character})
        told = clients["lambda"].invoke(FunctionName="border", Payload=event)
        return told.get("FunctionError"), json.loads(told["Payload"].read())

    most = (LAMBDA_SYNC - 2) // size
    assert answer(most) == (None, character * most)
    failed, error = answer(most + 1)
    assert (failed, error["errorType"]) == ("Unhandled", "Function.ResponseSizeTooLarge")


# API Gateway.


def api(clients, name="border", **integration):
    """Create a REST API in front of a function; return its URL."""
    gateway = clients["apigateway"]
    api_id = gateway.create_rest_api(name=uuid.uuid4().hex)["id"]
    root = gateway.get_resources(restApiId=api_id)["items"][0]["id"]
    where = {"restApiId": api_id, "resourceId": root, "httpMethod": "POST"}
    gateway.put_method(**where, authorizationType="NONE")
    function = f"arn:aws:lambda:{cloud.REGION}:{ACCOUNT}:function:{name}"
    uri = f"arn:aws:apigateway:{cloud.REGION}:lambda:path/2015-03-31/functions/{function}/invocations"
    gateway.put_integration(**where, type="AWS_PROXY", integrationHttpMethod="POST", uri=uri, **integration)
    gateway.create_deployment(restApiId=api_id, stageName="v1")
    return f"{clients['url']}/restapis/{api_id}/v1/_user_request_/"


@pytest.fixture(scope="module")
def url(clients):
    return api(clients)


def post(url, content):
    return httpx.post(url, content=content, trust_env=False, timeout=60)


def test_gateway_rejects_bodies_over_10_mib(url):
    at_limit = post(url, b" " * GATEWAY)
    assert (at_limit.status_code, at_limit.json()) == (413, {"message": "Request Too Long"}), (
        "the event is too large for Lambda"
    )
    beyond = post(url, b" " * (GATEWAY + 1))
    assert (beyond.status_code, beyond.text) == (413, f"HTTP content length exceeded {GATEWAY} bytes.")


@pytest.mark.parametrize(("filler", "size"), [("x", 1), ("\\\\", 4), ("é", 2), ("世", 3)], ids=ascii)
def test_gateway_events_have_the_size_limit_of_lambda(url, filler, size):
    """The body is a UTF-8 string in the event's JSON, where backslashes and quotation marks count twice."""

    def sent(number, rest=0):
        return post(url, '{"measure":"' + filler * number + "x" * rest + '"}')

    measured = 6_200_000 // size  # as many digits as the limit, so that the envelope stays the same
    left = LAMBDA_SYNC - int(sent(measured).text)
    at_limit = sent(measured + left // size, left % size)
    assert (at_limit.status_code, at_limit.text) == (200, str(LAMBDA_SYNC))
    beyond = sent(measured + left // size, left % size + 1)
    assert (beyond.status_code, beyond.json()) == (413, {"message": "Request Too Long"})


def test_oversized_function_response_is_a_502(url):
    most = LAMBDA_SYNC - len(json.dumps({"statusCode": 200, "body": ""}))
    at_limit = post(url, json.dumps({"answer": most}))
    assert (at_limit.status_code, len(at_limit.content)) == (200, most)
    beyond = post(url, json.dumps({"answer": most + 1}))
    assert (beyond.status_code, beyond.json()) == (502, {"message": "Internal server error"})


def test_api_callers_do_not_receive_a_functions_error(url):
    answer = post(url, json.dumps({"raise": True}))
    assert (answer.status_code, answer.json()) == (502, {"message": "Internal server error"})


def test_gateway_times_out_and_the_function_continues(clients, tmp_path):
    """A short integration timeout replaces the maximum of 29 s, which AWS and the local cloud permit."""
    impatient = api(clients, timeoutInMillis=200)
    go, mark = tmp_path / "go", tmp_path / "mark"
    late = post(impatient, json.dumps({"answer": 1, "wait": str(go), "mark": str(mark)}))
    assert (late.status_code, late.json()) == (504, {"message": "Endpoint request timed out"})
    assert not mark.exists()
    go.touch()
    until(mark.exists, "the function ended when its gateway timed out")
    patient = api(clients, timeoutInMillis=29_000)
    assert post(patient, json.dumps({"answer": 1, "wait": str(go)})).status_code == 200


def test_cold_start_does_not_count_towards_the_gateway_timeout(clients):
    """On two cores, sixteen cold starts at once can take longer than 29 s."""
    name = uuid.uuid4().hex
    code = "import time; time.sleep(6)\ndef handler(event, context): return {'statusCode': 200, 'body': 'x'}\n"
    clients["lambda"].create_function(
        FunctionName=name, Runtime=f"python{venvs.PYTHON_VERSION}", Handler="app.handler", Timeout=60,
        Role=ROLE, Code={"ZipFile": zipped(code)},
    )  # fmt: skip
    assert post(api(clients, name, timeoutInMillis=5_000), b"{}").status_code == 200


# EventBridge.


def put(clients, size, **entry):
    """Put an entry of this many bytes on the default bus."""
    entry = {"Source": "s", "DetailType": "d", "Detail": '{"x":""}'} | entry
    entry["Detail"] = '{"x":"' + "x" * (size - len(entry["Source"] + entry["DetailType"] + entry["Detail"])) + '"}'
    return clients["events"].put_events(Entries=[entry])


def test_events_have_a_size_limit(clients):
    assert put(clients, EVENT)["FailedEntryCount"] == 0
    assert refusal(put, clients=clients, size=EVENT + 1) == "ValidationException"


def test_events_of_one_call_share_the_size_limit(clients):
    half = {"Source": "s", "DetailType": "d", "Detail": '{"x":"' + "x" * (EVENT // 2 - 10) + '"}'}
    assert clients["events"].put_events(Entries=[half, half])["FailedEntryCount"] == 0
    longer = half | {"Resources": ["r"]}
    assert refusal(clients["events"].put_events, Entries=[half, longer]) == "ValidationException"


def test_rules_send_to_a_queue_only_if_its_policy_permits(clients):
    """The policy has the condition `aws:SourceArn`, as the task queue's. Too large events are not delivered."""
    name, events = uuid.uuid4().hex, clients["events"]
    queue = clients["sqs"].create_queue(QueueName=name)["QueueUrl"]
    arn = f"arn:aws:sqs:{cloud.REGION}:{ACCOUNT}:{name}"

    def delivered(rule, number):
        events.put_rule(Name=rule, EventPattern=json.dumps({"source": [rule]}))
        events.put_targets(Rule=rule, Targets=[{"Id": "1", "Arn": arn}])
        put(clients, number, Source=rule)
        return len(clients["sqs"].receive_message(QueueUrl=queue, VisibilityTimeout=0).get("Messages", []))

    assert delivered(f"mine-{name}", 1_000) == 0, "without a policy no rule may send"
    source = {"ArnLike": {"aws:SourceArn": [f"arn:aws:events:{cloud.REGION}:{ACCOUNT}:rule/mine-*"]}}
    allowed = {"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"}, "Action": "sqs:SendMessage",
               "Resource": arn, "Condition": source}  # fmt: skip
    clients["sqs"].set_queue_attributes(QueueUrl=queue, Attributes={"Policy": policy(allowed)})
    assert delivered(f"yours-{name}", 1_000) == 0
    assert delivered(f"mine-{name}", EVENT) == 0, "with its envelope it exceeds the queue's limit"
    assert delivered(f"mine-{name}", 1_000) == 1


@pytest.mark.parametrize(
    ("key", "sources", "may"),
    [
        ("events:source", ["quittance"], True),
        ("events:source", ["other"], False),
        ("events:source", ["quittance", "other"], False),
        ("events:source", ["quittance", "quittance"], True),
        ("events:detail-type", ["d"], True),
        ("events:detail-type", ["quittance"], True),
    ],
)
def test_policies_can_restrict_event_sources(clients, key, sources, may):
    role = f"events-{uuid.uuid4().hex[:8]}"
    anyone = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    clients["iam"].create_role(RoleName=role, AssumeRolePolicyDocument=policy(anyone))
    wanted = "quittance" if key == "events:source" else "d"
    kept = {"Effect": "Allow", "Action": "events:PutEvents", "Resource": "*",
            "Condition": {"StringEquals": {key: wanted}}}  # fmt: skip
    clients["iam"].put_role_policy(RoleName=role, PolicyName="p", PolicyDocument=policy(kept))
    bus = assumed(clients, role, "events")
    entries = [{"Source": source, "DetailType": "d", "Detail": "{}"} for source in sources]
    if may:
        assert bus.put_events(Entries=entries)["FailedEntryCount"] == 0
    else:
        assert refusal(bus.put_events, Entries=entries) == "AccessDeniedException"


def assumed(clients, role, service):
    from boto3.session import Session

    keys = clients["sts"].assume_role(RoleArn=f"arn:aws:iam::{ACCOUNT}:role/{role}", RoleSessionName=role)
    keys = keys["Credentials"]
    session = Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], cloud.REGION)
    return session.client(service, endpoint_url=clients["url"])


# Step Functions.


def machine(clients, state, language="JSONata"):
    definition = {"QueryLanguage": language, "StartAt": "Only", "States": {"Only": state | {"End": True}}}
    return clients["stepfunctions"].create_state_machine(
        name=uuid.uuid4().hex, definition=json.dumps(definition), roleArn=ROLE
    )["stateMachineArn"]


def ended(clients, arn, text="{}"):
    """Run an execution to its end; return its status and its error or None."""
    execution = clients["stepfunctions"].start_execution(stateMachineArn=arn, input=text)["executionArn"]
    described = {}

    def over():
        described.update(clients["stepfunctions"].describe_execution(executionArn=execution))
        return described["status"] != "RUNNING"

    until(over, "the execution did not end")
    return described["status"], described.get("error")


@pytest.mark.parametrize("character", ["x", "é", "世"])
def test_execution_input_has_a_size_limit(clients, character):
    """The limit counts bytes of UTF-8, not characters."""
    arn = machine(clients, {"Type": "Pass"})
    number, rest = divmod(STATE - 2, len(character.encode()))
    text = '"' + character * number + "x" * rest + '"'
    assert ended(clients, arn, text) == ("SUCCEEDED", None)
    started = clients["stepfunctions"].start_execution
    assert refusal(started, stateMachineArn=arn, input=text + " ") == "ValidationException"


@pytest.mark.parametrize("over", [0, 1])
def test_state_output_has_a_size_limit(clients, over):
    """The state doubles its input, so a permitted input becomes an output over the limit."""
    arn = machine(clients, {"Type": "Pass", "Output": "{% $states.input & $states.input %}"})
    half = "x" * ((STATE - 2) // 2)
    status = ("SUCCEEDED", None) if not over else ("FAILED", "States.DataLimitExceeded")
    assert ended(clients, arn, json.dumps(half + "x" * over)) == status


@pytest.mark.parametrize(("size", "may"), [(STATE - 2_000, True), (STATE - 500, False), (STATE + 1, False)])
def test_task_results_have_a_size_limit(clients, size, may):
    """The headers of Lambda's response, which Step Functions adds, count too."""
    task = {"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke", "Output": "done",
            "Arguments": {"FunctionName": "border", "Payload": {"answer": size}}}  # fmt: skip
    status = ("SUCCEEDED", None) if may else ("FAILED", "States.DataLimitExceeded")
    assert ended(clients, machine(clients, task)) == status


def test_states_in_a_map_have_the_size_limit(clients):
    inner = {"StartAt": "Grow", "States": {"Grow": {"Type": "Pass", "End": True,
             "Output": "{% $states.input & $states.input %}"}}}  # fmt: skip
    many = {"Type": "Map", "Items": "{% [$states.input] %}", "ItemProcessor": inner, "Output": "done"}
    half = "x" * ((STATE - 2) // 2)
    assert ended(clients, machine(clients, many), json.dumps(half)) == ("SUCCEEDED", None)
    assert ended(clients, machine(clients, many), json.dumps(half + "x")) == ("FAILED", "States.DataLimitExceeded")


# Limits that ministack itself enforces.


def test_messages_have_a_size_limit(clients):
    queue = clients["sqs"].create_queue(QueueName=uuid.uuid4().hex)["QueueUrl"]
    clients["sqs"].send_message(QueueUrl=queue, MessageBody="é" * (MESSAGE // 2))
    code = refusal(clients["sqs"].send_message, QueueUrl=queue, MessageBody="é" * (MESSAGE // 2) + "x")
    assert "InvalidParameterValue" in code
    assert "InvalidMessageContents" in refusal(clients["sqs"].send_message, QueueUrl=queue, MessageBody="\x01")


def test_items_have_a_size_limit(clients):
    """Attribute names count too."""
    dynamodb, rest = clients["dynamodb"], len("pk" + "k" + "data")
    dynamodb.put_item(TableName="border", Item={"pk": {"S": "k"}, "data": {"B": bytes(ITEM - rest)}})
    beyond = {"pk": {"S": "k"}, "data": {"B": bytes(ITEM - rest + 1)}}
    assert refusal(dynamodb.put_item, TableName="border", Item=beyond) == "ValidationException"
    grown = {
        "UpdateExpression": "SET more = :m",
        "ExpressionAttributeValues": {":m": {"S": "x"}},
        "TableName": "border",
        "Key": {"pk": {"S": "k"}},
    }
    assert refusal(dynamodb.update_item, **grown) == "ValidationException"


def test_transactions_have_an_item_limit(clients):
    def written(number):
        puts = [{"Put": {"TableName": "border", "Item": {"pk": {"S": f"t{n}"}}}} for n in range(number)]
        return clients["dynamodb"].transact_write_items(TransactItems=puts)

    written(100)
    assert refusal(written, number=101) == "ValidationException"


def test_transactions_have_a_size_limit(clients):
    def written(size):
        data = [{"S": "x" * (size // 20)}] * 20
        puts = [
            {"Put": {"TableName": "border", "Item": {"pk": {"S": f"b{n}"}, "data": text}}}
            for n, text in enumerate(data)
        ]
        return clients["dynamodb"].transact_write_items(TransactItems=puts)

    written(TRANSACTION - 10 * KIB)  # ministack counts the request's JSON
    assert refusal(written, size=TRANSACTION) == "ValidationException"
