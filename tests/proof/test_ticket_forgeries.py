"""Forged receipts of version 3: whatever the platform signs, the channel's key must have asked for it."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quittance.ledger.channels import ticket_escrow_id
from quittance.ledger.escrow import Escrow, Settlement, StoredBytes, decide, escrow_id, expire
from quittance.limits import TICKET_CHARS_MAX, TICKET_KID_CHARS_MAX, TOKEN_CHARS_MAX
from quittance.proof.receipt import check_claims, read, verify
from quittance.proof.statement import Flaw, ProofError
from quittance.proof.ticket import LEEWAY_S
from quittance.proof.verify import CheckResult, Evidence, Report, examine, main
from quittance.run import Limits, Meter, Outcome, RejectedBy, Run
from tests.proof import second_checker, ticketing
from tests.proof.receipts import claims_of, sign
from tests.proof.roots import NOW_S, Root, encode, parse
from tests.proof.ticketing import HEADER, OTHER_KEY, jwk, jws, paid_by_ticket
from tests.support import UNSCORED

ROOT = Root()
KEY = ROOT.certify()
KEYS = json.dumps(ROOT.jwks()).encode()
ISSUER = "https://q.example"
METER = Meter(fuel=5, wall_ms=7, memory_bytes=8, input_bytes=9, output_bytes=10)
LIMITS = Limits(fuel=50, memory_bytes=60, timeout_ms=70, output_bytes=80)
RULES = json.dumps({"media_type": "application/json"}, separators=(",", ":")).encode()
DIGEST = "ab" * 32
Claims = dict[str, Any]


def settled(escrow: Escrow, run: Run, **more: Any) -> Claims:
    """The claims of an escrow's settlement by a run."""
    end = decide(escrow, run, now_ms=NOW_S * 1_000 + 5, **more)
    if run.outcome is Outcome.SUCCEEDED:
        end = replace(end, output=StoredBytes("dd" * 32, 10, b""))
    return stated(escrow, end, run)


def stated(escrow: Escrow, end: Settlement, run: Run) -> Claims:
    engine = ("50.0.1", "ff" * 32) if run.limits else ("", "")
    found = claims_of(escrow, end, issuer=ISSUER, run=run, engine=engine[0], config_sha256=engine[1])
    return dict(json.loads(json.dumps(found)))


@pytest.fixture(scope="session")
def escrow(new_escrow: Callable[..., Escrow]) -> Escrow:
    return paid_by_ticket(new_escrow(), issuer=ISSUER)


@pytest.fixture(scope="session")
def claims(escrow: Escrow) -> Claims:
    return settled(escrow, Run(Outcome.SUCCEEDED, "ok", METER, limits=LIMITS))


@pytest.fixture(scope="session")
def plain(new_escrow: Callable[..., Escrow]) -> Claims:
    return settled(new_escrow(), Run(Outcome.SUCCEEDED, "ok", METER, limits=LIMITS))


def refused(forged: Claims) -> tuple[Flaw, str]:
    """Why both checkers, and the platform before it signs, refuse claims."""
    token = sign(forged, KEY)
    with pytest.raises(ProofError) as caught:
        verify(token, ROOT.jwks())
    with pytest.raises(second_checker.RefusedError):
        second_checker.check(token, ROOT.jwks())
    assert examine(Evidence(token, KEYS)).exit_status
    return caught.value.flaw, str(caught.value)


def asked(claims: Claims, **changes: Any) -> Claims:
    """What the ticket of a receipt asks for, changed; None leaves a claim out."""
    found = parse(claims["ticket"]["signed"]).payload | changes
    return {name: value for name, value in found.items() if value is not None}


def with_signed(claims: Claims, token: str) -> Claims:
    return {**claims, "ticket": {**claims["ticket"], "signed": token}}


