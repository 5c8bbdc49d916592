"""How many bytes a text takes in JSON, without writing all of it as JSON. Pure.

Most characters of a text are plain: they take one byte in JSON, however often it is nested. So only the others are
written, which are few in a long text.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

_PLAIN: Final = bytes(set(range(0x20, 0x7F)) - set(b'"\\'))


def json_bytes(text: str | None) -> int:
    """The size of a text in UTF-8 JSON, as Step Functions counts it."""
    if text is None:
        return len("null")
    plain, others = _split(text)
    return plain + len(json.dumps(others, ensure_ascii=False).encode())


def nested_bytes(text: str) -> int:
    """The most bytes that a text takes in a Lambda response: in the JSON of a body that is JSON itself."""
    plain, others = _split(text)
    return plain + len(json.dumps(json.dumps(others, ensure_ascii=False)))


def response_bytes(answered: Mapping[str, Any]) -> int:
    """The bytes of a proxy answer with a `body` as Lambda sends it: JSON in ASCII, with all escapes."""
    plain, others = _split(answered["body"] or "")
    return plain + len(json.dumps({**answered, "body": others}))


def _split(text: str) -> tuple[int, str]:
    """The number of plain characters, and the others in their order."""
    data = text.encode(errors="surrogatepass")
    others = data.translate(None, _PLAIN)
    return len(data) - len(others), others.decode(errors="surrogatepass")
