"""JSON, JSON Schema and regular expressions of strangers: as others have them, and bounded."""

import json
import re
import time
from decimal import Decimal
from functools import partial
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from quittance import limits
from quittance.acceptance.json_schema import DIALECT, Schema, SchemaError, Steps, TooCostlyError
from quittance.acceptance.regex import PatternError, compile_pattern
from quittance.canonical_json import JsonError, canonical, exact, read
from quittance.limits import JSON_DEPTH_MAX, NUMBER_CHARS_MAX, NUMBER_EXPONENT_MAX, PATTERN_WEIGHT_MAX, SCHEMA_DEPTH_MAX
from tests.project.test_frames import CALLS, called_from, slow_depths

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.decimals(-3, 3, places=1).map(exact),
    st.text("ab~/é😀", max_size=3),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=8,
)


def meets(schema: Any, value: object, steps: int = 10**6) -> bool:
    return Schema(exact(schema)).mismatch(value, Steps(steps)) is None


def mismatch_of(schema: Any, value: object) -> tuple[str, str]:
    found = Schema(exact(schema)).mismatch(value, Steps(10**6))
    assert found is not None
    return found.pointer, found.sentence


def steps_of(schema: Any, value: object) -> int:
    steps = Steps(10**6)
    Schema(exact(schema)).mismatch(value, steps)
    return 10**6 - steps.left


# JSON.


@given(VALUES)
def test_a_value_survives_its_canonical_text(value: object) -> None:
    assert read(canonical(value).encode()) == value
    assert canonical(read(canonical(value).encode())) == canonical(value)


@given(VALUES, VALUES)
@example(True, 1)
@example({"a": 0}, {"a": False})
@example([1, [2]], [1, 2])
@example({"a": 1, "b": 2}, {"b": 2, "a": 1})
def test_two_values_have_one_text_exactly_if_json_schema_calls_them_equal(one: object, two: object) -> None:
    assert (canonical(one) == canonical(two)) == jsonschema.Draft202012Validator({"const": one}).is_valid(two)


@pytest.mark.parametrize(
    ("spellings", "text"),
    [
        (["1", "1.0", "1e0", "10e-1", "0.1e1", "1.000"], "1"),
        (["0", "-0", "0.0", "0e5", "-0.0e-9"], "0"),
        (["100", "1e2", "1E+2"], "100"),
        (["0.01", "1e-2", "0.010"], "0.01"),
        (["-12.5", "-125e-1"], "-12.5"),
        (["1e20", "100000000000000000000"], "100000000000000000000"),
        (["1e21", "1000000000000000000000"], "1e21"),
        (["12345678901234567890123456789.5"], "12345678901234567890123456789.5"),
        (["1e-21"], "1e-21"),
    ],
)
def test_a_number_has_one_spelling(spellings: list[str], text: str) -> None:
    assert {canonical(read(spelling.encode())) for spelling in spellings} == {text}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "UTF-8"),
        (b"{", "UTF-8"),
        (b"[1,]", "UTF-8"),
        (b"\xef\xbb\xbf1", "UTF-8"),  # a byte order mark
        ("1".encode("utf-16"), "UTF-8"),
        (b'"\xff"', "UTF-8"),
        (b'"\n"', "UTF-8"),
        (b"01", "UTF-8"),
        (b"NaN", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b'{"a":1,"b":2,"a":1}', "twice"),
        (b'["\\ud800"]', "surrogate"),
        (b'{"\\udc00\\ud800":1}', "surrogate"),
        (b"[" * limits.OUTPUT_BYTES_MAX, "nested deeper"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested deeper"),
        (b"[" * (JSON_DEPTH_MAX + 1) + b"1" + b"]" * (JSON_DEPTH_MAX + 1), "nested deeper"),
        (b"1" * (NUMBER_CHARS_MAX + 1), "numbers"),
        (b"-" + b"1" * NUMBER_CHARS_MAX, "numbers"),
        (b"0." + b"1" * NUMBER_CHARS_MAX, "numbers"),
        (b"1" * limits.OUTPUT_BYTES_MAX, "numbers"),
        (f"1e{NUMBER_EXPONENT_MAX + 1}".encode(), "exponents"),
        (f"-1e-{NUMBER_EXPONENT_MAX + 1}".encode(), "exponents"),
        (b"1e99999999999999999999", "exponents"),
        (b"1e-99999999999999999999", "exponents"),
    ],
)
def test_json_that_readers_take_differently_is_none(data: bytes, reason: str) -> None:
    with pytest.raises(JsonError, match=reason):
        read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * JSON_DEPTH_MAX + b"1" + b"]" * JSON_DEPTH_MAX,
        b"1" * NUMBER_CHARS_MAX,
        f"9.9e{NUMBER_EXPONENT_MAX}".encode(),
        f"9.9e-{NUMBER_EXPONENT_MAX}".encode(),
        b'"\\ud83d\\ude00"',
        b' \t\r\n{"a": {"a": 1}} ',
    ],
)
def test_json_at_its_limits_is_read(data: bytes) -> None:
    read(data)