def test_a_receipt_states_the_ticket_that_paid(escrow: Escrow, claims: Claims, plain: Claims) -> None:
    """Version 3 has what version 2 has and the ticket, and the second checker finds the same claims."""
    assert claims.keys() - plain.keys() == {"ticket"}
    assert (claims["v"], plain["v"]) == (3, 2)
    assert escrow.ticket
    assert escrow.ticket.proof
    assert claims["ticket"] == {
        "channel": escrow.ticket.channel_id,
        "salt": "salt-1",
        "key": ticketing.public(ticketing.KEY),
        "ticket_value": "100000",
        "n": 7,
        "tickets": 10,
        "signed": escrow.ticket.proof.signed,
    }
    assert (claims["eid"], claims["task"]) == (escrow.escrow_id, f"{escrow.ticket.channel_id}.7")
    token = sign(claims, KEY)
    assert verify(token, ROOT.jwks()) == second_checker.check(token, ROOT.jwks()) == claims
    check_claims(read(claims))


def test_a_plain_receipt_has_no_ticket(claims: Claims, plain: Claims) -> None:
    for version in (1, 2):
        flaw, said = refused({**claims, "v": version})
        assert flaw is Flaw.FORM
        assert "version" in said
    tickets: list[Any] = [claims["ticket"], None, {}]
    for ticket in tickets:
        assert refused({**plain, "ticket": ticket}) == (
            Flaw.FORM,
            "the receipt has a wrong form: 'ticket' is a claim of version 3 only",
        )


def test_a_receipt_of_version_3_has_a_ticket(claims: Claims, plain: Claims) -> None:
    without = {name: value for name, value in claims.items() if name != "ticket"}
    for forged in (without, {**claims, "ticket": None}, {**plain, "v": 3}):
        flaw, said = refused(forged)
        assert (flaw, "'ticket' must be stated in version 3" in said) == (Flaw.FORM, True)
    odd_ones: list[Any] = [{}, [], "x", 5, True, [claims["ticket"]]]
    for odd in odd_ones:
        assert refused({**claims, "ticket": odd})[0] is Flaw.FORM


@pytest.mark.parametrize("name", ["channel", "salt", "key", "ticket_value", "n", "tickets", "signed"])
def test_each_claim_of_the_ticket_is_checked(claims: Claims, name: str) -> None:
    ticket = claims["ticket"]
    flaw, said = refused({**claims, "ticket": {key: value for key, value in ticket.items() if key != name}})
    assert (flaw, f"ticket.{name}" in said) == (Flaw.FORM, True)
    assert refused({**claims, "ticket": {**ticket, "more": 1}})[0] is Flaw.FORM
    others = [None, True, 0, 1, -1, 8, 2**70, 1.5, "", "x", "0", "8", "\ud800", [], {}, ticket[name] * 2]
    for value in others:
        assert refused({**claims, "ticket": {**ticket, name: value}})[0] in {Flaw.FORM, Flaw.TICKET, Flaw.CONTRADICTION}


@pytest.mark.parametrize("name", ["iss", "channel", "n", "exp", "agent_id", "input_sha256", "budget", "timeout"])
def test_a_ticket_for_anything_else_is_refused(claims: Claims, name: str) -> None:
    """The channel's key signed it, but for another stack, channel, number, agent, input or amount."""
    other = {
        "iss": "https://other.example", "channel": "chn_" + "a" * 26, "n": 8, "exp": NOW_S - LEEWAY_S,
        "agent_id": "agt_2", "input_sha256": DIGEST, "budget": "0.999999", "timeout": None,
    }[name]  # fmt: skip
    forged = with_signed(claims, jws(asked(claims, **{name: other})))
    if name == "timeout":
        assert verify(sign(forged, KEY), ROOT.jwks()), "the same ticket"
        forged = {
            **with_signed(claims, jws(asked(claims, timeout=1))),
            "limits": {**claims["limits"], "timeout_ms": 1_001},
        }
    assert refused(forged)[0] is Flaw.TICKET
    assert refused(with_signed(claims, jws(asked(claims), key=OTHER_KEY)))[0] is Flaw.TICKET


@pytest.mark.parametrize("name", ["acceptance_sha256"])
def test_rules_that_the_ticket_does_not_name_are_refused(claims: Claims, name: str) -> None:
    ruled = {"agent_sha256": None, "task_sha256": DIGEST, **UNSCORED, "accepted": True}
    good = {**with_signed(claims, jws(asked(claims, **{name: DIGEST}))), "acceptance": ruled}
    assert verify(sign(good, KEY), ROOT.jwks())
    for forged in (
        {**claims, "acceptance": ruled},
        {**good, "acceptance": None},
        {**good, "acceptance": {**ruled, "task_sha256": "cd" * 32}},
        {**good, "acceptance": {**ruled, "task_sha256": None, "agent_sha256": DIGEST}},
    ):
        flaw, said = refused(forged)
        assert (flaw, "acceptance.task_sha256 is" in said) == (Flaw.TICKET, True)


