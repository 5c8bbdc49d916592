"""Payment channels: keys, their files and numbers, and tickets against a server that checks and misbehaves."""

import base64
import doctest
import hashlib
import inspect
import json
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from quittance import limits
from quittance.api.models import ChannelAnswer, TaskRequest
from quittance.api.requests import read_json, validated
from quittance.client import (
    AgentNotAllowedError,
    AgentNotReadyError,
    ChannelClosedError,
    ChannelKey,
    Client,
    ConfigurationError,
    InvalidRequestError,
    Lane,
    PlatformError,
    StillRunningError,
    Ticket,
    TicketInvalidError,
    TicketUsedError,
    UnexpectedAnswerError,
)
from quittance.client._channels import _NUMBER_TRIES, _Numbers
from quittance.ledger.channels import channel_id as channel_id_of
from quittance.limits import TICKET_NUMBER_MAX
from quittance.proof import ticket as proofs
from quittance.usecases.tickets import LEEWAY_S
from tests.client.servers import Answering, Reply, Seen, Server, problem
from tests.client.test_calls import PENDING, RESULT, UNAVAILABLE
from tests.support import ROOT

AGENT = "agt_k5x2mfq7w3nzt4ab"
ISSUER = "urn:quittance:test"
NOW = 1_000_000  # the clock of the tests


def answer(key: ChannelKey, *, ticket_value: str = "0.05", tickets: int = 20, **more: Any) -> dict[str, Any]:
    """A channel as the API states it."""
    x, salt = key.jwk["x"], more.pop("salt", key.jwk["x"])
    micro = round(float(ticket_value) * 1_000_000)
    named = channel_id_of(issuer=ISSUER, payer="alice", salt=salt, key=x, ticket_micro=micro)
    return {
        "channel_id": named, "issuer": ISSUER, "payer": "alice", "state": "open", "salt": salt, "key": key.jwk,
        "ticket_value": ticket_value, "agents": None, "max_per_task": None, "deposit": "1", "spent": "0",
        "held": "1", "returned": "0", "numbers": tickets, "used": 0, "opened_at": "2026-01-01T00:00:00.000Z",
        "expires_at": "2026-12-31T00:00:00.000Z", "closes_at": None, "closed_at": None, **more,
    }  # fmt: skip


def bound(api: str = "http://127.0.0.1:1", **more: Any) -> ChannelKey:
    """A key that belongs to a channel."""
    key = ChannelKey.new()
    key.bind(ChannelAnswer.model_validate(answer(key, **more)), api=api)
    return key


def settled(seen: Seen) -> Reply:
    """The result of a ticket's task."""
    named = {"task_id": seen.json["task_id"], "agent_id": seen.json["agent_id"], "payment_method": "ticket"}
    return Reply(body={**RESULT, **named})


