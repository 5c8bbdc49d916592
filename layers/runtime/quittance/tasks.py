"""The story of one task, from the request to the answer. Nothing else decides about money.

    check → fund → run → accept → decide → settle → answer

A task that goes well makes two writes to the ledger and no read. Whatever crashes between them, the budget stays held
until another attempt takes the task over, or until the escrow expires and is refunded. Where the operator limits how
many tasks of one account run at once, a run also takes one of its payer's slots, and gives it back.

A judge that scores the output is a task of its own, with an escrow of its own: funded in the same write as the task's,
and settled in the same write. Who bears what is decided in `escrow.decide`; docs/who-pays.md has the table.
"""

import hashlib
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from quittance import acceptance, judging, messages, observability, pricing, receipt, reputation, tracing, webhook
from quittance import escrow as escrows
from quittance.acceptance import SCORE_RULES, Judge, Rules, Verdict, parse_rules, rules_json, rules_sha256
from quittance.bond import is_bond, owner_of
from quittance.bootstrap import Platform
from quittance.certified import ProofError
from quittance.errors import (
    AccountFrozenError,
    AgentNotReadyError,
    BudgetTooLowError,
    FundingPausedError,
    InvalidRequestError,
    JudgingTooDearError,
    NotFoundError,
    PlatformUnavailableError,
    ReputationTooLowError,
    RequestError,
    TaskConflictError,
    TaskInProgressError,
    TermsChangedError,
    TimeoutTooLongError,
    TooManyRunningError,
)
from quittance.escrow import Escrow, Hire, Settlement, StoredBytes
from quittance.limits import (
    ESCROW_GRACE_MS,
    KILL_MARGIN_MS,
    LOAD_MS_MAX,
    QUEUE_WAIT_MS_MAX,
    SETTLE_RESERVE_MS,
    SLOT_RETRY_S_MAX,
    SLOT_RETRY_S_MIN,
    TIMEOUT_S_ASYNC_MAX,
    TIMEOUT_S_MIN,
    TIMEOUT_S_SYNC_MAX,
    VERDICT_MS_MAX,
)
from quittance.models import JudgeAnswer, ResourceUsage, TaskError, TaskPending, TaskRequest, TaskResult, as_text
from quittance.observability import Metric, logger
from quittance.run import Fault, Job, Limits, Meter, Outcome, Run, Side
from quittance.sandbox import CONFIG_DIGEST, ENGINE_VERSION, artefact_key
from quittance.store.blobs import BlobMissingError, BlobTamperedError
from quittance.store.registry import Agent, Version
from quittance.store.slots import Busy

_RECOMPILE_S: Final = 5
# This machine's own: no descriptor, no memory, a broken disk. While a budget is held, they are outcomes as others are.
_HOST_FAILURES: Final = (OSError, MemoryError)
_SUPERSEDED: Final = "The agent is not the one any more that the task was funded for; the budget was refunded."
_REFUSED_NOW: Final = "The task would be refused if it were sent now; the budget was refunded."
_OF_FROZEN_OWNER: Final = "frozen"
_FROZEN: Final = "The user's account, or the agent's owner's, was frozen before the task ran; the budget was refunded."
# The most that a run without rules takes beside its timeout.
_RUN_RESERVE_MS: Final = LOAD_MS_MAX + KILL_MARGIN_MS + SETTLE_RESERVE_MS


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One invocation's try at a task: who asks for what, which runner tries, and how long a run it can bear."""

    user: str
    request: TaskRequest
    stdin: bytes
    input_sha256: str
    runner: str
    timeout_s_max: int

    @classmethod
    def of(cls, user: str, request: TaskRequest, timeout_s_max: int) -> Self:
        """A new attempt."""
        stdin = request.stdin()
        return cls(user, request, stdin, hashlib.sha256(stdin).hexdigest(), uuid.uuid4().hex, timeout_s_max)


@dataclass(frozen=True, slots=True)
class _Ready:
    """An agent that takes tasks: its active version, and the rules that it publishes for its outputs."""

    agent: Agent
    version: Version
    rules: Rules

    def may_do(self, escrow: Escrow) -> bool:
        """Whether this is still what an escrow was funded for."""
        now = (self.version.module_sha256, rules_sha256(self.agent.terms.rules))
        return now == (escrow.module_sha256, escrow.agent_rules_sha256)


@dataclass(frozen=True, slots=True)
class _Seat:
    """A judge's part in a task: by whose rule, and which agent."""

    side: Side
    rule: Judge
    ready: _Ready

    @property
    def payers_micro(self) -> int:
        """What of the offered budget is held for the judge: the agent's own is paid by its owner's bond."""
        return self.rule.budget_micro if self.side is Side.TASK else 0

    @property
    def timeout_s(self) -> int:
        """How long the judge may take."""
        return self.ready.agent.terms.timeout_s


