"""The auditor's rules: what must hold of an item of the ledger by itself, and with the items that it names. Pure.

I1 conservation, I2 no debt, I3 split, I4 fee, I6 states, I8 ages, I9 identity, I10 and I11 balances, I12 receipts,
I15 the log, I16 standings. `form` is what no invariant covers: an attribute that is missing, unknown or of a wrong
type, or not as it was first written.

An item is a mapping of its attributes to strings, integers and bytes. The attributes of every kind of item are declared
here, so an attribute that the auditor does not know is a difference. With the writes that it audits the code shares
the items, their names by digest (`escrow_id`, `tariff_sha256`), what checks a receipt, and `seal.py`; marks in names
are spelt anew on purpose. `auditing.py` reads the items, and `tests/usecases/test_mutations.py` shows that no
attribute is overlooked.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from quittance.ledger import escrow as escrows
from quittance.ledger.escrow import State
from quittance.ledger.pricing import tariff_sha256
from quittance.limits import (
    AUDIT_DIFFERENCES_SHOWN_MAX,
    BALANCE_SHARDS,
    BPS,
    EXPIRY_REFUND_MS_MAX,
    OUTPUT_INLINE_BYTES_MAX,
    STDERR_BYTES_MAX,
    UNLOGGED_MS_MAX,
    UNSWEPT_MS_MAX,
)
from quittance.proof.log import LogHead
from quittance.proof.receipt import verify
from quittance.proof.seal import SEAL, UNSEALED, is_sealed
from quittance.proof.statement import ProofError
from quittance.run import Fault, Outcome, Side

_JUDGE_MARK: Final = ":judge-"
_BOND: Final = "bond "  # begins the account of an owner's bond
_NOTHING_SHA256: Final = hashlib.sha256(b"").hexdigest()

Values = Mapping[str, Any]
"""The attributes of an item."""


# The attributes of each kind of item.


@dataclass(frozen=True, slots=True)
class Form:
    """The attributes that a kind of item has, and those that it may have, with their types."""

    required: Mapping[str, type] = field(default_factory=dict)
    optional: Mapping[str, type] = field(default_factory=dict)

    def __or__(self, other: "Form") -> "Form":
        return Form({**self.required, **other.required}, {**self.optional, **other.optional})

    def flaw(self, values: Values) -> str | None:
        """The first thing that is wrong with an item's attributes, or None."""
        known = {**self.optional, **self.required}
        for name in sorted(values.keys() | self.required.keys()):
            if name not in values:
                return f"{name} is missing"
            if name not in known:
                return f"{name} is unknown"
            if not isinstance(values[name], known[name]) or isinstance(values[name], bool):
                return f"{name} is no {known[name].__name__}"
        return None


def _form(required: str = "", optional: str = "") -> Form:
    """A form in short: names in words; `:int` and `:bytes` mark what is no string."""

    def parse(words: str) -> dict[str, type]:
        types = {"": str, "int": int, "bytes": bytes}
        return {name: types[kind] for name, _, kind in (word.partition(":") for word in words.split())}

    return Form(parse(required), parse(optional))


