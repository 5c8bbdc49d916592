"""JSON Schema 2020-12 for schemas and values of strangers: the same verdict and the same cost on every machine.

A schema is checked and compiled at once, then held against values. Every schema that is applied to a value draws from a
budget of steps, weighted by what it costs, so what a schema may do is bounded whatever it says, and without a clock.

All keywords of the standard's applicator, unevaluated and validation vocabularies are here. `format` and the content
keywords are annotations, as the standard has it by default, and unknown keywords are ignored. A schema is one document:
`$ref` and `$dynamicRef` lead to places in it, and no part of it has an `$id` of its own, so both mean the same.
"""

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, NoReturn
from urllib.parse import unquote

from quittance.acceptance.regex import Pattern, PatternError, compile_pattern
from quittance.canonical_json import canonical_part
from quittance.frames import in_one_chunk
from quittance.limits import NUMBER_CHARS_MAX, PATTERN_BYTES_PER_STEP, PATTERN_WEIGHT_MAX, SCHEMA_DEPTH_MAX

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_SHOWN_CHARS_MAX: Final = 60
_ANCHOR: Final = re.compile(r"[A-Za-z_][-A-Za-z0-9._]*")
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,5}")
_EXACT: Final = Context(prec=1_000, Emax=999_999, Emin=-999_999)  # no quotient of two JSON numbers has more digits
_DIVISION_STEPS: Final = 2
_DIVISION_DIGITS_PER_STEP: Final = 2_048  # those of the quotient times those of the divisor
_OLDER: Final = frozenset({"additionalItems", "dependencies", "$recursiveRef", "$recursiveAnchor"})
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {  # Decimals without a fractional part are integers too
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (type(None),),
    "number": (int, Decimal),
    "object": (dict,),
    "string": (str,),
}


class SchemaError(ValueError):
    """The schema cannot be taken; the message says where and why."""


class TooCostlyError(Exception):
    """Holding the value against the schema takes more than it may; the message says of what."""


