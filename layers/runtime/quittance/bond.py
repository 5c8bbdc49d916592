"""The bond: credits that an agent's owner deposits, and that pay for what its agents' failures cost. Pure.

A bond is an account of its own. Its id has a space, which no client's account id can have, so wallet, journal and
audit treat it as any other account. See docs/who-pays.md.
"""

from typing import Final

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
