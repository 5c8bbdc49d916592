"""Forged receipts: changed fields, other spellings and wrong keys. Each is refused with the right reason."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from quittance.ledger.escrow import Escrow, StoredBytes, decide, expire
from quittance.limits import TOKEN_CHARS_MAX
from quittance.proof import log, statement
from quittance.proof.receipt import RECEIPT, verify
from quittance.proof.statement import CERTIFICATE_SECONDS, Flaw, ProofError, Purpose
from quittance.run import Limits, Meter, Outcome, Run
from tests.proof.receipts import claims_of, sign
from tests.proof.roots import NOW_S, Root, decode, encode, parse, part
from tests.support import UNSCORED

NewEscrow = Callable[..., Escrow]
ROOT = Root()
KEY = ROOT.certify()
METER = Meter(fuel=5, cpu_ms=6, wall_ms=7, memory_bytes=8, input_bytes=9, output_bytes=10, stderr_bytes=11)
LIMITS = Limits(fuel=50, memory_bytes=60, timeout_ms=70, output_bytes=80)
METER_JSON = asdict(METER)
RULES = {"agent_sha256": None, "task_sha256": "ab" * 32, **UNSCORED, "accepted": True}
REJECTED = {
    "state": "refunded", "outcome": "rejected", "fault": "agent", "reputation_tenths": -50, "output_sha256": None,
    "paid": "0", "fee": "0", "refunded": "1000000",
}  # fmt: skip
OTHER_VALUES = (None, True, 0, 1, -1, 2**70, 1.5, "", "x", "0", "\ud800", [], [1], {}, {"a": 1})


@pytest.fixture(scope="session")
def paid_claims(new_escrow: NewEscrow) -> dict[str, Any]:
    escrow = new_escrow()
    settled = decide(escrow, Run(Outcome.SUCCEEDED, "ok", METER), now_ms=NOW_S * 1_000 + 5)
    settled = replace(settled, output=StoredBytes("dd" * 32, 10, b""), stderr=StoredBytes("ee" * 32, 11, None))
    stated = claims_of(
        escrow,
        settled,
        issuer="i",
        run=Run(Outcome.SUCCEEDED, "", METER, limits=LIMITS),
        engine="50.0.1",
        config_sha256="ff" * 32,
    )
    return dict(json.loads(json.dumps(stated)))


@pytest.fixture(scope="session")
def receipt(paid_claims: dict[str, Any]) -> str:
    return sign(paid_claims, KEY)


def refused(token: str, *, flaw: Flaw | None = None, jwks: dict[str, Any] | None = None) -> str:
    """The error sentence for a refused token."""
    with pytest.raises(ProofError) as caught:
        verify(token, jwks or ROOT.jwks())
    assert flaw in {None, caught.value.flaw}
    return str(caught.value)


def variants(members: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every single change of an object: (member, deed, result)."""
    for name, value in members.items():
        yield name, "drop", {key: kept for key, kept in members.items() if key != name}
        for other in (*OTHER_VALUES, str(value), [value], {"": value}):
            if (type(other), other) != (type(value), value):
                yield name, "change", {**members, name: other}
        if isinstance(value, dict):
            for inner, deed, changed in variants(value):
                yield f"{name}.{inner}", deed, {**members, name: changed}
    yield "unknown", "add", {**members, "unknown": 1}


HEADER_SENTENCES = {
    ("typ", "drop"): "is not of the type quittance-receipt+jwt, but None",
    ("typ", "change"): "is not of the type quittance-receipt+jwt, but",
    ("alg", "drop"): "header lacks 'alg'",
    ("alg", "change"): "is signed by the algorithm",
    ("kid", "drop"): "header lacks 'kid'",
    ("kid", "change"): "names the key",
    ("cert", "drop"): "header lacks 'cert'",
    ("cert", "change"): "the key certificate is not a compact JWS",
    ("unknown", "add"): "header has the unknown member 'unknown'",
}


def test_no_member_of_the_header_can_be_changed(receipt: str) -> None:
    whole = parse(receipt)
    seen = set()
    for name, deed, changed in variants(whole.header):
        sentence = refused(str(whole._replace(header=changed)))
        assert HEADER_SENTENCES[name, deed] in sentence
        seen.add((name, deed))
    assert seen == HEADER_SENTENCES.keys()


