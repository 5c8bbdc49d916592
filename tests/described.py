"""The committed OpenAPI description as a judge of answers: each must have a described status, media type and schema."""

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from local.openapi import COMMITTED
from quittance.api.http import PREFIX

DOCUMENT: dict[str, Any] = json.loads(COMMITTED.read_text())
PROBLEM_JSON = "application/problem+json"


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path below the prefix, and description of each operation."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path.removeprefix(PREFIX), operation


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """A part of the description, or what it refers to."""
    while "$ref" in part:
        kind, name = part["$ref"].removeprefix("#/components/").split("/")
        part = DOCUMENT["components"][kind][name]
    return part


def flaws(schema: dict[str, Any], value: object) -> list[str]:
    """How a value breaks a schema of the description."""
    return [f"{error.json_path}: {error.message[:300]}" for error in _validator(json.dumps(schema)).iter_errors(value)]


def why_undescribed(method: str, path: str, status: int, media_type: str, body: bytes) -> str | None:
    """What the description does not say about an answer; None if it describes it.

    `path` is encoded, and begins after the prefix. What no route serves is the gateway's 404.
    """
    operation = _operation(method, path)
    if operation is None:
        return None if status in {400, 403, 404, 405, 413, 415, 429} else f"{status} of a path that nothing serves"
    answer = operation["responses"].get(str(status))
    if answer is None:
        return f"the status {status} is not described"
    plain = media_type.replace(" ", "").lower()
    described = {name.replace(" ", ""): content for name, content in resolved(answer)["content"].items()}
    if plain not in described:
        return f"the media type {media_type} is not described for {status}"
    value = json.loads(body) if "json" in plain else body.decode()
    found = flaws(described[plain]["schema"], value)
    return f"{operation['operationId']} {status}: {'; '.join(found)}" if found else None


@cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator({**json.loads(schema), "components": DOCUMENT["components"]})


@cache
def _routes() -> list[tuple[str, re.Pattern[str], dict[str, Any]]]:
    """All routes; those without parameters first, because they win."""
    found = [
        (method, re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path))), operation)
        for method, path, operation in operations()
    ]
    return sorted(found, key=lambda route: route[1].pattern.count("[^/]+"))


def _operation(method: str, path: str) -> dict[str, Any] | None:
    bare = path.partition("?")[0]
    return next((each for its, form, each in _routes() if its == method and form.fullmatch(bare)), None)
