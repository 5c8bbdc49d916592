"""The audit: every item of the ledger read, every invariant recomputed."""

from collections.abc import Mapping
from typing import Any, Final

from quittance import log, reputation
from quittance.audit import Audit, Difference, audit
from quittance.bootstrap import Platform
from quittance.certified import ProofError
from quittance.errors import shortened
from quittance.limits import AUDIT_DIFFERENCES_SHOWN_MAX, AUDIT_LINE_CHARS_MAX
from quittance.money import format_credits
from quittance.store.blobs import BlobMissingError

_PASSES: Final = 3
STANDINGS_SHOWN_MAX: Final = 10_000  # a Lambda answer has room for them


def run(platform: Platform) -> Audit:
    """Audits the ledger. Raises PlatformUnavailableError.

    A scan is no snapshot: an account that moves while it runs may look wrong. So a difference counts only if it is
    found again, of the same size, in two more passes.
    """
    result = _pass(platform)
    for _ in range(_PASSES - 1):
        if not result.differences:
            break
        before = {_name(difference) for difference in result.differences}
        result = _pass(platform)
        result.differences = [difference for difference in result.differences if _name(difference) in before]
    return result


def report(result: Audit) -> list[str]:
    """The conservation equation with both sides, and a line for each difference, as many as an answer has room for."""
    inside = result.available_micro + result.held_micro + result.uncredited_micro
    lines = [
        f"escrows      {result.escrows}",
        f"in the log   {result.log.size}, published {result.log.published}",
        f"deposited    {format_credits(result.deposited_micro)}",
        f"withdrawn    {format_credits(result.withdrawn_micro)}",
        f"to pay out   {format_credits(result.waiting_micro)} in {result.payouts_waiting} withdrawals",
        f"available    {format_credits(result.available_micro)}",
        f"held         {format_credits(result.held_micro)}",
        f"uncredited   {format_credits(result.uncredited_micro)}",
        f"charged      {format_credits(result.charged_micro)}",
        f"written off  {format_credits(result.written_off_micro)}",
        f"deposited - withdrawn = {format_credits(result.deposited_micro - result.withdrawn_micro)}",
        f"available + held + uncredited = {format_credits(inside)}",
        f"differences  {len(result.differences)}",
    ]
    shown = result.differences[:AUDIT_DIFFERENCES_SHOWN_MAX]
    lines += [
        shortened(
            f"{difference.invariant} at {difference.at}: expected {difference.expected}, found {difference.found}",
            AUDIT_LINE_CHARS_MAX,
        )
        for difference in shown
    ]
    more = len(result.differences) - len(shown)
    return [*lines, f"{more} more differences: mend these first"] if more else lines


def standings(result: Audit) -> list[str]:
    """A line for each agent, at most STANDINGS_SHOWN_MAX: its scores as its receipts alone make them."""
    lines = [f"{'agent':26} {'outcomes':>8} " + " ".join(f"{name:>9}" for name in reputation.ALGORITHMS)]
    for agent_id, standing in sorted(result.standings.items())[:STANDINGS_SHOWN_MAX]:
        scores = [reputation.score_tenths(standing, name) / 10 for name in reputation.ALGORITHMS]
        lines.append(f"{agent_id:26} {standing.outcomes:8} " + " ".join(f"{score:9}" for score in scores))
    wrong = sum(difference.invariant == "I16" for difference in result.differences)
    return [*lines, f"{len(result.standings)} agents, {wrong} of them kept otherwise than their receipts say"]


def _pass(platform: Platform) -> Audit:
    jwks = platform.keys.jwks()
    result = audit(
        platform.ledger.everything(),
        jwks=jwks,
        platform_account=platform.settings.platform_account,
        now_ms=platform.now_ms(),
    )
    _check_checkpoint(platform, result, jwks)
    return result


def _check_checkpoint(platform: Platform, result: Audit, jwks: Mapping[str, Any]) -> None:
    """I15: the newest checkpoint commits to the receipts that the ledger has, in the log's order."""
    size = result.log.published
    if not size:
        return
    root = log.grow(0, result.leaves[:size], platform.tiles.read).root.hex()
    try:
        stated = log.verify_checkpoint(platform.tiles.checkpoint(size), jwks)
    except (ProofError, BlobMissingError) as exc:
        result.check("I15", f"checkpoint {size}", "a valid checkpoint", repr(exc))
    else:
        result.check("I15", f"checkpoint {size}", (size, root), (stated.size, stated.root.hex()))


def _name(difference: Difference) -> tuple[str, str, str]:
    return difference.invariant, difference.at, str(difference.gap)
