import hashlib
import hmac
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import assume, given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey

from quittance.ledger.escrow import Escrow, Settlement, StoredBytes, decide, expire
from quittance.proof.receipt import (
    _NO_OUTCOMES_OF,
    AcceptanceClaims,
    LimitClaims,
    MeterClaims,
    PriceClaims,
    ReceiptClaims,
    check_claims,
    read_claims,
)
from quittance.proof.receipt import sign as sign_receipt
from quittance.proof.receipt import verify as verify_receipt
from quittance.proof.statement import CERTIFICATE_SECONDS, ProofError
from quittance.proof.ticket import TicketClaim
from quittance.run import Limits, Meter, Outcome, RejectedBy, Run
from tests.proof.receipts import claims_of, sign
from tests.proof.roots import ADDED_CLAIMS, ADDED_MEMBERS, NOW_S, Root, decode, encode, parse, part
from tests.support import UNSCORED

NewEscrow = Callable[..., Escrow]
METER = Meter(
    fuel=5, fuel_exact=False, cpu_ms=6, wall_ms=7, memory_bytes=8, input_bytes=9, output_bytes=10, stderr_bytes=11
)
LIMITS = Limits(fuel=50, memory_bytes=60, timeout_ms=70, output_bytes=80)
JSON_VALUES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8) | st.just([]) | st.just({})


ROOT = Root()
KEY = ROOT.certify()


@pytest.fixture(scope="session")
def paid(new_escrow: NewEscrow) -> tuple[Escrow, Settlement]:
    escrow = new_escrow()
    settlement = decide(escrow, Run(Outcome.SUCCEEDED, "ok", METER), now_ms=NOW_S * 1_000 + 5)
    return escrow, replace(settlement, output=StoredBytes("dd" * 32, 10, b""), stderr=StoredBytes("ee" * 32, 11, None))


@pytest.fixture(scope="session")
def paid_claims(paid: tuple[Escrow, Settlement]) -> dict[str, Any]:
    return claims_of(
        *paid,
        issuer="https://q.example",
        run=Run(Outcome.SUCCEEDED, "", METER, limits=LIMITS),
        engine="50.0.1",
        config_sha256="ff" * 32,
    )


@pytest.fixture(scope="session")
def receipt(paid_claims: dict[str, Any]) -> str:
    return sign(paid_claims, KEY)


def test_the_claims_state_the_escrow_and_its_settlement(paid_claims: dict[str, Any]) -> None:
    """I12: every field, and no field that this test does not know."""
    assert json.loads(json.dumps(paid_claims)) == {
        "v": 2,
        "iss": "https://q.example",
        "eid": "pt7fxmrlpdhb4aqyxxot3tnqg5",
        "task": "task-1",
        "user": "user-1",
        "agent": "agt_1",
        "owner": "owner-1",
        "module_sha256": "bb" * 32,
        "input_sha256": "cc" * 32,
        "output_sha256": "dd" * 32,
        "stderr_sha256": "ee" * 32,
        "asset": "credit/6",
        "budget": "1000000",
        "paid": "390000",
        "fee": "10000",
        "refunded": "600000",
        "compute": "0",
        "charge": "0",
        "judging": "0",
        "task_judging": "0",
        "compute_prices": {"run": "0", "per_billion_fuel": "0"},
        "fee_bps": 250,
        "task_judge_bps": 0,
        "tariff_sha256": hashlib.sha256(b'{"type":"flat","price":"0.4"}').hexdigest(),
        "state": "released",
        "outcome": "succeeded",
        "fault": "none",
        "acceptance": None,
        "reputation_tenths": 25,
        "meter": {
            "fuel": 5,
            "fuel_exact": False,
            "cpu_ms": 6,
            "wall_ms": 7,
            "memory_bytes": 8,
            "input_bytes": 9,
            "output_bytes": 10,
            "stderr_bytes": 11,
        },
        "limits": {"fuel": 50, "memory_bytes": 60, "timeout_ms": 70, "output_bytes": 80},
        "own_limits": None,
        "memory_refused": False,
        "engine": "50.0.1",
        "config_sha256": "ff" * 32,
        "epoch_ns": "1800000000000000000",
        "seed": hashlib.sha256(b"quittance seed pt7fxmrlpdhb4aqyxxot3tnqg5").hexdigest(),
        "funded_at": 1_800_000_000_000,
        "expires_at": 1_800_000_100_000,
        "settled_at": 1_800_000_000_005,
    }


