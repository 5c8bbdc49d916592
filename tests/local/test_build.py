"""The output of `sam build` for template.yaml, and the pinned requirements of the build."""

import re
import subprocess

import pytest

from local import deploy, venvs
from local.paths import ROOT

RUNTIME_PINS = ROOT / "layers/runtime/requirements.txt"
PINNED = [RUNTIME_PINS, *sorted((ROOT / "requirements").glob("*.txt"))]
IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import quittance
for module in pkgutil.walk_packages(quittance.__path__, "quittance."):
    importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def layer():
    return deploy.layer(deploy.build())


def test_layer_imports_without_other_packages(layer):
    """In the local cloud a missing package could be found in the cloud's environment; on Lambda it could not."""
    alone = [venvs.BASE_PYTHON, "-I", "-S", "-c", IMPORT_ALL, layer]
    assert subprocess.run(alone, stderr=subprocess.PIPE, text=True, check=False).stderr == ""


def test_layer_is_small_enough_and_has_bytecode(layer):
    assert sum(path.stat().st_size for path in layer.rglob("*")) < 150 << 20
    assert list(layer.glob("quittance/usecases/__pycache__/execute.*.pyc"))


@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.name)
def test_every_requirement_is_pinned_without_a_host(path):
    for line in path.read_text().splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9_.-]+(\[[a-z,]+\])?==[0-9][^ /]*( ; .*)?", line), line


def test_tests_use_the_pins_of_the_layer():
    assert set(RUNTIME_PINS.read_text().splitlines()) <= set((ROOT / "requirements/dev.txt").read_text().splitlines())
