"""The worker's cache of loaded programs."""

import dataclasses
import hashlib

import pytest

from quittance import limits
from quittance.sandbox.worker import Programs
from tests.sandbox.wat import TRIVIAL


class Loader:
    """A fake executor: loads anything and records the sizes."""

    def __init__(self) -> None:
        self.loads: list[int] = []

    def load(self, artefact: bytes) -> bytes:
        self.loads.append(len(artefact))
        return artefact


@pytest.fixture
def job_of(make, tmp_path):
    def job(size: int, mark: int = 0):
        data = mark.to_bytes(4, "little") + bytes(size - 4)
        sha256 = hashlib.sha256(data).hexdigest()
        path = tmp_path / sha256
        path.write_bytes(data)
        return dataclasses.replace(make(TRIVIAL), artefact_path=str(path), artefact_sha256=sha256)

    return job


def test_cache_evicts_the_least_recently_used_by_bytes(job_of, monkeypatch):
    monkeypatch.setattr(limits, "WORKER_MODULE_BYTES_MAX", 300)
    loader = Loader()
    programs = Programs(loader)
    first, second, third = job_of(100), job_of(101), job_of(99)
    for job in (first, second, third, first):
        programs.get(job)
    assert loader.loads == [100, 101, 99], "at the limit all three must stay in the cache"
    programs.get(job_of(50))
    programs.get(first)
    programs.get(second)
    assert loader.loads == [100, 101, 99, 50, 101], "the least recently used must be evicted"


def test_cache_holds_a_limited_number_of_programs(job_of, monkeypatch):
    monkeypatch.setattr(limits, "WORKER_MODULES_MAX", 2)
    loader = Loader()
    programs = Programs(loader)
    for mark in (1, 2, 1, 3, 1, 2):
        programs.get(job_of(10, mark))
    assert len(loader.loads) == 4


def test_program_larger_than_the_cache_is_kept_alone(job_of, monkeypatch):
    monkeypatch.setattr(limits, "WORKER_MODULE_BYTES_MAX", 100)
    loader = Loader()
    programs = Programs(loader)
    for size in (50, 500, 500, 50):
        programs.get(job_of(size))
    assert loader.loads == [50, 500, 50]
