"""The escrow of one task: its states, its id, and the decision of how it settles. Pure.

    FUNDED ──> RELEASED   the output was accepted: the agent's price is paid
       ├─────> REFUNDED   the task failed: the payer gets the budget back, less what a failure of its own costs
       └─────> EXPIRED    nobody settled in time: the payer gets the whole budget back

Always paid + fee + refunded = budget. `fee` is the platform's commission on the price plus the compute.

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
from quittance.limits import BPS, FEE_BPS_MAX
from quittance.run import OF_THE_RULES, Fault, Limits, Meter, Outcome, RejectedBy, Run, Side

JUDGE_MARK: Final = ":judge-"
"""Part of every judge's task_id. No task_id that a client chooses can contain it."""


class State(StrEnum):
    """Where an escrow stands. The values are stored and shown."""

    FUNDED = "funded"
    RELEASED = "released"
    REFUNDED = "refunded"
    EXPIRED = "expired"


class TaskState(StrEnum):
    """Where a task stands for its payer. The values are stored in listings and shown."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Bytes that belong to an outcome, identified by digest: inline if small, otherwise in the outputs bucket."""

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

    `compute_micro` is the part of the fee that is not commission. `charge_micro` is the amount that the sweep takes
    from the owner's bond for the platform. `judging_micro` is the cost of the agent's own judge: the bond paid it, and
    gets it back out of a price that is paid. `task_judging_micro` is the cost of the task's own judge: the payer paid
    it in addition to this budget. `stdin` is the input, if the task asked to keep it.
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
    stderr: StoredBytes | None = None
    stdin: StoredBytes | None = None


@dataclass(frozen=True, slots=True)
class JudgeHold:
    """A judge that a task may need: whose rules name it, its agent, and the escrow that holds its cost."""

    side: Side
    agent_id: str
    budget_micro: int
    escrow_id: str


@dataclass(frozen=True, slots=True)
class TicketProof:
    """What proves that a channel's key asked for a task: the parts of the channel's id, and the ticket as signed."""

    salt: str
    key: str
    ticket_micro: int
    signed: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """The numbers of a channel that pay a task: `count` consecutive ones from `number` on.

    `count` is 0 for the task's judge, whose cost is part of the task's own tickets. `proof` is None for the judge, and
    for an escrow that is read after its settlement: then the receipt has it.
    """

    channel_id: str
    number: int
    count: int
    proof: TicketProof | None = None


@dataclass(frozen=True, slots=True)
class Escrow:
    """The hold on a user's budget for one task, and the permanent record of that task.

    `request_sha256` identifies the request and distinguishes a replay from a conflict. `tariff` is the agent's tariff
    at funding. `runner` and `fence` identify the attempt that may settle. Times are milliseconds since the epoch.
    `agent_rules_sha256` and `task_rules_sha256` are digests of the canonical JSON of the rules, None without rules. The
    amounts held for `judges` are not part of the task's own budget. `input_sha256` of a judge's escrow is set when the
    escrow is settled. `compute` are the platform's prices at funding. `own_limits` are the agent's limits, None in an
    escrow funded before limits were recorded. `task_judge_bps` is the share of the price that is due if the task's own
    judge rejects. `seed` starts a judge's randomness. The settlement is posted to the URL `webhook`. With `keep_input`,
    the input is stored with the settlement. `share_payer` and `share_log` say whether the agent's owner may see whose
    task it is, and what the agent wrote to stderr. With a `ticket`, the deposit of a channel holds the budget, and what
    is not used stays there.
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
    keep_input: bool = False
    share_payer: bool = False
    share_log: bool = False
    ticket: Ticket | None = None
    settlement: Settlement | None = None

    @property
    def drawn_micro(self) -> int:
        """What a settled task took from its channel, its own judge included; 0 for the judge itself."""
        if self.settlement is None or self.ticket is None or not self.ticket.count:
            return 0
        return self.budget_micro - self.settlement.split.refunded_micro + self.settlement.task_judging_micro

    @property
    def state(self) -> State:
        """The escrow's state."""
        return self.settlement.state if self.settlement else State.FUNDED

    def held_by(self, runner: str) -> bool:
        """Whether the escrow is funded and this runner may settle it."""
        return self.settlement is None and self.runner == runner


def escrow_id(payer: str, task_id: str) -> str:
    """The escrow id of a user's task. Length prefixes keep different pairs of names apart."""
    named = f"{len(payer)}:{payer}{len(task_id)}:{task_id}".encode()
    return base64.b32encode(hashlib.sha256(named).digest()).decode().lower()[:26]


def judge_account(task: Escrow, side: Side) -> tuple[str, str]:
    """The account that pays a task's judge, and the judge's task_id.

    The owner's bond pays the agent's judge, the task's payer pays the task's judge. No client can choose such a
    task_id, because the ids that clients choose contain no `:`.
    """
    if side is Side.AGENT:
        return bond_account(task.owner), judge_task_id(task.escrow_id, side)
    return task.payer, judge_task_id(task.task_id, side)


def judge_task_id(task_id: str, side: Side) -> str:
    """The task_id under which the payer of a task can read the result of its judge."""
    return f"{task_id}{JUDGE_MARK}{side}"


def is_judge(escrow: Escrow) -> bool:
    """Whether an escrow pays a judge."""
    return JUDGE_MARK in escrow.task_id


