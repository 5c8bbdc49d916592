"""Data written by an earlier commit still works: tables, buckets, queues, keys, receipts and events.

`stored/` holds a whole platform as the code of commit 03fa34b left it (see stored/make.py). Each test loads it into
fresh tables and buckets, and continues with the current code: at the time when it was stored, so that the tests pass
on any later date, and under new root keys with the old ones still published, as after a key rotation.

A failure here means that a stored byte, a signed claim or an answer has changed. If an answer is meant to change,
change how this file compares it, never the stored files.
"""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm
from moto.core import DEFAULT_ACCOUNT_ID
from moto.kms.models import kms_backends
from moto.s3.models import s3_backends

from quittance.limits import BOND_NOTICE_MS
from quittance.proof import receipt
from quittance.proof import verify as verifier
from tests.support import REGION, Cloud, wasm
from tests.usecases.stored import form
from tests.usecases.stored.form import Clock, EventQueue, Functions, Row, Stored

(PLATFORM,) = form.read("platform")
(TOKENS,) = form.read("tokens")
STORED = Stored.read()
MESSAGES: list[Row] = form.whole(form.read("messages"), TOKENS)
JWKS = json.dumps(PLATFORM["jwks"]).encode()
AGENTS: dict[str, str] = PLATFORM["agents"]
OPEN = {row["task_id"]: row["row"] for row in MESSAGES if row["kind"] == "open"}
BONDED = ("olga", "judith", "rolf", "stan")
ACCOUNTS = ("alice", "bob", "eve", *BONDED, "quittance:platform")
CHECKPOINTS = sorted(int(name.partition("/")[2]) for name in TOKENS if name.startswith("@checkpoint/"))
ACCEPTED = "0.0195"  # what is paid to the owner of an agent whose price is 0.02


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, cloud: Cloud) -> Clock:
    form.serve(cloud, monkeypatch)
    clock = Clock(PLATFORM["now_ms"])
    monkeypatch.setattr(cloud, "now_ms", clock)
    return clock


@pytest.fixture
def functions(cloud: Cloud, clock: Clock, context: Any) -> Functions:
    """The Lambda functions, on the stored platform."""
    settings = {**PLATFORM["settings"], "webhook_loopback_targets": True}
    cloud.settings = cloud.settings.model_copy(update=settings | keep_old_roots(cloud))
    restore(cloud)
    functions = Functions(context)
    for item in STORED.registry:  # compiles it only for another engine or processor
        if "module_sha256" in item:
            assert functions.invoke("publish", {"recompile": item["pk"]["S"].removeprefix("AGENT#")}) == []
    return functions


def keep_old_roots(cloud: Cloud) -> dict[str, str]:
    """Adds the old root keys to KMS; returns the settings that name them after the new ones.

    They are public keys only: they verify what was signed, and sign nothing.
    """
    backend = kms_backends[DEFAULT_ACCOUNT_ID][REGION]
    named = {}
    for jwk in PLATFORM["jwks"]["keys"]:
        der = ECAlgorithm.from_jwk(jwk).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        made = backend.create_key(None, "SIGN_VERIFY", "ECC_NIST_P256", "", None, REGION)
        backend.keys[jwk["kid"]] = made
        made.arn = made.arn.replace(made.id, jwk["kid"])
        made.id, made.private_key = jwk["kid"], SimpleNamespace(public_key=lambda der=der: der)
        setting = f"{jwk['purpose']}_key_ids"
        named[setting] = f"{getattr(cloud.settings, setting)},{made.arn}"
    return named


def restore(cloud: Cloud) -> None:
    for table, items in (("LedgerTable", STORED.ledger), ("RegistryTable", STORED.registry)):
        for item in items:
            cloud._dynamodb.put_item(TableName=table, Item=item)
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for one in STORED.objects:
        cloud._s3.put_object(Bucket=one.bucket, Key=one.key, Body=one.data)
        if one.version:
            backend.get_object(one.bucket, one.key)._version_id = one.version


def get(functions: Functions, function: str, path: str, user: str = "alice", **query: str) -> Any:
    done = functions.http({"function": function, "method": "GET", "path": path, "user": user, "query": query or None})
    assert done["status"] == 200, done
    return done["answer"]


