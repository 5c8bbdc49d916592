"""One call of the API: the token, retries within a deadline, and the answer as a model."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from quittance.client._errors import (
    InvalidRequestError,
    QuittanceError,
    UnauthenticatedError,
    UnexpectedAnswerError,
    plain,
)
from quittance.client._retry import Sender
from quittance.client._tokens import NoToken, TokenSource
from quittance.client._wire import Answer, Flow, Request
from quittance.limits import DOT_SEGMENTS, JSON_DEPTH_MAX

PREFIX: Final = "/api/v1/economic"
_Model = TypeVar("_Model", bound=BaseModel)
_JSON: Final = "application/json"
_HALF: Final = "must not hold half of a surrogate pair"
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_VALUES_MAX: Final = 100_000  # of an answer; a contract of 64 KiB has up to 30,000
_MEMBERS_MAX: Final = 1_000  # of a list or object; a page has up to 100
_FREE: Final = frozenset({"contract", "acceptance"})  # JSON of agents' owners
_TOO_MANY: Final = "it has too many values"
_PLACE_CHARS_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class Core:
    """The API with a source of tokens."""

    root: str
    tokens: TokenSource
    sender: Sender

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        signed: bool = True,
    ) -> Flow[Answer]:
        """The answer to one call. With a token that the API refuses, it is repeated once with a new one."""
        wanted = {name: value for name, value in (query or {}).items() if value is not None}
        request = Request(
            method,
            f"{self.root}{path}{'?' if wanted else ''}{_encoded(wanted)}",
            {"Accept": f"{_JSON}, application/problem+json", **(headers or {})},
            None if body is None else _body(body),
        )
        if body is not None:
            request = replace(request, headers={**request.headers, "Content-Type": _JSON})
        tokens = self.tokens if signed else NoToken()
        token = yield from tokens.token(self.sender, self.sender.deadline())
        try:
            return (yield from self._send(request, token))
        except UnauthenticatedError:
            if not tokens.renew(token):
                raise
        token = yield from tokens.token(self.sender, self.sender.deadline())
        return (yield from self._send(request, token))

    def _send(self, request: Request, token: str | None) -> Flow[Answer]:
        """Sends a request with a token. Its time begins now: a person may have signed in meanwhile."""
        headers = request.headers if token is None else {**request.headers, "Authorization": f"Bearer {token}"}
        timed = replace(request, headers=headers, deadline=self.sender.deadline())
        return self.sender.send(timed)

    def read(self, model: type[_Model], path: str, **query: object) -> Flow[_Model]:
        """GET a path; its answer as a model."""
        answer = yield from self.call("GET", path, query=query)
        return parsed(answer, model)


def parsed(answer: Answer, model: type[_Model]) -> _Model:
    """An answer as a model; members that this version does not know are dropped. Raises UnexpectedAnswerError."""
    try:
        _check_size(answer.body)
        return model.model_validate_json(answer.body, extra="ignore")
    except (ValidationError, QuittanceError, ValueError) as exc:
        faults = exc.errors(include_input=False, include_url=False) if isinstance(exc, ValidationError) else []
        where = ", ".join(sorted({".".join(map(str, fault["loc"])) or "body" for fault in faults})[:5]) or "body"
        where = plain(where, _PLACE_CHARS_MAX)
        msg = f"The answer is no {model.__name__} of this API ({where}). Check the address, or update quittance-client."
    raise UnexpectedAnswerError(msg)  # outside of `except`: pydantic's error quotes the answer


def _check_size(body: bytes) -> None:
    """Raises ValueError for JSON with more values than any answer has, or more members in a list or object.

    Each value may make a dozen faults of a kilobyte each, all of which are collected: a few megabytes of `{}` would
    fill the memory. Rules and contracts are not counted by member, because their own models bound them.
    """
    outside = _STRING.sub(b"", body)
    if sum(map(outside.count, (b",", b"{", b"["))) > _VALUES_MAX:
        raise ValueError(_TOO_MANY)
    open_values: list[object] = [from_json(body)]
    while open_values:
        value = open_values.pop()
        if not isinstance(value, dict | list):
            continue
        if len(value) > _MEMBERS_MAX:
            raise ValueError(_TOO_MANY)
        open_values += value if isinstance(value, list) else [value[name] for name in value if name not in _FREE]


def _encoded(query: Mapping[str, object]) -> str:
    """A query. Raises InvalidRequestError."""
    try:
        return urlencode(query)
    except UnicodeEncodeError:
        pass
    raise InvalidRequestError.of(field="query", message=_HALF)


def _body(body: Mapping[str, Any]) -> bytes:
    """The JSON of a request. Raises InvalidRequestError for what is no JSON."""
    try:
        return json_text(body).encode()
    except ValueError as exc:
        fault = _HALF if isinstance(exc, UnicodeEncodeError) else str(exc)
    raise InvalidRequestError.of(field="body", message=fault)


def segment(name: str, field: str) -> str:
    """An id as one segment of a path. Raises InvalidRequestError for one that clients and gateways would remove."""
    if not name or name in DOT_SEGMENTS:
        raise InvalidRequestError.of(field=field, message="must not be empty, . or ..")
    try:
        return quote(name, safe="")
    except UnicodeEncodeError:
        pass
    raise InvalidRequestError.of(field=field, message=_HALF)


@contextmanager
def about(call_id: str) -> Iterator[None]:
    """Makes errors say which task or movement they are about."""
    try:
        yield
    except QuittanceError as error:
        error.about(call_id)
        raise


def json_text(value: object, depth: int = 0) -> str:
    """Compact JSON in which numbers keep their digits: Decimal("1.10") is 1.10. Raises ValueError.

    It is what an agent reads, so members stay in their order and characters are not escaped without need.
    """
    if depth > JSON_DEPTH_MAX:
        msg = f"must not be nested deeper than {JSON_DEPTH_MAX} levels"
        raise ValueError(msg)
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            msg = "must have only strings as names of members"
            raise ValueError(msg)
        members = (f"{encode_basestring(name)}:{json_text(member, depth + 1)}" for name, member in value.items())
        return "{" + ",".join(members) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(json_text(item, depth + 1) for item in value) + "]"
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        msg = "must not hold NaN or infinity, which are not JSON"
        raise ValueError(msg)
    if isinstance(value, Decimal):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    msg = f"must be JSON, bytes or text, and not hold a {type(value).__name__}"
    raise ValueError(msg)
