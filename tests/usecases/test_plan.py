"""The plan of a workflow run: budgets are exact, equal and never overspent, and every task is a valid request."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance.api.models import DirectTaskRequest, RunRequest, TaskRequest
from quittance.api.requests import read_direct
from quittance.errors import InvalidRequestError, PayloadTooLargeError
from quittance.limits import (
    BUDGET_MICRO_MAX,
    RUN_ID_CHARS_MAX,
    RUN_PLAN_BYTES_MAX,
    RUN_SHARE_MAX,
    RUN_TASK_BYTES,
    RUN_TASKS_MAX,
    WORKFLOW_STATE_BYTES_MAX,
)
from quittance.usecases.plan import plan, split
from tests.api.test_models import JSON_VALUES

PLAIN: dict[str, Any] = {
    "run_id": "r", "user_id": "u", "budget": "1", "steps": [{"agent_id": "a"}], "inputs": ["x"],
}  # fmt: skip


def request(**changes: Any) -> RunRequest:
    return read_direct(RunRequest, PLAIN | changes)


def tasks(asked: RunRequest) -> list[dict[str, Any]]:
    """The payloads for the execute function, each with the run's input; later steps get another step's output."""
    return [{**task, "input": line.input} for line in plan(asked).lines for task in line.tasks]


@given(
    st.integers(0, BUDGET_MICRO_MAX),
    st.lists(st.integers(1, RUN_SHARE_MAX), min_size=1, max_size=RUN_TASKS_MAX),
    st.integers(1, RUN_TASKS_MAX),
)
def test_parts_never_exceed_the_total_and_lose_only_rounding(total: int, shares: list[int], among: int) -> None:
    parts = split(total, shares, among=among)
    left = total - among * sum(parts)
    assert 0 <= left < among * len(shares), "each part is rounded down by less than a micro-credit"
    for share, part in zip(shares, parts, strict=True):
        assert part * sum(shares) * among <= total * share < (part + 1) * sum(shares) * among


def test_options_of_a_run_are_those_of_each_task() -> None:
    options = {"keep_input": True, "share": {"payer": True, "log": False}}
    steps = [{"agent_id": "a", "share": 2}, {"agent_id": "b"}]
    for task in tasks(request(steps=steps, inputs=["x", "y"], **options)):
        made = read_direct(DirectTaskRequest, task)
        assert (made.keep_input, made.share and made.share.named) == (True, "payer")
    assert not any({"keep_input", "share"} & task.keys() for task in tasks(request(steps=steps)))


@pytest.mark.parametrize(("budget", "each"), [("0.480047", "0.01"), ("0.000048", "0.000001"), ("960000", "20000")])
def test_equal_inputs_get_equal_budgets(budget: str, each: str) -> None:
    assert {task["budget"] for task in tasks(request(budget=budget, inputs=["x"] * 48))} == {each}


def test_budget_too_small_for_each_task_is_refused() -> None:
    assert len(tasks(request(budget="0.00004", inputs=["x"] * 40))) == 40
    for change in ({"budget": "0.000039", "inputs": ["x"] * 40}, {"budget": "0.0005", "steps": [
        {"agent_id": "a", "share": 1}, {"agent_id": "b", "share": 1_000},
    ]}):  # fmt: skip
        with pytest.raises(InvalidRequestError, match="budget: is too small to be divided among"):
            plan(request(**change))


@given(st.lists(JSON_VALUES, min_size=1, max_size=5))
def test_planned_tasks_are_valid_requests_with_their_input(inputs: list[Any]) -> None:
    step = {
        "agent_id": "a", "timeout": 7, "min_reputation": 12.5, "acceptance": {"json_schema": {"maximum": 0.1}},
    }  # fmt: skip
    for value, sent in zip(inputs, tasks(request(steps=[step], inputs=inputs)), strict=True):
        task = read_direct(DirectTaskRequest, sent)
        alone = {name: sent[name] for name in sent.keys() - {"user_id", "inline_bytes_max"}} | {"input": value} | step
        meant = read_direct(TaskRequest, alone)
        assert task.stdin == meant.stdin
        assert (task.timeout, task.min_reputation, task.acceptance) == (7, 125, meant.acceptance)


def test_same_run_has_same_tasks_and_other_runs_have_others() -> None:
    steps = [{"agent_id": "a"}, {"agent_id": "b"}]
    names = ["r", "r.0", "r.0.0", "s"]
    ids = [[task["task_id"] for task in tasks(request(run_id=r, steps=steps, inputs=["x"] * 3))] for r in names]
    assert ids[0] == ["r.0.0", "r.0.1", "r.1.0", "r.1.1", "r.2.0", "r.2.1"]
    assert len({task_id for run in ids for task_id in run}) == 4 * 6
    longest = request(run_id="r" * RUN_ID_CHARS_MAX, inputs=["x"] * RUN_TASKS_MAX)
    assert [read_direct(DirectTaskRequest, task).task_id for task in tasks(longest)]
    with pytest.raises(InvalidRequestError, match="run_id"):
        request(run_id="r" * (RUN_ID_CHARS_MAX + 1))


@pytest.mark.parametrize("steps", [1, 2, 3, RUN_TASKS_MAX])
def test_largest_run_keeps_its_answers_within_one_state(steps: int) -> None:
    chain = [{"agent_id": "a"}] * steps
    full = RUN_TASKS_MAX // steps
    for inputs in range(1, full + 1):
        planned = tasks(request(steps=chain, inputs=["x"] * inputs))
        last = planned[-1]["inline_bytes_max"]
        assert last >= 0
        assert inputs * last + (len(planned) + 1) * RUN_TASK_BYTES <= WORKFLOW_STATE_BYTES_MAX
        assert all(2 * task["inline_bytes_max"] + 3 * RUN_TASK_BYTES <= WORKFLOW_STATE_BYTES_MAX for task in planned)
    with pytest.raises(InvalidRequestError, match="inputs"):
        request(steps=chain, inputs=["x"] * (full + 1))


@pytest.mark.parametrize("letter", ["x", "é", "\0"])
def test_plan_too_large_for_one_state_is_refused(letter: str) -> None:
    """Step Functions would end the execution with an error that no state can catch."""
    rest = len(plan(request(inputs=[""])).model_dump_json())
    each = len(plan(request(inputs=[letter])).model_dump_json().encode()) - rest
    fits = (RUN_PLAN_BYTES_MAX - rest) // each
    plan(request(inputs=[letter * fits]))
    with pytest.raises(PayloadTooLargeError, match="inputs"):
        plan(request(inputs=[letter * (fits + 1)]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inputs": []}, "inputs: must have at least 1 items"),
        ({"inputs": ["x", "\ud800"]}, "inputs.1: must not hold half of a surrogate pair"),
        ({"steps": []}, "steps: must have at least 1 items"),
        ({"steps": [{"agent_id": "a", "share": 0}]}, "steps.0.share"),
        ({"steps": [{"agent_id": "a", "share": RUN_SHARE_MAX + 1}]}, "steps.0.share"),
        ({"steps": [{"agent_id": "a", "budget": "1"}]}, "steps.0.budget: is not a known field"),
        ({"budget": 0}, "budget"),
        ({"budget": "1000000.000001"}, "budget"),
        ({"user_id": "a#b"}, "user_id"),
    ],
)
def test_invalid_fields_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        request(**change)
