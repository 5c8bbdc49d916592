"""The output of `sam build` for template.yaml, and the pinned requirements of the build."""

import re
import subprocess

import pytest
import yaml

from local import deploy, venvs
from local.paths import ROOT
from tests.template import template

RUNTIME_PINS = ROOT / "layers/runtime/requirements.txt"
PINNED = [RUNTIME_PINS, *sorted((ROOT / "requirements").glob("*.txt"))]
IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import quittance
for module in pkgutil.walk_packages(quittance.__path__, "quittance."):
    importlib.import_module(module.name)
"""
MAKE_CLIENTS = """
import sys
sys.path.insert(0, sys.argv[1])
from quittance.store import clients
clients.without_credentials()
for make in (clients.dynamodb, clients.s3, clients.kms, clients.functions, clients.sqs, clients.events):
    make()
used = {name: module.__file__ for name, module in sys.modules.items() if getattr(module, "__file__", None)}
for name in ("boto3", "botocore", "s3transfer", "urllib3", "jmespath", "dateutil"):
    assert used[name].startswith(sys.argv[1]), used[name]
"""


@pytest.fixture(scope="module")
def layer():
    return deploy.layer(deploy.build())


def test_the_built_template_has_no_aliases_and_no_merge_keys():
    """CloudFormation supports neither; each resource keeps its own logical id where SAM notes it."""
    text = (deploy.build() / "template.yaml").read_text("utf-8")
    tokens = list(yaml.scan(text))
    assert not [token for token in tokens if isinstance(token, yaml.AnchorToken | yaml.AliasToken)]
    assert "<<" not in [token.value for token in tokens if isinstance(token, yaml.ScalarToken)]
    built, source = yaml.safe_load(text), template()
    for name, resource in source["Resources"].items():
        found = built["Resources"][name]
        noted = {"SamResourceId": name} if "SamResourceId" in found.get("Metadata", {}) else {}
        assert found.get("Metadata", {}) == resource.get("Metadata", {}) | noted, name
        placed = {"CodeUri", "ContentUri", "DefinitionUri"}  # what is built is somewhere else
        assert {key: value for key, value in found.get("Properties", {}).items() if key not in placed} == {
            key: value for key, value in resource.get("Properties", {}).items() if key not in placed
        }, name


def test_the_layer_lacks_nothing(layer):
    """The local cloud would lend the functions its own packages; Lambda does not."""
    alone = [venvs.BASE_PYTHON, "-I", "-S", "-c", IMPORT_ALL, layer]
    assert subprocess.run(alone, stderr=subprocess.PIPE, text=True, check=False).stderr == ""


def test_clients_need_only_the_layer(layer):
    """Lambda's runtime has a boto3 of its own, of another version."""
    alone = [venvs.BASE_PYTHON, "-I", "-S", "-c", MAKE_CLIENTS, layer]
    region = {"AWS_DEFAULT_REGION": "eu-central-1"}
    assert subprocess.run(alone, env=region, stderr=subprocess.PIPE, text=True, check=False).stderr == ""


def test_the_layer_fits_and_starts_quickly(layer):
    assert sum(path.stat().st_size for path in layer.rglob("*")) < 150 << 20
    assert list(layer.glob("quittance/usecases/__pycache__/execute.*.pyc"))


@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.name)
def test_every_requirement_is_pinned_without_a_host(path):
    for line in path.read_text().splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9_.-]+(\[[a-z,]+\])?==[0-9][^ /]*( ; .*)?", line), line


def test_tests_use_the_pins_of_the_layer():
    assert set(RUNTIME_PINS.read_text().splitlines()) <= set((ROOT / "requirements/dev.txt").read_text().splitlines())
