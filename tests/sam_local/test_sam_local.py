"""The smoke test of `sam local`: every file in `events/` with `sam local invoke`, and a paid task with `start-api`.

Each event goes to the deployed function for one user and to the function in a container for another. The answers must
agree.
"""

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import pytest
import wasmtime
from cryptography.hazmat.primitives.asymmetric import ec

from local import client, demo, deploy, issuer, sam_local
from local.cloud import Cloud
from local.engine import Engine
from local.paths import Stack
from local.sam_local import NoAnswerError, SamLocal
from quittance.limits import MEMORY_BYTES_MAX, MIB
from tests.e2e.people import Ledger, User
from tests.e2e.test_events import FILES, HTTP, LOGGED, MESSAGES, Scene, function_of
from tests.sam_local.conftest import STATE
from tests.sandbox.wat import program
from tests.support import wasm
from tests.waiting import until

# In this order: an agent is published, used, changed, and finally retired.
ORDER = [
    "publish-s3",
    *HTTP,
    "execute-direct",
    "execute-ticket",
    "plan-run",
    *MESSAGES,
    "sweep-schedule",
    "drain-shard",
    *LOGGED,
    "audit-now",
    "archive-schedule",
    "authorizer-request",
]
ORDER += ["listings-stream", "listings-backfill", "notify-stream", "webhook-sqs"]
FLAT = {"tariff": {"type": "flat", "price": "0.01"}}
# Fields that differ between runs: times, durations, signatures, what the sweep finds, totals of the whole ledger.
VOLATILE = {
    "at",
    "expires_at",
    "timestamp",
    "created_at",
    "recorded_at",
    "execution_time_ms",
    "cpu_time_ms",
    "escrow_id",
    "receipt",
    "upload",
}
VOLATILE |= {"credited", "expired", "logged", "published", "report", "recent", "lag_ms", "oldest_overdue_ms"}
VOLATILE |= {"operation_id", "operations", "payout_id", "payouts", "requested_at", "decided_at"}
VOLATILE |= {
    "tasks",
    "run_id",
    "settled_at",
    "listed",
}  # streams list them, one later than the other
VOLATILE |= {"channel_id", "opened_at", "closes_at", "closed_at", "channels", "payer"}
VOLATILE |= {"leaf_index", "tree_size", "path", "checkpoint", "hashes"}


class Contained(Scene):
    """Sends events to containers. Each call is a cold start, which may exceed the timeout on a busy machine."""

    functions: SamLocal

    def invoke(self, name: str, event: Any) -> Any:
        for _try in range(2):
            with suppress(NoAnswerError):
                return self.functions.invoke(function_of(name), event)
        return self.functions.invoke(function_of(name), event)


@pytest.fixture(scope="module")
def hired(stack: Stack) -> str:
    return client.publish(demo.api(stack, STATE, "owner"), "wordcount", wasm("wordcount"), FLAT)


@pytest.fixture(scope="module")
def scenes(stack: Stack, deployed: Cloud, contained: SamLocal, hired: str) -> tuple[Scene, Scene]:
    scenes = []
    for kind in (Scene, Contained):
        name = f"user-{uuid.uuid4().hex[:12]}"
        api = demo.api(stack, STATE, name)
        own = api.post("/agents", {"name": "own", **FLAT})["agent_id"]
        demo.api(stack, STATE, "bank", demo.DEPOSIT_SCOPE).post(
            f"/accounts/{name}/deposits", {"deposit_id": name, "amount": "1"}
        )
        alice = User(name, httpx.Client())
        uploads, functions = stack.buckets["uploads"], deploy.aws(deployed, "lambda")
        scenes.append(kind(alice, hired, own, uploads, partial(token_of, stack, name), functions, stack))
    there, here = scenes
    assert isinstance(here, Contained)
    here.functions = contained
    return there, here


def token_of(stack: Stack, name: str) -> str:
    return demo.api(stack, STATE, name).token


@pytest.fixture(scope="module")
def url(contained: SamLocal) -> Iterator[str]:
    with contained.api() as (url, _):
        yield url


def test_every_file_and_every_function_is_covered(stack: Stack) -> None:
    assert set(ORDER) == FILES.keys()
    assert {function_of(name) for name in ORDER} == stack.functions.keys()


@pytest.mark.parametrize("name", ORDER)
def test_a_container_answers_like_the_deployed_function(
    scenes: tuple[Scene, Scene], stack: Stack, deployed: Cloud, name: str
) -> None:
    sweep_until_at_rest(stack, deployed)
    answers = []
    for scene in scenes:
        event = scene.fill_in(FILES[name])
        if name == "publish-s3":
            posted = event["Records"][0]["s3"]["object"]
            posted["versionId"] = upload_unnoticed(deployed, scene.bucket, posted["key"], wasm("echo"))
        answers.append(without_identity(scene, scene.send(name, event)))
    there, here = answers
    assert here == there
    if name in HTTP | LOGGED:
        assert here["statusCode"] == (HTTP | LOGGED)[name][0]


def sweep_until_at_rest(stack: Stack, deployed: Cloud) -> None:
    """Sweep until every task is settled, credited and logged, or the scheduled sweep could change one of two answers.

    For example, the reputation in `agents-describe` counts the receipts that the sweep has logged.
    """
    ledger = Ledger(deploy.aws(deployed, "dynamodb"), stack.table)

    def is_at_rest() -> bool:
        demo.sweep(stack)
        return not any("work" in item for item in ledger.items("ESC#"))  # an open channel waits for its expiry

    until(is_at_rest, "some task is never settled and credited", pause_s=0.5)