def result(functions: Functions, task_id: str) -> Row:
    answer: Row = get(functions, "result", f"/tasks/{task_id}/result")
    return answer


def keys(functions: Functions) -> bytes:
    """The published key set: new root keys and old ones."""
    return json.dumps(get(functions, "public", "/.well-known/jwks.json")).encode()


def check(receipt: str, jwks: bytes, **evidence: Any) -> set[str]:
    """Verifies a receipt; returns the names of the checks that passed. No check may fail."""
    report = verifier.examine(verifier.Evidence(receipt=receipt, keys=jwks, **evidence))
    assert report.exit_status == 0, report.checks
    return {check.name for check in report.checks if check.result == "passed"}


def audit(functions: Functions) -> Row:
    answer: Row = functions.invoke("audit", {"standings": True})
    return answer


def balances(functions: Functions) -> dict[str, dict[str, int]]:
    """The balances of each account and bond, in micro-credits."""
    found = {account: get(functions, "accounts", "/accounts/me", account) for account in ACCOUNTS}
    found |= {f"bond {owner}": get(functions, "accounts", "/accounts/me/bond", owner) for owner in BONDED}
    names = ("available", "held", "earned", "charged")
    return {
        account: {name: micro(answer[name]) for name in names if name in answer} for account, answer in found.items()
    }


def micro(credits_: str) -> int:
    whole, _, places = credits_.partition(".")
    return int(whole) * 10**6 + int(places.ljust(6, "0"))


# Answers.


def test_every_call_is_answered_as_before(functions: Functions, cloud: Cloud) -> None:
    """Results, repeated tasks, deposits, withdrawals and bonds, statements, balances, agents, payouts, proofs."""
    differ, shards = [], cloud.items("ACCT#")
    for row in STORED.calls:
        expected = without_prose(without_open({name: row[name] for name in ("status", "answer", "found")}))
        if (found := without_prose(without_news(functions.http(row)))) != expected:
            differ.append((row["method"], row["path"], expected, found))
    assert differ == []
    assert len(STORED.calls) > 90
    assert cloud.items("ACCT#") == shards, "a repeated call moves nothing"


def without_news(answered: Row) -> Row:
    """An answer without the members that answers did not have then."""
    answer = answered["answer"]
    if isinstance(answer, dict) and "input_sha256" in answer:
        assert answer.pop("input_sha256") == receipt.read_claims(answer["receipt"])["input_sha256"]
    for agent in answer.get("agents", [answer]) if isinstance(answer, dict) else []:
        if "tariff" in agent and "owner" in agent:
            assert (agent.pop("version") is None) == (agent["module_sha256"] is None)
            assert agent.pop("contract_sha256") is None
            assert agent.pop("standing") is None
    return answered


def without_open(answered: Row) -> Row:
    """A balance without what was open: the index lists it by an attribute that escrows did not have then."""
    answer = answered["answer"]
    if "held" not in answer:
        return answered
    account = answer["account_id"]
    then = open_then(f"bond {account}" if "minimum" in answer else account)
    assert [micro(answer[name]) for name in ("held", "earned") if name in answer] == then[: 1 + ("earned" in answer)]
    kept = {"releasable"} if "minimum" in answer and is_in_notice(account) else set()
    return {**answered, "answer": {**answer, **dict.fromkeys(answer.keys() & {"held", "earned"} | kept, "0")}}


def is_in_notice(owner: str) -> bool:
    """Whether a bond that was free is kept again by the notice of today, which is longer."""
    agents = [item for item in STORED.registry if item.get("owner") == {"S": owner} and "retired_ms" in item]
    return any(PLATFORM["now_ms"] < int(item["retired_ms"]["N"]) + BOND_NOTICE_MS for item in agents)


def open_then(account: str) -> list[int]:
    """What the stored escrows hold of an account, and what it had earned by those that are settled and not credited."""
    escrows = [item for item in STORED.ledger if "budget" in item]
    held = [item for item in escrows if item["state"] == {"S": "funded"} and item["account"] == {"S": account}]
    earned = [item for item in STORED.settled() if "swept_ms" not in item and item["owner"] == {"S": account}]
    return [sum(int(item["budget"]["N"]) for item in held), sum(int(item["paid"]["N"]) for item in earned)]


