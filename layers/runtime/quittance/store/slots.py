"""Slots: how many tasks of one account run at once, without an item that they all write.

    pk                       attributes
    SLOT#<account>#<number>  holder, lease_ms: which runner has it, and until when if it does not give it back

An account has as many slots as it may run tasks at once; who runs one holds a slot. Each slot is an item of its own, so
two runners meet at one only when few are free. A slot is taken by one conditional write, so there are never more
holders than slots; one whose holder died is free again when its lease lapses. Slots hold no money.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quittance.errors import PlatformUnavailableError
from quittance.limits import SLOT_TRIES_MAX
from quittance.observability import logger
from quittance.store.dynamo import BusyError, Patience, RefusedError, answered, attempt, from_item, read_items, update

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


@dataclass(frozen=True, slots=True)
class Busy:
    """No slot is free: the first one lapses then, unless it is given back before."""

    until_ms: int


class Slots:
    """The slots of all accounts. Methods raise PlatformUnavailableError when DynamoDB does not answer."""

    def __init__(self, client: "DynamoDBClient", *, table: str, left_ms: Callable[[], int]) -> None:
        self._client = client
        self._table = table
        self._left_ms = left_ms

    def take(
        self, account: str, holder: str, *, of: int, now_ms: int, lease_ms: int, reserve_ms: int = 0
    ) -> int | Busy:
        """Takes one of so many slots for a holder until `lease_ms`; returns its number.

        Costs one write while few slots are taken; when the first one that is tried is, one read of all besides.
        `reserve_ms` is the time that the run will need.
        """
        patience = Patience(self._left_ms(), reserve_ms=reserve_ms)

        def taken(number: int) -> bool:
            write = update(
                self._table,
                _pk(account, number),
                set_={"holder": holder, "lease_ms": lease_ms},
                condition="attribute_not_exists(#lease_ms) OR #lease_ms <= :now",
                values={":now": now_ms},
            )
            try:
                answered(lambda: self._client.update_item(**write), patience)
            except RefusedError as refused:
                stands = from_item(refused.items[0] or {})
                return bool(stands.get("holder") == holder)  # our own write, whose answer was lost
            return True

        number = random.randrange(of)  # noqa: S311 - spreads load, hides nothing
        if taken(number):
            return number
        pks = [_pk(account, number) for number in range(of)]
        found = read_items(self._client.batch_get_item, self._table, pks, patience, consistent=True)
        leases = [from_item(found[pk])["lease_ms"] if pk in found else 0 for pk in pks]
        free = [number for number, until_ms in enumerate(leases) if until_ms <= now_ms]
        for number in random.sample(free, min(len(free), SLOT_TRIES_MAX)):
            if taken(number):
                return number
        return Busy(min(leases))

    def give_back(self, account: str, number: int, holder: str) -> None:
        """Frees a slot, if it is still this holder's. If that fails, its lease frees it: later, but it does."""
        write = update(
            self._table,
            _pk(account, number),
            set_={"lease_ms": 0},
            condition="#holder = :me",
            values={":me": holder},
        )
        try:  # once: the task is settled, and its answer waits
            attempt(lambda: self._client.update_item(**write))
        except RefusedError:  # it lapsed, and somebody else has it
            return
        except (BusyError, PlatformUnavailableError):
            logger.warning("slot not given back")


def _pk(account: str, number: int) -> str:
    return f"SLOT#{account}#{number}"
