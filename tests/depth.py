"""How deep a run goes: `make test` is short; `make proofs` sets QUITTANCE_LONG and takes the same tests further."""

import os

LONG = "QUITTANCE_LONG" in os.environ
SEED = int(os.environ.get("QUITTANCE_FUZZ_SEED", "7"))
