"""Versions, cards, runs, tasks, searches, statements as CSV and kept inputs, against a server that misbehaves."""

import base64
import csv
import hashlib
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance.acceptance.contract import Contract, contract_json
from quittance.client import (
    AsyncClient,
    CardNotProvenError,
    ConnectionFailedError,
    InputNotAcceptedError,
    InvalidRequestError,
    NotFoundError,
    Retries,
    TermsChangedError,
    UnexpectedAnswerError,
    Verifier,
    VersionNotPublishedError,
)
from quittance.client._methods import _contract_sha256, _next_of
from quittance.client._wire import Answer
from quittance.proof import card
from quittance.proof.statement import CERTIFICATE_SECONDS, Purpose
from tests.client.servers import Clock, Reply, Server, problem
from tests.client.test_calls import RESULT
from tests.client.test_publishing import FLAT, agent, version, versions
from tests.proof.roots import NOW_S, Root
from tests.proof.test_card import unsigned

UNAVAILABLE = problem(503, "platform_unavailable")
CONTRACT = {"input_schema": {"type": "object", "multipleOf": 0.1}, "tags": ["text"]}
CONTRACT_SHA256 = hashlib.sha256(contract_json(Contract.model_validate(CONTRACT)).encode()).hexdigest()
RUN = {
    "run_id": "a" * 26, "settled_at": "2026-01-01T00:00:00.000Z", "module_sha256": "bb" * 32, "success": True,
    "outcome": "succeeded", "fault": "none", "fuel_used": 10, "execution_time_ms": 3, "memory_used_mb": 1.5,
    "amount_paid": "0.00975", "fee": "0.00025", "message": None, "payer": None, "log_shared": False,
}  # fmt: skip
TASK = {"task_id": "t", "agent_id": "agt_a", "state": "pending", "funded_at": "2026-01-01T00:00:00.000Z"}
ESTIMATE = {
    "agent_id": "agt_a", "tariff": FLAT, "tariff_sha256": "aa" * 32, "least_price": "0.01",
    "compute": {"run": "0", "per_billion_fuel": "0"}, "module_sha256": "cc" * 32, "rules_sha256": "bb" * 32,
    "judging": "0", "task_judges": None, "recent": None,
}  # fmt: skip
CARD = {
    "agent_id": "agt_a", "owner": "alice", "name": "echo", "description": "", "version": 3, "module_sha256": "cc" * 32,
    "contract_sha256": CONTRACT_SHA256, "contract": CONTRACT, "tariff": FLAT, "tariff_sha256": "aa" * 32,
    "limits": {"memory_mib": 64, "timeout": 5, "fuel": 1000}, "rules_sha256": "bb" * 32, "acceptance": {},
    "task_judges": None,
}  # fmt: skip


def paged(name: str, *pages: list[Any]) -> list[Reply]:
    ends = [*(f"c{number}" for number in range(1, len(pages))), None]
    return [Reply(body={name: page, "next": end}) for page, end in zip(pages, ends, strict=True)]


# Versions and terms.


def test_all_versions_are_read_page_by_page(server: Server, client: Any) -> None:
    pages = paged("versions", [version(number=3), version("rejected", 2)], [], [version("inactive", 1)])
    server.api("GET /agents/agt_a/versions", pages[0], UNAVAILABLE, *pages[1:])
    found = [(one.number, one.state.value) for one in client.agents.versions("agt_a", page_size=2)]
    assert found == [(3, "active"), (2, "rejected"), (1, "inactive")]
    assert [seen.query for seen in server.seen][1:] == [{"limit": "2", "after": after} for after in ("c1", "c1", "c2")]


def test_the_same_page_again_ends_a_list(server: Server, client: Any) -> None:
    server.api("GET /agents/agt_a/versions", versions(version(), after="c1"))
    with pytest.raises(UnexpectedAnswerError, match="same page again"):
        list(client.agents.versions("agt_a"))


def test_an_activation_is_repeated_until_it_is_answered(server: Server, client: Any) -> None:
    server.api("POST /agents/agt_a/versions/2/activate", UNAVAILABLE, Reply(drop=True), agent(version=2))
    assert client.agents.activate("agt_a", 2).version == 2
    server.api("POST /agents/agt_a/versions/3/activate", problem(409, "version_not_published"))
    with pytest.raises(VersionNotPublishedError):
        client.agents.activate("agt_a", 3)


def test_an_update_sends_what_is_given_alone(server: Server, client: Any) -> None:
    server.api("PATCH /agents/agt_a", Reply(drop=True), agent(version=2))
    assert client.agents.update("agt_a", description="", limits={"timeout": 5}).version == 2
    assert server.seen[-1].json == {"description": "", "limits": {"timeout": 5}}
    client.agents.update("agt_a", name="b", tariff=FLAT, task_judges="refused", acceptance={"max_bytes": 1})
    assert server.seen[-1].json == {
        "name": "b", "tariff": FLAT, "task_judges": "refused", "acceptance": {"max_bytes": 1},
    }  # fmt: skip


