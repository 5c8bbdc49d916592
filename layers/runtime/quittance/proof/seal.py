"""The seal of an item: a digest of the attributes that never change after the first write. Pure.

It lets the audit detect an attribute that a bug, a repair or a damaged copy changed, even one that no receipt states.
It is not a signature: whoever can write to the table can also write a seal. See docs/adr/0028.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

SEAL: Final = "seal"
UNSEALED: Final = frozenset({"state", "runner", "fence", "lease_ms", "work", "work_at", "party", "payout", "ticket"})
"""The attributes of a first write that change later."""
WITH_PARTY: Final[Mapping[str, Any]] = MappingProxyType({"party": True})
"""What the seal of an escrow covers beside its attributes, if its code knew `party`. So the audit distinguishes one
that lost the attribute from an older one that never had it."""
_BYTES: Final = 16  # enough to detect accidents, and little to store in every item


def sealed(
    values: Mapping[str, Any], *, unsealed: Collection[str] = (), beside: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """The attributes of a new item and its seal, which covers all of them except UNSEALED and `unsealed`.

    It also covers what is `beside` the attributes. Those that are None are not stored, so they are not covered.
    """
    uncovered = UNSEALED.union(unsealed)
    covered = {name: value for name, value in values.items() if name not in uncovered}
    return {**values, SEAL: _digest({**covered, **beside})}


def is_sealed(values: Mapping[str, Any], *, beside: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Whether the seal among these attributes matches the others, and what is `beside` them."""
    return bool(values[SEAL] == _digest({**{name: value for name, value in values.items() if name != SEAL}, **beside}))


def _digest(values: Mapping[str, Any]) -> bytes:
    named = {name: value for name, value in values.items() if value is not None}
    text = json.dumps(named, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()[:_BYTES]
