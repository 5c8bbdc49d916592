import base64
import hashlib
import itertools
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from quittance.acceptance.rules import (
    SCORE_MICRO_MAX,
    SCORE_RULES,
    Judge,
    Rules,
    Verdict,
    judge_input,
    judged,
    parse_rules,
    read_score,
    rules_json,
    rules_sha256,
    verdict,
)
from quittance.canonical_json import canonical, read
from quittance.limits import (
    ACCEPTANCE_STEPS_MAX,
    BUDGET_MICRO_MAX,
    INPUT_BYTES_MAX,
    JUDGE_INPUT_BYTES_MAX,
    MESSAGE_CHARS_MAX,
    OUTPUT_BYTES_MAX,
    SCHEMA_BYTES_MAX,
    SCORE_BYTES_MAX,
)
from quittance.run import Outcome, RejectedBy, Side

JUDGE = {"agent_id": "agt_judge", "threshold": "0.9", "budget": "0.05"}
BOMB = {"not": {"items": {"allOf": [True] * 100}}}
BOMBED = json.dumps([1] * ACCEPTANCE_STEPS_MAX)[: OUTPUT_BYTES_MAX - 1].rpartition(",")[0].encode() + b"]"


def rules(**members: Any) -> Rules:
    return Rules.model_validate(members)


def of_agent(output: bytes, **members: Any) -> Verdict:
    return verdict(output, agent=rules(**members), task=None)


