"""Tasks, agents and accounts on the deployed stack, as a user and an owner use them.

The tests read balances and escrows from the ledger's table.
"""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from local.paths import Stack
from quittance.proof import receipt
from tests.e2e.people import CREDIT, Ledger, User, sweep_until_credited
from tests.support import wasm
from tests.waiting import until

FLAT = {"type": "flat", "price": "0.04"}
NO_START = bytes.fromhex("0061736d01000000")  # the smallest valid module


@pytest.fixture(autouse=True)
def _conservation(ledger: Ledger) -> Iterator[None]:
    """No test creates or loses credits."""
    ledger.total()
    yield
    ledger.total()


@pytest.fixture
def user(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> Callable[[], User]:
    """`user()`: a new user with one credit."""
    return lambda: User.new(api, deposit)


@pytest.fixture
def alice(user: Callable[[], User]) -> User:
    return user()


# Pay on success, refund on failure.


def test_a_success_pays_owner_and_platform_and_refunds_the_rest(
    alice: User,
    olga: User,
    publish: Callable[..., str],
    balance: Callable[[str], int],
    sweep: Callable[[], None],
    ledger: Ledger,
    stack: Stack,
) -> None:
    agent = publish(wasm("echo"), tariff=FLAT, owner=olga.name)
    sweep_until_credited(sweep, ledger)
    platform, total = balance(stack.platform_account), ledger.total()

    done = alice.run(agent, task_id="t", input="hello wörld")
    assert (done["success"], done["output"], done["error"], done["escrow_status"]) == (
        True, "hello wörld", None, "released",
    )  # fmt: skip
    assert (done["amount_paid"], done["fee"], done["amount_refunded"]) == ("0.039", "0.001", "0.01")
    assert balance(alice.name) == CREDIT - 40_000
    item = ledger.escrow(alice.name, "t")
    assert item is not None
    assert (item["state"], item["budget"], item["paid"], item["fee"], item["refunded"]) == (
        "released", 50_000, 39_000, 1_000, 10_000,
    )  # fmt: skip
    assert ledger.total() == total

    sweep_until_credited(sweep, ledger)
    assert balance(olga.name) == 39_000
    assert balance(stack.platform_account) == platform + 1_000
    assert balance(alice.name) == CREDIT - 40_000
    assert ledger.total() == total
    sweep_until_credited(sweep, ledger)
    assert balance(olga.name) == 39_000, "credited once"

    account = {name: olga.http.get("/accounts/me").json()[name] for name in ("available", "held", "earned")}
    assert account == {"available": "0.039", "held": "0", "earned": "0"}
    earnings, *funding = olga.http.get("/accounts/me/statement").json()["lines"]
    assert [line["kind"] for line in funding] == ["bond", "deposit"]
    assert earnings | {"at": ...} == {
        "at": ..., "kind": "earnings", "id": done["escrow_id"], "amount": "0.039", "agent_id": agent, "tasks": 1,
        "escrow_status": None, "due": None, "payout": None,
    }  # fmt: skip
    lines = alice.http.get("/accounts/me/statement").json()["lines"]
    assert [(line["kind"], line["id"], line["amount"], line["escrow_status"]) for line in lines[:-1]] == [
        ("task", done["task_id"], "-0.04", "released")
    ]
    assert sum(Decimal(line["amount"]) for line in lines) == Decimal(alice.http.get("/accounts/me").json()["available"])
    reputation = alice.http.get(f"/agents/{agent}").json()["reputation"]
    assert {name: reputation[name] for name in ("score", "outcomes", "successes", "failures")} == {
        "score": 50 + done["reputation_delta"], "outcomes": 1, "successes": 1, "failures": 0,
    }  # fmt: skip
    assert (reputation["success_rate"], reputation["distinct_payers"], reputation["recent"]["runs"]) == (1, 1, 1)
    price = alice.http.get(f"/agents/{agent}/estimate").json()
    assert price["recent"] == reputation["recent"]
    assert (price["least_price"], price["recent"]["price"]["p95"]) == ("0.04", "0.04")


@pytest.mark.parametrize(
    ("agent", "command", "limits", "code"),
    [
        ("failing", "", {}, "exit_code"),
        ("misbehave", "exit 1", {}, "exit_code"),
        ("misbehave", "no such command", {}, "exit_code"),
        ("misbehave", "trap", {}, "trap_unreachable"),
        ("misbehave", "oob", {}, "trap_memory"),
        ("misbehave", "div0", {}, "trap_arithmetic"),
        ("misbehave", "recurse", {}, "trap_stack"),
        ("misbehave", "loop", {"timeout": 1}, "timeout"),
        ("misbehave", "stderr-flood", {"timeout": 1}, "timeout"),
        ("misbehave", "loop", {"fuel": 10**6}, "fuel_exhausted"),
        ("misbehave", "memory", {"memory_mib": 4}, "memory_limit"),
        ("misbehave", "flood", {}, "output_limit"),
        ("misbehave", f"size {2**20 + 1}", {}, "output_limit"),
    ],
)
def test_no_agent_failure_costs_the_user_anything(
    alice: User,
    publish: Callable[..., str],
    balance: Callable[[str], int],
    ledger: Ledger,
    agent: str,
    command: str,
    limits: dict[str, int],
    code: str,
) -> None:
    agent_id = publish(wasm(agent), limits=limits)  # the first call deposits the owner's bond
    total = ledger.total()
    done = alice.run(agent_id, task_id="t", input=command)
    assert (done["success"], done["escrow_status"], done["output"]) == (False, "refunded", None)
    assert (done["error"]["code"], done["reputation_delta"]) == (code, -5)
    assert done["error"]["message"]
    assert (done["amount_paid"], done["fee"], done["amount_refunded"]) == ("0", "0", "0.05")
    assert balance(alice.name) == CREDIT
    assert ledger.total() == total
    item = ledger.escrow(alice.name, "t")
    assert item is not None
    assert (item["state"], item["paid"], item["fee"], item["refunded"]) == ("refunded", 0, 0, 50_000)


def test_a_failing_agent_earns_nothing_and_loses_reputation(
    alice: User,
    olga: User,
    publish: Callable[..., str],
    balance: Callable[[str], int],
    sweep: Callable[[], None],
    ledger: Ledger,
) -> None:
    agent = publish(wasm("failing"), owner=olga.name)
    done = alice.run(agent)
    assert done["log"] == "failing: this agent always fails, so the budget goes back\n"
    assert "exit code 3" in done["error"]["message"]
    sweep_until_credited(sweep, ledger)
    assert balance(olga.name) == 0
    lines = olga.http.get("/accounts/me/statement").json()["lines"]
    assert [line["kind"] for line in lines] == ["bond", "deposit"]
    line = alice.http.get("/accounts/me/statement?limit=1").json()["lines"][0]
    assert (line["kind"], line["id"], line["amount"], line["escrow_status"]) == (
        "task",
        done["task_id"],
        "0",
        "refunded",
    )
    reputation = alice.http.get(f"/agents/{agent}").json()["reputation"]
    assert (reputation["score"], reputation["outcomes"], reputation["failures"]) == (45, 1, 1)
    assert (reputation["success_rate"], reputation["distinct_payers"], reputation["recent"]) == (0, 0, None)
    refused = alice.execute(agent, min_reputation=45.1)
    assert (refused.status_code, refused.json()["code"], refused.json()["reputation"]) == (
        422,
        "reputation_too_low",
        45,
    )
    assert alice.run(agent, min_reputation=45)["error"]["code"] == "exit_code"


# Repeated requests.


@pytest.mark.parametrize(("agent", "cost"), [("echo", 10_000), ("failing", 0)])
def test_a_repeat_gets_the_same_bytes_and_costs_nothing(
    alice: User, publish: Callable[..., str], balance: Callable[[str], int], agent: str, cost: int
) -> None:
    agent_id = publish(wasm(agent))
    answers = [alice.execute(agent_id, task_id="t") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["receipt"] for answer in answers}) == 1
    assert len({answer.content for answer in answers}) == 1
    assert balance(alice.name) == CREDIT - cost