def test_no_claim_can_be_changed(receipt: str) -> None:
    whole = parse(receipt)
    for _, _, changed in variants(whole.payload):
        assert refused(str(whole._replace(payload=changed))) == "the signature of the receipt is not valid"


def test_no_member_of_the_certificate_can_be_changed(receipt: str) -> None:
    """Not even by the holder of the environment's key, who can sign the receipt again with a changed certificate."""
    inner = parse(parse(receipt).header["cert"])
    for name, deed, changed in variants(inner.header):
        sentence = refused(signed_with(statement_of(receipt), str(inner._replace(header=changed))))
        if name == "kid" and deed == "change":
            assert "unknown root key" in sentence
        else:
            said = HEADER_SENTENCES[name, deed].replace("quittance-receipt", "quittance-key")
            assert said in sentence
    for _, _, changed in variants(inner.payload):
        sentence = refused(signed_with(statement_of(receipt), str(inner._replace(payload=changed))))
        assert sentence == "the signature of the key certificate is not valid"


def statement_of(receipt: str) -> dict[str, Any]:
    return parse(receipt).payload


def signed_with(paid_claims: object, certificate: str) -> str:
    """A receipt with any payload, signed by the environment's key."""
    header = {"alg": "EdDSA", "typ": RECEIPT.typ, "kid": KEY.key_id, "cert": certificate}
    content = f"{part(header)}.{part(paid_claims)}"
    return f"{content}.{encode(KEY.private.sign(content.encode()))}"


FREE = {
    "iss", "agent", "owner", "module_sha256", "input_sha256", "stderr_sha256", "tariff_sha256", "engine",
    "config_sha256", "limits", "limits.fuel", "limits.memory_bytes", "limits.timeout_ms", "limits.output_bytes",
    "task_judge_bps", "meter.fuel",
    "meter.fuel_exact", "meter.cpu_ms", "meter.wall_ms", "meter.memory_bytes", "meter.input_bytes",
    "meter.output_bytes", "meter.stderr_bytes", "own_limits",
}  # fmt: skip


def test_a_signed_claim_of_a_wrong_form_is_refused(paid_claims: dict[str, Any]) -> None:
    """Even if the platform signs them: only claims that do not follow from others may have other values."""
    for name, deed, changed in variants(paid_claims):
        token = signed_with(changed, KEY.certificate)
        if deed == "change" and name in FREE:
            said = judged(token)
            assert said is None or name.partition(".")[0] in said or "over its limit" in said or "timeout" in said
        elif deed == "change":
            refused(token)
        else:
            assert f"wrong form: '{name}'" in refused(token) or name == "v"


