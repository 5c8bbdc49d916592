"""Events: derived ids, amounts as strings, nothing that is the user's own, and schemas that describe what is sent."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from local.openapi import EVENTS, event_schemas
from quittance.agent import Agent, AgentState, Rejection, Terms, Upload, Version
from quittance.api import events
from quittance.errors import InsufficientFundsError, problem
from quittance.ledger.escrow import Escrow, StoredBytes, decide, expire
from quittance.ledger.journal import Payout, PayoutState
from quittance.ledger.pricing import tariff_sha256
from quittance.run import Meter, Outcome, Run
from tests.proof.ticketing import paid_by_ticket

NOW_MS = 1_800_000_000_123
NewEscrow = Callable[..., Escrow]


def checked(event: events.Event) -> dict[str, Any]:
    """An event's JSON, after its published schema has approved of it, and of no other event."""
    shown: dict[str, Any] = json.loads(event.json_text())
    for path in EVENTS.glob("*.json"):
        valid = jsonschema.Draft202012Validator(json.loads(path.read_text())).is_valid(shown)
        assert valid == (path.stem == f"{event.type}.v1"), path
    assert (shown["event"], shown["schema_version"]) == (event.type, 1)
    return shown


def test_a_settled_task_is_told_without_what_it_was_about(new_escrow: NewEscrow) -> None:
    escrow = new_escrow(webhook="https://example.com/secret", task_rules_sha256="ee" * 32)
    run = Run(Outcome.SUCCEEDED, "", Meter(), b"the output", b"the log")
    settlement = replace(
        decide(escrow, run, now_ms=NOW_MS), receipt="a.b.c", output=StoredBytes("dd" * 32, 10, b"the output")
    )
    shown = checked(events.task_settled(escrow, settlement))
    assert shown == {
        "schema_version": 1, "event": "TaskSettled", "event_id": f"task.{escrow.escrow_id}.released",
        "at": "2027-01-15T08:00:00.123Z", "task_id": "task-1", "user": "user-1", "agent_id": "agt_1",
        "owner": "owner-1", "escrow_id": escrow.escrow_id, "escrow_status": "released", "success": True,
        "outcome": "succeeded", "fault": "none", "budget": "1", "amount_paid": "0.39", "amount_refunded": "0.6",
        "compute": "0",
        "judging": "0",
        "fee": "0.01", "receipt": "a.b.c",
    }  # fmt: skip


def test_an_expired_task_is_told_as_the_same_thing_each_time(new_escrow: NewEscrow) -> None:
    escrow = new_escrow()
    shown = [checked(events.task_settled(escrow, expire(escrow, now_ms=NOW_MS))) for _ in range(2)]
    assert shown[0] == shown[1]
    assert shown[0]["event_id"] == f"task.{escrow.escrow_id}.expired"
    assert (shown[0]["success"], shown[0]["fault"], shown[0]["amount_refunded"]) == (False, "platform", "1")


def test_the_event_of_a_tickets_task_names_its_channel(new_escrow: NewEscrow) -> None:
    """The judge of a task names the channel too: the task's tickets pay it."""
    escrow = paid_by_ticket(new_escrow(), issuer="i")
    assert escrow.ticket
    for ticket in (escrow.ticket, replace(escrow.ticket, proof=None), replace(escrow.ticket, count=0, proof=None)):
        paid = replace(escrow, ticket=ticket)
        shown = checked(events.task_settled(paid, decide(paid, Run(Outcome.EXIT_CODE, "", Meter()), now_ms=NOW_MS)))
        assert (shown["channel"], shown["user"], shown["task_id"]) == (ticket.channel_id, "user-1", escrow.task_id)
        assert (shown["budget"], shown["amount_refunded"]) == ("1", "1")