class Book:
    """A platform's part: verifies each ticket for its request, and lets each number pay once."""

    def __init__(self, key: ChannelKey, used: tuple[int, ...] = ()) -> None:
        self.key = key
        self.paid: dict[int, str] = dict.fromkeys(used, "")
        self._lock = threading.Lock()

    def __call__(self, seen: Seen) -> Reply:
        assert "authorization" not in seen.headers
        claims, jws = proofs.read(seen.headers["payment-ticket"])
        proofs.check_signed(jws, self.key.jwk["x"])
        request = validated(TaskRequest, read_json(seen.body.decode()))
        assert (claims.iss, claims.channel, claims.n) == (ISSUER, self.key.channel_id, int(seen.json["task_id"][31:]))
        assert (claims.agent_id, claims.input_sha256) == (request.agent_id, request.stdin.sha256)
        assert (claims.budget_micro, claims.timeout) == (request.budget_micro, request.timeout)
        assert claims.acceptance_sha256 == request.own_rules_sha256
        assert claims.options_sha256 == request.options_sha256
        with self._lock:
            numbers = range(claims.n, claims.n + -(-claims.budget_micro // self.key.ticket_micro))
            if any(self.paid.get(number, claims.input_sha256) != claims.input_sha256 for number in numbers):
                return problem(409, "ticket_used", number=claims.n)
            self.paid |= dict.fromkeys(numbers, claims.input_sha256)
        return settled(seen)


@pytest.fixture
def key(server: Server) -> ChannelKey:
    found = bound(server.url)
    server.api(f"POST /channels/{found.channel_id}/tasks", Book(found))
    return found


def sending(server: Server, key: ChannelKey, *replies: Answering) -> None:
    server.api(f"POST /channels/{key.channel_id}/tasks", *replies)


# A payer.


def test_opening_a_channel_makes_the_key_its_own(server: Server, client: Any, tmp_path: Path) -> None:
    key = ChannelKey.new()
    server.api("POST /channels", Reply(201, answer(key)))
    found = client.open_channel(
        key, ticket_value="0.05", tickets=20, expires_at="2026-12-31T00:00:00Z", agents=[AGENT], max_per_task="0.1"
    )
    assert (found.channel_id, key.channel_id, key.api) == (key.channel_id, found.channel_id, server.url)
    assert server.seen[0].json == {
        "salt": key.jwk["x"], "key": key.jwk, "ticket_value": "0.05", "tickets": 20, "agents": [AGENT],
        "max_per_task": "0.1", "expires_at": "2026-12-31T00:00:00Z",
    }  # fmt: skip
    assert b'"d"' not in server.seen[0].body


def test_a_lost_answer_opens_no_second_channel(server: Server, client: Any) -> None:
    key = ChannelKey.new()
    server.api("POST /channels", Reply(drop=True), UNAVAILABLE, Reply(201, answer(key)))
    client.open_channel(key, ticket_value="0.05", tickets=20, expires_at="2026-12-31T00:00:00Z")
    assert len({seen.body for seen in server.seen}) == 1


def test_a_channel_of_another_key_is_refused(server: Server, client: Any) -> None:
    server.api("POST /channels", Reply(201, answer(ChannelKey.new())))
    with pytest.raises(ConfigurationError, match="not the key of the channel"):
        client.open_channel(ChannelKey.new(), ticket_value="0.05", tickets=2, expires_at="2026-12-31T00:00:00Z")


def test_a_public_key_is_enough_to_open_a_channel(server: Server, client: Any) -> None:
    key = ChannelKey.new()
    server.api("POST /channels", Reply(201, answer(key)))
    found = client.open_channel(key.jwk, ticket_value="0.05", tickets=20, expires_at="2026-12-31T00:00:00Z")
    with pytest.raises(ConfigurationError, match="no channel yet"):
        _ = key.channel_id
    key.bind(found, api=server.url)
    assert key.channel_id == found.channel_id


def test_channels_are_read_topped_up_and_closed(server: Server, client: Any, key: ChannelKey) -> None:
    path = f"/channels/{key.channel_id}"
    server.api(f"GET {path}", Reply(body=answer(key)))
    server.api("GET /channels", Reply(body={"channels": [answer(key)], "next": None}))
    added = {
        "channel_id": key.channel_id, "topup_id": "t", "amount": "0.5", "recorded_at": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip
    server.api(f"POST {path}/topups", UNAVAILABLE, Reply(201, added))
    server.api(f"POST {path}/close", Reply(body=answer(key, state="closing")))
    assert client.channel(key.channel_id).numbers == 20
    assert [found.channel_id for found in client.channels()] == [key.channel_id]
    assert client.top_up(key.channel_id, 10).amount_micro == 500_000
    assert len({seen.body for seen in server.calls("/topups")}) == 1
    assert client.close_channel(key.channel_id).state.value == "closing"


def test_the_key_alone_closes_its_channel(server: Server, make: Any, key: ChannelKey) -> None:
    server.api(f"POST /channels/{key.channel_id}/signed-close", Reply(body=answer(key, state="closing")))
    assert make(token=None).close_channel_by_key(key).state.value == "closing"
    claims, jws = proofs.read_close(server.seen[0].json["order"])
    proofs.check_signed(jws, key.jwk["x"])
    assert (claims.iss, claims.channel, claims.exp) == (ISSUER, key.channel_id, NOW + 900)
    assert "authorization" not in server.seen[0].headers


# Files.


def test_a_file_has_all_that_a_spender_needs(tmp_path: Path) -> None:
    key = bound("https://api.example.com/prod", agents=[AGENT], max_per_task="0.03")
    key.take(3)
    key.save(tmp_path / "channel.json")
    assert (tmp_path / "channel.json").stat().st_mode & 0o777 == 0o600
    saved = json.loads((tmp_path / "channel.json").read_text())
    assert set(saved["key"]) == {"kty", "crv", "x", "d"}
    assert (saved["api"], saved["next"], saved["ticket_value"]) == ("https://api.example.com/prod", 4, "0.05")
    assert "token" not in json.dumps(saved).lower()
    again = ChannelKey.load(tmp_path / "channel.json")
    assert (again.channel_id, again.ticket_micro, again.most_micro) == (key.channel_id, 50_000, 30_000)
    assert again.take() == 4


def test_the_private_half_is_in_no_text(key: ChannelKey) -> None:
    secret = json.loads(key.to_json())["key"]["d"]
    ticket = key.sign(AGENT, "hello", budget="0.05")
    shown = [repr(key), str(key), repr(ticket), repr(ChannelKey.new())]
    broken = json.loads(key.to_json())
    broken["next"] = "one"
    with pytest.raises(ConfigurationError) as caught:
        ChannelKey.from_json(json.dumps(broken))
    shown += [str(caught.value), repr(caught.value)]
    assert not any(secret in text or ticket.signed in text for text in shown)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"), ("[]", "no file of a channel's key"), ("{}", "key"), ('{"key": {}}', "private Ed25519 key"),
        ('{"key": {"kty": "OKP", "crv": "Ed25519", "x": "AA", "d": "AA"}}', "private Ed25519 key"),
        ('{"key": {}, "next": 0}', "next"), ('{"key": {}, "free": ["a"]}', "free"),
    ],
)  # fmt: skip
def test_files_that_are_no_keys_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ChannelKey.from_json(text)


def test_a_key_whose_halves_differ_is_refused() -> None:
    saved = json.loads(bound().to_json())
    saved["key"]["x"] = ChannelKey.new().jwk["x"]
    with pytest.raises(ConfigurationError, match="private Ed25519 key"):
        ChannelKey.from_json(json.dumps(saved))


def test_saving_replaces_no_other_key(tmp_path: Path) -> None:
    bound().save(tmp_path / "k")
    with pytest.raises(ConfigurationError, match="another channel's key"):
        ChannelKey.new().save(tmp_path / "k")


def test_programs_that_share_a_file_use_each_number_once(tmp_path: Path) -> None:
    bound().save(tmp_path / "k")
    drawn: list[int] = []

    def draw() -> None:
        own = ChannelKey.load(tmp_path / "k")  # as another process: a lock of its own
        drawn.extend(own.take(2) for _ in range(10))

    threads = [threading.Thread(target=draw) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(drawn) == list(range(1, 161, 2))


# The recipe of docs/howto/channels.md.

PAGE = (ROOT / "docs/howto/channels.md").read_text()


def test_the_worked_example_gives_its_ticket() -> None:
    example = json.loads(next(text for text in re.findall(r"```json\n(.*?)```", PAGE, re.S) if '"request"' in text))
    printed = re.findall(r"```text\n(eyJ.*?)```", PAGE, re.S)[0].replace("\n", "")
    header = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.S)[1])
    # As any JOSE library signs it: header and claims in the order of the page.
    parts = [json.dumps(part, separators=(",", ":")).encode() for part in (header, example["claims"])]
    signing_input = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    private = Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(example["key"]["d"] + "="))
    signature = base64.urlsafe_b64encode(private.sign(signing_input)).rstrip(b"=")
    assert (signing_input + b"." + signature).decode() == printed
    # As the platform reads it.
    claims, jws = proofs.read(printed)
    proofs.check_signed(jws, example["key"]["x"])
    request = validated(TaskRequest, read_json(json.dumps(example["request"])))
    assert request.task_id == f"{claims.channel}.{claims.n}"
    assert (claims.agent_id, claims.timeout, claims.budget_micro) == (request.agent_id, request.timeout, 50_000)
    assert claims.input_sha256 == hashlib.sha256(example["request"]["input"].encode()).hexdigest()
    assert claims.options_sha256 == request.options_sha256 == hashlib.sha256(example["options"].encode()).hexdigest()


