"""Requests as they come in, by HTTP, in an invocation or in a message: exact JSON, and each wrong field by its name."""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from quittance.errors import InvalidRequestError
from quittance.exact_json import JsonError, check_depth
from quittance.limits import FAULTS_NAMED_MAX, FIELD_NAME_CHARS_MAX, JSON_DEPTH_MAX

_PLACES: Final = frozenset({"body", "query", "path", "header"})
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
_Model = TypeVar("_Model", bound=BaseModel)


def read_direct(model: type[_Model], payload: object) -> _Model:
    """The request of a direct invocation. Raises InvalidRequestError, naming each field that is wrong."""
    try:
        text = json.dumps(payload)  # Lambda has read the payload's decimals as floats
    except RecursionError as exc:
        raise _too_deep() from exc
    return validated(model, read_json(text))


def validated(model: type[_Model], payload: object) -> _Model:
    """A request in JSON. Raises InvalidRequestError, naming each field that is wrong."""
    try:
        return model.model_validate(payload)
    except ValidationError as exc:
        raise invalid(exc.errors()) from None  # pydantic's text quotes the input, and Lambda logs what is raised


def read_json(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """A JSON body with exact numbers: decimals stay Decimal. Raises InvalidRequestError.

    NaN and infinity, which are not JSON, names that stand twice in an object, and nesting beyond the limit are refused.
    """
    try:
        value = json.loads(
            text, parse_float=Decimal, parse_constant=_refuse_constant, object_pairs_hook=_object_of_unique_names
        )
        check_depth(value)
    except (RecursionError, JsonError) as exc:
        raise _too_deep() from exc
    except (ValueError, ArithmeticError) as exc:  # Decimal bounds the exponents that it reads
        raise InvalidRequestError(("body", "must be valid JSON (RFC 8259)")) from exc
    return value


def invalid(found: Sequence[Mapping[str, Any]]) -> InvalidRequestError:
    """The refusal of what pydantic found wrong; it names the first FAULTS_NAMED_MAX faults, and counts the others.

    An answer has a limit of its own (6 MB of a Lambda function), and a small body can have very many faults.
    """
    named = [(_field(error["loc"]), _sentence(error)) for error in found[:FAULTS_NAMED_MAX]]
    if others := len(found) - len(named):
        named.append(("body", f"has more faults than are named here ({others}): mend these first"))
    return InvalidRequestError(*named)


def _object_of_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidRequestError((_short(name), "must not be given twice"))
        found[name] = value
    return found


def _refuse_constant(name: str) -> Decimal:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _field(location: tuple[str | int, ...]) -> str:
    """The path of a field as its sender wrote it: no word of where it was sent, nor of the tariff's union."""
    parts = [str(part) for part in location[1:]] if location and location[0] in _PLACES else [*map(str, location)]
    if "tariff" in parts:
        del parts[parts.index("tariff") + 1 : parts.index("tariff") + 2]
    return _short(".".join(parts)) or "body"


def _short(name: str) -> str:
    """A field's name, its end left out if it is longer than any of ours: an answer quotes it several times."""
    return name if len(name) <= FIELD_NAME_CHARS_MAX else f"{name[:FIELD_NAME_CHARS_MAX]}…"


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError(("body", f"must not be nested deeper than {JSON_DEPTH_MAX} levels"))


def _sentence(found: Mapping[str, Any]) -> str:
    sentence = _SENTENCES.get(found["type"])
    if sentence:
        return sentence.format(**found.get("ctx", {}))
    message: str = found["msg"]
    return _SHOULD.sub("must", message.removeprefix("Value error, "))
