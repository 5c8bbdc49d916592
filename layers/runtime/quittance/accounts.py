"""Accounts: what one has, and the two ways in which credits enter and leave the platform."""

from quittance.bootstrap import Platform
from quittance.models import AccountAnswer, DepositAnswer, DepositRequest, WithdrawalAnswer, WithdrawalRequest


def balance(platform: Platform, account: str) -> AccountAnswer:
    """What an account has. Raises PlatformUnavailableError."""
    pending = platform.ledger.pending(account)
    return AccountAnswer(
        account_id=account,
        available_micro=platform.ledger.available_micro(account),
        held_micro=pending.held_micro,
        earned_micro=pending.earned_micro,
    )


def deposit(platform: Platform, account: str, request: DepositRequest) -> DepositAnswer:
    """Adds credits to an account, once per id. Raises MovementConflictError, PlatformUnavailableError."""
    recorded_ms = platform.ledger.deposit(account, request.deposit_id, request.amount_micro, now_ms=platform.now_ms())
    return DepositAnswer(
        account_id=account,
        deposit_id=request.deposit_id,
        amount_micro=request.amount_micro,
        recorded_at=recorded_ms,
    )


def withdraw(platform: Platform, account: str, request: WithdrawalRequest) -> WithdrawalAnswer:
    """Takes credits out, once per id.

    Raises InsufficientFundsError, MovementConflictError, PlatformUnavailableError.
    """
    recorded_ms = platform.ledger.withdraw(
        account, request.withdrawal_id, request.amount_micro, now_ms=platform.now_ms()
    )
    return WithdrawalAnswer(
        account_id=account,
        withdrawal_id=request.withdrawal_id,
        amount_micro=request.amount_micro,
        recorded_at=recorded_ms,
    )