def execute(
    platform: Platform,
    user: str,
    request: TaskRequest,
    *,
    timeout_s_max: int = TIMEOUT_S_SYNC_MAX,
    leased: Callable[[Escrow], None] = lambda _: None,
) -> TaskResult | TaskPending:
    """Runs a task for a user and settles its escrow; the same request again gives the same answer.

    `timeout_s_max` is for how long this way in can wait for a run; `leased` is told, before the run, of the escrow and
    how long it is ours. A TaskPending means that the outcome is not known yet and can be read later. Raises
    RequestError (no money moved) and PlatformUnavailableError (repeat the request).
    """
    attempt = _Attempt.of(user, request, timeout_s_max)
    with ExitStack() as slot:  # given back when the task is answered
        return _execute(platform, attempt, leased, slot)


def _execute(
    platform: Platform, attempt: _Attempt, leased: Callable[[Escrow], None], slot: ExitStack
) -> TaskResult | TaskPending:
    user, request = attempt.user, attempt.request
    try:
        ready, seats = _check(platform, attempt)
        hold, judges = _holds(platform, attempt, ready, seats)
        observability.about(hold)
        _check_pause(platform, hold)
        _take_slot(platform, hold, slot, keep_ms=_span_ms(hold, seats))
        with tracing.step("fund"):
            stored = platform.ledger.fund(hold, *judges, keep_ms=_span_ms(hold, seats))
        escrow = observability.funded(stored, by=attempt.runner)
    except RequestError as refusal:
        # A task that was funded before is answered from its escrow, whatever has become of the agent or the balance.
        earlier = platform.ledger.find(escrows.escrow_id(user, request.task_id))
        if earlier is None:
            raise
        return _answer(platform, _join_refused(platform, earlier, attempt, refusal))
    if escrow.runner != attempt.runner:
        escrow, judges = _join(platform, escrow, attempt, ready, seats)
    if escrow.settlement:
        return _answer(platform, escrow)
    leased(escrow)
    run = _run(platform, escrow, ready, attempt.stdin, keep_ms=_span_ms(escrow, seats) - escrow.timeout_ms)
    run = _held_to(ready.rules, request.acceptance, escrows.held_to_budget(escrow, run))
    run, judged = _judge(platform, escrow, attempt, list(zip(seats, judges, strict=True)), run)
    run = _doubted(platform, escrow, ready, attempt.stdin, run)
    settled = _settle(platform, escrow, run, ready.version, judged)
    return _answer(platform, settled, at_hand=(run.stdout, run.stderr))


def submit(platform: Platform, user: str, request: TaskRequest) -> TaskResult | TaskPending:
    """Funds a task and puts it into the queue; one that is settled already is answered with its result.

    Every refusal comes now, not from the queue. The same request again puts it there again, unless it runs: whoever
    works on it second finds it taken. Raises RequestError (no money moved), PlatformUnavailableError (repeat the
    request; if nobody does, the escrow expires).
    """
    attempt = _Attempt.of(user, request, TIMEOUT_S_ASYNC_MAX)
    try:
        ready, seats = _check(platform, attempt)
        hold, judges = _holds(platform, attempt, ready, seats)
        # A lease that has lapsed: it is nobody's yet, and whoever gets the message takes it over.
        hold, *judges = (
            replace(each, lease_ms=each.funded_ms, expires_ms=each.expires_ms + QUEUE_WAIT_MS_MAX)
            for each in (hold, *judges)
        )
        observability.about(hold)
        _check_pause(platform, hold)
        escrow = observability.funded(platform.ledger.fund(hold, *judges), by=attempt.runner)
    except RequestError:
        earlier = platform.ledger.find(escrows.escrow_id(user, request.task_id))
        if earlier is None:
            raise
        escrow = earlier
    if escrow.request_sha256 != _request_sha256(attempt):
        raise TaskConflictError(escrow.task_id)
    escrow = expire_if_overdue(platform, escrow)
    # Clocks differ: one that nobody ever ran is in nobody's hands, even if it seems to be of the future.
    if escrow.settlement is None and escrow.lease_ms <= max(platform.now_ms(), escrow.funded_ms):
        messages.send(platform, user, request, attempt.stdin)
    return _answer(platform, escrow)


def refund(platform: Platform, escrow: Escrow, outcome: Outcome, message: str) -> Escrow:
    """Refunds a funded escrow and its judges' without a run, once nobody holds it; returns it as it is settled.

    Raises TaskInProgressError while somebody holds it, PlatformUnavailableError.
    """
    runner, now_ms = uuid.uuid4().hex, platform.now_ms()
    lease_ms = min(now_ms + _RUN_RESERVE_MS, escrow.expires_ms)
    escrow = platform.ledger.take_over(escrow, runner=runner, now_ms=now_ms, lease_ms=lease_ms)
    if escrow.runner == runner and escrow.settlement is None:
        judged = [_Judged(judge) for judge in _stored_judges(platform, escrow)]
        escrow = _settle(platform, escrow, Run(outcome, message, Meter()), None, judged)
    return _settled(platform, escrow)


def request_sha256(request: TaskRequest, input_sha256: str) -> str:
    """The digest that distinguishes a repeated request from another one under the same task_id."""
    return escrows.request_sha256(
        agent_id=request.agent_id,
        input_sha256=input_sha256,
        budget_micro=request.budget_micro,
        timeout_s=request.timeout,
        wishes={
            "min_reputation": request.min_reputation,
            "acceptance": _rules_sha256(request),
            "webhook": request.webhook,
            "module_sha256": request.module_sha256,
            "tariff_sha256": request.tariff_sha256,
            "rules_sha256": request.rules_sha256,
            "max_judging": request.max_judging_micro,
        },
    )


