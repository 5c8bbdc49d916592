"""Receipts: signed statements of an outcome that anyone can check offline. Pure. See docs/receipts.md."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

import jwt
from pydantic import Field

from quittance.ledger import escrow as escrows
from quittance.ledger import reputation
from quittance.ledger.balances import bond_account
from quittance.ledger.channels import ticket_escrow_id, ticket_task_id
from quittance.ledger.credits import format_credits
from quittance.ledger.escrow import Escrow, Settlement, State
from quittance.ledger.pricing import ComputePrices, tariff_sha256
from quittance.limits import (
    ACCOUNT_ID_CHARS_MAX,
    BPS,
    BUDGET_MICRO_MAX,
    FEE_BPS_MAX,
    OUTPUT_BYTES_MAX,
    STATED_TASK_CHARS_MAX,
)
from quittance.proof import statement
from quittance.proof import ticket as tickets
from quittance.proof.statement import (
    Flaw,
    ProofError,
    Purpose,
    SigningKey,
    StatementType,
    StrictModel,
    VerifiedStatement,
    quoted,
)
from quittance.proof.ticket import LEEWAY_S, TicketClaim, TicketClaims
from quittance.run import OF_THE_RULES, Fault, Limits, Meter, Outcome, RejectedBy, Run, Side

RECEIPT: Final = StatementType("quittance-receipt+jwt", "receipt", Purpose.RECEIPT)
_VERSION: Final = 2
_VERSION_WITH_TICKET: Final = 3
_NS_PER_MS: Final = 1_000_000

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Amount = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,15})$")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Score = Annotated[str, Field(pattern=r"^(0(\.[0-9]{0,5}[1-9])?|1)$")]
_Account = Annotated[str, Field(min_length=1, max_length=len(bond_account("")) + ACCOUNT_ID_CHARS_MAX)]
_HEADERS_REMEMBERED_MAX: Final = 64  # each names a key and has its certificate
_EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()


class MeterClaims(StrictModel):
    """What the run used; all zero if nothing ran."""

    fuel: _Count
    fuel_exact: bool
    cpu_ms: _Count
    wall_ms: _Count
    memory_bytes: _Count
    input_bytes: _Count
    output_bytes: _Count
    stderr_bytes: _Count

    @classmethod
    def of(cls, meter: Meter) -> "MeterClaims":
        """The claims of a meter, not validated."""
        return cls.model_construct(**asdict(meter))


class LimitClaims(StrictModel):
    """What the run was allowed to use."""

    fuel: _Count
    memory_bytes: _Count
    timeout_ms: _Count
    output_bytes: _Count

    @classmethod
    def of(cls, limits: Limits | None) -> "LimitClaims | None":
        """The claims of a run's limits, not validated; None if nothing ran."""
        return cls.model_construct(**asdict(limits)) if limits else None


class PriceClaims(StrictModel):
    """The platform's prices for computing: for a run, and for 10^9 units of fuel."""

    run: _Amount
    per_billion_fuel: _Amount

    @classmethod
    def of(cls, prices: ComputePrices) -> "PriceClaims":
        """The claims of the platform's prices, not validated."""
        return cls.model_construct(run=str(prices.run_micro), per_billion_fuel=str(prices.per_billion_fuel_micro))