def request_sha256(
    *, agent_id: str, input_sha256: str, budget_micro: int, timeout_s: int | None, options: Mapping[str, object]
) -> str:
    """The digest that distinguishes a repeated request from a different one with the same task_id.

    `options` are the optional fields by name. Absent ones (None) are left out, so stored digests stay valid when a new
    optional field is added.
    """
    named: list[object] = [agent_id, input_sha256, budget_micro, timeout_s]
    if given := {name: value for name, value in options.items() if value is not None}:
        named.append(given)
    return hashlib.sha256(json.dumps(named, separators=(",", ":")).encode()).hexdigest()


def seed(escrow: Escrow) -> bytes:
    """The seed of a run's virtual randomness. It belongs to the escrow, so every attempt at a task is the same run.

    A judge's seed is drawn at random at funding. Otherwise a client could search for a task_id whose seed leads to the
    verdict it wants.
    """
    return bytes.fromhex(escrow.seed) if escrow.seed else task_seed(escrow.escrow_id)


def task_seed(escrow_id: str) -> bytes:
    """The seed derived from an escrow's id, for every run except a judge's."""
    return hashlib.sha256(b"quittance seed " + escrow_id.encode()).digest()


def split(*, budget_micro: int, price_micro: int, fee_bps: int, compute_micro: int = 0) -> Split:
    """The split of a budget from which an agent's price is paid: commission = ⌊price · bps / 10⁴⌋ (I4).

    The platform gets the commission and the compute, the owner gets the rest of the price, and the payer gets the rest
    of the budget.
    """
    if not 0 <= fee_bps <= FEE_BPS_MAX:
        msg = f"fee_bps must be between 0 and {FEE_BPS_MAX}"
        raise ValueError(msg)
    commission_micro = price_micro * fee_bps // BPS
    refunded_micro = budget_micro - price_micro - compute_micro
    return Split(budget_micro, price_micro - commission_micro, commission_micro + compute_micro, refunded_micro)


def fault(run: Run, own: Limits | None) -> Fault:
    """Who bears the fault of a run's end. If a limit was hit, it is the side that set the lower limit.

    `own` are the agent's own limits. If they are unknown, every limit counts as the agent's. docs/who-pays.md has the
    whole table.
    """
    at_fault = run.outcome.fault
    if run.outcome in OF_THE_RULES and run.rejected_by:
        at_fault = Fault.AGENT if run.rejected_by.side is Side.AGENT else Fault.PAYER
    if at_fault is Fault.AGENT and own and run.limits:
        given = run.limits
        lowered = {
            Outcome.FUEL_EXHAUSTED: given.fuel < own.fuel,
            Outcome.TIMEOUT: given.timeout_ms < own.timeout_ms,
            Outcome.OUTPUT_LIMIT: given.output_bytes < own.output_bytes,
        }.get(run.outcome, False)
        # A guest whose request for memory is refused may do anything: trap, loop, or write a different output.
        lowered = lowered or (run.memory_refused and given.memory_bytes < own.memory_bytes)
        return Fault.PAYER if lowered else Fault.AGENT
    return at_fault


def held_to_budget(escrow: Escrow, run: Run) -> Run:
    """The run; if its total cost exceeds the budget, the run with the outcome BUDGET_EXHAUSTED."""
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
    """The settlement of a funded escrow after its run.

    A success costs the price of the tariff. The compute of a failure is paid by the payer if the payer is at fault, and
    by the owner's bond if the agent is. If the task's own judge rejects, the payer also pays the share of the price
    that the agent's terms state. `judging_micro` is the cost of each side's judge.
    """
    now_ms = max(now_ms, escrow.funded_ms)  # clocks differ; a settlement must not be earlier than its funding
    at_fault, meter = fault(run, escrow.own_limits), run.meter
    released = run.outcome is Outcome.SUCCEEDED
    price_micro, compute_micro = _costs_micro(escrow, meter)
    if released:
        due_micro = price_micro
    elif run.outcome is Outcome.REJECTED and run.rejected_by is RejectedBy.TASK_JUDGE:
        due_micro = price_micro * escrow.task_judge_bps // BPS
    else:
        due_micro = 0
    payer_compute_micro = compute_micro if released or at_fault is Fault.PAYER else 0
    return Settlement(
        state=State.RELEASED if released else State.REFUNDED,
        split=split(
            budget_micro=escrow.budget_micro,
            price_micro=due_micro,
            fee_bps=escrow.fee_bps,
            compute_micro=payer_compute_micro,
        ),
        outcome=run.outcome,
        message=run.message,
        reputation_tenths=reputation.delta_tenths(run.outcome, at_fault, wall_ms=meter.wall_ms),
        settled_ms=now_ms,
        fault=at_fault,
        compute_micro=payer_compute_micro,
        charge_micro=escrow.compute.micro(meter.fuel) if at_fault is Fault.AGENT else 0,
        judging_micro=judging_micro.get(Side.AGENT, 0),
        task_judging_micro=judging_micro.get(Side.TASK, 0),
    )


def _costs_micro(escrow: Escrow, meter: Meter) -> tuple[int, int]:
    """Price and compute of a run, at most the budget: old escrows were funded before compute had a price."""
    compute_micro = min(escrow.compute.micro(meter.fuel), escrow.budget_micro)
    price_micro = pricing.price_micro(pricing.parse_tariff(escrow.tariff), meter)
    return min(price_micro, escrow.budget_micro - compute_micro), compute_micro


def decide_judge(escrow: Escrow, run: Run, *, now_ms: int, released: bool) -> Settlement:
    """The settlement of a judge that ran: its flat price and the compute of its whole fuel limit are due.

    So the cost of a judge reveals nothing about the output that it read. If the task is not released, the settlement
    reveals nothing about the judge's run (WITHHELD), and the judge is paid even if it failed: the side that named the
    judge bears that cost.
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
    """The settlement of an escrow that expired: a full refund, at the fault of the platform."""
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
