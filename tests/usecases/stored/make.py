"""Makes the stored platform: the data that the code of commit 03fa34b leaves in tables, buckets and queues.

    .local/venvs/dev/bin/pytest -n 0 tests/usecases/stored/make.py

pytest collects this file only if it is named. The files beside it were made with layers/ and functions/ of commit
03fa34b, the last one before the modules moved into folders. They stand for the tables and receipts that users have.
If a test of tests/usecases/test_stored_before.py fails, mend the code; never make these files again to let it pass.
To store the data of a later commit too, copy the folder and let the copy import its own form.py.

The script calls the functions as API Gateway, S3 and the queues do, on moto, with the real sandbox. The clock stands
still between the steps, and ids are drawn from a seeded generator. Keys, fuel and run times differ from run to run.
"""

import base64
import json
import random
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from wasmtime import wat2wasm

from quittance.api import outbound
from quittance.proof.verify import Given, examine
from tests.store.test_ledger import CONFLICT
from tests.support import CONSENT, FLAT, Cloud, wasm
from tests.usecases.stored import form
from tests.usecases.stored.form import Clock, EventQueue, Functions, Row
from tests.usecases.test_judges import judged_by, saying

START_MS = 1_796_040_000_000  # 2026-11-30 12:00:00 UTC
HOOK = "https://receiver.example/hook?key=secret"
SETTINGS = {
    "ledger_shards": 3,
    "fee_bps": 250,
    "platform_account": "quittance:platform",
    "receipt_issuer": "urn:quittance:test",
    "account_concurrency": 4,
    "compute_run_micro": 100,
    "compute_per_billion_fuel_micro": 20_000,
    "bond_minimum_micro": 500_000,
    "publish_per_mib_micro": 100_000,
}
METERED = {
    "type": "metered",
    "base": "0.001",
    "per_million_fuel": "0.0001",
    "per_mib_memory": "0.00001",
    "per_kib_output": "0.0001",
    "minimum": "0.0015",
}
TOTAL = {"media_type": "application/json", "json_schema": {"type": "object", "required": ["total"]}}
BINARY = bytes(range(256))
LARGE = "".join(f"{number} {number * number}\n" for number in range(150))  # more than an item holds inline
ECHO = bytes(
    wat2wasm("""(module
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start")
            (loop $more
                (i32.store (i32.const 0) (i32.const 1024))
                (i32.store (i32.const 4) (i32.const 32768))
                (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
                (i32.store (i32.const 4) (i32.load (i32.const 16)))
                (if (i32.load (i32.const 16)) (then
                    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))
                    (br $more))))))""")
)


class KilledError(BaseException):
    """The end of a function's process, which nothing catches."""


class DeadSandbox:
    """A sandbox whose function is killed while it runs."""

    def run(self, job: Any) -> Any:
        raise KilledError


