"""HTTP for all functions: Powertools' routes, JSON with exact numbers, the verified caller, errors as problem+json."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from re import Match
from typing import Any, Final
from urllib.parse import quote

from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestValidationError
from pydantic import BaseModel

from quittance.api.documentation import Document
from quittance.api.identity import Caller, is_account_id
from quittance.api.models import TaskPending, TaskQueued, TaskResult
from quittance.api.requests import encoded_path, invalid, read_json, read_path
from quittance.api.routes import PREFIX, UseCase, answers_of, needed, read_from_request
from quittance.api.sizes import response_bytes
from quittance.errors import (
    AnswerTooLargeError,
    InvalidRequestError,
    NotFoundError,
    QuittanceError,
    TaskInProgressError,
    UnauthenticatedError,
    UnsupportedMediaTypeError,
    problem,
)
from quittance.limits import LAMBDA_SYNC_BYTES_MAX
from quittance.observability import logger
from quittance.platform import platform, prepare

_JSON: Final = "application/json"
_PROBLEM_JSON: Final = "application/problem+json"
_RETRY_AFTER_S: Final = 2
_BODILESS: Final = frozenset({"GET", "HEAD", "DELETE"})
_NO_STORE: Final = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class Operation:
    """A served route, for the description of the API (`local/openapi.py`)."""

    name: str
    method: str
    path: str
    use_case: UseCase
    status: HTTPStatus
    anyone: bool


class Api(APIGatewayRestResolver):
    """The routes of one HTTP function, each served by one use case. Request bodies must be JSON.

    A use case names what it needs: `platform`, the verified `caller`, `root` (the path where the client finds the API).
    Its other parameters are read from the request: from the path, the query, or the JSON body if it is a model.
    """

    def __init__(self, tag: str = "", *parts: str, anyone: bool = False) -> None:
        """A resolver without routes yet.

        `tag` groups its routes in the description, and `parts` are the parts of the platform that they use (see
        `prepare`). With `anyone`, they need no token.
        """
        super().__init__(enable_validation=True, json_body_deserializer=read_json)
        prepare(*parts)
        self._tag, self._anyone = tag, anyone
        self.operations: list[Operation] = []
        self.exception_handler(QuittanceError)(_refuse)
        self.exception_handler(RequestValidationError)(_refuse_fields)
        self.not_found(lambda _: _refuse(NotFoundError("There is nothing at this path.")))
        self.exception_handler(Exception)(_fail)

    def serve(
        self,
        route: str,
        use_case: UseCase,
        summary: str,
        *,
        name: str | None = None,
        tag: str | None = None,
        status: int = HTTPStatus.OK,
        headers: Mapping[str, str] | None = None,
        anyone: bool | None = None,
    ) -> None:
        """Serves a route, such as `GET /accounts/me`, by a use case; `headers` go with every answer.

        `name` is the operation's id, such as `get_balance`, by default the use case's name; `tag` and `anyone`
        override the function's. The description takes the rest from the use case: its docstring says what it does,
        which errors it raises, and which scope it needs.
        """
        method, path = route.split(" ")
        names, status = needed(use_case), HTTPStatus(status)
        name, open_to_anyone = name or use_case.__name__, self._anyone if anyone is None else anyone
        self.operations.append(Operation(name, method, path, use_case, status, open_to_anyone))

        def handle(**read: object) -> Response[str]:
            return _rendered(use_case(**self._given(names, anyone=open_to_anyone), **read), status, headers)

        handle.__name__ = name
        handle.__signature__ = read_from_request(use_case, path)  # type: ignore[attr-defined]  # Powertools reads it
        mount = self.route(
            f"{PREFIX}{path}",
            method,
            summary=summary,
            tags=[tag or self._tag],
            responses=responses(*answers_of(use_case, status)),
            status_code=int(status),
        )
        mount(handle)

    def _given(self, names: Sequence[str], *, anyone: bool) -> dict[str, object]:
        """What a use case gets beside the request. Raises UnauthenticatedError without a verified caller."""
        verified = None if anyone else caller(self)
        given: dict[str, Callable[[], object]] = {
            "platform": lambda: platform(self.lambda_context),
            "caller": lambda: verified,
            "root": lambda: root(self.current_event.raw_event),
        }
        return {name: given[name]() for name in names}

    def resolve(self, event: Mapping[str, Any], context: Any) -> dict[str, Any]:  # noqa: ANN401 - as its base class
        """The answer to a REST API proxy event. Refusals and failures are answers too.

        Routes state `Location` relative to the API's root. This adds the path at which the client finds the API.
        """
        try:
            answered = super().resolve(_plain(event), context)
        except QuittanceError as error:  # raised while reading the request; errors of a route are answered inside
            answered = _proxy(_refuse(error))
        answered = _with_links(answered, event)
        if response_bytes(answered) > LAMBDA_SYNC_BYTES_MAX:
            logger.error("answer too large", status=answered["statusCode"])
            answered = _with_links(_proxy(_refuse(AnswerTooLargeError())), event)
        return answered

    def _convert_matches_into_route_keys(self, match: Match[str]) -> dict[str, str]:
        """Decodes the path parameters after the route is found, so that an encoded slash cannot lead to another route.

        Powertools hands parameters on as they are in `path`, and has no public hook between matching and validation.
        """
        return read_path(super()._convert_matches_into_route_keys(match))


def root(event: Mapping[str, Any]) -> str:
    """The path at which a client finds this API: `/{stage}`, the base path of a custom domain, or nothing.

    `requestContext.path` is the path that the client sent. Links repeat the part before the route's own segments, so a
    link works wherever the request worked.
    """
    context = event.get("requestContext") or {}
    return _split(context.get("path") or event["path"], event.get("resource") or "")[0]


def caller(app: APIGatewayRestResolver) -> Caller:
    """The identity that the authorizer verified.

    Raises UnauthenticatedError if there is none, or if its subject cannot be an account.
    """
    context = app.current_event.raw_event["requestContext"].get("authorizer") or {}
    account = context.get("sub")
    if not account or not is_account_id(account):
        raise UnauthenticatedError
    return Caller(account, frozenset(context.get("scope", "").split()))


def answer(
    model: BaseModel, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str | list[str]] | None = None
) -> Response[str]:
    """A JSON answer that must not be cached."""
    return Response(
        status_code=status,
        content_type="application/json",
        body=model.model_dump_json(by_alias=True),
        headers={**_NO_STORE, **(headers or {})},
    )


def task_answer(outcome: TaskResult | TaskPending) -> Response[str]:
    """200 with a settled task; 202 with the result's URL for one whose outcome is not known yet.

    If it was queued because the client preferred not to wait, the answer says so (RFC 7240 §3).
    """
    if isinstance(outcome, TaskResult):
        return answer(outcome)
    headers: dict[str, str | list[str]] = {
        "Location": f"{PREFIX}/tasks/{quote(outcome.task_id, safe='')}/result",
        "Retry-After": str(_RETRY_AFTER_S),
    }
    if isinstance(outcome, TaskQueued):
        headers["Preference-Applied"] = "respond-async"
    return answer(outcome, HTTPStatus.ACCEPTED, headers)


def direct_answer(outcome: TaskResult | TaskPending, *, inline_bytes_max: int | None) -> dict[str, Any]:
    """A settled task as plain JSON. Raises TaskInProgressError for one whose outcome is not known yet.

    So a direct caller gets an outcome or a named error, and never mistakes an unfinished task for a finished one.
    """
    if isinstance(outcome, TaskPending):
        raise TaskInProgressError(outcome.task_id, retry_after_s=_RETRY_AFTER_S)
    result = outcome if inline_bytes_max is None else outcome.within(inline_bytes_max)
    return result.model_dump(mode="json", by_alias=True)


def _rendered(outcome: BaseModel | Document, status: HTTPStatus, headers: Mapping[str, str] | None) -> Response[str]:
    if isinstance(outcome, Document):
        return Response(int(status), outcome.media_type, outcome.text, headers={**outcome.headers, **(headers or {})})
    if isinstance(outcome, TaskResult | TaskPending):
        return task_answer(outcome)
    return answer(outcome, status, headers)


def responses(*models: tuple[HTTPStatus, type[BaseModel]]) -> Any:  # noqa: ANN401 - Powertools' nested TypedDicts
    """The answers of a route for its OpenAPI description."""
    return {
        int(status): {"description": status.phrase, "content": {"application/json": {"model": model}}}
        for status, model in models
    }


def _refuse(error: QuittanceError) -> Response[str]:
    status, body, headers = problem(error)
    return Response(
        status_code=status,
        content_type=_PROBLEM_JSON,
        body=json.dumps(body),
        headers={**_NO_STORE, **headers},
    )


def _refuse_fields(error: RequestValidationError) -> Response[str]:
    return _refuse(invalid(error.errors()))


def _with_links(answered: dict[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
    """The answer with links from the client's root, and a header that stops browsers from guessing its media type."""
    headers = answered["multiValueHeaders"]
    if "Location" in headers:
        headers["Location"] = [root(event) + location for location in headers["Location"]]
    if "Link" in headers:  # routes state it relative to the API's prefix
        headers["Link"] = [link.replace("</", f"<{root(event)}{PREFIX}/", 1) for link in headers["Link"]]
    headers["X-Content-Type-Options"] = ["nosniff"]
    return answered