class Steps:
    """A budget of steps, each some tenths of a microsecond of work."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.left = most

    def spend(self, count: int) -> None:
        """Draw from the budget. Raises TooCostlyError when it is used up."""
        self.left -= count
        if self.left < 0:
            msg = f"take more than {self._most} steps"
            raise TooCostlyError(msg)


class Mismatch:
    """Where a value does not meet a schema, and what it must do there."""

    __slots__ = ("_parts", "sentence")

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        self._parts: list[str | int] = []

    def within(self, part: str | int) -> "Mismatch":
        """The same, told from one level further up."""
        self._parts.append(part)
        return self

    @property
    def pointer(self) -> str:
        """The place in the value, as a JSON pointer (RFC 6901)."""
        return _pointer(reversed(self._parts))


class _Seen:
    """The members and items of one value that the schemas applied to it have looked at."""

    __slots__ = ("first", "items", "names")

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.first = 0  # so many items at the beginning
        self.items: set[int] = set()

    def add(self, other: "_Seen") -> None:
        self.names |= other.names
        self.items |= other.items
        self.first = max(self.first, other.first)


_Application = tuple["_Node", Any, _Seen | None]
"""A schema and the value to apply it to. If that is the value at hand, also the record of what has been seen of it, to
which an application without mismatch adds."""

_Applications = Generator[_Application, Mismatch | None, Mismatch | None]
"""A check that applies schemas: it yields each application, receives its mismatch or None, and returns its own."""

_Outcome = Mismatch | _Application | _Applications | None
"""What a check returns: its mismatch or None, or the one application that has the same outcome, or a generator."""

_Check = Callable[["_Run", Any, Any, _Seen | None], _Outcome]


@dataclass(slots=True, eq=False)
class _Node:
    """A compiled schema: its checks with their arguments, in the order in which they run."""

    checks: list[tuple[_Check, Any]] = field(default_factory=list)
    in_place: list["_Node"] = field(default_factory=list)  # applied to the same value
    keeps_seen: bool = False


_Waiting = tuple[_Applications | None, Iterator[tuple[_Check, Any]], Any, _Seen | None, _Seen | None]
"""An application that waits for another one: the check that needs it (None if both have the same outcome), the checks
after that, the value, what has been seen of it, and the record to add this to."""


class _Run:
    """One value held against one schema."""

    __slots__ = ("_steps",)

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def spend(self, count: int) -> None:
        self._steps.spend(count)

    def mismatch(self, node: _Node, value: Any) -> Mismatch | None:  # noqa: ANN401, C901, PLR0912 - any JSON; see below
        """The first mismatch of a value with a schema, or with a schema that this one applies.

        Applications that wait for another one are in a list, not on Python's stack, because the author of the schema
        decides how deep they are nested. All is one loop, because it runs for every item of a value: a helper function
        would add a sixth to its time.
        """
        steps = self._steps
        waiting: list[_Waiting] = []
        outer: _Seen | None = None
        while True:
            steps.left -= len(node.checks) or 1
            if steps.left < 0 or len(waiting) == SCHEMA_DEPTH_MAX:
                self._refuse()
            seen = _Seen() if outer is not None or node.keeps_seen else None
            checks = iter(node.checks)
            outcome: _Outcome = None
            while True:  # until there is another application
                if outcome is None:
                    for check, argument in checks:  # from where they were left
                        outcome = check(self, argument, value, seen)
                        if outcome is not None:
                            break
                if outcome is None or isinstance(outcome, Mismatch):
                    if outer is not None and seen is not None and outcome is None:
                        self.spend(len(seen.names) + len(seen.items))
                        outer.add(seen)
                    if not waiting:
                        return outcome
                elif isinstance(outcome, tuple):
                    waiting.append((None, checks, value, seen, outer))
                    node, value, outer = outcome
                    break
                else:
                    waiting.append((outcome, checks, value, seen, outer))
                    outcome = None
                applications = waiting[-1][0]
                try:
                    if applications is not None:
                        node, value, outer = applications.send(outcome)
                        break
                except StopIteration as end:
                    outcome = end.value
                _, checks, value, seen, outer = waiting.pop()

    def _refuse(self) -> NoReturn:
        self._steps.spend(0)  # raises if the steps are used up
        msg = f"apply more than {SCHEMA_DEPTH_MAX} schemas inside one another"
        raise TooCostlyError(msg)

    def found(self, pattern: Pattern, text: str) -> bool:
        self.spend(1 + len(text.encode()) * pattern.weight // PATTERN_BYTES_PER_STEP)
        return pattern.found_in(text)


class Schema:
    """A compiled schema. Raises SchemaError if it is none."""

    def __init__(self, source: object) -> None:
        self._root = _Compiler(source).compile()

    @in_one_chunk
    def mismatch(self, value: object, steps: Steps) -> Mismatch | None:
        """The first place where a value does not meet the schema. Raises TooCostlyError."""
        return _Run(steps).mismatch(self._root, value)


def _of(kind: type) -> Callable[[_Check], _Check]:
    """Limit a check to values of one kind: all other values pass it."""

    def decorated(check: _Check) -> _Check:
        def of_kind(run: _Run, argument: object, value: object, seen: _Seen | None) -> _Outcome:
            return check(run, argument, value, seen) if isinstance(value, kind) else None

        return of_kind

    return decorated


# Checks. Each takes its argument, the value, and the record of what has been seen of it if a later check needs one. A
# check that applies schemas returns or yields the applications. A sentence that quotes the schema is made at compile
# time: a value can fail one check hundreds of thousands of times.


def _never(_: _Run, __: object, ___: object, ____: _Seen | None) -> Mismatch | None:
    return Mismatch("is not allowed")


def _type(_: _Run, types: tuple[frozenset[type], str], value: object, __: _Seen | None) -> Mismatch | None:
    kinds, sentence = types
    if type(value) in kinds or (int in kinds and _is_whole(value)):
        return None
    return Mismatch(sentence)


def _is_whole(value: object) -> bool:
    return type(value) is int or (isinstance(value, Decimal) and value == value.to_integral_value())


def _enum(run: _Run, allowed: frozenset[str], value: object, _: _Seen | None) -> Mismatch | None:
    if canonical_part(value, run.spend) in allowed:
        return None
    return Mismatch("must be the value of const or one of enum")


def _bound(_: _Run, bound: tuple[str, Any, str], value: object, __: _Seen | None) -> Mismatch | None:
    keyword, limit, sentence = bound
    if not isinstance(value, int | Decimal) or isinstance(value, bool) or _ORDERS[keyword][0](value, limit):
        return None
    return Mismatch(sentence)


_ORDERS: Final[Mapping[str, tuple[Callable[[Any, Any], bool], str]]] = {
    "minimum": (lambda value, limit: value >= limit, "at least"),
    "maximum": (lambda value, limit: value <= limit, "at most"),
    "exclusiveMinimum": (lambda value, limit: value > limit, "greater than"),
    "exclusiveMaximum": (lambda value, limit: value < limit, "less than"),
}


def _multiple_of(run: _Run, of: tuple[int | Decimal, str], value: object, _: _Seen | None) -> Mismatch | None:
    divisor, sentence = of
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        return None
    if isinstance(value, int) and isinstance(divisor, int):
        remainder: int | Decimal = value % divisor
    else:
        dividend, by = Decimal(value), Decimal(divisor)
        quotient_digits = max(0, dividend.adjusted() - by.adjusted() + 1)
        run.spend(_DIVISION_STEPS + quotient_digits * NUMBER_CHARS_MAX // _DIVISION_DIGITS_PER_STEP)
        remainder = _EXACT.remainder(dividend, by)
    return Mismatch(sentence) if remainder else None


def _size(_: _Run, bound: tuple[type, bool, int, str], value: object, __: _Seen | None) -> Mismatch | None:
    kind, least, limit, sentence = bound
    if not isinstance(value, kind):
        return None
    size = len(value)  # type: ignore[arg-type]  # a str, list or dict
    if size >= limit if least else size <= limit:
        return None
    return Mismatch(sentence)


def _pattern(run: _Run, pattern: tuple[Pattern, str], value: object, _: _Seen | None) -> Mismatch | None:
    if not isinstance(value, str) or run.found(pattern[0], value):
        return None
    return Mismatch(pattern[1])


def _unique(run: _Run, _: object, value: object, __: _Seen | None) -> Mismatch | None:
    if not isinstance(value, list):
        return None
    met: set[str] = set()  # of texts, whose hashes nobody can aim at
    for index, item in enumerate(value):
        text = canonical_part(item, run.spend)
        if text in met:
            return Mismatch("must not be equal to an item before it").within(index)
        met.add(text)
    return None


def _required(run: _Run, names: dict[str, str], value: object, _: _Seen | None) -> Mismatch | None:
    """`names` has a sentence for each name that may be missing."""
    if not isinstance(value, dict):
        return None
    run.spend(len(names))
    for name, sentence in names.items():
        if name not in value:
            return Mismatch(sentence)
    return None


def _dependent_required(
    run: _Run, dependent: dict[str, dict[str, str]], value: object, _: _Seen | None
) -> Mismatch | None:
    if not isinstance(value, dict):
        return None
    run.spend(len(dependent))
    for name, names in dependent.items():
        mismatch = _required(run, names, value, None) if name in value else None
        if mismatch:
            return mismatch
    return None


@dataclass(slots=True)
class _Members:
    """`properties`, `patternProperties` and `additionalProperties` of one schema, which belong together."""

    named: dict[str, _Node]
    patterns: list[tuple[Pattern, _Node]]
    others: _Node | None


@_of(dict)
def _members(run: _Run, members: _Members, value: dict[str, Any], seen: _Seen | None) -> _Applications:
    for name, node in _named_nodes(run, members, value):
        mismatch = yield node, value[name], None
        if mismatch is not None:
            return mismatch.within(name)
        if seen is not None:
            seen.names.add(name)
    return None


def _named_nodes(run: _Run, members: _Members, value: dict[str, Any]) -> Iterable[tuple[str, _Node]]:
    """The schemas that members must meet, each with the name of its member."""
    named, others = members.named, members.others
    if members.patterns:
        run.spend(len(value))
        return _matching_nodes(run, members, value)
    if others is None:
        run.spend(len(named))
        return [(name, node) for name, node in named.items() if name in value]
    run.spend(len(value))
    return [(name, named.get(name, others)) for name in value]


def _matching_nodes(run: _Run, members: _Members, value: dict[str, Any]) -> Iterator[tuple[str, _Node]]:
    """One after the other, because matching the next pattern takes steps."""
    for name in value:
        node = members.named.get(name)
        known = node is not None
        if node is not None:
            yield name, node
        for pattern, matching in members.patterns:
            if run.found(pattern, name):
                known = True
                yield name, matching
        if not known and members.others is not None:
            yield name, members.others


@_of(dict)
def _property_names(_: _Run, node: _Node, value: dict[str, Any], __: _Seen | None) -> _Applications:
    for name in value:
        mismatch = yield node, name, None
        if mismatch is not None:
            return Mismatch(f"must have another name: it {mismatch.sentence}").within(name)
    return None


@dataclass(slots=True)
class _Items:
    """`prefixItems` and `items` of one schema."""

    first: list[_Node]
    others: _Node | None


@_of(list)
def _items(_: _Run, items: _Items, value: list[Any], seen: _Seen | None) -> _Applications:
    first, others = items.first, items.others
    for index, item in enumerate(value):
        node = first[index] if index < len(first) else others
        if node is None:
            break
        mismatch = yield node, item, None
        if mismatch is not None:
            return mismatch.within(index)
    if seen is not None:
        seen.first = max(seen.first, len(value) if others is not None else min(len(first), len(value)))
    return None


@dataclass(slots=True)
class _Contains:
    """`contains` with its bounds."""

    node: _Node
    least: int
    most: int | None


@_of(list)
def _contains(_: _Run, contains: _Contains, value: list[Any], seen: _Seen | None) -> _Applications:
    found = 0
    for index, item in enumerate(value):
        if (yield contains.node, item, None) is not None:
            continue
        found += 1
        if seen is not None:
            seen.items.add(index)
        elif contains.most is None and found >= contains.least:
            return None
    if found < contains.least:
        return Mismatch(f"must contain at least {contains.least} items that meet the schema in contains")
    if contains.most is not None and found > contains.most:
        return Mismatch(f"must contain at most {contains.most} items that meet the schema in contains")
    return None


def _same(_: _Run, node: _Node, value: object, seen: _Seen | None) -> _Application:
    return node, value, seen


def _all_of(_: _Run, nodes: list[_Node], value: object, seen: _Seen | None) -> _Applications:
    for node in nodes:
        mismatch = yield node, value, seen
        if mismatch is not None:
            return mismatch
    return None


def _any_of(_: _Run, nodes: list[_Node], value: object, seen: _Seen | None) -> _Applications:
    met = False
    for node in nodes:
        if (yield node, value, seen) is None:
            met = True
            if seen is None:
                return None
    return None if met else Mismatch(f"must meet one of the {len(nodes)} schemas in anyOf")


def _one_of(_: _Run, nodes: list[_Node], value: object, seen: _Seen | None) -> _Applications:
    met = 0
    for node in nodes:
        if (yield node, value, seen) is None:
            met += 1
            if met > 1:
                break
    return None if met == 1 else Mismatch(f"must meet exactly one of the {len(nodes)} schemas in oneOf")


def _not(_: _Run, node: _Node, value: object, __: _Seen | None) -> _Applications:
    return Mismatch("must not meet the schema in not") if (yield node, value, None) is None else None


@dataclass(slots=True)
class _Condition:
    """`if`, `then` and `else` of one schema."""

    test: _Node
    met: _Node | None
    unmet: _Node | None


def _condition(_: _Run, condition: _Condition, value: object, seen: _Seen | None) -> _Applications:
    met = (yield condition.test, value, seen) is None
    branch = condition.met if met else condition.unmet
    return None if branch is None else (yield branch, value, seen)


@_of(dict)
def _dependent_schemas(
    run: _Run, dependent: dict[str, _Node], value: dict[str, Any], seen: _Seen | None
) -> _Applications:
    run.spend(len(dependent))
    for name, node in dependent.items():
        mismatch = (yield node, value, seen) if name in value else None
        if mismatch is not None:
            return mismatch
    return None


@_of(dict)
def _unevaluated_properties(run: _Run, node: _Node, value: dict[str, Any], seen: _Seen | None) -> _Applications:
    if seen is None:
        return None
    run.spend(len(value))
    for name, member in value.items():
        if name not in seen.names:
            mismatch = yield node, member, None
            if mismatch is not None:
                return mismatch.within(name)
    seen.names.update(value)
    return None


@_of(list)
def _unevaluated_items(run: _Run, node: _Node, value: list[Any], seen: _Seen | None) -> _Applications:
    if seen is None:
        return None
    run.spend(len(value))
    for index in range(seen.first, len(value)):
        if index not in seen.items:
            mismatch = yield node, value[index], None
            if mismatch is not None:
                return mismatch.within(index)
    seen.first = len(value)
    return None


# Compiling.

_SIZES: Final[Mapping[str, tuple[type, str]]] = {
    "minLength": (str, "characters"),
    "maxLength": (str, "characters"),
    "minItems": (list, "items"),
    "maxItems": (list, "items"),
    "minProperties": (dict, "members"),
    "maxProperties": (dict, "members"),
}
_STRINGS: Final = frozenset(
    {"$comment", "title", "description", "format", "contentEncoding", "contentMediaType", "$id", "$schema"}
)
_FLAGS: Final = frozenset({"deprecated", "readOnly", "writeOnly", "uniqueItems"})
_PARTS: Final = {  # keywords that hold schemas, and how
    **dict.fromkeys(("$defs", "definitions", "properties", "patternProperties", "dependentSchemas"), dict),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), list),
    **dict.fromkeys(("additionalProperties", "propertyNames", "items", "contains", "not", "if", "then", "else"), None),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems", "contentSchema"), None),
}

_Path = tuple[str, ...]


class _Compiler:
    """Turns a schema's JSON into nodes, one for each place, and checks every keyword on the way."""

    def __init__(self, source: object) -> None:
        self._source = source
        self._nodes: dict[_Path, _Node] = {}
        self._anchors: dict[str, _Path] = {}
        self._references: list[tuple[_Node, str, _Path]] = []
        self._weight = 0

    @in_one_chunk
    def compile(self) -> _Node:
        root = self._node(self._source, ())
        while self._references:  # a reference may lead to a place where no keyword has led
            node, reference, path = self._references.pop()
            target = self._resolve(reference, path)
            node.checks.insert(0, (_same, target))
            node.in_place.append(target)
        self._check_progress()
        return root

    def _node(self, source: object, path: _Path) -> _Node:
        if path in self._nodes:
            return self._nodes[path]
        node = self._nodes[path] = _Node()
        if source is False:
            node.checks.append((_never, None))
        elif isinstance(source, dict):
            self._check_plain(source, path)
            parts = {keyword: self._parts(source, keyword, (*path, keyword)) for keyword in source if keyword in _PARTS}
            self._add_identity(node, source, path)
            self._add_values(node, source, path)
            self._add_sizes(node, source, path)
            self._add_children(node, source, path, parts)
            self._add_in_place(node, source, parts)
            self._add_unevaluated(node, parts)
        elif source is not True:
            raise _wrong(path, "must be a schema: an object, true or false")
        return node

    def _parts(self, source: Mapping[str, Any], keyword: str, path: _Path) -> Any:  # noqa: ANN401 - nodes, in a shape
        value, shape = source[keyword], _PARTS[keyword]
        if shape is None:
            return self._node(value, path)
        if shape is dict:
            if not isinstance(value, dict):
                raise _wrong(path, "must be an object of schemas")
            return {name: self._node(part, (*path, name)) for name, part in value.items()}
        if not isinstance(value, list) or not value:
            raise _wrong(path, "must be a list of schemas, not empty")
        return [self._node(part, (*path, str(index))) for index, part in enumerate(value)]

    def _check_plain(self, source: Mapping[str, Any], path: _Path) -> None:
        for keyword, value in source.items():
            place = (*path, keyword)
            if keyword in _OLDER:
                raise _wrong(place, "belongs to an older draft and would check nothing in 2020-12")
            if keyword in _STRINGS and not isinstance(value, str):
                raise _wrong(place, "must be a string")
            if keyword in _FLAGS and not isinstance(value, bool):
                raise _wrong(place, "must be true or false")
            if keyword == "examples" and not isinstance(value, list):
                raise _wrong(place, "must be a list")
            if keyword == "$vocabulary" or (path and keyword in {"$id", "$schema"}):
                raise _wrong(place, "is not supported here: a schema is one document of one dialect")
        if not path and source.get("$schema", DIALECT).rstrip("#") != DIALECT:
            raise _wrong(("$schema",), f"must be {DIALECT}")

    def _add_identity(self, node: _Node, source: Mapping[str, Any], path: _Path) -> None:
        for keyword in ("$anchor", "$dynamicAnchor"):
            name = source.get(keyword)
            if keyword not in source:
                continue
            if not isinstance(name, str) or not _ANCHOR.fullmatch(name):
                raise _wrong((*path, keyword), "must be a name of letters, digits, -, . and _")
            if self._anchors.setdefault(name, path) != path:
                raise _wrong((*path, keyword), "is the name of another anchor too")
        for keyword in ("$ref", "$dynamicRef"):
            if keyword in source:
                reference = source[keyword]
                if not isinstance(reference, str) or not reference.startswith("#"):
                    raise _wrong((*path, keyword), "must lead to a place in the same schema, such as #/$defs/name")
                self._references.append((node, reference, (*path, keyword)))

    def _add_values(self, node: _Node, source: Mapping[str, Any], path: _Path) -> None:
        if "type" in source:
            names = source["type"] if isinstance(source["type"], list) else [source["type"]]
            known = all(isinstance(name, str) and name in _TYPES for name in names)
            if not names or not known or len(set(names)) < len(names):
                raise _wrong((*path, "type"), f"must be one or more of {', '.join(_TYPES)}")
            kinds = frozenset(kind for name in names for kind in _TYPES[name])
            node.checks.append((_type, (kinds, f"must be of type {' or '.join(names)}")))
        if "enum" in source and not isinstance(source["enum"], list):
            raise _wrong((*path, "enum"), "must be a list")
        for allowed in ([source["const"]] if "const" in source else None, source.get("enum")):
            if allowed is not None:
                node.checks.append((_enum, frozenset(map(canonical_part, allowed))))
        for keyword in _ORDERS:
            if keyword in source:
                limit = _number(source, keyword, path)
                node.checks.append((_bound, (keyword, limit, f"must be {_ORDERS[keyword][1]} {_shown(limit)}")))
        if "multipleOf" in source:
            divisor = _number(source, "multipleOf", path)
            if divisor <= 0:
                raise _wrong((*path, "multipleOf"), "must be greater than 0")
            node.checks.append((_multiple_of, (divisor, f"must be a multiple of {_shown(divisor)}")))

    def _add_sizes(self, node: _Node, source: Mapping[str, Any], path: _Path) -> None:
        for keyword, (kind, unit) in _SIZES.items():
            if keyword in source:
                least, limit = keyword.startswith("min"), _count(source, keyword, path)
                sentence = f"must have at {'least' if least else 'most'} {limit} {unit}"
                node.checks.append((_size, (kind, least, limit, sentence)))
        if "pattern" in source:
            pattern = self._pattern(source["pattern"], (*path, "pattern"))
            node.checks.append((_pattern, (pattern, f"must match the pattern {_shown(source['pattern'])}")))
        if source.get("uniqueItems"):
            node.checks.append((_unique, None))
        if "required" in source:
            node.checks.append((_required, _names(source["required"], (*path, "required"))))
        if "dependentRequired" in source:
            dependent = source["dependentRequired"]
            if not isinstance(dependent, dict):
                raise _wrong((*path, "dependentRequired"), "must be an object of lists of names")
            lists = {name: _names(names, (*path, "dependentRequired", name)) for name, names in dependent.items()}
            node.checks.append((_dependent_required, lists))

    def _add_children(self, node: _Node, source: Mapping[str, Any], path: _Path, parts: Mapping[str, Any]) -> None:
        if parts.keys() & {"properties", "patternProperties", "additionalProperties"}:
            patterns = [
                (self._pattern(pattern, (*path, "patternProperties", pattern)), part)
                for pattern, part in parts.get("patternProperties", {}).items()
            ]
            members = _Members(parts.get("properties", {}), patterns, parts.get("additionalProperties"))
            node.checks.append((_members, members))
        if "propertyNames" in parts:
            node.checks.append((_property_names, parts["propertyNames"]))
        if parts.keys() & {"prefixItems", "items"}:
            node.checks.append((_items, _Items(parts.get("prefixItems", []), parts.get("items"))))
        least = _count(source, "minContains", path) if "minContains" in source else 1
        most = _count(source, "maxContains", path) if "maxContains" in source else None
        if "contains" in parts:
            node.checks.append((_contains, _Contains(parts["contains"], least, most)))

    def _add_in_place(self, node: _Node, source: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
        for keyword, check in (("allOf", _all_of), ("anyOf", _any_of), ("oneOf", _one_of)):
            if keyword in parts:
                node.checks.append((check, parts[keyword]))
                node.in_place += parts[keyword]
        if "not" in parts:
            node.checks.append((_not, parts["not"]))
            node.in_place.append(parts["not"])
        if "if" in parts:
            condition = _Condition(parts["if"], parts.get("then"), parts.get("else"))
            node.checks.append((_condition, condition))
            node.in_place += [parts[keyword] for keyword in ("if", "then", "else") if keyword in parts]
        if "dependentSchemas" in source:
            node.checks.append((_dependent_schemas, parts["dependentSchemas"]))
            node.in_place += parts["dependentSchemas"].values()

    def _add_unevaluated(self, node: _Node, parts: Mapping[str, Any]) -> None:
        """Last of all checks: they ask what the others have seen."""
        for keyword, check in (
            ("unevaluatedProperties", _unevaluated_properties),
            ("unevaluatedItems", _unevaluated_items),
        ):
            if keyword in parts:
                node.checks.append((check, parts[keyword]))
                node.keeps_seen = True

    def _pattern(self, source: object, path: _Path) -> Pattern:
        if not isinstance(source, str):
            raise _wrong(path, "must be a string")
        try:
            pattern = compile_pattern(source)
        except PatternError as exc:
            raise _wrong(path, str(exc)) from exc
        self._weight += 1 + pattern.weight
        if self._weight > PATTERN_WEIGHT_MAX:
            raise _wrong(path, f"makes the regular expressions weigh more than {PATTERN_WEIGHT_MAX} positions in all")
        return pattern

    def _resolve(self, reference: str, path: _Path) -> _Node:
        fragment = unquote(reference[1:])
        if fragment and not fragment.startswith("/"):
            if fragment not in self._anchors:
                raise _wrong(path, f"leads to {_shown(reference)}, which is not in the schema")
            target = self._anchors[fragment]
        else:
            target = tuple(part.replace("~1", "/").replace("~0", "~") for part in fragment.split("/")[1:])
        return self._node(self._look_up(target, reference, path), target)

    def _look_up(self, target: _Path, reference: str, path: _Path) -> object:
        found = self._source
        for part in target:
            if isinstance(found, dict) and part in found:
                found = found[part]
            elif isinstance(found, list) and _INDEX.fullmatch(part) and int(part) < len(found):
                found = found[int(part)]
            else:
                raise _wrong(path, f"leads to {_shown(reference)}, which is not in the schema")
        return found

    def _check_progress(self) -> None:
        """A schema that applies itself to the same value would never come to an end."""
        places = {id(node): path for path, node in self._nodes.items()}
        order = TopologicalSorter({id(node): [id(part) for part in node.in_place] for node in self._nodes.values()})
        try:
            order.prepare()
        except CycleError as exc:
            place = min(places[node] for node in exc.args[1])
            raise _wrong(place, "leads back to itself without going down into the value") from exc


def _number(source: Mapping[str, Any], keyword: str, path: _Path) -> int | Decimal:
    value = source[keyword]
    if not isinstance(value, int | Decimal) or isinstance(value, bool):
        raise _wrong((*path, keyword), "must be a number")
    return value


def _count(source: Mapping[str, Any], keyword: str, path: _Path) -> int:
    value = source[keyword]
    if not _is_whole(value) or value < 0:
        raise _wrong((*path, keyword), "must be a whole number, at least 0")
    return int(value)


def _names(value: object, path: _Path) -> dict[str, str]:
    """The names that a value must have, each with the sentence for a value without it."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value) or len({*value}) < len(value):
        raise _wrong(path, "must be a list of names, none twice")
    return {name: f"must have the member {_shown(name)}" for name in value}


def _wrong(path: _Path, reason: str) -> SchemaError:
    return SchemaError(f"{shorten(_pointer(path))}: {reason}" if path else reason)


def _pointer(parts: Iterable[str | int]) -> str:
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in parts)


def _shown(value: object) -> str:
    return shorten(canonical_part(value))


def shorten(text: str, chars_max: int = _SHOWN_CHARS_MAX) -> str:
    """A text on one line, its middle left out if it is long."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    if len(text) <= chars_max:
        return text
    half = (chars_max - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
