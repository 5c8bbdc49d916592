"""Receipts for tests: claims as a dictionary that a test may change, and a signature that does not check them."""

from collections.abc import Mapping
from typing import Any

from quittance.ledger.escrow import Escrow, Settlement
from quittance.proof import statement
from quittance.proof.receipt import RECEIPT, ReceiptClaims
from quittance.proof.statement import SigningKey
from quittance.run import Run


def claims_of(
    escrow: Escrow, settlement: Settlement, *, issuer: str, run: Run, engine: str, config_sha256: str
) -> dict[str, Any]:
    """The claims of a settlement as they are signed."""
    named = ReceiptClaims.of(escrow, settlement, run, issuer=issuer, engine=engine, config_sha256=config_sha256)
    return named.as_json()


def sign(stated: Mapping[str, Any], key: SigningKey) -> str:
    """A receipt of any claims, also of such as the platform never signs."""
    return statement.sign(stated, key, RECEIPT)