class Maker:
    """Drives a platform, and notes what it does."""

    def __init__(self, cloud: Cloud, functions: Functions, clock: Clock, patch: pytest.MonkeyPatch) -> None:
        self.cloud, self.functions, self.clock, self.patch = cloud, functions, clock, patch
        self.repeatable: list[Row] = []
        self.delivered: list[Row] = []
        self.events: list[Row] = []
        self.open: list[Row] = []
        self.agents: dict[str, str] = {}

    def post(self, function: str, path: str, body: Row, *, repeats: bool = True, **more: Any) -> Row:
        row = {"function": function, "method": "POST", "path": path, "body": body, **more}
        done = self.functions.http(row)
        assert done["status"] < 300, (row, done)
        if repeats:
            self.repeatable.append(row)
        return done

    def get(self, function: str, path: str, **more: Any) -> None:
        self.repeatable.append({"function": function, "method": "GET", "path": path, **more})

    # Accounts.

    def deposit(self, account: str, amount: str, deposit_id: str = "start") -> None:
        body = {"deposit_id": deposit_id, "amount": amount}
        self.post("accounts", f"/accounts/{account}/deposits", body, user="bank", scope="ledger:deposit")

    def bond(self, owner: str, amount: str, bond_id: str = "b-1") -> None:
        self.post("accounts", "/accounts/me/bond", {"bond_id": bond_id, "amount": amount}, user=owner)

    @contextmanager
    def contended(self) -> Iterator[None]:
        """The first transaction meets another one."""
        send, met = self.cloud._dynamodb.transact_write_items, []

        def once(**arguments: Any) -> Any:
            if not met:
                met.append(True)
                raise CONFLICT
            return send(**arguments)

        with self.patch.context() as patch:
            patch.setattr(self.cloud._dynamodb, "transact_write_items", once)
            yield

    # Agents.

    def register(self, name: str, *, owner: str = "olga", tariff: Row = FLAT, **more: Any) -> str:
        body = {"name": name, "description": f"{name}, é", "tariff": tariff, **more}
        done = self.post("agents", "/agents", body, user=owner, repeats=False)
        agent_id: str = done["answer"]["agent_id"]
        self.agents[name] = agent_id
        return agent_id

    def upload(self, name: str, module: bytes, number: int = 1) -> list[str]:
        agent_id = self.agents[name]
        return self.functions.publish(agent_id, number, self.cloud.post(agent_id, number, module))

    def publish(self, name: str, module: bytes, **more: Any) -> str:
        agent_id = self.register(name, **more)
        assert self.upload(name, module) == ["active"]
        return agent_id

    # Tasks.

    def execute(self, task_id: str, agent: str, given: str | bytes = "to be or not to be", **more: Any) -> Row:
        user = more.pop("user", "alice")
        body = {"task_id": task_id, "agent_id": self.agents[agent], "budget": "0.2", **more}
        body |= {"input": given} if isinstance(given, str) else {"input_base64": base64.b64encode(given).decode()}
        done = self.post("execute", "/tasks/execute", body, user=user)
        assert done["status"] == 200
        answer: Row = done["answer"]
        return answer

    def killed(self, task_id: str, agent: str, given: str = "after a crash", **more: Any) -> None:
        """A task whose function is killed while it runs."""
        body = {"task_id": task_id, "agent_id": self.agents[agent], "input": given, "budget": "0.2", **more}
        row = {"function": "execute", "method": "POST", "path": "/tasks/execute", "body": body}
        with self.patch.context() as patch:
            patch.setattr(self.cloud, "sandbox", DeadSandbox())
            patch.setattr(self.cloud.slots, "give_back", lambda *_: None)
            with pytest.raises(KilledError):
                self.functions.http(row)
        self.open.append({"kind": "open", "task_id": task_id, "row": row})

    def read_expired(self, task_id: str) -> None:
        """Reads the result of a task whose time is over, which ends it."""
        self.get("result", f"/tasks/{task_id}/result")
        assert self.functions.http(self.repeatable[-1])["answer"]["escrow_status"] == "expired"

    def submit(self, task_id: str, agent: str, given: str) -> None:
        body = {"task_id": task_id, "agent_id": self.agents[agent], "input": given, "budget": "0.2"}
        headers = {"Prefer": "respond-async"}
        done = self.post("execute", "/tasks/execute", body, repeats=False, headers=headers)
        assert done["status"] == 202
        self.get("result", f"/tasks/{task_id}/result")

    def operate(self, target: str) -> None:
        path, operator = f"/operations/{target}", {"user": "op", "scope": "platform:operate"}
        self.post("operations", path, {"reason": "a test"}, repeats=False, **operator)

    def pages(self, function: str, path: str, query: dict[str, str], **more: Any) -> None:
        """Reads a page, and the one that its cursor names."""
        self.get(function, path, query=query, **more)
        cursor = self.functions.http(self.repeatable[-1])["answer"]["next"]
        self.get(function, path, query={**query, "after": cursor}, **more)

    # Events, webhooks and the sweep.

    def publish_events(self) -> None:
        """Publishes the event of every item that has one, and keeps the events."""
        sqs, at_s = self.cloud.queue._client, self.clock.ms // 1_000
        events = EventQueue(self.functions, sqs=sqs, events=self.cloud.bus._client)
        for table in ("LedgerTable", "RegistryTable"):
            for item in filter(form.has_event, form.scan(self.cloud._dynamodb, table)):
                (event,) = events.of(item, at_s)
                self.events.append({"kind": "event", "table": table, "pk": item["pk"]["S"], "at_s": at_s, **event})

    def deliver(self) -> None:
        """Delivers what waits for webhooks, and keeps what was sent."""
        for body in form.taken(self.cloud.queue._client, self.cloud.settings.webhook_queue_url):
            sent: list[Row] = []

            def post(url: str, data: bytes, headers: dict[str, str], sent: list[Row] = sent, **_: Any) -> int:
                sent.append({"url": url, "body": data.decode(), "headers": headers})
                return 200

            with self.patch.context() as patch:
                patch.setattr(outbound, "post", post)
                assert self.functions.messages("webhook", body) == []
            self.delivered += [{"kind": "webhook", "message": body, "sent": sent[0]}]

    def sweep(self) -> Row:
        swept: Row = self.functions.invoke("sweep", {})
        return swept


