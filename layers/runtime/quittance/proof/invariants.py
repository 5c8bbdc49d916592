"""The rules of the audit: what must be true of a ledger item alone, and together with the items that it names. Pure.

I1 conservation, I2 no debt, I3 split, I4 fee, I6 states, I8 ages, I9 identity, I10 and I11 balances, I12 receipts,
I14 channels, I15 the log, I16 standings. `form` covers everything else: an attribute that is missing, unknown or of a
wrong type, or that differs from its first write.

An item is a mapping of attribute names to strings, integers and bytes. The attributes of every item type are declared
here, so an attribute that the audit does not know is a difference. The audit shares with the code that it audits only
the items, the names that are digests (`escrow_id`, `ticket_escrow_id`, `tariff_sha256`), the checks of receipts and
tickets, and `seal.py`. Markers in names are repeated here on purpose. `usecases/audit.py` reads the items, and
`tests/usecases/test_mutations.py` shows that the audit notices a change of every attribute.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from quittance.ledger import escrow as escrows
from quittance.ledger.channels import ChannelState, ticket_escrow_id
from quittance.ledger.escrow import State
from quittance.ledger.pricing import tariff_sha256
from quittance.limits import (
    AUDIT_DIFFERENCES_SHOWN_MAX,
    BALANCE_SHARDS,
    BPS,
    EXPIRY_REFUND_MS_MAX,
    OUTPUT_INLINE_BYTES_MAX,
    PARTY_SHARDS,
    STDERR_BYTES_MAX,
    TICKET_NUMBER_MAX,
    TICKETS_PER_TASK_MAX,
    UNCLOSED_MS_MAX,
    UNLOGGED_MS_MAX,
    UNSWEPT_MS_MAX,
)
from quittance.proof import ticket as tickets
from quittance.proof.log import LogHead
from quittance.proof.receipt import verify
from quittance.proof.seal import SEAL, UNSEALED, WITH_PARTY, is_sealed
from quittance.proof.statement import ProofError
from quittance.proof.ticket import TicketClaim
from quittance.run import Fault, Outcome, Side

_JUDGE_MARK: Final = ":judge-"
_BOND: Final = "bond "  # the prefix of the account of an owner's bond
_CHANNEL: Final = "channel "  # the prefix under which a channel's top-ups are in the index `statement`
_NOTHING_SHA256: Final = hashlib.sha256(b"").hexdigest()

Values = Mapping[str, Any]
"""The attributes of an item."""


# The attributes of each item type.


@dataclass(frozen=True, slots=True)
class ItemForm:
    """The attributes that an item type has, and those that it may have, with their types."""

    required: Mapping[str, type] = field(default_factory=dict)
    optional: Mapping[str, type] = field(default_factory=dict)

    def __or__(self, other: "ItemForm") -> "ItemForm":
        return ItemForm({**self.required, **other.required}, {**self.optional, **other.optional})

    def error(self, values: Values) -> str | None:
        """The first error in an item's attributes, or None."""
        known = {**self.optional, **self.required}
        for name in sorted(values.keys() | self.required.keys()):
            if name not in values:
                return f"{name} is missing"
            if name not in known:
                return f"{name} is unknown"
            if not isinstance(values[name], known[name]) or isinstance(values[name], bool):
                return f"{name} is not of the type {known[name].__name__}"
        return None


def _form(required: str = "", optional: str = "") -> ItemForm:
    """A form in short notation: names separated by spaces; `:int` and `:bytes` mark attributes that are no strings."""

    def parse(words: str) -> dict[str, type]:
        types = {"": str, "int": int, "bytes": bytes}
        return {name: types[type_] for name, _, type_ in (word.partition(":") for word in words.split())}

    return ItemForm(parse(required), parse(optional))


_SEALED: Final = _form("pk", f"{SEAL}:bytes")
_TASK: Final = _SEALED | _form(
    """state at:int task_id request_sha256 agent_id owner module_sha256 input_sha256 tariff budget:int
    fee_bps:int timeout_ms:int runner fence:int lease_ms:int expires_ms:int""",
    """agent_rules_sha256 task_rules_sha256 judges webhook compute_prices own_limits task_judge_bps:int seed
    keep_input:int share party""",
)
_ALWAYS_SEALED: Final = _form(f"pk {SEAL}:bytes")  # items that have had a seal from the first
_OF_ACCOUNT: Final = _form("account")
_OF_TICKET: Final = _ALWAYS_SEALED | _form("payer channel number:int tickets:int")
_ENDED: Final = _form(
    "paid:int fee:int refunded:int outcome message reputation_tenths:int settled_ms:int receipt",
    """output:bytes output_sha256 output_bytes:int log:bytes log_sha256 log_bytes:int
    stdin:bytes stdin_sha256 stdin_bytes:int
    fault compute:int charge:int judging:int task_judging:int""",
)
_QUEUED: Final = _form("work work_at:int")
_CREDITED: Final = _form("swept_ms:int batch place:int")
_TOMBSTONE: Final = _CREDITED | _form(
    """pk state at:int task_id agent_id budget:int paid:int fee:int refunded:int archived digest:bytes""",
    "task_judging:int",
)
_NUMBER: Final = _ALWAYS_SEALED | _form("channel number:int")
_TERMS: Final = _ALWAYS_SEALED | _form(
    "account at:int salt key ticket_value:int tickets:int expires_ms:int", "agents max_per_task:int"
)
_OPEN: Final = _TERMS | _form("state deposit:int spent:int swept:int granted:int", "contested:int")
_CLOSING: Final = _OPEN | _form("close_ms:int counted:int used:int")
_BATCH: Final = _SEALED | _form("escrows", "at:int agent_id")
_MOVEMENT: Final = _SEALED | _form("account at:int amount:int")
_BATCH_LINE: Final = _MOVEMENT | _form("", "tasks:int agent_id")
_DECIDED: Final = _form("payout decided_ms:int decided_by")
_BATCH_LINES: Final = frozenset({"EARN", "FEE", "JUDGING", "CHARGE"})  # the lines with which the sweep credits a batch
_FORMS: Final[Mapping[tuple[str, str], ItemForm]] = {
    ("ESC", "held"): _TASK | _OF_ACCOUNT | _QUEUED,
    ("ESC", "ended"): _TASK | _OF_ACCOUNT | _ENDED | _QUEUED,
    ("ESC", "swept"): _TASK | _OF_ACCOUNT | _ENDED | _CREDITED,
    ("ESC", "held by a ticket"): _TASK | _OF_TICKET | _QUEUED | _form("ticket"),
    ("ESC", "held for a judge"): _TASK | _OF_TICKET | _QUEUED,
    ("ESC", "ended by a ticket"): _TASK | _OF_TICKET | _ENDED | _QUEUED,
    ("ESC", "swept by a ticket"): _TASK | _OF_TICKET | _ENDED | _CREDITED,
    ("ESC", "archived"): _TOMBSTONE | _OF_ACCOUNT,
    ("ESC", "archived by a ticket"): _TOMBSTONE | _form("channel number:int tickets:int"),
    ("ESC", "part"): _NUMBER | _form("part_of"),
    ("ESC", "void"): _NUMBER | _form("void_ms:int"),
    ("CHAN", ChannelState.OPEN): _OPEN | _QUEUED,
    ("CHAN", ChannelState.CLOSING): _CLOSING | _QUEUED,
    ("CHAN", ChannelState.CLOSED): _CLOSING | _form("returned:int closed_ms:int"),
    ("TOPUP", ""): _ALWAYS_SEALED | _form("channel account at:int amount:int"),
    ("ACCT", ""): _form("pk available:int", "charged:int"),
    ("IN", ""): _MOVEMENT | _form("", "depositor"),
    ("OUT", "unrecorded"): _MOVEMENT,
    ("OUT", "requested"): _MOVEMENT | _QUEUED | _form("payout"),
    ("OUT", "paid"): _MOVEMENT | _DECIDED,
    ("OUT", "failed"): _MOVEMENT | _DECIDED,
    ("BACK", ""): _MOVEMENT,
    ("SLOT", ""): _form("pk", "holder lease_ms:int"),
    ("CONTEST", ""): _form("pk at:int contests:int"),
    ("BOND", ""): _MOVEMENT,
    ("EARN", ""): _BATCH_LINE,
    ("FEE", ""): _BATCH_LINE,
    ("JUDGING", ""): _BATCH_LINE,
    ("CHARGE", ""): _BATCH_LINE | _form("due:int"),
    ("BATCH", "credited"): _BATCH | _QUEUED,
    ("BATCH", "logged"): _BATCH | _form("first:int"),
    ("LOG", ""): _form("pk size:int published:int", "archived_size:int"),
    ("LOG#", ""): _form("pk batch"),
    ("REP", ""): _form("pk standing"),
}


