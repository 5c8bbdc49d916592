"""Examples of a contract: whether a run does what its example says, and the limits of all runs together."""

from dataclasses import replace
from typing import Any

import pytest

from quittance.acceptance.contract import Example
from quittance.acceptance.examples import run_all
from quittance.acceptance.rules import Rules
from quittance.limits import EXAMPLES_FUEL_MAX, EXAMPLES_SECONDS_MAX, MIB, REJECTION_CHARS_MAX
from quittance.run import Limits, Meter, Outcome, Run

OWN = Limits(fuel=1_000, memory_bytes=MIB, timeout_ms=1_000)


def example(**members: Any) -> Example:
    return Example.model_validate({"name": "one", "input": "", **members})


def wrote(stdout: bytes, fuel: int = 10) -> Run:
    return Run(Outcome.SUCCEEDED, "The agent succeeded.", Meter(fuel=fuel), exit_code=0, stdout=stdout)


def ended(outcome: Outcome, message: str = "It ended.", exit_code: int | None = None, fuel: int = 10) -> Run:
    return Run(outcome, message, Meter(fuel=fuel), exit_code=exit_code)


def failure(one: Example, run: Run, rules: Rules | None = None) -> str | None:
    results = run_all([one], own=OWN, rules=rules or Rules(), start=lambda *_: run, left_ms=lambda: 60_000)
    return next(results).failure


@pytest.mark.parametrize(
    ("members", "run"),
    [
        ({}, wrote(b"anything \xff")),
        ({"output": "a\n"}, wrote(b"a\n")),
        ({"output": {"a": 1, "b": [1.5]}}, wrote(b' {"b": [15e-1], "a": 1.0}\n')),
        ({"output": None}, wrote(b"null")),
        ({"output_base64": "/w=="}, wrote(b"\xff")),
        ({"output_schema": {"type": "object"}}, wrote(b"{}")),
        ({"exit_code": 0}, wrote(b"")),
        ({"exit_code": 3}, ended(Outcome.EXIT_CODE, exit_code=3)),
    ],
)
def test_run_that_does_what_its_example_says_passes(members: dict[str, Any], run: Run) -> None:
    assert failure(example(**members), run) is None


@pytest.mark.parametrize(
    ("members", "run", "sentences"),
    [
        ({}, ended(Outcome.TRAP_MEMORY, "It left its memory."), ["success was expected", "It left its memory."]),
        ({}, ended(Outcome.EXIT_CODE, "The agent ended with exit code 3.", 3), ["success", "exit code 3"]),
        ({"output": "6"}, wrote(b"7"), ['the output "6" (1 bytes) was expected', 'wrote "7" (1 bytes)']),
        ({"output": "a"}, wrote(b"a\n"), ['"a\\n"']),
        ({"output": {"a": 1}}, wrote(b'{"a":2}'), ['the JSON {"a":1} was expected', 'wrote {"a":2}']),
        ({"output": {"a": 1}}, wrote(b"text"), ["the JSON", "must be JSON"]),
        ({"output_base64": "/w=="}, wrote(b"\xfe"), ["(1 bytes)"]),
        ({"output_schema": {"type": "array"}}, wrote(b"{}"), ["output_schema of the example", "must be of type array"]),
        ({"exit_code": 3}, wrote(b""), ["the exit code 3 was expected: The agent succeeded."]),
        ({"exit_code": 3}, ended(Outcome.EXIT_CODE, "Exit code 4.", 4), ["the exit code 3 was expected: Exit code 4."]),
        ({"exit_code": 3}, ended(Outcome.TRAP_STACK), ["the exit code 3 was expected"]),
    ],
)
def test_run_that_does_otherwise_fails_with_the_reason(members: dict[str, Any], run: Run, sentences: list[str]) -> None:
    found = failure(example(**members), run)
    assert found
    assert found.startswith('The example "one" failed: ')
    for sentence in sentences:
        assert sentence in found


def test_agents_own_rules_hold_for_examples_too() -> None:
    rules = Rules(max_bytes=1)
    assert failure(example(), wrote(b"a"), rules) is None
    found = failure(example(), wrote(b"ab"), rules)
    assert found
    assert "the agent's rules were not met" in found
    assert failure(example(exit_code=3), ended(Outcome.EXIT_CODE, exit_code=3), rules) is None


def test_a_reason_is_short_and_printable() -> None:
    hostile = "\x1b[2J\u202e" * 20
    found = failure(example(name=hostile[:64], output="\n" * 60_000), wrote(b"\xff\0" * 500_000))
    assert found
    assert len(found) <= REJECTION_CHARS_MAX
    assert found.isprintable()


def test_each_run_has_the_least_of_all_limits() -> None:
    limits: list[Limits] = []

    def start(one: Example, limit: Limits) -> Run:
        limits.append(limit)
        return wrote(b"", fuel=limit.fuel)

    own = replace(OWN, fuel=EXAMPLES_FUEL_MAX - 1)
    examples = [example(fuel_max=5), example(), example(), example()]
    left_ms = iter([60_000, 999, 0, -5])
    results = list(run_all(examples, own=own, rules=Rules(), start=start, left_ms=lambda: next(left_ms)))
    assert [limit.fuel for limit in limits] == [5, EXAMPLES_FUEL_MAX - 5, 1, 1]
    assert [limit.timeout_ms for limit in limits] == [1_000, 999, 1, 1]
    assert all(result.failure is None for result in results)


def test_a_failure_names_the_limit_that_was_hit() -> None:
    exhausted, late = ended(Outcome.FUEL_EXHAUSTED, "No fuel is left."), ended(Outcome.TIMEOUT, "It timed out.")

    def why(run: Run, left_ms: int, own: Limits = OWN, **members: Any) -> str:
        results = run_all([example(**members)], own=own, rules=Rules(), start=lambda *_: run, left_ms=lambda: left_ms)
        found = next(results).failure
        assert found
        return found

    assert "more than its fuel_max, 999" in why(exhausted, 60_000, fuel_max=999)
    assert "No fuel is left." in why(exhausted, 60_000, fuel_max=1_000)
    unlimited = replace(OWN, fuel=10**12)
    assert f"together need more than {EXAMPLES_FUEL_MAX} fuel" in why(exhausted, 60_000, unlimited)
    assert "It timed out." in why(late, 1_000)
    assert f"together take longer than {EXAMPLES_SECONDS_MAX} seconds" in why(late, 999)
