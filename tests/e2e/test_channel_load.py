"""Payment channels on the deployed template, under load and under attack: one write a task, one charge a ticket.

Every answer is one that the API's description promises (conftest.py), and the whole ledger conserves money after each
test. A closing channel's window is moved into the past instead of waiting for it.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise
from pathlib import Path
from threading import Event
from time import sleep, time
from typing import Any

import httpx
import pytest

from local.paths import Stack
from quittance.proof import receipt
from quittance.proof import verify as verifier
from tests.depth import LONG
from tests.e2e import people
from tests.e2e.people import CREDIT, Ledger, User, assert_claims_match, micro, sweep_until_credited
from tests.e2e.spending import Spender
from tests.e2e.test_refusals import assert_refused
from tests.support import wasm
from tests.tickets import OTHER_KEY, signed
from tests.waiting import until

CLIENTS = 32  # more than AccountConcurrency permits for tasks that an account pays
TASKS = 500 if LONG else 160
RIVALS = 12
PRICE = CREDIT // 100
TICKET = CREDIT // 20
BUSY = {502, 503, 504}
WAITS = {"task_in_progress"}  # problems for which a client waits and repeats its request


@pytest.fixture
def payer(api: Callable[..., httpx.Client], deposit: Callable[..., None]) -> User:
    """A user with 31 credits."""
    user = User.new(api, deposit)
    deposit(user.name, 30)
    return user


@pytest.fixture
def spender(payer: User, api: Callable[..., httpx.Client]) -> Spender:
    """A channel with 20 tickets of 0.05 credits."""
    return Spender.opened(api, payer)


@pytest.fixture(autouse=True)
def _conserved(ledger: Ledger) -> Iterator[None]:
    """Each test ends with a ledger that has lost and made nothing."""
    yield
    ledger.total()


def answered(spender: Spender, body: dict[str, Any], token: str | None = None) -> httpx.Response:
    """The answer to a request that is repeated while the same task is in progress."""

    def done() -> httpx.Response | None:
        answer = spender.send(body, token)
        return None if answer.status_code == 409 and answer.json()["code"] in WAITS else answer

    return until(done, "the task stays in progress", pause_s=0.3)


def at_once(calls: list[Callable[[], httpx.Response]]) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def spent_micro(spender: Spender, ledger: Ledger, sweep: Callable[[], None]) -> int:
    """What the channel has spent, after all of its settled tasks are credited."""
    sweep_until_credited(sweep, ledger)
    return micro(spender.found()["spent"])


class Records:
    """The changes of the ledger's table since this was made, from its stream."""

    def __init__(self, aws: Callable[[str], Any], table: str) -> None:
        arn = aws("dynamodb").describe_table(TableName=table)["Table"]["LatestStreamArn"]
        self._streams = aws("dynamodbstreams")
        shards = self._streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
        self._iterators = [
            self._streams.get_shard_iterator(StreamArn=arn, ShardId=shard["ShardId"], ShardIteratorType="LATEST")[
                "ShardIterator"
            ]
            for shard in shards
        ]

    def read(self) -> list[dict[str, Any]]:
        """The changes so far."""
        found = []
        for iterator in self._iterators:
            page: dict[str, Any] = {"NextShardIterator": iterator, "Records": [None]}
            while page["Records"]:
                page = self._streams.get_records(ShardIterator=page["NextShardIterator"])
                found += [record["dynamodb"] for record in page["Records"]]
        return found


