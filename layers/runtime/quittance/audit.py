"""The auditor's rules: what must hold of an item of the ledger by itself, and with the items that it names. Pure.

I1 conservation, I2 no debt, I3 split, I4 fee, I6 states, I8 ages, I9 identity, I10 and I11 balances, I12 receipts,
I15 the log, I16 standings. `form` is what no invariant covers: an attribute that is missing, unknown or of a wrong
type, or not as it was first written.

An item is a mapping of its attributes to strings, integers and bytes. The attributes of every kind of item are declared
here, so an attribute that the auditor does not know is a difference. The code shares nothing with the writes that it
audits but the items and `seal.py`. `auditing.py` reads the items, and `tests/integration/test_mutations.py` shows that
no attribute is overlooked.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from quittance import escrow as escrows
from quittance.certified import ProofError
from quittance.escrow import State
from quittance.limits import (
    AUDIT_DIFFERENCES_MAX,
    EXPIRY_REFUND_MS_MAX,
    OUTPUT_INLINE_BYTES_MAX,
    STDERR_BYTES_MAX,
    UNLOGGED_MS_MAX,
    UNSWEPT_MS_MAX,
    WALLET_PURSES,
)
from quittance.pricing import tariff_sha256
from quittance.receipt import verify
from quittance.run import Outcome, Side
from quittance.seal import SEAL, UNSEALED, is_sealed

_BPS: Final = 10_000
_JUDGE_MARK: Final = ":judge-"
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
    "agent_rules_sha256 task_rules_sha256 judges webhook",
)
_ENDED: Final = _HELD | _form(
    "paid:int fee:int refunded:int outcome message reputation_tenths:int settled_ms:int receipt",
    "output:bytes output_sha256 output_bytes:int log:bytes log_sha256 log_bytes:int",
)
_QUEUED: Final = _form("work work_at:int")
_CREDITED: Final = _form("swept_ms:int batch place:int")
_BATCH: Final = _SEALED | _form("agent_id escrows", "at:int")
_MOVEMENT: Final = _SEALED | _form("account at:int amount:int")
_SHARE: Final = _MOVEMENT | _form("agent_id tasks:int")
_FORMS: Final[Mapping[tuple[str, str], Form]] = {
    ("ESC", "held"): _HELD | _QUEUED,
    ("ESC", "ended"): _ENDED | _QUEUED,
    ("ESC", "swept"): _ENDED | _CREDITED,
    ("ACCT", ""): _form("pk available:int"),
    ("IN", ""): _MOVEMENT,
    ("OUT", ""): _MOVEMENT,
    ("EARN", ""): _SHARE,
    ("FEE", ""): _SHARE,
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
        case "BATCH":
            return "logged" if "first" in values else "credited"
    return ""


# The result.


@dataclass(frozen=True, slots=True)
class LogHead:
    """How many receipts the log has, and how many of them the newest checkpoint covers."""

    size: int = 0
    published: int = 0


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

    At most AUDIT_DIFFERENCES_MAX of these are named; `unnamed` counts the others. `moved` counts the accounts that
    moved while the table was read and were compared by themselves, `unsettled` those of them that never stood still.
    `standings` are folded from the agents' receipts in the log's order, as text.
    """

    escrows: int = 0
    deposited_micro: int = 0
    withdrawn_micro: int = 0
    available_micro: int = 0
    held_micro: int = 0
    uncredited_micro: int = 0
    credited_micro: int = 0
    journalled_micro: int = 0
    differences: list[Difference] = field(default_factory=list)
    unnamed: int = 0
    moved: int = 0
    unsettled: int = 0
    log: LogHead = LogHead()
    standings: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many differences there are."""
        return len(self.differences) + self.unnamed

    def add(self, differences: Iterable[Difference]) -> None:
        """Records differences."""
        for difference in differences:
            if len(self.differences) < AUDIT_DIFFERENCES_MAX:
                self.differences.append(difference)
            else:
                self.unnamed += 1

    def check(self, invariant: str, at: str, expected: object, found: object) -> None:
        """Records a difference unless both sides are equal."""
        self.add(_unless_equal(invariant, at, expected, found))


# Money.


@dataclass(slots=True)
class Books:
    """What each account should have, and what it has. Its size grows with accounts and open tasks, not with escrows.

    What is older than `recent_ms` and final never changes again. All else may change while the table is read, so it can
    be summed again for one account: lines since `recent_ms` by the index, and older escrows that were `held`.
    """

    recent_ms: int
    final_micro: Counter[str] = field(default_factory=Counter)
    gap_micro: Counter[str] = field(default_factory=Counter)
    held: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def post(self, result: Audit, values: Values) -> None:
        """Adds an item of a right form."""
        match kind(values):
            case "ACCT" if is_purse(values):
                result.available_micro += values["available"]
                self.gap_micro[account(values)] += values["available"]
            case "ESC":
                result.escrows += 1
                self._move(values)
                _post_escrow(result, values)
            case "IN":
                self._move(values)
                result.deposited_micro += values["amount"]
            case "OUT":
                self._move(values)
                result.withdrawn_micro -= values["amount"]
            case "EARN" | "FEE":
                self._move(values)
                result.journalled_micro += values["amount"]

    def _move(self, values: Values) -> None:
        self.gap_micro[values["account"]] -= moved_micro(values)
        if values["at"] >= self.recent_ms:
            return
        if kind(values) == "ESC" and is_held(values):
            self.held[values["account"]].add(values["pk"])
        else:
            self.final_micro[values["account"]] += moved_micro(values)


def account(values: Values) -> str:
    """The account that an item's key names."""
    return key(values).partition("#")[0]


