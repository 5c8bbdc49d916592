"""The bytes that texts take in JSON."""

import json

from hypothesis import given
from hypothesis import strategies as st

from quittance.api.sizes import json_bytes, nested_bytes, response_bytes

# Lone surrogates too: JSON can spell them.
TEXTS = st.one_of(st.text(st.characters()), st.text('ab"\\\x00\x1f\x7f\n€😀\ud800', max_size=80))


@given(TEXTS)
def test_sizes_are_those_of_the_text_that_json_writes(text: str) -> None:
    assert response_bytes(answer := {"statusCode": 200, "body": text}) == len(json.dumps(answer))
    assert nested_bytes(text) == len(json.dumps(json.dumps(text, ensure_ascii=False)))


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_utf_8_sizes_are_those_of_the_text_that_json_writes(text: str) -> None:
    assert json_bytes(text) == len(json.dumps(text, ensure_ascii=False).encode())


def test_what_is_absent_has_the_size_of_null() -> None:
    assert json_bytes(None) == len("null")
    assert response_bytes({"body": None}) == len(json.dumps({"body": ""}))
