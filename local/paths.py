"""The paths of all files that this checkout generates: they are under .local/."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / ".local"
VENVS = LOCAL / "venvs"
BUILDS = LOCAL / "sam-build"


@dataclass(frozen=True)
class State:
    """The files of one local cloud. Tests use a separate one."""

    root: Path

    @property
    def stack(self) -> Path:
        """The deployed stack's addresses and names, read by the demo and the tests."""
        return self.root / "stack.json"

    @property
    def process(self) -> Path:
        """The cloud's process and port."""
        return self.root / "cloud.json"

    @property
    def scratch(self) -> Path:
        """The cloud's temporary files, removed when it ends."""
        return self.root / "scratch"

    @property
    def calls(self) -> Path:
        """The functions' AWS calls since the cloud started: a line of JSON for each different call."""
        return self.root / "calls.jsonl"

    @property
    def key(self) -> Path:
        """The private key of the local issuer."""
        return self.root / "issuer.pem"

    def log(self, name: str) -> Path:
        """Return the log file of one tool."""
        return self.root / "logs" / f"{name}.log"


@dataclass(frozen=True)
class Stack:
    """The addresses and names of a deployed stack that clients need."""

    api_url: str
    endpoint_url: str
    region: str
    table: str
    registry_table: str
    buckets: dict[str, str]
    functions: dict[str, str]
    queues: dict[str, str]
    workflow: str
    platform_account: str
    issuer: str
    audience: str
    jwks_url: str
    issuer_key: str
    deployed: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file that `make up` wrote."""
        fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return cls(**fields)

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        write(path, json.dumps(asdict(self), indent=2) + "\n")


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as sink:
        sink.write(text)
    fresh.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that excludes other threads and processes. The system releases it if the holder is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("  … waiting for another command that does the same work", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
