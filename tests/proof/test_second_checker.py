"""Two independent checkers must accept and refuse the same receipts: claims, tokens and key sets are mutated.

The second one (second_checker.py) is written from docs/receipts.md. Where they differ, one of the three is wrong.
"""

import ast
import copy
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from quittance.ledger.escrow import escrow_id
from quittance.proof import receipt
from quittance.proof.receipt import checks, read
from quittance.proof.statement import ProofError, Purpose, VerifiedStatement
from tests.depth import LONG
from tests.proof import second_checker, ticketing
from tests.proof.roots import NOW_S, Root, encode, key_set, parse, part

BEFORE = json.loads((Path(__file__).parent / "before_purposes.json").read_text())
ROOT = Root()
OTHER_ROOT = Root("root-2", Purpose.WEBHOOK)
KEY, OTHER_KEY = ROOT.certify(), ROOT.certify()
JWKS = key_set(ROOT, OTHER_ROOT)
IAT, EXP = NOW_S - 300, NOW_S + 12 * 60 * 60
SINGLY = ["succeeded", "exit_code", "timeout", "rejected", "not_needed", "expired", "worker_lost"]
EXAMPLES = 10_000 if LONG else 1_000
DIGEST = "ab" * 32

Claims = dict[str, Any]
Place = tuple[str, ...]


# Valid claims to mutate: one for each outcome, and some with rules, scores and limit values.


def _nothing_ran(claims: Claims) -> None:
    claims["meter"] |= dict.fromkeys(second_checker.METER_NUMBERS, 0)
    claims.update(limits=None, engine="", config_sha256="", stderr_sha256=None)


def claims_of(outcome: str, **changes: Any) -> Claims:
    """Valid claims for an outcome, of the oldest version that has it unless `changes` contains `v`."""
    claims: Claims = parse(BEFORE["receipt"]).payload
    version = changes.get("v", 1 if outcome in second_checker.FAULT_OF[1] else 2)
    if version >= 2:
        claims.update(copy.deepcopy(ADDED), v=2)
        claims["limits"]["output_bytes"] = 80
    claims["outcome"] = outcome
    if outcome in second_checker.BY_RULES:
        claims["acceptance"] = rules(version, agent_sha256=DIGEST)
    if outcome in second_checker.NOTHING_RAN:
        _nothing_ran(claims)
    if outcome == "timeout":
        claims["meter"]["wall_ms"] = claims["limits"]["timeout_ms"]
    if outcome == "expired":
        claims["settled_at"] = claims["expires_at"]
    if outcome == "withheld":
        claims["meter"] |= {**dict.fromkeys(second_checker.METER_NUMBERS, 0), "fuel_exact": True}
        claims.update(task="task-1:judge-task", stderr_sha256=None, input_sha256=hashlib.sha256(b"").hexdigest())
    for name, value in changes.items():
        claims[name] = claims[name] | value if isinstance(claims[name], dict) else value
    if second_checker.is_judge(claims):
        claims["eid"] = escrow_id(claims["user"], claims["task"])
    return repaired(claims)


ADDED: Claims = {
    **dict.fromkeys(second_checker.ADDED_AMOUNTS, "0"),
    "compute_prices": {"run": "3", "per_billion_fuel": "300000001"},
    "task_judge_bps": 0,
    "own_limits": None,
    "memory_refused": False,
}


def rules(version: int, **stated: Any) -> Claims:
    nothing: Claims = dict.fromkeys(second_checker.ACCEPTANCE if version >= 2 else second_checker.ACCEPTANCE_OF_1)
    return {**nothing, "accepted": False, **({"rejected_by": "agent_rules"} if version >= 2 else {}), **stated}


def repaired(claims: Claims) -> Claims:
    """The claims after every claim that follows from others is recomputed, as far as those are readable."""
    with suppress(KeyError, TypeError, ValueError, AttributeError, second_checker.RefusedError):
        repair(claims)
    return claims


