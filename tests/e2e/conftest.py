"""A deployed stack for the end-to-end tests: the same template, by the same code as `make up`.

One local cloud of its own for the whole session, ended with it; or the one that QUITTANCE_STACK
(the path of a stack.json) names, which stays.
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
from local.paths import LOCAL, ROOT, Stack, State
from quittance.limits import BALANCE_SHARDS
from tests import clouds
from tests.e2e.people import Ledger, User
from tests.progress import add_cloud
from tests.support import wasm
from tests.waiting import GENEROUS_S, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from decimal import Decimal

STATE = State(LOCAL / "test-cloud")
TOKEN_SECONDS = 600
# Most tests reckon with an agent's price and the commission alone; test_who_pays.py turns the prices on.
FREE_COMPUTE = "ComputePerRunMicro=0 ComputePerBillionFuelMicro=0 PublishPerMibMicro=0 PublishPerCpuSecondMicro=0"
DEFAULT_TARIFF: Mapping[str, Any] = {"type": "flat", "price": "0.01"}
MICRO = 1_000_000
HERE = Path(__file__).parent
# After all others, in this order: the logs are read, and then what was asked of AWS.
LAST = ["test_logs.py", "test_privilege.py"]
DESELECTED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sockets are what these tests are about, whatever the unit tests forbid. Some look back at all the others."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.enable_socket)
    items.sort(
        key=lambda item: LAST.index(item.path.name) if item.path.parent == HERE and item.path.name in LAST else -1
    )


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remembers that some of these tests were not chosen."""
    for item in items:
        if HERE in item.path.parents:
            item.config.stash[DESELECTED] = True


@pytest.fixture
def left_out(request: pytest.FixtureRequest) -> str:
    """Why the session does not tell all that these tests make the functions do; empty if it does."""
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
        patch.setenv("QUITTANCE_PARAMETERS", FREE_COMPUTE)
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
    """Bearer tokens: `token(subject, scope="", **claims)`; a claim given as None is left out.

    `alg` and `key` sign with another algorithm or key; the header still names the issuer's key.
    """
    own = issuer.load_key(Path(stack.issuer_key))

    def make(subject: str, scope: str = "", *, alg: str = "ES256", key: Any = own, **claims: Any) -> str:
        body = {**issuer.claims(subject, scope, audience=stack.audience), "iss": stack.issuer, **claims}
        body = {name: value for name, value in body.items() if value is not None}
        return jwt.encode(body, key, algorithm=alg, headers={"kid": issuer.jwk(own)["kid"]})

    return make


class Bearer(httpx.Auth):
    """Sends a token that is made when it is needed, and again when it is old."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self._token, self._age = "", Stopwatch()

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:
        if not self._token or self._age.seconds() > TOKEN_SECONDS:
            self._token, self._age = self._make(), Stopwatch()
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


@pytest.fixture(scope="session")
def api(stack: Stack, token: Callable[..., str]) -> Iterator[Callable[..., httpx.Client]]:
    """HTTP clients: `api(subject, scope="")`; `api(None)` has no token."""
    with ExitStack() as clients:

        def make(subject: str | None, scope: str = "") -> httpx.Client:
            bearer = Bearer(lambda: token(subject, scope)) if subject else None
            base = f"{stack.api_url}{client.PREFIX}"
            made = httpx.Client(base_url=base, auth=bearer, timeout=GENEROUS_S, trust_env=False)
            return clients.enter_context(made)

        yield make


@pytest.fixture(scope="session")
def aws(stack: Stack) -> Callable[[str], Any]:
    """boto3 clients of the cloud that the stack is deployed to."""
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
    """`bond(owner)` gives an owner a bond, once a session: without one nothing is published."""
    bonded: set[str] = set()

    def make(owner: str, amount: str = "100") -> None:
        if owner not in bonded:
            deposit(owner, amount)
            client.Api(stack.api_url, token(owner)).post("/accounts/me/bond", {"bond_id": "bond", "amount": amount})
            bonded.add(owner)

    return make


@pytest.fixture(scope="session")
def publish(stack: Stack, token: Callable[..., str], bond: Callable[..., None]) -> Callable[..., str]:
    """`publish(wasm, tariff=..., limits=..., owner=...)` gives the id of an active agent.

    The same module on the same terms is published once a session. The agent takes tasks that bring a judge.
    """
    published: dict[str, str] = {}
    bond("owner")  # now: a test that adds up the ledger before it publishes must not meet the deposit of the bond

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
    """`deposit(account, amount)` adds credits; the amount is a decimal string or a number of credits."""

    def make(account: str, amount: str | int | Decimal) -> None:
        bank = client.Api(stack.api_url, token("bank", "ledger:deposit"))
        bank.post(
            f"/accounts/{quote(account, safe='')}/deposits", {"deposit_id": uuid.uuid4().hex, "amount": str(amount)}
        )

    return make


@pytest.fixture(scope="session")
def sweep(stack: Stack) -> Callable[[], None]:
    """`sweep()` runs the sweep function once, now."""
    return lambda: demo.sweep(stack)


@pytest.fixture(scope="session")
def balance(stack: Stack, aws: Callable[[str], Any]) -> Callable[[str], int]:
    """`balance(account)` is what the ledger itself says is available, in micro-credits."""

    def read(account: str) -> int:
        names = [f"ACCT#{account}", *(f"ACCT#{account}#{shard}" for shard in range(1, BALANCE_SHARDS))]
        asked = {"Keys": [{"pk": {"S": name}} for name in names], "ConsistentRead": True}
        found = aws("dynamodb").batch_get_item(RequestItems={stack.table: asked})["Responses"][stack.table]
        return sum(int(item["available"]["N"]) for item in found)

    return read


@pytest.fixture(scope="session")
def ledger(stack: Stack, aws: Callable[[str], Any]) -> Ledger:
    """The ledger's table, read past the API."""
    return Ledger(aws("dynamodb"), stack.table)


@pytest.fixture(scope="module")
def alice(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> User:
    """A user with one credit."""
    return User.new(api, deposit)


@pytest.fixture(scope="session")
def echo(publish: Callable[..., str]) -> str:
    """An agent that gives back what it is given."""
    return publish(wasm("echo"))
