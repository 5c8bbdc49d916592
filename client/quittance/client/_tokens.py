"""Where bearer tokens come from: a text, a file, a function, or an OAuth issuer by client credentials or device flow.

Sources may be shared by threads, event loops and clients. A source asks its issuer once, while the others wait, and
keeps the token until shortly before it expires. Nothing here prints a token.
"""

import base64
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quittance.client._errors import (
    ApiError,
    ConfigurationError,
    ConnectionFailedError,
    LoginFailedError,
    LoginRequiredError,
    QuittanceError,
    TokenError,
    plain,
)
from quittance.client._retry import Sender
from quittance.client._wire import Flow, Lock, Pause, Request, Take, checked_url, host_of, is_loopback
from quittance.limits import TOKEN_CHARS_MAX

DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_SKEW_S: Final = 60.0  # a token is replaced this long before it expires, one with a short life after nine tenths of it
_LIFE_S_DEFAULT: Final = 300.0  # of a token whose issuer does not state it (RFC 6749 §5.1 only recommends it)
_LIFE_S_MAX: Final = 7 * 24 * 3_600.0
_DEVICE_INTERVAL_S: Final = 5.0  # RFC 8628 §3.2
_SLOW_DOWN_S: Final = 5.0  # RFC 8628 §3.5
_DEVICE_S_MAX: Final = 3_600.0
_STORED_BYTES_MAX: Final = 4 * TOKEN_CHARS_MAX
_Model = TypeVar("_Model", bound=BaseModel)


class TokenSource:
    """A source of bearer tokens. Subclasses override `token`, and `renew` if they can get another one."""

    def token(self, sender: Sender, deadline: float) -> Flow[str | None]:
        """A token that is valid now. Raises TokenError, ConnectionFailedError."""
        raise NotImplementedError

    def renew(self, refused: str | None) -> bool:  # noqa: ARG002 - for subclasses
        """Forget a token that the API refused; whether there may be another one."""
        return False


class NoToken(TokenSource):
    """For the routes that need no token."""

    def token(self, sender: Sender, deadline: float) -> Flow[str | None]:  # noqa: ARG002
        """No token."""
        yield from ()
        return None


class StaticToken(TokenSource):
    """One token, until it expires.

    Example:
        >>> client = Client(api, token=StaticToken(token))
        >>> client.balance().account_id
        'alice'
    """

    def __init__(self, token: str) -> None:
        self._token = _checked(token, "The token")

    def token(self, sender: Sender, deadline: float) -> Flow[str | None]:  # noqa: ARG002
        """The token."""
        yield from ()
        return self._token


class FunctionToken(TokenSource):
    """Tokens from a function, which is called for each request and again after a refusal. It must be quick."""

    def __init__(self, function: Callable[[], str]) -> None:
        self._function = function

    def token(self, sender: Sender, deadline: float) -> Flow[str | None]:  # noqa: ARG002
        """What the function returns."""
        yield from ()
        return _checked(self._function(), "What the token function returned")

    def renew(self, refused: str | None) -> bool:
        """Whether the function returns another token now."""
        return self._function().strip() != refused


