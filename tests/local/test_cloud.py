"""The local cloud's process, and the behaviour that launch.py adds to ministack."""

import io
import json
import os
import signal
import socket
import subprocess
import urllib.request
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import ClientError

from local import cloud, deploy, processes, venvs
from local.console import CommandError
from local.paths import ROOT, State
from tests.waiting import until

IAM = "arn:aws:iam::000000000000"
TRUST = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
TABLE = "arn:aws:dynamodb:us-east-1:000000000000:table/table"
KEY = {"pk": {"S": "k"}}
READS = {"Effect": "Allow", "Action": ["dynamodb:GetItem", "dynamodb:PutItem"], "Resource": TABLE}
READS_BUCKET = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::bucket/*"}


@pytest.fixture
def state(tmp_path):
    venvs.ensure("cloud")
    state = State(tmp_path)
    yield state
    cloud.stop(state)


def listening_addresses(process):
    """Return the local addresses of a process's listening sockets (Linux)."""
    inodes = set()
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        target = str(descriptor.readlink())
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process.pid}/net/{table}").read_text("ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1])
    return found


def test_cloud_starts_listens_on_loopback_only_and_stops(state):
    running = cloud.start(state)

    assert cloud.running(state) == running
    with urllib.request.urlopen(f"{running.url}/_ministack/health") as answer:
        assert answer.status == 200
    if Path("/proc").is_dir():
        assert listening_addresses(running.process) == {f"0100007F:{running.port:04X}"}

    assert cloud.stop(state)
    assert cloud.running(state) is None
    assert running.process not in processes.table()
    assert not state.scratch.exists()
    assert not cloud.stop(state)


def test_killed_cloud_restarts_on_the_same_port(state):
    killed = cloud.start(state)
    os.kill(killed.process.pid, signal.SIGKILL)

    assert cloud.running(state) is None
    assert cloud.start(state).port == killed.port


def test_workers_share_one_unpacked_layer(state):
    """Two functions run, and the layer is on disk once."""
    running = cloud.start(state)
    client = deploy.aws(running, "lambda")
    deploy.aws(running, "iam").create_role(RoleName="role", AssumeRolePolicyDocument=policy(TRUST))
    files = {"python/shared.py": "ANSWER = __file__"}
    layer = client.publish_layer_version(LayerName="shared", Content={"ZipFile": zipped(files)})
    answers = []
    for name in ("one", "two"):
        code = "import shared\ndef handler(event, context):\n    return shared.ANSWER\n"
        client.create_function(
            FunctionName=name, Runtime=f"python{venvs.PYTHON_VERSION}", Handler="app.handler",
            Role=f"{IAM}:role/role", Code={"ZipFile": zipped({"app.py": code})},
            Layers=[layer["LayerVersionArn"]],
        )  # fmt: skip
        answers.append(json.loads(client.invoke(FunctionName=name)["Payload"].read()))

    places = {Path(answer).resolve() for answer in answers}
    assert len(set(answers)) == 2
    assert len(places) == 1, "this release of ministack unpacks layers differently: see local/launch.py"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A cloud with a table and a bucket, and clients with the account's credentials."""
    venvs.ensure("cloud")
    state = State(tmp_path_factory.mktemp("shared"))
    running = cloud.start(state)
    own = {name: deploy.aws(running, name) for name in ("iam", "sts", "dynamodb", "s3", "lambda", "apigateway", "sqs")}
    own["dynamodb"].create_table(
        TableName="table", KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}], BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "other")],
        GlobalSecondaryIndexes=[{"IndexName": "index", "KeySchema": [{"AttributeName": "other", "KeyType": "HASH"}],
                                 "Projection": {"ProjectionType": "ALL"}}],
    )  # fmt: skip
    own["s3"].create_bucket(Bucket="bucket")
    yield state, running.url, own
    cloud.stop(state)


@dataclass(frozen=True)
class Tenant:
    """A role on the shared cloud, and clients with it."""

    state: State
    url: str
    own: dict
    name: str

    def may(self, *statements):
        """Set the role's policy to these statements only; return clients with the role."""
        self.own["iam"].put_role_policy(RoleName=self.name, PolicyName="p", PolicyDocument=policy(*statements))
        keys = self.own["sts"].assume_role(RoleArn=f"{IAM}:role/{self.name}", RoleSessionName=self.name)["Credentials"]
        session = Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], cloud.REGION)
        signed = {"s3": Config(signature_version="s3v4")}  # as the functions sign their upload forms
        return {
            name: session.client(name, endpoint_url=self.url, config=signed.get(name)) for name in ("dynamodb", "s3")
        }

    def recorded(self):
        """Return the recorded calls of the role: action, resource, and whether it was allowed."""
        calls = [json.loads(line) for line in self.state.calls.read_text().splitlines()]
        mine = [call for call in calls if call["caller"].endswith(f":assumed-role/{self.name}/{self.name}")]
        return [(call["action"], call["resource"], call["allowed"]) for call in mine]


@pytest.fixture
def tenant(shared):
    state, url, own = shared
    tenant = Tenant(state, url, own, f"tenant-{uuid.uuid4().hex[:8]}")
    own["iam"].create_role(RoleName=tenant.name, AssumeRolePolicyDocument=policy(TRUST))
    return tenant


def policy(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def refusal(call, **arguments):
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    return refused.value.response["Error"]["Code"]


def test_roles_are_enforced_and_their_calls_recorded_once(tenant):
    """A transaction is recorded as its actions, a query with its index, an upload form as the write that it permits."""
    clients = tenant.may(READS, {"Effect": "Allow", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::bucket/up/*"})
    dynamodb = clients["dynamodb"]
    for _ in range(2):
        dynamodb.get_item(TableName="table", Key=KEY)
    assert refusal(dynamodb.delete_item, TableName="table", Key=KEY) == "AccessDeniedException"
    actions = [
        {"Put": {"TableName": "table", "Item": KEY}},
        {"Delete": {"TableName": "table", "Key": {"pk": {"S": "l"}}}},
    ]
    assert refusal(dynamodb.transact_write_items, TransactItems=actions) == "AccessDeniedException"
    assert tenant.own["dynamodb"].scan(TableName="table")["Items"] == []
    query = {"KeyConditionExpression": "other = :o", "ExpressionAttributeValues": {":o": {"S": "o"}}}
    assert refusal(dynamodb.query, TableName="table", IndexName="index", **query) == "AccessDeniedException"
    for key, status in (("up/x", 204), ("x", 403)):
        form = clients["s3"].generate_presigned_post("bucket", key)
        assert httpx.post(form["url"], data=form["fields"], files={"file": b"x"}).status_code == status

    assert tenant.recorded() == [
        ("dynamodb:GetItem", TABLE, True),
        ("dynamodb:DeleteItem", TABLE, False),
        ("dynamodb:PutItem", TABLE, True),
        ("dynamodb:Query", f"{TABLE}/index/index", False),
        ("s3:PutObject", "arn:aws:s3:::bucket/up/x", True),
        ("s3:PutObject", "arn:aws:s3:::bucket/x", False),
    ]


def test_functions_run_with_their_role_and_session_name(tenant):
    tenant.may(READS)
    code = f"""from boto3.session import Session
def handler(event, context):
    Session().client("dynamodb", endpoint_url="{tenant.url}").get_item(TableName="table", Key={KEY})
    return "done"
"""
    tenant.own["lambda"].create_function(
        FunctionName=tenant.name, Runtime=f"python{venvs.PYTHON_VERSION}", Handler="app.handler", Timeout=30,
        Role=f"{IAM}:role/{tenant.name}", Code={"ZipFile": zipped({"app.py": code})},
    )  # fmt: skip
    assert json.loads(tenant.own["lambda"].invoke(FunctionName=tenant.name)["Payload"].read()) == "done"
    assert tenant.recorded() == [("dynamodb:GetItem", TABLE, True)]


def test_missing_objects_are_denied_without_list_permission(tenant):
    assert refusal(tenant.may(READS_BUCKET)["s3"].get_object, Bucket="bucket", Key="x") == "AccessDenied"
    lists = {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::bucket"}
    assert refusal(tenant.may(READS_BUCKET, lists)["s3"].get_object, Bucket="bucket", Key="x") == "NoSuchKey"
    assert [call for call in tenant.recorded() if "ListBucket" in call[0]] == [
        ("s3:ListBucket", "arn:aws:s3:::bucket", False),
        ("s3:ListBucket", "arn:aws:s3:::bucket", True),
    ]


def test_policies_can_restrict_leading_keys(tenant):
    kept = {**READS, "Condition": {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": ["k*"]}}}
    dynamodb = tenant.may(kept)["dynamodb"]
    dynamodb.get_item(TableName="table", Key=KEY)
    assert refusal(dynamodb.get_item, TableName="table", Key={"pk": {"S": "l"}}) == "AccessDeniedException"


def test_leading_keys_restrict_puts_and_transactions(tenant):
    writes = {"Effect": "Allow", "Action": ["dynamodb:PutItem", "dynamodb:UpdateItem"], "Resource": TABLE}
    kept = writes | {"Condition": {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": ["k*"]}}}
    dynamodb = tenant.may(kept)["dynamodb"]

    def write(*keys):
        put, change = ({"pk": {"S": key}} for key in keys)
        return {
            "TransactItems": [
                {"Put": {"TableName": "table", "Item": put}},
                {"Update": {"TableName": "table", "Key": change, "UpdateExpression": "REMOVE a"}},
            ]
        }

    dynamodb.put_item(TableName="table", Item={"pk": {"S": "k1"}})
    assert refusal(dynamodb.put_item, TableName="table", Item={"pk": {"S": "l"}}) == "AccessDeniedException"
    dynamodb.transact_write_items(**write("k1", "k2"))
    assert refusal(dynamodb.transact_write_items, **write("k1", "l")) == "AccessDeniedException"
    assert refusal(dynamodb.transact_write_items, **write("l", "k2")) == "AccessDeniedException"


def test_the_loopback_counts_as_tls(tenant):
    tls_only = {
        "Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::bucket/*",
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }  # fmt: skip
    tenant.own["s3"].put_bucket_policy(Bucket="bucket", Policy=policy(tls_only))
    tenant.own["s3"].put_object(Bucket="bucket", Key="x", Body=b"x")
    assert tenant.may(READS_BUCKET)["s3"].get_object(Bucket="bucket", Key="x")["Body"].read() == b"x"


def test_handler_exceptions_keep_their_name_and_the_worker(state):
    """launch.py corrects this as on Lambda. Without it: `Runtime.HandlerError`, and a new process for each call."""
    running = cloud.start(state)
    client = deploy.aws(running, "lambda")
    deploy.aws(running, "iam").create_role(RoleName="r", AssumeRolePolicyDocument=policy(TRUST))
    code = """
import os
class RefusedError(Exception): pass
def handler(event, context):
    if event.get("raise"):
        raise RefusedError("no")
    return os.getpid()
"""
    client.create_function(
        FunctionName="raising", Runtime=f"python{venvs.PYTHON_VERSION}", Handler="app.handler",
        Role="arn:aws:iam::000000000000:role/r", Code={"ZipFile": zipped({"app.py": code})},
    )  # fmt: skip

    def invoke(event):
        answer = client.invoke(FunctionName="raising", Payload=json.dumps(event).encode())
        return json.loads(answer["Payload"].read()), answer.get("FunctionError")

    first = invoke({})
    error, kind = invoke({"raise": True})
    assert (error["errorType"], error["errorMessage"], kind) == ("RefusedError", "no", "Unhandled")
    assert error["requestId"]
    assert "raise RefusedError" in "".join(error["stackTrace"])
    assert invoke({}) == first, "the call ran in another process"
    until(
        lambda: any("[ERROR] RefusedError: no" in line for line in deploy.functions_log(running)),
        "the log does not contain the error",
    )


def test_failed_async_event_goes_to_the_alias_destination(tenant):
    """launch.py corrects this as on AWS. Without it: three attempts, and the event is lost."""
    code = "def handler(event, context):\n    raise ValueError(event)\n"
    client, sqs = tenant.own["lambda"], tenant.own["sqs"]
    client.create_function(
        FunctionName=tenant.name, Runtime=f"python{venvs.PYTHON_VERSION}", Handler="app.handler", Timeout=30,
        Role=f"{IAM}:role/{tenant.name}", Code={"ZipFile": zipped({"app.py": code})}, Publish=True,
    )  # fmt: skip
    client.create_alias(FunctionName=tenant.name, Name="live", FunctionVersion="1")
    queue = sqs.create_queue(QueueName=tenant.name)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    client.put_function_event_invoke_config(
        FunctionName=tenant.name, Qualifier="live", MaximumRetryAttempts=1,
        DestinationConfig={"OnFailure": {"Destination": arn}},
    )  # fmt: skip
    client.invoke(FunctionName=f"{tenant.name}:live", InvocationType="Event", Payload=b'{"a": 1}')
    found = until(lambda: sqs.receive_message(QueueUrl=queue).get("Messages"), "the event is not in the queue")
    assert json.loads(found[0]["Body"])["requestPayload"] == {"a": 1}


ECHO = "import json\ndef handler(event, context):\n    return {'statusCode': 200, 'body': json.dumps(event)}\n"


def put_function(tenant, name, code):
    return tenant.own["lambda"].create_function(
        FunctionName=name, Runtime=f"python{venvs.PYTHON_VERSION}", Handler="app.handler", Timeout=30,
        Role=f"{IAM}:role/{tenant.name}", Code={"ZipFile": zipped({"app.py": code})},
    )["FunctionArn"]  # fmt: skip


def invoked_by(function):
    return f"arn:aws:apigateway:{cloud.REGION}:lambda:path/2015-03-31/functions/{function}/invocations"


def put_api(tenant, code, **method):
    """Create an API with one route, `GET /ids/{id}`; return its id."""
    api = tenant.own["apigateway"]
    api_id = api.create_rest_api(name=tenant.name)["id"]
    parent = api.get_resources(restApiId=api_id)["items"][0]["id"]
    for part in ("ids", "{id}"):
        parent = api.create_resource(restApiId=api_id, parentId=parent, pathPart=part)["id"]
    where = {"restApiId": api_id, "resourceId": parent, "httpMethod": "GET"}
    if "authorizer" in method:
        method["authorizerId"] = api.create_authorizer(
            restApiId=api_id, name="a", type="REQUEST", authorizerUri=invoked_by(method.pop("authorizer")),
            identitySource="method.request.header.Authorization", authorizerResultTtlInSeconds=60,
        )["id"]  # fmt: skip
    api.put_method(**where, **{"authorizationType": "NONE"} | method)
    uri = invoked_by(put_function(tenant, tenant.name, code))
    api.put_integration(**where, type="AWS_PROXY", integrationHttpMethod="POST", uri=uri)
    return api_id


def get(tenant, path, **headers):
    url = httpx.URL(tenant.url).copy_with(raw_path=path.encode())
    return httpx.get(url, headers=headers, trust_env=False)


def test_paths_reach_functions_as_the_client_encoded_them(tenant):
    """launch.py corrects this as in REST APIs on AWS. Without it: `a|b`, and an encoded slash is 403."""
    api_id = put_api(tenant, ECHO)
    tenant.own["apigateway"].create_deployment(restApiId=api_id, stageName="v1")
    for sent in ("a%7Cb", "a%2Fb", "%2e%2E", "a%257Cb", "%22", "%C3%A9", "%zz", "plain~-._"):
        event = get(tenant, f"/_aws/execute-api/{api_id}/v1/ids/{sent}?q=%7C%257C").json()
        assert (event["path"], event["pathParameters"]) == (f"/ids/{sent}", {"id": sent})
        assert event["requestContext"]["path"] == f"/v1/ids/{sent}"
        assert event["queryStringParameters"] == {"q": "|%7C"}, "decoded once"


def test_request_context_contains_the_requested_path(tenant):
    """launch.py corrects this. Without it links do not work at the local address, and base paths differ from AWS."""
    api_id, api = put_api(tenant, ECHO), tenant.own["apigateway"]
    api.create_deployment(restApiId=api_id, stageName="v1")
    for base in ("(none)", "pay"):
        domain = f"{base.strip('()')}.{tenant.name.lower()}.example"
        api.create_domain_name(domainName=domain, endpointConfiguration={"types": ["REGIONAL"]})
        api.create_base_path_mapping(domainName=domain, basePath=base, restApiId=api_id, stage="v1")
        recorded = "/ids/a%2Fb" if base == "(none)" else "/pay/ids/a%2Fb"
        event = get(tenant, recorded, Host=domain).json()
        assert (event["path"], event["requestContext"]["path"], event["resource"]) == (recorded, recorded, "/ids/{id}")
    here = f"/restapis/{api_id}/v1/_user_request_/ids/x"
    event = get(tenant, here).json()
    assert (event["path"], event["requestContext"]["path"]) == ("/ids/x", here)
    event = get(tenant, "/v1/ids/x", Host=f"{api_id}.execute-api.localhost").json()
    assert (event["path"], event["requestContext"]["path"]) == ("/ids/x", "/v1/ids/x")


DENY = """
def handler(event, context):
    word = event["headers"]["authorization"]
    statement = {"Action": "execute-api:Invoke", "Effect": word, "Resource": "*"}
    return {"principalId": "p", "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
            "context": {"challenge": 'Bearer error="e"', "refused": "Because."}}
"""
CHALLENGED = "def handler(event, context):\n    return {'statusCode': 403, 'headers': {'WWW-Authenticate': 'Bearer'}}\n"


def test_gateway_responses_quote_the_authorizer_context(tenant):
    """launch.py adds this as in REST APIs on AWS: also for cached results, and never with another request's context."""
    api = tenant.own["apigateway"]
    authorizer = put_function(tenant, f"{tenant.name}-authorizer", DENY)
    api_id = put_api(tenant, CHALLENGED, authorizationType="CUSTOM", authorizer=authorizer)
    for kind in ("ACCESS_DENIED", "UNAUTHORIZED"):
        api.put_gateway_response(
            restApiId=api_id, responseType=kind, statusCode="401",
            responseParameters={"gatewayresponse.header.WWW-Authenticate": "context.authorizer.challenge"},
            responseTemplates={"application/json": '{"said":"$context.authorizer.refused $context.authorizer.none."}'},
        )  # fmt: skip
    api.create_deployment(restApiId=api_id, stageName="v1")
    path = f"/_aws/execute-api/{api_id}/v1/ids/x"
    for _ in range(2):
        denied = get(tenant, path, Authorization="Deny")
        assert (denied.status_code, denied.json()) == (401, {"said": "Because. ."})
        assert denied.headers["WWW-Authenticate"] == 'Bearer error="e"'
    anonymous = get(tenant, path)
    assert (anonymous.status_code, anonymous.json()) == (401, {"said": " ."})
    assert "WWW-Authenticate" not in anonymous.headers
    allowed = get(tenant, path, Authorization="Allow")
    assert (allowed.status_code, allowed.headers["x-amzn-Remapped-WWW-Authenticate"]) == (403, "Bearer")
    assert "WWW-Authenticate" not in allowed.headers


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


OUTLIVED = """
import os, sys
from pathlib import Path
from local import cloud
from local.paths import State
from tests import clouds
clouds.hold_lifeline()
cloud.start(State(Path(sys.argv[1])))
print("up", flush=True)
sys.stdin.read()
"""


def test_cloud_ends_when_the_tests_are_killed(state):
    python = venvs.ensure("dev") / "python"
    tests = subprocess.Popen(
        [python, "-c", OUTLIVED, state.root], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert tests.stdout.readline() == b"up\n"
    running = cloud.running(state)
    client = deploy.aws(running, "lambda")
    deploy.aws(running, "iam").create_role(RoleName="r", AssumeRolePolicyDocument=policy(TRUST))
    client.create_function(
        FunctionName="sleeps", Runtime=f"python{venvs.PYTHON_VERSION}", Handler="app.handler",
        Role=f"{IAM}:role/r", Code={"ZipFile": zipped({"app.py": "def handler(event, context): return 1"})},
    )  # fmt: skip
    client.invoke(FunctionName="sleeps")
    everything = processes.family({running.process})
    assert len(everything) > 1, "the function's process is missing"
    tests.kill()
    tests.communicate()
    until(lambda: not everything & processes.table().keys(), "a process is still running")


def test_start_on_a_taken_port_fails_with_a_message(state):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(CommandError, match=f"port {port} on 127.0.0.1 is taken"):
            cloud.start(state, port)


def test_cloud_of_a_copied_checkout_is_not_touched(state, tmp_path):
    running = cloud.start(state)
    copy = State(tmp_path / "copy")
    copy.root.mkdir()
    copy.process.write_bytes(state.process.read_bytes())

    assert cloud.running(copy) is None
    assert not cloud.stop(copy)
    assert cloud.running(state) == running
