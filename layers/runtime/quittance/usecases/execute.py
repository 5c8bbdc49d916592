"""Execute: one task, from the request to the answer.

    check → fund → run → accept → settle → answer

A task without failures or repeats makes two writes to the ledger and no read. If the function crashes between them, the
budget stays in escrow until another attempt takes the task over, or until the escrow expires and is refunded. If the
operator limits how many tasks of one account run at once, a run also takes one of its payer's slots and gives it back.

A task that a channel's ticket pays makes one read and one write. It is not funded: the write at its end takes the
ticket's number and settles. It is held first, as any other task is funded, if judges or the queue take part, or if its
channel is contested.

Who pays what is decided in `ledger/escrow.py`; docs/who-pays.md has the table.
"""

import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Final, Self

from pydantic import Field

from quittance import observability, tracing
from quittance.acceptance.rules import rules_sha256
from quittance.api import messages, targets
from quittance.api.identity import Caller
from quittance.api.models import ChannelId, DirectTaskRequest, TaskPending, TaskQueued, TaskRequest, TaskResult
from quittance.api.requests import wants_async
from quittance.errors import (
    AccountFrozenError,
    BudgetTooLowError,
    FundingPausedError,
    InputNotAcceptedError,
    InvalidRequestError,
    JudgingTooDearError,
    PlatformUnavailableError,
    ReputationTooLowError,
    RequestError,
    TaskConflictError,
    TermsChangedError,
    TicketUsedError,
    TimeoutTooLongError,
    TooManyRunningError,
)
from quittance.ledger import channels, pricing, reputation
from quittance.ledger import escrow as escrows
from quittance.ledger.escrow import Escrow, JudgeHold
from quittance.limits import (
    ESCROW_GRACE_MS,
    QUEUE_WAIT_MS_MAX,
    SLOT_RETRY_S_MAX,
    SLOT_RETRY_S_MIN,
    TIMEOUT_S_ASYNC_MAX,
    TIMEOUT_S_MIN,
    TIMEOUT_S_SYNC_MAX,
)
from quittance.observability import Metric, count
from quittance.platform import Platform
from quittance.run import Outcome
from quittance.store.slots import Busy
from quittance.usecases import contracts, judges, launch, settle, tickets
from quittance.usecases.judges import NamedJudge
from quittance.usecases.launch import ReadyAgent
from quittance.usecases.result import answer
from quittance.usecases.tickets import Accepted

Prefer = Annotated[
    list[str] | None, Field(description="`respond-async`: 202 as soon as the task is funded (RFC 7240).")
]
PaymentTicket = Annotated[str, Field(description="The ticket that pays: a compact JWS, signed by the channel's key.")]
_SUPERSEDED: Final = "The agent is no longer the one that the task was funded for; the budget was refunded."
_REFUSED_NOW: Final = "The task would be refused if it were sent now; the budget was refunded."
_FROZEN: Final = "The user's account, or the agent's owner's, was frozen before the task ran; the budget was refunded."


Payer = str | Accepted
"""Who pays a task: an account, or the ticket of a channel."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One invocation's attempt at a task: its runner, which may hold the escrow, and the longest run that may begin.

    `by` is the ticket that pays; without one, the account `user` does.
    """

    user: str
    request: TaskRequest
    request_sha256: str
    runner: str
    timeout_s_max: int
    by: Accepted | None

    @classmethod
    def of(cls, payer: Payer, request: TaskRequest, timeout_s_max: int) -> Self:
        """A new attempt, with a runner of its own. Raises InvalidRequestError for a ticket's task_id without it."""
        user, by = account_of(payer), None if isinstance(payer, str) else payer
        if by is None and channels.parse_task_id(request.task_id):
            raise InvalidRequestError(
                ("task_id", "must not be that of a channel's ticket: send the ticket, or another id")
            )
        return cls(user, request, request.sha256(request.stdin.sha256), uuid.uuid4().hex, timeout_s_max, by)

    @property
    def escrow_id(self) -> str:
        """The id of the task's escrow."""
        return channels.escrow_id_of(self.user, self.request.task_id)

    def as_funded(self, escrow: Escrow) -> Self:
        """This attempt with the request as an earlier commit funded it; unchanged for any other escrow."""
        if escrow.request_sha256 == self.request_sha256:
            return self
        funded = self.request.as_funded(escrow.request_sha256, input_sha256=self.request.stdin.sha256)
        return replace(self, request=funded, request_sha256=escrow.request_sha256) if funded else self


