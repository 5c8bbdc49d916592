"""The receipt of any settlement verifies, and no amount or fault in it can be changed alone."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import assume, given, note
from hypothesis import strategies as st

from quittance.ledger.escrow import (
    Escrow,
    Settlement,
    StoredBytes,
    decide,
    decide_judge,
    escrow_id,
    expire,
    fault,
    held_to_budget,
)
from quittance.ledger.pricing import ComputePrices, parse_tariff, tariff_json
from quittance.proof.receipt import checks, read
from quittance.proof.statement import Flaw, ProofError, VerifiedStatement
from quittance.proof.verify import Evidence, examine
from quittance.run import Fault, Limits, Meter, Outcome, RejectedBy, Run, Side
from tests.proof import second_checker
from tests.proof.receipts import claims_of, sign
from tests.proof.roots import NOW_S, Root

ROOT = Root()
KEY = ROOT.certify()
KEYS = json.dumps(ROOT.jwks()).encode()
NOTHING_RAN = {Outcome.NOT_NEEDED, Outcome.SUPERSEDED, Outcome.EXPIRED, Outcome.UNDELIVERED}
OF_VERSION_1 = {Outcome.RULES_FAILED, Outcome.JUDGE_FAILED}
OF_TASKS = sorted(set(Outcome) - OF_VERSION_1 - {Outcome.WITHHELD})
RAN = sorted(set(OF_TASKS) - NOTHING_RAN)
REFUSED_MEMORY = [outcome for outcome in Outcome if outcome.fault is Fault.AGENT]
AGENTS_RULES, TASKS_RULES = "ab" * 32, "cd" * 32
NOW_MS = NOW_S * 1_000 + 5
IAT, EXP = NOW_S - 300, NOW_S + 12 * 60 * 60
JUDGES_TASK = "task-1:judge-task"

NewEscrow = Callable[..., Escrow]
Claims = dict[str, Any]


def why_refused(claims: Claims) -> ProofError | None:
    """Why the verifier refuses claims, None if it accepts them. The second checker must agree."""
    first: ProofError | None = None
    second: second_checker.RefusedError | None = None
    try:
        for _, check in checks(read(claims), VerifiedStatement(claims, IAT, EXP, "root-1")):
            check()
    except ProofError as error:
        first = error
    try:
        second_checker.check_claims(claims, IAT, EXP)
    except second_checker.RefusedError as error:
        second = error
    assert (first is None) == (second is None), f"the verifier: {first}; the second checker: {second}"
    return first


def stated(escrow: Escrow, settlement: Settlement, run: Run) -> Claims:
    """The claims of a settlement as they are signed."""
    if settlement.outcome is Outcome.SUCCEEDED:
        settlement = replace(settlement, output=StoredBytes("dd" * 32, run.meter.output_bytes, None))
    ran = run.limits is not None
    engine = {"engine": "e" if ran else "", "config_sha256": "ff" * 32 if ran else ""}
    plain = claims_of(escrow, settlement, issuer="i", run=run, **engine)
    return dict(json.loads(json.dumps(plain)))


# Escrows, runs and settlements.


PRICES = st.builds(ComputePrices, st.sampled_from([0, 1, 10**5]), st.sampled_from([0, 1, 40, 10**9, 10**15]))
LIMIT = st.integers(1, 100)


@st.composite
def limits(draw: st.DrawFn, under: Limits | None = None) -> Limits:
    """Limits, each at most the given one."""
    given_ = asdict(under) if under else dict.fromkeys(Limits.__slots__, 100)
    return Limits(**{name: draw(st.sampled_from([most, draw(st.integers(1, most))])) for name, most in given_.items()})


@st.composite
def escrows(draw: st.DrawFn, new_escrow: NewEscrow, **terms: Any) -> Escrow:
    """An escrow of any terms."""
    tariffs = ['{"type":"flat","price":"0.4"}', '{"type":"flat","price":"0"}', '{"type":"metered","base":"0.000001"}']
    metered = '{"type":"metered","base":"0","per_million_fuel":"1","per_mib_memory":"0.1","per_kib_output":"0.01"}'
    plain: Claims = {
        "budget_micro": draw(st.sampled_from([1, 7, 10**6, 10**12])),
        "fee_bps": draw(st.sampled_from([0, 1, 250, 10_000])),
        "task_judge_bps": draw(st.sampled_from([0, 1, 2_500, 10_000])),
        "tariff": tariff_json(parse_tariff(draw(st.sampled_from([*tariffs, metered])))),
        "compute": draw(PRICES),
        "own_limits": draw(st.none() | limits()),
        "agent_rules_sha256": draw(st.sampled_from([None, AGENTS_RULES])),
        "task_rules_sha256": draw(st.sampled_from([None, TASKS_RULES])),
    }
    return new_escrow(**(plain | terms))


@st.composite
def runs(draw: st.DrawFn, escrow: Escrow, outcomes: list[Outcome]) -> Run:
    """A run with any outcome that the sandbox and the rules can give it, within its limits."""
    named = {Side.AGENT: escrow.agent_rules_sha256, Side.TASK: escrow.task_rules_sha256}
    able = [by for by in RejectedBy if named[by.side]]
    outcome = draw(st.sampled_from([end for end in outcomes if able or end is not Outcome.REJECTED]))
    before_it = outcome.fault is Fault.PLATFORM and draw(st.booleans())
    if outcome in NOTHING_RAN or before_it:
        return Run(outcome, "", Meter(input_bytes=9) if outcome not in NOTHING_RAN else Meter())
    given_ = draw(limits(escrow.own_limits))
    meter = Meter(
        fuel=draw(st.integers(0, given_.fuel)),
        fuel_exact=draw(st.booleans()),
        cpu_ms=draw(LIMIT),
        wall_ms=given_.timeout_ms if outcome is Outcome.TIMEOUT else draw(st.integers(0, given_.timeout_ms)),
        memory_bytes=draw(st.integers(0, given_.memory_bytes)),
        input_bytes=draw(LIMIT),
        output_bytes=draw(st.integers(0, given_.output_bytes)),
    )
    lowered = escrow.own_limits is None or given_.memory_bytes < escrow.own_limits.memory_bytes
    return Run(
        outcome,
        "",
        meter,
        limits=given_,
        memory_refused=lowered and outcome in REFUSED_MEMORY and draw(st.booleans()),
        rejected_by=draw(st.sampled_from(able)) if outcome is Outcome.REJECTED else None,
        scores_micro={side: draw(st.integers(0, 10**6)) for side in Side if named[side] and draw(st.booleans())},
    )


def asked(escrow: Escrow, run: Run) -> dict[Side, bool]:
    """The sides whose judges may have run: after all other rules, the task's own after the agent's."""
    succeeded, by = run.outcome is Outcome.SUCCEEDED, run.rejected_by
    last = by if run.outcome is Outcome.REJECTED else None
    return {
        Side.AGENT: bool(escrow.agent_rules_sha256)
        and (succeeded or last in {RejectedBy.AGENT_JUDGE, RejectedBy.TASK_JUDGE}),
        Side.TASK: bool(escrow.task_rules_sha256) and (succeeded or last is RejectedBy.TASK_JUDGE),
    }


@st.composite
def of_tasks(draw: st.DrawFn, new_escrow: NewEscrow) -> tuple[Escrow, Settlement, Run]:
    """The settlement of a task. For some, the platform failed at last, when it stored the output."""
    escrow = draw(escrows(new_escrow))
    run = draw(runs(escrow, OF_TASKS))
    if run.limits and draw(st.booleans()):
        run = replace(run, outcome=Outcome.STORAGE_DOWN)
    if run.outcome is Outcome.EXPIRED:
        return escrow, expire(escrow, now_ms=escrow.expires_ms), run
    costs = {side: draw(st.sampled_from([0, 1, 10**12])) for side, was in asked(escrow, run).items() if was}
    return escrow, decide(escrow, run, now_ms=NOW_MS, judging_micro=costs), run


@st.composite
def of_judges(draw: st.DrawFn, new_escrow: NewEscrow) -> tuple[Escrow, Settlement, Run]:
    """The settlement of a judge: it ran or not, its task was released or not, or the platform failed."""
    escrow = draw(
        escrows(
            new_escrow,
            task_id=JUDGES_TASK,
            escrow_id=escrow_id("user-1", JUDGES_TASK),
            seed="12" * 32,
            agent_rules_sha256=AGENTS_RULES,
            task_rules_sha256=TASKS_RULES,
            task_judge_bps=0,
        )
    )
    end = draw(st.sampled_from(["released", "withheld", "platform", "not needed"]))
    if end == "not needed":
        run = Run(Outcome.NOT_NEEDED, "", Meter())
        return escrow, decide(escrow, run, now_ms=NOW_MS), run
    if end == "released":
        run = draw(runs(escrow, [Outcome.SUCCEEDED]))
        return escrow, decide_judge(escrow, run, now_ms=NOW_MS, released=True), run
    run = draw(runs(escrow, [outcome for outcome in RAN if outcome.fault is not Fault.PLATFORM]))
    if end == "withheld":
        read_nothing = replace(escrow, input_sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        return read_nothing, decide_judge(escrow, run, now_ms=NOW_MS, released=False), run
    failed = Run(Outcome.STORAGE_DOWN, "", Meter())
    return escrow, decide(escrow, failed, now_ms=NOW_MS), run


# Properties.


@given(data=st.data())
@pytest.mark.parametrize("kind", [of_tasks, of_judges])
def test_the_receipt_of_any_settlement_verifies(new_escrow: NewEscrow, kind: Any, data: st.DataObject) -> None:
    escrow, settlement, run = data.draw(kind(new_escrow))
    claims = stated(escrow, settlement, run)
    note(json.dumps(claims, indent=1))
    assert why_refused(claims) is None


@given(data=st.data())
@pytest.mark.parametrize("outcome", OF_TASKS)
def test_the_receipt_of_every_outcome_verifies(new_escrow: NewEscrow, outcome: Outcome, data: st.DataObject) -> None:
    escrow = data.draw(escrows(new_escrow, agent_rules_sha256=AGENTS_RULES, task_rules_sha256=TASKS_RULES))
    run = data.draw(runs(escrow, [outcome]))
    now_ms = escrow.expires_ms if outcome is Outcome.EXPIRED else NOW_MS
    expired = outcome is Outcome.EXPIRED
    settlement = expire(escrow, now_ms=now_ms) if expired else decide(escrow, run, now_ms=now_ms)
    claims = stated(escrow, settlement, run)
    assert why_refused(claims) is None
    assert (claims["fault"], claims["charge"] != "0") == (
        fault(run, escrow.own_limits),
        settlement.fault is Fault.AGENT and escrow.compute.micro(run.meter.fuel) > 0,
    )


def tariff_fault(escrow: Escrow, settlement: Settlement, run: Run) -> str:
    """Why `--tariff` refuses the receipt of a settlement; empty if it does not."""
    token = sign(stated(escrow, settlement, run), KEY)
    report = examine(Evidence(token, KEYS, tariff=escrow.tariff.encode()))
    return "; ".join(check.sentence for check in report.checks if check.flaw)


@given(data=st.data())
@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.REJECTED, Outcome.EXIT_CODE])
def test_the_price_of_a_task_follows_from_its_tariff(
    new_escrow: NewEscrow, outcome: Outcome, data: st.DataObject
) -> None:
    escrow = data.draw(escrows(new_escrow, agent_rules_sha256=AGENTS_RULES, task_rules_sha256=TASKS_RULES))
    if escrow.own_limits is None:  # funded before limits were recorded, and before judges had a share
        escrow = replace(escrow, task_judge_bps=0)
    run = data.draw(runs(escrow, [outcome]))
    held = held_to_budget(escrow, replace(run, outcome=Outcome.SUCCEEDED))
    if outcome is not Outcome.EXIT_CODE and held.outcome is Outcome.BUDGET_EXHAUSTED:
        run = replace(held, rejected_by=None)
    assert tariff_fault(escrow, decide(escrow, run, now_ms=NOW_MS), run) == ""


@given(data=st.data())
def test_the_price_of_a_judge_follows_from_its_tariff(new_escrow: NewEscrow, data: st.DataObject) -> None:
    escrow, settlement, run = data.draw(of_judges(new_escrow))
    assume('"flat"' in escrow.tariff)  # no other agent judges
    assert tariff_fault(escrow, settlement, run) == ""


# The costs that follow from another receipt, the judge's own: one receipt alone cannot prove these amounts.
ELSEWHERE = {"judging": Side.AGENT, "task_judging": Side.TASK}


@given(data=st.data())
@pytest.mark.parametrize("name", ["compute", "charge", "fault", "judging", "task_judging"])
@pytest.mark.parametrize("kind", [of_tasks, of_judges])
def test_no_amount_or_fault_can_be_changed_alone(
    new_escrow: NewEscrow, kind: Any, name: str, data: st.DataObject
) -> None:
    """Except the cost of a judge that ran: the judge's own receipt states it, and `--task-judge` compares them."""
    escrow, settlement, run = data.draw(kind(new_escrow))
    claims = stated(escrow, settlement, run)
    forged = copy.deepcopy(claims)
    if name == "fault":
        forged[name] = data.draw(st.sampled_from([other for other in Fault if other != claims[name]]))
    else:
        near = st.sampled_from([0, 1, int(claims[name]) + 1, max(0, int(claims[name]) - 1), 10**12])
        forged[name] = str(data.draw(near.filter(lambda other: str(other) != claims[name])))
    error = why_refused(forged)
    is_judges = kind is of_judges
    if name in ELSEWHERE and not is_judges and asked(escrow, run)[ELSEWHERE[name]]:
        assert error is None
    else:
        assert error
        assert error.flaw in {Flaw.AMOUNTS, Flaw.CONTRADICTION}


