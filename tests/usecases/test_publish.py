"""From a registration to an active agent, and every way it can be refused or overtaken."""

from typing import Any

import pytest

from quittance.api.identity import Caller
from quittance.api.models import AgentRequest, VersionRequest
from quittance.errors import AgentNotReadyError, InvalidRequestError, NotFoundError
from quittance.usecases import agents, publish
from tests.support import FLAT, Cloud, wasm


def register(cloud: Cloud, owner: str = "owner") -> str:
    request = AgentRequest.model_validate({"name": "test", "tariff": FLAT})
    return agents.register(cloud, Caller(owner), request).agent_id


def post_and_publish(cloud: Cloud, agent_id: str, number: int, module: bytes) -> str:
    posted = cloud.post(agent_id, number, module)
    return publish.publish(cloud, f"uploads/{agent_id}/{number}", posted)


def test_a_posted_module_becomes_the_active_version(cloud: Cloud) -> None:
    agent_id = register(cloud)
    assert agents.describe(cloud, agent_id).state == "awaiting_upload"
    assert post_and_publish(cloud, agent_id, 1, wasm("echo")) == "active"
    seen = agents.describe(cloud, agent_id)
    assert (seen.state, seen.owner, seen.rejection) == ("active", "owner", None)


@pytest.mark.parametrize("module", [b"", b"no wasm", b"\0asm\1\0\0\0", b"(module)"])
def test_a_bad_module_is_rejected_with_a_reason_and_can_be_mended(cloud: Cloud, module: bytes) -> None:
    agent_id = register(cloud)
    assert post_and_publish(cloud, agent_id, 1, module) == "rejected"
    rejection = agents.describe(cloud, agent_id).rejection
    assert rejection is not None
    assert rejection.code
    assert rejection.message.endswith((".", ")"))
    agents.open_version(cloud, Caller("owner"), agent_id, VersionRequest())
    assert post_and_publish(cloud, agent_id, 2, wasm("echo")) == "active"
    assert agents.describe(cloud, agent_id).rejection is None


def test_the_active_version_serves_until_the_next_one_is_active(cloud: Cloud) -> None:
    agent_id = register(cloud)
    post_and_publish(cloud, agent_id, 1, wasm("echo"))
    before = agents.describe(cloud, agent_id)
    dearer = VersionRequest.model_validate({"tariff": {"type": "flat", "price": "0.02"}})
    agents.open_version(cloud, Caller("owner"), agent_id, dearer)
    assert agents.describe(cloud, agent_id) == before
    assert post_and_publish(cloud, agent_id, 2, b"broken") == "rejected"
    rejected = agents.describe(cloud, agent_id)
    assert (rejected.state, rejected.module_sha256, rejected.tariff) == ("active", before.module_sha256, before.tariff)
    agents.open_version(cloud, Caller("owner"), agent_id, dearer)
    assert post_and_publish(cloud, agent_id, 3, wasm("sieve")) == "active"
    after = agents.describe(cloud, agent_id)
    assert after.module_sha256 != before.module_sha256
    assert after.tariff == dearer.tariff


def test_versions_opened_at_once_get_forms_of_their_own(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who loses the race opens the next upload, with the terms that were asked for."""
    agent_id = register(cloud)
    ours, others = (VersionRequest.model_validate({"tariff": FLAT | {"price": price}}) for price in ("0.02", "0.03"))
    open_upload, forms = cloud.registry.open_upload, []

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.undo()
        forms.append(agents.open_version(cloud, Caller("owner"), agent_id, others).upload.fields["key"])
        assert post_and_publish(cloud, agent_id, 2, b"bad") == "rejected"
        return open_upload(*arguments)

    monkeypatch.setattr(cloud.registry, "open_upload", overtaken)
    opened = agents.open_version(cloud, Caller("owner"), agent_id, ours)
    forms.append(opened.upload.fields["key"])
    assert forms == [f"uploads/{agent_id}/{number}" for number in (2, 3)]
    assert opened.state == "awaiting_upload"
    assert post_and_publish(cloud, agent_id, 3, wasm("echo")) == "active"
    assert agents.describe(cloud, agent_id).tariff == ours.tariff


def test_an_overtaken_or_spent_upload_changes_nothing(cloud: Cloud) -> None:
    agent_id = register(cloud)
    agents.open_version(cloud, Caller("owner"), agent_id, VersionRequest())
    assert post_and_publish(cloud, agent_id, 1, wasm("echo")) == "retired"
    assert agents.describe(cloud, agent_id).state == "awaiting_upload"
    post_and_publish(cloud, agent_id, 2, wasm("echo"))
    active = agents.describe(cloud, agent_id)
    assert post_and_publish(cloud, agent_id, 2, wasm("sieve")) == "active"
    assert agents.describe(cloud, agent_id) == active, "an upload form makes one version"


def test_only_the_owner_changes_an_agent(cloud: Cloud) -> None:
    agent_id = register(cloud)
    for change in (agents.retire, lambda *who: agents.open_version(*who, Caller(VersionRequest()))):
        with pytest.raises(NotFoundError):
            change(cloud, "stranger", agent_id)
    agents.retire(cloud, Caller("owner"), agent_id)
    with pytest.raises(AgentNotReadyError):
        agents.open_version(cloud, Caller("owner"), agent_id, VersionRequest())
    assert post_and_publish(cloud, agent_id, 1, wasm("echo")) == "retired"
    assert publish.publish(cloud, "uploads/agt_unknown/1") == "retired"


def test_pages_list_active_agents_or_all_of_an_owner(cloud: Cloud) -> None:
    mine = [register(cloud) for _ in range(3)]
    register(cloud, "other")
    post_and_publish(cloud, mine[0], 1, wasm("echo"))
    public = agents.page(cloud, owner=None, limit=10, after=None)
    assert [agent.agent_id for agent in public.agents] == [mine[0]]
    seen, after = [], None
    while True:
        page = agents.page(cloud, owner="owner", limit=2, after=after)
        seen += [agent.agent_id for agent in page.agents]
        if page.next is None:
            break
        after = page.next
    assert sorted(seen) == sorted(mine)
    with pytest.raises(InvalidRequestError):
        agents.page(cloud, owner=None, limit=2, after="nonsense")