def is_held(values: Values) -> bool:
    """Whether an escrow still holds its budget."""
    return bool(values.get("state") == State.FUNDED)


def is_swept(values: Values) -> bool:
    """Whether the sweep has credited an escrow."""
    return "swept_ms" in values


def is_archived(values: Values) -> bool:
    """Whether an item is the tombstone of an archived escrow."""
    return "archived" in values


def is_mark(values: Values) -> bool:
    """Whether an item only marks a channel's number: as a further one of a task, or as taken out of use."""
    return "part_of" in values or "void_ms" in values


def is_by_ticket(values: Values) -> bool:
    """Whether an escrow is paid by a ticket of a channel, not by an account. So is the task's own judge."""
    return "channel" in values


def payer(values: Values) -> str:
    """The account whose credits an escrow holds, itself or in a channel."""
    return str(values["payer"] if is_by_ticket(values) else values["account"])


def item_type(values: Values) -> str:
    """The type of an item: the prefix of its key."""
    prefix, _, rest = str(values.get("pk", "")).partition("#")
    return "LOG#" if prefix == "LOG" and rest else prefix


def item_id(values: Values) -> str:
    """An item's key without its type."""
    return str(values.get("pk", "")).partition("#")[2]


def form_error(values: Values) -> str | None:
    """The first error in the attributes of an item, or None."""
    phase = _phase(values)
    form = _FORMS.get((item_type(values), phase))
    if form is None:
        return f"there is no item type {item_type(values)!r}" + (f" that is {phase!r}" if phase else "")
    return form.error(values)


def _phase(values: Values) -> str:
    """The phase that an item is in, which decides which attributes it has."""
    match item_type(values):
        case "ESC":
            return _phase_of_escrow(values)
        case "CHAN":
            return str(values.get("state"))
        case "OUT":
            return str(values.get("payout", "unrecorded"))
        case "BATCH":
            return "logged" if "first" in values else "credited"
    return ""


def _phase_of_escrow(values: Values) -> str:
    if is_mark(values):
        return "part" if "part_of" in values else "void"
    phase = "held" if is_held(values) else "swept" if is_swept(values) else "ended"
    phase = "archived" if is_archived(values) else phase
    if not is_by_ticket(values):
        return phase
    return "held for a judge" if phase == "held" and values.get("tickets") == 0 else f"{phase} by a ticket"


# The result.


@dataclass(frozen=True, slots=True)
class Difference:
    """A violation: which invariant, at which item or account, what was expected and what was found."""

    invariant: str
    at: str
    expected: object
    found: object


@dataclass(slots=True)
class Audit:
    """The sums of the conservation equation, the numbers of items, and the differences.

    At most AUDIT_DIFFERENCES_SHOWN_MAX differences are named; `unnamed` counts the others. `moved` counts the accounts
    that changed while the table was read and were then compared one by one, `unsettled` those that kept changing.
    Withdrawals that were returned because they could not be paid out are not counted as withdrawn. `waiting_micro` is
    the part that still waits for its payout. `in_channels_micro` is what channels still have: their deposits without
    what settled tasks cost and what was returned. `moved_channels` and `unsettled_channels` count channels as `moved`
    and `unsettled` count accounts. `standings` are folded from the agents' receipts in the log's order, as
    text.
    """

    escrows: int = 0
    channels: int = 0
    deposited_micro: int = 0
    withdrawn_micro: int = 0
    payouts_waiting: int = 0
    waiting_micro: int = 0
    oldest_payout_age_ms: int = 0
    available_micro: int = 0
    held_micro: int = 0
    in_channels_micro: int = 0
    uncredited_micro: int = 0
    credited_micro: int = 0
    journalled_micro: int = 0
    charged_micro: int = 0
    written_off_micro: int = 0
    differences: list[Difference] = field(default_factory=list)
    unnamed: int = 0
    moved: int = 0
    unsettled: int = 0
    moved_channels: int = 0
    unsettled_channels: int = 0
    log: LogHead = field(default_factory=LogHead)
    standings: dict[str, str] = field(default_factory=dict)

    @property
    def inside_micro(self) -> int:
        """All credits that the ledger has: what was deposited and not withdrawn (I1)."""
        return self.available_micro + self.held_micro + self.uncredited_micro + self.in_channels_micro

    @property
    def count(self) -> int:
        """How many differences there are."""
        return len(self.differences) + self.unnamed

    def add(self, differences: Iterable[Difference]) -> None:
        """Records differences."""
        for difference in differences:
            if len(self.differences) < AUDIT_DIFFERENCES_SHOWN_MAX:
                self.differences.append(difference)
            else:
                self.unnamed += 1

    def check(self, invariant: str, at: str, expected: object, found: object) -> None:
        """Records a difference unless both sides are equal."""
        self.add(_unless_equal(invariant, at, expected, found))


# Money.


@dataclass(frozen=True, slots=True)
class Sums:
    """An account's available credits, and what was charged to it as a bond."""

    available_micro: int = 0
    charged_micro: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.available_micro + other.available_micro, self.charged_micro + other.charged_micro)

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(self.available_micro - other.available_micro, self.charged_micro - other.charged_micro)


