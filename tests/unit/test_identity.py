import base64
import hmac
import http.client
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from quittance import identity
from quittance.config import Settings
from quittance.errors import MissingScopeError, PlatformUnavailableError, UnauthenticatedError
from quittance.identity import Caller, verify

ISSUER = "https://issuer.example"
JWKS_URL = "https://issuer.example/jwks.json"
OURS, THEIRS = (rsa.generate_private_key(public_exponent=65_537, key_size=2_048) for _ in range(2))
CURVE = ec.generate_private_key(ec.SECP256R1())
PEM = OURS.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
SETTINGS = Settings(
    ledger_table="l",
    registry_table="r",
    uploads_bucket="u",
    binaries_bucket="b",
    outputs_bucket="o",
    log_bucket="l",
    ledger_shards=1,
    fee_bps=250,
    platform_account="platform",
    receipt_key_ids="k",
    checkpoint_key_ids="c",
    webhook_key_ids="w",
    receipt_issuer="i",
    issuer_url=ISSUER,
    jwks_url=JWKS_URL,
    audience="quittance",
)
COGNITO = SETTINGS.model_copy(update={"audience": "client-1", "audience_claim": "client_id"})


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int) -> str:
    return _encode(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _jwks() -> dict[str, Any]:
    rsa_numbers, ec_numbers = OURS.public_key().public_numbers(), CURVE.public_key().public_numbers()
    x, y = (_encode(part.to_bytes(32, "big")) for part in (ec_numbers.x, ec_numbers.y))
    return {
        "keys": [
            {"kty": "RSA", "kid": "rsa-1", "use": "sig", "n": _number(rsa_numbers.n), "e": _number(rsa_numbers.e)},
            {"kty": "EC", "kid": "ec-1", "crv": "P-256", "x": x, "y": y},
        ]
    }


def _rs256(data: bytes, key: rsa.RSAPrivateKey = OURS) -> bytes:
    return key.sign(data, padding.PKCS1v15(), SHA256())


def _es256(data: bytes) -> bytes:
    r, s = decode_dss_signature(CURVE.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def token(
    *, header: dict[str, Any] | None = None, sign: Callable[[bytes], bytes] = _rs256, drop: str = "", **claims: Any
) -> str:
    """A token made by hand, so that nothing keeps a test from making a wrong one."""
    now = int(time.time())
    stated = {"iss": ISSUER, "aud": "quittance", "sub": "user-1", "iat": now, "exp": now + 60} | claims
    stated.pop(drop, None)
    head = {"alg": "RS256", "kid": "rsa-1", "typ": "JWT"} | (header or {})
    head = {name: value for name, value in head.items() if value is not None}
    signed = ".".join(_encode(json.dumps(part).encode()) for part in (head, stated))
    return f"{signed}.{_encode(sign(signed.encode()))}"


class Issuer:
    """The issuer's end of the line: what the fetch of the JWKS gets, and how often it came."""

    def __init__(self) -> None:
        self.answer: bytes | Exception = json.dumps(_jwks()).encode()
        self.fetches = 0

    def open(self, request: urllib.request.Request, timeout: float) -> io.BytesIO:
        self.fetches += 1
        assert request.full_url == JWKS_URL
        assert 0 < timeout <= 5
        if isinstance(self.answer, Exception):
            raise self.answer
        return io.BytesIO(self.answer)


@pytest.fixture(autouse=True)
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    served = Issuer()
    monkeypatch.setattr(urllib.request, "build_opener", lambda *_: served)
    identity._jwks.cache_clear()
    yield served
    identity._jwks.cache_clear()


def _refused(text: str, settings: Settings = SETTINGS) -> None:
    with pytest.raises(UnauthenticatedError):
        verify(text, settings)


def test_a_good_token_is_its_subject() -> None:
    assert verify(token(), SETTINGS) == Caller("user-1", frozenset())
    assert verify(token(header={"alg": "ES256", "kid": "ec-1"}, sign=_es256), SETTINGS).account == "user-1"


def test_the_keys_are_fetched_once(issuer: Issuer) -> None:
    for _ in range(3):
        verify(token(), SETTINGS)
    assert issuer.fetches == 1
    issuer.answer = urllib.error.URLError("down")
    assert verify(token(), SETTINGS).account == "user-1"


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        ({"aud": ["other", "quittance"]}, True),
        ({"aud": ["other"]}, False),
        ({"aud": "quittance2"}, False),
        ({"aud": []}, False),
        ({"aud": None}, False),
        ({"iss": ISSUER + "/"}, False),
        ({"iss": "https://evil.example"}, False),
        ({"iss": [ISSUER]}, False),
        ({"exp": "soon"}, False),
        ({"exp": None}, False),
        ({"sub": 5}, False),
        ({"sub": None}, False),
        ({"sub": ["user-1"]}, False),
    ],
)
def test_the_claims_must_be_meant_for_us(claims: dict[str, Any], good: bool) -> None:
    if good:
        assert verify(token(**claims), SETTINGS).account == "user-1"
    else:
        _refused(token(**claims))


