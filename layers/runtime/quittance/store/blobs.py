"""S3: uploads by strangers, binaries that we made of them, and outputs. Whatever is read back is checked by digest."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from quittance.errors import PlatformUnavailableError
from quittance.escrow import StoredBytes
from quittance.limits import ARTEFACT_BYTES_MAX, MIB, MODULE_BYTES_MAX, OUTPUT_INLINE_BYTES_MAX, UPLOAD_SECONDS_MAX
from quittance.log import Tile

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CHUNK_BYTES: Final = MIB
_CACHED_ARTEFACT_BYTES_MAX: Final = 400 * MIB  # of the 512 MiB that an environment's /tmp has
_ABSENT: Final = frozenset({"NoSuchKey", "NoSuchVersion", "404"})


class BlobMissingError(Exception):
    """The object that the registry or the ledger names is not in its bucket."""


class BlobTamperedError(Exception):
    """The object's bytes are not those that its digest names."""


class Uploads:
    """The bucket into which authors post modules; nothing in it is trusted."""

    def __init__(self, client: "S3Client", *, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def presigned_post(self, agent_id: str, number: int) -> tuple[str, dict[str, str]]:
        """URL and form fields with which anyone who holds them can post one module of this upload, for 15 minutes."""
        post = self._client.generate_presigned_post(
            self._bucket,
            f"uploads/{agent_id}/{number}",
            Conditions=[["content-length-range", 0, MODULE_BYTES_MAX]],
            ExpiresIn=UPLOAD_SECONDS_MAX,
        )
        return post["url"], post["fields"]

    def read(self, key: str) -> bytes:
        """The posted bytes, one more than the limit at most. Raises BlobMissingError, PlatformUnavailableError."""
        try:
            body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
            return body.read(MODULE_BYTES_MAX + 1)
        except (ClientError, BotoCoreError) as exc:
            raise _fault(exc) from exc


class Binaries:
    """The bucket of modules and artefacts, which only the publisher writes; and this environment's copies in /tmp."""

    def __init__(self, client: "S3Client", *, bucket: str, scratch_dir: Path) -> None:
        self._client = client
        self._bucket = bucket
        self._cache = scratch_dir / "artefacts"

    def keep_module(self, sha256: str, data: bytes) -> None:
        """Stores a module that was accepted. Raises PlatformUnavailableError."""
        self._keep(_module_key(sha256), data)

    def keep_artefact(self, key: str, data: bytes) -> None:
        """Stores an artefact. Raises PlatformUnavailableError."""
        self._keep(_artefact_key(key), data)

    def _keep(self, key: str, data: bytes) -> None:
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data)
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc

    def load_module(self, sha256: str) -> bytes:
        """A published module. Raises BlobMissingError, BlobTamperedError, PlatformUnavailableError."""
        return _load(self._client, self._bucket, _module_key(sha256), sha256)

    def local_artefact(self, key: str, sha256: str) -> Path:
        """Where the artefact lies on this machine, fetched if it is not here yet.

        Raises BlobMissingError, BlobTamperedError, PlatformUnavailableError.
        """
        path = self._cache / sha256
        if path.exists():
            os.utime(path)
            return path
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._cache, prefix="part-", delete=False) as part:
            try:
                self._download(key, sha256, part)
                self._make_room(part.tell())
                Path(part.name).replace(path)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise
        return path

    def check(self) -> None:
        """Raises PlatformUnavailableError unless the bucket answers a read."""
        _check(self._client, self._bucket)

    def forget(self, sha256: str) -> None:
        """Drops this machine's copy of an artefact, so that the next run fetches it again."""
        (self._cache / sha256).unlink(missing_ok=True)

    def _download(self, key: str, sha256: str, part: Any) -> None:  # noqa: ANN401 - tempfile's wrapper has no public type
        digest, size = hashlib.sha256(), 0
        try:
            body = self._client.get_object(Bucket=self._bucket, Key=_artefact_key(key))["Body"]
            for chunk in body.iter_chunks(_CHUNK_BYTES):
                size += len(chunk)
                if size > ARTEFACT_BYTES_MAX:
                    raise BlobTamperedError(key)
                digest.update(chunk)
                part.write(chunk)
        except (ClientError, BotoCoreError) as exc:
            raise _fault(exc) from exc
        if digest.hexdigest() != sha256:
            raise BlobTamperedError(key)

    def _make_room(self, size: int) -> None:
        """Deletes the copies that were not used for the longest time, until `size` more bytes fit."""
        copies = sorted(
            ((path.stat(), path) for path in self._cache.iterdir() if not path.name.startswith("part-")),
            key=lambda copy: copy[0].st_mtime,
        )
        total = size + sum(stat.st_size for stat, _ in copies)
        for stat, path in copies:
            if total <= _CACHED_ARTEFACT_BYTES_MAX:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size


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
        try:
            self._client.put_object(Bucket=self._bucket, Key=_output_key(sha256), Body=data)
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc
        return StoredBytes(sha256, len(data), None)

    def load(self, stored: StoredBytes) -> bytes:
        """The bytes. Raises BlobMissingError, BlobTamperedError, PlatformUnavailableError."""
        if stored.inline is not None:
            return stored.inline
        return _load(self._client, self._bucket, _output_key(stored.sha256), stored.sha256)

    def keep_input(self, data: bytes) -> str:
        """Stores an input that is too large for a message; returns its digest. Raises PlatformUnavailableError."""
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            self._client.put_object(Bucket=self._bucket, Key=_input_key(sha256), Body=data)
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc
        return sha256

    def load_input(self, sha256: str) -> bytes:
        """An input that was stored. Raises BlobMissingError, BlobTamperedError, PlatformUnavailableError."""
        return _load(self._client, self._bucket, _input_key(sha256), sha256)

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
        self._keep(tile.path, hashes)

    def read(self, tile: Tile) -> bytes:
        """A tile. Raises BlobMissingError, PlatformUnavailableError."""
        return self._read(tile.path)

    def keep_checkpoint(self, size: int, checkpoint: str) -> None:
        """Stores the checkpoint of a size, and makes it the one that is read first. Raises PlatformUnavailableError."""
        self._keep(f"checkpoint/{size}", checkpoint.encode())
        self._keep("checkpoint", checkpoint.encode())

    def checkpoint(self, size: int | None = None) -> str:
        """The checkpoint of a size, or the newest. Raises BlobMissingError, PlatformUnavailableError."""
        return self._read("checkpoint" if size is None else f"checkpoint/{size}").decode()

    def _keep(self, key: str, data: bytes) -> None:
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data)
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc

    def _read(self, key: str) -> bytes:
        try:
            return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except (ClientError, BotoCoreError) as exc:
            raise _fault(exc) from exc


def _module_key(sha256: str) -> str:
    return f"modules/{sha256}.wasm"


def _artefact_key(key: str) -> str:
    return f"artefacts/{key}"


def _load(client: "S3Client", bucket: str, key: str, sha256: str) -> bytes:
    try:
        data = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except (ClientError, BotoCoreError) as exc:
        raise _fault(exc) from exc
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BlobTamperedError(key)
    return data


def _check(client: "S3Client", bucket: str) -> None:
    try:
        client.get_object(Bucket=bucket, Key="health")
    except (ClientError, BotoCoreError) as exc:
        fault = _fault(exc)
        if not isinstance(fault, BlobMissingError):
            raise fault from exc


def _output_key(sha256: str) -> str:
    return f"outputs/{sha256}"


def _input_key(sha256: str) -> str:
    return f"inputs/{sha256}"


def _fault(exc: ClientError | BotoCoreError) -> Exception:
    if isinstance(exc, ClientError) and exc.response["Error"]["Code"] in _ABSENT:
        return BlobMissingError()
    return PlatformUnavailableError()
