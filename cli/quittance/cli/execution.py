"""One run of an agent on this machine, and its price: the functions that the platform itself uses, in its order.

limits that the budget buys → run in the sandbox → held to the budget → held to the rules → settlement
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from quittance import sandbox
from quittance.acceptance import examples
from quittance.acceptance import rules as acceptance
from quittance.acceptance.rules import NO_RULES
from quittance.cli.artefacts import Artefact
from quittance.ledger import escrow as escrows
from quittance.ledger import pricing
from quittance.ledger.credits import format_credits
from quittance.ledger.escrow import Escrow, Settlement
from quittance.ledger.pricing import ComputePrices
from quittance.limits import BUDGET_MICRO_MAX
from quittance.run import Input, Job, Limits, Outcome, Run, Side

PLATFORM_FEE_BPS: Final = 250
PLATFORM_COMPUTE: Final = ComputePrices(run_micro=10, per_billion_fuel_micro=40)
"""The platform's prices by default, as `template.yaml` has them."""

CLOCK_NS: Final = examples.EPOCH_NS
"""The fixed start of the agent's clock: 2026-01-01T00:00:00Z. A task's clock starts when it is funded."""
SEED: Final = examples.SEED
"""The fixed seed of the agent's randomness. A task's seed follows from its id."""

NO_TARIFF: Final = pricing.tariff_json(pricing.FlatTariff(type="flat", price="0"))


@dataclass(frozen=True, slots=True)
class Terms:
    """The agent's terms and the platform's prices. Tariff and rules are canonical JSON; None without a tariff."""

    own: Limits
    tariff: str | None = None
    rules: str = NO_RULES
    fee_bps: int = PLATFORM_FEE_BPS
    compute: ComputePrices = PLATFORM_COMPUTE


@dataclass(frozen=True, slots=True)
class Request:
    """One task: its input, and its budget and timeout if it states them; the start of clock and randomness."""

    stdin: bytes
    budget_micro: int | None = None
    timeout_ms: int | None = None
    epoch_ns: int = CLOCK_NS
    seed: bytes = SEED


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended, and where its budget goes."""

    run: Run
    settlement: Settlement
    escrow: Escrow
    terms: Terms
    request: Request

    @property
    def success(self) -> bool:
        """Whether the agent is paid."""
        return self.run.outcome is Outcome.SUCCEEDED

    @property
    def price_micro(self) -> int:
        """The agent's price, of which the platform's commission is a part."""
        return self.settlement.split.paid_micro + self.commission_micro

    @property
    def commission_micro(self) -> int:
        """The part of the fee that is commission."""
        return self.settlement.split.fee_micro - self.settlement.compute_micro

    @property
    def due_micro(self) -> int:
        """What the payer pays."""
        return self.settlement.split.budget_micro - self.settlement.split.refunded_micro

    def as_json(self) -> dict[str, Any]:
        """The result with the names that the API's answers have."""
        run, meter, split = self.run, self.run.meter, self.settlement.split
        known = self.terms.tariff is not None
        return {
            "success": self.success,
            "outcome": run.outcome,
            "fault": self.settlement.fault,
            "exit_code": run.exit_code,
            "message": run.message,
            "module_sha256": self.escrow.module_sha256,
            "input_sha256": self.escrow.input_sha256,
            "resource_usage": {
                "fuel_used": meter.fuel,
                "fuel_exact": meter.fuel_exact,
                "memory_bytes": meter.memory_bytes,
                "cpu_time_ms": meter.cpu_ms,
                "execution_time_ms": meter.wall_ms,
                "input_bytes": meter.input_bytes,
                "output_bytes": meter.output_bytes,
                "log_bytes": meter.stderr_bytes,
            },
            "tariff_sha256": pricing.tariff_sha256(self.escrow.tariff) if known else None,
            "budget": self._budget(split.budget_micro),
            "price": format_credits(self.price_micro) if known else None,
            "amount_paid": format_credits(split.paid_micro) if known else None,
            "commission": format_credits(self.commission_micro) if known else None,
            "compute": format_credits(self.settlement.compute_micro),
            "fee": format_credits(split.fee_micro),
            "amount_due": format_credits(self.due_micro) if known else None,
            "amount_refunded": self._budget(split.refunded_micro),
            "charged_to_bond": format_credits(self.settlement.charge_micro),
            "clock_ns": self.request.epoch_ns,
            "seed": self.request.seed.hex(),
        }

    def _budget(self, micro: int) -> str | None:
        return None if self.request.budget_micro is None else format_credits(micro)


def execute(box: sandbox.Sandbox, artefact: Artefact, terms: Terms, request: Request) -> Result:
    """Run an artefact under these terms. Raises ValueError if a limit is beyond the platform's."""
    budget_micro = BUDGET_MICRO_MAX if request.budget_micro is None else request.budget_micro
    escrow = _escrow(artefact, terms, request, budget_micro)
    tariff = pricing.parse_tariff(escrow.tariff)
    limits = pricing.limits_bought(tariff, terms.compute, budget_micro=budget_micro, own=terms.own)
    limits = replace(limits, timeout_ms=escrow.timeout_ms)
    job = job_of(artefact, request, limits=limits, own=terms.own)
    run = replace(box.run(job), limits=limits)
    run = _held_to_rules(terms.rules, escrows.held_to_budget(escrow, run))
    if run.rejected_by and run.rejected_by.side is Side.AGENT and limits.memory_bytes < terms.own.memory_bytes:
        run = replace(run, memory_refused=box.needs_more_memory(job, run))
    return Result(run, escrows.decide(escrow, run, now_ms=escrow.funded_ms), escrow, terms, request)


def job_of(artefact: Artefact, request: Request, *, limits: Limits, own: Limits) -> Job:
    """The sandbox's job of a request."""
    return Job(
        artefact_path=str(artefact.path),
        artefact_sha256=artefact.sha256,
        stdin=request.stdin,
        fuel=limits.fuel,
        memory_bytes=limits.memory_bytes,
        memory_bytes_own=own.memory_bytes,
        output_bytes=limits.output_bytes,
        timeout_ms=limits.timeout_ms,
        epoch_ns=request.epoch_ns,
        seed=request.seed,
    )


def _held_to_rules(rules: str, run: Run) -> Run:
    if run.outcome is not Outcome.SUCCEEDED:
        return run
    verdict = acceptance.verdict(run.stdout, agent=acceptance.parse_rules(rules), task=None)
    if verdict.accepted:
        return run
    return replace(run, outcome=Outcome.REJECTED, message=verdict.message, rejected_by=verdict.rejected_by)


def _escrow(artefact: Artefact, terms: Terms, request: Request, budget_micro: int) -> Escrow:
    """The escrow that the platform would hold for this task; nobody sees its names."""
    funded_ms = request.epoch_ns // 1_000_000
    timeout_ms = min(request.timeout_ms or terms.own.timeout_ms, terms.own.timeout_ms)
    return Escrow(
        escrow_id="",
        payer="",
        task_id="",
        request_sha256="",
        agent_id="",
        owner="",
        module_sha256=artefact.module_sha256,
        input_sha256=Input.of(request.stdin).sha256,
        tariff=terms.tariff or NO_TARIFF,
        budget_micro=budget_micro,
        fee_bps=terms.fee_bps,
        timeout_ms=timeout_ms,
        runner="",
        fence=1,
        funded_ms=funded_ms,
        lease_ms=funded_ms,
        expires_ms=funded_ms,
        compute=terms.compute,
        own_limits=terms.own,
    )
