"""One upload form takes one post: other posts are refused unread, and no upload stays in `publishing` for ever."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quittance import sandbox
from quittance.agent import Agent
from quittance.api.identity import Caller
from quittance.api.models import AgentRequest, VersionRequest
from quittance.errors import AgentNotReadyError
from quittance.sandbox import ModuleRejectedError
from quittance.sandbox.compile import CompileFailedError
from quittance.sandbox.validate import Refusal
from quittance.store import cache
from quittance.usecases import agents as agents_
from quittance.usecases import execute
from quittance.usecases import publish as publishing
from tests.functions.test_handlers import load
from tests.support import FLAT, Cloud, compiled_once, wasm
from tests.usecases.test_execute import ask


class CrashError(BaseException):
    """A crash of the process: the platform's code catches no BaseException."""


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "compile_module", compiled_once)


@pytest.fixture
def agent_id(cloud: Cloud) -> str:
    request = AgentRequest.model_validate({"name": "test", "tariff": FLAT})
    return agents_.register(cloud, Caller("owner"), request).agent_id


def publish(cloud: Cloud, agent_id: str, version: str, number: int = 1) -> str:
    return publishing.publish(cloud, f"uploads/{agent_id}/{number}", version)


def give_up(cloud: Cloud, agent_id: str, version: str, number: int = 1) -> str:
    return publishing.give_up(cloud, f"uploads/{agent_id}/{number}", version)


def state(cloud: Cloud, agent_id: str) -> str:
    return agents_.describe(cloud, agent_id).state


def binaries(cloud: Cloud) -> list[str]:
    found = cloud._s3.list_objects_v2(Bucket="binaries").get("Contents", [])
    return [kept["Key"] for kept in found]