def repair(claims: Claims) -> None:
    outcome = claims["outcome"]
    succeeded = outcome == "succeeded"
    claims["state"] = second_checker.STATES.get(str(outcome), "refunded")
    quick = isinstance(claims["meter"], dict) and claims["meter"].get("wall_ms") in range(1_000)
    claims["output_sha256"] = (claims["output_sha256"] or DIGEST) if succeeded else None
    if isinstance(claims["acceptance"], dict):
        claims["acceptance"]["accepted"] = succeeded
        if claims["v"] >= 2 and outcome != "rejected":
            claims["acceptance"]["rejected_by"] = None
        if claims["v"] >= 2 and not succeeded:
            claims["acceptance"] |= {"agent_score": None, "task_score": None}
    whole = second_checker.as_version_2(claims) if claims["v"] == 1 else claims
    fault = claims["fault"] = whole["fault"] = second_checker.fault_of(whole)
    claims["reputation_tenths"] = (25 if quick else 20) if succeeded else -50 if fault == "agent" else 0
    repair_amounts(claims, whole)


def integer(value: object) -> int:
    """The value if it is an integer, because a string times a price would be a very long string."""
    if not isinstance(value, int):
        message = "no integer"
        raise TypeError(message)
    return value


def repair_amounts(claims: Claims, whole: Claims) -> None:
    budget, released = int(claims["budget"]), claims["state"] == "released"
    price = max(0, int(claims["paid"]) + int(claims["fee"]) - int(whole["compute"]))
    fuel = integer(claims["meter"]["fuel"])
    compute = charge = 0
    if claims["v"] >= 2:
        computed = integer(claims["limits"]["fuel"]) if released and second_checker.is_judge(claims) else fuel
        if released or claims["fault"] == "payer":
            compute = min(second_checker.computing_micro(claims, computed), budget)
        if claims["fault"] == "agent":
            charge = second_checker.computing_micro(claims, fuel)
        claims.update(compute=str(compute), charge=str(charge))
    most = budget - compute
    if not released:
        by_judge = second_checker.rejected_by(whole) == "task_judge"
        most = most * integer(whole["task_judge_bps"]) // 10_000 if by_judge else 0
    price = min(price, most)
    commission = price * integer(claims["fee_bps"]) // 10_000
    parts = price - commission, commission + compute, budget - price - compute
    claims.update(zip(("paid", "fee", "refunded"), map(str, parts), strict=True))


def with_rules(*, agent_score: str | None, task_score: str | None, version: int = 1) -> Claims:
    scores = {"agent_score": agent_score, "task_score": task_score}
    return claims_of(
        "succeeded", v=version, acceptance=rules(version, agent_sha256=DIGEST, task_sha256="cd" * 32, **scores)
    )


def bases_of_1() -> list[Claims]:
    found = [claims_of(outcome) for outcome in second_checker.FAULT_OF[1]]
    found.append(claims_of("storage_down"))
    _nothing_ran(found[-1])
    found[-1]["meter"]["input_bytes"] = 9
    found += [with_rules(agent_score="0.5", task_score=None), with_rules(agent_score="1", task_score="0.000001")]
    found.append(repaired({**claims_of("succeeded"), "budget": "1", "paid": "0", "fee": "0", "refunded": "1"}))
    found.append(
        {**claims_of("succeeded"), "budget": "1000000000000", "paid": "1", "fee": "0", "refunded": "999999999999"}
    )
    return found


