"""The command line, in this process and as a process of its own, and a platform to compare it with."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures import aws, cloud, platform, sandbox, template
from tests.support import ROOT

__all__ = ["aws", "cloud", "platform", "sandbox", "template"]

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow sockets: doctor and the platform of moto use them, on 127.0.0.1."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of compiled modules for all tests: equal modules compile to equal artefacts."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without configuration, and the environment that a script has."""
    for name in list(os.environ):
        if name.startswith("QUITTANCE_") or name in {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    paths = [str(ROOT / folder) for folder in ("layers/runtime", "client", "cli")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path / "home"


@pytest.fixture
def quittance(tmp_path: Path) -> Command:
    """Runs the command line as a process, in an empty folder."""

    def run(*words: object, stdin: bytes = b"", cwd: Path = tmp_path) -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-m", "quittance.cli", *map(str, words)]
        done = subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, check=False, timeout=300)
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done

    return run
