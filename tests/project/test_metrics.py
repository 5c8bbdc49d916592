"""Alarms, dashboard, documents and runbooks name exactly the metrics that the code emits."""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from botocore.exceptions import ClientError

from quittance import observability
from quittance.api import messages, outbound
from quittance.errors import PlatformUnavailableError, TaskInProgressError
from quittance.ledger.escrow import escrow_id
from quittance.observability import NAMESPACE, SERVICE, Metric
from quittance.platform import Platform
from quittance.run import Fault, Outcome
from quittance.usecases import execute as tasks
from quittance.usecases import launch, settle
from tests import tickets
from tests.functions.test_handlers import _raise, load, task
from tests.support import ROOT, Cloud, stream_record, wasm
from tests.usecases.test_execute import ask
from tests.usecases.test_notify import HOOK, waiting

OTHER_NAMESPACES = {"AWS/ApiGateway", "AWS/Lambda", "AWS/SQS", "AWS/States", "Quittance/${AWS::StackName}"}


@dataclass(frozen=True)
class Series:
    """A metric as CloudWatch identifies it: by its name and the names of its dimensions."""

    name: str
    dimensions: frozenset[str]


class Emitted:
    """What the functions wrote to stdout, parsed as CloudWatch does."""

    def __init__(self) -> None:
        self.values: dict[Series, list[float]] = defaultdict(list)
        self.units: dict[str, str] = {}
        self.settings: dict[str, set[str]] = defaultdict(set)
        self.log: list[dict[str, Any]] = []

    def read(self, text: str) -> None:
        for line in text.splitlines():
            document = json.loads(line)
            if "_aws" not in document:
                self.log.append(document)
                continue
            (directive,) = document["_aws"]["CloudWatchMetrics"]
            assert directive["Namespace"] == NAMESPACE
            for metric in directive["Metrics"]:
                self.units[metric["Name"]] = metric["Unit"]
                for dimensions in directive["Dimensions"]:
                    values = document[metric["Name"]]
                    self.values[Series(metric["Name"], frozenset(dimensions))] += values
                    for name in dimensions:
                        self.settings[name].add(document[name])

    def of(self, metric: Metric) -> list[float]:
        return self.values[Series(metric, frozenset({"service"}))]


@pytest.fixture
def platform(platform: Cloud) -> Iterator[Cloud]:
    """The platform with a sandbox as the functions create it, so that workers are counted."""
    observability._write_cold_start.cache_clear()
    with Platform(platform.settings).sandbox as platform.sandbox:
        yield platform


@pytest.fixture
def emitted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Emitted]:
    """What was written to stdout since the last call."""
    monkeypatch.setattr(observability.logger.registered_handler, "stream", sys.stdout)

    def read() -> Emitted:
        found = Emitted()
        found.read(capsys.readouterr().out)
        return found

    capsys.readouterr()
    return read


def reject_writes(platform: Cloud, monkeypatch: pytest.MonkeyPatch, *codes: str) -> None:
    """Makes DynamoDB reject the next writes with these codes, one after the other."""
    send, left = platform.ledger._send, list(codes)

    def refuse(actions: Any) -> None:
        if left:
            raise ClientError({"Error": {"Code": left.pop(0)}, "CancellationReasons": []}, "TransactWriteItems")
        send(actions)

    monkeypatch.setattr(platform.ledger, "_send", refuse)


def dead_letters(agent_id: str) -> list[tuple[str, str]]:
    """Dead letters: of a funded task, and of one that was never funded."""
    return [
        ("deadletter", messages.write("alice", ask(agent_id, task_id=name), input_base64="aGVsbG8="))
        for name in ("lost", "never-funded")
    ]


def batch_of(body: str) -> dict[str, Any]:
    record = {"messageId": "m", "receiptHandle": "gone", "body": body, "attributes": {"ApproximateReceiveCount": "5"}}
    return {"Records": [record]}


