"""What anyone can check: receipts, the log, webhook signatures, the ledger's invariants. Pure, except `replay`."""
