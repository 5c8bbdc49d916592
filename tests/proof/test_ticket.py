"""Tickets and closing orders: only what the channel's key signed, in the one form that the page of receipts states."""

import base64
import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import example, given
from hypothesis import strategies as st
from joserfc import jws as jose
from joserfc.errors import SecurityWarning
from joserfc.jwk import OKPKey
from jwt.algorithms import OKPAlgorithm

from quittance.ledger.channels import channel_id
from quittance.limits import TICKET_CHARS_MAX, TICKET_KID_CHARS_MAX, TICKET_NUMBER_MAX
from quittance.proof import ticket
from quittance.proof.statement import Flaw, ProofError
from quittance.proof.ticket import TicketClaim, TicketClaims
from tests.proof import ticketing
from tests.proof.roots import decode, encode
from tests.proof.ticketing import CLOSE_HEADER, HEADER, ISSUER, KEY, OTHER_KEY, PAYER, asked, claim, jwk, jws, public

ORDER: Final = 2**252 + 27742317777372353535851937790883648493  # of the group of Ed25519 (RFC 8032 §5.1)
PRIME: Final = 2**255 - 19
FULL: Final = asked(timeout=20, acceptance_sha256="ab" * 32, options_sha256="cd" * 32)


def read(token: str, key: str | None = None) -> TicketClaims:
    """The claims of a ticket that a key signed."""
    claims, parts = ticket.read(token)
    ticket.check_signed(parts, key or public(KEY))
    return claims


def refused(token: str, key: str | None = None) -> tuple[Flaw, str]:
    with pytest.raises(ProofError) as caught:
        read(token, key)
    return caught.value.flaw, str(caught.value)


# Round trips.


@pytest.mark.parametrize("stated", [asked(), FULL, asked(n=1, budget="0"), asked(n=TICKET_NUMBER_MAX, exp=2**40)])
def test_a_ticket_by_hand_is_read(stated: dict[str, Any]) -> None:
    assert read(jws(stated)).model_dump(exclude_none=True) == stated


@pytest.mark.parametrize("algorithm", ["EdDSA", "Ed25519"])
def test_a_ticket_of_joserfc_is_read(algorithm: str) -> None:
    key = OKPKey.import_key(KEY)
    header = {"alg": algorithm, "typ": "quittance-ticket+jwt", "kid": key.thumbprint()}
    with pytest.warns(SecurityWarning) if algorithm == "EdDSA" else nullcontext():
        token = jose.serialize_compact(header, json.dumps(FULL), key, algorithms=[algorithm])
    assert read(token).model_dump() == FULL


def test_a_ticket_of_pyjwt_is_read() -> None:
    token = jwt.encode(FULL, KEY, algorithm="EdDSA", headers={"typ": "quittance-ticket+jwt"})
    assert read(token).model_dump() == FULL


def test_two_libraries_verify_a_ticket_by_hand() -> None:
    token = jws(FULL)
    options = {"verify_exp": False}
    assert jwt.decode(token, OKPAlgorithm.from_jwk(jwk(KEY)), algorithms=["EdDSA"], options=options) == FULL  # type: ignore[arg-type]
    with pytest.warns(SecurityWarning):
        assert json.loads(jose.deserialize_compact(token, OKPKey.import_key(jwk(KEY)), ["EdDSA"]).payload) == FULL


