"""The audit: reads every item of the ledger and recomputes every invariant. Its memory does not grow with the escrows.

    walk the log by its pointers → scan the table → read again what differed → walk what was logged meanwhile
    → compare standings, the log's end, accounts, and channels

The scan returns items in no order and is not a snapshot. So the audit keeps sums for each account, checks each item
against the items that it refers to, and reads an item again if something differs. It checks the log in log order, batch
by batch. It keeps in memory a few numbers for each account and channel, the standing of each agent and eight bytes for
each batch. A channel whose tickets differ from it is read again by its numbers, a page at a time.
"""

import time
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, Final

import jwt

from quittance.errors import shortened
from quittance.ledger import reputation
from quittance.ledger.channels import ChannelState
from quittance.ledger.credits import format_credits
from quittance.ledger.reputation import Standing
from quittance.limits import (
    AUDIT_DIFFERENCES_SHOWN_MAX,
    AUDIT_LINE_CHARS_MAX,
    AUDIT_RECENT_MS,
    AUDIT_STANDINGS_MAX,
    BATCH_GET_ITEMS_MAX,
    TICKET_NUMBER_MAX,
    UNPUBLISHED_MS_MAX,
)
from quittance.platform import Platform
from quittance.proof import invariants, log
from quittance.proof.invariants import Audit, Books, Context, Difference, Numbers, Sums, Values
from quittance.proof.log import Frontier, LogHead
from quittance.proof.receipt import read_claims
from quittance.proof.statement import ProofError
from quittance.store.blobs import BlobMissingError

STANDINGS_SHOWN_MAX: Final = 10_000  # a Lambda answer has room for them
_ACCOUNT_TRIES: Final = 3
_INDEX_LAG_S: Final = 0.3  # pause between two attempts, so that the index can catch up


def audit(platform: Platform) -> Audit:
    """Audits the ledger. Raises PlatformUnavailableError, also if the invocation has too little time."""
    return _Auditor(platform).run()


def report(result: Audit) -> list[str]:
    """The conservation equation with both sides, and a line for each difference."""
    lines = [
        f"escrows      {result.escrows}",
        f"channels     {result.channels}",
        f"in the log   {result.log.size}, published {result.log.published}",
        f"deposited    {format_credits(result.deposited_micro)}",
        f"withdrawn    {format_credits(result.withdrawn_micro)}",
        f"to pay out   {format_credits(result.waiting_micro)} in {result.payouts_waiting} withdrawals",
        f"available    {format_credits(result.available_micro)}",
        f"held         {format_credits(result.held_micro)}",
        f"in channels  {format_credits(result.in_channels_micro)}",
        f"uncredited   {format_credits(result.uncredited_micro)}",
        f"charged      {format_credits(result.charged_micro)}",
        f"written off  {format_credits(result.written_off_micro)}",
        f"deposited - withdrawn = {format_credits(result.deposited_micro - result.withdrawn_micro)}",
        f"available + held + in channels + uncredited = {format_credits(result.inside_micro)}",
        f"accounts that moved meanwhile {result.moved}, of them not settled {result.unsettled}",
        f"channels that moved meanwhile {result.moved_channels}, of them not settled {result.unsettled_channels}",
        f"differences  {result.count}",
    ]
    lines += [
        shortened(
            f"{difference.invariant} at {difference.at}: expected {difference.expected}, found {difference.found}",
            AUDIT_LINE_CHARS_MAX,
        )
        for difference in result.differences
    ]
    return [*lines, f"{result.unnamed} more differences: fix these first"] if result.unnamed else lines


def standings(result: Audit) -> list[str]:
    """A line for each agent, at most STANDINGS_SHOWN_MAX lines: its scores, recomputed from its receipts alone."""
    lines = [f"{'agent':26} {'outcomes':>8} " + " ".join(f"{name:>9}" for name in reputation.ALGORITHMS)]
    for agent_id, text in sorted(result.standings.items())[:STANDINGS_SHOWN_MAX]:
        standing = reputation.parse(text)
        scores = [reputation.score_tenths(standing, name) / 10 for name in reputation.ALGORITHMS]
        lines.append(f"{agent_id:26} {standing.outcomes:8} " + " ".join(f"{score:9}" for score in scores))
    wrong = sum(difference.invariant == "I16" for difference in result.differences)
    return [*lines, f"{len(result.standings)} agents, {wrong} of them with a stored standing that differs"]


