"""Contracts on the deployed stack: examples decide a publication, inputs are checked, and the signed card verifies."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from local import client
from local.paths import Stack
from quittance.proof import card
from quittance.proof.statement import ProofError
from tests.e2e.people import User
from tests.support import wasm
from tests.waiting import until

CONTRACT: dict[str, Any] = {
    "input_schema": {
        "type": "object",
        "properties": {"items": {"items": {"properties": {"price": {"type": "number"}}}}},
    },
    "output_schema": {"type": "object"},
    "examples": [{"name": "gives back", "input": {"items": []}, "output": {"items": []}}],
    "tags": ["prices"],
    "licence": "Apache-2.0",
    "source": "https://example.com/agents/echo",
}
FLAT = {"type": "flat", "price": "0.01"}


@pytest.fixture(scope="module")
def agent_id(stack: Stack, token: Callable[..., str], bond: Callable[..., None]) -> str:
    bond("owner")
    caller = client.Api(stack.api_url, token("owner"))
    return client.publish(caller, "with a contract", wasm("echo"), {"tariff": FLAT, "contract": CONTRACT})


def test_contract_of_a_published_agent_is_on_its_card(agent_id: str, alice: User) -> None:
    answer = alice.http.get(f"/agents/{agent_id}/card").json()
    assert answer["contract"] == CONTRACT
    assert answer["acceptance"] == {"json_schema": {"type": "object"}}
    described = alice.http.get(f"/agents/{agent_id}").json()
    assert described["contract_sha256"] == answer["contract_sha256"]


def test_failing_example_rejects_the_version_and_costs_the_bond(olga: User, sweep: Callable[[], None]) -> None:
    wrong = CONTRACT | {"examples": [{"name": "no", "input": {}, "output": {"items": []}}]}
    registered = olga.http.post("/agents", json={"name": "wrong", "tariff": FLAT, "contract": wrong}).json()
    client.upload(registered["upload"], wasm("echo"))
    path = f"/agents/{registered['agent_id']}"
    found = until(
        lambda: got if (got := olga.http.get(path).json())["state"] == "rejected" else None, "it is not rejected"
    )
    assert found["rejection"]["code"] == "example_failed"
    assert found["rejection"]["message"] == (
        'The example "no" failed: the JSON {"items":[]} was expected, and it wrote {}'
    )
    assert olga.http.get(f"{path}/card").status_code == 404


@pytest.mark.parametrize("prefer", [{}, {"Prefer": "respond-async"}])
def test_input_that_does_not_meet_the_schema_is_refused(
    agent_id: str, alice: User, balance: Callable[[str], int], prefer: dict[str, str]
) -> None:
    before = balance(alice.name)
    body = {"agent_id": agent_id, "input": {"items": [{"price": 1}, {"price": "2"}]}, "budget": "0.05"}
    refused = alice.http.post("/tasks/execute", json=body | {"task_id": "refused"}, headers=prefer)
    assert refused.status_code == 422
    problem = refused.json()
    assert problem["code"] == "input_not_accepted"
    assert problem["errors"] == [{"field": "input/items/1/price", "message": "must be of type number"}]
    assert balance(alice.name) == before
    assert alice.http.get("/tasks/refused/result").status_code == 404
    standing = alice.http.get(f"/agents/{agent_id}").json()["reputation"]
    assert standing["failures"] == 0


def test_input_that_meets_the_schema_runs(agent_id: str, alice: User) -> None:
    body = {"task_id": "accepted", "agent_id": agent_id, "input": {"items": [{"price": 1}]}, "budget": "0.05"}
    done = alice.http.post("/tasks/execute", json=body).json()
    assert (done["success"], json.loads(done["output"])) == (True, body["input"])


def test_signed_card_verifies_with_the_served_keys(
    agent_id: str, api: Callable[..., httpx.Client], jwks: dict[str, Any], alice: User
) -> None:
    served = api(None).get(f"/agents/{agent_id}/.well-known/agent-card.json")
    assert served.status_code == 200
    found = card.verify(served.content, jwks, now_ms=None)
    assert found.agent_id == agent_id
    (extension,) = found.card["capabilities"]["extensions"]
    native = alice.http.get(f"/agents/{agent_id}/card").json()
    assert extension["params"]["contractSha256"] == native["contract_sha256"]
    assert extension["params"]["moduleSha256"] == native["module_sha256"]
    for tampered in (served.text.replace("prices", "prizes"), served.text.replace(agent_id, "agt_other")):
        assert tampered != served.text
        with pytest.raises(ProofError):
            card.verify(tampered, jwks, now_ms=None)
    execute = extension["params"]["execute"]
    direct = alice.http.post(
        served.url.copy_with(path=execute["path"]),
        json={"task_id": "by-card", "agent_id": agent_id, "input": {}, "budget": "0.05"},
    )
    assert direct.json()["success"] is True, "the card says truly how the agent is called"
