"""Generates files from the code: the OpenAPI description from the routes, and the events' JSON Schemas.

`--check` fails if a committed file differs.

An operation is described by its use case: the signature gives parameters, body and answers, the docstring says what it
does, which scope it needs and which errors it raises. Powertools makes the schemas from it. The rest is made here:
ids, security, headers, media types, examples and problems.
"""

import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal

from aws_lambda_powertools.event_handler.openapi.merge import OpenAPIMerge
from pydantic import BaseModel, Field

from local import openapi_texts as texts
from quittance import errors
from quittance.api import events
from quittance.api.http import Api, Operation
from quittance.api.routes import PREFIX, UseCase, media_type_of
from quittance.errors import PROBLEM_TYPE_PREFIX, QuittanceError, classified, problem

ROOT: Final = Path(__file__).parents[1]
COMMITTED: Final = ROOT / "layers" / "runtime" / "quittance" / "openapi.json"
EVENTS: Final = ROOT / "docs" / "events"
EXAMPLES: Final = Path(__file__).with_name("openapi_examples.json")
_SCHEMA_NAMES: Final = {"LineKind": "Kind"}  # names of classes whose schema has kept an older name
_JSON: Final = "application/json"
_PROBLEM_JSON: Final = "application/problem+json"
_ERROR: Final = re.compile(r"\b[A-Z][A-Za-z]*Error\b")
_AS_OTHERS: Final = re.compile(r"as (`[\w.]+`(?:(?:,| and|, and) `[\w.]+`)*) do")
_SCOPE: Final = re.compile(r"\bscope `([a-z:]+)`")
_RAISES: Final = re.compile(r"\s*\bRaises\b")
_REFERENCE: Final = re.compile(r'"#/components/schemas/(\w+)"')
_TOKEN: Final = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "An access token of the configured issuer (RFC 6750). Operations name the scopes that they need.",
}
_SERVER: Final = {
    "url": "https://{host}/{stage}",
    "description": "An API Gateway stage. A deployed API serves this description with its own path as the server.",
    "variables": {
        "host": {
            "default": "api.example.com",
            "description": "On AWS `<api>.execute-api.<region>.amazonaws.com`, or a custom domain.",
        },
        "stage": {"default": "prod", "description": "The stage's name, or the base path of a custom domain."},
    },
}
_DESCRIPTION: Final = (
    "Pay an agent only for work that it did, and prove it. Amounts are credits as decimal strings. Every request may be"
    " repeated: nothing is done twice. Refusals are problem documents (RFC 9457) with a stable `type`."
)
_TAGS: Final = {
    "tasks": "Run agents, and read outcomes and proofs.",
    "agents": "Publish agents, and find them.",
    "accounts": "Credits and bonds.",
    "channels": "Payment channels: one deposit, spent by signed tickets.",
    "payouts": "For the operator who pays withdrawals out.",
    "operations": "For operators: stop agents, accounts and funding.",
    "public": "What anyone may read without a token.",
}
# Problems of the gateway and of unexpected faults, which are no class of errors.
_THROTTLED: Final = {
    "type": PROBLEM_TYPE_PREFIX + "throttled",
    "title": "Too many requests",
    "status": 429,
    "code": "throttled",
    "detail": "Repeat the same request later: nothing is done twice.",
}
_INTERNAL: Final = {
    "type": "about:blank",
    "title": "Internal Server Error",
    "status": 500,
    "code": "internal_error",
    "detail": "Something went wrong here. Repeat the same request: nothing is done twice.",
}
# Problems that do not come from a use case but from the gateway, the authorizer and request parsing.
_EVERYWHERE: Final = (
    (429, "throttled"),
    (500, "answer_too_large"),
    (500, "internal_error"),
    (502, "platform_unavailable"),
    (503, "platform_unavailable"),
    (504, "platform_unavailable"),
)
_LOCKED: Final = ((401, "unauthenticated"),)
_WITH_BODY: Final = ((400, "invalid_request"), (413, "payload_too_large"), (415, "unsupported_media_type"))
_WITH_PARAMETERS: Final = ((400, "invalid_request"),)
_ONE_INPUT: Final = {  # a field that is null counts as absent, unless it is `input`
    "if": {"required": ["input_base64"], "properties": {"input_base64": {"type": "string"}}},
    "then": {"not": {"required": ["input"]}},
    "else": {"required": ["input"]},
}
_NO_CLASS: Final[Sequence[tuple[Mapping[str, Any], Sequence[str], str]]] = (
    (_THROTTLED, ("Retry-After",), "The stage's request rate is exceeded."),
    (_INTERNAL, (), "An unexpected fault of the platform."),
)
_SHARED: Final = {  # described once for all operations
    *_EVERYWHERE,
    *_LOCKED,
    *_WITH_BODY,
    (403, "missing_scope"),
    (404, "not_found"),
}
_GATEWAY_STATUSES: Final = (502, 504)
# What API Gateway says by itself where it does not use the responses of the template. The schemas of both media types
# are the same, because generators look at one of them only.
_GATEWAY_MESSAGES: Final = {
    413: "Request Too Long",
    502: "Internal server error",
    504: "Endpoint request timed out",
}
_GATEWAY_MESSAGE: Final = {
    "type": "object",
    "description": "An answer of the gateway that is not ours.",
    "required": ["message"],
    "properties": {"message": {"type": "string", "description": "What happened."}},
}
_HEALTH: Final = "get_health"
_PENDING_HEADERS: Final = ("Location", "Retry-After", "Preference-Applied")
_DONE: Final = {
    200: "The answer.",
    201: "It is recorded; a repeated request gets the same answer.",
    202: "The task is not settled yet: read its result later.",
}
_PROBLEM_MEMBERS: Final = ("type", "title", "status", "code", "detail")
_FIELD_ERROR: Final = {
    "type": "object",
    "description": "What is wrong with one field.",
    "required": ["field", "message"],
    "properties": {
        "field": {"type": "string", "description": "The path of the field."},
        "message": {"type": "string", "description": "What is wrong with it."},
    },
}
_MEANINGS: Final = {  # of a response with more than one problem type
    400: "The request is not valid.",
    402: "Credits are missing.",
    403: "The account may not do this.",
    404: "There is no such thing, or it is another account's.",
    409: "The request conflicts with the state of what it names.",
    422: "The request is valid, but its terms cannot be met.",
    429: "Too many requests or tasks at once.",
    500: "A fault of the platform.",
    503: "Not now: repeat the request later.",
}