class FileToken(TokenSource):
    """A token in a file, read again whenever the file has changed: another program may keep it fresh.

    Example:
        >>> client = Client(api, token=FileToken(token_file))
        >>> client.balance().account_id
        'alice'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int, int], str] | None = None

    def __repr__(self) -> str:
        return f"FileToken({str(self._path)!r})"

    def token(self, sender: Sender, deadline: float) -> Flow[str | None]:  # noqa: ARG002
        """The token in the file."""
        yield from ()
        return self._current()

    def renew(self, refused: str | None) -> bool:
        """Reads the file again, even if it seems unchanged; whether it has another token now."""
        with self._lock:
            self._read = None
        return self._current() != refused

    def _current(self) -> str:
        with self._lock:
            try:
                found = self._path.stat()
                place = (found.st_mtime_ns, found.st_ino, found.st_size)
                if self._read is None or self._read[0] != place:
                    with self._path.open("rb") as file:
                        data = file.read(TOKEN_CHARS_MAX + 1)
                    self._read = (place, _checked(data.decode(errors="replace"), f"The file {self._path}"))
            except OSError as exc:
                msg = f"The token file {self._path} cannot be read: {exc.strerror}."
                raise TokenError(msg) from exc
            return self._read[1]


def _checked(token: str, what: str) -> str:
    """A token as it is sent. Raises TokenError without quoting it."""
    token = token.strip()
    if not token:
        msg = f"{what} is empty."
        raise TokenError(msg)
    if len(token) > TOKEN_CHARS_MAX or not all("!" <= character <= "~" for character in token):
        msg = f"{what} is not a token: visible ASCII without spaces, at most {TOKEN_CHARS_MAX} characters."
        raise TokenError(msg)
    return token


# OAuth.


class _Document(BaseModel):
    """A JSON answer of an issuer. Errors of its form do not quote it."""

    model_config = ConfigDict(hide_input_in_errors=True, extra="ignore")


class _Metadata(_Document):
    """OpenID Connect Discovery 1.0 §3, RFC 8414 §2."""

    issuer: str
    token_endpoint: str | None = None
    device_authorization_endpoint: str | None = None


class _Granted(_Document):
    """RFC 6749 §5.1."""

    access_token: str = Field(repr=False)
    token_type: str = "Bearer"  # noqa: S105 - a type, no token
    expires_in: float | None = None
    refresh_token: str | None = Field(default=None, repr=False)


class _Device(_Document):
    """RFC 8628 §3.2."""

    device_code: str = Field(repr=False)
    user_code: str
    verification_uri: str
    verification_uri_complete: str | None = None
    expires_in: float
    interval: float = _DEVICE_INTERVAL_S


class _Stored(_Document):
    """What a device flow keeps between two programs."""

    issuer: str
    client_id: str
    scope: str
    access_token: str = Field(repr=False)
    expires_at: float
    refresh_token: str | None = Field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class DevicePrompt:
    """What a person must do to sign in: open `uri` and enter `code`, or open `uri_complete`, before `expires_in_s`."""

    uri: str
    code: str
    uri_complete: str | None
    expires_in_s: float


@dataclass(slots=True)
class _Issuer:
    """An issuer's endpoints, stated or discovered."""

    issuer: str | None
    token_endpoint: str | None
    device_endpoint: str | None = None
    known: bool = False

    def discover(self, sender: Sender, deadline: float) -> Flow[None]:
        """Reads the issuer's metadata, by OpenID Connect Discovery or else by RFC 8414."""
        if self.known or self.issuer is None:
            return
        base = self.issuer.rstrip("/")
        parts = urlsplit(base)
        places = (
            f"{base}/.well-known/openid-configuration",
            f"{parts.scheme}://{parts.netloc}/.well-known/oauth-authorization-server{parts.path}",
        )
        for number, place in enumerate(places):
            try:
                answer = yield from sender.send(Request("GET", place, deadline=deadline))
            except ApiError as exc:
                if number == 0 and exc.status < _SERVER_ERROR:
                    continue
                msg = f"The issuer {host_of(base)} does not describe itself: {exc.status} at {urlsplit(place).path}."
                raise TokenError(msg) from None
            found = _read(_Metadata, answer.body, base)
            break
        if found.issuer.rstrip("/") != base:
            msg = f"The description at {host_of(base)} is of another issuer, {plain(found.issuer, 200)!r}."
            raise TokenError(msg)
        self.token_endpoint = self.token_endpoint or self._endpoint(found.token_endpoint, "token")
        self.device_endpoint = self._endpoint(found.device_authorization_endpoint, "device authorization")
        self.known = True

    def _endpoint(self, url: str | None, kind: str) -> str | None:
        return self.checked(url, f"The {kind} endpoint of the issuer") if url else None

    def checked(self, url: str, what: str) -> str:
        """A URL that the issuer states. Raises TokenError for one of this machine, unless the issuer is there too."""
        if is_loopback(urlsplit(checked_url(url, what, query=True)).hostname or "") and not self._is_local():
            msg = f"{what} is on this machine, where a remote issuer has none. Check the issuer."
            raise TokenError(msg)
        return url

    def _is_local(self) -> bool:
        return is_loopback(urlsplit(self.issuer or "").hostname or "")


