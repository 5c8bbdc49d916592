"""Signed statements: compact JWS (RFC 7515) under a key that a root key has certified. Pure.

Each environment makes its own signing key, an Ed25519 key (RFC 8037). The header of every statement contains that key's
certificate: another compact JWS, signed by a root key (ECDSA P-256) whose public half stays in the platform's JWKS for
ever. So one root signature serves thousands of statements, and signing a statement needs no call to KMS.

Every key has one purpose. The key set states the purpose of a root key, the certificate that of a signing key, and both
must be the purpose of the statement's type. So a caller who may use one root key can issue statements of one type only.
Root keys that are older than purposes state none, and neither do their certificates. What those keys signed stays
valid, whatever its type.

Each token has exactly one spelling: base64url without padding or spare bits, no additional header members, no duplicate
members. So the digest of a token's bytes identifies it.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeVar

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quittance import canonical_json
from quittance.canonical_json import JsonError, Numbers
from quittance.limits import JWKS_KEYS_MAX, TOKEN_CHARS_MAX

CERTIFICATE_TYPE: Final = "quittance-key+jwt"
CERTIFICATE_SECONDS: Final = 12 * 60 * 60
_ALGORITHM: Final = "EdDSA"
_ROOT_ALGORITHM: Final = "ES256"
_CERTIFICATE: Final = "key certificate"
_ED25519_SEED_BYTES: Final = 32
_BACKDATED_S: Final = 300  # so that a clock that was set back does not date statements before their certificate
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")
_QUOTED_CHARS_MAX: Final = 60  # of a value from outside in an error sentence

_Model = TypeVar("_Model", bound=BaseModel)


class Flaw(StrEnum):
    """The class of reasons why a document does not prove what it states."""

    FORM = "form"
    SIGNATURE = "signature"
    TIMES = "times"
    AMOUNTS = "amounts"
    CONTRADICTION = "contradiction"
    DIGEST = "digest"
    REPLAY = "replay"
    UNREPEATABLE = "unrepeatable"
    LOG = "log"
    HISTORY = "history"
    NO_SANDBOX = "no_sandbox"
    RULES = "rules"
    TICKET = "ticket"


class Purpose(StrEnum):
    """What a key may sign. The values are part of certificates and key sets: never rename one."""

    RECEIPT = "receipt"
    CHECKPOINT = "checkpoint"
    WEBHOOK = "webhook"
    CARD = "card"


class ProofError(Exception):
    """A document does not prove what it states: the class of the reason, and the reason in a sentence."""

    def __init__(self, flaw: Flaw, sentence: str) -> None:
        super().__init__(sentence)
        self.flaw = flaw


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An environment's own key: made at first use, certified by a root key for one purpose, valid until `expires_s`."""

    private: Ed25519PrivateKey
    key_id: str
    certificate: str
    expires_s: int
    purpose: Purpose


@dataclass(frozen=True, slots=True)
class StatementType:
    """A type of statement: the `typ` of its header, its name in sentences, and the purpose of the keys that sign it.

    `chars_max` is the most that a verifier reads of one. Root keys without a purpose sign only types that are `older`
    than purposes.
    """

    typ: str
    name: str
    purpose: Purpose
    chars_max: int = TOKEN_CHARS_MAX
    older: bool = True


@dataclass(frozen=True, slots=True)
class VerifiedStatement:
    """The claims of a statement whose signatures are valid, and the validity period of its signing key."""

    claims: dict[str, Any]
    valid_from_s: int
    valid_until_s: int
    root_key_id: str

    def check_time(self, moment_ms: int, name: str) -> None:
        """Raises ProofError if a time that the statement names is outside the validity of its key certificate."""
        if not self.valid_from_s * 1_000 <= moment_ms < self.valid_until_s * 1_000:
            span = f"{self.valid_from_s * 1_000} to {self.valid_until_s * 1_000} ms"
            sentence = f"{name} {moment_ms} is outside the validity of the key certificate, {span}"
            raise ProofError(Flaw.TIMES, sentence)


