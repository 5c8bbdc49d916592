"""Clients that public generators make from the served description run a paid task.

The commands and programs are those of docs/howto/generated-clients.md; the generators are pinned.
"""

import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from local import venvs
from local.paths import LOCAL, Stack, locked
from quittance.ledger.credits import format_credits
from tests.e2e.people import User, command_environment, micro
from tests.support import ROOT

GUIDE = ROOT / "docs" / "howto" / "generated-clients.md"
NPM = ROOT / "requirements" / "npm"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
FETCH, GENERATE_PYTHON, GENERATE_TYPESCRIPT, RUN_TYPESCRIPT = (text for kind, text in BLOCKS if kind == "sh")
(PYTHON,) = (text for kind, text in BLOCKS if kind == "python")
(TYPESCRIPT,) = (text for kind, text in BLOCKS if kind == "ts")
INPUT = "to be or not to be"
WARNINGS = re.compile(r"WARNING|ERROR", re.IGNORECASE)

Shell = Callable[..., str]
"""`run(script, **environment)` returns what a shell script prints."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the clients are generated."""
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="module")
def shell(stack: Stack, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Runs scripts in the folder of the clients; the description is there already."""
    if missing := [name for name in ("bash", "curl") if not shutil.which(name)]:
        pytest.skip(f"{missing[0]} is not installed")
    tools = command_environment(stack, tmp_path_factory.mktemp("tools"))
    programs = venvs.ensure("generators")
    base = {"QUITTANCE_URL": stack.api_url, "HOME": str(folder), "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(folder)}
    base |= {"PATH": f"{programs}:{folder / 'node_modules' / '.bin'}:{os.environ['PATH']}"}

    def run(script: str, **environment: str) -> str:
        command = ["bash", "-euo", "pipefail", "-c", script]
        env = {**tools, **base, **environment}
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2_000:]
        return done.stdout + done.stderr

    run(FETCH)
    return run


@pytest.fixture(scope="module")
def python_client(shell: Shell, folder: Path) -> Path:
    """The generated Python package; nothing of the description may be left out of it."""
    said = shell(GENERATE_PYTHON)
    assert not WARNINGS.search(said), said
    (folder / "paid_task.py").write_text(PYTHON)
    return folder / "quittance_api"


@pytest.fixture(scope="module")
def typescript_client(shell: Shell, folder: Path) -> Path:
    """The compiled program with its generated types; `tsc --strict` has checked both."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    modules = LOCAL / "npm"
    with locked(LOCAL / "npm.lock"):
        wanted = (NPM / "package-lock.json").read_text()
        stamp = modules / "installed.json"
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(modules, ignore_errors=True)
            shutil.copytree(NPM, modules)
            install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            subprocess.run(install, cwd=modules, check=True)
            stamp.write_text(wanted)
    (folder / "node_modules").symlink_to(modules / "node_modules")
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "paid_task.ts").write_text(TYPESCRIPT)
    said = shell(GENERATE_TYPESCRIPT)
    assert not WARNINGS.search(said), said
    return folder / "paid_task.js"


def test_the_python_client_covers_every_operation(python_client: Path) -> None:
    """A generator leaves an operation out if it does not understand it; so it once did with `execute`."""
    generated = {path.stem for path in (python_client / "api").glob("*/*.py")} - {"__init__"}
    described = re.findall(r'"operationId": "(\w+)"', (python_client.parent / "quittance.json").read_text())
    assert generated == {*described}


def test_the_python_client_is_strictly_typed(python_client: Path) -> None:
    """All but the generator's own `client.py`, whose `__exit__` is not."""
    files = [python_client / "api", python_client / "models", python_client.parent / "paid_task.py"]
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    mypy += [f"--python-executable={venvs.python('generators')}", f"--cache-dir={LOCAL / 'mypy-generated'}"]
    done = subprocess.run([*mypy, *files], cwd=python_client.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2_000:]


def test_the_python_client_runs_a_paid_task(
    python_client: Path, shell: Shell, alice: User, echo: str, token: Callable[..., str], balance: Callable[[str], int]
) -> None:
    check(lambda *words, **env: shell(f"python paid_task.py {' '.join(words)}", **env), alice, echo, token, balance)


def test_the_typescript_client_runs_a_paid_task(
    typescript_client: Path,
    shell: Shell,
    alice: User,
    echo: str,
    token: Callable[..., str],
    balance: Callable[[str], int],
) -> None:
    compile_, run = RUN_TYPESCRIPT.strip().splitlines()
    shell(compile_)

    def program(agent: str, task: str, budget: str, **env: str) -> str:
        return shell(run.replace("0.05", budget), AGENT=agent, TASK=task, **env)

    check(program, alice, echo, token, balance)


def check(
    program: Callable[..., str],
    alice: User,
    echo: str,
    token: Callable[..., str],
    balance: Callable[[str], int],
) -> None:
    """Run the program with a budget that suffices, and with one that the user does not have."""
    secret, task = token(alice.name), uuid.uuid4().hex
    before = balance(alice.name)
    said = program(echo, task, "0.05", TOKEN=secret)
    settled = alice.http.get(f"/tasks/{task}/result").json()
    assert (settled["success"], settled["output"]) == (True, INPUT)
    assert said == f"{INPUT} released {settled['amount_paid']}\n"
    cost = micro(settled["amount_paid"]) + micro(settled["fee"])
    assert balance(alice.name) == before - cost
    refused = program(echo, uuid.uuid4().hex, "1000", TOKEN=secret)
    assert refused == f"insufficient_funds {format_credits(before - cost)} 1000\n"