def judged(token: str) -> str | None:
    """The error sentence for a token, None if it is accepted."""
    try:
        verify(token, ROOT.jwks())
    except ProofError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("change", "flaw", "sentence"),
    [
        ({"eid": "a" * 26}, Flaw.CONTRADICTION, "eid is 'aaaaaaaaaaaaaaaaaaaaaaaaaa', but it must be 'pt7f"),
        ({"user": "user-2"}, Flaw.CONTRADICTION, "eid is"),
        ({"task": "task-2"}, Flaw.CONTRADICTION, "eid is"),
        ({"seed": "00" * 32}, Flaw.CONTRADICTION, "seed is"),
        ({"epoch_ns": "1"}, Flaw.CONTRADICTION, "epoch_ns is '1'"),
        ({"outcome": "timeout"}, Flaw.CONTRADICTION, "state is 'released', but it must be 'refunded'"),
        ({"fault": "agent"}, Flaw.CONTRADICTION, "fault is 'agent', but it must be 'none'"),
        ({"reputation_tenths": 20}, Flaw.CONTRADICTION, "reputation_tenths is 20, but it must be 25"),
        ({"output_sha256": None}, Flaw.CONTRADICTION, "output_sha256 is None"),
        ({"meter": {**METER_JSON, "fuel": 51}}, Flaw.CONTRADICTION, "took 51 fuel, over its limit 50"),
        ({"meter": {**METER_JSON, "memory_bytes": 61}}, Flaw.CONTRADICTION, "61 bytes of memory, over its limit"),
        ({"acceptance": RULES | {"accepted": False}}, Flaw.CONTRADICTION, "acceptance.accepted is False"),
        ({"acceptance": RULES | {"task_sha256": None}}, Flaw.CONTRADICTION, "acceptance is stated, but names no rules"),
        (REJECTED, Flaw.CONTRADICTION, "the outcome is rejected, but acceptance names no rules"),
        (REJECTED | {"acceptance": RULES}, Flaw.CONTRADICTION, "acceptance.accepted is True"),
        ({"acceptance": {}}, Flaw.FORM, "wrong form: 'acceptance"),
        ({"acceptance": RULES | {"score": 1}}, Flaw.FORM, "wrong form: 'acceptance"),
        ({"v": 4}, Flaw.FORM, "of version 4; this verifier knows the versions 1 to 3"),
        ({"v": [2]}, Flaw.FORM, r"of version \[2\]; this verifier knows the versions 1 to 3"),
        ({"v": 3}, Flaw.FORM, "'ticket' must be stated in version 3"),
        ({"v": 1}, Flaw.FORM, "charge is not a claim of version 1"),
        ({"v": True}, Flaw.FORM, "of version True"),
        ({"outcome": "fine"}, Flaw.FORM, "wrong form: 'outcome'"),
        ({"paid": 390_000}, Flaw.FORM, "wrong form: 'paid'"),
        ({"paid": "0390000"}, Flaw.FORM, "wrong form: 'paid'"),
        ({"paid": "+390000"}, Flaw.FORM, "wrong form: 'paid'"),
        ({"paid": "٣"}, Flaw.FORM, "wrong form: 'paid'"),
        ({"budget": "1" * 5_000}, Flaw.FORM, "wrong form: 'budget'"),
        ({"task": "\ud800"}, Flaw.FORM, "wrong form: 'task'"),
        ({"settled_at": NOW_S * 1_000 - 1}, Flaw.TIMES, "is before funded_at"),
        ({"settled_at": 1_800_000_100_000}, Flaw.TIMES, "is released, but settled_at 1800000100000 is not before"),
        ({"fee": "10001", "paid": "389999"}, Flaw.AMOUNTS, "the fee 10001 is not the compute 0 plus .*, 10000"),
        ({"budget": "0", "paid": "0", "fee": "0", "refunded": "0"}, Flaw.AMOUNTS, "the budget 0 is not between"),
        (
            {"state": "refunded", "outcome": "timeout", "fault": "agent", "reputation_tenths": -50},
            Flaw.AMOUNTS,
            "400000 was paid although the escrow is refunded",
        ),
    ],
)  # fmt: skip
def test_inconsistent_signed_claims_are_refused(
    paid_claims: dict[str, Any], change: dict[str, Any], flaw: Flaw, sentence: str
) -> None:
    with pytest.raises(ProofError, match=sentence) as caught:
        verify(signed_with({**paid_claims, **change}, KEY.certificate), ROOT.jwks())
    assert caught.value.flaw is flaw


def test_an_escrow_expires_at_its_expiry_and_not_before(new_escrow: NewEscrow) -> None:
    escrow = new_escrow()
    for late_ms, held in ((0, True), (-1, False)):
        settled = expire(escrow, now_ms=escrow.expires_ms + late_ms)
        stated = claims_of(
            escrow,
            settled,
            issuer="i",
            run=Run(Outcome.SUCCEEDED, "", Meter(), limits=None),
            engine="",
            config_sha256="",
        )
        token = sign(stated, KEY)
        if held:
            assert verify(token, ROOT.jwks())["state"] == "expired"
        else:
            assert "is expired, but settled_at 1800000099999 is before" in refused(token, flaw=Flaw.TIMES)


# Other spellings of the same receipt


def respelt(receipt: str, at: int, change: Callable[[str], str]) -> str:
    parts = receipt.split(".")
    parts[at] = change(parts[at])
    return ".".join(parts)


def padded(text: str) -> str:
    return text + "=" * (-len(text) % 4 or 4)


