"""The journal: every movement of an account's credits. The statement shows it, the auditor sums it. Pure.

A line is written once and never changed, but for a task's: that one is the escrow itself, whose line says what the
task has cost until now: the whole budget while it is held, then what was used.
"""

from dataclasses import dataclass
from enum import StrEnum

from quittance.escrow import Escrow, State


class Kind(StrEnum):
    """Why credits moved. The values are shown."""

    DEPOSIT = "deposit"
    WITHDRAWAL = "withdrawal"
    TASK = "task"
    EARNINGS = "earnings"
    FEES = "fees"
    BOND = "bond"
    CHARGE = "charge"
    JUDGING = "judging"


@dataclass(frozen=True, slots=True)
class Line:
    """One movement: by how much the account's available credits changed, in micro-credits, negative for less.

    `reference` is unique for the account and the kind: the id of a deposit, a withdrawal or a movement of the bond, a
    task's id, or for what the sweep moves the id of the first of the escrows that were credited together. `agent_id` is
    set if one agent did all `tasks`. `due_micro` is what a charge should have taken: a bond pays no more than it has.
    """

    account: str
    kind: Kind
    reference: str
    at_ms: int
    amount_micro: int
    agent_id: str | None = None
    tasks: int | None = None
    state: State | None = None
    due_micro: int | None = None


def task_line(escrow: Escrow) -> Line:
    """What a task has cost its payer until now."""
    refunded_micro = escrow.settlement.split.refunded_micro if escrow.settlement else 0
    return Line(
        account=escrow.payer,
        kind=Kind.TASK,
        reference=escrow.task_id,
        at_ms=escrow.funded_ms,
        amount_micro=refunded_micro - escrow.budget_micro,
        agent_id=escrow.agent_id,
        tasks=1,
        state=escrow.state,
    )