def describe() -> str:
    """Return the OpenAPI description as canonical JSON."""
    merge = OpenAPIMerge(
        title="Quittance",
        version="1",
        openapi_version="3.1.0",
        description=_DESCRIPTION,
        security=[{"token": []}],
        on_conflict="error",
    )
    operations: dict[tuple[str, str], Operation] = {}
    for app in [*apps(), _health()]:
        merge.add_schema(json.loads(app.get_openapi_json_schema()))
        operations |= {(each.path.replace("<", "{").replace(">", "}"), each.method): each for each in app.operations}
    generated = json.dumps(merge.get_openapi_schema(), default=str)
    for name, published in _SCHEMA_NAMES.items():
        generated = re.sub(rf'(?<=["/]){name}"', f'{published}"', generated)
    document: dict[str, Any] = json.loads(generated)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError", "ResponseValidationError"):
        schemas.pop(name, None)  # Powertools' error schemas; the API uses problem+json instead
    for schema in schemas.values():
        _complete_schema(schema)
    problems: set[tuple[int, str]] = set()
    for path, described in document["paths"].items():
        for method in described:
            operation = operations[path.removeprefix(PREFIX), method.upper()]
            own = _problems(described[method], operation)
            described[method] = _operation(described[method], operation, own)
            problems |= own
    schemas["TaskRequest"] |= _ONE_INPUT
    _require_what_is_always_answered(document)
    schemas |= {"FieldError": _FIELD_ERROR, "GatewayMessage": _GATEWAY_MESSAGE}
    schemas |= {_schema_name(code): _problem_schema(code) for _, code in problems}
    document["components"]["responses"] = {
        _response_name(status, code): _refusal(status, [code]) for status, code in problems & _SHARED
    }
    document["components"]["securitySchemes"] = {"token": _TOKEN}
    document["servers"] = [_SERVER]
    document["tags"] = [{"name": name, "description": text} for name, text in _TAGS.items()]
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def errors_of(use_case: UseCase) -> set[type[QuittanceError]]:
    """The errors that a use case's docstring names after "Raises", by class or "as `another` does"."""
    found = set()
    for text in _RAISES.split(inspect.getdoc(use_case) or "")[1:]:
        found |= {getattr(errors, name) for name in _ERROR.findall(text)}
        for others in _AS_OTHERS.findall(text):
            for name in re.findall(r"`([\w.]+)`", others):
                found |= errors_of(_named(use_case, name))
    return found


