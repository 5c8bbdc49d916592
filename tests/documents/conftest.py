"""A local cloud as `make up` leaves it, and a shell for the commands of the pages."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local import demo, issuer, screens
from local.client import PREFIX
from local.cloud import CREDENTIALS
from local.paths import LOCAL, ROOT, Stack, State
from tests import clouds
from tests.documents.blocks import Block, Command, matches
from tests.progress import add_cloud
from tests.waiting import GENEROUS_S

TOOLS = LOCAL  # shared with the builds of the examples
STATE = State(LOCAL / "documents-cloud")
HERE = Path(__file__).parent
_PROGRAMS = {
    "aws": "-m tests.e2e.aws_command",
    "python3": "",
    "python": "",
    "quittance": "-m quittance.cli",
    "quittance-verify": "-c 'from quittance.proof.verify import run; run()'",
    # The pages' installations are tested in a fresh environment by tests/project/test_distributions.py.
    "pip": "-c 'import sys; assert sys.argv[1] == \"install\", sys.argv'",
}
Shell = Callable[[list[Block]], None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow sockets, which the unit tests forbid."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture(scope="session")
def seeded(request: pytest.FixtureRequest) -> Iterator[tuple[Stack, str]]:
    """The stack with the default parameters, and the id of its example agent."""
    clouds.up(STATE, request)
    try:
        stack = Stack.read(STATE.stack)
        yield stack, demo.seed(stack, STATE)
    finally:
        add_cloud(request.config, clouds.processor_s(STATE))
        clouds.run(STATE, "down")


@pytest.fixture
def shell(seeded: tuple[Stack, str], tmp_path: Path) -> Shell:
    """Runs the blocks of one page in one shell, in a folder that looks like the checkout."""
    if missing := [name for name in ("bash", "curl", "make") if not shutil.which(name)]:
        pytest.skip(f"{missing[0]} is not installed")
    stack, agent_id = seeded
    programs, work, home, output = (tmp_path / name for name in ("bin", "work", "home", "output"))
    for folder in (programs, work, home, output):
        folder.mkdir()
    for name, words in _PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (programs / name).chmod(0o700)
    (home / ".curlrc").write_text("fail-with-body\n")  # a refused request is a failed command
    for path in ROOT.iterdir():
        if not path.name.startswith("."):
            (work / path.name).symlink_to(path)
    token = issuer.sign(issuer.load_key(STATE.key), issuer.claims(demo.USER, ""))
    screens.write_profile(home, stack.api_url, token)
    env = CREDENTIALS | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(str(ROOT / name) for name in ("layers/runtime", "client", "cli", ".")),
        "HOME": str(home),
        "QUITTANCE_TOOLS": str(TOOLS),
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "100",
        "NO_PROXY": "127.0.0.1",
        "AWS_ENDPOINT_URL": stack.endpoint_url,
        "AWS_DEFAULT_REGION": stack.region,
        "STATE": str(STATE.root),
        "API": stack.api_url + PREFIX,
        "TOKEN": token,
        "AGENT": agent_id,
    }

    def run(blocks: list[Block]) -> None:
        commands = [(block, command) for block in blocks for command in block.commands()]
        script = "set -uo pipefail\n" + "".join(_step(number, command) for number, (_, command) in enumerate(commands))
        (output / "script").write_text(script)
        done = subprocess.run(
            ["timeout", str(GENEROUS_S), "bash", output / "script", output],
            cwd=work,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        for number, (block, command) in enumerate(commands):
            _check(block, command, output / str(number), done.stderr)

    return run


def _step(number: int, command: Command) -> str:
    """One command in the page's shell, so that variables and functions stay; its output and status go to files."""
    return (
        f'{{\n{command.text}\n}} >"$1/{number}" 2>&1 </dev/null\n'
        f'status=$?; echo $status >"$1/{number}.status"; [ $status = {command.status} ] || exit 1\n'
    )


def _check(block: Block, command: Command, output: Path, errors: str) -> None:
    place = f"{block.page.relative_to(ROOT)}:{command.line}: {command.text}"
    status = output.with_suffix(".status")
    assert status.exists(), f"{place}\ndid not end: {errors}"
    printed = output.read_text(errors="replace")
    assert int(status.read_text()) == command.status, f"{place}\nended with {status.read_text()}{printed}"
    assert command.prints is None or matches(printed, command.prints), (
        f"{place}\nprinted:\n{printed}\nThe page shows:\n{command.prints}"
    )