def request(
    platform: Platform, caller: Caller, request: TaskRequest, prefer: Prefer = None
) -> TaskResult | TaskPending:
    """Runs one task of the caller. A failure of the agent is not an error: the answer has `success: false`.

    With `Prefer: respond-async` the task is only checked, funded and queued, and may run for up to ten minutes. Raises
    InvalidRequestError, PayloadTooLargeError, NotFoundError, AgentNotReadyError, AccountFrozenError,
    InsufficientFundsError, FundingPausedError, TooManyRunningError, TaskConflictError, TaskInProgressError,
    TermsChangedError, InputNotAcceptedError, BudgetTooLowError, JudgingTooDearError, ReputationTooLowError,
    TimeoutTooLongError, and PlatformUnavailableError (repeat the request).
    """
    if wants_async(prefer or []):
        return submit(platform, caller.account, request)
    return execute(platform, caller.account, request)


def redeem(
    platform: Platform,
    channel_id: ChannelId,
    request: TaskRequest,
    payment_ticket: PaymentTicket,
    prefer: Prefer = None,
) -> TaskResult | TaskPending:
    """Runs one task that a channel pays: the header `Payment-Ticket` has a ticket that its key signed for it.

    No bearer token is needed. The `task_id` is `<channel id>.<number>`. A repeated request never costs twice.
    Raises TicketInvalidError, TicketUsedError, TicketTooSmallError, ChannelClosedError, ChannelExpiredError,
    AgentNotAllowedError, InvalidRequestError, PayloadTooLargeError, NotFoundError, AgentNotReadyError,
    AccountFrozenError, FundingPausedError, TooManyRunningError, TaskInProgressError, TermsChangedError,
    InputNotAcceptedError, BudgetTooLowError, JudgingTooDearError, ReputationTooLowError, TimeoutTooLongError, and
    PlatformUnavailableError (repeat the request).
    """
    accepted = tickets.accept(platform, payment_ticket, request)
    if accepted.channel.channel_id != channel_id:
        raise InvalidRequestError(("channel_id", f"must be {accepted.channel.channel_id}, the ticket's channel"))
    return submit(platform, accepted, request) if wants_async(prefer or []) else execute(platform, accepted, request)


def account_of(payer: Payer) -> str:
    """The account whose credits pay."""
    return payer if isinstance(payer, str) else payer.channel.payer


def payer_of(platform: Platform, request: DirectTaskRequest) -> Payer:
    """Who pays a task that did not come over HTTP. Raises as `tickets.accept` does."""
    if request.ticket is not None:
        return tickets.accept(platform, request.ticket, request)
    return request.user_id or ""


def execute(
    platform: Platform,
    payer: Payer,
    request: TaskRequest,
    *,
    timeout_s_max: int = TIMEOUT_S_SYNC_MAX,
    leased: Callable[[Escrow], None] = lambda _: None,
) -> TaskResult | TaskPending:
    """Runs a task for a payer and settles its escrow; a repeated request gets the same answer.

    `timeout_s_max` is the longest run that the entry point can wait for. `leased` is called before the run, with the
    escrow that this attempt holds. A TaskPending means that the outcome is not known yet and can be read later. Raises
    RequestError (no money moved) and PlatformUnavailableError (repeat the request).
    """
    attempt = _Attempt.of(payer, request, timeout_s_max)
    with ExitStack() as slot:  # the slot is given back once the task is answered
        return _execute(platform, attempt, leased, slot)


