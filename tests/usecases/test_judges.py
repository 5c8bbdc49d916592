"""Judges on a whole platform: who is paid, who is refunded and who is blamed, whatever a judge says or does not say."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm

from quittance.acceptance.rules import SCORE_RULES, judge_input, rules_json
from quittance.api.identity import Caller
from quittance.api.models import AgentRequest, TaskPending, TaskRequest, TaskResult
from quittance.errors import (
    AgentNotReadyError,
    BondTooLowError,
    BudgetTooLowError,
    InsufficientFundsError,
    InvalidRequestError,
    JudgingTooDearError,
    NotFoundError,
    PlatformUnavailableError,
    TaskInProgressError,
    TimeoutTooLongError,
)
from quittance.ledger import escrow as escrows
from quittance.ledger.balances import bond_account
from quittance.ledger.escrow import Escrow
from quittance.limits import JUDGE_TIMEOUT_S_MAX, TIMEOUT_S_SYNC_MAX
from quittance.proof import receipt, verify
from quittance.run import Job, Meter, Outcome, Run
from quittance.store import ledger
from quittance.usecases import accounts, agents, audit, execute, publish, result
from quittance.usecases.sweep import sweep
from tests.sandbox.wat import iovecs, memory
from tests.support import FLAT, Cloud, wasm

START = 10_000_000
BOND = 1_000_000
PRICE, FEE = 10_000, 250
HELD = 50_000  # for each judge


def saying(text: str, *, log: str = "") -> bytes:
    """A module that prints a text, whatever it reads."""
    return bytes(
        wat2wasm(f"""(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            {memory(0, iovecs((32, len(text)), (128, len(log))))}
            {memory(32, text.encode())} {memory(128, log.encode())}
            (func (export "_start")
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
                (drop (call $write (i32.const 2) (i32.const 8) (i32.const 1) (i32.const 16)))))""")
    )


def exiting(code: int) -> bytes:
    """A module that ends with an exit code."""
    return bytes(
        wat2wasm(f"""(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (func (export "_start") (call $exit (i32.const {code}))))""")
    )


def flat(price: str) -> dict[str, Any]:
    return {"type": "flat", "price": price}


LOOP = bytes(wat2wasm('(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))'))
TRAP = bytes(wat2wasm('(module (memory (export "memory") 1) (func (export "_start") unreachable))'))


@pytest.fixture
def rich(cloud: Cloud) -> Cloud:
    cloud.deposit("alice", START)
    cloud.bond("owner", BOND)
    return cloud


def judged_by(agent_id: str, threshold: str = "0.5", budget: str = "0.05") -> dict[str, Any]:
    return {"judge": {"agent_id": agent_id, "threshold": threshold, "budget": budget}}


def judge(cloud: Cloud, module: bytes, **terms: Any) -> str:
    return cloud.publish(module, owner="judith", **terms)


def ask(agent_id: str, **changes: Any) -> TaskRequest:
    return TaskRequest.model_validate(
        {"task_id": "t-1", "agent_id": agent_id, "input": "to be or not", "budget": "0.5"} | changes
    )


def run(cloud: Cloud, agent_id: str, **changes: Any) -> TaskResult:
    done = execute.execute(cloud, "alice", ask(agent_id, **changes))
    assert isinstance(done, TaskResult)
    return done


def of_judge(cloud: Cloud, side: str = "task") -> TaskResult:
    done = result.read(cloud, Caller("alice"), f"t-1:judge-{side}")
    assert isinstance(done, TaskResult)
    return done


def bond(cloud: Cloud) -> int:
    """How much the owner's bond has gained or lost."""
    return cloud.ledger.available_micro(bond_account("owner")) - BOND


def stated(cloud: Cloud, done: TaskResult) -> Any:
    return receipt.verify(done.receipt, cloud.keys.jwks())


def earned(cloud: Cloud) -> tuple[int, int, int]:
    """What owner, judge's owner and platform have available after the sweep; everything adds up."""
    while (swept := sweep(cloud)).credited or swept.logged:
        pass
    assert cloud.total_micro() == START + BOND
    return tuple(cloud.ledger.available_micro(name) for name in ("owner", "judith", "quittance:platform"))  # type: ignore[return-value]