def with_ticket(claims: Claims, **changes: Any) -> Claims:
    """Claims of version 3: those of version 2, of the task that a ticket with these claims asks for."""
    found: Claims = {**copy.deepcopy(claims), "v": 3, "ticket": ticketing.claim(ticket_value=str(VALUE))}
    ticket = found["ticket"]
    ticket["channel"] = ticketing.named(issuer=found["iss"], payer=found["user"], value=VALUE)
    rules = found["acceptance"]["task_sha256"] if found["acceptance"] else None
    most = int(found["budget"]) + (int(found["task_judging"]) + 1 if rules else 0)
    ticket["tickets"] = -(-most // VALUE)
    found["task"] = f"{ticket['channel']}.{ticket['n']}"
    found["eid"] = escrow_id(f"channel {ticket['channel']}", str(ticket["n"]))
    found["seed"] = hashlib.sha256(f"quittance seed {found['eid']}".encode()).hexdigest()
    asked: Claims = {
        "iss": found["iss"],
        "channel": ticket["channel"],
        "n": ticket["n"],
        "exp": found["funded_at"] // 1_000,
        "agent_id": found["agent"],
        "input_sha256": found["input_sha256"],
        "budget": f"{most // 10**6}.{most % 10**6:06}",
        "timeout": 1,
        "acceptance_sha256": rules,
    }
    ticket["signed"] = ticketing.jws({name: value for name, value in (asked | changes).items() if value is not None})
    return found


VALUE = 30_001


@cache
def bases_of_3() -> list[Claims]:
    """Some claims of version 2 that no judge's receipt states, each with a ticket."""
    outcomes = ("succeeded", "exit_code", "timeout", "not_needed", "expired", "budget_exhausted", "storage_down")
    found = [claims_of(outcome, v=2) for outcome in outcomes]
    found += [claims for claims in telling_bases_of_2() if claims["acceptance"] and not second_checker.is_judge(claims)]
    return [with_ticket(claims) for claims in found]


def telling_bases_of_2() -> list[Claims]:
    """Claims of version 2, one for each case that its rules distinguish."""
    own = {"fuel": 50, "memory_bytes": 60, "timeout_ms": 70, "output_bytes": 80}
    both = {"agent_sha256": DIGEST, "task_sha256": "cd" * 32}
    found = [
        claims_of("succeeded", v=2, own_limits=own),
        claims_of("succeeded", v=2, budget="4", paid="0", fee="0", refunded="4"),  # less than the compute
        claims_of("exit_code", v=2, own_limits=own),
        claims_of("exit_code", v=2, memory_refused=True),
        claims_of("budget_exhausted", own_limits=own),
        claims_of("trap_memory", v=2, own_limits={**own, "memory_bytes": 61}, memory_refused=True),
        claims_of("fuel_exhausted", v=2, own_limits={**own, "fuel": 51}),
        claims_of("timeout", v=2, own_limits={**own, "timeout_ms": 71}),
        claims_of("output_limit", v=2, own_limits={**own, "output_bytes": 81}),
        with_rules(agent_score="0.5", task_score="1", version=2) | {"judging": "7", "task_judging": "9"},
    ]
    for by in second_checker.REJECTIONS:
        rejected = claims_of("rejected", v=2, task_judge_bps=2_500, acceptance=rules(2, **both, rejected_by=by))
        judged = {"judging": "7" if "judge" in by else "0", "task_judging": "9" if by == "task_judge" else "0"}
        found.append(rejected | judged)
    judge = {"v": 2, "task": "task-1:judge-task", "seed": "12" * 32, "own_limits": own}
    found += [claims_of("succeeded", acceptance=rules(2, **both), **judge), claims_of("withheld", **judge)]
    return found


def bases_of_2() -> list[Claims]:
    found = [claims_of(outcome, v=2) for outcome in second_checker.FAULT_OF[2]]
    judge = {"v": 2, "task": "task-1:judge-task"}
    found += [claims_of(outcome, **judge) for outcome in ("not_needed", "expired", "storage_down")]
    return found + telling_bases_of_2()


@cache
def bases() -> list[Claims]:
    return bases_of_1() + bases_of_2() + bases_of_3()


# Mutations.


def places(value: Claims, before: Place = ()) -> Iterator[Place]:
    for name, inner in value.items():
        yield (*before, name)
        if isinstance(inner, dict):
            yield from places(inner, (*before, name))


def at(claims: Claims, place: Place) -> Any:
    value: Any = claims
    for name in place:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def put(claims: Claims, place: Place, value: object) -> Claims:
    """A copy with another value at a path; unchanged if the path does not exist."""
    changed = copy.deepcopy(claims)
    inner: Any = changed
    for name in place[:-1]:
        inner = inner.get(name) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
        inner[place[-1]] = value
    return changed


PLACES = sorted({place for base in bases() for place in places(base)})
ODD: list[Any] = [
    *(None, True, False, [], [1], {}, {"a": 1}, [2], {"fuel": 5, "memory_bytes": 8, "timeout_ms": 7}),
    {"fuel": 50, "memory_bytes": 60, "timeout_ms": 70, "output_bytes": 80},
    *({"run": "0", "per_billion_fuel": "0"}, {"run": "0"}, 2, 3, 1_048_576, 1_048_577),
    *(1, 3, 4, 10**6, 10**6 + 1, 2**20, 2**20 + 1, 2**40, 2**40 + 1),
    *(0, 1, -1, 25, 20, -50, 1_001, 10_000, 10_001, 2**53, 2**53 + 1, 2**63, 1.0, 0.5),
    *("", "0", "1", "00", "01", "-1", "1.0", "0.5", "0.50", "0.000001", "0.0000001", "1000000000000", "1000000000001"),
    *("9" * 16, "9" * 17, "9" * 22, "9" * 23, "\u0661", "a\n", "\ud800", "\u00e9" * 140, "a" * 26),
    *("chn_" + "a" * 26, "chn_" + "a" * 25 + "1", "chm_" + "a" * 26, "A" * 43, "A" * 4_096, "A" * 4_097),
    *("x" * 100, "x" * 101, "x" * 260, "x" * 261, "x" * 1_000, "x" * 1_001),
    *(DIGEST, DIGEST.upper(), DIGEST[:-1], DIGEST + "\n", "credit/6", "expired", "refunded", "released", "funded"),
    *("agent", "payer", "platform", "none", *second_checker.OUTCOMES, *second_checker.REJECTIONS),
]


def near(value: Any) -> list[Any]:
    """Neighbouring values: one step up or down, or a string changed at its end."""
    if isinstance(value, bool) or value is None:
        return [not value]
    if isinstance(value, int):
        return [value - 1, value + 1, value * 1_000, str(value)]
    if isinstance(value, str) and value.isdecimal():
        return [str(int(value) + step) for step in (-1, 1, 1_000)] + [f"0{value}", int(value)]
    return [f"{value}0", value[:-1]] if isinstance(value, str) else []


@st.composite
def mutated(draw: st.DrawFn) -> Claims:
    """Valid claims of which one to three were changed, dropped or added; often the others are recomputed."""
    claims = copy.deepcopy(draw(st.sampled_from(bases())))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(PLACES))
        deed = draw(st.sampled_from(["near", "near", "other", "odd", "odd", "drop", "add"]))
        if deed == "near" and (beside := near(at(claims, place))):
            claims = put(claims, place, draw(st.sampled_from(beside)))
        elif deed == "other":
            claims = put(claims, place, copy.deepcopy(at(draw(st.sampled_from(bases())), place)))
        elif deed == "drop" and isinstance(holder := at(claims, place[:-1]), dict):
            holder.pop(place[-1], None)
        elif deed == "add":
            claims = put(
                claims, (*place[:-1], draw(st.sampled_from(["x", "v2", "", "Fuel"]))), draw(st.sampled_from(ODD))
            )
        else:
            claims = put(claims, place, draw(st.sampled_from(ODD)))
    if draw(st.booleans()):
        claims = repaired(claims)
    return claims


