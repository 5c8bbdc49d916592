"""Listings of the deployed stack: its streams feed runs, tasks and the index of agents."""

import csv
import json
import re
import uuid
from collections.abc import Callable
from io import StringIO
from typing import Any

import httpx
import pytest

from local import client
from local.paths import Stack
from tests.e2e.people import User, invoke
from tests.support import wasm
from tests.waiting import until


@pytest.fixture(scope="module")
def owner(api: Callable[..., httpx.Client], deposit: Callable[..., None], bond: Callable[..., None]) -> User:
    made = User.new(api, deposit)
    bond(made.name)
    return made


@pytest.fixture(scope="module")
def word() -> str:
    """A word that no other agent of this stack has."""
    return f"w{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def agent_id(stack: Stack, token: Callable[..., str], owner: User, word: str) -> str:
    terms = {"tariff": {"type": "flat", "price": "0.01"}, "description": f"Echoes {word}."}
    return client.publish(client.Api(stack.api_url, token(owner.name)), "Echo", wasm("echo"), terms)


def entries(reader: User, path: str, name: str, **query: str) -> list[dict[str, Any]]:
    """All entries of a list, read page by page, two at a time."""
    found: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = reader.http.get(path, params={"limit": "2", **query, **after})
        assert page.status_code == 200, page.text
        found += page.json()[name]
        if page.json()["next"] is None:
            return found
        after = {"after": page.json()["next"]}


def listed(reader: User, path: str, name: str, number: int, **query: str) -> list[dict[str, Any]]:
    """The entries of a list, once there are `number` of them."""

    def look() -> tuple[list[dict[str, Any]]] | None:
        found = entries(reader, path, name, **query)
        return (found,) if len(found) == number else None

    return until(look, f"{path} {query} does not have {number}")[0]


def test_runs_and_tasks_are_listed_after_they_settle(
    owner: User, agent_id: str, api: Callable[..., httpx.Client], deposit: Callable[..., None]
) -> None:
    alice = User.new(api, deposit)
    done = [alice.run(agent_id, task_id=f"t-{number}") for number in range(3)]
    refused = alice.run(agent_id, task_id="refused", acceptance={"max_bytes": 1})
    assert not refused["success"]
    runs = listed(owner, f"/agents/{agent_id}/runs", "runs", 4)
    assert [run["run_id"] for run in runs] == [task["escrow_id"] for task in reversed([*done, refused])]
    assert alice.name not in json.dumps(runs)
    (failed,) = listed(owner, f"/agents/{agent_id}/runs", "runs", 1, outcome="failed")
    assert (failed["outcome"], failed["success"], failed["payer"]) == ("rejected", False, None)
    assert failed["message"] == refused["error"]["message"]
    first = runs[-1]
    expected = done[0]["resource_usage"] | {"execution_time_ms": done[0]["execution_time_ms"]}
    assert {name: first[name] for name in ("fuel_used", "memory_used_mb", "execution_time_ms")} == {
        name: expected[name] for name in ("fuel_used", "memory_used_mb", "execution_time_ms")
    }
    assert (first["amount_paid"], first["fee"], first["settled_at"]) == (
        done[0]["amount_paid"], done[0]["fee"], done[0]["timestamp"],
    )  # fmt: skip
    one = owner.http.get(f"/agents/{agent_id}/runs/{first['run_id']}").json()
    assert one == first | {"log": None}
    assert len(listed(owner, f"/agents/{agent_id}/runs", "runs", 2, since=runs[1]["settled_at"])) == 2
    assert len(listed(owner, f"/agents/{agent_id}/runs", "runs", 2, until=runs[1]["settled_at"])) == 2
    for path in (f"/agents/{agent_id}/runs", f"/agents/{agent_id}/runs/{first['run_id']}"):
        assert alice.http.get(path).status_code == 404
    tasks = listed(alice, "/tasks", "tasks", 3, state="succeeded", agent_id=agent_id)
    assert [task["task_id"] for task in tasks] == ["t-2", "t-1", "t-0"]
    assert [task["amount_refunded"] for task in tasks] == [done[0]["amount_refunded"]] * 3
    (task,) = listed(alice, "/tasks", "tasks", 1, state="failed")
    assert (task["task_id"], task["outcome"]) == ("refused", "rejected")