def test_numbers_are_exact() -> None:
    assert read(b"19.99") == Decimal("19.99")
    assert read(b"12345678901234567890123.5") - read(b"12345678901234567890123") == Decimal("0.5")
    assert exact(0.1) == Decimal("0.1")
    assert exact({"a": [1.0, True, None, "é"]}) == {"a": [1, True, None, "é"]}


@pytest.mark.parametrize("value", [float("nan"), Decimal("Infinity"), Decimal("1e9999"), "\ud800", {"\udfff": 1}])
def test_values_from_elsewhere_are_held_to_the_same(value: object) -> None:
    with pytest.raises(JsonError):
        exact(value)


def test_a_value_of_any_depth_is_refused_in_words() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(JsonError, match="nested deeper"):
        exact(deep)


# JSON Schema against another implementation.

NAMES = st.sampled_from("abc")
COUNTS = st.integers(0, 3)
TYPES = st.sampled_from(["array", "boolean", "integer", "null", "number", "object", "string"])
NUMBERS = st.integers(-3, 3)
LEAVES = st.one_of(
    st.booleans(),
    st.fixed_dictionaries({"type": TYPES}),
    st.fixed_dictionaries({"type": st.lists(TYPES, min_size=1, unique=True)}),
    st.fixed_dictionaries({"enum": st.lists(VALUES, max_size=3)}),
    st.fixed_dictionaries({"const": VALUES}),
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"], NUMBERS),
            "multipleOf": st.sampled_from([1, 2, 3]),
        },
    ),
    st.fixed_dictionaries({}, optional={"minLength": COUNTS, "maxLength": COUNTS, "pattern": st.sampled_from("ab")}),
    st.fixed_dictionaries({}, optional={"minItems": COUNTS, "maxItems": COUNTS, "uniqueItems": st.booleans()}),
    st.fixed_dictionaries(
        {},
        optional={
            "minProperties": COUNTS,
            "maxProperties": COUNTS,
            "required": st.lists(NAMES, unique=True),
            "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, unique=True)),
        },
    ),
    st.just({"$ref": "#/$defs/list"}),
    st.just({"$dynamicRef": "#tree"}),
)


