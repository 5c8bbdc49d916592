"""Requests to servers of clients: only public addresses, no redirects, limited time, few bytes read.

    resolve the name once → every address public? → connect to one of them, TLS for the name → POST → status

The name is not resolved again between check and connection, so it cannot change to another machine (DNS rebinding).
`http.client` sends the request; it uses no proxy. This module reads the response itself, because `http.client` accepts
at most 100 headers, accepts truncated headers, and skips only the interim response 100. The connection of a late
response is closed: see `_Deadline`.
"""

import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from functools import lru_cache
from http import HTTPStatus
from typing import BinaryIO, Final, Self

from quittance.api import targets
from quittance.limits import WEBHOOK_ANSWER_BYTES_MAX, WEBHOOK_CONNECT_MS_MAX, WEBHOOK_MS_MAX

_Resolve = Callable[[str, int], list[str]]
_LOGGED_CHARS_MAX: Final = 200
_TOO_LATE: Final = "the answer took too long"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: [^\n]*)?\r?\n")
_ENDS_HEADERS: Final = (b"\r\n", b"\n")


class UndeliveredError(Exception):
    """No response: the target is not allowed, could not be reached, or was too slow. The text is for the log."""


class _Deadline:
    """Closes a connection when its time is over, whatever it is doing.

    A socket's own timeout restarts with every byte, so a server that sends a byte now and then could hold a caller for
    ever. A duplicate of the descriptor closes the same connection, also after TLS has wrapped the original one.
    """

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        self._copy = connected.dup()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self.passed = False

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        self._copy.close()

    def _end(self) -> None:
        self.passed = True
        with suppress(OSError):
            self._copy.shutdown(socket.SHUT_RDWR)


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    loopback: bool,
    resolve: _Resolve | None = None,
    trust: ssl.SSLContext | None = None,
) -> int:
    """Sends a POST. Returns the status of the final response; nothing else of the response is used.

    `loopback` also allows targets that have only loopback addresses, over plain HTTP and on any port. Raises
    UndeliveredError.
    """
    try:
        parts, refused = targets.parse_url(url), targets.why_refused(url, loopback=loopback)
    except ValueError as exc:  # accepted by an earlier version
        raise UndeliveredError(str(exc)) from exc
    if refused:
        raise UndeliveredError(refused)
    port = targets.port_of(parts)
    found = (resolve or _resolve)(parts.hostname or "", port)
    address = _checked_address(found, public=targets.why_refused(url) is None, loopback=loopback)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connected = socket.create_connection((address, port), timeout=WEBHOOK_CONNECT_MS_MAX / 1_000)
    except OSError as exc:
        msg = f"cannot be connected to: {type(exc).__name__}"
        raise UndeliveredError(msg) from exc
    connected.settimeout(WEBHOOK_MS_MAX / 1_000)
    with connected, _Deadline(connected, WEBHOOK_MS_MAX / 1_000) as deadline:
        try:
            if parts.scheme == "https":
                connected = (trust or _public_trust()).wrap_socket(connected, server_hostname=targets.tls_name(parts))
            return _exchange(connected, path, body, {**headers, "Host": parts.netloc.removesuffix(":")})
        except UndeliveredError as exc:
            raise UndeliveredError(_TOO_LATE if deadline.passed else str(exc)) from exc
        except (OSError, http.client.HTTPException, ValueError) as exc:
            late = deadline.passed or isinstance(exc, TimeoutError)  # the socket's own timeout may end first
            raise UndeliveredError(_TOO_LATE if late else _shortened(f"{type(exc).__name__}: {exc}")) from exc


def _exchange(connected: socket.socket, path: str, body: bytes, headers: Mapping[str, str]) -> int:
    """Sends one request over an open connection. Returns the status of the response."""
    with closing(http.client.HTTPConnection("")) as client:
        client.sock = connected  # with a socket set, the client opens no connection itself
        # A server may respond before it has read everything, and close: that response counts.
        with suppress(ConnectionError):
            client.request("POST", path, body, {**headers, "Connection": "close"})
        with connected.makefile("rb") as answer:
            return _final_status(answer)


def _final_status(answer: BinaryIO) -> int:
    """The status of the first response that is not interim (RFC 9110 §15.2), after the end of its headers.

    101 counts as final, because the connection would switch to another protocol. Raises UndeliveredError.
    """
    lines = _lines(answer)
    while True:
        line = next(lines)
        found = _STATUS_LINE.fullmatch(line)
        if found is None:
            msg = _shortened(f"the answer is not HTTP: {line!r}")
            raise UndeliveredError(msg)
        while next(lines) not in _ENDS_HEADERS:
            pass
        status = int(found[1])
        if status // 100 != HTTPStatus.CONTINUE // 100 or status == HTTPStatus.SWITCHING_PROTOCOLS:
            return status


def _lines(answer: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a response. Raises UndeliveredError when it ends or has too many bytes."""
    left = WEBHOOK_ANSWER_BYTES_MAX
    while left:
        line = answer.readline(left)
        left -= len(line)
        if line.endswith(b"\n"):
            yield line
        elif left:
            msg = "the connection was closed before the answer's headers had ended"
            raise UndeliveredError(msg)
    msg = f"the answer's headers have more than {WEBHOOK_ANSWER_BYTES_MAX} bytes"
    raise UndeliveredError(msg)


def _shortened(text: str) -> str:
    return text[:_LOGGED_CHARS_MAX]


def _checked_address(found: list[str], *, public: bool, loopback: bool) -> str:
    """The address to connect to, IPv4 if there is one, because Lambda's own network has only IPv4.

    Raises UndeliveredError if not all addresses are of an allowed kind: a name with mixed addresses is broken or an
    attack.
    """
    addresses = [ipaddress.ip_address(address.partition("%")[0]) for address in found]
    if not addresses:
        msg = "the name has no address"
        raise UndeliveredError(msg)
    kinds = {"public": targets.is_public} if public else {}
    kinds |= {"loopback": targets.is_loopback} if loopback else {}
    if not any(all(map(is_kind, addresses)) for is_kind in kinds.values()):
        msg = f"the name leads to an address that is not {' or '.join(kinds)}"
        raise UndeliveredError(msg)
    return str(min(addresses, key=lambda address: address.version))


def _resolve(host: str, port: int) -> list[str]:
    """All addresses of a name. The system's resolver gives up after about 10 s; the function has more time."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        msg = "the name cannot be resolved"
        raise UndeliveredError(msg) from exc
    return [str(address[0]) for *_, address in found]


@lru_cache(maxsize=1)
def _public_trust() -> ssl.SSLContext:
    """The system's certificate authorities, with host name checks. Created once: reading takes some milliseconds."""
    return ssl.create_default_context()
