"""The Python client on the deployed stack: versions, contracts, cards, runs, tasks, searches, statements and inputs."""

import asyncio
import contextlib
import csv
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from local.paths import Stack
from quittance.acceptance.contract import Contract
from quittance.client import (
    AsyncClient,
    Client,
    InputNotAcceptedError,
    InvalidRequestError,
    NotFoundError,
    PublishFailedError,
    TermsChangedError,
    VersionNotPublishedError,
)
from tests.support import wasm
from tests.waiting import GENEROUS_S, until

FLAT = {"type": "flat", "price": "0.01"}
CONTRACT: dict[str, Any] = {
    "input_schema": {"type": "object", "properties": {"n": {"multipleOf": 0.5}}},
    "examples": [{"name": "gives back", "input": {"n": 1.5}, "output": {"n": 1.5}}],
    "tags": ["numbers"],
}


@pytest.fixture
def connect(stack: Stack, token: Callable[..., str]) -> Iterator[Callable[[str], Client]]:
    """`connect(subject)`: a client of the stack that verifies each receipt."""
    with contextlib.ExitStack() as clients:
        yield lambda subject: clients.enter_context(
            Client(stack.api_url, token=lambda: token(subject), verify=True, timeout=GENEROUS_S)
        )


@pytest.fixture
def owner(connect: Callable[[str], Client], bond: Callable[..., None]) -> Client:
    """A new owner with a bond."""
    name = f"owner-{uuid.uuid4().hex[:12]}"
    bond(name)
    return connect(name)


@pytest.fixture
def payer(connect: Callable[[str], Client], deposit: Callable[..., None]) -> Client:
    """A new user with five credits."""
    name = f"payer-{uuid.uuid4().hex[:12]}"
    deposit(name, "5")
    return connect(name)


def publish(owner: Client, **given: Any) -> Any:
    return owner.agents.publish(given.pop("module", wasm("echo")), within=GENEROUS_S, **given)


def states(reader: Client, agent_id: str) -> list[tuple[int, str]]:
    return [(one.number, one.state.value) for one in reader.agents.versions(agent_id, page_size=1)]


def test_versions_are_published_rolled_back_and_changed(owner: Client, payer: Client) -> None:
    first = publish(owner, name="versions", tariff=FLAT, contract=Contract.model_validate(CONTRACT))
    agent_id = first.agent_id
    assert (first.number, first.state.value) == (1, "active")
    second = publish(owner, agent_id=agent_id, tariff={**FLAT, "price": "0.02"}, contract={})
    assert (second.number, second.contract_sha256) == (2, None)
    wrong = {"examples": [{"name": "wrong", "input": "a", "output": "b"}]}
    with pytest.raises(PublishFailedError, match=r"Version 3 .* is rejected: example_failed") as no:
        publish(owner, agent_id=agent_id, contract=wrong)
    assert (no.value.number, no.value.code) == (3, "example_failed")
    assert payer.agents.get(agent_id).version == 2, "the older version goes on to take tasks"
    assert states(payer, agent_id) == [(3, "rejected"), (2, "active"), (1, "inactive")]

    pins = payer.agents.pins(agent_id)
    back = owner.agents.activate(agent_id, 1)
    assert (back.version, back.contract_sha256) == (1, first.contract_sha256)
    assert owner.agents.activate(agent_id, 1) == back, "repeating changes nothing"
    assert owner.agents.wait_published(agent_id, 2).state.value == "inactive"
    with pytest.raises(VersionNotPublishedError):
        owner.agents.activate(agent_id, 3)
    with pytest.raises(NotFoundError):
        payer.agents.activate(agent_id, 2)

    def refused() -> bool:
        with contextlib.suppress(TermsChangedError):
            payer.execute(agent_id, {"n": 1}, budget="0.05", **pins)
            return False
        return True

    until(refused, "the change is not noticed")
    changed = owner.agents.update(
        agent_id, name="renamed", tariff={**FLAT, "price": "0.03"}, limits={"timeout": 4}, acceptance={"max_bytes": 99}
    )
    assert (changed.name, changed.version, changed.limits.timeout) == ("renamed", 1, 4)
    assert changed.limits.memory_mib == back.limits.memory_mib, "a limit that is absent stays"
    with pytest.raises(InvalidRequestError):
        owner.agents.update(agent_id)

    def paid() -> int | None:
        with contextlib.suppress(TermsChangedError):
            done = payer.execute(agent_id, {"n": 1}, budget="0.05", **payer.agents.pins(agent_id))
            return done.amount_paid_micro + done.fee_micro
        return None

    assert until(paid, "the new terms are not noticed") == 30_000


