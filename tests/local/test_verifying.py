"""Verifying a receipt as a third party: with the installed verifier, or with openssl and the script in the docs."""

import json
import re
import shutil
import subprocess
import tomllib
from dataclasses import replace

import pytest

from local import venvs
from local.paths import ROOT
from quittance.ledger.escrow import Escrow, StoredBytes, decide, escrow_id
from quittance.run import Limits, Meter, Outcome, Run
from tests.proof.receipts import claims_of, sign
from tests.proof.roots import NOW_S, Root
from tests.proof.ticketing import OTHER_KEY, jws, paid_by_ticket

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = {"botocore", "boto3", "aws-lambda-powertools", "wasmtime"}
PLATFORM = Root()


@pytest.fixture(scope="module")
def receipt() -> str:
    escrow = Escrow(
        escrow_id=escrow_id("user", "task"), payer="user", task_id="task", request_sha256="", agent_id="agt",
        owner="owner", module_sha256="bb" * 32, input_sha256="cc" * 32,
        tariff='{"type":"flat","price":"0.4"}', budget_micro=10**6, fee_bps=250, timeout_ms=1_000, runner="r", fence=1,
        funded_ms=NOW_S * 1_000, lease_ms=NOW_S * 1_000, expires_ms=NOW_S * 1_000 + 90_000,
    )  # fmt: skip
    done = decide(escrow, Run(Outcome.SUCCEEDED, "", Meter()), now_ms=NOW_S * 1_000 + 5)
    done = replace(done, output=StoredBytes("dd" * 32, 1, b""))
    stated = claims_of(
        escrow,
        done,
        issuer="i",
        run=Run(Outcome.SUCCEEDED, "", Meter(), limits=Limits(1, 1, 1)),
        engine="e",
        config_sha256="ff" * 32,
    )
    return sign(stated, PLATFORM.certify())


@pytest.fixture(scope="module")
def ticket_claims() -> dict[str, object]:
    """The claims of a receipt of a task that a ticket paid."""
    escrow = Escrow(
        escrow_id="", payer="user", task_id="", request_sha256="", agent_id="agt", owner="owner",
        module_sha256="bb" * 32, input_sha256="cc" * 32, tariff='{"type":"flat","price":"0.4"}', budget_micro=10**6,
        fee_bps=250, timeout_ms=1_000, runner="r", fence=1, funded_ms=NOW_S * 1_000, lease_ms=NOW_S * 1_000,
        expires_ms=NOW_S * 1_000 + 90_000,
    )  # fmt: skip
    escrow = paid_by_ticket(escrow, issuer="urn:quittance:é")
    run = Run(Outcome.EXIT_CODE, "", Meter(), limits=Limits(1, 1, 1))
    done = decide(escrow, run, now_ms=NOW_S * 1_000 + 5)
    return claims_of(escrow, done, issuer="urn:quittance:é", run=run, engine="e", config_sha256="ff" * 32)


@pytest.fixture
def folder(tmp_path, receipt):
    (tmp_path / "receipt.jws").write_text(f"{receipt}\n")
    (tmp_path / "jwks.json").write_text(json.dumps(PLATFORM.jwks()))
    (tmp_path / "root.json").write_text(json.dumps(PLATFORM.jwks()["keys"][0]))
    return tmp_path


def test_verifier_installs_without_aws_or_engine_packages(tmp_path, folder):
    """It installs from the package index that pip is configured to use."""
    home = tmp_path / "venv"
    subprocess.run([venvs.BASE_PYTHON, "-m", "venv", home], check=True, env=venvs.tools_env())
    install = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ROOT]
    subprocess.run(install, check=True, env=venvs.tools_env(), cwd=tmp_path)
    listed = subprocess.run(
        [home / "bin" / "python", "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
        check=True, capture_output=True, text=True, env=venvs.tools_env(), cwd=tmp_path,
    )  # fmt: skip
    installed = {package["name"].lower(): package["version"] for package in json.loads(listed.stdout)}
    assert "quittance" in installed
    assert not HEAVY & installed.keys()

    command = [home / "bin" / "quittance-verify", "receipt.jws", "--keys", "jwks.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("Proven, as far as it was checked.\n")


def test_package_pins_equal_those_of_the_layer():
    pinned = set((ROOT / "layers/runtime/requirements.txt").read_text().splitlines())
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["replay"]]
    assert {line.lower() for line in asked} <= pinned


@pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("xxd")), reason="needs openssl and xxd")
def test_receipts_page_script_verifies_a_receipt(folder):
    page = (ROOT / "docs" / "receipts.md").read_text()
    script = re.search(r"```sh\n(bytes\(\).*?)```", page, re.DOTALL)[1]
    by_hand = ["sh", "-eu", "-c", script]
    done = subprocess.run(by_hand, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Verified OK" in done.stdout
    assert "Signature Verified Successfully" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["paid"] == "390000"

    (folder / "root.json").write_text(json.dumps(Root().jwks()["keys"][0]))
    assert subprocess.run(by_hand, cwd=folder, capture_output=True, check=False).returncode != 0


TOOLS = ("openssl", "xxd", "jq", "base32")


@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}")
def test_receipts_page_script_verifies_a_ticket(tmp_path, ticket_claims):
    page = (ROOT / "docs" / "receipts.md").read_text()
    tools = re.search(r"```sh\n(bytes\(\).*?\n)", page)[1]
    script = re.search(r"```sh\n(jq -r .ticket.signed.*?)```", page, re.DOTALL)[1]
    by_hand = ["sh", "-eu", "-c", tools + script]
    (tmp_path / "claims.json").write_text(json.dumps(ticket_claims, default=str))
    done = subprocess.run(by_hand, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Signature Verified Successfully" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1].rpartition("}")[0] + "}")["budget"] == "1"
    assert f"chn_{done.stdout.splitlines()[-1].rpartition('}')[2]}" == ticket_claims["ticket"]["channel"]

    forged = ticket_claims | {"ticket": ticket_claims["ticket"] | {"signed": jws({}, key=OTHER_KEY)}}
    (tmp_path / "claims.json").write_text(json.dumps(forged, default=str))
    assert subprocess.run(by_hand, cwd=tmp_path, capture_output=True, check=False).returncode != 0
