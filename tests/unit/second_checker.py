"""A second checker of receipts, written from docs/receipts.md alone: it shares no code with the verifier.

It knows version 1 of the claims. `check` takes a receipt and a key set and returns the claims, or raises RefusedError
with the rule of the page that does not hold. Nothing here imports `quittance`.
"""

import base64
import hashlib
import json
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

HEX: Final = frozenset("0123456789abcdef")
DIGITS: Final = frozenset("0123456789")
URL_SAFE: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")

FAULTS: Final = {
    "none": ("succeeded", "rules_failed", "judge_failed", "not_needed", "superseded"),
    "agent": (
        *("exit_code", "trap_unreachable", "trap_memory", "trap_arithmetic", "trap_stack", "trap_table"),
        *("fuel_exhausted", "timeout", "memory_limit", "output_limit", "rejected"),
    ),
    "platform": (
        *("worker_lost", "out_of_time", "artefact_missing", "artefact_tampered", "storage_down", "expired"),
        "undelivered",
    ),
}
FAULT_OF: Final = {outcome: fault for fault, outcomes in FAULTS.items() for outcome in outcomes}
BY_RULES: Final = {"rejected", "rules_failed", "judge_failed"}
NOTHING_RAN: Final = {"not_needed", "superseded", "expired", "undelivered"}
TEXTS: Final = {
    "iss": (0, 1_000),
    "task": (1, 140),
    "user": (1, 255),
    "owner": (1, 255),
    "agent": (1, 100),
    "engine": (0, 100),
}
DIGESTS: Final = ("module_sha256", "input_sha256", "tariff_sha256", "seed")
DIGESTS_OR_NULL: Final = ("output_sha256", "stderr_sha256")
AMOUNTS: Final = ("budget", "paid", "fee", "refunded")
TIMES: Final = ("funded_at", "expires_at", "settled_at")
OTHERS: Final = {
    *(
        "v",
        "eid",
        "asset",
        "fee_bps",
        "state",
        "outcome",
        "fault",
        "acceptance",
        "reputation_tenths",
        "meter",
        "limits",
    ),
    *("config_sha256", "epoch_ns"),
}
CLAIMS: Final = {*TEXTS, *DIGESTS, *DIGESTS_OR_NULL, *AMOUNTS, *TIMES, *OTHERS}
METER_NUMBERS: Final = ("fuel", "cpu_ms", "wall_ms", "memory_bytes", "input_bytes", "output_bytes", "stderr_bytes")
TOKEN_CHARS: Final = 16_384
KEYS: Final = 1_000


class RefusedError(Exception):
    """The receipt is refused."""


def need(holds: object, why: str) -> None:
    if not holds:
        raise RefusedError(why)


# Forms of values.


def is_text(value: object, low: int, high: int) -> bool:
    if not isinstance(value, str) or not low <= len(value) <= high:
        return False
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in value)


def is_of(value: object, alphabet: frozenset[str], low: int, high: int) -> bool:
    return isinstance(value, str) and low <= len(value) <= high and set(value) <= alphabet


def is_digest(value: object) -> bool:
    return is_of(value, HEX, 64, 64)


