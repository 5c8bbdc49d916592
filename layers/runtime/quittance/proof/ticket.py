"""Tickets: how the key of a payment channel asks for one task, and closes the channel. Pure.

A ticket is a compact JWS (RFC 7515) under the channel's Ed25519 key. It names the stack, the channel, one of its
numbers and the task: agent, digest of the input, budget, and what else the request contains. So whoever gets hold of a
ticket can do nothing but request that task once, and the receipt that contains the ticket proves that the channel's key
asked for exactly this task. No running sum is signed: tickets can be signed, sent and used in parallel and in any
order. See docs/howto/channels.md.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from quittance.ledger import channels
from quittance.ledger.channels import channel_id
from quittance.ledger.credits import parse_credits
from quittance.limits import TICKET_CHARS_MAX, TICKET_KID_CHARS_MAX, TICKET_NUMBER_MAX
from quittance.proof import statement
from quittance.proof.statement import Flaw, Jws, ProofError, StrictModel, quoted

TICKET_TYPE: Final = "quittance-ticket+jwt"
CLOSE_TYPE: Final = "quittance-channel-close+jwt"
LEEWAY_S: Final = 30
"""How far a signer's clock may differ from the platform's."""
_ALGORITHMS: Final = ("EdDSA", "Ed25519")  # RFC 8037; the name that RFC 9864 gave it later
_ED25519_BYTES: Final = 32
_FIELD: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _FIELD)  # of the curve -x² + y² = 1 + d·x²·y² (RFC 8032 §5.1)
_MEMBERS: Final = {"alg", "typ"}
_OPTIONAL: Final = frozenset({"kid"})  # some libraries always add it; the channel, not the token, names the key

_ChannelId = Annotated[str, Field(pattern=r"^chn_[a-z2-7]{26}$")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Issuer = Annotated[str, Field(max_length=1_000)]
_Seconds = Annotated[int, Field(ge=0, le=2**40)]


class CloseClaims(StrictModel):
    """The claims of an order to close a channel."""

    iss: _Issuer
    channel: _ChannelId
    exp: _Seconds


class TicketClaims(CloseClaims):
    """The claims of a ticket: the members of the request that it pays, as the request has them.

    `budget` is in credits, the most that the task may cost. `acceptance_sha256` is the digest of the request's rules,
    `options_sha256` that of its other members (see `options_sha256`); each is absent if the request has none.
    """

    n: Annotated[int, Field(ge=1, le=TICKET_NUMBER_MAX)]
    agent_id: Annotated[str, Field(min_length=1, max_length=100)]
    input_sha256: _Digest
    budget: Annotated[str, Field(max_length=24)]
    timeout: Annotated[int, Field(ge=1, le=2**20)] | None = None
    acceptance_sha256: _Digest | None = None
    options_sha256: _Digest | None = None

    @property
    def budget_micro(self) -> int:
        """The budget in micro-credits. Raises ProofError."""
        try:
            return parse_credits(self.budget)
        except ValueError as exc:
            sentence = f"the ticket has a wrong form: 'budget': {exc}"
            raise ProofError(Flaw.FORM, sentence) from exc


class TicketClaim(StrictModel):
    """What a receipt states of the ticket that paid: the parts of the channel's id, the numbers, the ticket itself."""

    channel: _ChannelId
    salt: Annotated[str, Field(min_length=1, max_length=100)]
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")]
    ticket_value: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,15}$")]
    n: Annotated[int, Field(ge=1, le=TICKET_NUMBER_MAX)]
    tickets: Annotated[int, Field(ge=1, le=TICKET_NUMBER_MAX)]
    signed: Annotated[str, Field(max_length=TICKET_CHARS_MAX)]


def read(token: str) -> tuple[TicketClaims, Jws]:
    """The claims of a ticket, not verified yet, and its parts for `check_signed`. Raises ProofError."""
    jws = _parse(token, "ticket", TICKET_TYPE)
    claims = statement.read(TicketClaims, jws.payload, "ticket")
    _ = claims.budget_micro
    return claims, jws


def read_close(token: str) -> tuple[CloseClaims, Jws]:
    """The claims of an order to close a channel, not verified yet, and its parts. Raises ProofError."""
    jws = _parse(token, "closing order", CLOSE_TYPE)
    return statement.read(CloseClaims, jws.payload, "closing order"), jws


def check_signed(jws: Jws, key: str, name: str = "ticket") -> None:
    """Raises ProofError unless a JWS is signed by the channel's key."""
    if not statement.is_signed_by(jws, key):
        raise ProofError(Flaw.SIGNATURE, f"the {name} is not signed by the channel's key")


