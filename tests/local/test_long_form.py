"""`make proofs` continues where it stopped, and prints what was proved."""

import sys
from pathlib import Path

import pytest

from tests import long_form
from tests.long_form import Proof


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in (("ROOT", tmp_path), ("DONE", tmp_path / "done"), ("LOG", tmp_path / "proofs.log")):
        monkeypatch.setattr(long_form, name, place)


def python(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def prove(proof: Proof, digest: str = "these sources", *, again: bool = False) -> list[str]:
    return long_form.prove(proof, digest, {}, again=again)


COUNTED = Proof(
    "counted", "it counts", (python("open('tries', 'a').write('x'); print('noise\\n3 of 3\\nmore')"),), "of"
)


def test_passed_proof_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prove(COUNTED) == prove(COUNTED) == []
    assert (tmp_path / "tries").read_text() == "x"
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("  ✓ 3 of 3 (")
    assert last.endswith("earlier)")


@pytest.mark.parametrize(("digest", "again"), [("other sources", False), ("these sources", True)])
def test_changed_sources_or_again_option_rerun_a_proof(tmp_path: Path, digest: str, again: bool) -> None:
    prove(COUNTED)
    prove(COUNTED, digest, again=again)
    assert (tmp_path / "tries").read_text() == "xx"


def test_only_failed_commands_are_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails_once = python("import os, sys; os.path.exists('gone') or (open('gone', 'w'), sys.exit('an Error'))")
    proof = Proof("steps", "two of them", (*COUNTED.commands, fails_once), "of")
    (complaint,) = prove(proof)
    assert complaint.startswith("steps failed: ")
    assert "(full output: proofs.log)" in complaint
    assert "  ✗ an Error" in capsys.readouterr().out
    assert prove(proof) == []
    assert (tmp_path / "tries").read_text() == "x"


@pytest.mark.parametrize("short", [True, False])
def test_each_command_has_a_unique_key(short: bool) -> None:
    proofs = long_form.proofs(short=short)
    notes = [proof.key(command) for proof in proofs for command in proof.commands]
    assert len({*notes}) == len(notes)
    assert {"mutants", "stand-in", "containers"} < {proof.name for proof in proofs}
