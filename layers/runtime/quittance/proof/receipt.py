"""Receipts: signed statements of an outcome that anyone can check offline. Pure. See docs/receipts.md."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal

import jwt
from pydantic import Field

from quittance.ledger import escrow as escrows
from quittance.ledger import reputation
from quittance.ledger.balances import bond_account
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
from quittance.proof import statement as certified
from quittance.proof.statement import Certified, Flaw, Form, Kind, ProofError, Purpose, SigningKey, shown
from quittance.run import OF_THE_RULES, Fault, Limits, Meter, Outcome, RejectedBy, Run, Side

RECEIPT: Final = Kind("quittance-receipt+jwt", "receipt", Purpose.RECEIPT)
_VERSION: Final = 2
_NS_PER_MS: Final = 1_000_000

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Amount = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,15})$")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Score = Annotated[str, Field(pattern=r"^(0(\.[0-9]{0,5}[1-9])?|1)$")]
_Account = Annotated[str, Field(min_length=1, max_length=len(bond_account("")) + ACCOUNT_ID_CHARS_MAX)]
_NOTHING_READ: Final = hashlib.sha256(b"").hexdigest()


class StatedMeter(Form):
    """What the run used; all zero where nothing ran."""

    fuel: _Count
    fuel_exact: bool
    cpu_ms: _Count
    wall_ms: _Count
    memory_bytes: _Count
    input_bytes: _Count
    output_bytes: _Count
    stderr_bytes: _Count


class StatedLimits(Form):
    """What the run was allowed."""

    fuel: _Count
    memory_bytes: _Count
    timeout_ms: _Count
    output_bytes: _Count


class StatedPrices(Form):
    """What the platform takes for computing: for a run, and for 10^9 units of fuel."""

    run: _Amount
    per_billion_fuel: _Amount


class StatedAcceptance(Form):
    """The rules that the output had to meet, whose canonical JSON is named by digest, and whether it did.

    A score is what the judge of a side's rules gave the output, from 0 to 1: stated only of an accepted output.
    `rejected_by` names what did not accept it.
    """

    agent_sha256: _Digest | None
    task_sha256: _Digest | None
    agent_score: _Score | None
    task_score: _Score | None
    accepted: bool
    rejected_by: Annotated[RejectedBy, Field(strict=False)] | None

    @property
    def scores(self) -> dict[Side, str | None]:
        """The score by each side's judge."""
        return {Side.AGENT: self.agent_score, Side.TASK: self.task_score}

    @property
    def digests(self) -> dict[Side, str | None]:
        """The digest of each side's rules."""
        return {Side.AGENT: self.agent_sha256, Side.TASK: self.task_sha256}


class Statement(Form):
    """The claims of a receipt: amounts are strings of micro-credits, times are milliseconds since the epoch.

    `fee` is the commission and `compute`; `charge` is taken from the owner's bond; `judging` is what the agent's own
    judge cost the bond, `task_judging` what the task's own cost the payer. `own_limits` are the agent's limits,
    `limits` those of the run. A receipt of version 1 is read as one in which all that version 2 added is free, unknown
    or absent.
    """

    v: Annotated[int, Field(ge=1, le=_VERSION)]
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
    compute_prices: StatedPrices
    fee_bps: Annotated[int, Field(ge=0, le=FEE_BPS_MAX)]
    task_judge_bps: Annotated[int, Field(ge=0, le=BPS)]
    tariff_sha256: _Digest
    state: Annotated[State, Field(strict=False)]
    outcome: Annotated[Outcome, Field(strict=False)]
    fault: Annotated[Fault, Field(strict=False)]
    acceptance: StatedAcceptance | None
    reputation_tenths: Annotated[int, Field(ge=-1_000, le=1_000)]
    meter: StatedMeter
    limits: StatedLimits | None
    own_limits: StatedLimits | None
    memory_refused: bool
    engine: Annotated[str, Field(max_length=100)]
    config_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    epoch_ns: Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,21})$")]
    seed: _Digest
    funded_at: _Count
    expires_at: _Count
    settled_at: _Count

    @property
    def rejected_by(self) -> RejectedBy | None:
        """What did not accept the output, if that was how the run ended."""
        return self.acceptance.rejected_by if self.acceptance else None


