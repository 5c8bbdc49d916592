"""The one JSON reader and its options; its default is tested in test_json_schema.py."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance.canonical_json import DuplicateNameError, JsonError, Numbers, TooDeepError, read
from quittance.limits import JSON_DEPTH_MAX, NUMBER_CHARS_MAX

NAMES = st.lists(st.sampled_from("abcdefgh"), max_size=8)


@pytest.mark.parametrize(
    ("text", "bounded", "exact", "doubles"),
    [
        ("1.10", Decimal("1.10"), Decimal("1.10"), 1.1),
        ("1e401", None, Decimal("1e401"), float("inf")),
        ("9" * (NUMBER_CHARS_MAX + 1), None, 10 ** (NUMBER_CHARS_MAX + 1) - 1, 10 ** (NUMBER_CHARS_MAX + 1) - 1),
        ("Infinity", None, None, float("inf")),
        ("1e99999999999999999999", None, None, float("inf")),
    ],
    ids=["decimal", "exponent", "digits", "infinity", "no-decimal"],
)
def test_numbers_are_read_as_the_option_says(text: str, bounded: object, exact: object, doubles: object) -> None:
    for numbers, expected in ((Numbers.BOUNDED, bounded), (Numbers.EXACT, exact), (Numbers.DOUBLES, doubles)):
        if expected is None:
            with pytest.raises(JsonError):
                read(text, numbers=numbers)
        else:
            found = read(text, numbers=numbers)
            assert (found, type(found)) == (expected, type(expected))


def test_the_depth_limit_is_an_option() -> None:
    deeper = "[" * (JSON_DEPTH_MAX + 1) + "1" + "]" * (JSON_DEPTH_MAX + 1)
    assert read(deeper[1:-1])
    assert read(deeper, depth_max=None)
    with pytest.raises(TooDeepError, match="deeper than 64 levels"):
        read(deeper)
    with pytest.raises(JsonError, match=r"so deep|RFC 8259"):
        read("[" * 200_000, depth_max=None)


@pytest.mark.parametrize("text", [r'"\ud800"', '"\ud800"', r'{"\udfff": 1}'])
def test_half_a_surrogate_pair_is_refused_by_default(text: str) -> None:
    assert read(text, lone_surrogates=True)
    with pytest.raises(JsonError, match="half of a surrogate pair"):
        read(text)


@given(NAMES, st.sampled_from(Numbers))
def test_the_first_duplicate_name_is_reported(names: list[str], numbers: Numbers) -> None:
    members: list[tuple[str, Any]] = [(name, number) for number, name in enumerate(names)]
    text = "{" + ",".join(f"{json.dumps(name)}:{number}" for name, number in members) + "}"
    duplicate = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if duplicate is None:
        assert read(text, numbers=numbers) == dict(members)
    else:
        with pytest.raises(DuplicateNameError) as caught:
            read(text, numbers=numbers)
        assert caught.value.name == duplicate