@dataclass(slots=True)
class Numbers:
    """The sums over a channel's numbers and top-ups.

    `spent_micro` is what swept tasks cost, `swept` how many numbers they took, `swept_ms` when the last of them was
    swept. `used` counts the numbers of all tasks, `void` those that closing took out of use.
    """

    spent_micro: int = 0
    swept: int = 0
    used: int = 0
    void: int = 0
    swept_ms: int = 0
    topped_micro: int = 0

    def add(self, values: Values) -> None:
        """Adds an escrow that a ticket pays, a mark or a top-up without form error."""
        if item_type(values) == "TOPUP":
            self.topped_micro += values["amount"]
        elif "void_ms" in values:
            self.void += 1
        elif is_mark(values):
            self.used += 1
        elif values["tickets"]:  # a task; its own judge is part of what it cost
            self.used += 1
            if is_swept(values):
                self.spent_micro += _drawn_micro(values)
                self.swept += values["tickets"]
                self.swept_ms = max(self.swept_ms, values["swept_ms"])

    def __add__(self, other: "Numbers") -> "Numbers":
        return Numbers(
            self.spent_micro + other.spent_micro,
            self.swept + other.swept,
            self.used + other.used,
            self.void + other.void,
            max(self.swept_ms, other.swept_ms),
            self.topped_micro + other.topped_micro,
        )


@dataclass(slots=True)
class Books:
    """What each account and each channel should have, and what it has.

    The size grows with accounts, channels and open tasks, not with escrows or tickets.

    Items that are older than `recent_ms` and final never change again. All others may change while the table is read,
    so they can be summed again for one account: lines since `recent_ms` by the index, and older escrows in `held`.
    """

    recent_ms: int
    final: defaultdict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    gaps: defaultdict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    held: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    channels: defaultdict[str, Numbers] = field(default_factory=lambda: defaultdict(Numbers))

    def post(self, result: Audit, values: Values) -> None:
        """Adds an item that has no form error."""
        match item_type(values):
            case "ACCT" if is_balance_shard(values):
                result.available_micro += values["available"]
                self.gaps[account(values)] += shard_sums(values)
            case "ESC" | "CHAN" | "TOPUP":
                self._post_task(result, values)
            case "IN":
                self._move(values)
                result.deposited_micro += values["amount"]
            case "OUT" | "BACK":
                self._move(values)
                result.withdrawn_micro -= values["amount"]
            case "BOND":
                self._move(values)
            case other if other in _BATCH_LINES:
                self._move(values)
                result.journalled_micro += values["amount"]
                if other == "CHARGE":
                    result.charged_micro -= values["amount"]
                    result.written_off_micro += values["due"] + values["amount"]

    def _post_task(self, result: Audit, values: Values) -> None:
        """Adds an escrow, or what belongs to a channel."""
        if item_type(values) == "CHAN":
            result.channels += 1
            result.in_channels_micro -= net_change(values).available_micro
            self.channels[item_id(values)] += Numbers()
            self._move(values)
        elif item_type(values) == "TOPUP":
            self.channels[account(values)].add(values)
        elif is_by_ticket(values):
            self.channels[values["channel"]].add(values)
        else:
            self._move(values)
        if item_type(values) == "ESC" and not is_mark(values):
            _post_escrow(result, values)

    def _move(self, values: Values) -> None:
        self.gaps[values["account"]] -= net_change(values)
        if values["at"] >= self.recent_ms:
            return
        if is_held(values) or (item_type(values) == "CHAN" and values["state"] != ChannelState.CLOSED):
            self.held[values["account"]].add(values["pk"])
        else:
            self.final[values["account"]] += net_change(values)


def shard_sums(shard: Values) -> Sums:
    """The available credits of a balance shard without form error, and what it records as charged."""
    return Sums(shard["available"], shard.get("charged", 0))


def account(values: Values) -> str:
    """The account that an item's key names."""
    return item_id(values).partition("#")[0]


def is_balance_shard(values: Values) -> bool:
    """Whether a balance is in one of the shards that the ledger reads."""
    _, separator, shard = item_id(values).partition("#")
    return not separator or shard in {str(number) for number in range(1, BALANCE_SHARDS)}


def is_batch_line(values: Values) -> bool:
    """Whether an item is one of the lines with which the sweep credits a batch."""
    return item_type(values) in _BATCH_LINES and not is_publication(values)


def net_change(values: Values) -> Sums:
    """By how much a movement, an account's escrow or a channel has changed its account."""
    if item_type(values) == "ESC":
        return Sums(values.get("refunded", 0) - values["budget"])
    if item_type(values) == "CHAN":
        return Sums(values.get("returned", 0) - values["deposit"])
    return Sums(values["amount"], -values["amount"] if item_type(values) == "CHARGE" else 0)


def _post_escrow(result: Audit, values: Values) -> None:
    result.escrows += 1
    if is_by_ticket(values):  # its channel has the budget, and what of it is not used
        result.in_channels_micro -= 0 if is_held(values) else used_micro(values)
    if is_held(values):
        result.held_micro += 0 if is_by_ticket(values) else values["budget"]
    elif is_swept(values):
        result.credited_micro += used_micro(values)
    else:
        result.uncredited_micro += used_micro(values)


def used_micro(values: Values) -> int:
    """The part of a settled escrow's budget that does not go back to its payer."""
    return int(values["paid"]) + int(values["fee"])


def _drawn_micro(values: Values) -> int:
    """What a settled task took from its channel, its own judge included."""
    return int(values["budget"]) - int(values["refunded"]) + int(values.get("task_judging", 0))


# One item, with the items that it names.


@dataclass(frozen=True, slots=True)
class Context:
    """What the rules need besides items."""

    jwks: Mapping[str, Any]
    platform_account: str
    work_shards: int
    now_ms: int


def referenced_keys(values: Values, context: Context) -> list[str]:
    """The keys of the items that are needed to check an item without form error."""
    keys: list[str] = []
    match item_type(values):
        case "ESC":
            keys = _keys_of_mark(values) if is_mark(values) else _keys_of_escrow(values)
        case "TOPUP":
            keys = [f"CHAN#{account(values)}"]
        case "BOND":
            keys = [_bond_counterpart(values)]
        case "OUT":
            keys = ["BACK#" + item_id(values)]
        case "BACK":
            keys = ["OUT#" + item_id(values)]
        case "CHARGE" if is_publication(values):
            keys = [f"FEE#{context.platform_account}#{reference(values)}"]
        case "BATCH" if "first" in values:
            keys = [f"LOG#{values['first']}"]
        case "LOG#":
            keys = [f"BATCH#{values['batch']}"]
    return keys


def _keys_of_escrow(values: Values) -> list[str]:
    keys = [f"BATCH#{values['batch']}"] if is_swept(values) else []
    if is_archived(values):
        return keys
    keys += [f"ESC#{judge.escrow_id}" for judge in _judges(values) or ()]
    if is_by_ticket(values):
        keys += [f"CHAN#{values['channel']}", *number_keys(values["channel"], _beside(values))]
    return keys


def _keys_of_mark(values: Values) -> list[str]:
    return [f"CHAN#{values['channel']}"] + ([f"ESC#{values['part_of']}"] if "part_of" in values else [])


