"""Judges: agents that score the output of another agent before it is paid for.

The work of a judge is a task of its own, with its own escrow and receipt: funded in the same write as the judged task's
escrow, and settled in the same write. The owner's bond pays the judge of the agent's rules, the payer pays the judge of
the task's rules. See docs/who-pays.md.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from quittance import tracing
from quittance.acceptance import rules as acceptance
from quittance.acceptance.rules import (
    SCORE_RULES,
    Judge,
    parse_rules,
    read_score,
    rules_json,
    rules_sha256,
)
from quittance.agent import Agent, Version
from quittance.api.models import TaskRequest
from quittance.errors import (
    AgentNotReadyError,
    InvalidRequestError,
    NotFoundError,
)
from quittance.ledger import escrow as escrows
from quittance.ledger import pricing
from quittance.ledger.balances import is_bond
from quittance.ledger.credits import format_credits
from quittance.ledger.escrow import Escrow, Settlement
from quittance.ledger.pricing import ComputePrices, FlatTariff
from quittance.limits import (
    JUDGE_TIMEOUT_S_MAX,
    VERDICT_MS_MAX,
)
from quittance.platform import Platform
from quittance.run import Fault, Meter, Outcome, Run, Side
from quittance.usecases import launch
from quittance.usecases.launch import ReadyAgent

NOT_AN_AGENT: Final = ("acceptance.judge.agent_id", "must be an agent that takes tasks")
REFUSED: Final = (
    "acceptance.judge",
    "must be absent: this agent takes no tasks that bring a judge (its task_judges is refused)",
)
NOTHING_READ: Final = hashlib.sha256(b"").hexdigest()
_SCORE_RULES_SHA256: Final = rules_sha256(rules_json(SCORE_RULES))
_SEED_BYTES: Final = 32
NOT_NEEDED: Final = Run(Outcome.NOT_NEEDED, "The judge was not asked.", Meter())


@dataclass(frozen=True, slots=True)
class NamedJudge:
    """A judge that rules name: whose rules, the rule about the judge, and the agent."""

    side: Side
    rule: Judge
    ready: ReadyAgent

    @property
    def payers_micro(self) -> int:
        """The part of the offered budget that is held for this judge; 0 if a bond pays it."""
        return self.rule.budget_micro if self.side is Side.TASK else 0

    @property
    def timeout_s(self) -> int:
        """How long the judge may take."""
        return self.ready.agent.terms.timeout_s


@dataclass(frozen=True, slots=True)
class Judged:
    """A judge's escrow, with its run and the version that ran, or None if the judge did not run."""

    escrow: Escrow
    run: Run | None = None
    version: Version | None = None


def named(platform: Platform, request: TaskRequest, ready: ReadyAgent) -> list[NamedJudge]:
    """The judges that must accept the output, in the order in which they run.

    Raises AgentNotReadyError if the agent's own judge is unsuitable, InvalidRequestError if the task's judge is.
    """
    judges = []
    if ready.rules.judge:
        try:
            judges.append(_named(platform, Side.AGENT, ready.rules.judge))
        except (NotFoundError, InvalidRequestError) as unfit:
            raise AgentNotReadyError(request.agent_id, "without a judge that can judge it") from unfit
    if request.acceptance and request.acceptance.judge:
        if ready.agent.terms.task_judge_bps is None:
            raise InvalidRequestError(REFUSED)
        try:
            judges.append(_named(platform, Side.TASK, request.acceptance.judge))
        except NotFoundError as unfit:
            raise InvalidRequestError(NOT_AN_AGENT) from unfit
    return judges


def _named(platform: Platform, side: Side, rule: Judge) -> NamedJudge:
    ready = launch.ready_agent(platform, rule.agent_id)
    check_fit(ready.agent, rule, platform.settings.compute)
    return NamedJudge(side, rule, ready)


def check_fit(agent: Agent, rule: Judge, compute: ComputePrices) -> None:
    """Raises InvalidRequestError unless a judge has a flat tariff, no judge itself, and its cost and timeout fit."""
    tariff = pricing.parse_tariff(agent.terms.tariff)
    if not isinstance(tariff, FlatTariff):
        flat = "must be an agent with a flat tariff: another price would tell what the judge read"
        raise InvalidRequestError(("acceptance.judge.agent_id", flat))
    least_micro = pricing.due_micro(tariff, compute, Meter(fuel=agent.terms.fuel))
    if rule.budget_micro < least_micro:
        needed = f"must be at least {format_credits(least_micro)}: the judge's price, and compute for its fuel limit"
        raise InvalidRequestError(("acceptance.judge.budget", needed))
    if agent.terms.timeout_s > JUDGE_TIMEOUT_S_MAX:
        quick = f"must be an agent whose timeout is at most {JUDGE_TIMEOUT_S_MAX} seconds"
        raise InvalidRequestError(("acceptance.judge.agent_id", quick))
    if parse_rules(agent.terms.rules).judge:
        raise InvalidRequestError(("acceptance.judge.agent_id", "must be an agent that has no judge itself"))


