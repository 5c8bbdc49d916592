"""`quittance verify` and `quittance replay` on receipts of a real platform."""

import json
from pathlib import Path
from typing import Any

import pytest

from quittance.api.models import TaskResult
from quittance.cli.exits import Exit
from quittance.cli.main import main
from tests.cli.test_price import FLAT, on_platform
from tests.support import Cloud, wasm


@pytest.fixture
def task(cloud: Cloud, tmp_path: Path) -> TaskResult:
    """A paid task; its receipt, module, input and keys are files."""
    cloud.deposit("alice", 10**9)
    agent = cloud.publish(wasm("wordcount"), tariff=FLAT)
    done = on_platform(cloud, agent, b'"a b a"', budget="1")
    (tmp_path / "receipt.jws").write_text(done.receipt + "\n")
    (tmp_path / "m.wasm").write_bytes(wasm("wordcount"))
    (tmp_path / "in.json").write_bytes(b'"a b a"')
    (tmp_path / "jwks.json").write_text(json.dumps(cloud.keys.jwks()))
    return done


def replay(folder: Path, *words: str, receipt: str = "receipt.jws") -> int:
    files = ["--module", str(folder / "m.wasm"), "--input", str(folder / "in.json")]
    return main(["replay", str(folder / receipt), *files, *words])


def test_a_real_task_repeats(task: TaskResult, tmp_path: Path, capsys: Any) -> None:
    words = ["--keys", str(tmp_path / "jwks.json"), "--output", str(tmp_path / "out"), "--json"]
    assert replay(tmp_path, *words) == Exit.DONE
    answer = json.loads(capsys.readouterr().out)
    assert answer["agrees"] == ["outcome", "output", "log", "fuel", "memory", "bytes written"]
    assert (answer["fuel_used"], answer["signature_checked"]) == (task.resource_usage.fuel_used, True)
    assert answer["price"] == "0.0123"
    assert (tmp_path / "out").read_text() == task.output


def test_a_replay_without_keys_says_so(task: TaskResult, tmp_path: Path, capsys: Any) -> None:
    assert replay(tmp_path) == Exit.DONE
    assert "The signature was not checked" in capsys.readouterr().out


def test_another_module_or_input_is_no_proof(task: TaskResult, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "in.json").write_bytes(b'"a b b"')
    assert replay(tmp_path) == Exit.UNPROVEN
    assert "The input is another one" in capsys.readouterr().err


def test_another_signature_or_claim_is_no_proof(task: TaskResult, tmp_path: Path, capsys: Any) -> None:
    head, body, tail = task.receipt.split(".")
    (tmp_path / "forged.jws").write_text(f"{head}.{body}.{tail[:-8]}AAAAAAAA")
    words = ["--keys", str(tmp_path / "jwks.json"), "--json"]
    assert replay(tmp_path, *words, receipt="forged.jws") == Exit.UNPROVEN
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["flaw"] == "signature"
    assert "Error: The receipt: " in said.err


@pytest.mark.parametrize("text", ["", "a.b.c", "x" * 100_000, "\x00", "é.é.é"])
def test_what_is_no_receipt_is_a_wrong_call(task: TaskResult, tmp_path: Path, capsys: Any, text: str) -> None:
    (tmp_path / "no.jws").write_text(text)
    assert replay(tmp_path, receipt="no.jws") == Exit.USAGE
    assert "Error: " in capsys.readouterr().err


def test_verify_has_the_options_of_the_verifier(task: TaskResult, tmp_path: Path, capsys: Any) -> None:
    words = [str(tmp_path / "receipt.jws"), "--keys", str(tmp_path / "jwks.json"), "--module", str(tmp_path / "m.wasm")]
    assert main(["verify", *words, "--input", str(tmp_path / "in.json"), "--replay"]) == Exit.DONE
    assert "Proven, as far as it was checked." in capsys.readouterr().out
    assert main(["verify", *words, "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["exit_status"] == 0


def test_verify_ends_with_5_if_something_is_not_proven(task: TaskResult, tmp_path: Path, capsys: Any) -> None:
    words = [
        str(tmp_path / "receipt.jws"),
        "--keys",
        str(tmp_path / "jwks.json"),
        "--module",
        str(tmp_path / "in.json"),
    ]
    assert main(["verify", *words]) == Exit.UNPROVEN
    assert "Not proven" in capsys.readouterr().out
    assert main(["verify", *words, "--json"]) == Exit.UNPROVEN
    assert json.loads(capsys.readouterr().out)["exit_status"] == 8


def test_verify_with_wrong_options_ends_with_2(tmp_path: Path) -> None:
    assert main(["verify"]) == Exit.USAGE
    assert main(["verify", str(tmp_path / "none"), "--keys", str(tmp_path / "none")]) == Exit.USAGE