def test_many_tasks_through_one_channel_take_one_write_each(
    payer: User,
    api: Callable[..., httpx.Client],
    aws: Callable[[str], Any],
    stack: Stack,
    echo: str,
    ledger: Ledger,
    sweep: Callable[[], None],
    record_property: Callable[[str, Any], None],
) -> None:
    """32 clients at once, more than the slots of an account, and a new channel."""
    spender = Spender.opened(api, payer, tickets=TASKS)
    answers: dict[int, httpx.Response] = {}
    repeats: Counter[int] = Counter()

    def client(numbers: Iterator[int]) -> None:
        for number in numbers:  # each client takes the next number
            while (answer := spender.send(spender.body(number, echo, input=str(number)))).status_code in BUSY:
                repeats[number] += 1  # too few processors for all environments
                sleep(1)
            answers[number] = answer

    def run(numbers: range) -> None:
        waiting = iter(numbers)
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(client, [waiting] * CLIENTS))

    run(range(1, CLIENTS + 1))  # starts an environment for each client
    repeats.clear()
    records = Records(aws, stack.table)
    run(range(CLIENTS + 1, TASKS + 1))
    changed = records.read()
    assert Counter(answer.status_code for answer in answers.values()) == {200: TASKS}, [
        answer.text for answer in answers.values() if answer.status_code != 200
    ][:3]
    for number, answer in answers.items():
        assert (answer.json()["output"], answer.json()["payment_method"]) == (str(number), "ticket")

    assert len({answer.json()["escrow_id"] for answer in answers.values()}) == TASKS
    keys = {f"ESC#{answers[number].json()['escrow_id']}" for number in range(CLIENTS + 1, TASKS + 1)}
    repeated = {f"ESC#{answers[number].json()['escrow_id']}" for number in repeats}
    by_sweep = [record for record in changed if "swept_ms" in record["NewImage"]]
    writes = Counter(
        record["Keys"]["pk"]["S"]
        for record in changed
        if record not in by_sweep and record["Keys"]["pk"]["S"].startswith(("ESC#", "SLOT#"))
    )
    assert writes.keys() == keys, "a task takes no slot"
    assert {key for key, times in writes.items() if times > 1} <= repeated, "each task makes one write"
    grants = [
        record
        for record in changed
        if record["Keys"]["pk"]["S"] == f"CHAN#{spender.id}"
        and record["NewImage"]["granted"] != record["OldImage"]["granted"]
    ]
    assert len(grants) * 20 <= TASKS, "granting numbers takes few writes"
    assert not [record for record in changed if record["Keys"]["pk"]["S"].startswith(f"ACCT#{payer.name}")]

    assert spent_micro(spender, ledger, sweep) == TASKS * PRICE
    closed = spender.finish(ledger, sweep)
    assert (closed["spent"], closed["swept"], closed["used"]) == (TASKS * PRICE, TASKS, TASKS)
    assert closed["returned"] == TASKS * (TICKET - PRICE)
    record_property(
        "figure",
        f"channels: {TASKS} tasks, {CLIENTS} clients, {len(writes)} counted: {writes.total()} writes,"
        f" {len(grants)} grants, {len(repeats)} repeated",
    )


def test_numbers_may_be_used_in_any_order(spender: Spender, echo: str) -> None:
    """A new channel's highest numbers are as good as its lowest."""
    order = list(range(1, 21))
    random.Random(7).shuffle(order)
    assert [spender.run(number, echo)["success"] for number in [20, *[each for each in order if each != 20]]] == [
        True
    ] * 20


def test_one_ticket_pays_one_of_several_tasks_at_once(
    spender: Spender, echo: str, ledger: Ledger, sweep: Callable[[], None]
) -> None:
    """The program signs the same number for many tasks: one wins, the others get 409 ticket_used, one is charged."""
    bodies = [spender.body(1, echo, input=str(number)) for number in range(RIVALS)]
    answers = at_once([lambda body=body: answered(spender, body) for body in bodies])  # type: ignore[misc]
    (won,) = [answer for answer in answers if answer.status_code == 200]
    for answer in answers:
        if answer is not won:
            assert_refused(answer, 409, "ticket_used")
    assert answered(spender, bodies[int(won.json()["output"])]).content == won.content
    assert spent_micro(spender, ledger, sweep) == PRICE


