"""The command that checks receipts: its reports, its exit status, and that it ends on any input."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance.acceptance.rules import parse_rules, rules_json, rules_sha256
from quittance.ledger.escrow import Escrow, StoredBytes, decide, expire
from quittance.limits import STDIN_BYTES_MAX
from quittance.proof import verify
from quittance.proof.log import (
    EMPTY_ROOT,
    Checkpoint,
    ConsistencyProof,
    Proof,
    Tile,
    consistency_proof,
    grow,
    inclusion_proof,
    leaf_hash,
    sign_checkpoint,
    tree_root,
)
from quittance.proof.statement import Flaw, Purpose
from quittance.proof.verify import EXITS, CheckResult, Evidence, Report, examine, main
from quittance.run import Limits, Meter, Outcome, Run
from tests.proof.receipts import claims_of, sign
from tests.proof.roots import NOW_S, Root, encode, key_set, parse, part
from tests.support import UNSCORED

ISSUER = "https://q.example"
ROOT = Root()
KEY = ROOT.certify()
LOG_ROOT = Root("root-2", Purpose.CHECKPOINT)
LOG_KEY = LOG_ROOT.certify()
KEYS = json.dumps(key_set(ROOT, LOG_ROOT)).encode()
MODULE, INPUT, OUTPUT = b"\0asm", b"some input", b"some output"
TARIFF = b'{"type":"flat","price":"0.4"}'
INDEX, OLD, SIZE = 5, 300, 700


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="session")
def paid_claims(new_escrow: Callable[..., Escrow]) -> dict[str, Any]:
    escrow = new_escrow(module_sha256=sha256(MODULE), input_sha256=sha256(INPUT), tariff=TARIFF.decode())
    meter = Meter(fuel=5, wall_ms=7, memory_bytes=8, input_bytes=len(INPUT), output_bytes=len(OUTPUT))
    settled = decide(escrow, Run(Outcome.SUCCEEDED, "ok", meter), now_ms=NOW_S * 1_000 + 5)
    settled = replace(settled, output=StoredBytes(sha256(OUTPUT), len(OUTPUT), OUTPUT))
    limits = Limits(fuel=50, memory_bytes=60, timeout_ms=70)
    return claims_of(
        escrow,
        settled,
        issuer=ISSUER,
        run=Run(Outcome.SUCCEEDED, "", meter, limits=limits),
        engine="50.0.1",
        config_sha256="ff" * 32,
    )


@pytest.fixture(scope="session")
def receipt(paid_claims: dict[str, Any]) -> str:
    return sign(paid_claims, KEY)


class Log:
    """A log that contains the receipt."""

    def __init__(self, receipt: str, *, salt: bytes = b"") -> None:
        self.tiles: dict[Tile, bytes] = {}
        size = 0
        entries = [salt + number.to_bytes(4) for number in range(SIZE)]
        entries[INDEX] = receipt.encode()
        for batch in (OLD, SIZE - OLD):
            leaves = [leaf_hash(entry) for entry in entries[size : size + batch]]
            self.tiles |= grow(size, leaves, self.tiles.__getitem__).tiles
            size += batch

    def checkpoint(self, size: int = SIZE, /, **changes: Any) -> str:
        plain = Checkpoint(ISSUER, size, tree_root(size, self.tiles.__getitem__), NOW_S * 1_000 + size)
        return sign_checkpoint(replace(plain, **changes), LOG_KEY)

    def proof(self, index: int = INDEX, **changes: Any) -> dict[str, Any]:
        read = self.tiles.__getitem__
        path = [node.hex() for node in inclusion_proof(index, SIZE, read)]
        older = ConsistencyProof(tree_size=OLD, path=[node.hex() for node in consistency_proof(OLD, SIZE, read)])
        proof = Proof(leaf_index=index, tree_size=SIZE, path=path, checkpoint=self.checkpoint(), consistency=older)
        return {**proof.model_dump(mode="json"), **changes}


@pytest.fixture(scope="session")
def logged(receipt: str) -> Log:
    return Log(receipt)


def everything(receipt: str, logged: Log) -> Evidence:
    return Evidence(
        receipt=receipt,
        keys=KEYS,
        module=MODULE,
        input=INPUT,
        output=OUTPUT,
        tariff=TARIFF,
        proof=json.dumps(logged.proof()).encode(),
        older=logged.checkpoint(OLD),
    )


def test_everything_that_is_given_is_checked(receipt: str, logged: Log) -> None:
    report = examine(everything(receipt, logged))
    names = ["signature", "times", "amounts", "claims", "module", "input", "output", "tariff", "log", "history"]
    assert [(check.name, check.result) for check in report.checks] == [(name, CheckResult.PASSED) for name in names]
    assert report.exit_status == 0
    assert all(check.sentence for check in report.checks)


def test_missing_evidence_is_reported_as_not_checked(receipt: str) -> None:
    report = examine(Evidence(receipt, KEYS))
    assert [check.name for check in report.checks if check.result is CheckResult.NOT_DONE] == [
        "module", "input", "output", "tariff", "log", "history",
    ]  # fmt: skip
    assert report.exit_status == 0


@pytest.mark.parametrize(
    ("change", "flaw", "sentence"),
    [
        ({"receipt": "x"}, Flaw.FORM, "not a compact JWS"),
        ({"keys": b"{"}, Flaw.FORM, "the key set is not JSON"),
        ({"keys": b"[]"}, Flaw.FORM, "the key set is not a JSON object"),
        ({"keys": b'{"keys":[]}'}, Flaw.SIGNATURE, "unknown root key 'root-1'"),
        ({"module": b"\0asm\1"}, Flaw.DIGEST, f"the module has the SHA-256 .*, the receipt names {sha256(MODULE)}"),
        ({"input": b""}, Flaw.DIGEST, f"the input has the SHA-256 {sha256(b'')}, the receipt names {sha256(INPUT)}"),
        ({"output": OUTPUT + b"\n"}, Flaw.DIGEST, "the output has the SHA-256"),
        ({"tariff": b'{"type":"flat","price":"0.5"}'}, Flaw.DIGEST, "the tariff has the SHA-256"),
        ({"tariff": b'{"type":"free"}'}, Flaw.DIGEST, "does not contain a tariff"),
        ({"tariff": b"\xff"}, Flaw.DIGEST, "does not contain a tariff"),
        ({"proof": b"null"}, Flaw.FORM, "the proof is not a JSON object"),
        ({"older": "x"}, Flaw.FORM, "the checkpoint is not a compact JWS"),
    ],
)
def test_each_mismatch_is_named(receipt: str, logged: Log, change: dict[str, Any], flaw: Flaw, sentence: str) -> None:
    report = examine(replace(everything(receipt, logged), **change))
    (failed,) = [check for check in report.checks if check.result is CheckResult.FAILED]
    assert failed.flaw is flaw
    assert report.exit_status == EXITS[flaw][0]
    assert re.search(sentence, failed.sentence)


def test_the_price_follows_from_the_tariff(paid_claims: dict[str, Any]) -> None:
    """The amounts of this receipt add up, but the price does not follow from the tariff."""
    dear = {**paid_claims, "paid": "585000", "fee": "15000", "refunded": "400000"}
    report = examine(Evidence(sign(dear, KEY), KEYS, tariff=TARIFF))
    (failed,) = [check for check in report.checks if check.flaw]
    assert (failed.flaw, failed.sentence) == (
        Flaw.AMOUNTS, "paid and commission are 600000 together, by the tariff 400000 is due",
    )  # fmt: skip
    spaced = b' {"price": "0.40", "type": "flat"}'
    assert examine(Evidence(sign(paid_claims, KEY), KEYS, tariff=spaced)).exit_status == 0


def test_a_failed_task_has_no_output_and_no_price(new_escrow: Callable[..., Escrow]) -> None:
    escrow = new_escrow(tariff=TARIFF.decode())
    settled = expire(escrow, now_ms=escrow.expires_ms)
    stated = claims_of(
        escrow,
        settled,
        issuer=ISSUER,
        run=Run(Outcome.SUCCEEDED, "", Meter(), limits=None),
        engine="",
        config_sha256="",
    )
    report = examine(Evidence(sign(stated, KEY), KEYS, output=b"", tariff=TARIFF))
    assert [(check.name, check.sentence) for check in report.checks if check.flaw] == [
        ("output", "the receipt names no output, but one is given")
    ]


def failures(receipt: str, proof: dict[str, Any], older: str | None = None) -> list[tuple[str, Flaw | None, str]]:
    report = examine(Evidence(receipt, KEYS, proof=json.dumps(proof).encode(), older=older))
    return [(check.name, check.flaw, check.sentence) for check in report.checks if check.flaw]


def test_a_proof_of_another_place_log_or_size_fails(receipt: str, logged: Log) -> None:
    other = Log(receipt, salt=b"other")
    foreign = sign_checkpoint(Checkpoint("https://other.example", SIZE, EMPTY_ROOT, NOW_S * 1_000), LOG_KEY)
    for proof, said in (
        (logged.proof(INDEX + 1), f"entry {INDEX + 1} leads to the root"),
        (logged.proof(leaf_index=SIZE), f"the proof names entry {SIZE} of a log of {SIZE} entries"),
        (logged.proof(path=other.proof()["path"]), f"entry {INDEX} leads to the root"),
        (logged.proof(checkpoint=other.checkpoint()), f"entry {INDEX} leads to the root"),
        (logged.proof(path=[]), "the inclusion proof is too short"),
        (logged.proof(tree_size=SIZE - 1), f"the proof is for {SIZE - 1} entries, its checkpoint for {SIZE}"),
        (logged.proof(checkpoint=foreign), "the checkpoint is of 'https://other.example', the receipt of"),
    ):
        ((name, flaw, sentence),) = failures(receipt, proof)
        assert (name, flaw) == ("log", Flaw.LOG)
        assert said in sentence


def test_a_log_with_changed_history_is_detected(receipt: str, logged: Log) -> None:
    other = Log(receipt, salt=b"other")
    for proof, older, said in (
        (logged.proof(), other.checkpoint(OLD), f"the newer log at {OLD} entries has the root"),
        (logged.proof(), other.checkpoint(SIZE), f"the newer log at {SIZE} entries has the root"),
        (logged.proof(consistency=None), logged.checkpoint(OLD), "get it with since=300"),
        (logged.proof(), logged.checkpoint(OLD, size=OLD + 1), f"the log at {OLD} entries, the older"),
        (logged.proof(consistency={"tree_size": OLD, "path": []}), logged.checkpoint(OLD), "is empty"),
        (logged.proof(), logged.checkpoint(SIZE, size=SIZE + 1), f"the older log has {SIZE + 1} entries, the newer"),
    ):
        ((name, flaw, sentence),) = failures(receipt, proof, older)
        assert (name, flaw) == ("history", Flaw.HISTORY)
        assert said in sentence
    assert failures(receipt, logged.proof(consistency=None), logged.checkpoint(SIZE)) == []
    assert failures(receipt, logged.proof(consistency=None), logged.checkpoint(0)) == []


ABIDES, OFFENDS = b'{"min_bytes": 11}', b'{ "max_bytes": 10 }'


@pytest.mark.parametrize(
    ("agent", "task", "output", "result", "flaw"),
    [
        (ABIDES, b"{}", OUTPUT, CheckResult.PASSED, None),
        (ABIDES, ABIDES, OUTPUT, CheckResult.PASSED, None),
        (OFFENDS, ABIDES, OUTPUT, CheckResult.FAILED, Flaw.RULES),
        (ABIDES, OFFENDS, OUTPUT, CheckResult.FAILED, Flaw.RULES),
        (ABIDES, OFFENDS, None, CheckResult.NOT_DONE, None),
    ],
)
def test_payment_for_an_output_that_breaks_rules_is_detected(
    paid_claims: dict[str, Any], agent: bytes, task: bytes, output: bytes | None, result: CheckResult, flaw: Flaw | None
) -> None:
    named = [rules_sha256(rules_json(parse_rules(text.decode()))) for text in (agent, task)]
    acceptance = {"agent_sha256": named[0], "task_sha256": named[1], **UNSCORED, "accepted": True}
    receipt = sign({**paid_claims, "acceptance": acceptance}, KEY)
    given = Evidence(receipt, KEYS, output=output, agent_rules=agent, task_rules=task if named[1] else None)
    found = {check.name: check for check in examine(given).checks}["acceptance"]
    assert (found.result, found.flaw) == (result, flaw)
    lacking = {check.name: check for check in examine(replace(given, agent_rules=None)).checks}
    assert lacking["acceptance"].result is lacking["agent rules"].result is CheckResult.NOT_DONE


@pytest.mark.parametrize(
    ("task", "line"),
    [
        (None, "  rules of the agent for the output: met"),
        ("cd" * 32, "  rules of the agent and task for the output: met"),
    ],
)
def test_the_text_report_names_rules(
    paid_claims: dict[str, Any], files: dict[str, Path], capsys: pytest.CaptureFixture[str], task: str | None, line: str
) -> None:
    acceptance = {"agent_sha256": "ab" * 32, "task_sha256": task, **UNSCORED, "accepted": True}
    files["receipt"].write_text(sign({**paid_claims, "acceptance": acceptance}, KEY))
    assert main(command(files)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert line in lines
    assert [told for told in lines if told.startswith("not done  acceptance no --agent-rules")]


@pytest.mark.parametrize(
    "rules", [b"{", b"\xff", b"[]", b'{"min_bytes": "1"}', OFFENDS, b'{"json_schema": {"$ref": "#"}}']
)
def test_rules_that_the_receipt_does_not_name_are_refused(paid_claims: dict[str, Any], rules: bytes) -> None:
    digest = rules_sha256('{"min_bytes":11}')
    acceptance = {"agent_sha256": None, "task_sha256": digest, **UNSCORED, "accepted": True}
    for stated, side in (({**paid_claims, "acceptance": acceptance}, "task_rules"), (paid_claims, "agent_rules")):
        report = examine(Evidence(sign(stated, KEY), KEYS, output=OUTPUT, **{side: rules}))
        (failed,) = [check for check in report.checks if check.flaw]
        assert (failed.name, failed.flaw) == (side.replace("_", " "), Flaw.DIGEST)


@pytest.fixture
def files(tmp_path: Path, receipt: str, logged: Log) -> dict[str, Path]:
    given = everything(receipt, logged)
    contents = {
        "receipt": f"{receipt}\n".encode(), "keys": KEYS, "module": MODULE, "input": INPUT, "output": OUTPUT,
        "tariff": TARIFF, "proof": given.proof, "checkpoint": str(given.older).encode(),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content or b"")
    return {name: tmp_path / name for name in contents}


def command(files: dict[str, Path], *names: str) -> list[str]:
    options = [part for name in ("keys", *names) for part in (f"--{name}", str(files[name]))]
    return [str(files["receipt"]), *options]


def test_the_text_report_states_the_claims(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(files, "module", "input", "output", "proof", "checkpoint")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "'https://q.example': escrow pt7fxmrlpdhb4aqyxxot3tnqg5",
        "  task 'task-1' of 'user-1', by agent 'agt_1' of 'owner-1'",
        "  released: succeeded",
        "  budget 1 credits: 0.39 to the owner, 0.01 fee, 0.6 back",
        "  funded 2027-01-15 08:00:00 UTC, settled 2027-01-15 08:00:00 UTC",
        "",
        "ok        signature  the chain leads to the root key 'root-1'",
        "ok        times      funded, settled and expiry are in order, and the key was valid",
        "ok        amounts    paid, fee and refunded add up to the budget, the fee is as stated",
        "ok        claims     state, outcome, fault, reputation, seed and escrow id follow from one another",
        f"ok        module     its SHA-256 is {sha256(MODULE)}",
        f"ok        input      its SHA-256 is {sha256(INPUT)}",
        f"ok        output     its SHA-256 is {sha256(OUTPUT)}",
        "not done  tariff     no --tariff was given, so the price was not computed",
        "ok        log        it is entry 5 of 700, in the log as of 2027-01-15 08:00:00 UTC",
        "ok        history    the log of 700 entries continues the one of 300",
        "not done  replay     no --replay was given",
        "",
        "Proven, as far as it was checked.",
    ]


def test_the_json_report_states_the_same(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    files["output"].write_bytes(b"other")
    assert main([*command(files, "output"), "--json"]) == EXITS[Flaw.DIGEST][0]
    told = json.loads(capsys.readouterr().out)
    assert told["exit_status"] == 8
    assert told["claims"]["paid"] == "390000"
    assert [check["name"] for check in told["checks"] if check["verdict"] == "failed"] == ["output"]


def test_the_last_line_is_the_first_failure(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    files["input"].write_bytes(b"other")
    files["output"].write_bytes(b"other")
    assert main(command(files, "output", "input")) == 8
    assert capsys.readouterr().out.splitlines()[-1].startswith("Not proven: the input has the SHA-256")


def test_an_unreadable_file_is_a_usage_error(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files["input"].write_bytes(bytes(STDIN_BYTES_MAX + 1))
    for wrong in (
        command(files, "input"),
        command({**files, "keys": tmp_path / "none"}),
        command({**files, "receipt": tmp_path}),
        command({**files, "keys": Path("/dev/zero")}),
        [*command(files, "module"), "--replay"],
        command({**files, "receipt": Path("a\0b")}),
    ):
        assert main(wrong) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("quittance-verify: ")
        assert said.err.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_a_bad_receipt_is_not_replayed(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    files["module"].write_bytes(b"other")
    assert main([*command(files, "module", "input"), "--replay"]) == 8
    assert "not done  replay     a check above failed" in capsys.readouterr().out


def test_every_flaw_has_its_own_documented_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = [status for status, _ in EXITS.values()]
    assert EXITS.keys() == set(Flaw)
    assert len({*statuses, 0, 1, 2}) == len(statuses) + 3
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    page = (Path(__file__).parents[2] / "docs" / "receipts.md").read_text()
    for status, meaning in EXITS.values():
        assert f"{status:>2}  {meaning}" in shown
        assert f"| {status} | {meaning} |" in page


def test_untrusted_text_cannot_control_the_terminal(
    paid_claims: dict[str, Any], files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files["receipt"].write_text(sign({**paid_claims, "agent": "\x1b[2J\u202e\r\nok", "iss": "\u2028é"}, KEY))
    assert main(command(files)) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert all(character.isprintable() or character == "\n" for character in out)
    assert r"'\x1b[2J\u202e\r\nok'" in out
    report = Report()
    report.note("replay", "the module imports \x1b[2J\né")
    assert r"the module imports \x1b[2J\n\xe9" in verify._as_text(report)


# Hostile input: on any input the verifier ends with a status and a report.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
HUGE = st.sampled_from([10**400, -(10**400), 2**63, 2**53 + 1, 1e308, float("nan"), float("inf"), "9" * 5_000])


def judged(given: Evidence) -> int:
    """The exit status, after both reports have been written."""
    report = examine(given)
    for write in (verify._as_json, verify._as_text):
        assert write(report).isascii()
    assert report.exit_status in {0, *(status for status, _ in EXITS.values())}
    return report.exit_status


@given(text=st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_text_as_a_receipt_gets_a_report(text: str) -> None:
    assert judged(Evidence(text, KEYS)) == EXITS[Flaw.FORM][0]


@given(keys=st.binary(max_size=200) | JSON.map(lambda value: json.dumps({"keys": value}).encode()))
def test_any_key_set_gets_a_report(receipt: str, keys: bytes) -> None:
    assert judged(Evidence(receipt, keys)) in {3, 4}


@given(data=st.data())
def test_any_signed_claims_get_a_report(paid_claims: dict[str, Any], data: st.DataObject) -> None:
    """Even validly signed claims may be huge, deep or of wrong types."""
    forged = json.loads(json.dumps(paid_claims))
    for _ in range(data.draw(st.integers(1, 3))):
        members = forged
        name = data.draw(st.sampled_from(sorted(members)))
        if isinstance(members[name], dict) and data.draw(st.booleans()):
            members = members[name]
            name = data.draw(st.sampled_from(sorted(members)) if members else st.just("x"))
        members[name] = data.draw(JSON | HUGE)
    header = {"alg": "EdDSA", "typ": "quittance-receipt+jwt", "kid": KEY.key_id, "cert": KEY.certificate}
    content = f"{part(header)}.{part(forged)}"
    judged(Evidence(f"{content}.{encode(KEY.private.sign(content.encode()))}", KEYS, MODULE, INPUT, OUTPUT, TARIFF))


@given(data=st.data())
def test_any_signed_certificate_gets_a_report(receipt: str, data: st.DataObject) -> None:
    """A root key that signs any payload."""
    inner = parse(KEY.certificate)
    validity = {**inner.payload, data.draw(st.sampled_from(["iat", "exp", "jwk"])): data.draw(JSON | HUGE)}
    if data.draw(st.booleans()):
        jwk = {**inner.payload["jwk"], data.draw(st.sampled_from(["kty", "crv", "x", "kid"])): data.draw(JSON | HUGE)}
        validity = {**inner.payload, "jwk": jwk}
    content = f"{part(inner.header)}.{part(validity)}"
    whole = parse(receipt)
    whole.header["cert"] = f"{content}.{encode(ROOT.sign(content.encode()))}"
    content = f"{part(whole.header)}.{part(whole.payload)}"
    judged(Evidence(f"{content}.{encode(KEY.private.sign(content.encode()))}", KEYS))


@given(data=st.data())
def test_any_proof_gets_a_report(receipt: str, logged: Log, data: st.DataObject) -> None:
    proof = logged.proof()
    for _ in range(data.draw(st.integers(1, 2))):
        inner = proof["consistency"]
        members = inner if inner and isinstance(inner, dict) and data.draw(st.booleans()) else proof
        members[data.draw(st.sampled_from(sorted(members)))] = data.draw(JSON | HUGE)
    document = json.dumps(proof).encode()
    judged(
        Evidence(receipt, KEYS, proof=document, older=data.draw(st.sampled_from([None, logged.checkpoint(OLD), "x"])))
    )


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"keys":' * 50_000,
        b'{"keys":' + b"9" * 100_000 + b"}",
        b'{"keys":[' + b"{}," * 100_000 + b"{}]}",
    ],
)
def test_deep_and_long_documents_get_a_report(receipt: str, logged: Log, text: bytes) -> None:
    assert judged(Evidence(receipt, text)) == 3
    assert judged(Evidence(receipt, KEYS, proof=text)) == 3
    assert judged(Evidence(receipt, KEYS, tariff=text)) == 8


def test_the_command_needs_nothing_but_its_three_packages(files: dict[str, Path]) -> None:
    """It imports nothing of AWS, of the engine or of the platform."""
    script = (
        "import sys\n"
        "from quittance.proof import verify\n"
        "status = verify.main(sys.argv[1:])\n"
        "found = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not found & {'botocore', 'boto3', 'aws_lambda_powertools', 'wasmtime'}, found\n"
        "assert not [name for name in sys.modules if name.startswith(('quittance.store', 'quittance.sandbox'))]\n"
        "sys.exit(status)\n"
    )
    env = {"PYTHONPATH": "layers/runtime"}
    arguments = [sys.executable, "-c", script, *command(files, "proof", "checkpoint")]
    done = subprocess.run(
        arguments, env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
