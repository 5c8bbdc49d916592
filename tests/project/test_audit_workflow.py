"""The definition of the audit's state machine: its calls, its retries, and what its permissions and limits allow."""

import json
import re
from typing import Any

import pytest

from quittance import limits
from tests.project.test_workflow import LAMBDA_ERRORS, lint_as_inline, named
from tests.support import ROOT

DEFINITION = (ROOT / "workflows" / "audit.asl.json").read_text()
STATES = json.loads(DEFINITION)["States"]
STEP = STATES["Parts"]["ItemProcessor"]["States"]["Step"]
CALLS = [STATES["Begin"], STEP, STATES["Advance"]]


def test_the_definition_is_well_formed() -> None:
    filled = re.sub(r"\$\{\w+\}", "aws", DEFINITION)
    assert lint_as_inline(filled) == []
    assert lint_as_inline(filled.replace('"Default": "Parts"', '"Defautl": "Parts"'))


def test_the_template_gives_every_substitution(template: dict[str, Any]) -> None:
    given = template["Resources"]["AuditWorkflow"]["Properties"]["DefinitionSubstitutions"]
    assert set(re.findall(r"\$\{(\w+)\}", DEFINITION)) == set(given)
    assert given["AuditFunction"] == {"Ref": "AuditFunction.Alias"}


@pytest.mark.parametrize("call", CALLS, ids=["begin", "step", "advance"])
def test_transient_errors_are_repeated_and_others_end_the_audit(template: dict[str, Any], call: Any) -> None:
    """An error that is not listed, as PartsError, must end the execution, because nothing else makes it fail."""
    assert named(call["Retry"]) == LAMBDA_ERRORS | {"PlatformUnavailableError"}
    assert "Catch" not in call
    assert call["TimeoutSeconds"] > template["Resources"]["AuditFunction"]["Properties"]["Timeout"]


def test_a_throttled_part_waits_longer_than_the_parts_before_it() -> None:
    """With a concurrency of 1, all parts of a small ledger take their turn. Jitter halves each delay on average."""
    (retry,) = (retry for retry in STEP["Retry"] if retry["ErrorEquals"] == ["Lambda.TooManyRequestsException"])
    assert retry["MaxDelaySeconds"] * retry["MaxAttempts"] / 2 > 3_000


def test_no_state_fails_by_itself_and_every_audit_ends_in_its_verdict() -> None:
    assert [name for name, state in STATES.items() if state["Type"] in {"Fail", "Succeed"}] == ["Verdict"]
    assert STATES["HasEnded"]["Default"] == STATES["HasEnded"]["Choices"][0]["Next"].replace("Verdict", "Parts")
    assert STATES["Parts"]["ItemProcessor"]["ProcessorConfig"] == {"Mode": "INLINE"}
    assert not {"ToleratedFailurePercentage", "ToleratedFailureCount"} & STATES["Parts"].keys()


def test_an_inline_map_can_run_an_audit_of_ten_million_escrows() -> None:
    """AWS allows 40 iterations at once and 25,000 events in an execution's history. A step makes at most seven."""
    assert STATES["Parts"]["MaxConcurrency"] <= 40
    receipts, items = 10**7, 3 * 10**7
    steps = receipts // limits.AUDIT_STEP_RECEIPTS_MAX + items // limits.AUDIT_STEP_ITEMS_MAX
    assert 7 * (steps + 6 * limits.AUDIT_PARTS_MAX) < 25_000


def test_the_workflow_may_call_one_function_and_logs_no_data(template: dict[str, Any]) -> None:
    properties = template["Resources"]["AuditWorkflow"]["Properties"]
    statements = [statement for policy in properties["Policies"] for statement in policy["Statement"]]
    calls = [statement for statement in statements if statement["Resource"] != "*"]
    assert [(each["Action"], each["Resource"]) for each in calls] == [
        ("lambda:InvokeFunction", {"Ref": "AuditFunction.Alias"})
    ]
    on_all = {action for statement in statements if statement["Resource"] == "*" for action in statement["Action"]}
    assert all(action.startswith("logs:") and "*" not in action for action in on_all)
    assert properties["Logging"]["IncludeExecutionData"] is False


def test_results_of_parts_expire_after_any_redrive(template: dict[str, Any]) -> None:
    """Only the audit writes them; an execution can be redriven for 14 days."""
    rules = template["Resources"]["OutputsBucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    (rule,) = (rule for rule in rules if rule.get("Prefix") == "audit/")
    assert (rule["Status"], rule["ExpirationInDays"], rule["Id"]) == ("Enabled", 15, "forget-audits")
    allowed = {
        name
        for name, found in template["Resources"].items()
        if "OutputsBucket.Arn}/audit/" in str(found.get("Properties", {}).get("Policies", ""))
    }
    assert allowed == {"AuditFunction"}
