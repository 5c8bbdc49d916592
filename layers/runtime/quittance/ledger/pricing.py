"""Prices: an agent's tariff, the platform's compute prices, and the limits that a budget buys. Integers only.

The canonical JSON of a tariff (`tariff_json`) is what is stored, hashed and displayed. So the digest in a receipt
refers to exactly the terms that a client can read.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from quittance.canonical_json import Sent
from quittance.ledger.credits import CreditsIn, between
from quittance.limits import AMOUNT_MICRO_MAX, KIB, MIB
from quittance.run import Limits, Meter

_FUEL_PER_RATE: Final = 1_000_000
_FUEL_PER_COMPUTE_PRICE: Final = 1_000_000_000

_Rate = Annotated[CreditsIn, between(0, AMOUNT_MICRO_MAX)]


class FlatTariff(Sent):
    """One price for every successful run."""

    type: Literal["flat"]
    price_micro: _Rate = Field(alias="price")


class MeteredTariff(Sent):
    """A price that follows the meter: base + fuel + memory + output, and at least the minimum."""

    type: Literal["metered"]
    base_micro: _Rate = Field(alias="base", default_factory=int)
    per_million_fuel_micro: _Rate = Field(alias="per_million_fuel", default_factory=int)
    per_mib_memory_micro: _Rate = Field(alias="per_mib_memory", default_factory=int)
    per_kib_output_micro: _Rate = Field(alias="per_kib_output", default_factory=int)
    minimum_micro: _Rate = Field(alias="minimum", default_factory=int)


Tariff = Annotated[FlatTariff | MeteredTariff, Field(discriminator="type")]
_TARIFF: Final[TypeAdapter[FlatTariff | MeteredTariff]] = TypeAdapter(Tariff)


@dataclass(frozen=True, slots=True)
class ComputePrices:
    """The platform's compute prices: for each run, and for 10^9 units of fuel. Zero means free."""

    run_micro: int = 0
    per_billion_fuel_micro: int = 0

    def micro(self, fuel: int) -> int:
        """The compute price of one run that used this much fuel, rounded up."""
        return self.run_micro + divide_up(fuel * self.per_billion_fuel_micro, _FUEL_PER_COMPUTE_PRICE)


FREE: Final = ComputePrices()
_LEAST: Final = Meter(fuel=1, memory_bytes=1)  # of the shortest run: a module without memory cannot write output


def least_budget_micro(tariff: Tariff, compute: ComputePrices) -> int:
    """The least that a successful run can cost its payer: one unit of fuel and some memory. No budget may be lower."""
    return due_micro(tariff, compute, _LEAST)


def due_micro(tariff: Tariff, compute: ComputePrices, meter: Meter) -> int:
    """What a successful run costs its payer: the agent's price plus compute."""
    return price_micro(tariff, meter) + compute.micro(meter.fuel)


def price_micro(tariff: Tariff, meter: Meter) -> int:
    """The agent's price of a successful run. Each part is rounded up to a micro-credit."""
    if isinstance(tariff, FlatTariff):
        return tariff.price_micro
    used = (
        tariff.base_micro
        + divide_up(meter.fuel * tariff.per_million_fuel_micro, _FUEL_PER_RATE)
        + divide_up(meter.memory_bytes, MIB) * tariff.per_mib_memory_micro
        + divide_up(meter.output_bytes, KIB) * tariff.per_kib_output_micro
    )
    return max(used, tariff.minimum_micro)


def limits_bought(tariff: Tariff, compute: ComputePrices, *, budget_micro: int, own: Limits) -> Limits:
    """The limits of a run: each is the agent's own limit, or what the whole budget buys of it if that is lower.

    A run within every single limit may still cost more than the budget in total. It then ends as BUDGET_EXHAUSTED.
    """

    def bought(most: int, unit: int, meter: Callable[[int], Meter]) -> int:
        """The agent's own limit, or the greatest whole number of units whose price the budget covers."""
        if due_micro(tariff, compute, meter(most)) <= budget_micro:
            return most
        units = range(most // unit + 1)
        return unit * (bisect_right(units, budget_micro, key=lambda n: due_micro(tariff, compute, meter(n * unit))) - 1)

    return Limits(
        fuel=max(1, bought(own.fuel, 1, lambda fuel: replace(_LEAST, fuel=fuel))),
        memory_bytes=max(MIB, bought(own.memory_bytes, MIB, lambda size: replace(_LEAST, memory_bytes=size))),
        timeout_ms=own.timeout_ms,
        output_bytes=max(0, bought(own.output_bytes, KIB, lambda size: replace(_LEAST, output_bytes=size))),
    )


def tariff_json(tariff: Tariff) -> str:
    """The canonical JSON of a tariff."""
    return _TARIFF.dump_json(tariff, by_alias=True).decode()


@lru_cache(maxsize=64)
def parse_tariff(text: str) -> Tariff:
    """The tariff of its canonical JSON; a task needs the same one several times, so it is parsed once."""
    return _TARIFF.validate_json(text)


def tariff_sha256(text: str) -> str:
    """The digest that identifies a tariff in receipts, computed from its canonical JSON."""
    return hashlib.sha256(text.encode()).hexdigest()


def divide_up(amount: int, unit: int) -> int:
    """Division that rounds up: each started unit counts."""
    return -(-amount // unit)
