"""Verify a receipt offline, as anyone can: reads {"receipt": ..., "jwks": ...} and prints the receipt's claims.

Only the built layer is on its import path, so it also shows that the layer is complete.
"""

import json
import sys


def main() -> None:
    """Verify the receipt on standard input; exit with status 1 if it is not valid."""
    layer, given = sys.argv[1], json.load(sys.stdin)
    sys.path.insert(0, layer)
    from quittance.proof import receipt, statement

    try:
        json.dump(receipt.verify(given["receipt"], given["jwks"]), sys.stdout)
    except statement.ProofError as error:
        sys.exit(str(error))


main()