@pytest.mark.parametrize("claim", ["exp", "iat", "iss", "sub", "aud"])
def test_no_claim_may_be_missing(claim: str) -> None:
    _refused(token(drop=claim))


@pytest.mark.parametrize(
    ("claim", "seconds", "good"),
    [
        ("exp", -20, True),  # clocks differ by up to 30 s
        ("exp", -40, False),
        ("nbf", 20, True),
        ("nbf", 40, False),
        ("iat", 20, True),
        ("iat", 40, False),
    ],
)
def test_a_token_has_its_time(claim: str, seconds: int, good: bool) -> None:
    text = token(**{claim: int(time.time()) + seconds})
    if good:
        assert verify(text, SETTINGS).account == "user-1"
    else:
        _refused(text)


@pytest.mark.parametrize(
    ("header", "sign"),
    [
        ({"alg": "none"}, lambda _: b""),
        ({"alg": "None"}, lambda _: b""),
        ({"alg": None}, _rs256),
        ({"alg": "HS256"}, lambda data: hmac.digest(PEM, data, "sha256")),
        ({"alg": "HS256"}, lambda data: hmac.digest(b"", data, "sha256")),
        ({"alg": "RS256"}, lambda data: hmac.digest(PEM, data, "sha256")),
        ({}, lambda data: _rs256(data, THEIRS)),
        ({}, lambda _: b""),
        ({"alg": "PS256"}, _rs256),
        ({"alg": "ES256"}, _es256),  # the right algorithm of another key
        ({"kid": "ec-1"}, _rs256),
        ({"kid": "unknown"}, _rs256),
        ({"kid": None}, _rs256),
        ({"kid": 5}, _rs256),
        ({"crit": ["exp"]}, _rs256),
    ],
    ids=[
        *(
            "none",
            "None",
            "no alg",
            "HMAC with our public key",
            "HMAC with nothing",
            "HMAC called RS256",
            "foreign key",
        ),
        *(
            "no signature",
            "PS256",
            "ES256 with an RSA kid",
            "RS256 with an EC kid",
            "unknown kid",
            "no kid",
            "kid 5",
            "crit",
        ),
    ],
)
def test_algorithm_and_key_are_ours_to_choose(header: dict[str, Any], sign: Callable[[bytes], bytes]) -> None:
    _refused(token(header=header, sign=sign))


def test_only_the_algorithms_of_the_settings_are_taken_whatever_the_issuer_publishes(issuer: Issuer) -> None:
    strict = SETTINGS.model_copy(update={"token_algorithms": "ES256"})
    assert verify(token(header={"alg": "ES256", "kid": "ec-1"}, sign=_es256), strict).account == "user-1"
    _refused(token(), strict)
    secret = b"a secret that was published once by mistake"
    shared = {"kty": "oct", "kid": "oct-1", "k": _encode(secret), "alg": "HS256"}
    issuer.answer = json.dumps({"keys": [shared]}).encode()
    identity._jwks.cache_clear()
    _refused(token(header={"alg": "HS256", "kid": "oct-1"}, sign=lambda data: hmac.digest(secret, data, "sha256")))


def test_a_token_brings_no_key_of_its_own(issuer: Issuer) -> None:
    numbers = THEIRS.public_key().public_numbers()
    key = {"kty": "RSA", "kid": "rsa-1", "n": _number(numbers.n), "e": _number(numbers.e)}
    for header in ({"jwk": key}, {"jku": "https://evil.example"}, {"x5u": "https://evil.example"}):
        _refused(token(header=header, sign=lambda data: _rs256(data, THEIRS)))
    assert issuer.fetches == 1


