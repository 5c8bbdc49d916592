"""The workflow's definition, and what it rests on: names of errors, and answers that fit into its state."""

import base64
import json
import re
from typing import Any

import pytest

from quittance import errors
from quittance.api.identity import Caller
from quittance.errors import PlatformUnavailableError, QuittanceError, RequestError, TaskInProgressError
from quittance.limits import (
    ACCOUNT_ID_CHARS_MAX,
    RUN_ID_CHARS_MAX,
    RUN_TASK_BYTES,
    RUN_TASKS_MAX,
    WORKFLOW_STATE_BYTES_MAX,
)
from quittance.usecases import result
from tests.functions.test_handlers import _raise, load, task
from tests.support import ROOT, Cloud, wasm

DEFINITION = (ROOT / "workflows" / "run.asl.json").read_text()
WORKFLOW = json.loads(DEFINITION)
EXECUTE = WORKFLOW["States"]["EachInput"]["ItemProcessor"]["States"]["Execute"]
# The SDK's own, by AWS's page on errors in Step Functions and that on Lambda in it; every call here is safe to repeat.
OF_LAMBDA = {
    "Lambda.TooManyRequestsException",
    "Lambda.ServiceException",
    "Lambda.AWSLambdaException",
    "Lambda.SdkClientException",
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.Unknown",
    "Sandbox.Timedout",
    "Runtime.ExitError",
    "States.Timeout",
}
# What only HTTP, deposits, payouts and proofs raise.
NOT_OF_TASKS = {
    "UnauthenticatedError",
    "MissingScopeError",
    "MovementConflictError",
    "PayoutConflictError",
    "UnsupportedMediaTypeError",
    "NotLoggedError",
    "AnswerTooLargeError",
    "BondInUseError",
    "BondRequiredError",
}
MARK = "marked-payload"


def named(handlers: list[dict[str, Any]]) -> set[str]:
    return {name for handler in handlers for name in handler["ErrorEquals"]}


def subclasses(error: type[QuittanceError]) -> set[str]:
    return {name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, error)}


def lint_as_inline(definition: str) -> list[str]:
    """What cfn-lint says of a definition: in a file of its own it would not be looked at."""
    properties = {"RoleArn": "arn:aws:iam::123456789012:role/r", "DefinitionString": definition}
    machine = {"Type": "AWS::StepFunctions::StateMachine", "Properties": properties}
    from cfnlint.api import lint  # seconds to import, for this one test

    return [match.message for match in lint(json.dumps({"Resources": {"Machine": machine}}))]


def test_the_definition_is_well_formed() -> None:
    filled = re.sub(r"\$\{\w+\}", "aws", DEFINITION)
    assert lint_as_inline(filled) == []
    assert lint_as_inline(filled.replace('"Default": "Stopped"', '"Defautl": "Stopped"'))


def test_every_substitution_is_given(template: dict[str, Any]) -> None:
    given = template["Resources"]["RunWorkflow"]["Properties"]["DefinitionSubstitutions"]
    assert set(re.findall(r"\$\{(\w+)\}", DEFINITION)) == set(given)


def test_every_refusal_is_caught_and_all_else_is_tried_again() -> None:
    """By exact names: a misspelt one would match nothing, and a new error would end executions."""
    retried, caught = named(EXECUTE["Retry"]), named(EXECUTE["Catch"])
    ours = {"TaskInProgressError", "TooManyRunningError", "FundingPausedError", "PlatformUnavailableError"}
    assert retried == ours | {"AgentNotReadyError"} | OF_LAMBDA
    assert caught == subclasses(RequestError) - {"RequestError", "TaskInProgressError"} - NOT_OF_TASKS
    assert subclasses(QuittanceError) - NOT_OF_TASKS - {"QuittanceError", "RequestError"} <= retried | caught
    assert named(WORKFLOW["States"]["Plan"]["Retry"]) == OF_LAMBDA
    assert named(WORKFLOW["States"]["Plan"]["Catch"]) == {"InvalidRequestError", "PayloadTooLargeError"}


def test_lambda_gives_up_before_the_workflow_does(template: dict[str, Any]) -> None:
    assert EXECUTE["TimeoutSeconds"] > template["Resources"]["ExecuteFunction"]["Properties"]["Timeout"]


def test_retries_wait_longer_than_a_task_that_was_lost_is_held() -> None:
    """On average half of each delay, by its jitter: past a lease (60 s), and past an escrow's expiry (115 s)."""
    (retry,) = (retry for retry in EXECUTE["Retry"] if "TaskInProgressError" in retry["ErrorEquals"])
    delays = [
        min(retry["IntervalSeconds"] * retry["BackoffRate"] ** n, retry["MaxDelaySeconds"])
        for n in range(retry["MaxAttempts"])
    ]
    assert sum(delays) / 2 > 150
    assert retry["JitterStrategy"] == "FULL"


def test_the_workflow_may_call_its_two_functions_and_logs_no_data(template: dict[str, Any]) -> None:
    properties = template["Resources"]["RunWorkflow"]["Properties"]
    statements = [statement for policy in properties["Policies"] for statement in policy["Statement"]]
    calls = [statement for statement in statements if statement["Resource"] != "*"]
    assert [(statement["Action"], str(statement["Resource"])) for statement in calls] == [
        (
            "lambda:InvokeFunction",
            "[{'Ref': 'PlanFunction.Alias'}, {'Ref': 'ExecuteFunction.Alias'}]",
        )
    ]
    on_all = {action for statement in statements if statement["Resource"] == "*" for action in statement["Action"]}
    assert all(action.startswith("logs:") and "*" not in action for action in on_all)
    assert properties["Logging"]["IncludeExecutionData"] is False
    assert "Policies" not in template["Resources"]["PlanFunction"]["Properties"], "it moves nothing"


