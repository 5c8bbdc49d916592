"""Accounts: balances and statements, deposits, withdrawals and their payouts, and the bond of an agent's owner."""

import csv
from io import StringIO
from typing import Annotated, Final
from urllib.parse import urlencode

from quittance.api.documentation import Document, MediaType
from quittance.api.identity import DEPOSIT_SCOPE, PAYOUT_SCOPE, Caller
from quittance.api.models import (
    AccountAnswer,
    AccountInPath,
    BondAnswer,
    BondMoveAnswer,
    BondRequest,
    DepositAnswer,
    DepositRequest,
    PayoutAnswer,
    PayoutDecision,
    PayoutId,
    PayoutPage,
    StatementLine,
    StatementPage,
    WithdrawalAnswer,
    WithdrawalRequest,
)
from quittance.api.requests import NO_CURSOR, Cursor, PageAfter, PageLimit
from quittance.errors import AccountFrozenError, BondInUseError, InvalidRequestError, NotFoundError, PayoutConflictError
from quittance.ledger import journal
from quittance.ledger.balances import bond_account
from quittance.ledger.journal import Line, LineKind, Payout, PayoutState, parse_payout_id
from quittance.limits import BOND_NOTICE_MS, EXPIRY_REFUND_MS_MAX, PAYOUT_ID_CHARS_MAX, STATED_TASK_CHARS_MAX
from quittance.observability import logger
from quittance.platform import Platform

_CSV: Final = "text/csv; charset=utf-8"
_LINES: Final = Cursor("|".join(LineKind), f"[A-Za-z0-9._~:-]{{1,{STATED_TASK_CHARS_MAX}}}")
_PAYOUTS: Final = Cursor(f"[A-Za-z0-9_-]{{1,{PAYOUT_ID_CHARS_MAX}}}")


def balance(platform: Platform, caller: Caller) -> AccountAnswer:
    """The caller's available, held and earned credits. Raises PlatformUnavailableError."""
    account = caller.account
    return AccountAnswer(
        account_id=account,
        available_micro=platform.ledger.available_micro(account),
        held_micro=platform.ledger.held_micro(account),
        earned_micro=platform.ledger.earned_micro(account),
    )


def statement(platform: Platform, caller: Caller, limit: PageLimit = 50, after: PageAfter = None) -> StatementPage:
    """A page of the movements of the caller's credits, newest first; the index may lag by a second.

    Raises InvalidRequestError for an invalid cursor, PlatformUnavailableError.
    """
    return _statement(platform, caller.account, limit, after)


def statement_csv(
    platform: Platform, caller: Caller, limit: PageLimit = 50, after: PageAfter = None
) -> Annotated[Document, MediaType(_CSV, headers=("Link",))]:
    """The same page as CSV (RFC 4180) with a line of names; the header `Link` leads to the next page.

    No cell is a formula: ids have no character that begins one but `-`, and none that calls a function. So a program
    reads each cell as it is. Raises InvalidRequestError for an invalid cursor, PlatformUnavailableError.
    """
    found = statement(platform, caller, limit, after)
    text = StringIO()
    lines = csv.DictWriter(text, [field.alias or name for name, field in StatementLine.model_fields.items()])
    lines.writeheader()
    lines.writerows(line.model_dump(mode="json", by_alias=True) for line in found.lines)
    headers = {"Cache-Control": "no-store"}
    if found.next:
        query = urlencode({"limit": limit, "after": found.next})
        headers["Link"] = f'</accounts/me/statement.csv?{query}>; rel="next"'
    return Document(text.getvalue(), _CSV, headers)


def bond_statement(platform: Platform, caller: Caller, limit: PageLimit = 50, after: PageAfter = None) -> StatementPage:
    """A page of the movements of the caller's bond, newest first. Raises as `statement` does."""
    return _statement(platform, bond_account(caller.account), limit, after)


