"""Result: the outcome of a task, and the proof that its receipt is in the log."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from quittance import observability
from quittance.acceptance.rules import without_output
from quittance.api.identity import Caller
from quittance.api.models import (
    AccountId,
    JudgeAnswer,
    ResourceUsage,
    StatedTaskId,
    TaskError,
    TaskInput,
    TaskPending,
    TaskResult,
    as_text,
)
from quittance.errors import (
    InvalidRequestError,
    NotFoundError,
    NotLoggedError,
)
from quittance.ledger import channels
from quittance.ledger import escrow as escrows
from quittance.ledger.balances import is_bond, owner_of
from quittance.ledger.escrow import Escrow, JudgeHold, Settlement, StoredBytes
from quittance.limits import KIB, LOG_SIZE_MAX, MIB
from quittance.platform import Platform
from quittance.proof import log, receipt
from quittance.proof.log import ConsistencyProof, Proof
from quittance.proof.receipt import ReceiptClaims
from quittance.run import Outcome, Side
from quittance.store.blobs import BlobMissingError
from quittance.usecases import settle

Whose = Annotated[AccountId | None, Field(description="For the agent's owner: whose task it is.")]
Since = Annotated[
    int | None, Field(ge=0, le=LOG_SIZE_MAX, description="Also prove that the log of this size is its beginning.")
]


def read(platform: Platform, caller: Caller, task_id: StatedTaskId, user: Whose = None) -> TaskResult | TaskPending:
    """The outcome of a task: whole for its user, without output for the agent's owner.

    The owner names the `user` whose task it is, and gets stderr only if the task shares it. Raises NotFoundError,
    PlatformUnavailableError.
    """
    escrow = settle.expire_if_overdue(platform, find(platform, caller, task_id, user=user))
    if caller.account != (user or caller.account) and escrow.settlement:
        stderr = escrow.settlement.stderr if escrow.share_log else None
        message = without_output(escrow.settlement.message)
        escrow = replace(escrow, settlement=replace(escrow.settlement, output=None, stderr=stderr, message=message))
    return answer(platform, escrow)


def read_input(platform: Platform, caller: Caller, task_id: StatedTaskId) -> TaskInput:
    """The bytes that the agent read, for the task's user alone, if the task asked to keep them.

    Raises NotFoundError, TaskInProgressError before the task is settled, PlatformUnavailableError.
    """
    escrow = find(platform, caller, task_id)
    if not escrow.keep_input:
        msg = "The input of this task was not kept. Send `keep_input: true` with a task to read its input again."
        raise NotFoundError(msg)
    settlement = settle.settled(platform, escrow).settlement
    data = load(platform, settlement.stdin if settlement else None)
    if data is None:
        msg = "The input of this task is not stored: no run read it, or the time for which it is kept is over."
        raise NotFoundError(msg)
    text, encoded = as_text(data)
    return TaskInput(task_id=escrow.task_id, input_sha256=escrow.input_sha256, input=text, input_base64=encoded)


def find(platform: Platform, caller: Caller, task_id: str, *, user: str | None = None) -> Escrow:
    """The escrow of a task or of its judge, for the task's user, the owner of the agent, and the account that pays.

    Raises NotFoundError, PlatformUnavailableError.
    """
    payer = user or caller.account
    named, _, side = task_id.partition(escrows.JUDGE_MARK)
    escrow = platform.ledger.find(channels.escrow_id_of(payer, named))
    if escrow and escrow.payer != payer:  # a ticket's task_id alone names its escrow
        escrow = None
    if escrow and side:
        hold = next((hold for hold in escrow.judges if hold.side == side), None)
        escrow = platform.ledger.find(hold.escrow_id) if hold else None
    if escrow is None or caller.account not in {payer, escrow.owner} | _bond_owner(escrow.payer):
        msg = f"You have no task {task_id!r}."
        raise NotFoundError(msg)
    observability.about(escrow)
    return escrow


def prove(platform: Platform, caller: Caller, task_id: StatedTaskId, user: Whose = None, since: Since = None) -> Proof:
    """That the receipt of a task is in the published log, and that the log of `since` entries is its beginning.

    Raises NotFoundError, NotLoggedError, InvalidRequestError if the log is not as long as `since`,
    PlatformUnavailableError.
    """
    escrow = find(platform, caller, task_id, user=user)
    place, size = platform.ledger.log.place(escrow.escrow_id), platform.ledger.log.head().published
    if place is None or place >= size:
        raise NotLoggedError
    if since is not None and since > size:
        raise InvalidRequestError(("since", f"must be at most {size}, the size of the published log"))
    return Proof(
        leaf_index=place,
        tree_size=size,
        path=[hashed.hex() for hashed in log.inclusion_proof(place, size, platform.tiles.read)],
        checkpoint=platform.tiles.checkpoint(size),
        consistency=None if since is None else _consistency(platform, since, size),
    )


def _consistency(platform: Platform, since: int, size: int) -> ConsistencyProof:
    path = log.consistency_proof(since, size, platform.tiles.read)
    return ConsistencyProof(tree_size=since, path=[hashed.hex() for hashed in path])


def answer(
    platform: Platform,
    escrow: Escrow,
    *,
    claims: ReceiptClaims | None = None,
    written: Mapping[str, bytes] = MappingProxyType({}),
) -> TaskResult | TaskPending:
    """The answer for a task, from its stored escrow.

    `claims` are those of the receipt if it was signed just now; `written` is as in `load`.
    """
    settlement = escrow.settlement
    if settlement is None:
        return TaskPending(
            task_id=escrow.task_id,
            agent_id=escrow.agent_id,
            escrow_id=escrow.escrow_id,
            escrow_status=escrow.state,
            expires_at=escrow.expires_ms,
        )
    stated = receipt.read_claims(settlement.receipt) if claims is None else claims.as_json()
    output = load(platform, settlement.output, written)
    stderr = load(platform, settlement.stderr, written)
    text, encoded = as_text(output)
    success = settlement.outcome is Outcome.SUCCEEDED
    return TaskResult(
        task_id=escrow.task_id,
        agent_id=escrow.agent_id,
        success=success,
        input_sha256=escrow.input_sha256,
        output=text,
        output_base64=encoded,
        log=None if stderr is None else stderr.decode(errors="replace"),
        error=None if success else TaskError(code=settlement.outcome, message=settlement.message),
        execution_time_ms=stated["meter"]["wall_ms"],
        resource_usage=_resource_usage(stated["meter"]),
        escrow_id=escrow.escrow_id,
        escrow_status=settlement.state,
        amount_paid_micro=settlement.split.paid_micro,
        amount_refunded_micro=settlement.split.refunded_micro,
        fee_micro=settlement.split.fee_micro,
        compute_micro=settlement.compute_micro,
        judging_micro=settlement.task_judging_micro,
        fault=settlement.fault,
        judges=[_judge_answer(escrow, settlement, hold, stated["acceptance"] or {}) for hold in escrow.judges],
        payment_method="ticket" if escrow.ticket else "escrow",
        reputation_delta=settlement.reputation_tenths,
        timestamp=settlement.settled_ms,
        receipt=settlement.receipt,
    )


def _resource_usage(meter: Mapping[str, Any]) -> ResourceUsage:
    return ResourceUsage(
        memory_used_mb=round(meter["memory_bytes"] / MIB, 3),
        cpu_time_ms=meter["cpu_ms"],
        execution_time_ms=meter["wall_ms"],
        storage_used_kb=round((meter["output_bytes"] + meter["stderr_bytes"]) / KIB, 3),
        fuel_used=meter["fuel"],
        fuel_exact=meter["fuel_exact"],
        input_bytes=meter["input_bytes"],
        output_bytes=meter["output_bytes"],
    )


def _judge_answer(task: Escrow, settlement: Settlement, hold: JudgeHold, acceptance: Mapping[str, Any]) -> JudgeAnswer:
    return JudgeAnswer(
        side=hold.side,
        agent_id=hold.agent_id,
        task_id=escrows.judge_task_id(task.task_id, hold.side),
        budget_micro=hold.budget_micro,
        cost_micro=settlement.judging_micro if hold.side is Side.AGENT else settlement.task_judging_micro,
        score=acceptance.get(f"{hold.side}_score"),
    )


def load(
    platform: Platform, stored: StoredBytes | None, written: Mapping[str, bytes] = MappingProxyType({})
) -> bytes | None:
    """Stored bytes; None if there are none, or if the time for which they are kept is over.

    `written` has by digest what was stored just now, which is not loaded again. Raises PlatformUnavailableError.
    """
    if stored is None:
        return None
    if stored.sha256 in written:
        return written[stored.sha256]
    try:
        return platform.outputs.load(stored)
    except BlobMissingError:
        return None  # past the retention of the outputs bucket; the receipt still names it by digest


def _bond_owner(account: str) -> set[str]:
    """The owner of a bond that pays for a judge; nobody for any other account."""
    return {owner_of(account)} if is_bond(account) else set()
