"""Our DynamoDB client against boto3's, on a scripted server: the same requests, answers and exceptions."""

import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError, HTTPClientError, NoCredentialsError
from hypothesis import given
from hypothesis import strategies as st

from quittance.store import clients, dynamo_client
from quittance.store.dynamo import BusyError, ConflictError, RefusedError, attempt
from quittance.store.dynamo_client import DynamoDB, signed_headers

REGION = "eu-central-1"
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB")
PUT = {
    "TableName": "ledger",
    "Item": {"pk": {"S": 'é " 😀'}, "n": {"N": "-12"}, "output": {"B": b"\x00\xff"}},
    "ConditionExpression": "attribute_not_exists(pk)",
    "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
}
KEY: dict[str, Any] = {"TableName": "ledger", "Key": {"pk": {"S": "a"}}}
REQUESTS: dict[str, dict[str, Any]] = {
    "put_item": PUT,
    "get_item": {**KEY, "ConsistentRead": True},
    "update_item": {**KEY, "UpdateExpression": "SET a = :a", "ExpressionAttributeValues": {":a": {"N": "1"}}},
    "transact_write_items": {"TransactItems": [{"Put": {"TableName": "ledger", "Item": PUT["Item"]}}]},
    "transact_get_items": {"TransactItems": [{"Get": KEY}]},
    "batch_get_item": {"RequestItems": {"ledger": {"Keys": [KEY["Key"]], "ConsistentRead": True}}},
    "query": {
        "TableName": "ledger",
        "IndexName": "work",
        "Limit": 3,
        "KeyConditionExpression": "#work = :w",
        "ExpressionAttributeNames": {"#work": "work"},
        "ExpressionAttributeValues": {":w": {"S": "OPEN#0"}},
    },
    "scan": {"TableName": "ledger", "ConsistentRead": True},
}
ITEM = {"pk": {"S": "ESC#1"}, "output": {"B": "AP8="}, "B": {"S": "no bytes"}, "share": {"S": '"B"'}}
READ = {"pk": {"S": "ESC#1"}, "output": {"B": b"\x00\xff"}, "B": {"S": "no bytes"}, "share": {"S": '"B"'}}
NAMESPACE = "com.amazonaws.dynamodb.v20120810#"
FAILURES: dict[str, tuple[int, dict[str, Any]]] = {
    "condition": (
        400,
        {
            "__type": f"{NAMESPACE}ConditionalCheckFailedException",
            "message": "The conditional request failed",
            "Item": ITEM,
        },
    ),
    "transaction": (
        400,
        {
            "__type": f"{NAMESPACE}TransactionCanceledException",
            "Message": "Transaction cancelled",
            "CancellationReasons": [{"Code": "None"}, {"Code": "ConditionalCheckFailed", "Item": ITEM}],
        },
    ),
    "throttled": (400, {"__type": "com.amazon.coral.availability#ThrottlingException", "message": "Rate exceeded"}),
    "token": (400, {"__type": "com.amazon.coral.service#ExpiredTokenException", "message": "expired"}),
    "server": (500, {"__type": f"{NAMESPACE}InternalServerError", "message": "The request could not be completed"}),
}


@dataclass
class Server:
    """A server that answers every request with `status` and `content`, and keeps what it was sent."""

    url: str = ""
    status: int = 200
    content: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    close_after: bool = False
    requests: list[tuple[dict[str, str], Any]] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)

    def says(self, status: int, answer: object) -> None:
        self.status, self.content = status, json.dumps(answer).encode()
        self.headers = {"x-amz-crc32": str(zlib.crc32(self.content))}


@pytest.fixture
def server() -> Iterator[Server]:
    script = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.requests.append((headers, json.loads(body)))
            script.connections.add(self.client_address)
            self.send_response(script.status)
            for name, value in script.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(script.content)))
            self.end_headers()
            self.wfile.write(script.content[: len(script.content) - script.cut])
            # As a server that closes idle connections, or dies, without saying so.
            self.close_connection = script.close_after or bool(script.cut)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    script.url = f"http://127.0.0.1:{running.server_port}"
    yield script
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> boto3.session.Session:
    monkeypatch.setattr(dynamo_client._Connections, "post", POST)  # not moto's
    return boto3.session.Session("AKIDEXAMPLE", "nobody's", "a token", region_name=REGION)


POST = dynamo_client._Connections.post


@pytest.fixture
def ours(server: Server, session: boto3.session.Session) -> Iterator[DynamoDB]:
    with closing(DynamoDB(session, endpoint=server.url, connect_s=5, read_s=5)) as client:
        yield client


