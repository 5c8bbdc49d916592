"""A new version of the host rules: older agents run under it at once, and their receipts name it."""

from typing import Any

import pytest

from quittance.api.models import TaskRequest, TaskResult
from quittance.proof import receipt, replay
from quittance.run import HOST_RULES
from quittance.sandbox import CONFIG_DIGEST, ENGINE_DIGEST, config_digest, host_rules_of
from quittance.usecases import execute
from tests.support import Cloud, wasm

WORDS = '{"text": "one two two"}'


def run(cloud: Cloud, agent_id: str) -> dict[str, Any]:
    request = {"task_id": "t-1", "agent_id": agent_id, "input": WORDS, "budget": "0.05"}
    done = execute.execute(cloud, "alice", TaskRequest.model_validate(request))
    assert isinstance(done, TaskResult)
    assert done.success
    return receipt.read_claims(done.receipt)


def test_agent_of_older_host_rules_runs_unchanged(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry's item is as stored by code without numbered host rules: it names no version of them."""
    cloud.deposit("alice", 10**7)
    agent = cloud.publish(wasm("wordcount"))
    version = cloud.registry.get(agent).version
    assert version is not None
    assert version.config_sha256 == ENGINE_DIGEST == config_digest(1)
    monkeypatch.setattr(cloud.publisher, "recompile", lambda _: pytest.fail("nothing was to be recompiled"))
    claims = run(cloud, agent)
    assert claims["config_sha256"] == CONFIG_DIGEST
    assert host_rules_of(claims["config_sha256"]) == HOST_RULES


def test_receipt_replays_under_the_host_rules_it_names(cloud: Cloud) -> None:
    cloud.deposit("alice", 10**7)
    claims = run(cloud, cloud.publish(wasm("wordcount")))
    stated = receipt.read(claims)
    done = replay.replay(stated, wasm("wordcount"), WORDS.encode())
    assert (done.same_engine, done.run.meter.fuel) == (True, claims["meter"]["fuel"])
