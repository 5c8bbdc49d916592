import json
import re
from decimal import Decimal
from fractions import Fraction
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from quittance.ledger.credits import CreditsIn, CreditsOut, between, format_credits, parse_credits
from quittance.limits import BUDGET_MICRO_MAX

AMOUNTS = st.integers(0, 10**22 - 1)  # 16 digits before the point and 6 after it
JSON_NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,8})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
BUDGET: TypeAdapter[int] = TypeAdapter(Annotated[CreditsIn, between(1, BUDGET_MICRO_MAX)])
SHOWN_PATTERN = TypeAdapter(CreditsOut).json_schema(mode="serialization")["pattern"]


@given(AMOUNTS)
def test_formatted_amounts_are_exact_short_and_parseable(micro: int) -> None:
    text = format_credits(micro)
    assert Fraction(text) * 10**6 == micro
    assert re.fullmatch(SHOWN_PATTERN, text)
    assert not re.search(r"\.$|\.[0-9]*0$|^0[0-9]", text)
    assert parse_credits(text) == micro
    assert micro == 0 or format_credits(-micro) == f"-{text}"


@given(AMOUNTS)
def test_json_numbers_are_parsed_exactly(micro: int) -> None:
    assert parse_credits(json.loads(format_credits(micro), parse_float=Decimal)) == micro


@given(JSON_NUMBERS)
def test_json_numbers_are_exact_or_rejected(text: str) -> None:
    number = json.loads(text, parse_float=Decimal)
    exact = Fraction(text) * 10**6 if abs(int([*re.split("[eE]", text), "0"][1])) < 100 else None
    spelt = re.fullmatch(r"[0-9]{1,16}(\.[0-9]{1,6})?", text)
    try:
        micro = parse_credits(number)
    except ValueError:
        assert not spelt
    else:
        assert micro == exact
        assert 0 <= micro < 10**22


@given(st.text(st.sampled_from("0123456789.-+eE_ \n\u0661\uff19"), max_size=20))
def test_strings_are_accepted_iff_they_match_the_pattern(text: str) -> None:
    try:
        parse_credits(text)
        accepted = True
    except ValueError:
        accepted = False
    assert accepted == bool(re.fullmatch(SHOWN_PATTERN, text))


@pytest.mark.parametrize(
    ("value", "micro"),
    [
        ("0", 0),
        ("0.000001", 1),
        ("1.25", 1_250_000),
        ("0000000000000001", 1_000_000),
        ("9999999999999999.999999", 10**22 - 1),
        (7, 7_000_000),
        (Decimal("1e3"), 1_000_000_000),
        (Decimal("1e-6"), 1),
    ],
)
def test_valid_amounts_are_accepted(value: object, micro: int) -> None:
    assert parse_credits(value) == micro


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "1 ", " 1", "1\n", "+1", "-1", "-0", "1e3", "1E-2", "NaN", "nan", "inf", "Infinity", "0x1", "1_000"),
        *(".5", "1.", "1,5", "1.2.3", "0.0000001", "1.0000000", "1" * 17, "0" * 17, "\u0661", "\uff11", "1.\uff12"),
        *(True, False, 1.5, 1.0, float("nan"), float("inf"), None, b"1", [1], {"a": 1}, 1 + 0j),
        *(-1, 10**16, 10**4000, Decimal(-1), Decimal("-0"), Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity")),
        *(Decimal("0.0000001"), Decimal("1e16"), Decimal("1e999999"), Decimal("1e-999999")),
    ],
)
def test_invalid_amounts_are_rejected_with_a_message(value: object) -> None:
    with pytest.raises(ValueError, match="must be a decimal"):
        parse_credits(value)


@given(st.integers(0, 10**21), st.integers(0, 10**21))
def test_between_enforces_and_states_its_bounds(one: int, other: int) -> None:
    low, high = sorted((one, other))
    bounded: TypeAdapter[int] = TypeAdapter(Annotated[CreditsIn, between(low, high)])
    assert bounded.validate_python(format_credits(low)) == low
    assert bounded.validate_python(format_credits(high)) == high
    for beyond in {max(low - 1, 0), high + 1} - {low}:
        sentence = f"at least {format_credits(low)} and at most {format_credits(high)}"
        with pytest.raises(ValidationError, match=re.escape(sentence)):
            bounded.validate_python(format_credits(beyond))


def test_budget_limits_are_exact() -> None:
    assert BUDGET.validate_json('"1000000"') == 10**12
    assert BUDGET.validate_json('"0.000001"') == 1
    for beyond in ('"1000000.000001"', '"0"'):
        with pytest.raises(ValidationError, match=r"at least 0\.000001 and at most 1000000"):
            BUDGET.validate_json(beyond)


def test_amounts_are_serialised_as_decimal_strings() -> None:
    assert TypeAdapter(CreditsOut).dump_json(1_250_000) == b'"1.25"'
    assert TypeAdapter(CreditsIn).dump_json(TypeAdapter(CreditsIn).validate_python("0.10")) == b'"0.1"'
