"""The receipt keys: one certified Ed25519 key an environment, under root keys that never leave KMS."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from jwt.algorithms import ECAlgorithm

from quittance.certified import SigningKey, certified_key
from quittance.errors import PlatformUnavailableError
from quittance.limits import JWKS_AGE_S_MAX, JWKS_FAILURE_S_MAX

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

_P256_BYTES: Final = 32
_RENEW_S: Final = 60 * 60


class Keys:
    """Makes signing keys and publishes the roots.

    `root_key_ids` are KMS keys (ECC_NIST_P256): the first signs certificates, the others stay published, so that
    receipts of former roots verify for ever. `clock` tells seconds: by default those of the day, because the monotonic
    clock may stand still while Lambda freezes an environment.
    """

    def __init__(self, client: "KMSClient", *, root_key_ids: list[str], clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._root_key_ids = root_key_ids
        self._clock = clock
        self._signing_key: SigningKey | None = None
        self._roots: dict[str, tuple[float, dict[str, Any]]] = {}  # with the time when they were read
        self._failed_s: float | None = None

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
        """The public root keys as a JSON Web Key Set (RFC 7517).

        Anyone may ask for them, so KMS is called once a root, not once a reader: each is kept for JWKS_AGE_S_MAX, and
        a failure for JWKS_FAILURE_S_MAX. Raises PlatformUnavailableError.
        """
        if self._failed_s is not None and self._is_newer(self._failed_s, JWKS_FAILURE_S_MAX):
            raise PlatformUnavailableError
        return {"keys": [self._root(key_id) for key_id in self._root_key_ids]}

    def check(self) -> None:
        """Raises PlatformUnavailableError unless KMS answers for each root now."""
        for key_id in self._root_key_ids:
            self._public_jwk(key_id)

    def _root(self, key_id: str) -> dict[str, Any]:
        kept = self._roots.get(key_id)
        if kept and self._is_newer(kept[0], JWKS_AGE_S_MAX):
            return kept[1]
        try:
            root = self._public_jwk(key_id)
        except PlatformUnavailableError:
            self._failed_s = self._clock()
            raise
        self._roots[key_id] = self._clock(), root
        return root

    def _is_newer(self, then_s: float, age_s_max: int) -> bool:
        """Whether something is not as old as that yet. A clock that was set back makes it too old, never young."""
        return 0 <= self._clock() - then_s < age_s_max

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