def is_purse(values: Values) -> bool:
    """Whether a balance lies where the wallet looks for it."""
    _, parted, purse = key(values).partition("#")
    return not parted or purse in {str(number) for number in range(1, WALLET_PURSES)}


def moved_micro(values: Values) -> int:
    """By how much a movement, or an escrow, has changed what its account has available."""
    if kind(values) != "ESC":
        return int(values["amount"])
    return int(values.get("refunded", 0)) - int(values["budget"])


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
    shards: int
    now_ms: int


def named(values: Values) -> list[str]:
    """The keys of the items without which an item of a right form cannot be checked."""
    match kind(values):
        case "ESC":
            batch = [f"BATCH#{values['batch']}"] if is_swept(values) else []
            return batch + [f"ESC#{judge.escrow_id}" for judge in _judges(values) or ()]
        case "EARN" | "FEE":
            return [f"ESC#{reference(values)}"]
        case "BATCH" if "first" in values:
            return [f"LOG#{values['first']}"]
        case "LOG#":
            return [f"BATCH#{values['batch']}"]
    return []


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
            found += _unless_equal("I2", at, expected="a purse of the wallet", found=_purse_name(values))
        case "IN" | "OUT" as sign:
            found += _unless_equal("form", at, values["account"], account(values))
            found += _unless_equal("I2", at, expected=True, found=(values["amount"] > 0) == (sign == "IN"))
            found += _unless_equal("I2", at, expected=True, found=values["amount"] != 0)
        case "EARN" | "FEE":
            found += _check_share(values, others, context)
        case "BATCH":
            found += _check_batch(values, others, context)
        case "LOG#":
            batch = others.get(f"BATCH#{values['batch']}", {})
            found += _unless_equal("I15", at, key(values), str(batch.get("first")))
    return found


def _purse_name(values: Values) -> str:
    return "a purse of the wallet" if is_purse(values) else "credits that the wallet never looks for"


def _check_seal(values: Values) -> Iterator[Difference]:
    """What is written once stays as it was first written. Items of before there were seals have none."""
    if SEAL in values:
        first = {"ESC": _HELD, "BATCH": _BATCH}.get(kind(values), Form(dict.fromkeys(values, str)))
        names = (first.required.keys() | first.optional.keys()) - UNSEALED
        sealed = {name: value for name, value in values.items() if name in names}
        if kind(values) == "ESC" and is_judges(values):
            del sealed["input_sha256"]
        yield from _unless_equal("form", values["pk"], expected=True, found=is_sealed(sealed))


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
    shards = {f"{queue}#{shard}" for shard in range(context.shards)}
    if values["work"] not in shards or values["work_at"] != work_at:
        expected = f"work at {work_at} in a shard of {queue}"
        yield Difference("I6", values["pk"], expected, f"work at {values['work_at']} in {values['work']!r}")


def _check_age(values: Values, most_ms: int, done: str, context: Context) -> Iterator[Difference]:
    age_ms = context.now_ms - values["work_at"]
    if age_ms > most_ms:
        yield Difference("I8", values["pk"], f"{done} within {most_ms} ms", f"not after {age_ms} ms")


