"""The registry's table: owners' flags, the index of an owner's agents, and the listing."""

from types import SimpleNamespace

import pytest

from quittance import publishing
from quittance.models import AgentRequest
from quittance.store import registry as registries
from quittance.store.registry import OwnedAgents, OwnerState
from tests.support import FLAT, Cloud, wasm


def register(cloud: Cloud, owner: str = "owner") -> str:
    return publishing.register(cloud, owner, AgentRequest.model_validate({"name": "test", "tariff": FLAT})).agent_id


# Owners.


def test_an_owner_without_an_item_is_bonded_and_not_frozen(cloud: Cloud) -> None:
    assert cloud.registry.owner("auth0|dave") == OwnerState(bonded=True, frozen=False)


def test_owner_flags_are_set_and_cleared_independently(cloud: Cloud) -> None:
    registry = cloud.registry
    for _ in range(2):
        registry.set_bond_short("owner", True)
    assert registry.owner("owner") == OwnerState(bonded=False, frozen=False)
    registry.set_frozen("owner", True)
    assert registry.owner("owner") == OwnerState(bonded=False, frozen=True)
    for _ in range(2):
        registry.set_bond_short("owner", False)
    assert registry.owner("owner") == OwnerState(bonded=True, frozen=True)
    registry.set_frozen("owner", False)
    assert registry.owner("owner") == OwnerState()
    assert registry.owner("another") == OwnerState()


def test_cached_owner_flags_are_at_most_ten_seconds_old(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: 1_000.0)
    monkeypatch.setattr(registries, "time", clock)
    elsewhere = registries.Registry(cloud._dynamodb, table="RegistryTable", left_ms=cloud.left_ms)
    assert cloud.registry.owner_cached("owner") == OwnerState()
    elsewhere.set_frozen("owner", True)
    assert cloud.registry.owner_cached("owner") == OwnerState()
    clock.monotonic = lambda: 1_000.0 + registries._CACHE_SECONDS
    assert cloud.registry.owner_cached("owner") == OwnerState(frozen=True)
    cloud.registry.set_frozen("owner", False)
    assert cloud.registry.owner_cached("owner") == OwnerState(), "an environment sees its own writes at once"


def test_active_agents_of_an_owner_are_found(cloud: Cloud) -> None:
    assert cloud.registry.active_agents_of("owner") == OwnedAgents(active=False, retired_ms=None)
    register(cloud)
    assert cloud.registry.active_agents_of("owner") == OwnedAgents(active=False, retired_ms=None)
    mine = [cloud.publish(wasm("echo")) for _ in range(2)]
    cloud.publish(wasm("echo"), owner="other")
    assert cloud.registry.active_agents_of("owner").active
    publishing.retire(cloud, "owner", mine[0])
    first_ms = cloud.registry.get(mine[0]).retired_ms
    assert cloud.registry.active_agents_of("owner") == OwnedAgents(active=True, retired_ms=first_ms)
    cloud.skew_ms = 60_000
    publishing.retire(cloud, "owner", mine[1])
    last_ms = cloud.registry.get(mine[1]).retired_ms
    assert last_ms != first_ms
    assert cloud.registry.active_agents_of("owner") == OwnedAgents(active=False, retired_ms=last_ms)
    assert cloud.registry.active_agents_of("other").active


def test_agents_of_an_owner_are_read_up_to_a_limit(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "OWNED_AGENTS_READ_MAX", 3)
    for _ in range(3):
        register(cloud)
    assert not cloud.registry.active_agents_of("owner").active
    register(cloud)
    assert cloud.registry.active_agents_of("owner").active, "what is not read is taken to be active"
