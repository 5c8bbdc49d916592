"""The verifier: anyone can check offline whether a receipt proves what it states. See docs/receipts.md.

    quittance-verify receipt.jws --keys jwks.json [--module m.wasm --input in --output out] [--replay]
    quittance-verify --webhook body.json --signature s.jws --url https://... --keys jwks.json

It does not use AWS, and it needs the engine only for a replay. Its input may be hostile and is limited in size.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from quittance import limits
from quittance.acceptance import rules as acceptance
from quittance.ledger import pricing
from quittance.ledger.balances import bond_account
from quittance.ledger.credits import format_credits, parse_credits
from quittance.ledger.escrow import judge_task_id
from quittance.proof import card, log, receipt, ticket, webhook
from quittance.proof.receipt import ReceiptClaims
from quittance.proof.statement import Flaw, ProofError, quoted, read, read_json
from quittance.proof.ticket import TicketClaims
from quittance.run import OF_THE_RULES, Meter, Outcome, RejectedBy, Side

_USAGE: Final = 2
_DOCUMENT_BYTES_MAX: Final = limits.MIB  # of a key set or a proof
_PLAIN_PLACES_MAX: Final = 6  # of a judge's score that is found by its digest: a million digests, about a second


EXITS: Final[Mapping[Flaw, tuple[int, str]]] = {
    Flaw.FORM: (3, "the receipt, the webhook, the key set, the checkpoint or the proof is malformed"),
    Flaw.SIGNATURE: (4, "a signature is not valid, or its chain leads to no root key of the key set for its purpose"),
    Flaw.TIMES: (5, "a time contradicts the other times or the validity of the key"),
    Flaw.AMOUNTS: (6, "the amounts do not add up, or do not follow from the tariff"),
    Flaw.CONTRADICTION: (7, "the claims contradict one another, or a given file (a length, a score)"),
    Flaw.DIGEST: (8, "a file is not the one that the receipt names"),
    Flaw.REPLAY: (9, "the replay ended in another way than the receipt states"),
    Flaw.UNREPEATABLE: (10, "the run of this receipt cannot be repeated"),
    Flaw.LOG: (11, "the receipt is not proven to be in the log"),
    Flaw.HISTORY: (12, "the log is not proven to continue the older checkpoint: its history may have been changed"),
    Flaw.NO_SANDBOX: (13, "the replay could not be carried out on this machine"),
    Flaw.RULES: (14, "the rules give another verdict on the output than the receipt states"),
    Flaw.TICKET: (15, "the ticket does not prove that the channel's key asked for this task"),
}
"""The exit status of each class of failure. 0 is success; 2 is a wrong call or a file that cannot be read."""


class CheckResult(StrEnum):
    """The result of one check."""

    PASSED = "passed"
    FAILED = "failed"
    NOTED = "noted"
    NOT_DONE = "not done"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, its result, a sentence, and the class of a failure."""

    name: str
    result: CheckResult
    sentence: str
    flaw: Flaw | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that a verification uses. Parts that are None are not checked."""

    receipt: str
    keys: bytes
    module: bytes | None = None
    input: bytes | None = None
    output: bytes | None = None
    tariff: bytes | None = None
    agent_rules: bytes | None = None
    task_rules: bytes | None = None
    agent_judge: str | None = None
    task_judge: str | None = None
    agent_judge_output: bytes | None = None
    task_judge_output: bytes | None = None
    proof: bytes | None = None
    older: str | None = None
    channel_key: bytes | None = None
    ticket_options: bytes | None = None


@dataclass(slots=True)
class Report:
    """The claims of a receipt, and its checks in order."""

    claims: ReceiptClaims | None = None
    checks: list[Check] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0 if nothing failed, else the status of the first failure."""
        return next((EXITS[check.flaw][0] for check in self.checks if check.flaw), 0)

    def check(self, name: str, passed: str, test: Callable[[], str | None]) -> bool:
        """Runs a test and records its result; a test may return a more precise sentence than `passed`."""
        try:
            self.checks.append(Check(name, CheckResult.PASSED, test() or passed))
        except ProofError as error:
            self.checks.append(Check(name, CheckResult.FAILED, str(error), error.flaw))
        return not self.checks[-1].flaw

    def skip(self, name: str, sentence: str) -> None:
        """Records that a check was not done."""
        self.checks.append(Check(name, CheckResult.NOT_DONE, sentence))

    def note(self, name: str, sentence: str) -> None:
        """Records something that a reader should know although it is not a failure."""
        self.checks.append(Check(name, CheckResult.NOTED, sentence))


