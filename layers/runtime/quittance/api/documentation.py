"""The API's description and its page. The description is generated from the code and committed (`make openapi`)."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Final

_OPENAPI: Final = "openapi.json"
_ROOTS_KEPT: Final = 4  # a stage's own address and some custom domains


@dataclass(frozen=True, slots=True)
class Document:
    """What a route answers that is no JSON model of ours: the text, its media type, and headers beside it."""

    text: str
    media_type: str
    headers: Mapping[str, str]


@lru_cache(maxsize=_ROOTS_KEPT)
def openapi_json(root: str = "") -> str:
    """The OpenAPI 3.1 description for clients that find the API at this path: `/{stage}`, a base path, or nothing.

    The server is relative to the host that the description came from (OpenAPI 3.1.0 §4.8.5): whatever name that has.
    """
    document = json.loads(files("quittance").joinpath(_OPENAPI).read_text())
    return json.dumps(document | {"servers": [{"url": root or "/"}]}, indent=2, sort_keys=True)


@lru_cache(maxsize=_ROOTS_KEPT)
def page(root: str = "") -> Document:
    """A page that shows the description with Powertools' copy of Swagger UI; it loads nothing from elsewhere.

    The headers hold browsers to that (Content Security Policy Level 3): what stands in the page, and nothing else, may
    be run and shown, and requests go to this API alone.
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
            "img-src data:",  # the icons of its style sheet
            "connect-src 'self'",  # `Try it out`
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _hashes(tag: str, html: str) -> str:
    """The digests of what stands in a page's elements of one kind, as a policy names them."""
    texts = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
