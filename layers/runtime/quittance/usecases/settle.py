"""Settle: how a funded escrow ends, and the receipt that says so. Every write here is safe to repeat.

    decide → keep output, stderr and, if asked, the input → sign → one conditional write

Every function that finds an overdue escrow expires it here. Who pays what is decided in `ledger/escrow.py`.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quittance import observability, tracing
from quittance.agent import Version
from quittance.errors import PlatformUnavailableError, TaskInProgressError
from quittance.ledger import escrow as escrows
from quittance.ledger.escrow import Escrow, Settlement
from quittance.observability import logger
from quittance.platform import Platform
from quittance.proof import receipt
from quittance.proof.receipt import ReceiptClaims
from quittance.proof.statement import ProofError
from quittance.run import Fault, Input, Meter, Outcome, Run
from quittance.sandbox import CONFIG_DIGEST, ENGINE_VERSION
from quittance.usecases import judges, launch
from quittance.usecases.judges import Judged


@dataclass(frozen=True, slots=True)
class Settled:
    """The stored escrow, the claims of its receipt if it was signed just now, and by digest what was written."""

    escrow: Escrow
    claims: ReceiptClaims | None
    written: Mapping[str, bytes]


def refund(platform: Platform, escrow: Escrow, outcome: Outcome, message: str) -> Escrow:
    """Refunds a funded escrow and its judges' without a run, unless a runner holds it; returns the stored escrow.

    Raises TaskInProgressError while a runner holds it, PlatformUnavailableError.
    """
    runner, now_ms = uuid.uuid4().hex, platform.now_ms()
    lease_ms = min(now_ms + launch.RUN_RESERVE_MS, escrow.expires_ms)
    escrow = platform.ledger.take_over(escrow, runner=runner, now_ms=now_ms, lease_ms=lease_ms)
    if escrow.held_by(runner):
        not_asked = [Judged(judge) for judge in judges.stored(platform, escrow)]
        escrow = settle(platform, escrow, Run(outcome, message, Meter()), None, not_asked).escrow
    return settled(platform, escrow)


def settled(platform: Platform, escrow: Escrow) -> Escrow:
    """The escrow, expired if it is overdue. Raises TaskInProgressError if it is still funded then."""
    escrow = expire_if_overdue(platform, escrow)
    if escrow.settlement is None:
        wait_ms = max(escrow.lease_ms - platform.now_ms(), 1_000)
        raise TaskInProgressError(escrow.task_id, retry_after_s=-(-wait_ms // 1_000))
    return escrow


def expire_if_overdue(platform: Platform, escrow: Escrow) -> Escrow:
    """Refunds a funded escrow whose time is over; returns the stored escrow. Raises PlatformUnavailableError."""
    now_ms = platform.now_ms()
    if escrow.settlement or escrow.expires_ms > now_ms:
        return escrow
    signed = signed_expiry(platform, escrow, escrows.expire(escrow, now_ms=now_ms))
    stored = platform.ledger.expire(escrow, signed)
    observability.settled(stored, signed)
    return stored


def signed_expiry(platform: Platform, escrow: Escrow, settlement: Settlement) -> Settlement:
    """The settlement of an expiry with its receipt, signed without a check of the claims.

    Expiry is the last way to settle an escrow: an invalid claim must not keep money in it.
    """
    claims = _claims(platform, escrow, settlement, Run(settlement.outcome, settlement.message, Meter()), None)
    return _signed(platform, settlement, claims)


@tracing.step("settle")
def settle(
    platform: Platform,
    escrow: Escrow,
    run: Run,
    version: Version | None,
    judged: Sequence[Judged] = (),
    stdin: Input | None = None,
    *,
    redeem: bool = False,
) -> Settled:
    """Settles the escrow and its judges' by the run's outcome, or returns the settlement that another attempt stored.

    `version` is what ran, None if nothing did. `stdin` is what it was to read; it is stored if the task asks to keep
    it. A run that no receipt can state counts as a failure of the platform. With `redeem` the escrow is not stored yet:
    this write takes its ticket's numbers. Then nothing is known to be stored if the ledger does not answer, and the
    method raises PlatformUnavailableError: the same request can be repeated.
    """
    try:
        return _settle(platform, escrow, run, version, judged, stdin, redeem=redeem)
    except ProofError:
        logger.exception("no receipt can state this run")
        lost = Run(Outcome.WORKER_LOST, "The platform cannot state how the run ended.", Meter())
        return _settle(platform, escrow, lost, None, [Judged(judge.escrow) for judge in judged], stdin, redeem=redeem)


def _settle(
    platform: Platform,
    escrow: Escrow,
    run: Run,
    version: Version | None,
    judged: Sequence[Judged],
    stdin: Input | None,
    *,
    redeem: bool,
) -> Settled:
    output = stderr = read = None
    try:
        if stdin and escrow.keep_input:
            read = platform.outputs.keep(stdin.data)
        if version:
            stderr = platform.outputs.keep(run.stderr)
        if run.outcome is Outcome.SUCCEEDED:
            output = platform.outputs.keep(run.stdout)
    except (PlatformUnavailableError, *launch.HOST_FAILURES):
        message = "The platform's storage did not take the input or the output."
        # However the run ended, the platform is at fault now.
        run = replace(run, outcome=Outcome.STORAGE_DOWN, message=message, rejected_by=None, memory_refused=False)
    written = {kept.sha256: data for kept, data in ((output, run.stdout), (stderr, run.stderr)) if kept}
    now_ms = platform.now_ms()
    try:
        judge_escrows = [_settled_judge(platform, judge, run, now_ms) for judge in judged]
        judging_micro = judges.costs_micro(escrow, judge_escrows)
        settlement = escrows.decide(escrow, run, now_ms=now_ms, judging_micro=judging_micro)
        settlement = replace(settlement, output=output, stderr=stderr, stdin=read)
        claims = _checked_claims(platform, escrow, settlement, run, version)
        signed = _signed(platform, settlement, claims)
        ended = replace(escrow, settlement=signed)
        stored = _redeem(platform, ended) if redeem else platform.ledger.settle(ended, *judge_escrows)
        ours = stored.settlement == signed
        if ours:
            for judge in judge_escrows:
                if judge.settlement:
                    observability.settled(judge, judge.settlement)
        observability.settled(stored, signed)
        return Settled(expire_if_overdue(platform, stored), claims if ours else None, written)
    except (PlatformUnavailableError, *launch.HOST_FAILURES) as exc:
        logger.warning("settlement unknown")
        if redeem:  # there is no stored escrow whose result could be read later
            raise PlatformUnavailableError from exc
        return Settled(_stored(platform, escrow), None, written)


def _redeem(platform: Platform, ended: Escrow) -> Escrow:
    """Stores a settled escrow that a ticket pays; returns the stored escrow. Raises PlatformUnavailableError."""
    if ended.settlement is None or ended.settlement.settled_ms >= ended.expires_ms:
        raise PlatformUnavailableError  # this runner was delayed: no verifier would accept what it states
    return platform.ledger.redeem(ended)


def _settled_judge(platform: Platform, judged: Judged, task: Run, now_ms: int) -> Escrow:
    """A judge's escrow with its settlement, which depends on how the task that it judged ended."""
    judge, run, version = judged.escrow, judged.run or judges.NOT_NEEDED, judged.version
    settlement = judges.settlement(judge, judged.run, task, now_ms=now_ms)
    if settlement.outcome is Outcome.SUCCEEDED:
        settlement = replace(settlement, output=platform.outputs.keep(run.stdout))
    else:  # the receipt must state nothing that follows from what the judge read
        judge = replace(judge, input_sha256=judges.NOTHING_READ)
    if settlement.fault is Fault.PLATFORM:
        run, version = Run(settlement.outcome, settlement.message, Meter()), None
    claims = _checked_claims(platform, judge, settlement, run, version)
    return replace(judge, settlement=_signed(platform, settlement, claims))