def claims(
    escrow: Escrow,
    settlement: Settlement,
    *,
    issuer: str,
    run: Run,
    engine: str,
    config_sha256: str,
) -> dict[str, Any]:
    """What a receipt states, in the form that `Statement` describes.

    Of a judge whose work is withheld nothing is stated that follows from what it read. Where the platform failed after
    the run, what the run ended by is not stated: it decided nothing.
    """
    withheld = settlement.outcome is Outcome.WITHHELD
    meter = Meter() if withheld else run.meter
    return {
        "v": _VERSION,
        "iss": issuer,
        "eid": escrow.escrow_id,
        "task": escrow.task_id,
        "user": escrow.payer,
        "agent": escrow.agent_id,
        "owner": escrow.owner,
        "module_sha256": escrow.module_sha256,
        "input_sha256": _NOTHING_READ if withheld else escrow.input_sha256,
        "output_sha256": settlement.output.sha256 if settlement.output else None,
        "stderr_sha256": settlement.stderr.sha256 if settlement.stderr else None,
        "asset": "credit/6",
        "budget": str(escrow.budget_micro),
        "paid": str(settlement.split.paid_micro),
        "fee": str(settlement.split.fee_micro),
        "refunded": str(settlement.split.refunded_micro),
        "compute": str(settlement.compute_micro),
        "charge": str(settlement.charge_micro),
        "judging": str(settlement.judging_micro),
        "task_judging": str(settlement.task_judging_micro),
        "compute_prices": {
            "run": str(escrow.compute.run_micro),
            "per_billion_fuel": str(escrow.compute.per_billion_fuel_micro),
        },
        "fee_bps": escrow.fee_bps,
        "task_judge_bps": escrow.task_judge_bps,
        "tariff_sha256": tariff_sha256(escrow.tariff),
        "state": settlement.state,
        "outcome": settlement.outcome,
        "fault": settlement.fault,
        "acceptance": _acceptance(escrow, settlement, run),
        "reputation_tenths": settlement.reputation_tenths,
        "meter": asdict(meter),
        "limits": asdict(run.limits) if run.limits else None,
        "own_limits": asdict(escrow.own_limits) if escrow.own_limits else None,
        "memory_refused": run.memory_refused and settlement.outcome in _MEMORY_CAN_BE_REFUSED,
        "engine": engine,
        "config_sha256": config_sha256,
        "epoch_ns": str(escrow.funded_ms * _NS_PER_MS),
        "seed": escrows.seed(escrow).hex(),
        "funded_at": escrow.funded_ms,
        "expires_at": escrow.expires_ms,
        "settled_at": settlement.settled_ms,
    }


def _acceptance(escrow: Escrow, settlement: Settlement, run: Run) -> dict[str, Any] | None:
    if escrow.agent_rules_sha256 is None and escrow.task_rules_sha256 is None:
        return None
    released = settlement.state is State.RELEASED and settlement.outcome is Outcome.SUCCEEDED
    scores = {side: format_credits(score) for side, score in run.scores_micro.items()} if released else {}
    return {
        "agent_sha256": escrow.agent_rules_sha256,
        "task_sha256": escrow.task_rules_sha256,
        "agent_score": scores.get(Side.AGENT),
        "task_score": scores.get(Side.TASK),
        "accepted": released,
        "rejected_by": run.rejected_by if settlement.outcome is Outcome.REJECTED else None,
    }


def check_claims(statement: Mapping[str, Any]) -> None:
    """Raises ProofError if a verifier would refuse these claims, whoever signs them: they must not be signed."""
    stated = read(statement)
    _check_amounts(stated)
    _check_contradictions(stated)


def sign(statement: Mapping[str, Any], key: SigningKey) -> str:
    """The receipt: the claims as a compact JWS under an environment's key, its certificate in the header."""
    return certified.sign(statement, key, RECEIPT)