# The comparison.


def first_takes(claims: Claims) -> bool:
    """Whether the verifier accepts claims under a valid certificate."""
    chain = VerifiedStatement(claims, IAT, EXP, "root-1")
    try:
        for _, check in checks(read(claims), chain):
            check()
    except ProofError:
        return False
    return True


def second_takes(claims: Claims) -> bool:
    try:
        second_checker.check_claims(claims, IAT, EXP)
    except second_checker.RefusedError:
        return False
    return True


def both_take(token: str, jwks: Claims) -> bool:
    """Whether both checkers accept a token; fails if only one does."""
    first = second = ""
    try:
        receipt.verify(token, jwks)
    except ProofError as error:
        first = str(error)
    try:
        second_checker.check(token, jwks)
    except second_checker.RefusedError as error:
        second = str(error)
    assert (not first) == (not second), f"the verifier: {first or 'taken'}; the second checker: {second or 'taken'}"
    return not first


def signed(payload: object, *, header: Claims | None = None, certificate: str = KEY.certificate) -> str:
    plain = {"alg": "EdDSA", "typ": "quittance-receipt+jwt", "kid": KEY.key_id, "cert": certificate}
    content = f"{part(plain if header is None else header)}.{part(payload)}"
    return f"{content}.{encode(KEY.private.sign(content.encode()))}"


