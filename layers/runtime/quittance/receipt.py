"""Receipts: signed statements of an outcome that anyone can check offline. Pure. See docs/receipts.md."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import jwt
from pydantic import Field

from quittance import certified, reputation
from quittance import escrow as escrows
from quittance.certified import Certified, Flaw, Form, Kind, ProofError, Purpose, SigningKey, shown
from quittance.escrow import Escrow, Settlement, State
from quittance.limits import ACCOUNT_ID_CHARS_MAX, BUDGET_MICRO_MAX, FEE_BPS_MAX, STATED_TASK_CHARS_MAX
from quittance.money import format_credits
from quittance.pricing import tariff_sha256
from quittance.run import OF_THE_RULES, Fault, Limits, Meter, Outcome, Side

RECEIPT: Final = Kind("quittance-receipt+jwt", "receipt", Purpose.RECEIPT)
_VERSION: Final = 1
_BPS: Final = 10_000
_NS_PER_MS: Final = 1_000_000

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Amount = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,15})$")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Score = Annotated[str, Field(pattern=r"^(0(\.[0-9]{0,5}[1-9])?|1)$")]
_Account = Annotated[str, Field(min_length=1, max_length=ACCOUNT_ID_CHARS_MAX)]


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


class StatedAcceptance(Form):
    """The rules that the output had to meet, whose canonical JSON is named by digest, and whether it did.

    A score is what the judge of a side's rules gave the output: from 0 to 1, None if it was not asked or gave none.
    """

    agent_sha256: _Digest | None
    task_sha256: _Digest | None
    agent_score: _Score | None
    task_score: _Score | None
    accepted: bool

    @property
    def scores(self) -> dict[Side, str | None]:
        """The score by each side's judge."""
        return {Side.AGENT: self.agent_score, Side.TASK: self.task_score}

    @property
    def digests(self) -> dict[Side, str | None]:
        """The digest of each side's rules."""
        return {Side.AGENT: self.agent_sha256, Side.TASK: self.task_sha256}


class Statement(Form):
    """The claims of a receipt: amounts are strings of micro-credits, times are milliseconds since the epoch."""

    v: Annotated[int, Field(ge=_VERSION, le=_VERSION)]
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
    fee_bps: Annotated[int, Field(ge=0, le=FEE_BPS_MAX)]
    tariff_sha256: _Digest
    state: Annotated[State, Field(strict=False)]
    outcome: Annotated[Outcome, Field(strict=False)]
    fault: Annotated[Fault, Field(strict=False)]
    acceptance: StatedAcceptance | None
    reputation_tenths: Annotated[int, Field(ge=-1_000, le=1_000)]
    meter: StatedMeter
    limits: StatedLimits | None
    engine: Annotated[str, Field(max_length=100)]
    config_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    epoch_ns: Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,21})$")]
    seed: _Digest
    funded_at: _Count
    expires_at: _Count
    settled_at: _Count


def claims(
    escrow: Escrow,
    settlement: Settlement,
    *,
    issuer: str,
    meter: Meter,
    limits: Limits | None,
    engine: str,
    config_sha256: str,
    scores_micro: Mapping[Side, int | None] | None = None,
) -> dict[str, Any]:
    """What a receipt states, in the form that `Statement` describes. `limits` is None where nothing ran."""
    return {
        "v": _VERSION,
        "iss": issuer,
        "eid": escrow.escrow_id,
        "task": escrow.task_id,
        "user": escrow.payer,
        "agent": escrow.agent_id,
        "owner": escrow.owner,
        "module_sha256": escrow.module_sha256,
        "input_sha256": escrow.input_sha256,
        "output_sha256": settlement.output.sha256 if settlement.output else None,
        "stderr_sha256": settlement.log.sha256 if settlement.log else None,
        "asset": "credit/6",
        "budget": str(escrow.budget_micro),
        "paid": str(settlement.split.paid_micro),
        "fee": str(settlement.split.fee_micro),
        "refunded": str(settlement.split.refunded_micro),
        "fee_bps": escrow.fee_bps,
        "tariff_sha256": tariff_sha256(escrow.tariff),
        "state": settlement.state,
        "outcome": settlement.outcome,
        "fault": settlement.outcome.fault,
        "acceptance": _acceptance(escrow, settlement, scores_micro or {}),
        "reputation_tenths": settlement.reputation_tenths,
        "meter": {
            "fuel": meter.fuel,
            "fuel_exact": meter.fuel_exact,
            "cpu_ms": meter.cpu_ms,
            "wall_ms": meter.wall_ms,
            "memory_bytes": meter.memory_bytes,
            "input_bytes": meter.input_bytes,
            "output_bytes": meter.output_bytes,
            "stderr_bytes": meter.stderr_bytes,
        },
        "limits": {
            "fuel": limits.fuel,
            "memory_bytes": limits.memory_bytes,
            "timeout_ms": limits.timeout_ms,
        }
        if limits
        else None,
        "engine": engine,
        "config_sha256": config_sha256,
        "epoch_ns": str(escrow.funded_ms * _NS_PER_MS),
        "seed": escrows.seed(escrow.escrow_id).hex(),
        "funded_at": escrow.funded_ms,
        "expires_at": escrow.expires_ms,
        "settled_at": settlement.settled_ms,
    }


