"""Audits the whole ledger after the other test modules, so its name sorts last."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from local.paths import Stack
from quittance.proof import log, receipt
from tests.e2e.people import Item, Ledger, User, assert_claims_match, sweep_until_credited
from tests.support import wasm


@pytest.fixture(scope="module")
def items(
    ledger: Ledger,
    api: Callable[..., httpx.Client],
    deposit: Callable[..., None],
    publish: Callable[..., str],
    bond: Callable[..., None],
    sweep: Callable[[], None],
) -> list[Item]:
    """All items after a few more tasks, so that there is something to audit if this module runs alone."""
    alice, owner = User.new(api, deposit), User.new(api)
    bond(owner.name)
    good, bad = (publish(wasm(name), owner=owner.name) for name in ("echo", "failing"))
    for number in range(3):
        alice.run(good, input=str(number))
        alice.run(bad)
    body = {"withdrawal_id": "w", "amount": "0.5"}
    assert alice.http.post("/accounts/me/withdrawals", json=body).status_code == 201
    sweep_until_credited(sweep, ledger)
    ledger.total()
    return ledger.items()


@pytest.fixture(scope="module")
def escrows(items: list[Item]) -> list[Item]:
    return [item for item in items if item["pk"].startswith("ESC#") and "state" in item]


def test_no_escrow_is_left_open(escrows: list[Item]) -> None:
    """I8: every task has ended, and every escrow is swept."""
    assert {item["state"] for item in escrows} <= {"released", "refunded", "expired"}
    assert not [item["task_id"] for item in escrows if "work" in item or "swept_ms" not in item]


def test_every_escrow_adds_up_and_has_the_right_fee(escrows: list[Item]) -> None:
    """I3 and I4."""
    for item in escrows:
        compute = item.get("compute", 0)
        price = item["paid"] + item["fee"] - compute
        assert price + compute + item["refunded"] == item["budget"]
        assert item["fee"] - compute == price * item["fee_bps"] // 10_000
        assert (item["state"] == "released") == (item["outcome"] in {"succeeded", "withheld"})
        assert item["state"] == "released" or price == 0
        assert item["state"] == "released" or item["fault"] == "payer" or compute == 0


def test_every_balance_follows_from_movements_and_tasks(stack: Stack, items: list[Item], escrows: list[Item]) -> None:
    """I2, I10 and I11: each account's balance, computed independently."""
    expected: Counter[str] = Counter()
    for item in items:
        kind, _, rest = item["pk"].partition("#")
        if kind in {"IN", "OUT", "BACK", "BOND", "CHARGE"}:
            expected[rest.partition("#")[0]] += item["amount"]
        if kind == "CHARGE":
            expected[stack.platform_account] -= item["amount"]
        if kind == "CHAN":
            expected[item["account"]] -= item["deposit"] - item.get("returned", 0)
    for item in escrows:
        if "channel" not in item:
            expected[item["account"]] -= item["budget"] - item["refunded"]
        returned = min(item.get("judging", 0), item["paid"])
        expected[item["owner"]] += item["paid"] - returned
        expected[f"bond {item['owner']}"] += returned
        expected[stack.platform_account] += item["fee"]
    stored: Counter[str] = Counter()
    for item in items:
        if item["pk"].startswith("ACCT#"):
            stored[item["pk"].split("#")[1]] += item["available"]
    assert stored == {account: balance for account, balance in expected.items() if balance or account in stored}
    assert min(stored.values()) >= 0


def test_every_channel_spent_what_its_tickets_cost(items: list[Item], escrows: list[Item]) -> None:
    """I14, and that no number is used twice."""
    spent, swept, used = Counter[str](), Counter[str](), Counter[tuple[str, int]]()
    for item in escrows:
        if item.get("tickets"):
            spent[item["channel"]] += item["paid"] + item["fee"] + item.get("task_judging", 0)
            swept[item["channel"]] += item["tickets"]
            used.update((item["channel"], item["number"] + nth) for nth in range(item["tickets"]))
    channels = {item["pk"].removeprefix("CHAN#"): item for item in items if item["pk"].startswith("CHAN#")}
    assert {name: item["spent"] for name, item in channels.items() if item["spent"]} == +spent
    assert {name: item["swept"] for name, item in channels.items() if item["swept"]} == swept
    assert set(used.values()) <= {1}
    for item in channels.values():
        left = item["deposit"] - item["spent"]
        assert left >= 0
        assert item["granted"] <= item["swept"] + left // item["ticket_value"]
        assert item.get("returned") == (left if item["state"] == "closed" else None)


def test_every_receipt_verifies_and_matches_its_escrow(escrows: list[Item], jwks: dict[str, Any]) -> None:
    """I12."""
    for item in escrows:
        assert_claims_match(receipt.verify(item["receipt"], jwks), item)


def test_every_escrow_has_one_log_entry_under_the_checkpoint(
    items: list[Item], escrows: list[Item], api: Callable[..., httpx.Client], jwks: dict[str, Any]
) -> None:
    """I15: the root computed from the receipts is the published one."""
    public = api(None)
    stated = log.verify_checkpoint(public.get("/log/checkpoint").text, jwks)
    receipts = [item["receipt"].encode() for item in in_the_log(items, escrows)]
    assert stated.size == len(receipts) == len(escrows)
    leaves = [log.leaf_hash(receipt) for receipt in receipts]
    nothing_stored: dict[log.Tile, bytes] = {}
    assert stated.root == log.grow(0, leaves, nothing_stored.__getitem__).root
    first = public.get(f"/log/tile/0/0/{min(len(receipts), 256)}").json()["hashes"]
    assert first == [leaf.hex() for leaf in leaves[:256]]


def test_every_reputation_follows_from_the_agents_receipts(items: list[Item], escrows: list[Item]) -> None:
    """I16: start at 50, add each outcome in the order of the log, stay within 0 and 100."""
    histories = defaultdict(list)
    for item in in_the_log(items, escrows):
        histories[item["agent_id"]].append(item)
    stored = {item["pk"].removeprefix("REP#"): item for item in items if item["pk"].startswith("REP#")}
    assert stored.keys() == histories.keys()
    for agent_id, history in histories.items():
        score = 500
        for item in history:
            score = min(max(score + item["reputation_tenths"], 0), 1_000)
        standing = json.loads(stored[agent_id]["standing"])
        assert (standing["reference"], standing["outcomes"]) == (score, len(history))
        assert standing["successes"] == sum(item["outcome"] == "succeeded" for item in history)


def in_the_log(items: list[Item], escrows: list[Item]) -> list[Item]:
    """The escrows in the order of the log."""
    first = {item["pk"].removeprefix("BATCH#"): item["first"] for item in items if item["pk"].startswith("BATCH#")}
    placed = sorted(escrows, key=lambda item: first[item["batch"]] + item["place"])
    assert [first[item["batch"]] + item["place"] for item in placed] == list(range(len(placed)))
    return placed
