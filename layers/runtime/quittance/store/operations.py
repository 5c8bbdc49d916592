"""Operations: what operators do to the platform. One transaction writes the change and its record (registry's table).

    pk               attributes
    OPERATION#<id>   action, target, by, reason, created_ms: who did what, when and why

The index `listing` of the registry orders the records by time, under a hash value of their own. A call that changes
nothing, because the target already has the requested state, is recorded too.
"""

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from quittance.errors import NotFoundError
from quittance.operation import Action, Operation
from quittance.store.dynamo import Patience, RefusedError, Value, from_item, listing, put_new, retried, update
from quittance.store.registry import FUNDING_PK, LISTING_INDEX, retirement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_dynamodb import DynamoDBClient

_LISTING: Final = "operations"
_SUFFIX_BYTES: Final = 5


class Operations:
    """All operations. Methods raise PlatformUnavailableError if DynamoDB does not answer; repeat them then."""

    def __init__(self, client: "DynamoDBClient", *, table: str, left_ms: Callable[[], int]) -> None:
        self._client = client
        self._table = table
        self._left_ms = left_ms

    def perform(self, operation: Operation) -> Operation:
        """Performs an operation and returns its record. Raises NotFoundError if the agent does not exist."""
        recorded = replace(operation, operation_id=f"{operation.at_ms:013}-{secrets.token_hex(_SUFFIX_BYTES)}")
        record = {"Put": put_new(self._table, _values(recorded))}
        try:
            self._send([{"Update": self._change(recorded)}, record])
        except RefusedError as refused:
            target, stored = refused.items
            if stored is not None:  # our own write, whose response was lost
                return recorded
            if target is None:
                msg = f"There is no agent {operation.target!r}."
                raise NotFoundError(msg) from refused
            with suppress(RefusedError):  # our own write, whose response was lost
                self._send([record])  # the agent was retired before
        return recorded

    def page(self, *, limit: int, after: tuple[int, str] | None) -> tuple[list[Operation], bool]:
        """Up to `limit` records, newest first, behind `after` (at_ms, operation id), and whether more follow.

        The index may lag by a second.
        """
        start: Mapping[str, Value] | None = None
        if after is not None:
            at_ms, operation_id = after
            start = {"pk": f"OPERATION#{operation_id}", "created_ms": at_ms}
        query = listing(
            self._table, LISTING_INDEX, "listing", _LISTING, after=start, newest_first=True, limit=limit + 1
        )
        answer = retried(partial(self._client.query, **query), self._patience())
        found = [_operation(item) for item in answer["Items"]]
        return found[:limit], len(found) > limit or "LastEvaluatedKey" in answer

    def _change(self, operation: Operation) -> dict[str, Any]:
        """The update that an operation makes."""
        match operation.action:
            case Action.RETIRE:
                return update(self._table, f"AGENT#{operation.target}", **retirement(operation.at_ms))
            case Action.FREEZE | Action.UNFREEZE:
                frozen = int(operation.action is Action.FREEZE)
                return update(self._table, f"OWNER#{operation.target}", set_={"frozen": frozen})
            case Action.PAUSE | Action.RESUME:
                return update(self._table, FUNDING_PK, set_={"paused": int(operation.action is Action.PAUSE)})

    def _send(self, actions: list[dict[str, Any]]) -> None:
        send = partial(self._client.transact_write_items, TransactItems=actions)  # type: ignore[arg-type]  # built as plain dicts
        retried(send, self._patience())

    def _patience(self) -> Patience:
        return Patience(self._left_ms())


def _values(operation: Operation) -> dict[str, Value | None]:
    return {
        "pk": f"OPERATION#{operation.operation_id}",
        "listing": _LISTING,
        "created_ms": operation.at_ms,
        "action": operation.action,
        "target": operation.target,
        "by": operation.by,
        "reason": operation.reason,
    }


def _operation(item: "Mapping[str, Any]") -> Operation:
    values = from_item(item)
    return Operation(
        action=Action(values["action"]),
        target=values["target"],
        by=values["by"],
        reason=values["reason"],
        at_ms=values["created_ms"],
        operation_id=values["pk"].removeprefix("OPERATION#"),
    )
