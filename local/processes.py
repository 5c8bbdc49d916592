"""Processes that this project started, distinguished from later ones with the same process id."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TERM_SECONDS = 10.0
_KILL_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Process:
    """A process by its id and start time: together they are never reused."""

    pid: int
    began: str


def table() -> dict[Process, int]:
    """Return all running processes with their parents' ids."""
    return _table_from_proc() if (_PROC / "self" / "stat").exists() else _table_from_ps()


def find(pid: int) -> Process | None:
    """Return the process that has this id now."""
    return next((process for process in table() if process.pid == pid), None)


def family(heads: set[Process]) -> set[Process]:
    """Return the processes and all their descendants."""
    everyone, found = table(), set(heads)
    while True:
        pids = {process.pid for process in found}
        more = {child for child, parent in everyone.items() if parent in pids} - found
        if not more:
            return found & everyone.keys()
        found |= more


def marked(mark: str) -> set[Process]:
    """Return the processes with this NAME=value in their environment (only where /proc shows it)."""
    found, wanted = set(), mark.encode()
    for process in table():
        with suppress(OSError):
            if wanted in (_PROC / str(process.pid) / "environ").read_bytes().split(b"\0"):
                found.add(process)
    return found


def end(heads: set[Process], term_seconds: float = _TERM_SECONDS) -> None:
    """End the processes and all their descendants: first with SIGTERM, then with SIGKILL."""
    heads &= table().keys()
    doomed = family(heads)
    for process in heads:
        send(process, signal.SIGTERM)
    deadline = time.monotonic() + term_seconds
    while heads & table().keys() and time.monotonic() < deadline:
        time.sleep(0.05)
        doomed |= family(doomed)
    deadline = time.monotonic() + _KILL_SECONDS
    while (rest := family(doomed)) and time.monotonic() < deadline:
        for process in rest:
            send(process, signal.SIGKILL)
        doomed |= rest
        time.sleep(0.05)


def end_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when its parent ends, also after `exec` (Linux: prctl(2))."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def send(process: Process, number: signal.Signals) -> None:
    """Send a signal to this process, but not to a later one with the same id."""
    with suppress(ProcessLookupError, PermissionError):
        if find(process.pid) == process:
            os.kill(process.pid, number)


def _table_from_proc() -> dict[Process, int]:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    found = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            # "pid (name) state ppid ...": a name may hold blanks and brackets.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] not in "ZX":
                found[Process(int(entry.name), f"{boot} {fields[19]}")] = int(fields[1])
    return found


def _table_from_ps() -> dict[Process, int]:
    listing = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,stat=,lstart="],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    ).stdout
    found = {}
    for line in listing.splitlines():
        pid, parent, status, began = line.split(maxsplit=3)
        if not status.startswith("Z"):
            found[Process(int(pid), began)] = int(parent)
    return found
