"""Starts ministack with policies enforced (AUTH), the limits of AWS (borders.py), and other behaviour that it lacks.

- A layer is unpacked once, not for every worker. Each concurrent call has its worker, and each worker would unpack the
  same 80 MB of files: more than a second of every cold start, and gigabytes of disk for a test of races. Lambda also
  shares a layer, read-only.
- Every call that a role makes is recorded (`QUITTANCE_CALLS`): tests compare the calls with the roles in template.yaml.
- S3 reports that an object is missing only to callers who may list its bucket; all others are denied, as on AWS.
- `dynamodb:LeadingKeys` is set if a request contains its keys (not for queries). For a transaction it has those of all
  its items, so a role needs all of them for each of its actions.
- A REST API passes `path` and `pathParameters` as the client encoded them, as on AWS. ministack decodes them.
- `requestContext.path` is the path that the client sent, with the prefix that the API has here, as on AWS with a stage
  or a base path. Under a base path of a custom domain, `path` has it too.
- A gateway response may quote the authorizer's context of a denied request (`context.authorizer`).
- A function's `WWW-Authenticate` header reaches the client under another name, as with REST APIs.
- The loopback counts as TLS: else the buckets, which deny all calls without TLS, would deny all calls here.
- An alias's EventInvokeConfig applies if the alias is invoked asynchronously. ministack reads that of `$LATEST` only.
- An exception in a handler is reported by its class name, and its worker continues. ministack reports every exception
  as `Runtime.HandlerError` and ends the worker. Then no Retry or Catch by name could be tested, and every refusal would
  cause a cold start.

Each of these wraps a function of ministack's pinned release. If a new release changes that function, the wrapper has no
effect or cannot start; tests/local/test_cloud.py reports which.
"""

import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
import zipfile
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from ministack import app  # type: ignore[import-not-found]  # installed in the cloud's environment only
from ministack.core import iam_actions, iam_evaluator, lambda_runtime  # type: ignore[import-not-found]
from ministack.services import apigateway_v1, lambda_svc, sts  # type: ignore[import-not-found]

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for this import only: all others are ministack's
from local import borders

del sys.path[0]

