"""Structured logs and metrics. They never contain input, output, tokens or keys.

Metrics are collected during an invocation and written when it ends, in CloudWatch's embedded metric format. Neither
logs nor metrics can fail the invocation. `docs/operations.md` says what each metric means.
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
    """All metrics. The end of a name is its unit: `Ms` for milliseconds, `Micro` for micro-credits, else a count."""

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
    EVENTS_EMITTED = "EventsTold"
    WEBHOOKS_DELIVERED = "WebhooksDelivered"
    WEBHOOKS_FAILED = "WebhooksFailed"
    WEBHOOKS_GIVEN_UP = "WebhooksGivenUp"
    LISTED = "RowsListed"
    TICKETS_CONTESTED = "TicketsContested"
    CHANNELS_CLOSED = "ChannelsClosed"
    ARCHIVED = "EscrowsArchived"

    @property
    def unit(self) -> MetricUnit:
        """The unit for CloudWatch, which has none for credits."""
        return MetricUnit.Milliseconds if self.endswith("Ms") else MetricUnit.Count


_metrics = EphemeralMetrics(namespace=NAMESPACE, service=SERVICE)
_counts: Counter[Metric] = Counter()
_outcomes: Counter[tuple["Outcome", "Fault"]] = Counter()


def observed(handler: Handler) -> Handler:
    """Decorates a Lambda handler: adds the request's ids to its logs, logs each answer, writes the metrics."""

    @logger.inject_lambda_context(clear_state=True, correlation_id_path=correlation_paths.API_GATEWAY_REST)
    @wraps(handler)
    def handle(event: Any, context: Any) -> Any:  # noqa: ANN401 - Lambda hands over any JSON
        try:
            with tracing.invocation():
                answer = handler(event, context)
        finally:
            _write_metrics(context.function_name)
        logger.info("answered", status=answer.get("statusCode") if isinstance(answer, dict) else None)
        return answer

    return handle


def count(metric: Metric, number: int = 1) -> None:
    """Adds a number, which may be 0, to a counter of this invocation."""
    _counts[metric] += number


def measure(metric: Metric, value: int) -> None:
    """Adds one value to a distribution."""
    _metrics.add_metric(name=metric, unit=metric.unit, value=value)


def about(escrow: "Escrow") -> None:
    """Adds this task's ids to all later log lines and trace steps of the invocation."""
    tracing.about(escrow.escrow_id, task_id=escrow.task_id, escrow_id=escrow.escrow_id, agent_id=escrow.agent_id)
    logger.append_keys(task_id=escrow.task_id, escrow_id=escrow.escrow_id, agent_id=escrow.agent_id)


def funded(stored: "Escrow", *, by: str) -> None:
    """Counts the budgets that a runner funded, unless another runner funded the stored escrow."""
    if stored.runner == by:
        count(Metric.FUNDED, stored.budget_micro + sum(judge.budget_micro for judge in stored.judges))


def settled(stored: "Escrow", ours: "Settlement") -> None:
    """Counts and logs a settlement, unless the stored settlement is another attempt's.

    No two attempts sign the same receipt, so comparing receipts shows whose settlement is stored.
    """
    if stored.settlement is None or stored.settlement.receipt != ours.receipt:
        return
    split, outcome, latency_ms = ours.split, ours.outcome, ours.settled_ms - stored.funded_ms
    tracing.note(stored.escrow_id, outcome=outcome)
    _outcomes[outcome, ours.fault] += 1
    count(Metric.PAID, split.paid_micro)
    count(Metric.FEES, split.fee_micro)
    count(Metric.REFUNDED, split.refunded_micro)
    if stored.state != "expired":  # an expiry waits by design, and would distort the latency of the others
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


def _write_metrics(function: str) -> None:
    """Writes the collected metrics to standard output, which Lambda sends to CloudWatch, and clears them."""
    try:
        _write_cold_start(function)
        for (outcome, fault), number in _outcomes.items():
            _write_metric(Metric.TASKS, number, {"fault": fault, "outcome": outcome}, {"fault": fault})
        for metric, number in _counts.items():
            measure(metric, number)
        if _metrics.metric_set:
            _metrics.flush_metrics()
    except Exception:  # money may have moved: the answer must be sent even if its metrics are lost
        logger.exception("metrics lost")
    finally:
        forget_metrics()


def forget_metrics() -> None:
    """Drops all metrics that are not written yet."""
    _outcomes.clear()
    _counts.clear()
    _metrics.clear_metrics()


@cache
def _write_cold_start(function: str) -> None:
    """Counts the environment's first invocation. Cached, so that only the first call writes the metric."""
    _write_metric(Metric.COLD_STARTS, 1, {"function": function})


def _write_metric(metric: Metric, value: int, *dimensions: dict[str, str]) -> None:
    """Writes one metric for each set of dimensions, each set together with the service."""
    first, *others = dimensions
    metrics = EphemeralMetrics(namespace=NAMESPACE, service=SERVICE)
    for name, text in {"service": SERVICE, **first}.items():
        metrics.add_dimension(name, text)
    for other in others:
        metrics.add_dimensions(service=SERVICE, **other)
    metrics.add_metric(metric, metric.unit, value)
    metrics.flush_metrics()