_SEALED: Final = _form("pk", f"{SEAL}:bytes")
_HELD: Final = _SEALED | _form(
    """state account at:int task_id request_sha256 agent_id owner module_sha256 input_sha256 tariff budget:int
    fee_bps:int timeout_ms:int runner fence:int lease_ms:int expires_ms:int""",
    """agent_rules_sha256 task_rules_sha256 judges webhook compute_prices own_limits task_judge_bps:int seed""",
)
_ENDED: Final = _HELD | _form(
    "paid:int fee:int refunded:int outcome message reputation_tenths:int settled_ms:int receipt",
    """output:bytes output_sha256 output_bytes:int log:bytes log_sha256 log_bytes:int
    fault compute:int charge:int judging:int task_judging:int""",
)
_QUEUED: Final = _form("work work_at:int")
_CREDITED: Final = _form("swept_ms:int batch place:int")
_BATCH: Final = _SEALED | _form("escrows", "at:int agent_id")
_MOVEMENT: Final = _SEALED | _form("account at:int amount:int")
_SHARE: Final = _MOVEMENT | _form("", "tasks:int agent_id")
_DECIDED: Final = _form("payout decided_ms:int decided_by")
_SHARES: Final = frozenset({"EARN", "FEE", "JUDGING", "CHARGE"})  # the lines by which the sweep credits a batch
_FORMS: Final[Mapping[tuple[str, str], Form]] = {
    ("ESC", "held"): _HELD | _QUEUED,
    ("ESC", "ended"): _ENDED | _QUEUED,
    ("ESC", "swept"): _ENDED | _CREDITED,
    ("ACCT", ""): _form("pk available:int", "charged:int"),
    ("IN", ""): _MOVEMENT | _form("", "depositor"),
    ("OUT", "unrecorded"): _MOVEMENT,
    ("OUT", "requested"): _MOVEMENT | _QUEUED | _form("payout"),
    ("OUT", "paid"): _MOVEMENT | _DECIDED,
    ("OUT", "failed"): _MOVEMENT | _DECIDED,
    ("BACK", ""): _MOVEMENT,
    ("SLOT", ""): _form("pk", "holder lease_ms:int"),
    ("BOND", ""): _MOVEMENT,
    ("EARN", ""): _SHARE,
    ("FEE", ""): _SHARE,
    ("JUDGING", ""): _SHARE,
    ("CHARGE", ""): _SHARE | _form("due:int"),
    ("BATCH", "credited"): _BATCH | _QUEUED,
    ("BATCH", "logged"): _BATCH | _form("first:int"),
    ("LOG", ""): _form("pk size:int published:int"),
    ("LOG#", ""): _form("pk batch"),
    ("REP", ""): _form("pk standing"),
}


def is_held(values: Values) -> bool:
    """Whether an escrow still holds its budget."""
    return bool(values.get("state") == State.FUNDED)


def is_swept(values: Values) -> bool:
    """Whether the sweep has credited an escrow."""
    return "swept_ms" in values


def kind(values: Values) -> str:
    """The kind of an item: what its key begins with."""
    prefix, _, rest = str(values.get("pk", "")).partition("#")
    return "LOG#" if prefix == "LOG" and rest else prefix


def key(values: Values) -> str:
    """The rest of an item's key."""
    return str(values.get("pk", "")).partition("#")[2]


def flaw(values: Values) -> str | None:
    """What is wrong with the attributes of an item, or None."""
    form = _FORMS.get((kind(values), _phase(values)))
    return form.flaw(values) if form else f"no item is of the kind {kind(values)!r}"


def _phase(values: Values) -> str:
    """The part of its life that an item is in, which says what attributes it has."""
    match kind(values):
        case "ESC" if is_held(values):
            return "held"
        case "ESC":
            return "swept" if is_swept(values) else "ended"
        case "OUT":
            return str(values.get("payout", "unrecorded"))
        case "BATCH":
            return "logged" if "first" in values else "credited"
    return ""


# The result.


@dataclass(frozen=True, slots=True)
class Difference:
    """What does not hold: which invariant, at which item or account, and the two sides."""

    invariant: str
    at: str
    expected: object
    found: object


@dataclass(slots=True)
class Audit:
    """The sums of the conservation equation, how many items there were, and the differences.

    At most AUDIT_DIFFERENCES_SHOWN_MAX of these are named; `unnamed` counts the others. `moved` counts the accounts
    that moved while the table was read and were compared by themselves, `unsettled` those that never stood still.
    What was returned because it could not be paid out is not counted as withdrawn; `waiting_micro` of it waits.
    `standings` are folded from the agents' receipts in the log's order, as text.
    """

    escrows: int = 0
    deposited_micro: int = 0
    withdrawn_micro: int = 0
    payouts_waiting: int = 0
    waiting_micro: int = 0
    oldest_payout_age_ms: int = 0
    available_micro: int = 0
    held_micro: int = 0
    uncredited_micro: int = 0
    credited_micro: int = 0
    journalled_micro: int = 0
    charged_micro: int = 0
    written_off_micro: int = 0
    differences: list[Difference] = field(default_factory=list)
    unnamed: int = 0
    moved: int = 0
    unsettled: int = 0
    log: LogHead = field(default_factory=LogHead)
    standings: dict[str, str] = field(default_factory=dict)

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
    """What an account has, and what of its bond was charged."""

    available_micro: int = 0
    charged_micro: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.available_micro + other.available_micro, self.charged_micro + other.charged_micro)

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(self.available_micro - other.available_micro, self.charged_micro - other.charged_micro)


