"""The `Prefer` header (RFC 7240): what a client would like, and what nobody has to grant. Pure."""

import re
from collections.abc import Iterable
from typing import Final

# Possessive throughout: what was matched is never given back, so the work is proportional to the header's length.
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED: Final = r'"(?:[^"\\]++|\\.)*+"'
# The members of a list: commas inside quotes part nothing, and a quote that never ends takes all the rest.
_MEMBER: Final = re.compile(rf'(?:[^,"]++|{_QUOTED}|".*+)++', re.DOTALL)
# Parameters, which follow a semicolon, say more of a preference; none that is granted here has any.
_PREFERENCE: Final = re.compile(rf"[ \t]*+({_WORD})[ \t]*+(?:=[ \t]*+({_WORD}|{_QUOTED})?[ \t]*+)?(?:;.*+)?", re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


def preferences(headers: Iterable[str]) -> dict[str, str]:
    """The preferences of all `Prefer` headers of a request: names in lower case, values without quotes.

    The first of a name counts, and an empty value is none (RFC 7240 §2). What is malformed is passed over: a preference
    may always be ignored.
    """
    found: dict[str, str] = {}
    for header in headers:
        for member in _MEMBER.findall(header):
            if match := _PREFERENCE.fullmatch(member):
                found.setdefault(match[1].lower(), _unquoted(match[2] or ""))
    return found


def wants_async(headers: Iterable[str]) -> bool:
    """Whether the client prefers not to wait for the outcome (RFC 7240 §4.1). How long it would wait is not asked."""
    return preferences(headers).get("respond-async") == ""


def _unquoted(value: str) -> str:
    return _ESCAPED.sub(r"\1", value[1:-1]) if value.startswith('"') else value