# The header.


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ({"alg": "EdDSA"}, "is not of the type quittance-ticket+jwt, but None"),
        ({"typ": "quittance-ticket+jwt"}, "header lacks 'alg'"),
        (HEADER | {"typ": "JWT"}, "not of the type quittance-ticket+jwt, but 'JWT'"),
        (HEADER | {"typ": "quittance-receipt+jwt"}, "not of the type"),
        (HEADER | {"typ": "quittance-channel-close+jwt"}, "not of the type"),
        (HEADER | {"typ": "QUITTANCE-TICKET+JWT"}, "not of the type"),
        (HEADER | {"typ": "application/quittance-ticket+jwt"}, "not of the type"),
        (HEADER | {"typ": ["quittance-ticket+jwt"]}, "not of the type"),
        (HEADER | {"crit": ["exp"]}, "unknown member 'crit'"),
        (HEADER | {"crit": []}, "unknown member 'crit'"),
        (HEADER | {"b64": False, "crit": ["b64"]}, "unknown member 'b64'"),
        (HEADER | {"jwk": jwk(OTHER_KEY)}, "unknown member 'jwk'"),
        (HEADER | {"jku": "https://a.example"}, "unknown member 'jku'"),
        (HEADER | {"x5c": []}, "unknown member 'x5c'"),
        (HEADER | {"zip": "DEF"}, "unknown member 'zip'"),
        (HEADER | {"cty": "JWT"}, "unknown member 'cty'"),
        (HEADER | {"kid": 5}, "kid is not a string"),
        (HEADER | {"kid": None}, "kid is not a string"),
        (HEADER | {"kid": {"a": "b"}}, "kid is not a string"),
        (HEADER | {"kid": "k" * (TICKET_KID_CHARS_MAX + 1)}, "kid is not a string of at most 256"),
        ([HEADER], "not a JSON object"),
        ("", "not a compact JWS"),
        ("{}", "not of the type"),
        ("null", "not a JSON object"),
        ('{"alg":"EdDSA","typ":"quittance-ticket+jwt","alg":"EdDSA"}', "unique member names"),
        ('{"alg":"none","typ":"quittance-ticket+jwt","alg":"EdDSA"}', "unique member names"),
        ('{"alg":"EdDSA","typ":"quittance-ticket+jwt","t\\u0079p":"quittance-ticket+jwt"}', "unique member names"),
        ('\ufeff{"alg":"EdDSA","typ":"quittance-ticket+jwt"}', "not JSON"),
    ],
)
def test_another_header_is_refused(header: object, sentence: str) -> None:
    flaw, said = refused(jws(asked(), header))
    assert (flaw, sentence in said) == (Flaw.FORM, True), said


@pytest.mark.parametrize("key_id", ["", "k", "k" * TICKET_KID_CHARS_MAX, "\u00e9"])
def test_a_key_id_is_allowed_and_means_nothing(key_id: str) -> None:
    assert read(jws(asked(), HEADER | {"kid": key_id})).n == 7


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "HS256", "ES256", "RS256", "ES512", "Ed448", "eddsa", "", 5, [], None]
)
def test_another_algorithm_is_refused(algorithm: object) -> None:
    """Even with a signature that the channel's key made: a header must not choose how it is verified."""
    flaw, said = refused(jws(asked(), HEADER | {"alg": algorithm}))
    assert (flaw, "is signed by the algorithm" in said) == (Flaw.SIGNATURE, True)


def test_signatures_of_other_algorithms_are_refused() -> None:
    """The public key as an HMAC secret, an elliptic curve, RSA, no signature: each token is correct by its header."""
    keys: dict[str, Any] = {
        "HS256": KEY.public_key().public_bytes_raw(),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "RS256": rsa.generate_private_key(public_exponent=65_537, key_size=2_048),
        "none": None,
    }
    for algorithm, key in keys.items():
        token = jwt.encode(asked(), key, algorithm=algorithm, headers={"typ": "quittance-ticket+jwt"})
        assert refused(token)[0] is Flaw.SIGNATURE
    assert refused(jws(asked()).rpartition(".")[0] + ".")[0] is Flaw.SIGNATURE


# The spelling.


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "=" * (-len(text) % 4 or 4),
        lambda text: f"{text}\n",
        lambda text: f" {text}",
        lambda text: f"{text[:9]}\n{text[9:]}",
        lambda text: f"{text[:9]}\0{text[9:]}",
        lambda text: f"{text[:8]}\u212b{text[8:]}",
        lambda text: f"{text[:8]}+{text[9:]}",
        lambda text: f"{text[:8]}/{text[9:]}",
        lambda text: f"{text}A",
        lambda text: f"{text}AAAA",
        lambda text: text[:-1],
        lambda _: "",
    ],
)
def test_another_spelling_is_refused(at: int, change: Callable[[str], str]) -> None:
    parts = jws(asked()).split(".")
    parts[at] = change(parts[at])
    refused(".".join(parts))