class AcceptanceClaims(StrictModel):
    """The rules for the output, each side's named by the digest of its canonical JSON, and whether they were met.

    A score, from 0 to 1, is what the judge of a side's rules gave the output. It is stated only if the output was
    accepted. `rejected_by` names the rules or the judge that did not accept the output.
    """

    agent_sha256: _Digest | None
    task_sha256: _Digest | None
    agent_score: _Score | None
    task_score: _Score | None
    accepted: bool
    rejected_by: Annotated[RejectedBy, Field(strict=False)] | None

    @classmethod
    def of(cls, escrow: Escrow, settlement: Settlement, run: Run) -> "AcceptanceClaims | None":
        """The claims of how the output met the rules, not validated; None if neither side had rules."""
        if escrow.agent_rules_sha256 is None and escrow.task_rules_sha256 is None:
            return None
        accepted = settlement.state is State.RELEASED and settlement.outcome is Outcome.SUCCEEDED
        scores = {side: format_credits(score) for side, score in run.scores_micro.items()} if accepted else {}
        return cls.model_construct(
            agent_sha256=escrow.agent_rules_sha256,
            task_sha256=escrow.task_rules_sha256,
            agent_score=scores.get(Side.AGENT),
            task_score=scores.get(Side.TASK),
            accepted=accepted,
            rejected_by=run.rejected_by if settlement.outcome is Outcome.REJECTED else None,
        )

    @property
    def scores(self) -> dict[Side, str | None]:
        """The score that each side's judge gave."""
        return {Side.AGENT: self.agent_score, Side.TASK: self.task_score}

    @property
    def digests(self) -> dict[Side, str | None]:
        """The digest of each side's rules."""
        return {Side.AGENT: self.agent_sha256, Side.TASK: self.task_sha256}


class ReceiptClaims(StrictModel):
    """The claims of a receipt: amounts are strings of micro-credits, times are milliseconds since the epoch.

    `fee` is the commission plus `compute`. `charge` is taken from the owner's bond. `judging` is what the agent's own
    judge cost that bond, `task_judging` what the task's own judge cost the payer. `own_limits` are the agent's limits,
    `limits` those of the run. In a receipt of version 1, everything that version 2 added counts as free, unknown or
    absent. Version 3 is that of tasks which the ticket of a channel pays: it states the ticket, and what is refunded
    stays in the channel.
    """

    v: Annotated[int, Field(ge=1, le=_VERSION_WITH_TICKET)]
    iss: Annotated[str, Field(max_length=1_000)]
    eid: Annotated[str, Field(pattern=r"^[a-z2-7]{26}$")]
    task: Annotated[str, Field(min_length=1, max_length=STATED_TASK_CHARS_MAX)]
    user: _Account
    agent: Annotated[str, Field(min_length=1, max_length=100)]
    owner: _Account
    module_sha256: _Digest
    input_sha256: _Digest
    output_sha256: _Digest | None
    stderr_sha256: _Digest | None
    asset: Literal["credit/6"]
    budget: _Amount
    paid: _Amount
    fee: _Amount
    refunded: _Amount
    compute: _Amount
    charge: _Amount
    judging: _Amount
    task_judging: _Amount
    compute_prices: PriceClaims
    fee_bps: Annotated[int, Field(ge=0, le=FEE_BPS_MAX)]
    task_judge_bps: Annotated[int, Field(ge=0, le=BPS)]
    tariff_sha256: _Digest
    state: Annotated[State, Field(strict=False)]
    outcome: Annotated[Outcome, Field(strict=False)]
    fault: Annotated[Fault, Field(strict=False)]
    acceptance: AcceptanceClaims | None
    reputation_tenths: Annotated[int, Field(ge=-1_000, le=1_000)]
    meter: MeterClaims
    limits: LimitClaims | None
    own_limits: LimitClaims | None
    memory_refused: bool
    engine: Annotated[str, Field(max_length=100)]
    config_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    epoch_ns: Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,21})$")]
    seed: _Digest
    funded_at: _Count
    expires_at: _Count
    settled_at: _Count
    ticket: TicketClaim | None

    @classmethod
    def of(
        cls, escrow: Escrow, settlement: Settlement, run: Run, *, issuer: str, engine: str, config_sha256: str
    ) -> "ReceiptClaims":
        """The claims of a settlement. They are not validated here: see `check_claims`.

        For a judge whose work is withheld, the claims contain nothing that depends on what the judge read. If the
        platform failed after the run, they do not contain how the run ended, because that decided nothing.
        """
        withheld = settlement.outcome is Outcome.WITHHELD
        ticket = _ticket_claim(escrow)
        return cls.model_construct(
            v=_VERSION if ticket is None else _VERSION_WITH_TICKET,
            iss=issuer,
            eid=escrow.escrow_id,
            task=escrow.task_id,
            user=escrow.payer,
            agent=escrow.agent_id,
            owner=escrow.owner,
            module_sha256=escrow.module_sha256,
            input_sha256=_EMPTY_SHA256 if withheld else escrow.input_sha256,
            output_sha256=settlement.output.sha256 if settlement.output else None,
            stderr_sha256=settlement.stderr.sha256 if settlement.stderr else None,
            asset="credit/6",
            budget=str(escrow.budget_micro),
            paid=str(settlement.split.paid_micro),
            fee=str(settlement.split.fee_micro),
            refunded=str(settlement.split.refunded_micro),
            compute=str(settlement.compute_micro),
            charge=str(settlement.charge_micro),
            judging=str(settlement.judging_micro),
            task_judging=str(settlement.task_judging_micro),
            compute_prices=PriceClaims.of(escrow.compute),
            fee_bps=escrow.fee_bps,
            task_judge_bps=escrow.task_judge_bps,
            tariff_sha256=tariff_sha256(escrow.tariff),
            state=settlement.state,
            outcome=settlement.outcome,
            fault=settlement.fault,
            acceptance=AcceptanceClaims.of(escrow, settlement, run),
            reputation_tenths=settlement.reputation_tenths,
            meter=MeterClaims.of(Meter() if withheld else run.meter),
            limits=LimitClaims.of(run.limits),
            own_limits=LimitClaims.of(escrow.own_limits),
            memory_refused=run.memory_refused and settlement.outcome in _MEMORY_CAN_BE_REFUSED,
            engine=engine,
            config_sha256=config_sha256,
            epoch_ns=str(escrow.funded_ms * _NS_PER_MS),
            seed=escrows.seed(escrow).hex(),
            funded_at=escrow.funded_ms,
            expires_at=escrow.expires_ms,
            settled_at=settlement.settled_ms,
            ticket=ticket,
        )

    @property
    def rejected_by(self) -> RejectedBy | None:
        """What did not accept the output, if that was how the run ended."""
        return self.acceptance.rejected_by if self.acceptance else None

    def as_json(self) -> dict[str, Any]:
        """The claims as they are signed, in the order of this class. Claims that are not valid are dumped as they are.

        Enumerations stay members, which are strings.
        """
        return self.model_dump(warnings=False, exclude=self._absent)

    def as_plain_json(self) -> dict[str, Any]:
        """The claims of a valid receipt as JSON. One of version 1 has what version 2 added, as it counts."""
        return self.model_dump(mode="json", exclude=self._absent)

    @property
    def _absent(self) -> set[str] | None:
        return None if self.ticket else {"ticket"}