@pytest.mark.parametrize(
    ("member", "value", "text"),
    [
        ("keep_input", True, '{"keep_input":true}'), ("keep_input", False, None),
        ("max_judging", "0.1", '{"max_judging":100000}'), ("min_reputation", 60.5, '{"min_reputation":605}'),
        ("module_sha256", "a" * 64, f'{{"module_sha256":"{"a" * 64}"}}'),
        ("share", {"payer": True, "log": True}, '{"share":"payer,log"}'),
        ("share", {"payer": True}, '{"share":"payer"}'),
        ("share", {"log": True}, '{"share":"log"}'), ("share", {"log": False}, None),
        ("webhook", "https://example.com/a?b=c", '{"webhook":"https://example.com/a?b=c"}'),
    ],
)  # fmt: skip
def test_the_table_of_options_is_that_of_the_platform(member: str, value: Any, text: str | None) -> None:
    body = {"task_id": "t", "agent_id": AGENT, "input": "a", "budget": "0.05", member: value}
    found = validated(TaskRequest, read_json(json.dumps(body))).options_sha256
    assert found == (None if text is None else hashlib.sha256(text.encode()).hexdigest())
    assert f"`{member}`" in PAGE


def test_the_page_states_the_limits() -> None:
    found = dict(re.findall(r"^\| ([a-z ,-]+?) \| ([0-9,]+)(?: each| days| KiB| s)? \|$", PAGE, re.M))
    assert {name: int(value.replace(",", "")) for name, value in found.items()} == {
        "tickets at opening, and of one top-up": limits.CHANNEL_TICKETS_MAX,
        "numbers of a channel": limits.TICKET_NUMBER_MAX,
        "tickets of one task": limits.TICKETS_PER_TASK_MAX,
        "tickets of one task with judges": limits.TICKETS_PER_JUDGED_TASK_MAX,
        "agents of a channel": limits.CHANNEL_AGENTS_MAX,
        "life of a channel": limits.CHANNEL_DAYS_MAX,
        "a signed ticket": limits.TICKET_CHARS_MAX // limits.KIB,
        "difference of clocks": LEEWAY_S,
    }
    assert f"From the start {limits.CHANNEL_GRANT_FIRST} numbers are granted" in PAGE
    assert f"up to {limits.CHANNEL_GRANT_MAX} at once" in PAGE.replace("\n", " ")
    assert f"After {limits.CHANNEL_CLOSE_MS // 1_000} seconds" in PAGE


