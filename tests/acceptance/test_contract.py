"""Contracts: what is accepted, limits at and beyond, and the check of an input."""

import base64
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from quittance import canonical_json, limits
from quittance.acceptance.contract import (
    Contract,
    contract_json,
    contract_sha256,
    refused,
    stored_contract,
    stored_input_schema,
    with_output_schema,
    without_output_schema,
)
from quittance.acceptance.json_schema import Schema
from quittance.acceptance.rules import Rules

FULL: dict[str, Any] = {
    "input_schema": {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}},
    "output_schema": {"type": "object"},
    "examples": [
        {"name": "counts words", "input": {"text": "to be"}, "output": {"words": 2}, "fuel_max": 1_000_000},
        {"name": "bytes", "input_base64": base64.b64encode(b'{"text":""}').decode(), "output_base64": "e30="},
        {"name": "schema", "input": '{"text": "x"}', "output_schema": {"type": "object"}},
        {"name": "refuses", "input": {"text": "bad"}, "exit_code": 3},
    ],
    "tags": ["text", "word-count"],
    "licence": "Apache-2.0 OR MIT",
    "source": "https://example.com/agents/wordcount",
}


def read(sent: dict[str, Any]) -> Contract:
    return Contract.model_validate(canonical_json.read(json.dumps(sent)))