def result(platform: Platform, caller: str, task_id: str, *, user: str | None = None) -> TaskResult | TaskPending:
    """The outcome of a task: whole for its user, without output and log for the agent's owner.

    The owner names the `user` whose task it is. Raises NotFoundError, PlatformUnavailableError.
    """
    escrow = expire_if_overdue(platform, find(platform, caller, task_id, user=user))
    if caller != (user or caller) and escrow.settlement:
        escrow = replace(escrow, settlement=replace(escrow.settlement, output=None, log=None))
    return _answer(platform, escrow)


def find(platform: Platform, caller: str, task_id: str, *, user: str | None = None) -> Escrow:
    """The escrow of a task or of its judge, for the task's user, the owner of the agent, and who pays for it.

    Raises NotFoundError, PlatformUnavailableError.
    """
    payer = user or caller
    named, _, side = task_id.partition(escrows.JUDGE_MARK)
    escrow = platform.ledger.find(escrows.escrow_id(payer, named))
    if escrow and side:
        hire = next((hire for hire in escrow.judges if hire.side == side), None)
        escrow = platform.ledger.find(hire.escrow_id) if hire else None
    if escrow is None or caller not in {payer, escrow.owner} | _bond_owner(escrow.payer):
        msg = f"You have no task {task_id!r}."
        raise NotFoundError(msg)
    observability.about(escrow)
    return escrow


def expire_if_overdue(platform: Platform, escrow: Escrow) -> Escrow:
    """Refunds a funded escrow whose time is over, whoever comes across it; returns the escrow that stands."""
    now_ms = platform.now_ms()
    if escrow.settlement or escrow.expires_ms > now_ms:
        return escrow
    settlement = escrows.expire(escrow, now_ms=now_ms)
    signed = _signed(platform, escrow, settlement)
    return observability.settled(platform.ledger.expire(escrow, signed), signed)


