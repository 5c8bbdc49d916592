"""The Python client on the deployed stack: paid tasks, publications, receipts, and every example of its docstrings."""

import asyncio
import contextlib
import doctest
import hashlib
import inspect
import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

import quittance.client as package
from local.paths import Stack
from quittance.client import (
    AgentNotAllowedError,
    AsyncClient,
    ChannelKey,
    Client,
    InsufficientFundsError,
    MissingScopeError,
    NotFoundError,
    NotLoggedError,
    NotProvenError,
    PublishFailedError,
    TicketInvalidError,
    TokenExpiredError,
    Verifier,
)
from quittance.client._binding import Listing, Operation
from quittance.client._client import Agents
from quittance.proof.verify import Evidence, examine
from tests.client.issuers import Issuer
from tests.client.servers import Server
from tests.e2e.people import Ledger, sweep_until_credited
from tests.proof.roots import Root
from tests.support import wasm
from tests.waiting import GENEROUS_S, until

FLAT = {"type": "flat", "price": "0.01"}
ECHO = wasm("echo")


@pytest.fixture
def connect(stack: Stack, token: Callable[..., str]) -> Iterator[Callable[..., Client]]:
    """`connect(subject)`: a client of the stack that verifies each receipt."""
    with contextlib.ExitStack() as clients:

        def make(subject: str, scope: str = "", **arguments: Any) -> Client:
            given = {"verify": True, "timeout": GENEROUS_S, **arguments}
            return clients.enter_context(Client(stack.api_url, token=lambda: token(subject, scope), **given))

        yield make


@pytest.fixture
def user(deposit: Callable[..., None]) -> str:
    """A new user with five credits."""
    name = f"user-{uuid.uuid4().hex[:12]}"
    deposit(name, "5")
    return name


def test_a_task_is_paid_and_its_receipt_is_verified(connect: Callable[..., Client], user: str, echo: str) -> None:
    client = connect(user)
    value = {"text": "hellö", "number": 1.5}
    done = client.execute(echo, value, budget="0.05", task_id="t")
    assert json.loads(done.output or "") == value
    assert (done.success, done.amount_paid_micro + done.fee_micro) == (True, 10_000)
    assert client.execute(echo, value, budget="0.05", task_id="t") == done, "the same task, not another"
    assert client.balance().available_micro == 4_990_000
    assert [line.kind.value for line in client.statement(page_size=1)] == ["task", "deposit"]
    assert client.verify(done, input=value).exit_status == 0


def test_a_queued_task_is_waited_for(connect: Callable[..., Client], user: str, echo: str) -> None:
    client = connect(user)
    pending = client.submit(echo, b"\xff\x00", budget="0.05", timeout=30)
    done = client.wait(pending.task_id, within=GENEROUS_S)
    assert package.output_bytes(done) == b"\xff\x00"
    assert client.execute(echo, "long", budget="0.05", timeout=60, within=GENEROUS_S).output == "long"


def test_the_async_client_pays_many_tasks_at_once(
    stack: Stack, token: Callable[..., str], user: str, echo: str
) -> None:
    async def main() -> list[str | None]:
        given: dict[str, Any] = {"verify": True, "timeout": GENEROUS_S}
        async with AsyncClient(stack.api_url, token=token(user), **given) as client:
            tasks = [client.execute(echo, f"n{number}", budget="0.05") for number in range(4)]
            done = await asyncio.gather(*tasks)
            lines = [line async for line in client.statement(page_size=2)]
            assert len(lines) == 5
            return [result.output for result in done]

    assert asyncio.run(main()) == ["n0", "n1", "n2", "n3"]


def test_a_module_is_published_with_progress(
    connect: Callable[..., Client], bond: Callable[..., None], user: str, tmp_path: Path
) -> None:
    bond(user)
    client, heard = connect(user), []
    file = tmp_path / "echo.wasm"
    file.write_bytes(ECHO)
    made = client.agents.publish(
        file, name="mine", tariff=FLAT, within=GENEROUS_S, progress=lambda sent, size: heard.append((sent, size))
    )
    assert (made.state.value, made.module_sha256) == ("active", hashlib.sha256(ECHO).hexdigest())
    assert heard[-1] == (len(ECHO), len(ECHO))
    assert client.execute(made.agent_id, "x", budget="0.05").output == "x"
    other = wasm("wordcount")
    newer = client.agents.publish(other, agent_id=made.agent_id, tariff={**FLAT, "price": "0.02"}, within=GENEROUS_S)
    assert newer.module_sha256 == hashlib.sha256(other).hexdigest()
    assert [agent.agent_id for agent in client.agents.list(owner=user)] == [made.agent_id]
    with pytest.raises(PublishFailedError, match="is rejected"):
        client.agents.publish(b"\x00asm\x01\x00\x00\x00", agent_id=made.agent_id, within=GENEROUS_S)
    assert client.agents.retire(made.agent_id).state.value == "retired"