def kinds(claims: Claims) -> Iterator[object]:
    """The properties by which the rules of the page distinguish claims of version 2."""
    judged = second_checker.is_judge(claims)
    by = claims["acceptance"]["rejected_by"] if claims["acceptance"] else None
    yield (claims["outcome"], claims["fault"])
    yield ("judge", claims["outcome"]) if judged else ("rejected by", by)
    for name in ("charge", "judging", "task_judging"):
        if claims[name] != "0":
            yield name
    if claims["compute"] == claims["budget"]:
        yield "the compute is capped"
    if by == "task_judge" and claims["paid"] != "0":
        yield "a share is paid"


EVERY_KIND = {
    *((outcome, fault) for outcome, fault in second_checker.FAULT_OF[2].items()),
    *((outcome, "payer") for outcome in ("fuel_exhausted", "timeout", "output_limit", "trap_memory", "rejected")),
    *(("rejected by", by) for by in second_checker.REJECTIONS),
    *(("judge", outcome) for outcome in ("succeeded", "withheld", "not_needed", "expired", "storage_down")),
    *("charge", "judging", "task_judging", "the compute is capped", "a share is paid"),
}


def test_the_comparison_starts_from_every_outcome() -> None:
    assert {claims["outcome"] for claims in bases_of_1()} == set(second_checker.FAULT_OF[1])
    assert not EVERY_KIND - {kind for claims in bases_of_2() for kind in kinds(claims)}


def test_both_accept_valid_claims() -> None:
    for claims in bases():
        assert both_take(signed(claims), JWKS), claims["outcome"]
    assert both_take(BEFORE["receipt"], BEFORE["jwks"])


RULES_OF_CLAIMS = (
    *("forms", "form_of_acceptance", "acceptance", "outcome", "withheld", "times", "amounts", "run"),
    *("form_of_ticket", "ticket", "forms_of_asked", "asked"),
)


def lines_of_rules() -> set[int]:
    """The lines of the second checker that state a rule of the claims."""
    tree = ast.parse(Path(second_checker.__file__).read_text())
    functions = [found for found in tree.body if isinstance(found, ast.FunctionDef)]
    return {
        call.lineno
        for function in functions
        if function.name.removeprefix("check_") in RULES_OF_CLAIMS
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "need"
    }


def together() -> Iterator[Claims]:
    """Changes that one claim alone cannot make, because another rule would refuse it first."""
    whole, failed = claims_of("succeeded"), claims_of("exit_code")
    late = whole["settled_at"] + 1
    yield {**whole, "funded_at": late, "epoch_ns": str(late * 10**6)}
    yield {**failed, "paid": "1", "refunded": str(int(failed["budget"]) - 1)}
    yield {**failed, "budget": "0", "refunded": "0"}
    yield {**failed, "budget": "1000000000001", "refunded": "1000000000001"}
    judged = claims_of("succeeded", v=2, task="task-1:judge-task", acceptance=rules(2, agent_sha256=DIGEST))
    yield judged | {"judging": "1"}
    withheld = claims_of("withheld")
    yield withheld | {"task": "task-1", "eid": whole["eid"], "seed": whole["seed"]}
    share = claims_of(
        "rejected", v=2, task_judge_bps=1, acceptance=rules(2, task_sha256=DIGEST, rejected_by="task_judge")
    )
    all_fee = claims_of("succeeded", v=2, fee_bps=10_000)
    less = int(all_fee["compute"]) - 1  # a commission of -1 on a price of -1
    yield all_fee | {"paid": "0", "fee": str(less), "refunded": str(int(all_fee["budget"]) - less)}
    yield share | {"paid": str(int(share["paid"]) + 1), "refunded": str(int(share["refunded"]) - 1)}
    yield from (claims for claims in tickets_changed() if not first_takes(claims))


