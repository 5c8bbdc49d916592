"""The one place where parts are put together: an environment's platform, each part made at its first use.

Lambda SnapStart copies an environment that has been initialised into many. So what is made before the snapshot is code
and public data only, and whatever is secret, random or connected is made after the restore, in each copy anew.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Final

from quittance.config import Settings, parts, settings
from quittance.observability import Metric, count
from quittance.store import clients

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

    from quittance.proof.statement import Purpose, SigningKey
    from quittance.sandbox import Sandbox
    from quittance.store.blobs import Binaries, Outputs, Tiles, Uploads
    from quittance.store.bus import Bus
    from quittance.store.keys import Keys
    from quittance.store.ledger import Ledger
    from quittance.store.operations import Operations
    from quittance.store.publisher import Publisher
    from quittance.store.queue import Queue
    from quittance.store.registry import Registry
    from quittance.store.slots import Slots

_LEFT_MS: Final = 30_000  # outside of Lambda: how long a call is tried again


class Platform:
    """What the use cases work with. A function imports and connects only the parts that it touches."""

    def __init__(self, config: Settings) -> None:
        self.settings = config
        self._remaining_ms: Callable[[], int] = lambda: _LEFT_MS
        self._kept_ms = 0

    def begin(self, remaining_ms: Callable[[], int]) -> None:
        """From now on serves an invocation that may live for so many milliseconds; one at a time."""
        self._remaining_ms = remaining_ms

    def left_ms(self) -> int:
        """How many milliseconds the present invocation may still live, without those that are kept free."""
        return self._remaining_ms() - self._kept_ms

    @contextmanager
    def keeping(self, kept_ms: int) -> Iterator[None]:
        """Keeps so many milliseconds of the invocation free of what is done meanwhile."""
        before_ms, self._kept_ms = self._kept_ms, self._kept_ms + kept_ms
        try:
            yield
        finally:
            self._kept_ms = before_ms

    def now_ms(self) -> int:
        """Milliseconds since the epoch, by this machine's clock."""
        return time.time_ns() // 1_000_000

    @cached_property
    def ledger(self) -> "Ledger":
        """The escrows and accounts."""
        from quittance.store.ledger import Ledger

        return Ledger(
            self._dynamodb,
            table=self.settings.ledger_table,
            work_shards=self.settings.ledger_shards,
            platform_account=self.settings.platform_account,
            left_ms=self.left_ms,
        )

    @cached_property
    def slots(self) -> "Slots":
        """The tasks of each account that run."""
        from quittance.store.slots import Slots

        return Slots(self._dynamodb, table=self.settings.ledger_table, left_ms=self.left_ms)

    @cached_property
    def registry(self) -> "Registry":
        """The agents."""
        from quittance.store.registry import Registry

        return Registry(self._dynamodb, table=self.settings.registry_table, left_ms=self.left_ms)

    @cached_property
    def operations(self) -> "Operations":
        """What operators do."""
        from quittance.store.operations import Operations

        return Operations(self._dynamodb, table=self.settings.registry_table, left_ms=self.left_ms)

    @cached_property
    def uploads(self) -> "Uploads":
        """Modules as authors posted them."""
        from quittance.store.blobs import Uploads

        return Uploads(self._s3, bucket=self.settings.uploads_bucket)

    @cached_property
    def binaries(self) -> "Binaries":
        """Published modules and artefacts."""
        from quittance.store.blobs import Binaries

        return Binaries(self._s3, bucket=self.settings.binaries_bucket, scratch_dir=self.settings.scratch_dir)

    @cached_property
    def outputs(self) -> "Outputs":
        """What agents wrote, and what they are given by the queue."""
        from quittance.store.blobs import Outputs

        return Outputs(self._s3, bucket=self.settings.outputs_bucket)

    @cached_property
    def tiles(self) -> "Tiles":
        """The published log."""
        from quittance.store.blobs import Tiles

        return Tiles(self._s3, bucket=self.settings.log_bucket)

    @cached_property
    def publisher(self) -> "Publisher":
        """The publish function."""
        from quittance.store.publisher import Publisher

        return Publisher(clients.functions(), function=self.settings.publish_function)

    @cached_property
    def queue(self) -> "Queue":
        """The tasks that wait for a worker."""
        from quittance.store.queue import Queue

        return Queue(clients.sqs(), url=self.settings.task_queue_url)

    @cached_property
    def dead_letters(self) -> "Queue":
        """The messages that no worker could do."""
        from quittance.store.queue import Queue

        return Queue(clients.sqs(), url=self.settings.dead_letters_url)

    @cached_property
    def keys(self) -> "Keys":
        """The keys that sign receipts, checkpoints and webhooks."""
        from quittance.proof.statement import Purpose
        from quittance.store.keys import Keys

        named = {
            Purpose.RECEIPT: self.settings.receipt_key_ids,
            Purpose.CHECKPOINT: self.settings.checkpoint_key_ids,
            Purpose.WEBHOOK: self.settings.webhook_key_ids,
        }
        roots = {purpose: parts(key_ids) for purpose, key_ids in named.items()}
        return Keys(clients.kms(), root_key_ids=roots, without_purpose=parts(self.settings.keys_without_purpose))

    def signing_key(self, purpose: "Purpose | None" = None, *, at_ms: int | None = None) -> "SigningKey":
        """The key that signs at a time, now by default; for receipts by default. Raises PlatformUnavailableError."""
        from quittance.proof.statement import Purpose

        now_s = (self.now_ms() if at_ms is None else at_ms) // 1_000
        return self.keys.signing_key(now_s=now_s, purpose=purpose or Purpose.RECEIPT)

    @cached_property
    def bus(self) -> "Bus":
        """Where events are told."""
        from quittance.store.bus import Bus

        return Bus(clients.events(), name=self.settings.event_bus)

    @cached_property
    def webhooks(self) -> "Queue":
        """What waits to be delivered to webhooks."""
        from quittance.store.queue import Queue

        return Queue(clients.sqs(), url=self.settings.webhook_queue_url)

    @cached_property
    def sandbox(self) -> "Sandbox":
        """The worker that runs agents."""
        from quittance.sandbox import Sandbox

        return Sandbox(started=partial(count, Metric.WORKER_STARTS), killed=partial(count, Metric.WORKER_KILLS))

    @cached_property
    def _dynamodb(self) -> "DynamoDBClient":
        return clients.dynamodb()

    @cached_property
    def _s3(self) -> "S3Client":
        return clients.s3()


