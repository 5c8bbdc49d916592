"""Judges on a whole platform: who is paid, who is refunded and who is blamed, whatever a judge says or does not say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm

from quittance import accounts, judging, publishing, receipt, tasks, verifier
from quittance.acceptance import SCORE_RULES, judge_input, rules_json
from quittance.errors import (
    AgentNotReadyError,
    BudgetTooLowError,
    InsufficientFundsError,
    InvalidRequestError,
    PlatformUnavailableError,
    TaskInProgressError,
    TimeoutTooLongError,
)
from quittance.escrow import Escrow, Settlement, escrow_id, is_judge
from quittance.limits import JUDGE_TIMEOUT_S_MAX, TIMEOUT_S_SYNC_MAX
from quittance.models import AgentRequest, TaskPending, TaskRequest, TaskResult
from quittance.sweeping import sweep
from tests.sandbox.wat import iovecs, memory
from tests.support import FLAT, Cloud, wasm

START = 10_000_000
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


LOOP = bytes(wat2wasm('(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))'))
TRAP = bytes(wat2wasm('(module (memory (export "memory") 1) (func (export "_start") unreachable))'))


@pytest.fixture
def rich(cloud: Cloud) -> Cloud:
    cloud.deposit("alice", START)
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
    done = tasks.execute(cloud, "alice", ask(agent_id, **changes))
    assert isinstance(done, TaskResult)
    return done


def of_judge(cloud: Cloud, side: str = "task") -> TaskResult:
    done = tasks.result(cloud, "alice", f"t-1:judge-{side}")
    assert isinstance(done, TaskResult)
    return done


def stated(cloud: Cloud, done: TaskResult) -> Any:
    return receipt.verify(done.receipt, cloud.keys.jwks())


def earned(cloud: Cloud) -> tuple[int, int, int]:
    """What owner, judge's owner and platform have after the sweep; everything adds up."""
    while (swept := sweep(cloud)).credited or swept.logged:
        pass
    assert cloud.total_micro() == START
    return tuple(cloud.ledger.available_micro(name) for name in ("owner", "judith", "quittance:platform"))  # type: ignore[return-value]


def test_an_output_that_contents_its_judge_is_paid_for_and_so_is_the_judge(rich: Cloud) -> None:
    agent, coverage = rich.publish(wasm("echo")), judge(rich, wasm("coverage"))
    done = run(rich, agent, acceptance=judged_by(coverage))
    assert (done.success, done.output, done.amount_refunded_micro) == (True, "to be or not", 500_000 - HELD - PRICE)
    (named,) = done.judges
    assert (named.side, named.agent_id, named.task_id, named.budget_micro, named.score) == (
        "task", coverage, "t-1:judge-task", HELD, "1",
    )  # fmt: skip
    own = of_judge(rich)
    assert (own.output, own.amount_paid_micro + own.fee_micro, own.amount_refunded_micro) == (
        "1.000000\n", PRICE, HELD - PRICE,
    )  # fmt: skip
    assert rich.ledger.available_micro("alice") == START - 2 * PRICE
    assert earned(rich) == (PRICE - FEE, PRICE - FEE, 2 * FEE)
    rules = stated(rich, done)["acceptance"]
    assert (rules["task_score"], rules["agent_score"], rules["accepted"]) == ("1", None, True)
    assert run(rich, agent, acceptance=judged_by(coverage)) == done == tasks.result(rich, "alice", "t-1")
    assert rich.ledger.available_micro("alice") == START - 2 * PRICE, "a repeat costs nothing"


@pytest.mark.parametrize("side", ["agent", "task"])
@pytest.mark.parametrize(("said", "accepted"), [("0.5", True), ("0.499999", False), ("0", False), ("1e0", True)])
def test_the_threshold_decides_whoever_has_set_it(rich: Cloud, side: str, said: str, accepted: bool) -> None:
    rule = judged_by(judge(rich, saying(said)))
    agent = rich.publish(wasm("echo"), acceptance=rule if side == "agent" else None)
    done = run(rich, agent, acceptance=rule if side == "task" else None)
    assert (done.success, done.reputation_delta) == (accepted, 25 if accepted else -50)
    score = {"1e0": "1"}.get(said, said)
    assert (done.judges[0].side, done.judges[0].score) == (side, score)
    assert stated(rich, done)["acceptance"][f"{side}_score"] == score
    if not accepted:
        assert done.error is not None
        assert (done.error.code, done.output) == ("rejected", None)
        assert done.error.message.endswith(f"of the {side}'s rules gave the output {said}; it needs 0.5.")
    assert of_judge(rich, side).success, "a judge is paid for its work, not for its opinion"
    assert earned(rich) == ((PRICE - FEE) * accepted, PRICE - FEE, FEE * (1 + accepted))


