"""Channels: one deposit that the owner of a key spends by tickets (see docs/howto/channels.md)."""

from dataclasses import replace
from typing import Annotated, Final

from pydantic import Field

from quittance.api.identity import Caller
from quittance.api.models import (
    ChannelAnswer,
    ChannelId,
    ChannelKey,
    ChannelPage,
    ChannelRequest,
    SignedClose,
    TicketLine,
    TicketPage,
    TopUpAnswer,
    TopUpRequest,
)
from quittance.api.requests import Cursor, PageAfter, PageLimit
from quittance.errors import (
    AccountFrozenError,
    FundingPausedError,
    InvalidRequestError,
    NotFoundError,
    QuittanceError,
    TicketInvalidError,
)
from quittance.ledger.channels import Channel, ChannelState, channel_id, granted_for
from quittance.ledger.credits import format_credits
from quittance.limits import AMOUNT_MICRO_MAX, CHANNEL_CLOSE_MS, CHANNEL_DAYS_MAX, TICKET_AHEAD_S_MAX, TICKET_NUMBER_MAX
from quittance.platform import Platform
from quittance.proof import ticket as tickets
from quittance.proof.statement import ProofError
from quittance.proof.ticket import LEEWAY_S
from quittance.store.channels import UsedTicket

AfterNumber = Annotated[int, Field(ge=0, le=TICKET_NUMBER_MAX, description="The `next` of an earlier page.")]
_DAY_MS: Final = 24 * 60 * 60 * 1_000
_CHANNELS: Final = Cursor("chn_[a-z2-7]{26}")


def open_channel(platform: Platform, caller: Caller, request: ChannelRequest) -> ChannelAnswer:
    """Opens a channel: its deposit leaves the caller's account, and only its key's tickets spend it.

    The same request opens one channel, however often it is sent. Raises AccountFrozenError, ChannelConflictError,
    FundingPausedError, InsufficientFundsError, InvalidRequestError, PlatformUnavailableError.
    """
    now_ms = platform.now_ms()
    channel = Channel(
        channel_id=channel_id(
            issuer=platform.settings.receipt_issuer,
            payer=caller.account,
            salt=request.salt,
            key=request.key,
            ticket_micro=request.ticket_micro,
        ),
        payer=caller.account,
        salt=request.salt,
        key=request.key,
        ticket_micro=request.ticket_micro,
        tickets=request.tickets,
        deposit_micro=request.deposit_micro,
        opened_ms=now_ms,
        expires_ms=request.expires_at,
        agents=tuple(request.agents or ()),
        max_per_task_micro=request.max_per_task_micro,
    )
    channel = replace(channel, granted=granted_for(channel, 1) or 0)
    try:
        _check_opening(platform, caller, channel, now_ms)
    except QuittanceError:
        if not _is_open_already(platform, channel):
            raise
    return _answer(platform, platform.channels.open(channel))


def page(platform: Platform, caller: Caller, limit: PageLimit = 50, after: PageAfter = None) -> ChannelPage:
    """A page of the caller's channels, newest first; the list may lag by some seconds.

    Raises InvalidRequestError for an invalid cursor, PlatformUnavailableError.
    """
    ids, last = platform.listings.channels(caller.account, after=_CHANNELS.read(after), limit=limit)
    return ChannelPage(
        channels=[_answer(platform, channel) for channel in platform.channels.get_all(ids)],
        next=_CHANNELS.write(*last) if last else None,
    )


def read(platform: Platform, caller: Caller, channel_id: ChannelId) -> ChannelAnswer:
    """One of the caller's channels. Raises NotFoundError, PlatformUnavailableError."""
    return _answer(platform, _own(platform, caller, channel_id))


def top_up(platform: Platform, caller: Caller, channel_id: ChannelId, request: TopUpRequest) -> TopUpAnswer:
    """Adds tickets to one of the caller's open channels, once per id.

    Raises NotFoundError, AccountFrozenError, ChannelClosedError, FundingPausedError, InsufficientFundsError,
    InvalidRequestError, MovementConflictError, PlatformUnavailableError.
    """
    channel = _own(platform, caller, channel_id)
    amount_micro = request.tickets * channel.ticket_micro
    try:
        _check_top_up(platform, caller, channel, amount_micro)
    except QuittanceError:  # a repeated request gets the answer of the first, whatever would be refused now
        recorded_ms = platform.channels.topped_up_ms(channel_id, request.topup_id, amount_micro)
        if recorded_ms is None:
            raise
    else:
        recorded_ms = platform.channels.top_up(channel, request.topup_id, amount_micro, now_ms=platform.now_ms())
    return TopUpAnswer(
        channel_id=channel_id, topup_id=request.topup_id, amount_micro=amount_micro, recorded_at=recorded_ms
    )


def close(platform: Platform, caller: Caller, channel_id: ChannelId) -> ChannelAnswer:
    """Closes one of the caller's channels: it takes no more tickets, and in a few minutes the rest is returned.

    Raises NotFoundError, PlatformUnavailableError.
    """
    return _answer(platform, begin_closing(platform, _own(platform, caller, channel_id)))


