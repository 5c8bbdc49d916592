"""Checks of payment channels, computed from raw items and a journal of writes. They share no code with the writes.

A channel's numbers are items: tasks (the first number of a ticket), the task's other numbers, and numbers that closing
took out of use. From these alone follows what a channel must have spent, swept, counted and returned.
"""

import base64
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import jwt
from jwt.algorithms import OKPAlgorithm

from quittance.proof import receipt
from tests.proofs.faults import Write

Plain = Mapping[str, Any]
SKEW_MS = 20_000  # of clocks


def channel_violations(
    items: Iterable[Mapping[str, Any]],
    writes: Iterable[Write],
    *,
    jwks: Mapping[str, Any],
    topped: Mapping[str, int],
    closed: bool,
) -> list[str]:
    """All violations of what must be true of channels. Every escrow must have been settled and swept before.

    `topped` are the confirmed top-ups by channel. With `closed` every channel must be closed.
    """
    table = {item["pk"]: item for item in map(_plain, items)}
    found = list(_conservation(table))
    numbers: defaultdict[str, list[Plain]] = defaultdict(list)
    judges: defaultdict[str, list[Plain]] = defaultdict(list)
    for item in table.values():
        if "channel" in item and item["pk"].startswith("ESC#"):
            (judges if item.get("tickets") == 0 else numbers)[item["channel"]].append(item)
    for pk, channel in table.items():
        if pk.startswith("CHAN#"):
            name = pk[5:]
            others = [*_money(channel, numbers[name], judges[name], table, topped.get(name, 0))]
            others += [*_numbers(channel, numbers[name])]
            others += [*_end(channel, numbers[name], closed=closed)]
            for task in numbers[name]:
                if "receipt" in task:
                    others += [*_ticket(channel, task, table, jwks)]
            found += [f"{pk}: {what}" for what in others]
    if unknown := (numbers.keys() | judges.keys()) - {pk[5:] for pk in table}:
        found.append(f"tickets of unknown channels: {sorted(unknown)}")
    return found + list(_writes(writes, {item["pk"][4:] for each in numbers.values() for item in each}))


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: int(value) if kind == "N" else value for name, typed in item.items() for kind, value in typed.items()}


def _cost(task: Plain, table: Mapping[str, Plain]) -> int:
    """What a task took from its channel: what it paid itself, and what its own judge did."""
    own = [table[f"ESC#{name}"] for side, _, _, name in json.loads(task.get("judges", "[]")) if side == "task"]
    return sum(int(each["paid"] + each["fee"]) for each in (task, *own))


def _money(
    channel: Plain, numbers: list[Plain], judges: list[Plain], table: Mapping[str, Plain], topped: int
) -> Iterable[str]:
    tasks = [item for item in numbers if "state" in item]
    spent, swept = sum(_cost(task, table) for task in tasks), sum(task["tickets"] for task in tasks)
    if (channel["spent"], channel["swept"]) != (spent, swept):
        yield f"spent and swept are {channel['spent'], channel['swept']}, the tasks make {spent, swept}"
    if channel["deposit"] != channel["tickets"] * channel["ticket_value"] + topped:
        yield f"the deposit is {channel['deposit']}, the top-ups that were confirmed are {topped}"
    if spent > channel["deposit"]:
        yield f"the payer lost {spent}, more than the deposit of {channel['deposit']}"
    most = min(90 * channel["ticket_value"], channel.get("max_per_task", 90 * channel["ticket_value"]))
    for task in tasks:
        own = sum(budget for side, _, budget, _ in json.loads(task.get("judges", "[]")) if side == "task")
        if not _cost(task, table) <= task["budget"] + own <= min(most, task["tickets"] * channel["ticket_value"]):
            yield f"{task['pk']}: cost {_cost(task, table)}, budget {task['budget']} + {own}, {task['tickets']} tickets"
        if task["agent_id"] not in json.loads(channel.get("agents", json.dumps([task["agent_id"]]))):
            yield f"{task['pk']}: paid {task['agent_id']}, which the channel does not allow"
        if task["payer"] != channel["account"] or "account" in task:
            yield f"{task['pk']}: is not of the channel's payer"
    named = {name for task in tasks for side, _, _, name in json.loads(task.get("judges", "[]")) if side == "task"}
    if named != {judge["pk"][4:] for judge in judges}:
        yield "the judges of the tasks are not those in the ledger"


def _numbers(channel: Plain, numbers: list[Plain]) -> Iterable[str]:
    """Every number is used by at most one task, and a task has all of its numbers."""
    holders: Counter[int] = Counter()
    for item in numbers:
        if "state" in item:
            holders.update(range(item["number"], item["number"] + item["tickets"]))
        elif "void_ms" in item:
            holders[item["number"]] += 1
    if doubled := [number for number, count in holders.items() if count > 1]:
        yield f"the numbers {sorted(doubled)} are used more than once"
    if sorted(holders) != sorted(item["number"] for item in numbers):
        yield "the tasks do not have the items of all their numbers, or there are others"
    if holders and max(holders) > channel["granted"]:
        yield f"the number {max(holders)} is used, only {channel['granted']} are granted"
    yield from _parts(channel, numbers)