def _check_split(values: Values) -> Iterator[Difference]:
    at, used = values["pk"], used_micro(values)
    yield from _unless_equal("I3", at, values["budget"], used + values["refunded"])
    yield from _unless_equal("I3", at, expected=True, found=min(values["paid"], values["fee"], values["refunded"]) >= 0)
    yield from _unless_equal("I4", at, used * values["fee_bps"] // _BPS, values["fee"])
    if values["state"] != State.RELEASED:
        yield from _unless_equal("I3", at, values["budget"], values["refunded"])


def _check_receipt(values: Values, context: Context) -> Iterator[Difference]:
    """I12: a settled escrow has a valid receipt, and says what the receipt states."""
    try:
        stated = dict(verify(values["receipt"], context.jwks))
    except ProofError as exc:
        yield Difference("I12", values["pk"], "a valid receipt", str(exc))
        return
    due, rules, meter = _due_claims(values), stated["acceptance"] or {}, stated["meter"]
    stated["rules"] = [rules.get("agent_sha256"), rules.get("task_sha256")]
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


def _due_claims(values: Values) -> dict[str, object]:
    """What an escrow's receipt must state, by the names of its claims."""
    return {
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
            _Judge(
                agent_id,
                budget_micro,
                next(
                    iter(named), escrows.escrow_id(values["account"], f"{values['task_id']}{_JUDGE_MARK}{Side(side)}")
                ),
            )
            for side, agent_id, budget_micro, *named in json.loads(values.get("judges", "[]"))
        ]
    except (TypeError, ValueError):
        return None


def _judges_id(values: Values, side: Side) -> str:
    """The escrow of a judge that the payer of the task pays, too."""
    return escrows.escrow_id(values["account"], f"{values['task_id']}{_JUDGE_MARK}{side}")


def _check_share(values: Values, others: Mapping[str, Values], context: Context) -> Iterator[Difference]:
    """I10: what the sweep credited belongs to a batch, which is checked with all of its escrows and lines."""
    first = others.get(f"ESC#{reference(values)}", {})
    owner = first.get("owner") if kind(values) == "EARN" else context.platform_account
    due = (owner, reference(values), first.get("agent_id"))
    found = (values["account"], first.get("batch"), values["agent_id"])
    yield from _unless_equal("I10", values["pk"], due, found)
    yield from _unless_equal("form", values["pk"], values["account"], account(values))
    yield from _unless_equal("I2", values["pk"], expected=True, found=values["amount"] > 0)


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
    """The keys of the lines by which a batch was credited."""
    owner = escrows_.get(f"ESC#{key(batch)}", {}).get("owner")
    return [f"EARN#{owner}#{key(batch)}", f"FEE#{context.platform_account}#{key(batch)}"]


def check_credited(
    batch: Values, escrows_: Mapping[str, Values], lines: Mapping[str, Values], context: Context
) -> list[Difference]:
    """I10 and I15: each escrow of a batch has its place in it, and the batch's lines are what its escrows come to."""
    found: list[Difference] = []
    credited = []
    for place, pk in enumerate(members(batch)):
        escrow = escrows_.get(pk, {})
        due = (key(batch), place, batch["agent_id"], batch.get("at", escrow.get("swept_ms")))
        stands = (escrow.get("batch"), escrow.get("place"), escrow.get("agent_id"), escrow.get("swept_ms"))
        found += _unless_equal("I15", pk, due, stands)
        if escrow and flaw(escrow) is None and is_swept(escrow):
            credited.append(escrow)
    amounts = [sum(escrow[name] for escrow in credited) for name in ("paid", "fee")]
    for pk, amount in zip(share_keys(batch, escrows_, context), amounts, strict=True):
        wanted = {
            "pk": pk,
            "account": pk.split("#")[1],
            "amount": amount,
            "agent_id": batch["agent_id"],
            "tasks": len(members(batch)),
            "at": credited[0]["swept_ms"] if credited else None,
        }
        line = {name: value for name, value in lines.get(pk, {}).items() if name != SEAL}
        found += _unless_equal("I10", pk, wanted if amount else {}, line)
    return found


def _unless_equal(invariant: str, at: str, expected: object, found: object) -> Iterator[Difference]:
    if expected != found:
        yield Difference(invariant, at, expected, found)
