"""AWS clients with explicit time-outs: no call may outlive the money that waits for it."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

import botocore.session
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoRegionError
from botocore.loaders import Loader, create_loader

from quittance.errors import PlatformUnavailableError
from quittance.limits import CALL_MS_MAX

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_kms import KMSClient
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

_CONFIG: Final = Config(
    connect_timeout=1,
    read_timeout=3,
    retries={"mode": "standard", "total_max_attempts": 2},
)
# One try: who calls tries again, because he knows how long he may, and where a conflict is to be avoided.
_CONNECT_S: Final = CALL_MS_MAX / 4_000
_READ_S: Final = CALL_MS_MAX * 3 / 4_000
_ONE_TRY: Final = Config(connect_timeout=_CONNECT_S, read_timeout=_READ_S, retries={"total_max_attempts": 1})


def dynamodb() -> "DynamoDBClient":
    """A DynamoDB client whose calls end within CALL_MS_MAX, and are sent once. It has the methods that stores use."""
    from quittance.store.dynamo_client import DynamoDB

    with _description_read():
        session = _session()
        endpoint = _endpoint("dynamodb", session.region_name)
        client = DynamoDB(session, endpoint=endpoint, connect_s=_CONNECT_S, read_s=_READ_S)
    return cast("DynamoDBClient", client)


def s3() -> "S3Client":
    """An S3 client that signs by Signature Version 4 and calls a bucket at its own host in its own region.

    The SDK's defaults presign by Version 2 in the regions that once had it, which S3 refuses for buckets made after
    June 2020, and name the global endpoint, which redirects uploads or refuses them outside of us-east-1.
    """
    # At another endpoint, such as the local cloud's, buckets are paths: their hosts' names need not resolve there.
    elsewhere = any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"))
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if elsewhere else "virtual", "us_east_1_regional_endpoint": "regional"},
    )
    with _description_read():
        return _session().client("s3", config=_CONFIG.merge(config))


def kms() -> "KMSClient":
    """A KMS client."""
    with _description_read():
        return _session().client("kms", config=_CONFIG)


def functions() -> "LambdaClient":
    """A Lambda client."""
    with _description_read():
        return _session().client("lambda", config=_CONFIG)


def sqs() -> "SQSClient":
    """An SQS client whose calls end within CALL_MS_MAX: a lease may run while one is made."""
    with _description_read():
        return _session().client("sqs", config=_ONE_TRY)


def events() -> "EventBridgeClient":
    """An EventBridge client."""
    with _description_read():
        return _session().client("events", config=_CONFIG)


def invoke_later(client: "LambdaClient", function: str, payload: Mapping[str, object]) -> None:
    """Starts an asynchronous invocation. Raises PlatformUnavailableError; it may run nevertheless."""
    try:
        client.invoke(FunctionName=function, InvocationType="Event", Payload=json.dumps(payload))
    except (ClientError, BotoCoreError) as exc:
        raise PlatformUnavailableError from exc


def without_credentials() -> None:
    """From now on clients are made without looking for credentials; none of them may call. `forget` ends it."""
    forget()
    _credentials.update(dict.fromkeys(("aws_access_key_id", "aws_secret_access_key"), "none"))


def forget() -> None:
    """The next client is made with a new session: new credentials, new connections."""
    _session.cache_clear()
    _credentials.clear()


def _endpoint(service: str, region: str | None) -> str:
    """The address of a service in a region, or the one that an environment variable names. Raises NoRegionError."""
    for name in (f"AWS_ENDPOINT_URL_{service.upper()}", "AWS_ENDPOINT_URL"):
        if elsewhere := os.environ.get(name):
            return elsewhere
    if region is None:
        raise NoRegionError
    partitions = _descriptions().load_data("partitions")["partitions"]
    suffixes = (each["outputs"]["dnsSuffix"] for each in partitions if re.match(each["regionRegex"], region))
    suffix = next(suffixes, "amazonaws.com")  # a region that is newer than this library
    return f"https://{service}.{region}.{suffix}/"


@contextmanager
def _description_read() -> Iterator[None]:
    """Making a client reads the description of its service from the disk, which may fail."""
    try:
        yield
    except (OSError, MemoryError) as exc:
        raise PlatformUnavailableError from exc


@lru_cache(maxsize=1)
def _session() -> Session:
    """The session that makes all clients. Threads may share clients but not a session: one thread makes them all."""
    below = botocore.session.Session()
    session = Session(botocore_session=below, **_credentials)
    # boto3 adds a search path to the loader that it finds: the shared loader is registered later, or it would grow.
    below.register_component("data_loader", _descriptions())
    return session


@lru_cache(maxsize=1)
def _descriptions() -> Loader:
    """The services' descriptions. They are read once and kept when the session is forgotten."""
    return create_loader()


_credentials: dict[str, str] = {}  # what a new session is given; when empty, it looks for credentials
