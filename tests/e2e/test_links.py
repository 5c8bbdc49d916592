"""Links of the API work at every address: the local one, a stage, and custom domains with and without a base path.

Each link is followed as a client follows it: resolved against the URL of the request (RFC 3986 §5).
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from local.client import PREFIX
from local.paths import Stack
from tests.e2e.conftest import Bearer
from tests.e2e.people import User, task
from tests.waiting import GENEROUS_S, until

DOMAINS = {"custom domain": "(none)", "base path": "pay", "nested base path": "pay/v1"}
KINDS = ["local address", "stage", *DOMAINS]


@pytest.fixture(scope="module")
def addresses(stack: Stack, aws: Callable[[str], Any]) -> Iterator[dict[str, tuple[str, str]]]:
    """The addresses of the API by kind: a host (empty for the local address) and the path before the API's own."""
    _, _, api_id, stage, _ = urlsplit(stack.api_url).path.split("/")
    port = urlsplit(stack.endpoint_url).port
    found = {
        "local address": ("", urlsplit(stack.api_url).path),
        "stage": (f"{api_id}.execute-api.localhost:{port}", f"/{stage}"),
    }
    gateway, names = aws("apigateway"), []
    try:
        for kind, path in DOMAINS.items():
            names.append(f"{kind.replace(' ', '-')}.quittance.example")
            gateway.create_domain_name(domainName=names[-1], endpointConfiguration={"types": ["REGIONAL"]})
            gateway.create_base_path_mapping(domainName=names[-1], basePath=path, restApiId=api_id, stage=stage)
            found[kind] = names[-1], "" if path == "(none)" else f"/{path}"
        yield found
    finally:
        for name in names:
            gateway.delete_domain_name(domainName=name)


@pytest.fixture(params=KINDS)
def at(request: pytest.FixtureRequest, addresses: dict[str, tuple[str, str]]) -> tuple[str, str]:
    return addresses[request.param]


@pytest.fixture
def web(stack: Stack, at: tuple[str, str]) -> Iterator[httpx.Client]:
    """An HTTP client for this address, without a token."""
    host, _ = at
    with httpx.Client(headers={"Host": host} if host else {}, timeout=GENEROUS_S, trust_env=False) as client:
        yield client


def url_of(stack: Stack, at: tuple[str, str], path: str) -> str:
    return f"{stack.endpoint_url}{at[1]}{PREFIX}{path}"


def test_the_location_leads_to_the_result(
    stack: Stack, at: tuple[str, str], web: httpx.Client, alice: User, token: Callable[..., str], echo: str
) -> None:
    web.auth = Bearer(lambda: token(alice.name))
    body = task(echo, task_id=uuid.uuid4().hex)
    accepted = web.post(url_of(stack, at, "/tasks/execute"), json=body, headers={"Prefer": "respond-async"})
    assert accepted.status_code == 202, accepted.text
    link = urljoin(str(accepted.url), accepted.headers["Location"])
    assert link == url_of(stack, at, f"/tasks/{body['task_id']}/result")

    def known() -> httpx.Response | None:
        answer = web.get(link)
        assert answer.status_code in {200, 202}, answer.text
        assert answer.headers.get("Location", urlsplit(link).path) == urlsplit(link).path
        return answer if answer.status_code == 200 else None

    assert until(known, "the task is not settled", pause_s=0.1).json()["output"] == "hello"


def test_each_documented_call_is_at_the_documented_server(
    stack: Stack, at: tuple[str, str], web: httpx.Client, alice: User
) -> None:
    described = web.get(url_of(stack, at, "/openapi.json"))
    document = described.json()
    (server,) = document["servers"]
    base = urljoin(str(described.url), server["url"]).rstrip("/")
    assert base == f"{stack.endpoint_url}{at[1]}"
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            answer = web.request(method, base + re.sub(r"{\w+}", "1", path))
            open_to_all = not call["security"] or {} in call["security"]
            expected = {200, 400, 404} if open_to_all else {401}  # 400: a body is missing
            assert answer.status_code in expected, (method, path, answer.text)
            if answer.status_code == 404:
                assert answer.json()["detail"] != "There is nothing at this path.", path


def test_the_docs_page_calls_its_own_server(stack: Stack, at: tuple[str, str], web: httpx.Client) -> None:
    """Swagger UI resolves a server that starts with a slash against the page's origin, as its policy requires."""
    page = web.get(url_of(stack, at, "/docs"))
    spec = re.search(r"spec: (\{.*?\n\}),\n    presets", page.text, re.DOTALL)
    assert spec is not None
    (server,) = json.loads(spec[1])["servers"]
    assert server["url"].startswith("/")
    assert "connect-src 'self'" in page.headers["Content-Security-Policy"]
    health = web.get(urljoin(str(page.url), server["url"]).rstrip("/") + f"{PREFIX}/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