def test_spare_bits_are_refused() -> None:
    """A signature's last character has four spare bits, which other readers ignore."""
    body, _, signature = jws(asked()).rpartition(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at = alphabet.index(signature[-1])
    for spare in range(1, 16):
        other = signature[:-1] + alphabet[at | spare]
        assert decode(other) == decode(signature)
        assert refused(f"{body}.{other}") == (Flaw.FORM, "the ticket is not in canonical base64url")


@pytest.mark.parametrize("tail", [".", "..", ".x", ".x.y", " ", "\n", "\0", ","])
def test_trailing_data_is_refused(tail: str) -> None:
    for token in (jws(asked()) + tail, tail + jws(asked())):
        assert refused(token)[0] is Flaw.FORM


@pytest.mark.parametrize(
    "token", ["", ".", "..", "a.a", "a.a.a", "e30.e30.e30", "e30.e30.", "{}", "\u0661.\u0661.\u0661"]
)
def test_other_text_is_refused(token: str) -> None:
    assert refused(token)[0] is Flaw.FORM


def padded(size: int) -> str:
    """A ticket of an exact length: white space in its JSON fills it up."""
    for header in (HEADER, HEADER | {"kid": "a"}, HEADER | {"kid": "ab"}):
        for spaces in range(size):
            token = jws(json.dumps(asked()) + " " * spaces, header)
            if len(token) >= size:
                break
        if len(token) == size:
            return token
    raise AssertionError(size)


def test_a_ticket_has_a_greatest_length() -> None:
    assert read(padded(TICKET_CHARS_MAX)).n == 7
    flaw, said = refused(padded(TICKET_CHARS_MAX + 1))
    assert (flaw, said) == (
        Flaw.FORM,
        "the ticket is not a compact JWS: three parts of base64url, at most 4096 characters",
    )
    assert refused("a" * 10**7)[0] is Flaw.FORM
    assert refused(jws({**asked(), "agent_id": "a" * 10**6}))[0] is Flaw.FORM


# The claims.


ODD = [
    *(None, True, False, 0, 1, -1, 7.0, 1e300, 2**53, 2**70, "", "x", "7", "\ud800", "\u0661", [], [7], {}, {"a": 7}),
    *(
        "CC" * 32,
        "cc" * 31,
        "cc" * 33,
        "cc" * 32 + "\n",
        "chn_" + "a" * 26 + "\n",
        "chn_" + "A" * 26,
        " 0.025",
        "a" * 101,
    ),
]


@pytest.mark.parametrize("name", FULL)
def test_a_claim_of_another_form_is_refused(name: str) -> None:
    """What is read has the type and the value that were signed: nothing is converted."""
    for value in ODD:
        token = jws(FULL | {name: value})
        try:
            found = read(token)
        except ProofError:
            flaw, said = refused(token)
            assert (flaw, repr(name) in said or "JSON" in said) == (Flaw.FORM, True)
        else:
            assert getattr(found, name) == value
            assert type(getattr(found, name)) is type(value)


@pytest.mark.parametrize("name", ["iss", "channel", "n", "exp", "agent_id", "input_sha256", "budget"])
def test_a_missing_claim_is_refused(name: str) -> None:
    flaw, said = refused(jws(asked(**{name: None})))
    assert (flaw, f"{name!r}: Field required" in said) == (Flaw.FORM, True)


@pytest.mark.parametrize("name", ["sub", "aud", "nbf", "iat", "jti", "task_id", "payer", "", "N", "Budget", "exp "])
def test_an_unknown_claim_is_refused(name: str) -> None:
    flaw, said = refused(jws({**asked(), name: 1}))
    assert (flaw, repr(name) in said) == (Flaw.FORM, True)


@pytest.mark.parametrize(
    ("name", "at_limit", "beyond"),
    [
        ("n", TICKET_NUMBER_MAX, TICKET_NUMBER_MAX + 1),
        ("n", 1, 0),
        ("exp", 2**40, 2**40 + 1),
        ("exp", 0, -1),
        ("timeout", 1, 0),
        ("timeout", 2**20, 2**20 + 1),
        ("agent_id", "a" * 100, "a" * 101),
        ("iss", "i" * 1_000, "i" * 1_001),
    ],
)
def test_a_claim_has_limits(name: str, at_limit: object, beyond: object) -> None:
    assert getattr(read(jws(asked(**{name: at_limit}))), name) == at_limit
    assert refused(jws(asked() | {name: beyond}))[0] is Flaw.FORM


@pytest.mark.parametrize(
    ("spelling", "micro"), [("0.01", 10_000), ("0.010", 10_000), ("00.01", 10_000), ("0.000001", 1)]
)
def test_a_budget_is_read_as_amounts_are(spelling: str, micro: int) -> None:
    assert read(jws(asked(budget=spelling))).budget_micro == micro


@pytest.mark.parametrize(
    "spelling",
    [
        *(
            "",
            " ",
            ".",
            "0.",
            ".01",
            "-0.01",
            "+0.01",
            "0,01",
            "1e-2",
            "1E2",
            "0x1",
            "0.0000001",
            "0.01 ",
            " 0.01",
            "0.01\n",
        ),
        *(
            "NaN",
            "Infinity",
            "1_000",
            "\u0660.\u0661",
            "\uff10.\uff11",
            "1" * 17,
            "9" * 24,
            "9" * 25,
            "0.01\0",
            "1/100",
        ),
    ],
)
def test_another_spelling_of_a_budget_is_refused(spelling: str) -> None:
    flaw, said = refused(jws(asked(budget=spelling)))
    assert (flaw, "'budget'" in said) == (Flaw.FORM, True)


@pytest.mark.parametrize(
    "payload",
    [
        json.dumps(asked())[:-1] + ',"n":7}',
        json.dumps(asked())[:-1] + ',"budget":"0.025"}',
        json.dumps(asked())[:-1] + ',"bud\\u0067et":"9"}',
        json.dumps(asked())[:-1] + ',"x":{"a":1,"a":1}}',
        json.dumps(asked())[:-1] + ',"x":' + "[" * 1_000 + "]" * 1_000 + "}",
        '{"a":' * 500 + "1" + "}" * 500,
        "[" * 2_900,
        json.dumps(asked()).replace("7", "7" * 2_000, 1),
        json.dumps(asked()).replace('"n": 7', '"n": 7.0'),
        json.dumps(asked()).replace('"n": 7', '"n": 7e0'),
        json.dumps(asked()).replace('"n": 7', '"n": 07'),
        json.dumps(asked()).replace('"n": 7', '"n": +7'),
        json.dumps(asked()).replace('"n": 7', '"n": NaN'),
        json.dumps(asked()).replace('"n": 7', '"n": -0'),
        json.dumps(asked()) + "x",
        json.dumps(asked()) + json.dumps(asked()),
        json.dumps([asked()]),
        "7",
        "null",
        '"' + "\\" * 5,
        "\ufeff" + json.dumps(asked()),
    ],
)  # fmt: skip
def test_other_json_is_refused(payload: str) -> None:
    assert refused(jws(payload))[0] is Flaw.FORM


@given(st.text(alphabet='AQaz09-_.{}[]":,e \n', max_size=60) | st.text(max_size=40))
def test_garbage_is_refused_as_such(text: str) -> None:
    refused(text)
    for header, payload in ((HEADER, text), (text, asked())):
        with pytest.raises(ProofError):
            read(jws(payload, header))


@given(data=st.data())
def test_a_change_of_any_claim_breaks_the_signature(data: st.DataObject) -> None:
    """Whatever else is a valid ticket, the channel's key did not sign it."""
    name = data.draw(st.sampled_from(sorted(FULL)))
    numbers = {"n": st.integers(1, TICKET_NUMBER_MAX), "exp": st.integers(0, 2**40), "timeout": st.integers(1, 2**20)}
    digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
    texts = {
        "channel": st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=26, max_size=26).map("chn_{}".format),
        "budget": st.integers(0, 10**12).map(lambda micro: f"{micro / 10**6:.6f}"),
        "iss": st.text(st.characters(codec="utf-8"), max_size=20),
        "agent_id": st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    }
    value = data.draw((numbers | texts).get(name, digests))
    changed = FULL | {name: value}
    header, _, signature = jws(FULL).split(".")
    token = f"{header}.{jws(changed).split('.')[1]}.{signature}"
    if changed == FULL:
        assert read(token).model_dump() == FULL
    else:
        assert refused(token) == (Flaw.SIGNATURE, "the ticket is not signed by the channel's key")


