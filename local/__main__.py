"""The commands behind the Makefile: `python -m local up`, `down`, `demo`, `token`, ...

Started by any Python from 3.11 on with nothing installed; what needs packages runs again in the
local cloud's own environment.
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
from local.console import MendError, end_on_signals, relative, say
from local.paths import LOCAL, ROOT, VENVS, State, write

_ERROR_LOG = LOCAL / "logs" / "error.log"
_INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    """Run one command; any failure ends in one line."""
    os.environ.update(NO_PROXY=venvs.tools_env()["NO_PROXY"], no_proxy=venvs.tools_env()["NO_PROXY"])
    end_on_signals()
    options = _parser().parse_args(arguments)
    try:
        if options.command == "exec":
            return _exec(options.venv, options.words)
        if options.command == "clean":
            return _clean()
        if Path(sys.prefix).resolve() != (VENVS / "cloud").resolve():
            return _again_in_cloud_venv(arguments)
        from local import commands

        return commands.run(options, State(options.state.resolve()))
    except MendError as error:
        _complain(str(error))
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last line of defence: told, and kept in a log
        write(_ERROR_LOG, traceback.format_exc())
        _complain(f"{type(error).__name__}: {error} (all of it: {relative(_ERROR_LOG)})")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    parser.add_argument("--state", type=Path, default=LOCAL, help="directory of this local cloud")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the local cloud and deploy to it")
    up.add_argument("--no-seed", action="store_true", help="without example agent and credits")
    commands.add_parser("down", help="end it; nothing stays running")
    commands.add_parser("demo", help="the story of a paid task")
    sam_local = commands.add_parser("sam-local", help="the functions in containers")
    sam_local.add_argument("words", nargs=argparse.REMAINDER, help="of `sam local`; none: start-api")
    commands.add_parser("status", help="is it running, and where")
    commands.add_parser("audit", help="recompute the ledger's invariants")
    commands.add_parser("reputation", help="recompute every standing from the receipts")
    commands.add_parser("logs", help="what the functions wrote")
    token = commands.add_parser("token", help="print a bearer token")
    token.add_argument("subject")
    token.add_argument("--scope", default="")
    token.add_argument("--ttl", type=int, default=None)
    token.add_argument("--audience", default=None)
    build = commands.add_parser("build", help="sam build, for any runtime and processor")
    build.add_argument("--python", default=venvs.PYTHON_VERSION)
    build.add_argument("architectures", nargs="+", choices=["x86_64", "arm64"])
    execute = commands.add_parser("exec", help="run a tool of an environment")
    execute.add_argument("venv", choices=["cloud", "dev", "policy", "sam", "uv"])
    execute.add_argument("words", nargs=argparse.REMAINDER)
    commands.add_parser("clean", help="remove all that was made here")
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
    processes.end_with_parent()  # make, if it is killed, cannot pass that on
    os.execvpe(words[0], words, env)  # noqa: S606 - the command that the caller named


def _again_in_cloud_venv(arguments: list[str]) -> int:
    python = venvs.ensure("cloud") / "python"
    sys.stdout.flush()
    os.chdir(ROOT)
    os.execv(python, [str(python), "-m", "local", *arguments])  # noqa: S606 - this same command


def _clean() -> int:
    for state in sorted(LOCAL.glob("**/cloud.json")):
        subprocess.run([sys.executable, "-m", "local", "--state", state.parent, "down"], cwd=ROOT, check=True)
    shutil.rmtree(LOCAL, ignore_errors=True)
    say("removed .local")
    return 0


def _complain(text: str) -> None:
    first = " ".join(text.split())
    print(f"error: {first}", file=sys.stderr)


sys.exit(main(sys.argv[1:]))
