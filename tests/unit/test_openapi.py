"""The committed description is OpenAPI 3.1 by somebody else's reckoning, and no field in it speaks of micro-credits."""

import json

from openapi_spec_validator import validate

from quittance.documentation import openapi_json, page


def test_the_description_is_valid_openapi() -> None:
    document = json.loads(openapi_json())
    assert document["openapi"].startswith("3.1")
    validate(document)
    assert "_micro" not in openapi_json()


def test_the_page_loads_nothing_from_elsewhere() -> None:
    shown = page().html
    assert "Run an agent and pay it if it succeeds" in shown
    assert " src=" not in shown.split("<script>")[0]
    assert "<link rel='stylesheet'" not in shown