def applied(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(NAMES, inner, max_size=3)
    some = st.lists(inner, min_size=1, max_size=3)
    keywords = {
        **dict.fromkeys(["properties", "patternProperties", "dependentSchemas"], named),
        **dict.fromkeys(["allOf", "anyOf", "oneOf", "prefixItems"], some),
        **dict.fromkeys(["additionalProperties", "propertyNames", "items", "contains"], inner),
        **dict.fromkeys(["not", "if", "then", "else", "unevaluatedProperties", "unevaluatedItems"], inner),
        **dict.fromkeys(["minContains", "maxContains"], COUNTS),
    }
    return st.fixed_dictionaries({}, optional=keywords)


SCHEMAS = st.recursive(LEAVES, applied, max_leaves=8)
DEFINITIONS = {
    "list": {"type": ["array", "integer"], "items": {"$ref": "#/$defs/list"}},
    "tree": {"$dynamicAnchor": "tree", "type": ["object", "string"], "additionalProperties": {"$dynamicRef": "#tree"}},
}


@given(SCHEMAS, VALUES)
@example({"allOf": [{"properties": {"a": True}}], "unevaluatedProperties": False}, {"a": 1, "b": 2})
@example({"anyOf": [{"required": ["a"], "properties": {"b": True}}, True], "unevaluatedProperties": False}, {"b": 1})
@example({"if": {"prefixItems": [{"const": 1}]}, "then": True, "unevaluatedItems": False}, [1, 2])
@example({"contains": {"type": "null"}, "unevaluatedItems": False}, [None, None, 1])
@example({"contains": {"type": "null"}, "unevaluatedItems": False}, [None, None])
@example({"contains": {"type": "null"}, "maxContains": 1}, [None, 1])
@example({"anyOf": [{"properties": {"a": True}, "not": True}, True], "unevaluatedProperties": False}, {"a": 1})
@example({"anyOf": [True, {"properties": {"a": True}}], "unevaluatedProperties": False}, {"a": 1})
@example({"properties": {"a": True}, "patternProperties": {"b": True}, "additionalProperties": False}, {"a": 1, "b": 2})
@example({"prefixItems": [{"type": "null"}], "items": {"type": "integer"}}, [None, 1, "a"])
@example({"allOf": [{"unevaluatedProperties": True}], "unevaluatedProperties": False}, {"a": 1})
@example({"not": {"not": {"properties": {"a": True}}}, "unevaluatedProperties": False}, {"a": 1})
@example({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, 3)
@example({"enum": [[False]]}, [0])
@example({"$dynamicRef": "#tree"}, {"a": {"b": 1}})
@example({"maxContains": 1, "minContains": 0, "contains": {"type": "null"}}, [None, None])
@example({"minLength": 2}, "😀")
def test_a_verdict_is_the_one_of_another_implementation(schema: Any, value: object) -> None:
    schema = schema if isinstance(schema, bool) else {"$schema": DIALECT, **schema, "$defs": DEFINITIONS}
    assert meets(schema, value) == jsonschema.Draft202012Validator(schema).is_valid(value)


CHECKED_ELSEWHERE = {"$ref", "$dynamicRef", "pattern", "format"}
ANNOTATIONS = ["$defs", "$anchor", "title", "deprecated", "examples", "contentSchema", "$comment"]
KEYWORDS = st.sampled_from(
    [
        *sorted(jsonschema.Draft202012Validator.VALIDATORS.keys() - CHECKED_ELSEWHERE),
        *ANNOTATIONS,
        "then",
        "minContains",
    ]
)


@given(
    st.dictionaries(KEYWORDS, st.one_of(VALUES, st.sampled_from(["a", 0, -1, [], {}, ["a", "a"], [{}]])), max_size=3)
)
@example({"multipleOf": 0})
@example({"required": ["a", "a"]})
@example({"type": []})
@example({"minLength": 1.0})
@example({"minLength": 1.5})
@example({"properties": {"a": 1}})
@example({"minContains": -1})
def test_a_schema_is_refused_exactly_if_the_metaschema_refuses_it(schema: Any) -> None:
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError:
        with pytest.raises(SchemaError):
            Schema(exact(schema))
    else:
        Schema(exact(schema))


def test_decimals_divide_exactly() -> None:
    cents = {"multipleOf": 0.01}
    assert meets(cents, read(b"19.99"))
    assert meets(cents, read(b"1e300"))
    assert not meets(cents, read(b"19.999"))
    assert meets({"multipleOf": 1e-300}, read(b"7.5e300"))
    assert not meets({"multipleOf": 3}, read(b"1e400"))
    assert meets({"type": "integer"}, read(b"1.50e1"))
    assert not meets({"type": "integer"}, read(b"1.5"))
    assert meets({"minimum": Decimal("1e400")}, read(b"1e400"))
    assert not meets({"exclusiveMaximum": 10**90}, read(b"1e90"))


# Where a value fails, and why.


@pytest.mark.parametrize(
    ("schema", "value", "pointer", "sentence"),
    [
        ({"type": "object"}, 1, "", "must be of type object"),
        ({"type": ["null", "string"]}, 1, "", "must be of type null or string"),
        ({"properties": {"a": {"items": {"minimum": 3}}}}, {"a": [3, 2]}, "/a/1", "must be at least 3"),
        ({"required": ["a"]}, {}, "", 'must have the member "a"'),
        ({"additionalProperties": False}, {"x/y~z": 1}, "/x~1y~0z", "is not allowed"),
        ({"items": {"pattern": "^a$"}}, ["a", "a\n"], "/1", 'must match the pattern "^a$"'),
        ({"uniqueItems": True}, [1, 2, 1], "/2", "must not be equal to an item before it"),
        ({"minItems": 2}, [1], "", "must have at least 2 items"),
        ({"maxLength": 1}, "😀😀", "", "must have at most 1 characters"),
        ({"propertyNames": {"maxLength": 1}}, {"ab": 1}, "/ab", "must have another name: it must have at most 1"),
        ({"contains": {"type": "null"}, "minContains": 2}, [None], "", "must contain at least 2 items"),
        ({"prefixItems": [True], "unevaluatedItems": False}, [1, 2], "/1", "is not allowed"),
    ],
)
def test_a_mismatch_names_the_place_and_the_rule(schema: Any, value: object, pointer: str, sentence: str) -> None:
    found = mismatch_of(schema, value)
    assert found[0] == pointer
    assert found[1].startswith(sentence)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "text"}, "/type: must be one or more of"),
        ({"properties": {"a": {"minimum": "1"}}}, "/properties/a/minimum: must be a number"),
        ({"properties": {"a": {"pattern": "("}}}, "/properties/a/pattern: is not a regular expression"),
        ({"patternProperties": {"(": True}}, "/patternProperties/(: is not a regular expression"),
        ({"anyOf": []}, "/anyOf: must be a list of schemas"),
        ({"items": [True]}, "/items: must be a schema"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "/$schema: must be"),
        ({"items": {"$schema": DIALECT}}, "/items/$schema: is not supported"),
        ({"$defs": {"a": {"$id": "urn:a"}}}, "/$defs/a/$id: is not supported"),
        ({"$vocabulary": {}}, "/$vocabulary: is not supported"),
        ({"additionalItems": False}, "/additionalItems: belongs to an older draft"),
        ({"dependencies": {}}, "/dependencies: belongs to an older draft"),
        ({"$ref": "https://example.org/schema"}, "/$ref: must lead to a place in the same schema"),
        ({"$ref": "file:///etc/passwd"}, "/$ref: must lead"),
        ({"$ref": "other#/a"}, "/$ref: must lead"),
        ({"$dynamicRef": DIALECT}, "/$dynamicRef: must lead"),
        ({"$ref": 1}, "/$ref: must lead"),
        ({"$ref": "#/$defs/a"}, '/$ref: leads to "#/$defs/a", which is not in the schema'),
        ({"$ref": "#a"}, '/$ref: leads to "#a"'),
        ({"$ref": "#/allOf/1", "allOf": [True]}, "/$ref: leads to"),
        ({"$ref": "#/title", "title": "a"}, "/title: must be a schema"),
        ({"allOf": [{"$anchor": "a"}, {"$anchor": "a"}]}, "/allOf/1/$anchor: is the name of another"),
        (1, "must be a schema"),
        ([], "must be a schema"),
    ],
)
def test_a_schema_that_cannot_be_taken_is_refused_with_the_place(schema: Any, place: str) -> None:
    with pytest.raises(SchemaError) as refused:
        Schema(exact(schema))
    assert str(refused.value).startswith(place)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/a~1b/%25/0", "a/b": {"%": [{"type": "null"}]}},
        {"$ref": "#there", "$defs": {"a": {"$anchor": "there", "type": "null"}}},
        {"$dynamicRef": "#there", "$defs": {"a": {"$dynamicAnchor": "there", "type": "null"}}},
        {"$ref": "#/definitions/a", "definitions": {"a": {"type": "null"}}},
        {"$ref": "#/unknown/a", "unknown": {"a": {"$ref": "#/unknown/b"}, "b": {"type": "null"}}},
        {"type": "null", "$id": "urn:example", "$schema": DIALECT, "format": "date", "x-mine": [1]},
    ],
)
def test_references_lead_to_any_place_of_the_schema(schema: Any) -> None:
    assert meets(schema, None)
    assert not meets(schema, 1)