class _Auditor:
    """One audit. It keeps only what its later checks need."""

    def __init__(self, platform: Platform) -> None:
        now_ms = platform.now_ms()
        self._platform = platform
        self._ledger = platform.ledger
        self._context = Context(
            jwks=platform.keys.jwks(),
            platform_account=platform.settings.platform_account,
            work_shards=platform.settings.ledger_shards,
            now_ms=now_ms,
        )
        self._result = Audit()
        self._books = Books(now_ms - AUDIT_RECENT_MS)
        self._suspects: dict[str, None] = {}
        self._frontier = Frontier()
        self._published_root = self._frontier.root()
        self._firsts = array("Q")  # the first entry of each batch in the part of the log that was walked
        self._late_firsts: list[int] = []  # the first entries of batches that the scan found but the walk had not
        self._kept_agents: set[str] = set()  # agents whose stored standing was scanned before the walk found a receipt
        self._old_lines_met = self._old_lines_due = 0  # lines that credit batches, older than the recent past
        self._unpaired_publications = 0  # fees of publications minus charges, older than the recent past
        self._is_broken = False  # whether the log cannot be walked to its end

    def run(self) -> Audit:
        result = self._result
        self._ledger.forget_archive()
        result.log = self._log_head()
        self._walk(result.log.size)
        self._scan()
        self._check_again()
        self._check_standings()
        self._check_log_end()
        self._check_old_lines()
        self._check_accounts()
        self._check_channels()
        self._check_conservation()
        return result

    # The log, in its order.

    def _log_head(self) -> LogHead:
        head = self._ledger.read(["LOG"]).get("LOG", {"pk": "LOG", "size": 0, "published": 0})
        if invariants.form_error(head) is None:
            return LogHead(head["size"], head["published"], head.get("archived_size", 0))
        self._is_broken = True  # the scan reports what is wrong
        return LogHead()

    def _walk(self, size: int) -> None:
        """Walks the log by its pointers, up to a size that the log has reached."""
        while self._frontier.size < size and not self._is_broken:
            first = self._frontier.size
            pointer = f"LOG#{first}"
            batch_id = self._ledger.read([pointer]).get(pointer, {}).get("batch")
            batch = self._ledger.read([f"BATCH#{batch_id}"]).get(f"BATCH#{batch_id}")
            if batch is None or invariants.form_error(batch):
                self._result.check("I15", pointer, "a batch", batch_id)
                self._is_broken = True
                return
            self._result.check("I15", batch["pk"], first, batch.get("first"))
            self._firsts.append(first)
            self._append(batch)

    def _append(self, batch: Values) -> None:
        """Checks a batch that is in the log, and adds its receipts to the log's root and to their agents' standings."""
        escrows = self._check_batch(batch)
        receipts = [str(escrows.get(pk, {}).get("receipt", "")) for pk in invariants.escrow_keys(batch)]
        self._check_published(escrows.values())
        for receipt in receipts:
            self._frontier.append(log.leaf_hash(receipt.encode()))
            if self._frontier.size == self._result.log.published:
                self._published_root = self._frontier.root()
        ratings: defaultdict[str, list[reputation.Rating]] = defaultdict(list)
        try:
            for receipt in receipts:
                rating = reputation.rating(read_claims(receipt))
                ratings[rating.agent].append(rating)
        except (KeyError, TypeError, ValueError, jwt.InvalidTokenError) as exc:
            self._result.check("I16", batch["pk"], "receipts", repr(exc))
            return
        kept = self._result.standings
        for agent_id, new in ratings.items():
            standing = reputation.parse(kept[agent_id]) if agent_id in kept else Standing()
            kept[agent_id] = reputation.serialise(reputation.fold(standing, new))

    def _check_batch(self, batch: Values) -> dict[str, dict[str, Any]]:
        """Checks a batch against its escrows and the lines that credited it. Returns its escrows.

        If something differs, reads it again: the first reads may have been before and after a concurrent transaction.
        """
        for _ in range(2):
            buried: dict[str, dict[str, Any]] = {}
            escrows = self._ledger.read(invariants.escrow_keys(batch), buried=buried)
            lines = self._ledger.read(invariants.batch_line_keys(batch, escrows, self._context))
            differences = invariants.check_credited(batch, escrows, lines, self._context)
            if not differences:
                break
        self._result.add(differences)
        self._check_buried(buried, escrows)
        if 0 <= batch.get("first", self._result.log.size) < self._result.log.archived:
            self._result.check("I15", batch["pk"], sorted(invariants.escrow_keys(batch)), sorted(buried))
        self._old_lines_due += sum(not self._is_recent(line) for line in lines.values())
        return escrows

    def _check_buried(self, buried: dict[str, dict[str, Any]], whole: dict[str, dict[str, Any]]) -> None:
        """Checks archived escrows as the scan checks others, and that their tombstones have the same."""
        sound = [values for pk in buried if (values := whole.get(pk)) and invariants.form_error(values) is None]
        others = self._ledger.read(pk for values in sound for pk in invariants.referenced_keys(values, self._context))
        for pk, tombstone in buried.items():
            self._result.add(invariants.check_buried(tombstone, whole.get(pk), others, self._context))

    def _check_published(self, escrows: Iterable[Values]) -> None:
        """I8: the first batch that no checkpoint covers must not be old."""
        if self._frontier.size != self._result.log.published:
            return
        swept_ms = min(
            (
                escrow["swept_ms"]
                for escrow in escrows
                if invariants.form_error(escrow) is None and invariants.is_swept(escrow)
            ),
            default=None,
        )
        if swept_ms is not None and (age_ms := self._context.now_ms - swept_ms) > UNPUBLISHED_MS_MAX:
            self._result.check("I8", "LOG", f"published within {UNPUBLISHED_MS_MAX} ms", f"not after {age_ms} ms")

    # The table, in no order.

    def _scan(self) -> None:
        everything = self._ledger.everything()
        while items := list(islice(everything, BATCH_GET_ITEMS_MAX)):
            sound = [values for values in items if invariants.form_error(values) is None]
            for values in sound:
                self._books.post(self._result, values)
                self._note(values)
            others = self._ledger.read(
                pk for values in sound for pk in invariants.referenced_keys(values, self._context)
            )
            for values in items:
                if invariants.check(values, others, self._context):
                    self._suspect(values["pk"])
                elif invariants.item_type(values) == "BATCH" and "first" not in values:
                    self._check_batch(values)
                elif invariants.is_batch_line(values) and self._is_recent(values):
                    self._check_line(values)
                elif invariants.is_archived(values) and self._is_newly_archived(values, others):
                    self._check_buried({values["pk"]: values}, self._ledger.read([values["pk"]]))

    def _is_newly_archived(self, values: Values, others: Mapping[str, Values]) -> bool:
        """Whether a tombstone may be newer than the walk, which then saw the whole escrow without checking it."""
        return bool(others[f"BATCH#{values['batch']}"]["first"] + values["place"] >= self._result.log.archived)

    def _note(self, values: Values) -> None:
        match invariants.item_type(values):
            case "BATCH" if "first" in values:
                self._note_first(values["first"])
            case "LOG#" if invariants.item_id(values).isdecimal():
                self._note_first(int(invariants.item_id(values)))
            case "CHARGE" | "FEE" if invariants.is_publication(values) and not self._is_recent(values):
                self._unpaired_publications += 1 if invariants.item_type(values) == "FEE" else -bool(values["amount"])
            case "OUT" if values.get("payout", "requested") == "requested":
                self._result.payouts_waiting += 1
                self._result.waiting_micro -= values["amount"]
                age_ms = self._context.now_ms - values["at"]
                self._result.oldest_payout_age_ms = max(self._result.oldest_payout_age_ms, age_ms)
            case _ if invariants.is_batch_line(values):
                self._old_lines_met += not self._is_recent(values)
            case "REP" if invariants.item_id(values) not in self._result.standings:
                self._kept_agents.add(invariants.item_id(values))

    def _is_recent(self, values: Values) -> bool:
        at = values.get("at")
        return not isinstance(at, int) or at >= self._books.recent_ms

    def _check_line(self, line: Values) -> None:
        """I10: a line that credits an account must belong to a batch, which is checked with all of its lines."""
        batch_key = f"BATCH#{invariants.reference(line)}"
        keys: list[str] = []
        for _ in range(2):  # the reads may be before and after a concurrent transaction
            batch = self._ledger.read([batch_key]).get(batch_key)
            if batch is None or invariants.form_error(batch):
                continue
            keys = invariants.batch_line_keys(batch, self._ledger.read(invariants.escrow_keys(batch)), self._context)
            if line["pk"] in keys:
                return
        self._result.check("I10", line["pk"], f"a line of {batch_key}", "a line without an escrow in that batch")

    def _check_old_lines(self) -> None:
        """I10: every credit line belongs to a batch. Old lines never change, so comparing their number is enough."""
        self._result.check("I10", "FEE# of publications", 0, self._unpaired_publications)
        if self._is_broken or self._old_lines_met == self._old_lines_due:
            return
        self._result.check("I10", "lines", self._old_lines_due, self._old_lines_met)
        for values in self._ledger.everything():
            if (
                invariants.is_batch_line(values)
                and invariants.form_error(values) is None
                and not self._is_recent(values)
            ):
                self._check_line(values)

    def _note_first(self, first: int) -> None:
        if not self._is_walked(first):
            self._late_firsts.append(first)

    def _is_walked(self, first: int) -> bool:
        at = bisect_left(self._firsts, first)
        return at < len(self._firsts) and self._firsts[at] == first

    def _suspect(self, pk: str) -> None:
        if len(self._suspects) < AUDIT_DIFFERENCES_SHOWN_MAX:
            self._suspects[pk] = None
        else:
            self._result.unnamed += 1

    # A second look at items that differed.

    def _check_again(self) -> None:
        for pk in self._suspects:
            values = self._ledger.stored([pk]).get(pk)
            if values is None:
                self._result.check("form", pk, "an item", "no item, but there was one a moment ago")
                continue
            others = (
                self._ledger.read(invariants.referenced_keys(values, self._context))
                if invariants.form_error(values) is None
                else {}
            )
            self._result.add(invariants.check(values, others, self._context))
            if invariants.is_archived(values):  # perhaps since the scan
                self._check_buried({pk: values}, self._ledger.read([pk]))

    def _check_standings(self) -> None:
        """I16: each stored standing is the fold of the agent's receipts in the log, read at the same log size."""
        kept, checked = self._result.standings, set[str]()
        while agents := sorted((kept.keys() | self._kept_agents) - checked)[:AUDIT_STANDINGS_MAX]:
            head, found = self._ledger.standings(agents)
            self._walk(head["size"] if invariants.form_error(head) is None else self._frontier.size)
            checked.update(agents)
            if self._is_broken:
                return
            for agent_id, values in zip(agents, found, strict=True):
                self._result.check("I16", f"REP#{agent_id}", kept.get(agent_id), values.get("standing"))

    def _check_log_end(self) -> None:
        """I15: the log ends where its head says, no batch is outside it, and the newest checkpoint matches its root."""
        head = self._result.log
        self._walk(self._log_head().size if self._late_firsts else head.size)
        ends = self._is_walked(head.size) or head.size == self._frontier.size
        self._result.check("I15", "LOG", expected=True, found=ends)
        at_batch = self._is_walked(head.archived) or head.archived in {0, head.size}
        self._result.check("I15", "LOG", expected=True, found=at_batch and 0 <= head.archived <= head.published)
        if self._is_broken:
            return
        for first in self._late_firsts:
            if not self._is_walked(first):
                self._result.check("I15", f"LOG#{first}", f"no batch outside the log of {head.size}", first)
        self._check_checkpoint()

    def _check_checkpoint(self) -> None:
        head = self._result.log
        if not head.published:
            return
        try:
            stated = log.verify_checkpoint(self._platform.tiles.checkpoint(head.published), self._context.jwks)
        except (ProofError, BlobMissingError) as exc:
            self._result.check("I15", f"checkpoint {head.published}", "a valid checkpoint", repr(exc))
        else:
            due = (head.published, self._published_root.hex())
            self._result.check("I15", f"checkpoint {head.published}", due, (stated.size, stated.root.hex()))

    # Accounts.

    def _check_accounts(self) -> None:
        """I10 and I11: an account's credits are the sum of its movements. Reads each account that differs again."""
        for account in sorted(account for account, gap in self._books.gaps.items() if gap != Sums()):
            self._result.moved += 1
            self._result.add(self._compare(account))

    def _compare(self, account: str) -> list[Difference]:
        difference: list[Difference] = []
        for tried in range(_ACCOUNT_TRIES):
            if tried:
                time.sleep(_INDEX_LAG_S)
            before = self._ledger.balance_shards(account)
            expected = self._books.final[account] + self._recent(account)
            after = self._ledger.balance_shards(account)
            sound = (shard for shard in after if shard and invariants.form_error(shard) is None)
            found = sum(map(invariants.shard_sums, sound), start=Sums())
            if expected == found:
                return []
            difference = [Difference("I10/I11", account, expected, found)] if before == after else []
        self._result.unsettled += not difference
        return difference

    def _recent(self, account: str) -> Sums:
        """The sum of an account's recent movements and of the tasks that the scan found open, read again now."""
        held = self._books.held.get(account, set())
        keys = (pk for pk in self._ledger.movements_since(account, self._books.recent_ms) if pk not in held)
        total = Sums()
        for pks in chain(_pages(held), _pages(keys)):
            sound = (values for values in self._ledger.read(pks).values() if invariants.form_error(values) is None)
            total = sum(map(invariants.net_change, sound), start=total)
        return total

    # Channels.

    def _check_channels(self) -> None:
        """I14: each channel is the sum of its tickets and top-ups. Reads those of a channel that differs again."""
        channel_ids = iter(sorted(self._books.channels))
        while page := list(islice(channel_ids, BATCH_GET_ITEMS_MAX)):
            found = self._ledger.read(f"CHAN#{channel_id}" for channel_id in page)
            for channel_id in page:
                channel = found.get(f"CHAN#{channel_id}")
                if channel is None or invariants.form_error(channel):
                    continue  # the channel, or each of its tickets, differs for itself
                if channel["state"] == ChannelState.CLOSING and not invariants.is_counted(channel):
                    self._check_counted(channel_id, channel)
                if invariants.check_numbers(channel, self._books.channels[channel_id], self._context):
                    self._result.moved_channels += 1
                    self._result.add(self._compare_channel(channel_id))

    def _check_counted(self, channel_id: str, channel: Values) -> None:
        """I14: what closing has counted so far. These numbers are used or void for ever, so one look is enough."""
        total = Numbers()
        for first in range(1, channel["counted"] + 1, BATCH_GET_ITEMS_MAX):
            last = min(first + BATCH_GET_ITEMS_MAX - 1, channel["counted"])
            for values in self._numbers(channel_id, range(first, last + 1)):
                total.add(values)
        self._result.add(invariants.check_counted(channel, total))

    def _compare_channel(self, channel_id: str) -> list[Difference]:
        """The differences of a channel that does not change while its numbers are read.

        Pages of numbers that can never change again are read once. So a channel that is used all the time is compared
        too, unless the sweep credits some of its tickets during each of the last, short looks.
        """
        differences: list[Difference] = []
        fixed, moving, read_to = Numbers(), list[int](), 0  # the sums of final pages, and where the others begin
        for tried in range(_ACCOUNT_TRIES):
            if tried:
                time.sleep(_INDEX_LAG_S)
            before = self._channel(channel_id)
            if before is None:
                return []
            new = range(read_to + 1, min(before["granted"], TICKET_NUMBER_MAX) + 1, BATCH_GET_ITEMS_MAX)
            read_to += len(new) * BATCH_GET_ITEMS_MAX
            pages, moving, total = [*moving, *new], [], fixed
            for first in pages:
                numbers, sums = self._numbers(channel_id, range(first, first + BATCH_GET_ITEMS_MAX)), Numbers()
                for values in numbers:
                    sums.add(values)
                total += sums
                if len(numbers) == BATCH_GET_ITEMS_MAX and all(map(invariants.is_final, numbers)):
                    fixed += sums
                else:
                    moving.append(first)
            total += self._topups(channel_id)
            after = self._channel(channel_id)
            if after is None:
                return []
            differences = invariants.check_numbers(after, total, self._context)
            if not differences:
                return []
            if before != after and invariants.is_between(before, total, after):
                differences = []
        self._result.unsettled_channels += not differences
        return differences

    def _channel(self, channel_id: str) -> Values | None:
        """A channel, unless it is missing or damaged: then the items that name it, or the scan, report it."""
        pk = f"CHAN#{channel_id}"
        channel = self._ledger.read([pk]).get(pk)
        return None if channel is None or invariants.form_error(channel) else channel

    def _numbers(self, channel_id: str, numbers: Iterable[int]) -> list[Values]:
        """The items of some numbers of a channel that have no form error."""
        found = self._ledger.stored(invariants.number_keys(channel_id, numbers))
        return [
            values
            for values in found.values()
            if invariants.form_error(values) is None and invariants.is_by_ticket(values)
        ]

    def _topups(self, channel_id: str) -> Numbers:
        total = Numbers()
        for pks in _pages(self._ledger.movements_since(invariants.topups_of(channel_id), 0)):
            for values in self._ledger.read(pks).values():
                if invariants.item_type(values) == "TOPUP" and invariants.form_error(values) is None:
                    total.add(values)
        return total

    def _check_conservation(self) -> None:
        """I1, unless credits moved while they were summed: then each account that moved was compared separately."""
        result = self._result
        is_still = not result.moved and result.credited_micro == result.journalled_micro
        if is_still or result.differences:
            result.check("I1", "all", result.deposited_micro - result.withdrawn_micro, result.inside_micro)


def _pages(keys: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while page := list(islice(rest, BATCH_GET_ITEMS_MAX)):
        yield page
