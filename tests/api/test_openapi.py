"""The committed description is OpenAPI 3.1 by somebody else's reckoning, and complete: nothing in it lacks a text."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import validate

from local import openapi, openapi_texts
from quittance import errors
from quittance.api.documentation import openapi_json, page
from quittance.errors import QuittanceError, RequestError, problem
from tests.described import DOCUMENT, PROBLEM_JSON, flaws, operations, resolved

VERBS = {
    "activate", "cancel", "close", "decide", "deposit", "estimate", "execute", "freeze", "get", "list", "move", "open",
    "pause", "redeem", "register", "resume", "retire", "search", "top", "unfreeze", "update", "upload", "withdraw",
}  # fmt: skip


def routes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each operation with its route."""
    for method, path, operation in operations():
        yield f"{method} {path}", operation


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


def test_operation_ids_are_unique_and_begin_with_a_verb() -> None:
    """Generators name functions by them."""
    names = [operation["operationId"] for _, operation in routes()]
    assert len({*names}) == len(names)
    for name in names:
        assert re.fullmatch("[a-z]+(_[a-z0-9]+)+", name), name
        assert name.partition("_")[0] in VERBS, name


def test_everything_in_the_description_has_a_text() -> None:
    missing = [
        f"{name}.{member}"
        for name, schema in DOCUMENT["components"]["schemas"].items()
        for member, described in {"": schema, **schema.get("properties", {})}.items()
        if not described.get("description")
    ]
    for route, operation in routes():
        missing += [f"{route} {name}" for name in ("summary", "description") if not operation.get(name)]
        parameters = [(each["name"], each) for each in operation.get("parameters", [])]
        answers = [(status, resolved(each)) for status, each in operation["responses"].items()]
        headers = [header for _, each in answers for header in each.get("headers", {}).items()]
        body = [("body", operation["requestBody"])] if "requestBody" in operation else []
        missing += [
            f"{route} {name}" for name, each in [*parameters, *answers, *headers, *body] if not each["description"]
        ]
    assert not missing


def test_no_route_hides_answers_behind_a_default() -> None:
    for route, operation in routes():
        assert "default" not in operation["responses"], route
        assert {"429", "500", "503"} <= {*operation["responses"]}, route


def test_locked_routes_name_their_scheme_and_refusals() -> None:
    for route, operation in routes():
        locked = bool(operation["security"]) and {} not in operation["security"]
        by_key = "ticket_invalid" in codes(operation, "401")
        assert ("401" in operation["responses"]) is (locked or by_key or route == "GET /health"), route
        assert operation["security"] or by_key or "403" not in operation["responses"], route


def codes(operation: dict[str, Any], status: str) -> set[str]:
    """The codes of the problems that an operation answers with under a status."""
    answer = resolved(operation["responses"].get(status, {}))
    return {*answer.get("content", {}).get(PROBLEM_JSON, {}).get("examples", {})}


def classes(error: type[QuittanceError]) -> Iterator[type[QuittanceError]]:
    """A class of errors and all below it."""
    yield error
    for below in error.__subclasses__():
        yield from classes(below)


def test_every_problem_has_an_example_and_a_route() -> None:
    """So no error of errors.py can be added without a word in the description."""
    known = {each for each in classes(QuittanceError) if each not in {QuittanceError, RequestError}}
    assert {code for code, _ in map(described, known)} == {problem(each)[1]["code"] for each in openapi_texts.SAMPLES}
    documented = {
        (code, int(status))
        for _, operation in routes()
        for status, answer in operation["responses"].items()
        for code in resolved(answer)["content"].get(PROBLEM_JSON, {}).get("examples", {})
    }
    assert {described(each) for each in known} <= documented


def described(error: type[QuittanceError]) -> tuple[str, int]:
    """Code and status of a class of errors."""
    status, code, _ = errors.classified(error)
    return code, int(status)


def test_use_cases_name_only_concrete_errors() -> None:
    """A base class in a docstring would document nothing."""
    for app in openapi.apps():
        for operation in app.operations:
            for error in openapi.errors_of(operation.use_case):
                assert error not in {QuittanceError, RequestError}, operation.name


def contents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything that is sent or answered: a schema with examples."""
    for route, operation in routes():
        if "requestBody" in operation:
            yield f"{route} request", operation["requestBody"]["content"]["application/json"]
        for status, answer in operation["responses"].items():
            for media_type, content in resolved(answer)["content"].items():
                yield f"{route} {status} {media_type}", content


def test_every_body_has_an_example_that_meets_its_schema() -> None:
    """Add the example of a new route to local/openapi_examples.json: what a running API was sent, and answered."""
    for where, content in contents():
        examples = [each["value"] for each in content.get("examples", {}).values()]
        examples += [content["example"]] if "example" in content else []
        assert examples, f"{where} has no example"
        for example in examples:
            assert not flaws(content["schema"], example), where


def test_examples_are_those_of_operations() -> None:
    names = {operation["operationId"] for _, operation in routes()}
    assert {*json.loads(openapi.EXAMPLES.read_text())} == names


@pytest.mark.parametrize("inputs", [{}, {"input": "a", "input_base64": "YQ=="}])
def test_a_task_is_described_with_exactly_one_input(inputs: dict[str, str]) -> None:
    task = {"task_id": "a", "agent_id": "agt_a", "budget": "1"}
    schema = {"$ref": "#/components/schemas/TaskRequest"}
    assert flaws(schema, task | inputs)
    for one in ({"input": None}, {"input": "a", "input_base64": None}, {"input_base64": "YQ=="}):
        assert not flaws(schema, task | one)
