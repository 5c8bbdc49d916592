"""Limits and conditions that AWS enforces and ministack does not. docs/local-cloud.md lists them all.

Each is enforced by wrapping a function of ministack's pinned release, as in launch.py. tests/local/test_borders.py
tests each at its limit and one beyond. The numbers are AWS's. They are not imported from `limits.py`, so that tests
find a wrong number there.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final

from ministack.core import iam_actions, iam_evaluator, lambda_runtime  # type: ignore[import-not-found]  # installed in the cloud's environment only
from ministack.core.responses import error_response_json  # type: ignore[import-not-found]
from ministack.services import (  # type: ignore[import-not-found]
    apigateway_v1,
    eventbridge,
    lambda_svc,
    sqs,
    stepfunctions,
)

GATEWAY_BYTES_MAX: Final = 10 * 1024 * 1024
GATEWAY_MS_MAX: Final = 29_000
LAMBDA_SYNC_BYTES_MAX: Final = 6_291_556  # of a request, and of a response
LAMBDA_ASYNC_BYTES_MAX: Final = 1024 * 1024
EVENT_BYTES_MAX: Final = 1024 * 1024  # of all entries of one call together
STATE_BYTES_MAX: Final = 256 * 1024
_TIME_BYTES: Final = 14  # of an entry's `Time`, as EventBridge counts it
_METADATA: Final = "x" * 1024  # Step Functions adds the headers of Lambda's response to the payload
_TOO_LARGE: Final = 413

_Handler = Callable[..., Awaitable[Any]]
_log: Final = logging.getLogger("borders")
_outlived: Final[set[asyncio.Future[Any]]] = set()  # keeps references to invocations that outlive their gateway call


def enforce(handlers: dict[str, _Handler]) -> None:
    """Enforce all of them. `handlers` are ministack's services by name."""
    handlers["lambda"] = _invocations(handlers["lambda"])
    _wrap(lambda_svc, "_execute_function_warm", _answers)
    _wrap(apigateway_v1, "_execute_in_scope", _request_bodies)
    _wrap(apigateway_v1, "_call_lambda_raw", _proxy_events)
    _wrap(apigateway_v1, "_invoke_lambda_proxy_v1", _integration_time)
    _wrap(lambda_runtime.Worker, "_spawn", _cold_starts)
    _wrap(apigateway_v1, "_lambda_proxy_response", _no_inner_errors)
    _wrap(eventbridge, "_put_events", _entries)
    _wrap(eventbridge, "_invoke_target", _queue_policies)
    _wrap(eventbridge, "_dispatch_to_sqs", _delivered_messages)
    _wrap(stepfunctions, "_start_execution", _execution_input)
    _wrap(stepfunctions, "_invoke_resource", _task_data)
    for kind in ("pass", "task", "choice", "wait", "parallel", "map"):
        _wrap(stepfunctions, f"_execute_{kind}", _state_data)
    _wrap(iam_actions, "request_tag_context", _event_conditions)


def _wrap(module: ModuleType | type, name: str, wrapper: Callable[[Any], Any]) -> None:
    setattr(module, name, wrapper(getattr(module, name)))


def _bytes_of(value: object) -> int:
    """Return the size of a value in JSON as AWS counts it: UTF-8, with only the necessary escapes."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))


# Lambda.


def _invocations(handle: _Handler) -> _Handler:
    async def bounded(method: str, path: str, headers: Any, body: bytes, query: Any) -> Any:  # noqa: ANN401
        if method == "POST" and path.rstrip("/").endswith("/invocations"):
            most, sentence = (
                LAMBDA_SYNC_BYTES_MAX,
                "Request must be smaller than {most} bytes for the InvokeFunction operation",
            )
            if headers.get("x-amz-invocation-type", "").lower() == "event":
                most = LAMBDA_ASYNC_BYTES_MAX
                sentence = "{size} byte payload is too large for the Event invocation type (limit {most} bytes)"
            if len(body) > most:
                message = sentence.format(size=len(body), most=most)
                return error_response_json("RequestEntityTooLargeException", message, _TOO_LARGE)
        return await handle(method, path, headers, body, query)

    return bounded


def _answers(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Limit a function's response, counted with non-ASCII characters escaped, as Lambda's older runtimes send it."""

    def bounded(*arguments: Any) -> Any:  # noqa: ANN401
        answer = execute(*arguments)
        if len(json.dumps(answer.get("body"))) <= LAMBDA_SYNC_BYTES_MAX:
            return answer
        sentence = f"Response payload size exceeded maximum allowed payload size ({LAMBDA_SYNC_BYTES_MAX} bytes)."
        body = {"errorMessage": sentence, "errorType": "Function.ResponseSizeTooLarge"}
        return {"body": body, "error": True, "log": f"{answer.get('log', '')}\n{sentence}"}

    return bounded