def scope_of(use_case: UseCase) -> str | None:
    """The scope that a use case's docstring names."""
    named = _SCOPE.search(inspect.getdoc(use_case) or "")
    return named[1] if named else None


def apps() -> list[Api]:
    """The resolvers of all functions that have routes."""
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


class HealthAnswer(BaseModel):
    """Whether the platform works."""

    status: Literal["ok", "degraded"] = Field(description="`degraded` if a part fails.")
    parts: dict[str, Literal["ok", "failing"]] = Field(
        default={}, description="The state of each part by its name; only with the scope."
    )
    seccomp: bool = Field(default=False, description="Whether the kernel filters agents' system calls, too.")


def _health() -> Api:
    """Describe the only route without a resolver: its function imports nothing heavy."""
    app = Api("public", anyone=True)

    def health() -> HealthAnswer:
        """Whether the platform works; with a token of the scope `health:read`, every part is tried and named.

        Raises UnauthenticatedError for an invalid token, MissingScopeError, PlatformUnavailableError.
        """
        raise NotImplementedError

    app.serve("GET /health", health, "Get the platform's health", name=_HEALTH)
    return app


def _named(use_case: UseCase, name: str) -> UseCase:
    found: Any = inspect.getmodule(use_case)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]  # a function that the docstring names


def _problems(described: Mapping[str, Any], operation: Operation) -> set[tuple[int, str]]:
    """Status and code of all problems that an operation answers with."""
    raised = {classified(error)[:2] for error in errors_of(operation.use_case)}
    found = {*_EVERYWHERE, *((int(status), code) for status, code in raised)}
    found.update(() if operation.anyone else _LOCKED)
    found.update(_WITH_BODY if "requestBody" in described else ())
    found.update(_WITH_PARAMETERS if described.get("parameters") else ())
    return found


def _operation(described: Mapping[str, Any], operation: Operation, problems: set[tuple[int, str]]) -> dict[str, Any]:
    example = _examples().get(operation.name, {})
    scope = scope_of(operation.use_case)
    needed = [{"token": [scope] if scope else []}]
    complete: dict[str, Any] = {
        **described,
        "operationId": operation.name,
        "description": _prose(operation.use_case),
        "security": [{}, *needed] if operation.anyone and scope else [] if operation.anyone else needed,
    }
    if "parameters" in described:
        complete["parameters"] = [_parameter(each) for each in described["parameters"]]
    if "requestBody" in described:
        schema = described["requestBody"]["content"][_JSON]["schema"]
        content = {"schema": schema} | ({"example": example["request"]} if "request" in example else {})
        complete["requestBody"] = {"required": True, "description": "The request.", "content": {_JSON: content}}
    answers = {
        status: _answer(int(status), answer, operation, example.get(status))
        for status, answer in described["responses"].items()
        if int(status) < HTTPStatus.BAD_REQUEST
    }
    for status in sorted({status for status, _ in problems}):
        codes = sorted(code for at, code in problems if at == status)
        shared = len(codes) == 1 and (status, codes[0]) in _SHARED
        answers[str(status)] = (
            {"$ref": f"#/components/responses/{_response_name(status, codes[0])}"}
            if shared
            else _refusal(status, codes)
        )
    if operation.name == _HEALTH:  # 503 says which parts fail, unless the issuer's keys cannot be read
        refusal = _refusal(HTTPStatus.SERVICE_UNAVAILABLE, ["platform_unavailable"])
        kinds = [answers["200"]["content"][_JSON]["schema"], refusal["content"][_PROBLEM_JSON]["schema"]]
        refusal["content"][_PROBLEM_JSON]["schema"] = {"oneOf": kinds}
        refusal["content"][_JSON] = {"schema": {"oneOf": kinds}, "example": example["503"]}
        answers["503"] = refusal | {"description": "A part of the platform fails."}
    complete["responses"] = answers
    return complete