@given(at=st.integers(0, 10_000), bit=st.integers(0, 5))
def test_a_change_of_any_character_is_refused(at: int, bit: int) -> None:
    token = jws(FULL)
    at %= len(token)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    changed = alphabet[alphabet.index(token[at]) ^ (1 << bit)] if token[at] in alphabet else "A"
    refused(token[:at] + changed + token[at + 1 :])


# The signature.


def test_another_key_is_refused() -> None:
    assert refused(jws(asked(), key=OTHER_KEY)) == (Flaw.SIGNATURE, "the ticket is not signed by the channel's key")
    assert refused(jws(asked()), public(OTHER_KEY))[0] is Flaw.SIGNATURE


def signed_as(signature: bytes) -> str:
    return f"{jws(asked()).rpartition('.')[0]}.{encode(signature)}"


def test_a_signature_cannot_be_varied() -> None:
    """S + L satisfies the equation of RFC 8032 too, and so does R with another spelling of its point."""
    good = decode(jws(asked()).rpartition(".")[2])
    assert read(signed_as(good)).n == 7
    r, s = good[:32], int.from_bytes(good[32:], "little")
    for more in range(1, 9):
        if s + more * ORDER < 2**256:
            assert refused(signed_as(r + (s + more * ORDER).to_bytes(32, "little")))[0] is Flaw.SIGNATURE
    for changed in (
        b"",
        good[:63],
        good + b"\0",
        good[:32],
        bytes(64),
        good[::-1],
        r + bytes(32),
        bytes(32) + good[32:],
    ):
        assert refused(signed_as(changed))[0] is Flaw.SIGNATURE
    for bit in range(512):
        flipped = (int.from_bytes(good, "little") ^ 1 << bit).to_bytes(64, "little")
        assert refused(signed_as(flipped))[0] is Flaw.SIGNATURE


