"""A JSON input reaches stdin as its own tokens: by every entry point that gets text, and by the documented rule alone.

The texts are generated together with what the rule makes of them, so no parser decides what is right.
"""

import base64
import json
from itertools import product
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quittance.api import messages
from quittance.api.models import DirectTaskRequest, TaskRequest
from quittance.api.requests import read_direct, read_json
from quittance.canonical_json import AsSent
from quittance.errors import InvalidRequestError, PayloadTooLargeError
from quittance.limits import INPUT_BYTES_MAX, JSON_DEPTH_MAX, MEMBERS_READ_MAX
from quittance.run import Input
from tests.api.test_http import Call, call

__all__ = ["call"]


class Spelt(NamedTuple):
    """A JSON text, and what stdin gets of it."""

    sent: str
    read: str


SPACE: Final = st.text(" \t\n\r", max_size=3)
DIGITS: Final = st.text("0123456789", min_size=1, max_size=30)
NUMBERS: Final = st.tuples(
    st.sampled_from(["", "-"]),
    st.just("0") | st.tuples(st.sampled_from("123456789"), st.text("0123456789", max_size=30)).map("".join),
    st.just("") | DIGITS.map(lambda digits: "." + digits),
    st.just("") | st.tuples(st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), DIGITS).map("".join),
).map(lambda parts: Spelt("".join(parts), "".join(parts)))
SHORT: Final = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def fewest_escapes(char: str) -> str:
    return SHORT.get(char) or (f"\\u{ord(char):04x}" if char < " " else char)


def spellings(char: str) -> list[str]:
    """Every way to write a character in a JSON string."""
    units = char.encode("utf-16-be")
    escaped = "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
    shortest = fewest_escapes(char)
    return [shortest, escaped, escaped.upper().replace("\\U", "\\u"), *(["\\/"] if char == "/" else [])]


SPECIAL: Final = [*SHORT, "/", "\0", "\x1f", "\x7f", "é", "\u2028", "\ufeff", "👋", " ", "a"]
CHARS: Final = st.sampled_from(SPECIAL) | st.characters(codec="utf-8")
STRINGS: Final = st.lists(CHARS.flatmap(lambda char: st.tuples(st.just(char), st.sampled_from(spellings(char))))).map(
    lambda chars: (
        "".join(char for char, _ in chars),
        Spelt(f'"{"".join(spelt for _, spelt in chars)}"', f'"{"".join(fewest_escapes(char) for char, _ in chars)}"'),
    )
)
LITERALS: Final = st.sampled_from([Spelt(word, word) for word in ("null", "true", "false")])


def array(items: list[tuple[str, Spelt, str]]) -> Spelt:
    sent = ",".join(before + item.sent + after for before, item, after in items)
    return Spelt(f"[{sent}]", f"[{','.join(item.read for _, item, _ in items)}]")


def an_object(members: list[tuple[tuple[str, Spelt], list[str], Spelt]]) -> Spelt:
    sent = ",".join(s[0] + name.sent + s[1] + ":" + s[2] + value.sent + s[3] for (_, name), s, value in members)
    return Spelt(f"{{{sent}}}", "{" + ",".join(f"{name.read}:{value.read}" for (_, name), _, value in members) + "}")


VALUES: Final = st.recursive(
    NUMBERS | LITERALS | STRINGS.map(lambda string: string[1]),
    lambda inner: (
        st.lists(st.tuples(SPACE, inner, SPACE), max_size=4).map(array)
        | st.lists(
            st.tuples(STRINGS, st.lists(SPACE, min_size=4, max_size=4), inner), max_size=4, unique_by=lambda m: m[0][0]
        ).map(an_object)
    ),
    max_leaves=12,
)
TEXTS: Final = st.tuples(SPACE, VALUES.filter(lambda value: not value.sent.startswith('"')), SPACE).map(
    lambda parts: Spelt(parts[0] + parts[1].sent + parts[2], parts[1].read)
)


def body(sent: str, **others: Any) -> str:
    """A task whose input is spelt so, between other members."""
    fields = {"task_id": "t", "agent_id": "a", "user_id": "u", **others}
    return json.dumps(fields)[:-1] + f',"input":{sent}, "budget": 1}}'


def stdin(sent: str) -> bytes:
    return DirectTaskRequest.model_validate(read_json(body(sent))).stdin.data


@given(TEXTS)
def test_stdin_gets_the_tokens_that_were_sent(text: Spelt) -> None:
    expected = text.read.encode()
    assert stdin(text.sent) == expected
    assert json.loads(expected) == json.loads(text.sent)
    assert stdin(text.read) == expected, "the rule changes nothing the second time"


@given(TEXTS, st.booleans())
def test_a_http_body_keeps_the_tokens(call: Call, text: Spelt, encoded: bool) -> None:
    sent = body(text.sent).replace(', "user_id": "u"', "")
    sent = base64.b64encode(sent.encode()).decode() if encoded else sent
    status, _, answered = call("POST", "/tasks", sent, isBase64Encoded=encoded)
    assert (status, answered) == (200, [text.read, 1_000_000])


