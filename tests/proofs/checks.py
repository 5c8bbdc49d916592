"""Checks of a ledger's invariants, computed from raw items and a journal of writes. They share no code with the writes.

The auditor's equations are checked first. The other checks cover what the auditor cannot see: the rounding of fees,
which fence settled, that no fence was taken over twice, that responses agree with the ledger, and that reputations are
folded in the order of the log.
"""

import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quittance.api.models import TaskResult
from quittance.ledger import channels
from quittance.ledger import escrow as escrows
from quittance.ledger.escrow import JUDGE_MARK
from quittance.limits import PARTY_SHARDS
from quittance.proof import receipt
from quittance.run import Outcome, Side
from quittance.usecases import audit as auditing
from tests.proofs.faults import Write
from tests.proofs.world import Due, World, drawn_run, due_of_judge, expected, fuel_bought


@dataclass(frozen=True)
class Sent:
    """A task that a client sent, with the digest of its input."""

    payer: str
    task_id: str
    agent_id: str
    budget: int
    input_sha256: str


@dataclass(frozen=True)
class Answer:
    """A result that a client received for a task that it sent."""

    sent: Sent
    result: TaskResult


def violations(
    world: World, items: Iterable[Mapping[str, Any]], writes: Iterable[Write] = (), answers: Iterable[Answer] = ()
) -> list[str]:
    """All violations of the invariants. Every escrow must have been settled and swept before."""
    items = list(items)
    found = [line for line in auditing.report(auditing.audit(world)) if " at " in line]
    found_escrows = _escrows(items)
    for name, settled in found_escrows.items():
        found += [f"{name}: {what}" for what in _escrow(name, settled, found_escrows)]
    found += _reputation(world, found_escrows)
    found += _journal(found_escrows, writes)
    return found + list(_answers(found_escrows, answers))


def wrong_answers(items: Iterable[Mapping[str, Any]], answers: Iterable[Answer]) -> list[str]:
    """The violations in results that clients received."""
    return list(_answers(_escrows(items), answers))


def step(
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any],
    *,
    fence: int | None,
    table: Iterable[Mapping[str, Any]] = (),
) -> list[str]:
    """The violations of I5 to I8 in one change of an escrow by an actor that used `fence`.

    A judge's escrow is protected by the fence of its task, which is in `table`, the table before the change.
    """
    new = _plain(after)
    if before is None:
        wrong = "" if (new["state"], new["fence"]) == ("funded", 1) else "was not created as funded with fence 1"
        wrong = wrong or unlisted(new)
    else:
        old = _plain(before)
        judge = JUDGE_MARK in new["task_id"] and new["state"] not in {"funded", "expired"} and old["state"] == "funded"
        holder = _task_of(new["pk"][4:], _escrows(table)) if judge else old
        wrong = _change(old, new, fence, holder["fence"]) or unlisted(new)
    return [f"{new['pk']}: {wrong}"] if wrong else []


def unlisted(escrow: Mapping[str, Any]) -> str:
    """Why an escrow is not listed exactly where the balances of its payer and of its owner look for it."""
    side, whose = ("HELD", _payer(escrow)) if escrow["state"] == "funded" else ("EARNED", escrow["owner"])
    is_listed = "swept_ms" not in escrow and (side == "EARNED" or "channel" not in escrow)
    shard = zlib.crc32(escrow["pk"][4:].encode()) % PARTY_SHARDS
    due = f"{side}#{whose}#{shard}" if is_listed else None
    return "" if escrow.get("party") == due else f"is listed under {escrow.get('party')}, not under {due}"


def _change(old: Mapping[str, Any], new: Mapping[str, Any], fence: int | None, holder: int) -> str:
    changed = {name for name in new.keys() | old.keys() if old.get(name) != new.get(name)}
    if old["state"] != "funded":
        right = changed == {"swept_ms", "batch", "place", "work", "work_at", "party"} and "swept_ms" not in old
        return "" if right else f"was {old['state']}, but {changed} changed"
    if new["state"] == "funded":
        right = changed - {"runner", "lease_ms"} == {"fence"} and new["fence"] == old["fence"] + 1
        return "" if right else f"a takeover changed {changed}, the fence from {old['fence']} to {new['fence']}"
    if new["state"] == "expired":
        return "" if new["settled_ms"] >= old["expires_ms"] else "expired too early"
    right = fence == holder and new["settled_ms"] < old["expires_ms"]
    return (
        ""
        if right
        else f"settled by fence {fence}, not {holder}, {new['settled_ms'] - old['expires_ms']} ms after its expiry"
    )


