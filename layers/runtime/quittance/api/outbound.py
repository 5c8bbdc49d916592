"""Requests to strangers' servers: to public addresses only, no redirect followed, never for long, few bytes read.

    resolve the name once → every address public? → connect to one of those, TLS for the name → POST → status

The name is not resolved again between check and connection, so it cannot come to mean another machine (DNS rebinding).
`http.client` sends the request; it knows no proxy. The answer is read here, because `http.client` takes no more than
100 headers, takes headers that are cut off for whole, and skips no interim answer but 100. An answer that comes late
has its connection cut: see `_Cut`.
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
_CHARS_SHOWN: Final = 200
_TOO_LATE: Final = "the answer took too long"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: [^\n]*)?\r?\n")
_ENDS_HEADERS: Final = (b"\r\n", b"\n")


class UndeliveredError(Exception):
    """No answer: the target may not be reached, could not be, or was too slow. The text is for the log."""


class _Cut:
    """Ends a connection when its time is over, whatever it is doing.

    A socket's own time-out begins again with every byte, so a server that sends one now and then could hold a caller
    for ever. The copy of the descriptor is another name of the same connection, also after TLS has taken the first.
    """

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        self._copy = connected.dup()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self.happened = False

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        self._copy.close()

    def _end(self) -> None:
        self.happened = True
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
    """The status of a server's final answer to a POST; of that answer nothing else is used.

    `loopback` also allows targets all of whose addresses are loopback ones, over plain HTTP and on any port. Raises
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
    with connected, _Cut(connected, WEBHOOK_MS_MAX / 1_000) as cut:
        try:
            if parts.scheme == "https":
                connected = (trust or _public_trust()).wrap_socket(connected, server_hostname=targets.tls_name(parts))
            return _exchange(connected, path, body, {**headers, "Host": parts.netloc.removesuffix(":")})
        except UndeliveredError as exc:
            raise UndeliveredError(_TOO_LATE if cut.happened else str(exc)) from exc
        except (OSError, http.client.HTTPException, ValueError) as exc:
            late = cut.happened or isinstance(exc, TimeoutError)  # the socket's own limit may strike first
            raise UndeliveredError(_TOO_LATE if late else _shown(f"{type(exc).__name__}: {exc}")) from exc


def _exchange(connected: socket.socket, path: str, body: bytes, headers: Mapping[str, str]) -> int:
    """One request over a connection that stands, and the status of its answer."""
    with closing(http.client.HTTPConnection("")) as client:
        client.sock = connected  # with its socket set it makes no connection of its own
        # A server may answer before it has read everything, and close: the answer counts.
        with suppress(ConnectionError):
            client.request("POST", path, body, {**headers, "Connection": "close"})
        with connected.makefile("rb") as answer:
            return _final_status(answer)


def _final_status(answer: BinaryIO) -> int:
    """The status of the first answer that is not an interim one (RFC 9110 §15.2), once its headers have ended.

    After 101, which no request of ours asks for, the connection would be of another protocol. Raises UndeliveredError.
    """
    lines = _lines(answer)
    while True:
        line = next(lines)
        found = _STATUS_LINE.fullmatch(line)
        if found is None:
            msg = _shown(f"the answer is not HTTP: {line!r}")
            raise UndeliveredError(msg)
        while next(lines) not in _ENDS_HEADERS:
            pass
        status = int(found[1])
        if status // 100 != HTTPStatus.CONTINUE // 100 or status == HTTPStatus.SWITCHING_PROTOCOLS:
            return status


def _lines(answer: BinaryIO) -> Iterator[bytes]:
    """The lines of an answer, without end. Raises UndeliveredError where it has ended, or has too many bytes."""
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


def _shown(text: str) -> str:
    return text[:_CHARS_SHOWN]


def _checked_address(found: list[str], *, public: bool, loopback: bool) -> str:
    """The address to connect to, IPv4 if there is one: Lambda's own network has no other. Raises UndeliveredError.

    One address of another kind spoils all: a name that answers with both is either broken or a trap.
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
    """All addresses of a name. The system's resolver gives up after some 10 s; the function's time is above that."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        msg = "the name cannot be resolved"
        raise UndeliveredError(msg) from exc
    return [str(address[0]) for *_, address in found]


@lru_cache(maxsize=1)
def _public_trust() -> ssl.SSLContext:
    """The system's certificate authorities; names are checked. Made once: reading them takes some milliseconds."""
    return ssl.create_default_context()
