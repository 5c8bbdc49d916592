"""The user pool of template.yaml on the local cloud, and the unchanged commands of docs/howto/identity.md.

The local cloud has Cognito's clients, scopes, sign-in page and token endpoint, but no host name for the pool, so
`LoginUrl` is the cloud's address. The stack's authorizer accepts the pool's tokens while these tests run.
"""

import json
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import pytest

from local.client import PREFIX
from local.paths import Stack
from quittance.api import identity
from tests.documents.blocks import blocks
from tests.e2e.people import Ledger, changed_environment, command_environment
from tests.support import ROOT
from tests.template import template
from tests.waiting import GENEROUS_S, until

NAME = "quittance-people"
HOWTO = ROOT / "docs" / "howto" / "identity.md"
BLOCKS = [block.text for block in blocks(HOWTO) if block.not_run == "tests/e2e/test_identity.py runs it"]
PASSWORD = "Correct-Horse-7-Battery"
VARIABLES = ("API", "URL", "CALLBACK", "VERIFIER", "CODE", "TOKEN", "ACCOUNT", "SECRET", "BANK")
CODE = 'CODE="the code from the address"\n'
# Signs in as a browser does: opens the URL, submits the form, and reads the code from the redirect.
SIGN_IN = """
import re, sys, httpx
url, name, password = sys.argv[1:]
with httpx.Client(trust_env=False) as browser:
    page = browser.get(url)
    fields = dict(re.findall(r'name="(\\w+)" value="([^"]*)"', page.text))
    sent = browser.post(page.url.join("/login"), data=fields | {"username": name, "password": password})
    sys.stdout.write(httpx.URL(sent.headers["Location"]).params["code"])
"""


@dataclass(frozen=True)
class Pool:
    """The user pool, as the stack's outputs describe it."""

    outputs: dict[str, str]
    url: str

    def token(self, client: str, **form: str) -> httpx.Response:
        """The token endpoint's response to a client; `form` may have a client secret."""
        data = {"client_id": self.outputs[client], **form}
        return httpx.post(f"{self.url}/oauth2/token", data=data, timeout=GENEROUS_S, trust_env=False)


@pytest.fixture(scope="module")
def pool(stack: Stack, aws: Callable[[str], Any]) -> Iterator[Pool]:
    """The pool and its clients, deployed by CloudFormation from the template's resources."""
    whole = template()
    part = {
        "Parameters": whole["Parameters"],
        "Conditions": whole["Conditions"],
        "Resources": {
            name: found for name, found in whole["Resources"].items() if found["Type"].startswith("AWS::Cognito::")
        },
        "Outputs": {name: found for name, found in whole["Outputs"].items() if found.get("Condition") == "CreatesPool"}
        | {"LoginUrl": {"Value": stack.endpoint_url}, "ApiUrl": {"Value": stack.api_url}},
    }
    formation = aws("cloudformation")
    parameters = [{"ParameterKey": "DeletionProtection", "ParameterValue": "false"}]
    formation.create_stack(StackName=NAME, TemplateBody=json.dumps(part), Parameters=parameters)
    try:

        def created() -> dict[str, Any] | None:
            (found,) = formation.describe_stacks(StackName=NAME)["Stacks"]
            assert not found["StackStatus"].endswith(("FAILED", "ROLLBACK_COMPLETE")), found
            return dict(found) if found["StackStatus"] == "CREATE_COMPLETE" else None

        outputs = until(created, "the pool is not created", pause_s=0.1)["Outputs"]
        yield Pool({output["OutputKey"]: output["OutputValue"] for output in outputs}, stack.endpoint_url)
    finally:
        formation.delete_stack(StackName=NAME)


@pytest.fixture(scope="module")
def trusting(stack: Stack, aws: Callable[[str], Any], pool: Pool) -> Iterator[None]:
    """Make the authorizer accept the pool's tokens for the tests of this file."""
    pool_id, clients = pool.outputs["UserPoolId"], ("UserClientId", "OperatorClientId")
    changed = {
        "ISSUER_URL": f"https://cognito-idp.{stack.region}.amazonaws.com/{pool_id}",
        "JWKS_URL": f"{stack.endpoint_url}/{pool_id}/.well-known/jwks.json",
        "AUDIENCE": ",".join(pool.outputs[name] for name in clients),
        "AUDIENCE_CLAIM": "client_id",
    }
    with changed_environment(aws("lambda"), stack.functions["AuthorizerFunction"], changed):
        yield


@pytest.fixture(scope="module")
def shell(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    """Runs a shell script and returns the VARIABLES that it has set; `aws` is aws_command.py."""
    if missing := [name for name in ("bash", "curl") if not shutil.which(name)]:
        pytest.skip(f"{missing[0]} is not installed")
    env = command_environment(stack, tmp_path_factory.mktemp("tools")) | {"PASSWORD": PASSWORD, "SIGN_IN": SIGN_IN}

    def run(script: str) -> dict[str, str]:
        print_variables = "for name in " + " ".join(VARIABLES) + '; do printf \'\\0%s=%s\' "$name" "${!name-}"; done'
        command = ["bash", "-euo", "pipefail", "-c", f"{script}\n{print_variables}"]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2_000:]
        return dict(pair.split("=", 1) for pair in done.stdout.split("\0")[1:])

    return run