@pytest.fixture
def clock() -> Clock:
    return Clock(START_MS)


@pytest.fixture
def maker(cloud: Cloud, context: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Maker:
    form.serve(cloud, monkeypatch)
    cloud.settings = cloud.settings.model_copy(update=SETTINGS)
    monkeypatch.setattr(cloud, "now_ms", clock)
    drawn = random.Random(13)
    random.seed(13)
    monkeypatch.setattr(secrets, "token_bytes", drawn.randbytes)
    monkeypatch.setattr(secrets, "token_hex", lambda count: drawn.randbytes(count).hex())
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=drawn.getrandbits(128), version=4))
    return Maker(cloud, Functions(context), clock, monkeypatch)


def test_make(maker: Maker) -> None:
    open_accounts(maker)
    publish_agents(maker)
    maker.clock.wait(60)
    run_first_tasks(maker)
    maker.clock.wait(60)
    swept = maker.sweep()
    assert swept["complete"]
    assert swept["published"]
    assert not swept["failed"]
    run_second_tasks(maker)
    pay_out_and_operate(maker)
    leave_work_for_the_sweep(maker)
    leave_tasks_open(maker)
    maker.publish_events()
    maker.deliver()
    dump(maker)


def open_accounts(maker: Maker) -> None:
    for account, amount in {"alice": "20", "bob": "1", "eve": "1", "olga": "3", "judith": "3", "rolf": "3"}.items():
        maker.deposit(account, amount)
    maker.deposit("stan", "1")
    maker.deposit("alice", "0.5", "more")
    maker.bond("olga", "1.5")
    maker.bond("olga", "0.5", "b-2")
    maker.bond("judith", "1")
    maker.bond("rolf", "1")
    maker.bond("stan", "0.5")


def publish_agents(maker: Maker) -> None:
    maker.publish("echo", saying("the first version"), task_judges={"rejected_share": "0.1"})
    maker.publish("sieve", wasm("sieve"), tariff=METERED, limits={"memory_mib": 64, "timeout": 5, "fuel": 10**9})
    maker.publish("failing", wasm("failing"), task_judges=CONSENT)
    maker.publish("strict", ECHO, acceptance=TOTAL)
    judge = {"owner": "judith", "limits": {"memory_mib": 16, "timeout": 2, "fuel": 10**9}}
    kind = maker.publish("kind", saying("0.9"), **judge)
    harsh = maker.publish("harsh", saying("0.2"), **judge)
    quick = {"limits": {"timeout": 5}}
    maker.publish("judged", ECHO, acceptance=judged_by(kind), task_judges={"rejected_share": "0.1"}, **quick)
    maker.publish("judged harshly", ECHO, acceptance=judged_by(harsh), **quick)
    maker.publish("gone", saying("gone"), owner="rolf")
    maker.publish("retired", saying("retired"), owner="rolf")
    maker.publish("short", ECHO, owner="stan")  # what that costs leaves less than the least bond
    maker.register("awaiting")
    maker.register("rejected")
    assert maker.upload("rejected", b"\0asm\1\0\0\0") == ["rejected"]
    failed = maker.register("failed")
    payload = {"eventSource": "aws:s3", "s3": {"object": {"key": f"uploads/{failed}/1", "versionId": "lost"}}}
    assert maker.functions.messages("publish", json.dumps({"requestPayload": {"Records": [payload]}})) == []


