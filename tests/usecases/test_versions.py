"""Versions of an agent: listed, activated again, and with terms that change without an upload."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from botocore.exceptions import ReadTimeoutError

from quittance import sandbox
from quittance.agent import Agent, VersionState
from quittance.api.identity import Caller
from quittance.api.models import AgentAnswer, AgentChange, TaskRequest, TaskResult, VersionPage, VersionRequest
from quittance.errors import (
    AccountFrozenError,
    AgentNotReadyError,
    BondRequiredError,
    InvalidRequestError,
    NotFoundError,
    TermsChangedError,
    VersionNotPublishedError,
)
from quittance.limits import PAGE_ITEMS_MAX
from quittance.proof.receipt import read_claims
from quittance.store.operations import Action, Operation
from quittance.usecases import agents, execute, publish
from tests.support import FLAT, Cloud, compiled_once, wasm

OWNER = Caller("owner")
TEXT = "100"
JSON: Any = {"mode": "json", "by_alias": True}


def price(amount: str) -> dict[str, Any]:
    return FLAT | {"price": amount}


def open_and_publish(cloud: Cloud, agent_id: str, module: bytes, **terms: Any) -> int:
    """Opens an upload, posts a module and publishes it; returns its number."""
    agents.open_version(cloud, OWNER, agent_id, VersionRequest.model_validate(terms))
    number = cloud.registry.get(agent_id).upload.number
    post_and_publish(cloud, agent_id, number, module)
    return number


def post_and_publish(cloud: Cloud, agent_id: str, number: int, module: bytes) -> str:
    posted = cloud.post(agent_id, number, module)
    with mock.patch.object(sandbox, "compile_module", compiled_once):
        return publish.publish(cloud, f"uploads/{agent_id}/{number}", posted)


def change(cloud: Cloud, agent_id: str, **changes: Any) -> AgentAnswer:
    return agents.change(cloud, OWNER, agent_id, AgentChange.model_validate(changes))


def activate(cloud: Cloud, agent_id: str, number: int) -> AgentAnswer:
    return agents.activate(cloud, OWNER, agent_id, number)


def listed(cloud: Cloud, agent_id: str, **asked: Any) -> list[tuple[int, str]]:
    return [(one.number, str(one.state)) for one in agents.versions(cloud, agent_id, **asked).versions]


def run(cloud: Cloud, agent_id: str, task_id: str, **more: Any) -> TaskResult:
    cloud.registry._cache.clear()
    asked = {"task_id": task_id, "agent_id": agent_id, "input": TEXT, "budget": "0.5", **more}
    result = execute.execute(cloud, "alice", TaskRequest.model_validate(asked))
    assert isinstance(result, TaskResult)
    return result


@pytest.fixture
def two(cloud: Cloud) -> str:
    """An agent with two published versions of different modules, prices, limits and rules; the second is active."""
    cloud.deposit("alice", 10_000_000)
    agent_id = cloud.publish(wasm("echo"), tariff=price("0.01"), acceptance={"max_bytes": 1001}, timeout=1)
    terms = {"tariff": price("0.02"), "acceptance": {"max_bytes": 1002}, "limits": {"timeout": 2, "memory_mib": 20}}
    assert open_and_publish(cloud, agent_id, wasm("sieve"), **terms) == 2
    return agent_id


# Back and forward.


def test_activating_brings_back_module_and_terms(cloud: Cloud, two: str) -> None:
    second = agents.describe(cloud, two)
    first = activate(cloud, two, 1)
    assert first == agents.describe(cloud, two)
    assert (first.version, first.module_sha256 != second.module_sha256) == (1, True)
    assert (first.tariff.model_dump(**JSON), first.limits.timeout) == (FLAT | {"price": "0.01"}, 1)
    assert first.acceptance is not None
    assert first.acceptance.max_bytes == 1001
    assert listed(cloud, two) == [(2, "inactive"), (1, "active")]
    assert activate(cloud, two, 2) == second
    assert listed(cloud, two) == [(2, "active"), (1, "inactive")]


def test_each_receipt_names_the_version_and_terms_that_ran(cloud: Cloud, two: str) -> None:
    for task_id, number, paid, output in (("b", 1, "0.01", TEXT), ("f", 2, "0.02", '{"limit":100')):
        shown = activate(cloud, two, number)
        pins = {"module_sha256": shown.module_sha256, "tariff_sha256": shown.tariff_sha256}
        result = run(cloud, two, task_id, **pins, rules_sha256=shown.rules_sha256)
        claims = read_claims(result.receipt)
        assert (result.output or "").startswith(output)
        assert (claims["module_sha256"], claims["tariff_sha256"], claims["acceptance"]["agent_sha256"]) == (
            shown.module_sha256, shown.tariff_sha256, shown.rules_sha256,
        )  # fmt: skip
        assert (result.amount_paid_micro + result.fee_micro - result.compute_micro) / 10**6 == float(paid)


def test_pins_refuse_another_version_or_another_price(cloud: Cloud, two: str) -> None:
    second = agents.describe(cloud, two)
    activate(cloud, two, 1)
    for pin in ("module_sha256", "tariff_sha256", "rules_sha256"):
        with pytest.raises(TermsChangedError):
            run(cloud, two, "t", **{pin: getattr(second, pin)})
    activate(cloud, two, 2)
    change(cloud, two, tariff=price("0.03"))
    with pytest.raises(TermsChangedError):
        run(cloud, two, "t", tariff_sha256=second.tariff_sha256)
    assert run(cloud, two, "t", module_sha256=second.module_sha256).success


def test_repeated_activation_changes_nothing(cloud: Cloud, two: str) -> None:
    first, revision = activate(cloud, two, 1), cloud.registry.get(two).revision
    assert activate(cloud, two, 1) == first
    assert cloud.registry.get(two).revision == revision


def test_a_version_keeps_the_terms_it_had_when_it_was_last_active(cloud: Cloud, two: str) -> None:
    changed = change(cloud, two, tariff=price("0.025"), limits={"timeout": 7})
    activate(cloud, two, 1)
    change(cloud, two, tariff=price("0.015"))
    assert activate(cloud, two, 2) == changed
    assert activate(cloud, two, 1).tariff.model_dump(**JSON) == price("0.015")


@pytest.mark.parametrize(("number", "state"), [(3, "rejected"), (4, None), (5, "awaiting_upload")])
def test_only_a_published_version_can_be_activated(cloud: Cloud, two: str, number: int, state: str | None) -> None:
    agents.open_version(cloud, OWNER, two, VersionRequest())
    assert post_and_publish(cloud, two, 3, b"no module") == "rejected"
    for _ in range(2):
        agents.open_version(cloud, OWNER, two, VersionRequest())
    with pytest.raises(VersionNotPublishedError) as refused:
        activate(cloud, two, number)
    assert refused.value.members == {"state": state}
    assert agents.describe(cloud, two).version == 2
    with pytest.raises(NotFoundError):
        activate(cloud, two, 6)


def test_an_open_upload_keeps_its_terms_and_becomes_active(cloud: Cloud, two: str) -> None:
    agents.open_version(cloud, OWNER, two, VersionRequest.model_validate({"tariff": price("0.04")}))
    change(cloud, two, tariff=price("0.03"), limits={"timeout": 9})
    activate(cloud, two, 1)
    assert listed(cloud, two) == [(3, "awaiting_upload"), (2, "inactive"), (1, "active")]
    assert post_and_publish(cloud, two, 3, wasm("echo")) == "active"
    third = agents.describe(cloud, two)
    assert (third.version, third.tariff.model_dump(**JSON), third.limits.timeout) == (
        3,
        price("0.04"),
        2,
    )
    assert listed(cloud, two) == [(3, "active"), (2, "inactive"), (1, "inactive")]


def test_a_superseded_upload_is_no_version(cloud: Cloud, two: str) -> None:
    for _ in range(2):
        agents.open_version(cloud, OWNER, two, VersionRequest())
    assert post_and_publish(cloud, two, 3, wasm("echo")) == "retired"
    assert listed(cloud, two) == [(4, "awaiting_upload"), (2, "active"), (1, "inactive")]
    assert post_and_publish(cloud, two, 4, wasm("echo")) == "active"
    assert listed(cloud, two) == [(4, "active"), (2, "inactive"), (1, "inactive")]


def test_rejected_and_failed_uploads_are_listed_with_the_reason(cloud: Cloud, two: str) -> None:
    agents.open_version(cloud, OWNER, two, VersionRequest.model_validate({"tariff": price("0.05")}))
    post_and_publish(cloud, two, 3, b"no module")
    agents.open_version(cloud, OWNER, two, VersionRequest())
    publish.give_up(cloud, f"uploads/{two}/4", cloud.post(two, 4, wasm("echo")))
    agents.open_version(cloud, OWNER, two, VersionRequest())
    found = agents.versions(cloud, two).versions
    assert [str(one.state) for one in found] == ["awaiting_upload", "failed", "rejected", "active", "inactive"]
    reasons = [one.rejection.code if one.rejection else None for one in found]
    assert reasons[1] == "platform_failed"
    assert reasons[2]
    assert reasons[3:] == [None, None]
    assert found[2].tariff.model_dump(**JSON) == price("0.05")
    assert [one.published_at is not None for one in found] == [False, False, False, True, True]
    assert [one.module_sha256 is not None for one in found] == [False, False, False, True, True]


def test_a_failed_upload_that_is_published_later_is_no_failure_any_more(cloud: Cloud, two: str) -> None:
    agents.open_version(cloud, OWNER, two, VersionRequest())
    posted = cloud.post(two, 3, wasm("echo"))
    publish.give_up(cloud, f"uploads/{two}/3", posted)
    assert listed(cloud, two)[0] == (3, "failed")
    with mock.patch.object(sandbox, "compile_module", compiled_once):
        assert publish.publish(cloud, f"uploads/{two}/3", posted) == "active"
    activate(cloud, two, 1)
    assert agents.versions(cloud, two).versions[0].rejection is None
    assert listed(cloud, two) == [(3, "inactive"), (2, "inactive"), (1, "active")]


# Change of terms.


def test_what_a_change_does_not_name_stays(cloud: Cloud, two: str) -> None:
    before = agents.describe(cloud, two)
    after = change(cloud, two, limits={"memory_mib": 30})
    assert after == before.model_copy(update={"limits": before.limits.model_copy(update={"memory_mib": 30})})
    after = change(cloud, two, name="other", description="more", task_judges="refused")
    assert (after.name, after.description, after.task_judges, after.limits.timeout) == ("other", "more", None, 2)
    after = change(cloud, two, acceptance={})
    assert after.acceptance is not None
    assert after.acceptance.max_bytes is None
    assert change(cloud, two, task_judges={"rejected_share": "0.5"}).task_judges is not None


def test_repeated_change_writes_nothing(cloud: Cloud, two: str) -> None:
    change(cloud, two, tariff=price("0.03"))
    revision = cloud.registry.get(two).revision
    change(cloud, two, tariff=price("0.03"))
    assert cloud.registry.get(two).revision == revision


@pytest.mark.parametrize(
    "body", [{}, {"name": None}, {"name": " "}, {"owner": "me"}, {"limits": {"timeout": 0}}, {"limits": {"other": 1}}]
)
def test_an_empty_or_wrong_change_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises((InvalidRequestError, ValueError)):
        AgentChange.model_validate(body)


def test_terms_need_an_active_version_but_a_name_does_not(cloud: Cloud) -> None:
    agent_id = agents.register(cloud, OWNER, request()).agent_id
    with pytest.raises(AgentNotReadyError):
        change(cloud, agent_id, tariff=price("0.02"))
    assert change(cloud, agent_id, name="new").name == "new"
    assert post_and_publish(cloud, agent_id, 1, wasm("echo")) == "active"
    shown = agents.describe(cloud, agent_id)
    assert (shown.name, shown.tariff.model_dump(**JSON), shown.version) == ("new", FLAT, 1)


def request(**more: Any) -> Any:
    from quittance.api.models import AgentRequest

    return AgentRequest.model_validate({"name": "test", "tariff": FLAT, **more})


CHANGES: list[Callable[[Cloud, str], Any]] = [
    lambda cloud, agent_id: change(cloud, agent_id, name="x"),
    lambda cloud, agent_id: activate(cloud, agent_id, 1),
]


@pytest.mark.parametrize("revise", CHANGES)
def test_a_change_needs_the_owner_the_bond_and_no_freeze(
    cloud: Cloud, two: str, revise: Callable[[Cloud, str], Any]
) -> None:
    with mock.patch(f"{__name__}.OWNER", Caller("stranger")), pytest.raises(NotFoundError):
        revise(cloud, two)
    cloud.settings = cloud.settings.model_copy(update={"bond_minimum_micro": 1_000_000})
    with pytest.raises(BondRequiredError):
        revise(cloud, two)
    cloud.bond("owner", 1_000_000)
    cloud.operations.perform(Operation(Action.FREEZE, "owner", "op", "a test", cloud.now_ms()))
    cloud.registry._owners.clear()
    with pytest.raises(AccountFrozenError):
        revise(cloud, two)
    cloud.operations.perform(Operation(Action.UNFREEZE, "owner", "op", "a test", cloud.now_ms()))
    cloud.registry._owners.clear()
    agents.retire(cloud, OWNER, two)
    with pytest.raises(AgentNotReadyError):
        revise(cloud, two)
    assert cloud.registry.get(two).revision == 2


def test_rules_with_an_unsuitable_judge_are_refused(cloud: Cloud, two: str) -> None:
    metered = cloud.publish(wasm("echo"), tariff={"type": "metered", "base": "0.001"}, owner="judith")
    rules = {"judge": {"agent_id": metered, "budget": "0.2", "threshold": "0.5"}}
    with pytest.raises(InvalidRequestError, match="flat"):
        change(cloud, two, acceptance=rules)


def test_a_version_whose_judge_was_retired_is_not_activated(cloud: Cloud, two: str) -> None:
    judge = cloud.publish(wasm("echo"), owner="judith")
    rules = {"judge": {"agent_id": judge, "budget": "0.2", "threshold": "0.5"}}
    change(cloud, two, acceptance=rules)
    activate(cloud, two, 1)
    agents.retire(cloud, Caller("judith"), judge)
    with pytest.raises(InvalidRequestError, match="takes tasks"):
        activate(cloud, two, 2)
    assert agents.describe(cloud, two).version == 1


# Races and lost responses.


def overtaken_by(cloud: Cloud, patch: pytest.MonkeyPatch, call: str, story: Callable[[], Any]) -> None:
    """Runs `story` between what the next call of DynamoDB read and what it writes."""
    honest = getattr(cloud._dynamodb, call)

    def overtaken(**asked: Any) -> Any:
        patch.undo()
        story()
        return honest(**asked)

    patch.setattr(cloud._dynamodb, call, overtaken)


def test_concurrent_changes_of_different_fields_are_combined(
    cloud: Cloud, two: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtaken_by(
        cloud, monkeypatch, "transact_write_items", lambda: change(cloud, two, limits={"timeout": 5}, name="theirs")
    )
    after = change(cloud, two, tariff=price("0.09"), limits={"memory_mib": 33})
    assert after == agents.describe(cloud, two)
    assert (after.tariff.model_dump(**JSON), after.limits.timeout, after.limits.memory_mib, after.name) == (
        price("0.09"), 5, 33, "theirs",
    )  # fmt: skip


def test_a_change_overtaken_by_an_activation_applies_to_the_new_version(
    cloud: Cloud, two: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtaken_by(cloud, monkeypatch, "transact_write_items", lambda: activate(cloud, two, 1))
    after = change(cloud, two, tariff=price("0.09"))
    assert (after.version, after.tariff.model_dump(**JSON), after.limits.timeout) == (
        1,
        price("0.09"),
        1,
    )
    assert activate(cloud, two, 2).tariff.model_dump(**JSON) == price("0.02"), "it was not this version's change"


def test_an_activation_overtaken_by_a_change_loses_no_terms(
    cloud: Cloud, two: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtaken_by(cloud, monkeypatch, "transact_write_items", lambda: change(cloud, two, tariff=price("0.09")))
    assert activate(cloud, two, 1).version == 1
    assert activate(cloud, two, 2).tariff.model_dump(**JSON) == price("0.09")


def test_a_publication_overtaken_by_a_change_loses_no_terms(
    cloud: Cloud, two: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents.open_version(cloud, OWNER, two, VersionRequest())
    overtaken_by(cloud, monkeypatch, "transact_write_items", lambda: change(cloud, two, tariff=price("0.09")))
    assert post_and_publish(cloud, two, 3, wasm("echo")) == "active"
    assert agents.describe(cloud, two).tariff.model_dump(**JSON) == price("0.02"), "the upload's own terms"
    assert activate(cloud, two, 2).tariff.model_dump(**JSON) == price("0.09")


def test_a_publication_overtaken_by_a_newer_upload_changes_nothing(
    cloud: Cloud, two: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents.open_version(cloud, OWNER, two, VersionRequest())
    overtaken_by(
        cloud,
        monkeypatch,
        "transact_write_items",
        lambda: agents.open_version(cloud, OWNER, two, VersionRequest()),
    )
    assert post_and_publish(cloud, two, 3, wasm("echo")) == "retired"
    assert listed(cloud, two) == [(4, "awaiting_upload"), (2, "active"), (1, "inactive")]
    with pytest.raises(VersionNotPublishedError):
        activate(cloud, two, 3)


def test_an_activation_overtaken_by_the_retirement_is_refused(
    cloud: Cloud, two: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtaken_by(cloud, monkeypatch, "transact_write_items", lambda: agents.retire(cloud, OWNER, two))
    with pytest.raises(AgentNotReadyError):
        activate(cloud, two, 1)
    assert cloud.registry.get(two).version.number == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("revise", [*CHANGES, lambda cloud, agent_id: post_and_publish(cloud, agent_id, 3, b"")])
def test_a_lost_response_is_no_second_change(
    cloud: Cloud, two: str, monkeypatch: pytest.MonkeyPatch, revise: Callable[[Cloud, str], Any]
) -> None:
    agents.open_version(cloud, OWNER, two, VersionRequest())
    revision = cloud.registry.get(two).revision
    honest, tokens = cloud._dynamodb.transact_write_items, list[str]()

    def lost(**asked: Any) -> Any:
        tokens.append(asked["ClientRequestToken"])
        answer = honest(**asked)
        if len(tokens) == 1:
            raise ReadTimeoutError(endpoint_url="dynamodb")
        return answer

    monkeypatch.setattr(cloud._dynamodb, "transact_write_items", lost)
    revise(cloud, two)
    assert len(tokens) == 2
    assert len(set(tokens)) == 1, "DynamoDB recognises the repeat"
    assert cloud.registry.get(two).revision <= revision + 1


# Artefacts.


def outdate(cloud: Cloud, agent_id: str) -> Agent:
    current = cloud.registry.get(agent_id)
    assert current.version is not None
    old = replace(current.version, artefact_key="wasmtime-1/old", artefact_sha256="old", engine="1")
    return cloud.registry.replace_artefact(current, old)


def test_a_replaced_artefact_keeps_number_and_terms(cloud: Cloud, two: str) -> None:
    before = cloud.registry.get(two)
    assert outdate(cloud, two) == cloud.registry.get(two)
    with mock.patch.object(sandbox, "compile_module", compiled_once):
        publish.recompile(cloud, two)
    assert cloud.registry.get(two) == before


def test_a_version_with_an_old_artefact_is_compiled_again_once_active(cloud: Cloud, two: str) -> None:
    outdate(cloud, two)
    activate(cloud, two, 1)
    activate(cloud, two, 2)
    version = cloud.registry.get(two).version
    assert version is not None
    assert version.engine == "1"
    with mock.patch.object(sandbox, "compile_module", compiled_once):
        publish.recompile(cloud, two)
    assert run(cloud, two, "t").success
    activate(cloud, two, 1)
    assert activate(cloud, two, 2).version == 2
    assert cloud.registry.get(two).version.engine != "1"  # type: ignore[union-attr]


# Pages.


def pages(cloud: Cloud, agent_id: str, limit: int, between: Callable[[], Any] = lambda: None) -> list[VersionPage]:
    found = [agents.versions(cloud, agent_id, limit=limit)]
    while found[-1].next:
        between()
        found.append(agents.versions(cloud, agent_id, limit=limit, after=found[-1].next))
    return found


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, PAGE_ITEMS_MAX])
def test_pages_list_every_version_once_newest_first(cloud: Cloud, two: str, limit: int) -> None:
    for _ in range(3):
        open_and_publish(cloud, two, b"no module")

    def publishes() -> None:
        if cloud.registry.get(two).upload.number < 9:
            open_and_publish(cloud, two, b"no module")

    found = pages(cloud, two, limit, publishes)
    assert all(len(page.versions) <= limit for page in found)
    assert [one.number for page in found for one in page.versions] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("after", ["x", "1~2", "-1", "1" * 16])
def test_a_wrong_cursor_is_refused(cloud: Cloud, two: str, after: str) -> None:
    with pytest.raises(InvalidRequestError):
        agents.versions(cloud, two, after=after)


def test_a_cursor_beyond_either_end_lists_what_is_there(cloud: Cloud, two: str) -> None:
    for after in ("0", "1"):
        assert agents.versions(cloud, two, after=after) == VersionPage(versions=[], next=None)
    assert listed(cloud, two, after="9" * 15) == [(2, "active"), (1, "inactive")]


# Agents that older code stored.


def as_before(cloud: Cloud, agent_id: str) -> None:
    """Makes the agent look as older code stored it: no numbers, no revision, no records of versions."""
    table: dict[str, Any] = {"TableName": "RegistryTable"}
    names = ("version_number", "numbered_upload", "revision", "published_ms")
    cloud._dynamodb.update_item(
        **table, Key={"pk": {"S": f"AGENT#{agent_id}"}}, UpdateExpression=f"REMOVE {', '.join(names)}"
    )
    for item in cloud._dynamodb.scan(**table)["Items"]:
        if item["pk"]["S"].startswith("VERSION#"):
            cloud.dynamodb.delete_item(**table, Key={"pk": item["pk"]})
    cloud.registry._cache.clear()


def test_an_agent_of_older_code_keeps_its_active_version(cloud: Cloud, two: str) -> None:
    before = agents.describe(cloud, two)
    as_before(cloud, two)
    assert agents.describe(cloud, two) == before
    assert listed(cloud, two) == [(2, "active")]
    with pytest.raises(VersionNotPublishedError):
        activate(cloud, two, 1)
    changed = change(cloud, two, tariff=price("0.05"))
    assert open_and_publish(cloud, two, wasm("echo"), tariff=price("0.03")) == 3
    assert listed(cloud, two) == [(3, "active"), (2, "inactive")]
    assert activate(cloud, two, 2) == changed
    assert run(cloud, two, "t").success


@pytest.mark.parametrize("decided", [True, False])
def test_an_agent_of_older_code_with_an_undecided_upload(cloud: Cloud, two: str, decided: bool) -> None:
    """Which upload the active version was is not known. Its number must not move when others are opened."""
    agents.open_version(cloud, OWNER, two, VersionRequest())
    as_before(cloud, two)
    assert listed(cloud, two) == [(3, "awaiting_upload"), (2, "active")]
    if decided:
        assert post_and_publish(cloud, two, 3, b"no module") == "rejected"
        assert listed(cloud, two) == [(3, "rejected"), (2, "active")]
    for _ in range(2):
        agents.open_version(cloud, OWNER, two, VersionRequest())
    assert listed(cloud, two)[0] == (5, "awaiting_upload")
    assert listed(cloud, two)[-1] == (2, "active")
    assert post_and_publish(cloud, two, 5, wasm("echo")) == "active"
    assert activate(cloud, two, 2).version == 2


def test_older_code_may_publish_while_a_stack_is_updated(cloud: Cloud, two: str) -> None:
    """Older code writes neither number nor revision when it activates an upload that newer code opened."""
    activate(cloud, two, 1)
    agents.open_version(cloud, OWNER, two, VersionRequest.model_validate({"tariff": price("0.04")}))
    kept = {
        name: cloud._dynamodb.get_item(TableName="RegistryTable", Key={"pk": {"S": f"AGENT#{two}"}})["Item"].get(name)
        for name in ("version_number", "numbered_upload", "revision", "published_ms")
    }
    assert post_and_publish(cloud, two, 3, wasm("echo")) == "active"
    item = cloud._dynamodb.get_item(TableName="RegistryTable", Key={"pk": {"S": f"AGENT#{two}"}})["Item"]
    cloud._dynamodb.put_item(TableName="RegistryTable", Item=item | kept)
    cloud.dynamodb.delete_item(TableName="RegistryTable", Key={"pk": {"S": f"VERSION#{two}#0000000003"}})
    shown = agents.describe(cloud, two)
    assert (shown.version, shown.tariff.model_dump(**JSON)) == (3, price("0.04"))
    assert listed(cloud, two) == [(3, "active"), (2, "inactive"), (1, "inactive")]
    assert activate(cloud, two, 2).version == 2
    assert activate(cloud, two, 3) == shown


def test_every_state_of_a_version_is_listed_by_name() -> None:
    assert {*VersionState} == {"active", "inactive", "rejected", "awaiting_upload", "publishing", "failed"}
