"""The command `quittance`: the frame of all commands.

A command is a function in a module of its own, named in `COMMANDS` and loaded when it is called. It raises `CliError`
for everything that a user can mend, and returns its exit code. No user ever sees a traceback; `QUITTANCE_DEBUG=1` shows
them.
"""

import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from quittance.cli import output
from quittance.cli.exits import CliError, Exit

_DEBUG: Final = "QUITTANCE_DEBUG"

_AGENT: Final = "Your agent, on this machine"
_OWNER: Final = "Your agents on a platform"
_TASKS: Final = "Paid tasks"
_MONEY: Final = "Your account"
_PROOF: Final = "Receipts"
_MACHINE: Final = "This machine and its platforms"


@dataclass(frozen=True, slots=True)
class _Command:
    """A command: its panel in the help, its module and function, and settings for typer."""

    panel: str
    module: str
    function: str
    settings: Mapping[str, Any] = field(default_factory=dict)


# The options of `verify` are those of `quittance-verify`, which parses them itself.
_PASSED_ON: Final = {
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    "add_help_option": False,
}

COMMANDS: Final[Mapping[str, _Command]] = {
    "new": _Command(_AGENT, "new", "new"),
    "build": _Command(_AGENT, "build", "command"),
    "run": _Command(_AGENT, "run", "run"),
    "test": _Command(_AGENT, "examples", "run_tests"),
    "publish": _Command(_OWNER, "publish", "publish"),
    "versions": _Command(_OWNER, "owner", "versions"),
    "rollback": _Command(_OWNER, "owner", "rollback"),
    "price": _Command(_OWNER, "owner", "price"),
    "retire": _Command(_OWNER, "owner", "retire"),
    "runs": _Command(_OWNER, "owner", "runs"),
    "agents": _Command(_TASKS, "agents", "app"),
    "call": _Command(_TASKS, "call", "call"),
    "result": _Command(_TASKS, "call", "result"),
    "tasks": _Command(_TASKS, "call", "tasks"),
    "channel": _Command(_TASKS, "channel", "app"),
    "balance": _Command(_MONEY, "account", "balance"),
    "bond": _Command(_MONEY, "account", "bond"),
    "statement": _Command(_MONEY, "account", "statement"),
    "deposit": _Command(_MONEY, "account", "deposit"),
    "verify": _Command(_PROOF, "proof", "verify", _PASSED_ON),
    "replay": _Command(_PROOF, "proof", "replay"),
    "login": _Command(_MACHINE, "login", "login"),
    "doctor": _Command(_MACHINE, "doctor", "doctor"),
    "up": _Command(_MACHINE, "cloud", "up"),
    "down": _Command(_MACHINE, "cloud", "down"),
}
"""All commands, in the order of the help. A function may also be a `typer.Typer` with commands of its own."""


@cache
def _load(name: str) -> Any:  # noqa: ANN401 - a command as typer makes it, of a private type
    command = COMMANDS[name]
    made = getattr(importlib.import_module(f"quittance.cli.{command.module}"), command.function)
    if not isinstance(made, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        settings = {"context_settings": _HELP, **command.settings}
        alone.command(name, rich_help_panel=command.panel, **settings)(made)
        made = alone
    loaded = typer.main.get_command(made)
    loaded.name, loaded.rich_help_panel = name, command.panel  # type: ignore[attr-defined]  # a group has neither yet
    return loaded


class _Loaded(Mapping[str, Any]):
    """The commands by name, each loaded at its first use: a run must not wait for what another command needs."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - as above
        return _load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Commands(TyperGroup):
    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - passed on
        super().__init__(**settings)
        self.commands = _Loaded()  # type: ignore[assignment]  # nothing writes to it


_HELP: Final = {"help_option_names": ["-h", "--help"]}

app: Final = typer.Typer(
    name="quittance",
    cls=_Commands,
    help="Build, run, publish and call agents that are paid only for work that they did.",
    epilog="Exit codes: 0 done, 1 the agent or task failed, 2 wrong use, 3 refused by the platform, "
    "4 network or platform failure, 5 not proven.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=_HELP,
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        output.result(f"quittance {version()}")
        raise typer.Exit


def version() -> str:
    """The version of this distribution; in a checkout that is not installed, that of the sources."""
    try:
        return importlib.metadata.version("quittance-cli")
    except importlib.metadata.PackageNotFoundError:
        return "0.1.0 (not installed)"


@app.callback()
def _frame(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    output.begin()
    try:
        code = app(args=arguments, prog_name="quittance", standalone_mode=False)
        return int(code or Exit.DONE)
    except typer.TyperException as error:
        return _wrong_call(error)
    except CliError as error:
        output.failure(error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        return output.leave_closed_pipe()
    except Exception as error:  # noqa: BLE001 - no user sees a traceback
        return _own_fault(error)


def _wrong_call(error: typer.TyperException) -> int:
    problem = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "quittance"
    shown = CliError(problem, f"{path} --help says what it takes.")
    shown.exit_code = Exit.USAGE
    output.failure(shown)
    return Exit.USAGE


def _own_fault(error: Exception) -> int:
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        output.failure(CliError(f"{where}{error.strerror or error}.", "quittance doctor checks this machine."))
        return Exit.PLATFORM
    if os.environ.get(_DEBUG):
        traceback.print_exception(error)
    kind = type(error).__name__
    mend = f"This is a fault of the command line. Run it again with {_DEBUG}=1 to see where, and report that."
    output.failure(CliError(f"{kind}: {output.one_line(str(error))[:500]}", mend))
    return Exit.PLATFORM


def console_script() -> None:
    """The entry point of the console script."""
    sys.exit(main())