def test_the_same_task_from_many_clients_has_one_answer(
    spender: Spender, echo: str, ledger: Ledger, sweep: Callable[[], None]
) -> None:
    body = spender.body(2, echo)
    token = spender.ticket(body)
    answers = at_once([lambda: answered(spender, body, token)] * RIVALS)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert answered(spender, body).content == answers[0].content, "a ticket that was signed again asks for the same"
    assert spent_micro(spender, ledger, sweep) == PRICE


def test_overlapping_ranges_of_numbers_pay_one_task(
    spender: Spender, echo: str, ledger: Ledger, sweep: Callable[[], None]
) -> None:
    """Tasks of three numbers that share some: no number pays twice, whichever tasks win."""
    bodies = [spender.body(first, echo, budget="0.15", input=str(first)) for first in range(1, 8)]
    answers = at_once([lambda body=body: answered(spender, body) for body in bodies])  # type: ignore[misc]
    won = sorted(int(answer.json()["output"]) for answer in answers if answer.status_code == 200)
    assert won
    assert all(later - earlier >= 3 for earlier, later in pairwise(won)), won
    for answer in answers:
        if answer.status_code != 200:
            assert_refused(answer, 409, "ticket_used")
    assert spent_micro(spender, ledger, sweep) == len(won) * PRICE
    closed = spender.finish(ledger, sweep)
    assert (closed["swept"], closed["used"]) == (3 * len(won), 3 * len(won))
    assert closed["returned"] == closed["deposit"] - len(won) * PRICE


def test_tickets_that_run_while_a_channel_closes_cost_exactly(
    payer: User,
    api: Callable[..., httpx.Client],
    publish: Callable[..., str],
    echo: str,
    ledger: Ledger,
    sweep: Callable[[], None],
) -> None:
    """Each is honoured or refused, and the payer gets back what the honoured ones did not cost."""
    spender, slow = Spender.opened(api, payer, tickets=60), publish(wasm("misbehave"), limits={"timeout": 2})
    numbers, stop = count(1), Event()
    answers: list[tuple[int, httpx.Response]] = []

    def client(number: int) -> None:
        while not stop.is_set():
            ticket = next(numbers)
            agent, text = (slow, "loop") if number == 0 else (echo, "x")
            answers.append((ticket, answered(spender, spender.body(ticket, agent, input=text))))

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(client, number) for number in range(6)]
        until(lambda: len(answers) > 8 or None, "no tickets are answered")
        assert spender.close()["state"] == "closing"
        assert spender.close()["state"] == "closing", "closing again changes nothing"
        sleep(0.5)
        stop.set()
        for future in running:
            future.result()
    refused = [answer for _, answer in answers if answer.status_code != 200]
    for answer in refused:
        assert_refused(answer, 409, "channel_closed") if answer.json()["code"] == "channel_closed" else assert_refused(
            answer, 401, "ticket_invalid"
        )
    honoured = [answer.json() for _, answer in answers if answer.status_code == 200]
    closed = spender.finish(ledger, sweep)
    assert closed["spent"] == PRICE * sum(answer["success"] for answer in honoured)
    assert closed["swept"] == closed["used"] == len(honoured)
    assert closed["returned"] == closed["deposit"] - closed["spent"]
    assert micro(payer.http.get("/accounts/me").json()["available"]) == 31 * CREDIT - closed["spent"]
    late = spender.send(spender.body(next(numbers), echo))
    assert (late.status_code, late.json()["code"]) in {(409, "channel_closed"), (401, "ticket_invalid")}, late.text
    for ticket, answer in answers[:3]:
        agent = answer.json()["agent_id"]
        again = spender.send(spender.body(ticket, agent, input="loop" if agent == slow else "x"))
        assert again.content == answer.content, "a closed channel's answers can be had again"


