"""The escrow of one task: its states, its identity, and the decision how it settles. Pure.

    FUNDED ──> RELEASED   the output was accepted: the agent's price is paid
       ├─────> REFUNDED   it was not: the rest of the budget goes back, all of it unless the failure is the payer's
       └─────> EXPIRED    nobody settled in time: the whole budget goes back

Always paid + fee + refunded = budget. `fee` is the platform's commission on the price, and the compute.

An escrow leaves FUNDED once. The sweep marks a settled escrow as swept; its state stays.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from quittance.ledger import pricing, reputation
from quittance.ledger.balances import bond_account
from quittance.ledger.credits import format_credits
from quittance.ledger.pricing import FREE, ComputePrices
from quittance.limits import FEE_BPS_MAX
from quittance.run import OF_THE_RULES, Fault, Limits, Meter, Outcome, RejectedBy, Run, Side

_BPS: Final = 10_000
JUDGE_MARK: Final = ":judge-"
"""Part of a judge's task_id, and of no task_id that a client can choose."""


class State(StrEnum):
    """Where an escrow stands. The values are stored and shown."""

    FUNDED = "funded"
    RELEASED = "released"
    REFUNDED = "refunded"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Bytes that belong to an outcome: named by digest, held inline while small, else in the outputs bucket."""

    sha256: str
    size: int
    inline: bytes | None


@dataclass(frozen=True, slots=True)
class Split:
    """Where a budget went, in micro-credits. Raises ValueError if it does not add up (invariants I3 and I4)."""

    budget_micro: int
    paid_micro: int
    fee_micro: int
    refunded_micro: int

    def __post_init__(self) -> None:
        parts = (self.paid_micro, self.fee_micro, self.refunded_micro)
        if min(parts) < 0 or sum(parts) != self.budget_micro:
            msg = f"the split {parts} does not add up to the budget {self.budget_micro}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Settlement:
    """How an escrow left FUNDED: written once, together with the new state and the signed receipt.

    `compute_micro` is the part of the fee that is not commission. `charge_micro` is what the sweep takes from the
    owner's bond for the platform. `judging_micro` is what the agent's own judge cost the bond, which a price that is
    paid gives back to it; `task_judging_micro` what the task's own judge cost the payer, beside this budget.
    """

    state: State
    split: Split
    outcome: Outcome
    message: str
    reputation_tenths: int
    settled_ms: int
    fault: Fault = Fault.NONE
    compute_micro: int = 0
    charge_micro: int = 0
    judging_micro: int = 0
    task_judging_micro: int = 0
    receipt: str = ""
    output: StoredBytes | None = None
    log: StoredBytes | None = None


@dataclass(frozen=True, slots=True)
class JudgeHold:
    """A judge that a task may need: by whose rules, which agent, and the escrow that holds what it may cost."""

    side: Side
    agent_id: str
    budget_micro: int
    escrow_id: str


@dataclass(frozen=True, slots=True)
class Escrow:
    """The hold on a user's budget for one task, and for ever the record of that task.

    `request_sha256` names the request, so that a replay is told from a conflict; `tariff` is the agent's terms at
    funding; `runner` and `fence` name the attempt that may settle; times are milliseconds since the epoch. The
    rules for the output are named by the digests of their canonical JSON, None where there are none. What is held for
    its `judges` is not part of the task's own budget. A judge's own escrow names what it reads only once it is settled.
    `compute` is the platform's prices at funding, `own_limits` the agent's limits (None in an escrow funded before
    limits were recorded), `task_judge_bps` the share of the price that is due when the task's own judge rejects.
    `seed` starts a judge's randomness. `webhook` is the URL that the settlement is posted to.
    """

    escrow_id: str
    payer: str
    task_id: str
    request_sha256: str
    agent_id: str
    owner: str
    module_sha256: str
    input_sha256: str
    tariff: str
    budget_micro: int
    fee_bps: int
    timeout_ms: int
    runner: str
    fence: int
    funded_ms: int
    lease_ms: int
    expires_ms: int
    agent_rules_sha256: str | None = None
    task_rules_sha256: str | None = None
    compute: ComputePrices = FREE
    own_limits: Limits | None = None
    task_judge_bps: int = 0
    judges: tuple[JudgeHold, ...] = ()
    seed: str | None = None
    webhook: str | None = None
    settlement: Settlement | None = None

    @property
    def state(self) -> State:
        """Where the escrow stands."""
        return self.settlement.state if self.settlement else State.FUNDED

    def held_by(self, runner: str) -> bool:
        """Whether the escrow is funded and this runner is the one that may settle it."""
        return self.settlement is None and self.runner == runner


def escrow_id(payer: str, task_id: str) -> str:
    """The id of the escrow of a user's task. Length-prefixed, so that no two pairs of names meet in one."""
    named = f"{len(payer)}:{payer}{len(task_id)}:{task_id}".encode()
    return base64.b32encode(hashlib.sha256(named).digest()).decode().lower()[:26]


