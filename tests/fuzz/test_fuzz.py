"""A short round of fuzzing: 15 seconds at most. The long one is `make fuzz`."""

import os

from quittance.run import Outcome
from quittance.sandbox import Refusal
from tests.fuzz.fuzz import fuzz, report

SEED = int(os.environ.get("QUITTANCE_FUZZ_SEED", "3"))
SECONDS = 12
MODULES = 1_500
MODULES_LEAST = 50  # even on a machine that has much else to do


def test_no_module_harms_the_host(tmp_path, capsys):
    tally = fuzz(modules=MODULES, seed=SEED, seconds=SECONDS, keep=tmp_path)
    with capsys.disabled():
        text = report(tally, SEED, SECONDS)
    assert not tally.faults, text
    assert tally.modules >= MODULES_LEAST, text
    assert set(tally.ends) <= {*Outcome, *Refusal}, text
    assert {Outcome.SUCCEEDED, Refusal.MALFORMED, Refusal.INVALID_MODULE} <= set(tally.ends), text
