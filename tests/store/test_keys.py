"""The signing keys with a fake KMS: few calls for many requests, and roots that stay published."""

from typing import Any

import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quittance.errors import PlatformUnavailableError
from quittance.ledger.escrow import Escrow, expire
from quittance.limits import JWKS_AGE_S_MAX, JWKS_FAILURE_S_MAX
from quittance.proof import receipt, statement
from quittance.proof.statement import CERTIFICATE_SECONDS, ProofError, Purpose
from quittance.run import Meter, Outcome, Run
from quittance.store.keys import Keys
from tests.proof import receipts
from tests.proof.roots import NOW_S, parse

NAMES = ("old", "new", "log", "hook", "card")
OLD, NEW, LOG, HOOK, CARD = (f"arn:aws:kms:eu-central-1:111122223333:key/{name}" for name in NAMES)
ROOTS = {Purpose.RECEIPT: [NEW], Purpose.CHECKPOINT: [LOG], Purpose.WEBHOOK: [HOOK], Purpose.CARD: [CARD]}


class Kms:
    """A fake KMS with a key for every name, which counts its calls."""

    def __init__(self) -> None:
        self.keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in (OLD, NEW, LOG, HOOK, CARD)}
        self.signed: list[str] = []
        self.shown: list[str] = []
        self.down: set[str] = set()

    def sign(self, *, KeyId: str, Message: bytes, **_: Any) -> dict[str, bytes]:  # noqa: N803 - as KMS names them
        self.signed.append(KeyId)
        return {"Signature": self.keys[KeyId].sign(Message, ec.ECDSA(SHA256()))}

    def get_public_key(self, *, KeyId: str) -> dict[str, bytes]:  # noqa: N803 - as KMS names them
        self.shown.append(KeyId)
        if KeyId in self.down:
            raise ClientError({"Error": {"Code": "KMSInternalException", "Message": ""}}, "GetPublicKey")
        public = self.keys[KeyId].public_key()
        return {"PublicKey": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)}


@pytest.fixture(scope="module")
def expired_claims(new_escrow: Any) -> dict[str, Any]:
    escrow: Escrow = new_escrow()
    settled = expire(escrow, now_ms=escrow.expires_ms)
    return receipts.claims_of(
        escrow, settled, issuer="i", run=Run(Outcome.SUCCEEDED, "", Meter(), limits=None), engine="", config_sha256=""
    )


def test_receipts_under_a_former_root_still_verify(expired_claims: dict[str, Any]) -> None:
    kms = Kms()
    before = receipts.sign(expired_claims, Keys(kms, root_key_ids={Purpose.RECEIPT: [OLD]}).signing_key(now_s=NOW_S))
    rotated = Keys(kms, root_key_ids={Purpose.RECEIPT: [NEW, OLD]})
    after = receipts.sign(expired_claims, rotated.signing_key(now_s=NOW_S))
    assert [key["kid"] for key in rotated.jwks()["keys"]] == ["new", "old"]
    for token, root in ((before, "old"), (after, "new")):
        assert parse(parse(token).header["cert"]).header["kid"] == root
        assert receipt.verify(token, rotated.jwks()) == expired_claims
    with pytest.raises(ProofError, match="unknown root key 'old'"):
        receipt.verify(before, Keys(kms, root_key_ids={Purpose.RECEIPT: [NEW]}).jwks())


def test_only_the_first_root_signs_one_certificate(expired_claims: dict[str, Any]) -> None:
    kms = Kms()
    keys = Keys(kms, root_key_ids={Purpose.RECEIPT: [NEW, OLD]})
    for settlement in range(1_000):
        receipts.sign(expired_claims, keys.signing_key(now_s=NOW_S + settlement))
    assert kms.signed == [NEW]
    keys.signing_key(now_s=NOW_S + CERTIFICATE_SECONDS)
    assert kms.signed == [NEW, NEW]


def test_signing_keys_use_the_kernels_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = bytes(range(32))
    monkeypatch.setattr(statement.os, "urandom", lambda count: drawn[:count])
    key = Keys(Kms(), root_key_ids={Purpose.RECEIPT: [NEW]}).signing_key(now_s=NOW_S)
    assert key.private.private_bytes_raw() == drawn


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


