"""The command `quittance`: the frame of all commands.

A command is a function in a module of its own, registered below. It raises `CliError` for everything that a user can
mend, and returns its exit code. No user ever sees a traceback; `QUITTANCE_DEBUG=1` shows them.
"""

import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from quittance.cli import build, cloud, doctor, examples, new, output, proof, run
from quittance.cli.exits import CliError, Exit

_DEBUG: Final = "QUITTANCE_DEBUG"

app: Final = typer.Typer(
    name="quittance",
    help="Build, run, publish and call agents that are paid only for work that they did.",
    epilog="Exit codes: 0 done, 1 the agent or task failed, 2 wrong use, 3 refused by the platform, "
    "4 network or platform failure, 5 not proven.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PROOF: Final = "Receipts"
_MACHINE: Final = "This machine"
_AGENT: Final = "Your agent, on this machine"

app.command("new", rich_help_panel=_AGENT)(new.new)
app.command("build", rich_help_panel=_AGENT)(build.command)
app.command("run", rich_help_panel=_AGENT)(run.run)
app.command("test", rich_help_panel=_AGENT)(examples.run_tests)
app.command("verify", rich_help_panel=_PROOF, context_settings=proof.PASSED_ON, add_help_option=False)(proof.verify)
app.command("replay", rich_help_panel=_PROOF)(proof.replay)
app.command("doctor", rich_help_panel=_MACHINE)(doctor.doctor)
app.command("up", rich_help_panel=_MACHINE)(cloud.up)
app.command("down", rich_help_panel=_MACHINE)(cloud.down)


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
    if os.environ.get(_DEBUG):
        traceback.print_exception(error)
    kind = type(error).__name__
    mend = f"This is a fault of the command line. Run it again with {_DEBUG}=1 to see where, and report that."
    output.failure(CliError(f"{kind}: {output.one_line(str(error))[:500]}", mend))
    return Exit.PLATFORM


def console_script() -> None:
    """The entry point of the console script."""
    sys.exit(main())
