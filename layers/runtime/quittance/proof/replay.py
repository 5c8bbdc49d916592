"""A receipt's run, repeated: the same module, input, clock, randomness and limits in the project's own sandbox.

What must be equal: outcome, output, log, and what the meter counts exactly (fuel, peak memory, bytes written). Under
another engine or configuration than the receipt names, outcome, output and log must still be equal; the counts may
differ, and an end that depends on them proves nothing either way. Host calls answer by the rules that the receipt's
configuration has, also by those of earlier releases.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quittance.limits import TIMEOUT_S_ASYNC_MAX
from quittance.proof.receipt import LimitClaims, ReceiptClaims
from quittance.proof.statement import Flaw, ProofError
from quittance.run import HOST_RULES, OF_THE_RULES, Fault, Job, Outcome, Run
from quittance.sandbox import (
    ENGINE_VERSION,
    CompileFailedError,
    ModuleRejectedError,
    Sandbox,
    compile_module,
    config_digest,
    host_rules_of,
)

_TIMEOUT_MS: Final = TIMEOUT_S_ASYNC_MAX * 1_000  # this machine may be slower; fuel bounds the run as it did before
_OF_THE_ENGINE: Final = frozenset({Outcome.FUEL_EXHAUSTED, Outcome.TRAP_STACK, Outcome.MEMORY_LIMIT})


@dataclass(frozen=True, slots=True)
class Replay:
    """A run that ended as the receipt says, and whether it ran under the receipt's engine and configuration."""

    run: Run
    same_engine: bool


def replay(stated: ReceiptClaims, module: bytes, stdin: bytes) -> Replay:
    """Repeats the run of a receipt.

    Raises ProofError: `Flaw.REPLAY` if it ends in another way, `Flaw.UNREPEATABLE` if no run could tell, and
    `Flaw.NO_SANDBOX` if this machine cannot.
    """
    host_rules = host_rules_of(stated.config_sha256) or HOST_RULES
    found = _run(stated, _repeatable(stated), module, stdin, host_rules)
    if found.outcome.fault is Fault.PLATFORM or found.outcome is Outcome.TIMEOUT:
        raise ProofError(Flaw.NO_SANDBOX, f"the replay did not come to its end: {found.message}")
    same_engine = stated.engine == ENGINE_VERSION and stated.config_sha256 == config_digest(host_rules)
    differences = "; ".join(_differences(stated, found, counts=same_engine))
    if differences and not same_engine and {stated.outcome, found.outcome} & _OF_THE_ENGINE:
        raise ProofError(Flaw.UNREPEATABLE, f"the receipt is of another engine, so this proves nothing: {differences}")
    if differences:
        raise ProofError(Flaw.REPLAY, differences)
    return Replay(found, same_engine)


def _repeatable(stated: ReceiptClaims) -> LimitClaims:
    """The limits of a run that a repetition can tell something about."""
    if stated.fault is Fault.PLATFORM:
        sentence = f"the run ended by the platform's fault ({stated.outcome}), not by what the module does"
        raise ProofError(Flaw.UNREPEATABLE, sentence)
    if stated.outcome is Outcome.TIMEOUT:
        raise ProofError(Flaw.UNREPEATABLE, "the run was ended by the clock, which is another on every machine")
    if stated.limits is None:
        raise ProofError(Flaw.UNREPEATABLE, "the receipt does not state the limits of the run")
    return stated.limits


def _run(stated: ReceiptClaims, limits: LimitClaims, module: bytes, stdin: bytes, host_rules: int) -> Run:
    try:
        artefact = compile_module(module)
        with tempfile.TemporaryDirectory(prefix="quittance-") as folder, Sandbox() as sandbox:
            path = Path(folder) / "artefact"
            path.write_bytes(artefact.data)
            job = Job(
                artefact_path=str(path),
                artefact_sha256=artefact.sha256,
                stdin=stdin,
                fuel=limits.fuel,
                memory_bytes=limits.memory_bytes,
                timeout_ms=_TIMEOUT_MS,
                epoch_ns=int(stated.epoch_ns),
                seed=bytes.fromhex(stated.seed),
                output_bytes=limits.output_bytes,
                host_rules=host_rules,
            )
            return sandbox.run(job)
    except ModuleRejectedError as exc:
        raise ProofError(Flaw.NO_SANDBOX, f"the sandbox does not take the module: {exc}") from exc
    except (CompileFailedError, ValueError, OSError) as exc:
        sentence = f"the sandbox cannot run it: {exc}. Is the extra installed (pip install 'quittance[replay]')?"
        raise ProofError(Flaw.NO_SANDBOX, sentence) from exc


def _differences(stated: ReceiptClaims, found: Run, *, counts: bool) -> Iterator[str]:
    ended = Outcome.SUCCEEDED if stated.outcome in OF_THE_RULES else stated.outcome
    pairs: list[tuple[str, Any, Any]] = [("outcome", ended, found.outcome)]
    if stated.output_sha256:
        pairs.append(("output's SHA-256", stated.output_sha256, _sha256(found.stdout)))
    if stated.stderr_sha256:
        pairs.append(("log's SHA-256", stated.stderr_sha256, _sha256(found.stderr)))
    if counts:
        names = ["fuel_exact", "memory_bytes", "input_bytes", "output_bytes", "stderr_bytes"]
        if stated.meter.fuel_exact:  # else the engine under-reports, and not always by as much
            names.append("fuel")
        pairs += [(name, getattr(stated.meter, name), getattr(found.meter, name)) for name in names]
    for name, says, is_now in pairs:
        if says != is_now:
            yield f"the {name} of the replay is {is_now}, the receipt says {says}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