def test_a_changed_token_is_refused() -> None:
    header, payload, signature = token().split(".")
    other = token(sub="user-2").split(".")
    for changed in (f"{header}.{other[1]}.{signature}", f"{header}.{payload}.{other[2]}", f"{header}.{payload}"):
        _refused(changed)


@given(st.text() | st.binary().map(lambda data: f"{_encode(data)}.{_encode(data)}.{_encode(data)}"))
def test_anything_else_is_no_token(text: str) -> None:
    _refused(text)


def test_a_token_that_nests_without_end_is_refused() -> None:
    deep = _encode(b"[" * 100_000)
    _refused(f"{deep}.{deep}.")
    _refused(f"{_encode(b'{}')}.{deep}.")


@pytest.mark.parametrize(
    ("subject", "good"),
    [
        *[("a", True), ("a" * 255, True), ("auth0|5f-._~@x", True), ("!~", True)],
        *[
            ("", False),
            ("a" * 256, False),
            ("a#b", False),
            ("a b", False),
            ("a\n", False),
            ("é", False),
            ("a\x7f", False),
        ],
        *[("me", False), (".", False), ("..", False), ("Me", True), ("...", True), ("/me", True)],
    ],
)
def test_a_subject_is_an_account_id(subject: str, good: bool) -> None:
    """'#' parts the ledger's keys: no subject may reach into another account's items."""
    if good:
        assert verify(token(sub=subject), SETTINGS).account == subject
    else:
        _refused(token(sub=subject))


def test_the_platforms_subject_needs_the_operators_scope() -> None:
    """Else whoever may choose a subject at the issuer could take the fees."""
    _refused(token(sub="platform"))
    _refused(token(sub="platform", scope="health:read"))
    for scope in ("ledger:deposit", "quittance/ledger:deposit"):
        assert verify(token(sub="platform", scope=scope), SETTINGS).account == "platform"


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [
        ("", set()),
        ("ledger:deposit", {"ledger:deposit"}),
        ("openid quittance/ledger:deposit  quittance/health:read", {"openid", "ledger:deposit", "health:read"}),
    ],
)
def test_a_scope_may_carry_the_name_of_its_resource_server(scope: str, scopes: set[str]) -> None:
    assert verify(token(scope=scope), SETTINGS).scopes == scopes


@pytest.mark.parametrize("scope", [["ledger:deposit"], 5, None, {"ledger:deposit": True}])
def test_a_scope_that_is_no_string_is_refused(scope: object) -> None:
    _refused(token(scope=scope))


def test_a_scope_is_needed_by_its_whole_name() -> None:
    someone = Caller("u", frozenset({"ledger:deposit"}))
    someone.need("ledger:deposit")
    with pytest.raises(MissingScopeError, match="health:read"):
        someone.need("health:read")
    with pytest.raises(MissingScopeError):
        someone.need("ledger")


def test_a_pool_that_names_its_client_instead_of_an_audience() -> None:
    """Cognito's access tokens have client_id and no aud."""
    assert verify(token(drop="aud", client_id="client-1"), COGNITO).account == "user-1"
    _refused(token(drop="aud"), COGNITO)
    _refused(token(drop="aud", client_id="client-2"), COGNITO)
    _refused(token(drop="aud", client_id=["client-1"]), COGNITO)
    _refused(token(aud="client-1"), COGNITO)  # an ID token is no access token
    _refused(token(client_id="quittance", drop="aud"))


@pytest.mark.parametrize(
    "answer",
    [
        urllib.error.URLError("refused"),
        urllib.error.HTTPError(JWKS_URL, 500, "broken", http.client.HTTPMessage(), None),
        TimeoutError(),
        http.client.RemoteDisconnected(),
        ConnectionResetError(),
        b"",
        b"<html>",
        b"\xff",
        b"[]",
        b"{}",
        b'{"keys": []}',
        b'{"keys": [{"kty": "unheard-of", "kid": "rsa-1"}]}',
    ],
    ids=lambda answer: repr(answer)[:40],
)
def test_an_issuer_that_cannot_be_asked_is_our_outage_and_not_the_callers_fault(
    issuer: Issuer, answer: bytes | Exception
) -> None:
    good = issuer.answer
    issuer.answer = answer
    with pytest.raises(PlatformUnavailableError):
        verify(token(), SETTINGS)
    issuer.answer = good
    assert verify(token(), SETTINGS).account == "user-1"
