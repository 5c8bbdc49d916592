"""Rules for outputs on a whole platform: which work is paid for, who is blamed, and what the receipt proves of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from quittance.acceptance.rules import Rules, rules_json, rules_sha256
from quittance.api.identity import Caller
from quittance.api.models import TaskRequest, TaskResult, VersionRequest
from quittance.errors import TaskConflictError, TaskInProgressError
from quittance.limits import VERDICT_MS_MAX
from quittance.proof import receipt
from quittance.proof import verify as verifier
from quittance.usecases import agents, execute, launch, publish, result
from quittance.usecases.sweep import sweep
from tests.support import UNSCORED, Cloud, wasm

START = 10_000_000
PRICE = 10_000
NUMBERS = {"json_schema": {"type": "array", "items": {"multipleOf": 0.01}}}
TOO_COSTLY = {"json_schema": {"$defs": {"n": {"allOf": [{"items": {"$ref": "#/$defs/n"}}] * 9}}, "$ref": "#/$defs/n"}}
DEEP = json.loads("[" * 50 + "]" * 50)

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"min_bytes": 6}, "hello", "it has 5 bytes, and must have at least 6 (min_bytes)"),
    ({"max_bytes": 4}, "hello", "it has 5 bytes, and must have at most 4 (max_bytes)"),
    ({"sha256": "00" * 32}, "hello", "it is not the one with the expected digest (sha256)"),
    ({"media_type": "image/png"}, "hello", "it does not begin like image/png (media_type)"),
    ({"media_type": "application/json"}, "hello", "it must be JSON in UTF-8 (RFC 8259) (media_type)"),
    (NUMBERS, "[1, 0.005]", "at /1 it must be a multiple of 0.01 (json_schema)"),
]


@pytest.fixture
def rich(cloud: Cloud) -> Cloud:
    cloud.deposit("alice", START)
    return cloud


def ask(agent_id: str, **changes: Any) -> TaskRequest:
    return TaskRequest.model_validate(
        {"task_id": "t-1", "agent_id": agent_id, "input": "hello", "budget": "0.05"} | changes
    )


def run(cloud: Cloud, agent_id: str, **changes: Any) -> TaskResult:
    done = execute.execute(cloud, "alice", ask(agent_id, **changes))
    assert isinstance(done, TaskResult)
    return done


def digest(rules: dict[str, Any]) -> str | None:
    return rules_sha256(rules_json(Rules.model_validate(rules)))


def stated(cloud: Cloud, done: TaskResult) -> Any:
    return receipt.verify(done.receipt, cloud.keys.jwks())["acceptance"]


MET: dict[str, Any] = NUMBERS | {
    "min_bytes": 9, "max_bytes": 9, "media_type": "application/json",
    "sha256": hashlib.sha256(b"[1, 0.05]").hexdigest(),
}  # fmt: skip


@pytest.mark.parametrize(("agent", "task"), [({}, None), ({}, {}), (MET, None), ({}, MET), (MET, NUMBERS)])
def test_an_output_that_meets_all_rules_is_paid_for(
    rich: Cloud, agent: dict[str, Any], task: dict[str, Any] | None
) -> None:
    done = run(rich, rich.publish(wasm("echo"), acceptance=agent), input="[1, 0.05]", acceptance=task)
    assert (done.success, done.output, done.escrow_status) == (True, "[1, 0.05]", "released")
    assert rich.ledger.available_micro("alice") == START - PRICE
    named = {"agent_sha256": digest(agent), "task_sha256": digest(task or {}), **UNSCORED, "accepted": True}
    assert stated(rich, done) == (named if agent or task else None)


@pytest.mark.parametrize("side", ["agent", "task"])
@pytest.mark.parametrize(("rules", "given", "reason"), REFUSED)
def test_an_output_that_does_not_is_refunded_and_not_shown(
    rich: Cloud, side: str, rules: dict[str, Any], given: str, reason: str
) -> None:
    agent = rich.publish(wasm("echo"), acceptance=rules if side == "agent" else None)
    done = run(rich, agent, input=given, acceptance=rules if side == "task" else None)
    assert done.error is not None
    assert done.error.code == "rejected"
    told = reason if side == "agent" else f"see {reason.rpartition('(')[2].removesuffix(')')}"
    assert done.error.message == f"The output does not meet the {side}'s rules: {told}."
    assert (done.success, done.escrow_status, done.reputation_delta) == (False, "refunded", BLAMED[side])
    assert done.fault == ("agent" if side == "agent" else "payer")
    assert (done.output, done.output_base64) == (None, None)
    assert rich.ledger.available_micro("alice") == rich.total_micro() == START
    assert stated(rich, done) == {"agent_sha256": None, "task_sha256": None, **UNSCORED, "accepted": False} | {
        f"{side}_sha256": digest(rules),
        "rejected_by": f"{side}_rules",
    }
    assert given.encode() not in json.dumps(rich.items("ESC#"), default=str).encode(), "nor kept"
    assert (
        result.read(rich, Caller("alice"), "t-1")
        == run(rich, agent, input=given, acceptance=ask_rules(side, rules))
        == done
    )
    sweep(rich)
    assert rich.ledger.available_micro("owner") == 0
    assert rich.ledger.standing(agent).reference_tenths == 500 + BLAMED[side]


BLAMED = {"agent": -50, "task": 0}


def ask_rules(side: str, rules: dict[str, Any]) -> dict[str, Any] | None:
    return rules if side == "task" else None


def test_rules_without_end_are_the_fault_of_who_made_them(rich: Cloud) -> None:
    own = run(rich, rich.publish(wasm("echo"), acceptance=TOO_COSTLY), task_id="own", input=DEEP)
    guest = run(rich, rich.publish(wasm("echo")), task_id="guest", input=DEEP, acceptance=TOO_COSTLY)
    for done, fault, delta in ((own, "agent", -50), (guest, "payer", 0)):
        assert done.error is not None
        assert (done.error.code, done.fault, done.reputation_delta) == ("rejected", fault, delta)
        assert "steps" in done.error.message
    assert rich.ledger.available_micro("alice") == START


def test_a_run_that_failed_is_not_held_to_rules(rich: Cloud) -> None:
    agent = rich.publish(wasm("failing"), acceptance={"min_bytes": 1})
    done = run(rich, agent)
    assert done.error is not None
    assert done.error.code == "exit_code"
    assert stated(rich, done)["accepted"] is False


def test_an_agents_rules_are_shown_kept_replaced_and_taken_away(rich: Cloud) -> None:
    first, second = {"min_bytes": 1}, NUMBERS
    agent = rich.publish(wasm("echo"), acceptance=first)

    def shown() -> Any:
        return json.loads(agents.describe(rich, agent).model_dump_json())["acceptance"]

    assert shown() == first
    number = 1
    for change, then in (({}, first), ({"acceptance": second}, second), ({"acceptance": {}}, {})):
        before = shown()
        agents.open_version(rich, Caller("owner"), agent, VersionRequest.model_validate(change))
        assert shown() == before, "the active version keeps its rules until the new one is active"
        number += 1
        rich.post(agent, number, wasm("echo"))
        assert publish.publish(rich, f"uploads/{agent}/{number}") == "active"
        assert shown() == then
    (listed,) = agents.page(rich, owner=None, limit=1, after=None).agents
    assert listed.acceptance is None, "a page of agents is not a page of schemas"


def test_an_agent_of_before_there_were_rules_has_none(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"))
    rich._dynamodb.update_item(
        TableName=rich.settings.registry_table,
        Key={"pk": {"S": f"AGENT#{agent}"}},
        UpdateExpression="REMOVE #rules, upload_rules",
        ExpressionAttributeNames={"#rules": "rules"},
    )
    assert run(rich, agent).success
    assert json.loads(agents.describe(rich, agent).model_dump_json())["acceptance"] == {}


@pytest.mark.parametrize("other", [None, {"min_bytes": 2}, NUMBERS])
def test_other_rules_are_another_request(rich: Cloud, other: dict[str, Any] | None) -> None:
    agent = rich.publish(wasm("echo"))
    done = run(rich, agent, acceptance={"min_bytes": 1})
    assert run(rich, agent, acceptance={"min_bytes": 1, "sha256": None}) == done, "the same rules, spelt otherwise"
    with pytest.raises(TaskConflictError):
        run(rich, agent, acceptance=other)


def test_no_rules_and_empty_rules_are_one_request(rich: Cloud) -> None:
    agent = rich.publish(wasm("echo"))
    assert run(rich, agent) == run(rich, agent, acceptance={})


def test_the_ledger_names_rules_by_digest_and_holds_none(rich: Cloud) -> None:
    run(rich, rich.publish(wasm("echo"), acceptance={"min_bytes": 1}), acceptance={"max_bytes": 7})
    run(rich, rich.publish(wasm("echo")), task_id="plain")
    items = {item["task_id"]["S"]: item for item in rich.items("ESC#")}
    assert items["t-1"]["agent_rules_sha256"]["S"] == digest({"min_bytes": 1})
    assert items["t-1"]["task_rules_sha256"]["S"] == digest({"max_bytes": 7})
    assert "max_bytes" not in json.dumps(items["t-1"], default=str)
    assert not [name for name in items["plain"] if "rules" in name]


class _CrashedError(Exception):
    """The runner died here."""


def crash(rich: Cloud, agent: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise _CrashedError

    with monkeypatch.context() as patch:
        patch.setattr(launch, "run", fail)
        with pytest.raises(_CrashedError):
            run(rich, agent, **changes)


@pytest.mark.parametrize("side", ["agent", "task"])
def test_a_takeover_waits_for_the_verdict_and_comes_to_the_same(
    rich: Cloud, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    rules = {"max_bytes": 4}
    agent = rich.publish(wasm("echo"), acceptance=rules if side == "agent" else None)
    again = {"acceptance": ask_rules(side, rules)}
    crash(rich, agent, monkeypatch, **again)
    with pytest.raises(TaskInProgressError) as running:
        run(rich, agent, **again)
    lease_ms = 10_000 + launch.RUN_RESERVE_MS + VERDICT_MS_MAX
    lease_s = -(-lease_ms // 1_000)
    assert running.value.retry_after_s in range(lease_s - 5, lease_s + 1), "what is left of the lease"
    rich.skew_ms = lease_ms + 1
    done = run(rich, agent, **again)
    assert done.error is not None
    assert done.error.code == "rejected"
    assert rich.total_micro() == START


def test_a_task_is_not_run_by_rules_that_it_was_not_funded_for(rich: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = rich.publish(wasm("echo"), acceptance={"min_bytes": 1})
    crash(rich, agent, monkeypatch)
    agents.open_version(rich, Caller("owner"), agent, VersionRequest.model_validate({"acceptance": {"min_bytes": 2}}))
    rich.post(agent, 2, wasm("echo"))
    publish.publish(rich, f"uploads/{agent}/2")
    with pytest.raises(TaskInProgressError):
        run(rich, agent)
    rich.skew_ms = 30_000
    done = run(rich, agent)
    assert done.error is not None
    assert (done.error.code, done.escrow_status, done.reputation_delta) == ("superseded", "refunded", 0)
    assert stated(rich, done) == {
        "agent_sha256": digest({"min_bytes": 1}),
        "task_sha256": None,
        **UNSCORED,
        "accepted": False,
    }
    assert rich.ledger.available_micro("alice") == START


# What a receipt proves of it, with the verifier that anyone may run.


def verify(cloud: Cloud, folder: Path, done: TaskResult, module: bytes, **files: bytes) -> tuple[int, list[str]]:
    """The exit status of `quittance-verify --replay`, and what it was told: only with these files."""
    contents = {"receipt": done.receipt.encode(), "keys": json.dumps(cloud.keys.jwks()).encode(), "module": module}
    words = [str(folder / "receipt"), "--replay"]
    for name, content in (contents | files).items():
        (folder / name).write_bytes(content)
        if name != "receipt":
            words += [f"--{name.replace('_', '-')}", str(folder / name)]
    return verifier.main([*words, "--json"]), words


def checks(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    told = json.loads(capsys.readouterr().out)["checks"]
    return {check["name"]: (check["verdict"], check["sentence"]) for check in told}


def test_anybody_comes_to_the_same_verdict(rich: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of paid work from its output; of rejected work, whose output nobody was given, by a replay."""
    module, agent_rules, task_rules = wasm("echo"), b'{"min_bytes": 2}', b'{"max_bytes" : 4}'
    agent = rich.publish(module, acceptance=json.loads(agent_rules))
    both = {"agent_rules": agent_rules, "task_rules": task_rules}
    paid = run(rich, agent, input="four", task_id="paid", acceptance=json.loads(task_rules))
    assert verify(rich, tmp_path, paid, module, input=b"four", output=b"four", **both)[0] == 0
    told = checks(capsys)
    assert [told[name][0] for name in ("agent rules", "task rules", "acceptance", "replay")] == ["passed"] * 4
    refused = run(rich, agent, input="hello", acceptance=json.loads(task_rules))
    assert verify(rich, tmp_path, refused, module, input=b"hello", **both)[0] == 0
    told = checks(capsys)
    assert told["verdict"][1].startswith("The output does not meet the task's rules: see max_bytes")
    assert told["acceptance"] == ("not done", "no --output was given")
    assert verify(rich, tmp_path, refused, module, input=b"hello", agent_rules=agent_rules)[0] == 0
    told = checks(capsys)
    assert told["task rules"] == ("not done", "no --task-rules was given")
    assert "verdict" not in told
    other = verify(rich, tmp_path, refused, module, input=b"hello", **both | {"task_rules": b'{"max_bytes": 5}'})[0]
    assert other == verifier.EXITS[verifier.Flaw.DIGEST][0]