def examine(evidence: Evidence) -> Report:
    """Checks a receipt against the evidence. If its signatures are not valid, nothing else is checked."""
    report = Report()
    keys: dict[str, Any] = {}

    def chain_holds() -> str:
        keys.update(read_json(evidence.keys, "key set"))
        report.claims, signed = receipt.authenticate(evidence.receipt, keys)
        checks.extend(receipt.checks(report.claims, signed))
        return f"the chain leads to the root key {quoted(signed.root_key_id)}"

    checks: list[tuple[Flaw, Callable[[], None]]] = []
    if not report.check("signature", "", chain_holds) or report.claims is None:
        return report
    for flaw, check in checks:
        name, sentence = _SELF_CHECKS[flaw]
        report.check(name, sentence, check)
    _note_wall_time(report, report.claims)
    _check_ticket(report, report.claims, evidence)
    _check_files(report, report.claims, evidence)
    _check_judges(report, report.claims, evidence, keys)
    _check_log(report, report.claims, evidence, keys)
    return report


_SELF_CHECKS: Final = {
    Flaw.TIMES: ("times", "funded, settled and expiry are in order, and the key was valid"),
    Flaw.AMOUNTS: ("amounts", "paid, fee and refunded add up to the budget, the fee is as stated"),
    Flaw.CONTRADICTION: ("claims", "state, outcome, fault, reputation, seed and escrow id follow from one another"),
    Flaw.TICKET: ("ticket", "the channel's key asked for exactly this task, and the channel's id names its payer"),
}


def _check_ticket(report: Report, claims: ReceiptClaims, evidence: Evidence) -> None:
    """The channel's key must be the one that is given, and the ticket must name the options that are given."""
    asked = _asked(claims)
    if evidence.channel_key is not None:
        report.check("key", "it is the key of the channel", partial(_check_key, claims, evidence.channel_key))
    elif claims.ticket:
        report.skip("key", "no --channel-key was given, so whose key it is is the platform's word")
    named = asked.options_sha256 if asked else None
    if evidence.ticket_options is not None:
        passed = f"their SHA-256 is {named}"
        report.check("options", passed, partial(_check_options, named, evidence.ticket_options))
    elif named:
        report.skip("options", "no --ticket-options was given, and the ticket names some by digest")


def _asked(claims: ReceiptClaims) -> TicketClaims | None:
    """What the ticket that paid asks for; None if no ticket paid, or if it cannot be read."""
    try:
        return ticket.read(claims.ticket.signed)[0] if claims.ticket else None
    except ProofError:
        return None


def _check_key(claims: ReceiptClaims, data: bytes) -> None:
    try:
        key = ticket.key_of(read_json(data, "channel key"))
    except ValueError as exc:
        raise ProofError(Flaw.DIGEST, f"the channel key {exc}") from exc
    if claims.ticket is None:
        raise ProofError(Flaw.DIGEST, "no ticket paid for this task, but the key of a channel is given")
    if key != claims.ticket.key:
        raise ProofError(Flaw.DIGEST, f"the channel key is {key}, the receipt names {claims.ticket.key}")


def _check_options(named: str | None, data: bytes) -> None:
    found = ticket.options_sha256(read_json(data, "file of options"))
    if named is None:
        raise ProofError(Flaw.DIGEST, "no ticket of this receipt names options, but some are given")
    if found != named:
        raise ProofError(Flaw.DIGEST, f"the options have the SHA-256 {found}, the ticket names {named}")


def _note_wall_time(report: Report, claims: ReceiptClaims) -> None:
    """Notes a run that took longer than its timeout, which a receipt of version 1 may state."""
    if claims.limits and claims.meter.wall_ms > claims.limits.timeout_ms and not report.exit_status:
        sentence = f"the run took {claims.meter.wall_ms} ms, longer than its timeout of {claims.limits.timeout_ms} ms"
        report.note("wall time", sentence)


def _check_files(report: Report, claims: ReceiptClaims, evidence: Evidence) -> None:
    for name, data, digest, size in (
        ("module", evidence.module, claims.module_sha256, None),
        ("input", evidence.input, claims.input_sha256, _input_bytes(claims)),
        ("output", evidence.output, claims.output_sha256, claims.meter.output_bytes),
    ):
        if data is None:
            report.skip(name, f"no --{name} was given")
        else:
            report.check(name, f"its SHA-256 is {digest}", partial(_check_file, name, data, digest, size))
    if evidence.tariff is None:
        report.skip("tariff", "no --tariff was given, so the price was not computed")
    else:
        tariff = evidence.tariff
        report.check("tariff", "the price follows from the tariff and the meter", lambda: _check_price(claims, tariff))
    _check_rules(report, claims, evidence)