def test_an_accepted_output_and_its_judge_are_paid(rich: Cloud) -> None:
    agent, coverage = rich.publish(wasm("echo")), judge(rich, wasm("coverage"))
    done = run(rich, agent, acceptance=judged_by(coverage))
    assert (done.success, done.output, done.amount_refunded_micro) == (True, "to be or not", 500_000 - HELD - PRICE)
    assert done.judging_micro == PRICE
    (named,) = done.judges
    assert (named.side, named.agent_id, named.task_id, named.budget_micro, named.cost_micro, named.score) == (
        "task", coverage, "t-1:judge-task", HELD, PRICE, "1",
    )  # fmt: skip
    own = of_judge(rich)
    assert (own.output, own.amount_paid_micro + own.fee_micro, own.amount_refunded_micro) == (
        "1.000000\n", PRICE, HELD - PRICE,
    )  # fmt: skip
    assert rich.ledger.available_micro("alice") == START - 2 * PRICE
    assert earned(rich) == (PRICE - FEE, PRICE - FEE, 2 * FEE)
    rules = stated(rich, done)["acceptance"]
    assert (rules["task_score"], rules["agent_score"], rules["accepted"]) == ("1", None, True)
    assert run(rich, agent, acceptance=judged_by(coverage)) == done == result.read(rich, Caller("alice"), "t-1")
    assert rich.ledger.available_micro("alice") == START - 2 * PRICE, "a repeat costs nothing"


@pytest.mark.parametrize("side", ["agent", "task"])
@pytest.mark.parametrize(("said", "accepted"), [("0.5", True), ("0.499999", False), ("0", False), ("1e0", True)])
def test_the_threshold_decides_and_each_side_pays_its_judge(rich: Cloud, side: str, said: str, accepted: bool) -> None:
    rule = judged_by(judge(rich, saying(said)))
    agent = rich.publish(wasm("echo"), acceptance=rule if side == "agent" else None)
    done = run(rich, agent, acceptance=rule if side == "task" else None)
    blamed = "agent" if side == "agent" else "payer"
    assert (done.success, done.fault) == (accepted, "none" if accepted else blamed)
    assert done.reputation_delta == (25 if accepted else -50 if side == "agent" else 0)
    assert (done.judges[0].side, done.judges[0].cost_micro) == (side, PRICE)
    score = {"1e0": "1"}.get(said, said) if accepted else None
    assert done.judges[0].score == stated(rich, done)["acceptance"][f"{side}_score"] == score
    if not accepted:
        assert done.error is not None
        assert (done.error.code, done.output) == ("rejected", None)
        assert done.error.message.endswith(f"of the {side}'s rules did not accept the output.")
        assert stated(rich, done)["acceptance"]["rejected_by"] == f"{side}_judge"
    spent = PRICE * accepted + PRICE * (side == "task")
    assert rich.ledger.available_micro("alice") == START - spent, "a refunded user has the whole budget back"
    owner, judith, platform = earned(rich)
    assert (judith, platform) == (PRICE - FEE, FEE * (1 + accepted))
    assert owner + bond(rich) == (PRICE - FEE) * accepted - PRICE * (side == "agent")
    assert bond(rich) == (0 if side == "task" else -FEE if accepted else -PRICE), "what a price pays goes to the bond"


def test_a_judge_that_always_rejects_takes_nothing_from_users(rich: Cloud) -> None:
    """Seen before: an agent with its own judge at 0.9 took 0.9 of every budget of 1, and called it refunded."""
    agent = rich.publish(wasm("echo"), acceptance=judged_by(judge(rich, saying("0"), tariff=flat("0.9")), budget="0.9"))
    done = run(rich, agent, budget="1")
    assert (done.escrow_status, done.amount_refunded_micro) == ("refunded", 1_000_000)
    assert rich.ledger.available_micro("alice") == START
    with pytest.raises(AgentNotReadyError, match="bond"):
        run(rich, agent, budget="1", task_id="t-2")
    assert bond(rich) == -900_000
    assert rich.ledger.available_micro("alice") == START


