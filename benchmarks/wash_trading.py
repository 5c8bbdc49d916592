"""What a ring of fake payers gains: for its own agent by wash trading, against a rival by failing on purpose.

    python benchmarks/wash_trading.py            # prints the tables
    python benchmarks/wash_trading.py --write    # also writes them into docs/reputation.md

Receipts are generated from a fixed seed and folded as in the sweep. Honest payers are spread over half a year; the ring
acts on the last day, which is the worst case for the reference rule. What a ring pays its own agent returns to it, so
wash trading costs it only the fees. What it pays a rival is lost. A failed task is refunded and costs nothing.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "layers" / "runtime"))

from scale import QUICK

from quittance.ledger.credits import format_credits
from quittance.ledger.reputation import ALGORITHMS, Rating, Standing, delta_tenths, fold, score_tenths
from quittance.run import Outcome

PAGE = Path(__file__).parents[1] / "docs" / "reputation.md"
BEGIN, END = "<!-- the tables: python benchmarks/wash_trading.py --write -->\n", "<!-- end of the tables -->\n"
SEED = 1
FEE_BPS = 250
DAY_MS = 24 * 60 * 60 * 1_000
START_MS = 1_800_000_000_000
HONEST_DAYS = 180
RING_MS = START_MS + HONEST_DAYS * DAY_MS
POPULATIONS = ((40, 10), (10, 10), (400, 1))  # payers, tasks of each
RINGS = (1, 3) if QUICK else (1, 3, 10, 30, 100, 1_000)
BATCH = 97
WALL_MS = 1_500
PRICE_MICRO = 50_000  # the median price of an honest task
UNPRICED_MICRO = 39  # the highest price that has no fee
UNIT_MICRO = 400_000  # its fee is FEE_UNIT_MICRO
FULL_MICRO = 8_000_000  # its fee is FEE_MICRO_MAX, the maximum that counts of one payer


def task(user: str, price_micro: int, at_ms: int, *, succeeded: bool, budget_micro: int = 0) -> Rating:
    """Return the rating of one task; the default budget is twice the price."""
    outcome = Outcome.SUCCEEDED if succeeded else Outcome.FUEL_EXHAUSTED
    used_micro = price_micro if succeeded else 0
    fee_micro = used_micro * FEE_BPS // 10_000
    return Rating(
        agent="agt",
        user=user,
        owner="owner",
        outcome=outcome,
        fault=outcome.fault,
        paid_micro=used_micro - fee_micro,
        fee_micro=fee_micro,
        budget_micro=budget_micro or 2 * price_micro,
        wall_ms=WALL_MS,
        settled_ms=at_ms,
        reputation_tenths=delta_tenths(outcome, outcome.fault, wall_ms=WALL_MS),
    )


def honest(quality: float, *, payers: int, tasks: int) -> list[Rating]:
    """Return half a year of tasks, sorted by time: of `payers` payers, about `tasks` tasks each, at some cents each."""
    dice = random.Random(f"{SEED} {quality} {payers} {tasks}")
    ratings = []
    for payer in range(payers):
        for _ in range(1 + int(dice.expovariate(1) * (tasks - 1))):
            price_micro = int(dice.lognormvariate(0, 0.7) * PRICE_MICRO)
            at_ms = START_MS + dice.randrange(HONEST_DAYS * DAY_MS)
            ratings.append(task(f"payer {payer}", price_micro, at_ms, succeeded=dice.random() < quality))
    return sorted(ratings, key=lambda rating: rating.settled_ms)


def washing(ring: int, price_micro: int) -> list[Rating]:
    """Return ten successes of each member of the ring."""
    fakes = [f"fake {member}" for member in range(ring)]
    return [task(fake, price_micro, RING_MS, succeeded=True) for fake in fakes for _ in range(10)]


def failing(ring: int, price_micro: int) -> list[Rating]:
    """Return ten failures of each member of the ring. Before them, each pays for one success unless the price is 0."""
    fakes = [f"fake {member}" for member in range(ring)]
    paid = [task(fake, price_micro, RING_MS, succeeded=True) for fake in fakes if price_micro]
    budget_micro = max(PRICE_MICRO, 10 * price_micro)
    return paid + [
        task(fake, 0, RING_MS, succeeded=False, budget_micro=budget_micro) for fake in fakes for _ in range(10)
    ]


def scores(ratings: Sequence[Rating]) -> dict[str, int]:
    """Return the score in tenths by each algorithm; the ratings are folded in batches of the sweep's size."""
    standing = Standing()
    for begin in range(0, len(ratings), BATCH):
        standing = fold(standing, ratings[begin : begin + BATCH])
    return {name: score_tenths(standing, name) for name in ALGORITHMS}