def why_refused(sent: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        read(sent)
    return str(caught.value)


def test_contract_is_stored_as_one_text_whatever_its_spelling() -> None:
    text = contract_json(read(FULL))
    shuffled = dict(reversed(FULL.items()))
    assert contract_json(read(shuffled)) == text
    assert contract_json(stored_contract(text)) == text
    assert json.loads(text) == FULL
    assert contract_sha256(text) != contract_sha256(contract_json(read(FULL | {"tags": ["text"]})))
    assert contract_json(read({})) == contract_json(read({"examples": [], "tags": []})) == "{}"
    assert contract_sha256("{}") is None


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
def test_falsy_json_values_of_examples_are_kept(value: Any) -> None:
    contract = read({"examples": [{"name": "a", "input": value, "output": value}]})
    stored = stored_contract(contract_json(contract))
    assert stored.examples[0].plain() == {"name": "a", "input": value, "output": value}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"tags": ["Text"]}, "tags.0"),
        ({"tags": ["t\u0435xt"]}, "tags.0"),  # a Cyrillic letter
        ({"tags": ["text\n"]}, "tags.0"),
        ({"tags": ["-text"]}, "tags.0"),
        ({"tags": ["a", "a"]}, "twice"),
        ({"tags": ["a" * 33]}, "tags.0"),
        ({"tags": [f"t{n}" for n in range(11)]}, "at most 10"),
        ({"licence": "Apache 2.0"}, "SPDX"),
        ({"licence": "MIT AND"}, "SPDX"),
        ({"licence": "(MIT"}, "SPDX"),
        ({"licence": "MIT)"}, "SPDX"),
        ({"licence": "()"}, "SPDX"),
        ({"licence": "<b>MIT</b>"}, "licence"),
        ({"licence": "M" * 101}, "licence"),
        ({"source": "javascript:alert(1)"}, "source"),
        ({"source": "http://example.com"}, "source"),
        ({"source": "https:///path"}, "source"),
        ({"source": "https://user:secret@example.com/"}, "source"),
        ({"source": "https://example.com:0/"}, "source"),
        ({"source": "https://example.com:99999/"}, "source"),
        ({"source": "https://[::1"}, "source"),
        ({"source": "https://ex\u0430mple.com/"}, "source"),
        ({"source": "https://example.com/\nX"}, "source"),
        ({"source": "https://example.com/<script>"}, "source"),
        ({"source": "https://example.com/" + "a" * 981}, "source"),
        ({"examples": [{"name": "a", "input": {"text": 1}}]}, "input/text must be of type string"),
        ({"examples": [{"name": "a", "input": "no JSON"}]}, "must be one JSON document"),
        ({"examples": [{"name": "a", "input_base64": "%"}]}, "base64"),
        ({"examples": [{"name": "a"}]}, "exactly one of input"),
        ({"examples": [{"name": "a", "input": {"text": ""}, "input_base64": "e30="}]}, "exactly one of input"),
        ({"examples": [{"name": "a", "input": {"text": ""}, "output": None, "exit_code": 0}]}, "at most one of"),
        ({"examples": [{"name": "a", "input": {"text": ""}, "exit_code": -1}]}, "exit_code"),
        ({"examples": [{"name": "a", "input": {"text": ""}, "exit_code": 2**32}]}, "exit_code"),
        ({"examples": [{"name": "a", "input": {"text": ""}, "fuel_max": 0}]}, "fuel_max"),
        ({"examples": [{"name": "a", "input": {"text": ""}, "fuel_max": limits.FUEL_MAX + 1}]}, "fuel_max"),
        ({"examples": [{"name": "a", "input": {"text": ""}, "output_schema": {"type": "x"}}]}, "output_schema"),
        ({"examples": [{"name": " ", "input": {"text": ""}}]}, "name"),
        ({"examples": [{"name": "n" * 65, "input": {"text": ""}}]}, "name"),
        ({"examples": [{"name": n, "input": {"text": ""}} for n in ("a", " a ")]}, "twice"),
        ({"examples": [{"name": f"{n}", "input": {"text": ""}} for n in range(21)]}, "examples"),
        ({"input_schema": {"type": "text"}}, "input_schema"),
        ({"input_schema": 1}, "must be a schema"),
        ({"input_schema": {"$ref": "https://example.com/schema"}}, "input_schema"),
        ({"input_schema": {"$ref": "#"}}, "leads back to itself"),
        ({"input_schema": {"multipleOf": 0.1000000000000000055}}, "double"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_wrong_member_is_refused_and_named(changed: dict[str, Any], sentence: str) -> None:
    sent = json.dumps(FULL | changed)
    if "double" in sentence:
        sent = sent.replace("0.1", "0.1000000000000000055", 1)
    with pytest.raises(ValidationError) as caught:
        Contract.model_validate(canonical_json.read(sent))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"tags": [f"t{n}" for n in range(limits.TAGS_MAX)]},
        {"tags": ["a" * limits.TAG_CHARS_MAX, "0-"]},
        {"licence": "M" * limits.LICENCE_CHARS_MAX},
        {"licence": "(MIT AND (GPL-2.0+ WITH Classpath-exception-2.0)) OR DocumentRef-a:LicenseRef-b"},
        {"source": "https://example.com/" + "a" * (limits.SOURCE_URL_CHARS_MAX - 20)},
        {"source": "https://example.com:8443/a?b=c#readme"},
        {"examples": [{"name": "n" * limits.EXAMPLE_NAME_CHARS_MAX, "input": {"text": ""}}]},
        {"examples": [{"name": str(n), "input": {"text": ""}} for n in range(limits.EXAMPLES_MAX)]},
        {"examples": [{"name": "a", "input": {"text": ""}, "exit_code": limits.EXIT_CODE_MAX}]},
        {"examples": [{"name": "a", "input": {"text": ""}, "fuel_max": limits.FUEL_MAX}]},
        {"input_schema": False, "examples": []},
        {"input_schema": True},
    ],
)
def test_limits_are_inclusive(changed: dict[str, Any]) -> None:
    read(FULL | changed)


def test_contract_has_at_most_64_kib_of_canonical_json() -> None:
    def of(chars: int) -> dict[str, Any]:
        return {"examples": [{"name": "a", "input": "x" * chars}]}

    rest = len(contract_json(read(of(0))))
    assert len(contract_json(read(of(limits.CONTRACT_BYTES_MAX - rest)))) == limits.CONTRACT_BYTES_MAX
    assert "at most 65536 bytes" in why_refused(of(limits.CONTRACT_BYTES_MAX - rest + 1))
    assert "at most 65536 bytes" in why_refused({"examples": [{"name": "a", "input": "é" * 33_000}]})
    assert "at most 65536 bytes" in why_refused({"examples": [{"name": "a", "input": "", "output": "x" * limits.MIB}]})


def test_a_contract_far_over_the_limit_is_refused_before_it_is_read() -> None:
    why_refused({"examples": [{"name": "a", "input": [[]] * 1_000_000}]})


