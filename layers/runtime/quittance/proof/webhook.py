"""Webhook signatures: how a delivery proves who sent it. Pure. See docs/howto/webhooks.md.

A delivery has the header `Quittance-Signature`: a signed statement (see statement.py) of the body's digest, the URL of
the delivery and the time. There is no shared secret: anyone can verify it with the platform's public key set, and only
the platform can sign. A delivery to one receiver proves nothing to another receiver or at a later time.
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


class WebhookClaims(StrictModel):
    """The claims of a webhook signature."""

    v: Annotated[int, Field(ge=_VERSION, le=_VERSION)]
    iss: Annotated[str, Field(max_length=1_000)]
    event_id: Annotated[str, Field(max_length=1_000)]
    url: Annotated[str, Field(max_length=WEBHOOK_URL_CHARS_MAX)]
    body_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    at: Annotated[int, Field(ge=0, le=2**53)]


def sign(body: bytes, *, url: str, event_id: str, issuer: str, now_ms: int, key: SigningKey) -> str:
    """The value of `Quittance-Signature` for a body that is sent to a URL now."""
    claims = WebhookClaims(
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
) -> WebhookClaims:
    """The claims of a delivery's signature, if the platform of this key set sent this body to this URL.

    `body` is the request's body byte for byte, `url` the one that the task named. `now_ms` is the receiver's time, from
    which the signature's may differ by `age_ms_max`; None accepts a stored delivery of any age. Raises ProofError.
    """
    signed = statement.verify(signature, jwks, WEBHOOK)
    claims = statement.read(WebhookClaims, signed.claims, WEBHOOK.name)
    signed.check_time(claims.at, "at")
    if claims.url != url:
        sentence = f"the webhook was sent to {quoted(claims.url)}, not to {quoted(url)}"
        raise ProofError(Flaw.CONTRADICTION, sentence)
    if (found := hashlib.sha256(body).hexdigest()) != claims.body_sha256:
        sentence = f"the body has the SHA-256 {found}, the signature is of {claims.body_sha256}"
        raise ProofError(Flaw.DIGEST, sentence)
    if now_ms is not None and abs(now_ms - claims.at) > age_ms_max:
        sentence = f"the webhook was signed {abs(now_ms - claims.at)} ms away from now, more than {age_ms_max}"
        raise ProofError(Flaw.TIMES, sentence)
    return claims
