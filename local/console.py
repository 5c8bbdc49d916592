"""Terminal output: one line per step, one line per failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from local.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType


class CommandError(Exception):
    """A failure that is explained in one line: what is wrong and how to correct it."""


def relative(path: Path) -> str:
    """Return the path relative to the checkout."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def say(text: str = "") -> None:
    """Print one line at once."""
    print(text, flush=True)


@contextmanager
def step(label: str) -> Iterator[None]:
    """Print a line for a step that takes time, with its duration in seconds (on standard error)."""
    begin, out, done = time.monotonic(), sys.stderr, threading.Event()

    def line(mark: str) -> str:
        return f"  {mark} {label:<46} {time.monotonic() - begin:5.1f} s"

    def tick() -> None:
        while not done.wait(0.1):
            out.write(f"\r{line('…')}")
            out.flush()

    ticker = threading.Thread(target=tick, daemon=True) if out.isatty() else None
    if ticker:
        ticker.start()
    mark = "✗"
    try:
        yield
        mark = "✓"
    finally:
        done.set()
        if ticker:
            ticker.join()
            out.write("\r")
        out.write(f"{line(mark)}\n")
        out.flush()


def run(command: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path = ROOT) -> None:
    """Run a tool with its output in a log. If this command is interrupted, kill the tool's process group."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        sink.write(f"\n$ {' '.join(command)}\n".encode())
        sink.flush()
        start = sink.tell()
        try:
            tool = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        except OSError as error:
            msg = f"{command[0]} could not be started ({error.strerror})"
            raise CommandError(msg) from error
        try:
            status = tool.wait()
        except BaseException:
            os.killpg(tool.pid, signal.SIGKILL)
            tool.wait()
            raise
    if status:
        msg = f"{error_line(log, start)} (full output: {relative(log)})"
        raise CommandError(msg)


def error_line(log: Path, start: int) -> str:
    """Return the line of a tool's output that most likely states the error."""
    with log.open("rb") as source:
        source.seek(start)
        text = source.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    candidates = [line for line in lines if "error" in line.lower()] or lines or ["no output"]
    return candidates[-1].removeprefix("Error: ")[:300]


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise an exception, as Ctrl-C does, so that clean-ups run."""

    def unwind(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, unwind)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also if the shell set it to be ignored
