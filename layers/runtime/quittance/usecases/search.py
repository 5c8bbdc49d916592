"""Search: active agents by words, tag, owner, price, score and success rate, from the index of agents."""

from dataclasses import replace
from typing import Annotated, Final

from pydantic import Field

from quittance.api.models import AgentTag, MaxPrice, MinScore, MinSuccessRate, SearchText
from quittance.api.requests import NO_CURSOR, Cursor
from quittance.errors import InvalidRequestError
from quittance.limits import QUERY_WORDS_MAX
from quittance.platform import Platform
from quittance.store.listings import ListedAgent, Sort, Wanted, words

_CURSOR: Final = Cursor("|".join(Sort), "[A-Za-z0-9_-]{1,64}", "[0-9]{2}")
Text = Annotated[
    SearchText | None,
    Field(description="Active agents whose name, description and tags have all these words, in any order."),
]
Tag = Annotated[AgentTag | None, Field(description="Active agents with this tag.")]
Price = Annotated[
    MaxPrice | None, Field(description="Active agents whose `least_price` (see the estimate) is at most this.")
]
Score = Annotated[MinScore | None, Field(description="Active agents with at least this score, from 0 to 100.")]
Rate = Annotated[
    MinSuccessRate | None,
    Field(description="Active agents with at least this success rate, from 0 to 1. One without results has none."),
]
Order = Annotated[
    Sort | None,
    Field(
        description="`newest`, `price` (cheapest first), `score` or `success_rate` (best first). By default `newest`."
    ),
]


def find(
    platform: Platform, q: str | None, wanted: Wanted, *, sort: Sort | None, limit: int, after: str | None
) -> tuple[list[ListedAgent], str | None]:
    """Some active agents with all words of `q` that are as wanted, in order, and the cursor of the next page.

    Prices in `wanted` include the compute of the shortest run, as `least_price` does. Raises InvalidRequestError for a
    text without words or with too many, and for the cursor of another order.
    """
    named = words(q) if q else ()
    if q and not named:
        raise InvalidRequestError(("q", "must have at least one letter or digit"))
    if len(named) > QUERY_WORDS_MAX:
        raise InvalidRequestError(("q", f"must have at most {QUERY_WORDS_MAX} different words"))
    order = sort or Sort.NEWEST
    place = _CURSOR.read(after)
    if place is not None and place[1] != order:
        raise InvalidRequestError(NO_CURSOR)
    if wanted.price_micro_max is not None:
        own_micro = wanted.price_micro_max - platform.settings.compute.micro(1)
        wanted = replace(wanted, price_micro_max=own_micro)
    found = platform.listings.search(
        replace(wanted, words=named), sort=order, limit=limit, after=(place[0], *place[2:]) if place else None
    )
    cursor = _CURSOR.write(found.after[0], order, *found.after[1:]) if found.after else None
    return found.agents, cursor
