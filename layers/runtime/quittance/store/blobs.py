"""S3: uploads by strangers, binaries that we made of them, and outputs. Whatever is read back is checked by digest.

A failure of S3, of the connection, or of this machine's disk or memory is a PlatformUnavailableError: whoever holds a
budget settles it as the platform's fault. No other exception of the host leaves this module.
"""

import errno
import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError  # botocore passes some of them on from a body that breaks off, a TLS error say

from quittance.errors import PlatformUnavailableError
from quittance.ledger.escrow import StoredBytes
from quittance.limits import (
    ARTEFACT_BYTES_MAX,
    CACHED_ARTEFACT_BYTES_MAX,
    MIB,
    MODULE_BYTES_MAX,
    OUTPUT_INLINE_BYTES_MAX,
    UPLOAD_SECONDS_MAX,
)
from quittance.observability import logger
from quittance.proof.log import Tile
from quittance.run import Input

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CHUNK_BYTES: Final = MIB
_PART: Final = "part-"  # begins the names of files that are being downloaded
_ABSENT: Final = frozenset({"NoSuchKey", "NoSuchVersion", "404"})
_POSTED: Final = re.compile(r"uploads/(?P<agent_id>[A-Za-z0-9_-]{1,64})/(?P<number>[0-9]{1,9})")


class BlobMissingError(Exception):
    """The object that the registry or the ledger names is not in its bucket."""


class BlobTamperedError(Exception):
    """The object's bytes are not those that its digest names."""


@dataclass(frozen=True, slots=True)
class Posted:
    """An object in the uploads bucket: of which upload it is, and which of the objects that a form can be posted as.

    S3 takes the same form more than once, and cannot be told not to: each post is another version of the same key.
    """

    agent_id: str
    number: int
    version: str = ""

    @property
    def key(self) -> str:
        """The object's key."""
        return f"uploads/{self.agent_id}/{self.number}"

    @classmethod
    def of(cls, key: str, version: str) -> "Posted | None":
        """The object of a key and a version; None if no form of ours made it."""
        match = _POSTED.fullmatch(key)
        return cls(match["agent_id"], int(match["number"]), version) if match else None


