"""What an operator can stop, seen from the API: what a freeze and a pause stop, what they let pass, and the journal."""

from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from quittance.api.identity import Caller
from quittance.api.models import AgentRequest, TaskPending
from quittance.errors import AccountFrozenError, FundingPausedError
from quittance.ledger.escrow import escrow_id
from quittance.limits import PAUSED_RETRY_S, REASON_CHARS_MAX
from quittance.store import cache
from quittance.store import registry as registries
from quittance.store.queue import NotDoneError
from quittance.store.registry import Registry
from quittance.usecases import agents, audit
from quittance.usecases import execute as tasks
from quittance.usecases.sweep import sweep
from quittance.usecases.work import work
from tests.functions import test_handlers
from tests.functions.test_handlers import Call, task
from tests.support import FLAT, Cloud, wasm
from tests.usecases.test_async import Bench, letter
from tests.usecases.test_execute import ask

call = test_handlers.call  # the fixture
OPERATOR: dict[str, Any] = {"user": "op", "scope": "platform:operate"}
WITHDRAWAL = {"withdrawal_id": "w-1", "amount": "0.1"}
CACHE_SECONDS = registries._CACHE_SECONDS


def operate(call: Call, path: str, reason: object = "a test", **caller: Any) -> tuple[int, dict[str, Any]]:
    return call("operations", "POST", f"/operations/{path}", {"reason": reason}, **{**OPERATOR, **caller})[:2]


def execute(call: Call, agent_id: str, task_id: str = "t-1") -> tuple[int, str | None]:
    """Status, and the code of the refusal or the escrow's status."""
    status, body, _ = call("execute", "POST", "/tasks/execute", task(agent_id, task_id=task_id))
    return status, body.get("code") or body.get("escrow_status")