def _parts(channel: Plain, numbers: list[Plain]) -> Iterable[str]:
    by_number = {item["number"]: item for item in numbers}
    for item in numbers:
        if item["pk"] != f"ESC#{_escrow_id(channel['pk'][5:], item['number'])}":
            yield f"{item['pk']}: is not the item of the number {item['number']}"
        for number in range(item["number"] + 1, item["number"] + item.get("tickets", 1)):
            if by_number.get(number, {}).get("part_of") != item["pk"][4:]:
                yield f"the number {number} does not belong to {item['pk']}"


def _end(channel: Plain, numbers: list[Plain], *, closed: bool) -> Iterable[str]:
    left = channel["deposit"] - channel["spent"]
    covered = channel["swept"] + left // channel["ticket_value"]
    if channel["granted"] > covered:
        yield f"{channel['granted']} numbers are granted, the deposit covers {covered}"
    if channel["state"] != "closed":
        if closed or "work" not in channel:
            yield f"is still {channel['state']}"
        if "returned" in channel or "closed_ms" in channel:
            yield "credits were returned before it was closed"
        return
    used = sum("void_ms" not in item for item in numbers)
    if channel["returned"] != left:
        yield f"{channel['returned']} was returned, {left} was left"
    if not channel["counted"] == channel["granted"] == len(numbers):
        yield f"of {channel['granted']} numbers {channel['counted']} are counted and {len(numbers)} stored"
    if not channel["used"] == channel["swept"] == used:
        yield f"{used} numbers are used, {channel['used']} were counted, {channel['swept']} swept"
    if "work" in channel or not channel["close_ms"] <= channel["closed_ms"] + SKEW_MS:
        yield "is closed, but not done, or before its time"


def _ticket(channel: Plain, task: Plain, table: Mapping[str, Plain], jwks: Mapping[str, Any]) -> Iterable[str]:
    """The receipt of a ticket's task verifies, states its ticket, and the channel's key signed that ticket."""
    claims = receipt.verify(task["receipt"], jwks)
    stated = claims["ticket"]
    public = OKPAlgorithm.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": channel["key"]})
    signed = jwt.decode(stated["signed"], public, algorithms=["EdDSA"], options={"verify_exp": False})
    own = sum(budget for side, _, budget, _ in json.loads(task.get("judges", "[]")) if side == "task")
    terms = {"salt": channel["salt"], "key": channel["key"], "ticket_value": str(channel["ticket_value"])}
    expected = {
        "v": (claims["v"], 3),
        "user": (claims["user"], channel["account"]),
        "task": (claims["task"], f"{channel['pk'][5:]}.{task['number']}"),
        "channel": (stated["channel"], channel["pk"][5:]),
        "terms": ({name: stated[name] for name in terms}, terms),
        "numbers": ((stated["n"], stated["tickets"]), (task["number"], task["tickets"])),
        "signed channel": ((signed["channel"], signed["n"]), (channel["pk"][5:], task["number"])),
        "signed task": ((signed["agent_id"], signed["input_sha256"]), (task["agent_id"], task["input_sha256"])),
        "signed budget": (round(float(signed["budget"]) * 10**6), task["budget"] + own),
        "amounts": (
            [int(claims[name]) for name in ("budget", "paid", "fee", "refunded")],
            [task[name] for name in ("budget", "paid", "fee", "refunded")],
        ),
    }
    for name, (found, due) in expected.items():
        if found != due:
            yield f"{task['pk']}: the receipt's {name} is {found}, expected {due}"
    if task["at"] > channel["expires_ms"] + SKEW_MS:
        yield f"{task['pk']}: began after the channel had expired"
    if "ticket" in task or task["pk"] not in table:
        yield f"{task['pk']}: still has its ticket beside the receipt"


def _conservation(table: Mapping[str, Plain]) -> Iterable[str]:
    """No credit is lost or made: accounts and channels together have what was deposited and not withdrawn."""
    total = 0
    for pk, item in table.items():
        if pk.startswith("ACCT#"):
            total += item["available"]
        elif pk.startswith("CHAN#") and item["state"] != "closed":
            total += item["deposit"] - item["spent"]
        elif pk.startswith(("IN#", "OUT#", "BACK#")):
            total -= item["amount"]
        elif pk.startswith("ESC#") and "state" in item and "swept_ms" not in item:
            yield f"{pk}: is not swept"
    if total:
        yield f"accounts and channels together have {total} more than was deposited"


def _writes(writes: Iterable[Write], stored: set[str]) -> Iterable[str]:
    """Every number was taken by one write: a funded or settled task, a part of one, or by closing."""
    taken: Counter[str] = Counter()
    for write in writes:
        if "channel" in write.values and "number" in write.values and write.values.get("tickets") != "0":
            taken[write.escrow_id] += 1
    if doubled := [name for name, count in taken.items() if count > 1]:
        yield f"numbers were taken by more than one write: {doubled}"
    if taken and taken.keys() != stored:
        yield f"numbers taken but not stored, or stored but not taken: {len(taken.keys() ^ stored)}"


def _escrow_id(channel_id: str, number: int) -> str:
    payer, task_id = f"channel {channel_id}", str(number)
    named = f"{len(payer)}:{payer}{len(task_id)}:{task_id}".encode()
    return base64.b32encode(hashlib.sha256(named).digest()).decode().lower()[:26]
