import base64
import hmac
import http.client
import io
import json
import re
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
from pydantic import ValidationError

from quittance.api import identity
from quittance.api.identity import Caller, verify
from quittance.config import Settings
from quittance.errors import MissingScopeError, PlatformUnavailableError, UnauthenticatedError
from quittance.limits import ISSUER_KEYS_AGE_S_MAX, ISSUER_KEYS_REFETCH_S_MIN, JWKS_FAILURE_S_MAX, JWKS_KEYS_MAX

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
    card_key_ids="a",
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


class Clock:
    """The time that the code sees; it passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(identity, "monotonic", made)
    return made


def _refused(text: str, settings: Settings = SETTINGS) -> str | None:
    with pytest.raises(UnauthenticatedError) as refusal:
        verify(text, settings)
    return refusal.value.refused


def test_a_good_token_is_its_subject() -> None:
    assert verify(token(), SETTINGS) == Caller("user-1", frozenset())
    assert verify(token(header={"alg": "ES256", "kid": "ec-1"}, sign=_es256), SETTINGS).account == "user-1"


def test_a_token_is_good_for_any_of_the_audiences() -> None:
    both = SETTINGS.model_copy(update={"audience": "quittance, https://api.example"})
    for audience in ("quittance", "https://api.example", ["other", "https://api.example"]):
        assert verify(token(aud=audience), both).account == "user-1"
    for audience in ("quittance, https://api.example", "quittance,", "https://api.example/", "", [], ["a", "b"]):
        _refused(token(aud=audience), both)
    clients = COGNITO.model_copy(update={"audience": "client-1,client-2"})
    for client in ("client-1", "client-2"):
        assert verify(token(drop="aud", client_id=client), clients).account == "user-1"
    for client in ("client-1,client-2", "client-3", "", ["client-1"], None):
        _refused(token(drop="aud", client_id=client), clients)


@pytest.mark.parametrize("audience", ["", " ", ",", " , ,"])
def test_settings_without_an_audience_are_refused(audience: str) -> None:
    """A token whose `aud` is empty would fit them."""
    with pytest.raises(ValidationError, match="audience"):
        Settings.model_validate(SETTINGS.model_dump() | {"audience": audience})


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


# A key set with one key, whose name is missing.


def _lone(key: dict[str, Any], **changed: Any) -> bytes:
    lone = {name: value for name, value in (key | changed).items() if value is not None}
    encryption = {"kty": "RSA", "use": "enc", "alg": "RSA-OAEP", "n": key["n"], "e": "AQAB"}
    return json.dumps({"keys": [encryption, lone]}).encode()


@pytest.mark.parametrize("named", ["rsa-1", None])
def test_one_key_without_a_name_verifies(issuer: Issuer, named: str | None) -> None:
    issuer.answer = _lone(_jwks()["keys"][0], kid=None)
    assert verify(token(header={"kid": named}), SETTINGS).account == "user-1"
    assert _refused(token(header={"kid": named}, sign=lambda data: _rs256(data, THEIRS))) == identity.UNSIGNED


def test_a_token_without_a_key_name_fits_the_only_key(issuer: Issuer) -> None:
    issuer.answer = _lone(_jwks()["keys"][0])
    assert verify(token(header={"kid": None}), SETTINGS).account == "user-1"
    assert _refused(token(header={"kid": "another"})) == identity.UNSIGNED


def test_keys_of_other_algorithms_do_not_count(issuer: Issuer) -> None:
    strict = SETTINGS.model_copy(update={"token_algorithms": "RS256"})
    assert verify(token(header={"kid": None}), strict).account == "user-1"
    assert issuer.fetches == 1


def test_a_key_name_that_two_keys_have_is_told_by_its_algorithm(issuer: Issuer) -> None:
    rsa_key, curve_key = _jwks()["keys"]
    issuer.answer = json.dumps({"keys": [rsa_key, curve_key | {"kid": "rsa-1"}]}).encode()
    assert verify(token(), SETTINGS).account == "user-1"
    assert verify(token(header={"alg": "ES256", "kid": "rsa-1"}, sign=_es256), SETTINGS).account == "user-1"


def _theirs() -> dict[str, Any]:
    numbers = THEIRS.public_key().public_numbers()
    return {"kty": "RSA", "kid": "rsa-2", "n": _number(numbers.n), "e": _number(numbers.e)}


def test_a_new_key_is_found_by_its_name(issuer: Issuer, clock: Clock) -> None:
    assert verify(token(), SETTINGS).account == "user-1"
    issuer.answer = json.dumps({"keys": [_theirs()]}).encode()
    rotated = token(header={"kid": "rsa-2"}, sign=lambda data: _rs256(data, THEIRS))
    clock.now_s += ISSUER_KEYS_REFETCH_S_MIN
    assert verify(rotated, SETTINGS).account == "user-1"
    _refused(token())


def test_a_new_key_without_a_name_is_found(issuer: Issuer, clock: Clock) -> None:
    issuer.answer = _lone(_jwks()["keys"][0], kid=None)
    assert verify(token(), SETTINGS).account == "user-1"
    issuer.answer = _lone(_theirs(), kid=None)
    rotated = token(header={"kid": None}, sign=lambda data: _rs256(data, THEIRS))
    clock.now_s += ISSUER_KEYS_REFETCH_S_MIN
    assert verify(rotated, SETTINGS).account == "user-1"


@pytest.mark.parametrize("lone", [False, True])
def test_invented_keys_do_not_make_us_ask_the_issuer_each_time(issuer: Issuer, clock: Clock, lone: bool) -> None:
    if lone:
        issuer.answer = _lone(_jwks()["keys"][0], kid=None)
    verify(token(), SETTINGS)

    def forged(number: int) -> str:
        return token(header={"kid": f"invented-{number}"}, sign=lambda data: _rs256(data, THEIRS))

    clock.now_s += ISSUER_KEYS_REFETCH_S_MIN - 1
    for number in range(20):
        assert _refused(forged(number)) == identity.UNSIGNED
    assert issuer.fetches == 1
    clock.now_s += 1
    for number in range(20):
        assert _refused(forged(number)) == identity.UNSIGNED
    assert issuer.fetches == 2
    assert verify(token(), SETTINGS).account == "user-1"


def test_a_failing_issuer_is_not_asked_for_each_invented_key(issuer: Issuer, clock: Clock) -> None:
    """Nobody knows then whether such a token is good: 503, and others are served from the keys that are there."""
    verify(token(), SETTINGS)
    good, issuer.answer = issuer.answer, TimeoutError()
    clock.now_s += ISSUER_KEYS_REFETCH_S_MIN
    for _ in range(20):
        with pytest.raises(PlatformUnavailableError):
            verify(token(header={"kid": "invented"}), SETTINGS)
        assert verify(token(), SETTINGS).account == "user-1"
    assert issuer.fetches == 2
    issuer.answer = good
    clock.now_s += ISSUER_KEYS_REFETCH_S_MIN
    assert _refused(token(header={"kid": "invented"})) == identity.UNSIGNED


@pytest.mark.parametrize(("age_s", "fetches"), [(ISSUER_KEYS_AGE_S_MAX - 1, 1), (ISSUER_KEYS_AGE_S_MAX, 2)])
def test_keys_are_read_again_when_they_are_old(issuer: Issuer, clock: Clock, age_s: int, fetches: int) -> None:
    verify(token(), SETTINGS)
    clock.now_s += age_s
    verify(token(), SETTINGS)
    assert issuer.fetches == fetches


@pytest.mark.parametrize(("others", "good"), [(JWKS_KEYS_MAX - 1, True), (JWKS_KEYS_MAX, False)])
def test_so_many_keys_of_an_issuer_are_read(issuer: Issuer, others: int, good: bool) -> None:
    first, *_ = _jwks()["keys"]
    other = {"kty": "oct", "k": "AAAA", "kid": "other"}
    issuer.answer = json.dumps({"keys": [*[other] * others, first]}).encode()
    if good:
        assert verify(token(), SETTINGS).account == "user-1"
    else:
        _refused(token())


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "ftp://issuer.example/jwks.json", "jwks.json"])
def test_keys_come_over_http_alone(issuer: Issuer, url: str) -> None:
    with pytest.raises(PlatformUnavailableError):
        verify(token(), SETTINGS.model_copy(update={"jwks_url": url}))
    assert issuer.fetches == 0


# What is no access token, though the issuer signed it.

COGNITO_ID = {"token_use": "id", "aud": "client-1", "client_id": "client-1"}
LOGOUT_EVENT = {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}, "sid": "s", "jti": "j"}
OTHER_TOKENS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *[
        (f"typ {kind}", {"typ": kind}, {})
        for kind in (
            "logout+jwt", "id_token+jwt", "dpop+jwt", "secevent+jwt", "application/logout+jwt", "oauth-authz-req+jwt",
            "token-introspection+jwt", "entity-statement+jwt", "JWE", "at+jwt ", 5, ["at+jwt"], None,
        )
    ],
    ("Keycloak ID", {}, {"typ": "ID", "azp": "client-1"}),
    ("Keycloak refresh", {}, {"typ": "Refresh", "scope": "openid"}),
    ("Keycloak offline", {}, {"typ": "Offline", "scope": "openid offline_access"}),
    ("Keycloak logout", {}, {"typ": "Logout"}),
    ("claim typ null", {}, {"typ": None}),
    ("token_use id", {}, {"token_use": "id"}),
    ("token_use refresh", {}, {"token_use": "refresh", "scope": "openid"}),
    ("token_use null", {}, {"token_use": None}),
    ("logout token without typ", {"typ": "JWT"}, LOGOUT_EVENT),
    ("logout token with a scope", {"typ": "at+jwt"}, LOGOUT_EVENT | {"scope": "openid"}),
    ("ID token of the implicit flow", {}, {"nonce": "n", "at_hash": "x"}),
    ("ID token with a nonce", {}, {"nonce": "n", "email": "a@example.com"}),
    ("ID token with a hash", {}, {"at_hash": "x", "scope": "openid"}),
    ("ID token of the hybrid flow", {}, {"c_hash": "x"}),
    ("ID token of FAPI", {}, {"s_hash": "x"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("header", "claims"), [case[1:] for case in OTHER_TOKENS], ids=[case[0] for case in OTHER_TOKENS]
)
def test_what_is_no_access_token_is_refused(header: dict[str, Any], claims: dict[str, Any]) -> None:
    kind = header.get("typ", "JWT")
    text = token(header=header, **claims) if kind is not None else _with_null_typ()
    assert _refused(text) == identity.NO_ACCESS_TOKEN


def _with_null_typ() -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": "quittance", "sub": "user-1", "iat": now, "exp": now + 60}
    parts = ({"alg": "RS256", "kid": "rsa-1", "typ": None}, claims)
    signed = ".".join(_encode(json.dumps(part).encode()) for part in parts)
    return f"{signed}.{_encode(_rs256(signed.encode()))}"


def test_an_id_token_of_cognito_is_refused() -> None:
    assert _refused(token(**COGNITO_ID), COGNITO) == identity.NO_ACCESS_TOKEN


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        ({"typ": "at+jwt"}, {"client_id": "c", "jti": "j", "auth_time": 1, "acr": "1", "amr": ["pwd"]}),
        ({"typ": "application/at+jwt"}, {"scope": "a"}),
        ({"typ": "AT+JWT"}, {}),
        ({"typ": None}, {"token_use": "access", "scope": "openid", "client_id": "c", "version": 2}),
        ({"typ": "JWT"}, {"scp": "user_impersonation", "ver": "2.0", "azp": "c", "roles": []}),
        ({"typ": None}, {"scp": ["a"], "cid": "c", "uid": "u"}),
        ({"typ": "JWT"}, {"typ": "Bearer", "scope": "openid", "nonce": "n", "azp": "c", "sid": "s"}),
        ({"typ": "JWT"}, {"azp": "c", "gty": "client-credentials"}),
    ],
    ids=["RFC 9068", "RFC 9068 long", "RFC 9068 upper", "Cognito", "Entra", "Okta", "Keycloak", "Auth0"],
)
def test_access_tokens_of_known_issuers_are_good(header: dict[str, Any], claims: dict[str, Any]) -> None:
    assert verify(token(header=header, **claims), SETTINGS).account == "user-1"


# What a refusal says.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (lambda: "a.b.c", identity.MALFORMED),
        (lambda: "", identity.MALFORMED),
        (lambda: token(sign=lambda _: b""), identity.UNSIGNED),
        (lambda: token(header={"kid": "unknown"}), identity.UNSIGNED),
        (lambda: token(header={"alg": "none"}, sign=lambda _: b""), identity.UNSIGNED),
        (lambda: token(exp=1), identity.EXPIRED),
        (lambda: token(nbf=int(time.time()) + 600), identity.EARLY),
        (lambda: token(iss="https://evil.example"), identity.OTHER_ISSUER),
        (lambda: token(aud="other"), identity.OTHER_AUDIENCE),
        (lambda: token(drop="aud"), "The token has no claim aud."),
        (lambda: token(drop="exp"), "The token has no claim exp."),
        (lambda: token(exp="soon"), identity.MALFORMED),
        (lambda: token(sub="a#b"), identity.NO_ACCOUNT),
        (lambda: token(sub="me"), identity.NO_ACCOUNT),
        (lambda: token(sub="platform"), identity.NO_ACCOUNT),
        (lambda: token(sub=5), identity.NO_ACCOUNT),
        (lambda: token(scope=5), identity.BAD_SCOPE),
    ],
)
def test_a_refusal_says_which_check_failed(text: Callable[[], str], said: str) -> None:
    assert _refused(text()) == said


@pytest.mark.parametrize(
    "changed",
    [{"exp": 1}, {"iss": "x"}, {"aud": "x"}, {"sub": "me"}, {"token_use": "id"}, {"scope": 5}, {"exp": "soon"}],
    ids=repr,
)
def test_a_forger_learns_nothing_of_the_other_checks(changed: dict[str, Any]) -> None:
    assert _refused(token(sign=lambda data: _rs256(data, THEIRS), **changed)) == identity.UNSIGNED


SENTENCES = [value for name, value in vars(identity).items() if name.isupper() and str(value).startswith("The ")]


@pytest.mark.parametrize("sentence", [*SENTENCES, "The token has no claim client_id."])
def test_a_sentence_may_stand_in_a_header_and_in_json(sentence: str) -> None:
    """RFC 6750 §3; and the gateway writes it into a JSON body as it is."""
    assert re.fullmatch(r"[\x20-\x21\x23-\x5B\x5D-\x7E]+", sentence)
    assert len(SENTENCES) == 9


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = [
    "iss",
    "aud",
    "sub",
    "exp",
    "iat",
    "nbf",
    "jti",
    "scope",
    "scp",
    "typ",
    "token_use",
    "client_id",
    "nonce",
    "events",
]


@given(
    st.dictionaries(st.sampled_from(["typ", "kid", "alg", "crit", "cty", "b64", "zip"]), JSON),
    st.dictionaries(st.sampled_from(NAMES), JSON),
    st.sampled_from([SETTINGS, COGNITO]),
)
def test_whatever_the_issuer_signs_is_a_caller_or_refused(
    header: dict[str, Any], claims: dict[str, Any], settings: Settings
) -> None:
    """In one of our sentences: nothing that a token holds is quoted, and nothing ends in another exception."""
    lacks = {f"The token has no claim {name}." for name in ("exp", "iat", "iss", "sub", "aud", "client_id")}
    refused: str | None = ""
    try:
        found = verify(token(header=header, **claims), settings)
    except UnauthenticatedError as refusal:
        refused = refusal.refused
    if refused == "":
        assert identity.is_account_id(found.account)
        assert all(re.fullmatch(r"[!#-\[\]-~]+", scope) for scope in found.scopes)
    else:
        assert refused in {*SENTENCES, *lacks}


def test_a_request_without_a_token_is_refused_without_a_reason() -> None:
    for headers in (None, {}, {"Authorization": ""}, {"Authorization": "Basic YTpi"}, {"authorization": "Bearer "}):
        with pytest.raises(UnauthenticatedError) as refusal:
            identity.authenticate(headers, SETTINGS)
        assert refusal.value.refused is None
    assert identity.authenticate({"authorization": f"bearer {token()}"}, SETTINGS).account == "user-1"


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


@pytest.mark.parametrize("name", ["scope", "scp"])
@pytest.mark.parametrize(
    ("stated", "scopes"),
    [
        ("ledger:deposit openid", {"ledger:deposit", "openid"}),
        (["ledger:deposit", "openid"], {"ledger:deposit", "openid"}),
        (["quittance/ledger:deposit"], {"ledger:deposit"}),
        (["other/ledger:deposit"], {"other/ledger:deposit"}),
        ([], set()),
        ("", set()),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_scopes_are_a_string_or_a_list(name: str, stated: object, scopes: set[str]) -> None:
    """`scope` by RFC 9068, as a list here and there; `scp` of Entra (a string) and Okta (a list)."""
    assert verify(token(**{name: stated}), SETTINGS).scopes == scopes


def test_both_spellings_of_scopes_count() -> None:
    assert verify(token(scope="a", scp=["b"]), SETTINGS).scopes == {"a", "b"}


@pytest.mark.parametrize("name", ["scope", "scp"])
@pytest.mark.parametrize(
    "stated",
    [
        5, None, True, {"ledger:deposit": True}, ["a", 5], ["a", ["ledger:deposit"]], [""], ["a ledger:deposit"],
        ["a\tledger:deposit"], "a\tledger:deposit", "a\u00a0ledger:deposit", "a\nb", 'a"b', ["é"],
    ],
    ids=repr,
)  # fmt: skip
def test_a_scope_of_another_form_is_refused(name: str, stated: object) -> None:
    """Scopes go to the functions joined by spaces: one with a space in it would become two."""
    assert _refused(token(**{name: stated})) == identity.BAD_SCOPE


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
    issuer: Issuer, clock: Clock, answer: bytes | Exception
) -> None:
    good = issuer.answer
    issuer.answer = answer
    for text in (token(), *("rubbish",) * 20, token()):
        with pytest.raises(PlatformUnavailableError):
            verify(text, SETTINGS)
    assert issuer.fetches == 1, "it is asked once in two seconds, whatever comes"
    issuer.answer = good
    clock.now_s += JWKS_FAILURE_S_MAX
    assert verify(token(), SETTINGS).account == "user-1"
