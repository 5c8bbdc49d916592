"""An in-memory DynamoDB with what the ledger uses: its calls, their conditions, and their errors.

It is exact, and a call takes microseconds, so whole state spaces can be walked. test_memory.py compares it with real
engines. Anything that it does not implement raises an exception.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from botocore.exceptions import ClientError

from tests.proofs.world import TABLE, table_properties

Item = Mapping[str, Any]
_ABSENT: Final = {"absent": ""}
_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": lambda left, right: left == right,
    "<=": lambda left, right: left <= right,
    ">=": lambda left, right: left >= right,
    "<": lambda left, right: left < right,
    ">": lambda left, right: left > right,
}
_TERM: Final = re.compile(r"(\S+) (<=|>=|=|<|>) (\S+)")
_TEST: Final = re.compile(r"(attribute_exists|attribute_not_exists)\((\S+)\)")
_CLAUSE: Final = re.compile(r"\b(SET|ADD|REMOVE) ")


class Memory:
    """One table. `items` may be replaced as a whole to restore an earlier state."""

    def __init__(self, items: Mapping[str, Item] | None = None) -> None:
        self.items: dict[str, Item] = dict(items or {})

    def get_item(self, *, TableName: str, Key: Item, ConsistentRead: bool) -> dict[str, Any]:  # noqa: N803
        assert (TableName, ConsistentRead) == (TABLE, True)
        item = self.items.get(_pk(Key))
        return {"Item": dict(item)} if item is not None else {}

    def update_item(self, **call: Any) -> dict[str, Any]:
        item, holds = self._changed(call)
        if not holds:
            response = {"Error": {"Code": "ConditionalCheckFailedException"}} | _shown(self.items.get(_pk(call["Key"])))
            raise ClientError(response, "UpdateItem")  # type: ignore[arg-type]  # with the item, as in the service's response
        self.items[item["pk"]["S"]] = item
        return {}

    def put_item(self, **call: Any) -> dict[str, Any]:
        item, holds = self._changed(call)
        if not holds:
            response = {"Error": {"Code": "ConditionalCheckFailedException"}} | _shown(self.items.get(_pk(item)))
            raise ClientError(response, "PutItem")  # type: ignore[arg-type]  # with the item, as in the service's response
        self.items[_pk(item)] = item
        return {}

    def transact_write_items(self, *, TransactItems: list[Any], ClientRequestToken: str = "") -> dict[str, Any]:  # noqa: N803
        changes = [change for action in TransactItems for change in action.values()]
        keys = [_pk(change.get("Item") or change["Key"]) for change in changes]
        assert len(set(keys)) == len(keys) <= 100, "DynamoDB refuses such a transaction"
        results = [self._changed(change) for change in changes]
        if all(holds for _, holds in results):
            self.items.update((item["pk"]["S"], item) for item, _ in results)
            return {}
        reasons = [
            {"Code": "None"}
            if holds
            else {"Code": "ConditionalCheckFailed"}
            | (_shown(self.items.get(key)) if "ReturnValuesOnConditionCheckFailure" in change else {})
            for change, key, (_, holds) in zip(changes, keys, results, strict=True)
        ]
        response: Any = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
        raise ClientError(response, "TransactWriteItems")

    def transact_get_items(self, *, TransactItems: list[Any]) -> dict[str, Any]:  # noqa: N803
        return {"Responses": [_shown(self.items.get(_pk(get["Get"]["Key"]))) for get in TransactItems]}

    def batch_get_item(self, *, RequestItems: dict[str, Any]) -> dict[str, Any]:  # noqa: N803
        ((table, asked),) = RequestItems.items()
        assert (table, asked["ConsistentRead"]) == (TABLE, True)
        assert 0 < len(asked["Keys"]) <= 100, "DynamoDB refuses such a call"
        found = [self.items[pk] for key in asked["Keys"] if (pk := _pk(key)) in self.items]
        names = asked.get("ExpressionAttributeNames", {})
        shown = [names[name] for name in asked.get("ProjectionExpression", "").split(", ") if name]
        items = [{name: item[name] for name in shown or item if name in item} for item in found]
        return {"Responses": {TABLE: items}, "UnprocessedKeys": {}}

    def query(self, **call: Any) -> dict[str, Any]:
        """Queries an index: a hash key, optionally an upper bound, a filter and pages.

        Items have the projected attributes. As the service, it names a last key whenever a page is full.
        """
        names, values = call["ExpressionAttributeNames"], call["ExpressionAttributeValues"]
        conditions = [call["KeyConditionExpression"], *filter(None, [call.get("FilterExpression")])]
        indexes = {index["IndexName"]: index for index in table_properties()["GlobalSecondaryIndexes"]}
        index = indexes[call["IndexName"]]
        keys = [key["AttributeName"] for key in index["KeySchema"]]
        name, _, value = call["KeyConditionExpression"].partition(" AND ")[0].partition(" = ")
        assert names[name] == keys[0], "DynamoDB requires one value of the hash key"
        shown = {"pk", *keys, *index["Projection"].get("NonKeyAttributes", ())}
        found = [
            {name: value for name, value in item.items() if name in shown}
            for item in self.items.values()
            if item.get(keys[0]) == values[value]
            and all(key in item for key in keys)
            and all(_holds(condition, item, names, values) for condition in conditions)
        ]
        newest_first = not call.get("ScanIndexForward", True)

        def place(item: Item) -> tuple[int, str]:
            return int(item[keys[1]]["N"]), item["pk"]["S"]

        found.sort(key=place, reverse=newest_first)
        if start := call.get("ExclusiveStartKey"):
            found = [
                item for item in found if (place(item) < place(start)) == newest_first and place(item) != place(start)
            ]
        page = found[: call.get("Limit")]
        if len(page) < call.get("Limit", len(page) + 1):
            return {"Items": page}
        return {"Items": page, "LastEvaluatedKey": {name: page[-1][name] for name in ("pk", *keys)}}

    def scan(
        self,
        *,
        TableName: str,  # noqa: N803
        ConsistentRead: bool = True,  # noqa: N803
        Segment: int = 0,  # noqa: N803
        TotalSegments: int = 1,  # noqa: N803
    ) -> dict[str, Any]:
        return {"Items": [dict(self.items[pk]) for pk in segment_of(self.items, Segment, TotalSegments)]}

    def _changed(self, change: Mapping[str, Any]) -> tuple[Item, bool]:
        """The item after a put or an update, and whether the condition holds before it."""
        assert change["TableName"] == TABLE
        names = change.get("ExpressionAttributeNames", {})
        values = change.get("ExpressionAttributeValues", {})
        before = self.items.get(_pk(change.get("Item") or change["Key"]))
        condition = change.get("ConditionExpression")
        holds = condition is None or _holds(condition, before or {}, names, values)
        if "Item" in change:
            return change["Item"], holds
        item = dict(before or change["Key"])
        _, *parts = _CLAUSE.split(change["UpdateExpression"])
        for clause, body in zip(parts[::2], parts[1::2], strict=True):
            for assignment in body.split(", "):
                _apply(clause, assignment.strip(), item, names, values, only_if=holds)
        return item, holds


def segment_of(pks: Iterable[str], segment: int, segments: int) -> list[str]:
    """The keys of one segment of the table."""
    return [pk for pk in pks if zlib.crc32(pk.encode()) % segments == segment]


def _holds(expression: str, item: Item, names: Item, values: Item) -> bool:
    return any(
        all(_term(term, item, names, values) for term in part.split(" AND ")) for part in expression.split(" OR ")
    )


def _term(term: str, item: Item, names: Item, values: Item) -> bool:
    if match := _TEST.fullmatch(term):
        function, name = match.groups()
        return (names.get(name, name) in item) == (function == "attribute_exists")
    match = _TERM.fullmatch(term)
    assert match, f"cannot read the condition {term!r}"
    left, operator, right = match.groups()
    ((left_kind, left_value),) = _operand(left, item, names, values).items()
    ((right_kind, right_value),) = _operand(right, item, names, values).items()
    if "absent" in (left_kind, right_kind) or left_kind != right_kind:
        return False
    if left_kind == "N":
        left_value, right_value = int(left_value), int(right_value)
    return _COMPARE[operator](left_value, right_value)


def _operand(text: str, item: Item, names: Item, values: Item) -> Mapping[str, Any]:
    return values[text] if text.startswith(":") else item.get(names.get(text, text), _ABSENT)


def _apply(clause: str, text: str, item: dict[str, Any], names: Item, values: Item, *, only_if: bool) -> None:
    if clause == "REMOVE":
        item.pop(names.get(text, text), None)
        return
    if clause == "ADD":
        name, amount = text.split()
        total = int(item.get(name, {"N": "0"})["N"]) + int(values[amount]["N"])
        item[name] = {"N": str(total)}
        return
    name, _, value = text.partition(" = ")
    if " - " not in value:
        item[names.get(name, name)] = values[value]
        return
    left, _, right = value.partition(" - ")
    if left in item:
        item[name] = {"N": str(int(item[left]["N"]) - int(values[right]["N"]))}
    elif only_if:
        msg = f"DynamoDB cannot subtract from {left}, which is absent"
        raise ValueError(msg)


def _pk(key: Item) -> str:
    pk: str = key["pk"]["S"]
    return pk


def _shown(item: Item | None) -> dict[str, Any]:
    return {"Item": dict(item)} if item is not None else {}