def test_a_repeat_is_answered_after_the_last_credit_is_spent(
    alice: User, publish: Callable[..., str], balance: Callable[[str], int]
) -> None:
    agent = publish(wasm("echo"), tariff={"type": "flat", "price": "1"})
    first = alice.execute(agent, task_id="t", budget="1")
    assert (first.json()["success"], balance(alice.name)) == (True, 0)
    again = alice.execute(agent, task_id="t", budget="1")
    assert (again.status_code, again.content) == (200, first.content)


def test_an_equal_request_in_another_spelling_is_a_repeat(
    alice: User, echo: str, balance: Callable[[str], int]
) -> None:
    first = alice.execute(echo, task_id="t", input='{"a":1.5}', budget="0.05")
    assert alice.execute(echo, task_id="t", input={"a": 1.50}, budget=0.0500).content == first.content
    assert balance(alice.name) == CREDIT - 10_000


@pytest.mark.parametrize("change", [{"input": "other"}, {"budget": "0.06"}, {"timeout": 3}, {"agent_id": "failing"}])
def test_another_request_with_the_same_task_id_is_a_conflict(
    alice: User, echo: str, publish: Callable[..., str], balance: Callable[[str], int], change: dict[str, Any]
) -> None:
    first = alice.run(echo, task_id="t")
    if "agent_id" in change:
        change = {"agent_id": publish(wasm(change["agent_id"]))}
    refused = alice.execute(echo, **{"task_id": "t"} | change)
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:quittance:problem:task_conflict")
    assert balance(alice.name) == CREDIT - 10_000
    assert alice.http.get("/tasks/t/result").json() == first


