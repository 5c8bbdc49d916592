"""Canonical JSON: exact numbers, one text per value, and nothing that parsers interpret differently.

A value is None, a bool, a str, an int, a Decimal, or a list or dict of values. Numbers are never floats: 19.99 is a
multiple of 0.01 on every machine.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from itertools import islice
from json import JSONDecoder
from json.encoder import encode_basestring
from typing import Any, Final, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from quittance.frames import in_one_chunk
from quittance.limits import (
    FAULTS_NAMED_MAX,
    JSON_DEPTH_MAX,
    MEMBERS_READ_MAX,
    NUMBER_CHARS_MAX,
    NUMBER_EXPONENT_MAX,
)

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")
_NUMBER_STEPS: Final = 3
_WHOLE_DIGITS_MAX: Final = 30  # of an int that is made of a decimal: 1e999999 would be spelt out
_ZEROS_SPELT_MAX: Final = 20  # beyond it a number is written with an exponent
_SPACE: Final = re.compile(r"[ \t\n\r]*+")
_PIECE: Final = re.compile(r'(?:"[^"\\]*+"|[^" \t\n\r\\]++)++|"(?:[^"\\]++|\\.)*+"')
"""Of a JSON text: tokens without an escape and without white space between them, or a string with an escape."""


class Sent(BaseModel):
    """An object that a client sends: an unknown name is a fault.

    Each unknown name makes one fault, which costs many times more than parsing the name. So names beyond those that an
    error can list, and one more that shows that there are more, are dropped before the fields are validated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Nothing: Powertools formats each request for a log line that nobody reads, and an input may be long."""
        return ()

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
    """The text is no JSON that every reader understands alike; the message says what it must be."""


class TooDeepError(JsonError):
    """The value is nested too deep."""


class DuplicateNameError(JsonError):
    """An object has two members of the same name."""

    def __init__(self, name: str) -> None:
        super().__init__("must not name a member of an object twice")
        self.name = name


@dataclass(frozen=True, slots=True)
class AsSent:
    """A JSON value, not a string, as its sender spelt it: the text of its tokens, without white space between them.

    Members are in the order sent, and numbers have the characters sent: 1e3 and 0.10 stay what they are. Only strings
    are spelt anew, with the fewest escapes: those of quotation marks, reverse solidi and control characters.
    """

    text: str


class Numbers(Enum):
    """How `read` reads numbers."""

    BOUNDED = "exact numbers of a limited length, as int or Decimal"
    EXACT = "exact numbers of any length, as int or Decimal"
    DOUBLES = "int or float, as most readers do: NaN and infinity are accepted"


@in_one_chunk
def read(
    text: str | bytes,
    *,
    numbers: Numbers = Numbers.BOUNDED,
    depth_max: int | None = JSON_DEPTH_MAX,
    lone_surrogates: bool = False,
) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a JSON text (RFC 8259). Raises JsonError.

    Names are always unique in their object, and there is no byte order mark. By default the text must mean the same to
    every reader: nesting is at most `JSON_DEPTH_MAX` levels deep, a number has at most `NUMBER_CHARS_MAX` characters
    and an exponent within ±`NUMBER_EXPONENT_MAX`, and no string contains half of a surrogate pair. Without `depth_max`,
    the interpreter's stack limits the nesting.
    """
    parse_int, parse_float, parse_constant = _PARSERS[numbers]
    with _typed_errors(depth_max):
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(
            text,
            parse_int=parse_int,
            parse_float=parse_float,
            parse_constant=parse_constant,
            object_pairs_hook=_object,
        )
    if depth_max is not None:
        _check_depth(value, depth_max)
    if not lone_surrogates and _SURROGATE.search(text):
        _check_surrogates(value)
    return value