def _execute(
    platform: Platform, attempt: _Attempt, leased: Callable[[Escrow], None], slot: ExitStack
) -> TaskResult | TaskPending:
    try:
        ready, named = _check_or_join(platform, attempt)
        hold, judge_holds = _holds(platform, attempt, ready, named)
        observability.about(hold)
        _check_pause(platform, hold)
        span_ms = judges.span_ms(hold, named)
        escrow, redeem = _redeemable(platform, attempt, hold, judge_holds, span_ms=span_ms)
        is_settled = escrow is not None and escrow.settlement is not None  # a replay runs nothing
        if not is_settled and (not redeem or platform.settings.tickets_take_slots):
            _take_slot(platform, hold, slot, reserve_ms=span_ms)
        if escrow is None:
            with tracing.step("fund"):
                escrow = platform.ledger.fund(hold, *judge_holds, reserve_ms=span_ms)
            observability.funded(escrow, by=attempt.runner)
    except RequestError as refusal:
        # A funded task is answered from its escrow, even if its agent or its payer's balance would not allow it now.
        earlier = platform.ledger.find(attempt.escrow_id)
        if earlier is None:
            raise
        return answer(platform, _join_refused(platform, earlier, attempt.as_funded(earlier), refusal))
    if not escrow.held_by(attempt.runner):
        attempt = attempt.as_funded(escrow)
        escrow, judge_holds = _join(platform, escrow, attempt, ready, named)
    if escrow.settlement:
        return answer(platform, escrow)
    leased(escrow)
    request = attempt.request
    stdin, after_run_ms = request.stdin.data, judges.span_ms(escrow, named) - escrow.timeout_ms
    run = launch.run(platform, escrow, ready, stdin, reserve_ms=after_run_ms)
    run = escrows.held_to_budget(escrow, run)
    run = launch.held_to_rules(ready.rules, request.acceptance, run)
    run, judged = judges.ask(platform, escrow, stdin, list(zip(named, judge_holds, strict=True)), run)
    run = launch.with_memory_doubt(platform, escrow, ready, stdin, run)
    try:
        settled = settle.settle(platform, escrow, run, ready.version, judged, request.stdin, redeem=redeem)
        if redeem and settled.claims is None:
            _contest(platform, attempt)
            _check_same(settled.escrow, attempt)
    except TicketUsedError:
        _contest(platform, attempt)
        raise
    return answer(platform, settled.escrow, claims=settled.claims, written=settled.written)


def _redeemable(
    platform: Platform, attempt: _Attempt, hold: Escrow, judge_holds: list[Escrow], *, span_ms: int
) -> tuple[Escrow | None, bool]:
    """What is known of a task before money moves: its escrow, and whether only its settlement is to be written.

    An account's task, and a ticket's that must be held, has no escrow yet: (None, False). Any other ticket's task runs
    on an escrow that nothing stores before it is settled. A ticket that was used is found here, before anything runs:
    what its replays would compute, nobody would pay. Raises as `tickets.check` does, TicketUsedError.
    """
    if attempt.by is None:
        return None, False
    if stored := platform.ledger.find_ticket(attempt.by.ticket):
        return stored, False
    channel = tickets.check(platform, attempt.by, attempt.request, span_ms=span_ms, judged=bool(judge_holds))
    takes_long = attempt.timeout_s_max > TIMEOUT_S_SYNC_MAX  # longer than a channel waits before it closes
    if judge_holds or takes_long or channel.contested:
        return None, False
    return (None, False) if platform.channels.is_contesting(hold.payer, now_ms=hold.funded_ms) else (hold, True)


def _contest(platform: Platform, attempt: _Attempt) -> None:
    """Records that another attempt used the ticket while this one ran: nobody pays for what this one computed.

    It cannot become a habit: from now on the channel's tickets are held before they run.
    """
    if attempt.by:
        count(Metric.TICKETS_CONTESTED)
        with suppress(PlatformUnavailableError):  # the next such attempt records it
            platform.channels.contest(attempt.by.channel, now_ms=platform.now_ms())


