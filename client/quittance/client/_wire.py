"""What the client asks of the world, and the two drivers that do it: one blocks, one awaits.

All logic of the client is in generators (`Flow`), which do no I/O: they yield a step, get its outcome, and return their
result. `Blocking` and `Awaiting` drive a flow with httpx. So each call is written once, for threads and for asyncio.
"""

import ipaddress
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, BinaryIO, Final, Generic, Protocol, TypeVar
from urllib.parse import SplitResult, urlsplit

import anyio
import httpx

from quittance.client._errors import ConfigurationError, ConnectionFailedError, UnexpectedAnswerError, plain
from quittance.limits import LAMBDA_SYNC_BYTES_MAX

_T = TypeVar("_T")
ANSWER_BYTES_MAX: Final = LAMBDA_SYNC_BYTES_MAX  # no function can answer with more
CONNECT_S_MAX: Final = 10.0
_HOST_CHARS_MAX: Final = 255  # in messages; a name of the DNS has 253 and a port
_LEAST_S: Final = 0.001
_GRACE_S: Final = 1.0  # for the timeout of connecting to end a call first, because its error says that nothing was sent
_NO_URL: Final = re.compile(r"[\s\x00-\x1f\x7f#\\]")
_LOCK_POLL_S: Final = 0.01
_USER_AGENT: Final = "quittance-client/0.1.0"


class Lock(Protocol):
    """A lock of threads or of processes."""

    def acquire(self, blocking: bool = True) -> bool:  # noqa: FBT001, FBT002 - as threading.Lock
        """Take the lock, or say that another has it."""

    def release(self) -> None:
        """Give it back."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A form with one file. `opened` opens the file anew for each attempt; `sent` gets each piece that was read."""

    fields: Mapping[str, str] = field(repr=False)
    opened: Callable[[], BinaryIO]
    sent: Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. Headers and bodies may hold secrets, so they are in no `repr`."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    upload: Upload | None = None
    deadline: float = float("inf")
    answer_s_max: float = 35.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response."""

    status: int
    headers: httpx.Headers = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Take:
    """Wait until a lock is free, and take it. The flow gives it back."""

    lock: Lock


Step = Request | Pause | Take
Flow = Generator[Step, Answer | None, _T]
"""A computation that asks for steps and returns a result."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Clocks, pauses and chance, for tests to replace."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random
    sleep: Callable[[float], None] = time.sleep
    sleep_async: Callable[[float], Awaitable[None]] = anyio.sleep


def exchange(request: Request) -> Flow[Answer]:
    """Send a request. Raises ConnectionFailedError, UnexpectedAnswerError."""
    answer = yield request
    if answer is None:
        msg = "a driver must answer a request"
        raise TypeError(msg)
    return answer


def _throwing(flow: Flow[Any], exc: BaseException) -> Callable[[], Step]:
    return lambda: flow.throw(exc)


def _sending(flow: Flow[Any], outcome: Answer | None) -> Callable[[], Step]:
    return lambda: flow.send(outcome)


class Blocking:
    """Does the steps of flows in the calling thread."""

    def __init__(self, http: httpx.Client | None, timing: Timing) -> None:
        self._clients = _Clients(http, lambda trust_env: httpx.Client(trust_env=trust_env, cookies=_no_cookies()))
        self._timing = timing

    def run(self, flow: Flow[_T]) -> _T:
        """The result of a flow."""
        resume: Callable[[], Step] = partial(next, flow)
        while True:
            try:
                step = resume()
            except StopIteration as done:
                result: _T = done.value
                return result
            try:
                outcome = self._do(step)
            except BaseException as exc:  # noqa: BLE001 - the flow decides, and its `finally` blocks must run
                resume = _throwing(flow, exc)
            else:
                resume = _sending(flow, outcome)

    def close(self) -> None:
        """Close the connections that this driver opened."""
        for client in self._clients.closed():
            client.close()

    def _do(self, step: Step) -> Answer | None:
        match step:
            case Pause(seconds):
                self._timing.sleep(seconds)
            case Take(lock):
                lock.acquire()
            case Request():
                return self._send(step)
        return None

    def _send(self, request: Request) -> Answer:
        http = self._clients.of(request.url)
        with _translated(request), _opened(request) as content:
            response = http.send(_built(http, request, content, self._timing), **_SENDING)
            try:
                reader = _Reader(request, response, self._timing)
                for chunk in response.iter_raw():
                    reader.add(chunk)
            finally:
                response.close()
        return reader.answer()