def test_a_point_r_beyond_the_field_is_refused() -> None:
    """With S = r·1 + 0: R of small order verifies under a key of small order only, in its canonical spelling."""
    base = int.from_bytes(KEY.public_key().public_bytes_raw(), "little")
    for y in (0, 1, PRIME - 1, PRIME, PRIME + 1, base):
        for sign in (0, 1 << 255):
            r = (y % 2**255 | sign).to_bytes(32, "little")
            for s in (0, 1, ORDER - 1, ORDER):
                assert refused(signed_as(r + s.to_bytes(32, "little")))[0] is Flaw.SIGNATURE


# Keys.


def test_a_public_key_is_read() -> None:
    assert ticket.key_of(jwk(KEY)) == public(KEY)
    assert ticket.key_of({**jwk(KEY), "kid": "k", "use": "sig", "alg": "EdDSA", "key_ops": ["verify"]}) == public(KEY)


def test_a_private_key_is_refused() -> None:
    for d in (encode(KEY.private_bytes_raw()), "", None, 5):
        with pytest.raises(ValueError, match="must be a public key: keep `d` to yourself"):
            ticket.key_of({**jwk(KEY), "d": d})


X448 = encode(ed448.Ed448PrivateKey.from_private_bytes(bytes(57)).public_key().public_bytes_raw())


@pytest.mark.parametrize(
    "other",
    [
        {}, {"kty": "OKP"}, {"crv": "Ed25519"}, {"x": public(KEY)},
        {"kty": "EC", "crv": "P-256", "x": public(KEY), "y": public(KEY)},
        {"kty": "EC", "crv": "secp256k1", "x": public(KEY), "y": public(KEY)},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"}, {"kty": "oct", "k": public(KEY)},
        jwk(KEY) | {"crv": "Ed448", "x": X448}, jwk(KEY) | {"crv": "X25519"}, jwk(KEY) | {"crv": "ed25519"},
        jwk(KEY) | {"kty": "okp"}, jwk(KEY) | {"crv": ["Ed25519"]}, jwk(KEY) | {"kty": None},
    ],
)  # fmt: skip
def test_a_key_of_another_kind_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be an Ed25519 public key as a JWK"):
        ticket.key_of(other)


@pytest.mark.parametrize(
    "x",
    [
        "", None, 5, [], encode(bytes(31)), encode(bytes(33)), X448, public(KEY) + "=", public(KEY) + "\n",
        public(KEY)[:-1], public(KEY)[:-1] + "B", "+" * 43, "/" * 42 + "A", " " + public(KEY)[1:], "\u00e9" * 43,
        base64.b64encode(decode(public(KEY))).decode(), public(KEY) * 1_000, KEY.public_key().public_bytes_raw().hex(),
    ],
)  # fmt: skip
def test_another_spelling_of_a_key_is_refused(x: object) -> None:
    with pytest.raises(ValueError, match="must have as `x` 32 bytes in base64url without padding"):
        ticket.key_of(jwk(KEY) | {"x": x})