def loosened(text: str) -> str:
    """The same bytes, with a spare bit set in the last character (RFC 4648 §3.5)."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(text) % 4 in {2, 3}
    last = alphabet[alphabet.index(text[-1]) ^ 1]
    assert decode(text[:-1] + last) == decode(text)
    return text[:-1] + last


COMPACT = "the receipt is not a compact JWS"


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    "change",
    [
        padded,
        lambda text: f"{text}\n",
        lambda text: f" {text}",
        lambda text: f"{text[:9]}\r\n{text[9:]}",
        lambda text: f"{text[:9]}\0{text[9:]}",
        lambda text: f"{text[:8]}Å{text[8:]}",
        lambda text: text.replace(text[5], "+", 1),
        lambda text: f"{text[:8]}/{text[9:]}",
    ],
)
def test_base64url_has_one_alphabet_and_no_spare_bits(receipt: str, at: int, change: Callable[[str], str]) -> None:
    assert refused(respelt(receipt, at, change), flaw=Flaw.FORM).startswith(COMPACT)


def test_a_signature_has_one_spelling(receipt: str) -> None:
    """Its 64 bytes leave four spare bits: without this check, fifteen other spellings would be accepted too."""
    assert refused(respelt(receipt, 2, loosened), flaw=Flaw.FORM) == "the receipt is not in canonical base64url"
    standard = base64.b64encode(decode(receipt.split(".")[2])).decode()
    assert refused(respelt(receipt, 2, lambda _: standard), flaw=Flaw.FORM).startswith(COMPACT)
    for rest in ("A", "AAAA"):
        refused(receipt + rest)


@pytest.mark.parametrize("tail", ["", ".", "..", ".x", ".x.y"])
def test_a_receipt_has_three_parts(receipt: str, tail: str) -> None:
    torn = receipt.rpartition(".")[0] if not tail else receipt + tail
    assert refused(torn, flaw=Flaw.FORM).startswith(COMPACT)


def test_a_token_beyond_the_limit_is_not_parsed(receipt: str) -> None:
    long = receipt + "A" * TOKEN_CHARS_MAX
    assert refused(long, flaw=Flaw.FORM).startswith(COMPACT)


def resigned(header: str, payload: str) -> str:
    """Any bytes as header and payload, signed by the environment's key."""
    content = f"{encode(header.encode())}.{encode(payload.encode())}"
    return f"{content}.{encode(KEY.private.sign(content.encode()))}"


def test_other_white_space_in_the_json_breaks_the_signature(receipt: str) -> None:
    whole = parse(receipt)
    spaced = encode(json.dumps(whole.payload, indent=1).encode())
    assert "the signature of the receipt is not valid" in refused(respelt(receipt, 1, lambda _: spaced))
    header = encode(json.dumps(whole.header, indent=1).encode())
    assert "the signature of the receipt is not valid" in refused(respelt(receipt, 0, lambda _: header))


def test_duplicate_members_are_refused_even_if_signed(receipt: str) -> None:
    whole = parse(receipt)
    header, payload = json.dumps(whole.header), json.dumps(whole.payload)
    verify(resigned(header, payload), ROOT.jwks())
    for forged in (
        resigned('{"alg":"EdDSA",' + header[1:], payload),
        resigned(header, '{"paid":"390000",' + payload[1:]),
        resigned(header, payload.replace('"fuel":', '"fuel":1,"fuel":', 1)),
        resigned(header, '{"paid":"390000","p\\u0061id":"1"}'),
    ):
        assert "unique member names" in refused(forged, flaw=Flaw.FORM)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "1", "null", "NaN", '{"v":NaN}', '{"v":Infinity}', "{", '{"v":1}x', "\ufeff{}", "[" * 9_000,
     '{"a":' * 3_000, '{"v":' + "9" * 9_000 + "}", '{"v":1e999}', '"\\ud800"'],
)  # fmt: skip
def test_signed_payloads_that_are_no_claims_are_refused(receipt: str, text: str) -> None:
    header = json.dumps(parse(receipt).header)
    refused(resigned(header, text), flaw=Flaw.FORM)
    refused(resigned(text, json.dumps(parse(receipt).payload)), flaw=Flaw.FORM)


@pytest.mark.parametrize("extra", [{"crit": ["b64"], "b64": False}, {"b64": False}, {"b64": True}, {"crit": ["exp"]}])
def test_extensions_of_jws_are_refused(receipt: str, extra: dict[str, Any]) -> None:
    """With them (RFC 7515 §4.1.11 and RFC 7797), the signed bytes could differ from those in the token."""
    whole = parse(receipt)
    header = {**whole.header, **extra}
    named = sorted(extra)[0]
    bare = encode(json.dumps(header).encode())
    unencoded = json.dumps(whole.payload)
    content = f"{bare}.{unencoded}"
    signature = encode(KEY.private.sign(content.encode()))
    assert refused(f"{bare}.{unencoded}.{signature}", flaw=Flaw.FORM).startswith(COMPACT)
    assert refused(f"{bare}..{signature}", flaw=Flaw.FORM).startswith(COMPACT)
    encoded = resigned(json.dumps(header), unencoded)
    assert refused(encoded, flaw=Flaw.FORM) == f"the receipt's header has the unknown member '{named}'"