@pytest.mark.parametrize("name", ["user", "iss"])
def test_another_payer_or_platform_has_another_channel(claims: Claims, name: str) -> None:
    flaw, said = refused({**claims, name: "someone else"})
    assert (flaw, "is not that of this payer, key, salt and ticket value" in said) == (Flaw.TICKET, True)


def test_the_task_of_another_number_is_refused(claims: Claims) -> None:
    """Task and escrow of number 8 with the ticket of number 7, all else consistent."""
    channel = claims["ticket"]["channel"]
    eid = ticket_escrow_id(channel, 8)
    seed = hashlib.sha256(f"quittance seed {eid}".encode()).hexdigest()
    moved = {**claims, "task": f"{channel}.8", "eid": eid, "seed": seed, "ticket": {**claims["ticket"], "n": 8}}
    assert refused(moved) == (Flaw.TICKET, "the ticket's n is 7, the receipt's 8")
    assert refused({**claims, "task": f"{channel}.8"})[0] is Flaw.TICKET
    plain = {"eid": escrow_id(claims["user"], claims["task"])}
    assert refused({**claims, **plain})[0] is Flaw.CONTRADICTION


def test_a_judges_receipt_has_no_ticket(escrow: Escrow, claims: Claims) -> None:
    """A judge's cost is part of the task's tickets: with a ticket of its own it would count twice."""
    task = f"{escrow.task_id}:judge-task"
    judge = {**claims, "task": task}
    assert refused(judge)[0] is Flaw.TICKET
    eid = escrow_id(claims["user"], task)
    as_plain = {name: value for name, value in judge.items() if name != "ticket"} | {"v": 2, "eid": eid}
    assert verify(sign(as_plain, KEY), ROOT.jwks())["v"] == 2
    assert refused({**as_plain, "v": 3, "ticket": claims["ticket"]})[0] is Flaw.CONTRADICTION


def test_a_budget_may_be_less_only_by_the_judge(new_escrow: Callable[..., Escrow]) -> None:
    ruled = paid_by_ticket(new_escrow(task_rules_sha256=DIGEST), issuer=ISSUER)
    less = replace(ruled, budget_micro=900_000)
    run = Run(Outcome.REJECTED, "", METER, limits=LIMITS, rejected_by=RejectedBy.TASK_JUDGE)
    for cost, good in ((0, True), (100_000, True), (100_001, False)):
        end = replace(decide(less, run, now_ms=NOW_S * 1_000 + 5), task_judging_micro=cost)
        found = stated(less, end, run)
        if good:
            assert verify(sign(found, KEY), ROOT.jwks())
        else:
            flaw, said = refused(found)
            assert (flaw, "the budget is 900000, and the task's judge cost 100001" in said) == (Flaw.TICKET, True)
    plain = paid_by_ticket(new_escrow(), issuer=ISSUER)
    for other in (999_999, 1_000_001):
        wrong = settled(replace(plain, budget_micro=other), Run(Outcome.EXIT_CODE, "", METER, limits=LIMITS))
        wrong["ticket"]["tickets"] = 10
        assert refused(wrong) == (Flaw.TICKET, f"the budget is {other}, but the ticket allows 1000000")


def test_a_ticket_that_had_expired_is_refused(claims: Claims) -> None:
    for late, good in ((LEEWAY_S - 1, True), (LEEWAY_S, False), (LEEWAY_S + 1, False)):
        forged = with_signed(claims, jws(asked(claims, exp=NOW_S - late)))
        if good:
            assert verify(sign(forged, KEY), ROOT.jwks())
        else:
            flaw, said = refused(forged)
            assert (flaw, "is after the ticket expired" in said) == (Flaw.TICKET, True)


