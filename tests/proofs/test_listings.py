"""The listings on a real engine, under real threads: pages under inserts, the index under races, the cost of a page."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from quittance.agent import AgentState
from quittance.ledger.reputation import Standing
from quittance.limits import LISTING_READ_MAX, LISTING_SHARDS
from quittance.platform import Platform
from quittance.run import Fault, Outcome
from quittance.store.listings import AGENT_SLOTS, Ended, ListedAgent, ListedRun, Listings, Sort, Wanted
from quittance.usecases import listings
from tests.depth import LONG, SEED
from tests.proofs.engines import client_of, engine, new_table
from tests.proofs.world import START_MS
from tests.template import template

TABLE = "ListingsTable"
WRITERS, INSERTS = 4, 400 if LONG else 80
AGENTS = 10_000
CHANGES = 200 if LONG else 12
LETTERS = str.maketrans("0123456789", "abcdefghij")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with engine("ministack") as url:
        new_table(client_of(url))  # waits until the engine answers
        declared = template()["Resources"][TABLE]["Properties"]
        wanted = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode")
        client_of(url).create_table(TableName=TABLE, **{name: declared[name] for name in wanted})
        yield url


def store(url: str) -> Listings:
    return Listings(client_of(url), table=TABLE, left_ms=lambda: 60_000)


def in_threads(*works: Callable[[], None]) -> None:
    """Runs the works at the same time; raises what any of them raised."""
    began = threading.Barrier(len(works))

    def work(one: Callable[[], None]) -> None:
        began.wait()
        one()

    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work, one) for one in works]:
            done.result()


def run_of(agent_id: str, number: int, settled_ms: int) -> ListedRun:
    run_id = f"{number:026}".translate(LETTERS)
    ended = Ended.SUCCEEDED if number % 3 else Ended.FAILED
    return ListedRun(run_id, agent_id, settled_ms, ended, Outcome.TIMEOUT, Fault.AGENT, "m", 1, 1, 1, 1, 1, "late")


def test_pages_under_concurrent_inserts_lose_and_repeat_nothing(url: str) -> None:
    before, lock = set[str](), threading.Lock()
    writing = threading.Event()
    rounds: list[int] = []

    def write(writer: int) -> None:
        rest, listed = random.Random(SEED + writer), store(url)
        for number in range(INSERTS):
            run = run_of("agt", writer * INSERTS + number, START_MS + rest.randrange(1_000))
            listed.add_run(run)
            listed.add_run(run)
            with lock:
                before.add(run.run_id)
        if writer == 0:
            writing.set()

    def read(reader: int) -> None:
        rest, listed = random.Random(SEED - reader), store(url)
        while not writing.is_set() or not rounds:
            with lock:
                there = set(before)
            found: list[ListedRun] = []
            after = None
            while True:
                page, after = listed.runs("agt", ended=None, limit=rest.randrange(1, 40), after=after)
                found += page
                if after is None:
                    break
            ids = [run.run_id for run in found]
            assert len(ids) == len(set(ids)), "a run was repeated"
            assert there <= set(ids), "a run was lost"
            order = [(run.settled_ms, run.run_id) for run in found]
            assert order == sorted(order, reverse=True)
            rounds.append(len(ids))

    in_threads(*(lambda n=n: write(n) for n in range(WRITERS)), *(lambda n=n: read(n) for n in range(2)))
    assert rounds
    found, _ = store(url).runs("agt", ended=None, limit=WRITERS * INSERTS, after=None)
    assert {run.run_id for run in found} == before


def test_pages_of_channels_under_concurrent_inserts_lose_nothing(url: str) -> None:
    """Records come twice and from several invocations; a page is right at any time."""
    before, lock, writing = set[str](), threading.Lock(), threading.Event()
    payer = "payer of channels"

    def write(writer: int) -> None:
        rest, listed = random.Random(SEED + writer), store(url)
        for number in range(INSERTS):
            channel_id = "chn_" + f"{writer * INSERTS + number:026}".translate(LETTERS)
            opened_ms = START_MS + rest.randrange(1_000)
            for _ in range(2):
                listed.add_channel(channel_id, payer=payer, opened_ms=opened_ms)
            with lock:
                before.add(channel_id)
        if writer == 0:
            writing.set()

    def pages() -> list[str]:
        rest, listed, found, after = random.Random(SEED), store(url), list[str](), None
        while True:
            page, after = listed.channels(payer, limit=rest.randrange(1, 40), after=after)
            found += page
            if after is None:
                return found

    def read() -> None:
        done = False
        while not done:
            done = writing.is_set()
            with lock:
                there = set(before)
            found = pages()
            assert len(found) == len(set(found)), "a channel was repeated"
            assert there <= set(found), "a channel was lost"

    in_threads(*(lambda n=n: write(n) for n in range(2)), read)
    assert set(pages()) == before
    assert store(url).channels("payer", limit=9, after=None) == ([], None), "no other account's"


class State:
    """An agent and its standing, as the registry and the ledger hold them; changed by threads."""

    def __init__(self) -> None:
        self.name, self.score, self.retired = "start", 500, False

    def described(self, agent_id: str) -> tuple[Any, tuple[str, ...]]:
        agent = SimpleNamespace(
            agent_id=agent_id,
            owner="owner",
            name=self.name,
            description="",
            created_ms=START_MS,
            state=AgentState.RETIRED if self.retired else AgentState.ACTIVE,
            terms=SimpleNamespace(tariff='{"type":"flat","price":"0.01"}'),
        )
        return agent, ()

    def standing(self, _agent_id: str) -> Standing:
        return Standing(reference_tenths=self.score)


def rows_of(url: str, agent_id: str) -> dict[str, ListedAgent]:
    rows = list(store(url).rows_of(agent_id).values())
    assert len({row.term for row in rows}) == len(rows)
    return {row.term: row.agent for row in rows}


@pytest.mark.parametrize("retires", [False, True])
def test_racing_writers_leave_the_rows_of_the_stored_agent(url: str, retires: bool) -> None:
    for number in range(CHANGES):
        state, agent_id = State(), f"agt_{retires}_{number}"

        def platform(state: State = state) -> Platform:
            made = SimpleNamespace(
                registry=state,
                ledger=state,
                listings=store(url),
                settings=SimpleNamespace(reputation="reference"),
            )
            return cast("Platform", made)

        listings.list_agent(platform(), agent_id)

        def rename(state: State = state, agent_id: str = agent_id) -> None:
            state.name = "renamed agent"
            listings.list_agent(platform(state), agent_id)

        def rate(state: State = state, agent_id: str = agent_id) -> None:
            state.score = 777
            listings.list_agent(platform(state), agent_id)

        def retire(state: State = state, agent_id: str = agent_id) -> None:
            state.retired = retires
            listings.list_agent(platform(state), agent_id)

        in_threads(rename, rate, retire)
        rows = rows_of(url, agent_id)
        if retires:
            assert rows == {}
        else:
            assert set(rows) == {"*", "owner:owner", "word:renamed", "word:agent"}
            assert {row.score_tenths for row in rows.values()} == {777}


class Meter:
    """What the queries of a client read: calls, rows before filters, and capacity where the engine reports it."""

    def __init__(self, url: str) -> None:
        client = client_of(url)
        self.calls, self.rows, self.capacity = 0, 0, 0.0
        client.meta.events.register("provide-client-params.dynamodb.Query", self._ask)
        client.meta.events.register("after-call.dynamodb.Query", self._add)
        self.listings = Listings(client, table=TABLE, left_ms=lambda: 60_000)

    def _ask(self, params: dict[str, Any], **_: Any) -> dict[str, Any]:
        return params | {"ReturnConsumedCapacity": "TOTAL"}

    def _add(self, parsed: dict[str, Any], **_: Any) -> None:
        self.calls += 1
        self.rows += parsed["ScannedCount"]
        self.capacity += parsed.get("ConsumedCapacity", {}).get("CapacityUnits", 0)


def agent(number: int, *words: str) -> ListedAgent:
    return ListedAgent(f"agt_{number:05}", "owner", START_MS + number, number % 100, number % 1_000, number % 900,
                       words, ())  # fmt: skip


def test_ten_thousand_agents_cost_what_a_page_costs(url: str) -> None:
    """The same searches among 100 and among 10,000 agents: not one call, row or unit more."""

    def fill(numbers: range, term: str) -> None:
        listed = store(url)
        for number in numbers:
            listed.put_agent(agent(number, "some", f"n{number % 10}"), term, AGENT_SLOTS[term == "word:few"])

    fill(range(100), "word:few")
    parts = [range(start, AGENTS, 4) for start in range(4)]
    in_threads(*(lambda part=part: fill(part, "word:manyy") for part in parts))
    for sort in Sort:
        costs = {}
        for word in ("few", "manyy"):
            meter = Meter(url)
            found = meter.listings.search(Wanted(words=(word,)), sort=sort, limit=20, after=None)
            assert len(found.agents) == 20
            assert found.after is not None
            costs[word] = (meter.calls, meter.rows, meter.capacity)
        assert costs["few"] == costs["manyy"]
        assert costs["few"][:2] == (1, 21)
    meter = Meter(url)
    narrow = Wanted(words=("manyy", "n3"), price_micro_max=50)
    found = meter.listings.search(narrow, sort=Sort.NEWEST, limit=20, after=None)
    assert (meter.calls, meter.rows) == (1, LISTING_READ_MAX)
    read, after = list(found.agents), found.after
    while after is not None:
        page = meter.listings.search(narrow, sort=Sort.NEWEST, limit=20, after=after)
        read, after = read + page.agents, page.after
    assert {one.agent_id for one in read} == {
        f"agt_{number:05}" for number in range(AGENTS) if number % 10 == 3 and number % 100 <= 50
    }
    assert meter.calls <= AGENTS // LISTING_READ_MAX + len(read) // 20 + 1


def test_a_page_of_runs_reads_each_partition_once(url: str) -> None:
    listed = store(url)
    for number in range(300):
        listed.add_run(run_of("agt_b", number, START_MS + number))
    meter = Meter(url)
    found, after = meter.listings.runs("agt_b", ended=None, limit=10, after=None)
    assert (len(found), after is None) == (10, False)
    assert meter.calls == 2 * LISTING_SHARDS
    assert meter.rows <= 2 * LISTING_SHARDS * 12