@pytest.mark.parametrize(
    ("module", "code", "fault"),
    [
        (saying("splendid"), "rejected", -50),
        (saying("1.1"), "rejected", -50),
        (saying("-0.1"), "rejected", -50),
        (saying("0.9 0.9"), "rejected", -50),
        (saying(""), "rejected", -50),
        (wasm("echo"), "rejected", -50),
        (TRAP, "trap_unreachable", -50),
        (LOOP, "fuel_exhausted", -50),
    ],
)
def test_a_judge_that_gives_no_score_is_not_paid_and_the_agent_is_not_blamed(
    rich: Cloud, module: bytes, code: str, fault: int
) -> None:
    agent = rich.publish(wasm("echo"))
    done = run(rich, agent, acceptance=judged_by(judge(rich, module, fuel=10**7)))
    assert done.error is not None
    assert (done.error.code, done.escrow_status, done.reputation_delta) == ("judge_failed", "refunded", 0)
    assert done.judges[0].score is stated(rich, done)["acceptance"]["task_score"] is None
    own = of_judge(rich)
    assert own.error is not None
    assert (own.error.code, own.escrow_status, own.reputation_delta) == (code, "refunded", fault)
    assert rich.ledger.available_micro("alice") == START
    assert earned(rich) == (0, 0, 0)


def test_a_judge_that_loops_ends_with_its_own_time(rich: Cloud) -> None:
    done = run(rich, rich.publish(wasm("echo")), acceptance=judged_by(judge(rich, LOOP, timeout=1)))
    assert done.error is not None
    assert done.error.code == "judge_failed"
    own = of_judge(rich)
    assert own.error is not None
    assert own.error.code == "timeout"


def test_a_judge_is_asked_only_about_what_is_good_so_far(rich: Cloud) -> None:
    """After a failure, after other rules, after another judge: who is not asked is not paid, nor blamed."""
    strict, kind = judge(rich, saying("0.1")), judge(rich, saying("0.9"))
    failing = run(rich, rich.publish(wasm("failing")), acceptance=judged_by(kind))
    assert failing.error is not None
    assert (failing.error.code, failing.judges[0].score) == ("exit_code", None)
    assert (of_judge(rich).escrow_status, of_judge(rich).reputation_delta) == ("refunded", 0)
    assert of_judge(rich).error.code == "not_needed"  # type: ignore[union-attr]
    short = run(rich, rich.publish(wasm("echo")), task_id="t-2", acceptance=judged_by(kind) | {"max_bytes": 1})
    assert short.error is not None
    assert short.error.code == "rejected"
    agent = rich.publish(wasm("echo"), acceptance=judged_by(strict))
    both = run(rich, agent, task_id="t-3", acceptance=judged_by(kind))
    assert [found.score for found in both.judges] == ["0.1", None]
    assert rich.ledger.available_micro("alice") == START - PRICE, "only the strict one was asked"
    assert earned(rich) == (0, PRICE - FEE, FEE)


def test_two_judges_are_paid_beside_the_agent(rich: Cloud) -> None:
    first, second = judge(rich, saying("0.7")), judge(rich, saying("0.8"))
    done = run(rich, rich.publish(wasm("echo"), acceptance=judged_by(first)), acceptance=judged_by(second, "0.8"))
    assert done.success
    assert [(found.side, found.score) for found in done.judges] == [("agent", "0.7"), ("task", "0.8")]
    parts = done.amount_paid_micro + done.fee_micro + done.amount_refunded_micro
    assert parts + sum(found.budget_micro for found in done.judges) == 500_000
    assert earned(rich) == (PRICE - FEE, 2 * (PRICE - FEE), 3 * FEE)


