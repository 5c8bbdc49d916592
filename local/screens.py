"""Pictures of the command line for the documents: `make screens` writes docs/screens/*.svg.

Each scene runs one command on a terminal of its own, emulated to the last character: what its reader would see at the
end. A test runs the scenes again and compares the texts, apart from ids, digests and times.
"""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any, Final

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from local.paths import LOCAL, ROOT

FOLDER: Final = ROOT / "docs" / "screens"
_COLUMNS: Final = 100
_LINES_MAX: Final = 200
_DARK: Final = TerminalTheme(
    (24, 26, 31),
    (222, 222, 222),
    [(60, 60, 60), (240, 113, 120), (127, 191, 127), (226, 191, 100), (110, 160, 230), (190, 140, 220), (90, 190, 190)]
    + [(222, 222, 222)],
)
_FONTS: Final = re.compile(r"@font-face \{.*?\}\s*", re.S)
_VARIES: Final = (
    (re.compile(r"agt_[a-z2-7]{16,26}"), "agt_…"),
    (re.compile(r"\b[0-9a-f]{12,64}…?"), "…"),
    (re.compile(r"\b[a-z2-7]{26}\b"), "…"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?( UTC|Z)?"), "…"),
    (re.compile(r"\b\d+(\.\d+)? (ms|s)\b"), "…"),
    (re.compile(r"127\.0\.0\.1:\d+\S*"), "…"),
    (re.compile(r"[ \t─━╺╸]+"), " "),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's name, and the command that it shows, after those that prepare it."""

    name: str
    command: str
    before: tuple[str, ...] = ()


SCENES: Final = (
    Scene("help", "quittance --help"),
    Scene("new", "quittance new hello --lang c"),
    Scene("test", "quittance test hello"),
    Scene("run", 'quittance run hello --input-text \'{"text": "to be or not to be"}\' --budget 0.05'),
    Scene("publish", "quittance publish hello --bond 2"),
    Scene("call", 'quittance call hello --text \'{"text": "to be or not to be"}\' --budget 0.05'),
    Scene("refused", "quittance call hello --text '{\"txt\": 1}' --budget 0.05"),
    Scene("versions", "quittance versions hello"),
    Scene("runs", "quittance runs hello"),
)


def capture(env: Mapping[str, str], folder: Path) -> Iterator[tuple[Scene, str]]:
    """Runs all scenes in a folder, in order, with `quittance` on the PATH of `env`; yields each with its picture."""
    for scene in SCENES:
        for command in scene.before:
            subprocess.run(["sh", "-c", command], env=dict(env), cwd=folder, check=True, capture_output=True)
        yield scene, picture(scene, _on_terminal(scene.command, env, folder))


def text_of(svg: str) -> list[str]:
    """The lines of a picture, without what differs between two runs."""
    lines: dict[float, list[tuple[float, str]]] = {}
    for found in re.finditer(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', svg, re.S):
        lines.setdefault(float(found[2]), []).append((float(found[1]), unescape(found[3])))
    whole = ["".join(text for _, text in sorted(parts)) for _, parts in sorted(lines.items())]
    return [_constant(line.replace("\N{NO-BREAK SPACE}", " ")) for line in whole if line.strip()]


def _constant(line: str) -> str:
    for pattern, instead in _VARIES:
        line = pattern.sub(instead, line)
    return line.strip()


def _on_terminal(command: str, env: Mapping[str, str], folder: Path) -> pyte.Screen:
    """The terminal after a command has ended there."""
    screen = pyte.Screen(_COLUMNS, _LINES_MAX)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES_MAX, _COLUMNS, 0, 0))
    wanted = {**env, "TERM": "xterm-256color", "COLUMNS": str(_COLUMNS), "LINES": "50"}
    process = subprocess.Popen(
        ["sh", "-c", command],
        env=wanted,
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    with contextlib.suppress(OSError):  # EIO: the last process on the terminal has ended
        while data := os.read(ours, 65_536):
            stream.feed(data)
    os.close(ours)
    process.wait()
    return screen


def picture(scene: Scene, screen: pyte.Screen) -> str:
    """A screen as SVG, below the command that made it. It loads no fonts from the network."""
    console = Console(width=_COLUMNS, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "bold green"), (scene.command, "bold")), soft_wrap=True)
    used = max((number for number, row in enumerate(screen.display) if row.strip()), default=-1)
    for number in range(used + 1):
        console.print(_line(screen.buffer[number]), soft_wrap=True)
    svg = console.export_svg(title="", theme=_DARK, unique_id=scene.name)
    svg = _FONTS.sub("", svg).replace("Fira Code", "ui-monospace, monospace")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def _line(row: Mapping[int, Any]) -> Text:
    line = Text()
    for column in range(_COLUMNS):
        char = row[column]
        line.append(
            char.data,
            Style(
                color=_colour(char.fg),
                bgcolor=_colour(char.bg),
                bold=char.bold,
                italic=char.italics,
                underline=char.underscore,
                reverse=char.reverse,
            ),
        )
    line.rstrip()
    return line


def _colour(name: str) -> str | None:
    """A colour of the emulator as rich names it."""
    if name == "default":
        return None
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return name.replace("bright", "bright_").replace("brown", "yellow")


def write(env: Mapping[str, str]) -> None:
    """Writes the pictures of all scenes."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for scene, svg in capture(env, Path(folder)):
            (FOLDER / f"{scene.name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        shim = Path(home) / "quittance"
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m quittance.cli "$@"\n')
        shim.chmod(0o700)
        paths = ":".join(str(ROOT / name) for name in ("layers/runtime", "client", "cli"))
        write(
            {
                **os.environ,
                "PATH": f"{home}:{os.environ['PATH']}",
                "PYTHONPATH": paths,
                "HOME": home,
                "QUITTANCE_TOOLS": str(LOCAL),
            }
        )
