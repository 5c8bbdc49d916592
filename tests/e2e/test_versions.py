"""Versions of an agent on the deployed stack: published, changed, rolled back and forward, and executed under pins."""

from typing import Any

import httpx

from local import client
from quittance.proof.receipt import read_claims
from tests.e2e.people import User, task
from tests.support import wasm
from tests.waiting import until

ECHO, SIEVE = "100", '{"limit":100,"primes":25,"largest":97}\n'


def price(amount: str) -> dict[str, str]:
    return {"type": "flat", "price": amount}


def ok(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code in {200, 201}, response.text
    answer: dict[str, Any] = response.json()
    return answer


def upload_version(owner: User, agent_id: str, module: bytes, **terms: Any) -> None:
    """Uploads a version and waits until it is decided."""
    opened = ok(owner.http.post(f"/agents/{agent_id}/versions", json=terms))
    client.upload(opened["upload"], module)
    until(lambda: states(owner, agent_id)[0][1] in {"active", "rejected"}, "the upload is not decided")


def states(reader: User, agent_id: str) -> list[tuple[int, str]]:
    page = ok(reader.http.get(f"/agents/{agent_id}/versions"))
    assert page["next"] is None
    return [(one["number"], one["state"]) for one in page["versions"]]


def run_as(user: User, agent: dict[str, Any]) -> dict[str, Any]:
    """Runs a task that pins the agent's module and terms, once no environment has others cached."""
    pins = {name: agent[name] for name in ("module_sha256", "tariff_sha256", "rules_sha256")}
    body = task(agent["agent_id"], input="100", **pins)

    def accepted() -> httpx.Response | None:
        response = user.http.post("/tasks/execute", json=body)
        return None if response.status_code == 409 and response.json()["code"] == "terms_changed" else response

    done = ok(until(accepted, "the change is not noticed"))
    claims = read_claims(done["receipt"])
    assert done["success"], done
    assert (claims["module_sha256"], claims["tariff_sha256"]) == (pins["module_sha256"], pins["tariff_sha256"])
    assert claims["acceptance"]["agent_sha256"] == pins["rules_sha256"]
    return done


def test_versions_are_rolled_back_and_forward(olga: User, alice: User) -> None:
    terms = {"tariff": price("0.01"), "limits": {"timeout": 5}, "acceptance": {"max_bytes": 1_001}}
    registered = ok(olga.http.post("/agents", json={"name": "versions", **terms}))
    agent_id = registered["agent_id"]
    client.upload(registered["upload"], wasm("echo"))
    until(lambda: states(olga, agent_id) == [(1, "active")], "the first version is not active")
    first = ok(alice.http.get(f"/agents/{agent_id}"))
    done = run_as(alice, first)
    assert (done["output"], first["version"]) == (ECHO, 1)

    upload_version(olga, agent_id, wasm("sieve"), tariff=price("0.02"), acceptance={"max_bytes": 1_002})
    second = ok(alice.http.get(f"/agents/{agent_id}"))
    assert (second["version"], second["tariff"]["price"], second["limits"]["timeout"]) == (2, "0.02", 5)
    assert run_as(alice, second)["output"] == SIEVE

    changed = ok(olga.http.patch(f"/agents/{agent_id}", json={"tariff": price("0.03"), "limits": {"timeout": 6}}))
    assert (changed["version"], changed["module_sha256"]) == (2, second["module_sha256"])
    assert run_as(alice, changed)["output"] == SIEVE
    refused = alice.execute(agent_id, tariff_sha256=second["tariff_sha256"])
    assert (refused.status_code, refused.json()["code"]) == (409, "terms_changed")

    back = ok(olga.http.post(f"/agents/{agent_id}/versions/1/activate"))
    same = {"module_sha256", "tariff_sha256", "rules_sha256", "limits", "acceptance", "version"}
    assert {name: back[name] for name in same} == {name: first[name] for name in same}
    assert ok(olga.http.post(f"/agents/{agent_id}/versions/1/activate")) == back, "repeating changes nothing"
    assert run_as(alice, back)["output"] == ECHO
    refused = alice.execute(agent_id, module_sha256=second["module_sha256"])
    assert (refused.status_code, refused.json()["code"]) == (409, "terms_changed")

    upload_version(olga, agent_id, b"no module")
    assert states(alice, agent_id) == [(3, "rejected"), (2, "inactive"), (1, "active")]
    forward = ok(olga.http.post(f"/agents/{agent_id}/versions/2/activate"))
    assert {name: forward[name] for name in same} == {name: changed[name] for name in same}
    assert run_as(alice, forward)["output"] == SIEVE
    assert states(alice, agent_id) == [(3, "rejected"), (2, "active"), (1, "inactive")]

    for number, status, code in ((3, 409, "version_not_published"), (4, 404, "not_found"), (0, 400, "invalid_request")):
        refused = olga.http.post(f"/agents/{agent_id}/versions/{number}/activate")
        assert (refused.status_code, refused.json()["code"]) == (status, code)
    for answer in (
        alice.http.post(f"/agents/{agent_id}/versions/1/activate"),
        alice.http.patch(f"/agents/{agent_id}", json={"name": "mine"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert olga.http.patch(f"/agents/{agent_id}", json={}).json()["code"] == "invalid_request"