# The curve by RFC 8032 §5.1, to compute its points of small order.

D: Final = -121665 * pow(121666, PRIME - 2, PRIME) % PRIME
Point = tuple[int, int]


def x_of(y: int) -> int | None:
    """An x of the point with this y; None if there is none (RFC 8032 §5.1.3)."""
    square = (y * y - 1) * pow(D * y * y + 1, PRIME - 2, PRIME) % PRIME
    x = pow(square, (PRIME + 3) // 8, PRIME)
    if x * x % PRIME != square:
        x = x * pow(2, (PRIME - 1) // 4, PRIME) % PRIME
    return x if x * x % PRIME == square else None


def added(one: Point, two: Point) -> Point:
    (x1, y1), (x2, y2) = one, two
    product = D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + product, PRIME - 2, PRIME)
    y = (y1 * y2 + x1 * x2) * pow(1 - product, PRIME - 2, PRIME)
    return x % PRIME, y % PRIME


def multiplied(point: Point, scalar: int) -> Point:
    total: Point = (0, 1)
    while scalar:
        total = added(total, point) if scalar & 1 else total
        point, scalar = added(point, point), scalar >> 1
    return total


@cache
def points_of_small_order() -> set[Point]:
    """The eight points whose order divides 8: multiples of any point's ORDER-fold that has order 8."""
    for y in range(2, 100):
        x = x_of(y)
        if x is not None and multiplied(small := multiplied((x, y), ORDER), 4) != (0, 1):
            return {multiplied(small, factor) for factor in range(8)}
    raise AssertionError


def spellings(y: int) -> list[bytes]:
    """All 32 bytes that readers may take for a point with this y: either sign, and y beyond the field."""
    return [(each | sign).to_bytes(32, "little") for each in (y, y + PRIME) if each < 2**255 for sign in (0, 1 << 255)]


def test_points_of_small_order_are_refused() -> None:
    points = points_of_small_order()
    assert len(points) == 8
    assert all(multiplied(point, 8) == (0, 1) for point in points)
    forgeable = 0
    for data in {spelling for _, y in points for spelling in spellings(y)}:
        with pytest.raises(ValueError, match=r"a point of (small order|the curve Ed25519)"):
            ticket.key_of(jwk(KEY) | {"x": encode(data)})
        forgeable += any(_verifies(data, r + bytes(32)) for point in points for r in spellings(point[1]))
    assert forgeable >= 8, "under such a key, a signature of no private key verifies: that is why it is refused"


def _verifies(key: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, b"any message")
    except Exception:  # noqa: BLE001 - whatever the library says against it
        return False
    return True


@given(st.binary(min_size=32, max_size=32))
@example(bytes(32))
def test_a_key_is_a_point_of_the_curve(data: bytes) -> None:
    """Regression: a channel could be opened with bytes that are no point, and no ticket of it was ever valid."""
    y = int.from_bytes(data, "little") % 2**255
    key = jwk(KEY) | {"x": encode(data)}
    if y in {y for _, y in points_of_small_order()}:
        return
    if y < PRIME and x_of(y) is not None:
        assert ticket.key_of(key) == encode(data)
    else:
        with pytest.raises(ValueError, match="a point of the curve Ed25519"):
            ticket.key_of(key)


@given(st.binary(min_size=32, max_size=32))
def test_every_generated_key_is_accepted(seed: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    assert ticket.key_of(jwk(key)) == public(key)
    assert read(jws(asked(), key=key), public(key)).n == 7


@pytest.mark.parametrize("y", [*range(PRIME + 2, 2**255), PRIME, PRIME + 1])
def test_a_key_beyond_the_field_is_refused(y: int) -> None:
    for sign in (0, 1 << 255):
        with pytest.raises(ValueError, match="a point of the curve"):
            ticket.key_of(jwk(KEY) | {"x": encode((y | sign).to_bytes(32, "little"))})


# The options.


def test_options_are_named_by_the_digest_of_their_json() -> None:
    options = {"webhook": "https://a.example/\u00e9", "keep_input": True, "max_judging": 5, "acceptance": None}
    text = b'{"keep_input":true,"max_judging":5,"webhook":"https://a.example/\\u00e9"}'
    assert ticket.options_sha256(options) == hashlib.sha256(text).hexdigest()
    assert ticket.options_sha256(dict(reversed(options.items()))) == ticket.options_sha256(options)
    assert ticket.options_sha256({"webhook": None}) is None
    assert ticket.options_sha256({}) is None


@given(
    st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.booleans() | st.text(max_size=3), max_size=4)
)
def test_other_options_have_another_digest(options: dict[str, Any]) -> None:
    given_ones = {name: value for name, value in options.items() if value is not None}
    digest = ticket.options_sha256(options)
    assert ticket.options_sha256(given_ones) == digest
    assert ticket.options_sha256({**given_ones, "more": 1}) != digest
    for name, value in given_ones.items():
        assert ticket.options_sha256({**given_ones, name: [value]}) != digest
        assert ticket.options_sha256({key: value for key, value in given_ones.items() if key != name}) != digest


# What a receipt states of a ticket.


def check(stated: dict[str, Any], *, issuer: str = ISSUER, payer: str = PAYER) -> TicketClaims:
    return ticket.check_claim(TicketClaim.model_validate(stated), issuer=issuer, payer=payer)


def test_the_claim_of_a_receipt_proves_the_ticket() -> None:
    assert check(claim()).model_dump(exclude_none=True) == asked()


OTHER = public(OTHER_KEY)


@pytest.mark.parametrize(
    ("changes", "flaw", "sentence"),
    [
        ({"salt": "salt-2"}, Flaw.CONTRADICTION, "is not that of this payer, key, salt and ticket value"),
        ({"ticket_value": "10001"}, Flaw.CONTRADICTION, "is not that of this payer, key"),
        ({"key": OTHER}, Flaw.CONTRADICTION, "is not that of this payer, key"),
        ({"channel": "chn_" + "a" * 26}, Flaw.CONTRADICTION, "is not that of this payer, key"),
        ({"n": 8}, Flaw.CONTRADICTION, "the ticket's n is 7, the receipt's 8"),
        ({"tickets": 2}, Flaw.AMOUNTS, "the ticket's budget takes 3 tickets, the receipt states 2"),
        ({"tickets": 4}, Flaw.AMOUNTS, "the ticket's budget takes 3 tickets, the receipt states 4"),
        ({"signed": jws(asked(), key=OTHER_KEY)}, Flaw.SIGNATURE, "not signed by the channel's key"),
        ({"signed": jws(asked(iss="urn:other"))}, Flaw.CONTRADICTION, "the ticket's iss is 'urn:other'"),
        ({"signed": jws(asked(channel="chn_" + "b" * 26))}, Flaw.CONTRADICTION, "the ticket's channel is"),
        ({"signed": jws(asked(n=8))}, Flaw.CONTRADICTION, "the ticket's n is 8"),
        ({"signed": jws(asked(budget="0.020001")), "tickets": 2}, Flaw.AMOUNTS, "takes 3 tickets"),
        ({"signed": jws(asked(), CLOSE_HEADER)}, Flaw.FORM, "is not of the type quittance-ticket+jwt"),
        ({"signed": ""}, Flaw.FORM, "is not a compact JWS"),
    ],
)
def test_a_swapped_part_of_the_claim_is_noticed(changes: dict[str, Any], flaw: Flaw, sentence: str) -> None:
    with pytest.raises(ProofError) as caught:
        check(claim(**changes))
    assert (caught.value.flaw, sentence in str(caught.value)) == (flaw, True), caught.value


def test_the_id_of_a_channel_commits_to_all_its_parts() -> None:
    parts: dict[str, Any] = {"issuer": ISSUER, "payer": PAYER, "salt": "s", "key": public(KEY), "ticket_micro": 5}
    plain = channel_id(**parts)
    others = {"issuer": ISSUER + "x", "payer": "user-2", "salt": "t", "key": OTHER, "ticket_micro": 50}
    assert len({plain, *(channel_id(**parts | {name: value}) for name, value in others.items())}) == 6
    for change in ({"issuer": "urn:other"}, {"payer": "user-2"}):
        with pytest.raises(ProofError, match="is not that of this payer"):
            check(claim(), **change)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=8, max_size=8))