def run_first_tasks(maker: Maker) -> None:
    """Every end of a task; all of them are credited and in the published log."""
    kind, harsh = maker.agents["kind"], maker.agents["harsh"]
    maker.execute("of-first-version", "echo")
    maker.clock.wait(5)
    body: Row = {"tariff": {"type": "flat", "price": "0.02"}, "limits": {"memory_mib": 32, "timeout": 5}}
    path = f"/agents/{maker.agents['echo']}/versions"
    maker.post("agents", path, body, user="olga", repeats=False)
    assert maker.upload("echo", ECHO, 2) == ["active"]
    maker.cloud.registry._cache.drop(maker.agents["echo"])
    estimate = maker.functions.http(
        {"function": "agents", "method": "GET", "path": f"/agents/{maker.agents['echo']}/estimate"}
    )["answer"]
    pins = {name: estimate[name] for name in ("module_sha256", "tariff_sha256", "rules_sha256")}
    with maker.contended():
        done = maker.execute("pinned", "echo", **pins, max_judging="0", min_reputation=1)
    assert done["output"] == "to be or not to be"
    maker.execute("binary", "echo", BINARY, webhook=HOOK)
    assert maker.execute("large", "echo", LARGE)["output"] == LARGE
    assert maker.execute("failed", "failing", webhook=HOOK)["fault"] == "agent"
    assert maker.execute("primes", "sieve", "1000")["success"]
    assert maker.execute("too-dear", "sieve", "100000000", budget="0.002")["fault"] == "payer"
    artefact = f"artefacts/{form.sha256(saying('gone'))}"
    (gone,) = (one for one in form.objects(maker.cloud._s3) if one.key.startswith(artefact))
    maker.cloud._s3.delete_object(Bucket=gone.bucket, Key=gone.key)
    assert maker.execute("of-platform", "gone")["fault"] == "platform"
    assert maker.execute("of-retired", "retired", user="bob")["success"]
    assert maker.execute("of-frozen", "echo", user="eve")["success"]
    assert maker.execute("ruled", "strict", '{"total":1}')["success"]
    assert maker.execute("unruly", "strict", '{"sum":1}')["fault"] == "agent"
    assert maker.execute("asked", "echo", '{"total":2}', acceptance=TOTAL)["success"]
    assert maker.execute("refused", "echo", acceptance=TOTAL)["fault"] == "payer"
    assert maker.execute("judged", "judged")["judges"][0]["score"] == "0.9"
    assert maker.execute("unasked", "judged", acceptance=TOTAL)["fault"] == "payer"
    assert maker.execute("misjudged", "judged harshly")["fault"] == "agent"
    assert maker.execute("task-judged", "echo", acceptance=judged_by(kind))["success"]
    assert maker.execute("task-misjudged", "echo", acceptance=judged_by(harsh))["fault"] == "payer"
    row = {"function": "agents", "method": "DELETE", "path": f"/agents/{maker.agents['retired']}", "user": "rolf"}
    assert maker.functions.http(row)["status"] == 200
    maker.killed("expired", "echo")


def run_second_tasks(maker: Maker) -> None:
    """What comes into the second checkpoint of the log."""
    maker.clock.wait(60)
    maker.read_expired("expired")
    maker.execute("of-second-checkpoint", "echo")
    assert maker.sweep()["published"]


