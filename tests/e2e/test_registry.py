"""Agents on the deployed stack: lists in pages, repeated uploads, and failures of the platform while publishing."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

from local import client
from local.paths import Stack
from quittance.limits import MODULE_BYTES_MAX
from tests.e2e.people import User, invoke
from tests.roles import DENIED_ON_PURPOSE
from tests.support import wasm
from tests.waiting import until

FLAT = {"type": "flat", "price": "0.01"}


def register(owner: User) -> dict[str, Any]:
    answer: dict[str, Any] = owner.http.post("/agents", json={"name": "test", "tariff": FLAT}).json()
    return answer


def read_agent(owner: User, agent_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = owner.http.get(f"/agents/{agent_id}").json()
    return answer


def wait_for_state(owner: User, agent_id: str, state: str) -> dict[str, Any]:
    """The agent, once it is in this state."""
    return until(
        lambda: agent if (agent := read_agent(owner, agent_id))["state"] == state else None,
        f"{agent_id} is not {state}",
    )


def pages(reader: User, **query: Any) -> list[str]:
    """The ids of all agents, read by following `next`."""
    found: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = reader.http.get("/agents", params={**query, **after}).json()
        found += [agent["agent_id"] for agent in page["agents"]]
        if page["next"] is None:
            return found
        after = {"after": page["next"]}


def versions(aws: Callable[[str], Any], stack: Stack, agent_id: str) -> list[str]:
    """The object versions of an agent's first upload, oldest first."""
    listed = aws("s3").list_object_versions(Bucket=stack.buckets["uploads"], Prefix=f"uploads/{agent_id}/1")
    return [version["VersionId"] for version in reversed(listed.get("Versions", []))]


def deliver_upload_event(aws: Callable[[str], Any], stack: Stack, agent_id: str, version: str) -> Any:
    """Send S3's event for an uploaded object to the publish function; return the answer."""
    record = {"eventSource": "aws:s3", "s3": {"object": {"key": f"uploads/{agent_id}/1", "versionId": version}}}
    answer, _ = invoke(aws("lambda"), stack.functions["PublishFunction"], {"Records": [record]})
    return answer


def test_active_agents_are_listed_in_pages(olga: User, publish: Callable[..., str]) -> None:
    awaiting = register(olga)["agent_id"]
    active = [publish(wasm("echo"), tariff={"type": "flat", "price": price}, owner=olga.name) for price in "123"]
    everything = [*reversed(active), awaiting]
    until(lambda: pages(olga, owner=olga.name, limit=3) == everything, "the owner's agents are not listed")
    assert pages(olga, owner=olga.name, limit=1) == everything
    until(lambda: {*active} <= {*pages(olga, limit=2)}, "active agents are not listed")
    assert awaiting not in pages(olga, limit=100)
    assert olga.http.delete(f"/agents/{active[1]}").json()["state"] == "retired"
    until(lambda: active[1] not in pages(olga, limit=100), "a retired agent is listed")
    assert {*active} - {active[1]} <= {*pages(olga, limit=100)}
    assert pages(olga, owner=olga.name, limit=2) == everything


def test_a_form_used_twice_publishes_only_the_first_module(olga: User, aws: Callable[[str], Any], stack: Stack) -> None:
    registered = register(olga)
    agent_id, form = registered["agent_id"], registered["upload"]
    client.upload(form, wasm("echo"))
    active = wait_for_state(olga, agent_id, "active")
    client.upload(form, wasm("sieve"))
    first, second = until(
        lambda: found if len(found := versions(aws, stack, agent_id)) == 2 else None, "the bucket has no second upload"
    )
    assert [deliver_upload_event(aws, stack, agent_id, version) for version in (second, first)] == [
        ["active"],
        ["active"],
    ]
    assert read_agent(olga, agent_id)["module_sha256"] == active["module_sha256"]


