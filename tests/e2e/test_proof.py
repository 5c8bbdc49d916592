"""Receipts checked by `quittance-verify` with public data only: by signature, by replay, and in the log."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from quittance.proof import verify as verifier
from tests.e2e.people import Ledger, User, sweep_until_credited
from tests.e2e.test_refusals import assert_refused
from tests.support import wasm


@pytest.fixture
def alice(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> User:
    return User.new(api, deposit)


def verify(folder: Path, receipt: str, jwks: str, *more: str) -> int:
    (folder / "receipt.jws").write_text(receipt)
    (folder / "jwks.json").write_text(jwks)
    return verifier.main([str(folder / "receipt.jws"), "--keys", str(folder / "jwks.json"), *more])


def test_a_replay_checks_a_receipt(
    alice: User, echo: str, api: Callable[..., httpx.Client], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jwks = api(None).get("/.well-known/jwks.json").text
    done = alice.run(echo, input="all the same")
    files = {"module": wasm("echo"), "input": b"all the same", "output": done["output"].encode()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    given = [word for name in files for word in (f"--{name}", str(tmp_path / name))]
    assert verify(tmp_path, done["receipt"], jwks, *given, "--replay") == 0, capsys.readouterr()
    (tmp_path / "output").write_bytes(b"all the Same")
    assert verify(tmp_path, done["receipt"], jwks, *given) != 0


def test_the_log_includes_receipts_and_only_grows(
    alice: User,
    echo: str,
    api: Callable[..., httpx.Client],
    sweep: Callable[[], None],
    ledger: Ledger,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jwks = api(None).get("/.well-known/jwks.json").text
    first = alice.run(echo)
    waiting = alice.http.get(f"/tasks/{first['task_id']}/proof")
    assert_refused(waiting, 404, "not_logged")
    assert int(waiting.headers["Retry-After"]) > 0
    sweep_until_credited(sweep, ledger)
    older = alice.http.get(f"/tasks/{first['task_id']}/proof")
    (tmp_path / "proof.json").write_text(older.text)
    assert verify(tmp_path, first["receipt"], jwks, "--proof", str(tmp_path / "proof.json")) == 0, capsys.readouterr()

    second = alice.run(echo, input="another")
    assert verify(tmp_path, second["receipt"], jwks, "--proof", str(tmp_path / "proof.json")) != 0
    sweep_until_credited(sweep, ledger)
    size = older.json()["tree_size"]
    newer = alice.http.get(f"/tasks/{second['task_id']}/proof?since={size}")
    assert newer.json()["tree_size"] > size
    (tmp_path / "proof.json").write_text(newer.text)
    (tmp_path / "older.jws").write_text(json.loads(older.text)["checkpoint"])
    given = ["--proof", str(tmp_path / "proof.json"), "--checkpoint", str(tmp_path / "older.jws")]
    assert verify(tmp_path, second["receipt"], jwks, *given) == 0, capsys.readouterr()
    assert api(None).get(f"/log/checkpoint?size={size}").text == json.loads(older.text)["checkpoint"]


def test_a_stranger_cannot_read_a_proof(
    alice: User, echo: str, api: Callable[..., httpx.Client], deposit: Callable[..., None], sweep: Callable[[], None]
) -> None:
    done = alice.run(echo)
    sweep()
    stranger = User.new(api, deposit)
    path = f"/tasks/{done['task_id']}/proof"
    for refused in (stranger.http.get(path), stranger.http.get(f"{path}?user={alice.name}")):
        assert_refused(refused, 404, "not_found")
    assert_refused(alice.http.get(f"{path}?since={2**53}"), 400, "invalid_request", "since")
    assert_refused(alice.http.get(f"{path}?since=-1"), 400, "invalid_request", "since")


def test_log_routes_refuse_what_the_log_does_not_have(api: Callable[..., httpx.Client]) -> None:
    public = api(None)
    for path in ("/log/checkpoint?size=9007199254740992", "/log/tile/0/1000000/256"):
        assert_refused(public.get(path), 404, "not_found")
    assert_refused(public.get("/log/tile/0/0/257"), 400, "invalid_request", "width")