_SERVER_ERROR: Final = 500


def _read(model: type[_Model], body: bytes, url: str) -> _Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as exc:
        where = ", ".join(sorted({".".join(map(str, fault["loc"])) or "body" for fault in exc.errors()})[:5])
    msg = f"The answer of {host_of(url)} is not that of an OAuth issuer ({plain(where, 300)})."
    raise TokenError(msg)  # outside of `except`: pydantic's error may quote the answer


class _OAuth(TokenSource):
    """What the flows of OAuth share: one token in memory, one request at a time, form posts to the token endpoint."""

    def __init__(
        self,
        *,
        client_id: str,
        client_secret: str | None,
        issuer: str | None,
        token_endpoint: str | None,
        scope: str,
        audience: str | None,
        secret_in_body: bool,
    ) -> None:
        if issuer is None and token_endpoint is None:
            msg = "A source of tokens needs its issuer, or the URL of the token endpoint."
            raise ConfigurationError(msg)
        for url, what in ((issuer, "The issuer"), (token_endpoint, "The token endpoint")):
            if url is not None:
                checked_url(url, what, query=url == token_endpoint)
        self._issuer = _Issuer(issuer, token_endpoint, known=token_endpoint is not None and issuer is None)
        self._client_id = client_id
        self._secret = client_secret
        self._scope = scope
        self._audience = audience
        self._secret_in_body = secret_in_body
        self._lock: Lock = threading.Lock()
        self._token: str | None = None
        self._until = 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(client_id={self._client_id!r})"

    def token(self, sender: Sender, deadline: float) -> Flow[str | None]:
        """The token in memory, or a new one shortly before that expires."""
        if self._token is None or sender.timing.now() >= self._until:
            yield Take(self._lock)
            try:
                if self._token is None or sender.timing.now() >= self._until:
                    yield from self._obtain(sender, deadline)
            finally:
                self._lock.release()
        return self._token

    def renew(self, refused: str | None) -> bool:
        """Forgets the token if it is the one that the API refused."""
        if self._token == refused:
            self._until = 0.0
        return True

    def _obtain(self, sender: Sender, deadline: float) -> Flow[None]:
        raise NotImplementedError

    def _keep(self, granted: _Granted, sender: Sender) -> float:
        """Keeps a token in memory; returns when it expires."""
        if granted.token_type.lower() != "bearer":
            msg = f"The issuer granted a token of the type {plain(granted.token_type, 50)!r}, not Bearer."
            raise TokenError(msg)
        life_s = granted.expires_in if granted.expires_in and granted.expires_in > 0 else _LIFE_S_DEFAULT
        life_s = min(life_s, _LIFE_S_MAX)
        now = sender.timing.now()
        self._token = _checked(granted.access_token, "The issuer's token")
        self._until = now + life_s - min(_SKEW_S, life_s / 10)
        return now + life_s

    def _post(self, sender: Sender, deadline: float, url: str, form: Mapping[str, str]) -> Flow[bytes]:
        """The answer to a form (RFC 6749 §2.3.1). Raises ApiError for a refusal."""
        wanted = {**form, "scope": self._scope} if self._scope and form.get("grant_type") != DEVICE_GRANT else {**form}
        headers = {"Accept": "application/json"}
        if self._secret is not None and not self._secret_in_body:
            pair = f"{quote(self._client_id, safe='')}:{quote(self._secret, safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            wanted["client_id"] = self._client_id
            if self._secret is not None:
                wanted["client_secret"] = self._secret
        if self._audience is not None:
            wanted["audience"] = self._audience
        answer = yield from sender.send(Request("POST", url, headers, form=wanted, deadline=deadline))
        return answer.body

    def _grant(self, sender: Sender, deadline: float, form: Mapping[str, str]) -> Flow[_Granted]:
        """A token for a form. Raises ApiError for a refusal."""
        if self._issuer.token_endpoint is None:
            yield from self._issuer.discover(sender, deadline)
        url = self._issuer.token_endpoint
        if url is None:
            msg = "The issuer's description names no token endpoint."
            raise TokenError(msg)
        body = yield from self._post(sender, deadline, url, form)
        return _read(_Granted, body, url)


