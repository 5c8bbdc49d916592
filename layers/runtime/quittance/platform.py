"""The composition root: an environment's platform, whose parts are created at their first use.

Lambda SnapStart copies one initialised environment many times. So the snapshot contains only code and public data.
Keys, random state and connections are created after the restore, separately in each copy.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Final

from quittance.config import Settings, settings, split_list
from quittance.observability import Metric, count
from quittance.store import clients

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

    from quittance.proof.statement import Purpose, SigningKey
    from quittance.sandbox import Sandbox
    from quittance.store.audit_results import AuditResults
    from quittance.store.blobs import Binaries, Bundles, Outputs, Tiles, Uploads
    from quittance.store.bus import Bus
    from quittance.store.channels import Channels
    from quittance.store.drains import Drains
    from quittance.store.keys import Keys
    from quittance.store.ledger import Ledger
    from quittance.store.listings import Listings
    from quittance.store.operations import Operations
    from quittance.store.publisher import Publisher
    from quittance.store.queue import Queue
    from quittance.store.registry import Registry
    from quittance.store.slots import Slots

_LEFT_MS: Final = 30_000  # outside Lambda: the assumed time that is left, which bounds retries


class Platform:
    """The parts that use cases work with. A function imports and connects only the parts that it uses."""

    def __init__(self, config: Settings) -> None:
        self.settings = config
        self._remaining_ms: Callable[[], int] = lambda: _LEFT_MS
        self._reserved_ms = 0

    def begin(self, remaining_ms: Callable[[], int]) -> None:
        """Begins an invocation, which has this much time left. An environment serves one invocation at a time."""
        self._remaining_ms = remaining_ms

    def left_ms(self) -> int:
        """How many milliseconds are left to the current invocation, without the reserved ones."""
        return self._remaining_ms() - self._reserved_ms

    @contextmanager
    def reserving(self, reserve_ms: int) -> Iterator[None]:
        """Reserves time for what follows: inside the context, `left_ms` is shorter by so many milliseconds."""
        before_ms, self._reserved_ms = self._reserved_ms, self._reserved_ms + reserve_ms
        try:
            yield
        finally:
            self._reserved_ms = before_ms

    def now_ms(self) -> int:
        """Milliseconds since the epoch, by this machine's clock."""
        return time.time_ns() // 1_000_000

    @cached_property
    def ledger(self) -> "Ledger":
        """The escrows and accounts."""
        from quittance.store.archive import Archive
        from quittance.store.ledger import Ledger

        return Ledger(
            self._dynamodb,
            table=self.settings.ledger_table,
            work_shards=self.settings.ledger_shards,
            platform_account=self.settings.platform_account,
            left_ms=self.left_ms,
            archive=Archive(lambda: self.bundles),
        )

    @cached_property
    def bundles(self) -> "Bundles":
        """Archived escrows."""
        from quittance.store.blobs import Bundles

        return Bundles(self._s3, bucket=self.settings.archive_bucket)

    @cached_property
    def channels(self) -> "Channels":
        """The payment channels."""
        from quittance.store.channels import Channels

        return Channels(self._dynamodb, table=self.settings.ledger_table, ledger=self.ledger, left_ms=self.left_ms)

    @cached_property
    def slots(self) -> "Slots":
        """The slots of the running tasks of each account."""
        from quittance.store.slots import Slots

        return Slots(self._dynamodb, table=self.settings.ledger_table, left_ms=self.left_ms)

    @cached_property
    def registry(self) -> "Registry":
        """The agents."""
        from quittance.store.registry import Registry

        return Registry(self._dynamodb, table=self.settings.registry_table, left_ms=self.left_ms)

    @cached_property
    def listings(self) -> "Listings":
        """The runs of agents, the tasks of accounts, and the index of agents."""
        from quittance.store.listings import Listings

        return Listings(self._dynamodb, table=self.settings.listings_table, left_ms=self.left_ms)

    @cached_property
    def operations(self) -> "Operations":
        """The operators' actions, and their journal."""
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
        """Outputs of agents, and inputs that are too large for a queue message."""
        from quittance.store.blobs import Outputs

        return Outputs(self._s3, bucket=self.settings.outputs_bucket)

    @cached_property
    def audit_results(self) -> "AuditResults":
        """What the parts of an audit found, if they run in several invocations."""
        from quittance.store.audit_results import AuditResults

        return AuditResults(self._s3, bucket=self.settings.outputs_bucket)

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
    def drains(self) -> "Drains":
        """The drain function."""
        from quittance.store.drains import Drains

        return Drains(clients.functions(), function=self.settings.drain_function)

    @cached_property
    def queue(self) -> "Queue":
        """The queue of tasks."""
        from quittance.store.queue import Queue

        return Queue(clients.sqs(), url=self.settings.task_queue_url)

    @cached_property
    def dead_letters(self) -> "Queue":
        """The dead-letter queue of the queue of tasks."""
        from quittance.store.queue import Queue

        return Queue(clients.sqs(), url=self.settings.dead_letters_url)

    @cached_property
    def keys(self) -> "Keys":
        """The keys that sign receipts, checkpoints, webhooks and agent cards."""
        from quittance.proof.statement import Purpose
        from quittance.store.keys import Keys

        named = {
            Purpose.RECEIPT: self.settings.receipt_key_ids,
            Purpose.CHECKPOINT: self.settings.checkpoint_key_ids,
            Purpose.WEBHOOK: self.settings.webhook_key_ids,
            Purpose.CARD: self.settings.card_key_ids,
        }
        roots = {purpose: split_list(key_ids) for purpose, key_ids in named.items()}
        return Keys(clients.kms(), root_key_ids=roots, without_purpose=split_list(self.settings.keys_without_purpose))

    def signing_key(self, purpose: "Purpose | None" = None, *, at_ms: int | None = None) -> "SigningKey":
        """The key that signs at a time, now by default; for receipts by default. Raises PlatformUnavailableError."""
        from quittance.proof.statement import Purpose

        now_s = (self.now_ms() if at_ms is None else at_ms) // 1_000
        return self.keys.signing_key(now_s=now_s, purpose=purpose or Purpose.RECEIPT)

    @cached_property
    def bus(self) -> "Bus":
        """The event bus."""
        from quittance.store.bus import Bus

        return Bus(clients.events(), name=self.settings.event_bus)

    @cached_property
    def webhooks(self) -> "Queue":
        """The queue of events for webhooks."""
        from quittance.store.queue import Queue

        return Queue(clients.sqs(), url=self.settings.webhook_queue_url)

    @cached_property
    def sandbox(self) -> "Sandbox":
        """The sandbox that runs agents."""
        from quittance.sandbox import Sandbox

        return Sandbox(started=partial(count, Metric.WORKER_STARTS), killed=partial(count, Metric.WORKER_KILLS))

    @cached_property
    def _dynamodb(self) -> "DynamoDBClient":
        return clients.dynamodb()

    @cached_property
    def _s3(self) -> "S3Client":
        return clients.s3()