def test_no_two_lists_of_parts_have_one_id(texts: list[str]) -> None:
    """Length prefixes keep the parts apart, also if a part looks like the end of one and the beginning of another."""
    one, two = texts[:4], texts[4:]
    two = [one[0] + f"{len(one[1])}:", *one[1:]] if texts[7] == "" else two
    ids = [channel_id(issuer=a, payer=b, salt=c, key=d, ticket_micro=1) for a, b, c, d in (one, two)]
    assert (ids[0] == ids[1]) == (one == two)


def test_a_channel_of_a_forged_key_of_small_order_proves_nothing() -> None:
    """A platform could sign under such a key itself, so it must not count as its payer's."""
    key = encode((1).to_bytes(32, "little"))
    channel = ticketing.named(key=key)
    signed = jws(asked(channel=channel)).rpartition(".")[0] + "." + encode((1).to_bytes(32, "little") + bytes(32))
    with pytest.raises(ProofError, match="the channel's key must not be a point of small order") as caught:
        check(claim(key=key, channel=channel, signed=signed))
    assert caught.value.flaw is Flaw.FORM


@pytest.mark.parametrize("name", ["channel", "salt", "key", "ticket_value", "n", "tickets", "signed"])
def test_the_claim_of_a_receipt_has_one_form(name: str) -> None:
    for value in [*ODD, "0", "01", "1" * 17, "a" * 4_097, "a" * 43 + "\n"]:
        try:
            found = TicketClaim.model_validate(claim(**{name: value}))
        except ValueError:
            continue
        assert getattr(found, name) == value
        assert type(getattr(found, name)) is type(value)
        with pytest.raises(ProofError):
            check(claim(**{name: value}))


