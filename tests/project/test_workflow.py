"""The workflow's definition, and what it relies on: names of errors, and answers that fit into its state."""

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
# Errors of the SDK and of Lambda, from AWS's pages on Step Functions; every call here is safe to repeat.
LAMBDA_ERRORS = {
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
# Errors that only HTTP, deposits, payouts, bonds and proofs raise.
NOT_RAISED_BY_TASKS = {
    "UnauthenticatedError",
    "MissingScopeError",
    "MovementConflictError",
    "PayoutConflictError",
    "RegistrationConflictError",
    "VersionNotPublishedError",
    "UnsupportedMediaTypeError",
    "NotLoggedError",
    "AnswerTooLargeError",
    "BondInUseError",
    "BondRequiredError",
    "ChannelConflictError",
    # An account pays the tasks of a run, not a channel.
    "TicketInvalidError",
    "TicketUsedError",
    "TicketTooSmallError",
    "AgentNotAllowedError",
    "ChannelClosedError",
    "ChannelExpiredError",
}
MARK = "marked-payload"


def named(handlers: list[dict[str, Any]]) -> set[str]:
    return {name for handler in handlers for name in handler["ErrorEquals"]}


def subclasses(error: type[QuittanceError]) -> set[str]:
    return {name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, error)}


def lint_as_inline(definition: str) -> list[str]:
    """What cfn-lint reports for a definition; it does not check one in a separate file."""
    properties = {"RoleArn": "arn:aws:iam::123456789012:role/r", "DefinitionString": definition}
    machine = {"Type": "AWS::StepFunctions::StateMachine", "Properties": properties}
    from cfnlint.api import lint  # takes seconds to import, and only this test needs it

    return [match.message for match in lint(json.dumps({"Resources": {"Machine": machine}}))]


def test_the_definition_is_well_formed() -> None:
    filled = re.sub(r"\$\{\w+\}", "aws", DEFINITION)
    assert lint_as_inline(filled) == []
    assert lint_as_inline(filled.replace('"Default": "Stopped"', '"Defautl": "Stopped"'))


def test_template_gives_every_substitution(template: dict[str, Any]) -> None:
    given = template["Resources"]["RunWorkflow"]["Properties"]["DefinitionSubstitutions"]
    assert set(re.findall(r"\$\{(\w+)\}", DEFINITION)) == set(given)


def test_workflow_catches_refusals_and_retries_other_errors() -> None:
    """Compares exact names: a misspelt name would match nothing, and a new error would end executions."""
    retried, caught = named(EXECUTE["Retry"]), named(EXECUTE["Catch"])
    ours = {"TaskInProgressError", "TooManyRunningError", "FundingPausedError", "PlatformUnavailableError"}
    assert retried == ours | {"AgentNotReadyError"} | LAMBDA_ERRORS
    assert caught == subclasses(RequestError) - {"RequestError", "TaskInProgressError"} - NOT_RAISED_BY_TASKS
    assert subclasses(QuittanceError) - NOT_RAISED_BY_TASKS - {"QuittanceError", "RequestError"} <= retried | caught
    assert named(WORKFLOW["States"]["Plan"]["Retry"]) == LAMBDA_ERRORS
    assert named(WORKFLOW["States"]["Plan"]["Catch"]) == {"InvalidRequestError", "PayloadTooLargeError"}


def test_lambda_times_out_before_the_workflow_state(template: dict[str, Any]) -> None:
    assert EXECUTE["TimeoutSeconds"] > template["Resources"]["ExecuteFunction"]["Properties"]["Timeout"]


def test_retries_last_longer_than_a_lost_task_is_held() -> None:
    """Jitter halves each delay on average; the sum must exceed a lease (60 s) and an escrow's expiry (115 s)."""
    (retry,) = (retry for retry in EXECUTE["Retry"] if "TaskInProgressError" in retry["ErrorEquals"])
    delays = [
        min(retry["IntervalSeconds"] * retry["BackoffRate"] ** n, retry["MaxDelaySeconds"])
        for n in range(retry["MaxAttempts"])
    ]
    assert sum(delays) / 2 > 150
    assert retry["JitterStrategy"] == "FULL"


def test_workflow_calls_only_two_functions_and_logs_no_data(template: dict[str, Any]) -> None:
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
    assert "Policies" not in template["Resources"]["PlanFunction"]["Properties"], "plan needs no permissions"


def test_unknown_outcome_raises_an_error_that_workflows_retry(
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


def test_only_outputs_and_stderr_over_the_bound_are_omitted(platform: Cloud, context: Any) -> None:
    execute, echo = load("execute").handler, platform.publish(wasm("echo"))
    for text, in_json in (("x" * 98, 100), ("é" * 49, 100), ("\0" * 8, 50), ('"' * 49, 100)):
        asked = task(echo, task_id=f"t-{text[0].encode().hex()}", input=text) | {"user_id": "alice"}
        whole = execute(asked, context)
        assert whole["output"] == text
        assert execute(asked | {"inline_bytes_max": in_json}, context) == whole, "the same task, whatever the bound"
        less = execute(asked | {"inline_bytes_max": in_json - 1}, context)
        encoded = base64.b64encode(text.encode()).decode()
        in_base64 = encoded if len(encoded) + 2 < in_json else None  # few bytes, but long in JSON
        assert less == whole | {"output": None, "output_base64": in_base64}
        assert (in_base64 is None) == (text[0] in "xé")
        assert execute(asked | {"inline_bytes_max": 10}, context) == whole | {"output": None}
    failing = task(platform.publish(wasm("failing")), task_id="f") | {"user_id": "alice"}
    assert execute(failing, context)["log"]
    assert execute(failing | {"inline_bytes_max": 10}, context)["log"] is None


def test_output_for_each_task_fits_into_its_reserved_bytes(platform: Cloud, context: Any) -> None:
    """With the longest names; the reserve must also cover a result's other fields."""
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
    assert (RUN_TASKS_MAX + 1) * len(json.dumps(failed)) < WORKFLOW_STATE_BYTES_MAX, "failed tasks have no output"


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
def test_refusals_do_not_quote_the_request(platform: Cloud, context: Any, change: dict[str, Any]) -> None:
    """Lambda logs exceptions, and Step Functions stores them as the error's cause."""
    with pytest.raises(RequestError) as refused:
        load("execute").handler(task("a") | {"user_id": "alice"} | change, context)
    assert MARK not in str(refused.value)
    run = {"run_id": "r", "user_id": "alice", "budget": "1", "steps": [{"agent_id": "a"}], "inputs": [MARK, 1e400]}
    with pytest.raises(RequestError) as refused:
        load("plan").handler(run, context)
    assert MARK not in str(refused.value)


def test_repeated_failure_is_one_task_with_one_receipt(platform: Cloud, context: Any) -> None:
    """When Step Functions repeats a task, it is answered from the ledger with the same receipt."""
    asked = task(platform.publish(wasm("failing"))) | {"user_id": "alice"}
    execute = load("execute").handler
    assert {execute(asked, context)["receipt"] for _ in range(3)} == {
        result.read(platform, Caller("alice"), "t-1").receipt
    }  # type: ignore[union-attr]  # settled
