"""The escrow of one task: its states, its identity, and the decision how it settles. Pure.

    FUNDED ──> RELEASED   the run succeeded: paid + fee + refunded = budget
       ├─────> REFUNDED   it did not: refunded = budget
       └─────> EXPIRED    nobody settled in time: refunded = budget

An escrow leaves FUNDED once. The sweep marks a settled escrow as swept; its state stays.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from quittance import pricing, reputation
from quittance.limits import FEE_BPS_MAX
from quittance.run import Meter, Outcome, Run, Side

_BPS: Final = 10_000
_JUDGE_MARK: Final = ":judge-"


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
    """How an escrow left FUNDED: written once, together with the new state and the signed receipt."""

    state: State
    split: Split
    outcome: Outcome
    message: str
    reputation_tenths: int
    settled_ms: int
    receipt: str = ""
    output: StoredBytes | None = None
    log: StoredBytes | None = None


@dataclass(frozen=True, slots=True)
class Hire:
    """A judge that a task may need: by whose rules, which agent, and what is held for it in an escrow of its own."""

    side: Side
    agent_id: str
    budget_micro: int


@dataclass(frozen=True, slots=True)
class Escrow:
    """The hold on a user's budget for one task, and for ever the record of that task.

    `request_sha256` names the request, so that a replay is told from a conflict; `tariff` is the agent's terms at
    funding; `runner` and `fence` name the attempt that may settle; times are milliseconds since the epoch. The
    rules for the output are named by the digests of their canonical JSON, None where there are none. What is held for
    its `judges` is not part of the task's own budget. A judge's own escrow names what it reads only once it is settled.
    `webhook` is the URL that is told of the settlement.
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
    judges: tuple[Hire, ...] = ()
    webhook: str | None = None
    settlement: Settlement | None = None

    @property
    def state(self) -> State:
        """Where the escrow stands."""
        return self.settlement.state if self.settlement else State.FUNDED


def escrow_id(payer: str, task_id: str) -> str:
    """The id of the escrow of a user's task. Length-prefixed, so that no two pairs of names meet in one."""
    named = f"{len(payer)}:{payer}{len(task_id)}:{task_id}".encode()
    return base64.b32encode(hashlib.sha256(named).digest()).decode().lower()[:26]


def judge_task_id(task_id: str, side: Side) -> str:
    """The name of a judge's task. No client can choose it: the names that clients choose have no `:`."""
    return f"{task_id}{_JUDGE_MARK}{side}"


def is_judge(escrow: Escrow) -> bool:
    """Whether an escrow pays a judge."""
    return _JUDGE_MARK in escrow.task_id


def request_sha256(
    *,
    agent_id: str,
    input_sha256: str,
    budget_micro: int,
    timeout_s: int | None,
    least_tenths: int | None,
    rules_sha256: str | None,
    webhook: str | None,
) -> str:
    """The digest that tells a repeated request from another one under the same task_id."""
    named: list[object] = [agent_id, input_sha256, budget_micro, timeout_s]
    wishes = {"min_reputation": least_tenths, "acceptance": rules_sha256, "webhook": webhook}
    if given := {name: value for name, value in wishes.items() if value is not None}:
        named.append(given)  # only what was asked for: digests that are stored stay right when there is more to ask for
    return hashlib.sha256(json.dumps(named, separators=(",", ":")).encode()).hexdigest()


def seed(escrow_id: str) -> bytes:
    """The seed of a run's virtual randomness; of the escrow, so that every attempt of a task is the same run."""
    return hashlib.sha256(b"quittance seed " + escrow_id.encode()).digest()


def split(*, budget_micro: int, used_micro: int, fee_bps: int) -> Split:
    """The split of a released budget: fee = ⌊used · bps / 10⁴⌋, the owner gets the rest of what was used (I4)."""
    if not 0 <= fee_bps <= FEE_BPS_MAX:
        msg = f"fee_bps must be between 0 and {FEE_BPS_MAX}"
        raise ValueError(msg)
    fee_micro = used_micro * fee_bps // _BPS
    return Split(budget_micro, used_micro - fee_micro, fee_micro, budget_micro - used_micro)


def decide(escrow: Escrow, run: Run, *, now_ms: int) -> Settlement:
    """How a funded escrow settles after its run: success is paid by the tariff, anything else is refunded in full."""
    now_ms = max(now_ms, escrow.funded_ms)  # clocks differ and are set back; a settlement is never before its funding
    if run.outcome is not Outcome.SUCCEEDED:
        return _refund(escrow, State.REFUNDED, run.outcome, run.message, run.meter, now_ms)
    tariff = pricing.parse_tariff(escrow.tariff)
    used_micro = pricing.price_micro(tariff, run.meter, budget_micro=escrow.budget_micro)
    return Settlement(
        state=State.RELEASED,
        split=split(budget_micro=escrow.budget_micro, used_micro=used_micro, fee_bps=escrow.fee_bps),
        outcome=run.outcome,
        message=run.message,
        reputation_tenths=reputation.delta_tenths(run.outcome, wall_ms=run.meter.wall_ms),
        settled_ms=now_ms,
    )


def expire(escrow: Escrow, *, now_ms: int) -> Settlement:
    """How an escrow settles that nobody settled in time: refunded in full, and not the agent's fault."""
    message = "The task was not settled before its escrow expired; the budget was refunded."
    return _refund(escrow, State.EXPIRED, Outcome.EXPIRED, message, Meter(), now_ms)


def _refund(escrow: Escrow, state: State, outcome: Outcome, message: str, meter: Meter, now_ms: int) -> Settlement:
    return Settlement(
        state=state,
        split=Split(escrow.budget_micro, 0, 0, escrow.budget_micro),
        outcome=outcome,
        message=message,
        reputation_tenths=reputation.delta_tenths(outcome, wall_ms=meter.wall_ms),
        settled_ms=now_ms,
    )
