"""The audit: reads every item of the ledger and recomputes every invariant. Its memory does not grow with the escrows.

    read the log's head ─► walk the log up to it │ scan the table, read again what differed
                        ─► walk what was logged meanwhile
                        ─► compare standings, batches, accounts and channels ─► one verdict

Each of these is split into parts (`proof/parts.py`), and a part runs in steps. `audit` runs all steps one after another
in this process; the state machine `workflows/audit.asl.json` runs parts in parallel, each step in an invocation of its
own. Both call `begin`, `step` and `advance`, and nothing else.

The scan returns items in no order and is not a snapshot. So the audit keeps sums for each account, checks each item
against the items that it refers to, and reads an item again if something differs. It checks the log batch by batch.
A step keeps in memory what it found in a limited number of receipts or items; a comparison keeps a few numbers for each
account and channel of one partition, the standings of its agents, or eight bytes for each of its batches. A channel
whose tickets differ from it is read again by its numbers, a page at a time.
"""

import time
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from itertools import chain, islice
from typing import Any, Final

import jwt

from quittance.errors import PlatformUnavailableError, shortened
from quittance.ledger import reputation
from quittance.ledger.channels import ChannelState
from quittance.ledger.credits import format_credits
from quittance.ledger.reputation import Rating, Standing
from quittance.limits import (
    AUDIT_COMPARED_MAX,
    AUDIT_DIFFERENCES_SHOWN_MAX,
    AUDIT_LINE_CHARS_MAX,
    AUDIT_PART_RECEIPTS,
    AUDIT_PARTITION_RECEIPTS,
    AUDIT_PARTS_MAX,
    AUDIT_RECENT_MS,
    AUDIT_REPORT_LINES_MAX,
    AUDIT_STANDINGS_MAX,
    AUDIT_STEP_ITEMS_MAX,
    AUDIT_STEP_RECEIPTS_MAX,
    AUDIT_STEP_RESERVE_MS,
    BATCH_GET_ITEMS_MAX,
    TICKET_NUMBER_MAX,
    UNPUBLISHED_MS_MAX,
)
from quittance.platform import Platform
from quittance.proof import invariants, log, parts
from quittance.proof.invariants import Audit, Books, Context, Difference, Numbers, Sums, Values
from quittance.proof.log import Frontier, LogHead
from quittance.proof.parts import Chain, Found, Part, PartsError, Phase, Plan, Rows, State
from quittance.proof.receipt import read_claims
from quittance.proof.statement import ProofError
from quittance.run import Fault, Outcome
from quittance.store.audit_results import Results, Spool
from quittance.store.blobs import BlobMissingError

STANDINGS_SHOWN_MAX: Final = 10_000  # a Lambda answer has room for them
_ACCOUNT_TRIES: Final = 3
_INDEX_LAG_S: Final = 0.3  # pause between two attempts, so that the index can catch up
_PARTS_MIN = 1  # of each kind; tests raise it
_ENTRY_CHARS: Final = 500  # of a standing, for as much memory as another entry
_FOLDED_AT_ONCE_MAX: Final = 100  # ratings that a comparison of standings has in memory


def audit(platform: Platform) -> Audit:
    """Audits the ledger in this process. Raises PlatformUnavailableError, also if there is too little time."""
    with Spool() as results:
        state = begin(platform, results, run="", standings=True)
        while state.phase != Phase.DONE:
            done = [_finish(platform, results, part) for part in state.parts]
            state = advance(platform, results, state, done)
        return verdict(results, state)


