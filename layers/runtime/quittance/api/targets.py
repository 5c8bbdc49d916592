"""Targets of webhooks: which URLs the platform may call for a client. Pure. See docs/howto/webhooks.md."""

import ipaddress
import re
from typing import Annotated, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, WithJsonSchema

from quittance.limits import WEBHOOK_URL_CHARS_MAX

_URL: Final = re.compile(r"[!-~]+")  # visible ASCII: nothing that could end a header or be parsed in two ways
# Labels and lengths of RFC 1035 §2.3.4; a dot at the end marks a fully qualified name.
_NAME: Final = r"(?=.{1,253}\.?\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?"
_HOST: Final = re.compile(rf"{_NAME}|\[[0-9A-Fa-f:.]+\]")
_PORTS: Final = {"https": 443, "http": 80}
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
# Networks that `is_global` allows in some version of Python: protocol assignments (with Teredo), 6to4 and its relays,
# documentation.
_SPECIAL: Final = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20"))
)
_LOOPBACK: Final = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052; the last 32 bits are the IPv4 address

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_url(url: str) -> SplitResult:
    """Parses a webhook URL. Raises ValueError with a sentence that says what is wrong.

    Checks and connections use this parser only, so they cannot disagree about the host.
    """
    if len(url) > WEBHOOK_URL_CHARS_MAX:
        msg = f"must have at most {WEBHOOK_URL_CHARS_MAX} characters"
        raise ValueError(msg)
    if not _URL.fullmatch(url) or "\\" in url:
        msg = "must have only visible ASCII; percent-encode other characters and use Punycode for other hosts"
        raise ValueError(msg)
    if "#" in url:
        msg = "must have no fragment: clients never send it to the server"
        raise ValueError(msg)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        msg = "must be a URL with a valid host and port"
        raise ValueError(msg) from exc
    if parts.scheme not in _PORTS:
        msg = "must begin with https://"
        raise ValueError(msg)
    if "@" in parts.netloc:
        msg = "must have no user or password: put a secret into the path or the query, or verify the signature"
        raise ValueError(msg)
    host = parts.netloc if port is None else parts.netloc.rpartition(":")[0]
    if not _HOST.fullmatch(host.removesuffix(":")) or port == 0:
        msg = "must name a host, such as https://example.com/hook"
        raise ValueError(msg)
    return parts


def port_of(parts: SplitResult) -> int:
    """The port to connect to."""
    return parts.port or _PORTS[parts.scheme]


def tls_name(parts: SplitResult) -> str:
    """The host's name for server name indication and certificates, without a dot at its end (RFC 6066 §3)."""
    return (parts.hostname or "").removesuffix(".")


def why_refused(url: str, *, loopback: bool = False) -> str | None:
    """Why a well-formed URL is not allowed as a target; None if that depends only on the addresses of its name.

    `loopback` also allows loopback addresses, over plain HTTP and on any port.
    """
    parts = parse_url(url)
    try:
        address = ipaddress.ip_address(tls_name(parts))
    except ValueError:
        address = None
    if loopback and (address is None or is_loopback(address)):
        return None
    if address is not None and not is_public(address):
        return "must not be a private address"
    if parts.scheme != "https":
        return "must begin with https://"
    if port_of(parts) != _PORTS["https"]:
        return "must be on port 443"
    return None


def is_loopback(address: Address) -> bool:
    """Whether an address is a loopback address. IPv4 loopback addresses mapped to IPv6 do not count."""
    return any(address in network for network in _LOOPBACK)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public Internet only: not to a private network, a link or a tunnel.

    An IPv6 address that embeds an IPv4 address (RFC 4291 §2.5.5.2, RFC 6052) is judged by that address. The check is
    stricter than `is_global`, which accepts all addresses that are not registered and does not look into tunnels.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_UNICAST:
            return False
    if any(address in special for special in _SPECIAL):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _well_formed(url: str) -> str:
    parse_url(url)
    return url


WebhookUrl = Annotated[
    str,
    AfterValidator(_well_formed),
    WithJsonSchema(
        {
            "type": "string",
            "format": "uri",
            "pattern": "^https://",
            "maxLength": WEBHOOK_URL_CHARS_MAX,
            "examples": ["https://example.com/quittance"],
        }
    ),
]
"""A URL to call when a task is settled."""
