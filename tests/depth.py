"""How much the tests try. `make test` is short; `make proofs` sets QUITTANCE_LONG, and the same tests try more.

QUITTANCE_FUZZ_SEED is the seed of all random choices.
"""

import os

LONG = "QUITTANCE_LONG" in os.environ
SEED = int(os.environ.get("QUITTANCE_FUZZ_SEED", "7"))
