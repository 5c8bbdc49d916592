"""Examples of a contract: how each is run, and whether a run does what its example says. Pure: callers run the sandbox.

The publication of a version and the command `quittance test` use the same clock, seed and limits, so they agree.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from quittance import canonical_json
from quittance.acceptance import rules as acceptance
from quittance.acceptance.contract import ABSENT, Example
from quittance.acceptance.json_schema import shorten
from quittance.acceptance.rules import Rules
from quittance.limits import EXAMPLES_FUEL_MAX, EXAMPLES_SECONDS_MAX, REJECTION_CHARS_MAX
from quittance.run import Limits, Outcome, Run

EPOCH_NS: Final = 1_767_225_600 * 10**9
"""The virtual clock at the beginning of each example: 2026-01-01 00:00 UTC."""
SEED: Final = hashlib.sha256(b"quittance: example of a contract").digest()
"""The seed of the virtual randomness of each example."""
_EXCERPT_CHARS_MAX: Final = 120
_EXCERPT_BYTES_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Result:
    """One example that was run: why it failed, or None."""

    example: Example
    run: Run
    failure: str | None


def run_all(
    examples: Iterable[Example],
    *,
    own: Limits,
    rules: Rules,
    start: Callable[[Example, Limits], Run],
    left_ms: Callable[[], int],
) -> Iterator[Result]:
    """Runs examples one after the other, each within the agent's own limits and what is left for all of them.

    `start` runs one and raises if the platform fails; `left_ms` is the time that is left for all. All examples together
    may use `EXAMPLES_FUEL_MAX`. `rules` are the agent's own; its judge is not asked.
    """
    fuel_left = EXAMPLES_FUEL_MAX
    for example in examples:
        time_ms = max(left_ms(), 0)
        fuel = max(min(own.fuel, example.fuel_max or own.fuel, fuel_left), 1)
        limits = Limits(fuel, own.memory_bytes, max(min(own.timeout_ms, time_ms), 1), own.output_bytes)
        run = start(example, limits)
        fuel_left = max(fuel_left - run.meter.fuel, 0)
        found = _bound(example, own, limits, run) or _mismatch(example, run) or _rejected(example, rules, run)
        yield Result(example, run, None if found is None else _sentence(example, found))


def _bound(example: Example, own: Limits, limits: Limits, run: Run) -> str | None:
    """Which limit ended a run, if it is not one of the agent's own."""
    if run.outcome is Outcome.FUEL_EXHAUSTED and limits.fuel < own.fuel:
        if limits.fuel == example.fuel_max:
            return f"it needs more than its fuel_max, {example.fuel_max}"
        return f"all examples together need more than {EXAMPLES_FUEL_MAX} fuel, the most that they may use"
    if run.outcome is Outcome.TIMEOUT and limits.timeout_ms < own.timeout_ms:
        return f"all examples together take longer than {EXAMPLES_SECONDS_MAX} seconds, the most that they may take"
    return None


def _mismatch(example: Example, run: Run) -> str | None:
    """How a run ends or writes otherwise than its example says."""
    if example.exit_code:
        if run.outcome is Outcome.EXIT_CODE and run.exit_code == example.exit_code:
            return None
        return f"the exit code {example.exit_code} was expected: {shorten(run.message, _EXCERPT_CHARS_MAX)}"
    if run.outcome is not Outcome.SUCCEEDED:
        return f"success was expected: {shorten(run.message, _EXCERPT_CHARS_MAX)}"
    if example.stdout is not None and run.stdout != example.stdout:
        return f"the output {_excerpt(example.stdout)} was expected, and it wrote {_excerpt(run.stdout)}"
    if example.stdout is not None or example.output is ABSENT:
        return None
    return _json_mismatch(example, run)


def _json_mismatch(example: Example, run: Run) -> str | None:
    """How the JSON that a run wrote differs from the value that its example states."""
    expected = canonical_json.canonical(example.output)
    try:
        written = canonical_json.canonical(canonical_json.read(run.stdout))
    except canonical_json.JsonError as exc:
        return f"the JSON {shorten(expected, _EXCERPT_CHARS_MAX)} was expected: the output {exc}"
    if written == expected:
        return None
    texts = (shorten(text, _EXCERPT_CHARS_MAX) for text in (expected, written))
    return "the JSON {} was expected, and it wrote {}".format(*texts)


def _rejected(example: Example, rules: Rules, run: Run) -> str | None:
    """Why the output is not accepted by the agent's own rules or by the schema of the example."""
    if run.outcome is not Outcome.SUCCEEDED:
        return None
    schema = None if example.output_schema is None else Rules(json_schema=example.output_schema)
    for of, each in (("the agent's rules", rules), ("the output_schema of the example", schema)):
        verdict = acceptance.verdict(run.stdout, agent=each, task=None)
        if not verdict.accepted:
            return f"{of} were not met, and it wrote {_excerpt(run.stdout)}: {verdict.message}"
    return None


def _sentence(example: Example, found: str) -> str:
    return f"The example {shorten(json.dumps(example.name, ensure_ascii=False))} failed: {found}"[:REJECTION_CHARS_MAX]


def _excerpt(data: bytes) -> str:
    """The beginning and end of some bytes, and how many they are."""
    shown = data
    if len(data) > 2 * _EXCERPT_BYTES_MAX:  # the middle is not shown
        shown = data[:_EXCERPT_BYTES_MAX] + data[-_EXCERPT_BYTES_MAX:]
    text = json.dumps(shown.decode(errors="replace"), ensure_ascii=False)
    return f"{shorten(text, _EXCERPT_CHARS_MAX)} ({len(data)} bytes)"