@pytest.fixture
def story(platform: Cloud, context: Any, monkeypatch: pytest.MonkeyPatch, emitted: Callable[[], Emitted]) -> Emitted:
    """What the functions emit for tasks, tickets, messages, a sweep, an audit, events and webhooks."""
    execute = load("execute").handler
    echo, looping = platform.publish(wasm("echo")), platform.publish(wasm("misbehave"), timeout=1)
    user = {"user_id": "alice"}
    reject_writes(platform, monkeypatch, "TransactionConflictException", "ThrottlingException")
    execute(task(echo, task_id="paid") | user, context)
    execute(task(echo, task_id="paid") | user, context)
    execute(task(looping, task_id="late", input="loop", budget="0.9") | user, context)
    load("result").handler(
        {
            "resource": "/api/v1/economic/tasks/{task_id}/result",
            "path": "/api/v1/economic/tasks/paid/result",
            "httpMethod": "GET",
            "headers": {},
            "requestContext": {"requestId": "correlated", "authorizer": {"sub": "alice"}, "httpMethod": "GET"},
            "body": None,
        },
        context,
    )
    with monkeypatch.context() as patch:
        patch.setattr(platform.ledger, "settle", _raise(PlatformUnavailableError))
        with pytest.raises(TaskInProgressError):
            execute(task(echo, task_id="stuck") | user, context)
    tasks.submit(platform, "alice", ask(echo, task_id="lost"))
    for function, body in (("work", "no JSON"), ("deadletter", "no JSON"), *dead_letters(echo)):
        load(function).handler(batch_of(body), context)
    use_a_ticket_twice(platform, echo)
    platform.ledger.withdraw("alice", "w-1", 1, now_ms=platform.now_ms())
    stuck = platform.ledger.find(escrow_id("alice", "stuck"))
    assert stuck is not None
    platform.skew_ms = stuck.expires_ms - platform.now_ms() + 5_000
    load("sweep").handler({}, context)
    load("audit").handler({}, context)
    platform.settings = platform.settings.model_copy(update={"archive_after_days": 40})
    load("archive").handler({}, context)
    notify_and_deliver(platform, context, monkeypatch)
    (paid,) = (item for item in platform.items("ESC#") if item["task_id"]["S"] == "paid")
    load("listings").handler({"Records": [stream_record(1, {**paid, "state": {"S": "funded"}}, paid)]}, context)
    return emitted()


