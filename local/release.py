"""Names the layer in template.yaml: `make release` writes the digest of its sources into the functions' variables.

A version of a function keeps the layer that it was published with, and callers use the version of the alias `live`. SAM
publishes a version if a property of the function changes, but does not see that a layer of the same template has
changed (tests/local/test_rollout.py). So without this digest an update would leave all callers with the old code.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from local.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

TEMPLATE: Final = ROOT / "template.yaml"
_LAYER: Final = ("layers/runtime",)
_DIGITS: Final = 16
_LINE: Final = re.compile(r"^( +RELEASE: )layer-[0-9a-f]+$", re.MULTILINE)


def sources_digest(names: Sequence[str]) -> str:
    """Return a digest of files and folders of the checkout."""
    digest = hashlib.sha256()
    for name in names:
        source = ROOT / name
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(ROOT)} {content}\n".encode())
    return digest.hexdigest()


def digest() -> str:
    """Return the name of the layer: no YAML parser takes it for a number."""
    return f"layer-{sources_digest(_LAYER)[:_DIGITS]}"


def written(template: str) -> str:
    """Return the template with the layer's name."""
    text, found = _LINE.subn(rf"\g<1>{digest()}", template)
    if found != 1:
        msg = "template.yaml must have the line `RELEASE: layer-…` once"
        raise ValueError(msg)
    return text


if __name__ == "__main__":
    TEMPLATE.write_text(written(TEMPLATE.read_text("utf-8")), "utf-8")
