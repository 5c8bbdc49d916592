"""The sweep: what is owed but is on nobody's path. Refunds expired escrows, credits owners and the platform.

Every step is idempotent, and several sweeps at the same time are harmless: the ledger's conditions decide. One item
that cannot be swept holds up no other: it is logged, counted and met again by the next sweep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from quittance.bootstrap import Platform
from quittance.observability import logger
from quittance.store.ledger import Credit
from quittance.tasks import expire_if_overdue

_STOP_BEFORE_MS: Final = 5_000


@dataclass(slots=True)
class Swept:
    """How many escrows one sweep refunded as expired, credited, and failed at; and whether it came to the end."""

    expired: int = 0
    credited: int = 0
    failed: int = 0
    complete: bool = False


def sweep(platform: Platform) -> Swept:
    """Refunds what expired and credits what settled, until nothing is left or the invocation's time runs out.

    Raises PlatformUnavailableError if the index itself does not answer; what was done by then is done.
    """
    done = Swept()
    for escrow_id in platform.ledger.overdue(now_ms=platform.now_ms()):
        if platform.left_ms() < _STOP_BEFORE_MS:
            return done
        _expire(platform, escrow_id, done)
    for batch in platform.ledger.credits():
        if platform.left_ms() < _STOP_BEFORE_MS:
            return done
        _credit(platform, batch, done)
    done.complete = True
    return done


def _expire(platform: Platform, escrow_id: str, done: Swept) -> None:
    try:
        escrow = platform.ledger.find(escrow_id)
        if escrow is not None and escrow.settlement is None:
            done.expired += expire_if_overdue(platform, escrow).settlement is not None
    except Exception:  # noqa: BLE001 - whatever is wrong with one escrow must not keep others' money
        logger.exception("not refunded", escrow_id=escrow_id)
        done.failed += 1


def _credit(platform: Platform, batch: Sequence[Credit], done: Swept) -> None:
    try:
        done.credited += platform.ledger.credit(batch, now_ms=platform.now_ms())
    except Exception:  # noqa: BLE001 - whatever is wrong with one agent must not keep others' earnings
        logger.exception("not credited", agent_id=batch[0].agent_id)
        done.failed += len(batch)
