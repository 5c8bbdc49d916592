"""Payouts of withdrawals: decided once, returned in full if they fail, listed while they wait, and audited."""

import base64
from typing import Any

import pytest

from quittance.ledger.journal import LineKind, Payout, PayoutState, parse_payout_id
from quittance.limits import ACCOUNT_ID_CHARS_MAX, PAYOUT_ID_CHARS_MAX, TASK_ID_CHARS_MAX
from quittance.usecases import audit as auditing
from tests.functions import test_handlers
from tests.functions.test_handlers import Call
from tests.support import Cloud

call = test_handlers.call  # the fixture
BANK: dict[str, Any] = {"user": "bank", "scope": "ledger:payout"}
HOUR_MS = 3_600_000
HALF = {"withdrawal_id": "w-1", "amount": "0.5"}


@pytest.fixture
def payout_id(call: Call) -> str:
    """Alice has withdrawn half a credit of her one."""
    assert call("accounts", "POST", "/accounts/me/withdrawals", HALF)[1]["state"] == "requested"
    (listed,) = call("accounts", "GET", "/payouts", **BANK)[1]["payouts"]
    assert (listed["account_id"], listed["withdrawal_id"], listed["amount"], listed["state"]) == (
        "alice", "w-1", "0.5", "requested",
    )  # fmt: skip
    return str(listed["payout_id"])


def decide(call: Call, payout_id: str, state: object, **caller: Any) -> tuple[int, dict[str, Any]]:
    return call("accounts", "POST", f"/payouts/{payout_id}", {"state": state}, **{**BANK, **caller})[:2]


def shown(call: Call) -> list[tuple[str, str, str | None]]:
    lines = call("accounts", "GET", "/accounts/me/statement")[1]["lines"]
    return [(line["kind"], line["amount"], line["payout"]) for line in lines]


def available(call: Call) -> str:
    return str(call("accounts", "GET", "/accounts/me")[1]["available"])


@pytest.mark.parametrize(("state", "left"), [("paid", "0.5"), ("failed", "1")])
def test_payout_is_decided_once(platform: Cloud, call: Call, payout_id: str, state: str, left: str) -> None:
    status, first = decide(call, payout_id, state)
    assert (status, first["state"], first["decided_by"]) == (200, state, "bank")
    assert decide(call, payout_id, state, user="bank-2") == (200, first), (
        "a repeated request returns the first decision"
    )
    other = "failed" if state == "paid" else "paid"
    status, problem = decide(call, payout_id, other)
    assert (status, problem["code"], problem["state"]) == (409, "payout_conflict", state)
    assert call("accounts", "GET", "/payouts", **BANK)[1] == {"payouts": [], "next": None}
    assert available(call) == left
    assert auditing.audit(platform).differences == []


def test_owner_reads_the_state_of_a_withdrawal(call: Call, payout_id: str) -> None:
    assert shown(call)[0] == ("withdrawal", "-0.5", "requested")
    decide(call, payout_id, "failed")
    assert shown(call)[:2] == [("returned", "0.5", None), ("withdrawal", "-0.5", "failed")]
    status, again, _ = call("accounts", "POST", "/accounts/me/withdrawals", HALF)
    assert (status, again["state"]) == (201, "failed"), "a repeated request is the same withdrawal"
    assert available(call) == "1"


def test_payouts_need_the_payout_scope(call: Call, payout_id: str) -> None:
    for scope in ("", "ledger:deposit platform:operate"):
        for answer in (
            call("accounts", "GET", "/payouts", scope=scope)[:2],
            decide(call, payout_id, "paid", scope=scope),
        ):
            assert (answer[0], answer[1]["required_scope"]) == (403, "ledger:payout")
    assert shown(call)[0] == ("withdrawal", "-0.5", "requested")


@pytest.mark.parametrize("state", ["requested", "Paid", "", None, 1])
def test_invalid_decisions_are_refused(call: Call, payout_id: str, state: object) -> None:
    status, problem = decide(call, payout_id, state)
    assert (status, problem["errors"][0]["field"]) == (400, "state")


def named(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "unknown", [named("alice#w-2"), named("bob#w-1"), named("alice"), named("#"), named("alice#"), "a", "AAAA", "____"]
)
def test_unknown_payouts_are_not_found(call: Call, payout_id: str, unknown: str) -> None:
    assert decide(call, unknown, "failed")[0] == 404
    assert available(call) == "0.5"


def test_longest_names_make_a_payout_id_that_fits_a_path() -> None:
    longest = Payout("a" * ACCOUNT_ID_CHARS_MAX, "w" * TASK_ID_CHARS_MAX, 1, 1, PayoutState.REQUESTED).payout_id
    assert len(longest) == PAYOUT_ID_CHARS_MAX
    assert parse_payout_id(longest) == ("a" * ACCOUNT_ID_CHARS_MAX, "w" * TASK_ID_CHARS_MAX)


