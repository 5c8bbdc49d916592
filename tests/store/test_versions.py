"""Any two changes of an agent at the same time end as if one had been made after the other.

One change runs up to one of its calls of DynamoDB, then the other runs as a whole, then the first goes on: for each
pair of changes and each call. The result must be that of one of the two orders.
"""

import itertools
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from quittance.acceptance.rules import parse_rules
from quittance.agent import Agent, AgentState, Rejection, Terms, Upload, Version
from quittance.api.identity import Caller
from quittance.api.models import AgentChange, VersionRequest
from quittance.errors import AgentNotReadyError, VersionNotPublishedError
from quittance.ledger import pricing
from quittance.usecases import agents
from tests.support import Cloud

OWNER = Caller("owner")
CALLS = ("get_item", "batch_get_item", "update_item", "transact_write_items")
CALLS_MAX = 4  # of one change that is not overtaken
PKS = ("AGENT#-", *(f"VERSION#-#{number:010}" for number in range(1, 6)))
Story = Callable[[Cloud, str], Any]


def terms_of(number: int) -> Terms:
    """The terms that a version is published with: each part names the version."""
    tariff = pricing.parse_tariff(f'{{"type":"flat","price":"0.0{number}"}}')
    return Terms(pricing.tariff_json(tariff), number << 20, number, number, f'{{"max_bytes":{number}}}')


def module_of(number: int) -> Version:
    return Version(f"module {number}", f"key {number}", f"artefact {number}", "engine", "config")


def new_agent(cloud: Cloud, agent_id: str) -> str:
    """An agent with three versions: 1 and 2 are published, 2 is active, an object is claimed for 3."""
    terms = terms_of(1)
    cloud.registry.create(Agent(agent_id, "owner", "test", "", 1, terms, Upload(1, AgentState.AWAITING_UPLOAD, terms)))
    for number in (1, 2):
        decide(number, active=True)(cloud, agent_id)
        cloud.registry.open_upload(cloud.registry.get(agent_id), terms_of(number + 1))
    cloud.registry.claim_upload(cloud.registry.get(agent_id), "posted")
    return agent_id


def decide(number: int, *, active: bool) -> Story:
    """Publishes or rejects an upload, as the publisher does."""

    def story(cloud: Cloud, agent_id: str) -> None:
        agent = cloud.registry.get(agent_id)
        if agent.upload.number != number or agent.retired_ms is not None:
            return
        claimed = cloud.registry.claim_upload(agent, "posted")
        if claimed.upload.posted != "posted" or claimed.upload.number != number or claimed.upload.decided:
            return
        if active:
            cloud.registry.activate(claimed, module_of(number), now_ms=number)
        else:
            cloud.registry.reject(claimed, Rejection("bad", "It is bad."))

    return story


def change(**changes: Any) -> Story:
    return lambda cloud, agent_id: agents.change(cloud, OWNER, agent_id, AgentChange.model_validate(changes))


def activate(number: int) -> Story:
    return lambda cloud, agent_id: agents.activate(cloud, OWNER, agent_id, number)


STORIES: dict[str, Story] = {
    "publish 3": decide(3, active=True),
    "reject 3": decide(3, active=False),
    "activate 1": activate(1),
    "activate 2": activate(2),
    "activate 3": activate(3),
    "price": change(tariff={"type": "flat", "price": "0.5"}),
    "time": change(limits={"timeout": 25}, name="other"),
    "open": lambda cloud, agent_id: agents.open_version(cloud, OWNER, agent_id, VersionRequest()),
    "retire": lambda cloud, agent_id: agents.retire(cloud, OWNER, agent_id),
}
REFUSALS = (AgentNotReadyError, VersionNotPublishedError)


def stored(cloud: Cloud, agent_id: str) -> dict[str, Any]:
    """What the registry has of an agent, without its id and what only counts or says when."""
    keys = [{"pk": {"S": pk.replace("-", agent_id)}} for pk in PKS]
    found = cloud._dynamodb.batch_get_item(RequestItems={"RegistryTable": {"Keys": keys}})
    own = {item["pk"]["S"].replace(agent_id, "-"): item for item in found["Responses"]["RegistryTable"]}
    for pk, item in own.items():
        del item["pk"]
        if "retired_ms" in item:
            item["retired_ms"] = {"N": "1"}
        if pk == f"VERSION#-#{int(own['AGENT#-'].get('version_number', {'N': '0'})['N']):010}":
            item.clear()  # the item of the active version is not read
    return own