def check(values: Values, others: Mapping[str, Values], context: Context) -> list[Difference]:
    """The differences of an item, given the items that it names."""
    at = str(values["pk"])
    if wrong := form_error(values):
        return [Difference("form", at, "the attributes of its type", wrong)]
    found = list(_check_seal(values))
    match item_type(values):
        case "ESC" | "CHAN" | "TOPUP":
            found += _check_task(values, others, context)
        case "ACCT":
            found += _unless_equal("I2", at, expected=True, found=values["available"] >= 0)
            found += _unless_equal("I2", at, expected=_SHARD, found=_shard_name(values))
        case "IN" | "OUT" | "BACK" as sign:
            found += _check_movement(values)
            found += _unless_equal("I2", at, expected=True, found=(values["amount"] > 0) == (sign != "OUT"))
            found += _check_payout(values, others)
        case "BOND":
            other = others.get(_bond_counterpart(values), {})
            due = (-values["amount"], values["at"])
            found += _unless_equal("I10", at, due, (other.get("amount"), other.get("at")))
            found += _check_movement(values)
        case other if other in _BATCH_LINES:
            found += _check_movement(values)
            if is_publication(values):
                found += _check_publication(values, others, context)
            amount = values["amount"]
            right = -values["due"] <= amount <= 0 if other == "CHARGE" else amount > 0
            found += _unless_equal("I2", at, expected=True, found=right)
        case "BATCH":
            found += _check_batch(values, others, context)
        case "LOG#":
            batch = others.get(f"BATCH#{values['batch']}", {})
            found += _unless_equal("I15", at, item_id(values), str(batch.get("first")))
    return found


def _check_task(values: Values, others: Mapping[str, Values], context: Context) -> Iterator[Difference]:
    """An escrow, or what belongs to a channel."""
    if item_type(values) == "CHAN":
        return _check_channel(values, context)
    if item_type(values) == "TOPUP":
        return _check_topup(values, others)
    if is_archived(values):
        return _check_tombstone(values, others)
    return _check_mark(values, others) if is_mark(values) else _check_escrow(values, others, context)


def _shard_name(values: Values) -> str:
    return _SHARD if is_balance_shard(values) else "credits where the ledger never reads them"


_SHARD: Final = "a balance shard of the account"


def _check_seal(values: Values) -> Iterator[Difference]:
    """Attributes that are written once stay as they were written. Items that are older than seals have none."""
    if SEAL in values and not _knows_party(values):
        yield from _unless_equal("form", values["pk"], expected=True, found=is_sealed(_written_first(values)))


def _knows_party(values: Values) -> bool:
    """Whether an item has the seal of an escrow that was stored by code that knew `party`."""
    is_escrow = item_type(values) == "ESC" and not is_mark(values)
    return is_escrow and SEAL in values and is_sealed(_written_first(values), beside=WITH_PARTY)


def _written_first(values: Values) -> Values:
    """The attributes that an item's seal covers, and the seal."""
    whole = ItemForm(dict.fromkeys(values, str))
    first = whole if is_mark(values) else _WRITTEN_FIRST.get(item_type(values), whole)
    names = (first.required.keys() | first.optional.keys()) - UNSEALED
    if item_type(values) == "ESC" and not is_mark(values) and is_judge_escrow(values):
        names -= {"input_sha256"}
    return {name: value for name, value in values.items() if name in names}


_WRITTEN_FIRST: Final = {
    "ESC": _TASK | _OF_ACCOUNT | _OF_TICKET,
    "BATCH": _BATCH,
    "OUT": _MOVEMENT,
    "CHAN": _TERMS,
}


def _check_movement(values: Values) -> Iterator[Difference]:
    yield from _unless_equal("form", values["pk"], values["account"], account(values))
    if values["amount"] == 0 and not values.get("due"):
        yield Difference("I2", values["pk"], "an amount", 0)


def _check_payout(values: Values, others: Mapping[str, Values]) -> Iterator[Difference]:
    """Only failed payouts were returned, and in full. Payouts that wait are in the queue that the operator reads."""
    at = values["pk"]
    match item_type(values), values.get("payout"):
        case "OUT", "requested":
            due = ("PAYOUT", values["at"])
            yield from _unless_equal("payouts", at, due, (values["work"], values["work_at"]))
            yield from _unless_equal("payouts", at, {}, others.get("BACK#" + item_id(values), {}))
        case "OUT", "failed":
            returned = others.get("BACK#" + item_id(values), {})
            stored = (returned.get("amount"), returned.get("at"))
            yield from _unless_equal("payouts", at, (-values["amount"], values["decided_ms"]), stored)
        case "OUT", _:
            yield from _unless_equal("payouts", at, {}, others.get("BACK#" + item_id(values), {}))
        case "BACK", _:
            yield from _unless_equal("payouts", at, "failed", others.get("OUT#" + item_id(values), {}).get("payout"))


def is_publication(values: Values) -> bool:
    """Whether a charge, or the fee that it pays, is for a publication: such a line counts no tasks."""
    return item_type(values) in {"CHARGE", "FEE"} and "tasks" not in values


def _check_publication(values: Values, others: Mapping[str, Values], context: Context) -> Iterator[Difference]:
    """What a publication took from a bond must go to the platform. What is due is known only to the registry."""
    at, agent = values["pk"], values.get("agent_id", "")
    yield from _unless_equal("I10", at, expected=True, found=bool(agent) and reference(values).startswith(f"{agent}."))
    if item_type(values) == "CHARGE":
        fee = others.get(f"FEE#{context.platform_account}#{reference(values)}", {})
        due = (-values["amount"], values["at"], None) if values["amount"] else (None, None, None)
        yield from _unless_equal("I10", at, due, (fee.get("amount"), fee.get("at"), fee.get("tasks")))
    else:
        yield from _unless_equal("I10", at, context.platform_account, values["account"])


def _bond_counterpart(values: Values) -> str:
    """The key of the opposite line of a transfer between an owner and the owner's bond."""
    mine = account(values)
    other = mine.removeprefix(_BOND) if mine.startswith(_BOND) else _BOND + mine
    return f"BOND#{other}#{reference(values)}"


def is_judge_escrow(values: Values) -> bool:
    """Whether an escrow pays a judge. The input of a judge is known only when it runs."""
    return _JUDGE_MARK in values["task_id"]


def reference(values: Values) -> str:
    """The part of a movement's key after its account."""
    return item_id(values).partition("#")[2]


def _check_escrow(values: Values, others: Mapping[str, Values], context: Context) -> Iterator[Difference]:
    at, eid = values["pk"], item_id(values)
    if is_by_ticket(values):
        yield from _check_ticket(values, others)
    else:
        yield from _unless_equal("I9", at, escrows.escrow_id(values["account"], values["task_id"]), eid)
    yield from _check_judges(values, others)
    if values["fence"] < 1:
        yield Difference("form", at, "a fence from 1 on", values["fence"])
    if is_held(values):
        if is_judge_escrow(values):
            yield from _unless_equal("I12", at, _NOTHING_SHA256, values["input_sha256"])
        yield from _check_queue(values, "OPEN", values["expires_ms"], context)
        yield from _check_party(values, None if is_by_ticket(values) else _held(values))
        late_ms = context.now_ms - values["expires_ms"]
        if late_ms > EXPIRY_REFUND_MS_MAX:
            yield Difference("I8", at, f"refunded within {EXPIRY_REFUND_MS_MAX} ms of its expiry", f"{late_ms} ms late")
        return
    yield from _check_split(values)
    in_time = values["settled_ms"] < values["expires_ms"]
    yield from _unless_equal("I8", at, values["state"] != State.EXPIRED, in_time)
    yield from _check_receipt(values, others, context)
    if is_swept(values):
        yield from _check_place(values, others)
        # A sweep that did not know `party` left it. The index does not list the item any more.
        if "party" in values:
            yield from _check_party(values, _held(values), _earned(values))
    else:
        yield from _check_queue(values, "SETTLED", values["settled_ms"], context)
        yield from _check_party(values, _earned(values))
        yield from _check_age(values, UNSWEPT_MS_MAX, "credited", context)