@given(TEXTS)
def test_a_queue_message_keeps_the_tokens(text: Spelt) -> None:
    """Sent to the queue as it is, or as the detail of an EventBridge event; sent on by the API as its bytes."""
    expected = text.read.encode()
    assert messages.read(body(text.sent)).request.stdin.data == expected
    event = f'{{"detail-type": "TaskRequested", "source": "a.b", "detail" : {body(text.sent)} }}'
    assert messages.read(event).request.stdin.data == expected


@pytest.mark.parametrize(
    "number", ["12345678901234567.25", "1e3", "1E+2", "-0", "0.10", "-0.0", "0e-0", "1" + "0" * 40]
)
def test_a_number_keeps_its_characters(number: str) -> None:
    assert stdin(number) == number.encode()
    assert stdin(f'{{"a":[{number} ]}}') == f'{{"a":[{number}]}}'.encode()


@pytest.mark.parametrize(
    "number",
    ["1e999999999", "-1E-999999999", "1e99999999999999999999", "9" * 100_000, "0." + "1" * 100_000, "-" + "7" * 5_000],
    ids=lambda number: number[:12],
)
def test_a_number_of_an_input_may_be_of_any_size(number: str) -> None:
    assert stdin(f"[{number}]") == f"[{number}]".encode()


@pytest.mark.parametrize("number", ["9" * 5_000, "1e99999999999999999999"], ids=lambda number: number[:12])
def test_a_number_of_another_field_is_still_bounded(number: str) -> None:
    with pytest.raises(InvalidRequestError, match="body: must be valid JSON"):
        read_json(body("1")[:-1] + f',"timeout":{number}}}')


def test_an_input_of_digits_at_its_limit_and_one_beyond() -> None:
    assert len(stdin("9" * INPUT_BYTES_MAX)) == INPUT_BYTES_MAX
    with pytest.raises(PayloadTooLargeError, match=r"^input has more than 1048576 bytes"):
        stdin("9" * (INPUT_BYTES_MAX + 1))
    assert stdin(" " * INPUT_BYTES_MAX + "[ ]") == b"[]", "white space does not count"


@pytest.mark.parametrize(
    "sent",
    [
        *("NaN", "[Infinity]", '{"a":-Infinity}', "01", "1.", ".5", "+1", "1e", "-", "[1,]", "{'a':1}", "tru", "[1 2]"),
        *("", "\ufeff1", '{"a":1,}', '["\t"]', "1//", "[", "{", '{"a"', '{"a":', '{"a" 1}', "1 1", "\xa01"),
    ],
    ids=repr,
)
def test_an_input_that_is_not_json_is_refused(sent: str) -> None:
    with pytest.raises(InvalidRequestError, match="body: must be valid JSON"):
        stdin(sent)


@pytest.mark.parametrize(
    "sent", ['["\\ud800"]', '{"\\udfff":1}', '["\\ude00\\ud83d"]', '["\ud83d\\ude00"]', '["\ud800"]']
)
def test_an_input_with_half_a_surrogate_pair_is_refused(sent: str) -> None:
    with pytest.raises(InvalidRequestError, match="input: must not hold half of a surrogate pair"):
        stdin(sent)


@pytest.mark.parametrize("sent", ['{"a":1,"a":1}', '[{"b":{},"\\u0062":2}]', '{"a":1e3,"a":1000}'])
def test_an_input_that_names_a_member_twice_is_refused(sent: str) -> None:
    with pytest.raises(InvalidRequestError, match="must not be given twice"):
        stdin(sent)


def test_two_inputs_are_refused_however_they_are_named() -> None:
    for second in ('"input"', '"\\u0069nput"'):
        with pytest.raises(InvalidRequestError, match="input: must not be given twice"):
            read_json(body("1")[:-1] + f",{second}:2}}")
    assert (
        DirectTaskRequest.model_validate(read_json(body("[1.0]").replace('"input"', '"\\u0069nput"'))).stdin.data
        == b"[1.0]"
    )


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a":', "}")])
def test_an_input_at_the_nesting_limit_and_one_beyond(opened: str, closed: str) -> None:
    levels = JSON_DEPTH_MAX - 1  # the body is a level
    assert stdin(opened * levels + "1" + closed * levels) == (opened * levels + "1" + closed * levels).encode()
    for beyond in (levels + 1, 2_000, 100_000):
        with pytest.raises(InvalidRequestError, match="deeper than 64 levels"):
            stdin(opened * beyond + "1" + closed * beyond)