def test_output_schema_becomes_the_schema_of_the_rules() -> None:
    contract = read({"output_schema": {"type": "object"}})
    sized = Rules(max_bytes=5)
    merged = with_output_schema(sized, contract)
    assert (merged.max_bytes, merged.json_schema) == (5, {"type": "object"})
    assert with_output_schema(merged, contract) == merged
    assert without_output_schema(merged, contract) == sized
    assert with_output_schema(sized, read({})) is sized
    with pytest.raises(ValueError, match="another schema"):
        with_output_schema(Rules(json_schema={"type": "array"}), contract)
    with pytest.raises(ValueError, match="is for JSON"):
        with_output_schema(Rules(media_type="image/png"), contract)
    own = Rules(json_schema={"type": "array"})
    assert without_output_schema(own, contract) == own


@pytest.mark.parametrize(
    ("stdin", "field", "sentence"),
    [
        (b'{"text": 1}', "input/text", "must be of type string"),
        (b"{}", "input", "must have the member"),
        (b"", "input", "must be one JSON document"),
        (b"{}{}", "input", "must be one JSON document"),
        (b"\xff", "input", "must be one JSON document"),
        (b'{"text": "\\ud800"}', "input", "surrogate"),
        (b'{"text": "", "text": ""}', "input", "twice"),
        (b"[" * 66 + b"]" * 66, "input", "nested"),
        (b"[" * 500_000 + b"]" * 500_000, "input", "nested"),
        (b'{"text": NaN}', "input", "NaN"),
        (b'{"text": 1e9999999999}', "input", "numbers"),
        (b"text", "input", "must be one JSON document"),
    ],
)
def test_an_input_that_is_not_accepted_names_the_place(stdin: bytes, field: str, sentence: str) -> None:
    found = refused(stored_input_schema(contract_json(read(FULL))), stdin)
    assert found
    assert found[0] == field
    assert sentence in found[1]


def test_place_of_a_fault_is_short_and_printable() -> None:
    found = refused(Schema({"additionalProperties": False}), json.dumps({"\x1b[2J" + "x" * 10_000: 1}).encode())
    assert found
    assert len(found[0]) <= limits.FIELD_NAME_CHARS_MAX
    assert found[0].isprintable()


def test_steps_of_an_input_check_grow_with_the_input() -> None:
    """29,998 steps of 29,999 are accepted, 30,001 of 30,000 refuse the input."""
    schema = Schema({"items": {"allOf": [{"type": "integer"}] * 2}})  # a step for the array, three for each item
    stdin = lambda items: b"[" + b",".join([b"1"] * items) + b"]"  # noqa: E731
    assert refused(schema, stdin(9_999)) is None
    found = refused(schema, stdin(10_000))
    assert found
    steps = limits.INPUT_STEPS_MIN + len(stdin(10_000)) // limits.INPUT_BYTES_PER_STEP
    assert f"more than {steps} steps" in found[1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "bb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
TYPES = st.sampled_from(["array", "boolean", "integer", "null", "number", "object", "string"])


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, min_size=1, max_size=2)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES,
            "enum": st.lists(JSON, max_size=3),
            "const": JSON,
            "minimum": st.integers(-2, 2),
            "maxLength": st.integers(0, 2),
            "minItems": st.integers(0, 2),
            "uniqueItems": st.booleans(),
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "additionalProperties": inner,
            "items": inner,
            "prefixItems": few,
            "contains": inner,
            "anyOf": few,
            "oneOf": few,
            "allOf": few,
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
            "unevaluatedProperties": inner,
        },
    )


SCHEMAS = st.recursive(st.booleans() | schemas(st.booleans()), schemas, max_leaves=4)


@settings(max_examples=200, deadline=None)
@given(schema=SCHEMAS, value=JSON)
def test_input_is_accepted_exactly_when_jsonschema_accepts_it(schema: Any, value: Any) -> None:
    contract = read({"input_schema": schema})
    accepted = jsonschema.Draft202012Validator(schema).is_valid(value)
    compiled = stored_input_schema(contract_json(contract))
    assert (refused(compiled, json.dumps(value).encode()) is None) is accepted