def test_the_example_of_signing_is_true() -> None:
    names = {"key": bound()}
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(ChannelKey.sign) or "", names, "sign", None, None)
    printed: list[str] = []
    assert test.examples
    assert doctest.DocTestRunner(verbose=False).run(test, out=printed.append).failed == 0, printed


# Numbers.

STEPS = st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=60)


@given(STEPS, st.integers(1, 4), st.data())
def test_numbers_are_never_used_twice(steps: list[tuple[bool, int]], of: int, data: st.DataObject) -> None:
    """By programs of all lanes together, whatever each takes and gives back."""
    lanes = [_Numbers(lane=Lane(index, of, 4)) for index in range(of)]
    out: dict[int, tuple[int, int]] = {}
    for takes, count in steps:
        index = data.draw(st.integers(0, of - 1))
        if takes:
            number, lanes[index] = lanes[index].take(count)
            assert not any(number < first + size and first < number + count for first, (_, size) in out.items())
            out[number] = (index, count)
        elif out:
            number = data.draw(st.sampled_from(sorted(out)))
            owner, size = out.pop(number)
            lanes[owner] = lanes[owner].give_back(number, size)


def test_numbers_that_were_given_back_are_used_again(key: ChannelKey) -> None:
    assert [key.take(), key.take(2), key.take()] == [1, 2, 4]
    key.give_back(2, 2)
    assert [key.take(3), key.take(), key.take(), key.take()] == [5, 2, 3, 8]


def test_numbers_end_at_the_limit() -> None:
    last = _Numbers(next=TICKET_NUMBER_MAX)
    number, used_up = last.take(1)
    assert number == TICKET_NUMBER_MAX
    for numbers, count in ((used_up, 1), (last, 2)):
        with pytest.raises(ConfigurationError, match="used up"):
            numbers.take(count)


def test_lanes_of_one_channel_never_meet() -> None:
    lanes = [bound().lane(index, of=3, width=2) for index in range(3)]
    assert [[lane.take(), lane.take(2), lane.take()] for lane in lanes] == [[1, 7, 2], [3, 9, 4], [5, 11, 6]]
    with pytest.raises(ConfigurationError, match="use a wider one"):
        lanes[0].take(3)


def test_the_payer_gives_a_key_its_free_numbers(server: Server, client: Any, key: ChannelKey) -> None:
    line = {"number": 3, "tickets": 4, "task_id": f"{key.channel_id}.3", "agent_id": AGENT}
    first = {"channel_id": key.channel_id, "tickets": [line], "free": [[1, 2], [7, 10]], "next": 10}
    second = {"channel_id": key.channel_id, "tickets": [], "free": [[11, 20]], "next": None}
    server.api(f"GET /channels/{key.channel_id}/tickets", Reply(body=first), Reply(body=second))
    assert client.find_numbers(key) == 16
    assert [key.take(), key.take(2), key.take()] == [1, 7, 2]
    server.api(f"GET /channels/{key.channel_id}/tickets", Reply(body={**second, "next": 0}))
    with pytest.raises(UnexpectedAnswerError, match="same page"):
        client.find_numbers(key)