def test_a_file_over_the_limit_is_not_uploaded(olga: User) -> None:
    registered = register(olga)
    form = registered["upload"]
    too_large = httpx.post(
        form["url"], data=form["fields"], files={"file": bytes(MODULE_BYTES_MAX + 1)}, timeout=300, trust_env=False
    )
    assert too_large.status_code == 400
    assert "EntityTooLarge" in too_large.text
    assert read_agent(olga, registered["agent_id"])["state"] == "awaiting_upload"


@contextmanager
def uploads_unreadable(aws: Callable[[str], Any], stack: Stack, agent_id: str) -> Iterator[None]:
    """Deny reads of one agent's uploads; to the publisher this is a failure of storage."""
    s3, bucket = aws("s3"), stack.buckets["uploads"]
    before = s3.get_bucket_policy(Bucket=bucket)["Policy"]
    policy = json.loads(before)
    policy["Statement"].append(
        {
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["s3:GetObject", "s3:GetObjectVersion"],
            "Resource": f"arn:aws:s3:::{bucket}/uploads/{agent_id}/*",
        }
    )
    DENIED_ON_PURPOSE.add(f"arn:aws:s3:::{bucket}/uploads/{agent_id}/")
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    try:
        yield
    finally:
        s3.put_bucket_policy(Bucket=bucket, Policy=before)


def test_a_platform_failure_while_publishing_is_reported(olga: User, aws: Callable[[str], Any], stack: Stack) -> None:
    """Lambda tries the event three times and sends it to the failure queue; the function then records the failure."""
    registered = register(olga)
    agent_id = registered["agent_id"]
    with uploads_unreadable(aws, stack, agent_id):
        client.upload(registered["upload"], wasm("echo"))
        failed = wait_for_state(olga, agent_id, "failed")
    assert failed["rejection"]["code"] == "platform_failed"
    assert f"/agents/{agent_id}/versions" in failed["rejection"]["message"]
    opened = olga.http.post(f"/agents/{agent_id}/versions", json={}).json()
    client.upload(opened["upload"], wasm("echo"))
    assert wait_for_state(olga, agent_id, "active")["rejection"] is None


def test_requests_without_credits_recompile_once(
    olga: User, publish: Callable[..., str], aws: Callable[[str], Any], stack: Stack
) -> None:
    """The registry names an older engine's artefact, and the requests come from an account without credits."""
    module = wasm("wordcount")
    agent_id = publish(module, tariff={"type": "flat", "price": "0.012345"}, owner=olga.name)
    dynamodb, key = aws("dynamodb"), {"pk": {"S": f"AGENT#{agent_id}"}}
    now = dynamodb.get_item(TableName=stack.registry_table, Key=key)["Item"]["artefact_key"]["S"]
    dynamodb.update_item(
        TableName=stack.registry_table,
        Key=key,
        UpdateExpression="SET artefact_key = :old",
        ExpressionAttributeValues={":old": {"S": now.replace("wasmtime-", "wasmtime-1.")}},
    )
    kept = aws("s3").list_object_versions(Bucket=stack.buckets["binaries"], Prefix=f"artefacts/{now}")["Versions"]
    assert olga.execute(agent_id).json()["code"] == "agent_not_ready"
    payload, function = json.dumps({"recompile": agent_id}).encode(), stack.functions["PublishFunction"]
    with ThreadPoolExecutor(8) as pool:  # each gets its own environment
        for _ in range(8):
            pool.submit(aws("lambda").invoke, FunctionName=function, Payload=payload)
    until(
        lambda: dynamodb.get_item(TableName=stack.registry_table, Key=key)["Item"]["artefact_key"]["S"] == now,
        "the artefact is not recompiled",
    )
    until(lambda: olga.execute(agent_id).json()["code"] == "insufficient_funds", "the agent accepts no tasks")
    again = aws("s3").list_object_versions(Bucket=stack.buckets["binaries"], Prefix=f"artefacts/{now}")["Versions"]
    assert len(again) == len(kept) + 1, "stored exactly once more"
