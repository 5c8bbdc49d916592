import hashlib
import json
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from quittance.ledger.credits import format_credits
from quittance.ledger.pricing import (
    FREE,
    ComputePrices,
    FlatTariff,
    Tariff,
    due_micro,
    least_budget_micro,
    limits_bought,
    parse_tariff,
    price_micro,
    tariff_json,
    tariff_sha256,
)
from quittance.limits import AMOUNT_MICRO_MAX, BUDGET_MICRO_MAX, FUEL_MAX, KIB, MEMORY_BYTES_MAX, MIB, OUTPUT_BYTES_MAX
from quittance.run import Limits, Meter

PARTS = ("base", "per_million_fuel", "per_mib_memory", "per_kib_output", "minimum")
RATES = st.one_of(st.integers(0, 2_000), st.integers(0, AMOUNT_MICRO_MAX))
BUDGETS = st.one_of(st.integers(1, 10_000), st.integers(1, BUDGET_MICRO_MAX))
METERS = st.builds(
    Meter,
    fuel=st.one_of(st.integers(0, 3_000_000), st.integers(0, FUEL_MAX)),
    memory_bytes=st.integers(0, MEMORY_BYTES_MAX),
    output_bytes=st.integers(0, OUTPUT_BYTES_MAX),
    cpu_ms=st.integers(0, 600_000),
    wall_ms=st.integers(0, 600_000),
)


def metered(**rates_micro: int) -> Tariff:
    return parse_tariff(json.dumps({"type": "metered"} | {n: format_credits(r) for n, r in rates_micro.items()}))


def flat(micro: int) -> Tariff:
    return parse_tariff(json.dumps({"type": "flat", "price": format_credits(micro)}))


METERED = st.fixed_dictionaries(dict.fromkeys(PARTS, RATES)).map(lambda rates: metered(**rates))
TARIFFS = st.one_of(METERED, RATES.map(flat))
COMPUTE = st.builds(ComputePrices, RATES, RATES)
OWN = Limits(FUEL_MAX, MEMORY_BYTES_MAX, 25_000, OUTPUT_BYTES_MAX)


def price_by_hand(tariff: Any, meter: Meter) -> int:
    """The price, computed independently with fractions."""
    if isinstance(tariff, FlatTariff):
        return tariff.price_micro
    used = (
        tariff.base_micro
        + ceil(Fraction(meter.fuel, 10**6) * tariff.per_million_fuel_micro)
        + ceil(Fraction(meter.memory_bytes, 2**20)) * tariff.per_mib_memory_micro
        + ceil(Fraction(meter.output_bytes, 2**10)) * tariff.per_kib_output_micro
    )
    return max(used, tariff.minimum_micro)


def due_by_hand(tariff: Tariff, compute: ComputePrices, meter: Meter) -> int:
    """The amount due from the payer, computed independently with fractions."""
    fuel = ceil(Fraction(meter.fuel, 10**9) * compute.per_billion_fuel_micro)
    return price_by_hand(tariff, meter) + compute.run_micro + fuel


@given(TARIFFS, COMPUTE, METERS)
def test_prices_and_amounts_due_are_exact(tariff: Tariff, compute: ComputePrices, meter: Meter) -> None:
    assert price_micro(tariff, meter) == price_by_hand(tariff, meter)
    assert due_micro(tariff, compute, meter) == due_by_hand(tariff, compute, meter)


def test_free_compute_costs_nothing() -> None:
    assert FREE.micro(FUEL_MAX) == 0


@given(TARIFFS, COMPUTE, METERS, st.sampled_from(["fuel", "memory_bytes", "output_bytes"]), st.integers(0, 10**9))
def test_more_use_never_costs_less(tariff: Tariff, compute: ComputePrices, meter: Meter, part: str, more: int) -> None:
    grown = replace(meter, **{part: getattr(meter, part) + more})
    assert due_micro(tariff, compute, meter) <= due_micro(tariff, compute, grown)


@given(TARIFFS, COMPUTE, METERS)
def test_no_run_costs_less_than_the_least_budget(tariff: Tariff, compute: ComputePrices, meter: Meter) -> None:
    run = replace(meter, fuel=max(meter.fuel, 1), memory_bytes=max(meter.memory_bytes, 1))
    assert due_micro(tariff, compute, run) >= least_budget_micro(tariff, compute)