def without_prose(answered: Row) -> Row:
    """An answer without the sentence of its problem, which may be reworded; its type and code may not."""
    answer = answered["answer"]
    if isinstance(answer, dict) and "code" in answer:
        answer = {name: member for name, member in answer.items() if name != "detail"}
    return {**answered, "answer": answer}


def test_the_audit_says_what_it_said_before(functions: Functions) -> None:
    """The same standings, and in the report the same figures in the same order."""
    found, stored = audit(functions), PLATFORM["audit"]
    *standings, summary = found["standings"]
    *stored_standings, stored_summary = stored["standings"]
    assert (standings, figures(summary)) == (stored_standings, figures(stored_summary))
    report = [line for line in found["report"] if not line.startswith(("channels", "in channels"))]  # added since
    assert [figures(line) for line in report] == [figures(line) for line in stored["report"]]
    assert found["differences"] == 0
    assert PLATFORM["audit"]["differences"] == 0


def figures(line: str) -> list[str]:
    """The numbers in a line of the report, and the names of invariants."""
    return re.findall(r"[0-9]+", line)


# Receipts, the log and webhooks, which are in others' hands.


@pytest.mark.parametrize("row", form.read("reports"), ids=lambda row: row["task_id"])
def test_a_receipt_verifies_as_before(row: Row) -> None:
    (escrow,) = (item for item in STORED.settled() if item["pk"]["S"] == row["pk"])
    assert sorted(check(escrow["receipt"]["S"], JWKS, **STORED.evidence(escrow))) == row["passed"]


def test_every_receipt_has_its_report() -> None:
    assert [row["pk"] for row in form.read("reports")] == [item["pk"]["S"] for item in STORED.settled()]
    assert len(STORED.settled()) > 30


@pytest.mark.parametrize("task_id", ["primes", "binary", "failed", "too-dear", "judged", "unruly"])
def test_a_receipt_replays(task_id: str, tmp_path: Path) -> None:
    (escrow,) = (item for item in STORED.settled() if item["task_id"]["S"] == task_id)
    evidence = STORED.evidence(escrow)
    files = {"receipt": escrow["receipt"]["S"].encode(), "keys": JWKS}
    files |= {name: evidence[name] for name in ("module", "input")}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    options = [word for name in files if name != "receipt" for word in (f"--{name}", str(tmp_path / name))]
    assert verifier.main([str(tmp_path / "receipt"), *options, "--replay"]) == 0
    (tmp_path / "input").write_bytes(b"another")
    assert verifier.main([str(tmp_path / "receipt"), *options, "--replay"]) != 0


def verify_webhook(folder: Path, row: Row, body: str, jwks: bytes) -> int:
    files = {"webhook": body.encode(), "signature": row["headers"]["Quittance-Signature"].encode(), "keys": jwks}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    options = [word for name in files for word in (f"--{name}", str(folder / name))]
    return verifier.main([*options, "--url", row["url"]])


def test_a_delivered_webhook_still_verifies(tmp_path: Path) -> None:
    delivered = [row["sent"] for row in MESSAGES if row["kind"] == "webhook"]
    assert len(delivered) == 2
    for sent in delivered:
        assert verify_webhook(tmp_path, sent, sent["body"], JWKS) == 0
        assert verify_webhook(tmp_path, sent, sent["body"].replace("alice", "bob"), JWKS) != 0


def test_old_receipts_are_proven_to_be_in_the_grown_log(functions: Functions) -> None:
    logged_before = [item for item in STORED.settled() if "swept_ms" in item]
    assert functions.invoke("sweep", {})["complete"]
    jwks = keys(functions)
    for size in CHECKPOINTS:
        assert get(functions, "public", "/log/checkpoint", size=str(size)) == TOKENS[f"@checkpoint/{size}"]
    for item, size in zip(STORED.settled(), cycle(CHECKPOINTS)):
        path, user = task_path(item)
        document = get(functions, "result", f"{path}/proof", user, since=str(size))
        assert document["tree_size"] == len(STORED.settled()) + 1, "and the overdue one"
        proof, older = json.dumps(document).encode(), TOKENS[f"@checkpoint/{size}"]
        assert {"log", "history"} <= check(item["receipt"]["S"], jwks, proof=proof, older=older)
    assert len(logged_before) > CHECKPOINTS[-1], "some were credited and not published"


