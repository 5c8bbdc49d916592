"""Drains on the deployed template: a large backlog is drained shard by shard, while the sweep writes the log."""

import json
import time
from collections.abc import Callable
from typing import Any
from zlib import crc32

import httpx

from local.deploy import log_events
from local.paths import Stack
from quittance.limits import REFUNDED_ALONE_MAX
from tests.e2e.people import Ledger, User, invoke, sweep_until_credited
from tests.waiting import until

SHARDS = 4
BACKLOG = REFUNDED_ALONE_MAX + SHARDS


def drained(stack: Stack, aws: Callable[[str], Any], since_ms: int) -> list[dict[str, Any]]:
    """The log lines of the drains that ended since a time."""
    name = stack.functions["DrainFunction"]
    lines = [text for _, _, text in log_events(aws("logs"), since_ms) if '"drained"' in text and name in text]
    return [json.loads(line) for line in lines]


def test_a_large_backlog_is_drained_by_shard(
    stack: Stack,
    aws: Callable[[str], Any],
    api: Callable[..., httpx.Client],
    deposit: Callable[..., None],
    echo: str,
    ledger: Ledger,
    sweep: Callable[[], None],
) -> None:
    """I1, I8: every overdue escrow is refunded once, credited once and in the log; a doubled drain changes nothing."""
    payer = User.new(api, deposit)
    deposit(payer.name, 100)
    done = payer.run(echo, task_id="paid")
    sweep_until_credited(sweep, ledger)
    total, began_ms = ledger.total(), time.time_ns() // 1_000_000
    names: list[str] = []

    def is_drained() -> bool:
        """Several times, because the scheduled sweep may refund a part of the backlog while it is made."""
        first = len(names)
        names.extend(ledger.put_overdue(done, task_id=f"late-{first + n}", shards=SHARDS) for n in range(BACKLOG))
        swept, failed = invoke(aws("lambda"), stack.functions["SweepFunction"], {})
        assert not failed, swept
        sweep_until_credited(sweep, ledger)
        return len({line["shard"] for line in drained(stack, aws, began_ms)}) > 1

    until(is_drained, "drains of several work shards")
    assert {line["step"] for line in drained(stack, aws, began_ms)} == {"refund"}
    for step in ("refund", "credit"):
        again, failed = invoke(aws("lambda"), stack.functions["DrainFunction"], {"step": step, "shard": 0})
        assert (failed, again["failed"], again["complete"]) == (False, 0, True)
    sweep_until_credited(sweep, ledger)
    states = {item["pk"].removeprefix("ESC#"): item for item in ledger.tasks()}
    assert {states[name]["state"] for name in names} == {"expired"}
    assert sum(line["expired"] for line in drained(stack, aws, began_ms)) > 0
    assert ledger.total() == total
    batches = {states[name]["batch"] for name in names}
    logged = {item["pk"] for item in ledger.items("BATCH#") if "first" in item}
    assert logged >= {f"BATCH#{batch}" for batch in batches}


def test_a_drain_refuses_steps_of_the_sweep_alone(stack: Stack, aws: Callable[[str], Any]) -> None:
    for step in ("log", "publish", ""):
        answer, failed = invoke(aws("lambda"), stack.functions["DrainFunction"], {"step": step})
        assert failed, answer
    for step in ("charge", "close"):
        answer, failed = invoke(aws("lambda"), stack.functions["DrainFunction"], {"step": step, "shard": None})
        assert (failed, answer["failed"]) == (False, 0)


def test_a_drain_credits_its_shard_alone(
    stack: Stack, aws: Callable[[str], Any], api: Callable[..., httpx.Client], deposit: Callable[..., None], echo: str
) -> None:
    """I10: several times, because the scheduled sweep may be faster."""
    payer = User.new(api, deposit)
    deposit(payer.name, 10)

    def drains_one() -> bool:
        done = payer.run(echo)
        shard = crc32(done["escrow_id"].encode()) % SHARDS
        other, failed = invoke(
            aws("lambda"), stack.functions["DrainFunction"], {"step": "credit", "shard": (shard + 1) % SHARDS}
        )
        assert (failed, other["credited"], other["complete"]) == (False, 0, True)
        own, failed = invoke(aws("lambda"), stack.functions["DrainFunction"], {"step": "credit", "shard": shard})
        assert (failed, own["logged"], own["complete"]) == (False, 0, True)
        return own["credited"] == 1

    until(drains_one, "an escrow that a drain credits")
