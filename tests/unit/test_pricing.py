import hashlib
import json
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from quittance.limits import AMOUNT_MICRO_MAX, BUDGET_MICRO_MAX, FUEL_MAX, MEMORY_BYTES_MAX, OUTPUT_BYTES_MAX
from quittance.money import format_credits
from quittance.pricing import (
    Tariff,
    fuel_bought,
    least_price_micro,
    parse_tariff,
    price_micro,
    tariff_json,
    tariff_sha256,
)
from quittance.run import Meter

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


def metered_by_hand(tariff: Any, meter: Meter) -> int:
    """The price before the budget caps it, computed again with fractions."""
    used = (
        tariff.base_micro
        + ceil(Fraction(meter.fuel, 10**6) * tariff.per_million_fuel_micro)
        + ceil(Fraction(meter.memory_bytes, 2**20)) * tariff.per_mib_memory_micro
        + ceil(Fraction(meter.output_bytes, 2**10)) * tariff.per_kib_output_micro
    )
    return max(used, tariff.minimum_micro)


@given(METERED, METERS, BUDGETS)
def test_a_metered_price_is_exact_and_never_over_the_budget(tariff: Tariff, meter: Meter, budget: int) -> None:
    assert price_micro(tariff, meter, budget_micro=budget) == min(metered_by_hand(tariff, meter), budget)


@given(RATES, METERS, BUDGETS)
def test_a_flat_price_ignores_the_meter(price: int, meter: Meter, budget: int) -> None:
    assert price_micro(flat(price), meter, budget_micro=budget) == min(price, budget)
    assert least_price_micro(flat(price)) == price
    assert fuel_bought(flat(price), budget_micro=budget, fuel_max=FUEL_MAX) == FUEL_MAX


@given(TARIFFS, METERS, BUDGETS, st.sampled_from(["fuel", "memory_bytes", "output_bytes"]), st.integers(0, 10**9))
def test_more_use_never_costs_less(tariff: Tariff, meter: Meter, budget: int, part: str, more: int) -> None:
    grown = replace(meter, **{part: getattr(meter, part) + more})
    price = price_micro(tariff, meter, budget_micro=budget)
    assert price <= price_micro(tariff, grown, budget_micro=budget)
    assert price <= price_micro(tariff, meter, budget_micro=budget + more)


@given(TARIFFS, METERS, BUDGETS)
def test_the_least_price_buys_one_unit_of_fuel_and_no_run_that_used_it_costs_less(
    tariff: Tariff, meter: Meter, budget: int
) -> None:
    least = least_price_micro(tariff)
    run = replace(meter, fuel=max(meter.fuel, 1))
    assert price_micro(tariff, Meter(fuel=1), budget_micro=max(budget, least)) == least
    assert price_micro(tariff, run, budget_micro=max(budget, least)) >= least
    assert fuel_bought(tariff, budget_micro=max(budget, least), fuel_max=FUEL_MAX) >= 1


@given(METERED, BUDGETS, st.integers(1, FUEL_MAX))
@example(metered(base=1, per_million_fuel=3), 2, FUEL_MAX)
def test_the_fuel_that_a_budget_buys_is_all_that_it_can_pay(tariff: Any, budget: int, fuel_max: int) -> None:
    assume(budget >= tariff.base_micro)
    bought = fuel_bought(tariff, budget_micro=budget, fuel_max=fuel_max)

    def cost(fuel: int) -> Fraction:
        return tariff.base_micro + Fraction(fuel, 10**6) * tariff.per_million_fuel_micro

    assert 0 <= bought <= fuel_max
    assert ceil(cost(bought)) <= budget
    assert bought == fuel_max or cost(bought + 1) > budget


def test_a_budget_below_the_base_buys_no_fuel() -> None:
    assert fuel_bought(metered(base=10, per_million_fuel=1), budget_micro=9, fuel_max=FUEL_MAX) == 0


def test_the_largest_numbers_are_exact() -> None:
    """At 10^12 micro of budget and 10^12 fuel, where a float would have lost micro-credits."""
    tariff = metered(base=1, per_million_fuel=999_999)
    assert price_micro(tariff, Meter(fuel=10**12 - 1), budget_micro=10**12) == 999_999_000_001
    assert fuel_bought(tariff, budget_micro=10**12, fuel_max=10**13) == (10**12 - 1) * 10**6 // 999_999
    assert price_micro(metered(base=10**12 - 1), Meter(), budget_micro=10**12) == 10**12 - 1
    assert price_micro(metered(base=10**12 + 1), Meter(), budget_micro=10**12) == 10**12


@given(TARIFFS)
def test_a_tariff_survives_its_json_and_keeps_its_digest(tariff: Tariff) -> None:
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
def test_the_canonical_json_is_the_one_that_receipts_have_named_so_far(spelt: str, canonical: str) -> None:
    assert tariff_json(parse_tariff(spelt)) == canonical


@pytest.mark.parametrize("part", ["price", *PARTS])
def test_a_rate_at_its_limit_and_one_beyond(part: str) -> None:
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
        {"type": "flat", "price_micro": "1"},  # would read as micro-credits and count as credits
        {"type": "metered", "base_micro": "1"},
        [],
        None,
    ],
)
def test_terms_that_are_unknown_or_missing_are_refused(terms: object) -> None:
    with pytest.raises(ValidationError):
        parse_tariff(json.dumps(terms))