class Awaiting:
    """Does the steps of flows in the running event loop."""

    def __init__(self, http: httpx.AsyncClient | None, timing: Timing) -> None:
        self._clients = _Clients(http, lambda trust_env: httpx.AsyncClient(trust_env=trust_env, cookies=_no_cookies()))
        self._timing = timing

    async def run(self, flow: Flow[_T]) -> _T:
        """The result of a flow."""
        resume: Callable[[], Step] = partial(next, flow)
        while True:
            try:
                step = resume()
            except StopIteration as done:
                result: _T = done.value
                return result
            try:
                outcome = await self._do(step)
            except BaseException as exc:  # noqa: BLE001 - the flow decides, and its `finally` blocks must run
                resume = _throwing(flow, exc)
            else:
                resume = _sending(flow, outcome)

    async def close(self) -> None:
        """Close the connections that this driver opened."""
        for client in self._clients.closed():
            await client.aclose()

    async def _do(self, step: Step) -> Answer | None:
        match step:
            case Pause(seconds):
                await self._timing.sleep_async(seconds)
            case Take(lock):
                # The lock may be another thread's, loop's or process's, so it cannot be awaited.
                while not lock.acquire(blocking=False):
                    await anyio.sleep(_LOCK_POLL_S)
            case Request():
                return await self._send(step)
        return None

    async def _send(self, request: Request) -> Answer:
        left_s = max(request.deadline - self._timing.monotonic(), _LEAST_S)
        with anyio.move_on_after(left_s + _GRACE_S):
            return await self._exchange(request)
        raise _late(request)

    async def _exchange(self, request: Request) -> Answer:
        http = self._clients.of(request.url)
        with _translated(request), _opened(request) as content:
            response = await http.send(_built(http, request, content, self._timing), **_SENDING)
            try:
                reader = _Reader(request, response, self._timing)
                async for chunk in response.aiter_raw():
                    reader.add(chunk)
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        return reader.answer()


def _no_cookies() -> CookieJar:
    """A jar that takes none: a cookie would tie together callers that share a client."""
    return CookieJar(policy=DefaultCookiePolicy(allowed_domains=()))


_SENDING: Final[Mapping[str, Any]] = {"stream": True, "auth": None, "follow_redirects": False}
_Http = TypeVar("_Http", bound=httpx.Client | httpx.AsyncClient)


class _Clients(Generic[_Http]):
    """The HTTP clients of a driver: the caller's, or one that uses the environment's proxies and one that does not.

    Proxies must not get requests to this machine: they could not reach it, and would see the token.
    """

    def __init__(self, given: _Http | None, make: Callable[[bool], _Http]) -> None:
        self._given = given
        self._make = make
        self._made: dict[bool, _Http] = {}
        self._closed = False
        self._lock = threading.Lock()

    def of(self, url: str) -> _Http:
        """The client for a URL."""
        if self._given is not None:
            return self._given
        trust_env = not is_loopback(urlsplit(url).hostname or "")
        with self._lock:
            if self._closed:
                msg = "The client is closed."
                raise ConfigurationError(msg)
            if trust_env not in self._made:
                self._made[trust_env] = self._make(trust_env)
            return self._made[trust_env]

    def closed(self) -> list[_Http]:
        """The clients that were made here, for the last time."""
        with self._lock:
            self._closed = True
            made = list(self._made.values())
            self._made.clear()
        return made


def _late(request: Request) -> ConnectionFailedError:
    return ConnectionFailedError(f"{host_of(request.url)} did not complete its answer in time.", sent=True)


class _Reader:
    """Reads a response of a limited size in a limited time."""

    def __init__(self, request: Request, response: httpx.Response, timing: Timing) -> None:
        self._request = request
        self._response = response
        self._timing = timing
        self._body = bytearray()
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            msg = f"{host_of(request.url)} compressed its answer, although it was asked not to."
            raise UnexpectedAnswerError(msg)

    def add(self, chunk: bytes) -> None:
        """Take a piece of the body. Raises UnexpectedAnswerError, ConnectionFailedError."""
        if len(self._body) + len(chunk) > ANSWER_BYTES_MAX:
            msg = f"{host_of(self._request.url)} answered with more than {ANSWER_BYTES_MAX} bytes."
            raise UnexpectedAnswerError(msg)
        self._body += chunk
        if self._timing.monotonic() > self._request.deadline:
            raise _late(self._request)

    def answer(self) -> Answer:
        """The complete response."""
        return Answer(self._response.status_code, self._response.headers, bytes(self._body))