# Other keys and algorithms


def test_a_key_in_the_header_is_not_trusted(receipt: str) -> None:
    for extra in ({"jwk": {"kty": "OKP"}}, {"jku": "https://evil.example/jwks"}, {"x5c": ["AA"]}, {"x5u": "u"}):
        whole = parse(receipt)
        sentence = refused(resigned(json.dumps({**whole.header, **extra}), json.dumps(whole.payload)))
        assert "has the unknown member" in sentence


def test_an_elliptic_curve_key_signs_no_receipt(receipt: str) -> None:
    """ES256 with a certified key is refused: only Ed25519 keys are certified and may sign."""
    own = ec.generate_private_key(ec.SECP256R1())

    def es256(content: str) -> str:
        r, s = decode_dss_signature(own.sign(content.encode(), ec.ECDSA(SHA256())))
        return f"{content}.{encode(r.to_bytes(32) + s.to_bytes(32))}"

    numbers = own.public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "x": encode(numbers.x.to_bytes(32)), "y": encode(numbers.y.to_bytes(32))}
    whole = parse(receipt)
    certificate = certificate_of(
        {"iat": NOW_S, "exp": NOW_S + 60, "purpose": "receipt", "jwk": {**jwk, "kid": KEY.key_id}}
    )
    for cert in (whole.header["cert"], certificate):
        token = es256(f"{part({**whole.header, 'alg': 'ES256', 'cert': cert})}.{part(whole.payload)}")
        assert "signed by the algorithm 'ES256', not EdDSA" in refused(token, flaw=Flaw.SIGNATURE)
    token = es256(f"{part({**whole.header, 'cert': certificate})}.{part(whole.payload)}")
    assert "the key certificate has a wrong form: 'jwk" in refused(token, flaw=Flaw.FORM)


def certificate_of(payload: dict[str, Any], *, root: Root = ROOT, typ: str = statement.CERTIFICATE_TYPE) -> str:
    """A certificate with any payload, signed by the root."""
    content = f"{part({'alg': 'ES256', 'kid': root.key_id, 'typ': typ})}.{part(payload)}"
    return f"{content}.{encode(root.sign(content.encode()))}"


@pytest.mark.parametrize("alg", ["none", "HS256", "ES256K", "Ed25519", "eddsa"])
def test_other_algorithms_are_refused(receipt: str, alg: str) -> None:
    whole = parse(receipt)
    content = f"{part({**whole.header, 'alg': alg})}.{part(whole.payload)}"
    public = KEY.private.public_key()
    secrets = [
        public.public_bytes(Encoding.Raw, PublicFormat.Raw),
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        ROOT.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(ROOT.jwks()["keys"][0]).encode(),
    ]
    signatures = [b"", KEY.private.sign(content.encode())]
    signatures += [hmac.digest(secret, content.encode(), "sha256") for secret in secrets]
    for signature in signatures:
        sentence = refused(f"{content}.{encode(signature)}", flaw=Flaw.SIGNATURE)
        assert sentence == f"the receipt is signed by the algorithm '{alg}', not EdDSA"


