"""What a run costs: an agent's tariff, the price of a meter, and what a budget buys. Integers of micro-credits only.

The JSON form of a tariff (`tariff_json`) is the one stored, hashed and shown, so the terms that a receipt names by
digest are the terms that a client can read.
"""

import hashlib
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from quittance.exact_json import Sent
from quittance.limits import AMOUNT_MICRO_MAX, KIB, MIB
from quittance.money import CreditsIn, between
from quittance.run import Meter

_FUEL_PER_RATE: Final = 1_000_000

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


def least_price_micro(tariff: Tariff) -> int:
    """The least that a successful run can cost, its first unit of fuel included: no task is funded with less."""
    if isinstance(tariff, FlatTariff):
        return tariff.price_micro
    first_fuel_micro = _divide_up(tariff.per_million_fuel_micro, _FUEL_PER_RATE)
    return max(tariff.base_micro + first_fuel_micro, tariff.minimum_micro)


def price_micro(tariff: Tariff, meter: Meter, *, budget_micro: int) -> int:
    """The price of a successful run: every part rounded up to a micro-credit, the sum never over the budget."""
    if isinstance(tariff, FlatTariff):
        return min(tariff.price_micro, budget_micro)
    used = (
        tariff.base_micro
        + _divide_up(meter.fuel * tariff.per_million_fuel_micro, _FUEL_PER_RATE)
        + _divide_up(meter.memory_bytes, MIB) * tariff.per_mib_memory_micro
        + _divide_up(meter.output_bytes, KIB) * tariff.per_kib_output_micro
    )
    return min(max(used, tariff.minimum_micro), budget_micro)


def fuel_bought(tariff: Tariff, *, budget_micro: int, fuel_max: int) -> int:
    """The fuel limit of a run: the agent's own, or what is left of the budget after the base buys, if that is less.

    A budget of at least the least price buys some.
    """
    if isinstance(tariff, FlatTariff) or not tariff.per_million_fuel_micro:
        return fuel_max
    spendable_micro = max(0, budget_micro - tariff.base_micro)
    return min(fuel_max, spendable_micro * _FUEL_PER_RATE // tariff.per_million_fuel_micro)


def tariff_json(tariff: Tariff) -> str:
    """The canonical JSON of a tariff."""
    return _TARIFF.dump_json(tariff, by_alias=True).decode()


def parse_tariff(text: str) -> Tariff:
    """The tariff of its canonical JSON."""
    return _TARIFF.validate_json(text)


def tariff_sha256(text: str) -> str:
    """The digest by which a receipt names a tariff, from its canonical JSON."""
    return hashlib.sha256(text.encode()).hexdigest()


def _divide_up(amount: int, unit: int) -> int:
    return -(-amount // unit)
