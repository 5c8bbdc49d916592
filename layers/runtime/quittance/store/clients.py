"""AWS clients with explicit time-outs: no call may outlive the money that waits for it."""

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from botocore.config import Config
from botocore.loaders import Loader, create_loader
from botocore.session import Session

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
_ONE_TRY: Final = Config(
    connect_timeout=CALL_MS_MAX / 4_000, read_timeout=CALL_MS_MAX * 3 / 4_000, retries={"total_max_attempts": 1}
)


def dynamodb() -> "DynamoDBClient":
    """A DynamoDB client whose calls end within CALL_MS_MAX, and are sent once."""
    client: DynamoDBClient = _client("dynamodb", _ONE_TRY)
    return client


def s3() -> "S3Client":
    """An S3 client that signs by Signature Version 4 and calls a bucket at its own host in its own region.

    botocore's defaults presign by Version 2 in the regions that once had it, which S3 refuses for buckets made after
    June 2020, and name the global endpoint, which redirects uploads or refuses them outside of us-east-1.
    """
    # At another endpoint, such as the local cloud's, buckets are paths: their hosts' names need not resolve there.
    elsewhere = any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"))
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if elsewhere else "virtual", "us_east_1_regional_endpoint": "regional"},
    )
    client: S3Client = _client("s3", _CONFIG.merge(config))
    return client


def kms() -> "KMSClient":
    """A KMS client."""
    client: KMSClient = _client("kms")
    return client


def functions() -> "LambdaClient":
    """A Lambda client."""
    client: LambdaClient = _client("lambda")
    return client


def sqs() -> "SQSClient":
    """An SQS client whose calls end within CALL_MS_MAX: a lease may run while one is made."""
    client: SQSClient = _client("sqs", _ONE_TRY)
    return client


def events() -> "EventBridgeClient":
    """An EventBridge client."""
    client: EventBridgeClient = _client("events")
    return client


def _client(service: str, config: Config = _CONFIG) -> Any:  # noqa: ANN401 - botocore makes its clients at run time; the callers name the type
    try:
        return _session().create_client(service, config=config)
    except (OSError, MemoryError) as exc:  # it reads the service's description from the disk
        raise PlatformUnavailableError from exc


def without_credentials() -> None:
    """From now on clients are made without looking for credentials; none of them may call. `forget` ends it."""
    _session().set_credentials("none", "none")


def forget() -> None:
    """The next client is made with a new session: new credentials, new connections."""
    _session.cache_clear()


@lru_cache(maxsize=1)
def _session() -> Session:
    session = Session()
    session.register_component("data_loader", _descriptions())
    return session


@lru_cache(maxsize=1)
def _descriptions() -> Loader:
    """The services' descriptions, which are read once and outlive the session."""
    return create_loader()
