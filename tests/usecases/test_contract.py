"""Contracts on a whole platform: what is kept, which inputs are refused, and examples that decide a publication."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from quittance import sandbox
from quittance.acceptance import examples as running
from quittance.acceptance.contract import contract_json, contract_sha256
from quittance.api.identity import Caller
from quittance.api.models import AgentChange, AgentRequest, DirectTaskRequest, TaskPending, VersionRequest
from quittance.errors import (
    InputNotAcceptedError,
    InvalidRequestError,
    NotFoundError,
    PlatformUnavailableError,
)
from quittance.limits import EXAMPLES_FUEL_MAX, EXAMPLES_MAX, REJECTION_CHARS_MAX
from quittance.proof import card as cards
from quittance.run import Job, Meter, Outcome, Run
from quittance.usecases import agents, execute, public
from quittance.usecases import publish as publishing
from quittance.usecases.sweep import sweep
from tests.functions import test_handlers
from tests.functions.test_handlers import Call
from tests.support import CONSENT, FLAT, Cloud, compiled_once, wasm
from tests.usecases.test_execute import ask, run

call = test_handlers.call  # the fixture
TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
CONTRACT: dict[str, Any] = {
    "input_schema": TEXT,
    "output_schema": {"type": "object", "required": ["text"]},
    "examples": [
        {"name": "gives back", "input": {"text": "a"}, "output": {"text": "a"}, "fuel_max": 10_000_000},
        {"name": "as it is", "input": '{"text":  "b"}', "output": '{"text":  "b"}'},
    ],
    "tags": ["text"],
    "licence": "Apache-2.0",
    "source": "https://example.com/echo",
}
OWNER = Caller("owner")


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "compile_module", compiled_once)


@pytest.fixture
def rich(platform: Cloud) -> Cloud:
    """A platform with prices. Alice has one credit, and the owner a bond of a hundred."""
    prices = {"compute_run_micro": 10, "compute_per_billion_fuel_micro": 1_000, "publish_per_mib_micro": 1_000}
    platform.settings = platform.settings.model_copy(update=prices)
    platform.bond("owner", 100_000_000)
    return platform


def register(cloud: Cloud, contract: Any = CONTRACT, **terms: Any) -> str:
    request = AgentRequest.model_validate({"name": "test", "tariff": FLAT, "contract": contract, **terms})
    return agents.register(cloud, OWNER, request).agent_id


def publish(cloud: Cloud, agent_id: str, module: bytes | None = None, number: int = 1) -> str:
    posted = cloud.post(agent_id, number, wasm("echo") if module is None else module)
    return publishing.publish(cloud, f"uploads/{agent_id}/{number}", posted)


def published(cloud: Cloud, contract: Any = CONTRACT, module: bytes | None = None, **terms: Any) -> str:
    agent_id = register(cloud, contract, **terms)
    assert publish(cloud, agent_id, module) == "active"
    return agent_id


def next_version(cloud: Cloud, agent_id: str, number: int = 2, module: bytes | None = None, **request: Any) -> str:
    agents.open_version(cloud, OWNER, agent_id, VersionRequest.model_validate(request))
    return publish(cloud, agent_id, module, number)


def rejection(cloud: Cloud, agent_id: str) -> str:
    found = agents.describe(cloud, agent_id).rejection
    assert found
    assert found.code == "example_failed"
    assert len(found.message) <= REJECTION_CHARS_MAX
    assert found.message.isprintable()
    return found.message


def examples(*inputs: str, **members: Any) -> dict[str, Any]:
    return {"examples": [{"name": f"e{n}", "input": text, **members} for n, text in enumerate(inputs)]}


def due(cloud: Cloud) -> int:
    return sum(one.amount_micro for one in cloud.registry.dues())


# What is kept.


def test_published_contract_is_on_the_card(rich: Cloud) -> None:
    agent_id = published(rich, acceptance={"max_bytes": 100})
    card = agents.card(rich, agent_id)
    answer = json.loads(card.model_dump_json(by_alias=True))
    assert answer["contract"] == CONTRACT
    assert answer["contract_sha256"] == contract_sha256(contract_json(card.contract))
    assert answer["acceptance"] == {"max_bytes": 100, "json_schema": CONTRACT["output_schema"]}
    assert (card.version, card.owner, card.module_sha256) == (1, "owner", agents.describe(rich, agent_id).module_sha256)
    assert card.rules_sha256 == agents.estimate(rich, agent_id).rules_sha256


def test_agent_without_a_contract_works_as_before(rich: Cloud) -> None:
    for number, contract in enumerate([None, {}]):
        agent_id = published(rich, contract)
        assert run(rich, agent_id, input="\0 no JSON", task_id=f"t-{number}").success
        card = agents.card(rich, agent_id)
        assert (card.contract, card.contract_sha256) == (None, None)


def test_version_keeps_replaces_or_drops_the_contract(rich: Cloud) -> None:
    agent_id = published(rich, acceptance={"max_bytes": 100})
    first = agents.card(rich, agent_id)
    assert next_version(rich, agent_id, 2) == "active"
    kept = agents.card(rich, agent_id)
    assert (kept.contract_sha256, kept.rules_sha256, kept.version) == (first.contract_sha256, first.rules_sha256, 2)
    assert next_version(rich, agent_id, 3, acceptance={"min_bytes": 1}) == "active"
    ruled = agents.card(rich, agent_id)
    assert (ruled.acceptance.min_bytes, ruled.acceptance.json_schema) == (1, CONTRACT["output_schema"])
    assert next_version(rich, agent_id, 4, contract={"tags": ["other"]}) == "active"
    replaced = agents.card(rich, agent_id)
    assert replaced.contract
    assert replaced.contract.tags == ["other"]
    assert (replaced.acceptance.min_bytes, replaced.acceptance.json_schema) == (1, None)
    assert next_version(rich, agent_id, 5, contract={}) == "active"
    assert agents.card(rich, agent_id).contract_sha256 is None


def test_contract_of_a_registration_counts_until_a_version_is_active(rich: Cloud) -> None:
    """As its other terms do: a rejected upload changes nothing."""
    agent_id = register(rich)
    assert publish(rich, agent_id, b"no module") == "rejected"
    assert next_version(rich, agent_id, 2, b"no module", contract={"tags": ["other"]}) == "rejected"
    assert next_version(rich, agent_id, 3) == "active"
    card = agents.card(rich, agent_id)
    assert card.contract
    assert card.contract.tags == ["text"]
    assert card.acceptance.json_schema == CONTRACT["output_schema"]


def test_rules_that_contradict_the_output_schema_are_refused(rich: Cloud) -> None:
    other = {"json_schema": {"type": "array"}}
    with pytest.raises(InvalidRequestError, match="another schema"):
        register(rich, acceptance=other)
    with pytest.raises(InvalidRequestError, match="is for JSON"):
        register(rich, acceptance={"media_type": "image/png"})
    agent_id = published(rich, {"tags": ["a"]}, acceptance={"media_type": "application/json"})
    with pytest.raises(InvalidRequestError, match="another schema"):
        next_version(rich, agent_id, contract=CONTRACT, acceptance=other)
    assert next_version(rich, agent_id, contract=CONTRACT, acceptance={"json_schema": CONTRACT["output_schema"]})


def test_changed_rules_keep_the_output_schema_of_the_contract(rich: Cloud) -> None:
    agent_id = published(rich)
    change = lambda **members: agents.change(rich, OWNER, agent_id, AgentChange.model_validate(members))  # noqa: E731
    change(acceptance={"max_bytes": 50})
    card = agents.card(rich, agent_id)
    assert (card.acceptance.max_bytes, card.acceptance.json_schema) == (50, CONTRACT["output_schema"])
    with pytest.raises(InvalidRequestError, match="another schema"):
        change(acceptance={"json_schema": True})
    assert agents.card(rich, agent_id) == card


def test_an_earlier_version_comes_back_with_its_contract(rich: Cloud) -> None:
    agent_id = published(rich)
    first = agents.card(rich, agent_id)
    assert next_version(rich, agent_id, contract={"input_schema": False}) == "active"
    refuse(rich, agent_id, input={"text": ""})
    agents.activate(rich, OWNER, agent_id, 1)
    assert agents.card(rich, agent_id) == first
    assert run(rich, agent_id, input={"text": ""}).success


def test_output_that_does_not_meet_the_contract_is_not_paid(rich: Cloud) -> None:
    agent_id = published(rich, {"output_schema": {"type": "array"}})
    done = run(rich, agent_id, input="{}")
    assert (done.success, done.error and done.error.code, done.amount_paid_micro) == (False, Outcome.REJECTED, 0)


def test_contract_is_stored_before_the_agent_that_names_it(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise PlatformUnavailableError

    monkeypatch.setattr(rich.registry, "keep_contract", crash)
    with pytest.raises(PlatformUnavailableError):
        register(rich)
    assert not agents.page(rich, owner="owner").agents


def test_a_contract_that_cannot_be_read_moves_no_money(rich: Cloud) -> None:
    agent_id = published(rich)
    sha256 = agents.card(rich, agent_id).contract_sha256
    rich.registry._contracts.clear()
    rich.dynamodb.delete_item(TableName=rich.settings.registry_table, Key={"pk": {"S": f"CONTRACT#{sha256}"}})
    with pytest.raises(PlatformUnavailableError):
        run(rich, agent_id, input={"text": ""})
    assert not rich.items("ESC#")


# Inputs.


def refuse(cloud: Cloud, agent_id: str, **task: Any) -> InputNotAcceptedError:
    before = (cloud.items(), agents.describe(cloud, agent_id).reputation)
    for entry in (execute.execute, execute.submit):
        with pytest.raises(InputNotAcceptedError) as caught:
            entry(cloud, "alice", ask(agent_id, **task))
    assert (cloud.items(), agents.describe(cloud, agent_id).reputation) == before
    return caught.value


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({"input": {"text": 1}}, "input/text"),
        ({"input": {}}, "input"),
        ({"input": "words"}, "input"),
        ({"input": '{"text": "x"}x'}, "input"),
        ({"input": None, "input_base64": "/w=="}, "input"),
        ({"input": ""}, "input"),
    ],
)
def test_input_that_does_not_meet_the_schema_moves_no_money(rich: Cloud, task: dict[str, Any], field: str) -> None:
    refused = refuse(rich, published(rich), **task)
    (fault,) = refused.members["errors"]  # type: ignore[misc]  # a list of one
    assert fault["field"] == field


def test_refused_input_is_a_422_problem_with_the_path(rich: Cloud, call: Call) -> None:
    agent_id = published(rich)
    body = {"task_id": "t", "agent_id": agent_id, "input": {"text": [1]}, "budget": "0.05"}
    status, problem, _ = call("execute", "POST", "/tasks/execute", body)
    assert (status, problem["code"]) == (422, "input_not_accepted")
    assert problem["errors"] == [{"field": "input/text", "message": "must be of type string"}]
    assert problem["contract_sha256"] == agents.card(rich, agent_id).contract_sha256


def test_direct_invocation_is_refused_likewise(rich: Cloud) -> None:
    direct = {"task_id": "t", "agent_id": published(rich), "input": {}, "budget": "0.05", "user_id": "alice"}
    request = DirectTaskRequest.model_validate(direct)
    with pytest.raises(InputNotAcceptedError):
        execute.execute(rich, request.user_id, request)


def test_accepted_input_in_any_spelling_runs(rich: Cloud) -> None:
    agent_id = published(rich)
    for number, task in enumerate(
        [{"input": {"text": "a"}}, {"input": ' {"text" : "a"}\n'}, {"input": None, "input_base64": "eyJ0ZXh0IjogIiJ9"}]
    ):
        assert run(rich, agent_id, task_id=f"t-{number}", **task).success


def test_a_funded_task_keeps_the_contract_that_accepted_it(rich: Cloud) -> None:
    agent_id = published(rich, {"input_schema": True})
    done = run(rich, agent_id, input={"a": 1})
    for task_id in ("t-2", "t-3"):
        assert isinstance(execute.submit(rich, "alice", ask(agent_id, task_id=task_id, input={"a": 1})), TaskPending)
    assert next_version(rich, agent_id, contract={"input_schema": False}) == "active"
    assert run(rich, agent_id, input={"a": 1}) == done
    assert run(rich, agent_id, task_id="t-2", input={"a": 1}).success
    refuse(rich, agent_id, task_id="t-4", input={"a": 1})
    assert next_version(rich, agent_id, 3, module=wasm("wordcount")) == "active"
    later = run(rich, agent_id, task_id="t-3", input={"a": 1})
    assert later.error
    assert (later.error.code, later.amount_refunded_micro) == (Outcome.SUPERSEDED, 50_000)
    assert agents.describe(rich, agent_id).reputation.failures == 0  # type: ignore[union-attr]  # it has one


def test_judges_read_what_they_judge_whatever_their_contract_says(rich: Cloud) -> None:
    judge = published(rich, {"input_schema": False}, wasm("coverage"), limits={"fuel": 100_000_000})
    agent_id = published(rich, {}, task_judges=CONSENT)
    rules = {"judge": {"agent_id": judge, "threshold": "0", "budget": "0.02"}}
    done = run(rich, agent_id, input="words", acceptance=rules)
    assert [one.cost_micro > 0 for one in done.judges] == [True], done.error


def test_contract_is_read_once_in_an_environment(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent_id = published(rich)
    reads: list[str] = []
    item = rich.registry._item
    monkeypatch.setattr(rich.registry, "_item", lambda pk: (reads.append(pk), item(pk))[1])
    for number in range(3):
        run(rich, agent_id, task_id=f"t-{number}", input={"text": ""})
    assert sum(pk.startswith("CONTRACT#") for pk in reads) <= 1


# Examples.


def test_failing_example_rejects_the_version_with_the_reason(rich: Cloud) -> None:
    wrong = CONTRACT | {"examples": [*CONTRACT["examples"], {"name": "no", "input": {"text": "a"}, "output": "b"}]}
    agent_id = register(rich, wrong)
    assert publish(rich, agent_id) == "rejected"
    assert rejection(rich, agent_id) == (
        'The example "no" failed: the output "b" (1 bytes) was expected, and it wrote "{\\"text\\":\\"a\\"}" (12 bytes)'
    )
    with pytest.raises(NotFoundError, match="has no card"):
        agents.card(rich, agent_id)
    assert next_version(rich, agent_id, contract=CONTRACT) == "active"
    assert agents.describe(rich, agent_id).rejection is None


def test_rejected_version_leaves_the_active_one_as_it_is(rich: Cloud) -> None:
    agent_id = published(rich)
    before = agents.card(rich, agent_id)
    assert next_version(rich, agent_id, module=wasm("failing")) == "rejected"
    assert "success was expected" in rejection(rich, agent_id)
    assert agents.card(rich, agent_id) == before


def test_examples_have_a_fixed_clock_and_seed(rich: Cloud) -> None:
    for command in ("time", "random"):
        agent_id = register(rich, examples(command, output="-"))
        assert publish(rich, agent_id, wasm("misbehave")) == "rejected"
        wrote = json.loads(rejection(rich, agent_id).partition("it wrote ")[2].rpartition(" (")[0])
        assert publish(rich, register(rich, examples(command, output=wrote)), wasm("misbehave")) == "active"
    assert running.EPOCH_NS % 10**6 == 0, "a task's clock begins at a whole millisecond"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("loop", "fuel"),
        ("memory", "success was expected"),
        ("flood", "success was expected"),
        ("stderr-flood", "fuel"),
        ("recurse", "success was expected"),
        ("oob", "success was expected"),
        ("exit 3", "exit code 3"),
    ],
)
def test_hostile_examples_are_bounded_and_charged(rich: Cloud, command: str, reason: str) -> None:
    limits = {"memory_mib": 1024, "timeout": 600, "fuel": 10**12}
    if reason == "fuel":
        limits["fuel"] = 10**9
    module = wasm("misbehave")
    agent_id = register(rich, examples(*[command] * EXAMPLES_MAX), limits=limits)
    before = due(rich)
    assert publish(rich, agent_id, module) == "rejected"
    assert reason in rejection(rich, agent_id)
    size_micro = -(-(len(module) + 2_000) * 1_000 // 2**20)
    assert due(rich) - before > size_micro, "the run is charged beside the size"


def test_fuel_of_all_examples_together_is_limited(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "EXAMPLES_FUEL_MAX", 50_000_000)
    fitting = [f"size {1_000_000}"] * EXAMPLES_MAX
    agent_id = register(rich, examples(*fitting))
    assert publish(rich, agent_id, wasm("misbehave")) == "rejected"
    assert "together need more than" in rejection(rich, agent_id)
    assert EXAMPLES_FUEL_MAX >= 10**10, "examples of real agents fit"


def test_time_of_all_examples_together_is_limited(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "EXAMPLES_SECONDS_MAX", 1)
    agent_id = register(rich, examples("loop"), limits={"timeout": 600})
    assert publish(rich, agent_id, wasm("misbehave")) == "rejected"
    assert "together take longer" in rejection(rich, agent_id)


def test_each_example_costs_the_compute_of_a_run(rich: Cloud) -> None:
    free, agent_id = published(rich, CONTRACT | {"examples": []}), register(rich)
    size_micro = due(rich)
    assert publish(rich, agent_id) == "active"
    runs = []
    for number, one in enumerate(CONTRACT["examples"]):
        done = run(rich, free, task_id=f"t-{number}", input=one["input"])
        runs.append(rich.settings.compute.micro(done.resource_usage.fuel_used))
    contracts_micro = 2  # the longer contract may cross the edge of a micro-credit
    assert sum(runs) <= due(rich) - 2 * size_micro <= sum(runs) + contracts_micro


@contextmanager
def runs_fail(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, *, after: int, error: BaseException | None
) -> Iterator[None]:
    """The platform fails in the run after so many: it raises, or its worker is lost if `error` is None."""
    run_job, done = cloud.sandbox.run, 0

    def fail(job: Job) -> Run:
        nonlocal done
        if done == after:
            if error:
                raise error
            return Run(Outcome.WORKER_LOST, "lost", Meter())
        done += 1
        return run_job(job)

    with monkeypatch.context() as patch:
        patch.setattr(cloud.sandbox, "run", fail)
        yield


@pytest.mark.parametrize("error", [None, OSError(), KeyboardInterrupt(), MemoryError()])
def test_crash_between_examples_is_repeated_and_charged_once(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    agent_id = register(rich)
    posted = rich.post(agent_id, 1, wasm("echo"))
    with runs_fail(rich, monkeypatch, after=1, error=error):
        for _ in range(2):
            with suppress(OSError, KeyboardInterrupt, MemoryError, PlatformUnavailableError):
                publishing.publish(rich, f"uploads/{agent_id}/1", posted)
    assert agents.describe(rich, agent_id).state == "publishing"
    assert due(rich) == 0, "nothing is charged for what the platform failed to do"
    sweep(rich)
    for _ in range(3):
        assert publishing.publish(rich, f"uploads/{agent_id}/1", posted) == "active"
    owed = due(rich)
    assert owed > 0
    sweep(rich)
    assert rich.ledger.available_micro("bond owner") == 100_000_000 - owed
    assert publishing.publish(rich, f"uploads/{agent_id}/1", posted) == "active"
    sweep(rich)
    assert rich.ledger.available_micro("bond owner") == 100_000_000 - owed


def test_crash_after_the_charge_is_recorded_charges_once(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent_id = register(rich)
    posted = rich.post(agent_id, 1, wasm("echo"))
    with monkeypatch.context() as patch:
        patch.setattr(rich.binaries, "keep_module", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publishing.publish(rich, f"uploads/{agent_id}/1", posted)
    sweep(rich)
    charged = 100_000_000 - rich.ledger.available_micro("bond owner")
    assert charged > 0
    assert publishing.publish(rich, f"uploads/{agent_id}/1", posted) == "active"
    sweep(rich)
    assert rich.ledger.available_micro("bond owner") == 100_000_000 - charged


def test_no_file_of_an_example_is_left(rich: Cloud) -> None:
    before = {path.name for path in rich.settings.scratch_dir.iterdir()}
    published(rich)
    assert {path.name for path in rich.settings.scratch_dir.iterdir()} == before


# Cards.


def test_a2a_card_is_public_and_verifies_with_the_published_keys(rich: Cloud, call: Call) -> None:
    agent_id = published(rich)
    path = f"/agents/{agent_id}/.well-known/agent-card.json"
    status, card, headers = call("public", "GET", path, user=None)
    assert status == 200
    assert "max-age" in headers["Cache-Control"]
    _, jwks, _ = call("public", "GET", "/.well-known/jwks.json", user=None)
    found = cards.verify(json.dumps(card), jwks, now_ms=rich.now_ms())
    assert (found.agent_id, found.issuer) == (agent_id, rich.settings.receipt_issuer)
    params = card["capabilities"]["extensions"][0]["params"]
    native = agents.card(rich, agent_id)
    assert params["contractSha256"] == native.contract_sha256
    assert params["moduleSha256"] == native.module_sha256
    assert "owner" not in json.dumps(card), "no account is named to those who have none"
    with pytest.raises(cards.ProofError):
        cards.verify(json.dumps(card).replace('"text"', '"texts"'), jwks, now_ms=rich.now_ms())


def test_only_agents_with_an_active_version_have_cards(rich: Cloud, call: Call) -> None:
    waiting, retired = register(rich), published(rich)
    agents.retire(rich, OWNER, retired)
    for agent_id in (waiting, retired, "agt_unknown"):
        for function, path in (("agents", "card"), ("public", ".well-known/agent-card.json")):
            status, problem, _ = call(function, "GET", f"/agents/{agent_id}/{path}")
            assert (status, problem["code"]) == (404, "not_found")


def test_hostile_contracts_make_cards_of_bounded_size(rich: Cloud) -> None:
    text = "\x01" * 3_000
    names = [f"e{n}" for n in range(EXAMPLES_MAX)]
    contract = {"examples": [{"name": name, "input": text[:500]} for name in names], "tags": ["a"]}
    agent_id = register(rich, contract, description="\x01" * 2_000)
    assert publish(rich, agent_id) == "active"
    body = public.a2a_card(rich, "", agent_id).text
    assert len(body) < cards.CARD_BYTES_MAX
    cards.verify(body, rich.keys.jwks(), now_ms=rich.now_ms())