def resigned(claims: Claims, payload: object, header: object = ticketing.HEADER, key: Any = ticketing.KEY) -> Claims:
    """The claims with another ticket."""
    return put(claims, ("ticket", "signed"), ticketing.jws(payload, header, key))


def other_parts(claims: Claims, **changes: Any) -> Claims:
    """The claims with another key, salt or value in the ticket, whose channel has the id of these parts."""
    changed = copy.deepcopy(claims)
    ticket = changed["ticket"] = claims["ticket"] | changes
    parts = {"salt": ticket["salt"], "key": ticket["key"], "value": ticket["ticket_value"]}
    ticket["channel"] = ticketing.named(issuer=claims["iss"], payer=claims["user"], **parts)
    changed["task"] = f"{ticket['channel']}.{ticket['n']}"
    changed["eid"] = escrow_id(f"channel {ticket['channel']}", str(ticket["n"]))
    changed["seed"] = hashlib.sha256(f"quittance seed {changed['eid']}".encode()).hexdigest()
    return resigned(changed, asked_by(claims) | {"channel": ticket["channel"]})


def asked_by(claims: Claims) -> Claims:
    """The claims of the ticket that paid."""
    return parse(claims["ticket"]["signed"]).payload


HEADERS: list[Claims] = [
    *({"alg": algorithm} for algorithm in ("Ed25519", "none", "ES256", 5, [], None)),
    *({"typ": typ} for typ in ("JWT", "quittance-receipt+jwt", "quittance-channel-close+jwt", None)),
    *({"kid": kid} for kid in ("", "k", "k" * 256, "k" * 257, 5, None, {}, "\ud800")),
    *({name: []} for name in ("crit", "jwk", "b64", "x")),
]
KEYS_OF_CHANNELS = [
    *(encode(y.to_bytes(32, "little")) for y in (0, 1, 2, 3, second_checker.PRIME - 1, second_checker.PRIME)),
    *(encode(y.to_bytes(32, "little")) for y in (second_checker.PRIME + 1, second_checker.PRIME + 3, 2**255 + 1)),
    ticketing.public(ticketing.OTHER_KEY),
    ticketing.public(ticketing.KEY)[:-1] + "B",
]