def pay_out_and_operate(maker: Maker) -> None:
    for name in ("paid", "failed", "waiting"):
        body = {"withdrawal_id": f"w-{name}", "amount": "0.3"}
        maker.post("accounts", "/accounts/me/withdrawals", body)
    waiting = maker.functions.http(
        {"function": "accounts", "method": "GET", "path": "/payouts", "scope": "ledger:payout"}
    )
    maker.clock.wait(5)
    for payout in waiting["answer"]["payouts"]:
        state = payout["withdrawal_id"].removeprefix("w-")
        if state != "waiting":
            path = f"/payouts/{payout['payout_id']}"
            maker.post("accounts", path, {"state": state}, user="till", scope="ledger:payout")
    for target in (
        "accounts/eve/freeze",
        "accounts/bob/freeze",
        "accounts/bob/unfreeze",
        "funding/pause",
        "funding/resume",
        f"agents/{maker.agents['gone']}/retire",
    ):
        maker.clock.wait(1)
        maker.operate(target)
    maker.clock.wait(5 * 60)
    maker.bond("rolf", "-0.75", "b-2")
    # An artefact of an older engine is compiled again.
    agent = {"pk": {"S": f"AGENT#{maker.agents['judged']}"}}
    maker.cloud._dynamodb.update_item(
        TableName="RegistryTable",
        Key=agent,
        UpdateExpression="SET artefact_key = :old",
        ExpressionAttributeValues={":old": {"S": "of an older engine"}},
    )
    assert maker.functions.invoke("publish", {"recompile": maker.agents["judged"]}) == []
    # One upload waits for another version; one is being published, and its publisher is killed.
    maker.post("agents", f"/agents/{maker.agents['sieve']}/versions", {}, user="olga", repeats=False)
    agent_id = maker.register("publishing")
    version = maker.cloud.post(agent_id, 1, ECHO)
    with maker.patch.context() as patch:
        patch.setattr(maker.cloud, "uploads", DeadUploads())
        with pytest.raises(KilledError):
            maker.functions.publish(agent_id, 1, version)


class DeadUploads:
    """The bucket of a function that is killed while it reads."""

    def read(self, posted: Any) -> bytes:
        raise KilledError


def leave_work_for_the_sweep(maker: Maker) -> None:
    """A batch that is logged and not published, one that is credited and not logged, and what is not credited."""
    maker.killed("swept-expired", "echo")
    maker.clock.wait(20)
    maker.killed("unswept-expired", "echo")
    maker.clock.wait(80)
    ledger, nothing = maker.cloud.ledger, lambda *_: None
    maker.execute("unpublished", "echo")
    with maker.patch.context() as patch:
        patch.setattr(maker.cloud.tiles, "keep", nothing)
        patch.setattr(maker.cloud.tiles, "keep_checkpoint", nothing)
        patch.setattr(ledger.log, "set_published", nothing)
        maker.sweep()
    maker.execute("unlogged", "echo")
    with maker.patch.context() as patch:
        patch.setattr(ledger.log, "waiting", lambda: iter(()))
        patch.setattr(maker.cloud.tiles, "keep", nothing)
        patch.setattr(maker.cloud.tiles, "keep_checkpoint", nothing)
        patch.setattr(ledger.log, "set_published", nothing)
        maker.sweep()
    maker.clock.wait(20)
    maker.read_expired("unswept-expired")
    maker.execute("unswept-paid", "echo")
    maker.execute("unswept-failed", "failing")
    maker.execute("unswept-judged", "judged")
    maker.publish("unpaid", ECHO)


def leave_tasks_open(maker: Maker) -> None:
    maker.killed("overdue", "echo")
    maker.clock.wait(70)
    maker.killed("lapsed", "echo")
    maker.clock.wait(10)
    maker.killed("lapsed-judged", "judged", acceptance=judged_by(maker.agents["kind"]))
    maker.clock.wait(20)
    maker.submit("queued", "echo", "by a message, é \U0001f600")
    maker.submit("queued-large", "echo", "0123456789" * 14_000)
    maker.submit("queued-dead", "echo", "by a dead letter")
    maker.clock.wait(28)
    # The one slot that there is then is held, too.
    maker.cloud.settings = maker.cloud.settings.model_copy(update={"account_concurrency": 1})
    maker.killed("held", "echo")
    maker.cloud.settings = maker.cloud.settings.model_copy(update=SETTINGS)
    maker.repeatable.append(maker.open[-1]["row"])
    maker.clock.wait(2)
    for task_id in ("lapsed", "lapsed-judged", "held"):  # not `overdue`: who reads its result ends it
        maker.get("result", f"/tasks/{task_id}/result")
    maker.operate("funding/pause")