def test_contracts_are_sent_as_they_are_read(server: Server, client: Any) -> None:
    server.api("GET /agents/agt_a/card", Reply(body=CARD))
    server.api("POST /agents", problem(400, "invalid_request"))
    for contract in (CONTRACT, client.agents.card("agt_a").contract):
        with pytest.raises(InvalidRequestError):
            client.agents.register("a", tariff=FLAT, contract=contract)
        assert server.seen[-1].json["contract"] == CONTRACT
        assert b'"multipleOf":0.1' in server.seen[-1].body


# Cards.


def test_the_contract_on_a_card_is_the_one_that_its_digest_names(server: Server, client: Any) -> None:
    server.api("GET /agents/agt_a/card", Reply(body=CARD))
    found = client.agents.card("agt_a")
    assert (found.version, found.contract.tags) == (3, ["text"])
    wrong: tuple[dict[str, Any], ...] = (
        {"contract": {"tags": ["text"]}}, {"contract": None}, {"contract_sha256": None}, {"contract_sha256": "aa" * 32},
    )  # fmt: skip
    for change in wrong:
        server.api("GET /agents/agt_a/card", Reply(body=CARD | change))
        with pytest.raises(UnexpectedAnswerError, match="digest"):
            client.agents.card("agt_a")
    server.api("GET /agents/agt_a/card", Reply(body=CARD | {"contract": None, "contract_sha256": None}))
    assert client.agents.card("agt_a").contract is None


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b'{"contract":1,"contract":1}', b"\xff", b"[" * 1_000])
def test_cards_that_are_no_json_have_no_valid_digest(text: bytes) -> None:
    assert _contract_sha256(text) in {None, ""}


ROOT = Root("card-root", Purpose.CARD)
SIGNED = card.sign(unsigned(), ROOT.certify())
A2A = "GET /agents/agt_x/.well-known/agent-card.json"


@pytest.fixture
def late() -> Clock:
    """A clock that reads the time at which the card was signed."""
    clock = Clock()
    clock.at = float(NOW_S)
    return clock


@pytest.mark.parametrize("pinned", [True, False])
def test_a_signed_card_is_verified_without_a_token(server: Server, make: Any, late: Clock, pinned: bool) -> None:
    server.api(A2A, Reply(body=SIGNED))
    server.api("GET /.well-known/jwks.json", Reply(body=ROOT.jwks()))
    client = make(timing=late.timing(), verify=Verifier(keys=ROOT.jwks()) if pinned else False)
    found = client.agents.a2a_card("agt_x")
    assert (found.agent_id, found.card["name"]) == ("agt_x", "Word count")
    assert len(server.calls("/jwks.json")) == (0 if pinned else 1)
    assert all("authorization" not in seen.headers for seen in server.seen), "a public route gets no token"


def test_cards_that_are_not_proven_are_errors(server: Server, make: Any, late: Clock) -> None:
    server.api("GET /.well-known/jwks.json", Reply(body=ROOT.jwks()))
    client = make(timing=late.timing())
    for body in (SIGNED | {"name": "Other"}, unsigned(), [], {}, b"\xff", b"[" * 10_000, b'"' + b"a" * 200_000 + b'"'):
        server.api(A2A, Reply(body=body))
        with pytest.raises(CardNotProvenError):
            client.agents.a2a_card("agt_x")
    server.api("GET /agents/agt_y/.well-known/agent-card.json", Reply(body=SIGNED))
    with pytest.raises(CardNotProvenError, match="of the agent 'agt_x' instead of 'agt_y'"):
        client.agents.a2a_card("agt_y")
    server.api(A2A, Reply(body=SIGNED))
    late.at += CERTIFICATE_SECONDS
    with pytest.raises(CardNotProvenError, match="validity"):
        client.agents.a2a_card("agt_x")


@pytest.mark.parametrize("keys", [b"", b"[]", b"null", b'{"keys": 1}', b'{"keys": [1]}', b"[" * 100_000])
def test_wrong_key_sets_prove_no_card(server: Server, make: Any, late: Clock, keys: bytes) -> None:
    server.api("GET /.well-known/jwks.json", Reply(body=keys))
    server.api(A2A, Reply(body=SIGNED))
    with pytest.raises(CardNotProvenError):
        make(timing=late.timing()).agents.a2a_card("agt_x")


# Runs, tasks, searches.