def test_a_withdrawal_takes_nothing_from_a_channel(
    payer: User, api: Callable[..., httpx.Client], echo: str, ledger: Ledger, sweep: Callable[[], None]
) -> None:
    """The payer withdraws everything while tickets run: they are all paid."""
    spender = Spender.opened(api, payer)
    rest = micro(payer.http.get("/accounts/me").json()["available"])
    assert rest == 31 * CREDIT - 20 * TICKET
    withdrawal = {"withdrawal_id": "all", "amount": "30"}
    tasks = [lambda number=number: answered(spender, spender.body(number, echo)) for number in range(1, 13)]
    answers = at_once(
        [lambda: payer.http.post("/accounts/me/withdrawals", json=withdrawal), *tasks]  # type: ignore[list-item]
    )
    assert [answer.status_code for answer in answers] == [201, *[200] * 12]
    left = micro(payer.http.get("/accounts/me").json()["available"])
    closed = spender.finish(ledger, sweep)
    assert closed["returned"] == 20 * TICKET - 12 * PRICE
    assert micro(payer.http.get("/accounts/me").json()["available"]) == left + closed["returned"]


def test_repeats_after_lost_answers_cost_once(
    spender: Spender, publish: Callable[..., str], ledger: Ledger, sweep: Callable[[], None]
) -> None:
    """The client hangs up while the agent runs, again and again, and then gets the one answer."""
    slow = publish(wasm("sieve"))
    bodies = [spender.body(number, slow, input="20000000") for number in range(1, 4)]
    for body in bodies:
        for _ in range(3):
            try:
                spender.send(body, patience_s=0.05)
            except httpx.TimeoutException:
                sleep(0.05)
    done = [answered(spender, body) for body in bodies]
    assert [answer.status_code for answer in done] == [200] * 3
    assert [answered(spender, body).content for body in bodies] == [answer.content for answer in done]
    assert spent_micro(spender, ledger, sweep) == 3 * PRICE


def test_garbage_tickets_are_refused(spender: Spender, echo: str) -> None:
    body = spender.body(1, echo)
    good = spender.ticket(body)
    head, claims, signature = good.split(".")
    none = "eyJhbGciOiJub25lIiwidHlwIjoicXVpdHRhbmNlLXRpY2tldCtqd3QifQ"
    for garbage in (
        "",
        "x",
        "x.y.z",
        "..",
        f"{head}.{claims}",
        f"{head}.{claims}.",
        f"{none}.{claims}.",
        f"{head}.{claims}.{signature[:-4]}AAAA",
        f"{head}.{claims[:-4]}.{signature}",
        f"{head}.W10.{signature}",
        f"{good}.{signature}",
        "A" * 4_097,
        signed({"iss": spender.channel["issuer"], "channel": spender.id}, spender.key),
        spender.order(),
    ):
        answer = spender.send(body, garbage)
        assert_refused(answer, 401, "ticket_invalid")
    missing = spender.http.post(f"/channels/{spender.id}/tasks", json=body)
    assert_refused(missing, 400, "invalid_request")
    assert spender.send(body, good).status_code == 200, "and the good one is still good"