NO_SCORES = [saying("0.4"), saying("0"), saying("splendid"), saying(""), wasm("echo"), TRAP, LOOP, exiting(37)]


@pytest.mark.parametrize("side", ["agent", "task"])
@pytest.mark.parametrize("module", NO_SCORES)
def test_an_unaccepting_judge_shows_nothing_but_that(rich: Cloud, module: bytes, side: str) -> None:
    """Seen before: 134 bytes of an output taken through the score of a judge in 9 refunded tasks.

    Whatever the judge does with what it read, all that anybody is shown is the same but for ids, times and randomness.
    """
    rule = judged_by(judge(rich, module, fuel=10**7))
    agent = rich.publish(wasm("echo"), acceptance=rule if side == "agent" else None)
    done = run(rich, agent, acceptance=rule if side == "task" else None)
    assert done.error is not None
    assert (done.error.code, done.escrow_status) == ("rejected", "refunded")
    own = of_judge(rich, side)
    assert own.error is not None
    assert (own.error.code, own.escrow_status, own.reputation_delta) == ("withheld", "released", 0)
    assert (own.output, own.log, own.execution_time_ms, own.resource_usage.fuel_used) == (None, None, 0, 0)
    assert (own.amount_paid_micro, own.fee_micro, own.amount_refunded_micro) == (PRICE - FEE, FEE, HELD - PRICE)
    claims = stated(rich, own)
    assert set(claims["meter"].values()) == {0, True}
    assert claims["input_sha256"] == sha256(b"").hexdigest()
    assert (claims["output_sha256"], claims["stderr_sha256"], claims["memory_refused"]) == (None, None, False)
    assert claims["limits"] == {"fuel": 10**7, "memory_bytes": 2**28, "timeout_ms": 10_000, "output_bytes": 2**20}
    assert claims["acceptance"]["accepted"] is False
    (item,) = rich.items(f"ESC#{own.escrow_id}")
    free = {
        "pk",
        "seed",
        "lease_ms",
        "expires_ms",
        "at",
        "settled_ms",
        "work_at",
        "receipt",
        "request_sha256",
        "runner",
    }
    kept = {name: value for name, value in item.items() if name not in free | {"agent_id", "module_sha256", "work"}}
    assert "to be" not in json.dumps(kept, default=str)
    assert earned(rich)[1] == PRICE - FEE, "whoever named the judge pays it"
    assert rich.ledger.standing(own.agent_id).failures == 0


def test_a_judge_costs_the_same_whatever_it_does(rich: Cloud) -> None:
    """Its price says nothing of what it read: a metered judge is refused, and compute is due for its fuel limit."""
    rich.settings = rich.settings.model_copy(
        update={"compute_run_micro": 7, "compute_per_billion_fuel_micro": 1_000_000}
    )
    agent = rich.publish(wasm("echo"))
    costs = set()
    for number, module in enumerate((saying("1"), saying("0"), LOOP, TRAP)):
        rule = judged_by(judge(rich, module, fuel=10**7))
        costs.add(run(rich, agent, acceptance=rule, task_id=f"t-{number}").judging_micro)
    assert costs == {PRICE + 7 + 10_000}
    metered = judge(rich, saying("1"), tariff={"type": "metered", "per_million_fuel": "0.001"})
    with pytest.raises(InvalidRequestError, match="flat tariff"):
        run(rich, agent, acceptance=judged_by(metered), task_id="t-9")


def test_a_judges_seed_is_drawn_and_kept(rich: Cloud) -> None:
    agent, rule = rich.publish(wasm("echo")), judged_by(judge(rich, saying("1")))
    run(rich, agent, acceptance=rule)
    run(rich, agent, acceptance=rule, task_id="t-2")
    seeds = [stated(rich, result.read(rich, Caller("alice"), f"{task}:judge-task"))["seed"] for task in ("t-1", "t-2")]  # type: ignore[arg-type]
    eid = of_judge(rich).escrow_id
    assert len({*seeds, escrows.task_seed(eid).hex()}) == 3