class StrictModel(BaseModel):
    """A JSON object with exactly the declared members, each of exactly the declared type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_KeyId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")]
_Seconds = Annotated[int, Field(ge=0, le=2**40)]


class _PublicKey(StrictModel):
    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: _KeyId
    kid: _KeyId


class _Validity(StrictModel):
    """A certificate from before keys had purposes."""

    iat: _Seconds
    exp: _Seconds
    jwk: _PublicKey


class _ValidityForPurpose(_Validity):
    purpose: str


@dataclass(frozen=True, slots=True)
class _Root:
    """A root key of a key set; `purpose` is None for one from before keys had purposes."""

    key_id: object
    public: EllipticCurvePublicKey
    purpose: str | None


@dataclass(frozen=True, slots=True)
class Jws:
    """The parts of a compact JWS. Nothing of it is verified yet; `signed` is what the signature covers."""

    header: dict[str, Any]
    payload: dict[str, Any]
    signed: bytes
    signature: bytes


def new_signing_key(
    *, purpose: Purpose, now_s: int, root_key_id: str, root_sign: Callable[[bytes], bytes]
) -> SigningKey:
    """A new signing key for one purpose, certified by one signature of that purpose's root key.

    `root_sign` returns the raw ES256 signature (r ‖ s, RFC 7518 §3.4) of its argument.
    """
    # Random bytes from the kernel: OpenSSL's state is part of a snapshot, so each copy would generate the same key.
    private = Ed25519PrivateKey.from_private_bytes(os.urandom(_ED25519_SEED_BYTES))
    public = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
    key_id = _thumbprint(public)
    expires_s = now_s + CERTIFICATE_SECONDS
    jwk = {**public, "kid": key_id}
    payload = {"iat": now_s - _BACKDATED_S, "exp": expires_s, "purpose": purpose, "jwk": jwk}
    header = {"alg": _ROOT_ALGORITHM, "kid": root_key_id, "typ": CERTIFICATE_TYPE}
    signing_input = _part(header) + b"." + _part(payload)
    certificate = (signing_input + b"." + _base64url(root_sign(signing_input))).decode()
    return SigningKey(private, key_id, certificate, expires_s, purpose)


def sign(claims: Mapping[str, Any], key: SigningKey, statement_type: StatementType) -> str:
    """The claims as a compact JWS under an environment's key, with the key's certificate in the header.

    Raises ValueError for a key of another purpose.
    """
    headers = _headers(key, statement_type)
    return jwt.encode(dict(claims), key.private, algorithm=_ALGORITHM, headers=headers)


def sign_detached(payload: bytes, key: SigningKey, statement_type: StatementType) -> tuple[str, str]:
    """The protected header and the signature of a JWS whose payload goes another way (RFC 7515 appendix F).

    `payload` is JSON. Raises ValueError for a key of another purpose.
    """
    protected = _part({"alg": _ALGORITHM, **_headers(key, statement_type)})
    signature = key.private.sign(protected + b"." + _base64url(payload))
    return protected.decode(), _base64url(signature).decode()


def attached(protected: str, payload: bytes, signature: str) -> str:
    """The compact JWS of a detached signature and its payload, for `verify`."""
    return f"{protected}.{_base64url(payload).decode()}.{signature}"


def _headers(key: SigningKey, statement_type: StatementType) -> dict[str, str]:
    if key.purpose is not statement_type.purpose:
        msg = f"a key for the purpose {key.purpose} must not sign a {statement_type.name}"
        raise ValueError(msg)
    return {"typ": statement_type.typ, "kid": key.key_id, "cert": key.certificate}


def verify(token: str, jwks: Mapping[str, Any], statement_type: StatementType) -> VerifiedStatement:
    """The claims of a statement whose certificate chain leads to a root key of `jwks`. The caller checks their form.

    Raises ProofError: `Flaw.FORM` if the text is no such token, `Flaw.SIGNATURE` if its chain is not valid.
    """
    header = {"alg", "typ", "kid", "cert"}
    outer = parse(token, statement_type.name, statement_type.typ, header, statement_type.chars_max)
    inner = parse(outer.header["cert"], _CERTIFICATE, CERTIFICATE_TYPE, {"alg", "typ", "kid"})
    _check_algorithm(outer, _ALGORITHM, statement_type.name)
    _check_algorithm(inner, _ROOT_ALGORITHM, _CERTIFICATE)
    root = _root(jwks, inner.header["kid"])
    if not ECAlgorithm(ECAlgorithm.SHA256).verify(inner.signed, root.public, inner.signature):
        raise _unsigned(_CERTIFICATE)
    _check_purpose(root, inner.payload.get("purpose"), statement_type)
    certificate = read(_ValidityForPurpose if root.purpose else _Validity, inner.payload, _CERTIFICATE)
    if outer.header["kid"] != certificate.jwk.kid:
        name = quoted(outer.header["kid"])
        sentence = f"the {statement_type.name} names the key {name}, its certificate {certificate.jwk.kid}"
        raise ProofError(Flaw.SIGNATURE, sentence)
    if certificate.jwk.kid != (name := _thumbprint(certificate.jwk.model_dump())):
        sentence = f"the key certificate names its key {certificate.jwk.kid}, but the key's thumbprint is {name}"
        raise ProofError(Flaw.SIGNATURE, sentence)
    public = Ed25519PublicKey.from_public_bytes(_decode(certificate.jwk.x, _CERTIFICATE))
    if not OKPAlgorithm().verify(outer.signed, public, outer.signature):
        raise _unsigned(statement_type.name)
    return VerifiedStatement(outer.payload, certificate.iat, certificate.exp, inner.header["kid"])


def read(model: type[_Model], value: object, name: str) -> _Model:
    """A JSON value as an instance of a model. Raises ProofError, which names the first member that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        place = quoted(".".join(map(str, error["loc"]))) if error["loc"] else "the whole"
        sentence = f"the {name} has a wrong form: {place}: {error['msg']}"
        raise ProofError(Flaw.FORM, sentence) from exc


