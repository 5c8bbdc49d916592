"""Structured logs and metrics. Never in them: input, output, tokens, keys.

What happens is noted at once and told when the invocation ends, in CloudWatch's embedded metric format. Neither can
fail the invocation. `docs/operations.md` says what each metric means.
"""

import os
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Final

from aws_lambda_powertools import Logger
from aws_lambda_powertools.logging import correlation_paths
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from quittance import tracing

if TYPE_CHECKING:
    from quittance.ledger.escrow import Escrow, Settlement
    from quittance.run import Fault, Outcome

NAMESPACE: Final = "Quittance"
SERVICE: Final = os.environ.get("POWERTOOLS_SERVICE_NAME", "quittance")

logger = Logger(service=SERVICE)

Handler = Callable[[Any, Any], Any]


class Metric(StrEnum):
    """All metrics that there are. A name ends in its unit: milliseconds, micro-credits, or else a number of things."""

    # By service, fault and outcome.
    TASKS = "Tasks"
    # By service and function.
    COLD_STARTS = "ColdStarts"
    # By service.
    FUNDED = "FundedMicro"
    PAID = "PaidMicro"
    FEES = "FeesMicro"
    REFUNDED = "RefundedMicro"
    SETTLEMENT = "SettlementMs"
    SANDBOX = "SandboxMs"
    WORKER_STARTS = "WorkerStarts"
    WORKER_KILLS = "WorkerKills"
    CONFLICTS = "LedgerConflicts"
    RETRIES = "LedgerRetries"
    SWEPT_EXPIRED = "SweepExpired"
    SWEPT_CREDITED = "SweepCredited"
    SWEPT_LOGGED = "SweepLogged"
    LOG_SIZE = "LogPublished"
    WRITTEN_OFF = "BondWrittenOffMicro"
    SWEEP_FAILURES = "SweepFailures"
    SWEEP_COMPLETE = "SweepComplete"
    SWEEP_LAG = "SweepLagMs"
    OLDEST_OVERDUE = "OldestOverdueMs"
    QUEUED = "TasksQueued"
    POSTPONED = "TasksPostponed"
    DEAD_REFUNDED = "DeadLettersRefunded"
    DEAD_REFUSED = "DeadLettersRefused"
    DEAD_UNREADABLE = "DeadLettersUnreadable"
    AUDIT_DIFFERENCES = "AuditDifferences"
    PAYOUTS_WAITING = "PayoutsWaiting"
    OLDEST_PAYOUT = "OldestPayoutMs"
    EVENTS_TOLD = "EventsTold"
    WEBHOOKS_DELIVERED = "WebhooksDelivered"
    WEBHOOKS_FAILED = "WebhooksFailed"
    WEBHOOKS_GIVEN_UP = "WebhooksGivenUp"

    @property
    def unit(self) -> MetricUnit:
        """CloudWatch's unit; it has none for credits."""
        return MetricUnit.Milliseconds if self.endswith("Ms") else MetricUnit.Count


_metrics = EphemeralMetrics(namespace=NAMESPACE, service=SERVICE)
_counts: Counter[Metric] = Counter()
_outcomes: Counter[tuple["Outcome", "Fault"]] = Counter()


def entry(handler: Handler) -> Handler:
    """A Lambda handler whose logs carry the request's ids; it writes one line for each answer, and the metrics."""

    @logger.inject_lambda_context(clear_state=True, correlation_id_path=correlation_paths.API_GATEWAY_REST)
    @wraps(handler)
    def handle(event: Any, context: Any) -> Any:  # noqa: ANN401 - Lambda hands over any JSON
        try:
            with tracing.invocation():
                answer = handler(event, context)
        finally:
            _tell(context.function_name)
        logger.info("answered", status=answer.get("statusCode") if isinstance(answer, dict) else None)
        return answer

    return handle


def count(metric: Metric, number: int = 1) -> None:
    """Notes that so many more of a thing happened in this invocation, or none."""
    _counts[metric] += number


def measure(metric: Metric, value: int) -> None:
    """Notes one value of a distribution."""
    _metrics.add_metric(name=metric, unit=metric.unit, value=value)


def about(escrow: "Escrow") -> None:
    """From now on the invocation's log lines and steps name this task."""
    tracing.about(escrow.escrow_id, task_id=escrow.task_id, escrow_id=escrow.escrow_id, agent_id=escrow.agent_id)
    logger.append_keys(task_id=escrow.task_id, escrow_id=escrow.escrow_id, agent_id=escrow.agent_id)


def funded(stored: "Escrow", *, by: str) -> None:
    """Counts what a runner funded, unless the stored escrow is another runner's."""
    if stored.runner == by:
        count(Metric.FUNDED, stored.budget_micro + sum(judge.budget_micro for judge in stored.judges))


def settled(stored: "Escrow", ours: "Settlement") -> None:
    """Counts and logs how an escrow settled, unless the stored settlement is another attempt's.

    No two attempts sign the same receipt, so the receipt says whose settlement is stored.
    """
    if stored.settlement is None or stored.settlement.receipt != ours.receipt:
        return
    split, outcome, latency_ms = ours.split, ours.outcome, ours.settled_ms - stored.funded_ms
    tracing.note(stored.escrow_id, outcome=outcome)
    _outcomes[outcome, ours.fault] += 1
    count(Metric.PAID, split.paid_micro)
    count(Metric.FEES, split.fee_micro)
    count(Metric.REFUNDED, split.refunded_micro)
    if stored.state != "expired":  # an expiry waits by design, and would hide how quick the others are
        measure(Metric.SETTLEMENT, latency_ms)
    logger.info(
        "settled",
        task_id=stored.task_id,
        escrow_id=stored.escrow_id,
        agent_id=stored.agent_id,
        state=stored.state,
        outcome=outcome,
        fault=ours.fault,
        paid_micro=split.paid_micro,
        fee_micro=split.fee_micro,
        refunded_micro=split.refunded_micro,
        latency_ms=latency_ms,
    )


def _tell(function: str) -> None:
    """Writes what was noted to standard output, where CloudWatch finds it, and forgets it."""
    try:
        _tell_cold_start(function)
        for (outcome, fault), number in _outcomes.items():
            _tell_one(Metric.TASKS, number, {"fault": fault, "outcome": outcome}, {"fault": fault})
        for metric, number in _counts.items():
            measure(metric, number)
        if _metrics.metric_set:
            _metrics.flush_metrics()
    except Exception:  # money has moved by now: the answer is worth more than its metrics
        logger.exception("metrics lost")
    finally:
        _outcomes.clear()
        _counts.clear()
        _metrics.clear_metrics()


@cache
def _tell_cold_start(function: str) -> None:
    """Tells of the first invocation of this environment: only the first call does anything."""
    _tell_one(Metric.COLD_STARTS, 1, {"function": function})


def _tell_one(metric: Metric, value: int, *dimensions: dict[str, str]) -> None:
    """Writes a metric with dimensions of its own beside the service, once for each set of them."""
    first, *others = dimensions
    told = EphemeralMetrics(namespace=NAMESPACE, service=SERVICE)
    for name, text in {"service": SERVICE, **first}.items():
        told.add_dimension(name, text)
    for other in others:
        told.add_dimensions(service=SERVICE, **other)
    told.add_metric(metric, metric.unit, value)
    told.flush_metrics()