def _stored(platform: Platform, escrow: Escrow) -> Escrow:
    """The escrow as it is stored, or as it was known if the ledger does not answer."""
    try:
        return platform.ledger.find(escrow.escrow_id) or escrow
    except PlatformUnavailableError:
        return escrow


def _checked_claims(
    platform: Platform, escrow: Escrow, settlement: Settlement, run: Run, version: Version | None
) -> ReceiptClaims:
    """The claims of a receipt. Raises ProofError if a verifier would refuse them: they must not be signed."""
    claims = _claims(platform, escrow, settlement, run, version)
    receipt.check_claims(claims)
    return claims


def _claims(
    platform: Platform, escrow: Escrow, settlement: Settlement, run: Run, version: Version | None
) -> ReceiptClaims:
    return ReceiptClaims.of(
        escrow,
        settlement,
        run,
        issuer=platform.settings.receipt_issuer,
        engine=ENGINE_VERSION if version else "",  # of this environment, which may be newer than the artefact
        config_sha256=CONFIG_DIGEST if version else "",
    )


def _signed(platform: Platform, settlement: Settlement, claims: ReceiptClaims) -> Settlement:
    """The settlement with its receipt. If another attempt's is stored first, this receipt is discarded."""
    return replace(settlement, receipt=receipt.sign(claims, platform.signing_key(at_ms=settlement.settled_ms)))