def _check_place(values: Values, others: Mapping[str, Values]) -> Iterator[Difference]:
    """I15: a swept escrow is in its batch, where it says."""
    at, batch = values["pk"], others.get(f"BATCH#{values['batch']}", {})
    listed = _escrow_ids(batch)
    stored = listed[values["place"]] if 0 <= values["place"] < len(listed) else None
    yield from _unless_equal("I15", at, item_id(values), stored)
    yield from _unless_equal("I15", at, batch.get("at", values["swept_ms"]), values["swept_ms"])


def _check_tombstone(values: Values, others: Mapping[str, Values]) -> Iterator[Difference]:
    """What a tombstone shows by itself: an escrow that has ended, in its place of the log. See `check_archived`."""
    at = values["pk"]
    if not is_by_ticket(values):
        yield from _unless_equal("I9", at, escrows.escrow_id(values["account"], values["task_id"]), item_id(values))
    yield from _unless_equal("I3", at, values["budget"], used_micro(values) + values["refunded"])
    yield from _unless_equal("I6", at, expected=False, found=is_held(values))
    yield from _check_place(values, others)
    batch = others.get(f"BATCH#{values['batch']}", {})
    yield from _unless_equal("I15", at, expected=True, found="first" in batch and form_error(batch) is None)


def check_archived(
    tombstone: Values, whole: Values | None, others: Mapping[str, Values], context: Context
) -> list[Difference]:
    """The differences of an archived escrow: in itself, and between it and its tombstone.

    `whole` is what the archive has, None if that is not what was archived.
    """
    at = str(tombstone["pk"])
    if whole is None:
        place = tombstone["archived"]
        return [Difference("I12", at, f"the escrow that was archived at {place}", "missing or changed")]
    found = check(whole, others, context)
    form = _FORMS["ESC", "archived by a ticket" if is_by_ticket(whole) else "archived"]
    kept = {name: value for name, value in whole.items() if name in form.required or name in form.optional}
    stored = {name: value for name, value in tombstone.items() if name not in {"archived", "digest"}}
    wrong = sorted(name for name in kept.keys() | stored.keys() if kept.get(name) != stored.get(name))
    if wrong:
        expected, differing = ({name: each.get(name) for name in wrong} for each in (kept, stored))
        found.append(Difference("I12", at, expected, differing))
    return found


def _check_queue(values: Values, queue: str, work_at: int, context: Context) -> Iterator[Difference]:
    """The attributes by which the sweep finds its work."""
    shards = {f"{queue}#{shard}" for shard in range(context.work_shards)}
    if values["work"] not in shards or values["work_at"] != work_at:
        expected = f"work at {work_at} in a shard of {queue}"
        yield Difference("I6", values["pk"], expected, f"work at {values['work_at']} in {values['work']!r}")


def _check_party(values: Values, *due: str | None) -> Iterator[Difference]:
    """The attribute by which an account's balance finds what is open. Escrows from before it existed have none."""
    found = values.get("party")
    allowed = {f"{side}#{shard}" for side in due if side for shard in range(PARTY_SHARDS)}
    is_missing = found is None and bool(allowed) and _knows_party(values)
    if is_missing or (found is not None and found not in allowed):
        yield Difference("I6", values["pk"], f"party in a shard of {' or '.join(filter(None, due)) or 'nobody'}", found)


def _held(values: Values) -> str:
    return f"HELD#{payer(values)}"


def _earned(values: Values) -> str:
    return f"EARNED#{values['owner']}"


def _check_age(values: Values, most_ms: int, done: str, context: Context) -> Iterator[Difference]:
    age_ms = context.now_ms - values["work_at"]
    if age_ms > most_ms:
        yield Difference("I8", values["pk"], f"{done} within {most_ms} ms", f"not after {age_ms} ms")


