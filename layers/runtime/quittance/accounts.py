"""Accounts: what one has, how that came, and the two ways in which credits enter and leave the platform."""

import re
from typing import Final

from quittance.bootstrap import Platform
from quittance.errors import AccountFrozenError, InvalidRequestError
from quittance.journal import Kind, Line
from quittance.limits import PAGE_ITEMS_MAX, STATED_TASK_CHARS_MAX
from quittance.models import (
    AccountAnswer,
    DepositAnswer,
    DepositRequest,
    StatementLine,
    StatementPage,
    WithdrawalAnswer,
    WithdrawalRequest,
)

_CURSOR: Final = re.compile(
    rf"(?P<at_ms>[0-9]{{1,15}})~(?P<kind>{'|'.join(Kind)})~(?P<reference>[A-Za-z0-9._~:-]{{1,{STATED_TASK_CHARS_MAX}}})"
)


def balance(platform: Platform, account: str) -> AccountAnswer:
    """What an account has. Raises PlatformUnavailableError."""
    pending = platform.ledger.pending(account)
    return AccountAnswer(
        account_id=account,
        available_micro=platform.ledger.available_micro(account),
        held_micro=pending.held_micro,
        earned_micro=pending.earned_micro,
    )


def statement(platform: Platform, account: str, *, limit: int, after: str | None) -> StatementPage:
    """A page of what moved an account's credits, newest first.

    Raises InvalidRequestError for a cursor that is not ours, PlatformUnavailableError.
    """
    lines, more = platform.ledger.statement(
        account, limit=min(limit, PAGE_ITEMS_MAX), after=_read_cursor(after) if after else None
    )
    last = lines[-1] if more and lines else None
    return StatementPage(
        account_id=account,
        lines=[_line(line) for line in lines],
        next=f"{last.at_ms}~{last.kind}~{last.reference}" if last else None,
    )


def deposit(platform: Platform, account: str, request: DepositRequest, *, depositor: str) -> DepositAnswer:
    """Adds credits to an account, once per id. Raises MovementConflictError, PlatformUnavailableError.

    `depositor` is the account of who asks for it: another's deposit under the same id is a conflict, not a repeat.
    """
    recorded_ms = platform.ledger.deposit(
        account, request.deposit_id, request.amount_micro, now_ms=platform.now_ms(), depositor=depositor
    )
    return DepositAnswer(
        account_id=account,
        deposit_id=request.deposit_id,
        amount_micro=request.amount_micro,
        recorded_at=recorded_ms,
    )


def withdraw(platform: Platform, account: str, request: WithdrawalRequest) -> WithdrawalAnswer:
    """Takes credits out, once per id; the operator then pays them out, or returns them (see payouts.py).

    Raises AccountFrozenError, InsufficientFundsError, MovementConflictError, PlatformUnavailableError.
    """
    if platform.registry.owner(account).frozen and platform.ledger.payout(account, request.withdrawal_id) is None:
        raise AccountFrozenError
    payout = platform.ledger.withdraw(account, request.withdrawal_id, request.amount_micro, now_ms=platform.now_ms())
    return WithdrawalAnswer(
        account_id=account,
        withdrawal_id=request.withdrawal_id,
        amount_micro=request.amount_micro,
        state=payout.state,
        recorded_at=payout.requested_ms,
    )


def _line(line: Line) -> StatementLine:
    return StatementLine(
        at=line.at_ms,
        kind=line.kind,
        id=line.reference,
        amount_micro=line.amount_micro,
        agent_id=line.agent_id,
        tasks=line.tasks,
        escrow_status=line.state,
        payout=line.payout,
    )


def _read_cursor(cursor: str) -> tuple[int, Kind, str]:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidRequestError(("after", "must be the `next` of an earlier page"))
    return int(match["at_ms"]), Kind(match["kind"]), match["reference"]