def test_runs_are_read_page_by_page_with_their_filters(server: Server, client: Any) -> None:
    server.api("GET /agents/agt_a/runs", *paged("runs", [RUN], [RUN | {"payer": "bob"}]))
    since = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    found = list(client.agents.runs("agt_a", outcome="succeeded", since=since, until="2026-02-01T00:00:00Z"))
    assert [(run.payer, run.amount_paid_micro) for run in found] == [(None, 9_750), ("bob", 9_750)]
    assert server.seen[1].query == {
        "outcome": "succeeded", "since": "2026-01-01T02:00:00+02:00", "until": "2026-02-01T00:00:00Z", "after": "c1",
    }  # fmt: skip
    server.api(f"GET /agents/agt_a/runs/{'a' * 26}", Reply(body=RUN | {"log": "a warning", "log_shared": True}))
    assert client.agents.run("agt_a", "a" * 26).log == "a warning"
    assert client.agents.runs_page("agt_a", limit=1).next is None


def test_tasks_are_read_page_by_page_with_their_filters(server: Server, client: Any) -> None:
    server.api("GET /tasks", *paged("tasks", [], [TASK]))
    found = list(client.tasks(agent_id="agt_a", state="pending", since=datetime(2026, 1, 1, tzinfo=UTC)))
    assert [(task.task_id, task.outcome) for task in found] == [("t", None)]
    assert server.seen[0].query == {"agent_id": "agt_a", "state": "pending", "since": "2026-01-01T00:00:00+00:00"}
    assert client.tasks_page(limit=5, after="c9").tasks[0].task_id == "t"
    assert server.seen[-1].query == {"limit": "5", "after": "c9"}


def test_times_without_a_zone_are_not_sent(server: Server, client: Any) -> None:
    with pytest.raises(InvalidRequestError, match="since: must have a time zone"):
        client.tasks_page(since=datetime(2026, 1, 1))  # noqa: DTZ001 - what is refused
    assert server.seen == []


def test_searches_send_their_numbers_as_decimals(server: Server, client: Any) -> None:
    server.api("GET /agents", *paged("agents", [agent().body | {"standing": {"score": 72.5, "success_rate": 0.95}}]))
    (found,) = client.agents.list(
        q="word & count", tag="text", max_price=Decimal("0.0500"), min_score=72.5, min_success_rate=Decimal("1E-2"),
        sort="score", owner="me+you", page_size=7,
    )  # fmt: skip
    assert (found.standing.score, found.standing.success_rate) == (725, 0.95)
    assert server.seen[0].query == {
        "q": "word & count", "tag": "text", "max_price": "0.05", "min_score": "72.5", "min_success_rate": "0.01",
        "sort": "score", "owner": "me+you", "limit": "7",
    }  # fmt: skip
    with pytest.raises(InvalidRequestError, match="max_price"):
        client.agents.page(max_price=0.05)


# Pins, inputs and what is shared.


def test_pins_are_the_terms_of_a_task(server: Server, client: Any) -> None:
    server.api("GET /agents/agt_a/estimate", Reply(body=ESTIMATE))
    server.api("POST /tasks/execute", Reply(body=RESULT))
    client.execute(
        "agt_a", "hello", budget="1", task_id="t", keep_input=True, share={"log": True}, **client.agents.pins("agt_a")
    )
    sent = server.seen[-1].json
    assert {name: sent[name] for name in ("module_sha256", "tariff_sha256", "rules_sha256", "keep_input", "share")} == {
        "module_sha256": "cc" * 32, "tariff_sha256": "aa" * 32, "rules_sha256": "bb" * 32, "keep_input": True,
        "share": {"log": True},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [("terms_changed", 409, TermsChangedError), ("input_not_accepted", 422, InputNotAcceptedError)],
)
def test_refused_tasks_are_typed(server: Server, client: Any, code: str, status: int, kind: Any) -> None:
    faults = [{"field": "input/items/3/price", "message": "must be of type number"}]
    server.api("POST /tasks/execute", problem(status, code, errors=faults))
    with pytest.raises(kind) as caught:
        client.execute("agt_a", {}, budget="1")
    assert caught.value.errors == faults
    assert len(server.seen) == 1


