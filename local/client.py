"""A small client of the HTTP API, for the seed, the demo and the tests' fixtures."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "/api/v1/economic"
_ANSWER_SECONDS = 60
_PUBLISH_SECONDS = 180.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RefusedError(Exception):
    """The API rejected a call, or an operation failed."""


@dataclass(frozen=True)
class Api:
    """The API with one bearer token, or none."""

    url: str
    token: str = ""

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """GET a path; return its JSON."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """POST JSON to a path; return the response's JSON."""
        return self._call("POST", path, json.dumps(body).encode())

    def _call(self, method: str, path: str, body: bytes | None) -> Any:  # noqa: ANN401 - JSON
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        url = f"{self.url}{PREFIX}{path}"
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310 - our own API
        return json.loads(_send(request))


def publish(api: Api, name: str, module: bytes, terms: Mapping[str, Any]) -> str:
    """Register an agent, upload its module and wait until it is active; return its id."""
    registered = api.post("/agents", {"name": name, **terms})
    agent_id = str(registered["agent_id"])
    upload(registered["upload"], module)
    deadline = time.monotonic() + _PUBLISH_SECONDS
    while (agent := api.get(f"/agents/{agent_id}"))["state"] != "active":
        if agent["state"] in {"rejected", "failed"}:
            msg = f"{name} was {agent['state']}: {agent.get('rejection')}"
            raise RefusedError(msg)
        if time.monotonic() > deadline:
            msg = f"{name} is still {agent['state']} after {_PUBLISH_SECONDS:.0f} s"
            raise RefusedError(msg)
        time.sleep(0.1)
    return agent_id


def upload(form: Mapping[str, Any], module: bytes) -> None:
    """Upload a file with a presigned form."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in form["fields"].items()
    ]
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="module.wasm"\r\n'
        "Content-Type: application/wasm\r\n\r\n"
    )
    body = b"".join([*parts, head.encode(), module, f"\r\n--{boundary}--\r\n".encode()])
    content_type = f"multipart/form-data; boundary={boundary}"
    _send(urllib.request.Request(form["url"], body, {"Content-Type": content_type}))  # noqa: S310 - our own bucket


def _send(request: urllib.request.Request) -> bytes:
    try:
        with _OPENER.open(request, timeout=_ANSWER_SECONDS) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        body = error.read(2000).decode(errors="replace")
        msg = f"{request.get_method()} {request.selector} returned {error.code}: {body}"
        raise RefusedError(msg) from error
