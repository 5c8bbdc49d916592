"""A short round of fuzzing. `make proofs` runs the long one."""

import mmap

from quittance.run import Outcome
from quittance.sandbox import Refusal
from tests.depth import SEED
from tests.fuzz.fuzz import COMPILE_MEMORY_BYTES, fuzz, report
from tests.waiting import GENEROUS_S, Stopwatch

MODULES = 800


def test_no_fuzzed_module_harms_the_host(tmp_path, record_property):
    watch = Stopwatch()
    # This process may have grown as large as the compiler's limit before; forked children must cope with that.
    with mmap.mmap(-1, COMPILE_MEMORY_BYTES, flags=mmap.MAP_PRIVATE):
        tally = fuzz(modules=MODULES, seed=SEED, seconds=GENEROUS_S, keep=tmp_path)
    text = report(tally, SEED, watch.seconds())
    record_property("figure", f"sandbox fuzz: {text.splitlines()[0]}, {len(tally.faults)} faults")
    assert not tally.faults, text
    assert tally.modules == MODULES, text
    assert set(tally.ends) <= {*Outcome, *Refusal}, text
    assert {Outcome.SUCCEEDED, Refusal.MALFORMED, Refusal.INVALID_MODULE} <= set(tally.ends), text