@contextmanager
def nothing_read(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Asserts that no upload is downloaded, nothing is compiled and nothing is stored."""
    before = binaries(cloud)

    def called(*_: Any, **__: Any) -> Any:
        raise AssertionError("read, compiled or stored")

    with monkeypatch.context() as patch:
        patch.setattr(cloud._s3, "get_object", called)
        patch.setattr(cloud._s3, "put_object", called)
        patch.setattr(sandbox, "compile_module", called)
        yield
    assert binaries(cloud) == before


# One upload form takes one post.


def test_second_post_is_refused_unread(cloud: Cloud, agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cloud.post(agent_id, 1, wasm("echo"))
    assert publish(cloud, agent_id, first) == "active"
    active = agents_.describe(cloud, agent_id)
    second = cloud.post(agent_id, 1, wasm("sieve"))
    assert second != first
    with nothing_read(cloud, monkeypatch):
        assert publish(cloud, agent_id, second) == "active"
        assert publish(cloud, agent_id, first) == "active", "S3 repeats its events"
    assert agents_.describe(cloud, agent_id) == active


def test_post_after_a_rejection_is_refused_unread(cloud: Cloud, agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = cloud.post(agent_id, 1, b"no module")
    assert publish(cloud, agent_id, bad) == "rejected"
    assert binaries(cloud) == [], "nothing of a rejected module is stored"
    good = cloud.post(agent_id, 1, wasm("echo"))
    with nothing_read(cloud, monkeypatch):
        assert publish(cloud, agent_id, good) == "rejected"
        assert publish(cloud, agent_id, bad) == "rejected"
    agents_.open_version(cloud, Caller("owner"), agent_id, VersionRequest())
    corrected = cloud.post(agent_id, 2, wasm("echo"))
    assert publish(cloud, agent_id, corrected, 2) == "active", "the author needs a new form to correct the module"


def test_second_post_during_publication_is_refused(
    cloud: Cloud, agent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = cloud.post(agent_id, 1, wasm("echo")), cloud.post(agent_id, 1, wasm("sieve"))
    observed = []

    def meanwhile(module: bytes) -> sandbox.Artefact:
        with monkeypatch.context() as patch:
            patch.setattr(cloud._s3, "get_object", pytest.fail)
            observed.append(publish(cloud, agent_id, second))
        return compiled_once(module)

    monkeypatch.setattr(sandbox, "compile_module", meanwhile)
    assert publish(cloud, agent_id, first) == "active"
    assert observed == ["publishing"]
    assert give_up(cloud, agent_id, second) == "active"
    monkeypatch.undo()
    expected = compiled_once(wasm("echo")).key
    assert cloud.registry.get(agent_id).version.artefact_key == expected  # type: ignore[union-attr]


def test_published_bytes_are_those_of_the_claimed_post(cloud: Cloud, agent_id: str) -> None:
    """A second version of the object is posted before the event of the first one is handled."""
    first, second = cloud.post(agent_id, 1, wasm("echo")), cloud.post(agent_id, 1, wasm("sieve"))
    assert publish(cloud, agent_id, first) == "active"
    assert publish(cloud, agent_id, second) == "active"
    version = cloud.registry.get(agent_id).version
    assert version is not None
    assert version.artefact_key == compiled_once(wasm("echo")).key


@pytest.mark.parametrize("superseded_by", ["a new version", "retirement"])
def test_post_without_an_open_upload_is_refused_unread(
    cloud: Cloud, agent_id: str, monkeypatch: pytest.MonkeyPatch, superseded_by: str
) -> None:
    late = cloud.post(agent_id, 1, wasm("echo"))
    if superseded_by == "retirement":
        agents_.retire(cloud, Caller("owner"), agent_id)
    else:
        agents_.open_version(cloud, Caller("owner"), agent_id, VersionRequest())
    before = agents_.describe(cloud, agent_id)
    with nothing_read(cloud, monkeypatch):
        assert publish(cloud, agent_id, late) == "retired"
        assert give_up(cloud, agent_id, late) == "retired"
    assert agents_.describe(cloud, agent_id) == before


def test_nothing_is_stored_for_a_superseded_upload(
    cloud: Cloud, agent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted = cloud.post(agent_id, 1, wasm("echo"))

    def meanwhile(module: bytes) -> sandbox.Artefact:
        agents_.open_version(cloud, Caller("owner"), agent_id, VersionRequest())
        return compiled_once(module)

    monkeypatch.setattr(sandbox, "compile_module", meanwhile)
    assert publish(cloud, agent_id, posted) == "retired"
    assert binaries(cloud) == []


@pytest.mark.parametrize("superseded_by", ["a new version", "retirement"])
@pytest.mark.parametrize("step", ["claim", "activate", "give up"])
def test_upload_superseded_just_before_the_write_changes_nothing(
    cloud: Cloud, agent_id: str, monkeypatch: pytest.MonkeyPatch, step: str, superseded_by: str
) -> None:
    """The agent changes between the last read of it and the write."""
    posted = cloud.post(agent_id, 1, wasm("echo"))
    name = {"claim": "claim_upload", "activate": "activate", "give up": "fail_upload"}[step]
    write = getattr(cloud.registry, name)

    def too_late(*arguments: Any, **named: Any) -> Agent:
        if superseded_by == "retirement":
            agents_.retire(cloud, Caller("owner"), agent_id)
        else:
            agents_.open_version(cloud, Caller("owner"), agent_id, VersionRequest())
        stored: Agent = write(*arguments, **named)
        return stored

    monkeypatch.setattr(cloud.registry, name, too_late)
    assert (give_up if step == "give up" else publish)(cloud, agent_id, posted) == "retired"
    observed = agents_.describe(cloud, agent_id)
    assert observed.state == ("retired" if superseded_by == "retirement" else "awaiting_upload")
    assert (observed.module_sha256, observed.rejection) == (None, None)
    assert agents_.page(cloud, owner=None, limit=1, after=None).agents == []


@pytest.mark.parametrize(
    "key", ["uploads/agt_nobody/1", "uploads/x", "uploads/a/b/c", "uploads/agt_1/²", "uploads/agt_1/-1", "uploads//1"]
)
def test_objects_without_an_upload_form_are_ignored(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    with nothing_read(cloud, monkeypatch):
        assert publishing.publish(cloud, key, "v") == "retired"
        assert publishing.give_up(cloud, key, "v") == "retired"


def test_upload_claimed_by_older_code_is_published(cloud: Cloud, agent_id: str) -> None:
    """Older code did not store which object it was publishing."""
    key = {"pk": {"S": f"AGENT#{agent_id}"}}
    cloud._dynamodb.update_item(
        TableName="RegistryTable",
        Key=key,
        UpdateExpression="SET upload_state = :publishing",
        ExpressionAttributeValues={":publishing": {"S": "publishing"}},
    )
    assert publish(cloud, agent_id, cloud.post(agent_id, 1, wasm("echo"))) == "active"


def test_first_decision_on_an_upload_is_final(cloud: Cloud, agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 may deliver an event twice at the same time, and the two publications may end differently."""
    posted = cloud.post(agent_id, 1, wasm("echo"))

    def rejecting_meanwhile(module: bytes) -> sandbox.Artefact:
        with monkeypatch.context() as patch:
            patch.setattr(sandbox, "compile_module", compiled_once)
            assert publish(cloud, agent_id, posted) == "active"
        raise ModuleRejectedError(Refusal.COMPILE_LIMIT, "It takes too long.")

    monkeypatch.setattr(sandbox, "compile_module", rejecting_meanwhile)
    assert publish(cloud, agent_id, posted) == "active"
    assert agents_.describe(cloud, agent_id).rejection is None


def test_event_delivered_twice_at_once_publishes(cloud: Cloud, agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    posted = cloud.post(agent_id, 1, wasm("echo"))

    def publishing_meanwhile(module: bytes) -> sandbox.Artefact:
        with monkeypatch.context() as patch:
            patch.setattr(sandbox, "compile_module", compiled_once)
            assert publish(cloud, agent_id, posted) == "active"
        return compiled_once(module)

    monkeypatch.setattr(sandbox, "compile_module", publishing_meanwhile)
    assert publish(cloud, agent_id, posted) == "active"


# The platform's own failures.


def failing(_: bytes) -> Any:
    raise CompileFailedError("the machine is busy")


def test_failed_compiler_is_retried(cloud: Cloud, agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    posted = cloud.post(agent_id, 1, wasm("echo"))
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "compile_module", failing)
        for _ in range(2):
            with pytest.raises(CompileFailedError):
                publish(cloud, agent_id, posted)
            observed = agents_.describe(cloud, agent_id)
            assert (observed.state, observed.rejection) == ("publishing", None)
    assert publish(cloud, agent_id, posted) == "active"


def test_abandoned_upload_blames_the_platform(cloud: Cloud, agent_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    posted = cloud.post(agent_id, 1, wasm("echo"))
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "compile_module", failing)
        with pytest.raises(CompileFailedError):
            publish(cloud, agent_id, posted)
    for _ in range(2):
        assert give_up(cloud, agent_id, posted) == "failed"
    observed = agents_.describe(cloud, agent_id)
    assert observed.state == "failed"
    assert observed.rejection is not None
    assert observed.rejection.code == "platform_failed"
    assert f"/agents/{agent_id}/versions" in observed.rejection.message
    other = cloud.post(agent_id, 1, wasm("echo"))
    with nothing_read(cloud, monkeypatch):
        assert publish(cloud, agent_id, other) == "failed", "the form is used up"
    assert publish(cloud, agent_id, posted) == "active", "an operator may resend its event"
    assert agents_.describe(cloud, agent_id).rejection is None


def test_author_opens_another_version_after_a_failure(cloud: Cloud, agent_id: str) -> None:
    lost = cloud.post(agent_id, 1, wasm("echo"))
    give_up(cloud, agent_id, lost)
    opened = agents_.open_version(cloud, Caller("owner"), agent_id, VersionRequest())
    assert opened.state == "awaiting_upload"
    assert agents_.describe(cloud, agent_id).rejection is None
    assert publish(cloud, agent_id, lost) == "retired"
    assert publish(cloud, agent_id, cloud.post(agent_id, 2, wasm("echo")), 2) == "active"


def test_module_missing_from_its_bucket_fails_the_upload(cloud: Cloud, agent_id: str) -> None:
    posted = cloud.post(agent_id, 1, wasm("echo"))
    cloud._s3.delete_object(Bucket="uploads", Key=f"uploads/{agent_id}/1", VersionId=posted)
    assert publish(cloud, agent_id, posted) == "failed"
    assert state(cloud, agent_id) == "failed"


def test_failed_version_leaves_the_active_one_in_service(cloud: Cloud) -> None:
    agent_id = cloud.publish(wasm("echo"))
    before = agents_.describe(cloud, agent_id)
    agents_.open_version(cloud, Caller("owner"), agent_id, VersionRequest())
    assert give_up(cloud, agent_id, cloud.post(agent_id, 2, wasm("sieve")), 2) == "failed"
    after = agents_.describe(cloud, agent_id)
    assert (after.state, after.module_sha256) == ("active", before.module_sha256)
    assert after.rejection is not None
    assert after.rejection.code == "platform_failed"


# Crashes at each call to AWS, before and after it takes effect.


class Crashes:
    """Counts the calls to AWS, and crashes the process before or after a chosen one."""

    def __init__(self, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.at: tuple[int, str] | None = None
        for client, method in ((cloud._dynamodb, "_call"), (cloud._s3, "_make_api_call")):
            monkeypatch.setattr(client, method, self._crashing(getattr(client, method)))

    def _crashing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*arguments: Any) -> Any:
            self.calls += 1
            if self.at == (self.calls, "before"):
                raise CrashError
            answer = call(*arguments)
            if self.at == (self.calls, "after"):
                raise CrashError
            return answer

        return calling

    def crash(self, at: tuple[int, str], story: Callable[[], object]) -> bool:
        """Runs a story that crashes at one call. Returns False if it made fewer calls."""
        self.calls, self.at = 0, at
        try:
            story()
        except CrashError:
            return True
        finally:
            self.at = None
        return False


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("module", ["good", "bad"])
def test_publication_survives_a_crash_at_each_call(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, module: str, when: str
) -> None:
    """Whether Lambda retries or an operator resends an abandoned upload's event, a crash does not change the end."""
    data, end = (wasm("echo"), "active") if module == "good" else (b"no module", "rejected")
    request = AgentRequest.model_validate({"name": "test", "tariff": FLAT})
    crashes = Crashes(cloud, monkeypatch)
    steps = 0
    for number in range(1, 20):
        retried, given_up = (agents_.register(cloud, Caller("owner"), request).agent_id for _ in range(2))
        posted = {agent_id: cloud.post(agent_id, 1, data) for agent_id in (retried, given_up)}
        crashed = [
            crashes.crash((number, when), lambda who=who, what=what: publish(cloud, who, what))
            for who, what in posted.items()
        ]
        assert crashed[0] == crashed[1]
        if not crashed[0]:
            break
        steps += 1
        assert publish(cloud, retried, posted[retried]) == end
        assert give_up(cloud, given_up, posted[given_up]) in {"failed", end}
        assert state(cloud, given_up) in {"failed", end}, "not in publishing for ever"
        assert publish(cloud, given_up, posted[given_up]) == end
        assert state(cloud, retried) == state(cloud, given_up) == end
    assert steps == (7 if module == "good" else 4), "get, claim, read; get again, keep twice, decide"


@pytest.mark.parametrize("when", ["before", "after"])
def test_giving_up_survives_a_crash_at_each_call(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    request = AgentRequest.model_validate({"name": "test", "tariff": FLAT})
    crashes = Crashes(cloud, monkeypatch)
    for number in (1, 2):
        agent_id = agents_.register(cloud, Caller("owner"), request).agent_id
        posted = cloud.post(agent_id, 1, wasm("echo"))
        assert crashes.crash((number, when), lambda who=agent_id, what=posted: give_up(cloud, who, what))
        assert give_up(cloud, agent_id, posted) == "failed"


# Any order of posts, events, failures and crashes.

KINDS = ["open", "post", "post", "deliver", "deliver", "deliver", "fail", "crash", "give up", "retire"]


class Uploads:
    """One agent, the modules posted for it, and the invariants of its uploads after each step."""

    def __init__(self, cloud: Cloud, patch: pytest.MonkeyPatch) -> None:
        request = AgentRequest.model_validate({"name": "test", "tariff": FLAT})
        self.cloud, self.agent_id = cloud, agents_.register(cloud, Caller("owner"), request).agent_id
        self.crashes, self.patch = Crashes(cloud, patch), patch
        self.posted: list[tuple[int, str, bytes]] = []
        self.compiled: Counter[int] = Counter()
        self.excused: Counter[int] = Counter()
        self.observed: dict[int, tuple[str | None, str]] = {}

    def change(self, kind: str, choice: int) -> None:
        """Lets the author open a version, post a module for any upload, or retire the agent."""
        if kind == "open":
            with suppress(AgentNotReadyError):
                agents_.open_version(self.cloud, Caller("owner"), self.agent_id, VersionRequest())
        elif kind == "post":
            number = 1 + choice % self.cloud.registry.get(self.agent_id).upload.number
            module = wasm("echo") if choice % 3 else b"no module"
            self.posted.append((number, self.cloud.post(self.agent_id, number, module), module))
        elif choice == 0:
            agents_.retire(self.cloud, Caller("owner"), self.agent_id)

    def deliver(self, kind: str, choice: int) -> None:
        """Handles the event of any object: completely, with a failure or with a crash; or gives it up."""
        number, version, _ = self.posted[choice % len(self.posted)]

        def compiling(module: bytes) -> sandbox.Artefact:
            self.compiled[number] += 1
            if kind == "fail":
                raise CompileFailedError
            return compiled_once(module)

        self.patch.setattr(sandbox, "compile_module", compiling)
        story = partial(give_up if kind == "give up" else publish, self.cloud, self.agent_id, version, number)
        before = self.compiled[number]
        if kind == "crash":
            self.crashes.crash((1 + choice, "after" if choice % 2 else "before"), story)
        else:
            with suppress(CompileFailedError):
                story()
        if kind in {"crash", "fail"}:
            self.excused[number] += self.compiled[number] - before
        assert self.compiled[number] <= 1 + self.excused[number]
        if kind == "give up":
            upload = self.cloud.registry.get(self.agent_id).upload
            assert (upload.number, upload.posted) != (number, version) or upload.state != "publishing", (
                "stays in publishing"
            )

    def check(self) -> None:
        """Checks that an upload has one object and one decision, and that the decision fits the object."""
        upload = self.cloud.registry.get(self.agent_id).upload
        now = (upload.posted, str(upload.state))
        earlier = self.observed.get(upload.number, (None, ""))
        self.observed[upload.number] = now
        assert earlier[0] in {None, now[0]}, "the first object is the upload"
        assert earlier == now or earlier[1] not in {"active", "rejected"}, "a decision is final"
        assert (now[0] is None) == (now[1] == "awaiting_upload")
        if upload.decided:
            (module,) = {module for _, version, module in self.posted if version == upload.posted}
            assert (module == wasm("echo")) == (upload.state == "active")


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example registers a new agent
)
@given(steps=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 7)), min_size=3, max_size=25))
def test_events_in_any_order_end_in_one_decision(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int]]
) -> None:
    with monkeypatch.context() as patch:
        uploads = Uploads(cloud, patch)
        for kind, choice in steps:
            if kind in {"open", "post", "retire"}:
                uploads.change(kind, choice)
            elif uploads.posted:
                uploads.deliver(kind, choice)
            uploads.check()


