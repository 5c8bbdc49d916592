"""`Prefer` as RFC 7240 has it: several headers, parameters, quotes, any case, and whatever else clients send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance.api.requests import preferences, wants_async

TOKENS = st.text("abcXYZ019-_.!#$%&'*+^`|~", min_size=1, max_size=8)
VALUES = TOKENS | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
SPACE = st.sampled_from(["", " ", "\t", "  "])


def quoted(value: str) -> str:
    return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'


@pytest.mark.parametrize(
    "headers",
    [
        ["respond-async"],
        ["respond-async, wait=10"],
        ["wait=10, respond-async"],
        ["return=minimal", "respond-async"],
        ["Respond-Async"],
        [" respond-async ;x=y; z "],
        ['respond-async=""'],
        ["respond-async="],
        [',, respond-async,"'],
        ['note="a, b";c="d, e",respond-async'],
        ["(malformed), respond-async"],
    ],
)
def test_a_client_that_would_not_wait_is_understood(headers: list[str]) -> None:
    assert wants_async(headers)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["wait=10"],
        ["respond-async=no"],
        ["respond-asynchronously"],
        ['note="a, respond-async"'],
        ["note=x; respond-async"],
        ["respond-async=no, respond-async"],
        ["respond async"],
        ['"respond-async"'],
        ['note="unfinished, respond-async'],
    ],
)
def test_nobody_else_is_taken_for_one(headers: list[str]) -> None:
    assert not wants_async(headers)


@given(st.lists(st.tuples(TOKENS, VALUES, SPACE, SPACE, st.booleans()), max_size=6), st.data())
def test_what_was_written_is_read(written: list[tuple[str, str, str, str, bool]], data: st.DataObject) -> None:
    """The first of a name counts, in however many headers they stand."""
    headers: list[list[str]] = [[]]
    expected: dict[str, str] = {}
    for name, value, before, after, parameter in written:
        headers[-1].append(f"{before}{name}{after}={before}{quoted(value)}{after}{';p=1' if parameter else ''}{before}")
        expected.setdefault(name.lower(), value)
        if data.draw(st.booleans()):
            headers.append([])
    assert preferences(",".join(members) for members in headers) == expected


@given(st.lists(st.text(max_size=200), max_size=3))
def test_nothing_that_is_sent_breaks_it(headers: list[str]) -> None:
    assert all(name == name.lower() for name in preferences(headers))