@pytest.mark.parametrize("user", ["alice", None])
def test_a_refusal_carries_its_problem(user: str | None) -> None:
    _, problem_json, _ = problem(InsufficientFundsError(available_micro=1, required_micro=2))
    problem_of = {name: problem_json[name] for name in ("code", "detail")}

    def refused(request_id: str) -> events.TaskRefused:
        return events.task_refused(
            **problem_of, request_id=request_id, user=user, task_id="t", agent_id="agt_1", at_ms=NOW_MS
        )

    shown = checked(refused("m-1"))
    assert (shown["code"], shown["user"], shown["task_id"]) == ("insufficient_funds", user, "t")
    assert "0.000002 credits are required" in shown["detail"]
    assert shown["event_id"] == refused("m-1").event_id != refused("m-2").event_id
    assert ("unnamed" in shown["event_id"]) == (user is None)


def agent(state: AgentState, **more: Any) -> Agent:
    terms = Terms('{"type":"flat","price":"1"}', 1, 1, 1)
    version = Version("ab" * 32, "key", "cd" * 32, "engine", "config")
    why = {AgentState.REJECTED: ("no_start", "It has no _start."), AgentState.FAILED: ("platform_failed", "Again.")}
    rejection = Rejection(*why[state]) if state in why else None
    upload = Upload(3, state, terms, rejection)
    return Agent("agt_1", "owner", "name", "", 1, terms, upload, **({"version": version} | more))


def test_uploads_are_told_once_they_have_ended() -> None:
    told = [events.upload_ended(agent(state), at_ms=NOW_MS) for state in AgentState]
    shown = [checked(event) for event in told if event]
    assert [(one["event"], one["event_id"]) for one in shown] == [
        ("AgentPublished", "agent.agt_1.3.active"), ("AgentRejected", "agent.agt_1.3.rejected"),
        ("PublishingFailed", "agent.agt_1.3.failed"),
    ]  # fmt: skip
    assert shown[0]["module_sha256"] == "ab" * 32
    assert (shown[1]["code"], shown[1]["message"]) == ("no_start", "It has no _start.")


def test_a_changed_agent_states_version_and_terms() -> None:
    published = Version("ab" * 32, "key", "cd" * 32, "engine", "config", number=2)
    for version in (published, None):
        changed = agent(AgentState.REJECTED, version=version, revision=7)
        shown = checked(events.agent_changed(changed, at_ms=NOW_MS))
        assert (shown["event_id"], shown["revision"]) == ("agent.agt_1.revision.7", 7)
        assert (shown["version"], shown["module_sha256"]) == ((2, "ab" * 32) if version else (None, None))
        assert shown["tariff_sha256"] == tariff_sha256(changed.terms.tariff)
        assert shown["rules_sha256"] == changed.terms.rules_sha256


@pytest.mark.parametrize("state", PayoutState)
def test_payouts_are_told_by_ids_that_name_their_state(state: PayoutState) -> None:
    decided: dict[str, Any] = {} if state == "requested" else {"decided_ms": NOW_MS + 1_000, "decided_by": "bank"}
    payout = Payout("alice", "w-1", 500_000, NOW_MS, state, **decided)
    shown = checked(events.payout_moved(payout))
    assert shown["event"] == ("PayoutRequested" if state == "requested" else "PayoutDecided")
    assert shown["event_id"] == f"payout.{payout.payout_id}.{state}"
    assert (shown["account"], shown["withdrawal_id"], shown["amount"]) == ("alice", "w-1", "0.5")
    assert shown["at"] == ("2027-01-15T08:00:00.123Z" if state == "requested" else "2027-01-15T08:00:01.123Z")


def test_the_committed_schemas_are_what_the_code_says_and_speak_of_no_micro_credits() -> None:
    wanted = event_schemas()
    assert set(EVENTS.glob("*.json")) == wanted.keys(), "run make openapi"
    for path, text in wanted.items():
        assert path.read_text() == text, "run make openapi"
        jsonschema.Draft202012Validator.check_schema(json.loads(text))
        assert "_micro" not in text
        assert not re.search(r'"(input|output|log|webhook)"', text)