def test_tickets_for_something_else_are_refused(
    spender: Spender, payer: User, api: Callable[..., httpx.Client], echo: str, publish: Callable[..., str]
) -> None:
    """Expired, another channel's, another stack's, another key's, for another task, too large, out of range."""
    other, failing = Spender.opened(api, payer), publish(wasm("failing"))
    body = spender.body(1, echo)
    wrong: dict[str, str] = {
        "expired": spender.ticket(body, exp=int(time()) - 60),
        "too far ahead": spender.ticket(body, exp=int(time()) + 400 * 24 * 3_600),
        "another stack's": spender.ticket(body, iss="urn:quittance:another"),
        "a stranger's key": spender.ticket(body, key=OTHER_KEY),
        "another channel's key": spender.ticket(body, key=other.key),
        "another agent": spender.ticket(body, agent_id=failing),
        "another input": spender.ticket(body, input_sha256="0" * 64),
        "a smaller budget": spender.ticket(body, budget="0.04"),
        "a larger budget": spender.ticket(body, budget="0.06"),
        "another timeout": spender.ticket(body, timeout=3),
        "rules": spender.ticket(body, acceptance_sha256="0" * 64),
        "options": spender.ticket(body, options_sha256="0" * 64),
        "number 0": spender.ticket(body, n=0),
        "a negative number": spender.ticket(body, n=-1),
        "a number beyond all": spender.ticket(body, n=10**12),
    }
    for name, token in wrong.items():
        answer = spender.send(body, token)
        assert answer.status_code == 401, (name, answer.text)
        assert_refused(answer, 401, "ticket_invalid")
    unknown = "chn_" + "a" * 26
    nobodys = {**body, "task_id": f"{unknown}.1"}
    assert_refused(spender.send(nobodys, spender.ticket(nobodys, channel=unknown, n=1)), 401, "ticket_invalid")
    out_of_range = spender.body(21, echo)
    assert_refused(spender.send(out_of_range), 401, "ticket_invalid")
    assert "up to 20" in spender.send(out_of_range).json()["detail"]
    last_and_more = spender.body(20, echo, budget="0.06")
    assert_refused(spender.send(last_and_more), 401, "ticket_invalid")

    number = spender.ticket(body, n=2)
    assert_refused(spender.send(body, number), 400, "invalid_request", "task_id")
    theirs = other.ticket(other.body(1, echo))
    assert_refused(spender.send(other.body(1, echo), theirs), 400, "invalid_request", "channel_id")
    assert_refused(spender.send(spender.body(1, echo), theirs), 400, "invalid_request", "task_id")
    too_dear = spender.body(1, echo, budget="4.51")  # 91 tickets
    assert_refused(spender.send(too_dear), 422, "ticket_too_small")
    assert spender.found()["used"] == 0
    assert payer.http.get(f"/channels/{spender.id}/tickets").json()["tickets"] == []


def test_a_ticket_id_needs_its_ticket(spender: Spender, payer: User, echo: str) -> None:
    """An account cannot pay for a task under the id of a ticket, so nobody can occupy a channel's numbers."""
    refused = payer.http.post("/tasks/execute", json=spender.body(1, echo))
    assert_refused(refused, 400, "invalid_request", "task_id")


def test_a_mandate_pays_only_its_agents_and_amounts(
    payer: User, api: Callable[..., httpx.Client], echo: str, publish: Callable[..., str]
) -> None:
    spender = Spender.opened(api, payer, agents=[echo], max_per_task="0.04")
    assert_refused(spender.send(spender.body(1, publish(wasm("failing")), budget="0.04")), 403, "agent_not_allowed")
    assert_refused(spender.send(spender.body(1, echo, budget="0.040001")), 422, "ticket_too_small")
    assert spender.run(1, echo, budget="0.04")["success"] is True


def test_a_top_up_is_used_at_once_and_adds_once(
    payer: User, api: Callable[..., httpx.Client], echo: str, ledger: Ledger, sweep: Callable[[], None]
) -> None:
    """Environments that cached the channel before the top-up read it again."""
    spender = Spender.opened(api, payer, tickets=2)
    at_once([lambda number=number: answered(spender, spender.body(number, echo)) for number in (1, 2)])  # type: ignore[misc]
    assert_refused(spender.send(spender.body(60, echo)), 401, "ticket_invalid")
    body = {"topup_id": "more", "tickets": 100}
    path = f"/channels/{spender.id}/topups"
    added = at_once([lambda: payer.http.post(path, json=body)] * 6)
    assert {answer.status_code for answer in added} == {201}, [answer.text for answer in added]
    assert len({answer.content for answer in added}) == 1
    assert_refused(payer.http.post(path, json=body | {"tickets": 7}), 409, "movement_conflict")
    numbers = range(3, 33)
    answers = at_once([lambda number=number: answered(spender, spender.body(number, echo)) for number in numbers])  # type: ignore[misc]
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers][:3]
    closed = spender.finish(ledger, sweep)
    assert (closed["deposit"], closed["returned"]) == (102 * TICKET, 102 * TICKET - 32 * PRICE)
    assert_refused(payer.http.post(path, json=body | {"topup_id": "late"}), 409, "channel_closed")