@pytest.mark.parametrize(("agent", "task"), [("aa" * 32, None), (None, "bb" * 32), ("aa" * 32, "bb" * 32)])
@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.REJECTED, Outcome.EXIT_CODE])
def test_acceptance_states_rules_by_digest_and_the_verdict(
    new_escrow: NewEscrow, agent: str | None, task: str | None, outcome: Outcome
) -> None:
    escrow = new_escrow(agent_rules_sha256=agent, task_rules_sha256=task)
    accepted = outcome is Outcome.SUCCEEDED
    by = (RejectedBy.AGENT_RULES if agent else RejectedBy.TASK_RULES) if outcome is Outcome.REJECTED else None
    run = Run(outcome, "", METER, limits=LIMITS, rejected_by=by)
    settled = decide(escrow, run, now_ms=NOW_S * 1_000 + 5)
    settled = replace(settled, output=StoredBytes("dd" * 32, 10, b"") if accepted else None)
    stated = claims_of(escrow, settled, issuer="i", run=run, engine="e", config_sha256="ff" * 32)
    named = {"agent_sha256": agent, "task_sha256": task, **UNSCORED, "accepted": accepted, "rejected_by": by}
    assert stated["acceptance"] == named
    assert verify_receipt(sign(stated, KEY), ROOT.jwks()) == stated


def test_a_refund_states_that_nobody_was_paid(new_escrow: NewEscrow) -> None:
    escrow = new_escrow()
    stated = claims_of(
        escrow,
        expire(escrow, now_ms=1),
        issuer="i",
        run=Run(Outcome.SUCCEEDED, "", Meter(), limits=None),
        engine="",
        config_sha256="",
    )
    assert (stated["paid"], stated["fee"], stated["refunded"], stated["state"]) == ("0", "0", "1000000", "expired")
    assert (stated["outcome"], stated["fault"], stated["output_sha256"]) == ("expired", "platform", None)


def test_claims_that_no_verifier_accepts_can_still_be_signed(new_escrow: NewEscrow) -> None:
    """An expiry is signed whatever its escrow says; any other settlement is checked before it is signed."""
    escrow = new_escrow(payer="\ud800", module_sha256="none", fee_bps=-1, own_limits=Limits(-1, 2**70, -1, -1))
    settlement = expire(escrow, now_ms=-1)
    run = Run(settlement.outcome, "", Meter(fuel=-1))
    stated = ReceiptClaims.of(escrow, settlement, run, issuer="i" * 2_000, engine="", config_sha256="")
    with pytest.raises(ProofError):
        check_claims(stated)
    signed = read_claims(sign_receipt(stated, KEY))
    assert signed == json.loads(json.dumps(stated.as_json()))
    assert (signed["user"], signed["fee_bps"], signed["own_limits"]["memory_bytes"]) == ("\ud800", -1, 2**70)


def test_a_receipt_proves_its_claims(paid_claims: dict[str, Any], receipt: str) -> None:
    assert verify_receipt(receipt, ROOT.jwks()) == paid_claims == read_claims(receipt)
    assert verify_receipt(receipt, {"keys": Root("other").jwks()["keys"] + ROOT.jwks()["keys"]}) == paid_claims
    assert len(receipt) < 2_700  # it is stored in the escrow item, whose size costs money


def library_claims(token: str) -> dict[str, Any] | None:
    """What PyJWT reads without a verification; None if it rejects the token."""
    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except jwt.InvalidTokenError:
        return None
    return claims


@given(st.data())
def test_damaged_receipts_are_read_as_the_library_reads(receipt: str, data: st.DataObject) -> None:
    """A receipt that was damaged must not enter the log as another one."""
    parts = receipt.split(".")
    at = data.draw(st.integers(0, 2))
    place = data.draw(st.integers(0, len(parts[at])))
    kind = data.draw(st.sampled_from(["cut", "insert", "replace", "drop", "json"]))
    text = data.draw(st.text("Az09-_+/=. \n\u00e9", min_size=1, max_size=3))
    if kind == "json":
        # Of two letters, because PyJWT knows members that no receipt has: `kid` as a number, `crit`, `b64`.
        parts[at] = part(data.draw(st.dictionaries(st.text(max_size=2), JSON_VALUES, max_size=2) | JSON_VALUES))
    elif kind == "drop":
        del parts[at]
    else:
        kept = {"cut": "", "insert": parts[at][place:], "replace": parts[at][place + len(text) :]}[kind]
        parts[at] = parts[at][:place] + ("" if kind == "cut" else text) + kept
    token = ".".join(parts)
    expected = library_claims(token)
    try:
        found = read_claims(token)
    except jwt.DecodeError:
        # PyJWT also accepts padding, which no receipt has.
        assert expected is None or "=" in token
    else:
        assert found == expected


