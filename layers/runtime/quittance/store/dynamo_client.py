"""A DynamoDB client that does only what every call needs: JSON, a signature, one HTTP request.

It has the methods of boto3's client that the stores use, with the same arguments, answers and exceptions, and boto3's
credentials. What it leaves out is what a standard client does again at each call although nothing changed: checking our
own arguments against the service's description, choosing an endpoint, describing itself, calling its hooks, deriving
the day's signing key, and copying headers between four classes. docs/adr/0042-our-own-last-mile-to-dynamodb.md has the
figures.

Protocol: AWS JSON 1.0 (the operation in `X-Amz-Target`, bytes as base64 in `B`), Signature Version 4.
"""

import base64
import hashlib
import hmac
import json
import os
import select
import socket
import ssl
import time
import uuid
import zlib
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from http.client import HTTPException, HTTPResponse
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
import botocore
from boto3.session import Session
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError, HTTPClientError, NoCredentialsError
from botocore.httpsession import get_cert_path

_SERVICE: Final = "dynamodb"
_TARGET: Final = "DynamoDB_20120810"
_CONTENT_TYPE: Final = "application/x-amz-json-1.0"
_USER_AGENT: Final = f"Boto3/{boto3.__version__} Botocore/{botocore.__version__} quittance"
_OK: Final = 200
_SERVER_ERROR: Final = 500
_UNNAMED: Final = "InternalServerError"  # of a failure without a name, such as a load balancer's

Answer = dict[str, Any]


class DynamoDB:
    """DynamoDB's operations, as boto3's client has them. Threads may share one.

    Each call is sent once. Raises ClientError for a refusal or failure that DynamoDB names, HTTPClientError if no
    complete answer arrived, so that the call's effect is unknown, and NoCredentialsError.
    """

    def __init__(self, session: Session, *, endpoint: str, connect_s: float, read_s: float) -> None:
        """A client of this endpoint, with the session's credentials and region.

        A call waits `connect_s` for a new connection, and `read_s` for each part of an answer.
        """
        self._credentials = session.get_credentials()
        self._region = session.region_name
        self._connections = _Connections(endpoint, connect_s, read_s)

    def batch_get_item(self, **request: object) -> Answer:
        """BatchGetItem."""
        return self._call("BatchGetItem", request)

    def get_item(self, **request: object) -> Answer:
        """GetItem."""
        return self._call("GetItem", request)

    def put_item(self, **request: object) -> Answer:
        """PutItem."""
        return self._call("PutItem", request)

    def query(self, **request: object) -> Answer:
        """Query: one page."""
        return self._call("Query", request)

    def scan(self, **request: object) -> Answer:
        """Scan: one page."""
        return self._call("Scan", request)

    def transact_get_items(self, **request: object) -> Answer:
        """TransactGetItems."""
        return self._call("TransactGetItems", request)

    def transact_write_items(self, **request: object) -> Answer:
        """TransactWriteItems, with a new `ClientRequestToken` unless the request has one."""
        return self._call("TransactWriteItems", {"ClientRequestToken": str(uuid.uuid4()), **request})

    def update_item(self, **request: object) -> Answer:
        """UpdateItem."""
        return self._call("UpdateItem", request)

    def close(self) -> None:
        """Closes the connections that no call uses. The next call opens a new one."""
        self._connections.close()

    def _call(self, operation: str, request: Mapping[str, Any]) -> Answer:
        body = json.dumps(request, default=_base64, separators=(",", ":")).encode()
        status, checksum, content = self._connections.post(self._signed(operation, body), body)
        answer = _decoded(content, checksum)
        if status != _OK:
            raise ClientError(_failure(status, answer or {}), operation)
        if answer is None:
            raise HTTPClientError(error="the answer is not JSON")
        return answer

    def _signed(self, operation: str, body: bytes) -> dict[str, str]:
        """The headers of a request."""
        if self._credentials is None:
            raise NoCredentialsError
        return signed_headers(
            self._credentials.get_frozen_credentials(),
            region=self._region,
            host=self._connections.host,
            target=f"{_TARGET}.{operation}",
            body=body,
            at=time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        )


