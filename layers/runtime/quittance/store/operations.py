"""What operators do to the platform: each deed and its line in the journal are one write of the registry's table.

    pk               attributes
    OPERATION#<id>   action, target, by, reason, created_ms: who did what, when and why

The registry's index `listing` orders the lines by time, beside the agents. A call that finds everything as it would
have it is a deed too, and has its line.
"""

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from quittance.errors import NotFoundError
from quittance.store.dynamo import Patience, RefusedError, Value, answered, from_item, listing, put_new, update
from quittance.store.registry import FUNDING_PK, LISTING_INDEX, retirement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_dynamodb import DynamoDBClient

_LISTING: Final = "operations"
_SUFFIX_BYTES: Final = 5


class Action(StrEnum):
    """What an operator can do. The values are shown."""

    RETIRE = "retire"
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class Operation:
    """A line of the journal. `target` is an agent, an account, or `funding`."""

    action: Action
    target: str
    by: str
    reason: str
    at_ms: int
    operation_id: str = ""


class Operations:
    """The deeds of operators. Methods raise PlatformUnavailableError when DynamoDB does not answer: repeat them."""

    def __init__(self, client: "DynamoDBClient", *, table: str, left_ms: Callable[[], int]) -> None:
        self._client = client
        self._table = table
        self._left_ms = left_ms

    def perform(self, operation: Operation) -> Operation:
        """Does it, and returns its line in the journal. Raises NotFoundError for an agent that there is not."""
        line = replace(operation, operation_id=f"{operation.at_ms:013}-{secrets.token_hex(_SUFFIX_BYTES)}")
        journal = {"Put": put_new(self._table, _values(line))}
        try:
            self._send([{"Update": self._deed(line)}, journal])
        except RefusedError as refused:
            deed, stands = refused.items
            if stands is not None:  # it is our own write, whose answer was lost
                return line
            if deed is None:
                msg = f"There is no agent {operation.target!r}."
                raise NotFoundError(msg) from refused
            with suppress(RefusedError):  # our own write, whose answer was lost
                self._send([journal])  # the agent was retired before
        return line

    def page(self, *, limit: int, after: tuple[int, str] | None) -> tuple[list[Operation], bool]:
        """Up to `limit` lines, newest first, behind `after` (at_ms, operation id); and whether more follow.

        The index may lag by a second.
        """
        start: Mapping[str, Value] | None = None
        if after is not None:
            at_ms, operation_id = after
            start = {"pk": f"OPERATION#{operation_id}", "created_ms": at_ms}
        query = listing(
            self._table, LISTING_INDEX, "listing", _LISTING, after=start, newest_first=True, limit=limit + 1
        )
        answer = answered(partial(self._client.query, **query), self._patience())
        found = [_operation(item) for item in answer["Items"]]
        return found[:limit], len(found) > limit or "LastEvaluatedKey" in answer

    def _deed(self, line: Operation) -> dict[str, Any]:
        match line.action:
            case Action.RETIRE:
                return update(self._table, f"AGENT#{line.target}", **retirement(line.at_ms))
            case Action.FREEZE | Action.UNFREEZE:
                frozen = int(line.action is Action.FREEZE)
                return update(self._table, f"OWNER#{line.target}", set_={"frozen": frozen})
            case Action.PAUSE | Action.RESUME:
                return update(self._table, FUNDING_PK, set_={"paused": int(line.action is Action.PAUSE)})

    def _send(self, actions: list[dict[str, Any]]) -> None:
        send = partial(self._client.transact_write_items, TransactItems=actions)  # type: ignore[arg-type]  # built as plain dicts
        answered(send, self._patience())

    def _patience(self) -> Patience:
        return Patience(self._left_ms())


def _values(line: Operation) -> dict[str, Value | None]:
    return {
        "pk": f"OPERATION#{line.operation_id}",
        "listing": _LISTING,
        "created_ms": line.at_ms,
        "action": line.action,
        "target": line.target,
        "by": line.by,
        "reason": line.reason,
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
