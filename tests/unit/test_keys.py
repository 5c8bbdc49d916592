"""The receipt keys over a stand-in for KMS: one signature of the root an environment, and roots that stay."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quittance import certified, receipt
from quittance.certified import CERTIFICATE_SECONDS, ProofError
from quittance.escrow import Escrow, expire
from quittance.run import Meter
from quittance.store.keys import Keys
from tests.unit.roots import NOW_S, parse

OLD, NEW = (f"arn:aws:kms:eu-central-1:111122223333:key/{name}" for name in ("old", "new"))


class Kms:
    """Holds a key for every name that it is asked for, and counts what it signs."""

    def __init__(self) -> None:
        self.keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in (OLD, NEW)}
        self.signed: list[str] = []

    def sign(self, *, KeyId: str, Message: bytes, **_: Any) -> dict[str, bytes]:  # noqa: N803 - as KMS names them
        self.signed.append(KeyId)
        return {"Signature": self.keys[KeyId].sign(Message, ec.ECDSA(SHA256()))}

    def get_public_key(self, *, KeyId: str) -> dict[str, bytes]:  # noqa: N803 - as KMS names them
        public = self.keys[KeyId].public_key()
        return {"PublicKey": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)}


@pytest.fixture(scope="module")
def statement(new_escrow: Any) -> dict[str, Any]:
    escrow: Escrow = new_escrow()
    settled = expire(escrow, now_ms=escrow.expires_ms)
    return receipt.claims(escrow, settled, issuer="i", meter=Meter(), limits=None, engine="", config_sha256="")


def test_a_receipt_of_a_former_root_verifies_from_the_published_set(statement: dict[str, Any]) -> None:
    kms = Kms()
    before = receipt.sign(statement, Keys(kms, root_key_ids=[OLD]).signing_key(now_s=NOW_S))
    rotated = Keys(kms, root_key_ids=[NEW, OLD])
    after = receipt.sign(statement, rotated.signing_key(now_s=NOW_S))
    assert [key["kid"] for key in rotated.jwks()["keys"]] == ["new", "old"]
    for token, root in ((before, "old"), (after, "new")):
        assert parse(parse(token).header["cert"]).header["kid"] == root
        assert receipt.verify(token, rotated.jwks()) == statement
    with pytest.raises(ProofError, match="unknown root key 'old'"):
        receipt.verify(before, Keys(kms, root_key_ids=[NEW]).jwks())


def test_only_the_newest_root_signs_and_only_once_for_thousands(statement: dict[str, Any]) -> None:
    kms = Kms()
    keys = Keys(kms, root_key_ids=[NEW, OLD])
    for settlement in range(1_000):
        receipt.sign(statement, keys.signing_key(now_s=NOW_S + settlement))
    assert kms.signed == [NEW]
    keys.signing_key(now_s=NOW_S + CERTIFICATE_SECONDS)
    assert kms.signed == [NEW, NEW]


def test_a_key_is_drawn_from_the_kernel_which_no_snapshot_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = bytes(range(32))
    monkeypatch.setattr(certified.os, "urandom", lambda count: drawn[:count])
    key = Keys(Kms(), root_key_ids=[NEW]).signing_key(now_s=NOW_S)
    assert key.private.private_bytes_raw() == drawn
