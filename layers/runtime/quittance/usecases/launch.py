"""Launch: which version of an agent a task runs, its run in the sandbox, and the check of its output.

Once a budget is held, every failure is an outcome: nothing here raises after the escrow is funded.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from quittance import observability, tracing
from quittance.acceptance import rules as acceptance
from quittance.acceptance.rules import Rules, Verdict, parse_rules, rules_sha256
from quittance.agent import Agent, Version
from quittance.errors import AgentNotReadyError, PlatformUnavailableError
from quittance.ledger import escrow as escrows
from quittance.ledger import pricing
from quittance.ledger.escrow import Escrow
from quittance.limits import KILL_MARGIN_MS, LOAD_MS_MAX, SETTLE_RESERVE_MS
from quittance.observability import Metric, logger
from quittance.platform import Platform
from quittance.run import Job, Limits, Meter, Outcome, Run, Side
from quittance.sandbox import artefact_key
from quittance.store.blobs import BlobMissingError, BlobTamperedError

FROZEN_OWNER: Final = "frozen"
"""The state of an agent whose owner's account is frozen."""
RUN_RESERVE_MS: Final = LOAD_MS_MAX + KILL_MARGIN_MS + SETTLE_RESERVE_MS
"""The most that a run without rules takes beyond its timeout."""
HOST_FAILURES: Final = (OSError, MemoryError)
"""Failures of this machine: no file descriptor, no memory, a broken disk."""
_RECOMPILE_S: Final = 5


@dataclass(frozen=True, slots=True)
class ReadyAgent:
    """An agent that takes tasks: its active version and the rules that it publishes for its outputs."""

    agent: Agent
    version: Version
    rules: Rules

    def matches(self, escrow: Escrow) -> bool:
        """Whether version and rules are still those that an escrow was funded for."""
        now = (self.version.module_sha256, rules_sha256(self.agent.terms.rules))
        return now == (escrow.module_sha256, escrow.agent_rules_sha256)


def ready_agent(platform: Platform, agent_id: str) -> ReadyAgent:
    """The agent, if it takes tasks now. Raises NotFoundError, AgentNotReadyError, PlatformUnavailableError."""
    agent = platform.registry.get_cached(agent_id)
    if agent.version is not None and not _is_current(agent.version):
        agent = platform.registry.get(agent_id)  # it may have been compiled since it was cached
    version = agent.version
    if version is None or agent.retired_ms is not None:
        raise AgentNotReadyError(agent.agent_id, agent.state)
    if platform.registry.is_frozen(agent.owner):
        raise AgentNotReadyError(agent.agent_id, FROZEN_OWNER)
    if not platform.registry.is_bonded(agent.owner):
        raise AgentNotReadyError(agent.agent_id, "out_of_bond")
    if not _is_current(version):
        platform.publisher.recompile(agent.agent_id)
        raise AgentNotReadyError(agent.agent_id, "being compiled for a new engine", retry_after_s=_RECOMPILE_S)
    return ReadyAgent(agent, version, parse_rules(agent.terms.rules))


def run(platform: Platform, escrow: Escrow, ready: ReadyAgent, stdin: bytes, *, reserve_ms: int) -> Run:
    """Runs the agent of a funded escrow. Every failure, even of the platform, is an outcome.

    `reserve_ms` is the time that is kept for what follows the run.
    """
    meter, version = Meter(input_bytes=len(stdin)), ready.version
    with ExitStack() as held:
        try:
            with tracing.step("load"):
                copy = platform.binaries.artefact(version.artefact_key, version.artefact_sha256)
                path = held.enter_context(copy)
        except BlobMissingError:
            return Run(Outcome.ARTEFACT_MISSING, "The agent's binary is missing in the platform's storage.", meter)
        except BlobTamperedError:
            return Run(Outcome.ARTEFACT_TAMPERED, "The agent's binary is not the one that was published.", meter)
        except (PlatformUnavailableError, *HOST_FAILURES):
            return Run(Outcome.STORAGE_DOWN, "The platform's storage did not answer.", meter)
        held_ms = escrow.expires_ms - platform.now_ms() - reserve_ms
        left_ms = min(platform.left_ms() - reserve_ms, held_ms)
        # Nobody pays for a run that the escrow's expiry cuts short, so do not begin it. A judge gets the time that is
        # left, because the run that it judges is done.
        if left_ms <= 0 or (held_ms < escrow.timeout_ms and not escrows.is_judge(escrow)):
            return Run(Outcome.OUT_OF_TIME, "The platform had no time left to run the agent.", meter)
        return _run_artefact(platform, path, escrow, ready, stdin, left_ms=left_ms)