def _acceptance(
    escrow: Escrow, settlement: Settlement, scores_micro: Mapping[Side, int | None]
) -> dict[str, Any] | None:
    if escrow.agent_rules_sha256 is None and escrow.task_rules_sha256 is None:
        return None
    scores = {side: format_credits(score) for side, score in scores_micro.items() if score is not None}
    return {
        "agent_sha256": escrow.agent_rules_sha256,
        "task_sha256": escrow.task_rules_sha256,
        "agent_score": scores.get(Side.AGENT),
        "task_score": scores.get(Side.TASK),
        "accepted": settlement.state is State.RELEASED,
    }


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
    version = chain.claims.get("v")
    if version != _VERSION:
        sentence = f"the receipt is of version {shown(version)}; this verifier knows version {_VERSION}"
        raise ProofError(Flaw.FORM, sentence)
    return certified.read(Statement, chain.claims, "receipt"), chain


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
    """The arithmetic of a settlement (I3 and I4)."""
    budget, paid, fee, refunded = map(int, (stated.budget, stated.paid, stated.fee, stated.refunded))
    if paid + fee + refunded != budget:
        sentence = f"paid {paid}, fee {fee} and refunded {refunded} do not add up to the budget {budget}"
        raise ProofError(Flaw.AMOUNTS, sentence)
    if fee != (due := (paid + fee) * stated.fee_bps // _BPS):
        sentence = f"the fee {fee} is not the part of what was used that fee_bps states, {due}"
        raise ProofError(Flaw.AMOUNTS, sentence)
    if paid + fee and stated.state is not State.RELEASED:
        sentence = f"{paid + fee} was paid although the escrow is {stated.state}, not released"
        raise ProofError(Flaw.AMOUNTS, sentence)
    if not 0 < budget <= BUDGET_MICRO_MAX:
        sentence = f"the budget {budget} is not between 1 and {BUDGET_MICRO_MAX}"
        raise ProofError(Flaw.AMOUNTS, sentence)


def _check_contradictions(stated: Statement) -> None:
    _check_consistency(stated)
    _check_run(stated)
    _check_wall_time(stated)


def _check_consistency(stated: Statement) -> None:
    """What follows from the other claims must be what follows from them."""
    rules = stated.acceptance
    for name, found, due in (
        ("eid", stated.eid, escrows.escrow_id(stated.user, stated.task)),
        ("seed", stated.seed, escrows.seed(stated.eid).hex()),
        ("epoch_ns", stated.epoch_ns, str(stated.funded_at * _NS_PER_MS)),
        ("state", stated.state.value, _STATES.get(stated.outcome, State.REFUNDED).value),
        ("fault", stated.fault.value, stated.outcome.fault.value),
        (
            "reputation_tenths",
            stated.reputation_tenths,
            reputation.delta_tenths(stated.outcome, wall_ms=stated.meter.wall_ms),
        ),
        ("output_sha256", "given" if stated.output_sha256 else None, _output_due(stated)),
        ("acceptance.accepted", rules and rules.accepted, rules and stated.state is State.RELEASED),
    ):
        if found != due:
            sentence = f"{name} is {shown(found)}, but the other claims ask for {shown(due)}"
            raise ProofError(Flaw.CONTRADICTION, sentence)
    if rules and rules.agent_sha256 is None and rules.task_sha256 is None:
        raise ProofError(Flaw.CONTRADICTION, "acceptance is stated, but names no rules")
    if rules and any(score and not rules.digests[side] for side, score in rules.scores.items()):
        raise ProofError(Flaw.CONTRADICTION, "acceptance states a score by rules that it does not name")
    if stated.outcome in OF_THE_RULES and rules is None:
        sentence = f"the outcome is {stated.outcome}, but acceptance names no rules"
        raise ProofError(Flaw.CONTRADICTION, sentence)
    if stated.limits and stated.meter.fuel > stated.limits.fuel:
        sentence = f"the run took {stated.meter.fuel} fuel, over its limit {stated.limits.fuel}"
        raise ProofError(Flaw.CONTRADICTION, sentence)
    if stated.limits and stated.meter.memory_bytes > stated.limits.memory_bytes:
        sentence = f"the run took {stated.meter.memory_bytes} bytes of memory, over its limit"
        raise ProofError(Flaw.CONTRADICTION, sentence)


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
    bounded = stated.v >= _WALL_TIME_BOUNDED_SINCE
    if (bounded and wall_ms > timeout_ms) or (stated.outcome is Outcome.TIMEOUT and wall_ms != timeout_ms):
        sentence = f"the outcome is {stated.outcome} after {wall_ms} ms, but the run's timeout is {timeout_ms} ms"
        raise ProofError(Flaw.CONTRADICTION, sentence)


_WALL_TIME_BOUNDED_SINCE: Final = 2
_NOTHING_RAN: Final = frozenset({Outcome.NOT_NEEDED, Outcome.SUPERSEDED, Outcome.EXPIRED, Outcome.UNDELIVERED})
_STATES: Final = {Outcome.SUCCEEDED: State.RELEASED, Outcome.EXPIRED: State.EXPIRED}


def _output_due(stated: Statement) -> str | None:
    return "given" if stated.outcome is Outcome.SUCCEEDED else None