def test_a_direct_task_whose_outcome_is_unknown_raises_what_workflows_try_again(
    platform: Cloud, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, asked = load("execute").handler, task(platform.publish(wasm("echo"))) | {"user_id": "alice"}
    with monkeypatch.context() as patch:
        patch.setattr(platform.ledger, "settle", _raise(PlatformUnavailableError))
        with pytest.raises(TaskInProgressError):
            execute(asked, context)
    with pytest.raises(TaskInProgressError):
        execute(asked, context)
    platform.skew_ms = 60_000  # past the lease: the repeat takes the task over
    assert execute(asked, context)["escrow_status"] == "released"


def test_an_output_or_log_over_the_bound_is_left_out_and_the_rest_stays(platform: Cloud, context: Any) -> None:
    execute, echo = load("execute").handler, platform.publish(wasm("echo"))
    for text, in_json in (("x" * 98, 100), ("é" * 49, 100), ("\0" * 8, 50), ('"' * 49, 100)):
        asked = task(echo, task_id=f"t-{text[0].encode().hex()}", input=text) | {"user_id": "alice"}
        whole = execute(asked, context)
        assert whole["output"] == text
        assert execute(asked | {"inline_bytes_max": in_json}, context) == whole, "the same task, whatever the bound"
        less = execute(asked | {"inline_bytes_max": in_json - 1}, context)
        encoded = base64.b64encode(text.encode()).decode()
        in_base64 = encoded if len(encoded) + 2 < in_json else None  # an output of few bytes, spelt with many
        assert less == whole | {"output": None, "output_base64": in_base64}
        assert (in_base64 is None) == (text[0] in "xé")
        assert execute(asked | {"inline_bytes_max": 10}, context) == whole | {"output": None}
    failing = task(platform.publish(wasm("failing")), task_id="f") | {"user_id": "alice"}
    assert execute(failing, context)["log"]
    assert execute(failing | {"inline_bytes_max": 10}, context)["log"] is None


def test_what_the_output_says_of_a_task_fits_into_what_is_kept_free_for_it(platform: Cloud, context: Any) -> None:
    """With names as long as they may be; a result has a few fields more."""
    user, owner = "u" * ACCOUNT_ID_CHARS_MAX, "o" * ACCOUNT_ID_CHARS_MAX
    platform.deposit(user, 1_000_000)
    rules = {"min_bytes": 1}
    agent = platform.publish(wasm("echo"), owner=owner, acceptance=rules)
    asked = task(agent, task_id=f"{'r' * RUN_ID_CHARS_MAX}.59.59", acceptance=rules, budget="0.123456") | {
        "user_id": user
    }
    done = load("execute").handler(asked, context)
    (kept,) = re.findall(r"\$name in \[([^\]]+receipt[^\]]+)\]", EXECUTE["Assign"]["done"])
    entry = {name: done[name] for name in re.findall(r"'(\w+)'", kept)}
    assert {"task_id", "receipt", "escrow_status"} <= entry.keys()
    paid = {"success": True, "output_base64": None, "tasks": [entry | {"output_bytes": 1_048_576}]}
    assert len(json.dumps(paid)) < RUN_TASK_BYTES
    error = {"code": "artefact_tampered", "message": "x" * 200}
    failed = {"success": False, "output": None, "stopped": error["code"], "tasks": [entry | {"error": error}]}
    assert (RUN_TASKS_MAX + 1) * len(json.dumps(failed)) < WORKFLOW_STATE_BYTES_MAX, "these have no output"


@pytest.mark.parametrize(
    "change",
    [
        {"input": {"a": MARK}, "budget": "no"},
        {"input": MARK, "input_base64": MARK},
        {"input": None, "input_base64": f"{MARK}!"},
        {"input": f"{MARK}\ud800"},
        {"input": {MARK: 1e400}},
        {"input": MARK * 100_000},
        {"input": MARK, "budget": MARK},
        {"input": MARK, "timeout": MARK, "user_id": f"{MARK} "},
        {"input": MARK, "acceptance": {"json_schema": MARK, "max_bytes": MARK}},
    ],
)
def test_no_refusal_quotes_what_was_sent(platform: Cloud, context: Any, change: dict[str, Any]) -> None:
    """Lambda logs what is raised, and Step Functions keeps it as the error's cause."""
    with pytest.raises(RequestError) as refused:
        load("execute").handler(task("a") | {"user_id": "alice"} | change, context)
    assert MARK not in str(refused.value)
    run = {"run_id": "r", "user_id": "alice", "budget": "1", "steps": [{"agent_id": "a"}], "inputs": [MARK, 1e400]}
    with pytest.raises(RequestError) as refused:
        load("plan").handler(run, context)
    assert MARK not in str(refused.value)


def test_the_same_failure_is_one_task(platform: Cloud, context: Any) -> None:
    """What Step Functions repeats is answered from the ledger: one receipt."""
    asked = task(platform.publish(wasm("failing"))) | {"user_id": "alice"}
    execute = load("execute").handler
    assert {execute(asked, context)["receipt"] for _ in range(3)} == {
        result.read(platform, Caller("alice"), "t-1").receipt
    }  # type: ignore[union-attr]  # settled
