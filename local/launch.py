"""ministack as it comes, but for one thing: a layer is unpacked once, not again for every worker.

Each concurrent call has a worker of its own, and each would unpack 80 MB of the same files: more
than a second of every cold start, and gigabytes of disk for a test of races. Lambda shares a layer
too, read-only. ministack.core.lambda_runtime unpacks with `zipfile.ZipFile(...).extractall(...)`;
should a release do it otherwise, this does nothing and tests/local/test_cloud.py says so.
"""

import hashlib
import tempfile
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ministack.app import main  # type: ignore[import-not-found]  # in the cloud's environment only
from ministack.core import lambda_runtime  # type: ignore[import-not-found]

_UNPACKING = threading.Lock()


class _SharedLayers(zipfile.ZipFile):
    def extractall(self, path: Any = None, members: Any = None, pwd: bytes | None = None) -> None:  # noqa: ANN401
        if path is None or not Path(path).name.startswith("layer_"):
            super().extractall(path, members, pwd)
            return
        contents = sorted((entry.filename, entry.CRC, entry.file_size) for entry in self.infolist())
        shared = Path(tempfile.gettempdir()) / f"shared-{hashlib.sha256(repr(contents).encode()).hexdigest()}"
        with _UNPACKING:
            if not shared.exists():
                fresh = Path(tempfile.mkdtemp(prefix="unpacking-"))
                super().extractall(fresh, members, pwd)
                fresh.rename(shared)
        Path(str(self.filename)).unlink()
        Path(path).rmdir()
        Path(path).symlink_to(shared, target_is_directory=True)


if __name__ == "__main__":
    lambda_runtime.zipfile = SimpleNamespace(**{**vars(zipfile), "ZipFile": _SharedLayers})
    main()
