"""Who calls: verification of bearer tokens (JWT, RFC 7519) against the issuer's JWKS, pinned in every respect.

Access tokens of RFC 9068 first; what Cognito, Entra, Okta, Auth0 and Keycloak do otherwise is accepted where it is
named here (docs/howto/identity.md). A refusal says which check failed, in one of the sentences below: none of them
quotes the token or the configuration, and whoever cannot sign as the issuer only ever sees the first two.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from time import monotonic
from typing import Any, Final

import jwt

from quittance.config import Settings
from quittance.errors import MissingScopeError, PlatformUnavailableError, UnauthenticatedError
from quittance.limits import (
    ACCOUNT_ID_CHARS_MAX,
    ACCOUNT_ID_PATTERN,
    ACCOUNT_IDS_RESERVED,
    ISSUER_KEYS_AGE_S_MAX,
    ISSUER_KEYS_REFETCH_S_MIN,
    JWKS_FAILURE_S_MAX,
    JWKS_KEYS_MAX,
    OWN_ACCOUNT,
)

# The operator's scopes. With the pool of template.yaml its confidential client alone has them.
DEPOSIT_SCOPE: Final = "ledger:deposit"
PAYOUT_SCOPE: Final = "ledger:payout"
OPERATE_SCOPE: Final = "platform:operate"
HEALTH_SCOPE: Final = "health:read"
SCOPES: Final = (DEPOSIT_SCOPE, PAYOUT_SCOPE, OPERATE_SCOPE, HEALTH_SCOPE)

MALFORMED: Final = "The token is not a well-formed signed JWT."
UNSIGNED: Final = "The token is not signed by a current key of the configured issuer."
EXPIRED: Final = "The token has expired."
EARLY: Final = "The token is not valid yet."
OTHER_ISSUER: Final = "The token is from another issuer."
OTHER_AUDIENCE: Final = "The token is for another audience."
NO_ACCESS_TOKEN: Final = "The token is not an access token."  # noqa: S105 - a sentence
NO_ACCOUNT: Final = "The subject of the token cannot be an account."
BAD_SCOPE: Final = "The scope of the token must be a string or a list of strings (RFC 6749)."

_ACCOUNT_ID: Final = re.compile(ACCOUNT_ID_PATTERN)
_SCOPE: Final = re.compile(r"[!#-\[\]-~]+")  # RFC 6749 §3.3
_RESOURCE_SERVER: Final = "quittance/"  # as the template names it in Cognito
# Header `typ`: of RFC 9068, of issuers that say no more than that it is a JWT, and of those that say nothing.
_ACCESS_TYPES: Final = frozenset({"at+jwt", "application/at+jwt", "jwt", ""})
_LEEWAY_S: Final = 30
_JWKS_TIMEOUT_S: Final = 2
_FAULTS: Final[tuple[tuple[type[jwt.PyJWTError], str], ...]] = (  # the first that fits
    (jwt.ExpiredSignatureError, EXPIRED),
    (jwt.ImmatureSignatureError, EARLY),
    (jwt.InvalidIssuerError, OTHER_ISSUER),
    (jwt.InvalidAudienceError, OTHER_AUDIENCE),
    (jwt.InvalidSignatureError, UNSIGNED),
    (jwt.InvalidAlgorithmError, UNSIGNED),
    (jwt.exceptions.InvalidSubjectError, NO_ACCOUNT),
    (jwt.PyJWTError, MALFORMED),
)


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified identity: the account that it is, and what its token allows."""

    account: str
    scopes: frozenset[str] = frozenset()

    def named(self, account_id: str) -> str:
        """The account that a path names: `me` is the caller's own."""
        return self.account if account_id == OWN_ACCOUNT else account_id

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