def _input_bytes(claims: ReceiptClaims) -> int | None:
    """The length of the input by the meter; None if nothing ran and so nothing was measured."""
    return claims.meter.input_bytes if claims.limits or claims.meter.input_bytes else None


def _check_file(name: str, data: bytes, digest: str | None, size: int | None) -> None:
    """The file must have the digest and the length that the receipt states."""
    _check_digest(name, data, digest)
    if size is not None and len(data) != size:
        raise ProofError(Flaw.CONTRADICTION, f"the {name} has {len(data)} bytes, the receipt's meter says {size}")


def _check_digest(name: str, data: bytes, digest: str | None) -> None:
    found = hashlib.sha256(data).hexdigest()
    if digest is None:
        raise ProofError(Flaw.DIGEST, f"the receipt names no {name}, but one is given")
    if found != digest:
        raise ProofError(Flaw.DIGEST, f"the {name} has the SHA-256 {found}, the receipt names {digest}")


def _check_price(claims: ReceiptClaims, tariff: bytes) -> None:
    """The price must follow from the tariff, which may be canonical JSON or any other spelling of it."""
    try:
        terms = pricing.parse_tariff(tariff.decode())
    except (ValidationError, ValueError) as exc:
        raise ProofError(Flaw.DIGEST, "the tariff file does not contain a tariff") from exc
    _check_digest("tariff", pricing.tariff_json(terms).encode(), claims.tariff_sha256)
    measured = Meter(**claims.meter.model_dump())
    if claims.outcome is Outcome.WITHHELD:
        measured = replace(measured, fuel=receipt.fuel_computed(claims))
    price = pricing.price_micro(terms, measured)
    # A run over its budget ends as budget_exhausted, unless it is a judge's or no own limits were recorded.
    if claims.own_limits is None or receipt.is_judge(claims):
        price = min(price, int(claims.budget) - int(claims.compute))
    due = receipt.price_due(claims, price)
    paid = int(claims.paid) + int(claims.fee) - int(claims.compute)
    if paid != due:
        raise ProofError(Flaw.AMOUNTS, f"paid and commission are {paid} together, by the tariff {due} is due")


def _check_rules(report: Report, claims: ReceiptClaims, evidence: Evidence) -> None:
    """The rules must be those that the receipt names, and the output must meet them."""
    for side, data, digest in _rules_of(claims, evidence):
        if data is not None:
            passed = f"their SHA-256 is {digest}"
            named = report.check(f"{side} rules", passed, partial(_check_rules_digest, side, data, digest))
            if named and side is Side.TASK:
                _check_held(report, claims, _read_rules(data))
        elif digest:
            report.skip(f"{side} rules", f"no --{side}-rules was given")
    if claims.acceptance is None:
        return
    not_applied = _why_not_applied(claims, evidence)
    if report.exit_status:
        report.skip("acceptance", "a check above failed")
    elif not_applied or evidence.output is None:
        report.skip("acceptance", not_applied or "no --output was given")
    else:
        report.check("acceptance", "", partial(_check_verdict, claims, evidence, evidence.output))


def _rules_of(claims: ReceiptClaims, evidence: Evidence) -> Iterator[tuple[Side, bytes | None, str | None]]:
    """Each side, its rules as given, and the digest by which the receipt names them."""
    named = claims.acceptance.digests if claims.acceptance else {}
    yield Side.AGENT, evidence.agent_rules, named.get(Side.AGENT)
    yield Side.TASK, evidence.task_rules, named.get(Side.TASK)


def _check_held(report: Report, claims: ReceiptClaims, rules: acceptance.Rules) -> None:
    """With the task's rules, the budget that a ticket offers shows what must have been held for the agent."""
    asked = _asked(claims)
    if asked is None:
        return
    held_micro = asked.budget_micro - (rules.judge.budget_micro if rules.judge else 0)

    def all_held() -> str:
        if held_micro != int(claims.budget):
            sentence = f"the budget is {claims.budget}, but the ticket and the rules of the task make it {held_micro}"
            raise ProofError(Flaw.TICKET, sentence)
        return "it is what the ticket offers, less what is held for the task's judge"

    report.check("budget", "", all_held)