def test_a_judge_cannot_carry_an_output_that_is_not_paid_for(rich: Cloud) -> None:
    """Its log is not kept: a judge of the payer's own would write the output into it and score nothing."""
    spy = judge(rich, saying("0", log="the output was: to be or not"))
    done = run(rich, rich.publish(wasm("echo")), acceptance=judged_by(spy))
    assert not done.success
    assert of_judge(rich).log is None
    assert stated(rich, of_judge(rich))["stderr_sha256"] is None
    assert "to be" not in json.dumps([rich.items("ESC#"), of_judge(rich).model_dump_json()], default=str)


def test_judges_standings_come_from_their_own_receipts(rich: Cloud) -> None:
    good, bad = judge(rich, saying("1")), judge(rich, saying("no"))
    agent = rich.publish(wasm("echo"))
    run(rich, agent, acceptance=judged_by(good))
    run(rich, agent, task_id="t-2", acceptance=judged_by(bad))
    earned(rich)
    assert rich.ledger.standing(good).reference_tenths == 525
    assert rich.ledger.standing(bad).reference_tenths == 450
    assert (rich.ledger.standing(agent).successes, rich.ledger.standing(agent).failures) == (1, 0)


def test_a_statement_has_a_line_for_each_and_can_be_read_page_by_page(rich: Cloud) -> None:
    run(rich, rich.publish(wasm("echo")), acceptance=judged_by(judge(rich, saying("1"))))
    lines, after = [], None
    while True:
        page = accounts.statement(rich, "alice", limit=1, after=after)
        lines += page.lines
        if (after := page.next) is None:
            break
    assert {line.id: line.amount_micro for line in lines} == {
        "t-1": -PRICE, "t-1:judge-task": -PRICE, f"start-{START}": START,
    }  # fmt: skip


# Refusals: nothing is held.


def slow(cloud: Cloud) -> str:
    return judge(cloud, saying("1"), timeout=JUDGE_TIMEOUT_S_MAX + 1)


def judged_judge(cloud: Cloud) -> str:
    return judge(cloud, saying("1"), acceptance=judged_by(judge(cloud, saying("1"))))