def test_an_independent_library_verifies_the_chain(paid_claims: dict[str, Any], receipt: str) -> None:
    """From the published JWKS to the claims, without our code and without the library that signed."""
    registry = jws.JWSRegistry(algorithms=["ES256", "EdDSA"], strict_check_header=False)
    registry.max_header_length = 2_048  # joserfc's own bound, 512 bytes, leaves no room for a certificate
    header = parse(receipt).header
    root = ECKey.import_key(ROOT.jwks()["keys"][0])
    certificate = jws.deserialize_compact(header["cert"], root, registry=registry)
    assert certificate.headers() == {"alg": "ES256", "kid": "root-1", "typ": "quittance-key+jwt"}
    certified = json.loads(certificate.payload)
    assert (certified["iat"], certified["exp"]) == (NOW_S - 300, NOW_S + 12 * 60 * 60)
    key = OKPKey.import_key(certified["jwk"])
    assert key.thumbprint() == certified["jwk"]["kid"] == header["kid"] == KEY.key_id
    assert not key.is_private
    with pytest.warns(SecurityWarning, match="EdDSA"):  # joserfc wants the newer name Ed25519 (RFC 9864)
        signed = jws.deserialize_compact(receipt, key, registry=registry)
    assert (signed.headers()["alg"], signed.headers()["typ"]) == ("EdDSA", "quittance-receipt+jwt")
    assert json.loads(signed.payload) == paid_claims


@given(data=st.data())
@pytest.mark.parametrize("part", ["header", "payload"])
@pytest.mark.parametrize("of", ["receipt", "certificate"])
def test_no_single_field_can_be_changed(receipt: str, of: str, part: str, data: st.DataObject) -> None:
    outer = parse(receipt)
    token = parse(outer.header["cert"]) if of == "certificate" else outer
    before = str(token)
    members = getattr(token, part)
    name = data.draw(st.sampled_from(sorted(members)))
    if isinstance(members[name], dict):
        members, name = members[name], data.draw(st.sampled_from(sorted(members[name])))
    deed = data.draw(st.sampled_from(["change", "drop", "add"]))
    if deed == "drop":
        del members[name]
    else:
        members[name if deed == "change" else data.draw(st.text(max_size=4))] = data.draw(JSON_VALUES)
    assume(str(token) != before)
    if of == "certificate":
        outer.header["cert"] = str(token)
    with pytest.raises(ProofError, match=r"receipt|key certificate"):
        verify_receipt(str(outer), ROOT.jwks())


