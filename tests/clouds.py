"""Local clouds for tests. A cloud ends with the test process that started it, even if that process is killed."""

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
    """Make the clouds that this process starts end with it.

    They inherit the read end of a pipe, and only this process holds the write end.
    """
    reader, _ = os.pipe()
    os.environ[cloud.LIFELINE] = str(reader)


def run(state: State, *words: str, stdout: Any = subprocess.DEVNULL) -> int:
    """Run `python -m local WORDS`; return its exit status."""
    command = [sys.executable, "-m", "local", "--state", str(state.root), *words]
    lifeline = [int(os.environ[cloud.LIFELINE])] if cloud.LIFELINE in os.environ else []
    return subprocess.run(command, cwd=ROOT, stdout=stdout, check=False, pass_fds=lifeline).returncode


def up(state: State, request: pytest.FixtureRequest) -> None:
    """Start a cloud and deploy the stack. Progress goes to the terminal, because this takes some seconds."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        status = run(state, "up", "--no-seed")
    if status:
        give_up(request, "the local cloud for the tests did not start; see the line that begins with `error:`")


def give_up(request: pytest.FixtureRequest, reason: str) -> NoReturn:
    """End the session after this test, because many other tests need what is missing."""
    request.session.shouldfail = reason
    pytest.fail(reason, pytrace=False)


def processor_s(state: State) -> float:
    """Processor seconds of a running cloud, its functions and their sandboxes, including ended processes."""
    running = cloud.running(state)
    ticks = 0
    for process in processes.family({running.process}) if running else ():
        with suppress(OSError):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")