def verify(receipt: str, jwks: Mapping[str, Any]) -> dict[str, Any]:
    """The claims of a receipt whose chain leads to a root key of `jwks`, and which hold together.

    Raises ProofError with the first reason that speaks against it.
    """
    statement, chain = authenticate(receipt, jwks)
    for _, check in checks(statement, chain):
        check()
    return statement.model_dump(mode="json")


def authenticate(receipt: str, jwks: Mapping[str, Any]) -> tuple[Statement, Certified]:
    """What a receipt states and who certified it; whether it holds together is not checked. Raises ProofError."""
    chain = certified.verify(receipt, jwks, RECEIPT)
    return read(chain.claims), chain


def read(claims: Mapping[str, Any]) -> Statement:
    """The statement of a receipt's claims, of this version or an older one. Raises ProofError."""
    version = claims.get("v")
    if version == 1 and not isinstance(version, bool):
        claims = _as_version_2(claims)
    elif version != _VERSION:
        sentence = f"the receipt is of version {shown(version)}; this verifier knows the versions 1 to {_VERSION}"
        raise ProofError(Flaw.FORM, sentence)
    statement = certified.read(Statement, claims, "receipt")
    if statement.outcome in _NO_OUTCOMES_OF[statement.v]:
        sentence = f"the receipt has a wrong form: {statement.outcome} is no outcome of version {statement.v}"
        raise ProofError(Flaw.FORM, sentence)
    return statement


def _as_version_2(claims: Mapping[str, Any]) -> dict[str, Any]:
    """The claims of version 1 with what version 2 added, which then did not exist. Raises ProofError."""
    added = dict(_ADDED)
    if odd := sorted(added.keys() & claims.keys()):
        raise ProofError(Flaw.FORM, f"the receipt has a wrong form: {odd[0]} is no claim of version 1")
    for name, member, value in (("limits", "output_bytes", OUTPUT_BYTES_MAX), ("acceptance", "rejected_by", None)):
        part = claims.get(name)
        if isinstance(part, dict):
            if member in part:
                raise ProofError(Flaw.FORM, f"the receipt has a wrong form: {name}.{member} is no claim of version 1")
            added[name] = {**part, member: value}
    return {**claims, **added}


