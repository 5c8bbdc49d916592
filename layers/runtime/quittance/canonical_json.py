"""Canonical JSON: exact numbers, one text per value, and nothing that parsers interpret differently.

A value is None, a bool, a str, an int, a Decimal, or a list or dict of values. Numbers are never floats: 19.99 is a
multiple of 0.01 on every machine.
"""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from itertools import islice
from json.encoder import encode_basestring
from typing import Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from quittance.frames import in_one_chunk
from quittance.limits import FAULTS_NAMED_MAX, JSON_DEPTH_MAX, NUMBER_CHARS_MAX, NUMBER_EXPONENT_MAX

_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_NUMBER_STEPS: Final = 3
_WHOLE_DIGITS_MAX: Final = 30  # of an int that is made of a decimal: 1e999999 would be spelt out
_ZEROS_SPELT_MAX: Final = 20  # beyond it a number is written with an exponent


class Sent(BaseModel):
    """An object that a client sends: an unknown name is a fault.

    Each unknown name makes one fault, which costs many times more than parsing the name. So names beyond those that an
    error can list, and one more that shows that there are more, are dropped before the fields are validated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_unknown_beyond_the_limit(cls, value: object) -> object:
        known = {field.alias or name for name, field in cls.model_fields.items()}
        if not isinstance(value, dict) or len(value) <= len(known) + FAULTS_NAMED_MAX:
            return value
        unknown = islice((name for name in value if name not in known), FAULTS_NAMED_MAX + 1)
        kept = known.union(unknown)
        return {name: member for name, member in value.items() if name in kept}


class JsonError(ValueError):
    """The bytes are no JSON that every reader takes alike; the message says what they must be."""


@in_one_chunk
def read(data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a JSON text. Raises JsonError.

    Beyond RFC 8259, names are unique in their object, nesting is at most `JSON_DEPTH_MAX` levels deep, a number has at
    most `NUMBER_CHARS_MAX` characters and an exponent within ±`NUMBER_EXPONENT_MAX`, and no string holds half of a
    surrogate pair. There is no byte order mark.
    """
    try:
        value = json.loads(
            data.decode(),
            parse_int=_read_int,
            parse_float=_read_decimal,
            parse_constant=_refuse_constant,
            object_pairs_hook=_object,
        )
    except JsonError:
        raise
    except RecursionError as exc:
        raise _too_deep() from exc
    except ValueError as exc:
        msg = "must be JSON in UTF-8 (RFC 8259)"
        raise JsonError(msg) from exc
    check_depth(value)
    if _SURROGATE.search(data):
        _check_surrogates(value)
    return value


@in_one_chunk
def canonical(value: object) -> str:
    """The one JSON text of a value: equal values, and only they, have equal texts.

    Members are sorted by name, nothing is indented, and a number has one spelling, so 1, 1.0 and 1e0 are equal.
    """
    return canonical_part(value)


def canonical_part(value: object, spend: Callable[[int], None] = lambda _: None) -> str:
    """The canonical text of one value of many, for a function that is itself `in_one_chunk`.

    `spend` is told how much is about to be done: one for each value, more for a long text or a number.
    """
    if isinstance(value, str):
        spend(1 + len(value) // 64)
        return encode_basestring(value)
    if isinstance(value, dict):
        spend(1 + len(value))
        members = (f"{canonical_part(name, spend)}:{canonical_part(value[name], spend)}" for name in sorted(value))
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        spend(1)
        return "[" + ",".join([canonical_part(item, spend) for item in value]) + "]"
    if value is None or isinstance(value, bool):
        spend(1)
        return json.dumps(value)
    if isinstance(value, int | Decimal | float):
        spend(_NUMBER_STEPS)
        return _number_text(value)
    msg = f"a {type(value).__name__} has no place in JSON"
    raise TypeError(msg)


def _whole(value: object) -> object:
    if not isinstance(value, Decimal) or value.adjusted() > _WHOLE_DIGITS_MAX or value != value.to_integral_value():
        return value
    return int(value)


WHOLE: Final = BeforeValidator(_whole)
"""Makes an `int` of a number without a fractional part, `5.0` or `5e0`, which JSON Schema calls an integer too."""


@in_one_chunk
def exact(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """Converts a value from another parser to what `read` returns. Raises JsonError."""
    try:
        return read(canonical_part(value).encode())
    except RecursionError as exc:
        raise _too_deep() from exc
    except UnicodeEncodeError as exc:
        raise _half_pair() from exc


def is_surely_longer(value: object, chars_max: int) -> bool:
    """Whether a value's canonical text surely has more than `chars_max` characters. Reads at most so many values."""
    waiting, seen = [value], 0
    while waiting and seen <= chars_max:
        found = waiting.pop()
        seen += max(len(found), 1) if isinstance(found, str | list | dict) else 1
        if seen <= chars_max and isinstance(found, list | dict):
            waiting += found.values() if isinstance(found, dict) else found
    return seen > chars_max


def check_depth(value: object) -> None:
    """Raises JsonError if a value is nested deeper than `JSON_DEPTH_MAX` levels."""
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH_MAX + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    raise _too_deep()


def _number_text(number: float | Decimal) -> str:
    if isinstance(number, int):
        digits, exponent = str(abs(number)), 0
    else:
        number = Decimal(repr(number)) if isinstance(number, float) else number
        if not number.is_finite():
            msg = "must not hold NaN or infinity, which are not JSON"
            raise JsonError(msg)
        mantissa, _, power = f"{number.copy_abs():E}".partition("E")
        digits = mantissa.replace(".", "")
        exponent = int(power) - len(digits) + 1
    significant = digits.rstrip("0")
    if not significant:
        return "0"
    text = _spelt(significant, exponent + len(digits) - len(digits.rstrip("0")))
    return f"-{text}" if number < 0 else text


def _spelt(significant: str, exponent: int) -> str:
    """The number significant · 10^exponent, written with an exponent only if it would have many zeros without one."""
    if 0 <= exponent <= _ZEROS_SPELT_MAX:
        return significant + "0" * exponent
    if -_ZEROS_SPELT_MAX <= exponent < 0:
        padded = significant.rjust(1 - exponent, "0")
        return f"{padded[:exponent]}.{padded[exponent:]}"
    return f"{significant}e{exponent}"


def _read_int(text: str) -> int:
    if len(text) > NUMBER_CHARS_MAX:
        raise _number_too_long()
    return int(text)


def _read_decimal(text: str) -> Decimal:
    if len(text) > NUMBER_CHARS_MAX:
        raise _number_too_long()
    try:
        number = Decimal(text)
    except ArithmeticError as exc:  # an exponent beyond the type's own bounds
        raise _number_too_long() from exc
    if abs(number.adjusted()) > NUMBER_EXPONENT_MAX:
        raise _number_too_long()
    return number


def _refuse_constant(name: str) -> None:
    msg = f"must not hold {name}, which is not JSON"
    raise JsonError(msg)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        msg = "must not name a member of an object twice"
        raise JsonError(msg)
    return members


def _check_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as exc:
        raise _half_pair() from exc


def _too_deep() -> JsonError:
    return JsonError(f"must not be nested deeper than {JSON_DEPTH_MAX} levels")


def _half_pair() -> JsonError:
    return JsonError("must not hold half of a surrogate pair, which UTF-8 cannot carry")


def _number_too_long() -> JsonError:
    return JsonError(
        f"must hold numbers of at most {NUMBER_CHARS_MAX} characters, "
        f"with exponents from -{NUMBER_EXPONENT_MAX} to {NUMBER_EXPONENT_MAX}"
    )