def close_by_key(platform: Platform, channel_id: ChannelId, request: SignedClose) -> ChannelAnswer:
    """Closes a channel by an order that its key signed: no bearer token is needed. The rest goes to its payer.

    Raises NotFoundError, TicketInvalidError, PlatformUnavailableError.
    """
    now_s = platform.now_ms() // 1_000
    try:
        claims, jws = tickets.read_close(request.order)
        if (claims.iss, claims.channel) != (platform.settings.receipt_issuer, channel_id):
            msg = "its iss and channel are not those of this channel"
            raise TicketInvalidError(msg)
        channel = platform.channels.get_cached(channel_id)
        tickets.check_signed(jws, channel.key, "closing order")
    except ProofError as exc:
        raise TicketInvalidError(str(exc)) from exc
    if not now_s - LEEWAY_S < claims.exp <= now_s + TICKET_AHEAD_S_MAX:
        msg = "its exp must be in the future, at most a year ahead, in seconds since 1970"
        raise TicketInvalidError(msg)
    return _answer(platform, begin_closing(platform, channel))


def used_tickets(
    platform: Platform, caller: Caller, channel_id: ChannelId, limit: PageLimit = 50, after: AfterNumber = 0
) -> TicketPage:
    """The next ticket numbers of one of the caller's channels: which are used, by which tasks, and which are free.

    Consistent: a number that is free here was free a moment ago. Raises NotFoundError, PlatformUnavailableError.
    """
    channel = _own(platform, caller, channel_id)
    found = list(platform.channels.used(channel, after=after, limit=limit))
    last = min(after + limit, channel.numbers)
    taken = {number for used in found for number in range(used.number, used.number + max(used.count, 1))}
    free = [number for number in range(after + 1, last + 1) if number not in taken]
    return TicketPage(
        channel_id=channel_id,
        tickets=[_line(used) for used in found],
        free=_ranges(free) if channel.state is ChannelState.OPEN else [],
        next=last if last < channel.numbers else None,
    )


def begin_closing(platform: Platform, channel: Channel) -> Channel:
    """Makes a channel refuse new tickets, unless it does already; its tickets are counted after CHANNEL_CLOSE_MS."""
    if channel.state is not ChannelState.OPEN:
        return channel
    return platform.channels.begin_closing(channel, close_ms=platform.now_ms() + CHANNEL_CLOSE_MS)


def advance_closing(platform: Platform, channel: Channel) -> Channel:
    """Takes a channel that is due as far towards its end as it goes now; the sweep calls it until it is closed.

    An expired channel begins to close. A closing one whose time is over counts its numbers, and then returns the rest,
    if all its tickets are swept. Raises PlatformUnavailableError.
    """
    now_ms = platform.now_ms()
    if channel.state is ChannelState.OPEN:
        return begin_closing(platform, channel) if channel.expires_ms <= now_ms else channel
    if channel.state is ChannelState.CLOSED or (channel.close_ms or 0) > now_ms:
        return channel
    if channel.counted < channel.granted:
        return platform.channels.count_out(channel, now_ms=now_ms)
    return platform.channels.close(channel, now_ms=now_ms) if channel.swept == channel.used else channel


def _check_funding(platform: Platform, caller: Caller) -> None:
    if platform.registry.is_frozen(caller.account):
        raise AccountFrozenError
    if platform.registry.funding_is_paused():
        raise FundingPausedError


def _check_opening(platform: Platform, caller: Caller, channel: Channel, now_ms: int) -> None:
    _check_funding(platform, caller)
    if not now_ms < channel.expires_ms <= now_ms + CHANNEL_DAYS_MAX * _DAY_MS:
        raise InvalidRequestError(("expires_at", f"must be in the future, at most {CHANNEL_DAYS_MAX} days from now"))


def _check_top_up(platform: Platform, caller: Caller, channel: Channel, amount_micro: int) -> None:
    _check_funding(platform, caller)
    rest_micro = channel.deposit_micro + amount_micro - channel.spent_micro
    if channel.swept + rest_micro // channel.ticket_micro > TICKET_NUMBER_MAX:
        raise InvalidRequestError(("tickets", f"must not raise the channel's numbers over {TICKET_NUMBER_MAX}"))
    if channel.deposit_micro + amount_micro > AMOUNT_MICRO_MAX:
        most = format_credits(AMOUNT_MICRO_MAX)
        raise InvalidRequestError(("tickets", f"must not raise the channel's deposit over {most} credits"))


def _is_open_already(platform: Platform, channel: Channel) -> bool:
    try:
        platform.channels.get(channel.channel_id)
    except NotFoundError:
        return False
    return True


def _own(platform: Platform, caller: Caller, channel_id: str) -> Channel:
    channel = platform.channels.get(channel_id)
    if channel.payer != caller.account:
        msg = f"You have no channel {channel_id!r}."
        raise NotFoundError(msg)
    return channel


def _line(used: UsedTicket) -> TicketLine:
    return TicketLine(
        number=used.number,
        tickets=used.count,
        task_id=used.task_id,
        agent_id=used.agent_id,
        escrow_status=used.state,
        cost_micro=used.cost_micro,
    )


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _answer(platform: Platform, channel: Channel) -> ChannelAnswer:
    return ChannelAnswer(
        channel_id=channel.channel_id,
        issuer=platform.settings.receipt_issuer,
        payer=channel.payer,
        state=channel.state,
        salt=channel.salt,
        key=ChannelKey(x=channel.key),
        ticket_micro=channel.ticket_micro,
        agents=list(channel.agents) or None,
        max_per_task_micro=channel.max_per_task_micro,
        deposit_micro=channel.deposit_micro,
        spent_micro=channel.spent_micro,
        held_micro=channel.held_micro,
        returned_micro=channel.returned_micro,
        numbers=channel.numbers,
        used=channel.swept,
        opened_at=channel.opened_ms,
        expires_at=channel.expires_ms,
        closes_at=channel.close_ms,
        closed_at=channel.closed_ms,
    )
