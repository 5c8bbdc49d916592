"""Where the parts of one audit leave their results, named by their digests: a temporary file, or a bucket.

The file is for an audit in one process, the bucket for one whose steps run in several invocations.
"""

import tempfile
from typing import TYPE_CHECKING, Final, Self

from quittance.limits import MIB
from quittance.proof.parts import digest_of
from quittance.store.blobs import keep_object, read_object

if TYPE_CHECKING:
    from types import TracebackType

    from mypy_boto3_s3 import S3Client

_PREFIX: Final = "audit/"  # objects under it expire
_IN_MEMORY_BYTES_MAX: Final = MIB // 4


class Spool:
    """A temporary file, of which the beginning is in memory as long as that is all."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES_MAX)  # noqa: SIM115 - closed by __exit__
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self._file.close()

    def keep(self, data: bytes) -> str:
        """Stores bytes, and returns their digest."""
        if (digest := digest_of(data)) not in self._places:
            self._file.seek(self._end)
            self._file.write(data)
            self._places[digest] = (self._end, len(data))
            self._end += len(data)
        return digest

    def load(self, digest: str) -> bytes:
        """The bytes with a digest."""
        first, size = self._places[digest]
        return self._read(first, size)

    def load_range(self, digest: str, first: int, size: int) -> bytes:
        """A range of the bytes with a digest."""
        return self._read(self._places[digest][0] + first, size)

    def _read(self, first: int, size: int) -> bytes:
        self._file.seek(first)
        return self._file.read(size)


class AuditResults:
    """A prefix of a bucket, under which objects expire. Raises BlobMissingError, PlatformUnavailableError."""

    def __init__(self, client: "S3Client", *, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def keep(self, data: bytes) -> str:
        """Stores bytes, and returns their digest. Two steps that found the same write the same object."""
        digest = digest_of(data)
        keep_object(self._client, self._bucket, _PREFIX + digest, data)
        return digest

    def load(self, digest: str) -> bytes:
        """The bytes that are stored under a digest. The caller checks them."""
        return read_object(self._client, self._bucket, _PREFIX + digest)

    def load_range(self, digest: str, first: int, size: int) -> bytes:
        """A range of the bytes that are stored under a digest. The caller checks them."""
        return read_object(self._client, self._bucket, _PREFIX + digest, first=first, size=size)


Results = Spool | AuditResults
