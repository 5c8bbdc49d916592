"""An OIDC issuer for this machine: a private key, its public key as a JWKS, and signed tokens."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from local.paths import locked, write

if TYPE_CHECKING:
    from pathlib import Path

ISSUER = "https://issuer.quittance.local"
AUDIENCE = "quittance"
TTL_SECONDS = 3600
_COORDINATE_BYTES = 32


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the issuer's private key. It is created at the first use, readable by its owner only."""
    with locked(path.with_suffix(".lock")):
        if not path.is_file():
            pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            write(path, pem.decode(), mode=0o600)
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        msg = f"{path} is not an EC key"
        raise TypeError(msg)
    return key


def jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """Return the public key in the format of RFC 7517, with its RFC 7638 thumbprint as key id."""
    point = key.public_key().public_numbers()
    x, y = (_base64(n.to_bytes(_COORDINATE_BYTES)) for n in (point.x, point.y))
    members = {"crv": "P-256", "kty": "EC", "x": x, "y": y}
    canonical = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
    name = _base64(hashlib.sha256(canonical).digest())
    return {**members, "alg": "ES256", "use": "sig", "kid": name}


def claims(subject: str, scope: str = "", ttl: int = TTL_SECONDS, audience: str = AUDIENCE) -> dict[str, Any]:
    """Return the claims of an access token that is valid from now on."""
    now = int(time.time())
    return {
        "iss": ISSUER,
        "aud": audience,
        "sub": subject,
        "scope": scope,
        "iat": now,
        "nbf": now,
        "exp": now + ttl,
        "jti": str(uuid.uuid4()),
    }


def sign(key: ec.EllipticCurvePrivateKey, body: dict[str, Any]) -> str:
    """Return a JWT with these claims, signed with ES256."""
    header = {"alg": "ES256", "typ": "at+jwt", "kid": jwk(key)["kid"]}
    message = ".".join(_base64(json.dumps(part, separators=(",", ":")).encode()) for part in (header, body))
    r, s = decode_dss_signature(key.sign(message.encode(), ec.ECDSA(hashes.SHA256())))
    signature = r.to_bytes(_COORDINATE_BYTES) + s.to_bytes(_COORDINATE_BYTES)
    return f"{message}.{_base64(signature)}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