def _why_not_applied(claims: ReceiptClaims, evidence: Evidence) -> str:
    """Why the rules cannot be applied to any output; empty if they can."""
    if claims.acceptance is None:
        return "the receipt names no rules"
    if claims.outcome not in {Outcome.SUCCEEDED, *OF_THE_RULES}:
        return f"the outcome {claims.outcome} does not come from the rules"
    missing = [f"--{side}-rules" for side, data, digest in _rules_of(claims, evidence) if digest and data is None]
    return f"no {' and no '.join(missing)} was given" if missing else ""


def _check_rules_digest(side: str, data: bytes, digest: str | None) -> None:
    _check_digest(f"rules of the {side}", acceptance.rules_json(_read_rules(data)).encode(), digest)


def _read_rules(data: bytes) -> acceptance.Rules:
    """Rules in their canonical JSON or in any other spelling of it. Raises ProofError."""
    try:
        return acceptance.parse_rules(data.decode())
    except ValueError as exc:
        raise ProofError(Flaw.DIGEST, "a file of rules does not contain rules that could be published") from exc


def _check_verdict(claims: ReceiptClaims, evidence: Evidence, output: bytes) -> str:
    agent, task = (_read_rules(data) if data else None for data in (evidence.agent_rules, evidence.task_rules))
    found = acceptance.verdict(output, agent=agent, task=task)
    for side, rules in ((Side.AGENT, agent), (Side.TASK, task)):
        score_micro = _score_micro(claims, side)
        if found.accepted and rules and rules.judge:
            if claims.v > 1 and claims.outcome is Outcome.REJECTED:
                return _check_rejecting_judge(claims, side, task)
            found = acceptance.judged(rules.judge, score_micro, side=side)
        elif score_micro is not None:
            raise ProofError(Flaw.RULES, f"the receipt states a score of the {side}'s judge, which must not have run")
    if claims.v == 1:
        ends: tuple[object, object] = (found.outcome, claims.outcome)
    else:
        ends = (found.rejected_by, claims.rejected_by)
    if ends[0] != ends[1]:
        sentence = f"by the rules the result is {ends[0] or 'accepted'}, the receipt states {ends[1] or 'accepted'}. "
        raise ProofError(Flaw.RULES, (sentence + found.message).rstrip())
    return found.message or "the output meets the rules"


def _check_rejecting_judge(claims: ReceiptClaims, side: Side, task: acceptance.Rules | None) -> str:
    """The judge that rejected the output must be one that ran. That it rejected is unproven: no score is stated."""
    by = claims.rejected_by
    able = {RejectedBy.AGENT_JUDGE} if side is Side.AGENT else set()
    if task and task.judge:
        able.add(RejectedBy.TASK_JUDGE)
    if by not in able:
        raise ProofError(Flaw.RULES, f"the receipt states that {by} rejected it, but the output meets the rules")
    return f"the output meets the rules; that {by} rejected it is the platform's word"


def _score_micro(claims: ReceiptClaims, side: Side) -> int | None:
    score = claims.acceptance.scores[side] if claims.acceptance else None
    return None if score is None else parse_credits(score)


def _check_judges(report: Report, claims: ReceiptClaims, evidence: Evidence, keys: Mapping[str, Any]) -> None:
    """The scores must be those of the judges' own receipts, which can be replayed like any other."""
    for side, token, rules, printed in (
        (Side.AGENT, evidence.agent_judge, evidence.agent_rules, evidence.agent_judge_output),
        (Side.TASK, evidence.task_judge, evidence.task_rules, evidence.task_judge_output),
    ):
        judges: list[ReceiptClaims] = []
        if token is not None:
            check = partial(_check_judge, claims, evidence, keys, side, token, rules, judges)
            if report.check(f"{side} judge", "", check):
                _check_score(report, claims, side, judges[0], printed)
        elif printed is not None or _score_micro(claims, side) is not None:
            report.skip(f"{side} judge", f"no --{side}-judge was given, so the score is the platform's word")