def read_json(text: bytes, name: str) -> dict[str, Any]:
    """A JSON object whose members, at every level, have unique names. Raises ProofError. The caller limits the length.

    Numbers are doubles and nothing else is limited, because members that no check uses may contain anything.
    """
    try:
        value = canonical_json.read(text, numbers=Numbers.DOUBLES, depth_max=None, lone_surrogates=True)
    except JsonError as exc:
        sentence = f"the {name} is not JSON in UTF-8 with unique member names"
        raise ProofError(Flaw.FORM, sentence) from exc
    if not isinstance(value, dict):
        sentence = f"the {name} is not a JSON object"
        raise ProofError(Flaw.FORM, sentence)
    return value


def quoted(value: object) -> str:
    """A value from outside, made safe for a sentence: short, quoted, in printable ASCII."""
    text = ascii(value)
    return text if len(text) <= _QUOTED_CHARS_MAX else f"{text[:_QUOTED_CHARS_MAX]}..."


def parse(
    token: object,
    name: str,
    typ: str,
    members: set[str],
    chars_max: int = TOKEN_CHARS_MAX,
    optional: frozenset[str] = frozenset(),
) -> Jws:
    """The parts of a compact JWS of one type, whose header has exactly these members. Raises ProofError."""
    match = _COMPACT.fullmatch(token) if isinstance(token, str) and len(token) <= chars_max else None
    if match is None:
        sentence = f"the {name} is not a compact JWS: three parts of base64url, at most {chars_max} characters"
        raise ProofError(Flaw.FORM, sentence)
    header, payload, signature = (_decode(part, name) for part in match.groups())
    fields = read_json(header, f"{name}'s header")
    if fields.get("typ") != typ:
        sentence = f"the {name} is not of the type {typ}, but {quoted(fields.get('typ'))}"
        raise ProofError(Flaw.FORM, sentence)
    if odd := sorted((fields.keys() - optional) ^ members):
        what = "lacks" if odd[0] in members else "has the unknown member"
        sentence = f"the {name}'s header {what} {quoted(odd[0])}"
        raise ProofError(Flaw.FORM, sentence)
    return Jws(fields, read_json(payload, f"{name}'s payload"), match[0].rpartition(".")[0].encode(), signature)