def test_every_outcome_of_a_tickets_task_verifies(escrow: Escrow) -> None:
    for outcome in Outcome:
        if outcome in {Outcome.RULES_FAILED, Outcome.JUDGE_FAILED, Outcome.WITHHELD, Outcome.REJECTED}:
            continue
        nothing = outcome in {Outcome.NOT_NEEDED, Outcome.SUPERSEDED, Outcome.EXPIRED, Outcome.UNDELIVERED}
        meter = replace(METER, wall_ms=70) if outcome is Outcome.TIMEOUT else METER
        run = Run(outcome, "", Meter() if nothing else meter, limits=None if nothing else LIMITS)
        found = (
            stated(escrow, expire(escrow, now_ms=escrow.expires_ms), run)
            if outcome is Outcome.EXPIRED
            else settled(escrow, run)
        )
        token = sign(found, KEY)
        assert verify(token, ROOT.jwks()) == second_checker.check(token, ROOT.jwks()) == found, outcome


def test_the_longest_ticket_still_has_a_receipt(new_escrow: Callable[..., Escrow]) -> None:
    """What the platform accepts, its receipt must be able to state: within the length that verifiers read."""
    ruled = new_escrow(payer="p" * 255, owner="bond " + "o" * 255, agent_id="a" * 100, task_rules_sha256=DIGEST)
    escrow = paid_by_ticket(ruled, issuer="i" * 1_000, timeout=20, options_sha256=DIGEST)
    assert escrow.ticket
    assert escrow.ticket.proof
    header = json.dumps(HEADER | {"kid": "k" * TICKET_KID_CHARS_MAX})
    payload = json.dumps(parse(escrow.ticket.proof.signed).payload)
    spaces = 0
    while len(longest := jws(payload + " " * (spaces + 1), header)) <= TICKET_CHARS_MAX:
        spaces += 1
        escrow = replace(escrow, ticket=replace(escrow.ticket, proof=replace(escrow.ticket.proof, signed=longest)))
    run = Run(Outcome.REJECTED, "", METER, limits=LIMITS, rejected_by=RejectedBy.TASK_RULES)
    end = decide(escrow, run, now_ms=NOW_S * 1_000 + 5)
    found = claims_of(escrow, end, issuer="i" * 1_000, run=run, engine="e" * 100, config_sha256="ff" * 32)
    token = sign(found, KEY)
    assert len(found["ticket"]["signed"]) > TICKET_CHARS_MAX - 3
    assert verify(token, ROOT.jwks())["ticket"] == found["ticket"]
    assert len(token) < TOKEN_CHARS_MAX


# The command.


def report(claims: Claims, **given: Any) -> dict[str, tuple[CheckResult, str]]:
    found: Report = examine(Evidence(sign(claims, KEY), KEYS, **given))
    return {check.name: (check.result, check.sentence) for check in found.checks}


def test_the_report_says_what_the_key_asked_for(claims: Claims, plain: Claims) -> None:
    found = report(claims)
    assert found["ticket"][0] is CheckResult.PASSED
    assert found["ticket"][1].startswith("the channel's key asked for exactly this task")
    unknown = "no --channel-key was given, so whose key it is is the platform's word"
    assert found["key"] == (CheckResult.NOT_DONE, unknown)
    assert "options" not in found
    assert not {"ticket", "key", "options", "budget"} & report(plain).keys()


def test_the_payers_key_can_be_given(claims: Claims, plain: Claims) -> None:
    mine = json.dumps({**jwk(ticketing.KEY), "kid": "mine"}).encode()
    assert report(claims, channel_key=mine)["key"] == (CheckResult.PASSED, "it is the key of the channel")
    for data, status, said in (
        (json.dumps(jwk(OTHER_KEY)).encode(), 8, "the receipt names"),
        (json.dumps({**jwk(ticketing.KEY), "d": "A" * 43}).encode(), 8, "must be a public key"),
        (b"{}", 8, "must be an Ed25519 public key"),
        (b"[]", 3, "is not a JSON object"),
        (b"\xff", 3, "not JSON"),
    ):
        found = examine(Evidence(sign(claims, KEY), KEYS, channel_key=data))
        assert found.exit_status == status
        assert said in next(check.sentence for check in found.checks if check.flaw)
    found = examine(Evidence(sign(plain, KEY), KEYS, channel_key=mine))
    assert found.exit_status == 8
    assert any("no ticket paid for this task" in check.sentence for check in found.checks)