# Spending.


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"timeout": 5, "min_reputation": 60.5, "module_sha256": "a" * 64, "tariff_sha256": "b" * 64},
        {"acceptance": {"max_bytes": 10, "json_schema": {"type": "object", "required": ["ä"]}}, "max_judging": "0.1"},
        {"keep_input": True, "share": {"payer": True, "log": True}, "webhook": "https://example.com/hook?a=b"},
        {"keep_input": False, "share": {"log": True}, "rules_sha256": "c" * 64},
    ],
)
@pytest.mark.parametrize("value", ["hello", b"\x00\xff", {"b": 1e3, "a": "\u2028"}, [], ""])
def test_tickets_name_what_the_request_asks_for(
    server: Server, make: Any, key: ChannelKey, terms: Any, value: object
) -> None:
    done = make(token=None).spend(key, AGENT, value, budget="0.05", **terms)
    assert (done.task_id, done.payment_method) == (f"{key.channel_id}.1", "ticket")


def test_spending_never_sends_the_callers_token(server: Server, client: Any, key: ChannelKey) -> None:
    client.spend(key, AGENT, "hello", budget="0.05")
    assert "authorization" not in server.seen[0].headers
    assert "secret-token" not in repr(server.seen)


@pytest.mark.parametrize("failure", [Reply(drop=True), UNAVAILABLE, problem(429, "throttled"), Reply(cut=3, body={})])
def test_a_lost_answer_is_asked_for_with_the_same_ticket(
    server: Server, client: Any, key: ChannelKey, failure: Reply
) -> None:
    sending(server, key, failure, failure, Book(key))
    assert client.spend(key, AGENT, "hello", budget="0.05").output == "hello"
    assert len({(seen.body, seen.headers["payment-ticket"]) for seen in server.seen}) == 1
    assert len(server.seen) == 3


def test_a_running_task_is_asked_for_with_the_same_ticket(
    server: Server, client: Any, key: ChannelKey, clock: Any
) -> None:
    busy = problem(409, "task_in_progress", headers={"Retry-After": "3"})
    sending(server, key, busy, Reply(202, {**PENDING, "task_id": f"{key.channel_id}.1"}), Book(key))
    assert client.spend(key, AGENT, "hello", budget="0.05").output == "hello"
    assert len({seen.headers["payment-ticket"] for seen in server.seen}) == 1
    assert clock.pauses == [3, 0.75]


def test_a_task_that_takes_too_long_is_queued(server: Server, client: Any, key: ChannelKey) -> None:
    pending = Reply(202, {**PENDING, "task_id": f"{key.channel_id}.1"})
    sending(server, key, problem(422, "timeout_too_long"), pending, pending, Book(key))
    client.spend(key, AGENT, "hello", budget="0.05", timeout=300)
    assert [seen.headers.get("prefer") for seen in server.seen] == [None, "respond-async", None, None]


def test_waiting_for_a_ticket_is_bounded(server: Server, client: Any, key: ChannelKey) -> None:
    sending(server, key, Reply(202, {**PENDING, "task_id": f"{key.channel_id}.1"}))
    with pytest.raises(StillRunningError) as caught:
        client.spend(key, AGENT, "hello", budget="0.05", within=30)
    sending(server, key, Book(key))
    ticket = caught.value.ticket
    assert isinstance(ticket, Ticket)
    assert client.redeem(ticket).task_id == caught.value.call_id == f"{key.channel_id}.1"


def test_an_unknown_outcome_keeps_its_ticket_and_number(server: Server, client: Any, key: ChannelKey) -> None:
    sending(server, key, UNAVAILABLE)
    with pytest.raises(PlatformError) as caught:
        client.spend(key, AGENT, "hello", budget="0.05")
    assert caught.value.ticket is not None
    assert caught.value.ticket.number == 1
    sending(server, key, Book(key))
    assert client.spend(key, AGENT, "hello", budget="0.05").task_id.endswith(".2")
    assert client.redeem(Ticket.from_json(caught.value.ticket.to_json())).task_id.endswith(".1")


