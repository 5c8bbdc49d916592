"""A refused number says which ones can be used, so that a program knows whether to wait or to top the channel up."""

import pytest

from quittance.errors import TicketInvalidError
from quittance.limits import CHANNEL_GRANT_FIRST, CHANNEL_GRANT_MAX, TICKET_NUMBER_MAX
from quittance.platform import Platform
from quittance.usecases import tickets
from tests.tickets import opened, task, ticket

AGENT = "agt_k5x2mfq7w3nzt4ab"


@pytest.mark.parametrize(
    ("count", "n", "numbers", "granted"),
    [
        (5, 6, 5, 5),
        (5, TICKET_NUMBER_MAX, 5, 5),
        (200, CHANNEL_GRANT_FIRST + CHANNEL_GRANT_MAX + 1, 200, CHANNEL_GRANT_FIRST),
        (200, 201, 200, CHANNEL_GRANT_FIRST),
    ],
)
def test_a_refused_number_says_which_can_be_used(
    platform: Platform, count: int, n: int, numbers: int, granted: int
) -> None:
    platform.ledger.deposit("alice", "d", 10**8, now_ms=platform.now_ms())
    channel = opened(platform, tickets=count)
    request = task(channel.channel_id, n, AGENT)
    accepted = tickets.accept(platform, ticket(platform, request), request)
    with pytest.raises(TicketInvalidError) as caught:
        tickets.check(platform, accepted, request, span_ms=1_000, judged=False)
    assert caught.value.members == {"numbers": numbers, "granted": granted}