def _ticket_claim(escrow: Escrow) -> TicketClaim | None:
    """The claim of the ticket that pays, not validated; None for an escrow that an account pays, and for a judge."""
    ticket = escrow.ticket
    if ticket is None or ticket.proof is None:
        return None
    return TicketClaim.model_construct(
        channel=ticket.channel_id,
        salt=ticket.proof.salt,
        key=ticket.proof.key,
        ticket_value=str(ticket.proof.ticket_micro),
        n=ticket.number,
        tickets=ticket.count,
        signed=ticket.proof.signed,
    )


def check_claims(claims: ReceiptClaims) -> None:
    """Raises ProofError if a verifier would refuse these claims, whoever signs them: they must not be signed."""
    claims = read(claims.as_json())
    _check_amounts(claims)
    _check_contradictions(claims)
    _check_ticket(claims)


def sign(claims: ReceiptClaims, key: SigningKey) -> str:
    """The receipt: the claims as a compact JWS under an environment's key, with its certificate in the header."""
    return statement.sign(claims.as_json(), key, RECEIPT)


def verify(receipt: str, jwks: Mapping[str, Any]) -> dict[str, Any]:
    """The claims of a receipt whose certificate chain leads to a root key of `jwks` and whose claims are consistent.

    Raises ProofError with the first reason against it.
    """
    claims, signed = authenticate(receipt, jwks)
    for _, check in checks(claims, signed):
        check()
    return claims.as_plain_json()


def authenticate(receipt: str, jwks: Mapping[str, Any]) -> tuple[ReceiptClaims, VerifiedStatement]:
    """The claims of a receipt, and the verified statement that they come from. Raises ProofError.

    Whether the claims are consistent is not checked: see `checks`.
    """
    signed = statement.verify(receipt, jwks, RECEIPT)
    return read(signed.claims), signed


