"""How an account's credits are spread over several items, so that parallel tasks do not block each other. Pure.

DynamoDB lets only one transaction at a time change an item, so one item carries about fifty tasks a second. The
available credits of an account are therefore spread over a number of *balance shards*. Credits are added to the first,
the home shard, and an account without parallel tasks uses no other. When two tasks collide on a shard, the next one
takes its credits from another shard that has enough. If most of the credits are still in one shard, the task that
collided takes its own amount and spreads the rest over all shards.

An account's balance is the sum of its shards. No shard is ever below zero, so no account is.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Final

from quittance.limits import BALANCE_SHARDS

HOME: Final = 0


def taking(shards: Sequence[int], amount_micro: int, *, contended: bool) -> Mapping[int, int] | None:
    """How to take an amount from an account: the change of each shard involved. None if the funds are insufficient.

    `shards` are the balances in micro-credits; `contended` is True if other transactions write to this account now.
    """
    if sum(shards) < amount_micro:
        return None
    sufficient = [shard for shard, balance_micro in enumerate(shards) if balance_micro >= amount_micro]
    if not sufficient:
        return _gathered(shards, amount_micro)
    richest = max(sufficient, key=shards.__getitem__)
    if not contended:
        return {richest: -amount_micro}
    share_micro = (shards[richest] - amount_micro) // BALANCE_SHARDS
    if len(sufficient) <= BALANCE_SHARDS // 2 and share_micro >= amount_micro:
        spread = dict.fromkeys(range(BALANCE_SHARDS), share_micro)
        spread[richest] = -amount_micro - share_micro * (BALANCE_SHARDS - 1)
        return spread
    return {random.choice(sufficient): -amount_micro}  # noqa: S311 - spreads load, hides nothing


def _gathered(shards: Sequence[int], amount_micro: int) -> Mapping[int, int]:
    """Takes an amount from as few shards as possible, the fullest first."""
    taken: dict[int, int] = {}
    missing_micro = amount_micro
    for shard in sorted(range(len(shards)), key=shards.__getitem__, reverse=True):
        if not missing_micro:
            break
        part_micro = min(shards[shard], missing_micro)
        taken[shard] = -part_micro
        missing_micro -= part_micro
    return taken


_PREFIX: Final = "bond "


def bond_account(owner: str) -> str:
    """The account that holds an owner's bond."""
    return _PREFIX + owner


def is_bond(account: str) -> bool:
    """Whether an account holds a bond."""
    return account.startswith(_PREFIX)


def owner_of(account: str) -> str:
    """The owner of the bond that an account holds. Raises ValueError if the account holds no bond."""
    if not is_bond(account):
        msg = f"{account!r} holds no bond"
        raise ValueError(msg)
    return account.removeprefix(_PREFIX)
