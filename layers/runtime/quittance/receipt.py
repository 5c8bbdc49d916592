"""Receipts: signed statements of an outcome that anyone can check offline. Pure: keys and times come from the caller.

A receipt is a compact JWS (RFC 7515). Its key is an Ed25519 key (RFC 8037) that one environment made for itself; the
header carries that key's certificate, a compact JWS signed by a root key (ECDSA P-256) whose public half is in the
platform's JWKS for ever. So one root signature serves thousands of receipts, and no receipt needs a call to KMS.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from quittance import escrow as escrows
from quittance.escrow import Escrow, Settlement
from quittance.pricing import tariff_sha256
from quittance.run import Meter

RECEIPT_TYPE: Final = "quittance-receipt+jwt"
CERTIFICATE_TYPE: Final = "quittance-key+jwt"
CERTIFICATE_SECONDS: Final = 12 * 60 * 60
_RECEIPT_ALGORITHM: Final = "EdDSA"
_ROOT_ALGORITHM: Final = "ES256"
_VERSION: Final = 1
_BACKDATED_S: Final = 300  # a clock that is set back does not make receipts older than their key


class ReceiptError(Exception):
    """The receipt does not prove what it says; the message tells why."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An environment's own key: made at first use, certified by the root, good until `expires_s`."""

    private: Ed25519PrivateKey
    key_id: str
    certificate: str
    expires_s: int


def claims(
    escrow: Escrow, settlement: Settlement, *, issuer: str, meter: Meter, engine: str, config_sha256: str
) -> dict[str, Any]:
    """What a receipt states. Amounts are strings of micro-credits, times are milliseconds since the epoch."""
    return {
        "v": _VERSION,
        "iss": issuer,
        "eid": escrow.escrow_id,
        "task": escrow.task_id,
        "user": escrow.payer,
        "agent": escrow.agent_id,
        "owner": escrow.owner,
        "module_sha256": escrow.module_sha256,
        "input_sha256": escrow.input_sha256,
        "output_sha256": settlement.output.sha256 if settlement.output else None,
        "stderr_sha256": settlement.log.sha256 if settlement.log else None,
        "asset": "credit/6",
        "budget": str(escrow.budget_micro),
        "paid": str(settlement.split.paid_micro),
        "fee": str(settlement.split.fee_micro),
        "refunded": str(settlement.split.refunded_micro),
        "fee_bps": escrow.fee_bps,
        "tariff_sha256": tariff_sha256(escrow.tariff),
        "state": settlement.state,
        "outcome": settlement.outcome,
        "fault": settlement.outcome.fault,
        "reputation_tenths": settlement.reputation_tenths,
        "meter": {
            "fuel": meter.fuel,
            "fuel_exact": meter.fuel_exact,
            "cpu_ms": meter.cpu_ms,
            "wall_ms": meter.wall_ms,
            "memory_bytes": meter.memory_bytes,
            "input_bytes": meter.input_bytes,
            "output_bytes": meter.output_bytes,
            "stderr_bytes": meter.stderr_bytes,
        },
        "engine": engine,
        "config_sha256": config_sha256,
        "epoch_ns": str(escrow.funded_ms * 1_000_000),
        "seed": escrows.seed(escrow.escrow_id).hex(),
        "funded_at": escrow.funded_ms,
        "expires_at": escrow.expires_ms,
        "settled_at": settlement.settled_ms,
    }


def certified_key(*, now_s: int, root_key_id: str, root_sign: Callable[[bytes], bytes]) -> SigningKey:
    """A new signing key, certified by one signature of the root.

    `root_sign` returns the raw ES256 signature (r ‖ s, RFC 7518 §3.4) of the bytes that it is given.
    """
    private = Ed25519PrivateKey.generate()
    public = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
    key_id = _thumbprint(public)
    expires_s = now_s + CERTIFICATE_SECONDS
    payload = {"iat": now_s - _BACKDATED_S, "exp": expires_s, "jwk": {**public, "kid": key_id}}
    header = {"alg": _ROOT_ALGORITHM, "kid": root_key_id, "typ": CERTIFICATE_TYPE}
    signing_input = _part(header) + b"." + _part(payload)
    certificate = (signing_input + b"." + _base64url(root_sign(signing_input))).decode()
    return SigningKey(private, key_id, certificate, expires_s)