def test_a_body_of_many_members_is_refused_and_never_changed() -> None:
    """Up to the limit an input is kept as it was sent. Beyond it there are too many unknown fields anyway."""
    for count, kept in ((MEMBERS_READ_MAX, True), (MEMBERS_READ_MAX + 1, False)):
        others = "".join(f'"x{number}":0,' for number in range(count - 1))
        payload = read_json(f'{{{others}"input":[1e3]}}')
        assert isinstance(payload["input"], AsSent) is kept
        with pytest.raises(ValidationError):
            TaskRequest.model_validate(payload)
    many = ",".join(f'"x{number}":0' for number in range(MEMBERS_READ_MAX))
    with pytest.raises(InvalidRequestError):
        messages.read(f'{{"detail-type":"TaskRequested","detail":{body("[1e3]")},{many}}}')


@pytest.mark.parametrize(
    ("payload", "read"), [({"a": 1.5, "b": 10**30}, b'{"a":1.5,"b":1000000000000000000000000000000}'), (1e16, b"1e+16")]
)
def test_a_direct_input_is_spelt_as_lambdas_parser_read_it(payload: object, read: bytes) -> None:
    direct = {"task_id": "t", "agent_id": "a", "user_id": "u", "budget": "1", "input": payload}
    assert read_direct(DirectTaskRequest, direct).stdin.data == read


# A repeat of a request that an earlier commit funded.


@pytest.mark.parametrize(
    ("sent", "earlier"),
    [
        ("1e3", b"1000.0"),
        ("[0.10,-0,12345678901234567.25]", b"[0.1,0,1.2345678901234568e+16]"),
        ('{"a":1E+2}', b'{"a":100.0}'),
    ],
)
def test_a_request_is_recognised_by_its_earlier_digest(sent: str, earlier: bytes) -> None:
    request = DirectTaskRequest.model_validate(read_json(body(sent)))
    now, before = request.sha256(request.stdin.sha256), request.sha256(Input.of(earlier).sha256)
    assert request.as_funded(now, input_sha256=request.stdin.sha256) is request
    repeated = request.as_funded(before, input_sha256=request.stdin.sha256)
    assert repeated is not None
    assert repeated.stdin == Input.of(earlier), "it reads what it was funded with"
    assert request.as_funded("0" * 64, input_sha256=request.stdin.sha256) is None


def test_the_digest_of_an_earlier_commit_is_the_one_it_stored() -> None:
    """Computed by commit af3a34f for this body."""
    sent = '{"b":[12345678901234567.25,1e3,1E+2,-0,0.10],"a":"\\u00e9"}'
    request = TaskRequest.model_validate(read_json(f'{{"task_id":"t","agent_id":"a","budget":"1","input":{sent}}}'))
    stored = "2ca61a6c88456e05774da17c7688229b1e5b229ae0ef2ce5742bbb551f1a704a"
    repeated = request.as_funded(stored, input_sha256=request.stdin.sha256)
    assert repeated is not None
    assert repeated.stdin.data == '{"b":[1.2345678901234568e+16,1000.0,100.0,0,0.1],"a":"é"}'.encode()


@pytest.mark.parametrize("sent", ['"1e3"', "[1e999]", "9" * 5_000, "1e99999999999999999999"], ids=lambda sent: sent[:9])
def test_an_input_that_was_refused_has_no_earlier_digest(sent: str) -> None:
    request = DirectTaskRequest.model_validate(read_json(body(sent)))
    assert request.as_funded("0" * 64, input_sha256=request.stdin.sha256) is None


# What a task may ask for beside.

OPTIONS: Final = [
    {"keep_input": keep} | ({"share": {"payer": payer, "log": log}} if payer is not None else {})
    for keep, payer, log in product([False, True], [None, False, True], [False, True])
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_change_the_request_only_if_set(options: dict[str, Any]) -> None:
    request = DirectTaskRequest.model_validate(read_json(body("1", **options)))
    plain = DirectTaskRequest.model_validate(read_json(body("1")))
    digests = [each.sha256(each.stdin.sha256) for each in (request, plain)]
    is_set = options["keep_input"] or any(options.get("share", {}).values())
    assert (digests[0] != digests[1]) is is_set
    read = messages.read(messages.write("u", request, input_base64="MQ==")).request
    assert read.sha256(read.stdin.sha256) == digests[0], "the queue carries them"


def test_every_set_of_options_is_another_request() -> None:
    requests = [DirectTaskRequest.model_validate(read_json(body("1", **options))) for options in OPTIONS]
    named = {request.sha256(request.stdin.sha256) for request in requests}
    assert len(named) == 8


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"keep_input": 1}, "keep_input"),
        ({"keep_input": "true"}, "keep_input"),
        ({"keep_input": None}, "keep_input"),
        ({"share": True}, "share"),
        ({"share": {"payer": 1}}, "share.payer"),
        ({"share": {"log": "yes"}}, "share.log"),
        ({"share": {"output": True}}, "share.output"),
    ],
    ids=str,
)
def test_an_option_that_is_no_truth_value_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        DirectTaskRequest.model_validate(read_json(body("1", **options)))
    assert [".".join(map(str, error["loc"])) for error in refused.value.errors()] == [field]
