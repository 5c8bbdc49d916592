"""From a change in a table's stream to the rows of the listings, and what owners, payers and searchers read of them."""

import csv
import itertools
import json
import random
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from quittance.api.identity import Caller
from quittance.api.models import AgentChange, AgentId, AgentRequest, StatedTaskId, TaskId, TaskRequest, TaskResult
from quittance.errors import InvalidRequestError, NotFoundError, PlatformUnavailableError
from quittance.ledger import reputation
from quittance.ledger.escrow import TaskState, escrow_id
from quittance.ledger.reputation import Standing
from quittance.limits import AGENT_WORDS_MAX, LISTING_READ_MAX, LISTING_SHARDS, QUERY_WORDS_MAX, WORD_CHARS_MAX
from quittance.run import Fault, Outcome
from quittance.store.dynamo import to_item
from quittance.store.listings import (
    AGENT_SLOTS,
    Ended,
    ListedAgent,
    ListedRun,
    ListedTask,
    Listings,
    Sort,
    Wanted,
    words,
)
from quittance.usecases import agents, channels, execute, listings, result, runs
from tests import tickets
from tests.functions.test_handlers import load
from tests.support import FLAT, Cloud, stream_record, wasm
from tests.usecases.test_notify import item, run

OWNER, ALICE = Caller("owner"), Caller("alice")


def rows(platform: Cloud, prefix: str = "") -> list[dict[str, Any]]:
    """The rows of the listings whose key starts with `prefix`, in order."""
    pages = platform.dynamodb.get_paginator("scan").paginate(TableName="ListingsTable")
    found = [row for page in pages for row in page["Items"] if row["pk"]["S"].startswith(prefix)]
    return sorted(found, key=lambda row: (row["pk"]["S"], row["sk"]["S"]))


def indexed(platform: Cloud) -> list[dict[str, Any]]:
    """The rows that are in the index of agents."""
    return [row for row in rows(platform, "AGENT#") if "term" in row]


def wipe(platform: Cloud) -> None:
    for row in rows(platform):
        platform.dynamodb.delete_item(TableName="ListingsTable", Key={"pk": row["pk"], "sk": row["sk"]})


def deliver(context: Any, *records: dict[str, Any]) -> list[str]:
    answer = load("listings").handler({"Records": [*records]}, context)
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def agent_record(platform: Cloud, agent_id: str, number: int = 1) -> dict[str, Any]:
    """The stream record of an agent's item as it is stored now."""
    key = {"pk": {"S": f"AGENT#{agent_id}"}}
    stored = platform._dynamodb.get_item(TableName="RegistryTable", Key=key)["Item"]
    return stream_record(number, {}, stored)


def records_of(platform: Cloud, agent_id: str, task_id: str, **more: Any) -> list[dict[str, Any]]:
    """The stream records of a task that runs now: it is funded, settled, and swept."""
    funded, settled = run(platform, agent_id, task_id, **more)
    swept = settled | {"swept_ms": {"N": "1"}}
    return [stream_record(n, *change) for n, change in enumerate([({}, funded), (funded, settled), (settled, swept)])]


def set_standing(platform: Cloud, agent_id: str, standing: Standing) -> dict[str, Any]:
    """Stores an agent's standing; returns the stream record."""
    stored = {"pk": {"S": f"REP#{agent_id}"}, "standing": {"S": reputation.serialise(standing)}}
    before = platform._dynamodb.get_item(TableName="LedgerTable", Key={"pk": stored["pk"]}).get("Item", {})
    platform._dynamodb.put_item(TableName="LedgerTable", Item=stored)
    return stream_record(1, before, stored)


def publish(platform: Cloud, name: str, description: str = "", price: str = "0.01", owner: str = "owner") -> str:
    """Publishes an agent and lists it; returns its id."""
    agent_id = platform.publish(wasm("echo"), tariff=FLAT | {"price": price}, owner=owner)
    platform._dynamodb.update_item(
        TableName="RegistryTable", Key={"pk": {"S": f"AGENT#{agent_id}"}},
        UpdateExpression="SET #name = :name, description = :description", ExpressionAttributeNames={"#name": "name"},
        ExpressionAttributeValues={":name": {"S": name}, ":description": {"S": description}},
    )  # fmt: skip
    listings.list_agent(platform, agent_id)
    return agent_id


# Runs and tasks.


def test_settled_task_is_listed_for_its_payer_and_the_agents_owner(platform: Cloud, context: Any) -> None:
    agent_id = platform.publish(wasm("echo"))
    funded, settled, swept = records_of(platform, agent_id, "t")
    assert deliver(context, funded) == []
    (pending,) = runs.tasks(platform, ALICE).tasks
    assert (pending.task_id, pending.agent_id, pending.state, pending.settled_at) == ("t", agent_id, "pending", None)
    assert runs.page(platform, OWNER, agent_id).runs == []
    assert deliver(context, settled, swept) == []
    (done,) = runs.tasks(platform, ALICE).tasks
    assert (done.state, done.amount_paid_micro, done.amount_refunded_micro, done.fee_micro) == (
        "succeeded", 9_750, 40_000, 250,
    )  # fmt: skip
    (listed,) = runs.page(platform, OWNER, agent_id).runs
    claims = settled["dynamodb"]["NewImage"]
    assert (listed.run_id, listed.success, listed.outcome, listed.fault) == (
        escrow_id("alice", "t"), True, Outcome.SUCCEEDED, Fault.NONE,
    )  # fmt: skip
    assert listed.settled_at == int(claims["settled_ms"]["N"])
    assert listed.module_sha256 == claims["module_sha256"]["S"]
    assert listed.fuel_used > 0
    assert (listed.amount_paid_micro, listed.fee_micro, listed.message) == (9_750, 250, None)


