"""HTTP for all functions: routes by Powertools, exact JSON, the authorizer's identity, errors as problem+json."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Final, TypeVar

from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from quittance.errors import (
    InvalidRequestError,
    NotFoundError,
    QuittanceError,
    TaskInProgressError,
    UnauthenticatedError,
    UnsupportedMediaTypeError,
    problem,
)
from quittance.identity import Caller
from quittance.limits import JSON_DEPTH_MAX
from quittance.messages import Message
from quittance.models import DirectTaskRequest, TaskPending, TaskResult
from quittance.observability import logger

PREFIX: Final = "/api/v1/economic"
_JSON: Final = "application/json"
_PROBLEM_JSON: Final = "application/problem+json"
_PLACES: Final = frozenset({"body", "query", "path", "header"})
_SHOULD: Final = re.compile(r"^\w+ should")
_SHA256: Final = re.compile(r"^[0-9a-f]{64}$")
_RETRY_AFTER_S: Final = 2
_SENTENCES: Final = {
    "extra_forbidden": "is not a known field",
    "missing": "is required",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "union_tag_not_found": "must be an object with a type",
    "union_tag_invalid": "must have one of the types {expected_tags}",
}
_Model = TypeVar("_Model", bound=BaseModel)


class Api(APIGatewayRestResolver):
    """The resolver that every HTTP function mounts its routes on: it takes JSON and nothing else."""

    def resolve(self, event: Mapping[str, Any], context: Any) -> dict[str, Any]:  # noqa: ANN401 - as its base class
        """The answer to a REST API proxy event; every refusal and failure is one."""
        try:
            plain = _plain_json(event)
        except QuittanceError as error:
            return _proxy(_refuse(error))
        return super().resolve(plain, context)


def api() -> Api:
    """A resolver without routes yet."""
    app = Api(enable_validation=True, json_body_deserializer=read_json)
    app.exception_handler(QuittanceError)(_refuse)
    app.exception_handler(RequestValidationError)(_refuse_fields)
    app.not_found(lambda _: _refuse(NotFoundError("There is nothing at this path.")))
    app.exception_handler(Exception)(_fail)
    return app


def caller(app: APIGatewayRestResolver) -> Caller:
    """The identity that the authorizer verified. Raises UnauthenticatedError if there is none, whatever let it pass."""
    context = app.current_event.raw_event["requestContext"].get("authorizer") or {}
    account = context.get("sub")
    if not account:
        raise UnauthenticatedError
    return Caller(account, frozenset(context.get("scope", "").split()))


def answer(
    model: BaseModel, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str | list[str]] | None = None
) -> Response[str]:
    """A JSON answer that nobody caches."""
    return Response(
        status_code=status,
        content_type="application/json",
        body=model.model_dump_json(by_alias=True),
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def task_answer(outcome: TaskResult | TaskPending, *, queued: bool = False) -> Response[str]:
    """200 with a settled task; 202 with the place to look again for one whose outcome is not known yet.

    `queued` tells a client that preferred not to wait that it was not made to (RFC 7240 §3).
    """
    if isinstance(outcome, TaskResult):
        return answer(outcome)
    headers: dict[str, str | list[str]] = {
        "Location": f"{PREFIX}/tasks/{outcome.task_id}/result",
        "Retry-After": str(_RETRY_AFTER_S),
    }
    if queued:
        headers["Preference-Applied"] = "respond-async"
    return answer(outcome, HTTPStatus.ACCEPTED, headers)


def read_direct(model: type[_Model], payload: object) -> _Model:
    """The request of a direct invocation. Raises InvalidRequestError, naming each field that is wrong."""
    return _validated(model, read_json(json.dumps(payload)))  # Lambda has read the payload's decimals as floats


def read_message(body: str) -> Message:
    """The task of a message of the queue, which may be a whole event of EventBridge: then it is the event's detail.

    Here alone an input may be named by its digest: who may write to the queue is a matter of IAM. Raises
    InvalidRequestError, PayloadTooLargeError.
    """
    payload = read_json(body)
    if isinstance(payload, dict) and "detail-type" in payload:
        payload = payload.get("detail")
    digest = payload.get("input_sha256") if isinstance(payload, dict) else None
    if digest is None:
        request = _validated(DirectTaskRequest, payload)
        return Message(request, hashlib.sha256(request.stdin()).hexdigest(), by_digest=False)
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise InvalidRequestError(("input_sha256", f"must match the pattern {_SHA256.pattern}"))
    if {"input", "input_base64"} & payload.keys():
        raise InvalidRequestError(("input_sha256", "stands in for the input: send one of them"))
    rest = {name: value for name, value in payload.items() if name != "input_sha256"}
    return Message(_validated(DirectTaskRequest, {**rest, "input": ""}), digest, by_digest=True)


def _validated(model: type[_Model], payload: object) -> _Model:
    try:
        return model.model_validate(payload)
    except ValidationError as exc:
        raise _invalid(exc.errors()) from None  # pydantic's text quotes the input, and Lambda logs what is raised


def direct_answer(outcome: TaskResult | TaskPending, *, inline_bytes_max: int | None) -> dict[str, Any]:
    """A settled task as plain JSON. Raises TaskInProgressError for one whose outcome is not known yet.

    So a direct caller sees an outcome or an error by name, and never takes a task that hangs for one that is done.
    """
    if isinstance(outcome, TaskPending):
        raise TaskInProgressError(outcome.task_id, retry_after_s=_RETRY_AFTER_S)
    told = outcome if inline_bytes_max is None else outcome.within(inline_bytes_max)
    return told.model_dump(mode="json", by_alias=True)


def responses(*models: tuple[HTTPStatus, type[BaseModel]]) -> Any:  # noqa: ANN401 - Powertools' nested TypedDicts
    """The answers of a route for its OpenAPI description."""
    return {
        int(status): {"description": status.phrase, "content": {"application/json": {"model": model}}}
        for status, model in models
    }


def read_json(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """A JSON body with exact numbers: decimals stay Decimal. Raises InvalidRequestError.

    NaN and infinity, which are not JSON, names that stand twice in an object, and nesting beyond the limit are refused.
    """
    try:
        value = json.loads(
            text, parse_float=Decimal, parse_constant=_refuse_constant, object_pairs_hook=_object_of_unique_names
        )
    except RecursionError as exc:
        raise InvalidRequestError(("body", f"must not be nested deeper than {JSON_DEPTH_MAX} levels")) from exc
    except (ValueError, ArithmeticError) as exc:  # Decimal bounds the exponents that it reads
        raise InvalidRequestError(("body", "must be valid JSON (RFC 8259)")) from exc
    _check_depth(value)
    return value


def _check_depth(value: object) -> None:
    level: list[object] = [value]
    for _ in range(JSON_DEPTH_MAX + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    raise InvalidRequestError(("body", f"must not be nested deeper than {JSON_DEPTH_MAX} levels"))


def _object_of_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequestError((twice, "must not be given twice"))
    return found


def _refuse_constant(name: str) -> Decimal:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _refuse(error: QuittanceError) -> Response[str]:
    status, body, headers = problem(error)
    return Response(
        status_code=status,
        content_type=_PROBLEM_JSON,
        body=json.dumps(body),
        headers={"Cache-Control": "no-store", **headers},
    )


def _refuse_fields(error: RequestValidationError) -> Response[str]:
    return _refuse(_invalid(error.errors()))


def _invalid(found: Iterable[Mapping[str, Any]]) -> InvalidRequestError:
    return InvalidRequestError(*((_field(error["loc"]), _sentence(error)) for error in found))


def _field(location: tuple[str | int, ...]) -> str:
    """The path of a field as its sender wrote it: no word of where it was sent, nor of the tariff's union."""
    parts = [str(part) for part in location[1:]] if location and location[0] in _PLACES else [*map(str, location)]
    if "tariff" in parts:
        del parts[parts.index("tariff") + 1 : parts.index("tariff") + 2]
    return ".".join(parts) or "body"