def _statement(platform: Platform, account: str, limit: int, after: str | None) -> StatementPage:
    place = _LINES.read(after)
    lines, more = platform.ledger.statement(
        account, limit=limit, after=(place[0], LineKind(place[1]), place[2]) if place else None
    )
    last = lines[-1] if more and lines else None
    return StatementPage(
        account_id=account,
        lines=[_line(line) for line in lines],
        next=_LINES.write(last.at_ms, last.kind, last.reference) if last else None,
    )


def deposit(platform: Platform, caller: Caller, account_id: AccountInPath, request: DepositRequest) -> DepositAnswer:
    """Adds credits to any account, once per id; needs the scope `ledger:deposit`. `me` is the caller's own account.

    If another depositor has used the id, the deposit is a conflict, not a repeat. Raises MissingScopeError,
    MovementConflictError, PlatformUnavailableError.
    """
    caller.need(DEPOSIT_SCOPE)
    account = caller.named(account_id)
    recorded_ms = platform.ledger.deposit(
        account, request.deposit_id, request.amount_micro, now_ms=platform.now_ms(), depositor=caller.account
    )
    return DepositAnswer(
        account_id=account,
        deposit_id=request.deposit_id,
        amount_micro=request.amount_micro,
        recorded_at=recorded_ms,
    )


def withdraw(
    platform: Platform, caller: Caller, account_id: AccountInPath, request: WithdrawalRequest
) -> WithdrawalAnswer:
    """Takes credits out of the caller's own account, once per id; the operator then pays them out or returns them.

    Raises NotFoundError for another account, AccountFrozenError, InsufficientFundsError, MovementConflictError,
    PlatformUnavailableError.
    """
    account = caller.account
    if caller.named(account_id) != account:
        msg = "You can withdraw from your own account only."
        raise NotFoundError(msg)
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


def payouts(platform: Platform, caller: Caller, limit: PageLimit = 50, after: PageAfter = None) -> PayoutPage:
    """A page of withdrawals that wait to be paid out, the longest waiting first; needs the scope `ledger:payout`.

    Raises MissingScopeError, InvalidRequestError for an invalid cursor, PlatformUnavailableError.
    """
    caller.need(PAYOUT_SCOPE)
    waiting, last = platform.ledger.payouts(limit=limit, after=_read_payout_cursor(after))
    cursor = _PAYOUTS.write(last[0], journal.payout_id(*last[1:])) if last else None
    return PayoutPage(payouts=[_payout_answer(platform, payout) for payout in waiting], next=cursor)


def decide_payout(platform: Platform, caller: Caller, payout_id: PayoutId, request: PayoutDecision) -> PayoutAnswer:
    """Records once that a payout was paid or failed; needs the scope `ledger:payout`. A failed one is credited back.

    Raises MissingScopeError, NotFoundError, PayoutConflictError, PlatformUnavailableError.
    """
    caller.need(PAYOUT_SCOPE)
    payout, state = _payout(platform, payout_id), PayoutState(request.state)
    if payout.state is PayoutState.REQUESTED:
        payout = platform.ledger.decide_payout(payout, state, by=caller.account, now_ms=platform.now_ms())
    if payout.state is not state:
        raise PayoutConflictError(payout.payout_id, state=payout.state)
    logger.info("payout decided", payout_id=payout.payout_id, state=state, decided_by=payout.decided_by)
    return _payout_answer(platform, payout)


def bond(platform: Platform, caller: Caller) -> BondAnswer:
    """The caller's bond, and how much of it can be released now. Raises PlatformUnavailableError."""
    owner = caller.account
    note_bond(platform, owner)  # an earlier request may have filled the bond and crashed before this step
    has = platform.ledger.bond(owner)
    free = not has.available_micro or _why_in_use(platform, owner) is None
    return BondAnswer(
        account_id=owner,
        available_micro=has.available_micro,
        held_micro=platform.ledger.held_micro(bond_account(owner)),
        charged_micro=has.charged_micro,
        releasable_micro=has.available_micro if free else 0,
        minimum_micro=platform.settings.bond_minimum_micro,
    )