def test_an_agent_takes_no_task_with_a_judge_unless_it_consents(rich: Cloud) -> None:
    agent, rule = rich.publish(wasm("echo"), task_judges=None), judged_by(judge(rich, saying("1")))
    with pytest.raises(InvalidRequestError, match="takes no tasks that bring a judge"):
        run(rich, agent, acceptance=rule)
    assert not rich.items("ESC#")
    assert agents.describe(rich, agent).task_judges is None


@pytest.mark.parametrize(("share", "paid"), [("0", 0), ("0.25", 2_500), ("1", 10_000)])
def test_the_agreed_share_is_paid_when_the_payers_judge_rejects(rich: Cloud, share: str, paid: int) -> None:
    rule = judged_by(judge(rich, saying("0")))
    agent = rich.publish(wasm("echo"), task_judges={"rejected_share": share})
    done = run(rich, agent, acceptance=rule)
    commission = paid * 250 // 10_000
    assert (done.escrow_status, done.output) == ("refunded", None)
    assert (done.amount_paid_micro, done.fee_micro) == (paid - commission, commission)
    assert stated(rich, done)["task_judge_bps"] == int(float(share) * 10_000)
    assert earned(rich) == (paid - commission, PRICE - FEE, FEE + commission)


def test_a_task_may_cap_what_judging_costs(rich: Cloud) -> None:
    agent, rule = rich.publish(wasm("echo")), judged_by(judge(rich, saying("1")))
    with pytest.raises(JudgingTooDearError) as dear:
        run(rich, agent, acceptance=rule, max_judging="0.049999")
    assert dear.value.members["judging"] == "0.05"
    assert run(rich, agent, acceptance=rule, max_judging="0.05").success
    own = rich.publish(wasm("echo"), acceptance=rule)
    assert run(rich, own, max_judging="0", task_id="t-2").success, "the agent's own judge costs the payer nothing"


def test_a_judge_that_loops_ends_with_its_own_time(rich: Cloud) -> None:
    done = run(rich, rich.publish(wasm("echo")), acceptance=judged_by(judge(rich, LOOP, timeout=1)))
    assert done.error is not None
    assert done.error.code == "rejected"


def test_a_judge_is_asked_only_about_what_is_good_so_far(rich: Cloud) -> None:
    """After a failure, after other rules, after another judge: who is not asked is not paid, nor blamed."""
    strict, kind = judge(rich, saying("0.1")), judge(rich, saying("0.9"))
    failing = run(rich, rich.publish(wasm("failing")), acceptance=judged_by(kind))
    assert failing.error is not None
    assert (failing.error.code, failing.judges[0].score, failing.judging_micro) == ("exit_code", None, 0)
    assert (of_judge(rich).escrow_status, of_judge(rich).reputation_delta) == ("refunded", 0)
    assert of_judge(rich).error.code == "not_needed"  # type: ignore[union-attr]
    short = run(rich, rich.publish(wasm("echo")), task_id="t-2", acceptance=judged_by(kind) | {"max_bytes": 1})
    assert short.error is not None
    assert short.error.code == "rejected"
    agent = rich.publish(wasm("echo"), acceptance=judged_by(strict))
    both = run(rich, agent, task_id="t-3", acceptance=judged_by(kind))
    assert [found.cost_micro for found in both.judges] == [PRICE, 0]
    assert stated(rich, both)["acceptance"]["rejected_by"] == "agent_judge"
    assert rich.ledger.available_micro("alice") == START
    assert earned(rich) == (0, PRICE - FEE, FEE)
    assert bond(rich) == -PRICE, "only the strict one was asked"


def test_two_judges_are_paid_each_by_its_side(rich: Cloud) -> None:
    first, second = judge(rich, saying("0.7")), judge(rich, saying("0.8"))
    done = run(rich, rich.publish(wasm("echo"), acceptance=judged_by(first)), acceptance=judged_by(second, "0.8"))
    assert done.success
    assert [(found.side, found.score) for found in done.judges] == [("agent", "0.7"), ("task", "0.8")]
    assert done.amount_paid_micro + done.fee_micro + done.amount_refunded_micro + HELD == 500_000
    owner, judith, platform = earned(rich)
    assert (judith, platform) == (2 * (PRICE - FEE), 3 * FEE)
    assert owner + bond(rich) == PRICE - FEE - PRICE


