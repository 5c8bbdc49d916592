"""Texts of the OpenAPI description that stand nowhere in the code: shared names, headers, and one problem of each type.

A property or parameter gets its description from the code (`Field(description=...)`). One whose name means the same
everywhere may have none there; it gets the text of FIELDS. A test demands that none is left without.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from quittance import errors
from quittance.errors import QuittanceError

FIELDS: Final[Mapping[str, str]] = {
    "account_id": "The account's id; in a path, `me` is your own account.",
    "action": "What the operator did.",
    "agent_id": "The agent's id.",
    "agents": "The agents of this page.",
    "amount": "The amount that was recorded.",
    "at": "When it was recorded.",
    "bond_id": "The id that the client chose for the movement.",
    "checkpoint": "The log's signed checkpoint (compact JWS).",
    "code": "Why, as a stable code.",
    "consistency": "The proof for `since`; null if it was not asked for.",
    "cpu_time_ms": "Processor time of the run, in milliseconds.",
    "created_at": "When the agent was registered.",
    "decided_at": "When the payout was decided; null while it waits.",
    "deposit_id": "The id that the client chose for the deposit.",
    "description": "What the agent does, in its owner's words.",
    "error": "Why the agent was not paid; null if it was.",
    "escrow_id": "The id of the task's escrow.",
    "escrow_status": "The state of the task's escrow.",
    "execution_time_ms": "How long the run took, in milliseconds.",
    "expires_at": "No longer valid after this time.",
    "fields": "The form's fields, to be sent before the file.",
    "fuel": "The most fuel that a run may use.",
    "fuel_used": "Fuel that the run used: one unit for each WebAssembly instruction, more for costly ones.",
    "greatest": "The greatest value.",
    "index": "The tile's index in its level.",
    "input_bytes": "Size of the input.",
    "kind": "What moved the credits.",
    "leaf_index": "The receipt's index in the log.",
    "least": "The least value.",
    "level": "The tile's level in the tree.",
    "limit": "The most items of the page.",
    "limits": "What one run of the agent may use.",
    "lines": "The movements of this page.",
    "max_bytes": "The most bytes of an output.",
    "memory_mib": "The most memory that a run may use, in MiB.",
    "message": "Why, in a sentence.",
    "method": "The method of the upload's request.",
    "min_bytes": "The fewest bytes of an output.",
    "name": "The agent's name, chosen by its owner.",
    "operation_id": "The operation's id.",
    "operations": "The operations of this page.",
    "outcomes": "Runs that count for the reputation.",
    "output_bytes": "Size of the output.",
    "owner": "The account of the agent's owner.",
    "p50": "Half of the values are at most this.",
    "p95": "19 of 20 values are at most this.",
    "run_id": "The id of the run.",
    "path": "Hashes of the proof, in the order in which a verifier uses them.",
    "payment_method": "How the task was paid.",
    "payout_id": "The payout's id.",
    "payouts": "The payouts of this page.",
    "price": "What the runs cost.",
    "reason": "Why the operator did it.",
    "recorded_at": "When it was recorded the first time.",
    "rejection": "Why the newest upload was refused; null if it was not.",
    "reputation_delta": "How far the run moved the agent's reputation.",
    "requested_at": "When the withdrawal was recorded.",
    "resource_usage": "What the sandbox measured.",
    "runs": "How many runs these figures are of.",
    "scores": "The score by each algorithm.",
    "state": "The state now.",
    "success": "Whether the agent succeeded and was paid.",
    "successes": "Runs that were paid for.",
    "tariff": "The agent's price terms.",
    "task_id": "The id that the client chose for the task.",
    "timeout": "The longest time that a run may take, in seconds.",
    "timestamp": "When the task was settled.",
    "tree_size": "The number of receipts in the log.",
    "type": "The kind of tariff.",
    "upload": "The form to upload the module with.",
    "url": "Where to send the form.",
    "width": "How many of the tile's hashes to return.",
    "withdrawal_id": "The id that the client chose for the withdrawal.",
}

HEADERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "Link": {"description": 'The next page: a URL with `rel="next"` (RFC 8288).', "schema": {"type": "string"}},
    "Location": {"description": "The path of the task's result on this host.", "schema": {"type": "string"}},
    "Preference-Applied": {
        "description": "`respond-async` if the task was queued because the request preferred it (RFC 7240).",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds to wait before the same request is worth repeating (RFC 9110).",
        "schema": {"type": "integer", "minimum": 0},
    },
    "WWW-Authenticate": {
        "description": "Which token is needed, and why this one was refused (RFC 6750). AWS renames it to"
        " `x-amzn-Remapped-WWW-Authenticate` where a function answers.",
        "schema": {"type": "string"},
    },
}

MEMBERS: Final[Mapping[str, str]] = {
    "available": "The credits that are available.",
    "bond": "The credits in the bond.",
    "bytes_max": "The most bytes.",
    "contract_sha256": "SHA-256 of the agent's contract.",
    "errors": "Each field that is wrong.",
    "judging": "The most that judging may cost.",
    "least_price": "The least budget.",
    "recorded": "The amount that was recorded before.",
    "reputation": "The agent's score now.",
    "required": "The credits that are required.",
    "required_scope": "The scope that the token lacks.",
    "running_max": "The most tasks that may run at once.",
    "state": "The state that prevents the request.",
}
"""Members that problems may have beside those of RFC 9457 and `code`."""

SAMPLES: Final[Sequence[QuittanceError]] = (
    errors.InvalidRequestError(("budget", "must be at least 0.000001 and at most 1000000")),
    errors.UnauthenticatedError("The token has expired."),
    errors.InsufficientFundsError(available_micro=20_000, required_micro=50_000),
    errors.BondRequiredError(bond_micro=0, minimum_micro=10_000_000),
    errors.MissingScopeError("ledger:deposit"),
    errors.AccountFrozenError(),
    errors.NotFoundError("There is no agent 'agt_k5x2mfq7w3nzt4ab'."),
    errors.NotLoggedError(),
    errors.TaskConflictError("invoice-7"),
    errors.TaskInProgressError("invoice-7", retry_after_s=2),
    errors.AgentNotReadyError("agt_k5x2mfq7w3nzt4ab", "publishing", retry_after_s=2),
    errors.TermsChangedError("module_sha256", now="6e34" * 16),
    errors.VersionNotPublishedError("agt_k5x2mfq7w3nzt4ab", 3, state="rejected"),
    errors.BondInUseError(
        "tasks of your agents are not settled and credited yet. Repeat the request later", retry_after_s=240
    ),
    errors.MovementConflictError("deposit-7", recorded_micro=5_000_000),
    errors.RegistrationConflictError("wordcount-1"),
    errors.PayoutConflictError("YWxpY2UjdzE", state="paid"),
    errors.PayloadTooLargeError("input", bytes_max=1_048_576),
    errors.UnsupportedMediaTypeError(),
    errors.BudgetTooLowError(budget_micro=1_000, least_micro=10_000),
    errors.JudgingTooDearError(judging_micro=20_000, most_micro=10_000),
    errors.InputNotAcceptedError("input/items/3/price", "must be of type number", contract_sha256="6e34" * 16),
    errors.ReputationTooLowError(score_tenths=612, least_tenths=800),
    errors.TimeoutTooLongError(timeout_s_max=25, reason="the caller waits for the answer"),
    errors.TooManyRunningError(running_max=10, retry_after_s=5),
    errors.FundingPausedError(),
    errors.AnswerTooLargeError(),
    errors.PlatformUnavailableError(),
)
"""One error of each class, for the examples of problems."""