def move_bond(platform: Platform, caller: Caller, request: BondRequest) -> BondMoveAnswer:
    """Moves credits into the caller's bond, or back if `amount` is negative, once per id.

    Raises AccountFrozenError and BondInUseError for a release, InsufficientFundsError, MovementConflictError,
    PlatformUnavailableError.
    """
    owner, amount_micro, ledger = caller.account, request.amount_micro, platform.ledger
    if amount_micro < 0 and ledger.bond_moved_ms(owner, request.bond_id, amount_micro) is None:
        if platform.registry.is_frozen(owner):
            raise AccountFrozenError
        in_use = _why_in_use(platform, owner)
        if in_use:
            raise in_use
    recorded_ms = ledger.move_bond(owner, request.bond_id, amount_micro, now_ms=platform.now_ms())
    note_bond(platform, owner)  # also for a repeated request: the first may have crashed before this step
    return BondMoveAnswer(account_id=owner, bond_id=request.bond_id, amount_micro=amount_micro, recorded_at=recorded_ms)


def note_bond(platform: Platform, owner: str) -> None:
    """Records in the registry whether an owner's bond is below the minimum: then its agents take no tasks.

    Concurrent invocations may also move the bond and record what they read. So each one reads the bond again after its
    write, and writes again if the bond has crossed the minimum. Raises PlatformUnavailableError.
    """
    noted = not platform.registry.owner(owner).bonded
    while (short := _is_short(platform, owner)) is not noted:
        platform.registry.set_bond_short(owner, short)
        noted = short


def _is_short(platform: Platform, owner: str) -> bool:
    return platform.ledger.available_micro(bond_account(owner)) < platform.settings.bond_minimum_micro


def _why_in_use(platform: Platform, owner: str) -> BondInUseError | None:
    """Why an owner's bond cannot be released now; None if it can.

    The index lists what is settled and not credited, so nothing may be funded that can still charge the bond. An
    environment with an agent in its cache takes tasks for AGENT_AGE_MS_MAX after it is retired, and each escrow expires
    ESCROW_MS_MAX later at the latest. From then on it can only be refunded, as the platform's fault, which charges no
    bond. So a release must wait for BOND_NOTICE_MS, the sum of both.
    """
    owned = platform.registry.agents_of(owner)
    if owned.unretired:
        return BondInUseError("an agent of yours is not retired. Retire all of them first")
    wait_ms = (owned.retired_ms or 0) + BOND_NOTICE_MS - platform.now_ms()
    if wait_ms > 0:
        minutes = BOND_NOTICE_MS // 60_000
        reason = f"an agent of yours was retired less than {minutes} minutes ago. Repeat the request later"
        return BondInUseError(reason, retry_after_s=-(-wait_ms // 1_000))
    if platform.ledger.has_open_work(owner):
        reason = "tasks of your agents are not settled and credited yet. Repeat the request later"
        return BondInUseError(reason, retry_after_s=EXPIRY_REFUND_MS_MAX // 1_000)
    return None


def _line(line: Line) -> StatementLine:
    return StatementLine(
        at=line.at_ms,
        kind=line.kind,
        id=line.reference,
        amount_micro=line.amount_micro,
        agent_id=line.agent_id,
        tasks=line.tasks,
        escrow_status=line.state,
        due_micro=line.due_micro,
        payout=line.payout,
    )


def _payout(platform: Platform, payout_id: str) -> Payout:
    try:
        found = platform.ledger.payout(*parse_payout_id(payout_id))
    except ValueError:
        found = None
    if found is None:
        msg = f"There is no payout {payout_id!r}."
        raise NotFoundError(msg)
    return found


def _payout_answer(platform: Platform, payout: Payout) -> PayoutAnswer:
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


def _read_payout_cursor(after: str | None) -> tuple[int, str, str] | None:
    place = _PAYOUTS.read(after)
    try:
        return (place[0], *parse_payout_id(place[1])) if place else None
    except ValueError as exc:
        raise InvalidRequestError(NO_CURSOR) from exc