def _decode(text: str, name: str) -> bytes:
    """The bytes of base64url in its one canonical spelling (RFC 4648 §3.5): no padding, spare bits zero."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        data = b""
    if _base64url(data).decode() != text:
        sentence = f"the {name} is not in canonical base64url"
        raise ProofError(Flaw.FORM, sentence)
    return data


def is_signed_by(jws: Jws, key: str) -> bool:
    """Whether a JWS has a valid Ed25519 signature of a key, given as the `x` of its JWK (RFC 8037)."""
    public = Ed25519PublicKey.from_public_bytes(_decode(key, "key"))
    return bool(OKPAlgorithm().verify(jws.signed, public, jws.signature))


def _check_algorithm(token: Jws, algorithm: str, name: str) -> None:
    if token.header["alg"] != algorithm:
        sentence = f"the {name} is signed by the algorithm {quoted(token.header['alg'])}, not {algorithm}"
        raise ProofError(Flaw.SIGNATURE, sentence)


def _check_purpose(root: _Root, stated: object, statement_type: StatementType) -> None:
    """Root key, certificate and statement have one purpose. An older root key has none, nor have its certificates."""
    name = quoted(root.key_id)
    if root.purpose is None:
        if not statement_type.older:
            sentence = f"the root key {name} is older than a {statement_type.name}, and signs none"
            raise ProofError(Flaw.SIGNATURE, sentence)
        if stated is not None:
            sentence = f"the key set states no purpose of the root key {name}, its certificate {quoted(stated)}"
            raise ProofError(Flaw.SIGNATURE, f"{sentence}: download the key set again")
        return
    if root.purpose != statement_type.purpose:
        sentence = f"the root key {name} is for the purpose {quoted(root.purpose)}"
        sentence += f", which is not that of a {statement_type.name}"
        raise ProofError(Flaw.SIGNATURE, sentence)
    if stated != root.purpose:
        sentence = f"the key certificate states the purpose {quoted(stated)}, its root key {name} is for {root.purpose}"
        raise ProofError(Flaw.SIGNATURE, sentence)


def _root(jwks: Mapping[str, Any], key_id: object) -> _Root:
    keys = jwks.get("keys")
    if not isinstance(keys, list) or len(keys) > JWKS_KEYS_MAX:
        sentence = f"the key set is not a JWKS of at most {JWKS_KEYS_MAX} keys"
        raise ProofError(Flaw.FORM, sentence)
    named = [key for key in keys if isinstance(key, dict) and key.get("kid") == key_id]
    if not named:
        sentence = f"the key certificate is signed by an unknown root key {quoted(key_id)}"
        raise ProofError(Flaw.SIGNATURE, sentence)
    members = {name: named[0].get(name) for name in ("kty", "crv", "x", "y")}
    purpose = named[0].get("purpose")
    if "purpose" in named[0] and not (isinstance(purpose, str) and purpose):
        raise _unusable(key_id)
    if any(key != named[0] for key in named):
        sentence = f"the key set names the root key {quoted(key_id)} twice, with different members"
        raise ProofError(Flaw.FORM, sentence)
    if not all(isinstance(member, str) for member in members.values()) or members["crv"] != "P-256":
        raise _unusable(key_id)
    try:
        key = ECAlgorithm.from_jwk(members)
    except (jwt.PyJWTError, ValueError) as exc:
        raise _unusable(key_id) from exc
    if not isinstance(key, EllipticCurvePublicKey):
        raise _unusable(key_id)
    return _Root(key_id, key, purpose)


def _unusable(key_id: object) -> ProofError:
    return ProofError(Flaw.FORM, f"the root key {quoted(key_id)} of the key set is not a usable ES256 key")


def _unsigned(name: str) -> ProofError:
    return ProofError(Flaw.SIGNATURE, f"the signature of the {name} is not valid")


def _thumbprint(public: Mapping[str, Any]) -> str:
    """The key's RFC 7638 thumbprint (RFC 8037 appendix A.3 names the members of an OKP key)."""
    members = {name: public[name] for name in ("crv", "kty", "x")}
    return _base64url(hashlib.sha256(_json(members)).digest()).decode()


def _part(value: Mapping[str, Any]) -> bytes:
    return _base64url(_json(value))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