def test_receipts_under_other_root_keys_are_refused(connect: Callable[..., Client], user: str, echo: str) -> None:
    client = connect(user, verify=Verifier(keys=Root().jwks()))
    with pytest.raises(NotProvenError) as caught:
        client.execute(echo, "x", budget="0.05")
    assert caught.value.result.success
    assert connect(user).wait(caught.value.call_id or "").output == "x"


def test_a_receipt_is_proven_in_the_log(
    connect: Callable[..., Client], user: str, echo: str, logged: Callable[[Client, str], None]
) -> None:
    client = connect(user)
    done = client.execute(echo, "x", budget="0.05", task_id="logged")
    logged(client, "logged")
    proof = client.proof("logged")
    keys = httpx.get(f"{client._core.root}/.well-known/jwks.json", trust_env=False).content
    evidence = Evidence(receipt=done.receipt, keys=keys, proof=proof.model_dump_json().encode())
    assert examine(evidence).exit_status == 0


def test_refusals_of_the_platform_are_typed(
    connect: Callable[..., Client], stack: Stack, token: Callable[..., str], user: str, echo: str
) -> None:
    client = connect(user)
    with pytest.raises(InsufficientFundsError) as short:
        client.execute(echo, "x", budget="100")
    assert (short.value.available_micro, short.value.required_micro) == (5_000_000, 100_000_000)
    with pytest.raises(NotFoundError):
        client.agents.get("agt_none")
    with pytest.raises(MissingScopeError) as scope:
        client.deposit("1")
    assert scope.value.required_scope == "ledger:deposit"
    with Client(stack.api_url, token=token(user, exp=1_000)) as late, pytest.raises(TokenExpiredError):
        late.balance()


def tomorrow() -> datetime:
    return datetime.now(UTC) + timedelta(days=1)


def test_a_channel_pays_without_a_token(
    connect: Callable[..., Client], user: str, echo: str, published: str, tmp_path: Path
) -> None:
    """Threads spend it with receipts verified; a resent ticket, an agent that is not allowed and a full channel."""
    payer, key = connect(user), ChannelKey.new()
    terms: dict[str, Any] = {"ticket_value": "0.05", "tickets": 12, "expires_at": tomorrow(), "agents": [echo]}
    assert payer.open_channel(key, **terms) == payer.open_channel(key, **terms)
    key.save(tmp_path / "key.json")
    key = ChannelKey.load(tmp_path / "key.json")
    with Client(key.api, verify=True, timeout=GENEROUS_S) as client:
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda part: client.spend(key, echo, f"part {part}", budget="0.05"), range(10)))
        assert [task.output for task in done] == [f"part {part}" for part in range(10)]
        assert sorted(int(task.task_id.rpartition(".")[2]) for task in done) == list(range(1, 11))
        ticket = key.sign(echo, "hello", budget="0.1", keep_input=True, share={"log": True}, timeout=5)
        assert client.redeem(ticket) == client.redeem(ticket)
        with pytest.raises(AgentNotAllowedError):
            client.spend(key, published, "hello", budget="0.05")
        with pytest.raises(TicketInvalidError) as beyond:
            client.redeem(key.sign(echo, "hello", budget="0.05", number=1_000))
        assert beyond.value.numbers is not None
        assert beyond.value.numbers >= 12
        assert [line.tickets for line in payer.tickets(key.channel_id)] == [1] * 10 + [2, 1]
        assert payer.find_numbers(key) >= beyond.value.numbers - 12
        assert payer.task_input(ticket.task_id) == b"hello"
        assert payer.balance().available_micro == 5_000_000 - 12 * 50_000
        assert client.close_channel_by_key(key).state.value == "closing"


# The examples of the docstrings.

EXAMPLES = [
    *[kind for kind in vars(package).values() if inspect.isclass(kind) and ">>> " in (kind.__doc__ or "")],
    *[
        method
        for kind in (Client, Agents)
        for name in dir(kind)
        if isinstance(method := getattr(kind, name), Operation | Listing)
    ],
]

OF_THEIR_OWN = {
    "page", "list", "retire", "publish", "wait_published", "versions", "versions_page", "activate", "update", "card",
    "a2a_card", "runs", "runs_page", "run",
}  # fmt: skip
"""Methods whose examples need an agent that no other example changes."""


@pytest.fixture(scope="module")
def shop(stack: Stack, token: Callable[..., str], bond: Callable[..., None]) -> Iterator[Client]:
    """A client of an owner of agents."""
    bond("shop-owner")
    with Client(stack.api_url, token=lambda: token("shop-owner"), timeout=GENEROUS_S) as client:
        yield client