@pytest.fixture(scope="module")
def done(trusting: None, shell: Callable[[str], dict[str, str]]) -> dict[str, str]:
    """The variables after all commands of the document have run in order."""
    script = "\n".join(BLOCKS)
    assert script.count(CODE) == script.count("STACK=quittance\n") == 1
    script = script.replace(CODE, 'CODE="$(python3 -c "$SIGN_IN" "$URL" alice@example.com "$PASSWORD")"\n')
    return shell(script.replace("STACK=quittance", f"STACK={NAME}"))


def claims(token: str) -> dict[str, Any]:
    """The claims of a token, without verification."""
    return dict(jwt.decode(token, options={"verify_signature": False}))


def test_the_documents_commands_fund_a_user(
    done: dict[str, str], pool: Pool, balance: Callable[[str], int], ledger: Ledger
) -> None:
    assert done["ACCOUNT"] == claims(done["TOKEN"])["sub"]
    assert balance(done["ACCOUNT"]) == 5_000_000
    assert claims(done["BANK"])["sub"] == pool.outputs["OperatorClientId"]
    assert ledger.total() > 0


def test_a_pool_user_cannot_deposit_credits(done: dict[str, str], balance: Callable[[str], int]) -> None:
    answer = httpx.post(
        f"{done['API']}/accounts/me/deposits",
        json={"deposit_id": uuid.uuid4().hex, "amount": "1"},
        headers={"Authorization": f"Bearer {done['TOKEN']}"},
        timeout=GENEROUS_S,
        trust_env=False,
    )
    assert (answer.status_code, answer.json()["required_scope"]) == (403, "ledger:deposit")
    assert balance(done["ACCOUNT"]) == 5_000_000


@pytest.mark.parametrize(
    "scope", [*(f"quittance/{scope}" for scope in identity.SCOPES), "openid quittance/health:read"]
)
def test_the_user_client_gets_no_platform_scope(pool: Pool, done: dict[str, str], scope: str) -> None:
    query = {"response_type": "code", "client_id": pool.outputs["UserClientId"], "redirect_uri": done["CALLBACK"]}
    answer = httpx.get(f"{pool.url}/oauth2/authorize", params=query | {"scope": scope}, trust_env=False)
    assert answer.status_code == 302
    sent_back = httpx.URL(answer.headers["Location"]).params
    assert ("code" in sent_back, sent_back["error_description"]) == (False, "invalid_scope")
    refused = pool.token("UserClientId", grant_type="client_credentials", scope=scope)
    assert (refused.status_code, "access_token" in refused.json()) == (400, False)


@pytest.mark.parametrize("secret", [{}, {"client_secret": ""}, {"client_secret": "guess"}])
def test_the_operator_client_needs_its_secret(pool: Pool, secret: dict[str, str]) -> None:
    form = {"grant_type": "client_credentials", "scope": "quittance/ledger:deposit", **secret}
    refused = pool.token("OperatorClientId", **form)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_client")


def test_users_cannot_sign_in_with_the_operator_client(pool: Pool, done: dict[str, str]) -> None:
    query = {"response_type": "code", "client_id": pool.outputs["OperatorClientId"], "redirect_uri": done["CALLBACK"]}
    answer = httpx.get(f"{pool.url}/oauth2/authorize", params=query | {"scope": "openid"}, trust_env=False)
    assert answer.status_code >= 400


@pytest.mark.parametrize("scope", identity.SCOPES)
def test_the_operator_client_can_get_each_scope_alone(pool: Pool, done: dict[str, str], scope: str) -> None:
    form = {"grant_type": "client_credentials", "scope": f"quittance/{scope}", "client_secret": done["SECRET"]}
    given = pool.token("OperatorClientId", **form).json()["access_token"]
    assert claims(given)["scope"] == f"quittance/{scope}"


def test_an_id_token_of_the_pool_is_refused(
    pool: Pool, done: dict[str, str], shell: Callable[[str], dict[str, str]]
) -> None:
    sign_in = f'CODE="$(python3 -c "$SIGN_IN" {json.dumps(done["URL"])} alice@example.com "$PASSWORD")"\n'
    form = {"grant_type": "authorization_code", "code": shell(sign_in)["CODE"]}
    form |= {"redirect_uri": done["CALLBACK"], "code_verifier": done["VERIFIER"]}
    given = pool.token("UserClientId", **form).json()
    for kind, status in (("access_token", 200), ("id_token", 401)):
        headers = {"Authorization": f"Bearer {given[kind]}"}
        answer = httpx.get(f"{done['API']}/accounts/me", headers=headers, timeout=GENEROUS_S, trust_env=False)
        assert answer.status_code == status, answer.text
    assert "error_description" in answer.headers["WWW-Authenticate"]


def test_a_code_needs_its_verifier(pool: Pool, done: dict[str, str], shell: Callable[[str], dict[str, str]]) -> None:
    sign_in = f'CODE="$(python3 -c "$SIGN_IN" {json.dumps(done["URL"])} alice@example.com "$PASSWORD")"\n'
    form = {"grant_type": "authorization_code", "code": shell(sign_in)["CODE"]}
    for verifier in ({}, {"code_verifier": "guess"}):
        refused = pool.token("UserClientId", redirect_uri=done["CALLBACK"], **form, **verifier)
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


def test_the_api_has_the_documented_path(done: dict[str, str], stack: Stack) -> None:
    assert done["API"] == f"{stack.api_url}{PREFIX}"
