"""Tickets: who asks for a task that a channel pays, and whether the channel pays it now.

`accept` decides what can never change: that the channel's key signed this ticket for exactly this request. `check`
decides what holds now: time left, numbers granted, agent and amount allowed. A task that is stored already needs no
check: it is answered from its escrow, whatever has become of the channel.
"""

from dataclasses import dataclass

from quittance.api.models import TaskRequest
from quittance.errors import (
    AgentNotAllowedError,
    ChannelClosedError,
    ChannelExpiredError,
    InvalidRequestError,
    NotFoundError,
    TicketInvalidError,
    TicketTooSmallError,
)
from quittance.ledger.channels import Channel, ChannelState, granted_for, ticket_task_id, tickets_needed
from quittance.ledger.escrow import Ticket, TicketProof
from quittance.limits import CHANNEL_GRANT_MAX, TICKET_AHEAD_S_MAX, TICKET_NUMBER_MAX, TICKETS_PER_TASK_MAX
from quittance.platform import Platform
from quittance.proof import ticket as tickets
from quittance.proof.statement import ProofError, quoted
from quittance.proof.ticket import LEEWAY_S, TicketClaims


@dataclass(frozen=True, slots=True)
class Accepted:
    """A ticket that the channel's key signed for the request that came with it."""

    channel: Channel
    ticket: Ticket
    expires_s: int

    @property
    def token(self) -> str:
        """The ticket as it was signed."""
        return self.ticket.proof.signed if self.ticket.proof else ""


def accept(platform: Platform, token: str, request: TaskRequest) -> Accepted:
    """The channel and the numbers of a ticket that its key signed for exactly this request.

    Anyone may send a ticket. What is not one for this request costs no read; one of an unknown channel costs one read,
    because nothing but the channel has its key. Raises TicketInvalidError, InvalidRequestError for another task_id,
    TicketTooSmallError for a budget beyond what any ticket of the channel pays, PlatformUnavailableError.
    """
    try:
        claims, jws = tickets.read(token)
        _check_request(platform, claims, request)
        channel = platform.channels.get_cached(claims.channel)
        tickets.check_signed(jws, channel.key)
    except ProofError as exc:
        raise TicketInvalidError(str(exc)) from exc
    except NotFoundError as exc:
        msg = f"there is no channel {claims.channel}"
        raise TicketInvalidError(msg) from exc
    # Never deferred to `check`: what follows reads every number of the ticket.
    if request.budget_micro > (most_micro := TICKETS_PER_TASK_MAX * channel.ticket_micro):
        raise TicketTooSmallError(budget_micro=request.budget_micro, most_micro=most_micro)
    count = tickets_needed(claims.budget_micro, channel.ticket_micro)
    proof = TicketProof(channel.salt, channel.key, channel.ticket_micro, token)
    return Accepted(channel, Ticket(claims.channel, claims.n, count, proof), claims.exp)


def _check_request(platform: Platform, claims: TicketClaims, request: TaskRequest) -> None:
    """Raises TicketInvalidError or InvalidRequestError unless a ticket is of this stack and asks for this request."""
    if claims.iss != platform.settings.receipt_issuer:
        msg = f"its iss is {quoted(claims.iss)}, not {platform.settings.receipt_issuer}"
        raise TicketInvalidError(msg)
    task_id = ticket_task_id(claims.channel, claims.n)
    if request.task_id != task_id:
        raise InvalidRequestError(("task_id", f"must be {task_id}, the ticket's channel and number"))
    for name, signed, sent in (
        ("agent_id", claims.agent_id, request.agent_id),
        ("input_sha256", claims.input_sha256, request.stdin.sha256),
        ("budget", claims.budget_micro, request.budget_micro),
        ("timeout", claims.timeout, request.timeout),
        ("acceptance_sha256", claims.acceptance_sha256, request.own_rules_sha256),
        ("options_sha256", claims.options_sha256, request.options_sha256),
    ):
        if signed != sent:
            msg = f"its {name} is not that of the request"
            raise TicketInvalidError(msg)


def check(platform: Platform, accepted: Accepted, request: TaskRequest, *, span_ms: int, judged: bool) -> Channel:
    """The channel, if it pays a task that takes at most `span_ms` from now; `judged` if judges must accept the output.

    Raises TicketInvalidError for an expired ticket or a number that the deposit does not cover, ChannelClosedError,
    ChannelExpiredError, AgentNotAllowedError, TicketTooSmallError, PlatformUnavailableError.
    """
    channel, now_ms = accepted.channel, platform.now_ms()
    if accepted.expires_s <= now_ms // 1_000 - LEEWAY_S:
        msg = "it has expired"
        raise TicketInvalidError(msg)
    if accepted.expires_s > now_ms // 1_000 + TICKET_AHEAD_S_MAX:
        msg = f"its exp is more than {TICKET_AHEAD_S_MAX} seconds ahead; it is in seconds since 1970"
        raise TicketInvalidError(msg)
    for agent_id in _paid_agents(request):
        if channel.agents and agent_id not in channel.agents:
            raise AgentNotAllowedError(channel.channel_id, agent_id)
    most_micro = channel.most_micro(judged=judged)
    if request.budget_micro > most_micro:
        raise TicketTooSmallError(budget_micro=request.budget_micro, most_micro=most_micro)
    if now_ms + span_ms > channel.expires_ms:
        raise ChannelExpiredError(channel.channel_id)
    # Grant last: a task that is refused must not make closing dearer.
    channel = _with_numbers(platform, channel, accepted.ticket)
    if channel.state is not ChannelState.OPEN:
        raise ChannelClosedError(channel.channel_id, state=channel.state)
    return channel


def _paid_agents(request: TaskRequest) -> list[str]:
    """The agents that the ticket pays: the task's, and the judge that the task names itself."""
    judge = request.acceptance.judge if request.acceptance else None
    return [request.agent_id, *([judge.agent_id] if judge else [])]


def _with_numbers(platform: Platform, channel: Channel, ticket: Ticket) -> Channel:
    """The channel with all numbers of a ticket granted; as it was if it is not open. Raises TicketInvalidError."""
    last = ticket.number + ticket.count - 1
    if channel.state is ChannelState.OPEN and last > channel.granted:
        channel = platform.channels.get_again(channel.channel_id)
    # Another environment may grant other numbers first. It raises `granted`, so the loop ends.
    while channel.state is ChannelState.OPEN and last > channel.granted and granted_for(channel, last):
        channel = platform.channels.grant(channel, last)
    if channel.state is not ChannelState.OPEN or last <= channel.granted:
        return channel
    if last > channel.numbers:
        covered = (
            f"the deposit covers the numbers up to {channel.numbers}" if last <= TICKET_NUMBER_MAX else "it is too high"
        )
        msg = f"it takes the numbers {ticket.number} to {last}, but {covered}"
        raise TicketInvalidError(msg, numbers=channel.numbers, granted=channel.granted)
    msg = (
        f"it takes the numbers {ticket.number} to {last}, far beyond those in use: use free numbers up to"
        f" {min(channel.granted + CHANNEL_GRANT_MAX, channel.numbers)} first"
    )
    raise TicketInvalidError(msg, numbers=channel.numbers, granted=channel.granted)
