"""A deployed stack for the end-to-end tests: the same template, deployed by the same code as `make up`.

The session starts one local cloud and stops it at the end. If QUITTANCE_STACK is set to the path of a stack.json, the
session uses that stack and leaves it running.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import jwt
import pytest
from boto3.session import Session
from botocore.config import Config

from local import client, demo, issuer
from local.cloud import CREDENTIALS
from local.deploy import STACK_NAME
from local.paths import LOCAL, ROOT, Stack, State
from quittance.limits import BALANCE_SHARDS
from tests import clouds
from tests.described import why_undescribed
from tests.e2e.people import Ledger, User
from tests.progress import add_cloud
from tests.support import wasm
from tests.waiting import GENEROUS_S, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from decimal import Decimal

STATE = State(LOCAL / "test-cloud")
TOKEN_SECONDS = 600
# Most tests expect only an agent's price and the commission; test_who_pays.py sets the other prices.
FREE_COMPUTE = "ComputePerRunMicro=0 ComputePerBillionFuelMicro=0 PublishPerMibMicro=0 PublishPerCpuSecondMicro=0"
PARAMETERS = f"{FREE_COMPUTE} ArchiveAfterDays=40"  # nothing here is that old, but what test_archive.py stores
DEFAULT_TARIFF: Mapping[str, Any] = {"type": "flat", "price": "0.01"}
MICRO = 1_000_000
HERE = Path(__file__).parent
# These run last, in this order: they check the logs and the AWS calls of all other tests.
LAST = ["test_logs.py", "test_privilege.py"]
FIRST = "test_archive.py"  # it needs an empty log: escrows are archived in the order of the log
DESELECTED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow sockets, which the unit tests forbid, and put the tests of LAST at the end."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.enable_socket)
    items.sort(key=_order)


def _order(item: pytest.Item) -> int:
    """The place among the tests of this folder. Others stay where they are: this suite takes longest, so it begins."""
    if item.path.parent != HERE:
        return 0
    if item.path.name == FIRST:
        return -1
    return LAST.index(item.path.name) + 1 if item.path.name in LAST else 0


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Record that some of these tests were deselected."""
    for item in items:
        if HERE in item.path.parents:
            item.config.stash[DESELECTED] = True


@pytest.fixture
def incomplete(request: pytest.FixtureRequest) -> str:
    """Why this session does not exercise everything the functions do; empty if it does."""
    chosen = {item.path for item in request.session.items}
    named = any("::" in word for word in request.config.invocation_params.args)
    if named or request.config.stash.get(DESELECTED, False) or not chosen.issuperset(HERE.glob("test_*.py")):
        return "only some of the tests were chosen"
    return "some tests failed" if request.session.testsfailed else ""


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The deployed stack."""
    if named := os.environ.get("QUITTANCE_STACK"):
        yield Stack.read(ROOT / named)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUITTANCE_PARAMETERS", PARAMETERS)
        clouds.up(STATE, request)
    try:
        yield Stack.read(STATE.stack)
    finally:
        with STATE.log("functions").open("w") as sink:
            clouds.run(STATE, "logs", stdout=sink)
        add_cloud(request.config, clouds.processor_s(STATE))
        clouds.run(STATE, "down")


@pytest.fixture(scope="session")
def token(stack: Stack) -> Callable[..., str]:
    """`token(subject, scope="", **claims)`: a bearer token without the claims that are None.

    `alg` and `key` choose another algorithm or signing key; the header still names the issuer's key.
    """
    own = issuer.load_key(Path(stack.issuer_key))

    def make(subject: str, scope: str = "", *, alg: str = "ES256", key: Any = own, **claims: Any) -> str:
        body = {**issuer.claims(subject, scope, audience=stack.audience), "iss": stack.issuer, **claims}
        body = {name: value for name, value in body.items() if value is not None}
        return jwt.encode(body, key, algorithm=alg, headers={"kid": issuer.jwk(own)["kid"]})

    return make


class Bearer(httpx.Auth):
    """Makes a token at the first request and replaces it before it expires."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self._token, self._age = "", Stopwatch()

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:
        if not self._token or self._age.seconds() > TOKEN_SECONDS:
            self._token, self._age = self._make(), Stopwatch()
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


def assert_described(response: httpx.Response) -> None:
    """Every answer of these tests is one that the API's description promises."""
    path = response.request.url.raw_path.decode()
    if client.PREFIX in path:
        response.read()
        told = response.request.method, path.partition(client.PREFIX)[2], response.status_code
        assert not (flaw := why_undescribed(*told, response.headers.get("content-type", ""), response.content)), flaw


@pytest.fixture(scope="session")
def api(stack: Stack, token: Callable[..., str]) -> Iterator[Callable[..., httpx.Client]]:
    """`api(subject, scope="")`: an HTTP client of the API; `api(None)` sends no token."""
    with ExitStack() as clients:

        def make(subject: str | None, scope: str = "") -> httpx.Client:
            bearer = Bearer(lambda: token(subject, scope)) if subject else None
            base = f"{stack.api_url}{client.PREFIX}"
            hooks = {"response": [assert_described]}
            made = httpx.Client(base_url=base, auth=bearer, timeout=GENEROUS_S, trust_env=False, event_hooks=hooks)
            return clients.enter_context(made)

        yield make


