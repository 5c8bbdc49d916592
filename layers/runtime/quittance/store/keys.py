"""The receipt keys: one certified Ed25519 key an environment, under root keys that never leave KMS."""

from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from jwt.algorithms import ECAlgorithm

from quittance.certified import SigningKey, certified_key
from quittance.errors import PlatformUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

_P256_BYTES: Final = 32
_RENEW_S: Final = 60 * 60


class Keys:
    """Makes signing keys and publishes the roots.

    `root_key_ids` are KMS keys (ECC_NIST_P256): the first signs certificates, the others stay published, so that
    receipts of former roots verify for ever.
    """

    def __init__(self, client: "KMSClient", *, root_key_ids: list[str]) -> None:
        self._client = client
        self._root_key_ids = root_key_ids
        self._signing_key: SigningKey | None = None

    def signing_key(self, *, now_s: int) -> SigningKey:
        """This environment's key; made, with one call of KMS, at first use and an hour before it expires.

        Raises PlatformUnavailableError.
        """
        key = self._signing_key
        if key is None or key.expires_s - now_s < _RENEW_S:
            key = certified_key(now_s=now_s, root_key_id=_kid(self._root_key_ids[0]), root_sign=self._root_sign)
            self._signing_key = key
        return key

    def jwks(self) -> dict[str, Any]:
        """The public root keys as a JSON Web Key Set (RFC 7517). Raises PlatformUnavailableError."""
        return {"keys": [self._public_jwk(key_id) for key_id in self._root_key_ids]}

    def _root_sign(self, data: bytes) -> bytes:
        try:
            der = self._client.sign(
                KeyId=self._root_key_ids[0],
                Message=data,  # a certificate is far below the 4,096 bytes that KMS hashes itself
                MessageType="RAW",
                SigningAlgorithm="ECDSA_SHA_256",
            )["Signature"]
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc
        r, s = decode_dss_signature(der)
        return r.to_bytes(_P256_BYTES, "big") + s.to_bytes(_P256_BYTES, "big")

    def _public_jwk(self, key_id: str) -> dict[str, Any]:
        try:
            der = self._client.get_public_key(KeyId=key_id)["PublicKey"]
        except (ClientError, BotoCoreError) as exc:
            raise PlatformUnavailableError from exc
        public = load_der_public_key(der)
        if not isinstance(public, EllipticCurvePublicKey):
            msg = f"the root key {key_id} is not an elliptic-curve key"
            raise TypeError(msg)
        return {**ECAlgorithm.to_jwk(public, as_dict=True), "kid": _kid(key_id), "use": "sig", "alg": "ES256"}


def _kid(key_id: str) -> str:
    """The last part of a key's ARN: short enough to stand in every receipt."""
    return key_id.rpartition("/")[2]