class ClientCredentials(_OAuth):
    """Tokens for a program of its own (RFC 6749 §4.4), kept until shortly before they expire.

    The secret goes to the token endpoint by HTTP Basic, or with `secret_in_body` in the form.

    Example:
        >>> tokens = ClientCredentials(issuer=issuer, client_id="shop", client_secret="not shown")
        >>> tokens
        ClientCredentials(client_id='shop')
        >>> Client(api, token=tokens).balance().account_id
        'shop'
    """

    def __init__(
        self,
        *,
        client_id: str,
        client_secret: str,
        issuer: str | None = None,
        token_endpoint: str | None = None,
        scope: str = "",
        audience: str | None = None,
        secret_in_body: bool = False,
    ) -> None:
        super().__init__(
            client_id=client_id,
            client_secret=client_secret,
            issuer=issuer,
            token_endpoint=token_endpoint,
            scope=scope,
            audience=audience,
            secret_in_body=secret_in_body,
        )

    def _obtain(self, sender: Sender, deadline: float) -> Flow[None]:
        try:
            granted = yield from self._grant(sender, deadline, {"grant_type": "client_credentials"})
        except ApiError as exc:
            raise TokenError(_refusal("The issuer refused the client credentials", exc)) from None
        self._keep(granted, sender)


class TokenStore(Protocol):
    """Where a device flow keeps its tokens between two programs."""

    @property
    def lock(self) -> Lock:
        """Held while a token is renewed, so that two programs never use one refresh token at the same time."""

    def load(self) -> str | None:
        """What was saved last."""

    def save(self, text: str) -> None:
        """Save a text that must stay secret."""

    def clear(self) -> None:
        """Forget it."""


class MemoryStore:
    """Keeps nothing beyond the life of the program."""

    def __init__(self) -> None:
        self._text: str | None = None
        self.lock: Lock = threading.Lock()

    def __repr__(self) -> str:
        return "MemoryStore()"

    def load(self) -> str | None:
        """What was saved last."""
        return self._text

    def save(self, text: str) -> None:
        """Save a text."""
        self._text = text

    def clear(self) -> None:
        """Forget it."""
        self._text = None


class FileStore:
    """A file that only its owner can read, written as a whole, with a lock beside it."""

    _what = "stored sign-in"
    _error: type[QuittanceError] = TokenError

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self.lock: Lock = _FileLock(self._path.parent / f"{self._path.name}.lock", self._error)

    def __repr__(self) -> str:
        return f"FileStore({str(self._path)!r})"

    def load(self) -> str | None:
        """What the file holds; None if there is none."""
        try:
            with self._path.open("rb") as file:
                return file.read(_STORED_BYTES_MAX).decode(errors="replace")
        except FileNotFoundError:
            return None
        except OSError as exc:
            msg = f"The {self._what} {self._path} cannot be read: {exc.strerror}."
            raise self._error(msg) from exc

    def save(self, text: str) -> None:
        """Replace the file."""
        try:
            _private_folder(self._path.parent)
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")  # mode 0600
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(self._path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as exc:
            msg = f"The {self._what} {self._path} cannot be written: {exc.strerror}."
            raise self._error(msg) from exc

    def clear(self) -> None:
        """Remove the file."""
        with suppress(FileNotFoundError):
            self._path.unlink()


def _private_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)