def authenticate(headers: Mapping[str, str] | None, settings: Settings) -> Caller:
    """The caller of a request. Raises as `verify`, and UnauthenticatedError without a reason if there is no token."""
    token = bearer_token(headers)
    if not token:
        raise UnauthenticatedError
    return verify(token, settings)


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
    keys = _jwks(settings.jwks_url, settings.algorithms)
    keys.renew_if_old()  # first: that the issuer is away is no fault of a token
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError) as exc:
        raise UnauthenticatedError(MALFORMED) from exc
    claims = _claims(token, header, keys, settings)
    if not _is_access_token(header, claims):
        raise UnauthenticatedError(NO_ACCESS_TOKEN)
    caller = Caller(claims["sub"], _scopes(claims))
    if not is_account_id(caller.account):
        raise UnauthenticatedError(NO_ACCOUNT)
    if caller.account == settings.platform_account and DEPOSIT_SCOPE not in caller.scopes:
        raise UnauthenticatedError(NO_ACCOUNT)
    return caller


def _claims(token: str, header: Mapping[str, Any], keys: "_Keys", settings: Settings) -> dict[str, Any]:
    """The claims of a token whose signature, times, issuer and audience are right."""
    key = keys.find(header) or (keys.find(header) if keys.renew() else None)
    if key is None:
        raise UnauthenticatedError(UNSIGNED)
    try:
        try:
            return _decoded(token, key, settings)
        except jwt.InvalidSignatureError:
            # A key without a name may have been replaced; one with a name would have got another name.
            if key.key_id is not None or not keys.renew() or (key := keys.find(header)) is None:
                raise
            return _decoded(token, key, settings)
    except jwt.MissingRequiredClaimError as exc:
        lack = f"The token has no claim {exc.claim}."  # one that we require
        raise UnauthenticatedError(lack) from exc
    except jwt.PyJWTError as exc:
        raise UnauthenticatedError(next(told for kind, told in _FAULTS if isinstance(exc, kind))) from exc
    except (ValueError, RecursionError) as exc:
        raise UnauthenticatedError(MALFORMED) from exc


def _decoded(token: str, key: jwt.PyJWK, settings: Settings) -> dict[str, Any]:
    by_audience = settings.audience_claim == "aud"
    options: Any = {"require": ["exp", "iat", "iss", "sub", settings.audience_claim], "verify_aud": by_audience}
    claims: dict[str, Any] = jwt.decode(
        token,
        key,
        algorithms=settings.algorithms,
        issuer=settings.issuer_url,
        audience=settings.audiences if by_audience else None,
        leeway=_LEEWAY_S,
        options=options,
    )
    if not by_audience and claims[settings.audience_claim] not in settings.audiences:
        raise jwt.InvalidAudienceError
    return claims


def _is_access_token(header: Mapping[str, Any], claims: Mapping[str, Any]) -> bool:
    """Whether a token of the issuer was made to call APIs with, as far as it can be known.

    RFC 9068 §2.1 names the type in the header, but most issuers name none. The other tokens that they sign with the
    same keys can be recognised by what an access token never has.
    """
    kind = header.get("typ", "")
    return (
        isinstance(kind, str)
        and kind.lower() in _ACCESS_TYPES
        and claims.get("token_use", "access") == "access"  # Cognito's ID tokens have `id`
        and str(claims.get("typ", "Bearer")).lower() == "bearer"  # Keycloak's others have `ID`, `Refresh`, `Logout`
        and "events" not in claims  # a logout token (OpenID Connect Back-Channel Logout) or another event (RFC 8417)
        and not claims.keys() & {"at_hash", "c_hash", "s_hash"}  # an ID token (OpenID Connect Core 1.0 §3.3.2.11)
        and ("nonce" not in claims or bool(claims.keys() & {"scope", "scp"}))  # one too, unless it grants something
    )


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """What a token grants: `scope` (RFC 9068 §2.2.3), or `scp` (Entra, Okta), as a string or a list of strings."""
    found = set[str]()
    for stated in (claims[name] for name in ("scope", "scp") if name in claims):
        names = stated.split(" ") if isinstance(stated, str) else stated
        if not isinstance(names, list):
            raise UnauthenticatedError(BAD_SCOPE)
        for name in names:
            if name == "" and isinstance(stated, str):
                continue
            # Nothing else: the scopes are joined by spaces on their way to the functions.
            if not isinstance(name, str) or not _SCOPE.fullmatch(name):
                raise UnauthenticatedError(BAD_SCOPE)
            found.add(name.removeprefix(_RESOURCE_SERVER))
    return frozenset(found)


