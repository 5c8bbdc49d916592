"""Registrations with an id of the owner's: repeated, raced, and used again for another agent."""

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from botocore.exceptions import ReadTimeoutError

from quittance import sandbox
from quittance.agent import AgentState, registered_agent_id
from quittance.api.identity import Caller
from quittance.api.models import AgentChange, AgentRegistration, AgentRequest, VersionRequest
from quittance.errors import (
    AccountFrozenError,
    InvalidRequestError,
    NotFoundError,
    PlatformUnavailableError,
    RegistrationConflictError,
)
from quittance.limits import TASK_ID_CHARS_MAX
from quittance.store.operations import Action, Operation
from quittance.usecases import agents, publish
from tests.support import FLAT, Cloud, compiled_once, wasm

OWNER = Caller("owner")
CONTRACT = {"tags": ["text"], "output_schema": {"type": "object"}}


def request(registration_id: str | None = "r-1", **terms: Any) -> AgentRequest:
    asked = {"name": "echo", "tariff": FLAT, "registration_id": registration_id, **terms}
    return AgentRequest.model_validate(asked)


def register(cloud: Cloud, registration_id: str | None = "r-1", **terms: Any) -> AgentRegistration:
    return agents.register(cloud, OWNER, request(registration_id, **terms))


def published(cloud: Cloud, agent_id: str, number: int = 1) -> str:
    posted = cloud.post(agent_id, number, wasm("echo"))
    with mock.patch.object(sandbox, "compile_module", compiled_once):
        return publish.publish(cloud, f"uploads/{agent_id}/{number}", posted)


def agent_items(cloud: Cloud) -> list[str]:
    pages = cloud.dynamodb.get_paginator("scan").paginate(TableName=cloud.settings.registry_table)
    return [item["pk"]["S"] for page in pages for item in page["Items"] if item["pk"]["S"].startswith("AGENT#")]


def key(registered: AgentRegistration) -> str:
    assert registered.upload is not None
    return registered.upload.fields["key"]


# Repeats.


def test_repeated_registration_returns_the_same_agent(cloud: Cloud) -> None:
    first, again = register(cloud, contract=CONTRACT), register(cloud, contract=CONTRACT)
    assert (again.agent_id, again.state) == (first.agent_id, AgentState.AWAITING_UPLOAD)
    assert key(again) == key(first) == f"uploads/{first.agent_id}/1"
    assert agent_items(cloud) == [f"AGENT#{first.agent_id}"]
    assert published(cloud, first.agent_id) == "active"


def test_registrations_without_an_id_are_different_agents(cloud: Cloud) -> None:
    assert register(cloud, None).agent_id != register(cloud, None).agent_id


def test_same_id_of_another_owner_is_another_agent(cloud: Cloud) -> None:
    other = agents.register(cloud, Caller("other"), request())
    assert other.agent_id != register(cloud).agent_id


def test_absent_terms_equal_their_defaults(cloud: Cloud) -> None:
    first = register(cloud)
    explicit = register(
        cloud, description="", limits={}, acceptance={}, contract={}, tariff={"type": "flat", "price": "0.010"}
    )
    assert explicit.agent_id == first.agent_id


@pytest.mark.parametrize(
    "other",
    [
        {"name": "other"},
        {"description": "other"},
        {"tariff": FLAT | {"price": "0.02"}},
        {"limits": {"timeout": 7}},
        {"limits": {"memory_mib": 7}},
        {"limits": {"fuel": 7}},
        {"acceptance": {"max_bytes": 7}},
        {"task_judges": {"rejected_share": "0.25"}},
        {"contract": CONTRACT},
        {"contract": {"tags": ["text"]}},
    ],
)
def test_another_registration_with_the_id_is_refused(cloud: Cloud, other: dict[str, Any]) -> None:
    first = register(cloud)
    with pytest.raises(RegistrationConflictError, match="'r-1' was used before"):
        register(cloud, **other)
    assert agent_items(cloud) == [f"AGENT#{first.agent_id}"]


def test_repeat_of_a_published_agent_gets_no_form(cloud: Cloud) -> None:
    agent_id = register(cloud).agent_id
    assert published(cloud, agent_id) == "active"
    again = register(cloud)
    assert (again.agent_id, again.state, again.upload) == (agent_id, "active", None)


def test_repeat_gets_the_form_of_the_newest_upload(cloud: Cloud) -> None:
    agent_id = register(cloud).agent_id
    published(cloud, agent_id)
    agents.open_version(cloud, OWNER, agent_id, VersionRequest(tariff=None))
    again = register(cloud)
    assert (again.state, key(again)) == ("awaiting_upload", f"uploads/{agent_id}/2")


def test_repeat_of_a_retired_agent_gets_no_form(cloud: Cloud) -> None:
    agent_id = register(cloud).agent_id
    agents.retire(cloud, OWNER, agent_id)
    again = register(cloud)
    assert (again.agent_id, again.state, again.upload) == (agent_id, "retired", None)


def test_repeat_during_publication_and_after_rejection(cloud: Cloud) -> None:
    agent_id = register(cloud).agent_id
    cloud.registry.claim_upload(cloud.registry.get(agent_id), "v1")
    assert (register(cloud).state, register(cloud).upload) == ("publishing", None)
    other = register(cloud, "r-2").agent_id
    cloud.post(other, 1, b"not a module")
    assert publish.publish(cloud, f"uploads/{other}/1") == "rejected"
    assert (register(cloud, "r-2").state, register(cloud, "r-2").upload) == ("rejected", None)


