"""DynamoDB as the stores use it: plain values, conditional writes, and every refusal or fault as one typed result."""

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from quittance.errors import PlatformUnavailableError
from quittance.limits import TRANSACTION_TRIES_MAX

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

Value = str | int | bytes
_T = TypeVar("_T")

_REFUSED: Final = "ConditionalCheckFailed"
_CONFLICTS: Final = frozenset({"TransactionConflict", "ProvisionedThroughputExceeded", "ThrottlingError"})
_PASSING: Final = frozenset(
    {
        "TransactionConflictException",
        "TransactionInProgressException",
        "ProvisionedThroughputExceededException",
        "ThrottlingException",
        "RequestLimitExceeded",
        "InternalServerError",
        "ServiceUnavailable",
    }
)
_BACKOFF_S: Final = 0.025
_NAMED: Final = re.compile(r"#(\w+)")


class RefusedError(Exception):
    """A condition failed. `items` holds, for each action, the stored item that refused it, or None."""

    def __init__(self, items: Sequence[Mapping[str, Any] | None]) -> None:
        super().__init__()
        self.items = items


def attribute(value: Value) -> Any:  # noqa: ANN401 - botocore's union of attribute shapes
    """The attribute value of a string, an integer or bytes."""
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, bytes):
        return {"B": value}
    return {"N": str(value)}


def to_item(values: Mapping[str, Value | None]) -> dict[str, Any]:
    """The item of a mapping; what is None is left out."""
    return {name: attribute(value) for name, value in values.items() if value is not None}


def from_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of an item; numbers are ints."""
    return {name: int(value) if kind == "N" else value for name, typed in item.items() for kind, value in typed.items()}


def put_new(table: str, values: Mapping[str, Value | None]) -> dict[str, Any]:
    """A put that is refused, with the stored item, if there is one of that key."""
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
    set_: Mapping[str, Value | None],
    condition: str,
    values: Mapping[str, Value],
    remove: Iterable[str] = (),
) -> dict[str, Any]:
    """An update that is refused, with the stored item, if `condition` fails.

    Conditions write attributes as `#name`, because many good names are reserved words. What is None is not set.
    """
    present = {name: value for name, value in set_.items() if value is not None}
    expression = "SET " + ", ".join(f"#{name} = :new_{name}" for name in present)
    removed = [f"#{name}" for name in remove]
    if removed:
        expression += " REMOVE " + ", ".join(removed)
    new_values = {f":new_{name}": value for name, value in present.items()}
    return {
        "TableName": table,
        "Key": to_item({"pk": pk}),
        "UpdateExpression": expression,
        "ConditionExpression": condition,
        "ExpressionAttributeNames": {f"#{name}": name for name in _NAMED.findall(expression + condition)},
        "ExpressionAttributeValues": to_item({**new_values, **values}),
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def answered(send: Callable[[], _T]) -> _T:
    """The answer of one call, repeated with full jitter while DynamoDB is in conflict, throttled or failing.

    `send` must be safe to repeat. Raises RefusedError for a failed condition, and PlatformUnavailableError when there
    is no answer: whether the call took effect is then unknown.
    """
    for attempt in range(TRANSACTION_TRIES_MAX):
        if attempt:
            time.sleep(random.uniform(0, _BACKOFF_S * 2**attempt))  # noqa: S311 - spreads load, hides nothing
        try:
            return send()
        except ClientError as exc:
            _raise_unless_passing(exc)
        except BotoCoreError as exc:
            raise PlatformUnavailableError from exc
    raise PlatformUnavailableError


def items(client: "DynamoDBClient", query: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All items of a query, page after page. Raises PlatformUnavailableError."""
    return _paged(client.query, query)


def scanned(client: "DynamoDBClient", scan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All items of a scan, page after page. Raises PlatformUnavailableError."""
    return _paged(client.scan, scan)


def _paged(read: Callable[..., Mapping[str, Any]], asked: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    start: Mapping[str, Any] = {}
    while True:
        page = answered(partial(read, **asked, **start))
        yield from page["Items"]
        if "LastEvaluatedKey" not in page:
            return
        start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}


def _raise_unless_passing(exc: ClientError) -> None:
    code = exc.response["Error"]["Code"]
    answer: Mapping[str, Any] = exc.response
    if code == "ConditionalCheckFailedException":
        raise RefusedError([answer.get("Item")]) from exc
    if code == "TransactionCanceledException":
        reasons = answer["CancellationReasons"]
        codes = [reason.get("Code") for reason in reasons]
        # A conflict may hide a refusal by the first action, which is the one that tells a replay: look again, unless
        # the first action itself is refused.
        if _REFUSED in codes and (codes[0] == _REFUSED or not _CONFLICTS.intersection(codes)):
            raise RefusedError(
                [reason.get("Item") if reason.get("Code") == _REFUSED else None for reason in reasons]
            ) from exc
        if _CONFLICTS.intersection(codes):
            return
    elif code in _PASSING:
        return
    raise exc
