"""The local cloud's process: ministack (launch.py), on 127.0.0.1, with its files in a state directory.

It keeps nothing across a restart, so there is no stale state to repair: a cloud that has ended is
started again, empty, and the stack is deployed to it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass

from local import processes, venvs
from local.console import CommandError, relative
from local.paths import ROOT, State, write

REGION = "us-east-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
_HOST = "127.0.0.1"
_START_SECONDS = 60.0
_PORT_TRIES = 3
LIFELINE = "QUITTANCE_LIFELINE"
"""Environment variable with the number of a descriptor, one end of a pipe. A cloud that inherits it ends when the other
end is closed. So a cloud never outlives the tests that started it, even if they are killed."""
_SERVERS: list[subprocess.Popen[bytes]] = []  # keeps references: the servers outlive the command that starts them


@dataclass(frozen=True)
class Cloud:
    """A running local cloud."""

    process: processes.Process
    port: int

    @property
    def url(self) -> str:
        """The endpoint of all its services."""
        return f"http://{_HOST}:{self.port}"


def running(state: State) -> Cloud | None:
    """Return the cloud of this state if its process is alive and responds."""
    cloud = _recorded(state)
    return cloud if cloud and cloud.process in processes.table() and _answers(cloud) else None


def start(state: State, port: int | None = None) -> Cloud:
    """Start a new, empty cloud. End what is left of an earlier one first."""
    former = _recorded(state)
    stop(state)
    if port is not None:
        return _start(state, _free(port) or _refuse(port))
    candidates = [former.port if former else 0] + [0] * _PORT_TRIES
    for number, candidate in enumerate(candidates):
        try:
            return _start(state, _free(candidate) or free_port())
        except CommandError:  # another program was quicker to take the port
            if number == len(candidates) - 1:
                raise
    raise AssertionError


def stop(state: State) -> bool:
    """End the cloud with its functions and their children; return whether anything was running."""
    cloud = _recorded(state)
    heads = processes.marked(mark(state)) | ({cloud.process} if cloud else set())
    alive = bool(heads & processes.table().keys())
    processes.end(heads)
    for server in _SERVERS:
        server.poll()  # reaps those that ended
    state.stack.unlink(missing_ok=True)
    shutil.rmtree(state.scratch, ignore_errors=True)
    return alive


def mark(state: State) -> str:
    """Return the NAME=value that marks, in their environment, all processes that must end with this cloud."""
    return f"QUITTANCE_LOCAL_CLOUD={state.root}"


def free_port() -> int:
    """Return a port on 127.0.0.1 that is free at this moment."""
    return _free(0) or _refuse(0)


def client_env(cloud: Cloud) -> dict[str, str]:
    """The environment in which AWS tools talk to this cloud."""
    return {
        **venvs.tools_env(),
        **CREDENTIALS,
        "AWS_ENDPOINT_URL": cloud.url,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_DISABLE_HOST_PREFIX_INJECTION": "true",
        "SAM_CLI_POLL_DELAY": "0.2",  # the default is 5 s
    }


def _start(state: State, port: int) -> Cloud:
    state.scratch.mkdir(parents=True, exist_ok=True)
    log = state.log("cloud")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        server = subprocess.Popen(
            [venvs.python("cloud"), "-P", ROOT / "local" / "launch.py"],
            cwd=state.scratch,
            env=_server_env(state, port),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[int(lifeline)] if (lifeline := os.environ.get(LIFELINE)) else [],
        )
    _SERVERS.append(server)
    try:
        return _wait_until_ready(state, server, port)
    except BaseException:
        server.kill()
        server.wait()
        stop(state)
        raise


def _wait_until_ready(state: State, server: subprocess.Popen[bytes], port: int) -> Cloud:
    log, process = state.log("cloud"), processes.find(server.pid)
    if process is not None:
        cloud = Cloud(process, port)
        write(state.process, json.dumps({"state": str(state.root), "port": port, **asdict(process)}))
        deadline = time.monotonic() + _START_SECONDS
        while server.poll() is None and time.monotonic() < deadline:
            # Check the log too: if the port was just taken, another program responds on it.
            if _answers(cloud) and b"Running on http" in log.read_bytes():
                return cloud
            time.sleep(0.05)
    msg = f"the local cloud did not start on port {port}: see {relative(log)}"
    raise CommandError(msg)


def _server_env(state: State, port: int) -> dict[str, str]:
    name, _, value = mark(state).partition("=")
    return {
        name: value,
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(state.scratch),
        "TMPDIR": str(state.scratch),
        "SCRATCH_DIR": str(state.scratch),  # the functions' /tmp: private to this cloud, removed with it
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        **CREDENTIALS,
        "AUTH": "true",  # a function may do only what its role permits; CREDENTIALS are the account's
        "QUITTANCE_CALLS": str(state.calls),
        "BIND_HOST": _HOST,
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_ENABLED": "0",
        "DOCKER_HOST": "unix:///nonexistent",  # else ministack removes containers of other programs
        "PYTHONUNBUFFERED": "1",
        LIFELINE: os.environ.get(LIFELINE, ""),
    }


def _recorded(state: State) -> Cloud | None:
    """Return the cloud that was started last in this state, alive or not. A copied checkout has none yet."""
    try:
        record = json.loads(state.process.read_text("utf-8"))
        if record["state"] != str(state.root):
            return None
        return Cloud(processes.Process(record["pid"], record["began"]), record["port"])
    except (OSError, ValueError, KeyError):
        return None


def _answers(cloud: Cloud) -> bool:
    with suppress(OSError, ValueError):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{cloud.url}/_ministack/health", timeout=5) as answer:
            return bool(answer.status == 200)
    return False


def _free(port: int) -> int | None:
    """Return the port if it is free; for 0, any free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def _refuse(port: int) -> int:
    msg = f"port {port} on {_HOST} is taken: choose a free one (make up QUITTANCE_PORT=4700), or omit QUITTANCE_PORT"
    raise CommandError(msg)