def test_waiting_payouts_are_listed_in_pages_oldest_first(platform: Cloud, call: Call) -> None:
    for number in range(5):
        platform.skew_ms = -number * HOUR_MS  # more than a request takes on any machine
        body = {"withdrawal_id": f"w-{number}", "amount": "0.1"}
        assert call("accounts", "POST", "/accounts/me/withdrawals", body)[0] == 201
    found: list[str] = []
    query = {"limit": "2"}
    for decided in range(3):
        page = call("accounts", "GET", "/payouts", query=query, **BANK)[1]
        found += [payout["withdrawal_id"] for payout in page["payouts"]]
        if decided == 0:  # decide the last payout of the page before reading the next page
            decide(call, page["payouts"][-1]["payout_id"], "paid")
        query = {"limit": "2", "after": page["next"]}
    assert (found, page["next"]) == (["w-4", "w-3", "w-2", "w-1", "w-0"], None)
    for cursor in ("x", "1~", "1~_", f"x~{named('alice#w-1')}", f"1~{named('alice')}"):
        status, problem, _ = call("accounts", "GET", "/payouts", query={"after": cursor}, **BANK)
        assert (status, problem["errors"][0]["field"]) == (400, "after"), cursor


def test_withdrawal_of_older_code_counts_as_requested(platform: Cloud, call: Call, payout_id: str) -> None:
    """It has no state and is in no index. Its id follows from its names, and it can be decided like any other."""
    (item,) = platform.items("OUT#")
    for name in ("payout", "work", "work_at"):
        item.pop(name)
    platform._dynamodb.put_item(TableName=platform.settings.ledger_table, Item=item)
    assert call("accounts", "GET", "/payouts", **BANK)[1]["payouts"] == []
    assert call("accounts", "POST", "/accounts/me/withdrawals", HALF)[1]["state"] == "requested"
    audit = auditing.audit(platform)
    assert (audit.differences, audit.payouts_waiting, audit.waiting_micro) == ([], 1, 500_000)
    assert "to pay out   0.5 in 1 withdrawals" in auditing.report(audit)
    assert decide(call, payout_id, "failed")[0] == 200
    assert available(call) == "1"
    assert auditing.audit(platform).differences == []


@pytest.mark.parametrize(
    ("prefix", "changes"),
    [
        ("OUT#", {"payout": {"S": "requested"}}),
        ("OUT#", {"payout": {"S": "paid"}}),
        ("OUT#", {"payout": None}),
        ("OUT#", {"decided_by": None}),
        ("OUT#", {"decided_ms": None}),
        ("OUT#", {"work": {"S": "PAYOUT"}}),
        ("BACK#", {"amount": {"N": "499999"}}),
        ("BACK#", {"pk": {"S": "BACK#alice#w-2"}}),
        ("BACK#", {"pk": {"S": "BACK#bob#w-1"}, "account": {"S": "bob"}}),
    ],
)
def test_audit_accounts_for_returned_payouts(
    platform: Cloud, call: Call, payout_id: str, prefix: str, changes: dict[str, Any]
) -> None:
    decide(call, payout_id, "failed")
    audit = auditing.audit(platform)
    assert (audit.differences, audit.withdrawn_micro, audit.deposited_micro) == ([], 0, 1_000_000)
    (item,) = platform.items(prefix)
    platform.dynamodb.delete_item(TableName=platform.settings.ledger_table, Key={"pk": item["pk"]})
    item = {name: value for name, value in (item | changes).items() if value is not None}
    platform._dynamodb.put_item(TableName=platform.settings.ledger_table, Item=item)
    found = auditing.audit(platform).differences
    assert [difference for difference in found if item["pk"]["S"] in difference.at or difference.invariant == "payouts"]


@pytest.mark.parametrize(
    "changes", [{"work": None}, {"payout": {"S": "paid"}}, {"payout": {"S": "failed"}}, {"payout": None}]
)
def test_audit_finds_a_waiting_payout_missing_from_the_index(
    platform: Cloud, payout_id: str, changes: dict[str, Any]
) -> None:
    (item,) = platform.items("OUT#")
    item = {name: value for name, value in (item | changes).items() if value is not None}
    platform._dynamodb.put_item(TableName=platform.settings.ledger_table, Item=item)
    assert [found for found in auditing.audit(platform).differences if "w-1" in found.at]


# Depositors.

DEPOSIT = {"deposit_id": "d-1", "amount": "2"}


def deposit(call: Call, bank: str, **changes: str) -> tuple[int, dict[str, Any]]:
    return call("accounts", "POST", "/accounts/bob/deposits", DEPOSIT | changes, user=bank, scope="ledger:deposit")[:2]


def test_deposit_by_another_depositor_is_not_a_repeat(platform: Cloud, call: Call) -> None:
    first = deposit(call, "bank-1")
    assert (first[0], deposit(call, "bank-1")) == (201, first)
    for amount in ("2", "3"):
        status, problem = deposit(call, "bank-2", amount=amount)
        assert (status, problem["code"], problem["recorded"]) == (409, "movement_conflict", "2")
        assert "another depositor" in problem["detail"]
    assert deposit(call, "bank-2", deposit_id="d-2")[0] == 201
    assert platform.ledger.available_micro("bob") == 4_000_000


def test_deposit_of_older_code_is_a_repeat_for_any_depositor(platform: Cloud, call: Call) -> None:
    """Its depositor is not stored: if a repeat counted as another depositor's, it would be credited twice."""
    platform.ledger.deposit("bob", "d-1", 2_000_000, now_ms=1)
    for bank in ("bank-1", "bank-2"):
        assert deposit(call, bank)[0] == 201
        assert deposit(call, bank, amount="3")[0] == 409
    assert platform.ledger.available_micro("bob") == 2_000_000
    (line,), _ = platform.ledger.statement("bob", limit=5)
    assert (line.kind, line.depositor) == (LineKind.DEPOSIT, None)
