"""ministack 1.5.33 as it comes, but for two things; tests/local/test_cloud.py says when they no longer hold.

A layer is unpacked once, not again for every worker. Each concurrent call has a worker of its own, and
each would unpack 80 MB of the same files: more than a second of every cold start, and gigabytes of disk
for a test of races. Lambda shares a layer too, read-only. ministack.core.lambda_runtime unpacks with
`zipfile.ZipFile(...).extractall(...)`; should a release do it otherwise, this does nothing.

What a handler raises keeps its class for a name, and the worker lives on, as on Lambda. ministack would tell
every exception as `Runtime.HandlerError` and end the worker, so that no Retry or Catch by name could be tried
here, and every refusal would cost a cold start. Its worker's script is changed in one line; should a release
have no such line, the cloud does not start.
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
from ministack.services import lambda_svc  # type: ignore[import-not-found]

_UNPACKING = threading.Lock()
_RAISED = "__raised__"
_TELL_ERROR = '{"status": "error", "error": str(e), "trace": traceback.format_exc()}'
_TELL_ERROR_AS_ON_LAMBDA = (
    '{"status": "ok", "result": {"__raised__": {"errorMessage": str(e), "errorType": type(e).__name__, '
    '"requestId": context.aws_request_id, "stackTrace": traceback.format_tb(e.__traceback__)[1:]}}}'
)


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


def _share_layers() -> None:
    lambda_runtime.zipfile = SimpleNamespace(**{**vars(zipfile), "ZipFile": _SharedLayers})


def _name_errors() -> None:
    script = lambda_runtime._PYTHON_WORKER_SCRIPT  # noqa: SLF001 - of exactly this version
    if script.count(_TELL_ERROR) != 1:
        msg = "local/launch.py: ministack's worker tells exceptions in another way now"
        raise SystemExit(msg)
    lambda_runtime._PYTHON_WORKER_SCRIPT = script.replace(_TELL_ERROR, _TELL_ERROR_AS_ON_LAMBDA)  # noqa: SLF001
    execute = lambda_svc._execute_function_warm  # noqa: SLF001

    def execute_as_on_lambda(*arguments: Any) -> Any:  # noqa: ANN401 - handed through
        answer = execute(*arguments)
        body = answer.get("body")
        if not (isinstance(body, dict) and body.keys() == {_RAISED}):
            return answer
        error = body[_RAISED]
        told = "".join([f"[ERROR] {error['errorType']}: {error['errorMessage']}\n", *error["stackTrace"]])
        return {"body": error, "error": True, "log": "\n".join(filter(None, [answer["log"], told]))}

    lambda_svc._execute_function_warm = execute_as_on_lambda  # noqa: SLF001


if __name__ == "__main__":
    _share_layers()
    _name_errors()
    main()
