"""ministack, with policies enforced (AUTH), the limits of AWS (borders.py), and seven things that it does not do.

- A layer is unpacked once, not again for every worker. Each concurrent call has a worker of its own, and each would
  unpack 80 MB of the same files: more than a second of every cold start, and gigabytes of disk for a test of races.
  Lambda shares a layer too, read-only.
- Every call that a role makes is recorded (`QUITTANCE_CALLS`): tests compare them with the roles in template.yaml.
- S3 tells that an object is missing to those alone who may list its bucket; others are denied. So it is on AWS.
- `dynamodb:LeadingKeys` is known where a request names its keys (not in transactions).
- A REST API leaves `path` and `pathParameters` as the client encoded them, as on AWS. ministack decodes them.
- The loopback counts as TLS: else the buckets, which refuse everybody without it, would refuse everybody here.
- What a handler raises keeps its class for a name, and its worker lives on. ministack would tell every exception as
  `Runtime.HandlerError` and end the worker: no Retry or Catch by name could be tried, every refusal would start cold.

Each takes a function of ministack's pinned release and wraps it. Should a release do it otherwise, they do nothing, or
cannot start, and tests/local/test_cloud.py says which.
"""

import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
import zipfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from ministack import app  # type: ignore[import-not-found]  # in the cloud's environment only
from ministack.core import iam_actions, iam_evaluator, lambda_runtime  # type: ignore[import-not-found]
from ministack.services import lambda_svc, sts  # type: ignore[import-not-found]

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for this import alone: nothing else is ours
from local import borders

del sys.path[0]

_UNPACKING = threading.Lock()
_MISSING = 404
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


def _recorded(enforce: Callable[..., Any], sink: TextIO) -> Callable[..., Any]:
    """One line for each different call of a role: who (its session), the action, the resource, was it allowed."""
    told = set()

    def recording(key: str, action: str, *where: str, resource_arn: str = "*", **context: Any) -> Any:  # noqa: ANN401
        denied = enforce(key, action, *where, resource_arn=resource_arn, **context)
        if session := sts._sessions.get(key):  # noqa: SLF001 - a role's keys; all others are the account's own
            call = {"caller": session["Arn"], "action": action, "resource": resource_arn, "allowed": denied is None}
            if (line := json.dumps(call)) not in told:
                told.add(line)
                print(line, file=sink, flush=True)
        return denied

    return recording


def _missing_denied(s3: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def answer(method: str, path: str, headers: Any, body: bytes, query: Any) -> Any:  # noqa: ANN401
        answered = await s3(method, path, headers, body, query)
        bucket, _, key = path.strip("/").partition("/")
        if answered[0] != _MISSING or method not in ("GET", "HEAD") or not key:
            return answered
        listed = f"arn:aws:s3:::{bucket}"
        denied = app._enforce_data_plane("s3", "s3:ListBucket", headers, query, "", resource_arn=listed)  # noqa: SLF001
        return denied or answered

    return answer


def _with_leading_keys(known: Callable[[bytes], dict[str, Any]]) -> Callable[[bytes], dict[str, Any]]:
    def context(body: bytes) -> dict[str, Any]:
        request = json.loads(body or b"{}")
        keys = [request["Key"]] if "Key" in request else []
        keys += [key for asked in request.get("RequestItems", {}).values() if "Keys" in asked for key in asked["Keys"]]
        # All tables here have a partition key alone: a key's one attribute is it.
        leading = [value for key in keys for typed in key.values() for value in typed.values()]
        return {**known(body), **({"dynamodb:LeadingKeys": leading} if leading else {})}

    return context


def _encoded_paths(execute: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def answer(host: str, path: str, *rest: Any, raw_path: str | None = None, **named: Any) -> Any:  # noqa: ANN401
        return await execute(host, raw_path or path, *rest, raw_path=raw_path, **named)

    return answer


def _prepare(env: Mapping[str, str]) -> None:
    lambda_runtime.zipfile = SimpleNamespace(**{**vars(zipfile), "ZipFile": _SharedLayers})
    sink = Path(env["QUITTANCE_CALLS"]).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the cloud runs
    iam_evaluator.enforce = _recorded(iam_evaluator.enforce, sink)
    app.SERVICE_HANDLERS["s3"] = _missing_denied(app.SERVICE_HANDLERS["s3"])
    app.pin_request_origin = lambda address, _secure: iam_evaluator.pin_request_origin(address, secure_transport=True)
    app._handle_execute_api_request = _encoded_paths(app._handle_execute_api_request)  # noqa: SLF001
    _name_errors()
    borders.enforce(app.SERVICE_HANDLERS)
    iam_actions.dynamodb_service_context = _with_leading_keys(iam_actions.dynamodb_service_context)


def _end_with(descriptor: str) -> None:
    """Ends this process when the other end of the pipe is closed, which the kernel does for whoever is killed."""

    def watch() -> None:
        os.read(int(descriptor), 1)
        os.killpg(0, signal.SIGKILL)  # the functions too: they are of this process's group

    threading.Thread(target=watch, daemon=True).start()


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
    if _lifeline := os.environ.pop("QUITTANCE_LIFELINE", ""):
        _end_with(_lifeline)
    _prepare(os.environ)
    app.main()
