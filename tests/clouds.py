"""Local clouds that tests start. Each ends with the process of tests that started it, however that one ends."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from local import cloud, processes
from local.paths import ROOT, State


def hold_lifeline() -> None:
    """From now on clouds that this process starts end with it: they inherit one end of a pipe, and it has the other."""
    reader, _ = os.pipe()
    os.environ[cloud.LIFELINE] = str(reader)


def run(state: State, *words: str, stdout: Any = subprocess.DEVNULL) -> int:
    """Runs a command of the local cloud, `python -m local WORDS`; its status."""
    command = [sys.executable, "-m", "local", "--state", str(state.root), *words]
    lifeline = [int(os.environ[cloud.LIFELINE])] if cloud.LIFELINE in os.environ else []
    return subprocess.run(command, cwd=ROOT, stdout=stdout, check=False, pass_fds=lifeline).returncode


def up(state: State, request: pytest.FixtureRequest) -> None:
    """Starts a cloud and deploys to it, with its progress on the terminal: it takes some seconds."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        status = run(state, "up", "--no-seed")
    if status:
        give_up(request, "the local cloud for the tests does not start: the line that begins with `error:` says why")


def give_up(request: pytest.FixtureRequest, reason: str) -> NoReturn:
    """Ends the whole run after this test: what is missing would be missing for many others."""
    request.session.shouldfail = reason
    pytest.fail(reason, pytrace=False)


def processor_s(state: State) -> float:
    """Processor seconds of a running cloud, its functions and their sandboxes, those that have ended included."""
    running = cloud.running(state)
    ticks = 0
    for process in processes.family({running.process}) if running else ():
        with suppress(OSError):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")