def _check_judge(
    claims: ReceiptClaims,
    evidence: Evidence,
    keys: Mapping[str, Any],
    side: Side,
    token: str,
    rules: bytes | None,
    judges: list[ReceiptClaims],
) -> str:
    """Checks the receipt of a side's judge, and appends its claims to `judges`."""
    judge, signed = receipt.authenticate(token, keys)
    for _, check in receipt.checks(judge, signed):
        check()
    user, task = claims.user, judge_task_id(claims.task, side)
    if claims.v > 1 and side is Side.AGENT:
        user, task = bond_account(claims.owner), judge_task_id(claims.eid, side)
    pairs = {
        "iss": (judge.iss, claims.iss),
        "user": (judge.user, user),
        "task": (judge.task, task),
    }
    if rules and (rule := _read_rules(rules).judge):
        pairs["agent"] = (judge.agent, rule.agent_id)
    for name, (found, due) in pairs.items():
        if found != due:
            sentence = f"{name} of the judge's receipt is {quoted(found)}, but this receipt's judge has {quoted(due)}"
            raise ProofError(Flaw.CONTRADICTION, sentence)
    cost_micro = int(judge.budget) - int(judge.refunded)
    stated_micro = int(claims.judging if side is Side.AGENT else claims.task_judging)
    if claims.v > 1 and cost_micro != stated_micro:
        sentence = f"the {side}'s judge cost {cost_micro} by its own receipt, this receipt states {stated_micro}"
        raise ProofError(Flaw.AMOUNTS, sentence)
    score_micro = _score_micro(claims, side)
    if judge.outcome is not Outcome.SUCCEEDED and score_micro is not None:
        raise ProofError(Flaw.CONTRADICTION, f"the judge ended as {judge.outcome}, yet the receipt states its score")
    if score_micro is not None and evidence.input is not None and evidence.output is not None:
        read_by_it = acceptance.judge_input(evidence.input, evidence.output)
        _check_file(f"input of the {side}'s judge", read_by_it, judge.input_sha256, _input_bytes(judge))
    judges.append(judge)
    return f"the agent {quoted(judge.agent)} ended as {judge.outcome}"


def _check_score(
    report: Report, claims: ReceiptClaims, side: Side, judge: ReceiptClaims, printed: bytes | None
) -> None:
    """The score must be what the judge printed, whose digest and length its receipt states."""
    score_micro, name = _score_micro(claims, side), f"{side} score"
    if score_micro is None or judge.output_sha256 is None:
        return
    plain = _plain_score(judge.output_sha256, judge.meter.output_bytes) if printed is None else printed
    if plain is None:
        wanted = f"give what it printed as --{side}-judge-output"
        report.skip(name, f"the judge's output is not a plain decimal, which could be found by its digest: {wanted}")
    else:
        report.check(name, "", partial(_check_printed, side, score_micro, judge, plain))


def _check_printed(side: Side, score_micro: int, judge: ReceiptClaims, printed: bytes) -> str:
    _check_file(f"output of the {side}'s judge", printed, judge.output_sha256, judge.meter.output_bytes)
    if not acceptance.verdict(printed, agent=acceptance.SCORE_RULES, task=None).accepted:
        raise ProofError(Flaw.CONTRADICTION, f"what the {side}'s judge printed is no score, yet the receipt states one")
    found_micro = acceptance.read_score(printed)
    if found_micro != score_micro:
        found, said = format_credits(found_micro), format_credits(score_micro)
        sentence = f"the {side}'s judge printed the score {found}, the receipt states {said}"
        raise ProofError(Flaw.CONTRADICTION, sentence)
    return f"the judge printed {format_credits(found_micro)}"


def _plain_score(digest: str, size: int) -> bytes | None:
    """The output of a judge, found by its digest and length; None unless it is a decimal as most judges print it.

    Such a decimal has no exponent and at most six places; a line end may follow. There are about two million of them.
    """
    for end in (b"\n", b"", b"\r\n"):
        for number in _plain_decimals(size - len(end)):
            if hashlib.sha256(number + end).hexdigest() == digest:
                return number + end
    return None


def _plain_decimals(size: int) -> Iterator[bytes]:
    """The decimals from 0 to 1 with `size` characters and at most six places."""
    places = size - len("0.")
    if size == 1:
        yield from (b"0", b"1")
    elif 1 <= places <= _PLAIN_PLACES_MAX:
        yield b"1." + b"0" * places
        yield from (b"0.%0*d" % (places, number) for number in range(10**places))


def _check_log(report: Report, claims: ReceiptClaims, evidence: Evidence, keys: Mapping[str, Any]) -> None:
    if evidence.proof is None:
        report.skip("log", "no --proof was given")
        report.skip("history", "no --proof was given" if evidence.older else "no --checkpoint was given")
        return
    parts: list[tuple[log.Proof, log.Checkpoint]] = []
    document, token = evidence.proof, evidence.older

    def included() -> str:
        proof = read(log.Proof, read_json(document, "proof"), "proof")
        checkpoint = log.verify_checkpoint(proof.checkpoint, keys)
        _check_issuer(checkpoint, claims)
        if checkpoint.size != proof.tree_size:
            sentence = f"the proof is for {proof.tree_size} entries, its checkpoint for {checkpoint.size}"
            raise ProofError(Flaw.LOG, sentence)
        leaf = log.leaf_hash(evidence.receipt.encode())
        log.check_inclusion(leaf, proof.leaf_index, proof.tree_size, _hashes(proof.path), checkpoint.root)
        parts.append((proof, checkpoint))
        return f"it is entry {proof.leaf_index} of {proof.tree_size}, in the log as of {_when(checkpoint.at_ms)}"

    if not report.check("log", "", included):
        report.skip("history", "the proof is not valid")
    elif token is None:
        report.skip("history", "no --checkpoint was given")
    else:
        report.check("history", "", lambda: _check_history(*parts[0], token, claims, keys))


