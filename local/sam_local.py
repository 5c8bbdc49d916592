"""`sam local`: the functions in containers of the Lambda base image, with the local cloud's tables, buckets and key.

They have the environment of the deployed functions. Only the address of AWS differs: containers connect by a relay.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from local import deploy, venvs
from local.cloud import client_env, free_port, mark
from local.console import CommandError, error_line, relative
from local.paths import ROOT, Stack, write
from local.relay import relay

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from local.cloud import Cloud
    from local.engine import Engine
    from local.paths import State

PYTHON_VERSION = "3.13"  # the default in template.yaml
_HOST = "127.0.0.1"
_INVOKE_SECONDS = 900.0  # the first invocation may download the base image
_START_SECONDS = 60.0
_END_SECONDS = 20.0


class NoAnswerError(CommandError):
    """A function was killed before it returned: it ran out of time or memory."""


@dataclass(frozen=True)
class SamLocal:
    """The built template's functions, ready to run in containers."""

    cloud_url: str  # for the containers
    options: tuple[str, ...]
    env: Mapping[str, str]
    log: Path

    def run(self, *words: str) -> None:
        """Run `sam local` with these arguments, on the terminal, to its end. Raises CommandError if it fails."""
        with self._started(*words, stdout=None, shown=True) as sam:
            if sam.wait():
                msg = f"sam local {words[0]} ended with status {sam.returncode}"
                raise CommandError(msg)

    def invoke(self, function: str, event: object) -> Any:  # noqa: ANN401 - whatever the function returns
        """Run `sam local invoke`: send one event to one function in a new container; return its result or its error.

        Raises NoAnswerError if the function returns neither, CommandError if `sam local` fails.
        """
        start = self.log.stat().st_size if self.log.is_file() else 0
        with self._started("invoke", function, "--event", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sam:
            output, _ = sam.communicate(json.dumps(event).encode(), _INVOKE_SECONDS)
        try:
            return json.loads(output)
        except ValueError as error:
            msg = f"sam local invoke {function}: {error_line(self.log, start)} (full output: {relative(self.log)})"
            raise (CommandError if sam.returncode else NoAnswerError)(msg) from error

    @contextmanager
    def api(self, *, shown: bool = False) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
        """Run `sam local start-api` during the block; yields its URL and its process. `shown`: on the terminal."""
        port = free_port()
        words = ("start-api", "--host", _HOST, "--port", str(port))
        with self._started(*words, stdout=None if shown else subprocess.DEVNULL, shown=shown) as sam:
            deadline = time.monotonic() + _START_SECONDS
            while not _listens(port):
                if sam.poll() is not None or time.monotonic() > deadline:
                    msg = f"sam local start-api did not start: see {'above' if shown else relative(self.log)}"
                    raise CommandError(msg)
                time.sleep(0.1)
            yield f"http://{_HOST}:{port}", sam

    @contextmanager
    def _started(
        self, *words: str, stdin: int = subprocess.DEVNULL, stdout: int | None, shown: bool = False
    ) -> Iterator[subprocess.Popen[bytes]]:
        command = [str(venvs.python("sam").with_name("sam")), "local", *words, *self.options]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as sink:
            sink.write(f"\n$ {' '.join(command)}\n".encode())
            sink.flush()
            sam = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.env,
                stdin=stdin,
                stdout=stdout,
                stderr=None if shown else sink,
                process_group=0,  # so that Ctrl-C reaches only this process, which passes it on
            )
        try:
            yield sam
        finally:
            _end(sam)


@contextmanager
def ready(state: State, cloud: Cloud, engine: Engine) -> Iterator[SamLocal]:
    """Provide everything that `sam local` needs during the block; remove its containers afterwards."""
    stack = Stack.read(state.stack)
    built = deploy.build(PYTHON_VERSION)
    gateway = engine.gateway()
    with relay(gateway, (_HOST, cloud.port)) as port:
        url = f"http://{gateway}:{port}"
        variables = state.root / "sam-local.json"
        write(variables, json.dumps(_variables(cloud, stack, url), indent=2))
        options = (
            "--template-file", str(built / "template.yaml"), "--config-file", str(ROOT / "samconfig.toml"),
            "--env-vars", str(variables), "--container-host", _HOST,
            "--parameter-overrides", f"PythonRuntime=python{PYTHON_VERSION} Architecture={deploy.machine()}",
        )  # fmt: skip
        marked = dict([mark(state).split("=", 1)])
        env = {**client_env(cloud), **marked, "DOCKER_HOST": engine.host}
        try:
            yield SamLocal(url, options, env, state.log("sam-local"))
        finally:
            for container in engine.lambda_containers(f"AWS_ENDPOINT_URL={url}"):
                engine.remove(container)


def base_image() -> str:
    """Return the name of the containers' image; SAM knows its registry."""
    return f"lambda/python:{PYTHON_VERSION}-{deploy.machine()}"


def _variables(cloud: Cloud, stack: Stack, url: str) -> dict[str, dict[str, str]]:
    """Return the deployed functions' environment variables by logical name, with the cloud's URL replaced."""
    client = deploy.aws(cloud, "lambda")

    def variables(physical: str) -> dict[str, str]:
        deployed = client.get_function_configuration(FunctionName=physical)["Environment"]["Variables"]
        return {variable: value.replace(cloud.url, url) for variable, value in deployed.items()}

    return {name: variables(physical) for name, physical in stack.functions.items()}


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection((_HOST, port), timeout=1):
        return True
    return False


def _end(sam: subprocess.Popen[bytes]) -> None:
    """End `sam local` with SIGINT, as Ctrl-C does, so that it removes its containers."""
    if sam.poll() is None:
        sam.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            sam.wait(_END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(sam.pid, signal.SIGKILL)
    sam.wait()