@dataclass(slots=True)
class Books:
    """What each account should have, and what it has. Its size grows with accounts and open tasks, not with escrows.

    What is older than `recent_ms` and final never changes again. All else may change while the table is read, so it can
    be summed again for one account: lines since `recent_ms` by the index, and older escrows that were `held`.
    """

    recent_ms: int
    final: defaultdict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    gaps: defaultdict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    held: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def post(self, result: Audit, values: Values) -> None:
        """Adds an item of a right form."""
        match kind(values):
            case "ACCT" if is_balance_shard(values):
                result.available_micro += values["available"]
                self.gaps[account(values)] += lies_in(values)
            case "ESC":
                result.escrows += 1
                self._move(values)
                _post_escrow(result, values)
            case "IN":
                self._move(values)
                result.deposited_micro += values["amount"]
            case "OUT" | "BACK":
                self._move(values)
                result.withdrawn_micro -= values["amount"]
            case "BOND":
                self._move(values)
            case other if other in _SHARES:
                self._move(values)
                result.journalled_micro += values["amount"]
                if other == "CHARGE":
                    result.charged_micro -= values["amount"]
                    result.written_off_micro += values["due"] + values["amount"]

    def _move(self, values: Values) -> None:
        self.gaps[values["account"]] -= moved(values)
        if values["at"] >= self.recent_ms:
            return
        if kind(values) == "ESC" and is_held(values):
            self.held[values["account"]].add(values["pk"])
        else:
            self.final[values["account"]] += moved(values)


def lies_in(shard: Values) -> Sums:
    """The balance of a well-formed balance shard, and the charges that it records."""
    return Sums(shard["available"], shard.get("charged", 0))


def account(values: Values) -> str:
    """The account that an item's key names."""
    return key(values).partition("#")[0]


def is_balance_shard(values: Values) -> bool:
    """Whether the ledger reads this item as a balance shard of its account."""
    _, separator, shard = key(values).partition("#")
    return not separator or shard in {str(number) for number in range(1, BALANCE_SHARDS)}


def is_share(values: Values) -> bool:
    """Whether a line is one of those by which the sweep credits a batch."""
    return kind(values) in _SHARES and not is_publication(values)


def moved(values: Values) -> Sums:
    """By how much a movement, or an escrow, has changed what its account has."""
    if kind(values) == "ESC":
        return Sums(values.get("refunded", 0) - values["budget"])
    return Sums(values["amount"], -values["amount"] if kind(values) == "CHARGE" else 0)


def _post_escrow(result: Audit, values: Values) -> None:
    if is_held(values):
        result.held_micro += values["budget"]
    elif is_swept(values):
        result.credited_micro += used_micro(values)
    else:
        result.uncredited_micro += used_micro(values)


def used_micro(values: Values) -> int:
    """What of a settled escrow's budget does not go back to its payer."""
    return int(values["paid"]) + int(values["fee"])


# One item, with those that it names.


@dataclass(frozen=True, slots=True)
class Context:
    """What the rules need to know besides items."""

    jwks: Mapping[str, Any]
    platform_account: str
    work_shards: int
    now_ms: int