def test_payer_and_log_are_hidden_unless_the_payer_shares_them(platform: Cloud, context: Any) -> None:
    agent_id = platform.publish(wasm("echo"))
    (_, settled, _) = records_of(platform, agent_id, "secret-name")
    deliver(context, settled)
    assert "alice" not in json.dumps(rows(platform, "RUNS#"))
    assert "secret-name" not in json.dumps(rows(platform, "RUNS#"))
    (listed,) = runs.page(platform, OWNER, agent_id).runs
    assert (listed.payer, listed.log_shared) == (None, False)
    one = runs.read(platform, OWNER, agent_id, listed.run_id)
    assert (one.payer, one.log) == (None, None)
    escrow = platform.ledger.find(listed.run_id)
    assert escrow is not None
    values = platform.ledger._escrow_values(replace(escrow, share_payer=True, share_log=True))
    shared = to_item({name: value for name, value in values.items() if name.startswith("share")})
    log = {"log": {"B": b"hi"}, "log_bytes": {"N": "2"}}
    changed = {**item(platform, "secret-name"), **shared, **log}
    platform._dynamodb.put_item(TableName="LedgerTable", Item=changed)
    wipe(platform)
    deliver(context, stream_record(9, {"state": {"S": "funded"}}, item(platform, "secret-name")))
    (listed,) = runs.page(platform, OWNER, agent_id).runs
    assert (listed.payer, listed.log_shared) == ("alice", True)
    assert runs.read(platform, OWNER, agent_id, listed.run_id).log == "hi"


def test_only_the_owner_reads_runs_and_only_of_that_agent(platform: Cloud, context: Any) -> None:
    agent_id, other = platform.publish(wasm("echo")), platform.publish(wasm("echo"))
    deliver(context, *records_of(platform, agent_id, "t"))
    run_id = escrow_id("alice", "t")
    for caller in (ALICE, Caller("stranger")):
        with pytest.raises(NotFoundError):
            runs.page(platform, caller, agent_id)
        with pytest.raises(NotFoundError):
            runs.read(platform, caller, agent_id, run_id)
    for wrong in ((other, run_id), (agent_id, "a" * 26)):
        with pytest.raises(NotFoundError):
            runs.read(platform, OWNER, *wrong)
    with pytest.raises(NotFoundError):
        runs.page(platform, OWNER, "agt_unknown")
    assert runs.tasks(platform, OWNER).tasks == []


def test_failed_run_is_listed_with_its_message_and_fault(platform: Cloud, context: Any) -> None:
    agent_id = platform.publish(wasm("echo"), acceptance={"max_bytes": 1})
    deliver(context, *records_of(platform, agent_id, "t"))
    assert runs.page(platform, OWNER, agent_id, outcome="succeeded").runs == []
    (failed,) = runs.page(platform, OWNER, agent_id, outcome="failed").runs
    assert (failed.success, failed.outcome, failed.fault) == (False, Outcome.REJECTED, Fault.AGENT)
    assert "does not meet the agent's rules" in (failed.message or "")
    (task,) = runs.tasks(platform, ALICE, state="failed").tasks
    assert (task.outcome, task.amount_refunded_micro) == (Outcome.REJECTED, 50_000)


