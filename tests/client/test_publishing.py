"""Uploads and publications: the form, progress, files, refusals, and waiting for the end."""

import hashlib
import io
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest

from quittance.client import (
    InvalidRequestError,
    PublishFailedError,
    Retries,
    StillRunningError,
    UploadFailedError,
)
from quittance.ledger.pricing import FlatTariff
from quittance.limits import MODULE_BYTES_MAX
from tests.client.servers import Reply, Seen, Server, problem

MODULE = b"\x00asm\x01\x00\x00\x00" * 40_000  # several pieces
DIGEST = hashlib.sha256(MODULE).hexdigest()
FIELDS = {"key": "uploads/agt_a/1", "policy": "secret-policy", "x-amz-signature": "secret-signature"}
FLAT = {"type": "flat", "price": "0.01"}


def agent(state: str = "active", **changes: Any) -> Reply:
    return Reply(
        body={
            "agent_id": "agt_a", "owner": "alice", "name": "echo", "description": "", "state": state,
            "module_sha256": None, "rejection": None, "tariff": FLAT,
            "tariff_sha256": "aa" * 32, "rules_sha256": "bb" * 32,
            "limits": {"memory_mib": 64, "timeout": 5, "fuel": 1000}, "task_judges": {"rejected_share": "0.25"},
            "acceptance": {"max_bytes": 5, "json_schema": {"multipleOf": 0.01}}, "reputation": None,
            "created_at": "2026-01-01T00:00:00.000Z", **changes,
        }
    )  # fmt: skip


def version(state: str = "active", number: int = 1, **changes: Any) -> dict[str, Any]:
    published = state in {"active", "inactive"}
    return {
        "number": number, "state": state, "module_sha256": DIGEST if published else None, "contract_sha256": None,
        "tariff": FLAT, "tariff_sha256": "aa" * 32, "rules_sha256": "bb" * 32,
        "limits": {"memory_mib": 64, "timeout": 5, "fuel": 1000}, "task_judges": None, "rejection": None,
        "published_at": "2026-01-01T00:00:00.000Z" if published else None, **changes,
    }  # fmt: skip


def versions(*found: dict[str, Any], after: str | None = None) -> Reply:
    return Reply(body={"versions": list(found), "next": after})


def upload(server: Server) -> Reply:
    form = {"method": "POST", "url": f"{server.url}/bucket", "fields": FIELDS, "expires_at": "2026-01-01T00:00:00.000Z"}
    return Reply(201, {"agent_id": "agt_a", "state": "awaiting_upload", "version": 1, "upload": form})


def parts(seen: Seen) -> list[tuple[str, bytes]]:
    """The parts of a form in order, read by the standard library's parser."""
    head = f"Content-Type: {seen.headers['content-type']}\r\n\r\n".encode()
    parsed: Message = BytesParser().parsebytes(head + seen.body)
    found = []
    for part in parsed.get_payload():
        assert isinstance(part, Message)
        found.append((str(part.get_param("name", header="content-disposition")), part.get_payload(decode=True)))
    return found


@pytest.fixture
def storage(server: Server) -> Server:
    server.api("POST /agents", upload(server))
    server.api("POST /agents/agt_a/versions", upload(server))
    server.api("GET /agents/agt_a", agent())
    server.api("GET /agents/agt_a/versions", versions(version()))
    server.on("POST /bucket", Reply(204, b""))
    return server


@pytest.mark.parametrize("source", ["bytes", "path", "text"])
def test_a_module_is_published_with_its_progress(storage: Server, client: Any, tmp_path: Path, source: str) -> None:
    file = tmp_path / "m.wasm"
    file.write_bytes(MODULE)
    module = {"bytes": MODULE, "path": file, "text": str(file)}[source]
    heard: list[tuple[int, int]] = []
    storage.api(
        "GET /agents/agt_a/versions",
        versions(version("awaiting_upload")), versions(version("publishing")), versions(version()),
    )  # fmt: skip
    done = client.agents.publish(
        module, name="echo", tariff=FLAT, limits={"timeout": 5}, progress=lambda sent, size: heard.append((sent, size))
    )
    assert (done.agent_id, done.number, done.state.value, done.module_sha256) == ("agt_a", 1, "active", DIGEST)
    sent_terms = storage.calls("/agents")[0].json
    assert sent_terms.pop("registration_id")
    assert sent_terms == {
        "name": "echo", "description": "", "tariff": FLAT, "limits": {"timeout": 5},
    }  # fmt: skip
    (sent,) = storage.calls("/bucket")
    assert parts(sent) == [*((name, value.encode()) for name, value in FIELDS.items()), ("file", MODULE)]
    assert "authorization" not in sent.headers, "the storage never gets the token"
    assert int(sent.headers["content-length"]) == len(sent.body)
    assert heard == sorted(heard)
    assert len(heard) > 1
    assert heard[-1] == (len(MODULE), len(MODULE))