def submit(platform: Platform, payer: Payer, request: TaskRequest) -> TaskResult | TaskPending:
    """Funds a task and sends it to the queue; if it is settled already, returns its result.

    Every refusal is raised here, not by the queue. A repeated request sends the task again unless it is running; a
    second worker finds that the first one holds it. Raises RequestError (no money moved), PlatformUnavailableError
    (repeat the request; if nobody does, the escrow expires).
    """
    attempt = _Attempt.of(payer, request, TIMEOUT_S_ASYNC_MAX)
    try:
        ready, named = _check(platform, attempt)
        hold, judge_holds = _holds(platform, attempt, ready, named)
        stored, redeem = _redeemable(platform, attempt, hold, judge_holds, span_ms=judges.span_ms(hold, named))
        # The leases end at once: no runner holds the task, so the worker that gets the message can take it over.
        hold, *judge_holds = (
            replace(each, lease_ms=each.funded_ms, expires_ms=each.expires_ms + QUEUE_WAIT_MS_MAX)
            for each in (hold, *judge_holds)
        )
        observability.about(hold)
        _check_pause(platform, hold)
        escrow = stored if stored and not redeem else platform.ledger.fund(hold, *judge_holds)
        observability.funded(escrow, by=attempt.runner)
    except RequestError:
        earlier = platform.ledger.find(attempt.escrow_id)
        if earlier is None:
            raise
        escrow = earlier
    attempt = attempt.as_funded(escrow)
    _check_same(escrow, attempt)
    escrow = settle.expire_if_overdue(platform, escrow)
    # Clocks differ: an escrow that no runner ever held is free even if its funding seems to lie in the future.
    if escrow.settlement is None and escrow.lease_ms <= max(platform.now_ms(), escrow.funded_ms):
        messages.send(platform, attempt.user, attempt.request, ticket=attempt.by.token if attempt.by else None)
    answered = answer(platform, escrow)
    return TaskQueued(**dict(answered)) if isinstance(answered, TaskPending) else answered


def _check_or_join(platform: Platform, attempt: _Attempt) -> tuple[ReadyAgent, list[NamedJudge]]:
    """As `_check`. A funded task keeps the terms that it was funded with, whatever the agent's terms are now."""
    try:
        return _check(platform, attempt)
    except (BudgetTooLowError, InputNotAcceptedError, TermsChangedError):
        earlier = platform.ledger.find(attempt.escrow_id)
        if earlier is None or earlier.request_sha256 != attempt.as_funded(earlier).request_sha256:
            raise
        return _check(platform, attempt.as_funded(earlier), funded=True)


@tracing.step("check")
def _check(platform: Platform, attempt: _Attempt, *, funded: bool = False) -> tuple[ReadyAgent, list[NamedJudge]]:
    """The agent and the judges, if every check passes. Raises RequestError; no money has moved.

    The agent's terms are not checked if the task is `funded`: those in its escrow count.
    """
    request = attempt.request
    if platform.registry.is_frozen(attempt.user):
        raise AccountFrozenError
    _check_webhook(platform, request)
    ready = launch.ready_agent(platform, request.agent_id)
    named = judges.named(platform, request, ready)
    most_s = attempt.timeout_s_max - sum(judge.timeout_s for judge in named)
    if (request.timeout or TIMEOUT_S_MIN) > most_s:
        reason = "the caller waits for the answer" + (", and for the judges" if named else "")
        raise TimeoutTooLongError(timeout_s_max=most_s, reason=reason)
    if not funded:
        _check_terms(request, ready)
    judging_micro = sum(judge.payers_micro for judge in named)
    if request.max_judging_micro is not None and judging_micro > request.max_judging_micro:
        raise JudgingTooDearError(judging_micro=judging_micro, most_micro=request.max_judging_micro)
    tariff = pricing.parse_tariff(ready.agent.terms.tariff)
    least_micro = judging_micro + max(pricing.least_budget_micro(tariff, platform.settings.compute), 1)
    if request.budget_micro < least_micro and not funded:
        raise BudgetTooLowError(budget_micro=request.budget_micro, least_micro=least_micro)
    if request.min_reputation is not None:
        standing = platform.ledger.standing(request.agent_id)
        score_tenths = reputation.score_tenths(standing, platform.settings.reputation)
        if score_tenths < request.min_reputation:
            raise ReputationTooLowError(score_tenths=score_tenths, least_tenths=request.min_reputation)
    if not funded:
        contracts.check_input(platform, ready.version.contract_sha256, request.stdin)
    platform.signing_key()  # without a key there is no receipt: find that out before money moves
    return ready, named


