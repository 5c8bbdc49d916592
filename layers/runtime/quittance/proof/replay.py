"""Repeats a receipt's run: the same module, input, clock, randomness and limits in the project's own sandbox.

Outcome, output, stderr and everything that the meter counts exactly (fuel, peak memory, bytes written) must be equal.
Under another engine or configuration than the receipt names, outcome, output and stderr must still be equal, but the
counts may differ, and an outcome that depends on them proves nothing either way. Host calls follow the rules of the
receipt's configuration, also those of earlier releases.
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

_TIMEOUT_MS: Final = TIMEOUT_S_ASYNC_MAX * 1_000  # this machine may be slower; fuel limits the run as it did before
_OF_THE_ENGINE: Final = frozenset({Outcome.FUEL_EXHAUSTED, Outcome.TRAP_STACK, Outcome.MEMORY_LIMIT})


@dataclass(frozen=True, slots=True)
class Replay:
    """A run that ended as the receipt states, and whether it ran under the receipt's engine and configuration."""

    run: Run
    same_engine: bool


def replay(claims: ReceiptClaims, module: bytes, stdin: bytes) -> Replay:
    """Repeats the run of a receipt.

    Raises ProofError: `Flaw.REPLAY` if it ends in another way, `Flaw.UNREPEATABLE` if no repetition can prove
    anything, and `Flaw.NO_SANDBOX` if this machine cannot run it.
    """
    host_rules = host_rules_of(claims.config_sha256) or HOST_RULES
    found = _run(claims, _repeatable(claims), module, stdin, host_rules)
    if found.outcome.fault is Fault.PLATFORM or found.outcome is Outcome.TIMEOUT:
        raise ProofError(Flaw.NO_SANDBOX, f"the replay did not finish: {found.message}")
    same_engine = claims.engine == ENGINE_VERSION and claims.config_sha256 == config_digest(host_rules)
    differences = "; ".join(_differences(claims, found, counts=same_engine))
    if differences and not same_engine and {claims.outcome, found.outcome} & _OF_THE_ENGINE:
        raise ProofError(Flaw.UNREPEATABLE, f"the receipt is of another engine, so this proves nothing: {differences}")
    if differences:
        raise ProofError(Flaw.REPLAY, differences)
    return Replay(found, same_engine)


def _repeatable(claims: ReceiptClaims) -> LimitClaims:
    """The limits of the run. Raises ProofError if repeating it can prove nothing."""
    if claims.fault is Fault.PLATFORM:
        sentence = f"the run ended by the platform's fault ({claims.outcome}), not by what the module does"
        raise ProofError(Flaw.UNREPEATABLE, sentence)
    if claims.outcome is Outcome.TIMEOUT:
        raise ProofError(Flaw.UNREPEATABLE, "the run was ended by the clock, which differs between machines")
    if claims.limits is None:
        raise ProofError(Flaw.UNREPEATABLE, "the receipt does not state the limits of the run")
    return claims.limits


def _run(claims: ReceiptClaims, limits: LimitClaims, module: bytes, stdin: bytes, host_rules: int) -> Run:
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
                epoch_ns=int(claims.epoch_ns),
                seed=bytes.fromhex(claims.seed),
                output_bytes=limits.output_bytes,
                host_rules=host_rules,
            )
            return sandbox.run(job)
    except ModuleRejectedError as exc:
        raise ProofError(Flaw.NO_SANDBOX, f"the sandbox rejects the module: {exc}") from exc
    except (CompileFailedError, ValueError, OSError) as exc:
        sentence = f"the sandbox cannot run it: {exc}. Is the extra installed (pip install 'quittance[replay]')?"
        raise ProofError(Flaw.NO_SANDBOX, sentence) from exc


def _differences(claims: ReceiptClaims, found: Run, *, counts: bool) -> Iterator[str]:
    ended = Outcome.SUCCEEDED if claims.outcome in OF_THE_RULES else claims.outcome
    pairs: list[tuple[str, Any, Any]] = [("outcome", ended, found.outcome)]
    if claims.output_sha256:
        pairs.append(("output's SHA-256", claims.output_sha256, _sha256(found.stdout)))
    if claims.stderr_sha256:
        pairs.append(("log's SHA-256", claims.stderr_sha256, _sha256(found.stderr)))
    if counts:
        names = ["fuel_exact", "memory_bytes", "input_bytes", "output_bytes", "stderr_bytes"]
        if claims.meter.fuel_exact:  # else the engine under-reports, by an amount that varies
            names.append("fuel")
        pairs += [(name, getattr(claims.meter, name), getattr(found.meter, name)) for name in names]
    for name, stated, replayed in pairs:
        if stated != replayed:
            yield f"the {name} of the replay is {replayed}, the receipt states {stated}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