@pytest.mark.parametrize("value", ["2026-13-99", "a@@b", "not json"])
def test_formats_and_contents_are_annotations(value: str) -> None:
    assert meets({"format": "date", "contentMediaType": "application/json", "contentSchema": False}, value)


# Bounds.


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$dynamicRef": "#a", "$dynamicAnchor": "a"},
        {"allOf": [{"anyOf": [{"$ref": "#"}]}]},
        {"not": {"$ref": "#"}},
        {"then": {"$ref": "#"}, "if": True},
        {"dependentSchemas": {"a": {"$ref": "#"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"oneOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}},
        {"unevaluatedProperties": False, "$ref": "#"},
        {"$ref": "#/$defs/0", "$defs": {str(n): {"$ref": f"#/$defs/{(n + 1) % 500}"} for n in range(500)}},
    ],
)
def test_a_schema_that_leads_back_to_itself_is_refused(schema: Any) -> None:
    with pytest.raises(SchemaError, match="leads back to itself"):
        Schema(exact(schema))


def test_a_schema_may_lead_back_to_itself_further_down() -> None:
    tree = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"allOf": [{"$ref": "#/$defs/n"}]}}}}
    deep = read(b"[" * JSON_DEPTH_MAX + b"]" * JSON_DEPTH_MAX)
    assert meets(tree, deep)
    assert not meets(tree, [[1]])