@dataclass(slots=True)
class _Keys:
    """The issuer's keys. They are read again when they are old, and for a token that none of them fits, now and then.

    Both are bounded: tokens with invented key names cost the issuer one read in ISSUER_KEYS_REFETCH_S_MIN seconds, and
    while it does not answer, it is asked once in JWKS_FAILURE_S_MAX.
    """

    url: str
    algorithms: tuple[str, ...]
    _found: list[jwt.PyJWK] = field(default_factory=list)
    _read_s: float | None = None  # when the keys were read
    _tried_s: float = 0.0  # when they were asked for last, whether they came or not
    _failed: bool = False

    def renew_if_old(self) -> None:
        """Raises PlatformUnavailableError if there are no keys that are young enough."""
        if self._read_s is None or monotonic() - self._read_s >= ISSUER_KEYS_AGE_S_MAX:
            if self._failed and monotonic() - self._tried_s < JWKS_FAILURE_S_MAX:
                raise PlatformUnavailableError
            self._read()

    def renew(self) -> bool:
        """Reads the keys again, because a token fits none of them; False if that was done a moment ago.

        Raises PlatformUnavailableError if they cannot be read: nobody knows then whether the token is good.
        """
        if monotonic() - self._tried_s < ISSUER_KEYS_REFETCH_S_MIN:
            if self._failed:
                raise PlatformUnavailableError
            return False
        self._read()
        return True

    def find(self, header: Mapping[str, Any]) -> jwt.PyJWK | None:
        """The key that a token names; for one that names none, the only key.

        An only key without a name of its own is tried whatever the token says: its signature decides.
        """
        name = header.get("kid")
        if len(self._found) == 1 and (name is None or self._found[0].key_id is None):
            return self._found[0]
        named = [key for key in self._found if name is not None and key.key_id == name]
        return next((key for key in named if key.algorithm_name == header.get("alg")), named[0] if named else None)

    def _read(self) -> None:
        self._tried_s, self._failed = monotonic(), True
        self._found = _fetched(self.url, self.algorithms)
        self._read_s, self._failed = monotonic(), False


def _fetched(url: str, algorithms: tuple[str, ...]) -> list[jwt.PyJWK]:
    """The keys at a URL that may sign tokens here. Raises PlatformUnavailableError if it has no keys at all."""
    try:
        published = jwt.PyJWKClient(url, timeout=_JWKS_TIMEOUT_S, cache_jwk_set=False).fetch_data()
        found = [key for key in map(_key, published["keys"][:JWKS_KEYS_MAX]) if key]
    except (jwt.PyJWTError, OSError, ValueError, LookupError, TypeError, RecursionError) as exc:
        raise PlatformUnavailableError from exc
    if not found:
        raise PlatformUnavailableError
    return [key for key in found if key.algorithm_name in algorithms]


def _key(stated: object) -> jwt.PyJWK | None:
    """A key of a JWKS; None for one that is for something else, or that nobody here can use (RFC 7517 §5)."""
    if not isinstance(stated, dict) or stated.get("use", "sig") != "sig":
        return None
    try:
        return jwt.PyJWK(stated)
    except (jwt.PyJWTError, ValueError, TypeError, LookupError):
        return None


@lru_cache(maxsize=1)
def _jwks(url: str, algorithms: tuple[str, ...]) -> _Keys:
    return _Keys(url, algorithms)
