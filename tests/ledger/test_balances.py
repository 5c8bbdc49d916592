"""Taking an amount from balance shards: never more than the balance, and apart from concurrent tasks."""

from hypothesis import given
from hypothesis import strategies as st

from quittance.ledger import balances
from quittance.limits import BALANCE_SHARDS

MICRO = st.integers(0, 10**6)
SHARD_BALANCES = st.lists(MICRO | st.just(0), min_size=BALANCE_SHARDS, max_size=BALANCE_SHARDS)


@given(SHARD_BALANCES, st.integers(1, 10**7), st.booleans())
def test_exact_amount_is_taken_and_no_shard_is_negative(shards: list[int], amount: int, contended: bool) -> None:
    moves = balances.taking(shards, amount, contended=contended)
    if sum(shards) < amount:
        assert moves is None
        return
    assert moves is not None
    assert sum(moves.values()) == -amount
    assert all(shards[shard] + change >= 0 for shard, change in moves.items())


@given(SHARD_BALANCES, MICRO.filter(bool))
def test_one_sufficient_shard_pays_alone_without_contention(shards: list[int], amount: int) -> None:
    moves = balances.taking(shards, amount, contended=False)
    if max(shards) >= amount:
        assert moves == {shards.index(max(shards)): -amount}


@given(MICRO.filter(bool), st.integers(0, 5 * BALANCE_SHARDS))
def test_a_collision_at_the_only_full_shard_spreads_it(amount: int, tasks: int) -> None:
    """Afterwards each shard has enough for one more such task, or nothing was spread."""
    shards = [amount * (1 + tasks)] + [0] * (BALANCE_SHARDS - 1)
    moves = balances.taking(shards, amount, contended=True)
    assert moves is not None
    after = [held + moves.get(shard, 0) for shard, held in enumerate(shards)]
    if tasks >= BALANCE_SHARDS:
        assert min(after) >= amount
    else:
        assert moves == {balances.HOME: -amount}


def test_colliding_tasks_use_different_shards() -> None:
    shards = [10] * BALANCE_SHARDS
    chosen = [balances.taking(shards, 1, contended=True) for _ in range(200)]
    assert len({shard for moves in chosen if moves for shard in moves}) > BALANCE_SHARDS // 2


def test_a_large_amount_is_taken_from_the_fullest_shards() -> None:
    shards = [5, 1, 9, 0] + [0] * (BALANCE_SHARDS - 4)
    assert balances.taking(shards, 12, contended=False) == {2: -9, 0: -3}
    assert balances.taking(shards, 15, contended=False) == {2: -9, 0: -5, 1: -1}
