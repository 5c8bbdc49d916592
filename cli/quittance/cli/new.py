"""`quittance new`: a project with a working agent, its build command, its contract and its tests."""

import contextlib
import os
import re
import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from quittance.cli import options, output
from quittance.cli.exits import Exit, UsageError
from quittance.cli.toolchains import LANGUAGES

NAME_CHARS_MAX: Final = 64

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_ABOUT: Final = "template.toml"
_NAMES_HERE: Final = {"gitignore": ".gitignore"}  # a file of that name would act on this repository
_SHORT: Final = {"as": "assemblyscript", "golang": "go", "js": "javascript", "py": "python", "rs": "rust"}


def files_of(language: str, name: str) -> dict[str, bytes]:
    """The files of a new project: their paths and content. `name` must be checked already."""
    templates = resources.files("quittance.cli") / "templates"
    about = tomllib.loads((templates / language / _ABOUT).read_text("utf-8"))
    values = {"name": name} | {key: _plain(value) for key, value in about.items()}
    found = dict(_walk(templates / "common")) | dict(_walk(templates / language))
    del found[_ABOUT]
    return {_NAMES_HERE.get(path, path): _filled(content, values).encode() for path, content in found.items()}


def _plain(value: Any) -> str:  # noqa: ANN401 - a value of TOML
    return f"{value:_}" if isinstance(value, int) else str(value).strip("\n")


def _walk(folder: Traversable, prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir() and entry.name != "__pycache__":
            found += _walk(entry, f"{prefix}{entry.name}/")
        elif entry.is_file():
            found.append((f"{prefix}{entry.name}", entry.read_text("utf-8")))
    return found


def _filled(text: str, values: dict[str, str]) -> str:
    """A text with its placeholders replaced; a value may have placeholders too."""
    for _ in range(2):
        for key, value in values.items():
            text = text.replace(f"{{{{{key}}}}}", value)
    return text


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files of a project into a folder that does not exist or is empty. Raises UsageError."""
    made: list[Path] = []
    try:
        if not folder.exists() and not folder.is_symlink():
            folder.mkdir(parents=True)
            made.append(folder)
        elif not folder.is_dir():
            raise UsageError(f"{folder} exists and is not a folder.", "Choose another name, or --folder.")
        elif any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty.", "Choose another name, or --folder with an empty folder.")
        for name, content in files.items():
            path = folder / name
            for above in reversed(path.relative_to(folder).parents[:-1]):
                if not (folder / above).exists():
                    (folder / above).mkdir()
                    made.append(folder / above)
            with path.open("xb") as file:  # never over a file that another program has made meanwhile
                made.append(path)
                file.write(content)
    except OSError as error:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise UsageError(f"{error.filename or folder} cannot be written: {error.strerror}.", "Use --folder.") from error


def checked_name(name: str) -> str:
    """A name for an agent and its folder. Raises UsageError."""
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARS_MAX:
        mend = f"Use a letter, then letters, digits, - and _: at most {NAME_CHARS_MAX} characters."
        raise UsageError(f"{name!r} cannot be the name of a project.", mend)
    return name


def _language(named: str) -> str:
    language = _SHORT.get(named.lower(), named.lower())
    if language not in LANGUAGES:
        raise UsageError(f"There is no template for the language {named!r}.", f"Use one of {', '.join(LANGUAGES)}.")
    return language


def new(
    name: Annotated[str, typer.Argument(help="The name of the agent, and of its folder.")],
    lang: Annotated[
        str,
        typer.Option(
            "--lang", "-l", help=f"Its language: {', '.join(LANGUAGES)}.", autocompletion=lambda: list(LANGUAGES)
        ),
    ],
    folder: Annotated[
        Path | None, typer.Option(help="Where to make it, by default a folder of that name here.")
    ] = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Make a project: a working agent with its build command, its contract, its tests and a README."""
    language = _language(lang)
    files = files_of(language, checked_name(name))
    target = folder or Path(name)
    write(target, files)
    if output.mode.json:
        output.document({"folder": str(target), "language": language, "files": sorted(files)})
        return Exit.DONE
    output.result(f"Made {name} in {target}: {len(files)} files.")
    output.result("Next:")
    for line in ("quittance build", "quittance test", "quittance publish"):
        output.result(f"    {line}" if line != "quittance build" else f"    cd {_quoted(target)} && {line}")
    return Exit.DONE


def _quoted(path: Path) -> str:
    text = os.fspath(path)
    return text if re.fullmatch(r"[\w@%+=:,./-]+", text) else "'" + text.replace("'", "'\\''") + "'"