def _check_history(
    proof: log.Proof, newer: log.Checkpoint, token: str, claims: ReceiptClaims, keys: Mapping[str, Any]
) -> str:
    older = log.verify_checkpoint(token, keys)
    _check_issuer(older, claims)
    path: list[bytes] = []
    if 0 < older.size < newer.size:
        if proof.consistency is None:
            sentence = f"the proof does not cover the log at {older.size} entries: get it with since={older.size}"
            raise ProofError(Flaw.HISTORY, sentence)
        if proof.consistency.tree_size != older.size:
            proven = proof.consistency.tree_size
            sentence = f"the proof covers the log at {proven} entries, the older checkpoint is at {older.size}"
            raise ProofError(Flaw.HISTORY, sentence)
        path = _hashes(proof.consistency.path)
    log.check_consistency(older.size, older.root, newer.size, newer.root, path)
    return f"the log of {newer.size} entries continues the one of {older.size}"


def _check_issuer(checkpoint: log.Checkpoint, claims: ReceiptClaims) -> None:
    if checkpoint.issuer != claims.iss:
        sentence = f"the checkpoint is of {quoted(checkpoint.issuer)}, the receipt of {quoted(claims.iss)}"
        raise ProofError(Flaw.LOG, sentence)


def _hashes(path: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(node) for node in path]