def judge_account(task: Escrow, side: Side) -> tuple[str, str]:
    """Who pays a task's judge, and under which task_id: the owner's bond pays the agent's, the payer the task's own.

    No client can choose such a task_id: the names that clients choose have no `:`.
    """
    if side is Side.AGENT:
        return bond_account(task.owner), judge_task_id(task.escrow_id, side)
    return task.payer, judge_task_id(task.task_id, side)


def judge_task_id(task_id: str, side: Side) -> str:
    """The name by which the payer of a task reads its judge's result."""
    return f"{task_id}{JUDGE_MARK}{side}"


def is_judge(escrow: Escrow) -> bool:
    """Whether an escrow pays a judge."""
    return JUDGE_MARK in escrow.task_id


def request_sha256(
    *, agent_id: str, input_sha256: str, budget_micro: int, timeout_s: int | None, wishes: Mapping[str, object]
) -> str:
    """The digest that distinguishes a repeated request from another one under the same task_id.

    `wishes` are the optional fields by name. Absent ones (None) are left out, so a stored digest stays right when a new
    optional field is added.
    """
    named: list[object] = [agent_id, input_sha256, budget_micro, timeout_s]
    if given := {name: value for name, value in wishes.items() if value is not None}:
        named.append(given)
    return hashlib.sha256(json.dumps(named, separators=(",", ":")).encode()).hexdigest()


def seed(escrow: Escrow) -> bytes:
    """The seed of a run's virtual randomness; of the escrow, so that every attempt of a task is the same run.

    A judge's is drawn at random when it is funded: nobody may choose a task_id by the verdict that it leads to.
    """
    return bytes.fromhex(escrow.seed) if escrow.seed else task_seed(escrow.escrow_id)


def task_seed(escrow_id: str) -> bytes:
    """The seed that follows from an escrow's id: of every run but a judge's."""
    return hashlib.sha256(b"quittance seed " + escrow_id.encode()).digest()


def split(*, budget_micro: int, price_micro: int, fee_bps: int, compute_micro: int = 0) -> Split:
    """The split of a budget out of which an agent's price is paid: commission = ⌊price · bps / 10⁴⌋ (I4).

    The owner gets the rest of the price, the platform the commission and the compute, the payer what is left.
    """
    if not 0 <= fee_bps <= FEE_BPS_MAX:
        msg = f"fee_bps must be between 0 and {FEE_BPS_MAX}"
        raise ValueError(msg)
    commission_micro = price_micro * fee_bps // _BPS
    refunded_micro = budget_micro - price_micro - compute_micro
    return Split(budget_micro, price_micro - commission_micro, commission_micro + compute_micro, refunded_micro)


def fault(run: Run, own: Limits | None) -> Fault:
    """Whose fault a run's end is: of a limit that was hit, whoever set it lower (docs/who-pays.md has the table).

    `own` are the agent's own limits. Where they are not known, every limit counts as the agent's.
    """
    whose = run.outcome.fault
    if run.outcome in OF_THE_RULES and run.rejected_by:
        whose = Fault.AGENT if run.rejected_by.side is Side.AGENT else Fault.PAYER
    if whose is Fault.AGENT and own and run.limits:
        given = run.limits
        lowered = {
            Outcome.FUEL_EXHAUSTED: given.fuel < own.fuel,
            Outcome.TIMEOUT: given.timeout_ms < own.timeout_ms,
            Outcome.OUTPUT_LIMIT: given.output_bytes < own.output_bytes,
        }.get(run.outcome, False)
        # What a guest does once it is refused memory depends on the guest: it may trap, spin, or print something else.
        lowered = lowered or (run.memory_refused and given.memory_bytes < own.memory_bytes)
        return Fault.PAYER if lowered else Fault.AGENT
    return whose