def _answer(status: int, answer: Mapping[str, Any], operation: Operation, example: object) -> dict[str, Any]:
    media = media_type_of(operation.use_case)
    name = media.name if media else _JSON
    if media and media.model is None:
        schema = {"type": "object" if name == _JSON else "string"}
    else:
        schema = answer["content"][_JSON]["schema"]
    headers = [*(_PENDING_HEADERS if status == HTTPStatus.ACCEPTED else ()), *(media.headers if media else ())]
    return {
        "description": _DONE[status],
        "content": {name: {"schema": schema} | ({} if example is None else {"example": example})},
    } | ({"headers": {header: texts.HEADERS[header] for header in headers}} if headers else {})


def _refusal(status: int, codes: Sequence[str]) -> dict[str, Any]:
    """A response with one of these problems."""
    samples = {code: _problem(code) for code in codes}
    refs = {code: f"#/components/schemas/{_schema_name(code)}" for code in codes}
    schema: dict[str, Any] = {"$ref": refs[codes[0]]}
    if status in _GATEWAY_MESSAGES:
        schema = {"oneOf": [*({"$ref": ref} for ref in refs.values()), {"$ref": "#/components/schemas/GatewayMessage"}]}
    elif len(codes) > 1:
        schema = {
            "oneOf": [{"$ref": ref} for ref in refs.values()],
            "discriminator": {"propertyName": "code", "mapping": refs},
        }
    examples = {
        code: {"summary": sample.body["title"], "value": {**sample.body, "status": status}}
        for code, sample in samples.items()
    }
    headers = {name for sample in samples.values() for name in sample.headers}
    content = {_PROBLEM_JSON: {"schema": schema, "examples": examples}}
    if status in _GATEWAY_MESSAGES:
        content[_JSON] = {"schema": schema, "example": {"message": _GATEWAY_MESSAGES[status]}}
    return {
        "description": f"{samples[codes[0]].body['title']}." if len(codes) == 1 else _MEANINGS[status],
        "content": content,
    } | ({"headers": {name: texts.HEADERS[name] for name in sorted(headers)}} if headers else {})


def _response_name(status: int, code: str) -> str:
    """The name of a shared response; the gateway has two more statuses for one of them."""
    return _camel(code) + (str(status) if status in _GATEWAY_STATUSES else "")


def _schema_name(code: str) -> str:
    return f"{_camel(code)}Problem"