_UNPACKING = threading.Lock()
_REQUESTED: ContextVar[tuple[str, str]] = ContextVar("requested")  # host and path of this request as sent
_AUTHORIZER: ContextVar[Mapping[str, str]] = ContextVar("authorizer")  # its context for this request
_QUOTED = re.compile(r"\$context\.authorizer\.(\w+)")
_MISSING = 404
_RAISED = "__raised__"
_REPORT_ERROR = '{"status": "error", "error": str(e), "trace": traceback.format_exc()}'
_REPORT_ERROR_AS_ON_LAMBDA = (
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
    """Write one line for each different call of a role: session, action, resource, and whether it was allowed."""
    written = set()

    def recording(key: str, action: str, *where: str, resource_arn: str = "*", **context: Any) -> Any:  # noqa: ANN401
        denied = enforce(key, action, *where, resource_arn=resource_arn, **context)
        if session := sts._sessions.get(key):  # noqa: SLF001 - a role's keys; all others are the account's
            call = {"caller": session["Arn"], "action": action, "resource": resource_arn, "allowed": denied is None}
            if (line := json.dumps(call)) not in written:
                written.add(line)
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
        actions = [action for item in request.get("TransactItems", []) for action in item.values()]
        keys += [action["Key"] for action in actions if "Key" in action]
        keys += [{"pk": put["Item"]["pk"]} for put in [request, *actions] if "pk" in put.get("Item", {})]
        # The tables that have such a condition have only a partition key, so the only attribute of a key is that one.
        leading = [value for key in keys for typed in key.values() for value in typed.values()]
        return {**known(body), **({"dynamodb:LeadingKeys": leading} if leading else {})}

    return context


def _encoded_paths(execute: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def answer(host: str, path: str, *rest: Any, raw_path: str | None = None, **named: Any) -> Any:  # noqa: ANN401
        _REQUESTED.set((host, raw_path or path))
        _AUTHORIZER.set({})
        return await execute(host, raw_path or path, *rest, raw_path=raw_path, **named)

    return answer


def _with_invoke_config(invoke: Callable[..., Any]) -> Callable[..., Any]:
    def invoking(record: dict[str, Any], event: Any) -> Any:  # noqa: ANN401
        function = lambda_svc._functions.get(record["config"]["FunctionName"], {})  # noqa: SLF001
        configs = function.get("event_invoke_configs") or {}
        named = [configs[alias] for alias in function.get("aliases", {}) if alias in configs]
        if named and record is not function:  # a version: the template's functions have one alias each
            record["event_invoke_config"] = named[0]
        return invoke(record, event)

    return invoking


def _requested_paths(build: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def event(*arguments: Any, **named: Any) -> dict[str, Any]:  # noqa: ANN401 - handed through
        built = build(*arguments, **named)
        host, path = _REQUESTED.get()
        if path.startswith("/restapis/"):
            built["requestContext"]["path"] = path
        elif app._parse_execute_api_url(host, path) is None:  # noqa: SLF001 - a custom domain, then
            built["path"] = built["requestContext"]["path"] = path
        return built

    return event


def _explain_denials() -> None:
    """Keep the context that an authorizer returns with its policy until the gateway responds."""
    gateway = apigateway_v1
    cache, evaluate = gateway._cache_authorizer_result, gateway._evaluate_policy  # noqa: SLF001
    value, respond = gateway._gateway_request_value, gateway._gateway_error_response  # noqa: SLF001

    def cache_with_context(key: Any, ends: float, policy: dict[str, Any], context: Mapping[str, str]) -> None:  # noqa: ANN401
        policy["_Context"] = dict(context)
        cache(key, ends, policy, context)

    def evaluate_with_context(policy: dict[str, Any], method_arn: str) -> Any:  # noqa: ANN401
        _AUTHORIZER.set(policy.get("_Context", {}))
        return evaluate(policy, method_arn)

    def value_of_context(source: str, request: Any) -> Any:  # noqa: ANN401
        prefix, _, name = source.rpartition(".")
        return _AUTHORIZER.get({}).get(name) if prefix == "context.authorizer" else value(source, request)

    def respond_with_context(error: Any, request: Any) -> Any:  # noqa: ANN401
        status, headers, body = respond(error, request)
        context = _AUTHORIZER.get({})
        return status, headers, _QUOTED.sub(lambda found: context.get(found[1], ""), body.decode()).encode()

    gateway._cache_authorizer_result = cache_with_context  # noqa: SLF001
    gateway._evaluate_policy = evaluate_with_context  # noqa: SLF001
    gateway._gateway_request_value = value_of_context  # noqa: SLF001
    gateway._gateway_error_response = respond_with_context  # noqa: SLF001


def _challenges_renamed(invoke: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def answer(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - handed through
        answered = await invoke(*arguments, **named)
        if isinstance(answered, tuple):
            for name in [name for name in answered[1] if name.lower() == "www-authenticate"]:
                answered[1]["x-amzn-Remapped-WWW-Authenticate"] = answered[1].pop(name)
        return answered

    return answer


def _prepare(env: Mapping[str, str]) -> None:
    lambda_runtime.zipfile = SimpleNamespace(**{**vars(zipfile), "ZipFile": _SharedLayers})
    sink = Path(env["QUITTANCE_CALLS"]).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the cloud runs
    iam_evaluator.enforce = _recorded(iam_evaluator.enforce, sink)
    app.SERVICE_HANDLERS["s3"] = _missing_denied(app.SERVICE_HANDLERS["s3"])
    app.pin_request_origin = lambda address, _secure: iam_evaluator.pin_request_origin(address, secure_transport=True)
    app._handle_execute_api_request = _encoded_paths(app._handle_execute_api_request)  # noqa: SLF001
    lambda_svc.invoke_async_with_retry = _with_invoke_config(lambda_svc.invoke_async_with_retry)
    apigateway_v1._build_lambda_event_v1 = _requested_paths(apigateway_v1._build_lambda_event_v1)  # noqa: SLF001
    apigateway_v1._invoke_lambda_proxy_v1 = _challenges_renamed(apigateway_v1._invoke_lambda_proxy_v1)  # noqa: SLF001
    _explain_denials()
    _name_errors()
    borders.enforce(app.SERVICE_HANDLERS)
    iam_actions.dynamodb_service_context = _with_leading_keys(iam_actions.dynamodb_service_context)


def _end_with(descriptor: str) -> None:
    """End this process when the other end of the pipe is closed. The kernel closes it if that process is killed."""

    def watch() -> None:
        os.read(int(descriptor), 1)
        os.killpg(0, signal.SIGKILL)  # includes the functions: they are in this process group

    threading.Thread(target=watch, daemon=True).start()


def _name_errors() -> None:
    script = lambda_runtime._PYTHON_WORKER_SCRIPT  # noqa: SLF001 - of the pinned version
    if script.count(_REPORT_ERROR) != 1:
        msg = "local/launch.py: this release of ministack's worker reports exceptions differently"
        raise SystemExit(msg)
    lambda_runtime._PYTHON_WORKER_SCRIPT = script.replace(_REPORT_ERROR, _REPORT_ERROR_AS_ON_LAMBDA)  # noqa: SLF001
    execute = lambda_svc._execute_function_warm  # noqa: SLF001

    def execute_as_on_lambda(*arguments: Any) -> Any:  # noqa: ANN401 - handed through
        answer = execute(*arguments)
        body = answer.get("body")
        if not (isinstance(body, dict) and body.keys() == {_RAISED}):
            return answer
        error = body[_RAISED]
        report = "".join([f"[ERROR] {error['errorType']}: {error['errorMessage']}\n", *error["stackTrace"]])
        return {"body": error, "error": True, "log": "\n".join(filter(None, [answer["log"], report]))}

    lambda_svc._execute_function_warm = execute_as_on_lambda  # noqa: SLF001


if __name__ == "__main__":
    if _lifeline := os.environ.pop("QUITTANCE_LIFELINE", ""):
        _end_with(_lifeline)
    _prepare(os.environ)
    app.main()