def named(values: Values, context: Context) -> list[str]:
    """The keys of the items without which an item of a right form cannot be checked."""
    keys: list[str] = []
    match kind(values):
        case "ESC":
            keys = [f"BATCH#{values['batch']}"] if is_swept(values) else []
            keys += [f"ESC#{judge.escrow_id}" for judge in _judges(values) or ()]
        case "BOND":
            keys = [_other_side(values)]
        case "OUT":
            keys = ["BACK#" + key(values)]
        case "BACK":
            keys = ["OUT#" + key(values)]
        case "CHARGE" if is_publication(values):
            keys = [f"FEE#{context.platform_account}#{reference(values)}"]
        case "BATCH" if "first" in values:
            keys = [f"LOG#{values['first']}"]
        case "LOG#":
            keys = [f"BATCH#{values['batch']}"]
    return keys


def check(values: Values, others: Mapping[str, Values], context: Context) -> list[Difference]:
    """What does not hold of an item, given those that it names."""
    at = str(values["pk"])
    if wrong := flaw(values):
        return [Difference("form", at, "the attributes of its kind", wrong)]
    found = list(_check_seal(values))
    match kind(values):
        case "ESC":
            found += _check_escrow(values, others, context)
        case "ACCT":
            found += _unless_equal("I2", at, expected=True, found=values["available"] >= 0)
            found += _unless_equal("I2", at, expected="a balance shard of the account", found=_shard_name(values))
        case "IN" | "OUT" | "BACK" as sign:
            found += _check_movement(values)
            found += _unless_equal("I2", at, expected=True, found=(values["amount"] > 0) == (sign != "OUT"))
            found += _check_payout(values, others)
        case "BOND":
            other = others.get(_other_side(values), {})
            due = (-values["amount"], values["at"])
            found += _unless_equal("I10", at, due, (other.get("amount"), other.get("at")))
            found += _check_movement(values)
        case other if other in _SHARES:
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
            found += _unless_equal("I15", at, key(values), str(batch.get("first")))
    return found


def _shard_name(values: Values) -> str:
    return "a balance shard of the account" if is_balance_shard(values) else "credits that the ledger never reads"


def _check_seal(values: Values) -> Iterator[Difference]:
    """What is written once stays as it was first written. Items of before there were seals have none."""
    if SEAL in values:
        first = {"ESC": _HELD, "BATCH": _BATCH, "OUT": _MOVEMENT}.get(kind(values), Form(dict.fromkeys(values, str)))
        names = (first.required.keys() | first.optional.keys()) - UNSEALED
        sealed = {name: value for name, value in values.items() if name in names}
        if kind(values) == "ESC" and is_judges(values):
            del sealed["input_sha256"]
        yield from _unless_equal("form", values["pk"], expected=True, found=is_sealed(sealed))


def _check_movement(values: Values) -> Iterator[Difference]:
    yield from _unless_equal("form", values["pk"], values["account"], account(values))
    if values["amount"] == 0 and not values.get("due"):
        yield Difference("I2", values["pk"], "an amount", 0)


def _check_payout(values: Values, others: Mapping[str, Values]) -> Iterator[Difference]:
    """What failed to be paid out was returned in full, and nothing else was; what waits is where the operator looks."""
    at = values["pk"]
    match kind(values), values.get("payout"):
        case "OUT", "requested":
            due = ("PAYOUT", values["at"])
            yield from _unless_equal("payouts", at, due, (values["work"], values["work_at"]))
            yield from _unless_equal("payouts", at, {}, others.get("BACK#" + key(values), {}))
        case "OUT", "failed":
            returned = others.get("BACK#" + key(values), {})
            stands = (returned.get("amount"), returned.get("at"))
            yield from _unless_equal("payouts", at, (-values["amount"], values["decided_ms"]), stands)
        case "OUT", _:
            yield from _unless_equal("payouts", at, {}, others.get("BACK#" + key(values), {}))
        case "BACK", _:
            yield from _unless_equal("payouts", at, "failed", others.get("OUT#" + key(values), {}).get("payout"))


def is_publication(values: Values) -> bool:
    """Whether a charge, or the fee that it pays, is for a publication: then it counts no tasks."""
    return kind(values) in {"CHARGE", "FEE"} and "tasks" not in values