def _check_split(values: Values) -> Iterator[Difference]:
    at, used, compute = values["pk"], used_micro(values), values.get("compute", 0)
    yield from _unless_equal("I3", at, values["budget"], used + values["refunded"])
    parts = (values["paid"], values["fee"], values["refunded"], compute)
    yield from _unless_equal("I3", at, expected=True, found=min(parts) >= 0)
    yield from _unless_equal("I4", at, (used - compute) * values["fee_bps"] // BPS, values["fee"] - compute)
    is_whole = values["state"] == State.EXPIRED or values.get("fault") in {Fault.AGENT, Fault.PLATFORM}
    if is_whole or (values["state"] == State.REFUNDED and "fault" not in values):
        yield from _unless_equal("I3", at, values["budget"], values["refunded"])


def _check_receipt(values: Values, others: Mapping[str, Values], context: Context) -> Iterator[Difference]:
    """I12: a settled escrow has a valid receipt, and its attributes are what the receipt states."""
    try:
        stated = dict(verify(values["receipt"], context.jwks))
    except ProofError as exc:
        yield Difference("I12", values["pk"], "a valid receipt", str(exc))
        return
    due, meter = _due_claims(values, stated), stated["meter"]
    stated["rules"] = [(stated["acceptance"] or {}).get(f"{side}_sha256") for side in ("agent", "task")]
    stated["prices"] = [int(price) for price in stated["compute_prices"].values()]
    stated["paid_by"] = _paid_by(stated.get("ticket"))
    stated["own"] = list(stated["own_limits"].values()) if stated["own_limits"] else None
    wrong = [name for name, claim in due.items() if stated.get(name) != claim]
    if wrong:
        found = {name: due[name] for name in wrong}
        yield Difference("I12", values["pk"], {name: stated.get(name) for name in wrong}, found)
    yield from _check_stored(values, "output", meter["output_bytes"])
    # If the worker was lost, its meter is lost too, but the stderr that it had written is kept.
    is_measured = values["outcome"] != Outcome.WORKER_LOST
    yield from _check_stored(values, "log", min(meter["stderr_bytes"], STDERR_BYTES_MAX) if is_measured else None)
    yield from _check_stored(values, "stdin", meter["input_bytes"] or None)  # 0 if the worker's meter is lost
    if "stdin_sha256" in values:  # kept because the task asked for it, and what the agent read
        kept = values.get("keep_input"), values["stdin_sha256"]
        yield from _unless_equal("I12", values["pk"], (1, values["input_sha256"]), kept)
    if stated.get("ticket"):
        ticket = stated["ticket"]
        terms = (ticket["salt"], ticket["key"], int(ticket["ticket_value"]))
        yield from _unless_equal("I14", values["pk"], _terms_signed_for(values, others), terms)
    limits = stated["limits"]
    if limits and limits["timeout_ms"] > values["timeout_ms"]:
        yield Difference("I12", values["pk"], f"a timeout of at least {limits['timeout_ms']} ms", values["timeout_ms"])


def _due_claims(values: Values, stated: Mapping[str, Any]) -> dict[str, object]:
    """What an escrow's receipt must state, by claim name.

    Escrows from the time of version 1 do not have the attributes that receipts of version 1 do not state.
    """
    return {
        "fault": values.get("fault", stated["fault"] if stated["v"] == 1 else None),
        "compute": str(values.get("compute", 0)),
        "charge": str(values.get("charge", 0)),
        "judging": str(values.get("judging", 0)),
        "task_judging": str(values.get("task_judging", 0)),
        "task_judge_bps": values.get("task_judge_bps", 0),
        "prices": _numbers(values, "compute_prices", [0, 0]),
        "own": _numbers(values, "own_limits", None),
        "seed": values.get("seed", stated["seed"]),
        "eid": item_id(values),
        "task": values["task_id"],
        "user": payer(values),
        "paid_by": _paid_by(values) if values.get("tickets") else None,
        "agent": values["agent_id"],
        "owner": values["owner"],
        "module_sha256": values["module_sha256"],
        "input_sha256": values["input_sha256"],
        "output_sha256": values.get("output_sha256"),
        "stderr_sha256": values.get("log_sha256"),
        "budget": str(values["budget"]),
        "paid": str(values["paid"]),
        "fee": str(values["fee"]),
        "refunded": str(values["refunded"]),
        "fee_bps": values["fee_bps"],
        "tariff_sha256": tariff_sha256(values["tariff"]),
        "state": values["state"],
        "outcome": values["outcome"],
        "reputation_tenths": values["reputation_tenths"],
        "funded_at": values["at"],
        "expires_at": values["expires_ms"],
        "settled_at": values["settled_ms"],
        "rules": [values.get("agent_rules_sha256"), values.get("task_rules_sha256")],
    }


def _paid_by(named: Values | None) -> tuple[object, ...] | None:
    """The channel and the numbers that an escrow names, or the ticket in its receipt."""
    return (named.get("channel"), named.get("number", named.get("n")), named.get("tickets")) if named else None


def _numbers(values: Values, name: str, absent: list[int] | None) -> object:
    """The value of an attribute that is a JSON array; None if it cannot be read."""
    try:
        return json.loads(values[name]) if name in values else absent
    except ValueError:
        return None


def _check_stored(values: Values, name: str, size: int | None) -> Iterator[Difference]:
    """Output, stderr and a kept input must be named by digest and size, and stored inline if they are small."""
    at, inline = values["pk"], values.get(name)
    if f"{name}_sha256" not in values:
        yield from _unless_equal("form", at, (None, None), (inline, values.get(f"{name}_bytes")))
        return
    stored = values.get(f"{name}_bytes")
    if stored is None or size not in {None, stored}:
        yield Difference("I12", at, f"{name} of {size} bytes", stored)
    elif inline is not None or stored <= OUTPUT_INLINE_BYTES_MAX:
        data = inline or b""
        whole = hashlib.sha256(data).hexdigest(), len(data)
        yield from _unless_equal("I12", at, (values[f"{name}_sha256"], stored), whole)


def _check_judges(values: Values, others: Mapping[str, Values]) -> Iterator[Difference]:
    """The escrows of a task's judges must be those that were funded with it."""
    judges = _judges(values)
    if judges is None:
        yield Difference("form", values["pk"], "a list of judges", values["judges"])
    for judge in judges or ():
        escrow = others.get(f"ESC#{judge.escrow_id}", {})
        funded = (escrow.get("agent_id"), escrow.get("budget"), escrow.get("at"), escrow.get("expires_ms"))
        due = (judge.agent_id, judge.budget_micro, values["at"], values["expires_ms"])
        yield from _unless_equal("I9", f"ESC#{judge.escrow_id}", due, funded)
        by_ticket = (values["channel"], values["number"], 0) if is_by_ticket(values) and judge.is_of_task else None
        yield from _unless_equal(
            "I9", f"ESC#{judge.escrow_id}", by_ticket, _paid_by(escrow) if is_by_ticket(escrow) else None
        )
    if is_by_ticket(values) and values["tickets"] and not is_held(values):
        judged = [others.get(f"ESC#{judge.escrow_id}", {}) for judge in judges or () if judge.is_of_task]
        sound = (escrow for escrow in judged if escrow and form_error(escrow) is None and not is_mark(escrow))
        cost = sum(escrow["budget"] - escrow.get("refunded", 0) for escrow in sound)
        yield from _unless_equal("I14", values["pk"], cost, values.get("task_judging", 0))


@dataclass(frozen=True, slots=True)
class _Judge:
    is_of_task: bool
    agent_id: str
    budget_micro: int
    escrow_id: str


def _judges(values: Values) -> list[_Judge] | None:
    """The judges that an escrow names; None if the attribute cannot be read."""
    try:
        return [
            _Judge(
                Side(side) is Side.TASK, agent_id, budget_micro, next(iter(named), _judge_escrow_id(values, Side(side)))
            )
            for side, agent_id, budget_micro, *named in json.loads(values.get("judges", "[]"))
        ]
    except (TypeError, ValueError):
        return None


def _judge_escrow_id(values: Values, side: Side) -> str:
    """The id of the escrow of a judge that the task's payer pays."""
    return escrows.escrow_id(payer(values), f"{values['task_id']}{_JUDGE_MARK}{side}")


# Channels.


def number_keys(channel_id: str, numbers: Iterable[int]) -> list[str]:
    """The keys of a channel's numbers."""
    return [f"ESC#{ticket_escrow_id(channel_id, number)}" for number in numbers]


def _beside(values: Values) -> range:
    """The numbers of an escrow's ticket that have items of their own; for a judge, the number of its task."""
    number, count = values["number"], values["tickets"]
    return range(number + 1, number + min(count, TICKETS_PER_TASK_MAX)) if count else range(number, number + 1)


def _check_ticket(values: Values, others: Mapping[str, Values]) -> Iterator[Difference]:
    """I9 and I14: an escrow that a ticket pays is stored under its number, and the channel allows it."""
    at, eid, count = values["pk"], item_id(values), values["tickets"]
    beside = [others.get(pk, {}) for pk in number_keys(values["channel"], _beside(values))]
    task_id = f"{values['channel']}.{values['number']}"
    if not count:
        judge_id = f"{task_id}{_JUDGE_MARK}{Side.TASK}"
        due = (judge_id, escrows.escrow_id(values["payer"], judge_id))
        yield from _unless_equal("I9", at, due, (values["task_id"], eid))
        (task,) = beside
        judges = _judges(task) if form_error(task) is None and not is_mark(task) else []
        named = [judge.escrow_id for judge in judges or () if judge.is_of_task]
        yield from _unless_equal("I9", at, (values["payer"], [eid]), (task.get("payer"), named))
        return
    due = (task_id, ticket_escrow_id(values["channel"], values["number"]))
    yield from _unless_equal("I9", at, due, (values["task_id"], eid))
    yield from _unless_equal("I14", at, [eid] * len(beside), [part.get("part_of") for part in beside])
    channel = others.get(f"CHAN#{values['channel']}", {})
    if not channel or form_error(channel):
        yield Difference("I14", at, f"the channel {values['channel']}", None)
        return
    offered = values["budget"] + sum(judge.budget_micro for judge in _judges(values) or () if judge.is_of_task)
    needed = -(-offered // channel["ticket_value"]) if channel["ticket_value"] > 0 else None
    yield from _unless_equal("I14", at, (channel["account"], needed), (values["payer"], count))
    most = channel.get("max_per_task", offered)
    is_allowed = (
        count <= TICKETS_PER_TASK_MAX
        and 1 <= values["number"] <= channel["granted"] - count + 1
        and offered <= most
        and values["agent_id"] in (_agents(channel) or [values["agent_id"]])
        and values["at"] + values["timeout_ms"] <= channel["expires_ms"]
    )
    if not is_allowed:
        asked = (values["agent_id"], f"{count} from {values['number']}", offered, values["at"], values["timeout_ms"])
        yield Difference("I14", at, "a task that its channel allows", asked)
    if is_held(values):
        yield from _check_signed(values, others, offered)


def _terms_signed_for(values: Values, others: Mapping[str, Values]) -> tuple[object, ...]:
    """The terms of an escrow's channel to which the channel's id commits."""
    channel = others.get(f"CHAN#{values.get('channel')}", {})
    return channel.get("salt"), channel.get("key"), channel.get("ticket_value")


def _check_signed(values: Values, others: Mapping[str, Values], offered: int) -> Iterator[Difference]:
    """The ticket that a held escrow keeps for its receipt is signed for this task by the channel's key."""
    at = values["pk"]
    try:
        salt, key, ticket_micro, signed = json.loads(values["ticket"])
        claim = TicketClaim(
            channel=values["channel"],
            salt=salt,
            key=key,
            ticket_value=str(ticket_micro),
            n=values["number"],
            tickets=values["tickets"],
            signed=signed,
        )
        issuer = tickets.read(signed)[0].iss  # the channel's id commits to it
        asked = tickets.check_claim(claim, issuer=issuer, payer=values["payer"])
    except (TypeError, ValueError, ProofError) as exc:
        yield Difference("I14", at, "a ticket of its channel", str(exc))
        return
    yield from _unless_equal("I14", at, _terms_signed_for(values, others), (salt, key, ticket_micro))
    due = (asked.agent_id, asked.input_sha256, asked.budget_micro, asked.acceptance_sha256)
    stored = (values["agent_id"], values["input_sha256"], offered, values.get("task_rules_sha256"))
    yield from _unless_equal("I14", at, due, stored)
    if asked.timeout is not None and values["timeout_ms"] > asked.timeout * 1_000:
        yield Difference("I14", at, f"a timeout of at most {asked.timeout} s", values["timeout_ms"])


def _check_mark(values: Values, others: Mapping[str, Values]) -> Iterator[Difference]:
    """I14: a number without an escrow belongs to the task that it names, or was taken out of use by closing."""
    at, number = values["pk"], values["number"]
    yield from _unless_equal("I9", at, ticket_escrow_id(values["channel"], number), item_id(values))
    channel = others.get(f"CHAN#{values['channel']}", {})
    granted = channel.get("granted", 0) if form_error(channel) is None else 0
    yield from _unless_equal("I14", at, expected=True, found=1 <= number <= granted)
    if "void_ms" in values:
        is_open = channel.get("state", ChannelState.OPEN) == ChannelState.OPEN
        yield from _unless_equal("I14", at, expected="a channel that closes", found="open" if is_open else _CLOSES)
        return
    task = others.get(f"ESC#{values['part_of']}", {})
    is_task = form_error(task) is None and not is_mark(task) and is_by_ticket(task)
    covers = is_task and task["channel"] == values["channel"] and number in _beside(task) and bool(task["tickets"])
    yield from _unless_equal("I14", at, expected=True, found=covers)


_CLOSES: Final = "a channel that closes"


def _agents(channel: Values) -> list[object] | None:
    """The agents that a channel may pay, none if all; None if they cannot be read."""
    try:
        agents = json.loads(channel.get("agents", "[]"))
    except ValueError:
        return None
    return agents if isinstance(agents, list) else None


def _check_channel(values: Values, context: Context) -> Iterator[Difference]:
    """I14: what a channel records about itself is possible. `check_numbers` compares it with its tickets."""
    at, value = values["pk"], values["ticket_value"]
    deposit, spent, swept, granted = (values[name] for name in ("deposit", "spent", "swept", "granted"))
    is_sound = (
        value > 0
        and values["tickets"] > 0
        and 0 <= spent <= deposit
        and 0 <= swept <= granted <= TICKET_NUMBER_MAX
        and (granted - swept) * value <= deposit - spent
        and values["at"] < values["expires_ms"]
        and values.get("max_per_task", 1) > 0
        and values.get("contested", 1) == 1
        and _agents(values) is not None
    )
    yield from _unless_equal("I14", at, expected=True, found=is_sound)
    if values["state"] == ChannelState.OPEN:
        yield from _check_due(values, "CHANNEL", values["expires_ms"])
        yield from _check_closes(values, values["expires_ms"], "begins to close", context)
        return
    counted, used = values["counted"], values["used"]
    yield from _unless_equal("I14", at, expected=True, found=0 <= used <= counted <= granted)
    if values["state"] == ChannelState.CLOSING:
        # Each piece that is counted puts the channel behind the others that are due.
        now_ms = context.now_ms + UNCLOSED_MS_MAX  # clocks differ
        later_ms = max(min(values["work_at"], now_ms), values["close_ms"]) if counted else values["close_ms"]
        yield from _check_due(values, "CHANNEL", later_ms)
        if counted < granted:
            yield from _check_closes(values, values["close_ms"], "counted", context)
        return
    yield from _unless_equal("I14", at, (granted, swept, deposit - spent), (counted, used, values["returned"]))
    yield from _unless_equal("I14", at, expected=True, found=values["close_ms"] <= values["closed_ms"])


def _check_due(values: Values, queue: str, work_at: int) -> Iterator[Difference]:
    """The attributes by which the sweep finds a channel."""
    yield from _unless_equal("I6", values["pk"], (queue, work_at), (values["work"], values["work_at"]))


def _check_closes(values: Values, due_ms: int, done: str, context: Context) -> Iterator[Difference]:
    late_ms = context.now_ms - due_ms
    if late_ms > UNCLOSED_MS_MAX:
        yield Difference("I8", values["pk"], f"{done} within {UNCLOSED_MS_MAX} ms", f"not after {late_ms} ms")


def _check_topup(values: Values, others: Mapping[str, Values]) -> Iterator[Difference]:
    at, channel = values["pk"], others.get(f"CHAN#{account(values)}", {})
    due = (account(values), topups_of(account(values)))
    yield from _unless_equal("form", at, due, (values["channel"], values["account"]))
    value = channel.get("ticket_value", 0) if form_error(channel) is None else 0
    is_whole = value > 0 and values["amount"] > 0 and values["amount"] % value == 0
    yield from _unless_equal("I14", at, expected=True, found=is_whole)


def topups_of(channel_id: str) -> str:
    """The name under which the index `statement` lists a channel's top-ups."""
    return _CHANNEL + channel_id


def is_final(values: Values) -> bool:
    """Whether an item of a channel's number never changes again."""
    return is_mark(values) or is_swept(values)


def is_counted(channel: Values) -> bool:
    """Whether closing has counted all numbers of a channel."""
    return bool(channel["state"] != ChannelState.OPEN and channel["counted"] >= channel["granted"])


def check_numbers(channel: Values, found: Numbers, context: Context) -> list[Difference]:
    """I14: a channel's sums are those of its tickets and top-ups. `channel` has no form error."""
    at = channel["pk"]
    due = (channel["spent"], channel["swept"], channel["deposit"])
    deposited = channel["tickets"] * channel["ticket_value"] + found.topped_micro
    differences = list(_unless_equal("I14", at, due, (found.spent_micro, found.swept, deposited)))
    if channel["state"] == ChannelState.OPEN:
        differences += _unless_equal("I14", at, 0, found.void)
    elif is_counted(channel):
        counts = (channel["used"], channel["granted"] - channel["used"])
        differences += _unless_equal("I14", at, counts, (found.used, found.void))
        if channel["state"] == ChannelState.CLOSING and channel["swept"] == channel["used"]:
            differences += _check_closes(channel, max(channel["close_ms"], found.swept_ms), "closed", context)
    return differences


def check_counted(channel: Values, found: Numbers) -> list[Difference]:
    """I14: of the numbers that closing has counted, each is used or void. `found` are the sums over these."""
    due = (channel["used"], channel["counted"] - channel["used"])
    return list(_unless_equal("I14", channel["pk"], due, (found.used, found.void)))


def is_between(before: Values, found: Numbers, after: Values) -> bool:
    """Whether sums over tickets are possible that were read between two reads of their channel: none of them falls."""
    spent, swept = (range(before[name], after[name] + 1) for name in ("spent", "swept"))
    return found.spent_micro in spent and found.swept in swept


# Batches and the log.


def _escrow_ids(batch: Values) -> list[str]:
    return str(batch["escrows"]).split(",") if "escrows" in batch else []


def _check_batch(values: Values, others: Mapping[str, Values], context: Context) -> Iterator[Difference]:
    at, listed = values["pk"], _escrow_ids(values)
    yield from _unless_equal("I15", at, item_id(values), listed[0])
    yield from _unless_equal("I15", at, len(set(listed)), len(listed))
    if "first" in values:
        pointer = others.get(f"LOG#{values['first']}", {})
        yield from _unless_equal("I15", at, item_id(values), pointer.get("batch"))
    else:
        due = ("BATCH", values.get("at", values["work_at"]))
        yield from _unless_equal("I6", at, due, (values["work"], values["work_at"]))
        yield from _check_age(values, UNLOGGED_MS_MAX, "logged", context)


def escrow_keys(batch: Values) -> list[str]:
    """The keys of a batch's escrows, in order."""
    return [f"ESC#{escrow_id}" for escrow_id in _escrow_ids(batch)]


def batch_line_keys(batch: Values, escrows_: Mapping[str, Values], context: Context) -> list[str]:
    """The keys of all lines with which a batch may have been credited."""
    owners = dict.fromkeys(str(escrows_[pk]["owner"]) for pk in escrow_keys(batch) if "owner" in escrows_.get(pk, {}))
    of_owners = [(name, before + owner) for owner in owners for name, before in _LINES_OF_OWNERS]
    return [f"{name}#{of}#{item_id(batch)}" for name, of in [*of_owners, ("FEE", context.platform_account)]]


_LINES_OF_OWNERS: Final = (("EARN", ""), ("JUDGING", _BOND), ("CHARGE", _BOND))


def check_credited(
    batch: Values, escrows_: Mapping[str, Values], lines: Mapping[str, Values], context: Context
) -> list[Difference]:
    """I10 and I15: each escrow of a batch has its place in it, and the batch's lines are the sums of its escrows."""
    found: list[Difference] = []
    credited = []
    for place, pk in enumerate(escrow_keys(batch)):
        escrow = escrows_.get(pk, {})
        due = (item_id(batch), place, batch.get("at", escrow.get("swept_ms")))
        found += _unless_equal("I15", pk, due, (escrow.get("batch"), escrow.get("place"), escrow.get("swept_ms")))
        if "agent_id" in batch:
            found += _unless_equal("I15", pk, batch["agent_id"], escrow.get("agent_id"))
        if escrow and form_error(escrow) is None and is_swept(escrow):
            credited.append(escrow)
    due_lines = _due_lines(batch, credited, lines, context)
    for pk in batch_line_keys(batch, escrows_, context):
        line = {name: value for name, value in lines.get(pk, {}).items() if name != SEAL}
        found += _unless_equal("I10", pk, due_lines.get(pk, {}), line)
    return found


def _due_lines(
    batch: Values, credited: list[Values], lines: Mapping[str, Values], context: Context
) -> dict[str, dict[str, object]]:
    """The lines that follow from a batch's escrows, by their keys.

    How much of a charge the bond paid does not follow from the escrows: it is taken from the line itself, and `check`
    limits it.
    """
    due_lines: dict[str, dict[str, object]] = {}

    def note(name: str, of: str, part: list[Values], amount: int, due: int = 0) -> None:
        if part and (amount or due):
            pk, agents = f"{name}#{of}#{item_id(batch)}", {escrow["agent_id"] for escrow in part}
            values = {"pk": pk, "account": of, "at": part[0]["swept_ms"], "amount": amount, "tasks": len(part)}
            if len(agents) == 1:
                values["agent_id"] = next(iter(agents))
            due_lines[pk] = {**values, "due": due} if name == "CHARGE" else values

    taken_micro = 0
    for owner in dict.fromkeys(escrow["owner"] for escrow in credited):
        mine = [escrow for escrow in credited if escrow["owner"] == owner]
        returned = [escrow for escrow in mine if _returned_micro(escrow)]
        charged = [escrow for escrow in mine if escrow.get("charge", 0)]
        returned_micro, bond = sum(map(_returned_micro, returned)), _BOND + owner
        note("EARN", owner, mine, sum(escrow["paid"] for escrow in mine) - returned_micro)
        note("JUDGING", bond, returned, returned_micro)
        line = lines.get(f"CHARGE#{bond}#{item_id(batch)}", {})
        paid_micro = line["amount"] if line and form_error(line) is None else 0
        note("CHARGE", bond, charged, paid_micro, sum(escrow["charge"] for escrow in charged))
        taken_micro -= paid_micro
    fees_micro = sum(escrow["fee"] for escrow in credited)
    note("FEE", context.platform_account, credited, fees_micro + taken_micro)
    return due_lines


def _returned_micro(escrow: Values) -> int:
    """The part of an owner's price that goes back to the bond, because the bond paid the agent's judge."""
    return min(int(escrow.get("judging", 0)), int(escrow["paid"]))


def _unless_equal(invariant: str, at: str, expected: object, found: object) -> Iterator[Difference]:
    if expected != found:
        yield Difference(invariant, at, expected, found)