def test_models_are_accepted_as_terms(storage: Server, client: Any) -> None:
    client.agents.publish(MODULE, agent_id="agt_a", tariff=FlatTariff(type="flat", price="0.01"))
    assert storage.calls("/versions")[0].json == {"tariff": FLAT}


def test_an_upload_that_breaks_starts_again(storage: Server, client: Any) -> None:
    heard: list[int] = []
    storage.on("POST /bucket", Reply(503, b""), Reply(drop=True), Reply(204, b""))
    client.agents.publish(MODULE, name="a", tariff=FLAT, progress=lambda sent, _: heard.append(sent))
    assert [seen.body.count(MODULE) for seen in storage.calls("/bucket")] == [1, 1, 1]
    assert heard.count(len(MODULE)) == 3


def test_a_storage_that_hangs_does_not_hold_an_upload(storage: Server, make: Any) -> None:
    storage.on("POST /bucket", Reply(hang=True), Reply(204, b""))
    made = make(retries=Retries(tries=1_000, answer_s_max=0.5))
    assert made.agents.publish(MODULE, name="a", tariff=FLAT).state.value == "active"


def test_a_slow_upload_is_completed(storage: Server, client: Any) -> None:
    storage.slow = True
    assert client.agents.publish(MODULE, name="a", tariff=FLAT).state.value == "active"
    assert len(storage.calls("/bucket")) == 1


def test_a_refusal_of_the_storage_names_its_code_alone(storage: Server, client: Any) -> None:
    error = b"<?xml version='1.0'?><Error><Code>EntityTooLarge</Code><Message>secret-policy</Message></Error>"
    storage.on("POST /bucket", Reply(400, error, {"Content-Type": "application/xml"}))
    with pytest.raises(UploadFailedError, match="refused the module: EntityTooLarge") as caught:
        client.agents.publish(MODULE, name="a", tariff=FLAT)
    assert (caught.value.code, caught.value.call_id) == ("EntityTooLarge", "agt_a")
    assert "secret" not in f"{caught.value!r}"
    storage.on("POST /bucket", Reply(403, b"<Code>" + b"A" * 10_000))
    with pytest.raises(UploadFailedError, match="status 403"):
        client.agents.publish(MODULE, name="a", tariff=FLAT)


def test_forms_do_not_show_their_signature(storage: Server, client: Any) -> None:
    opened = client.agents.register("a", tariff=FLAT)
    assert opened.upload.fields == FIELDS
    assert "secret" not in repr(opened)


def test_a_module_that_is_too_large_is_not_sent(storage: Server, client: Any, tmp_path: Path) -> None:
    file = tmp_path / "m.wasm"
    with file.open("wb") as sparse:
        sparse.truncate(MODULE_BYTES_MAX + 1)
    with pytest.raises(InvalidRequestError, match=f"at most {MODULE_BYTES_MAX}"):
        client.agents.publish(file, name="a", tariff=FLAT)
    with pytest.raises(InvalidRequestError, match="cannot be read: No such file"):
        client.agents.publish(tmp_path / "none", name="a", tariff=FLAT)
    with pytest.raises(InvalidRequestError, match="name: is required"):
        client.agents.publish(MODULE, tariff=FLAT)
    assert storage.seen == []


def test_a_rejected_module_is_an_error_with_its_reason(storage: Server, client: Any) -> None:
    reason = {"code": "no_start", "message": "it does not export _start"}
    storage.api(
        "GET /agents/agt_a/versions",
        versions(version("publishing")), versions(version("rejected", rejection=reason)),
    )  # fmt: skip
    with pytest.raises(PublishFailedError, match="Version 1 of agt_a is rejected: no_start: it does not") as caught:
        client.agents.publish(MODULE, name="a", tariff=FLAT)
    assert (caught.value.number, caught.value.state, caught.value.code) == (1, "rejected", "no_start")
    assert caught.value.reason == reason["message"]


