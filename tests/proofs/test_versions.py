"""Owners publish, activate and change an agent while clients execute it, with threads on a real engine.

Each task must be settled as one version says: the artefact that ran is that of the module in its escrow, with tariff,
rules and limits that this version had at some time, and the receipt states the same.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from quittance.agent import Agent, AgentState, Rejection, Terms, Upload, Version
from quittance.api.identity import Caller
from quittance.api.models import AgentChange
from quittance.errors import AgentNotReadyError, BudgetTooLowError, QuittanceError, TermsChangedError
from quittance.ledger import escrow as escrows
from quittance.ledger import pricing
from quittance.ledger.escrow import Escrow
from quittance.proof import receipt
from quittance.run import Job, Meter, Outcome, Run
from quittance.sandbox import artefact_key
from quittance.store.registry import Registry
from quittance.usecases import agents, execute
from tests.proofs.engines import client_of, engine, new_table
from tests.proofs.world import World, ask, one_key
from tests.template import template

AGENT = "agt_" + "v" * 16
OWNER = Caller("olga")
REGISTRY = "RegistryTable"
VERSIONS = 12
CLIENTS, TASKS, CHANGES = 4, 25, 30
BUDGET = 10**6


def module_of(number: int) -> str:
    return f"{number:064x}"


def terms_of(number: int, cents: int = 1) -> Terms:
    """The terms of a version: limits and rules name it, and so does the price, whichever change it is of."""
    tariff = pricing.tariff_json(pricing.parse_tariff(f'{{"type":"flat","price":"0.{number:02}{cents:02}"}}'))
    return Terms(tariff, number << 20, 10, number * 10**6, f'{{"max_bytes":{number * 1_000}}}')


def compiled(number: int) -> Version:
    return Version(module_of(number), artefact_key(module_of(number)), f"artefact {number}", "engine", "c0" * 32)


def new_registry_table(client: Any) -> None:
    properties = template()["Resources"][REGISTRY]["Properties"]
    names = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode")
    client.create_table(TableName=REGISTRY, **{name: properties[name] for name in names})


class Scene:
    """One agent on a real engine, what its versions ran, and everything that went wrong."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.ran: dict[str, tuple[str, int, int]] = {}
        self.wrong: list[str] = []
        self.refused = 0

    def world(self) -> World:
        """A platform of its own, as another environment has it."""
        client = client_of(self._url)
        world = World(client, now_ms=lambda: 1_800_000_000_000, run=self._run, left_ms=lambda: 60_000, keys=one_key())
        world.settings = world.settings.model_copy(update={"bond_minimum_micro": 0})
        world.registry = Registry(client, table=REGISTRY, left_ms=lambda: 60_000)
        return world

    def _run(self, job: Job) -> Run:
        self.ran[job.seed.hex()] = (job.artefact_sha256, job.fuel, job.memory_bytes_own)
        return Run(Outcome.SUCCEEDED, "", Meter(fuel=1, output_bytes=2), 0, b"ok")

    def guarded(self, story: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            try:
                story()
            except BaseException as exc:  # noqa: BLE001 - it is what the test shows
                self.wrong.append(repr(exc))

        return threading.Thread(target=run)

    def publish(self, registry: Registry) -> None:
        """Opens an upload with the version's own terms and publishes or rejects it, as the publisher does."""
        number = registry.get(AGENT).upload.number + 1
        while (opened := registry.open_upload(registry.get(AGENT), terms_of(number))).upload.number < number:
            pass  # another owner has changed the agent since it was read
        claimed = registry.claim_upload(opened, f"posted {number}")
        if number % 5 == 0:
            registry.reject(claimed, Rejection("bad", "It is bad."))
        else:
            registry.activate(claimed, compiled(number), now_ms=number)

    def own(self) -> None:
        """The story of the owner who publishes."""
        registry = self.world().registry
        for _ in range(2, VERSIONS + 1):
            self.publish(registry)

    def operate(self, name: str) -> None:
        """The story of an owner who activates versions and changes prices and names."""
        world, chance = self.world(), random.Random(name)
        for turn in range(CHANGES):
            move = chance.randrange(3)
            if move == 0:
                self.activate(world, chance.randint(1, VERSIONS))
            elif move == 1:
                self.dearer(world.registry, chance.randint(1, 99))
            else:
                agents.change(world, OWNER, AGENT, AgentChange.model_validate({"name": f"{name} {turn}"}))

    def activate(self, world: World, number: int) -> None:
        try:
            agents.activate(world, OWNER, AGENT, number)
        except QuittanceError:
            self.refused += 1

    def dearer(self, registry: Registry, cents: int) -> None:
        """Changes the price of the version that is active at that moment, as `change` does, to one that names it."""
        agent = registry.get(AGENT)
        assert agent.version is not None
        terms = terms_of(agent.version.number, cents)
        written = registry.change(agent, replace(agent, terms=terms))
        self.refused += written.terms != terms

    def execute(self, name: str) -> None:
        world, chance = self.world(), random.Random(name)
        for task in range(TASKS):
            request = ask(f"{name}-{task}", AGENT, budget=BUDGET)
            if chance.random() < 0.3:
                pin = {"module_sha256": module_of(chance.randint(1, VERSIONS))}
                request = request.model_copy(update=pin)
            world.registry._cache.clear()
            try:
                execute.execute(world, "alice", request)
            except (TermsChangedError, AgentNotReadyError, BudgetTooLowError):
                self.refused += 1


def check(scene: Scene, escrow: Escrow) -> None:
    """One version, everywhere: in the escrow, in the sandbox, and in the receipt."""
    number = int(escrow.module_sha256, 16)
    artefact, fuel, memory = scene.ran[escrows.seed(escrow).hex()]
    assert artefact == f"artefact {number}"
    assert escrow.tariff in {terms_of(number, cents).tariff for cents in range(1, 100)}
    assert escrow.agent_rules_sha256 == terms_of(number).rules_sha256
    assert (fuel, memory) == (number * 10**6, number << 20)
    assert escrow.settlement is not None
    claims = receipt.verify(escrow.settlement.receipt, one_key().jwks())
    assert claims["module_sha256"] == escrow.module_sha256
    assert claims["tariff_sha256"] == pricing.tariff_sha256(escrow.tariff)
    assert claims["acceptance"]["agent_sha256"] == escrow.agent_rules_sha256
    price_micro = pricing.parse_tariff(escrow.tariff).price_micro  # type: ignore[union-attr]  # all are flat
    assert int(claims["paid"]) + int(claims["fee"]) - int(claims["compute"]) == price_micro


def check_versions(world: World) -> None:
    """Every version is listed once, with its own module and rules; one is active."""
    agent = world.registry.get(AGENT)
    found = agents.versions(world, AGENT, limit=100).versions
    assert [one.number for one in found] == [*range(VERSIONS, 0, -1)]
    for one in found:
        assert (one.state == "rejected") == (one.number % 5 == 0)
        assert one.module_sha256 == (None if one.state == "rejected" else module_of(one.number))
        assert one.rules_sha256 == terms_of(one.number).rules_sha256
    assert [one.number for one in found if one.state == "active"] == [agent.version.number if agent.version else 0]


def test_each_receipt_names_the_one_version_that_ran() -> None:
    with engine("ministack") as url:
        new_table(client_of(url))
        new_registry_table(client_of(url))
        scene = Scene(url)
        world = scene.world()
        world.ledger.deposit("alice", "d", 10**12, now_ms=1)
        terms = terms_of(1)
        world.registry.create(Agent(AGENT, "olga", "a", "", 1, terms, Upload(1, AgentState.AWAITING_UPLOAD, terms)))
        claimed = world.registry.claim_upload(world.registry.get(AGENT), "posted 1")
        world.registry.activate(claimed, compiled(1), now_ms=1)
        names = [f"client-{number}" for number in range(CLIENTS)]
        stories: list[Callable[[], None]] = [scene.own]
        stories += [partial(scene.operate, f"operator-{number}") for number in range(2)]
        stories += [partial(scene.execute, name) for name in names]
        threads = [scene.guarded(story) for story in stories]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert scene.wrong == []
        ids = [escrows.escrow_id("alice", f"{name}-{task}") for name in names for task in range(TASKS)]
        settled = [escrow for escrow in map(world.ledger.find, ids) if escrow]
        for escrow in settled:
            check(scene, escrow)
        assert len({escrow.module_sha256 for escrow in settled}) > 1, "several versions ran"
        check_versions(world)
