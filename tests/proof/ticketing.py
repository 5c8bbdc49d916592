"""Tickets for tests: the key of a channel, and a compact JWS that is put together by hand (RFC 7515 §7.1)."""

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from quittance.ledger.channels import ticket_escrow_id
from quittance.ledger.credits import format_credits
from quittance.ledger.escrow import Escrow, Ticket, TicketProof
from tests.proof.roots import encode

HEADER = {"alg": "EdDSA", "typ": "quittance-ticket+jwt"}
CLOSE_HEADER = {"alg": "EdDSA", "typ": "quittance-channel-close+jwt"}
ISSUER, PAYER, SALT, VALUE = "urn:quittance:test", "user-1", "salt-1", 10_000
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def public(key: Ed25519PrivateKey) -> str:
    """The `x` of a key's JWK."""
    return encode(key.public_key().public_bytes_raw())


def jwk(key: Ed25519PrivateKey) -> dict[str, Any]:
    """A key's public JWK."""
    return {"kty": "OKP", "crv": "Ed25519", "x": public(key)}


def named(*, issuer: str = ISSUER, payer: str = PAYER, salt: str = SALT, key: str = "", value: int = VALUE) -> str:
    """The id of a channel as docs/receipts.md defines it."""
    text = "".join(f"{len(part)}:{part}" for part in (issuer, payer, salt, key or public(KEY), str(value)))
    return "chn_" + base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower()[:26]


def asked(**changes: Any) -> dict[str, Any]:
    """The claims of a ticket; a change to None leaves one out."""
    plain: dict[str, Any] = {
        "iss": ISSUER,
        "channel": named(),
        "n": 7,
        "exp": 1_800_000_600,
        "agent_id": "agt_1",
        "input_sha256": "cc" * 32,
        "budget": "0.025",
    }
    return {name: value for name, value in (plain | changes).items() if value is not None}


def jws(payload: object, header: object = HEADER, key: Ed25519PrivateKey = KEY) -> str:
    """A compact JWS. Header and payload are objects, or text in place of their JSON."""
    header, payload = (
        part if isinstance(part, str) else json.dumps(part, separators=(",", ":")) for part in (header, payload)
    )
    signed = f"{encode(header.encode())}.{encode(payload.encode())}"
    return f"{signed}.{encode(key.sign(signed.encode()))}"


def claim(**changes: Any) -> dict[str, Any]:
    """What a receipt states of a ticket."""
    plain = {
        "channel": named(),
        "salt": SALT,
        "key": public(KEY),
        "ticket_value": str(VALUE),
        "n": 7,
        "tickets": 3,
        "signed": jws(asked()),
    }
    return plain | changes


def paid_by_ticket(escrow: Escrow, *, issuer: str, value: int = 100_000, number: int = 7, **changes: Any) -> Escrow:
    """An escrow that a ticket pays; `changes` are those of the ticket's claims."""
    channel = named(issuer=issuer, payer=escrow.payer, value=value)
    plain = {
        "iss": issuer,
        "channel": channel,
        "n": number,
        "exp": escrow.funded_ms // 1_000 + 600,
        "agent_id": escrow.agent_id,
        "input_sha256": escrow.input_sha256,
        "budget": format_credits(escrow.budget_micro),
        "acceptance_sha256": escrow.task_rules_sha256,
    }
    signed = jws({name: content for name, content in (plain | changes).items() if content is not None})
    return replace(
        escrow,
        escrow_id=ticket_escrow_id(channel, number),
        task_id=f"{channel}.{number}",
        ticket=Ticket(channel, number, -(-escrow.budget_micro // value), TicketProof(SALT, public(KEY), value, signed)),
    )
