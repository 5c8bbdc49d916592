"""Code blocks of the Markdown pages: what they are, and what a shell must print for them.

    ```sh          commands, which must succeed
    ```console     commands behind `$ ` (`> ` continues one), each followed by what it prints; `…` stands for any text
    ```python      a program, which must succeed

An HTML comment directly above a block may say why it is not run (`<!-- not run: it needs an AWS account -->`), or with
which exit status its last command ends (`<!-- exit status 1 -->`). A comment `<!-- run: … -->` has commands that run
and are not displayed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "examples" / "agents" / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "adr" not in path.parts),
]
RUN = {"sh", "console", "python"}
SHOWN = {"text", "json", "http", "toml", "yaml", "python", "c", "go", "zig", "rust", "ts", "js"}
_PART = re.compile(
    r"(?:^<!-- (?!run: )(?P<said>[^\n]*?) -->\n)?^```(?P<kind>\S*)\n(?P<text>.*?)^```$|^<!-- run: (?P<hidden>.*?) -->$",
    re.M | re.S,
)
_STATUS = re.compile(r"exit status (\d+)$")


@dataclass(frozen=True)
class Command:
    """One command of a page, its line, what it prints (None: anything) and its exit status."""

    line: int
    text: str
    prints: str | None = None
    status: int = 0


@dataclass(frozen=True)
class Block:
    """A code block: its page, line, language and text, and why it is not run, if it is not."""

    page: Path
    line: int
    kind: str
    text: str
    status: int = 0
    not_run: str = ""

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[Command]:
        """The commands of a block that is run."""
        if self.kind == "sh":
            yield Command(self.line, self.text, None, self.status)
        elif self.kind == "python":
            yield Command(self.line, f"python3 - <<'END_OF_PROGRAM'\n{self.text}END_OF_PROGRAM", None, self.status)
        else:
            found = list(self._shown())
            yield from found[:-1]
            yield from (Command(last.line, last.text, last.prints, self.status) for last in found[-1:])

    def _shown(self) -> Iterator[Command]:
        command, prints, began = "", "", self.line
        for number, line in enumerate(self.text.splitlines(), self.line + 1):
            if line.startswith("$ "):
                if command:
                    yield Command(began, command, prints)
                command, prints, began = line[2:], "", number
            elif command and not prints and (line.startswith("> ") or command.endswith("\\")):
                command += "\n" + line.removeprefix("> ")
            else:
                prints += line + "\n"
        if command:
            yield Command(began, command, prints)


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page, and its hidden commands as blocks of kind `sh`."""
    text = page.read_text(encoding="utf-8")
    found = []
    for part in _PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        if part["hidden"] is not None:
            found.append(Block(page, line, "sh", part["hidden"] + "\n"))
            continue
        said = part["said"] or ""
        status = int(stated[1]) if (stated := _STATUS.match(said)) else 0
        reason = said.removeprefix("not run: ") if said.startswith("not run: ") else ""
        found.append(Block(page, line + (2 if said else 0), part["kind"], part["text"], status, reason))
    return found


def matches(printed: str, shown: str) -> bool:
    """Whether a command printed what its page shows, apart from white space at the ends of lines."""
    wanted = [re.escape(_trimmed(piece)) for piece in _trimmed(shown).split("…")]
    return re.fullmatch(".*?".join(wanted), _trimmed(printed), re.S) is not None


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())
