"""Keys of payment channels for tests. They sign with a JOSE library, as any client can, and not with the platform."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm


@dataclass(frozen=True)
class ChannelKey:
    """The private key of a channel."""

    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def jwk(self) -> dict[str, str]:
        """The public key as a request to open a channel has it."""
        made: dict[str, Any] = OKPAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {name: made[name] for name in ("kty", "crv", "x")}

    def sign(self, claims: Mapping[str, object], typ: str = "quittance-ticket+jwt") -> str:
        """A JWS with these claims; None leaves a claim out."""
        stated = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(stated, self.private, algorithm="EdDSA", headers={"typ": typ})

    def closing(self, issuer: str, channel_id: str, *, exp: int) -> str:
        """An order to close a channel."""
        return self.sign({"iss": issuer, "channel": channel_id, "exp": exp}, "quittance-channel-close+jwt")
