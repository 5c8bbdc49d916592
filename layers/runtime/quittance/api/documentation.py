"""The API's OpenAPI description and its page. `make openapi` generates the description, which is committed."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Final

_OPENAPI: Final = Path(__file__).parents[1] / "openapi.json"
_ROOTS_KEPT: Final = 4  # the stage's own address and some custom domains


@dataclass(frozen=True, slots=True)
class Document:
    """A response that is not a JSON model: its text, its media type and additional headers."""

    text: str
    media_type: str
    headers: Mapping[str, str]


@lru_cache(maxsize=_ROOTS_KEPT)
def openapi_json(root: str = "") -> str:
    """The OpenAPI 3.1 description for an API at this path: `/{stage}`, a base path, or empty.

    The server's URL is relative to the host that served the description (OpenAPI 3.1.0 §4.8.5), so any host works.
    """
    document = json.loads(_OPENAPI.read_text())
    return json.dumps(document | {"servers": [{"url": root or "/"}]}, indent=2, sort_keys=True)


@lru_cache(maxsize=_ROOTS_KEPT)
def page(root: str = "") -> Document:
    """A page that displays the description with Powertools' copy of Swagger UI. It loads nothing from other hosts.

    Its headers make browsers enforce that (Content Security Policy Level 3): only the page's own inline scripts and
    styles are used, and requests go only to this API.
    """
    from aws_lambda_powertools.event_handler.openapi import swagger_ui

    ui = files(swagger_ui)
    html = swagger_ui.generate_swagger_html(
        spec=openapi_json(root),
        swagger_js=ui.joinpath("swagger-ui-bundle.min.js").read_text(),
        swagger_css=ui.joinpath("swagger-ui.min.css").read_text(),
        swagger_base_url="",
        oauth2_config=None,
    )
    headers = {"Content-Security-Policy": _policy(html), "Referrer-Policy": "no-referrer"}
    return Document(html, "text/html; charset=utf-8", headers)


def _policy(html: str) -> str:
    return "; ".join(
        [
            "default-src 'none'",
            "script-src " + _hashes("script", html),
            "style-src " + _hashes("style", html),
            "img-src data:",  # icons in the style sheet
            "connect-src 'self'",  # for `Try it out`
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _hashes(tag: str, html: str) -> str:
    """The digests of the contents of all elements with a tag, in the notation of a policy."""
    texts = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
