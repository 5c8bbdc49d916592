"""DynamoDB for the stores: plain values, conditional writes, and typed exceptions for rejections and failures."""

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeVar

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError

from quittance.errors import PlatformUnavailableError
from quittance.limits import CALL_MS_MAX
from quittance.observability import Metric, count

Value = str | int | bytes
_T = TypeVar("_T")

_REFUSED: Final = "ConditionalCheckFailed"
_CONFLICTS: Final = frozenset({"TransactionConflict", "ProvisionedThroughputExceeded", "ThrottlingError"})
_TRANSIENT: Final = frozenset(
    {
        "TransactionInProgressException",
        "ProvisionedThroughputExceededException",
        "ThrottlingException",
        "RequestLimitExceeded",
        "InternalServerError",
        "ServiceUnavailable",
    }
)
_UNREACHABLE: Final = (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError)
_BACKOFF_S: Final = 0.025
_BACKOFF_S_MAX: Final = 1.0
_NAMED: Final = re.compile(r"#(\w+)")


class RefusedError(Exception):
    """A condition failed. `items` holds the stored item of each action whose condition failed, None for the others."""

    def __init__(self, items: Sequence[Mapping[str, Any] | None]) -> None:
        super().__init__()
        self.items = items


class BusyError(Exception):
    """DynamoDB throttled or failed the call, or was unreachable: whether the call took effect is unknown."""


class ConflictError(BusyError):
    """Another transaction conflicted with the call, or it was throttled: it had no effect."""


class Patience:
    """How long one operation may be retried: as long as another call fits into the time of the invocation.

    `left_ms` is the time left to the invocation, of which `reserve_ms` is kept for what follows the operation.
    """

    def __init__(self, left_ms: int, *, reserve_ms: int = 0) -> None:
        self._ends_s = time.monotonic() + (left_ms - reserve_ms - CALL_MS_MAX) / 1_000
        self._attempts = 0

    def wait(self, cause: BusyError) -> None:
        """Sleeps before the next attempt, with full jitter. Raises PlatformUnavailableError if no time is left."""
        self._attempts += 1
        count(Metric.CONFLICTS if isinstance(cause, ConflictError) else Metric.RETRIES)
        pause_s = random.uniform(0, min(_BACKOFF_S_MAX, _BACKOFF_S * 2**self._attempts))  # noqa: S311 - spreads load, hides nothing
        if time.monotonic() + pause_s > self._ends_s:
            raise PlatformUnavailableError from cause
        time.sleep(pause_s)


def attribute(value: Value) -> Any:  # noqa: ANN401 - botocore's union of attribute shapes
    """The attribute value of a string, an integer or bytes."""
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, bytes):
        return {"B": value}
    return {"N": str(value)}


def to_item(values: Mapping[str, Value | None]) -> dict[str, Any]:
    """The item of a mapping. None values are left out."""
    return {name: attribute(value) for name, value in values.items() if value is not None}


def from_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of an item. Numbers are ints."""
    return {name: int(value) if kind == "N" else value for name, typed in item.items() for kind, value in typed.items()}


def plain(item: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of an item that may be damaged: like `from_item`, but a number that is no integer stays typed."""
    values: dict[str, Any] = {}
    for name, typed in item.items():
        for kind, value in typed.items():
            try:
                values[name] = int(value) if kind == "N" else value
            except ValueError:
                values[name] = {kind: value}
    return values