# Events from Lambda and SQS.


def s3_event(*posted: tuple[str, str]) -> dict[str, Any]:
    return {
        "Records": [
            {"eventSource": "aws:s3", "s3": {"object": {"key": f"uploads/{agent_id}/1", "versionId": version}}}
            for agent_id, version in posted
        ]
    }


def given_up_message(payload: dict[str, Any]) -> dict[str, Any]:
    """The message of a failed invocation: Lambda sends it to the failure queue, SQS delivers it."""
    body = {
        "version": "1.0",
        "requestContext": {"condition": "RetriesExhausted", "approximateInvokeCount": 3},
        "requestPayload": payload,
        "responseContext": {"statusCode": 200, "functionError": "Unhandled"},
    }
    return {
        "messageId": "m",
        "receiptHandle": "r",
        "eventSource": "aws:sqs",
        "body": json.dumps(body),
        "attributes": {"ApproximateReceiveCount": "1"},
    }


def test_handler_publishes_and_gives_up(platform: Cloud, context: Any) -> None:
    handler = load("publish").handler
    request = AgentRequest.model_validate({"name": "test", "tariff": FLAT})
    one, two = (agents_.register(platform, Caller("owner"), request).agent_id for _ in range(2))
    event = s3_event((one, platform.post(one, 1, wasm("echo"))), (two, platform.post(two, 1, b"bad")))
    event["Records"].append({"eventSource": "aws:s3", "s3": {"object": {"key": "uploads/other", "versionId": "v"}}})
    assert handler(event, context) == ["active", "rejected", "retired"]
    three = agents_.register(platform, Caller("owner"), request).agent_id
    lost = s3_event((one, "old"), (three, platform.post(three, 1, wasm("echo"))))
    assert handler({"Records": [given_up_message(lost)]}, context) == {"batchItemFailures": []}
    assert [state(platform, agent_id) for agent_id in (one, two, three)] == ["active", "rejected", "failed"]