def platform(context: "LambdaContext") -> Platform:
    """This environment's platform, for the invocation of a context."""
    made = _platform()
    made.begin(context.get_remaining_time_in_millis)
    return made


def prepare(*parts: str) -> None:
    """Names the parts of the platform that a function will touch: a snapshot of it then holds all that they load.

    Without SnapStart it does nothing, and parts are made at their first use.
    """
    _prepared.extend(parts)


def rehearse() -> None:
    """Before a snapshot: makes the prepared parts and forgets them. Their code and the services' descriptions stay.

    Raises what is wrong with the settings: then no version is published.
    """
    clients.without_credentials()
    rehearsed = Platform(settings())
    for part in _prepared:
        getattr(rehearsed, part)
    _forget()


def begin_anew() -> None:
    """After a restore: nothing that copies of a snapshot would share is used. A sandbox gets its worker meanwhile."""
    random.seed()
    _forget()
    if "sandbox" in _prepared:
        with suppress(Exception):  # the first run tries again, and tells
            _platform().sandbox.warm()


def _forget() -> None:
    """Drops the platform with its key, clients, caches and worker."""
    _platform.cache_clear()
    clients.forget()


@lru_cache(maxsize=1)
def _platform() -> Platform:
    return Platform(settings())


_prepared: list[str] = []
with suppress(ImportError):  # only Lambda's own runtime, and the tests, have it
    from snapshot_restore_py import (  # type: ignore[import-untyped]  # AWS ships it without types
        register_after_restore,
        register_before_snapshot,
    )

    register_before_snapshot(rehearse)
    register_after_restore(begin_anew)
