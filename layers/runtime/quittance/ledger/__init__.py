"""The rules of money: credits, prices, escrows, balances, the journal, reputation. Pure."""