def put_new(table: str, values: Mapping[str, Value | None]) -> dict[str, Any]:
    """A put that is rejected, with the stored item, if the key exists."""
    return {
        "TableName": table,
        "Item": to_item(values),
        "ConditionExpression": "attribute_not_exists(pk)",
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def update(
    table: str,
    pk: str,
    *,
    set_: Mapping[str, Value | None] = MappingProxyType({}),
    condition: str | None = None,
    values: Mapping[str, Value] = MappingProxyType({}),
    remove: Iterable[str] = (),
) -> dict[str, Any]:
    """An update that is rejected, with the stored item, if `condition` fails. Without a condition it is an upsert.

    Conditions refer to attributes as `#name`, because many good names are reserved words. None values are not set.
    """
    present = {name: value for name, value in set_.items() if value is not None}
    clauses = {
        "SET": [f"#{name} = :new_{name}" for name in present],
        "REMOVE": [f"#{name}" for name in remove],
    }
    expression = " ".join(f"{verb} {', '.join(parts)}" for verb, parts in clauses.items() if parts)
    all_values = {**{f":new_{name}": value for name, value in present.items()}, **values}
    write = {
        "TableName": table,
        "Key": to_item({"pk": pk}),
        "UpdateExpression": expression,
        "ExpressionAttributeNames": {f"#{name}": name for name in _NAMED.findall(f"{expression} {condition or ''}")},
    }
    if all_values:
        write["ExpressionAttributeValues"] = to_item(all_values)
    if condition is not None:
        write |= {"ConditionExpression": condition, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
    return write


def listing(
    table: str,
    index: str,
    hash_name: str,
    hash_value: str,
    *,
    after: Mapping[str, Value] | None = None,
    newest_first: bool = False,
    limit: int | None = None,
) -> dict[str, Any]:
    """The query of an index for the items with one hash value, ordered by the index's range attribute.

    `after` are the other key attributes of the last item of the previous page.
    """
    query: dict[str, Any] = {
        "TableName": table,
        "IndexName": index,
        "KeyConditionExpression": "#hash = :hash",
        "ExpressionAttributeNames": {"#hash": hash_name},
        "ExpressionAttributeValues": to_item({":hash": hash_value}),
        "ScanIndexForward": not newest_first,
    }
    if after is not None:
        query["ExclusiveStartKey"] = to_item({hash_name: hash_value, **after})
    if limit is not None:
        query["Limit"] = limit
    return query


def attempt(send: Callable[[], _T]) -> _T:
    """The response of one call, without retries.

    Raises RefusedError for a failed condition, ConflictError or BusyError if a retry may help, and
    PlatformUnavailableError if it cannot.
    """
    try:
        return send()
    except ClientError as exc:
        _raise_typed(exc)
    except _UNREACHABLE as exc:
        raise BusyError from exc
    except BotoCoreError as exc:
        raise PlatformUnavailableError from exc


def retried(send: Callable[[], _T], patience: Patience) -> _T:
    """The response of one call, retried while DynamoDB is busy. `send` must be safe to repeat.

    Raises RefusedError for a failed condition, and PlatformUnavailableError without a response: whether the call took
    effect is then unknown.
    """
    while True:
        try:
            return attempt(send)
        except BusyError as busy:
            patience.wait(busy)


def read_item(
    get: Callable[..., Mapping[str, Any]], table: str, pk: str, patience: Patience
) -> Mapping[str, Any] | None:
    """An item, or None if there is none (consistent read). Raises PlatformUnavailableError."""
    request = partial(get, TableName=table, Key=to_item({"pk": pk}), ConsistentRead=True)
    return retried(request, patience).get("Item")


def read_items(
    read: Callable[..., Mapping[str, Any]],
    table: str,
    pks: Iterable[str],
    patience: Patience,
    *,
    consistent: bool,
    only: Sequence[str] = (),
) -> dict[str, Mapping[str, Any]]:
    """Of up to 100 different items, those that exist, by key. Raises PlatformUnavailableError.

    `only` names the attributes to read, the key among them: fewer take less time to receive, but cost the same.
    """
    projection: dict[str, Any] = {}
    if only:
        names = {f"#{name}": name for name in only}
        projection = {"ProjectionExpression": ", ".join(names), "ExpressionAttributeNames": names}
    found: dict[str, Mapping[str, Any]] = {}
    missing: list[Any] = [to_item({"pk": pk}) for pk in pks]
    while missing:
        request = {table: {"Keys": missing, "ConsistentRead": consistent, **projection}}
        answer = retried(partial(read, RequestItems=request), patience)
        found |= {item["pk"]["S"]: item for item in answer["Responses"].get(table, [])}
        missing = list(answer.get("UnprocessedKeys", {}).get(table, {}).get("Keys", []))
        if missing:
            patience.wait(BusyError())
    return found


def scan_piece(
    scan: Callable[..., Mapping[str, Any]], table: str, *, after: str | None, limit: int, patience: Patience
) -> tuple[list[Mapping[str, Any]], str | None]:
    """Up to `limit` items of a table behind a key, and the key behind which the next piece begins, None at the end."""
    start = {} if after is None else {"ExclusiveStartKey": to_item({"pk": after})}
    answer = retried(partial(scan, TableName=table, Limit=limit, **start), patience)
    return answer["Items"], answer["LastEvaluatedKey"]["pk"]["S"] if "LastEvaluatedKey" in answer else None


def paged(
    read: Callable[..., Mapping[str, Any]], request: Mapping[str, Any], left_ms: Callable[[], int]
) -> Iterator[Any]:
    """All items of a query or a scan, page after page. Raises PlatformUnavailableError."""
    start: Mapping[str, Any] = {}
    while True:
        page = retried(partial(read, **request, **start), Patience(left_ms()))
        yield from page["Items"]
        if "LastEvaluatedKey" not in page:
            return
        start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}


def _raise_typed(exc: ClientError) -> NoReturn:
    code = exc.response["Error"]["Code"]
    answer: Mapping[str, Any] = exc.response
    if code == "ConditionalCheckFailedException":
        raise RefusedError([answer.get("Item")]) from exc
    if code == "TransactionConflictException":
        raise ConflictError from exc
    if code == "TransactionCanceledException":
        reasons = answer["CancellationReasons"]
        codes = [reason.get("Code") for reason in reasons]
        if _REFUSED in codes:
            raise RefusedError(
                [reason.get("Item") if reason.get("Code") == _REFUSED else None for reason in reasons]
            ) from exc
        if _CONFLICTS.intersection(codes):
            raise ConflictError from exc
    elif code in _TRANSIENT:
        raise BusyError from exc
    raise exc