@given(data=st.data())
@pytest.mark.parametrize("of", ["receipt", "certificate"])
def test_no_bit_of_a_signature_can_be_changed(receipt: str, of: str, data: st.DataObject) -> None:
    outer = parse(receipt)
    token = parse(outer.header["cert"]) if of == "certificate" else outer
    signature = bytearray(decode(token.signature))
    signature[data.draw(st.integers(0, len(signature) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    forged = str(token._replace(signature=encode(bytes(signature))))
    if of == "certificate":
        outer.header["cert"] = forged
        forged = str(outer)
    with pytest.raises(ProofError, match="is not valid"):
        verify_receipt(forged, ROOT.jwks())


@given(data=st.data())
def test_a_truncated_receipt_is_refused(receipt: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(receipt) - 1))
    for torn in (receipt[:cut], receipt[cut + 1 :], receipt[:cut] + receipt[cut + 1 :]):
        with pytest.raises(ProofError):
            verify_receipt(torn, ROOT.jwks())


@given(st.text() | st.text(st.sampled_from('ey.J{}"=-_ ')))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ProofError):
        verify_receipt(text, ROOT.jwks())


def _resigned(receipt: str, *, alg: str, of: str, secret: bytes | None) -> str:
    """The receipt with one of its two signatures made by another algorithm: none, or HMAC with a public key."""
    outer = parse(receipt)
    token = parse(outer.header["cert"]) if of == "certificate" else outer
    token.header["alg"] = alg
    signed = f"{part(token.header)}.{part(token.payload)}"
    signature = "" if secret is None else encode(hmac.digest(secret, signed.encode(), "sha256"))
    if of == "receipt":
        return f"{signed}.{signature}"
    outer.header["cert"] = f"{signed}.{signature}"
    content = f"{part(outer.header)}.{part(outer.payload)}"
    return f"{content}.{encode(KEY.private.sign(content.encode()))}"


@pytest.mark.parametrize("of", ["receipt", "certificate"])
@pytest.mark.parametrize("alg", ["none", "None", "HS256", "RS256", "ES512", ""])
def test_a_token_cannot_choose_its_algorithm(receipt: str, of: str, alg: str) -> None:
    raw = KEY.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    pem = ROOT.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (None, b"", raw, pem):
        with pytest.raises(ProofError, match="is signed by the algorithm"):
            verify_receipt(_resigned(receipt, alg=alg, of=of, secret=secret), ROOT.jwks())


def test_an_uncertified_key_proves_nothing(paid_claims: dict[str, Any]) -> None:
    forged = replace(KEY, private=Ed25519PrivateKey.generate())
    borrowed = replace(ROOT.certify(), certificate=KEY.certificate)
    with pytest.raises(ProofError, match="signature of the receipt is not valid"):
        verify_receipt(sign(paid_claims, forged), ROOT.jwks())
    with pytest.raises(ProofError, match=f"names the key '{borrowed.key_id}', its certificate {KEY.key_id}"):
        verify_receipt(sign(paid_claims, borrowed), ROOT.jwks())
    with pytest.raises(ProofError, match="signature of the receipt is not valid"):
        verify_receipt(sign(paid_claims, replace(borrowed, key_id=KEY.key_id)), ROOT.jwks())


def test_a_certificate_of_an_unknown_root_is_refused(paid_claims: dict[str, Any], receipt: str) -> None:
    namesake = sign(paid_claims, Root(ROOT.key_id).certify())
    with pytest.raises(ProofError, match="signature of the key certificate is not valid"):
        verify_receipt(namesake, ROOT.jwks())
    with pytest.raises(ProofError, match="unknown root key 'root-2'"):
        verify_receipt(sign(paid_claims, Root("root-2").certify()), ROOT.jwks())
    with pytest.raises(ProofError, match="unknown root key 'root-1'"):
        verify_receipt(receipt, Root("root-2").jwks())


@pytest.mark.parametrize("jwks", [{"keys": []}, {}, {"keys": [{"kty": "unheard-of", "kid": "root-1"}]}])
def test_without_a_usable_root_nothing_is_proven(receipt: str, jwks: dict[str, Any]) -> None:
    with pytest.raises(ProofError):
        verify_receipt(receipt, jwks)


def test_receipts_and_certificates_are_not_interchangeable(paid_claims: dict[str, Any], receipt: str) -> None:
    with pytest.raises(ProofError, match="the receipt is not of the type quittance-receipt"):
        verify_receipt(KEY.certificate, ROOT.jwks())
    with pytest.raises(ProofError, match="the key certificate is not of the type quittance-key"):
        verify_receipt(sign(paid_claims, replace(KEY, certificate=receipt)), ROOT.jwks())
    bare = parse(receipt)
    del bare.header["cert"]
    with pytest.raises(ProofError, match="the receipt's header lacks 'cert'"):
        verify_receipt(str(bare), ROOT.jwks())


@pytest.mark.parametrize(
    ("settled_ms", "covered"),
    [
        ((NOW_S - 300) * 1_000 - 1, False),
        ((NOW_S - 300) * 1_000, True),
        ((NOW_S + CERTIFICATE_SECONDS) * 1_000 - 1, True),
        ((NOW_S + CERTIFICATE_SECONDS) * 1_000, False),
    ],
)
def test_a_key_signs_only_while_its_certificate_is_valid(
    paid_claims: dict[str, Any], settled_ms: int, covered: bool
) -> None:
    around = {"funded_at": settled_ms, "epoch_ns": f"{settled_ms}000000", "expires_at": settled_ms + 1}
    receipt = sign({**paid_claims, **around, "settled_at": settled_ms}, KEY)
    if covered:
        assert verify_receipt(receipt, ROOT.jwks())["settled_at"] == settled_ms
    else:
        with pytest.raises(ProofError, match="outside the validity"):
            verify_receipt(receipt, ROOT.jwks())


@pytest.mark.parametrize("name", ["budget", "paid", "fee", "refunded"])
@pytest.mark.parametrize("change", [1, -1])
def test_a_wrong_sum_is_refused_even_if_signed(paid_claims: dict[str, Any], name: str, change: int) -> None:
    wrong = {**paid_claims, name: str(int(paid_claims[name]) + change)}
    with pytest.raises(ProofError, match="do not add up"):
        verify_receipt(sign(wrong, KEY), ROOT.jwks())


def test_negative_amounts_are_refused(paid_claims: dict[str, Any]) -> None:
    wrong = {**paid_claims, "paid": "-1", "fee": "0", "refunded": "1000001"}
    with pytest.raises(ProofError):
        verify_receipt(sign(wrong, KEY), ROOT.jwks())


@pytest.mark.parametrize(
    "change",
    [{"settled_at": None}, {"settled_at": "now"}, {"paid": None}, {"paid": "much"}, {"paid": [1]}, {"budget": None}],
    ids=str,
)
def test_signed_claims_without_sense_are_refused(paid_claims: dict[str, Any], change: dict[str, Any]) -> None:
    wrong = {name: value for name, value in (paid_claims | change).items() if value is not None}
    with pytest.raises(ProofError):
        verify_receipt(sign(wrong, KEY), ROOT.jwks())


def test_each_environment_gets_its_own_key_for_12_hours() -> None:
    one, other = ROOT.certify(), ROOT.certify()
    assert one.key_id != other.key_id
    assert one.expires_s == NOW_S + 12 * 60 * 60
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", one.key_id)


def test_the_page_names_every_claim_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "receipts.md").read_text()
    rows = page.partition("| claim | meaning |")[2].partition("\n\n")[0]
    first_cells = "".join(row.split("|")[1] for row in rows.splitlines()[2:])
    assert re.findall("`([a-z0-9_]+)`", first_cells) == list(ReceiptClaims.model_fields)
    for name, inner in (
        ("acceptance", AcceptanceClaims),
        ("meter", MeterClaims),
        ("limits", LimitClaims),
        ("compute_prices", PriceClaims),
        ("ticket", TicketClaim),
    ):
        (row,) = [row for row in rows.splitlines() if row.startswith(f"| `{name}`")]
        assert re.findall("`([a-z0-9_]+)`", row)[1:] == list(inner.model_fields)


