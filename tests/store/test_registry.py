"""The registry's table: flags of owners, the index of an owner's agents, and the listing."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from quittance.acceptance.rules import NO_RULES
from quittance.agent import Agent, AgentState, Terms, Upload, Version
from quittance.api.identity import Caller
from quittance.api.models import AgentRequest
from quittance.limits import PAGE_ITEMS_MAX, SCHEMA_BYTES_MAX
from quittance.operation import Action, Operation
from quittance.store import cache
from quittance.store import registry as registries
from quittance.store.registry import OwnedAgents, OwnerState
from quittance.usecases import agents, health, publish
from tests.support import FLAT, Cloud, wasm


def register(cloud: Cloud, owner: str = "owner") -> str:
    return agents.register(cloud, Caller(owner), AgentRequest.model_validate({"name": "test", "tariff": FLAT})).agent_id


def add_active(cloud: Cloud, agent_id: str, *, owner: str = "owner", created_ms: int = 1, rules: str = NO_RULES) -> str:
    """Adds an active agent without a module; it never runs."""
    terms = Terms(json.dumps(FLAT | {"price": 1}), 1 << 20, 1, 1, rules)
    upload = Upload(1, AgentState.AWAITING_UPLOAD, terms)
    agent = Agent(agent_id, owner, "test", "", created_ms, terms, upload)
    cloud.registry.create(agent)
    activate(cloud, agent)
    return agent_id


def activate(cloud: Cloud, agent: Agent) -> None:
    claimed = cloud.registry.claim_upload(agent, "posted")
    cloud.registry.activate(claimed, Version("module", "key", "artefact", "engine", "config"), now_ms=1)


def list_as_before(cloud: Cloud) -> None:
    """Makes the table look as older code left it, with every registered agent in the listing index."""
    for item in cloud._dynamodb.scan(TableName="RegistryTable")["Items"]:
        cloud._dynamodb.update_item(
            TableName="RegistryTable",
            Key={"pk": item["pk"]},
            UpdateExpression="SET listing = :listing",
            ExpressionAttributeValues={":listing": {"S": "agents"}},
        )


def listed(cloud: Cloud) -> list[str]:
    """The contents of the listing index."""
    query: dict[str, Any] = {"KeyConditionExpression": "listing = :listing"}
    query["ExpressionAttributeValues"] = {":listing": {"S": "agents"}}
    items = cloud._dynamodb.query(TableName="RegistryTable", IndexName="listing", **query)["Items"]
    return [item["pk"]["S"].removeprefix("AGENT#") for item in items]


def all_pages(cloud: Cloud, *, owner: str | None = None, limit: int = 20) -> list[str]:
    """The ids that a client gets by following `next`."""
    seen: list[str] = []
    after = None
    while True:
        page = agents.page(cloud, owner=owner, limit=limit, after=after)
        assert len(page.agents) <= limit
        seen += [agent.agent_id for agent in page.agents]
        if page.next is None:
            return seen
        after = page.next


@pytest.fixture
def reads(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of items read by each query and each batch of keys."""
    read: list[int] = []

    def counted(call: Any, count: Any) -> Any:
        def calling(**arguments: Any) -> Any:
            answer = call(**arguments)
            read.append(count(answer))
            return answer

        return calling

    client = cloud._dynamodb
    monkeypatch.setattr(client, "query", counted(client.query, lambda answer: answer["ScannedCount"]))
    got = counted(client.batch_get_item, lambda answer: sum(map(len, answer["Responses"].values())))
    monkeypatch.setattr(client, "batch_get_item", got)
    return read


# The listing.


@pytest.mark.parametrize("owner", [None, "honest", "attacker"])
def test_a_page_reads_only_what_it_lists(cloud: Cloud, reads: list[int], owner: str | None) -> None:
    """A stranger's free registrations cost no reads of other clients' pages."""
    honest = add_active(cloud, "agt_1", owner="honest")
    for _ in range(300):
        register(cloud, "attacker")
    page = agents.page(cloud, owner=owner, limit=2, after=None)
    assert sum(reads) <= 2 * (2 + 1), "the keys, and their items"
    assert len(reads) <= 2
    if owner != "attacker":
        assert [agent.agent_id for agent in page.agents] == [honest]


