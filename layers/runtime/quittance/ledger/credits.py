"""Money: `int`s of micro-credits inside, decimal strings with up to six places outside. Never a float."""

import re
from decimal import Decimal
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

MICRO_PER_CREDIT: Final = 1_000_000
_PLACES: Final = 6
_EXPONENT_MAX: Final = 30  # bounds the digits that a number such as 1e999999 would be spelt with
_DECIMAL: Final = re.compile(r"(?P<whole>[0-9]{1,16})(?:\.(?P<fraction>[0-9]{1,6}))?")


def parse_credits(value: object) -> int:
    """Micro-credits of an amount as clients write it: a decimal string, or a JSON number read as int or Decimal.

    Zero is allowed. A sign, an exponent in a string, NaN, infinity, floats, booleans and a seventh decimal are not.
    Raises ValueError with a sentence that says what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        msg = 'must be a decimal string such as "1.25"'
        raise ValueError(msg)  # noqa: TRY004 - pydantic turns ValueError, not TypeError, into a named field
    text = value if isinstance(value, str) else _plain(value)
    match = _DECIMAL.fullmatch(text)
    if match is None:
        msg = f'must be a decimal such as "1.25": not negative, at most 16 digits and {_PLACES} decimals'
        raise ValueError(msg)
    return int(match["whole"]) * MICRO_PER_CREDIT + int((match["fraction"] or "").ljust(_PLACES, "0"))


def parse_change(value: object) -> int:
    """Micro-credits of a change as clients write it: an amount, with a minus sign if negative. Raises ValueError."""
    number = isinstance(value, int | Decimal) and not isinstance(value, bool)
    text = _plain(value) if number else value  # type: ignore[arg-type]  # mypy does not follow `number`
    less = isinstance(text, str) and text.startswith("-")
    try:
        micro = parse_credits(str(text)[1:] if less else text)
    except ValueError as exc:
        msg = f'must be a decimal such as "1.25", or "-1.25" for less: at most 16 digits and {_PLACES} decimals'
        raise ValueError(msg) from exc
    return -micro if less else micro


def format_credits(micro: int) -> str:
    """The shortest decimal string of an amount in micro-credits: 1_250_000 → "1.25"."""
    sign, micro = ("-", -micro) if micro < 0 else ("", micro)
    whole, fraction = divmod(micro, MICRO_PER_CREDIT)
    return f"{sign}{whole}.{fraction:0{_PLACES}}".rstrip("0").rstrip(".")


def _plain(value: int | Decimal) -> str:
    """The digits of a JSON number without exponent. An out-of-range number gives text that the pattern rejects."""
    number = Decimal(value)
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int) or abs(exponent) > _EXPONENT_MAX:  # the exponent of NaN and infinity is a letter
        return "out of range"
    return f"{number:f}"


def between(low_micro: int, high_micro: int) -> AfterValidator:
    """A validator of amounts whose error message states the bounds in credits."""

    def check(micro: int) -> int:
        if not low_micro <= micro <= high_micro:
            msg = f"must be at least {format_credits(low_micro)} and at most {format_credits(high_micro)}"
            raise ValueError(msg)
        return micro

    return AfterValidator(check)


_CHANGE_SCHEMA: Final = WithJsonSchema(
    {"type": "string", "pattern": r"^-?[0-9]{1,16}(\.[0-9]{1,6})?$", "examples": ["-0.25"]}
)
_JSON_SCHEMA: Final = WithJsonSchema(
    {
        "type": "string",
        "pattern": r"^[0-9]{1,16}(\.[0-9]{1,6})?$",
        "examples": ["1.25"],
        "description": "Credits as a decimal string with up to 6 places; in requests a JSON number is accepted too.",
    }
)

CreditsIn = Annotated[int, BeforeValidator(parse_credits), PlainSerializer(format_credits), _JSON_SCHEMA]
"""An amount that a client sends, parsed to micro-credits. Python code, too, constructs it from credits only."""


def _amount_read(value: object) -> object:
    """An amount of a response: a decimal string as a client receives it, or micro-credits as the platform states it."""
    return parse_credits(value) if isinstance(value, str) else value


def _change_read(value: object) -> object:
    return parse_change(value) if isinstance(value, str) else value


CreditsOut = Annotated[int, BeforeValidator(_amount_read), PlainSerializer(format_credits), _JSON_SCHEMA]
"""An amount in a response: micro-credits, written as a decimal string."""

ChangeIn = Annotated[int, BeforeValidator(parse_change), PlainSerializer(format_credits), _CHANGE_SCHEMA]
"""A change that a client requests: micro-credits, negative to take away."""

CreditsChange = Annotated[int, BeforeValidator(_change_read), PlainSerializer(format_credits), _CHANGE_SCHEMA]
"""A change in a response: micro-credits, negative if credits were taken, written as a decimal string."""