@pytest.fixture
def boto(server: Server, session: boto3.session.Session) -> Iterator[Any]:
    config = Config(retries={"total_max_attempts": 1})
    with closing(session.client("dynamodb", endpoint_url=server.url, config=config)) as client:
        yield client


def sent(server: Server, call: Callable[[], object]) -> tuple[dict[str, str], Any]:
    server.requests.clear()
    call()
    (request,) = server.requests
    return request


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_those_of_boto3(server: Server, ours: DynamoDB, boto: Any, name: str) -> None:
    request = REQUESTS[name]
    server.says(200, {"Responses": []} if name == "transact_get_items" else {})
    headers, body = sent(server, lambda: getattr(ours, name)(**request))
    boto_headers, boto_body = sent(server, lambda: getattr(boto, name)(**request))
    for each in (body, boto_body):
        assert len(each.pop("ClientRequestToken", "x" * 36)) == 36
    assert body == boto_body
    for header in ("x-amz-target", "content-type", "x-amz-security-token", "host"):
        assert headers[header] == boto_headers[header]


WORD = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


@given(
    access_key=WORD,
    secret_key=WORD,
    token=st.none() | WORD,
    region=WORD,
    host=st.sampled_from(["dynamodb.eu-central-1.amazonaws.com", "127.0.0.1:4566", "localhost:80"]),
    target=WORD,
    body=st.binary(max_size=300),
    at=st.integers(0, 4_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
)
def test_signatures_are_those_of_botocore(
    at: datetime, host: str, body: bytes, target: str, region: str, **key: Any
) -> None:
    credentials = ReadOnlyCredentials(key["access_key"], key["secret_key"], key["token"], None)
    stamp = at.strftime("%Y%m%dT%H%M%SZ")
    ours = signed_headers(credentials, region=region, host=host, target=target, body=body, at=stamp)
    named = {"Content-Type": ours["content-type"], "X-Amz-Target": target}
    request = AWSRequest("POST", f"https://{host}/", named, data=body)
    with mock.patch("botocore.auth.get_current_datetime", return_value=at):
        SigV4Auth(credentials, "dynamodb", region).add_auth(request)
    assert ours["authorization"] == request.headers["Authorization"]
    assert (ours["x-amz-date"], ours.get("x-amz-security-token")) == (
        request.headers["X-Amz-Date"], request.headers.get("X-Amz-Security-Token"),
    )  # fmt: skip


def test_each_transaction_has_a_token_of_its_own_unless_the_caller_names_one(server: Server, ours: DynamoDB) -> None:
    for token in ({}, {}, {"ClientRequestToken": "mine"}):
        ours.transact_write_items(**REQUESTS["transact_write_items"], **token)
    first, second, third = (body["ClientRequestToken"] for _, body in server.requests)
    assert first != second
    assert third == "mine"


def test_bytes_are_read_as_bytes_and_nothing_else_is(server: Server, ours: DynamoDB, boto: Any) -> None:
    server.says(200, {"Item": ITEM})
    assert ours.get_item(**KEY)["Item"] == boto.get_item(**KEY)["Item"] == READ
    server.says(200, {"Items": [ITEM, ITEM], "LastEvaluatedKey": ITEM})
    assert ours.scan(TableName="ledger") == {"Items": [READ, READ], "LastEvaluatedKey": READ}


@pytest.mark.parametrize("failure", FAILURES)
def test_failures_are_those_of_boto3(server: Server, ours: DynamoDB, boto: Any, failure: str) -> None:
    server.says(*FAILURES[failure])
    caught = []
    for client in (ours, boto):
        with pytest.raises(ClientError) as raised:
            client.put_item(**PUT)
        caught.append(raised.value)
    mine, theirs = (error.response for error in caught)
    assert mine["Error"]["Code"] == theirs["Error"]["Code"]
    assert mine["Error"]["Message"] == theirs["Error"]["Message"]
    assert mine.get("Item") == theirs.get("Item")
    assert mine.get("CancellationReasons") == theirs.get("CancellationReasons")
    assert (caught[0].operation_name, mine["ResponseMetadata"]["HTTPStatusCode"]) == ("PutItem", server.status)


def test_a_failed_condition_carries_the_stored_item(server: Server, ours: DynamoDB) -> None:
    server.says(*FAILURES["condition"])
    with pytest.raises(RefusedError) as refused:
        attempt(lambda: ours.put_item(**PUT))
    assert refused.value.items == [READ]


@pytest.mark.parametrize(
    ("status", "content"), [(503, b"<html>no</html>"), (502, b""), (500, b"[1]"), (504, b'{"message": "x"}')]
)
def test_a_failure_without_a_name_may_be_repeated(server: Server, ours: DynamoDB, status: int, content: bytes) -> None:
    """A load balancer's answer is none of DynamoDB's: whether the call took effect is unknown."""
    server.status, server.content = status, content
    with pytest.raises(BusyError) as busy:
        attempt(lambda: ours.put_item(**PUT))
    assert not isinstance(busy.value, ConflictError)


@pytest.mark.parametrize("damage", ["checksum", "cut", "not json", "no object"])
def test_a_damaged_answer_leaves_the_effect_unknown(server: Server, ours: DynamoDB, damage: str) -> None:
    server.says(200, {"Item": ITEM})
    if damage == "checksum":
        server.content = server.content.replace(b"ESC#1", b"ESC#2")
    elif damage == "cut":
        server.cut, server.headers = 3, {}
    else:
        server.content, server.headers = {"not json": b"{", "no object": b"[]"}[damage], {}
    with pytest.raises(HTTPClientError):
        ours.get_item(**KEY)
    with pytest.raises(BusyError):
        attempt(lambda: ours.get_item(**KEY))


def test_a_connection_is_kept_and_replaced_when_its_server_has_closed_it(server: Server, ours: DynamoDB) -> None:
    for _ in range(3):
        ours.get_item(**KEY)
    assert len(server.connections) == 1
    server.close_after = True
    ours.get_item(**KEY)
    (idle,) = ours._connections._idle
    while not dynamo_client._is_readable(idle):  # until the end of the stream has arrived
        pass
    server.close_after = False
    ours.get_item(**KEY)
    assert len(server.connections) == 2


def test_a_failed_call_leaves_no_connection_behind(server: Server, ours: DynamoDB) -> None:
    server.says(200, {"Item": ITEM})
    server.cut, server.headers = 3, {}
    with pytest.raises(HTTPClientError):
        ours.get_item(**KEY)
    assert not ours._connections._idle
    server.cut = 0
    assert ours.get_item(**KEY)["Item"] == READ


def test_an_unreachable_server_is_a_connection_error(session: boto3.session.Session) -> None:
    nowhere = DynamoDB(session, endpoint="http://127.0.0.1:1", connect_s=1, read_s=1)
    with pytest.raises(BusyError):
        attempt(lambda: nowhere.get_item(**KEY))


def test_a_silent_server_is_not_waited_for(session: boto3.session.Session) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = DynamoDB(session, endpoint=url, connect_s=5, read_s=0.05)
        with pytest.raises(BusyError):
            attempt(lambda: client.get_item(**KEY))


def test_threads_share_a_client(server: Server, ours: DynamoDB) -> None:
    server.says(200, {"Item": ITEM})
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ours.get_item(**KEY), range(200)))
    assert answers == [{"Item": READ}] * 200
    assert len(server.connections) <= 8
    assert len(ours._connections._idle) == len(server.connections)