def test_task_ids_of_different_users_do_not_collide(
    user: Callable[[], User], echo: str, balance: Callable[[str], int]
) -> None:
    alice, bob = user(), user()
    mine, theirs = alice.run(echo, task_id="same", input="a"), bob.run(echo, task_id="same", input="b")
    assert mine["escrow_id"] != theirs["escrow_id"]
    assert alice.http.get("/tasks/same/result").json()["output"] == "a"
    assert bob.http.get("/tasks/same/result").json()["output"] == "b"
    assert (balance(alice.name), balance(bob.name)) == (CREDIT - 10_000, CREDIT - 10_000)


def test_the_owner_reads_a_result_without_output_and_log(
    user: Callable[[], User], olga: User, publish: Callable[..., str]
) -> None:
    alice, bob = user(), user()
    done = alice.run(publish(wasm("echo"), owner=olga.name), task_id="t", input="secret")
    assert alice.http.get("/tasks/t/result").json() == done
    read = olga.http.get("/tasks/t/result", params={"user": alice.name})
    assert read.status_code == 200
    assert read.json() == done | {"output": None, "log": None}
    assert "secret" not in read.text
    for stranger, of in ((bob, None), (bob, alice.name), (olga, None), (olga, bob.name), (alice, bob.name)):
        refused = stranger.http.get("/tasks/t/result", params={"user": of} if of else {})
        assert refused.status_code == 404, (stranger, of)


# Concurrent requests.


@pytest.mark.parametrize("environments", ["cold", "warm"])
def test_sixteen_concurrent_requests_for_one_task_pay_once(
    alice: User, publish: Callable[..., str], balance: Callable[[str], int], ledger: Ledger, environments: str
) -> None:
    """In the second run the environments are warm, so that the requests arrive within milliseconds."""
    agent, request = publish(wasm("sieve")), {"task_id": environments, "input": "100000000"}
    alice.http.get("/accounts/me")  # so that the authorizer's result for this token is cached
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: alice.execute(agent, **request), range(16)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    done = [answer for answer in answers if answer.status_code == 200]
    assert len({answer.content for answer in done}) == 1
    for answer in answers:
        if answer.status_code == 409:
            assert answer.json()["type"] == "urn:quittance:problem:task_in_progress"
            assert int(answer.headers["Retry-After"]) > 0
    assert balance(alice.name) == CREDIT - 10_000
    assert [item["fence"] for item in ledger.tasks() if item["account"] == alice.name] == [1]
    assert alice.execute(agent, **request).content == done[0].content