def dump(maker: Maker) -> None:
    cloud = maker.cloud
    for user in ("alice", "bob", "eve", "olga", "judith", "rolf", "stan", "bank", "quittance:platform"):
        maker.get("accounts", "/accounts/me", user=user)
        maker.get("accounts", "/accounts/me/statement", user=user, query={"limit": "100"})
    for owner in ("olga", "judith", "rolf", "stan"):
        maker.get("accounts", "/accounts/me/bond", user=owner)
        maker.get("accounts", "/accounts/me/bond/statement", user=owner, query={"limit": "100"})
    maker.pages("agents", "/agents", {"owner": "olga", "limit": "3"}, user="olga")
    maker.pages("agents", "/agents", {"limit": "3"})
    maker.pages("accounts", "/accounts/me/statement", {"limit": "7"})
    maker.pages("operations", "/operations", {"limit": "2"}, scope="platform:operate")
    for agent_id in maker.agents.values():
        maker.get("agents", f"/agents/{agent_id}")
    for name in ("echo", "sieve", "judged"):
        maker.get("agents", f"/agents/{maker.agents[name]}/estimate")
    maker.get("accounts", "/payouts", scope="ledger:payout")
    maker.get("public", "/log/checkpoint")
    maker.get("public", "/log/tile/0/0/1")
    maker.get("result", "/tasks/binary/proof", query={"since": "3"})
    maker.get("result", "/tasks/expired/proof")
    maker.get("result", "/tasks/unpublished/proof")
    for task_id in ("judged:judge-agent", "misjudged:judge-agent", "task-misjudged:judge-task"):
        maker.get("result", f"/tasks/{task_id}/result")
    maker.get("result", "/tasks/ruled/result", user="olga", query={"user": "alice"})
    answers = [{**row, **maker.functions.http(row)} for row in maker.repeatable]
    audit = maker.functions.invoke("audit", {"standings": True})
    assert audit["differences"] == 0, audit
    ledger = form.scan(cloud._dynamodb, "LedgerTable")
    registry = form.scan(cloud._dynamodb, "RegistryTable")
    waits = f"uploads/{maker.agents['publishing']}/1"
    objects = [one for one in form.objects(cloud._s3) if one.bucket != "uploads" or one.key == waits]
    names = form.tokens(ledger, objects)
    jwks = cloud.keys.jwks()
    queued = [
        {"kind": "queue", "message": body} for body in form.taken(cloud.queue._client, cloud.settings.task_queue_url)
    ]
    assert len(queued) == 3
    assert [row for row in answers if row["status"] >= 500] == []
    platform = {"now_ms": maker.clock.ms, "settings": SETTINGS, "jwks": jwks, "audit": audit, "agents": maker.agents}
    stored = form.Stored(ledger, registry, objects, answers)
    reports = [report(stored, item, json.dumps(jwks).encode()) for item in stored.settled()]
    form.write("platform", [platform])
    form.write("ledger", form.shortened([form.encode(item) for item in ledger], names))
    form.write("registry", [form.encode(item) for item in registry])
    form.write_objects([one for one in objects if not one.key.startswith("checkpoint/")])
    form.write("tokens", [names], packed=True)
    form.write("calls", form.shortened(answers, names), packed=True)
    form.write("reports", reports, packed=True)
    form.write("messages", form.shortened([*queued, *maker.open, *maker.delivered, *maker.events], names), packed=True)


def report(stored: form.Stored, escrow: form.Item, keys: bytes) -> Row:
    """What the verifier says of a receipt: the checks that passed; none may fail."""
    found = examine(Given(receipt=escrow["receipt"]["S"], keys=keys, **stored.evidence(escrow)))
    assert found.exit_status == 0, (escrow["task_id"], found.checks)
    passed = sorted(check.name for check in found.checks if check.verdict == "passed")
    return {"pk": escrow["pk"]["S"], "task_id": escrow["task_id"]["S"], "passed": passed}
