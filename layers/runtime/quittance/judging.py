"""Judges: agents that score the output of another agent before it is paid for. Which can, and what pays them. Pure.

A judge's work is a task of its own, with its own escrow and receipt. The escrow is funded in the same write as that of
the task, and leaves FUNDED in the same write. The agent's own judge is paid by the owner's bond, the task's own by the
payer. See docs/who-pays.md.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from quittance import escrow as escrows
from quittance import pricing
from quittance.acceptance import SCORE_RULES, Judge, parse_rules, read_score, rules_json, rules_sha256
from quittance.bond import is_bond
from quittance.errors import InvalidRequestError
from quittance.escrow import Escrow, Settlement
from quittance.limits import JUDGE_TIMEOUT_S_MAX
from quittance.money import format_credits
from quittance.pricing import ComputePrices, FlatTariff
from quittance.run import Fault, Limits, Meter, Outcome, Run, Side
from quittance.store.registry import Agent, Terms, Version

NOT_AN_AGENT: Final = ("acceptance.judge.agent_id", "must be an agent that takes tasks")
REFUSED: Final = (
    "acceptance.judge",
    "must be absent: this agent takes no tasks that bring a judge (its task_judges is refused)",
)
NOTHING_READ: Final = hashlib.sha256(b"").hexdigest()
_SCORE_RULES_SHA256: Final = rules_sha256(rules_json(SCORE_RULES))
_SEED_BYTES: Final = 32
NOT_NEEDED: Final = Run(Outcome.NOT_NEEDED, "The judge was not asked.", Meter())


def check_fit(agent: Agent, rule: Judge, compute: ComputePrices) -> None:
    """Raises InvalidRequestError if an agent cannot judge by a rule: at one price, for its budget, in time, alone."""
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


def hold(task: Escrow, side: Side, rule: Judge, agent: Agent, version: Version) -> Escrow:
    """The escrow of a task's judge, as it is funded together with the task's: both are leased and expire together."""
    payer, task_id = escrows.judge_account(task, side)
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
        budget_micro=rule.budget_micro,
        timeout_ms=agent.terms.timeout_s * 1_000,
        agent_rules_sha256=rules_sha256(agent.terms.rules),
        task_rules_sha256=_SCORE_RULES_SHA256,
        own_limits=own_limits(agent.terms),
        task_judge_bps=0,
        judges=(),
        seed=secrets.token_bytes(_SEED_BYTES).hex(),
        settlement=None,
        webhook=None,  # it is the task that is waited for
    )


def own_limits(terms: Terms) -> Limits:
    """The limits that an agent's owner has set."""
    return Limits(terms.fuel, terms.memory_bytes, terms.timeout_s * 1_000)


def reading(judge: Escrow, read: bytes) -> Escrow:
    """A judge's escrow, now that it is known what the judge reads."""
    return replace(judge, input_sha256=hashlib.sha256(read).hexdigest())


def score_micro(run: Run) -> int | None:
    """What a judge gave, in millionths; None if it gave no score."""
    return read_score(run.stdout) if run.outcome is Outcome.SUCCEEDED else None


def settle(judge: Escrow, run: Run | None, task: Run, *, now_ms: int) -> Settlement:
    """How a judge's escrow settles with its task's: `run` is the judge's run, None if it was not asked.

    A judge that was asked is paid, unless the platform failed, at its own run or at what came after it.
    """
    if run is None:
        return escrows.decide(judge, NOT_NEEDED, now_ms=now_ms)
    for end in (run, task):
        if end.outcome.fault is Fault.PLATFORM:
            return escrows.decide(judge, Run(end.outcome, end.message, Meter()), now_ms=now_ms)
    return escrows.decide_judge(judge, run, now_ms=now_ms, released=task.outcome is Outcome.SUCCEEDED)


def costs_micro(task: Escrow, judges: Sequence[Escrow]) -> dict[Side, int]:
    """What the agent's own judge cost the owner's bond, and the task's own its payer.

    Of a task funded before bonds paid, the payer holds the agent's judge too: then no bond has paid for it.
    """
    sides = {hire.escrow_id: hire.side for hire in task.judges}
    return {
        sides[judge.escrow_id]: judge.budget_micro - judge.settlement.split.refunded_micro
        for judge in judges
        if judge.settlement and is_bond(judge.payer) is (sides[judge.escrow_id] is Side.AGENT)
    }
