"""Bonds in the API, and the sweep that charges them: movements, refusals, the bond mark, and shares of time."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from quittance.api.identity import Caller
from quittance.api.models import AgentRequest, TaskRequest
from quittance.errors import AgentNotReadyError, PlatformUnavailableError
from quittance.ledger.credits import MICRO_PER_CREDIT, format_credits
from quittance.ledger.escrow import Escrow
from quittance.limits import AGENT_AGE_MS_MAX, AMOUNT_MICRO_MAX, BOND_NOTICE_MS, ESCROW_MS_MAX, QUEUE_WAIT_MS_MAX
from quittance.store import registry
from quittance.store.ledger import Backlog, Ledger
from quittance.usecases import accounts, agents, audit, launch
from quittance.usecases import execute as tasks
from quittance.usecases import sweep as sweeping
from quittance.usecases.sweep import sweep
from tests.functions import test_handlers
from tests.functions.test_handlers import Call, load
from tests.store.test_ledger import FAILED, hold, settled
from tests.support import FLAT, ROOT, Cloud, wasm
from tests.usecases.test_execute import run

call = test_handlers.call  # the fixture
BOND = "/accounts/me/bond"
MINIMUM = 1_000_000


@pytest.fixture
def bonded(platform: Cloud) -> Cloud:
    """A platform that requires bonds and charges a price for each run. Olga has ten credits."""
    changes = {"bond_minimum_micro": MINIMUM, "compute_run_micro": 300_000}
    platform.settings = platform.settings.model_copy(update=changes)
    platform.deposit("olga", 10 * MINIMUM)
    platform.deposit("alice", 50 * MINIMUM)
    return platform


def move(call: Call, amount: Any, bond_id: str = "b-1") -> tuple[int, dict[str, Any]]:
    status, answer, _ = call("accounts", "POST", BOND, {"bond_id": bond_id, "amount": amount}, user="olga")
    return status, answer


def read(call: Call) -> dict[str, Any]:
    status, answer, _ = call("accounts", "GET", BOND, user="olga")
    assert status == 200
    return answer


def test_owner_fills_and_releases_the_bond(bonded: Cloud, call: Call) -> None:
    assert bonded.registry.owner("olga").bonded, "the bond has not been read yet"
    assert read(call) == {
        "account_id": "olga",
        "available": "0",
        "held": "0",
        "charged": "0",
        "releasable": "0",
        "minimum": "1",
    }
    assert not bonded.registry.owner("olga").bonded
    status, moved = move(call, "2.5")
    assert (status, moved["amount"]) == (201, "2.5")
    assert bonded.registry.owner("olga").bonded
    assert move(call, "2.5") == (201, moved)
    assert move(call, "2")[1]["code"] == "movement_conflict"
    assert (read(call)["available"], read(call)["releasable"]) == ("2.5", "2.5")
    assert move(call, "-2", "b-2")[1]["amount"] == "-2"
    assert move(call, -2, "b-2")[0] == 201, "the same amount as a JSON number"
    assert read(call)["available"] == "0.5"
    assert not bonded.registry.owner("olga").bonded, "below the minimum now"
    assert move(call, "-1", "b-3")[1]["code"] == "insufficient_funds"
    assert move(call, "100", "b-4")[1]["code"] == "insufficient_funds"
    _, statement, _ = call("accounts", "GET", BOND + "/statement", user="olga")
    assert sorted((line["kind"], line["amount"]) for line in statement["lines"]) == [("bond", "-2"), ("bond", "2.5")]
    _, own, _ = call("accounts", "GET", "/accounts/me/statement", user="olga")
    assert sorted(line["amount"] for line in own["lines"] if line["kind"] == "bond") == ["-2.5", "2"]
    assert audit.audit(bonded).differences == []


@pytest.mark.parametrize("amount", [0, "0", "-0", "0.0000001", "--1", "- 1", "+1", "1e3", True, None, "", "-", 1.5e300])
def test_invalid_amount_is_named_in_the_error(bonded: Cloud, call: Call, amount: Any) -> None:
    before = bonded.items()
    status, problem = move(call, amount)
    assert (status, [error["field"] for error in problem["errors"]]) == (400, ["amount"])
    assert bonded.items() == before


@pytest.mark.parametrize("sign", [1, -1])
def test_amount_of_a_bond_movement_is_bounded(bonded: Cloud, call: Call, sign: int) -> None:
    assert move(call, format_credits(sign * (AMOUNT_MICRO_MAX + 1)))[0] == 400
    assert move(call, format_credits(sign * AMOUNT_MICRO_MAX))[1]["code"] == "insufficient_funds"


def test_bond_is_kept_while_an_agent_is_active_or_a_task_open(bonded: Cloud, call: Call) -> None:
    """It can be released minutes after the last agent was retired, once all its tasks are settled and credited."""
    move(call, "3")
    agent = bonded.publish(wasm("echo"), owner="olga")
    assert run(bonded, agent, budget="1").success
    assert (read(call)["available"], read(call)["releasable"]) == ("3", "0")
    refused = move(call, "-1", "out")[1]
    assert (refused["code"], "Retire" in refused["detail"]) == ("bond_in_use", True)
    agents.retire(bonded, Caller("olga"), agent)
    status, refused, headers = call("accounts", "POST", BOND, {"bond_id": "out", "amount": "-1"}, user="olga")
    assert (status, refused["code"]) == (409, "bond_in_use")
    assert 0 < int(headers["Retry-After"]) <= BOND_NOTICE_MS // 1_000
    bonded.skew_ms = BOND_NOTICE_MS + 1
    assert "not settled and credited" in move(call, "-1", "out")[1]["detail"]
    sweep(bonded)
    assert read(call)["releasable"] == "3"
    assert move(call, "-3", "out")[0] == 201
    move(call, "2", "in")
    bonded.publish(wasm("echo"), owner="olga")
    assert move(call, "-3", "out")[0] == 201, "a repeated request is no new release"
    assert read(call)["available"] == "2"


def test_bond_is_kept_while_a_module_is_published(bonded: Cloud, call: Call) -> None:
    """An owner who could release the bond during compilation would compile for free."""
    move(call, "2")
    agent = agents.register(bonded, Caller("olga"), AgentRequest.model_validate({"name": "a", "tariff": FLAT})).agent_id
    assert read(call)["releasable"] == "0"
    assert move(call, "-1", "out")[1]["code"] == "bond_in_use"
    agents.retire(bonded, Caller("olga"), agent)
    assert move(call, "-1", "out")[1]["code"] == "bond_in_use"
    bonded.skew_ms = BOND_NOTICE_MS + 1
    assert move(call, "-1", "out")[0] == 201


def test_bond_is_kept_for_publication_begun_before_retirement(template: dict[str, Any]) -> None:
    publish = template["Resources"]["PublishFunction"]["Properties"]["Timeout"]
    between_sweeps_s = 60
    assert (publish + between_sweeps_s) * 1_000 <= BOND_NOTICE_MS


def test_an_agent_is_not_older_than_its_limit_when_a_task_is_funded(template: dict[str, Any]) -> None:
    """A task is funded within one invocation of `execute`, for an agent from a cache; clocks differ by seconds."""
    execute_s = template["Resources"]["ExecuteFunction"]["Properties"]["Timeout"]
    clocks_s = 10
    assert (registry._CACHE_SECONDS + execute_s + clocks_s) * 1_000 <= AGENT_AGE_MS_MAX


def test_bond_is_kept_for_a_slow_worker(template: dict[str, Any]) -> None:
    """A worker may fund a task at the end of a longer invocation; but its tasks do not wait in the queue."""
    work_s = template["Resources"]["WorkFunction"]["Properties"]["Timeout"]
    aged_ms = (registry._CACHE_SECONDS + work_s) * 1_000
    assert aged_ms + ESCROW_MS_MAX - QUEUE_WAIT_MS_MAX <= BOND_NOTICE_MS


@pytest.mark.parametrize("page", ["who-pays.md", "errors.md"])
def test_documents_state_the_notice(page: str) -> None:
    assert f"{BOND_NOTICE_MS // 60_000} minutes" in (ROOT / "docs" / page).read_text("utf-8")


def longest_lived(bonded: Cloud, monkeypatch: pytest.MonkeyPatch, way: str) -> tuple[str, list[Escrow]]:
    """Retires an agent, and funds a task of it as late and for as long as the limits allow: the agent and escrows.

    The task is checked with the agent as it was before, as in an environment that has it in its cache.
    """
    began_ms = bonded.now_ms()
    monkeypatch.setattr(bonded, "now_ms", lambda: began_ms + bonded.skew_ms)
    bonded.deposit("judith", 2 * MINIMUM)
    bonded.ledger.move_bond("judith", "b-1", MINIMUM, now_ms=began_ms)
    judge = bonded.publish(wasm("coverage"), owner="judith", timeout=10)
    rules = {"judge": {"agent_id": judge, "threshold": "0.5", "budget": "0.9"}} if "judged" in way else None
    agent = bonded.publish(wasm("misbehave"), owner="olga", timeout=600, acceptance=rules)
    stale = {agent_id: bonded.registry.get(agent_id) for agent_id in (agent, judge)}
    agents.retire(bonded, Caller("olga"), agent)
    bonded.skew_ms += AGENT_AGE_MS_MAX
    asked = {"task_id": "last", "agent_id": agent, "input": "unreachable", "budget": "1"}
    request = TaskRequest.model_validate(asked)
    with monkeypatch.context() as patch:
        patch.setattr(bonded.registry, "get_cached", stale.__getitem__)
        patch.setattr(launch, "run", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
        if "async" in way:
            tasks.submit(bonded, "alice", request)
        else:
            with suppress(InterruptedError):
                tasks.execute(bonded, "alice", request)
    names = [item["pk"]["S"].removeprefix("ESC#") for item in bonded.items("ESC#")]
    return agent, [escrow for name in names if (escrow := bonded.ledger.find(name))]


@pytest.mark.parametrize("way", ["sync", "sync judged", "async", "async judged"])
def test_bond_is_kept_until_the_last_escrow_cannot_charge_it(
    bonded: Cloud, call: Call, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The last task that can be funded after a retirement fails in the last instant, and the bond pays for it."""
    move(call, "3")
    agent, funded = longest_lived(bonded, monkeypatch, way)
    retired_ms = bonded.registry.agents_of("olga").retired_ms or 0
    assert len(funded) == 1 + way.endswith("judged")
    lives_ms = {escrow.expires_ms - retired_ms for escrow in funded}
    assert max(lives_ms) <= BOND_NOTICE_MS
    if way.startswith("async"):
        assert lives_ms == {BOND_NOTICE_MS}, "the notice is not longer than it must be"
    (escrow,) = (each for each in funded if each.agent_id == agent)
    others = [each for each in funded if each is not escrow]
    bonded.skew_ms += escrow.expires_ms - 1 - bonded.now_ms()
    assert move(call, "-1", "early")[1]["code"] == "bond_in_use"
    ends = [replace(each, settlement=settled(each, FAILED, now_ms=bonded.now_ms()).settlement) for each in funded]
    ends.sort(key=lambda each: each.agent_id != agent)
    stored = bonded.ledger.settle(*ends)
    assert stored.settlement is not None
    assert stored.settlement.charge_micro == 300_000
    assert len(others) == len(stored.judges)
    bonded.skew_ms += retired_ms + BOND_NOTICE_MS + 1 - bonded.now_ms()
    assert read(call)["releasable"] == "0"
    status, refused, headers = call("accounts", "POST", BOND, {"bond_id": "out", "amount": "-1"}, user="olga")
    assert (status, "not settled and credited" in refused["detail"]) == (409, True)
    assert int(headers["Retry-After"]) <= 90
    assert sweep(bonded).written_off_micro == 0
    assert read(call)["charged"] == "0.3"
    assert move(call, "-1", "out")[0] == 201


