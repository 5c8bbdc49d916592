"""Check a receipt offline, as anybody could: {"receipt": ..., "jwks": ...} in, its claims out.

Run with the built layer alone on the path, so it also shows that the layer lacks nothing.
"""

import json
import sys


def main() -> None:
    """Verify what comes on standard input; a receipt that proves nothing ends with status 1."""
    layer, given = sys.argv[1], json.load(sys.stdin)
    sys.path.insert(0, layer)
    from quittance.proof import receipt, statement

    try:
        json.dump(receipt.verify(given["receipt"], given["jwks"]), sys.stdout)
    except statement.ProofError as error:
        sys.exit(str(error))


main()