# Closing orders.


CLOSE = {"iss": ISSUER, "channel": ticketing.named(), "exp": 1_800_000_600}


def test_a_closing_order_is_read() -> None:
    for token in (
        jws(CLOSE, CLOSE_HEADER),
        jwt.encode(CLOSE, KEY, algorithm="EdDSA", headers={"typ": CLOSE_HEADER["typ"]}),
    ):
        claims, parts = ticket.read_close(token)
        ticket.check_signed(parts, public(KEY), "closing order")
        assert claims.model_dump() == CLOSE


@pytest.mark.parametrize(
    "token",
    [
        jws(CLOSE), jws(asked()), jws(asked(), CLOSE_HEADER), jws({**CLOSE, "n": 1}, CLOSE_HEADER),
        jws({**CLOSE, "exp": "1800000600"}, CLOSE_HEADER), jws({**CLOSE, "exp": 1.5}, CLOSE_HEADER),
        jws({**CLOSE, "exp": True}, CLOSE_HEADER), jws({"iss": ISSUER, "exp": 1}, CLOSE_HEADER),
        jws(CLOSE, CLOSE_HEADER | {"alg": "none"}), jws(CLOSE, CLOSE_HEADER | {"crit": []}), "", "a.b.c",
        jws(CLOSE, CLOSE_HEADER) + "=", "a" * (TICKET_CHARS_MAX + 1),
    ],
)  # fmt: skip
def test_another_closing_order_is_refused(token: str) -> None:
    """A ticket closes nothing, and a closing order pays for nothing."""
    with pytest.raises(ProofError, match="closing order"):
        ticket.read_close(token)


def test_a_closing_order_needs_the_channels_key() -> None:
    _, parts = ticket.read_close(jws(CLOSE, CLOSE_HEADER, key=OTHER_KEY))
    with pytest.raises(ProofError, match="the closing order is not signed by the channel's key"):
        ticket.check_signed(parts, public(KEY), "closing order")
    with pytest.raises(ProofError, match="not of the type"):
        ticket.read(jws(CLOSE, CLOSE_HEADER))


def test_a_key_of_another_use_is_no_channels_key() -> None:
    """The bytes of an X25519 key may be a point of Ed25519, but its JWK says what it is."""
    other = encode(x25519.X25519PrivateKey.generate().public_key().public_bytes_raw())
    with pytest.raises(ValueError, match="must be an Ed25519 public key"):
        ticket.key_of({"kty": "OKP", "crv": "X25519", "x": other})