def _plain(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event with an encoded path, its body as text and the media type in its plain form.

    A body of a GET or DELETE is dropped: it has no meaning (RFC 9110 §9.3). Raises UnsupportedMediaTypeError, and
    InvalidRequestError for a body that is not UTF-8.
    """
    headers = {name.lower(): value for name, value in (event.get("headers") or {}).items()}
    body = None if event["httpMethod"] in _BODILESS else event.get("body")
    media_type = headers.get("content-type", _JSON).partition(";")[0].strip().lower()
    if body and media_type != _JSON:
        raise UnsupportedMediaTypeError
    if body and event.get("isBase64Encoded"):
        try:
            body = base64.b64decode(body, validate=True).decode()
        except ValueError as exc:
            raise InvalidRequestError(("body", "must be UTF-8")) from exc
    _, path = _split(encoded_path(event["path"]), event.get("resource") or "")
    plain = {"path": path, "headers": {**headers, "content-type": _JSON}}
    return {**event, **plain, "body": body, "isBase64Encoded": False}


def _split(path: str, resource: str) -> tuple[str, str]:
    """A path in two parts: what precedes the route that the gateway matched (`resource`), and the route's own path.

    The first part is empty if the path does not end like the route. A REST API leaves the base path of a custom domain
    in `path`, and the stage if the mapping names none. A slash at the end is dropped.
    """
    names, parts = resource.split("/")[1:], path.rstrip("/").split("/")
    before, own = parts[: -len(names)], parts[-len(names) :]
    fits = len(own) == len(names) and all(
        name == part or name.startswith("{") for name, part in zip(names, own, strict=True)
    )
    if not (resource.startswith(f"{PREFIX}/") and before and fits):
        return "", path
    at = encoded_path("/".join(before)).strip("/")
    return (f"/{at}" if at else ""), "/" + "/".join(own)


def _proxy(response: Response[str]) -> dict[str, Any]:
    headers = {**response.headers, "Content-Type": response.content_type}
    return {
        "statusCode": int(response.status_code),
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "body": response.body,
        "isBase64Encoded": False,
    }


def _fail(_: Exception) -> Response[str]:
    # The exception is logged, never sent: its text may contain other users' data.
    logger.exception("unexpected failure")
    body = {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": HTTPStatus.INTERNAL_SERVER_ERROR,
        "code": "internal_error",
        "detail": "Something went wrong here. Repeat the same request: nothing is done twice.",
    }
    return Response(
        status_code=HTTPStatus.INTERNAL_SERVER_ERROR,
        content_type=_PROBLEM_JSON,
        body=json.dumps(body),
        headers=_NO_STORE,
    )
