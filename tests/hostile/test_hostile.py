"""Every hostile module ends in time, with the expected code, within the host's memory, and leaves no trace."""

import resource
from collections.abc import Iterator

import pytest

from quittance import limits
from quittance.run import Outcome
from tests.hostile import generated, report
from tests.hostile.corpus import CASES, FOLDER, Case
from tests.hostile.harness import Environment, failures

COMPILER_OVERHEAD_BYTES = 256 * limits.MIB  # program code of interpreter and engine, which RLIMIT_DATA does not count


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    shared = Environment(tmp_path_factory.mktemp("hostile"))
    yield shared
    shared.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_module_ends_as_expected_and_harms_nothing(environment: Environment, case: Case):
    found = failures(case, environment.run_case(case), environment)
    assert environment.is_unharmed(), "the next run in the same environment differs"
    assert not found, "\n".join(found)


def test_compiler_children_stayed_within_their_memory_limit():
    """The kernel reports the largest child that this process waited for."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * limits.KIB
    assert peak <= limits.COMPILE_MEMORY_BYTES_MAX + COMPILER_OVERHEAD_BYTES


def test_corpus_covers_every_outcome_and_every_file():
    assert len(CASES) >= 60
    assert {case.ends for case in CASES} >= {
        Outcome.EXIT_CODE,
        Outcome.FUEL_EXHAUSTED,
        Outcome.MEMORY_LIMIT,
        Outcome.OUTPUT_LIMIT,
        Outcome.SUCCEEDED,
        Outcome.TIMEOUT,
        Outcome.TRAP_ARITHMETIC,
        Outcome.TRAP_MEMORY,
        Outcome.TRAP_STACK,
        Outcome.TRAP_TABLE,
        Outcome.TRAP_UNREACHABLE,
    }
    files = {path.relative_to(FOLDER).as_posix() for path in (FOLDER / "modules").iterdir()}
    assert files == {case.source for case in CASES if case.module != "generated"}, "a file has no case"
    assert all(hasattr(generated, case.name) for case in CASES if case.module == "generated")


def test_hostile_page_is_up_to_date():
    stale = report.why_stale()
    assert not stale, f"docs/hostile.md is stale: {stale[0]}; regenerate it: python tests/hostile/report.py"


@pytest.mark.parametrize("change", ["limit", "row", "engine"])
def test_stale_hostile_page_is_detected(monkeypatch, tmp_path, change):
    page, text = tmp_path / "hostile.md", report.PAGE.read_text(encoding="utf-8")
    page.write_text(text.replace("`timeout`", "`succeeded`", 1) if change == "row" else text)
    monkeypatch.setattr(report, "PAGE", page)
    if change == "limit":
        monkeypatch.setattr(limits, "HOST_CALL_FUEL", limits.HOST_CALL_FUEL + 1)
    if change == "engine":
        monkeypatch.setattr(report.target, "ENGINE_VERSION", "0")
    assert report.why_stale()
