import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance.ledger import reputation
from quittance.ledger.escrow import Escrow, decide, expire
from quittance.ledger.reputation import (
    ALGORITHMS,
    FEE_MICRO_MAX,
    FEE_UNIT_MICRO,
    PERIOD_MS,
    PERIODS_MAX,
    SCORE_TENTHS_MAX,
    STANDING_BYTES_MAX,
    START_TENTHS,
    Histogram,
    Payer,
    Period,
    Rating,
    Standing,
    delta_tenths,
    estimate,
    fold,
    histogram,
    parse,
    rating,
    score_tenths,
    serialise,
)
from quittance.limits import BUDGET_MICRO_MAX, TIMEOUT_S_ASYNC_MAX
from quittance.run import Fault, Meter, Outcome, Run
from tests.proof.receipts import claims_of

NOW_MS = 700 * PERIOD_MS
SUCCESS, FAILURE = Outcome.SUCCEEDED, Outcome.TRAP_UNREACHABLE


def task(user: str = "u", outcome: Outcome = SUCCESS, **changed: Any) -> Rating:
    """A rating with a budget of one credit and a price of half a credit, unless changed; `price` is paid plus fee."""
    price = changed.pop("price", 500_000)
    used = price if outcome is SUCCESS else 0
    fee = changed.pop("fee_micro", used // 40)
    plain = {
        "agent": "agt_1",
        "user": user,
        "owner": "owner",
        "outcome": outcome,
        "fault": outcome.fault,
        "paid_micro": used - fee,
        "fee_micro": fee,
        "budget_micro": 1_000_000,
        "wall_ms": 1_500,
        "settled_ms": NOW_MS,
        "reputation_tenths": delta_tenths(outcome, outcome.fault, wall_ms=changed.get("wall_ms", 1_500)),
    }
    return Rating(**(plain | changed))


def tasks(periods: int = 12) -> st.SearchStrategy[Rating]:
    """Arbitrary ratings, from few users, so that users repeat."""
    return st.builds(
        task,
        st.sampled_from([*"abcdefgh", "owner"]),
        st.one_of(st.just(SUCCESS), st.sampled_from(Outcome)),
        price=st.integers(0, 40) | st.integers(0, BUDGET_MICRO_MAX),
        budget_micro=st.integers(1, BUDGET_MICRO_MAX),
        wall_ms=st.integers(0, 2_000) | st.integers(0, 600_000),
        settled_ms=st.integers(NOW_MS, NOW_MS + periods * PERIOD_MS - 1),
    )


# So similar and so close in time that a limit of three is soon exceeded.
CROWD = st.builds(
    task,
    st.sampled_from("abcdefg"),
    st.sampled_from([SUCCESS, SUCCESS, FAILURE]),
    price=st.sampled_from([0, 5, 10**9]),
    wall_ms=st.sampled_from([0, 2_000]),
    settled_ms=st.sampled_from([NOW_MS + period * PERIOD_MS for period in (0, 2, 3, 3)]),
)
BATCHES = st.lists(st.lists(tasks(), max_size=8) | st.lists(CROWD, min_size=4, max_size=16), max_size=4)


def robust(ratings: Sequence[Rating]) -> int:
    return score_tenths(fold(Standing(), ratings), "robust")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowers every limit on what is kept to three."""
    monkeypatch.setattr(reputation, "PAYERS_MAX", 3)
    monkeypatch.setattr(reputation, "PERIODS_MAX", 3)
    monkeypatch.setattr(reputation, "_COUNT_MAX", 3)
    monkeypatch.setattr(reputation, "_STAKE_MAX", 3_000)


# Order, batches and bytes.


@pytest.mark.usefixtures("few")
@given(BATCHES, st.randoms(use_true_random=False))
def test_order_and_batches_affect_only_the_reference_score(batches: list[list[Rating]], dice: random.Random) -> None:
    standing = Standing()
    for batch in batches:
        standing = parse(serialise(fold(standing, batch)))
    ratings = [rating for batch in batches for rating in batch]
    dice.shuffle(ratings)
    again = replace(fold(Standing(), ratings), reference_tenths=standing.reference_tenths)
    assert serialise(again) == serialise(standing)
    assert score_tenths(again, "robust") == score_tenths(standing, "robust")


@pytest.mark.usefixtures("few")
@given(BATCHES)
def test_folding_in_batches_gives_the_same_bytes(batches: list[list[Rating]]) -> None:
    """I16: the standing is the fold of the log, whatever the batches of the sweep."""
    standing = Standing()
    for batch in batches:
        standing = fold(standing, batch)
    assert serialise(standing) == serialise(fold(Standing(), [rating for batch in batches for rating in batch]))


@given(st.lists(tasks(), max_size=30))
def test_stored_values_are_read_back(ratings: list[Rating]) -> None:
    standing = fold(Standing(), ratings)
    assert parse(serialise(standing)) == standing


def test_equal_standings_have_equal_texts() -> None:
    one, other = Payer(1, 2, 3), Payer(4, 5, 6)
    these = Standing(periods={1: Period({"a": one, "b": other}), 2: Period()})
    those = Standing(periods={2: Period(), 1: Period({"b": other, "a": one})})
    assert (these, serialise(these)) == (those, serialise(those))


def test_other_standing_versions_are_rejected() -> None:
    with pytest.raises(ValueError, match="version 2"):
        parse(serialise(Standing()).replace('"v":1', '"v":2'))


@given(st.just(START_TENTHS) | st.sampled_from([0, 1_000]), st.lists(CROWD, max_size=30))
def test_the_reference_score_follows_the_log_order(start: int, ratings: list[Rating]) -> None:
    """I16."""
    score = start
    for one in ratings:
        score = min(1_000, max(0, score + one.reputation_tenths))
    assert score_tenths(fold(Standing(start), ratings), "reference") == score


# Ratings of receipts.


def test_a_rating_contains_the_claims_of_the_receipt(new_escrow: Callable[..., Escrow]) -> None:
    escrow, meter = new_escrow(), Meter(wall_ms=7)
    done = decide(escrow, Run(SUCCESS, "ok", meter), now_ms=1_800_000_000_005)
    assert rating(
        claims_of(
            escrow, done, issuer="i", run=Run(Outcome.SUCCEEDED, "", meter, limits=None), engine="e", config_sha256="c"
        )
    ) == Rating(
        agent="agt_1",
        user="user-1",
        owner="owner-1",
        outcome=SUCCESS,
        fault=Fault.NONE,
        paid_micro=390_000,
        fee_micro=10_000,
        budget_micro=1_000_000,
        wall_ms=7,
        settled_ms=1_800_000_000_005,
        reputation_tenths=25,
    )


def test_expired_escrows_count_for_nobody(new_escrow: Callable[..., Escrow]) -> None:
    escrow = new_escrow()
    expired = expire(escrow, now_ms=1_800_000_100_001)
    one = rating(
        claims_of(
            escrow,
            expired,
            issuer="i",
            run=Run(Outcome.SUCCEEDED, "", Meter(), limits=None),
            engine="e",
            config_sha256="c",
        )
    )
    assert fold(Standing(), [one]) == Standing(outcomes=1)


def test_claims_of_no_receipt_are_rejected(new_escrow: Callable[..., Escrow]) -> None:
    escrow = new_escrow()
    expired = expire(escrow, now_ms=1_800_000_100_001)
    known = claims_of(
        escrow, expired, issuer="i", run=Run(Outcome.SUCCEEDED, "", Meter(), limits=None), engine="e", config_sha256="c"
    )
    with pytest.raises(ValueError, match="won"):
        rating(known | {"outcome": "won"})
    with pytest.raises(KeyError):
        rating({name: known[name] for name in known if name != "meter"})


# Counts.


@given(st.lists(tasks(), max_size=30))
def test_counts_include_all_receipts(ratings: list[Rating]) -> None:
    standing = fold(Standing(), ratings)
    faults = [one.outcome.fault for one in ratings]
    assert (standing.outcomes, standing.successes, standing.failures) == (
        len(ratings),
        [one.outcome for one in ratings].count(SUCCESS),
        faults.count(Fault.AGENT),
    )
    decided = standing.successes + standing.failures
    assert standing.success_permille == (standing.successes * 1_000 // decided if decided else None)


def test_payers_are_counted_without_the_owner() -> None:
    standing = fold(
        Standing(), [task("a"), task("a"), task("b"), task("owner"), task("free", price=0), task("c", FAILURE)]
    )
    assert standing.distinct_payers == 2


@pytest.mark.parametrize("payers", [127, 1_000, 5_000])
def test_distinct_payers_are_exact_then_within_a_fifth(payers: int) -> None:
    counted = fold(Standing(), [task(f"user {n}") for n in range(payers)]).distinct_payers
    assert counted == payers if payers < 128 else abs(counted - payers) < payers / 5


# Quantiles.


@given(st.lists(st.integers(0, 40) | st.integers(0, 10**13), min_size=1), st.integers(1, 100))
def test_quantiles_are_exact_or_up_to_a_sixteenth_more(values: list[int], percent: int) -> None:
    known, exact = histogram(values), sorted(values)[math.ceil(len(values) * percent / 100) - 1]
    assert exact <= known.quantile(percent) <= min(exact + exact // 16, max(values))
    assert (known.least, known.greatest, known.total) == (min(values), max(values), len(values))


@given(st.lists(st.integers(0, 10**6)), st.lists(st.integers(0, 10**6)))
def test_the_sum_of_histograms_is_that_of_all_values(these: list[int], those: list[int]) -> None:
    assert histogram(these).plus(histogram(those)) == histogram(these + those)


def test_an_empty_histogram_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="without values"):
        Histogram().quantile(50)


def test_an_estimate_covers_released_runs_only() -> None:
    runs = [task(price=price, wall_ms=price // 10) for price in range(100, 300)]
    found = estimate(fold(Standing(), [*runs, task("u", FAILURE, wall_ms=9), task("owner", price=1, wall_ms=1)]))
    assert found is not None
    assert found.runs == 200
    assert (found.price_micro.least, found.price_micro.greatest) == (100, 299)
    assert (found.wall_ms.least, found.wall_ms.greatest) == (10, 29)
    assert 199 <= found.price_micro.p50 <= 199 * 17 / 16
    assert 289 <= found.price_micro.p95 <= 299
    assert (found.wall_ms.p50, found.wall_ms.p95) == (19, 28)


@pytest.mark.parametrize("folds", [1, 2])
def test_an_estimate_drops_prices_two_periods_old(folds: int) -> None:
    """Also of a period that gets no rating when it becomes too old."""
    old, new = [task(price=900)], [task(price=10, settled_ms=NOW_MS + 2 * PERIOD_MS)]
    standing = fold(Standing(), old + new) if folds == 1 else fold(fold(Standing(), old), new)
    before, after = estimate(fold(Standing(), old)), estimate(standing)
    assert before is not None
    assert after is not None
    assert (before.price_micro.p95, after.price_micro.p95, after.runs) == (900, 10, 1)


def test_no_released_run_means_no_estimate() -> None:
    assert estimate(fold(Standing(), [task("a", FAILURE), task("owner")])) is None


# The robust score: known values, and an independent implementation with floats.


@given(st.integers(1, 10**9), st.integers(0, 10**9))
def test_the_integer_logarithm_is_exact(denominator: int, more: int) -> None:
    found = reputation._ln(denominator + more, denominator) / 2**32
    assert found == pytest.approx(math.log1p(more / denominator), abs=1e-8)


@given(st.floats(0.001, 400), st.floats(0, 400))
def test_the_lower_bound_agrees_with_the_score_test(won: float, lost: float) -> None:
    """Wilson 1927: p is the bound if (share - p)² = z²·p(1 - p)/n; found here by bisection."""
    n, z = won + lost, 1.6448536269514722
    low, high = 0.0, won / n
    for _ in range(60):
        middle = (low + high) / 2
        rejected = n * (won / n - middle) ** 2 > z * z * middle * (1 - middle)
        low, high = (middle, high) if rejected else (low, middle)
    tenths = reputation._wilson_tenths(int(won * 2**32), int(lost * 2**32))
    assert tenths == pytest.approx(1_000 * low, abs=1.01)


@given(st.lists(tasks(), max_size=30))
def test_the_robust_score_follows_its_documentation(ratings: list[Rating]) -> None:
    counted = [
        one for one in ratings if (one.outcome is SUCCESS or one.outcome.fault is Fault.AGENT) and one.user != one.owner
    ]
    newest = max((one.settled_ms // PERIOD_MS for one in counted), default=0)
    ages: dict[str, dict[int, list[Rating]]] = defaultdict(lambda: defaultdict(list))
    for one in counted:
        if (age := newest - one.settled_ms // PERIOD_MS) < PERIODS_MAX:
            ages[one.user][age].append(one)
    won = lost = complaints = 0.0
    for payer in ages.values():
        fees = sum(2 ** (-a / 2) * min(FEE_MICRO_MAX, sum(one.fee_micro for one in of)) for a, of in payer.items())
        votes = math.log(1 + min(FEE_MICRO_MAX, fees) / FEE_UNIT_MICRO)
        stakes = {True: 0.0, False: 0.0}
        for age, of in payer.items():
            for succeeded in stakes:
                stake = sum(math.ceil(one.budget_micro / 1_000) for one in of if (one.outcome is SUCCESS) is succeeded)
                stakes[succeeded] += 2 ** (-age / 2) * min(999_999_999, stake)
        failed = stakes[False] / (stakes[True] + stakes[False])
        won, lost = won + votes * (1 - failed), lost + votes * failed
        complaints += max(0, 2 ** (-min(payer) / 2) / 8 - votes) * failed
    lost += min(complaints, (won + lost) / 3)
    n, z2 = won + lost, 1.6448536269514722**2
    bound = (won + z2 / 2 - math.sqrt(z2 * (won * lost / n + z2 / 4))) / (n + z2) if n else 0
    assert robust(ratings) == pytest.approx(1_000 * bound, abs=1.01)


# The robust score: guaranteed properties.


@given(st.lists(tasks(), max_size=30))
def test_every_score_is_within_the_scale(ratings: list[Rating]) -> None:
    standing = fold(Standing(), ratings)
    assert all(0 <= score_tenths(standing, name) <= SCORE_TENTHS_MAX for name in ALGORITHMS)


def test_a_new_agent_scores_0_and_failures_cannot_lower_it() -> None:
    """So nothing is gained by registering again under another name."""
    assert score_tenths(Standing(), "robust") == 0
    assert robust([task(f"user {n}", FAILURE) for n in range(50)]) == 0


@given(st.lists(tasks(periods=4), max_size=30), st.integers(1, 20), st.integers(0, BUDGET_MICRO_MAX))
def test_successes_of_new_payers_never_lower_the_score(ratings: list[Rating], newcomers: int, price: int) -> None:
    newest = max((one.settled_ms for one in ratings), default=NOW_MS)
    come = [task(f"new {n}", price=price, settled_ms=newest) for n in range(newcomers)]
    settled = [*ratings, task("z", price=0, settled_ms=newest)]  # the newest period exists already
    known = [robust(settled + come[:n]) for n in range(newcomers + 1)]
    assert all(before <= after for before, after in pairwise(known))


@given(st.lists(tasks(periods=4), max_size=30), tasks(periods=4))
def test_a_failure_never_raises_the_score(ratings: list[Rating], another: Rating) -> None:
    newest = max([one.settled_ms for one in ratings], default=NOW_MS)
    settled = [*ratings, task("z", price=0, settled_ms=newest)]
    failed = task(another.user, FAILURE, settled_ms=newest, budget_micro=another.budget_micro)
    assert robust([*settled, failed]) <= robust(settled)


@given(st.lists(tasks(periods=4), max_size=20), st.integers(0, 100))
def test_nonpayers_weigh_at_most_a_third_of_the_payers(ratings: list[Rating], ring: int) -> None:
    """The score is at least that of an agent against which a third of the payers' votes are added."""
    newest = max((one.settled_ms for one in ratings), default=NOW_MS)
    settled = [*ratings, task("z", price=0, settled_ms=newest)]
    attacked = [*settled, *(task(f"fake {n}", FAILURE, settled_ms=newest) for n in range(ring))]
    won, lost = _votes(settled)
    assert robust(attacked) >= reputation._wilson_tenths(won, lost + (won + lost) // 3)


def _votes(ratings: Sequence[Rating]) -> tuple[int, int]:
    """The votes for and against of payers only."""
    won = lost = 0
    for voter in reputation._voters(fold(Standing(), ratings).periods):
        votes = reputation._ln((FEE_UNIT_MICRO << 16) + voter.fee, FEE_UNIT_MICRO << 16)
        won += votes * voter.served // (voter.served + voter.failed)
        lost += votes * voter.failed // (voter.served + voter.failed)
    return won, lost


@given(st.integers(1, 100))
def test_a_payers_failures_cost_at_most_its_own_votes(failures: int) -> None:
    served = [task(f"user {n}") for n in range(20)]
    one, many = task("user 0", FAILURE), [task("user 0", FAILURE, budget_micro=BUDGET_MICRO_MAX)] * failures
    votes = int(math.log1p(12_500 / FEE_UNIT_MICRO) * 2**32)
    assert robust([*served, one]) > robust([*served, *many]) >= reputation._wilson_tenths(19 * votes, votes)


def test_one_payers_votes_are_capped() -> None:
    rich = [task("a", price=FEE_MICRO_MAX * 40)]
    richer = [task("a", price=BUDGET_MICRO_MAX)] * 50
    often = [task("a", price=BUDGET_MICRO_MAX, settled_ms=NOW_MS + period * PERIOD_MS) for period in range(9)]
    assert (
        robust(rich)
        == robust(richer)
        == robust(often)
        == int(1_000 * math.log(21) / (math.log(21) + 1.6448536269514722**2))
    )


def test_tasks_without_a_fee_give_no_votes() -> None:
    assert robust([task(f"user {n}", price=39) for n in range(100)]) == 0


def test_owners_paying_themselves_give_no_votes() -> None:
    assert robust([task("owner")] * 100) == 0


def test_fees_halve_in_two_periods_and_end_after_eight() -> None:
    def later(periods: int) -> int:
        return robust([task("a", price=10**6), task("z", price=0, settled_ms=NOW_MS + periods * PERIOD_MS)])

    assert later(2) == robust([task("a", price=500_000)])
    known = [later(periods) for periods in range(9)]
    assert known == sorted(known, reverse=True)
    assert known[7] > known[8] == 0


# The size of a standing is bounded.


def test_100000_payers_fit_into_the_document() -> None:
    dice = random.Random(1)
    ratings = [
        task(
            f"user {n}",
            dice.choice([SUCCESS, FAILURE]),
            price=int(10 ** dice.uniform(0, 12)),
            budget_micro=BUDGET_MICRO_MAX,
            wall_ms=int(10 ** dice.uniform(0, 5.8)),
            settled_ms=NOW_MS + dice.randrange(PERIODS_MAX * PERIOD_MS),
        )
        for n in range(100_000)
    ]
    assert len(serialise(fold(Standing(), ratings))) <= STANDING_BYTES_MAX


def test_the_largest_standing_fits_into_the_document() -> None:
    full = Payer(FEE_MICRO_MAX, reputation._STAKE_MAX, reputation._STAKE_MAX)
    payers = {f"{n:010x}": full for n in range(reputation.PAYERS_MAX)}
    price, wall = _every_bucket(BUDGET_MICRO_MAX), _every_bucket(2 * TIMEOUT_S_ASYNC_MAX * 1_000)
    old, new = Period(payers), Period(payers, price, wall)
    measured = reputation.MEASURED_PERIODS_MAX
    periods = {n: new if PERIODS_MAX - n <= measured else old for n in range(PERIODS_MAX)}
    largest = Standing(1_000, 10**12, 10**12, 10**12, tuple(payers), {10_000 + n: p for n, p in periods.items()})
    assert parse(serialise(largest)) == largest
    assert fold(largest, [task("a", settled_ms=10_000 * PERIOD_MS + n) for n in range(3)]).outcomes == 10**12 + 3
    assert len(serialise(largest)) <= STANDING_BYTES_MAX


def _every_bucket(greatest: int) -> Histogram:
    counts = dict.fromkeys(range(reputation._bucket(greatest) + 1), reputation._COUNT_MAX)
    return Histogram(counts, 0, greatest)


def _grown(ratings: Sequence[Rating]) -> Iterator[Standing]:
    standing = Standing()
    for one in ratings:
        standing = fold(standing, [one])
        yield standing


@pytest.mark.usefixtures("few")
@given(st.lists(CROWD, max_size=30))
def test_a_full_standing_does_not_grow(ratings: list[Rating]) -> None:
    for standing in _grown(ratings):
        assert len(standing.periods) <= 3
        assert len(standing.payer_keys) <= 3
        for period in standing.periods.values():
            assert len(period.payers) <= 3
            assert all(max(payer.served, payer.failed) <= 3_000 for payer in period.payers.values())
            assert all(count <= 3 for count in period.price_micro.counts.values())


def test_unknown_algorithms_are_rejected() -> None:
    with pytest.raises(KeyError):
        score_tenths(Standing(), "stars")