def test_the_page_marks_what_version_1_lacked() -> None:
    """The sign for version 2 marks the row of each added claim, and each added member in the row of its claim."""
    page = (Path(__file__).parents[2] / "docs" / "receipts.md").read_text()
    rows = page.partition("| claim | meaning |")[2].partition("\n\n")[0].splitlines()[2:]
    for row in rows:
        _, names, meaning, _ = row.split("|")
        for name in re.findall("`([a-z0-9_]+)`", names):
            assert meaning.startswith(" ²") == (name in ADDED_CLAIMS), name
            if name in ADDED_MEMBERS:
                assert f"² `{ADDED_MEMBERS[name]}`" in meaning
    listed = page.partition("marks with ²: neither these claims (")[2].partition(")")[0]
    assert re.findall("`([a-z_]+)`", listed) == sorted(ADDED_CLAIMS, key=list(ReceiptClaims.model_fields).index)


def test_the_page_names_every_outcome_with_its_fault_and_version() -> None:
    page = (Path(__file__).parents[2] / "docs" / "receipts.md").read_text()
    rows = page.partition("| `fault` | `outcome` in all versions |")[2].partition("\n\n")[0].splitlines()[2:]
    found = {}
    for row in rows:
        _, fault, *columns, _ = row.split("|")
        for lacking, column in zip((set(), {1}, {2, 3}), columns, strict=True):
            for name in re.findall("`([a-z0-9_]+)`", column):
                found[Outcome(name)] = (fault.strip(" `"), lacking)
    assert found == {
        outcome: (outcome.fault.value, {version for version, without in _NO_OUTCOMES_OF.items() if outcome in without})
        for outcome in Outcome
    }
