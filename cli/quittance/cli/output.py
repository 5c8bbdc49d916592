"""What the command line writes: results to stdout, everything else to stderr.

With `--json`, stdout gets exactly one JSON document. Text of agents and of the platform is hostile: on a terminal its
control characters are shown as escapes, so it cannot move the cursor, set colours or retitle the window. Bytes that are
piped stay as they are.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, NoReturn

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from quittance.cli.exits import CliError, Exit, PlatformError

_PIPED_COLUMNS: Final = 1_000  # no terminal: a line is never folded
_COLUMNS_MIN: Final = 20
_TABLE_COLUMNS_MIN: Final = 60  # a narrower terminal gets a list


@dataclass(slots=True)
class _Mode:
    """Whether this command prints JSON, and has printed it; whether it shows progress, and is showing it."""

    json: bool = False
    quiet: bool = False
    printed: bool = False
    busy: bool = False


mode: Final = _Mode()


def begin() -> None:
    """Reset the mode, at the start of each command. What a stream cannot encode is then written as an escape."""
    mode.json = mode.quiet = mode.printed = mode.busy = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of half a surrogate pair it is also JSON's own escape


def stdout() -> Console:
    """The console of results."""
    return _console(sys.stdout)


def stderr() -> Console:
    """The console of reports, progress and errors."""
    return _console(sys.stderr)


def _console(file: IO[str]) -> Console:
    width = None if file.isatty() else _PIPED_COLUMNS
    console = Console(file=file, width=width, highlight=False, markup=False, emoji=False, soft_wrap=not file.isatty())
    console.width = max(console.width, _COLUMNS_MIN)
    return console


def printable(text: str) -> str:
    """A text that cannot control a terminal: each control or invisible character except line end and tab is escaped."""
    if text.isprintable():
        return text
    shown = (character if character.isprintable() or character in "\n\t" else _escape(character) for character in text)
    return "".join(shown)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def one_line(text: str) -> str:
    """A text in one line that cannot control a terminal."""
    return printable(" ".join(text.split()))


def say(*parts: str | Text) -> None:
    """Print one line to stderr. Strings are escaped; texts with a style must be safe already."""
    if not mode.quiet:
        _write(stderr(), _joined(parts))


def result(*parts: str | Text) -> None:
    """Print one line of a result to stdout; nothing with `--json`."""
    if not mode.json:
        _write(stdout(), _joined(parts))


def _joined(parts: Sequence[str | Text]) -> Text:
    line = Text()
    for part in parts:
        line.append_text(part if isinstance(part, Text) else Text(printable(part)))
    return line


def _write(console: Console, what: Text | Table) -> None:
    with closed_pipe_ends():
        console.print(what)
        console.file.flush()


def document(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print the one JSON document of `--json` to stdout."""
    mode.printed = True
    with closed_pipe_ends():
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=not _is_utf8(sys.stdout)) + "\n")
        sys.stdout.flush()


def _is_utf8(file: IO[str]) -> bool:
    return (getattr(file, "encoding", None) or "").lower().replace("-", "") == "utf8"


def data(content: bytes) -> None:
    """Write an agent's output to stdout: as it is if stdout is a file or a pipe, escaped if it is a terminal."""
    with closed_pipe_ends():
        if sys.stdout.isatty():
            sys.stdout.write(printable(content.decode(errors="backslashreplace")))
            if content and not content.endswith(b"\n"):
                sys.stdout.write("\n")
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
        sys.stdout.flush()


@contextlib.contextmanager
def closed_pipe_ends() -> Iterator[None]:
    """End the process quietly if the reader of a pipe has gone away, as `head` does. Raises PlatformError."""
    try:
        yield
    except BrokenPipeError:
        leave_closed_pipe()
    except OSError as error:
        _silence()
        raise PlatformError(f"The output cannot be written: {error.strerror}.", "Is the disk full?") from error


def leave_closed_pipe() -> NoReturn:
    """Exit without a message: whatever would read it is gone. Python must not flush the pipe again at its exit."""
    _silence()
    with contextlib.suppress(OSError):
        os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
    raise SystemExit(int(Exit.CLOSED_PIPE))


def _silence() -> None:
    """Send what is still in the buffer of stdout nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(null, sys.stdout.fileno())
    os.close(null)


def table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], *, to_stderr: bool = False) -> None:
    """Print a table; nothing with `--json` unless it goes to stderr. Cells are folded, never cut off."""
    if mode.quiet if to_stderr else mode.json:
        return
    console = stderr() if to_stderr else stdout()
    if console.width < _TABLE_COLUMNS_MIN:
        _write(console, _listed(columns, rows))
        return
    made = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, show_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    _write(console, made)


def _listed(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Text:
    """A table for a narrow terminal: one line for each cell."""
    lines = Text()
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            lines.append(f"{column or '•'} ", style="bold")
            lines.append_text(cell if isinstance(cell, Text) else Text(printable(cell)))
            lines.append("\n")
    return lines


def facts(pairs: Sequence[tuple[str, str]], *, to_stderr: bool = False) -> None:
    """Print named values, one in each line, aligned."""
    if mode.quiet if to_stderr else mode.json:
        return
    wide = max((len(name) for name, _ in pairs), default=0)
    console = stderr() if to_stderr else stdout()
    for name, value in pairs:
        line = Text(f"{name:<{wide}}  ", style="bold")
        line.append(Text(printable(value), style="not bold"))
        _write(console, line)


@contextlib.contextmanager
def progress(what: str) -> Iterator["Step"]:
    """Show on stderr that something takes its time; nothing if stderr is no terminal."""
    console = stderr()
    if mode.quiet or mode.busy or not console.is_terminal:  # one bar at a time
        yield Step(None)
        return
    mode.busy = True
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            yield Step(bar, bar.add_task(one_line(what), total=None))
    finally:
        mode.busy = False


class Step:
    """Something that takes its time; does nothing without a bar."""

    def __init__(self, bar: Progress | None, task: Any = None) -> None:  # noqa: ANN401 - rich's own id of a task
        self._bar = bar
        self._task = task

    @property
    def shown(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def update(self, *, done: int | None = None, total: int | None = None, what: str | None = None) -> None:
        """Show how far it is."""
        if self._bar is not None:
            description = None if what is None else one_line(what)
            self._bar.update(self._task, completed=done, total=total, description=description)


def failure(error: CliError) -> None:
    """Print an error: a sentence and its mend to stderr, and with `--json` a document to stdout."""
    console = stderr()
    console.print(Text.assemble(("Error: ", "bold red"), printable(error.problem)))
    if error.mend:
        console.print(Text(printable(error.mend)))
    if mode.json and not mode.printed:
        named = {"message": error.problem, "mend": error.mend or None, "exit_code": int(error.exit_code)}
        document({"error": {**named, **error.details}})
