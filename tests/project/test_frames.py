"""Work on strangers' input costs the same at every depth of the caller (ADR 29).

The tests count page faults instead of time: a call that needs a new chunk of the interpreter's stack of frames maps it,
and touches a page that the process did not have. Each piece of work here calls at least `CALLS` Python functions. If
the calls cross the end of a chunk, each of them causes a fault; otherwise there are almost none.
"""

import resource
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest

from quittance.acceptance.json_schema import Schema, Steps
from quittance.acceptance.rules import Rules
from quittance.api.requests import read_json
from quittance.canonical_json import canonical, exact, read
from quittance.frames import in_one_chunk
from quittance.limits import ACCEPTANCE_STEPS_MAX, JSON_DEPTH_MAX
from quittance.proof.statement import read_json as read_statement
from quittance.sandbox.validate import ModuleRejectedError, validate_module
from tests.api import hostile_input

CALLS: Final = 500
FAULTS_MAX: Final = CALLS // 4
DEPTHS: Final = range(160)  # a frame of `called_from` has about 120 bytes, a chunk 16 KiB: at least one end is crossed
TRIES: Final = 3  # the allocator and other threads also cause faults, but not each time

Work = Callable[[], object]


def faults_of(work: Work) -> int:
    """How many page faults a piece of work causes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def called_from(depth: int, work: Work) -> Any:
    return called_from(depth - 1, work) if depth else work()


def slow_depths(works: list[tuple[int, Work]]) -> dict[int, int]:
    """The depths at which work causes more than `FAULTS_MAX` faults, with their number."""
    found = {depth: faults_of(work) for depth, work in works}
    again = {depth: work for depth, work in works if found[depth] > FAULTS_MAX}
    least = {depth: min(faults_of(work) for _ in range(TRIES)) for depth, work in again.items()}
    return {depth: faults for depth, faults in least.items() if faults > FAULTS_MAX}


def at_every_depth(work: Work) -> list[tuple[int, Work]]:
    return [(depth, partial(called_from, depth, work)) for depth in DEPTHS]


def evaluating(schema: Any, value: object) -> Work:
    compiled = Schema(exact(schema))
    return lambda: compiled.mismatch(value, Steps(ACCEPTANCE_STEPS_MAX))


def refused_module() -> None:
    with pytest.raises(ModuleRejectedError):  # after all functions were checked: there is no _start
        validate_module(MODULE)


def nested(levels: int, inner: str) -> bytes:
    return ("[" * levels + inner + "]" * levels).encode()


def many(item: str) -> str:
    return ",".join([item] * CALLS)


INTEGERS: Final = [1] * CALLS
LISTS: Final = [[1]] * CALLS
OBJECTS: Final = [{"a": 1, "b": {}}] * CALLS
MODULE: Final = hostile_input.MODULES["functions"](CALLS)
DEEP: Final = read(nested(JSON_DEPTH_MAX, many("1")))
WORKS: Final[dict[str, Work]] = {
    "the types of items": evaluating({"items": {"type": "integer"}}, INTEGERS),
    "the bounds of items": evaluating({"items": {"multipleOf": 1, "minimum": 0, "enum": [1]}}, INTEGERS),
    "items of items": evaluating({"items": {"items": {"type": "integer"}}}, LISTS),
    "members": evaluating({"items": {"properties": {"a": {"type": "integer"}}, "additionalProperties": {}}}, OBJECTS),
    "names": evaluating({"items": {"patternProperties": {"a": True}, "propertyNames": {"maxLength": 1}}}, OBJECTS),
    "references": evaluating({"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": "integer"}}}, INTEGERS),
    "alternatives": evaluating({"items": {"anyOf": [{"type": "null"}, {"oneOf": [True]}]}}, INTEGERS),
    "conditions": evaluating({"items": {"if": {"not": {"type": "integer"}}, "else": {"allOf": [True]}}}, INTEGERS),
    "contained items": evaluating({"items": {"contains": {"type": "integer"}}}, LISTS),
    "members not yet seen": evaluating({"items": {"allOf": [True], "unevaluatedProperties": {}}}, OBJECTS),
    "items not yet seen": evaluating({"items": {"allOf": [True], "unevaluatedItems": {}}}, LISTS),
    "unique items": evaluating({"uniqueItems": True}, read(nested(1, ",".join(map(str, range(CALLS)))))),
    "deep unique items": evaluating(
        {"uniqueItems": True}, [read(nested(60, str(number))) for number in range(CALLS // 20)]
    ),
    "compiling": lambda: Schema({"allOf": [{"not": {"type": "null"}}] * (CALLS // 4)}),
    "compiling an enumeration": lambda: Schema({"enum": INTEGERS}),
    "compiling patterns": lambda: Schema({"pattern": "a" * 900}),
    "rules": lambda: Rules(json_schema={"enum": INTEGERS}),
    "reading numbers": lambda: read(nested(JSON_DEPTH_MAX, many("1.5"))),
    "reading objects": lambda: read(nested(JSON_DEPTH_MAX - 1, many("{}"))),
    "writing": lambda: canonical(LISTS),
    "writing what is deep": lambda: canonical(DEEP),
    "exact numbers": lambda: exact(INTEGERS),
    "reading a request": lambda: read_json(f"[{many('{}')}]"),
    "reading an input": lambda: read_json(f'{{"input":[{many("{}")}]}}'),
    "checking a module": refused_module,
    "reading a statement": lambda: read_statement(f'{{"a":[{many("{}")}]}}'.encode(), "statement"),
}


@pytest.mark.parametrize("name", WORKS)
def test_work_costs_the_same_at_every_depth_of_the_caller(name: str) -> None:
    assert not slow_depths(at_every_depth(WORKS[name]))


def calls() -> None:
    for _ in range(CALLS):
        nothing()


def nothing() -> None:
    pass


def test_undecorated_calls_are_slow_at_some_depth() -> None:
    if not slow_depths(at_every_depth(calls)):
        pytest.skip("this interpreter keeps a spare chunk")
    assert not slow_depths(at_every_depth(in_one_chunk(calls)))


def test_deep_calls_fit_into_one_chunk() -> None:
    deep = in_one_chunk(lambda: slow_depths([(depth, partial(called_from, depth, calls)) for depth in range(500)]))
    assert not deep()


def test_decorated_function_behaves_as_the_original() -> None:
    @in_one_chunk
    def divide(dividend: int, *, by: int) -> int:
        """Divide."""
        return dividend // by

    assert divide(7, by=2) == 3
    assert (divide.__name__, divide.__doc__) == ("divide", "Divide.")
    with pytest.raises(ZeroDivisionError):
        divide(7, by=0)
    assert in_one_chunk(divide)(7, by=7) == 1