def tickets_changed() -> Iterator[Claims]:
    """Claims of version 3 with another ticket, another key, or other claims that the same ticket asks for."""
    judged = with_ticket(with_rules(agent_score="0.5", task_score="1", version=2) | {"task_judging": "9"})
    for claims in (with_ticket(claims_of("succeeded", v=2)), judged):
        asked = asked_by(claims)
        yield resigned(claims, asked, key=ticketing.OTHER_KEY)
        yield from (resigned(claims, asked, ticketing.HEADER | header) for header in HEADERS)
        yield from (resigned(claims, asked, {"typ": "quittance-ticket+jwt"} | header) for header in HEADERS)
        yield from (other_parts(claims, key=key) for key in KEYS_OF_CHANNELS)
        yield from (other_parts(claims, ticket_value=value) for value in ("1", "30002", "1" * 16))
        yield other_parts(claims, salt="another")
        budgets = ("1", "0.000001", "0." + "0" * 7, "1.", ".5", "1" * 17, "1e1", "", "00.5", "-1", "\u0661", 1)
        for name in [*asked, "options_sha256", "acceptance_sha256", "x"]:
            values = each_once([*ODD, *near(asked.get(name)), *near_micro(asked["budget"]), *budgets])
            yield from (resigned(claims, {**asked, name: value}) for value in values)
            yield resigned(claims, {each: value for each, value in asked.items() if each != name})
    late = with_ticket(claims_of("succeeded", v=2))
    for seconds in (-29, -30, -31):
        yield resigned(late, asked_by(late) | {"exp": late["funded_at"] // 1_000 + seconds})
    for more in ("10", "11"):  # of the 10 that the ticket offers beyond the budget
        yield judged | {"task_judging": more}


def near_micro(budget: str) -> list[str]:
    micro = round(float(budget) * 10**6)
    return [f"{each // 10**6}.{each % 10**6:06}" for each in (micro - 1, micro + 1, micro + 9, micro - 9)]


def test_both_agree_on_changed_tickets() -> None:
    seen = Counter()
    for claims in tickets_changed():
        taken = first_takes(claims)
        assert taken == second_takes(claims), (claims["ticket"], parse(claims["ticket"]["signed"]))
        seen[taken] += 1
    assert min(seen[True], seen[False]) > 10, seen


def test_both_agree_on_mutated_tickets() -> None:
    """Everything is signed again by the channel's key: the header, the claims, and the parts of the channel's id."""
    seen: Counter[bool] = Counter()

    @settings(max_examples=EXAMPLES)
    @given(st.data())
    def agree(data: st.DataObject) -> None:
        claims = data.draw(st.sampled_from(bases_of_3()))
        asked, header = asked_by(claims), dict(ticketing.HEADER)
        for _ in range(data.draw(st.integers(0, 2))):
            name = data.draw(st.sampled_from([*asked, "options_sha256", "acceptance_sha256", "kid", "alg", "typ", "x"]))
            value = data.draw(st.sampled_from([*near(asked.get(name)), *ODD]))
            if name in {"kid", "alg", "typ"}:
                header[name] = value
            else:
                asked[name] = value
        key = data.draw(st.sampled_from([ticketing.KEY] * 9 + [ticketing.OTHER_KEY]))
        changed = resigned(claims, asked, header, key)
        for _ in range(data.draw(st.integers(0, 1))):
            place = data.draw(st.sampled_from(PLACES))
            changed = put(changed, place, data.draw(st.sampled_from([*near(at(changed, place)), *ODD])))
        seen[both_take(signed(changed), JWKS)] += 1

    agree()
    assert min(seen[True], seen[False]) > EXAMPLES // 50, seen


def each_once(values: list[Any]) -> list[Any]:
    return list({repr(value): value for value in values}.values())


def test_both_agree_on_every_single_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each claim of each base gets each odd value and each neighbouring value, and is removed once.

    So each rule of the page refuses something that all rules before it accept.
    """
    decided = set()

    def need(holds: object, why: str) -> None:
        if not holds:
            decided.add(sys._getframe(1).f_lineno)
            raise second_checker.RefusedError(why)

    monkeypatch.setattr(second_checker, "need", need)
    seen: Counter[bool] = Counter()
    singly = [*map(claims_of, SINGLY), *bases_of_1()[len(second_checker.FAULT_OF[1]) :], *telling_bases_of_2()]
    singly += [with_ticket(claims_of(outcome, v=2)) for outcome in ("succeeded", "exit_code")]
    others = bases_of_1() + bases_of_2() + bases_of_3()[:2]
    for base in singly:
        for place in places(base):
            for value in each_once([*ODD, *near(at(base, place)), *(at(other, place) for other in others)]):
                other = put(base, place, value)
                taken = first_takes(other)
                assert taken == second_takes(other), (base["outcome"], place, value)
                seen[taken] += 1
            less = copy.deepcopy(base)
            at(less, place[:-1]).pop(place[-1])
            assert not first_takes(less), place
            assert not second_takes(less), place
    for several in together():
        assert not first_takes(several)
        assert not second_takes(several)
    assert min(seen.values()) > 1_000, seen
    idle = sorted(lines_of_rules() - decided)
    assert not idle, f"no single change breaks the rules of the lines {idle}"


def test_both_agree_on_mutated_claims(record_property: Callable[[str, object], None]) -> None:
    seen: Counter[bool] = Counter()

    @settings(max_examples=EXAMPLES)
    @given(mutated())
    def agree(claims: Claims) -> None:
        note(json.dumps(claims, indent=1))
        seen[both_take(signed(claims), JWKS)] += 1

    agree()
    assert min(seen[True], seen[False]) > EXAMPLES // 50, seen
    record_property("figure", f"two checkers agree on {EXAMPLES:,} mutated receipts")


ODD_KEYS: list[Any] = [
    *(None, "", 1, True, [], {}, 1.5, IAT, EXP, NOW_S, 2**40, 2**40 + 1, -1, 0),
    *("receipt", "checkpoint", "webhook", "EC", "OKP", "P-256", "P-384", "Ed25519", "ES256", "EdDSA", "none"),
    *("quittance-receipt+jwt", "quittance-key+jwt", "root-1", "root-2", "A" * 43, KEY.key_id, OTHER_KEY.key_id),
]


def certificate(payload: Claims, header: Claims, root: Root) -> str:
    content = f"{part(header)}.{part(payload)}"
    return f"{content}.{encode(root.sign(content.encode()))}"


@st.composite
def changed(draw: st.DrawFn, value: Claims) -> Claims:
    """An object with one member at any depth changed, dropped or added; or as it is."""
    deed = draw(st.sampled_from(["keep", "change", "change", "drop", "add"]))
    place = draw(st.sampled_from(sorted(places(value))))
    if deed == "change":
        return put(value, place, draw(st.sampled_from(ODD_KEYS)))
    if deed == "add":
        return put(
            value,
            (*place[:-1], draw(st.sampled_from(["x", "purpose", "iat", "crit"]))),
            draw(st.sampled_from(ODD_KEYS)),
        )
    less = copy.deepcopy(value)
    if deed == "drop":
        at(less, place[:-1]).pop(place[-1])
    return less


def test_both_agree_on_mutated_chains_and_key_sets() -> None:
    """Everything is signed again after the change: by the root, by another root, and by the environment's key."""
    seen: Counter[bool] = Counter()
    of_key = parse(KEY.certificate)
    pieces = ["root", "payload", "certificate's header", "name", "header", "key set", "key set", "one key more"]

    @settings(max_examples=EXAMPLES)
    @given(st.data())
    def agree(data: st.DataObject) -> None:
        odd = data.draw(st.lists(st.sampled_from(pieces), max_size=2))

        def perhaps(piece: str, value: Claims) -> Claims:
            return data.draw(changed(value)) if piece in odd else value

        root = OTHER_ROOT if "root" in odd else ROOT
        inner = perhaps("payload", of_key.payload)
        name = data.draw(st.sampled_from([OTHER_KEY.key_id, "A" * 43])) if "name" in odd else KEY.key_id
        if "name" in odd:  # a key that certificate and receipt name by a wrong id
            inner = put(inner, ("jwk", "kid"), name)
        cert = certificate(inner, perhaps("certificate's header", {**of_key.header, "kid": root.key_id}), root)
        header = perhaps("header", {**parse(signed({})).header, "kid": name, "cert": cert})
        keys = [perhaps("key set", key) for key in JWKS["keys"]]
        if "one key more" in odd:
            keys.insert(data.draw(st.integers(0, 2)), data.draw(changed(JWKS["keys"][0])))
        seen[both_take(signed(bases()[0], header=header), {"keys": keys})] += 1

    agree()
    assert min(seen[True], seen[False]) > EXAMPLES // 20, seen


def test_both_agree_on_mutated_text() -> None:
    whole = signed(bases()[0])

    @settings(max_examples=EXAMPLES)
    @given(st.integers(0, len(whole)), st.integers(0, 3), st.text("AZaz09-_.=+/ \n", max_size=3))
    def agree(place: int, cut: int, put_in: str) -> None:
        text = whole[:place] + put_in + whole[place + cut :]
        assert both_take(text, JWKS) == (text == whole)

    agree()


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "e30.e30.",
        "e30.e30.AA",
        "W10.e30.AA",
        "é.e30.AA",
        "e30.e30.AA.AA",
        "=.=.=",
        "A" * 16_385,
    ],
)
def test_both_refuse_text_that_is_no_token(text: str) -> None:
    assert not both_take(text, JWKS)


def test_the_second_checker_shares_no_code_with_the_first() -> None:
    source = Path(second_checker.__file__).read_text()
    imported = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in imported if "quittance" in line or "tests" in line]
