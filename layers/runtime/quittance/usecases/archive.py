"""Archives old escrows: moves what nothing changes any more from the ledger's table to S3, in the order of the log.

    read whole batches of the log → keep their escrows as one bundle → read the bundle back → leave tombstones → move on

An escrow is replaced by its tombstone only after its bundle was read back and has it exactly as it is
stored. Every step is safe to repeat after a crash, and two archivers may run at the same time: a bundle is stored once,
a write of a tombstone is conditional on the whole item, and so is that of the position.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from quittance.limits import BUNDLE_ESCROWS_MIN
from quittance.observability import Metric, count, logger
from quittance.platform import Platform
from quittance.store.archive import ArchiveDamagedError, Record, is_tombstone

_DAY_MS: Final = 24 * 60 * 60 * 1_000
_BUNDLE_MS_MAX: Final = 60_000  # of one bundle: none is begun with less time left


@dataclass(slots=True)
class Archived:
    """The result: how many escrows were replaced, in how many bundles, and whether all that are old enough are.

    `until` is the position in the log up to which escrows are archived.
    """

    escrows: int = 0
    bundles: int = 0
    until: int = 0
    complete: bool = False


def archive(platform: Platform) -> Archived:
    """Archives escrows that were swept `archive_after_days` ago, while the invocation has time. Nothing if that is 0.

    Raises PlatformUnavailableError, and ArchiveDamagedError if a bundle and the table differ: then nothing of that
    bundle is replaced, and nothing behind it.
    """
    done = Archived()
    if days := platform.settings.archive_after_days:
        before_ms = platform.now_ms() - days * _DAY_MS
        while platform.left_ms() >= _BUNDLE_MS_MAX and not done.complete:
            done.complete = not _archive_bundle(platform, before_ms, done)
        count(Metric.ARCHIVED, done.escrows)
        logger.info("archived", **asdict(done))
    return done


def _archive_bundle(platform: Platform, before_ms: int, done: Archived) -> bool:
    """Archives the next bundle; returns whether there was one whose escrows were all swept before a time."""
    ledger = platform.ledger
    head = ledger.log.head()
    if head.archived < done.until:
        msg = f"the archive's position stays at {head.archived}, although the bundle to {done.until} is archived"
        raise ArchiveDamagedError(msg)
    first = done.until = head.archived
    if head.published < first + BUNDLE_ESCROWS_MIN:
        return False
    pks = ledger.log.escrow_keys(first, at_least=BUNDLE_ESCROWS_MIN)
    stored = ledger.items(pks)
    if first + len(pks) > head.published or _swept_ms(pks, stored) > before_ms:
        return False
    if not any(map(is_tombstone, stored.values())):
        ledger.archive.keep(first, [stored[pk] for pk in pks])
    ledger.archive.forget()  # what counts is what S3 has
    records = ledger.archive.bundle(first)
    if len(records) != len(pks):  # another release archived it, with another size of bundles
        pks = ledger.log.escrow_keys(first, at_least=len(records))
        stored = ledger.items(pks)
        _swept_ms(pks, stored)
    _check_same(first, pks, stored, records)
    for record in records:
        done.escrows += ledger.leave_tombstone(record)
    ledger.log.set_archived(first, first + len(records))
    done.bundles += 1
    done.until = first + len(records)
    return True


def _swept_ms(pks: Sequence[str], stored: Mapping[str, Mapping[str, Any]]) -> int:
    """When the last of some escrows was swept. Raises ArchiveDamagedError if one is missing or was never swept."""
    if unswept := [pk for pk in pks if "swept_ms" not in stored.get(pk, {})]:
        msg = f"{unswept[0]} is in the log, but it is missing or not swept"
        raise ArchiveDamagedError(msg)
    return max(int(stored[pk]["swept_ms"]["N"]) for pk in pks)


def _check_same(
    first: int, pks: Sequence[str], stored: Mapping[str, Mapping[str, Any]], records: Sequence[Record]
) -> None:
    """Raises ArchiveDamagedError unless a bundle has exactly the escrows of its positions, as they are stored."""
    if [record.item.get("pk") for record in records] != [{"S": pk} for pk in pks]:
        msg = f"the bundle {first} has other escrows than the log at these positions"
        raise ArchiveDamagedError(msg)
    for pk, record in zip(pks, records, strict=True):
        due = record.tombstone if is_tombstone(stored[pk]) else record.item
        if stored[pk] != due:
            msg = f"{pk} is not as it is in the bundle {first}"
            raise ArchiveDamagedError(msg)
