"""One run of an agent: what it is given, what was measured, and every way it can end."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from quittance.limits import OUTPUT_BYTES_MAX

HOST_RULES: Final = 2
"""How host calls answer a guest and what they cost it. A new number for each change that a guest can notice."""


class Fault(StrEnum):
    """Whose fault a run's end is: whoever set the limit that was hit, or did the failing thing. It decides who pays."""

    NONE = "none"
    AGENT = "agent"
    PAYER = "payer"
    PLATFORM = "platform"


class Outcome(StrEnum):
    """Every way a run can end. The values are part of the API and of receipts: never rename one."""

    SUCCEEDED = "succeeded"
    EXIT_CODE = "exit_code"
    TRAP_UNREACHABLE = "trap_unreachable"
    TRAP_MEMORY = "trap_memory"
    TRAP_ARITHMETIC = "trap_arithmetic"
    TRAP_STACK = "trap_stack"
    TRAP_TABLE = "trap_table"
    FUEL_EXHAUSTED = "fuel_exhausted"
    TIMEOUT = "timeout"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    BUDGET_EXHAUSTED = "budget_exhausted"
    REJECTED = "rejected"
    RULES_FAILED = "rules_failed"
    JUDGE_FAILED = "judge_failed"
    NOT_NEEDED = "not_needed"
    WITHHELD = "withheld"
    WORKER_LOST = "worker_lost"
    OUT_OF_TIME = "out_of_time"
    ARTEFACT_MISSING = "artefact_missing"
    ARTEFACT_TAMPERED = "artefact_tampered"
    STORAGE_DOWN = "storage_down"
    EXPIRED = "expired"
    UNDELIVERED = "undelivered"
    SUPERSEDED = "superseded"

    @property
    def fault(self) -> Fault:
        """Whose fault this end is, if every limit was the agent's own; see `escrow.fault` for who set them."""
        if self in _NOBODYS_FAULTS:
            return Fault.NONE
        if self in _PAYERS_FAULTS:
            return Fault.PAYER
        return Fault.PLATFORM if self in _PLATFORM_FAULTS else Fault.AGENT


# Besides success: a judge whose work is not shown or was not needed, or an agent that changed after funding.
# RULES_FAILED and JUDGE_FAILED are found in receipts of version 1 only: nothing was known of the agent's work.
_NOBODYS_FAULTS = frozenset(
    {
        Outcome.SUCCEEDED,
        Outcome.RULES_FAILED,
        Outcome.JUDGE_FAILED,
        Outcome.NOT_NEEDED,
        Outcome.WITHHELD,
        Outcome.SUPERSEDED,
    }
)
_PAYERS_FAULTS = frozenset({Outcome.BUDGET_EXHAUSTED})
# The run itself ended well; what decided is what its output was held to.
OF_THE_RULES: Final = frozenset({Outcome.REJECTED, Outcome.RULES_FAILED, Outcome.JUDGE_FAILED})
_PLATFORM_FAULTS = frozenset(
    {
        Outcome.WORKER_LOST,
        Outcome.OUT_OF_TIME,
        Outcome.ARTEFACT_MISSING,
        Outcome.ARTEFACT_TAMPERED,
        Outcome.STORAGE_DOWN,
        Outcome.EXPIRED,
        Outcome.UNDELIVERED,
    }
)


class Side(StrEnum):
    """Who has set rules for an output: its agent's owner, for all tasks, or a task's sender."""

    AGENT = "agent"
    TASK = "task"


class RejectedBy(StrEnum):
    """What did not accept an output: rules or a judge, of the agent's owner or of the task's sender."""

    AGENT_RULES = "agent_rules"
    TASK_RULES = "task_rules"
    AGENT_JUDGE = "agent_judge"
    TASK_JUDGE = "task_judge"

    @property
    def side(self) -> Side:
        """Whose rule it is."""
        return Side.AGENT if self in {RejectedBy.AGENT_RULES, RejectedBy.AGENT_JUDGE} else Side.TASK


@dataclass(frozen=True, slots=True)
class Input:
    """What an agent reads on stdin: the bytes and their SHA-256, computed once."""

    data: bytes
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Self:
        """These bytes with their digest."""
        return cls(data, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Job:
    """What the sandbox needs for one run. Equal jobs give equal output and fuel, on any machine.

    `epoch_ns` and `seed` start the virtual clock and the virtual randomness; both are recorded in the receipt.

    `memory_bytes_own` is the agent's own memory limit where `memory_bytes` is a lower one, for example because the
    budget bought less. It changes nothing for the guest; a failed run then says in `Run.memory_refused` whether the
    lower limit was hit. 0 means that there is no other limit.

    `host_rules` is another than `HOST_RULES` only where a receipt of before is replayed.
    """

    artefact_path: str
    artefact_sha256: str
    stdin: bytes
    fuel: int
    memory_bytes: int
    timeout_ms: int
    epoch_ns: int
    seed: bytes
    output_bytes: int = OUTPUT_BYTES_MAX
    memory_bytes_own: int = 0
    host_rules: int = HOST_RULES


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run was allowed: recorded in the receipt, because a repetition needs them to end the same way."""

    fuel: int
    memory_bytes: int
    timeout_ms: int
    output_bytes: int = OUTPUT_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Meter:
    """What the sandbox measured.

    `fuel_exact` is false where a hardware trap made the engine under-report, and for a run that was killed: its `fuel`
    is then what its processor time comes to at `FUEL_PER_CPU_MS`, at most its limit.
    """

    fuel: int = 0
    fuel_exact: bool = True
    cpu_ms: int = 0
    wall_ms: int = 0
    memory_bytes: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    stderr_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """How a run ended: outcome, a sentence for the agent's author, what it wrote, the meter, its limits if it began.

    `memory_refused` is true if the run failed after it was refused memory that `Job.memory_bytes_own` would have given
    it, or if that could not be found out before the run's deadline: whoever set the lower limit bears the doubt.
    `rejected_by` names what did not accept the output. `scores_micro` are those that judges gave, in millionths.
    """

    outcome: Outcome
    message: str
    meter: Meter
    exit_code: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    limits: Limits | None = None
    memory_refused: bool = False
    rejected_by: RejectedBy | None = None
    scores_micro: Mapping[Side, int] = field(default_factory=dict)
