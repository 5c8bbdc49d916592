"""`sam local`: the functions in containers of the Lambda base image, on the local cloud's tables, buckets and key.

They get the environment of the deployed functions; only where AWS is found differs: containers come in through a relay.
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
from local.console import MendError, last_words, relative
from local.paths import ROOT, Stack, write
from local.relay import relay

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from local.cloud import Cloud
    from local.engine import Engine
    from local.paths import State

PYTHON_VERSION = "3.13"  # what template.yaml says unless it is told otherwise
_HOST = "127.0.0.1"
_INVOKE_SECONDS = 900.0  # the first one may fetch the base image
_START_SECONDS = 60.0
_END_SECONDS = 20.0


class NoAnswerError(MendError):
    """A function was ended before it answered: it was out of time, or out of memory."""


@dataclass(frozen=True)
class SamLocal:
    """The built template's functions, ready to be run in containers."""

    cloud_url: str  # as the containers see it
    options: tuple[str, ...]
    env: Mapping[str, str]
    log: Path

    def run(self, *words: str) -> None:
        """`sam local` with these words, on the terminal, to its end. Raises MendError if it fails."""
        with self._started(*words, stdout=None, shown=True) as sam:
            if sam.wait():
                msg = f"sam local {words[0]} ended with status {sam.returncode}"
                raise MendError(msg)

    def invoke(self, function: str, event: object) -> Any:  # noqa: ANN401 - whatever the function answers
        """`sam local invoke`: one event to one function, in a container of its own; its answer or its error.

        Raises NoAnswerError if the function says neither, MendError if `sam local` fails.
        """
        start = self.log.stat().st_size if self.log.is_file() else 0
        with self._started("invoke", function, "--event", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sam:
            said, _ = sam.communicate(json.dumps(event).encode(), _INVOKE_SECONDS)
        try:
            return json.loads(said)
        except ValueError as error:
            msg = f"sam local invoke {function}: {last_words(self.log, start)} (all of it: {relative(self.log)})"
            raise (MendError if sam.returncode else NoAnswerError)(msg) from error

    @contextmanager
    def api(self, *, shown: bool = False) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
        """`sam local start-api` as long as the block lasts: its URL, and its process; `shown`: on the terminal."""
        port = free_port()
        words = ("start-api", "--host", _HOST, "--port", str(port))
        with self._started(*words, stdout=None if shown else subprocess.DEVNULL, shown=shown) as sam:
            deadline = time.monotonic() + _START_SECONDS
            while not _listens(port):
                if sam.poll() is not None or time.monotonic() > deadline:
                    msg = f"sam local start-api does not start: {'see above' if shown else relative(self.log)}"
                    raise MendError(msg)
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
                process_group=0,  # a Ctrl-C is ours to pass on
            )
        try:
            yield sam
        finally:
            _end(sam)


@contextmanager
def ready(state: State, cloud: Cloud, engine: Engine) -> Iterator[SamLocal]:
    """All that `sam local` needs, as long as the block lasts; no container of ours runs after it."""
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
    """The image that the containers are made from; SAM knows where it is to be had."""
    return f"lambda/python:{PYTHON_VERSION}-{deploy.machine()}"


def _variables(cloud: Cloud, stack: Stack, url: str) -> dict[str, dict[str, str]]:
    """What the deployed functions have in their environment, by logical name, with the cloud at another URL."""
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
    """End `sam local` as a Ctrl-C does, so that it takes its containers with it."""
    if sam.poll() is None:
        sam.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            sam.wait(_END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(sam.pid, signal.SIGKILL)
    sam.wait()
