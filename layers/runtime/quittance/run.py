"""One run of an agent: its job, its meter, and all outcomes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from quittance.limits import OUTPUT_BYTES_MAX

HOST_RULES: Final = 2
"""The version of the host rules: results and costs of host calls. Each change that a guest can observe raises it."""


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
        """The fault of this outcome if all limits were the agent's own; `escrow.fault` considers who set them."""
        if self in _NO_FAULT:
            return Fault.NONE
        if self in _PAYER_FAULTS:
            return Fault.PAYER
        return Fault.PLATFORM if self in _PLATFORM_FAULTS else Fault.AGENT


# Besides success: a judge whose result is withheld or was not needed, or an agent that changed after funding.
# RULES_FAILED and JUDGE_FAILED occur only in receipts of version 1, where they say nothing about the agent's work.
_NO_FAULT = frozenset(
    {
        Outcome.SUCCEEDED,
        Outcome.RULES_FAILED,
        Outcome.JUDGE_FAILED,
        Outcome.NOT_NEEDED,
        Outcome.WITHHELD,
        Outcome.SUPERSEDED,
    }
)
_PAYER_FAULTS = frozenset({Outcome.BUDGET_EXHAUSTED})
# The run itself succeeded; the rules for its output decided the outcome.
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
    """What rejected an output: rules or a judge, of the agent's owner or of the task's sender."""

    AGENT_RULES = "agent_rules"
    TASK_RULES = "task_rules"
    AGENT_JUDGE = "agent_judge"
    TASK_JUDGE = "task_judge"

    @property
    def side(self) -> Side:
        """The side that set it."""
        return Side.AGENT if self in {RejectedBy.AGENT_RULES, RejectedBy.AGENT_JUDGE} else Side.TASK


@dataclass(frozen=True, slots=True)
class Input:
    """The bytes that an agent reads on stdin, with their SHA-256, which is computed once."""

    data: bytes
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Self:
        """These bytes with their digest."""
        return cls(data, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Job:
    """The parameters of one run. Equal jobs give equal output and fuel on any machine.

    `epoch_ns` and `seed` initialise the virtual clock and the virtual randomness; the receipt records both.

    `memory_bytes_own` is the agent's own memory limit if `memory_bytes` is lower, for example because the budget pays
    for less. It changes nothing for the guest; after a failed run `Run.memory_refused` says whether the lower limit was
    hit. 0 means that there is no other limit.

    `host_rules` differs from `HOST_RULES` only when an older receipt is replayed.
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
    """The limits of a run. The receipt records them, because a replay needs them to end in the same way."""

    fuel: int
    memory_bytes: int
    timeout_ms: int
    output_bytes: int = OUTPUT_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Meter:
    """The sandbox's measurements of a run.

    `fuel_exact` is false if a hardware trap made the engine under-report, and for a killed run: its `fuel` is then
    computed from its processor time with `FUEL_PER_CPU_MS`, and is at most its limit.
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
    """How a run ended: outcome, a message for the agent's author, output, stderr, meter, and its limits if it began.

    `memory_refused` is true if the run failed after it was refused memory that `Job.memory_bytes_own` allows, or if
    that could not be determined before the run's deadline: the side that set the lower limit bears the doubt.
    `rejected_by` names what rejected the output. `scores_micro` has the scores of judges, in millionths.
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
