"""Each key has one purpose: no other key may sign its statements. Statements from before purposes stay valid.

`before_purposes.json` was made with the older code: one root without a purpose, one certificate, and a receipt,
a checkpoint and a webhook signature under it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quittance.proof import card, log, receipt, statement, webhook
from quittance.proof.statement import Flaw, ProofError, Purpose, SigningKey, StatementType
from tests.proof.roots import NOW_S, Root, encode, key_set, parse, part

BEFORE = json.loads((Path(__file__).parent / "before_purposes.json").read_text())
TYPES = {
    Purpose.RECEIPT: receipt.RECEIPT,
    Purpose.CHECKPOINT: log.CHECKPOINT,
    Purpose.WEBHOOK: webhook.WEBHOOK,
    Purpose.CARD: card.CARD,
}
ROOTS = {purpose: Root(f"root-{purpose}", purpose) for purpose in Purpose}
KEYS = {purpose: root.certify() for purpose, root in ROOTS.items()}
JWKS = key_set(*ROOTS.values())
OLDER = [purpose for purpose in Purpose if TYPES[purpose].older]
OTHERS = [(signer, claimed) for signer in Purpose for claimed in Purpose if signer is not claimed]


def as_thief(statement_type: StatementType, key: SigningKey) -> str:
    """A statement of a type, signed without our check of the key's purpose."""
    return statement.sign({}, key, replace(statement_type, purpose=key.purpose))


def certificate(root: Root, key: SigningKey, purpose: object) -> str:
    """The key's certificate with another purpose (None: without one), signed by a root."""
    payload = {**parse(key.certificate).payload, "purpose": purpose}
    if purpose is None:
        del payload["purpose"]
    content = f"{part({'alg': 'ES256', 'kid': root.key_id, 'typ': statement.CERTIFICATE_TYPE})}.{part(payload)}"
    return f"{content}.{encode(root.sign(content.encode()))}"


def refused(token: str, statement_type: StatementType, jwks: dict[str, Any] = JWKS) -> str:
    with pytest.raises(ProofError) as caught:
        statement.verify(token, jwks, statement_type)
    assert caught.value.flaw is Flaw.SIGNATURE
    return str(caught.value)


@pytest.mark.parametrize("purpose", Purpose)
def test_a_key_signs_statements_of_its_purpose(purpose: Purpose) -> None:
    assert statement.verify(statement.sign({"a": 1}, KEYS[purpose], TYPES[purpose]), JWKS, TYPES[purpose]).claims


@pytest.mark.parametrize(("signer", "claimed"), OTHERS)
def test_a_key_signs_no_statement_of_another_purpose(signer: Purpose, claimed: Purpose) -> None:
    with pytest.raises(ValueError, match=f"a key for the purpose {signer} must not sign"):
        statement.sign({}, KEYS[signer], TYPES[claimed])
    assert f"is for the purpose '{signer}'" in refused(as_thief(TYPES[claimed], KEYS[signer]), TYPES[claimed])


@pytest.mark.parametrize(("signer", "claimed"), OTHERS)
def test_a_root_certifies_no_key_for_another_purpose(signer: Purpose, claimed: Purpose) -> None:
    """A function that may sign with one root (`webhook`, `execute`) gains nothing by naming another purpose."""
    key = KEYS[signer]
    for stated in (claimed, None):
        forged = replace(key, certificate=certificate(ROOTS[signer], key, stated))
        assert f"is for the purpose '{signer}'" in refused(as_thief(TYPES[claimed], forged), TYPES[claimed])


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("stated", [None, "", "other", 1, ["receipt", "checkpoint", "webhook"], {}])
def test_a_certificate_must_state_the_purpose_of_its_root(purpose: Purpose, stated: object) -> None:
    key = KEYS[purpose]
    forged = replace(key, certificate=certificate(ROOTS[purpose], key, stated))
    assert "the key certificate states the purpose" in refused(as_thief(TYPES[purpose], forged), TYPES[purpose])


@pytest.mark.parametrize("purpose", Purpose)
def test_a_key_set_without_its_purposes_proves_nothing(purpose: Purpose) -> None:
    """Otherwise every root of a key set that was copied without them could certify keys for every purpose."""
    bare = {"keys": [{name: key[name] for name in key if name != "purpose"} for key in JWKS["keys"]]}
    token = statement.sign({}, KEYS[purpose], TYPES[purpose])
    sentence = "states no purpose of the root key" if purpose in OLDER else "is older than a signed card"
    assert sentence in refused(token, TYPES[purpose], bare)


@pytest.mark.parametrize("jwks", [BEFORE["jwks"], {"keys": [*JWKS["keys"], *BEFORE["jwks"]["keys"]]}])
def test_statements_from_before_purposes_stay_valid(jwks: dict[str, Any]) -> None:
    assert receipt.verify(BEFORE["receipt"], jwks)["task"] == "task-1"
    assert log.verify_checkpoint(BEFORE["checkpoint"], jwks).size == 0
    url, now_ms = "https://example.com/hook", NOW_S * 1_000
    assert webhook.verify(b"{}", BEFORE["webhook"], url=url, jwks=jwks, now_ms=now_ms).event_id == "task.a.released"


@pytest.mark.parametrize("purpose", Purpose)
def test_an_old_root_with_a_purpose_validates_nothing_old(purpose: Purpose) -> None:
    """If an operator lists an old root key with a purpose, none of its old certificates is valid."""
    (root,) = BEFORE["jwks"]["keys"]
    jwks = {"keys": [{**root, "purpose": purpose}]}
    for old in OLDER:
        assert "purpose" in refused(BEFORE[old], TYPES[old], jwks)


def test_a_root_without_purpose_signs_no_agent_card() -> None:
    """Cards are newer than purposes, so an old root that was stolen makes none."""
    root = Root("old-root")
    made = root.certify()
    key = replace(made, certificate=certificate(root, made, None))
    (bare,) = root.jwks()["keys"]
    del bare["purpose"]
    token = as_thief(receipt.RECEIPT, key)
    assert statement.verify(token, {"keys": [bare]}, receipt.RECEIPT).claims == {}
    token = as_thief(card.CARD, key)
    assert "is older than a signed card" in refused(token, card.CARD, {"keys": [bare]})


@pytest.mark.parametrize("purpose", [None, "", 1, [], {}])
def test_a_root_with_a_malformed_purpose_is_unusable(purpose: object) -> None:
    jwks = {"keys": [{**ROOTS[Purpose.RECEIPT].jwks()["keys"][0], "purpose": purpose}]}
    token = statement.sign({}, KEYS[Purpose.RECEIPT], receipt.RECEIPT)
    with pytest.raises(ProofError, match="is not a usable ES256 key"):
        statement.verify(token, jwks, receipt.RECEIPT)


def test_duplicate_roots_of_a_key_set_must_be_equal() -> None:
    token = statement.sign({}, KEYS[Purpose.RECEIPT], receipt.RECEIPT)
    (root,) = ROOTS[Purpose.RECEIPT].jwks()["keys"]
    assert statement.verify(token, {"keys": [root, root]}, receipt.RECEIPT)
    bare = {name: root[name] for name in root if name != "purpose"}
    for twice in ([root, bare], [bare, root], [root, {**root, "purpose": "webhook"}]):
        with pytest.raises(ProofError, match="twice, with different members"):
            statement.verify(token, {"keys": twice}, receipt.RECEIPT)