def plain_items(items: Iterable[Mapping[str, Any]], *, channel_id: str) -> dict[int, dict[str, Any]]:
    """The items of a channel's numbers, by number: tasks, other numbers of a task, and those that closing took out."""
    of_channel = (item for item in map(_plain, items) if item.get("channel") == channel_id and "number" in item)
    return {item["number"]: item for item in of_channel if item.get("tickets") != 0}  # not the tasks' judges


def _escrows(items: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {item["pk"][4:]: item for item in map(_plain, items) if item["pk"].startswith("ESC#") and "state" in item}


def _payer(escrow: Mapping[str, Any]) -> str:
    payer: str = escrow["payer"] if "channel" in escrow else escrow["account"]
    return payer


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: int(value) if kind == "N" else value for name, typed in item.items() for kind, value in typed.items()}


def _escrow(name: str, escrow: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    if escrow["state"] == "funded" or "swept_ms" not in escrow or escrow.keys() & {"work", "party"}:
        yield f"not settled and swept: {escrow['state']}"
        return
    split = tuple(escrow[name] for name in ("paid", "fee", "refunded"))
    if escrow["state"] == "expired":
        if escrow["settled_ms"] < escrow["expires_ms"]:
            yield "expired too early"
        if split != (0, 0, escrow["budget"]):
            yield f"expired, but split into {split}"
        return
    if escrow["settled_ms"] >= escrow["expires_ms"]:
        yield "settled after its time"
    if any(judge["state"] == "expired" for judge in _judges(escrow, others).values()):
        yield "settled, though a judge of it expired"
    if escrow["outcome"] in {"out_of_time", "superseded"}:  # a takeover too late to run
        due = Due("refunded", 0, 0, escrow["budget"])
    elif JUDGE_MARK in escrow["task_id"]:
        due = _due_judge(name, escrow, others)
    else:
        due = expected(
            _payer(escrow), escrow["task_id"], escrow["agent_id"], escrow["budget"], judges=_seeds(escrow, others)
        )
    found = Due(escrow["state"], *split, charge=escrow.get("charge", 0), judging=escrow.get("judging", 0))
    if found != due:
        yield f"is {found}, due was {due}"


def _judges(escrow: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> dict[Side, Mapping[str, Any]]:
    return {Side(side): others[name] for side, _, _, name in json.loads(escrow.get("judges", "[]"))}


def _seeds(escrow: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> dict[Side, bytes]:
    return {side: bytes.fromhex(judge["seed"]) for side, judge in _judges(escrow, others).items()}


def _task_of(name: str, others: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The task that a judge's escrow belongs to."""
    return next(
        task for task in others.values() if name in {named for *_, named in json.loads(task.get("judges", "[]"))}
    )


def _due_judge(name: str, judge: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> Due:
    """A judge that ran is paid, whatever its verdict; it costs nothing if the platform failed or was too late."""
    task = _task_of(name, others)
    if task["settled_ms"] != judge["settled_ms"]:
        return Due("settled together with its task", 0, 0, 0)
    seed = escrows.task_seed(channels.escrow_id_of(_payer(task), task["task_id"]))
    own = drawn_run(seed, fuel_max=fuel_bought(task["agent_id"], task["budget"]))
    asked = own.outcome is Outcome.SUCCEEDED and task["outcome"] not in {"budget_exhausted", "superseded"}
    for side, judge_seed in sorted(_seeds(task, others).items()):
        run = drawn_run(judge_seed, judges=True)
        if _judges(task, others)[side] is judge:
            return due_of_judge(run, asked=asked, excused=task["fault"] == "platform", budget=judge["budget"])
        asked = asked and run.outcome is Outcome.SUCCEEDED and run.stdout == b"0.5"
    return Due("a judge of its task", 0, 0, 0)


def _reputation(world: World, settled: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """I16: the score is the fold of the outcomes in log order, and every outcome has one position in the log."""
    by_agent: dict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    places = []
    for name, escrow in settled.items():
        if (found := world.ledger.find(name)) is None or (place := world.ledger.log.place(name)) is None:
            yield f"{name}: not in the log"
            continue
        places.append(place)
        by_agent[escrow["agent_id"]].append((place, escrow))
    if sorted(places) != list(range(world.ledger.log.head().size)):
        yield f"the positions in the log do not cover 0 to {world.ledger.log.head().size}"
    for agent, placed in by_agent.items():
        mine = [escrow for _, escrow in sorted(placed, key=lambda each: each[0])]
        score = 500
        for escrow in mine:
            score = min(1_000, max(0, score + escrow["reputation_tenths"]))
        standing = world.ledger.standing(agent)
        wins = sum(escrow["outcome"] == "succeeded" for escrow in mine)
        faults = sum(escrow["fault"] == "agent" for escrow in mine)
        found = (standing.reference_tenths, standing.outcomes, standing.successes, standing.failures)
        if found != (score, len(mine), wins, faults):
            yield f"{agent}: the reputation is {found}, expected {(score, len(mine), wins, faults)}"


def _journal(settled: Mapping[str, Mapping[str, Any]], writes: Iterable[Write]) -> Iterable[str]:
    """I5, I7: each escrow was funded, settled and swept once; fences only increased; the newest one settled."""
    by_kind: dict[str, dict[str, list[Write]]] = defaultdict(lambda: defaultdict(list))
    for write in writes:
        by_kind[_kind(write)][write.escrow_id].append(write)
    if not by_kind:
        return  # without a journal
    funded = by_kind["fund"].keys() | by_kind["redeem"].keys()
    if funded != settled.keys():
        yield f"funded but not stored, or stored but not funded: {funded ^ settled.keys()}"
    for name, escrow in settled.items():
        redeemed = len(by_kind["redeem"][name])  # a ticket's task may be stored and settled in one write
        counts = [len(by_kind[kind][name]) for kind in ("fund", "leave", "sweep")]
        if counts != [1 - redeemed, 1 - redeemed, 1]:
            yield f"{name}: funded, settled and swept {counts} times"
        taken = sorted(int(write.values["fence"]) for write in by_kind["take over"][name])
        if taken != list(range(2, escrow["fence"] + 1)):
            yield f"{name}: the takeovers had the fences {taken}, the stored fence is {escrow['fence']}"
        settlers = [write.fence for write in by_kind["leave"][name] if write.values["outcome"] != "expired"]
        fence = (_task_of(name, settled) if JUDGE_MARK in escrow["task_id"] else escrow)["fence"]
        if settlers not in ([], [fence]):
            yield f"{name}: settled by the fences {settlers}, the fence of its task is {fence}"


def _kind(write: Write) -> str:
    if "channel" in write.values and "outcome" in write.values:
        return "redeem"
    marks = {"swept_ms": "sweep", "outcome": "leave", "account": "fund", "tickets": "fund", "channel": "number"}
    return next((kind for mark, kind in marks.items() if mark in write.values), "take over")


def _answers(settled: Mapping[str, Mapping[str, Any]], answers: Iterable[Answer]) -> Iterable[str]:
    """I9, I12: every result is that of the task that was sent, and all clients received the stored receipt."""
    for answer in answers:
        sent, result = answer.sent, answer.result
        escrow = settled.get(result.escrow_id)
        if escrow is None:
            yield f"{result.escrow_id}: a result without an escrow in the ledger"
            continue
        if result.receipt != escrow["receipt"]:
            yield f"{result.escrow_id}: the receipt of the result is not the stored one"
        stated = receipt.read_claims(result.receipt)
        budget = int(stated["budget"])
        budget += sum(judge.budget_micro for judge in result.judges if judge.side is Side.TASK)
        answered = Sent(stated["user"], stated["task"], stated["agent"], budget, stated["input_sha256"])
        if answered != sent:
            yield f"{result.escrow_id}: the result is of {answered}, sent was {sent}"
        amounts = (result.amount_paid_micro, result.fee_micro, result.amount_refunded_micro)
        if amounts != (escrow["paid"], escrow["fee"], escrow["refunded"]):
            yield f"{result.escrow_id}: the result has the amounts {amounts}"