def use_a_ticket_twice(platform: Cloud, agent_id: str) -> None:
    """Stores a ticket's task while another attempt at it runs, then closes the channel, for the sweep to end it."""
    platform.deposit("bob", 50_000)
    channel = tickets.opened(platform, payer="bob", tickets=1)
    task = tickets.task(channel.channel_id, 1, agent_id)
    run = launch.run

    def stored_meanwhile(*args: Any, **more: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "run", run)
            tasks.redeem(platform, channel.channel_id, task, tickets.ticket(platform, task))
        return run(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", stored_meanwhile)
        tasks.redeem(platform, channel.channel_id, task, tickets.ticket(platform, task))
    platform.channels.begin_closing(platform.channels.get(channel.channel_id), close_ms=platform.now_ms())


def notify_and_deliver(platform: Cloud, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emits the paid task's event, delivers its webhook at the third try, and ends a fourth delivery with 410."""
    (paid,) = (item for item in platform.items("ESC#") if item["task_id"]["S"] == "paid")
    funded = {**paid, "state": {"S": "funded"}}
    load("notify").handler({"Records": [stream_record(1, funded, paid | {"webhook": {"S": HOOK}})]}, context)
    statuses = [500, 500, 200, 410]
    monkeypatch.setattr(outbound, "post", lambda *_, **__: statuses.pop(0))
    for tries, message in enumerate([waiting(platform)] * 4, 1):
        load("webhook").handler(
            {"Records": [message | {"attributes": {"ApproximateReceiveCount": str(tries)}}]}, context
        )


def test_metrics_have_the_values_of_what_happened(story: Emitted) -> None:
    assert sum(story.of(Metric.FUNDED)) == 50_000 + 900_000 + 50_000 + 50_000
    of_the_queue = (Metric.QUEUED, Metric.POSTPONED, Metric.DEAD_REFUNDED, Metric.DEAD_REFUSED, Metric.DEAD_UNREADABLE)
    assert [sum(story.of(metric)) for metric in of_the_queue] == [1, 1, 1, 1, 1]
    assert sum(story.of(Metric.PAID)) == 9_750 + 9_750
    assert sum(story.of(Metric.FEES)) == 250 + 250
    assert sum(story.of(Metric.REFUNDED)) == 40_000 + 900_000 + 50_000 + 50_000 + 40_000
    assert (story.of(Metric.TICKETS_CONTESTED), story.of(Metric.CHANNELS_CLOSED)) == ([1], [1])
    assert [len(story.of(metric)) for metric in (Metric.SETTLEMENT, Metric.SANDBOX)] == [4, 5]
    assert story.of(Metric.SANDBOX)[1] == 1_000
    assert (sum(story.of(Metric.WORKER_STARTS)), sum(story.of(Metric.WORKER_KILLS))) == (2, 1)
    assert (sum(story.of(Metric.CONFLICTS)), sum(story.of(Metric.RETRIES))) == (1, 1)
    assert (story.of(Metric.SWEPT_EXPIRED), story.of(Metric.SWEPT_CREDITED)) == ([1], [5])
    assert (story.of(Metric.SWEEP_COMPLETE), story.of(Metric.SWEEP_FAILURES)) == ([1], [0])
    assert 5_000 <= story.of(Metric.OLDEST_OVERDUE)[0] < 10_000
    assert story.of(Metric.SWEEP_LAG)[0] >= 5_000
    assert story.of(Metric.AUDIT_DIFFERENCES) == [0]
    assert story.of(Metric.PAYOUTS_WAITING) == [1]
    assert 5_000 <= story.of(Metric.OLDEST_PAYOUT)[0] < 200_000
    assert sum(story.values[Series(Metric.TASKS, frozenset({"service", "fault"}))]) == 5
    assert story.settings["outcome"] == {Outcome.SUCCEEDED, Outcome.TIMEOUT, Outcome.UNDELIVERED, Outcome.EXPIRED}
    assert sum(story.of(Metric.EVENTS_EMITTED)) == 2
    assert [sum(story.of(metric)) for metric in (Metric.WEBHOOKS_DELIVERED, Metric.WEBHOOKS_FAILED)] == [1, 2]
    assert sum(story.of(Metric.WEBHOOKS_GIVEN_UP)) == 1
    assert sum(story.of(Metric.LISTED)) == 2, "the task and its run"
    assert story.settings["service"] == {SERVICE}
    assert sum(story.values[Series(Metric.COLD_STARTS, frozenset({"service", "function"}))]) == 1


def test_every_settlement_logs_one_line_with_ids_and_amounts(story: Emitted) -> None:
    lines = [line for line in story.log if line["message"] == "settled"]
    of_ticket = lines.pop(3)
    assert (of_ticket["task_id"][:4], of_ticket["paid_micro"], of_ticket["refunded_micro"]) == ("chn_", 9_750, 40_000)
    assert [(line["task_id"], line["outcome"], line["paid_micro"], line["refunded_micro"]) for line in lines] == [
        ("paid", "succeeded", 9_750, 40_000), ("late", "timeout", 0, 900_000), ("lost", "undelivered", 0, 50_000),
        ("stuck", "expired", 0, 50_000),
    ]  # fmt: skip
    assert all(line["escrow_id"] and line["agent_id"] for line in lines)


def test_every_emitted_event_logs_one_line_with_its_ids(story: Emitted) -> None:
    refused, line = [line for line in story.log if line["message"] == "emitted"]
    assert refused["event_type"] == "TaskRefused"
    assert (line["task_id"], line["escrow_id"]) == ("paid", escrow_id("alice", "paid"))
    assert line["event_id"] == f"task.{line['escrow_id']}.released"


def test_log_lines_have_only_the_ids_of_their_request(story: Emitted) -> None:
    answered = [line for line in story.log if line["message"] == "answered"]
    assert [line.get("task_id") for line in answered] == [
        *("paid", "paid", "late", "paid", None, None, "lost", *[None] * 10)
    ]
    assert [line["correlation_id"] for line in answered if line.get("correlation_id")] == ["correlated"]


def test_exactly_the_declared_metrics_are_emitted(story: Emitted) -> None:
    assert {series.name for series in story.values} == set(Metric)
    assert story.units == {metric: metric.unit.value for metric in Metric}


def test_settlement_that_lost_the_race_is_not_counted(
    platform: Cloud, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(platform.ledger, "settle", _raise(PlatformUnavailableError))
        with pytest.raises(TaskInProgressError):
            load("execute").handler(task(platform.publish(wasm("echo"))) | {"user_id": "alice"}, context)
    seen = platform.ledger.find(escrow_id("alice", "t-1"))
    assert seen is not None
    platform.skew_ms = seen.expires_ms - platform.now_ms()
    for _ in range(2):
        assert settle.expire_if_overdue(platform, seen).state == "expired"
        platform.skew_ms += 1
    assert observability._outcomes == {(Outcome.EXPIRED, Fault.PLATFORM): 1}
    assert observability._counts[Metric.REFUNDED] == 50_000


def test_failure_to_emit_metrics_fails_no_request(
    platform: Cloud, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError

    monkeypatch.setattr(observability._metrics, "flush_metrics", fail)
    done = load("execute").handler(task(platform.publish(wasm("echo"))) | {"user_id": "alice"}, context)
    assert done["success"]
    assert not observability._counts


@pytest.mark.parametrize("earlier_tests", [0, 1])
def test_metrics_of_one_test_are_not_in_the_output_of_another(
    earlier_tests: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in range(60):  # the hundredth value of a metric writes all of them
        observability.measure(Metric.SETTLEMENT, value)
    assert capsys.readouterr().out == "", earlier_tests


# The template.


def resources(template: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {name: found["Properties"] for name, found in template["Resources"].items() if found["Type"] == kind}


def alarms(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return resources(template, "AWS::CloudWatch::Alarm")


def plain(value: Any) -> str:
    return value["Fn::Sub"] if isinstance(value, dict) else value


def watched(alarm: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics that an alarm reads: one, or several in an expression."""
    several = [metric["MetricStat"]["Metric"] for metric in alarm.get("Metrics", []) if "MetricStat" in metric]
    return several or [alarm]


def series_of_alarms(template: dict[str, Any]) -> set[Series]:
    return {
        Series(metric["MetricName"], frozenset(dimension["Name"] for dimension in metric.get("Dimensions", [])))
        for alarm in alarms(template).values()
        for metric in watched(alarm)
        if plain(metric["Namespace"]) == NAMESPACE
    }


def widgets(template: dict[str, Any]) -> list[list[Any]]:
    """The metrics of all widgets; each is written in full, without CloudWatch's `...` shorthand."""
    body = json.loads(template["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"])
    return [metric for widget in body["widgets"] for metric in widget["properties"]["metrics"]]


def series_of_dashboard(template: dict[str, Any]) -> set[Series]:
    found = set()
    for metric in widgets(template):
        if isinstance(metric[0], dict):
            search = re.search(r"\{(.*?)\} MetricName=\"(\w+)\"", metric[0]["expression"])
            assert search is not None
            namespace, *names = search[1].split(",")
            name = search[2]
        else:
            namespace, name, *dimensions = (part for part in metric if isinstance(part, str))
            names = dimensions[::2]
        if namespace == NAMESPACE:
            found.add(Series(name, frozenset(names)))
        else:
            assert namespace in OTHER_NAMESPACES
    return found


def test_alarms_and_dashboard_use_only_emitted_metrics(template: dict[str, Any], story: Emitted) -> None:
    assert series_of_alarms(template) <= story.values.keys()
    assert series_of_dashboard(template) == story.values.keys()


def test_alarms_use_the_emitted_values_of_dimensions(template: dict[str, Any]) -> None:
    assert template["Globals"]["Function"]["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"] == {
        "Ref": "AWS::StackName"
    }
    assert template["Resources"]["Api"]["Properties"]["Name"] == {"Ref": "AWS::StackName"}
    functions = resources(template, "AWS::Serverless::Function")
    for metric in [metric for alarm in alarms(template).values() for metric in watched(alarm)]:
        for dimension in metric.get("Dimensions", []):
            expected = {
                "service": [{"Ref": "AWS::StackName"}],
                "ApiName": [{"Ref": "AWS::StackName"}],
                "Stage": [{"Ref": "Stage"}],
                "fault": [*Fault],
                "QueueName": [{"Fn::GetAtt": [name, "QueueName"]} for name in resources(template, "AWS::SQS::Queue")],
                "FunctionName": [{"Ref": name} for name in functions],
                "Resource": [{"Fn::Sub": f"${{{name}}}:live"} for name in functions],
                "ExecutedVersion": [{"Fn::GetAtt": [name, "Version.Version"]} for name in functions],
                "StateMachineArn": [{"Ref": "RunWorkflow"}, {"Ref": "AuditWorkflow"}],
            }
            assert dimension["Value"] in expected[dimension["Name"]]
    shown = {metric[5] for metric in widgets(template) if metric[1:2] == ["Tasks"]}
    assert shown == set(Fault)


def test_throttle_alarm_reads_the_metric_of_the_log_filter(template: dict[str, Any]) -> None:
    properties = template["Resources"]["ApiThrottled"]["Properties"]
    (made,) = properties["MetricTransformations"]
    alarm = alarms(template)["ApiThrottledAlarm"]
    assert (made["MetricNamespace"], made["MetricName"]) == (alarm["Namespace"], alarm["MetricName"])
    line = json.loads(template["Resources"]["Api"]["Properties"]["AccessLogSetting"]["Format"])
    assert line["status"] == "$context.status"
    assert properties["LogGroupName"] == {"Ref": "ApiLogs"}


def test_alarm_fires_if_the_audit_does_not_run(template: dict[str, Any]) -> None:
    """An audit that is not called causes no error, so the alarm must treat missing data as breaching."""
    audit = template["Resources"]["AuditFunction"]["Properties"]
    workflow = template["Resources"]["AuditWorkflow"]["Properties"]
    assert workflow["Events"]["EveryDay"]["Properties"]["Schedule"] == "rate(1 day)"
    alarm = alarms(template)["AuditMissingAlarm"]
    watched = {name: alarm[name] for name in ("MetricName", "Statistic", "ComparisonOperator", "Threshold")}
    assert watched == {
        "MetricName": Metric.AUDIT_DIFFERENCES, "Statistic": "SampleCount", "ComparisonOperator": "LessThanThreshold",
        "Threshold": 1,
    }  # fmt: skip
    assert (alarm["TreatMissingData"], alarm.get("DatapointsToAlarm")) == ("breaching", None)
    silent_s = alarm["Period"] * alarm["EvaluationPeriods"]
    assert 24 * 3_600 + audit["Timeout"] < silent_s <= 2 * 24 * 3_600
    assert alarm["Period"] >= 3_600, "AWS looks back for more than a day only in steps of an hour"


def test_every_alarm_has_a_topic_and_a_runbook(template: dict[str, Any]) -> None:
    headings = re.findall(r"^## (\w+Alarm): ", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alarms(template))
    for name, alarm in alarms(template).items():
        assert alarm["AlarmActions"] == [{"Ref": "AlarmTopic"}], name
        assert alarm["AlarmDescription"], name
        assert "TreatMissingData" in alarm, name


def test_operations_page_describes_every_metric_and_alarm(template: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    described = set(re.findall(r"^\| `([A-Z]\w+)` \|", page, re.MULTILINE))
    assert described == {*Metric, *alarms(template)}


def test_every_log_group_has_a_retention_period(template: dict[str, Any]) -> None:
    groups = resources(template, "AWS::Logs::LogGroup")
    assert all(group["RetentionInDays"] == {"Ref": "LogRetentionDays"} for group in groups.values())
    functions = resources(template, "AWS::Serverless::Function")
    used = [function["LoggingConfig"]["LogGroup"]["Ref"] for function in functions.values()]
    assert sorted([*used, "ApiLogs", "WorkflowLogs", "AuditWorkflowLogs"]) == sorted(groups)