def task_path(escrow: form.Item) -> tuple[str, str]:
    """The path and the caller that read a task; a judge's task is named after the task that it judges."""
    task_id = escrow["task_id"]["S"]
    if not escrow["account"]["S"].startswith("bond "):
        return f"/tasks/{task_id}", escrow["account"]["S"]
    judged, _, side = task_id.partition(":")
    (task,) = (item for item in STORED.ledger if item["pk"]["S"] == f"ESC#{judged}")
    return f"/tasks/{task['task_id']['S']}:{side}", task["account"]["S"]


def operate(functions: Functions, target: str) -> None:
    row = {"function": "operations", "method": "POST", "path": f"/operations/{target}", "body": {"reason": "a test"}}
    assert functions.http({**row, "user": "op", "scope": "platform:operate"})["status"] == 200


# Tasks that were open; funding was paused, which does not stop them.


def test_lapsed_tasks_are_taken_over_and_settled(functions: Functions, cloud: Cloud) -> None:
    jwks = keys(functions)
    for task_id, judges in (("lapsed", 0), ("lapsed-judged", 2)):
        done = functions.http(OPEN[task_id])
        answer = done["answer"]
        assert (done["status"], answer["output"], answer["fault"]) == (200, "after a crash", "none")
        assert [judge["score"] for judge in answer["judges"]] == ["0.9"] * judges
        assert {"signature", "amounts", "claims"} <= check(answer["receipt"], jwks)
        assert functions.http(OPEN[task_id]) == done
        assert result(functions, task_id) == answer
        (item,) = (item for item in cloud.items("ESC#") if item["task_id"]["S"] == task_id)
        assert item["fence"] == {"N": "2"}
        assert item["party"]["S"].startswith(f"EARNED#{item['owner']['S']}#"), "in the owner's balance, as any other"
    assert audit(functions)["differences"] == 0


def test_a_held_task_is_left_alone_until_its_lease_lapses(functions: Functions, clock: Clock) -> None:
    assert functions.http(OPEN["held"])["answer"]["code"] == "task_in_progress"
    clock.wait(30)
    done = functions.http(OPEN["held"])["answer"]
    assert (done["output"], done["amount_paid"]) == ("after a crash", ACCEPTED)


def test_an_overdue_task_expires_and_is_refunded(functions: Functions) -> None:
    before = balances(functions)["alice"]
    done = result(functions, "overdue")
    assert (done["escrow_status"], done["amount_refunded"], done["error"]["code"]) == ("expired", "0.2", "expired")
    after = balances(functions)["alice"]
    assert after == before | {"available": before["available"] + 200_000}
    assert functions.http(OPEN["overdue"])["answer"] == done


def test_all_open_tasks_expire_in_the_end(functions: Functions, clock: Clock) -> None:
    before = {account: has["available"] for account, has in balances(functions).items()}
    held = {account: open_then(account)[0] for account in before if open_then(account)[0]}
    assert held.keys() == {"alice", "bond olga"}
    clock.wait(20 * 60)
    swept = functions.invoke("sweep", {})
    assert swept["failed"] == 0
    assert swept["expired"] == sum(item["state"]["S"] == "funded" for item in STORED.ledger if "state" in item)
    after = balances(functions)
    assert after["alice"]["available"] - before["alice"] == held["alice"]
    assert all(not has.get("held") for has in after.values())
    assert audit(functions)["differences"] == 0


# What waited for the sweep and the queues.


def test_the_sweep_credits_what_waited(functions: Functions) -> None:
    waiting = [item for item in STORED.settled() if "swept_ms" not in item]
    before = balances(functions)
    swept = functions.invoke("sweep", {})
    credited = len(waiting) + 1  # and the one that was overdue
    assert (swept["complete"], swept["failed"], swept["credited"], swept["charged"]) == (True, 0, credited, 1)
    assert swept["expired"] == 1
    after = balances(functions)
    for owner in BONDED:
        charged = after[f"bond {owner}"]["charged"] - before[f"bond {owner}"]["charged"]
        has = [sum(at[name]["available"] for name in (owner, f"bond {owner}")) for at in (before, after)]
        assert has[1] == has[0] + open_then(owner)[1] - charged
        assert after[owner]["earned"] == before[owner]["earned"] == 0, "not listed, in the old table"
    assert open_then("olga")[1]
    assert functions.invoke("sweep", {})["credited"] == 0
    found = audit(functions)
    assert found["differences"] == 0
    assert f"{len(STORED.settled()) + 1}" in " ".join(line for line in found["report"] if "log" in line)