def without_identity(scene: Scene, answer: Any) -> Any:
    """An answer without the names, ids and times that differ between the two users."""
    if isinstance(answer, dict) and answer.get("body", "").startswith("{"):
        answer["body"] = json.loads(answer["body"])
    elif isinstance(answer, dict) and answer.get("body", "").startswith("ey"):
        answer["body"] = "a signed statement"
    elif isinstance(answer, dict) and answer.get("body", "").startswith("at,kind,id"):
        answer["body"] = "a statement"
    text = re.sub(r"agt_[a-z2-7]{16}|chn_[a-z2-7]{26}", "id", json.dumps(answer).replace(scene.alice.name, "alice"))

    def without_volatile(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: "…" if name in VOLATILE else value for name, value in pairs}

    return json.loads(text, object_pairs_hook=without_volatile)


def upload_unnoticed(deployed: Cloud, bucket: str, key: str, module: bytes) -> str:
    """Upload a module without an S3 event, or the deployed function might publish it first; return its version."""
    s3 = deploy.aws(deployed, "s3")
    notified = s3.get_bucket_notification_configuration(Bucket=bucket)["LambdaFunctionConfigurations"]
    s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={})
    version: str = s3.put_object(Bucket=bucket, Key=key, Body=module)["VersionId"]
    s3.put_bucket_notification_configuration(
        Bucket=bucket, NotificationConfiguration={"LambdaFunctionConfigurations": notified}
    )
    return version


@pytest.mark.parametrize("name", [name for name in HTTP if '"authorizer"' in FILES[name]])
def test_the_gateway_requires_a_token_where_a_route_needs_it(url: str, name: str) -> None:
    event = json.loads(FILES[name])
    answer = httpx.request(event["httpMethod"], url + event["path"], content=event["body"], trust_env=False)
    assert (answer.status_code, answer.json()) == (401, {"message": "Unauthorized"}), "the function answered, not sam"


@pytest.mark.parametrize("flaw", ["no token", "another issuer's", "expired"])
def test_the_authorizer_refuses_an_invalid_token(url: str, stack: Stack, flaw: str) -> None:
    """With 403, because `sam local` evaluates the denying policy but has no gateway responses."""
    key = issuer.load_key(STATE.key) if flaw == "expired" else ec.generate_private_key(ec.SECP256R1())
    claims = issuer.claims("alice", ttl=-60)
    token = "no token" if flaw == "no token" else issuer.sign(key, claims)
    me = f"{url}{client.PREFIX}/accounts/me"
    answer = httpx.get(me, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False)
    assert (answer.status_code, answer.json()) == (403, {"message": "User is not authorized to access this resource"})


def test_a_task_is_paid_through_containers(url: str, stack: Stack) -> None:
    """Only the upload's event is handled outside the containers; the deployed API returns the same result."""
    alice, owner = (f"{role}-{uuid.uuid4().hex[:12]}" for role in ("alice", "owner"))
    here = {name: replace(demo.api(stack, STATE, name, demo.DEPOSIT_SCOPE), url=url) for name in (alice, owner)}
    agent_id = client.publish(here[owner], "wordcount", wasm("wordcount"), FLAT)
    here[alice].post(f"/accounts/{alice}/deposits", {"deposit_id": "first", "amount": "1"})
    task = {"task_id": "first", "agent_id": agent_id, "budget": "0.05", "input": {"text": "to be or not to be"}}
    done = here[alice].post("/tasks/execute", task)
    assert (done["success"], done["escrow_status"], done["amount_refunded"]) == (True, "released", "0.04")
    assert here[alice].get("/tasks/first/result") == done
    there = demo.api(stack, STATE, alice)
    assert there.get("/tasks/first/result") == done
    assert there.get("/accounts/me")["available"] == "0.99"


def test_an_agent_can_use_the_maximum_memory(url: str, stack: Stack) -> None:
    """In a container with the function's memory limit; the agent touches every page of 1 GiB."""
    touch = """(drop (memory.grow (i32.const 16382))) (loop $again
        (i32.store8 (i32.mul (local.get $i) (i32.const 4096)) (i32.const 1))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $again (i32.lt_u (local.get $i) (i32.const 262144))))"""
    name = f"user-{uuid.uuid4().hex[:12]}"
    api = replace(demo.api(stack, STATE, name, demo.DEPOSIT_SCOPE), url=url)
    terms = {**FLAT, "limits": {"memory_mib": MEMORY_BYTES_MAX // MIB}}
    agent_id = client.publish(api, "hungry", bytes(wasmtime.wat2wasm(program(touch))), terms)
    api.post(f"/accounts/{name}/deposits", {"deposit_id": "first", "amount": "1"})
    task = {"task_id": "first", "agent_id": agent_id, "budget": "0.05", "input": ""}
    done = api.post("/tasks/execute", task)
    assert (done["error"], done["resource_usage"]["memory_used_mb"]) == (None, 1024)


def test_a_container_is_reused_and_removed_at_the_end(contained: SamLocal, containers: Engine) -> None:
    def running() -> set[str]:
        return set(containers.lambda_containers(f"AWS_ENDPOINT_URL={contained.cloud_url}"))

    before = running()
    with contained.api() as (url, _):
        for _call in range(2):
            assert httpx.get(f"{url}{client.PREFIX}/health", timeout=60, trust_env=False).status_code == 200
            assert len(running() - before) == 1
    assert running() == before


def test_containers_left_by_a_killed_sam_are_removed(deployed: Cloud, containers: Engine) -> None:
    with sam_local.ready(STATE, deployed, containers) as functions:
        variable = f"AWS_ENDPOINT_URL={functions.cloud_url}"
        with functions.api() as (url, sam):
            httpx.get(f"{url}{client.PREFIX}/health", timeout=60, trust_env=False)
            sam.kill()
        assert containers.lambda_containers(variable)
    assert not containers.lambda_containers(variable)
