"""How an account's credits lie over several items, so that parallel tasks need not wait for each other. Pure.

DynamoDB lets one transaction at a time have an item, so one item bears some fifty tasks a second. An account therefore
has a number of *purses*. Credits come into the first, the home purse, and an account that nobody hurries never uses
another. Where two tasks collide at a purse, the next one is taken from another purse that has enough; and when most of
the credits still lie in one purse, the task that collided spreads them over all while it takes its own.

An account has what all of its purses have. A purse is never below zero, so neither is an account.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Final

from quittance.limits import WALLET_PURSES

HOME: Final = 0


def taking(purses: Sequence[int], amount_micro: int, *, contended: bool) -> Mapping[int, int] | None:
    """How an amount is taken out of an account: what each purse that is touched gains or loses, or None if it lacks.

    `purses` is what each has, in micro-credits; `contended` tells that others are taking from this account now.
    """
    if sum(purses) < amount_micro:
        return None
    able = [purse for purse, held_micro in enumerate(purses) if held_micro >= amount_micro]
    if not able:
        return _gathered(purses, amount_micro)
    richest = max(able, key=purses.__getitem__)
    if not contended:
        return {richest: -amount_micro}
    share_micro = (purses[richest] - amount_micro) // WALLET_PURSES
    if len(able) <= WALLET_PURSES // 2 and share_micro >= amount_micro:
        spread = dict.fromkeys(range(WALLET_PURSES), share_micro)
        spread[richest] = -amount_micro - share_micro * (WALLET_PURSES - 1)
        return spread
    return {random.choice(able): -amount_micro}  # noqa: S311 - spreads load, hides nothing


def _gathered(purses: Sequence[int], amount_micro: int) -> Mapping[int, int]:
    """From as few purses as possible, the fullest first."""
    taken: dict[int, int] = {}
    missing_micro = amount_micro
    for purse in sorted(range(len(purses)), key=purses.__getitem__, reverse=True):
        if not missing_micro:
            break
        part_micro = min(purses[purse], missing_micro)
        taken[purse] = -part_micro
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
    """The owner whose bond an account holds. Raises ValueError for an account that holds none."""
    if not is_bond(account):
        msg = f"{account!r} holds no bond"
        raise ValueError(msg)
    return account.removeprefix(_PREFIX)