def test_a_judges_run_is_listed_for_its_owner_but_is_no_task(platform: Cloud, context: Any) -> None:
    from tests.usecases.test_judges import judged_by, saying

    judge = platform.publish(saying("1"), owner="judge-owner")
    agent_id = platform.publish(wasm("echo"))
    rules = judged_by(judge)
    body = {"task_id": "t", "agent_id": agent_id, "input": "x", "budget": "0.5", "acceptance": rules}
    execute.execute(platform, "alice", TaskRequest.model_validate(body))
    deliver(
        context, *(stream_record(n, {"state": {"S": "funded"}}, each) for n, each in enumerate(platform.items("ESC#")))
    )
    (listed,) = runs.page(platform, Caller("judge-owner"), judge).runs
    assert (listed.success, listed.payer) == (True, None)
    assert [task.task_id for task in runs.tasks(platform, ALICE).tasks] == ["t"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_records_in_any_order_and_repetition_give_the_same_rows(data: Any, platform: Cloud, context: Any) -> None:
    if "records" not in platform.__dict__:
        agent_id = platform.publish(wasm("echo"))
        failing = platform.publish(wasm("echo"), acceptance={"max_bytes": 1})
        records = [
            *records_of(platform, agent_id, "a"), *records_of(platform, failing, "b"), agent_record(platform, agent_id),
            set_standing(platform, agent_id, Standing(outcomes=2, successes=1, failures=1)),
        ]  # fmt: skip
        assert deliver(context, *records) == []
        platform.__dict__["records"] = records, rows(platform)
    records, expected = platform.__dict__["records"]
    wipe(platform)
    repeated = data.draw(st.lists(st.sampled_from(range(len(records))), max_size=10))
    order = data.draw(st.permutations([*range(len(records)), *repeated]))
    cuts = data.draw(st.sets(st.integers(1, len(order))))
    for start, end in itertools.pairwise(sorted({0, len(order), *cuts})):
        assert deliver(context, *(records[number] for number in order[start:end])) == []
    assert rows(platform) == expected


def test_unreadable_record_fails_alone(platform: Cloud, context: Any) -> None:
    agent_id = platform.publish(wasm("echo"))
    funded, settled, _ = records_of(platform, agent_id, "t")
    broken = json.loads(json.dumps(settled))
    del broken["dynamodb"]["NewImage"]["paid"]
    broken["dynamodb"]["SequenceNumber"] = "9"
    assert deliver(context, broken, funded, settled) == ["9"]
    assert [task.state for task in runs.tasks(platform, ALICE).tasks] == ["succeeded"]


# Channels, and tasks that tickets pay.


def channel_records(platform: Cloud, first: int = 100) -> list[dict[str, Any]]:
    """The stream records of all channels that are stored, as they were inserted."""
    return [stream_record(first + n, {}, item) for n, item in enumerate(platform.items("CHAN#"))]


def listed_channels(platform: Cloud, limit: int = 100, payer: Caller = ALICE) -> list[str]:
    """The ids of all channels of a payer, page by page."""
    ids: list[str] = []
    after = None
    while True:
        page = channels.page(platform, payer, limit, after)
        assert len(page.channels) <= limit
        ids += [channel.channel_id for channel in page.channels]
        after = page.next
        if after is None:
            return ids


def test_channels_are_listed_for_their_payer_newest_first(platform: Cloud, context: Any) -> None:
    platform.deposit("bob", 1_000_000)
    opened = []
    for number in range(4):
        opened.append(tickets.opened(platform, salt=f"s{number}", tickets=1).channel_id)
        platform.skew_ms += 1_000
    bobs = tickets.opened(platform, payer="bob", tickets=1).channel_id
    assert listed_channels(platform) == []
    records = channel_records(platform)
    assert deliver(context, *records, *records) == []
    assert listed_channels(platform) == opened[::-1]
    assert listed_channels(platform, limit=1) == opened[::-1]
    assert listed_channels(platform, payer=Caller("bob")) == [bobs]
    assert listed_channels(platform, payer=OWNER) == []
    (row,) = rows(platform, "CHANNELS#bob#")
    assert set(row) == {"pk", "sk"}, "what changes is read from the ledger"
    channels.close(platform, ALICE, opened[0])
    assert channels.page(platform, ALICE).channels[-1].state == "closing"


def test_channels_of_one_millisecond_are_paged_without_loss(cloud: Cloud) -> None:
    ids = [f"chn_{number:026}".translate(str.maketrans("0123456789", "abcdefghij")) for number in range(30)]
    for number, channel_id in enumerate(ids):
        cloud.listings.add_channel(channel_id, payer="alice", opened_ms=number // 10)
    read: list[str] = []
    after = None
    while True:
        page, after = cloud.listings.channels("alice", limit=7, after=after)
        read += page
        if after is None:
            break
    assert read == sorted(ids, reverse=True)


@pytest.mark.parametrize("after", ["x", "1~x", "1~chn_x", "1~" + "a" * 26])
def test_wrong_cursors_of_channels_are_refused(platform: Cloud, after: str) -> None:
    with pytest.raises(InvalidRequestError, match="after"):
        channels.page(platform, ALICE, after=after)


def test_backfill_lists_channels_and_tickets_tasks(platform: Cloud) -> None:
    channel = tickets.opened(platform)
    agent_id = platform.publish(wasm("echo"))
    for n, budget in ((1, "0.1"), (3, "0.05")):
        task = tickets.task(channel.channel_id, n, agent_id, budget=budget)
        execute.redeem(platform, channel.channel_id, task, tickets.ticket(platform, task))
    platform.channels.begin_closing(platform.channels.get(channel.channel_id), close_ms=0)
    platform.channels.count_out(platform.channels.get(channel.channel_id), now_ms=1)
    wipe(platform)
    assert listings.backfill(platform, {"of": "ledger"})["failed"] == 0
    assert listed_channels(platform) == [channel.channel_id]
    listed = runs.tasks(platform, ALICE).tasks
    assert {task.task_id for task in listed} == {f"{channel.channel_id}.1", f"{channel.channel_id}.3"}


def test_ticket_settled_by_its_first_write_is_listed(platform: Cloud, context: Any) -> None:
    channel = tickets.opened(platform)
    agent_id = platform.publish(wasm("echo"))
    task = tickets.task(channel.channel_id, 2, agent_id, budget="0.1")
    execute.redeem(platform, channel.channel_id, task, tickets.ticket(platform, task))
    items = platform.items("ESC#")
    assert len(items) == 2, "two numbers, of one task"
    assert deliver(context, *(stream_record(n, {}, each) for n, each in enumerate(items))) == []
    (done,) = runs.tasks(platform, ALICE).tasks
    assert (done.task_id, done.state, done.amount_paid_micro) == (task.task_id, "succeeded", 9_750)
    (listed,) = runs.page(platform, OWNER, agent_id).runs
    assert (listed.success, listed.payer, listed.amount_paid_micro) == (True, None, 9_750)
    assert len(rows(platform, "TASKS#")) == len(rows(platform, "RUNS#")) == 1


def test_a_tickets_judge_is_a_run_but_no_task(platform: Cloud, context: Any) -> None:
    from tests.usecases.test_judges import judged_by, saying

    platform.deposit("alice", 9_000_000)
    channel = tickets.opened(platform, ticket_value="0.5")
    judge = platform.publish(saying("1"), owner="judge-owner")
    task = tickets.task(
        channel.channel_id, 1, platform.publish(wasm("echo")), budget="0.5", acceptance=judged_by(judge)
    )
    execute.redeem(platform, channel.channel_id, task, tickets.ticket(platform, task))
    items = platform.items("ESC#")
    assert len(items) == 2
    funded = [each | {"state": {"S": "funded"}} for each in items]
    changes = [(before, after) for before, after in zip(funded, items, strict=True)]
    assert deliver(context, *(stream_record(n, *change) for n, change in enumerate(changes))) == []
    assert [each.task_id for each in runs.tasks(platform, ALICE).tasks] == [task.task_id]
    assert [each.success for each in runs.page(platform, Caller("judge-owner"), judge).runs] == [True]


def listed_run(number: int, settled_ms: int, ended: Ended = Ended.SUCCEEDED) -> ListedRun:
    run_id = f"{number:026}".translate(str.maketrans("0123456789", "abcdefghij"))
    return ListedRun(run_id, "agt", settled_ms, ended, Outcome.SUCCEEDED, Fault.NONE, "m", 1, 1, 1, 1, 1, "")


def cut_short(cloud: Cloud, rng: random.Random) -> Listings:
    """The listings with a client whose queries may end early, as DynamoDB's end at 1 MB, but read two rows at least."""
    client = cloud.listings._client

    def query(**asked: Any) -> Any:
        return client.query(**asked | {"Limit": min(asked["Limit"], rng.choice((2, 3, 5, 1_000)))})

    return Listings(cast("Any", SimpleNamespace(query=query)), table="ListingsTable", left_ms=lambda: 60_000)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**9), limit=st.integers(1, 9), number=st.integers(0, 40))
