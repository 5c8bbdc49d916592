"""The audit's state machine on the local cloud: several segments, one verdict, and a planted difference."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from local.deploy import STACK_NAME
from local.paths import Stack
from tests.e2e.people import User
from tests.e2e.test_kills import audit
from tests.e2e.test_workflows import Workflow

PARTS = 3


@pytest.fixture(scope="module")
def machine(aws: Callable[[str], Any]) -> Workflow:
    found = aws("cloudformation").describe_stack_resource(StackName=STACK_NAME, LogicalResourceId="AuditWorkflow")
    return Workflow(aws("stepfunctions"), found["StackResourceDetail"]["PhysicalResourceId"])


@pytest.fixture
def alice(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> User:
    return User.new(api, deposit)


def test_the_machine_gives_the_verdict_of_one_invocation(
    machine: Workflow, alice: User, echo: str, stack: Stack, aws: Callable[[str], Any]
) -> None:
    """Also without `parts`, as the schedule starts it: then this small ledger has one part of each kind."""
    for number in range(6):
        alice.run(echo, task_id=f"audited-{number}")
    for parts in (PARTS, None):
        ended = machine.run({} if parts is None else {"parts": parts})
        assert (ended.output["phase"], ended.output["differences"], ended.failures) == ("done", 0, []), ended.text
    whole = audit(stack)
    assert "differences  0\n" in whole
    named = {line.partition("  ")[0] for line in ended.output["report"]}
    assert named == {line.partition("  ")[0] for line in whole.splitlines() if line}
    objects = aws("s3").list_objects_v2(Bucket=stack.buckets["outputs"], Prefix="audit/")
    assert objects["KeyCount"] > 2 * PARTS


def test_the_machine_names_a_planted_difference(
    machine: Workflow, alice: User, echo: str, aws: Callable[[str], Any], stack: Stack
) -> None:
    alice.run(echo)
    resource = aws("cloudformation").describe_stack_resource(StackName=STACK_NAME, LogicalResourceId="LedgerTable")
    table = resource["StackResourceDetail"]["PhysicalResourceId"]

    def give(micro: int) -> None:
        aws("dynamodb").update_item(
            TableName=table,
            Key={"pk": {"S": f"ACCT#{alice.name}"}},
            UpdateExpression="ADD available :micro",
            ExpressionAttributeValues={":micro": {"N": str(micro)}},
        )

    give(1)
    try:
        ended = machine.run({"parts": PARTS})
    finally:
        give(-1)
    assert ended.output["differences"] >= 1
    assert any(line.startswith(f"I10/I11 at {alice.name}: ") for line in ended.output["report"]), ended.text
    assert machine.run({"parts": PARTS}).output["differences"] == 0


@pytest.mark.parametrize("parts", [0.5, "four"])
def test_a_part_that_fails_gives_no_verdict(machine: Workflow, parts: object) -> None:
    """An input that no audit can begin with ends the execution as failed, so that its alarm fires."""
    ended = machine.end(machine.start({"parts": parts}))
    assert ended.status == "FAILED"
