"""Writes the OpenAPI description from the routes of all functions; `--check` fails if the committed one differs."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, Final

from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.openapi.merge import OpenAPIMerge

from quittance.errors import PROBLEM_TYPE_PREFIX
from quittance.http import PREFIX, api

ROOT: Final = Path(__file__).parents[1]
COMMITTED: Final = ROOT / "layers" / "runtime" / "quittance" / "openapi.json"
_OPEN: Final = ("/health", "/openapi.json", "/docs", "/.well-known/jwks.json")
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
    """The description as canonical JSON."""
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
    document: dict[str, Any] = json.loads(json.dumps(merge.get_openapi_schema(), default=str))
    document.pop("servers", None)
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError", "ResponseValidationError"):
        schemas.pop(name, None)  # Powertools' own refusals, which ours replace
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
    """The one route that has no resolver: its function imports nothing heavy."""
    app = api()

    @app.get(f"{PREFIX}/health", summary="Is the platform up?", tags=["public"])
    def health() -> Response[str]:
        """`{"status": "ok"}`; with a token of the scope `health:read`, every part is tried and named."""
        raise RuntimeError

    return app


def main() -> int:
    """Writes, or with --check compares."""
    wanted = describe()
    if "--check" not in sys.argv[1:]:
        COMMITTED.write_text(wanted)
        return 0
    if COMMITTED.exists() and COMMITTED.read_text() == wanted:
        return 0
    print("openapi.json is not what the code says: make openapi")
    return 1


if __name__ == "__main__":
    sys.exit(main())
