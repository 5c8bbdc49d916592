"""Removes each guard of the ledger in turn. The tests must catch every removal.

    python tests/proofs/mutants.py            # all mutants, as `make mutants` does
    python tests/proofs/mutants.py fee        # those whose name contains a word

Each mutant is one edit in a scratch copy of the code, against which the named tests run. The unedited copy must pass
them first. Exit status 1 if a mutant survives, or if the code that it edits is not found exactly once.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = (
    "layers/runtime/quittance",
    "tests/proofs",
    "tests/ledger",
    "tests/proof",
    "local",
    "template.yaml",
    "pyproject.toml",
)
SECONDS_MAX = 1_200  # a mutant may loop for ever
LEDGER, LOG, DYNAMO, SLOT_ITEMS = "store/ledger.py", "store/log.py", "store/dynamo.py", "store/slots.py"
LIMITS, RULES_OF_AUDIT = "limits.py", "proof/invariants.py"
ESCROW, EARNINGS, BALANCES = "ledger/escrow.py", "ledger/earnings.py", "ledger/balances.py"
EXECUTE, SWEEP, ACCOUNTS = "usecases/execute.py", "usecases/sweep.py", "usecases/accounts.py"
CHANNELS, CLOSING, TICKETS, RULES = (
    "store/channels.py",
    "usecases/channels.py",
    "usecases/tickets.py",
    "ledger/channels.py",
)
BLOBS, BUNDLES, ARCHIVING, AUDIT = "store/blobs.py", "store/archive.py", "usecases/archive.py", "usecases/audit.py"
ARCHIVE = "tests/proofs/test_archive.py -k not(order)"
ARCHIVERS = "tests/proofs/test_archive.py::test_archivers_and_readers_in_every_order[archiver+another]"
MATRIX, WALK = "tests/proofs/test_matrix.py", "tests/proofs/test_interleavings.py"
BONDS, APPENDS = "tests/proofs/test_bonds.py", "tests/proofs/test_appends.py"
DRAINS = "tests/proofs/test_drains.py"
LISTED = "tests/proofs/test_open_work.py -k not(others)"
SLOTS = "tests/proofs/test_slots.py -k not(engine)"
TAKING = "tests/ledger/test_balances.py"
CHANNEL_MATRIX, CHANNEL_CHECKS = "tests/proofs/test_channels.py", "tests/proofs/test_channel_checks.py"
CHANNEL_WALK = "tests/proofs/test_channel_interleavings.py::test_a_ticket_and_a_rival_with_one_lost_response -k count"
PAIR = f"{WALK}::test_two_actors_with_one_lost_response"


@dataclass(frozen=True)
class Mutant:
    """One removed guard: in `file`, `old` is replaced by `new`; `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


SETTLE = 'condition="#state = :funded AND #fence = :my_fence AND #expires_ms > :now"'
EXPIRE = 'condition="#state = :funded AND #expires_ms <= :now"'
JUDGE = 'in_time = "#state = :funded AND #expires_ms > :now"'
CLOSE = (
    'condition="#state = :closing AND #counted = #granted AND #swept = #used AND #spent = :spent"\n'
    '            " AND #deposit = :deposit",'
)
GRANT = 'condition="#state = :open AND #granted = :seen"'
CONTEST = 'condition = "#state = :open AND attribute_not_exists(#contested)"'
COUNT = 'condition="#state = :closing AND #counted = :seen"'
TAKE = 'condition="#state = :funded AND #fence = :seen_fence AND #lease_ms <= :now AND #expires_ms > :now"'


def _without(condition: str, term: str) -> str:
    """A condition without one of its terms."""
    less = re.sub(rf"( AND )?{re.escape(term)}( AND )?", lambda cut: " AND " if cut[1] and cut[2] else "", condition)
    assert less != condition
    return less


MUTANTS = (
    Mutant("fund: uniqueness", DYNAMO, '"attribute_not_exists(pk)"', '"attribute_not_exists(x)"', MATRIX),
    Mutant("fund: balance", LEDGER, '"available >= :taken"', '"attribute_exists(available)"', MATRIX),
    Mutant("fund: the debit", LEDGER, "puts + self._balance_updates(moves)", "puts", MATRIX),
    Mutant(
        "fund: the record's condition before the balance's",
        LEDGER,
        "refused.items[: len(puts)]), None)) is not None:",
        "refused.items[: len(puts)]), None)) is not None and False:",
        MATRIX,
    ),
    Mutant(
        "fund: the record once more before insufficient funds",
        LEDGER,
        "if stored is None:\n                    raise",
        "if True:\n                    raise",
        MATRIX,
    ),
    Mutant("take over: state", LEDGER, TAKE, _without(TAKE, "#state = :funded"), MATRIX),
    Mutant("take over: fence", LEDGER, TAKE, _without(TAKE, "#fence = :seen_fence"), MATRIX),
    Mutant("take over: lease", LEDGER, TAKE, _without(TAKE, "#lease_ms <= :now"), MATRIX),
    Mutant("take over: expiry", LEDGER, TAKE, _without(TAKE, "#expires_ms > :now"), MATRIX),
    Mutant("take over: the fence increases", LEDGER, "fence=stale.fence + 1", "fence=stale.fence", MATRIX),
    Mutant("settle: state", LEDGER, SETTLE, _without(SETTLE, "#state = :funded"), MATRIX),
    Mutant("settle: fence", LEDGER, SETTLE, _without(SETTLE, "#fence = :my_fence"), MATRIX),
    Mutant("settle: expiry", LEDGER, SETTLE, _without(SETTLE, "#expires_ms > :now"), MATRIX),
    Mutant(
        "settle: refund of what was not used",
        LEDGER,
        'self.give(refunds, [{"Update"',
        'self.give({}, [{"Update"',
        MATRIX,
    ),
    Mutant("settle: the receipt in the same write", LEDGER, '"receipt": settlement.receipt', '"receipt": ""', MATRIX),
    Mutant("settle: fee rounded down", ESCROW, "* fee_bps // BPS", "* fee_bps // BPS + 1", MATRIX),
    Mutant(
        "settle: fee on the price, not on the budget",
        ESCROW,
        "price_micro * fee_bps",
        "budget_micro * fee_bps",
        MATRIX,
    ),
    Mutant("expire: state", LEDGER, EXPIRE, _without(EXPIRE, "#state = :funded"), MATRIX),
    Mutant("expire: time", LEDGER, EXPIRE, _without(EXPIRE, "#expires_ms <= :now"), MATRIX),
    Mutant("sweep: mark", LEDGER, '"attribute_not_exists(#swept_ms)"', '"attribute_exists(pk)"', MATRIX),
    Mutant(
        "sweep: only settled escrows",
        LEDGER,
        "and (escrow := read_escrow(item)).settlement]",
        "and (escrow := read_escrow(item))]",
        MATRIX,
    ),
    Mutant(
        "sweep: removal from the index",
        LEDGER,
        'remove=("work", "work_at", "party"),\n            condition="attribute_not_exists(#swept_ms)"',
        'condition="attribute_not_exists(#swept_ms)"',
        MATRIX,
    ),
    Mutant(
        "sweep: failed tasks too",
        LEDGER,
        '"work": f"SETTLED#{self._work_shard',
        '"work": f"{_settlement_of(settled).state}#{self._work_shard',
        MATRIX,
    ),
    Mutant(
        "sweep: the platform's credit",
        EARNINGS,
        "credited[platform_account] +=",
        "credited[platform_account] = 0 *",
        MATRIX,
    ),
    Mutant("sweep: the owner's credit", EARNINGS, "credited[owner] += share", "credited[owner] += 0 * share", MATRIX),
    Mutant(
        "sweep: the journal",
        LEDGER,
        '= [{"Put": put_new(self._table, self._line_values(line))} for line in batch.lines]',
        "= []",
        MATRIX,
    ),
    Mutant("sweep: credited escrows are left out", LEDGER, 'if "swept_ms" not in item and', "if", MATRIX),
    Mutant("log: places in order", LEDGER, "first, place, now_ms)", "first, 0, now_ms)", MATRIX),
    Mutant(
        "log: removal from the index",
        LOG,
        'set_={"first": first},\n                remove=("work", "work_at"),',
        'set_={"first": first},',
        MATRIX,
    ),
    Mutant("log: each batch once", LOG, 'for item in items if "first" not in item]', "for item in items]", MATRIX),
    Mutant(
        "log: each batch at its own position",
        LOG,
        "        first += len(batch.receipts)",
        "        first += 1",
        APPENDS,
    ),
    Mutant(
        "log: a pointer for each batch", LOG, '[{"Update": placed}, {"Put": pointer}]', '[{"Update": placed}]', APPENDS
    ),
    Mutant("log: an append fits one transaction", LOG, "if 1 + 2 * (len", "if False and 1 + 2 * (len", APPENDS),
    Mutant("log: an append has at most 4 MB", LOG, "size <= APPEND_BYTES_MAX or", "True or", APPENDS),
    Mutant(
        "log: standings follow each other in one append",
        LOG,
        "standing = standings.get(agent_id, kept[agent_id])",
        "standing = kept[agent_id]",
        APPENDS,
    ),
    Mutant(
        "log: another sweep's append makes standings stale",
        LOG,
        "latest.forget()\n            latest.size = size",
        "latest.size = size",
        APPENDS,
    ),
    Mutant(
        "log: what a failed write would have stored is forgotten",
        LOG,
        "latest.forget()\n            raise",
        "raise",
        APPENDS,
    ),
    Mutant(
        "log: the standings of the last append stay",
        LOG,
        " and len(self.standings) > len(this.standings)",
        "",
        APPENDS,
    ),
    Mutant("log: a failed preparation hides no append", LOG, "with suppress(Exception):", "with suppress():", APPENDS),
    Mutant("log: kept standings are bounded", LOG, "self.standings_bytes > STANDINGS", "False and STANDINGS", APPENDS),
    Mutant(
        "log: a damaged receipt is rejected",
        "proof/receipt.py",
        'decode().rstrip("=") != encoded:',
        'decode().rstrip("=") != encoded and False:',
        APPENDS,
    ),
    Mutant(
        "log: a sweep whose time ends says so",
        SWEEP,
        """                return False
        return True

    def _each_half""",
        """                return True
        return True

    def _each_half""",
        APPENDS,
    ),
    Mutant(
        "log: a sweep begins no half without time",
        SWEEP,
        """        if self.platform.left_ms() < _STOP_BEFORE_MS:
            return False
        try:
            return do(ids)""",
        """        try:
            return do(ids)""",
        APPENDS,
    ),
    Mutant(
        "log: prices of old periods are dropped",
        "ledger/reputation.py",
        "if not ratings and (measured or not known.price_micro.counts):",
        "if not ratings:",
        "tests/ledger/test_standing.py",
    ),
    Mutant("log: checkpoints never shrink", LOG, '"#published < :size"', '"attribute_exists(#published)"', MATRIX),
    Mutant(
        "log: standings are folded",
        LOG,
        "reputation.fold(standing, ratings)",
        "reputation.fold(Standing(), ratings)",
        MATRIX,
    ),
    Mutant(
        "movements: one amount for each id",
        LEDGER,
        "if recorded.amount_micro != line.amount_micro:",
        "if False:",
        MATRIX,
    ),
    Mutant(
        "deposits: one depositor for each id",
        LEDGER,
        "if recorded.depositor not in {None, line.depositor}:",
        "if False:",
        MATRIX,
    ),
    Mutant("payouts: decided once", LEDGER, "attribute_not_exists(#decided_ms)", "attribute_exists(#amount)", MATRIX),
    Mutant(
        "payouts: failed payouts are returned",
        LEDGER,
        "self.give({payout.account: payout.amount_micro}, ",
        "self.give({}, ",
        MATRIX,
    ),
    Mutant(
        "payouts: the journal line of a return",
        LEDGER,
        '[{"Update": write}, returned]',
        '[{"Update": write}]',
        MATRIX,
    ),
    Mutant(
        "payouts: removal from the index",
        LEDGER,
        'remove=("work", "work_at"),\n            condition="attribute_exists(#amount)',
        'condition="attribute_exists(#amount)',
        MATRIX,
    ),
    Mutant("log: each agent's own standing", LOG, "ratings[rating.agent]", 'ratings["agt"]', MATRIX),
    Mutant(
        "sweep: a rejected batch is not the only doubtful one",
        LEDGER,
        "len(waiting) if isinstance(failed, RefusedError) else len(batch.escrows)",
        "len(batch.escrows)",
        MATRIX,
    ),
    Mutant("drains: only for a large backlog", SWEEP, "if all(len(some) < page_items for", "if all(False for", DRAINS),
    Mutant("drains: a drain starts no other", SWEEP, "if self.is_drain or not", "if not", DRAINS),
    Mutant(
        "drains: an unchanged backlog is not drained",
        SWEEP,
        "elif now_ms - before.since_ms >= DRAIN_START_MS_MAX:",
        "elif False:",
        DRAINS,
    ),
    Mutant(
        "drains: complete is what waited at the beginning",
        SWEEP,
        "before_ms = self.began_ms if _CREDIT in self.drained else None",
        "before_ms = None",
        DRAINS,
    ),
    Mutant("drains: only of one work shard", LEDGER, "if shard is None else (shard,)", "", DRAINS),
    Mutant("sweep: expired escrows are refunded", SWEEP, "self._expire)", "lambda _: None)", PAIR),
    Mutant("judges: each payer pays its own", LEDGER, "held[hold.payer] +=", "held[escrow.payer] +=", BONDS),
    Mutant(
        "judges: an insufficient bond has its own error",
        LEDGER,
        "if is_bond(insufficient.account):",
        "if False:",
        BONDS,
    ),
    Mutant(
        "judges: all settle together", LEDGER, "if sorted(judge.escrow_id", "if False and sorted(judge.escrow_id", BONDS
    ),
    Mutant("judges: in the same write", LEDGER, "writes=[task, *held]", "writes=[task]", BONDS),
    Mutant("judges: state", LEDGER, JUDGE, _without(JUDGE, "#state = :funded"), BONDS),
    Mutant("judges: expiry", LEDGER, JUDGE, _without(JUDGE, "#expires_ms > :now"), BONDS),
    Mutant(
        "judges: refund of what was not used",
        LEDGER,
        "for ended in (settled, *judges):",
        "for ended in (settled,):",
        BONDS,
    ),
    Mutant(
        "judges: their rejection is the task's", LEDGER, "if refused.items[0] is None and judges:", "if False:", BONDS
    ),
    Mutant(
        "bond: a journal line for each side",
        LEDGER,
        "for each in (line, replace(line, account=bond, amount_micro=amount_micro))]",
        "for each in (line,)]",
        BONDS,
    ),
    Mutant("bond: the other side receives the amount", LEDGER, "*records, to=target)", "*records)", BONDS),
    Mutant(
        "bond: releases take from the bond",
        LEDGER,
        "if amount_micro > 0 else (bond, owner)",
        "if True else (bond, owner)",
        BONDS,
    ),
    Mutant("release: all agents are retired", ACCOUNTS, "if owned.unretired:", "if False:", BONDS),
    Mutant("release: some minutes after the last retirement", ACCOUNTS, "if wait_ms > 0:", "if False:", BONDS),
    Mutant("release: no open work", ACCOUNTS, "if platform.ledger.has_open_work(owner):", "if False:", BONDS),
    Mutant(
        "release: no open judge paid by the bond",
        LEDGER,
        'chain(self._open("EARNED", owner, page_items=1), self._open("HELD", bond_account(owner), page_items=1))',
        'self._open("EARNED", owner, page_items=1)',
        BONDS,
    ),
    Mutant(
        "release: settled work counts as open",
        LEDGER,
        'chain(self._open("EARNED", owner, page_items=1), self._open("HELD", bond_account(owner), page_items=1))',
        'self._open("HELD", bond_account(owner), page_items=1)',
        BONDS,
    ),
    Mutant(
        "release: the notice covers an agent that was read before",
        LIMITS,
        "BOND_NOTICE_MS: Final = AGENT_AGE_MS_MAX + ESCROW_MS_MAX",
        "BOND_NOTICE_MS: Final = ESCROW_MS_MAX",
        BONDS,
    ),
    Mutant(
        "release: the notice covers the wait in the queue",
        LIMITS,
        "TIMEOUT_S_ASYNC_MAX * 1_000 + ESCROW_GRACE_MS + QUEUE_WAIT_MS_MAX  # from",
        "TIMEOUT_S_ASYNC_MAX * 1_000 + ESCROW_GRACE_MS  # from",
        BONDS,
    ),
    Mutant(
        "index: a funded task is its payer's",
        LEDGER,
        'None if escrow.ticket else _party("HELD", escrow.payer, escrow.escrow_id)',
        "None",
        LISTED,
    ),
    Mutant(
        "index: a ticket holds nothing of an account",
        LEDGER,
        'None if escrow.ticket else _party("HELD", escrow.payer, escrow.escrow_id)',
        '_party("HELD", escrow.payer, escrow.escrow_id)',
        LISTED,
    ),
    Mutant(
        "index: a settled task is its owner's",
        LEDGER,
        '"party": _party("EARNED", settled.owner, settled.escrow_id)',
        '"party": None',
        LISTED,
    ),
    Mutant(
        "index: a redeemed ticket is its owner's",
        LEDGER,
        "values |= self._settled_work(settled)",
        'values |= {**self._settled_work(settled), "party": None}',
        LISTED,
    ),
    Mutant(
        "index: a credited task is nobody's",
        LEDGER,
        'remove=("work", "work_at", "party"),',
        'remove=("work", "work_at"),',
        LISTED,
    ),
    Mutant(
        "index: tasks are spread over all keys",
        LEDGER,
        "% PARTY_SHARDS}",
        "% 1}",
        LISTED,
    ),
    Mutant("index: all keys are read", LEDGER, "in range(PARTY_SHARDS):", "in range(1):", LISTED),
    Mutant(
        "index: the audit finds what is not listed",
        RULES_OF_AUDIT,
        "found is None and bool(allowed) and _knows_party(values)",
        "False",
        LISTED,
    ),
    Mutant(
        "index: the audit finds what is listed wrongly",
        RULES_OF_AUDIT,
        "(found is not None and found not in allowed)",
        "False",
        LISTED,
    ),
    Mutant("index: the seal tells what is older", LEDGER, ", beside=WITH_PARTY)", ")", LISTED),
    Mutant(
        "release: a repeat is not checked again", ACCOUNTS, "if amount_micro < 0 and ", "if amount_micro < 0 or ", BONDS
    ),
    Mutant("bond: its recorded state is checked again", ACCOUNTS, "        noted = short\n", "        return\n", BONDS),
    Mutant(
        "charge: at most the balance",
        EARNINGS,
        "min(self.charged.amount_micro, sum(shards) + self.returned.amount_micro)",
        "self.charged.amount_micro",
        BONDS,
    ),
    Mutant("charge: returns pay too", EARNINGS, "sum(shards) + self.returned.amount_micro", "sum(shards)", BONDS),
    Mutant(
        "charge: from all shards", LEDGER, "if balances_micro[balances.HOME] < due_micro[owner]:", "if False:", BONDS
    ),
    Mutant("charge: the platform gets it", EARNINGS, "fees.amount_micro += taken_micro", "pass", BONDS),
    Mutant(
        "charge: the bond is debited",
        LEDGER,
        "for bond, moves in batch.bond_moves.items():",
        "for bond, moves in ():",
        BONDS,
    ),
    Mutant("charge: the bond records it", LEDGER, "if charged_micro:", "if False:", BONDS),
    Mutant(
        "charge: the amount due is recorded",
        EARNINGS,
        "-taken_micro, share.charged.amount_micro or None)",
        "-taken_micro)",
        BONDS,
    ),
    Mutant(
        "charge: reads again after a rejection",
        LEDGER,
        "waiting = [*again, *waiting[doubtful:]]",
        "pass",
        MATRIX,
    ),
    Mutant("judging: returned from the price", EARNINGS, "min(settlement.judging_micro, paid_micro)", "0", BONDS),
    Mutant(
        "judging: at most the price",
        EARNINGS,
        "min(settlement.judging_micro, paid_micro)",
        "settlement.judging_micro",
        BONDS,
    ),
    Mutant(
        "sweep: the batch fits one transaction",
        EARNINGS,
        "> TRANSACTION_ITEMS_MAX or",
        "> TRANSACTION_ITEMS_MAX + 1 or",
        BONDS,
    ),
    Mutant("sweep: the batch fits one append", EARNINGS, "len(agents) > LOGGED_AGENTS_MAX", "False", BONDS),
    Mutant(
        "slots: only a free one is taken",
        SLOT_ITEMS,
        "attribute_not_exists(#lease_ms) OR #lease_ms <= :now",
        "attribute_not_exists(#lease_ms) OR attribute_exists(#lease_ms)",
        SLOTS,
    ),
    Mutant("slots: only the holder releases it", SLOT_ITEMS, '"#holder = :me"', '"attribute_exists(pk)"', SLOTS),
    Mutant("slots: a lost response is recognised", SLOT_ITEMS, 'stored.get("holder") == holder', "False", SLOTS),
    Mutant("balances: no shard below zero", BALANCES, "min(shards[shard], missing_micro)", "missing_micro", TAKING),
    Mutant("balances: all shards together", BALANCES, "if not sufficient:", "if False:", TAKING),
    Mutant("balances: what is spread is taken", BALANCES, "* (BALANCE_SHARDS - 1)", "* BALANCE_SHARDS", TAKING),
    Mutant("balances: insufficient funds", BALANCES, "if sum(shards) < amount_micro:", "if False:", TAKING),
    Mutant(
        "conflicts: retried",
        DYNAMO,
        "        if _CONFLICTS.intersection(codes):\n            raise ConflictError from exc",
        "",
        MATRIX,
    ),
    Mutant(
        "request hash: of a settled task",
        EXECUTE,
        "    _check_same(escrow, attempt)\n    return settle.settled",
        "    return settle.settled",
        f"{PAIR} -k body",
    ),
    Mutant(
        "request hash: at a takeover",
        EXECUTE,
        " and escrow.request_sha256 == attempt.request_sha256",
        "",
        f"{PAIR} -k body",
    ),
    Mutant(
        "runner: only its own escrow", EXECUTE, "if not escrow.held_by(attempt.runner):", "if False:", f"{PAIR} -k body"
    ),
    Mutant(
        "tickets: a number is put once",
        LEDGER,
        "first, *parts = [put_new(self._table, each)",
        'first, *parts = [put_new(self._table, each) | {"ConditionExpression": "attribute_not_exists(x)"}',
        f"{CHANNEL_MATRIX} -k each_number",
    ),
    Mutant(
        "tickets: a task takes all its numbers",
        LEDGER,
        "(values, *_part_values(settled))]",
        "(values,)]",
        f"{CHANNEL_MATRIX} -k each_number",
    ),
    Mutant(
        "tickets: a held task takes all its numbers",
        LEDGER,
        "for hold in (escrow, *judges)] + _part_values(escrow)",
        "for hold in (escrow, *judges)]",
        f"{CHANNEL_MATRIX} -k each_number",
    ),
    Mutant(
        "tickets: a number out of use has its own error",
        LEDGER,
        'if "void_ms" in stored:',
        "if False:",
        f"{CHANNEL_MATRIX} -k each_number",
    ),
    Mutant(
        "tickets: no account is debited",
        LEDGER,
        "if hold.ticket is None:",
        "if True:",
        f"{CHANNEL_MATRIX} -k each_number",
    ),
    Mutant(
        "tickets: what is not used stays in the channel",
        LEDGER,
        "if ended.ticket is None:",
        "if True:",
        f"{CHANNEL_MATRIX} -k held_ticket",
    ),
    Mutant(
        "tickets: the receipt replaces the signed ticket",
        LEDGER,
        'remove=("ticket",) if settled.ticket else (),',
        "remove=(),",
        f"{CHANNEL_MATRIX} -k held_ticket",
    ),
    Mutant("tickets: the key's signature", TICKETS, "tickets.check_signed(jws, channel.key)", "pass", CHANNEL_CHECKS),
    Mutant("tickets: exactly this request", TICKETS, "if signed != sent:", "if False:", CHANNEL_CHECKS),
    Mutant(
        "tickets: numbers are granted",
        TICKETS,
        "if channel.state is not ChannelState.OPEN or last <= channel.granted:\n        return",
        "if True:\n        return",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "tickets: the channel is open",
        TICKETS,
        "if channel.state is not ChannelState.OPEN:",
        "if False:",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "tickets: time left before the expiry",
        TICKETS,
        "if now_ms + span_ms > channel.expires_ms:",
        "if now_ms > channel.expires_ms:",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "tickets: the most of one task",
        TICKETS,
        "if request.budget_micro > most_micro:",
        "if False:",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "tickets: at most ninety numbers for a task",
        TICKETS,
        "if request.budget_micro > (most_micro := TICKETS_PER_TASK_MAX * channel.ticket_micro):",
        "if False:",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "tickets: a mandate names the judge too",
        TICKETS,
        "return [request.agent_id, *([judge.agent_id] if judge else [])]",
        "return [request.agent_id]",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "tickets: a used one is read before the run",
        EXECUTE,
        "if stored := platform.ledger.find_ticket(attempt.by.ticket):",
        "if stored := None:",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "tickets: held first for judges",
        EXECUTE,
        "if judge_holds or takes_long or channel.contested:",
        "if takes_long or channel.contested:",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "tickets: held first in a contested channel",
        EXECUTE,
        "if judge_holds or takes_long or channel.contested:",
        "if judge_holds or takes_long:",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "tickets: overlapping runs are recorded",
        EXECUTE,
        "platform.channels.contest(attempt.by.channel, now_ms=platform.now_ms())",
        "pass",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "tickets: accounts pay no task with a ticket's id",
        EXECUTE,
        "if by is None and channels.parse_task_id(request.task_id):",
        "if False:",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "request hash: of a used ticket",
        EXECUTE,
        "            _contest(platform, attempt)\n            _check_same(settled.escrow, attempt)",
        "            _contest(platform, attempt)",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "open: the deposit is taken",
        CHANNELS,
        "self._ledger.take({channel.payer: channel.deposit_micro}, ",
        "self._ledger.take({}, ",
        f"{CHANNEL_MATRIX} -k test_open",
    ),
    Mutant(
        "open: the same terms",
        CHANNELS,
        "if found.same_terms != channel.same_terms:",
        "if False:",
        f"{CHANNEL_MATRIX} -k test_open",
    ),
    Mutant(
        "top-up: only an open channel",
        CHANNELS,
        '"ConditionExpression": "#state = :open",',
        '"ConditionExpression": "attribute_exists(#state)",',
        f"{CHANNEL_MATRIX} -k top_up",
    ),
    Mutant(
        "top-up: once for each id",
        CHANNELS,
        '"pk": _topup_pk(channel.channel_id, topup_id),',
        '"pk": _topup_pk(channel.channel_id, f"{topup_id}{now_ms}"),',
        f"{CHANNEL_MATRIX} -k top_up",
    ),
    Mutant(
        "top-up: one amount for each id",
        CHANNELS,
        'if values["amount"] != amount_micro:',
        "if False:",
        f"{CHANNEL_MATRIX} -k top_up",
    ),
    Mutant(
        "top-up: the amount is taken",
        CHANNELS,
        "self._ledger.take({channel.payer: amount_micro}, ",
        "self._ledger.take({}, ",
        f"{CHANNEL_MATRIX} -k top_up",
    ),
    Mutant(
        "top-up: up to the limit of numbers",
        CLOSING,
        "if channel.swept + rest_micro // channel.ticket_micro > TICKET_NUMBER_MAX:",
        "if False:",
        CHANNEL_CHECKS,
    ),
    Mutant(
        "top-up: a repeat is answered",
        CLOSING,
        "if recorded_ms is None:",
        "if True:",
        CHANNEL_CHECKS,
    ),
    Mutant("grant: state", CHANNELS, GRANT, _without(GRANT, "#state = :open"), f"{CHANNEL_MATRIX} -k grant"),
    Mutant("grant: reading", CHANNELS, GRANT, _without(GRANT, "#granted = :seen"), f"{CHANNEL_MATRIX} -k grant"),
    Mutant(
        "grant: what the deposit covers",
        RULES,
        "return max(last, min(channel.granted + step, channel.numbers))",
        "return max(last, channel.granted + step)",
        f"{CHANNEL_MATRIX} -k grant",
    ),
    Mutant("contest: state", CHANNELS, CONTEST, _without(CONTEST, "#state = :open"), f"{CHANNEL_MATRIX} -k contest"),
    Mutant(
        "begin closing: state",
        CHANNELS,
        'condition="#state = :open",',
        'condition="attribute_exists(#state)",',
        f"{CHANNEL_MATRIX} -k close_in",
    ),
    Mutant(
        "count: after the time of closing",
        CLOSING,
        "if channel.state is ChannelState.CLOSED or (channel.close_ms or 0) > now_ms:",
        "if channel.state is ChannelState.CLOSED:",
        f"{CHANNEL_MATRIX} -k too_early",
    ),
    Mutant(
        "count: free numbers are taken out of use",
        CHANNELS,
        "free = [number for number, pk in pks.items() if pk not in found]",
        "free: list[int] = []",
        f"{CHANNEL_MATRIX} -k close_in",
    ),
    Mutant(
        "count: a used number is not taken out of use",
        CHANNELS,
        "put_new(self._table, _void(channel.channel_id, number, now_ms))}",
        "put_new(self._table, _void(channel.channel_id, number, now_ms))"
        ' | {"ConditionExpression": "attribute_not_exists(x)"}}',
        CHANNEL_WALK,
    ),
    Mutant(
        "count: numbers out of use are not used",
        CHANNELS,
        'used = sum("void_ms" not in item for item in found.values())',
        "used = len(found)",
        CHANNEL_WALK,
    ),
    Mutant("count: each once", CHANNELS, COUNT, _without(COUNT, "#counted = :seen"), f"{CHANNEL_MATRIX} -k close_in"),
    Mutant("close: state", CHANNELS, CLOSE, _without(CLOSE, "#state = :closing"), f"{CHANNEL_MATRIX} -k close_in"),
    Mutant("close: counted", CHANNELS, CLOSE, _without(CLOSE, "#counted = #granted"), f"{CHANNEL_MATRIX} -k close_in"),
    Mutant("close: swept", CHANNELS, CLOSE, _without(CLOSE, "#swept = #used"), f"{CHANNEL_MATRIX} -k close_in"),
    Mutant("close: spent", CHANNELS, CLOSE, CLOSE.replace(" AND #spent = :spent", ""), f"{CHANNEL_MATRIX} -k close_in"),
    Mutant(
        "close: deposit",
        CHANNELS,
        CLOSE,
        CLOSE.replace('" AND #deposit = :deposit"', '""'),
        f"{CHANNEL_MATRIX} -k close_in",
    ),
    Mutant(
        "close: the rest is returned",
        CHANNELS,
        "{channel.payer: rest_micro} if rest_micro else {}",
        "{}",
        f"{CHANNEL_MATRIX} -k close_in",
    ),
    Mutant(
        "sweep: what tickets cost",
        LEDGER,
        '"ADD spent :spent, swept :swept"',
        '"ADD swept :swept"',
        f"{CHANNEL_MATRIX} -k sweep_adds",
    ),
    Mutant(
        "sweep: the numbers of tickets",
        LEDGER,
        '"ADD spent :spent, swept :swept"',
        '"ADD spent :spent"',
        f"{CHANNEL_MATRIX} -k sweep_adds",
    ),
    Mutant(
        "sweep: each ticket once",
        LEDGER,
        'if "swept_ms" not in item and (escrow := read_escrow(item)).settlement]\n',
        "if (escrow := read_escrow(item)).settlement]\n",
        f"{CHANNEL_MATRIX} -k sweep_adds",
    ),
    Mutant(
        "sweep: the ticket pays its task's judge",
        ESCROW,
        " - self.settlement.split.refunded_micro + self.settlement.task_judging_micro",
        " - self.settlement.split.refunded_micro",
        f"{CHANNEL_MATRIX} -k sweep_adds",
    ),
    Mutant(
        "archive: a bundle is stored once",
        BLOBS,
        ', IfNoneMatch="*")',
        ")",
        ARCHIVE,
    ),
    Mutant(
        "archive: the bundle is read back",
        ARCHIVING,
        "    ledger.archive.forget()  # what counts is what S3 has\n    records = ledger.archive.bundle(first)\n",
        "    from quittance.store import archive as bundles\n"
        "    records = bundles.read(first, bundles.written(first, [stored[pk] for pk in pks]))\n",
        ARCHIVE,
    ),
    Mutant(
        "archive: a half archived bundle is not written again",
        ARCHIVING,
        "    if not any(map(is_tombstone, stored.values())):\n        ledger",
        "    if True:\n        ledger",
        ARCHIVE,
    ),
    Mutant(
        "archive: only old escrows",
        ARCHIVING,
        " or _swept_ms(pks, stored) > before_ms:",
        " or not _swept_ms(pks, stored):",
        ARCHIVE,
    ),
    Mutant(
        "archive: only full bundles",
        ARCHIVING,
        "if head.published < first + BUNDLE_ESCROWS_MIN:",
        "if head.published <= first:",
        ARCHIVE,
    ),
    Mutant(
        "archive: only published receipts",
        ARCHIVING,
        "    if first + len(pks) > head.published or ",
        "    if ",
        ARCHIVE,
    ),
    Mutant(
        "archive: only swept escrows",
        ARCHIVING,
        """if unswept := [pk for pk in pks if "swept_ms" not in stored.get(pk, {})]:""",
        "if unswept := []:",
        ARCHIVE,
    ),
    Mutant(
        "archive: as they are stored",
        ARCHIVING,
        "        if stored[pk] != due:",
        "        if False:",
        ARCHIVE,
    ),
    Mutant(
        "archive: a bundle of another size",
        ARCHIVING,
        "    if len(records) != len(pks):  #",
        "    if False:  #",
        ARCHIVE,
    ),
    Mutant("archive: the position moves", ARCHIVING, "    ledger.log.set_archived(first,", "    (first,", ARCHIVE),
    Mutant(
        "tombstone: every attribute is as archived",
        LEDGER,
        """"attribute_exists(swept_ms)", *same]""",
        """"attribute_exists(swept_ms)"]""",
        ARCHIVE,
    ),
    Mutant(
        "tombstone: what differs is an error",
        LEDGER,
        "            if refused.items[0] == record.tombstone:",
        "            if refused.items[0]:",
        ARCHIVE,
    ),
    Mutant(
        "archived: never backwards",
        LOG,
        """            + ("#archived_size = :first" if first else "attribute_not_exists(#archived_size)"),""",
        """            + "attribute_exists(#published)",""",
        ARCHIVERS,
    ),
    Mutant(
        "tombstone: the digest of the line",
        BUNDLES,
        "            found = hashlib.sha256(line).digest()\n",
        "            found = digest\n",
        ARCHIVE,
    ),
    Mutant(
        "tombstone: the state stays",
        BUNDLES,
        """    "state",  # conditions""",
        """    # conditions""",
        ARCHIVE,
    ),
    Mutant(
        "tombstone: the mark of the sweep stays",
        BUNDLES,
        """    "swept_ms",  # the sweep's""",
        """    # the sweep's""",
        ARCHIVE,
    ),
    Mutant(
        "fund: an archived escrow is whole",
        LEDGER,
        "_stored_first(self.whole(stored), escrow)",
        "_stored_first(stored, escrow)",
        ARCHIVE,
    ),
    Mutant(
        "redeem: an archived escrow is whole",
        LEDGER,
        "return read_escrow(self.whole(found[pk]))",
        "return read_escrow(found[pk])",
        ARCHIVE,
    ),
    Mutant(
        "find: an archived escrow is whole",
        LEDGER,
        "return read_escrow(self.whole(item)) if item",
        "return read_escrow(item) if item",
        ARCHIVE,
    ),
    Mutant(
        "log: an archived receipt is read",
        LOG,
        "(self._whole(item) if is_tombstone(item) else item)",
        "item",
        ARCHIVE,
    ),
    Mutant(
        "audit: archived escrows are checked",
        AUDIT,
        "        self._check_tombstones(tombstones, escrows)\n",
        "",
        ARCHIVE,
    ),
    Mutant(
        "audit: what is archived meanwhile",
        AUDIT,
        "                self._check_tombstones({pk: values}, self._ledger.read([pk]))\n",
        "                pass\n",
        ARCHIVE,
    ),
    Mutant(
        "audit: tombstones are what was archived",
        RULES_OF_AUDIT,
        "    wrong = sorted(name for name in kept.keys() | stored.keys() if kept.get(name) != stored.get(name))",
        "    wrong = sorted(name for name in kept.keys() - stored.keys())",
        ARCHIVE,
    ),
)


def survivors(mutants: tuple[Mutant, ...]) -> list[str]:
    """Tests the mutants, prints a line for each, and returns the names of the survivors."""
    survived = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        for name in COPIED:
            source, target = ROOT / name, home / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        for path in (ROOT / "tests").glob("*.py"):
            shutil.copy(path, home / "tests")
        for tests in sorted({mutant.tests for mutant in mutants}):
            if output := _failure(home, tests):
                _say(f"the unedited code fails {tests}:\n{output}")
                return ["none"]
        for mutant in mutants:
            began = time.monotonic()
            path = home / "layers/runtime/quittance" / mutant.file
            whole = path.read_text()
            if whole.count(mutant.old) != 1:
                _say(f"| {mutant.name} | NOT FOUND once in {mutant.file} |")
                survived.append(mutant.name)
                continue
            path.write_text(whole.replace(mutant.old, mutant.new))
            output = _failure(home, mutant.tests)
            path.write_text(whole)
            caught = re.search(r"^(?:FAILED|ERROR) \S+::(\S+)", output, re.MULTILINE)
            if not caught:
                survived.append(mutant.name)
            by = f"`{caught[1]}`" if caught else "NOTHING " + output[-300:]
            _say(f"| {mutant.name} | {by} | {time.monotonic() - began:.0f} s |")
    return survived


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _failure(home: Path, tests: str) -> str:
    """The output of the tests if they fail; an empty string if they pass."""
    command = [sys.executable, "-m", "pytest", "-vv", "-x", "--tb=no", "-p", "no:cacheprovider", "-rfE", *tests.split()]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    try:
        ran = subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        return f"FAILED {tests}::did-not-end"
    return ran.stdout + ran.stderr if ran.returncode else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that the tests notice the removal of every guard.")
    parser.add_argument("word", nargs="?", default="")
    word = parser.parse_args().word
    chosen = tuple(mutant for mutant in MUTANTS if word in mutant.name)
    survived = survivors(chosen)
    _say(f"{len(chosen) - len(survived)} of {len(chosen)} mutants caught")
    for name in survived:
        _say(f"survived: {name}")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
