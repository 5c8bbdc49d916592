"""The sweep: what is owed but is on nobody's path.

    refund what expired → credit owners and platform → append receipts to the log → publish the log

Every step is idempotent, and several sweeps at the same time are harmless: the ledger's conditions decide. One item
that cannot be swept holds up no other: it is logged, counted and met again by the next sweep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from quittance import log, tracing
from quittance.bootstrap import Platform
from quittance.certified import Purpose
from quittance.log import Checkpoint
from quittance.observability import logger
from quittance.tasks import expire_if_overdue

_STOP_BEFORE_MS: Final = 5_000
_PUBLISHED_AT_ONCE: Final = 10_000  # receipts, about: what one checkpoint adds has to fit into memory and time


@dataclass(slots=True)
class Swept:
    """How many escrows one sweep refunded as expired, credited, logged and failed at, and whether it got to the end.

    `published` is how many receipts the newest checkpoint tells of, if the sweep made one. `oldest_overdue_ms` is how
    long past its expiry the oldest escrow was that was still funded, and `lag_ms` how long the oldest settled one had
    waited to be credited; 0 if there was none.
    """

    expired: int = 0
    credited: int = 0
    logged: int = 0
    published: int | None = None
    failed: int = 0
    complete: bool = False
    oldest_overdue_ms: int = 0
    lag_ms: int = 0


def sweep(platform: Platform) -> Swept:
    """Does all that is to be done, until nothing is left or the invocation's time runs out.

    Raises PlatformUnavailableError if the index itself does not answer; what was done by then is done.
    """
    done = Swept()
    for escrow_id in platform.ledger.overdue(now_ms=platform.now_ms()):
        if platform.left_ms() < _STOP_BEFORE_MS:
            return done
        _expire(platform, escrow_id, done)
    done.lag_ms = _age_ms(platform, platform.ledger.uncredited_since_ms())
    for escrow_ids in platform.ledger.settled():
        if platform.left_ms() < _STOP_BEFORE_MS:
            return done
        _credit(platform, escrow_ids, done)
    for batch_id in platform.ledger.unlogged():
        if platform.left_ms() < _STOP_BEFORE_MS:
            return done
        _append(platform, batch_id, done)
    done.published = publish_log(platform)
    done.complete = True
    return done


@tracing.step("publish")
def publish_log(platform: Platform) -> int | None:
    """Publishes tiles and a signed checkpoint of what the log has got since the last one; returns its size.

    Tiles come before the checkpoint that needs them, and the ledger learns of the checkpoint last. All of it may be
    repeated: what a tile holds follows from the log. Raises PlatformUnavailableError.
    """
    head = platform.ledger.log_head()
    receipts: list[str] = []
    while len(receipts) < _PUBLISHED_AT_ONCE and head.published + len(receipts) < head.size:
        receipts += platform.ledger.logged(head.published + len(receipts))
    if not receipts:
        return None
    leaves = [log.leaf_hash(receipt.encode()) for receipt in receipts]
    growth = log.grow(head.published, leaves, platform.tiles.read)
    for tile, hashes in growth.tiles.items():
        platform.tiles.keep(tile, hashes)
    now_ms = platform.now_ms()
    checkpoint = Checkpoint(platform.settings.receipt_issuer, growth.size, growth.root, now_ms)
    key = platform.keys.signing_key(now_s=now_ms // 1_000, purpose=Purpose.CHECKPOINT)
    platform.tiles.keep_checkpoint(growth.size, log.sign_checkpoint(checkpoint, key))
    platform.ledger.set_published(growth.size)
    return growth.size


def _age_ms(platform: Platform, since_ms: int | None) -> int:
    return 0 if since_ms is None else max(platform.now_ms() - since_ms, 0)


@tracing.step("refund")
def _expire(platform: Platform, escrow_id: str, done: Swept) -> None:
    try:
        escrow = platform.ledger.find(escrow_id)
        if escrow is not None and escrow.settlement is None:
            done.oldest_overdue_ms = max(done.oldest_overdue_ms, _age_ms(platform, escrow.expires_ms))
            done.expired += expire_if_overdue(platform, escrow).settlement is not None
    except Exception:  # noqa: BLE001 - whatever is wrong with one escrow must not keep others' money
        logger.exception("not refunded", escrow_id=escrow_id)
        done.failed += 1


@tracing.step("credit")
def _credit(platform: Platform, escrow_ids: Sequence[str], done: Swept) -> None:
    try:
        done.credited += platform.ledger.credit(escrow_ids, now_ms=platform.now_ms())
    except Exception:  # noqa: BLE001 - whatever is wrong with one agent must not keep others' earnings
        logger.exception("not credited", escrow_id=escrow_ids[0])
        done.failed += len(escrow_ids)


@tracing.step("log")
def _append(platform: Platform, batch_id: str, done: Swept) -> None:
    try:
        done.logged += platform.ledger.append(batch_id)
    except Exception:  # noqa: BLE001 - whatever is wrong with one batch must not keep others out of the log
        logger.exception("not logged", batch_id=batch_id)
        done.failed += 1