class _Counted:
    """A file that reports what was read. It has what httpx needs of a file to know its length."""

    def __init__(self, file: BinaryIO, sent: Callable[[bytes], None]) -> None:
        self._file = file
        self._sent = sent

    def read(self, size: int = -1) -> bytes:
        """Bytes of the file."""
        data = self._file.read(size)
        self._sent(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves in the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place in the file."""
        return self._file.tell()


@contextmanager
def _opened(request: Request) -> Iterator[dict[str, Any]]:
    """The body of a request, as httpx takes it."""
    if request.upload is None:
        yield {"data": dict(request.form)} if request.form is not None else {"content": request.body}
        return
    with request.upload.opened() as file:
        part = ("module.wasm", _Counted(file, request.upload.sent), "application/wasm")
        yield {"data": dict(request.upload.fields), "files": {"file": part}}


def _built(
    http: httpx.Client | httpx.AsyncClient, request: Request, content: Mapping[str, Any], timing: Timing
) -> httpx.Request:
    left_s = max(request.deadline - timing.monotonic(), _LEAST_S)
    timeout = httpx.Timeout(min(request.answer_s_max, left_s), connect=min(CONNECT_S_MAX, left_s))
    headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **request.headers}
    if request.upload is not None:  # to a host that the API names: the caller's own headers and cookies are not for it
        bare = {"timeout": timeout.as_dict()}
        return httpx.Request(request.method, request.url, headers=headers, extensions=bare, **content)
    return http.build_request(request.method, request.url, headers=headers, timeout=timeout, **content)


@contextmanager
def _translated(request: Request) -> Iterator[None]:
    """The errors of httpx as the client's own, whose texts name the host and what may be done."""
    host = host_of(request.url)
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as exc:
        sentence, lasting = _no_connection(host, exc)
        raise ConnectionFailedError(sentence, sent=False, lasting=lasting) from exc
    except httpx.TimeoutException as exc:
        msg = f"{host} did not answer in time."
        raise ConnectionFailedError(msg, sent=True) from exc
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as exc:
        msg = f"{host} cannot be called: {plain(exc, 200)}"
        raise ConfigurationError(msg) from exc
    except httpx.TransportError as exc:
        msg = f"The connection to {host} broke before the answer was complete: {plain(exc, 200) or type(exc).__name__}."
        raise ConnectionFailedError(msg, sent=True) from exc


def _no_connection(host: str, exc: Exception) -> tuple[str, bool]:
    """Why there is no connection, and whether another attempt would fail in the same way."""
    causes: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(found, ssl.SSLCertVerificationError) for found in causes):
        return (
            f"The certificate of {host} is not trusted: {plain(exc, 200)}. Check the address and SSL_CERT_FILE.",
            True,
        )
    if any(isinstance(found, socket.gaierror) for found in causes):
        return f"The name {host} cannot be resolved. Check the address and the network.", False
    if any(isinstance(found, ConnectionRefusedError) for found in causes):
        return f"Nothing answers at {host}: the connection was refused. Check the address, and that it runs.", False
    return f"No connection to {host}: {plain(exc, 200) or type(exc).__name__}. Check the network and proxies.", False


def host_of(url: str) -> str:
    """The host of a URL with its port, for messages; never a path, query or password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "?"
    return f"{plain(parts.hostname or '?', _HOST_CHARS_MAX)}{f':{port}' if port else ''}"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: a loopback address, `localhost`, or a name under it (RFC 6761 §6.3)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")


def checked_url(url: str, what: str, *, query: bool = False) -> str:
    """A URL that may get secrets: https, or http on this machine; without a user or fragment, and a query if allowed.

    Raises ConfigurationError.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", SplitResult("", "", "", "", "")
    if not host or parts.scheme not in {"https", "http"} or _NO_URL.search(url) or ("?" in url and not query):
        msg = f"{what} must be a URL such as https://api.example.com."
        raise ConfigurationError(msg)
    if "@" in parts.netloc:
        msg = f"{what} must not contain a user or a password."
        raise ConfigurationError(msg)
    if parts.scheme != "https" and not is_loopback(host):
        msg = f"{what} must begin with https://, because tokens are sent there; http is for this machine only."
        raise ConfigurationError(msg)
    return url