def chain(length: int) -> Any:
    links = {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(length - 2)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(length - 2): {"type": "null"}}}


def test_schemas_inside_one_another_at_the_limit_and_one_beyond() -> None:
    assert meets(chain(SCHEMA_DEPTH_MAX), None)
    with pytest.raises(TooCostlyError, match=f"more than {SCHEMA_DEPTH_MAX}"):
        meets(chain(SCHEMA_DEPTH_MAX + 1), None)


def chained(length: int, leaf: Any) -> Any:
    links = {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(length)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(length): leaf}}


def test_the_deepest_schema_and_value_fit_on_any_callers_stack() -> None:
    """Also where applying a schema takes most: unevaluated items, and a comparison with the whole value."""
    schema = {**chained(SCHEMA_DEPTH_MAX - 3, {"enum": [1]}), "unevaluatedItems": False}
    value = read(b'[{"a":' * (JSON_DEPTH_MAX // 2) + b"1" + b"}]" * (JSON_DEPTH_MAX // 2))
    assert not called_from(600, lambda: meets(schema, value))


def test_references_do_not_change_the_cost_of_an_item() -> None:
    items = {"items": {"type": "integer"}}
    schemas = [Schema(chained(length, items)) for length in range(SCHEMA_DEPTH_MAX - 2)]
    works = [(length, partial(schema.mismatch, [1] * CALLS, Steps(10**6))) for length, schema in enumerate(schemas)]
    assert not slow_depths(works)


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf", "items", "not"])
def test_nesting_does_not_change_the_cost_of_an_item(keyword: str) -> None:
    def nested(depth: int) -> tuple[Any, Any]:
        schema: Any = {"items": {"type": "integer"}}
        value: Any = [1] * CALLS
        for _ in range(depth):
            schema = {keyword: [schema] if keyword.endswith("Of") else schema}
            value = [value] if keyword == "items" else value
        return schema, value

    works = []
    for depth in range(JSON_DEPTH_MAX // 2):
        schema, value = nested(depth)
        works.append((depth, partial(Schema(schema).mismatch, value, Steps(10**6))))
    assert not slow_depths(works)


def doubling(keyword: str, leaf: Any) -> Any:
    links = {str(n): {keyword: [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(80)}
    return {"$ref": "#/$defs/0", "$defs": {**links, "80": leaf}}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (doubling("anyOf", False), 1),
        (doubling("oneOf", False), 1),
        (doubling("allOf", True), 1),
        (doubling("anyOf", {"unevaluatedProperties": False}), {"a": 1}),
        ({"items": {"not": {"anyOf": [False] * 1_000}}}, [1] * 10_000),
        ({"allOf": [{"uniqueItems": True}] * 500}, list(range(10_000))),
        ({"anyOf": [{"enum": [[1]]}] * 500}, list(range(10_000))),
        ({"anyOf": [{"const": "a"}] * 500}, "b" * 10**6),
        ({"items": {"required": [*"abcdefghij"]}}, [dict.fromkeys("abcdefghij")] * 10**5),
        ({"anyOf": [{"pattern": "(?:a{9}){9}"}] * 9}, "b" * 10**6),
        (
            {"allOf": [{"additionalProperties": True}] * 30, "unevaluatedProperties": False},
            {str(n): n for n in range(10**5)},
        ),
        ({"allOf": [{"contains": True, "maxContains": 10**6}] * 60, "unevaluatedItems": False}, [1] * 10**5),
        ({"allOf": [{"items": {"multipleOf": Decimal("1e-399")}}] * 400}, [10**90] * 10_000),
    ],
)
def test_a_bomb_ends_when_its_steps_are_used_up(schema: Any, value: object) -> None:
    began = time.thread_time()
    with pytest.raises(TooCostlyError, match="take more than 600000 steps"):
        Schema(exact(schema)).mismatch(value, Steps(600_000))
    assert time.thread_time() - began < 5  # about 0.5 s: the rest is for a machine with other jobs


@given(SCHEMAS, VALUES)
def test_the_steps_of_a_verdict_repeat_and_are_enough_exactly_once(schema: Any, value: object) -> None:
    schema = schema if isinstance(schema, bool) else {**schema, "$defs": DEFINITIONS}
    needed = steps_of(schema, value)
    assert needed == steps_of(schema, value)
    Schema(exact(schema)).mismatch(value, Steps(needed))
    with pytest.raises(TooCostlyError):
        Schema(exact(schema)).mismatch(value, Steps(needed - 1))


@pytest.mark.parametrize(
    ("schema", "value", "steps"),
    [
        ({}, 1, 1),
        ({"type": "integer"}, 1, 1),
        ({"items": {"type": "integer", "minimum": 0}}, [1, 2, -1, 4], 7),
        ({"prefixItems": [True], "items": {"enum": [1, "a"]}}, [None, 1, "a"], 8),
        ({"properties": {"a": {"type": "null"}, "b": {"minLength": 1}}, "required": ["a"]}, {"a": None, "b": "x"}, 7),
        ({"patternProperties": {"^b": {"type": "string"}}, "additionalProperties": False}, {"bb": "x", "b": "y"}, 7),
        ({"propertyNames": {"maxLength": 1}}, {"a": 1, "b": 2, "long": 3}, 4),
        ({"contains": {"type": "null"}, "minContains": 2}, [1, None, 2, None, 3], 5),
        ({"anyOf": [{"type": "null"}, {"type": "string"}, {"minimum": 1}]}, 2, 4),
        ({"oneOf": [{"type": "integer"}, {"minimum": 1}, {"maximum": 3}]}, 2, 3),
        ({"allOf": [{"allOf": [True, {"type": "array"}]}, {"not": {"maxItems": 1}}]}, [1], 6),
        ({"if": {"type": "integer"}, "then": {"multipleOf": Decimal("0.01")}, "else": False}, 5, 5),
        ({"dependentSchemas": {"a": {"required": ["b"]}}, "dependentRequired": {"b": ["a"]}}, {"a": 1, "b": 2}, 7),
        (
            {
                "allOf": [{"properties": {"a": True}}],
                "anyOf": [{"properties": {"b": True}}, {"properties": {"c": True}}],
                "unevaluatedProperties": False,
            },
            {"a": 1, "b": 2, "c": 3},
            18,
        ),
        (
            {"prefixItems": [True], "contains": {"type": "null"}, "unevaluatedItems": {"type": "string"}},
            [1, None, "x", "y"],
            14,
        ),
        ({"$ref": "#/$defs/a", "type": "array", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, [[], [[1]]], 11),
        ({"uniqueItems": True}, [[1], {"a": "b" * 200}, Decimal("1.5"), 1], 18),
        ({"const": {"a": [1, 2, 3]}}, {"a": [1, 2, 3]}, 14),
        ({"pattern": "^a{10}"}, "a" * 100, 19),
    ],
)
def test_the_steps_of_a_verdict_never_change(schema: Any, value: object, steps: int) -> None:
    """A change would turn outputs that receipts call accepted into rejected ones, or the other way round."""
    assert steps_of(schema, value) == steps


@pytest.mark.parametrize(
    ("plain", "dear", "value"),
    [
        ({"multipleOf": 1}, {"multipleOf": Decimal("3e-399")}, 10**90),
        ({"allOf": [{"items": True}]}, {"allOf": [{"contains": True}], "unevaluatedItems": False}, [1] * 1_000),
        ({"pattern": "a"}, {"pattern": "a{500}"}, "b" * 1_000),
        ({"type": "null"}, {"const": 1}, "b" * 10_000),
        ({"type": "array"}, {"uniqueItems": True}, [[n] for n in range(1_000)]),
    ],
)
def test_dear_work_draws_more_steps(plain: Any, dear: Any, value: object) -> None:
    assert steps_of(dear, value) > steps_of(plain, value) + 15


def test_names_that_have_been_seen_are_counted_when_they_are_put_together() -> None:
    value = dict.fromkeys(map(str, range(1_000)))
    inner: Any = {"additionalProperties": True}
    nested = {"allOf": [{"allOf": [inner]}]}
    assert steps_of({**nested, "unevaluatedProperties": False}, value) > steps_of(nested, value) + 3_000


# Regular expressions.

ATOMS = st.one_of(
    st.sampled_from(
        [".", r"\d", r"\D", r"\w", r"\W", "[ab]", "[^ab]", "[a-c_]", r"[\d-]", r"[^\w.]", r"\.", r"\-"[1:]]
    ),
    st.sampled_from("ab1_ -,é"),
)
COUNTED = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,}", "{0,2}", "*?", "{0}"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds("({}){}".format, inner, COUNTED),
        st.builds("(?:{}|{})".format, inner, inner),
        st.builds("{}{}".format, inner, inner),
        st.builds("^{}".format, inner),
        st.builds("{}$".format, inner),
        st.builds(r"\b{}".format, inner),
        st.builds(r"{}\B".format, inner),
    ),
    max_leaves=6,
)


@given(PATTERNS, st.text("ab1_ -,é", max_size=6))
@example("^a$", "ab")
@example("a{2}", "a")
@example(r"[^\w.]", ".")
@example(r"\Bé", "aé")
def test_a_pattern_finds_what_another_engine_finds(source: str, text: str) -> None:
    assume(text or r"\B" not in source)  # Python finds no \B in an empty text before 3.14, ECMA-262 does
    found = re.search(source.replace("$", r"\Z"), text, re.ASCII) is not None
    assert compile_pattern(source).found_in(text) == found


@pytest.mark.parametrize(
    ("source", "found", "missed"),
    [
        (r"^.$", "é", "\u2028"),
        (r"^.$", "😀", "\r"),
        (r"^\s$", "\u00a0", "\u200b"),
        (r"^\S$", "\u200b", "\ufeff"),
        (r"^\d$", "7", "\u0667"),
        (r"^\w$", "Z", "é"),
        (r"^a$", "a", "a\n"),
        (r"^\u00e9\x41\u{1F600}\ud83d\ude00$", "éA😀😀", "é"),
        (r"^[\u00e0-\u00ff]$", "é", "z"),
        (r"^[\b\-\]\\^]$", "\b", "b"),
        (r"^\cJ\t\0\/\{$", "\n\t\0/{", ""),
        (r"^[a&&b]$", "&", "c"),  # sets of the engine's own syntax must not show through
        (r"^[[:alpha:]$", ":", "b"),
        (r"^[~~||a]$", "|", "c"),
        (r"^(?<year>[0-9]{4})$", "2026", "26"),
        (r"(?:)", "", None),
        (r"a|", "b", None),
        (r"#a b", "#a b", "ab"),
    ],
)
def test_the_dialect_is_the_one_of_ecma_262(source: str, found: str, missed: str | None) -> None:
    pattern = compile_pattern(source)
    assert pattern.found_in(found)
    assert missed is None or not pattern.found_in(missed)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (r"(a)\1", "back-references"),
        (r"(?<a>a)\k<a>", "back-references"),
        ("(?=a)", "look-around"),
        ("(?!a)", "look-around"),
        ("(?<=a)b", "look-around"),
        ("(?<!a)b", "look-around"),
        ("(?i)a", "look-around"),
        ("(?P<a>a)", "look-around"),
        (r"\p{L}", "not supported"),
        (r"\a", "not an escape"),
        (r"\Aa\Z", "not an escape"),
        (r"\_", "not an escape"),
        (r"\01", "not an escape"),
        ("(a", "not closed"),
        ("a)", "closes no group"),
        ("[a", "ends too early"),
        ("[]", "empty"),
        ("[^]", "empty"),
        ("[z-a]", "wrong order"),
        (r"[\d-z]", "a class for an end"),
        ("*a", "nothing to its left"),
        ("a**", "nothing to its left"),
        ("a++", "nothing to its left"),
        ("^*", "nothing to its left"),
        ("a{2,1}", "wrong order"),
        ("a{", "nothing to its left"),
        ("a{,2}", "nothing to its left"),
        ("}", "nothing to its left"),
        ("\\", "ends too early"),
        (r"\ud800", "no character"),
        (r"\u{110000}", "no character"),
        ("\ud800", "no character"),
        ("(" * 33 + ")" * 33, "nested deeper"),
        ("(" * 100_000, "nested deeper"),
        ("(?:(?:a{1000}){1000}){1000}", "positions"),
        ("a{999999}", "positions"),
        ("a" * (PATTERN_WEIGHT_MAX + 1), "positions"),
        (f"[{''.join(chr(0x4E00 + 7 * number) for number in range(1_000))}]{{400}}", "too large"),
    ],
)
def test_what_no_automaton_can_do_is_refused(source: str, reason: str) -> None:
    with pytest.raises(PatternError, match=reason):
        compile_pattern(source)


