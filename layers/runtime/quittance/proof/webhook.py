"""Webhooks: which URLs may be told, and how a delivery proves who sent it. Pure. See docs/howto/webhooks.md.

A delivery carries `Quittance-Signature`: a certified statement (see certified.py) of the body's digest, the URL that it
is sent to and the time. There is no shared secret: who has the platform's public key set can verify, nobody else can
sign, and what one receiver was sent proves nothing to another one, nor later.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from quittance.limits import WEBHOOK_AGE_MS_MAX, WEBHOOK_URL_CHARS_MAX
from quittance.proof import statement
from quittance.proof.statement import Flaw, ProofError, Purpose, SigningKey, StatementType, StrictModel, quoted

SIGNATURE_HEADER: Final = "Quittance-Signature"
EVENT_ID_HEADER: Final = "Quittance-Event-Id"
WEBHOOK: Final = StatementType("quittance-webhook+jwt", "webhook signature", Purpose.WEBHOOK)
_VERSION: Final = 1


class Signed(StrictModel):
    """What a signature states."""

    v: Annotated[int, Field(ge=_VERSION, le=_VERSION)]
    iss: Annotated[str, Field(max_length=1_000)]
    event_id: Annotated[str, Field(max_length=1_000)]
    url: Annotated[str, Field(max_length=WEBHOOK_URL_CHARS_MAX)]
    body_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    at: Annotated[int, Field(ge=0, le=2**53)]


# The signature.


def sign(body: bytes, *, url: str, event_id: str, issuer: str, now_ms: int, key: SigningKey) -> str:
    """The value of `Quittance-Signature` for a body that is sent to a URL now."""
    claims = Signed(
        v=_VERSION,
        iss=issuer,
        event_id=event_id,
        url=url,
        body_sha256=hashlib.sha256(body).hexdigest(),
        at=now_ms,
    )
    return statement.sign(claims.model_dump(), key, WEBHOOK)


def verify(
    body: bytes,
    signature: str,
    *,
    url: str,
    jwks: Mapping[str, Any],
    now_ms: int | None,
    age_ms_max: int = WEBHOOK_AGE_MS_MAX,
) -> Signed:
    """What the platform of a key set states of a body that came to a URL of ours.

    `body` is the request's body byte for byte, `url` the one that the task was given. `now_ms` is the receiver's time,
    from which the signature's may differ by `age_ms_max`; None for one that was kept, of any age. Raises ProofError.
    """
    chain = statement.verify(signature, jwks, WEBHOOK)
    stated = statement.read(Signed, chain.claims, WEBHOOK.name)
    chain.check_time(stated.at, "at")
    if stated.url != url:
        sentence = f"the webhook was sent to {quoted(stated.url)}, not to {quoted(url)}"
        raise ProofError(Flaw.CONTRADICTION, sentence)
    if (found := hashlib.sha256(body).hexdigest()) != stated.body_sha256:
        sentence = f"the body has the SHA-256 {found}, the signature is of {stated.body_sha256}"
        raise ProofError(Flaw.DIGEST, sentence)
    if now_ms is not None and abs(now_ms - stated.at) > age_ms_max:
        sentence = f"the webhook was signed {abs(now_ms - stated.at)} ms away from now, more than {age_ms_max}"
        raise ProofError(Flaw.TIMES, sentence)
    return stated
