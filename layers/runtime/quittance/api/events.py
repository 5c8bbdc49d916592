"""Events that the platform emits. See docs/events.md.

Each is emitted at least once. `event_id` is derived from what happened, so repeated events have the same id, and a
consumer that remembers ids handles each event once. An event never contains input, output or stderr.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from quittance.agent import Agent, AgentState
from quittance.api.models import Timestamp
from quittance.ledger import escrow as escrows
from quittance.ledger import pricing
from quittance.ledger.credits import CreditsOut
from quittance.ledger.escrow import Escrow, Settlement, State
from quittance.ledger.journal import Payout, PayoutState
from quittance.run import Fault, Outcome

SOURCE: Final = "quittance"
"""The source of all events on the bus."""

_VERSION: Final = 1
_Version = Annotated[
    Literal[1], Field(description="Members may be added within a version; none is taken away or changed.")
]


class Event(BaseModel):
    """What all events have. The name of the class is the event's type: `detail-type` on the bus."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True)

    schema_version: _Version = _VERSION
    event_id: str = Field(description="The same whenever the same thing is told again.")
    at: Timestamp = Field(description="When it happened.")

    @property
    def type(self) -> str:
        """The event's type."""
        return type(self).__name__

    def json_text(self) -> str:
        """The event as JSON: the `detail` on the bus and the body of a webhook."""
        return self.model_dump_json(by_alias=True)


class TaskSettled(Event):
    """A task's escrow was paid out, refunded or expired. Read the output with GET /tasks/{task_id}/result."""

    event: Literal["TaskSettled"] = "TaskSettled"
    task_id: str
    user: str
    agent_id: str
    owner: str
    escrow_id: str
    escrow_status: State
    success: bool
    outcome: Outcome
    fault: Fault
    budget_micro: CreditsOut = Field(alias="budget")
    amount_paid_micro: CreditsOut = Field(alias="amount_paid", description="To the agent's owner.")
    amount_refunded_micro: CreditsOut = Field(
        alias="amount_refunded", description="Back to the user; if a ticket paid, it stays in the channel."
    )
    fee_micro: CreditsOut = Field(alias="fee", description="To the platform. paid + refunded + fee = budget.")
    compute_micro: CreditsOut = Field(alias="compute", description="The part of the fee that is for computing.")
    judging_micro: CreditsOut = Field(alias="judging", description="What the task's own judge cost, beside the budget.")
    channel: str | None = Field(
        default=None,
        exclude_if=lambda channel: channel is None,
        description="The payment channel whose ticket paid; absent if the user's account did.",
    )
    receipt: str = Field(description="Signed statement of all this (compact JWS).")


class TaskRefused(Event):
    """A queued request was refused for good: nothing was held for it, and no answer could reach its sender."""

    event: Literal["TaskRefused"] = "TaskRefused"
    user: str | None = Field(description="Null if the request named none: it was broken, or a ticket was to pay.")
    task_id: str | None
    agent_id: str | None
    code: str = Field(description="That of the problem; see docs/errors.md.")
    detail: str


class AgentPublished(Event):
    """An agent's upload became its active version."""

    event: Literal["AgentPublished"] = "AgentPublished"
    agent_id: str
    owner: str
    name: str
    upload: int = Field(description="Which upload of the agent it was, from 1.")
    module_sha256: str


class AgentRejected(Event):
    """An agent's upload was refused; a version that was active stays so."""

    event: Literal["AgentRejected"] = "AgentRejected"
    agent_id: str
    owner: str
    name: str
    upload: int = Field(description="Which upload of the agent it was, from 1.")
    code: str
    message: str


class PublishingFailed(Event):
    """The platform failed to publish an agent's upload; a version that was active stays so."""

    event: Literal["PublishingFailed"] = "PublishingFailed"
    agent_id: str
    owner: str
    name: str
    upload: int = Field(description="Which upload of the agent it was, from 1.")
    code: str
    message: str


class AgentChanged(Event):
    """An agent's owner activated another of its versions, or changed its name or terms: new tasks get these."""

    event: Literal["AgentChanged"] = "AgentChanged"
    agent_id: str
    owner: str
    name: str
    revision: int = Field(
        description="Rises with each publication, activation and change of the agent: a lower one is older."
    )
    version: int | None = Field(description="The number of the active version; null if there is none.")
    module_sha256: str | None = Field(description="Names the module of the active version.")
    tariff_sha256: str
    rules_sha256: str


class PayoutRequested(Event):
    """Credits were withdrawn: somebody has to pay them out, and to record how that ended."""

    event: Literal["PayoutRequested"] = "PayoutRequested"
    payout_id: str
    account: str
    withdrawal_id: str
    amount_micro: CreditsOut = Field(alias="amount")