REFUSED: list[tuple[Callable[[Cloud], str], str, str, str]] = [
    (lambda _: "agt_none", "0.05", "acceptance.judge.agent_id", "must be an agent"),
    (lambda cloud: judge(cloud, saying("1")), "0.009999", "acceptance.judge.budget", "at least 0.01"),
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
        publishing.register(rich, "owner", agent)
    assert unpublished.value.members == refused.value.members
    assert not rich.items("ESC#")
    assert rich.ledger.available_micro("alice") == START


def test_a_budget_must_pay_agent_and_judges(rich: Cloud) -> None:
    agent, rule = rich.publish(wasm("echo")), judged_by(judge(rich, saying("1")))
    with pytest.raises(BudgetTooLowError) as low:
        run(rich, agent, budget="0.059999", acceptance=rule)
    assert low.value.members["least_price"] == "0.06"
    assert run(rich, agent, budget="0.06", acceptance=rule).success
    judged = rich.publish(wasm("echo"), acceptance=rule)
    assert publishing.estimate(rich, judged).least_price_micro == HELD + PRICE


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


def test_an_agent_without_its_judge_takes_no_tasks(rich: Cloud) -> None:
    own = judge(rich, saying("1"))
    agent = rich.publish(wasm("echo"), acceptance=judged_by(own))
    assert run(rich, agent).success
    publishing.retire(rich, "judith", own)
    rich.registry._cache.clear()
    with pytest.raises(AgentNotReadyError):
        run(rich, agent, task_id="t-2")
    assert run(rich, agent).success, "what is settled is answered"


# Crashes.


class _CrashedError(Exception):
    """The runner died here."""


def crash_at(rich: Cloud, call: int, monkeypatch: pytest.MonkeyPatch, agent: str, rule: dict[str, Any]) -> None:
    """A runner dies before its n-th settling write: the judge's is the first, the task's the second."""
    honest, calls = rich.ledger.settle, iter(range(1, 9))

    def settle(escrow: Escrow, settlement: Settlement) -> Escrow:
        if next(calls) == call:
            raise _CrashedError
        return honest(escrow, settlement)

    with monkeypatch.context() as patch:
        patch.setattr(rich.ledger, "settle", settle)
        with pytest.raises(_CrashedError):
            run(rich, agent, acceptance=rule)


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("said", ["0.9", "0.1"])
def test_whoever_takes_over_pays_the_judge_once_and_comes_to_the_same(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch, call: int, said: str
) -> None:
    agent, rule = rich.publish(wasm("echo")), judged_by(judge(rich, saying(said)))
    crash_at(rich, call, monkeypatch, agent, rule)
    with pytest.raises(TaskInProgressError):
        run(rich, agent, acceptance=rule)
    rich.skew_ms = 60_000
    done = run(rich, agent, acceptance=rule)
    assert (done.success, done.judges[0].score) == (said == "0.9", said)
    assert earned(rich) == ((PRICE - FEE) * done.success, PRICE - FEE, FEE * (1 + done.success))


@pytest.mark.parametrize("call", [1, 2])
def test_if_nobody_takes_over_everything_comes_back(rich: Cloud, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    agent, rule = rich.publish(wasm("echo")), judged_by(judge(rich, saying("0.9")))
    crash_at(rich, call, monkeypatch, agent, rule)
    rich.skew_ms = 300_000
    judged = PRICE if call == 2 else 0  # the judge had done its work
    assert sweep(rich).expired == 3 - call
    assert rich.ledger.available_micro("alice") == START - judged
    assert earned(rich)[:2] == (0, judged and PRICE - FEE)


def test_an_unknown_payment_of_the_judge_leaves_the_task_open(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, rule = rich.publish(wasm("echo")), judged_by(judge(rich, saying("0.9")))
    with monkeypatch.context() as patch:
        honest = rich.ledger.settle

        def lost(escrow: Escrow, settlement: Settlement) -> Escrow:
            if is_judge(escrow):
                raise PlatformUnavailableError
            return honest(escrow, settlement)

        patch.setattr(rich.ledger, "settle", lost)
        assert isinstance(tasks.execute(rich, "alice", ask(agent, acceptance=rule)), TaskPending)
    rich.skew_ms = 60_000
    assert run(rich, agent, acceptance=rule).success
    assert earned(rich) == (PRICE - FEE, PRICE - FEE, 2 * FEE)


def test_a_score_counts_for_what_was_read_alone(rich: Cloud) -> None:
    """A judge that was paid before a crash has read what the output was then; for another one it has no score."""
    run(rich, rich.publish(wasm("echo")), acceptance=judged_by(judge(rich, saying("1"))))
    standing = rich.ledger.find(escrow_id("alice", "t-1:judge-task"))
    assert standing is not None
    assert judging.score_micro(standing, judge_input(b"to be or not", b"to be or not")) == 1_000_000
    assert judging.score_micro(standing, judge_input(b"to be or not", b"to be")) is None


def test_a_judge_of_a_new_version_cannot_take_the_old_ones_place(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    own = judge(rich, saying("0.9"))
    agent, rule = rich.publish(wasm("echo")), judged_by(own)
    crash_at(rich, 1, monkeypatch, agent, rule)
    publishing.open_version(rich, "judith", own, publishing.VersionRequest())
    rich.post(own, 2, saying("0.8"))
    publishing.publish(rich, f"uploads/{own}/2")
    rich.skew_ms = 60_000
    done = run(rich, agent, acceptance=rule)
    assert done.error is not None
    assert done.error.code == "judge_failed"
    assert rich.ledger.available_micro("alice") == START
    assert earned(rich) == (0, 0, 0)


# What anyone can check.


def check(folder: Path, capsys: pytest.CaptureFixture[str], done: TaskResult, **files: bytes) -> tuple[int, Any]:
    words = []
    for name, content in ({"receipt": done.receipt.encode()} | files).items():
        (folder / name).write_bytes(content)
        words += [str(folder / name)] if name == "receipt" else [f"--{name.replace('_', '-')}", str(folder / name)]
    status = verifier.main([*words, "--replay", "--json"])
    told = json.loads(capsys.readouterr().out)["checks"]
    return status, {found["name"]: (found["verdict"], found["sentence"]) for found in told}


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
    assert (status, "task of the judge's receipt" in told["agent judge"][1]) == (7, True)
    other = files | {"input": b"to be"}
    status, told = check(tmp_path, capsys, done, **other, task_judge=own.receipt.encode())
    assert (status, "input of the task's judge" in told["task judge"][1]) == (8, True)
    milder = {"task_rules": json.dumps(rule | {"min_bytes": 1}).encode()}
    assert check(tmp_path, capsys, done, **files, **milder)[0] == 8