def test_deep_health_reads_one_item(cloud: Cloud, reads: list[int]) -> None:
    for number in range(30):
        register(cloud, "attacker")
        add_active(cloud, f"agt_{number}")
    list_as_before(cloud)
    health._CHECKS["registry"](cloud)
    assert reads == [1]


def test_agents_are_listed_from_activation_to_retirement(cloud: Cloud) -> None:
    agent_id = register(cloud)
    assert listed(cloud) == []
    cloud.post(agent_id, 1, b"no module")
    assert publish.publish(cloud, f"uploads/{agent_id}/1") == "rejected"
    assert listed(cloud) == []
    active = cloud.publish(wasm("echo"))
    assert all_pages(cloud) == listed(cloud) == [active]
    agents.retire(cloud, Caller("owner"), active)
    assert all_pages(cloud) == listed(cloud) == []
    assert {*all_pages(cloud, owner="owner")} == {agent_id, active}


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, PAGE_ITEMS_MAX])
@pytest.mark.parametrize("owner", [None, "owner"])
def test_pages_list_every_agent_once_newest_first(cloud: Cloud, limit: int, owner: str | None) -> None:
    for number in range(7):  # several in the same millisecond
        add_active(cloud, f"agt_{number}", created_ms=number // 3)
    seen = all_pages(cloud, owner=owner, limit=limit)
    assert [int(agent_id[-1]) // 3 for agent_id in seen] == [2, 1, 1, 1, 0, 0, 0]
    assert len({*seen}) == 7


@pytest.mark.parametrize("owner", [None, "owner"])
def test_a_page_of_large_agents_is_split(cloud: Cloud, reads: list[int], owner: str | None) -> None:
    """DynamoDB ends a query page at 1 MB: the client gets what was read, and where to continue."""
    made = [add_active(cloud, f"agt_{number:03}", rules="[" + " " * SCHEMA_BYTES_MAX + "]") for number in range(70)]
    page = agents.page(cloud, owner=owner, limit=100, after=None)
    assert len(reads) <= 2
    assert page.agents
    assert sorted(all_pages(cloud, owner=owner, limit=100)) == made


def test_listings_of_older_code_are_cleaned_up(cloud: Cloud) -> None:
    """Older code put every registration into the index. Agents that are not active are removed when they are read."""
    active = [add_active(cloud, f"agt_{number}", created_ms=number) for number in range(5)]
    retired = add_active(cloud, "agt_retired", created_ms=3)
    agents.retire(cloud, Caller("owner"), retired)
    for _ in range(60):
        register(cloud, "attacker")
    list_as_before(cloud)
    assert len(listed(cloud)) == 66
    assert sorted(all_pages(cloud, limit=20)) == active
    while len(listed(cloud)) > 5:
        before = len(listed(cloud))
        assert sorted(all_pages(cloud, limit=20)) == active
        assert len(listed(cloud)) < before
    assert sorted(listed(cloud)) == active
    assert len(all_pages(cloud, owner="attacker")) == 60


def test_cleanup_never_hides_an_agent_that_becomes_active(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index lags behind the table: an agent that it lists as awaiting its upload may have become active."""
    agent_id = register(cloud)
    list_as_before(cloud)
    query = cloud._dynamodb.query

    def then_activated(**asked: Any) -> Any:
        answer = query(**asked)
        activate(cloud, cloud.registry.get(agent_id))
        return answer

    monkeypatch.setattr(cloud._dynamodb, "query", then_activated)
    assert all_pages(cloud) == []
    monkeypatch.undo()
    assert all_pages(cloud) == [agent_id]


def test_a_failing_cleanup_does_not_fail_the_page(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    active = add_active(cloud, "agt_1")
    register(cloud)
    list_as_before(cloud)

    tries = []

    def refusing(**write: Any) -> Any:
        tries.append(write)
        raise ReadTimeoutError(endpoint_url="dynamodb")

    monkeypatch.setattr(cloud._dynamodb, "update_item", refusing)
    assert all_pages(cloud) == [active]
    assert len(tries) == 1, "and the page does not retry it"


# Owners.


def test_an_owner_without_an_item_is_bonded_and_not_frozen(cloud: Cloud) -> None:
    assert cloud.registry.owner("auth0|dave") == OwnerState(bonded=True, frozen=False)


def freeze(cloud: Cloud, action: Action) -> None:
    cloud.operations.perform(Operation(action, "owner", "op", "a test", cloud.now_ms()))


def test_owner_flags_are_set_and_cleared_independently(cloud: Cloud) -> None:
    registry = cloud.registry
    for _ in range(2):
        registry.set_bond_short("owner", True)
    assert registry.owner("owner") == OwnerState(bonded=False, frozen=False)
    freeze(cloud, Action.FREEZE)
    assert registry.owner("owner") == OwnerState(bonded=False, frozen=True)
    for _ in range(2):
        registry.set_bond_short("owner", False)
    assert registry.owner("owner") == OwnerState(bonded=True, frozen=True)
    freeze(cloud, Action.UNFREEZE)
    assert registry.owner("owner") == OwnerState()
    assert registry.owner("another") == OwnerState()


def test_cached_owner_flags_are_at_most_ten_seconds_old(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: 1_000.0)
    monkeypatch.setattr(cache, "time", clock)
    elsewhere = registries.Registry(cloud._dynamodb, table="RegistryTable", left_ms=cloud.left_ms)
    assert cloud.registry.owner_cached("owner") == OwnerState()
    elsewhere.set_bond_short("owner", True)
    assert cloud.registry.owner_cached("owner") == OwnerState()
    clock.monotonic = lambda: 1_000.0 + registries._CACHE_SECONDS
    assert cloud.registry.owner_cached("owner") == OwnerState(bonded=False)
    cloud.registry.set_bond_short("owner", False)
    assert cloud.registry.owner_cached("owner") == OwnerState(), "an environment reads its own writes at once"


def test_unretired_agents_of_an_owner_are_found(cloud: Cloud) -> None:
    assert cloud.registry.agents_of("owner") == OwnedAgents(unretired=False, retired_ms=None)
    register(cloud, owner="third")
    assert cloud.registry.agents_of("third") == OwnedAgents(unretired=True, retired_ms=None), "it awaits its upload"
    mine = [cloud.publish(wasm("echo")) for _ in range(2)]
    cloud.publish(wasm("echo"), owner="other")
    assert cloud.registry.agents_of("owner").unretired
    agents.retire(cloud, Caller("owner"), mine[0])
    first_ms = cloud.registry.get(mine[0]).retired_ms
    assert cloud.registry.agents_of("owner") == OwnedAgents(unretired=True, retired_ms=first_ms)
    cloud.skew_ms = 60_000
    agents.retire(cloud, Caller("owner"), mine[1])
    last_ms = cloud.registry.get(mine[1]).retired_ms
    assert last_ms != first_ms
    assert cloud.registry.agents_of("owner") == OwnedAgents(unretired=False, retired_ms=last_ms)
    assert cloud.registry.agents_of("other").unretired


def test_agents_of_an_owner_are_read_up_to_a_limit(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "OWNED_AGENTS_READ_MAX", 3)
    for _ in range(3):
        agents.retire(cloud, Caller("owner"), register(cloud))
    assert not cloud.registry.agents_of("owner").unretired
    agents.retire(cloud, Caller("owner"), register(cloud))
    assert cloud.registry.agents_of("owner").unretired, "agents that are not read count as not retired"
