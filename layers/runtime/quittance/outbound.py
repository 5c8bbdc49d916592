"""Requests to strangers' servers: to public addresses only, never further than they were sent, never for long.

    resolve the name once → every address public? → connect to one of those, TLS for the name → POST → status

The name is not resolved again between check and connection, so it cannot come to mean another machine (DNS rebinding).
`http.client` follows no redirect and knows no proxy. All that the other side may do is answer late, and then the
connection is cut: see `_Cut`.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from functools import lru_cache
from typing import Final, Self

from quittance import webhook
from quittance.limits import WEBHOOK_CONNECT_MS_MAX, WEBHOOK_MS_MAX

_Resolve = Callable[[str, int], list[str]]
_CHARS_SHOWN: Final = 200
_TOO_LATE: Final = "the answer took too long"


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
    private: bool,
    resolve: _Resolve | None = None,
    trust: ssl.SSLContext | None = None,
) -> int:
    """The status of a server's answer to a POST; nothing else of the answer is read.

    `private` allows any address, plain HTTP and any port. Raises UndeliveredError.
    """
    refused = None if private else webhook.why_refused(url)
    if refused:
        raise UndeliveredError(refused)
    parts = webhook.parse_url(url)
    host, port = parts.hostname or "", webhook.port_of(parts)
    address = _checked_address((resolve or _resolve)(host, port), private=private)
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
                connected = (trust or _public_trust()).wrap_socket(connected, server_hostname=host)
            status = _exchange(connected, path, body, {**headers, "Host": parts.netloc.removesuffix(":")})
        except (OSError, http.client.HTTPException, ValueError) as exc:
            late = cut.happened or isinstance(exc, TimeoutError)  # the socket's own limit may strike first
            msg = _TOO_LATE if late else f"{type(exc).__name__}: {exc}"[:_CHARS_SHOWN]
            raise UndeliveredError(msg) from exc
        if cut.happened:  # http.client takes headers that are cut off for whole
            raise UndeliveredError(_TOO_LATE)
        return status


def _exchange(connected: socket.socket, path: str, body: bytes, headers: Mapping[str, str]) -> int:
    """One request over a connection that stands, and the status of its answer."""
    with closing(http.client.HTTPConnection("")) as client:
        client.sock = connected  # with its socket set it makes no connection of its own
        client.request("POST", path, body, {**headers, "Connection": "close"})
        return client.getresponse().status


def _checked_address(found: list[str], *, private: bool) -> str:
    """The address to connect to, IPv4 if there is one: Lambda's own network has no other. Raises UndeliveredError.

    One address that is not public spoils all: a name that answers with both is either broken or a trap.
    """
    addresses = [ipaddress.ip_address(address.partition("%")[0]) for address in found]
    if not addresses:
        msg = "the name has no address"
        raise UndeliveredError(msg)
    if not private and not all(webhook.is_public(address) for address in addresses):
        msg = "the name leads to an address that is not public"
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
