"""Request parsing for HTTP, direct invocations and messages: exact numbers, and errors that name each wrong field.

Path parameters are decoded here, exactly once, and nowhere else.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote, unquote_to_bytes

from pydantic import BaseModel, Field, ValidationError

from quittance import canonical_json
from quittance.canonical_json import DuplicateNameError, JsonError, TooDeepError
from quittance.errors import InvalidRequestError
from quittance.limits import FAULTS_NAMED_MAX, JSON_DEPTH_MAX, PAGE_ITEMS_MAX

_AS_SENT: Final = frozenset({"input", "detail"})  # of a task; of an EventBridge event, whose detail is a task
_PLACES: Final = frozenset({"body", "query", "path", "header"})
_PATH_CHARS: Final = "/%:@!$&'()*+,;="  # stay as they are in a path, like letters, digits and "-._~" (RFC 3986 §3.3)
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc
NO_CURSOR: Final = ("after", "must be the `next` of an earlier page")
_SHOULD: Final = re.compile(r"^\w+ should")
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
PageLimit = Annotated[int, Field(ge=1, le=PAGE_ITEMS_MAX)]
PageAfter = Annotated[str | None, Field(description="The `next` of an earlier page.")]
_Model = TypeVar("_Model", bound=BaseModel)


def read_direct(model: type[_Model], payload: object) -> _Model:
    """The request of a direct invocation. Raises InvalidRequestError, naming each field that is wrong."""
    try:
        text = json.dumps(payload)  # Lambda has read the payload: its decimals are floats, and -0 is 0
    except RecursionError as exc:
        raise _too_deep() from exc
    return validated(model, read_json(text))


def validated(model: type[_Model], payload: object) -> _Model:
    """A request in JSON. Raises InvalidRequestError, naming each field that is wrong."""
    try:
        return model.model_validate(payload)
    except ValidationError as exc:
        raise invalid(
            exc.errors(include_url=False)
        ) from None  # pydantic's text quotes the input, and Lambda logs what is raised


def read_json(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """A JSON body with exact numbers: decimals stay Decimal. Raises InvalidRequestError.

    An `input` that is not a string is `AsSent`: the agent reads it as it was spelt. NaN and infinity, which are not
    JSON, duplicate names in an object, and nesting beyond the limit are refused.
    """
    try:
        return canonical_json.read_members(text, as_sent=_AS_SENT)
    except DuplicateNameError as exc:
        raise InvalidRequestError((exc.name, "must not be given twice")) from exc
    except TooDeepError as exc:
        raise _too_deep() from exc
    except JsonError as exc:
        raise InvalidRequestError(("body", "must be valid JSON (RFC 8259)")) from exc


def encoded_path(path: str) -> str:
    """A path in its percent-encoded form, in which routes are matched. Percent signs stay.

    A REST API on AWS sends `path` as the client encoded it: nothing changes. `sam local start-api` sends it decoded:
    it is encoded again, so that a quote or a space in an id reaches the same checks. There, ids with a percent sign
    or a slash do not work, because the decoding cannot be undone.
    """
    return quote(path, safe=_PATH_CHARS, errors="surrogatepass")


def read_path(parameters: Mapping[str, str]) -> dict[str, str]:
    """A route's path parameters, percent-decoded exactly once.

    Raises InvalidRequestError, naming each parameter whose encoding is broken, is not UTF-8, or has control characters.
    """
    decoded: dict[str, str] = {}
    errors = []
    for name, raw in parameters.items():
        try:
            decoded[name] = _decode(raw)
        except ValueError as exc:
            errors.append((name, str(exc)))
    if errors:
        raise InvalidRequestError(*errors)
    return decoded


class Cursor:
    """The cursors of one list: a time in milliseconds, then what distinguishes items of the same time.

    Clients get a cursor as `next` of a page and send it back as `after`; they must not look into it.
    """

    def __init__(self, *parts: str) -> None:
        self._form = re.compile("~".join(f"({part})" for part in ("[0-9]{1,15}", *parts)))

    def read(self, after: str | None) -> tuple[Any, ...] | None:
        """The time and the parts, None for no cursor or an empty one. Raises InvalidRequestError for another list's."""
        if not after:
            return None
        match = self._form.fullmatch(after)
        if match is None:
            raise InvalidRequestError(NO_CURSOR)
        at_ms, *parts = match.groups()
        return int(at_ms), *parts

    @staticmethod
    def write(at_ms: int, *parts: str) -> str:
        """The cursor of the page that begins after an item."""
        return "~".join([str(at_ms), *parts])


def invalid(found: Sequence[Mapping[str, Any]]) -> InvalidRequestError:
    """The error for what pydantic found wrong: it names the first FAULTS_NAMED_MAX faults."""
    return InvalidRequestError(*((_field(error["loc"]), _sentence(error)) for error in found[: FAULTS_NAMED_MAX + 1]))


def _decode(raw: str) -> str:
    if _BROKEN_ESCAPE.search(raw):
        msg = "must be percent-encoded: % is followed by two hexadecimal digits, and is itself written %25"
        raise ValueError(msg)
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as exc:
        msg = "must be percent-encoded UTF-8"
        raise ValueError(msg) from exc
    if _CONTROL.search(text):
        msg = "must have no control characters"
        raise ValueError(msg)
    return text


def _field(location: tuple[str | int, ...]) -> str:
    """The path of a field as its sender wrote it, without the place (body, query…) and the tag of a tariff."""
    parts = [str(part) for part in location[1:]] if location and location[0] in _PLACES else [*map(str, location)]
    if "tariff" in parts:
        del parts[parts.index("tariff") + 1 : parts.index("tariff") + 2]
    return ".".join(parts) or "body"


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError(("body", f"must not be nested deeper than {JSON_DEPTH_MAX} levels"))


def _sentence(found: Mapping[str, Any]) -> str:
    sentence = _SENTENCES.get(found["type"])
    if sentence:
        return sentence.format(**found.get("ctx", {}))
    message: str = found["msg"]
    return _SHOULD.sub("must", message.removeprefix("Value error, "))


# All quantifiers are possessive: without backtracking, the time is linear in the header's length.
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED: Final = r'"(?:[^"\\]++|\\.)*+"'
# A member of a list: commas inside quotes do not end it, and an unclosed quote extends to the header's end.
_MEMBER: Final = re.compile(rf'(?:[^,"]++|{_QUOTED}|".*+)++', re.DOTALL)
# Parameters follow a semicolon. They are skipped: the only preference that is honoured, `respond-async`, has none.
_PREFERENCE: Final = re.compile(rf"[ \t]*+({_WORD})[ \t]*+(?:=[ \t]*+({_WORD}|{_QUOTED})?[ \t]*+)?(?:;.*+)?", re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


def preferences(headers: Iterable[str]) -> dict[str, str]:
    """The preferences of all `Prefer` headers of a request: names in lower case, values without quotes.

    If a name is repeated, the first counts; an empty value counts as none (RFC 7240 §2). Malformed preferences are
    skipped: a server may ignore any.
    """
    found: dict[str, str] = {}
    for header in headers:
        for member in _MEMBER.findall(header):
            if match := _PREFERENCE.fullmatch(member):
                found.setdefault(match[1].lower(), _unquoted(match[2] or ""))
    return found


def wants_async(headers: Iterable[str]) -> bool:
    """Whether the client prefers not to wait for the outcome (RFC 7240 §4.1). Its `wait` time is ignored."""
    return preferences(headers).get("respond-async") == ""


def _unquoted(value: str) -> str:
    return _ESCAPED.sub(r"\1", value[1:-1]) if value.startswith('"') else value