def test_a_bond_is_free_of_a_task_that_has_expired(bonded: Cloud, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refunded as the platform's fault: nothing is charged, also if the sweep comes later than the release."""
    move(call, "3")
    longest_lived(bonded, monkeypatch, "async")
    bonded.skew_ms += BOND_NOTICE_MS - AGENT_AGE_MS_MAX - 1
    assert move(call, "-3", "early")[1]["code"] == "bond_in_use"
    bonded.skew_ms += 1
    assert move(call, "-3", "out")[0] == 201
    swept = sweep(bonded)
    assert (swept.expired, swept.failed) == (1, 0)
    assert sweep(bonded).written_off_micro == 0
    assert bonded.ledger.bond("olga").charged_micro == 0


def test_failures_are_charged_until_the_bond_is_too_small(bonded: Cloud, call: Call) -> None:
    """The payer gets the whole budget back, the bond pays the compute, and then the owner's agents take no task."""
    move(call, "1.1")
    agent = bonded.publish(wasm("misbehave"), owner="olga")
    before = bonded.ledger.available_micro("alice")
    failed = run(bonded, agent, input="unreachable", budget="1")
    assert (failed.success, failed.amount_refunded_micro) == (False, MICRO_PER_CREDIT)
    assert bonded.ledger.available_micro("alice") == before
    swept = sweep(bonded)
    assert (swept.credited, swept.written_off_micro) == (1, 0)
    assert (read(call)["available"], read(call)["charged"]) == ("0.8", "0.3")
    assert bonded.ledger.available_micro("quittance:platform") == 300_000
    assert not bonded.registry.owner("olga").bonded
    for task_id in ("second", "third", "fourth"):  # accepted only where the old mark is still cached
        with suppress(AgentNotReadyError):
            run(bonded, agent, task_id=task_id, input="unreachable", budget="1")
    move(call, "0.2", "more")
    assert bonded.registry.owner("olga").bonded
    sweep(bonded)
    assert audit.audit(bonded).differences == []


def test_charge_above_the_bond_is_written_off_and_reported(bonded: Cloud, call: Call, context: Any) -> None:
    for number in range(2):
        escrow = bonded.ledger.fund(hold(f"t-{number}", owner="olga", compute=bonded.settings.compute))
        bonded.ledger.settle(settled(escrow, FAILED))
    move(call, "0.5")
    swept = load("sweep").handler({}, context)
    assert swept["written_off_micro"] == 100_000
    (line, filled) = call("accounts", "GET", BOND + "/statement", user="olga")[1]["lines"]
    assert (line["kind"], line["amount"], line["due"], line["tasks"]) == ("charge", "-0.5", "0.6", 2)
    assert "due" not in filled or filled["due"] is None
    assert not bonded.registry.owner("olga").bonded


def test_bond_mark_lost_in_a_crash_is_corrected_later(
    bonded: Cloud, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated top-up corrects the mark, and so does a read of the bond."""
    bonded.registry.set_bond_short("olga", short=True)
    with monkeypatch.context() as patch:
        patch.setattr(accounts, "note_bond", lambda *_: None)
        move(call, "2")
    assert not bonded.registry.owner("olga").bonded
    move(call, "2")
    assert bonded.registry.owner("olga").bonded
    bonded.registry.set_bond_short("olga", short=True)
    read(call)
    assert bonded.registry.owner("olga").bonded


# The sweep.


class Busy:
    """A sweep whose calls take a second each. The named queues are endless, the others have one item."""

    def __init__(self, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, *endless: str) -> None:
        self.left_ms, self.did = 60_000, dict.fromkeys(("overdue", "settled", "unlogged", "publish"), 0)
        numbers = count()
        monkeypatch.setattr(Cloud, "left_ms", lambda cloud: self.left_ms - cloud._reserved_ms)

        def queue(name: str) -> Iterator[str]:
            while name in endless or self.did[name] < 1:
                yield f"{name}-{next(numbers)}"

        def work(name: str) -> None:
            self.did[name] += 1
            self.left_ms -= 1_000

        def backlog(name: str) -> Backlog:
            return Backlog({0: ((0, each) for each in queue(name))}, at_once=1)

        monkeypatch.setattr(cloud.ledger, "overdue", lambda **_: backlog("overdue"))
        monkeypatch.setattr(cloud.ledger, "settled", lambda **_: backlog("settled"))
        monkeypatch.setattr(cloud.ledger.log, "waiting", lambda: ([name] for name in queue("unlogged")))
        monkeypatch.setattr(cloud.ledger, "find", lambda _: work("overdue"))
        monkeypatch.setattr(cloud.ledger.log, "append", lambda *_: work("unlogged") or ())

        def credit(*_: Any, **__: Any) -> Any:
            work("settled")
            return honest(cloud.ledger, [], now_ms=0)

        honest = Ledger.credit
        monkeypatch.setattr(cloud.ledger, "credit", credit)
        monkeypatch.setattr(sweeping, "publish_log", lambda *_: work("publish"))


@pytest.mark.parametrize("endless", [("overdue",), ("settled",), ("unlogged",), ("overdue", "settled", "unlogged")])
def test_each_sweep_step_has_its_share_of_the_time(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, endless: tuple[str, ...]
) -> None:
    """A backlog in one step delays neither the log nor the refunds, and no time is left unused."""
    busy = Busy(cloud, monkeypatch, *endless)
    done = sweep(cloud)
    assert not done.complete
    assert all(busy.did.values()), busy.did
    assert busy.left_ms < 7_000, "time is left unused although there is work"
    if len(endless) > 1:
        assert busy.did["settled"] >= busy.did["unlogged"] >= 8
        assert busy.did["overdue"] >= 8
    else:
        assert busy.did[endless[0]] >= 40


def test_sweep_step_with_unavailable_index_stops_no_other(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep fails only after the other steps have run."""

    def unavailable(**_: Any) -> Iterator[str]:
        raise PlatformUnavailableError

    escrow = settle_one(cloud, "t-1", "agt_1")
    monkeypatch.setattr(cloud.ledger, "overdue", unavailable)
    with pytest.raises(PlatformUnavailableError):
        sweep(cloud)
    assert cloud.ledger.log.place(escrow.escrow_id) == 0
    assert cloud.ledger.log.head().published == 1


def settle_one(cloud: Cloud, task_id: str, agent_id: str) -> Any:
    cloud.deposit("alice", MICRO_PER_CREDIT)
    cloud.ledger.deposit("alice", task_id, MICRO_PER_CREDIT, now_ms=1)
    escrow = cloud.ledger.fund(hold(task_id, agent_id=agent_id, owner=f"of-{agent_id}"))
    return cloud.ledger.settle(settled(escrow))


def test_escrow_that_cannot_be_credited_blocks_no_other(cloud: Cloud) -> None:
    """In a batch of many agents all but the broken escrow are credited, and that one fails once in a sweep."""
    escrows = [settle_one(cloud, f"t-{number}", f"agt_{number}") for number in range(9)]
    (poison,) = cloud.items(f"ESC#{escrows[4].escrow_id}")
    cloud._dynamodb.put_item(
        TableName=cloud.settings.ledger_table, Item={name: value for name, value in poison.items() if name != "tariff"}
    )
    swept = sweep(cloud)
    assert (swept.credited, swept.logged, swept.failed, swept.complete) == (8, 8, 1, True)
    assert [cloud.ledger.available_micro(f"of-agt_{number}") for number in range(9)] == [390_000] * 4 + [0] + [
        390_000
    ] * 4


def test_sweep_takes_the_oldest_work_of_all_shards_first(cloud: Cloud) -> None:
    ids = []
    for number in range(12):
        cloud.ledger.deposit("alice", f"d{number}", MICRO_PER_CREDIT, now_ms=1)
        escrow = cloud.ledger.fund(hold(f"t-{number}"))
        cloud.ledger.settle(settled(escrow, now_ms=number))
        ids.append(escrow.escrow_id)
    assert list(cloud.ledger.settled()) == [ids]
