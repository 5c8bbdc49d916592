"""Local copies of artefacts: space before a download, no deletion while in use, no partial files."""

import os
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from quittance.errors import PlatformUnavailableError
from quittance.limits import ARTEFACT_BYTES_MAX, CACHED_ARTEFACT_BYTES_MAX, MIB
from quittance.store import blobs
from quittance.store.blobs import BlobTamperedError
from tests.support import Cloud

ROOM = 1_000


@pytest.fixture
def small(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A platform whose local copies may take ROOM bytes."""
    monkeypatch.setattr(blobs, "CACHED_ARTEFACT_BYTES_MAX", ROOM)
    return cloud


def keep(cloud: Cloud, name: str, size: int) -> tuple[str, str]:
    """Stores an artefact in the bucket; returns its key and its digest."""
    data = (name * size)[:size].encode()
    cloud.binaries.keep_artefact(name, data)
    return name, sha256(data).hexdigest()


def use(cloud: Cloud, artefact: tuple[str, str]) -> Path:
    with cloud.binaries.artefact(*artefact) as path:
        assert sha256(path.read_bytes()).hexdigest() == artefact[1]
        return path


def aged(path: Path, age_s: int) -> Path:
    os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    return path


def test_the_cache_has_room_for_two_largest_artefacts() -> None:
    assert 2 * ARTEFACT_BYTES_MAX <= CACHED_ARTEFACT_BYTES_MAX < 512 * MIB


def test_an_artefact_is_downloaded_once(cloud: Cloud) -> None:
    artefact = keep(cloud, "a", 10)
    calls: Counter[str] = Counter()
    cloud._s3.meta.events.register("before-call", lambda model, **_: calls.update([model.name]))
    assert use(cloud, artefact) == use(cloud, artefact)
    assert calls == {"GetObject": 1}


@pytest.mark.parametrize(("size", "kept"), [(400, True), (401, False)])
def test_the_least_recently_used_copy_is_deleted(small: Cloud, size: int, kept: bool) -> None:
    first, second = keep(small, "a", 300), keep(small, "b", 300)
    old, older = aged(use(small, first), 100), aged(use(small, second), 200)
    aged(use(small, second), 50)  # used again, so the first is the older one now
    new = use(small, keep(small, "c", size))
    assert (old.exists(), older.exists(), new.exists()) == (kept, True, True)


def test_space_is_freed_before_the_download(small: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small.settings.scratch_dir / "artefacts"
    for name in "abc":
        aged(use(small, keep(small, name, 300)), ord(name))
    seen: list[int] = []
    download = blobs._download

    def watch(*args: Any) -> str:
        seen.append(sum(path.stat().st_size for path in folder.iterdir()))
        return download(*args)

    monkeypatch.setattr(blobs, "_download", watch)
    use(small, keep(small, "d", 600))
    assert seen == [900], "one copy, and the reserved space of the new one"


def test_copies_are_deleted_when_the_disk_is_full(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [aged(use(cloud, keep(cloud, name, 300)), ord(name)) for name in "abc"]
    others = 10**6  # bytes of the disk that other programs use
    free = lambda _: 10**6 + 1_000 - others - sum(copy.stat().st_size for copy in copies if copy.exists())  # noqa: E731
    monkeypatch.setattr(blobs, "_free_bytes", free)
    use(cloud, keep(cloud, "d", 500))
    assert [copy.exists() for copy in copies] == [True, False, False]


def test_a_copy_in_use_is_never_deleted(small: Cloud) -> None:
    used, idle, new = (keep(small, name, 500) for name in "abc")
    with small.binaries.artefact(*used) as path, small.binaries.artefact(*used):
        aged(path, 1_000)
        aged(use(small, idle), 1)
        use(small, new)
        assert path.exists()
    aged(path, 1_000)
    use(small, idle)
    assert not path.exists(), "a copy that is no longer in use can be deleted"


def test_no_space_beside_copies_in_use_is_a_platform_fault(small: Cloud) -> None:
    used, large = keep(small, "a", 600), keep(small, "b", 401)
    with small.binaries.artefact(*used) as path:
        with pytest.raises(PlatformUnavailableError), small.binaries.artefact(*large):
            pass
        assert path.exists()
    use(small, large)


def test_a_copy_in_use_by_another_process_is_not_deleted(small: Cloud) -> None:
    used, new = keep(small, "a", 500), keep(small, "b", 600)
    path = aged(use(small, used), 1_000)
    holder = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", holder, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(PlatformUnavailableError):
            use(small, new)
        other.kill()
    use(small, new)
    assert not path.exists(), "the kernel releases a lock when its process ends"


def test_remains_of_killed_downloads_are_deleted_first(small: Cloud) -> None:
    copy = aged(use(small, keep(small, "a", 300)), 1_000)
    (left := copy.parent / "part-left").write_bytes(bytes(600))
    use(small, keep(small, "b", 300))
    assert (left.exists(), copy.exists()) == (False, True)


def test_a_copy_is_whole_or_absent(cloud: Cloud) -> None:
    name, digest = keep(cloud, "a", 100)
    folder = cloud.settings.scratch_dir / "artefacts"
    for data in (b"", b"a" * 99, b"b" * 100, b"a" * 101):
        cloud._s3.put_object(Bucket=cloud.settings.binaries_bucket, Key=f"artefacts/{name}", Body=data)
        with pytest.raises(BlobTamperedError), cloud.binaries.artefact(name, digest):
            pass
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("size", "fits"), [(50, True), (51, False)])
def test_an_artefact_over_its_limit_is_not_downloaded(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, size: int, fits: bool
) -> None:
    monkeypatch.setattr(blobs, "ARTEFACT_BYTES_MAX", 50)
    artefact = keep(cloud, "a", size)
    if fits:
        assert use(cloud, artefact).stat().st_size == size
        return
    monkeypatch.setattr(blobs, "_download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(BlobTamperedError), cloud.binaries.artefact(*artefact):
        pass


def test_two_downloads_of_one_artefact_share_a_copy(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    artefact = keep(cloud, "a", 100)
    download, raced = blobs._download, []

    def overtaken(*args: Any) -> str:
        monkeypatch.setattr(blobs, "_download", download)
        raced.append(use(cloud, artefact).stat().st_ino)
        return download(*args)

    monkeypatch.setattr(blobs, "_download", overtaken)
    assert [use(cloud, artefact).stat().st_ino] == raced
    assert [path.name for path in (cloud.settings.scratch_dir / "artefacts").iterdir()] == [artefact[1]]


def test_copies_on_a_read_only_disk_are_used(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    artefact = keep(cloud, "a", 100)
    use(cloud, artefact)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(blobs.os, "utime", refuse)
    assert use(cloud, artefact).exists()