def read(claims: Mapping[str, Any]) -> ReceiptClaims:
    """The claims of a receipt, of this version or an older one. Raises ProofError."""
    version = claims.get("v")
    if not isinstance(version, int) or isinstance(version, bool) or version not in _NO_OUTCOMES_OF:
        known = f"this verifier knows the versions 1 to {_VERSION_WITH_TICKET}"
        raise ProofError(Flaw.FORM, f"the receipt is of version {quoted(version)}; {known}")
    if version == 1:
        claims = _as_version_2(claims)
    if ("ticket" in claims) != (version == _VERSION_WITH_TICKET) or ("ticket" in claims and claims["ticket"] is None):
        has = "is a claim of version 3 only" if version != _VERSION_WITH_TICKET else "must be stated in version 3"
        raise ProofError(Flaw.FORM, f"the receipt has a wrong form: 'ticket' {has}")
    claims = {"ticket": None, **claims}
    found = statement.read(ReceiptClaims, claims, "receipt")
    if found.outcome in _NO_OUTCOMES_OF[found.v]:
        sentence = f"the receipt has a wrong form: {found.outcome} is not an outcome of version {found.v}"
        raise ProofError(Flaw.FORM, sentence)
    return found


def _as_version_2(claims: Mapping[str, Any]) -> dict[str, Any]:
    """The claims of version 1, completed with defaults for what version 2 added. Raises ProofError."""
    added = dict(_ADDED)
    if odd := sorted(added.keys() & claims.keys()):
        raise ProofError(Flaw.FORM, f"the receipt has a wrong form: {odd[0]} is not a claim of version 1")
    for name, member, value in (("limits", "output_bytes", OUTPUT_BYTES_MAX), ("acceptance", "rejected_by", None)):
        part = claims.get(name)
        if isinstance(part, dict):
            if member in part:
                raise ProofError(
                    Flaw.FORM, f"the receipt has a wrong form: {name}.{member} is not a claim of version 1"
                )
            added[name] = {**part, member: value}
    return {**claims, **added}


_NO_OUTCOMES_OF: Final = {
    1: frozenset({Outcome.BUDGET_EXHAUSTED, Outcome.WITHHELD}),
    2: frozenset({Outcome.RULES_FAILED, Outcome.JUDGE_FAILED}),
    3: frozenset({Outcome.RULES_FAILED, Outcome.JUDGE_FAILED}),
}
_ADDED: Final[dict[str, Any]] = {
    "compute": "0",
    "charge": "0",
    "judging": "0",
    "task_judging": "0",
    "compute_prices": {"run": "0", "per_billion_fuel": "0"},
    "task_judge_bps": 0,
    "own_limits": None,
    "memory_refused": False,
}


def checks(claims: ReceiptClaims, signed: VerifiedStatement) -> Iterator[tuple[Flaw, Callable[[], None]]]:
    """All checks that need nothing but the receipt. Each raises ProofError with the flaw that it is paired with."""
    yield Flaw.TIMES, lambda: _check_times(claims, signed)
    yield Flaw.AMOUNTS, lambda: _check_amounts(claims)
    yield Flaw.CONTRADICTION, lambda: _check_contradictions(claims)
    if claims.ticket:
        yield Flaw.TICKET, lambda: _check_ticket(claims)


def read_claims(token: str) -> dict[str, Any]:
    """The claims of a receipt or a checkpoint that the platform itself stored, unverified. Raises jwt.DecodeError.

    It rejects what is not three base64url parts with JSON objects, several times as fast as `jwt.decode`: the sweep
    reads every receipt. Members of the header are not checked.
    """
    try:
        header, payload, signature = token.split(".")
        _check_header(header)
        _segment(signature)
        claims = json.loads(_segment(payload))
    except (ValueError, RecursionError) as exc:
        msg = "this is not a compact JWS"
        raise jwt.DecodeError(msg) from exc
    if not isinstance(claims, dict):
        msg = "the payload is not a JSON object"
        raise jwt.DecodeError(msg)
    return claims