@in_one_chunk
def read_members(text: str, *, as_sent: Collection[str]) -> Any:  # noqa: ANN401 - any JSON value
    """As `read` with exact numbers and lone surrogates, but some members of an object keep their spelling.

    If the text is an object, its members that `as_sent` names are `AsSent`, unless they are strings. Their numbers may
    have any length, because nothing computes with them. In an object of more than MEMBERS_READ_MAX members nothing is
    kept: whoever expects a member `AsSent` must refuse another value. Raises JsonError.
    """
    at = _space(text, 0)
    members: dict[str, Any] = {}
    shapes: list[Any] = []
    with _typed_errors(JSON_DEPTH_MAX):
        more = opened = text.startswith("{", at)
        while more and len(members) < MEMBERS_READ_MAX:
            at = _space(text, at + 1)
            if text.startswith("}", at) and not members:
                break
            name, at = _READ_EXACT.raw_decode(text, _expected('"', text, at))
            start = _space(text, _expected(":", text, _space(text, at)) + 1)
            kept = name in as_sent and not text.startswith('"', start)
            value, at = (_CHECK if kept else _READ_EXACT).raw_decode(text, start)
            if name in members:
                raise DuplicateNameError(name)
            members[name] = AsSent(_without_space(text[start:at])) if kept else value
            shapes.append(value)
            at = _space(text, at)
            more = text.startswith(",", at)
        if opened and not more and text.startswith("}", at) and _space(text, at + 1) == len(text):
            _check_depth(shapes, JSON_DEPTH_MAX)
            return members
    # No object, one with more members, or no JSON at all.
    return read(text, numbers=Numbers.EXACT, lone_surrogates=True)


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


@contextmanager
def _typed_errors(depth_max: int | None) -> Iterator[None]:
    """Maps the errors of the parser to JsonError."""
    try:
        yield
    except JsonError:
        raise
    except RecursionError as exc:
        raise _too_deep(depth_max) from exc
    except (ValueError, ArithmeticError) as exc:  # ArithmeticError: an exponent that Decimal cannot hold
        msg = "must be JSON in UTF-8 (RFC 8259)"
        raise JsonError(msg) from exc


def _space(text: str, at: int) -> int:
    """The index of what follows the white space at an index."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _expected(char: str, text: str, at: int) -> int:
    """The index, if the character is there. Raises JsonError."""
    if text.startswith(char, at):
        return at
    msg = f"must have {char} at character {at}"
    raise JsonError(msg)


def _without_space(text: str) -> str:
    """A JSON text without white space between its tokens, and strings with the fewest escapes."""
    pieces = _PIECE.findall(text)
    if "\\" in text:
        pieces = [encode_basestring(_CHECK.raw_decode(piece)[0]) if "\\" in piece else piece for piece in pieces]
    return "".join(pieces)


def _check_depth(value: object, depth_max: int) -> None:
    level: list[Any] = [value]
    for _ in range(depth_max + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    raise _too_deep(depth_max)


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


def _refuse_constant(name: str) -> NoReturn:
    msg = f"must not hold {name}, which is not JSON"
    raise JsonError(msg)


_Parser = Callable[[str], Any]
_PARSERS: Final[Mapping[Numbers, tuple[_Parser | None, _Parser | None, _Parser | None]]] = {
    Numbers.BOUNDED: (_read_int, _read_decimal, _refuse_constant),
    Numbers.EXACT: (None, Decimal, _refuse_constant),
    Numbers.DOUBLES: (None, None, None),
}
"""What `json.loads` calls for integers, for other numbers and for NaN and infinity; None for its default."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        members.clear()
        for name, value in pairs:
            if name in members:
                raise DuplicateNameError(name)
            members[name] = value
    return members


_READ_EXACT: Final = JSONDecoder(parse_float=Decimal, parse_constant=_refuse_constant, object_pairs_hook=_object)
_CHECK: Final = JSONDecoder(parse_int=len, parse_float=len, parse_constant=_refuse_constant, object_pairs_hook=_object)
"""For a text that is only checked: its numbers are not computed, so they may have any length."""


def _check_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as exc:
        raise _half_pair() from exc


def _too_deep(depth_max: int | None = JSON_DEPTH_MAX) -> TooDeepError:
    return TooDeepError(f"must not be nested {'so deep' if depth_max is None else f'deeper than {depth_max} levels'}")


def _half_pair() -> JsonError:
    return JsonError("must not hold half of a surrogate pair, which UTF-8 cannot carry")


def _number_too_long() -> JsonError:
    return JsonError(
        f"must hold numbers of at most {NUMBER_CHARS_MAX} characters, "
        f"with exponents from -{NUMBER_EXPONENT_MAX} to {NUMBER_EXPONENT_MAX}"
    )