@given(TARIFFS, COMPUTE, BUDGETS)
@example(metered(base=1, per_million_fuel=3), FREE, 2)
@example(metered(base=1, per_million_fuel=3), ComputePrices(1, 7), 4)
def test_a_budget_buys_the_most_of_each_limit(tariff: Tariff, compute: ComputePrices, budget: int) -> None:
    budget = max(budget, least_budget_micro(tariff, compute))
    bought = limits_bought(tariff, compute, budget_micro=budget, own=OWN)
    least = Meter(fuel=1, memory_bytes=1)
    for name, unit in (("fuel", 1), ("memory_bytes", MIB), ("output_bytes", KIB)):
        given, own = getattr(bought, name), getattr(OWN, name)
        assert due_by_hand(tariff, compute, replace(least, **{name: given})) <= budget
        if given < own:
            assert due_by_hand(tariff, compute, replace(least, **{name: given + unit})) > budget
        else:
            assert given == own
    assert bought.timeout_ms == OWN.timeout_ms
    assert bought.fuel >= 1
    assert bought.memory_bytes >= MIB


def test_the_smallest_budget_buys_almost_nothing() -> None:
    """A former bug: with a price for output only, 0.000001 bought 100 KiB of output and 10^12 units of fuel."""
    tariff, compute = metered(per_kib_output=1_000_000), ComputePrices(0, 40)
    bought = limits_bought(tariff, compute, budget_micro=1, own=OWN)
    assert (bought.output_bytes, bought.fuel) == (0, 25_000_000)
    assert limits_bought(metered(), ComputePrices(10, 40), budget_micro=10, own=OWN).fuel == 1


def test_the_largest_numbers_are_exact() -> None:
    """With a budget of 10^12 micro-credits and 10^12 fuel, where a float would lose micro-credits."""
    tariff = metered(base=1, per_million_fuel=999_999)
    assert price_micro(tariff, Meter(fuel=10**12 - 1)) == 999_999_000_001
    own = replace(OWN, fuel=10**13)
    assert limits_bought(tariff, FREE, budget_micro=10**12, own=own).fuel == (10**12 - 1) * 10**6 // 999_999
    assert ComputePrices(1, 999_999_999).micro(10**12 - 1) == 999_999_999_001


@given(TARIFFS)
def test_a_tariff_round_trips_and_keeps_its_digest(tariff: Tariff) -> None:
    text = tariff_json(tariff)
    assert parse_tariff(text) == tariff
    assert tariff_json(parse_tariff(text)) == text
    assert tariff_sha256(text) == hashlib.sha256(text.encode()).hexdigest()
    assert not any(isinstance(member, float) for member in json.loads(text).values())


@pytest.mark.parametrize(
    ("spelt", "canonical"),
    [
        ('{"price": "0.010000", "type": "flat"}', '{"type":"flat","price":"0.01"}'),
        (
            '{"minimum":"0","type":"metered","base":1,"per_million_fuel":"0.00010"}',
            (
                '{"type":"metered","base":"1","per_million_fuel":"0.0001",'
                '"per_mib_memory":"0","per_kib_output":"0","minimum":"0"}'
            ),
        ),
    ],
)
def test_canonical_json_of_tariffs_never_changes(spelt: str, canonical: str) -> None:
    assert tariff_json(parse_tariff(spelt)) == canonical


@pytest.mark.parametrize("part", ["price", *PARTS])
def test_rate_limits_are_exact(part: str) -> None:
    kind = "flat" if part == "price" else "metered"
    at_limit = parse_tariff(json.dumps({"type": kind, part: "1000000000"}))
    assert getattr(at_limit, f"{part}_micro") == AMOUNT_MICRO_MAX
    for beyond in ("1000000000.000001", "-0.000001"):
        with pytest.raises(ValidationError, match="must be"):
            parse_tariff(json.dumps({"type": kind, part: beyond}))


@pytest.mark.parametrize(
    "terms",
    [
        {"type": "flat"},
        {"type": "flat", "price": "1", "base": "1"},
        {"type": "flat", "price": None},
        {"type": "metered", "price": "1"},
        {"type": "metered", "per_second": "1"},
        {"type": "free"},
        {"price": "1"},
        {"type": "flat", "price_micro": "1"},  # the name says micro-credits, but the value would count as credits
        {"type": "metered", "base_micro": "1"},
        [],
        None,
    ],
)
def test_unknown_or_missing_terms_are_rejected(terms: object) -> None:
    with pytest.raises(ValidationError):
        parse_tariff(json.dumps(terms))