def _check_publication(values: Values, others: Mapping[str, Values], context: Context) -> Iterator[Difference]:
    """What a publication took from a bond is the platform's; what is due for it, the registry alone knows."""
    at, agent = values["pk"], values.get("agent_id", "")
    yield from _unless_equal("I10", at, expected=True, found=bool(agent) and reference(values).startswith(f"{agent}."))
    if kind(values) == "CHARGE":
        fee = others.get(f"FEE#{context.platform_account}#{reference(values)}", {})
        due = (-values["amount"], values["at"], None) if values["amount"] else (None, None, None)
        yield from _unless_equal("I10", at, due, (fee.get("amount"), fee.get("at"), fee.get("tasks")))
    else:
        yield from _unless_equal("I10", at, context.platform_account, values["account"])


def _other_side(values: Values) -> str:
    """The key of the line by which credits left a bond's owner for the bond, or the other way round."""
    mine = account(values)
    other = mine.removeprefix(_BOND) if mine.startswith(_BOND) else _BOND + mine
    return f"BOND#{other}#{reference(values)}"


def is_judges(values: Values) -> bool:
    """Whether an escrow pays a judge, which learns what it reads only when it is asked."""
    return _JUDGE_MARK in values["task_id"]


def reference(values: Values) -> str:
    """What a movement's key names besides its account."""
    return key(values).partition("#")[2]


def _check_escrow(values: Values, others: Mapping[str, Values], context: Context) -> Iterator[Difference]:
    at, eid = values["pk"], key(values)
    yield from _unless_equal("I9", at, escrows.escrow_id(values["account"], values["task_id"]), eid)
    yield from _check_judges(values, others)
    if values["fence"] < 1:
        yield Difference("form", at, "a fence from 1 on", values["fence"])
    if is_held(values):
        if is_judges(values):
            yield from _unless_equal("I12", at, _NOTHING_SHA256, values["input_sha256"])
        yield from _check_queue(values, "OPEN", values["expires_ms"], context)
        late_ms = context.now_ms - values["expires_ms"]
        if late_ms > EXPIRY_REFUND_MS_MAX:
            yield Difference("I8", at, f"refunded within {EXPIRY_REFUND_MS_MAX} ms of its expiry", f"{late_ms} ms late")
        return
    yield from _check_split(values)
    in_time = values["settled_ms"] < values["expires_ms"]
    yield from _unless_equal("I8", at, values["state"] != State.EXPIRED, in_time)
    yield from _check_receipt(values, context)
    if is_swept(values):
        batch = others.get(f"BATCH#{values['batch']}", {})
        listed = _listed(batch)
        stands = listed[values["place"]] if 0 <= values["place"] < len(listed) else None
        yield from _unless_equal("I15", at, eid, stands)
        yield from _unless_equal("I15", at, batch.get("at", values["swept_ms"]), values["swept_ms"])
    else:
        yield from _check_queue(values, "SETTLED", values["settled_ms"], context)
        yield from _check_age(values, UNSWEPT_MS_MAX, "credited", context)


def _check_queue(values: Values, queue: str, work_at: int, context: Context) -> Iterator[Difference]:
    """The mark by which the sweep finds what it has to do."""
    shards = {f"{queue}#{shard}" for shard in range(context.work_shards)}
    if values["work"] not in shards or values["work_at"] != work_at:
        expected = f"work at {work_at} in a shard of {queue}"
        yield Difference("I6", values["pk"], expected, f"work at {values['work_at']} in {values['work']!r}")


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