@lru_cache(maxsize=_HEADERS_REMEMBERED_MAX)
def _check_header(header: str) -> None:
    """Checks that a header is a JSON object. All statements of a key have the same. Raises ValueError."""
    if not isinstance(json.loads(_segment(header)), dict):
        msg = "the header is not a JSON object"
        raise ValueError(msg)  # noqa: TRY004 - as for a header that is no JSON


def _segment(encoded: str) -> bytes:
    """The bytes of a part of a compact JWS, which has one spelling. Raises ValueError."""
    data = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    if base64.urlsafe_b64encode(data).decode().rstrip("=") != encoded:
        msg = "this is not base64url"
        raise ValueError(msg)
    return data


def _check_times(claims: ReceiptClaims, signed: VerifiedStatement) -> None:
    """An escrow settles after funding, before expiry unless it expired (I8), and while the signing key was valid."""
    signed.check_time(claims.settled_at, "settled_at")
    if claims.settled_at < claims.funded_at:
        sentence = f"settled_at {claims.settled_at} is before funded_at {claims.funded_at}"
        raise ProofError(Flaw.TIMES, sentence)
    in_time = claims.settled_at < claims.expires_at
    if in_time == (claims.state is State.EXPIRED):
        when = "before" if in_time else "not before"
        sentence = f"the escrow is {claims.state}, but settled_at {claims.settled_at} is {when} {claims.expires_at}"
        raise ProofError(Flaw.TIMES, sentence)


