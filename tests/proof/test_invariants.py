"""Audit rules that the ledger of the other tests cannot violate."""

import pytest

from quittance.proof.invariants import Context, check
from quittance.proof.seal import sealed


@pytest.mark.parametrize(("amount", "right"), [(-11, False), (-10, True), (-1, True), (0, True), (5, False)])
def test_a_charge_takes_at_most_what_is_due_and_never_adds(amount: int, right: bool) -> None:
    values = {"pk": "CHARGE#bond o#b", "account": "bond o", "at": 1, "amount": amount, "due": 10, "tasks": 1}
    found = check(sealed(values), {}, Context({}, "quittance:platform", 4, 2))
    assert ([difference.invariant for difference in found] == []) is right, found


@pytest.mark.parametrize(("amount", "right"), [(-1, False), (0, False), (1, True)])
def test_earnings_must_be_above_zero(amount: int, right: bool) -> None:
    values = {"pk": "EARN#o#b", "account": "o", "at": 1, "amount": amount, "tasks": 1}
    assert (check(sealed(values), {}, Context({}, "quittance:platform", 4, 2)) == []) is right