@tracing.step("check")
def _check(platform: Platform, attempt: _Attempt) -> tuple[_Ready, list[_Seat]]:
    request = attempt.request
    if platform.registry.is_frozen(attempt.user):
        raise AccountFrozenError
    _check_webhook(platform, request)
    ready = _ready(platform, request.agent_id)
    seats = _seats(platform, request, ready)
    most_s = attempt.timeout_s_max - sum(seat.timeout_s for seat in seats)
    if (request.timeout or TIMEOUT_S_MIN) > most_s:
        reason = "the caller waits for the answer" + (", and for the judges" if seats else "")
        raise TimeoutTooLongError(timeout_s_max=most_s, reason=reason)
    _check_terms(request, ready)
    judging_micro = sum(seat.payers_micro for seat in seats)
    if request.max_judging_micro is not None and judging_micro > request.max_judging_micro:
        raise JudgingTooDearError(judging_micro=judging_micro, most_micro=request.max_judging_micro)
    tariff = pricing.parse_tariff(ready.agent.terms.tariff)
    least_micro = judging_micro + max(pricing.least_budget_micro(tariff, platform.settings.compute), 1)
    if request.budget_micro < least_micro:
        raise BudgetTooLowError(budget_micro=request.budget_micro, least_micro=least_micro)
    if request.min_reputation is not None:
        standing = platform.ledger.standing(request.agent_id)
        score_tenths = reputation.score_tenths(standing, platform.settings.reputation)
        if score_tenths < request.min_reputation:
            raise ReputationTooLowError(score_tenths=score_tenths, least_tenths=request.min_reputation)
    platform.keys.signing_key(now_s=platform.now_ms() // 1_000)  # no key, no receipt: found out before money moves
    return ready, seats


def _ready(platform: Platform, agent_id: str) -> _Ready:
    agent = platform.registry.get_cached(agent_id)
    if agent.version is not None and not _is_current(agent.version):
        agent = platform.registry.get(agent_id)  # it may have been compiled meanwhile
    version = agent.version
    if version is None or agent.retired_ms is not None:
        raise AgentNotReadyError(agent.agent_id, agent.state)
    if platform.registry.is_frozen(agent.owner):
        raise AgentNotReadyError(agent.agent_id, _OF_FROZEN_OWNER)
    if not platform.registry.is_bonded(agent.owner):
        raise AgentNotReadyError(agent.agent_id, "out_of_bond")
    if not _is_current(version):
        platform.publisher.recompile(agent.agent_id)
        raise AgentNotReadyError(agent.agent_id, "being compiled for a new engine", retry_after_s=_RECOMPILE_S)
    return _Ready(agent, version, parse_rules(agent.terms.rules))


def _check_terms(request: TaskRequest, ready: _Ready) -> None:
    """Raises TermsChangedError unless module, tariff and rules are those that the task names."""
    terms = ready.agent.terms
    for field, now in (
        ("module_sha256", ready.version.module_sha256),
        ("tariff_sha256", pricing.tariff_sha256(terms.tariff)),
        ("rules_sha256", terms.rules_sha256),
    ):
        if getattr(request, field) not in {None, now}:
            raise TermsChangedError(field, now=now)


def _check_pause(platform: Platform, hold: Escrow) -> None:
    """While an operator has paused funding, what is funded already goes on. Raises FundingPausedError."""
    if platform.registry.funding_is_paused() and platform.ledger.find(hold.escrow_id) is None:
        raise FundingPausedError


def _take_slot(platform: Platform, hold: Escrow, slot: ExitStack, *, keep_ms: int) -> None:
    """Takes one of the payer's slots for the run, given back when `slot` is closed. Raises TooManyRunningError."""
    running_max, now_ms = platform.settings.account_concurrency, platform.now_ms()
    if not running_max:
        return
    taken = platform.slots.take(
        hold.payer, hold.runner, of=running_max, now_ms=now_ms, lease_ms=hold.lease_ms, keep_ms=keep_ms
    )
    if isinstance(taken, Busy):
        wait_s = -(-(taken.until_ms - now_ms) // 1_000)
        wait_s = min(max(wait_s, SLOT_RETRY_S_MIN), SLOT_RETRY_S_MAX)
        raise TooManyRunningError(running_max=running_max, retry_after_s=wait_s)
    slot.callback(platform.slots.give_back, hold.payer, taken, hold.runner)


def _check_webhook(platform: Platform, request: TaskRequest) -> None:
    loopback = platform.settings.webhook_loopback_targets
    if request.webhook and (refused := webhook.why_refused(request.webhook, loopback=loopback)):
        raise InvalidRequestError(("webhook", refused))


def _is_current(version: Version) -> bool:
    """Whether the artefact is of this environment's engine, configuration and processor."""
    return version.artefact_key == artefact_key(version.module_sha256)


def _seats(platform: Platform, request: TaskRequest, ready: _Ready) -> list[_Seat]:
    """The judges whom the output has to content, in the order in which they are asked."""
    seats = []
    if ready.rules.judge:
        try:
            seats.append(_seat(platform, Side.AGENT, ready.rules.judge))
        except (NotFoundError, InvalidRequestError) as unfit:
            raise AgentNotReadyError(request.agent_id, "without a judge that can judge it") from unfit
    if request.acceptance and request.acceptance.judge:
        if ready.agent.terms.task_judge_bps is None:
            raise InvalidRequestError(judging.REFUSED)
        try:
            seats.append(_seat(platform, Side.TASK, request.acceptance.judge))
        except NotFoundError as unfit:
            raise InvalidRequestError(judging.NOT_AN_AGENT) from unfit
    return seats


def _seat(platform: Platform, side: Side, rule: Judge) -> _Seat:
    ready = _ready(platform, rule.agent_id)
    judging.check_fit(ready.agent, rule, platform.settings.compute)
    return _Seat(side, rule, ready)


def _holds(platform: Platform, attempt: _Attempt, ready: _Ready, seats: list[_Seat]) -> tuple[Escrow, list[Escrow]]:
    """The escrows of a task and of its judges, as they are to be funded."""
    agent, request, now_ms = ready.agent, attempt.request, platform.now_ms()
    judging_s = sum(seat.timeout_s for seat in seats)
    timeout_s = min(request.timeout or agent.terms.timeout_s, agent.terms.timeout_s, attempt.timeout_s_max - judging_s)
    hold = Escrow(
        escrow_id=escrows.escrow_id(attempt.user, request.task_id),
        payer=attempt.user,
        task_id=request.task_id,
        request_sha256=_request_sha256(attempt),
        agent_id=agent.agent_id,
        owner=agent.owner,
        module_sha256=ready.version.module_sha256,
        input_sha256=attempt.input_sha256,
        tariff=agent.terms.tariff,
        budget_micro=request.budget_micro - sum(seat.payers_micro for seat in seats),
        fee_bps=platform.settings.fee_bps,
        timeout_ms=timeout_s * 1_000,
        runner=attempt.runner,
        fence=1,
        funded_ms=now_ms,
        lease_ms=now_ms,
        expires_ms=now_ms + (timeout_s + judging_s) * 1_000 + ESCROW_GRACE_MS,
        agent_rules_sha256=rules_sha256(agent.terms.rules),
        task_rules_sha256=_rules_sha256(request),
        compute=platform.settings.compute,
        own_limits=judging.own_limits(agent.terms),
        task_judge_bps=agent.terms.task_judge_bps or 0,
        webhook=request.webhook,
    )
    hold = replace(hold, lease_ms=_lease_ms(platform, now_ms, hold, seats))
    judges = [judging.hold(hold, seat.side, seat.rule, seat.ready.agent, seat.ready.version) for seat in seats]
    hires = [
        Hire(seat.side, judge.agent_id, judge.budget_micro, judge.escrow_id)
        for seat, judge in zip(seats, judges, strict=True)
    ]
    return replace(hold, judges=tuple(hires)), judges


def _join_settled(platform: Platform, escrow: Escrow, attempt: _Attempt) -> Escrow:
    """The escrow of an earlier attempt, once it is settled. Raises TaskConflictError, TaskInProgressError."""
    if escrow.request_sha256 != _request_sha256(attempt):
        raise TaskConflictError(escrow.task_id)
    return _settled(platform, escrow)


def _join_refused(platform: Platform, escrow: Escrow, attempt: _Attempt, refusal: RequestError) -> Escrow:
    """The escrow of an earlier attempt, once it is settled, though the same request would be refused today.

    If nobody holds it, nobody will run it any more, and it is refunded; unless the refusal passes by itself, or is only
    of this way in. Raises RequestError, PlatformUnavailableError.
    """
    if _is_ours_to_take(platform, escrow, attempt):
        if refusal.retry_after_s is not None:
            raise refusal
        if isinstance(refusal, AccountFrozenError) or refusal.members.get("state") == _OF_FROZEN_OWNER:
            return refund(platform, escrow, Outcome.SUPERSEDED, _FROZEN)
        if not isinstance(refusal, TimeoutTooLongError):
            return refund(platform, escrow, Outcome.SUPERSEDED, _REFUSED_NOW)
    return _join_settled(platform, escrow, attempt)


def _is_ours_to_take(platform: Platform, escrow: Escrow, attempt: _Attempt) -> bool:
    """Whether the escrow is of the same request and still funded, and in nobody's hands."""
    in_time = escrow.lease_ms <= platform.now_ms() < escrow.expires_ms
    return escrow.settlement is None and in_time and escrow.request_sha256 == _request_sha256(attempt)


def _settled(platform: Platform, escrow: Escrow) -> Escrow:
    """The escrow, refunded if it is overdue. Raises TaskInProgressError if it is still funded then."""
    escrow = expire_if_overdue(platform, escrow)
    if escrow.settlement is None:
        wait_ms = max(escrow.lease_ms - platform.now_ms(), 1_000)
        raise TaskInProgressError(escrow.task_id, retry_after_s=-(-wait_ms // 1_000))
    return escrow


def _join(
    platform: Platform, escrow: Escrow, attempt: _Attempt, ready: _Ready, seats: list[_Seat]
) -> tuple[Escrow, list[Escrow]]:
    """The stored escrow of an earlier attempt, settled, or ours with its judges because its lease has lapsed.

    A task keeps the versions and rules that it was funded for. If those are not the active ones any more, it is
    refunded. One that may run for longer than this entry point can wait is left to the queue. Raises
    TaskConflictError, TaskInProgressError.
    """
    now_ms = platform.now_ms()
    if _is_ours_to_take(platform, escrow, attempt):
        judges = _stored_judges(platform, escrow)
        if not ready.may_do(escrow) or not _may_judge(seats, judges):
            return refund(platform, escrow, Outcome.SUPERSEDED, _SUPERSEDED), []
        if escrow.timeout_ms <= (attempt.timeout_s_max - sum(seat.timeout_s for seat in seats)) * 1_000:
            lease_ms = min(_lease_ms(platform, now_ms, escrow, seats), escrow.expires_ms)
            escrow = platform.ledger.take_over(escrow, runner=attempt.runner, now_ms=now_ms, lease_ms=lease_ms)
            if escrow.runner == attempt.runner and escrow.settlement is None:
                return escrow, judges
    return _join_settled(platform, escrow, attempt), []


def _stored_judges(platform: Platform, escrow: Escrow) -> list[Escrow]:
    """The escrows of a task's judges. Raises LookupError if one is missing, which a write with the task's forbids."""
    judges = [platform.ledger.find(hire.escrow_id) for hire in escrow.judges]
    if None in judges:
        msg = f"the escrow {escrow.escrow_id} was funded without its judge's"
        raise LookupError(msg)
    return [judge for judge in judges if judge]


def _may_judge(seats: list[_Seat], judges: list[Escrow]) -> bool:
    """Whether a task's judges are still the ones that it was funded for."""
    if [seat.ready.agent.agent_id for seat in seats] != [judge.agent_id for judge in judges]:
        return False
    return all(seat.ready.may_do(judge) for seat, judge in zip(seats, judges, strict=True))


def _run(platform: Platform, escrow: Escrow, ready: _Ready, stdin: bytes, *, keep_ms: int) -> Run:
    """Runs the agent. Every failure, the platform's too, is an outcome: the money is held and must be settled.

    `keep_ms` is the time that what comes after the run may need.
    """
    meter, version = Meter(input_bytes=len(stdin)), ready.version
    with ExitStack() as held:
        try:
            with tracing.step("load"):
                copy = platform.binaries.artefact(version.artefact_key, version.artefact_sha256)
                path = held.enter_context(copy)
        except BlobMissingError:
            return Run(Outcome.ARTEFACT_MISSING, "The agent's binary is missing in the platform's storage.", meter)
        except BlobTamperedError:
            return Run(Outcome.ARTEFACT_TAMPERED, "The agent's binary is not the one that was published.", meter)
        except (PlatformUnavailableError, *_HOST_FAILURES):
            return Run(Outcome.STORAGE_DOWN, "The platform's storage did not answer.", meter)
        held_ms = escrow.expires_ms - platform.now_ms() - keep_ms
        left_ms = min(platform.left_ms() - keep_ms, held_ms)
        # A run that its escrow's end would cut short costs nobody anything, so it must not begin. A judge comes after a
        # run that is to be paid, so it takes the time that is left.
        if left_ms <= 0 or (held_ms < escrow.timeout_ms and not escrows.is_judge(escrow)):
            return Run(Outcome.OUT_OF_TIME, "The platform had no time left to run the agent.", meter)
        return _run_from(platform, path, escrow, ready, stdin, left_ms=left_ms)


def _run_from(platform: Platform, path: Path, escrow: Escrow, ready: _Ready, stdin: bytes, *, left_ms: int) -> Run:
    """Runs the artefact at `path`, for `left_ms` at most."""
    version = ready.version
    own = escrow.own_limits or judging.own_limits(ready.agent.terms)
    tariff = pricing.parse_tariff(escrow.tariff)
    limits = pricing.limits_bought(tariff, escrow.compute, budget_micro=escrow.budget_micro, own=own)
    limits = replace(limits, timeout_ms=min(escrow.timeout_ms, left_ms))
    job = _job(path, escrow, version, stdin, limits=limits, own=own)
    try:
        run = tracing.step("run")(platform.sandbox.run)(job)
    except _HOST_FAILURES:
        logger.exception("run failed")
        run = Run(Outcome.WORKER_LOST, "The platform could not run the agent.", Meter(input_bytes=len(stdin)))
    observability.measure(Metric.SANDBOX, run.meter.wall_ms)
    run = replace(run, limits=limits)
    if run.outcome in {Outcome.ARTEFACT_MISSING, Outcome.ARTEFACT_TAMPERED}:
        platform.binaries.forget(version.artefact_sha256)
    if run.outcome is Outcome.TIMEOUT and left_ms < escrow.timeout_ms:
        message = "The platform had to end the run before its timeout."
        return replace(run, outcome=Outcome.OUT_OF_TIME, message=message, memory_refused=False)
    return run


def _job(path: Path, escrow: Escrow, version: Version, stdin: bytes, *, limits: Limits, own: Limits) -> Job:
    return Job(
        artefact_path=str(path),
        artefact_sha256=version.artefact_sha256,
        stdin=stdin,
        fuel=limits.fuel,
        memory_bytes=limits.memory_bytes,
        memory_bytes_own=own.memory_bytes,
        output_bytes=limits.output_bytes,
        timeout_ms=limits.timeout_ms,
        epoch_ns=escrow.funded_ms * 1_000_000,
        seed=escrows.seed(escrow),
    )


def _doubted(platform: Platform, escrow: Escrow, ready: _Ready, stdin: bytes, run: Run) -> Run:
    """The run; if its agent's side rejected it and the budget bought less memory, with whether memory was refused.

    A guest that is refused memory may end well and print something else. It is run once more, in what is left of its
    timeout. If that cannot tell, memory counts as refused.
    """
    limits, own = run.limits, escrow.own_limits
    agents = run.rejected_by is not None and run.rejected_by.side is Side.AGENT
    if not (agents and limits and own and limits.memory_bytes < own.memory_bytes):
        return run
    left_ms = min(platform.left_ms(), escrow.expires_ms - platform.now_ms()) - _RUN_RESERVE_MS
    left_ms = min(left_ms, limits.timeout_ms - run.meter.wall_ms)
    refused = True
    if left_ms > 0:
        limits = replace(limits, timeout_ms=left_ms)
        try:
            with platform.binaries.artefact(ready.version.artefact_key, ready.version.artefact_sha256) as path:
                job = _job(path, escrow, ready.version, stdin, limits=limits, own=own)
                refused = platform.sandbox.wanted_more_memory(job, run)
        except (BlobMissingError, BlobTamperedError, PlatformUnavailableError, *_HOST_FAILURES):
            logger.exception("refused memory not looked for")
    return replace(run, memory_refused=refused)


@tracing.step("accept")
def _held_to(agent: Rules, task: Rules | None, run: Run) -> Run:
    """The run, or how it ends because its output does not meet the agent's rules and the task's."""
    if run.outcome is not Outcome.SUCCEEDED:
        return run
    try:
        verdict = acceptance.verdict(run.stdout, agent=agent, task=task)
    except MemoryError:
        return _unjudged(run)
    return run if verdict.accepted else _rejected(run, verdict)


def _rejected(run: Run, verdict: Verdict) -> Run:
    return replace(run, outcome=Outcome.REJECTED, message=verdict.message, rejected_by=verdict.rejected_by)


def _unjudged(run: Run) -> Run:
    """How a run ends whose output this machine has no memory to hold against its rules: nobody is to blame for it."""
    logger.exception("no memory for the verdict")
    return replace(run, outcome=Outcome.WORKER_LOST, message="The platform had no memory left to read the output.")


@dataclass(frozen=True, slots=True)
class _Judged:
    """A judge's escrow, and what ran and how it ended; None if the judge was not asked."""

    escrow: Escrow
    run: Run | None = None
    version: Version | None = None


def _judge(
    platform: Platform, escrow: Escrow, attempt: _Attempt, seats: list[tuple[_Seat, Escrow]], run: Run
) -> tuple[Run, list[_Judged]]:
    """The run with its judges' scores, or how it ends because one does not accept it: then the others are not asked.

    A judge that the platform could not run decides nothing: the task then ends by the platform's fault too.
    """
    judged = {seat.side: _Judged(judge) for seat, judge in seats}
    read = b""
    for place, (seat, judge) in enumerate(seats):
        if run.outcome is not Outcome.SUCCEEDED:
            break
        try:
            read = read or acceptance.judge_input(attempt.stdin, run.stdout)
        except MemoryError:
            run = _unjudged(run)
            break
        keep_ms = _span_ms(escrow, [seat for seat, _ in seats[place:]]) - escrow.timeout_ms - judge.timeout_ms
        scored = _ask(platform, judge, seat, read, keep_ms=keep_ms)
        judged[seat.side] = _Judged(judging.reading(judge, read), scored, seat.ready.version)
        if scored.outcome.fault is Fault.PLATFORM:
            run = replace(run, outcome=scored.outcome, message=f"The judge could not be run: {scored.message}")
            break
        score_micro = judging.score_micro(scored)
        verdict = acceptance.judged(seat.rule, score_micro, side=seat.side)
        if score_micro is None or not verdict.accepted:
            run = _rejected(run, verdict)
        else:
            run = replace(run, scores_micro={**run.scores_micro, seat.side: score_micro})
    return run, list(judged.values())


@tracing.step("judge")
def _ask(platform: Platform, judge: Escrow, seat: _Seat, read: bytes, *, keep_ms: int) -> Run:
    """Runs a judge on what it is to read, and holds what it printed to its own rules and to those of a score."""
    return _held_to(seat.ready.rules, SCORE_RULES, _run(platform, judge, seat.ready, read, keep_ms=keep_ms))


@tracing.step("settle")
def _settle(
    platform: Platform, escrow: Escrow, run: Run, version: Version | None, judged: Sequence[_Judged] = ()
) -> Escrow:
    """Ends the escrow and its judges' by the run's outcome; returns the stored escrow, which may be another's work.

    `version` is what ran, None if nothing did. A run that no receipt can state is the platform's failure.
    """
    try:
        return _settle_by(platform, escrow, run, version, judged)
    except ProofError:
        logger.exception("no receipt can state this run")
        lost = Run(Outcome.WORKER_LOST, "The platform cannot state how the run ended.", Meter())
        return _settle_by(platform, escrow, lost, None, [_Judged(judge.escrow) for judge in judged])


def _settle_by(
    platform: Platform, escrow: Escrow, run: Run, version: Version | None, judged: Sequence[_Judged]
) -> Escrow:
    output = log = None
    try:
        if version:
            log = platform.outputs.keep(run.stderr)
        if run.outcome is Outcome.SUCCEEDED:
            output = platform.outputs.keep(run.stdout)
    except (PlatformUnavailableError, *_HOST_FAILURES):
        message = "The platform's storage did not take the output."
        # Whatever had been found out about the run before, it ends by the platform's fault now.
        run = replace(run, outcome=Outcome.STORAGE_DOWN, message=message, rejected_by=None, memory_refused=False)
    now_ms = platform.now_ms()
    try:
        judges = [_settled_judge(platform, judge, run, now_ms) for judge in judged]
        settlement = escrows.decide(escrow, run, now_ms=now_ms, judging_micro=judging.costs_micro(escrow, judges))
        signed = _signed(platform, escrow, replace(settlement, output=output, log=log), run, version)
        stored = platform.ledger.settle(replace(escrow, settlement=signed), *judges)
        if stored.settlement == signed:
            for judge in judges:
                if judge.settlement:
                    observability.settled(judge, judge.settlement)
        return expire_if_overdue(platform, observability.settled(stored, signed))
    except (PlatformUnavailableError, *_HOST_FAILURES):
        logger.warning("settlement unknown")
        return _look_again(platform, escrow)


def _settled_judge(platform: Platform, judged: _Judged, task: Run, now_ms: int) -> Escrow:
    """A judge's escrow with its settlement, which depends on how the task ended that it judged."""
    judge, run, version = judged.escrow, judged.run or judging.NOT_NEEDED, judged.version
    settlement = judging.settle(judge, judged.run, task, now_ms=now_ms)
    if settlement.outcome is Outcome.SUCCEEDED:
        settlement = replace(settlement, output=platform.outputs.keep(run.stdout))
    else:  # nothing is stated that follows from what it read
        judge = replace(judge, input_sha256=judging.NOTHING_READ)
    if settlement.fault is Fault.PLATFORM:
        run, version = Run(settlement.outcome, settlement.message, Meter()), None
    return replace(judge, settlement=_signed(platform, judge, settlement, run, version))


def _look_again(platform: Platform, escrow: Escrow) -> Escrow:
    try:
        return platform.ledger.find(escrow.escrow_id) or escrow
    except PlatformUnavailableError:
        return escrow


def _signed(
    platform: Platform, escrow: Escrow, settlement: Settlement, run: Run | None = None, version: Version | None = None
) -> Settlement:
    """The settlement with its receipt. A receipt that loses the race to be stored is dropped unseen.

    Raises ProofError if no verifier would take what it says of the run. An expiry is signed as it is: it is the
    last way out of escrow, and money must not stay there for a claim.
    """
    claims = receipt.claims(
        escrow,
        settlement,
        issuer=platform.settings.receipt_issuer,
        run=run or Run(settlement.outcome, settlement.message, Meter()),
        engine=ENGINE_VERSION if version else "",  # of what ran here, which may be newer than the artefact
        config_sha256=CONFIG_DIGEST if version else "",
    )
    if run:
        receipt.check_claims(claims)
    key = platform.keys.signing_key(now_s=settlement.settled_ms // 1_000)
    return replace(settlement, receipt=receipt.sign(claims, key))


def _answer(platform: Platform, escrow: Escrow, *, at_hand: tuple[bytes, ...] = ()) -> TaskResult | TaskPending:
    """What the ledger says of a task. `at_hand` are bytes that need not be read again if the ledger names them."""
    settlement = escrow.settlement
    if settlement is None:
        return TaskPending(
            task_id=escrow.task_id,
            agent_id=escrow.agent_id,
            escrow_id=escrow.escrow_id,
            escrow_status=escrow.state,
            expires_at=escrow.expires_ms,
        )
    claims = receipt.read_claims(settlement.receipt)
    meter, rules = claims["meter"], claims["acceptance"] or {}
    output = _load(platform, settlement.output, at_hand)
    log = _load(platform, settlement.log, at_hand)
    success = settlement.outcome is Outcome.SUCCEEDED
    text, encoded = as_text(output)
    return TaskResult(
        task_id=escrow.task_id,
        agent_id=escrow.agent_id,
        success=success,
        output=text,
        output_base64=encoded,
        log=None if log is None else log.decode(errors="replace"),
        error=None if success else TaskError(code=settlement.outcome, message=settlement.message),
        execution_time_ms=meter["wall_ms"],
        resource_usage=ResourceUsage(
            memory_used_mb=round(meter["memory_bytes"] / 2**20, 3),
            cpu_time_ms=meter["cpu_ms"],
            execution_time_ms=meter["wall_ms"],
            storage_used_kb=round((meter["output_bytes"] + meter["stderr_bytes"]) / 1024, 3),
            fuel_used=meter["fuel"],
            fuel_exact=meter["fuel_exact"],
            input_bytes=meter["input_bytes"],
            output_bytes=meter["output_bytes"],
        ),
        escrow_id=escrow.escrow_id,
        escrow_status=settlement.state,
        amount_paid_micro=settlement.split.paid_micro,
        amount_refunded_micro=settlement.split.refunded_micro,
        fee_micro=settlement.split.fee_micro,
        compute_micro=settlement.compute_micro,
        judging_micro=settlement.task_judging_micro,
        fault=settlement.fault,
        judges=[
            JudgeAnswer(
                side=hire.side,
                agent_id=hire.agent_id,
                task_id=escrows.judge_task_id(escrow.task_id, hire.side),
                budget_micro=hire.budget_micro,
                cost_micro=settlement.judging_micro if hire.side is Side.AGENT else settlement.task_judging_micro,
                score=rules.get(f"{hire.side}_score"),
            )
            for hire in escrow.judges
        ],
        reputation_delta=settlement.reputation_tenths,
        timestamp=settlement.settled_ms,
        receipt=settlement.receipt,
    )


def _load(platform: Platform, stored: StoredBytes | None, at_hand: tuple[bytes, ...]) -> bytes | None:
    if stored is None:
        return None
    for data in at_hand:
        if hashlib.sha256(data).hexdigest() == stored.sha256:
            return data
    try:
        return platform.outputs.load(stored)
    except BlobMissingError:
        return None  # past the retention of the outputs bucket; the receipt still names it by digest


def _bond_owner(account: str) -> set[str]:
    """The owner of a bond that pays for a judge; nobody for any other account."""
    return {owner_of(account)} if is_bond(account) else set()


def _request_sha256(attempt: _Attempt) -> str:
    return request_sha256(attempt.request, attempt.input_sha256)


def _rules_sha256(request: TaskRequest) -> str | None:
    rules = request.acceptance
    return rules_sha256(rules_json(rules)) if rules else None


def _lease_ms(platform: Platform, now_ms: int, escrow: Escrow, seats: list[_Seat]) -> int:
    """Until when the runner should have settled: after that another attempt may take the task over."""
    return now_ms + min(platform.left_ms(), _span_ms(escrow, seats))


def _span_ms(escrow: Escrow, seats: list[_Seat]) -> int:
    """The most that a task takes: its run, its rules, its judges."""
    has_rules = escrow.agent_rules_sha256 or escrow.task_rules_sha256
    judging_ms = sum(seat.timeout_s * 1_000 + _RUN_RESERVE_MS + VERDICT_MS_MAX for seat in seats)
    return escrow.timeout_ms + _RUN_RESERVE_MS + (VERDICT_MS_MAX if has_rules else 0) + judging_ms
