"""Input that is made to cost its parser dear, in shapes of any size: see test_linear_parsers.py."""

import base64
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

Shape = Callable[[int], Any]
"""Makes input of about a size."""


def _nested(inner: Any, name: str, depth: int) -> Any:
    for _ in range(depth):
        inner = {name: inner}
    return inner


def _chain(length: int) -> dict[str, Any]:
    return {f"{number}": {"$ref": f"#/$defs/{number + 1}"} for number in range(length)} | {f"{length}": {}}


def _members(n: int) -> str:
    return ",".join(f'"name{number}":1' for number in range(n // 12))


def _text(unit: str, *, before: str = "", after: str = "") -> Shape:
    return lambda n: before + unit * (n // len(unit)) + after


def _encoded(shape: Shape) -> Shape:
    return lambda n: shape(n).encode()


def _token(header: str, payload: str = "{}") -> str:
    parts = (base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in (header, payload))
    return f"{'.'.join(parts)}.AA"


def _section(kind: int, items: list[bytes]) -> bytes:
    body = _leb(len(items)) + b"".join(items)
    return bytes([kind]) + _leb(len(body)) + body


def _leb(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low]) if not rest else bytes([low | 0x80]) + _leb(rest)


def _custom(length: int, char: bytes) -> bytes:
    name = _leb(length) + char * length
    return b"\0" + _leb(len(name)) + name


def _ranges(count: int) -> str:
    return "".join(chr(0x4E00 + 7 * number) for number in range(count))


def as_bytes(shapes: dict[str, Shape]) -> dict[str, Shape]:
    """The same shapes in UTF-8."""
    return {name: _encoded(shape) for name, shape in shapes.items()}


def within(shapes: dict[str, Shape], before: str, after: str) -> dict[str, Shape]:
    """The same shapes as a part of a larger text."""
    return {name: _around(shape, before, after) for name, shape in shapes.items()}


def _around(shape: Shape, before: str, after: str) -> Shape:
    return lambda n: f"{before}{shape(n)}{after}"


TASK: Final = '{"task_id":"t","agent_id":"a","budget":"1",'
JSON: Final[dict[str, Shape]] = {
    "unknown names": lambda n: "{" + _members(n) + "}",
    "one name twice, at the end": lambda n: "{" + _members(n) + ',"name0":1}',
    "the last name twice": lambda n: "{" + _members(n) + ',"last":1,"last":1}',
    "one name always": _text('"a":1,', before="{", after='"a":1}'),
    "one long name": _text("n", before='{"', after='":1}'),
    "one long name twice": lambda n: '{"' + "n" * n + '":1,"' + "n" * n + '":1}',
    "deep lists": _text("["),
    "deep lists that end": lambda n: "[" * (n // 2) + "]" * (n // 2),
    "deep objects": _text('{"a":'),
    "lists side by side": _text("[[]],", before="[", after="1]"),
    "a long number": _text("9"),
    "a long fraction": _text("9", before="0."),
    "a long exponent": _text("9", before="1e"),
    "a long negative exponent": _text("9", before="1e-"),
    "great exponents": _text("1e999999999,", before="[", after="1]"),
    "long numbers": _text("9" * 4_000 + ",", before="[", after="1]"),
    "escapes": _text(r"\u00e9", before='"', after='"'),
    "halves of pairs": _text(r"\ud800", before='"', after='"'),
    "a string without end": _text("\\\\", before='"'),
    "white space": _text(" \n", after="x"),
    "lines and a fault": _text("1,\n", before="[", after="x]"),
    "constants": _text("NaN,", before="[", after="1]"),
}
TASKS: Final[dict[str, Shape]] = {
    **JSON,
    "a long id": _text("a", before='{"task_id":"', after='"}'),
    "a long amount": _text("1", before='{"budget":"', after='"}'),
    "a long numeric amount": _text("1", before='{"budget":0.', after="}"),
    "a long score": _text("1", before='{"min_reputation":0.', after="}"),
    "a small score": _text("9", before='{"min_reputation":1e-', after="}"),
    "a long URL": _text("a.", before='{"webhook":"https://', after='"}'),
    "a long input": _text("é", before=TASK + '"input":"', after='"}'),
    "a nested input": _text('{"a":[1e300]},', before=TASK + '"input":[', after="1]}"),
    "fractions as input": _text("0.1,", before=TASK + '"input":[', after="1]}"),
    "a fraction as input": _text("1", before=TASK + '"input":0.', after="}"),
    "digits as input": _text("9", before=TASK + '"input":', after="}"),
    "an exponent as input": _text("9", before=TASK + '"input":1e', after="}"),
    "escapes in an input": _text(r'"\u00e9\\",', before=TASK + '"input":[', after="1]}"),
    "short strings as input": _text('"",', before=TASK + '"input":[', after="1]}"),
    "white space in an input": _text(" \n", before=TASK + '"input":[', after="1]}"),
    "white space before names": _text(" ", before="{", after='"input":[1]}'),
    "members as input": lambda n: TASK + '"input":{' + _members(n) + "}}",
    "base64": _text("AAAA", before=TASK + '"input_base64":"', after='"}'),
    "padding": _text("=", before=TASK + '"input_base64":"', after='"}'),
    "a long schema": _text('"a",', before=TASK + '"input":1,"acceptance":{"json_schema":{"enum":[', after="1]}}}"),
}
AGENTS: Final[dict[str, Shape]] = {
    **JSON,
    "a long name": _text(" ", before='{"name":"', after='"}'),
    "a long type": _text("x", before='{"tariff":{"type":"', after='"}}'),
    "unknown terms": lambda n: '{"tariff":{"type":"flat",' + _members(n) + "}}",
    "unknown limits": lambda n: '{"limits":{' + _members(n) + "}}",
}
RUNS: Final[dict[str, Shape]] = {
    **JSON,
    "many inputs": _text('"",', before='{"inputs":[', after='""]}'),
    "many steps": _text("{},", before='{"steps":[', after="{}]}"),
    "few large inputs": lambda n: json.dumps({"inputs": ["é" * (n // 60)] * 60}, ensure_ascii=False),
}
SCHEMAS: Final[dict[str, Shape]] = {
    "deep": lambda n: _nested({"not": True}, "not", n // 8),
    "many members": lambda n: {"properties": {f"m{number}": True for number in range(n // 12)}},
    "many references": lambda n: {"$defs": {"a": {}}, "allOf": [{"$ref": "#/$defs/a"}] * (n // 24)},
    "a chain of references": lambda n: {"$ref": "#/$defs/0", "$defs": _chain(n // 36)},
    "a long reference": lambda n: {"$ref": "#" + "/a" * (n // 2)},
    "escapes in a reference": lambda n: {"$ref": "#" + "%7E~1" * (n // 5)},
    "required names": lambda n: {"required": [f"n{number}" for number in range(n // 9)]},
    "a long name": lambda n: {"required": ["n" * n]},
    "an enumeration": lambda n: {"enum": [*range(n // 6)]},
    "patterns": lambda n: {"patternProperties": {f"a{number}": True for number in range(min(n // 20, 150))}},
    "anchors": lambda n: {"$defs": {f"{number}": {"$anchor": f"a{number}"} for number in range(n // 30)}},
}
PATTERNS: Final[dict[str, Shape]] = {
    "alternatives": _text("|"),
    "groups": _text("()"),
    "open groups": _text("("),
    "a class": _text("a", before="[", after="]"),
    "a class of ranges": lambda n: f"[{_ranges(n // 3)}]",
    "a class of ranges, repeated": lambda n: f"[{_ranges(n // 3)}]{{400}}",
    "a class without end": _text("a-", before="["),
    "counts": _text("a{1}"),
    "a long count": _text("9", before="a{", after="}"),
    "escapes": _text(r"\u{61}"),
    "backslashes": _text("\\"),
    "a long name of a group": _text("a", before="(?<", after=">a)"),
    "repeated repetitions": _text("(?:a*)*"),
}
PREFERENCES: Final[dict[str, Shape]] = {
    "spaces and a fault": _text(" ", before="a", after="x"),
    "spaces behind the sign": _text(" ", before="a=", after="("),
    "spaces around the sign": lambda n: f"a{' ' * (n // 2)}={' ' * (n // 2)}(",
    "tabs": _text("\t", before="a", after="\n"),
    "quotes": _text('"'),
    "escaped quotes": _text(r"\"", before='a="'),
    "backslashes": _text("\\", before='a="'),
    "commas in quotes": _text(",", before='"'),
    "commas": _text(","),
    "signs": _text("a="),
    "words": _text("a ", after=","),
    "semicolons": _text("a;"),
    "quotes that end": _text('"a"', before="a="),
}
WORDS: Final[dict[str, Shape]] = {
    "letters": _text("a"),
    "digits": _text("1"),
    "tildes": _text("~"),
    "digits and tildes": _text("1~"),
    "spaces": _text(" "),
    "dots": _text("."),
    "signs": _text("%=&;/"),
    "beyond ASCII": _text("é"),
    "line ends": _text("\n"),
}
BASE64: Final[dict[str, Shape]] = {
    **WORDS,
    "padding": _text("="),
    "JSON": lambda n: base64.b64encode(("{" + _members(n // 2) + "}").encode()).decode(),
    "no UTF-8": lambda n: base64.b64encode(b"\xff" * (n // 2)).decode(),
}
NUMBERS: Final[dict[str, Shape]] = {
    **WORDS,
    "a long whole number": lambda n: 10 ** min(n, 4_000),
    "a long fraction": lambda n: Decimal("0." + "1" * n),
    "many zeros": lambda n: Decimal("1." + "0" * n),
    "a great exponent": lambda n: Decimal(f"1e{10**17 + n}"),
    "a small exponent": lambda n: Decimal(f"1e-{10**17 + n}"),
}
URLS: Final[dict[str, Shape]] = {
    "labels": _text("a.", before="https://"),
    "colons": _text(":", before="https://a"),
    "brackets": _text("[", before="https://"),
    "an address": _text("1:", before="https://[", after="]"),
    "users": _text("@", before="https://"),
    "a path": _text("/..", before="https://a/"),
    "a query": _text("?&=", before="https://a/"),
    "a port": _text("9", before="https://a:"),
    "a scheme": _text("a+", after="://a"),
    "percents": _text("%", before="https://"),
}
HEAD: Final = '{"alg":"RS256","kid":"rsa-1","cert":'
TOKENS: Final[dict[str, Shape]] = {
    # Nobody has to have signed what is parsed before its signature is looked at.
    **WORDS,
    "dashes": _text("-"),
    "parts": _text("a.a."),
    "spare bits": _text("B", before="a.", after=".a"),
    "deep lists": lambda n: _token("[" * (n // 2)),
    "a deep type": lambda n: _token('{"typ":' + "[" * (n // 4) + "]" * (n // 4) + "}"),
    "a deep key id": lambda n: _token('{"kid":' + "[" * (n // 4) + "]" * (n // 4) + "}"),
    "a long number": lambda n: _token(HEAD + "9" * (n // 2) + "}"),
    "names": lambda n: _token("{" + _members(n // 2) + "}"),
    "one name twice": lambda n: _token("{" + _members(n // 2) + ',"name0":1}'),
    "claims": lambda n: _token(HEAD + '"a.a.a"}', "{" + _members(n // 2) + "}"),
    "a certificate": lambda n: _token(HEAD + '"' + "a." * (n // 4) + '"}'),
}
TICKET_HEAD: Final = '{"alg":"EdDSA","typ":"quittance-ticket+jwt"'
TICKETS: Final[dict[str, Shape]] = {
    "unknown claims": lambda n: _token(TICKET_HEAD + "}", "{" + _members(n // 2) + "}"),
    "a long budget": lambda n: _token(TICKET_HEAD + "}", '{"budget":"' + "9" * (n // 2) + '"}'),
    "a long number": lambda n: _token(TICKET_HEAD + "}", '{"n":' + "9" * (n // 2) + "}"),
    "a long channel": lambda n: _token(TICKET_HEAD + "}", '{"channel":"chn_' + "a" * (n // 2) + '"}'),
    "deep claims": lambda n: _token(TICKET_HEAD + "}", '{"n":' + "[" * (n // 4) + "]" * (n // 4) + "}"),
    "a long key id": lambda n: _token(TICKET_HEAD + ',"kid":"' + "k" * (n // 2) + '"}'),
    "a closing order": lambda n: _token(
        '{"alg":"EdDSA","typ":"quittance-channel-close+jwt"}', '{"iss":"' + "i" * (n // 2) + '"}'
    ),
}
TASK_IDS: Final[dict[str, Shape]] = {
    "a long number of a ticket": _text("1", before="chn_" + "a" * 26 + "."),
    "a long id of a channel": _text("a", before="chn_", after=".1"),
}
WASM: Final = b"\0asm\1\0\0\0"
MODULES: Final[dict[str, Shape]] = {
    "types": lambda n: WASM + _section(1, [b"\x60\0\0"] * (n // 3)),
    "values of types": lambda n: WASM + _section(1, [b"\x60" + _leb(900) + b"\x7f" * 900 + b"\0"] * (n // 904)),
    "imports": lambda n: WASM + _section(2, [b"\4wasi\1x\0\0"] * (n // 9)),
    "functions": lambda n: WASM + _section(3, [b"\0"] * n),
    "exports": lambda n: (
        WASM + _section(7, [b"\4%04x\0\0" % (number & 0xFFFF) for number in range(min(n // 7, 10_000))])
    ),
    "bodies": lambda n: WASM + _section(10, [b"\2\0\x0b"] * (n // 3)),
    "custom sections": lambda n: WASM + b"\0\3\2ab" * (n // 5),
    "a long name": lambda n: WASM + _custom(n, b"a"),
    "a name that is not UTF-8": lambda n: WASM + _custom(n, b"\xff"),
    "a foreign import": lambda n: WASM + _section(2, [_leb(n) + b"\n" * n + b"\1x\0\0"]),
    "bytes": lambda n: b"\0" * n,
}
RECEIVERS: Final[dict[str, Shape]] = as_bytes(
    {
        "a long status": _text("x", before="HTTP/1.1 "),
        "headers": _text("a: b\r\n", before="HTTP/1.1 200 OK\r\n"),
        "a long header": _text("a", before="HTTP/1.1 200 OK\r\na: "),
        "folded headers": _text("\r\n a", before="HTTP/1.1 200 OK\r\na: b", after="\r\n\r\n"),
        "endless continues": _text("HTTP/1.1 100 Continue\r\n\r\n"),
        "a long length": _text("9", before="HTTP/1.1 200 OK\r\nContent-Length: ", after="\r\n\r\n"),
        "colons": _text(":", before="HTTP/1.1 200 OK\r\n"),
    }
)
VALUES: Final[dict[str, str]] = {"strings": '""', "objects": "{}", "small objects": '{"":1}', "numbers": "1"}
WORDY_SCHEMAS: Final[dict[str, Shape]] = {
    "pattern": lambda n: {"pattern": f"[{'a' * n}]"},
    "required": lambda n: {"required": ["n" * n]},
    "dependentRequired": lambda n: {"dependentRequired": {"": ["n" * n]}},
    "propertyNames": lambda n: {"propertyNames": {"pattern": f"[{'a' * n}]"}},
    "const": lambda n: {"const": "n" * n},
    "multipleOf": lambda n: {"multipleOf": 10 ** min(n, 90)},
    "minimum": lambda n: {"minimum": 10 ** min(n, 90)},
}


def _verdict(schema: Shape, item: str) -> Shape:
    """A long schema that each of many items fails."""
    return lambda n: ({"contains": schema(min(n, 15_000))}, f"[{','.join([item] * (n // 4))}]".encode())


VERDICTS: Final[dict[str, Shape]] = {
    f"{keyword} on {values}": _verdict(schema, item)
    for keyword, schema in WORDY_SCHEMAS.items()
    for values, item in VALUES.items()
}
