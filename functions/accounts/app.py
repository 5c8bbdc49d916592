"""Reads and moves an account's credits, and records how payouts ended: `/accounts`, `/payouts`."""

from quittance.api.http import Api
from quittance.observability import observed
from quittance.usecases import accounts

app = Api("accounts", "ledger", "registry")
app.serve("GET /accounts/me", accounts.balance, "Get your balance", name="get_balance")
app.serve("GET /accounts/me/statement", accounts.statement, "Get your statement", name="get_statement")
app.serve("GET /accounts/me/statement.csv", accounts.statement_csv, "Get your CSV statement", name="get_statement_csv")
app.serve("GET /accounts/me/bond", accounts.bond, "Get your bond", name="get_bond")
app.serve("POST /accounts/me/bond", accounts.move_bond, "Add to your bond, or release it", name="move_bond", status=201)
app.serve(
    "GET /accounts/me/bond/statement", accounts.bond_statement, "Get your bond's statement", name="get_bond_statement"
)
app.serve(
    "POST /accounts/<account_id>/deposits", accounts.deposit, "Deposit credits", name="deposit_credits", status=201
)
app.serve(
    "POST /accounts/<account_id>/withdrawals",
    accounts.withdraw,
    "Withdraw credits",
    name="withdraw_credits",
    status=201,
)
app.serve("GET /payouts", accounts.payouts, "List the payouts that wait", name="list_payouts", tag="payouts")
app.serve("POST /payouts/<payout_id>", accounts.decide_payout, "Record how a payout ended", tag="payouts")

handler = observed(app.resolve)
