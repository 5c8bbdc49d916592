"""The worst-case cost of a verdict: schemas and outputs that are as expensive as the limits permit.

    python benchmarks/acceptance.py            # prints the table; exit status 1 if a verdict exceeds its limit
    python benchmarks/acceptance.py --write    # also writes it into docs/acceptance.md

Every case applies one side's rules, newly parsed, to an output of about a megabyte. The least CPU time of three counts,
because the work of other programs on the machine is not a cost of the verdict.
"""

import argparse
import itertools
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from quittance import canonical_json

sys.path.insert(0, str(Path(__file__).parents[1] / "layers" / "runtime"))

from scale import QUICK, scaled

from quittance.acceptance.json_schema import Schema, Steps, TooCostlyError
from quittance.acceptance.rules import Rules, verdict
from quittance.limits import ACCEPTANCE_STEPS_MAX, OUTPUT_BYTES_MAX

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "acceptance.md"
BEGIN, END = "<!-- the table: python benchmarks/acceptance.py --write -->\n", "<!-- end of the table -->\n"
ROUNDS = scaled(3, 1)
BOUND_MS = 1_000
ROOM = OUTPUT_BYTES_MAX - 100


@dataclass(frozen=True)
class Case:
    """Rules and an output."""

    name: str
    schema: Any
    output: bytes


def filled(item: str, opening: str = "[", closing: str = "]") -> bytes:
    """Return a JSON text that repeats an item up to the output limit."""
    return (opening + ",".join([item] * (ROOM // (len(item.encode()) + 1))) + closing).encode()


def numbered(form: str, opening: str = "[", closing: str = "]") -> bytes:
    """Return a JSON text of as many different items as fit."""
    count = ROOM // (len(form.format(10**6)) + 1)
    return (opening + ",".join(form.format(10**5 + n) for n in range(count)) + closing).encode()


def nested(levels: int, leaf: str) -> str:
    """Return nested arrays."""
    return "[" * levels + leaf + "]" * levels


def doubling(levels: int, keyword: str) -> dict[str, Any]:
    """Return a schema in which every level applies the next twice: 2^levels applications in all."""
    steps = {f"n{n}": {keyword: [{"$ref": f"#/$defs/n{n + 1}"}, {"$ref": f"#/$defs/n{n + 1}"}]} for n in range(levels)}
    return {"$ref": "#/$defs/n0", "$defs": {**steps, f"n{levels}": {"type": "null"}}}


def honest() -> Iterator[Case]:
    """Yield honest rules with outputs of the maximum size."""
    person = {"type": "object", "required": ["id", "name"], "additionalProperties": False}
    person |= {"properties": {"id": {"type": "integer", "minimum": 0}, "name": {"type": "string", "maxLength": 80}}}
    yield Case("honest: a list of numbers", {"items": {"type": "integer"}}, filled("1"))
    yield Case("honest: a list of objects", {"items": person}, numbered('{{"id":{},"name":"Ada"}}'))
    yield Case("honest: 100,000 different items", {"uniqueItems": True}, numbered("{}"))
    yield Case("honest: prices in cents", {"items": {"multipleOf": 0.01}}, filled("19.99"))
    yield Case("honest: identifiers", {"items": {"pattern": "^[A-Z]{3}-[0-9]{6}$"}}, numbered('"ABC-{}"'))


def branching() -> Iterator[Case]:
    """Yield schemas that apply many schemas."""
    yield Case("2^80 applications of anyOf", doubling(80, "anyOf"), b"1")
    yield Case("2^80 applications of oneOf", doubling(80, "oneOf"), b"null")
    tree = {"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/n"}}] * 9}}}
    yield Case("nine branches at each of 60 levels", tree, nested(60, "true").encode())
    yield Case("items that all fail in contains", {"contains": {"items": {"type": "string"}}}, filled("[1]"))
    yield Case("500 mismatches of each item", {"items": {"not": {"anyOf": [False] * 500}}}, filled("1"))
    unevaluated: dict[str, Any] = {"allOf": [{"properties": {"a": True}}, {"patternProperties": {"": True}}]}
    unevaluated["unevaluatedProperties"] = False
    yield Case("unevaluated members", unevaluated, numbered('"{}":1', "{", "}"))
    layers: Any = {"additionalProperties": True}
    for _ in range(28):
        layers = {"allOf": [layers], "unevaluatedProperties": False}
    yield Case("28 layers of unevaluated members", layers, numbered('"{}":1', "{", "}"))
    seen = {"allOf": [{"contains": {"type": "integer"}}] * 200, "unevaluatedItems": False}
    yield Case("unevaluated items", seen, filled("1"))
    chain = {f"n{n}": {"$ref": f"#/$defs/n{n + 1}"} for n in range(190)} | {"n190": {"type": "integer"}}
    yield Case("chains of 190 references", {"items": {"$ref": "#/$defs/n0"}, "$defs": chain}, filled("1"))
    for length in (41, 183):  # depths at which a recursive evaluator paid ten times as much for each item
        above = {f"n{n}": {"$ref": f"#/$defs/n{n + 1}"} for n in range(length)}
        below = {**above, f"n{length}": {"items": {"type": "integer"}}}
        yield Case(f"numbers below {length} references", {"$ref": "#/$defs/n0", "$defs": below}, filled("1"))
    required = {"items": {"not": {"required": ["", *map(str, range(2000))]}}}
    yield Case("2,000 required names of each item", required, filled("{}"))
    absent = {"items": {"properties": {str(n): True for n in range(1000)}}}
    yield Case("1,000 members that no item has", absent, filled("{}"))