def held_to_budget(escrow: Escrow, run: Run) -> Run:
    """The run, or how it ends because all that it used together costs more than the budget."""
    tariff = pricing.parse_tariff(escrow.tariff)
    due_micro = pricing.due_micro(tariff, escrow.compute, run.meter)
    if run.outcome is not Outcome.SUCCEEDED or due_micro <= escrow.budget_micro or escrow.own_limits is None:
        return run
    message = (
        f"The run cost {format_credits(due_micro)}, and the budget was {format_credits(escrow.budget_micro)}. "
        "Offer a larger budget."
    )
    return replace(run, outcome=Outcome.BUDGET_EXHAUSTED, message=message)


def decide(
    escrow: Escrow, run: Run, *, now_ms: int, judging_micro: Mapping[Side, int] = MappingProxyType({})
) -> Settlement:
    """How a funded escrow settles after its run.

    Success is paid by the tariff. Of a failure, the payer bears the compute if it is the payer's, and the owner's bond
    if it is the agent's. When the task's own judge rejects, the payer also pays the share of the price that the agent's
    terms ask for. `judging_micro` is what the judge of each side cost.
    """
    now_ms = max(now_ms, escrow.funded_ms)  # clocks differ and are set back; a settlement is never before its funding
    whose, meter = fault(run, escrow.own_limits), run.meter
    released = run.outcome is Outcome.SUCCEEDED
    price_micro, compute_micro = _costs_micro(escrow, meter)
    if released:
        due_micro = price_micro
    elif run.outcome is Outcome.REJECTED and run.rejected_by is RejectedBy.TASK_JUDGE:
        due_micro = price_micro * escrow.task_judge_bps // _BPS
    else:
        due_micro = 0
    borne_micro = compute_micro if released or whose is Fault.PAYER else 0
    return Settlement(
        state=State.RELEASED if released else State.REFUNDED,
        split=split(
            budget_micro=escrow.budget_micro, price_micro=due_micro, fee_bps=escrow.fee_bps, compute_micro=borne_micro
        ),
        outcome=run.outcome,
        message=run.message,
        reputation_tenths=reputation.delta_tenths(run.outcome, whose, wall_ms=meter.wall_ms),
        settled_ms=now_ms,
        fault=whose,
        compute_micro=borne_micro,
        charge_micro=escrow.compute.micro(meter.fuel) if whose is Fault.AGENT else 0,
        judging_micro=judging_micro.get(Side.AGENT, 0),
        task_judging_micro=judging_micro.get(Side.TASK, 0),
    )


def _costs_micro(escrow: Escrow, meter: Meter) -> tuple[int, int]:
    """Price and compute of a run. What a budget of before compute had a price could not cover is not due."""
    compute_micro = min(escrow.compute.micro(meter.fuel), escrow.budget_micro)
    price_micro = pricing.price_micro(pricing.parse_tariff(escrow.tariff), meter)
    return min(price_micro, escrow.budget_micro - compute_micro), compute_micro


def decide_judge(escrow: Escrow, run: Run, *, now_ms: int, released: bool) -> Settlement:
    """How a judge's escrow settles that has judged: the flat price and the compute of its whole fuel limit are due.

    So what a judge costs says nothing of what it read. If the task that it judged is not released, nothing of its run
    is stated (WITHHELD), and it is paid though it failed: whoever named it bears that.
    """
    price_micro, compute_micro = _costs_micro(escrow, Meter(fuel=run.limits.fuel if run.limits else 0))
    return Settlement(
        state=State.RELEASED,
        split=split(
            budget_micro=escrow.budget_micro,
            price_micro=price_micro,
            fee_bps=escrow.fee_bps,
            compute_micro=compute_micro,
        ),
        outcome=Outcome.SUCCEEDED if released else Outcome.WITHHELD,
        message=run.message if released else "What a judge found is not shown unless the task is released.",
        reputation_tenths=reputation.delta_tenths(run.outcome, Fault.NONE, wall_ms=run.meter.wall_ms)
        if released
        else 0,
        settled_ms=max(now_ms, escrow.funded_ms),
        compute_micro=compute_micro,
    )


def expire(escrow: Escrow, *, now_ms: int) -> Settlement:
    """How an escrow settles that nobody settled in time: refunded in full, and not the agent's fault."""
    message = "The task was not settled before its escrow expired; the budget was refunded."
    return Settlement(
        state=State.EXPIRED,
        split=Split(escrow.budget_micro, 0, 0, escrow.budget_micro),
        outcome=Outcome.EXPIRED,
        message=message,
        reputation_tenths=0,
        settled_ms=now_ms,
        fault=Outcome.EXPIRED.fault,
    )