def test_jwks_calls_kms_once_for_each_root() -> None:
    kms, clock = Kms(), Clock()
    keys = Keys(kms, root_key_ids={Purpose.RECEIPT: [NEW, OLD]}, clock=clock)
    published = keys.jwks()
    for _ in range(1_000):
        assert keys.jwks() == published
    assert kms.shown == [NEW, OLD]


@pytest.mark.parametrize(("age_s", "calls"), [(0, 1), (JWKS_AGE_S_MAX - 1, 1), (JWKS_AGE_S_MAX, 2), (-1, 2)])
def test_a_root_is_cached_up_to_its_age_limit(age_s: int, calls: int) -> None:
    kms, clock = Kms(), Clock()
    keys = Keys(kms, root_key_ids={Purpose.RECEIPT: [NEW]}, clock=clock)
    keys.jwks()
    clock.now_s += age_s  # a clock that was set back must not prolong caching
    keys.jwks()
    assert kms.shown == [NEW] * calls


@pytest.mark.parametrize(("age_s", "calls"), [(0, 1), (JWKS_FAILURE_S_MAX - 1, 1), (JWKS_FAILURE_S_MAX, 2)])
def test_a_failed_read_of_the_roots_is_cached_briefly(age_s: int, calls: int) -> None:
    kms, clock = Kms(), Clock()
    keys = Keys(kms, root_key_ids={Purpose.RECEIPT: [NEW, OLD]}, clock=clock)
    kms.down = {OLD}
    with pytest.raises(PlatformUnavailableError):
        keys.jwks()
    clock.now_s += age_s
    with pytest.raises(PlatformUnavailableError):
        keys.jwks()
    assert kms.shown == [NEW] + [OLD] * calls, "the root that was read is still cached"
    kms.down = set()
    clock.now_s += JWKS_FAILURE_S_MAX
    assert [key["kid"] for key in keys.jwks()["keys"]] == ["new", "old"]


def test_check_calls_kms_for_each_root_despite_the_cache() -> None:
    kms = Kms()
    keys = Keys(kms, root_key_ids={Purpose.RECEIPT: [NEW, OLD]})
    keys.jwks()
    keys.check()
    assert kms.shown == [NEW, OLD] * 2
    kms.down = {OLD}
    with pytest.raises(PlatformUnavailableError):
        keys.check()
    assert len(keys.jwks()["keys"]) == 2, "the cached roots are still valid"


def test_each_purpose_has_its_own_root_and_key() -> None:
    kms = Kms()
    keys = Keys(kms, root_key_ids=ROOTS)
    made = {purpose: keys.signing_key(now_s=NOW_S, purpose=purpose) for purpose in Purpose}
    assert kms.signed == [NEW, LOG, HOOK, CARD]
    assert len({key.key_id for key in made.values()}) == 4
    for purpose, root in zip(Purpose, ("new", "log", "hook", "card"), strict=True):
        certificate = parse(made[purpose].certificate)
        assert (certificate.header["kid"], certificate.payload["purpose"]) == (root, purpose)
        assert keys.signing_key(now_s=NOW_S, purpose=purpose) is made[purpose]


def test_jwks_states_purposes_except_for_old_roots() -> None:
    published = Keys(Kms(), root_key_ids=ROOTS, without_purpose=[OLD]).jwks()["keys"]
    assert [(key["kid"], key.get("purpose")) for key in published] == [
        ("new", "receipt"), ("log", "checkpoint"), ("hook", "webhook"), ("card", "card"), ("old", None),
    ]  # fmt: skip
    assert "purpose" not in published[-1]


@pytest.mark.parametrize(
    ("roots", "without_purpose"),
    [
        ({Purpose.RECEIPT: [NEW], Purpose.WEBHOOK: [NEW]}, []),
        ({Purpose.RECEIPT: [NEW, OLD], Purpose.WEBHOOK: [HOOK, OLD]}, []),
        ({Purpose.RECEIPT: [NEW, NEW]}, []),
        ({Purpose.RECEIPT: [NEW]}, [NEW]),
        ({Purpose.RECEIPT: [NEW]}, ["new"]),
    ],
)
def test_a_root_with_two_purposes_is_rejected(roots: dict[Purpose, list[str]], without_purpose: list[str]) -> None:
    with pytest.raises(ValueError, match="a root key must have one purpose and be named once"):
        Keys(Kms(), root_key_ids=roots, without_purpose=without_purpose)