class PayoutDecided(Event):
    """A payout ended. If it failed, the credits are available to the account again."""

    event: Literal["PayoutDecided"] = "PayoutDecided"
    payout_id: str
    account: str
    withdrawal_id: str
    amount_micro: CreditsOut = Field(alias="amount")
    state: Literal["paid", "failed"]
    decided_by: str = Field(description="The account of the operator who decided.")


ALL: Final[tuple[type[Event], ...]] = (
    TaskSettled,
    TaskRefused,
    AgentPublished,
    AgentRejected,
    PublishingFailed,
    AgentChanged,
    PayoutRequested,
    PayoutDecided,
)


def task_settled(escrow: Escrow, settlement: Settlement) -> TaskSettled:
    """The event of an escrow that has left FUNDED."""
    return TaskSettled(
        event_id=f"task.{escrow.escrow_id}.{settlement.state}",
        at=settlement.settled_ms,
        task_id=escrow.task_id,
        user=escrow.payer,
        agent_id=escrow.agent_id,
        owner=escrow.owner,
        escrow_id=escrow.escrow_id,
        escrow_status=settlement.state,
        success=settlement.outcome is Outcome.SUCCEEDED,
        outcome=settlement.outcome,
        fault=settlement.fault,
        budget_micro=escrow.budget_micro,
        amount_paid_micro=settlement.split.paid_micro,
        amount_refunded_micro=settlement.split.refunded_micro,
        fee_micro=settlement.split.fee_micro,
        compute_micro=settlement.compute_micro,
        judging_micro=settlement.task_judging_micro,
        channel=escrow.ticket.channel_id if escrow.ticket else None,
        receipt=settlement.receipt,
    )


def task_refused(
    *,
    code: str,
    detail: str,
    request_id: str,
    user: str | None,
    task_id: str | None,
    agent_id: str | None,
    at_ms: int,
) -> TaskRefused:
    """The event of a refused request, with the `code` and `detail` of its problem.

    `request_id` identifies the refused request, for example by its message's id: if the same task is requested and
    refused again, that is another event.
    """
    named = escrows.escrow_id(user, task_id) if user and task_id else "unnamed"
    return TaskRefused(
        event_id=f"task.{named}.refused.{request_id}",
        at=at_ms,
        user=user,
        task_id=task_id,
        agent_id=agent_id,
        code=code,
        detail=detail,
    )


def payout_moved(payout: Payout) -> PayoutRequested | PayoutDecided:
    """The event of a payout that was requested or decided."""
    common: dict[str, Any] = {
        "event_id": f"payout.{payout.payout_id}.{payout.state}",
        "at": payout.requested_ms if payout.decided_ms is None else payout.decided_ms,
        "payout_id": payout.payout_id,
        "account": payout.account,
        "withdrawal_id": payout.withdrawal_id,
        "amount_micro": payout.amount_micro,
    }
    if payout.state is PayoutState.REQUESTED:
        return PayoutRequested(**common)
    return PayoutDecided(**common, state=payout.state.value, decided_by=payout.decided_by or "")


def upload_ended(agent: Agent, *, at_ms: int) -> AgentPublished | AgentRejected | PublishingFailed | None:
    """The event of an agent whose newest upload has become active, was rejected or failed; None for any other state."""
    upload = agent.upload
    common: dict[str, Any] = {
        "event_id": f"agent.{agent.agent_id}.{upload.number}.{upload.state}",
        "at": at_ms,
        "agent_id": agent.agent_id,
        "owner": agent.owner,
        "name": agent.name,
        "upload": upload.number,
    }
    if upload.state is AgentState.ACTIVE and agent.version:
        return AgentPublished(**common, module_sha256=agent.version.module_sha256)
    if upload.state is AgentState.REJECTED and upload.rejection:
        return AgentRejected(**common, code=upload.rejection.code, message=upload.rejection.message)
    if upload.state is AgentState.FAILED and upload.rejection:
        return PublishingFailed(**common, code=upload.rejection.code, message=upload.rejection.message)
    return None


def agent_changed(agent: Agent, *, at_ms: int) -> AgentChanged:
    """The event of an agent whose owner activated another version, or changed name or terms."""
    return AgentChanged(
        event_id=f"agent.{agent.agent_id}.revision.{agent.revision}",
        at=at_ms,
        agent_id=agent.agent_id,
        owner=agent.owner,
        name=agent.name,
        revision=agent.revision,
        version=agent.version.number if agent.version else None,
        module_sha256=agent.version.module_sha256 if agent.version else None,
        tariff_sha256=pricing.tariff_sha256(agent.terms.tariff),
        rules_sha256=agent.terms.rules_sha256,
    )