def is_integer(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def is_number_text(value: object, digits: int) -> bool:
    return is_of(value, DIGITS, 1, digits) and (value == "0" or str(value)[0] != "0")


def is_score(value: object) -> bool:
    if value in ("0", "1") and isinstance(value, str):
        return True
    if not isinstance(value, str) or not value.startswith("0."):
        return False
    return is_of(value[2:], DIGITS, 1, 6) and value[-1] != "0"


def members(value: object, names: set[str], what: str) -> dict[str, Any]:
    need(isinstance(value, dict), f"{what} is an object")
    assert isinstance(value, dict)
    need(set(value) == names, f"{what} has exactly its members")
    return value


# The claims.


def check_forms(claims: dict[str, Any]) -> None:
    need(is_integer(claims["v"], 1, 1), "v")
    for name, (low, high) in TEXTS.items():
        need(is_text(claims[name], low, high), name)
    need(is_of(claims["eid"], frozenset("abcdefghijklmnopqrstuvwxyz234567"), 26, 26), "eid")
    for name in DIGESTS:
        need(is_digest(claims[name]), name)
    for name in DIGESTS_OR_NULL:
        need(claims[name] is None or is_digest(claims[name]), name)
    need(is_digest(claims["config_sha256"]) or claims["config_sha256"] == "", "config_sha256")
    need(claims["asset"] == "credit/6", "asset")
    for name in AMOUNTS:
        need(is_number_text(claims[name], 16), name)
    need(is_integer(claims["fee_bps"], 0, 10_000), "fee_bps")
    need(is_integer(claims["reputation_tenths"], -1_000, 1_000), "reputation_tenths")
    need(is_number_text(claims["epoch_ns"], 22), "epoch_ns")
    for name in TIMES:
        need(is_integer(claims[name], 0, 2**53), name)
    need(isinstance(claims["outcome"], str) and claims["outcome"] in FAULT_OF, "outcome")
    meter = members(claims["meter"], {*METER_NUMBERS, "fuel_exact"}, "meter")
    need(type(meter["fuel_exact"]) is bool, "fuel_exact")
    need(all(is_integer(meter[name], 0, 2**53) for name in METER_NUMBERS), "meter")
    if claims["limits"] is not None:
        limits = members(claims["limits"], {"fuel", "memory_bytes", "timeout_ms"}, "limits")
        need(all(is_integer(value, 0, 2**53) for value in limits.values()), "limits")


def check_times(claims: dict[str, Any], iat: int, exp: int) -> None:
    settled = claims["settled_at"]
    need(iat * 1_000 <= settled < exp * 1_000, "settled_at is within the certificate")
    need(claims["funded_at"] <= settled, "funded_at <= settled_at")
    need((settled < claims["expires_at"]) == (claims["state"] != "expired"), "expires_at")


def check_amounts(claims: dict[str, Any]) -> None:
    budget, paid, fee, refunded = (int(claims[name]) for name in AMOUNTS)
    need(paid + fee + refunded == budget, "paid + fee + refunded = budget")
    need(fee == (paid + fee) * claims["fee_bps"] // 10_000, "fee")
    need(paid + fee == 0 or claims["state"] == "released", "paid although not released")
    need(1 <= budget <= 10**12, "budget")


def check_outcome(claims: dict[str, Any]) -> None:
    outcome = claims["outcome"]
    fault = FAULT_OF[outcome]
    need(claims["fault"] == fault, "fault")
    need(claims["state"] == {"succeeded": "released", "expired": "expired"}.get(outcome, "refunded"), "state")
    if outcome == "succeeded":
        reputation = 25 if claims["meter"]["wall_ms"] < 1_000 else 20
    else:
        reputation = -50 if fault == "agent" else 0
    need(claims["reputation_tenths"] == reputation, "reputation_tenths")
    need((claims["output_sha256"] is not None) == (outcome == "succeeded"), "output_sha256")
    user, task = claims["user"], claims["task"]
    hashed = hashlib.sha256(f"{len(user)}:{user}{len(task)}:{task}".encode()).digest()
    need(claims["eid"] == base64.b32encode(hashed).decode().lower()[:26], "eid")
    need(claims["seed"] == hashlib.sha256(f"quittance seed {claims['eid']}".encode()).hexdigest(), "seed")
    need(int(claims["epoch_ns"]) == claims["funded_at"] * 10**6, "epoch_ns")


def check_acceptance(claims: dict[str, Any]) -> None:
    if claims["acceptance"] is None:
        need(claims["outcome"] not in BY_RULES, "the rules decided, but none are named")
        return
    names = {"agent_sha256", "task_sha256", "agent_score", "task_score", "accepted"}
    acceptance = members(claims["acceptance"], names, "acceptance")
    for side in ("agent", "task"):
        digest, score = acceptance[f"{side}_sha256"], acceptance[f"{side}_score"]
        need(digest is None or is_digest(digest), "digest of rules")
        need(score is None or is_score(score), "score")
        need(score is None or digest is not None, "a score by rules that are not named")
    need(acceptance["agent_sha256"] or acceptance["task_sha256"], "rules of one side")
    need(type(acceptance["accepted"]) is bool, "accepted")
    need(acceptance["accepted"] == (claims["state"] == "released"), "accepted")


def check_run(claims: dict[str, Any]) -> None:
    outcome, meter, limits = claims["outcome"], claims["meter"], claims["limits"]
    engine = bool(claims["engine"]) and bool(claims["config_sha256"])
    if limits is not None:
        need(meter["fuel"] <= limits["fuel"], "fuel")
        need(meter["memory_bytes"] <= limits["memory_bytes"], "memory_bytes")
    if outcome in NOTHING_RAN:
        need(limits is None and claims["stderr_sha256"] is None, "nothing ran")
        need(not claims["engine"] and not claims["config_sha256"], "nothing ran")
        need(not any(meter[name] for name in METER_NUMBERS), "nothing ran")
    elif FAULT_OF[outcome] == "platform":
        if limits is None:
            need(not any(meter[name] for name in METER_NUMBERS if name != "input_bytes"), "before the run")
        else:
            need(engine, "engine of a run")
    else:
        need(limits is not None, "limits of a run")
        need(engine, "engine of a run")
    if outcome == "timeout":
        need(meter["wall_ms"] == limits["timeout_ms"], "a timeout's length")


def check_claims(value: object, iat: int, exp: int) -> dict[str, Any]:
    """All that claims must hold, given the validity of their certificate."""
    claims = members(value, CLAIMS, "the claims")
    check_forms(claims)
    check_acceptance(claims)
    check_outcome(claims)
    check_times(claims, iat, exp)
    check_amounts(claims)
    check_run(claims)
    return claims


# The token and its chain.


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    need(len({name for name, _ in pairs}) == len(pairs), "a member stands twice")
    return dict(pairs)


def unpack(text: object, what: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    """Header, payload, what is signed and the signature of a compact JWS in its one spelling."""
    need(isinstance(text, str) and len(text) <= TOKEN_CHARS, f"{what} is a token")
    assert isinstance(text, str)
    parts = text.split(".")
    need(len(parts) == 3 and parts[0] and parts[1], f"{what} has three parts")
    raw = []
    for part in parts:
        need(set(part) <= URL_SAFE and len(part) % 4 != 1, f"{what} is in base64url")
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        need(base64.urlsafe_b64encode(data).decode().rstrip("=") == part, f"{what} has spare bits")
        raw.append(data)
    try:
        header, payload = (json.loads(data.decode("utf-8"), object_pairs_hook=once) for data in raw[:2])
    except (ValueError, RecursionError) as error:
        why = f"{what} is JSON"
        raise RefusedError(why) from error
    need(isinstance(header, dict) and isinstance(payload, dict), f"{what} holds objects")
    return header, payload, f"{parts[0]}.{parts[1]}".encode(), raw[2]


def coordinate(text: object) -> int:
    need(is_of(text, URL_SAFE, 43, 43), "a coordinate of a P-256 key")
    return int.from_bytes(base64.urlsafe_b64decode(f"{text}="), "big")


def root_of(key_set: dict[str, Any], kid: object) -> tuple[ec.EllipticCurvePublicKey, str | None]:
    keys = key_set.get("keys")
    need(isinstance(keys, list) and len(keys) <= KEYS, "a key set")
    assert isinstance(keys, list)
    named = [key for key in keys if isinstance(key, dict) and key.get("kid") == kid]
    need(named, "a root of the key set")
    root = named[0]
    need(all(key == root for key in named), "one root of a name")
    need((root.get("kty"), root.get("crv")) == ("EC", "P-256"), "a P-256 root")
    if "purpose" in root:
        need(isinstance(root["purpose"], str) and root["purpose"], "the purpose of a root")
    try:
        numbers = ec.EllipticCurvePublicNumbers(coordinate(root.get("x")), coordinate(root.get("y")), ec.SECP256R1())
        return numbers.public_key(), root.get("purpose")
    except ValueError as error:
        why = "a point of the curve"
        raise RefusedError(why) from error


def check_certificate(text: object, key_set: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
    """The certified key with its validity, for the purpose `receipt`."""
    header, payload, signed, signature = unpack(text, "the certificate")
    need(set(header) == {"typ", "alg", "kid"}, "header of the certificate")
    need((header["typ"], header["alg"]) == ("quittance-key+jwt", "ES256"), "type of the certificate")
    public, purpose = root_of(key_set, header["kid"])
    need(len(signature) == 64, "an ES256 signature")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        public.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        why = "the signature of the certificate"
        raise RefusedError(why) from error
    if purpose is None:
        need(set(payload) == {"iat", "exp", "jwk"}, "a certificate of before has no purpose")
    else:
        need(set(payload) == {"iat", "exp", "jwk", "purpose"}, "members of the certificate")
        need(purpose == "receipt" and payload["purpose"] == "receipt", "the purpose of root and certificate")
    need(all(is_integer(payload[name], 0, 2**40) for name in ("iat", "exp")), "iat, exp")
    jwk = members(payload["jwk"], {"kty", "crv", "x", "kid"}, "the certified key")
    need((jwk["kty"], jwk["crv"]) == ("OKP", "Ed25519"), "an Ed25519 key")
    need(is_of(jwk["x"], URL_SAFE, 43, 43) and is_of(jwk["kid"], URL_SAFE, 43, 43), "form of the certified key")
    named = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": jwk["x"]}, separators=(",", ":")).encode()
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(named).digest()).decode().rstrip("=")
    need(jwk["kid"] == thumbprint, "the key's name is its thumbprint")
    return jwk, payload["iat"], payload["exp"]


def check(receipt: str, key_set: dict[str, Any]) -> dict[str, Any]:
    """The claims of a receipt that holds. Raises RefusedError."""
    header, payload, signed, signature = unpack(receipt, "the receipt")
    need(set(header) == {"typ", "alg", "kid", "cert"}, "header of the receipt")
    need((header["typ"], header["alg"]) == ("quittance-receipt+jwt", "EdDSA"), "type of the receipt")
    jwk, iat, exp = check_certificate(header["cert"], key_set)
    need(header["kid"] == jwk["kid"], "the receipt names its certificate's key")
    raw = base64.urlsafe_b64decode(jwk["x"] + "=")
    need(base64.urlsafe_b64encode(raw).decode().rstrip("=") == jwk["x"], "x has spare bits")
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, signed)
    except (InvalidSignature, ValueError) as error:
        why = "the signature of the receipt"
        raise RefusedError(why) from error
    return check_claims(payload, iat, exp)
