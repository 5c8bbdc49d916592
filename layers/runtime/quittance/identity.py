"""Who calls: verification of bearer tokens (JWT, RFC 7519) against the issuer's JWKS, pinned in every respect."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import jwt

from quittance.config import Settings
from quittance.errors import MissingScopeError, PlatformUnavailableError, UnauthenticatedError
from quittance.limits import ACCOUNT_ID_CHARS_MAX, ACCOUNT_ID_PATTERN, ACCOUNT_IDS_RESERVED

DEPOSIT_SCOPE: Final = "ledger:deposit"  # the operator's
PAYOUT_SCOPE: Final = "ledger:payout"  # the operator's
OPERATE_SCOPE: Final = "platform:operate"  # the operator's
_ACCOUNT_ID: Final = re.compile(ACCOUNT_ID_PATTERN)
_RESOURCE_SERVER: Final = "quittance/"  # as the template names it in Cognito
_LEEWAY_S: Final = 30
_JWKS_LIFESPAN_S: Final = 300
_JWKS_TIMEOUT_S: Final = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified identity: the account that it is, and what its token allows."""

    account: str
    scopes: frozenset[str]

    def need(self, scope: str) -> None:
        """Raises MissingScopeError unless the token carries the scope."""
        if scope not in self.scopes:
            raise MissingScopeError(scope)


def bearer_token(headers: Mapping[str, str] | None) -> str | None:
    """The bearer token of a request (RFC 6750 §2.1); empty for another scheme, None without the header."""
    named = {name.lower(): value for name, value in (headers or {}).items()}
    if "authorization" not in named:
        return None
    scheme, _, token = named["authorization"].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def is_account_id(subject: str) -> bool:
    """Whether a subject can be an account: at most 255 visible ASCII characters without `#`, and no reserved name."""
    return (
        len(subject) <= ACCOUNT_ID_CHARS_MAX
        and _ACCOUNT_ID.fullmatch(subject) is not None
        and subject not in ACCOUNT_IDS_RESERVED
    )


def verify(token: str, settings: Settings) -> Caller:
    """The caller that a bearer token proves.

    Algorithm, issuer, audience and key source come from the settings, never from the token. A scope may carry its
    resource server's name, as Cognito writes it (`quittance/ledger:deposit`). The platform's account as subject needs
    that scope too: an issuer may let its users choose their subjects, and the fees are in that account.
    Raises UnauthenticatedError, and PlatformUnavailableError if the issuer's keys cannot be read.
    """
    by_audience = settings.audience_claim == "aud"
    options: Any = {"require": ["exp", "iat", "iss", "sub", settings.audience_claim], "verify_aud": by_audience}
    keys = _jwks(settings.jwks_url)
    try:
        keys.get_signing_keys()
    except (jwt.PyJWTError, OSError, ValueError) as exc:  # the issuer's fault, whatever the token is
        raise PlatformUnavailableError from exc
    try:
        key = keys.get_signing_key_from_jwt(token)
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=settings.token_algorithms.split(","),
            issuer=settings.issuer_url,
            audience=settings.audience if by_audience else None,
            leeway=_LEEWAY_S,
            options=options,
        )
    except (jwt.PyJWKClientConnectionError, OSError, ValueError) as exc:  # an unknown key is looked up once more
        raise PlatformUnavailableError from exc
    except jwt.PyJWTError as exc:
        raise UnauthenticatedError from exc
    if not by_audience and claims[settings.audience_claim] != settings.audience:
        raise UnauthenticatedError
    subject, scope = claims["sub"], claims.get("scope", "")
    if not isinstance(scope, str) or not is_account_id(subject):
        raise UnauthenticatedError
    caller = Caller(subject, frozenset(name.removeprefix(_RESOURCE_SERVER) for name in scope.split()))
    if subject == settings.platform_account and DEPOSIT_SCOPE not in caller.scopes:
        raise UnauthenticatedError
    return caller


@lru_cache(maxsize=1)
def _jwks(url: str) -> jwt.PyJWKClient:
    return jwt.PyJWKClient(url, lifespan=_JWKS_LIFESPAN_S, timeout=_JWKS_TIMEOUT_S)
