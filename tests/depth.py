"""How deep a run goes: `make test` is short; `make proofs` sets QUITTANCE_LONG and takes the same tests further.

QUITTANCE_FUZZ_SEED repeats, or varies, what is left to chance.
"""

import os

LONG = "QUITTANCE_LONG" in os.environ
SEED = int(os.environ.get("QUITTANCE_FUZZ_SEED", "7"))