def test_the_key_closes_a_channel_without_a_token(
    spender: Spender, echo: str, ledger: Ledger, sweep: Callable[[], None]
) -> None:
    path = f"/channels/{spender.id}/signed-close"
    for order in (
        "x.y.z",
        spender.order(key=OTHER_KEY),
        spender.order(iss="urn:quittance:another"),
        spender.order(channel="chn_" + "a" * 26),
        spender.order(exp=int(time()) - 100),
        spender.ticket(spender.body(1, echo)),
    ):
        assert_refused(spender.http.post(path, json={"order": order}), 401, "ticket_invalid")
    assert spender.found()["state"] == "open"
    order = spender.order()
    assert spender.http.post(path, json={"order": order}).json()["state"] == "closing"
    closed = spender.finish(ledger, sweep)
    assert closed["returned"] == closed["deposit"]


def test_an_asynchronous_task_is_paid_by_a_ticket(
    spender: Spender, payer: User, echo: str, ledger: Ledger, sweep: Callable[[], None]
) -> None:
    body = spender.body(1, echo)
    accepted = spender.send(body, prefer="respond-async")
    assert accepted.status_code == 202, accepted.text
    path = f"/tasks/{body['task_id']}/result"

    def settled() -> httpx.Response | None:
        found = payer.http.get(path)
        return found if found.status_code == 200 else None

    done = until(settled, "the task is not settled").json()
    assert (done["output"], done["payment_method"], done["amount_paid"]) == ("hello", "ticket", "0.00975")
    assert spender.send(body).json() == done
    assert spender.send(body, prefer="respond-async").json() == done
    assert_refused(spender.send(spender.body(1, echo, input="y")), 409, "ticket_used")
    assert spent_micro(spender, ledger, sweep) == PRICE


def test_direct_and_queued_tasks_are_paid_by_tickets(
    spender: Spender,
    payer: User,
    stack: Stack,
    aws: Callable[[str], Any],
    echo: str,
    ledger: Ledger,
    sweep: Callable[[], None],
) -> None:
    body = spender.body(1, echo)
    payload = body | {"ticket": spender.ticket(body)}
    done, failed = people.invoke(aws("lambda"), stack.functions["ExecuteFunction"], payload)
    assert not failed, done
    assert (done["output"], done["payment_method"]) == ("hello", "ticket")
    assert spender.send(body).json() == done
    both, failed = people.invoke(aws("lambda"), stack.functions["ExecuteFunction"], payload | {"user_id": payer.name})
    assert failed, both

    queued = spender.body(2, echo, input="queued")
    message = json.dumps(queued | {"ticket": spender.ticket(queued)})
    for _ in range(2):
        aws("sqs").send_message(QueueUrl=stack.queues["tasks"], MessageBody=message)

    def settled() -> dict[str, Any] | None:
        found = payer.http.get(f"/tasks/{queued['task_id']}/result")
        return found.json() if found.status_code == 200 else None

    assert until(settled, "the queue does not settle the task")["output"] == "queued"
    assert spent_micro(spender, ledger, sweep) == 2 * PRICE


def test_judged_tasks_are_paid_by_tickets(
    spender: Spender, publish: Callable[..., str], echo: str, ledger: Ledger, sweep: Callable[[], None]
) -> None:
    """The task's own judge is part of the tickets that pay the task."""
    judge = publish(wasm("coverage"), owner="judith")
    rules = {"judge": {"agent_id": judge, "budget": "0.02", "threshold": "0.75"}}
    body = spender.body(1, echo, input="to be or not", budget="0.06", acceptance=rules)
    answer = answered(spender, body, spender.ticket(body, acceptance_sha256=_rules_digest(rules)))
    assert (answer.status_code, answer.json()["success"]) == (200, True), answer.text
    done = answer.json()
    items = [item for item in ledger.tasks() if item.get("channel") == spender.id]
    cost = sum(item["paid"] + item["fee"] for item in items)
    assert len(items) == 2, items
    assert micro(done["judging"]) + micro(done["amount_paid"]) + micro(done["fee"]) == cost
    assert spent_micro(spender, ledger, sweep) == cost
    closed = spender.finish(ledger, sweep)
    assert (closed["swept"], closed["returned"]) == (2, closed["deposit"] - cost)


