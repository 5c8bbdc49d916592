"""Shows and moves an account's credits, and decides payouts: `/accounts`, `/payouts`."""

from http import HTTPStatus
from typing import Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.utilities.typing import LambdaContext

from quittance.api.http import PREFIX, PageAfter, PageLimit, answer, api, caller, responses
from quittance.api.identity import DEPOSIT_SCOPE, PAYOUT_SCOPE
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
    StatementPage,
    WithdrawalAnswer,
    WithdrawalRequest,
)
from quittance.errors import NotFoundError
from quittance.ledger.balances import bond_account
from quittance.observability import observed
from quittance.platform import platform, prepare
from quittance.usecases import accounts

app = api()
prepare("ledger", "registry")
_TAGS = ["accounts"]


@app.get(
    f"{PREFIX}/accounts/me",
    summary="Read one's balance",
    tags=_TAGS,
    responses=responses((HTTPStatus.OK, AccountAnswer)),
)
def me() -> Response[str]:
    """What the caller has."""
    return answer(accounts.balance(platform(app.lambda_context), caller(app).account))


@app.get(
    f"{PREFIX}/accounts/me/statement",
    summary="Read what moved one's credits",
    tags=_TAGS,
    responses=responses((HTTPStatus.OK, StatementPage)),
)
def statement(
    limit: PageLimit = 50,
    after: PageAfter = None,
) -> Response[str]:
    """Every movement of the caller's credits, newest first; the index behind it may lag by a second."""
    account = caller(app).account
    return answer(accounts.statement(platform(app.lambda_context), account, limit=limit, after=after))


@app.get(
    f"{PREFIX}/accounts/me/bond",
    summary="Read one's bond",
    tags=_TAGS,
    responses=responses((HTTPStatus.OK, BondAnswer)),
)
def bond() -> Response[str]:
    """What the caller has put up for failures of its agents, and what of it can be released now."""
    return answer(accounts.bond(platform(app.lambda_context), caller(app).account))


@app.post(
    f"{PREFIX}/accounts/me/bond",
    summary="Fill or release one's bond",
    tags=_TAGS,
    responses=responses((HTTPStatus.CREATED, BondMoveAnswer)),
    status_code=HTTPStatus.CREATED,
)
def move_bond(request: BondRequest) -> Response[str]:
    """Moves credits from the caller's account into its bond, or back if `amount` has a minus.

    A release needs that all agents of the caller were retired four minutes ago, and that their tasks are credited.
    """
    moved = accounts.move_bond(platform(app.lambda_context), caller(app).account, request)
    return answer(moved, HTTPStatus.CREATED)


@app.get(
    f"{PREFIX}/accounts/me/bond/statement",
    summary="Read what moved one's bond",
    tags=_TAGS,
    responses=responses((HTTPStatus.OK, StatementPage)),
)
def bond_statement(
    limit: PageLimit = 50,
    after: PageAfter = None,
) -> Response[str]:
    """Every movement of the caller's bond, newest first; the index behind it may lag by a second."""
    account = bond_account(caller(app).account)
    return answer(accounts.statement(platform(app.lambda_context), account, limit=limit, after=after))


@app.post(
    f"{PREFIX}/accounts/<account_id>/deposits",
    summary="Deposit credits",
    tags=_TAGS,
    responses=responses((HTTPStatus.CREATED, DepositAnswer)),
    status_code=HTTPStatus.CREATED,
)
def deposit(account_id: AccountInPath, request: DepositRequest) -> Response[str]:
    """Adds credits to any account; needs the scope `ledger:deposit`. `me` is the caller's own account."""
    bank = caller(app)
    bank.need(DEPOSIT_SCOPE)
    account = bank.named(account_id)
    done = accounts.deposit(platform(app.lambda_context), account, request, depositor=bank.account)
    return answer(done, HTTPStatus.CREATED)


@app.post(
    f"{PREFIX}/accounts/<account_id>/withdrawals",
    summary="Withdraw credits",
    tags=_TAGS,
    responses=responses((HTTPStatus.CREATED, WithdrawalAnswer)),
    status_code=HTTPStatus.CREATED,
)
def withdraw(account_id: AccountInPath, request: WithdrawalRequest) -> Response[str]:
    """Takes credits out of the caller's own account, named by its id or as `me`."""
    own = caller(app)
    if own.named(account_id) != own.account:
        msg = "You can withdraw from your own account only."
        raise NotFoundError(msg)
    return answer(accounts.withdraw(platform(app.lambda_context), own.account, request), HTTPStatus.CREATED)


@app.get(
    f"{PREFIX}/payouts",
    summary="List the payouts that wait",
    tags=["payouts"],
    responses=responses((HTTPStatus.OK, PayoutPage)),
)
def waiting(
    limit: PageLimit = 50,
    after: PageAfter = None,
) -> Response[str]:
    """Withdrawals that are to be paid out, the longest waiting first; needs the scope `ledger:payout`."""
    caller(app).need(PAYOUT_SCOPE)
    return answer(accounts.payouts(platform(app.lambda_context), limit=limit, after=after))


@app.post(
    f"{PREFIX}/payouts/<payout_id>",
    summary="Record how a payout ended",
    tags=["payouts"],
    responses=responses((HTTPStatus.OK, PayoutAnswer)),
)
def decide(payout_id: PayoutId, request: PayoutDecision) -> Response[str]:
    """Ends a payout once, as paid or failed; needs the scope `ledger:payout`. What failed is available again."""
    operator = caller(app)
    operator.need(PAYOUT_SCOPE)
    return answer(accounts.decide_payout(platform(app.lambda_context), payout_id, request, operator=operator.account))


@observed
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry."""
    return app.resolve(event, context)