def test_without_credentials_nothing_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    session = boto3.session.Session(region_name=REGION)
    monkeypatch.setattr(session, "get_credentials", lambda: None)
    client = DynamoDB(session, endpoint=server.url, connect_s=1, read_s=1)
    with pytest.raises(NoCredentialsError):
        client.get_item(**KEY)
    assert server.requests == []


def test_renewed_credentials_are_used(server: Server, ours: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.get_item(**KEY)
    renewed = boto3.session.Session("AKIDRENEWED", "nobody's", "another", region_name=REGION).get_credentials()
    assert renewed is not None
    assert ours._credentials is not None
    monkeypatch.setattr(ours._credentials, "get_frozen_credentials", renewed.get_frozen_credentials)
    ours.get_item(**KEY)
    (first, _), (second, _) = server.requests
    assert "AKIDEXAMPLE" in first["authorization"]
    assert "AKIDRENEWED" in second["authorization"]
    assert second["x-amz-security-token"] == "another"


def test_each_regions_endpoint_is_the_one_that_boto3_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    session = boto3.session.Session("a", "b", region_name=REGION)
    partitions = map(session.get_available_regions, ["dynamodb"] * 9, session.get_available_partitions())
    regions = {region for partition in partitions for region in partition} - {"local"}  # DynamoDB Local's
    assert {REGION, "cn-north-1", "us-gov-west-1", "us-iso-east-1"} < regions
    for region in regions:
        with closing(session.client("dynamodb", region_name=region)) as boto:
            assert clients._endpoint("dynamodb", region) == f"{boto.meta.endpoint_url}/"


def test_a_region_that_the_library_does_not_know_has_the_usual_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert clients._endpoint("dynamodb", "mars-north-1") == "https://dynamodb.mars-north-1.amazonaws.com/"


def test_the_environment_may_name_another_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert clients._endpoint("dynamodb", REGION) == "http://127.0.0.1:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:2")
    assert clients._endpoint("dynamodb", REGION) == "http://127.0.0.1:2"
