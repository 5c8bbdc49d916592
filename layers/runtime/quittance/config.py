"""The environment variables of a function, as one validated model. `template.yaml` declares every variable."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, field_validator

from quittance.ledger.pricing import ComputePrices
from quittance.limits import (
    AMOUNT_MICRO_MAX,
    ARCHIVE_AFTER_DAYS_MAX,
    ARCHIVE_AFTER_DAYS_MIN,
    FEE_BPS_MAX,
    SLOTS_MAX,
)


class Settings(BaseModel):
    """The configuration that the template gives the functions. A field's name is its variable's name in lower case."""

    ledger_table: str
    registry_table: str
    listings_table: str = ""
    uploads_bucket: str
    binaries_bucket: str
    outputs_bucket: str
    log_bucket: str
    archive_bucket: str = ""
    archive_after_days: int = Field(default=0, ge=0, le=ARCHIVE_AFTER_DAYS_MAX)
    account_concurrency: int = Field(default=0, ge=0, le=SLOTS_MAX)
    tickets_take_slots: bool = False
    ledger_shards: int = Field(ge=1, le=64)
    fee_bps: int = Field(ge=0, le=FEE_BPS_MAX)
    compute_run_micro: int = Field(default=0, ge=0, le=AMOUNT_MICRO_MAX)
    compute_per_billion_fuel_micro: int = Field(default=0, ge=0, le=AMOUNT_MICRO_MAX)
    bond_minimum_micro: int = Field(default=0, ge=0, le=AMOUNT_MICRO_MAX)
    publish_per_mib_micro: int = Field(default=0, ge=0, le=AMOUNT_MICRO_MAX)
    publish_per_cpu_second_micro: int = Field(default=0, ge=0, le=AMOUNT_MICRO_MAX)
    reputation: Literal["reference", "robust"] = "reference"
    platform_account: str
    publish_function: str = ""
    drain_function: str = ""
    task_queue_url: str = ""
    dead_letters_url: str = ""
    event_bus: str = ""
    webhook_queue_url: str = ""
    webhook_loopback_targets: bool = False
    receipt_key_ids: str
    checkpoint_key_ids: str
    webhook_key_ids: str
    card_key_ids: str
    keys_without_purpose: str = ""
    receipt_issuer: str
    issuer_url: str
    jwks_url: str
    audience: str  # one or more, separated by commas; see `audiences`
    audience_claim: Literal["aud", "client_id"] = "aud"
    token_algorithms: str = "RS256,ES256"  # noqa: S105 - names of algorithms
    scratch_dir: Path = Path("/tmp")  # noqa: S108 - the only writable folder of a Lambda environment

    @property
    def compute(self) -> ComputePrices:
        """The prices of computing for tasks funded from now on."""
        return ComputePrices(self.compute_run_micro, self.compute_per_billion_fuel_micro)

    @field_validator(
        "audience", "token_algorithms", "receipt_key_ids", "checkpoint_key_ids", "webhook_key_ids", "card_key_ids"
    )
    @classmethod
    def _is_list(cls, text: str) -> str:
        if not split_list(text):
            msg = "must name at least one; separate several by commas"
            raise ValueError(msg)
        return text

    @field_validator("archive_after_days")
    @classmethod
    def _is_late_enough(cls, days: int) -> int:
        if 0 < days < ARCHIVE_AFTER_DAYS_MIN:
            msg = f"must be 0, which archives nothing, or at least {ARCHIVE_AFTER_DAYS_MIN}"
            raise ValueError(msg)
        return days

    @property
    def audiences(self) -> tuple[str, ...]:
        """The accepted audiences; a token needs one of them."""
        return split_list(self.audience)

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The accepted signature algorithms of tokens."""
        return split_list(self.token_algorithms)


def split_list(text: str) -> tuple[str, ...]:
    """The items of a list separated by commas, without spaces around them; empty items are dropped."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this environment. Raises pydantic.ValidationError, which names each missing variable."""
    return Settings.model_validate({name.lower(): value for name, value in os.environ.items()})
