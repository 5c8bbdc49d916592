"""Identity of the caller: verifies bearer tokens (JWT, RFC 7519) against the issuer's JWKS.

Access tokens follow RFC 9068; deviations of Cognito, Entra, Okta, Auth0 and Keycloak are accepted where this module
names them (docs/howto/identity.md). An error says which check failed, with one of the sentences below. None of them
quotes the token or the configuration, and a client that cannot sign as the issuer gets only the first two.
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

# The operator's scopes. In the user pool of template.yaml only the confidential client has them.
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
_RESOURCE_SERVER: Final = "quittance/"  # its identifier in Cognito, set by the template
# Header `typ`: of RFC 9068, of issuers that only say that it is a JWT, and of issuers that omit it.
_ACCESS_TYPES: Final = frozenset({"at+jwt", "application/at+jwt", "jwt", ""})
_LEEWAY_S: Final = 30
_JWKS_TIMEOUT_S: Final = 2
_FAULTS: Final[tuple[tuple[type[jwt.PyJWTError], str], ...]] = (  # the first match counts
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
    """A verified identity: its account, and the scopes of its token."""

    account: str
    scopes: frozenset[str] = frozenset()

    def named(self, account_id: str) -> str:
        """The account that a path names; `me` is the caller's own."""
        return self.account if account_id == OWN_ACCOUNT else account_id

    def need(self, scope: str) -> None:
        """Raises MissingScopeError unless the token has the scope."""
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
    """The caller of a request. Raises as `verify` does, and UnauthenticatedError without a reason for no token."""
    token = bearer_token(headers)
    if not token:
        raise UnauthenticatedError
    return verify(token, settings)


def is_account_id(subject: str) -> bool:
    """Whether a subject is a valid account id: up to 255 visible ASCII characters without `#`, not a reserved name."""
    return (
        len(subject) <= ACCOUNT_ID_CHARS_MAX
        and _ACCOUNT_ID.fullmatch(subject) is not None
        and subject not in ACCOUNT_IDS_RESERVED
    )


def verify(token: str, settings: Settings) -> Caller:
    """The caller that a bearer token proves.

    Algorithm, issuer, audience and key source come from the settings, never from the token. A scope may have its
    resource server as prefix, as in Cognito (`quittance/ledger:deposit`). Only a token with that scope may have the
    platform's account as `sub`: an issuer may let users choose their subjects, and that account holds the fees.
    Raises UnauthenticatedError, and PlatformUnavailableError if the issuer's keys cannot be read.
    """
    keys = _jwks(settings.jwks_url, settings.algorithms)
    keys.renew_if_old()  # first, because an unavailable issuer is not the token's fault
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
    """The claims of a token, after checks of signature, times, issuer and audience."""
    key = keys.find(header) or (keys.find(header) if keys.renew() else None)
    if key is None:
        raise UnauthenticatedError(UNSIGNED)
    try:
        try:
            return _decoded(token, key, settings)
        except jwt.InvalidSignatureError:
            # A key without an id may have been replaced; a new key with an id would have another id.
            if key.key_id is not None or not keys.renew() or (key := keys.find(header)) is None:
                raise
            return _decoded(token, key, settings)
    except jwt.MissingRequiredClaimError as exc:
        missing = f"The token has no claim {exc.claim}."  # one of the required claims
        raise UnauthenticatedError(missing) from exc
    except jwt.PyJWTError as exc:
        raise UnauthenticatedError(next(text for error, text in _FAULTS if isinstance(exc, error))) from exc
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
    """Whether a token of the issuer is an access token, as far as that can be determined.

    RFC 9068 §2.1 puts the type in the header, but most issuers omit it. Other tokens that they sign with the same keys
    are recognised by claims that an access token never has.
    """
    kind = header.get("typ", "")
    return (
        isinstance(kind, str)
        and kind.lower() in _ACCESS_TYPES
        and claims.get("token_use", "access") == "access"  # Cognito's ID tokens have `id`
        and str(claims.get("typ", "Bearer")).lower() == "bearer"  # Keycloak's others have `ID`, `Refresh`, `Logout`
        and "events" not in claims  # logout tokens (OpenID Connect Back-Channel Logout) and other events (RFC 8417)
        and not claims.keys() & {"at_hash", "c_hash", "s_hash"}  # an ID token (OpenID Connect Core 1.0 §3.3.2.11)
        and ("nonce" not in claims or bool(claims.keys() & {"scope", "scp"}))  # an ID token too, unless it has scopes
    )


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """The scopes of a token: `scope` (RFC 9068 §2.2.3) or `scp` (Entra, Okta), as a string or a list of strings."""
    found = set[str]()
    for stated in (claims[name] for name in ("scope", "scp") if name in claims):
        names = stated.split(" ") if isinstance(stated, str) else stated
        if not isinstance(names, list):
            raise UnauthenticatedError(BAD_SCOPE)
        for name in names:
            if name == "" and isinstance(stated, str):
                continue
            # No other characters: the authorizer passes scopes on to the functions separated by spaces.
            if not isinstance(name, str) or not _SCOPE.fullmatch(name):
                raise UnauthenticatedError(BAD_SCOPE)
            found.add(name.removeprefix(_RESOURCE_SERVER))
    return frozenset(found)