def test_options_can_be_given(claims: Claims) -> None:
    options = {"keep_input": True, "webhook": "https://a.example"}
    digest = hashlib.sha256(b'{"keep_input":true,"webhook":"https://a.example"}').hexdigest()
    optional = with_signed(claims, jws(asked(claims, options_sha256=digest)))
    assert report(optional)["options"][0] is CheckResult.NOT_DONE
    spelt = json.dumps(dict(reversed(options.items())), indent=2).encode()
    assert report(optional, ticket_options=spelt)["options"] == (CheckResult.PASSED, f"their SHA-256 is {digest}")
    for data in (b"{}", b'{"keep_input":false}', json.dumps({**options, "x": 1}).encode()):
        assert report(optional, ticket_options=data)["options"][0] is CheckResult.FAILED
    assert report(claims, ticket_options=spelt)["options"][0] is CheckResult.FAILED


def test_the_held_budget_is_checked_with_the_rules(new_escrow: Callable[..., Escrow]) -> None:
    """Without the rules, a lower budget may be what a judge was held; with them it is known."""
    digest = hashlib.sha256(RULES).hexdigest()
    escrow = paid_by_ticket(new_escrow(task_rules_sha256=digest), issuer=ISSUER)
    run = Run(Outcome.EXIT_CODE, "", METER, limits=LIMITS)
    assert report(settled(escrow, run), task_rules=RULES)["budget"][0] is CheckResult.PASSED
    less = settled(replace(escrow, budget_micro=999_999), run)
    less["ticket"]["tickets"] = 10
    assert verify(sign(less, KEY), ROOT.jwks())
    found = examine(Evidence(sign(less, KEY), KEYS, task_rules=RULES))
    assert found.exit_status == 15
    assert any("the ticket and the rules of the task make it 1000000" in check.sentence for check in found.checks)


def test_a_forged_ticket_has_its_own_exit_status(
    claims: Claims, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, file, key = tmp_path / "jwks.json", tmp_path / "receipt.jws", tmp_path / "key.json"
    keys.write_bytes(KEYS)
    key.write_text(json.dumps(jwk(ticketing.KEY)))
    file.write_text(sign(claims, KEY))
    assert main([str(file), "--keys", str(keys), "--channel-key", str(key)]) == 0
    shown = capsys.readouterr().out
    assert f"  paid by tickets 7 to 16 of the channel {claims['ticket']['channel']}, worth 0.1 credits each\n" in shown
    assert f"  signed by the key {claims['ticket']['key']}\n" in shown
    assert "0.6 left in the channel" in shown
    assert "ok        ticket     the channel's key asked for exactly this task" in shown
    file.write_text(sign(with_signed(claims, jws(asked(claims), key=OTHER_KEY)), KEY))
    assert main([str(file), "--keys", str(keys)]) == 15
    assert "Not proven: the ticket is not signed by the channel's key." in capsys.readouterr().out
    assert main([str(file), "--keys", str(keys), "--json"]) == 15
    assert json.loads(capsys.readouterr().out)["claims"]["ticket"]["n"] == 7
    assert main([str(file), "--keys", str(keys), "--channel-key", str(tmp_path / "none")]) == 2


def test_hostile_text_in_a_ticket_cannot_control_the_terminal(claims: Claims, tmp_path: Path, capsys: Any) -> None:
    keys, file = tmp_path / "jwks.json", tmp_path / "receipt.jws"
    keys.write_bytes(KEYS)
    for odd in (asked(claims, iss="\x1b[2J\u202e"), asked(claims, agent_id="\x1b[2J\r\n"), "\x1b[2J"):
        for header in (HEADER, {"typ": "\x1b[2J"}, "\x1b[2J"):
            file.write_text(sign(with_signed(claims, jws(odd, header)), KEY))
            assert main([str(file), "--keys", str(keys)]) == 15
            assert "\x1b" not in capsys.readouterr().out
    file.write_text(sign(with_signed(claims, encode(b"\x1b[2J") + ".\u202e."), KEY))
    assert main([str(file), "--keys", str(keys)]) == 15
    assert capsys.readouterr().out.isascii()