def test_contracts_are_on_both_cards_and_checked(owner: Client, payer: Client) -> None:
    made = publish(owner, name="with a contract", tariff=FLAT, contract=CONTRACT)
    card = payer.agents.card(made.agent_id)
    assert card.contract == Contract.model_validate(CONTRACT)
    assert card.contract_sha256 == made.contract_sha256
    signed = payer.agents.a2a_card(made.agent_id)
    (extension,) = signed.card["capabilities"]["extensions"]
    assert extension["params"]["contractSha256"] == made.contract_sha256
    assert signed.agent_id == made.agent_id
    with pytest.raises(InputNotAcceptedError) as refused:
        payer.execute(made.agent_id, {"n": 0.25}, budget="0.05")
    assert refused.value.errors[0]["field"] == "input/n"
    again = publish(owner, agent_id=made.agent_id, contract=card.contract)
    assert again.contract_sha256 == made.contract_sha256, "a contract that was read names the same when it is sent"


def test_runs_and_tasks_are_listed_with_what_is_shared(owner: Client, payer: Client) -> None:
    agent_id = publish(owner, name="desk", tariff=FLAT).agent_id
    me = payer.balance().account_id
    value = {"big": 12345678901234567, "text": "hellö"}
    kept = payer.execute(agent_id, value, budget="0.05", keep_input=True, share={"payer": True, "log": True})
    assert payer.task_input(kept.task_id, sha256=kept.input_sha256).decode() == kept.output
    hidden = payer.execute(agent_id, b"\xff", budget="0.05", keep_input=True)
    assert payer.task_input(hidden.task_id) == b"\xff"
    failed = payer.execute(agent_id, "long", budget="0.05", acceptance={"max_bytes": 1})
    for client, task_id in ((payer, failed.task_id), (owner, kept.task_id)):
        with pytest.raises(NotFoundError):
            client.task_input(task_id)

    def listed() -> tuple[list[Any]] | None:
        found = list(owner.agents.runs(agent_id, page_size=1))
        return (found,) if len(found) == 3 else None

    runs = until(listed, "the runs are not listed")[0]
    assert [run.run_id for run in runs] == [failed.escrow_id, hidden.escrow_id, kept.escrow_id]
    assert [run.payer for run in runs] == [None, None, me]
    since = runs[1].model_dump(mode="json")["settled_at"]
    assert len(list(owner.agents.runs(agent_id, since=since, outcome="succeeded"))) == 1
    assert owner.agents.runs_page(agent_id, until=since, limit=1).runs[0].run_id == kept.escrow_id
    one = owner.agents.run(agent_id, kept.escrow_id)
    assert (one.log_shared, one.log, one.fuel_used) == (True, kept.log or "", kept.resource_usage.fuel_used)
    with pytest.raises(NotFoundError):
        next(payer.agents.runs(agent_id))

    until(lambda: len(list(payer.tasks(page_size=2, state="succeeded"))) == 2, "the tasks are not listed")
    until(lambda: len(list(payer.tasks(state="failed"))) == 1, "the failed task is not listed")
    assert [task.task_id for task in payer.tasks(agent_id=agent_id)] == [
        failed.task_id, hidden.task_id, kept.task_id,
    ]  # fmt: skip
    assert payer.tasks_page(agent_id="agt_none").tasks == []


def test_statement_as_csv_is_the_statement(payer: Client, echo: str) -> None:
    for _ in range(3):
        payer.execute(echo, "x", budget="0.05")
    wanted = [line.model_dump(mode="json", by_alias=True) for line in payer.statement()]
    assert len(wanted) == 4
    read = list(csv.DictReader(payer.statement_csv(page_size=3), strict=True))
    assert read == [{name: "" if value is None else str(value) for name, value in line.items()} for line in wanted]
    page = payer.statement_csv_page(limit=4)
    assert (page.next, page.text.count("\r\n")) == (None, 5)


def test_searches_find_agents_by_their_filters(stack: Stack, owner: Client, token: Callable[..., str]) -> None:
    word = f"w{uuid.uuid4().hex[:12]}"
    made = [
        publish(owner, name=f"{word} {price}", tariff={**FLAT, "price": price}, contract={"tags": [word]}).agent_id
        for price in ("0.01", "0.03", "0.02")
    ]
    until(lambda: len(list(owner.agents.list(q=word))) == 3, "the agents are not indexed")

    async def search() -> list[str]:
        async with AsyncClient(stack.api_url, token=token("anyone"), timeout=GENEROUS_S) as client:
            return [found.agent_id async for found in client.agents.list(tag=word, sort="price", page_size=1)]

    assert asyncio.run(search()) == [made[0], made[2], made[1]]
    assert [found.agent_id for found in owner.agents.list(q=word, max_price="0.025")] == [made[2], made[0]]
    assert owner.agents.page(q=word, min_score=100.0).agents == []
    assert owner.agents.page(q=word, min_success_rate=0.5, owner="me-not").agents == []
