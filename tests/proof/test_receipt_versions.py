"""Receipts of version 1 stay valid, and no version may contain what only the other version has."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quittance.ledger.escrow import Escrow, StoredBytes, decide, expire
from quittance.ledger.pricing import ComputePrices
from quittance.limits import OUTPUT_BYTES_MAX
from quittance.proof.receipt import ReceiptClaims, verify
from quittance.proof.statement import Flaw, ProofError
from quittance.run import OF_THE_RULES, Fault, Limits, Meter, Outcome, RejectedBy, Run
from tests.proof import second_checker
from tests.proof.receipts import claims_of, sign
from tests.proof.roots import ADDED_CLAIMS, ADDED_MEMBERS, NOW_S, Root, as_version_1, parse

TESTS = Path(__file__).parents[1]
BEFORE = json.loads((TESTS / "proof" / "before_purposes.json").read_text())
STORED = sorted((TESTS / "sandbox" / "receipts").glob("rules-*"))
ROOT = Root()
KEY = ROOT.certify()
LIMITS = Limits(fuel=50, memory_bytes=60, timeout_ms=70, output_bytes=80)
METER = Meter(fuel=5, cpu_ms=6, wall_ms=7, memory_bytes=8, input_bytes=9, output_bytes=10, stderr_bytes=11)
NOTHING_RAN = {Outcome.NOT_NEEDED, Outcome.SUPERSEDED, Outcome.EXPIRED, Outcome.UNDELIVERED}
OF_VERSION_2 = {Outcome.WITHHELD, Outcome.BUDGET_EXHAUSTED}
OF_VERSION_1 = {Outcome.RULES_FAILED, Outcome.JUDGE_FAILED}

NewEscrow = Callable[..., Escrow]


def stated(new_escrow: NewEscrow, outcome: Outcome, **terms: Any) -> dict[str, Any]:
    """Claims of version 2 for an outcome; without terms, everything that version 2 added is free, unknown or absent."""
    rules = {"agent_rules_sha256": "ab" * 32} if outcome in OF_THE_RULES else {}
    escrow = new_escrow(**rules, **terms)
    ran = outcome not in NOTHING_RAN
    meter = replace(METER, wall_ms=LIMITS.timeout_ms) if outcome is Outcome.TIMEOUT else METER
    by = RejectedBy.AGENT_RULES if outcome is Outcome.REJECTED else None
    run = Run(outcome, "", meter if ran else Meter(), limits=LIMITS if ran else None, rejected_by=by)
    now_ms = NOW_S * 1_000 + 5
    settled = (
        expire(escrow, now_ms=escrow.expires_ms) if outcome is Outcome.EXPIRED else decide(escrow, run, now_ms=now_ms)
    )
    if outcome is Outcome.SUCCEEDED:
        settled = replace(settled, output=StoredBytes("dd" * 32, 10, None))
    engine = {"engine": "e", "config_sha256": "ff" * 32} if ran else {"engine": "", "config_sha256": ""}
    plain = claims_of(escrow, settled, issuer="i", run=run, **engine)
    return dict(json.loads(json.dumps(plain)))


def refusal(claims: dict[str, Any]) -> ProofError:
    with pytest.raises(ProofError) as caught:
        verify(sign(claims, KEY), ROOT.jwks())
    with pytest.raises(second_checker.RefusedError):
        second_checker.check(sign(claims, KEY), ROOT.jwks())
    return caught.value


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
def test_a_stored_receipt_of_version_1_verifies(folder: Path) -> None:
    token, jwks = (folder / "receipt.jws").read_text(), json.loads((folder / "jwks.json").read_text())
    assert parse(token).payload["v"] == 1
    assert verify(token, jwks)["v"] == 1
    assert second_checker.check(token, jwks) == parse(token).payload


def test_version_2_added_these_claims_and_no_others() -> None:
    older = parse(BEFORE["receipt"]).payload
    assert ReceiptClaims.model_fields.keys() - older.keys() == {*ADDED_CLAIMS, "ticket"}
    assert not older.keys() - ReceiptClaims.model_fields.keys()
    verified = verify(BEFORE["receipt"], BEFORE["jwks"])
    assert as_version_1(verified) == older
    assert {name: verified[name] for name in ADDED_CLAIMS} == {
        **dict.fromkeys(("compute", "charge", "judging", "task_judging"), "0"),
        "compute_prices": {"run": "0", "per_billion_fuel": "0"},
        "task_judge_bps": 0,
        "own_limits": None,
        "memory_refused": False,
    }
    assert verified["limits"]["output_bytes"] == OUTPUT_BYTES_MAX


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - OF_VERSION_2))
def test_every_outcome_of_version_1_verifies(new_escrow: NewEscrow, outcome: Outcome) -> None:
    older = as_version_1(stated(new_escrow, outcome))
    verified = verify(sign(older, KEY), ROOT.jwks())
    assert as_version_1(verified) == older
    assert second_checker.check(sign(older, KEY), ROOT.jwks()) == older


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.EXIT_CODE, Outcome.REJECTED])
def test_version_1_has_no_claim_of_version_2(new_escrow: NewEscrow, outcome: Outcome) -> None:
    newer = stated(new_escrow, outcome)
    older = as_version_1(newer)
    for name in ADDED_CLAIMS:
        for value in (newer[name], None):
            error = refusal({**older, name: value})
            assert (error.flaw, f"{name} is not a claim of version 1" in str(error)) == (Flaw.FORM, True)
    for name, member in ADDED_MEMBERS.items():
        if older[name] is not None:
            for value in (newer[name][member], None):
                error = refusal({**older, name: {**older[name], member: value}})
                assert f"{name}.{member} is not a claim of version 1" in str(error)
    refusal({**newer, "v": 1})


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.EXIT_CODE, Outcome.REJECTED])
def test_version_2_has_every_claim_that_it_added(new_escrow: NewEscrow, outcome: Outcome) -> None:
    newer = stated(new_escrow, outcome)
    assert verify(sign(newer, KEY), ROOT.jwks())
    for name in ADDED_CLAIMS:
        assert refusal({inner: value for inner, value in newer.items() if inner != name}).flaw is Flaw.FORM
    for name in ADDED_MEMBERS:
        if newer[name] is not None:
            assert refusal({**newer, name: as_version_1(newer)[name]}).flaw is Flaw.FORM
    assert refusal({**as_version_1(newer), "v": 2}).flaw is Flaw.FORM


@pytest.mark.parametrize("outcome", sorted(OF_VERSION_2))
def test_version_1_has_no_outcome_of_version_2(new_escrow: NewEscrow, outcome: Outcome) -> None:
    """Regression: a receipt of version 1 with `budget_exhausted` was accepted, with the payer at fault."""
    base = stated(new_escrow, Outcome.EXIT_CODE)
    state = "released" if outcome is Outcome.WITHHELD else "refunded"
    older = as_version_1(base) | {"outcome": outcome, "state": state, "fault": outcome.fault, "reputation_tenths": 0}
    error = refusal(older)
    assert (error.flaw, f"{outcome} is not an outcome of version 1" in str(error)) == (Flaw.FORM, True)


@pytest.mark.parametrize("outcome", sorted(OF_VERSION_1))
def test_version_2_has_no_outcome_of_version_1(new_escrow: NewEscrow, outcome: Outcome) -> None:
    assert f"{outcome} is not an outcome of version 2" in str(refusal(stated(new_escrow, outcome)))


@pytest.mark.parametrize("outcome", sorted(outcome for outcome in Outcome if outcome.fault is Fault.AGENT))
def test_in_version_1_the_payer_is_never_at_fault(new_escrow: NewEscrow, outcome: Outcome) -> None:
    older = as_version_1(stated(new_escrow, outcome))
    assert older["fault"] == "agent"
    assert "fault is 'payer'" in str(refusal({**older, "fault": "payer", "reputation_tenths": 0}))


def test_version_1_has_no_compute_in_its_fee(new_escrow: NewEscrow) -> None:
    newer = stated(new_escrow, Outcome.SUCCEEDED, compute=ComputePrices(run_micro=7))
    assert newer["compute"] == "7"
    assert refusal(as_version_1(newer)).flaw is Flaw.AMOUNTS


@pytest.mark.parametrize("output_bytes", [OUTPUT_BYTES_MAX, OUTPUT_BYTES_MAX + 1])
def test_in_version_1_the_limit_of_output_is_one_mebibyte(new_escrow: NewEscrow, output_bytes: int) -> None:
    older = as_version_1(stated(new_escrow, Outcome.EXIT_CODE))
    older["meter"]["output_bytes"] = output_bytes
    if output_bytes <= OUTPUT_BYTES_MAX:
        assert verify(sign(older, KEY), ROOT.jwks())["v"] == 1
    else:
        assert "over its limit 1048576" in str(refusal(older))
