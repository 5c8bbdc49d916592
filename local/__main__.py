"""The commands behind the Makefile: `python -m local up`, `down`, `demo`, `token`, ...

Any Python from 3.11 on can start it with nothing installed. Commands that need packages are run
again in the local cloud's virtual environment.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

from local import processes, venvs
from local.console import CommandError, end_on_signals, relative, say
from local.paths import LOCAL, ROOT, VENVS, State, write

_ERROR_LOG = LOCAL / "logs" / "error.log"
_INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    """Run one command; report any failure in one line."""
    os.environ.update(NO_PROXY=venvs.tools_env()["NO_PROXY"], no_proxy=venvs.tools_env()["NO_PROXY"])
    end_on_signals()
    options = _parser().parse_args(arguments)
    try:
        if options.command == "exec":
            return _exec(options.venv, options.words)
        if options.command == "clean":
            return _clean()
        if Path(sys.prefix).resolve() != (VENVS / "cloud").resolve():
            return _rerun_in_cloud_venv(arguments)
        from local import commands

        return commands.run(options, State(options.state.resolve()))
    except CommandError as error:
        _print_error(str(error))
    except KeyboardInterrupt:
        _print_error("interrupted")
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - any other error is reported in one line, its traceback in a log
        write(_ERROR_LOG, traceback.format_exc())
        _print_error(f"{type(error).__name__}: {error} (traceback: {relative(_ERROR_LOG)})")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    parser.add_argument("--state", type=Path, default=LOCAL, help="directory of this local cloud")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the local cloud and deploy to it")
    up.add_argument("--no-seed", action="store_true", help="without example agent and credits")
    commands.add_parser("down", help="stop it; no process remains")
    commands.add_parser("demo", help="publish an agent, pay for a task, verify the receipt")
    sam_local = commands.add_parser("sam-local", help="run the functions in containers")
    sam_local.add_argument("words", nargs=argparse.REMAINDER, help="arguments of `sam local`; none: start-api")
    commands.add_parser("status", help="whether it is running, and its URL")
    commands.add_parser("audit", help="recompute the ledger's invariants")
    commands.add_parser("reputation", help="recompute every standing from the receipts")
    commands.add_parser("logs", help="print the functions' log lines")
    token = commands.add_parser("token", help="print a bearer token")
    token.add_argument("subject")
    token.add_argument("--scope", default="")
    token.add_argument("--ttl", type=int, default=None)
    token.add_argument("--audience", default=None)
    build = commands.add_parser("build", help="sam build, for any runtime and processor")
    build.add_argument("--python", default=venvs.PYTHON_VERSION)
    build.add_argument("architectures", nargs="+", choices=["x86_64", "arm64"])
    execute = commands.add_parser("exec", help="run a tool of a virtual environment")
    execute.add_argument("venv", choices=["cloud", "dev", "policy", "sam", "uv"])
    execute.add_argument("words", nargs=argparse.REMAINDER)
    commands.add_parser("clean", help="stop what runs and remove .local")
    return parser


def _exec(venv: str, words: list[str]) -> int:
    programs = venvs.ensure(venv)
    env = {
        **venvs.tools_env(),
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "UV": str(venvs.python("uv").with_name("uv")),
        "PYTHON": str(venvs.BASE_PYTHON),
    }
    sys.stdout.flush()
    os.chdir(ROOT)
    processes.end_with_parent()  # if make is killed, it cannot pass the signal on
    os.execvpe(words[0], words, env)  # noqa: S606 - the caller chose the command


def _rerun_in_cloud_venv(arguments: list[str]) -> int:
    python = venvs.ensure("cloud") / "python"
    sys.stdout.flush()
    os.chdir(ROOT)
    os.execv(python, [str(python), "-m", "local", *arguments])  # noqa: S606 - the same command


def _clean() -> int:
    for state in sorted(LOCAL.glob("**/cloud.json")):
        subprocess.run([sys.executable, "-m", "local", "--state", state.parent, "down"], cwd=ROOT, check=True)
    shutil.rmtree(LOCAL, ignore_errors=True)
    say("removed .local")
    return 0


def _print_error(text: str) -> None:
    line = " ".join(text.split())
    print(f"error: {line}", file=sys.stderr)


sys.exit(main(sys.argv[1:]))
