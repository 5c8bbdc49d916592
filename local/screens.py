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
from itertools import groupby
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
_CHARACTER_WIDTH: Final = 12.2  # as rich draws them
_LINES_MAX: Final = 200
_DARK: Final = TerminalTheme(
    (24, 26, 31),
    (222, 222, 222),
    [
        *((60, 60, 60), (240, 113, 120), (127, 191, 127), (226, 191, 100)),
        *((110, 160, 230), (190, 140, 220), (90, 190, 190), (222, 222, 222)),
    ],
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


_UNTIL_LISTED: Final = "until quittance runs hello | grep -q succeeded; do sleep 1; done"
SCENES: Final = (
    Scene("help", "quittance --help"),
    Scene("new", "quittance new hello --lang c"),
    Scene("test", "quittance test hello", ("quittance build hello",)),
    Scene("run", 'quittance run hello --input-text \'{"text": "to be or not to be"}\' --budget 0.05'),
    Scene("publish", "quittance publish hello --bond 2", ("quittance deposit 3",)),
    Scene("call", 'quittance call hello --text \'{"text": "to be or not to be"}\' --budget 0.05'),
    Scene("refused", "quittance call hello --input wrong.json", ("echo '{\"txt\": 1}' > wrong.json",)),
    Scene("versions", "quittance versions hello"),
    Scene("runs", "quittance runs hello", (_UNTIL_LISTED,)),
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
    whole: list[str] = []
    for _, parts in sorted(lines.items()):
        line = ""
        for at, text in sorted(parts):  # a picture has no text where there are only spaces
            line = line.ljust(round(at / _CHARACTER_WIDTH)) + text.replace("\N{NO-BREAK SPACE}", " ")
        whole.append(_constant(line))
    return [line for line in whole if line]


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
    for style, chars in groupby((row[column] for column in range(_COLUMNS)), _style):
        line.append("".join(char.data for char in chars), style)
    line.rstrip()
    return line


def _style(char: Any) -> Style:  # noqa: ANN401 - a character of the emulator
    return Style(
        color=_colour(char.fg),
        bgcolor=_colour(char.bg),
        bold=char.bold,
        italic=char.italics,
        underline=char.underscore,
        reverse=char.reverse,
    )


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


def write_profile(home: Path, api: str, token: str) -> None:
    """Writes the profile `local` as `quittance up` does, for one platform and user."""
    folder = home / ".config" / "quittance"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "local.token").write_text(token)
    (folder / "local.token").chmod(0o600)
    (folder / "config.toml").write_text(
        f'default = "local"\n\n[profiles.local]\napi = "{api}"\ntoken_file = "local.token"\n'
    )


def environment(home: Path, api: str, token: str) -> dict[str, str]:
    """The environment of the scenes: the command line of this checkout, for one platform and user."""
    write_profile(home, api, token)
    programs = home / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "quittance"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m quittance.cli "$@"\n')
    program.chmod(0o700)
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(str(ROOT / name) for name in ("layers/runtime", "client", "cli")),
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "NO_PROXY": "127.0.0.1",
        "QUITTANCE_TOOLS": str(LOCAL),
    }


if __name__ == "__main__":
    from local import demo, issuer
    from local.paths import Stack, State

    state = State(LOCAL)
    with tempfile.TemporaryDirectory() as home:
        token = issuer.sign(issuer.load_key(state.key), issuer.claims("painter", demo.DEPOSIT_SCOPE))
        write(environment(Path(home), Stack.read(state.stack).api_url, token))
