"""New rules of host calls: what was published before runs under them at once, and its receipts say so."""

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


def test_an_agent_of_earlier_rules_runs_without_recompilation(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry's entry is what the code before rules had numbers wrote: nothing in it tells of them."""
    cloud.deposit("alice", 10**7)
    agent = cloud.publish(wasm("wordcount"))
    version = cloud.registry.get(agent).version
    assert version is not None
    assert version.config_sha256 == ENGINE_DIGEST == config_digest(1)
    monkeypatch.setattr(cloud.publisher, "recompile", lambda _: pytest.fail("nothing was to be recompiled"))
    claims = run(cloud, agent)
    assert claims["config_sha256"] == CONFIG_DIGEST
    assert host_rules_of(claims["config_sha256"]) == HOST_RULES


def test_a_receipt_of_a_task_replays_under_the_rules_it_names(cloud: Cloud) -> None:
    cloud.deposit("alice", 10**7)
    claims = run(cloud, cloud.publish(wasm("wordcount")))
    stated = receipt.ReceiptClaims.model_validate(claims)
    done = replay.replay(stated, wasm("wordcount"), WORDS.encode())
    assert (done.same_engine, done.run.meter.fuel) == (True, claims["meter"]["fuel"])
