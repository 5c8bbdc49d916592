"""Reads and moves an account's credits, and records how payouts ended: `/accounts`, `/payouts`."""

from http import HTTPStatus

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import accounts

app = Api("accounts", "ledger", "registry")
app.serve("GET /accounts/me", accounts.balance, "Read one's balance", name="me")
app.serve("GET /accounts/me/statement", accounts.statement, "Read what moved one's credits")
app.serve(
    "GET /accounts/me/statement.csv", accounts.statement_csv, "Read what moved one's credits", name="get_statement_csv"
)
app.serve("GET /accounts/me/bond", accounts.bond, "Read one's bond")
app.serve("POST /accounts/me/bond", accounts.move_bond, "Fill or release one's bond", status=HTTPStatus.CREATED)
app.serve("GET /accounts/me/bond/statement", accounts.bond_statement, "Read what moved one's bond")
app.serve("POST /accounts/<account_id>/deposits", accounts.deposit, "Deposit credits", status=HTTPStatus.CREATED)
app.serve("POST /accounts/<account_id>/withdrawals", accounts.withdraw, "Withdraw credits", status=HTTPStatus.CREATED)
app.serve("GET /payouts", accounts.payouts, "List the payouts that wait", name="waiting", tag="payouts")
app.serve(
    "POST /payouts/<payout_id>", accounts.decide_payout, "Record how a payout ended", name="decide", tag="payouts"
)

handler = observed(app.resolve)
