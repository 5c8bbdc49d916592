"""Fixtures of the sandbox's tests: compiled agents, jobs for them, and one warm sandbox."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wasmtime

from quittance import limits
from quittance.run import Job
from quittance.sandbox import Sandbox, supervisor, wire
from quittance.sandbox.engine import compile_to_artefact

EPOCH_NS = 1_767_225_600_000_000_000


class Agents:
    """Compiles each agent once and makes jobs for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str | bytes, Job] = {}

    def job(self, wat: str | bytes, **fields: object) -> Job:
        """Make a job for an agent in WebAssembly text, or for a binary module."""
        if wat not in self._made:
            artefact = compile_to_artefact(wat if isinstance(wat, bytes) else bytes(wasmtime.wat2wasm(wat)))
            sha256 = hashlib.sha256(artefact).hexdigest()
            path = self._folder / sha256
            path.write_bytes(artefact)
            self._made[wat] = Job(str(path), sha256, b"", 10**9, 16 * limits.MIB, 60_000, EPOCH_NS, b"seed")
        return dataclasses.replace(self._made[wat], **fields)


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    return Agents(tmp_path_factory.mktemp("artefacts")).job


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as shared:
        yield shared


@pytest.fixture
def shared() -> Iterator[wire.SharedMemory]:
    descriptor = supervisor._shared_file()
    with contextlib.closing(wire.SharedMemory(descriptor)) as memory:
        os.close(descriptor)
        yield memory
