"""The sweep: what is owed but is on nobody's path. Refunds expired escrows, credits owners and the platform.

Every step is idempotent, and several sweeps at the same time are harmless: the ledger's conditions decide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from quittance.bootstrap import Platform
from quittance.tasks import expire_if_overdue

_STOP_BEFORE_MS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Swept:
    """How many escrows one sweep refunded as expired, how many it credited, and whether it came to the end."""

    expired: int
    credited: int
    complete: bool


def sweep(platform: Platform, *, remaining_ms: Callable[[], int]) -> Swept:
    """Refunds what expired and credits what settled, until nothing is left or the invocation's time runs out.

    Raises PlatformUnavailableError; what was done by then is done.
    """
    expired = credited = 0
    for escrow_id in platform.ledger.overdue(now_ms=platform.now_ms()):
        if remaining_ms() < _STOP_BEFORE_MS:
            return Swept(expired, credited, complete=False)
        escrow = platform.ledger.find(escrow_id)
        if escrow is not None and escrow.settlement is None:
            expired += expire_if_overdue(platform, escrow).settlement is not None
    for batch in platform.ledger.credits():
        if remaining_ms() < _STOP_BEFORE_MS:
            return Swept(expired, credited, complete=False)
        credited += platform.ledger.credit(batch, now_ms=platform.now_ms())
    return Swept(expired, credited, complete=True)
