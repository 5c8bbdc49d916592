"""A root key like one in KMS, and the parts of a compact JWS, which tests change one by one."""

import base64
import json
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from quittance.proof.statement import Purpose, SigningKey, new_signing_key

NOW_S = 1_800_000_000


class Root:
    """A root key like one in KMS, by default for receipts: it signs bytes and publishes its public half."""

    def __init__(self, key_id: str = "root-1", purpose: Purpose = Purpose.RECEIPT) -> None:
        self.key_id = key_id
        self.purpose = purpose
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.public = self.private.public_key()

    def sign(self, data: bytes) -> bytes:
        r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def jwks(self) -> dict[str, Any]:
        numbers = self.public.public_numbers()
        x, y = (encode(part.to_bytes(32, "big")) for part in (numbers.x, numbers.y))
        key = {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": self.key_id, "alg": "ES256"}
        return {"keys": [{**key, "purpose": self.purpose.value}]}

    def certify(self, now_s: int = NOW_S) -> SigningKey:
        return new_signing_key(purpose=self.purpose, now_s=now_s, root_key_id=self.key_id, root_sign=self.sign)


def key_set(*roots: Root) -> dict[str, Any]:
    """The JWKS of several roots."""
    return {"keys": [key for root in roots for key in root.jwks()["keys"]]}


class Token(NamedTuple):
    """The parts of a compact JWS, which tests change one by one."""

    header: dict[str, Any]
    payload: dict[str, Any]
    signature: str

    def __str__(self) -> str:
        return f"{part(self.header)}.{part(self.payload)}.{self.signature}"


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def part(value: object) -> str:
    return encode(json.dumps(value, separators=(",", ":"), sort_keys=True).encode())


def parse(text: str) -> Token:
    header, payload, signature = text.split(".")
    return Token(json.loads(decode(header)), json.loads(decode(payload)), signature)


ADDED_CLAIMS = (
    *("compute", "charge", "judging", "task_judging", "compute_prices", "task_judge_bps", "own_limits"),
    "memory_refused",
)
ADDED_MEMBERS = {"limits": "output_bytes", "acceptance": "rejected_by"}
"""What version 2 of receipts added: claims, and one member in each of two claims."""


def as_version_1(claims: dict[str, Any]) -> dict[str, Any]:
    """The claims of a receipt in version 1: without what version 2 added."""
    older = {name: value for name, value in claims.items() if name not in ADDED_CLAIMS} | {"v": 1}
    for name, member in ADDED_MEMBERS.items():
        if older[name] is not None:
            older[name] = {inner: value for inner, value in older[name].items() if inner != member}
    return older
