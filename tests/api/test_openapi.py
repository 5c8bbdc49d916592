"""The committed description is OpenAPI 3.1 by somebody else's reckoning, and no field in it speaks of micro-credits."""

import json
import re

import pytest
from openapi_spec_validator import validate

from quittance.api.documentation import openapi_json, page


def test_the_description_is_valid_openapi() -> None:
    document = json.loads(openapi_json())
    assert document["openapi"].startswith("3.1")
    validate(document)
    assert "_micro" not in openapi_json()


def test_the_page_loads_nothing_from_elsewhere() -> None:
    shown = page().text
    assert "Run an agent and pay it if it succeeds" in shown
    assert " src=" not in shown.split("<script>")[0]
    assert "<link rel='stylesheet'" not in shown


@pytest.mark.parametrize(("root", "server"), [("", "/"), ("/prod", "/prod"), ("/pay/v1", "/pay/v1")])
def test_the_server_is_where_the_client_found_us(root: str, server: str) -> None:
    """So `Try it out` and generated clients work under a stage and under a base path (OpenAPI 3.1.0 §4.8.5)."""
    document = json.loads(openapi_json(root))
    validate(document)
    assert document["servers"] == [{"url": server}]
    shown = re.search(r"spec: (\{.*?\n\}),\n    presets", page(root).text, re.DOTALL)
    assert shown is not None
    assert json.loads(shown[1]) == document
    assert page(root).headers != page(root + "/other").headers, "the policy names the page's script by digest"
