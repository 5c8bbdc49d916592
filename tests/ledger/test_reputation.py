from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quittance.ledger.reputation import SCORE_TENTHS_MAX, START_TENTHS, delta_tenths, moved_tenths
from quittance.run import Fault, Outcome

DELTAS = st.sampled_from([25, 20, 0, -50])


@pytest.mark.parametrize(("wall_ms", "tenths"), [(0, 25), (999, 25), (1_000, 20), (600_000, 20)])
def test_success_earns_2_points_and_half_more_under_1_s(wall_ms: int, tenths: int) -> None:
    assert delta_tenths(Outcome.SUCCEEDED, Fault.NONE, wall_ms=wall_ms) == tenths


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.SUCCEEDED])
@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("wall_ms", [0, 999, 1_000])
def test_only_the_agents_own_fault_lowers_the_score(outcome: Outcome, fault: Fault, wall_ms: int) -> None:
    assert delta_tenths(outcome, fault, wall_ms=wall_ms) == (-50 if fault is Fault.AGENT else 0)


@given(st.integers(0, SCORE_TENTHS_MAX), st.lists(DELTAS))
def test_the_score_stays_within_its_scale(start: int, deltas: list[int]) -> None:
    """I16: the score is a fold of the outcomes only."""
    scores = list(accumulate(deltas, moved_tenths, initial=start))
    assert all(0 <= score <= SCORE_TENTHS_MAX for score in scores)
    assert all(
        abs(after - before) <= abs(delta) for (before, after), delta in zip(pairwise(scores), deltas, strict=True)
    )


@given(st.integers(0, SCORE_TENTHS_MAX), DELTAS)
def test_within_the_scale_an_outcome_counts_in_full(score: int, delta: int) -> None:
    expected = score + delta
    assert moved_tenths(score, delta) == (0 if expected < 0 else 1_000 if expected > 1_000 else expected)


def test_the_scale_and_the_starting_score() -> None:
    assert (START_TENTHS, SCORE_TENTHS_MAX) == (500, 1_000)
    assert moved_tenths(990, 25) == 1_000
    assert moved_tenths(30, -50) == 0


def test_clamping_makes_the_order_matter() -> None:
    assert moved_tenths(moved_tenths(1_000, 20), -50) != moved_tenths(moved_tenths(1_000, -50), 20)