# API Gateway.


def _request_bodies(execute: _Handler) -> _Handler:
    """Limit the body of a request. The response is plain text; users report that even for APIs that configure
    REQUEST_TOO_LARGE.
    """

    async def bounded(*arguments: Any) -> Any:  # noqa: ANN401
        _request, _api, _stage, _method, _path, _headers, body, *_ = arguments
        if len(body or b"") > GATEWAY_BYTES_MAX:
            sentence = f"HTTP content length exceeded {GATEWAY_BYTES_MAX} bytes."
            return _TOO_LARGE, {"Content-Type": "text; charset=utf-8"}, sentence.encode()
        return await execute(*arguments)

    return bounded


def _proxy_events(call: _Handler) -> _Handler:
    """Limit the event for Lambda. It contains the body as a JSON string, so a body below 10 MB may be too large."""

    async def bounded(function: Any, event: Any, **named: Any) -> Any:  # noqa: ANN401
        if _bytes_of(event) <= LAMBDA_SYNC_BYTES_MAX:
            return await call(function, event, **named)
        headers = {"Content-Type": "application/json", "x-amzn-ErrorType": "BadRequestException"}
        answer = {"statusCode": _TOO_LARGE, "headers": headers, "body": '{"message": "Request Too Long"}'}
        return {"body": answer}, None

    return bounded


class _IntegrationTimer:
    """How long a gateway waits. Cold starts do not count: many at once are slow here, but not on Lambda."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._cold_since: float | None = None

    def left_s(self) -> float:
        now = time.monotonic()
        return self._ends - now + (0 if self._cold_since is None else now - self._cold_since)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Pause the timer while a worker starts."""
        self._cold_since = began = time.monotonic()
        try:
            yield
        finally:
            self._cold_since, self._ends = None, self._ends + time.monotonic() - began


_timer: Final[ContextVar[_IntegrationTimer | None]] = ContextVar("timer", default=None)


def _cold_starts(spawn: Callable[..., Any]) -> Callable[..., Any]:
    def pausing(*arguments: Any) -> Any:  # noqa: ANN401
        timer = _timer.get()
        with timer.pausing() if timer else nullcontext():
            return spawn(*arguments)

    return pausing


def _integration_time(invoke: _Handler) -> _Handler:
    """Limit the time of an integration: the caller receives 504, and the function continues."""

    async def bounded(integration: Any, *rest: Any, **named: Any) -> Any:  # noqa: ANN401
        most_ms = min(int(integration.get("timeoutInMillis") or GATEWAY_MS_MAX), GATEWAY_MS_MAX)
        timer = _IntegrationTimer(most_ms / 1_000)
        _timer.set(timer)
        running = asyncio.ensure_future(invoke(integration, *rest, **named))
        _outlived.add(running)
        running.add_done_callback(_outlived.discard)
        while (left_s := timer.left_s()) > 0:
            done, _ = await asyncio.wait({running}, timeout=left_s)
            if done:
                return running.result()
        return apigateway_v1._gw_error("INTEGRATION_TIMEOUT", "Endpoint request timed out")  # noqa: SLF001

    return bounded