@pytest.mark.parametrize("code", ["agent_not_ready", "agent_not_allowed", "channel_closed", "budget_too_low"])
def test_a_refused_task_takes_no_number(server: Server, client: Any, key: ChannelKey, code: str) -> None:
    status = {"agent_not_allowed": 403, "budget_too_low": 422}.get(code, 409)
    sending(server, key, problem(status, code, state="closing"))
    with pytest.raises((AgentNotAllowedError, AgentNotReadyError, ChannelClosedError, Exception)) as caught:
        client.spend(key, AGENT, "hello", budget="0.05")
    assert (caught.value.code, len(server.seen), key.take()) == (code, 1, 1)


@pytest.mark.parametrize("used", [(1,), (1, 2, 3), tuple(range(1, 401))])
def test_numbers_that_others_have_used_are_passed(
    server: Server, client: Any, key: ChannelKey, used: tuple[int, ...]
) -> None:
    sending(server, key, Book(key, used))
    done = client.spend(key, AGENT, "hello", budget="0.05")
    assert int(done.task_id.rpartition(".")[2]) > max(used)
    assert len(server.seen) <= _NUMBER_TRIES


def test_trying_numbers_ends(server: Server, client: Any, key: ChannelKey) -> None:
    sending(server, key, problem(409, "ticket_used"))
    with pytest.raises(TicketUsedError):
        client.spend(key, AGENT, "hello", budget="0.05")
    assert len(server.seen) == _NUMBER_TRIES


def test_numbers_beyond_the_granted_ones_wait_for_lower_ones(server: Server, client: Any, key: ChannelKey) -> None:
    early = problem(401, "ticket_invalid", "it is far beyond those in use", numbers=500, granted=0)
    sending(server, key, early, early, Book(key))
    assert client.spend(key, AGENT, "hello", budget="0.05").task_id.endswith(".1")
    assert len({seen.headers["payment-ticket"] for seen in server.seen}) == 1


def test_a_spent_channel_says_so_at_once(server: Server, client: Any, key: ChannelKey) -> None:
    sending(server, key, problem(401, "ticket_invalid", "the deposit covers up to 20", numbers=20, granted=20))
    with pytest.raises(TicketInvalidError) as caught:
        client.spend(key, AGENT, "hello", budget="0.05")
    assert (caught.value.numbers, len(server.seen), key.take()) == (20, 1, 1)


def test_a_dear_task_takes_consecutive_numbers(server: Server, client: Any, key: ChannelKey) -> None:
    tasks = [client.spend(key, AGENT, text, budget=budget).task_id for text, budget in (("a", "0.12"), ("b", "0.05"))]
    assert tasks == [f"{key.channel_id}.1", f"{key.channel_id}.4"]


def test_threads_share_a_key(server: Server, key: ChannelKey) -> None:
    book = Book(key)
    sending(server, key, book)
    with Client(key.api) as client:
        threads = [
            threading.Thread(target=lambda part=part: [
                client.spend(key, AGENT, f"{part}-{each}", budget="0.05") for each in range(5)
            ])
            for part in range(8)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(book.paid) == list(range(1, 41))
    assert max(Counter(book.paid.values()).values()) == 1
    assert len(server.seen) == 40


@pytest.mark.parametrize(
    ("value", "terms", "field"),
    [
        ("a", {"budget": "0"}, "budget"), ("a", {"budget": 0.05}, "budget"), ("\ud800", {"budget": "0.05"}, "input"),
        ("a", {"budget": "0.05", "timeout": 601}, "timeout"),
        ("a", {"budget": "0.05", "webhook": "ftp://a"}, "webhook"),
    ],
)  # fmt: skip
def test_wrong_arguments_take_no_number(
    server: Server, client: Any, key: ChannelKey, value: Any, terms: Any, field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.spend(key, AGENT, value, **terms)
    assert caught.value.errors[0]["field"] == field
    assert (server.seen, key.take()) == ([], 1)


def test_results_of_other_tickets_are_refused(server: Server, client: Any, key: ChannelKey) -> None:
    sending(server, key, Reply(body={**RESULT, "task_id": f"{key.channel_id}.2"}))
    with pytest.raises(UnexpectedAnswerError, match="instead of"):
        client.spend(key, AGENT, "hello", budget="0.05")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"task_id": "t1", "ticket": "a.b.c"}', '{"task_id": 1}'])
def test_other_documents_are_no_tickets(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Ticket.from_json(text)
