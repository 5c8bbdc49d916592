"""A second checker of receipts, written from docs/receipts.md alone: it shares no code with the verifier.

It knows the versions 1 to 3 of the claims. `check` takes a receipt and a key set and returns the claims, or raises
RefusedError with the violated rule of that page. Nothing here imports `quittance`.
"""

import base64
import hashlib
import json
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

HEX: Final = frozenset("0123456789abcdef")
BASE32: Final = frozenset("abcdefghijklmnopqrstuvwxyz234567")
DIGITS: Final = frozenset("0123456789")
URL_SAFE: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")

# The outcomes by fault: of all versions, of version 1 only, and of versions 2 and 3 only.
IN_BOTH: Final = {
    "none": ("succeeded", "not_needed", "superseded"),
    "agent": (
        *("exit_code", "trap_unreachable", "trap_memory", "trap_arithmetic", "trap_stack", "trap_table"),
        *("fuel_exhausted", "timeout", "memory_limit", "output_limit", "rejected"),
    ),
    "platform": (
        *("worker_lost", "out_of_time", "artefact_missing", "artefact_tampered", "storage_down", "expired"),
        "undelivered",
    ),
}
IN_ONE: Final = {
    1: {"none": ("rules_failed", "judge_failed")},
    2: {"none": ("withheld",), "payer": ("budget_exhausted",)},
}
IN_ONE[3] = IN_ONE[2]
FAULT_OF: Final = {
    version: {outcome: fault for table in (IN_BOTH, more) for fault, outcomes in table.items() for outcome in outcomes}
    for version, more in IN_ONE.items()
}
OUTCOMES: Final = tuple(dict.fromkeys([*FAULT_OF[1], *FAULT_OF[2]]))
BY_RULES: Final = {"rejected", "rules_failed", "judge_failed"}
NOTHING_RAN: Final = {"not_needed", "superseded", "expired", "undelivered"}
STATES: Final = {"succeeded": "released", "withheld": "released", "expired": "expired"}
REJECTIONS: Final = {
    "agent_rules": "agent",
    "task_rules": "task",
    "agent_judge": "agent",
    "task_judge": "task",
}  # and the side of each
AFTER_JUDGE_OF: Final = {"agent": ("agent_judge", "task_judge"), "task": ("task_judge",)}
LOWERED: Final = {"fuel_exhausted": "fuel", "timeout": "timeout_ms", "output_limit": "output_bytes"}
TEXTS: Final = {
    "iss": (0, 1_000),
    "task": (1, 140),
    "user": (1, 260),
    "owner": (1, 260),
    "agent": (1, 100),
    "engine": (0, 100),
}
DIGESTS: Final = ("module_sha256", "input_sha256", "tariff_sha256", "seed")
DIGESTS_OR_NULL: Final = ("output_sha256", "stderr_sha256")
AMOUNTS: Final = ("budget", "paid", "fee", "refunded")
ADDED_AMOUNTS: Final = ("compute", "charge", "judging", "task_judging")
PRICES: Final = ("run", "per_billion_fuel")
TIMES: Final = ("funded_at", "expires_at", "settled_at")
OTHERS: Final = {
    *("v", "eid", "asset", "fee_bps", "state", "outcome", "fault", "acceptance", "reputation_tenths", "meter"),
    *("limits", "config_sha256", "epoch_ns"),
}
ADDED_OTHERS: Final = {"compute_prices", "task_judge_bps", "own_limits", "memory_refused"}
CLAIMS: Final = {
    1: {*TEXTS, *DIGESTS, *DIGESTS_OR_NULL, *AMOUNTS, *TIMES, *OTHERS},
    2: {*TEXTS, *DIGESTS, *DIGESTS_OR_NULL, *AMOUNTS, *TIMES, *OTHERS, *ADDED_AMOUNTS, *ADDED_OTHERS},
}
CLAIMS[3] = {*CLAIMS[2], "ticket"}
TICKET: Final = {"channel", "salt", "key", "ticket_value", "n", "tickets", "signed"}
TICKET_CLAIMS: Final = {"iss", "channel", "n", "exp", "agent_id", "input_sha256", "budget"}
TICKET_OPTIONAL: Final = {"timeout", "acceptance_sha256", "options_sha256"}
TICKET_CHARS: Final = 4_096
PRIME: Final = 2**255 - 19
LIMITS_OF_1: Final = {"fuel", "memory_bytes", "timeout_ms"}
LIMITS: Final = {*LIMITS_OF_1, "output_bytes"}
ACCEPTANCE_OF_1: Final = {"agent_sha256", "task_sha256", "agent_score", "task_score", "accepted"}
ACCEPTANCE: Final = {*ACCEPTANCE_OF_1, "rejected_by"}
OUTPUT_BYTES_OF_1: Final = 1_048_576
METER_NUMBERS: Final = ("fuel", "cpu_ms", "wall_ms", "memory_bytes", "input_bytes", "output_bytes", "stderr_bytes")
TOKEN_CHARS: Final = 16_384
KEYS: Final = 1_000


