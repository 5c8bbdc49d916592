"""The source text of every guard that `make mutants` removes still exists."""

from tests.proofs.mutants import MUTANTS, ROOT


def test_every_mutant_finds_its_guard_exactly_once() -> None:
    sources = {mutant.file: (ROOT / "layers/runtime/quittance" / mutant.file).read_text() for mutant in MUTANTS}
    lost = [mutant.name for mutant in MUTANTS if sources[mutant.file].count(mutant.old) != 1]
    assert lost == []
