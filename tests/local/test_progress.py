"""The terminal output of a test run: runs of small suites in one process and in two."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from local.paths import ROOT

OURS = ("conftest.py", "progress.py", "clouds.py")
SETTINGS = """
[tool.pytest.ini_options]
pythonpath = ["."]
addopts = "--import-mode=importlib -q -rN --tb=short --no-loadscope-reorder"
console_output_style = "classic"
"""
GOOD = """
def test_good(record_property): record_property("figure", "7 of 7 seen")
"""
BAD = """
import pytest
def test_bad(): assert 1 == 2, "one is not two"
def test_odd(): pytest.skip("no engine here")
@pytest.mark.parametrize("case", ["a b"])
def test_case(case): raise ValueError(case)
"""
NO_CLOUD = """
import pytest
from tests import clouds
@pytest.fixture(scope="session")
def cloud(request): clouds.give_up(request, "the cloud does not start: name a free port")
@pytest.mark.parametrize("number", range(50))
def test_of_the_cloud(cloud, number): pass
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=["0", "2"], ids=["one process", "two processes"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Return a function: `run(e2e=…, api=…)` runs suites of one file each."""

    def run_suites(**suites: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "pyproject.toml").write_text(SETTINGS)
        for name, text in suites.items():
            (tmp_path / "tests" / name).mkdir(parents=True)
            (tmp_path / "tests" / name / "test_it.py").write_text(text)
        for name in OURS:
            shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
        command = [sys.executable, "-m", "pytest", "-n", request.param, "tests"]
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'layers/runtime'}"}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return run_suites


def test_successful_run_prints_suites_and_figures(run: Run) -> None:
    done = run(e2e=GOOD, api=GOOD)
    assert done.returncode == 0, done.stdout + done.stderr
    for suite in ("e2e", "api"):
        assert f"▸ {suite}: 1 tests" in done.stdout
        assert f"✓ {suite:<12}     1 of 1" in done.stdout
    assert done.stdout.count("7 of 7 seen") == 2
    assert "2 passed" in done.stdout.splitlines()[-1]


def test_failure_prints_one_line_and_a_command(run: Run) -> None:
    done = run(e2e=GOOD, api=BAD)
    assert done.returncode == 1
    end = done.stdout[done.stdout.index("skipped:") :]
    assert "1  no engine here" in end
    assert "✗ tests/api/test_it.py::test_bad: AssertionError: one is not two (test_it.py:3)" in end
    assert "    make test ARGS=tests/api/test_it.py::test_bad\n" in end
    assert "    make test ARGS=tests/api/test_it.py::test_case\n" in end, "the case's name needs quoting"
    row = next(line.split() for line in end.splitlines() if line.startswith("api "))
    assert row[:5] == ["api", "3", "0", "2", "1"], "tests, passed, failed, skipped"
    assert "2 failed, 1 passed, 1 skipped" in end.splitlines()[-1]
    assert len(end.splitlines()) < 40, "more than one screen"


def test_cloud_that_does_not_start_prints_one_line(run: Run) -> None:
    done = run(e2e=NO_CLOUD, api=GOOD)
    assert done.returncode != 0
    assert "INTERNALERROR" not in done.stdout
    failures = [line for line in done.stdout.splitlines() if line.startswith("✗ tests/e2e/test_it.py::")]
    assert 1 <= len({*failures}) <= 2, "the run must end instead of failing each test"
    assert all("the cloud does not start: name a free port" in line for line in failures)