def check(cloud: Cloud, agent_id: str) -> None:
    """Each version has the module and the rules that it was published with, and no change made it another's."""
    found = agents.versions(cloud, agent_id).versions
    active = [one for one in found if one.state == "active"]
    assert len(active) == 1
    for one in found:
        own = terms_of(one.number)
        assert one.module_sha256 in {None, f"module {one.number}"}
        assert one.rules_sha256 == own.rules_sha256 or one.number > 3
        assert one.limits.fuel == one.number or one.number > 3
    agent = cloud.registry.get(agent_id)
    assert agent.version is not None
    assert parse_rules(agent.terms.rules).max_bytes == agent.terms.fuel == agent.version.number


def tell(story: Story, cloud: Cloud, agent_id: str) -> None:
    with suppress(*REFUSALS):
        story(cloud, agent_id)


@pytest.fixture
def fresh(cloud: Cloud) -> Callable[[], str]:
    """Makes an equal agent each time it is called, and returns its id."""
    new_agent(cloud, "agt_first")
    items = cloud._dynamodb.scan(TableName="RegistryTable")["Items"]
    numbers = itertools.count()

    def copied() -> str:
        agent_id = f"agt_{next(numbers):05}"
        for item in items:
            pk = {"S": item["pk"]["S"].replace("agt_first", agent_id)}
            cloud._dynamodb.put_item(TableName="RegistryTable", Item=item | {"pk": pk})
        return agent_id

    return copied


class Intrusion:
    """Calls `before` or `after` at the call of DynamoDB with number `at`; `sent` counts the calls."""

    def __init__(
        self,
        client: Any,
        patch: pytest.MonkeyPatch,
        at: int,
        *,
        before: Callable[[], Any] = lambda: None,
        after: Callable[[], Any] = lambda: None,
    ) -> None:
        self.sent = 0
        self._at, self._before, self._after = at, before, after
        for name in CALLS:
            patch.setattr(client, name, partial(self._call, getattr(client, name)))

    def _call(self, honest: Callable[..., Any], **asked: Any) -> Any:
        self.sent += 1
        now = self.sent == self._at
        if now:
            self._before()
        answer = honest(**asked)
        if now:
            self._after()
        return answer


def lose() -> None:
    raise ReadTimeoutError(endpoint_url="dynamodb")


@pytest.mark.parametrize("first", STORIES)
def test_two_changes_at_once_are_as_one_after_the_other(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, fresh: Callable[[], str], first: str
) -> None:
    for second, rival in STORIES.items():
        orders = []
        for order in ((STORIES[first], rival), (rival, STORIES[first])):
            agent_id = fresh()
            for story in order:
                tell(story, cloud, agent_id)
            orders.append(stored(cloud, agent_id))
        for at in range(1, CALLS_MAX + 1):
            agent_id = fresh()
            with monkeypatch.context() as patch:
                overtaken = partial(tell, rival, cloud, agent_id)
                intrusion = Intrusion(cloud._dynamodb, patch, at, before=overtaken)
                tell(STORIES[first], cloud, agent_id)
            check(cloud, agent_id)
            if intrusion.sent < at:
                break
            if (first, second) != ("open", "open"):  # the same request, so both get the form of one upload
                assert stored(cloud, agent_id) in orders, (second, at)


@pytest.mark.parametrize("name", STORIES)
def test_a_lost_response_leaves_one_change(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, fresh: Callable[[], str], name: str
) -> None:
    expected = fresh()
    tell(STORIES[name], cloud, expected)
    for at in range(1, CALLS_MAX + 1):
        agent_id = fresh()
        with monkeypatch.context() as patch:
            Intrusion(cloud._dynamodb, patch, at, after=lose)
            tell(STORIES[name], cloud, agent_id)
        if name != "open":  # a repeated opening opens the next upload
            assert stored(cloud, agent_id) == stored(cloud, expected), at
        check(cloud, agent_id)
