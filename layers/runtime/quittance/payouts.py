"""Payouts: what was withdrawn leaves the platform, or is returned. The operator decides each once.

The platform moves no money outside of itself: somebody reads what waits, pays it by other means, and records how that
ended. A decision is final, so a repeated one changes nothing, and two operators cannot decide differently.
"""

import re
from typing import Final

from quittance.bootstrap import Platform
from quittance.errors import InvalidRequestError, NotFoundError, PayoutConflictError
from quittance.journal import Payout, PayoutState, parse_payout_id
from quittance.limits import PAGE_ITEMS_MAX, PAYOUT_ID_CHARS_MAX
from quittance.models import PayoutAnswer, PayoutDecision, PayoutPage
from quittance.observability import logger
from quittance.reading import NO_CURSOR, read_cursor

_CURSOR: Final = re.compile(rf"(?P<at_ms>[0-9]{{1,15}})~(?P<payout_id>[A-Za-z0-9_-]{{1,{PAYOUT_ID_CHARS_MAX}}})")


def page(platform: Platform, *, limit: int, after: str | None) -> PayoutPage:
    """A page of payouts that wait, the longest waiting first.

    Raises InvalidRequestError for a cursor that is not ours, PlatformUnavailableError.
    """
    payouts, last = platform.ledger.payouts(
        limit=min(limit, PAGE_ITEMS_MAX), after=_read_cursor(after) if after else None
    )
    return PayoutPage(payouts=[_answer(platform, payout) for payout in payouts], next=_cursor(*last) if last else None)


def decide(platform: Platform, payout_id: str, decision: PayoutDecision, *, operator: str) -> PayoutAnswer:
    """Ends a payout as paid or failed, once. Raises NotFoundError, PayoutConflictError, PlatformUnavailableError."""
    payout = _find(platform, payout_id)
    state = PayoutState(decision.state)
    if payout.state is PayoutState.REQUESTED:
        payout = platform.ledger.decide_payout(payout, state, by=operator, now_ms=platform.now_ms())
    if payout.state is not state:
        raise PayoutConflictError(payout.payout_id, state=payout.state)
    logger.info("payout decided", payout_id=payout.payout_id, state=state, decided_by=payout.decided_by)
    return _answer(platform, payout)


def _find(platform: Platform, payout_id: str) -> Payout:
    try:
        found = platform.ledger.payout(*parse_payout_id(payout_id))
    except ValueError:
        found = None
    if found is None:
        msg = f"There is no payout {payout_id!r}."
        raise NotFoundError(msg)
    return found


def _answer(platform: Platform, payout: Payout) -> PayoutAnswer:
    return PayoutAnswer(
        payout_id=payout.payout_id,
        account_id=payout.account,
        withdrawal_id=payout.withdrawal_id,
        amount_micro=payout.amount_micro,
        state=payout.state,
        account_frozen=platform.registry.is_frozen(payout.account),
        requested_at=payout.requested_ms,
        decided_at=payout.decided_ms,
        decided_by=payout.decided_by,
    )


def _cursor(at_ms: int, account: str, withdrawal_id: str) -> str:
    return f"{at_ms}~{Payout(account, withdrawal_id, 0, at_ms, PayoutState.REQUESTED).payout_id}"


def _read_cursor(cursor: str) -> tuple[int, str, str]:
    match = read_cursor(_CURSOR, cursor)
    try:
        return int(match["at_ms"]), *parse_payout_id(match["payout_id"])
    except ValueError as exc:
        raise InvalidRequestError(NO_CURSOR) from exc