def refused(members: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        Rules.model_validate(members)
    return [(".".join(map(str, error["loc"])), error["msg"]) for error in caught.value.errors()]


# Rules and outputs.


@pytest.mark.parametrize(
    ("members", "met", "unmet"),
    [
        ({"min_bytes": 2}, b"ab", b"a"),
        ({"max_bytes": 2}, b"ab", b"abc"),
        ({"min_bytes": 0, "max_bytes": 0}, b"", b"a"),
        ({"sha256": hashlib.sha256(b"a").hexdigest()}, b"a", b"a\n"),
        ({"media_type": "application/json"}, b' {"a": [1e5, null]}\n', b"{'a': 1}"),
        ({"media_type": "application/json"}, b"1", b""),
        ({"media_type": "text/plain; charset=utf-8"}, "é\0".encode(), "é".encode("latin-1")),
        ({"media_type": "text/plain; charset=utf-8"}, b"", b"\xed\xa0\x80"),
        ({"media_type": "image/png"}, b"\x89PNG\r\n\x1a\n...", b"\x89PNG\n\x1a\n"),
        ({"media_type": "image/jpeg"}, b"\xff\xd8\xff\xe0", b"\xff\xd8"),
        ({"media_type": "application/pdf"}, b"%PDF-1.7", b" %PDF-1.7"),
        ({"json_schema": {"required": ["total"]}}, b'{"total": 1}', b'{"sum": 1}'),
        ({"json_schema": {"required": ["total"]}}, b'["not an object"]', b"not JSON"),
        ({"json_schema": False, "max_bytes": 9}, None, b"1"),
        ({"json_schema": True}, b"1", b"1 1"),
        ({"media_type": "application/json", "max_bytes": 3, "json_schema": {"type": "integer"}}, b"123", b"1234"),
        ({"media_type": "text/plain; charset=utf-8", "json_schema": {"type": "integer"}}, b"1", b"x"),
        ({"json_schema": {"const": None}}, b"null", b"0"),
    ],
)
def test_an_output_is_accepted_only_if_it_meets_the_rules(
    members: dict[str, Any], met: bytes | None, unmet: bytes
) -> None:
    assert met is None or of_agent(met, **members) == Verdict()
    agents, tasks = of_agent(unmet, **members), verdict(unmet, agent=None, task=rules(**members))
    assert (agents.outcome, agents.rejected_by) == (Outcome.REJECTED, RejectedBy.AGENT_RULES)
    assert (tasks.outcome, tasks.rejected_by) == (Outcome.REJECTED, RejectedBy.TASK_RULES)
    assert agents.message.startswith("The output does not meet the agent's rules: it ")
    assert not agents.accepted
    assert not tasks.accepted


@given(st.binary(max_size=64))
def test_a_payer_learns_only_which_rule_was_not_met(output: bytes) -> None:
    """The payer has not paid for the output, so the message contains no size, place or value of it."""
    for members in ({"max_bytes": 0}, {"sha256": "00" * 32}, {"json_schema": False}):
        found = verdict(output, agent=None, task=rules(**members))
        if not found.accepted:
            assert found.message == f"The output does not meet the task's rules: see {next(iter(members))}."


def test_both_sides_rules_apply_the_agents_first() -> None:
    small, large = rules(max_bytes=2), rules(min_bytes=2)
    assert verdict(b"ab", agent=small, task=large).accepted
    assert verdict(b"abc", agent=small, task=large).rejected_by is RejectedBy.AGENT_RULES
    assert verdict(b"a", agent=small, task=large).rejected_by is RejectedBy.TASK_RULES
    assert verdict(b"abc", agent=small, task=rules(json_schema=False)).rejected_by is RejectedBy.AGENT_RULES


@given(st.binary(max_size=64))
def test_without_rules_everything_is_accepted(output: bytes) -> None:
    assert verdict(output, agent=None, task=None).accepted
    assert verdict(output, agent=rules(), task=rules(judge=JUDGE)).accepted


@pytest.mark.parametrize(
    ("schema", "output", "place"),
    [
        ({"properties": {"lines": {"items": {"required": ["sum"]}}}}, b'{"lines":[{}]}', "at /lines/0 it must have"),
        ({"type": "object"}, b"[]", "it must be of type object"),
        (True, b'{"a":1,"a":2}', "it must not name a member of an object twice"),
    ],
)
def test_the_message_names_the_place_in_the_output(schema: Any, output: bytes, place: str) -> None:
    assert f"rules: {place}" in of_agent(output, json_schema=schema).message


@pytest.mark.parametrize(
    ("schema", "output"),
    [
        ({"additionalProperties": {"additionalProperties": False}}, json.dumps({"x" * 10**5: {"y" * 10**5: 1}})),
        ({"pattern": "a" * 900}, json.dumps("secret" * 1_000)),
        ({"const": ["b" * 9_000]}, json.dumps("secret" * 1_000)),
        ({"required": ["é" * 6_000]}, "{}"),
        ({"additionalProperties": False}, json.dumps({"\x1b[31m\n\u202e": 1})),
    ],
)
def test_messages_are_short_printable_and_repeat_no_values(schema: Any, output: str) -> None:
    message = of_agent(output.encode(), json_schema=schema).message
    assert len(message) < 400 < MESSAGE_CHARS_MAX
    assert message.isprintable()
    assert "secret" not in message


# Rules that are too expensive.


def test_too_many_steps_are_the_fault_of_the_rules_side() -> None:
    agents = verdict(BOMBED, agent=rules(json_schema=BOMB), task=None)
    tasks = verdict(BOMBED, agent=rules(max_bytes=OUTPUT_BYTES_MAX), task=rules(json_schema=BOMB))
    assert (agents.outcome, agents.rejected_by) == (Outcome.REJECTED, RejectedBy.AGENT_RULES)
    assert (tasks.outcome, tasks.rejected_by) == (Outcome.RULES_FAILED, RejectedBy.TASK_RULES)
    assert agents.message == f"The agent's rules for the output take more than {ACCEPTANCE_STEPS_MAX} steps."


def test_each_side_has_its_own_steps() -> None:
    output = b"[" + b"1," * 400_000 + b"1]"
    half = rules(json_schema={"items": {"type": "integer"}})
    assert ACCEPTANCE_STEPS_MAX / 2 < 400_000 < ACCEPTANCE_STEPS_MAX
    assert verdict(output, agent=half, task=half).accepted


def test_a_simple_schema_can_check_the_largest_output() -> None:
    output = b"[" + b"1," * (OUTPUT_BYTES_MAX // 2 - 1) + b"1]"
    assert len(output) == OUTPUT_BYTES_MAX + 1
    assert of_agent(output[:-2] + b"]", json_schema=True).outcome is Outcome.REJECTED  # ends with a comma
    assert of_agent(output, json_schema={"type": "array", "items": {"type": "integer"}}).accepted


@given(st.binary(max_size=80))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"9" * 100_000)
@example(b"1e" + b"9" * 100_000)
@example(b'"\\ud800"')
def test_any_output_gets_a_verdict(output: bytes) -> None:
    schema = {"$ref": "#/$defs/n", "$defs": {"n": {"items": {"$ref": "#/$defs/n"}, "uniqueItems": True}}}
    found = of_agent(output, json_schema=schema)
    assert found == of_agent(output, json_schema=schema)
    assert found.accepted or found.message


# Bad rules.


@pytest.mark.parametrize(
    ("members", "field", "message"),
    [
        ({"media_type": "text/html"}, "media_type", "Input should be 'application/json'"),
        ({"min_bytes": -1}, "min_bytes", "greater than or equal to 0"),
        ({"max_bytes": OUTPUT_BYTES_MAX + 1}, "max_bytes", "less than or equal"),
        ({"max_bytes": "5"}, "max_bytes", "valid integer"),
        ({"min_bytes": 3, "max_bytes": 2}, "max_bytes", "must be at least min_bytes"),
        ({"sha256": "AB" * 32}, "sha256", "match pattern"),
        ({"sha256": "ab" * 31}, "sha256", "match pattern"),
        ({"json_schema": "{}"}, "json_schema", "must be a schema: an object, true or false"),
        ({"json_schema": {"type": "text"}}, "json_schema", "/type: must be one or more of"),
        ({"json_schema": {"$ref": "https://example.org"}}, "json_schema", "/$ref: must lead to a place in the same"),
        (
            {"json_schema": {"pattern": "(?=a)"}},
            "json_schema",
            "/pattern: is not a regular expression of the supported",
        ),
        ({"json_schema": {"$ref": "#"}}, "json_schema", "leads back to itself"),
        ({"json_schema": {"const": Decimal("1e999")}}, "json_schema", "numbers"),
        ({"json_schema": {"const": float("inf")}}, "json_schema", "infinity"),
        ({"json_schema": {}, "media_type": "image/png"}, "json_schema", "is for JSON, which image/png is not"),
        ({"schema": {}}, "schema", "Extra inputs"),
        ({"judge": {**JUDGE, "agent_id": "a b"}}, "judge.agent_id", "match pattern"),
        ({"judge": {**JUDGE, "threshold": "1.000001"}}, "judge.threshold", "must be at least 0 and at most 1"),
        ({"judge": {**JUDGE, "threshold": "0.1234567"}}, "judge.threshold", "6 decimals"),
        ({"judge": {**JUDGE, "threshold": "-0"}}, "judge.threshold", "not negative"),
        ({"judge": {**JUDGE, "threshold": 0.5}}, "judge.threshold", "decimal string"),
        ({"judge": {**JUDGE, "budget": "0"}}, "judge.budget", "must be at least 0.000001"),
        ({"judge": {**JUDGE, "budget": "1000000.000001"}}, "judge.budget", "at most 1000000"),
        ({"judge": {"agent_id": "agt_1", "threshold": "1"}}, "judge.budget", "Field required"),
        ({"judge": {**JUDGE, "threshold_micro": 1}}, "judge.threshold_micro", "Extra inputs"),
    ],
)
def test_bad_rules_are_refused_with_the_field_name(members: Any, field: str, message: str) -> None:
    assert [(name, message in text) for name, text in refused(members)] == [(field, True)]


def test_a_schema_at_its_size_limit_and_one_byte_beyond() -> None:
    room = SCHEMA_BYTES_MAX - len('{"title":""}')
    Rules(json_schema={"title": "é" * (room // 2)})
    assert refused({"json_schema": {"title": "é" * (room // 2) + "a"}}) == [
        ("json_schema", f"Value error, must have at most {SCHEMA_BYTES_MAX} bytes")
    ]


# The JSON of rules.


@pytest.mark.parametrize(
    ("spelt", "text"),
    [
        ("{}", "{}"),
        ('{"sha256": null, "json_schema": null, "judge": null}', "{}"),
        ('{"max_bytes": 5, "json_schema": {"b": 1.0, "a": 0.010, "const": null}}', None),
        (
            '{"judge": {"threshold": 0.90, "budget": "0.050", "agent_id": "agt_judge"}, "json_schema": true}',
            '{"json_schema":true,"judge":{"agent_id":"agt_judge","budget":"0.05","threshold":"0.9"}}',
        ),
    ],
)
def test_equal_rules_have_one_canonical_json(spelt: str, text: str | None) -> None:
    made = parse_rules(spelt)
    text = text or '{"json_schema":{"a":0.01,"b":1,"const":null},"max_bytes":5}'
    assert rules_json(made) == text
    assert parse_rules(text) == made
    assert rules_json(parse_rules(text)) == text
    assert rules_sha256(text) == (None if text == "{}" else hashlib.sha256(text.encode()).hexdigest())


@given(st.permutations(["a", "b", "c"]))
def test_the_order_of_a_schemas_members_changes_nothing(names: list[str]) -> None:
    schema = {"required": ["z"], "properties": {name: {"type": "null"} for name in names}}
    made = rules(json_schema=schema)
    found = verdict(b'{"c":1,"b":1,"a":1,"z":1}', agent=made, task=None)
    assert "at /a it" in found.message
    assert rules_json(made) == rules_json(rules(json_schema=read(canonical(schema).encode())))


def test_numbers_of_a_schema_stay_exact() -> None:
    made = parse_rules('{"json_schema": {"multipleOf": 0.01, "maximum": 12345678901234567890.1}}')
    assert verdict(b"19.99", agent=made, task=None).accepted
    assert not verdict(b"12345678901234567890.11", agent=made, task=None).accepted


# Judges.


def score_micro(output: bytes) -> int | None:
    """The score that a judge printed, None if its output is not a score."""
    return read_score(output) if verdict(output, agent=None, task=SCORE_RULES).accepted else None


@given(st.integers(0, SCORE_MICRO_MAX), st.sampled_from([b"", b"\n", b" \t\r\n"]))
def test_a_score_is_read_exactly(micro: int, space: bytes) -> None:
    spelt = f"{Decimal(micro) / SCORE_MICRO_MAX:.6f}"
    shortest = spelt.rstrip("0").rstrip(".")
    for text in (spelt, shortest, f"{micro}e-6", f"{spelt}4999"):
        if "." in text or "4999" not in text:
            assert score_micro(space + text.encode() + space) == (micro if Decimal(text) <= 1 else None)


@given(st.floats(0, 1))
def test_any_printed_float_from_0_to_1_is_a_score(value: float) -> None:
    assert score_micro(repr(value).encode()) == int(Decimal(repr(value)) * SCORE_MICRO_MAX)


@given(st.binary(max_size=12))
@example(b"0.5")
def test_a_score_is_a_number_from_0_to_1_or_none(output: bytes) -> None:
    score = score_micro(output)
    if score is not None:
        assert 0 <= score <= SCORE_MICRO_MAX
        assert 0 <= Decimal(output.decode().strip()) * SCORE_MICRO_MAX - score < 1


@pytest.mark.parametrize(
    "output",
    [
        *(b"", b" ", b"1.1", b"2", b"1.000001", b"-0.5", b"+1", b".5", b"1.", b"00.5", b"01", b"1e1", b"-1e-300"),
        *(b"NaN", b"inf", b"1e9999", b"0x1", b"0,5", b"50%", b"0.5 0.5", b"0.5\0", b"0.5\x0b", b"true", b"null"),
        *(b'"0.5"', b'{"score": 0.5}', b"score: 0.5", b"\xef\xbb\xbf0.5", "\u0660".encode(), "0.5".encode("utf-16")),
        *(b"\xff", b"0." + b"0" * OUTPUT_BYTES_MAX, b"0.5" + b" " * SCORE_BYTES_MAX, b" " * OUTPUT_BYTES_MAX),
    ],
)
def test_other_output_is_no_score(output: bytes) -> None:
    assert score_micro(output) is None


@pytest.mark.parametrize("side", Side)
def test_no_score_and_a_low_score_have_the_same_message(side: Side) -> None:
    judge = Judge.model_validate(JUDGE)
    none, low = judged(judge, None, side=side), judged(judge, 0, side=side)
    assert (none.rejected_by, none.message) == (low.rejected_by, low.message)
    assert none.message == f"The judge agt_judge of the {side}'s rules did not accept the output."


def test_the_longest_score_and_one_byte_more() -> None:
    longest = b"0.5".rjust(SCORE_BYTES_MAX)
    assert (score_micro(longest), score_micro(longest + b" ")) == (500_000, None)


def test_a_score_is_always_rounded_down() -> None:
    assert score_micro(b"0." + b"9" * (SCORE_BYTES_MAX - 2)) == 999_999


def test_a_score_at_the_threshold_and_one_below() -> None:
    judge = Judge.model_validate(JUDGE)
    assert judged(judge, 900_000, side=Side.AGENT) == Verdict()
    below = judged(judge, 899_999, side=Side.AGENT)
    assert (below.outcome, below.rejected_by) == (Outcome.REJECTED, RejectedBy.AGENT_JUDGE)


def test_a_judges_terms_are_parsed_to_millionths() -> None:
    judge = Judge.model_validate({"agent_id": "agt_1", "threshold": 1, "budget": "1000000"})
    assert (judge.threshold_micro, judge.budget_micro) == (SCORE_MICRO_MAX, BUDGET_MICRO_MAX)


PARTS = st.one_of(st.binary(max_size=9), st.text(max_size=9).map(str.encode))


@given(PARTS, PARTS)
@example(b'"\\\n\t', "é😀\x7f".encode())
@example(b"\0", b"\x1b[31m")
def test_a_judge_reads_what_the_agent_read_and_wrote(task_input: bytes, output: bytes) -> None:
    sent = json.loads(judge_input(task_input, output))
    found = []
    for name in ("input", "output"):
        text, encoded = sent.pop(name, None), sent.pop(f"{name}_base64", None)
        assert (text is None) != (encoded is None)
        found.append(base64.b64decode(encoded, validate=True) if text is None else text.encode())
    assert found == [task_input, output]
    assert not sent


def test_a_judge_gets_text_as_text_in_compact_json() -> None:
    assert judge_input("é".encode(), b'{"a":\r\n1}') == '{"input":"é","output":"{\\"a\\":\\r\\n1}"}'.encode()
    assert judge_input(b"\0", b"\xff") == b'{"input_base64":"AA==","output_base64":"/w=="}'


@pytest.mark.parametrize("filler", [b"a", b'"', b"\\", b"\n", b"\t", b"\b", b"\f", b"\x7f", b"\0", b"\xff"])
def test_the_largest_input_and_output_fit_a_judge(filler: bytes) -> None:
    assert len(judge_input(filler * INPUT_BYTES_MAX, filler * OUTPUT_BYTES_MAX)) <= JUDGE_INPUT_BYTES_MAX


def test_each_character_takes_at_most_twice_its_bytes() -> None:
    for code in itertools.chain(range(0x300), [0x2028, 0x2029, 0xFEFF, 0xFFFD, 0xFFFF, 0x1F600, 0x10FFFF]):
        data = chr(code).encode() * 300
        assert len(judge_input(data, b"")) <= 2 * len(data) + 64
