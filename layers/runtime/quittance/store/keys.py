"""The signing keys: a certified Ed25519 key a purpose and environment, under root keys that never leave KMS."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from jwt.algorithms import ECAlgorithm

from quittance.errors import PlatformUnavailableError
from quittance.limits import JWKS_AGE_S_MAX, JWKS_FAILURE_S_MAX
from quittance.proof.statement import Purpose, SigningKey, new_signing_key

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

_P256_BYTES: Final = 32
_RENEW_S: Final = 60 * 60


class Keys:
    """Makes signing keys and publishes the roots.

    `root_key_ids` are the KMS keys (ECC_NIST_P256) of each purpose: the first signs certificates, the others stay
    published, so that what was signed under former roots verifies for ever. `without_purpose` are roots of before keys
    had purposes, which sign nothing any more. `clock` returns seconds: by default those of the day, because the
    monotonic clock may stand still while Lambda freezes an environment. Raises ValueError for a key named twice.
    """

    def __init__(
        self,
        client: "KMSClient",
        *,
        root_key_ids: Mapping[Purpose, Sequence[str]],
        without_purpose: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._first = {purpose: key_ids[0] for purpose, key_ids in root_key_ids.items()}
        stated: list[tuple[str, Purpose | None]] = [
            (key_id, purpose) for purpose, key_ids in root_key_ids.items() for key_id in key_ids
        ]
        stated += [(key_id, None) for key_id in without_purpose]
        self._purposes = dict(stated)
        if len({_kid(key_id) for key_id in self._purposes}) != len(stated):
            msg = "a root key has one purpose and is named once: compare the template's parameters of root keys"
            raise ValueError(msg)
        self._clock = clock
        self._signing_keys: dict[Purpose, SigningKey] = {}
        self._roots: dict[str, tuple[float, dict[str, Any]]] = {}  # with the time when they were read
        self._failed_s: float | None = None

    def signing_key(self, *, now_s: int, purpose: Purpose = Purpose.RECEIPT) -> SigningKey:
        """This environment's key for a purpose; made, with one call of KMS, at first use and an hour before it expires.

        Raises PlatformUnavailableError.
        """
        key = self._signing_keys.get(purpose)
        if key is None or key.expires_s - now_s < _RENEW_S:
            root_key_id = self._first[purpose]
            key = new_signing_key(
                purpose=purpose,
                now_s=now_s,
                root_key_id=_kid(root_key_id),
                root_sign=partial(self._root_sign, root_key_id),
            )
            self._signing_keys[purpose] = key
        return key

    def jwks(self) -> dict[str, Any]:
        """The public root keys as a JSON Web Key Set (RFC 7517).

        Anyone may ask for them, so KMS is called once a root, not once a reader: each is kept for JWKS_AGE_S_MAX, and
        a failure for JWKS_FAILURE_S_MAX. Raises PlatformUnavailableError.
        """
        if self._failed_s is not None and self._is_newer(self._failed_s, JWKS_FAILURE_S_MAX):
            raise PlatformUnavailableError
        return {"keys": [self._root(key_id) for key_id in self._purposes]}

    def check(self) -> None:
        """Raises PlatformUnavailableError unless KMS answers for each root now."""
        for key_id in self._purposes:
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

    def _root_sign(self, root_key_id: str, data: bytes) -> bytes:
        try:
            der = self._client.sign(
                KeyId=root_key_id,
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
        jwk = {**ECAlgorithm.to_jwk(public, as_dict=True), "kid": _kid(key_id), "use": "sig", "alg": "ES256"}
        purpose = self._purposes[key_id]
        return jwk if purpose is None else {**jwk, "purpose": purpose}


def _kid(key_id: str) -> str:
    """The last part of a key's ARN: short enough to stand in every receipt."""
    return key_id.rpartition("/")[2]