def signed_headers(
    credentials: ReadOnlyCredentials, *, region: str, host: str, target: str, body: bytes, at: str
) -> dict[str, str]:
    """The headers of a POST to `/`, signed at a time such as `20261130T120000Z`.

    Signature Version 4: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html.
    """
    headers = {"content-type": _CONTENT_TYPE, "host": host, "x-amz-date": at}
    if credentials.token:
        headers["x-amz-security-token"] = credentials.token
    headers["x-amz-target"] = target
    names, scope = ";".join(headers), f"{at[:8]}/{region}/{_SERVICE}/aws4_request"
    lines = [f"{name}:{value}" for name, value in headers.items()]
    request = "\n".join(["POST", "/", "", *lines, "", names, hashlib.sha256(body).hexdigest()])
    statement = "\n".join(["AWS4-HMAC-SHA256", at, scope, hashlib.sha256(request.encode()).hexdigest()])
    signature = hmac.digest(_signing_key(credentials.secret_key, at[:8], region), statement.encode(), "sha256").hex()
    credential = f"Credential={credentials.access_key}/{scope}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "user-agent": _USER_AGENT}


@lru_cache(maxsize=1)
def _signing_key(secret_key: str, date: str, region: str) -> bytes:
    """The key of a day."""
    key = f"AWS4{secret_key}".encode()
    for part in (date, region, _SERVICE, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


class _Connections:
    """Connections to one endpoint, kept open between calls. As many as calls are made at the same time."""

    def __init__(self, endpoint: str, connect_s: float, read_s: float) -> None:
        self.endpoint = endpoint
        url = urlsplit(endpoint)
        self.host, self._tls = url.netloc, _tls_context() if url.scheme == "https" else None
        self._address = url.hostname or "", url.port or (443 if self._tls else 80)
        self._connect_s, self._read_s = connect_s, read_s
        self._idle: deque[socket.socket] = deque()

    def post(self, headers: Mapping[str, str], body: bytes) -> tuple[int, str | None, bytes]:
        """The status, the checksum if one is stated, and the content of an answer. Raises HTTPClientError."""
        lines = ["POST / HTTP/1.1", f"content-length: {len(body)}"]
        lines += (f"{name}: {value}" for name, value in headers.items())
        request = "\r\n".join([*lines, "", ""]).encode() + body
        connection: socket.socket | None = None
        try:
            connection = self._open()
            connection.sendall(request)  # at once: in parts it would be several packets, each encrypted by itself
            response = HTTPResponse(connection, method="POST")
            response.begin()
            content = response.read()
        except (OSError, HTTPException) as exc:
            if connection:
                connection.close()
            raise HTTPClientError(error=exc) from exc
        if response.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        return response.status, response.headers["x-amz-crc32"], content

    def close(self) -> None:
        """Closes the idle connections."""
        while connection := self._taken():
            connection.close()

    def _open(self) -> socket.socket:
        """An idle connection that its server has not closed, or a new one."""
        while connection := self._taken():
            if not _is_readable(connection):
                return connection
            connection.close()
        connection = socket.create_connection(self._address, self._connect_s)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_hostname=self._address[0])
            connection.settimeout(self._read_s)
        except BaseException:
            connection.close()
            raise
        return connection

    def _taken(self) -> socket.socket | None:
        """The connection that was used last, which no other call gets then; None if none is idle."""
        try:
            return self._idle.pop()
        except IndexError:
            return None


def _is_readable(connection: socket.socket) -> bool:
    """Whether an idle connection has something to read: the end of the stream, or bytes that no call asked for."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or get_cert_path(verify=True))


def _base64(data: object) -> str:
    if isinstance(data, bytes):
        return base64.b64encode(data).decode()
    raise TypeError(type(data))


def _decoded(content: bytes, checksum: str | None) -> Answer | None:
    """The JSON object of an answer; None if it is none. Raises HTTPClientError for a damaged answer."""
    if checksum is not None and str(zlib.crc32(content)) != checksum.strip():
        raise HTTPClientError(error="the answer does not have the checksum that came with it")
    has_bytes = b'"B"' in content  # nearly no answer has: without a hook the decoder is several times as fast
    try:
        answer = json.loads(content, object_hook=_with_bytes if has_bytes else None)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _with_bytes(value: Answer) -> Answer:
    return {"B": base64.b64decode(value["B"])} if value.keys() == {"B"} and isinstance(value["B"], str) else value


def _failure(status: int, stated: Answer) -> Any:  # noqa: ANN401 - botocore's TypedDict lacks these members
    """What botocore's client makes of an answer that is not a success: the failure's name, and all that it states."""
    name = str(stated.get("__type", "")).rpartition("#")[2] or (_UNNAMED if status >= _SERVER_ERROR else str(status))
    message = stated.get("message") or stated.get("Message") or ""
    return {
        **stated,
        "Error": {"Code": name, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