def test_balance_and_statement_follow_the_channel(
    payer: User, api: Callable[..., httpx.Client], echo: str, ledger: Ledger, sweep: Callable[[], None]
) -> None:
    """One line for the channel: what it has taken from the account so far."""

    def line() -> tuple[int, list[dict[str, Any]]]:
        found = payer.http.get("/accounts/me/statement").json()["lines"]
        return micro(payer.http.get("/accounts/me").json()["available"]), [
            each for each in found if each["kind"] == "channel"
        ]

    spender = Spender.opened(api, payer)
    available, (opened,) = line()
    assert (available, micro(opened["amount"]), opened["id"]) == (30 * CREDIT, -CREDIT, spender.id)
    for number in (1, 2, 3):
        spender.run(number, echo)
    assert line() == (available, [opened]), "tasks do not touch the account"
    spender.finish(ledger, sweep)
    available, (closed,) = line()
    assert (available, micro(closed["amount"])) == (31 * CREDIT - 3 * PRICE, -3 * PRICE)
    lines = payer.http.get("/accounts/me/statement").json()["lines"]
    assert sum(micro(each["amount"]) for each in lines) == available


def test_receipts_of_tickets_verify_offline_and_are_logged(  # noqa: PLR0917 - fixtures are arguments
    spender: Spender,
    payer: User,
    echo: str,
    api: Callable[..., httpx.Client],
    jwks: dict[str, Any],
    ledger: Ledger,
    sweep: Callable[[], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = spender.body(1, echo, input="all the same", budget="0.06")
    token = spender.ticket(body)
    done = answered(spender, body, token).json()
    claims = receipt.verify(done["receipt"], jwks)
    (item,) = [item for item in ledger.tasks() if item["task_id"] == body["task_id"]]
    assert_claims_match(claims, item)
    assert (claims["v"], claims["ticket"]["n"], claims["ticket"]["tickets"], claims["ticket"]["signed"]) == (
        3, 1, 2, token,
    )  # fmt: skip
    files = {"module": wasm("echo"), "input": b"all the same", "output": done["output"].encode()}
    files |= {"receipt": done["receipt"].encode(), "jwks": json.dumps(jwks).encode()}
    sweep_until_credited(sweep, ledger)
    files["proof"] = payer.http.get(f"/tasks/{body['task_id']}/proof").content
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    given = [word for name in ("module", "input", "output", "proof") for word in (f"--{name}", str(tmp_path / name))]
    verified = [str(tmp_path / "receipt"), "--keys", str(tmp_path / "jwks"), *given, "--replay"]
    assert verifier.main(verified) == 0, capsys.readouterr()


def test_strangers_see_nothing_of_a_channel(
    spender: Spender, echo: str, api: Callable[..., httpx.Client], deposit: Callable[..., None]
) -> None:
    spender.run(1, echo)
    stranger = User.new(api, deposit).http
    for answer in (
        stranger.get(f"/channels/{spender.id}"),
        stranger.get(f"/channels/{spender.id}/tickets"),
        stranger.post(f"/channels/{spender.id}/close"),
        stranger.post(f"/channels/{spender.id}/topups", json={"topup_id": "x", "tickets": 1}),
        stranger.get(f"/tasks/{spender.id}.1/result"),
    ):
        assert_refused(answer, 404, "not_found")
    assert spender.found()["state"] == "open"


def _rules_digest(rules: dict[str, Any]) -> str:
    """As a client computes it: the digest of the rules' canonical JSON."""
    return hashlib.sha256(json.dumps(rules, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
