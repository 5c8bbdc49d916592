"""What a receipt states of a run: limits, engine and time if something ran, nothing if nothing ran."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from quittance.ledger.escrow import Escrow, StoredBytes, decide, expire
from quittance.proof.receipt import verify
from quittance.proof.statement import Flaw, ProofError
from quittance.run import OF_THE_RULES, Fault, Limits, Meter, Outcome, RejectedBy, Run
from tests.proof.receipts import claims_of, sign
from tests.proof.roots import NOW_S, Root, as_version_1

ROOT = Root()
KEY = ROOT.certify()
LIMITS = Limits(fuel=50, memory_bytes=60, timeout_ms=70)
METER = Meter(fuel=5, cpu_ms=6, wall_ms=7, memory_bytes=8, input_bytes=9, output_bytes=10, stderr_bytes=11)
NOTHING_RAN = {Outcome.NOT_NEEDED, Outcome.SUPERSEDED, Outcome.EXPIRED, Outcome.UNDELIVERED}
NOT_OF_TASKS = {
    Outcome.WITHHELD,
    Outcome.RULES_FAILED,
    Outcome.JUDGE_FAILED,
}  # only in judges' receipts or in version 1
RAN = {outcome for outcome in Outcome if outcome.fault is not Fault.PLATFORM} - NOTHING_RAN - NOT_OF_TASKS
DIGEST = "ab" * 32

State = Callable[..., dict[str, Any]]


@pytest.fixture
def stated(new_escrow: Callable[..., Escrow]) -> State:
    """The claims of an outcome as the code makes them, for a run (`limits`) or without one."""

    def made(outcome: Outcome, *, limits: Limits | None, meter: Meter, engine: str = "e") -> dict[str, Any]:
        rules = {"agent_rules_sha256": DIGEST} if outcome in OF_THE_RULES else {}
        escrow = new_escrow(**rules)
        if outcome is Outcome.EXPIRED:
            settled = expire(escrow, now_ms=escrow.expires_ms)
        else:
            settled = decide(escrow, ended_by(outcome, meter, limits), now_ms=NOW_S * 1_000 + 5)
        if outcome is Outcome.SUCCEEDED:
            settled = replace(settled, output=StoredBytes(DIGEST, meter.output_bytes, None))
        config = "ff" * 32 if engine else ""
        return claims_of(
            escrow,
            settled,
            issuer="i",
            run=ended_by(outcome, meter, limits),
            engine=engine,
            config_sha256=config,
        )

    return made


def ended_by(outcome: Outcome, meter: Meter, limits: Limits | None) -> Run:
    by = RejectedBy.AGENT_RULES if outcome is Outcome.REJECTED else None
    return Run(outcome, "", meter, limits=limits, rejected_by=by)


def sentence(claims: dict[str, Any]) -> str | None:
    """The first reason that a verifier refuses the claims for, or None."""
    try:
        verify(sign(claims, KEY), ROOT.jwks())
    except ProofError as error:
        return str(error) if error.flaw is Flaw.CONTRADICTION else f"{error.flaw}: {error}"
    return None


def ended(outcome: Outcome) -> Meter:
    return replace(METER, wall_ms=LIMITS.timeout_ms) if outcome is Outcome.TIMEOUT else METER


@pytest.mark.parametrize("outcome", sorted(RAN))
def test_what_ran_states_limits_engine_and_configuration(stated: State, outcome: Outcome) -> None:
    whole = stated(outcome, limits=LIMITS, meter=ended(outcome))
    assert sentence(whole) is None
    nothing = Meter(input_bytes=9, wall_ms=whole["meter"]["wall_ms"])
    for changes, said in (
        ({"limits": None}, "states no limits"),
        ({"limits": None, "meter": {**whole["meter"], **vars_of(nothing)}}, "states no limits"),
        ({"engine": ""}, "states no engine"),
        ({"config_sha256": ""}, "states no config_sha256"),
        ({"engine": "", "config_sha256": "", "limits": None}, "states no limits"),
    ):
        assert said in (sentence({**whole, **changes}) or "it is accepted"), changes


def vars_of(meter: Meter) -> dict[str, Any]:
    return {name: getattr(meter, name) for name in Meter.__slots__}


@pytest.mark.parametrize("outcome", sorted(NOTHING_RAN))
def test_if_nothing_ran_nothing_was_used(stated: State, outcome: Outcome) -> None:
    whole = stated(outcome, limits=None, meter=Meter(), engine="")
    assert sentence(whole) is None
    limits = {"fuel": 50, "memory_bytes": 60, "timeout_ms": 70}
    for changes in (
        {"limits": limits, "engine": "e", "config_sha256": DIGEST},
        {"limits": limits},
        {"engine": "e", "config_sha256": DIGEST},
        {"config_sha256": DIGEST},
        {"stderr_sha256": DIGEST},
    ):
        assert sentence({**whole, **changes}), changes
    for name in ("fuel", "cpu_ms", "wall_ms", "memory_bytes", "input_bytes", "output_bytes", "stderr_bytes"):
        assert f"{name} is not 0" in (sentence({**whole, "meter": {**whole["meter"], name: 1}}) or ""), name


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome not in RAN | NOTHING_RAN | NOT_OF_TASKS])
def test_a_platform_fault_occurs_before_or_during_a_run(stated: State, outcome: Outcome) -> None:
    """Before a run, the length of the input is known already, so it may be stated."""
    assert sentence(stated(outcome, limits=None, meter=Meter(input_bytes=9))) is None
    assert sentence(stated(outcome, limits=LIMITS, meter=replace(METER, wall_ms=71))) is None
    assert "states no engine" in (sentence(stated(outcome, limits=LIMITS, meter=METER, engine="")) or "")
    assert "wall_ms is not 0" in (sentence(stated(outcome, limits=None, meter=Meter(wall_ms=1))) or "")


@pytest.mark.parametrize(("wall_ms", "holds"), [(69, False), (70, True), (71, False)])
def test_a_timed_out_run_took_exactly_its_timeout(stated: State, wall_ms: int, holds: bool) -> None:
    found = sentence(stated(Outcome.TIMEOUT, limits=LIMITS, meter=replace(METER, wall_ms=wall_ms)))
    assert (found is None) == holds


@pytest.mark.parametrize("outcome", sorted(RAN - {Outcome.TIMEOUT}))
@pytest.mark.parametrize(("wall_ms", "holds"), [(70, True), (71, False)])
def test_no_run_takes_longer_than_its_timeout(stated: State, outcome: Outcome, wall_ms: int, holds: bool) -> None:
    said = sentence(stated(outcome, limits=LIMITS, meter=replace(METER, wall_ms=wall_ms)))
    if holds:
        assert said is None
    else:
        assert "after 71 ms, but the run's timeout is 70 ms" in (said or "it is accepted")


@pytest.mark.parametrize("outcome", sorted(RAN - {Outcome.TIMEOUT, Outcome.BUDGET_EXHAUSTED}))
def test_in_version_1_a_run_could_take_longer(stated: State, outcome: Outcome) -> None:
    """A supervisor that had been stopped accepted a late result."""
    whole = stated(outcome, limits=LIMITS, meter=replace(METER, wall_ms=71))
    assert sentence(as_version_1(whole)) is None


@pytest.mark.parametrize("wall_ms", [69, 71])
def test_in_version_1_a_timed_out_run_took_its_timeout_too(stated: State, wall_ms: int) -> None:
    whole = stated(Outcome.TIMEOUT, limits=LIMITS, meter=replace(METER, wall_ms=wall_ms))
    assert f"after {wall_ms} ms" in (sentence(as_version_1(whole)) or "it is accepted")
