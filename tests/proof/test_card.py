"""Signed A2A agent cards: the form that the specification demands, and that every change of a card is noticed."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quittance.acceptance.contract import Contract
from quittance.acceptance.rules import Rules, rules_json
from quittance.agent import Agent, AgentState, Terms, Upload, Version
from quittance.api.a2a import agent_card
from quittance.limits import CARD_BYTES_MAX, CARD_EXAMPLE_CHARS_MAX, COUNT_MAX
from quittance.proof import card, statement
from quittance.proof import verify as verify_command
from quittance.proof.statement import CERTIFICATE_SECONDS, Flaw, ProofError, Purpose
from tests.proof.roots import NOW_S, Root, decode, key_set, part

NOW_MS = NOW_S * 1_000
ROOT = Root("card-root", Purpose.CARD)
KEY = ROOT.certify()
JWKS = key_set(ROOT, Root("receipt-root"))
CONTRACT = Contract.model_validate(
    {
        "input_schema": {"type": "object"},
        "tags": ["text", "count"],
        "examples": [
            {"name": "counts", "input": {"text": "é \u2028 \U0001f600"}},
            {"name": "long", "input": {"text": "x" * CARD_EXAMPLE_CHARS_MAX}},
            {"name": "bytes", "input_base64": "e30="},
        ],
    }
)
TERMS = Terms('{"type":"flat","price":"0.01"}', 2**20, 10, 10**6)
VERSION = Version("a" * 64, "key", "b" * 64, "engine", "c" * 64, number=3, contract_sha256="d" * 64)
AGENT = Agent("agt_x", "owner", "Word count", "", 0, TERMS, Upload(3, AgentState.ACTIVE, TERMS), VERSION)

# The members of A2A 1.0 (specification/a2a.proto of a2aproject/A2A): true for those that are REQUIRED.
FORMS: dict[str, dict[str, bool]] = {
    "card": {
        **dict.fromkeys(("name", "description", "supportedInterfaces", "version", "capabilities"), True),
        **dict.fromkeys(("defaultInputModes", "defaultOutputModes", "skills"), True),
        **dict.fromkeys(("provider", "documentationUrl", "securitySchemes", "securityRequirements"), False),
        **dict.fromkeys(("signatures", "iconUrl"), False),
    },
    "skill": {
        **dict.fromkeys(("id", "name", "description", "tags"), True),
        **dict.fromkeys(("examples", "inputModes", "outputModes", "securityRequirements"), False),
    },
    "capabilities": dict.fromkeys(("streaming", "pushNotifications", "extensions", "extendedAgentCard"), False),
    "extension": dict.fromkeys(("uri", "description", "required", "params"), False),
    "signature": {"protected": True, "signature": True, "header": False},
}


def unsigned(contract: Contract = CONTRACT, agent: Agent = AGENT) -> dict[str, Any]:
    return agent_card(
        agent,
        VERSION,
        contract,
        root="/prod",
        issuer="urn:quittance:test",
        token_issuer="https://issuer.test",
        now_ms=NOW_MS,
    )


SIGNED = card.sign(unsigned(), KEY)


def assert_form(name: str, value: dict[str, Any]) -> None:
    form = FORMS[name]
    assert {member for member, required in form.items() if required} <= value.keys() <= form.keys()
    for member, found in value.items():
        # Section 8.4.1: a member that is not required and has its default value is absent from what is signed.
        assert form[member] or found not in ("", [], {}), member


def verify(changed: Any, jwks: dict[str, Any] = JWKS, now_ms: int | None = NOW_MS) -> card.VerifiedCard:
    return card.verify(changed if isinstance(changed, bytes) else json.dumps(changed), jwks, now_ms=now_ms)


def refused(changed: Any, jwks: dict[str, Any] = JWKS, now_ms: int | None = NOW_MS) -> ProofError:
    with pytest.raises(ProofError) as caught:
        verify(changed, jwks, now_ms)
    return caught.value


@pytest.mark.parametrize("contract", [CONTRACT, Contract()])
def test_card_has_the_form_that_a2a_demands(contract: Contract) -> None:
    made = card.sign(unsigned(contract), KEY)
    assert_form("card", made)
    assert_form("capabilities", made["capabilities"])
    for extension in made["capabilities"]["extensions"]:
        assert_form("extension", extension)
    for skill in made["skills"]:
        assert_form("skill", skill)
    for signature in made["signatures"]:
        assert_form("signature", signature)
        header = json.loads(decode(signature["protected"]))
        assert (header["alg"], header["typ"], header["kid"]) == ("EdDSA", "JOSE", KEY.key_id)


def test_card_claims_no_interface_that_the_platform_lacks() -> None:
    made = unsigned()
    assert made["supportedInterfaces"] == []
    (extension,) = made["capabilities"]["extensions"]
    assert extension["required"] is True, "a client that knows only A2A must not try"
    assert extension["params"]["execute"] == {"method": "POST", "path": "/prod/api/v1/economic/tasks/execute"}
    assert made["capabilities"]["streaming"] is made["capabilities"]["pushNotifications"] is False


def test_card_describes_the_contract() -> None:
    made = unsigned()
    (skill,) = made["skills"]
    assert skill["tags"] == ["text", "count"]
    assert skill["examples"] == ['{"text":"é \u2028 \U0001f600"}'], "no long input and no bytes"
    assert made["defaultInputModes"] == ["application/json"]
    assert made["defaultOutputModes"] == ["application/octet-stream"]
    rules = replace(TERMS, rules=rules_json(Rules(json_schema=True)))
    assert unsigned(Contract(), replace(AGENT, terms=rules))["defaultOutputModes"] == ["application/json"]
    assert unsigned(Contract())["defaultInputModes"] == ["application/octet-stream"]
    assert made["version"] == "3"


def test_signed_card_verifies_with_the_root_keys() -> None:
    found = verify(SIGNED)
    assert (found.issuer, found.agent_id, found.issued_ms) == ("urn:quittance:test", "agt_x", NOW_MS)
    assert found.card == unsigned()
    assert found.valid_until_ms == (NOW_S + CERTIFICATE_SECONDS) * 1_000


def test_spelling_of_a_card_does_not_matter() -> None:
    """Any JSON library may read a card and write it again."""
    reordered = json.dumps(dict(reversed(SIGNED.items())), indent=3, ensure_ascii=False).encode()
    assert verify(reordered).card == unsigned()
    doubles = json.dumps(SIGNED).replace(f'"issuedAt": {NOW_MS}', f'"issuedAt": {NOW_MS}.0')
    assert doubles != json.dumps(SIGNED)
    assert verify(doubles.encode()).card == unsigned()


def members(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(*path, name) for name, _ in pairs]
    return [inner for name, child in pairs for inner in members(child, (*path, name))] + found


@pytest.mark.parametrize("path", members(SIGNED), ids=str)
@pytest.mark.parametrize("change", ["replaced", "removed", "added to"])
def test_a_changed_card_does_not_verify(path: tuple[Any, ...], change: str) -> None:
    changed = json.loads(json.dumps(SIGNED))
    holder = changed
    for name in path[:-1]:
        holder = holder[name]
    if change == "removed":
        del holder[path[-1]]
    elif change == "added to" and isinstance(holder, dict):
        holder["added"] = "x"
    else:
        holder[path[-1]] = "another"
    refused(changed)


def test_card_of_another_platform_does_not_verify() -> None:
    assert refused(SIGNED, key_set(Root("card-root", Purpose.CARD))).flaw is Flaw.SIGNATURE
    assert refused(SIGNED, key_set(Root("other", Purpose.CARD))).flaw is Flaw.SIGNATURE


def test_keys_of_other_purposes_sign_no_card() -> None:
    for purpose in set(Purpose) - {Purpose.CARD}:
        root = Root(purpose=purpose)
        with pytest.raises(ValueError, match="must not sign a signed card"):
            card.sign(unsigned(), root.certify())
        thief = replace(root.certify(), purpose=Purpose.CARD)
        assert refused(card.sign(unsigned(), thief), key_set(root)).flaw is Flaw.SIGNATURE


def test_a_receipt_is_no_signature_of_a_card() -> None:
    """A key for cards signs nothing that passes for another statement, whose `typ` differs."""
    protected, signature = statement.sign_detached(b"{}", KEY, card.CARD)
    from quittance.proof import receipt

    with pytest.raises(ProofError, match="not of the type"):
        receipt.verify(statement.attached(protected, b"{}", signature), JWKS)


@pytest.mark.parametrize(
    ("now_ms", "valid"),
    [
        (None, True),
        (NOW_MS, True),
        ((NOW_S + CERTIFICATE_SECONDS) * 1_000 - 1, True),
        ((NOW_S + CERTIFICATE_SECONDS) * 1_000, False),
        (0, False),
    ],
)
def test_card_is_valid_as_long_as_its_key(now_ms: int | None, valid: bool) -> None:
    if valid:
        verify(SIGNED, now_ms=now_ms)
    else:
        assert refused(SIGNED, now_ms=now_ms).flaw is Flaw.TIMES


def test_card_issued_outside_the_validity_of_its_key_does_not_verify() -> None:
    made = unsigned()
    made["capabilities"]["extensions"][0]["params"]["issuedAt"] = NOW_MS + CERTIFICATE_SECONDS * 1_000
    assert refused(card.sign(made, KEY), now_ms=None).flaw is Flaw.TIMES


def test_one_valid_signature_of_several_is_enough() -> None:
    (own,) = SIGNED["signatures"]
    foreign = {"protected": part({"alg": "ES256", "kid": "x", "typ": "JOSE"}), "signature": own["signature"]}
    assert verify({**SIGNED, "signatures": [foreign, own]}).agent_id == "agt_x"
    for wrong in ([], None, "x", [own] * 9, [foreign], [{**own, "header": {"a": 1}}], [{**own, "x": 1}]):
        refused({**SIGNED, "signatures": wrong})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"signatures": [], "signatures": []}',
        b"[" * 100_000,
        b'{"a": 1.5, "signatures": [1]}',
        b'{"a": 1e400, "signatures": [1]}',
        b'{"\\ud800": 1, "signatures": [1]}',
        b" " * (CARD_BYTES_MAX + 1),
    ],
)
def test_malformed_cards_are_refused(text: bytes) -> None:
    assert refused(text).flaw is Flaw.FORM


def test_a_card_at_the_limit_of_its_size_verifies() -> None:
    made = {**unsigned(), "name": "x" * 100_000}
    text = json.dumps(card.sign(made, KEY)).encode()
    assert verify(text.ljust(CARD_BYTES_MAX)).card == made
    assert refused(text.ljust(CARD_BYTES_MAX + 1)).flaw is Flaw.FORM


# RFC 8785 section 3.2.3 (names by UTF-16 code units) and appendix B, and what it says of strings.
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7},
         '{"\\r":2,"1":4,"\u0080":6,"\u00f6":7,"\u20ac":1,"\U0001f600":5,"\ufb33":3}'),
        ({"literals": [None, True, False]}, '{"literals":[null,true,false]}'),
        ("\u20ac$\u000f\nA'B\"\\\"/\x7f\u2028", '"\u20ac$\\u000f\\nA\'B\\"\\\\\\"/\x7f\u2028"'),
        ([0, -0, 1, -1, COUNT_MAX, -COUNT_MAX], f"[0,0,1,-1,{COUNT_MAX},-{COUNT_MAX}]"),
        ({}, "{}"),
    ],
)  # fmt: skip
def test_canonical_text_is_that_of_rfc_8785(value: Any, text: str) -> None:
    assert card.jcs(value) == text


@pytest.mark.parametrize("number", [COUNT_MAX + 1, -COUNT_MAX - 1, 0.5, 1e300])
def test_numbers_that_are_not_exact_doubles_are_refused(number: float) -> None:
    with pytest.raises(ProofError):
        card.jcs({"a": number})


def test_signature_is_a_plain_jws_of_the_canonical_card() -> None:
    """Computed here from the specification alone (8.4.2), with no code of ours."""
    (signature,) = SIGNED["signatures"]
    bare = {name: value for name, value in SIGNED.items() if name != "signatures"}
    payload = json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    signed = f"{signature['protected']}.{base64.urlsafe_b64encode(payload).decode().rstrip('=')}".encode()
    KEY.private.public_key().verify(decode(signature["signature"]), signed)


def test_command_verifies_a_stored_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, keys = tmp_path / "card.json", tmp_path / "jwks.json"
    keys.write_text(json.dumps(JWKS))
    words = ["--card", str(file), "--keys", str(keys)]
    file.write_text(json.dumps(SIGNED))
    assert verify_command.main(words) == 0
    assert "signed it for the agent 'agt_x'" in capsys.readouterr().out
    file.write_text(json.dumps(SIGNED).replace("Word count", "Word\x1b count"))
    assert verify_command.main(words) == verify_command.EXITS[Flaw.FORM][0]
    file.write_text(json.dumps(SIGNED).replace("Word count", "Other"))
    assert verify_command.main(words) == verify_command.EXITS[Flaw.SIGNATURE][0]
    file.write_bytes(b" " * (CARD_BYTES_MAX + 1))
    assert verify_command.main(words) == 2
    with pytest.raises(SystemExit):
        verify_command.main([*words, "receipt.jws"])