def tables() -> Iterator[str]:
    """Yield all tables as Markdown."""
    yield "**Honest payers only.**"
    rows = []
    for quality in (1.0, 0.99, 0.95, 0.9, 0.8, 0.65, 0.5, 0.2, 0.0):
        by_population = [scores(honest(quality, payers=payers, tasks=tasks)) for payers, tasks in POPULATIONS]
        rows.append([f"{quality:.0%}", *(_points(each[name]) for each in by_population for name in ALGORITHMS)])
    crowds = [
        f"{payers} payers, {f'about {tasks} tasks' if tasks > 1 else 'a task'} each" for payers, tasks in POPULATIONS
    ]
    yield _table(["succeeds in", *(f"{name}: {crowd}" for crowd in crowds for name in ALGORITHMS)], rows)

    yield "**Washing.** Each of the ring runs ten tasks of the ring's own agent, all of them succeed."
    bad = {"fails half its tasks": honest(0.5, payers=40, tasks=10), "is new": []}
    prices_micro = (10 * UNPRICED_MICRO, UNIT_MICRO, FULL_MICRO)
    yield _rings("agent", bad, "each spends", prices_micro, lambda ring, micro: washing(ring, micro // 10))

    yield "**Failing on purpose.** Each of the ring fails ten tasks of a rival, after paying for one or for none."
    good = {f"95%, {payers} payers": honest(0.95, payers=payers, tasks=10) for payers in (40, 10)}
    yield _rings("rival", good, "each has paid", (0, UNIT_MICRO, FULL_MICRO), failing)


def _rings(
    agent: str,
    agents: Mapping[str, list[Rating]],
    spending: str,
    prices_micro: Iterable[int],
    act: Callable[[int, int], list[Rating]],
) -> str:
    """Return a table: for each agent, price and algorithm the score, and the score after a ring of each size acted."""
    rows = []
    for name, before in agents.items():
        for price_micro in prices_micro:
            results = [scores(before + act(ring, price_micro)) for ring in RINGS]
            cost = format_credits(_lost_micro(act(1, price_micro)))
            for algorithm, score in scores(before).items():
                moves = (f"{_points(new[algorithm])} ({(new[algorithm] - score) / 10:+.1f})" for new in results)
                rows.append([name, format_credits(price_micro), cost, algorithm, _points(score), *moves])
    return _table(
        [agent, f"{spending}, credits", "and loses", "algorithm", "no ring", *map("ring of {:,}".format, RINGS)], rows
    )


def _lost_micro(ratings: Sequence[Rating]) -> int:
    """Return what a ring loses: the fees, and if it failed tasks also the rest, because it paid a rival."""
    washed = all(rating.outcome is Outcome.SUCCEEDED for rating in ratings)
    return sum(rating.fee_micro + (0 if washed else rating.paid_micro) for rating in ratings)


def _points(tenths: int) -> str:
    return f"{tenths / 10:.1f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the tables; with --write, also write them into the page."""
    parser = argparse.ArgumentParser(description="What a ring of fake payers gains.")
    parser.add_argument("--write", action="store_true", help=f"write the tables into docs/{PAGE.name}")
    write = parser.parse_args().write
    text = "\n\n".join(tables())
    print(text)
    if write:
        page = PAGE.read_text()
        before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
        PAGE.write_text(f"{before}\n{text}\n\n{after}")


if __name__ == "__main__":
    main()