_NO_OUTCOMES_OF: Final = {
    1: frozenset({Outcome.BUDGET_EXHAUSTED, Outcome.WITHHELD}),
    2: frozenset({Outcome.RULES_FAILED, Outcome.JUDGE_FAILED}),
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


def checks(statement: Statement, chain: Certified) -> Iterator[tuple[Flaw, Callable[[], None]]]:
    """All that a receipt carries in itself to be checked by: each check raises ProofError of its flaw, or passes."""
    yield Flaw.TIMES, lambda: _check_times(statement, chain)
    yield Flaw.AMOUNTS, lambda: _check_amounts(statement)
    yield Flaw.CONTRADICTION, lambda: _check_contradictions(statement)


def read_claims(receipt: str) -> dict[str, Any]:
    """The claims of a receipt or a checkpoint that we have stored ourselves, unverified."""
    statement: dict[str, Any] = jwt.decode(receipt, options={"verify_signature": False})
    return statement


def _check_times(stated: Statement, chain: Certified) -> None:
    """A settlement has its place in time: after funding, before or after expiry (I8), while its key was valid."""
    chain.check_time(stated.settled_at, "settled_at")
    if stated.settled_at < stated.funded_at:
        sentence = f"settled_at {stated.settled_at} is before funded_at {stated.funded_at}"
        raise ProofError(Flaw.TIMES, sentence)
    in_time = stated.settled_at < stated.expires_at
    if in_time == (stated.state is State.EXPIRED):
        when = "before" if in_time else "not before"
        sentence = f"the escrow is {stated.state}, but settled_at {stated.settled_at} is {when} {stated.expires_at}"
        raise ProofError(Flaw.TIMES, sentence)


def _check_amounts(stated: Statement) -> None:
    """The arithmetic of a settlement (I3 and I4), and that each amount is borne by whom the claims say."""
    budget, paid, fee, refunded = map(int, (stated.budget, stated.paid, stated.fee, stated.refunded))
    compute = int(stated.compute)
    if paid + fee + refunded != budget:
        sentence = f"paid {paid}, fee {fee} and refunded {refunded} do not add up to the budget {budget}"
        raise ProofError(Flaw.AMOUNTS, sentence)
    if not 0 < budget <= BUDGET_MICRO_MAX:
        sentence = f"the budget {budget} is not between 1 and {BUDGET_MICRO_MAX}"
        raise ProofError(Flaw.AMOUNTS, sentence)
    for name, found, due in (
        ("compute", compute, _compute_due(stated)),
        ("charge", int(stated.charge), _charge(stated)),
    ):
        if found != due:
            sentence = f"{name} is {found}, but by the stated prices, fault and meter it is {due}"
            raise ProofError(Flaw.AMOUNTS, sentence)
    price = paid + fee - compute
    if price < 0 or fee - compute != (due := price * stated.fee_bps // BPS):
        due = max(price, 0) * stated.fee_bps // BPS
        sentence = f"the fee {fee} is not the compute {compute} and the part of the price that fee_bps states, {due}"
        raise ProofError(Flaw.AMOUNTS, sentence)
    if price > (most := price_due(stated, int(stated.budget) - int(stated.compute))):
        sentence = f"{price} was paid although the escrow is {stated.state}, not released: at most {most} is due"
        raise ProofError(Flaw.AMOUNTS, sentence)
    for side, cost in ((Side.AGENT, stated.judging), (Side.TASK, stated.task_judging)):
        if int(cost):
            _check_judging(stated, side)


def _check_judging(stated: Statement, side: Side) -> None:
    """A judge costs something only if it was asked: after all other rules, and the task's own after the agent's."""
    rules = stated.acceptance
    if rules is None or rules.digests[side] is None:
        raise ProofError(Flaw.AMOUNTS, f"a judge of the {side} was paid, but acceptance names no rules of the {side}")
    if is_judge(stated):
        raise ProofError(Flaw.AMOUNTS, f"a judge of the {side} was paid, but no judge has a judge")
    if stated.outcome is not Outcome.SUCCEEDED and rules.rejected_by not in _AFTER_JUDGE_OF[side]:
        by = f" by {rules.rejected_by}" if rules.rejected_by else ""
        sentence = f"a judge of the {side} was paid, but the outcome is {stated.outcome}{by}, so it was not asked"
        raise ProofError(Flaw.AMOUNTS, sentence)


_AFTER_JUDGE_OF: Final = {
    Side.AGENT: frozenset({RejectedBy.AGENT_JUDGE, RejectedBy.TASK_JUDGE}),
    Side.TASK: frozenset({RejectedBy.TASK_JUDGE}),
}


def is_judge(stated: Statement) -> bool:
    """Whether a receipt is that of a judge."""
    return escrows.JUDGE_MARK in stated.task


def fuel_computed(stated: Statement) -> int:
    """The fuel that compute is due for: what the run used; of a judge its whole limit, so that it tells nothing."""
    if stated.v > 1 and is_judge(stated) and stated.state is State.RELEASED:
        return stated.limits.fuel if stated.limits else 0
    return stated.meter.fuel


def _prices(stated: Statement) -> ComputePrices:
    return ComputePrices(int(stated.compute_prices.run), int(stated.compute_prices.per_billion_fuel))


def _compute_due(stated: Statement) -> int:
    if stated.state is not State.RELEASED and stated.fault is not Fault.PAYER:
        return 0
    return min(_prices(stated).micro(fuel_computed(stated)), int(stated.budget))


def _charge(stated: Statement) -> int:
    return _prices(stated).micro(stated.meter.fuel) if stated.fault is Fault.AGENT else 0


def price_due(stated: Statement, price: int) -> int:
    """What of the agent's price is due: all of it for accepted work, its share if the task's own judge rejected it."""
    if stated.state is State.RELEASED:
        return price
    return price * stated.task_judge_bps // BPS if stated.rejected_by is RejectedBy.TASK_JUDGE else 0


def _check_contradictions(stated: Statement) -> None:
    _check_consistency(stated)
    _check_run(stated)
    _check_wall_time(stated)


def _check_consistency(stated: Statement) -> None:
    """What follows from the other claims must be what follows from them."""
    rules = stated.acceptance
    fault = _fault(stated)
    succeeded = stated.outcome is Outcome.SUCCEEDED
    reputation_due = reputation.delta_tenths(stated.outcome, fault, wall_ms=stated.meter.wall_ms)
    for name, found, due in (
        ("eid", stated.eid, escrows.escrow_id(stated.user, stated.task)),
        ("seed", stated.seed, _seed_due(stated)),
        ("epoch_ns", stated.epoch_ns, str(stated.funded_at * _NS_PER_MS)),
        ("state", stated.state.value, _STATES.get(stated.outcome, State.REFUNDED).value),
        ("fault", stated.fault.value, fault.value),
        ("reputation_tenths", stated.reputation_tenths, reputation_due),
        ("output_sha256", "given" if stated.output_sha256 else None, "given" if succeeded else None),
        ("acceptance.accepted", rules and rules.accepted, rules and succeeded),
    ):
        if found != due:
            sentence = f"{name} is {shown(found)}, but the other claims ask for {shown(due)}"
            raise ProofError(Flaw.CONTRADICTION, sentence)
    if rules:
        _check_acceptance(stated, rules)
    elif stated.outcome in OF_THE_RULES:
        sentence = f"the outcome is {stated.outcome}, but acceptance names no rules"
        raise ProofError(Flaw.CONTRADICTION, sentence)
    if stated.limits:
        _check_limits(stated, stated.limits)
    if stated.memory_refused:
        _check_memory_refused(stated)
    if stated.outcome is Outcome.WITHHELD and not _is_withheld(stated):
        raise ProofError(Flaw.CONTRADICTION, "the outcome is withheld, but what the judge did is stated")


def _check_acceptance(stated: Statement, rules: StatedAcceptance) -> None:
    if rules.agent_sha256 is None and rules.task_sha256 is None:
        raise ProofError(Flaw.CONTRADICTION, "acceptance is stated, but names no rules")
    if any(score and not rules.digests[side] for side, score in rules.scores.items()):
        raise ProofError(Flaw.CONTRADICTION, "acceptance states a score by rules that it does not name")
    if stated.v == 1:
        return
    if (rules.rejected_by is not None) != (stated.outcome is Outcome.REJECTED):
        sentence = f"rejected_by is {shown(rules.rejected_by)}, but the outcome is {stated.outcome}"
        raise ProofError(Flaw.CONTRADICTION, sentence)
    if rules.rejected_by and rules.digests[rules.rejected_by.side] is None:
        raise ProofError(Flaw.CONTRADICTION, f"rejected_by is {rules.rejected_by}, but no such rules are named")
    if stated.outcome is not Outcome.SUCCEEDED and any(rules.scores.values()):
        raise ProofError(Flaw.CONTRADICTION, "a score is stated of an output that was not accepted")


def _check_limits(stated: Statement, given: StatedLimits) -> None:
    for name, used, limit in (
        ("fuel", stated.meter.fuel, given.fuel),
        ("bytes of memory", stated.meter.memory_bytes, given.memory_bytes),
        ("bytes of output", stated.meter.output_bytes, given.output_bytes),
    ):
        if used > limit:
            sentence = f"the run took {used} {name}, over its limit {limit}"
            raise ProofError(Flaw.CONTRADICTION, sentence)
    for name, limit in (stated.own_limits.model_dump() if stated.own_limits else {}).items():
        if getattr(given, name) > limit:
            sentence = f"the run was given {getattr(given, name)} as its {name}, over the agent's own limit {limit}"
            raise ProofError(Flaw.CONTRADICTION, sentence)


def _check_memory_refused(stated: Statement) -> None:
    if stated.outcome not in _MEMORY_CAN_BE_REFUSED:
        raise ProofError(Flaw.CONTRADICTION, f"memory_refused is stated of a run that ended as {stated.outcome}")
    if stated.own_limits and stated.limits and stated.limits.memory_bytes >= stated.own_limits.memory_bytes:
        raise ProofError(Flaw.CONTRADICTION, "memory_refused is stated of a run that had all of the agent's own limit")


def _check_run(stated: Statement) -> None:
    """What ran states its limits, its engine and the engine's configuration; what did not run has used nothing."""
    outcome = stated.outcome
    ran = outcome not in _NOTHING_RAN and stated.fault is not Fault.PLATFORM  # else it may have run or not
    if ran and stated.limits is None:
        raise ProofError(Flaw.CONTRADICTION, f"the outcome is {outcome}, but the run states no limits")
    if (ran or stated.limits) and not (stated.engine and stated.config_sha256):
        lacking = "config_sha256" if stated.engine else "engine"
        raise ProofError(Flaw.CONTRADICTION, f"the outcome is {outcome}, but the run states no {lacking}")
    if outcome in _NOTHING_RAN and (stated.limits or stated.engine or stated.config_sha256 or stated.stderr_sha256):
        sentence = f"the outcome is {outcome}, so nothing ran, but limits, an engine or a log are stated"
        raise ProofError(Flaw.CONTRADICTION, sentence)
    used = stated.meter.model_dump(exclude={"fuel_exact"} if outcome in _NOTHING_RAN else {"fuel_exact", "input_bytes"})
    if stated.limits is None and any(used.values()):
        sentence = f"the run states no limits, so nothing ran, but {next(name for name in used if used[name])} is not 0"
        raise ProofError(Flaw.CONTRADICTION, sentence)


def _check_wall_time(stated: Statement) -> None:
    """No run takes longer than its timeout, and one that is ended by it took just as long.

    In version 1 a run that ended while its supervisor was kept from looking at the clock could state more.
    """
    if stated.limits is None or stated.fault is Fault.PLATFORM:
        return
    wall_ms, timeout_ms = stated.meter.wall_ms, stated.limits.timeout_ms
    bounded = stated.v > 1
    if (bounded and wall_ms > timeout_ms) or (stated.outcome is Outcome.TIMEOUT and wall_ms != timeout_ms):
        sentence = f"the outcome is {stated.outcome} after {wall_ms} ms, but the run's timeout is {timeout_ms} ms"
        raise ProofError(Flaw.CONTRADICTION, sentence)


_MEMORY_CAN_BE_REFUSED: Final = frozenset(outcome for outcome in Outcome if outcome.fault is Fault.AGENT)
_NOTHING_RAN: Final = frozenset({Outcome.NOT_NEEDED, Outcome.SUPERSEDED, Outcome.EXPIRED, Outcome.UNDELIVERED})


def _fault(stated: Statement) -> Fault:
    run = Run(
        stated.outcome,
        "",
        Meter(**stated.meter.model_dump()),
        limits=_limits(stated.limits),
        memory_refused=stated.memory_refused,
        rejected_by=stated.rejected_by,
    )
    return escrows.fault(run, _limits(stated.own_limits))


def _limits(stated: StatedLimits | None) -> Limits | None:
    return Limits(**stated.model_dump()) if stated else None


def _seed_due(stated: Statement) -> str:
    """A judge's seed was drawn when it was funded, so any is right; every other follows from the escrow's id."""
    drawn = stated.v > 1 and is_judge(stated)
    return stated.seed if drawn else escrows.task_seed(stated.eid).hex()


def _is_withheld(stated: Statement) -> bool:
    return (
        is_judge(stated)
        and stated.meter == StatedMeter(**asdict(Meter()))
        and (stated.input_sha256, stated.stderr_sha256, stated.memory_refused) == (_NOTHING_READ, None, False)
    )


_STATES: Final = {
    Outcome.SUCCEEDED: State.RELEASED,
    Outcome.WITHHELD: State.RELEASED,
    Outcome.EXPIRED: State.EXPIRED,
}