def _run_artefact(
    platform: Platform, path: Path, escrow: Escrow, ready: ReadyAgent, stdin: bytes, *, left_ms: int
) -> Run:
    """Runs the artefact at `path` for at most `left_ms`."""
    version = ready.version
    own = escrow.own_limits or ready.agent.terms.limits
    tariff = pricing.parse_tariff(escrow.tariff)
    limits = pricing.limits_bought(tariff, escrow.compute, budget_micro=escrow.budget_micro, own=own)
    limits = replace(limits, timeout_ms=min(escrow.timeout_ms, left_ms))
    job = _job(path, escrow, version, stdin, limits=limits, own=own)
    try:
        run = tracing.step("run")(platform.sandbox.run)(job)
    except HOST_FAILURES:
        logger.exception("run failed")
        run = Run(Outcome.WORKER_LOST, "The platform could not run the agent.", Meter(input_bytes=len(stdin)))
    observability.measure(Metric.SANDBOX, run.meter.wall_ms)
    run = replace(run, limits=limits)
    if run.outcome in {Outcome.ARTEFACT_MISSING, Outcome.ARTEFACT_TAMPERED}:
        platform.binaries.forget(version.artefact_sha256)
    if run.outcome is Outcome.TIMEOUT and left_ms < escrow.timeout_ms:
        message = "The platform had to end the run before its timeout."
        return replace(run, outcome=Outcome.OUT_OF_TIME, message=message, memory_refused=False)
    return run


def with_memory_doubt(platform: Platform, escrow: Escrow, ready: ReadyAgent, stdin: bytes, run: Run) -> Run:
    """The run. If its agent's rules rejected it, `memory_refused` says whether the budget bought too little memory.

    A guest that is refused memory may end normally, with another output. So run it once more with the agent's own
    limit, within the rest of its timeout. If that run gives no answer, memory counts as refused: the
    payer set the lower limit.
    """
    limits, own = run.limits, escrow.own_limits
    by_agents_rules = run.rejected_by is not None and run.rejected_by.side is Side.AGENT
    if not (by_agents_rules and limits and own and limits.memory_bytes < own.memory_bytes):
        return run
    left_ms = min(platform.left_ms(), escrow.expires_ms - platform.now_ms()) - RUN_RESERVE_MS
    left_ms = min(left_ms, limits.timeout_ms - run.meter.wall_ms)
    refused = True
    if left_ms > 0:
        limits = replace(limits, timeout_ms=left_ms)
        try:
            with platform.binaries.artefact(ready.version.artefact_key, ready.version.artefact_sha256) as path:
                job = _job(path, escrow, ready.version, stdin, limits=limits, own=own)
                refused = platform.sandbox.needs_more_memory(job, run)
        except (BlobMissingError, BlobTamperedError, PlatformUnavailableError, *HOST_FAILURES):
            logger.exception("could not find out whether memory was refused")
    return replace(run, memory_refused=refused)


def _job(path: Path, escrow: Escrow, version: Version, stdin: bytes, *, limits: Limits, own: Limits) -> Job:
    return Job(
        artefact_path=str(path),
        artefact_sha256=version.artefact_sha256,
        stdin=stdin,
        fuel=limits.fuel,
        memory_bytes=limits.memory_bytes,
        memory_bytes_own=own.memory_bytes,
        output_bytes=limits.output_bytes,
        timeout_ms=limits.timeout_ms,
        epoch_ns=escrow.funded_ms * 1_000_000,
        seed=escrows.seed(escrow),
    )


def _is_current(version: Version) -> bool:
    """Whether the artefact was compiled for this environment's engine, configuration and processor."""
    return version.artefact_key == artefact_key(version.module_sha256)


@tracing.step("accept")
def held_to_rules(agent: Rules, task: Rules | None, run: Run) -> Run:
    """The run, rejected if its output does not meet the agent's rules or the task's."""
    if run.outcome is not Outcome.SUCCEEDED:
        return run
    try:
        verdict = acceptance.verdict(run.stdout, agent=agent, task=task)
    except MemoryError:
        return out_of_memory(run)
    return run if verdict.accepted else rejected(run, verdict)


def rejected(run: Run, verdict: Verdict) -> Run:
    """The run, rejected by a verdict."""
    return replace(run, outcome=Outcome.REJECTED, message=verdict.message, rejected_by=verdict.rejected_by)


def out_of_memory(run: Run) -> Run:
    """The run, failed by the platform: this machine has no memory to check its output."""
    logger.exception("no memory to check the output")
    return replace(run, outcome=Outcome.WORKER_LOST, message="The platform had no memory left to read the output.")
