"""Publishing: from a registration to an active agent. Modules are validated and compiled here, never in a task."""

import hashlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from quittance.agent import Agent, AgentState, Rejection, Version
from quittance.errors import NotFoundError
from quittance.limits import MIB
from quittance.observability import logger
from quittance.platform import Platform
from quittance.store.blobs import BlobMissingError, Posted
from quittance.store.registry import Compilation

if TYPE_CHECKING:
    from quittance.sandbox import Artefact
from quittance import tracing
from quittance.ledger import pricing

CLOCKS_DIFFER_MS_MAX: Final = 5_000
"""By how much the clocks of two environments differ, at most."""
_FAILED_AGAIN_MS: Final = 30_000  # before Lambda's own next try, a minute later
_REFUSED_AGAIN_MS: Final = 24 * 60 * 60_000
_UNBONDED: Final = Rejection(
    "bond_required",
    "Your bond is below the minimum. Deposit the rest with POST /accounts/me/bond, then open another version.",
)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A module that the compiler does not take, and the processor time that it took to find out."""

    rejection: Rejection
    cpu_ms: int


def publish(platform: Platform, key: str, version: str = "") -> AgentState:
    """Makes a posted module the active version of its agent, or records why not. Safe to repeat.

        claim → read → compile → keep → decide

    `key` and `version` name the object in the uploads bucket. The first object of an upload that is claimed is the
    upload; any other one, and any that is not awaited, is refused before it is read. Nothing is stored unless the
    upload is still the newest then. Returns where the upload stands; "retired" if it is nobody's any more.

    Raises PlatformUnavailableError and CompileFailedError, the platform's failures: Lambda tries again, and gives up
    in the end (`give_up`). A crash leaves the upload claimed, and the same object may be claimed again.
    """
    posted = Posted.of(key, version)
    agent = _awaited(platform, posted)
    if posted is None or agent is None:
        return AgentState.RETIRED
    if not agent.upload.decided:
        agent = platform.registry.claim_upload(agent, _name(posted))
    if not _is_claimed(agent, posted):
        logger.info("post not awaited", agent_id=agent.agent_id, upload=posted.number, state=agent.upload.state)
        return _state_of(agent, posted)
    if not platform.registry.is_bonded(agent.owner):
        return _state_of(platform.registry.reject(agent, _UNBONDED), posted)
    try:
        with tracing.step("read"):
            module = platform.uploads.read(posted)
    except BlobMissingError:
        return give_up(platform, key, version)
    artefact = _compile(module)
    if cost_micro := _cost_micro(platform, module, artefact.cpu_ms):
        platform.registry.owe(agent, cost_micro, now_ms=platform.now_ms())
    if isinstance(artefact, _Refused):
        agent = platform.registry.reject(agent, artefact.rejection)
    else:
        standing = platform.registry.get(agent.agent_id)
        if not _is_claimed(standing, posted):  # overtaken, or published by another delivery of the same event
            return _state_of(standing, posted)
        agent = platform.registry.activate(agent, _keep(platform, module, artefact))
    logger.info("published", agent_id=agent.agent_id, upload=posted.number, state=agent.upload.state)
    return _state_of(agent, posted)


def give_up(platform: Platform, key: str, version: str = "") -> AgentState:
    """Records that the platform could not publish an upload, unless it is decided. Safe to repeat.

    The author reads it as the platform's failure and opens another version. An operator may send the event of the same
    object again. Returns where the upload stands. Raises PlatformUnavailableError.
    """
    posted = Posted.of(key, version)
    agent = _awaited(platform, posted)
    if posted is None or agent is None:
        return AgentState.RETIRED
    if not agent.upload.decided:
        agent = platform.registry.fail_upload(agent, _name(posted), _failure(agent.agent_id))
    if agent.upload.state is AgentState.FAILED:
        logger.error("publishing given up", agent_id=agent.agent_id, upload=posted.number)
    return _state_of(agent, posted)


def recompile(platform: Platform, agent_id: str) -> None:
    """Compiles an agent's active module anew, if its artefact is of another engine, configuration or processor.

    Each artefact is compiled once, however many ask, for however many agents: a lease in the registry decides who does
    it. After a failure nobody else tries for a while; after a crash the lease ends with the time of its invocation.
    Safe to repeat. Raises NotFoundError, PlatformUnavailableError, CompileFailedError, BlobMissingError,
    BlobTamperedError.
    """
    from quittance.sandbox import artefact_key

    agent = platform.registry.get(agent_id)
    if agent.version is None or agent.retired_ms is not None:
        return
    key = artefact_key(agent.version.module_sha256)
    if agent.version.artefact_key == key:
        return
    now_ms = platform.now_ms()
    until_ms = now_ms + platform.left_ms() + CLOCKS_DIFFER_MS_MAX
    claim = platform.registry.claim_compilation(key, holder=uuid.uuid4().hex, now_ms=now_ms, until_ms=until_ms)
    sha256 = claim.artefact_sha256
    if sha256 is None:
        if not claim.ours:
            logger.info("being compiled already", agent_id=agent_id)
            return
        sha256 = _compile_anew(platform, agent.version.module_sha256, claim)
    if sha256 is not None:
        platform.registry.replace_artefact(agent, _version(agent.version.module_sha256, key, sha256))
        logger.info("recompiled", agent_id=agent_id)


def _compile_anew(platform: Platform, module_sha256: str, claim: Compilation) -> str | None:
    """Compiles a published module for the engine of today; returns the artefact's digest, None if it is refused."""
    try:
        module = platform.binaries.load_module(module_sha256)
        artefact = _compile(module)
        if isinstance(artefact, _Refused):
            code = artefact.rejection.code
            logger.error("a published module no longer compiles", module_sha256=module_sha256, code=code)
            platform.registry.postpone_compilation(claim, until_ms=platform.now_ms() + _REFUSED_AGAIN_MS)
            return None
        _keep(platform, module, artefact)
    except Exception:
        # Whatever failed, nobody holds the lease any more: Lambda tries the same event again after a minute.
        platform.registry.postpone_compilation(claim, until_ms=platform.now_ms() + _FAILED_AGAIN_MS)
        raise
    platform.registry.finish_compilation(claim, artefact.sha256)
    return artefact.sha256