def test_a_judge_cannot_carry_out_what_is_not_paid_for(rich: Cloud) -> None:
    """Its log is not kept: a judge of the payer's own would write the output into it and score nothing."""
    spy = judge(rich, saying("0", log="the output was: to be or not"))
    done = run(rich, rich.publish(wasm("echo")), acceptance=judged_by(spy))
    assert not done.success
    assert of_judge(rich).log is None
    assert stated(rich, of_judge(rich))["stderr_sha256"] is None
    assert "to be" not in json.dumps([rich.items("ESC#"), of_judge(rich).model_dump_json()], default=str)


@pytest.mark.parametrize("side", ["agent", "task"])
def test_a_judge_that_the_platform_cannot_run_costs_nobody(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    rule = judged_by(judge(rich, saying("1")))
    agent = rich.publish(wasm("echo"), acceptance=rule if side == "agent" else None)
    honest = rich.sandbox.run

    def lost(job: Job) -> Run:
        if b"output" in job.stdin:
            return Run(Outcome.WORKER_LOST, "The worker was lost.", Meter())
        return honest(job)

    monkeypatch.setattr(rich.sandbox, "run", lost)
    done = run(rich, agent, acceptance=rule if side == "task" else None)
    assert done.error is not None
    assert (done.error.code, done.fault, done.reputation_delta) == ("worker_lost", "platform", 0)
    assert rich.ledger.available_micro("alice") == START
    assert earned(rich) == (0, 0, 0)
    assert bond(rich) == 0


@pytest.mark.parametrize("said", ["1", "0", "splendid"])
def test_a_platform_failure_shows_nothing_of_the_judge(rich: Cloud, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """Seen before: meter, verdict and digest of what the judge read, of an output that nobody had paid for."""
    agent = rich.publish(saying("x", log="l" * 2_000))
    rule = judged_by(judge(rich, saying(said)))

    def full(**_: Any) -> Any:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(rich._s3, "put_object", full)
        done = run(rich, agent, acceptance=rule)
    assert (done.fault, stated(rich, done)["outcome"]) == ("platform", "storage_down")
    own = of_judge(rich)
    claims = stated(rich, own)
    assert (claims["outcome"], own.amount_refunded_micro) == ("storage_down", HELD)
    assert set(claims["meter"].values()) == {0, True}
    assert (claims["input_sha256"], claims["limits"]) == (sha256(b"").hexdigest(), None)
    assert claims["acceptance"]["rejected_by"] is None
    assert earned(rich) == (0, 0, 0)


def test_judges_standings_come_from_their_own_receipts(rich: Cloud) -> None:
    good, bad = judge(rich, saying("1")), judge(rich, saying("no"))
    agent = rich.publish(wasm("echo"))
    run(rich, agent, acceptance=judged_by(good))
    run(rich, agent, task_id="t-2", acceptance=judged_by(bad))
    earned(rich)
    assert rich.ledger.standing(good).reference_tenths == 525
    assert rich.ledger.standing(bad).reference_tenths == 500, "a withheld judgement says nothing"
    assert (rich.ledger.standing(agent).successes, rich.ledger.standing(agent).failures) == (1, 0)


def test_a_statement_has_a_line_for_each_and_can_be_read_page_by_page(rich: Cloud) -> None:
    run(rich, rich.publish(wasm("echo")), acceptance=judged_by(judge(rich, saying("1"))))
    lines, after = [], None
    while True:
        page = accounts.statement(rich, Caller("alice"), limit=1, after=after)
        lines += page.lines
        if (after := page.next) is None:
            break
    assert {line.id: line.amount_micro for line in lines} == {
        "t-1": -PRICE, "t-1:judge-task": -PRICE, f"start-{START}": START,
    }  # fmt: skip


def test_a_judges_result_is_read_by_whom_it_concerns(rich: Cloud) -> None:
    rule = judged_by(judge(rich, saying("1")))
    run(rich, rich.publish(wasm("echo"), acceptance=rule))
    for caller in ("owner", "judith"):
        seen = result.read(rich, Caller(caller), "t-1:judge-agent", user="alice")
        assert isinstance(seen, TaskResult)
        assert (seen.success, seen.output) == (True, None)
    assert of_judge(rich, "agent").output == "1"
    for caller, task, user in (("mallory", "t-1:judge-agent", "alice"), ("alice", "t-1:judge-task", None)):
        with pytest.raises(NotFoundError):
            result.read(rich, Caller(caller), task, user=user)


# Refusals: nothing is held.


METERED = {"type": "metered", "base": "0.01"}


def slow(cloud: Cloud) -> str:
    return judge(cloud, saying("1"), timeout=JUDGE_TIMEOUT_S_MAX + 1)


def judged_judge(cloud: Cloud) -> str:
    return judge(cloud, saying("1"), acceptance=judged_by(judge(cloud, saying("1"))))


REFUSED: list[tuple[Callable[[Cloud], str], str, str, str]] = [
    (lambda _: "agt_none", "0.05", "acceptance.judge.agent_id", "must be an agent"),
    (lambda cloud: judge(cloud, saying("1")), "0.009999", "acceptance.judge.budget", "at least 0.01"),
    (lambda cloud: judge(cloud, saying("1"), tariff=METERED), "0.05", "acceptance.judge.agent_id", "flat tariff"),
    (slow, "0.05", "acceptance.judge.agent_id", "at most 10 seconds"),
    (judged_judge, "0.05", "acceptance.judge.agent_id", "no judge itself"),
]


@pytest.mark.parametrize(("make", "budget", "field", "words"), REFUSED)
def test_who_cannot_judge_is_refused(
    rich: Cloud, make: Callable[[Cloud], str], budget: str, field: str, words: str
) -> None:
    rule = judged_by(make(rich), budget=budget)
    with pytest.raises(InvalidRequestError) as refused:
        run(rich, rich.publish(wasm("echo")), acceptance=rule)
    (error,) = refused.value.members["errors"]  # type: ignore[misc, attr-defined]
    assert error["field"] == field
    assert words in error["message"]
    agent = AgentRequest.model_validate({"name": "a", "tariff": FLAT, "acceptance": rule})
    with pytest.raises(InvalidRequestError) as unpublished:
        agents.register(rich, Caller("owner"), agent)
    assert unpublished.value.members == refused.value.members
    assert not rich.items("ESC#")
    assert rich.ledger.available_micro("alice") == START


def test_a_budget_must_pay_agent_and_judges(rich: Cloud) -> None:
    agent, rule = rich.publish(wasm("echo")), judged_by(judge(rich, saying("1")))
    with pytest.raises(BudgetTooLowError) as low:
        run(rich, agent, budget="0.059999", acceptance=rule)
    assert low.value.members["least_price"] == "0.06"
    assert run(rich, agent, budget="0.06", acceptance=rule).success
    own = agents.estimate(rich, rich.publish(wasm("echo"), acceptance=rule))
    assert (own.least_price_micro, own.judging_micro) == (PRICE, HELD), "the owner pays the agent's own judge"


def test_a_balance_must_cover_agent_and_judges(cloud: Cloud) -> None:
    cloud.deposit("alice", 59_999)
    agent, rule = cloud.publish(wasm("echo")), judged_by(judge(cloud, saying("1")))
    with pytest.raises(InsufficientFundsError) as poor:
        run(cloud, agent, budget="0.06", acceptance=rule)
    assert poor.value.members == {"available": "0.059999", "required": "0.06"}
    assert not cloud.items("ESC#")


def test_judges_take_from_the_time_that_a_caller_waits(rich: Cloud) -> None:
    agent, rule = rich.publish(wasm("echo"), timeout=25), judged_by(judge(rich, saying("1"), timeout=4))
    with pytest.raises(TimeoutTooLongError) as long:
        run(rich, agent, timeout=TIMEOUT_S_SYNC_MAX - 3, acceptance=rule)
    assert "at most 21" in long.value.members["errors"][0]["message"]  # type: ignore[index]
    done = run(rich, agent, acceptance=rule)
    assert stated(rich, done)["limits"]["timeout_ms"] == 21_000


def test_an_agent_whose_bond_cannot_pay_its_judge_takes_no_tasks(cloud: Cloud) -> None:
    cloud.deposit("alice", START)
    cloud.bond("owner", HELD - 1)
    agent = cloud.publish(wasm("echo"), acceptance=judged_by(judge(cloud, saying("1"))))
    with pytest.raises(BondTooLowError) as refused:
        run(cloud, agent)
    assert refused.value.members["state"] == "bond_too_low"
    assert not cloud.items("ESC#")
    cloud.bond("owner", 1)
    assert run(cloud, agent).success


def test_an_agent_without_its_judge_takes_no_tasks(rich: Cloud) -> None:
    own = judge(rich, saying("1"))
    agent = rich.publish(wasm("echo"), acceptance=judged_by(own))
    assert run(rich, agent).success
    agents.retire(rich, Caller("judith"), own)
    rich.registry._cache.clear()
    with pytest.raises(AgentNotReadyError):
        run(rich, agent, task_id="t-2")
    assert run(rich, agent).success, "what is settled is answered"


# Crashes.


class _CrashedError(Exception):
    """The runner died here."""


def crash(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch, agent: str, rule: dict[str, Any] | None, *, after: bool
) -> None:
    """A runner dies before the write that settles the task and its judge, or after it."""
    honest = rich.ledger.settle

    def settle(*settled: Escrow) -> Escrow:
        if after:
            honest(*settled)
        raise _CrashedError

    with monkeypatch.context() as patch:
        patch.setattr(rich.ledger, "settle", settle)
        with pytest.raises(_CrashedError):
            run(rich, agent, acceptance=rule)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("said", ["0.9", "0.1"])
def test_whoever_takes_over_pays_the_judge_once_and_comes_to_the_same(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch, said: str, after: bool
) -> None:
    agent, rule = rich.publish(wasm("echo")), judged_by(judge(rich, saying(said)))
    crash(rich, monkeypatch, agent, rule, after=after)
    if not after:
        with pytest.raises(TaskInProgressError):
            run(rich, agent, acceptance=rule)
    rich.skew_ms = 60_000
    done = run(rich, agent, acceptance=rule)
    assert (done.success, done.judges[0].cost_micro) == (said == "0.9", PRICE)
    assert earned(rich) == ((PRICE - FEE) * done.success, PRICE - FEE, FEE * (1 + done.success))


def test_a_task_of_before_whose_payer_holds_both_judges_is_taken_over(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's judge was then paid by the task's payer: no bond has paid for it, so none gets it back."""
    rule = judged_by(judge(rich, saying("1")))
    agent = rich.publish(wasm("echo"), acceptance=rule)
    with monkeypatch.context() as patch:
        patch.setattr(
            escrows, "judge_account", lambda task, side: (task.payer, escrows.judge_task_id(task.task_id, side))
        )
        patch.setattr(
            ledger,
            "_judges_json",
            lambda hires: json.dumps([[h.side, h.agent_id, h.budget_micro] for h in hires]) if hires else None,
        )
        crash(rich, patch, agent, None, after=False)
    rich.skew_ms = 60_000
    done = run(rich, agent)
    assert done.success
    assert rich.ledger.available_micro("alice") == START - 2 * PRICE
    owner, judith, _ = earned(rich)
    assert (owner, judith, bond(rich)) == (PRICE - FEE, PRICE - FEE, 0)
    assert not audit.run(rich).differences


@pytest.mark.parametrize("side", ["agent", "task"])
def test_if_nobody_takes_over_everything_comes_back(rich: Cloud, monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    rule = judged_by(judge(rich, saying("0.9")))
    agent = rich.publish(wasm("echo"), acceptance=rule if side == "agent" else None)
    crash(rich, monkeypatch, agent, rule if side == "task" else None, after=False)  # type: ignore[arg-type]
    rich.skew_ms = 300_000
    assert sweep(rich).expired == 2
    assert rich.ledger.available_micro("alice") == START
    assert earned(rich) == (0, 0, 0)
    assert bond(rich) == 0


def test_an_unknown_settlement_leaves_the_task_open(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, rule = rich.publish(wasm("echo")), judged_by(judge(rich, saying("0.9")))

    def lost(*_: Escrow) -> Escrow:
        raise PlatformUnavailableError

    with monkeypatch.context() as patch:
        patch.setattr(rich.ledger, "settle", lost)
        assert isinstance(execute.execute(rich, "alice", ask(agent, acceptance=rule)), TaskPending)
    rich.skew_ms = 60_000
    assert run(rich, agent, acceptance=rule).success
    assert earned(rich) == (PRICE - FEE, PRICE - FEE, 2 * FEE)


def test_a_judge_of_a_new_version_cannot_take_the_old_ones_place(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    own = judge(rich, saying("0.9"))
    agent, rule = rich.publish(wasm("echo")), judged_by(own)
    crash(rich, monkeypatch, agent, rule, after=False)
    agents.open_version(rich, Caller("judith"), own, publish.VersionRequest())
    rich.post(own, 2, saying("0.8"))
    publish.publish(rich, f"uploads/{own}/2")
    rich.skew_ms = 60_000
    done = run(rich, agent, acceptance=rule)
    assert done.error is not None
    assert done.error.code == "superseded"
    assert rich.ledger.available_micro("alice") == START
    assert earned(rich) == (0, 0, 0)


# What anyone can check.


def check(folder: Path, capsys: pytest.CaptureFixture[str], done: TaskResult, **files: bytes) -> tuple[int, Any]:
    words = []
    for name, content in ({"receipt": done.receipt.encode()} | files).items():
        (folder / name).write_bytes(content)
        words += [str(folder / name)] if name == "receipt" else [f"--{name.replace('_', '-')}", str(folder / name)]
    status = verify.main([*words, "--replay", "--json"])
    told = json.loads(capsys.readouterr().out)["checks"]
    return status, {found["name"]: (found["verdict"], found["sentence"]) for found in told}


def test_the_verifier_follows_the_agents_own_judge(
    rich: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = judged_by(judge(rich, wasm("coverage")))
    done = run(rich, rich.publish(wasm("echo"), acceptance=rule))
    files = {"keys": json.dumps(rich.keys.jwks()).encode(), "module": wasm("echo"), "input": b"to be or not"}
    files |= {"output": b"to be or not", "agent_rules": json.dumps(rule).encode()}
    own = of_judge(rich, "agent")
    status, told = check(tmp_path, capsys, done, **files, agent_judge=own.receipt.encode())
    assert (status, told["agent judge"][0]) == (0, "passed")


def test_the_verifier_follows_a_score_to_its_judge(
    rich: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = judged_by(judge(rich, wasm("coverage")))
    done = run(rich, rich.publish(wasm("echo")), acceptance=rule)
    given, own = b"to be or not", of_judge(rich)
    keys = json.dumps(rich.keys.jwks()).encode()
    files = {"keys": keys, "module": wasm("echo"), "input": given, "output": given}
    rules = {"task_rules": json.dumps(rule).encode()}
    status, told = check(tmp_path, capsys, done, **files, **rules, task_judge=own.receipt.encode())
    assert status == 0
    assert [told[name][0] for name in ("task rules", "acceptance", "task judge", "replay")] == ["passed"] * 4
    status, told = check(tmp_path, capsys, done, **files, **rules)
    assert (status, told["task judge"][0]) == (0, "not done")
    mine = {"keys": keys, "module": wasm("coverage"), "input": judge_input(given, given), "output": b"1.000000\n"}
    status, told = check(tmp_path, capsys, own, **mine, task_rules=rules_json(SCORE_RULES).encode())
    assert (status, told["replay"][0], told["acceptance"][0]) == (0, "passed", "passed")

    status, told = check(tmp_path, capsys, done, **files, task_judge=done.receipt.encode())
    assert (status, told["task judge"][0]) == (7, "failed")
    status, told = check(tmp_path, capsys, done, **files, agent_judge=own.receipt.encode())
    assert (status, "user of the judge's receipt" in told["agent judge"][1]) == (7, True)
    other = files | {"input": b"to be"}
    status, told = check(tmp_path, capsys, done, **other, task_judge=own.receipt.encode())
    assert (status, "input of the task's judge" in told["task judge"][1]) == (8, True)
    milder = {"task_rules": json.dumps(rule | {"min_bytes": 1}).encode()}
    assert check(tmp_path, capsys, done, **files, **milder)[0] == 8
