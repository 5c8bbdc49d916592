r"""Untrusted regular expressions, matched in time proportional to the length of the text.

A pattern has the syntax of ECMA-262 with the flag `u`, as JSON Schema recommends, without the features that an
automaton cannot match (back-references, look-around) and without `\p`, whose meaning changes with each version of
Unicode. It is parsed here and rewritten for the `regex` crate inside pydantic, which never backtracks. Every character
becomes a code point escape and every class a list of ranges, so a pattern cannot use the crate's own syntax.

The weight of a pattern is the number of its positions after counted repetitions are expanded. Matching costs at most
the weight times the length of the text.
"""

import re
from dataclasses import dataclass
from typing import Final, NoReturn

from pydantic_core import SchemaError, SchemaValidator, core_schema

from quittance.limits import PATTERN_WEIGHT_MAX

_GROUP_DEPTH_MAX: Final = 32
_DIGITS: Final = "0-9"
_WORD: Final = "0-9A-Z_a-z"
_SPACE: Final = r"\x{9}-\x{d}\x{20}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}"
_CLASSES: Final = {
    "d": f"[{_DIGITS}]",
    "D": f"[^{_DIGITS}]",
    "w": f"[{_WORD}]",
    "W": f"[^{_WORD}]",
    "s": f"[{_SPACE}]",
    "S": f"[^{_SPACE}]",
}
_NARROW: Final = frozenset("dw")  # classes of one byte
_ANY: Final = r"[^\x{a}\x{d}\x{2028}\x{2029}]"
_BOUNDARIES: Final = {"b": r"(?-u:\b)", "B": r"(?-u:\B)"}
_CONTROLS: Final = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_IN_CLASS: Final = {"b": 8, "-": 0x2D}
_SYNTAX: Final = frozenset("^$\\.*+?()[]{}|/")
_HEX: Final = re.compile(r"x(?P<byte>[0-9A-Fa-f]{2})|u(?P<unit>[0-9A-Fa-f]{4})|u\{(?P<point>[0-9A-Fa-f]{1,8})\}")
_LOW_HALF: Final = re.compile(r"\\u(?P<unit>[dD][c-fC-F][0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"c(?P<letter>[A-Za-z])")
_COUNT: Final = re.compile(r"\{(?P<least>[0-9]{1,6})(?P<open>,(?P<most>[0-9]{1,6})?)?\}")
_GROUP_NAME: Final = re.compile(r"\?<[A-Za-z_$][A-Za-z0-9_$]*>")

_Term = tuple[str, int]
"""A piece for the engine, and its weight."""


class PatternError(ValueError):
    """The pattern is not supported; the message says why."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern."""

    weight: int
    engine: SchemaValidator

    def found_in(self, text: str) -> bool:
        """Whether the pattern matches anywhere in the text."""
        return self.engine.isinstance_python(text)


def compile_pattern(source: str) -> Pattern:
    """Compiles a pattern in ECMA-262 syntax. Raises PatternError."""
    text, weight = _Parser(source).parse()
    try:
        return Pattern(weight, SchemaValidator(core_schema.str_schema(pattern=text, regex_engine="rust-regex")))
    except SchemaError as exc:  # a large class that is often repeated has little weight but exceeds the crate's limit
        msg = (
            "is not a regular expression of the supported syntax: its expanded classes are too large; repeat them less"
        )
        raise PatternError(msg) from exc


class _Parser:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def parse(self) -> _Term:
        term = self._alternatives(0)
        if self._at < len(self._source):
            self._refuse("a ) closes no group")
        return term

    def _alternatives(self, depth: int) -> _Term:
        texts, weight = [], 0
        while True:
            text, more = self._sequence(depth)
            texts.append(text)
            weight = self._bounded(weight + more)
            if not self._take("|"):
                return "|".join(texts), weight

    def _sequence(self, depth: int) -> _Term:
        texts, weight = [], 0
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            text, more = self._assertion() or self._repeated(self._atom(depth))
            texts.append(text)
            weight = self._bounded(weight + more)
        return "".join(texts), weight

    def _assertion(self) -> _Term | None:
        for spelt, text in (("^", "^"), ("$", "$"), (r"\b", _BOUNDARIES["b"]), (r"\B", _BOUNDARIES["B"])):
            if self._take(spelt):
                return text, 1
        return None

    def _atom(self, depth: int) -> _Term:
        if self._take("("):
            return self._group(depth + 1)
        if self._take("["):
            return self._class()
        if self._take("."):
            return _ANY, 2
        if self._take("\\"):
            return self._outside(self._escape(in_class=False))
        char = self._next()
        if char in _SYNTAX - {"/"}:
            self._refuse(f"{char} has nothing to its left, or must be written \\{char}")
        return self._outside(ord(char))

    def _group(self, depth: int) -> _Term:
        if depth > _GROUP_DEPTH_MAX:
            self._refuse(f"groups are nested deeper than {_GROUP_DEPTH_MAX}")
        if named := _GROUP_NAME.match(self._source, self._at):
            self._at = named.end()
        elif not self._take("?:") and self._take("?"):
            self._refuse("look-around, flags and other (? groups are not supported")
        text, weight = self._alternatives(depth)
        if not self._take(")"):
            self._refuse("a group is not closed")
        return f"(?:{text})", weight

    def _repeated(self, term: _Term) -> _Term:
        text, weight = term
        weight = max(weight, 1)
        if self._take("*") or self._take("+"):
            repeated = f"{text}{self._source[self._at - 1]}", weight + 1
        elif self._take("?"):
            repeated = f"{text}?", weight + 1
        elif count := _COUNT.match(self._source, self._at):
            self._at = count.end()
            repeated = text + count[0], weight * self._most(count)
        else:
            return term
        self._take("?")  # the lazy form matches the same texts
        return repeated[0], self._bounded(repeated[1])

    def _most(self, count: re.Match[str]) -> int:
        least = int(count["least"])
        if count["open"] and not count["most"]:
            return least + 1
        most = int(count["most"] or least)
        if least > most:
            self._refuse("a repetition has its bounds in the wrong order")
        return max(most, 1)

    def _class(self) -> _Term:
        negated = "^" if self._take("^") else ""
        members, weight = [], 2 if negated else 1
        while not self._take("]"):
            low = self._member()
            high = low
            if self._source[self._at : self._at + 1] == "-" and self._source[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._member()
                if isinstance(low, str) or isinstance(high, str) or low > high:
                    self._refuse("a range in a class has its ends in the wrong order, or a class for an end")
            text, more = self._outside(low)
            members.append(text if low == high else rf"{text}-\x{{{high:x}}}")
            weight = max(weight, more, 1 if isinstance(high, str) or high < 0x80 else 2)
        if not members:
            self._refuse("a class is empty")
        return f"[{negated}{''.join(members)}]", weight

    def _member(self) -> int | str:
        return self._escape(in_class=True) if self._take("\\") else ord(self._next())

    def _escape(self, *, in_class: bool) -> int | str:
        """The code point, or the letter of a class, after a backslash."""
        if found := _HEX.match(self._source, self._at):
            self._at = found.end()
            return self._code_point(found)
        if found := _CONTROL.match(self._source, self._at):
            self._at = found.end()
            return ord(found["letter"]) % 32
        char = self._next()
        if char in _CLASSES:
            return char
        code = _CONTROLS.get(char) or (_IN_CLASS.get(char) if in_class else None)
        if code is None and char in _SYNTAX:
            code = ord(char)
        if code is None and char == "0" and not self._source[self._at : self._at + 1].isdigit():
            code = 0
        if code is None:
            self._refuse(_REFUSED_ESCAPES.get(char, f"\\{char} is not an escape"))
        return code

    def _code_point(self, found: re.Match[str]) -> int:
        code = int(found["byte"] or found["unit"] or found["point"], 16)
        low = _LOW_HALF.match(self._source, self._at)
        if found["unit"] and 0xD800 <= code < 0xDC00 and low:
            self._at = low.end()
            return 0x10000 + ((code - 0xD800) << 10) + int(low["unit"], 16) - 0xDC00
        return self._scalar(code)

    def _scalar(self, code: int) -> int:
        if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            self._refuse("an escape is no character of Unicode")
        return code

    def _outside(self, member: int | str) -> _Term:
        if isinstance(member, str):
            return _CLASSES[member], 1 if member in _NARROW else 2
        return rf"\x{{{self._scalar(member):x}}}", 1 if member < 0x80 else 2

    def _next(self) -> str:
        if self._at >= len(self._source):
            self._refuse("it ends too early")
        self._at += 1
        return self._source[self._at - 1]

    def _take(self, expected: str) -> bool:
        if not self._source.startswith(expected, self._at):
            return False
        self._at += len(expected)
        return True

    def _bounded(self, weight: int) -> int:
        if weight > PATTERN_WEIGHT_MAX:
            self._refuse(f"with its repetitions expanded, it has more than {PATTERN_WEIGHT_MAX} positions")
        return weight

    def _refuse(self, reason: str) -> NoReturn:
        msg = f"is not a regular expression of the supported syntax: {reason} (character {self._at})"
        raise PatternError(msg)


_REFUSED_ESCAPES: Final = {
    **dict.fromkeys("123456789k", "back-references are not supported"),
    **dict.fromkeys("pP", "\\p is not supported, because its meaning changes with Unicode's versions; list the ranges"),
}