@pytest.mark.parametrize("by", RejectedBy)
def test_a_platform_fault_after_a_rejection_costs_nothing(new_escrow: NewEscrow, by: RejectedBy) -> None:
    """Regression: a payer paid the share of the price for a task whose output could not be stored."""
    escrow = new_escrow(
        task_judge_bps=5_000,
        agent_rules_sha256=AGENTS_RULES,
        task_rules_sha256=TASKS_RULES,
        compute=ComputePrices(9, 9),
    )
    limits_ = Limits(fuel=50, memory_bytes=60, timeout_ms=70)
    rejected = Run(Outcome.REJECTED, "", Meter(fuel=5, wall_ms=7), limits=limits_, rejected_by=by)
    run = replace(rejected, outcome=Outcome.STORAGE_DOWN)
    settlement = decide(escrow, run, now_ms=NOW_MS)
    assert settlement.split.refunded_micro == escrow.budget_micro
    assert why_refused(stated(escrow, settlement, run)) is None


def test_a_platform_fault_hides_refused_memory(new_escrow: NewEscrow) -> None:
    """Regression: such a receipt contradicted itself and could not be verified."""
    given_ = Limits(fuel=50, memory_bytes=60, timeout_ms=70)
    run = Run(Outcome.EXIT_CODE, "", Meter(fuel=5, wall_ms=7), limits=given_, memory_refused=True)
    failed = replace(run, outcome=Outcome.STORAGE_DOWN)
    claims = stated(escrow := new_escrow(), decide(escrow, failed, now_ms=NOW_MS), failed)
    assert claims["memory_refused"] is False
    assert why_refused(claims) is None


@pytest.mark.parametrize(("share_bps", "more_micro", "holds"), [(2_500, 0, True), (2_500, 1, False), (0, 1, False)])
def test_a_rejected_agent_is_paid_at_most_its_share(
    new_escrow: NewEscrow, share_bps: int, more_micro: int, holds: bool
) -> None:
    whole = '{"type":"flat","price":"1"}'  # all of the budget
    escrow = new_escrow(tariff=whole, task_rules_sha256=TASKS_RULES, task_judge_bps=share_bps, fee_bps=0)
    limits_ = Limits(fuel=50, memory_bytes=60, timeout_ms=70)
    run = Run(Outcome.REJECTED, "", Meter(wall_ms=7), limits=limits_, rejected_by=RejectedBy.TASK_JUDGE)
    claims = stated(escrow, decide(escrow, run, now_ms=NOW_MS), run)
    claims["paid"] = str(int(claims["paid"]) + more_micro)
    claims["refunded"] = str(int(claims["refunded"]) - more_micro)
    error = why_refused(claims)
    assert (error is None) == holds
    assert error is None or error.flaw is Flaw.AMOUNTS