def comparing() -> Iterator[Case]:
    """Yield schemas that compare and calculate."""
    yield Case("unique items of 60 levels", {"uniqueItems": True}, numbered(nested(60, "{}")))
    yield Case("unique decimals", {"uniqueItems": True}, numbered("0.{}"))
    yield Case("unique numbers of 100 digits", {"uniqueItems": True}, numbered("9" * 90 + ".{}"))
    yield Case("unique objects", {"uniqueItems": True}, numbered('{{"a":{},"b":0}}'))
    yield Case("unique strings with escapes", {"items": {"uniqueItems": True}}, filled('["\\u0001\\u0002"]'))
    yield Case("a large value in 700 enums", {"allOf": [{"enum": [[0]]}] * 700}, filled("1"))
    yield Case("a large value in 700 enums under anyOf", {"anyOf": [{"enum": [[0]]}] * 700}, filled("1"))
    yield Case("divisions of long decimals", {"items": {"multipleOf": 1e-300}}, filled("9" * 90 + "e300"))
    yield Case(
        "divisions of the longest decimals",
        {"items": {"not": {"multipleOf": Decimal("3." + "1" * 90 + "e-399")}}},
        filled("7e399"),
    )
    yield Case("many divisions of one decimal", {"allOf": [{"items": {"multipleOf": 1e-300}}] * 300}, filled("7.1e300"))
    yield Case("whole numbers of high exponents", {"items": {"type": "integer"}}, filled("1e399"))
    yield Case("bounds of high exponents", {"items": {"allOf": [{"minimum": 1.5}] * 500}}, filled("9" * 100))


def matching() -> Iterator[Case]:
    """Yield regular expressions."""
    ab = "".join(random.Random(1).choices("ab", k=ROOM))
    yield Case("a text that fills the engine's memory", {"pattern": "[ab]*a[ab]{20}c"}, f'"{ab}"'.encode())
    yield Case("a text against 33 positions", {"pattern": "[ab]*a[ab]{30}c"}, f'"{ab}"'.encode())
    many = {"anyOf": [{"pattern": f"[ab]*a[ab]{{{n}}}c"} for n in range(10, 40)]}
    yield Case("a text against 30 patterns", many, f'"{ab}"'.encode())
    yield Case("short texts against a heavy pattern", {"items": {"pattern": "(?:a?){450}$"}}, filled('"aaaaaaaa"'))
    yield Case("short texts against many patterns", {"items": {"allOf": [{"pattern": "a"}] * 400}}, filled('"a"'))
    wide = {"patternProperties": {f"a{{{n}}}[^b]": True for n in range(1, 30)}, "additionalProperties": False}
    yield Case("names against 29 patterns", {"items": wide}, numbered('{{"aaaa{}":1}}'))
    yield Case("patterns to compile", {"patternProperties": {f"\\S{n}": True for n in range(100, 260)}}, b"{}")


def reading() -> Iterator[Case]:
    """Yield outputs that are expensive to parse."""
    yield Case("JSON of empty objects", {}, filled("{}"))
    yield Case("JSON of nested arrays", {}, filled(nested(60, "1")))
    yield Case("JSON of decimals", {}, filled("1.5"))
    yield Case("JSON of one-member objects", {}, filled('{"a":1}'))
    yield Case("JSON with escapes of surrogate pairs", {}, filled('"\\ud83d\\ude00"'))
    yield Case("JSON of opening brackets alone", {}, b"[" * ROOM)


def measure(case: Case) -> tuple[float, int | None, str]:
    """Return the least CPU milliseconds, the steps (None: all were used up) and how it ended."""
    least = float("inf")
    for _ in range(ROUNDS):
        rules = Rules(json_schema=case.schema)
        began = time.thread_time()
        found = verdict(case.output, agent=rules, task=None)
        least = min(least, time.thread_time() - began)
    steps = Steps(ACCEPTANCE_STEPS_MAX)
    try:
        Schema(rules.json_schema).mismatch(canonical_json.read(case.output), steps)
    except TooCostlyError:
        return least * 1_000, None, "too costly"
    except canonical_json.JsonError:
        return least * 1_000, 0, "no JSON"
    return least * 1_000, ACCEPTANCE_STEPS_MAX - steps.left, found.outcome


def table() -> tuple[list[str], float]:
    """Measure all cases; return the lines of the table and the longest time."""
    lines = ["| case | CPU, ms | steps | verdict |", "|---|---|---|---|"]
    longest = 0.0
    for case in itertools.chain(honest(), branching(), comparing(), matching(), reading()):
        took, steps, ended = measure(case)
        longest = max(longest, took)
        lines.append(f"| {case.name} | {took:,.0f} | {'all' if steps is None else f'{steps:,}'} | {ended} |")
        sys.stderr.write(f"{lines[-1]}\n")
    return lines, longest


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure what verdicts cost.")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}")
    write = parser.parse_args().write
    lines, longest = table()
    text = "\n".join(lines) + "\n"
    print(text)
    if write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text("".join((before, BEGIN, "\n", text, "\n", END, after)), encoding="utf-8")
    if longest > BOUND_MS and not QUICK:
        sys.exit(f"a verdict took {longest:,.0f} ms; the limit is {BOUND_MS} ms")


if __name__ == "__main__":
    main()
