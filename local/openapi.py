"""Generates files from the code: the OpenAPI description from the routes, and the events' JSON Schemas.

`--check` fails if a committed file differs.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.openapi.merge import OpenAPIMerge

from quittance.api import events
from quittance.api.http import Api
from quittance.api.routes import PREFIX
from quittance.errors import PROBLEM_TYPE_PREFIX

ROOT: Final = Path(__file__).parents[1]
COMMITTED: Final = ROOT / "layers" / "runtime" / "quittance" / "openapi.json"
EVENTS: Final = ROOT / "docs" / "events"
_OPEN: Final = (  # as in template.yaml
    "/health",
    "/openapi.json",
    "/docs",
    "/.well-known/jwks.json",
    "/log/checkpoint",
    "/log/tile/{level}/{index}/{width}",
    "/agents/{agent_id}/.well-known/agent-card.json",
)
_SCHEMA_NAMES: Final = {"LineKind": "Kind"}  # names of classes whose schema has kept an older name
_PROBLEM: Final[dict[str, Any]] = {
    "description": "A refusal (RFC 9457)",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string", "description": "Stable.", "examples": [PROBLEM_TYPE_PREFIX + "insufficient_funds"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "The last part of the type."},
        "detail": {"type": "string", "description": "What is wrong and how to mend it."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}


def describe() -> str:
    """Return the OpenAPI description as canonical JSON."""
    merge = OpenAPIMerge(
        title="Quittance",
        version="1",
        openapi_version="3.1.0",
        description="Pay an agent only for work that it did, and prove it.",
        security=[{"token": []}],
        on_conflict="error",
    )
    for app in [*_apps(), _health()]:
        merge.add_schema(json.loads(app.get_openapi_json_schema()))
    generated = json.dumps(merge.get_openapi_schema(), default=str)
    for name, published in _SCHEMA_NAMES.items():
        generated = re.sub(rf'(?<=["/]){name}"', f'{published}"', generated)
    document: dict[str, Any] = json.loads(generated)
    document.pop("servers", None)
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError", "ResponseValidationError"):
        schemas.pop(name, None)  # Powertools' error schemas; the API uses problem+json instead
    schemas["Problem"] = _PROBLEM_SCHEMA
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _PROBLEM
            if path.removeprefix(PREFIX) in _OPEN:
                operation["security"] = []
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _apps() -> list[APIGatewayRestResolver]:
    found = []
    for path in sorted((ROOT / "functions").glob("*/app.py")):
        spec = importlib.util.spec_from_file_location(f"functions_{path.parent.name}", path)
        if spec is None or spec.loader is None:
            raise ImportError(path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if hasattr(module, "app"):
            found.append(module.app)
    return found


def _health() -> APIGatewayRestResolver:
    """Describe the only route without a resolver: its function imports nothing heavy."""
    app = Api()

    @app.get(f"{PREFIX}/health", summary="Is the platform up?", tags=["public"])
    def health() -> Response[str]:
        """`{"status": "ok"}`; with a token of the scope `health:read`, every part is tried and named."""
        raise RuntimeError

    return app


def event_schemas() -> dict[Path, str]:
    """Return the JSON Schema (2020-12) of each event by its file."""
    found = {}
    for event in events.ALL:
        version = event.model_fields["schema_version"].default
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        schema = head | event.model_json_schema(by_alias=True, mode="serialization")
        found[EVENTS / f"{event.__name__}.v{version}.json"] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    return found


def main() -> int:
    """Write the files, or compare them with `--check`."""
    wanted = {COMMITTED: describe(), **event_schemas()}
    if "--check" not in sys.argv[1:]:
        EVENTS.mkdir(exist_ok=True)
        for path, text in wanted.items():
            path.write_text(text)
        return 0
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} is out of date: run make openapi")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
