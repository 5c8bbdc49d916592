"""A short round of fuzzing. The long one is of `make proofs`."""

import mmap

from quittance.run import Outcome
from quittance.sandbox import Refusal
from tests.depth import SEED
from tests.fuzz.fuzz import COMPILE_MEMORY_BYTES, fuzz, report
from tests.waiting import GENEROUS_S, Stopwatch

MODULES = 800


def test_no_module_harms_the_host(tmp_path, record_property):
    watch = Stopwatch()
    with mmap.mmap(-1, COMPILE_MEMORY_BYTES, flags=mmap.MAP_PRIVATE):  # this process may have grown that large before
        tally = fuzz(modules=MODULES, seed=SEED, seconds=GENEROUS_S, keep=tmp_path)
    text = report(tally, SEED, watch.seconds())
    record_property("figure", f"sandbox fuzz: {text.splitlines()[0]}, {len(tally.faults)} faults")
    assert not tally.faults, text
    assert tally.modules == MODULES, text
    assert set(tally.ends) <= {*Outcome, *Refusal}, text
    assert {Outcome.SUCCEEDED, Refusal.MALFORMED, Refusal.INVALID_MODULE} <= set(tally.ends), text