def _check_amounts(claims: ReceiptClaims) -> None:
    """The arithmetic of a settlement (I3 and I4), and that the party at fault bears each amount."""
    budget, paid, fee, refunded = map(int, (claims.budget, claims.paid, claims.fee, claims.refunded))
    compute = int(claims.compute)
    if paid + fee + refunded != budget:
        sentence = f"paid {paid}, fee {fee} and refunded {refunded} do not add up to the budget {budget}"
        raise ProofError(Flaw.AMOUNTS, sentence)
    if not 0 < budget <= BUDGET_MICRO_MAX:
        sentence = f"the budget {budget} is not between 1 and {BUDGET_MICRO_MAX}"
        raise ProofError(Flaw.AMOUNTS, sentence)
    for name, found, due in (
        ("compute", compute, _compute_due(claims)),
        ("charge", int(claims.charge), _charge_due(claims)),
    ):
        if found != due:
            sentence = f"{name} is {found}, but by the stated prices, fault and meter it is {due}"
            raise ProofError(Flaw.AMOUNTS, sentence)
    price = paid + fee - compute
    if price < 0 or fee - compute != (due := price * claims.fee_bps // BPS):
        due = max(price, 0) * claims.fee_bps // BPS
        sentence = f"the fee {fee} is not the compute {compute} plus the commission by fee_bps, {due}"
        raise ProofError(Flaw.AMOUNTS, sentence)
    if price > (most := price_due(claims, int(claims.budget) - int(claims.compute))):
        sentence = f"{price} was paid although the escrow is {claims.state}, not released: at most {most} is due"
        raise ProofError(Flaw.AMOUNTS, sentence)
    for side, cost in ((Side.AGENT, claims.judging), (Side.TASK, claims.task_judging)):
        if int(cost):
            _check_judging(claims, side)


def _check_judging(claims: ReceiptClaims, side: Side) -> None:
    """Only a judge that ran costs something. Judges run after all other rules, the task's own after the agent's."""
    rules = claims.acceptance
    if rules is None or rules.digests[side] is None:
        raise ProofError(Flaw.AMOUNTS, f"a judge of the {side} was paid, but acceptance names no rules of the {side}")
    if is_judge(claims):
        raise ProofError(Flaw.AMOUNTS, f"a judge of the {side} was paid, but no judge has a judge")
    if claims.outcome is not Outcome.SUCCEEDED and rules.rejected_by not in _AFTER_JUDGE_OF[side]:
        by = f" by {rules.rejected_by}" if rules.rejected_by else ""
        sentence = f"a judge of the {side} was paid, but the outcome is {claims.outcome}{by}, so the judge did not run"
        raise ProofError(Flaw.AMOUNTS, sentence)


_AFTER_JUDGE_OF: Final = {
    Side.AGENT: frozenset({RejectedBy.AGENT_JUDGE, RejectedBy.TASK_JUDGE}),
    Side.TASK: frozenset({RejectedBy.TASK_JUDGE}),
}


def is_judge(claims: ReceiptClaims) -> bool:
    """Whether a receipt is that of a judge."""
    return escrows.JUDGE_MARK in claims.task


def fuel_computed(claims: ReceiptClaims) -> int:
    """The fuel that `compute` is due for: what the run used, but a judge's whole limit.

    What a judge used would show something of what it read.
    """
    if claims.v > 1 and is_judge(claims) and claims.state is State.RELEASED:
        return claims.limits.fuel if claims.limits else 0
    return claims.meter.fuel


def _prices(claims: ReceiptClaims) -> ComputePrices:
    return ComputePrices(int(claims.compute_prices.run), int(claims.compute_prices.per_billion_fuel))


def _compute_due(claims: ReceiptClaims) -> int:
    if claims.state is not State.RELEASED and claims.fault is not Fault.PAYER:
        return 0
    return min(_prices(claims).micro(fuel_computed(claims)), int(claims.budget))


def _charge_due(claims: ReceiptClaims) -> int:
    return _prices(claims).micro(claims.meter.fuel) if claims.fault is Fault.AGENT else 0


def price_due(claims: ReceiptClaims, price: int) -> int:
    """The part of the agent's price that is due: all for accepted work, a share if the task's own judge rejected it."""
    if claims.state is State.RELEASED:
        return price
    return price * claims.task_judge_bps // BPS if claims.rejected_by is RejectedBy.TASK_JUDGE else 0


def _check_contradictions(claims: ReceiptClaims) -> None:
    _check_consistency(claims)
    _check_run(claims)
    _check_wall_time(claims)


def _check_consistency(claims: ReceiptClaims) -> None:
    """Claims that follow from other claims must have the value that follows."""
    rules = claims.acceptance
    fault = _fault(claims)
    succeeded = claims.outcome is Outcome.SUCCEEDED
    reputation_due = reputation.delta_tenths(claims.outcome, fault, wall_ms=claims.meter.wall_ms)
    for name, found, due in (
        ("eid", claims.eid, _escrow_id_due(claims)),
        ("seed", claims.seed, _seed_due(claims)),
        ("epoch_ns", claims.epoch_ns, str(claims.funded_at * _NS_PER_MS)),
        ("state", claims.state.value, _STATES.get(claims.outcome, State.REFUNDED).value),
        ("fault", claims.fault.value, fault.value),
        ("reputation_tenths", claims.reputation_tenths, reputation_due),
        ("output_sha256", "given" if claims.output_sha256 else None, "given" if succeeded else None),
        ("acceptance.accepted", rules and rules.accepted, rules and succeeded),
    ):
        if found != due:
            sentence = f"{name} is {quoted(found)}, but it must be {quoted(due)} by the other claims"
            raise ProofError(Flaw.CONTRADICTION, sentence)
    if rules:
        _check_acceptance(claims, rules)
    elif claims.outcome in OF_THE_RULES:
        sentence = f"the outcome is {claims.outcome}, but acceptance names no rules"
        raise ProofError(Flaw.CONTRADICTION, sentence)
    if claims.limits:
        _check_limits(claims, claims.limits)
    if claims.memory_refused:
        _check_memory_refused(claims)
    if claims.outcome is Outcome.WITHHELD and not _is_withheld(claims):
        raise ProofError(Flaw.CONTRADICTION, "the outcome is withheld, but what the judge did is stated")


def _check_acceptance(claims: ReceiptClaims, rules: AcceptanceClaims) -> None:
    if rules.agent_sha256 is None and rules.task_sha256 is None:
        raise ProofError(Flaw.CONTRADICTION, "acceptance is stated, but names no rules")
    if any(score and not rules.digests[side] for side, score in rules.scores.items()):
        raise ProofError(Flaw.CONTRADICTION, "acceptance states a score by rules that it does not name")
    if claims.v == 1:
        return
    if (rules.rejected_by is not None) != (claims.outcome is Outcome.REJECTED):
        sentence = f"rejected_by is {quoted(rules.rejected_by)}, but the outcome is {claims.outcome}"
        raise ProofError(Flaw.CONTRADICTION, sentence)
    if rules.rejected_by and rules.digests[rules.rejected_by.side] is None:
        raise ProofError(Flaw.CONTRADICTION, f"rejected_by is {rules.rejected_by}, but no such rules are named")
    if claims.outcome is not Outcome.SUCCEEDED and any(rules.scores.values()):
        raise ProofError(Flaw.CONTRADICTION, "a score is stated of an output that was not accepted")


def _check_limits(claims: ReceiptClaims, given: LimitClaims) -> None:
    for name, used, limit in (
        ("fuel", claims.meter.fuel, given.fuel),
        ("bytes of memory", claims.meter.memory_bytes, given.memory_bytes),
        ("bytes of output", claims.meter.output_bytes, given.output_bytes),
    ):
        if used > limit:
            sentence = f"the run took {used} {name}, over its limit {limit}"
            raise ProofError(Flaw.CONTRADICTION, sentence)
    for name, limit in (claims.own_limits.model_dump() if claims.own_limits else {}).items():
        if getattr(given, name) > limit:
            sentence = f"the run was given {getattr(given, name)} as its {name}, over the agent's own limit {limit}"
            raise ProofError(Flaw.CONTRADICTION, sentence)


def _check_ticket(claims: ReceiptClaims) -> None:
    """The ticket, if one paid, must be of a channel of the payer, under its key, and ask for exactly this task."""
    if claims.ticket is None:
        return
    try:
        _check_asked(claims, claims.ticket, tickets.check_claim(claims.ticket, issuer=claims.iss, payer=claims.user))
    except ProofError as exc:
        raise ProofError(Flaw.TICKET, str(exc)) from exc


def _check_asked(claims: ReceiptClaims, ticket: TicketClaim, asked: TicketClaims) -> None:
    """A ticket must ask for the task of a receipt, and must have been valid when the task began.

    The task's own judge is paid from the same tickets; its own receipt states the budget that was held for it.
    """
    rules = claims.acceptance
    for name, found, due in (
        ("task", claims.task, ticket_task_id(ticket.channel, ticket.n)),
        ("agent", claims.agent, asked.agent_id),
        ("input_sha256", claims.input_sha256, asked.input_sha256),
        ("acceptance.task_sha256", rules.task_sha256 if rules else None, asked.acceptance_sha256),
    ):
        if found != due:
            sentence = f"{name} is {quoted(found)}, but the ticket asks for {quoted(due)}"
            raise ProofError(Flaw.CONTRADICTION, sentence)
    budget, judging, most = int(claims.budget), int(claims.task_judging), asked.budget_micro
    if budget + judging > most or (budget < most and asked.acceptance_sha256 is None):
        with_judge = f", and the task's judge cost {judging}" if judging else ""
        raise ProofError(Flaw.AMOUNTS, f"the budget is {budget}{with_judge}, but the ticket allows {most}")
    if claims.funded_at // 1_000 >= asked.exp + LEEWAY_S:
        sentence = f"funded_at {claims.funded_at} is after the ticket expired, {asked.exp} seconds since 1970"
        raise ProofError(Flaw.TIMES, sentence)
    if asked.timeout is not None and claims.limits and claims.limits.timeout_ms > asked.timeout * 1_000:
        sentence = f"the run's timeout is {claims.limits.timeout_ms} ms, but the ticket asks for {asked.timeout} s"
        raise ProofError(Flaw.CONTRADICTION, sentence)


def _check_memory_refused(claims: ReceiptClaims) -> None:
    if claims.outcome not in _MEMORY_CAN_BE_REFUSED:
        raise ProofError(Flaw.CONTRADICTION, f"memory_refused is stated of a run that ended as {claims.outcome}")
    if claims.own_limits and claims.limits and claims.limits.memory_bytes >= claims.own_limits.memory_bytes:
        raise ProofError(Flaw.CONTRADICTION, "memory_refused is stated of a run that had all of the agent's own limit")


def _check_run(claims: ReceiptClaims) -> None:
    """A run states its limits, its engine and the engine's configuration. If nothing ran, nothing was used."""
    outcome = claims.outcome
    ran = outcome not in _NOTHING_RAN and claims.fault is not Fault.PLATFORM  # a platform's fault: it may have run
    if ran and claims.limits is None:
        raise ProofError(Flaw.CONTRADICTION, f"the outcome is {outcome}, but the run states no limits")
    if (ran or claims.limits) and not (claims.engine and claims.config_sha256):
        missing = "config_sha256" if claims.engine else "engine"
        raise ProofError(Flaw.CONTRADICTION, f"the outcome is {outcome}, but the run states no {missing}")
    if outcome in _NOTHING_RAN and (claims.limits or claims.engine or claims.config_sha256 or claims.stderr_sha256):
        sentence = f"the outcome is {outcome}, so nothing ran, but limits, an engine or a log are stated"
        raise ProofError(Flaw.CONTRADICTION, sentence)
    used = claims.meter.model_dump(exclude={"fuel_exact"} if outcome in _NOTHING_RAN else {"fuel_exact", "input_bytes"})
    if claims.limits is None and any(used.values()):
        sentence = f"the run states no limits, so nothing ran, but {next(name for name in used if used[name])} is not 0"
        raise ProofError(Flaw.CONTRADICTION, sentence)


def _check_wall_time(claims: ReceiptClaims) -> None:
    """No run takes longer than its timeout, and a run that timed out took exactly that long.

    A receipt of version 1 may state more: its run could end while the supervisor could not look at the clock.
    """
    if claims.limits is None or claims.fault is Fault.PLATFORM:
        return
    wall_ms, timeout_ms = claims.meter.wall_ms, claims.limits.timeout_ms
    bounded = claims.v > 1
    if (bounded and wall_ms > timeout_ms) or (claims.outcome is Outcome.TIMEOUT and wall_ms != timeout_ms):
        sentence = f"the outcome is {claims.outcome} after {wall_ms} ms, but the run's timeout is {timeout_ms} ms"
        raise ProofError(Flaw.CONTRADICTION, sentence)


_MEMORY_CAN_BE_REFUSED: Final = frozenset(outcome for outcome in Outcome if outcome.fault is Fault.AGENT)
_NOTHING_RAN: Final = frozenset({Outcome.NOT_NEEDED, Outcome.SUPERSEDED, Outcome.EXPIRED, Outcome.UNDELIVERED})


def _fault(claims: ReceiptClaims) -> Fault:
    run = Run(
        claims.outcome,
        "",
        Meter(**claims.meter.model_dump()),
        limits=_limits(claims.limits),
        memory_refused=claims.memory_refused,
        rejected_by=claims.rejected_by,
    )
    return escrows.fault(run, _limits(claims.own_limits))


def _limits(claims: LimitClaims | None) -> Limits | None:
    return Limits(**claims.model_dump()) if claims else None


def _escrow_id_due(claims: ReceiptClaims) -> str:
    """The id of the escrow that a ticket, or a user's task_id, names."""
    if claims.ticket:
        return ticket_escrow_id(claims.ticket.channel, claims.ticket.n)
    return escrows.escrow_id(claims.user, claims.task)


def _seed_due(claims: ReceiptClaims) -> str:
    """A judge's seed is drawn at random at funding, so any is valid; every other follows from the escrow's id."""
    drawn = claims.v > 1 and is_judge(claims)
    return claims.seed if drawn else escrows.task_seed(claims.eid).hex()


def _is_withheld(claims: ReceiptClaims) -> bool:
    return (
        is_judge(claims)
        and claims.meter == MeterClaims.of(Meter())
        and (claims.input_sha256, claims.stderr_sha256, claims.memory_refused) == (_EMPTY_SHA256, None, False)
    )


_STATES: Final = {
    Outcome.SUCCEEDED: State.RELEASED,
    Outcome.WITHHELD: State.RELEASED,
    Outcome.EXPIRED: State.EXPIRED,
}