def _check_receipt(values: Values, context: Context) -> Iterator[Difference]:
    """I12: a settled escrow has a valid receipt, and says what the receipt states."""
    try:
        stated = dict(verify(values["receipt"], context.jwks))
    except ProofError as exc:
        yield Difference("I12", values["pk"], "a valid receipt", str(exc))
        return
    due, meter = _due_claims(values, stated), stated["meter"]
    stated["rules"] = [(stated["acceptance"] or {}).get(f"{side}_sha256") for side in ("agent", "task")]
    stated["prices"] = [int(price) for price in stated["compute_prices"].values()]
    stated["own"] = list(stated["own_limits"].values()) if stated["own_limits"] else None
    wrong = [name for name, claim in due.items() if stated.get(name) != claim]
    if wrong:
        found = {name: due[name] for name in wrong}
        yield Difference("I12", values["pk"], {name: stated.get(name) for name in wrong}, found)
    yield from _check_stored(values, "output", meter["output_bytes"])
    # Of a worker that was lost the meter is lost too, but not what it had written.
    is_measured = values["outcome"] != Outcome.WORKER_LOST
    yield from _check_stored(values, "log", min(meter["stderr_bytes"], STDERR_BYTES_MAX) if is_measured else None)
    limits = stated["limits"]
    if limits and limits["timeout_ms"] > values["timeout_ms"]:
        yield Difference("I12", values["pk"], f"a timeout of at least {limits['timeout_ms']} ms", values["timeout_ms"])


def _due_claims(values: Values, stated: Mapping[str, Any]) -> dict[str, object]:
    """What an escrow's receipt must state, by the names of its claims.

    What a receipt of version 1 does not state, escrows of that time do not have.
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
        "eid": key(values),
        "task": values["task_id"],
        "user": values["account"],
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


def _numbers(values: Values, name: str, absent: list[int] | None) -> object:
    """What an attribute has as a JSON array; None if it cannot be read."""
    try:
        return json.loads(values[name]) if name in values else absent
    except ValueError:
        return None


def _check_stored(values: Values, name: str, size: int | None) -> Iterator[Difference]:
    """Output and log: named by digest, with their size, and inline while they are small."""
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
    """The escrows of a task's judges are those that were funded with it."""
    judges = _judges(values)
    if judges is None:
        yield Difference("form", values["pk"], "a list of judges", values["judges"])
    for judge in judges or ():
        escrow = others.get(f"ESC#{judge.escrow_id}", {})
        funded = (escrow.get("agent_id"), escrow.get("budget"), escrow.get("at"), escrow.get("expires_ms"))
        due = (judge.agent_id, judge.budget_micro, values["at"], values["expires_ms"])
        yield from _unless_equal("I9", f"ESC#{judge.escrow_id}", due, funded)


@dataclass(frozen=True, slots=True)
class _Judge:
    agent_id: str
    budget_micro: int
    escrow_id: str


def _judges(values: Values) -> list[_Judge] | None:
    """The judges that an escrow names; None if it cannot be read."""
    try:
        return [
            _Judge(agent_id, budget_micro, next(iter(named), _judges_id(values, Side(side))))
            for side, agent_id, budget_micro, *named in json.loads(values.get("judges", "[]"))
        ]
    except (TypeError, ValueError):
        return None


def _judges_id(values: Values, side: Side) -> str:
    """The escrow of a judge that the payer of the task pays, too."""
    return escrows.escrow_id(values["account"], f"{values['task_id']}{_JUDGE_MARK}{side}")


# Batches and the log.


def _listed(batch: Values) -> list[str]:
    return str(batch["escrows"]).split(",") if "escrows" in batch else []


def _check_batch(values: Values, others: Mapping[str, Values], context: Context) -> Iterator[Difference]:
    at, listed = values["pk"], _listed(values)
    yield from _unless_equal("I15", at, key(values), listed[0])
    yield from _unless_equal("I15", at, len(set(listed)), len(listed))
    if "first" in values:
        pointer = others.get(f"LOG#{values['first']}", {})
        yield from _unless_equal("I15", at, key(values), pointer.get("batch"))
    else:
        due = ("BATCH", values.get("at", values["work_at"]))
        yield from _unless_equal("I6", at, due, (values["work"], values["work_at"]))
        yield from _check_age(values, UNLOGGED_MS_MAX, "logged", context)


def members(batch: Values) -> list[str]:
    """The keys of a batch's escrows, in order."""
    return [f"ESC#{escrow_id}" for escrow_id in _listed(batch)]


