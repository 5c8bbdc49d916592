import base64
import hashlib
import itertools
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quittance.ledger.escrow import (
    Escrow,
    Split,
    State,
    decide,
    escrow_id,
    expire,
    request_sha256,
    seed,
    split,
    task_seed,
)
from quittance.limits import BUDGET_MICRO_MAX
from quittance.run import Fault, Meter, Outcome, Run

NewEscrow = Callable[..., Escrow]
BUDGETS = st.integers(1, BUDGET_MICRO_MAX)
BPS = st.integers(0, 10_000)
LATER_MS = 1_800_000_000_007  # seven milliseconds after the funding
NAMES = st.text(min_size=1, max_size=8)
FAULTS = {
    Fault.NONE: {"succeeded", "rules_failed", "judge_failed", "not_needed", "withheld", "superseded"},
    Fault.AGENT: {
        *("exit_code", "trap_unreachable", "trap_memory", "trap_arithmetic", "trap_stack", "trap_table"),
        *("fuel_exhausted", "timeout", "memory_limit", "output_limit", "rejected"),
    },
    Fault.PAYER: {"budget_exhausted"},
    Fault.PLATFORM: {
        "worker_lost",
        "out_of_time",
        "artefact_missing",
        "artefact_tampered",
        "storage_down",
        "expired",
        "undelivered",
    },
}
FAILURES = [outcome for outcome in Outcome if outcome is not Outcome.SUCCEEDED]


@given(BUDGETS, st.data(), BPS)
def test_split_is_lossless_and_rounds_the_fee_down(budget: int, data: st.DataObject, bps: int) -> None:
    """I3, I4."""
    used = data.draw(st.integers(0, budget))
    done = split(budget_micro=budget, price_micro=used, fee_bps=bps)
    assert done.paid_micro + done.fee_micro + done.refunded_micro == done.budget_micro == budget
    assert min(done.paid_micro, done.fee_micro, done.refunded_micro) >= 0
    assert done.paid_micro + done.fee_micro == used
    exact = Fraction(used) * Fraction(bps, 10_000)
    assert exact - 1 < done.fee_micro <= exact


@pytest.mark.parametrize(("used", "fee"), [(0, 0), (39, 0), (40, 1), (79, 1), (10**12, 25 * 10**9)])
def test_fee_at_250_basis_points(used: int, fee: int) -> None:
    assert split(budget_micro=10**12, price_micro=used, fee_bps=250).fee_micro == fee


@given(st.lists(st.integers(-5, 5), min_size=4, max_size=4))
def test_inconsistent_splits_are_rejected(numbers: list[int]) -> None:
    budget, paid, fee, refunded = numbers
    if min(paid, fee, refunded) >= 0 and paid + fee + refunded == budget:
        assert Split(*numbers).budget_micro == budget
    else:
        with pytest.raises(ValueError, match="does not add up"):
            Split(*numbers)


@pytest.mark.parametrize(("used", "bps"), [(11, 0), (-1, 0), (-1, 10_000), (5, -1), (5, 10_001)])
def test_splits_beyond_the_budget_or_below_zero_are_rejected(used: int, bps: int) -> None:
    with pytest.raises(ValueError, match=r"add up|between 0 and 10000"):
        split(budget_micro=10, price_micro=used, fee_bps=bps)


def test_every_outcome_has_its_documented_fault() -> None:
    found: dict[Fault, set[str]] = {fault: set() for fault in Fault}
    for outcome in Outcome:
        found[outcome.fault].add(outcome.value)
    assert found == FAULTS


