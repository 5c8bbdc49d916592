"""The functions' files only translate: import-linter checks the layer, this the files outside it."""

import ast

import pytest

from tests.support import ROOT

FILES = sorted((ROOT / "functions").glob("*/app.py"))
LINES_MAX = 30
ROOMS = {"api", "config", "observability", "platform", "usecases"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_a_function_file_has_at_most_30_lines(path):
    assert len(path.read_text().splitlines()) <= LINES_MAX


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_a_function_file_imports_its_use_case_and_the_border(path):
    modules = {
        f"{node.module}.{node.names[0].name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quittance")
    }
    assert {module.split(".")[1] for module in modules} <= ROOMS
    use_cases = {module.split(".")[2] for module in modules if module.startswith("quittance.usecases")}
    assert use_cases == {path.parent.name}
