"""Upload forms: signed with Signature Version 4, for the bucket's regional host, in every region."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from functools import reduce
from urllib.parse import urlsplit

import pytest
from botocore.session import Session

from quittance.limits import MODULE_BYTES_MAX
from quittance.store import clients
from quittance.store.blobs import Uploads

BUCKET = "stack-uploads-123456789012"
SECRET = "a secret of nobody's"
_SESSION = Session()
SUFFIXES = {one["partition"]: one["dnsSuffix"] for one in _SESSION.get_data("endpoints")["partitions"]}
REGIONS = [
    (region, suffix)
    for partition, suffix in SUFFIXES.items()
    for region in _SESSION.get_available_regions("s3", partition)
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment variables that Lambda sets, and the template's empty endpoint."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a session")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    clients.forget()
    yield
    clients.forget()


def form(monkeypatch: pytest.MonkeyPatch, region: str) -> tuple[str, dict[str, str]]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    clients.forget()
    return Uploads(clients.s3(), bucket=BUCKET).presigned_post("agt_1", 2)


def signature(policy: str, scope: list[str]) -> str:
    """The Signature Version 4 of a form by its specification: the key is derived from each part of the scope."""
    key = reduce(lambda key, part: hmac.digest(key, part.encode(), "sha256"), scope, f"AWS4{SECRET}".encode())
    return hmac.new(key, policy.encode(), hashlib.sha256).hexdigest()


def test_the_table_covers_every_partition() -> None:
    regions = {region for region, _ in REGIONS}
    assert {"us-east-1", "eu-central-1", "cn-north-1", "us-gov-west-1"} <= regions
    assert {suffix for _, suffix in REGIONS} == {*SUFFIXES.values()}


@pytest.mark.parametrize(("region", "suffix"), REGIONS)
def test_upload_forms_are_regional_sigv4(monkeypatch: pytest.MonkeyPatch, region: str, suffix: str) -> None:
    url, fields = form(monkeypatch, region)
    assert fields.keys() == {
        *("key", "policy", "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-security-token"),
        "x-amz-signature",
    }
    key_id, *scope = fields["x-amz-credential"].split("/")
    assert (fields["x-amz-algorithm"], key_id) == ("AWS4-HMAC-SHA256", "AKIDEXAMPLE")
    assert scope == [fields["x-amz-date"][:8], region, "s3", "aws4_request"]
    assert fields["x-amz-signature"] == signature(fields["policy"], scope)
    assert url == f"https://{BUCKET}.s3.{region}.{suffix}/"


def test_the_signed_policy_names_bucket_key_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fields = form(monkeypatch, "us-east-1")
    conditions = json.loads(base64.b64decode(fields["policy"]))["conditions"]
    assert {"bucket": BUCKET} in conditions
    assert {"key": "uploads/agt_1/2"} in conditions
    assert ["content-length-range", 0, MODULE_BYTES_MAX] in conditions


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4566", "http://localhost:4566", "http://[::1]:4566"])
def test_custom_endpoints_use_path_style_urls(monkeypatch: pytest.MonkeyPatch, variable: str, endpoint: str) -> None:
    """An IP address has no subdomains for buckets, and neither has `localhost` without a resolver that knows them."""
    monkeypatch.setenv(variable, endpoint)
    url, fields = form(monkeypatch, "us-east-1")
    assert urlsplit(url)._replace(path="").geturl() == endpoint
    assert urlsplit(url).path.strip("/") == BUCKET
    assert fields["x-amz-algorithm"] == "AWS4-HMAC-SHA256"