def test_paging_under_inserts_loses_and_repeats_nothing(seed: int, limit: int, number: int, cloud: Cloud) -> None:
    rng = random.Random(seed)
    wipe(cloud)
    store = cut_short(cloud, rng)
    times = [rng.randrange(1, 12) for _ in range(number)]
    first = [listed_run(each, at_ms, rng.choice([*Ended])) for each, at_ms in enumerate(times)]
    for each in first:
        cloud.listings.add_run(each)
    read: list[str] = []
    after, fresh = None, itertools.count(number)
    while True:
        page, after = store.runs("agt", ended=None, limit=limit, after=after)
        read += [each.run_id for each in page]
        assert len(page) <= limit
        if after is None:
            break
        cloud.listings.add_run(listed_run(next(fresh), rng.randrange(1, 20)))
    assert len(read) == len(set(read))
    assert {each.run_id for each in first} <= set(read)
    by_id = {each.run_id: each.settled_ms for each in first}
    order = [by_id[run_id] for run_id in read if run_id in by_id]
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize("number", [LISTING_READ_MAX * LISTING_SHARDS // 8, LISTING_READ_MAX * LISTING_SHARDS + 200])
def test_filtered_pages_reach_every_task_with_bounded_reads(number: int, cloud: Cloud) -> None:
    for each in range(number):
        task_id = escrow_id("alice", str(each))
        cloud.listings.add_task(
            ListedTask(task_id, "alice", str(each), "agt_b" if each % 97 == 0 else "agt_a", TaskState.PENDING, each)
        )
    read: list[str] = []
    after, pages = None, 0
    while True:
        found, after = cloud.listings.tasks("alice", agent_id="agt_b", limit=5, after=after)
        read += [task.task_id for task in found]
        pages += 1
        if after is None:
            break
    assert read == [str(each) for each in reversed(range(number)) if each % 97 == 0]
    assert pages <= number // LISTING_READ_MAX + len(read) // 5 + 2


def test_time_bounds_include_since_and_exclude_until(cloud: Cloud) -> None:
    for number, at_ms in enumerate((9, 10, 11, 20)):
        cloud.listings.add_run(listed_run(number, at_ms))

    def between(since_ms: int, until_ms: int) -> list[int]:
        found, _ = cloud.listings.runs("agt", ended=None, since_ms=since_ms, until_ms=until_ms, limit=9, after=None)
        return [each.settled_ms for each in found]

    assert between(10, 20) == [11, 10]
    assert between(20, 21) == [20]
    assert between(21, 20) == []
    assert between(12, 12) == []


@pytest.mark.parametrize("after", ["x", "1~x", "1~" + "a" * 27, "~", "1" * 16 + "~" + "a" * 26])
def test_wrong_cursors_are_refused(platform: Cloud, after: str) -> None:
    agent_id = platform.publish(wasm("echo"))
    with pytest.raises(InvalidRequestError, match="after"):
        runs.tasks(platform, ALICE, after=after)
    with pytest.raises(InvalidRequestError, match="after"):
        runs.page(platform, OWNER, agent_id, after=after)
    with pytest.raises(InvalidRequestError, match="after"):
        agents.page(platform, sort=Sort.PRICE, after=after)


# Search.


def found(platform: Cloud, **asked: Any) -> list[str]:
    """The names of all agents of a search, page by page."""
    names: list[str] = []
    after = None
    while True:
        page = agents.page(platform, **asked, after=after)
        names += [agent.name for agent in page.agents]
        after = page.next
        if after is None:
            return names


def set_tags(platform: Cloud, agent_id: str, *tags: str) -> None:
    """Give an agent's version a contract with these tags."""
    sha256 = f"contract of {agent_id}"
    contract = {"pk": {"S": f"CONTRACT#{sha256}"}, "contract": {"S": json.dumps({"tags": tags})}}
    platform._dynamodb.put_item(TableName="RegistryTable", Item=contract)
    platform._dynamodb.update_item(
        TableName="RegistryTable", Key={"pk": {"S": f"AGENT#{agent_id}"}},
        UpdateExpression="SET contract_sha256 = :sha256", ExpressionAttributeValues={":sha256": {"S": sha256}},
    )  # fmt: skip


def test_agents_are_found_by_words_tag_owner_price_and_standing(platform: Cloud) -> None:
    publish(platform, "Word count", "Counts words, quickly.", price="0.03")
    publish(platform, "Echo", "Repeats words", price="0.01", owner="other")
    tagged = publish(platform, "Straße", price="0.02")
    set_tags(platform, tagged, "text", "two-words")
    set_standing(platform, tagged, Standing(reference_tenths=725, outcomes=4, successes=3, failures=1))
    listings.list_agent(platform, tagged)
    assert found(platform, q="words") == ["Straße", "Echo", "Word count"], "two-words is two words"
    assert found(platform, q="WORDS counts") == ["Word count"]
    assert found(platform, q="word") == ["Word count"], "whole words only"
    assert found(platform, q="STRASSE") == ["Straße"]
    assert found(platform, tag="text") == found(platform, tag="two-words") == ["Straße"]
    assert found(platform, tag="two") == []
    assert found(platform, q="words", owner="other") == ["Echo"]
    assert found(platform, sort=Sort.PRICE) == ["Echo", "Straße", "Word count"]
    assert found(platform, max_price=20_000) == ["Straße", "Echo"]
    assert found(platform, max_price=20_000, sort=Sort.PRICE) == ["Echo", "Straße"]
    assert found(platform, max_price=9_999) == []
    assert found(platform, min_score=725) == found(platform, min_success_rate=750) == ["Straße"]
    assert found(platform, min_score=726) == found(platform, min_success_rate=751) == []
    assert found(platform, min_success_rate=0) == ["Straße"], "others have no results"
    assert found(platform, sort=Sort.SCORE)[0] == found(platform, sort=Sort.SUCCESS_RATE)[0] == "Straße"
    (best,) = agents.page(platform, tag="text").agents
    assert best.standing is not None
    assert (best.standing.score, best.standing.success_rate) == (725, 0.75)


def test_tags_are_found_in_the_contract_that_an_agent_names(platform: Cloud) -> None:
    agent_id = publish(platform, "Echo")
    set_tags(platform, agent_id, "text", "nlp")
    listings.list_agent(platform, agent_id)
    assert found(platform, tag="nlp") == found(platform, q="text") == ["Echo"]


def test_compute_counts_in_the_highest_price(platform: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent_id = publish(platform, "Echo", price="0.01")
    priced = platform.settings.model_copy(update={"compute_run_micro": 10})
    monkeypatch.setattr(platform, "settings", priced)
    least_micro = agents.estimate(platform, agent_id).least_price_micro
    assert found(platform, max_price=least_micro) == ["Echo"]
    assert found(platform, max_price=least_micro - 1) == []


def test_plain_list_of_agents_is_as_before(platform: Cloud) -> None:
    publish(platform, "Echo")
    wipe(platform)
    assert [agent.name for agent in agents.page(platform).agents] == ["Echo"]
    assert [agent.name for agent in agents.page(platform, owner="owner", q="").agents] == ["Echo"]


def test_changed_and_retired_agents_leave_no_old_rows(platform: Cloud, context: Any) -> None:
    agent_id = publish(platform, "Old name")
    assert deliver(context, agent_record(platform, agent_id)) == []
    platform._dynamodb.update_item(
        TableName="RegistryTable", Key={"pk": {"S": f"AGENT#{agent_id}"}}, UpdateExpression="SET #name = :name",
        ExpressionAttributeNames={"#name": "name"}, ExpressionAttributeValues={":name": {"S": "New name"}},
    )  # fmt: skip
    deliver(context, agent_record(platform, agent_id))
    assert found(platform, q="old") == []
    assert found(platform, q="new") == found(platform, q="name") == ["New name"]
    agents.retire(platform, OWNER, agent_id)
    assert found(platform, q="new") == [], "the registry knows already"
    deliver(context, agent_record(platform, agent_id))
    assert indexed(platform) == []


def test_messages_to_an_owner_contain_nothing_of_the_output(platform: Cloud) -> None:
    """The agent writes what it read as a name, which its own rules refuse: the message must not pass it on."""
    platform.deposit("alice", 10_000_000)
    agent_id = platform.publish(wasm("echo"), acceptance={"json_schema": {"additionalProperties": False}})
    for number, secret in enumerate(['{"SECRET": 1}', '{"SECRET (max_bytes).": 1}', '{"SECRET": 1, "SECRET": 2}']):
        task = {"task_id": f"t{number}", "agent_id": agent_id, "input": secret, "budget": "0.5"}
        answer = execute.execute(platform, "alice", TaskRequest.model_validate(task))
        assert isinstance(answer, TaskResult)
        assert answer.error
        assert answer.error.code == "rejected"
        assert number == 2 or "SECRET" in answer.error.message, "the payer reads where"
        escrow = platform.ledger.find(escrow_id("alice", f"t{number}"))
        assert escrow
        listings.list_escrow(platform, escrow)
        owners = result.read(platform, OWNER, f"t{number}", user="alice")
        assert isinstance(owners, TaskResult)
        assert owners.error
        run_page = runs.page(platform, OWNER, agent_id)
        one = runs.read(platform, OWNER, agent_id, escrow.escrow_id)
        for message in (owners.error.message, one.message, *(each.message for each in run_page.runs)):
            assert message == "The output does not meet the agent's rules: see json_schema." or (
                number == 2 and "SECRET" not in str(message)
            )


def test_agent_is_listed_once_for_all_its_changes_in_a_batch(
    platform: Cloud, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes are free, so an owner who makes very many must not hold up the listing of other agents."""
    busy, other = publish(platform, "Busy"), publish(platform, "Other")
    listed: list[str] = []
    list_agent = listings.list_agent

    def counted(of: Any, agent_id: str) -> None:
        listed.append(agent_id)
        list_agent(of, agent_id)

    monkeypatch.setattr(listings, "list_agent", counted)
    records = [agent_record(platform, busy, number) for number in range(9)]
    records.append(set_standing(platform, busy, Standing(outcomes=2, successes=2)))
    assert deliver(context, *records, agent_record(platform, other, 9)) == []
    assert listed == [busy, other]
    assert sorted(found(platform)) == ["Busy", "Other"]
    assert deliver(context, agent_record(platform, busy)) == []
    assert listed == [busy, other, busy], "another batch may have newer changes"


def test_failed_listing_is_tried_for_the_next_record(
    platform: Cloud, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_id = publish(platform, "Echo")
    fails = iter([True])
    list_agent = listings.list_agent

    def failing(of: Any, listed: str) -> None:
        if next(fails, False):
            raise PlatformUnavailableError
        list_agent(of, listed)

    monkeypatch.setattr(listings, "list_agent", failing)
    assert deliver(context, agent_record(platform, agent_id, 1), agent_record(platform, agent_id, 2)) == ["1"]
    assert found(platform, q="echo") == ["Echo"]


def test_changing_words_leaves_as_many_rows_as_an_agent_may_have(platform: Cloud) -> None:
    """No function deletes a row, and every listing of an agent reads all of them: each row must be used again."""
    agent_id = publish(platform, "Echo")
    for number in range(8):
        wanted = " ".join(f"w{number}x{each}" for each in range(AGENT_WORDS_MAX + 5))
        agents.change(platform, OWNER, agent_id, AgentChange(description=wanted))
        listings.list_agent(platform, agent_id)
        assert len(rows(platform, "AGENT#")) <= len(AGENT_SLOTS)
        assert found(platform, q=f"w{number}x0") == ["Echo"]
        assert number == 0 or found(platform, q=f"w{number - 1}x0") == []
    assert len(indexed(platform)) == len({row["term"]["S"] for row in indexed(platform)})


def test_terms_keep_their_rows_when_others_change(platform: Cloud) -> None:
    """A search that pages by a term does not lose or repeat an agent whose other words change."""
    agent_id = publish(platform, "Echo")
    agents.change(platform, OWNER, agent_id, AgentChange(description="zeta beta"))
    listings.list_agent(platform, agent_id)
    before = {row["term"]["S"]: row["sk"]["S"] for row in indexed(platform)}
    agents.change(platform, OWNER, agent_id, AgentChange(description="alpha beta gamma"))
    listings.list_agent(platform, agent_id)
    now = {row["term"]["S"]: row["sk"]["S"] for row in indexed(platform)}
    assert {term: now[term] for term in ("*", "owner:owner", "word:echo", "word:beta")}.items() <= before.items()
    assert set(now) == {"*", "owner:owner", "word:echo", "word:alpha", "word:beta", "word:gamma"}


def test_term_in_two_slots_is_taken_out_of_one(platform: Cloud) -> None:
    """Two invocations at once may give one term two slots, or rows of an earlier commit have other keys."""
    agent_id = publish(platform, "Echo")
    listings.list_agent(platform, agent_id)
    (row,) = (row for row in platform.listings.rows_of(agent_id).values() if row.term == "word:echo")
    platform.listings.put_agent(row.agent, row.term, AGENT_SLOTS[-1])
    platform.listings.put_agent(row.agent, row.term, "word:echo")
    listings.list_agent(platform, agent_id)
    assert sorted(each["term"]["S"] for each in indexed(platform)) == ["*", "owner:owner", "word:echo"]


def test_unactivated_and_unknown_agents_are_in_no_index(platform: Cloud, context: Any) -> None:
    body = AgentRequest.model_validate({"name": "own", "tariff": FLAT})
    agent_id = agents.register(platform, OWNER, body).agent_id
    deliver(context, agent_record(platform, agent_id))
    listings.list_agent(platform, "agt_unknown")
    assert rows(platform) == []


def test_unchanged_standing_writes_and_reads_nothing(
    platform: Cloud, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_id = publish(platform, "Echo")
    set_standing(platform, agent_id, Standing(outcomes=2, successes=2))
    same = set_standing(platform, agent_id, Standing(outcomes=3, successes=3))
    with monkeypatch.context() as patch:
        patch.setattr(listings, "list_agent", lambda *_: pytest.fail("nothing displayed has changed"))
        assert deliver(context, same) == []
    assert deliver(context, set_standing(platform, agent_id, Standing(outcomes=4, successes=3, failures=1))) == []
    (row,) = (row for row in indexed(platform) if row["term"]["S"] == "*")
    assert row["success_rank"]["N"] == "751"


def test_late_writer_does_not_bring_back_an_old_state(platform: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """One invocation has read the agent, stalls, and writes after another one has listed the agent's new state."""
    agent_id = publish(platform, "Echo")
    wipe(platform)
    read_rows = platform.listings.rows_of
    stalls = iter([True])

    def stalling(listed: str) -> Any:
        if next(stalls, False):
            set_standing(platform, agent_id, Standing(reference_tenths=900, outcomes=1, successes=1))
            listings.list_agent(platform, agent_id)
        return read_rows(listed)

    monkeypatch.setattr(platform.listings, "rows_of", stalling)
    listings.list_agent(platform, agent_id)
    assert {row["score_tenths"]["N"] for row in indexed(platform)} == {"900"}


def test_agent_that_keeps_changing_is_delivered_again(platform: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    agent_id = publish(platform, "Echo")
    scores = itertools.count(1)
    monkeypatch.setattr(listings, "_shown", lambda *_: (next(scores), 0))
    with pytest.raises(PlatformUnavailableError):
        listings.list_agent(platform, agent_id)


def test_words_of_an_agent_and_of_a_query_are_bounded(platform: Cloud) -> None:
    many = " ".join(f"w{number}" for number in range(AGENT_WORDS_MAX + 1))
    publish(platform, "Echo", many)
    assert found(platform, q=f"w{AGENT_WORDS_MAX - 2}") == ["Echo"], "the name is a word too"
    assert found(platform, q=f"w{AGENT_WORDS_MAX - 1}") == []
    eight = " ".join(f"w{number}" for number in range(QUERY_WORDS_MAX))
    assert found(platform, q=eight) == ["Echo"]
    with pytest.raises(InvalidRequestError, match="at most 8 different words"):
        found(platform, q=eight + " more")
    with pytest.raises(InvalidRequestError, match="letter or digit"):
        found(platform, q=" !? ")
    assert words("a" * (WORD_CHARS_MAX + 1)) == words("a" * WORD_CHARS_MAX) == ("a" * WORD_CHARS_MAX,)
    assert words("ﬁne FINE, Ⅷ-x_y") == ("fine", "viii", "x", "y")


def test_cursor_of_another_order_is_refused(platform: Cloud) -> None:
    for number in range(3):
        publish(platform, f"Echo {number}")
    page = agents.page(platform, sort=Sort.PRICE, limit=1)
    assert page.next is not None
    assert agents.page(platform, sort=Sort.PRICE, limit=1, after=page.next).agents
    for other in ({"sort": Sort.SCORE}, {"q": "echo"}, {}):
        with pytest.raises(InvalidRequestError, match="after"):
            agents.page(platform, **other, limit=1, after=page.next)


def listed_agent(number: int, **more: Any) -> ListedAgent:
    values = {"price_micro": number % 7, "score_tenths": number % 5, "success_rank": number % 3} | more
    return ListedAgent(f"agt_{number:05}", "owner", number, **values, words=("echo", f"n{number % 4}"), tags=())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, 9), number=st.integers(0, 30), sort=st.sampled_from([*Sort]), price=st.integers(0, 7))
def test_search_pages_have_every_agent_once_in_order(
    limit: int, number: int, sort: Sort, price: int, cloud: Cloud
) -> None:
    wipe(cloud)
    listed = [listed_agent(each) for each in range(number)]
    for each in listed:
        for slot, term in zip(AGENT_SLOTS, each.terms, strict=False):
            cloud.listings.put_agent(each, term, slot)
    wanted = Wanted(words=("echo", "n1"), price_micro_max=price)
    store = cut_short(cloud, random.Random(limit))
    read: list[ListedAgent] = []
    after = None
    for fresh in itertools.count(number):
        page = store.search(wanted, sort=sort, limit=limit, after=after)
        read += page.agents
        after = page.after
        if after is None:
            break
        if sort is Sort.NEWEST:
            cloud.listings.put_agent(listed_agent(fresh), "word:echo", AGENT_SLOTS[fresh % 5])
    expected = [each for each in listed if "n1" in each.words and each.price_micro <= price]
    assert len({each.agent_id for each in read}) == len(read)
    assert {each.agent_id for each in expected} == {each.agent_id for each in read}
    name = {"newest": "created_ms", "price": "price_micro", "score": "score_tenths"}.get(sort, "success_rank")
    values = [getattr(each, name) for each in read]
    assert values == sorted(values, reverse=sort is not Sort.PRICE)


# Backfill.


def test_backfill_lists_what_was_there_before(platform: Cloud, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agent_id = platform.publish(wasm("echo"))
    deliver(context, *records_of(platform, agent_id, "a"), agent_record(platform, agent_id))
    expected = rows(platform)
    wipe(platform)
    monkeypatch.setattr(listings, "BACKFILL_PIECE_ITEMS", 1)
    monkeypatch.setattr(listings, "BACKFILL_PIECES_MAX", 2)
    handler = load("listings").handler
    answer: Any = {"backfill": {}}
    calls = 0
    while answer["backfill"] is not None:
        answer = json.loads(json.dumps(handler({"backfill": answer["backfill"]}, context)))
        assert answer["failed"] == 0
        calls += 1
    assert calls >= 2
    assert rows(platform) == expected
    assert handler({"backfill": {}}, context)["listed"] > 0
    assert rows(platform) == expected, "it may be repeated"


def test_backfill_leaves_out_and_counts_damaged_items(platform: Cloud, context: Any) -> None:
    agent_id = platform.publish(wasm("echo"))
    for task_id in ("a", "b"):
        run(platform, agent_id, task_id)
    key = {"pk": {"S": f"ESC#{escrow_id('alice', 'a')}"}}
    platform._dynamodb.update_item(TableName="LedgerTable", Key=key, UpdateExpression="REMOVE paid")
    answer = load("listings").handler({"backfill": {}}, context)
    assert answer == {"backfill": None, "listed": 2, "failed": 1}
    assert [task.task_id for task in runs.tasks(platform, ALICE).tasks] == ["b"]


def test_backfill_ends_before_its_time_does(platform: Cloud, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "left_ms", lambda: 14_999)
    answer = load("listings").handler({"backfill": {}}, context)
    assert answer == {"backfill": {"of": "ledger", "after": None}, "listed": 0, "failed": 0}


def test_backfill_names_a_wrong_field(platform: Cloud, context: Any) -> None:
    with pytest.raises(InvalidRequestError, match="of"):
        load("listings").handler({"backfill": {"of": "nothing"}}, context)


# Over HTTP.


def get(context: Any, function: str, path: str, query: dict[str, str] | None = None, account: str = "alice") -> Any:
    """The answer of a function to a GET request."""
    event = {
        "resource": "/api/v1/economic" + path,
        "path": "/api/v1/economic" + path,
        "httpMethod": "GET",
        "headers": {},
        "queryStringParameters": query,
        "multiValueQueryStringParameters": {name: [value] for name, value in (query or {}).items()} or None,
        "requestContext": {
            "requestId": "r", "httpMethod": "GET", "authorizer": {"sub": account},
            "path": "/prod/api/v1/economic" + path,
        },
        "body": None,
    }  # fmt: skip
    return load(function).handler(event, context)


WRONG = {
    ("result", "/tasks"): {
        "since": ["yesterday", "2026-11-30", "2026-11-30T12:00:00", "1969-12-31T23:59:59Z", "2287-01-01T00:00:00Z", "1",
                  "9" * 100, "2026-11-30T12:00:00 02:00", "2026-02-30T00:00:00Z"],
        "until": ["", "2026-11-30T25:00:00Z"],
        "state": ["funded", ""],
        "agent_id": ["x/y", ""],
        "limit": ["0", "101", "x"],
        "after": ["x"],
    },
    ("agents", "/agents"): {
        "q": ["!", "a b c d e f g h i", "x" * 201],
        "tag": ["Text", "-x", "x" * 33, ""],
        "max_price": ["-1", "x", "1e3", "0.0000001", "NaN", "9999999999999999999"],
        "min_score": ["-1", "100.1", "7.25", "x"],
        "min_success_rate": ["1.001", "0.1234", "-0", "x"],
        "sort": ["oldest", ""],
        "after": ["x", "1~agt_x~2"],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [(where, name, value) for where, fields in WRONG.items() for name, values in fields.items() for value in values],
)
def test_wrong_parameters_are_named(
    platform: Cloud, context: Any, where: tuple[str, str], name: str, value: str
) -> None:
    assert platform.settings
    query = {name: value} | ({"sort": "price"} if name == "after" and where[0] == "agents" else {})
    answer = get(context, *where, query)
    body = json.loads(answer["body"])
    assert (answer["statusCode"], body["code"]) == (400, "invalid_request"), body
    assert [error["field"] for error in body["errors"]] == [name]


def test_right_parameters_at_their_bounds_are_taken(platform: Cloud, context: Any) -> None:
    publish(platform, "Echo")
    for query in (
        {"q": "a b c d e f g h"}, {"q": "x" * 200}, {"tag": "0" + "-" * 31}, {"max_price": "0"}, {"min_score": "100.0"},
        {"min_score": "0"}, {"min_success_rate": "1"}, {"min_success_rate": "0.999"}, {"sort": "success_rate"},
    ):  # fmt: skip
        assert get(context, "agents", "/agents", query)["statusCode"] == 200, query
    for query in (
        {"since": "1970-01-01T00:00:00Z", "until": "2286-11-20T17:46:39.999Z"},
        {"since": "2026-11-30T12:00:00.5+02:00"}, {"state": "pending", "limit": "100"}, {"after": ""},
    ):  # fmt: skip
        assert get(context, "result", "/tasks", query)["statusCode"] == 200, query


def test_runs_over_http_are_for_the_owner(platform: Cloud, context: Any) -> None:
    agent_id = platform.publish(wasm("echo"))
    deliver(context, *records_of(platform, agent_id, "t"))
    answer = json.loads(get(context, "result", f"/agents/{agent_id}/runs", account="owner")["body"])
    (listed,) = answer["runs"]
    assert (listed["amount_paid"], listed["success"], listed["payer"], answer["next"]) == ("0.00975", True, None, None)
    path = f"/agents/{agent_id}/runs/{listed['run_id']}"
    assert json.loads(get(context, "result", path, account="owner")["body"]) == listed | {"log": None}
    assert get(context, "result", path)["statusCode"] == 404
    assert get(context, "result", f"/agents/{agent_id}/runs")["statusCode"] == 404
    assert get(context, "result", f"/agents/{agent_id}/runs/x", account="owner")["statusCode"] == 400


# The statement as CSV.


def test_csv_has_the_lines_of_the_statement_on_every_page(platform: Cloud, context: Any) -> None:
    agent_id = platform.publish(wasm("echo"))
    for number in range(3):
        run(platform, agent_id, f"-{number}")
    platform.ledger.withdraw("alice", "w~1", 1, now_ms=platform.now_ms())
    query: dict[str, str] = {"limit": "2"}
    read: list[dict[str, str]] = []
    pages = 0
    while query:
        answer = get(context, "accounts", "/accounts/me/statement.csv", query)
        headers = {name: values[0] for name, values in answer["multiValueHeaders"].items()}
        assert (answer["statusCode"], headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
        assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
        assert answer["body"].count("\r\n") == answer["body"].count("\n")
        read += csv.DictReader(StringIO(answer["body"]), strict=True)
        link = headers.get("Link", "")
        url, _, relation = link.partition("; ")
        assert relation in {"", 'rel="next"'}
        assert url.startswith("</prod/api/v1/economic/accounts/me/statement.csv?") or not link
        query = dict(parse_qsl(urlsplit(url.strip("<>")).query))
        pages += 1
    assert pages == 3
    lines = json.loads(get(context, "accounts", "/accounts/me/statement")["body"])["lines"]
    assert read == [{name: "" if value is None else str(value) for name, value in line.items()} for line in lines]
    assert [line["id"] for line in read] == ["w~1", "-2", "-1", "-0", "start-1000000"]


def test_wrong_cursor_of_the_csv_is_a_problem(platform: Cloud, context: Any) -> None:
    assert platform.settings
    answer = get(context, "accounts", "/accounts/me/statement.csv", {"after": "x"})
    assert (answer["statusCode"], json.loads(answer["body"])["errors"][0]["field"]) == (400, "after")


@pytest.mark.parametrize("first", ["=", "+", "@", "\t", "\r", "'"])
def test_no_cell_of_the_csv_can_begin_a_formula(first: str) -> None:
    """Ids are what others may choose; after a minus they have no character that calls a function or a program."""
    for model in (TaskId, StatedTaskId, AgentId):
        with pytest.raises(ValidationError):
            TypeAdapter(model).validate_python(first + "1")
    for inner in "(!|'\"&=+*/":
        with pytest.raises(ValidationError):
            TypeAdapter(TaskId).validate_python(f"-1{inner}")