def test_queued_messages_are_worked_on(functions: Functions) -> None:
    bodies = {json.loads(row["message"])["task_id"]: row["message"] for row in MESSAGES if row["kind"] == "queue"}
    assert "input_sha256" in json.loads(bodies["queued-large"]), "its input is in the bucket"
    assert functions.messages("work", bodies["queued"], bodies["queued-large"]) == []
    assert result(functions, "queued")["output"] == "by a message, é \U0001f600"
    assert result(functions, "queued-large")["output"] == "0123456789" * 14_000
    assert functions.messages("deadletter", bodies["queued-dead"]) == []
    refunded = result(functions, "queued-dead")
    assert (refunded["escrow_status"], refunded["fault"], refunded["amount_refunded"]) == (
        "refunded",
        "platform",
        "0.2",
    )
    assert audit(functions)["differences"] == 0


def test_stream_records_publish_the_same_events(functions: Functions, cloud: Cloud) -> None:
    published = EventQueue(functions, sqs=cloud.queue._client, events=cloud.bus._client)
    items = {item["pk"]["S"]: item for item in [*STORED.ledger, *STORED.registry]}
    events = [row for row in MESSAGES if row["kind"] == "event"]
    for row in events:
        expected = {name: row[name] for name in ("source", "detail-type", "detail")}
        assert published.of(items[row["pk"]], row["at_s"]) == [expected]
    types = {row["detail-type"] for row in events}
    assert types >= {"TaskSettled", "AgentPublished", "AgentRejected", "PublishingFailed", "PayoutDecided"}
    notices = form.taken(cloud.queue._client, cloud.settings.webhook_queue_url)
    assert sorted(notices) == sorted(row["message"] for row in MESSAGES if row["kind"] == "webhook")