def _no_inner_errors(shape: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Hide a function's error from callers of the API."""

    def plain(result: Any) -> Any:  # noqa: ANN401
        answer, error = shape(result)
        return answer, error and "Internal server error"

    return plain


# EventBridge.


def _entries(put: Callable[..., Any]) -> Callable[..., Any]:
    def bounded(data: Any, *, allow_aws_source: bool = False) -> Any:  # noqa: ANN401
        if not allow_aws_source and sum(map(_entry_bytes, data.get("Entries", []))) > EVENT_BYTES_MAX:
            sentence = "Total size of the entries in the request is over the limit."
            return error_response_json("ValidationException", sentence, 400)
        return put(data, allow_aws_source=allow_aws_source)

    return bounded


def _entry_bytes(entry: dict[str, Any]) -> int:
    texts = [entry.get(name) or "" for name in ("Source", "DetailType", "Detail")] + (entry.get("Resources") or [])
    return sum(len(text.encode()) for text in texts) + (_TIME_BYTES if entry.get("Time") else 0)


def _queue_policies(invoke: Callable[..., Any]) -> Callable[..., Any]:
    """Let a rule send to a queue only if the queue's policy permits EventBridge for this rule (`aws:SourceArn`)."""

    def allowed(target: Any, event: Any, rule: Any, *rest: Any) -> Any:  # noqa: ANN401
        arn = target.get("Arn", "")
        queue = sqs._queue_by_arn(arn) if ":sqs:" in arn else None  # noqa: SLF001
        if queue is not None:
            context = iam_evaluator.EvalContext(
                principal_arn="events.amazonaws.com",
                principal_type="Service",
                principal_account=arn.split(":")[4],
                action="sqs:SendMessage",
                resource_arn=arn,
                region=arn.split(":")[3],
                service_context={"aws:sourcearn": rule.get("Arn", "")},
            )
            policy = queue["attributes"].get("Policy")
            decided = iam_evaluator.evaluate_resource_policy(policy, context, service="events.amazonaws.com")
            if decided.decision != "Allow":
                _log.warning("the policy of %s does not permit the rule %s to send to it", arn, rule.get("Arn"))
                return None
        return invoke(target, event, rule, *rest)

    return allowed


def _delivered_messages(dispatch: Callable[..., Any]) -> Callable[..., Any]:
    """Limit what EventBridge delivers to a queue: with its envelope, an event may be too large for a message."""

    def bounded(spec: Any, payload: str, *rest: Any) -> Any:  # noqa: ANN401
        queue = sqs._queue_by_arn(str(spec))  # noqa: SLF001
        if queue and len(payload.encode()) > int(queue["attributes"].get("MaximumMessageSize", EVENT_BYTES_MAX)):
            _log.warning("an event of %s bytes is too large for %s", len(payload.encode()), spec)
            return None
        return dispatch(spec, payload, *rest)

    return bounded


def _event_conditions(known: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Add `events:source` and `events:detail-type` where they are equal in all entries of a call."""

    def context(service: str, action: str, body: bytes, *rest: Any) -> dict[str, Any]:  # noqa: ANN401
        found = known(service, action, body, *rest)
        if action != "events:PutEvents":
            return found
        try:
            entries = json.loads(body or b"{}").get("Entries", [])
        except ValueError:  # the service rejects the call afterwards
            entries = []
        stated = {
            "events:source": _only(entry.get("Source") for entry in entries),
            "events:detail-type": _only(entry.get("DetailType") for entry in entries),
        }
        return {**found, **{name: value for name, value in stated.items() if value is not None}}

    return context


def _only(values: Iterable[str | None]) -> str | None:
    """Return the value that all share; else a value that no policy contains, so that a mixed call is denied."""
    different = set(values)
    return different.pop() if len(different) == 1 else "\0mixed"


# Step Functions.


def _execution_input(start: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def bounded(data: Any) -> Any:  # noqa: ANN401
        if len(data.get("input", "").encode()) > STATE_BYTES_MAX:
            sentence = f"the input must have at most {STATE_BYTES_MAX} bytes"
            return error_response_json("ValidationException", f"1 validation error detected: {sentence}", 400)
        return start(data)

    return bounded


def _task_data(invoke: Callable[..., Any]) -> Callable[..., Any]:
    def bounded(resource: str, given: Any) -> Any:  # noqa: ANN401
        _check_state(given, f"The task {resource!r} was given an input")
        result = invoke(resource, given)
        optimized = ":states:::lambda:invoke" in resource
        _check_state([result, _METADATA] if optimized else result, f"The state/task {resource!r} returned a result")
        return result

    return bounded


def _state_data(execute: Callable[..., Any]) -> Callable[..., Any]:
    def bounded(state: Any, given: Any, *rest: Any) -> Any:  # noqa: ANN401
        _check_state(given, f"The {state['Type']} state was given an input")
        output, following = execute(state, given, *rest)
        _check_state(output, f"The {state['Type']} state returned a result")
        return output, following

    return bounded


def _check_state(value: object, what: str) -> None:
    if _bytes_of(value) > STATE_BYTES_MAX:
        sentence = f"{what} with a size exceeding the maximum number of bytes service limit."
        name = "States.DataLimitExceeded"
        raise stepfunctions._ExecutionError(name, sentence)  # noqa: SLF001
