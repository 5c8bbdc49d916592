"""Whose money it is, and how much: credits, prices, escrows, balances, the journal, reputation. Pure."""