def _sentence(found: Mapping[str, Any]) -> str:
    sentence = _SENTENCES.get(found["type"])
    if sentence:
        return sentence.format(**found.get("ctx", {}))
    message: str = found["msg"]
    return _SHOULD.sub("must", message.removeprefix("Value error, "))


def _plain_json(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event with its body as text and the media type in its plain form. Raises UnsupportedMediaTypeError."""
    headers = {name.lower(): value for name, value in (event.get("headers") or {}).items()}
    body = event.get("body")
    media_type = headers.get("content-type", _JSON).partition(";")[0].strip().lower()
    if body and media_type != _JSON:
        raise UnsupportedMediaTypeError
    if body and event.get("isBase64Encoded"):
        try:
            body = base64.b64decode(body, validate=True).decode()
        except ValueError as exc:
            raise InvalidRequestError(("body", "must be UTF-8")) from exc
    return {**event, "headers": {**headers, "content-type": _JSON}, "body": body, "isBase64Encoded": False}


def _proxy(response: Response[str]) -> dict[str, Any]:
    headers = {**response.headers, "Content-Type": response.content_type}
    return {
        "statusCode": int(response.status_code),
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "body": response.body,
        "isBase64Encoded": False,
    }


def _fail(_: Exception) -> Response[str]:
    # The exception is logged, never shown: its text may hold what is not the caller's.
    logger.exception("unexpected failure")
    body = {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": HTTPStatus.INTERNAL_SERVER_ERROR,
        "code": "internal_error",
        "detail": "Something went wrong here. Repeat the same request: nothing is done twice.",
    }
    return Response(status_code=HTTPStatus.INTERNAL_SERVER_ERROR, content_type=_PROBLEM_JSON, body=json.dumps(body))
