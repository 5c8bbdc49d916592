"""The three distributions of this repository, as a user installs them."""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from local import venvs
from local.paths import ROOT

FOLDERS = {"quittance": ROOT, "quittance-client": ROOT / "client", "quittance-cli": ROOT / "cli"}
AWS = {"boto3", "botocore", "aws-lambda-powertools", "s3transfer"}
IMPORTS = """
import sys
from pathlib import Path
import quittance.api.models, quittance.proof.verify, quittance.client, quittance.cli
homes = {Path(sys.modules[name].__file__).parents[1] for name in ("quittance.client", "quittance.cli", "quittance.api")}
assert len(homes) == 1, homes
for name in ("boto3", "botocore", "aws_lambda_powertools", "wasmtime"):
    assert name not in sys.modules, name
"""


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A fresh environment with all three, from the package index that pip is configured to use."""
    home = tmp_path_factory.mktemp("distributions")
    subprocess.run([venvs.BASE_PYTHON, "-m", "venv", home], check=True, env=venvs.tools_env())
    interpreter = home / "bin" / "python"
    install = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = [f"{ROOT}[replay]", str(ROOT / "client"), str(ROOT / "cli")]
    subprocess.run([*install, *wanted], check=True, env=venvs.tools_env(), cwd=home)
    return interpreter


def test_three_distributions_install_into_one_namespace(python, tmp_path):
    done = subprocess.run([python, "-I", "-c", IMPORTS], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_installed_distributions_bring_no_aws_packages(python, tmp_path):
    listing = [python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    listed = subprocess.run(listing, check=True, capture_output=True, text=True, env=venvs.tools_env(), cwd=tmp_path)
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert FOLDERS.keys() <= names
    assert not AWS & names


@pytest.mark.parametrize("name", ["quittance", "quittance-verify"])
def test_each_command_is_installed(python, name):
    assert (python.parent / name).is_file()


def test_installed_packages_are_typed(python, tmp_path):
    (tmp_path / "user.py").write_text(
        "import quittance.client\nfrom quittance import limits\nfrom quittance.api.models import TaskResult\n"
        "KIB: str = limits.KIB\n\n\ndef paid(result: TaskResult) -> str:\n    return result.amount_paid_micro\n"
    )
    mypy = [venvs.ensure("dev") / "python", "-m", "mypy", "--strict", "--python-executable", python, "user.py"]
    done = subprocess.run(mypy, capture_output=True, text=True, check=False, cwd=tmp_path)
    lines = [line for line in done.stdout.splitlines() if "error:" in line]
    assert [line.split(":")[1] for line in lines] == ["4", "8"], done.stdout
    assert all('"int"' in line and '"str"' in line for line in lines), "the types of the packages are read"


def test_no_distribution_closes_the_namespace():
    """One `__init__.py` in it would hide the other distributions, depending on the order of sys.path."""
    assert not [
        home for home in ("layers/runtime", "client", "cli") if (ROOT / home / "quittance/__init__.py").exists()
    ]


def test_distributions_name_each_other_by_one_version():
    versions = {project(folder)["version"] for folder in FOLDERS.values()}
    assert len(versions) == 1
    (version,) = versions
    named = [line for folder in FOLDERS.values() for line in project(folder)["dependencies"] if "quittance" in line]
    assert len(named) == 3
    assert all(line.endswith(f"=={version}") for line in named), named


def test_pins_of_distributions_equal_those_of_the_tests():
    pinned = set((ROOT / "requirements/dev.txt").read_text().splitlines())
    for folder in FOLDERS.values():
        own = [line for line in project(folder)["dependencies"] if not line.startswith("quittance")]
        assert {line.lower() for line in own} <= pinned