def test_a_malleated_certificate_breaks_the_receipt(receipt: str) -> None:
    """(r, n - s) verifies like (r, s), but the certificate is part of the header that the receipt signs."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    whole = parse(receipt)
    content, _, signature = whole.header["cert"].rpartition(".")
    raw = decode(signature)
    twin = raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32)
    assert verify(signed_with(whole.payload, f"{content}.{encode(twin)}"), ROOT.jwks())
    forged = whole._replace(header={**whole.header, "cert": f"{content}.{encode(twin)}"})
    assert refused(str(forged)) == "the signature of the receipt is not valid"


def test_a_certificate_binds_key_root_type_and_time(paid_claims: dict[str, Any]) -> None:
    validity = parse(KEY.certificate).payload
    unbegun = {name: validity[name] for name in ("exp", "purpose", "jwk")}
    for made, sentence, flaw in (
        (certificate_of(validity, typ="quittance-receipt+jwt"), "key certificate is not of the type", Flaw.FORM),
        (certificate_of(validity, typ="JWT"), "key certificate is not of the type", Flaw.FORM),
        (certificate_of(validity, root=Root("root-2")), "unknown root key 'root-2'", Flaw.SIGNATURE),
        (certificate_of(validity, root=Root("root-1")), "signature of the key certificate", Flaw.SIGNATURE),
        (Root.certify(ROOT).certificate, f"names the key '{KEY.key_id}', its certificate", Flaw.SIGNATURE),
        (certificate_of({**validity, "exp": NOW_S}), "settled_at 1800000000005 is outside", Flaw.TIMES),
        (certificate_of({**validity, "iat": NOW_S + 1}), "settled_at 1800000000005 is outside", Flaw.TIMES),
        (ROOT.certify(NOW_S - CERTIFICATE_SECONDS).certificate, "names the key", Flaw.SIGNATURE),
        (certificate_of(unbegun), "certificate has a wrong form: 'iat'", Flaw.FORM),
        (certificate_of({**validity, "sub": "x"}), "certificate has a wrong form: 'sub'", Flaw.FORM),
        (KEY.certificate.rpartition(".")[0] + ".", "signature of the key certificate", Flaw.SIGNATURE),
    ):  # fmt: skip
        assert sentence in refused(signed_with(paid_claims, made), flaw=flaw)


def test_receipts_and_checkpoints_are_not_interchangeable(receipt: str) -> None:
    kind = replace(
        log.CHECKPOINT, purpose=Purpose.RECEIPT
    )  # a signer without our purpose check, as an attacker would write it
    checkpoint = statement.sign({"v": 1}, KEY, kind)
    assert "the receipt is not of the type quittance-receipt+jwt" in refused(checkpoint, flaw=Flaw.FORM)
    with pytest.raises(ProofError, match="the checkpoint is not of the type quittance-checkpoint"):
        log.verify_checkpoint(receipt, ROOT.jwks())


@pytest.mark.parametrize(
    "key",
    [
        {},
        {"kty": "EC"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43},
        {"kty": "EC", "crv": "P-256", "x": 1, "y": []},
        {"kty": "EC", "crv": "P-384", "x": "A" * 64, "y": "A" * 64},
        {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43},
        {"kty": "oct", "k": "AA"},
    ],
)
def test_a_malformed_root_key_proves_nothing(receipt: str, key: dict[str, Any]) -> None:
    jwks = {"keys": [{**key, "kid": "root-1"}]}
    assert (
        refused(receipt, flaw=Flaw.FORM, jwks=jwks) == "the root key 'root-1' of the key set is not a usable ES256 key"
    )


def test_a_root_key_must_have_the_curve_of_its_algorithm(receipt: str) -> None:
    """A signature by a P-384 key with SHA-256 is not ES256."""
    own = ec.generate_private_key(ec.SECP384R1())
    numbers = own.public_key().public_numbers()
    x, y = (encode(number.to_bytes(48)) for number in (numbers.x, numbers.y))
    jwks = {"keys": [{"kty": "EC", "crv": "P-384", "x": x, "y": y, "kid": "root-1"}]}
    content = KEY.certificate.rpartition(".")[0]
    r, s = decode_dss_signature(own.sign(content.encode(), ec.ECDSA(SHA256())))
    token = signed_with(statement_of(receipt), f"{content}.{encode(r.to_bytes(48) + s.to_bytes(48))}")
    assert "is not a usable ES256 key" in refused(token, flaw=Flaw.FORM, jwks=jwks)


@pytest.mark.parametrize("jwks", [{"keys": 5}, {"keys": {"a": 1}}, {"keys": [{}] * 1_001}, {"kids": []}])
def test_a_key_set_is_a_list_of_limited_length(receipt: str, jwks: dict[str, Any]) -> None:
    assert "the key set is not a JWKS" in refused(receipt, flaw=Flaw.FORM, jwks=jwks)


@given(jwks=st.dictionaries(st.just("keys"), st.recursive(st.none() | st.integers() | st.text(), st.lists)))
def test_any_key_set_is_used_or_refused_with_a_reason(receipt: str, jwks: dict[str, Any]) -> None:
    with pytest.raises(ProofError):
        verify(receipt, jwks)


def test_a_log_leaf_is_the_hash_of_the_receipts_bytes(receipt: str) -> None:
    """So each leaf of the log stands for one receipt, because each receipt has one spelling."""
    assert log.leaf_hash(receipt.encode()) == hashlib.sha256(b"\0" + receipt.encode("ascii")).digest()
