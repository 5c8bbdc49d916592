"""Signed A2A agent cards: who the platform says an agent is, under the receipts' chain of keys. Pure.

A card follows the Agent2Agent protocol, version 1.0. It is signed as its section 8.4 says: a JWS (RFC 7515) whose
payload is the card without `signatures`, in the JSON Canonicalization Scheme (RFC 8785). The payload is not repeated in
the signature. The protected header contains the certificate of the signing key, as that of a receipt does, so a card is
verified with the platform's published root keys alone. See docs/contract.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from quittance import canonical_json
from quittance.limits import CARD_BYTES_MAX, COUNT_MAX, TOKEN_CHARS_MAX
from quittance.proof import statement
from quittance.proof.statement import Flaw, ProofError, Purpose, SigningKey, StatementType, StrictModel

EXTENSION: Final = "urn:quittance:a2a:task:1"
"""The A2A extension that says how the agent is called and which version of it the card is about."""
CARD: Final = StatementType(
    "JOSE", "signed card", Purpose.CARD, chars_max=CARD_BYTES_MAX * 4 // 3 + TOKEN_CHARS_MAX, older=False
)
_SIGNATURES_MAX: Final = 8


class _Signature(StrictModel):
    protected: Annotated[str, Field(max_length=TOKEN_CHARS_MAX)]
    signature: Annotated[str, Field(max_length=TOKEN_CHARS_MAX)]
    header: None = None  # nothing that is not signed


class _Params(BaseModel):
    """The members of the extension's `params` that are checked; others are part of what is signed too."""

    model_config = ConfigDict(strict=True, frozen=True)

    issuer: Annotated[str, Field(max_length=1_000, alias="issuer")]
    agent_id: Annotated[str, Field(max_length=1_000, alias="agentId")]
    issued_at: Annotated[int, Field(ge=0, le=COUNT_MAX, alias="issuedAt")]


@dataclass(frozen=True, slots=True)
class VerifiedCard:
    """A card whose signature is valid: who issued it, about which agent and when, and until when its key is valid."""

    card: dict[str, Any]
    issuer: str
    agent_id: str
    issued_ms: int
    valid_until_ms: int


def sign(card: Mapping[str, Any], key: SigningKey) -> dict[str, Any]:
    """The card with its signature. Raises ValueError for a key of another purpose."""
    protected, signature = statement.sign_detached(jcs(card).encode(), key, CARD)
    return {**card, "signatures": [{"protected": protected, "signature": signature}]}


def verify(text: str | bytes, jwks: Mapping[str, Any], *, now_ms: int | None) -> VerifiedCard:
    """The card in a JSON text, if a platform with this key set signed it. Raises ProofError.

    `now_ms` must be within the validity of the signing key; None accepts a stored card of any age.
    """
    card = _read(text)
    signatures = card.pop("signatures", None)
    if not isinstance(signatures, list) or not 0 < len(signatures) <= _SIGNATURES_MAX:
        raise ProofError(Flaw.FORM, f"the agent card must have from 1 to {_SIGNATURES_MAX} signatures")
    payload = jcs(card).encode()
    failures = []
    for each in signatures:
        try:
            found = statement.read(_Signature, each, "signature of the agent card")
            signed = statement.verify(statement.attached(found.protected, payload, found.signature), jwks, CARD)
        except ProofError as error:
            failures.append(error)
        else:
            return _verified(signed, now_ms)
    raise failures[0]


def _verified(signed: statement.VerifiedStatement, now_ms: int | None) -> VerifiedCard:
    card = signed.claims
    params = statement.read(_Params, _params(card), "agent card")
    signed.check_time(params.issued_at, "issuedAt")
    if now_ms is not None:
        signed.check_time(now_ms, "the present time")
    return VerifiedCard(card, params.issuer, params.agent_id, params.issued_at, signed.valid_until_s * 1_000)


def _params(card: Mapping[str, Any]) -> object:
    """The parameters of our extension; None if the card does not have it exactly once."""
    try:
        named = [found["params"] for found in card["capabilities"]["extensions"] if found["uri"] == EXTENSION]
    except (KeyError, TypeError):
        return None
    return named[0] if len(named) == 1 else None


def _read(text: str | bytes) -> dict[str, Any]:
    if len(text) > CARD_BYTES_MAX:
        raise ProofError(Flaw.FORM, f"the agent card has more than {CARD_BYTES_MAX} bytes")
    try:
        card = canonical_json.read(text)
    except canonical_json.JsonError as exc:
        raise ProofError(Flaw.FORM, f"the agent card {exc}") from exc
    if not isinstance(card, dict):
        raise ProofError(Flaw.FORM, "the agent card is not a JSON object")
    return card


def jcs(value: object) -> str:
    """The canonical text of a JSON value by RFC 8785. Raises ProofError for a number that is not whole or not exact.

    Names are sorted by their UTF-16 code units (section 3.2.3), unlike in our own canonical JSON. Cards of this
    platform contain no other numbers than whole ones within the range of a double.
    """
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, Mapping):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{encode_basestring(name)}:{jcs(value[name])}" for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join([jcs(item) for item in value]) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) or (isinstance(value, Decimal) and value == value.to_integral_value()):
        whole = int(value)
        if abs(whole) <= COUNT_MAX:
            return str(whole)
    raise ProofError(Flaw.FORM, "the agent card must have only whole numbers that a double represents exactly")
