"""A DynamoDB client with the faults of networks, services and Lambda environments, and a journal of its writes.

Each `Faulty` belongs to one actor and is used by one thread. Its random numbers come from the seed, so a seed repeats
the faults. The order of threads on a real engine is not repeatable.
"""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from botocore.exceptions import ClientError, ReadTimeoutError


class Crash(BaseException):
    """The actor's process crashes. It is not an Exception, because no handler may catch it."""


@dataclass(frozen=True)
class Rates:
    """The probability of each fault, for each call. `delay` is the length of a pause in seconds."""

    crash_before: float = 0.04
    lost_answer: float = 0.06
    crash_after: float = 0.03
    conflict: float = 0.08
    throttle: float = 0.02
    pause: float = 0.01
    old_index: float = 0.3
    crash_running: float = 0.05
    pause_lease: float = 0.03
    pause_expiry: float = 0.03
    pause_close: float = 0.02
    lease_s: float = 0.0
    expiry_s: float = 0.0
    close_s: float = 0.0


@dataclass(frozen=True)
class Write:
    """One committed change of an escrow: its id, the values set, and the fence that the actor used."""

    escrow_id: str
    values: dict[str, Any]
    fence: int | None


@dataclass
class Journal:
    """All committed changes of escrows, and counts of the faults."""

    writes: list[Write] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, writes: list[Write]) -> None:
        with self._lock:
            self.writes += writes

    def count(self, fault: str) -> None:
        with self._lock:
            self.faults[fault] += 1


class Faulty:
    """A client with the calls that the ledger makes, and faults."""

    def __init__(self, client: Any, rates: Rates, journal: Journal, random: Random) -> None:
        self._client, self._rates, self._journal, self._random = client, rates, journal, random
        self._indexed: dict[str, Any] = {}
        self.fence: int | None = None  # the fence that the actor uses; the harness keeps it up to date

    def transact_write_items(self, **call: Any) -> Any:
        actions = len(call["TransactItems"])
        return self._write("transact_write_items", call, call["TransactItems"], actions)

    def update_item(self, **call: Any) -> Any:
        return self._write("update_item", call, [{"Update": call}], 0)

    def put_item(self, **call: Any) -> Any:
        return self._write("put_item", call, [{"Put": call}], 0)

    def get_item(self, **call: Any) -> Any:
        self._before(0, plain_write=False)
        return self._client.get_item(**call)

    def batch_get_item(self, **call: Any) -> Any:
        self._before(0, plain_write=False)
        return self._client.batch_get_item(**call)

    def transact_get_items(self, **call: Any) -> Any:
        self._before(len(call["TransactItems"]), plain_write=False)
        return self._client.transact_get_items(**call)

    def query(self, **call: Any) -> Any:
        """Queries an index. Sometimes the response is that of the previous query, because indexes lag."""
        self._before(0, plain_write=False)
        asked = repr(sorted(call["ExpressionAttributeValues"].items()))
        if asked in self._indexed and self._hit("old_index"):
            return self._indexed[asked]
        self._indexed[asked] = self._client.query(**call)
        return self._indexed[asked]

    def scan(self, **call: Any) -> Any:
        return self._client.scan(**call)

    def may_crash_running(self) -> None:
        """Faults of an actor while its agent runs."""
        if self._hit("crash_running"):
            raise Crash
        if self._hit("pause_lease"):
            time.sleep(self._rates.lease_s * self._random.uniform(1, 1.3))
        elif self._hit("pause_expiry"):
            time.sleep(self._rates.expiry_s * self._random.uniform(1, 1.1))
        elif self._hit("pause_close"):
            time.sleep(self._rates.close_s * self._random.uniform(1, 1.3))

    def _write(self, name: str, call: dict[str, Any], actions: list[dict[str, Any]], transacted: int) -> Any:
        self._before(transacted, plain_write=not transacted)
        send = getattr(self._client, name)
        answer = send(**call)
        self._journal.add([write for action in actions if (write := self._written(action)) is not None])
        if self._hit("crash_after"):
            raise Crash
        if self._hit("lost_answer"):
            if self._random.random() < 0.5:
                return send(**call)  # as botocore's own retries do
            raise ReadTimeoutError(endpoint_url="-")
        return answer

    def _before(self, transacted: int, *, plain_write: bool) -> None:
        if self._hit("crash_before"):
            raise Crash
        if self._hit("pause"):
            longest = self._random.choice((self._rates.lease_s, self._rates.expiry_s, self._rates.close_s))
            time.sleep(longest * self._random.uniform(0.9, 1.2))
        if self._hit("conflict"):
            if transacted:
                raise _cancelled(transacted, self._random.randrange(transacted), "TransactionConflict")
            if plain_write:
                raise _refused("TransactionConflictException")
        if self._hit("throttle"):
            if transacted and self._random.random() < 0.5:
                raise _cancelled(transacted, self._random.randrange(transacted), "ThrottlingError")
            raise _refused(self._random.choice(("ThrottlingException", "InternalServerError")))

    def _hit(self, fault: str) -> bool:
        if self._random.random() >= getattr(self._rates, fault):
            return False
        self._journal.count(fault)
        return True

    def _written(self, action: dict[str, Any]) -> Write | None:
        (change,) = action.values()
        pk = (change.get("Item") or change.get("Key"))["pk"]["S"]
        if not pk.startswith("ESC#"):
            return None
        values = change.get("Item") or change["ExpressionAttributeValues"]
        plain = {name.removeprefix(":new_"): next(iter(typed.values())) for name, typed in values.items()}
        return Write(pk.removeprefix("ESC#"), plain, self.fence)


def _cancelled(actions: int, which: int, code: str) -> ClientError:
    reasons: list[Any] = [{"Code": "None"}] * actions
    reasons[which] = {"Code": code}
    response: Any = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
    return ClientError(response, "TransactWriteItems")


def _refused(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}}, "injected")
