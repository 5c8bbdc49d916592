"""Every hostile module ends in time, with the right code, within the host's memory, and leaves no trace."""

import resource
from collections.abc import Iterator

import pytest

from quittance import limits
from quittance.run import Outcome
from tests.hostile import generated, report
from tests.hostile.corpus import CASES, FOLDER, Case
from tests.hostile.harness import Environment, shortcomings

COMPILER_OVERHEAD_BYTES = 256 * limits.MIB  # the interpreter and the engine's code, which are no data


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    shared = Environment(tmp_path_factory.mktemp("hostile"))
    yield shared
    shared.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_ends_as_it_must_and_harms_nobody(environment: Environment, case: Case):
    found = shortcomings(case, environment.attempt(case), environment)
    assert environment.is_unharmed(), "the next run in the same environment"
    assert not found, "\n".join(found)


def test_no_compiler_took_more_memory_than_it_may():
    """Of all children that this process waited for, the largest."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * limits.KIB
    assert peak <= limits.COMPILE_MEMORY_BYTES_MAX + COMPILER_OVERHEAD_BYTES


def test_the_corpus_is_whole():
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
    assert files == {case.source for case in CASES if case.module != "generated"}, "no file is forgotten"
    assert all(hasattr(generated, case.name) for case in CASES if case.module == "generated")


def test_the_page_is_of_this_corpus_engine_and_these_limits():
    stale = report.shortcomings_of_page()
    assert not stale, f"docs/hostile.md: {stale[0]}; write it anew: python tests/hostile/report.py"


@pytest.mark.parametrize("change", ["limit", "row", "engine"])
def test_a_stale_page_is_noticed(monkeypatch, tmp_path, change):
    page, text = tmp_path / "hostile.md", report.PAGE.read_text(encoding="utf-8")
    page.write_text(text.replace("`timeout`", "`succeeded`", 1) if change == "row" else text)
    monkeypatch.setattr(report, "PAGE", page)
    if change == "limit":
        monkeypatch.setattr(limits, "HOST_CALL_FUEL", limits.HOST_CALL_FUEL + 1)
    if change == "engine":
        monkeypatch.setattr(report.target, "ENGINE_VERSION", "0")
    assert report.shortcomings_of_page()