def begin(
    platform: Platform, results: Results, *, run: str, standings: bool = False, at_least: int = _PARTS_MIN
) -> State:
    """Plans an audit: reads the log's head before anything else is read, and splits the log and the table into parts.

    `run` must be another name for each audit that keeps its results in the same place. There are at least so many parts
    of each kind, and at most AUDIT_PARTS_MAX.
    """
    least = max(_PARTS_MIN, at_least)
    head = _head(platform)
    now_ms, known = platform.now_ms(), head or LogHead()
    count = min(max(least, -(-known.size // AUDIT_PART_RECEIPTS)), AUDIT_PARTS_MAX)
    partitions = min(max(least, -(-known.size // AUDIT_PARTITION_RECEIPTS)), AUDIT_PARTS_MAX)
    plan = Plan(run, now_ms, now_ms - AUDIT_RECENT_MS, known, head is None, count, partitions, standings)
    digest = parts.keep_plan(plan, results.keep)
    log_parts = [] if plan.is_broken else parts.log_parts(digest, 0, known.size, count)
    return State(
        digest, Phase.READ, [*log_parts, *(Part(digest, parts.SCAN, number, count) for number in range(count))]
    )


def step(platform: Platform, results: Results, part: Part) -> Part:
    """Does one step of a part, and stores what it found. A repeated step reads again, and replaces no earlier result.

    Returns the part as its next step begins, or done.
    """
    return _Auditor(platform, parts.load_plan(results.load, part.plan), results, part).run()


def advance(platform: Platform, results: Results, state: State, done: Sequence[Part]) -> State:
    """The next parts, once all parts of this phase are done. Raises PartsError if one of them has no result."""
    done = parts.all_done(state.parts, done)
    plan = parts.load_plan(results.load, state.plan)
    match state.phase:
        case Phase.READ:
            return _after_reading(platform, results, plan, state, done)
        case Phase.TAIL:
            return _after_the_tail(platform, results, plan, state, done)
        case Phase.COMPARE:
            return _after_comparing(results, state, done)
    msg = "this audit has ended"
    raise PartsError(msg)


def verdict(results: Results, state: State) -> Audit:
    """The result of an audit that has ended. Raises PartsError for any other."""
    if state.phase != Phase.DONE or state.given is None:
        msg = "this audit has not ended"
        raise PartsError(msg)
    return parts.read_found(parts.load_json(results.load, state.given)).result


def _finish(platform: Platform, results: Results, part: Part) -> Part:
    """Does all steps of a part. Raises PlatformUnavailableError if there is too little time for them."""
    while not part.done:
        part = step(platform, results, part)
        if not part.done and not _has_time(platform):
            raise PlatformUnavailableError
    return part


def _has_time(platform: Platform) -> bool:
    return platform.left_ms() > AUDIT_STEP_RESERVE_MS


def _head(platform: Platform) -> LogHead | None:
    """The log's head; None if it is damaged, which the scan reports."""
    head = platform.ledger.read(["LOG"]).get("LOG", {"pk": "LOG", "size": 0, "published": 0})
    if invariants.form_error(head):
        return None
    return LogHead(head["size"], head["published"], head.get("archived_size", 0))


# From one phase to the next.


def _after_reading(platform: Platform, results: Results, plan: Plan, state: State, done: Sequence[Part]) -> State:
    """Plans to walk what was logged meanwhile. The head is read after the scan: each batch that it found is below."""
    walked = [part for part in done if part.kind == parts.LOG]
    whole = _joined(results, plan, walked)
    head, first = _head(platform), whole.range.size
    size = head.size if head else plan.head.size
    given = parts.keep_json({"read": [part.json() for part in done], "size": size}, results.keep)
    tail = []
    if size > first and not whole.is_cut:
        tail = parts.log_parts(state.plan, first, size, -(-(size - first) // AUDIT_PART_RECEIPTS))
    return State(state.plan, Phase.TAIL, tail, given)


def _after_the_tail(platform: Platform, results: Results, plan: Plan, state: State, done: Sequence[Part]) -> State:
    """Compares the log with its head and its checkpoint, and plans the comparisons of everything else."""
    given = parts.load_json(results.load, str(state.given))
    read = [Part.read(part) for part in given["read"]]
    walked, scanned = ([part for part in read if part.kind == kind] for kind in (parts.LOG, parts.SCAN))
    found, index = Found(Audit(log=plan.head), is_broken=plan.is_broken), parts.Index(plan.partitions)
    whole, result = Chain(plan.head.published), found.result

    def gather(of: Iterable[Part]) -> None:
        for header in chain.from_iterable(parts.headers(part, results.load) for part in of):
            if header.part.kind == parts.LOG:
                whole.join(header)
            found.add(header.found)
            index.add(header)

    gather(walked)
    ends = not plan.is_broken and whole.range.size == plan.head.size
    gather(done)
    gather(scanned)
    result.check("I15", "LOG", expected=True, found=ends)
    if whole.gap is not None or (not whole.is_broken and whole.range.size < given["size"]):
        result.check("I15", f"LOG#{whole.range.size}", "a batch", f"a batch at {whole.gap}" if whole.gap else None)
        found.is_broken = True
    _check_archived(platform, plan, result)
    if not found.is_broken:
        _check_checkpoint(platform, plan, result, whole)
    result.check("I10", "FEE# of publications", 0, found.unpaired)
    kinds = [parts.ACCOUNTS, parts.CHANNELS] + ([] if found.is_broken else [parts.AGENTS, parts.FIRSTS])
    planned = [
        Part(
            state.plan,
            kind,
            number,
            plan.partitions,
            first=whole.range.size,
            given=index.keep(kind, number, results.keep),
        )
        for kind in kinds
        for number in range(plan.partitions)
    ]
    if not found.is_broken and found.old_lines_met != found.old_lines_due:
        result.check("I10", "lines", found.old_lines_due, found.old_lines_met)
        planned += [Part(state.plan, parts.LINES, number, plan.parts) for number in range(plan.parts)]
    return State(state.plan, Phase.COMPARE, planned, parts.keep_json(parts.found_json(found), results.keep))


def _after_comparing(results: Results, state: State, done: Sequence[Part]) -> State:
    found = parts.read_found(parts.load_json(results.load, str(state.given)))
    for part in done:
        for header in parts.headers(part, results.load):
            found.add(header.found)
    _check_conservation(found.result)
    return State(state.plan, Phase.DONE, [], parts.keep_json(parts.found_json(found), results.keep))


def _joined(results: Results, plan: Plan, walked: Sequence[Part]) -> Chain:
    whole = Chain(plan.head.published)
    for part in walked:
        for header in parts.headers(part, results.load):
            whole.join(header)
    return whole


def _check_archived(platform: Platform, plan: Plan, result: Audit) -> None:
    """I15: whole batches are archived, and only published ones. That a pointer is true is checked with its batch."""
    head = plan.head
    pointer = f"LOG#{head.archived}"
    at_batch = head.archived in {0, head.size} or pointer in platform.ledger.read([pointer])
    result.check("I15", "LOG", expected=True, found=at_batch and 0 <= head.archived <= head.published)


def _check_checkpoint(platform: Platform, plan: Plan, result: Audit, whole: Chain) -> None:
    """I15: the newest checkpoint has the root of the log's receipts."""
    head = plan.head
    if not head.published:
        return
    try:
        stated = log.verify_checkpoint(platform.tiles.checkpoint(head.published), platform.keys.jwks())
    except (ProofError, BlobMissingError) as exc:
        result.check("I15", f"checkpoint {head.published}", "a valid checkpoint", repr(exc))
    else:
        due = (head.published, whole.root.hex() if whole.root else None)
        result.check("I15", f"checkpoint {head.published}", due, (stated.size, stated.root.hex()))


def _check_conservation(result: Audit) -> None:
    """I1, unless credits moved while they were summed: then each account that moved was compared separately."""
    is_still = not result.moved and result.credited_micro == result.journalled_micro
    if is_still or result.differences:
        result.check("I1", "all", result.deposited_micro - result.withdrawn_micro, result.inside_micro)


def serve(platform: Platform, event: Mapping[str, Any]) -> tuple[dict[str, Any], Audit | None]:
    """The answer to an event of the function, and the audit's result if there is one now.

    The state machine sends `begin`, `step` and `advance`. Any other event asks for a whole audit in this invocation,
    `{"standings": true}` also for all standings. Raises PartsError, PlatformUnavailableError.
    """
    results = platform.audit_results
    match event:
        case {"begin": {"run": str(run), "parts": int(at_least)}}:
            return begin(platform, results, run=run, at_least=at_least).sent(results.keep), None
        case {"step": part}:
            return step(platform, results, Part.read(part)).json(), None
        case {"advance": {"state": str(digest), "results": done}}:
            state = State.received(digest, results.load)
            reached = advance(platform, results, state, [Part.read(part) for part in done])
            if reached.phase != Phase.DONE:
                return reached.sent(results.keep), None
            result = verdict(results, reached)
            lines = report(result)
            shown, left = lines[:AUDIT_REPORT_LINES_MAX], lines[AUDIT_REPORT_LINES_MAX:]
            shown += [f"{len(left)} more lines: the function's log has the differences"] if left else []
            return {"phase": reached.phase, "differences": result.count, "report": shown}, result
        case {"begin": _} | {"step": _} | {"advance": _}:
            msg = "this is not what the state machine sends"
            raise PartsError(msg)
    result = audit(platform)
    answer: dict[str, Any] = {"differences": result.count, "report": report(result)}
    return answer | ({"standings": standings(result)} if event.get("standings") else {}), result


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
    """One step of one part. It keeps only what its later checks need."""

    def __init__(self, platform: Platform, plan: Plan, results: Results, part: Part) -> None:
        self._platform = platform
        self._ledger = platform.ledger
        self._plan = plan
        self._results = results
        self._part = part
        self._context = Context(
            jwks=platform.keys.jwks(),
            platform_account=platform.settings.platform_account,
            work_shards=platform.settings.ledger_shards,
            now_ms=platform.now_ms(),  # of this step: an audit may take longer than the limits that it checks
        )
        self._found = Found()
        self._result = self._found.result
        self._rows = Rows(plan.partitions)
        self._books = Books(plan.recent_ms)
        self._suspects: dict[str, None] = {}
        self._frontier = Frontier(part.first)
        self._standings: dict[str, str] = {}
        self._standing_chars = 0

    def run(self) -> Part:
        """Does the step."""
        self._ledger.forget_archive()
        do = {
            parts.LOG: self._walk_part,
            parts.SCAN: self._scan,
            parts.LINES: self._scan_lines,
            parts.ACCOUNTS: self._check_accounts,
            parts.CHANNELS: self._check_channels,
            parts.AGENTS: self._check_standings,
            parts.FIRSTS: self._check_firsts,
        }
        if self._part.kind not in do:
            msg = f"there are no parts of the kind {self._part.kind!r}"
            raise PartsError(msg)
        return do[self._part.kind]()

    def _keep(self, *, at: Any = None, done: bool) -> Part:  # noqa: ANN401 - each kind of part has its own places
        return parts.keep_step(self._part, self._found, self._rows, self._results.keep, at=at, done=done)

    def _rows_of_part(self) -> Iterator[list[Any]]:
        """The rows of this comparison's partition, from all steps in the order of their parts."""
        return parts.indexed_rows(str(self._part.given), self._results.load, self._results.load_range)

    # The log, in its order.

    def _walk_part(self) -> Part:
        """Walks a part of the log: from the first batch that begins in it to the first one at or after its end."""
        part, found = self._part, self._found
        begin = part.at if part.at is not None else self._first_batch()
        if begin is None:
            return self._keep(done=True)
        self._frontier = Frontier(begin)
        self._walk(part.end, receipts_max=AUDIT_STEP_RECEIPTS_MAX)
        found.walked, found.nodes = (begin, self._frontier.size), self._frontier.nodes
        done = found.is_broken or self._frontier.size >= part.end
        return self._keep(at=self._frontier.size, done=done)

    def _first_batch(self) -> int | None:
        """Where the first batch of this part of the log begins; None if none does.

        A batch has at most as many receipts as a transaction has writes, so one of so many entries has a pointer. If a
        pointer is false or missing, the part before this one does not end where this one begins: the log has a gap.
        """
        first, end = self._part.first, self._part.end
        if not self._part.number:
            return first  # the beginning of the log, or where the walk of its first parts has ended
        window = range(first, min(first + BATCH_GET_ITEMS_MAX, end))
        found = self._ledger.read(f"LOG#{at}" for at in window)
        begin = next((at for at in window if f"LOG#{at}" in found), None)
        if begin is None and window.stop < end:
            self._result.check("I15", f"LOG#{first}", f"a batch within {BATCH_GET_ITEMS_MAX} entries", None)
            self._found.is_broken = True
        return begin

    def _walk(self, size: int, *, receipts_max: int | None = None) -> None:
        """Walks the log by its pointers, up to a size that the log has reached, or as far as a step may go."""
        begin, at_most = self._frontier.size, size if receipts_max is None else self._frontier.size + receipts_max
        while self._frontier.size < min(size, at_most) and not self._found.is_broken:
            first = self._frontier.size
            if receipts_max is not None and first > begin and not _has_time(self._platform):
                return
            pointer = f"LOG#{first}"
            batch_id = self._ledger.read([pointer]).get(pointer, {}).get("batch")
            batch = self._ledger.read([f"BATCH#{batch_id}"]).get(f"BATCH#{batch_id}")
            if batch is None or invariants.form_error(batch):
                self._result.check("I15", pointer, "a batch", batch_id)
                self._found.is_broken = True
                return
            self._result.check("I15", batch["pk"], first, batch.get("first"))
            self._rows.add(parts.FIRSTS, str(first))
            self._append(batch)

    def _append(self, batch: Values) -> None:
        """Checks a batch that is in the log, adds its receipts to the log's range, and notes their ratings."""
        escrows = self._check_batch(batch)
        receipts = [str(escrows.get(pk, {}).get("receipt", "")) for pk in invariants.escrow_keys(batch)]
        self._check_published(escrows.values())
        for receipt in receipts:
            self._frontier.append(log.leaf_hash(receipt.encode()))
            if self._frontier.size == self._plan.head.published:
                self._found.published = self._frontier.nodes
        ratings: defaultdict[str, list[Rating]] = defaultdict(list)
        try:
            for receipt in receipts:
                rating = reputation.rating(read_claims(receipt))
                ratings[rating.agent].append(rating)
        except (KeyError, TypeError, ValueError, jwt.InvalidTokenError) as exc:
            self._result.check("I16", batch["pk"], "receipts", repr(exc))
            return
        for agent_id, new in ratings.items():
            if self._part.kind == parts.LOG:
                for rating in new:
                    self._rows.add(parts.AGENTS, agent_id, *_row(rating))
            elif parts.partition_of(agent_id, self._plan.partitions) == self._part.number:
                self._fold(agent_id, new)

    def _check_batch(self, batch: Values) -> dict[str, dict[str, Any]]:
        """Checks a batch against its escrows and the lines that credited it. Returns its escrows.

        If something differs, reads it again: the first reads may have been before and after a concurrent transaction.
        """
        for _ in range(2):
            escrows, tombstones = self._ledger.read_with_tombstones(invariants.escrow_keys(batch))
            lines = self._ledger.read(invariants.batch_line_keys(batch, escrows, self._context))
            differences = invariants.check_credited(batch, escrows, lines, self._context)
            if not differences:
                break
        self._result.add(differences)
        self._check_tombstones(tombstones, escrows)
        head = self._plan.head
        if 0 <= batch.get("first", head.size) < head.archived:
            self._result.check("I15", batch["pk"], sorted(invariants.escrow_keys(batch)), sorted(tombstones))
        self._found.old_lines_due += sum(not self._is_recent(line) for line in lines.values())
        return escrows

    def _check_tombstones(self, tombstones: dict[str, dict[str, Any]], whole: dict[str, dict[str, Any]]) -> None:
        """Checks archived escrows as the scan checks others, and that their tombstones have the same."""
        sound = [values for pk in tombstones if (values := whole.get(pk)) and invariants.form_error(values) is None]
        others = self._ledger.read(pk for values in sound for pk in invariants.referenced_keys(values, self._context))
        for pk, tombstone in tombstones.items():
            self._result.add(invariants.check_archived(tombstone, whole.get(pk), others, self._context))

    def _check_published(self, escrows: Iterable[Values]) -> None:
        """I8: the first batch that no checkpoint covers must not be old."""
        if self._frontier.size != self._plan.head.published:
            return
        swept_ms = min(
            (
                escrow["swept_ms"]
                for escrow in escrows
                if invariants.form_error(escrow) is None and invariants.is_swept(escrow)
            ),
            default=None,
        )
        # The plan has the time at which the published size was read.
        if swept_ms is not None and (age_ms := self._plan.now_ms - swept_ms) > UNPUBLISHED_MS_MAX:
            self._result.check("I8", "LOG", f"published within {UNPUBLISHED_MS_MAX} ms", f"not after {age_ms} ms")

    # The table, in no order.

    def _scan(self) -> Part:
        """Reads some pages of a segment of the table, and then those of its items again that differed."""
        for items in self._pages():
            for first in range(0, len(items), BATCH_GET_ITEMS_MAX):
                self._check_items(items[first : first + BATCH_GET_ITEMS_MAX])
                if self._must_stop_within(items, first + BATCH_GET_ITEMS_MAX):
                    break
        self._check_again()
        for account in self._books.gaps.keys() | self._books.final.keys() | self._books.held.keys():
            gap, final = self._books.gaps[account], self._books.final[account]
            self._rows.add(
                parts.ACCOUNTS,
                account,
                (gap.available_micro, gap.charged_micro),
                (final.available_micro, final.charged_micro),
                sorted(self._books.held.get(account, ())),
            )
        for channel_id, numbers in self._books.channels.items():
            self._rows.add(parts.CHANNELS, channel_id, astuple(numbers))
        return self._keep(at=self._next, done=self._next is None)

    def _pages(self) -> Iterator[list[dict[str, Any]]]:
        """The items of a segment, from where the part continues, as far as a step may go. Sets `_next`."""
        self._next, count = self._part.at, 0
        while True:
            items, self._next = self._ledger.scan_page(self._part.number, self._part.count, after=self._next)
            yield items
            count += len(items)
            if self._next is None or count >= AUDIT_STEP_ITEMS_MAX or not _has_time(self._platform):
                return

    def _must_stop_within(self, items: Sequence[dict[str, Any]], checked: int) -> bool:
        """Whether no time is left for the rest of a page. The next step then begins after the last item checked."""
        if checked >= len(items) or _has_time(self._platform):
            return False
        self._next = {"pk": {"S": items[checked - 1]["pk"]}}
        return True

    def _check_items(self, items: Sequence[dict[str, Any]]) -> None:
        sound = [values for values in items if invariants.form_error(values) is None]
        for values in sound:
            self._books.post(self._result, values)
            self._note(values)
        others = self._others(sound)
        new: dict[str, dict[str, Any]] = {}
        for values in items:
            if invariants.check(values, others, self._context):
                self._suspect(values["pk"])
            elif invariants.item_type(values) == "BATCH" and "first" not in values:
                self._check_batch(values)
            elif invariants.is_batch_line(values) and self._is_recent(values):
                self._check_line(values)
            elif invariants.is_archived(values) and self._is_newly_archived(values, others):
                new[values["pk"]] = values
        if new:
            self._check_tombstones(new, self._ledger.read(new))

    def _others(self, sound: Sequence[Values]) -> dict[str, dict[str, Any]]:
        """What items refer to. Of a task, its further numbers need only what a tombstone has too: no read of S3."""
        marks, rest = list[str](), list[str]()
        for values in sound:
            (marks if invariants.is_mark(values) else rest).extend(invariants.referenced_keys(values, self._context))
        return self._ledger.stored(marks) | self._ledger.read(rest)

    def _is_newly_archived(self, values: Values, others: Mapping[str, Values]) -> bool:
        """Whether a tombstone may be newer than the walk, which then saw the whole escrow without checking it."""
        return bool(others[f"BATCH#{values['batch']}"]["first"] + values["place"] >= self._plan.head.archived)

    def _note(self, values: Values) -> None:
        match invariants.item_type(values):
            case "BATCH" if "first" in values:
                self._rows.add(parts.FIRSTS, str(values["first"]))
            case "LOG#" if invariants.item_id(values).isdecimal():
                self._rows.add(parts.FIRSTS, invariants.item_id(values))
            case "CHARGE" | "FEE" if invariants.is_publication(values) and not self._is_recent(values):
                self._found.unpaired += 1 if invariants.item_type(values) == "FEE" else -bool(values["amount"])
            case "OUT" if values.get("payout", "requested") == "requested":
                self._result.payouts_waiting += 1
                self._result.waiting_micro -= values["amount"]
                age_ms = self._context.now_ms - values["at"]
                self._result.oldest_payout_age_ms = max(self._result.oldest_payout_age_ms, age_ms)
            case _ if invariants.is_batch_line(values):
                self._found.old_lines_met += not self._is_recent(values)
            case "REP":
                self._rows.add(parts.AGENTS, invariants.item_id(values))

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

    def _scan_lines(self) -> Part:
        """I10: names the old lines of a segment without a batch. Their number is wrong, and they never change."""
        for items in self._pages():
            for values in items:
                if (
                    invariants.is_batch_line(values)
                    and invariants.form_error(values) is None
                    and not self._is_recent(values)
                ):
                    self._check_line(values)
        return self._keep(at=self._next, done=self._next is None)

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
            others = self._others([values] if invariants.form_error(values) is None else [])
            self._result.add(invariants.check(values, others, self._context))
            if invariants.is_archived(values):  # perhaps since the scan
                self._check_tombstones({pk: values}, self._ledger.read([pk]))

    # What the log is compared with.

    def _check_standings(self) -> Part:
        """I16: each stored standing is the fold of the agent's receipts in the log, read at the same log size.

        The receipts are those of the walk; those that were logged after it are read now.
        """
        scanned = self._fold_rows()
        kept, checked, after = self._standings, set[str](), str(self._part.at or "")
        left: list[str] = []
        while agents := [agent_id for agent_id in sorted((kept.keys() | scanned) - checked) if agent_id > after][
            :AUDIT_STANDINGS_MAX
        ]:
            head, found = self._ledger.standings(agents)
            self._walk(head["size"] if invariants.form_error(head) is None else self._frontier.size)
            checked.update(agents)
            if self._found.is_broken:
                break
            for agent_id, values in zip(agents, found, strict=True):
                self._result.check("I16", f"REP#{agent_id}", kept.get(agent_id), values.get("standing"))
            if not _has_time(self._platform):
                after = agents[-1]
                left = [agent_id for agent_id in kept.keys() | scanned if agent_id > after]
                break
        if self._plan.standings:
            self._result.standings |= kept
        return self._keep(at=after, done=not left)

    def _fold_rows(self) -> set[str]:
        """Folds the ratings of this partition in the log's order. Returns the agents whose standing the scan found."""
        scanned: set[str] = set()
        waiting: defaultdict[str, list[Rating]] = defaultdict(list)
        for count, (agent_id, *row) in enumerate(self._rows_of_part(), 1):
            if row:
                waiting[agent_id].append(_rating(agent_id, row))
            else:
                scanned.add(agent_id)
            if count % _FOLDED_AT_ONCE_MAX == 0:
                self._fold_all(waiting)
                self._check_size(len(scanned) + self._standing_chars // _ENTRY_CHARS)
        self._fold_all(waiting)
        self._check_size(len(scanned) + self._standing_chars // _ENTRY_CHARS)
        return scanned

    def _fold_all(self, waiting: defaultdict[str, list[Rating]]) -> None:
        for agent_id, new in waiting.items():
            self._fold(agent_id, new)
        waiting.clear()

    def _fold(self, agent_id: str, new: Iterable[Rating]) -> None:
        kept = self._standings
        before = kept.get(agent_id, "")
        kept[agent_id] = reputation.serialise(reputation.fold(reputation.parse(before) if before else Standing(), new))
        self._standing_chars += len(kept[agent_id]) - len(before)

    def _check_firsts(self) -> Part:
        """I15: the log has each batch that the scan found. The walk ended at a size that was read after the scan."""
        walked = array("Q")
        for first, kind in self._rows_of_part():
            if kind == parts.LOG:
                walked.append(int(first))
                self._check_size(len(walked))
        for first, kind in self._rows_of_part():
            at = bisect_left(walked, int(first))
            if kind != parts.LOG and not (at < len(walked) and walked[at] == int(first)):
                self._result.check("I15", f"LOG#{first}", f"no batch outside the log of {self._part.first}", int(first))
        return self._keep(done=True)

    def _check_size(self, entries: int) -> None:
        """Raises PartsError if this partition has more entries than a comparison may keep in memory."""
        if entries > AUDIT_COMPARED_MAX:
            part = self._part
            msg = f"{part.kind} {part.number} of {part.count} has more than {AUDIT_COMPARED_MAX} entries"
            raise PartsError(msg)

    # Accounts.

    def _check_accounts(self) -> Part:
        """I10 and I11: an account's credits are the sum of its movements. Reads each account that differs again."""
        books, entries = self._books, 0
        for account, gap, final, held in self._rows_of_part():
            books.gaps[account] += Sums(*gap)
            books.final[account] += Sums(*final)
            if held:
                books.held[account].update(held)
            entries += len(held)
            self._check_size(len(books.gaps) + entries)
        differing = sorted(account for account, gap in books.gaps.items() if gap != Sums())
        return self._each([account for account in differing if account > str(self._part.at or "")], self._check_account)

    def _check_account(self, account: str) -> None:
        self._result.moved += 1
        self._result.add(self._compare(account))

    def _each(self, keys: Sequence[str], check: Callable[[str], None]) -> Part:
        """Checks keys in their order, as far as the time allows. The next step continues after the last one."""
        for key in keys:
            check(key)
            if not _has_time(self._platform):
                return self._keep(at=key, done=key == keys[-1])
        return self._keep(done=True)

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

    def _check_channels(self) -> Part:
        """I14: each channel is the sum of its tickets and top-ups. Reads those of a channel that differs again."""
        for channel_id, numbers in self._rows_of_part():
            self._books.channels[channel_id] += Numbers(*numbers)
            self._check_size(len(self._books.channels))
        after = str(self._part.at or "")
        channel_ids = iter(sorted(channel_id for channel_id in self._books.channels if channel_id > after))
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
                if not _has_time(self._platform):
                    return self._keep(at=channel_id, done=False)
        return self._keep(done=True)

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


def _row(rating: Rating) -> tuple[object, ...]:
    """A rating as a row of its agent."""
    _, user, owner, outcome, fault, *numbers = astuple(rating)
    return user, owner, outcome.value, fault.value, *numbers


def _rating(agent_id: str, row: Sequence[Any]) -> Rating:
    user, owner, outcome, fault, *numbers = row
    return Rating(agent_id, user, owner, Outcome(outcome), Fault(fault), *numbers)


def _pages(keys: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while page := list(islice(rest, BATCH_GET_ITEMS_MAX)):
        yield page