def share_keys(batch: Values, escrows_: Mapping[str, Values], context: Context) -> list[str]:
    """The keys of all lines by which a batch may have been credited."""
    owners = dict.fromkeys(str(escrows_[pk]["owner"]) for pk in members(batch) if "owner" in escrows_.get(pk, {}))
    of_owners = [(name, before + owner) for owner in owners for name, before in _SHARES_OF_OWNERS]
    return [f"{name}#{of}#{key(batch)}" for name, of in [*of_owners, ("FEE", context.platform_account)]]


_SHARES_OF_OWNERS: Final = (("EARN", ""), ("JUDGING", _BOND), ("CHARGE", _BOND))


def check_credited(
    batch: Values, escrows_: Mapping[str, Values], lines: Mapping[str, Values], context: Context
) -> list[Difference]:
    """I10 and I15: each escrow of a batch has its place in it, and the batch's lines are what its escrows come to."""
    found: list[Difference] = []
    credited = []
    for place, pk in enumerate(members(batch)):
        escrow = escrows_.get(pk, {})
        due = (key(batch), place, batch.get("at", escrow.get("swept_ms")))
        found += _unless_equal("I15", pk, due, (escrow.get("batch"), escrow.get("place"), escrow.get("swept_ms")))
        if "agent_id" in batch:
            found += _unless_equal("I15", pk, batch["agent_id"], escrow.get("agent_id"))
        if escrow and flaw(escrow) is None and is_swept(escrow):
            credited.append(escrow)
    shares = _shares(batch, credited, lines, context)
    for pk in share_keys(batch, escrows_, context):
        line = {name: value for name, value in lines.get(pk, {}).items() if name != SEAL}
        found += _unless_equal("I10", pk, shares.get(pk, {}), line)
    return found


def _shares(
    batch: Values, credited: list[Values], lines: Mapping[str, Values], context: Context
) -> dict[str, dict[str, object]]:
    """The lines that a batch's escrows come to, by their keys.

    What a bond paid of a charge is no matter of the escrows: it is taken from the line itself, which `check` bounds.
    """
    shares: dict[str, dict[str, object]] = {}

    def note(name: str, of: str, part: list[Values], amount: int, due: int = 0) -> None:
        if part and (amount or due):
            pk, agents = f"{name}#{of}#{key(batch)}", {escrow["agent_id"] for escrow in part}
            values = {"pk": pk, "account": of, "at": part[0]["swept_ms"], "amount": amount, "tasks": len(part)}
            if len(agents) == 1:
                values["agent_id"] = next(iter(agents))
            shares[pk] = {**values, "due": due} if name == "CHARGE" else values

    taken_micro = 0
    for owner in dict.fromkeys(escrow["owner"] for escrow in credited):
        mine = [escrow for escrow in credited if escrow["owner"] == owner]
        returned = [escrow for escrow in mine if _returned_micro(escrow)]
        charged = [escrow for escrow in mine if escrow.get("charge", 0)]
        returned_micro, bond = sum(map(_returned_micro, returned)), _BOND + owner
        note("EARN", owner, mine, sum(escrow["paid"] for escrow in mine) - returned_micro)
        note("JUDGING", bond, returned, returned_micro)
        line = lines.get(f"CHARGE#{bond}#{key(batch)}", {})
        paid_micro = line["amount"] if line and flaw(line) is None else 0
        note("CHARGE", bond, charged, paid_micro, sum(escrow["charge"] for escrow in charged))
        taken_micro -= paid_micro
    fees_micro = sum(escrow["fee"] for escrow in credited)
    note("FEE", context.platform_account, credited, fees_micro + taken_micro)
    return shares


def _returned_micro(escrow: Values) -> int:
    """What of an owner's price goes back to the bond that has paid the agent's judge."""
    return min(int(escrow.get("judging", 0)), int(escrow["paid"]))


def _unless_equal(invariant: str, at: str, expected: object, found: object) -> Iterator[Difference]:
    if expected != found:
        yield Difference(invariant, at, expected, found)