def test_repeat_compares_what_was_registered(cloud: Cloud) -> None:
    """A change of name or terms since does not make the repeat a conflict, and a repeat does not undo it."""
    agent_id = register(cloud).agent_id
    published(cloud, agent_id)
    agents.change(cloud, OWNER, agent_id, AgentChange.model_validate({"name": "new", "tariff": FLAT | {"price": "9"}}))
    assert register(cloud).agent_id == agent_id
    assert agents.describe(cloud, agent_id).name == "new"
    with pytest.raises(RegistrationConflictError):
        register(cloud, name="new")


def test_repeat_is_answered_after_its_judge_retires(cloud: Cloud) -> None:
    judge = cloud.publish(wasm("echo"), owner="judge")
    rules = {"judge": {"agent_id": judge, "budget": "0.5", "threshold": "0.5"}}
    first = register(cloud, acceptance=rules)
    agents.retire(cloud, Caller("judge"), judge)
    assert register(cloud, acceptance=rules).agent_id == first.agent_id
    with pytest.raises(InvalidRequestError):
        register(cloud, "r-2", acceptance=rules)


def test_frozen_owner_gets_no_form_by_repeating(cloud: Cloud) -> None:
    register(cloud)
    cloud.operations.perform(Operation(Action.FREEZE, "owner", "op", "a test", cloud.now_ms()))
    cloud.registry._owners.clear()
    with pytest.raises(AccountFrozenError):
        register(cloud)


# Races and crashes.


def raced(cloud: Cloud, *bodies: AgentRequest) -> list[AgentRegistration | Exception]:
    """Registers at once: every request has found no agent before any of them writes one."""
    barrier, found = threading.Barrier(len(bodies)), cloud.registry.find
    answers: list[AgentRegistration | Exception] = []

    def late(agent_id: str) -> Any:
        stored = found(agent_id)
        assert stored is None
        barrier.wait(30)
        return stored

    def run(body: AgentRequest) -> None:
        try:
            answers.append(agents.register(cloud, OWNER, body))
        except RegistrationConflictError as exc:
            answers.append(exc)

    with mock.patch.object(cloud.registry, "find", late):
        threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    return answers


def test_equal_registrations_at_once_make_one_agent(cloud: Cloud) -> None:
    answers = raced(cloud, *[request() for _ in range(4)])
    assert {one.agent_id for one in answers if isinstance(one, AgentRegistration)} == {agent_items(cloud)[0][6:]}
    assert (len(answers), len(agent_items(cloud))) == (4, 1)
    assert all(isinstance(one, AgentRegistration) and one.upload for one in answers)


def test_different_registrations_at_once_have_one_winner(cloud: Cloud) -> None:
    answers = raced(cloud, request(name="one"), request(name="two"))
    (won,) = [one for one in answers if isinstance(one, AgentRegistration)]
    assert [type(one) for one in answers if one is not won] == [RegistrationConflictError]
    assert agent_items(cloud) == [f"AGENT#{won.agent_id}"]
    assert register(cloud, name=agents.describe(cloud, won.agent_id).name).agent_id == won.agent_id


def lost_once(send: Callable[..., Any]) -> Callable[..., Any]:
    """A call that takes effect, but whose first response is lost."""
    lost = iter([True])

    def sent(**request: Any) -> Any:
        answer = send(**request)
        if next(lost, False):
            raise ReadTimeoutError(endpoint_url="dynamodb")
        return answer

    return sent


@pytest.mark.parametrize("registration_id", [None, "r-1"])
def test_lost_response_of_the_write_makes_one_agent(cloud: Cloud, registration_id: str | None) -> None:
    with mock.patch.object(cloud._dynamodb, "put_item", lost_once(cloud._dynamodb.put_item)):
        registered = register(cloud, registration_id)
    assert agent_items(cloud) == [f"AGENT#{registered.agent_id}"]
    assert registered.upload


def test_lost_answer_is_mended_by_a_repeat(cloud: Cloud) -> None:
    with (
        mock.patch.object(cloud.uploads, "presigned_post", side_effect=PlatformUnavailableError),
        pytest.raises(PlatformUnavailableError),
    ):
        register(cloud)
    registered = register(cloud)
    assert agent_items(cloud) == [f"AGENT#{registered.agent_id}"]


# Ids.


def test_longest_registration_id_is_accepted(cloud: Cloud) -> None:
    registered = register(cloud, "r" * TASK_ID_CHARS_MAX)
    assert agents.describe(cloud, registered.agent_id).state == "awaiting_upload"
    with pytest.raises(ValueError, match="registration_id"):
        request("r" * (TASK_ID_CHARS_MAX + 1))


@pytest.mark.parametrize("registration_id", ["", "..", "a:b", "a/b", "a b"])
def test_invalid_registration_ids_are_refused(registration_id: str) -> None:
    with pytest.raises(ValueError, match="registration_id"):
        request(registration_id)


def test_agent_ids_keep_owner_and_registration_apart() -> None:
    assert registered_agent_id("a", "bc") != registered_agent_id("ab", "c")
    assert registered_agent_id("1:a", "b") != registered_agent_id("1", "a1:b")


def test_conflict_reveals_nothing_of_an_older_agent(cloud: Cloud) -> None:
    """An item without a digest, as old code stored it, equals no registration with an id."""
    agent_id = register(cloud).agent_id
    cloud._dynamodb.update_item(
        TableName=cloud.settings.registry_table,
        Key={"pk": {"S": f"AGENT#{agent_id}"}},
        UpdateExpression="REMOVE registration_sha256",
    )
    assert agents.describe(cloud, agent_id).state == "awaiting_upload"
    with pytest.raises(RegistrationConflictError):
        register(cloud)
    with pytest.raises(NotFoundError):
        agents.describe(cloud, registered_agent_id("owner", "r-9"))