@dataclass(slots=True)
class _Keys:
    """The issuer's keys. They are read again when they are old, and when a token fits none of them.

    The number of reads is bounded: tokens with invented key ids cause one read in ISSUER_KEYS_REFETCH_S_MIN seconds,
    and while the issuer does not answer, there is one attempt in JWKS_FAILURE_S_MAX.
    """

    url: str
    algorithms: tuple[str, ...]
    _found: list[jwt.PyJWK] = field(default_factory=list)
    _read_s: float | None = None  # when the keys were read successfully
    _tried_s: float = 0.0  # when the last read began, whether it succeeded or not
    _failed: bool = False

    def renew_if_old(self) -> None:
        """Reads the keys again if they are old. Raises PlatformUnavailableError if there are no recent keys."""
        if self._read_s is None or monotonic() - self._read_s >= ISSUER_KEYS_AGE_S_MAX:
            if self._failed and monotonic() - self._tried_s < JWKS_FAILURE_S_MAX:
                raise PlatformUnavailableError
            self._read()

    def renew(self) -> bool:
        """Reads the keys again, because a token fits none of them. Returns False if they were read a moment ago.

        Raises PlatformUnavailableError if they cannot be read: the token can then neither be accepted nor refused.
        """
        if monotonic() - self._tried_s < ISSUER_KEYS_REFETCH_S_MIN:
            if self._failed:
                raise PlatformUnavailableError
            return False
        self._read()
        return True

    def find(self, header: Mapping[str, Any]) -> jwt.PyJWK | None:
        """The key that a token's `kid` names; the only key if the token names none.

        If the only key has no id, it is used whatever the token's `kid` is: the signature decides.
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
    """The keys at a URL that have an accepted algorithm. Raises PlatformUnavailableError if it has no keys at all."""
    try:
        published = jwt.PyJWKClient(url, timeout=_JWKS_TIMEOUT_S, cache_jwk_set=False).fetch_data()
        found = [key for key in map(_key, published["keys"][:JWKS_KEYS_MAX]) if key]
    except (jwt.PyJWTError, OSError, ValueError, LookupError, TypeError, RecursionError) as exc:
        raise PlatformUnavailableError from exc
    if not found:
        raise PlatformUnavailableError
    return [key for key in found if key.algorithm_name in algorithms]


def _key(stated: object) -> jwt.PyJWK | None:
    """A signature key of a JWKS; None if it has another use or is not supported (RFC 7517 §5)."""
    if not isinstance(stated, dict) or stated.get("use", "sig") != "sig":
        return None
    try:
        return jwt.PyJWK(stated)
    except (jwt.PyJWTError, ValueError, TypeError, LookupError):
        return None


@lru_cache(maxsize=1)
def _jwks(url: str, algorithms: tuple[str, ...]) -> _Keys:
    return _Keys(url, algorithms)