@pytest.fixture(scope="module")
def published(shop: Client) -> str:
    """An agent of that owner."""
    return shop.agents.publish(ECHO, name="echo", tariff=FLAT, within=GENEROUS_S).agent_id


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda found: getattr(found, "__wrapped__", found).__qualname__)
def test_examples_of_docstrings_are_true(
    example: Any, stage: Callable[[str], contextlib.AbstractContextManager[dict[str, Any]]]
) -> None:
    name = getattr(example, "__wrapped__", example).__qualname__
    with stage(name) as names:
        test = doctest.DocTestParser().get_doctest(inspect.getdoc(example) or "", names, name, None, None)
        assert test.examples
        printed: list[str] = []
        result = doctest.DocTestRunner(verbose=False).run(test, out=printed.append)
    assert result.failed == 0, "".join(printed)


@pytest.fixture
def stage(
    stack: Stack,
    token: Callable[..., str],
    shop: Client,
    published: str,
    logged: Callable[[Client, str], None],
    jwks: dict[str, Any],
    folder: Path,
) -> Callable[[str], Any]:
    """`stage(name)`: the names that the example of a method or class uses, and what must have happened before it."""

    @contextlib.contextmanager
    def prepare(name: str) -> Iterator[dict[str, Any]]:
        group, _, method = name.rpartition(".")
        me = "alice" if not group else f"user-{uuid.uuid4().hex[:8]}"
        made = contextlib.ExitStack()

        def tracked(*arguments: Any, **named: Any) -> Client:
            return made.enter_context(Client(*arguments, **named))

        bank = tracked(stack.api_url, token=token("bank", "ledger:deposit"), timeout=GENEROUS_S)
        bank.deposit("5", account=me)
        names: dict[str, Any] = {exported: getattr(package, exported) for exported in package.__all__}
        names |= {"api": stack.api_url, "agent": published, "token": token(me), "me": me, "bank": bank, "module": ECHO}
        names["Client"] = tracked
        client = tracked(stack.api_url, token=names["token"], timeout=GENEROUS_S)
        if group == "AgentMethods":
            names |= {"client": shop, "me": "shop-owner"}
            bank.deposit("5", account="shop-owner")
            if method in OF_THEIR_OWN:
                client.move_bond("2")
                names |= {"client": client, "me": me}
                echo = client.agents.publish(ECHO, name="echo", tariff=FLAT, within=GENEROUS_S)
                names["agent"] = echo.agent_id
            if method in {"runs", "run"}:
                client.execute(names["agent"], "hello", budget="0.05")
                until(lambda: list(client.agents.runs(names["agent"])), "the run is not listed")
        else:
            names["client"] = client
        if method in {"result", "wait", "proof", "verify", "statement_page", "statement_csv", "tasks", "tasks_page"}:
            client.execute(published, "hello", budget="0.05", task_id="greeting-1")
        if method in {"tasks", "tasks_page"}:
            until(lambda: list(client.tasks(state="succeeded")), "the task is not listed")
        if method == "proof":
            logged(client, "greeting-1")
        if method.startswith("bond_statement"):
            client.move_bond("2")
        names |= _of_channel(client, method, folder) if group == "ChannelMethods" else {}
        (folder / "token").write_text(names["token"])
        (folder / "jwks.json").write_text(json.dumps(jwks))
        (folder / "echo.wasm").write_bytes(ECHO)
        with made, Server().running() as server:
            issuer = Issuer(server, make=lambda subject, _: token(subject))
            issuer.secret, issuer.device["interval"] = "not shown", 1
            yield names | {"issuer": issuer.url, "token_file": "token", "asyncio": asyncio, "hashlib": hashlib}

    return prepare


def _of_channel(client: Client, method: str, folder: Path) -> dict[str, Any]:
    """The names of an example about a channel."""
    if method == "open_channel":
        return {}
    key = ChannelKey.new()
    client.open_channel(key, ticket_value="0.05", tickets=20, expires_at=tomorrow())
    key.save(folder / "channel.json")
    if method in {"channels", "channels_page"}:
        until(lambda: list(client.channels()), "the channel is not listed")
    return {"key": key, "channel_id": key.channel_id}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of an example."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def logged(sweep: Callable[[], None], ledger: Ledger) -> Callable[[Client, str], None]:
    """`logged(client, task_id)` returns when the receipt of a task is in the log."""

    def wait(client: Client, task_id: str) -> None:
        for _ in range(20):
            sweep_until_credited(sweep, ledger)
            with contextlib.suppress(NotLoggedError):
                client.proof(task_id)
                return
        pytest.fail("the receipt is not in the log")

    return wait