@pytest.fixture(scope="session")
def aws(stack: Stack) -> Callable[[str], Any]:
    """`aws(service)`: a boto3 client of the cloud that the stack is deployed to."""
    session = Session(
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=stack.region,
    )
    made: dict[str, Any] = {}

    def client_of(service: str) -> Any:
        if service not in made:
            once = Config(read_timeout=GENEROUS_S, retries={"total_max_attempts": 1})
            made[service] = session.client(service, endpoint_url=stack.endpoint_url, config=once)  # type: ignore[call-overload]
        return made[service]

    return client_of


@pytest.fixture(scope="session")
def bond(stack: Stack, token: Callable[..., str], deposit: Callable[..., None]) -> Callable[..., None]:
    """`bond(owner)` gives an owner a bond, once per session. An owner without a bond cannot publish."""
    bonded: set[str] = set()

    def make(owner: str, amount: str = "100") -> None:
        if owner not in bonded:
            deposit(owner, amount)
            client.Api(stack.api_url, token(owner)).post("/accounts/me/bond", {"bond_id": "bond", "amount": amount})
            bonded.add(owner)

    return make


@pytest.fixture(scope="session")
def publish(stack: Stack, token: Callable[..., str], bond: Callable[..., None]) -> Callable[..., str]:
    """`publish(wasm, tariff=..., limits=..., owner=...)` returns the id of an active agent.

    Equal modules with equal terms are published once per session. The agent accepts tasks that name a judge.
    """
    published: dict[str, str] = {}
    bond("owner")  # here, so that the deposit does not fall between two ledger totals of a test

    def make(
        wasm: bytes,
        *,
        tariff: Mapping[str, Any] = DEFAULT_TARIFF,
        limits: Mapping[str, Any] | None = None,
        owner: str = "owner",
    ) -> str:
        terms: dict[str, Any] = {"tariff": tariff, "task_judges": {"rejected_share": "0"}}
        terms |= {"limits": limits} if limits else {}
        name = hashlib.sha256(wasm + json.dumps([terms, owner], sort_keys=True).encode()).hexdigest()[:32]
        if name not in published:
            bond(owner)
            caller = client.Api(stack.api_url, token(owner))
            published[name] = client.publish(caller, name, wasm, terms)
        return published[name]

    return make


@pytest.fixture(scope="session")
def deposit(stack: Stack, token: Callable[..., str]) -> Callable[..., None]:
    """`deposit(account, amount)` adds credits; the amount is a decimal string or a number."""

    def make(account: str, amount: str | int | Decimal) -> None:
        bank = client.Api(stack.api_url, token("bank", "ledger:deposit"))
        bank.post(
            f"/accounts/{quote(account, safe='')}/deposits", {"deposit_id": uuid.uuid4().hex, "amount": str(amount)}
        )

    return make


@pytest.fixture(scope="session")
def sweep(stack: Stack) -> Callable[[], None]:
    """`sweep()` runs the sweep function once."""
    return lambda: demo.sweep(stack)


@pytest.fixture(scope="session")
def balance(stack: Stack, aws: Callable[[str], Any]) -> Callable[[str], int]:
    """`balance(account)`: the available micro-credits, read from the ledger's table."""

    def read(account: str) -> int:
        names = [f"ACCT#{account}", *(f"ACCT#{account}#{shard}" for shard in range(1, BALANCE_SHARDS))]
        asked = {"Keys": [{"pk": {"S": name}} for name in names], "ConsistentRead": True}
        found = aws("dynamodb").batch_get_item(RequestItems={stack.table: asked})["Responses"][stack.table]
        return sum(int(item["available"]["N"]) for item in found)

    return read


@pytest.fixture(scope="session")
def ledger(stack: Stack, aws: Callable[[str], Any]) -> Ledger:
    """The ledger's table, read directly."""
    return Ledger(aws("dynamodb"), stack.table)


@pytest.fixture(scope="module")
def alice(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> User:
    """A user with one credit."""
    return User.new(api, deposit)


@pytest.fixture
def olga(api: Callable[..., httpx.Client], bond: Callable[..., None]) -> User:
    """An owner of agents who has only a bond."""
    owner = User.new(api)
    bond(owner.name)
    return owner


@pytest.fixture(scope="session")
def jwks(api: Callable[..., httpx.Client]) -> dict[str, Any]:
    """The published root keys."""
    found: dict[str, Any] = api(None).get("/.well-known/jwks.json").json()
    return found


@pytest.fixture(scope="session")
def outputs(aws: Callable[[str], Any]) -> dict[str, str]:
    """The outputs of the deployed stack."""
    (found,) = aws("cloudformation").describe_stacks(StackName=STACK_NAME)["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in found["Outputs"]}


@pytest.fixture(scope="session")
def echo(publish: Callable[..., str]) -> str:
    """An agent that returns its input."""
    return publish(wasm("echo"))