@pytest.mark.parametrize("data", [b"hello", b"", b"\xff\x00", "h\u00e9llo\r\n".encode()])
def test_kept_inputs_are_returned_to_the_byte(server: Server, client: Any, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    try:
        stated = {"input": data.decode(), "input_base64": None}
    except UnicodeDecodeError:
        stated = {"input": None, "input_base64": base64.b64encode(data).decode()}
    server.api("GET /tasks/t/input", Reply(body={"task_id": "t", "input_sha256": digest, **stated}))
    assert client.task_input("t") == client.task_input("t", sha256=digest) == data
    with pytest.raises(UnexpectedAnswerError, match="another input") as caught:
        client.task_input("t", sha256="aa" * 32)
    assert caught.value.call_id == "t"


@pytest.mark.parametrize(
    "change", [{"input": "hellO"}, {"input": None}, {"input_base64": "!"}, {"input_base64": "aGVsbG8"}, {"input": 1}]
)
def test_other_bytes_than_the_digest_names_are_refused(server: Server, client: Any, change: dict[str, Any]) -> None:
    body = {"task_id": "t", "input_sha256": hashlib.sha256(b"hello").hexdigest(), "input": "hello"} | change
    server.api("GET /tasks/t/input", Reply(body=body))
    with pytest.raises(UnexpectedAnswerError):
        client.task_input("t")


def test_an_input_that_was_not_kept_is_not_found(server: Server, client: Any) -> None:
    server.api("GET /tasks/t/input", problem(404, "not_found"))
    with pytest.raises(NotFoundError):
        client.task_input("t")


# Statements as CSV.


def sheet(*lines: str, link: str | None = None, kind: str = "text/csv; charset=utf-8") -> Reply:
    headers = {"Content-Type": kind} | ({"Link": link} if link else {})
    return Reply(body="".join(f"{line}\r\n" for line in lines).encode(), headers=headers)


CSV = "GET /accounts/me/statement.csv"
NEXT = '</prod/api/v1/economic/accounts/me/statement.csv?limit=2&after=c1>; rel="next"'


def test_statement_lines_of_all_pages_have_one_head(server: Server, client: Any) -> None:
    server.api(CSV, sheet("at,kind", "1,task", "2,task", link=NEXT), UNAVAILABLE, sheet("at,kind", '3,"dep,osit"'))
    lines = list(client.statement_csv(page_size=2))
    assert lines == ["at,kind", "1,task", "2,task", '3,"dep,osit"']
    assert [line["kind"] for line in csv.DictReader(lines)] == ["task", "task", "dep,osit"]
    assert [seen.query for seen in server.seen] == [{"limit": "2"}, *[{"limit": "2", "after": "c1"}] * 2]
    assert server.seen[0].headers["accept"].startswith("text/csv")


def test_a_page_of_a_statement_is_text_with_a_cursor(server: Server, client: Any) -> None:
    server.api(CSV, sheet("at,kind", link=NEXT))
    page = client.statement_csv_page(limit=2)
    assert (page.text, page.next) == ("at,kind\r\n", "c1")


def test_links_to_other_hosts_are_not_followed(server: Server, client: Any) -> None:
    with Server().running() as other:
        link = f'<{other.url}/accounts/me/statement.csv?after=c%2F..%2F1>; rel="next"'
        server.api(CSV, sheet("at,kind", "1,task", link=link), sheet("at,kind"))
        assert list(client.statement_csv()) == ["at,kind", "1,task"]
        assert other.seen == []
    assert server.seen[1].query == {"after": "c/../1"}


@pytest.mark.parametrize(
    "answer",
    [
        sheet("at,kind", kind="text/html"), sheet(), Reply(body=b"\xff\xfe", headers={"Content-Type": "text/csv"}),
        sheet("at,kind", link='<http://[>; rel="next"'), sheet("at,kind", link='</x?before=1>; rel="next"'),
        sheet("at,kind", link='</x?after=>; rel="next"'),
    ],
)  # fmt: skip
def test_answers_that_are_no_statement_are_errors(server: Server, client: Any, answer: Reply) -> None:
    server.api(CSV, answer)
    with pytest.raises(UnexpectedAnswerError):
        list(client.statement_csv())


def test_columns_that_change_between_pages_are_an_error(server: Server, client: Any) -> None:
    server.api(CSV, sheet("at,kind", "1,task", link=NEXT), sheet("kind,at", "task,2"))
    with pytest.raises(UnexpectedAnswerError, match="columns"):
        list(client.statement_csv())


@given(st.text(st.characters(max_codepoint=127), max_size=80) | st.text("<>;,= relnxt\"?a'f&/:[]", max_size=80))
def test_every_link_is_a_cursor_or_an_error_of_the_client(link: str) -> None:
    import httpx

    try:
        found = _next_of(Answer(200, httpx.Headers({"link": link}), b""))
    except UnexpectedAnswerError:
        return
    assert found is None or found


# Time.


async def _balance(url: str) -> None:
    async with AsyncClient(url, token="t", timeout=0.5, retries=Retries(tries=1)) as client:
        await client.balance()


def test_a_head_that_never_ends_does_not_hold_an_awaited_call(server: Server) -> None:
    import asyncio

    server.api("GET /accounts/me", Reply(drip="head"))
    with pytest.raises(ConnectionFailedError, match="did not complete its answer in time"):
        asyncio.run(_balance(server.url))
