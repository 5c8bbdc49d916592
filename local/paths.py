"""Where this checkout keeps what it makes: all of it under .local/."""

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
    """One local cloud: its files. Tests have one of their own beside the person's."""

    root: Path

    @property
    def stack(self) -> Path:
        """What is deployed: read by the demo and the tests."""
        return self.root / "stack.json"

    @property
    def process(self) -> Path:
        """Which process serves it."""
        return self.root / "cloud.json"

    @property
    def scratch(self) -> Path:
        """The cloud's temporary files: gone when it ends."""
        return self.root / "scratch"

    @property
    def calls(self) -> Path:
        """What the functions asked of AWS since the cloud began: a line of JSON for each different call."""
        return self.root / "calls.jsonl"

    @property
    def key(self) -> Path:
        """The private key of the local issuer."""
        return self.root / "issuer.pem"

    def log(self, name: str) -> Path:
        """The log file of one tool."""
        return self.root / "logs" / f"{name}.log"


@dataclass(frozen=True)
class Stack:
    """What a client needs to know of a deployed stack."""

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
        """The stack as `make up` wrote it."""
        fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return cls(**fields)

    def write(self, path: Path) -> None:
        """Keep it for whoever comes next; never half of it."""
        write(path, json.dumps(asdict(self), indent=2) + "\n")


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as sink:
        sink.write(text)
    fresh.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One at a time, also among processes; freed by the system when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("  … waiting for the same work of another command", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
