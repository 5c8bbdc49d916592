"""The seal of an item: a digest of the attributes that never change after its first write. Pure.

It shows the audit an attribute that was changed by a bug, a repair or a damaged copy, even one that no receipt states.
It is no signature: whoever can write the table can also write a seal. See docs/adr/0028.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any, Final

SEAL: Final = "seal"
UNSEALED: Final = frozenset({"state", "runner", "fence", "lease_ms", "work", "work_at", "payout"})
"""The attributes of a first write that change later."""
_BYTES: Final = 16  # enough against accidents, and short in every item


def sealed(values: Mapping[str, Any], *, unsealed: Collection[str] = ()) -> dict[str, Any]:
    """The attributes of a new item with its seal, which covers all of them but UNSEALED and `unsealed`.

    What is None is not stored, so it is not covered.
    """
    left_open = UNSEALED.union(unsealed)
    covered = {name: value for name, value in values.items() if name not in left_open}
    return {**values, SEAL: _digest(covered)}


def is_sealed(values: Mapping[str, Any]) -> bool:
    """Whether the seal among these attributes is that of the others."""
    return bool(values[SEAL] == _digest({name: value for name, value in values.items() if name != SEAL}))


def _digest(values: Mapping[str, Any]) -> bytes:
    named = {name: value for name, value in values.items() if value is not None}
    text = json.dumps(named, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()[:_BYTES]