def test_abandoned_recompilation_leaves_the_queue(platform: Cloud, context: Any) -> None:
    message = given_up_message({"recompile": "agt_1"})
    assert load("publish").handler({"Records": [message]}, context) == {"batchItemFailures": []}


def test_unreadable_failure_stays_in_its_queue(platform: Cloud, context: Any) -> None:
    message = {**given_up_message({}), "body": "no JSON"}
    failed = load("publish").handler({"Records": [message]}, context)
    assert failed == {"batchItemFailures": [{"itemIdentifier": "m"}]}


# Recompilation.


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size in bytes of each module that was compiled."""
    compiled: list[int] = []

    def counting(module: bytes) -> sandbox.Artefact:
        compiled.append(len(module))
        return compiled_once(module)

    monkeypatch.setattr(sandbox, "compile_module", counting)
    return compiled


def outdated(cloud: Cloud, owner: str = "owner") -> Agent:
    """An agent whose artefact was compiled by an older engine."""
    current = cloud.registry.get(cloud.publish(wasm("echo"), owner=owner))
    assert current.version is not None
    old = replace(current.version, artefact_key="wasmtime-1/old", artefact_sha256="old", engine="1")
    return cloud.registry.replace_artefact(current, old)


def is_current(cloud: Cloud, agent: Agent) -> bool:
    version = cloud.registry.get(agent.agent_id).version
    expected = compiled_once(wasm("echo"))
    return version is not None and (version.artefact_key, version.artefact_sha256) == (expected.key, expected.sha256)


def test_concurrent_requests_recompile_an_artefact_once(
    cloud: Cloud, compilations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also requests that arrive during the compilation, and those for another agent with the same module."""
    agents = [outdated(cloud), outdated(cloud, "other")]
    counted = sandbox.compile_module

    def meanwhile(module: bytes) -> sandbox.Artefact:
        for _ in range(25):
            for agent in agents:
                publishing.recompile(cloud, agent.agent_id)
        return counted(module)

    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "compile_module", meanwhile)
        publishing.recompile(cloud, agents[0].agent_id)
    assert is_current(cloud, agents[0])
    publishing.recompile(cloud, agents[1].agent_id)
    assert is_current(cloud, agents[1])
    assert len(compilations) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_crashed_recompilation_is_taken_over(
    cloud: Cloud, compilations: list[int], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    crashes = Crashes(cloud, monkeypatch)
    steps = 0
    for number in range(1, 20):
        agent = outdated(cloud)
        if not crashes.crash((number, when), lambda who=agent.agent_id: publishing.recompile(cloud, who)):
            break
        steps += 1
        before = len(compilations)
        publishing.recompile(cloud, agent.agent_id)
        assert len(compilations) - before <= 1
        cloud.skew_ms += 10 * 60_000
        publishing.recompile(cloud, agent.agent_id)
        assert is_current(cloud, agent)
        forget_compilations(cloud)
    assert steps == 7, "get, claim, load, keep twice, finish, replace"


def forget_compilations(cloud: Cloud) -> None:
    for item in cloud._dynamodb.scan(TableName="RegistryTable")["Items"]:
        if item["pk"]["S"].startswith("ARTEFACT#"):
            cloud.dynamodb.delete_item(TableName="RegistryTable", Key={"pk": item["pk"]})


def test_crashed_recompilation_delays_others_until_lease_ends(
    cloud: Cloud, compilations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = outdated(cloud)

    def crashing(_: bytes) -> Any:
        raise CrashError

    with monkeypatch.context() as patch, suppress(CrashError):
        patch.setattr(sandbox, "compile_module", crashing)
        publishing.recompile(cloud, agent.agent_id)
    publishing.recompile(cloud, agent.agent_id)
    assert not compilations, "the other compilation may still be in progress"
    cloud.skew_ms += cloud.left_ms() + publishing.CLOCKS_DIFFER_MS_MAX
    publishing.recompile(cloud, agent.agent_id)
    assert is_current(cloud, agent)
    assert len(compilations) == 1


def test_failed_recompilation_is_retried_after_a_delay(
    cloud: Cloud, compilations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lambda retries the failed event after a minute; requests before that do not start another attempt."""
    agent = outdated(cloud)
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "compile_module", failing)
        with pytest.raises(CompileFailedError):
            publishing.recompile(cloud, agent.agent_id)
    publishing.recompile(cloud, agent.agent_id)
    assert not compilations
    cloud.skew_ms += 59_000
    publishing.recompile(cloud, agent.agent_id)
    assert is_current(cloud, agent)


def test_rejected_recompilation_is_not_tried_at_each_request(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = outdated(cloud)
    tries = []

    def rejecting(module: bytes) -> Any:
        tries.append(module)
        raise ModuleRejectedError(Refusal.INVALID_MODULE, "The engine refuses the module.")

    monkeypatch.setattr(sandbox, "compile_module", rejecting)
    for _ in range(5):
        publishing.recompile(cloud, agent.agent_id)
        cloud.skew_ms += 3_600_000
    assert len(tries) == 1
    cloud.skew_ms += 24 * 3_600_000
    publishing.recompile(cloud, agent.agent_id)
    assert len(tries) == 2


def test_retired_agent_is_not_recompiled(cloud: Cloud, compilations: list[int]) -> None:
    agent = outdated(cloud)
    agents_.retire(cloud, Caller("owner"), agent.agent_id)
    publishing.recompile(cloud, agent.agent_id)
    assert not compilations


def test_environment_limits_its_recompilation_requests(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of the publish function costs money, even one that finds nothing to do."""
    agents = [outdated(cloud), outdated(cloud)]
    asked: list[str] = []
    clock = SimpleNamespace(monotonic=lambda: 1_000.0)
    monkeypatch.setattr(cache, "time", clock)

    class Functions:
        def invoke(self, *, Payload: str, **_: Any) -> None:  # noqa: N803 - the parameter's name in AWS
            asked.append(json.loads(Payload)["recompile"])

    monkeypatch.setattr(cloud.publisher, "_client", Functions())
    for _ in range(25):
        for agent in agents:
            with pytest.raises(AgentNotReadyError):
                execute.execute(cloud, "alice", ask(agent.agent_id))
    assert sorted(asked) == sorted(agent.agent_id for agent in agents)
    clock.monotonic = lambda: 1_005.0
    with pytest.raises(AgentNotReadyError):
        execute.execute(cloud, "alice", ask(agents[0].agent_id))
    assert len(asked) == 3
