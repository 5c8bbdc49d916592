"""Accounts: what one has, how that came, the ways in which credits enter and leave the platform, and the bond."""

import re
from typing import Final

from quittance.api.models import (
    AccountAnswer,
    BondAnswer,
    BondMoveAnswer,
    BondRequest,
    DepositAnswer,
    DepositRequest,
    PayoutAnswer,
    PayoutDecision,
    PayoutPage,
    StatementLine,
    StatementPage,
    WithdrawalAnswer,
    WithdrawalRequest,
)
from quittance.api.requests import NO_CURSOR, read_cursor
from quittance.errors import AccountFrozenError, BondInUseError, InvalidRequestError, NotFoundError, PayoutConflictError
from quittance.ledger.balances import bond_account
from quittance.ledger.journal import Line, LineKind, Payout, PayoutState, parse_payout_id
from quittance.limits import BOND_NOTICE_MS, PAGE_ITEMS_MAX, PAYOUT_ID_CHARS_MAX, STATED_TASK_CHARS_MAX
from quittance.observability import logger
from quittance.platform import Platform

_CURSOR: Final = re.compile(
    rf"(?P<at_ms>[0-9]{{1,15}})~(?P<kind>{'|'.join(LineKind)})~(?P<reference>[A-Za-z0-9._~:-]{{1,{STATED_TASK_CHARS_MAX}}})"
)


def balance(platform: Platform, account: str) -> AccountAnswer:
    """What an account has. Raises PlatformUnavailableError."""
    return AccountAnswer(
        account_id=account,
        available_micro=platform.ledger.available_micro(account),
        held_micro=platform.ledger.held_micro(account),
        earned_micro=platform.ledger.earned_micro(account),
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


def bond(platform: Platform, owner: str) -> BondAnswer:
    """What an owner's bond has, and what of it can be released now. Raises PlatformUnavailableError."""
    note_bond(platform, owner)  # whoever died before it did so may have left agents without tasks
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


def move_bond(platform: Platform, owner: str, request: BondRequest) -> BondMoveAnswer:
    """Moves credits into an owner's bond, or releases them, once per id.

    Raises AccountFrozenError and BondInUseError for a release, InsufficientFundsError, MovementConflictError,
    PlatformUnavailableError.
    """
    amount_micro, ledger = request.amount_micro, platform.ledger
    if amount_micro < 0 and ledger.bond_moved_ms(owner, request.bond_id, amount_micro) is None:
        if platform.registry.is_frozen(owner):
            raise AccountFrozenError
        in_use = _why_in_use(platform, owner)
        if in_use:
            raise in_use
    recorded_ms = ledger.move_bond(owner, request.bond_id, amount_micro, now_ms=platform.now_ms())
    note_bond(platform, owner)  # of a repeated request too: the first one may not have come so far
    return BondMoveAnswer(account_id=owner, bond_id=request.bond_id, amount_micro=amount_micro, recorded_at=recorded_ms)


def note_bond(platform: Platform, owner: str) -> None:
    """Records in the registry whether an owner's bond is below the minimum: then its agents take no tasks.

    Others may move the bond meanwhile, and record what they see. So whoever has written looks again, and the last one
    to write has seen the bond as it is. Raises PlatformUnavailableError.
    """
    noted = not platform.registry.owner(owner).bonded
    while (short := _is_short(platform, owner)) is not noted:
        platform.registry.set_bond_short(owner, short)
        noted = short


def _is_short(platform: Platform, owner: str) -> bool:
    return platform.ledger.available_micro(bond_account(owner)) < platform.settings.bond_minimum_micro


def _why_in_use(platform: Platform, owner: str) -> BondInUseError | None:
    """Why an owner's bond cannot be released now, if it cannot.

    Other environments may take tasks for a while after an agent was retired, and the index shows them a little later.
    """
    owned = platform.registry.agents_of(owner)
    if owned.unretired:
        return BondInUseError("an agent of yours is not retired. Retire all of them first")
    wait_ms = (owned.retired_ms or 0) + BOND_NOTICE_MS - platform.now_ms()
    if wait_ms > 0:
        reason = "an agent of yours was retired only now. Repeat the request later"
        return BondInUseError(reason, retry_after_s=-(-wait_ms // 1_000))
    if platform.ledger.has_open_work(owner):
        reason = "tasks of your agents are not settled and credited yet. Repeat the request later"
        return BondInUseError(reason, retry_after_s=BOND_NOTICE_MS // 1_000)
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


def _read_cursor(cursor: str) -> tuple[int, LineKind, str]:
    match = read_cursor(_CURSOR, cursor)
    return int(match["at_ms"]), LineKind(match["kind"]), match["reference"]


_PAYOUT_CURSOR: Final = re.compile(rf"(?P<at_ms>[0-9]{{1,15}})~(?P<payout_id>[A-Za-z0-9_-]{{1,{PAYOUT_ID_CHARS_MAX}}})")


def payouts(platform: Platform, *, limit: int, after: str | None) -> PayoutPage:
    """A page of payouts that wait, the longest waiting first.

    Raises InvalidRequestError for a cursor that is not ours, PlatformUnavailableError.
    """
    payouts, last = platform.ledger.payouts(
        limit=min(limit, PAGE_ITEMS_MAX), after=_read_payout_cursor(after) if after else None
    )
    return PayoutPage(payouts=[_answer(platform, payout) for payout in payouts], next=_cursor(*last) if last else None)


def decide_payout(platform: Platform, payout_id: str, decision: PayoutDecision, *, operator: str) -> PayoutAnswer:
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


def _read_payout_cursor(cursor: str) -> tuple[int, str, str]:
    match = read_cursor(_PAYOUT_CURSOR, cursor)
    try:
        return int(match["at_ms"]), *parse_payout_id(match["payout_id"])
    except ValueError as exc:
        raise InvalidRequestError(NO_CURSOR) from exc