def options_sha256(options: Mapping[str, object]) -> str | None:
    """The digest of a request's optional members, in JSON with sorted names and no spaces; None without any."""
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return None
    return hashlib.sha256(json.dumps(given, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def key_of(jwk: Mapping[str, Any]) -> str:
    """The `x` of an Ed25519 public key in a JWK (RFC 8037).

    Raises ValueError with a sentence for anything else: a private key, another curve, what is no point of the curve, a
    point of small order, under which anybody could sign.
    """
    if "d" in jwk:
        msg = "must be a public key: keep `d` to yourself, and make a new key if you have sent it"
        raise ValueError(msg)
    if (jwk.get("kty"), jwk.get("crv")) != ("OKP", "Ed25519"):
        msg = 'must be an Ed25519 public key as a JWK: {"kty": "OKP", "crv": "Ed25519", "x": …} (RFC 8037)'
        raise ValueError(msg)
    x = str(jwk.get("x"))
    try:
        data = base64.b64decode(x + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != _ED25519_BYTES or base64.urlsafe_b64encode(data).rstrip(b"=").decode() != x:
        msg = "must have as `x` 32 bytes in base64url without padding"
        raise ValueError(msg)
    y = int.from_bytes(data, "little") % 2**255
    if y >= _FIELD or not _is_on_curve(y):
        msg = "must have as `x` a point of the curve Ed25519: compare it with your key, part of it may be wrong"
        raise ValueError(msg)
    if y in _SMALL_ORDER:
        msg = "must not be a point of small order, under which anybody can sign"
        raise ValueError(msg)
    return x


def _is_on_curve(y: int) -> bool:
    """Whether a point has this y: x² = (y² - 1) / (d·y² + 1) must be a square, so the product of both must be one."""
    product = (y * y - 1) * (_D * y * y + 1) % _FIELD
    return pow(product, (_FIELD - 1) // 2, _FIELD) in {0, 1}


# The y coordinates of the eight points of small order of edwards25519. tests/proof/test_ticket.py computes them.
_SMALL_ORDER: Final = frozenset(
    {
        0,
        1,
        _FIELD - 1,
        2707385501144840649318225287225658788936804267575313519463743609750303402022,
        55188659117513257062467267217118295137698188065244968500265048394206261417927,
    }
)


def check_claim(claim: TicketClaim, *, issuer: str, payer: str) -> TicketClaims:
    """The claims of the ticket in a receipt, if the channel's key signed it and the channel's id commits to that key.

    The id commits to stack, payer, salt, key and ticket value. Raises ProofError.
    """
    named = channel_id(issuer=issuer, payer=payer, salt=claim.salt, key=claim.key, ticket_micro=int(claim.ticket_value))
    if named != claim.channel:
        sentence = f"the channel {claim.channel} is not that of this payer, key, salt and ticket value, {named}"
        raise ProofError(Flaw.CONTRADICTION, sentence)
    try:
        key_of({"kty": "OKP", "crv": "Ed25519", "x": claim.key})
    except ValueError as exc:
        raise ProofError(Flaw.FORM, f"the channel's key {exc}") from exc
    claims, jws = read(claim.signed)
    check_signed(jws, claim.key)
    for name, found, due in (
        ("iss", claims.iss, issuer),
        ("channel", claims.channel, claim.channel),
        ("n", claims.n, claim.n),
    ):
        if found != due:
            sentence = f"the ticket's {name} is {quoted(found)}, the receipt's {quoted(due)}"
            raise ProofError(Flaw.CONTRADICTION, sentence)
    needed = channels.tickets_needed(claims.budget_micro, int(claim.ticket_value))
    if needed != claim.tickets:
        sentence = f"the ticket's budget takes {needed} tickets, the receipt states {claim.tickets}"
        raise ProofError(Flaw.AMOUNTS, sentence)
    return claims


def _parse(token: str, name: str, typ: str) -> Jws:
    jws = statement.parse(token, name, typ, _MEMBERS, TICKET_CHARS_MAX, _OPTIONAL)
    if jws.header["alg"] not in _ALGORITHMS:
        sentence = f"the {name} is signed by the algorithm {quoted(jws.header['alg'])}, not {_ALGORITHMS[0]}"
        raise ProofError(Flaw.SIGNATURE, sentence)
    key_id = jws.header.get("kid", "")
    if not isinstance(key_id, str) or len(key_id) > TICKET_KID_CHARS_MAX:
        sentence = f"the {name}'s kid is not a string of at most {TICKET_KID_CHARS_MAX} characters; it may be left out"
        raise ProofError(Flaw.FORM, sentence)
    return jws