def _awaited(platform: Platform, posted: Posted | None) -> Agent | None:
    """The agent whose newest upload this is; None if a newer upload, or retirement, has overtaken it."""
    if posted is None:
        return None
    try:
        agent = platform.registry.get(posted.agent_id)
    except NotFoundError:
        return None
    return None if _is_overtaken(agent, posted) else agent


def _is_overtaken(agent: Agent, posted: Posted) -> bool:
    return agent.retired_ms is not None or agent.upload.number != posted.number


def _is_claimed(agent: Agent, posted: Posted) -> bool:
    """Whether the upload is this object, and being published."""
    upload = agent.upload
    claimed = upload.state is AgentState.PUBLISHING and upload.posted == _name(posted)
    return claimed and not _is_overtaken(agent, posted)


def _state_of(agent: Agent, posted: Posted) -> AgentState:
    return AgentState.RETIRED if _is_overtaken(agent, posted) else agent.upload.state


def _name(posted: Posted) -> str:
    """What the registry notes of an object: its version, which is not there in a bucket without versions."""
    return posted.version or "unversioned"


def _failure(agent_id: str) -> Rejection:
    sentence = (
        "The platform failed to publish this module; the fault is not yours. Open another upload with "
        f"POST /agents/{agent_id}/versions and post the module again."
    )
    return Rejection("platform_failed", sentence)


@tracing.step("compile")
def _compile(module: bytes) -> "Artefact | _Refused":
    from quittance import sandbox

    try:
        return sandbox.compile_module(module)
    except sandbox.ModuleRejectedError as rejected:
        return _Refused(Rejection(rejected.code, rejected.message), rejected.cpu_ms)


def _cost_micro(platform: Platform, module: bytes, cpu_ms: int) -> int:
    """What publishing costs the owner's bond: the module's size, and the processor time, each rounded up."""
    settings = platform.settings
    size_micro = pricing.divide_up(len(module) * settings.publish_per_mib_micro, MIB)
    return size_micro + pricing.divide_up(cpu_ms * settings.publish_per_cpu_second_micro, 1_000)


@tracing.step("keep")
def _keep(platform: Platform, module: bytes, artefact: "Artefact") -> Version:
    module_sha256 = hashlib.sha256(module).hexdigest()
    platform.binaries.keep_module(module_sha256, module)
    platform.binaries.keep_artefact(artefact.key, artefact.data)
    return _version(module_sha256, artefact.key, artefact.sha256)


def _version(module_sha256: str, key: str, sha256: str) -> Version:
    from quittance.sandbox import ENGINE_DIGEST, ENGINE_VERSION

    return Version(module_sha256, key, sha256, ENGINE_VERSION, ENGINE_DIGEST)
