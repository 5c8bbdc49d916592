"""The deep health check: uses each part of the platform, and reports each one separately."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from quittance.api.identity import HEALTH_SCOPE, authenticate
from quittance.errors import QuittanceError, problem
from quittance.observability import logger
from quittance.platform import Platform
from quittance.run import Job, Outcome

# A module that does nothing, in binary: `(module (memory (export "memory") 1) (func (export "_start")))`.
_IDLE_MODULE: Final = bytes.fromhex(
    "0061736d01000000010401600000030201000503010001071302066d656d6f72790200065f737461727400000a040102000b"
)
_IDLE_FUEL: Final = 1_000
_IDLE_TIMEOUT_MS: Final = 2_000
_IDLE_MEMORY_BYTES: Final = 64 * 1024


def examine(platform: Platform, headers: Mapping[str, str]) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for a caller with a token: the state of each part with the scope, else a problem."""
    try:
        authenticate(headers, platform.settings).need(HEALTH_SCOPE)
    except QuittanceError as refusal:
        return problem(refusal)
    parts = {name: _works(platform, name, check) for name, check in _CHECKS.items()}
    healthy = all(parts.values())
    body = {
        "status": "ok" if healthy else "degraded",
        "parts": {name: "ok" if works else "failing" for name, works in parts.items()},
        # A second barrier around agents, which some kernels do not support. Its absence is no failure.
        "seccomp": platform.sandbox.seccomp,
    }
    return (200 if healthy else 503), body, {}


def _works(platform: Platform, name: str, check: Callable[[Platform], None]) -> bool:
    try:
        check(platform)
    except Exception:  # noqa: BLE001 - any failure of a part is what is reported
        logger.exception("unhealthy", part=name)
        return False
    return True


def _ledger(parts: Platform) -> None:
    parts.ledger.find("nobody's")


def _registry(parts: Platform) -> None:
    parts.registry.check()


def _binaries(parts: Platform) -> None:
    parts.binaries.check()


def _outputs(parts: Platform) -> None:
    parts.outputs.check()


def _keys(parts: Platform) -> None:
    parts.keys.check()


def _sandbox(parts: Platform) -> None:
    """Compiles and runs a module that does nothing, in the same child processes as agents."""
    from quittance.sandbox import compile_module

    artefact = compile_module(_IDLE_MODULE)
    path = parts.settings.scratch_dir / f"health-{artefact.sha256}"
    path.write_bytes(artefact.data)
    job = Job(
        artefact_path=str(path),
        artefact_sha256=artefact.sha256,
        stdin=b"",
        fuel=_IDLE_FUEL,
        memory_bytes=_IDLE_MEMORY_BYTES,
        timeout_ms=_IDLE_TIMEOUT_MS,
        epoch_ns=0,
        seed=bytes(32),
    )
    run = parts.sandbox.run(job)
    if run.outcome is not Outcome.SUCCEEDED:
        raise RuntimeError(run.message)


_CHECKS: Final = {
    "ledger": _ledger,
    "registry": _registry,
    "binaries": _binaries,
    "outputs": _outputs,
    "keys": _keys,
    "sandbox": _sandbox,
}