@pytest.fixture(autouse=True)
def ten_seconds_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an operator did is seen: how long that takes has a test of its own."""
    monkeypatch.setattr(registries, "_CACHE_SECONDS", 0.0)


@pytest.fixture
def echo(platform: Cloud) -> str:
    return platform.publish(wasm("echo"))


def test_operations_need_their_scope_and_a_reason(platform: Cloud, call: Call, echo: str) -> None:
    paths = (f"agents/{echo}/retire", "accounts/alice/freeze", "accounts/alice/unfreeze", "funding/pause")
    for path in (*paths, "funding/resume"):
        status, problem = operate(call, path, scope="ledger:deposit ledger:payout")
        assert (status, problem["required_scope"]) == (403, "platform:operate"), path
        for reason in ("", " ", None, "x" * (REASON_CHARS_MAX + 1)):
            status, problem = operate(call, path, reason)
            assert (status, problem["errors"][0]["field"]) == (400, "reason"), path
    assert call("operations", "GET", "/operations")[0] == 403
    assert execute(call, echo) == (200, "released"), "nothing was done"
    assert call("operations", "GET", "/operations", **OPERATOR)[1] == {"operations": [], "next": None}
    assert operate(call, "accounts/bob/freeze", "x" * REASON_CHARS_MAX)[0] == 200


def test_every_deed_is_journaled_with_who_when_and_why(platform: Cloud, call: Call, echo: str) -> None:
    deeds = [
        ("accounts/bob/freeze", "freeze", "bob"),
        ("accounts/bob/freeze", "freeze", "bob"),
        ("accounts/auth0%7Cdave/freeze", "freeze", "auth0|dave"),
        ("accounts/me/unfreeze", "unfreeze", "op"),
        (f"agents/{echo}/retire", "retire", echo),
        (f"agents/{echo}/retire", "retire", echo),
        ("funding/pause", "pause", "funding"),
        ("funding/resume", "resume", "funding"),
    ]
    done = []
    for number, (path, action, target) in enumerate(deeds):
        platform.skew_ms = number * 1_000
        status, line = operate(call, path, f" reason {number} ")
        assert (status, line["action"], line["target"]) == (200, action, target)
        assert (line["by"], line["reason"]) == ("op", f"reason {number}")
        done.append(line)
    found: list[dict[str, Any]] = []
    query = {"limit": "3"}
    while True:
        page = call("operations", "GET", "/operations", query=query, **OPERATOR)[1]
        found += page["operations"]
        if page["next"] is None:
            break
        query = {"limit": "3", "after": page["next"]}
    assert found == done[::-1]
    for cursor in ("x", "1~", "1~zz", "~0"):
        status, problem, _ = call("operations", "GET", "/operations", query={"after": cursor}, **OPERATOR)
        assert (status, problem["errors"][0]["field"]) == (400, "after")


@pytest.mark.parametrize("retired_before", [False, True])
def test_a_deed_whose_answer_was_lost_is_journaled_once(
    platform: Cloud, call: Call, echo: str, retired_before: bool
) -> None:
    if retired_before:
        agents.retire(platform, Caller("owner"), echo)
    honest = platform.operations._client.transact_write_items
    done = 0

    def lose_the_first(**asked: Any) -> Any:
        nonlocal done
        answer = honest(**asked)
        done += 1
        if done == 1:
            raise ReadTimeoutError(endpoint_url="dynamodb")
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform.operations._client, "transact_write_items", lose_the_first)
        assert operate(call, f"agents/{echo}/retire")[0] == 200
    assert done == 1, "what was sent again was refused"
    assert len(call("operations", "GET", "/operations", **OPERATOR)[1]["operations"]) == 1


# Agents.


def test_an_operator_retires_anybodys_agent_as_its_owner_would(platform: Cloud, call: Call, echo: str) -> None:
    other = platform.publish(wasm("echo"))
    agents.retire(platform, Caller("owner"), other)
    assert operate(call, f"agents/{echo}/retire")[0] == 200
    assert operate(call, "agents/agt_unknown/retire")[0] == 404
    items = [
        platform._dynamodb.get_item(TableName="RegistryTable", Key={"pk": {"S": f"AGENT#{agent_id}"}})["Item"]
        for agent_id in (echo, other)
    ]
    assert items[0].keys() == items[1].keys()
    before = items[0]["retired_ms"]
    platform.skew_ms = 5_000
    assert operate(call, f"agents/{echo}/retire")[0] == 200
    assert platform.registry.get(echo).retired_ms == int(before["N"]), "the first time stays"
    assert execute(call, echo) == (409, "agent_not_ready")


# Accounts.


def test_a_frozen_account_funds_withdraws_and_publishes_nothing(platform: Cloud, call: Call, echo: str) -> None:
    assert execute(call, echo, "before") == (200, "released")
    assert call("accounts", "POST", "/accounts/me/withdrawals", WITHDRAWAL)[0] == 201
    own = agents.register(
        platform, Caller("alice"), AgentRequest.model_validate({"name": "own", "tariff": FLAT})
    ).agent_id
    assert operate(call, "accounts/alice/freeze")[0] == 200
    have = platform.ledger.available_micro("alice")
    assert execute(call, echo, "after") == (403, "account_frozen")
    with pytest.raises(AccountFrozenError):
        tasks.submit(platform, "alice", ask(echo, task_id="queued"))
    more = WITHDRAWAL | {"withdrawal_id": "w-2"}
    assert call("accounts", "POST", "/accounts/me/withdrawals", more)[1]["code"] == "account_frozen"
    for path, body in (("/agents", {"name": "new", "tariff": FLAT}), (f"/agents/{own}/versions", {})):
        assert call("agents", "POST", path, body)[1]["code"] == "account_frozen"
    assert platform.ledger.available_micro("alice") == have
    # What happened before is still told, deposits arrive, and an agent can still be retired.
    assert execute(call, echo, "before") == (200, "released")
    assert call("accounts", "POST", "/accounts/me/withdrawals", WITHDRAWAL)[0] == 201
    deposit = {"deposit_id": "d", "amount": "1"}
    assert call("accounts", "POST", "/accounts/alice/deposits", deposit, scope="ledger:deposit")[0] == 201
    assert call("agents", "DELETE", f"/agents/{own}")[0] == 200
    assert operate(call, "accounts/alice/unfreeze")[0] == 200
    assert execute(call, echo, "after") == (200, "released"), "at once"
    assert audit.run(platform).differences == []


def test_the_agents_of_a_frozen_owner_take_no_tasks(platform: Cloud, call: Call, echo: str) -> None:
    assert operate(call, "accounts/owner/freeze")[0] == 200
    status, problem, _ = call("execute", "POST", "/tasks/execute", task(echo))
    assert (status, problem["code"], problem["state"]) == (409, "agent_not_ready", "frozen")
    other = platform.publish(wasm("echo"), owner="other")
    assert execute(call, other) == (200, "released")
    assert operate(call, "accounts/owner/unfreeze")[0] == 200
    assert execute(call, echo, "t-2") == (200, "released")


def test_what_runs_when_an_account_is_frozen_settles_normally(platform: Cloud, call: Call, echo: str) -> None:
    run = platform.sandbox.run

    def freeze_both(job: Any) -> Any:
        for account in ("alice", "owner"):
            assert operate(call, f"accounts/{account}/freeze")[0] == 200
        return run(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform.sandbox, "run", freeze_both)
        assert execute(call, echo) == (200, "released")
    sweep(platform)
    assert platform.ledger.available_micro("owner") == 9_750, "what was earned is credited"
    assert platform.registry.is_frozen("owner")


@pytest.mark.parametrize("frozen", ["alice", "owner"])
def test_a_queued_task_of_a_frozen_account_is_refunded(platform: Cloud, call: Call, echo: str, frozen: str) -> None:
    bench = Bench(platform, platform.queue)
    tasks.submit(platform, "alice", ask(echo))
    assert operate(call, f"accounts/{frozen}/freeze")[0] == 200
    work(platform, bench.one())
    done = call("result", "GET", "/tasks/t-1/result")[1]
    assert (done["escrow_status"], done["error"]["code"], done["amount_refunded"]) == ("refunded", "superseded", "0.05")
    assert "frozen" in done["error"]["message"]
    assert platform.ledger.available_micro("alice") == 1_000_000


def test_payouts_of_a_frozen_account_say_so(call: Call) -> None:
    assert call("accounts", "POST", "/accounts/me/withdrawals", WITHDRAWAL)[0] == 201
    assert operate(call, "accounts/alice/freeze")[0] == 200
    bank = {"user": "bank", "scope": "ledger:payout"}
    (payout,) = call("accounts", "GET", "/payouts", **bank)[1]["payouts"]
    assert payout["account_frozen"]
    status, decided, _ = call("accounts", "POST", f"/payouts/{payout['payout_id']}", {"state": "failed"}, **bank)
    assert (status, decided["account_frozen"]) == (200, True), "the record of what happened is never refused"


# Funding.


def test_while_funding_is_paused_nothing_new_is_funded(platform: Cloud, call: Call, echo: str) -> None:
    bench = Bench(platform, platform.queue)
    assert execute(call, echo, "before") == (200, "released")
    tasks.submit(platform, "alice", ask(echo, task_id="queued"))
    have = platform.ledger.available_micro("alice")
    assert operate(call, "funding/pause")[0] == 200
    status, problem, headers = call("execute", "POST", "/tasks/execute", task(echo, task_id="new"))
    assert (status, problem["code"], headers["Retry-After"]) == (503, "funding_paused", str(PAUSED_RETRY_S))
    with pytest.raises(FundingPausedError):
        tasks.submit(platform, "alice", ask(echo, task_id="new"))
    delivery = bench.one()
    with pytest.raises(NotDoneError):
        work(platform, letter(ask(echo, task_id="by-message")))
    assert bench.hidden == [PAUSED_RETRY_S]
    assert platform.ledger.available_micro("alice") == have
    assert not {"new", "by-message"} & {item["task_id"]["S"] for item in platform.items("ESC#")}
    assert execute(call, echo, "before") == (200, "released"), "what was settled is told"
    assert isinstance(tasks.submit(platform, "alice", ask(echo, task_id="queued")), TaskPending)
    work(platform, delivery)
    queued = platform.ledger.find(escrow_id("alice", "queued"))
    assert queued is not None
    assert queued.state == "released", "what was funded runs"
    assert operate(call, "funding/resume")[0] == 200
    assert execute(call, echo, "new") == (200, "released"), "at once"


def test_flags_are_seen_within_ten_seconds_and_their_end_at_once(
    platform: Cloud, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(registries, "_CACHE_SECONDS", CACHE_SECONDS)
    monkeypatch.setattr(cache.time, "monotonic", lambda: now)
    registry = Registry(platform._dynamodb, table="RegistryTable", left_ms=platform.left_ms)
    assert (registry.is_frozen("bob"), registry.funding_is_paused()) == (False, False)
    for path in ("accounts/bob/freeze", "funding/pause"):
        assert operate(call, path)[0] == 200
    now += 9.9
    assert (registry.is_frozen("bob"), registry.funding_is_paused()) == (False, False)
    now += 0.2
    assert (registry.is_frozen("bob"), registry.funding_is_paused()) == (True, True)
    for path in ("accounts/bob/unfreeze", "funding/resume"):
        assert operate(call, path)[0] == 200
    assert (registry.is_frozen("bob"), registry.funding_is_paused()) == (False, False)