def platform(context: "LambdaContext") -> Platform:
    """This environment's platform, for the invocation with this context."""
    made = _platform()
    made.begin(context.get_remaining_time_in_millis)
    return made


def prepare(*parts: str) -> None:
    """Names the parts of the platform that a function uses, so that its snapshot contains the code that they load.

    Without SnapStart this has no effect: parts are created at their first use.
    """
    _prepared.extend(parts)


def before_snapshot() -> None:
    """Creates the prepared parts and discards them. The loaded code and the AWS service descriptions stay in memory.

    Raises if a setting is wrong: then Lambda publishes no version.
    """
    clients.without_credentials()
    discarded = Platform(settings())
    for part in _prepared:
        getattr(discarded, part)
    _forget()


def after_restore() -> None:
    """Drops what copies of a snapshot must not share: keys, connections, random state. Starts the sandbox worker."""
    random.seed()
    _forget()
    if "sandbox" in _prepared:
        with suppress(Exception):  # the first run starts the worker again, and reports a failure
            _platform().sandbox.warm()


def _forget() -> None:
    """Drops the platform with its keys, clients, caches and worker."""
    _platform.cache_clear()
    clients.forget()


@lru_cache(maxsize=1)
def _platform() -> Platform:
    return Platform(settings())


_prepared: list[str] = []
with suppress(ImportError):  # installed only in Lambda's runtime and in the tests
    from snapshot_restore_py import (  # type: ignore[import-untyped]  # AWS ships it without types
        register_after_restore,
        register_before_snapshot,
    )

    register_before_snapshot(before_snapshot)
    register_after_restore(after_restore)
