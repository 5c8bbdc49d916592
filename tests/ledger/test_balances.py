"""How an amount is taken from purses: never more than there is, never from nowhere, and apart from others."""

from hypothesis import given
from hypothesis import strategies as st

from quittance.ledger import balances
from quittance.limits import BALANCE_SHARDS

MICRO = st.integers(0, 10**6)
PURSES = st.lists(MICRO | st.just(0), min_size=BALANCE_SHARDS, max_size=BALANCE_SHARDS)


@given(PURSES, st.integers(1, 10**7), st.booleans())
def test_exact_amount_is_taken_and_no_shard_is_negative(purses: list[int], amount: int, contended: bool) -> None:
    moves = balances.taking(purses, amount, contended=contended)
    if sum(purses) < amount:
        assert moves is None
        return
    assert moves is not None
    assert sum(moves.values()) == -amount
    assert all(purses[purse] + change >= 0 for purse, change in moves.items())


@given(PURSES, MICRO.filter(bool))
def test_one_sufficient_shard_pays_alone_without_contention(purses: list[int], amount: int) -> None:
    moves = balances.taking(purses, amount, contended=False)
    if max(purses) >= amount:
        assert moves == {purses.index(max(purses)): -amount}


@given(MICRO.filter(bool), st.integers(0, 5 * BALANCE_SHARDS))
def test_a_collision_at_the_only_full_shard_spreads_it(amount: int, tasks: int) -> None:
    """Afterwards each purse has enough for one more such task, or nothing was spread at all."""
    purses = [amount * (1 + tasks)] + [0] * (BALANCE_SHARDS - 1)
    moves = balances.taking(purses, amount, contended=True)
    assert moves is not None
    after = [held + moves.get(purse, 0) for purse, held in enumerate(purses)]
    if tasks >= BALANCE_SHARDS:
        assert min(after) >= amount
    else:
        assert moves == {balances.HOME: -amount}


def test_colliding_tasks_use_different_shards() -> None:
    purses = [10] * BALANCE_SHARDS
    chosen = [balances.taking(purses, 1, contended=True) for _ in range(200)]
    assert len({purse for moves in chosen if moves for purse in moves}) > BALANCE_SHARDS // 2


def test_a_large_amount_is_taken_from_the_fullest_shards() -> None:
    purses = [5, 1, 9, 0] + [0] * (BALANCE_SHARDS - 4)
    assert balances.taking(purses, 12, contended=False) == {2: -9, 0: -3}
    assert balances.taking(purses, 15, contended=False) == {2: -9, 0: -5, 1: -1}
