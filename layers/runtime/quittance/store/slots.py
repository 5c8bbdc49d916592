"""Slots: the limit on an account's concurrent tasks, without a single item that every task writes.

    pk                       attributes
    SLOT#<account>#<number>  holder, lease_ms: the runner that holds the slot, and when its lease lapses

An account has as many slots as it may run tasks at once, and a runner holds a slot during its task. Each slot is an
item of its own, so two runners collide on one only if few are free. One conditional write takes a slot, so there are
never more holders than slots. The slot of a crashed holder is free when the lease lapses. Slots hold no money.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quittance.errors import PlatformUnavailableError
from quittance.limits import SLOT_TRIES_MAX
from quittance.observability import logger
from quittance.store.dynamo import BusyError, Patience, RefusedError, attempt, from_item, read_items, retried, update

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


@dataclass(frozen=True, slots=True)
class Busy:
    """No slot is free. The first lease lapses at `until_ms`, unless a slot is released before."""

    until_ms: int


class Slots:
    """The slots of all accounts. Methods raise PlatformUnavailableError if DynamoDB does not answer."""

    def __init__(self, client: "DynamoDBClient", *, table: str, left_ms: Callable[[], int]) -> None:
        self._client = client
        self._table = table
        self._left_ms = left_ms

    def take(
        self, account: str, holder: str, *, of: int, now_ms: int, lease_ms: int, reserve_ms: int = 0
    ) -> int | Busy:
        """Takes one of the slots 0 to `of` - 1 for a holder until `lease_ms`; returns its number.

        Costs one write if the first slot that is tried is free, otherwise also a read of all slots. `reserve_ms` is the
        time to keep for the run.
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
                retried(lambda: self._client.update_item(**write), patience)
            except RefusedError as refused:
                stored = from_item(refused.items[0] or {})
                return bool(stored.get("holder") == holder)  # our own write, whose response was lost
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
        """Releases a slot if the holder still has it. If the call fails, the slot is free when its lease lapses."""
        write = update(
            self._table,
            _pk(account, number),
            set_={"lease_ms": 0},
            condition="#holder = :me",
            values={":me": holder},
        )
        try:  # no retry: the task is settled, and its response must not wait
            attempt(lambda: self._client.update_item(**write))
        except RefusedError:  # the lease lapsed, and another runner took the slot
            return
        except (BusyError, PlatformUnavailableError):
            logger.warning("slot not given back")


def _pk(account: str, number: int) -> str:
    return f"SLOT#{account}#{number}"