def sign(statement: Mapping[str, Any], key: SigningKey) -> str:
    """The receipt: the claims as a compact JWS under an environment's key, its certificate in the header."""
    headers = {"typ": RECEIPT_TYPE, "kid": key.key_id, "cert": key.certificate}
    return jwt.encode(dict(statement), key.private, algorithm=_RECEIPT_ALGORITHM, headers=headers)


def verify(receipt: str, jwks: Mapping[str, Any]) -> dict[str, Any]:
    """The claims of a receipt whose chain leads to a root key of `jwks`. Raises ReceiptError with the reason."""
    header = _header(receipt, RECEIPT_TYPE, "receipt")
    certificate = header.get("cert")
    if not isinstance(certificate, str):
        msg = "the receipt carries no key certificate"
        raise ReceiptError(msg)
    root_id = _header(certificate, CERTIFICATE_TYPE, "key certificate").get("kid")
    try:
        roots = {key.key_id: key for key in jwt.PyJWKSet.from_dict(dict(jwks)).keys}
    except jwt.PyJWKSetError as exc:
        msg = "the key set holds no usable key"
        raise ReceiptError(msg) from exc
    if root_id not in roots:
        msg = f"the key certificate is signed by an unknown root key {root_id!r}"
        raise ReceiptError(msg)
    certified = _decode(certificate, roots[root_id].key, _ROOT_ALGORITHM, "key certificate")
    key = jwt.PyJWK.from_dict(certified["jwk"])
    statement = _decode(receipt, key.key, _RECEIPT_ALGORITHM, "receipt")
    try:
        if not certified["iat"] * 1_000 <= statement["settled_at"] < certified["exp"] * 1_000:
            msg = "the receipt was settled outside the validity of its key certificate"
            raise ReceiptError(msg)
        _check_amounts(statement)
    except (KeyError, TypeError, ValueError) as exc:
        msg = "the receipt lacks a claim, or one has a wrong form"
        raise ReceiptError(msg) from exc
    return statement


def read_claims(receipt: str) -> dict[str, Any]:
    """The claims of a receipt that comes from our own ledger, unverified."""
    statement: dict[str, Any] = jwt.decode(receipt, options={"verify_signature": False})
    return statement


def _check_amounts(statement: Mapping[str, Any]) -> None:
    """The arithmetic of a settlement (invariants I3 and I4), which a receipt carries in itself."""
    amounts = {name: int(statement[name]) for name in ("budget", "paid", "fee", "refunded")}
    used = amounts["paid"] + amounts["fee"]
    if min(amounts.values()) < 0 or used + amounts["refunded"] != amounts["budget"]:
        msg = "paid, fee and refunded do not add up to the budget"
        raise ReceiptError(msg)
    if amounts["fee"] != used * statement["fee_bps"] // 10_000:
        msg = "the fee is not the part of what was used that fee_bps states"
        raise ReceiptError(msg)
    if used and statement["state"] != "released":
        msg = "something was paid although the escrow was not released"
        raise ReceiptError(msg)


def _header(token: str, expected_type: str, name: str) -> dict[str, Any]:
    try:
        header: dict[str, Any] = jwt.get_unverified_header(token)
    except jwt.InvalidTokenError as exc:
        msg = f"the {name} is not a compact JWS"
        raise ReceiptError(msg) from exc
    if header.get("typ") != expected_type:
        msg = f"the {name} is not of the type {expected_type}"
        raise ReceiptError(msg)
    return header


def _decode(token: str, key: Any, algorithm: str, name: str) -> dict[str, Any]:  # noqa: ANN401 - PyJWT's key union
    # Times are checked against the settlement, not against today: a receipt stays good for ever.
    options: Any = {"verify_exp": False, "verify_iat": False, "verify_nbf": False, "verify_aud": False}
    try:
        decoded: dict[str, Any] = jwt.decode(token, key, algorithms=[algorithm], options=options)
    except jwt.InvalidTokenError as exc:
        msg = f"the signature of the {name} does not fit"
        raise ReceiptError(msg) from exc
    return decoded


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
