"""S3: uploads from strangers, the binaries compiled from them, and outputs. What is read back is checked by its digest.

A failure of S3, the connection, the local disk or the local memory raises PlatformUnavailableError, so that a task that
holds a budget is settled as the platform's fault. No other exception of the host leaves this module.
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
from urllib3.exceptions import HTTPError  # botocore lets some escape while a body is read, TLS errors for example

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
_PART: Final = "part-"  # prefix of the names of files that are being downloaded
_ABSENT: Final = frozenset({"NoSuchKey", "NoSuchVersion", "404", "InvalidRange"})
_POSTED: Final = re.compile(r"uploads/(?P<agent_id>[A-Za-z0-9_-]{1,64})/(?P<number>[0-9]{1,9})")


class BlobMissingError(Exception):
    """The object named in the registry or the ledger is not in its bucket."""


class BlobTamperedError(Exception):
    """The object's bytes do not match its digest."""


@dataclass(frozen=True, slots=True)
class Posted:
    """An object in the uploads bucket: the agent and the number of its upload, and its version.

    S3 accepts the same form more than once, and no policy can prevent it: each post adds a version of the same key.
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
        """The object with a key and a version; None if the key is not that of an upload form."""
        match = _POSTED.fullmatch(key)
        return cls(match["agent_id"], int(match["number"]), version) if match else None


class Uploads:
    """The bucket to which authors post modules. Nothing in it is trusted."""

    def __init__(self, client: "S3Client", *, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def presigned_post(self, agent_id: str, number: int) -> tuple[str, dict[str, str]]:
        """URL and form fields that allow any holder to post the module of this upload, for 15 minutes."""
        post = self._client.generate_presigned_post(
            self._bucket,
            Posted(agent_id, number).key,
            Conditions=[["content-length-range", 0, MODULE_BYTES_MAX]],
            ExpiresIn=UPLOAD_SECONDS_MAX,
        )
        return post["url"], post["fields"]

    def read(self, posted: "Posted") -> bytes:
        """The posted bytes, at most one more than the limit. Raises BlobMissingError, PlatformUnavailableError."""
        named = {"Bucket": self._bucket, "Key": posted.key}
        if posted.version:
            named["VersionId"] = posted.version
        with _typed_faults(), closing(self._client.get_object(**named)["Body"]) as body:  # type: ignore[arg-type]  # a TypedDict
            return body.read(MODULE_BYTES_MAX + 1)


class Binaries:
    """The bucket of modules and artefacts, which only the publisher writes, and this environment's copies in /tmp."""

    def __init__(self, client: "S3Client", *, bucket: str, scratch_dir: Path) -> None:
        self._client = client
        self._bucket = bucket
        self._cache = scratch_dir / "artefacts"

    def keep_module(self, sha256: str, data: bytes) -> None:
        """Stores an accepted module. Raises PlatformUnavailableError."""
        keep_object(self._client, self._bucket, _module_key(sha256), data)

    def keep_artefact(self, key: str, data: bytes) -> None:
        """Stores an artefact. Raises PlatformUnavailableError."""
        keep_object(self._client, self._bucket, _artefact_key(key), data)

    def load_module(self, sha256: str) -> bytes:
        """A published module. Raises BlobMissingError, BlobTamperedError, PlatformUnavailableError."""
        return _load(self._client, self._bucket, _module_key(sha256), sha256)

    @contextmanager
    def artefact(self, key: str, sha256: str) -> Iterator[Path]:
        """The path of the local copy of an artefact, downloaded if missing. The copy is kept while the block runs.

        The caller must check the digest before loading it. Raises BlobMissingError, BlobTamperedError,
        PlatformUnavailableError.
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
        """Deletes the local copy of an artefact, so that the next run downloads it again.

        If the disk fails, the copy stays until the next attempt: the run that found it damaged has its outcome already.
        """
        try:
            (self._cache / sha256).unlink(missing_ok=True)
        except OSError:
            logger.exception("artefact not dropped", sha256=sha256)

    def _fetch(self, key: str, sha256: str, path: Path) -> IO[bytes]:
        """Downloads an artefact to `path` atomically; returns the open file with a shared lock."""
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
                with suppress(FileExistsError):  # another process may have downloaded it meanwhile
                    path.hardlink_to(part.name)  # never replaces a file that another process has locked
                copy = _held(path)
        if copy is None:
            raise PlatformUnavailableError
        return copy

    def _make_room(self, size: int) -> None:
        """Deletes the least recently used copies until `size` more bytes fit.

        Files locked by a run or a download are kept. Raises OSError if too little can be deleted.
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
    """Outputs of agents: inline in the escrow if small, otherwise in the outputs bucket; always identified by digest.

    The bucket also holds inputs that are too large for a message of the queue.
    """

    def __init__(self, client: "S3Client", *, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def keep(self, data: bytes) -> StoredBytes:
        """Stores bytes; call it before the settling write that refers to them. Raises PlatformUnavailableError."""
        sha256 = hashlib.sha256(data).hexdigest()
        if len(data) <= OUTPUT_INLINE_BYTES_MAX:
            return StoredBytes(sha256, len(data), data)
        keep_object(self._client, self._bucket, _output_key(sha256), data)
        return StoredBytes(sha256, len(data), None)

    def load(self, stored: StoredBytes) -> bytes:
        """The bytes. Raises BlobMissingError, BlobTamperedError, PlatformUnavailableError."""
        if stored.inline is not None:
            return stored.inline
        return _load(self._client, self._bucket, _output_key(stored.sha256), stored.sha256)

    def keep_input(self, stdin: Input) -> None:
        """Stores an input that is too large for a message. Raises PlatformUnavailableError."""
        keep_object(self._client, self._bucket, _input_key(stdin.sha256), stdin.data)

    def load_input(self, sha256: str) -> Input:
        """An input that was stored. Raises BlobMissingError, BlobTamperedError, PlatformUnavailableError."""
        return Input(_load(self._client, self._bucket, _input_key(sha256), sha256), sha256)

    def check(self) -> None:
        """Raises PlatformUnavailableError unless the bucket answers a read."""
        _check(self._client, self._bucket)


class Tiles:
    """The log's bucket: tiles and checkpoints. The sweep writes them; they are never changed or deleted."""

    def __init__(self, client: "S3Client", *, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def keep(self, tile: Tile, hashes: bytes) -> None:
        """Stores a tile. Raises PlatformUnavailableError."""
        keep_object(self._client, self._bucket, tile.path, hashes)

    def read(self, tile: Tile) -> bytes:
        """A tile. Raises BlobMissingError, PlatformUnavailableError."""
        return read_object(self._client, self._bucket, tile.path)

    def keep_checkpoint(self, size: int, checkpoint: str) -> None:
        """Stores the checkpoint of a size, also as the newest one. Raises PlatformUnavailableError."""
        for key in (f"checkpoint/{size}", "checkpoint"):
            keep_object(self._client, self._bucket, key, checkpoint.encode())

    def checkpoint(self, size: int | None = None) -> str:
        """The checkpoint of a size, or the newest. Raises BlobMissingError, PlatformUnavailableError."""
        return read_object(self._client, self._bucket, "checkpoint" if size is None else f"checkpoint/{size}").decode()


class Bundles:
    """The bucket of archived escrows (see archive.py). Objects in it are never changed."""

    def __init__(self, client: "S3Client", *, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def keep(self, first: int, data: bytes) -> None:
        """Stores a bundle unless there is one for this position. Raises PlatformUnavailableError."""
        with _typed_faults():
            try:
                self._client.put_object(Bucket=self._bucket, Key=_bundle_key(first), Body=data, IfNoneMatch="*")
            except ClientError as exc:
                if exc.response["Error"]["Code"] != "PreconditionFailed":
                    raise

    def read(self, first: int, offset: int = 0, length: int | None = None) -> bytes:
        """A bundle, or `length` of its bytes. Raises BlobMissingError, PlatformUnavailableError."""
        return read_object(self._client, self._bucket, _bundle_key(first), first=offset, size=length)


@contextmanager
def _typed_faults() -> Iterator[None]:
    """Maps failures of S3, the connection, the local disk and the local memory to the platform's error classes."""
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


def keep_object(client: "S3Client", bucket: str, key: str, data: bytes) -> None:
    """Stores an object. Raises PlatformUnavailableError."""
    with _typed_faults():
        client.put_object(Bucket=bucket, Key=key, Body=data)


def read_object(client: "S3Client", bucket: str, key: str, *, first: int = 0, size: int | None = None) -> bytes:
    """An object, or `size` of its bytes from one on. Raises BlobMissingError, PlatformUnavailableError."""
    named: dict[str, Any] = {"Bucket": bucket, "Key": key}
    if size is not None:
        named["Range"] = f"bytes={first}-{first + size - 1}"
    with _typed_faults(), closing(client.get_object(**named)["Body"]) as body:
        return body.read()


def _load(client: "S3Client", bucket: str, key: str, sha256: str) -> bytes:
    data = read_object(client, bucket, key)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BlobTamperedError(key)
    return data


def _check(client: "S3Client", bucket: str) -> None:
    with suppress(BlobMissingError):
        read_object(client, bucket, "health")


def _module_key(sha256: str) -> str:
    return f"modules/{sha256}.wasm"


def _artefact_key(key: str) -> str:
    return f"artefacts/{key}"


def _output_key(sha256: str) -> str:
    return f"outputs/{sha256}"


def _input_key(sha256: str) -> str:
    return f"inputs/{sha256}"


def _bundle_key(first: int) -> str:
    return f"escrows/{first:016}.jsonl"


# Local copies. A shared lock marks a file as in use; the kernel releases it when the process ends, even if killed.


def _held(path: Path) -> IO[bytes] | None:
    """The open file with a shared lock, which prevents its deletion until it is closed; None if it does not exist."""
    with ExitStack() as on_failure:
        try:
            file = on_failure.enter_context(path.open("rb"))
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):  # BlockingIOError: another process is deleting it
            return None
        if not os.fstat(file.fileno()).st_nlink:
            return None
        with suppress(OSError):  # the time of last use only orders deletions, and the disk may be read-only
            os.utime(file.fileno())
        on_failure.pop_all()
        return file


@contextmanager
def _new_part(folder: Path, size: int) -> Iterator[IO[bytes]]:
    """A new locked file with space for a download. Its name is deleted at the end; a good file has another then."""
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
        with suppress(FileNotFoundError):  # another process may delete it
            found.append((path.stat(), path))
    return found


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _download(body: Any, part: IO[bytes], size: int) -> str:  # noqa: ANN401 - botocore's body has no public type
    """Writes a body to a file; returns its digest, or an empty string if it does not have `size` bytes."""
    digest = hashlib.sha256()
    for chunk in body.iter_chunks(_CHUNK_BYTES):
        digest.update(chunk)
        part.write(chunk)
    part.flush()
    return digest.hexdigest() if part.tell() == size else ""