def test_of_twenty_concurrent_tasks_the_balance_funds_ten(
    alice: User, publish: Callable[..., str], balance: Callable[[str], int], ledger: Ledger
) -> None:
    agent = publish(wasm("echo"), tariff={"type": "flat", "price": "0.1"})
    alice.http.get("/accounts/me")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: alice.execute(agent, task_id=f"t{n}", budget="0.1"), range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [402] * 10
    assert all(answer.json()["success"] for answer in answers if answer.status_code == 200)
    assert balance(alice.name) == 0
    mine = [item for item in ledger.tasks() if item["account"] == alice.name]
    assert [(item["state"], item["paid"] + item["fee"]) for item in mine] == [("released", 100_000)] * 10


def test_a_running_task_holds_its_budget_and_is_pending(
    alice: User, publish: Callable[..., str], balance: Callable[[str], int], ledger: Ledger
) -> None:
    agent, request = publish(wasm("misbehave"), limits={"timeout": 3}), {"task_id": "t", "input": "loop"}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(alice.execute, agent, **request)
        wait_for(lambda: ledger.escrow(alice.name, "t") or {}, lambda item: item.get("state") == "funded")
        assert balance(alice.name) == CREDIT - 50_000
        pending = alice.http.get("/tasks/t/result")
        assert (pending.status_code, pending.json()["escrow_status"]) == (202, "funded")
        assert pending.headers["Location"].endswith("/tasks/t/result")
        assert int(pending.headers["Retry-After"]) > 0
        held = alice.http.get("/accounts/me").json()
        assert (held["available"], held["held"]) == ("0.95", "0.05")
        repeated = alice.execute(agent, **request)
        assert (repeated.status_code, repeated.json()["code"]) == (409, "task_in_progress")
        assert int(repeated.headers["Retry-After"]) > 0
    assert running.result().json()["error"]["code"] == "timeout"
    assert alice.http.get("/tasks/t/result").json() == running.result().json()
    assert balance(alice.name) == CREDIT


def test_reading_the_result_of_an_overdue_task_refunds_it(
    alice: User, echo: str, balance: Callable[[str], int], ledger: Ledger
) -> None:
    ledger.put_overdue(alice.run(echo), task_id="overdue")
    held = balance(alice.name)
    found = alice.http.get("/tasks/overdue/result").json()
    assert (found["success"], found["escrow_status"], found["error"]["code"]) == (False, "expired", "expired")
    assert found["amount_refunded"] == "0.05"
    assert balance(alice.name) == held + 50_000
    assert alice.http.get("/tasks/overdue/result").json() == found


# Agents.


def upload(registered: dict[str, Any], module: bytes) -> httpx.Response:
    """Upload a module with the form from the registration, as a browser would."""
    form = registered["upload"]
    return httpx.post(form["url"], data=form["fields"], files={"file": module}, timeout=60, trust_env=False)