def _when(moment_ms: int) -> str:
    try:
        return datetime.fromtimestamp(moment_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{moment_ms} ms"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `quittance-verify`; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if [options.receipt, options.webhook, options.card].count(None) != 2:
        parser.error("give a receipt, --webhook or --card")
    if options.webhook and not (options.signature and options.url):
        parser.error("--webhook needs --signature and --url")
    try:
        if options.webhook:
            return _verify_webhook(options)
        if options.card:
            return _verify_card(options)
        evidence = _read_all(options)
    except _UnreadableError as error:
        print(f"quittance-verify: {error}", file=sys.stderr)
        return _USAGE
    report = examine(evidence)
    if options.replay:
        _replay(report, evidence)
    else:
        report.skip("replay", "no --replay was given")
    print(_as_json(report) if options.json else _as_text(report))
    return report.exit_status


def _verify_webhook(options: argparse.Namespace) -> int:
    """Checks that the platform sent a body to a URL, at any time.

    A receiver calls `webhook.verify` instead, which also checks the age. This command is for stored deliveries.
    """
    body, signature = _read(options.webhook, _DOCUMENT_BYTES_MAX), _read_token(options.signature)
    keys = _read(options.keys, _DOCUMENT_BYTES_MAX)
    report = Report()

    def body_is_signed() -> str:
        jwks = read_json(keys, "key set")
        claims = webhook.verify(body, signature, url=options.url, jwks=jwks, now_ms=None)
        return f"{claims.iss!a} sent {quoted(claims.event_id)} to this URL, {_when(claims.at)}"

    report.check("webhook", "", body_is_signed)
    print(_as_json(report) if options.json else _as_text(report))
    return report.exit_status


def _verify_card(options: argparse.Namespace) -> int:
    """Checks that the platform signed an agent's card, at any time.

    A client calls `card.verify` instead, which also checks that the card is still valid.
    """
    text, keys = _read(options.card, limits.CARD_BYTES_MAX), _read(options.keys, _DOCUMENT_BYTES_MAX)
    report = Report()

    def card_is_signed() -> str:
        found = card.verify(text, read_json(keys, "key set"), now_ms=None)
        signed = f"{quoted(found.issuer)} signed it for the agent {quoted(found.agent_id)}, {_when(found.issued_ms)}"
        return f"{signed}; its key is valid until {_when(found.valid_until_ms)}"

    report.check("card", "", card_is_signed)
    print(_as_json(report) if options.json else _as_text(report))
    return report.exit_status


def _replay(report: Report, evidence: Evidence) -> None:
    if report.claims is None or report.exit_status:
        report.skip("replay", "a check above failed")
        return
    if evidence.module is None or evidence.input is None:
        report.skip("replay", "a replay needs --module and --input")
        return
    report.check("replay", "", partial(_replayed, report, report.claims, evidence, evidence.module, evidence.input))


def _replayed(report: Report, claims: ReceiptClaims, evidence: Evidence, module: bytes, stdin: bytes) -> str:
    try:
        from quittance.proof import replay
    except ImportError as exc:
        raise ProofError(Flaw.NO_SANDBOX, f"the sandbox cannot be loaded: {exc}") from exc
    done = replay.replay(claims, module, stdin)
    if not _why_not_applied(claims, evidence):
        report.note("verdict", _check_verdict(claims, evidence, done.run.stdout))
    if done.same_engine:
        fuel = f"{done.run.meter.fuel} fuel" if claims.meter.fuel_exact else "the fuel not compared, it is not exact"
        return f"the module ran again: {done.run.outcome}, the same output and log, {fuel}"
    report.note("engine", f"the receipt is of engine {quoted(claims.engine)} in another configuration than this one")
    return f"the module ran again: {done.run.outcome}, the same output and log; counts were not compared"


class _UnreadableError(Exception):
    """A file cannot be read, or it is larger than any file of its type."""


def _read_all(options: argparse.Namespace) -> Evidence:
    if options.replay and (options.module is None or options.input is None):
        message = "--replay needs --module and --input"
        raise _UnreadableError(message)
    return Evidence(
        receipt=_read_token(options.receipt),
        keys=_read(options.keys, _DOCUMENT_BYTES_MAX),
        module=options.module and _read(options.module, limits.MODULE_BYTES_MAX),
        input=options.input and _read(options.input, limits.STDIN_BYTES_MAX),
        output=options.output and _read(options.output, limits.OUTPUT_BYTES_MAX),
        tariff=options.tariff and _read(options.tariff, _DOCUMENT_BYTES_MAX),
        agent_rules=options.agent_rules and _read(options.agent_rules, _DOCUMENT_BYTES_MAX),
        task_rules=options.task_rules and _read(options.task_rules, _DOCUMENT_BYTES_MAX),
        agent_judge=options.agent_judge and _read_token(options.agent_judge),
        task_judge=options.task_judge and _read_token(options.task_judge),
        agent_judge_output=options.agent_judge_output and _read(options.agent_judge_output, limits.OUTPUT_BYTES_MAX),
        task_judge_output=options.task_judge_output and _read(options.task_judge_output, limits.OUTPUT_BYTES_MAX),
        proof=options.proof and _read(options.proof, _DOCUMENT_BYTES_MAX),
        older=options.checkpoint and _read_token(options.checkpoint),
        channel_key=options.channel_key and _read(options.channel_key, _DOCUMENT_BYTES_MAX),
        ticket_options=options.ticket_options and _read(options.ticket_options, _DOCUMENT_BYTES_MAX),
    )


def _read_token(path: Path) -> str:
    """A token from a file, without the line end that an editor leaves."""
    return _read(path, 2 * limits.TOKEN_CHARS_MAX).decode(errors="replace").strip()


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except (OSError, ValueError) as exc:
        message = f"{quoted(str(path))} cannot be read: {exc.strerror if isinstance(exc, OSError) else exc}"
        raise _UnreadableError(message) from exc
    if len(data) > bytes_max:
        message = f"{quoted(str(path))} has more than {bytes_max} bytes, more than any such file"
        raise _UnreadableError(message)
    return data


def _as_json(report: Report) -> str:
    checks = [
        {"name": check.name, "verdict": check.result, "flaw": check.flaw, "sentence": check.sentence}
        for check in report.checks
    ]
    claims = report.claims.as_plain_json() if report.claims else None
    return json.dumps({"exit_status": report.exit_status, "claims": claims, "checks": checks}, indent=2)


_MARKS: Final = {
    CheckResult.PASSED: "ok",
    CheckResult.FAILED: "FAILED",
    CheckResult.NOTED: "note",
    CheckResult.NOT_DONE: "not done",
}


def _as_text(report: Report) -> str:
    lines = _summary(report.claims) if report.claims else []
    lines += [f"{_MARKS[check.result]:<9} {check.name:<10} {check.sentence}" for check in report.checks]
    failed = [check for check in report.checks if check.flaw]
    lines.append("")
    lines.append(f"Not proven: {failed[0].sentence}." if failed else "Proven, as far as it was checked.")
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    """A line that cannot control a terminal, whatever text it contains."""
    return "".join(character if " " <= character <= "~" else ascii(character)[1:-1] for character in line)


def _summary(claims: ReceiptClaims) -> list[str]:
    budget, paid, fee, refunded = (
        format_credits(int(amount)) for amount in (claims.budget, claims.paid, claims.fee, claims.refunded)
    )
    back = "left in the channel" if claims.ticket else "back"
    fault = "" if claims.fault == "none" else f", the fault of the {claims.fault}"
    return [
        f"{claims.iss!a}: escrow {claims.eid}",
        f"  task {claims.task!a} of {claims.user!a}, by agent {claims.agent!a} of {claims.owner!a}",
        f"  {claims.state}: {claims.outcome}{fault}",
        *_rules_line(claims),
        f"  budget {budget} credits: {paid} to the owner, {fee} fee, {refunded} {back}",
        *_ticket_lines(claims),
        f"  funded {_when(claims.funded_at)}, settled {_when(claims.settled_at)}",
        "",
    ]


def _ticket_lines(claims: ReceiptClaims) -> list[str]:
    if (paid_by := claims.ticket) is None:
        return []
    last = paid_by.n + paid_by.tickets - 1
    numbers = f"ticket {paid_by.n}" if paid_by.tickets == 1 else f"tickets {paid_by.n} to {last}"
    worth = format_credits(int(paid_by.ticket_value))
    return [
        f"  paid by {numbers} of the channel {paid_by.channel}, worth {worth} credits each",
        f"  signed by the key {paid_by.key}",
    ]


def _rules_line(claims: ReceiptClaims) -> list[str]:
    rules = claims.acceptance
    if rules is None:
        return []
    sides = " and ".join(side for side, digest in rules.digests.items() if digest)
    scores = [f"{score} by the {side}'s judge" for side, score in rules.scores.items() if score is not None]
    met = "met" if rules.accepted else "no accepted output"
    return [f"  rules of the {sides} for the output: {met}{''.join(f', scored {score}' for score in scores)}"]


def _parser() -> argparse.ArgumentParser:
    statuses = "\n".join(f"  {status:>2}  {meaning}" for status, meaning in sorted(EXITS.values()))
    parser = argparse.ArgumentParser(
        prog="quittance-verify",
        description="Checks a receipt offline: signatures, times, amounts, and every file that is given.",
        epilog=f"exit status:\n   0  nothing failed\n   2  wrong call, or a file cannot be read\n{statuses}\n\n"
        "If several checks fail, the status is that of the first. See docs/receipts.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("receipt", type=Path, nargs="?", metavar="receipt.jws", help="the receipt, a compact JWS")
    add("--keys", type=Path, required=True, metavar="jwks.json", help="the platform's key set")
    add("--module", type=Path, metavar="m.wasm", help="the agent's module: is it the one that ran?")
    add("--input", type=Path, metavar="file", help="the bytes of the agent's standard input")
    add("--output", type=Path, metavar="file", help="the bytes of its standard output")
    add("--tariff", type=Path, metavar="file", help="the agent's tariff as JSON: does the price follow from it?")
    add("--agent-rules", type=Path, metavar="file", help="the agent's rules as JSON: does the output meet them?")
    add("--task-rules", type=Path, metavar="file", help="the task's own rules as JSON, likewise")
    add("--agent-judge", type=Path, metavar="judge.jws", help="receipt of the judge that the agent's rules name")
    add("--task-judge", type=Path, metavar="judge.jws", help="receipt of the judge that the task's rules name")
    add("--agent-judge-output", type=Path, metavar="file", help="what the agent's judge printed: is it the score?")
    add("--task-judge-output", type=Path, metavar="file", help="what the task's judge printed, likewise")
    add("--replay", action="store_true", help="run the module again and compare; needs --module and --input")
    add("--channel-key", type=Path, metavar="key.json", help="the payer's public key, a JWK: did it sign the ticket?")
    add("--ticket-options", type=Path, metavar="file", help="the options that the ticket names by digest, as JSON")
    add("--proof", type=Path, metavar="proof.json", help="the log's proof: is the receipt in the log?")
    add("--checkpoint", type=Path, metavar="older.jws", help="an older checkpoint: does the log continue it?")
    add("--webhook", type=Path, metavar="body.json", help="instead of a receipt: the body of a webhook delivery")
    add("--signature", type=Path, metavar="file", help="the value of its header Quittance-Signature")
    add("--url", help="the URL that the task was given")
    add("--card", type=Path, metavar="card.json", help="instead of a receipt: an agent's signed A2A card")
    add("--json", action="store_true", help="print the report as JSON")
    return parser


def run() -> NoReturn:
    """The entry point of the console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