def test_a_rejected_version_of_an_active_agent_is_an_error(storage: Server, client: Any) -> None:
    reason = {"code": "example_failed", "message": 'The example "a" failed:\x1b[2J no.'}
    opened = upload(storage)
    opened.body["version"] = 3
    storage.api("POST /agents/agt_a/versions", opened)
    storage.api("GET /agents/agt_a", agent(version=2, module_sha256=DIGEST))
    pages = {None: (version("awaiting_upload", 5), "c5"), "c5": (version("rejected", 3, rejection=reason), "c3")}

    def page(seen: Seen) -> Reply:
        found, after = pages[seen.query.get("after")]
        return versions(found, after=after)

    storage.api("GET /agents/agt_a/versions", page)
    with pytest.raises(PublishFailedError, match="Version 3 of agt_a is rejected: example_failed") as caught:
        client.agents.publish(MODULE, agent_id="agt_a", contract={"examples": [{"name": "a", "input": 1}]})
    assert (caught.value.number, caught.value.code) == (3, "example_failed")
    assert "\x1b" not in caught.value.reason


def test_a_version_that_another_upload_replaced_is_an_error(storage: Server, client: Any) -> None:
    storage.api("GET /agents/agt_a/versions", versions(version("publishing", 2)))
    with pytest.raises(PublishFailedError, match="Version 1 of agt_a is superseded"):
        client.agents.publish(MODULE, agent_id="agt_a")


def test_a_version_that_is_inactive_by_now_was_published(storage: Server, client: Any) -> None:
    storage.api("GET /agents/agt_a/versions", versions(version("inactive")))
    done = client.agents.publish(MODULE, agent_id="agt_a")
    assert (done.number, done.state.value) == (1, "inactive")


def test_an_agent_that_is_retired_meanwhile_is_an_error(storage: Server, client: Any) -> None:
    storage.api("GET /agents/agt_a/versions", versions(version("awaiting_upload")))
    storage.api("GET /agents/agt_a", agent("retired"))
    with pytest.raises(PublishFailedError, match="is retired: retired: the agent was retired"):
        client.agents.publish(MODULE, agent_id="agt_a")


def test_a_version_with_another_module_is_an_error(storage: Server, client: Any) -> None:
    storage.api("GET /agents/agt_a/versions", versions(version(module_sha256="cc" * 32)))
    with pytest.raises(PublishFailedError, match="other_module"):
        client.agents.publish(MODULE, agent_id="agt_a")


def test_versions_without_an_end_do_not_hold_a_publication(storage: Server, client: Any, clock: Any) -> None:
    def page(seen: Seen) -> Reply:
        clock.sleep(1)
        return versions(after=str(clock.at))

    storage.api("GET /agents/agt_a/versions", page)
    with pytest.raises(PublishFailedError):
        client.agents.publish(MODULE, agent_id="agt_a", within=20)
    assert len(storage.calls("/versions")) < 30


def test_waiting_for_a_publication_is_bounded(storage: Server, client: Any, clock: Any) -> None:
    storage.api("GET /agents/agt_a/versions", versions(version("publishing")))
    with pytest.raises(StillRunningError):
        client.agents.publish(MODULE, name="a", tariff=FLAT, within=20)
    assert sum(clock.pauses) == 20


def test_an_upload_without_https_is_refused(storage: Server, client: Any) -> None:
    opened = upload(storage)
    opened.body["upload"]["url"] = "http://bucket.example.com/"
    storage.api("POST /agents", opened)
    with pytest.raises(Exception, match="must begin with https"):
        client.agents.publish(MODULE, name="a", tariff=FLAT)
    assert storage.calls("/bucket") == []


def test_a_lost_registration_is_repeated_by_publish(storage: Server, client: Any) -> None:
    storage.api("POST /agents", Reply(drop=True), upload(storage))
    assert client.agents.publish(MODULE, name="a", tariff=FLAT).state.value == "active"
    lost, repeated = [seen.json for seen in storage.calls("/agents") if seen.method == "POST"][:2]
    assert lost == repeated


def test_rules_of_agents_keep_exact_numbers(storage: Server, client: Any) -> None:
    found = client.agents.get("agt_a")
    assert found.task_judges.rejected_share_bps == 2_500
    client.agents.open_version("agt_a", acceptance=found.acceptance, task_judges=found.task_judges)
    assert b'"multipleOf":0.01' in storage.calls("/versions")[0].body
    assert storage.calls("/versions")[0].json["task_judges"] == {"rejected_share": "0.25"}


def test_retirement_is_repeated_safely(storage: Server, client: Any) -> None:
    storage.api("DELETE /agents/agt_a", problem(503, "platform_unavailable"), agent("retired"))
    assert client.agents.retire("agt_a").state.value == "retired"


def test_a_stream_that_is_no_module_is_a_type_error(storage: Server, client: Any) -> None:
    with pytest.raises(TypeError):
        client.agents.publish(io.BytesIO(MODULE), name="a", tariff=FLAT)