def wait_for(read: Callable[[], dict[str, Any]], ready: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Read until the result is ready; return it."""
    return until(lambda: found if ready(found := read()) else None, "the result is not ready")


def register(owner: User, **terms: Any) -> dict[str, Any]:
    body = {"name": "test", "tariff": FLAT} | terms
    registered = owner.http.post("/agents", json=body)
    assert registered.status_code == 201, registered.text
    answer: dict[str, Any] = registered.json()
    return answer


def test_uploading_the_module_activates_the_agent(alice: User, olga: User) -> None:
    limits = {"memory_mib": 16, "timeout": 5, "fuel": 10**9}
    registered = register(olga, name="  Echo ", description="returns its input", limits=limits)
    path = f"/agents/{registered['agent_id']}"
    assert registered["state"] == alice.http.get(path).json()["state"] == "awaiting_upload"
    assert upload(registered, wasm("echo")).is_success
    agent = wait_for(lambda: alice.http.get(path).json(), lambda agent: agent["state"] == "active")
    assert (agent["owner"], agent["name"], agent["description"]) == (olga.name, "Echo", "returns its input")
    assert (agent["tariff"], agent["limits"], agent["rejection"]) == (FLAT, limits, None)


@pytest.mark.parametrize(
    ("module", "code"),
    [
        pytest.param(b"", "not_wasm", id="empty"),
        pytest.param(NO_START, "no_start", id="without _start"),
        pytest.param(b"\0asm garbage" * 100, "wasm_version", id="garbage"),
        pytest.param(b"print('hello')\n", "not_wasm", id="text"),
        pytest.param(wasm("echo")[:-100], "malformed", id="cut short"),
    ],
)
def test_a_module_that_cannot_run_is_rejected_with_a_reason(
    alice: User, olga: User, balance: Callable[[str], int], module: bytes, code: str
) -> None:
    registered = register(olga)
    agent_id = registered["agent_id"]
    assert upload(registered, module).is_success
    agent = wait_for(
        lambda: olga.http.get(f"/agents/{agent_id}").json(),
        lambda agent: agent["state"] not in {"awaiting_upload", "publishing"},
    )
    assert (agent["state"], agent["module_sha256"]) == ("rejected", None)
    assert agent["rejection"]["code"] == code
    assert agent["rejection"]["message"]
    refused = alice.execute(agent_id)
    assert (refused.status_code, refused.json()["code"], refused.json()["state"]) == (
        409, "agent_not_ready", "rejected",
    )  # fmt: skip
    assert balance(alice.name) == CREDIT


def test_a_new_version_replaces_the_old_one_as_a_whole(alice: User, olga: User, publish: Callable[..., str]) -> None:
    agent_id = publish(wasm("echo"), owner=olga.name)
    path = f"/agents/{agent_id}"
    old = alice.http.get(path).json()
    opened = olga.http.post(f"{path}/versions", json={"tariff": FLAT})
    assert opened.status_code == 201
    assert alice.http.get(path).json() == old, "the new version has no module yet"
    assert alice.run(agent_id)["output"] == "hello"

    assert upload(opened.json(), NO_START).is_success
    rejected = wait_for(lambda: alice.http.get(path).json(), lambda agent: agent["rejection"])
    assert rejected == old | {"rejection": rejected["rejection"], "reputation": rejected["reputation"]}

    opened = olga.http.post(f"{path}/versions", json={"tariff": FLAT})
    assert upload(opened.json(), wasm("wordcount")).is_success
    new = wait_for(lambda: alice.http.get(path).json(), lambda agent: agent["module_sha256"] != old["module_sha256"])
    assert (new["state"], new["tariff"], new["rejection"]) == ("active", FLAT, None)

    was = (old["module_sha256"], "0.01", '"hello"')
    now = (new["module_sha256"], "0.04", '{"words":1,"unique":1,"top":[["hello",1]]}')
    observed = set()

    def is_new() -> bool:
        done = alice.run(agent_id, input='"hello"')
        used = {"0.04": "0.01", "0.01": "0.04"}[done["amount_refunded"]]
        observed.add((receipt.read_claims(done["receipt"])["module_sha256"], used, done["output"].strip()))
        return now in observed

    until(is_new, "the new version is never used", pause_s=0.5)
    assert observed <= {was, now}, "never the module of one version at the price of the other"


def test_an_artefact_of_another_engine_is_recompiled_on_demand(
    alice: User, olga: User, publish: Callable[..., str], stack: Stack, aws: Callable[[str], Any]
) -> None:
    agent = publish(wasm("echo"), owner=olga.name)
    entry: dict[str, Any] = {"TableName": stack.registry_table, "Key": {"pk": {"S": f"AGENT#{agent}"}}}
    older = {":older": {"S": "by an older engine"}}
    written = aws("dynamodb").update_item(
        **entry, UpdateExpression="SET artefact_key = :older", ExpressionAttributeValues=older, ReturnValues="ALL_OLD"
    )
    refused = alice.execute(agent)
    assert (refused.status_code, refused.json()["code"]) == (409, "agent_not_ready")
    assert int(refused.headers["Retry-After"]) > 0

    def answered() -> httpx.Response | None:
        return again if (again := alice.execute(agent)).status_code != 409 else None

    assert until(answered, "the agent is never recompiled", pause_s=0.2).json()["success"]
    kept = aws("dynamodb").get_item(**entry, ConsistentRead=True)["Item"]
    assert kept["artefact_key"] == written["Attributes"]["artefact_key"]


def test_only_the_owner_can_change_an_agent(alice: User, publish: Callable[..., str], echo: str) -> None:
    assert alice.http.post(f"/agents/{echo}/versions", json={}).status_code == 404
    assert alice.http.delete(f"/agents/{echo}").status_code == 404
    assert alice.http.get(f"/agents/{echo}").json()["state"] == "active"


def test_a_retired_agent_refuses_new_tasks_but_answers_old_ones(
    alice: User, olga: User, publish: Callable[..., str], balance: Callable[[str], int]
) -> None:
    used, unused = publish(wasm("echo"), owner=olga.name), publish(wasm("sieve"), owner=olga.name)
    first = alice.execute(used, task_id="t")
    for agent_id in (used, unused):
        retired = olga.http.delete(f"/agents/{agent_id}")
        assert (retired.status_code, retired.json()["state"]) == (200, "retired")
        assert olga.http.delete(f"/agents/{agent_id}").status_code == 200, "a repeat is the same"
        assert olga.http.post(f"/agents/{agent_id}/versions", json={}).json()["code"] == "agent_not_ready"
    refused = alice.execute(unused)
    assert (refused.status_code, refused.json()["code"], refused.json()["state"]) == (
        409, "agent_not_ready", "retired",
    )  # fmt: skip
    assert alice.execute(used, task_id="t").content == first.content
    assert balance(alice.name) == CREDIT - 10_000
    listed = alice.http.get("/agents", params={"limit": 100}).json()["agents"]
    assert not {used, unused} & {agent["agent_id"] for agent in listed}


def test_agents_are_listed_newest_first_in_pages(olga: User, publish: Callable[..., str]) -> None:
    waiting = [register(olga, name=f"agent {number}")["agent_id"] for number in range(4)]
    active = publish(wasm("echo"), owner=olga.name)
    listed, after = [], None
    while True:
        page = olga.http.get("/agents", params={"owner": olga.name, "limit": 2} | ({"after": after} if after else {}))
        assert len(page.json()["agents"]) <= 2
        listed += [agent["agent_id"] for agent in page.json()["agents"]]
        if not (after := page.json()["next"]):
            break
    assert listed == [active, *reversed(waiting)]
    everyone = olga.http.get("/agents", params={"limit": 100}).json()["agents"]
    assert active in {agent["agent_id"] for agent in everyone}
    assert {agent["state"] for agent in everyone} == {"active"}, "only agents that accept tasks"


# Accounts.


@pytest.fixture
def bank(api: Callable[..., httpx.Client]) -> httpx.Client:
    return api("bank", "ledger:deposit")


def test_a_repeated_deposit_counts_once(alice: User, bank: httpx.Client, balance: Callable[[str], int]) -> None:
    path, body = f"/accounts/{alice.name}/deposits", {"deposit_id": "d", "amount": "2.5"}
    first = bank.post(path, json=body)
    assert first.status_code == 201
    assert first.json() == body | {"account_id": alice.name, "recorded_at": first.json()["recorded_at"]}
    again = bank.post(path, json=body | {"amount": 2.500})
    assert (again.status_code, again.content) == (201, first.content)
    assert balance(alice.name) == CREDIT + 2_500_000
    other = bank.post(path, json=body | {"amount": "2.6"})
    assert (other.status_code, other.json()["code"], other.json()["recorded"]) == (409, "movement_conflict", "2.5")
    assert balance(alice.name) == CREDIT + 2_500_000
    assert alice.http.get("/accounts/me").json()["available"] == "3.5"


def test_no_deposit_goes_to_an_account_named_me(
    api: Callable[..., httpx.Client], balance: Callable[[str], int]
) -> None:
    """`me` always means the caller. An account with that name would receive deposits meant for the caller."""
    me, name = balance("me"), f"user-{uuid.uuid4().hex[:12]}"
    answer = api(name, "ledger:deposit").post("/accounts/me/deposits", json={"deposit_id": name, "amount": "1"})
    assert balance("me") == me
    assert (answer.status_code, balance(name)) in {(201, CREDIT), (400, 0), (404, 0)}


def test_the_account_id_of_a_deposit_is_decoded_once(
    api: Callable[..., httpx.Client], bank: httpx.Client, balance: Callable[[str], int]
) -> None:
    """The deposit goes to the account whose token subject is the decoded id, not to the percent-encoded name."""
    name = uuid.uuid4().hex[:12]
    for account in (f"auth0|{name}", f"a/b/{name}", f'"{name}"', f"auth0%7C{name}"):
        sent = {"deposit_id": "d", "amount": "1"}
        answer = bank.post(f"/accounts/{quote(account, safe='')}/deposits", json=sent)
        assert (answer.status_code, answer.json()["account_id"]) == (201, account)
        assert api(account).get("/accounts/me").json()["available"] == "1"
        assert balance(account) == CREDIT


def test_a_withdrawal_counts_once_and_never_overdraws(alice: User, balance: Callable[[str], int]) -> None:
    body = {"withdrawal_id": "w", "amount": "0.75"}
    first = alice.http.post("/accounts/me/withdrawals", json=body)
    assert first.status_code == 201
    again = alice.http.post(f"/accounts/{alice.name}/withdrawals", json=body)
    assert (again.status_code, again.content) == (201, first.content)
    assert balance(alice.name) == 250_000
    other = alice.http.post("/accounts/me/withdrawals", json=body | {"amount": "0.1"})
    assert (other.status_code, other.json()["code"]) == (409, "movement_conflict")
    more = alice.http.post("/accounts/me/withdrawals", json={"withdrawal_id": "x", "amount": "0.250001"})
    assert more.status_code == 402
    assert (more.json()["available"], more.json()["required"]) == ("0.25", "0.250001")
    assert balance(alice.name) == 250_000
    rest = alice.http.post("/accounts/me/withdrawals", json={"withdrawal_id": "x", "amount": "0.25"})
    assert (rest.status_code, balance(alice.name)) == (201, 0)


def test_a_payout_is_listed_and_decided_and_stated(
    api: Callable[..., httpx.Client], alice: User, balance: Callable[[str], int]
) -> None:
    cashier = api(f"cashier-{uuid.uuid4().hex[:12]}", "ledger:payout")
    assert alice.http.get("/payouts").status_code == 403
    for number, state in enumerate(("paid", "failed")):
        body = {"withdrawal_id": f"w-{number}", "amount": "0.25"}
        assert alice.http.post("/accounts/me/withdrawals", json=body).json()["state"] == "requested"
        path, found = "/payouts?limit=100", list[str]()
        while not found:  # the index may lag
            page = cashier.get(path).json()
            found = [one["payout_id"] for one in page["payouts"] if one["account_id"] == alice.name]
            path = f"/payouts?limit=100&after={page['next']}" if page["next"] else "/payouts?limit=100"
        decided = cashier.post(f"/payouts/{found[0]}", json={"state": state})
        assert (decided.status_code, decided.json()["state"]) == (200, state)
        assert cashier.post(f"/payouts/{found[0]}", json={"state": state}).content == decided.content
        assert alice.http.post("/accounts/me/withdrawals", json=body).json()["state"] == state
    assert balance(alice.name) == 750_000
    lines = alice.http.get("/accounts/me/statement").json()["lines"]
    assert [(line["kind"], line["payout"]) for line in lines][:3] == [
        ("returned", None), ("withdrawal", "failed"), ("withdrawal", "paid"),
    ]  # fmt: skip