@given(st.text("ab01{},*+?()[]^$|\\.-dDwWsSuxbB:<=!P", max_size=12))
@example("(" * 32 + ")" * 32)
@example("(?:a{0}){0,}*")
def test_any_text_is_a_pattern_or_is_refused(source: str) -> None:
    try:
        pattern = compile_pattern(source)
    except PatternError:
        return
    assert 0 <= pattern.weight <= PATTERN_WEIGHT_MAX
    pattern.found_in("ab01")


@pytest.mark.parametrize("source", ["^(a+)+$", "^(a|a)*$", "(a*)*b", "^(([a-z])+.)+[A-Z]$", "(?:a?){200}a{200}"])
def test_patterns_that_are_catastrophic_elsewhere_are_not_here(source: str) -> None:
    began = time.thread_time()
    compile_pattern(source).found_in("a" * 100_000 + "!")
    assert time.thread_time() - began < 5  # some milliseconds; backtracking would not end at all


def test_the_weight_of_all_patterns_of_a_schema_is_bounded() -> None:
    half = "a" * (PATTERN_WEIGHT_MAX // 2 - 1)
    Schema({"allOf": [{"pattern": half}, {"patternProperties": {half: True}}]})
    with pytest.raises(SchemaError, match="weigh more than"):
        Schema({"allOf": [{"pattern": half}, {"patternProperties": {half: True}}, {"pattern": "a"}]})


def test_a_schema_is_read_as_its_json() -> None:
    assert meets(json.loads('{"const": 1.0}'), 1)
