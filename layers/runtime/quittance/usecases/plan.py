"""The plan of a workflow run: many tasks under one budget. The workflow's first step; it moves no money and stores
nothing.

Every task gets its id and its budget here, so that a step that the workflow repeats is a repeat of the same task.
"""

from quittance.api.models import RunLine, RunPlan, RunRequest
from quittance.errors import InvalidRequestError, PayloadTooLargeError
from quittance.ledger.credits import format_credits
from quittance.limits import RUN_PASSED_ON_BYTES_MAX, RUN_PLAN_BYTES_MAX, RUN_TASK_BYTES, WORKFLOW_STATE_BYTES_MAX


def plan(request: RunRequest) -> RunPlan:
    """The tasks of a run. Raises InvalidRequestError, PayloadTooLargeError.

    Task `{run_id}.{input}.{step}`, both counted from 0, has its step's share of the run's budget.
    """
    budgets_micro = split(request.budget_micro, [step.share for step in request.steps], among=len(request.inputs))
    if not all(budgets_micro):
        tasks = len(request.inputs) * len(request.steps)
        raise InvalidRequestError(("budget", f"is too small to be divided among {tasks} tasks"))
    options = request.model_dump(mode="json", include={"keep_input", "share"}, exclude_defaults=True)
    steps = [
        step.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"share"})
        | options
        | {"user_id": request.user_id, "budget": format_credits(budget_micro), "inline_bytes_max": bytes_max}
        for step, budget_micro, bytes_max in zip(request.steps, budgets_micro, _inline_bytes_max(request), strict=True)
    ]
    planned = RunPlan(
        run_id=request.run_id,
        lines=[
            RunLine(input=text, tasks=[{"task_id": f"{request.run_id}.{line}.{n}", **s} for n, s in enumerate(steps)])
            for line, text in enumerate(request.inputs)
        ],
    )
    if len(planned.model_dump_json().encode()) > RUN_PLAN_BYTES_MAX:
        field = "inputs"
        raise PayloadTooLargeError(field, bytes_max=RUN_PLAN_BYTES_MAX)
    return planned


def split(total_micro: int, shares: list[int], *, among: int) -> list[int]:
    """Divides an amount equally `among` a number of inputs, and each part by shares. Returns the amount of each share.

    Rounds down: equal shares get equal amounts, and the payer keeps the remainder.
    """
    whole = sum(shares) * among
    return [total_micro * share // whole for share in shares]


def _inline_bytes_max(request: RunRequest) -> list[int]:
    """The largest inline output of each step: the last step's outputs for all inputs must fit in one state."""
    tasks = len(request.inputs) * len(request.steps)
    left = WORKFLOW_STATE_BYTES_MAX - (1 + tasks) * RUN_TASK_BYTES
    last = min(left // len(request.inputs), RUN_PASSED_ON_BYTES_MAX)
    return [RUN_PASSED_ON_BYTES_MAX] * (len(request.steps) - 1) + [last]