@given(
    budget=BUDGETS,
    bps=BPS,
    base=st.integers(0, 10**12),
    rate=st.integers(0, 10**6),
    fuel=st.integers(0, 10**12),
    wall_ms=st.integers(0, 25_000),
)
def test_success_is_paid_by_the_tariff_in_the_escrow(
    new_escrow: NewEscrow, budget: int, bps: int, base: int, rate: int, fuel: int, wall_ms: int
) -> None:
    tariff = f'{{"type":"metered","base":"{_credits(base)}","per_million_fuel":"{_credits(rate)}"}}'
    escrow = new_escrow(budget_micro=budget, fee_bps=bps, tariff=tariff)
    done = decide(escrow, Run(Outcome.SUCCEEDED, "ok", Meter(fuel=fuel, wall_ms=wall_ms)), now_ms=LATER_MS)
    used = min(budget, base - (-fuel * rate // 10**6))
    assert (done.state, done.outcome, done.message, done.settled_ms) == (
        State.RELEASED,
        Outcome.SUCCEEDED,
        "ok",
        LATER_MS,
    )
    assert done.split == Split(budget, used - used * bps // 10**4, used * bps // 10**4, budget - used)
    assert done.reputation_tenths == (25 if wall_ms < 1_000 else 20)


@pytest.mark.parametrize("outcome", FAILURES)
@given(budget=BUDGETS, bps=BPS, fuel=st.integers(0, 10**12), wall_ms=st.integers(0, 25_000))
def test_failures_are_refunded_in_full(
    new_escrow: NewEscrow, outcome: Outcome, budget: int, bps: int, fuel: int, wall_ms: int
) -> None:
    """I3, for every meter and every fault."""
    escrow = new_escrow(budget_micro=budget, fee_bps=bps)
    done = decide(escrow, Run(outcome, "why", Meter(fuel=fuel, wall_ms=wall_ms)), now_ms=LATER_MS)
    assert (done.state, done.outcome, done.message, done.settled_ms) == (State.REFUNDED, outcome, "why", LATER_MS)
    assert done.split == Split(budget, 0, 0, budget)
    assert done.reputation_tenths == (-50 if outcome.value in FAULTS[Fault.AGENT] else 0)


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.TRAP_MEMORY])
def test_a_settlement_is_never_earlier_than_its_funding(new_escrow: NewEscrow, outcome: Outcome) -> None:
    escrow = new_escrow()
    assert decide(escrow, Run(outcome, "why", Meter()), now_ms=escrow.funded_ms - 1).settled_ms == escrow.funded_ms


@given(budget=BUDGETS, bps=BPS)
def test_expiry_refunds_in_full_and_blames_no_agent(new_escrow: NewEscrow, budget: int, bps: int) -> None:
    done = expire(new_escrow(budget_micro=budget, fee_bps=bps), now_ms=7)
    assert (done.state, done.outcome, done.settled_ms) == (State.EXPIRED, Outcome.EXPIRED, 7)
    assert done.split == Split(budget, 0, 0, budget)
    assert done.reputation_tenths == 0
    assert "refunded" in done.message


def test_an_escrow_is_funded_until_it_is_settled(new_escrow: NewEscrow) -> None:
    escrow = new_escrow()
    assert escrow.state is State.FUNDED
    assert new_escrow(settlement=expire(escrow, now_ms=1)).state is State.EXPIRED


@given(st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES))
def test_different_tasks_have_different_escrow_ids(one: tuple[str, str], other: tuple[str, str]) -> None:
    assume(one != other)
    assert escrow_id(*one) != escrow_id(*other)


@given(st.text(min_size=2, max_size=12), st.sampled_from(["", ":", "#", "1:", "0"]))
def test_moving_characters_between_names_changes_the_id(text: str, part: str) -> None:
    """For example ("a", "bc") and ("ab", "c")."""
    joined = part.join(text)
    ids = [escrow_id(joined[:cut], joined[cut:]) for cut in range(len(joined) + 1)]
    assert len(set(ids)) == len(ids)


def test_escrow_ids_and_seeds_never_change(new_escrow: NewEscrow) -> None:
    """Both are derived again years later: the id by a replay, the seed by a re-execution of a receipt."""
    digest = hashlib.sha256(b"6:user-16:task-1").digest()
    eid = escrow_id("user-1", "task-1")
    assert eid == base64.b32encode(digest).decode().lower()[:26]
    assert re.fullmatch("[a-z2-7]{26}", eid)
    assert task_seed(eid) == hashlib.sha256(f"quittance seed {eid}".encode()).digest()
    assert task_seed(eid) != task_seed(escrow_id("user-1", "task-2"))
    assert seed(new_escrow(escrow_id=eid)) == task_seed(eid)


def test_a_judge_uses_the_seed_drawn_for_it(new_escrow: NewEscrow) -> None:
    assert seed(new_escrow(seed="ab" * 32)) == bytes.fromhex("ab" * 32)


def test_every_part_of_a_request_changes_its_digest() -> None:
    parts: dict[str, tuple[Any, ...]] = {
        "agent_id": ("a", "ab"),
        "input_sha256": ("c", "bc"),
        "budget_micro": (1, 11, 2),
        "timeout_s": (None, 0, 1, 11),
    }
    options: dict[str, tuple[Any, ...]] = {
        "min_reputation": (None, 0, 1),
        "acceptance": (None, "c", "d"),
        "webhook": (None, "c", "d"),
        "max_judging": (None, 0, 1),
    }
    every = list(itertools.product(*parts.values(), *options.values()))

    def digest(values: tuple[Any, ...]) -> str:
        named = dict(zip(parts, values, strict=False))
        return request_sha256(**named, options=dict(zip(options, values[len(parts) :], strict=True)))

    assert len({digest(values) for values in every}) == len(every)
    assert digest(every[0]) == hashlib.sha256(b'["a","c",1,null]').hexdigest()


def _credits(micro: int) -> str:
    return f"{micro // 10**6}.{micro % 10**6:06}"