def escrow_of(judge: NamedJudge, task: Escrow) -> Escrow:
    """The escrow of a task's judge, to be funded with the task's: both have the same lease and expiry."""
    agent, version = judge.ready.agent, judge.ready.version
    payer, task_id = escrows.judge_account(task, judge.side)
    return replace(
        task,
        escrow_id=escrows.escrow_id(payer, task_id),
        payer=payer,
        task_id=task_id,
        agent_id=agent.agent_id,
        owner=agent.owner,
        module_sha256=version.module_sha256,
        input_sha256=NOTHING_READ,
        tariff=agent.terms.tariff,
        budget_micro=judge.rule.budget_micro,
        timeout_ms=agent.terms.timeout_s * 1_000,
        agent_rules_sha256=rules_sha256(agent.terms.rules),
        task_rules_sha256=_SCORE_RULES_SHA256,
        own_limits=agent.terms.limits,
        task_judge_bps=0,
        judges=(),
        ticket=replace(task.ticket, count=0, proof=None) if task.ticket and judge.side is Side.TASK else None,
        seed=secrets.token_bytes(_SEED_BYTES).hex(),
        settlement=None,
        webhook=None,  # only the task's outcome is delivered
        keep_input=False,  # a judge reads what the task's input and output are
        share_payer=False,
        share_log=False,
    )


def stored(platform: Platform, task: Escrow) -> list[Escrow]:
    """The escrows of a task's judges. Raises LookupError if one is missing: they are funded in one write."""
    judges = [platform.ledger.find(hold.escrow_id) for hold in task.judges]
    if None in judges:
        msg = f"the escrow {task.escrow_id} was funded without its judge's"
        raise LookupError(msg)
    return [judge for judge in judges if judge]


def still_match(named: Sequence[NamedJudge], stored: Sequence[Escrow]) -> bool:
    """Whether the judges that are named now are those that a task was funded with."""
    if [judge.ready.agent.agent_id for judge in named] != [escrow.agent_id for escrow in stored]:
        return False
    return all(judge.ready.matches(escrow) for judge, escrow in zip(named, stored, strict=True))


def span_ms(task: Escrow, judges: Sequence[NamedJudge]) -> int:
    """The most time that a task takes: its run, its rules, its judges."""
    has_rules = task.agent_rules_sha256 or task.task_rules_sha256
    judging_ms = sum(judge.timeout_s * 1_000 + launch.RUN_RESERVE_MS + VERDICT_MS_MAX for judge in judges)
    return task.timeout_ms + launch.RUN_RESERVE_MS + (VERDICT_MS_MAX if has_rules else 0) + judging_ms


def ask(
    platform: Platform, task: Escrow, stdin: bytes, judges: Sequence[tuple[NamedJudge, Escrow]], run: Run
) -> tuple[Run, list[Judged]]:
    """The run with the judges' scores, or rejected by the first judge that does not accept it; later judges do not run.

    If the platform cannot run a judge, the task fails by the platform's fault.
    """
    judged = {judge.side: Judged(escrow) for judge, escrow in judges}
    read = b""
    for place, (judge, escrow) in enumerate(judges):
        if run.outcome is not Outcome.SUCCEEDED:
            break
        try:
            read = read or acceptance.judge_input(stdin, run.stdout)
        except MemoryError:
            run = launch.out_of_memory(run)
            break
        reserve_ms = span_ms(task, [later for later, _ in judges[place:]]) - task.timeout_ms - escrow.timeout_ms
        scored = _score(platform, escrow, judge, read, reserve_ms=reserve_ms)
        reading = replace(escrow, input_sha256=hashlib.sha256(read).hexdigest())
        judged[judge.side] = Judged(reading, scored, judge.ready.version)
        if scored.outcome.fault is Fault.PLATFORM:
            run = replace(run, outcome=scored.outcome, message=f"The judge could not be run: {scored.message}")
            break
        score_micro = read_score(scored.stdout) if scored.outcome is Outcome.SUCCEEDED else None
        verdict = acceptance.judged(judge.rule, score_micro, side=judge.side)
        if score_micro is None or not verdict.accepted:
            run = launch.rejected(run, verdict)
        else:
            run = replace(run, scores_micro={**run.scores_micro, judge.side: score_micro})
    return run, list(judged.values())


@tracing.step("judge")
def _score(platform: Platform, escrow: Escrow, judge: NamedJudge, read: bytes, *, reserve_ms: int) -> Run:
    """Runs a judge. Its output must meet the judge agent's own rules, and must be a score."""
    run = launch.run(platform, escrow, judge.ready, read, reserve_ms=reserve_ms)
    return launch.held_to_rules(judge.ready.rules, SCORE_RULES, run)


def settlement(judge: Escrow, run: Run | None, task: Run, *, now_ms: int) -> Settlement:
    """How a judge's escrow settles with its task's: `run` is the judge's run, None if it did not run.

    A judge is refunded if the platform failed, in the judge's own run or afterwards.
    """
    if run is None:
        return escrows.decide(judge, NOT_NEEDED, now_ms=now_ms)
    for end in (run, task):
        if end.outcome.fault is Fault.PLATFORM:
            return escrows.decide(judge, Run(end.outcome, end.message, Meter()), now_ms=now_ms)
    return escrows.decide_judge(judge, run, now_ms=now_ms, released=task.outcome is Outcome.SUCCEEDED)


def costs_micro(task: Escrow, judges: Sequence[Escrow]) -> dict[Side, int]:
    """What the agent's own judge cost the owner's bond, and the task's own its payer.

    In tasks from before bonds paid for judges, the payer also paid the agent's judge: then the bond's cost is left out.
    """
    sides = {hold.escrow_id: hold.side for hold in task.judges}
    return {
        sides[judge.escrow_id]: judge.budget_micro - judge.settlement.split.refunded_micro
        for judge in judges
        if judge.settlement and is_bond(judge.payer) is (sides[judge.escrow_id] is Side.AGENT)
    }
