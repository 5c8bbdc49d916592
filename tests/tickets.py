"""Payment channels for tests: a key, tickets and closing orders that it signs, a channel that is open.

A JOSE library signs, as any client can, and not the platform.
"""

import datetime
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from quittance.api.identity import Caller
from quittance.api.models import ChannelAnswer, ChannelRequest, TaskRequest
from quittance.ledger.credits import format_credits
from quittance.platform import Platform
from quittance.proof.ticket import CLOSE_TYPE, TICKET_TYPE
from quittance.usecases import channels

HOUR_S = 3_600
ISSUER = "urn:quittance:test"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def jwk(key: Ed25519PrivateKey = KEY) -> dict[str, str]:
    """The public key as a JWK."""
    return {"kty": "OKP", "crv": "Ed25519", "x": OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)["x"]}


def timestamp(at_ms: int) -> str:
    """A moment as a request has it."""
    return datetime.datetime.fromtimestamp(at_ms // 1_000, datetime.UTC).isoformat().replace("+00:00", "Z")


def asked(platform: Platform, **more: Any) -> dict[str, Any]:
    """The body of a request to open a channel of five tickets of 0.05 credits for an hour."""
    expires_at = timestamp(platform.now_ms() + HOUR_S * 1_000)
    plain = {"salt": "s", "key": jwk(), "ticket_value": "0.05", "tickets": 5, "expires_at": expires_at}
    return {name: value for name, value in {**plain, **more}.items() if value is not None}


def opened(platform: Platform, payer: str = "alice", **more: Any) -> ChannelAnswer:
    """A channel that is open; see `asked`."""
    request = ChannelRequest.model_validate(asked(platform, **more))
    return channels.open_channel(platform, Caller(payer), request)


def task(channel_id: str, n: int, agent_id: str, **more: Any) -> TaskRequest:
    """The request of a task that a ticket pays."""
    plain = {"task_id": f"{channel_id}.{n}", "agent_id": agent_id, "input": "x", "budget": "0.05"}
    return TaskRequest.model_validate(plain | more)


def claims_for(request: TaskRequest, *, exp: int, **changed: Any) -> dict[str, Any]:
    """The claims of a ticket for exactly this request, whose task_id names its number.

    `changed` replaces claims that follow from the request; one that is changed to None is left out.
    """
    channel_id, _, n = request.task_id.partition(".")
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "channel": channel_id,
        "n": int(n),
        "exp": exp,
        "agent_id": request.agent_id,
        "input_sha256": request.stdin.sha256,
        "budget": format_credits(request.budget_micro),
        "timeout": request.timeout,
        "acceptance_sha256": request.own_rules_sha256,
        "options_sha256": request.options_sha256,
    }
    return {name: value for name, value in (claims | changed).items() if value is not None}


def claims_of(platform: Platform, request: TaskRequest, **changed: Any) -> dict[str, Any]:
    """The claims of a ticket that can be used for ten minutes from now; see `claims_for`."""
    return claims_for(request, **({"exp": platform.now_ms() // 1_000 + 600} | changed))


def signed(
    claims: Mapping[str, Any], key: Ed25519PrivateKey = KEY, *, typ: str = TICKET_TYPE, algorithm: str = "EdDSA"
) -> str:
    """A compact JWS."""
    return jwt.encode(dict(claims), key, algorithm=algorithm, headers={"typ": typ})


def ticket(platform: Platform, request: TaskRequest, key: Ed25519PrivateKey = KEY, **changed: Any) -> str:
    """A signed ticket for exactly this request, with some claims changed."""
    return signed(claims_of(platform, request, **changed), key)


def order(platform: Platform, channel_id: str, key: Ed25519PrivateKey = KEY, **changed: Any) -> str:
    """A signed order to close a channel."""
    claims = {"iss": ISSUER, "channel": channel_id, "exp": platform.now_ms() // 1_000 + 600} | changed
    return signed(claims, key, typ=CLOSE_TYPE)
