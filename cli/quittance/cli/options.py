"""Options that several commands have, and their values."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Annotated, Final

import typer

from quittance.cli import output
from quittance.cli.exits import UsageError
from quittance.ledger.credits import parse_credits
from quittance.limits import BUDGET_MICRO_MAX, CHANNEL_DAYS_MAX, TIMEOUT_S_ASYNC_MAX
from quittance.sandbox import wasi

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SEED_BYTES: Final = 32
_SPAN: Final = re.compile(r"([0-9]{1,8})([smhd])")
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_SPAN_S_MAX: Final = CHANNEL_DAYS_MAX * 86_400


def _json(wanted: bool) -> bool:  # noqa: FBT001 - typer calls it so
    output.mode.json = wanted
    return wanted


def _quiet(wanted: bool) -> bool:  # noqa: FBT001 - typer calls it so
    output.mode.quiet = wanted
    return wanted


Json = Annotated[
    bool,
    typer.Option("--json", callback=_json, is_eager=True, help="Print one JSON document to stdout, and nothing else."),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_quiet, is_eager=True, help="Print no report and no progress.")
]


def amount(option: str, text: str, *, least_micro: int = 0, most_micro: int = BUDGET_MICRO_MAX) -> int:
    """Micro-credits of an amount on the command line. Raises UsageError."""
    try:
        micro = parse_credits(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}.", "Write it as credits, for example 0.05.") from error
    if not least_micro <= micro <= most_micro:
        raise UsageError(f"{option} is out of range: {text}.", "A budget is from 0.000001 to 1000000 credits.")
    return micro


def timeout_ms(text: str) -> int:
    """Milliseconds of a timeout in whole seconds. Raises UsageError."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= TIMEOUT_S_ASYNC_MAX:
        mend = f"Write whole seconds from 1 to {TIMEOUT_S_ASYNC_MAX}, for example 5."
        raise UsageError(f"--timeout is not valid: {text}.", mend)
    return int(text) * 1_000


def span_s(option: str, text: str) -> int:
    """Seconds of a span, such as 15m. Raises UsageError."""
    found = _SPAN.fullmatch(text)
    seconds = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if not 1 <= seconds <= _SPAN_S_MAX:
        raise UsageError(f"{option} is not valid: {text}.", "Write a span of at most 366 days, such as 15m, 2h or 30d.")
    return seconds


def ahead(option: str, text: str) -> datetime:
    """A time in the future: ISO 8601, or in how long, such as 30d. Raises UsageError."""
    if _SPAN.fullmatch(text):
        return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=span_s(option, text))
    try:
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        mend = "Write in how long (12h, 30d), or a time such as 2027-01-01T00:00:00Z."
        raise UsageError(f"{option} is not valid: {text}.", mend) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def clock_ns(text: str) -> int:
    """Nanoseconds since the epoch: as a receipt has them (`epoch_ns`), or a time in ISO 8601. Raises UsageError."""
    try:
        nanoseconds = int(Decimal(text)) if text.isascii() and text.isdigit() else _of_iso(text)
    except (ValueError, OverflowError, InvalidOperation) as error:
        mend = "Write a time such as 2026-01-01T00:00:00Z, or the epoch_ns of a receipt."
        raise UsageError(f"--clock is not valid: {text}.", mend) from error
    if not 0 <= nanoseconds <= wasi.CLOCK_NS_MAX:
        raise UsageError(f"--clock is out of range: {text}.", "It must be from 1970 to 2262.")
    return nanoseconds


def _of_iso(text: str) -> int:
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1_000


def seed(text: str) -> bytes:
    """The bytes of a seed as a receipt has it: 64 hexadecimal digits. Raises UsageError."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != _SEED_BYTES or len(text) != 2 * _SEED_BYTES:
        raise UsageError(f"--seed is not valid: {text}.", "Write 64 hexadecimal digits, as a receipt has them.")
    return found