def test_search_follows_an_agent_from_publication_to_retirement(
    stack: Stack, token: Callable[..., str], owner: User, word: str, agent_id: str, sweep: Callable[[], None]
) -> None:
    (found,) = listed(owner, "/agents", "agents", 1, q=word.upper())
    assert (found["agent_id"], found["state"]) == (agent_id, "active")
    for query in ({"max_price": "0.01"}, {"owner": owner.name}, {"sort": "price"}, {"sort": "score"}):
        assert len(listed(owner, "/agents", "agents", 1, q=word, **query)) == 1
    assert listed(owner, "/agents", "agents", 0, q=word, max_price="0.009999") == []
    assert listed(owner, "/agents", "agents", 0, q=word, tag="text") == []
    owner.run(agent_id)
    sweep()
    score = owner.http.get(f"/agents/{agent_id}").json()["reputation"]["score"]
    until(
        lambda: owner.http.get("/agents", params={"q": word, "min_score": str(score)}).json()["agents"],
        "the index does not have the agent's score",
    )
    rated = owner.http.get("/agents", params={"q": word, "sort": "success_rate"}).json()["agents"]
    assert rated[0]["standing"]["score"] == score
    terms = {"tariff": {"type": "flat", "price": "0.02"}, "description": word}
    second = client.publish(client.Api(stack.api_url, token(owner.name)), "Second", wasm("echo"), terms)
    assert [agent["agent_id"] for agent in listed(owner, "/agents", "agents", 2, q=word)] == [second, agent_id]
    assert [agent["agent_id"] for agent in listed(owner, "/agents", "agents", 2, q=word, sort="price")] == [
        agent_id, second,
    ]  # fmt: skip
    assert owner.http.delete(f"/agents/{second}").status_code == 200
    assert [agent["agent_id"] for agent in listed(owner, "/agents", "agents", 1, q=word)] == [agent_id]


def test_csv_equals_the_json_statement(agent_id: str, api: Callable[..., httpx.Client], deposit: Any) -> None:
    alice = User.new(api, deposit)
    for _ in range(3):
        alice.run(agent_id)
    lines = until(
        lambda: found if len(found := alice.http.get("/accounts/me/statement").json()["lines"]) == 4 else None,
        "the statement does not have all lines",
    )
    url = str(alice.http.base_url.join("accounts/me/statement.csv")) + "?limit=3"
    read: list[dict[str, str]] = []
    while url:
        answer = alice.http.get(url)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
        read += csv.DictReader(StringIO(answer.text), strict=True)
        link = re.fullmatch(r'<([^>]+)>; rel="next"', answer.headers.get("Link", ""))
        url = str(httpx.URL(str(answer.url)).join(link[1])) if link else ""
    assert read == [{name: "" if value is None else str(value) for name, value in line.items()} for line in lines]


def test_backfill_may_run_beside_the_streams(
    stack: Stack, aws: Callable[[str], Any], api: Callable[..., httpx.Client], deposit: Any, owner: User, agent_id: str
) -> None:
    alice = User.new(api, deposit)
    last = alice.run(agent_id)["escrow_id"]
    path = f"/agents/{agent_id}/runs"
    until(lambda: last in {run["run_id"] for run in entries(owner, path, "runs")}, "the run is not listed")
    before = entries(owner, path, "runs"), listed(alice, "/tasks", "tasks", 1, state="succeeded")
    payload: dict[str, Any] = {"backfill": {}}
    while payload["backfill"] is not None:
        answer, failed = invoke(aws("lambda"), stack.functions["ListingsFunction"], {"backfill": payload["backfill"]})
        assert not failed, answer
        assert answer["failed"] == 0
        payload = answer
    assert (entries(owner, path, "runs"), entries(alice, "/tasks", "tasks")) == before