class RefusedError(Exception):
    """The receipt is refused."""


def need(holds: object, why: str) -> None:
    if not holds:
        raise RefusedError(why)


# Forms of values.


def is_text(value: object, low: int, high: int) -> bool:
    if not isinstance(value, str) or not low <= len(value) <= high:
        return False
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in value)


def is_of(value: object, alphabet: frozenset[str], low: int, high: int) -> bool:
    return isinstance(value, str) and low <= len(value) <= high and set(value) <= alphabet


def is_digest(value: object) -> bool:
    return is_of(value, HEX, 64, 64)


def is_integer(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def is_number_text(value: object, digits: int) -> bool:
    return is_of(value, DIGITS, 1, digits) and (value == "0" or str(value)[0] != "0")


def is_score(value: object) -> bool:
    if value in ("0", "1") and isinstance(value, str):
        return True
    if not isinstance(value, str) or not value.startswith("0."):
        return False
    return is_of(value[2:], DIGITS, 1, 6) and value[-1] != "0"


def members(value: object, names: set[str], what: str) -> dict[str, Any]:
    need(isinstance(value, dict), f"{what} is an object")
    assert isinstance(value, dict)
    need(set(value) == names, f"{what} has exactly its members")
    return value


# The claims.


def version_of(value: object) -> int:
    version = value.get("v") if isinstance(value, dict) else None
    need(is_integer(version, 1, 3), "v")
    assert isinstance(version, int)
    return version


def as_version_2(claims: dict[str, Any]) -> dict[str, Any]:
    """Claims of version 1, completed with what version 2 added. Apart from `v`, their form is not checked here."""
    more: dict[str, Any] = {
        **dict.fromkeys(ADDED_AMOUNTS, "0"),
        "compute_prices": dict.fromkeys(PRICES, "0"),
        "task_judge_bps": 0,
        "own_limits": None,
        "memory_refused": False,
    }
    if claims["limits"] is not None:
        more["limits"] = {**members(claims["limits"], LIMITS_OF_1, "limits"), "output_bytes": OUTPUT_BYTES_OF_1}
    if claims["acceptance"] is not None:
        rules = members(claims["acceptance"], ACCEPTANCE_OF_1, "acceptance")
        more["acceptance"] = {**rules, "rejected_by": None}
    return {**claims, **more}


def check_forms(claims: dict[str, Any]) -> None:
    for name, (low, high) in TEXTS.items():
        need(is_text(claims[name], low, high), name)
    need(is_of(claims["eid"], BASE32, 26, 26), "eid")
    for name in DIGESTS:
        need(is_digest(claims[name]), name)
    for name in DIGESTS_OR_NULL:
        need(claims[name] is None or is_digest(claims[name]), name)
    need(is_digest(claims["config_sha256"]) or claims["config_sha256"] == "", "config_sha256")
    need(claims["asset"] == "credit/6", "asset")
    for name in (*AMOUNTS, *ADDED_AMOUNTS):
        need(is_number_text(claims[name], 16), name)
    prices = members(claims["compute_prices"], set(PRICES), "compute_prices")
    need(all(is_number_text(price, 16) for price in prices.values()), "compute_prices")
    for name in ("fee_bps", "task_judge_bps"):
        need(is_integer(claims[name], 0, 10_000), name)
    need(is_integer(claims["reputation_tenths"], -1_000, 1_000), "reputation_tenths")
    need(is_number_text(claims["epoch_ns"], 22), "epoch_ns")
    for name in TIMES:
        need(is_integer(claims[name], 0, 2**53), name)
    need(isinstance(claims["outcome"], str) and claims["outcome"] in FAULT_OF[claims["v"]], "outcome")
    meter = members(claims["meter"], {*METER_NUMBERS, "fuel_exact"}, "meter")
    need(type(meter["fuel_exact"]) is bool, "fuel_exact")
    need(all(is_integer(meter[name], 0, 2**53) for name in METER_NUMBERS), "meter")
    for name in ("limits", "own_limits"):
        if claims[name] is not None:
            limits = members(claims[name], LIMITS, name)
            need(all(is_integer(value, 0, 2**53) for value in limits.values()), name)
    need(type(claims["memory_refused"]) is bool, "memory_refused")
    if claims["acceptance"] is not None:
        check_form_of_acceptance(members(claims["acceptance"], ACCEPTANCE, "acceptance"))


def check_form_of_acceptance(acceptance: dict[str, Any]) -> None:
    for side in ("agent", "task"):
        digest, score = acceptance[f"{side}_sha256"], acceptance[f"{side}_score"]
        need(digest is None or is_digest(digest), "digest of rules")
        need(score is None or is_score(score), "score")
    need(type(acceptance["accepted"]) is bool, "accepted")
    by = acceptance["rejected_by"]
    need(by is None or (isinstance(by, str) and by in REJECTIONS), "rejected_by")


def check_times(claims: dict[str, Any], iat: int, exp: int) -> None:
    settled = claims["settled_at"]
    need(iat * 1_000 <= settled < exp * 1_000, "settled_at is within the certificate")
    need(claims["funded_at"] <= settled, "funded_at <= settled_at")
    need((settled < claims["expires_at"]) == (claims["state"] != "expired"), "expires_at")


def is_judge(claims: dict[str, Any]) -> bool:
    return ":judge-" in claims["task"]


def rejected_by(claims: dict[str, Any]) -> str | None:
    by: str | None = claims["acceptance"]["rejected_by"] if claims["acceptance"] else None
    return by


def computing_micro(claims: dict[str, Any], fuel: int) -> int:
    """P(f) as docs/receipts.md defines it."""
    run, per_billion = (int(claims["compute_prices"][name]) for name in PRICES)
    whole, rest = divmod(fuel * per_billion, 10**9)
    return run + whole + (1 if rest else 0)


def check_amounts(claims: dict[str, Any]) -> None:
    budget, paid, fee, refunded = (int(claims[name]) for name in AMOUNTS)
    need(1 <= budget <= 10**12, "budget")
    need(paid + fee + refunded == budget, "paid + fee + refunded = budget")
    released = claims["state"] == "released"
    fuel = claims["meter"]["fuel"]
    if claims["v"] >= 2 and released and is_judge(claims):
        fuel = claims["limits"]["fuel"] if claims["limits"] else 0
    borne = released or claims["fault"] == "payer"
    compute = int(claims["compute"])
    need(compute == (min(computing_micro(claims, fuel), budget) if borne else 0), "compute")
    charge = computing_micro(claims, claims["meter"]["fuel"]) if claims["fault"] == "agent" else 0
    need(int(claims["charge"]) == charge, "charge")
    price = paid + fee - compute
    need(price >= 0, "the price is not negative")
    need(fee - compute == price * claims["fee_bps"] // 10_000, "the commission")
    if not released:
        share = claims["task_judge_bps"] if rejected_by(claims) == "task_judge" else 0
        need(price <= (budget - compute) * share // 10_000, "paid although not released")
    for side, name in (("agent", "judging"), ("task", "task_judging")):
        if claims[name] != "0":
            need(claims["acceptance"] and claims["acceptance"][f"{side}_sha256"], "a judge by rules that are not named")
            need(not is_judge(claims), "a judge has no judge")
            asked = claims["outcome"] == "succeeded" or rejected_by(claims) in AFTER_JUDGE_OF[side]
            need(asked, "a judge that was not asked costs nothing")


def fault_of(claims: dict[str, Any]) -> str:
    """Who is at fault; never the payer in version 1, which has no `own_limits` and no `rejected_by`."""
    outcome, given, own = claims["outcome"], claims["limits"], claims["own_limits"]
    fault = FAULT_OF[claims["v"]][outcome]
    if outcome == "rejected" and rejected_by(claims) and REJECTIONS[rejected_by(claims)] == "task":
        return "payer"
    if fault != "agent" or given is None or own is None:
        return fault
    lower = outcome in LOWERED and given[LOWERED[outcome]] < own[LOWERED[outcome]]
    without_memory = claims["memory_refused"] and given["memory_bytes"] < own["memory_bytes"]
    return "payer" if lower or without_memory else "agent"


def check_outcome(claims: dict[str, Any]) -> None:
    outcome = claims["outcome"]
    fault = fault_of(claims)
    need(claims["fault"] == fault, "fault")
    need(claims["state"] == STATES.get(outcome, "refunded"), "state")
    if outcome == "succeeded":
        reputation = 25 if claims["meter"]["wall_ms"] < 1_000 else 20
    else:
        reputation = -50 if fault == "agent" else 0
    need(claims["reputation_tenths"] == reputation, "reputation_tenths")
    need((claims["output_sha256"] is not None) == (outcome == "succeeded"), "output_sha256")
    user, task = claims["user"], claims["task"]
    if claims["v"] == 3:
        user, task = "channel " + claims["ticket"]["channel"], str(claims["ticket"]["n"])
    need(claims["eid"] == short_id(user, task), "eid")
    if claims["v"] == 1 or not is_judge(claims):
        need(claims["seed"] == hashlib.sha256(f"quittance seed {claims['eid']}".encode()).hexdigest(), "seed")
    need(int(claims["epoch_ns"]) == claims["funded_at"] * 10**6, "epoch_ns")
    if outcome == "withheld":
        check_withheld(claims)


def short_id(*parts: str) -> str:
    """26 characters of base32 that name a list of parts, each after its length."""
    hashed = hashlib.sha256("".join(f"{len(each)}:{each}" for each in parts).encode()).digest()
    return base64.b32encode(hashed).decode().lower()[:26]


def check_withheld(claims: dict[str, Any]) -> None:
    need(is_judge(claims), "only a judge's work is withheld")
    need(not any(claims["meter"][name] for name in METER_NUMBERS), "what a withheld run used is not stated")
    need(claims["meter"]["fuel_exact"], "what a withheld run used is not stated")
    need(claims["input_sha256"] == hashlib.sha256(b"").hexdigest(), "what a withheld run read is not stated")
    need(claims["stderr_sha256"] is None, "what a withheld run wrote is not stated")


def check_acceptance(claims: dict[str, Any]) -> None:
    acceptance, succeeded = claims["acceptance"], claims["outcome"] == "succeeded"
    if acceptance is None:
        need(claims["outcome"] not in BY_RULES, "the rules decided, but none are named")
        return
    for side in ("agent", "task"):
        digest, score = acceptance[f"{side}_sha256"], acceptance[f"{side}_score"]
        need(score is None or digest is not None, "a score by rules that are not named")
        need(score is None or claims["v"] == 1 or succeeded, "a score of what was not accepted")
    need(acceptance["agent_sha256"] or acceptance["task_sha256"], "rules of one side")
    need(acceptance["accepted"] == succeeded, "accepted")
    if claims["v"] >= 2:
        by = acceptance["rejected_by"]
        need((by is not None) == (claims["outcome"] == "rejected"), "rejected_by")
        need(by is None or acceptance[f"{REJECTIONS[by]}_sha256"], "rejected by rules that are not named")


def check_run(claims: dict[str, Any]) -> None:
    outcome, meter, limits, own = claims["outcome"], claims["meter"], claims["limits"], claims["own_limits"]
    engine = bool(claims["engine"]) and bool(claims["config_sha256"])
    if limits is not None:
        for name in ("fuel", "memory_bytes", "output_bytes"):
            need(meter[name] <= limits[name], name)
        need(own is None or all(limits[name] <= own[name] for name in LIMITS), "limits over the agent's own")
    if claims["memory_refused"]:
        need(FAULT_OF[claims["v"]][outcome] == "agent", "memory_refused although the agent did not fail")
        lower = own is None or limits is None or limits["memory_bytes"] < own["memory_bytes"]
        need(lower, "memory_refused by the agent's own limit")
    if outcome in NOTHING_RAN:
        need(limits is None and claims["stderr_sha256"] is None, "nothing ran")
        need(not claims["engine"] and not claims["config_sha256"], "nothing ran")
        need(not any(meter[name] for name in METER_NUMBERS), "nothing ran")
    elif FAULT_OF[claims["v"]][outcome] == "platform":
        if limits is None:
            need(not any(meter[name] for name in METER_NUMBERS if name != "input_bytes"), "before the run")
        else:
            need(engine, "engine of a run")
    else:
        need(limits is not None, "limits of a run")
        need(engine, "engine of a run")
        need(claims["v"] == 1 or meter["wall_ms"] <= limits["timeout_ms"], "longer than its timeout")
    if outcome == "timeout":
        need(meter["wall_ms"] == limits["timeout_ms"], "a timeout's length")


# The ticket.


def check_form_of_ticket(ticket: dict[str, Any]) -> None:
    need(is_channel(ticket["channel"]), "channel")
    need(is_text(ticket["salt"], 1, 100), "salt")
    need(is_of(ticket["key"], URL_SAFE, 43, 43), "key")
    need(is_number_text(ticket["ticket_value"], 16) and ticket["ticket_value"] != "0", "ticket_value")
    for name in ("n", "tickets"):
        need(is_integer(ticket[name], 1, 10**6), name)
    need(is_text(ticket["signed"], 0, TICKET_CHARS), "signed")


def is_channel(value: object) -> bool:
    return isinstance(value, str) and value[:4] == "chn_" and is_of(value[4:], BASE32, 26, 26)


def credits_micro(text: object) -> int:
    need(isinstance(text, str), "budget of the ticket")
    whole, point, fraction = str(text).partition(".")
    need(is_of(whole, DIGITS, 1, 16) and (is_of(fraction, DIGITS, 1, 6) or not point), "budget of the ticket")
    return int(whole) * 10**6 + int(fraction.ljust(6, "0") or "0")


def check_forms_of_asked(asked: dict[str, Any]) -> None:
    names = set(asked)
    need(TICKET_CLAIMS <= names <= TICKET_CLAIMS | TICKET_OPTIONAL, "claims of the ticket")
    need(is_text(asked["iss"], 0, 1_000), "iss of the ticket")
    need(is_channel(asked["channel"]), "channel of the ticket")
    need(is_integer(asked["n"], 1, 10**6), "n of the ticket")
    need(is_integer(asked["exp"], 0, 2**40), "exp of the ticket")
    need(is_text(asked["agent_id"], 1, 100), "agent_id of the ticket")
    need(is_digest(asked["input_sha256"]), "input_sha256 of the ticket")
    need(asked.get("timeout") is None or is_integer(asked["timeout"], 1, 2**20), "timeout of the ticket")
    for name in ("acceptance_sha256", "options_sha256"):
        need(asked.get(name) is None or is_digest(asked[name]), f"{name} of the ticket")


def root_of_unity() -> int:
    """A square root of -1 in the field."""
    return pow(2, (PRIME - 1) // 4, PRIME)


def is_usable_point(y: int) -> bool:
    """Whether y is that of a point of the curve -x² + y² = 1 + d·x²·y², whose order does not divide 8."""
    d = -121_665 * pow(121_666, -1, PRIME) % PRIME
    square = (y * y - 1) * pow(d * y * y + 1, -1, PRIME) % PRIME
    x = pow(square, (PRIME + 3) // 8, PRIME)
    if x * x % PRIME != square:
        x = x * root_of_unity() % PRIME
    if x * x % PRIME != square:
        return False
    for _ in range(3):  # doubled three times, a point of small order is the neutral one
        product = d * x * x * y * y
        x, y = (
            2 * x * y * pow(1 + product, -1, PRIME) % PRIME,
            (y * y + x * x) * pow(1 - product, -1, PRIME) % PRIME,
        )
    return (x, y) != (0, 1)


def check_ticket(claims: dict[str, Any]) -> None:
    ticket = claims["ticket"]
    parts = (claims["iss"], claims["user"], ticket["salt"], ticket["key"], ticket["ticket_value"])
    need(ticket["channel"] == "chn_" + short_id(*parts), "the parts of the channel's id")
    raw = base64.urlsafe_b64decode(ticket["key"] + "=")
    need(base64.urlsafe_b64encode(raw).decode().rstrip("=") == ticket["key"], "spare bits of the channel's key")
    y = int.from_bytes(raw, "little") % 2**255
    need(y < PRIME, "y of the channel's key")
    need(is_usable_point(y), "the channel's key is a point that is not of small order")
    header, asked, signed, signature = unpack(ticket["signed"], "the ticket", TICKET_CHARS)
    need({"typ", "alg"} <= set(header) <= {"typ", "alg", "kid"}, "header of the ticket")
    need(header["typ"] == "quittance-ticket+jwt", "typ of the ticket")
    need(isinstance(header["alg"], str) and header["alg"] in {"EdDSA", "Ed25519"}, "alg of the ticket")
    need("kid" not in header or is_kid(header["kid"]), "kid of the ticket")
    check_forms_of_asked(asked)
    most = credits_micro(asked["budget"])
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, signed)
    except InvalidSignature as error:
        why = "the signature of the ticket"
        raise RefusedError(why) from error
    need(asked["iss"] == claims["iss"], "iss is the ticket's")
    need(asked["channel"] == ticket["channel"], "channel is the ticket's")
    need(asked["n"] == ticket["n"], "n is the ticket's")
    whole, rest = divmod(most, int(ticket["ticket_value"]))
    need(ticket["tickets"] == whole + (1 if rest else 0), "tickets")
    check_asked(claims, asked, most)


def is_kid(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 256


def check_asked(claims: dict[str, Any], asked: dict[str, Any], most: int) -> None:
    """The task must be the one that the ticket asks for."""
    rules = asked.get("acceptance_sha256")
    need(claims["task"] == f"{asked['channel']}.{asked['n']}", "task is the ticket's")
    need(claims["agent"] == asked["agent_id"], "agent is the ticket's")
    need(claims["input_sha256"] == asked["input_sha256"], "input is the ticket's")
    stated = claims["acceptance"]["task_sha256"] if claims["acceptance"] else None
    need(stated == rules, "rules are the ticket's")
    budget = int(claims["budget"])
    need(budget == most or (rules is not None and budget < most), "budget is the ticket's")
    need(budget + int(claims["task_judging"]) <= most, "the judge's cost is within the ticket's budget")
    if asked.get("timeout") is not None and claims["limits"] is not None:
        need(claims["limits"]["timeout_ms"] <= asked["timeout"] * 1_000, "timeout is the ticket's")
    need(claims["funded_at"] // 1_000 < asked["exp"] + 30, "the ticket had expired")


def check_claims(value: object, iat: int, exp: int) -> dict[str, Any]:
    """Checks all rules of claims, given the validity period of their certificate."""
    version = version_of(value)
    stated = members(value, CLAIMS[version], "the claims")
    claims = as_version_2(stated) if version == 1 else stated
    check_forms(claims)
    if version == 3:
        check_form_of_ticket(members(claims["ticket"], TICKET, "ticket"))
    check_acceptance(claims)
    check_outcome(claims)
    check_times(claims, iat, exp)
    check_amounts(claims)
    check_run(claims)
    if version == 3:
        check_ticket(claims)
    return stated


# The token and its chain.


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    need(len({name for name, _ in pairs}) == len(pairs), "a member stands twice")
    return dict(pairs)


def unpack(text: object, what: str, chars: int = TOKEN_CHARS) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    """Header, payload, signed bytes and signature of a compact JWS in its only spelling."""
    need(isinstance(text, str) and len(text) <= chars, f"{what} is a token")
    assert isinstance(text, str)
    parts = text.split(".")
    need(len(parts) == 3 and parts[0] and parts[1], f"{what} has three parts")
    raw = []
    for part in parts:
        need(set(part) <= URL_SAFE and len(part) % 4 != 1, f"{what} is in base64url")
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        need(base64.urlsafe_b64encode(data).decode().rstrip("=") == part, f"{what} has spare bits")
        raw.append(data)
    try:
        header, payload = (json.loads(data.decode("utf-8"), object_pairs_hook=once) for data in raw[:2])
    except (ValueError, RecursionError) as error:
        why = f"{what} is JSON"
        raise RefusedError(why) from error
    need(isinstance(header, dict) and isinstance(payload, dict), f"{what} holds objects")
    return header, payload, f"{parts[0]}.{parts[1]}".encode(), raw[2]


def coordinate(text: object) -> int:
    need(is_of(text, URL_SAFE, 43, 43), "a coordinate of a P-256 key")
    return int.from_bytes(base64.urlsafe_b64decode(f"{text}="), "big")


def root_of(key_set: dict[str, Any], kid: object) -> tuple[ec.EllipticCurvePublicKey, str | None]:
    keys = key_set.get("keys")
    need(isinstance(keys, list) and len(keys) <= KEYS, "a key set")
    assert isinstance(keys, list)
    named = [key for key in keys if isinstance(key, dict) and key.get("kid") == kid]
    need(named, "a root of the key set")
    root = named[0]
    need(all(key == root for key in named), "one root of a name")
    need((root.get("kty"), root.get("crv")) == ("EC", "P-256"), "a P-256 root")
    if "purpose" in root:
        need(isinstance(root["purpose"], str) and root["purpose"], "the purpose of a root")
    try:
        numbers = ec.EllipticCurvePublicNumbers(coordinate(root.get("x")), coordinate(root.get("y")), ec.SECP256R1())
        return numbers.public_key(), root.get("purpose")
    except ValueError as error:
        why = "a point of the curve"
        raise RefusedError(why) from error


def check_certificate(text: object, key_set: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
    """The certified key with its validity period, for the purpose `receipt`."""
    header, payload, signed, signature = unpack(text, "the certificate")
    need(set(header) == {"typ", "alg", "kid"}, "header of the certificate")
    need((header["typ"], header["alg"]) == ("quittance-key+jwt", "ES256"), "type of the certificate")
    public, purpose = root_of(key_set, header["kid"])
    need(len(signature) == 64, "an ES256 signature")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        public.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        why = "the signature of the certificate"
        raise RefusedError(why) from error
    if purpose is None:
        need(set(payload) == {"iat", "exp", "jwk"}, "a certificate of before has no purpose")
    else:
        need(set(payload) == {"iat", "exp", "jwk", "purpose"}, "members of the certificate")
        need(purpose == "receipt" and payload["purpose"] == "receipt", "the purpose of root and certificate")
    need(all(is_integer(payload[name], 0, 2**40) for name in ("iat", "exp")), "iat, exp")
    jwk = members(payload["jwk"], {"kty", "crv", "x", "kid"}, "the certified key")
    need((jwk["kty"], jwk["crv"]) == ("OKP", "Ed25519"), "an Ed25519 key")
    need(is_of(jwk["x"], URL_SAFE, 43, 43) and is_of(jwk["kid"], URL_SAFE, 43, 43), "form of the certified key")
    named = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": jwk["x"]}, separators=(",", ":")).encode()
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(named).digest()).decode().rstrip("=")
    need(jwk["kid"] == thumbprint, "the key's name is its thumbprint")
    return jwk, payload["iat"], payload["exp"]


def check(receipt: str, key_set: dict[str, Any]) -> dict[str, Any]:
    """The claims of a valid receipt. Raises RefusedError."""
    header, payload, signed, signature = unpack(receipt, "the receipt")
    need(set(header) == {"typ", "alg", "kid", "cert"}, "header of the receipt")
    need((header["typ"], header["alg"]) == ("quittance-receipt+jwt", "EdDSA"), "type of the receipt")
    jwk, iat, exp = check_certificate(header["cert"], key_set)
    need(header["kid"] == jwk["kid"], "the receipt names its certificate's key")
    raw = base64.urlsafe_b64decode(jwk["x"] + "=")
    need(base64.urlsafe_b64encode(raw).decode().rstrip("=") == jwk["x"], "x has spare bits")
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, signed)
    except (InvalidSignature, ValueError) as error:
        why = "the signature of the receipt"
        raise RefusedError(why) from error
    return check_claims(payload, iat, exp)
