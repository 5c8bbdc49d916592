"""The guards that `make mutants` removes are still there, under the words by which it finds them."""

from tests.proofs.mutants import MUTANTS, ROOT


def test_every_mutant_finds_its_guard_once() -> None:
    sources = {mutant.file: (ROOT / "layers/runtime/quittance" / mutant.file).read_text() for mutant in MUTANTS}
    lost = [mutant.name for mutant in MUTANTS if sources[mutant.file].count(mutant.old) != 1]
    assert lost == []
