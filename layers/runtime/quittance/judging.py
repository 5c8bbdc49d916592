"""Judges: agents that score the output of another agent before it is paid for. Which can, and what pays them. Pure.

A judge's work is a task of its own, named after the task that it is for, with its own escrow and receipt. The escrow is
funded in the same write as the task's, out of the budget that the rule names; it is settled before the task's.
"""

import hashlib
from dataclasses import replace
from typing import Final

from quittance import pricing
from quittance.acceptance import SCORE_RULES, Judge, parse_rules, read_score, rules_json, rules_sha256
from quittance.errors import InvalidRequestError
from quittance.escrow import Escrow, escrow_id, judge_task_id
from quittance.limits import JUDGE_TIMEOUT_S_MAX
from quittance.money import format_credits
from quittance.run import Side
from quittance.store.registry import Agent, Version

NOT_AN_AGENT: Final = ("acceptance.judge.agent_id", "must be an agent that takes tasks")
_NOTHING_READ: Final = hashlib.sha256(b"").hexdigest()
_SCORE_RULES_SHA256: Final = rules_sha256(rules_json(SCORE_RULES))


def check_fit(agent: Agent, rule: Judge) -> None:
    """Raises InvalidRequestError if an agent cannot judge by a rule: for its budget, in time, and once and for all."""
    least_micro = pricing.least_price_micro(pricing.parse_tariff(agent.terms.tariff))
    if rule.budget_micro < least_micro:
        needed = f"must be at least {format_credits(least_micro)}, the judge's least price"
        raise InvalidRequestError(("acceptance.judge.budget", needed))
    if agent.terms.timeout_s > JUDGE_TIMEOUT_S_MAX:
        quick = f"must be an agent whose timeout is at most {JUDGE_TIMEOUT_S_MAX} seconds"
        raise InvalidRequestError(("acceptance.judge.agent_id", quick))
    if parse_rules(agent.terms.rules).judge:
        raise InvalidRequestError(("acceptance.judge.agent_id", "must be an agent that has no judge itself"))


def hold(task: Escrow, side: Side, rule: Judge, agent: Agent, version: Version) -> Escrow:
    """The escrow of a task's judge, as it is funded together with the task's: both are leased and expire together."""
    task_id = judge_task_id(task.task_id, side)
    return replace(
        task,
        escrow_id=escrow_id(task.payer, task_id),
        task_id=task_id,
        agent_id=agent.agent_id,
        owner=agent.owner,
        module_sha256=version.module_sha256,
        input_sha256=_NOTHING_READ,
        tariff=agent.terms.tariff,
        budget_micro=rule.budget_micro,
        timeout_ms=agent.terms.timeout_s * 1_000,
        agent_rules_sha256=rules_sha256(agent.terms.rules),
        task_rules_sha256=_SCORE_RULES_SHA256,
        judges=(),
    )


def reading(judge: Escrow, read: bytes) -> Escrow:
    """A judge's escrow, now that it is known what the judge reads."""
    return replace(judge, input_sha256=hashlib.sha256(read).hexdigest())


def score_micro(judge: Escrow, read: bytes) -> int | None:
    """What a judge gave to what it read, in millionths; None if it gave no score, or to something else."""
    output = judge.settlement.output if judge.settlement else None
    if output is None or output.inline is None or judge.input_sha256 != hashlib.sha256(read).hexdigest():
        return None
    return read_score(output.inline)
