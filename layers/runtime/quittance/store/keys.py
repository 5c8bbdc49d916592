"""The signing keys: an Ed25519 key for each purpose and environment, certified by root keys that never leave KMS."""

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
    """Creates signing keys and publishes the public root keys.

    `root_key_ids` are the KMS keys (ECC_NIST_P256) of each purpose. The first one signs certificates. The others stay
    published, so that statements signed under former roots can always be verified. `without_purpose` are old roots from
    before keys had purposes; they sign nothing any more. `clock` returns seconds. The default is wall-clock time,
    because the monotonic clock may stop while Lambda freezes an environment. Raises ValueError for a key that is named
    twice.
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
            msg = "a root key must have one purpose and be named once: check the root key parameters of the template"
            raise ValueError(msg)
        self._clock = clock
        self._signing_keys: dict[Purpose, SigningKey] = {}
        self._roots: dict[str, tuple[float, dict[str, Any]]] = {}  # with the time at which they were read
        self._failed_s: float | None = None

    def signing_key(self, *, now_s: int, purpose: Purpose = Purpose.RECEIPT) -> SigningKey:
        """This environment's key for a purpose.

        One call of KMS certifies a new key at first use and an hour before the key expires. Raises
        PlatformUnavailableError.
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

        The route is public, so KMS must not be called for each request: a root is cached for JWKS_AGE_S_MAX, and a
        failure for JWKS_FAILURE_S_MAX. Raises PlatformUnavailableError.
        """
        if self._failed_s is not None and self._is_newer(self._failed_s, JWKS_FAILURE_S_MAX):
            raise PlatformUnavailableError
        return {"keys": [self._root(key_id) for key_id in self._purposes]}

    def check(self) -> None:
        """Calls KMS for each root. Raises PlatformUnavailableError if a call fails."""
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
        """Whether a time is less than `age_s_max` ago. False if it is in the future because the clock was set back."""
        return 0 <= self._clock() - then_s < age_s_max

    def _root_sign(self, root_key_id: str, data: bytes) -> bytes:
        try:
            der = self._client.sign(
                KeyId=root_key_id,
                Message=data,  # a certificate is far below 4,096 bytes, the most that KMS hashes itself
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
    """The last part of a key's ARN, short enough for every receipt."""
    return key_id.rpartition("/")[2]