def _check_terms(request: TaskRequest, ready: ReadyAgent) -> None:
    """Raises TermsChangedError unless module, tariff and rules are those that the task pins."""
    terms = ready.agent.terms
    for field, now in (
        ("module_sha256", ready.version.module_sha256),
        ("tariff_sha256", pricing.tariff_sha256(terms.tariff)),
        ("rules_sha256", terms.rules_sha256),
    ):
        if getattr(request, field) not in {None, now}:
            raise TermsChangedError(field, now=now)


def _check_pause(platform: Platform, hold: Escrow) -> None:
    """Raises FundingPausedError while an operator has paused funding, unless the task is funded already."""
    if platform.registry.funding_is_paused() and platform.ledger.find(hold.escrow_id) is None:
        raise FundingPausedError


def _check_webhook(platform: Platform, request: TaskRequest) -> None:
    loopback = platform.settings.webhook_loopback_targets
    if request.webhook and (refused := targets.why_refused(request.webhook, loopback=loopback)):
        raise InvalidRequestError(("webhook", refused))


def _take_slot(platform: Platform, hold: Escrow, slot: ExitStack, *, reserve_ms: int) -> None:
    """Takes one of the payer's slots for the run, given back when `slot` is closed. Raises TooManyRunningError."""
    running_max, now_ms = platform.settings.account_concurrency, platform.now_ms()
    if not running_max:
        return
    taken = platform.slots.take(
        hold.payer, hold.runner, of=running_max, now_ms=now_ms, lease_ms=hold.lease_ms, reserve_ms=reserve_ms
    )
    if isinstance(taken, Busy):
        wait_s = -(-(taken.until_ms - now_ms) // 1_000)
        wait_s = min(max(wait_s, SLOT_RETRY_S_MIN), SLOT_RETRY_S_MAX)
        raise TooManyRunningError(running_max=running_max, retry_after_s=wait_s)
    slot.callback(platform.slots.give_back, hold.payer, taken, hold.runner)


def _holds(
    platform: Platform, attempt: _Attempt, ready: ReadyAgent, named: list[NamedJudge]
) -> tuple[Escrow, list[Escrow]]:
    """The escrows of a task and of its judges, to be funded."""
    agent, request, now_ms = ready.agent, attempt.request, platform.now_ms()
    judging_s = sum(judge.timeout_s for judge in named)
    timeout_s = min(request.timeout or agent.terms.timeout_s, agent.terms.timeout_s, attempt.timeout_s_max - judging_s)
    hold = Escrow(
        escrow_id=attempt.escrow_id,
        payer=attempt.user,
        task_id=request.task_id,
        request_sha256=attempt.request_sha256,
        agent_id=agent.agent_id,
        owner=agent.owner,
        module_sha256=ready.version.module_sha256,
        input_sha256=request.stdin.sha256,
        tariff=agent.terms.tariff,
        budget_micro=request.budget_micro - sum(judge.payers_micro for judge in named),
        fee_bps=platform.settings.fee_bps,
        timeout_ms=timeout_s * 1_000,
        runner=attempt.runner,
        fence=1,
        funded_ms=now_ms,
        lease_ms=now_ms,
        expires_ms=now_ms + (timeout_s + judging_s) * 1_000 + ESCROW_GRACE_MS,
        agent_rules_sha256=rules_sha256(agent.terms.rules),
        task_rules_sha256=request.own_rules_sha256,
        compute=platform.settings.compute,
        own_limits=agent.terms.limits,
        task_judge_bps=agent.terms.task_judge_bps or 0,
        webhook=request.webhook,
        keep_input=request.keep_input,
        share_payer=bool(request.share and request.share.payer),
        share_log=bool(request.share and request.share.log),
        ticket=attempt.by.ticket if attempt.by else None,
    )
    hold = replace(hold, lease_ms=_lease_ms(platform, now_ms, hold, named))
    judge_holds = [judges.escrow_of(judge, hold) for judge in named]
    stored_holds = tuple(
        JudgeHold(judge.side, escrow.agent_id, escrow.budget_micro, escrow.escrow_id)
        for judge, escrow in zip(named, judge_holds, strict=True)
    )
    return replace(hold, judges=stored_holds), judge_holds


def _join(
    platform: Platform, escrow: Escrow, attempt: _Attempt, ready: ReadyAgent, named: list[NamedJudge]
) -> tuple[Escrow, list[Escrow]]:
    """The stored escrow of an earlier attempt: settled, or taken over with its judges' escrows if its lease has lapsed.

    A task keeps the versions and rules that it was funded for. If those are no longer the active ones, it is refunded.
    A task that may run for longer than this entry point can wait is left to the queue. Raises TaskConflictError,
    TaskInProgressError.
    """
    now_ms = platform.now_ms()
    if _can_take_over(platform, escrow, attempt):
        stored = judges.stored(platform, escrow)
        if not ready.matches(escrow) or not judges.still_match(named, stored):
            return settle.refund(platform, escrow, Outcome.SUPERSEDED, _SUPERSEDED), []
        if escrow.timeout_ms <= (attempt.timeout_s_max - sum(judge.timeout_s for judge in named)) * 1_000:
            lease_ms = min(_lease_ms(platform, now_ms, escrow, named), escrow.expires_ms)
            escrow = platform.ledger.take_over(escrow, runner=attempt.runner, now_ms=now_ms, lease_ms=lease_ms)
            if escrow.held_by(attempt.runner):
                return escrow, stored
    return _join_settled(platform, escrow, attempt), []


def _join_refused(platform: Platform, escrow: Escrow, attempt: _Attempt, refusal: RequestError) -> Escrow:
    """The settled escrow of an earlier attempt whose request would be refused now.

    Refunds it if no runner holds it, unless the refusal is temporary (`Retry-After`) or applies to this entry point
    only. Raises RequestError, PlatformUnavailableError.
    """
    if _can_take_over(platform, escrow, attempt):
        if refusal.retry_after_s is not None:
            raise refusal
        if isinstance(refusal, AccountFrozenError) or refusal.members.get("state") == launch.FROZEN_OWNER:
            return settle.refund(platform, escrow, Outcome.SUPERSEDED, _FROZEN)
        if not isinstance(refusal, TimeoutTooLongError):
            return settle.refund(platform, escrow, Outcome.SUPERSEDED, _REFUSED_NOW)
    return _join_settled(platform, escrow, attempt)


def _join_settled(platform: Platform, escrow: Escrow, attempt: _Attempt) -> Escrow:
    """The settled escrow of an earlier attempt. Raises TaskConflictError, TaskInProgressError."""
    _check_same(escrow, attempt)
    return settle.settled(platform, escrow)


def _check_same(escrow: Escrow, attempt: _Attempt) -> None:
    """Raises TaskConflictError or TicketUsedError if a stored escrow is of another request."""
    if escrow.request_sha256 == attempt.request_sha256:
        return
    if escrow.ticket:
        raise TicketUsedError(escrow.ticket.channel_id, escrow.ticket.number)
    raise TaskConflictError(escrow.task_id)


def _can_take_over(platform: Platform, escrow: Escrow, attempt: _Attempt) -> bool:
    """Whether the escrow is of the same request and still funded, and its lease has lapsed."""
    in_time = escrow.lease_ms <= platform.now_ms() < escrow.expires_ms
    return escrow.settlement is None and in_time and escrow.request_sha256 == attempt.request_sha256


def _lease_ms(platform: Platform, now_ms: int, escrow: Escrow, named: list[NamedJudge]) -> int:
    """When the runner's lease ends: afterwards another attempt may take the task over."""
    return now_ms + min(platform.left_ms(), judges.span_ms(escrow, named))