def _camel(code: str) -> str:
    return "".join(word.capitalize() for word in code.split("_"))


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a problem: an example, the headers of its answer, and what it means."""

    body: Mapping[str, Any]
    headers: frozenset[str]
    meaning: str


@cache
def _known() -> dict[str, _Known]:
    """All problems by code."""
    found = {body["code"]: _Known(body, frozenset(headers), meaning) for body, headers, meaning in _NO_CLASS}
    for error in texts.SAMPLES:
        _, body, headers = problem(error)
        found[body["code"]] = _Known(body, frozenset(headers), _first_paragraph(type(error)))
    return found


def _problem(code: str) -> _Known:
    if code not in _known():
        msg = f"there is no example of the problem {code!r}: add an error to SAMPLES in local/openapi_texts.py"
        raise LookupError(msg)
    return _known()[code]


def _problem_schema(code: str) -> dict[str, Any]:
    known = _problem(code)
    own = {name: value for name, value in known.body.items() if name not in _PROBLEM_MEMBERS}
    return {
        "type": "object",
        "description": known.meaning,
        "required": list(_PROBLEM_MEMBERS),
        "properties": {
            "type": {"type": "string", "const": known.body["type"], "description": "Names the problem; stable."},
            "title": {"type": "string", "description": "The problem in a few words."},
            "status": {"type": "integer", "description": "The status of the answer."},
            "code": {"type": "string", "const": code, "description": "The last part of the type."},
            "detail": {"type": "string", "description": "What is wrong and how to correct it."},
            **{name: _member(name, value) for name, value in own.items()},
        },
    }


def _member(name: str, sample: object) -> dict[str, Any]:
    """The schema of a member that a problem has beside the usual ones, by an example of it."""
    if name not in texts.MEMBERS:
        msg = f"the member {name!r} of a problem has no description: add one to MEMBERS in local/openapi_texts.py"
        raise LookupError(msg)
    description = {"description": texts.MEMBERS[name]}
    if isinstance(sample, list):
        return {"type": "array", "items": {"$ref": "#/components/schemas/FieldError"}} | description
    kind = "integer" if isinstance(sample, int) else "number" if isinstance(sample, float) else "string"
    return {"type": kind} | description


def _first_paragraph(described: type) -> str:
    return (inspect.getdoc(described) or "").partition("\n\n")[0].replace("\n", " ")


def _prose(use_case: UseCase) -> str:
    """A docstring up to "Raises", with each paragraph in one line."""
    before = _RAISES.split(inspect.getdoc(use_case) or "")[0]
    return "\n\n".join(" ".join(part.split()) for part in before.split("\n\n")).strip()


def _parameter(described: Mapping[str, Any]) -> dict[str, Any]:
    schema = dict(described["schema"])
    kinds = [each for each in schema.pop("anyOf", []) if each != {"type": "null"}]  # absent, but never null
    schema |= kinds[0] if kinds else {}
    text = described.get("description") or _text(described["name"], schema)
    for name in ("title", "description"):
        schema.pop(name, None)
    if described["in"] != "header":
        return {**described, "schema": schema, "description": text}
    # A header may be repeated, so the code reads a list; but most clients send one, and generators refuse lists.
    return {**described, "name": described["name"].title(), "schema": {"type": "string"}, "description": text}


def _text(name: str, schema: Mapping[str, Any]) -> str:
    text = schema.get("description") or texts.FIELDS.get(name)
    if not text:
        msg = f"{name!r} has no description: add one to its Field, or to FIELDS in local/openapi_texts.py"
        raise LookupError(msg)
    return str(text)


def _complete_schema(schema: dict[str, Any]) -> None:
    """Describe each property of a model, and drop titles: pydantic's only repeat names."""
    schema.pop("title", None)
    for name, member in schema.get("properties", {}).items():
        member.pop("title", None)
        member["description"] = _text(name, member)
        if member.get("default") is not None and name not in schema.get("required", ()):
            # Generators of TypeScript make members with a default required, also in requests.
            member["description"] += f" By default `{json.dumps(member.pop('default'))}`."


def _require_what_is_always_answered(document: Mapping[str, Any]) -> None:
    """Make all properties of models that are only answered required: Pydantic writes them also if they are defaults."""
    schemas: dict[str, Any] = document["components"]["schemas"]
    operations = [each for methods in document["paths"].values() for each in methods.values()]
    sent = _referred(schemas, [each.get("requestBody", {}) for each in operations])
    written_by_hand = {"JwkSet", "Jwk", HealthAnswer.__name__}
    for name in _referred(schemas, [each["responses"] for each in operations]) - sent - written_by_hand:
        if "properties" in schemas[name]:
            schemas[name]["required"] = [*schemas[name]["properties"]]


def _referred(schemas: Mapping[str, Any], parts: Sequence[object]) -> set[str]:
    """The names of all schemas that these parts refer to, directly or not."""
    found: set[str] = set()
    waiting = {*_REFERENCE.findall(json.dumps(parts))}
    while waiting:
        name = waiting.pop()
        if name not in found and name in schemas:
            found.add(name)
            waiting |= {*_REFERENCE.findall(json.dumps(schemas[name]))}
    return found


@cache
def _examples() -> dict[str, dict[str, Any]]:
    """The examples by operation: its `request`, and its answers by status."""
    found: dict[str, dict[str, Any]] = json.loads(EXAMPLES.read_text())
    return found


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
