"""Receipts verified as they arrive: what is proven, and that each difference from the answer is found."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from quittance.api.models import TaskResult
from quittance.client import ConfigurationError, NotProvenError, UnexpectedAnswerError, Verifier
from quittance.client._verify import Expected, proven
from quittance.ledger.escrow import Escrow, StoredBytes, decide, escrow_id
from quittance.run import Limits, Meter, Outcome, Run
from tests.client.servers import Reply, Server
from tests.client.test_calls import PENDING, RESULT
from tests.proof.receipts import claims_of, sign
from tests.proof.roots import NOW_S, Root, parse
from tests.proof.ticketing import OTHER_KEY, jws, paid_by_ticket, public

PLATFORM = Root()
INPUT, OUTPUT, LOG = b"hello", b"HELLO", b"a warning\n"


def stored(data: bytes) -> StoredBytes:
    return StoredBytes(hashlib.sha256(data).hexdigest(), len(data), data)


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    """A settled task as the API answers it, with its receipt."""
    meter = Meter(
        fuel=10, cpu_ms=1, wall_ms=3, memory_bytes=2**16, input_bytes=5, output_bytes=5, stderr_bytes=len(LOG)
    )
    escrow = Escrow(
        escrow_id=escrow_id("alice", "t"), payer="alice", task_id="t", request_sha256="", agent_id="agt_a",
        owner="owner", module_sha256="bb" * 32, input_sha256=hashlib.sha256(INPUT).hexdigest(),
        tariff='{"type":"flat","price":"0.4"}',
        budget_micro=10**6, fee_bps=250, timeout_ms=1_000, runner="r", fence=1, funded_ms=NOW_S * 1_000,
        lease_ms=NOW_S * 1_000, expires_ms=NOW_S * 1_000 + 90_000,
    )  # fmt: skip
    run = Run(Outcome.SUCCEEDED, "", meter, limits=Limits(10**6, 2**24, 1_000))
    done = replace(decide(escrow, run, now_ms=NOW_S * 1_000 + 5), output=stored(OUTPUT), stderr=stored(LOG))
    claims = claims_of(escrow, done, issuer="i", run=run, engine="e", config_sha256="ff" * 32)
    usage = RESULT["resource_usage"] | {"fuel_used": 10, "input_bytes": 5, "output_bytes": 5}
    return RESULT | {
        "output": OUTPUT.decode(), "log": LOG.decode(), "resource_usage": usage, "escrow_id": escrow.escrow_id,
        "amount_paid": "0.39", "fee": "0.01", "amount_refunded": "0.6",
        "reputation_delta": claims["reputation_tenths"] / 10, "timestamp": _time(NOW_S),
        "receipt": sign(claims, PLATFORM.certify()),
    }  # fmt: skip


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds + 0.005, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.fixture
def platform(server: Server, answer: dict[str, Any]) -> Server:
    server.api("GET /.well-known/jwks.json", Reply(body=PLATFORM.jwks()))
    server.api("POST /tasks/execute", Reply(body=answer))
    server.api("GET /tasks/t/result", Reply(body=answer))
    return server


def test_receipts_are_verified_with_the_keys_of_the_api(platform: Server, make: Any) -> None:
    client = make(verify=True)
    for _ in range(2):
        assert client.execute("agt_a", "hello", budget="1", task_id="t").amount_paid_micro == 390_000
    client.wait("t")
    client.result("t")
    assert len(platform.calls("/jwks.json")) == 1
    assert "authorization" not in platform.calls("/jwks.json")[0].headers


def test_keys_are_read_again_after_five_minutes(platform: Server, make: Any, clock: Any) -> None:
    client = make(verify=True)
    client.wait("t")
    clock.at += 301
    client.wait("t")
    assert len(platform.calls("/jwks.json")) == 2


@pytest.mark.parametrize("form", ["mapping", "file"])
def test_pinned_keys_are_never_fetched(platform: Server, make: Any, tmp_path: Path, form: str) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(PLATFORM.jwks()))
    client = make(verify=Verifier(keys=PLATFORM.jwks() if form == "mapping" else file))
    assert client.wait("t").success
    assert platform.calls("/jwks.json") == []


def test_another_platforms_key_is_refused(platform: Server, make: Any) -> None:
    client = make(verify=Verifier(keys=Root().jwks()))
    for call in (lambda: client.execute("agt_a", "hello", budget="1", task_id="t"), lambda: client.wait("t")):
        with pytest.raises(NotProvenError, match="does not prove its answer") as caught:
            call()
        assert caught.value.result.output == "HELLO", "the answer is not lost"
        assert caught.value.report.exit_status == 4
        assert caught.value.call_id == "t"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_id", "other"), ("agent_id", "agt_b"), ("escrow_id", "f"), ("escrow_status", "refunded"),
        ("success", False), ("error", {"code": "exit_code", "message": ""}), ("amount_paid", "0.4"),
        ("amount_refunded", "0.7"), ("fee", "0"),
        ("compute", "0.1"), ("judging", "0.1"), ("fault", "agent"), ("reputation_delta", -3),
        ("input_sha256", "cc" * 32),
        ("timestamp", "2020-01-01T00:00:00.000Z"), ("output", "HELL0"), ("log", "none"), ("receipt", "e30.e30.e30"),
    ],
)  # fmt: skip
def test_every_difference_between_answer_and_receipt_is_found(
    platform: Server, make: Any, answer: dict[str, Any], name: str, value: object
) -> None:
    platform.api("POST /tasks/execute", Reply(body=answer | {name: value}))
    with pytest.raises((NotProvenError, UnexpectedAnswerError)):
        make(verify=True).execute("agt_a", "hello", budget="1", task_id="t")


def test_the_result_of_another_task_is_refused(platform: Server, make: Any) -> None:
    """Answer and receipt agree, but they are of a task that was not asked for."""
    platform.api("GET /tasks/t2/result", Reply(body=platform_answer(platform)))
    for client in (make(), make(verify=True)):
        with pytest.raises(UnexpectedAnswerError, match="the result of the task 't' instead of 't2'"):
            client.execute("agt_a", "hello", budget="1", task_id="t2")
        with pytest.raises(UnexpectedAnswerError):
            client.wait("t2")
    with pytest.raises(NotProvenError, match="agent_id is agt_b"):
        make(verify=True).execute("agt_b", "hello", budget="1", task_id="t")


def platform_answer(server: Server) -> dict[str, Any]:
    found = server._replies["GET", "/api/v1/economic/tasks/t/result"][0]
    assert isinstance(found, Reply)
    return dict(found.body)


@pytest.mark.parametrize(
    "changes",
    [
        {"input": "hello!"},
        {"budget": "0.999999"},
        {"module_sha256": "cc" * 32},
        {"tariff_sha256": "cc" * 32},
        {"rules_sha256": "cc" * 32},
    ],
)
def test_a_receipt_for_another_request_is_refused(platform: Server, make: Any, changes: dict[str, Any]) -> None:
    """The server answers with a valid receipt, but of a task that was not asked for."""
    given = {"input": "hello", "budget": "1", "task_id": "t"} | changes
    with pytest.raises(NotProvenError):
        make(verify=True).execute("agt_a", given.pop("input"), **given)


def test_tasks_that_are_waited_for_are_verified_with_their_input(platform: Server, make: Any) -> None:
    platform.api("POST /tasks/execute", Reply(202, PENDING))
    client = make(verify=True)
    assert client.execute("agt_a", b"hello", budget="1", task_id="t").success
    with pytest.raises(NotProvenError):
        client.execute("agt_a", b"other", budget="1", task_id="t")


def test_an_output_past_its_retention_is_no_failure(platform: Server, make: Any, answer: dict[str, Any]) -> None:
    platform.api("GET /tasks/t/result", Reply(body=answer | {"output": None, "log": None}))
    assert make(verify=True).wait("t").output is None


def test_a_result_can_be_verified_later(platform: Server, client: Any) -> None:
    result = client.wait("t")
    assert client.verify(result, input="hello").exit_status == 0
    with pytest.raises(NotProvenError, match="SHA-256"):
        client.verify(result, input="hullo")


@pytest.mark.parametrize("keys", [b"", b"[]", b"{}", b'{"keys": 5}', b"\xff" * 100])
def test_key_sets_that_are_none_prove_nothing(platform: Server, make: Any, keys: bytes) -> None:
    platform.api("GET /.well-known/jwks.json", Reply(body=keys))
    with pytest.raises(NotProvenError):
        make(verify=True).wait("t")


def test_a_missing_key_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        Verifier(keys=tmp_path / "jwks.json")


# Tasks that a ticket pays.


def ticket_answer(answer: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], str]:
    """The same task as a channel pays it: the answer, and the ticket that was sent."""
    claims = parse(answer["receipt"]).payload
    escrow = Escrow(
        escrow_id="", payer="alice", task_id="t", request_sha256="", agent_id="agt_a", owner="owner",
        module_sha256="bb" * 32, input_sha256=claims["input_sha256"], tariff='{"type":"flat","price":"0.4"}',
        budget_micro=10**6, fee_bps=250, timeout_ms=1_000, runner="r", fence=1, funded_ms=NOW_S * 1_000,
        lease_ms=NOW_S * 1_000, expires_ms=NOW_S * 1_000 + 90_000,
    )  # fmt: skip
    escrow = paid_by_ticket(escrow, issuer="i", **changes)
    meter = Meter(**claims["meter"])
    run = Run(Outcome.SUCCEEDED, "", meter, limits=Limits(10**6, 2**24, 1_000))
    done = replace(decide(escrow, run, now_ms=NOW_S * 1_000 + 5), output=stored(OUTPUT), stderr=stored(LOG))
    signed = claims_of(escrow, done, issuer="i", run=run, engine="e", config_sha256="ff" * 32)
    assert escrow.ticket
    assert escrow.ticket.proof
    given = {
        "task_id": escrow.task_id, "escrow_id": escrow.escrow_id, "payment_method": "ticket",
        "receipt": sign(signed, PLATFORM.certify()),
    }  # fmt: skip
    return answer | given, escrow.ticket.proof.signed


def check(answered: dict[str, Any], **expected: Any) -> None:
    result = TaskResult.model_validate_json(json.dumps(answered), extra="ignore")
    proven(result, json.dumps(PLATFORM.jwks()).encode(), Expected(**expected))


def test_a_receipt_for_the_ticket_that_was_sent_is_proven(answer: dict[str, Any]) -> None:
    answered, sent = ticket_answer(answer)
    check(answered, ticket=sent, agent_id="agt_a", input=INPUT, budget_micro=10**6)
    check(answered)
    _, signed_again = ticket_answer(answer, exp=NOW_S + 5)
    assert signed_again != sent
    check(answered, ticket=signed_again)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 8), ("agent_id", "agt_b"), ("input_sha256", "cc" * 32), ("budget", "0.9"), ("timeout", 20),
        ("acceptance_sha256", "cc" * 32), ("options_sha256", "cc" * 32), ("iss", "j"), ("channel", "chn_" + "a" * 26),
    ],
)  # fmt: skip
def test_a_receipt_for_another_ticket_is_refused(answer: dict[str, Any], name: str, value: Any) -> None:
    """The channel's key may have signed both: the answer must be to the ticket that was sent."""
    answered, _ = ticket_answer(answer)
    _, other = ticket_answer(answer, **{name: value})
    with pytest.raises(NotProvenError, match=f"the ticket's {name} is"):
        check(answered, ticket=other)


def test_a_plain_receipt_is_none_for_a_ticket(answer: dict[str, Any]) -> None:
    answered, sent = ticket_answer(answer)
    with pytest.raises(NotProvenError, match="no ticket paid for the task, although one was sent"):
        check(answer, ticket=sent)
    for wrong in (answered | {"payment_method": "escrow"}, answer | {"payment_method": "ticket"}):
        with pytest.raises(NotProvenError, match="payment_method is"):
            check(wrong)


def test_a_ticket_under_a_key_of_the_platform_is_refused(answer: dict[str, Any]) -> None:
    """The platform signs a ticket itself, with all claims of the one that was sent: its channel has another key."""
    answered, sent = ticket_answer(answer)
    claims = parse(answered["receipt"]).payload
    forged = jws(parse(sent).payload, key=OTHER_KEY)
    ticket = {**claims["ticket"], "key": public(OTHER_KEY), "signed": forged}
    receipt = sign({**claims, "ticket": ticket}, PLATFORM.certify())
    with pytest.raises(NotProvenError, match="is not that of this payer, key, salt and ticket value"):
        check(answered | {"receipt": receipt}, ticket=sent)