class Uploads:
    """The bucket into which authors post modules; nothing in it is trusted."""

    def __init__(self, client: "S3Client", *, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def presigned_post(self, agent_id: str, number: int) -> tuple[str, dict[str, str]]:
        """URL and form fields with which anyone who holds them can post one module of this upload, for 15 minutes."""
        post = self._client.generate_presigned_post(
            self._bucket,
            Posted(agent_id, number).key,
            Conditions=[["content-length-range", 0, MODULE_BYTES_MAX]],
            ExpiresIn=UPLOAD_SECONDS_MAX,
        )
        return post["url"], post["fields"]

    def read(self, posted: "Posted") -> bytes:
        """The posted bytes, one more than the limit at most. Raises BlobMissingError, PlatformUnavailableError."""
        named = {"Bucket": self._bucket, "Key": posted.key}
        if posted.version:
            named["VersionId"] = posted.version
        with _typed_faults(), closing(self._client.get_object(**named)["Body"]) as body:  # type: ignore[arg-type]  # a TypedDict
            return body.read(MODULE_BYTES_MAX + 1)


class Binaries:
    """The bucket of modules and artefacts, which only the publisher writes; and this environment's copies in /tmp."""

    def __init__(self, client: "S3Client", *, bucket: str, scratch_dir: Path) -> None:
        self._client = client
        self._bucket = bucket
        self._cache = scratch_dir / "artefacts"

    def keep_module(self, sha256: str, data: bytes) -> None:
        """Stores a module that was accepted. Raises PlatformUnavailableError."""
        _keep(self._client, self._bucket, _module_key(sha256), data)

    def keep_artefact(self, key: str, data: bytes) -> None:
        """Stores an artefact. Raises PlatformUnavailableError."""
        _keep(self._client, self._bucket, _artefact_key(key), data)

    def load_module(self, sha256: str) -> bytes:
        """A published module. Raises BlobMissingError, BlobTamperedError, PlatformUnavailableError."""
        return _load(self._client, self._bucket, _module_key(sha256), sha256)

    @contextmanager
    def artefact(self, key: str, sha256: str) -> Iterator[Path]:
        """Where the artefact lies on this machine, fetched if it is not here yet; it stays there while the block runs.

        Whoever loads it must compare its digest. Raises BlobMissingError, BlobTamperedError, PlatformUnavailableError.
        """
        path = self._cache / sha256
        with _typed_faults():
            copy = _held(path) or self._fetch(key, sha256, path)
        with copy:
            yield path

    def check(self) -> None:
        """Raises PlatformUnavailableError unless the bucket answers a read."""
        _check(self._client, self._bucket)

    def forget(self, sha256: str) -> None:
        """Drops this machine's copy of an artefact, so that the next run fetches it again.

        If the disk refuses, the copy stays until the next attempt: the run that found it bad has its outcome anyway.
        """
        try:
            (self._cache / sha256).unlink(missing_ok=True)
        except OSError:
            logger.exception("artefact not dropped", sha256=sha256)

    def _fetch(self, key: str, sha256: str, path: Path) -> IO[bytes]:
        """Downloads an artefact to `path`, which appears there whole or not at all; returns the file, held."""
        answer = self._client.get_object(Bucket=self._bucket, Key=_artefact_key(key))
        size = answer["ContentLength"]
        with closing(answer["Body"]) as body:
            if size > ARTEFACT_BYTES_MAX:
                raise BlobTamperedError(key)
            self._cache.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            with _new_part(self._cache, size) as part:
                if _download(body, part, size) != sha256:
                    raise BlobTamperedError(key)
                with suppress(FileExistsError):  # another process may have fetched it meanwhile
                    path.hardlink_to(part.name)  # never replaces a file that somebody holds
                copy = _held(path)
        if copy is None:
            raise PlatformUnavailableError
        return copy

    def _make_room(self, size: int) -> None:
        """Deletes the copies that were not used for the longest time, until `size` more bytes fit.

        What is held by a run or a download stays. Raises OSError if the rest is not enough.
        """
        files = sorted(_listed(self._cache), key=lambda file: (not file[1].name.startswith(_PART), file[0].st_mtime))
        total = size + sum(stat.st_size for stat, _ in files)
        for stat, path in files:
            if total <= CACHED_ARTEFACT_BYTES_MAX and size <= _free_bytes(self._cache):
                return
            if _dropped_unless_held(path):
                total -= stat.st_size
        if total > CACHED_ARTEFACT_BYTES_MAX:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Outputs:
    """What agents wrote: inline in the escrow while small, else in the outputs bucket, always named by digest.

    The bucket also holds what they are given, where it is too large for a message of the queue.
    """

    def __init__(self, client: "S3Client", *, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def keep(self, data: bytes) -> StoredBytes:
        """Stores bytes before the write that settles refers to them. Raises PlatformUnavailableError."""
        sha256 = hashlib.sha256(data).hexdigest()
        if len(data) <= OUTPUT_INLINE_BYTES_MAX:
            return StoredBytes(sha256, len(data), data)
        _keep(self._client, self._bucket, _output_key(sha256), data)
        return StoredBytes(sha256, len(data), None)

    def load(self, stored: StoredBytes) -> bytes:
        """The bytes. Raises BlobMissingError, BlobTamperedError, PlatformUnavailableError."""
        if stored.inline is not None:
            return stored.inline
        return _load(self._client, self._bucket, _output_key(stored.sha256), stored.sha256)

    def keep_input(self, stdin: Input) -> None:
        """Stores an input that is too large for a message. Raises PlatformUnavailableError."""
        _keep(self._client, self._bucket, _input_key(stdin.sha256), stdin.data)

    def load_input(self, sha256: str) -> Input:
        """An input that was stored. Raises BlobMissingError, BlobTamperedError, PlatformUnavailableError."""
        return Input(_load(self._client, self._bucket, _input_key(sha256), sha256), sha256)

    def check(self) -> None:
        """Raises PlatformUnavailableError unless the bucket answers a read."""
        _check(self._client, self._bucket)


class Tiles:
    """The log's bucket: tiles and checkpoints, written by the sweep, never changed, never deleted."""

    def __init__(self, client: "S3Client", *, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def keep(self, tile: Tile, hashes: bytes) -> None:
        """Stores a tile. Raises PlatformUnavailableError."""
        _keep(self._client, self._bucket, tile.path, hashes)

    def read(self, tile: Tile) -> bytes:
        """A tile. Raises BlobMissingError, PlatformUnavailableError."""
        return _read(self._client, self._bucket, tile.path)

    def keep_checkpoint(self, size: int, checkpoint: str) -> None:
        """Stores the checkpoint of a size, and makes it the one that is read first. Raises PlatformUnavailableError."""
        for key in (f"checkpoint/{size}", "checkpoint"):
            _keep(self._client, self._bucket, key, checkpoint.encode())

    def checkpoint(self, size: int | None = None) -> str:
        """The checkpoint of a size, or the newest. Raises BlobMissingError, PlatformUnavailableError."""
        return _read(self._client, self._bucket, "checkpoint" if size is None else f"checkpoint/{size}").decode()


@contextmanager
def _typed_faults() -> Iterator[None]:
    """Turns what S3, the connection and this machine's disk and memory fail with into the platform's own errors."""
    try:
        yield
    except ClientError as exc:
        if exc.response["Error"]["Code"] in _ABSENT:
            raise BlobMissingError from exc
        logger.warning("storage failed", reason=repr(exc))
        raise PlatformUnavailableError from exc
    except (BotoCoreError, HTTPError, OSError, MemoryError) as exc:
        logger.warning("storage failed", reason=repr(exc))
        raise PlatformUnavailableError from exc


def _keep(client: "S3Client", bucket: str, key: str, data: bytes) -> None:
    with _typed_faults():
        client.put_object(Bucket=bucket, Key=key, Body=data)


def _read(client: "S3Client", bucket: str, key: str) -> bytes:
    with _typed_faults(), closing(client.get_object(Bucket=bucket, Key=key)["Body"]) as body:
        return body.read()


def _load(client: "S3Client", bucket: str, key: str, sha256: str) -> bytes:
    data = _read(client, bucket, key)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BlobTamperedError(key)
    return data


def _check(client: "S3Client", bucket: str) -> None:
    with suppress(BlobMissingError):
        _read(client, bucket, "health")


def _module_key(sha256: str) -> str:
    return f"modules/{sha256}.wasm"


def _artefact_key(key: str) -> str:
    return f"artefacts/{key}"


def _output_key(sha256: str) -> str:
    return f"outputs/{sha256}"


def _input_key(sha256: str) -> str:
    return f"inputs/{sha256}"


# This machine's copies. A lock tells who uses a file: it ends with its process, however that ends.


def _held(path: Path) -> IO[bytes] | None:
    """The open file, not to be deleted before it is closed; None if it is not there."""
    with ExitStack() as on_failure:
        try:
            file = on_failure.enter_context(path.open("rb"))
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):  # the latter while it is being deleted
            return None
        if not os.fstat(file.fileno()).st_nlink:
            return None
        with suppress(OSError):  # the mark of its last use orders deletions, no more: a disk may be read-only
            os.utime(file.fileno())
        on_failure.pop_all()
        return file


@contextmanager
def _new_part(folder: Path, size: int) -> Iterator[IO[bytes]]:
    """A new file with room for a download, held. Its name is gone in the end: a good file has got another by then."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=_PART) as part:
        fcntl.flock(part, fcntl.LOCK_SH)
        if size:
            os.posix_fallocate(part.fileno(), 0, size)  # a full disk fails here, before the download
        yield part


def _dropped_unless_held(path: Path) -> bool:
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if os.fstat(file.fileno()).st_nlink:
            path.unlink()
    return True


def _listed(folder: Path) -> list[tuple[os.stat_result, Path]]:
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process deletes, too
            found.append((path.stat(), path))
    return found


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _download(body: Any, part: IO[bytes], size: int) -> str:  # noqa: ANN401 - botocore's body has no public type
    """Writes a body of `size` bytes to a file; returns its digest."""
    digest = hashlib.sha256()
    for chunk in body.iter_chunks(_CHUNK_BYTES):
        digest.update(chunk)
        part.write(chunk)
    part.flush()
    return digest.hexdigest() if part.tell() == size else ""