class _FileLock:
    """A lock between processes, and between the threads of one. Systems without `fcntl` have the second only."""

    def __init__(self, path: Path, error: type[QuittanceError]) -> None:
        self._path = path
        self._error = error
        self._threads = threading.Lock()
        self._descriptor: int | None = None

    def acquire(self, blocking: bool = True) -> bool:  # noqa: FBT001, FBT002 - as threading.Lock
        """Take the lock, or say that another has it."""
        if not self._threads.acquire(blocking):
            return False
        taken = False
        try:
            taken = self._lock_file(blocking=blocking)
        finally:
            if not taken:
                self._threads.release()
        return taken

    def release(self) -> None:
        """Give it back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._threads.release()

    def _lock_file(self, *, blocking: bool) -> bool:
        try:
            import fcntl
        except ImportError:
            return True
        try:
            _private_folder(self._path.parent)
            descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            msg = f"The lock {self._path} cannot be created: {exc.strerror}."
            raise self._error(msg) from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        except BaseException as exc:
            os.close(descriptor)
            if isinstance(exc, BlockingIOError):
                return False
            raise
        self._descriptor = descriptor
        return True


@dataclass(slots=True)
class _Poll:
    """How a device flow polls: the pause, and until when."""

    interval_s: float
    until: float = field(default=0.0)


class DeviceFlow(_OAuth):
    """Tokens for a person, who signs in with any browser (RFC 8628). Refresh tokens spare the next sign-ins.

    `prompt` shows the person what to do. Without it nobody is asked: then a stored sign-in is used, or
    LoginRequiredError is raised. `store` keeps the sign-in for the next program, for example `FileStore(path)`.
    Request the scope `offline_access` if the issuer grants refresh tokens only for it.

    Example:
        >>> tokens = DeviceFlow(issuer=issuer, client_id="cli", prompt=lambda todo: print("enter", todo.code))
        >>> Client(api, token=tokens).balance().account_id
        enter WDJB-MJHT
        'alice'
    """

    def __init__(
        self,
        *,
        issuer: str,
        client_id: str,
        client_secret: str | None = None,
        scope: str = "openid",
        audience: str | None = None,
        prompt: Callable[[DevicePrompt], None] | None = None,
        store: TokenStore | None = None,
    ) -> None:
        super().__init__(
            client_id=client_id,
            client_secret=client_secret,
            issuer=issuer,
            token_endpoint=None,
            scope=scope,
            audience=audience,
            secret_in_body=False,
        )
        self._name = issuer
        self._prompt = prompt
        self._store = store or MemoryStore()
        self._lock = self._store.lock

    def sign_out(self) -> None:
        """Forget the sign-in, in memory and in the store."""
        self._token, self._until = None, 0.0
        self._store.clear()

    def _obtain(self, sender: Sender, deadline: float) -> Flow[None]:
        stored = self._stored()
        if stored is not None:
            left_s = stored.expires_at - _SKEW_S - sender.timing.now()
            if left_s > 0 and stored.access_token != self._token:
                self._token, self._until = stored.access_token, stored.expires_at - _SKEW_S
                return
            if stored.refresh_token is not None and (yield from self._refresh(sender, deadline, stored.refresh_token)):
                return
        if self._prompt is None:
            msg = f"Nobody is signed in at {host_of(self._name)}, or the sign-in has expired. Sign in again."
            raise LoginRequiredError(msg)
        yield from self._sign_in(sender, deadline, self._prompt)

    def _stored(self) -> _Stored | None:
        """The stored sign-in, if it is one at this issuer, for this client and scope."""
        text = self._store.load()
        try:
            found = _Stored.model_validate_json(text) if text else None
        except ValidationError:
            return None
        wanted = (self._name, self._client_id, self._scope)
        return found if found and (found.issuer, found.client_id, found.scope) == wanted else None

    def _refresh(self, sender: Sender, deadline: float, refresh_token: str) -> Flow[bool]:
        """Uses a refresh token (RFC 6749 §6); whether the issuer accepted it."""
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        try:
            granted = yield from self._grant(sender, deadline, form)
        except ApiError as exc:
            if _code(exc) == "invalid_grant":
                return False
            raise TokenError(_refusal("The issuer did not renew the sign-in", exc)) from None
        self._save(granted, sender, refresh_token)
        return True

    def _save(self, granted: _Granted, sender: Sender, refresh_token: str | None = None) -> None:
        expires_at = self._keep(granted, sender)
        stored = _Stored(
            issuer=self._name,
            client_id=self._client_id,
            scope=self._scope,
            access_token=granted.access_token,
            expires_at=expires_at,
            refresh_token=granted.refresh_token or refresh_token,
        )
        self._store.save(stored.model_dump_json())

    def _sign_in(self, sender: Sender, deadline: float, prompt: Callable[[DevicePrompt], None]) -> Flow[None]:
        yield from self._issuer.discover(sender, deadline)
        url = self._issuer.device_endpoint
        if url is None:
            msg = (
                f"The issuer {host_of(self._name)} has no device flow. Use client credentials,"
                " or a token that you get in another way."
            )
            raise TokenError(msg)
        try:
            body = yield from self._post(sender, deadline, url, {})
        except ApiError as exc:
            raise TokenError(_refusal("The issuer refused to begin a sign-in", exc)) from None
        device = _read(_Device, body, url)
        life_s, complete = min(max(device.expires_in, 0.0), _DEVICE_S_MAX), device.verification_uri_complete
        prompt(
            DevicePrompt(
                uri=self._issuer.checked(device.verification_uri, "The page to sign in at"),
                code=plain(device.user_code, 100),
                uri_complete=complete and self._issuer.checked(complete, "The page to sign in at"),
                expires_in_s=life_s,
            )
        )
        poll = _Poll(min(max(device.interval, 1.0), life_s or 1.0), sender.timing.monotonic() + life_s)
        granted = yield from self._poll(sender, device.device_code, poll)
        self._save(granted, sender)

    def _poll(self, sender: Sender, device_code: str, poll: _Poll) -> Flow[_Granted]:
        """Polls until the person has signed in (RFC 8628 §3.4, §3.5)."""
        form = {"grant_type": DEVICE_GRANT, "device_code": device_code}
        while sender.timing.monotonic() < poll.until:
            yield Pause(poll.interval_s)
            try:
                return (yield from self._grant(sender, sender.deadline(), form))
            except ConnectionFailedError:
                poll.interval_s *= 2
            except ApiError as exc:
                match _code(exc):
                    case "authorization_pending":
                        pass
                    case "slow_down":
                        poll.interval_s += _SLOW_DOWN_S
                    case "access_denied":
                        msg = "The sign-in was denied."
                        raise LoginFailedError(msg) from None
                    case "expired_token":
                        break
                    case _:
                        raise TokenError(_refusal("The issuer ended the sign-in", exc)) from None
        msg = "Nobody signed in before the code expired. Sign in again."
        raise LoginFailedError(msg)


def _code(error: ApiError) -> str:
    """The code of an OAuth error (RFC 6749 §5.2)."""
    found = error.members.get("error")
    return plain(found, 100) if isinstance(found, str) else ""


def _refusal(what: str, error: ApiError) -> str:
    """A sentence about an issuer's refusal. It has the error's code alone: descriptions may repeat what was sent."""
    return f"{what}: {_code(error) or f'status {error.status}'}."


def source_of(token: "str | TokenSource | Callable[[], str] | None") -> TokenSource:
    """The source that an argument of a client stands for."""
    if token is None:
        return NoToken()
    if isinstance(token, TokenSource):
        return token
    return StaticToken(token) if isinstance(token, str) else FunctionToken(token)