class Receiver(BaseHTTPRequestHandler):
    """Records the requests that it receives."""

    posted: list[tuple[dict[str, str], str]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.posted.append((dict(self.headers), body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[tuple[str, type[Receiver]]]:
    """The URL of a running receiver, and its class, which holds the requests."""

    class Ours(Receiver):
        posted: list[tuple[dict[str, str], str]] = []  # noqa: RUF012 - of this test alone

    with HTTPServer(("127.0.0.1", 0), Ours) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook", Ours
        server.shutdown()
        thread.join()


def test_webhook_messages_are_delivered(
    functions: Functions, receiver: tuple[str, type[Receiver]], tmp_path: Path
) -> None:
    """Only the URL of the stored messages is changed: no test can call the host that they name."""
    url, got = receiver
    rows = [row for row in MESSAGES if row["kind"] == "webhook"]
    messages = [json.dumps(json.loads(row["message"]) | {"url": url}) for row in rows]
    assert functions.messages("webhook", *messages) == []
    for row, (headers, body) in zip(rows, got.posted, strict=True):
        assert body == row["sent"]["body"]
        assert headers["Quittance-Event-Id"] == row["sent"]["headers"]["Quittance-Event-Id"]
        assert verify_webhook(tmp_path, {"url": url, "headers": headers}, body, keys(functions)) == 0


# Agents.


def ask(functions: Functions, agent: str, given: str, *, user: str = "alice", **more: Any) -> Row:
    """Executes a new task."""
    body = {"task_id": "new", "agent_id": AGENTS[agent], "input": given, "budget": "0.2", **more}
    return functions.http(
        {"function": "execute", "method": "POST", "path": "/tasks/execute", "user": user, "body": body}
    )


@pytest.fixture
def resumed(functions: Functions) -> Functions:
    """The functions after an operator has ended the stored pause of funding."""
    operate(functions, "funding/resume")
    return functions


def is_same_engine(cloud: Cloud) -> bool:
    """Whether the stored artefacts are of the current engine and of this machine's processor."""
    todays = registered(cloud, cloud.publish(wasm("failing"), owner="olga"))
    return all(todays[name] == stored_agent("failing")[name] for name in ("engine", "config_sha256"))


def artefacts(objects: list[form.Object]) -> dict[str, str]:
    """The version of each artefact, by key."""
    return {one.key: one.version for one in objects if one.key.startswith("artefacts/")}


def test_published_agents_run_without_being_compiled(resumed: Functions, cloud: Cloud) -> None:
    before = artefacts(form.objects(cloud._s3))
    for agent, given, printed in (
        ("echo", "again", "again"),
        ("sieve", "100", '{"limit":100,"primes":25,"largest":97}\n'),
        ("strict", '{"total":3}', '{"total":3}'),
        ("judged", "again", "again"),
    ):
        assert ask(resumed, agent, given, task_id=f"new-{agent}")["answer"]["output"] == printed
    assert artefacts(form.objects(cloud._s3)) == before
    if is_same_engine(cloud):
        assert before == artefacts(STORED.objects), "nor when they were loaded"


def test_an_artefact_that_was_compiled_anew_serves_others(functions: Functions, cloud: Cloud) -> None:
    """Its module is deleted, so compiling it again would fail."""
    if not is_same_engine(cloud):
        pytest.skip("the artefacts that were stored are of another engine or processor")
    (record,) = (item for item in STORED.registry if item["pk"]["S"].startswith("ARTEFACT#"))
    agent = stored_agent("strict")
    assert record["pk"]["S"] == f"ARTEFACT#{agent['artefact_key']['S']}"
    cloud._dynamodb.put_item(TableName="RegistryTable", Item=agent | {"artefact_key": {"S": "of another engine"}})
    cloud._s3.delete_object(Bucket="binaries", Key=f"modules/{agent['module_sha256']['S']}.wasm")
    assert functions.invoke("publish", {"recompile": AGENTS["strict"]}) == []
    assert registered(cloud, AGENTS["strict"]) == agent


def test_a_stored_module_is_compiled_again_for_another_engine(resumed: Functions, cloud: Cloud) -> None:
    agent = stored_agent("sieve")
    cloud._dynamodb.put_item(TableName="RegistryTable", Item=agent | {"artefact_key": {"S": "of another engine"}})
    assert resumed.invoke("publish", {"recompile": AGENTS["sieve"]}) == []
    assert ask(resumed, "sieve", "100")["answer"]["output"] == '{"limit":100,"primes":25,"largest":97}\n'
    if is_same_engine(cloud):
        assert registered(cloud, AGENTS["sieve"]) == agent


def test_the_same_task_has_the_same_claims(resumed: Functions, cloud: Cloud) -> None:
    (before,) = (item for item in STORED.settled() if item["task_id"]["S"] == "primes")
    token = ask(resumed, "sieve", "1000")["answer"]["receipt"]
    then, now = claims(before["receipt"]["S"]), claims(token)
    assert then.keys() == now.keys()
    differ = {name for name in now if now[name] != then[name]}
    own = {"eid", "task", "seed", "epoch_ns", "funded_at", "settled_at", "expires_at", "meter"}
    if not is_same_engine(cloud):
        own |= {"engine", "config_sha256", "paid", "fee", "refunded", "compute"}
    assert differ <= own
    assert then["meter"].keys() == now["meter"].keys()
    if is_same_engine(cloud):
        assert {name for name in now["meter"] if now["meter"][name] != then["meter"][name]} <= {"cpu_ms", "wall_ms"}


def claims(receipt: str) -> Row:
    """What a receipt states."""
    payload = receipt.split(".")[1]
    stated: Row = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return stated


def registered(cloud: Cloud, agent_id: str) -> form.Item:
    item: form.Item = cloud._dynamodb.get_item(TableName="RegistryTable", Key={"pk": {"S": f"AGENT#{agent_id}"}})[
        "Item"
    ]
    return item


def stored_agent(name: str) -> form.Item:
    return next(item for item in STORED.registry if item["pk"]["S"] == f"AGENT#{AGENTS[name]}")


def test_agents_take_tasks_by_their_stored_pins(resumed: Functions) -> None:
    (pinned,) = (row for row in STORED.calls if row.get("body", {}).get("task_id") == "pinned")
    pins = {name: pinned["body"][name] for name in ("module_sha256", "tariff_sha256", "rules_sha256")}
    assert ask(resumed, "echo", "pinned", **pins)["answer"]["amount_paid"] == ACCEPTED
    refused = ask(resumed, "echo", "pinned", **{**pins, "module_sha256": "0" * 64}, task_id="other")
    assert refused["answer"]["code"] == "terms_changed"


@pytest.mark.parametrize(("agent", "number"), [("awaiting", 1), ("sieve", 2)])
def test_an_awaited_upload_is_published(resumed: Functions, cloud: Cloud, agent: str, number: int) -> None:
    version = cloud.post(AGENTS[agent], number, wasm("failing"))
    assert resumed.publish(AGENTS[agent], number, version) == ["active"]
    assert ask(resumed, agent, "")["answer"]["error"]["code"] == "exit_code"


def test_a_stored_version_is_activated_again(resumed: Functions, cloud: Cloud) -> None:
    agent_id, before = AGENTS["sieve"], stored_agent("sieve")

    def listed() -> list[tuple[int, str]]:
        page = get(resumed, "agents", f"/agents/{agent_id}/versions", "olga")
        return [(one["number"], one["state"]) for one in page["versions"]]

    assert listed() == [(2, "awaiting_upload"), (1, "active")]
    assert resumed.publish(agent_id, 2, cloud.post(agent_id, 2, wasm("failing"))) == ["active"]
    assert listed() == [(2, "active"), (1, "inactive")]
    call = {"function": "agents", "method": "POST", "user": "olga", "path": f"/agents/{agent_id}/versions/1/activate"}
    assert resumed.http(call)["status"] == 200
    again = registered(cloud, agent_id)
    names = {"tariff", "rules", "memory_bytes", "timeout_s", "fuel", "task_judges", "module_sha256", "artefact_key"}
    assert {name: again.get(name) for name in names} == {name: before.get(name) for name in names}
    assert ask(resumed, "sieve", "100")["answer"]["output"] == '{"limit":100,"primes":25,"largest":97}\n'
    assert listed() == [(2, "inactive"), (1, "active")]


def test_an_upload_whose_publisher_was_killed_is_published(resumed: Functions, cloud: Cloud) -> None:
    agent_id = AGENTS["publishing"]
    (posted,) = (one for one in STORED.objects if one.bucket == "uploads")
    second = cloud.post(agent_id, 1, wasm("failing"))
    assert resumed.publish(agent_id, 1, second) == ["publishing"], "the stored object was claimed first"
    assert resumed.publish(agent_id, 1, posted.version) == ["active"]
    assert ask(resumed, "publishing", "at last")["answer"]["output"] == "at last"


def test_retired_agents_stay_retired(resumed: Functions) -> None:
    for agent in ("retired", "gone"):
        refused = ask(resumed, agent, "")
        assert (refused["status"], refused["answer"]["state"]) == (409, "retired")


# Accounts and operators.


def test_a_waiting_payout_is_decided_once(functions: Functions) -> None:
    till = {"user": "till", "scope": "ledger:payout"}
    waiting = {"function": "accounts", "method": "GET", "path": "/payouts", **till}
    (payout,) = functions.http(waiting)["answer"]["payouts"]
    assert (payout["withdrawal_id"], payout["state"]) == ("w-waiting", "requested")
    decide = {"function": "accounts", "method": "POST", "path": f"/payouts/{payout['payout_id']}", **till}
    before = balances(functions)["alice"]["available"]
    assert functions.http({**decide, "body": {"state": "failed"}})["status"] == 200
    assert functions.http({**decide, "body": {"state": "paid"}})["status"] == 409
    assert balances(functions)["alice"]["available"] == before + 300_000
    assert functions.http(waiting)["answer"]["payouts"] == []
    assert audit(functions)["differences"] == 0


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("/accounts/alice/deposits", {"amount": "19"}),
        ("/accounts/alice/deposits", {}),  # by another depositor
        ("/accounts/me/withdrawals", {"amount": "0.31"}),
        ("/accounts/me/bond", {"amount": "1.6"}),
        ("/tasks/execute", {"input": "another"}),
    ],
)
def test_a_stored_id_conflicts_with_another_use(functions: Functions, path: str, changes: Row) -> None:
    row = next(row for row in STORED.calls if row["method"] == "POST" and row["path"] == path)
    user = "mallory" if not changes else row.get("user", "alice")
    done = functions.http({**row, "user": user, "body": {**row["body"], **changes}})
    assert done["status"] == 409


def test_a_stored_pause_holds_until_it_is_ended(functions: Functions) -> None:
    assert ask(functions, "echo", "paused?")["answer"]["code"] == "funding_paused"
    operate(functions, "funding/resume")
    assert ask(functions, "echo", "paused?")["answer"]["output"] == "paused?"


def test_a_stored_freeze_holds_until_it_is_ended(resumed: Functions) -> None:
    assert ask(resumed, "echo", "frozen?", user="eve")["answer"]["code"] == "account_frozen"
    operate(resumed, "accounts/eve/unfreeze")
    assert ask(resumed, "echo", "frozen?", user="eve")["answer"]["output"] == "frozen?"


def test_a_stored_slot_is_held_until_its_lease_lapses(resumed: Functions, cloud: Cloud, clock: Clock) -> None:
    cloud.settings = cloud.settings.model_copy(update={"account_concurrency": 1})
    assert ask(resumed, "echo", "too many?")["answer"]["code"] == "too_many_running"
    clock.wait(15)
    assert ask(resumed, "echo", "too many?")["answer"]["output"] == "too many?"


def test_a_bond_that_was_short_stops_tasks_until_it_is_filled(resumed: Functions) -> None:
    assert ask(resumed, "short", "short?")["answer"]["state"] == "out_of_bond"
    fill = {"function": "accounts", "method": "POST", "path": "/accounts/me/bond", "user": "stan"}
    assert resumed.http({**fill, "body": {"bond_id": "b-2", "amount": "0.1"}})["status"] == 201
    assert ask(resumed, "short", "short?")["answer"]["output"] == "short?"


def test_a_released_bond_has_the_rest(functions: Functions, clock: Clock) -> None:
    clock.wait(BOND_NOTICE_MS // 1_000)
    assert functions.invoke("sweep", {})["failed"] == 0
    rolf = balances(functions)["bond rolf"]
    assert 0 < rolf["available"] < 250_000
    rest: Callable[[int], str] = "-{:.6f}".format
    release = {"function": "accounts", "method": "POST", "path": "/accounts/me/bond", "user": "rolf"}
    body = {"bond_id": "rest", "amount": rest(rolf["available"] / 10**6)}
    assert functions.http({**release, "body": body})["status"] == 201
    assert balances(functions)["bond rolf"]["available"] == 0
    assert audit(functions)["differences"] == 0


def test_backfill_lists_all_stored_tasks_runs_and_agents(functions: Functions) -> None:
    answer = functions.invoke("listings", {"backfill": {}})
    assert (answer["backfill"], answer["failed"]) == (None, 0)
    escrows = [item for item in STORED.ledger if item["pk"]["S"].startswith("ESC#")]
    own = [item for item in escrows if ":judge-" not in item["task_id"]["S"] and item["account"]["S"] == "alice"]
    listed = get(functions, "result", "/tasks", limit="100")["tasks"]
    assert sorted(task["task_id"] for task in listed) == sorted(item["task_id"]["S"] for item in own)
    states = {"funded": "pending", "released": "succeeded", "refunded": "failed", "expired": "failed"}
    assert {task["task_id"]: task["state"] for task in listed} == {
        item["task_id"]["S"]: states[item["state"]["S"]] for item in own
    }
    ran = [item for item in escrows if "outcome" in item and item["outcome"]["S"] != "not_needed"]
    for agent in (item for item in STORED.registry if item["pk"]["S"].startswith("AGENT#")):
        agent_id, owner = agent["pk"]["S"].removeprefix("AGENT#"), agent["owner"]["S"]
        runs = get(functions, "result", f"/agents/{agent_id}/runs", owner, limit="100")["runs"]
        expected = sorted(item["pk"]["S"][4:] for item in ran if item["agent_id"]["S"] == agent_id)
        assert sorted(run["run_id"] for run in runs) == expected
        for run in runs:
            assert get(functions, "result", f"/agents/{agent_id}/runs/{run['run_id']}", owner) == run | {"log": None}
    active = {agent["agent_id"] for agent in get(functions, "agents", "/agents", limit="100")["agents"]}
    found = get(functions, "agents", "/agents", sort="price", limit="100")["agents"]
    assert {agent["agent_id"] for agent in found} == active
